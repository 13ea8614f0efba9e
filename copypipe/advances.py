"""How far several workers are, told to one listener, who is called by one of them at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from copypipe.events import Advanced, Event, Listener, Progress

W = TypeVar("W")

# How often progress is told.
_SECONDS = 0.1


def _unchanged() -> None:
    """Change nothing."""


class Advance(Generic[W]):
    """What all workers have done: what `done` returns, and what is under way."""

    def __init__(self, listen: Listener, done: Callable[[], Advanced]) -> None:
        self._listen = listen
        self._done = done
        self._lock = threading.Lock()
        self._under_way: dict[W, Progress] = {}
        self._told = 0.0

    def hear(self, event: Event) -> None:
        """Pass on an event of a worker."""
        with self._lock:
            self._listen(event)

    def move(self, worker: W, progress: Progress) -> None:
        """Take note of how far a worker is with what it does."""
        with self._lock:
            self._under_way[worker] = progress
            if time.monotonic() - self._told >= _SECONDS:
                self._tell()

    def end(self, worker: W, change: Callable[[], object] = _unchanged) -> None:
        """Take note that a worker is done with it; `change` is made before anybody is told."""
        with self._lock:
            self._under_way.pop(worker, None)
            change()
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        done, moving = self._done(), self._under_way.values()
        self._listen(
            replace(
                done,
                bytes=done.bytes + sum(each.bytes for each in moving),
                rows=done.rows + sum(each.rows for each in moving),
            )
        )
