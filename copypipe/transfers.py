"""One slice in one transaction of the dest: lock, clear, relay, count, record, commit.

The order is the point. The slice's locks come first, so that a run that had to wait sees what the
other one committed; the source's transaction begins last, so that it brings nothing older than
what was cleared. READ COMMITTED at the dest: a snapshot taken while waiting would be stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from copypipe import catalog, digests, ledger, modes, plans
from copypipe.catalog import Position, Server
from copypipe.digests import Digest, Forms
from copypipe.errors import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    Differs,
    NothingToCopy,
    PlanRefused,
    SliceBusy,
    TooEarly,
    TransientError,
    UsageError,
    one_line,
)
from copypipe.events import Cleared, Committing, Decided, Listener, Progress, Waiting, Warned
from copypipe.expressions import may_read_tables
from copypipe.failures import without_value
from copypipe.horizons import MARGIN, Highest, Horizon, Writers, horizon, open_because
from copypipe.ledger import Attempt
from copypipe.plans import Plan
from copypipe.relay import Relayed, relay, scans
from copypipe.relay.waits import Spent
from copypipe.servers import Session
from copypipe.slices import Lock, Range, Slice, Whole, locks, range_of
from copypipe.snapshots import Snapshot
from copypipe.statements import Statement, copies, sessions
from copypipe.statements import locks as lock_statements
from copypipe.statements.sessions import Isolation
from copypipe.tables import Relation, Table

# When the dest gives up an answer of its own that nobody has acknowledged, as where the worker's
# host died while the dest was at work. The kernel would go on for some 15 minutes (tcp_retries2 in
# tcp(7)) with the slice locked, and keepalive does not run meanwhile. What the dest says is short,
# so a client that reads nothing for a while is not taken for a lost one; the source says more.
UNHEARD = "60s"

# How long a sequence that somebody alters is waited for, when all else is done.
ONE_SEQUENCE = "10s"

# How long a try waits for the transaction of the one before it, which the dest ends when it has
# noticed that its client is gone: with the keepalives that we set (30 s, then 3 every 10 s).
OWN_END_SECONDS = 75.0


@dataclass(frozen=True, slots=True)
class Transferred:
    """What one transfer did; it is committed."""

    table: str
    into: str
    slice: Slice
    mode: str
    rows: int
    dropped: int
    """Rows that triggers of the dest kept out; 0 unless that was accepted."""
    bytes: int
    inserted: int | None
    """Rows that a merge found new; None in other modes."""
    updated: int | None
    """Rows that a merge found changed; None in other modes."""
    deleted: int | None
    """Rows removed from the slice; None where TRUNCATE removed some uncounted."""
    seconds: float
    transport: str
    """What carried the bytes: socket, tls or libpq; two of them where the sides differ."""
    scan: str
    """What looked for the messages' beginnings: compiled or interpreted; libpq does it itself."""
    spent: Spent
    """Where the time of the relay went."""
    open_because: str | None
    """Why rows may still come into the slice at the source; None for a sealed slice."""
    digest: Digest | None
    """What both servers computed of the rows, where that was asked for."""
    recorded: bool
    """The ledger of the dest tells of it."""
    attempt: Attempt
    """Which try it was."""

    @property
    def sealed(self) -> bool:
        """Return whether the slice was complete when it was copied."""
        return self.open_because is None


@dataclass(frozen=True, slots=True)
class Holder:
    """A session at the dest that holds a table's key for many transfers of one run.

    In the same transaction it holds one of the run alone, which is quickly looked for.
    """

    migration: str
    """What the transfers are of."""
    run: str
    """Which start of it."""

    @property
    def lock(self) -> Lock:
        """Return what shows that the session is there."""
        return Lock(f"run {self.run}", exclusive=True, of_table=False)


class HolderLost(CopyFailed):
    """The session is gone that held the table's key; the dest is unchanged."""


class SnapshotLost(CopyFailed):
    """The transaction is gone whose snapshot was to be read; the dest is unchanged."""


class Covered(Exception):
    """Another run has copied the slice meanwhile, which the request wants to be skipped then."""


