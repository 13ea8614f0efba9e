"""Make, read, prune and remove the ledger of a dest, as calls of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from copypipe import catalog, journals, ledger, plans, servers
from copypipe.errors import PlanRefused, UsageError
from copypipe.ledger import Receipt
from copypipe.requests import Endpoint, Recorded
from copypipe.servers import Session
from copypipe.slices import Slice
from copypipe.statements.ledger import FORGETTING, PRUNING, READING, Rights
from copypipe.tables import Table

SCHEMA = "schema copypipe"


def make(dest: Endpoint, wait: float, *, dry_run: bool) -> str:
    """Make the ledger and say what was done.

    Raises PlanRefused where the role may not, or there is one that it may not use; SliceBusy where
    it is being removed for longer than `wait` seconds. Nothing is made then.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        found = _look(session)
        if found.state == "missing" and dry_run:
            return f"would make the ledger, {SCHEMA} of {session.address}"
        made = False
        if found.state == "missing":
            made, found = ledger.make(session, plans.milliseconds(wait), asked=True)
        if found.problem is not None:
            raise PlanRefused(
                "dest: the ledger cannot be used",
                detail=f"In {session.address}: {found.problem}.",
                hint="Have its owner grant the rights, or make it as another role.",
                side="dest",
            )
        return f"{'made' if made else 'there is'} the ledger, {SCHEMA} of {session.address}"


def remove(dest: Endpoint, wait: float, agrees: Callable[[str], bool], *, dry_run: bool) -> str:
    """Remove the ledger and say what was done; `agrees` is told what would be lost.

    Raises UsageError where it does not agree, SliceBusy where transfers use the ledger for longer
    than `wait` seconds, PlanRefused where the role may not. Nothing is removed then.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        found = _look(session)
        if not found.is_there:
            return f"there is no ledger in {session.address}"
        if found.problem is not None:
            raise PlanRefused(
                "dest: the ledger cannot be removed",
                detail=f"In {session.address}: {found.problem}.",
                side="dest",
            )
        with session.reading(lock_timeout=plans.OTHER_LOCKS):
            rows, tables = ledger.counts(session)
            dropped = journals.dropped(session)
        if dropped:
            raise PlanRefused(
                "dest: the ledger alone knows indexes that a migration has dropped",
                detail=f"{'; '.join(dropped)}.",
                hint="Go on with it (copypipe migrate --resume), or make them, and DELETE FROM "
                "copypipe.migration.",
                side="dest",
            )
        what = f"the ledger of {session.address} tells of {rows} copies of {tables} tables"
        if dry_run:
            return f"would remove it: {what}"
        if not agrees(what):
            raise UsageError("the ledger was not removed", detail="Nobody agreed to that.")
        removed = ledger.remove(session, wait)
        if removed is None:
            return f"there is no ledger in {session.address} any more"
        return f"removed the ledger, {SCHEMA} of {session.address}; it told of {removed} copies"


def receipts(dest: Endpoint, asked: Recorded) -> list[Receipt]:
    """Return what was recorded last of exactly this slice, else of all that have rows of it.

    Raises PlanRefused where nothing was, there is no ledger, or the role may not read it.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        if not _reaches(session, READING):
            raise PlanRefused(
                f"there is no ledger in {session.address}",
                detail="What was copied into it is recorded nowhere.",
                hint="A copy makes one, and so does copypipe init.",
                side="dest",
            )
        with session.reading(own_search_path=True, lock_timeout=plans.OTHER_LOCKS):
            table, slice_ = _asked(session, asked)
            found = ledger.receipts(session, table, slice_)
        if not found:
            raise PlanRefused(
                f"no copy of {slice_} of {table.full_name} is recorded",
                detail=f"Looked for in the ledger of {session.address}.",
                hint="Name the dest's table, and the column and the zone of the copy (--by, "
                "--timezone). What was copied with --no-ledger, or before clean, is not known.",
                side="dest",
            )
        return found


def prune(
    dest: Endpoint, wait: float, older: float, agrees: Callable[[str], bool], *, dry_run: bool
) -> str:
    """Remove from the ledger what is older than so many seconds and does not count any more.

    Says what was done; `agrees` is told what would go. Raises as `remove` does.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        if not _reaches(session, PRUNING):
            return f"there is no ledger in {session.address}"
        with session.reading(lock_timeout=plans.OTHER_LOCKS):
            found = ledger.prunable(session, older)
        where = f"from the ledger of {session.address}"
        if not any(found):
            return f"nothing to remove {where}"
        what = f"{_pruned(found)} {where}"
        if dry_run:
            return f"would remove {what}"
        if not agrees(f"to be removed: {what}"):
            raise UsageError("nothing was removed", detail="Nobody agreed to that.")
        with ledger.using(session, PRUNING, plans.milliseconds(wait)) as is_there:
            if is_there:
                found = ledger.prune(session, older)
        if not is_there:
            return f"there is no ledger in {session.address} any more"
        return f"removed {_pruned(found)} {where}"


def _pruned(found: ledger.Pruned) -> str:
    return f"{found.slices} superseded copies and {found.attempts} attempts"


def forget(
    dest: Endpoint, wait: float, asked: Recorded, agrees: Callable[[str], bool], *, dry_run: bool
) -> str:
    """Have the ledger forget that a slice was copied; the rows of the table stay.

    Says what was done; `agrees` is told what would go. Raises as `remove` does, and SliceBusy where
    a transfer has the slice for longer than `wait` seconds.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        if not _reaches(session, FORGETTING):
            return f"there is no ledger in {session.address}"
        with session.reading(own_search_path=True, lock_timeout=plans.OTHER_LOCKS):
            table, slice_ = _asked(session, asked)
            found = ledger.forgettable(session, table, slice_)
        of = f"{slice_} of {table.full_name}"
        where = f"the ledger of {session.address}"
        what = f"{found.rows} copies that have rows of {of}{_besides(found)}"
        if dry_run:
            return f"would remove from {where}: {what}"
        if not agrees(f"to be removed from {where}: {what}"):
            raise UsageError("nothing was forgotten", detail="Nobody agreed to that.")
        with ledger.using(session, FORGETTING, plans.milliseconds(wait)) as is_there:
            # Also where none was found: a transfer may be under way.
            rows = ledger.forget(session, table, slice_) if is_there else 0
        if not is_there:
            return f"there is no ledger in {session.address} any more"
        return f"forgot {of}: removed {rows} copies from {where}"


def _besides(found: ledger.Forgotten) -> str:
    """Tell what else is forgotten, and what is not."""
    beyond = f"; {found.beyond} of them have more, of which nothing is told then either"
    others = f"; {found.others} by another column stay"
    return f"{beyond if found.beyond else ''}{others if found.others else ''}"


def _reaches(session: Session, rights: Rights) -> bool:
    with session.reading(lock_timeout=plans.OTHER_LOCKS):
        return ledger.reach(session, rights)


def _asked(session: Session, asked: Recorded) -> tuple[Table, Slice]:
    """Return the table and the slice that are meant, as the dest knows them."""
    table = catalog.table(session, catalog.resolve(session, asked.table))
    return table, plans.slice_at(session, table, asked.wanted, asked.by, asked.timezone)


def _look(session: Session) -> ledger.Ledger:
    with session.reading(lock_timeout=plans.OTHER_LOCKS):
        return ledger.look(session, asked=True)
