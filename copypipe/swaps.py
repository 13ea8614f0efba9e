"""A table, or partitions, that are filled beside the old ones and take their place in a moment.

Readers see the old rows until COMMIT and wait for no more than the exchange itself. All of it is
one transaction: after a failure nothing of the new tables is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from copypipe.errors import CopypipeError, PlanRefused, TransientError
from copypipe.servers import Session
from copypipe.statements import Statement, copies, digests, sessions, swaps
from copypipe.tables import Partition, Table

# How long the exchange waits for each lock, since all who come after it wait behind it; and for how
# long it steps back then.
_LOCK_TIMEOUT = "1s"
_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Replaced:
    """What new tables take the place of."""

    table: Table
    partitions: tuple[Partition, ...]
    """Those of the table, in their order; none where it is replaced itself."""

    @property
    def old(self) -> Sequence[Table | Partition]:
        """Return those that go."""
        return self.partitions or (self.table,)

    @property
    def routed(self) -> bool:
        """Return whether rows come through a new partitioned table, as one COPY into several."""
        return len(self.partitions) > 1

    @property
    def target(self) -> Table | Partition:
        """Return the one beside which there is the table that the rows are copied into."""
        return self.table if self.routed else self.old[0]


def _new_name(of: Table | Partition) -> str:
    """Return the name of the new table until it takes the old one's."""
    return f"copypipe_new_{of.oid}"


def _new(of: Table | Partition) -> str:
    return swaps.quoted(of.schema, _new_name(of))


def check(session: Session, replaced: Replaced) -> None:
    """Raise PlanRefused for what a new table would lack, or what holds the old one, at once."""
    for old in replaced.old:
        found = session.fetch(swaps.hindrances(old.oid, session.major))
        if found:
            raise PlanRefused(
                f"dest: {old.full_name} cannot be swapped",
                detail="; ".join(why for (why,) in found) + ".",
                hint="Leave --swap out.",
                side="dest",
            )


def remarks(session: Session, replaced: Replaced) -> list[str]:
    """Tell what one should know of the exchange beforehand."""
    told = [
        "the new table also gets the rights that the old one has then, and the names of its "
        "indexes, statistics and identities"
    ]
    if replaced.routed:
        told.append(
            "rows for several partitions are not frozen, so a REPEATABLE READ transaction that "
            "is older finds none in them"
        )
    if replaced.partitions:
        told += [
            f"the exchange looks for rows of the slice in {name}, the default partition, unless a "
            "CHECK of its excludes them"
            for (name,) in session.fetch(swaps.default_partition(replaced.table.oid))
        ]
    return told


@dataclass(frozen=True, slots=True)
class Script:
    """What a swap runs around its COPY."""

    make: Statement
    exchange: Statement


def script(session: Session, replaced: Replaced) -> Script:
    """Spell what will run; but for rights and names that only the new tables can tell."""
    table = replaced.table
    make: list[str | Statement] = []
    for old in replaced.old:
        for spelling in (
            swaps.make(old.oid, old.schema, _new_name(old)),
            swaps.dress(old.oid, _new(old)),
        ):
            make += [text for (text,) in session.fetch(spelling)]
    exchange: list[str | Statement] = []
    if replaced.routed:
        parts = [(part.oid, _new(part)) for part in replaced.partitions]
        gathered = swaps.gather(table.oid, table.schema, _new_name(table), parts)
        make += [text for (text,) in session.fetch(gathered)]
        exchange += [*_detached(replaced), swaps.drop(table.schema, _new_name(table))]
    exchange += [swaps.analyze(old.schema, _new_name(old)) for old in replaced.old]
    for old in replaced.old:
        exchange += [text for (text,) in session.fetch(swaps.foreign_keys(old.oid, _new(old)))]
    exchange += [swaps.lock_out(schema, name) for schema, name in _locked(replaced)]
    for old in replaced.old:
        exchange += [text for (text,) in session.fetch(swaps.replace(old.oid, _new(old)))]
    return Script(swaps.script(make), swaps.script(exchange))


def lock(session: Session, replaced: Replaced) -> None:
    """Keep writers out of the old tables, since what they write would be lost; readers go on.

    Of a partition's parent too, and of that first: one who waited for the partition would hold the
    parent meanwhile, which the exchange needs for itself. It also lets two runs that swap
    partitions of one table come one after the other.
    """
    for schema, name in _locked(replaced):
        session.execute(swaps.lock_writers(schema, name))


