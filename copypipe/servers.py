"""Connect to a server and talk to it: sessions, transactions, whose error it was, secrets kept.

Connection strings are libpq's business; here they are only parsed to tell where each part came
from. libpq echoes a string that it cannot parse, password included, so its text is never shown.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row

from copypipe.errors import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    LoginRefused,
    PlanRefused,
    Side,
    TransientError,
    UsageError,
    printable,
)
from copypipe.requests import Endpoint
from copypipe.statements import Statement, sessions

# Servers below are refused: they lack the relaxed array check of binary COPY, and are out of
# support or about to be.
OLDEST_MAJOR = 14

# A server that does not answer for this long is reported as unreachable, unless the connection
# string or PGCONNECT_TIMEOUT says otherwise. libpq alone would wait for ever.
CONNECT_SECONDS = 30

# The client notices within about a minute that a peer it waits for has vanished; the operating
# system's default is two hours. (30 s idle, then 3 probes, 10 s apart.)
KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

# What an interrupted run spends on asking a server to stop before it closes the socket. Both
# sides together stay within the two seconds in which a signal must bring back the prompt.
CANCEL_SECONDS = 0.5

# SQLSTATEs and classes that pass by themselves (PostgreSQL, appendix A).
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})
_PASSING = frozenset({"40001", "40P01", "53300", "55P03", "25P03", "25P04", "55006"})

# Primary messages of class 22 (data exception) often quote a value of the row. These do not.
_WITHOUT_VALUES = frozenset({"22001", "22P03", "22P04"})

_LOGIN = re.compile(
    r"password authentication failed|no password supplied|authentication failed"
    r"|role \"[^\"]*\" does not exist|role \"[^\"]*\" is not permitted to log in"
    r"|database \"[^\"]*\" does not exist|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|permission denied for database"
)


# --------------------------------------------------------------------------- connection strings


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an address and who said it."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a session is connected; printable, without a secret."""

    user: str
    host: str
    port: str
    dbname: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        """Return USER@HOST/DB, with the port where it is not 5432."""
        port = "" if self.port == "5432" else f":{self.port}"
        return printable(f"{self.user}@{self.host}{port}/{self.dbname}")


