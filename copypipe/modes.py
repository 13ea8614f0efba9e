"""How a slice is cleared and filled: one strategy a mode.

`replace` makes room and copies into the table, `append` copies into it beside what is there,
`merge` copies into a table of its own and takes from there what is new or has changed. Each runs
within the dest's transaction of the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from copypipe import catalog, swaps
from copypipe.errors import CopyFailed, PlanRefused, TransientError
from copypipe.requests import Clear, Mode
from copypipe.servers import Session
from copypipe.slices import Slice, Where, Whole
from copypipe.statements import Statement, copies, digests, merges
from copypipe.statements.merges import Merge
from copypipe.swaps import Replaced, Script
from copypipe.tables import Partition, Table


@dataclass(frozen=True, slots=True)
class Filling:
    """What a strategy needs to know."""

    table: Table
    slice: Slice
    columns: tuple[str, ...]
    """Those that go over."""
    format: copies.Format
    clear: Clear
    may_truncate: bool
    """An empty table may be truncated: the source cannot be reading it."""
    partitions: tuple[Partition, ...]
    """Those that the slice consists of, where they are to be truncated or swapped."""
    merge: Merge | None
    """By which key and how, in that mode."""
    script: Script | None
    """What a plan spells of a swap beforehand."""
    deletes: bool
    """A merge removes what the source does not have in the slice."""
    may_differ: bool
    """Triggers may drop and change rows: that is meant."""
    patience: float
    """Seconds to wait for those who read what is swapped."""

    @property
    def replaced(self) -> Replaced:
        """Return what a swap replaces."""
        return Replaced(self.table, self.partitions)

    @property
    def counts(self) -> bool:
        """Return whether triggers run whose work must be looked at."""
        return self.table.has_triggers and not self.may_differ


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was in the slice, and how the COPY may be done now."""

    had_rows: bool
    """Rows are lost if none is copied."""
    rows: int | None
    """Rows deleted; None where TRUNCATE removed some uncounted."""
    freeze: bool = False
    """The table was truncated in this subtransaction, so COPY may write frozen rows."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What became of the rows behind the COPY, where a mode does more than that."""

    inserted: int | None = None
    updated: int | None = None
    deleted: int | None = None
    dropped: int = 0
    """Rows that triggers kept out."""
    table: Table | None = None
    """The dest's table, if it is another one now."""


class Strategy(Protocol):
    """How a mode makes room, and what it does with the rows."""

    def lock(self, session: Session, filling: Filling) -> None:
        """Keep the table's definition as it is, before it is read again."""

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Make room for the COPY."""

    def copy_in(self, filling: Filling, *, freeze: bool) -> Statement:
        """Return the statement that receives the rows."""

    def finish(self, session: Session, filling: Filling, rows: int) -> Filled | None:
        """Do what remains behind the COPY of so many rows."""

    def check(self, session: Session, filling: Filling, rows: int) -> None:
        """Raise CopyFailed where the table does not hold what was copied, as it must."""

    def held(self, filling: Filling) -> Statement:
        """Return what reads the rows that must be those of the source."""

    @property
    def exchanges(self) -> bool:
        """Return whether these rows lie beside the table, until `finish`."""

    def statements(self, filling: Filling) -> dict[str, Statement]:
        """Return what will run at the dest, by name and in order."""


class _Writes:
    """What strategies have in common that write into the table itself."""

    exchanges = False

    def lock(self, session: Session, filling: Filling) -> None:
        """Lock the table as who writes does."""
        session.execute(copies.lock_for_writing(filling.table, alone=bool(filling.partitions)))

    def finish(self, session: Session, filling: Filling, rows: int) -> Filled | None:
        """Do nothing."""
        return None


class Replace(_Writes):
    """Make the slice what the source has."""

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Delete the slice, or truncate a table that is empty anyway."""
        table = filling.table
        if filling.clear == "truncate":
            # Whoever was writing has ended then, and what was written is looked at.
            session.execute(copies.lock_alone(*_truncated(filling)))
            had_rows = catalog.has_rows(session, table, filling.slice)
            session.execute(copies.truncate(*_truncated(filling)))
            return Cleared(had_rows, None if had_rows else 0, freeze=table.kind == "r")
        if freezes(filling) and _emptied(session, table):
            return Cleared(had_rows=False, rows=0, freeze=True)
        if any(reference.is_deferrable for reference in table.references):
            # Rows that point at the slice have lost nothing when its rows are back at COMMIT.
            session.execute(copies.defer_constraints())
        rows = session.count(copies.delete(table, filling.slice))
        if filling.counts:
            _count(session, filling, 0)
        return Cleared(had_rows=rows > 0, rows=rows)

    def copy_in(self, filling: Filling, *, freeze: bool) -> Statement:
        """Copy into the table."""
        return _copy_in(filling, freeze=freeze)

    def check(self, session: Session, filling: Filling, rows: int) -> None:
        """Count the slice where triggers may have kept, moved, dropped or added rows."""
        if filling.counts:
            session.execute(copies.run_deferred_triggers())
            _count(session, filling, rows)
        elif not filling.table.has_triggers:
            _count_own(session, filling, rows)

    def held(self, filling: Filling) -> Statement:
        """Read the slice: nothing else may be in it."""
        return digests.held(filling.table, filling.columns, filling.slice)

    def statements(self, filling: Filling) -> dict[str, Statement]:
        """Return how the slice is removed and copied."""
        table = filling.table
        if filling.clear == "truncate":
            return {
                "lock": copies.lock_alone(*_truncated(filling)),
                "clear": copies.truncate(*_truncated(filling)),
                "copy_in": _copy_in(filling, freeze=table.kind == "r"),
            }
        return {"clear": copies.delete(table, filling.slice), "copy_in": _copy_in(filling)}


