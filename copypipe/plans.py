"""Both catalogs and a request become a plan: what will be done and why, before anything is changed.

A plan is a value. It holds the statements that will run, and everything that a person may want to
know before they do.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from copypipe import catalog, hazards, slices, tables
from copypipe.errors import PlanRefused
from copypipe.requests import Request
from copypipe.servers import Address, Session
from copypipe.statements import Statement, copies, locks
from copypipe.tables import Column, Table

# Rows are sent as a field count of 2 bytes and, for each field, a length of 4 ("Binary Format" in
# the documentation of COPY); the planner's width counts the data alone.
ROW_BYTES = 2
FIELD_BYTES = 4

PAGE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the plan."""

    address: Address
    server: catalog.Server
    table: Table
    access: str
    """How the rows of the slice are found there."""
    rows: int | None = None
    """Rows of the whole table, for --all: counted, or the planner's estimate."""
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One slice, ready to be transferred."""

    source: Side
    dest: Side
    slice: slices.Slice
    columns: tuple[tuple[Column, Column], ...]
    left_out: tuple[Column, ...]
    """Columns that the dest generates itself."""
    request: Request
    estimated_rows: int
    estimated_bytes: int
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns that go over, in the dest's order."""
        return tuple(dest.name for _, dest in self.columns)

    @property
    def select(self) -> Statement:
        """Return the query that reads the slice at the source."""
        return copies.select(self.source.table, self.names, self.slice)

    @property
    def copy_out(self) -> Statement:
        """Return the statement that sends the slice."""
        return copies.copy_out(self.select)

    def copy_in(self, *, freeze: bool = False) -> Statement:
        """Return the statement that receives the slice."""
        return copies.copy_in(self.dest.table, self.names, freeze=freeze)

    @property
    def clear(self) -> Statement:
        """Return the statement that makes the slice empty."""
        if self.request.clear == "truncate":
            return copies.truncate(self.dest.table)
        return copies.delete(self.dest.table, self.slice)

    @property
    def replaces_everything(self) -> bool:
        """Return whether rows of the whole table will be removed, which asks for a yes."""
        return isinstance(self.slice, slices.Whole) and bool(self.dest.rows)


def make(request: Request, source: Session, dest: Session) -> Plan:
    """Read both sides and decide; raises PlanRefused and UsageError, changes nothing."""
    with source.reading(own_search_path=True), dest.reading(own_search_path=True):
        source_table = catalog.table(source, catalog.resolve(source, request.table))
        dest_table = catalog.table(dest, catalog.resolve(dest, request.into or request.table))
        source_is, dest_is = catalog.server(source), catalog.server(dest)
        matching = _fitting(source_table, dest_table, source_is, dest_is)
        names = [column.name for _, column in matching.columns]
        whole = isinstance(request.wanted, slices.Everything)
        hazards.check_rights(dest_table, names, truncate=request.clear == "truncate")
        if request.clear == "truncate":
            hazards.check_truncate(dest_table)
        _refuse_same_table(source, dest, source_is, dest_is, source_table, dest_table)
        slice_ = _slice(request, source, source_table, dest_table)
        reading = catalog.estimate(source, copies.select(source_table, names, slice_))
        clearing = catalog.estimate(dest, copies.delete(dest_table, slice_))
        source_rows, source_counted = catalog.rows(source, source_table) if whole else (None, False)
        dest_rows, dest_counted = catalog.rows(dest, dest_table) if whole else (None, False)
        notes, warnings = _remarks(request, source, source_table, source_is, slice_)
        return Plan(
            source=Side(
                source.address,
                source_is,
                source_table,
                _access(source, source_table, slice_, reading),
                source_rows,
                source_counted,
            ),
            dest=Side(
                dest.address,
                dest_is,
                dest_table,
                _access(dest, dest_table, slice_, clearing),
                dest_rows,
                dest_counted,
            ),
            slice=slice_,
            columns=matching.columns,
            left_out=matching.left_out,
            request=request,
            estimated_rows=reading.rows,
            estimated_bytes=reading.rows
            * (reading.row_bytes + ROW_BYTES + FIELD_BYTES * len(matching.columns)),
            notes=tuple(notes),
            warnings=tuple(warnings),
        )


