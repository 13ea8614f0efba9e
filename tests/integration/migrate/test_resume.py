"""A migration that was killed goes on: whatever was under way, in the end both sides are equal."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import psycopg
import pytest

from copypipe import crashpoints, keepers
from copypipe.errors import CopypipeError, PlanRefused, SliceBusy
from copypipe.migrations import Migration
from copypipe.migrations.sides import Keeper
from copypipe.requests import Endpoint
from plugins.command import eventually
from plugins.databases import Database
from plugins.moving import MB, Heard, ended, move, options
from plugins.schemas import contents, definitions

SCHEMA = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE big (id int PRIMARY KEY, feeling mood, word text);
INSERT INTO big SELECT i, 'good', md5(i::text) FROM generate_series(1, 40000) AS i;
CREATE INDEX ON big (word);
CREATE TABLE pointing (id serial PRIMARY KEY, big int REFERENCES big, at date);
INSERT INTO pointing (big, at) SELECT i, '2018-01-01' FROM generate_series(1, 100) AS i;
CREATE TABLE parted (id int NOT NULL, at date NOT NULL, PRIMARY KEY (id, at))
    PARTITION BY RANGE (at);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2018-01-01') TO ('2018-02-01');
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2018-02-01') TO ('2018-03-01');
INSERT INTO parted SELECT i, '2018-01-01'::date + i % 50 FROM generate_series(1, 1000) AS i;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON big FOR EACH ROW EXECUTE FUNCTION touch();
CREATE STATISTICS both_of ON id, word FROM big;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
INSERT INTO parent SELECT generate_series(1, 10);
INSERT INTO child SELECT generate_series(1, 20)
"""

PHASES = {
    *("set up", "rows", "index", "constraint", "analyze"),
    *("other", "reference", "validation", "end"),
}


@pytest.fixture
def filled(source: Database) -> Database:
    source.execute(SCHEMA)
    return source


def done(dest: Database) -> set[tuple[str, int]]:
    """Return what a migration has committed: of which phase, and something that tells it apart."""
    if dest.scalar("SELECT to_regclass('copypipe.migration')") is None:
        return set()
    return {
        ("set up", 0),
        *dest.fetch("SELECT 'rows', id FROM copypipe.slice"),
        *dest.fetch("SELECT kind, number FROM copypipe.migration_step WHERE done_at IS NOT NULL"),
        *dest.fetch("SELECT 'end', 0 FROM copypipe.migration WHERE ended_at IS NOT NULL"),
    }


@pytest.fixture
def moments(
    filled: Database, fresh_dest: Iterator[Database], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[int]]:
    """Return at which statements of the dest a run of one job works at which phase."""
    dest = next(fresh_dest)
    seen: list[set[tuple[str, int]]] = []

    def reach(name: str) -> None:
        if name == "dest-statement":
            seen.append(done(dest))

    with monkeypatch.context() as patched:
        patched.setattr(crashpoints, "ARMED", True)
        patched.setattr(crashpoints, "reach", reach)
        assert ended(move(filled, dest, jobs=1, part_bytes=MB))
    found: dict[str, list[int]] = {}
    seen.append(done(dest))
    at = "end"
    for number in range(len(seen) - 2, -1, -1):
        if new := seen[number + 1] - seen[number]:
            ((at, _), *_) = sorted(new)
        found.setdefault(at, []).append(number + 1)
    return found


