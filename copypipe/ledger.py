"""The record that the dest keeps of what was copied: made on first need, read and written here.

A row of `copypipe.slice` is written in the transaction whose rows it tells of, so the two are there
together or not at all. That is what settles a COMMIT whose answer was lost.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import psycopg

from copypipe import __version__, slices
from copypipe.addresses import Address
from copypipe.catalog import Server
from copypipe.errors import CopypipeError, PlanRefused, Side, SliceBusy, TransientError
from copypipe.horizons import Highest
from copypipe.requests import Mode
from copypipe.servers import Session
from copypipe.slices import Covered, Extent, Lock, Pages, Range, Slice, Where, range_of
from copypipe.statements import copies, locks, privileges
from copypipe.statements import ledger as statements
from copypipe.statements.ledger import Rights
from copypipe.statements.privileges import Privilege
from copypipe.tables import Relation, Table

# Held shared by every transfer that will write into the ledger, and alone by whoever removes it.
IN_USE = Lock("ledger", exclusive=False, of_table=False)

# Held by whoever makes or removes it: transfers do not wait for these, nor they for transfers.
MAKING = Lock("making the ledger", exclusive=True, of_table=False)

# How often a ledger that is in use is tried again.
_IN_USE_SECONDS = 0.1

State = Literal["ready", "missing", "unusable", "off"]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Whether the ledger of a dest can be used."""

    state: State
    """missing: it can be made; off: the request does without."""
    problem: str | None = None
    """Why it is unusable."""
    made: int | None = None
    """Which ledger it is: another one is made under another OID. None where there is none."""

    @property
    def is_there(self) -> bool:
        """Return whether there is one, usable or not."""
        return self.made is not None

    @property
    def records(self) -> bool:
        """Return whether what is copied will be recorded."""
        return self.state in ("ready", "missing")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to copy one slice."""

    run_id: str
    """Of all tries of one call; sessions bear it as application_name copypipe/RUN_ID."""
    attempt_id: str
    """A UUID, which the ledger holds if the attempt was committed."""
    number: int
    """Counted from 1."""

    @property
    def lock(self) -> Lock:
        """Return the lock that this attempt's transaction holds to its end."""
        return Lock(f"attempt {self.attempt_id}", exclusive=True, of_table=False)


# ------------------------------------------------------------------------------- look and make


def look(session: Session, *, asked: bool = False) -> Ledger:
    """Return what there is, in the session's open transaction.

    `asked` tells that somebody wants a ledger to be made, whom it may publish. Raises PlanRefused
    for a ledger of a newer copypipe.
    """
    return _looked(session, _facts(session), asked=asked)


def _looked(session: Session, facts: _Facts, *, asked: bool) -> Ledger:
    problem = facts.problem
    if facts.made is None:
        if problem is None and facts.published is not None and not asked:
            # FOR ALL TABLES takes in new tables at once, and a subscriber that lacks one stops.
            problem = (
                f"there is none, and the publication {facts.published} would send it to "
                "subscribers (copypipe init makes it all the same)"
            )
        return Ledger("missing") if problem is None else Ledger("unusable", problem)
    if problem is not None:
        return Ledger("unusable", problem, facts.made)
    _check_version(session)
    return Ledger("ready", made=facts.made)


def needed(session: Session, role: str) -> tuple[list[Privilege], list[str]]:
    """Return what a role needs to record what it copies, and what stands in the way besides."""
    facts = _facts(session, role)
    schema = (statements.SCHEMA,)
    notes = []
    if facts.stranger is not None:
        notes.append(f"the ledger cannot be used: {facts.problem}")
    if facts.made is None and facts.published is not None:
        notes.append(
            f"the publication {facts.published} would send a ledger to subscribers: none is made "
            "unasked (copypipe init makes it)"
        )
    if not facts.schema:
        notes.append("there is no ledger yet: the first copy makes it, and its role owns it")
        database = session.fetch_one(privileges.database())[0]
        return [Privilege("CREATE", "database", (database,))], notes
    found = [Privilege("USAGE", "schema", schema)]
    if facts.made is None:
        return [*found, Privilege("CREATE", "schema", schema)], notes
    found += [
        Privilege(right, "table", (*schema, table))
        for table, rights in statements.RIGHTS.items()
        for right in rights
    ]
    return found, notes


