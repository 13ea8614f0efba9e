"""Connect to a server and talk to it: sessions, transactions, answers that never block."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from copypipe import addresses, crashpoints
from copypipe.addresses import Address
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
)
from copypipe.failures import TOO_LONG, failure, lost, translate
from copypipe.requests import Endpoint
from copypipe.statements import Statement, sessions

# Servers below are refused: they lack the relaxed array check of binary COPY, and are out of
# support or about to be.
OLDEST_MAJOR = 14

# What an interrupted run spends on asking a server to stop before it closes the socket. Both
# sides together stay within the two seconds in which a signal must bring back the prompt.
CANCEL_SECONDS = 0.5

# What a connection that only asks how another one fares may take: psycopg's shortest timeout. While
# it takes its time, an error of the other side is not heard.
OBSERVER_SECONDS = 2

T = TypeVar("T")

Notice = Callable[[Side, str, str], None]
"""Told the side, the severity and the text of a notice."""

Idle = Callable[[Side, float], float]
"""Told for whom a wait is and since when nothing has moved; both times are time.monotonic()'s.
Returns when it wants to be told again. May raise to end the wait."""


Pause = Callable[[bool], object]
"""Waits until the server has said something, or, if that is True, takes more."""


def _unwatched(side: Side, moved: float, /) -> float:
    return time.monotonic() + 3600


# From the third time on a query is prepared. One copy asks everything at most twice; of many slices
# by one session each costs the server some 5 ms less, the planning of what looks at the catalogs
# (365 days of 100 rows, one job: 25.8 ms a slice without all of this).
_OFTEN = 3

# So many texts are kept, and prepared, of some bytes; what is longer has keys and is said once.
_KEPT_TEXTS = 128
_LONGEST_KEPT = 8192


class Output(NamedTuple):
    """One column of what a query returns, as RowDescription tells it."""

    name: str
    type_oid: int
    typmod: int
    table_oid: int
    """The table whose column this merely is, else 0."""
    number: int
    """The number of that column there, else 0."""


class Session:
    """One connection to one side, and its current transaction.

    Owns the connection: `close` or `abandon` ends it. Not for several threads at once.
    """

    def __init__(
        self,
        side: Side,
        conn: psycopg.Connection[Any],
        address: Address,
        application_name: str,
        observer: Callable[[], psycopg.Connection[Any]],
        again: Callable[[], psycopg.Connection[Any]],
    ) -> None:
        self.side = side
        self.conn = conn
        self.settings: Mapping[str, str] = {}
        """What somebody wants to be set in each transaction."""
        self.address = address
        self.observer = observer
        """Connects once more to the same server, within OBSERVER_SECONDS or as long as a caller's
        callable takes."""
        self._again = again
        self.idle: Idle = _unwatched
        """Told of silence while a statement runs, or bytes are relayed."""
        self.major = conn.info.server_version // 10000
        self.built_in_types: dict[int, Sequence[Any]] = {}
        """What was read of built-in types, which do not change, by their OIDs."""
        self.application_name = application_name
        self._notice: Notice | None = None
        self._texts: dict[int, tuple[Statement, bytes]] = {}
        self._begun: dict[tuple[Any, ...], bytes] = {}
        self._fetched: dict[bytes, int] = {}
        self._prepared: dict[bytes, bytes] = {}
        self._is_direct: bool | None = None

    def begin(
        self,
        isolation: sessions.Isolation,
        *,
        read_only: bool,
        local: Mapping[str, str] | None = None,
        own_search_path: bool = False,
        snapshot: str | None = None,
    ) -> None:
        """Begin a transaction with our settings; `local` adds to them.

        `snapshot` is one that another session of this server has exported.

        The search path is emptied unless names are still to be resolved by the role's own. Raises
        PlanRefused where the server does not take what somebody else wants to be set.
        """
        # Said here too, for connections that a caller's callable made.
        name = {"application_name": self.application_name}
        settings = {**sessions.PINNED, **self.settings, **name, **(local or {})}
        if not own_search_path:
            settings["search_path"] = ""
        of = (isolation, read_only, snapshot, *settings.items())
        text = self._begun.get(of)
        if text is None:
            begin = sessions.begin(
                isolation, read_only=read_only, local=settings, snapshot=snapshot
            )
            text = self._begun[of] = begin.as_bytes(self.conn)
        try:
            self._answer(lambda: self.conn.pgconn.send_query(text), own_text=True)
        except CopyFailed as error:
            if not self.settings:
                raise
            problem = error
        else:
            return
        raise PlanRefused(
            problem.message,
            detail=problem.detail,
            hint=f"Nothing but what was given by --{self.side}-set can be wrong there.",
            side=self.side,
            sqlstate=problem.sqlstate,
        )

    def execute(self, statement: Statement) -> str:
        """Run a statement and return its command tag; raises the server's error as ours."""
        return (self._perform(statement).command_status or b"").decode()

    def count(self, statement: Statement) -> int:
        """Run a statement and return the number of rows in its command tag."""
        return int(self._perform(statement).command_tuples or 0)

    def _perform(self, statement: Statement) -> pq.abc.PGresult:
        """Run what may take hours: `idle` is told of the silence."""
        text = self._text(statement)
        return self._answer(lambda: self.conn.pgconn.send_query(text))

    def _text(self, statement: Statement) -> bytes:
        """Return the text of a statement, put together once as long as it is one object."""
        if id(statement) in self._texts:
            return self._texts[id(statement)][1]
        text = statement.as_bytes(self.conn)
        if len(text) <= _LONGEST_KEPT:
            if len(self._texts) >= _KEPT_TEXTS:
                self._texts.clear()
            self._texts[id(statement)] = (statement, text)
        return text

    def _pause(self) -> Pause:
        """Return what waits for this server and tells `idle` of its silence."""
        moved = time.monotonic()

        def pause(writing: bool) -> None:
            nonlocal moved
            with suppress(TimeoutError):
                wait(self.conn.pgconn, writing=writing, until=self.idle(self.side, moved))
                moved = time.monotonic()

        return pause

    def send(self, statement: Statement) -> None:
        """Send a statement to its last byte; nothing of the answer is read."""
        text = statement.as_bytes(self.conn)
        self.speak(lambda: self.conn.pgconn.send_query(text))
        pause = self._pause()
        while self.speak(self.conn.pgconn.flush):
            pause(True)

    def fetch(self, statement: Statement) -> list[TupleRow]:
        """Run a query and return its rows; raises the server's error as ours.

        What is asked again and again has its plan kept by the server.
        """
        text = self._text(statement)
        name = self._prepare(text)
        pgconn = self.conn.pgconn
        if name is None:
            return self._rows(self._answer(lambda: pgconn.send_query(text)))
        return self._rows(self._answer(lambda: pgconn.send_query_prepared(name, None)))

    def _prepare(self, text: bytes) -> bytes | None:
        """Prepare a query that is asked often; returns its name, None for one that is not."""
        if text in self._prepared:
            return self._prepared[text]
        if len(text) > _LONGEST_KEPT or len(self._prepared) >= _KEPT_TEXTS:
            return None
        if len(self._fetched) >= _KEPT_TEXTS:
            self._fetched.clear()
        times = self._fetched[text] = self._fetched.get(text, 0) + 1
        if times < _OFTEN or not self._has_own_backend():
            return None
        name = b"copypipe_%d" % len(self._prepared)
        self._answer(lambda: self.conn.pgconn.send_prepare(name, text))
        self._prepared[text] = name
        return name

    def _has_own_backend(self) -> bool:
        """Return whether no pooler is in between: the next one there would not know our names.

        The process that the server has promised is the one that answers then.
        """
        if self._is_direct is None:
            text = self._text(sessions.backend_pid())
            ((pid,),) = self._rows(self._answer(lambda: self.conn.pgconn.send_query(text)))
            self._is_direct = pid == self.conn.pgconn.backend_pid
        return self._is_direct

    def ask(self, statement: Statement) -> Callable[[], list[TupleRow]]:
        """Send a query and return what waits for its rows: other servers may work meanwhile."""
        self.send(statement)
        return lambda: self._rows(self.result(Answer(self.conn.pgconn, self._pause())))

    def _rows(self, result: pq.abc.PGresult) -> list[TupleRow]:
        rows = Transformer(self.conn)
        rows.set_pgresult(result)
        return rows.load_rows(0, result.ntuples, tuple)

    def fetch_one(self, statement: Statement) -> TupleRow:
        """Run a query that always has a row, and return the first."""
        return self.fetch(statement)[0]

    def describe(self, statement: Statement) -> list[Output]:
        """Have one statement parsed and return its columns; nothing is run.

        Goes as a Parse message, which takes no second statement (protocol, "Extended Query").
        Raises the server's error, and PlanRefused where it has parameters ($1).
        """
        pgconn = self.conn.pgconn
        text = statement.as_bytes(self.conn)
        self._answer(lambda: pgconn.send_prepare(b"", text), own_text=True)
        result = self._answer(lambda: pgconn.send_describe_prepared(b""), own_text=True)
        if result.nparams:
            raise PlanRefused(
                f"{self.side}: there is no value for the parameter $1",
                hint="Write the value itself.",
                side=self.side,
                sqlstate="42P02",  # undefined_parameter, as the server says it of COPY
            )
        return [
            Output(
                (result.fname(i) or b"").decode("utf-8", "replace"),
                result.ftype(i),
                result.fmod(i),
                result.ftable(i),
                result.ftablecol(i),
            )
            for i in range(result.nfields)
        ]

    def _answer(self, send: Callable[[], None], *, own_text: bool = False) -> pq.abc.PGresult:
        """Send a command and return its result; raises the server's error.

        `own_text` tells that no row is read: what an error quotes is the user's own.
        """
        answer = Answer(self.conn.pgconn, self._pause())
        if crashpoints.ARMED:
            crashpoints.reach(f"{self.side}-statement")
        self.speak(send)
        result = self.result(answer, own_text=own_text)
        if crashpoints.ARMED:
            crashpoints.reach(f"{self.side}-answer")
        return result

    def result(self, answer: Answer, *, own_text: bool = False) -> pq.abc.PGresult:
        """Wait for the end of an answer and return its result; raises the server's error.

        What a server said last counts, also where the connection ended behind it.
        """
        try:
            self.speak(answer.wait)
        except CopypipeError:
            if answer.error is None:
                raise
        if answer.error is not None:
            raise failure(self.side, answer.error, own_text=own_text)
        if answer.result is None:
            raise lost(self.side)
        return answer.result

    def hear(self, notice: Notice) -> None:
        """Have notices of the server handed on as (side, severity, text)."""
        self._notice = notice
        self.conn.add_notice_handler(
            lambda diag: notice(
                self.side, diag.severity_nonlocalized or "NOTICE", diag.message_primary or ""
            )
        )

    def reconnect(self) -> None:
        """Connect once more; raises a TransientError where that is not possible.

        Callers have to look which server it is: an address may lead to another one now.
        """
        self.close()
        problem: TransientError | None = None
        try:
            self.conn = self._again()
        except LoginRefused as error:
            problem = refused_meanwhile(self.side, error)
        if problem is not None:
            raise problem
        self._is_direct = None
        for kept in (self._texts, self._begun, self._fetched, self._prepared):
            kept.clear()
        if self._notice is not None:
            self.hear(self._notice)

    def hear_raw(self, fields: bytes) -> None:
        """Hand on a notice that libpq did not read ("Error and Notice Message Fields")."""
        if self._notice is None:
            return
        found = {field[:1]: field[1:] for field in fields.split(b"\0")}
        severity, text = found.get(b"V", b"NOTICE"), found.get(b"M", b"")
        self._notice(
            self.side, severity.decode("ascii", "replace"), text.decode("utf-8", "replace")
        )

    def speak(self, call: Callable[[], T]) -> T:
        """Return what `call` returns; raises psycopg's errors as ours.

        The new error is raised after the old one was handled: as its context, psycopg's would
        carry DETAIL, which quotes values of rows, into whatever prints or stores exceptions.
        """
        try:
            return call()
        except psycopg.Error as error:
            problem = translate(self.side, error)
        raise problem

    @contextmanager
    def reading(self, *, lock_timeout: str, own_search_path: bool = False) -> Iterator[None]:
        """Run the block in a read-only transaction; an error in it closes the session."""
        self.begin(
            "READ COMMITTED",
            read_only=True,
            local={"lock_timeout": lock_timeout},
            own_search_path=own_search_path,
        )
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

    @property
    def at_rest(self) -> bool:
        """Return whether the session is open and in no transaction."""
        return (
            not self.conn.closed
            and self.conn.pgconn.transaction_status == pq.TransactionStatus.IDLE
        )

    def end(self) -> None:
        """Roll back if a transaction is open; after a COMMIT that failed none is."""
        if self.conn.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            self.rollback()

    def commit_note(self) -> None:
        """Commit what is only told of a slice; to lose the answer is to lose the connection."""
        self.execute(sessions.commit())

    def commit(self) -> None:
        """Commit and read the tag of the answer.

        A KeyboardInterrupt while the answer is under way is raised after it has come; a second
        one leaves without it. Raises the server's error (a deferred constraint, say), CopyFailed
        where the server rolled back without one, and CommitUnknown where the connection was lost
        on the way: then only the dest knows.
        """
        answer = Answer(self.conn.pgconn, self._pause())
        command = sessions.commit().as_bytes(self.conn)
        interrupt: KeyboardInterrupt | None = None
        try:
            sent = False
            while True:
                try:
                    if not sent:
                        sent = True
                        self.conn.pgconn.send_query(command)
                        if crashpoints.ARMED:
                            crashpoints.reach("commit-sent")
                    answer.wait()
                    break
                except KeyboardInterrupt as pressed:
                    if interrupt is not None:
                        raise
                    interrupt = pressed
        except (psycopg.Error, CopypipeError):
            pass  # the connection is gone or dead; whether the answer came before, `answer` knows
        if answer.error is not None:
            problem = failure(self.side, answer.error)
            if problem.sqlstate == TOO_LONG:
                # The time may have run out in the last moment, when it had committed.
                unknown = self._unknown(interrupt)
                unknown.said = problem
                raise unknown
            raise self._unknown(interrupt) if isinstance(problem, ConnectionLost) else problem
        if answer.result is None:
            raise self._unknown(interrupt)
        if answer.result.command_status != b"COMMIT":
            raise CopyFailed(
                f"{self.side}: the server rolled back instead of committing", side=self.side
            )
        if crashpoints.ARMED:
            crashpoints.reach("committed")
        if interrupt is not None:
            interrupt.add_note("copypipe: the slice was committed")
            raise interrupt

    def _unknown(self, interrupt: KeyboardInterrupt | None) -> CommitUnknown:
        self.close()
        unknown = CommitUnknown(
            f"{self.side}: the connection was lost while COMMIT was under way",
            side=self.side,
        )
        unknown.interrupt = interrupt
        return unknown

    def abandon(self) -> None:
        """End the session at once, whatever it is doing, and let the server roll back.

        The running statement is cancelled (a sort or a DELETE would not notice that the client is
        gone), then the socket is closed (a backend in COPY ignores cancel requests while it waits
        for data). Takes at most CANCEL_SECONDS (where libpq is older than 17, as long as its own
        cancel request takes); raises nothing.
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

    Raises UsageError for a string that cannot be used, LoginRefused where the server does not
    let the role in, ConnectionLost where it cannot be reached, PlanRefused where it is too old.
    """
    session = _open(side, endpoint, run_id)
    try:
        yield session
    finally:
        session.abandon()


