"""What a session asks often is prepared, where it talks to one backend, and nothing else is.

And a connection that a caller has made notices a vanished server as soon as our own do.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from psycopg.sql import SQL, Composed

from copypipe import servers
from copypipe.requests import Endpoint
from copypipe.servers import Session
from plugins import proxy as proxies
from plugins.databases import Database
from plugins.proxy import Proxy

PREPARED = SQL("SELECT count(*) FROM pg_catalog.pg_prepared_statements").format()


@contextmanager
def connected(target: str | Callable[[], psycopg.Connection]) -> Iterator[Session]:
    with servers.connected("source", Endpoint(target, "test"), "sessions") as session:
        session.begin("READ COMMITTED", read_only=True)
        yield session


def asked(session: Session, query: Composed, times: int) -> int:
    """Ask a query so often; return how many are prepared then."""
    for _ in range(times):
        assert session.fetch(query) == [(7,)]
    return int(session.fetch_one(PREPARED)[0])


def seven(more: str = "") -> Composed:
    return SQL("SELECT 7 {}").format(SQL(more))


@pytest.mark.parametrize(("times", "prepared"), [(2, 0), (3, 1), (9, 1)])
def test_what_is_asked_again_and_again_is_prepared(
    kept_source: Database, times: int, prepared: int
) -> None:
    with connected(kept_source.dsn) as session:
        assert asked(session, seven(), times) == prepared


def test_behind_a_pooler_nothing_is_prepared(
    kept_source: Database, proxy: Callable[..., Proxy]
) -> None:
    """The backend that answers next would not know of it."""
    between = proxy(kept_source.server, proxies.tell_pid(1))

    with connected(between.dsn(kept_source)) as session:
        assert asked(session, seven(), 9) == 0
    assert "changed" in between.fired


def test_what_is_long_is_neither_prepared_nor_kept(kept_source: Database) -> None:
    with connected(kept_source.dsn) as session:
        assert asked(session, seven(f"-- {'x' * 10_000}"), 9) == 0
        assert all(len(text) < 10_000 for _, text in session._texts.values())


def test_a_new_connection_knows_nothing_of_the_old_one(kept_source: Database) -> None:
    with connected(kept_source.dsn) as session:
        assert asked(session, seven(), 3) == 1
        session.reconnect()
        session.begin("READ COMMITTED", read_only=True)
        assert asked(session, seven(), 2) == 0


def kept_alive(session: Session) -> tuple[int, int, int]:
    with closing(socket.socket(fileno=os.dup(session.conn.fileno()))) as same:
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        options = (getattr(socket, name) for name in names)
        idle, interval, count = (same.getsockopt(socket.IPPROTO_TCP, each) for each in options)
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return idle, interval, count


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, (30, 10, 3)),
        ({"keepalives_idle": 77, "keepalives_interval": 7, "keepalives_count": 2}, (77, 7, 2)),
    ],
)
def test_a_callers_connection_is_kept_alive_as_our_own(
    kept_source: Database, chosen: dict[str, int], found: tuple[int, int, int]
) -> None:
    with connected(lambda: psycopg.connect(kept_source.dsn, **chosen)) as session:
        assert kept_alive(session) == found
    with connected(kept_source.server.dsn(dbname=kept_source.name, **chosen)) as session:
        assert kept_alive(session) == found


def test_a_callers_unix_socket_stays_as_it_is(kept_source: Database) -> None:
    folder = kept_source.server.socket_dir
    if folder is None:
        pytest.skip("the server has no socket that we know of")
    dsn = kept_source.server.dsn(dbname=kept_source.name, host=str(folder))
    with connected(lambda: psycopg.connect(dsn)) as session:
        assert asked(session, seven(), 1) == 0