def reach(session: Session, rights: Rights) -> bool:
    """Return whether there is a ledger, of which the role needs no more than these rights.

    Raises PlanRefused where it lacks one of them, or the ledger is of a newer copypipe.
    """
    facts = _Facts(*session.fetch_one(statements.look(None, rights)))
    if facts.made is None:
        return False
    if facts.problem is not None:
        raise PlanRefused(
            f"{session.side}: the ledger cannot be used for that",
            detail=f"In {session.address}: {facts.problem}.",
            hint=_to_be_granted(facts),
            side=session.side,
        )
    if facts.may_read:
        _check_version(session)
    return True


def _to_be_granted(facts: _Facts) -> str | None:
    """Return the GRANTs that would help, None where none would."""
    if facts.stranger is not None or facts.missing:
        return None
    if not facts.may_use:
        return f"GRANT USAGE ON SCHEMA {statements.SCHEMA} TO the role."
    return f"{'; '.join(f'GRANT {right} TO the role' for right in sorted(facts.denied))}."


class _Facts(NamedTuple):
    """What the catalog tells of the ledger (`statements.look`)."""

    schema: bool
    made: int | None
    """The OID of the table `version`; None where there is no ledger."""
    stranger: str | None
    """An owner who could have it run anything with our rights."""
    missing: list[str]
    """Tables that are not there."""
    denied: list[str]
    """Rights that the role lacks on those that are."""
    may_read: bool
    """It may read the tables that tell what was copied."""
    may_use: bool | None
    """It has USAGE on the schema; None where there is none."""
    published: str | None
    """A publication of all tables of the database."""
    may_make: bool

    @property
    def problem(self) -> str | None:
        """Return why the role can neither use what is there nor make it, None for no reason."""
        if self.stranger is not None:
            return f"its owner {self.stranger} could run anything as this role"
        if self.made is None:
            where = f"schema {statements.SCHEMA}, or USAGE" if self.schema else "the database"
            return None if self.may_make else f"there is none, and the role lacks CREATE on {where}"
        if not self.may_use:
            return f"the role lacks USAGE on schema {statements.SCHEMA}"
        lacking = [f"the table {statements.SCHEMA}.{table}" for table in self.missing]
        lacking += self.denied
        return f"the role lacks {', '.join(lacking)}" if lacking else None


def _facts(session: Session, role: str | None = None) -> _Facts:
    return _Facts(*session.fetch_one(statements.look(role)))


def _check_version(session: Session) -> None:
    found = session.fetch_one(statements.version())[0]
    if found is not None and found > statements.VERSION:
        raise PlanRefused(
            f"{session.side}: the ledger there is of a newer copypipe",
            detail=f"It has version {found}, this one knows {statements.VERSION}.",
            hint="Upgrade copypipe, or copy without the ledger (--no-ledger).",
            side=session.side,
        )


def make(session: Session, wait: str, *, asked: bool = False) -> tuple[bool, Ledger]:
    """Make the ledger in a transaction of its own; it may be there by now.

    Many may try at once: an advisory lock keeps them apart, since CREATE .. IF NOT EXISTS does not
    (two at a time meet in a unique index of the catalog, 23505). `wait` is a lock_timeout; `asked`
    is that of `look`. Returns whether it was made, and what there is. Raises SliceBusy where
    another run is at it for longer than that, PlanRefused where the schema holds other tables;
    nothing is made then.
    """
    with _holding(session, MAKING, wait):
        facts = _facts(session)
        found = _looked(session, facts, asked=asked)
        if found.state != "missing":
            return False, found
        if not facts.schema:
            session.execute(statements.make_schema())
        try:
            for table in statements.make_tables(__version__):
                session.execute(table)
        except CopypipeError as error:
            if error.sqlstate not in ("42P07", "42710"):  # duplicate_table, duplicate_object
                raise
            problem = error
        else:
            return True, look(session)
        raise PlanRefused(
            f"{session.side}: the schema {statements.SCHEMA} holds tables of another kind",
            detail=f"{problem.message}.",
            hint="Rename them, or copy without the ledger (--no-ledger).",
            side=session.side,
        )