def transfer(
    plan: Plan,
    source: Session,
    dest: Session,
    listen: Listener,
    attempt: Attempt,
    sliced_by: str | None,
    snapshot: Snapshot | None = None,
    holder: Holder | None = None,
) -> Transferred:
    """Do all of the plan but COMMIT; raises a CopypipeError, and then the dest is unchanged.

    Raises Covered where nothing is to be done; the caller rolls back. `commit` is what remains to
    be called, and what is returned is true only then. `sliced_by` is the column by which the dest
    tells slices of the table apart. The caller has asked whoever must agree to a plan that
    `needs_yes`. With a `holder` the slice's locks are its matter; HolderLost is raised where it has
    them no more.
    """
    began, moment = time.monotonic(), datetime.now(UTC)
    request = plan.request
    if plan.ledger.records and (around := range_of(plan.slice)) and around.numbers:
        let_pass(plan.highest, around.numbers[1] - 1)
    _lock(plan, dest, listen, _locks(plan, attempt, sliced_by, holder), attempt)
    if plan.ledger.records:
        # It may have waited long.
        ledger.check(dest, plan.ledger, plan.dest.table, plan.slice, sliced_by)
        if request.skip and _covered(plan, source, dest):
            raise Covered
        if request.mode == "append" and not request.again:
            ledger.check_new(dest, plan.dest.table, plan.slice)
    if holder is not None:
        check_held(dest, holder)
    strategy = plan.strategy
    strategy.lock(dest, plan.filling)
    filling = replace(plan.filling, table=plans.reread_dest(plan, dest))
    cleared = strategy.clear(dest, filling)
    _refuse_unasked(plan, had_rows=cleared.had_rows)
    listen(Cleared(cleared.rows))
    if snapshot is None:
        writers = read_writers(source, plan.source.server)
        begin_reading(plan, source)
        seen = complete_until(plan.source.table, request.settle, writers, source)
    else:
        # What a holder's transfers read is locked by its leader since before the plan was made.
        begin_with(snapshot, plan, source, again=holder is None)
        seen = snapshot.seen
    position = catalog.position(source) if plan.ledger.records else None
    copy_in = strategy.copy_in(filling, freeze=cleared.freeze)
    relayed = _relayed(plan, source, dest, listen, copy_in)
    proof = _Proof.begun(plan, source, dest)
    if proof is None:
        source.rollback()
        plans.check_types(plan, source, dest)
    _refuse_empty(plan, relayed.rows, cleared)
    if proof is not None and strategy.exchanges:
        # Nobody waits for it then.
        proof.check(strategy.held(filling))
    filled = strategy.finish(dest, filling, relayed.rows) or modes.Filled()
    if request.merge_deletes:
        _refuse_empty(plan, relayed.rows, _merged_over(relayed.rows, filled))
    strategy.check(dest, filling, relayed.rows)
    if proof is not None:
        if not strategy.exchanges:
            # What they do at COMMIT would not be looked at any more.
            dest.execute(copies.run_deferred_triggers())
            proof.check(strategy.held(filling))
        source.rollback()
        plans.check_types(plan, source, dest)
    if not request.notices:
        # "The transaction has already committed locally, but might not have been replicated."
        dest.execute(sessions.set_local("client_min_messages", "warning"))
    done = Transferred(
        table=plan.source.table.full_name,
        into=plan.dest.table.full_name,
        slice=plan.slice,
        mode=request.mode,
        rows=relayed.rows,
        dropped=relayed.rows - relayed.taken + filled.dropped,
        bytes=relayed.bytes,
        inserted=filled.inserted,
        updated=filled.updated,
        deleted=cleared.rows if filled.deleted is None else filled.deleted,
        seconds=time.monotonic() - began,
        transport=plan.transport,
        scan="libpq" if plan.transport == "libpq" else scans.NAME,
        spent=relayed.spent,
        open_because=still_open(
            plan.slice, seen, plan.highest, partial(_highest_before, plan, dest)
        ),
        digest=proof.found if proof is not None else None,
        recorded=plan.ledger.records,
        attempt=attempt,
    )
    if position is not None:
        _record(plan, dest, filled.table or plan.dest.table, done, seen, position, moment, holder)
    if holder is not None:
        # As late as can be: whoever has the key now may be clearing the table.
        check_held(dest, holder)
    return done


