"""Words become ranges, ranges become instants, and overlapping slices get conflicting locks."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypipe import api, slices
from copypipe.errors import PlanRefused, UsageError
from copypipe.slices import (
    DATE,
    FIRST_DAY,
    LAST_DAY,
    LONGEST_KEYED,
    TIMESTAMP,
    TIMESTAMPTZ,
    Between,
    DaysAgo,
    Everything,
    Lock,
    Offsets,
    Period,
    Range,
    Slice,
    TooMany,
    Where,
    Whole,
    locks,
    range_of,
)

DAY = date(2018, 4, 29)
MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
WHOLE_DAY = timedelta(days=1)
VIENNA = timezone(timedelta(hours=2))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def local(*parts: int) -> datetime:
    return datetime(*parts)  # noqa: DTZ001 - a local time


def refused(call: Callable[[], object], error: type[Exception] = UsageError) -> Exception:
    with pytest.raises(error) as caught:
        call()
    return caught.value


# ---------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("2018-04-29", Between(DAY, DAY + WHOLE_DAY)),
        ("yesterday", Between(DaysAgo(1), DaysAgo(0))),
        ("-3d", Between(DaysAgo(3), DaysAgo(2))),
        ("2018-04-29..2018-05-01", Between(DAY, date(2018, 5, 1))),
        ("-3d..today", Between(DaysAgo(3), DaysAgo(0))),
        (" 2018-04-29 .. today ", Between(DAY, DaysAgo(0))),
        ("2018-04-29T10:00..2018-04-30", Between(local(2018, 4, 29, 10), date(2018, 4, 30))),
        ("2018-04-29T10:00Z..today", Between(utc(2018, 4, 29, 10), DaysAgo(0))),
        ("all", Everything()),
        (" ALL ", Everything()),
    ],
)
def test_a_range_is_one_word(text: str, means: object) -> None:
    assert slices.parse_range(text) == means


@pytest.mark.parametrize(
    "text",
    ["", "..", "2018-04-29..", "..2018-04-29", "2018-04", "2018-04-29T10:00", "all..today"],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    assert refused(lambda: slices.parse_range(text))


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2018-04-29", DAY),
        (" 2018-04-29 ", DAY),
        ("2020-02-29", date(2020, 2, 29)),
        ("0002-01-01", FIRST_DAY),
        ("9998-12-31", LAST_DAY),
        ("today", DaysAgo(0)),
        ("Yesterday", DaysAgo(1)),
        ("-3d", DaysAgo(3)),
        ("-0d", DaysAgo(0)),
    ],
)
def test_days(text: str, day: date | DaysAgo) -> None:
    assert slices.parse_day(text) == day
    assert slices.parse_bound(text.lower()) == day


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2018-4-29",
        "2018-02-30",
        "2019-02-29",
        "20180429",
        "2018-W17-7",
        "29.04.2018",
        "3d",
        "+3d",
        "-3",
        "-123456d",
        "tomorrow",
        "2018-04-29x",
    ],
)
def test_what_is_not_a_day_is_refused(text: str) -> None:
    error = refused(lambda: slices.parse_day(text))

    assert error.message == f"not a day: {text!r}"
    assert error.hint == "Days are written 2018-04-29, today, yesterday or -3d."


@pytest.mark.parametrize("text", ["0001-12-31", "9999-01-01", "9999-12-31"])
def test_days_outside_the_calendar_are_refused(text: str) -> None:
    error = refused(lambda: slices.parse_day(text))

    assert error.message == f"day out of range: {text}"
    assert error.detail == "Days lie between 0002-01-01 and 9998-12-31."
    assert refused(lambda: slices.parse_bound(text + "T12:00")).message == error.message


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("2018-04-29T10:00", local(2018, 4, 29, 10)),
        ("2018-04-29 10:00:01.5", local(2018, 4, 29, 10, 0, 1, 500_000)),
        ("2018-04-29T10:00+02:00", datetime(2018, 4, 29, 10, tzinfo=VIENNA)),
        ("2018-04-29T10:00Z", utc(2018, 4, 29, 10)),
    ],
)
def test_times(text: str, bound: datetime) -> None:
    found = slices.parse_bound(text)

    assert found == bound
    assert found.utcoffset() == bound.utcoffset()


@pytest.mark.parametrize("text", ["2018-04-29T25:00", "2018-04-29T", "today 10:00", "T"])
def test_what_is_neither_a_day_nor_a_time_is_refused(text: str) -> None:
    error = refused(lambda: slices.parse_bound(text))

    assert error.message == f"neither a day, a time nor a number: {text!r}"
    assert error.hint == "Write 2018-04-29, 2018-04-29T10:00, 2018-04-29T10:00+02:00, or 1000000."


def test_today_is_a_bound_in_any_case() -> None:
    assert slices.parse_bound("Today") == slices.parse_day("Today")


@pytest.mark.parametrize(
    ("text", "first", "after"),
    [
        ("2018-04", date(2018, 4, 1), date(2018, 5, 1)),
        ("2018-12", date(2018, 12, 1), date(2019, 1, 1)),
        (" 2020-02 ", date(2020, 2, 1), date(2020, 3, 1)),
        ("9998-12", date(9998, 12, 1), date(9999, 1, 1)),
    ],
)
def test_months(text: str, first: date, after: date) -> None:
    assert slices.month(text) == Between(first, after)


@pytest.mark.parametrize("text", ["", "2018", "2018-4", "2018-13", "2018-00", "0000-01", "April"])
def test_what_is_not_a_month_is_refused(text: str) -> None:
    error = refused(lambda: slices.month(text))

    assert (error.message, error.hint) == (f"not a month: {text!r}", "Months are written 2018-04.")


@pytest.mark.parametrize("text", ["0001-12", "9999-01"])
def test_months_outside_the_calendar_are_refused(text: str) -> None:
    assert refused(lambda: slices.month(text)).message == f"day out of range: {text}-01"


@pytest.mark.parametrize(
    "name",
    [
        "UTC",
        "Europe/Vienna",
        "America/Argentina/Buenos_Aires",
        "America/Port-au-Prince",
        "Etc/GMT-2",
        "Etc/GMT+12",
        "GMT0",
        "GMT-0",
        "EST5EDT",
        "NZ-CHAT",
        "posix/Asia/Tokyo",
    ],
)
def test_zones(name: str) -> None:
    assert slices.zone_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " UTC",
        "+02",
        "-2",
        "<+02>-2",
        "EST5EDT,M3.2.0,M11.1.0",
        "/UTC",
        "Europe/",
        "a//b",
        "../etc/passwd",
        "Europe/Vienna'",
        "Zürich",
        "UTC\n",
    ],
)
def test_what_cannot_be_a_zone_is_refused(name: str) -> None:
    error = refused(lambda: slices.zone_name(name))

    assert error.message == f"not the name of a time zone: {name!r}"
    assert error.hint == "Use a name such as UTC, Europe/Vienna or Etc/GMT-2."


@pytest.mark.parametrize("name", ["UTC+2", "GMT-5", "EST5", "Foo3Bar", "IST", "CEST", "Etc/GMT+1"])
def test_what_may_be_more_than_a_name_must_be_listed_by_the_source(name: str) -> None:
    """PostgreSQL reads UTC+2 as two hours west of UTC, and IST as Israel's winter time."""
    assert slices.needs_listing(name)