def remove(session: Session, wait: float) -> int | None:
    """Remove the ledger in a transaction of its own; returns how many slices it told of.

    None where there was none any more. Raises SliceBusy where others use it for more than `wait`
    seconds, PlanRefused where the schema holds what is not the ledger's; nothing is removed then.
    """
    deadline = time.monotonic() + wait
    with _holding(session, MAKING, f"{max(1, round(wait * 1000))}ms"):
        if not look(session).is_there:
            return None
        while not _alone(session):
            if time.monotonic() >= deadline:
                raise _in_use(session)
            time.sleep(_IN_USE_SECONDS)
        rows, _ = counts(session)
        try:
            for statement in statements.remove():
                session.execute(statement)
        except CopypipeError as error:
            if error.sqlstate != "2BP01":  # dependent_objects_still_exist
                raise
            problem = error
        else:
            return rows
        raise PlanRefused(
            f"{session.side}: other objects depend on the ledger or stand in its schema",
            detail=f"{problem.message}. Nothing was removed.",
            hint="Drop them or move them to another schema first.",
            side=session.side,
        )


def _alone(session: Session) -> bool:
    """Take the ledger for this transaction alone; returns False, and holds nothing, if in use.

    To wait in a queue for it would stop whoever comes behind.
    """
    session.execute(copies.savepoint())
    try:
        session.execute(statements.lock())
        if session.fetch_one(locks.try_key(IN_USE.key(0)))[0]:
            return True
    except CopypipeError as error:
        if error.sqlstate != "55P03":  # lock_not_available
            raise
    session.execute(copies.back_to_savepoint())
    return False


def _in_use(session: Session) -> SliceBusy:
    return SliceBusy(f"{session.side}: the ledger is in use by other runs", side=session.side)


@contextmanager
def using(session: Session, rights: Rights, wait: str) -> Iterator[bool]:
    """Run the block in a transaction while nobody removes the ledger, and commit.

    Yields whether there is one; `wait` is a lock_timeout. Raises PlanRefused as `reach` does, and
    SliceBusy where somebody has it alone for longer.
    """
    with _holding(session, IN_USE, wait):
        yield reach(session, rights)


@contextmanager
def _holding(session: Session, lock: Lock, wait: str) -> Iterator[None]:
    """Run the block in a transaction that holds one of the ledger's own locks, and commit."""
    session.begin("READ COMMITTED", read_only=False, local={"lock_timeout": wait})
    try:
        lock_or(session, [lock], 0, _in_use(session))
        yield
    except BaseException:
        session.rollback()
        raise
    session.commit_note()


def counts(session: Session) -> tuple[int, int]:
    """Return how many slices the ledger holds, and of how many tables."""
    rows, tables = session.fetch_one(statements.counts())
    return rows, tables


# ------------------------------------------------------------------------------- read and write


def sliced_by(session: Session, table: Table) -> str | None:
    """Return the column by which the slices of a table are told apart, None for none yet."""
    rows = session.fetch(statements.sliced_by(table.root_oid))
    return rows[0][0] if rows else None


def receives(session: Session, relation: Relation, table: Table, dest: Server, at: Address) -> bool:
    """Return whether the source's own ledger says that it is filled from this dest.

    False where it has no ledger, or none that can be read.
    """
    if not isinstance(relation, Table):
        return False
    facts = _facts(session)
    if not (facts.made and facts.may_use and facts.may_read) or facts.stranger is not None:
        return False
    if session.fetch_one(statements.version())[0] != statements.VERSION:
        return False
    asked = statements.receives(
        relation.root_oid, table.root_oid, dest.system_identifier, dest.database_oid, _where(at)
    )
    return bool(session.fetch_one(asked)[0])


