"""Whatever breaks, the dest is as it was, nothing of ours is left behind, and a re-run succeeds."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import CommitUnknown, ConnectionLost, CopyFailed, Transferred, TransientError
from copypipe.events import Cleared, Committing, Event, Noticed, Planned, Progress
from plugins import proxy as proxies
from plugins.command import (
    PAUSE_KEY,
    Command,
    add_users,
    eventually,
    no_backends,
    pause,
    users,
    waits_in_pause,
)
from plugins.databases import Database
from plugins.proxy import Proxy

DAY = "2018-04-29"

# Rows of a day: some hundred kilobytes, several gathered writes.
ROWS = 3000


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
    """Both databases, with a day to copy over five old rows; knows what the dest was before."""

    source: Database
    dest: Database
    before: str = ""

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {**sides, "day": DAY, "retries": 0, **options}
        return copypipe.copy("public.users", **chosen)

    def assert_nothing_happened(self) -> None:
        no_backends(self.source, self.dest)
        assert self.dest.digest("public.users", "id") == self.before

    def assert_copied(self, rows: int = ROWS) -> None:
        no_backends(self.source, self.dest)
        of_day = "SELECT * FROM public.users WHERE id / 1000000 = 1 ORDER BY id"
        assert self.dest.text(of_day) == self.source.text(of_day)
        assert self.dest.scalar("SELECT count(*) FROM public.users") == rows + 5

    def assert_a_rerun_succeeds(self) -> None:
        assert self.copy().rows == ROWS
        self.assert_copied()


@pytest.fixture
def sides(source: Database, dest: Database) -> Sides:
    users(source, 2, rows=ROWS)
    users(dest, 1, rows=5)
    add_users(dest, 1, rows=7, first=DAY, offset=-9_000_000)
    return Sides(source, dest, dest.digest("public.users", "id"))


# --- a stream that is cut -------------------------------------------------------------------------

CUTS = {
    "at the first byte": lambda: proxies.cut_after(0),
    "within the header": lambda: proxies.cut_after(7),
    "within a row": lambda: proxies.cut_after(100_001),
    "within a row, reset": lambda: proxies.cut_after(100_001, "rst"),
    "between two rows": lambda: proxies.cut_at_row(1000),
    "between two rows, reset": lambda: proxies.cut_at_row(1000, "rst"),
    "before the trailer": proxies.cut_before_trailer,
    "before the trailer, reset": lambda: proxies.cut_before_trailer("rst"),
}


@pytest.mark.parametrize("rule", CUTS.values(), ids=CUTS.keys())
@pytest.mark.one_of(5)
def test_source_is_cut(
    sides: Sides, proxy: Callable[..., Proxy], rule: Callable[[], proxies.Rule]
) -> None:
    between = proxy(sides.source.server, rule())

    with pytest.raises(ConnectionLost) as caught:
        sides.copy(source=between.dsn(sides.source))

    assert (caught.value.exit_code, caught.value.side) == (5, "source")
    assert len(between.fired) == 1
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_source_ends_without_its_trailer(sides: Sides, proxy: Callable[..., Proxy]) -> None:
    between = proxy(sides.source.server, proxies.swallow_trailer)

    with pytest.raises(CopyFailed, match="ended without its trailer") as caught:
        sides.copy(source=between.dsn(sides.source))

    assert (caught.value.exit_code, caught.value.side) == (1, "source")
    assert between.fired == ["swallowed"]
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_source_ends_without_its_trailer_and_without_a_row(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """An empty result is one message: header and trailer. The header alone is not enough."""

    def header_alone(frame: proxies.Frame) -> bytes | None:
        if frame.is_data:
            return proxies.said(b"d", frame.body[:19])
        return None

    between = proxy(sides.source.server, header_alone)
    day = "2019-01-01"
    with pytest.raises(CopyFailed, match="ended without its trailer"):
        sides.copy(source=between.dsn(sides.source), day=day)
    assert between.fired == ["changed"]
    sides.assert_nothing_happened()
    assert sides.copy(day=day).rows == 0


def test_dest_is_cut(sides: Sides, proxy: Callable[..., Proxy]) -> None:
    """The dest's connection ends while data flows."""

    def rule(frame: proxies.Frame) -> None:
        if frame.sender == "client" and frame.sent > 200_000:
            raise proxies.Cut

    between = proxy(sides.dest.server, rule)
    with pytest.raises(ConnectionLost) as caught:
        sides.copy(dest=between.dsn(sides.dest))

    assert (caught.value.exit_code, caught.value.side) == (5, "dest")
    assert between.fired == ["fin"]
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


