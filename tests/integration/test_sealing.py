"""A copied slice is sealed or open: whether rows may still come into it at the source."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from plugins.command import Words, eventually
from plugins.databases import Database
from plugins.sealings import MARGIN, MINUTE, MOMENT, Sides, both

DAY = "2018-04-29"
HOUR = timedelta(hours=1)

NOT_PAST = "its end is not past at the source"
HIDDEN = (
    "transactions at the source cannot be seen: the role lacks pg_read_all_stats, or they do not "
    "show themselves (track_activities)"
)


@pytest.fixture
def sides(
    kept_source: Database, kept_dest: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sides]:
    """Yield both with a row of long ago in public.t."""
    yield from both(kept_source, kept_dest, monkeypatch)


@pytest.fixture
def prepares(kept_source: Database) -> None:
    """Skip where the source cannot prepare transactions, as servers that were given may."""
    if kept_source.scalar("SHOW max_prepared_transactions") == "0":
        pytest.skip("the source has max_prepared_transactions = 0")


def running(since: datetime) -> str:
    return f"a transaction at the source is running since {since:%Y-%m-%d %H:%M:%S}+00"


# --- transactions that are running ----------------------------------------------------------------


def test_a_past_day_is_sealed(sides: Sides) -> None:
    before = sides.clock()
    done = sides.copy(day=DAY)
    after = sides.clock()

    assert (done.sealed, done.open_because, done.rows) == (True, None, 1)
    assert sides.recorded() == ("sealed", None)
    clock, until = sides.recorded("source_clock, complete_until")
    assert before < clock < after
    assert until == clock - MARGIN


def test_a_day_that_is_not_over_is_open(sides: Sides) -> None:
    done = sides.copy(day="today")

    assert (done.sealed, done.open_because) == (False, NOT_PAST)
    assert sides.recorded() == ("open", NOT_PAST)


def test_a_slice_that_has_just_ended_is_open_for_a_second(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session may be about to begin a transaction of a moment ago."""
    monkeypatch.undo()
    stop = sides.clock()
    wanted = {"start": stop - MINUTE, "stop": stop}

    assert sides.copy(**wanted).open_because == NOT_PAST
    eventually(lambda: sides.copy(**wanted).sealed, seconds=3, what="it is sealed")
    assert timedelta(seconds=1) <= sides.clock() - stop < timedelta(seconds=3)


def test_a_transaction_from_before_the_end_keeps_a_slice_open(sides: Sides) -> None:
    other = sides.began()

    assert sides.copy(**other.slice).open_because == running(other.began)
    assert sides.recorded() == ("open", running(other.began))
    assert sides.recorded("complete_until") == (other.began,)
    # What it writes could not be known; what is older than it is complete.
    assert sides.copy(start=other.began - MINUTE, stop=other.began).sealed
    other.connection.commit()
    assert sides.copy(**other.slice).sealed
    assert sides.recorded() == ("sealed", None)


def test_a_row_that_came_late_is_brought_by_the_next_copy(sides: Sides) -> None:
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    assert (sides.copy(**other.slice).rows, sides.recorded()[0]) == (0, "open")

    other.connection.commit()

    assert (sides.copy(**other.slice).rows, sides.recorded()[0]) == (1, "sealed")


def test_the_oldest_of_several_transactions_counts(sides: Sides) -> None:
    first, second = sides.began(), sides.began()
    assert sides.copy(**second.slice).open_because == running(first.began)
    first.connection.rollback()
    assert sides.copy(**first.slice).sealed
    assert sides.copy(**second.slice).open_because == running(second.began)


def test_a_statement_that_runs_from_before_the_end_keeps_a_slice_open(sides: Sides) -> None:
    connection = sides.connect()
    connection.pgconn.send_query(b"SELECT pg_sleep(30)")
    since = eventually(
        lambda: sides.source.fetch(
            "SELECT xact_start FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
            " AND datname = current_database() AND state = 'active'"
        )
    )
    ((began,),) = since
    sides.passes(began + MOMENT)
    try:
        assert sides.copy(start=began - MINUTE, stop=began + MOMENT).open_because == running(began)
    finally:
        connection.cancel_safe(timeout=5)


def harmless_younger(sides: Sides) -> dict[str, Any]:
    sides.began("INSERT INTO public.t VALUES (7, 'x', now())")
    return {"day": DAY}