def _fitting(
    source: Table, dest: Table, source_is: catalog.Server, dest_is: catalog.Server
) -> tables.Matching:
    hazards.check_kinds(source, dest)
    hazards.check_dest(dest_is, dest)
    hazards.check_row_security(source, dest)
    matching = tables.match(source.columns, dest.columns)
    hazards.check_columns(source, dest, matching, source_is, dest_is)
    return matching


def reread(plan: Plan, session: Session) -> None:
    """Compare a table with what the plan read; raises PlanRefused where it has changed since.

    Runs in the transaction of the copy, under the table's lock: nothing can change any more.
    """
    side = plan.source if session.side == "source" else plan.dest
    now = catalog.table(session, side.table.oid)
    definition = (side.table.full_name, side.table.kind, side.table.columns)
    if (now.full_name, now.kind, now.columns) != definition:
        raise PlanRefused(
            f"{session.side}: {side.table.full_name} was altered while the copy was prepared",
            hint="Run it again.",
            side=session.side,
        )


# --------------------------------------------------------------------------------- the slice


def _slice(request: Request, source: Session, of: Table, into: Table) -> slices.Slice:
    if isinstance(request.wanted, slices.Everything):
        return slices.Whole()
    column = _slice_column(request.by, of)
    if column.name not in {c.name for c in into.columns}:
        raise PlanRefused(
            f'dest: {into.full_name} has no column "{column.name}" to slice by', side="dest"
        )
    if slices.is_relative(request.wanted):
        today = catalog.today(source, request.timezone)
    else:
        today = slices.FIRST_DAY  # not looked at
    period = slices.settle(request.wanted, today)
    if column.type_oid == slices.DATE:
        return slices.of_date(period, column.name)
    if column.type_oid == slices.TIMESTAMP:
        return slices.of_timestamp(period, column.name)
    return slices.of_timestamptz(
        period,
        column.name,
        request.timezone,
        catalog.offsets(source, request.timezone, period.start),
        catalog.offsets(source, request.timezone, period.stop),
    )


def _slice_column(name: str, of: Table) -> Column:
    """Find the slice column by its name as in SQL, or exactly as in the catalog."""
    folded = name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
    column = of.column(folded) or of.column(name)
    fitting = [c.name for c in of.columns if c.type_oid in _SLICE_TYPES]
    listed = ", ".join(fitting) if fitting else "none"
    if column is None:
        raise PlanRefused(
            f'source: {of.full_name} has no column "{name}" to slice by',
            detail=f"Its date and time columns: {listed}.",
            hint="Name one with --by, or copy --all.",
            side="source",
        )
    if column.type_oid not in _SLICE_TYPES:
        raise PlanRefused(
            f'the slice column "{column.name}" is of type {column.type_name}',
            detail=f"Date and time columns of {of.full_name}: {listed}.",
            hint="A slice is a range of a date, timestamp or timestamptz column.",
        )
    return column


_SLICE_TYPES = (slices.DATE, slices.TIMESTAMP, slices.TIMESTAMPTZ)


# ------------------------------------------------------------------------------ same table


