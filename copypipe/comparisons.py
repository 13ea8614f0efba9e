"""Both catalogs and a request become a comparison: which slices, which rows, how they are hashed.

What a plan is to a copy. Nothing is written, so what would only hinder a copy hinders nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from copypipe import catalog, crossings, digests, ledger, plans, slices, tables
from copypipe.addresses import Address
from copypipe.digests import Forms
from copypipe.errors import CopypipeError, PlanRefused, UsageError
from copypipe.hazards import Refusals, check_reading
from copypipe.horizons import Highest
from copypipe.ledger import Ledger
from copypipe.plans import Copied, Found
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.slices import Every, Slice, Wanted
from copypipe.statements import copies
from copypipe.statements import digests as statements
from copypipe.statements.digests import Groups, Rows
from copypipe.tables import Relation, Table

# About as many groups are made of a table without times: the differing ones are looked into, and
# a thousand rows of sums are nothing to a server that hashes millions of others.
_NUMBERED_GROUPS = 1000


# Up to this length a slice is taken apart by hours, else by days: some hundreds of groups.
_SHORT = timedelta(days=31)


@dataclass(frozen=True, slots=True)
class Part:
    """One slice to be compared, and the words that mean it alone."""

    wanted: Wanted
    slice: Slice


@dataclass(frozen=True, slots=True)
class Failed:
    """A slice of many of which nothing came, and why; the dest holds there what it held."""

    slice: Slice
    error: CopypipeError


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two tables and their slices, ready to be compared."""

    request: Request
    relation: Relation
    table: Table
    source_is: catalog.Server
    dest_is: catalog.Server
    source_at: Address
    columns: tuple[Copied, ...]
    """In the dest's order."""
    forms: Forms
    parts: tuple[Part, ...]
    key: tuple[int, ...]
    """The places of the columns that tell a row from all others; none where none do."""
    can_merge: bool
    """The key is one of the dest, by which rows can be merged."""
    groups: Groups | None
    """Into what groups rows are taken apart where they differ."""
    ledger: Ledger
    highest: Highest | None
    """The highest number of the slice's column; None for times."""
    sliced_by: str | None
    """The column by which the dest tells slices of the table apart; None for none yet."""
    signature: str
    is_reversed: bool
    """The source is filled from this dest."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns at the dest."""
        return tuple(column.dest.name for column in self.columns)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Return the names of the key's columns at the dest."""
        return tuple(self.names[place] for place in self.key)

    def sent(self, slice_: Slice) -> Rows:
        """Return the rows of a slice as the source would send them."""
        pairs = [(column.source, column.crossing) for column in self.columns]
        return self.forms.sent(copies.select(self.relation, pairs, slice_))

    def held(self, slice_: Slice) -> Rows:
        """Return the rows of a slice as the dest holds them."""
        return self.forms.held(statements.held(self.table, self.names, slice_))


def make(
    request: Request, every: Every | None, key: Sequence[str], source: Session, dest: Session
) -> Comparison:
    """Read both sides and decide; `every` cuts a range into slices. Changes nothing.

    `key` names columns that tell the rows apart, where that is not the primary key.

    Raises UsageError, and PlanRefused for tables that cannot be compared.
    """
    with plans.reading(request, source, dest):
        refusals = Refusals()
        decided = plans.decide(request, source, dest, refusals, writes=False)
        refusals.check()
        found, columns = decided.found, decided.columns
        check_reading(found.relation, {*plans.read(columns), *decided.compared})
        _check_dest(found.table, {c.dest.name for c in columns} | decided.compared)
        kept = _ledger(dest)
        places, can_merge = _key(key, found, columns)
        return Comparison(
            request=request,
            relation=found.relation,
            table=found.table,
            source_is=found.source_is,
            dest_is=found.dest_is,
            source_at=source.address,
            columns=columns,
            forms=digests.forms([(c.source, c.dest, c.crossing) for c in columns], found.sides),
            parts=tuple(parts(request, every, source, found.relation, decided.slice)),
            highest=plans.highest_number(request, found, decided.slice),
            key=places,
            can_merge=can_merge,
            groups=_groups(request, found, columns, places, decided.slice),
            ledger=kept,
            sliced_by=ledger.sliced_by(dest, found.table) if kept.state == "ready" else None,
            signature=plans.signature(columns, request),
            is_reversed=decided.is_reversed,
        )


def _ledger(dest: Session) -> Ledger:
    """Return the ledger, which is merely asked whether it knows more."""
    try:
        return ledger.look(dest)
    except PlanRefused:
        return Ledger("off")


def _check_dest(table: Table, names: set[str]) -> None:
    lacking = sorted(names - table.rights.readable)
    if lacking:
        raise PlanRefused(
            f"dest: the role may not read {table.full_name}",
            detail=f"It lacks SELECT ({', '.join(lacking)}).",
            hint=f"GRANT SELECT ON {table.full_name} TO the role.",
            side="dest",
        )


