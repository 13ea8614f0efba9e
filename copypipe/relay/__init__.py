"""Bytes from one COPY to the other. Knows no SQL, no table, no slice; never decodes a row.

`relay` is the one door. Behind it is a file a transport; all keep the same promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from copypipe.relay import libpq
from copypipe.relay.paces import Pace
from copypipe.servers import Session
from copypipe.statements import Statement

Report = Callable[[int, int], None]
"""Called with the bytes and rows handed on so far, about once for each gathered write."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """What went through; both servers counted the same rows."""

    rows: int
    bytes: int
    transport: str
    """The way the bytes took: libpq."""


def relay(
    source: Session,
    copy_out: Statement,
    dest: Session,
    copy_in: Statement,
    report: Report,
    *,
    bytes_per_second: int | None = None,
) -> Relayed:
    """Relay one binary COPY from source to dest, within the transactions that are open.

    No faster than `bytes_per_second` where that is given: the source is read more slowly, and
    stops when the sockets between are full.

    `copy_out` is a COPY TO STDOUT, `copy_in` a COPY FROM STDIN, both in binary. The dest begins
    first, so that the source's snapshot waits for nobody. CopyDone goes to the dest only after
    the source said CommandComplete and the stream's trailer was its last data; after any failure
    it gets CopyFail with a fixed text instead. Nothing is committed here. Memory stays at two
    gathered writes and the largest row.

    Raises the error of the server that failed first, CopyFailed where the two row counts differ
    or the stream is not whole. Then the source's session is closed unless it ended by itself, and
    the dest's is either in an aborted transaction or closed: its table is as it was.
    """
    rows, size = libpq.relay(source, copy_out, dest, copy_in, report, Pace(bytes_per_second))
    return Relayed(rows=rows, bytes=size, transport="libpq")
