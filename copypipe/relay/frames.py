"""Where the messages of a stream begin, however it is cut into pieces.

Both directions of COPY use the same message, CopyData: "d", a length of four bytes that counts
itself, the data ("Message Formats" in the protocol's documentation). The source sends one for each
row, the dest takes them of any size: so what comes from the source is handed on as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from copypipe.relay import scans

Scan = Callable[[bytes, int], tuple[int, int, int]]

KIND_AND_LENGTH = 5
_LENGTH = struct.Struct("!i")
_DATA = b"d"

# The trailer of binary COPY ("Binary Format" in the documentation of COPY): a field count of -1.
# For an empty result it shares its message with the header of 19 bytes.
TRAILER = b"\xff\xff"
SIGNATURE = b"PGCOPY\n\xff\r\n\0"
EMPTY_BYTES = len(SIGNATURE) + 4 + 4 + len(TRAILER)


def is_trailer(data: bytes) -> bool:
    """Return whether the data of a message is the end of a binary COPY.

    A last row that ends in NULL ends in the same two bytes, so the whole is compared.
    """
    empty = len(data) == EMPTY_BYTES and data.startswith(SIGNATURE) and data.endswith(TRAILER)
    return data == TRAILER or empty


class BadFrame(ValueError):
    """A message of data bears a length that cannot be."""


class Frames:
    """Follows the messages of a stream of CopyData."""

    def __init__(self, scan: Scan = scans.scan) -> None:
        self.rows = 0
        """Messages of data that have begun."""
        self._scan = scan
        self._missing = 0
        self._header = b""
        self._last = 0
        self._tail = b""

    @property
    def whole(self) -> bool:
        """Return whether the stream stands between two messages."""
        return not self._missing and not self._header

    @property
    def ended(self) -> bool:
        """Return whether the last message was the trailer of a binary COPY."""
        short = self._last in (len(TRAILER), EMPTY_BYTES)
        return self.whole and short and is_trailer(self._tail[-self._last :])

    def feed(self, data: bytes) -> int:
        """Follow `data`; returns how many of its bytes belong to messages of data.

        Behind them another message begins, whose kind is the next byte. Raises BadFrame.
        """
        size = len(data)
        position = 0
        if self._header:
            position = KIND_AND_LENGTH - len(self._header)
            self._header += data[:position]
            if len(self._header) < KIND_AND_LENGTH:
                return self._followed(data, size)
            self._begin(self._header)
            self._header = b""
        if self._missing > size - position:
            self._missing -= size - position
            return self._followed(data, size)
        position += self._missing
        self._missing = 0
        end, rows, last = self._scan(data, position)
        if rows:
            self.rows += rows
            (self._last,) = _LENGTH.unpack_from(data, last + 1)
            self._last -= _LENGTH.size
        if end >= size:
            self._missing = end - size
            return self._followed(data, size)
        if data[end : end + 1] != _DATA:
            return self._followed(data, end)
        self._header = data[end:]
        if len(self._header) >= KIND_AND_LENGTH:
            raise BadFrame
        return self._followed(data, size)

    def _begin(self, header: bytes) -> None:
        (length,) = _LENGTH.unpack_from(header, 1)
        if length < _LENGTH.size:
            raise BadFrame
        self._last = self._missing = length - _LENGTH.size
        self.rows += 1

    def _followed(self, data: bytes, size: int) -> int:
        """Keep what may be the end of the last message."""
        if size >= EMPTY_BYTES:
            self._tail = data[size - EMPTY_BYTES : size]
        else:
            self._tail = (self._tail + data[:size])[-EMPTY_BYTES:]
        return size