def locks(replaced: Replaced) -> Statement:
    """Return what `lock` runs."""
    return swaps.script([swaps.lock_writers(schema, name) for schema, name in _locked(replaced)])


def make(session: Session, replaced: Replaced) -> None:
    """Make the new tables with all that the old ones have but rows and foreign keys."""
    # Where the old one is in the database's tablespace, nothing may lead elsewhere.
    session.execute(sessions.set_local("default_tablespace", ""))
    for old in replaced.old:
        _run(session, swaps.make(old.oid, old.schema, _new_name(old)))
        _run(session, swaps.dress(old.oid, _new(old)))
    table = replaced.table
    if replaced.routed:
        parts = [(part.oid, _new(part)) for part in replaced.partitions]
        _run(session, swaps.gather(table.oid, table.schema, _new_name(table), parts))
    if replaced.partitions:
        _run(session, swaps.defaults(table.oid, _new(replaced.target)))


def copy_in(replaced: Replaced, columns: Sequence[str], form: copies.Format) -> Statement:
    """Return the statement that fills the new tables."""
    into = replaced.target
    return swaps.copy_in(into.schema, _new_name(into), columns, form, freeze=not replaced.routed)


def held(replaced: Replaced, columns: Sequence[str]) -> Statement:
    """Return what reads the new tables."""
    into = replaced.target
    return digests.held_in(into.schema, _new_name(into), columns)


def exchange(session: Session, replaced: Replaced, patience: float) -> None:
    """Let the new tables take the old ones' place.

    Raises TransientError where somebody reads the old ones for longer than `patience` seconds.
    """
    # ALTER TABLE is refused while constraints are still to be looked at.
    session.execute(copies.run_deferred_triggers())
    table = replaced.table
    if replaced.routed:
        for statement in _detached(replaced):
            session.execute(statement)
        session.execute(swaps.drop(table.schema, _new_name(table)))
    for part in replaced.partitions:
        _run(session, swaps.defaults(part.oid, _new(part)))
    for old in replaced.old:
        session.execute(swaps.analyze(old.schema, _new_name(old)))
    deadline = time.monotonic() + patience
    while not _exchanged(session, replaced):
        if time.monotonic() >= deadline:
            raise TransientError(
                f"dest: {replaced.old[0].full_name} was read all the time",
                detail="The new rows are there, and could not take the place of the old ones.",
                hint="Wait longer with --wait-lock, or end what reads it.",
                side="dest",
            )
        time.sleep(_PAUSE_SECONDS)


def _exchanged(session: Session, replaced: Replaced) -> bool:
    """Exchange old and new, or undo what was done of it where a lock is not to be had soon.

    All of it, since more is locked on the way than the tables themselves: what foreign keys point
    at, and a default partition. Foreign keys come first: while rows are looked at for them, readers
    go on, and only those wait who write what the keys point at.
    """
    (before,) = session.fetch_one(swaps.lock_timeout())
    session.execute(copies.savepoint())
    session.execute(sessions.set_local("lock_timeout", _LOCK_TIMEOUT))
    try:
        for old in replaced.old:
            _run(session, swaps.foreign_keys(old.oid, _new(old)))
        for schema, name in _locked(replaced):
            session.execute(swaps.lock_out(schema, name))
        for old in replaced.old:
            _run(session, swaps.rights(old.oid, _new(old)))
            _run(session, swaps.replace(old.oid, _new(old)))
    except CopypipeError as error:
        if error.sqlstate not in ("55P03", "40P01"):  # lock_not_available, deadlock_detected
            raise
    else:
        session.execute(copies.release_savepoint())
        session.execute(sessions.set_local("lock_timeout", before))
        return True
    session.execute(copies.back_to_savepoint())
    return False


def _detached(replaced: Replaced) -> list[Statement]:
    """Return how the new tables become tables of their own again."""
    table = replaced.table
    return [
        swaps.detach(table.schema, _new_name(table), part.schema, _new_name(part))
        for part in replaced.partitions
    ]


def _locked(replaced: Replaced) -> list[tuple[str, str]]:
    """Return the names of what is locked: the table and its partitions, in one order for all."""
    table = replaced.table
    return [(table.schema, table.name), *((p.schema, p.name) for p in replaced.partitions)]


def _run(session: Session, spelling: Statement) -> None:
    for (text,) in session.fetch(spelling):
        session.execute(swaps.run(text))
