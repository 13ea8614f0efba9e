"""Between copypipe and a server: a proxy with faults to order, and listeners that only pretend.

All of them live on this machine, each connection in threads of its own. The proxy reads the
protocol's frames (a type byte, then a length that counts itself). What is encrypted passes as it
is, in pieces without a type; faults that count bytes work there too.
"""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from plugins.databases import Database
from plugins.servers import Server

HOST = "127.0.0.1"
LENGTH = struct.Struct("!I")

# Requests that come instead of a startup message: encryption by TLS, by GSS; cancel.
SSL, GSS, CANCEL = 80877103, 80877104, 80877102

TRAILER = b"\xff\xff"  # the last CopyData of a binary COPY

Direction = Literal["server", "client"]
DIRECTIONS: tuple[Direction, Direction] = ("server", "client")

Ending = Literal["fin", "rst", "hole", "mute", "dead"]
"""How a connection is cut: closed in order, reset, or nothing arrives any more while both sockets
stay open: hole in both directions, mute in the one of the frame, dead on every connection through
the proxy, new ones included."""


@dataclass(frozen=True)
class Frame:
    """One message, and what of its connection went before it in the same direction."""

    sender: Direction
    kind: bytes
    """Empty for what has none: the request that begins a connection, a piece that is encrypted."""
    body: bytes
    sent: int = 0
    """Bytes in messages of CopyData."""
    rows: int = 0
    """Messages of CopyData."""
    at: int = 0
    """Bytes in all; a request for encryption and its answer do not count."""
    number: int = 0
    """Messages in all."""
    link: int = 1
    """Which connection through the proxy it is, counted from 1."""

    @property
    def raw(self) -> bytes:
        return said(self.kind, self.body) if self.kind else self.body

    @property
    def is_data(self) -> bool:
        """Whether it is data of the source."""
        return self.sender == "server" and self.kind == b"d"

    @property
    def is_cancel(self) -> bool:
        """Whether it asks to cancel what another connection runs."""
        return self.sender == "client" and self.body[4:8] == LENGTH.pack(CANCEL) and not self.kind


def said(kind: bytes, body: bytes) -> bytes:
    """Return a message as it is sent."""
    return kind + LENGTH.pack(len(body) + 4) + body


