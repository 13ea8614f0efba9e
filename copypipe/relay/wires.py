"""The connection's own socket, borrowed from libpq while COPY data flows.

libpq authenticates, sends every statement and reads every result. Only between CopyOutResponse or
CopyInResponse and the end of the data do the bytes go past it: it hands out one object for each
row, which costs more than all the rest (docs/performance.md). Bytes are looked at before they are
taken, so that what is libpq's stays where libpq finds it.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from functools import cache
from typing import Any, Literal, Protocol

from psycopg import pq

# What is looked at, taken and written at once. 128 kB cost 4 % more CPU at rows of 48 bytes, 1 MB
# the same (scripts/bench.py); the buffers of the kernel hold some more.
CHUNK_BYTES = 256 * 1024


class Wire(Protocol):
    """A connection's bytes; closed means that libpq has it back."""

    def peek(self, size: int) -> bytes | None:
        """Return what has come, without taking it: None for nothing yet, b"" for never more.

        At most `size` bytes, and CHUNK_BYTES.

        Only after None may the socket be waited for: TLS may hold bytes that have left it.
        """

    def take(self, size: int) -> None:
        """Take bytes that were looked at."""

    def send(self, data: bytes, start: int) -> int:
        """Hand on as much from `start` on as fits and return how much; 0 for nothing now.

        What was refused must be offered again.
        """

    def close(self) -> None:
        """Give the connection back."""


class Plain:
    """A socket of TCP or a unix socket."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        # libpq keeps the descriptor: `close` detaches it. It stays as libpq made it, without
        # blocking, which Python must be told: socket.setdefaulttimeout() may say otherwise.
        self._socket = socket.socket(fileno=pgconn.socket)
        self._socket.setblocking(False)
        # The kernel drops what is taken instead of copying it once more (tcp(7)); a unix socket
        # knows no such thing.
        tcp = sys.platform == "linux" and self._socket.family != socket.AF_UNIX
        self._flags = socket.MSG_TRUNC if tcp else 0
        # A large block that is freed teaches glibc to keep blocks of a chunk's size, instead of
        # giving them back to the kernel each time (mallopt(3)): by unix sockets that saves a
        # quarter of the CPU.
        self._dropped = bytearray(8 * CHUNK_BYTES)
        self._dropped = bytearray(CHUNK_BYTES)

    def peek(self, size: int) -> bytes | None:
        """See `Wire`; raises OSError where the connection is broken."""
        try:
            return self._socket.recv(min(size, CHUNK_BYTES), socket.MSG_PEEK)
        except BlockingIOError:
            return None

    def take(self, size: int) -> None:
        """See `Wire`."""
        while size:
            size -= self._socket.recv_into(self._dropped, size, self._flags)

    def send(self, data: bytes, start: int) -> int:
        """See `Wire`; raises OSError where the connection is broken."""
        try:
            return self._socket.send(memoryview(data)[start : start + CHUNK_BYTES], _NO_SIGNAL)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """See `Wire`."""
        self._socket.detach()


# A program that embeds us may let SIGPIPE kill it; libpq guards its own writes too. Elsewhere than
# on Linux there may be no such flag.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

# The most that fits into a record (RFC 8446, 5.1); the server writes 8 kB.
_RECORD_BYTES = 16 * 1024

# ssl.h
_WANT_READ, _WANT_WRITE, _ZERO_RETURN = 2, 3, 6


class Tls:
    """A connection that OpenSSL encrypts, through the handle that libpq has for it.

    The functions are those of the very library that libpq uses, found through psycopg's own
    extension module (PQsslStruct). All are called for a socket that does not block: SSL_read(3),
    SSL_get_error(3).
    """

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._library = _library()
        self._ssl = _handle(pgconn)
        self._buffer = ctypes.create_string_buffer(_RECORD_BYTES)

    def peek(self, size: int) -> bytes | None:
        """See `Wire`; returns one record at most. Raises OSError for a broken connection."""
        seen = self._call(self._library.SSL_peek, self._buffer, min(size, _RECORD_BYTES))
        return None if seen is None else ctypes.string_at(self._buffer, seen)

    def take(self, size: int) -> None:
        """See `Wire`."""
        while size:
            taken = self._call(self._library.SSL_read, self._buffer, min(size, _RECORD_BYTES))
            if not taken:
                raise ConnectionResetError
            size -= taken

    def send(self, data: bytes, start: int) -> int:
        """See `Wire`. A record at a time: OpenSSL wants again what it refused, as it was."""
        size = min(len(data) - start, _RECORD_BYTES)
        # The address of bytes within bytes, without a copy; `data` lives while this runs.
        first = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        return self._call(self._library.SSL_write, first + start, size) or 0

    def close(self) -> None:
        """See `Wire`."""
        self._ssl = None

    def _call(self, function: Any, buffer: object, size: int) -> int | None:
        """Return how many bytes went, None where the socket must be waited for, 0 at the end."""
        for _ in range(2):
            done: int = function(self._ssl, buffer, size)
            if done > 0:
                return done
            error = self._library.SSL_get_error(self._ssl, done)
            # The thread's queue of errors is looked at even where this call left none: another
            # connection of it may have (SSL_get_error(3)). So what looks broken is tried again.
            self._library.ERR_clear_error()
            if error in (_WANT_READ, _WANT_WRITE):
                return None
            if error == _ZERO_RETURN:
                return 0
        raise ConnectionResetError


def borrow(pgconn: pq.abc.PGconn) -> Wire:
    """Return the connection's wire; its encryption is none or TLS."""
    return Tls(pgconn) if pgconn.ssl_in_use else Plain(pgconn)


def encryption(pgconn: pq.abc.PGconn) -> Literal["none", "tls", "unknown"]:
    """Return what encrypts the connection, as far as this room can carry it: GSS is unknown."""
    library = _library()
    if library is None:
        # A unix socket is never encrypted, and libpq without GSS has no such option.
        plain = not pgconn.ssl_in_use and pgconn.host.startswith(b"/")
        return "none" if plain else "unknown"
    if library.PQgssEncInUse(_address(pgconn)):
        return "unknown"
    if not pgconn.ssl_in_use:
        return "none"
    return "tls" if _handle(pgconn) else "unknown"


def _handle(pgconn: pq.abc.PGconn) -> int | None:
    """Return the address of OpenSSL's SSL for the connection, None where something else has it."""
    found: int | None = _library().PQsslStruct(_address(pgconn), b"OpenSSL")
    return found


def _address(pgconn: Any) -> int:
    """Return where the PGconn is; psycopg's protocol class does not name the attribute."""
    address: int = pgconn.pgconn_ptr
    return address


@cache
def _library() -> Any:
    """Return libpq with what it is linked to, None where that cannot be reached."""
    file = sys.modules[pq.PGconn.__module__].__file__ or ""
    if file.endswith(".py"):
        return None  # psycopg without its extension loads a libpq by rules of its own
    try:
        library = ctypes.CDLL(file)
        handle, size = ctypes.c_void_p, ctypes.c_int
        library.PQgssEncInUse.argtypes = (handle,)
        library.PQgssEncInUse.restype = size
        library.PQsslStruct.argtypes = (handle, ctypes.c_char_p)
        library.PQsslStruct.restype = handle
        for function in (library.SSL_peek, library.SSL_read, library.SSL_write):
            function.argtypes = (handle, handle, size)
            function.restype = size
        library.SSL_get_error.argtypes = (handle, size)
        library.SSL_get_error.restype = size
        library.ERR_clear_error.argtypes = ()
        library.ERR_clear_error.restype = None
    except (OSError, AttributeError):
        return None
    return library