def killed(
    source: Database, dest: Database, moment: int, jobs: int = 1, point: str = "dest-statement"
) -> None:
    """Run the executable until that statement of the dest, where it is killed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "copypipe", "migrate", "--all-tables", "--part-size", "1MB"),
            *("--jobs", str(jobs), "--source", source.dsn, "--dest", dest.dsn),
        ],
        env={**os.environ, "COPYPIPE_CRASHPOINT": f"{point}:{moment}"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr.decode()


@pytest.mark.parametrize("part", range(3))
@pytest.mark.one_of(3)
def test_a_killed_migration_goes_on_from_each_phase(
    filled: Database, fresh_dest: Iterator[Database], moments: dict[str, list[int]], part: int
) -> None:
    assert moments.keys() == PHASES, "each phase was seen"
    rng = random.Random(part)  # noqa: S311 - the same moments each time
    for phase in sorted(PHASES)[part::3]:
        _goes_on(filled, next(fresh_dest), phase, rng.choice(moments[phase]))


@pytest.mark.slow
def test_a_killed_migration_goes_on_from_any_moment(
    filled: Database, fresh_dest: Iterator[Database], moments: dict[str, list[int]]
) -> None:
    every = [(phase, moment) for phase in moments for moment in moments[phase]]
    for phase, moment in random.Random(30).sample(every, 30):  # noqa: S311 - as above
        _goes_on(filled, next(fresh_dest), phase, moment)


def _goes_on(filled: Database, dest: Database, phase: str, moment: int) -> None:
    """Kill one there and go on; what is done is not done again."""
    killed(filled, dest, moment)

    if not done(dest):
        assert contents(dest) == {}, f"at {moment} nothing was made"
        found = move(filled, dest)
    else:
        found = move(filled, dest, resume=True)

    assert ended(found), f"killed at {moment}, {phase}"
    assert contents(dest) == contents(filled), f"killed at {moment}, {phase}"
    assert definitions(dest) == definitions(filled), f"killed at {moment}, {phase}"
    assert ("end", 0) in done(dest)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("point", ["commit-sent", "committed"])
@pytest.mark.one_of(5)
def test_killed_around_a_commit(filled: Database, dest: Database, point: str, number: int) -> None:
    """That of the set-up, and those of parts and tables: nothing is there twice."""
    killed(filled, dest, number, point=point)

    assert ended(move(filled, dest, resume=True))

    assert contents(dest) == contents(filled)


@pytest.mark.parametrize("moment", [90, 140, 200])
@pytest.mark.one_of(2)
def test_killed_with_several_jobs(filled: Database, dest: Database, moment: int) -> None:
    killed(filled, dest, moment, jobs=3)

    assert ended(move(filled, dest, resume=True))

    assert contents(dest) == contents(filled)
    assert definitions(dest) == definitions(filled)


class Dies(Exception):
    """What ends a run in the middle."""


PARTS = "SELECT count(*) FROM copypipe.slice WHERE condition LIKE 'pages [%'"
WHOLE = "SELECT count(*) FROM copypipe.migration_table WHERE copied_at IS NOT NULL"


def cut_short(
    source: Database, dest: Database, enough: int, *, of: str = PARTS, **more: object
) -> None:
    """End a run once so many parts of the largest table are there, or other things are."""
    run = Migration(options(source, dest, jobs=1, part_bytes=MB, **more))
    with psycopg.connect(dest.dsn, autocommit=True) as watching:

        def listen(event: object) -> None:
            if dest.scalar("SELECT to_regclass('copypipe.migration')") is None:
                return
            there = watching.execute(of).fetchone()
            if there and there[0] >= enough:
                raise Dies

        run._listen = listen
        with pytest.raises(Dies):
            run()


def test_what_is_copied_stays_and_a_table_in_parts_begins_anew(
    filled: Database, dest: Database
) -> None:
    cut_short(filled, dest, 2)
    heard = Heard()

    found = move(filled, dest, resume=True, listen=heard, part_bytes=MB)

    assert ended(found)
    assert {each.into: each.state for each in found.tables}["public.big"] == "copied"
    assert any("public.big begins anew: 2 of its" in text for text in heard)
    assert contents(dest) == contents(filled)


def test_a_table_that_points_at_itself_is_filled_as_one_again(
    source: Database, dest: Database
) -> None:
    tables = (
        "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree, w text);"
        "CREATE TABLE larger (id int, w text)"
    )
    for database in (source, dest):
        database.execute(tables)
    source.execute(
        "INSERT INTO larger SELECT i, repeat('x', 100) FROM generate_series(1, 40000) AS i;"
        "INSERT INTO tree SELECT i, nullif(i - 1, 0), repeat('x', 100)"
        " FROM generate_series(1, 20000) AS i"
    )
    cut_short(source, dest, 1, of=WHOLE, schema=False)

    found = move(source, dest, resume=True, schema=False, part_bytes=MB)

    assert ended(found)
    assert contents(dest) == contents(source)
    parts = "SELECT parts FROM copypipe.migration_table WHERE dest_table = 'public.tree'"
    assert dest.scalar(parts) == [], "who goes on must not look for parts that never were"


def test_rows_of_others_are_never_removed(filled: Database, dest: Database) -> None:
    cut_short(filled, dest, 2)
    dest.execute("INSERT INTO big VALUES (-1, 'bad', 'of somebody else')")

    with pytest.raises(
        PlanRefused, match=r"public.big holds \d+ rows, of which this migration wrote"
    ):
        move(filled, dest, resume=True)

    assert dest.scalar("SELECT word FROM big WHERE id = -1") == "of somebody else"


def test_not_consistent_keeps_parts_and_compares_in_the_end(
    filled: Database, dest: Database
) -> None:
    cut_short(filled, dest, 2)

    found = move(filled, dest, resume=True, consistent=False, part_bytes=MB)

    assert ended(found)
    ids = "SELECT count(DISTINCT attempt_id) FROM copypipe.slice WHERE condition LIKE 'pages [%%'"
    assert dest.scalar(ids) == {each.into: each.parts for each in found.tables}["public.big"]
    assert contents(dest) == contents(filled)


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.one_of(2)
def test_partitions_that_are_routed_go_on(
    source: Database, dest: Database, consistent: bool
) -> None:
    source.execute(
        "CREATE TABLE event (id int, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2018-01-01') TO ('2018-02-01');"
        "CREATE TABLE event_rest PARTITION OF event DEFAULT;"
        "INSERT INTO event SELECT i, '2018-01-01'::date + i % 31"
        " FROM generate_series(1, 100000) AS i;"
        "INSERT INTO event VALUES (-1, '2019-01-01')"
    )
    dest.execute("CREATE TABLE event (id int, at date NOT NULL)")
    cut_short(source, dest, 2, schema=False)

    found = move(source, dest, resume=True, schema=False, consistent=consistent, part_bytes=MB)

    assert ended(found)
    ids = "SELECT count(DISTINCT attempt_id) FROM copypipe.slice WHERE condition IS NOT NULL"
    assert dest.scalar(ids) == found.tables[0].parts + (2 if consistent else 0)
    every = "SELECT count(*), md5(string_agg(e::text, ',' ORDER BY id, at)) FROM event AS e"
    assert dest.fetch(every) == source.fetch(every)


def test_not_consistent_finds_what_has_changed_in_parts_that_are_there(
    filled: Database, dest: Database
) -> None:
    cut_short(filled, dest, 2)
    filled.execute("UPDATE big SET word = 'changed' WHERE id = 1")

    found = move(filled, dest, resume=True, consistent=False, part_bytes=MB)

    ((what, error),) = found.failed
    assert what.startswith("public.big pages")
    assert error.exit_code == 4
    assert "--resume without --not-consistent" in (error.hint or "")
    assert not found.is_ended

    assert ended(move(filled, dest, resume=True))
    assert contents(dest) == contents(filled)


def test_a_table_whose_rows_are_gone_begins_anew(filled: Database, dest: Database) -> None:
    cut_short(filled, dest, 2, asked=None)
    dest.execute("UPDATE copypipe.migration_table SET copied_at = now(), rows = 5")
    dest.execute("TRUNCATE big, parted, pointing, parent")
    heard = Heard()

    assert ended(move(filled, dest, resume=True, listen=heard))

    assert any("begins anew: its rows are gone" in text for text in heard)
    assert contents(dest) == contents(filled)


def test_another_start_cannot_take_what_is_under_way(filled: Database, dest: Database) -> None:
    cut_short(filled, dest, 2)

    with pytest.raises(PlanRefused, match=r"a migration that has not ended has .*big") as caught:
        move(filled, dest)

    assert "--resume --id" in (caught.value.hint or "")
    assert ended(move(filled, dest, replace=True))
    assert contents(dest) == contents(filled)
    assert definitions(dest) == definitions(filled), "what was left to do is taken over"
    with pytest.raises(PlanRefused, match="no migration from this source waits"):
        move(filled, dest, resume=True)


def test_rows_that_others_took_from_a_finished_table_are_told(
    filled: Database, dest: Database
) -> None:
    cut_short(filled, dest, 1, of=WHOLE)
    dest.execute("DELETE FROM big WHERE id > 39990")
    heard = Heard()

    found = move(filled, dest, resume=True, listen=heard)

    assert ended(found)
    (big,) = (each for each in found.tables if each.into == "public.big")
    assert (big.state, big.rows) == ("kept", 39990)
    assert any("public.big was whole with 40000 rows, and holds 39990" in text for text in heard)


def test_what_was_copied_is_what_is_told_of_it(filled: Database, dest: Database) -> None:
    """The run died between the copy and what tells of it, and others wrote into the table."""
    assert ended(move(filled, dest, "child", "parent"))
    dest.execute(
        "UPDATE copypipe.migration SET ended_at = NULL;"
        "UPDATE copypipe.migration_table SET copied_at = NULL, rows = NULL;"
        "DELETE FROM child WHERE id > 5"
    )
    heard = Heard()

    found = move(filled, dest, resume=True, listen=heard)

    assert ended(found)
    assert {each.into: each.rows for each in found.tables} == {
        "public.parent": 10,
        "public.child": 5,
    }
    assert any("public.child was whole with 20 rows, and holds 5" in text for text in heard)
    told = "SELECT rows FROM copypipe.migration_table WHERE dest_table = 'public.child'"
    assert dest.scalar(told) == 20


def test_partitions_that_came_meanwhile_are_not_left_out(filled: Database, dest: Database) -> None:
    stop_behind_set_up(filled, dest)
    filled.execute(
        "CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM ('2018-03-01')"
        " TO ('2018-04-01');"
        "INSERT INTO parted VALUES (1, '2018-03-07')"
    )

    with pytest.raises(PlanRefused, match=r"partition public\.parted_3 came since") as caught:
        move(filled, dest, resume=True)

    assert "--replace" in (caught.value.hint or "")
    assert ended(move(filled, dest, replace=True))
    assert contents(dest) == contents(filled)


def test_partitions_that_left_meanwhile_are_told(filled: Database, dest: Database) -> None:
    """Their rows would be there, and not be seen through the table that they were of."""
    stop_behind_set_up(filled, dest)
    dest.execute("ALTER TABLE parted DETACH PARTITION parted_2")

    with pytest.raises(PlanRefused, match=r"public\.parted_2 was attached .* or detached"):
        move(filled, dest, resume=True)

    dest.execute(
        "ALTER TABLE parted ATTACH PARTITION parted_2"
        " FOR VALUES FROM ('2018-02-01') TO ('2018-03-01')"
    )
    assert ended(move(filled, dest, resume=True))
    assert contents(dest) == contents(filled)


def test_tables_that_came_meanwhile_are_told(filled: Database, dest: Database) -> None:
    stop_behind_set_up(filled, dest)
    moved = contents(filled)
    filled.execute("CREATE TABLE late (id int)")
    heard = Heard()

    assert ended(move(filled, dest, resume=True, listen=heard))

    assert any("do not come: public.late" in text for text in heard)
    assert contents(dest) == moved


def test_a_table_that_is_gone_does_not_stand_in_the_way_for_ever(
    filled: Database, dest: Database
) -> None:
    stop_behind_set_up(filled, dest, asked=None)
    filled.execute("DROP TABLE pointing")
    with pytest.raises(PlanRefused, match=r"source: public\.pointing is not there any more"):
        move(filled, dest, resume=True)

    dest.execute("DROP TABLE pointing")

    assert ended(move(filled, dest, replace=True))
    assert contents(dest) == contents(filled)
    assert definitions(dest) == definitions(filled)


def test_who_goes_on_waits_for_who_is_at_work_and_looks_again(
    filled: Database, dest: Database
) -> None:
    """The second one finds that the first one has ended it."""
    cut_short(filled, dest, 2)
    second: list[CopypipeError] = []
    heard = Heard()

    def go_on() -> None:
        try:
            move(filled, dest, resume=True, part_bytes=MB, listen=heard)
        except CopypipeError as error:
            second.append(error)

    thread = threading.Thread(target=go_on)

    slices = "SELECT count(*) FROM copypipe.slice"
    there = dest.scalar(slices)

    def listen(event: object) -> None:
        if thread.ident is None and dest.scalar(slices) > there:
            thread.start()
            eventually(lambda: any("waiting up to" in t for t in heard), what="it waits")
            time.sleep(1.5)  # it has looked again, and found the keys in use

    assert ended(move(filled, dest, resume=True, part_bytes=MB, listen=listen))

    thread.join()
    (error,) = second
    assert "no migration from this source waits" in str(error)
    assert re.search(r"The last one ended 20\d\d-", str(error))
    assert not any("what is written at the source" in text for text in heard)
    assert contents(dest) == contents(filled)


def test_what_ends_while_it_is_looked_at_is_not_begun_again(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one had the keys when the ledger was read, and has ended when they are taken."""
    assert ended(move(filled, dest, part_bytes=MB))
    dest.execute(
        "UPDATE copypipe.migration SET ended_at = NULL;"
        "UPDATE copypipe.migration_table SET copied_at = NULL, rows = NULL;"
        "DELETE FROM copypipe.slice WHERE condition IS NULL"
    )
    take = Keeper.take

    def take_later(keeper: Keeper, keys: Mapping[int, str]) -> list[str]:
        dest.execute("UPDATE copypipe.migration SET ended_at = now()")
        return take(keeper, keys)

    monkeypatch.setattr(Keeper, "take", take_later)
    heard = Heard()

    with pytest.raises(PlanRefused, match="no migration from this source waits"):
        move(filled, dest, resume=True, listen=heard)

    assert not heard
    assert contents(dest) == contents(filled)


