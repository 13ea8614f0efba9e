"""Which rows of a table one copy moves: the words people use, the bounds they mean, the locks.

Every range is half-open, ``[start, stop)``, of times or of whole numbers. A day of a
``timestamptz`` column is the set of instants whose local date in the slice's zone is that day. It
is found from the zone's offsets as the source itself knows them (`Offsets`), and sent to both sides
as absolute literals, so that the two servers need not agree on the zone's rules. Pure: no clock, no
server, no zone database.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import total_ordering
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from copypipe.errors import PlanRefused, UsageError

# OIDs of the types on which a slice can be a range of days (pg_type.dat).
DATE = 1082
TIMESTAMP = 1114
TIMESTAMPTZ = 1184

# Those on which it can be a range of numbers: int2, int4, int8; and what the widest of them holds.
NUMBERS = (21, 23, 20)
_LEAST, _GREATEST = -(2**63), 2**63 - 1

# PostgreSQL allows displacements up to 15:59:59 (MAX_TZDISP_HOUR in timestamp.h), so every instant
# whose local time is X lies within 16 hours of X read as UTC.
WIDEST_OFFSET = timedelta(hours=16)

# Python's calendar ends at the years 1 and 9999; a year less leaves room for any offset.
FIRST_DAY = date(2, 1, 1)
LAST_DAY = date(9998, 12, 31)

# A slice longer than this locks the whole table instead of each of its days: 1,000 keys fit in the
# lock table of a server with default settings (max_locks_per_transaction 64 x 100 connections).
LONGEST_KEYED = timedelta(days=1000)

T = TypeVar("T")

# Up to 99,999 days, some 270 years.
_RELATIVE = re.compile(r"-(\d{1,5})d")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")
_MONTH = re.compile(r"(\d{4})-(\d{2})")
_NUMBER = re.compile(r"[+-]?\d+(_\d+)*")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")

Bound = date | datetime | int
"""A local day, a local time without offset, an instant with one; or a number."""


def plain(value: date) -> date:
    """Return a day or time in the standard library's own class; an instant of another in UTC.

    Classes that are derived from these, such as pendulum's, have an arithmetic of their own.
    """
    if type(value) in (date, datetime):
        return value
    if not isinstance(value, datetime):
        return date(value.year, value.month, value.day)
    zone = None if value.tzinfo is None else UTC
    at = value if zone is None else value.astimezone(zone)
    return datetime(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, zone)


@dataclass(frozen=True, slots=True)
class DaysAgo:
    """A day counted back from today in the slice's zone, by the source's clock."""

    days: int


@dataclass(frozen=True, slots=True)
class Everything:
    """All rows of the table, those without a time included."""


@dataclass(frozen=True, slots=True)
class Between:
    """A range as it was asked: ``[start, stop)`` of the slice column."""

    start: Bound | DaysAgo
    stop: Bound | DaysAgo


@dataclass(frozen=True, slots=True)
class Period:
    """A range of time whose relative days are settled: ``[start, stop)`` of days or times."""

    start: date
    stop: date


def parse_day(text: str) -> date | DaysAgo:
    """Return the day that `text` names: an ISO date, today, yesterday or -3d.

    Raises UsageError for anything else, and for days outside FIRST_DAY to LAST_DAY.
    """
    word = text.strip().lower()
    if word == "today":
        return DaysAgo(0)
    if word == "yesterday":
        return DaysAgo(1)
    if relative := _RELATIVE.fullmatch(word):
        return DaysAgo(int(relative[1]))
    day = None
    if _DAY.fullmatch(word):
        with suppress(ValueError):
            day = date.fromisoformat(word)
    if day is None:
        raise UsageError(
            f"not a day: {text!r}",
            hint="Days are written 2018-04-29, today, yesterday or -3d.",
        )
    return _within_calendar(day)


def parse_bound(text: str) -> Bound | DaysAgo:
    """Return the day, time or number that `text` names.

    Times are ISO 8601, with or without an offset. Raises UsageError for anything else.
    """
    word = text.strip()
    if _NUMBER.fullmatch(word):
        return _within_numbers(int(word))
    if word.lower() in ("today", "yesterday") or _RELATIVE.fullmatch(word) or _DAY.fullmatch(word):
        return parse_day(word)
    moment = None
    if _TIME.match(word):
        with suppress(ValueError):
            moment = datetime.fromisoformat(word)
    if moment is None:
        raise UsageError(
            f"neither a day, a time nor a number: {text!r}",
            hint="Write 2018-04-29, 2018-04-29T10:00, 2018-04-29T10:00+02:00, or 1000000.",
        )
    _within_calendar(moment.date())
    return moment


def _within_numbers(value: int) -> int:
    if not _LEAST <= value <= _GREATEST:
        raise UsageError(
            f"number out of range: {value}", detail=f"Numbers lie between {_LEAST} and {_GREATEST}."
        )
    return value


def parse_range(text: str) -> Wanted:
    """Return the range that `text` names: a day, two bounds such as 2018-04-01..2018-05-01, or all.

    The second bound is exclusive. Raises UsageError for anything else.
    """
    start, dots, stop = text.partition("..")
    if dots:
        return Between(parse_bound(start), parse_bound(stop))
    return Everything() if text.strip().lower() == "all" else day(parse_day(text))


def day(value: date | DaysAgo) -> Between:
    """Return the range of one day; raises UsageError for a time, which is no day."""
    if isinstance(value, DaysAgo):
        return Between(value, DaysAgo(value.days - 1))
    if isinstance(value, datetime):
        raise UsageError(
            f"a day was expected and {value} is a time", hint="Give a date, or a range of times."
        )
    return Between(_within_calendar(value), value + timedelta(days=1))


def month(text: str) -> Between:
    """Return the range of a month written 2018-04; raises UsageError for anything else."""
    found = _MONTH.fullmatch(text.strip())
    try:
        first = date(int(found[1]), int(found[2]), 1) if found else None
    except ValueError:
        first = None
    if first is None:
        raise UsageError(f"not a month: {text!r}", hint="Months are written 2018-04.")
    _within_calendar(first)
    following = (first + timedelta(days=32)).replace(day=1)
    return Between(first, following)


def zone_name(text: str) -> str:
    """Return `text` if it has the form of a time zone's name; raises UsageError.

    Whether there is such a zone is the source's to say (`needs_listing`).
    """
    if not _ZONE.fullmatch(text):
        raise UsageError(
            f"not the name of a time zone: {text!r}",
            hint="Use a name such as UTC, Europe/Vienna or Etc/GMT-2.",
        )
    return text


# Names of one zone without a change (tzdata, "etcetera" and "backward"); a server whose machine
# keeps UTC may call it by any of them.
_UTC_NAMES = frozenset(
    {"utc", "etc/utc", "uct", "etc/uct", "zulu", "etc/zulu", "universal", "etc/universal"}
    | {"gmt", "etc/gmt", "greenwich", "etc/greenwich"}
)


def same_zone(one: str, other: str) -> bool:
    """Return whether two names mean the same zone, as far as names can tell."""
    one, other = one.lower(), other.lower()
    return one == other or {one, other} <= _UTC_NAMES


def needs_listing(zone: str) -> bool:
    """Return whether the zone must be looked up in the server's list of names.

    PostgreSQL also takes POSIX specifications (UTC+2, Foo5), whose sign means the opposite of what
    ISO 8601 means by it, and abbreviations of one offset (IST, which is that of three countries).
    Neither has both a slash and no digit, as most zones have; reading the list takes the server
    a tenth of a second.
    """
    plain = "/" in zone and not any(c.isdigit() for c in zone)
    return not plain and zone.upper() != "UTC"


def _within_calendar(value: date, last: date = LAST_DAY) -> date:
    day = value.date() if isinstance(value, datetime) else value
    if not FIRST_DAY <= day <= last:
        raise UsageError(
            f"day out of range: {day}", detail=f"Days lie between {FIRST_DAY} and {LAST_DAY}."
        )
    return value


def settle(wanted: Between, today: date) -> Period:
    """Replace days counted from today by dates; raises UsageError for an empty range."""

    def fixed(bound: Bound | DaysAgo, last: date) -> date:
        if isinstance(bound, DaysAgo):
            bound = today - timedelta(days=bound.days)
        if isinstance(bound, int):
            raise AssertionError("numbers are settled")
        _within_calendar(bound, last)
        return bound

    after_last = LAST_DAY + timedelta(days=1)  # ends are exclusive
    period = Period(fixed(wanted.start, LAST_DAY), fixed(wanted.stop, after_last))
    check_order(Between(period.start, period.stop))
    return period


EveryTime = Literal["hour", "day", "week", "month"]
Every = EveryTime | int
"""Of a range of numbers, how many of them."""

# A decade of hours. More at once are a mistake in the words, or better done in parts.
MOST_SLICES = 100_000


def parse_every(text: str) -> Every:
    """Return what a range is to be cut into; raises UsageError for anything else."""
    word = text.strip().lower()
    if word in get_args(EveryTime):
        return cast("EveryTime", word)
    if _NUMBER.fullmatch(word) and int(word) > 0:
        return int(word)
    raise UsageError(
        f"not a length of slices (--every): {text!r}",
        hint="Slices are an hour, day, week or month long; those of a column of whole numbers have "
        "so many numbers: 1000000.",
    )


class TooMany(UsageError):
    """A range is cut into more slices than anybody means to have."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the range has more than {most} slices",
            hint="Give a shorter range, or longer slices (--every).",
        )