def check_held(dest: Session, holder: Holder) -> None:
    """Raise HolderLost where a session does not hold the keys of its tables any more."""
    (is_free,) = dest.fetch_one(lock_statements.is_free(holder.lock.key(0)))
    if not is_free:
        return
    raise HolderLost(
        "the run does not hold its tables at the dest any more",
        detail="Its session that kept others out is gone. What is not committed is rolled back.",
        hint="Go on with --resume.",
        side="dest",
    )


def _highest_before(plan: Plan, dest: Session, column: str, until: datetime) -> Highest | None:
    if plan.ledger.state != "ready":
        return None
    of = ledger.of_source(plan.source.table, plan.source.server, plan.source.address)
    return ledger.highest_before(dest, plan.dest.table, of, column, until)


def covered(plan: Plan, wanted: Sequence[Range], dest: Session) -> dict[int, bool]:
    """Return the places of those slices that the ledger covers, and whether they had rows."""
    kind = {
        "signature": plan.signature,
        **ledger.of_source(plan.source.table, plan.source.server, plan.source.address),
    }
    return ledger.covered(dest, plan.dest.table, wanted[0].column, wanted, plan.request.mode, kind)


def _covered(plan: Plan, source: Session, dest: Session) -> bool:
    """Return whether the ledger covers the slice, and its rows are there, if it has any."""
    around, relation = plan.slice, plan.source.table
    if not isinstance(around, Range):
        return False
    if 0 not in (found := covered(plan, [around], dest)):
        return False
    if not found[0] or catalog.has_rows(dest, plan.dest.table, around):
        return True
    if not isinstance(relation, Table):
        return False
    # The longer slice had rows that covers this one, which need not have had any.
    with source.reading(lock_timeout=plans.OTHER_LOCKS):
        return not catalog.has_rows(source, relation, around)


def is_done(plan: Plan, source: Session, dest: Session) -> bool:
    """Return whether the ledger covers the slice, before anything is told of an attempt.

    Raises SliceBusy where nobody shall be waited for and another run has the slice: of many runs
    that share a range each would write down many attempts that came to nothing.
    """
    with dest.reading(lock_timeout=plans.OTHER_LOCKS):
        if _covered(plan, source, dest):
            return True
        wanted = locks(plan.slice, plan.sliced_by)
        held = _holding(plan.dest.table, dest, wanted) if plan.request.wait_lock == 0 else []
    if held:
        raise _busy(plan, [pid for pid, _ in held])
    return False


class _Proof:
    """The digest of what the source sent, and that of what the dest holds, compared.

    The source's is of the snapshot of the copy, and is computed while the dest goes on.
    """

    def __init__(self, plan: Plan, forms: Forms, source: Session, dest: Session) -> None:
        self._plan = plan
        self._forms = forms
        self._dest = dest
        self._sent = digests.ask(source, forms.sent(plan.select), forms.seed)
        self.found: Digest | None = None

    @classmethod
    def begun(cls, plan: Plan, source: Session, dest: Session) -> _Proof | None:
        """Begin it where the plan asks for it."""
        return cls(plan, plan.forms, source, dest) if plan.forms is not None else None

    def check(self, held: Statement) -> None:
        """Raise Differs where the dest holds other rows than the source sent."""
        there = digests.ask(self._dest, self._forms.held(held), self._forms.seed)()
        self.found = self._sent()
        if there == self.found:
            return
        raise Differs(
            f"the rows of {self._plan.slice} at the dest are not those of the source",
            detail=f"source: {self.found.rows} rows, digest {self.found}; dest: {there.rows} rows, "
            f"digest {there}. Nothing was changed.",
            hint=_WHAT_DIFFERS,
        )


