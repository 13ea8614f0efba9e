"""Whatever carries the bytes: rows arrive as they are, and every failure is heard and told."""

import functools
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from copypipe import ConnectionLost, CopyFailed, UsageError, transfers
from copypipe.events import Cleared, Event, Noticed, Progress
from copypipe.relay import Relayed, relay, scans, wired
from copypipe.servers import Answer, Session
from plugins import proxy as proxies
from plugins.command import Command, Words, eventually, no_backends
from plugins.ways import PLAIN, Begun, Way, at_once

MEGABYTE = 1024 * 1024


def rows_of(count: int, body: str = "lpad(g::text, 30, 'x')") -> str:
    """Return a query of so many rows."""
    return f"SELECT g AS id, {body} AS body FROM generate_series(1, {count}) AS g"


# --- what the relay leaves behind -----------------------------------------------------------------


def assert_known(session: Session) -> None:
    """Fail unless the session is closed or answers: it must never wait for who knows what."""
    for tag in (b"ROLLBACK", b"SELECT 1"):
        if session.conn.closed:
            return
        answer = Answer(session.conn.pgconn)
        try:
            session.conn.pgconn.send_query(tag)
            answer.wait(time.monotonic() + 2)
        except (psycopg.Error, TimeoutError) as error:
            pytest.fail(f"the {session.side}'s session is neither closed nor usable: {error!r}")
        assert answer.result
        assert answer.result.command_status == tag


@pytest.fixture(autouse=True)
def sessions_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check both sessions after every relay of these tests that raised."""

    def checked(source: Session, copy_out: Any, dest: Session, *rest: Any, **more: Any) -> Relayed:
        try:
            return relay(source, copy_out, dest, *rest, **more)
        except BaseException:
            assert_known(source)
            assert_known(dest)
            raise

    monkeypatch.setattr(transfers, "relay", checked)


# --- rows -----------------------------------------------------------------------------------------

SHAPES = {
    "no row": (0, "'x'"),
    "one row": (1, "'x'"),
    "rows of one width": (12_000, "lpad(g::text, 30, 'x')"),
    "rows of many widths": (12_000, "repeat('ö', g % 100)"),
    "a last row that ends in NULL": (1000, "CASE WHEN g < 1000 THEN 'b' END"),
    "rows that end in NULL": (1000, "NULL::text"),
    "rows of 1 MB": (4, "repeat(md5(g::text), 32768)"),
    "a row of 20 MB": (1, "repeat(md5(g::text), 655360)"),
}


@pytest.mark.parametrize(("count", "body"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.one_of(5)
def test_rows_arrive_as_they_are(ways: list[Way], count: int, body: str) -> None:
    query = rows_of(count, body)

    copied = at_once(ways, lambda way: way.copy(query, allow_empty=True))

    for way in ways:
        assert (copied[way.name].rows, copied[way.name].transport) == (count, way.carried)
        way.assert_copied(query)


@pytest.mark.parametrize("transport", ["auto", "libpq"])
@pytest.mark.one_of(2)
def test_the_end_of_the_data_does_not_fit_into_the_socket(
    make_way: Callable[..., Way], transport: str
) -> None:
    """The dest is slow with the last rows, and what was sent before it fills the socket.

    A unix socket is full of what the other end has not read, and a small one nearly always; whether
    five bytes more fit depends on how much comes last, so several amounts are tried.
    """
    more = range(0, 4800, 400)
    ways = [make_way("unix", f"t{number}") for number in more]

    def query(way: Way) -> str:
        last = f"CASE WHEN g = 200 THEN {way.relation[1:]} ELSE 0 END"
        return rows_of(200, f"repeat('x', 1000 + {last})")

    def copy(way: Way) -> int:
        def connect() -> psycopg.Connection:
            connection = psycopg.connect(way.dsn("dest"))
            with socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            return connection

        return way.copy(query(way), dest=connect, transport=transport).rows

    for way in ways:
        way.trigger("IF NEW.id > 190 THEN PERFORM pg_sleep(0.02); END IF; RETURN NEW;")
    copying = [Begun(functools.partial(copy, way)) for way in ways]

    assert [begun.result(10) for begun in copying] == [200 for _ in more]
    for way in ways:
        way.assert_copied(query(way))


def test_a_query_that_is_longer_than_what_sockets_hold(ways: list[Way]) -> None:
    """It is written in pieces, while the server says nothing yet."""
    query = rows_of(10)

    copied = at_once(ways, lambda way: way.copy(f"{query} /* {'x' * 10_000_000} */"))

    for way in ways:
        assert copied[way.name].rows == 10
        way.assert_copied(query)


# --- messages that are no data --------------------------------------------------------------------


def told(heard: list[Event], side: str) -> list[tuple[str, str]]:
    """Return severity and text of what a side said, in order."""
    return [(e.severity, e.text) for e in heard if isinstance(e, Noticed) and e.side == side]


SAYS = """
    IF {n} % 100 = 0 THEN RAISE NOTICE '{side} grüßt bei %', {n}; END IF;
    IF {n} % 100 = 50 THEN RAISE WARNING '{side} warnt bei %', {n}; END IF;
