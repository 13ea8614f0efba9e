"""A slice is sealed only where nothing that may still write can have begun before its end."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypipe import slices
from copypipe.horizons import MARGIN, Highest, Horizon, Instance, Writers, horizon, open_because
from copypipe.slices import (
    DATE,
    FIRST_DAY,
    LAST_DAY,
    LONGEST_KEYED,
    TIMESTAMP,
    TIMESTAMPTZ,
    Lock,
    Range,
    Slice,
    Where,
    Whole,
)

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = date(2018, 4, 29)
NEXT = date(2018, 4, 30)
END = datetime(2018, 4, 30, tzinfo=UTC)
NOON = END + 12 * HOUR
STARTED = END - 1000 * HOUR


def local(value: datetime) -> datetime:
    return value.replace(tzinfo=None)


def between(start: datetime, stop: datetime, column: str = "created_at") -> Range:
    return Range(column, TIMESTAMPTZ, start, stop, "UTC")


OF_DAY = between(END - 24 * HOUR, END)


def told(
    clock: datetime,
    *,
    oldest: datetime | None = None,
    unseen: int = 0,
    prepared: int = 0,
    is_standby: bool = False,
    replayed: datetime | None = None,
) -> Writers:
    return Writers(clock, oldest, unseen, prepared, replayed, Instance(STARTED, is_standby))


# ------------------------------------------------------------------------ how far it is complete

RUNNING = "a transaction at the source is running since 2018-04-29 23:00:00+00"
HIDDEN = (
    "transactions at the source cannot be seen: the role lacks pg_read_all_stats, or they do not "
    "show themselves (track_activities)"
)
STANDBY = "the source is a standby, which does not show the transactions of its primary"
SILENT = "the source is a standby that has replayed no commit yet"

# What a server tells at noon, how far the table is complete by that with an hour to settle, and
# what keeps it from being the present.
TOLD: dict[str, tuple[Writers, datetime | None, str | None]] = {
    "nobody is there": (told(NOON), NOON - MARGIN, None),
    "a transaction": (told(NOON, oldest=END - HOUR), END - HOUR, RUNNING),
    "a transaction as old as the margin": (told(NOON, oldest=NOON - MARGIN), NOON - MARGIN, None),
    "a transaction younger than that": (
        told(NOON, oldest=NOON - MARGIN + MICROSECOND),
        NOON - MARGIN,
        None,
    ),
    "a transaction that began after the clock was read": (
        told(NOON, oldest=NOON + SECOND),
        NOON - MARGIN,
        None,
    ),
    "sessions that are not seen": (told(NOON, unseen=1), NOON - HOUR, HIDDEN),
    "of two reasons the older one": (
        told(NOON, unseen=3, oldest=END - HOUR),
        END - HOUR,
        RUNNING,
    ),
    "of two reasons the older one, which is not seen": (
        told(NOON, unseen=3, oldest=NOON - HOUR / 2),
        NOON - HOUR,
        HIDDEN,
    ),
    "prepared": (
        told(NOON, prepared=2),
        None,
        "the source has prepared transactions (2)",
    ),
    "prepared, and all else": (
        told(NOON, oldest=END, unseen=1, prepared=1, is_standby=True, replayed=END),
        None,
        "the source has prepared transactions (1)",
    ),
    "a standby": (
        told(NOON, is_standby=True, replayed=NOON - SECOND),
        NOON - SECOND - HOUR,
        STANDBY,
    ),
    "a standby whose primary is ahead": (
        told(NOON, is_standby=True, replayed=NOON + SECOND),
        NOON - HOUR,
        STANDBY,
    ),
    "a standby without a commit": (told(NOON, is_standby=True), None, SILENT),
    "a standby without a commit, with a transaction": (
        told(NOON, is_standby=True, oldest=END),
        None,
        SILENT,
    ),
    "a standby on which somebody reads for long": (
        told(NOON, is_standby=True, replayed=NOON, oldest=END - HOUR),
        NOON - HOUR,
        STANDBY,
    ),
    "a standby that does not show its own sessions": (
        told(NOON, is_standby=True, replayed=NOON, unseen=5),
        NOON - HOUR,
        STANDBY,
    ),
}


@pytest.mark.parametrize(("facts", "until", "why"), TOLD.values(), ids=TOLD.keys())
def test_how_far_a_table_is_complete(
    facts: Writers, until: datetime | None, why: str | None
) -> None:
    assert horizon(facts, HOUR, facts.instance) == Horizon(NOON, until, why)


# Facts, the time to settle, how far.
SETTLING = {
    "hidden sessions, at once": (told(NOON, unseen=1), timedelta(), NOON - MARGIN, None),
    "hidden sessions, less than the margin": (
        told(NOON, unseen=1),
        MARGIN / 2,
        NOON - MARGIN,
        None,
    ),
    "hidden sessions, a day": (told(NOON, unseen=1), 24 * HOUR, NOON - 24 * HOUR, HIDDEN),
    "a standby, at once": (
        told(NOON, is_standby=True, replayed=NOON),
        timedelta(),
        NOON - MARGIN,
        None,
    ),
    "a standby that lags, at once": (
        told(NOON, is_standby=True, replayed=END),
        timedelta(),
        END,
        STANDBY,
    ),
    "what is seen need not settle": (told(NOON), 24 * HOUR, NOON - MARGIN, None),
}


@pytest.mark.parametrize(
    ("facts", "settle", "until", "why"), SETTLING.values(), ids=SETTLING.keys()
)
def test_what_is_not_seen_settles(
    facts: Writers, settle: timedelta, until: datetime, why: str | None
) -> None:
    assert horizon(facts, settle, facts.instance) == Horizon(NOON, until, why)


BEHIND = "what is read may show tables that are filled from elsewhere"


@pytest.mark.parametrize(
    ("facts", "until", "why"),
    [
        (told(NOON), NOON - HOUR, BEHIND),
        (
            told(NOON, oldest=END),
            END,
            "a transaction at the source is running since 2018-04-30 00:00:00+00",
        ),
        (told(NOON, oldest=NOON - HOUR / 2), NOON - HOUR, BEHIND),
    ],
    ids=["alone", "with an older transaction", "with a younger one"],
)
def test_what_is_read_through_others_settles(facts: Writers, until: datetime, why: str) -> None:
    assert horizon(facts, HOUR, facts.instance, indirect=True) == Horizon(NOON, until, why)


@pytest.mark.parametrize(
    "serves",
    [Instance(STARTED + SECOND, is_standby=False), Instance(STARTED, is_standby=True)],
    ids=["another server", "a standby that was promoted"],
)
def test_what_one_server_tells_says_nothing_of_another(serves: Instance) -> None:
    """As a pooler that spreads transactions over replicas would have it."""
    spread = "the source's transactions went to several servers"
    assert horizon(told(NOON), HOUR, serves) == Horizon(NOON, None, spread)


# --------------------------------------------------------------------------------- open or sealed

NOT_PAST = "its end is not past at the source"

OPEN: dict[str, tuple[Slice, Writers, str | None]] = {
    "long past": (OF_DAY, told(NOON), None),
    "past by the margin": (OF_DAY, told(END + MARGIN), None),
    "past by less": (OF_DAY, told(END + MARGIN - MICROSECOND), NOT_PAST),
    "now": (OF_DAY, told(END), NOT_PAST),
    "in the future": (OF_DAY, told(END - HOUR), NOT_PAST),
    "in the future, with prepared transactions": (
        OF_DAY,
        told(END - HOUR, prepared=1),
        NOT_PAST,
    ),
    "in the future, with a transaction": (OF_DAY, told(END - HOUR, oldest=END - HOUR), NOT_PAST),
    "past, with a transaction from before": (OF_DAY, told(NOON, oldest=END - HOUR), RUNNING),
    "past, with a transaction from just before": (
        OF_DAY,
        told(NOON, oldest=END - MICROSECOND),
        "a transaction at the source is running since 2018-04-29 23:59:59+00",
    ),
    "past, with a transaction of its very end": (OF_DAY, told(NOON, oldest=END), None),
    "past, with a transaction from after": (OF_DAY, told(NOON, oldest=END + SECOND), None),
    "past, with prepared transactions": (
        OF_DAY,
        told(NOON, prepared=1),
        "the source has prepared transactions (1)",
    ),
    "long past, not seen": (OF_DAY, told(NOON, unseen=1), None),
    "past by an hour, not seen": (OF_DAY, told(END + HOUR, unseen=1), None),
    "past by less, not seen": (OF_DAY, told(END + HOUR - MICROSECOND, unseen=1), HIDDEN),
    "past, on a standby": (OF_DAY, told(NOON, is_standby=True, replayed=NOON), None),
    "past, on a standby that lags": (OF_DAY, told(NOON, is_standby=True, replayed=END), STANDBY),
    "past, on a standby without a commit": (OF_DAY, told(NOON, is_standby=True), SILENT),
    "a condition in a past range": (Where("id > 7", OF_DAY), told(NOON), None),
    "a condition in an open range": (
        Where("id > 7", OF_DAY),
        told(NOON, oldest=END - HOUR),
        RUNNING,
    ),
    "all": (Whole(), told(NOON), "it has no end"),
    "all, with a transaction": (Whole(), told(NOON, oldest=END), "it has no end"),
    "a condition alone": (Where("id > 7", Whole()), told(NOON), "it has no end"),
    "a day of dates": (Range("d", DATE, DAY, NEXT, None), told(NOON + MARGIN), None),
    "a day of dates that is not over in the west": (
        Range("d", DATE, DAY, NEXT, None),
        told(NOON + MARGIN - MICROSECOND),
        NOT_PAST,
    ),
    "local times": (
        Range("t", TIMESTAMP, local(END - HOUR), local(END), None),
        told(NOON + MARGIN),
        None,
    ),
    "local times that are not over in the west": (
        Range("t", TIMESTAMP, local(END - HOUR), local(END), None),
        told(NOON),
        NOT_PAST,
    ),
}


@pytest.mark.parametrize(("slice_", "facts", "why"), OPEN.values(), ids=OPEN.keys())
def test_why_a_slice_is_open(slice_: Slice, facts: Writers, why: str | None) -> None:
    assert open_because(slice_, horizon(facts, HOUR, facts.instance)) == why


def test_a_clock_that_runs_behind_seals_nothing() -> None:
    """A source whose clock is before the slice's end, whatever the transactions say."""
    for facts in (
        told(END - HOUR),
        told(END - HOUR, oldest=NOON),
        told(END - HOUR, is_standby=True, replayed=NOON),
    ):
        assert open_because(OF_DAY, horizon(facts, timedelta(), facts.instance)) == NOT_PAST