@pytest.mark.parametrize("name", ["UTC", "utc", "Europe/Vienna", "America/Argentina/Buenos_Aires"])
def test_most_names_need_not_be_listed(name: str) -> None:
    assert not slices.needs_listing(name)


# --------------------------------------------------------------------------------------- ranges


def test_a_day_is_half_open() -> None:
    assert slices.day(DAY) == Between(DAY, date(2018, 4, 30))
    assert slices.day(DaysAgo(1)) == Between(DaysAgo(1), DaysAgo(0))


def test_relative_days_are_counted_back_from_today() -> None:
    today = date(2018, 3, 1)

    assert slices.settle(slices.day(DaysAgo(0)), today) == Period(today, date(2018, 3, 2))
    assert slices.settle(Between(DaysAgo(2), DaysAgo(1)), today) == Period(
        date(2018, 2, 27), date(2018, 2, 28)
    )
    assert slices.settle(Between(date(2018, 1, 1), DaysAgo(0)), today).stop == today


@pytest.mark.parametrize(
    ("wanted", "relative"),
    [
        (Everything(), False),
        (Between(DAY, LAST_DAY), False),
        (Between(DAY, DaysAgo(0)), True),
        (slices.day(DaysAgo(3)), True),
    ],
)
def test_only_relative_days_need_todays_date(wanted: slices.Wanted, relative: bool) -> None:
    assert slices.is_relative(wanted) is relative


@pytest.mark.parametrize("day", [date.min, date.max, date(9999, 1, 1)])
def test_dates_of_a_caller_outside_the_calendar_are_refused(day: date) -> None:
    error = refused(lambda: slices.settle(slices.day(day), DAY))

    assert error.message == f"day out of range: {day}"


def test_the_first_and_the_last_day_of_the_calendar_are_days() -> None:
    assert slices.settle(slices.day(FIRST_DAY), DAY).start == FIRST_DAY
    assert slices.settle(slices.day(LAST_DAY), DAY).start == LAST_DAY
    assert slices.settle(slices.month("9998-12"), DAY).start == date(9998, 12, 1)


EMPTY = [
    (DAY, DAY, "from 2018-04-29 to 2018-04-29"),
    (date(2018, 4, 30), DAY, "from 2018-04-30 to 2018-04-29"),
    (DAY, local(2018, 4, 29), "from 2018-04-29 to 2018-04-29 00:00:00"),
    (DaysAgo(1), DaysAgo(1), "from yesterday to yesterday"),
    (DaysAgo(0), DaysAgo(3), "from today to -3d"),
    (
        datetime(2018, 4, 29, 10, tzinfo=VIENNA),
        utc(2018, 4, 29, 8),
        "from 2018-04-29 10:00:00+02:00 to 2018-04-29 08:00:00+00:00",
    ),
]


@pytest.mark.parametrize(("start", "stop", "written"), EMPTY)
def test_empty_and_reversed_ranges_are_refused_before_a_server_is_asked(
    start: slices.Bound, stop: slices.Bound, written: str
) -> None:
    error = refused(lambda: slices.check_order(Between(start, stop)))

    assert error.message == f"the range is empty: {written}"
    assert error.hint == (
        "The end is exclusive: --from 2018-04-01 --to 2018-05-01 is all of April."
    )


