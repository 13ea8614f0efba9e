"""Runs on slices that overlap never interleave; others do not wait for each other."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import SliceBusy, Transferred
from copypipe.events import Event, Waiting
from plugins.command import add_users, eventually, no_backends, pause, users, waits_in_pause
from plugins.databases import Database

DAY = {"day": "2018-04-29"}
NEXT_DAY = {"day": "2018-04-30"}
AROUND = {"start": "2018-04-28", "stop": "2018-05-01"}
HOURS = {"start": "2018-04-29T06:00", "stop": "2018-04-29T18:00"}
ALL = {"all": True, "yes": True}
# Two conditions of one day have a row in common or have none: nobody can tell.
WHERE = {"where": "id >= 0"}
OTHER_WHERE = {"where": "id < 0 OR name <> ''"}

# Long enough to be sure that a run that may not go on does not.
A_WHILE = 0.2


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


@dataclass
class Sides:
    source: Database
    dest: Database
    pool: ThreadPoolExecutor
    holders: list[psycopg.Connection] = field(default_factory=list)

    def copy(self, table: str = "public.users", **options: Any) -> Transferred:
        return copypipe.copy(table, **{"source": self.source.dsn, "dest": self.dest.dsn, **options})

    def start(self, table: str = "public.users", **options: Any) -> Future[Transferred]:
        return self.pool.submit(self.copy, table, **options)

    def hold(self, when: str, **options: Any) -> tuple[Future[Transferred], psycopg.Connection]:
        """Start a copy and hold it up at the row for which `when` is true."""
        holder = pause(self.dest, when=when)
        self.holders.append(holder)
        future = self.start(**options)
        eventually(lambda: waits_in_pause(self.dest), what="the first run is held up")
        return future, holder


@pytest.fixture
def sides(source: Database, dest: Database) -> Iterator[Sides]:
    users(source, 3)
    users(dest, 0)
    with ThreadPoolExecutor(8) as pool:
        sides = Sides(source, dest, pool)
        yield sides
        # After a failure runs may still wait for each other, and the pool for them.
        for holder in sides.holders:
            holder.close()
        for backend in dest.backends():
            dest.execute("SELECT pg_terminate_backend(%s)", [backend.pid])


def waiting(into: list[Waiting]) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if isinstance(event, Waiting):
            into.append(event)

    return hear


OVERLAPPING = {
    "a day, the same day": (DAY, DAY),
    "a day, a range around it": (DAY, AROUND),
    "a range, a day within": (AROUND, DAY),
    "hours, their day": (HOURS, DAY),
    "a day, its hours": (DAY, HOURS),
    "a day, another zone's": (DAY, {**DAY, "timezone": "Asia/Tokyo"}),
    "a day, all": (DAY, ALL),
    "all, a day": (ALL, DAY),
    "a range of years, a day": ({"start": "2000-01-01", "stop": "2030-01-01"}, DAY),
    "a condition, a day": (WHERE, DAY),
    "a day, a condition": (DAY, WHERE),
    "a condition, another": (WHERE, OTHER_WHERE),
    "a condition, another within a day": (WHERE, {**DAY, **OTHER_WHERE}),
    "a condition within a day, the day": ({**DAY, **WHERE}, DAY),
    "a day, a condition within it": (DAY, {**DAY, **WHERE}),
    "a condition within a day, another": ({**DAY, **WHERE}, {**DAY, **OTHER_WHERE}),
}


@pytest.mark.parametrize(("first", "second"), OVERLAPPING.values(), ids=OVERLAPPING.keys())
@pytest.mark.one_of(8)
def test_overlapping_slices_exclude_each_other(
    sides: Sides, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """The second waits for the first, then sees what it did; every row is there once."""
    # With a row in it the table is not truncated, which would lock it altogether.
    add_users(sides.dest, 1, rows=1, first="2018-04-29", offset=3_000_000)
    running, holder = sides.hold("NEW.id = 1000012", **first)
    heard: list[Waiting] = []
    other = sides.start(**second, listener=waiting(heard))
    eventually(lambda: heard, what="the second run waits")
    (holding,) = heard[0].pids
    assert holding in {backend.pid for backend in sides.dest.backends()}
    time.sleep(A_WHILE)
    assert not other.done()

    holder.close()

    rows = running.result(20).rows
    assert other.result(20).deleted is not None
    assert rows in (12, 24, 72)
    copied = sides.dest.fetch("SELECT id FROM public.users")
    assert len(copied) == len(set(copied))
    no_backends(sides.source, sides.dest)


def test_many_runs_at_once_leave_each_row_once(sides: Sides) -> None:
    """In any order, from an empty dest: 72 rows, never 24 of them twice, no deadlock."""
    sides.dest.execute("ALTER TABLE public.users DROP CONSTRAINT users_pkey")
    orders = itertools.permutations([DAY, AROUND, NEXT_DAY, HOURS])
    for wanted in itertools.islice(orders, 0, 24, 4):
        futures = [sides.start(**options) for options in (*wanted, AROUND)]
        for future in futures:
            future.result(30)
        assert sides.dest.digest("public.users", "id") == sides.source.digest("public.users", "id")


ASIDE = {
    "the next day": (DAY, NEXT_DAY),
    "the next day of the same zone": (
        {**DAY, "timezone": "Europe/Vienna"},
        {**NEXT_DAY, "timezone": "Europe/Vienna"},
    ),
    "the next day of a zone of half hours": (
        {**DAY, "timezone": "Asia/Kolkata"},
        {**NEXT_DAY, "timezone": "Asia/Kolkata"},
    ),
    "the next day, conditions within both": ({**DAY, **WHERE}, {**NEXT_DAY, **WHERE}),
    "the next day, a condition within one": ({**DAY, **WHERE}, NEXT_DAY),
    "the hours after": (
        HOURS,
        {"start": "2018-04-29T18:00", "stop": "2018-04-29T20:00"},
    ),
}


@pytest.mark.parametrize(("first", "second"), ASIDE.values(), ids=ASIDE.keys())
@pytest.mark.one_of(5)
def test_slices_side_by_side_do_not_wait(
    sides: Sides, first: dict[str, Any], second: dict[str, Any]
) -> None:
    running, holder = sides.hold("NEW.id = 1000012", **first)

    done = sides.start(**second, wait_lock=0).result(20)

    assert done.rows > 0
    assert not running.done()
    holder.close()
    assert running.result(20).rows > 0


def test_other_tables_do_not_wait(sides: Sides) -> None:
    sides.dest.execute("CREATE TABLE public.other (LIKE public.users)")
    running, holder = sides.hold("NEW.id = 1000012", **DAY)

    assert sides.start(**ALL, into="public.other", wait_lock=0).result(20).rows == 72

    holder.close()
    running.result(20)


@pytest.mark.parametrize("wait_lock", [0, 0.3])
def test_busy_slice_names_who_holds_it(sides: Sides, wait_lock: float) -> None:
    running, holder = sides.hold("NEW.id = 1000012", **DAY)
    ((holding, *_),) = sides.dest.backends()
    began = time.monotonic()

    with pytest.raises(SliceBusy, match="holds a slice that overlaps") as caught:
        sides.copy(**AROUND, wait_lock=wait_lock)

    assert wait_lock <= time.monotonic() - began < wait_lock + 2
    assert (caught.value.exit_code, caught.value.retryable) == (11, True)
    assert str(holding) in str(caught.value.detail)
    eventually(lambda: len(sides.dest.backends()) == 1, what="the refused run is gone")
    holder.close()
    assert running.result(20).rows == 24
    assert sides.copy(**AROUND, wait_lock=0).rows == 72


def test_a_condition_alone_holds_the_whole_table(sides: Sides) -> None:
    running, holder = sides.hold("NEW.id = 1000012", **WHERE)

    for other in (DAY, NEXT_DAY, OTHER_WHERE, {**NEXT_DAY, **WHERE}):
        with pytest.raises(SliceBusy) as caught:
            sides.copy(**other, wait_lock=0)
        assert caught.value.exit_code == 11

    holder.close()
    assert running.result(20).rows == 72


def test_a_run_that_waited_brings_what_the_source_has_now(sides: Sides) -> None:
    running, holder = sides.hold("NEW.id = 1000012", **DAY)
    heard: list[Waiting] = []
    other = sides.start(**DAY, listener=waiting(heard))
    eventually(lambda: heard, what="the second run waits")

    add_users(sides.source, 1, rows=3, first="2018-04-29", offset=7_000_000)
    sides.source.execute("DELETE FROM public.users WHERE id = 1000000")
    holder.close()

    assert running.result(20).rows == 24
    done = other.result(20)
    assert (done.deleted, done.rows) == (24, 26)
    of_day = "SELECT * FROM public.users WHERE created_at >= '2018-04-29' ORDER BY id"
    of_day = of_day.replace(" ORDER", " AND created_at < '2018-04-30' ORDER")
    assert sides.dest.text(of_day) == sides.source.text(of_day)


def test_a_partition_and_its_parent_exclude_each_other(sides: Sides) -> None:
    sides.dest.execute(
        "DROP TABLE public.users;"
        "CREATE TABLE public.users (id bigint, name text, email varchar(80), active bool,"
        " balance numeric(12, 2), created_at timestamptz, profile jsonb, tags text[])"
        " PARTITION BY RANGE (created_at);"
        "CREATE TABLE public.users_2018 PARTITION OF public.users"
        " FOR VALUES FROM ('2018-01-01') TO ('2019-01-01')"
    )
    running, holder = sides.hold("NEW.id = 1000012", **DAY)

    with pytest.raises(SliceBusy):
        sides.copy(**DAY, into="public.users_2018", wait_lock=0)
    assert sides.copy(**NEXT_DAY, into="public.users_2018", wait_lock=0).rows == 24

    holder.close()
    assert running.result(20).rows == 24


def test_locks_end_with_the_transaction(sides: Sides) -> None:
    """They do not stay with a session, which a pooler hands on."""
    for day in (DAY, AROUND, ALL):
        sides.copy(**day)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert sides.dest.scalar(held) == 0


def test_busy_table_is_noticed_before_the_plan_waits_for_it(sides: Sides) -> None:
    """Into an empty table --all truncates, so that the table is locked for its whole load."""
    running, holder = sides.hold("NEW.id = 1000012", **ALL)
    other = sides.start(**DAY, wait_lock=0)
    try:
        with pytest.raises(SliceBusy):
            other.result(3)
    finally:
        holder.close()
        running.result(20)


def test_waiting_does_not_keep_others_from_the_table(sides: Sides) -> None:
    """Readers and writers of the table go on while a run works and another one waits."""
    sides.copy(**ALL)
    running, holder = sides.hold("NEW.id = 1000012", **DAY)
    heard: list[Waiting] = []
    other = sides.start(**DAY, listener=waiting(heard))
    eventually(lambda: heard, what="the second run waits")

    with sides.dest.connect() as connection:
        connection.execute("SET lock_timeout = '2s'")
        connection.execute("UPDATE public.users SET name = 'new' WHERE id = 5")
        assert connection.execute("SELECT count(*) FROM public.users").fetchone() == (72,)

    holder.close()
    assert running.result(20).rows == other.result(20).rows == 24


def test_runs_in_threads_do_not_share_anything(sides: Sides) -> None:
    """Four days at once from four threads, with a barrier so that they do meet."""
    barrier = threading.Barrier(3)

    def meet(event: Event) -> None:
        if type(event).__name__ == "Cleared":
            barrier.wait(20)

    days = ("2018-04-28", "2018-04-29", "2018-04-30")
    futures = [sides.start(day=day, listener=meet, wait_lock=0) for day in days]
    assert [future.result(20).rows for future in futures] == [24, 24, 24]
    assert sides.dest.digest("public.users", "id") == sides.source.digest("public.users", "id")
