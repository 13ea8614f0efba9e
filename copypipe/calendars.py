"""What became of each slice of a range: what the ledger tells, and looks at both sides.

Reads only. Whatever the number of slices, each server is asked a handful of questions.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from copypipe import attempts, catalog, comparisons, ledger, plans, slices
from copypipe.comparisons import Part
from copypipe.errors import PlanRefused, Side, UsageError
from copypipe.events import Connected, Listener, Warned, ignore
from copypipe.hazards import check_kinds, check_reading, check_row_security
from copypipe.ledger import Entry, Try
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.slices import Between, Covered, EveryTime, Period, Range
from copypipe.statements import calendars as statements
from copypipe.statements import sessions
from copypipe.statements.ledger import READING, READING_ATTEMPTS
from copypipe.tables import Column, Table

T = TypeVar("T")

State = Literal[
    "copied",
    "open",
    "differs",
    "failed",
    "running",
    "missing",
    "lost",
    "unrecorded",
    "unknown",
    "empty",
]


@dataclass(frozen=True, slots=True)
class Remedy:
    """What helps against some states: a command of ours and its options."""

    why: str
    states: frozenset[State]
    command: str
    options: Sequence[str] = ()


REMEDIES: Sequence[Remedy] = (
    Remedy(
        "copy what is missing, failed, lost or open",
        frozenset({"missing", "failed", "lost", "open"}),
        "backfill",
    ),
    Remedy(
        "compare what differs, and copy it again",
        frozenset({"differs"}),
        "verify",
        ("--repair", "slices"),
    ),
    Remedy(
        "compare what is there and not recorded, and record what is the same",
        frozenset({"unrecorded"}),
        "verify",
        ("--record",),
    ),
)

# A look waits for nobody: who has locked a table may do so for hours.
_PATIENCE = "2s"

# A run that told of its beginning only, and is gone.
DIED = "died"


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last attempt of a slice ended; nothing but its kind is known."""

    error: str
    side: Side | None
    sqlstate: str | None


@dataclass(frozen=True, slots=True)
class Square:
    """One slice of the calendar."""

    period: Period
    """The local days or times that it is."""
    slice: Range
    day: date
    """On which it begins, in the zone of the slices."""
    hour: int
    """How many hours after that day began."""
    state: State
    recorded: int | None
    """Rows of it that the ledger tells of; None where it tells of none, or of other rows too."""
    source_rows: int | None
    """None where nobody has counted."""
    dest_rows: int | None
    failure: Failure | None = None

    @property
    def is_different(self) -> bool:
        """Return whether it was counted, and the dest does not hold what it should."""
        return self.source_rows != self.dest_rows and self.state not in ("open", "running")


@dataclass(frozen=True, slots=True)
class Calendar:
    """The slices of a range of a table, and what became of each."""

    source_table: str
    table: str
    around: Range
    every: EveryTime
    counted: bool
    has_ledger: bool
    """The ledger is there and could be read."""
    squares: tuple[Square, ...]

    @property
    def counts(self) -> Counter[State]:
        """Return how many slices are in each state."""
        return Counter(square.state for square in self.squares)

    def runs(self, states: Collection[State]) -> list[Period]:
        """Return the ranges of neighbouring slices that are in these states."""
        found = self.ranges(lambda square: square.state in states or None)
        return [period for period, _ in found]

    def ranges(self, of: Callable[[Square], T | None]) -> list[tuple[Period, T]]:
        """Return the ranges of neighbouring slices of which the same is true; not of None."""
        found: list[tuple[Period, T]] = []
        before: T | None = None
        for square in self.squares:
            value = of(square)
            if value is not None:
                start = square.period.start
                if value == before:
                    start = found.pop()[0].start
                found.append((Period(start, square.period.stop), value))
            before = value
        return found


