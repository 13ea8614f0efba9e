"""COPY through libpq: works on every connection, whatever encrypts it.

libpq hands out one message of the source per call, one row each, and takes any number of bytes
for the dest. Rows are gathered before they are written (protocol: "COPY Operations").
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq

from copypipe.errors import CopyFailed, CopypipeError, TransientError
from copypipe.failures import failure, lost
from copypipe.relay import wires
from copypipe.relay.frames import EMPTY_BYTES, is_trailer
from copypipe.relay.waits import Ready, Waits
from copypipe.relay.wired import FAREWELL, FAREWELL_SECONDS, without_trailer
from copypipe.servers import OBSERVER_SECONDS, Answer, Pause, Session, ask
from copypipe.statements import Statement, sessions

# Rows are gathered up to this size before a write. 128 KiB is also the most that psycopg hands to
# libpq at once: libpq's output buffer grows with what it is given and may stay so (its ticket 255).
# Writing row by row instead cost 16 s instead of 9 for 5 million rows of 48 bytes.
GATHERED_BYTES = 128 * 1024

# How often a dest that has spoken is asked for its state. A failed dest drops data as fast as it
# comes, so a second of waiting could be another 200 MB of the source.
OBSERVE_SECONDS = 0.25

# Kind and length of a message ("Message Formats" in the protocol's documentation).
_HEADER = struct.Struct("!cI")
_PEEKED_BYTES = 64 * 1024


class Stream:
    """The source's side of the relay: COPY TO STDOUT."""

    def __init__(self, session: Session, waits: Waits, *, trailer: bool) -> None:
        self.session = session
        self.pgconn = session.conn.pgconn
        self.waits = waits
        self.ended = False
        self._trailer = trailer
        self.whole = True  # between two messages: libpq hands out none in part
        self.size = 0
        self._messages = 0
        self._last = b""

    @property
    def rows(self) -> int:
        """Return how many rows have come."""
        return self._messages - (self._trailer and is_trailer(self._last))

    def start(self, copy_out: Statement, sink: Sink) -> None:
        """Begin COPY TO STDOUT, with an ear to the dest; raises the server's error."""
        _begin(self.session, copy_out, pq.ExecStatus.COPY_OUT, lambda: self.wait(sink))

    def read(self, sink: Sink, portion: int | None) -> bytes | memoryview:
        """Return what has come, up to `portion` bytes and one message more, b"" for nothing yet.

        `ended` tells that no more will.
        """
        wanted = GATHERED_BYTES if portion is None else min(portion, GATHERED_BYTES)
        return self.session.speak(lambda: self._read(wanted))

    def _read(self, wanted: int) -> bytes | memoryview:
        messages: list[memoryview] = []
        length = 0
        next_message = self.pgconn.get_copy_data
        while length < wanted:
            size, data = next_message(1)  # 1: never block
            if size <= 0:
                self.ended = size < 0
                break
            messages.append(data)
            length += size
        if not messages:
            return b""
        self._messages += len(messages)
        self.size += length
        self._last = bytes(messages[-1][: EMPTY_BYTES + 1])
        # One large row is not copied once more.
        return messages[0] if len(messages) == 1 else b"".join(messages)

    def wait(self, sink: Sink) -> Ready:
        """Wait for more of the source, with an ear to the dest."""
        ready = self.waits.for_source(sink.ask())
        if ready.dest:
            sink.listen()
        if ready.source:
            self.session.speak(self.pgconn.consume_input)
        return ready

    def finish(self, sink: Sink) -> int:
        """See `wired.Stream.finish`."""
        rows = _finished(self.session, lambda _: self.wait(sink))
        if self._trailer and not is_trailer(self._last):
            raise without_trailer()
        return rows

    def stop(self) -> None:
        """Stop a source that still sends, without reading what is under way; raises nothing."""
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.session.abandon()