def refused_meanwhile(side: Side, error: LoginRefused) -> TransientError:
    """Return what to raise where a server refuses a role that it has let in before.

    A server that is starting says so in its own language, a pooler in its own words: no list of
    texts tells them all from a wrong password.
    """
    return TransientError(
        f"{side}: the server does not let this role in any more", detail=error.detail, side=side
    )


def _open(side: Side, endpoint: Endpoint, run_id: str) -> Session:
    target = endpoint.target
    name = f"copypipe/{run_id}"
    given = addresses.parse(target, side) if isinstance(target, str) else {}

    def connect(more: Mapping[str, str]) -> psycopg.Connection[Any]:
        if isinstance(target, str):
            conn = _dial(side, addresses.parameters({**given, **more}, name), given)
        else:
            conn = _called(side, target)
        conn.prepare_threshold = None  # a prepared statement would outlive a pooler's transaction
        return conn

    conn = connect({})
    # One of several hosts may have been chosen: later connections are made to the same.
    info = conn.info
    same = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port)}
    session = Session(
        side,
        conn,
        addresses.of_connection(conn, endpoint, given),
        name,
        lambda: connect({**same, "connect_timeout": str(OBSERVER_SECONDS)}),
        lambda: connect(same),
    )
    session.settings = dict(endpoint.settings)
    if session.major < OLDEST_MAJOR:
        session.close()
        raise PlanRefused(
            f"{side}: the server is PostgreSQL {session.major}",
            hint=f"copypipe needs PostgreSQL {OLDEST_MAJOR} or newer on both sides.",
            side=side,
        )
    return session


