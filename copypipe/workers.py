"""Do many things a few at a time. Knows no SQL."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# How soon whoever waits, for results or for a server, looks whether it is to end: a signal leaves
# two seconds.
LOOK_SECONDS = 0.2

# How long all workers have to end what they do, within the two seconds of a signal; a server that
# does not let go is left to itself.
_END_SECONDS = 1.0


class Stopped(Exception):
    """The work of all workers is to end."""


class Stop:
    """Whether all is to end, at once or after what is under way; asked by whoever waits."""

    def __init__(self) -> None:
        # No Event: its lock would wait for itself where a signal comes while it is set.
        self._asked = self._enough = False
        self.why: Exception | None = None
        """What ended all of it, the first of several; None where somebody asked for it."""

    def __call__(self, why: Exception | None = None) -> None:
        """Ask all to end at once; may be called by a signal handler."""
        self.why = self.why or why
        self._asked = True

    def begin_nothing(self) -> None:
        """Let all end what they do, and begin nothing more."""
        self._enough = True

    @property
    def is_enough(self) -> bool:
        """Return whether nothing more is to be begun."""
        return self._enough

    def check(self) -> None:
        """Raise Stopped where all is to end."""
        if self._asked:
            raise Stopped


def _nothing(item: object, found: object) -> tuple[()]:
    return ()


def _in_order(item: object) -> float:
    return 0.0


class _Waiting(Generic[T]):
    """What is to be done, for several workers: those of the lowest rank first, then in order."""

    def __init__(self, rank: Callable[[T], float]) -> None:
        self.count = 0
        """All that there ever were."""
        self._rank = rank
        self._changed = threading.Condition()
        self._items: list[tuple[float, int, T]] = []
        self._undone = 0

    def add(self, items: Iterable[T]) -> None:
        """Add items."""
        with self._changed:
            for item in items:
                heapq.heappush(self._items, (self._rank(item), self.count, item))
                self.count += 1
                self._undone += 1
            self._changed.notify_all()

    def done(self) -> None:
        """Take note that one is done, and what follows from it is there."""
        with self._changed:
            self._undone -= 1
            self._changed.notify_all()

    def get(self, stop: Stop) -> T | None:
        """Return the next one; waits while what is under way may bring some. None for the end."""
        with self._changed:
            while not self._items:
                if not self._undone or stop.is_enough:
                    return None
                stop.check()
                self._changed.wait(LOOK_SECONDS)
            return heapq.heappop(self._items)[-1]


def each(
    items: Iterable[T],
    jobs: int,
    worker: Callable[[], AbstractContextManager[Callable[[T], R]]],
    stop: Stop,
    late: Callable[[R], object] = lambda found: None,
    *,
    follow: Callable[[T, R], Iterable[T]] = _nothing,
    rank: Callable[[T], float] = _in_order,
) -> Generator[R]:
    """Yield what becomes of each item, in the order in which they are done.

    Each of the workers is opened in its own thread, and does one item after the other; it raises
    nothing but Stopped. Whatever ends the iteration early stops them, and `late` is told what came
    of items all the same; where somebody else has stopped them, it raises why, or Stopped.

    `follow` returns what is to be done once an item is, called by the worker; of what waits the
    lowest `rank` comes first.
    """
    waiting = _Waiting(rank)
    waiting.add(items)
    done: queue.SimpleQueue[R | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            with worker() as do:
                while not stop.is_enough:
                    stop.check()
                    item = waiting.get(stop)
                    if item is None:
                        return
                    found = do(item)
                    waiting.add(follow(item, found))
                    waiting.done()
                    done.put(found)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody hears it
            done.put(error)

    # Daemons: a thread that hangs in a connection attempt must not keep the process from ending.
    number = jobs if follow is not _nothing and waiting.count else min(jobs, waiting.count)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    ended, told = False, 0
    try:
        # What follows from an item is counted before what became of that is told.
        while told < waiting.count:
            try:
                found = _next(done, threads)
            except Stopped:
                if stop.why is not None:
                    raise stop.why from None
                stop.check()
                if stop.is_enough:
                    break
                raise
            if isinstance(found, BaseException):
                raise found
            told += 1
            yield found
        ended = True
    finally:
        if not ended:
            stop()
        deadline = time.monotonic() + _END_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while not done.empty():
            found = done.get_nowait()
            if not isinstance(found, BaseException):
                late(found)


def _next(
    done: queue.SimpleQueue[R | BaseException], threads: Sequence[threading.Thread]
) -> R | BaseException:
    """Wait for the next; raises Stopped where all workers have ended."""
    while True:
        alive = any(thread.is_alive() for thread in threads)
        try:
            return done.get(timeout=LOOK_SECONDS)  # a signal is heard between two of these
        except queue.Empty:
            if not alive:
                raise Stopped from None