class Fill(Replace):
    """Make a table what the source has that holds no row; nothing is ever removed."""

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Truncate the empty table where that may be, for frozen rows; refuse one that has rows."""
        if freezes(filling) and _emptied(session, filling.table):
            return Cleared(had_rows=False, rows=0, freeze=True)
        if catalog.has_rows(session, filling.table):
            raise PlanRefused(
                f"dest: {filling.table.full_name} holds rows that nobody expected",
                detail="They came since the run began. Nothing was changed.",
                hint="Keep other writers away from it.",
                side="dest",
            )
        return Cleared(had_rows=False, rows=0)


class Append(_Writes):
    """Add what the source has to what is there."""

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Remove nothing."""
        return Cleared(had_rows=False, rows=0)

    def copy_in(self, filling: Filling, *, freeze: bool) -> Statement:
        """Copy into the table."""
        return _copy_in(filling)

    def check(self, session: Session, filling: Filling, rows: int) -> None:
        """Count the rows of this transaction where something may have come between."""
        if filling.counts:
            session.execute(copies.run_deferred_triggers())
        if filling.counts or not filling.table.has_triggers:
            _count_own(session, filling, rows, always=filling.counts)

    def held(self, filling: Filling) -> Statement:
        """Read what this transaction has added."""
        return digests.held_own(filling.table, filling.columns, filling.slice)

    def statements(self, filling: Filling) -> dict[str, Statement]:
        """Return how the rows are copied."""
        return {"copy_in": _copy_in(filling)}