def _dial(
    side: Side, parameters: Mapping[str, str], given: Mapping[str, str]
) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(make_conninfo("", **parameters), autocommit=True)
    except psycopg.Error as error:
        problem = addresses.unreachable(side, error, given)
    raise problem


def _called(side: Side, connect: Callable[[], object]) -> psycopg.Connection[Any]:
    try:
        conn = connect()
    except psycopg.Error as error:
        problem = addresses.unreachable(side, error, {})
    except CopypipeError:
        raise
    except Exception as error:
        # A service that hands out tokens, say, may be away as a server may.
        raise ConnectionLost(
            f"{side}: the callable that connects failed",
            detail=f"It raised {type(error).__name__}.",
            side=side,
        ) from error
    else:
        if not isinstance(conn, psycopg.Connection) or conn.closed:
            raise UsageError(
                f"the callable for the {side} did not return an open psycopg 3 connection",
                side=side,
            )
        if conn.info.transaction_status != pq.TransactionStatus.IDLE:
            raise UsageError(
                f"the callable for the {side} returned a connection in a transaction", side=side
            )
        conn.autocommit = True
        _keep_alive(conn)
        return conn
    raise problem


def _keep_alive(conn: psycopg.Connection[Any]) -> None:
    """Have a vanished peer noticed as soon as on our own connections, unless the caller chose."""
    if any(name.startswith("keepalives") for name in conn.info.get_parameters()):
        return
    with closing(socket.socket(fileno=os.dup(conn.fileno()))) as same:
        if same.family == socket.AF_UNIX:
            return
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, name in _KEEPALIVE_OPTIONS:
            if hasattr(socket, option):  # not every system has all of them
                value = int(addresses.KEEPALIVES[name])
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


