"""A table, or a partition, that is filled beside the old one and takes its place in a moment.

Readers see the old rows until COMMIT and wait for no more than the exchange itself. All of it is
one transaction: after a failure nothing of the new table is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from copypipe.errors import CopypipeError, PlanRefused, TransientError
from copypipe.servers import Session
from copypipe.statements import Statement, copies, sessions, swaps
from copypipe.tables import Partition, Table

# How long the exchange waits for those who read the table at a time, since all who come after it
# wait behind it; and for how long it steps back then.
_LOCK_TIMEOUT = "1s"
_PAUSE_SECONDS = 2.0


def _new_name(old: Table | Partition) -> str:
    """Return the name of the new table until it takes the old one's."""
    return f"copypipe_new_{old.oid}"


def lock(session: Session, old: Table | Partition) -> None:
    """Keep writers out of the old table, since what they write would be lost; readers go on.

    Of a partition's parent too: one who waited for the partition would hold the parent meanwhile,
    which the exchange needs for itself.
    """
    for schema, name in _with_parent(session, old):
        session.execute(swaps.lock_writers(schema, name))


def make(session: Session, old: Table | Partition) -> None:
    """Make the new table with all that the old one has but rows."""
    name = _new_name(old)
    _run(session, swaps.make(old.oid, old.schema, name))
    _run(session, swaps.dress(old.oid, swaps.quoted(old.schema, name)))


def copy_in(old: Table | Partition, columns: Sequence[str], form: copies.Format) -> Statement:
    """Return the statement that fills the new table."""
    return swaps.copy_in(old.schema, _new_name(old), columns, form)


def exchange(session: Session, old: Table | Partition, patience: float) -> int:
    """Let the new table take the old one's place, and return its OID.

    Raises TransientError where somebody reads the old one for longer than `patience` seconds.
    """
    name = _new_name(old)
    session.execute(swaps.analyze(old.schema, name))
    both = _with_parent(session, old)
    deadline = time.monotonic() + patience
    while not _locked_out(session, both):
        if time.monotonic() >= deadline:
            raise TransientError(
                f"dest: {old.full_name} was read all the time",
                detail="The new rows are there, and could not take the place of the old ones.",
                hint="Wait longer with --wait-lock, or end what reads it.",
                side="dest",
            )
        time.sleep(_PAUSE_SECONDS)
    _run(session, swaps.replace(old.oid, swaps.quoted(old.schema, name)))
    return int(session.fetch_one(swaps.oid(old.schema, old.name))[0])


def _with_parent(session: Session, old: Table | Partition) -> list[tuple[str, str]]:
    """Return the names of the old table and, before it, of the one that it is a partition of."""
    above = [(schema, name) for schema, name in session.fetch(swaps.parent(old.oid))]
    return [*above, (old.schema, old.name)]


def _locked_out(session: Session, tables: list[tuple[str, str]]) -> bool:
    session.execute(copies.savepoint())
    session.execute(sessions.set_local("lock_timeout", _LOCK_TIMEOUT))
    try:
        for schema, name in tables:
            session.execute(swaps.lock_out(schema, name))
    except CopypipeError as error:
        if error.sqlstate not in ("55P03", "40P01"):  # lock_not_available, deadlock_detected
            raise
    else:
        return True
    session.execute(copies.back_to_savepoint())
    return False


def _run(session: Session, spelling: Statement) -> None:
    for (text,) in session.fetch(spelling):
        session.execute(swaps.run(text))


def check(session: Session, old: Table | Partition) -> None:
    """Raise PlanRefused for what the new table would lack, or what holds the old one, at once."""
    found = session.fetch(swaps.hindrances(old.oid))
    if found:
        raise PlanRefused(
            f"dest: {old.full_name} cannot be swapped",
            detail="; ".join(why for (why,) in found) + ".",
            hint="Leave --swap out.",
            side="dest",
        )