def _refuse_same_table(
    source: Session,
    dest: Session,
    source_is: catalog.Server,
    dest_is: catalog.Server,
    source_table: Table,
    dest_table: Table,
) -> None:
    """Refuse one and the same table on both ends: it would be cleared while it is read.

    Equal identifiers are a suspicion only, a restored clone has them all. So a lock of a random
    key is taken on one side and looked for on the other; a standby does not show its primary's
    locks and is refused by its identifiers.
    """
    if (source_is.database_oid, source_table.oid) != (dest_is.database_oid, dest_table.oid):
        return
    known = source_is.system_identifier is not None and dest_is.system_identifier is not None
    if known and source_is.system_identifier != dest_is.system_identifier:
        return
    key = secrets.randbits(63)
    source.fetch(locks.try_key(key))
    taken = dest.fetch_one(locks.try_key(key))
    shared = not taken[0]
    if shared or (known and source_is.in_recovery):
        raise PlanRefused(
            f"source and dest are the same table, {dest_table.full_name}",
            detail=f"Both sides are {dest.address}."
            if shared
            else "The source is a standby of the dest.",
            hint="Name another server, database or --into.",
        )


# ------------------------------------------------------------------------------- remarks


def _access(
    session: Session, table: Table, slice_: slices.Slice, estimate: catalog.Estimate
) -> str:
    """Say how the rows are found: the index that serves, or the scan that is paid each time."""
    if table.kind in "vf":
        return f"a {table.kind_name}: what reading it costs is its own matter"
    size = f"{_megabytes(table.pages)}, about {max(table.estimated_rows, 0)} rows"
    if isinstance(slice_, slices.Whole):
        return f"the whole table: {size}"
    serving = catalog.indexes(session, table, slice_.column)
    if estimate.indexes:
        # A partitioned table names an index of each partition; its own says the same.
        return f"by index {serving[0].name if serving else estimate.indexes[0]}"
    if serving:
        return f"index {serving[0].name} can serve; the planner prefers to scan ({size})"
    return f"no index on {slice_.column}: scans the whole table ({size})"


def _megabytes(pages: int) -> str:
    return f"{pages * PAGE_BYTES / 1024 / 1024:.1f} MB"


def _remarks(
    request: Request, source: Session, table: Table, server: catalog.Server, slice_: slices.Slice
) -> tuple[list[str], list[str]]:
    """Return notes and warnings about a slice."""
    if isinstance(slice_, slices.Whole):
        return [
            "no other run of copypipe works on the table meanwhile",
            "where the dest has no row it is truncated and filled with frozen rows",
        ], []
    notes = [*_bounds(slice_), *_without_day(source, table, slice_)]
    notes.append(
        f"slices of this table by another column than {slice_.column} are not kept apart from it"
    )
    warnings = []
    if slice_.zone and slice_.days and request.timezone.lower() != server.timezone.lower():
        warnings.append(
            f"days are counted in {request.timezone}, the source's own TimeZone is "
            f"{server.timezone}"
        )
    return notes, warnings


def _bounds(slice_: slices.Range) -> list[str]:
    notes = [f"from {slice_.start} up to, not including, {slice_.stop}"]
    if slice_.days:
        first, after = slice_.days
        number = (after - first).days
        last = after - timedelta(days=1)
        notes[0] += f" ({number} day{'' if number == 1 else 's'}, last {last})"
    if slice_.start == slice_.stop:
        notes.append(f"{slice_.zone} skipped that day: no instant belongs to it")
    notes += [
        f"without {start} to {stop}: the clock went back across midnight there"
        for start, stop in slice_.holes
    ]
    return notes


def _without_day(source: Session, table: Table, slice_: slices.Range) -> Sequence[str]:
    """Tell of rows that belong to no day, where an index makes asking cheap."""
    column = table.column(slice_.column)
    if column is None or not catalog.indexes(source, table, slice_.column):
        return [f"rows whose {slice_.column} is NULL or infinite: not checked (no index)"]
    empty, infinite = catalog.without_day(source, table, slice_.column)
    found = [what for what, there in (("NULL", empty), ("infinite", infinite)) if there]
    if not found:
        return [f"no row's {slice_.column} is NULL or infinite"]
    return [
        f"rows whose {slice_.column} is {' or '.join(found)} exist at the source; they belong to "
        "no day, only --all copies them"
    ]