# --- COMMIT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_answer_to_commit_is_lost_and_nothing_was_recorded(
    sides: Sides, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=arrives))

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=between.dsn(sides.dest), ledger=False)

    assert (caught.value.exit_code, caught.value.side) == (75, "dest")
    assert between.fired == ["fin"]
    if arrives:
        sides.assert_copied()
    else:
        sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_answer_to_commit_is_lost_on_the_command_line(
    sides: Sides, proxy: Callable[..., Proxy], run: Command
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=True))

    words = ("copy", "users", "--day", DAY, "--no-ledger", "--retries", "0")
    done = run(*words, "--dest", between.dsn(sides.dest))

    assert (done.code, done.out) == (75, "")
    assert "ERROR:  dest: the connection was lost while COMMIT was under way\n" in done.err
    again = f"copypipe copy users --dest ... --retries 0 --no-ledger --day {DAY}"
    assert f"HINT:  Run it again, which makes the slice the source's: {again}\n" in done.err
    assert between.fired == ["fin"]
    sides.assert_copied()


def test_commit_is_answered_by_rollback(sides: Sides, proxy: Callable[..., Proxy]) -> None:
    between = proxy(sides.dest.server, proxies.roll_back_instead())

    with pytest.raises(CopyFailed, match="dest: the server rolled back instead") as caught:
        sides.copy(dest=between.dsn(sides.dest))

    assert (caught.value.exit_code, caught.value.side) == (1, "dest")
    assert between.fired == ["changed"]
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_deferred_constraint_fails_at_commit(sides: Sides) -> None:
    sides.dest.execute(
        "CREATE TABLE public.names (name text PRIMARY KEY);"
        "ALTER TABLE public.users ADD CONSTRAINT named FOREIGN KEY (name)"
        " REFERENCES public.names DEFERRABLE INITIALLY DEFERRED NOT VALID"
    )
    seen: list[Event] = []

    with pytest.raises(CopyFailed) as caught:
        sides.copy(listener=seen.append)

    assert (caught.value.exit_code, caught.value.sqlstate) == (1, "23503")
    assert any(isinstance(event, Committing) for event in seen)
    sides.assert_nothing_happened()
    sides.dest.execute("ALTER TABLE public.users DROP CONSTRAINT named")
    sides.assert_a_rerun_succeeds()


# --- backends and processes that die --------------------------------------------------------------


@dataclass
class Held:
    """A copy in another thread that is held up within its rows."""

    thread: threading.Thread
    holder: psycopg.Connection
    outcome: list[Any]

    def end(self) -> Any:
        """Let it go on and return what it returned or raised."""
        self.holder.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome[0]


@pytest.fixture
def held(sides: Sides) -> Iterator[Callable[[str], Held]]:
    """Return a function that begins a copy and holds it up at a side, until the test ends."""
    begun: list[Held] = []

    def hold(side: str) -> Held:
        database = getattr(sides, side)
        holder = hold_at(database) if side == "source" else pause(database, when=MIDDLE)
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(sides.copy())
            except copypipe.CopypipeError as error:
                outcome.append(error)

        begun.append(Held(threading.Thread(target=work, daemon=True), holder, outcome))
        begun[0].thread.start()
        eventually(lambda: waits_in_pause(database), what="the copy is held up")
        return begun[0]

    yield hold
    for one in begun:
        one.holder.close()
        one.thread.join(20)


MIDDLE = "NEW.id % 1000000 = 1500"


def hold_at(source: Database) -> psycopg.Connection:
    """Let the source send half of the rows and wait; see `pause` for the dest."""
    source.execute(
        f"""
        ALTER TABLE public.users RENAME TO stored;
        CREATE VIEW public.users AS SELECT * FROM public.stored
            WHERE id <> 1001500 OR (pg_advisory_lock_shared({PAUSE_KEY}) IS NOT NULL
                                    AND pg_advisory_unlock_shared({PAUSE_KEY}))
        """
    )
    holder = source.connect(application_name="holder")
    holder.execute(f"SELECT pg_catalog.pg_advisory_lock({PAUSE_KEY})")
    return holder


def let_go(sides: Sides, side: str) -> None:
    if side == "source":
        sides.source.execute("DROP VIEW public.users; ALTER TABLE public.stored RENAME TO users")
    else:
        sides.dest.execute("DROP TRIGGER pause ON public.users")