class MergeByKey(_Writes):
    """Insert what is new, update what has changed, and leave alone what is equal."""

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Make the table into which the rows are copied first."""
        session.execute(merges.stage(filling.table, filling.columns))
        had_rows = filling.deletes and catalog.has_rows(session, filling.table, filling.slice)
        return Cleared(had_rows=had_rows, rows=0)

    def copy_in(self, filling: Filling, *, freeze: bool) -> Statement:
        """Copy into the table that was made."""
        return merges.copy_in(filling.columns, filling.format)

    def finish(self, session: Session, filling: Filling, rows: int) -> Filled:
        """Take over what differs.

        Raises CopyFailed for keys that are NULL or there twice, and for identities that would have
        to change.
        """
        merge = _merge_of(filling)
        session.execute(merges.analyze())
        nulls, twice = session.fetch_one(merges.keyless(merge.key))
        if nulls or twice:
            raise _no_key(merge, nulls, twice)
        if merge.fixed:
            differing = session.fetch_one(merges.count_fixed(merge))[0]
            if differing:
                raise _fixed(merge, differing)
        deleted = 0
        if filling.deletes:
            # First, since what goes may hold a value that what comes must have alone.
            deleted = session.count(merges.delete_others(merge, filling.slice))
        try:
            inserted, updated, unwritten = session.fetch_one(merges.merge(merge))
        except CopyFailed as error:
            if error.sqlstate == "23505":  # unique_violation, by another index than the key's
                error.hint = _HANDED_ON
            raise
        table = filling.table
        dropped = unwritten if table.has_triggers or table.has_update_triggers else 0
        return Filled(inserted, updated, deleted, dropped=dropped)

    def check(self, session: Session, filling: Filling, rows: int) -> None:
        """Look for each row where triggers may have changed or dropped some."""
        table = filling.table
        if filling.may_differ or not (table.has_triggers or table.has_update_triggers):
            return
        session.execute(copies.run_deferred_triggers())
        found = session.fetch_one(merges.count_merged(_merge_of(filling)))[0]
        if found != rows:
            raise _triggered(
                f"dest: {table.full_name} holds {found} of the {rows} rows that were merged", table
            )

    def held(self, filling: Filling) -> Statement:
        """Read the rows whose keys were staged."""
        return merges.merged(_merge_of(filling))

    def statements(self, filling: Filling) -> dict[str, Statement]:
        """Return how the rows are staged and merged."""
        merge = _merge_of(filling)
        return {
            "stage": merges.stage(filling.table, filling.columns),
            "copy_in": merges.copy_in(filling.columns, filling.format),
            "analyze": merges.analyze(),
            "check_keys": merges.keyless(merge.key),
            **({"check_identities": merges.count_fixed(merge)} if merge.fixed else {}),
            **({"delete": merges.delete_others(merge, filling.slice)} if filling.deletes else {}),
            "merge": merges.merge(merge),
        }


class Swap:
    """Fill a table beside the old one, or beside the slice's partitions, and exchange them."""

    exchanges = True

    def lock(self, session: Session, filling: Filling) -> None:
        """Keep writers out; the exchange asks for more, and who held more could not get it."""
        swaps.lock(session, filling.replaced)

    def clear(self, session: Session, filling: Filling) -> Cleared:
        """Make the new tables."""
        swaps.check(session, filling.replaced)
        swaps.make(session, filling.replaced)
        had_rows = catalog.has_rows(session, filling.table, filling.slice)
        return Cleared(had_rows, None if had_rows else 0)

    def copy_in(self, filling: Filling, *, freeze: bool) -> Statement:
        """Copy into the new tables, frozen or not as their number asks for."""
        return swaps.copy_in(filling.replaced, filling.columns, filling.format)

    def finish(self, session: Session, filling: Filling, rows: int) -> Filled:
        """Let them take the old ones' place."""
        swaps.exchange(session, filling.replaced, filling.patience)
        oid = catalog.oid(session, filling.table)
        if oid is None or oid == filling.table.oid:
            return Filled()
        return Filled(table=catalog.table(session, oid))

    def check(self, session: Session, filling: Filling, rows: int) -> None:
        """Do nothing: no trigger and no condition has come between."""

    def held(self, filling: Filling) -> Statement:
        """Read the new tables."""
        return swaps.held(filling.replaced, filling.columns)

    def statements(self, filling: Filling) -> dict[str, Statement]:
        """Return how the new tables are made, filled and exchanged with the old ones."""
        copy_in = self.copy_in(filling, freeze=True)
        if filling.script is None:
            return {"copy_in": copy_in}
        return {
            "lock": swaps.locks(filling.replaced),
            "make": filling.script.make,
            "copy_in": copy_in,
            "exchange": filling.script.exchange,
        }


