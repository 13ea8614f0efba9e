"""A server that is silent is asked what it does: one at work is waited for, a dead one is not."""

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from copypipe import CommitUnknown, ConnectionLost, TransientError, watches
from copypipe.events import Cleared, Event, Noticed, Progress, Silent
from plugins import proxy as proxies
from plugins.command import Command
from plugins.ways import PLAIN, Begun, Way, at_once

SILENCE = 0.2

# Nothing here needs it, and a network that is dead is asked thrice for two seconds.
LONGEST = 10.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask after a moment, what runs of hours ask after half a minute."""
    monkeypatch.setattr(watches, "SILENCE_SECONDS", SILENCE)


def rows_of(count: int, body: str = "lpad(g::text, 30, 'x')") -> str:
    """Return a query of so many rows."""
    return f"SELECT g AS id, {body} AS body FROM generate_series(1, {count}) AS g"


ROWS = rows_of(1000)


def silences(heard: list[Event], side: str) -> list[Silent]:
    return [event for event in heard if isinstance(event, Silent) and event.side == side]


def heard_by(way: Way, query: str = ROWS, **options: Any) -> list[Event]:
    """Copy and return what a listener heard."""
    heard: list[Event] = []
    way.copy(query, listener=heard.append, **options)
    return heard


# --- servers at work ------------------------------------------------------------------------------

BUSY = """
    CREATE FUNCTION public.busy_{name}() RETURNS int LANGUAGE plpgsql AS $$
    DECLARE
        until timestamptz := clock_timestamp() + '1 s';
    BEGIN
        WHILE clock_timestamp() < until LOOP END LOOP;
        RETURN 0;
    END $$