# What else than a defect can make the two sides differ.
_WHAT_DIFFERS = (
    "Somebody else writes into the slice at the dest, a trigger there changes rows, or what is "
    "computed at the source is not the same twice (random(), clock_timestamp())."
)


def _locks(
    plan: Plan, attempt: Attempt, sliced_by: str | None, holder: Holder | None
) -> Sequence[Lock]:
    """Return the locks of a transfer, in the order in which all take them."""
    own = [ledger.IN_USE] if plan.ledger.records else []
    of_slice = locks(plan.slice, sliced_by) if holder is None else ()
    return [*own, attempt.lock, *of_slice]


def read_writers(source: Session, server: Server) -> Writers:
    """Read who may still write, by statements that end before the copy's snapshot.

    Else a transaction that commits in between would count as seen and its rows would be missing.
    The session had nothing to do while the dest waited for its locks and cleared the slice, for
    which the source may have ended it (idle_session_timeout): then it connects once more.
    """
    try:
        with source.reading(lock_timeout=plans.OTHER_LOCKS):
            return catalog.writers(source)
    except ConnectionLost:
        source.reconnect()
    with source.reading(lock_timeout=plans.OTHER_LOCKS):
        if catalog.server(source) != server:
            # The plan is that of the other one: a new try makes a new one.
            raise TransientError("source: another server answers at its address", side="source")
        return catalog.writers(source)


def let_pass(highest: Highest | None, first: int) -> None:
    """Wait until transactions that began before the highest number was seen can be told apart.

    A second at most, and once for all slices of a plan; not for numbers from `first` on that are
    not there yet. Without that the first slices of a range of numbers would stay open.
    """
    if highest is not None and highest.number is not None and first <= highest.number:
        time.sleep(max(0.0, highest.looked + MARGIN.total_seconds() - time.monotonic()))


def still_open(
    slice_: Slice,
    seen: Horizon,
    highest: Highest | None,
    earlier: Callable[[str, datetime], Highest | None],
) -> str | None:
    """Return why the slice may still get rows, None for a sealed one.

    `earlier` returns the highest number of a column that some run has seen before an instant. That
    may be long ago, when what is seen now is too young for the transactions that run.
    """
    because, around = open_because(slice_, seen, highest), range_of(slice_)
    if because is None or around is None or not around.numbers:
        return because
    if highest is None or highest.number is None or seen.until is None:
        return because
    before = earlier(around.column, seen.until)
    # Less than that: the numbers have begun anew since.
    if before is None or before.number is None or before.number > highest.number:
        return because
    return because if open_because(slice_, seen, before) is not None else None


def complete_until(relation: Relation, settle: float, writers: Writers, source: Session) -> Horizon:
    """Return how far the source is complete, in the transaction that reads it."""
    if isinstance(relation, Table) and (relation.kind in "mf" or relation.has_foreign_parts):
        what = f"a {relation.kind_name}"
        if relation.has_foreign_parts:
            what = "a partition or an inheritance child that is a foreign table"
        return Horizon(writers.clock, None, f"{what} is filled from elsewhere")
    return horizon(
        writers,
        timedelta(seconds=settle),
        catalog.instance(source),
        indirect=not isinstance(relation, Table) or relation.kind == "v" or relation.has_children,
    )


def _record(
    plan: Plan,
    dest: Session,
    table: Table,
    done: Transferred,
    seen: Horizon,
    position: Position,
    began: datetime,
    holder: Holder | None,
) -> None:
    """Write the row of the ledger that is there if, and only if, the rows are."""
    around = range_of(plan.slice)
    ledger.record(
        dest,
        done.attempt,
        table,
        plan.slice,
        **ledger.of_source(plan.source.table, plan.source.server, plan.source.address),
        zone=around.zone if around else None,
        mode=done.mode,
        rows_deleted=done.deleted,
        rows_copied=done.rows,
        bytes=done.bytes,
        format=plan.format,
        checksum=str(done.digest) if done.digest is not None else None,
        equal=_is_equal(plan, done),
        signature=plan.signature,
        reversed=plan.reversed,
        state="sealed" if done.sealed else "open",
        open_because=done.open_because,
        **ledger.of_highest(plan.highest),
        complete_until=seen.until,
        source_clock=seen.clock,
        began_at=began,
        manifest={
            "statements": {
                name: statement.as_string(None)
                for name, statement in {**plan.at_dest, "copy_out": plan.copy_out}.items()
            },
            "source": {
                "version": plan.source.server.version,
                "snapshot": position.snapshot,
                "lsn": position.lsn,
            },
            "dest": {"version": plan.dest.server.version},
            "rows_inserted": done.inserted,
            "rows_updated": done.updated,
            "rows_dropped": done.dropped,
            "accepted": list(plan.request.accept),
            "transport": done.transport,
            "seconds": round(done.seconds, 3),
            **_of_holder(holder),
        },
    )


