"""Between copypipe and a server: a proxy that cuts and alters, and listeners that only pretend.

All of them live on loopback, each connection in threads of its own. The proxy reads the protocol's
frames (a type byte, then a length that counts itself), so what it carries must not be encrypted.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

HOST = "127.0.0.1"
LENGTH = struct.Struct("!I")

# Requests that come instead of a startup message: encryption by TLS, by GSS; cancel.
SSL, GSS, CANCEL = 80877103, 80877104, 80877102

TRAILER = b"\xff\xff"  # the last CopyData of a binary COPY

Direction = Literal["server", "client"]


@dataclass(frozen=True)
class Frame:
    """One message. `sent` counts the bytes of CopyData that went before in the same direction."""

    sender: Direction
    kind: bytes
    body: bytes
    sent: int

    @property
    def raw(self) -> bytes:
        return self.kind + LENGTH.pack(len(self.body) + 4) + self.body


class Cut(Exception):
    """Raised by a rule: both connections end, after `last` was handed on."""

    def __init__(self, last: bytes = b"", *, reset: bool = False) -> None:
        super().__init__()
        self.last = last
        self.reset = reset


Rule = Callable[[Frame], bytes | None]
"""Decides what is handed on instead of a frame: None for the frame as it is. May raise Cut."""


def unchanged(frame: Frame) -> None:
    """Hand every frame on."""


def cut_after(size: int, *, reset: bool = False) -> Rule:
    """Cut the source's stream after that many bytes of data, in the middle of a message too."""

    def rule(frame: Frame) -> None:
        if frame.sender == "server" and frame.kind == b"d" and frame.sent + len(frame.body) > size:
            raise Cut(frame.raw[: 5 + max(0, size - frame.sent)], reset=reset)

    return rule


def cut_at_row(rows: int, *, reset: bool = False) -> Rule:
    """Cut between two rows: after that many messages of data."""
    seen = 0

    def rule(frame: Frame) -> None:
        nonlocal seen
        if frame.sender == "server" and frame.kind == b"d":
            seen += 1
            if seen > rows:
                raise Cut(reset=reset)

    return rule


def cut_before_trailer(*, reset: bool = False) -> Rule:
    """Cut when every row has come, and the trailer has not."""

    def rule(frame: Frame) -> None:
        if frame.sender == "server" and frame.kind == b"d" and frame.body == TRAILER:
            raise Cut(reset=reset)

    return rule


def swallow_trailer(frame: Frame) -> bytes | None:
    """Leave the trailer out; CopyDone and CommandComplete come as if nothing were missing."""
    lost = frame.sender == "server" and frame.kind == b"d" and frame.body == TRAILER
    return b"" if lost else None


def _says(frame: Frame, word: bytes) -> bool:
    return frame.sender == "client" and frame.kind == b"Q" and frame.body.rstrip(b"\0") == word


def lose_commit(*, arrives: bool) -> Rule:
    """Cut at COMMIT, which the server still gets, or not."""

    def rule(frame: Frame) -> None:
        if not arrives and _says(frame, b"COMMIT"):
            raise Cut
        if arrives and frame.sender == "server" and frame.body == b"COMMIT\0":
            raise Cut

    return rule


def roll_back_instead(frame: Frame) -> bytes | None:
    """Turn COMMIT into ROLLBACK, which is how a server answers in an aborted transaction."""
    if _says(frame, b"COMMIT"):
        return Frame("client", b"Q", b"ROLLBACK\0", 0).raw
    return None


def in_pieces(size: int, kind: bytes, pause: float) -> Rule:
    """Hand the server's messages of one kind on in pieces, a moment apart."""

    def rule(frame: Frame) -> bytes | None:
        if frame.sender == "server" and frame.kind == kind:
            raise _Slowly([frame.raw[i : i + size] for i in range(0, len(frame.raw), size)], pause)
        return None

    return rule


def torn_before_error(pause: float) -> Rule:
    """Tear the last notice before an error within its header; its rest comes with the error.

    The notice before it comes whole, with the first piece.
    """
    held: list[bytes] = []

    def rule(frame: Frame) -> bytes | None:
        if frame.sender == "client":
            return None
        if frame.kind == b"N":
            held.append(frame.raw)
            return b""
        if frame.kind == b"E" and held:
            early = b"".join(held[:-1]) + held[-1][:3]
            late = held[-1][3:] + frame.raw
            held.clear()
            raise _Slowly([early, late], pause)
        return None

    return rule


class _Slowly(Exception):
    def __init__(self, pieces: list[bytes], pause: float) -> None:
        super().__init__()
        self.pieces = pieces
        self.pause = pause