def read(
    request: Request, every: EveryTime, *, count: bool = False, listen: Listener = ignore
) -> Calendar:
    """Return what became of each slice of a range; with `count` the rows of both sides are counted.

    Raises UsageError, and PlanRefused where a table or the column is not there or may not be read.
    """
    if not isinstance(request.wanted, Between):
        raise UsageError("a calendar is of a range", hint="Give --from and --to, or --month.")
    attempts.begin(request, listen)
    with attempts.both(request, listen, secrets.token_hex(8), set()) as (source, dest):
        listen(Connected(str(source.address), str(dest.address)))
        with plans.reading(request, source, dest):
            return _read(request, every, source, dest, count=count, listen=listen)


def _read(
    request: Request,
    every: EveryTime,
    source: Session,
    dest: Session,
    *,
    count: bool,
    listen: Listener,
) -> Calendar:
    for session in (source, dest):
        session.execute(sessions.set_local("lock_timeout", _PATIENCE))
    relation = catalog.table(source, catalog.resolve(source, request.table))
    table = catalog.table(dest, catalog.resolve(dest, request.into or request.table))
    if not isinstance(request.wanted, Between):
        raise AssertionError("a calendar is of a range")
    column = plans.slice_column(request.by, relation, "source")
    if column.type_oid in slices.NUMBERS:
        raise PlanRefused(
            f'the slice column "{column.name}" is one of numbers, which no calendar shows',
            hint="backfill and verify take ranges of numbers.",
        )
    # Today is asked for once: it may end meanwhile.
    period = plans.settled(source, request.wanted, request.timezone)
    request = replace(request, wanted=Between(period.start, period.stop))
    around = plans.slice_at(source, relation, request.wanted, request.by, request.timezone)
    if not isinstance(around, Range):
        raise AssertionError("a calendar is of a range")
    column = plans.slice_column(around.column, table, "dest")
    _check_columns(around, column)
    check_kinds(relation, table)
    check_row_security(relation, table)
    check_reading(relation, [around.column])
    if around.column not in table.rights.readable:
        raise PlanRefused(
            f"dest: the role may not read {table.full_name}",
            detail=f"It lacks SELECT ({around.column}).",
            hint=f"GRANT SELECT ({around.column}) ON {table.full_name} TO the role.",
            side="dest",
        )
    parts = list(comparisons.parts(request, every, source, relation, around))
    ranges = [each for part in parts if isinstance(each := part.slice, Range)]
    kind = {
        "signature": None,  # whichever columns were copied
        **ledger.of_source(relation, catalog.server(source), source.address),
    }
    has_ledger, told = _told(dest, table, around, kind, listen)
    marks = [told.of(each) for each in ranges]
    here, there = _Side(source, relation, ranges), _Side(dest, table, ranges)
    if count:
        _count(here, there)
    _probe(here, there, marks, listen)
    places = _places(request, every, source, relation, around, parts)
    squares = tuple(
        _square(part, place, each, mark, here.seen(number), there.seen(number))
        for number, (part, place, each, mark) in enumerate(
            zip(parts, places, ranges, marks, strict=True)
        )
    )
    return Calendar(relation.full_name, table.full_name, around, every, count, has_ledger, squares)


def _check_columns(around: Range, column: Column) -> None:
    if column.name == around.column and column.type_oid == around.type_oid:
        return
    raise PlanRefused(
        f'the slice column "{around.column}" is {column.type_name} at the dest and another type at '
        "the source",
        detail="A slice must mean the same rows on both sides.",
        hint="Slice by another column with --by.",
    )


def _places(
    request: Request,
    every: EveryTime,
    source: Session,
    relation: Table,
    around: Range,
    parts: Sequence[Part],
) -> list[tuple[date, int]]:
    """Return on which day each slice begins, and how many hours after that day did."""
    if every != "hour":
        return [(_day(_period(part)), 0) for part in parts]
    starts = [each.times[0] for part in parts if isinstance(each := part.slice, Range)]
    try:
        found = list(comparisons.parts(request, "day", source, relation, around))
    except UsageError:
        # Between instants no day of the zone is meant: those of UTC are counted.
        return [
            (start.date(), start.hour) if isinstance(start, datetime) else (start, 0)
            for start in starts
        ]
    days = [each.times[0] for part in found if isinstance(each := part.slice, Range)]
    named = [_day(_period(part)) for part in found]
    # A range may begin in the middle of a day, whose hours are those that a clock shows then.
    begins = request.wanted.start if isinstance(request.wanted, Between) else None
    before = begins.hour if isinstance(begins, datetime) else 0
    places = []
    for start in starts:
        place = bisect_right(days, start) - 1
        passed = (start - days[place]) // timedelta(hours=1)
        places.append((named[place], passed + (0 if place else before)))
    return places


