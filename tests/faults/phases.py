"""How far a copy is, read from what it says to the servers.

A `Course` listens to the first connection to each side through a proxy, so that a fault knows in
which phase it falls, whoever makes it.
"""

from __future__ import annotations

import threading

from plugins.proxy import Frame

PHASES = {
    "plan": "connect, plan",
    "lock": "attempt told, locks",
    "clear": "the slice is cleared",
    "stream": "rows flow",
    "end": "CopyDone sent, rows counted",
    "record": "the ledger's row",
    "commit": "COMMIT under way",
    "after": "committed",
}
ORDER = tuple(PHASES)

# How statements to the dest begin, or what they hold, that begin a phase.
_MARKS = (
    ("lock", b'INTO "copypipe"."attempt"'),
    ("lock", b"pg_advisory_xact_lock"),
    ("clear", b"EXCLUSIVE MODE"),
    ("stream", b"COPY "),
    ("record", b'INTO "copypipe"."slice"'),
)


class Course:
    """The phase of one copy, and who serves it."""

    def __init__(self, *, records: bool = True) -> None:
        """Follow a copy that writes into the ledger, or one that does not."""
        self.phase = "plan"
        self._decides = not records
        """The next COMMIT is that of the rows: those of what is only told of come before."""
        self.pids: dict[str, int] = {}
        """The processes that serve it, by side."""
        self._lock = threading.Lock()

    def hear(self, side: str, frame: Frame) -> None:
        """Take note of a message of the copy's first try, before it is handed on."""
        if frame.link != 1:
            return
        if frame.sender == "server" and frame.kind == b"K":
            self.pids[side] = int.from_bytes(frame.body[:4], "big")
        if side == "dest":
            with self._lock:
                self._advance(frame)

    def _advance(self, frame: Frame) -> None:
        if frame.sender == "client" and frame.kind == b"Q":
            for phase, mark in _MARKS:
                if mark in frame.body:
                    self._reach(phase)
                    self._decides |= phase == "record"
            if frame.body == b"COMMIT\0" and self._decides and self._has("record"):
                self._reach("commit")
        elif frame.sender == "client" and frame.kind == b"c":
            self._reach("end")
        elif frame.sender == "server" and frame.kind == b"C":
            if self.phase == "end" and frame.body.startswith(b"COPY "):
                self._reach("record")
            elif self.phase == "commit" and frame.body == b"COMMIT\0":
                self._reach("after")

    def _has(self, phase: str) -> bool:
        return ORDER.index(self.phase) >= ORDER.index(phase)

    def _reach(self, phase: str) -> None:
        if not self._has(phase):
            self.phase = phase
