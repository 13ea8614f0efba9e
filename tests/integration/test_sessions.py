"""What a session asks often is prepared, where it talks to one backend, and nothing else is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
def connected(dsn: str) -> Iterator[Session]:
    with servers.connected("source", Endpoint(dsn, "test"), "sessions") as session:
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