def _of_holder(holder: Holder | None) -> dict[str, str]:
    return {"migration": holder.migration, "run": holder.run} if holder is not None else {}


def _is_equal(plan: Plan, done: Transferred) -> bool:
    """Return whether the dest's slice is known to be the source's, and nothing besides."""
    request = plan.request
    clears = request.mode == "replace" or request.merge_deletes
    changed = "triggers" in request.accept and plan.dest.table.has_triggers
    return clears and (done.digest is not None or not changed)


def commit(dest: Session, listen: Listener) -> None:
    """Commit what `transfer` did; raises the server's error, and then the dest is unchanged.

    CommitUnknown alone says that the COMMIT may have happened; only then nothing is told of it by
    an event.
    """
    listen(Committing())
    try:
        dest.commit()
    except CommitUnknown:
        raise
    except CopypipeError:
        listen(Decided(committed=False))
        raise
    listen(Decided(committed=True))


def advance(plan: Plan, dest: Session, listen: Listener) -> None:
    """Let sequences go on behind what was committed; what fails is warned of, and no more."""
    if not plan.request.sequences:
        return
    for sequence in plan.sequences:
        try:
            dest.begin("READ COMMITTED", read_only=False, local={"lock_timeout": ONE_SEQUENCE})
            dest.fetch(copies.advance(plan.dest.table, sequence))
            dest.commit_note()
        except CopypipeError as error:
            listen(Warned(f"{sequence.full_name} was not advanced: {error.message}"))
            return


def check_primary(dest: Session) -> None:
    """Raise TransientError where a standby answers at the dest's address: a failover under way."""
    with dest.reading(lock_timeout=plans.OTHER_LOCKS):
        in_recovery = catalog.server(dest).in_recovery
    if in_recovery:
        raise TransientError("dest: a standby answers at its address", side="dest")


def happened(plan: Plan, dest: Session, attempt: Attempt, patience: float) -> bool | None:
    """Return whether an attempt was committed whose answer to COMMIT was lost.

    None where nothing tells of it any more. Waits for the end of its transaction, which holds a
    lock of its own to the end; asking before that would be too early. Raises SliceBusy where it
    does not end within `patience` seconds, PlanRefused where the dest is not the server that it
    was.
    """
    with dest.reading(lock_timeout=plans.milliseconds(patience)):
        _check_same(plan, dest)
        try:
            dest.fetch(lock_statements.take([attempt.lock], 0))
        except CopypipeError as error:
            if error.sqlstate != "55P03":  # lock_not_available
                raise
        else:
            return ledger.holds(dest, plan.ledger, attempt)
    pids = ", ".join(str(pid) for pid, _ in _holders(plan, dest, [attempt.lock]))
    raise SliceBusy(
        f"its transaction has not ended there (backend {pids})",
        detail="It may wait for a standby (synchronous_standby_names).",
        side="dest",
    )


def _check_same(plan: Plan, dest: Session) -> None:
    """Refuse another cluster than the one that was written to, and a standby of it."""
    now, then = catalog.server(dest), plan.dest.server
    known = then.system_identifier is not None and now.system_identifier is not None
    if now.database_oid != then.database_oid or (
        known and now.system_identifier != then.system_identifier
    ):
        raise PlanRefused("another server answers at the address of the dest", side="dest")
    if now.in_recovery:
        raise TransientError("dest: a standby answers at its address", side="dest")


