"""Whatever carries the bytes: rows arrive as they are, and every failure is heard and told."""

import functools
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from copypipe import ConnectionLost, CopyFailed, transfers
from copypipe.events import Cleared, Event, Noticed
from copypipe.relay import Relayed, relay
from copypipe.servers import Answer, Session
from plugins import proxy as proxies
from plugins.command import no_backends
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
def test_rows_arrive_as_they_are(ways: list[Way], count: int, body: str) -> None:
    query = rows_of(count, body)

    copied = at_once(ways, lambda way: way.copy(query, allow_empty=True))

    for way in ways:
        assert (copied[way.name].rows, copied[way.name].transport) == (count, way.carried)
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


@pytest.mark.parametrize("torn", [None, 1, 5, 30], ids=["whole", "1 byte", "5 bytes", "30 bytes"])
@pytest.mark.parametrize(("side", "kind", "starts"), PLACES.values(), ids=PLACES.keys())
def test_what_is_said_around_the_data_is_heard_once(
    make_way: Callable[[str], Way], side: str, kind: bytes, starts: bytes, torn: int | None
) -> None:
    ways = [make_way(name) for name in PLAIN]

    def copy(way: Way) -> list[Event]:
        number = 500 if kind == b"d" else 0
        rule = proxies.insert(CHATTER, kind, starts=starts, number=number, torn=torn, pause=0.1)
        between = way.between(side, rule)
        heard: list[Event] = []
        assert way.copy(rows_of(1000), listener=heard.append).rows == 1000
        assert between.fired == ["changed" if torn is None else "slowly"]
        return heard

    for name, heard in at_once(ways, copy).items():
        assert told(heard, side) == HEARD, name
    for way in ways:
        way.assert_copied(rows_of(1000))


def test_what_is_said_in_mid_stream_may_be_torn_anywhere(make_way: Callable[[str], Way]) -> None:
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
    make_way: Callable[[str], Way],
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
    make_way: Callable[[str], Way],
) -> None:
    """The dest has failed, and only a part of the next row has come: neither is waited for."""
    ways = [make_way(name) for name in PLAIN]

    def copy(way: Way) -> float:
        way.dest.execute(f"ALTER TABLE {way.table} ADD CONSTRAINT small CHECK (id <> 1)")
        between = way.between("source", proxies.torn(b"d", 3, 700_000, 20))
        with pytest.raises(CopyFailed) as caught:
            way.copy(rows_of(8, "repeat('x', 1000000)"))
        assert caught.value.sqlstate == "23514"
        assert between.fired == ["slowly"]
        way.direct()
        between.close()
        return time.monotonic()

    began = time.monotonic()
    for name, ended in at_once(ways, copy).items():
        assert ended - began < 4, name
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
def test_a_source_that_dies(
    make_way: Callable[[str], Way],
    death: Callable[[proxies.Ending], proxies.Rule],
    ending: proxies.Ending,
) -> None:
    ways = [make_way(name) for name in PLAIN]
    assert_lost(ways, "source", lambda: death(ending), ending)


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("side", ["source", "dest"])
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
