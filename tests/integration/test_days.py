"""A day is what the source says it is: rows around every clock change of every zone.

The clock changes are found by SQL of our own over the source's AT TIME ZONE, and the rows that
belong to a day are those of its own ``(at AT TIME ZONE zone)::date``.
"""

import os
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from typing import Any, NamedTuple

import pytest
from psycopg.sql import SQL, Composed, Identifier, Literal

import copypipe
from copypipe import catalog, servers, slices
from copypipe.crossings import Crossing
from copypipe.errors import PlanRefused, UsageError
from copypipe.requests import Endpoint
from copypipe.servers import Session
from copypipe.slices import Offsets, Period, Range
from copypipe.statements import copies
from copypipe.statements import slices as slice_statements
from copypipe.tables import Column
from plugins.databases import Database

ONE_DAY = timedelta(days=1)

# Clocks that do what is easily got wrong, and the local day of it.
NASTY = [
    ("Africa/Cairo", date(2023, 4, 28)),  # begins at 01:00
    ("Africa/Cairo", date(2023, 10, 26)),  # its last hour comes twice
    ("Africa/Monrovia", date(1972, 1, 7)),  # from -00:44:30 to 0
    ("America/Goose_Bay", date(2010, 11, 7)),  # 00:01 -> 23:01 of the day before
    ("America/Havana", date(2018, 11, 4)),  # midnight comes twice
    ("America/Juneau", date(1983, 10, 30)),  # two hours at once
    ("America/Sao_Paulo", date(2018, 2, 17)),  # 24:00 -> 23:00
    ("America/Sao_Paulo", date(2018, 11, 4)),  # begins at 01:00
    ("America/St_Johns", date(2010, 11, 7)),  # 00:01 -> 23:01 of the day before
    ("Antarctica/Casey", date(2010, 3, 5)),  # three hours at once
    ("Asia/Beirut", date(2022, 10, 30)),  # 00:00 -> 23:00 of the day before
    ("Asia/Beirut", date(2023, 3, 26)),  # begins at 01:00
    ("Asia/Colombo", date(1996, 10, 26)),  # half an hour, at half past midnight
    ("Australia/Lord_Howe", date(2018, 4, 1)),  # half an hour
    ("Pacific/Apia", date(2011, 12, 30)),  # never was
]


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


# ------------------------------------------------------------------- the clocks of the source


class Change(NamedTuple):
    """A clock change: from `at` on the offset is `after`, until then it was `before`."""

    at: datetime
    before: timedelta
    after: timedelta

    def days(self) -> set[date]:
        """Return the local days of the change, the one before and the one after."""
        here = {(self.at + offset).date() for offset in (self.before, self.after)}
        return {day + step for day in here for step in (-ONE_DAY, timedelta(0), ONE_DAY)}

    def crosses_midnight(self) -> bool:
        return (self.at + self.before).date() != (self.at + self.after).date()


# Offsets six hours apart, and each change between two of them found by halves, to the second.
CHANGES = """
    WITH RECURSIVE sample AS (
        SELECT t, (t AT TIME ZONE %(zone)s) - (t AT TIME ZONE 'UTC') AS o
          FROM generate_series('1970-01-01Z', '2038-01-01Z'::timestamptz, '6 hours') t),
    search (lo, hi, before, after) AS (
        SELECT t - interval '6 hours', t, before, o
          FROM (SELECT t, o, lag(o) OVER (ORDER BY t) AS before FROM sample) s
         WHERE o <> before
         UNION ALL
        SELECT CASE WHEN same THEN mid ELSE lo END, CASE WHEN same THEN hi ELSE mid END,
               before, after
          FROM search
         CROSS JOIN LATERAL (SELECT date_trunc('second', lo + (hi - lo) / 2) AS mid) m
         CROSS JOIN LATERAL (
               SELECT (mid AT TIME ZONE %(zone)s) - (mid AT TIME ZONE 'UTC') = before AS same) o
         WHERE hi - lo > interval '1 second')
    SELECT hi, before, after FROM search WHERE hi - lo = interval '1 second' ORDER BY hi
"""


