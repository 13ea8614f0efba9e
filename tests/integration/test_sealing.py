"""A copied slice is sealed or open: whether rows may still come into it at the source."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import Transferred, catalog, horizons, servers, transfers
from copypipe.plans import OTHER_LOCKS
from copypipe.requests import Endpoint
from plugins.command import Words, eventually, no_backends
from plugins.databases import Database
from plugins.rows import table_of

DAY = "2018-04-29"
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MOMENT = timedelta(milliseconds=1)

NOT_PAST = "its end is not past at the source"
HIDDEN = "the role may not see the transactions of others at the source (pg_read_all_stats)"

# The margin for a process that the kernel did not run; here all of them have answered before.
MARGIN = timedelta(milliseconds=100)


@dataclass
class Sides:
    source: Database
    dest: Database
    opened: list[psycopg.Connection] = field(default_factory=list)

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        return copypipe.copy("public.t", **{**sides, "retries": 0, **options})

    def clock(self) -> datetime:
        return self.source.scalar("SELECT clock_timestamp()")

    def recorded(self, what: str = "state, open_because") -> Any:
        """Return these columns of the newest row of the ledger."""
        (row,) = self.dest.fetch(f"SELECT {what} FROM copypipe.slice ORDER BY id DESC LIMIT 1")
        return row

    def connect(self, **changes: Any) -> psycopg.Connection:
        """Return a session of somebody else at the source, maybe in another database."""
        name = {"dbname": self.source.name, "application_name": "other application"}
        connection = psycopg.connect(self.source.server.dsn(**{**name, **changes}))
        self.opened.append(connection)
        return connection

    def began(self, sql: str = "SELECT now()", **changes: Any) -> "Other":
        """Begin a transaction at the source; its slice ends right behind that, and is past."""
        connection = self.connect(**changes)
        connection.execute(sql)
        (at,) = connection.execute("SELECT now()").fetchone()
        other = Other(connection, at)
        self.passes(other.slice["stop"])
        return other

    def passes(self, stop: datetime) -> None:
        """Wait until the source takes that instant for past."""
        eventually(lambda: self.clock() > stop + horizons.MARGIN, what="the slice has ended")


@dataclass
class Other:
    """A transaction of somebody else."""

    connection: psycopg.Connection
    began: datetime

    @property
    def slice(self) -> dict[str, datetime]:
        """Return a slice that holds what the transaction stamps with now(), and little else."""
        return {"start": self.began - MINUTE, "stop": self.began + MOMENT}


@pytest.fixture
def sides(
    kept_source: Database, kept_dest: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sides]:
    """Yield both with a row of long ago in public.t."""
    monkeypatch.setattr(horizons, "MARGIN", MARGIN)
    table_of(kept_source, "1 a 04-29")
    table_of(kept_dest, "")
    sides = Sides(kept_source, kept_dest)
    yield sides
    for connection in sides.opened:
        connection.close()


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
}


@pytest.mark.parametrize("sql", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_what_is_filled_from_elsewhere_is_not_sealed(sides: Sides, sql: str) -> None:
    """No transaction of the source tells of what will still come into it."""
    sides.source.execute(sql)

    assert not sides.copy(day=DAY).sealed


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


# --- the race -------------------------------------------------------------------------------------


Hook = Callable[[pytest.MonkeyPatch, Callable[[], None]], None]


def before_looking(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = catalog.writers

    def writers(session: servers.Session) -> horizons.Writers:
        act()
        return real(session)

    monkeypatch.setattr(catalog, "writers", writers)


def after_looking(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = catalog.writers

    def writers(session: servers.Session) -> horizons.Writers:
        facts = real(session)
        act()
        return facts

    monkeypatch.setattr(catalog, "writers", writers)


def after_the_snapshot(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = transfers._begin_reading

    def begin_reading(plan: Any, source: servers.Session) -> None:
        real(plan, source)
        act()

    monkeypatch.setattr(transfers, "_begin_reading", begin_reading)


def planted(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Look for transactions after the snapshot was taken, which is the wrong order."""
    facts: list[horizons.Writers] = []

    def late(plan: Any) -> None:
        act()
        with (
            servers.connected("source", Endpoint(plan.request.source.target, "test"), "x") as again,
            again.reading(lock_timeout=OTHER_LOCKS),
        ):
            facts.append(catalog.writers(again))

    real_begin, real_because = transfers._begin_reading, transfers.open_because

    def begin_reading(plan: Any, source: servers.Session) -> None:
        real_begin(plan, source)
        late(plan)

    def open_because(slice_: Any, seen: horizons.Horizon) -> str | None:
        return real_because(slice_, horizons.horizon(facts[0], timedelta()))

    monkeypatch.setattr(transfers, "_begin_reading", begin_reading)
    monkeypatch.setattr(transfers, "open_because", open_because)


def raced(sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook) -> tuple[int, bool]:
    """Copy while a transaction from before the slice's end commits a row; return (rows, sealed)."""
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    committed: list[bool] = []

    def commit() -> None:
        other.connection.commit()
        committed.append(True)

    when(monkeypatch, commit)
    done = sides.copy(**other.slice)
    assert committed == [True]
    no_backends(sides.source, sides.dest)
    return done.rows, done.sealed


def assert_nothing_is_missed(rows: int, sealed: bool) -> None:
    assert rows == 1 or not sealed, "a sealed slice lacks a row"


RACES = {
    before_looking: (1, True),
    after_looking: (1, False),
    after_the_snapshot: (0, False),
}


@pytest.mark.parametrize(("when", "expected"), RACES.items(), ids=[hook.__name__ for hook in RACES])
def test_a_row_that_is_committed_meanwhile_is_copied_or_keeps_the_slice_open(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook, expected: tuple[int, bool]
) -> None:
    found = raced(sides, monkeypatch, when)

    assert_nothing_is_missed(*found)
    assert found == expected


def test_the_check_of_races_sees_a_planted_fault(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the transactions are read after the snapshot, the row is missed."""
    found = raced(sides, monkeypatch, planted)

    with pytest.raises(AssertionError, match="lacks a row"):
        assert_nothing_is_missed(*found)


@pytest.mark.parametrize("when", [after_looking, after_the_snapshot])
def test_a_role_that_may_not_lock_the_table_takes_the_snapshot_last(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook
) -> None:
    """With rights on columns only the source is READ COMMITTED: COPY has a snapshot of its own."""
    role = sides.source.role("columns", "SELECT (id, note, created_at) ON public.t")
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    when(monkeypatch, other.connection.commit)

    assert sides.copy(**other.slice, source=role.dsn, settle=0).rows == 1
