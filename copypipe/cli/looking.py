"""copypipe status: the calendar of a table, and the commands that repair it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from copypipe import reporting, requests, slices
from copypipe.cli.again import given
from copypipe.cli.copying import endpoint
from copypipe.cli.options import (
    By,
    Dest,
    DestSet,
    Every,
    From,
    Into,
    Month,
    Source,
    SourceSet,
    Table,
    Timezone,
    To,
)
from copypipe.cli.output import log, outcome, say
from copypipe.cli.words import wanted
from copypipe.errors import Differs

if TYPE_CHECKING:
    from copypipe.calendars import Calendar, Remedy

# More ranges than that are repaired by one command over all of them, which leaves out what is done.
_MOST_COMMANDS = 10

# What the commands that repair do not take over.
_OWN = ("month", "start", "stop", "count", "as_json")


def status(
    context: typer.Context,
    table: Table,
    source: Source = None,
    dest: Dest = None,
    into: Into = None,
    by: By = "created_at",
    timezone: Timezone = "UTC",
    month: Month = None,
    start: From = None,
    stop: To = None,
    every: Annotated[
        Every, typer.Option(help="Into what slices the range is cut, each a square.")
    ] = Every.DAY,
    count: Annotated[
        bool,
        typer.Option(
            "--count", help="Count the rows of both sides and compare: each reads the range once."
        ),
    ] = False,
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, errors as JSON as well.")
    ] = False,
) -> None:
    """Show the calendar of a table: what is copied, open, failed, missing, lost, and what runs.

    Asks the ledger of the dest, and both sides for what it does not tell; reads only. Ends with the
    commands that repair. Exits with 0 whatever the calendar shows, but with 4 where --count finds
    that the rows differ.

    Example: copypipe status public.users --from 2018-01-01 --to today
    """
    with outcome(as_json=as_json):
        request = requests.Request(
            source=endpoint("source", source, source_set),
            dest=endpoint("dest", dest, dest_set),
            table=table,
            into=into,
            wanted=wanted(month=month, start=start, stop=stop),
            by=by,
            timezone=timezone,
        )
        requests.check(request)
        from copypipe import calendars  # psycopg, which --help need not pay for

        lines = reporting.Lines(log, progress=False)
        found = calendars.read(request, every.value, count=count, listen=lines)
        repairs = list(_repairs(context, found, calendars.REMEDIES))
        if as_json:
            say(reporting.calendar_json(found, repairs))
        else:
            glyphs = reporting.shows_glyphs(sys.stdout.encoding)
            for line in reporting.calendar_lines(
                found, repairs, colour=has_colour(), glyphs=glyphs
            ):
                say(line)
        if count and any(square.is_different for square in found.squares):
            raise typer.Exit(Differs.exit_code)


def has_colour() -> bool:
    """Return whether colours are seen, and wanted (https://no-color.org)."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def _repairs(
    context: typer.Context, found: Calendar, remedies: Iterable[Remedy]
) -> Iterator[reporting.Repair]:
    """Yield the commands that help, with the words of this one."""
    for remedy in remedies:
        ranges = found.runs(remedy.states)
        if not ranges:
            continue
        if len(ranges) > _MOST_COMMANDS:
            ranges = [slices.Period(ranges[0].start, ranges[-1].stop)]
        words = ["copypipe", remedy.command, *given(context, leave_out=_OWN)]
        commands = [
            [*words, "--from", period.start.isoformat(), "--to", period.stop.isoformat()]
            for period in ranges
        ]
        yield reporting.Repair(
            remedy.why, [shlex.join([*command, *remedy.options]) for command in commands]
        )
