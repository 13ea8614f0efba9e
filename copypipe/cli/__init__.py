"""The command line: words become a request and one call; outcomes become text and exit codes."""

from __future__ import annotations

import gc
import os
import sys

from copypipe.cli.signals import guard
from copypipe.errors import Interrupted


def main() -> None:
    """Run copypipe and exit with one of the documented codes."""
    # A shell loop pays for the start of each slice. Importing makes many objects and no garbage;
    # looking for it all the same takes some 10 of the 140 ms of CPU by which a small copy exceeds
    # the import of its libraries (tests/acceptance/test_start_up.py). Commands enable it again.
    gc.disable()
    _open_standard_streams()
    guard.install()
    try:
        from copypipe.cli.app import app  # the signals are answered while this takes its time

        app()
    except (Interrupted, KeyboardInterrupt) as interrupt:  # no command had begun its work
        sys.exit(interrupt.exit_code if isinstance(interrupt, Interrupted) else 130)


def _open_standard_streams() -> None:
    """Give 0, 1 and 2 back their meaning where the caller closed them.

    A connection would get the free number, and a message to stderr would go into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        # A name that the locale cannot spell must not turn a success into a failure.
        getattr(sys, name).reconfigure(errors="backslashreplace")
