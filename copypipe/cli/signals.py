"""Signals: SIGINT, SIGTERM and SIGHUP roll back, but never cut a COMMIT in flight."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Literal

from copypipe import events
from copypipe.errors import CommitUnknown, Interrupted

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Guard:
    """Turns signals into `Interrupted`; a listener, because COMMIT's outcome must be awaited.

    While COMMIT is in flight the first signal waits for the outcome, which the exit code then
    tells; a second one leaves at once. While the run rolls back a second signal leaves at once
    too: the servers roll back by themselves when the connection closes.
    """

    def __init__(self) -> None:
        self._phase: Literal["running", "committing", "decided", "stopping"] = "running"
        self._pressed = False

    def install(self) -> None:
        """Answer the signals from now on; one that is ignored (nohup) stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._answer)

    def __call__(self, event: events.Event, /) -> None:
        """Take note of COMMIT."""
        if isinstance(event, events.Committing):
            self._phase = "committing"
        elif isinstance(event, events.Decided):
            self._phase = "decided"

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        if self._phase == "running":
            self._phase = "stopping"
            raise Interrupted(signum)
        if self._phase == "stopping":
            os._exit(128 + signum)
        if self._phase == "committing":
            if self._pressed:
                os.write(2, b"\nleft while COMMIT was under way: run the same command again\n")
                os._exit(CommitUnknown.exit_code)
            self._pressed = True
            os.write(2, b"\nwaiting for the outcome of COMMIT; a second signal leaves at once\n")


guard = Guard()
