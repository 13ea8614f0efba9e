"""COPY over the connections' own sockets: what the source says is handed on as it is.

libpq sends each COPY and is told nothing of the data: to it, a command is running. Whatever is no
data is left to it, so that it reads results and errors as always.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg import pq

from copypipe.errors import CopyFailed, CopypipeError
from copypipe.failures import failure, lost
from copypipe.relay.frames import KIND_AND_LENGTH, BadFrame, Frames
from copypipe.relay.waits import Ready, Waits
from copypipe.relay.wires import CHUNK_BYTES, Wire
from copypipe.servers import Answer, Pause, Session
from copypipe.statements import Statement

# CopyDone and CopyFail ("Message Formats" in the protocol's documentation). The dest writes the
# text of a CopyFail to its log, so it says nothing about data or errors.
COPY_DONE = b"c\0\0\0\4"
FAREWELL = b"copypipe stopped the copy"
COPY_FAIL = b"f" + struct.pack("!i", len(FAREWELL) + 1 + 4) + FAREWELL + b"\0"

# How long a dest that was told CopyFail may take to answer before its socket is closed. It answers
# at once unless it is busy with a row (a trigger, a lock); closing the socket rolls back as well.
FAREWELL_SECONDS = 0.5

# What is no data and may come while a COPY begins or runs: the response to COPY, its end, and what
# a server may say at any time (a notice, a setting that changed, a NOTIFY).
_EXPECTED = b"HGcNSA"

Wait = Callable[[], Ready]


class _End:
    """One side of the relay: a session whose socket is borrowed."""

    def __init__(self, session: Session, wire: Wire, waits: Waits) -> None:
        self.session = session
        self.pgconn = session.conn.pgconn
        self.waits = waits
        self._wire = wire

    def send_command(self, statement: Statement) -> None:
        """Send a COPY; libpq reads nothing of the answer."""
        self.session.send(statement)

    def peek(self, size: int = CHUNK_BYTES) -> bytes | None:
        """Return what has come, None for nothing; raises ConnectionLost at the end."""
        try:
            data = self._wire.peek(size)
        except OSError:
            data = b""
        if data == b"":
            raise lost(self.session.side)
        return data

    def take(self, size: int) -> None:
        """Take what was looked at."""
        try:
            self._wire.take(size)
        except OSError:
            raise lost(self.session.side) from None

    def message(self, wait: Wait) -> bytes:
        """Take one message that is no data and return its kind.

        A notice is handed on. An error is left to libpq, and raised.
        """
        while (data := self.peek()) is None:
            wait()
        kind = data[:1]
        if kind == b"E":
            raise self.error(wait)
        header = self._exactly(KIND_AND_LENGTH, wait)
        (length,) = struct.unpack_from("!i", header, 1)
        if kind not in _EXPECTED or length < KIND_AND_LENGTH - 1:
            raise self.unexpected()
        body = self._exactly(length - (KIND_AND_LENGTH - 1), wait)
        if kind == b"N":
            self.session.hear_raw(body)
        return kind

    def _exactly(self, size: int, wait: Wait) -> bytes:
        parts = []
        while size:
            data = self.peek()
            if data is None:
                wait()
                continue
            parts.append(data[:size])
            self.take(len(parts[-1]))
            size -= len(parts[-1])
        return b"".join(parts)

    def error(self, wait: Wait | None = None) -> CopypipeError:
        """Return the error that the server has sent, read by libpq.

        With `wait` its end may still be under way, else it is there or will not come.
        """
        answer = Answer(self.pgconn, _pause(wait) if wait else None)
        with suppress(psycopg.Error):
            self.pgconn.consume_input()  # TLS may have taken it from the socket already
        # What was read counts, though the connection may have ended behind it.
        with suppress(psycopg.Error, TimeoutError):
            answer.wait(time.monotonic() + FAREWELL_SECONDS)
        if answer.error is not None:
            return failure(self.session.side, answer.error)
        if self.pgconn.status == pq.ConnStatus.BAD:
            return lost(self.session.side)
        return self.unexpected()

    def unexpected(self) -> CopyFailed:
        """Close a session whose server says what this protocol does not know."""
        self.session.close()
        side = self.session.side
        return CopyFailed(f"{side}: the server said something unexpected", side=side)

    def count(self, wait: Wait) -> int:
        """Return the row count of the command tag, read by libpq; raises the server's error."""
        with suppress(psycopg.Error):
            self.pgconn.consume_input()  # TLS may have taken it from the socket
        result = self.session.result(Answer(self.pgconn, _pause(wait)))
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise self.unexpected()
        return int(result.command_tuples or 0)


def _pause(wait: Wait) -> Pause:
    return lambda _: wait()  # libpq has nothing to send while data flows