@pytest.mark.parametrize("seconds", [0.0, 3.0])
@pytest.mark.one_of(2)
def test_who_goes_on_beside_one_that_is_stopped(
    filled: Database, dest: Database, seconds: float
) -> None:
    """The first one has the keys as long as it is there, and goes on where it was."""
    slices = "SELECT count(*) FROM copypipe.slice"
    first = subprocess.Popen(
        [
            *(sys.executable, "-m", "copypipe", "migrate", "--all-tables", "--part-size", "1MB"),
            *("--jobs", "1", "--source", filled.dsn, "--dest", dest.dsn),
        ],
        env={**os.environ, "COPYPIPE_CRASHPOINT": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        eventually(
            lambda: (
                dest.scalar("SELECT to_regclass('copypipe.migration')") is not None
                and dest.scalar(slices) >= 1
            ),
            what="a part is there",
        )
        first.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # what the server was about to do is done
        there = dest.scalar(slices)

        with pytest.raises(SliceBusy, match="another run is at work on public"):
            move(filled, dest, resume=True, part_bytes=MB, wait_lock=seconds)

        assert dest.scalar(slices) == there
        first.send_signal(signal.SIGCONT)
        _, told = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 0, told.decode()
    assert contents(dest) == contents(filled)
    assert definitions(dest) == definitions(filled)


def test_nothing_to_go_on_with(filled: Database, dest: Database) -> None:
    with pytest.raises(PlanRefused, match="no migration from this source waits"):
        move(filled, dest, resume=True)


def test_the_leader_of_the_source_dies(filled: Database, dest: Database) -> None:
    """Whoever reads in its snapshot fails; what is there stays, and --resume goes on."""

    def end_leader() -> None:
        filled.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
            " current_database() AND application_name LIKE 'copypipe%' AND backend_xmin IS NOT NULL"
            " AND query LIKE '%pg_export_snapshot%'"
        )

    dies_of(filled, dest, end_leader)


def test_the_keeper_of_the_dest_dies(filled: Database, dest: Database) -> None:
    """Nothing more is committed: somebody else may have the tables now."""

    def end_keeper() -> None:
        dest.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND a.datname = current_database()"
            " AND a.state = 'idle in transaction'"
        )

    dies_of(filled, dest, end_keeper)