def harmless_idle(sides: Sides) -> dict[str, Any]:
    other = sides.began("INSERT INTO public.t VALUES (7, 'x', now())")
    other.connection.rollback()
    return other.slice


def harmless_elsewhere(sides: Sides) -> dict[str, Any]:
    """A transaction of another database of the cluster."""
    return sides.began(dbname="postgres").slice


def harmless_same_database(sides: Sides) -> dict[str, Any]:
    """The dest's own transaction, where both sides are one database."""
    sides.source.execute("CREATE TABLE public.into (LIKE public.t)")
    sides.dest = sides.source
    stop = sides.clock()
    sides.passes(stop)
    return {"start": stop - MINUTE, "stop": stop, "into": "public.into"}


HARMLESS = (harmless_younger, harmless_idle, harmless_elsewhere, harmless_same_database)


@pytest.mark.parametrize("others", HARMLESS)
def test_others_that_do_not_matter(sides: Sides, others: Callable[[Sides], dict[str, Any]]) -> None:
    assert sides.copy(**others(sides)).open_because is None
    assert sides.recorded() == ("sealed", None)


@pytest.mark.parametrize(
    ("elsewhere", "sealed"),
    [({}, False), ({"dbname": "postgres"}, True)],
    ids=["here", "elsewhere"],
)
@pytest.mark.usefixtures("prepares")
def test_a_prepared_transaction_keeps_every_slice_open(
    sides: Sides, elsewhere: dict[str, str], sealed: bool
) -> None:
    """When it began nobody knows any more."""
    connection = sides.connect(**elsewhere)
    connection.autocommit = True
    name = f"of {sides.source.name}"
    connection.execute("BEGIN")
    connection.execute("SELECT pg_current_xact_id()")
    connection.execute(f"PREPARE TRANSACTION '{name}'")
    try:
        done = sides.copy(day=DAY)
    finally:
        connection.execute(f"ROLLBACK PREPARED '{name}'")

    because = None if sealed else "the source has prepared transactions (1)"
    assert (done.sealed, done.open_because) == (sealed, because)
    if not sealed:
        assert sides.recorded("complete_until") == (None,)
    assert sides.copy(day=DAY).sealed


def test_a_session_that_does_not_show_its_activity_keeps_a_slice_open(sides: Sides) -> None:
    """With track_activities off a transaction has no beginning in pg_stat_activity."""
    other = sides.began(
        "INSERT INTO public.t VALUES (7, 'late', now())", options="-c track_activities=off"
    )

    assert not sides.copy(**other.slice).sealed


def test_a_session_that_shows_its_activity_only_now_keeps_a_slice_open(sides: Sides) -> None:
    """When its transaction began it said nothing, and it does not say that later."""
    other = sides.began(
        "INSERT INTO public.t VALUES (7, 'late', now())", options="-c track_activities=off"
    )
    other.connection.execute("SET track_activities = on")
    shown = "SELECT state, xact_start FROM pg_stat_activity WHERE pid = %s"
    pid = other.connection.info.backend_pid
    assert sides.source.fetch(shown, [pid]) == [("idle in transaction", None)]

    done = sides.copy(**other.slice)

    assert (done.rows, done.open_because) == (0, HIDDEN)
    other.connection.commit()
    assert (sides.copy(**other.slice).rows, sides.recorded()[0]) == (1, "sealed")


def test_neither_does_one_that_is_at_work_hide(sides: Sides) -> None:
    """What it does is shown since its statement began, which is later than its transaction."""
    other = sides.began(
        "INSERT INTO public.t VALUES (7, 'late', now())", options="-c track_activities=off"
    )
    other.connection.execute("SET track_activities = on")
    other.connection.pgconn.send_query(b"SELECT pg_sleep(5)")
    active = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    pid = other.connection.info.backend_pid
    eventually(lambda: sides.source.scalar(active, [pid]), what="it is at work")

    assert not sides.copy(**other.slice).sealed


ELSEWHERE = {
    "a materialized view": (
        "ALTER TABLE public.t RENAME TO stored;"
        "CREATE MATERIALIZED VIEW public.t AS SELECT * FROM public.stored;"
        f"INSERT INTO public.stored VALUES (2, 'not refreshed', '{DAY} 12:00Z')"
    ),
    "a foreign table": (
        "DROP TABLE public.t; CREATE EXTENSION IF NOT EXISTS file_fdw SCHEMA public;"
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE public.t (id int, note text, created_at timestamptz)"
        " SERVER files OPTIONS (filename '/dev/null')"
    ),
    "an inheritance child that is a foreign table": (
        "CREATE EXTENSION IF NOT EXISTS file_fdw SCHEMA public;"
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE public.far () INHERITS (public.t)"
        " SERVER files OPTIONS (filename '/dev/null')"
    ),
}


