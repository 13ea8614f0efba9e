"""A standby as the source: it does not show the transactions of its primary."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import chown
from pathlib import Path
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import PlanRefused, Transferred, TransientError
from copypipe.events import Event, Lagging, Retried
from copypipe.launcher import Binaries
from plugins.canary import CANARY
from plugins.command import Words, eventually
from plugins.databases import Database
from plugins.moving import MB, ended, move
from plugins.proxy import Cut, Frame, Proxy, Rule
from plugins.rows import TABLE
from plugins.servers import Server, launch_one
from plugins.ways import Begun

DAY = "2018-04-29"
MINUTE = timedelta(minutes=1)

STANDBY = "the source is a standby, which does not show the transactions of its primary"


@dataclass
class Sides:
    primary: Database
    standby: Database
    dest: Database

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.standby.dsn, "dest": self.dest.dsn}
        return copypipe.copy("public.t", **{**sides, "retries": 0, **options})

    def write(self, sql: str = "SELECT pg_current_xact_id()") -> datetime:
        """Commit at the primary, and return when the standby has replayed that."""
        self.primary.execute(sql)
        behind = self.primary.scalar("SELECT pg_current_wal_insert_lsn()")
        reached = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        eventually(lambda: self.standby.scalar(reached, [behind]), what="it is replayed")
        return self.replayed()

    def passes(self, stop: datetime) -> None:
        """Wait until the standby takes that instant for past."""
        past = "SELECT clock_timestamp() > %s + interval '1.1 s'"
        eventually(lambda: self.standby.scalar(past, [stop]), what="it is past")

    def replayed(self) -> datetime:
        return self.standby.scalar("SELECT pg_last_xact_replay_timestamp()")


def clone(primary: Server, standby: Server) -> None:
    """Make a server of our own follow another one; both are down."""
    source, target = (Path(server.launched.data_dir) for server in (primary, standby))
    owner = target.stat()
    kept = (target / "postgresql.conf").read_text()
    for found in target.iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)
    (target / "standby.signal").touch()
    (target / "postgresql.conf").write_text(
        f"{kept}primary_conninfo = 'host={primary.host} port={primary.port}"
        f" user={primary.conninfo['user']} password={CANARY}'\n"
    )
    for path in target.rglob("*"):
        chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture(scope="module")
def pair(binaries: Binaries) -> Iterator[tuple[Database, Database]]:
    """Yield a database as its primary and as its standby have it."""
    with ExitStack() as stack:
        primary, standby = (launch_one(stack, name, binaries) for name in ("primary", "standby"))
        for server in (primary, standby):
            server.stop()
        clone(primary, standby)
        primary.start()
        standby.start()
        databases = [Database(server, "postgres", stack) for server in (primary, standby)]
        databases[0].execute(TABLE)
        yield databases[0], databases[1]


@pytest.fixture
def sides(pair: tuple[Database, Database], kept_dest: Database) -> Sides:
    """Return the three, a row of long ago at the primary and replayed."""
    kept_dest.execute(TABLE)
    sides = Sides(*pair, kept_dest)
    sides.write(f"TRUNCATE public.t; INSERT INTO public.t VALUES (1, 'a', '{DAY} 10:00Z')")
    return sides


def ago(sides: Sides, minutes: float) -> dict[str, datetime]:
    """Return a slice that ended so many minutes before the last commit that was replayed."""
    stop = sides.replayed() - minutes * MINUTE
    return {"start": stop - MINUTE, "stop": stop}


def test_a_past_day_is_sealed(sides: Sides) -> None:
    done = sides.copy(day=DAY)

    assert (done.rows, done.sealed) == (1, True)


def test_a_slice_is_sealed_when_it_has_settled(sides: Sides) -> None:
    sides.write()
    recent = ago(sides, 5)

    done = sides.copy(**recent)

    assert (done.sealed, done.open_because) == (False, STANDBY)
    until = "SELECT complete_until FROM copypipe.slice ORDER BY id DESC LIMIT 1"
    assert sides.dest.scalar(until) == sides.replayed() - 60 * MINUTE
    assert sides.copy(**recent, settle=240).sealed
    assert sides.copy(**recent, settle=299).sealed
    assert not sides.copy(**recent, settle=301).sealed


def test_a_transaction_of_the_primary_is_waited_for_by_settling(sides: Sides) -> None:
    """It cannot be seen: a slice stays open for as long as transactions are taken to last."""
    with psycopg.connect(sides.primary.dsn) as other:
        other.execute("INSERT INTO public.t VALUES (7, 'late', now())")
        (began,) = other.execute("SELECT now()").fetchone()
        wanted = {"start": began - MINUTE, "stop": began + MINUTE / 1000}
        sides.passes(wanted["stop"])
        sides.write()
        done = sides.copy(**wanted)
        assert (done.rows, done.open_because) == (0, STANDBY)
        other.commit()
    sides.write()
    assert sides.copy(**wanted).rows == 1


@contextmanager
def paused(standby: Database) -> Iterator[None]:
    standby.execute("SELECT pg_wal_replay_pause()")
    is_paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
    eventually(lambda: standby.scalar(is_paused), what="replay is paused")
    try:
        yield
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")


def test_a_standby_that_lags_is_complete_up_to_what_it_has_replayed(sides: Sides) -> None:
    replayed = sides.write()
    with paused(sides.standby):
        after = {"start": replayed, "stop": replayed + MINUTE / 1000}
        sides.primary.execute("INSERT INTO public.t VALUES (7, 'lagging', now())")
        sides.passes(after["stop"])

        done = sides.copy(**after, settle=0)

        assert (done.rows, done.open_because) == (0, STANDBY)
        assert sides.copy(start=replayed - MINUTE, stop=replayed, settle=0).sealed
    # A commit from after the slice tells that nothing from before is still to be replayed.
    sides.write()
    assert sides.copy(**after, settle=0).sealed


def test_a_standby_that_has_replayed_nothing_since_it_started_seals_nothing(sides: Sides) -> None:
    sides.write("CHECKPOINT")
    sides.standby.execute("CHECKPOINT")
    sides.standby.server.restart()
    assert sides.replayed() is None

    done = sides.copy(day=DAY)

    assert (done.rows, done.sealed) == (1, False)
    assert done.open_because == "the source is a standby that has replayed no commit yet"


def test_those_who_read_from_the_standby_keep_nothing_open(sides: Sides) -> None:
    """They cannot write, and a report may run for hours."""
    with psycopg.connect(sides.standby.dsn) as other:
        (began,) = other.execute("SELECT now()").fetchone()
        sides.passes(began)
        sides.write()
        done = sides.copy(start=began, stop=began + MINUTE / 1000, settle=0)
    assert done.sealed, done.open_because


# --- a standby as the dest ------------------------------------------------------------------------


def test_a_standby_is_no_dest(sides: Sides) -> None:
    with pytest.raises(PlanRefused, match="the server is a standby") as caught:
        copypipe.copy("public.t", source=sides.dest.dsn, dest=sides.standby.dsn, day=DAY)

    assert (caught.value.exit_code, caught.value.side) == (6, "dest")


def test_a_standby_that_answers_for_the_dest_later_is_a_failover_under_way(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    sides.dest.execute(f"INSERT INTO public.t VALUES (7, 'new', '{DAY} 10:00Z')")
    between = proxy(sides.dest.server, cut_once())
    turns = iter([sides.primary, sides.standby, sides.primary])
    heard: list[Retried] = []

    def hear(event: Event) -> None:
        if isinstance(event, Retried):
            heard.append(event)

    done = copypipe.copy(
        "public.t",
        source=between.dsn(sides.dest),
        dest=lambda: psycopg.connect(next(turns).dsn),
        day=DAY,
        retry_delay=0,
        ledger=False,
        listener=hear,
    )

    assert done.attempt.number == 3
    error = heard[1].error
    assert (type(error), error.message) == (
        TransientError,
        "dest: a standby answers at its address",
    )
    assert sides.primary.fetch("SELECT note FROM public.t") == [("new",)]


def cut_once() -> Rule:
    """Cut the first connection at its first row."""

    def rule(frame: Frame) -> None:
        if frame.link == 1 and frame.is_data:
            raise Cut

    return rule


def test_doctor_tells_of_both(sides: Sides, words: Words) -> None:
    sides.write()
    ends = {"COPYPIPE_SOURCE": sides.standby.dsn, "COPYPIPE_DEST": sides.primary.dsn}

    run = words("doctor", "--json", env=ends)

    found = {(f["where"], f["check"]): f for f in json.loads(run.out)["findings"]}
    assert run.code == 0
    assert found["source", "recovery"]["text"].startswith("a standby: its newest commit is ")
    assert "(streaming, async" in found["dest", "replicas"]["text"]

    turned = {"COPYPIPE_SOURCE": sides.primary.dsn, "COPYPIPE_DEST": sides.standby.dsn}
    run = words("doctor", "t", "--json", env=turned)

    problems = [f["text"] for f in json.loads(run.out)["findings"] if f["mark"] == "problem"]
    assert run.code == 6
    assert problems[0] == "the server is a standby: it takes no writes"


# --- a standby that is waited for -----------------------------------------------------------------


@pytest.mark.parametrize("source", ["standby", "primary"])
@pytest.mark.one_of(2)
def test_no_slice_is_begun_while_a_standby_is_behind(sides: Sides, source: str) -> None:
    """Whether it is the source itself, or one of the source."""
    heard: list[Event] = []
    dsn = sides.standby.dsn if source == "standby" else sides.primary.dsn
    options: dict[str, Any] = {"start": DAY, "stop": "2018-05-01", "max_replica_lag": 0.02}

    def backfill() -> copypipe.Backfilled:
        sides_ = {"source": dsn, "dest": sides.dest.dsn}
        return copypipe.backfill("public.t", **sides_, **options, listener=heard.append)

    sides.standby.execute("ALTER SYSTEM SET wal_receiver_status_interval = '1s'")
    sides.standby.execute("SELECT pg_reload_conf()")
    with paused(sides.standby):
        sides.primary.execute("INSERT INTO public.t VALUES (9, 'late', now())")
        begun = Begun(backfill)
        eventually(lambda: any(isinstance(each, Lagging) for each in heard), what="it is told")
        assert not sides.dest.scalar("SELECT count(*) FROM public.t")
    assert len(begun.result().copied) == 2
    told = next(each for each in heard if isinstance(each, Lagging))
    assert told.side == "source"


def test_whole_tables_of_a_standby_move(sides: Sides) -> None:
    """In parts, which several sessions of it read in one snapshot."""
    sides.primary.execute(
        "CREATE TABLE moved (id int PRIMARY KEY, word text);"
        "INSERT INTO moved SELECT i, repeat('x', 100) FROM generate_series(1, 30000) AS i"
    )
    sides.write()

    found = move(sides.standby, sides.dest, "moved", part_bytes=MB, verify="checksum")

    assert ended(found)
    assert found.tables[0].parts > 2
    assert sides.dest.digest("public.moved", "id") == sides.primary.digest("public.moved", "id")