def zone_names(source: Database) -> list[str]:
    return [name for (name,) in source.fetch("SELECT name FROM pg_timezone_names ORDER BY 1")]


def changes_of(source: Database, zone: str) -> list[Change]:
    """Return the clock changes of a zone since 1970, or an ordinary instant if it has none."""
    found = source.fetch(CHANGES, {"zone": zone})
    if found:
        return [Change(at.astimezone(UTC), before, after) for at, before, after in found]
    ordinary = datetime(2018, 4, 29, 22, tzinfo=UTC)
    offset = source.scalar(
        "SELECT (%(at)s AT TIME ZONE %(zone)s) - (%(at)s AT TIME ZONE 'UTC')",
        {"at": ordinary, "zone": zone},
    )
    return [Change(ordinary, offset, offset)]


def lay_rows(source: Database, changes: list[Change]) -> None:
    """Fill public.events with rows around the changes, and around the midnights near them."""
    source.execute(
        """
        DROP TABLE IF EXISTS public.events;
        CREATE TABLE public.events (id int4 PRIMARY KEY, at timestamptz NOT NULL, origin text)
        """
    )
    source.execute(
        """
        INSERT INTO public.events
        SELECT row_number() OVER (ORDER BY t), t, 'source'
          FROM (SELECT at + step
                  FROM unnest(%(at)s::timestamptz[]) at, unnest(
                       '{0,-1us,1us,-30min,30min,-1h,1h,-2h,2h}'::interval[]) step
                UNION
                SELECT generate_series(at - interval '30h', at + interval '30h', '1h')
                  FROM unnest(%(at)s::timestamptz[]) at
                UNION
                SELECT ((at AT TIME ZONE 'UTC' + o)::date + day - o) AT TIME ZONE 'UTC' + step
                  FROM unnest(%(at)s::timestamptz[], %(before)s::interval[], %(after)s::interval[])
                           AS c (at, before, after),
                       unnest(ARRAY[before, after]) o,
                       generate_series(-1, 2) AS day,
                       unnest('{0,-1us,1us}'::interval[]) step) AS laid (t)
        """,
        dict(zip(("at", "before", "after"), map(list, zip(*changes, strict=True)), strict=True)),
    )
    source.execute("CREATE INDEX ON public.events (at); ANALYZE public.events")


# --------------------------------------------------------------------- many days in one query


@contextmanager
def reading(source: Database) -> Iterator[Session]:
    """Yield a session of the product, in a transaction as that in which it makes its plans."""
    with servers.connected("source", Endpoint(source.dsn, "test"), "days") as session:
        session.begin("READ COMMITTED", read_only=True, own_search_path=True)
        yield session


class Clockwork:
    """The product's days of one zone, over the rows of public.events at the source."""

    def __init__(self, session: Session, zone: str) -> None:
        self.session = session
        self.table = catalog.table(session, catalog.resolve(session, "public.events"))
        self.zone = zone
        self._offsets: dict[date, Offsets] = {}

    def slice_of(self, day: date) -> Range:
        until = day + ONE_DAY
        return slices.of_timestamptz(
            Period(day, until), "at", self.zone, self._around(day), self._around(until)
        )

    def only(self, name: str) -> list[tuple[Column, Crossing]]:
        as_it_is = Crossing("same", "the test's")
        return [(column, as_it_is) for column in self.table.columns if column.name == name]

    def _around(self, day: date) -> Offsets:
        if day not in self._offsets:
            self._offsets[day] = catalog.offsets(self.session, self.zone, day)
        return self._offsets[day]


