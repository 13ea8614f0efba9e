"""Both catalogs and a request become a plan: what will be done and why, before anything is changed.

A plan is a value. It holds the statements that will run, and everything that a person may want to
know before they do.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from copypipe import catalog, hazards, modes, readings, relay, slices, tables
from copypipe.addresses import Address
from copypipe.errors import PlanRefused
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.statements import Statement, copies, locks, sessions
from copypipe.tables import Column, Index, Query, Relation, Table

# Rows are sent as a field count of 2 bytes and, for each field, a length of 4 ("Binary Format" in
# the documentation of COPY); the planner's width counts the data alone.
ROW_BYTES = 2
FIELD_BYTES = 4

PAGE_BYTES = 8192

# How long a run waits for locks of others than copypipe (ALTER TABLE, a row that somebody is
# changing): as long as for another run by default, so that nothing hangs for ever.
OTHER_LOCKS = "10min"


R = TypeVar("R", bound=Relation)


@dataclass(frozen=True, slots=True)
class Side(Generic[R]):
    """One side of the plan."""

    address: Address
    server: catalog.Server
    table: R
    """The table; at the source it may be a query instead."""
    access: str
    """How the rows of the slice are found there."""
    rows: str | None = None
    """How many rows the whole table has, in words; None where nobody will be asked about them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One slice, ready to be transferred."""

    source: Side[Relation]
    dest: Side[Table]
    slice: slices.Slice
    columns: tuple[tuple[Column, Column], ...]
    left_out: tuple[Column, ...]
    """Columns that the dest generates itself."""
    excluded: tuple[Column, ...]
    """Columns of the dest that get their defaults, because the request excludes them."""
    request: Request
    estimated_rows: int
    estimated_bytes: int
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""
    warnings: tuple[str, ...]
    needs_yes: bool
    """The rows of a whole table would be replaced, and nobody has agreed to that yet."""
    transport: str
    """What will carry the bytes."""
    may_truncate: bool
    """An empty dest may be truncated: the source cannot be reading it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns that go over, in the dest's order."""
        return tuple(dest.name for _, dest in self.columns)

    @property
    def select(self) -> Statement:
        """Return the query that reads the slice at the source."""
        return copies.select(self.source.table, [of for of, _ in self.columns], self.slice)

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
    table (TRUNCATE) is waited for where locks are waited for. Only --where looks at it, and --all
    without a yes.
    """
    patience = milliseconds(request.wait_lock)
    with (
        source.reading(own_search_path=True, lock_timeout=OTHER_LOCKS),
        dest.reading(own_search_path=True, lock_timeout=patience),
    ):
        relation = _relation(request, source)
        dest_table = catalog.table(dest, catalog.resolve(dest, request.into or request.table))
        source_is, dest_is = catalog.server(source), catalog.server(dest)
        hazards.check_kinds(relation, dest_table)
        _check_tables(request, relation, dest_table, dest_is)
        matching = _matching(request, source, relation, dest_table)
        hazards.check_columns(relation, dest_table, matching, source_is, dest_is)
        may_truncate = _check_apart(request, source, dest, source_is, dest_is, relation, dest_table)
        slice_ = _slice(request, source, relation, matching)
        if request.where is not None and isinstance(relation, Table):
            sides = ((source, relation), (dest, dest_table))
            readings.check_condition(request.where, sides, matching.columns)
        names = [column.name for _, column in matching.columns]
        around = slices.range_of(slice_)
        by = around.column if around else None
        hazards.check_rights(dest_table, names, by, truncate=request.clear == "truncate")
        reads = copies.select(relation, [of for of, _ in matching.columns], slice_)
        reading = catalog.estimate(source, reads)
        if isinstance(relation, Query):
            readings.check_reading(source, reads)
        asks = isinstance(slice_, slices.Whole) and not request.yes
        row_bytes = reading.row_bytes + ROW_BYTES + FIELD_BYTES * len(names)
        serving = catalog.indexes(source, relation, by) if by else ()
        serving_dest = catalog.indexes(dest, dest_table, by) if by else ()
        notes, warnings = _remarks(request, dest_table, source_is, dest_is, slice_)
        if modes.freezes(dest_table, slice_, request.clear, may_truncate=may_truncate):
            notes.append("where the dest has no row it is truncated and filled with frozen rows")
        if around:
            notes += _without_day(source, relation, around, indexed=bool(serving))
        return Plan(
            source=Side(
                source.address,
                source_is,
                relation,
                _source_access(relation, slice_, reading, serving),
                catalog.rows(source, relation) if asks else None,
            ),
            dest=Side(
                dest.address,
                dest_is,
                dest_table,
                _dest_access(dest, dest_table, slice_, serving_dest),
                catalog.rows(dest, dest_table) if asks else None,
            ),
            slice=slice_,
            columns=matching.columns,
            left_out=matching.left_out,
            excluded=matching.excluded,
            request=request,
            estimated_rows=reading.rows,
            estimated_bytes=reading.rows * row_bytes,
            notes=tuple(notes),
            warnings=tuple(warnings),
            needs_yes=asks and catalog.has_rows(dest, dest_table),
            transport=relay.carrier(source, dest, request.transport),
            may_truncate=may_truncate,
        )


def _relation(request: Request, source: Session) -> Relation:
    """Return what is read; empties the search path by which a table's name was resolved."""
    if request.query is None:
        return catalog.table(source, catalog.resolve(source, request.table))
    source.execute(sessions.empty_search_path())
    return readings.query(source, request.query)