"""


def test_notices_of_both_sides_are_handed_on_once(ways: list[Way]) -> None:
    for way in ways:
        way.source.execute(
            f"CREATE FUNCTION public.say_{way.name}(n int) RETURNS int LANGUAGE plpgsql AS"
            f" $$ BEGIN {SAYS.format(n='n', side='source')} RETURN n; END $$"
        )
        way.trigger(SAYS.format(n="NEW.id", side="dest") + "RETURN NEW;")

    def copy(way: Way) -> list[Event]:
        heard: list[Event] = []
        query = rows_of(3000, "repeat('x', 1000)").replace(
            "g AS id", f"public.say_{way.name}(g) AS id"
        )
        way.copy(query, listener=heard.append, notices=True)
        return heard

    heard = at_once(ways, copy)

    for way in ways:
        for side in ("source", "dest"):
            expected = [
                ("NOTICE", f"{side} grüßt bei {n}")
                if n % 100 == 0
                else ("WARNING", f"{side} warnt bei {n}")
                for n in range(50, 3001, 50)
            ]
            assert told(heard[way.name], side) == expected, way.name
        way.assert_copied(rows_of(3000, "repeat('x', 1000)"))


def test_notices_of_the_planner_are_handed_on_once(ways: list[Way]) -> None:
    """They come before the response to COPY; libpq, which reads them by itself, tells how many."""
    for way in ways:
        way.source.execute(
            f"CREATE FUNCTION public.fold_{way.name}(n int) RETURNS int IMMUTABLE"
            " LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'folded'; RETURN n; END $$"
        )

    def copy(way: Way, transport: str) -> list[tuple[str, str]]:
        heard: list[Event] = []
        query = rows_of(10).replace("g AS id", f"g + public.fold_{way.name}(1) AS id")
        way.copy(query, listener=heard.append, notices=True, transport=transport)
        begun = next(i for i, event in enumerate(heard) if isinstance(event, Cleared))
        return told(heard[begun:], "source")

    for way in ways:
        heard = copy(way, way.transport)
        assert heard
        assert set(heard) == {("NOTICE", "folded")}
        assert heard == copy(way, "libpq"), way.name


# What a server may say at any time, and no server does in the middle of a COPY: a notice, a setting
# that changed, a NOTIFY.
CHATTER = (
    proxies.notice("said by the proxy")
    + proxies.setting("application_name", "somebody")
    + proxies.notification("news", "none")
    + proxies.notice("and again", "WARNING")
)
HEARD = [("NOTICE", "said by the proxy"), ("WARNING", "and again")]

PLACES = {
    "before the response to COPY": ("source", b"H", b""),
    "in mid-stream": ("source", b"d", b""),
    "before the end of the data": ("source", b"c", b""),
    "before the source's command tag": ("source", b"C", b"COPY"),
    "before the dest's response to COPY": ("dest", b"G", b""),
    "before the dest's command tag": ("dest", b"C", b"COPY"),
}


# After how many bytes it is torn.
TEARS = {"whole": None, "1 byte": 1, "5 bytes": 5, "30 bytes": 30}


@pytest.mark.parametrize(("side", "kind", "starts"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.one_of(5)
def test_what_is_said_around_the_data_is_heard_once(
    cases_of: Callable[..., list[tuple[Way, int | None]]], side: str, kind: bytes, starts: bytes
) -> None:
    cases = cases_of(TEARS, *PLAIN)
    tears = {way.label: torn for way, torn in cases}
    ways = [way for way, _ in cases]

    def copy(way: Way) -> list[Event]:
        number, torn = 500 if kind == b"d" else 0, tears[way.label]
        rule = proxies.insert(CHATTER, kind, starts=starts, number=number, torn=torn, pause=0.1)
        between = way.between(side, rule)
        heard: list[Event] = []
        assert way.copy(rows_of(1000), listener=heard.append).rows == 1000
        assert between.fired == ["changed" if torn is None else "slowly"]
        return heard

    for label, heard in at_once(ways, copy).items():
        assert told(heard, side) == HEARD, label
    for way in ways:
        way.assert_copied(rows_of(1000))


def test_what_is_said_in_mid_stream_may_be_torn_anywhere(make_way: Callable[..., Way]) -> None:
    """A byte here, the rest a moment later, for every byte of it."""
    ways = [make_way(name) for name in PLAIN]

    def copy(way: Way) -> list[Event]:
        between = way.between("source", proxies.insert_torn_everywhere(CHATTER, 0.005))
        heard: list[Event] = []
        way.copy(rows_of(1000), listener=heard.append)
        assert between.fired == ["slowly"] * (len(CHATTER) - 1)
        return heard

    for name, heard in at_once(ways, copy).items():
        assert told(heard, "source") == HEARD * (len(CHATTER) - 1), name
    for way in ways:
        way.assert_copied(rows_of(1000))


def test_what_the_dest_says_in_mid_stream_may_be_torn_anywhere(
    make_way: Callable[..., Way],
) -> None:
    """It comes byte by byte from the response to COPY on, while rows flow and when all have."""
    ways = [make_way(name) for name in PLAIN]

    def byte_by_byte(frame: proxies.Frame) -> None:
        if frame.sender == "server" and frame.kind == b"G":
            said = [CHATTER[i : i + 1] for i in range(len(CHATTER))]
            raise proxies.Slowly([frame.raw, *said], 0.005)

    def copy(way: Way) -> list[Event]:
        between = way.between("dest", byte_by_byte)
        heard: list[Event] = []
        query = rows_of(1000, "lpad(g::text, 30, 'x') || left(pg_sleep(0.0005)::text, 0)")
        way.copy(query, listener=heard.append)
        assert between.fired == ["slowly"]
        return heard

    for name, heard in at_once(ways, copy).items():
        assert told(heard, "dest") == HEARD, name
    for way in ways:
        way.assert_copied(rows_of(1000))


# --- errors ---------------------------------------------------------------------------------------

LAST = 3000
ERRORS = {
    "of the source in the first row": (
        rows_of(LAST).replace("g AS", "g / (g - 1) AS"),
        None,
        "source",
    ),
    "of the source in the last row": (
        rows_of(LAST).replace("g AS", f"g / (g - {LAST}) AS"),
        None,
        "source",
    ),
    "of the dest in the first row": (rows_of(LAST), "id <> 1", "dest"),
    "of the dest in the last row": (rows_of(LAST), f"id <> {LAST}", "dest"),
}


@pytest.mark.parametrize(("query", "check", "side"), ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.one_of(3)
def test_error(ways: list[Way], query: str, check: str | None, side: str) -> None:
    for way in ways:
        if check:
            way.dest.execute(f"ALTER TABLE {way.table} ADD CONSTRAINT small CHECK ({check})")
    failed = {way.name: Begun(functools.partial(way.copy, query)) for way in ways}

    for name, begun in failed.items():
        error = begun.error()
        assert isinstance(error, CopyFailed), (name, error)
        assert (error.exit_code, error.side) == (1, side), name
        assert error.sqlstate == ("22012" if side == "source" else "23514"), name
    for way in ways:
        way.assert_unchanged()
        if check:
            way.dest.execute(f"ALTER TABLE {way.table} DROP CONSTRAINT small")
        way.copy(rows_of(10))
        way.assert_copied(rows_of(10))


# A moment longer than a server that was told CopyFail is waited for.
LATE = wired.FAREWELL_SECONDS + 0.2


@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.one_of(2)
def test_an_error_that_comes_in_two_pieces(
    cases_of: Callable[..., list[tuple[Way, int]]], side: str
) -> None:
    """A packet was lost on the way: the rest of the error comes a moment later."""
    cases = cases_of({"1 byte": 1, "3 bytes": 3, "40 bytes": 40}, *PLAIN)
    query, check, _ = ERRORS[f"of the {side} in the last row"]
    for way, _ in cases:
        if check:
            way.dest.execute(f"ALTER TABLE {way.table} ADD CONSTRAINT small CHECK ({check})")
    between = {
        way.label: way.between(side, proxies.torn(b"E", 0, size, LATE)) for way, size in cases
    }
    failed = {way.label: Begun(functools.partial(way.copy, query)) for way, _ in cases}

    for label, begun in failed.items():
        error = begun.error()
        assert isinstance(error, CopyFailed), (label, error)
        sqlstate = "22012" if side == "source" else "23514"
        assert (error.side, error.sqlstate) == (side, sqlstate), (label, error)
        assert between[label].fired == ["slowly"], label
        assert begun.seconds > LATE, label
    for way, _ in cases:
        way.assert_unchanged()


TRAILERLESS = {
    "rows": rows_of(1000),
    # Header and trailer share a message; without the trailer there is none.
    "no row": rows_of(0),
}


def without_trailer(frame: proxies.Frame) -> bytes | None:
    """Leave out the trailer, alone or behind the header; all else says that nothing is missing."""
    if frame.is_data and frame.body.endswith(proxies.TRAILER) and len(frame.body) in (2, 21):
        return proxies.said(b"d", frame.body[:-2]) if len(frame.body) > 2 else b""
    return None


@pytest.mark.parametrize("query", TRAILERLESS.values(), ids=TRAILERLESS.keys())
def test_a_source_that_ends_without_its_trailer(plain_way: Way, query: str) -> None:
    between = plain_way.between("source", without_trailer)

    with pytest.raises(CopyFailed, match="ended without its trailer") as caught:
        plain_way.copy(query, allow_empty=True)

    assert (caught.value.exit_code, caught.value.side) == (1, "source")
    assert len(between.fired) == 1
    plain_way.assert_unchanged()


# --- a dest that fails while the source has far more to send --------------------------------------

# 200 MB: the sockets between hold some, and whoever does not stop reads all of it.
WIDE = rows_of(200, "repeat('x', 1000000)")
NARROW = rows_of(4_000_000)
UNDER_WAY = 16 * MEGABYTE


@pytest.mark.parametrize("query", [WIDE, NARROW], ids=["within a row", "rows as they come"])
@pytest.mark.one_of(5)
def test_error_of_the_dest_stops_the_source(way: Way, query: str) -> None:
    way.dest.execute(f"ALTER TABLE {way.table} ADD CONSTRAINT small CHECK (id <> 1)")
    from_source = way.between("source")
    began: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, Cleared):  # the first row fails right after this
            began.append(time.monotonic())

    with pytest.raises(CopyFailed) as caught:
        way.copy(query, listener=hear)
    no_backends(way.source, seconds=2)

    assert time.monotonic() - began[0] < 2
    assert from_source.bytes["server"] < UNDER_WAY
    assert (caught.value.exit_code, caught.value.sqlstate) == (1, "23514")
    way.assert_unchanged()


def test_error_of_the_dest_in_a_row_that_the_source_does_not_go_on_with(
    make_way: Callable[..., Way],
) -> None:
    """The dest has failed, and only a part of the next row has come: neither is waited for."""
    ways = [make_way(name) for name in PLAIN]

    def copy(way: Way) -> float:
        way.trigger("PERFORM pg_sleep(0.5); RAISE EXCEPTION 'no';")
        between = way.between("source", proxies.torn(b"d", 1, 700_000, 20))
        with pytest.raises(CopyFailed, match="dest: no"):
            way.copy(rows_of(8, "repeat('x', 1000000)"))
        assert between.fired == ["slowly"]
        way.direct()
        between.close()
        return time.monotonic()

    began = time.monotonic()
    for name, ended in at_once(ways, copy).items():
        assert ended - began < 4, name
    for way in ways:
        way.assert_unchanged()


# --- a server that cannot be told to stop ---------------------------------------------------------


# Of 10 kB, which a server sends at once: what is small waits in its buffer for more.
DOZING = rows_of(3, "repeat('x', 10000) || CASE g WHEN 3 THEN pg_sleep(20)::text ELSE '' END")


def cut_off(ways: list[Way]) -> None:
    """End what still runs for us at the servers, which would notice by themselves after 10 s."""
    for way in ways:
        way.direct()
    for database in (ways[0].source, ways[0].dest):
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'copypipe%'"
        )


def test_a_cancel_that_is_swallowed_does_not_hold_an_error_up(make_way: Callable[..., Way]) -> None:
    """The dest has failed; the source, busy with a row, does not hear that it is asked to stop."""
    ways = [make_way(name) for name in PLAIN]
    between = {way.name: way.between("source", proxies.swallow_cancels) for way in ways}
    for way in ways:
        way.trigger("PERFORM pg_sleep(0.3); RAISE EXCEPTION 'no';")
    failed = {way.name: Begun(functools.partial(way.copy, DOZING)) for way in ways}

    for name, begun in failed.items():
        error = begun.error()
        assert isinstance(error, CopyFailed), (name, error)
        assert (error.side, error.sqlstate) == ("dest", "P0001"), name
        assert begun.seconds < 2.3, name
        assert between[name].fired == ["swallowed"], name
    cut_off(ways)
    for way in ways:
        way.assert_unchanged()


def test_cancels_that_are_swallowed_do_not_hold_a_signal_up(
    make_way: Callable[..., Way], bare_run: Command
) -> None:
    """Both servers are busy with a row, and neither hears that it is asked to stop."""
    ways = [make_way(name) for name in ("tcp", "libpq")]
    between = {}
    for way in ways:
        way.trigger("PERFORM pg_sleep(20); RETURN NEW;")
        for side in ("source", "dest"):
            between[way.name, side] = way.between(side, proxies.swallow_cancels)
    running = {way.name: bare_run.start(*way.words(DOZING), env=way.environment) for way in ways}
    for database in (ways[0].source, ways[0].dest):
        busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        busy += " AND datname = current_database()"
        eventually(
            lambda database=database, busy=busy: database.scalar(busy) == len(ways),
            seconds=20,
            what="all are busy with a row",
        )
    sent = {name: process.signal(signal.SIGTERM) for name, process in running.items()}
    for name, process in running.items():
        done = process.wait()

        assert time.monotonic() - sent[name] < 2, name
        assert done.code == 143, (name, done.err)
        for side in ("source", "dest"):
            assert between[name, side].fired == ["swallowed"], (name, side)
    cut_off(ways)
    for way in ways:
        way.assert_unchanged()


# --- a source that dies ---------------------------------------------------------------------------

# Of rows of 100 kB, so that bytes fall into one, also where nobody can see where one begins.
DEATHS = {
    "within a row": lambda ending: proxies.cut_after(450_000, ending),
    "within a row's header": lambda ending: proxies.cut_after(500_000 - 1, ending),
    "between two rows": lambda ending: proxies.cut_at_row(5, ending),
    "before the trailer": proxies.cut_before_trailer,
}


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
@pytest.mark.one_of(5)
def test_a_source_that_dies(
    make_way: Callable[..., Way],
    death: Callable[[proxies.Ending], proxies.Rule],
    ending: proxies.Ending,
) -> None:
    ways = [make_way(name) for name in PLAIN]
    assert_lost(ways, "source", lambda: death(ending), ending)


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.one_of(3)
def test_a_connection_that_is_cut_after_some_bytes(
    ways: list[Way], side: str, ending: proxies.Ending
) -> None:
    """The same through TLS, of which nobody sees the messages."""
    sender: proxies.Direction = "server" if side == "source" else "client"
    assert_lost(ways, side, lambda: proxies.at_byte(sender, 450_000, ending), ending)


def assert_lost(
    ways: list[Way], side: str, rule: Callable[[], proxies.Rule], ending: proxies.Ending
) -> None:
    query = rows_of(10, "repeat('x', 100000)")
    between = {way.name: way.between(side, rule()) for way in ways}
    failed = {way.name: Begun(functools.partial(way.copy, query)) for way in ways}

    for name, begun in failed.items():
        error = begun.error()
        assert isinstance(error, ConnectionLost), (name, error)
        assert (error.exit_code, error.side) == (5, side), name
        assert between[name].fired == [ending], name
    for way in ways:
        way.assert_unchanged()
        way.direct()
        way.copy(query)
        way.assert_copied(query)


def test_a_source_that_is_ended_while_the_relay_rests(ways: list[Way]) -> None:
    """What it sent before is not spread over its time any more.

    That must be little: the end of a connection stands behind all that was sent, so a relay that
    does not read for a while does not hear of it where the sockets between are full.
    """

    def copy(way: Way) -> float:
        ended: list[float] = []

        def hear(event: Event) -> None:
            if isinstance(event, Progress) and not ended:
                time.sleep(0.5)  # 50 kB have come now, which would take five seconds
                (pid,) = [b.pid for b in way.source.backends() if way.table in b.query]
                ended.append(time.monotonic())
                way.source.execute("SELECT pg_terminate_backend(%s)", [pid])

        # The table's name is how the backend is found.
        slowly = "repeat('x', 1000) || left(pg_sleep(0.01)::text, 0)"
        query = rows_of(5000, slowly) + f" /* {way.table} */"
        with pytest.raises(ConnectionLost) as caught:
            way.copy(query, rate_limit=10 * 1024, listener=hear)
        assert (caught.value.exit_code, caught.value.side) == (5, "source")
        return time.monotonic() - ended[0]

    for name, seconds in at_once(ways, copy).items():
        assert seconds < 3, name
    for way in ways:
        way.assert_unchanged()


# --- a dest that is busy --------------------------------------------------------------------------


def test_other_threads_run_while_the_dest_is_busy(ways: list[Way]) -> None:
    """All is sent, and foreign keys, say, are checked for a while."""
    for way in ways:
        way.trigger("PERFORM pg_sleep(1); RETURN NULL;", "AFTER INSERT", "STATEMENT")
    copying = {way.name: Begun(functools.partial(way.copy, rows_of(1000))) for way in ways}
    longest = 0.0
    while any(begun.running for begun in copying.values()):
        before = time.monotonic()
        time.sleep(0.01)
        longest = max(longest, time.monotonic() - before)

    assert longest < 0.5
    for way in ways:
        assert copying[way.name].result().rows == 1000
        assert copying[way.name].seconds > 1
        way.assert_copied(rows_of(1000))


def test_a_signal_ends_a_run_whose_dest_is_busy(ways: list[Way], bare_run: Command) -> None:
    for way in ways:
        way.trigger("PERFORM pg_sleep(60); RETURN NULL;", "AFTER INSERT", "STATEMENT")
    running = {
        way.name: bare_run.start(*way.words(rows_of(1000)), env=way.environment) for way in ways
    }
    for way in ways:
        busy = f"""SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'
                      AND query LIKE 'COPY "public"."{way.name}"%'"""
        eventually(lambda way=way, busy=busy: way.dest.fetch(busy), seconds=20, what=way.name)
    sent = {name: process.signal(signal.SIGTERM) for name, process in running.items()}
    for name, process in running.items():
        done = process.wait()

        assert time.monotonic() - sent[name] < 2, name
        assert done.code == 143, (name, done.err)
    for way in ways:
        way.assert_unchanged()


# --- programs that embed it -----------------------------------------------------------------------

# Its sockets give up after half a second by themselves, as it wants of all that Python makes.
EMBEDDING = """
import json, os, socket
from concurrent.futures import ThreadPoolExecutor
socket.setdefaulttimeout(0.5)
import copypipe
copies = json.loads(os.environ["COPIES"])
def copy(options):
    return copypipe.copy(**options, all=True, yes=True).rows