def begin(session: Session, attempt: Attempt, table: Table, slice_: Slice, wait: str) -> str | None:
    """Tell of an attempt that begins, in a transaction of its own.

    Returns the column by which slices of the table are told apart: that of this slice, if it is
    the first one. Raises TransientError where the ledger was removed meanwhile, SliceBusy where
    somebody has locked it for longer than `wait`, a lock_timeout.
    """
    try:
        return _begun(session, attempt, table, slice_, wait)
    except CopypipeError as error:
        if error.sqlstate not in ("42P01", "3F000", "55P03"):
            raise
        busy = error.sqlstate == "55P03"  # lock_not_available; else it was removed
    session.rollback()
    raise _in_use(session) if busy else _removed(session)


def check(
    session: Session, ledger: Ledger, table: Table, slice_: Slice, column: str | None
) -> None:
    """Look once more before the work begins, in the transaction that will record it.

    `ledger` is the one that the attempt was told to, `column` the one by which the locks took the
    table to be sliced; with another one other locks were needed.

    Raises TransientError where the ledger was removed meanwhile, PlanRefused where the role may not
    use it any more, or a newer copypipe has worked on it.
    """
    found = look(session)
    if found.made != ledger.made:
        raise _removed(session)
    if found.problem is not None:
        raise PlanRefused(
            f"{session.side}: the ledger cannot be used any more",
            detail=f"{found.problem}.",
            hint="Run it again.",
            side=session.side,
        )
    if slices.locks(slice_, sliced_by(session, table)) != slices.locks(slice_, column):
        raise _removed(session)


def check_new(session: Session, table: Table, slice_: Slice) -> None:
    """Raise PlanRefused where rows of the slice may have been copied before."""
    around = range_of(slice_)
    column = around.column if around else None
    found = session.fetch(
        statements.recorded(table.oid, table.full_name, column, slices.extent(slice_))
    )
    if not found:
        return
    ((number, by, extent, at),) = found
    raise PlanRefused(
        f"rows of {slice_} were copied into {table.full_name} before",
        detail=f"The ledger's slice {number}, of {at:%Y-%m-%d %H:%M}+00, holds {extent} by "
        f"{by or 'no column'}.",
        hint="Use --mode replace or merge, or give --again to add the rows once more.",
        side="dest",
    )


def _removed(session: Session) -> TransientError:
    return TransientError(f"{session.side}: the ledger was removed meanwhile", side=session.side)


def _begun(
    session: Session, attempt: Attempt, table: Table, slice_: Slice, wait: str
) -> str | None:
    around = range_of(slice_)
    # Nothing is lost if a crash of the server takes this back: it ends the attempt too.
    local = {"synchronous_commit": "off", "lock_timeout": wait}
    session.begin("READ COMMITTED", read_only=False, local=local)
    session.execute(
        statements.begin_attempt(
            {
                "attempt_id": attempt.attempt_id,
                "run_id": attempt.run_id,
                "number": attempt.number,
                **_what(table, slice_),
                "state": "running",
                "worker": f"{socket.gethostname()}/{os.getpid()}",
                "tool_version": __version__,
            }
        )
    )
    if around is not None:
        session.execute(statements.slice_by(table.root_oid, table.full_name, around.column))
    column = sliced_by(session, table)
    session.commit_note()
    return column


def failed(session: Session, run_id: str, error: CopypipeError) -> bool:
    """Tell how the attempt of a run ended; returns False where the session cannot any more.

    Of the error only its kind is kept: a message may quote a row.
    """
    if session.conn.closed:
        return False
    kind = {"side": error.side, "sqlstate": error.sqlstate, "error": type(error).__name__}
    return _ended(session, run_id, "failed", kind)


def skipped(session: Session, run_id: str) -> bool:
    """Tell that the attempt of a run found the slice copied; as `failed`."""
    return _ended(session, run_id, "skipped", {"side": None, "sqlstate": None, "error": None})


