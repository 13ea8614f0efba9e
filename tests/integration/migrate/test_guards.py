"""What keeps a migration from harm that others could do it meanwhile: each guard by itself.

The heart of the keeper is stopped where a guard behind it is looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
import pytest

from copypipe import attempts, journals, ledger, snapshots, transfers
from copypipe.errors import (
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    PlanRefused,
    SliceBusy,
    UsageError,
)
from copypipe.events import Event, Told
from copypipe.migrations import Migration, again, sides, work
from copypipe.slices import TABLE
from copypipe.transfers import HolderLost
from plugins.databases import Database
from plugins.moving import ended, move, options
from plugins.schemas import contents

SCHEMA = """
CREATE TABLE one (id int PRIMARY KEY, word text);
CREATE TABLE other (id int PRIMARY KEY, word text);
INSERT INTO one SELECT i, 'one' FROM generate_series(1, 3) AS i;
INSERT INTO other SELECT i, 'other' FROM generate_series(1, 3) AS i
"""
SNAPSHOT = "what is written at the source after"
"""What is told when the leader has its snapshot, and nothing is made yet."""


@pytest.fixture
def filled(source: Database) -> Database:
    source.execute(SCHEMA)
    return source


def when(text: str, call: Callable[[], object]) -> Callable[[Event], None]:
    """Return a listener that makes a call once something is told."""

    def listen(event: Event, /) -> None:
        if isinstance(event, Told) and text in event.text:
            call()

    return listen


# ------------------------------------------------------------------------------ the keeper is gone


@pytest.fixture
def keeperless(dest: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what ends the keeper, whose heart nobody listens to."""
    monkeypatch.setattr(snapshots, "kept", lambda *_: nullcontext())

    def end() -> None:
        found = dest.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM (SELECT DISTINCT pid FROM pg_locks"
            " JOIN pg_stat_activity AS a USING (pid) WHERE locktype = 'advisory'"
            " AND a.datname = current_database() AND a.state = 'idle in transaction'"
            " AND a.query LIKE '%advisory%' ORDER BY pid) AS keeper"
        )
        assert found == [(True,)]

    return end


@contextmanager
def around(
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    *,
    before: Callable[[], None] | None = None,
    behind: Callable[[], None] | None = None,
) -> Iterator[list[str]]:
    """Call something before or behind the first call of a function; yield its calls."""
    calls: list[str] = []
    original = getattr(module, name)

    def called(*args: object, **more: object) -> object:
        calls.append(name)
        if before is not None and len(calls) == 1:
            before()
        found = original(*args, **more)
        if behind is not None and len(calls) == 1:
            behind()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(module, name, called)
        yield calls


def copied(dest: Database) -> tuple[int, int]:
    """Return how many slices are in the ledger, and how many tables are told to be whole."""
    (found,) = dest.fetch(
        "SELECT (SELECT count(*) FROM copypipe.slice),"
        " (SELECT count(*) FROM copypipe.migration_table WHERE copied_at IS NOT NULL)"
    )
    return found


def test_nothing_is_begun_without_a_keeper(
    filled: Database,
    dest: Database,
    keeperless: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        around(monkeypatch, transfers, "_lock", behind=keeperless),
        around(monkeypatch, transfers, "_relayed") as relayed,
        pytest.raises(HolderLost, match="does not hold"),
    ):
        move(filled, dest, jobs=1)

    assert relayed == []
    assert ended(move(filled, dest, resume=True))


def test_nothing_is_committed_without_a_keeper(
    filled: Database,
    dest: Database,
    keeperless: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        around(monkeypatch, transfers, "_relayed", behind=keeperless),
        pytest.raises(HolderLost, match="does not hold"),
    ):
        move(filled, dest, jobs=1)

    assert copied(dest) == (0, 0)
    assert contents(dest)["public.one"][0] == contents(dest)["public.other"][0] == 0
    assert ended(move(filled, dest, resume=True))