@pytest.mark.parametrize(
    "wanted",
    [
        Everything(),
        slices.day(DAY),
        Between(DaysAgo(3), DaysAgo(0)),
        Between(DAY, local(2018, 4, 29, 0, 0, 1)),
        Between(date(2099, 1, 1), DaysAgo(0)),  # today decides
        Between(DAY, utc(2018, 4, 29)),  # the zone decides
    ],
)
def test_what_the_words_cannot_tell_to_be_empty_passes(wanted: slices.Wanted) -> None:
    slices.check_order(wanted)


def test_a_range_that_today_makes_empty_is_refused() -> None:
    error = refused(lambda: slices.settle(Between(date(2099, 1, 1), DaysAgo(0)), DAY))

    assert error.message == "the range is empty: from 2099-01-01 to 2018-04-29"


def test_a_time_is_not_a_day() -> None:
    error = refused(lambda: slices.day(local(2018, 4, 29, 12)))

    assert error.message == "a day was expected and 2018-04-29 12:00:00 is a time"


# --------------------------------------------------------------------- columns without a zone


def test_a_day_of_a_date_column() -> None:
    slice_ = slices.of_date(Period(DAY, date(2018, 5, 2)), "d")

    assert slice_ == Range(
        "d", DATE, DAY, date(2018, 5, 2), zone=None, days=(DAY, date(2018, 5, 2))
    )
    assert str(slice_) == "[2018-04-29, 2018-05-02)"


def test_a_date_column_has_no_times() -> None:
    error = refused(lambda: slices.of_date(Period(DAY, local(2018, 4, 29, 12)), "d"), PlanRefused)

    assert error.message == 'the slice column "d" is a date and 2018-04-29 12:00:00 is a time'


def test_a_day_of_a_timestamp_column() -> None:
    slice_ = slices.of_timestamp(Period(DAY, date(2018, 4, 30)), "t")

    assert (slice_.type_oid, slice_.zone) == (TIMESTAMP, None)
    assert (slice_.start, slice_.stop) == (local(2018, 4, 29), local(2018, 4, 30))
    assert str(slice_) == "[2018-04-29, 2018-04-30)"


def test_times_of_a_timestamp_column() -> None:
    slice_ = slices.of_timestamp(Period(DAY, local(2018, 4, 29, 12)), "t")

    assert slice_.days is None
    assert str(slice_) == "[2018-04-29 00:00:00, 2018-04-29 12:00:00)"


def test_a_timestamp_column_has_no_instants() -> None:
    period = Period(DAY, utc(2018, 4, 29, 12))
    error = refused(lambda: slices.of_timestamp(period, "t"), PlanRefused)

    assert error.message == (
        'the slice column "t" is a timestamp without time zone '
        "and 2018-04-29 12:00:00+00:00 has an offset"
    )


def test_all_rows_have_a_label() -> None:
    assert str(Whole()) == "all rows"


# ----------------------------------------------------------------------------- days of a zone

Clock = list[tuple[datetime, timedelta]]
"""A zone: instants, each with the offset from then on; the first long before all others."""
LONG_AGO = utc(1, 1, 3)


def clock(first: float, *changes: tuple[datetime, float]) -> Clock:
    """Return a zone with the offset `first` (in hours), and then what changed."""
    return [(instant, timedelta(hours=hours)) for instant, hours in [(LONG_AGO, first), *changes]]


def offset_at(zone: Clock, instant: datetime) -> timedelta:
    return [offset for since, offset in zone if since <= instant][-1]


def offsets(zone: Clock, bound: slices.Bound) -> Offsets:
    """Return what a server would answer about the window of `bound`."""
    start, stop = slices.window(bound)
    changes = [(since, offset) for since, offset in zone if start < since < stop]
    return Offsets(((start, offset_at(zone, start)), *changes), stop)


def ranged(zone: Clock, start: slices.Bound, stop: slices.Bound) -> Range:
    return slices.of_timestamptz(
        Period(start, stop), "at", "Some/Zone", offsets(zone, start), offsets(zone, stop)
    )


def day_of(zone: Clock, day: date) -> Range:
    return ranged(zone, day, day + WHOLE_DAY)


def test_a_day_of_a_zone() -> None:
    slice_ = day_of(clock(2), DAY)

    assert slice_ == Range(
        "at",
        TIMESTAMPTZ,
        utc(2018, 4, 28, 22),
        utc(2018, 4, 29, 22),
        zone="Some/Zone",
        days=(DAY, date(2018, 4, 30)),
    )
    assert str(slice_) == "[2018-04-29, 2018-04-30) Some/Zone"


def test_days_with_a_clock_change_last_23_and_25_hours() -> None:
    vienna = clock(1, (utc(2018, 3, 25, 1), 2), (utc(2018, 10, 28, 1), 1))
    lengths = {
        day: (day_of(vienna, day).stop - day_of(vienna, day).start) / HOUR
        for day in (date(2018, 3, 24), date(2018, 3, 25), date(2018, 10, 28), date(2018, 10, 29))
    }

    assert list(lengths.values()) == [24, 23, 25, 24]


def test_an_hour_before_a_midnight_that_comes_twice_belongs_to_the_day_before() -> None:
    havana = clock(-4, (utc(2018, 11, 4, 5), -5))  # 01:00 -> 00:00

    slice_ = day_of(havana, date(2018, 11, 4))

    assert (slice_.start, slice_.stop) == (utc(2018, 11, 4, 4), utc(2018, 11, 5, 5))
    assert slice_.holes == ()


