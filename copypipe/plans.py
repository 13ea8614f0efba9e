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
from copypipe.addresses import Address
from copypipe.errors import PlanRefused
from copypipe.modes import freezable
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.statements import Statement, copies, locks
from copypipe.tables import Column, Index, Table

# Rows are sent as a field count of 2 bytes and, for each field, a length of 4 ("Binary Format" in
# the documentation of COPY); the planner's width counts the data alone.
ROW_BYTES = 2
FIELD_BYTES = 4

PAGE_BYTES = 8192

# How long a run waits for locks of others than copypipe (ALTER TABLE, a row that somebody is
# changing): as long as for another run by default, so that nothing hangs for ever.
OTHER_LOCKS = "10min"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the plan."""

    address: Address
    server: catalog.Server
    table: Table
    access: str
    """How the rows of the slice are found there."""
    rows: str | None = None
    """How many rows the whole table has, in words; None where nobody will be asked about them."""


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
    needs_yes: bool
    """The rows of a whole table would be replaced, and nobody has agreed to that yet."""

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


def make(request: Request, source: Session, dest: Session) -> Plan:
    """Read both sides and decide; raises PlanRefused and UsageError, changes nothing.

    Of the dest's table nothing but its catalog is read, so that another run that has locked the
    table (TRUNCATE) is waited for where locks are waited for. Only --all without a yes looks at
    its rows.
    """
    patience = milliseconds(request.wait_lock)
    with (
        source.reading(own_search_path=True, lock_timeout=OTHER_LOCKS),
        dest.reading(own_search_path=True, lock_timeout=patience),
    ):
        source_table = catalog.table(source, catalog.resolve(source, request.table))
        dest_table = catalog.table(dest, catalog.resolve(dest, request.into or request.table))
        source_is, dest_is = catalog.server(source), catalog.server(dest)
        hazards.check_kinds(source_table, dest_table)
        _check_tables(request, source_table, dest_table, dest_is)
        matching = tables.match(source_table.columns, dest_table.columns)
        hazards.check_columns(source_table, dest_table, matching, source_is, dest_is)
        _refuse_same_table(source, dest, source_is, dest_is, source_table, dest_table)
        slice_ = _slice(request, source, source_table, matching)
        names = [column.name for _, column in matching.columns]
        by = slice_.column if isinstance(slice_, slices.Range) else None
        hazards.check_rights(dest_table, names, by, truncate=request.clear == "truncate")
        reading = catalog.estimate(source, copies.select(source_table, names, slice_))
        asks = by is None and not request.yes
        row_bytes = reading.row_bytes + ROW_BYTES + FIELD_BYTES * len(names)
        serving = catalog.indexes(source, source_table, by) if by else ()
        serving_dest = catalog.indexes(dest, dest_table, by) if by else ()
        notes, warnings = _remarks(request, dest_table, source_is, dest_is, slice_)
        if isinstance(slice_, slices.Range):
            notes += _without_day(source, source_table, slice_, indexed=bool(serving))
        return Plan(
            source=Side(
                source.address,
                source_is,
                source_table,
                _source_access(source_table, slice_, reading, serving),
                catalog.rows(source, source_table) if asks else None,
            ),
            dest=Side(
                dest.address,
                dest_is,
                dest_table,
                _access(dest_table, slice_, serving_dest),
                catalog.rows(dest, dest_table) if asks else None,
            ),
            slice=slice_,
            columns=matching.columns,
            left_out=matching.left_out,
            request=request,
            estimated_rows=reading.rows,
            estimated_bytes=reading.rows * row_bytes,
            notes=tuple(notes),
            warnings=tuple(warnings),
            needs_yes=asks and catalog.has_rows(dest, dest_table),
        )


def milliseconds(seconds: float) -> str:
    """Return a lock_timeout; 0 becomes the shortest, since to PostgreSQL it means for ever."""
    return f"{max(1, round(seconds * 1000))}ms"


def _check_tables(request: Request, source: Table, dest: Table, dest_is: catalog.Server) -> None:
    hazards.check_dest(dest_is, dest)
    hazards.check_row_security(source, dest)
    if request.clear == "truncate":
        hazards.check_truncate(dest)


def reread(plan: Plan, session: Session) -> Table:
    """Read a table again and return it; raises PlanRefused where it does not fit the plan now.

    Runs in the transaction of the copy, under the table's lock: its columns cannot change any
    more. Time may have passed since the plan was made, waiting for a lock or for a yes.
    """
    side = plan.source if session.side == "source" else plan.dest
    now = catalog.table(session, side.table.oid)
    planned, found = ((t.full_name, t.kind, t.root_oid, t.columns) for t in (side.table, now))
    if planned != found:
        raise PlanRefused(
            f"{session.side}: {side.table.full_name} was altered while the copy was prepared",
            hint="Run it again.",
            side=session.side,
        )
    if session.side == "source":
        hazards.check_row_security(now, plan.dest.table)
    else:
        _check_tables(plan.request, plan.source.table, now, side.server)
    return now


# --------------------------------------------------------------------------------- the slice


def _slice(request: Request, source: Session, of: Table, matching: tables.Matching) -> slices.Slice:
    if isinstance(request.wanted, slices.Everything):
        return slices.Whole()
    column = _slice_column(request.by, of)
    if column.name not in {at_dest.name for _, at_dest in matching.columns}:
        raise PlanRefused(
            f'dest: the slice column "{column.name}" is generated there',
            detail="What would be cleared is not what would be copied.",
            side="dest",
        )
    catalog.check_zone(source, request.timezone)
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
            else "The source is a standby, and has the dest's system identifier.",
            hint="Name another server, database or --into.",
        )


# ------------------------------------------------------------------------------- remarks


def _source_access(
    table: Table, slice_: slices.Slice, estimate: catalog.Estimate, serving: Sequence[Index]
) -> str:
    """Say how the planner would find the rows: by index, or by a scan that is paid each time."""
    if table.kind in "vf":
        return f"a {table.kind_name}: what reading it costs is its own matter"
    if isinstance(slice_, slices.Range) and estimate.indexes:
        # A partitioned table names an index of each partition; its own says the same.
        return f"by index {serving[0].name if serving else estimate.indexes[0]}"
    return _access(table, slice_, serving)


def _access(table: Table, slice_: slices.Slice, serving: Sequence[Index]) -> str:
    """Say which index can serve the slice, or what a scan reads."""
    size = f"{table.pages * PAGE_BYTES / 1024 / 1024:.1f} MB"
    if table.estimated_rows >= 0:
        size += f", about {table.estimated_rows} rows"
    if isinstance(slice_, slices.Whole):
        return f"the whole table: {size}"
    if serving:
        return f"index {serving[0].name} can serve; a scan would read {size}"
    return f"no index on {slice_.column}: scans the whole table ({size})"


def _remarks(
    request: Request,
    dest: Table,
    server: catalog.Server,
    dest_is: catalog.Server,
    slice_: slices.Slice,
) -> tuple[list[str], list[str]]:
    """Return notes and warnings about a slice."""
    warnings = []
    if dest_is.ignores_triggers:
        warnings.append(
            "session_replication_role is replica at the dest: triggers and foreign keys are skipped"
        )
    elif dest.has_triggers:
        warnings.append(
            f"triggers of {dest.full_name} will run, and may change other tables or what is copied"
        )
    if isinstance(slice_, slices.Whole):
        notes = ["no other run of copypipe works on the table meanwhile"]
        if request.clear == "delete" and freezable(dest):
            notes.append("where the dest has no row it is truncated and filled with frozen rows")
        return notes, warnings
    notes = _bounds(slice_)
    notes.append(
        f"slices of this table by another column than {slice_.column} are not kept apart from it"
    )
    if slice_.zone and slice_.days and not slices.same_zone(request.timezone, server.timezone):
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


def _without_day(
    source: Session, table: Table, slice_: slices.Range, *, indexed: bool
) -> Sequence[str]:
    """Tell of rows that belong to no day, where an index makes asking cheap."""
    if not indexed:
        return [f"rows whose {slice_.column} is NULL or infinite: not checked (no index)"]
    empty, infinite = catalog.without_day(source, table, slice_.column)
    found = [what for what, there in (("NULL", empty), ("infinite", infinite)) if there]
    if not found:
        return [f"no row's {slice_.column} is NULL or infinite"]
    return [
        f"rows whose {slice_.column} is {' or '.join(found)} exist at the source; they belong to "
        "no day, only --all copies them"
    ]