class Sink:
    """The dest's side of the relay: COPY FROM STDIN.

    While data flows libpq looks at nothing that the dest sends but notices: an error would lie
    unread until CopyDone, hours later. So the socket is watched. On a plain socket the messages
    that wait are looked at before libpq takes them. That does not show everything: TLS hides them,
    and libpq may take more than was seen. So once a dest has spoken, its state is asked for over a
    second connection (pg_stat_activity) until the end.
    """

    def __init__(self, session: Session, waits: Waits) -> None:
        self.session = session
        self.pgconn = session.conn.pgconn
        self.waits = waits
        self._spoken = False
        self._failed = False
        self._asks_after = 0.0
        self._observer: psycopg.Connection[Any] | None = None
        plain = wires.encryption(self.pgconn) == "none"
        self._peek = _Peek(self.pgconn.socket) if plain else None

    def close(self) -> None:
        """Give up what was opened beside the connection."""
        if self._observer is not None:
            self._observer.close()
        if self._peek is not None:
            self._peek.close()

    def start(self, copy_in: Statement) -> None:
        """Begin COPY FROM STDIN; raises the server's error."""

        def read() -> None:
            self.waits.for_dest()
            self.session.speak(self._consume)

        _begin(self.session, copy_in, pq.ExecStatus.COPY_IN, read)
        if self._failed:  # a trigger BEFORE STATEMENT: its error came with the CopyInResponse
            raise self._failure()

    def send(self, data: bytes | memoryview, *, whole: bool) -> None:
        """Hand data to the server and wait until the kernel has taken it; raises its error."""
        try:
            self.ask()
            for start in range(0, len(data), GATHERED_BYTES):
                # Before every write, because libpq reads on its own when the kernel takes no more.
                if self.waits.heard():
                    self.listen()
                self.pgconn.put_copy_data(data[start : start + GATHERED_BYTES])
                while self.pgconn.flush():
                    if self.waits.for_room().dest:
                        self.listen()
            return
        except psycopg.Error:
            problem = self._failure()
        raise problem

    def listen(self) -> None:
        """Read what the server said while data flows; raises its error if it shows."""
        try:
            self._consume()
            self.pgconn.is_busy()  # delivers notices
        except psycopg.Error:
            self._failed = True
        if self._failed:
            raise self._failure()
        self._spoken = True

    def ask(self) -> float | None:
        """Ask over another connection whether the server failed; raises its error if it did.

        Whatever the server said may have hidden an error. Asks at most every OBSERVE_SECONDS, and
        not at all while it has said nothing. Returns when to ask again, None for never.
        """
        if not self._spoken:
            return None
        if time.monotonic() >= self._asks_after:
            if self._aborted():
                raise self._failure()
            self._asks_after = time.monotonic() + OBSERVE_SECONDS
        return self._asks_after

    def _aborted(self) -> bool:
        try:
            if self._observer is None:
                self._observer = self.session.observer()
            pid = self.pgconn.backend_pid
            state = sessions.activity(pid, self.session.application_name)
            row = ask(self._observer, state, OBSERVER_SECONDS)
        except (psycopg.Error, CopypipeError, TimeoutError):
            self._observer = None
            return False  # asked again soon; if it stays so, the error comes with CopyDone
        return row is not None and "aborted" in str(row[0])

    def finish(self) -> int:
        """Send CopyDone and return the row count of the server's command tag."""
        self.session.speak(self.pgconn.put_copy_end)
        waits = self.waits
        return _finished(
            self.session, lambda unsent: (waits.for_room if unsent else waits.for_dest)()
        )

    def stop(self) -> None:
        """Make the server give up the COPY, or close the connection; raises nothing."""
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self._farewell()
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.session.abandon()

    def _consume(self) -> None:
        """Let libpq read, after a look for an error."""
        if self._peek is not None and self._peek.finds_error():
            self._failed = True
        self.pgconn.consume_input()

    def _failure(self) -> CopypipeError:
        """Return the error that the server has sent."""
        answer = self._farewell()
        if answer.error is not None:
            error = failure("dest", answer.error)
            if FAREWELL.decode() not in error.message:  # else the answer to our own CopyFail
                return error
        elif self.pgconn.status == pq.ConnStatus.BAD:
            return lost("dest")
        return TransientError("dest: the server said something unexpected", side="dest")

    def _farewell(self) -> Answer:
        """Send CopyFail and return what the server says within FAREWELL_SECONDS."""
        answer = Answer(self.pgconn)
        with suppress(psycopg.Error):
            self.pgconn.put_copy_end(FAREWELL)
        with suppress(psycopg.Error, TimeoutError):
            answer.wait(until=time.monotonic() + FAREWELL_SECONDS)
        return answer


class _Peek:
    """Looks at the messages that wait in a plain socket without taking them.

    Keeps count of where a message begins. When that is lost (libpq may read more than was seen),
    it finds nothing any more.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._socket.setblocking(False)  # as it is; Python may have been told otherwise
        self._begun = 0
        """Bytes still to come of a message whose beginning was taken with the last read."""
        self._lost = False

    def finds_error(self) -> bool:
        """Return whether an ErrorResponse waits; to be called right before libpq reads."""
        if self._lost:
            return False
        try:
            data = self._socket.recv(_PEEKED_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False  # nothing there, or closed: reading tells
        position = self._begun
        while position + _HEADER.size <= len(data):
            kind, length = _HEADER.unpack_from(data, position)
            if kind == b"E":
                # Its first field is the severity; anything else is no beginning of a message.
                return data[position + 5 : position + 6] in (b"S", b"")
            position += 1 + length
        self._lost = position < len(data) or len(data) == _PEEKED_BYTES
        self._begun = position - len(data)
        return False

    def close(self) -> None:
        """Give up this view of the socket; the connection keeps its own."""
        self._socket.close()


def _begin(
    session: Session,
    statement: Statement,
    expected: pq.ExecStatus,
    read: Callable[[], object],
) -> None:
    """Send a COPY statement and wait until the copying has begun; raises the server's error.

    `read` waits for something of this server and lets libpq take it.
    """
    pgconn = session.conn.pgconn
    session.send(statement)
    while session.speak(pgconn.is_busy):
        read()
    if session.result(Answer(pgconn)).status != expected:
        session.abandon()
        raise CopyFailed(f"{session.side}: the server did not begin to copy", side=session.side)


def _finished(session: Session, pause: Pause) -> int:
    """Wait for the end of COPY and return the row count of the command tag."""
    result = session.result(Answer(session.conn.pgconn, pause))
    if result.status != pq.ExecStatus.COMMAND_OK:
        session.abandon()
        raise lost(session.side)
    return int(result.command_tuples or 0)