def test_a_midnight_that_is_skipped() -> None:
    sao_paulo = clock(-3, (utc(2018, 11, 4, 3), -2))  # 00:00 -> 01:00

    assert day_of(sao_paulo, date(2018, 11, 3)).stop == utc(2018, 11, 4, 3)
    assert day_of(sao_paulo, date(2018, 11, 4)).start == utc(2018, 11, 4, 3)


def test_a_day_that_the_zone_skipped_has_no_instant() -> None:
    apia = clock(-10, (utc(2011, 12, 30, 10), 14))  # the 30th never was

    skipped = day_of(apia, date(2011, 12, 30))

    assert skipped.start == skipped.stop == utc(2011, 12, 30, 10)
    assert str(skipped) == "[2011-12-30, 2011-12-31) Some/Zone"
    assert day_of(apia, date(2011, 12, 29)).stop == skipped.start
    assert day_of(apia, date(2011, 12, 31)).start == skipped.stop


ST_JOHNS = clock(-2.5, (utc(2010, 11, 7, 2, 31), -3.5))  # 00:01 on the 7th -> 23:01 on the 6th


def test_a_clock_that_goes_back_across_midnight_leaves_holes() -> None:
    sixth, seventh = (day_of(ST_JOHNS, date(2010, 11, day)) for day in (6, 7))
    minute = (utc(2010, 11, 7, 2, 30), utc(2010, 11, 7, 2, 31))

    assert (sixth.start, sixth.stop) == (utc(2010, 11, 6, 2, 30), utc(2010, 11, 7, 3, 30))
    assert sixth.holes == (minute,)
    assert (seventh.start, seventh.stop) == (utc(2010, 11, 7, 2, 30), utc(2010, 11, 8, 3, 30))
    assert seventh.holes == ((utc(2010, 11, 7, 2, 31), utc(2010, 11, 7, 3, 30)),)


def test_a_range_around_such_a_midnight_has_no_hole() -> None:
    slice_ = ranged(ST_JOHNS, date(2010, 11, 6), date(2010, 11, 8))

    assert (slice_.start, slice_.stop) == (utc(2010, 11, 6, 2, 30), utc(2010, 11, 8, 3, 30))
    assert slice_.holes == ()


def test_a_local_time_that_happened_twice_is_refused_with_both_instants() -> None:
    vienna = clock(2, (utc(2018, 10, 28, 1), 1))

    error = refused(lambda: ranged(vienna, local(2018, 10, 28, 2, 30), date(2018, 10, 29)))

    assert error.message == "the local time 2018-10-28 02:30:00 happened twice in Some/Zone"
    assert error.detail == "It is 2018-10-28 00:30:00+00:00 and 2018-10-28 01:30:00+00:00."
    assert error.hint == "Give it with its offset, such as 2018-10-28T02:30+01:00."


def test_a_local_time_that_was_skipped_is_refused() -> None:
    vienna = clock(1, (utc(2018, 3, 25, 1), 2))

    error = refused(lambda: ranged(vienna, date(2018, 3, 25), local(2018, 3, 25, 2, 30)))

    assert error.message == "the local time 2018-03-25 02:30:00 happened never in Some/Zone"
    assert error.detail is None


def test_times_are_instants_of_the_zone() -> None:
    vienna = clock(1, (utc(2018, 3, 25, 1), 2))

    slice_ = ranged(vienna, local(2018, 3, 25, 1, 59), datetime(2018, 3, 25, 5, tzinfo=VIENNA))

    assert (slice_.start, slice_.stop) == (utc(2018, 3, 25, 0, 59), utc(2018, 3, 25, 3))
    assert str(slice_) == "[2018-03-25 00:59:00+00:00, 2018-03-25 03:00:00+00:00)"


def test_times_that_the_zone_makes_empty_are_refused() -> None:
    error = refused(lambda: ranged(clock(2), DAY, utc(2018, 4, 28, 22)))

    assert error.message == "the range is empty: from 2018-04-29 to 2018-04-28 22:00:00+00:00"


# A zone may do anything: any offset that PostgreSQL allows, to the second, changing at any second.
_seconds = st.integers(-57_599, 57_599)
_quarters = st.integers(-63, 63).map(lambda quarters: quarters * 900)
_offset = st.one_of(_quarters, _seconds).map(lambda seconds: timedelta(seconds=seconds))


@st.composite
def zones_and_days(draw: st.DrawFn) -> tuple[Clock, date, date]:
    """Draw some days and a zone that changes its offset around them."""
    after = DAY + timedelta(days=draw(st.sampled_from([1, 1, 1, 2, 5])))
    around = st.sampled_from([DAY, after]).map(lambda day: utc(day.year, day.month, day.day))
    shift = st.integers(-2 * 86_400, 2 * 86_400).map(lambda seconds: timedelta(seconds=seconds))
    instants = draw(st.lists(st.builds(lambda a, b: a + b, around, shift), max_size=6, unique=True))
    changes = [(instant, draw(_offset)) for instant in sorted(instants)]
    return [(LONG_AGO, draw(_offset)), *changes], DAY, after


def instants_worth_a_look(zone: Clock, first: date, after: date) -> list[datetime]:
    """Return every change, every midnight by every offset, all +-1 us, and a grid."""
    begin, days = utc(first.year, first.month, first.day), (after - first).days
    edges = [instant for instant, _ in zone[1:]]
    edges += [
        begin + timedelta(days=number) - offset
        for number in range(-1, days + 2)
        for _, offset in zone
    ]
    grid = [begin + number * HOUR for number in range(-72, 24 * days + 72)]
    near = [edge + step for edge in edges for step in (-MICROSECOND, timedelta(0), MICROSECOND)]
    return sorted({*near, *grid})