class Stream(_End):
    """The source's side: COPY TO STDOUT."""

    def __init__(self, session: Session, wire: Wire, waits: Waits, *, trailer: bool) -> None:
        super().__init__(session, wire, waits)
        self.ended = False
        self._trailer = trailer
        self._frames = Frames()
        self._taken = 0

    @property
    def rows(self) -> int:
        """Return how many rows have begun."""
        return self._frames.rows - (self._trailer and self._frames.ended)

    @property
    def size(self) -> int:
        """Return how many bytes of data have come, without what frames them."""
        return self._taken - KIND_AND_LENGTH * self._frames.rows

    @property
    def whole(self) -> bool:
        """Return whether what was read ends between two messages."""
        return self._frames.whole

    def start(self, copy_out: Statement, sink: Sink) -> None:
        """Begin COPY TO STDOUT, with an ear to the dest; raises the server's error."""
        self.send_command(copy_out)
        while self.message(lambda: self.wait(sink)) != b"H":  # CopyOutResponse
            pass

    def read(self, sink: Sink, portion: int | None) -> bytes:
        """Return what has come, at most `portion` bytes, b"" for nothing yet.

        `ended` tells that no more will.
        """
        chunks = []
        size = 0
        wanted = CHUNK_BYTES if portion is None else min(portion, CHUNK_BYTES)
        while size < wanted:
            data = self.peek(wanted - size)
            if data is None:
                break
            try:
                mine = self._frames.feed(data)
            except BadFrame:
                raise self.unexpected() from None
            self.take(mine)
            chunks.append(data if mine == len(data) else data[:mine])
            size += mine
            self._taken += mine
            if mine < len(data):
                # What was read goes first: a message in mid-stream may take its time.
                if not size and self.message(lambda: self.wait(sink)) == b"c":  # CopyDone
                    self.ended = True
                break
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def wait(self, sink: Sink) -> Ready:
        """Wait for more of the source, with an ear to the dest."""
        ready = self.waits.for_source(sink.ask())
        if ready.dest:
            sink.listen()
        return ready

    def finish(self, sink: Sink) -> int:
        """Return the row count of the source's command tag.

        Raises the source's error, and CopyFailed where a trailer was not the last data: a binary
        stream cut between two rows looks whole to the dest (copyfromparse.c takes the end of the
        data for the end of the rows).
        """
        rows = self.count(lambda: self.wait(sink))
        if self._trailer and not self._frames.ended:
            raise without_trailer()
        return rows

    def stop(self) -> None:
        """Stop a source that still sends, without reading what is under way; raises nothing."""
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.session.abandon()


class Sink(_End):
    """The dest's side: COPY FROM STDIN.

    While data flows the dest says nothing, unless it has failed or wants to be heard; so its socket
    is watched, and whatever comes is read by libpq at once.
    """

    def __init__(self, session: Session, wire: Wire, waits: Waits) -> None:
        super().__init__(session, wire, waits)
        self._between = False
        """The server takes a message of COPY now: one has ended, or none has begun."""

    def start(self, copy_in: Statement) -> None:
        """Begin COPY FROM STDIN; raises the server's error."""
        self.send_command(copy_in)
        while self.message(self.waits.for_dest) != b"G":  # CopyInResponse
            pass
        self._between = True
        if self.peek(1) is not None:  # a trigger BEFORE STATEMENT: its error came with the response
            self.listen()

    def send(self, data: bytes, *, whole: bool) -> None:
        """Hand data to the server; `whole` tells that it ends between two messages.

        Raises the server's error, and ConnectionLost.
        """
        self._between = False
        sent, size = 0, len(data)
        while sent < size:
            if self.waits.heard():
                self.listen()
            try:
                taken = self._wire.send(data, sent)
            except OSError:
                raise self.error() from None
            sent += taken
            if not taken and self.waits.for_room().dest:
                self.listen()
        self._between = whole

    def listen(self) -> None:
        """Let libpq read what the server said while data flows; raises the server's error."""
        try:
            self.pgconn.consume_input()
            if self.pgconn.is_busy():
                return  # a notice, which was handed on
        except psycopg.Error:
            pass
        raise self.error()

    def ask(self) -> float | None:
        """Return None: what the server says is always heard."""
        return None

    def finish(self) -> int:
        """Send CopyDone and return the row count of the server's command tag."""
        self.send(COPY_DONE, whole=True)
        return self.count(self.waits.for_dest)

    def stop(self) -> None:
        """Make the server give up the COPY, or close the connection; raises nothing.

        Within a message it would take CopyFail for the bytes of a row and wait for more, deaf to
        a cancel, its locks held; one that has failed would take the next statement for them.
        """
        active = self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        if active and self._between:
            with suppress(OSError, psycopg.Error, TimeoutError):
                if self._wire.send(COPY_FAIL, 0) == len(COPY_FAIL):
                    Answer(self.pgconn).wait(time.monotonic() + FAREWELL_SECONDS)
        if not self._between or self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.session.abandon()


def without_trailer() -> CopyFailed:
    """Say that the source's stream was cut between two rows."""
    return CopyFailed(
        "the source's stream ended without its trailer",
        detail="Part of the rows may be missing. Nothing was changed.",
        side="source",
    )
