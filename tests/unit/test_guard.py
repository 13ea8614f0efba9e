"""What a signal does in which phase: Guard hears the events and answers the signals."""

import os
import signal

import pytest

from copypipe.cli import signals
from copypipe.cli.signals import Guard
from copypipe.errors import ConnectionLost, Interrupted
from copypipe.events import Cleared, Committing, Decided, Retried

LOST = ConnectionLost("dest: the connection was lost", side="dest")
AGAIN = Retried(1, 4, LOST, undecided=False, seconds=1.0)
UNDECIDED = Retried(1, 4, LOST, undecided=True, seconds=1.0)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the codes with which the process would have left at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "_tell", lambda text: None)
    return codes


def heard(*events: object) -> Guard:
    guard = Guard()
    for event in events:
        guard(event)
    return guard


def test_a_signal_ends_a_run_that_works(left: list[int]) -> None:
    with pytest.raises(Interrupted):
        heard(Cleared(1))._answer(signal.SIGTERM, None)
    assert left == []


def test_the_first_one_waits_for_commit_and_the_second_leaves(left: list[int]) -> None:
    guard = heard(Committing())

    guard._answer(signal.SIGINT, None)
    assert left == []
    guard._answer(signal.SIGINT, None)
    assert left == [75]


def test_one_that_waited_does_not_undo_what_was_committed(left: list[int]) -> None:
    guard = heard(Committing())
    guard._answer(signal.SIGINT, None)

    guard(Decided(committed=True))

    assert left == []


def test_one_that_waited_ends_a_run_that_would_try_again(left: list[int]) -> None:
    guard = heard(Committing())
    guard._answer(signal.SIGTERM, None)
    guard(Decided(committed=False))

    with pytest.raises(Interrupted) as caught:
        guard(AGAIN)

    assert caught.value.exit_code == 143


def test_a_run_that_tries_again_can_be_ended_as_before(left: list[int]) -> None:
    guard = heard(Committing(), Decided(committed=False), AGAIN)

    with pytest.raises(Interrupted):
        guard._answer(signal.SIGHUP, None)


def test_while_nobody_knows_whether_it_committed_a_signal_leaves_and_says_so(
    left: list[int],
) -> None:
    """To say "rolled back" would be a guess; the try that settles it may take hours."""
    guard = heard(Committing(), UNDECIDED, Cleared(1))

    guard._answer(signal.SIGINT, None)

    assert left == [75]


def test_one_that_waited_for_what_nobody_knows_leaves(left: list[int]) -> None:
    guard = heard(Committing())
    guard._answer(signal.SIGINT, None)
    assert left == []

    guard(UNDECIDED)

    assert left == [75]


def test_the_try_that_settles_it_is_awaited_again(left: list[int]) -> None:
    guard = heard(Committing(), UNDECIDED, Committing())

    guard._answer(signal.SIGINT, None)
    assert left == []
    guard(Decided(committed=True))
    assert left == []
