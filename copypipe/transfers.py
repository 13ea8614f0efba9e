"""One slice in one transaction of the dest: lock, clear, relay, count, commit.

The order is the point. The slice's locks come first, so that a run that had to wait sees what the
other one committed; the source's transaction begins last, so that it brings nothing older than
what was cleared. READ COMMITTED at the dest: a snapshot taken while waiting would be stale.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from copypipe import modes, plans
from copypipe.errors import (
    CommitUnknown,
    CopypipeError,
    NothingToCopy,
    PlanRefused,
    SliceBusy,
    TransientError,
)
from copypipe.events import Cleared, Committing, Decided, Listener, Progress, Waiting
from copypipe.plans import Plan
from copypipe.relay import relay
from copypipe.servers import Session
from copypipe.slices import Slice, locks
from copypipe.statements import copies, sessions
from copypipe.statements import locks as lock_statements

# "At once" for --wait-lock 0, and how long the first try waits before it says that it waits:
# PostgreSQL takes lock_timeout 0 for "for ever".
AT_ONCE_MS = 1

# How long the transfer waits for locks of others than copypipe (ALTER TABLE, a row that somebody
# is changing): as long as for another run by default, so that nothing hangs for ever.
OTHER_LOCKS = "10min"


@dataclass(frozen=True, slots=True)
class Transferred:
    """What one transfer did; it is committed."""

    table: str
    into: str
    slice: Slice
    mode: str
    rows: int
    bytes: int
    deleted: int | None
    """Rows removed from the slice before; None where TRUNCATE removed some uncounted."""
    seconds: float
    transport: str


def transfer(plan: Plan, source: Session, dest: Session, listen: Listener) -> Transferred:
    """Carry out the plan and commit; raises a CopypipeError, and then the dest is unchanged.

    CommitUnknown alone says that the COMMIT may have happened.
    """
    began = time.monotonic()
    request = plan.request
    _lock(plan, dest, listen)
    dest.execute(copies.lock_for_writing(plan.dest.table))
    plans.reread(plan, dest)
    strategy = modes.STRATEGIES[request.mode]
    cleared = strategy(dest, plan.dest.table, plan.slice, request.clear)
    listen(Cleared(cleared.rows))
    _begin_reading(plan, source)
    relayed = relay(
        source,
        plan.copy_out,
        dest,
        plan.copy_in(freeze=cleared.freeze),
        lambda size, rows: listen(Progress(bytes=size, rows=rows)),
    )
    source.rollback()
    _refuse_empty(plan, relayed.rows, had_rows=cleared.had_rows)
    _commit(dest, listen)
    return Transferred(
        table=plan.source.table.full_name,
        into=plan.dest.table.full_name,
        slice=plan.slice,
        mode=request.mode,
        rows=relayed.rows,
        bytes=relayed.bytes,
        deleted=cleared.rows,
        seconds=time.monotonic() - began,
        transport=relayed.transport,
    )


def _lock(plan: Plan, dest: Session, listen: Listener) -> None:
    """Begin the dest's transaction and take the slice's locks; raises SliceBusy."""
    wanted = locks(plan.slice)
    root = plan.dest.table.root_oid
    wait_ms = max(AT_ONCE_MS, round(plan.request.wait_lock * 1000))
    try:
        _begin_locked(plan, dest, AT_ONCE_MS)
        return
    except SliceBusy:
        with dest.reading():
            holders = tuple(row[0] for row in dest.fetch(lock_statements.holders(wanted, root)))
        if wait_ms <= AT_ONCE_MS:
            raise _busy(plan, holders) from None
    listen(Waiting(holders, plan.request.wait_lock))
    try:
        _begin_locked(plan, dest, wait_ms)
    except SliceBusy:
        raise _busy(plan, holders) from None


def _begin_locked(plan: Plan, dest: Session, wait_ms: int) -> None:
    """Take all locks, waiting up to `wait_ms` for each; on SliceBusy no transaction is open."""
    _begin_writing(plan, dest, lock_timeout=f"{wait_ms}ms")
    try:
        dest.fetch(lock_statements.take(locks(plan.slice), plan.dest.table.root_oid))
    except TransientError as error:
        if error.sqlstate != "55P03":  # lock_not_available
            raise
        dest.rollback()
        raise _busy(plan, ()) from None
    dest.execute(sessions.set_local("lock_timeout", OTHER_LOCKS))


def _busy(plan: Plan, holders: tuple[int, ...]) -> SliceBusy:
    pids = ", ".join(map(str, holders))
    return SliceBusy(
        f"another run holds a slice that overlaps {plan.slice} of {plan.dest.table.full_name}",
        detail=f"Backends at the dest that hold it: {pids}." if pids else None,
        hint="Run it again later, or wait longer with --wait-lock.",
        side="dest",
    )


def _begin_writing(plan: Plan, dest: Session, lock_timeout: str) -> None:
    local = {"lock_timeout": lock_timeout}
    if plan.dest.server.synchronous_commit == "off":
        # The success that is reported must survive a crash of the server.
        local["synchronous_commit"] = "on"
    dest.begin("READ COMMITTED", read_only=False, local=local)


def _begin_reading(plan: Plan, source: Session) -> None:
    """Begin the source's transaction with the table's definition locked.

    LOCK TABLE comes before the snapshot where the role and the kind of relation allow it. Where
    they do not, READ COMMITTED gives the COPY a snapshot of its own, taken after `reread` has
    taken the lock.
    """
    table = plan.source.table
    lockable = table.rights.select and table.kind in "rpv"
    local = {"lock_timeout": OTHER_LOCKS}
    if plan.source.server.can_restrict and table.kind in "rp":
        # The owner may have put a view in the table's place, whose functions would run with our
        # rights (CVE-2024-7348). A partition may rightly be a foreign table.
        local["restrict_nonsystem_relation_kind"] = (
            "view, foreign-table" if table.kind == "r" else "view"
        )
    source.begin("REPEATABLE READ" if lockable else "READ COMMITTED", read_only=True, local=local)
    if lockable:
        source.execute(copies.lock_for_reading(table))
    else:
        source.fetch(copies.nothing(table, plan.names))
    plans.reread(plan, source)


def _refuse_empty(plan: Plan, rows: int, *, had_rows: bool) -> None:
    if rows:
        return
    request = plan.request
    if had_rows and not request.allow_empty:
        raise PlanRefused(
            f"the source has no row in {plan.slice} and the dest has some",
            detail="A job that runs too early would lose the slice. Nothing was changed.",
            hint="Give --allow-empty if the slice shall be empty.",
            side="source",
        )
    if request.fail_on_empty:
        raise NothingToCopy(
            f"the source has no row in {plan.slice}", detail="Nothing was changed.", side="source"
        )


def _commit(dest: Session, listen: Listener) -> None:
    listen(Committing())
    try:
        dest.commit()
    except CommitUnknown:
        raise
    except CopypipeError:
        listen(Decided(committed=False))
        raise
    listen(Decided(committed=True))