@pytest.mark.parametrize(
    ("side", "at"), [("source", "source"), ("dest", "source"), ("dest", "dest")]
)
@pytest.mark.one_of(2)
def test_backend_is_terminated(
    sides: Sides, held: Callable[[str], Held], side: str, at: str
) -> None:
    """A backend ends while it, or the other one, is busy with a row."""
    copying = held(at)
    database = getattr(sides, side)
    ((pid, *_),) = database.backends()

    database.execute("SELECT pg_terminate_backend(%s)", [pid])
    if side != at:  # noticed at once, although the other side is busy
        copying.thread.join(2)
        assert copying.outcome
    error = copying.end()

    assert isinstance(error, ConnectionLost)
    assert (error.exit_code, error.side) == (5, side)
    let_go(sides, at)
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_dest_is_lost_before_the_source_sends(sides: Sides) -> None:
    """A query of the source may sort for hours before its first row."""
    sides.source.execute(
        "ALTER TABLE public.users RENAME TO stored;"
        "CREATE VIEW public.users AS SELECT s.* FROM public.stored s, pg_sleep(5)"
    )
    began = time.monotonic()

    def terminate() -> None:
        eventually(lambda: any("COPY" in b.query for b in sides.source.backends()))
        time.sleep(0.2)
        ((pid, *_),) = sides.dest.backends()
        sides.dest.execute("SELECT pg_terminate_backend(%s)", [pid])

    thread = threading.Thread(target=terminate, daemon=True)
    thread.start()
    with pytest.raises(ConnectionLost) as caught:
        sides.copy()
    took = time.monotonic() - began
    thread.join(20)
    assert caught.value.side == "dest"
    assert took < 3


@pytest.mark.slow
@pytest.mark.parametrize("side", ["source", "dest"])
def test_backend_is_killed(sides: Sides, held: Callable[[str], Held], side: str) -> None:
    """kill -9 of a backend makes the postmaster restart every other one: a crash of the server."""
    copying = held(side)
    database = getattr(sides, side)
    if not database.server.can_restart:
        pytest.skip("the processes of this server are out of reach")
    ((pid, *_),) = database.backends()
    witness = database.connect()

    os.kill(pid, signal.SIGKILL)
    error = copying.end()
    # The postmaster may still answer until it has noticed.
    eventually(lambda: _is_gone(witness), seconds=30, what="the server has ended every session")
    eventually(lambda: _answers(database), seconds=30, what="the server is back")
    database.server.starts += 1  # the helper's own sessions ended as well

    assert isinstance(error, ConnectionLost)
    assert error.exit_code == 5
    let_go(sides, side)
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def _is_gone(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def _answers(database: Database) -> bool:
    try:
        with database.server.connect() as connection:
            return connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)
    except psycopg.OperationalError:
        return False


def test_client_is_killed(sides: Sides, run: Command) -> None:
    holder = pause(sides.dest, when=MIDDLE)
    process = run.start("copy", "users", "--day", DAY)
    eventually(lambda: waits_in_pause(sides.dest), what="the copy is held up")

    process.kill()
    assert process.wait().code == -signal.SIGKILL
    holder.close()

    sides.assert_nothing_happened()
    let_go(sides, "dest")
    sides.assert_a_rerun_succeeds()


# --- servers that refuse --------------------------------------------------------------------------

LAST = f"NEW.id = {1_000_000 + ROWS - 1}"


def trigger(database: Database, body: str, when: str = "BEFORE INSERT", each: str = "ROW") -> None:
    database.execute(
        f"CREATE FUNCTION public.hit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;"
        f"CREATE TRIGGER hit {when} ON public.users FOR EACH {each} EXECUTE FUNCTION public.hit()"
    )


def untrigger(database: Database) -> None:
    database.execute("DROP TRIGGER hit ON public.users")


def test_constraint_fails_in_the_last_row(sides: Sides) -> None:
    sides.dest.execute(
        f"ALTER TABLE public.users ADD CONSTRAINT small CHECK (id < {1_000_000 + ROWS - 1})"
    )
    with pytest.raises(CopyFailed) as caught:
        sides.copy()

    assert (caught.value.exit_code, caught.value.sqlstate) == (1, "23514")
    assert caught.value.side == "dest"
    # By names, and without the row that PostgreSQL's DETAIL shows.
    assert "constraint small" in str(caught.value)
    assert "example.org" not in str(caught.value)
    sides.assert_nothing_happened()
    sides.dest.execute("ALTER TABLE public.users DROP CONSTRAINT small")
    sides.assert_a_rerun_succeeds()


