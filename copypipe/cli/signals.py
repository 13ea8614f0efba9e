"""Signals: SIGINT, SIGTERM and SIGHUP roll back, but never cut a COMMIT in flight."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Literal

from copypipe import events
from copypipe.errors import CommitUnknown, Interrupted

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Guard:
    """Turns signals into `Interrupted`; a listener, because COMMIT's outcome must be awaited.

    While COMMIT is in flight the first signal waits for the outcome, which the exit code then
    tells; a second one leaves at once. Where nothing was committed and the run would try again, it
    ends there instead. Where nobody can tell (there is no ledger) and the slice is copied again,
    the first one leaves, with the exit code that says so. A second one leaves at once also while
    the run rolls back, since the servers do that by themselves when the connection closes, and when
    it only has to tell what happened.
    """

    def __init__(self) -> None:
        self._phase: Literal["running", "stopping", "committing", "undecided", "decided"] = (
            "running"
        )
        self._signum = 0
        self._committed = False
        self.unknown: Callable[[], str] = lambda: (
            "left while nobody knew whether COMMIT had happened: run the same command again"
        )
        """What is said by a run that leaves while nobody knows."""

    def install(self) -> None:
        """Answer the signals from now on; one that is ignored (nohup) stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._answer)

    def __call__(self, event: events.Event, /) -> None:
        """Take note of COMMIT; raises Interrupted where an earlier one was lost.

        Python cannot raise out of a callback from C (a notice of the server) and drops the
        exception there. The run must not go on to COMMIT after that.
        """
        if isinstance(event, events.Noticed):
            return
        if self._phase == "stopping":
            raise Interrupted(self._signum)
        if isinstance(event, events.Committing):
            self._phase = "committing"
        elif isinstance(event, events.Decided):
            self._phase = "decided"
            self._committed = event.committed
        elif isinstance(event, events.Retried) and event.undecided:
            self._phase = "undecided"
            if self._signum:  # it came while the outcome was awaited
                self._leave_undecided()
        elif isinstance(event, events.Retried) and self._phase == "decided":
            self._phase = "running"
            if self._signum:
                self._phase = "stopping"
                raise Interrupted(self._signum)

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        first = self._signum == 0
        self._signum = signum
        if self._phase == "running":
            self._phase = "stopping"
            raise Interrupted(signum)
        if self._phase == "committing" and first:
            _tell("waiting for the outcome of COMMIT; a second signal leaves at once")
        elif self._phase in ("committing", "undecided"):
            self._leave_undecided()
        elif self._phase == "stopping":
            os._exit(128 + signum)
        elif not first:
            os._exit(0 if self._committed else 1)

    def _leave_undecided(self) -> None:
        """Leave at once, without the rollback that would claim to know the outcome."""
        _tell(self.unknown())
        os._exit(CommitUnknown.exit_code)


def _tell(text: str) -> None:
    with suppress(OSError):  # a terminal that hung up, a pipe that nobody reads
        os.write(2, f"\n{text}\n".encode())


guard = Guard()