_KEEPALIVE_OPTIONS = (
    ("TCP_KEEPIDLE", "keepalives_idle"),
    ("TCP_KEEPINTVL", "keepalives_interval"),
    ("TCP_KEEPCNT", "keepalives_count"),
)


# ------------------------------------------------------------------------------------ answers


class Answer:
    """The answer to a command that was sent, read without ever blocking inside libpq.

    `PQgetResult` would wait with the interpreter locked, deaf to signals, so it is called only
    when something is there. What has come stays here when waiting is interrupted.
    """

    def __init__(self, pgconn: pq.abc.PGconn, pause: Pause | None = None) -> None:
        """Read from `pgconn`; `pause` waits for it in its own way, and knows no `until`."""
        self._pgconn = pgconn
        self._pause = pause
        self.result: pq.abc.PGresult | None = None
        """The last result of the command, the first error if there was one."""

    @property
    def error(self) -> psycopg.errors.Diagnostic | None:
        """Return the server's error, None where there is none."""
        if self.result is None or self.result.status != pq.ExecStatus.FATAL_ERROR:
            return None
        return psycopg.errors.Diagnostic(self.result, "utf-8")

    def wait(self, until: float | None = None) -> None:
        """Wait for the end of the answer, sending what is still to be sent meanwhile.

        Raises psycopg.OperationalError when the connection is lost, TimeoutError when `until`
        (of time.monotonic) passes.
        """
        pgconn = self._pgconn
        while True:
            try:
                unsent = pgconn.flush()
            except psycopg.Error:
                unsent = 0  # what the server said last may have come all the same
            if pgconn.is_busy():
                if self._pause is not None:
                    self._pause(bool(unsent))
                    pgconn.consume_input()
                elif wait(pgconn, writing=bool(unsent), until=until):
                    pgconn.consume_input()
                continue
            result = pgconn.get_result()
            if result is None:
                return
            if self.error is None:
                self.result = result
            if result.status in _COPYING:
                return  # libpq would return the same for ever


def ask(
    conn: psycopg.Connection[Any], statement: Statement, seconds: float
) -> tuple[str | None, ...] | None:
    """Return the first row of a short query as text, None for no row.

    Raises psycopg.DatabaseError where the server answers with an error, psycopg.OperationalError
    where nobody answers, and TimeoutError when the answer is not there in time: the connection may
    be as dead as the one that is asked about.
    """
    answer = Answer(conn.pgconn)
    conn.pgconn.send_query(statement.as_bytes(conn))
    answer.wait(time.monotonic() + seconds)
    result = answer.result
    if answer.error is not None and answer.error.sqlstate:
        raise psycopg.DatabaseError("an error for an answer")
    if result is None or result.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.OperationalError("no answer")
    if not result.ntuples:
        return None
    values = (result.get_value(0, i) for i in range(result.nfields))
    return tuple(None if value is None else value.decode() for value in values)


_COPYING = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)


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