def test_trigger_drops_rows(sides: Sides) -> None:
    trigger(sides.dest, f"IF {LAST} THEN RETURN NULL; END IF; RETURN NEW;")
    with pytest.raises(CopyFailed, match=rf"sent {ROWS} rows and the dest took {ROWS - 1}"):
        sides.copy()
    sides.assert_nothing_happened()
    untrigger(sides.dest)
    sides.assert_a_rerun_succeeds()


def test_trigger_raises_before_any_row(sides: Sides) -> None:
    trigger(sides.dest, "RAISE EXCEPTION 'closed today';", each="STATEMENT")
    with pytest.raises(CopyFailed, match="dest: closed today") as caught:
        sides.copy()
    assert (caught.value.exit_code, caught.value.sqlstate) == (1, "P0001")
    sides.assert_nothing_happened()
    untrigger(sides.dest)
    sides.assert_a_rerun_succeeds()


def test_trigger_raises_after_the_last_row(sides: Sides) -> None:
    trigger(sides.dest, "RAISE EXCEPTION 'not so';", when="AFTER INSERT", each="STATEMENT")
    with pytest.raises(CopyFailed, match="dest: not so"):
        sides.copy()
    sides.assert_nothing_happened()
    untrigger(sides.dest)
    sides.assert_a_rerun_succeeds()


def test_delete_fails(sides: Sides) -> None:
    trigger(sides.dest, "RAISE EXCEPTION 'keep it';", when="BEFORE DELETE")
    with pytest.raises(CopyFailed, match="dest: keep it"):
        sides.copy()
    sides.assert_nothing_happened()
    untrigger(sides.dest)
    sides.assert_a_rerun_succeeds()


def test_error_of_the_source_in_the_last_row(sides: Sides) -> None:
    last = 1_000_000 + ROWS - 1
    sides.source.execute(
        "CREATE VIEW public.v AS SELECT id, name, email, active, created_at, profile, tags,"
        f" CASE WHEN id = {last} THEN (1 / (id - {last}))::numeric(12, 2) ELSE balance END"
        " AS balance FROM public.users"
    )
    with pytest.raises(CopyFailed) as caught:
        copypipe.copy(
            "public.v",
            into="public.users",
            day=DAY,
            source=sides.source.dsn,
            dest=sides.dest.dsn,
        )
    assert (caught.value.exit_code, caught.value.side) == (1, "source")
    assert caught.value.sqlstate == "22012"
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


# --- an error while the source has far more to send -----------------------------------------------

# 600 MB, so that also a relay that is deaf to the dest comes to an end.
MANY = """
    ALTER TABLE public.users RENAME TO stored;
    CREATE VIEW public.users AS
        SELECT g + 1000000 AS id, repeat('x', 1000) AS name, NULL::varchar(80) AS email,
               true AS active, 1::numeric(12, 2) AS balance,
               timestamptz '2018-04-29 10:00Z' AS created_at, NULL::jsonb AS profile,
               NULL::text[] AS tags
          FROM (SELECT generate_series(0::bigint, 600000) AS g) AS many
"""
MEGABYTE = 1024 * 1024

# What may lie between the two servers: sockets, gathered writes, with room to spare.
UNDER_WAY = 24 * MEGABYTE

# What libpq swallowed is asked for four times a second, and a dead dest takes 300 MB in one.
SWALLOWED = 400 * MEGABYTE

# The sockets' own protocol, and libpq, which hides an error of the dest behind what it said before.
TRANSPORTS = ["socket", "libpq"]