"""
SILENT_SOURCES = {
    "computing": (
        rows_of(1000).replace("g AS id", "g + b AS id") + ", public.busy_{name}() AS b",
        "computing",
    ),
    "sleeping": (
        rows_of(1000).replace("FROM", "FROM pg_sleep(1),"),
        "waiting (Timeout: PgSleep)",
    ),
}


def test_a_source_at_work_is_waited_for(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str]]]],
) -> None:
    cases = cases_of(SILENT_SOURCES)
    queries = {way.label: query.format(name=way.label) for way, (query, _) in cases}
    for way, _ in cases:
        way.source.execute(BUSY.format(name=way.label))

    told = at_once([way for way, _ in cases], lambda way: heard_by(way, queries[way.label]))

    for way, (_, doing) in cases:
        # On a busy machine there may be others, while the plan is made.
        silent = silences(told[way.label], "source")
        last = silent[-3:]
        assert len(last) == 3, way.label
        assert {event.doing for event in last} == {doing}, way.label
        # After each silence anew, since the last byte.
        seconds = [event.seconds for event in last]
        assert seconds == sorted(seconds), way.label
        assert SILENCE <= silent[0].seconds < 4 * SILENCE, way.label
        way.assert_copied(ROWS)


def test_a_dest_that_waits_for_a_lock_is_waited_for(ways: list[Way]) -> None:
    """Somebody changes a row that the copy deletes; who that is can be read."""
    holders: dict[str, psycopg.Connection] = {}
    for way in ways:
        holders[way.name] = way.dest.connect(autocommit=False)
        holders[way.name].execute(f"UPDATE {way.table} SET body = 'changed' WHERE id = -1")

    def copy(way: Way) -> list[Event]:
        heard: list[Event] = []

        def hear(event: Event) -> None:
            heard.append(event)
            if len(silences(heard, "dest")) == 3:
                holders[way.name].rollback()

        way.copy(ROWS, listener=hear)
        return heard

    for name, heard in at_once(ways, copy).items():
        pid = holders[name].info.backend_pid
        doing = {event.doing for event in silences(heard, "dest")}
        held = f"waiting for a lock held by backend {pid}"
        # Before it waits it may be caught at something else, on a machine that is busy.
        assert held in doing, name
    for way in ways:
        way.assert_copied(ROWS)


def test_a_dest_that_works_after_the_last_row_is_waited_for(ways: list[Way]) -> None:
    for way in ways:
        way.trigger("PERFORM pg_sleep(1); RETURN NULL;", "AFTER INSERT", "STATEMENT")

    told = at_once(ways, heard_by)

    for way in ways:
        silent = silences(told[way.name], "dest")
        assert len(silent) >= 3, way.name
        doing = {event.doing for event in silent}
        # Before and after its sleep it may be caught at something else, on a machine that is busy.
        asleep = "waiting (Timeout: PgSleep)"
        assert {asleep} <= doing <= {asleep, "working", "waiting for us (ClientRead)"}, way.name
        way.assert_copied(ROWS)


def test_a_dest_that_takes_no_more_for_a_while_is_waited_for(ways: list[Way]) -> None:
    """The sockets are full, and the dest is within a row."""
    query = rows_of(500, "repeat('x', 100000)")
    for way in ways:
        way.trigger("IF NEW.id = 1 THEN PERFORM pg_sleep(1); END IF; RETURN NEW;")

    told = at_once(ways, lambda way: heard_by(way, query))

    for way in ways:
        # Before and after its sleep it may be caught at work, on a machine that is busy.
        doing = {event.doing for event in silences(told[way.name], "dest")}
        assert "waiting (Timeout: PgSleep)" in doing, way.name
        way.assert_copied(query)


SIDES = ("source", "dest")
FULL = {
    "clients of any kind": "sorry, too many clients already",
    "all but reserved ones": (
        "remaining connection slots are reserved for roles with the SUPERUSER attribute"
    ),
    "a role's": 'too many connections for role "loader"',
    "a database's": 'too many connections for database "dwh"',
}


def test_a_server_that_is_full_is_waited_for(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str]]]],
) -> None:
    """It refuses whoever would ask what it does, many times: so it is there."""
    full = {f"{name} of a {side}": (side, FULL[name]) for name in FULL for side in SIDES}
    cases = cases_of(full, "tcp")
    between = {
        way.label: way.between(side, proxies.let_in_one(text, "53300"))
        for way, (side, text) in cases
    }
    sleeping = {}
    for way, (side, _) in cases:
        if side == "dest":
            way.trigger("PERFORM pg_sleep(3); RETURN NULL;", "AFTER INSERT", "STATEMENT")
        sleeping[way.label] = "pg_sleep(0)," if side == "dest" else "pg_sleep(3),"

    told = at_once(
        [way for way, _ in cases],
        lambda way: heard_by(way, ROWS.replace("FROM", f"FROM {sleeping[way.label]}")),
    )

    for way, (side, _) in cases:
        assert len(silences(told[way.label], side)) > watches.UNREACHABLE + 1, way.label
        assert between[way.label].links > watches.UNREACHABLE + 2, way.label
        way.direct()
        way.assert_copied(ROWS)


def test_a_role_without_a_connection_to_spare_is_waited_for(make_way: Callable[..., Way]) -> None:
    """The same as a server says it itself."""
    way = make_way("tcp")
    rights = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE"
    role = way.dest.role("loader", f"{rights} ON {way.table}", "USAGE ON SCHEMA public")
    way.dest.execute(f'ALTER ROLE "{role.name}" CONNECTION LIMIT 1')
    way.trigger("PERFORM pg_sleep(1.5); RETURN NULL;", "AFTER INSERT", "STATEMENT")

    heard = heard_by(way, dest=role.dsn)

    assert len(silences(heard, "dest")) > watches.UNREACHABLE + 1
    way.assert_copied(ROWS)


# --- nothing is silent ----------------------------------------------------------------------------


def test_servers_that_say_something_now_and_then_are_not_asked(
    ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "SILENCE_SECONDS", 0.7)
    # Of 10 kB, which a server sends at once: what is small waits in its buffer for more.
    query = rows_of(15, "repeat('x', 10000) || left(pg_sleep(0.1)::text, 0)")
    between = {way.name: [way.between(side) for side in ("source", "dest")] for way in ways}

    told = at_once(ways, lambda way: heard_by(way, query))

    for way in ways:
        assert not any(isinstance(event, Silent) for event in told[way.name]), way.name
        assert [proxy.links for proxy in between[way.name]] == [1, 1], way.name
        way.direct()
        way.assert_copied(rows_of(15, "repeat('x', 10000)"))


def test_a_relay_that_never_waits_takes_nobody_for_silent(
    cases_of: Callable[..., list[tuple[Way, float | None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slower than both servers for a while, so that it waits for neither."""
    monkeypatch.setattr(watches, "SILENCE_SECONDS", 0.6)
    query = rows_of(600, "repeat('x', 20000)")
    cases = cases_of({"asking": None, "giving up": 1.0})

    def copy(way: Way, limit: float | None) -> list[Event]:
        heard: list[Event] = []
        count = itertools.count()

        def hear(event: Event) -> None:
            heard.append(event)
            if isinstance(event, Progress) and next(count) < 8:
                time.sleep(0.2)

        way.copy(query, listener=hear, stall_timeout=limit)
        return heard

    copying = {way.label: Begun(functools.partial(copy, way, limit)) for way, limit in cases}

    for label, begun in copying.items():
        assert not any(isinstance(event, Silent) for event in begun.result()), label
        assert begun.seconds > 1.6, label
    for way, _ in cases:
        way.assert_copied(query)


