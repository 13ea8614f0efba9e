"""`way`: each way in which the bytes may go between two servers, with a pair of databases for it.

`tcp` and `unix` are sockets of the suite's own servers, `libpq` goes through libpq on them, `tls`
is a pair that encrypts. Every way has a table of its own, so that they can be tried at once; where
several copies go the same way, so have they.
"""

import contextlib
import functools
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

import copypipe
from copypipe import Transferred
from plugins.command import EMPTY, no_backends
from plugins.databases import Database, fresh
from plugins.proxy import Proxy, Rule, unchanged
from plugins.servers import Servers

T = TypeVar("T")

NAMES = ("tcp", "unix", "tls", "libpq")
PLAIN = ("tcp", "unix", "libpq")
"""Those whose messages a proxy can read."""

# What the dest holds before a copy, and after one that failed.
OLD = "SELECT -g AS id, 'old ' || g AS body FROM generate_series(1, 5) AS g"


@dataclass
class Way:
    """A way from `source` to `dest`: TABLE (id int, body text), which has some old rows there."""

    name: str
    source: Database
    dest: Database
    _proxy: Callable[..., Proxy]
    _folders: contextlib.ExitStack
    relation: str = ""
    before: str = ""
    _proxies: dict[str, Proxy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Not compressed: a row of zeros would be no large row to the dest.
        for database in (self.source, self.dest):
            database.execute(
                f"CREATE TABLE {self.table} (id int, body text);"
                f"ALTER TABLE {self.table} ALTER body SET STORAGE EXTERNAL"
            )
        self.dest.execute(f"INSERT INTO {self.table} {OLD}")
        self.before = self.dest.digest(self.table, "id")

    @property
    def label(self) -> str:
        """What tells it from the others of a test."""
        return self.relation or self.name

    @property
    def table(self) -> str:
        return f"public.{self.label}"

    @property
    def carried(self) -> str:
        """What copypipe calls it."""
        return {"tcp": "socket", "unix": "socket"}.get(self.name, self.name)

    @property
    def transport(self) -> str:
        """What copypipe is asked for."""
        return "libpq" if self.name == "libpq" else "auto"

    def between(self, side: str, rule: Rule = unchanged) -> Proxy:
        """Put a proxy between copypipe and a side."""
        server = getattr(self, side).server
        folder = None
        if self.name == "unix":
            # Not pytest's own: the path of a socket has a low limit.
            folder = Path(self._folders.enter_context(tempfile.TemporaryDirectory(prefix="cp-")))
        self._proxies[side] = self._proxy(server, rule, folder)
        return self._proxies[side]

    def direct(self) -> None:
        """Go without a proxy again."""
        self._proxies.clear()

    def dsn(self, side: str) -> str:
        """Return how to connect to a side by this way."""
        database = getattr(self, side)
        sslmode = "require" if self.name == "tls" else "disable"
        if side in self._proxies:
            return self._proxies[side].dsn(database, sslmode=sslmode)
        more = {"host": str(database.server.socket_dir)} if self.name == "unix" else {}
        return database.server.dsn(dbname=database.name, sslmode=sslmode, **more)

    @property
    def environment(self) -> dict[str, str]:
        """Return what tells a command where both sides are."""
        return {"COPYPIPE_SOURCE": self.dsn("source"), "COPYPIPE_DEST": self.dsn("dest")}

    def copy(self, query: str, **options: Any) -> Transferred:
        """Copy what a query of the source returns, in the place of all that the dest has.

        Once, with nothing around it: how the bytes go is the matter here.
        """
        once = {"retries": 0, "ledger": False}
        chosen = {"transport": self.transport, "all": True, "yes": True, **once, **options}
        sides = {side: self.dsn(side) for side in ("source", "dest")}
        return copypipe.copy(self.table, query=query, **{**sides, **chosen})

    def words(self, query: str, *more: str) -> tuple[str, ...]:
        """Return the same as words of the command line."""
        transport = ("--transport", self.transport)
        once = ("--retries", "0", "--no-ledger")
        return ("copy", self.table, "--query", query, "--all", "--yes", *once, *transport, *more)

    def trigger(self, body: str, when: str = "BEFORE INSERT", each: str = "ROW") -> None:
        """Have the dest do something with each row, or for the whole statement."""
        name = f"hit_{self.label}"
        self.dest.execute(
            f"CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {body} END $$;"
            f"CREATE TRIGGER hit {when} ON {self.table} FOR EACH {each}"
            f" EXECUTE FUNCTION public.{name}()"
        )

    def assert_unchanged(self) -> None:
        """Fail unless the dest is what it was, and nobody of ours is left."""
        no_backends(self.source, self.dest)
        assert self.dest.digest(self.table, "id") == self.before

    def assert_copied(self, query: str) -> None:
        """Fail unless the dest is what the query returns; rows may be large."""
        no_backends(self.source, self.dest)
        # Without what the body is made of: it would be another 40 MB of Python.
        digest = "SELECT id, md5(body), octet_length(body) FROM {} AS rows ORDER BY id"
        expected = self.source.text(digest.format(f"({query})"))
        assert self.dest.text(digest.format(self.table)) == expected


# --- several at once ------------------------------------------------------------------------------


Case = TypeVar("Case")


class Begun(Generic[T]):
    """A call in a thread of its own, which ends with the process at the latest."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._outcome: list[T | BaseException] = []
        self.seconds = 0.0
        self.cpu = 0.0
        """Seconds of CPU that the thread took."""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        began, worked = time.monotonic(), time.thread_time()
        try:
            outcome: T | BaseException = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again, or looked at, by who waits
            outcome = error
        self.seconds, self.cpu = time.monotonic() - began, time.thread_time() - worked
        self._outcome.append(outcome)

    @property
    def running(self) -> bool:
        return not self._outcome

    def error(self, seconds: float = 20.0) -> BaseException | None:
        """Return what it raised, None where it returned; fail if it does not end in time."""
        outcome = self._end(seconds)
        return outcome if isinstance(outcome, BaseException) else None

    def result(self, seconds: float = 20.0) -> T:
        """Return what it returned; raise what it raised."""
        outcome = self._end(seconds)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _end(self, seconds: float) -> T | BaseException:
        self._thread.join(seconds)
        if not self._outcome:
            pytest.fail(f"still at it after {seconds} s")
        return self._outcome[0]


def at_once(ways: Sequence[Way], call: Callable[[Way], T], seconds: float = 20.0) -> dict[str, T]:
    """Return what the call returns for each way, by its label; raise what it raises for one."""
    begun = {way.label: Begun(functools.partial(call, way)) for way in ways}
    return {name: one.result(seconds) for name, one in begun.items()}


# --- the fixtures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_tls(tls_servers: Servers) -> Iterator[dict[str, Database]]:
    """Yield a pair of databases on the servers that encrypt, for a module."""
    with contextlib.ExitStack() as stack:
        make = contextlib.contextmanager(fresh)
        servers = {"source": tls_servers.source, "dest": tls_servers.dest}
        yield {
            side: stack.enter_context(make(server, "template0")) for side, server in servers.items()
        }


@pytest.fixture
def kept_tls(shared_tls: dict[str, Database]) -> dict[str, Database]:
    """Return the module's pair on the servers that encrypt, emptied."""
    for database in shared_tls.values():
        database.execute(EMPTY)
    return shared_tls


@pytest.fixture
def make_way(request: pytest.FixtureRequest) -> Iterator[Callable[..., Way]]:
    """Return a maker of ways by name, with another table if told; skips where there is no such way.

    The databases are emptied before the first one of a test is made.
    """
    value = request.getfixturevalue
    with contextlib.ExitStack() as folders:

        def make(name: str, relation: str = "") -> Way:
            if name == "tls":
                source, dest = map(value("kept_tls").get, ("source", "dest"))
            else:
                source, dest = value("kept_source"), value("kept_dest")
            if name == "unix" and source.server.socket_dir is None:
                pytest.skip("the sockets of these servers are out of reach")
            return Way(name, source, dest, value("proxy"), folders, relation)

        yield make


@pytest.fixture
def cases_of(make_way: Callable[..., Way]) -> Callable[..., list[tuple[Way, Case]]]:
    """Return a maker of all ways that there are for each case of a table, to be tried at once.

    `cases_of({"name of the case": case}, "tcp", "unix")` returns a way and its case each; the ways
    are those that are named, else all. Whatever waits in them costs the longest wait only.
    """

    def make(cases: Mapping[str, Case], *names: str) -> list[tuple[Way, Case]]:
        found = []
        for called, case in cases.items():
            for name in names or NAMES:
                relation = f"{name}_{re.sub(r'[^a-z0-9]+', '_', called)}"
                with contextlib.suppress(pytest.skip.Exception):
                    found.append((make_way(name, relation), case))
        return found

    return make


@pytest.fixture(params=NAMES)
def way(request: pytest.FixtureRequest, make_way: Callable[..., Way]) -> Way:
    """Return each way in turn."""
    return make_way(request.param)


@pytest.fixture(params=PLAIN)
def plain_way(request: pytest.FixtureRequest, make_way: Callable[..., Way]) -> Way:
    """Return each way in turn whose messages a proxy can read."""
    return make_way(request.param)


@pytest.fixture
def ways(make_way: Callable[..., Way]) -> list[Way]:
    """Return all ways that there are, to be tried at once: where something waits, it costs one."""
    found = []
    for name in NAMES:
        with contextlib.suppress(pytest.skip.Exception):
            found.append(make_way(name))
    return found