def _relayed(
    plan: Plan, source: Session, dest: Session, listen: Listener, copy_in: Statement
) -> Relayed:
    """Relay the slice; an error of a cast says which columns are cast."""
    try:
        return relay(
            source,
            plan.copy_out,
            dest,
            copy_in,
            lambda size, rows: listen(Progress(bytes=size, rows=rows)),
            transport=plan.request.transport,
            bytes_per_second=plan.request.rate_limit,
            idle=dest.idle,
            trailer=plan.format == "binary",
            may_drop="triggers" in plan.request.accept,
        )
    except CopyFailed as error:
        problem = _about_types(plan, error)
    raise problem


def _about_types(plan: Plan, error: CopyFailed) -> CopyFailed:
    """Return an error of reading values as other types, without a value and with the columns.

    Where texts are read as values, errors of syntax and of names (class 42) are about them, unless
    they come from within a function, of which the hint tells.
    """
    code = error.sqlstate or ""
    cast = [c.dest.name for c in plan.columns if c.crossing.into is not None]
    asked = any(c.crossing.by_request for c in plan.columns)
    reads = asked if error.side == "source" else plan.format == "text"
    if code.startswith("42") and reads and error.hint is None:
        error = without_value(error)
    if code.startswith(("22", "42")) and error.side == "source" and cast:
        error.hint = error.hint or one_line(f"The source casts {', '.join(cast)}.")
    return error


def _lock(
    plan: Plan, dest: Session, listen: Listener, wanted: Sequence[Lock], attempt: Attempt
) -> None:
    """Begin the dest's transaction and take the slice's locks; raises SliceBusy."""
    seconds = plan.request.wait_lock
    try:
        _begin_locked(plan, dest, wanted, 0)
    except SliceBusy:
        holders = _holders(plan, dest, wanted)
        if attempt.number > 1 and any(own for _, own in holders):
            # --wait-lock is about other runs.
            seconds = max(seconds, OWN_END_SECONDS)
        if seconds == 0:
            raise
        listen(Waiting(tuple(pid for pid, _ in holders), seconds))
        _begin_locked(plan, dest, wanted, seconds)


def _begin_locked(plan: Plan, dest: Session, wanted: Sequence[Lock], seconds: float) -> None:
    """Begin and take all locks within `seconds`; on SliceBusy no transaction is open.

    lock_timeout counts for each lock and statement_timeout for all of them together.
    """
    patience = plans.milliseconds(seconds)
    _begin_writing(plan, dest, {"lock_timeout": patience, "statement_timeout": _all(seconds)})
    deadline = time.monotonic() + seconds
    try:
        dest.fetch(lock_statements.take(wanted, plan.dest.table.root_oid))
    except CopypipeError as error:
        if error.sqlstate == "53200":  # out_of_memory, of the lock table
            raise _out_of_locks(error, len(wanted)) from None
        timed_out = error.sqlstate == "57014" and time.monotonic() >= deadline  # query_canceled
        if error.sqlstate != "55P03" and not timed_out:  # lock_not_available
            raise
    else:
        dest.execute(sessions.set_local("lock_timeout", plans.OTHER_LOCKS))
        own = dest.settings.get("statement_timeout")
        dest.execute(
            sessions.reset_local("statement_timeout")
            if own is None
            else sessions.set_local("statement_timeout", own)
        )
        return
    dest.rollback()
    raise _busy(plan, [pid for pid, _ in _holders(plan, dest, wanted)])


def _busy(plan: Plan, pids: Sequence[int]) -> SliceBusy:
    held = ", ".join(map(str, pids))
    return SliceBusy(
        f"another run holds a slice that overlaps {plan.slice} of {plan.dest.table.full_name}",
        detail=f"Backends at the dest that hold it: {held}." if held else None,
        hint="Run it again later, or wait longer with --wait-lock.",
        side="dest",
    )


