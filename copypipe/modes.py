"""How a slice is cleared before it is filled: one strategy a mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from copypipe import catalog
from copypipe.errors import TransientError
from copypipe.requests import Clear, Mode
from copypipe.servers import Session
from copypipe.slices import Slice, Whole
from copypipe.statements import copies
from copypipe.tables import Table


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was in the slice, and how the COPY may be done now."""

    had_rows: bool
    rows: int | None
    """Rows deleted; None where TRUNCATE removed some uncounted."""
    freeze: bool
    """The table was truncated in this subtransaction, so COPY may write frozen rows."""


class Strategy(Protocol):
    """How a mode makes room."""

    def __call__(
        self, session: Session, table: Table, slice_: Slice, clear: Clear, *, may_truncate: bool
    ) -> Cleared:
        """Clear the slice within the session's transaction."""


def replace(
    session: Session, table: Table, slice_: Slice, clear: Clear, *, may_truncate: bool
) -> Cleared:
    """Make the slice empty within the session's transaction.

    `may_truncate` is about a table that is empty anyway; `clear` says what was asked for.
    """
    if clear == "truncate":
        return _truncated(session, table)
    if freezes(table, slice_, clear, may_truncate=may_truncate) and _emptied(session, table):
        return Cleared(had_rows=False, rows=0, freeze=True)
    rows = session.count(copies.delete(table, slice_))
    return Cleared(had_rows=rows > 0, rows=rows, freeze=False)


def _truncated(session: Session, table: Table) -> Cleared:
    had_rows = catalog.has_rows(session, table)
    session.execute(copies.truncate(table))
    return Cleared(had_rows, None if had_rows else 0, freeze=table.kind == "r")


def freezes(table: Table, slice_: Slice, clear: Clear, *, may_truncate: bool) -> bool:
    """Return whether `replace` truncates an empty table, so that COPY may write frozen rows.

    Only for the whole of it: parallel first loads of days would lock each other out. COPY FREEZE
    is refused for partitioned tables, TRUNCATE for tables that are pointed at; a trigger on
    TRUNCATE is somebody's word against it.
    """
    return (
        isinstance(slice_, Whole)
        and clear == "delete"
        and may_truncate
        and table.kind == "r"
        and table.rights.truncate
        and not table.references
        and not table.has_truncate_triggers
    )


def _emptied(session: Session, table: Table) -> bool:
    """Truncate a table that has no row anyway, so that COPY may write frozen rows.

    Nobody is made to wait: where the table is in use, or has rows after all, nothing happens.
    Waiting for the exclusive lock on top of the one we hold could deadlock with another run.
    """
    if catalog.has_rows(session, table):
        return False
    session.execute(copies.savepoint())
    try:
        session.execute(copies.lock_alone_now(table))
    except TransientError as error:
        if error.sqlstate != "55P03":  # lock_not_available
            raise
    else:
        if not catalog.has_rows(session, table):
            session.execute(copies.truncate(table))
            return True
    session.execute(copies.back_to_savepoint())
    return False


STRATEGIES: dict[Mode, Strategy] = {"replace": replace}