def _period(part: Part) -> Period:
    if isinstance(part.wanted, Range):
        return Period(*part.wanted.times)
    if isinstance(part.wanted, Between):
        start, stop = part.wanted.start, part.wanted.stop
        if isinstance(start, date) and isinstance(stop, date):
            return Period(start, stop)
    raise AssertionError("slices have absolute bounds")


def _day(period: Period) -> date:
    return period.start.date() if isinstance(period.start, datetime) else period.start


# ------------------------------------------------------------------------------- the ledger


@dataclass(frozen=True, slots=True)
class Mark:
    """What the ledger tells of a slice."""

    state: Literal["copied", "open", "failed", "running"] | None = None
    """None for nothing that counts."""
    rows: int | None = None
    had_rows: bool = False
    """Some of its rows were recorded, or of what was copied together with it."""
    failure: Failure | None = None
    was_filled: bool = False
    """A table that bore this name and is gone had rows of it."""


class Layers(Generic[T]):
    """What was told last of each instant; what is told later comes first."""

    def __init__(self) -> None:
        self._covered = Covered()
        self._pieces: list[tuple[datetime, datetime, T]] = []
        self._starts: list[datetime] = []

    def add(self, instants: Iterable[Sequence[datetime | None]], value: T) -> bool:
        """Add a value for what has none yet; returns whether that is all of it."""
        is_all = True
        for start, stop in instants:
            free = self._covered.lacking(start, stop)
            is_all = is_all and not self._covered.touches(start, stop)
            self._pieces += [(begin, end, value) for begin, end in free]
            self._covered.add(start, stop)
        return is_all

    def close(self) -> None:
        """Take no more, and be ready to be asked."""
        self._pieces.sort(key=lambda piece: piece[0])
        self._starts = [piece[0] for piece in self._pieces]

    def within(self, start: datetime, stop: datetime) -> Iterator[T]:
        """Yield the values of an interval, in the order of their instants."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        for place in range(first, len(self._pieces)):
            begin, end, value = self._pieces[place]
            if begin >= stop:
                return
            if end > start:
                yield value

    def cover(self, start: datetime, stop: datetime) -> bool:
        """Return whether all of an interval has a value."""
        return self._covered.holds(start, stop)


@dataclass
class Told:
    """All that the ledger tells of a range."""

    entries: Layers[Entry] = field(default_factory=Layers)
    """By the column, of the table that is there."""
    named: Layers[Entry] = field(default_factory=Layers)
    """By the column, of that table and of those that bore its name."""
    tries: Layers[Try] = field(default_factory=Layers)
    intact: set[int] = field(default_factory=set)
    """Which entries (by id()) count with all their rows."""
    running: Covered = field(default_factory=Covered)
    slices: Covered = field(default_factory=Covered)
    """All that was copied by the column, whatever has undone it since."""
    whole: bool = False
    """All rows were copied, by no column."""

    def of(self, around: Range) -> Mark:
        """Return what is told of a slice."""
        intervals = slices.instants(around) or ()
        if not intervals:
            return Mark()
        found = _once(entry for each in intervals for entry in self.entries.within(*each))
        rows = self._rows(found, intervals) if found else None
        had_rows = any(entry.rows for entry in found)
        if any(self.running.touches(*each) for each in intervals):
            return Mark("running", rows, had_rows)
        sealed = all(entry.is_sealed for entry in found)
        if sealed and all(self.entries.cover(*each) for each in intervals):
            return Mark("copied", rows, had_rows)
        failures = [
            failure
            for each in intervals
            for attempt in self.tries.within(*each)
            if (failure := _failure(attempt)) is not None
        ]
        if failures:
            return Mark("failed", rows, had_rows, failures[0])
        if self.whole or any(self.slices.touches(*each) for each in intervals):
            return Mark("open", rows, had_rows)
        before = _once(entry for each in intervals for entry in self.named.within(*each))
        return Mark(was_filled=any(entry.rows for entry in before))

    def _rows(
        self, found: Sequence[Entry], intervals: Sequence[tuple[datetime, datetime]]
    ) -> int | None:
        """Return how many rows these entries tell of, None where some are of other slices."""
        inside = Covered()
        for each in intervals:
            inside.add(*each)
        for entry in found:
            if id(entry) not in self.intact:
                return None
            if not all(inside.holds(*each) for each in entry.instants):
                return None
        return sum(entry.rows for entry in found)


def gathered(entries: Iterable[Entry], tries: Iterable[Try]) -> Told:
    """Return what these tell, the last first."""
    told = Told()
    for entry in entries:
        if entry.is_whole:
            told.whole = told.whole or entry.is_this
            continue
        told.named.add(entry.instants, entry)
        if not entry.is_this:
            continue
        if told.entries.add(entry.instants, entry):
            told.intact.add(id(entry))
        for each in entry.instants if entry.is_slice else ():
            told.slices.add(*each)
    for attempt in tries:
        if attempt.is_alive:
            for each in attempt.instants:
                told.running.add(*each)
        told.tries.add(attempt.instants, attempt)
    for layers in (told.entries, told.named):
        layers.close()
    told.tries.close()
    return told


def _once(entries: Iterable[Entry]) -> list[Entry]:
    return list({id(entry): entry for entry in entries}.values())


def _failure(attempt: Try) -> Failure | None:
    if attempt.state == "failed":
        return Failure(attempt.error or "CopypipeError", attempt.side, attempt.sqlstate)
    if attempt.state == "running" and not attempt.is_alive:
        return Failure(DIED, None, None)
    return None


def _told(
    dest: Session, table: Table, around: Range, kind: Mapping[str, Any], listen: Listener
) -> tuple[bool, Told]:
    """Read the ledger; returns whether that was possible."""
    try:
        if not ledger.reach(dest, READING):
            listen(Warned(f"there is no ledger in {dest.address}: nothing tells what was copied"))
            return False, Told()
    except PlanRefused as error:
        listen(Warned(f"{error.message}: nothing tells what was copied. {error.detail}"))
        return False, Told()
    tries: list[Try] = []
    try:
        ledger.reach(dest, READING_ATTEMPTS)
        tries = ledger.tries(dest, table, around)
    except PlanRefused as error:
        listen(Warned(f"what failed and what is running is not known. {error.detail}"))
    return True, gathered(ledger.entries(dest, table, around, kind), tries)


# --------------------------------------------------------------------------------- both sides


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the rows of a slice on one side."""

    has_rows: bool | None = None
    """None where nobody has looked."""
    rows: int | None = None
    """None where nobody has counted."""