def parse_conninfo(text: str, side: Side) -> dict[str, str]:
    """Return the parts of a connection string; raises UsageError without repeating any of it."""
    try:
        return {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except psycopg.Error:
        problem = UsageError(
            f"the connection string of the {side} cannot be parsed",
            detail="It is not shown here, because it may hold a password.",
            hint="Write postgresql://USER@HOST:PORT/DB, host=HOST dbname=DB or service=NAME; "
            "special characters of a URI are written %XX.",
            side=side,
        )
    raise problem


def has_password(endpoint: Endpoint, side: Side) -> bool:
    """Return whether the endpoint's own text holds a password."""
    return isinstance(endpoint.target, str) and "password" in parse_conninfo(endpoint.target, side)


def _parts(conn: psycopg.Connection[Any], endpoint: Endpoint, given: Mapping[str, str]) -> Address:
    """Say where user, host, port and database came from, in libpq's order of precedence."""
    defaults = {option.keyword.decode(): option for option in pq.Conninfo.get_defaults()}
    info = conn.info
    actual = {
        "user": info.user,
        "host": info.host or info.hostaddr or "localhost",
        "port": str(info.port),
        "dbname": info.dbname,
    }
    parts = []
    for name, value in actual.items():
        option = defaults[name]
        default = option.val.decode() if option.val else ""
        environment = option.envvar.decode() if option.envvar else ""
        if (
            not isinstance(endpoint.target, str)
            or name in given
            or (name == "host" and "hostaddr" in given)
        ):
            origin = endpoint.origin
        elif "service" in given and value != default:
            origin = f"service {given['service']}"
        elif environment in os.environ:
            origin = environment
        else:
            origin = "libpq's default"
        parts.append(Part(name, value, origin))
    return Address(actual["user"], actual["host"], actual["port"], actual["dbname"], tuple(parts))


# -------------------------------------------------------------------------------- whose error


def failure(side: Side, diag: psycopg.errors.Diagnostic) -> CopypipeError:
    """Turn a server's error into ours, without data of the row.

    DETAIL and CONTEXT of a server quote values, so only names are taken over from them, and the
    place in the stream, which COPY in binary reports without the value.
    """
    code = diag.sqlstate
    if not code:  # libpq itself noticed that the connection is gone
        return lost(side)
    shown = printable(diag.message_primary or "")
    if code.startswith("22") and code not in _WITHOUT_VALUES:
        shown = _condition(code)
    facts = [f"SQLSTATE {code}"]
    if diag.table_name:
        facts.append(printable(f"table {diag.schema_name}.{diag.table_name}"))
    if diag.column_name:
        facts.append(printable(f"column {diag.column_name}"))
    if diag.constraint_name:
        facts.append(printable(f"constraint {diag.constraint_name}"))
    facts += _place(diag.context)
    cls, hint = _class(code)
    return cls(
        f"{side}: {shown}", detail="; ".join(facts) + ".", hint=hint, side=side, sqlstate=code
    )


_PLACE = re.compile(r"^COPY \S+, line (\d+)(?:, column ([^:]+))?$", re.MULTILINE)


def _place(context: str | None) -> list[str]:
    found = _PLACE.search(context or "")
    if not found:
        return []
    column = [printable(f"column {found[2]}")] if found[2] else []
    return [f"row {found[1]} of the copy", *column]


def _condition(code: str) -> str:
    """Return PostgreSQL's name of the condition, such as "character not in repertoire"."""
    try:
        name = psycopg.errors.lookup(code).__name__
    except KeyError:
        return "data exception"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _class(code: str) -> tuple[type[CopypipeError], str | None]:
    if code == "42501":
        return PlanRefused, "Grant the role what it lacks, or connect as another one."
    if code in _LOST or code.startswith("08"):
        return ConnectionLost, None
    if code in _PASSING:
        return TransientError, None
    if code == "23503":
        return CopyFailed, "Rows of another table point at this slice or are missing for it."
    return CopyFailed, None


def translate(side: Side, error: psycopg.Error) -> CopypipeError:
    """Turn an exception of psycopg into ours; an error without SQLSTATE is a lost connection."""
    if error.sqlstate:
        return failure(side, error.diag)
    if isinstance(error, psycopg.OperationalError):
        return lost(side)
    return CopyFailed(f"{side}: {printable(str(error))}", side=side)


def lost(side: Side) -> ConnectionLost:
    """Say that a connection ended before its work did."""
    return ConnectionLost(f"{side}: the connection was lost", side=side)


# ------------------------------------------------------------------------------------ sessions


class Session:
    """One connection to one side, and its current transaction.

    Owns the connection: `close` or `abandon` ends it. Not for several threads at once.
    """

    def __init__(self, side: Side, conn: psycopg.Connection[Any], address: Address) -> None:
        self.side = side
        self.conn = conn
        self.address = address
        self.major = conn.info.server_version // 10000

    def begin(
        self,
        isolation: sessions.Isolation,
        *,
        read_only: bool,
        local: Mapping[str, str] | None = None,
        own_search_path: bool = False,
    ) -> None:
        """Begin a transaction with our settings; `local` adds to them.

        The search path is emptied unless names are still to be resolved by the role's own.
        """
        settings = sessions.settings(self.major, local or {})
        if not own_search_path:
            settings["search_path"] = ""
        self.execute(sessions.begin(isolation, read_only=read_only, local=settings))

    def execute(self, statement: Statement) -> str:
        """Run a statement and return its command tag; raises the server's error as ours."""
        return self._run(statement).statusmessage or ""

    def count(self, statement: Statement) -> int:
        """Run a statement and return the number of rows in its command tag."""
        return self._run(statement).rowcount

    def fetch(self, statement: Statement) -> list[TupleRow]:
        """Run a query and return its rows; raises the server's error as ours."""
        return self._run(statement).fetchall()

    def fetch_one(self, statement: Statement) -> TupleRow:
        """Run a query that always has a row, and return the first."""
        return self.fetch(statement)[0]

    def _run(self, statement: Statement) -> psycopg.Cursor[TupleRow]:
        with self.speaking():
            return self.conn.cursor(row_factory=tuple_row).execute(statement)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Raise psycopg's errors within the block as ours; theirs quote values of rows."""
        try:
            yield
        except psycopg.Error as error:
            raise translate(self.side, error) from None

    @contextmanager
    def reading(self, *, own_search_path: bool = False) -> Iterator[None]:
        """Run the block in a read-only transaction; an error closes the session."""
        self.begin("READ COMMITTED", read_only=True, own_search_path=own_search_path)
        try:
            yield
        except BaseException:
            self.abandon()
            raise
        self.execute(sessions.rollback())

    def rollback(self) -> None:
        """Roll back, or close the session if that is not possible."""
        try:
            self.execute(sessions.rollback())
        except CopypipeError:
            self.close()

    def commit(self) -> None:
        """Commit and read the tag of the answer.

        A KeyboardInterrupt while the answer is under way is raised after it has come. Raises the
        server's error (a deferred constraint, say), CopyFailed where the server rolled back
        without one, and CommitUnknown where the connection was lost on the way: then only the
        dest knows.
        """
        result = None
        interrupt: KeyboardInterrupt | None = None
        try:
            self.conn.pgconn.send_query(sessions.commit().as_bytes(self.conn))
            while result is None:
                try:
                    result = await_result(self.conn.pgconn)
                except KeyboardInterrupt as pressed:
                    if interrupt is not None:
                        raise
                    interrupt = pressed
        except psycopg.Error:
            pass
        if result is None:
            raise self._unknown()
        if result.status != pq.ExecStatus.COMMAND_OK:
            problem = failure(self.side, psycopg.errors.Diagnostic(result, "utf-8"))
            raise self._unknown() if isinstance(problem, ConnectionLost) else problem
        if result.command_status != b"COMMIT":
            raise CopyFailed(f"{self.side}: the server rolled back instead of committing")
        if interrupt is not None:
            interrupt.add_note("copypipe: the slice was committed")
            raise interrupt

    def _unknown(self) -> CommitUnknown:
        self.close()
        return CommitUnknown(
            f"{self.side}: the connection was lost while COMMIT was under way",
            detail="The slice is either exactly what it was or exactly what the source had.",
            hint="Run the same command again: it makes the slice equal to the source's.",
            side=self.side,
        )

    def abandon(self) -> None:
        """End the session at once, whatever it is doing, and let the server roll back.

        The running statement is cancelled (a sort or a DELETE would not notice that the client is
        gone), then the socket is closed (a backend in COPY ignores cancel requests while it waits
        for data). Takes at most CANCEL_SECONDS; raises nothing.
        """
        if self.conn.closed:
            return
        if self.conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            with suppress(psycopg.Error, OSError):
                self.conn.cancel_safe(timeout=CANCEL_SECONDS)
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back by the server."""
        with suppress(psycopg.Error, OSError):
            self.conn.close()


@contextmanager
def connected(side: Side, endpoint: Endpoint, run_id: str) -> Iterator[Session]:
    """Connect to one side and close the session in the end.

    Raises UsageError for a string that cannot be parsed, LoginRefused where the server does not
    let the role in, ConnectionLost where it cannot be reached, PlanRefused where it is too old.
    """
    session = _open(side, endpoint, run_id)
    try:
        yield session
    finally:
        session.abandon()


def _open(side: Side, endpoint: Endpoint, run_id: str) -> Session:
    if isinstance(endpoint.target, str):
        given = parse_conninfo(endpoint.target, side)
        conn = _dial(side, given, run_id)
    else:
        given = {}
        conn = _called(side, endpoint.target)
    conn.prepare_threshold = None  # a prepared statement would outlive a pooler's transaction
    session = Session(side, conn, _parts(conn, endpoint, given))
    if session.major < OLDEST_MAJOR:
        session.close()
        raise PlanRefused(
            f"{side}: the server is PostgreSQL {session.major}",
            hint=f"copypipe needs PostgreSQL {OLDEST_MAJOR} or newer on both sides.",
            side=side,
        )
    return session


def _dial(side: Side, given: Mapping[str, str], run_id: str) -> psycopg.Connection[Any]:
    settings: dict[str, Any] = {**KEEPALIVES, **given}
    settings["application_name"] = f"copypipe/{run_id}"
    # A service file may set it, and what stands here would win over that.
    if not {"connect_timeout", "service"} & given.keys() and not any(
        name in os.environ for name in ("PGCONNECT_TIMEOUT", "PGSERVICE")
    ):
        settings["connect_timeout"] = CONNECT_SECONDS
    try:
        return psycopg.connect(make_conninfo("", **settings), autocommit=True)
    except psycopg.Error as error:
        problem = _unreachable(side, error, given.get("password"))
    except UnicodeError:
        problem = UsageError(f"the connection string of the {side} cannot be used", side=side)
    raise problem


def _unreachable(side: Side, error: psycopg.Error, password: str | None) -> CopypipeError:
    """Tell a server that says no from one that cannot be reached.

    libpq keeps no SQLSTATE of a failed login, so the server's English text has to do. A server
    that speaks another language is reported as unreachable, with its words as the detail.
    """
    text = str(error)
    shown = printable(text.replace(password, "***") if password else text)
    asked = error.pgconn is not None and error.pgconn.needs_password
    if asked or _LOGIN.search(text):
        return LoginRefused(
            f"{side}: the server does not let this role in",
            detail=shown,
            hint="Check role, database and password (.pgpass, PGPASSWORD, a service file).",
            side=side,
        )
    if "definition of service" in text or "service file" in text:
        return UsageError(f"{side}: the service is not defined", detail=shown, side=side)
    return ConnectionLost(
        f"{side}: the server cannot be reached",
        detail=shown,
        hint="Check host and port, and that the server is running.",
        side=side,
    )


def _called(side: Side, connect: Callable[[], object]) -> psycopg.Connection[Any]:
    try:
        conn = connect()
    except psycopg.Error as error:
        problem = _unreachable(side, error, None)
    else:
        if isinstance(conn, psycopg.Connection) and not conn.closed:
            if conn.info.transaction_status != pq.TransactionStatus.IDLE:
                raise UsageError(f"the callable for the {side} returned a connection in use")
            conn.autocommit = True
            return conn
        raise UsageError(
            f"the callable for the {side} did not return an open psycopg (version 3) connection",
            side=side,
        )
    raise problem


# --------------------------------------------------------------------------------- results


def await_result(pgconn: pq.abc.PGconn, until: float | None = None) -> pq.abc.PGresult | None:
    """Return the last result of the running command, without ever blocking inside libpq.

    `get_result` would wait with the interpreter locked, deaf to signals, so it is called only
    when an answer is there. Raises psycopg.OperationalError when the connection is lost,
    TimeoutError when `until` (of time.monotonic) passes.
    """
    last = None
    while True:
        while pgconn.flush():
            if wait(pgconn, writing=True, until=until):
                pgconn.consume_input()  # a server that cannot send will not read either
        while pgconn.is_busy():
            wait(pgconn, until=until)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return last
        last = result


def wait(
    *pgconns: pq.abc.PGconn, writing: bool = False, until: float | None = None
) -> Sequence[int]:
    """Wait until one of the connections can be read, or the first can be written.

    Returns the descriptors that can be read. Raises TimeoutError when `until` (of
    time.monotonic) passes first.
    """
    poller = select.poll()
    for number, pgconn in enumerate(pgconns):
        out = select.POLLOUT if writing and number == 0 else 0
        poller.register(pgconn.socket, select.POLLIN | out)
    timeout = None if until is None else max(0, (until - time.monotonic()) * 1000)
    events = poller.poll(timeout)
    if not events:
        raise TimeoutError
    return [fd for fd, event in events if event & ~select.POLLOUT]
