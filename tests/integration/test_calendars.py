"""The calendar of a table on two servers: each state, with and without a ledger or an index."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from copypipe import CopypipeError, PlanRefused, UsageError, calendars, catalog, requests, servers
from copypipe.calendars import DIED, Calendar, Failure
from copypipe.events import Warned
from copypipe.requests import Endpoint
from copypipe.slices import parse_bound, window
from plugins.command import eventually, no_backends, pause, waits_in_pause
from plugins.databases import Database
from plugins.modes import Pair, pair_of

T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"


@pytest.fixture
def pair(kept_source: Database, kept_dest: Database) -> Iterator[Pair]:
    """Yield the module's pair: from the 2nd of April on nine days of 24 rows at the source."""
    for pair in pair_of(kept_source, kept_dest):
        pair.make(f"{T}; CREATE INDEX by_time ON public.t (created_at)")
        pair.source.execute(
            "INSERT INTO public.t SELECT n, 'row ' || n, '2018-04-02Z'::timestamptz + n * interval"
            " '1 hour' FROM generate_series(0, 215) AS n"
        )
        yield pair


def read(pair: Pair, **options: Any) -> Calendar:
    """Return the calendar from the 1st to the 10th of April, unless other options are given."""
    chosen = {"start": "2018-04-01", "stop": "2018-04-11", **options}
    every, count = chosen.pop("every", "day"), chosen.pop("count", False)
    source, dest = chosen.pop("source", pair.source.dsn), chosen.pop("dest", pair.dest.dsn)
    request = requests.Request(
        source=Endpoint(source, "test"),
        dest=Endpoint(dest, "test"),
        table="public.t",
        wanted=requests.wanted(
            day=None,
            month=None,
            start=parse_bound(chosen.pop("start")),
            stop=parse_bound(chosen.pop("stop")),
            everything=False,
        ),
        **chosen,
    )
    return calendars.read(request, every, count=count, listen=pair.hear)


def states(found: Calendar) -> str:
    """Return the states of all slices, by their first two letters."""
    return " ".join(square.state[:2] for square in found.squares)


def warnings(pair: Pair) -> list[str]:
    return [event.text for event in pair.all_of(Warned)]


def test_before_anything_is_copied(pair: Pair) -> None:
    found = read(pair)

    assert states(found) == "em mi mi mi mi mi mi mi mi mi"
    assert (found.source_table, found.table, found.has_ledger) == ("public.t", "public.t", False)
    (warning,) = warnings(pair)
    assert warning.startswith("there is no ledger in ")
    no_backends(pair.source, pair.dest)


def test_what_was_copied_however_it_was_cut(pair: Pair) -> None:
    pair.copy(start="2018-04-01", stop="2018-04-04")
    pair.copy(start="2018-04-04", stop="2018-04-04T12:00")
    pair.copy(start="2018-04-04T12:00", stop="2018-04-05")
    pair.copy(start="2018-04-05", stop="2018-04-05T12:00")

    found = read(pair)

    # The first day has no row on either side and was copied together with others that have.
    assert states(found) == "co co co co op mi mi mi mi mi"
    assert [each.recorded for each in found.squares] == [
        None, None, None, 24, 12, None, None, None, None, None
    ]  # fmt: skip
    assert found.has_ledger
    assert warnings(pair) == []


def test_open_ones(pair: Pair) -> None:
    pair.copy(start="2018-04-02", stop="2018-04-04")
    pair.dest.execute("UPDATE copypipe.slice SET state = 'open', open_because = 'a test'")
    pair.copy(day="2018-04-03")

    assert states(read(pair, stop="2018-04-05")) == "em op co mi"


def test_all_rows_are_recorded_and_never_sealed(pair: Pair) -> None:
    pair.copy(all=True, yes=True)

    assert set(states(read(pair)).split()) == {"op"}