def dies_of(source: Database, dest: Database, happens: object) -> None:
    done = False

    def listen(event: object) -> None:
        nonlocal done
        if not done and dest.scalar("SELECT to_regclass('copypipe.migration')") is not None:
            count = "SELECT count(*) FROM copypipe.slice WHERE condition LIKE 'pages [%%'"
            if dest.scalar(count) >= 1:
                done = True
                happens()  # type: ignore[operator]

    run = Migration(options(source, dest, jobs=1, part_bytes=MB))
    run._listen = listen
    with pytest.raises(CopypipeError):
        run()
    assert done
    assert run.result is not None
    assert not run.result.is_ended
    assert ended(move(source, dest, resume=True))
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)


# --------------------------------------------------- what looked like a success and was none


def stop_behind_set_up(source: Database, dest: Database, **more: object) -> None:
    """End a run when its tables are made and no row is there."""
    run = Migration(options(source, dest, jobs=1, **more))

    def listen(event: object) -> None:
        if dest.scalar("SELECT to_regclass('copypipe.migration')") is not None:
            raise Dies

    run._listen = listen
    with pytest.raises(Dies):
        run()


def test_tables_that_another_start_has_made_are_not_taken_for_whole(
    filled: Database, dest: Database
) -> None:
    """They have neither rows nor keys: the same command once more must not end well."""
    stop_behind_set_up(filled, dest)

    with pytest.raises(PlanRefused, match="a migration that has not ended has"):
        move(filled, dest)

    assert ended(move(filled, dest, replace=True))
    assert contents(dest) == contents(filled)
    assert definitions(dest) == definitions(filled)