@pytest.mark.parametrize("sql", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_what_is_filled_from_elsewhere_is_not_sealed(sides: Sides, sql: str) -> None:
    """No transaction of the source tells of what will still come into it."""
    sides.source.execute(sql)

    assert not sides.copy(day=DAY).sealed


THROUGH: dict[str, tuple[str, dict[str, Any]]] = {
    "a view": (
        "ALTER TABLE public.t RENAME TO stored; CREATE VIEW public.t AS SELECT * FROM stored",
        {},
    ),
    "a query": ("", {"query": "SELECT * FROM public.t"}),
    "an inheritance parent": ("CREATE TABLE public.child () INHERITS (public.t)", {}),
}


@pytest.mark.parametrize(("sql", "options"), THROUGH.values(), ids=THROUGH.keys())
def test_what_is_read_through_something_else_has_to_settle(
    sides: Sides, recent: dict[str, datetime], sql: str, options: dict[str, Any]
) -> None:
    """Nobody looks what is behind it, and what fills that is not seen."""
    if sql:
        sides.source.execute(sql)

    assert sides.copy(day=DAY, **options).sealed
    done = sides.copy(**recent, **options)
    assert done.open_because == "what is read may show tables that are filled from elsewhere"
    assert sides.copy(**recent, **options, settle=0).sealed


# --- roles that may not see -----------------------------------------------------------------------


@pytest.fixture
def recent(sides: Sides) -> dict[str, datetime]:
    """Return a slice that ended a few minutes ago."""
    stop = sides.clock() - 5 * MINUTE
    return {"start": stop - 5 * MINUTE, "stop": stop}


def test_a_role_that_may_not_see_waits_for_a_slice_to_settle(
    sides: Sides, recent: dict[str, datetime]
) -> None:
    """The tests' own sessions are a superuser's."""
    dsn = sides.source.role("reader", "SELECT ON public.t").dsn

    done = sides.copy(**recent, source=dsn)

    assert (done.sealed, done.open_because) == (False, HIDDEN)
    clock, until = sides.recorded("source_clock, complete_until")
    assert until == clock - HOUR
    assert sides.copy(**recent, source=dsn, settle=0).sealed
    assert sides.copy(**recent, source=dsn, settle=240).sealed
    assert not sides.copy(**recent, source=dsn, settle=600).sealed
    assert sides.copy(day=DAY, source=dsn).sealed
    assert sides.copy(**recent).sealed


def test_settle_is_an_option(sides: Sides, words: Words, recent: dict[str, datetime]) -> None:
    dsn = sides.source.role("reader", "SELECT ON public.t").dsn
    range_ = ("--from", recent["start"].isoformat(), "--to", recent["stop"].isoformat())

    def state(*options: str) -> str:
        done = words("copy", "t", *range_, "--json", *options, env={"COPYPIPE_SOURCE": dsn})
        assert done.code == 0, done.err
        return json.loads(done.out)["state"]

    assert [
        state(),
        state("--settle", "0"),
        state("--settle", "4min"),
        state("--settle", "2h"),
    ] == [
        "open",
        "sealed",
        "sealed",
        "open",
    ]


def test_a_role_that_may_see_need_not_wait(sides: Sides, recent: dict[str, datetime]) -> None:
    role = sides.source.role("reader", "SELECT ON public.t", "pg_read_all_stats")
    other = sides.began()

    assert sides.copy(**recent, source=role.dsn).sealed
    assert sides.copy(**other.slice, source=role.dsn).open_because == running(other.began)


def test_a_role_sees_its_own_sessions(sides: Sides, recent: dict[str, datetime]) -> None:
    role = sides.source.role("reader", "SELECT ON public.t")
    other = sides.began(user=role.name, password=role.password)

    with alone(sides.source, role.name):
        assert sides.copy(**recent, source=role.dsn).sealed
        because = sides.copy(**other.slice, source=role.dsn).open_because

    assert because == running(other.began)


def test_a_plan_says_what_a_role_may_not_see(sides: Sides, words: Words) -> None:
    poor = sides.source.role("reader", "SELECT ON public.t")
    rich = sides.source.role("reader", "SELECT ON public.t", "pg_read_all_stats")

    def notes(dsn: str, *options: str) -> list[str]:
        planned = words("copy", "t", "-n", "--json", *options, env={"COPYPIPE_SOURCE": dsn})
        assert planned.code == 0, planned.err
        return [note for note in json.loads(planned.out)["notes"] if "pg_read_all_stats" in note]

    day = ("--day", DAY)
    (note,) = notes(poor.dsn, *day)
    assert "a slice is open until --settle after its end" in note
    assert notes(rich.dsn, *day) == notes(sides.source.dsn, *day) == []
    # Where it does not matter: what has no end is never sealed, and without the ledger no one asks.
    assert notes(poor.dsn, "--all", "--yes") == notes(poor.dsn, *day, "--no-ledger") == []


@contextmanager
def alone(database: Database, role: str) -> Iterator[None]:
    """Run the block while no session of another role is in the database."""
    for _, connection in database._sessions.values():
        connection.close()
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND usename IS DISTINCT FROM %s"
    )
    with closing(database.server.connect()) as outside:

        def gone() -> bool:
            return outside.execute(others, [database.name, role]).fetchone() == (0,)

        eventually(gone, what="no other role is in the database")
        yield


