"""Bytes flow evenly, no faster than asked, and never in a burst after a pause."""

import pytest

from copypipe.relay.paces import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    pace = Pace(None, clock)
    pace.took(1 << 40)

    assert pace.free <= clock()


def test_what_flows_takes_its_time() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    for _ in range(50):
        assert pace.free <= clock()
        pace.took(100)
        clock.now = pace.free

    assert clock() == pytest.approx(100 + 50 * 100 / 1000)


def test_a_pause_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    pace.took(100)
    clock.now += 3600
    pace.took(500)

    assert pace.free == pytest.approx(clock() + 0.5)
