"""Bytes from one COPY to the other. Knows no SQL, no table, no slice; never decodes a row.

`relay` is the one door. Behind it is a file a transport; all keep the same promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from psycopg import pq

from copypipe import crashpoints
from copypipe.errors import CopyFailed, UsageError
from copypipe.relay import libpq, wired, wires
from copypipe.relay.paces import Pace
from copypipe.relay.waits import Spent, Waits
from copypipe.requests import Transport
from copypipe.servers import Idle, Session
from copypipe.statements import Statement

Data = bytes | memoryview

Report = Callable[[int, int], None]
"""Called with the bytes and rows handed on so far, about once for each gathered write."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """What went through."""

    rows: int
    """As the source counted them."""
    taken: int
    """As the dest counted them: the same, unless it may drop some."""
    bytes: int
    """Of data, without what frames it on the wire."""
    spent: Spent


class Stream(Protocol):
    """The source's side of a transport."""

    @property
    def ended(self) -> bool:
        """Return whether all data was read."""

    @property
    def whole(self) -> bool:
        """Return whether what was read ends between two messages."""

    @property
    def size(self) -> int:
        """Return how many bytes of data were read."""

    @property
    def rows(self) -> int:
        """Return how many rows were begun."""

    def start(self, copy_out: Statement, sink: Any, /) -> None:
        """Begin COPY TO STDOUT, with an ear to the dest."""

    def read(self, sink: Any, portion: int | None, /) -> Data:
        """Return what has come, about `portion` bytes at most, nothing for nothing yet."""

    def wait(self, sink: Any, /) -> object:
        """Wait for more, with an ear to the dest."""

    def finish(self, sink: Any, /) -> int:
        """Return the row count of the command tag, if the stream was whole."""

    def stop(self) -> None:
        """Stop a source that still sends; raises nothing."""


class Sink(Protocol):
    """The dest's side of a transport."""

    def start(self, copy_in: Statement) -> None:
        """Begin COPY FROM STDIN."""

    def ask(self) -> float | None:
        """Look after a server that may have failed unheard; return when to do so again."""

    def listen(self) -> None:
        """Read what the server said; raises its error."""

    def send(self, data: Any, /, *, whole: bool) -> None:
        """Hand data on; `whole` tells that it ends between two messages."""

    def finish(self) -> int:
        """Send CopyDone and return the row count of the command tag."""

    def stop(self) -> None:
        """Make the server give up the COPY; raises nothing."""


def relay(
    source: Session,
    copy_out: Statement,
    dest: Session,
    copy_in: Statement,
    report: Report,
    *,
    transport: Transport = "auto",
    bytes_per_second: int | None = None,
    idle: Idle,
    trailer: bool = True,
    may_drop: bool = False,
) -> Relayed:
    """Relay one COPY from source to dest, within the transactions that are open.

    No faster than `bytes_per_second` where that is given: the source is read more slowly, and
    stops when the sockets between are full.

    `copy_out` is a COPY TO STDOUT, `copy_in` a COPY FROM STDIN, both of one format; `trailer` tells
    that it has one, as binary has and text has not. The dest begins first, so that the source's
    snapshot waits for nobody. CopyDone goes to the dest only after the source said
    CommandComplete, and the trailer was its last data where there is one; after any failure
    it gets CopyFail with a fixed text instead, or is closed. Nothing is committed here. Memory
    stays at some chunks, whatever a row weighs, except through libpq: there at two gathered writes
    and the largest row.

    Raises the error of the server that failed first, CopyFailed where the two row counts differ
    (unless the dest `may_drop` rows, as triggers do) or the stream is not whole. Then the source's
    session is closed unless it ended by itself, and the dest's is either in an aborted transaction
    or closed: its table is as it was.
    """
    waits = Waits(source.conn.pgconn, dest.conn.pgconn, idle)
    pace = Pace(bytes_per_second)
    with ExitStack() as stack:
        stream, sink = _ends(source, dest, transport, waits, stack, trailer=trailer)
        try:
            sink.start(copy_in)
            stream.start(copy_out, sink)
            while not stream.ended:
                data = stream.read(sink, pace.portion)
                if data:
                    pace.took(len(data))
                    sink.send(data, whole=stream.whole)
                    if crashpoints.ARMED:
                        crashpoints.reach("chunk-sent")
                    waits.moved()
                    report(stream.size, stream.rows)
                    _rest(pace, waits, sink)
                elif not stream.ended:
                    stream.wait(sink)
            sent = stream.finish(sink)
            if crashpoints.ARMED:
                crashpoints.reach("source-ended")
            taken = sink.finish()
            if sent != taken and not may_drop:
                raise CopyFailed(
                    f"the source sent {sent} rows and the dest took {taken}",
                    detail="A trigger at the dest may drop rows. Nothing was changed.",
                    hint="Give --accept triggers if that is meant.",
                    side="dest",
                )
        except BaseException:
            stream.stop()
            sink.stop()
            if dest.conn.pgconn.transaction_status == pq.TransactionStatus.INTRANS:
                dest.abandon()  # it took rows, and must not keep them
            raise
    return Relayed(sent, taken, stream.size, waits.ended())


def _rest(pace: Pace, waits: Waits, sink: Sink) -> None:
    """Let pass the time that what was sent should have taken, with an ear to both servers."""
    while pace.free > time.monotonic():
        asks = sink.ask()
        ready = waits.rest(pace.free if asks is None else min(pace.free, asks))
        if ready.dest:
            sink.listen()
        if ready.source:  # it hung up: what it said last tells why, and need not be spread
            pace.end()


def carrier(source: Session, dest: Session, transport: Transport) -> str:
    """Return by what the bytes go, two names where the sides differ.

    Raises UsageError where `transport` cannot carry them: a socket no encryption, TLS only what is
    encrypted.
    """
    names = [_carrier(session, transport) for session in (source, dest)]
    if "libpq" in names:
        return "libpq"
    return names[0] if names[0] == names[1] else "/".join(names)


def _carrier(session: Session, transport: Transport) -> str:
    if transport == "libpq":
        return "libpq"
    encryption = wires.encryption(session.conn.pgconn)
    found = {"none": "socket", "tls": "tls"}.get(encryption, "libpq")
    if transport in (found, "auto"):
        return found
    why = {"none": "is not encrypted", "tls": "is encrypted by TLS"}
    raise UsageError(
        f"the connection to the {session.side} cannot be carried by --transport {transport}",
        detail=f"It {why.get(encryption, 'is encrypted by what only libpq knows')}.",
        hint="Use --transport auto.",
        side=session.side,
    )


def _ends(
    source: Session,
    dest: Session,
    transport: Transport,
    waits: Waits,
    stack: ExitStack,
    *,
    trailer: bool,
) -> tuple[Stream, Sink]:
    if carrier(source, dest, transport) == "libpq":
        sink = libpq.Sink(dest, waits)
        stack.callback(sink.close)
        return libpq.Stream(source, waits, trailer=trailer), sink
    ends = []
    for session in (source, dest):
        wire = wires.borrow(session.conn.pgconn)
        stack.callback(wire.close)
        ends.append(wire)
    stream = wired.Stream(source, ends[0], waits, trailer=trailer)
    return stream, wired.Sink(dest, ends[1], waits)