RAISES = {
    "in the first row": "RAISE EXCEPTION 'no';",
    "right behind a notice": "RAISE WARNING 'look'; RAISE EXCEPTION 'no';",
    "after a thousand notices": (
        "RAISE WARNING 'row % %', NEW.id, repeat('y', 200);"
        " IF NEW.id = 1001000 THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW;"
    ),
    "behind a flood that no setting silences": (
        "RAISE INFO 'row %', NEW.id;"
        " IF NEW.id = 1002000 THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW;"
    ),
    "a wide error": "RAISE EXCEPTION 'no' USING DETAIL = repeat('z', 300000);",
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("body", RAISES.values(), ids=RAISES.keys())
@pytest.mark.one_of(5)
def test_error_of_the_dest_stops_the_source(
    sides: Sides, proxy: Callable[..., Proxy], body: str, transport: Any
) -> None:
    swallowed = transport == "libpq" and "row %" in body
    limit = SWALLOWED if swallowed else UNDER_WAY
    sides.source.execute(MANY)
    trigger(sides.dest, body)
    between = proxy(sides.source.server)
    progress: list[Progress] = []

    def hear(event: Event) -> None:
        if isinstance(event, Progress):
            progress[:] = [event]

    began = time.monotonic()
    with pytest.raises(CopyFailed, match="dest: no") as caught:
        sides.copy(
            source=between.dsn(sides.source),
            listener=hear,
            notices=True,  # the servers send none unless they are wanted
            transport=transport,
        )
    eventually(lambda: not sides.source.backends(), seconds=2, what="the source has stopped")

    assert caught.value.sqlstate == "P0001"
    assert time.monotonic() - began < 6
    assert between.bytes["server"] < limit
    assert not progress or progress[0].bytes < limit
    sides.assert_nothing_happened()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", ["in the first row", "right behind a notice", "a wide error"])
@pytest.mark.one_of(5)
def test_error_of_a_dest_that_cannot_be_asked_stops_the_source(
    sides: Sides, proxy: Callable[..., Proxy], name: str, transport: Any
) -> None:
    """It lets nobody in but us: that it failed must be seen in what it says."""
    sides.source.execute(MANY)
    trigger(sides.dest, RAISES[name])
    from_source = proxy(sides.source.server)
    to_dest = proxy(
        sides.dest.server, proxies.let_in_one("sorry, too many clients already", "53300")
    )

    with pytest.raises(CopyFailed, match="dest: no"):
        sides.copy(
            source=from_source.dsn(sides.source),
            dest=to_dest.dsn(sides.dest),
            notices=True,
            transport=transport,
        )

    assert from_source.bytes["server"] < UNDER_WAY
    sides.assert_nothing_happened()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_error_of_the_dest_behind_a_torn_notice_stops_the_source(
    sides: Sides, proxy: Callable[..., Proxy], transport: Any
) -> None:
    """A segment ends within a notice, and the next one holds its rest and the error."""
    sides.source.execute(MANY)
    trigger(sides.dest, "RAISE WARNING 'a'; RAISE WARNING 'b'; RAISE EXCEPTION 'no';")
    from_source = proxy(sides.source.server)
    to_dest = proxy(sides.dest.server, proxies.torn_before_error(0.02))

    with pytest.raises(CopyFailed, match="dest: no"):
        sides.copy(
            source=from_source.dsn(sides.source),
            dest=to_dest.dsn(sides.dest),
            notices=True,
            transport=transport,
        )

    assert to_dest.fired == ["swallowed", "swallowed", "slowly"]
    assert from_source.bytes["server"] < UNDER_WAY
    sides.assert_nothing_happened()


def test_error_of_the_dest_while_the_source_is_silent(sides: Sides) -> None:
    """The first rows came, the next one takes for ever."""
    sides.source.execute(
        "ALTER TABLE public.users RENAME TO stored;"
        "CREATE VIEW public.users AS SELECT s.* FROM public.stored s"
        " WHERE s.id <> 1001500 OR pg_sleep(60) IS NULL"
    )
    trigger(sides.dest, "PERFORM pg_sleep(0.3); RAISE EXCEPTION 'no';")
    began = time.monotonic()
    with pytest.raises(CopyFailed, match="dest: no"):
        sides.copy()
    assert time.monotonic() - began < 4
    no_backends(sides.source, seconds=2)
    sides.assert_nothing_happened()


def test_a_deferred_trigger_that_empties_the_slice_is_found_out(sides: Sides) -> None:
    sides.dest.execute(
        "CREATE FUNCTION public.undo() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM public.users WHERE id = NEW.id; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER undo AFTER INSERT ON public.users"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.undo()"
    )
    with pytest.raises(CopyFailed, match="holds 0 rows where it should hold"):
        sides.copy()

    sides.assert_nothing_happened()


# --- notices are no errors ------------------------------------------------------------------------

NOTICES = {
    "one of a megabyte": "RAISE WARNING '%', repeat('n', 1000000)",
    "a flood": "RAISE WARNING 'row % %', NEW.id, repeat('n', 300)",
}


@pytest.mark.parametrize("notice", NOTICES.values(), ids=NOTICES.keys())
@pytest.mark.one_of(2)
def test_notices_do_not_disturb(sides: Sides, notice: str) -> None:
    every = "true" if "row" in notice else "NEW.id = 1000100"
    trigger(sides.dest, f"IF {every} THEN {notice}; END IF; RETURN NEW;")
    heard: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Noticed):
            heard.append(event.text)

    assert sides.copy(listener=hear).rows == ROWS
    assert heard == []
    assert sides.copy(listener=hear, notices=True).rows == ROWS
    assert len(heard) == (ROWS if every == "true" else 1)
    sides.assert_copied()


