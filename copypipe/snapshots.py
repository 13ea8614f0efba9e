"""One snapshot of the source for many transactions: a leader holds it, workers read it.

The identifier is valid only while the transaction that exported it lives (pg_export_snapshot in the
documentation of "Snapshot Synchronization Functions"), so the leader says something now and then,
and whoever comes to it too late fails: a fresh snapshot would show rows of another moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from copypipe import catalog
from copypipe.errors import CopypipeError
from copypipe.horizons import Horizon, Instance
from copypipe.servers import Session
from copypipe.statements import sessions

# Firewalls and poolers forget a connection that is silent for some minutes; five at least.
HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What workers need to read as the leader does."""

    identifier: str
    seen: Horizon
    """How far the source was complete, looked at before the snapshot was taken."""
    instance: Instance
    """The server that it is of: another one may have one of the same name."""


@contextmanager
def held(
    session: Session, seen: Horizon, lost: Callable[[CopypipeError], None]
) -> Iterator[Snapshot]:
    """Export the snapshot of the session's open transaction, and keep that alive in the block.

    The transaction has locked what is read: TRUNCATE and rewrites by ALTER TABLE do not respect
    snapshots, so nobody may begin one meanwhile. `lost` is told, in a thread of its own, when the
    leader has died.
    """
    instance = catalog.instance(session)
    identifier = session.fetch_one(sessions.export_snapshot())[0]
    with kept(session, lost):
        yield Snapshot(identifier, seen, instance)


@contextmanager
def kept(session: Session, lost: Callable[[CopypipeError], None]) -> Iterator[None]:
    """Say something now and then in the session's open transaction, within the block.

    Nobody else may use the session meanwhile; `lost` is that of `held`.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                session.fetch(sessions.heartbeat())
            except CopypipeError as error:
                lost(error)
                return

    heart = threading.Thread(target=beat, name="copypipe heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join(HEARTBEAT_SECONDS)