def _matching(
    request: Request, source: Session, relation: Relation, dest: Table
) -> tables.Matching:
    computed = readings.computed(source, relation, dest, request.columns)
    excluded = readings.excluded(request.exclude, relation, dest)
    both = sorted(excluded & computed.keys())
    if both:
        raise PlanRefused(f'"{both[0]}" is both computed and excluded')
    return tables.match(relation.columns, dest.columns, computed=computed, excluded=excluded)


def milliseconds(seconds: float) -> str:
    """Return a lock_timeout; 0 becomes the shortest, since to PostgreSQL it means for ever."""
    return f"{max(1, round(seconds * 1000))}ms"


def _check_tables(request: Request, source: Relation, dest: Table, dest_is: catalog.Server) -> None:
    hazards.check_dest(dest_is, dest)
    hazards.check_row_security(source, dest)
    if request.clear == "truncate":
        hazards.check_truncate(dest)


def reread(plan: Plan, session: Session) -> None:
    """Read the source again; raises PlanRefused where it does not fit the plan now.

    Runs in the transaction of the copy, under the locks of what is read: nothing can change any
    more. Time may have passed since the plan was made, waiting for a lock or for a yes.
    """
    planned = plan.source.table
    if isinstance(planned, Query):
        now: Relation = readings.query(session, planned.text)
    else:
        now = catalog.table(session, planned.oid)
        hazards.check_row_security(now, plan.dest.table)
    computed = readings.computed(session, now, plan.dest.table, plan.request.columns)
    if _shape(planned) != _shape(now) or any(
        of.expression is not None and computed[to.name] != of for of, to in plan.columns
    ):
        raise _altered(plan.source, session)


def reread_dest(plan: Plan, session: Session) -> Table:
    """Read the dest's table again and return it; raises PlanRefused as `reread` does."""
    planned = plan.dest.table
    now = catalog.table(session, planned.oid)
    if _shape(planned) != _shape(now):
        raise _altered(plan.dest, session)
    _check_tables(plan.request, plan.source.table, now, plan.dest.server)
    return now


def _shape(of: Relation) -> tuple[object, ...]:
    """Return what a plan relies on."""
    if isinstance(of, Query):
        return (of.columns,)
    return of.full_name, of.kind, of.root_oid, of.columns


def _altered(side: Side[R], session: Session) -> PlanRefused:
    return PlanRefused(
        f"{session.side}: {side.table.full_name} was altered while the copy was prepared",
        hint="Run it again.",
        side=session.side,
    )


# --------------------------------------------------------------------------------- the slice


def _slice(
    request: Request, source: Session, of: Relation, matching: tables.Matching
) -> slices.Slice:
    if isinstance(request.wanted, slices.Everything):
        around: slices.Whole | slices.Range = slices.Whole()
    else:
        around = _range(request, request.wanted, source, of, matching)
    return around if request.where is None else slices.Where(request.where, around)


def _range(
    request: Request,
    wanted: slices.Between,
    source: Session,
    of: Relation,
    matching: tables.Matching,
) -> slices.Range:
    column = _slice_column(request.by, of)
    if not any(at_source is column for at_source, _ in matching.columns):
        raise PlanRefused(
            f'the slice column "{column.name}" is not copied as it is',
            detail="It is computed, excluded, or generated at the dest: what would be cleared is "
            "not what would be copied.",
            hint="Slice by another column with --by.",
        )
    catalog.check_zone(source, request.timezone)
    if slices.is_relative(wanted):
        today = catalog.today(source, request.timezone)
    else:
        today = slices.FIRST_DAY  # not looked at
    period = slices.settle(wanted, today)
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


def _slice_column(name: str, of: Relation) -> Column:
    column = tables.named(name, of.columns)
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


