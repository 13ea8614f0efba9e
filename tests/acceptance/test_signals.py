"""SIGINT, SIGTERM and SIGHUP bring the prompt back within two seconds and leave nothing behind."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import copypipe
from plugins.command import (
    Command,
    Process,
    eventually,
    no_backends,
    pause,
    users,
    waits_in_pause,
)
from plugins.databases import Database
from plugins.proxy import HOST, Impostor

DAY = ("copy", "users", "--day", "2018-04-29")
CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
EVERY_SIGNAL = pytest.mark.parametrize("number", CODES, ids=[number.name for number in CODES])

# Back at the prompt, and no backend left.
PROMPT_SECONDS = 2.0


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


def prepare(source: Database, dest: Database) -> str:
    """Make a day at the source and old rows at the dest; return what the dest is."""
    users(source, 2, rows=200)
    users(dest, 2, rows=5)
    return dest.digest("public.users", "id")


def assert_ends(process: Process, number: signal.Signals, *databases: Database) -> None:
    """Send the signal and check the exit code, the time, and that no backend is left."""
    sent = process.signal(number)
    run = process.wait()
    took = time.monotonic() - sent
    no_backends(*databases, seconds=PROMPT_SECONDS)

    assert run.code == CODES[number], run.err
    assert run.out.strip() == ""
    assert "interrupted" in run.err
    assert took < PROMPT_SECONDS


def backend_runs(database: Database, words: str) -> Callable[[], bool]:
    return lambda: any(words in backend.query for backend in database.backends())


@pytest.mark.parametrize(
    ("side", "number"),
    [*(("SOURCE", number) for number in CODES), ("DEST", signal.SIGTERM)],
    ids=["source-SIGHUP", "source-SIGINT", "source-SIGTERM", "dest-SIGTERM"],
)
@pytest.mark.one_of(3)
def test_while_connecting(
    run: Command,
    source: Database,
    impostor: Callable[..., Impostor],
    side: str,
    number: signal.Signals,
) -> None:
    """The server accepts and says nothing."""
    deaf = impostor()
    process = run.start(*DAY, env={f"COPYPIPE_{side}": f"host={HOST} port={deaf.port} user=u"})
    assert deaf.accepted.wait(20)

    assert_ends(process, number, source)


def test_while_another_run_is_waited_for(run: Command, source: Database, dest: Database) -> None:
    prepare(source, dest)
    holder = pause(dest)
    first = run.start(*DAY)
    eventually(lambda: waits_in_pause(dest), what="the first run is held up")
    second = run.start(*DAY)
    eventually(lambda: len(dest.backends()) == 2, what="the second run has connected")
    eventually(backend_runs(dest, "pg_advisory_xact_lock"), what="it waits for the lock")
    time.sleep(0.2)

    sent = second.signal(signal.SIGTERM)
    done = second.wait()

    assert done.code == CODES[signal.SIGTERM]
    assert time.monotonic() - sent < PROMPT_SECONDS
    assert "waiting up to 600 s for another run" in done.err
    assert len(dest.backends()) == 1
    holder.close()
    assert first.wait().code == 0


def test_during_a_long_delete(run: Command, source: Database, dest: Database) -> None:
    prepare(source, dest)
    dest.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(20); RETURN OLD; END $$;"
        "CREATE TRIGGER slow BEFORE DELETE ON public.users FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    before = dest.digest("public.users", "id")
    process = run.start(*DAY)
    eventually(backend_runs(dest, "DELETE"), what="the DELETE runs")
    time.sleep(0.2)

    assert_ends(process, signal.SIGHUP, source, dest)
    assert dest.digest("public.users", "id") == before


@EVERY_SIGNAL
@pytest.mark.one_of(2)
def test_while_rows_flow(
    run: Command, source: Database, dest: Database, number: signal.Signals
) -> None:
    """Both servers are busy: the source has rows without end, the dest is slow with each."""
    before = prepare(source, dest)
    source.execute(
        "ALTER TABLE public.users RENAME TO stored;"
        "CREATE VIEW public.users AS SELECT a.* FROM public.stored a, public.stored b,"
        " public.stored c"
    )
    dest.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON public.users FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    process = run.start(*DAY)
    eventually(backend_runs(source, "COPY"), what="rows flow")
    time.sleep(0.3)

    assert_ends(process, number, source, dest)
    assert dest.digest("public.users", "id") == before


def test_while_a_row_is_not_taken(run: Command, source: Database, dest: Database) -> None:
    """The dest is within one row, for how long nobody knows, and reads nothing meanwhile."""
    before = prepare(source, dest)
    holder = pause(dest)
    process = run.start(*DAY)
    eventually(lambda: waits_in_pause(dest), what="a row is held up")

    assert_ends(process, signal.SIGINT, source, dest)
    assert dest.digest("public.users", "id") == before
    holder.close()


def test_while_the_source_sorts(run: Command, source: Database, dest: Database) -> None:
    """No row has come yet."""
    before = prepare(source, dest)
    source.execute(
        "ALTER TABLE public.users RENAME TO stored;"
        "CREATE VIEW public.users AS SELECT a.* FROM public.stored a, pg_sleep(20)"
    )
    process = run.start(*DAY)
    eventually(backend_runs(source, "COPY"), what="the source runs")
    time.sleep(0.2)

    assert_ends(process, signal.SIGTERM, source, dest)
    assert dest.digest("public.users", "id") == before


# --- COMMIT ---------------------------------------------------------------------------------------


def committing(dest: Database) -> Callable[[], bool]:
    """Return whether the COMMIT of the rows is held up; what only tells of them commits before."""
    waits = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()"
        " AND query = 'COMMIT' AND state = 'active' AND wait_event_type = 'Lock'"
    )
    return lambda: dest.scalar(waits)


def held_commit(source: Database, dest: Database) -> Any:
    """Let COMMIT wait for the rows that a deferred foreign key points at; return who holds them."""
    ids = [row[0] for side in (source, dest) for row in side.fetch("SELECT id FROM public.users")]
    dest.execute("CREATE TABLE public.ids (id bigint PRIMARY KEY)")
    dest.execute("INSERT INTO public.ids SELECT DISTINCT unnest(%s::bigint[])", [ids])
    dest.execute(
        "ALTER TABLE public.users ADD CONSTRAINT known FOREIGN KEY (id) REFERENCES public.ids"
        " DEFERRABLE INITIALLY DEFERRED"
    )
    holder = dest.connect(application_name="holder", autocommit=False)
    holder.execute("SELECT FROM public.ids FOR UPDATE")
    return holder


def test_during_commit_the_first_signal_waits_for_the_outcome(
    run: Command, source: Database, dest: Database
) -> None:
    prepare(source, dest)
    holder = held_commit(source, dest)
    process = run.start(*DAY)
    eventually(committing(dest), what="COMMIT is under way")

    process.signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.process.poll() is None
    holder.rollback()
    done = process.wait()

    assert done.code == 0, done.err
    assert "waiting for the outcome of COMMIT" in done.err
    assert done.out.endswith("copied 200\n")
    assert dest.scalar("SELECT count(*) FROM public.users WHERE id >= 1000000") == 200
    no_backends(source, dest)


def test_during_commit_the_outcome_may_be_a_failure(
    run: Command, source: Database, dest: Database
) -> None:
    before = prepare(source, dest)
    holder = held_commit(source, dest)
    process = run.start(*DAY)
    eventually(committing(dest), what="COMMIT is under way")

    process.signal(signal.SIGTERM)
    holder.execute("DELETE FROM public.ids WHERE id NOT IN (SELECT id FROM public.users)")
    holder.commit()
    done = process.wait()

    assert done.code == 1, done.err
    assert 'violates foreign key constraint "known"' in done.err
    assert dest.digest("public.users", "id") == before


def test_during_commit_a_second_signal_leaves_at_once(
    run: Command, source: Database, dest: Database
) -> None:
    prepare(source, dest)
    holder = held_commit(source, dest)
    process = run.start(*DAY)
    eventually(committing(dest), what="COMMIT is under way")

    process.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.process.poll() is None
    sent = process.signal(signal.SIGINT)
    done = process.wait()
    holder.rollback()

    assert time.monotonic() - sent < PROMPT_SECONDS
    assert (done.code, done.out) == (75, "")
    assert "HINT:  Run it again, which settles it: copypipe copy" in done.err


def test_it_leaves_with_json_where_that_was_asked_for(
    run: Command, source: Database, dest: Database
) -> None:
    prepare(source, dest)
    holder = held_commit(source, dest)
    process = run.start(*DAY, "--json")
    eventually(committing(dest), what="COMMIT is under way")

    process.signal(signal.SIGTERM)
    time.sleep(0.3)
    process.signal(signal.SIGTERM)
    done = process.wait()
    holder.rollback()

    assert (done.code, done.out) == (75, "")
    told = json.loads(next(line for line in done.err.splitlines() if line.startswith("{")))
    assert told["exit_code"] == 75
    assert "copypipe copy" in told["hint"]


# --- what else a terminal and a supervisor do ----------------------------------------------------


def test_ignored_hangup_stays_ignored(run: Command, source: Database, dest: Database) -> None:
    prepare(source, dest)
    holder = pause(dest)
    process = run.start(*DAY, prefix=("nohup",))
    eventually(lambda: waits_in_pause(dest), what="rows are held up")

    process.signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.process.poll() is None
    holder.close()

    assert process.wait().code == 0
    assert dest.scalar("SELECT count(*) FROM public.users WHERE id >= 1000000") == 200


def test_interrupt_at_the_question(run: Command, source: Database, dest: Database) -> None:
    before = prepare(source, dest)
    process = run.start("copy", "users", "--all", tty=True)
    eventually(lambda: len(dest.backends()) == 1, what="connected")
    eventually(lambda: dest.backends()[0].query == "ROLLBACK", what="the plan is made")
    time.sleep(0.3)

    assert_ends(process, signal.SIGINT, source, dest)
    assert dest.digest("public.users", "id") == before


def test_while_the_program_starts(bare_run: Command, tmp_path: Path) -> None:
    """Signals are answered from the first import on: one of typer that takes long stands for it."""
    slow = tmp_path / "modules" / "typer.py"
    slow.parent.mkdir()
    begun = tmp_path / "begun"
    slow.write_text(f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(20)\n")
    process = bare_run.start(*DAY, env={"PYTHONPATH": str(slow.parent)})
    eventually(begun.exists, what="typer is imported")
    time.sleep(0.1)

    process.signal(signal.SIGTERM)

    assert process.wait().code == 143


# --- Python ---------------------------------------------------------------------------------------


def test_keyboard_interrupt_in_python_rolls_back(source: Database, dest: Database) -> None:
    """The engine leaves signals to the caller: a listener that raises stands for one."""
    before = prepare(source, dest)

    def press(event: object) -> None:
        if type(event).__name__ == "Progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copypipe.copy("users", day="2018-04-29", source=source.dsn, dest=dest.dsn, listener=press)

    no_backends(source, dest)
    assert dest.digest("public.users", "id") == before