class _Side:
    """One side's table, and what is known of the rows of its slices."""

    def __init__(self, session: Session, table: Table, ranges: Sequence[Range]) -> None:
        self.session = session
        self.table = table
        self._ranges = ranges
        self._seen: dict[int, Seen] = {}

    def seen(self, place: int) -> Seen:
        """Return what is known of a slice."""
        return self._seen.get(place, Seen())

    def ask(self) -> Callable[[], None]:
        """Have the server count all slices; returns what waits for that."""
        pieces = [_pieces(each) for each in self._ranges]
        edges = sorted({edge for each in pieces for piece in each for edge in piece})
        if not edges:
            return lambda: None
        wait = self.session.ask(statements.counted(self.table, self._ranges[0].column, edges))
        places = {edge: place for place, edge in enumerate(edges, 1)}

        def read() -> None:
            rows = {int(place): int(count) for place, count in wait()}
            for number, each in enumerate(pieces):
                found = sum(
                    rows.get(place, 0)
                    for start, stop in each
                    for place in range(places[start], places[stop])
                )
                self._seen[number] = Seen(found > 0, found)

        return read

    def probe(self, wanted: Sequence[int]) -> str | None:
        """Look whether these slices have rows; returns why that was not possible."""
        wanted = [place for place in wanted if self.seen(place).has_rows is None]
        pieces = [(place, piece) for place in wanted for piece in _pieces(self._ranges[place])]
        if not pieces:
            return None
        problem = ""

        def look() -> None:
            nonlocal problem
            problem = self._look(wanted, pieces)

        if not catalog.works(self.session, look, ("55P03",)):  # lock_not_available
            problem = f"{self.table.full_name} is locked"
        return f"{self.session.side}: {problem}" if problem else None

    def _look(self, wanted: Sequence[int], pieces: Sequence[tuple[int, tuple[date, date]]]) -> str:
        """Look whether these slices, which consist of these pieces, have rows."""
        column = self._ranges[0].column
        if catalog.indexes(self.session, self.table, column):
            self.session.execute(sessions.set_local("enable_seqscan", "off"))
            asked = statements.filled(self.table, column, [piece for _, piece in pieces])
            filled = {pieces[place - 1][0] for (place,) in self.session.fetch(asked)}
            self._seen |= {place: Seen(place in filled) for place in wanted}
        elif catalog.is_small(self.session, self.table):
            self.ask()()
            # Counted to look whether there is a row: only --count tells how many.
            self._seen = {place: Seen(seen.has_rows) for place, seen in self._seen.items()}
        elif self.table.kind in "rpm" and not catalog.has_rows(self.session, self.table):
            self._seen |= {place: Seen(False) for place in wanted}
        else:
            return f"no index of {self.table.full_name} serves {column}"
        return ""