def days_and_rows(clockwork: Clockwork, ranges: dict[date, Range]) -> Composed:
    """Compare the rows of these slices with those of the server's own dates."""
    found = SQL(" UNION ALL ").join(
        SQL("SELECT {}::date, at FROM ({}) s").format(
            Literal(day), copies.select(clockwork.table, clockwork.only("at"), slice_)
        )
        for day, slice_ in ranges.items()
    )
    return SQL(
        """
        WITH found (day, at) AS ({found}),
             wanted AS (SELECT (at AT TIME ZONE {zone})::date AS day, at FROM {table}),
             expected AS (SELECT * FROM wanted WHERE day = ANY ({days}::date[]))
        SELECT 'too much', * FROM (TABLE found EXCEPT ALL TABLE expected) x
        UNION ALL
        SELECT 'missing', * FROM (TABLE expected EXCEPT ALL TABLE found) x
        UNION ALL
        SELECT 'compared', NULL, NULL FROM expected
        """
    ).format(
        found=found,
        zone=Literal(clockwork.zone),
        table=Identifier(clockwork.table.schema, clockwork.table.name),
        days=Literal(list(ranges)),
    )


# The planner's time grows faster than the number of branches.
DAYS_A_QUERY = 60


def check_days(source: Database, zone: str, changes: list[Change]) -> Counter[str]:
    """Check the days around these changes; return what was checked. Assertions name the rows."""
    lay_rows(source, changes)
    days = sorted({day for change in changes for day in change.days()})
    checked: Counter[str] = Counter(zones=1, days=len(days))
    with reading(source) as session:
        clockwork = Clockwork(session, zone)
        ranges = {day: clockwork.slice_of(day) for day in days}
        for first in range(0, len(days), DAYS_A_QUERY):
            some = {day: ranges[day] for day in days[first : first + DAYS_A_QUERY]}
            rows = session.fetch(days_and_rows(clockwork, some))
            checked["rows"] += sum(what == "compared" for what, _, _ in rows)
            wrong = [row for row in rows if row[0] != "compared"]
            assert not wrong, f"{zone}: {len(wrong)} rows, the first: {wrong[0]}"
    checked["holes"] = sum(bool(slice_.holes) for slice_ in ranges.values())
    checked["empty"] = sum(slice_.start == slice_.stop for slice_ in ranges.values())
    return checked


@pytest.fixture
def dice() -> random.Random:
    """Return a generator whose seed a failing test shows; COPYPIPE_TEST_SEED sets it again."""
    seed = os.environ.get("COPYPIPE_TEST_SEED") or secrets.token_hex(4)
    print(f"COPYPIPE_TEST_SEED={seed}")  # noqa: T201 - pytest shows it where a test fails
    return random.Random(seed)  # noqa: S311 - not for cryptography


def some_of(dice: random.Random, changes: list[Change], number: int) -> list[Change]:
    """Return a sample, in which those come first that carry the clock to another date."""
    dice.shuffle(changes)
    return sorted(changes, key=Change.crosses_midnight, reverse=True)[:number]