with ThreadPoolExecutor(len(copies)) as threads:
    print(json.dumps(list(threads.map(copy, copies))))
assert socket.getdefaulttimeout() == 0.5
"""

SECONDS_OF_SILENCE = {
    "a source that sorts": (rows_of(1000).replace("FROM", "FROM pg_sleep(1),"), ""),
    "a source in mid-stream": (
        rows_of(
            30, "repeat('x', 10000 + CASE g WHEN 15 THEN length(pg_sleep(1)::text) ELSE 0 END)"
        ),
        "",
    ),
    "a dest that takes no more": (
        rows_of(1000, "repeat('x', 20000)"),
        "IF NEW.id = 10 THEN PERFORM pg_sleep(1); END IF; RETURN NEW;",
    ),
}


def test_a_program_that_gives_its_sockets_a_timeout_may_wait_longer(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str]]]],
) -> None:
    cases = cases_of(SECONDS_OF_SILENCE)
    copies, without = [], {}
    for way, (query, trigger) in cases:
        if trigger:
            way.trigger(trigger)
        sides = {side: way.dsn(side) for side in ("source", "dest")}
        copies.append({"table": way.table, "query": query, "transport": way.transport, **sides})
        without[way.label] = query.replace("pg_sleep(1)", "pg_sleep(0)")

    done = subprocess.run(
        [sys.executable, "-c", EMBEDDING],
        env={**os.environ, "COPIES": json.dumps(copies)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    for (way, _), rows in zip(cases, json.loads(done.stdout), strict=True):
        assert rows == way.dest.scalar(f"SELECT count(*) FROM {way.table}"), way.label
        way.assert_copied(without[way.label])


# --- no turning while there is nothing to do ------------------------------------------------------


@dataclass(frozen=True)
class Wait:
    """A copy in which something takes a second, and the same without."""

    query: str = rows_of(2000)
    without: str = rows_of(2000)
    trigger: str = ""
    side: str = ""
    rule: Callable[[], proxies.Rule] = lambda: proxies.unchanged


def sleeping(number: int) -> str:
    return f"CASE WHEN g = {number} THEN left(pg_sleep(1)::text, 0) ELSE lpad(g::text, 30, 'x') END"


AT_TEN = "IF NEW.id = 10 THEN PERFORM pg_sleep(1); END IF; RETURN NEW;"
LARGE = rows_of(1000, "repeat('x', 20000)")

WAITS = {
    "for the first row": Wait(rows_of(2000).replace("FROM", "FROM pg_sleep(1),")),
    "for a row": Wait(rows_of(2000, sleeping(1000))),
    "for the last row": Wait(rows_of(2000, sleeping(2000))),
    "for a dest that takes no more": Wait(LARGE, LARGE, AT_TEN),
    "for a dest that has all": Wait(trigger=AT_TEN),
    "for the rest of a header": Wait(side="source", rule=lambda: proxies.torn(b"d", 900, 2, 1)),
    "for the rest of a row": Wait(side="source", rule=lambda: proxies.torn(b"d", 900, 9, 1)),
    "for the rest of what the source says": Wait(
        side="source", rule=lambda: proxies.insert(CHATTER, b"d", number=900, torn=3, pause=1)
    ),
    "for the rest of what the dest says": Wait(
        side="dest", rule=lambda: proxies.insert(CHATTER, b"C", starts=b"COPY", torn=3, pause=1)
    ),
}


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Let nobody look for garbage: what all tests before have left takes a tenth of a second."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage")
def test_waiting_costs_no_cpu(
    ways: list[Way], cases_of: Callable[..., list[tuple[Way, Wait]]]
) -> None:
    without: dict[tuple[str, str], float] = {}
    for query in {wait.without for wait in WAITS.values()}:
        at_rest = {way.name: Begun(functools.partial(way.copy, query)) for way in ways}
        for name, begun in at_rest.items():
            begun.result()
            without[name, query] = begun.cpu
    cases = [(way, wait) for way, wait in cases_of(WAITS) if way.name in PLAIN or not wait.side]
    for way, wait in cases:
        if wait.trigger:
            way.trigger(wait.trigger)
        if wait.side:
            way.between(wait.side, wait.rule())
    copying = [Begun(functools.partial(way.copy, wait.query)) for way, wait in cases]

    more = 0.0
    for (way, wait), begun in zip(cases, copying, strict=True):
        begun.result()
        base = without[way.name, wait.without]
        assert begun.seconds > 1, way.label
        assert begun.cpu < base + 0.1, way.label
        more += begun.cpu - base
    # Many that turn have little CPU each, for there is no more than that of the machine.
    assert more < 0.5


@pytest.mark.usefixtures("no_garbage")
def test_waiting_for_the_rest_of_what_is_encrypted_costs_no_cpu(
    make_way: Callable[..., Way],
) -> None:
    """OpenSSL hands out nothing of a record before it is there as a whole."""
    way = make_way("tls")
    between = way.between("source")
    query = rows_of(200_000)
    without = Begun(functools.partial(way.copy, query))
    without.result()

    def tear(event: Event) -> None:
        if isinstance(event, Progress) and between.rule is proxies.unchanged:
            between.rule = proxies.torn(b"", 0, 3, 1)

    begun = Begun(functools.partial(way.copy, query, listener=tear))
    begun.result()

    assert between.fired == ["slowly"]
    assert begun.seconds > 1
    assert begun.cpu < without.cpu + 0.1
    way.assert_copied(query)


# --- what carried it, and where the time went -----------------------------------------------------


def words_of(way: Way, bare_run: Command) -> Words:
    return Words(bare_run.base | way.environment, bare_run.check)


@pytest.mark.one_of(3)
def test_the_result_names_what_carried_it(way: Way, bare_run: Command) -> None:
    command = way.words(rows_of(10))
    words = words_of(way, bare_run)

    plan = json.loads(words(*command, "--json", "--dry-run").out)
    told = json.loads(words(*command, "--json").out)
    verbose = words(*command, "-v")

    scan = "libpq" if way.name == "libpq" else scans.NAME
    assert plan["transport"] == told["transport"] == way.carried
    assert told["scan"] == scan
    by = way.carried if scan == "libpq" else f"{way.carried}, {scan} scan"
    assert verbose.err.splitlines()[-1].endswith(f"; carried by {by}")
    assert f"carried  by {way.carried}\n" in words(*command, "--dry-run").out


@pytest.mark.parametrize(
    ("name", "asked", "code"),
    [
        *((name, "socket", 0) for name in ("tcp", "unix")),
        *((name, "tls", 2) for name in ("tcp", "unix")),
        ("tls", "tls", 0),
        ("tls", "socket", 2),
        *((name, "libpq", 0) for name in ("tcp", "unix", "tls")),
    ],
)
@pytest.mark.one_of(5)
def test_a_transport_is_taken_or_refused(
    make_way: Callable[..., Way], bare_run: Command, name: str, asked: str, code: int
) -> None:
    way = make_way(name)

    done = words_of(way, bare_run)(*way.words(rows_of(10)), "--transport", asked, "--json")

    assert done.code == code, done.err
    if code:
        told = json.loads(done.err.splitlines()[-1])
        why = {"tls": "It is encrypted by TLS.", "tcp": "It is not encrypted."}
        assert (told["message"], told["detail"], told["side"]) == (
            f"the connection to the source cannot be carried by --transport {asked}",
            why.get(name, why["tcp"]),
            "source",
        )
        assert told["hint"] == "Use --transport auto."
        way.assert_unchanged()
    else:
        assert json.loads(done.out)["transport"] == asked
        way.assert_copied(rows_of(10))


def test_each_side_is_carried_by_what_it_has(make_way: Callable[..., Way]) -> None:
    plain, encrypted = make_way("tcp"), make_way("tls")
    query = rows_of(20_000)
    mixed = {"source": plain.dsn("source"), "dest": encrypted.dsn("dest")}

    done = encrypted.copy(query, **mixed)
    with pytest.raises(UsageError, match="the connection to the dest cannot be carried"):
        encrypted.copy(query, **mixed, transport="socket")

    assert done.transport == "socket/tls"
    encrypted.assert_copied(query)


SPENT = {
    "the source": (rows_of(10, "'x' || left(pg_sleep(0.1)::text, 0)"), "", {}, "source"),
    "the dest": (rows_of(10), "PERFORM pg_sleep(0.1); RETURN NEW;", {}, "dest"),
    "the rate limit": (rows_of(1000, "repeat('x', 100)"), "", {"rate_limit": 100 * 1024}, "limit"),
}


def test_the_result_tells_where_the_time_went(
    cases_of: Callable[..., list[tuple[Way, tuple[str, str, dict[str, Any], str]]]],
) -> None:
    cases = cases_of(SPENT)
    for way, (_, trigger, _, _) in cases:
        if trigger:
            way.trigger(trigger)
    copying = [
        Begun(functools.partial(way.copy, query, **options))
        for way, (query, _, options, _) in cases
    ]

    for (way, (*_, name)), begun in zip(cases, copying, strict=True):
        done = begun.result()
        spent = done.spent
        waited = spent.source + spent.dest + spent.limit
        assert 1 <= spent.all <= done.seconds, way.label
        assert getattr(spent, name) > 0.8 * spent.all, way.label
        assert waited + spent.relaying == pytest.approx(spent.all, rel=0.1), way.label
        assert waited <= spent.all, way.label


def test_the_bottleneck_is_the_last_thing_that_is_said(
    make_way: Callable[..., Way], bare_run: Command
) -> None:
    way = make_way("tcp")
    query, *_ = SPENT["the source"]

    done = words_of(way, bare_run)(*way.words(query), "-v")

    assert re.fullmatch(
        r"the source is the bottleneck: \d+% of \d+\.\d\d s \(the dest \d+%, the relay \d+%\); "
        rf"carried by socket, {scans.NAME} scan",
        done.err.splitlines()[-1],
    )
