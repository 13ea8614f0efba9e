"""What a silent server is doing: asked over a connection of its own, so that nothing healthy is
ended and nothing dead is waited for.

Silence is normal: a sort before the first row, a filter over terabytes without an index, a long
DELETE, foreign keys that are checked after the last row. So a wait is ended only where it cannot
end by itself: the server's process is gone, cannot be reached any more, or waits for us to read or
write while nothing comes and nothing is owed, which is what a network that lost the connection's
packets looks like.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from copypipe.errors import ConnectionLost, CopypipeError, Side, TransientError
from copypipe.events import Listener, Silent
from copypipe.servers import OBSERVER_SECONDS, Session, ask
from copypipe.statements import sessions

# After so long without a byte the server is asked, and again after as long. Long enough that most
# runs never open another connection, and short for a person who wonders.
SILENCE_SECONDS = 30.0

# One answer could be the moment between two steps; after so many in a row it is a fact.
CERTAIN = 2

# How often in a row nobody may answer, or not in time: two minutes and a half, in which TCP would
# notice too (keepalives), and a host that is merely overloaded answers once. A server that answers
# that it takes no more connections is there.
UNREACHABLE = 5


@dataclass
class _Asked:
    """What is known of one side."""

    observer: psycopg.Connection[Any] | None = None
    after: float = 0.0
    """When to ask again (time.monotonic)."""
    seen: bool = False
    """The process was there when it was asked before."""
    stuck: int = 0
    """How often in a row it waited for us, with nothing moved meanwhile."""
    bytes: str | None = None
    """What it had copied when it was asked before; a slow link still moves."""
    unreachable: int = 0


@dataclass
class Watch:
    """Watches over the waits of one transfer; call `close` in the end.

    Called with whom the wait is for and since when nothing has moved. Raises ConnectionLost where
    waiting is in vain, TransientError after `limit` seconds of silence where there is one.
    """

    source: Session
    dest: Session
    listen: Listener
    limit: float | None = None
    _asked: dict[Side, _Asked] = field(
        default_factory=lambda: {"source": _Asked(), "dest": _Asked()}
    )

    def __call__(self, side: Side, moved: float, /) -> float:
        """Ask the server after a long silence; returns when to be called again."""
        now = time.monotonic()
        ends = moved + self.limit if self.limit is not None else float("inf")
        if now >= ends:
            raise TransientError(
                f"{side}: nothing came for {now - moved:.0f} s",
                detail="That is the limit of --stall-timeout.",
                side=side,
            )
        asked = self._asked[side]
        if now >= max(moved + SILENCE_SECONDS, asked.after):
            if moved > asked.after - SILENCE_SECONDS:
                asked.stuck = asked.unreachable = 0  # something has moved since
            self._ask(side, asked, now - moved)
            asked.after = time.monotonic() + SILENCE_SECONDS
        return min(max(moved + SILENCE_SECONDS, asked.after), ends)

    def close(self) -> None:
        """Close what was opened."""
        for asked in self._asked.values():
            if asked.observer is not None:
                with suppress(psycopg.Error):
                    asked.observer.close()
                asked.observer = None

    def _ask(self, side: Side, asked: _Asked, seconds: float) -> None:
        session = self.source if side == "source" else self.dest
        try:
            if asked.observer is None:
                asked.observer = session.observer()
            pid = session.conn.pgconn.backend_pid
            query = sessions.activity(pid, session.application_name)
            row = ask(asked.observer, query, OBSERVER_SECONDS)
        except (psycopg.Error, CopypipeError, TimeoutError) as error:
            if asked.observer is not None:
                asked.observer.close()
                asked.observer = None
            dead = ConnectionLost | psycopg.OperationalError | TimeoutError
            asked.unreachable = asked.unreachable + 1 if isinstance(error, dead) else 0
            self.listen(Silent(side, seconds, "cannot be asked"))
            if asked.unreachable >= UNREACHABLE:
                raise _dead(side, "cannot be reached any more") from None
            return
        asked.unreachable = 0
        if row is None:
            # A pooler tells a number of its own; then nothing can be concluded.
            if asked.seen:
                raise _dead(side, "ended the process that worked for us")
            self.listen(Silent(side, seconds, "does not show what it is doing"))
            return
        asked.seen = True
        _, kind, event, blockers, copied = row
        waits = kind == "Client" and copied == asked.bytes
        asked.stuck, asked.bytes = asked.stuck + 1 if waits else 0, copied
        if asked.stuck >= CERTAIN:
            raise _dead(side, "waits for us, and nothing it sends arrives")
        self.listen(Silent(side, seconds, _doing(side, kind, event, blockers)))


def _dead(side: Side, why: str) -> ConnectionLost:
    return ConnectionLost(f"{side}: the connection is dead", detail=f"The server {why}.", side=side)


def _doing(side: Side, kind: str | None, event: str | None, blockers: str | None) -> str:
    """Say what pg_stat_activity's wait events mean for whoever waits ("Wait Events")."""
    holders = (blockers or "").strip("{}")
    if holders:
        return f"waiting for a lock held by backend {holders.replace(',', ', ')}"
    if kind is None:
        return "computing" if side == "source" else "working"
    if kind == "IO":
        return f"reading or writing its disk ({event})"
    if kind == "Client":
        return f"waiting for us ({event})"
    return f"waiting ({kind}: {event})"