def _ended(session: Session, run_id: str, state: str, kind: Mapping[str, str | None]) -> bool:
    with suppress(CopypipeError, psycopg.Error, OSError):
        session.end()
        local = {"synchronous_commit": "off", "lock_timeout": "1s"}  # nobody waits for a note
        session.begin("READ COMMITTED", read_only=False, local=local)
        session.execute(statements.end_attempts(run_id, state, kind))
        session.commit_note()
        return True
    return False


def record(
    session: Session,
    attempt: Attempt,
    table: Table,
    slice_: Slice,
    *,
    manifest: Mapping[str, Any],
    **done: Any,
) -> None:
    """Tell of a slice in the transaction that copied it, which must still commit."""
    session.execute(
        statements.record(
            {
                "attempt_id": attempt.attempt_id,
                "run_id": attempt.run_id,
                **_what(table, slice_),
                **done,
                "manifest": json.dumps(manifest),
                "tool_version": __version__,
            }
        )
    )


class Told(NamedTuple):
    """What the ledger tells of a slice that was copied."""

    mode: str
    checksum: str | None
    rows: int
    number: int


def told_last(session: Session, table: Table, slice_: Slice) -> Told | None:
    """Return what was recorded last of a slice; None where another one with the same rows was."""
    around = range_of(slice_)
    found = session.fetch(
        statements.told_last(
            table.oid,
            around.column if around else None,
            slices.extent(slice_),
            _condition(slice_),
        )
    )
    return Told(*found[0][1:]) if found and found[0][0] else None


def covered(
    session: Session,
    table: Table,
    column: str,
    wanted: Sequence[Slice],
    mode: Mode,
    kind: Mapping[str, Any],
) -> dict[int, bool]:
    """Return the places of the slices that were copied, and whether they had rows.

    `kind` are the signature of the copies that count, None for any, and the facts of `of_source`.

    For a replace only what left the slice equal to the source's counts. Slices without an instant
    are covered by nothing.
    """
    extents = [slices.extent(each) for each in wanted]
    places = [place for place, each in enumerate(extents) if each.intervals]
    if not places:
        return {}
    asked = statements.covered(
        table.oid,
        column,
        [extents[place] for place in places],
        kind,
        equal=mode == "replace",
    )
    return {places[place - 1]: had_rows for place, had_rows in session.fetch(asked)}


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that the ledger tells of a slice that was copied."""

    number: int
    attempt_id: str
    run_id: str
    table: str
    """The dest's, as it was named then."""
    source_table: str
    source_address: str
    source_system: int | None
    """The identifier of the source's cluster; None where the role may not ask."""
    source_database_oid: int
    column: str | None
    zone: str | None
    instants: Sequence[Sequence[datetime | None]]
    """Intervals ``[start, stop)``; None for no bound."""
    numbers: Sequence[Sequence[int]] | None
    """The same of a column of whole numbers; None for all others."""
    condition: str | None
    mode: str
    deleted: int | None
    rows: int
    bytes: int
    format: str
    signature: str
    checksum: str | None
    reversed: bool
    state: str
    open_because: str | None
    complete_until: datetime | None
    source_clock: datetime
    began_at: datetime
    recorded_at: datetime
    tool_version: str
    manifest: Mapping[str, Any]
    superseded_by: Sequence[int]
    """Later slices that have instants of it."""
    by_another_column: Sequence[int]
    """Later slices by another column; nobody can tell whether they have rows of it."""
    superseded: bool
    """Later slices tell of all its instants, so that it does not count any more."""


def receipts(session: Session, table: Table, slice_: Slice) -> list[Receipt]:
    """Return what was recorded last of exactly this slice, else of all that have instants of it.

    In the session's open transaction, after `reach`.
    """
    around = range_of(slice_)
    asked = (table.oid, around.column if around else None, slices.extent(slice_))
    over = superseded(session.fetch(statements.all_told(table.oid, 0)))
    rows = session.fetch(statements.told_exactly(*asked))
    rows = rows or session.fetch(statements.told_of(*asked, list(over)))
    return [Receipt(*[*row, row[0] in over]) for row in rows]