def test_a_notice_that_comes_in_pieces_does_not_disturb(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    trigger(
        sides.dest,
        "IF NEW.id = 1000100 THEN RAISE WARNING 'look at this'; END IF; RETURN NEW;",
    )
    between = proxy(sides.dest.server, proxies.in_pieces(20, b"N", 0.05))

    assert sides.copy(dest=between.dsn(sides.dest), notices=True).rows == ROWS
    assert between.fired == ["slowly"]
    sides.assert_copied()


# --- locks of others ------------------------------------------------------------------------------


def test_dest_waits_for_a_row_lock_and_is_interrupted(sides: Sides, run: Command) -> None:
    """Somebody changes a row of the slice: our DELETE waits, and is not waited for."""
    other = sides.dest.connect(autocommit=False)
    other.execute("UPDATE public.users SET name = name WHERE id < 0")
    process = run.start("copy", "users", "--day", DAY)
    eventually(
        lambda: any("DELETE" in backend.query for backend in sides.dest.backends()),
        what="the DELETE runs",
    )
    time.sleep(0.2)

    sent = process.signal(signal.SIGTERM)
    done = process.wait()

    assert done.code == 143
    assert time.monotonic() - sent < 2
    no_backends(sides.source, sides.dest, seconds=2)
    other.rollback()
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_deadlock_is_transient(sides: Sides) -> None:
    """The dest breaks a deadlock with somebody else; that is worth another try."""
    trigger(
        sides.dest,
        "PERFORM pg_catalog.pg_advisory_xact_lock(77); RETURN NULL;",
        when="BEFORE DELETE",
        each="STATEMENT",
    )
    other = sides.dest.connect(autocommit=False)
    other.execute("SET deadlock_timeout = '10s'")
    other.execute("UPDATE public.users SET name = name WHERE id < 0")

    def tangle() -> None:
        eventually(lambda: bool(_deleting(sides.dest)), what="the DELETE waits for the row")
        other.execute("SELECT pg_advisory_xact_lock(77)")

    thread = threading.Thread(target=tangle, daemon=True)
    thread.start()
    with pytest.raises(TransientError) as caught:
        sides.copy()
    thread.join(20)

    assert (caught.value.exit_code, caught.value.sqlstate) == (5, "40P01")
    assert caught.value.retryable
    other.rollback()
    sides.assert_nothing_happened()
    untrigger(sides.dest)
    sides.assert_a_rerun_succeeds()


def _deleting(database: Database) -> list[Any]:
    return database.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'copypipe%' AND query LIKE 'DELETE%'"
        " AND wait_event_type = 'Lock'"
    )


@pytest.mark.parametrize("side", ["source", "dest"])
def test_table_is_altered_after_the_plan(sides: Sides, side: str) -> None:
    """What was planned is read again under the locks."""

    def alter(event: Event) -> None:
        if isinstance(event, Planned):
            getattr(sides, side).execute("ALTER TABLE public.users ADD surprise int")

    with pytest.raises(copypipe.PlanRefused, match="was altered while the copy was prep") as caught:
        sides.copy(listener=alter)

    assert caught.value.side == side
    getattr(sides, side).execute("ALTER TABLE public.users DROP surprise")
    sides.assert_nothing_happened()
    sides.assert_a_rerun_succeeds()


def test_listener_hears_what_happens_in_order(sides: Sides) -> None:
    seen: list[str] = []
    cleared: list[Any] = []

    def hear(event: Event) -> None:
        if not seen or seen[-1] != type(event).__name__:
            seen.append(type(event).__name__)
        if isinstance(event, Cleared):
            cleared.append(event.rows)

    sides.copy(listener=hear)

    first = ["Connected", "Planned", "LedgerMade", "Cleared", "Progress", "Committing", "Decided"]
    assert seen == first
    assert cleared == [7]