def _pieces(around: Range) -> list[tuple[date, date]]:
    """Return the intervals of a slice in the type of its column, without its holes."""
    start, stop = around.times
    edges = [start, *(edge for hole in around.holes for edge in hole), stop]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(start, stop) for start, stop in pairs if start < stop]


def _count(here: _Side, there: _Side) -> None:
    """Count the slices of both sides at once."""
    for read in (here.ask(), there.ask()):
        read()


def _probe(here: _Side, there: _Side, marks: Sequence[Mark], listen: Listener) -> None:
    """Look at the rows of slices of which the ledger does not tell enough."""
    untold = [place for place, mark in enumerate(marks) if mark.state is None]
    filled = [place for place, mark in enumerate(marks) if mark.state == "copied" and mark.had_rows]
    problem = there.probe(sorted([*untold, *filled]))
    if problem is not None:
        listen(Warned(f"{problem}: whether what was copied is still there was not checked"))
    # What was copied together with other slices may never have had a row.
    unsure = [
        place
        for place in filled
        if marks[place].rows is None and there.seen(place).has_rows is False
    ]
    problem = here.probe(sorted([*untold, *unsure]))
    if problem is not None:
        listen(
            Warned(
                f"{problem}: slices of which nothing is recorded were not checked (--count counts "
                "them)"
            )
        )


def _square(
    part: Part, place: tuple[date, int], around: Range, mark: Mark, here: Seen, there: Seen
) -> Square:
    day, hour = place
    return Square(
        period=_period(part),
        slice=around,
        day=day,
        hour=hour,
        state=judged(mark, here, there),
        recorded=mark.rows,
        source_rows=here.rows,
        dest_rows=there.rows,
        failure=mark.failure,
    )


def judged(mark: Mark, here: Seen, there: Seen) -> State:
    """Return the state of a slice: what the ledger tells, and what both sides show."""
    if mark.state in ("running", "failed", "open"):
        return mark.state
    state: State
    if mark.state == "copied":
        is_lost = mark.had_rows and there.has_rows is False
        if is_lost and (mark.rows is not None or here.has_rows):
            return "lost"
        state = "copied"
    elif here.has_rows is False:
        state = "empty"
    elif there.has_rows is False and mark.was_filled:
        return "lost"
    elif here.has_rows is None:
        return "unknown"
    elif there.has_rows:
        state = "unrecorded"
    else:
        return "missing"
    return "differs" if here.rows != there.rows else state
