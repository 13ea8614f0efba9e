"""copypipe receipt, init and clean: read, make, prune and remove the ledger of a dest."""

from __future__ import annotations

from typing import Annotated

import typer

from copypipe import reporting, requests, slices
from copypipe.cli.copying import endpoint
from copypipe.cli.options import By, Day, DestTable, From, Month, Timezone, To
from copypipe.cli.output import ask, log, on_terminal, outcome, say
from copypipe.cli.words import wanted
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


def receipt(
    table: DestTable,
    dest: Dest = None,
    by: By = "created_at",
    timezone: Timezone = "UTC",
    day: Day = None,
    month: Month = None,
    start: From = None,
    stop: To = None,
    everything: Annotated[bool, typer.Option("--all", help="All rows, as one slice.")] = False,
) -> None:
    """Print what the ledger tells of a slice that was copied, as JSON: one object a line.

    Statements, bounds, snapshot, versions, rows, digest, and the ids of later copies that have rows
    of the same times (superseded_by). The last copy of exactly this slice; where there is none, all
    that have rows of it and still count. Exits with 6 where nothing is recorded. Asks the dest
    alone, for today and the zone too, and needs SELECT on copypipe.slice.

    Example: copypipe receipt public.users --day 2018-04-29 --dest service=dwh
    """
    with outcome(as_json=False):
        at = endpoint("dest", dest)
        asked = requests.Recorded(
            table=table,
            wanted=wanted(
                day=day,
                month=month,
                start=start,
                stop=stop,
                everything=everything,
                takes_where=False,
            ),
            by=by,
            timezone=timezone,
        )
        requests.check_endpoint("dest", at)
        requests.check_recorded(asked)
        from copypipe import keepers  # psycopg, which --help need not pay for

        for found in keepers.receipts(at, asked):
            say(reporting.receipt_json(found))


def clean(
    table: Annotated[
        str | None,
        typer.Argument(help="With --forget: table at the dest, as in SQL: public.users."),
    ] = None,
    dest: Dest = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Remove only what is older and does not count any more: attempts that have ended, "
            "and copies of which later ones tell all times.",
            metavar="TIME",
        ),
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(
            help="Remove only what tells of this range of TABLE: a day, 0..1000000, "
            "2018-04-01..2018-05-01 (the end is exclusive), or all.",
            metavar="RANGE",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="With --forget: column of the range; created_at.", metavar="COLUMN"),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="With --forget: zone in which its days are counted; UTC.")
    ] = None,
    wait_lock: WaitLock = "10min",
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
) -> None:
    """Remove the ledger of the dest, or some of it; tables that were copied stay as they are.

    Without the ledger nobody knows what was copied, and slices by any column may be copied first.
    --older-than keeps what still counts, however old it is: whatever skips or refuses what was
    copied relies on it. --forget removes that too, for the slices of a range, so that they are
    copied again, and --mode append adds their rows again; a copy that has other times as well is
    forgotten as a whole.

    Example: copypipe clean public.users --forget 2018-04-29 --dest service=dwh
    """
    with outcome(as_json=False):
        _check_choice(table, forget, older_than, by, timezone)
        at, seconds = endpoint("dest", dest), requests.duration(wait_lock)
        requests.check_endpoint("dest", at)
        requests.check_wait(seconds)
        older = requests.duration(older_than) if older_than is not None else None
        if older is not None:
            requests.check_age(older)
        asked = None
        if table is not None and forget is not None:
            asked = requests.Recorded(
                table=table,
                wanted=slices.parse_range(forget),
                by="created_at" if by is None else by,
                timezone="UTC" if timezone is None else timezone,
            )
            requests.check_recorded(asked)
        from copypipe import keepers  # psycopg, which --help need not pay for

        def agrees(what: str) -> bool:
            return yes or _agrees(what)

        if older is not None:
            say(keepers.prune(at, seconds, older, agrees, dry_run=dry_run))
        elif asked is not None:
            say(keepers.forget(at, seconds, asked, agrees, dry_run=dry_run))
        else:
            say(keepers.remove(at, seconds, agrees, dry_run=dry_run))


def _check_choice(
    table: str | None,
    forget: str | None,
    older_than: str | None,
    by: str | None,
    timezone: str | None,
) -> None:
    """Raise UsageError for options that do not go together: more might be removed than is meant."""
    if forget is not None and older_than is not None:
        raise UsageError("--forget and --older-than were both given", hint="Choose one.")
    if forget is not None and table is None:
        raise UsageError(
            "--forget of which table?",
            hint="Name the table of the dest, as in copypipe clean public.users --forget "
            "2018-04-29.",
        )
    for given, name in ((table, f"the table {table}"), (by, "--by"), (timezone, "--timezone")):
        if given is not None and forget is None:
            raise UsageError(
                f"{name} was given without --forget",
                hint="Give --forget with a range, or all, or leave it out to remove the whole "
                "ledger.",
            )


def _agrees(what: str) -> bool:
    if on_terminal():
        log(one_line(what))
        return ask("Remove it?")
    raise UsageError(what, hint="Give --yes if it shall be removed.")