def test_what_is_left_of_more_tables_is_not_taken_over(filled: Database, dest: Database) -> None:
    stop_behind_set_up(filled, dest)

    with pytest.raises(PlanRefused, match=r"left to do is also about .*public\.pointing"):
        move(filled, dest, "big", replace=True)

    assert ended(move(filled, dest, resume=True))


def test_not_consistent_again_compares_again(filled: Database, dest: Database) -> None:
    cut_short(filled, dest, 2)
    filled.execute("UPDATE big SET word = 'changed' WHERE id = 1")
    for _ in range(2):
        found = move(filled, dest, resume=True, consistent=False, part_bytes=MB)
        assert [error.exit_code for _, error in found.failed] == [4]
        assert not found.is_ended


def test_parts_that_are_all_there_are_sealed(filled: Database, dest: Database) -> None:
    """The run died behind the last part, before the table was told to be whole."""
    parts = "SELECT count(*) FROM copypipe.slice WHERE condition LIKE 'pages [%%'"
    found = move(filled, dest, part_bytes=MB)
    count = dest.scalar(parts)
    assert count == {each.into: each.parts for each in found.tables}["public.big"]
    dest.execute(
        "UPDATE copypipe.migration SET ended_at = NULL;"
        "UPDATE copypipe.migration_table SET copied_at = NULL WHERE dest_table = 'public.big';"
        "DELETE FROM copypipe.slice WHERE dest_table = 'public.big' AND condition IS NULL"
    )

    found = move(filled, dest, resume=True, consistent=False, part_bytes=MB)

    assert ended(found)
    assert {each.into: each.state for each in found.tables}["public.big"] == "copied"
    assert dest.scalar(parts) == count
    whole = "SELECT rows_copied FROM copypipe.slice WHERE condition IS NULL AND dest_table = %s"
    assert dest.scalar(whole, ["public.big"]) == 40000