def _check_apart(
    request: Request,
    source: Session,
    dest: Session,
    source_is: catalog.Server,
    dest_is: catalog.Server,
    relation: Relation,
    dest_table: Table,
) -> bool:
    """Refuse one and the same table on both ends: it would be cleared while it is read.

    Returns whether the dest may be truncated: not while a query may read it, which would wait for
    the TRUNCATE that waits for it.
    """
    if isinstance(relation, Query):
        apart = not _same_database(source, dest, source_is, dest_is)
        if request.clear == "truncate" and not apart:
            raise PlanRefused(
                "both sides are one database, where the query may read the table to be truncated",
                hint="Use --clear delete.",
            )
        return apart
    if relation.oid == dest_table.oid and _same_database(source, dest, source_is, dest_is):
        raise PlanRefused(
            f"source and dest are the same table, {dest_table.full_name}",
            detail=f"Both sides are {dest.address}, or the source is a standby of the dest.",
            hint="Name another server, database or --into.",
        )
    return True


def _same_database(
    source: Session, dest: Session, source_is: catalog.Server, dest_is: catalog.Server
) -> bool:
    """Return whether both sides are one database, or the source a standby of the dest.

    Equal identifiers are a suspicion only, a restored clone has them all. So a lock of a random
    key is taken on one side and looked for on the other; a standby does not show its primary's
    locks and is told by its identifiers.
    """
    if source_is.database_oid != dest_is.database_oid:
        return False
    known = source_is.system_identifier is not None and dest_is.system_identifier is not None
    if known and source_is.system_identifier != dest_is.system_identifier:
        return False
    key = secrets.randbits(63)
    source.fetch(locks.try_key(key))
    taken = dest.fetch_one(locks.try_key(key))
    return not taken[0] or (known and source_is.in_recovery)


# ------------------------------------------------------------------------------- remarks


def _source_access(
    of: Relation, slice_: slices.Slice, estimate: catalog.Estimate, serving: Sequence[Index]
) -> str:
    """Say how the planner would find the rows: by index, or by a scan that is paid each time."""
    if isinstance(of, Query) or of.kind in "vf":
        return f"a {of.kind_name}: what reading it costs is its own matter"
    if not isinstance(slice_, slices.Whole) and estimate.indexes:
        # A partitioned table names an index of each partition; its own says the same.
        return f"by index {serving[0].name if serving else estimate.indexes[0]}"
    return _access(of, slice_, serving)


def _dest_access(
    dest: Session, table: Table, slice_: slices.Slice, serving: Sequence[Index]
) -> str:
    """Say the same of the dest, whose planner is asked only about a condition.

    That also shows whether the role may read the columns of the condition.
    """
    if isinstance(slice_, slices.Where):
        estimate = catalog.estimate(dest, copies.count(table, slice_))
        if estimate.indexes:
            return f"by index {estimate.indexes[0]}"
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
    around = slices.range_of(slice_)
    on = around.column if around else "the condition"
    return f"no index on {on}: scans the whole table ({size})"


def _remarks(
    request: Request,
    dest: Table,
    server: catalog.Server,
    dest_is: catalog.Server,
    slice_: slices.Slice,
) -> tuple[list[str], list[str]]:
    """Return notes and warnings about a slice."""
    notes, warnings = [], []
    if dest_is.ignores_triggers:
        warnings.append(
            "session_replication_role is replica at the dest: triggers and foreign keys are skipped"
        )
    elif dest.has_triggers:
        warnings.append(
            f"triggers of {dest.full_name} will run, and may change other tables or what is copied"
        )
    if isinstance(slice_, slices.Where):
        warnings.append(
            "a row that changed so that the condition holds for it only before or only after is "
            "cleared without being copied, or copied beside its old version"
        )
    around = slices.range_of(slice_)
    if around is None:
        notes.append("no other run of copypipe works on the table meanwhile")
        return notes, warnings
    notes += _bounds(around)
    notes.append(
        f"slices of this table by another column than {around.column} are not kept apart from it"
    )
    if around.zone and around.days and not slices.same_zone(request.timezone, server.timezone):
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
    source: Session, of: Relation, slice_: slices.Range, *, indexed: bool
) -> Sequence[str]:
    """Tell of rows that belong to no day, where an index makes asking cheap."""
    if isinstance(of, Query) or not indexed:
        return [f"rows whose {slice_.column} is NULL or infinite: not checked (no index)"]
    empty, infinite = catalog.without_day(source, of, slice_.column)
    found = [what for what, there in (("NULL", empty), ("infinite", infinite)) if there]
    if not found:
        return [f"no row's {slice_.column} is NULL or infinite"]
    return [
        f"rows whose {slice_.column} is {' or '.join(found)} exist at the source; they belong to "
        "no day, only --all copies them"
    ]