def test_days_around_clock_changes_hold_the_rows_of_the_servers_own_dates(
    source: Database, dice: random.Random
) -> None:
    """A sample; the whole of it is the next test."""
    nasty = sorted({zone for zone, _ in NASTY})
    others = [zone for zone in zone_names(source) if zone not in nasty]
    checked: Counter[str] = Counter()

    for zone in [*nasty, *dice.sample(others, 5)]:
        checked += check_days(source, zone, some_of(dice, changes_of(source, zone), 8))

    assert checked["zones"] == len(nasty) + 5
    assert checked["days"] > 300
    assert checked["rows"] > 15 * checked["days"]
    assert checked["holes"] > 20
    assert checked["empty"] > 0  # Apia


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_days_around_every_clock_change_of_every_zone(
    source: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    zones = zone_names(source)
    checked: Counter[str] = Counter()

    for zone in zones:
        checked += check_days(source, zone, changes_of(source, zone))

    report = ", ".join(f"{number} {what}" for what, number in checked.items())
    with capsys.disabled():
        print(f"\nchecked: {report}")  # noqa: T201 - what a sweep has seen is its result
    assert checked["zones"] == len(zones) > 400
    assert checked["days"] > 100_000
    assert checked["rows"] > 15 * checked["days"]
    assert checked["holes"] > 80
    assert checked["empty"] > 0


def test_every_zone_of_the_server_may_be_asked_for(source: Database) -> None:
    names = zone_names(source)

    assert len(names) > 400
    assert [slices.zone_name(name) for name in names] == names


# ------------------------------------------------------------------------------ whole copies

EVENTS = "SELECT id, at, origin FROM public.events ORDER BY id"


def prepare_copies(source: Database, dest: Database, change: Change) -> None:
    """Lay rows at the source, and at the dest a stale one at the instant of each."""
    lay_rows(source, [change])
    dest.execute(
        """
        DROP TABLE IF EXISTS public.events;
        CREATE TABLE public.events (id int4 PRIMARY KEY, at timestamptz NOT NULL, origin text)
        """
    )
    rows = source.fetch("SELECT -id, at, 'stale' FROM public.events")
    with dest.connect() as connection, connection.cursor() as cursor:
        cursor.executemany("INSERT INTO public.events VALUES (%s, %s, %s)", rows)


def rows_of(database: Database) -> set[tuple[Any, ...]]:
    return set(database.fetch(EVENTS))


def check_copied(source: Database, dest: Database, zone: str, day: date) -> None:
    """Copy the day: the dest has the source's rows of it, and every other row it had before."""
    by_server = "SELECT id, at, origin FROM public.events WHERE (at AT TIME ZONE %s)::date = %s"
    of_day = set(source.fetch(by_server, [zone, day]))
    instants = {at for _, at, _ in of_day}
    others = {row for row in rows_of(dest) if row[1] not in instants}

    done = copypipe.copy(
        "public.events", source=source.dsn, dest=dest.dsn, by="at", day=day, timezone=zone
    )

    assert rows_of(dest) == others | of_day
    assert done.rows == done.deleted == len(of_day)


def around(source: Database, zone: str, day: date) -> Change:
    """Return the clock change of that local day."""
    (change,) = (
        change
        for change in changes_of(source, zone)
        if day in {(change.at + change.before).date(), (change.at + change.after).date()}
    )
    return change


def test_days_of_nasty_clocks_are_copied_and_their_neighbours_stay(
    source: Database, dest: Database
) -> None:
    for zone, day in NASTY[::2]:
        prepare_copies(source, dest, around(source, zone, day))
        for one in (day, day - ONE_DAY, day + ONE_DAY):
            check_copied(source, dest, zone, one)


def test_days_of_random_clocks_are_copied(
    source: Database, dest: Database, dice: random.Random
) -> None:
    for zone in dice.sample(zone_names(source), 5):
        change = dice.choice(changes_of(source, zone))
        prepare_copies(source, dest, change)
        check_copied(source, dest, zone, dice.choice(sorted(change.days())))


# -------------------------------------------------------------------------- planted faults


def offset_at(offsets: Offsets, instant: datetime) -> timedelta:
    return next(offset for begin, end, offset in offsets.stretches() if begin <= instant < end)


def by_the_offset_of_noon(
    period: Period, column: str, zone: str, at_start: Offsets, at_stop: Offsets
) -> Range:
    """Both midnights by the offset that holds at noon of the day."""
    noon = datetime(period.start.year, period.start.month, period.start.day, 12, tzinfo=UTC)
    start = noon - timedelta(hours=12) - offset_at(at_start, noon)
    return Range(
        column, slices.TIMESTAMPTZ, start, start + ONE_DAY, zone, (period.start, period.stop)
    )


def by_the_later_midnight(
    period: Period, column: str, zone: str, at_start: Offsets, at_stop: Offsets
) -> Range:
    """Midnights as ``D::timestamp AT TIME ZONE zone`` gives them: the later of two."""

    def midnight(day: date, offsets: Offsets) -> datetime:
        naive = datetime(day.year, day.month, day.day, tzinfo=UTC)
        found = [
            naive - offset
            for begin, end, offset in offsets.stretches()
            if begin <= naive - offset < end
        ]
        return max(found, default=naive)

    return Range(
        column,
        slices.TIMESTAMPTZ,
        midnight(period.start, at_start),
        midnight(period.stop, at_stop),
        zone,
        (period.start, period.stop),
    )


_right = slices.of_timestamptz
_right_predicate = slice_statements.predicate


def without_holes(*asked: Any) -> Range:
    return replace(_right(*asked), holes=())


def with_the_stop(slice_: Range) -> Composed:
    return _right_predicate(slice_) + SQL(" OR {} = {}").format(
        Identifier(slice_.column), Literal(slice_.stop)
    )


FAULTS: list[tuple[str, Any, str, Any, str, date]] = [
    (
        "offset of noon",
        *(slices, "of_timestamptz", by_the_offset_of_noon),
        *("Europe/Vienna", date(2018, 3, 25)),
    ),
    (
        "later midnight",
        *(slices, "of_timestamptz", by_the_later_midnight),
        *("America/Havana", date(2018, 11, 4)),
    ),
    (
        "no holes",
        *(slices, "of_timestamptz", without_holes),
        *("America/St_Johns", date(2010, 11, 7)),
    ),
    (
        "inclusive stop",
        *(copies, "predicate", with_the_stop),
        *("Asia/Colombo", date(1996, 10, 26)),
    ),
    (
        "narrow window",
        *(slices, "WIDEST_OFFSET", timedelta(hours=2)),
        *("Pacific/Apia", date(2011, 12, 30)),
    ),
]


@pytest.mark.parametrize(
    ("room", "name", "wrong", "zone", "day"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
@pytest.mark.one_of(3)
def test_both_checks_see_a_planted_fault(
    source: Database,
    dest: Database,
    monkeypatch: pytest.MonkeyPatch,
    room: Any,
    name: str,
    wrong: Any,
    zone: str,
    day: date,
) -> None:
    change = around(source, zone, day)
    check_days(source, zone, [change])
    prepare_copies(source, dest, change)
    check_copied(source, dest, zone, day)
    prepare_copies(source, dest, change)
    monkeypatch.setattr(room, name, wrong)

    with pytest.raises(AssertionError):
        check_copied(source, dest, zone, day)
    with pytest.raises(AssertionError):
        check_days(source, zone, [change])


# ------------------------------------------------------------- columns of dates and local times

LOCAL_TIMES = """
    CREATE TABLE public.local (id int4 PRIMARY KEY, d date, t timestamp, origin text);
    INSERT INTO public.local
    SELECT row_number() OVER (), t, t, 'source'
      FROM unnest('{NULL,-infinity,infinity,4000-01-01 BC,
                    2018-04-28 00:00,2018-04-28 23:59:59.999999,
                    2018-04-29 00:00,2018-04-29 00:00:00.000001,2018-04-29 12:00,
                    2018-04-29 23:59:59.999999,
                    2018-04-30 00:00,2018-04-30 00:00:00.000001}'::timestamp[]) t
"""


@pytest.fixture
def local_times(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute(LOCAL_TIMES)
    dest.execute("UPDATE public.local SET origin = 'stale'")


def fresh(dest: Database) -> list[int]:
    """Return the ids of the rows that came from the source."""
    rows = dest.fetch("SELECT id FROM public.local WHERE origin = 'source' ORDER BY id")
    return [id_ for (id_,) in rows]


@pytest.mark.usefixtures("local_times")
def test_days_of_columns_without_a_zone_are_the_same_in_every_zone(
    source: Database, dest: Database
) -> None:
    for column, zone in product("dt", ["UTC", "Asia/Tokyo", "America/St_Johns"]):
        dest.execute("UPDATE public.local SET origin = 'stale'")

        done = copypipe.copy(
            "local", source=source.dsn, dest=dest.dsn, by=column, day="2018-04-29", timezone=zone
        )

        assert (done.rows, done.deleted, done.slice.zone) == (4, 4, None)
        assert fresh(dest) == [7, 8, 9, 10]
        assert dest.scalar("SELECT count(*) FROM public.local") == 12


@pytest.mark.usefixtures("local_times")
def test_a_range_of_local_times_is_half_open(source: Database, dest: Database) -> None:
    copypipe.copy(
        "local",
        source=source.dsn,
        dest=dest.dsn,
        by="t",
        start="2018-04-29T00:00:00.000001",
        stop="2018-04-30T00:00",
    )

    assert fresh(dest) == [8, 9, 10]


@pytest.mark.usefixtures("local_times")
def test_bounds_finer_than_the_column_are_refused(source: Database, dest: Database) -> None:
    for column, stop, message in [
        ("d", "2018-04-29T12:00", 'the slice column "d" is a date'),
        ("t", "2018-04-29T12:00Z", 'the slice column "t" is a timestamp without time zone'),
    ]:
        with pytest.raises(PlanRefused, match=message):
            copypipe.copy(
                "local", source=source.dsn, dest=dest.dsn, by=column, start="2018-04-01", stop=stop
            )

    assert fresh(dest) == []


@pytest.fixture
def empty_events(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute("CREATE TABLE public.events (id int4, at timestamptz)")


@pytest.mark.usefixtures("empty_events")
def test_rows_without_a_day_are_in_no_day(source: Database, dest: Database) -> None:
    source.execute("INSERT INTO public.events VALUES (1, NULL), (2, 'infinity'), (3, '-infinity')")
    dest.execute("INSERT INTO public.events VALUES (4, NULL), (5, 'infinity'), (6, '-infinity')")

    done = copypipe.copy(
        "events",
        source=source.dsn,
        dest=dest.dsn,
        by="at",
        start=slices.FIRST_DAY,
        stop=slices.LAST_DAY,
    )

    assert done.rows == done.deleted == 0
    assert {id_ for (id_,) in dest.fetch("SELECT id FROM public.events")} == {4, 5, 6}


# ------------------------------------------------------------------------------- relative days


def date_at(source: Database, zone: str) -> date:
    return source.scalar("SELECT (now() AT TIME ZONE %s)::date", [zone])


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.usefixtures("empty_events")
def test_relative_days_are_those_of_the_zone_by_the_clock_of_the_source(
    source: Database, dest: Database, zone: str
) -> None:
    """The two zones are 25 hours apart: their dates differ at any time."""
    source.execute(
        "INSERT INTO public.events"
        " SELECT n, (((now() AT TIME ZONE %(zone)s)::date - n) + time '12:00')"
        " AT TIME ZONE %(zone)s FROM generate_series(-2, 5) n",
        {"zone": zone},
    )
    today = date_at(source, zone)

    for word, ago in (("today", 0), ("yesterday", 1), ("-3d", 3)):
        done = copypipe.copy(
            "events", source=source.dsn, dest=dest.dsn, by="at", day=word, timezone=zone
        )
        if date_at(source, zone) == today:  # else midnight passed meanwhile
            day = today - timedelta(days=ago)
            assert done.slice.days == (day, day + ONE_DAY)
            assert dest.fetch("SELECT id FROM public.events") == [(ago,)]
        dest.execute("TRUNCATE public.events")

    assert date_at(source, "Pacific/Kiritimati") != date_at(source, "Pacific/Pago_Pago")


@pytest.mark.usefixtures("empty_events")
def test_today_is_asked_of_the_source(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    right = catalog.today
    monkeypatch.setattr(
        catalog, "today", lambda session, zone: asked.append(session.side) or right(session, zone)
    )

    copypipe.copy("events", source=source.dsn, dest=dest.dsn, by="at", day="today")

    assert asked == ["source"]


# ------------------------------------------------------------------------------------- zones


@pytest.mark.usefixtures("empty_events")
@pytest.mark.parametrize("day", ["2018-04-29", "today"])
def test_a_zone_that_the_source_does_not_know_is_refused(
    source: Database, dest: Database, day: str
) -> None:
    with pytest.raises(UsageError) as caught:
        copypipe.copy(
            "events", source=source.dsn, dest=dest.dsn, by="at", day=day, timezone="Mars/Olympus"
        )

    assert caught.value.message == "the source knows no time zone 'Mars/Olympus'"
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("empty_events")
def test_a_zone_is_a_name_and_neither_an_offset_nor_an_abbreviation(
    source: Database, dest: Database
) -> None:
    """PostgreSQL reads UTC+2 as two hours west of UTC, and IST as Israel's winter time."""

    def copy(zone: str) -> None:
        copypipe.copy(
            "events", source=source.dsn, dest=dest.dsn, by="at", day="2018-04-29", timezone=zone
        )

    for zone in ("utc", "europe/vienna", "Etc/GMT-2", "etc/gmt+5", "GMT0", "EST5EDT", "cet"):
        copy(zone)
    for zone in ("UTC+2", "GMT-5", "EST5", "Foo3Bar", "IST", "CEST"):
        with pytest.raises(UsageError, match="knows no time zone"):
            copy(zone)


# ------------------------------------------------------------------------------------- indexes


def scan(session: Session, statement: Composed) -> dict[str, Any]:
    """Return the node of the plan that reads the table's index."""
    ((plans,),) = session.fetch(slice_statements.cost(statement))
    nodes = [plans[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    (found,) = (node for node in nodes if "Index Cond" in node)
    return found


def literal(bound: date, type_: str) -> str:
    written = f"{bound:%Y-%m-%d}" if type_ == "date" else f"{bound:%Y-%m-%d %H:%M:%S}"
    return f"'{written}+00'" if type_ == "timestamp with time zone" else f"'{written}'"


@pytest.mark.parametrize("type_", ["date", "timestamp", "timestamptz"])
def test_an_index_on_the_column_serves_a_day(source: Database, type_: str) -> None:
    zone, day = "America/St_Johns", date(2010, 11, 7)
    source.execute(
        f"CREATE TABLE public.events (id int4, at {type_});"
        " INSERT INTO public.events SELECT n, timestamp '2010-01-01' + n * interval '10 min'"
        " FROM generate_series(1, 60000) n;"
        " CREATE INDEX ON public.events (at); ANALYZE public.events"
    )
    with reading(source) as session:
        clockwork = Clockwork(session, zone)
        table = clockwork.table
        if type_ == "timestamptz":
            slice_ = clockwork.slice_of(day)
        else:
            make = slices.of_date if type_ == "date" else slices.of_timestamp
            slice_ = make(Period(day, day + ONE_DAY), "at")
        nodes = [
            scan(session, copies.select(table, clockwork.only("id"), slice_)),
            scan(session, copies.delete(table, slice_)),
        ]

    for node in nodes:
        bounds = node["Index Cond"].strip("()").split(") AND (")
        starts = [bound.split("::")[0] for bound in bounds]
        name = table.columns[1].type_name
        assert starts == [
            f"at >= {literal(slice_.start, name)}",
            f"at < {literal(slice_.stop, name)}",
        ]
        assert bool(slice_.holes) == (type_ == "timestamptz") == ("Filter" in node)
        assert "AT TIME ZONE" not in node.get("Filter", "").upper()
        assert "timezone(" not in node.get("Filter", "")