def test_a_whole_table_of_an_earlier_start_does_not_count(filled: Database, dest: Database) -> None:
    """It was there, was emptied by somebody, and is there in part again."""
    assert ended(move(filled, dest, "big", part_bytes=MB))
    dest.execute("UPDATE copypipe.migration SET ended_at = NULL; TRUNCATE big")
    run = Migration(options(filled, dest, jobs=1, part_bytes=MB, resume=True))
    count = "SELECT count(*) FROM copypipe.slice WHERE condition LIKE 'pages [%%'"
    before = dest.scalar(count)

    def listen(event: object) -> None:
        if dest.scalar(count) >= before + 2:
            raise Dies

    run._listen = listen
    with pytest.raises(Dies):
        run()

    found = move(filled, dest, resume=True)

    assert ended(found)
    assert [each.state for each in found.tables] == ["copied"]
    assert contents(dest)["public.big"] == contents(filled)["public.big"]


def test_a_row_put_in_the_place_of_another_is_seen(filled: Database, dest: Database) -> None:
    """As many rows as were copied, and yet one of them is of somebody else."""
    cut_short(filled, dest, 2)
    dest.execute("DELETE FROM big WHERE id = 1; INSERT INTO big VALUES (-7, 'bad', 'precious')")

    with pytest.raises(PlanRefused, match="of which this migration wrote"):
        move(filled, dest, resume=True)

    assert dest.scalar("SELECT word FROM big WHERE id = -7") == "precious"