def superseded(told: Iterable[Sequence[Any]]) -> dict[int, bool]:
    """Return the ids of slices of which later ones tell all instants, and whether they are old.

    `told` are the rows of `statements.all_told`, the last first. Later slices have to be of the
    same table, or one that it is a partition of, of the same kind and by the same column, and tell
    of all rows: one of another kind may be what undoes others, which its like alone does too. One
    that only compared, or went against the usual direction, tells nothing of those that did not.
    """
    later: defaultdict[tuple[Any, ...], Covered] = defaultdict(Covered)
    found = {}
    for number, tables, kind, compared, column, is_reversed, *where, tells_all, is_old in told:
        instants, numbers = where
        # A column may have been one of times before.
        of = (kind, column, numbers is not None)
        intervals = instants if numbers is None else numbers
        known = [later[table, of, compared, is_reversed] for table in tables]
        # What has no instant has nothing that later ones could tell.
        if intervals and all(
            any(covered.holds(*interval) for covered in known) for interval in intervals
        ):
            found[number] = is_old
        # What went against the direction, or only compared, counts for its like alone.
        for turned in (True,) if is_reversed else (False, True):
            for of_compared in (True,) if compared else (False, True):
                for interval in intervals if tells_all else ():
                    later[tables[0], of, of_compared, turned].add(*interval)
    return found


class Entry(NamedTuple):
    """What was recorded of some instants."""

    is_this: bool
    """Of the table that is there now; else of one that bore its name."""
    is_whole: bool
    """Of all rows of the table, by no column."""
    is_sealed: bool
    """It counts: else it undoes what was told before."""
    rows: int
    instants: Sequence[Sequence[datetime | None]]
    is_slice: bool = True
    """Of all rows in these instants by that column; else it merely may have touched them."""


class Try(NamedTuple):
    """What was tried with some instants."""

    state: Literal["running", "copied", "failed", "skipped"]
    is_alive: bool
    """It is running, and a session of its run is there."""
    side: Side | None
    sqlstate: str | None
    error: str | None
    """The kind of the error."""
    instants: Sequence[Sequence[datetime | None]]


def entries(session: Session, table: Table, around: Range, kind: Mapping[str, Any]) -> list[Entry]:
    """Return what was recorded of a range of a table, the last first; `kind` is that of `covered`.

    In the session's open transaction, after `reach`.
    """
    wanted = slices.extent(around)
    if not wanted.intervals:
        return []
    asked = statements.entries(
        table.root_oid, table.oid, table.full_name, around.column, wanted, kind
    )
    return [Entry(*row) for row in session.fetch(asked)]


def tries(session: Session, table: Table, around: Range) -> list[Try]:
    """Return what was tried with a range of a table, the last first; as `entries`."""
    asked = statements.tries(table.oid, around.column, slices.extent(around))
    return [Try(*row) for row in session.fetch(asked)]


class Forgotten(NamedTuple):
    """What is removed when a slice is forgotten."""

    rows: int
    beyond: int
    """Those of them that tell of other instants too, or of what the table is a partition of."""
    others: int
    """Rows by another column, which stay: nobody can tell what they have of the slice."""


def forgettable(session: Session, table: Table, slice_: Slice) -> Forgotten:
    """Return what would be removed if a slice were forgotten."""
    return Forgotten(*session.fetch_one(statements.forgettable(*_asked(table, slice_))))


def forget(session: Session, table: Table, slice_: Slice) -> int:
    """Forget that a slice was copied; returns how many rows told of it.

    Within `using`, and under the locks of the slice: a transfer that is under way is told of first.
    Raises SliceBusy where it takes longer than `using` waits.
    """
    take(session, slices.locks(slice_, sliced_by(session, table)), table, slice_)
    return session.count(statements.forget(*_asked(table, slice_)))


def take(session: Session, wanted: Sequence[Lock], table: Table, slice_: Slice) -> None:
    """Take the locks of a slice in the session's open transaction.

    Raises SliceBusy where another run has one of them for longer than lock_timeout.
    """
    busy = SliceBusy(
        f"another run holds a slice that overlaps {slice_} of {table.full_name}",
        hint="Run it again later, or wait longer with --wait-lock.",
        side=session.side,
    )
    lock_or(session, wanted, table.root_oid, busy)