def test_no_table_is_told_to_be_whole_without_a_keeper(
    filled: Database,
    dest: Database,
    keeperless: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        around(monkeypatch, attempts, "copy_part", behind=keeperless),
        pytest.raises(HolderLost, match="does not hold"),
    ):
        move(filled, dest, jobs=1)

    assert copied(dest) == (1, 0)
    assert ended(move(filled, dest, resume=True))
    assert contents(dest) == contents(filled)


STEPS = "SELECT count(*) FROM copypipe.migration_step WHERE done_at IS NOT NULL"
ENDS = "SELECT count(*) FROM copypipe.migration WHERE ended_at IS NOT NULL"


@pytest.mark.parametrize(
    ("name", "when_called", "told"),
    [("undone", "before", STEPS), ("done", "behind", STEPS), ("end", "behind", ENDS)],
    ids=["no step is done", "no step is committed", "nothing is told to have ended"],
)
@pytest.mark.one_of(2)
def test_nothing_more_is_told_without_a_keeper(
    filled: Database,
    dest: Database,
    keeperless: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    when_called: str,
    told: str,
) -> None:
    with (
        around(monkeypatch, journals, name, **{when_called: keeperless}),
        pytest.raises(HolderLost, match="does not hold"),
    ):
        move(filled, dest, jobs=1)

    assert dest.scalar(told) == 0
    assert ended(move(filled, dest, resume=True))
    assert contents(dest) == contents(filled)


