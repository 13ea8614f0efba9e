"""Waiting for the two servers: without turning, deaf to nothing, and knowing for whom."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from psycopg import pq

from copypipe.errors import Side
from copypipe.servers import Idle


class Ready(NamedTuple):
    """What can be done after a wait."""

    source: bool
    """Something of the source can be read."""
    dest: bool
    """Something of the dest can be read."""
    room: bool
    """The dest's socket takes more."""


@dataclass(slots=True)
class Spent:
    """Where the time of a relay went, in seconds."""

    source: float = 0.0
    """Waiting for the source, with nothing left to hand on."""
    dest: float = 0.0
    """Waiting for the dest to take more, or to end."""
    limit: float = 0.0
    """Resting, because of a rate limit."""
    all: float = 0.0
    """In all; what is missing was spent relaying."""

    @property
    def relaying(self) -> float:
        """Return what was spent neither waiting nor resting."""
        return max(0.0, self.all - self.source - self.dest - self.limit)


@dataclass
class Waits:
    """Waits on the sockets of the two connections."""

    source: pq.abc.PGconn
    dest: pq.abc.PGconn
    idle: Idle
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self._source_fd, self._dest_fd = self.source.socket, self.dest.socket
        self._pollers = {
            "source": _poller((self._source_fd, select.POLLIN), (self._dest_fd, select.POLLIN)),
            "dest": _poller((self._dest_fd, select.POLLIN)),
            "rest": _poller((self._source_fd, _HUNG_UP), (self._dest_fd, select.POLLIN)),
            "room": _poller((self._dest_fd, select.POLLIN | select.POLLOUT)),
        }
        self._began = self._moved = time.monotonic()

    def for_source(self, until: float | None = None) -> Ready:
        """Wait for something of the source, with an ear to the dest."""
        return self._wait("source", "source", until)

    def for_room(self, until: float | None = None) -> Ready:
        """Wait until the dest takes more, with an ear to what it says."""
        return self._wait("room", "dest", until)

    def for_dest(self, until: float | None = None) -> Ready:
        """Wait for something of the dest."""
        return self._wait("dest", "dest", until)

    def rest(self, until: float) -> Ready:
        """Let time pass, with an ear to the dest, and an eye on a source that hangs up."""
        began = time.monotonic()
        ready = self._polled("rest", until)
        self._moved = time.monotonic()
        self.spent.limit += self._moved - began
        return ready

    def moved(self) -> None:
        """Take note that bytes have moved, without a wait."""
        self._moved = time.monotonic()

    def ended(self) -> Spent:
        """Return where the time went."""
        self.spent.all = time.monotonic() - self._began
        return self.spent

    def heard(self) -> bool:
        """Return whether something of the dest can be read, at once."""
        return bool(self._pollers["dest"].poll(0))

    def _wait(self, poller: str, side: Side, until: float | None) -> Ready:
        began = time.monotonic()
        while True:
            ask = self.idle(side, self._moved)
            ready = self._polled(poller, ask if until is None else min(ask, until))
            now = time.monotonic()
            if any(ready) or (until is not None and now >= until):
                break
        setattr(self.spent, side, getattr(self.spent, side) + now - began)
        if any(ready):
            self._moved = now
        return ready

    def _polled(self, poller: str, until: float) -> Ready:
        """Return what is ready, nothing when `until` has passed."""
        timeout = min(max(0.0, until - time.monotonic()), _LONGEST) * 1000
        events = dict(self._pollers[poller].poll(timeout))
        at_source, at_dest = events.get(self._source_fd, 0), events.get(self._dest_fd, 0)
        out = select.POLLOUT
        return Ready(bool(at_source), bool(at_dest & ~out), bool(at_dest & out))


# The peer has closed its end (Linux); elsewhere only POLLHUP and POLLERR tell, which need no
# asking.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)

# poll() takes an int of milliseconds.
_LONGEST = 86400.0


def _poller(*wanted: tuple[int, int]) -> select.poll:
    poller = select.poll()
    for descriptor, events in wanted:
        poller.register(descriptor, events)
    return poller