def test_one_that_failed_and_one_that_was_made_good(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CONSTRAINT c CHECK (id NOT IN (5, 30))")
    for day in ("2018-04-02", "2018-04-03"):
        with pytest.raises(CopypipeError):
            pair.copy(day=day)
    pair.dest.execute("ALTER TABLE public.t DROP CONSTRAINT c")
    pair.copy(day="2018-04-03")

    found = read(pair, stop="2018-04-05")

    assert states(found) == "em fa co mi"
    assert found.squares[1].failure == Failure("CopyFailed", "dest", "23514")
    assert found.squares[2].failure is None


def test_a_run_at_work_and_one_that_died(pair: Pair) -> None:
    with pause(pair.dest, "public.t") as holder:
        begun = pair.start(day="2018-04-03")
        eventually(lambda: waits_in_pause(pair.dest), what="the copy is held up")
        assert states(read(pair, stop="2018-04-05")) == "em mi ru mi"
        holder.close()
        begun.result()
    assert states(read(pair, stop="2018-04-05")) == "em mi co mi"
    pair.dest.execute(
        "DELETE FROM copypipe.slice; UPDATE copypipe.attempt SET state = 'running', ended_at = NULL"
    )
    no_backends(pair.dest)

    found = read(pair, stop="2018-04-05")

    # Its rows are there; nothing tells that it committed.
    assert states(found) == "em mi fa mi"
    assert found.squares[2].failure == Failure(DIED, None, None)


LOST = {
    "truncated": ("TRUNCATE public.t", "em lo lo lo"),
    "a day is gone": ("DELETE FROM public.t WHERE created_at < '2018-04-03Z'", "em lo co co"),
    "dropped and made again": (
        f"DROP TABLE public.t; {T}; CREATE INDEX ON public.t (created_at)",
        "em lo lo lo",
    ),
    "restored in part": (
        f"CREATE TABLE public.u AS SELECT * FROM public.t WHERE created_at >= '2018-04-04Z';"
        f" DROP TABLE public.t; {T}; INSERT INTO public.t SELECT * FROM public.u",
        "em lo lo un",
    ),
    "truncated, without an index": ("DROP INDEX by_time; TRUNCATE public.t", "em lo lo lo"),
    "a day is gone, without an index": (
        "DROP INDEX by_time; DELETE FROM public.t WHERE created_at < '2018-04-03Z'",
        "em lo co co",
    ),
}


@pytest.mark.parametrize(("lost", "found"), LOST.values(), ids=LOST.keys())
@pytest.mark.one_of(5)
def test_what_was_copied_and_is_gone(pair: Pair, lost: str, found: str) -> None:
    for day in (2, 3, 4):
        pair.copy(day=f"2018-04-{day:02}")
    pair.dest.execute(lost)

    assert states(read(pair, stop="2018-04-05")) == found


def test_what_was_copied_together_and_is_gone_in_part(pair: Pair) -> None:
    pair.copy(start="2018-04-01", stop="2018-04-05")
    pair.dest.execute("DELETE FROM public.t WHERE created_at < '2018-04-03Z'")

    # The first day never had a row.
    assert states(read(pair, stop="2018-04-05")) == "co lo co co"


def test_a_table_that_somebody_has_locked_is_not_waited_for(pair: Pair) -> None:
    pair.copy(day="2018-04-02")
    pair.connect().execute("LOCK TABLE public.t")

    assert states(read(pair, stop="2018-04-04")) == "em co mi"
    assert warnings(pair) == [
        "dest: public.t is locked: whether what was copied is still there was not checked"
    ]


def test_what_something_else_copied(pair: Pair) -> None:
    pair.copy(day="2018-04-02")
    pair.copy(day="2018-04-03", ledger=False)

    assert states(read(pair, stop="2018-04-05")) == "em co un mi"


def test_what_does_not_tell_of_all_rows_of_a_day(pair: Pair) -> None:
    pair.copy(day="2018-04-02", where="id > 3")

    assert states(read(pair, stop="2018-04-04")) == "em un mi"


# --- counting -------------------------------------------------------------------------------------


def test_counts_tell_what_differs(pair: Pair) -> None:
    pair.copy(start="2018-04-01", stop="2018-04-06")
    pair.copy(day="2018-04-06", ledger=False)
    pair.source.execute("INSERT INTO public.t VALUES (1000, 'late', '2018-04-03 10:00Z')")
    pair.dest.execute(
        "DELETE FROM public.t WHERE created_at >= '2018-04-04Z' AND created_at < '2018-04-05Z';"
        "INSERT INTO public.t VALUES (2000, 'extra', '2018-04-01 10:00Z')"
    )

    found = read(pair, count=True)

    assert states(found) == "di co di lo co un mi mi mi mi"
    assert [(each.source_rows, each.dest_rows) for each in found.squares][:6] == [
        (0, 1), (24, 24), (25, 24), (24, 0), (24, 24), (24, 24)
    ]  # fmt: skip
    assert [each.is_different for each in found.squares] == [
        True, False, True, True, False, False, True, True, True, True
    ]  # fmt: skip
    assert warnings(pair) == []


def test_more_rows_in_an_open_slice_are_no_difference(pair: Pair) -> None:
    pair.copy(day="2018-04-02")
    pair.dest.execute("UPDATE copypipe.slice SET state = 'open'")
    pair.source.execute("INSERT INTO public.t VALUES (1000, 'late', '2018-04-02 10:00Z')")

    found = read(pair, stop="2018-04-03", count=True)

    assert states(found) == "em op"
    assert not any(each.is_different for each in found.squares)


COLUMNS = {
    "date": "date",
    "timestamp": "timestamp",
}


@pytest.mark.parametrize("type_name", COLUMNS.values(), ids=COLUMNS.keys())
@pytest.mark.parametrize("count", [False, True], ids=["looked at", "counted"])
def test_columns_without_a_zone(pair: Pair, type_name: str, count: bool) -> None:
    change = f"ALTER TABLE public.t ALTER created_at TYPE {type_name}"
    pair.make(f"SET TimeZone = 'UTC'; {change}")
    pair.copy(start="2018-04-02", stop="2018-04-04")

    assert states(read(pair, stop="2018-04-05", count=count)) == "em co co mi"


# --- without an index, a ledger, or rights --------------------------------------------------------


def test_a_small_source_without_an_index_is_read_once(pair: Pair) -> None:
    pair.source.execute("DROP INDEX by_time")

    found = read(pair)

    assert states(found) == "em mi mi mi mi mi mi mi mi mi"
    assert {each.source_rows for each in found.squares} == {None}


def test_a_large_one_is_not_looked_at(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "BYTES_WORTH_COUNTING", 0)
    pair.make("DROP INDEX by_time")
    pair.copy(day="2018-04-02")

    assert states(read(pair, stop="2018-04-05")) == "un co un un"
    assert Counter(each.state for each in read(pair).squares)["unknown"] == 9
    told, asked = warnings(pair)[-2:]
    assert told == (
        "dest: no index of public.t serves created_at: whether what was copied is still there was "
        "not checked"
    )
    assert asked == (
        "source: no index of public.t serves created_at: slices of which nothing is recorded were "
        "not checked (--count counts them)"
    )
    assert states(read(pair, stop="2018-04-05", count=True)) == "em co mi mi"
    # That it has no row at all can be seen.
    pair.dest.execute("TRUNCATE public.t")
    assert states(read(pair, stop="2018-04-05")) == "un lo un un"


READING = ("USAGE ON SCHEMA public", "SELECT (created_at) ON public.t")
LEDGER = "USAGE ON SCHEMA copypipe"
RIGHTS: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "all of it": (
        (LEDGER, "SELECT ON copypipe.slice", "SELECT ON copypipe.attempt"),
        "em co fa mi",
        None,
    ),
    "not what was tried": (
        (LEDGER, "SELECT ON copypipe.slice"),
        "em co mi mi",
        "what failed and what is running is not known. In .*: the role lacks SELECT ON",
    ),
    "nothing of the ledger": (
        (),
        "em un mi mi",
        "dest: the ledger cannot be used for that: nothing tells what was copied. In .*: the role"
        " lacks USAGE on schema copypipe",
    ),
}