def contains(slice_: Range, instant: datetime) -> bool:
    return slice_.start <= instant < slice_.stop and not any(
        begin <= instant < end for begin, end in slice_.holes
    )


def check_days(zone: Clock, first: date, after: date) -> None:
    """Compare a range with what is obvious: the local date of an instant is in the days asked."""
    slice_ = ranged(zone, first, after)
    for instant in instants_worth_a_look(zone, first, after):
        belongs = first <= (instant + offset_at(zone, instant)).date() < after
        assert contains(slice_, instant) == belongs, f"{instant} of {zone}: {slice_}"


@given(zones_and_days())
@settings(max_examples=150, deadline=None)
def test_a_range_holds_exactly_the_instants_of_its_days(case: tuple[Clock, date, date]) -> None:
    zone, first, after = case

    check_days(zone, first, after)


@given(zones_and_days())
@settings(max_examples=100, deadline=None)
def test_a_range_begins_and_ends_with_an_instant_and_its_holes_lie_apart_inside(
    case: tuple[Clock, date, date],
) -> None:
    slice_ = ranged(*case)
    edges = [slice_.start, *(edge for hole in slice_.holes for edge in hole), slice_.stop]

    if slice_.start == slice_.stop:
        assert slice_.holes == ()
    else:
        assert all(one < other for one, other in pairwise(edges))


@given(zones_and_days())
@settings(max_examples=100, deadline=None)
def test_days_side_by_side_share_no_instant_and_lose_none(case: tuple[Clock, date, date]) -> None:
    zone, first, after = case
    days = [day_of(zone, first + timedelta(days=number)) for number in range((after - first).days)]
    together = ranged(zone, first, after)

    for instant in instants_worth_a_look(zone, first, after):
        assert sum(contains(day, instant) for day in days) == contains(together, instant)


def _without_holes(slice_: Range) -> Range:
    return replace(slice_, holes=())


def _of_24_hours(slice_: Range) -> Range:
    return replace(slice_, stop=slice_.start + WHOLE_DAY)


def _a_microsecond_longer(slice_: Range) -> Range:
    return replace(slice_, stop=slice_.stop + MICROSECOND)


@pytest.mark.parametrize(
    ("wrong", "zone", "day"),
    [
        (_without_holes, ST_JOHNS, date(2010, 11, 6)),
        (_of_24_hours, clock(1, (utc(2018, 3, 25, 1), 2)), date(2018, 3, 25)),
        (_a_microsecond_longer, clock(0), DAY),
    ],
)
def test_the_check_of_days_sees_a_planted_fault(monkeypatch, wrong, zone: Clock, day: date) -> None:
    check_days(zone, day, day + WHOLE_DAY)
    right = slices.of_timestamptz
    monkeypatch.setattr(slices, "of_timestamptz", lambda *asked: wrong(right(*asked)))

    with pytest.raises(AssertionError):
        check_days(zone, day, day + WHOLE_DAY)


# ---------------------------------------------------------------------------------------- locks

OF_ZONE = {
    "whole hours": [-12, -5, 0, 1, 9, 14],
    "parts of hours": [-9.5, -3.5, 4.5, 5.75, 8.75, 10.5, 12.75],
}


def conflict(one: Slice, other: Slice) -> bool:
    """Return whether the two take a lock of which at least one of them wants to be alone."""
    exclusive = {lock.name: lock.exclusive for lock in locks(one)}
    return any(
        lock.name in exclusive and (lock.exclusive or exclusive[lock.name]) for lock in locks(other)
    )


def between(start: datetime, stop: datetime) -> Range:
    return Range("at", TIMESTAMPTZ, start, stop, zone="UTC")


def overlap(one: Slice, other: Slice) -> bool:
    if isinstance(one, Whole) or isinstance(other, Whole):
        return True
    return max(one.start, other.start) < min(one.stop, other.stop)


_start = st.one_of(
    st.integers(0, 24 * 40).map(lambda hours: utc(2018, 1, 1) + hours * HOUR),
    st.integers(0, 86_400 * 40).map(lambda s: utc(2018, 1, 1) + timedelta(seconds=s)),
)
_length = st.one_of(
    st.sampled_from([MICROSECOND, HOUR, WHOLE_DAY, WHOLE_DAY - MICROSECOND, WHOLE_DAY + HOUR]),
    st.integers(1, 86_400 * 45).map(lambda seconds: timedelta(seconds=seconds)),
    st.sampled_from([LONGEST_KEYED + step * MICROSECOND for step in (-1, 0, 1)]),
)
_ranges = st.builds(lambda start, length: between(start, start + length), _start, _length)
_slices = st.one_of(_ranges, _ranges, _ranges, st.just(Whole()))


def check_exclusion(one: Slice, other: Slice) -> None:
    assert conflict(one, one)
    if overlap(one, other):
        assert conflict(one, other)
        assert conflict(other, one)


@given(_slices, _slices)
@settings(max_examples=250, deadline=None)
def test_slices_that_overlap_exclude_each_other(one: Slice, other: Slice) -> None:
    check_exclusion(one, other)


