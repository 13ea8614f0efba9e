"""The record that the dest keeps of what was copied: made on first need, read and written here.

A row of `copypipe.slice` is written in the transaction whose rows it tells of, so the two are there
together or not at all. That is what settles a COMMIT whose answer was lost.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import psycopg

from copypipe import __version__, slices
from copypipe.addresses import Address
from copypipe.catalog import Server
from copypipe.errors import CopypipeError, PlanRefused, SliceBusy, TransientError
from copypipe.requests import Mode
from copypipe.servers import Session
from copypipe.slices import Lock, Slice, Where, range_of
from copypipe.statements import copies, locks, privileges
from copypipe.statements import ledger as statements
from copypipe.statements.privileges import Privilege
from copypipe.tables import Relation, Table

# Held shared by every transfer that will write into the ledger, and alone by whoever removes it.
IN_USE = Lock("ledger", exclusive=False, of_table=False)

# Held by whoever makes or removes it: transfers do not wait for these, nor they for transfers.
_MAKING = Lock("making the ledger", exclusive=True, of_table=False)

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
    with _making(session, wait):
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
    with _making(session, f"{max(1, round(wait * 1000))}ms"):
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
def _making(session: Session, wait: str) -> Iterator[None]:
    """Run the block in a transaction while nobody else makes or removes the ledger, and commit."""
    session.begin("READ COMMITTED", read_only=False, local={"lock_timeout": wait})
    try:
        try:
            session.fetch(locks.take([_MAKING], 0))
        except CopypipeError as error:
            if error.sqlstate != "55P03":  # lock_not_available
                raise
            raise _in_use(session) from None
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
        statements.recorded(table.root_oid, table.full_name, column, slices.instants(slice_))
    )
    if not found:
        return
    ((number, by, instants, at),) = found
    raise PlanRefused(
        f"rows of {slice_} were copied into {table.full_name} before",
        detail=f"The ledger's slice {number}, of {at:%Y-%m-%d %H:%M}+00, holds {instants} by "
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
            table.root_oid,
            around.column if around else None,
            slices.instants(slice_),
            slice_.condition if isinstance(slice_, Where) else None,
        )
    )
    return Told(*found[0][1:]) if found and found[0][0] else None


def covered(
    session: Session, table: Table, column: str, wanted: Sequence[Slice], mode: Mode
) -> dict[int, bool]:
    """Return the places of the slices that were copied, and whether they had rows.

    For a replace only what left the slice equal to the source's counts. Slices without an instant
    are covered by nothing.
    """
    intervals = [slices.instants(each) or () for each in wanted]
    places = [place for place, each in enumerate(intervals) if each]
    if not places:
        return {}
    asked = statements.covered(
        table.root_oid, column, [intervals[place] for place in places], equal=mode == "replace"
    )
    return {places[place - 1]: had_rows for place, had_rows in session.fetch(asked)}


def holds(session: Session, ledger: Ledger, attempt: Attempt) -> bool | None:
    """Return whether the attempt was committed; its transaction must have ended.

    None where it cannot be said, since `ledger` is not there any more, or not for this role.
    """
    found = look(session)
    if found.made != ledger.made or found.problem is not None:
        return None
    return bool(session.fetch_one(statements.holds(attempt.attempt_id))[0])


def of_source(relation: Relation, server: Server, address: Address) -> dict[str, Any]:
    """Return the identity of what is read."""
    return {
        "source_system": server.system_identifier,
        "source_database_oid": server.database_oid,
        "source_address": _where(address),
        "source_root_oid": relation.root_oid if isinstance(relation, Table) else None,
        "source_table": relation.full_name,
    }


def _what(table: Table, slice_: Slice) -> dict[str, Any]:
    around = range_of(slice_)
    return {
        "root_oid": table.root_oid,
        "dest_oid": table.oid,
        "dest_table": table.full_name,
        "by_column": around.column if around else None,
        "instants": statements.instants(slices.instants(slice_)),
        "condition": slice_.condition if isinstance(slice_, Where) else None,
    }


def _where(address: Address) -> str:
    return f"{address.host}:{address.port}/{address.dbname}"