def test_who_is_held_up_behind_the_set_up_has_its_tables(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has lost what keeps others from being set up."""
    key = sides.SETTING_UP.key(0) % (1 << 64)

    def go_on() -> None:
        ended_gates = dest.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND classid = %s AND objid = %s",
            [key >> 32, key % (1 << 32)],
        )
        assert ended_gates == [(True,)]
        with pytest.raises(SliceBusy, match=r"another run is at work on public\.o"):
            move(filled, dest, resume=True, wait_lock=0)

    with around(monkeypatch, sides.Start, "commit", behind=go_on) as calls:
        assert ended(move(filled, dest))

    assert calls == ["commit"]
    assert contents(dest) == contents(filled)


def test_who_is_interrupted_behind_the_set_up_knows_of_it(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run = Migration(options(filled, dest))
    with monkeypatch.context() as patched:
        patched.setattr(sides.Keeper, "take_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()

    assert run.result is not None
    assert run.result.id == dest.scalar("SELECT id::text FROM copypipe.migration")
    assert [each.state for each in run.result.tables] == ["not begun", "not begun"]
    assert ended(move(filled, dest, resume=True))


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.one_of(2)
def test_a_set_up_that_was_committed_late_is_seen(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    """By a client that is gone: it had dropped an index, and only the ledger tells how it was."""
    dest.execute(
        "CREATE TABLE one (id int PRIMARY KEY, word text); CREATE INDEX word ON one (word)"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    more = {"schema": False, "defer_indexes": True}
    with monkeypatch.context() as patched:
        patched.setattr(sides.Keeper, "take_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            move(filled, dest, "one", **more)
    assert dest.scalar("SELECT to_regclass('word')") is None
    others, calls = journals.others, []

    def too_early(*args: Any) -> list[journals.Other]:
        calls.append(args)
        return others(*args) if len(calls) > 1 else []

    monkeypatch.setattr(journals, "others", too_early)

    with nullcontext() if replace else pytest.raises(PlanRefused, match="that has not ended has"):
        assert ended(move(filled, dest, "one", replace=replace, **more))

    assert (dest.scalar("SELECT to_regclass('word')") is not None) == replace
    if not replace:
        assert ended(move(filled, dest, resume=True))
    assert dest.scalar("SELECT to_regclass('word')") is not None


def test_rows_that_a_killed_run_was_committing_are_not_those_of_others(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come while the resume waits for the locks, behind its look at the ledger."""
    assert ended(move(filled, dest))
    dest.execute(
        "UPDATE copypipe.migration SET ended_at = NULL;"
        "UPDATE copypipe.migration_table SET copied_at = NULL;"
        "CREATE TABLE late AS SELECT * FROM copypipe.slice; DELETE FROM copypipe.slice"
    )

    def commit() -> None:
        columns = dest.scalar(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attnum > 0"
            " AND attrelid = 'copypipe.slice'::regclass AND attidentity = '' AND NOT attisdropped"
        )
        dest.execute(f"INSERT INTO copypipe.slice ({columns}) SELECT {columns} FROM late")

    with (
        around(monkeypatch, again, "begin", before=commit),
        pytest.raises(SliceBusy, match="another run has gone on with migration"),
    ):
        move(filled, dest, resume=True)

    assert ended(move(filled, dest, resume=True))
    assert copied(dest)[0] == 2, "nothing was copied again"


def test_what_another_start_goes_on_with_is_left_to_it(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one was held up for so long that it has lost its keys."""
    assert ended(move(filled, dest))
    dest.execute(
        "UPDATE copypipe.migration SET ended_at = NULL;"
        "UPDATE copypipe.migration_table SET copied_at = NULL"
    )

    def go_on() -> None:
        dest.execute("UPDATE copypipe.migration SET ended_at = now()")

    with (
        around(monkeypatch, journals, "begin_again", before=go_on),
        pytest.raises(SliceBusy, match="another run has gone on with migration"),
    ):
        move(filled, dest, resume=True)

    assert copied(dest)[1] == 0


def test_the_ledger_is_kept_from_removal(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while no worker is within a transaction that writes into it."""
    tried: list[bool] = []

    def remove() -> None:
        is_free = "SELECT pg_try_advisory_xact_lock(%s)"
        tried.append(dest.scalar(is_free, [ledger.IN_USE.key(0)]))

    with around(monkeypatch, work, "_make_plan", before=remove):
        assert ended(move(filled, dest, jobs=1))

    assert tried == [False]


# ---------------------------------------------------------------------------- others at the source


def test_definitions_are_of_the_snapshot(filled: Database, dest: Database) -> None:
    def comment() -> None:
        filled.execute("COMMENT ON TABLE one IS 'came later'")

    assert ended(move(filled, dest, listen=when(SNAPSHOT, comment)))

    assert dest.scalar("SELECT obj_description('one'::regclass)") is None


def test_definitions_do_not_change_while_rows_are_read(filled: Database, dest: Database) -> None:
    refused: list[str] = []

    def alter() -> None:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            filled.execute("SET lock_timeout = '100ms'; ALTER TABLE one ADD more int")
        refused.append("one")

    assert ended(move(filled, dest, listen=when(SNAPSHOT, alter)))

    assert refused == ["one"]
    assert contents(dest) == contents(filled)


# ------------------------------------------------------------------------------ others at the dest


@pytest.fixture
def made(dest: Database) -> Database:
    dest.execute("CREATE TABLE one (id int PRIMARY KEY, word text)")
    dest.execute("CREATE TABLE other (id int PRIMARY KEY, word text)")
    return dest


def test_who_is_writing_is_waited_for(filled: Database, made: Database) -> None:
    with made.connect() as other:
        other.execute("BEGIN; INSERT INTO one VALUES (9, 'of somebody else')")

        with pytest.raises(CopypipeError) as caught:
            move(filled, made, schema=False, wait_lock=1.0)

        assert caught.value.sqlstate == "55P03"
        other.execute("COMMIT")
    assert contents(made)["public.one"][0] == 1
    assert made.scalar("SELECT to_regclass('copypipe.migration')") is None


def test_who_waits_for_another_run_is_told_all_once(filled: Database, made: Database) -> None:
    heard: list[str] = []
    with made.connect() as other:
        key = TABLE.key(made.scalar("SELECT 'one'::regclass::oid"))
        other.execute("SELECT pg_advisory_lock(%s)", [key])

        def listen(event: Event, /) -> None:
            if isinstance(event, Told):
                heard.append(event.text)
                if "waiting up to" in event.text:
                    other.execute("SELECT pg_advisory_unlock_all()")

        assert ended(move(filled, made, schema=False, wait_lock=10.0, listen=listen))

    about = [text for text in heard if "waiting up to" in text or "2 tables of" in text]
    assert [text[:7] for text in about] == ["waiting", "2 table"]


def test_rows_that_came_before_the_set_up_are_seen(filled: Database, made: Database) -> None:
    def write() -> None:
        made.execute("INSERT INTO one VALUES (9, 'of somebody else')")

    with pytest.raises(PlanRefused, match=r"dest: public\.one holds rows"):
        move(filled, made, schema=False, listen=when(SNAPSHOT, write))

    assert contents(made)["public.one"][0] == 1


def test_rows_that_came_behind_the_set_up_are_seen(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        dest.execute("INSERT INTO one VALUES (9, 'of somebody else')")

    with around(monkeypatch, work, "_make_plan", before=write):
        found = move(filled, dest, jobs=1)

    ((what, error),) = found.failed
    assert what.startswith("public.one")
    assert "holds rows" in error.message
    assert contents(dest)["public.one"][0] == 1
    assert {each.into: each.state for each in found.tables} == {
        "public.one": "failed",
        "public.other": "copied",
    }


def test_a_step_that_is_done_meanwhile_is_not_done_again(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the answer to a COMMIT is lost, and the step is tried again."""

    def do() -> None:
        dest.execute(
            "CREATE UNIQUE INDEX one_pkey ON one (id);"
            "UPDATE copypipe.migration_step SET done_at = now(), seconds = 0"
            " WHERE name = 'public.one_pkey'"
        )

    with around(monkeypatch, journals, "undone", before=do):
        assert ended(move(filled, dest, "one", jobs=1))

    key = "SELECT conname FROM pg_constraint WHERE conrelid = 'one'::regclass AND contype = 'p'"
    assert dest.scalar(key) == "one_pkey"
    assert contents(dest)["public.one"] == contents(filled)["public.one"]


def test_what_failed_is_told_also_where_the_rest_cannot_be_tried(
    filled: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'")
    for name in "abc":
        filled.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON one EXECUTE FUNCTION f()")
    monkeypatch.setattr(work, "_STEPS_AT_ONCE", 1)
    made = work._Worker._made

    def fail(worker: work._Worker, some: Sequence[journals.Noted]) -> list[Any]:
        if "one a" in some[0].step.name:
            raise CopyFailed("refused by somebody")
        if "one b" in some[0].step.name:
            raise ConnectionLost("dest: the connection was lost", side="dest")
        return made(worker, some)

    monkeypatch.setattr(work._Worker, "_made", fail)

    found = move(filled, dest)

    assert [(what, error.exit_code) for what, error in found.failed] == [
        ("other TRIGGER public one a", CopyFailed.exit_code),
        ("other TRIGGER public one b, TRIGGER public one c", ConnectionLost.exit_code),
    ]
    monkeypatch.undo()
    assert ended(move(filled, dest, resume=True))
    assert dest.scalar("SELECT count(*) FROM pg_trigger WHERE tgname IN ('a', 'b', 'c')") == 3


def test_several_that_have_not_ended_are_told_apart(filled: Database, dest: Database) -> None:
    class Dies(Exception):
        pass

    for table in ("one", "other"):
        run = Migration(options(filled, dest, table))

        def listen(event: Event, /, table: str = table) -> None:
            if dest.scalar(f"SELECT to_regclass('{table}')") is not None:
                raise Dies

        run._listen = listen
        with pytest.raises(Dies):
            run()
    begun = dict(dest.fetch("SELECT asked -> 'tables' ->> 0, id::text FROM copypipe.migration"))

    with pytest.raises(UsageError, match="several migrations") as caught:
        move(filled, dest, resume=True)

    assert all(identifier in (caught.value.detail or "") for identifier in begun.values())
    assert ended(move(filled, dest, resume=True, migration=begun["other"]))
    assert (contents(dest)["public.one"][0], contents(dest)["public.other"][0]) == (0, 3)
    assert ended(move(filled, dest, resume=True))
    assert contents(dest) == contents(filled)