moments = st.datetimes(datetime(2018, 4, 1), datetime(2018, 5, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds have no zone


@given(
    st.builds(
        Writers,
        clock=moments,
        oldest=st.none() | moments,
        unseen=st.integers(0, 2),
        prepared=st.integers(0, 1),
        replayed=st.none() | moments,
        instance=st.builds(Instance, started=moments, is_standby=st.booleans()),
    ),
    st.integers(0, 7200).map(lambda seconds: timedelta(seconds=seconds)),
    moments,
)
def test_a_sealed_slice_ended_before_all_that_may_still_write(
    facts: Writers, settle: timedelta, end: datetime
) -> None:
    sealed = open_because(between(end - HOUR, end), horizon(facts, settle, facts.instance)) is None
    if facts.instance.is_standby:
        bounds = [at and at - settle for at in (facts.clock, facts.replayed)]
    else:
        bounds = [facts.oldest or end, facts.clock - settle if facts.unseen else end]
    assert sealed == (
        not facts.prepared
        and end <= facts.clock - MARGIN
        and all(bound is not None and end <= bound for bound in bounds)
    )


# ------------------------------------------------------------------------------ instants and ends

MIDNIGHT = datetime(2018, 4, 29, tzinfo=UTC)

INSTANTS: dict[str, tuple[Slice, tuple[tuple[datetime, datetime], ...] | None]] = {
    "a range": (OF_DAY, ((MIDNIGHT, END),)),
    "a microsecond": (between(END, END + MICROSECOND), ((END, END + MICROSECOND),)),
    "a hole": (
        Range("t", TIMESTAMPTZ, MIDNIGHT, END, "Z", None, ((MIDNIGHT + HOUR, END - HOUR),)),
        ((MIDNIGHT, MIDNIGHT + HOUR), (END - HOUR, END)),
    ),
    "two holes": (
        Range(
            "t",
            TIMESTAMPTZ,
            MIDNIGHT,
            END,
            "Z",
            None,
            ((MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR), (END - 2 * HOUR, END - HOUR)),
        ),
        (
            (MIDNIGHT, MIDNIGHT + HOUR),
            (MIDNIGHT + 2 * HOUR, END - 2 * HOUR),
            (END - HOUR, END),
        ),
    ),
    "a day that the zone skipped": (between(END, END), ()),
    "dates": (Range("d", DATE, DAY, NEXT, None), ((MIDNIGHT, END),)),
    "the calendar's dates": (
        Range("d", DATE, FIRST_DAY, LAST_DAY, None),
        ((datetime(2, 1, 1, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)),),
    ),
    "local times": (
        Range("t", TIMESTAMP, local(MIDNIGHT), local(END), None),
        ((MIDNIGHT, END),),
    ),
    "a condition in a range": (Where("id > 7", OF_DAY), ((MIDNIGHT, END),)),
    "a condition alone": (Where("id > 7", Whole()), None),
    "all": (Whole(), None),
}


@pytest.mark.parametrize(("slice_", "expected"), INSTANTS.values(), ids=INSTANTS.keys())
def test_instants(slice_: Slice, expected: tuple[tuple[datetime, datetime], ...] | None) -> None:
    assert slices.instants(slice_) == expected


ENDS: dict[str, tuple[Slice, datetime | None]] = {
    "timestamptz": (OF_DAY, END),
    "date": (Range("d", DATE, DAY, NEXT, None), END + 12 * HOUR),
    "timestamp": (Range("t", TIMESTAMP, local(MIDNIGHT), local(END), None), END + 12 * HOUR),
    "the last date": (
        Range("d", DATE, LAST_DAY, LAST_DAY + timedelta(days=1), None),
        datetime(9999, 1, 1, 12, tzinfo=UTC),
    ),
    "a day that the zone skipped": (between(END, END), END),
    "a condition in a range": (Where("id > 7", OF_DAY), END),
    "a condition alone": (Where("id > 7", Whole()), None),
    "all": (Whole(), None),
}


@pytest.mark.parametrize(("slice_", "expected"), ENDS.values(), ids=ENDS.keys())
def test_ends(slice_: Slice, expected: datetime | None) -> None:
    assert slices.end(slice_) == expected


# ------------------------------------------------------------- locks of slices by another column

TABLE_ALONE = (Lock("table", exclusive=True),)

LOCKS: dict[str, tuple[Slice, str | None, bool]] = {
    "nobody has said": (OF_DAY, None, False),
    "the same column": (OF_DAY, "created_at", False),
    "another column": (OF_DAY, "paid_at", True),
    "a column that differs by case": (OF_DAY, "Created_At", True),
    "a condition in a range, the same column": (Where("id > 7", OF_DAY), "created_at", False),
    "a condition in a range, another column": (Where("id > 7", OF_DAY), "paid_at", True),
    "all": (Whole(), "created_at", True),
    "a condition alone": (Where("id > 7", Whole()), "created_at", True),
    "more than a thousand days": (
        between(END - LONGEST_KEYED - MICROSECOND, END),
        "created_at",
        True,
    ),
    "no instant, another column": (between(END, END), "paid_at", True),
}


@pytest.mark.parametrize(("slice_", "sliced_by", "alone"), LOCKS.values(), ids=LOCKS.keys())
def test_a_slice_by_another_column_locks_the_whole_table(
    slice_: Slice, sliced_by: str | None, alone: bool
) -> None:
    taken = slices.locks(slice_, sliced_by)

    assert (taken == TABLE_ALONE) is alone
    if not alone:
        assert taken == slices.locks(slice_) != ()
        assert taken[0] == Lock("table", exclusive=False)


def test_a_lock_of_the_database_is_the_same_for_all_tables_and_none_of_theirs() -> None:
    of_database = Lock("table", exclusive=True, of_table=False)

    assert of_database.key(1) == of_database.key(2)
    assert of_database.key(1) != Lock("table", exclusive=True).key(1)


# ----------------------------------------------------------------------------------- whole numbers

LOOKED = NOON - 10 * SECOND


@pytest.mark.parametrize(
    ("stop", "oldest", "highest", "because"),
    [
        (100, None, Highest(99, LOOKED, 0), None),
        (100, LOOKED, Highest(99, LOOKED, 0), None),
        (50, None, Highest(99, LOOKED, 0), None),
        (101, None, Highest(99, LOOKED, 0), "the highest number at the source was 99"),
        (100, None, Highest(None, LOOKED, 0), "the highest number at the source was None"),
        (100, None, None, "nobody has looked for the highest number"),
        (50, None, Highest(None, LOOKED, 0, "no sequence gives them"), "no sequence gives them"),
        (100, LOOKED - SECOND, Highest(99, LOOKED, 0), "a transaction at the source is running"),
        (100, None, Highest(99, NOON, 0), "transactions may be running that had begun when"),
    ],
)
def test_numbers_up_to_the_highest_are_sealed_when_all_have_ended_that_ran_then(
    stop: int, oldest: datetime | None, highest: Highest | None, because: str | None
) -> None:
    seen = horizon(told(NOON, oldest=oldest), timedelta(), told(NOON).instance)
    slice_ = Range("id", 20, 0, stop, None)

    found = open_because(slice_, seen, highest)

    assert (found or "").startswith(because or "")
    assert (found is None) == (because is None)
    assert open_because(Where("x > 1", slice_), seen, highest) == found