def few(parts: Iterable[T], most: int | None = MOST_SLICES) -> Iterator[T]:
    """Yield the parts; raises TooMany for more than that, None for any number."""
    for number, part in enumerate(parts):
        if number == most:
            raise TooMany(most)
        yield part


def split(period: Period, every: EveryTime) -> Iterator[Period]:
    """Yield the parts of a range that days, weeks (from Monday) and months cut it into.

    Raises UsageError for a range between instants, whose days depend on an offset.
    """
    if _is_aware(period.start) or _is_aware(period.stop):
        raise UsageError(
            f"a range between instants has no {every}s of its own",
            hint="Give days, or times without an offset.",
        )
    start = period.start
    while _as_datetime(start) < _as_datetime(period.stop):
        following = _following(start, every)
        stop = following if _as_datetime(following) < _as_datetime(period.stop) else period.stop
        yield Period(start, stop)
        start = stop


def _following(bound: date, every: EveryTime) -> date:
    """Return the next day on which a part begins."""
    today = bound.date() if isinstance(bound, datetime) else bound
    if every == "month":
        return (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    days = 7 - today.weekday() if every == "week" else 1
    return today + timedelta(days=days)


def hours(around: Range) -> Iterator[Range]:
    """Yield the hours of a range, counted from its start; raises UsageError for a date column."""
    start, stop = around.start, around.stop
    if not isinstance(start, datetime) or not isinstance(stop, datetime):
        raise UsageError(f'the slice column "{around.column}" is a date, which has no hours')
    while start < stop:
        after = min(start + timedelta(hours=1), stop)
        yield _cut(around, start, after)
        start = after


def of_numbers(around: Range, every: int) -> Iterator[Range]:
    """Yield the parts of a range of numbers, counted from its start."""
    start, stop = around.numbers or (0, 0)
    for first in range(start, stop, every):
        yield replace(around, start=first, stop=min(first + every, stop))


def _cut(around: Range, start: date, stop: date) -> Range:
    """Return the part of a range between two of its times."""
    holes = tuple(
        (max(first, start), min(last, stop))
        for first, last in around.holes
        if isinstance(start, datetime)
        and isinstance(stop, datetime)
        and max(first, start) < min(last, stop)
    )
    days = (start, stop) if around.type_oid == DATE else None
    return replace(around, start=start, stop=stop, days=days, holes=holes)


def halves(around: Range, shortest: timedelta | int) -> tuple[Range, Range] | None:
    """Return both halves of a range, None where they would be shorter than that.

    Cut at a whole second, between two dates, or between two numbers. A number counts the seconds of
    times; a length of time says nothing of numbers.
    """
    if numbers := around.numbers:
        first, last = numbers
        if not isinstance(shortest, int) or last - first < max(2, 2 * shortest):
            return None
        among = first + (last - first) // 2
        return replace(around, stop=among), replace(around, start=among)
    start, stop = around.times
    if isinstance(shortest, int):
        shortest = timedelta(seconds=shortest)
    if stop - start < 2 * shortest:
        return None
    half = (stop - start) / 2
    if isinstance(start, datetime):
        half = timedelta(seconds=half // timedelta(seconds=1))
    middle = start + half
    if not start < middle < stop:
        return None
    return _cut(around, start, middle), _cut(around, middle, stop)


def is_relative(wanted: Wanted) -> bool:
    """Return whether the source must be asked for today's date."""
    return isinstance(wanted, Between) and (
        isinstance(wanted.start, DaysAgo) or isinstance(wanted.stop, DaysAgo)
    )


def check_order(wanted: Wanted) -> None:
    """Raise UsageError where the range is empty or reversed, as far as its words can tell."""
    if not isinstance(wanted, Between):
        return
    start, stop = wanted.start, wanted.stop
    if isinstance(start, int) or isinstance(stop, int):
        if not (isinstance(start, int) and isinstance(stop, int)):
            raise UsageError(
                f"a range from {_written(start)} to {_written(stop)} is neither of times nor of "
                "numbers"
            )
        empty = start >= stop
    elif isinstance(start, DaysAgo) and isinstance(stop, DaysAgo):
        empty = start.days <= stop.days
    elif isinstance(start, DaysAgo) or isinstance(stop, DaysAgo):
        return
    elif _is_aware(start) != _is_aware(stop):
        return  # only the zone can tell
    else:
        empty = _as_datetime(start) >= _as_datetime(stop)
    if empty:
        raise _empty(start, stop)


def _empty(start: object, stop: object) -> UsageError:
    return UsageError(
        f"the range is empty: from {_written(start)} to {_written(stop)}",
        hint="The end is exclusive: "
        + (
            "--from 0 --to 1000 is up to 999."
            if isinstance(start, int)
            else "--from 2018-04-01 --to 2018-05-01 is all of April."
        ),
    )


def _written(bound: object) -> str:
    if isinstance(bound, DaysAgo):
        return {0: "today", 1: "yesterday"}.get(bound.days, f"-{bound.days}d")
    return str(bound)


def _is_aware(bound: date) -> bool:
    return isinstance(bound, datetime) and bound.tzinfo is not None


def _as_datetime(bound: date) -> datetime:
    if isinstance(bound, datetime):
        return bound
    return datetime(bound.year, bound.month, bound.day)  # noqa: DTZ001 - a local midnight


# ---------------------------------------------------------------------------------- the slice


@dataclass(frozen=True, slots=True)
class Whole:
    """Every row."""

    def __str__(self) -> str:
        return "all rows"


Edge = date | int


@dataclass(frozen=True, slots=True)
class Range:
    """The rows whose `column` lies in ``[start, stop)`` and in none of `holes`.

    `start` and `stop` are dates for a date column, datetimes without a zone for timestamp and in
    UTC for timestamptz; numbers for integers.
    """

    column: str
    type_oid: int
    start: Edge
    stop: Edge
    zone: str | None
    """The zone the days were counted in; None where the column's type has no zone."""
    days: tuple[date, date] | None = None
    """The local days that were asked for, ``[first, after the last)``; None for times."""
    holes: tuple[tuple[datetime, datetime], ...] = ()
    """Instants of a neighbouring day inside: the clock went back across midnight."""

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Return its ends if it is a range of numbers."""
        if isinstance(self.start, int) and isinstance(self.stop, int):
            return self.start, self.stop
        return None

    @property
    def times(self) -> tuple[date, date]:
        """Return the ends of a range of times."""
        if isinstance(self.start, int) or isinstance(self.stop, int):
            raise AssertionError("the range is one of numbers")
        return self.start, self.stop

    def __str__(self) -> str:
        if self.days is None:
            return f"[{self.start}, {self.stop})"
        first, after = self.days
        return f"[{first}, {after})" + (f" {self.zone}" if self.zone else "")


@dataclass(frozen=True, slots=True)
class Where:
    """The rows of `within` for which a condition of the user holds."""

    condition: str
    """One SQL expression, checked to be one on both sides."""
    within: Whole | Range

    def __str__(self) -> str:
        words = " ".join(self.condition.split())
        shown = words if len(words) <= _SHOWN else words[: _SHOWN - 3] + "..."
        where = f"where {shown}"
        return f"{self.within} {where}" if isinstance(self.within, Range) else where


# A line of a log names the slice; plans and JSON show the whole condition.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Pages:
    """The rows that lie in the pages ``[start, stop)`` of one table of the source.

    None stands for no bound. Without the tables that inherit from it, which have pages of their
    own; of a partitioned table the pages of some of its partitions are meant. A row stays where it
    is within one snapshot only, that of the run `of`; so at the dest a part is what its transaction
    wrote.
    """

    start: int | None = None
    stop: int | None = None
    of: str = ""
    limit: int | None = None
    """Not more rows than that, for a rehearsal; None for all."""
    partitions: tuple[tuple[str, str], ...] = ()
    """Schemas and names of those that are read; none for the table itself."""

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            what = "all pages"
        else:
            what = f"pages [{self.start or 0}, {'' if self.stop is None else self.stop})"
        if self.partitions:
            what += f" of {', '.join('.'.join(name) for name in self.partitions)}"
        most = "" if self.limit is None else f", {self.limit} rows at most"
        return f"{what}{most} in the snapshot of run {self.of}" if self.of else f"{what}{most}"


Slice = Whole | Range | Where | Pages

Wanted = Everything | Between | Range | Pages
"""What was asked for: in words, or a slice that is settled."""


def range_of(slice_: Slice) -> Range | None:
    """Return the range in which all rows of the slice lie, None where there is none."""
    around = slice_.within if isinstance(slice_, Where) else slice_
    return around if isinstance(around, Range) else None


def instants(slice_: Slice) -> tuple[tuple[datetime, datetime], ...] | None:
    """Return the intervals ``[start, stop)`` of UTC in which the slice's rows lie, None for all.

    Times without a zone are read as UTC.
    """
    found = extent(slice_)
    return cast("tuple[tuple[datetime, datetime], ...] | None", found.intervals)


class Extent(NamedTuple):
    """Where the rows of a slice lie, by its column."""

    kind: Literal["instants", "numbers"]
    intervals: tuple[tuple[Any, Any], ...] | None
    """``[start, stop)``; None for everywhere."""


def extent(slice_: Slice) -> Extent:
    """Return where the rows of a slice lie: in which instants, of UTC, or among which numbers.

    Times without a zone are read as UTC.
    """
    around = range_of(slice_)
    if around is None:
        return Extent("instants", None)
    if numbers := around.numbers:
        return Extent("numbers", (numbers,))
    start, stop = around.times
    edges = [start, *(edge for hole in around.holes for edge in hole), stop]
    edges = [*map(_utc, edges)]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return Extent("instants", tuple((start, stop) for start, stop in pairs if start < stop))


@total_ordering
class _Unbounded:
    """Less than everything, or greater."""

    def __init__(self, *, greater: bool) -> None:
        self._greater = greater

    def __lt__(self, other: object) -> bool:
        return self is not other and not self._greater

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


_BEGINNING, _END = _Unbounded(greater=False), _Unbounded(greater=True)


class Covered:
    """Instants or numbers, as disjoint intervals ``[start, stop)``; None stands for no bound."""

    def __init__(self) -> None:
        self._starts: list[Any] = []
        self._stops: list[Any] = []

    def add(self, start: Edge | None, stop: Edge | None) -> None:
        """Add an interval."""
        start, stop = _bounds(start, stop)
        first = bisect_left(self._stops, start)
        after = bisect_right(self._starts, stop)
        if first < after:  # those between touch it
            start, stop = min(start, self._starts[first]), max(stop, self._stops[after - 1])
        self._starts[first:after] = [start]
        self._stops[first:after] = [stop]

    def lacking(self, start: Edge | None, stop: Edge | None) -> list[tuple[Any, Any]]:
        """Return the parts of an interval that are not among them."""
        start, stop = _bounds(start, stop)
        first, after = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        begins = [start, *self._stops[first:after]]
        ends = [*self._starts[first:after], stop]
        return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]

    def touches(self, start: Edge | None, stop: Edge | None) -> bool:
        """Return whether a part of an interval is among them."""
        start, stop = _bounds(start, stop)
        place = bisect_right(self._stops, start)
        return place < len(self._starts) and self._starts[place] < stop

    def holds(self, start: Edge | None, stop: Edge | None) -> bool:
        """Return whether a whole interval is among them."""
        start, stop = _bounds(start, stop)
        place = bisect_right(self._starts, start) - 1
        return place >= 0 and bool(stop <= self._stops[place])


def _bounds(start: Edge | None, stop: Edge | None) -> tuple[Any, Any]:
    return _BEGINNING if start is None else start, _END if stop is None else stop


# West of the date line a day ends twelve hours after it has in UTC; no zone is later.
_WESTERNMOST = timedelta(hours=12)


def end(slice_: Slice) -> datetime | None:
    """Return the instant from which on the present lies behind a range of times, else None.

    A column without a zone may hold anybody's local time: its slices end when their end is past
    everywhere.
    """
    around = range_of(slice_)
    if around is None or around.numbers:
        return None
    return _utc(around.times[1]) + (timedelta() if around.type_oid == TIMESTAMPTZ else _WESTERNMOST)


# ---------------------------------------------------------------------- days of a time zone


@dataclass(frozen=True, slots=True)
class Offsets:
    """A zone's offsets from UTC within ``[start, stop)``: instants in UTC, each with the offset
    that holds from it on. The first instant is `start`.
    """

    changes: tuple[tuple[datetime, timedelta], ...]
    stop: datetime

    def stretches(self) -> list[tuple[datetime, datetime, timedelta]]:
        """Return (from, until, offset) of each stretch with one offset."""
        ends = [instant for instant, _ in self.changes[1:]] + [self.stop]
        return [
            (instant, end, offset)
            for (instant, offset), end in zip(self.changes, ends, strict=True)
        ]

    def within(self, start: datetime, stop: datetime) -> Offsets:
        """Return those of a part of it."""
        first = bisect_right(self.changes, start, key=lambda change: change[0]) - 1
        after = bisect_left(self.changes, stop, key=lambda change: change[0])
        _, offset = self.changes[first]
        return Offsets(((start, offset), *self.changes[first + 1 : after]), stop)


def window(bound: date) -> tuple[datetime, datetime]:
    """Return the stretch of UTC whose offsets decide at which instant `bound` is."""
    local = _as_datetime(bound).replace(tzinfo=UTC)
    return local - WIDEST_OFFSET, local + WIDEST_OFFSET


def windows(bounds: Iterable[date]) -> list[tuple[datetime, datetime]]:
    """Return the `window` of each bound, those joined that touch; the bounds are in order."""
    joined: list[tuple[datetime, datetime]] = []
    for start, stop in map(window, bounds):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def of_date(period: Period, column: str) -> Range:
    """Return the slice of a date column; raises PlanRefused for bounds that are times."""
    for bound in (period.start, period.stop):
        if isinstance(bound, datetime):
            raise PlanRefused(
                f'the slice column "{column}" is a date and {bound} is a time',
                hint="Give days, such as 2018-04-29.",
            )
    days = (period.start, period.stop)
    return Range(column, DATE, *days, zone=None, days=days)


def of_timestamp(period: Period, column: str) -> Range:
    """Return the slice of a timestamp without time zone; raises PlanRefused for instants."""
    start, stop = period.start, period.stop
    for bound in (start, stop):
        if _is_aware(bound):
            raise PlanRefused(
                f'the slice column "{column}" is a timestamp without time zone '
                f"and {bound} has an offset",
                hint="Leave the offset out.",
            )
    return Range(
        column, TIMESTAMP, _as_datetime(start), _as_datetime(stop), None, _days(start, stop)
    )


def of_timestamptz(
    period: Period, column: str, zone: str, at_start: Offsets, at_stop: Offsets
) -> Range:
    """Return the slice of a timestamptz column.

    `at_start` and `at_stop` are the zone's offsets in the `window` of each bound. Raises
    UsageError for a local time that the zone skips or has twice, and for an empty range; a day
    that the zone skips as a whole (Apia, 2011-12-30) gives a range without an instant.
    """
    start, stop = period.start, period.stop
    from_start = _from(start, zone, at_start)
    until_stop = _until(stop, zone, at_stop)
    pieces = [
        (max(a, c), min(b, d))
        for a, b in from_start
        for c, d in until_stop
        if max(a, c) < min(b, d)
    ]
    days = _days(start, stop)
    if not pieces:
        if days is None:
            raise _empty(start, stop)
        # The zone skipped the day (Apia, 2011-12-30): nothing lies between its two ends.
        nowhere = from_start[0][0]
        return Range(column, TIMESTAMPTZ, nowhere, nowhere, zone, days)
    holes = tuple((left[1], right[0]) for left, right in pairwise(pieces))
    return Range(column, TIMESTAMPTZ, pieces[0][0], pieces[-1][1], zone, days, holes)


_Intervals = list[tuple[datetime, datetime]]
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
_LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


def _from(bound: date, zone: str, offsets: Offsets) -> _Intervals:
    """Return the instants at or after `bound`, as disjoint intervals in order."""
    if isinstance(bound, datetime):
        return [(_instant(bound, zone, offsets), _LAST_INSTANT)]
    midnight = _as_datetime(bound).replace(tzinfo=UTC)
    pieces = [
        (max(begin, midnight - offset), end)
        for begin, end, offset in offsets.stretches()
        if max(begin, midnight - offset) < end
    ]
    return _joined([*pieces, (offsets.stop, _LAST_INSTANT)])


def _until(bound: date, zone: str, offsets: Offsets) -> _Intervals:
    """Return the instants before `bound`, as disjoint intervals in order."""
    if isinstance(bound, datetime):
        return [(_FIRST_INSTANT, _instant(bound, zone, offsets))]
    midnight = _as_datetime(bound).replace(tzinfo=UTC)
    pieces = [
        (begin, min(end, midnight - offset))
        for begin, end, offset in offsets.stretches()
        if begin < min(end, midnight - offset)
    ]
    return _joined([(_FIRST_INSTANT, offsets.changes[0][0]), *pieces])


def _joined(intervals: _Intervals) -> _Intervals:
    joined: _Intervals = []
    for begin, end in intervals:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _instant(moment: datetime, zone: str, offsets: Offsets) -> datetime:
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    local = moment.replace(tzinfo=UTC)
    found = [
        local - offset
        for begin, end, offset in offsets.stretches()
        if begin <= local - offset < end
    ]
    if len(found) == 1:
        return found[0]
    happened = "twice" if found else "never"
    raise UsageError(
        f"the local time {moment} happened {happened} in {zone}",
        detail="It is " + " and ".join(str(instant) for instant in found) + "." if found else None,
        hint="Give it with its offset, such as 2018-10-28T02:30+01:00.",
    )


def _days(start: date, stop: date) -> tuple[date, date] | None:
    if isinstance(start, datetime) or isinstance(stop, datetime):
        return None
    return start, stop


# ------------------------------------------------------------------------------------- locks


@dataclass(frozen=True, slots=True)
class Lock:
    """One advisory lock; locks are taken in the order of `locks`, which is the same for all."""

    name: str
    exclusive: bool
    of_table: bool = True
    """One of a table's locks, else one of the database's."""

    def key(self, table_oid: int) -> int:
        """Return the signed 64-bit key for pg_advisory_xact_lock."""
        of = f"slice 1 {table_oid}" if self.of_table else "database 1"
        text = f"copypipe {of} {self.name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


# The key of a whole table, for whoever may have rows of any slice of it.
TABLE = Lock("table", exclusive=True)

# Whole units are locked alone, units touched in part are shared and looked into; the finest are
# always locked alone. A quarter of an hour, since every zone's offset is a multiple of it today: so
# neighbouring days of any zone touch no finest unit together.
_LOCK_UNITS = (
    ("day", timedelta(days=1)),
    ("hour", timedelta(hours=1)),
    ("quarter", timedelta(minutes=15)),
)


def locks(slice_: Slice, sliced_by: str | None = None) -> tuple[Lock, ...]:
    """Return the locks that keep this slice apart from every slice that overlaps it.

    `sliced_by` is the column by which the table's slices are told apart, None where nobody has
    said so: a range of another column may overlap any of them.

    The table's key shared; then for each UTC day that the slice touches, ascending: exclusive
    where it covers the day, else shared, followed by the same for its hours, and for quarters of
    those. Two slices with an instant in common meet in a unit that at least one of them locks
    alone; neighbouring days run side by side in every zone. Times without a zone are read as UTC,
    which is the same for all slices of one column. What is not a range, or is longer than
    LONGEST_KEYED, takes the table's key exclusively.

    Numbers are locked in the same way, by powers of ten; single ones are the finest unit. A range
    needs some hundred keys at most.
    """
    around = range_of(slice_)
    if around is None or sliced_by not in (None, around.column):
        return (TABLE,)
    if numbers := around.numbers:
        return (Lock("table", exclusive=False), *_locks_of_numbers(*numbers, _LONGEST_UNIT))
    start, stop = map(_utc, around.times)
    if stop - start > LONGEST_KEYED:
        return (TABLE,)
    return (Lock("table", exclusive=False), *_locks_within(start, stop, 0))


def _locks_within(start: datetime, stop: datetime, level: int) -> Iterator[Lock]:
    """Yield the locks of the units of that level, and of finer ones, that the range touches."""
    name, length = _LOCK_UNITS[level]
    finest = level + 1 == len(_LOCK_UNITS)
    unit = _EPOCH + (start - _EPOCH) // length * length
    while unit < stop:
        following = unit + length
        alone = finest or (start <= unit and following <= stop)
        yield Lock(f"{name} {unit:%Y-%m-%dT%H:%M}", exclusive=alone)
        if not alone:
            yield from _locks_within(max(start, unit), min(stop, following), level + 1)
        unit = following


# Nineteen digits hold every int8.
_LONGEST_UNIT = 10**18


def _locks_of_numbers(start: int, stop: int, length: int) -> Iterator[Lock]:
    """Yield the locks of the units of that length, and of finer ones, that the range touches."""
    unit = start // length * length
    while unit < stop:
        following = unit + length
        alone = start <= unit and following <= stop
        yield Lock(f"numbers {unit} {length}", exclusive=alone)
        if not alone:
            yield from _locks_of_numbers(max(start, unit), min(stop, following), length // 10)
        unit = following


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _utc(value: date) -> datetime:
    return _as_datetime(value).replace(tzinfo=UTC)