def test_rows_of_others_between_the_parts_are_seen(filled: Database, dest: Database) -> None:
    count = "SELECT count(*) FROM copypipe.slice WHERE condition LIKE 'pages [%%'"
    came = False

    def listen(event: object) -> None:
        nonlocal came
        if not came and dest.scalar("SELECT to_regclass('copypipe.migration')") is not None:
            came = dest.scalar(count) >= 1
            if came:
                dest.execute("INSERT INTO big VALUES (-1, 'bad', 'of somebody else')")

    run = Migration(options(filled, dest, jobs=1, part_bytes=MB))
    run._listen = listen
    found = run()

    ((_, error),) = found.failed
    assert "holds 40001 rows, and 40000 were copied" in str(error)
    assert not found.is_ended


def test_deferred_indexes_are_never_lost(filled: Database, dest: Database) -> None:
    dest.execute(SCHEMA)
    dest.execute("TRUNCATE big, pointing, parted, parent")
    before = definitions(dest)
    more = {"schema": False, "defer_indexes": True}
    stop_behind_set_up(filled, dest, **more)
    assert definitions(dest) != before

    with pytest.raises(PlanRefused, match="the ledger alone knows indexes") as caught:
        keepers.remove(Endpoint(dest.dsn, "test"), 1.0, lambda what: True, dry_run=False)
    assert "CREATE INDEX big_word_idx ON public.big" in (caught.value.detail or "")

    assert ended(move(filled, dest, replace=True, **more))
    assert definitions(dest) == before
    assert contents(dest) == contents(filled)
