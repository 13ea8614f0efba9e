"""copypipe init and clean: make and remove the ledger of a dest."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from copypipe import requests
from copypipe.cli.copying import endpoint
from copypipe.cli.output import ask, log, outcome, say
from copypipe.errors import UsageError, one_line

Dest = Annotated[
    str | None,
    typer.Option(
        help="Server whose ledger it is: URI, keywords or service=NAME; else COPYPIPE_DEST.",
        metavar="CONNINFO",
        show_default=False,
    ),
]
WaitLock = Annotated[
    str,
    typer.Option(help="How long to wait for runs that use it; 0 gives up at once.", metavar="TIME"),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Say what would be done and change nothing.")
]


def init(dest: Dest = None, wait_lock: WaitLock = "10min", dry_run: DryRun = False) -> None:
    """Make the ledger at the dest: the schema copypipe, in which copies are recorded.

    The first copy makes it too; a role that may not can be given what it needs by its owner
    (docs/ledger.md). Where it is there already, nothing happens.
    """
    with outcome(as_json=False):
        at, seconds = endpoint("dest", dest), requests.duration(wait_lock)
        requests.check_endpoint("dest", at)
        requests.check_wait(seconds)
        from copypipe import keepers  # psycopg, which --help need not pay for

        say(keepers.make(at, seconds, dry_run=dry_run))


def clean(
    dest: Dest = None,
    wait_lock: WaitLock = "10min",
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
) -> None:
    """Remove the ledger of the dest; tables that were copied stay as they are.

    What was copied is then unknown, and slices by any column may be copied first again.
    """
    with outcome(as_json=False):
        at, seconds = endpoint("dest", dest), requests.duration(wait_lock)
        requests.check_endpoint("dest", at)
        requests.check_wait(seconds)
        from copypipe import keepers  # psycopg, which --help need not pay for

        say(keepers.remove(at, seconds, lambda what: yes or _agrees(what), dry_run=dry_run))


def _agrees(what: str) -> bool:
    if sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty():
        log(one_line(what))
        return ask("Remove it?")
    raise UsageError(what, hint="Give --yes if it shall be removed.")