def _out_of_locks(error: CopypipeError, number: int) -> TransientError:
    return TransientError(
        error.message,
        detail=f"The slice takes {number} locks, and all transactions there share one table of "
        "them.",
        hint="Copy a shorter range, fewer at a time, or raise max_locks_per_transaction.",
        side=error.side,
        sqlstate=error.sqlstate,
    )


def _all(seconds: float) -> str:
    # A second more, so that a single lock is answered by lock_timeout, which names the reason.
    return plans.milliseconds(seconds + 1)


def _holders(plan: Plan, dest: Session, wanted: Sequence[Lock]) -> list[tuple[int, bool]]:
    """Return the backends in the way, each with whether it served an earlier try of this run."""
    with dest.reading(lock_timeout=plans.OTHER_LOCKS):
        return _holding(plan.dest.table, dest, wanted)


def _holding(table: Table, dest: Session, wanted: Sequence[Lock]) -> list[tuple[int, bool]]:
    found = dest.fetch(lock_statements.holders(wanted, table.root_oid))
    return [(pid, own) for pid, own in found]


def _begin_writing(plan: Plan, dest: Session, timeouts: Mapping[str, str]) -> None:
    # libpq hides an error behind notices while data flows, so the dest is asked for none until
    # COMMIT; a trigger that warns of each row would also cost more than the row.
    local = {**timeouts, "client_min_messages": "error", **_common(plan, plan.dest.server)}
    if plan.dest.server.on_linux:
        local["tcp_user_timeout"] = UNHEARD
    if plan.dest.server.synchronous_commit == "off":
        # The success that is reported must survive a crash of the server.
        local["synchronous_commit"] = "on"
    dest.begin("READ COMMITTED", read_only=False, local=local)


def _common(plan: Plan, server: Server) -> dict[str, str]:
    local = {}
    if plan.format == "text" and plan.has_money:
        # The text of money is read by this; what it counts was compared.
        local["lc_monetary"] = "C"
    local |= ends_with_client(server)
    if plan.request.notices:
        local["client_min_messages"] = "notice"
    return local


def ends_with_client(server: Server) -> dict[str, str]:
    """Return the settings with which a long statement ends whose client was killed.

    A DELETE or a sort would go on otherwise, and hold its locks. Elsewhere than on Linux some
    servers refuse the setting.
    """
    return {"client_connection_check_interval": "10s"} if server.on_linux else {}


def keeps_views_out(table: Relation, server: Server) -> dict[str, str]:
    """Return the settings with which a table is read, and nothing that was put in its place.

    The owner may have made a view of it, whose functions would run with our rights (CVE-2024-7348).
    A partition or a child may rightly be a foreign table.
    """
    if not (isinstance(table, Table) and table.kind in "rp" and server.can_restrict):
        return {}
    alone = table.kind == "r" and not table.has_children
    return {"restrict_nonsystem_relation_kind": "view, foreign-table" if alone else "view"}


def begin_reading(plan: Plan, source: Session, *, repeatable: bool = False) -> None:
    """Begin the source's transaction with the definition of what is read locked.

    LOCK TABLE comes before the snapshot where the role and the kind of relation allow it. Where
    they do not, or SQL of the user reads other tables, READ COMMITTED gives the COPY a snapshot
    of its own, taken after a query for no row has taken the locks. Where more than the COPY has to
    read the same (a digest, `repeatable`) it is taken before these locks, by the query for no row.
    """
    lockable, local = _reading(plan)
    if lockable is not None:
        source.begin("REPEATABLE READ", read_only=True, local=local)
        source.execute(copies.lock_for_reading(lockable))
    else:
        once = plan.forms is None and not repeatable
        isolation: Isolation = "READ COMMITTED" if once else "REPEATABLE READ"
        source.begin(isolation, read_only=True, local=local)
        source.execute(copies.nothing(plan.select))
    plans.reread(plan, source)


def begin_shared(plan: Plan, leader: Session) -> Horizon:
    """Begin a transaction whose snapshot others will read; return how far it is complete."""
    if (around := range_of(plan.slice)) and around.numbers:
        let_pass(plan.highest, around.numbers[0])
    writers = read_writers(leader, plan.source.server)
    begin_reading(plan, leader, repeatable=True)
    return complete_until(plan.source.table, plan.request.settle, writers, leader)