# --- columns without a zone -----------------------------------------------------------------------

# Of a time that is that long past, nobody knows whether it is past everywhere.
AGO = {timedelta(hours=11): False, timedelta(hours=13): True}


@pytest.mark.parametrize(("ago", "sealed"), AGO.items(), ids=map(str, AGO))
def test_local_times_are_past_everywhere_twelve_hours_later(
    sides: Sides, ago: timedelta, sealed: bool
) -> None:
    for side in (sides.source, sides.dest):
        side.execute("ALTER TABLE public.t ADD at timestamp")
    stop = sides.clock().replace(tzinfo=None) - ago

    done = sides.copy(by="at", start=stop - HOUR, stop=stop)

    assert (done.sealed, done.open_because) == (sealed, None if sealed else NOT_PAST)


def test_dates_are_past_everywhere_twelve_hours_later(sides: Sides) -> None:
    for side in (sides.source, sides.dest):
        side.execute("ALTER TABLE public.t ADD of date")
    # The latest day that is over in the west, too, and the day after it.
    over = (sides.clock() - 12 * HOUR).date() - timedelta(days=1)

    assert sides.copy(by="of", day=over).sealed
    assert sides.copy(by="of", day=over + timedelta(days=1)).open_because == NOT_PAST


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["--all --yes", "--where id=1"])
def test_what_has_no_end_is_never_sealed_and_no_word_is_lost_about_it(
    sides: Sides, words: Words, wanted: str
) -> None:
    done = words("copy", "t", *wanted.split())

    assert done.code == 0, done.err
    assert done.out.endswith(", copied 1\n")
    assert sides.recorded() == ("open", "it has no end")
    assert sides.recorded("instants::text, by_column, zone") == ("{(,)}", None, None)
    told = json.loads(words("copy", "t", *wanted.split(), "--json").out)
    assert (told["state"], told["open_because"]) == ("open", "it has no end")


def test_an_open_range_is_said_to_be_open(sides: Sides, words: Words) -> None:
    for options in (("--day", "today"), ("--day", "today", "--where", "id > 0")):
        assert words("copy", "t", *options).out.endswith(", copied 0, open\n")
    told = json.loads(words("copy", "t", "--day", "today", "--json").out)
    assert (told["state"], told["open_because"], told["recorded"]) == ("open", NOT_PAST, True)


def test_a_sealed_range_is_said_to_be_nothing(sides: Sides, words: Words) -> None:
    assert words("copy", "t", "--day", DAY).out.endswith(", copied 1\n")
    told = json.loads(words("copy", "t", "--day", DAY, "--json").out)
    assert (told["state"], told["open_because"]) == ("sealed", None)


def test_a_run_without_a_ledger_says_the_same(sides: Sides, words: Words) -> None:
    assert words("copy", "t", "--day", "today", "--no-ledger").out.endswith(", copied 0, open\n")
    told = json.loads(words("copy", "t", "--day", "today", "--json", "--no-ledger").out)
    assert (told["state"], told["recorded"]) == ("open", False)