@given(_ranges)
@settings(max_examples=100, deadline=None)
def test_slices_that_overlap_by_a_microsecond_exclude_each_other(slice_: Range) -> None:
    check_exclusion(slice_, between(slice_.stop - MICROSECOND, slice_.stop + HOUR))
    check_exclusion(slice_, between(slice_.start - HOUR, slice_.start + MICROSECOND))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda start, stop, level: iter(()),
        lambda start, stop, level: iter([Lock(f"day {start:%Y-%m-%d}", exclusive=False)]),
        lambda start, stop, level: iter([Lock(f"hour {start:%Y-%m-%dT%H}", exclusive=True)]),
        lambda start, stop, level: iter([Lock(f"from {start} to {stop}", exclusive=True)]),
    ],
    ids=["the table alone", "no hours", "only the first hour", "the slice's own name"],
)
def test_the_check_of_locks_sees_a_planted_fault(monkeypatch, wrong) -> None:
    noon, evening = utc(2018, 4, 29, 12), utc(2018, 4, 29, 18)
    pair = between(noon, evening), between(noon + HOUR, evening + HOUR)
    check_exclusion(*pair)
    monkeypatch.setattr(slices, "_locks_within", wrong)

    with pytest.raises(AssertionError):
        check_exclusion(*pair)


@given(_slices, _slices)
@settings(max_examples=200, deadline=None)
def test_two_slices_take_their_common_locks_in_the_same_order(one: Slice, other: Slice) -> None:
    first, second = ([lock.name for lock in locks(slice_)] for slice_ in (one, other))

    assert len(set(first)) == len(first)
    assert [name for name in first if name in set(second)] == [
        name for name in second if name in set(first)
    ]


@pytest.mark.parametrize("hours", [hours for kind in OF_ZONE.values() for hours in kind])
def test_days_of_a_zone_that_are_not_neighbours_run_side_by_side(hours: float) -> None:
    days = [day_of(clock(hours), DAY + timedelta(days=number)) for number in range(5)]

    for number, one in enumerate(days):
        for other in days[number + 2 :]:
            assert not conflict(one, other)


@pytest.mark.parametrize("hours", [hours for kind in OF_ZONE.values() for hours in kind])
def test_neighbouring_days_run_side_by_side(hours: float) -> None:
    day, next_day = (day_of(clock(hours), DAY + timedelta(days=number)) for number in range(2))

    assert not conflict(day, next_day)


def test_a_day_of_utc_is_one_lock_and_another_zones_has_its_hours() -> None:
    day, table = "day 2018-04-29T00:00", Lock("table", exclusive=False)

    assert locks(day_of(clock(0), DAY)) == (table, Lock(day, exclusive=True))
    names = [lock.name for lock in locks(day_of(clock(2), DAY))]
    assert names[:3] == ["table", "day 2018-04-28T00:00", "hour 2018-04-28T22:00"]
    assert names[4:6] == [day, "hour 2018-04-29T00:00"]
    assert (len(names), names[-1]) == (27, "hour 2018-04-29T21:00")


def test_an_hour_touched_in_part_is_locked_by_its_quarters() -> None:
    kathmandu = locks(day_of(clock(5.75), DAY))[2:7]

    assert [(lock.name, lock.exclusive) for lock in kathmandu] == [
        ("hour 2018-04-28T18:00", False),
        ("quarter 2018-04-28T18:15", True),
        ("quarter 2018-04-28T18:30", True),
        ("quarter 2018-04-28T18:45", True),
        ("hour 2018-04-28T19:00", True),
    ]


def test_up_to_a_thousand_days_are_locked_one_by_one_and_more_lock_the_table() -> None:
    thousand = between(utc(2018, 1, 1), utc(2018, 1, 1) + LONGEST_KEYED)
    shifted = replace(thousand, start=thousand.start + HOUR / 2, stop=thousand.stop + HOUR / 2)
    longer = replace(thousand, stop=thousand.stop + MICROSECOND)

    assert len(locks(thousand)) == 1 + 1000
    assert len(locks(shifted)) == 1 + 1001 + 25 + 4
    assert locks(longer) == locks(Whole()) == (Lock("table", exclusive=True),)


@pytest.mark.parametrize(
    "slice_",
    [
        slices.of_date(Period(DAY, date(2018, 4, 30)), "d"),
        slices.of_timestamp(Period(DAY, date(2018, 4, 30)), "t"),
    ],
)
def test_days_without_a_zone_are_locked_as_those_of_utc(slice_: Range) -> None:
    assert locks(slice_) == locks(day_of(clock(0), DAY))


def test_a_slice_without_an_instant_locks_no_hour() -> None:
    apia = clock(-10, (utc(2011, 12, 30, 10), 14))

    assert not any(lock.name.startswith("hour") for lock in locks(day_of(apia, date(2011, 12, 30))))


def test_keys_of_locks_stay_the_same_from_version_to_version() -> None:
    """Two versions of copypipe that run at the same time must exclude each other."""
    for exclusive in (True, False):
        assert Lock("table", exclusive).key(16384) == 1148866470364913159


def test_keys_differ_between_tables_and_names_and_fit_into_a_bigint() -> None:
    taken = locks(between(utc(2018, 1, 1), utc(2018, 1, 1) + LONGEST_KEYED))
    keys = {lock.key(oid) for lock in taken for oid in (16384, 16385)}

    assert len(keys) == 2 * len(taken)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)


def test_a_server_may_call_utc_by_another_name() -> None:
    assert slices.same_zone("UTC", "Etc/UTC")
    assert slices.same_zone("Europe/Vienna", "europe/vienna")
    assert not slices.same_zone("UTC", "Europe/London")