@pytest.mark.parametrize(("grants", "found", "warning"), RIGHTS.values(), ids=RIGHTS.keys())
def test_roles_that_may_only_read(
    pair: Pair, grants: tuple[str, ...], found: str, warning: str | None
) -> None:
    pair.copy(day="2018-04-02")
    pair.dest.execute("ALTER TABLE public.t ADD CONSTRAINT c CHECK (id <> 30)")
    with pytest.raises(CopypipeError):
        pair.copy(day="2018-04-03")
    pair.heard.clear()
    source = pair.source.role("reader", *READING)
    dest = pair.dest.role("reader", *READING, *grants)

    assert states(read(pair, stop="2018-04-05", source=source.dsn, dest=dest.dsn)) == found
    told = warnings(pair)
    assert len(told) == (warning is not None)
    for text in told:
        assert re.match(str(warning), text)


def test_a_ledger_of_a_newer_copypipe(pair: Pair) -> None:
    pair.copy(day="2018-04-02")
    pair.dest.execute("UPDATE copypipe.version SET version = 99")
    pair.heard.clear()

    assert states(read(pair, stop="2018-04-04")) == "em un mi"
    assert warnings(pair)[0].startswith("dest: the ledger there is of a newer copypipe: nothing")


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_role_that_may_not_read_the_column(pair: Pair, side: str) -> None:
    role = getattr(pair, side).role("reader", "USAGE ON SCHEMA public", "SELECT (id) ON public.t")

    with pytest.raises(PlanRefused, match=f"^ERROR:  {side}: the role may not read public.t"):
        read(pair, **{side: role.dsn})


