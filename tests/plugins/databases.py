"""`source` and `dest`: a fresh database each, for each test, and an oracle to compare them by."""

import hashlib
import itertools
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier, Literal

from plugins.canary import CANARY
from plugins.servers import SIDES, Server, Servers

# What decides how a server writes a value as text.
PINNED = {
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
}


class Backend(NamedTuple):
    """A session of somebody else in the database."""

    pid: int
    application_name: str
    state: str | None
    query: str


@dataclass(frozen=True)
class Role:
    """A login role and the ways to connect as it."""

    name: str
    password: str
    dsn: str
    uri: str

    def __repr__(self) -> str:
        return f"Role({self.name!r})"


class Database:
    """A database that one test owns."""

    def __init__(self, server: Server, name: str, cleanup: ExitStack) -> None:
        self.side = server.side
        self.server = server
        self.name = name
        self.roles: list[str] = []
        self._cleanup = cleanup
        self._sessions: dict[str, tuple[int, psycopg.Connection]] = {}

    def __repr__(self) -> str:
        return f"Database({self.side}, {self.name!r})"

    @property
    def dsn(self) -> str:
        """The keyword connection string, with the password."""
        return self.server.dsn(dbname=self.name)

    @property
    def uri(self) -> str:
        """The same as postgresql://."""
        return _uri(self.dsn)

    def connect(self, **changes: Any) -> psycopg.Connection:
        """Return a new autocommit connection, closed after the test at the latest."""
        autocommit = changes.pop("autocommit", True)
        connection = psycopg.connect(
            self.server.dsn(dbname=self.name, **changes), autocommit=autocommit
        )
        return self._cleanup.enter_context(closing(connection))

    def execute(self, sql: str, params: Any = None) -> int:
        """Execute one statement, or several without params; return the last one's row count."""
        return self._session("test").execute(sql, params).rowcount

    def fetch(self, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
        return self._session("test").execute(sql, params).fetchall()

    def scalar(self, sql: str, params: Any = None) -> Any:
        """Return the only column of the only row."""
        ((value,),) = self.fetch(sql, params)
        return value

    def text(self, query: str) -> bytes:
        """Return the rows of `query` as COPY's text format; names must be qualified."""
        with (
            self._session("oracle").cursor() as cursor,
            cursor.copy(f"COPY ({query}) TO STDOUT".encode()) as copy,
        ):
            return b"".join(copy)

    def digest(self, table: str, order: str) -> str:
        """Return the sha256 of the whole table (a qualified name) as ordered text."""
        return hashlib.sha256(self.text(f"SELECT * FROM {table} ORDER BY {order}")).hexdigest()

    def backends(self, like: str = "copypipe%") -> list[Backend]:
        """Return the sessions in this database whose application_name is like `like`."""
        rows = self.fetch(
            "SELECT pid, application_name, state, query FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND application_name LIKE %s ORDER BY pid",
            [like],
        )
        return [Backend(*row) for row in rows]

    def role(self, name: str = "role", *grants: str, password: str = CANARY) -> Role:
        """Make a login role with grants such as "SELECT ON public.users"; dropped afterwards."""
        unique = f"copypipe_{name}_{secrets.token_hex(4)}"
        connection = self._session("test")
        # Hashed here: a statement that fails stands in the server's log.
        verifier = connection.pgconn.encrypt_password(
            password.encode(), unique.encode(), b"scram-sha-256"
        )
        connection.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                Identifier(unique), Literal(verifier.decode())
            )
        )
        self.roles.append(unique)
        for grant in grants:
            connection.execute(SQL("GRANT {} TO {}").format(SQL(grant), Identifier(unique)))
        dsn = self.server.dsn(dbname=self.name, user=unique, password=password)
        return Role(unique, password, dsn, _uri(dsn))

    def _session(self, purpose: str) -> psycopg.Connection:
        """Return the connection kept for `purpose`, a new one after a restart of the server."""
        starts, connection = self._sessions.get(purpose, (0, None))
        if connection is None or connection.closed or starts != self.server.starts:
            connection = self.connect(application_name=purpose)
            if purpose == "oracle":
                for setting, value in PINNED.items():
                    connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
            self._sessions[purpose] = (self.server.starts, connection)
        return connection


def _uri(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    login = ":".join(quote(parts.pop(key), safe="") for key in ("user", "password") if key in parts)
    # A socket's folder as host is written percent-encoded.
    host = f"{quote(parts.pop('host'), safe='')}:{parts.pop('port')}"
    dbname = quote(parts.pop("dbname"), safe="")
    return f"postgresql://{login}@{host}/{dbname}" + (f"?{urlencode(parts)}" if parts else "")


def _statement(server: Server, template: str, *names: str) -> None:
    with server.connect() as connection:
        connection.execute(SQL(template).format(*map(Identifier, names)))


def _drop(server: Server, name: str) -> None:
    # A session that was just closed is still leaving, and FORCE would sleep 100 ms for it.
    with server.connect() as connection:
        alive = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        deadline = time.monotonic() + 0.5
        while connection.execute(alive, [name]).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.005)
    _statement(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.fixture(scope="session")
def templates(servers: Servers) -> Iterator[dict[str, str]]:
    """Yield each side's template: the same encoding and locale, whatever the cluster's own."""
    token = secrets.token_hex(4)
    names = {side: f"copypipe_template_{side}_{token}" for side in SIDES}
    for side, name in names.items():
        create = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
        _statement(getattr(servers, side), create, name)
    yield names
    for side, name in names.items():
        _drop(getattr(servers, side), name)


_numbers = itertools.count(1)


def fresh(server: Server, template: str) -> Iterator[Database]:
    name = f"{template.replace('template', 'test')}_{next(_numbers)}"
    _statement(server, "CREATE DATABASE {} TEMPLATE {}", name, template)
    with ExitStack() as cleanup:
        database = Database(server, name, cleanup)
        yield database
    server.ensure_running()
    _drop(server, name)
    for role in database.roles:
        _statement(server, "DROP ROLE {}", role)


@contextmanager
def encoded(server: Server, encoding: str) -> Iterator[Database]:
    """Yield a fresh database of that encoding on any server."""
    name = f"copypipe_test_{encoding.lower()}_{secrets.token_hex(4)}"
    create = f"CREATE DATABASE {{}} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    _statement(server, create, name)
    with ExitStack() as cleanup:
        yield Database(server, name, cleanup)
    _drop(server, name)


@pytest.fixture
def source(servers: Servers, templates: dict[str, str]) -> Iterator[Database]:
    """Yield a fresh database on the source's server."""
    yield from fresh(servers.source, templates["source"])


@pytest.fixture
def dest(servers: Servers, templates: dict[str, str]) -> Iterator[Database]:
    """Yield a fresh database on the dest's server."""
    yield from fresh(servers.dest, templates["dest"])