MURMURS = {
    "what the dest deletes": ("BEFORE DELETE", "OLD"),
    "what the dest inserts": ("BEFORE INSERT", "NEW"),
}


def test_a_dest_that_says_something_all_the_time_is_not_silent(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trigger has something to say about each row, and the statement takes its time."""
    monkeypatch.setattr(watches, "SILENCE_SECONDS", 0.6)
    cases = cases_of(MURMURS)
    ways = [way for way, _ in cases]
    for way, (when, row) in cases:
        way.dest.execute(
            f"INSERT INTO {way.table} SELECT -g, 'old' FROM generate_series(1, 10) AS g"
        )
        way.trigger(f"RAISE NOTICE 'row'; PERFORM pg_sleep(0.1); RETURN {row};", when)

    told = at_once(ways, lambda way: heard_by(way, rows_of(15), notices=True, stall_timeout=0.8))

    for way, _ in cases:
        heard = [event for event in told[way.label] if isinstance(event, Noticed)]
        assert len(heard) == 15, way.label
        assert not any(isinstance(event, Silent) for event in told[way.label]), way.label
        way.assert_copied(rows_of(15))


def test_a_dest_that_says_something_all_the_time_on_the_command_line(
    make_way: Callable[..., Way], bare_run: Command
) -> None:
    way = make_way("tcp")
    way.dest.execute(f"INSERT INTO {way.table} SELECT -g, 'old' FROM generate_series(1, 10) AS g")
    way.trigger("RAISE NOTICE 'row %', OLD.id; PERFORM pg_sleep(0.1); RETURN OLD;", "BEFORE DELETE")

    done = bare_run(*way.words(ROWS, "--stall-timeout", "800ms", "-v"), env=way.environment)

    assert done.code == 0, done.err
    assert done.err.count("dest: NOTICE: row ") == 15
    way.assert_copied(ROWS)


def test_a_link_that_is_slow_with_the_last_rows_is_waited_for(ways: list[Way]) -> None:
    """All was sent, and is on its way: the dest waits for us, and gets more all the time."""
    # Of a unix socket the buffer is too small.
    ways = [way for way in ways if way.name != "unix"]
    for way in ways:
        way.between("dest", proxies.slowed("client", 16_000, 0.01))
    query = rows_of(200, "repeat('x', 10000)")

    told = at_once(ways, lambda way: heard_by(way, query))

    for name, heard in told.items():
        last = max(i for i, event in enumerate(heard) if isinstance(event, Progress))
        assert len(silences(heard[last:], "dest")) > watches.CERTAIN, name
    for way in ways:
        way.direct()
        way.assert_copied(query)


# --- a network that loses what is sent ------------------------------------------------------------

# More than the sockets between the servers hold.
MUCH = rows_of(200, "repeat('x', 100000)")


@dataclass(frozen=True)
class Hole:
    """What is lost from some message on: all that comes from the sender, or from both."""

    side: str
    sender: proxies.Direction
    ending: proxies.Ending


HOLES = {
    "what the source sends": Hole("source", "server", "mute"),
    "what the dest is sent": Hole("dest", "client", "mute"),
    "what the dest answers": Hole("dest", "server", "mute"),
    "all of the source": Hole("source", "server", "hole"),
    "all of the dest": Hole("dest", "client", "hole"),
}


def test_a_connection_that_loses_packets_while_rows_flow_is_given_up(
    cases_of: Callable[..., list[tuple[Way, Hole]]],
) -> None:
    cases = cases_of(HOLES)
    holes = {way.label: hole for way, hole in cases}
    between = {way.label: way.between(hole.side) for way, hole in cases}

    def copy(way: Way) -> None:
        hole, proxy = holes[way.label], between[way.label]

        def hear(event: Event) -> None:
            if isinstance(event, Progress) and proxy.rule is proxies.unchanged:
                proxy.rule = proxies.at_message(hole.sender, 0, hole.ending)

        way.copy(MUCH, listener=hear)

    assert_given_up(cases, between, copy)


# The message with which the network begins to lose all that follows.
LITTLE_HOLES = {
    "the source's first row": ("source", "server", b"d", b""),
    "the source's trailer": ("source", "server", b"d", proxies.TRAILER),
    "the source's command tag": ("source", "server", b"C", b"COPY"),
    "the first row": ("dest", "client", b"d", b""),
    "the end of the data": ("dest", "client", b"c", b""),
    "the dest's command tag": ("dest", "server", b"C", b"COPY"),
}


@pytest.mark.parametrize("ending", ["hole", pytest.param("mute", marks=pytest.mark.slow)])
def test_a_connection_that_loses_packets_is_given_up(
    cases_of: Callable[..., list[tuple[Way, tuple[str, proxies.Direction, bytes, bytes]]]],
    ending: proxies.Ending,
) -> None:
    cases = []
    between = {}
    for way, (side, sender, kind, starts) in cases_of(LITTLE_HOLES, *PLAIN):
        cases.append((way, Hole(side, sender, ending)))
        rule = proxies.at_kind(sender, kind, ending, starts=starts)
        between[way.label] = way.between(side, rule)

    assert_given_up(cases, between, lambda way: way.copy(ROWS))


def assert_given_up(
    cases: list[tuple[Way, Hole]],
    between: dict[str, proxies.Proxy],
    copy: Callable[[Way], object],
    detail: str = "The server waits for us, and nothing it sends arrives.",
) -> None:
    """Fail unless each copy ends as a lost connection, soon, and with the dest as it was."""
    failed = {way.label: Begun(functools.partial(copy, way)) for way, _ in cases}
    for way, hole in cases:
        error = failed[way.label].error(LONGEST)
        assert isinstance(error, ConnectionLost), (way.label, error)
        assert (error.exit_code, error.retryable, error.side) == (5, True, hole.side), way.label
        assert error.detail == detail, way.label
        assert failed[way.label].seconds < LONGEST / 2, way.label
        assert between[way.label].fired == [hole.ending], way.label
    for way, _ in cases:
        between[way.label].close()  # now the servers notice too
        way.direct()
    for way, _ in cases:
        way.assert_unchanged()


# Where the network dies, and whether the server was asked before: then the connection that asks is
# as dead as the others.
DEATHS = [("source", False), ("dest", False), ("source", True), ("dest", True)]


@pytest.mark.parametrize(
    "shift", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(DEATHS)))]
)
def test_a_network_that_is_dead_is_given_up(
    make_way: Callable[..., Way], monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """Nor can the server be asked any more. Each way dies another death, for it takes seconds."""
    monkeypatch.setattr(watches, "UNREACHABLE", 1)
    ways = [make_way(name) for name in PLAIN]
    with contextlib.suppress(pytest.skip.Exception):
        ways.append(make_way("tls"))
    deaths = {way.name: DEATHS[(i + shift) % len(DEATHS)] for i, way in enumerate(ways)}
    between = {way.name: way.between(deaths[way.name][0]) for way in ways}

    def copy(way: Way) -> None:
        side, asked_before = deaths[way.name]
        # A server at work: it does not wait for us.
        query = rows_of(1000).replace("FROM", "FROM pg_sleep(4),") if side == "source" else ROWS
        encrypted = way.name == "tls"
        # It dies with the last that is said to the server: the COPY, or the end of the data.
        last = Cleared if side == "source" else Progress
        if not asked_before and not encrypted:
            kind, starts = (b"Q", b"COPY") if side == "source" else (b"c", b"")
            between[way.name].rule = proxies.at_kind(
                "client", kind, "dead", starts=starts, arrives=True
            )

        def hear(event: Event) -> None:
            if isinstance(event, Silent) and asked_before:
                between[way.name].die()
            if isinstance(event, last) and encrypted and not asked_before:
                # What is encrypted has no kind: so a moment later, and before it is asked for.
                threading.Timer(SILENCE / 2, between[way.name].die).start()

        way.copy(query, listener=hear)

    for way in ways:
        if deaths[way.name][0] == "dest":
            way.trigger("PERFORM pg_sleep(4); RETURN NULL;", "AFTER INSERT", "STATEMENT")
    failed = {way.name: Begun(functools.partial(copy, way)) for way in ways}

    for way in ways:
        error = failed[way.name].error(LONGEST)
        assert isinstance(error, ConnectionLost), (way.name, error)
        assert (error.exit_code, error.side) == (5, deaths[way.name][0]), way.name
        assert error.detail == "The server cannot be reached any more.", way.name
        assert between[way.name].fired == ["dead"], way.name
    for way in ways:
        between[way.name].close()  # now the servers notice too
        way.direct()
    for way in ways:
        way.assert_unchanged()


# --- processes ------------------------------------------------------------------------------------


def test_a_process_that_is_gone_is_not_waited_for(ways: list[Way]) -> None:
    """It was ended, and the network lost what it said last."""
    query = rows_of(1000).replace("FROM", "FROM pg_sleep(60),")
    between = {way.name: way.between("source") for way in ways}

    def copy(way: Way) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Silent) and between[way.name].rule is proxies.unchanged:
                # On a busy machine there is silence while the plan is made, too.
                for pid in [b.pid for b in way.source.backends() if f'"{way.name}"' in b.query]:
                    between[way.name].rule = proxies.at_message("server", 0, "mute")
                    way.source.execute("SELECT pg_terminate_backend(%s)", [pid])

        way.copy(query + f' /* "{way.name}" */', listener=hear)

    hole = Hole("source", "server", "mute")
    detail = "The server ended the process that worked for us."
    assert_given_up([(way, hole) for way in ways], between, copy, detail)


PIDS = {
    "of nobody": lambda way: 999_999_999,
    "of somebody who waits for a client": lambda way: way.source.connect().info.backend_pid,
}


def test_behind_a_pooler_nobody_is_ended_by_mistake(
    cases_of: Callable[..., list[tuple[Way, Callable[[Way], int]]]],
) -> None:
    """It tells a number of its own; what the process of that number does says nothing."""
    cases = cases_of(PIDS, *PLAIN)
    ways = [way for way, _ in cases]
    query = rows_of(1000).replace("FROM", "FROM pg_sleep(1.2),")
    between = {way.label: way.between("source", proxies.tell_pid(pid(way))) for way, pid in cases}

    told = at_once(ways, lambda way: heard_by(way, query))

    for way in ways:
        assert "changed" in between[way.label].fired
        assert len(silences(told[way.label], "source")) >= 3, way.label
        way.direct()
        way.assert_copied(ROWS)


def test_behind_a_pooler_somebody_else_may_end(make_way: Callable[..., Way]) -> None:
    ways = [make_way(name) for name in PLAIN]
    query = rows_of(1000).replace("FROM", "FROM pg_sleep(1.2),")
    others = {way.name: way.source.connect() for way in ways}
    for way in ways:
        others[way.name].pgconn.send_query(b"SELECT pg_sleep(0.5)")  # at work, like ours
        way.between("source", proxies.tell_pid(others[way.name].info.backend_pid))

    def copy(way: Way) -> list[Event]:
        heard: list[Event] = []

        def hear(event: Event) -> None:
            heard.append(event)
            if isinstance(event, Silent):
                others[way.name].close()

        way.copy(query, listener=hear)
        return heard

    told = at_once(ways, copy)

    for way in ways:
        assert len(silences(told[way.name], "source")) >= 3, way.name
        way.direct()
        way.assert_copied(ROWS)


# --- giving up ------------------------------------------------------------------------------------

STALLS = {
    "the source's first row": ("source", rows_of(10).replace("FROM", "FROM pg_sleep(5),"), ""),
    "a row": ("source", rows_of(10, "repeat('x', 10000 + length(pg_sleep(g - 1)::text))"), ""),
    "a row of the dest": ("dest", ROWS, "BEFORE INSERT ROW"),
    "what the dest does for each statement": ("dest", ROWS, "AFTER INSERT STATEMENT"),
    "what the dest deletes": ("dest", ROWS, "BEFORE DELETE STATEMENT"),
}


@pytest.mark.parametrize("at", ["source", "dest"])
@pytest.mark.one_of(2)
def test_silence_beyond_the_limit_ends_the_run(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str, str]]]], at: str
) -> None:
    cases = cases_of({name: case for name, case in STALLS.items() if case[0] == at})
    for way, (_, _, hit) in cases:
        if hit:
            when, _, each = hit.rpartition(" ")
            way.trigger("PERFORM pg_sleep(5); RETURN NULL;", when, each)
    failed = {
        way.label: Begun(functools.partial(way.copy, query, stall_timeout=0.6))
        for way, (_, query, _) in cases
    }

    for label, begun in failed.items():
        error = begun.error(LONGEST)
        assert isinstance(error, TransientError), (label, error)
        assert not isinstance(error, ConnectionLost), label
        assert (error.exit_code, error.side) == (5, at), label
        assert error.message == f"{at}: nothing came for 1 s", label
        assert error.detail == "That is the limit of --stall-timeout.", label
        assert begun.seconds < 4, label
    for way, _ in cases:
        way.assert_unchanged()


# How the query begins whose request is lost, with all that follows.
UNANSWERED = {
    "planning at the source": ("source", b"SET LOCAL search_path"),
    "the parse of the query": ("source", None),
    "planning at the dest": ("dest", b"SELECT pg_catalog.to_regclass"),
    "the slice's locks": ("dest", b"\n        SELECT CASE WHEN l.exclusive"),
}


def test_no_query_waits_for_ever_where_silence_has_a_limit(
    cases_of: Callable[..., list[tuple[Way, tuple[str, bytes | None]]]],
) -> None:
    """Also those that come before the rows."""
    cases = cases_of(UNANSWERED, "tcp")
    between = {}
    for way, (side, starts) in cases:
        rule = proxies.at_kind(
            "client", b"P" if starts is None else b"Q", "hole", starts=starts or b""
        )
        between[way.label] = way.between(side, rule)
    failed = [Begun(functools.partial(way.copy, ROWS, stall_timeout=0.6)) for way, _ in cases]

    for (way, (side, _)), begun in zip(cases, failed, strict=True):
        error = begun.error(3)
        assert isinstance(error, TransientError), (way.label, error)
        assert (error.exit_code, error.side) == (5, side), way.label
        assert between[way.label].fired == ["hole"], way.label
        between[way.label].close()
    for way, _ in cases:
        way.direct()
        way.assert_unchanged()


# Whether what is lost is the answer, and how long a silence may last.
COMMITS = {
    "the request, asking": (False, None),
    "the request, giving up": (False, 0.6),
    "the answer, asking": (True, None),
    "the answer, giving up": (True, 0.6),
}


def test_a_commit_whose_request_or_answer_is_lost(
    cases_of: Callable[..., list[tuple[Way, tuple[bool, float | None]]]],
) -> None:
    """The dest waits for us, or said that it committed: only the dest knows."""
    cases = cases_of(COMMITS, "tcp")
    between = [
        way.between("dest", proxies.swallow_commit(arrives=arrives)) for way, (arrives, _) in cases
    ]
    failed = [
        Begun(functools.partial(way.copy, ROWS, stall_timeout=limit)) for way, (_, limit) in cases
    ]

    for (way, _), proxy, begun in zip(cases, between, failed, strict=True):
        error = begun.error(3)
        assert isinstance(error, CommitUnknown), (way.label, error)
        assert set(proxy.fired) == {"swallowed"}, way.label
        proxy.close()
    for way, (arrives, _) in cases:
        way.direct()
        if arrives:
            way.assert_copied(ROWS)
        else:
            way.assert_unchanged()


def test_the_limit_of_silence_on_the_command_line(
    make_way: Callable[..., Way], bare_run: Command
) -> None:
    way = make_way("tcp")
    query = rows_of(10).replace("FROM", "FROM pg_sleep(30),")

    done = bare_run(*way.words(query, "--stall-timeout", "600ms"), env=way.environment)

    assert done.code == 5
    assert "ERROR:  source: nothing came for 1 s\n" in done.err
    assert "DETAIL:  That is the limit of --stall-timeout.\n" in done.err
    assert done.seconds < 8
    way.assert_unchanged()