def lock_or(session: Session, wanted: Sequence[Lock], root_oid: int, busy: SliceBusy) -> None:
    """Take locks in the session's open transaction; raises `busy` behind lock_timeout."""
    try:
        session.fetch(locks.take(wanted, root_oid))
    except CopypipeError as error:
        if error.sqlstate != "55P03":  # lock_not_available
            raise
    else:
        return
    raise busy


def _asked(table: Table, slice_: Slice) -> tuple[int, int, str, str | None, Extent]:
    around = range_of(slice_)
    column = around.column if around else None
    return table.root_oid, table.oid, table.full_name, column, slices.extent(slice_)


class Pruned(NamedTuple):
    """What is removed when the ledger is pruned."""

    slices: int
    attempts: int


def prunable(session: Session, seconds: float) -> Pruned:
    """Return what would be removed of what is older and does not count any more."""
    (attempts,) = session.fetch_one(statements.old_attempts(seconds))
    return Pruned(len(_old_slices(session, seconds)), attempts)


def prune(session: Session, seconds: float) -> Pruned:
    """Remove what is older and does not count any more; within `using`."""
    gone = statements.remove_slices(_old_slices(session, seconds))
    return Pruned(session.count(gone), session.count(statements.remove_attempts(seconds)))


def _old_slices(session: Session, seconds: float) -> list[int]:
    # Not by a join: a server would compare each slice of a table with each later one.
    over = superseded(session.fetch(statements.all_told(None, seconds)))
    return [number for number, is_old in over.items() if is_old]


def holds(session: Session, ledger: Ledger, attempt: Attempt) -> bool | None:
    """Return whether the attempt was committed; its transaction must have ended.

    None where it cannot be said, since `ledger` is not there any more, or not for this role.
    """
    found = look(session)
    if found.made != ledger.made or found.problem is not None:
        return None
    return bool(session.fetch_one(statements.holds(attempt.attempt_id))[0])


def highest_before(
    session: Session, table: Table, source: Mapping[str, Any], column: str, until: datetime
) -> Highest | None:
    """Return the highest number of a column that was seen last before an instant.

    `source` are the facts of `of_source`.
    """
    found = session.fetch(statements.highest_before(table.oid, column, source, until))
    return Highest(found[0][0], found[0][1], looked=0.0) if found else None


def of_highest(highest: Highest | None) -> dict[str, Any]:
    """Return what was seen of the numbers of a column."""
    known = highest is not None and highest.number is not None
    return {
        "highest": highest.number if highest is not None and known else None,
        "highest_at": highest.at if highest is not None and known else None,
    }


def of_source(relation: Relation, server: Server, address: Address) -> dict[str, Any]:
    """Return the identity of what is read."""
    return {
        **of_server(server, address),
        "source_root_oid": relation.root_oid if isinstance(relation, Table) else None,
        "source_table": relation.full_name,
    }


def of_server(server: Server, address: Address) -> dict[str, Any]:
    """Return the identity of the database in which it is read."""
    return {
        "source_system": server.system_identifier,
        "source_database_oid": server.database_oid,
        "source_address": _where(address),
    }


def _what(table: Table, slice_: Slice) -> dict[str, Any]:
    around = range_of(slice_)
    return {
        "root_oid": table.root_oid,
        "dest_oid": table.oid,
        "dest_table": table.full_name,
        "by_column": around.column if around else None,
        **statements.where_it_lies(slices.extent(slice_)),
        "condition": _condition(slice_),
    }


def _condition(slice_: Slice) -> str | None:
    """Return what narrows a slice besides its range, None for nothing."""
    if isinstance(slice_, Pages):
        return str(slice_)
    return slice_.condition if isinstance(slice_, Where) else None


def _where(address: Address) -> str:
    return f"{address.host}:{address.port}/{address.dbname}"
