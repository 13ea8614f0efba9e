"""Many things a few at a time: each is done once, errors are heard, and all end together."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from copypipe import workers
from copypipe.workers import Stop, Stopped


class Opened:
    """Workers that are counted; each does `do`."""

    def __init__(self, do: Callable[[int], int]) -> None:
        self.do = do
        self.opened = self.closed = 0
        self.threads: set[int] = set()

    @contextmanager
    def __call__(self) -> Iterator[Callable[[int], int]]:
        self.opened += 1
        self.threads.add(threading.get_ident())
        try:
            yield self.do
        finally:
            self.closed += 1


@pytest.mark.parametrize("jobs", [1, 3, 50])
def test_each_is_done_once(jobs: int) -> None:
    opened = Opened(lambda item: item * 2)
    found = list(workers.each(range(20), jobs, opened, Stop()))
    assert sorted(found) == list(range(0, 40, 2))
    assert opened.opened == opened.closed == min(jobs, 20)
    assert threading.get_ident() not in opened.threads


def test_nothing_to_do_opens_nothing() -> None:
    opened = Opened(lambda item: item)
    assert list(workers.each([], 4, opened, Stop())) == []
    assert opened.opened == 0


def test_one_worker_keeps_the_order() -> None:
    assert list(workers.each(range(9), 1, Opened(lambda item: item), Stop())) == list(range(9))


def test_they_run_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=5)

    def do(item: int) -> int:
        meet.wait()
        return item

    assert sorted(workers.each(range(3), 3, Opened(do), Stop())) == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), MemoryError()])
def test_an_error_of_one_ends_all(error: Exception) -> None:
    stop, slow = Stop(), threading.Event()

    def do(item: int) -> int:
        if item == 1:
            raise error
        while not slow.is_set():
            stop.check()
            time.sleep(0.01)
        return item

    opened = Opened(do)
    with pytest.raises(type(error)):
        list(workers.each(range(9), 2, opened, stop))
    assert opened.closed == opened.opened
    with pytest.raises(Stopped):
        stop.check()


def test_an_error_of_opening() -> None:
    @contextmanager
    def refusing() -> Iterator[Callable[[int], int]]:
        raise PermissionError
        yield lambda item: item

    with pytest.raises(PermissionError):
        list(workers.each(range(3), 2, refusing, Stop()))


def test_who_stops_listening_ends_all() -> None:
    stop, done = Stop(), []

    def do(item: int) -> int:
        done.append(item)
        return item

    found = workers.each(range(1000), 1, Opened(do), stop)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        stop.check()
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count


def test_what_does_not_end_is_left_to_itself() -> None:
    hangs = threading.Event()

    def do(item: int) -> int:
        if item:
            hangs.wait(20)
        return item

    began = time.monotonic()
    found = workers.each(range(2), 2, Opened(do), Stop())
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 1.9
    hangs.set()


def test_what_is_under_way_ends_and_nothing_more_is_begun() -> None:
    stop, meet = Stop(), threading.Barrier(3, timeout=5)

    def do(item: int) -> int:
        if item < 3:
            meet.wait()
        time.sleep(0.005)
        return item

    found = []
    for each in workers.each(range(1000), 3, Opened(do), stop):
        found.append(each)
        stop.begin_nothing()

    assert {0, 1, 2} <= {*found}
    assert len(found) < 1000
    stop.check()


def test_what_is_done_while_all_ends_is_told() -> None:
    stop, under_way, late = Stop(), threading.Event(), list[int]()

    def do(item: int) -> int:
        if item:
            under_way.set()
            time.sleep(0.3)  # a COMMIT, which is not stopped
        return item

    found = workers.each(range(2), 2, Opened(do), stop, late.append)
    assert next(found) == 0
    assert under_way.wait(5)
    found.close()  # type: ignore[attr-defined]

    assert late == [1]


def test_who_has_done_all_stops_nobody() -> None:
    stop = Stop()
    assert len(list(workers.each(range(9), 2, Opened(lambda item: item), stop))) == 9
    stop.check()


def test_what_follows_is_done_too() -> None:
    """Each item brings those below it; the iteration ends behind the last of them."""
    found = list(
        workers.each(
            [3],
            2,
            Opened(lambda item: item),
            Stop(),
            follow=lambda item, _: [item - 1, item - 1] if item else [],
        )
    )
    assert sorted(found) == sorted([3] + [2] * 2 + [1] * 4 + [0] * 8)


def test_who_has_nothing_to_do_waits_for_what_may_follow() -> None:
    meet = threading.Barrier(2, timeout=5)

    def do(item: int) -> int:
        if item:
            meet.wait()
        return item

    found = list(
        workers.each([0], 2, Opened(do), Stop(), follow=lambda item, _: [] if item else [1, 2])
    )
    assert sorted(found) == [0, 1, 2]


def test_the_lowest_rank_comes_first() -> None:
    """Also among what follows, which others have been waiting for."""
    found = list(
        workers.each(
            [5, 3, 9],
            1,
            Opened(lambda item: item),
            Stop(),
            follow=lambda item, _: [1] if item == 3 else [],
            rank=lambda item: item,
        )
    )
    assert found == [3, 1, 5, 9]