# --------------------------------------------------------------------------------- conditions


def test_a_condition_alone_locks_the_whole_table_and_in_a_range_what_the_range_locks() -> None:
    day = day_of(clock(0), DAY)

    assert locks(Where("id > 7", Whole())) == locks(Whole())
    assert locks(Where("id > 7", day)) == locks(day)
    assert range_of(Where("id > 7", Whole())) is None
    assert range_of(Where("id > 7", day)) == range_of(day) == day


def test_a_condition_is_shown_on_one_line_that_is_not_long() -> None:
    assert str(Where("id >\n  7", Whole())) == "where id > 7"
    assert str(Where("id > 7", day_of(clock(0), DAY))).startswith("[2018-04-29, 2018-04-30)")
    assert str(Where("x" * 100, Whole())) == "where " + "x" * 57 + "..."


# --- parts of a range -----------------------------------------------------------------------------

BOUNDS = st.one_of(
    st.dates(date(1999, 1, 1), date(2001, 12, 31)),
    st.datetimes(datetime(1999, 1, 1), datetime(2001, 12, 31)),  # noqa: DTZ001 - local times
)


def as_time(bound: date) -> datetime:
    if isinstance(bound, datetime):
        return bound
    return datetime(bound.year, bound.month, bound.day)  # noqa: DTZ001 - as above


@given(st.tuples(BOUNDS, BOUNDS), st.sampled_from(["day", "week", "month"]))
def test_parts_are_the_whole_range(bounds: tuple[date, date], every: slices.Every) -> None:
    start, stop = sorted(bounds, key=as_time)
    parts = list(slices.split(Period(start, stop), every))

    assert all(as_time(part.start) < as_time(part.stop) for part in parts)
    assert all(one.stop == other.start for one, other in pairwise(parts))
    if as_time(start) < as_time(stop):
        assert (parts[0].start, parts[-1].stop) == (start, stop)
    else:
        assert parts == []
    for part in parts[1:]:
        assert not isinstance(part.start, datetime)
        assert every != "week" or part.start.weekday() == 0
        assert every != "month" or part.start.day == 1
    longest = {"day": 1, "week": 7, "month": 31}[every]
    assert all(as_time(p.stop) - as_time(p.start) <= timedelta(days=longest) for p in parts)


@pytest.mark.parametrize(
    ("every", "starts"),
    [
        ("day", [f"2018-04-{day}" for day in range(27, 31)] + ["2018-05-01"]),
        ("week", ["2018-04-27", "2018-04-30"]),
        ("month", ["2018-04-27", "2018-05-01"]),
    ],
)
def test_where_parts_begin(every: slices.Every, starts: list[str]) -> None:
    parts = slices.split(Period(date(2018, 4, 27), date(2018, 5, 2)), every)
    assert [str(part.start) for part in parts] == starts


def test_parts_of_the_end_of_the_calendar() -> None:
    days = slices.split(Period(LAST_DAY - WHOLE_DAY, LAST_DAY + WHOLE_DAY), "day")
    assert [part.start for part in days] == [LAST_DAY - WHOLE_DAY, LAST_DAY]
    (month,) = slices.split(Period(LAST_DAY, LAST_DAY + WHOLE_DAY), "month")
    assert month == Period(LAST_DAY, LAST_DAY + WHOLE_DAY)
    assert next(slices.split(Period(FIRST_DAY, LAST_DAY), "month")).start == FIRST_DAY


def test_instants_have_no_days() -> None:
    start = datetime(2018, 4, 29, tzinfo=UTC)
    with pytest.raises(UsageError, match="no days of its own"):
        list(slices.split(Period(start, start + WHOLE_DAY), "day"))


def test_too_many_parts() -> None:
    days = Period(date(1000, 1, 1), date(2018, 1, 1))
    with pytest.raises(TooMany, match="more than 100000 slices"):
        list(slices.few(slices.split(days, "day")))
    assert len(list(slices.few(slices.split(days, "day"), None))) == 371_817
    assert len(list(slices.few(range(100_000)))) == 100_000


START = datetime(2018, 4, 29, 0, 20, tzinfo=UTC)


