"""How a run of many slices is told: the bar, lines of a log, the speed of the last minute."""

import io

import pytest

from copypipe import reporting
from copypipe.events import Advanced
from copypipe.reporting import Bar, Lines, Spark

MB = 1024 * 1024


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def advanced(done: int, count: int, **changes: int) -> Advanced:
    facts = {"slices": 30, "failed": 0, "jobs": 4, "rows": 3_100_000, "estimated_bytes": 90 * MB}
    return Advanced(done=done, bytes=count, **{**facts, **changes})


def test_the_speed_of_the_last_minute() -> None:
    clock, total = Clock(), 0
    spark = Spark(clock)
    for speed in range(1, 21):
        total += speed * MB
        told = spark(total)
        clock.now += Spark.SECONDS

    assert len(told) == Spark.LENGTH
    assert told[-1] == "█"
    assert list(told) == sorted(told)
    clock.now += 60
    assert spark(total) == "", "nothing has moved for a minute"


def test_a_pause_shows_as_a_low_block() -> None:
    clock = Clock()
    spark = Spark(clock)
    spark(8 * MB)
    clock.now += 2 * Spark.SECONDS

    assert spark(16 * MB) == "█▁█"


def test_without_a_terminal_a_line_now_and_then() -> None:
    clock, lines = Clock(), []
    listener = Lines(lines.append, clock=clock)
    for second in range(61):
        clock.now = 100.0 + second
        listener(advanced(second // 5, second * MB, failed=second // 50))

    assert lines == [
        "6/30 slices, 4 jobs, 3.1M rows, 30.0 MB of about 90.0 MB",
        "12/30 slices, 1 failed, 4 jobs, 3.1M rows, 60.0 MB of about 90.0 MB",
    ]


def test_the_bar_counts_all_workers() -> None:
    screen = io.StringIO()
    bar = Bar(screen)
    bar(advanced(1, 10 * MB))
    bar(advanced(12, 45 * MB))
    with bar.aside():
        screen.write("a line\n")
    bar.close()

    assert "12/30 slices, 4 jobs, 3.1M rows" in screen.getvalue()
    assert "50%" in screen.getvalue()
    assert "a line\n" in screen.getvalue()


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (31_400, "31k"),
        (3_140_000, "3.1M"),
        (10**13, "10000G"),
    ],
)
def test_numbers_in_short(count: int, told: str) -> None:
    assert reporting._short(count) == told