class Proxy:
    """Forwards connections to a server under a rule, which may be changed at any time."""

    def __init__(self, host: str, port: int, rule: Rule = unchanged) -> None:
        self.rule = rule
        self.bytes = {"server": 0, "client": 0}
        self.cuts = 0
        self._target = (host, port)
        self._sockets: list[socket.socket] = []
        self._closing = threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        _shut(self._listener)
        for one in self._sockets:
            _shut(one)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(one)
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                request = _exactly(client, 4)
                request += _exactly(client, LENGTH.unpack(request)[0] - 4)
                code = LENGTH.unpack(request[4:8])[0]
                if code in (SSL, GSS):
                    client.sendall(b"N")
                    continue
                server.sendall(request)
                if code == CANCEL:
                    break
                back = threading.Thread(
                    target=self._carry, args=("server", server, client), daemon=True
                )
                back.start()
                self._carry("client", client, server)
                return
        _shut(client)
        _shut(server)

    def _carry(self, sender: Direction, origin: socket.socket, target: socket.socket) -> None:
        try:
            for frames in _frames(sender, origin):
                self.bytes[sender] += sum(len(frame.body) + 5 for frame in frames)
                self._hand_on(frames, target)
        except Cut as cut:
            self.cuts += 1
            with contextlib.suppress(OSError):
                (target if sender == "server" else origin).sendall(cut.last)
            for one in (origin, target):
                _shut(one, reset=cut.reset)
        except (OSError, EOFError):
            for one in (origin, target):
                _shut(one)

    def _hand_on(self, frames: list[Frame], target: socket.socket) -> None:
        """Hand on what came together; a frame by itself would cost a system call each."""
        ready: list[bytes] = []
        try:
            for frame in frames:
                try:
                    instead = self.rule(frame)
                except _Slowly as slowly:
                    target.sendall(b"".join(ready))
                    ready.clear()
                    for piece in slowly.pieces:
                        target.sendall(piece)
                        self._closing.wait(slowly.pause)
                else:
                    ready.append(frame.raw if instead is None else instead)
        finally:
            target.sendall(b"".join(ready))


def _frames(sender: Direction, origin: socket.socket) -> Iterator[list[Frame]]:
    """Yield the whole messages of each read."""
    waiting = b""
    sent = 0
    while data := origin.recv(1 << 18):
        waiting += data
        frames = []
        position = 0
        while len(waiting) >= position + 5:
            end = position + 1 + LENGTH.unpack_from(waiting, position + 1)[0]
            if end > len(waiting):
                break
            kind, body = waiting[position : position + 1], waiting[position + 5 : end]
            frames.append(Frame(sender, kind, body, sent))
            sent += len(body) if kind == b"d" else 0
            position = end
        waiting = waiting[position:]
        if frames:
            yield frames
    raise EOFError


def _exactly(origin: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        data = origin.recv(min(size, 1 << 16))
        if not data:
            raise EOFError
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _shut(one: socket.socket, *, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            one.shutdown(socket.SHUT_RDWR)
    # A thread that waits in recv() of a socket keeps the kernel from resetting it at once.
    with contextlib.suppress(OSError):
        if reset:
            one.shutdown(socket.SHUT_RD)
        one.close()


class Impostor:
    """Listens and accepts; says `greeting` when it has read a startup message, then nothing."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.accepted = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        _shut(self._listener)
        for one in self._sockets:
            _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            self.accepted.set()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while self.greeting:
                request = _exactly(client, LENGTH.unpack(_exactly(client, 4))[0] - 4)
                if LENGTH.unpack(request[:4])[0] in (SSL, GSS):
                    client.sendall(b"N")
                    continue
                client.sendall(self.greeting)
                break
            while client.recv(4096):
                pass


def greeting_of(version: str) -> bytes:
    """Return what a server of that version says to somebody it lets in."""
    facts = {
        "server_version": version,
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "TimeZone": "UTC",
        "integer_datetimes": "on",
        "standard_conforming_strings": "on",
    }
    frames = [(b"R", LENGTH.pack(0))]
    frames += [(b"S", f"{name}\0{value}\0".encode()) for name, value in facts.items()]
    frames += [(b"K", LENGTH.pack(1) + LENGTH.pack(2)), (b"Z", b"I")]
    return b"".join(Frame("server", kind, body, 0).raw for kind, body in frames)


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """Return a maker of proxies: `proxy(database.server, rule)`."""
    with contextlib.ExitStack() as cleanup:

        def make(server: object, rule: Rule = unchanged) -> Proxy:
            made = Proxy(server.host, server.port, rule)
            cleanup.callback(made.close)
            return made

        yield make


@pytest.fixture
def impostor() -> Iterator[Callable[..., Impostor]]:
    """Return a maker of listeners that pretend: `impostor(greeting)`."""
    with contextlib.ExitStack() as cleanup:

        def make(greeting: bytes = b"") -> Impostor:
            made = Impostor(greeting)
            cleanup.callback(made.close)
            return made

        yield make


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Yield a port of loopback where nobody listens, and nobody will meanwhile."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))  # bound, not listening: connections are refused
        yield bound.getsockname()[1]