@pytest.mark.parametrize("minutes", [0, 1, 60, 90, 24 * 60, 25 * 60])
def test_hours_of_a_range(minutes: int) -> None:
    stop = START + timedelta(minutes=minutes)
    holes = ((START, START + HOUR),)
    around = Range("at", TIMESTAMPTZ, START, stop, "UTC", (DAY, DAY), holes)

    found = list(slices.hours(around))

    assert len(found) == -(-minutes // 60)
    assert all(one.stop == other.start for one, other in pairwise(found))
    assert all(part.stop - part.start <= HOUR for part in found)
    assert {(part.days, part.zone) for part in found} <= {(None, "UTC")}
    first = min(stop, START + HOUR)
    assert [part.holes for part in found] == [((START, first),), *[()] * (len(found) - 1)][
        : len(found)
    ]
    if found:
        assert (found[0].start, found[-1].stop) == (START, stop)


def test_dates_have_no_hours() -> None:
    with pytest.raises(UsageError, match="has no hours"):
        list(slices.hours(Range("at", DATE, DAY, DAY + WHOLE_DAY, None)))


# --- whole numbers --------------------------------------------------------------------------------


def numbers(start: int, stop: int) -> Range:
    return Range("id", 20, start, stop, None)


_ends = st.one_of(
    st.integers(-30, 30),
    st.integers(-(10**7), 10**7),
    st.integers(-30, 30).map(lambda number: number * 10**6),
    st.integers(-(2**63), 2**63 - 1),
)
_numbers = (
    st.tuples(_ends, _ends).map(sorted).filter(lambda e: e[0] < e[1]).map(lambda e: numbers(*e))
)


@given(_numbers, st.one_of(_numbers, st.just(Whole())))
@settings(max_examples=200, deadline=None)
def test_ranges_of_numbers_exclude_each_other_where_they_overlap_alone(
    one: Range, other: Slice
) -> None:
    together = isinstance(other, Whole) or max(one.start, other.start) < min(one.stop, other.stop)

    assert conflict(one, other) == conflict(other, one) == together
    assert conflict(one, one)


@given(_numbers, _numbers)
@settings(max_examples=100, deadline=None)
def test_ranges_of_numbers_take_their_common_locks_in_the_same_order(
    one: Range, other: Range
) -> None:
    first, second = ([lock.name for lock in locks(slice_)] for slice_ in (one, other))

    assert len(set(first)) == len(first) < 400
    assert [name for name in first if name in set(second)] == [
        name for name in second if name in set(first)
    ]


def test_a_range_of_numbers_and_one_of_times_exclude_each_other() -> None:
    day = day_of(clock(0), DAY)

    assert conflict(replace(numbers(0, 9)), replace(day)) is False, "of one column, as it was told"
    assert locks(numbers(0, 9), "created_at") == locks(Whole())


@pytest.mark.parametrize(
    ("every", "parts"),
    [(10, [(5, 15), (15, 25)]), (15, [(5, 20), (20, 25)]), (99, [(5, 25)]), (20, [(5, 25)])],
)
def test_numbers_are_cut_from_their_start(every: int, parts: list[tuple[int, int]]) -> None:
    assert [each.numbers for each in slices.of_numbers(numbers(5, 25), every)] == parts


@pytest.mark.parametrize(
    ("shortest", "middle"), [(1, 15), (10, 15), (11, None), (timedelta(seconds=1), None)]
)
def test_halves_of_numbers(shortest: timedelta | int, middle: int | None) -> None:
    found = slices.halves(numbers(5, 25), shortest)

    assert (found and [each.numbers for each in found]) == (middle and [(5, middle), (middle, 25)])


def test_one_number_has_no_halves() -> None:
    assert slices.halves(numbers(5, 6), 0) is None
    assert slices.halves(numbers(-1, 1), 0) == (numbers(-1, 0), numbers(0, 1))


def test_a_number_counts_the_seconds_of_times() -> None:
    assert slices.halves(day_of(clock(0), DAY), 12 * 3600)
    assert slices.halves(day_of(clock(0), DAY), 12 * 3600 + 1) is None


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("0", 0),
        ("1_000_000", 1_000_000),
        ("-5", -5),
        ("+5", 5),
        (" 7 ", 7),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_bounds_of_numbers(text: str, bound: int) -> None:
    assert slices.parse_bound(text) == bound


@pytest.mark.parametrize("text", [str(2**63), str(-(2**63) - 1), "1.5", "1__0", "0x10", "1e6"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError):
        slices.parse_bound(text)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [
        (5, 5, "empty"),
        (6, 5, "empty"),
        (5, DAY, "neither of times nor of numbers"),
        (slices.DaysAgo(1), 5, "neither of times nor of numbers"),
    ],
)
def test_ranges_that_are_none(start: Any, stop: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        slices.check_order(slices.Between(start, stop))


@pytest.mark.parametrize("text", ["hour", "DAY", " week ", "month", "1000000", "1_000"])
def test_lengths_of_slices(text: str) -> None:
    word = text.strip().lower()
    assert slices.parse_every(text) == (word if word.isalpha() else int(word))


@pytest.mark.parametrize("text", ["", "days", "0", "-5", "1h", "1.5"])
def test_what_is_no_length_of_slices(text: str) -> None:
    with pytest.raises(UsageError, match="not a length of slices"):
        slices.parse_every(text)


class OwnTime(datetime):
    """Of a library with an arithmetic of its own, as pendulum's is."""

    def __sub__(self, other: Any) -> Any:
        return "an interval"


class OwnDay(date):
    """The same for days."""


VIENNA = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (OwnDay(2018, 4, 29), date(2018, 4, 29)),
        (OwnTime(2018, 4, 29, 1, 2, 3, 4), datetime(2018, 4, 29, 1, 2, 3, 4)),  # noqa: DTZ001
        (OwnTime(2018, 4, 29, 1, tzinfo=VIENNA), datetime(2018, 4, 28, 23, tzinfo=UTC)),
        (date(2018, 4, 29), date(2018, 4, 29)),
        (datetime(2018, 4, 29, 1, tzinfo=VIENNA), datetime(2018, 4, 29, 1, tzinfo=VIENNA)),
    ],
)
def test_times_of_other_libraries_become_plain(value: date, found: date) -> None:
    plain = slices.plain(value)

    assert plain == found
    assert type(plain) is type(found)
    if isinstance(plain, datetime) and isinstance(found, datetime):
        assert plain.tzinfo == found.tzinfo
    wanted = api.wanted(month=None, start=value, stop=value)
    assert isinstance(wanted, slices.Between)
    assert type(wanted.start) is type(found)