def freezes(filling: Filling) -> bool:
    """Return whether `replace` truncates an empty table, so that COPY may write frozen rows.

    Only for the whole of it: parallel first loads of days would lock each other out. COPY FREEZE
    is refused for partitioned tables, TRUNCATE for tables that are pointed at; a trigger on
    TRUNCATE is somebody's word against it.
    """
    table = filling.table
    return (
        isinstance(filling.slice, Whole)
        and filling.clear == "delete"
        and filling.may_truncate
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
    if catalog.has_rows(session, table) or catalog.sends_truncate(session, table):
        # A subscriber may have rows, and TRUNCATE was not asked for.
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


def _truncated(filling: Filling) -> Sequence[Table | Partition]:
    """Return the table or, for a part of it, the partitions that are this part."""
    if isinstance(filling.slice, Whole):
        return (filling.table,)
    if not filling.partitions:
        raise AssertionError("a part of a table is truncated by its partitions alone")
    return filling.partitions


def _copy_in(filling: Filling, *, freeze: bool = False) -> Statement:
    return copies.copy_in(filling.table, filling.columns, filling.format, freeze=freeze)


def _count(session: Session, filling: Filling, rows: int) -> None:
    """Count what the slice holds now."""
    found = session.fetch_one(copies.count(filling.table, filling.slice))[0]
    if found != rows:
        raise _triggered(
            f"dest: {filling.slice} holds {found} rows where it should hold {rows}", filling.table
        )


def _triggered(message: str, table: Table) -> CopyFailed:
    return CopyFailed(
        message,
        detail=f"Triggers of {table.full_name} change what is deleted or copied. "
        "Nothing was changed.",
        hint="Give --accept triggers if that is meant.",
        side="dest",
    )


def _count_own(session: Session, filling: Filling, rows: int, *, always: bool = False) -> None:
    """Count the copied rows that are in the slice at the dest too: all of them.

    Where nothing but a condition could say otherwise. A system column asks for SELECT on the table.
    """
    table = filling.table
    if not table.rights.select or not (always or isinstance(filling.slice, Where)):
        return
    found = session.fetch_one(copies.count_own(table, filling.slice))[0]
    if found == rows:
        return
    if always:
        raise _triggered(f"dest: {filling.slice} got {found} rows instead of {rows}", table)
    raise CopyFailed(
        f"dest: the condition holds for {found} of the {rows} rows that were copied",
        detail="The two sides do not understand it alike. Nothing was changed.",
        side="dest",
    )


def _merge_of(filling: Filling) -> Merge:
    if filling.merge is None:
        raise AssertionError("a merge is planned with its key")
    return filling.merge


def _no_key(merge: Merge, nulls: int, twice: int) -> CopyFailed:
    """Say how many rows cannot be merged; what is in their keys is the user's own."""
    key = ", ".join(merge.key.columns)
    problems = [f"{nulls} rows have a NULL in it"] if nulls else []
    problems += [f"{twice} keys are there more than once"] if twice else []
    return CopyFailed(
        f"source: the rows cannot be merged by {key}",
        detail=f"{', '.join(problems)}. Nothing was changed.",
        hint="Merge by another key (--key), or read what has one row a key (--query).",
        side="source",
    )


def _fixed(merge: Merge, differing: int) -> CopyFailed:
    """Say how many rows would need another identity than they have at the dest."""
    table, fixed = merge.table.full_name, ", ".join(merge.fixed)
    excluded = " ".join(f"--exclude {name}" for name in merge.fixed)
    return CopyFailed(
        f"dest: {differing} rows of {table} have another {fixed} than at the source",
        detail="It is GENERATED ALWAYS AS IDENTITY, which no UPDATE may set. Nothing was changed.",
        hint=f"{excluded} leaves the dest its own numbers; --mode replace takes the source's.",
        side="dest",
    )


# A unique index is asked row by row, so the order of the rows counts.
_HANDED_ON = (
    "Another row has that value. If rows exchange it, or hand it on: a unique index is looked at "
    "row by row. A DEFERRABLE unique constraint is looked at when all are there; --mode replace "
    "removes the rows first."
)

STRATEGIES: dict[Mode, Strategy] = {
    "replace": Replace(),
    "append": Append(),
    "merge": MergeByKey(),
}

SWAP: Strategy = Swap()
"""How `replace` is done where new tables are to take the old ones' place."""

FILL: Strategy = Fill()
"""How `replace` is done where there is nothing to replace."""
