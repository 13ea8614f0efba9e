"""Places at which a run may be made to die, to prove that nothing is lost by that.

`COPYPIPE_CRASHPOINT=name:n` kills the process (SIGKILL) when it reaches the place `name` for the
n-th time. The places are those that call `reach`; `ARMED` is a constant of the process, so that a
run without the variable pays for one test of it.
"""

from __future__ import annotations

import os
import signal

_NAME, _, _NUMBER = os.environ.get("COPYPIPE_CRASHPOINT", "").partition(":")

ARMED = bool(_NAME)

_left = int(_NUMBER) if _NUMBER.isdecimal() else 1


def reach(name: str) -> None:
    """Die here, if this is the place."""
    global _left
    if name != _NAME:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
