"""--rate-limit: as slow as was asked, and as quick as ever to stop."""

import json
import signal
import time

import pytest

import copypipe
from plugins.command import Command, Words, eventually
from plugins.databases import Database
from plugins.rows import assert_refused, table_of, unchanged

DAY = ("--day", "2018-04-29")


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


def wide(source: Database, dest: Database, *, rows: int = 3000, at_dest: str = "") -> None:
    """Lay `rows` rows of a kilobyte each at the source."""
    table_of(source, "")
    source.execute(
        "INSERT INTO public.t SELECT n, repeat('x', 1000), '2018-04-29Z'"
        " FROM generate_series(1, %s) n",
        [rows],
    )
    table_of(dest, at_dest)


def test_rate_limit(run: Command, source: Database, dest: Database) -> None:
    wide(source, dest)

    done = run("copy", "t", *DAY, "--rate-limit", "2MB", "--json")

    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["bytes"] > 3_000_000
    assert 1 < told["seconds"] < 4
    assert dest.digest("public.t", "id") == source.digest("public.t", "id")


def test_a_rate_that_is_not_reached_costs_nothing(
    words: Words, source: Database, dest: Database
) -> None:
    wide(source, dest)

    done = words("copy", "t", *DAY, "--rate-limit", "10GB", "--json")

    assert json.loads(done.out)["seconds"] < 1
    plan = words("copy", "t", *DAY, "--rate-limit", "1.5MB", "-n")
    assert "  rate     at most 1.5 MB a second\n" in plan.out


def copying(source: Database) -> bool:
    return any("COPY" in backend.query for backend in source.backends())


def test_a_signal_ends_a_pause(run: Command, source: Database, dest: Database) -> None:
    wide(source, dest, at_dest="1 old 04-29")

    with unchanged(source, dest):
        # The first rows that come are 16 kB or more: a pause of as many seconds.
        process = run.start("copy", "t", *DAY, "--rate-limit", "1kB")
        eventually(lambda: copying(source), what="rows flow")
        time.sleep(0.5)
        sent = process.signal(signal.SIGTERM)
        done = process.wait()
        took = time.monotonic() - sent

    assert (done.code, done.out) == (143, ""), done.err
    assert took < 2


def test_an_error_of_the_dest_ends_a_slow_copy(
    run: Command, source: Database, dest: Database
) -> None:
    """At this rate row 5 comes after half a second, and the whole would take six minutes."""
    wide(source, dest, at_dest="1 old 04-29")
    dest.execute("ALTER TABLE public.t ADD CONSTRAINT known CHECK (id <> 5)")

    with unchanged(source, dest):
        done = run("copy", "t", *DAY, "--rate-limit", "10kB")

    assert_refused(done, 1, 'violates check constraint "known"')
    assert done.seconds < 5


def test_rate_limit_in_python(source: Database, dest: Database) -> None:
    wide(source, dest, rows=600)
    sides = {"source": source.dsn, "dest": dest.dsn}

    done = copypipe.copy("t", all=True, rate_limit=512 * 1024, **sides)

    assert 0.5 < done.seconds < 3
    assert done.bytes > 600_000
