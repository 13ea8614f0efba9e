"""Both catalogs and a request become a plan: what will be done and why, before anything is changed.

A plan is a value. It holds the statements that will run, and everything that a person may want to
know before they do.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Generic, TypeVar

from copypipe import (
    catalog,
    crossings,
    digests,
    hazards,
    keys,
    ledger,
    modes,
    privileges,
    readings,
    relay,
    remarks,
    slices,
    swaps,
    tables,
)
from copypipe.addresses import Address
from copypipe.crossings import Crossing, Sides
from copypipe.digests import Forms
from copypipe.errors import CopyFailed, PlanRefused, TransientError
from copypipe.errors import Side as SideName
from copypipe.hazards import Refusals
from copypipe.horizons import Highest
from copypipe.ledger import Ledger
from copypipe.modes import Filling
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.statements import Statement, copies, locks, sessions
from copypipe.statements.merges import Merge
from copypipe.tables import Column, OwnedSequence, Partition, Query, Relation, Table
from copypipe.types import Value, leaves

# Rows are sent as a field count of 2 bytes and, for each field, a length of 4 ("Binary Format" in
# the documentation of COPY); the planner's width counts the data alone.
ROW_BYTES = 2
FIELD_BYTES = 4

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
class Copied:
    """One column that goes over."""

    source: Column
    dest: Column
    crossing: Crossing

    @property
    def as_it_is(self) -> bool:
        """Return whether both sides hold the very same values in it."""
        return (
            self.source.expression is None
            and self.crossing.as_it_is
            and crossings.difference(self.source.value, self.dest.value) is None
            and crossings.sorted_alike(self.source.value, self.dest.value)
            and crossings.modifiers_alike(self.source.value, self.dest.value)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """One slice, ready to be transferred."""

    source: Side[Relation]
    dest: Side[Table]
    slice: slices.Slice
    columns: tuple[Copied, ...]
    """In the dest's order."""
    format: copies.Format
    left_out: tuple[Column, ...]
    """Columns that the dest generates itself."""
    excluded: tuple[Column, ...]
    """Columns of the dest that get their defaults, because the request excludes them."""
    without_source: tuple[Column, ...]
    """Columns of the dest that get their defaults, because the source lacks them."""
    request: Request
    estimated_rows: int
    estimated_bytes: int
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""
    warnings: tuple[str, ...]
    partitions: tuple[Partition, ...]
    """Those that the slice consists of, where they are to be truncated or swapped."""
    sequences: tuple[OwnedSequence, ...]
    """Those that number columns that are copied."""
    merge: Merge | None
    """By which key rows are merged, and how, in that mode."""
    forms: Forms | None
    """How the rows of both sides are hashed, where that is asked for."""
    script: swaps.Script | None
    """What a swap runs around its COPY, as far as it can be told beforehand."""
    needs_yes: bool
    """The rows of a whole table would be replaced, and nobody has agreed to that yet."""
    transport: str
    """What will carry the bytes."""
    may_truncate: bool
    """An empty dest may be truncated: the source cannot be reading it."""
    ledger: Ledger
    """Whether the dest will record what is copied."""
    sliced_by: str | None
    """The column by which the dest tells slices of the table apart; None for none yet."""
    highest: Highest | None = None
    """The highest number of the slice's column; None for times."""
    reversed: bool = False
    """The source is filled from this dest, and the request allows to go against that."""
    refusals: tuple[PlanRefused, ...] = ()
    """What stands in the way of it; a plan that is to be carried out has none."""

    def check(self) -> None:
        """Raise PlanRefused with all that stands in the way."""
        Refusals(self.refusals).check()

    @property
    def signature(self) -> str:
        """Return a hash of what goes over and how; slices of one signature are of one kind."""
        return signature(self.columns, self.request)

    @property
    def has_money(self) -> bool:
        """Return whether one of the columns holds money, on either side."""
        return any(map(_holds_money, self.columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns that go over, in the dest's order."""
        return tuple(column.dest.name for column in self.columns)

    @property
    def select(self) -> Statement:
        """Return the query that reads the slice at the source."""
        return _select(self.source.table, self.columns, self.slice)

    @property
    def copy_out(self) -> Statement:
        """Return the statement that sends the slice."""
        return copies.copy_out(self.select, self.format)

    @property
    def filling(self) -> Filling:
        """Return what the mode's strategy needs to know."""
        of_pages = isinstance(self.slice, slices.Pages)
        return Filling(
            table=self.dest.table,
            # Pages mean something at the source only.
            slice=slices.Whole() if of_pages else self.slice,
            columns=self.names,
            format=self.format,
            clear=self.request.clear,
            may_truncate=self.may_truncate,
            partitions=self.partitions,
            merge=self.merge,
            script=self.script,
            deletes=self.request.merge_deletes,
            may_differ="triggers" in self.request.accept,
            patience=self.request.wait_lock,
        )

    @property
    def strategy(self) -> modes.Strategy:
        """Return how the slice is cleared and filled."""
        if self.request.only_empty:
            return modes.FILL
        return modes.SWAP if self.request.swap else modes.STRATEGIES[self.request.mode]

    @property
    def at_dest(self) -> dict[str, Statement]:
        """Return the statements that will run at the dest, by name and in order."""
        return self.strategy.statements(self.filling)


def signature(columns: Sequence[Copied], request: Request) -> str:
    """Return a hash of what goes over and how; slices of one signature are of one kind."""
    described = [
        (
            column.dest.name,
            column.dest.type_name,
            column.source.type_name,
            column.source.expression,
            column.crossing.decision,
        )
        for column in columns
    ]
    told = json.dumps([described, request.query])
    return hashlib.sha256(told.encode()).hexdigest()


def _select(of: Relation, columns: Sequence[Copied], slice_: slices.Slice) -> Statement:
    return copies.select(of, [(column.source, column.crossing) for column in columns], slice_)


def make(request: Request, source: Session, dest: Session, *, patience: str = OTHER_LOCKS) -> Plan:
    """Read both sides and decide; changes nothing.

    `patience` is how long locks of the source are waited for.

    Raises UsageError, and PlanRefused with all that stands in the way.
    """
    plan = draft(request, source, dest, patience=patience)
    plan.check()
    return plan


def draft(request: Request, source: Session, dest: Session, *, patience: str = OTHER_LOCKS) -> Plan:
    """Make a plan that tells what stands in its way; raises PlanRefused where there can be none.

    Of the dest's table nothing but its catalog is read, so that another run that has locked the
    table (TRUNCATE) is waited for where locks are waited for. Only --where looks at it, and --all
    without a yes.
    """
    refusals = Refusals()
    try:
        with reading(request, source, dest, patience):
            return _drafted(request, source, dest, refusals)
    except (PlanRefused, CopyFailed) as error:
        # What a server says of a side that was refused already follows from that, mostly.
        follows = error.sqlstate and error.side in [refused.side for refused in refusals.all]
        if isinstance(error, PlanRefused) and not follows:
            refusals.add(error)
        if follows or isinstance(error, PlanRefused):
            refusals.check()
        raise


def _drafted(request: Request, source: Session, dest: Session, refusals: Refusals) -> Plan:
    decided = decide(request, source, dest, refusals)
    found, slice_ = decided.found, decided.slice
    # Without them there is nothing that could be said to happen: this refusal ends the plan.
    partitions = _partitions(request, dest, found.table, slice_)
    notes: list[str] = []
    script = None
    if request.swap:
        replaced = swaps.Replaced(found.table, partitions)
        with refusals.gathering():
            # Before what is written, since who may swap a table may write it too.
            swaps.check(dest, replaced)
            script = swaps.script(dest, replaced)
        notes += swaps.remarks(dest, replaced)
    _check_rights(request, decided, refusals)
    forms = None
    if request.verify == "checksum":
        with refusals.gathering():
            forms = digests.forms(
                [(c.source, c.dest, c.crossing) for c in decided.columns], decided.found.sides
            )
    plan = _assembled(request, decided, partitions, refusals)
    notes = [*plan.notes, *_on_freezing(plan), *notes]
    return replace(plan, notes=tuple(notes), forms=forms, script=script, refusals=refusals.all)


def _on_freezing(plan: Plan) -> list[str]:
    """Tell where an empty table is truncated unasked."""
    if plan.strategy is not modes.STRATEGIES["replace"] or not modes.freezes(plan.filling):
        return []
    return [
        "where the dest has no row, and no publication sends that on, it is truncated and filled "
        "with frozen rows: who reads it waits for the end of the copy"
    ]


@contextmanager
def reading(
    request: Request, source: Session, dest: Session, patience: str = OTHER_LOCKS
) -> Iterator[None]:
    """Run the block in a read-only transaction of each side, in which names can be resolved."""
    with (
        source.reading(own_search_path=True, lock_timeout=patience),
        dest.reading(own_search_path=True, lock_timeout=milliseconds(request.wait_lock)),
    ):
        yield


def part(plan: Plan, request: Request, slice_: slices.Slice, *, of: int) -> Plan:
    """Return the plan of a slice that is one of so many parts of the plan's own.

    What was found out about the whole holds for each; what it costs, on average.
    """
    return replace(
        plan,
        request=request,
        slice=slice_,
        estimated_rows=plan.estimated_rows // of,
        estimated_bytes=plan.estimated_bytes // of,
        notes=(),
        warnings=(),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """Both sides while the plan is made, in a transaction each."""

    source: Session
    dest: Session
    relation: Relation
    table: Table
    source_is: catalog.Server
    dest_is: catalog.Server

    @property
    def sides(self) -> Sides:
        """Return what the meaning of values depends on besides their types."""
        return Sides(self.source_is.surroundings, self.dest_is.surroundings)


@dataclass(frozen=True, slots=True)
class Decided:
    """What will go where, before anybody asks what it costs and whether the roles may."""

    found: Found
    matching: tables.Matching
    columns: tuple[Copied, ...]
    slice: slices.Slice
    compared: frozenset[str]
    """Columns by which the rows of the slice are found."""
    merge: Merge | None
    is_reversed: bool


def decide(
    request: Request, source: Session, dest: Session, refusals: Refusals, *, writes: bool = True
) -> Decided:
    """Decide what goes where, by the catalogs alone: within `reading`.

    Gathers what stands in the way, but for what the roles may not; raises PlanRefused and
    UsageError where nothing can be decided. Where nothing `writes`, only reading counts.
    """
    relation = _relation(request, source)
    table = catalog.table(dest, catalog.resolve(dest, request.into or request.table))
    found = Found(source, dest, relation, table, catalog.server(source), catalog.server(dest))
    matching = _matched(request, found, refusals, writes=writes)
    columns = _copied(request, found, matching)
    if _same_database(found):
        _check_apart(request, found, columns)
    slice_ = _slice(request, source, relation, columns)
    is_reversed = ledger.receives(source, relation, table, found.dest_is, dest.address)
    if is_reversed and writes and not request.allow_reverse:
        refusals.add(hazards.reversed_sides(relation, table))
    compared = set()
    if (around := slices.range_of(slice_)) is not None:
        compared.add(around.column)
    if request.where is not None and isinstance(relation, Table):
        sides = ((source, relation, found.source_is), (dest, table, found.dest_is))
        plain = [(column.source, column.dest) for column in columns if column.as_it_is]
        compared |= readings.check_condition(request.where, sides, plain)
    merge = None
    if request.mode == "merge":
        into = [column.dest for column in columns]
        merge = keys.merge(table, catalog.uniques(dest, table), request.key, into)
        with refusals.gathering():
            hazards.check_updates(table, merge.updates, request.accept)
    return Decided(found, matching, columns, slice_, frozenset(compared), merge, is_reversed)


def _partitions(
    request: Request, dest: Session, table: Table, slice_: slices.Slice
) -> tuple[Partition, ...]:
    """Return the partitions to truncate or to swap; raises PlanRefused where they are no slice."""
    if not (request.clear == "truncate" or request.swap) or not isinstance(slice_, slices.Range):
        return ()
    found = catalog.partitions(dest, table, slice_)
    hazards.check_partitions(table, slice_, found, truncate=not request.swap)
    return found


def _check_rights(request: Request, decided: Decided, refusals: Refusals) -> None:
    """Refuse a role that lacks what the source, or the mode at the dest, needs."""
    found, compared, merge = decided.found, decided.compared, decided.merge
    hazards.check_reading(found.relation, {*read(decided.columns), *compared})
    names = [column.dest.name for column in decided.columns]
    if merge is not None:
        with refusals.gathering():
            hazards.check_staging(found.dest_is)
    with refusals.gathering():
        hazards.check_rights(
            found.table,
            names,
            privileges.looked_at(request, names, compared),
            removes=privileges.removes(request),
            updates=merge.updates if merge is not None else (),
            whole=privileges.reads_own_rows(request, found.table),
        )
    with refusals.gathering():
        drawn = catalog.drawn(found.dest, found.table, decided.matching.left_to_defaults)
        hazards.check_drawn(drawn)


def read(columns: Sequence[Copied]) -> list[str]:
    """Return the source's columns that are read by name; what SQL of the user reads is its own."""
    return [
        column.source.renames or column.source.name
        for column in columns
        if column.source.expression is None or column.source.renames is not None
    ]


def _assembled(
    request: Request,
    decided: Decided,
    partitions: tuple[Partition, ...],
    refusals: Refusals,
) -> Plan:
    """Ask what the copy will cost and what is worth knowing, and put the plan together."""
    found, matching, columns = decided.found, decided.matching, decided.columns
    slice_ = decided.slice
    source, dest, relation, table = found.source, found.dest, found.relation, found.table
    reads = _select(relation, columns, slice_)
    _check_sent(source, reads, columns)
    reading = catalog.estimate(source, reads)
    if isinstance(relation, Query):
        readings.check_reading(source, reads)
    around = slices.range_of(slice_)
    by = around.column if around else None
    serving = catalog.indexes(source, relation, by) if by else ()
    serving_dest = catalog.indexes(dest, table, by) if by else ()
    kept, sliced_by = _ledger(request, dest, table)
    if request.mode == "append":
        with refusals.gathering():
            _check_new(request, kept, dest, table, slice_)
    notes, warnings = remarks.notes_and_warnings(
        request, table, found.source_is, found.dest_is, slice_, matching
    )
    more_notes, more_warnings = remarks.of_ledger(kept, sliced_by, slice_, found.source_is)
    notes += more_notes
    warnings += more_warnings
    warnings += [
        f"{column.dest.name}: {column.crossing.warning}"
        for column in columns
        if column.crossing.warning is not None
    ]
    notes += _needless(request, columns)
    copied = {column.dest.name for column in columns}
    numbering = tuple(s for s in catalog.sequences(dest, table) if s.column in copied)
    if request.sequences:
        with refusals.gathering():
            hazards.check_sequences(numbering)
    else:
        notes += remarks.of_sequences(numbering)
    may_truncate = _reads_nothing_of_dest(relation, columns)
    if request.clear == "truncate" and not may_truncate:
        warnings.append(
            "what is read must not read the table that is truncated, through a view or another "
            "server: the two would wait for each other"
        )
    highest = highest_number(request, found, slice_)
    if highest is not None and highest.why is not None and kept.records:
        notes.append(f"it stays open: {highest.why}")
    if around and not around.numbers:
        notes += remarks.without_day(source, relation, around, indexed=bool(serving))
    removes = (request.mode == "replace" and not request.only_empty) or request.merge_deletes
    access = remarks.source_access(relation, slice_, reading, serving)
    dest_access = remarks.dest_access(dest, table, slice_, serving_dest, clears=removes)
    warnings += remarks.of_scan("source", relation, access)
    warnings += remarks.of_scan("dest", table, dest_access) if removes else []
    warnings += remarks.of_key(decided.merge, around)
    warnings += remarks.of_accepted(request, table, clears=removes)
    more_notes, more_warnings = remarks.of_upkeep(table, catalog.upkeep(dest, table))
    notes += more_notes
    warnings += more_warnings
    warnings += _gaps(found, around, refusals, indexed=bool(serving))
    asks = isinstance(slice_, slices.Whole) and removes and not request.yes
    return Plan(
        source=Side(
            source.address,
            found.source_is,
            relation,
            access,
            catalog.rows(source, relation) if asks else None,
        ),
        dest=Side(
            dest.address,
            found.dest_is,
            table,
            dest_access,
            catalog.rows(dest, table) if asks else None,
        ),
        slice=slice_,
        columns=columns,
        format=_format(columns),
        left_out=matching.left_out,
        excluded=matching.excluded,
        without_source=matching.without_source,
        request=request,
        estimated_rows=reading.rows,
        estimated_bytes=reading.rows * (reading.row_bytes + ROW_BYTES + FIELD_BYTES * len(columns)),
        notes=tuple(notes),
        warnings=tuple(warnings),
        needs_yes=asks and catalog.has_rows(dest, table),
        transport=relay.carrier(source, dest, request.transport),
        may_truncate=may_truncate,
        partitions=partitions,
        sequences=numbering,
        merge=decided.merge,
        forms=None,
        script=None,
        ledger=kept,
        sliced_by=sliced_by,
        highest=highest,
        reversed=decided.is_reversed,
    )


def highest_number(request: Request, found: Found, slice_: slices.Slice) -> Highest | None:
    """Return the highest number that the source has given, for a slice of numbers."""
    around = slices.range_of(slice_)
    if around is None or not around.numbers:
        return None
    return catalog.highest(found.source, found.relation, around.column, ascending=request.ascending)


def _gaps(
    found: Found,
    around: slices.Range | None,
    refusals: Refusals,
    *,
    indexed: bool,
) -> list[str]:
    """Refuse rows for which the dest has no partition, or warn of them where no index finds any."""
    gaps = catalog.gaps(found.dest, found.table, around) if around is not None else ()
    if not gaps or around is None:
        return []
    if indexed and isinstance(found.relation, Table):
        between = [
            gap
            for gap in gaps
            if catalog.has_rows(
                found.source,
                found.relation,
                replace(around, start=gap.start, stop=gap.stop, days=None),
            )
        ]
        with refusals.gathering():
            hazards.check_gaps(found.table, around, between)
        return []
    listed = ", ".join(map(str, gaps))
    return [
        f"{found.table.full_name} has no partition for {around.column} {listed}: a row there would "
        "fail the copy"
    ]


def _ledger(request: Request, dest: Session, table: Table) -> tuple[Ledger, str | None]:
    """Return whether the ledger can be used, and what it says of the table's slices.

    Also a run that records nothing keeps apart from those that do.
    """
    try:
        found = ledger.look(dest)
    except PlanRefused:
        if request.ledger:
            raise
        found = Ledger("off")
    column = ledger.sliced_by(dest, table) if found.state == "ready" else None
    return (found if request.ledger else Ledger("off")), column


def _check_new(
    request: Request, kept: Ledger, dest: Session, table: Table, slice_: slices.Slice
) -> None:
    """Refuse to append what may be there already, or where nothing can tell.

    Of many slices those that are there are left out, each by itself.
    """
    check_ledger(request, kept)
    if kept.state == "ready" and not (request.again or request.skip):
        ledger.check_new(dest, table, slice_)


def check_ledger(request: Request, kept: Ledger) -> None:
    """Refuse to append where a ledger is meant to tell of it and cannot be used."""
    if request.mode == "append" and request.ledger and not kept.records:
        raise PlanRefused(
            "dest: nothing can tell whether the rows were appended before",
            detail=f"The ledger cannot be used: {kept.problem}.",
            hint="Give --no-ledger if it is you who makes sure of that.",
            side="dest",
        )


def _relation(request: Request, source: Session) -> Relation:
    """Return what is read; empties the search path by which a table's name was resolved."""
    if request.query is None:
        return catalog.table(source, catalog.resolve(source, request.table))
    source.execute(sessions.empty_search_path())
    # As a file ends, or a line for psql.
    return readings.query(source, request.query.rstrip().removesuffix(";"))


def _matched(
    request: Request, found: Found, refusals: Refusals, *, writes: bool
) -> tables.Matching:
    """Pair the columns of both sides; raises PlanRefused for whatever does not fit."""
    relation, table = found.relation, found.table
    hazards.check_kinds(relation, table)
    with refusals.gathering():
        if writes:
            _check_tables(request, relation, table, found.dest_is)
        else:
            hazards.check_row_security(relation, table)
    computed = readings.computed(found.source, relation, table, request.columns)
    excluded = readings.excluded(request.exclude, relation, table)
    both = sorted(excluded & computed.keys())
    if both:
        raise PlanRefused(f'"{both[0]}" is both computed and excluded')
    return tables.match(relation.columns, table.columns, computed=computed, excluded=excluded)


def _copied(request: Request, found: Found, matching: tables.Matching) -> tuple[Copied, ...]:
    """Decide how each column goes over; raises PlanRefused for whatever does not fit."""
    relation, table = found.relation, found.table
    names = [to.name for _, to in matching.columns]
    cast = readings.asked(request.cast, table, names, option="--cast")
    lossy = readings.asked(request.allow_lossy, table, names, option="--allow-lossy")
    if both := sorted(cast & lossy):
        raise PlanRefused(f'"{both[0]}" was given to both --cast and --allow-lossy')
    sides = found.sides

    def asked(name: str) -> crossings.Asked:
        return "cast" if name in cast else "lossy" if name in lossy else None

    decided = [
        (of, crossings.decide(of.value, to.value, sides, asked(to.name)))
        for of, to in matching.columns
    ]
    columns = [
        Copied(of, to, crossing)
        for (of, to), crossing in zip(
            matching.columns, readings.castable(found.source, relation, decided), strict=True
        )
    ]
    if _format(columns) == "text":
        columns = [_in_text_format(column, columns, sides) for column in columns]
    may_be_cast = [
        to.name
        for (of, to), (_, crossing) in zip(matching.columns, decided, strict=True)
        if crossing.decision == "refuse"
        and asked(to.name) is None
        and crossings.decide(of.value, to.value, sides, "cast").decision != "refuse"
    ]
    hazards.check_columns(
        relation,
        table,
        matching,
        {column.dest.name: column.crossing for column in columns},
        never_null={
            c.name for c in matching.left_to_defaults if not catalog.takes_null(found.dest, c.value)
        },
        may_be_cast=may_be_cast,
    )
    return tuple(columns)


def _in_text_format(column: Copied, columns: Sequence[Copied], sides: Sides) -> Copied:
    """Refuse what may go in binary only, since another column has the whole go in text format."""
    why = crossings.unsafe_as_text(column.dest.value, sides)
    if _holds_money(column) and any(
        other.source.expression is not None
        or (_holds_money(other) and other.crossing.into is not None)
        for other in columns
    ):
        why = "in text format lc_monetary is pinned, and what is computed or cast depends on it"
    if why is None or column.crossing.decision == "refuse":
        return column
    return replace(column, crossing=Crossing("refuse", why))


def _holds_money(column: Copied) -> bool:
    parts = (*leaves(column.source.value), *leaves(column.dest.value))
    return any(leaf.type.oid == crossings.MONEY for leaf in parts)


def _format(columns: Sequence[Copied]) -> copies.Format:
    """Return the format of the whole COPY: text as soon as one column needs it."""
    by_text = any(column.crossing.decision == "text format" for column in columns)
    return "text" if by_text else "binary"


def _check_sent(source: Session, reads: Statement, columns: Sequence[Copied]) -> None:
    """Have the source describe what will be sent: it must be what was decided about.

    Raises PlanRefused where it is not.
    """
    sent = catalog.described(source, source.describe(reads))
    for column, value in zip(columns, sent, strict=True):
        meant = column.crossing.into or column.source.value
        if crossings.difference(value, meant) is not None:
            raise PlanRefused(
                f'source: "{column.dest.name}" would be sent as {value.name}',
                detail=f"It was to be {meant.name}.",
                hint="Cast it by --column.",
                side="source",
            )


def milliseconds(seconds: float) -> str:
    """Return a lock_timeout; 0 becomes the shortest, since to PostgreSQL it means for ever."""
    return f"{max(1, round(seconds * 1000))}ms"


def _check_tables(request: Request, source: Relation, dest: Table, dest_is: catalog.Server) -> None:
    refusals = Refusals()
    whole = request.replaces_whole
    with refusals.gathering():
        hazards.check_dest(dest_is, dest, alone=isinstance(request.wanted, slices.Pages))
    with refusals.gathering():
        hazards.check_row_security(source, dest)
    with refusals.gathering():
        if request.clear == "truncate" or request.swap:
            hazards.check_truncate(dest, whole=whole and not request.swap)
        elif (request.mode == "replace" and not request.only_empty) or request.merge_deletes:
            merging = request.mode == "merge"
            hazards.check_references(dest, request.accept, merging=merging, whole=whole)
    refusals.check()


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
        column.source.expression is not None and computed[column.dest.name] != column.source
        for column in plan.columns
    ):
        raise _altered(plan.source.table, session)
    _check_sent(session, plan.select, plan.columns)


def reread_dest(plan: Plan, session: Session) -> Table:
    """Read the dest's table again and return it; raises PlanRefused as `reread` does.

    Raises TransientError where another run has swapped what is planned for: a new try makes a new
    plan.
    """
    planned = plan.dest.table
    if catalog.oid(session, planned) not in (None, planned.oid):
        raise _swapped(planned)
    now = catalog.table(session, planned.oid)
    if _shape(planned) != _shape(now):
        raise _altered(plan.dest.table, session)
    _check_tables(plan.request, plan.source.table, now, plan.dest.server)
    if plan.merge is not None:
        hazards.check_updates(now, plan.merge.updates, plan.request.accept)
    partitions = _partitions(plan.request, session, now, plan.slice)
    for part, before in zip(partitions, plan.partitions, strict=False):
        if part != before and replace(part, oid=before.oid) == before:
            raise _swapped(part)
    if partitions != plan.partitions:
        raise _altered(plan.dest.table, session)
    return now


def _swapped(of: Table | Partition) -> TransientError:
    return TransientError(
        f"dest: another run has swapped {of.full_name} while the copy was prepared",
        hint="Run it again.",
        side="dest",
    )


def check_types(plan: Plan, source: Session, dest: Session) -> None:
    """Read both sides' types once more after the copy; raises PlanRefused where they changed.

    No lock keeps a user's type as it is, so the fields of a row type may have been renamed while
    the run waited for a lock. Built-in types do not change. What else happened to the source's
    table since then does not matter.
    """
    values = [value for c in plan.columns for value in (c.source.value, c.dest.value)]
    if all(value.type.built_in for value in values):
        return
    _check_values(plan.dest, dest, {c.dest.name: c.dest.value for c in plan.columns})
    plain = {c.source.name: c.source.value for c in plan.columns if c.source.expression is None}
    with source.reading(lock_timeout=OTHER_LOCKS):
        _check_values(plan.source, source, plain)


def _check_values(side: Side[R], session: Session, values: Mapping[str, Value]) -> None:
    if not isinstance(side.table, Table):
        return
    now = {column.name: column.value for column in catalog.table(session, side.table.oid).columns}
    if any(now.get(name, value) != value for name, value in values.items()):
        raise _altered(side.table, session)


def _shape(of: Relation) -> tuple[object, ...]:
    """Return what a plan relies on."""
    columns = [replace(column, number=0, has_default=False) for column in of.columns]
    if isinstance(of, Query):
        return (columns,)
    return of.full_name, of.kind, of.root_oid, columns


def _altered(of: Relation, session: Session) -> PlanRefused:
    return PlanRefused(
        f"{session.side}: {of.full_name} was altered while the copy was prepared",
        hint="Run it again.",
        side=session.side,
    )


# --------------------------------------------------------------------------------- the slice


def _slice(
    request: Request, source: Session, of: Relation, columns: Sequence[Copied]
) -> slices.Slice:
    if isinstance(request.wanted, slices.Pages):
        return request.wanted
    if isinstance(request.wanted, slices.Everything):
        around: slices.Whole | slices.Range = slices.Whole()
    else:
        around = _range(request, request.wanted, source, of, columns)
    return around if request.where is None else slices.Where(request.where, around)


def _range(
    request: Request,
    wanted: slices.Between | slices.Range,
    source: Session,
    of: Relation,
    columns: Sequence[Copied],
) -> slices.Range:
    column = slice_column(request.by, of, "source")
    copied = next((each for each in columns if each.source is column), None)
    if copied is not None and not (copied.as_it_is or _keeps_numbers(copied)):
        raise PlanRefused(
            f'the slice column "{column.name}" is {column.type_name} at the source and '
            f"{copied.dest.type_name} at the dest",
            detail="A slice must mean the same rows on both sides, so its column is never cast.",
            hint="Slice by another column with --by, or copy --all.",
        )
    if copied is None:
        raise PlanRefused(
            f'the slice column "{column.name}" is not copied as it is',
            detail="It is computed, renamed, excluded, or generated at the dest: both sides must "
            "have it.",
            hint="Slice by another column with --by, or give it its name at the dest by "
            '--query "SELECT column AS name, ...".',
        )
    if isinstance(wanted, slices.Range):
        if wanted.type_oid != column.type_oid:
            raise _altered(of, source)
        return wanted
    if column.type_oid in slices.NUMBERS:
        return _of_numbers(wanted, column)
    period = settled(source, wanted, request.timezone)
    return of_period(Zone(source, request.timezone), period, column)


def slice_at(
    session: Session, of: Table, wanted: slices.Wanted, by: str, zone: str
) -> slices.Whole | slices.Range:
    """Return the slice of a table of one side, where the other one is not asked.

    Today and the zone are those of that side. Raises UsageError, and PlanRefused as for a plan.
    """
    if isinstance(wanted, slices.Everything | slices.Pages):
        return slices.Whole()
    if isinstance(wanted, slices.Range):
        return wanted
    column = slice_column(by, of, session.side)
    if column.type_oid in slices.NUMBERS:
        return _of_numbers(wanted, column)
    return of_period(Zone(session, zone), settled(session, wanted, zone), column)


def _keeps_numbers(column: Copied) -> bool:
    """Return whether a range of numbers is the same one on both sides, whatever their width."""
    types = {column.source.type_oid, column.dest.type_oid}
    source = column.source
    plain = source.expression is None and source.renames in (None, column.dest.name)
    return types <= {*slices.NUMBERS} and plain and source.name == column.dest.name


def _of_numbers(wanted: slices.Between, column: Column) -> slices.Range:
    """Return the slice of a column of whole numbers; raises PlanRefused for days and times."""
    start, stop = wanted.start, wanted.stop
    if isinstance(start, int) and isinstance(stop, int):
        return slices.Range(column.name, column.type_oid, start, stop, zone=None)
    raise PlanRefused(
        f'the slice column "{column.name}" is of type {column.type_name}, and the range is one of '
        "time",
        hint="Give numbers, such as --from 0 --to 1000000, or slice by another column with --by.",
    )


def settled(session: Session, wanted: slices.Between, zone: str) -> slices.Period:
    """Return the range with days counted from today by the server's clock.

    Raises UsageError, and PlanRefused for a range of numbers.
    """
    if isinstance(wanted.start, int):
        raise PlanRefused(
            "the slice column is a date or time, and the range is one of numbers",
            detail=f"{wanted.start} is no day.",
            hint="Days are written 2018-04-29; a column of whole numbers is named with --by.",
        )
    catalog.check_zone(session, zone)
    today = slices.FIRST_DAY  # not looked at
    if slices.is_relative(wanted):
        today = catalog.today(session, zone)
    return slices.settle(wanted, today)


class Zone:
    """The offsets of a zone as a server knows them, asked for each bound once."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name
        self._known: dict[date, slices.Offsets] = {}
        self._foreseen: list[slices.Offsets] = []

    def foresee(self, bounds: Sequence[date]) -> None:
        """Ask for the offsets around many bounds at once; they are in order."""
        self._foreseen = catalog.all_offsets(self._session, self.name, bounds)

    def around(self, bound: date) -> slices.Offsets:
        """Return the offsets that decide at which instant a local day or time is."""
        start, stop = slices.window(bound)
        place = bisect_right(self._foreseen, start, key=lambda each: each.changes[0][0]) - 1
        if place >= 0 and stop <= self._foreseen[place].stop:
            return self._foreseen[place].within(start, stop)
        if bound not in self._known:
            # Days come in order, and each begins where the one before it ends.
            self._known = {bound: catalog.offsets(self._session, self.name, bound)}
        return self._known[bound]


def of_period(zone: Zone, period: slices.Period, column: Column) -> slices.Range:
    """Return the slice that a range of days or times means for a column."""
    if column.type_oid == slices.DATE:
        return slices.of_date(period, column.name)
    if column.type_oid == slices.TIMESTAMP:
        return slices.of_timestamp(period, column.name)
    at_start = zone.around(period.start)
    return slices.of_timestamptz(period, column.name, zone.name, at_start, zone.around(period.stop))


def slice_column(name: str, of: Relation, side: SideName) -> Column:
    """Return the column by which a relation is sliced; raises PlanRefused where it cannot be."""
    column = tables.named(name, of.columns)
    fitting = [c.name for c in of.columns if c.type_oid in _SLICE_TYPES]
    listed = ", ".join(fitting) if fitting else "none"
    if column is None:
        raise PlanRefused(
            f'{side}: {of.full_name} has no column "{name}" to slice by',
            detail=f"Its columns of dates, times and whole numbers: {listed}.",
            hint="Name one with --by, or take all rows.",
            side=side,
        )
    if column.type_oid not in _SLICE_TYPES:
        raise PlanRefused(
            f'the slice column "{column.name}" is of type {column.type_name}',
            detail=f"Columns of {of.full_name} that have one: {listed}.",
            hint="A slice is a range of a date, timestamp, timestamptz or integer column.",
        )
    return column


_SLICE_TYPES = (slices.DATE, slices.TIMESTAMP, slices.TIMESTAMPTZ, *slices.NUMBERS)


# ------------------------------------------------------------------------------ same table


def _check_apart(request: Request, found: Found, columns: Sequence[Copied]) -> None:
    """Refuse one table on both ends of one database: it would be cleared while it is read."""
    relation, table = found.relation, found.table
    if isinstance(relation, Table) and relation.oid == table.oid:
        raise PlanRefused(
            f"source and dest are the same table, {table.full_name}",
            detail="Both sides are one database, or the source is a standby of the dest.",
            hint="Name another server, database or --into.",
        )
    if request.clear == "truncate" and not _reads_nothing_of_dest(relation, columns):
        raise PlanRefused(
            "both sides are one database, where what is read may read the table to be truncated",
            detail="The two would wait for each other.",
            hint="Use --clear delete.",
        )


def _needless(request: Request, columns: Sequence[Copied]) -> list[str]:
    """Tell of columns that were named to be cast and need not be."""
    named = {*request.cast, *request.allow_lossy}
    return [
        f"{column.dest.name} goes over without what --cast or --allow-lossy would do"
        for column in columns
        if any(tables.named(name, [column.dest]) for name in named)
        and not column.crossing.by_request
    ]


def _reads_nothing_of_dest(relation: Relation, columns: Sequence[Copied]) -> bool:
    """Return whether the source is plain tables, so that it cannot wait for a TRUNCATE at the dest.

    A query, a view, a foreign table or a lookup may read the dest's table, in the same database or
    through another server, where no timeout of ours applies.
    """
    plain = (
        isinstance(relation, Table)
        and relation.kind in "rpm"
        and not relation.has_children
        and not relation.has_foreign_parts
    )
    return plain and all(column.source.expression is None for column in columns)


def _same_database(found: Found) -> bool:
    """Return whether both sides are one database, or the source a standby of the dest.

    Equal identifiers are a suspicion only, a restored clone has them all. So a lock of a random
    key is taken on one side and looked for on the other; a standby does not show its primary's
    locks and is told by its identifiers.
    """
    source_is, dest_is = found.source_is, found.dest_is
    if source_is.database_oid != dest_is.database_oid:
        return False
    known = source_is.system_identifier is not None and dest_is.system_identifier is not None
    if known and source_is.system_identifier != dest_is.system_identifier:
        return False
    key = secrets.randbits(63)
    found.source.fetch(locks.try_key(key))
    taken = found.dest.fetch_one(locks.try_key(key))
    return not taken[0] or (known and source_is.in_recovery)