def begin_with(snapshot: Snapshot, plan: Plan, source: Session, *, again: bool = True) -> None:
    """Begin the source's transaction in a snapshot of another one.

    Locks are not waited for: whoever waits for the leader's would be waited for here, and nobody
    would see the deadlock, as the leader waits for no lock (pg_dump does the same). Raises
    SnapshotLost where the snapshot is gone; never takes another one.
    """
    with source.reading(lock_timeout=plans.OTHER_LOCKS):
        if catalog.instance(source) != snapshot.instance:
            raise TransientError("source: another server answers at its address", side="source")
    lockable, local = _reading(plan)
    try:
        source.begin("REPEATABLE READ", read_only=True, local=local, snapshot=snapshot.identifier)
    except CopypipeError as error:
        if error.sqlstate not in ("22023", "42704", "55000"):  # no such snapshot, in three words
            raise
        problem = error
    else:
        if lockable is not None:
            source.execute(copies.lock_for_reading(lockable, at_once=True))
        else:
            source.execute(copies.nothing(plan.select))
        if again:
            plans.reread(plan, source)
        return
    raise SnapshotLost(
        "source: the snapshot of the run is gone",
        detail=f"{problem.message}. Slices that are not done are as they were.",
        hint="Run it again: it goes on with another one.",
        side="source",
    )


def _reading(plan: Plan) -> tuple[Table | None, dict[str, str]]:
    """Return the table that is locked before it is read, if one is, and the settings for it."""
    table = plan.source.table
    local = {"lock_timeout": plans.OTHER_LOCKS, **_common(plan, plan.source.server)}
    if not isinstance(table, Table) or _reads_other_tables(plan):
        return None, local
    lockable = table if table.rights.select and table.kind in "rpv" else None
    return lockable, local | keeps_views_out(table, plan.source.server)


def _reads_other_tables(plan: Plan) -> bool:
    """Return whether a column is looked up elsewhere."""
    expressions = (column.source.expression for column in plan.columns)
    written = (text for text in expressions if text is not None)
    return any(map(may_read_tables, written))


def _refuse_unasked(plan: Plan, *, had_rows: bool) -> None:
    """Refuse to remove rows that came while the run waited and that nobody was asked about."""
    if isinstance(plan.slice, Whole) and had_rows and not (plan.request.yes or plan.needs_yes):
        raise UsageError(
            f"{plan.dest.table.full_name} had no row when the copy was planned, and now it has",
            detail="Nothing was changed.",
            hint="Give --yes (in Python yes=True) if all rows shall be replaced.",
            side="dest",
        )


def _merged_over(rows: int, filled: modes.Filled) -> modes.Cleared:
    """Return what a merge found in the slice: what it deleted, updated and left alone."""
    deleted = filled.deleted or 0
    return modes.Cleared(had_rows=deleted > 0, rows=deleted + rows - (filled.inserted or 0))


def _refuse_empty(plan: Plan, rows: int, cleared: modes.Cleared) -> None:
    """Refuse to lose a slice, or most of it, to a job that runs too early."""
    request = plan.request
    ratio = request.min_ratio
    if rows and ratio is not None and rows < ratio * (cleared.rows or 0):
        raise TooEarly(
            f"the source has {rows} rows in {plan.slice}, and the dest has {cleared.rows}",
            detail=f"That is less than --min-ratio {ratio:g} of them. Nothing was changed.",
            hint="Leave --min-ratio out, or lower it, if that is meant.",
            side="source",
        )
    if rows:
        return
    if cleared.had_rows and not request.allow_empty:
        raise TooEarly(
            f"the source has no row in {plan.slice} and the dest has some",
            detail="A job that runs too early would lose the slice. Nothing was changed.",
            hint="Give --allow-empty if the slice shall be empty.",
            side="source",
        )
    if request.fail_on_empty:
        raise NothingToCopy(
            f"the source has no row in {plan.slice}", detail="Nothing was changed.", side="source"
        )