def notice(
    text: str, severity: str = "NOTICE", *, kind: bytes = b"N", code: str = "00000"
) -> bytes:
    """Return a notice as servers write it."""
    fields = {"S": severity, "V": severity, "C": code, "M": text, "F": "proxy.c", "L": "1"}
    return said(kind, b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def setting(name: str, value: str) -> bytes:
    """Return what a server says when a setting that clients follow has changed."""
    return said(b"S", f"{name}\0{value}\0".encode())


def notification(channel: str, payload: str) -> bytes:
    """Return what a server says of a NOTIFY that was listened for."""
    return said(b"A", LENGTH.pack(42) + f"{channel}\0{payload}\0".encode())


def error(text: str, code: str) -> bytes:
    """Return an error, which ends the statement, and the readiness in a failed transaction."""
    return notice(text, "ERROR", kind=b"E", code=code) + said(b"Z", b"E")


class Cut(Exception):
    """Raised by a rule: the connection is cut, after `last` was handed on."""

    def __init__(self, last: bytes = b"", ending: Ending = "fin") -> None:
        super().__init__()
        self.last = last
        self.ending = ending


class Slowly(Exception):
    """Raised by a rule: pieces are handed on instead of the frame, with a pause between two."""

    def __init__(self, pieces: list[bytes], pause: float) -> None:
        super().__init__()
        self.pieces = pieces
        self.pause = pause


Rule = Callable[[Frame], bytes | None]
"""Decides what is handed on instead of a frame: None for the frame as it is. May raise Cut and
Slowly."""


def unchanged(frame: Frame) -> None:
    """Hand every frame on."""


def together(*rules: Rule) -> Rule:
    """Do what the first rule does that does something."""

    def rule(frame: Frame) -> bytes | None:
        return next((done for one in rules if (done := one(frame)) is not None), None)

    return rule


# --- cuts -----------------------------------------------------------------------------------------


def at_byte(sender: Direction, count: int, ending: Ending = "fin") -> Rule:
    """Cut the first connection after that many bytes, in the middle of a message too."""

    def rule(frame: Frame) -> None:
        concerned = frame.link == 1 and frame.sender == sender
        if concerned and frame.at + len(frame.raw) > count:
            raise Cut(frame.raw[: max(0, count - frame.at)], ending)

    return rule


def at_message(sender: Direction, number: int, ending: Ending = "fin") -> Rule:
    """Cut the first connection when that many messages have come from that direction."""

    def rule(frame: Frame) -> None:
        if frame.link == 1 and frame.sender == sender and frame.number >= number:
            raise Cut(ending=ending)

    return rule


def at_kind(
    sender: Direction, kind: bytes, ending: Ending, *, starts: bytes = b"", arrives: bool = False
) -> Rule:
    """Cut at the first message of that kind, which still arrives, or not.

    `starts` is how the message's body begins.
    """

    def rule(frame: Frame) -> None:
        if frame.sender == sender and frame.kind == kind and frame.body.startswith(starts):
            raise Cut(frame.raw if arrives else b"", ending)

    return rule


def cut_after(size: int, ending: Ending = "fin") -> Rule:
    """Cut the source's stream after that many bytes of data, in the middle of a message too."""

    def rule(frame: Frame) -> None:
        if frame.is_data and frame.sent + len(frame.body) > size:
            raise Cut(frame.raw[: 5 + max(0, size - frame.sent)], ending)

    return rule


def cut_at_row(rows: int, ending: Ending = "fin") -> Rule:
    """Cut between two rows: after that many messages of data."""

    def rule(frame: Frame) -> None:
        if frame.is_data and frame.rows >= rows:
            raise Cut(ending=ending)

    return rule


def cut_before_trailer(ending: Ending = "fin") -> Rule:
    """Cut when every row has come, and the trailer has not."""

    def rule(frame: Frame) -> None:
        if frame.is_data and frame.body == TRAILER:
            raise Cut(ending=ending)

    return rule


# --- what is lost, and what is said instead -------------------------------------------------------


def swallow_trailer(frame: Frame) -> bytes | None:
    """Leave the trailer out; CopyDone and CommandComplete come as if nothing were missing."""
    return b"" if frame.is_data and frame.body == TRAILER else None


def swallow_cancels(frame: Frame) -> bytes | None:
    """Let no cancel request arrive."""
    return b"" if frame.is_cancel else None


class Commits:
    """Tells the COMMIT of a copy, and its answer, from those of other transactions."""

    def __init__(self) -> None:
        self._copied = self._waiting = False

    def asked(self, frame: Frame) -> bool:
        """Return whether the client asks for it."""
        if frame.sender == "client":
            self._copied |= frame.kind == b"c"  # CopyDone
        query = frame.sender == "client" and frame.kind == b"Q"
        asked = self._copied and query and frame.body == b"COMMIT\0"
        if asked:
            self._copied, self._waiting = False, True
        return asked

    def answered(self, frame: Frame) -> bool:
        """Return whether the server says that it was done."""
        done = frame.sender == "server" and frame.kind == b"C"
        answered = self._waiting and done and frame.body == b"COMMIT\0"
        if answered:
            self._waiting = False
        return answered


def lose_commit(*, arrives: bool, ending: Ending = "fin") -> Rule:
    """Cut at the first COMMIT, which the server still gets, or not."""
    commits = Commits()
    is_lost = False

    def rule(frame: Frame) -> None:
        nonlocal is_lost
        asked = commits.asked(frame)
        if not is_lost and (commits.answered(frame) if arrives else asked):
            is_lost = True
            raise Cut(ending=ending)

    return rule


def swallow_commit(*, arrives: bool) -> Rule:
    """Lose the request to commit, or exactly its answer; all else passes."""
    answering = False
    commits = Commits()

    def rule(frame: Frame) -> bytes | None:
        nonlocal answering
        asked = commits.asked(frame)
        if not arrives:
            return b"" if asked else None
        if frame.sender == "client":
            return None
        answering |= commits.answered(frame)
        lost = answering
        answering &= frame.kind != b"Z"  # which ends the answer, behind settings that changed back
        return b"" if lost else None

    return rule


def roll_back_instead() -> Rule:
    """Turn COMMIT into ROLLBACK, which is how a server answers in an aborted transaction."""
    commits = Commits()
    return lambda frame: said(b"Q", b"ROLLBACK\0") if commits.asked(frame) else None


def let_in_one(text: str, code: str) -> Rule:
    """Have the server refuse every connection but the first, with this error."""

    def rule(frame: Frame) -> None:
        if frame.link > 1 and frame.sender == "server":
            raise Cut(notice(text, "FATAL", kind=b"E", code=code))

    return rule


def tell_pid(pid: int) -> Rule:
    """Tell another process's number than the server's, as poolers do; its cancels go astray."""

    def rule(frame: Frame) -> bytes | None:
        if frame.sender == "server" and frame.kind == b"K":
            return said(b"K", LENGTH.pack(pid) + frame.body[4:])
        return None

    return rule


# --- what comes in pieces -------------------------------------------------------------------------


def in_pieces(size: int, kind: bytes, pause: float) -> Rule:
    """Hand the server's messages of one kind on in pieces, a moment apart."""

    def rule(frame: Frame) -> bytes | None:
        if frame.sender == "server" and frame.kind == kind:
            raise Slowly([frame.raw[i : i + size] for i in range(0, len(frame.raw), size)], pause)
        return None

    return rule


def slowed(sender: Direction, size: int, pause: float) -> Rule:
    """Hand on so many bytes at most from one direction of the first connection, then pause."""

    def rule(frame: Frame) -> bytes | None:
        if frame.link == 1 and frame.sender == sender and len(frame.raw) > 100:
            pieces = [frame.raw[i : i + size] for i in range(0, len(frame.raw), size)]
            raise Slowly([*pieces, b""], pause)
        return None

    return rule


def torn(kind: bytes, number: int, size: int, pause: float) -> Rule:
    """Tear the server's message of one kind and number, counted from 0, after `size` bytes."""
    count = itertools.count()

    def rule(frame: Frame) -> bytes | None:
        if frame.sender == "server" and frame.kind == kind and next(count) == number:
            raise Slowly([frame.raw[:size], frame.raw[size:]], pause)
        return None

    return rule


def insert(
    extra: bytes,
    kind: bytes,
    *,
    starts: bytes = b"",
    number: int = 0,
    torn: int | None = None,
    pause: float = 0.0,
) -> Rule:
    """Have the server say something more before its message of that kind and number, from 0.

    `starts` is how the message's body begins. Where the addition is torn after some bytes, its rest
    comes after the pause, together with the message.
    """
    count = itertools.count()

    def rule(frame: Frame) -> bytes | None:
        wanted = frame.sender == "server" and frame.kind == kind and frame.body.startswith(starts)
        if not wanted or next(count) != number:
            return None
        if torn is None:
            return extra + frame.raw
        raise Slowly([extra[:torn], extra[torn:] + frame.raw], pause)

    return rule


def insert_torn_everywhere(extra: bytes, pause: float) -> Rule:
    """Have the source say something more before many a row, each time torn one byte later."""

    def rule(frame: Frame) -> bytes | None:
        if frame.is_data and 0 < frame.rows < len(extra):
            raise Slowly([extra[: frame.rows], extra[frame.rows :] + frame.raw], pause)
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
            raise Slowly([early, late], pause)
        return None

    return rule


# --- the proxy ------------------------------------------------------------------------------------


class Proxy:
    """Forwards connections to a server under a rule, which may be changed at any time.

    Listens on loopback, or on a unix socket in `folder`.
    """

    def __init__(
        self, host: str, port: int, rule: Rule = unchanged, folder: Path | None = None
    ) -> None:
        self.rule = rule
        self.bytes = {"server": 0, "client": 0}
        self.messages = {"server": 0, "client": 0}
        """How much came from each direction."""
        self.fired: list[str] = []
        """What the rule did, in order: an Ending, slowly, swallowed or changed."""
        self.is_dead = threading.Event()
        self.closing = threading.Event()
        self._target = (host, port)
        self._links: list[_Link] = []
        if folder is None:
            self._listener = socket.create_server((HOST, 0))
            self.host, self.port = self._listener.getsockname()
        else:
            self.host, self.port = str(folder), 5432
            path = str(folder / f".s.PGSQL.{self.port}")
            self._listener = socket.create_server(path, family=socket.AF_UNIX)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def links(self) -> int:
        """How many connections there were."""
        return len(self._links)

    def dsn(self, database: Database, **changes: object) -> str:
        """Return the connection string of a database that goes through the proxy."""
        way = {"host": self.host, "port": self.port, "sslmode": "disable"}
        return database.server.dsn(**{**way, "dbname": database.name, **changes})

    def die(self) -> None:
        """Let nothing arrive any more, on any connection."""
        if not self.is_dead.is_set():
            self.fired.append("dead")
            self.is_dead.set()

    def drop(self, number: int) -> None:
        """Close one connection, as a keepalive that is not answered has both ends do."""
        self._links[number - 1].shut()

    def close(self) -> None:
        """Close all connections: whoever still waits in a hole learns of it."""
        self.closing.set()
        _shut(self._listener)
        for link in self._links:
            link.shut()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            for one in (client, server):
                if one.family != socket.AF_UNIX:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(self, len(self._links) + 1, client, server)
            self._links.append(link)
            threading.Thread(target=link.serve, daemon=True).start()


class _Link:
    """One connection through the proxy; a thread for each direction."""

    def __init__(
        self, proxy: Proxy, number: int, client: socket.socket, server: socket.socket
    ) -> None:
        self.proxy = proxy
        self.number = number
        self.swallowed: set[Direction] = set()
        self._ends = {"client": client, "server": server}

    def serve(self) -> None:
        client, server = self._ends["client"], self._ends["server"]
        request, encrypted = b"", False
        try:
            while not request and not encrypted:
                request = _exactly(client, 4)
                request += _exactly(client, LENGTH.unpack(request)[0] - 4)
                code = LENGTH.unpack(request[4:8])[0]
                if code == GSS:
                    client.sendall(b"N")
                elif code == SSL:
                    server.sendall(request)
                    answer = _exactly(server, 1)
                    client.sendall(answer)
                    encrypted = answer == b"S"
                if code in (SSL, GSS):
                    request = b""
        except (OSError, EOFError):
            self.shut()
            return
        back = threading.Thread(target=self._carry, args=("server", b"", encrypted), daemon=True)
        back.start()
        self._carry("client", request, encrypted)

    def shut(self, *, reset: bool = False) -> None:
        for one in self._ends.values():
            _shut(one, reset=reset)

    def _carry(self, sender: Direction, request: bytes, encrypted: bool) -> None:
        origin = self._ends[sender]
        target = self._ends["client" if sender == "server" else "server"]
        pieces = _pieces(origin) if encrypted else _messages(origin, request)
        try:
            for frames in _counted(sender, self.number, pieces):
                self.proxy.bytes[sender] += sum(len(frame.raw) for frame in frames)
                self.proxy.messages[sender] += len(frames)
                if sender in self.swallowed or self.proxy.is_dead.is_set():
                    break
                self._hand_on(frames, target)
        except Cut as cut:
            self.proxy.fired.append(cut.ending)
            with contextlib.suppress(OSError):
                target.sendall(cut.last)
            if cut.ending in ("fin", "rst"):
                self.shut(reset=cut.ending == "rst")
                return
            self.swallowed |= {sender} if cut.ending == "mute" else set(DIRECTIONS)
            if cut.ending == "dead":
                self.proxy.is_dead.set()
        except (OSError, EOFError):
            if not self.swallowed and not self.proxy.is_dead.is_set():
                self.shut()
        # In a hole: nothing is read any more, so that buffers fill, and nobody is told.

    def _hand_on(self, frames: list[Frame], target: socket.socket) -> None:
        """Hand on what came together; a frame by itself would cost a system call each."""
        ready: list[bytes] = []
        try:
            for frame in frames:
                try:
                    instead = self.proxy.rule(frame)
                except Slowly as slowly:
                    self.proxy.fired.append("slowly")
                    target.sendall(b"".join(ready))
                    ready.clear()
                    for number, piece in enumerate(slowly.pieces):
                        if number:
                            self.proxy.closing.wait(slowly.pause)
                        target.sendall(piece)
                    continue
                if instead is not None:
                    self.proxy.fired.append("changed" if instead else "swallowed")
                ready.append(frame.raw if instead is None else instead)
        finally:
            target.sendall(b"".join(ready))


def _counted(
    sender: Direction, link: int, pieces: Iterator[list[tuple[bytes, bytes]]]
) -> Iterator[list[Frame]]:
    """Make frames of kinds and bodies, each knowing what went before it."""
    sent = rows = at = number = 0
    for piece in pieces:
        frames = []
        for kind, body in piece:
            frames.append(Frame(sender, kind, body, sent, rows, at, number, link))
            is_data = kind == b"d"
            sent += len(body) if is_data else 0
            rows += is_data
            at += len(body) + (5 if kind else 0)
            number += 1
        yield frames


def _pieces(origin: socket.socket) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield what is encrypted as it comes."""
    while data := origin.recv(1 << 18):
        yield [(b"", data)]
    raise EOFError


def _messages(origin: socket.socket, request: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield the request, then the whole messages of each read, as kind and body."""
    if request:
        yield [(b"", request)]
    waiting = bytearray()
    while data := origin.recv(1 << 18):
        waiting += data
        messages = []
        position = 0
        while len(waiting) >= position + 5:
            end = position + 1 + LENGTH.unpack_from(waiting, position + 1)[0]
            if end > len(waiting):
                break
            kind = bytes(waiting[position : position + 1])
            messages.append((kind, bytes(waiting[position + 5 : end])))
            position = end
        del waiting[:position]
        if messages:
            yield messages
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
    settings = b"".join(setting(name, value) for name, value in facts.items())
    key = said(b"K", LENGTH.pack(1) + LENGTH.pack(2))
    return said(b"R", LENGTH.pack(0)) + settings + key + said(b"Z", b"I")


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """Return a maker of proxies: `proxy(database.server, rule)`, on a unix socket in a folder."""
    with contextlib.ExitStack() as cleanup:

        def make(server: Server, rule: Rule = unchanged, folder: Path | None = None) -> Proxy:
            made = Proxy(server.host, server.port, rule, folder)
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