BAD: dict[str, tuple[str, dict[str, Any], type[CopypipeError], str]] = {
    "no table at the dest": ("", {"into": "public.u"}, PlanRefused, "dest: there is no table"),
    "no column": ("", {"by": "at"}, PlanRefused, 'source: public.t has no column "at"'),
    "no column at the dest": (
        "ALTER TABLE public.t RENAME created_at TO at",
        {},
        PlanRefused,
        'dest: public.t has no column "created_at"',
    ),
    "a column of another type": (
        "ALTER TABLE public.t ALTER created_at TYPE date",
        {},
        PlanRefused,
        'the slice column "created_at" is date at the dest and another type at the source',
    ),
    "a column of numbers": ("", {"by": "id"}, PlanRefused, '"id" is one of numbers'),
    "no range": ("", {"stop": "2018-04-01"}, UsageError, "the range is empty"),
    "too long a range": (
        "",
        {"stop": "2050-01-01", "every": "hour"},
        UsageError,
        "more than 100000 slices",
    ),
    "no such zone": ("", {"timezone": "Europe/Nowhere"}, UsageError, "knows no time zone"),
}


@pytest.mark.parametrize(("dest", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    pair: Pair, dest: str, options: dict[str, Any], kind: type[CopypipeError], message: str
) -> None:
    if dest:
        pair.dest.execute(dest)

    with pytest.raises(kind, match=message):
        read(pair, **options)


def test_no_table_at_the_source(pair: Pair) -> None:
    pair.source.execute("DROP TABLE public.t")

    with pytest.raises(PlanRefused, match="source: there is no table public"):
        read(pair)


# --- days, hours, many of them --------------------------------------------------------------------


def test_days_of_a_zone_and_their_hours(pair: Pair) -> None:
    """The 25th of March had 23 hours in Vienna."""
    pair.source.execute(
        "INSERT INTO public.t SELECT -n, 'x', '2018-03-24 23:00Z'::timestamptz + n * interval"
        " '1 hour' FROM generate_series(1, 22) AS n"
    )
    vienna: dict[str, Any] = {"timezone": "Europe/Vienna", "start": "2018-03-25"}
    pair.copy(day="2018-03-25", timezone="Europe/Vienna")

    found = read(pair, **vienna, stop="2018-03-27", every="hour")

    days = Counter(square.day for square in found.squares)
    assert days == {date(2018, 3, 25): 23, date(2018, 3, 26): 24}
    assert [each.hour for each in found.squares] == [*range(23), *range(24)]
    assert states(found) == " ".join(["co"] * 23 + ["em"] * 24)
    assert states(read(pair, **vienna, stop="2018-03-26")) == "co"


def test_hours_of_a_range_that_begins_in_the_middle_of_a_day(pair: Pair) -> None:
    found = read(pair, start="2018-04-02T22:00", stop="2018-04-03T01:00", every="hour")

    assert [(each.day.day, each.hour) for each in found.squares] == [(2, 22), (2, 23), (3, 0)]


def test_days_counted_back_from_today(pair: Pair) -> None:
    found = read(pair, start="-3d", stop="today")

    today = pair.source.scalar("SELECT (now() AT TIME ZONE 'UTC')::date")
    days = [each.day for each in found.squares]
    assert days in (
        [today - timedelta(days=ago) for ago in (3, 2, 1)],
        [today - timedelta(days=ago) for ago in (4, 3, 2)],  # midnight has passed since
    )


def test_hours_between_instants(pair: Pair) -> None:
    found = read(pair, start="2018-04-02T22:00+00:00", stop="2018-04-03T01:00+00:00", every="hour")

    assert [(each.day.day, each.hour) for each in found.squares] == [(2, 22), (2, 23), (3, 0)]
    assert isinstance(found.squares[0].period.start, datetime)


def test_ten_years_cost_a_few_questions(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each day is recorded by itself: the odd ones are sealed, the others open."""
    pair.copy(day="2018-04-02")
    pair.dest.execute(
        "INSERT INTO copypipe.slice OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(s,"
        " jsonb_build_object('id', 100 + n, 'attempt_id', gen_random_uuid(), 'rows_copied', 0,"
        " 'state', CASE n % 2 WHEN 0 THEN 'open' ELSE 'sealed' END, 'instants',"
        " tstzmultirange(tstzrange(t, t + interval '1 day'))))).*"
        " FROM copypipe.slice s, generate_series(1, 3000) AS n,"
        " LATERAL (SELECT '2010-01-01Z'::timestamptz + n * interval '1 day' AS t) AS days"
    )
    asked = []
    fetch = servers.Session.fetch

    def counting(session: servers.Session, statement: Any) -> Any:
        asked.append(statement)
        return fetch(session, statement)

    monkeypatch.setattr(servers.Session, "fetch", counting)
    began = time.monotonic()
    found = read(pair, start="2010-01-01", stop="2020-01-01")
    seconds = time.monotonic() - began

    assert Counter(each.state for each in found.squares) == {
        "open": 1500,
        "copied": 1501,
        "missing": 8,
        "empty": 643,
    }
    assert len(asked) < 40
    # It takes one where nothing else runs.
    assert seconds < 20


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "America/St_Johns", "Pacific/Apia"])
def test_the_offsets_of_many_days_are_those_of_each(pair: Pair, zone: str) -> None:
    first = date(2006, 10, 20) if zone == "America/St_Johns" else date(2011, 12, 20)
    days = [first + timedelta(days=number) for number in range(20)]
    far = [*days, date(2015, 6, 1), date(2015, 7, 1)]
    with (
        servers.connected("source", Endpoint(pair.source.dsn, "test"), "days") as session,
        session.reading(lock_timeout="10s"),
    ):
        stretches = catalog.all_offsets(session, zone, far)
        assert len(stretches) == 3
        for day in days:
            assert stretches[0].within(*window(day)) == catalog.offsets(session, zone, day)