def parts(
    request: Request,
    every: Every | None,
    source: Session,
    relation: Relation,
    slice_: Slice,
    most: int | None = slices.MOST_SLICES,
) -> Iterator[Part]:
    """Yield the slices into which `every` cuts a slice, in order; the slice itself for None.

    In an open transaction of the source. Raises UsageError where it cannot be cut so, or into more
    than `most`.
    """
    around = slices.range_of(slice_)
    wanted = request.wanted
    if every is None or around is None or not isinstance(wanted, slices.Between):
        yield Part(_settled(around, wanted), slice_)
        return
    numbers = around.numbers is not None
    if numbers != isinstance(every, int):
        raise UsageError(
            f'slices of the column "{around.column}" cannot be {_long(every)} long',
            hint="Say how many numbers each has: --every 1000000."
            if numbers
            else "Slices of times are an hour, a day, a week or a month long.",
        )
    if isinstance(every, int) or every == "hour":
        cut = slices.of_numbers(around, every) if isinstance(every, int) else slices.hours(around)
        for each in slices.few(cut, most):
            yield Part(each, _narrowed(slice_, each))
        return
    column = next(c for c in relation.columns if c.name == around.column)
    offsets = plans.Zone(source, request.timezone)
    cut_days = slices.split(plans.settled(source, wanted, request.timezone), every)
    periods = list(slices.few(cut_days, most))
    if column.type_oid == slices.TIMESTAMPTZ:
        offsets.foresee([periods[0].start, *(period.stop for period in periods)])
    for period in periods:
        each = plans.of_period(offsets, period, column)
        yield Part(slices.Between(period.start, period.stop), _narrowed(slice_, each))


def _long(every: Every) -> str:
    return (
        f"{every} numbers"
        if isinstance(every, int)
        else f"{'an' if every == 'hour' else 'a'} {every}"
    )


def _settled(around: slices.Range | None, wanted: Wanted) -> Wanted:
    """Return words that mean the same range tomorrow."""
    if around is None or not isinstance(wanted, slices.Between):
        return wanted
    start, stop = around.days or (around.start, around.stop)
    return slices.Between(start, stop)


def _narrowed(slice_: Slice, around: slices.Range) -> Slice:
    return replace(slice_, within=around) if isinstance(slice_, slices.Where) else around


def _key(
    asked: Sequence[str], found: Found, columns: Sequence[Copied]
) -> tuple[tuple[int, ...], bool]:
    """Return what tells a row from all others, and whether the dest knows it for that.

    What was asked for, the dest's primary key, else the source's.
    """
    places = {column.dest.name: place for place, column in enumerate(columns)}
    uniques = catalog.uniques(found.dest, found.table)
    if asked:
        names = [_asked(name, found.table, places) for name in asked]
        known = any({*unique.columns} == {*names} and not unique.hindrance for unique in uniques)
        return tuple(places[name] for name in names), known
    for unique in uniques:
        if unique.is_primary and all(name in places for name in unique.columns):
            found_in = [columns[places[name]] for name in unique.columns]
            # A condition on them has to mean the same on both sides.
            alike = all(c.as_it_is and c.source.name == c.dest.name for c in found_in)
            merges = alike and unique.hindrance is None
            return tuple(places[name] for name in unique.columns), merges
    if not isinstance(found.relation, Table):
        return (), False
    by_source = {
        column.source.renames or column.source.name: place for place, column in enumerate(columns)
    }
    for unique in catalog.uniques(found.source, found.relation):
        if unique.is_primary and all(name in by_source for name in unique.columns):
            return tuple(by_source[name] for name in unique.columns), False
    return (), False


def _asked(name: str, table: Table, places: dict[str, int]) -> str:
    column = tables.named(name, table.columns)
    if column is None or column.name not in places:
        raise PlanRefused(f"--key {name}: no such column is copied into {table.full_name}")
    return column.name


def _groups(
    request: Request,
    found: Found,
    columns: Sequence[Copied],
    key: Sequence[int],
    slice_: Slice,
) -> Groups | None:
    """Return how rows are taken apart: by the hours of the slice, or ranges of a number."""
    around = slices.range_of(slice_)
    name = around.column if around is not None else request.by
    times = {slices.DATE: "date", slices.TIMESTAMP: "timestamp", slices.TIMESTAMPTZ: "timestamptz"}
    for place, column in enumerate(columns):
        if not column.as_it_is:
            continue
        type_oid = column.source.type_oid
        if column.source.name == name and type_oid in times:
            start, stop = around.times if around is not None else (None, None)
            short = start is not None and stop is not None and stop - start <= _SHORT
            return Groups(place, statements.step_for(type_oid, short=short), times[type_oid])
        if around is not None and around.numbers and column.source.name == name:
            first, last = around.numbers
            return Groups(place, str(max(1, (last - first) // _NUMBERED_GROUPS)), "int8")
    relation = found.relation
    if len(key) != 1 or not isinstance(relation, Table):
        return None
    column = columns[key[0]]
    if not column.as_it_is or column.source.value.type.oid not in crossings.INTEGERS:
        return None
    ends = [
        *found.source.fetch_one(statements.bounds(relation, column.source.name)),
        *found.dest.fetch_one(statements.bounds(found.table, column.dest.name)),
    ]
    known = [end for end in ends if end is not None]
    if not known:
        return None
    least, most = min(known), max(known)
    step = max(1, (most - least) // _NUMBERED_GROUPS)
    return Groups(key[0], str(step), "int8")
