"""When a copy may be ended by somebody else: up to COMMIT, and not from there on."""

import pytest

from copypipe.attempts import Ending
from copypipe.errors import ConnectionLost
from copypipe.events import Committing, Decided, Event, Progress, Retried
from copypipe.workers import Stop, Stopped

RETRIED = Retried(1, 4, ConnectionLost("lost"), undecided=False, seconds=1.0)
UNDECIDED = Retried(1, 4, ConnectionLost("lost"), undecided=True, seconds=1.0)
MOVED = Progress(bytes=1, rows=1)


def heard(*events: Event) -> Ending:
    """Return what has heard these, and is asked to end then."""
    stop = Stop()
    ending = Ending(stop)
    for event in events:
        ending.look()
        ending.hear(event)
    stop()
    return ending


@pytest.mark.parametrize(
    "events",
    [
        [],
        [MOVED],
        [Committing(), Decided(committed=False)],
        [Committing(), Decided(committed=False), RETRIED],
        [Committing(), UNDECIDED],
    ],
)
def test_it_ends_before_commit(events: list[Event]) -> None:
    with pytest.raises(Stopped):
        heard(*events).look()
    for event in (MOVED, Committing()):
        with pytest.raises(Stopped):
            heard(*events).hear(event)


@pytest.mark.parametrize("events", [[Committing()], [Committing(), Decided(committed=True)]])
def test_it_does_not_end_from_commit_on(events: list[Event]) -> None:
    ending = heard(*events)

    ending.look()
    ending.hear(MOVED)


def test_the_outcome_is_heard_after_it_was_asked_to_end() -> None:
    """What was committed is told as done; what was not ends."""
    heard(Committing()).hear(Decided(committed=True))
    with pytest.raises(Stopped):
        heard(Committing()).hear(Decided(committed=False))


def test_it_knows_what_is_left_behind() -> None:
    assert heard(Committing()).is_committing
    assert not heard(Committing(), Decided(committed=True)).is_committing
    assert heard(Committing(), UNDECIDED).is_undecided
    assert not heard(Committing(), UNDECIDED, Committing(), Decided(committed=True)).is_undecided
