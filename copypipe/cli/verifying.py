"""copypipe verify: compare slices of both sides, and copy again what differs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from copypipe import reporting, requests, slices
from copypipe.cli.copying import endpoint
from copypipe.cli.options import (
    Ascending,
    By,
    Columns,
    Day,
    Dest,
    DestSet,
    From,
    Into,
    Key,
    MinRatio,
    Month,
    Query,
    Retries,
    Settle,
    Source,
    SourceSet,
    Table,
    Timezone,
    To,
)
from copypipe.cli.output import log, log_failed, outcome, say
from copypipe.cli.words import wanted
from copypipe.errors import Differs
from copypipe.events import ignore


class Repair(StrEnum):
    """Choices of --repair."""

    NONE = "none"
    SLICES = "slices"
    ROWS = "rows"


class RepairsAlone(TyperCommand):
    """A command whose --repair may stand without a choice, which typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a --repair without a choice the first one that repairs."""
        options = args[: args.index("--")] if "--" in args else args
        for place, word in enumerate(options):
            if word == "--repair" and options[place + 1 : place + 2] not in _CHOICES:
                args = [*args[:place], f"--repair={Repair.SLICES.value}", *args[place + 1 :]]
        return super().parse_args(ctx, args)


_CHOICES = [[choice.value] for choice in Repair]


def verify(
    table: Table,
    source: Source = None,
    dest: Dest = None,
    into: Into = None,
    by: By = "created_at",
    timezone: Timezone = "UTC",
    day: Day = None,
    month: Month = None,
    start: From = None,
    stop: To = None,
    everything: Annotated[bool, typer.Option("--all", help="All rows, as one slice.")] = False,
    where: Annotated[
        str | None,
        typer.Option(help="Rows for which this SQL expression holds.", metavar="SQL"),
    ] = None,
    every: Annotated[
        str,
        typer.Option(
            help="How a range is cut into slices, each with its own verdict; whole numbers into so "
            "many at a time.",
            metavar="hour|day|week|month|NUMBER",
        ),
    ] = "day",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Slices that are compared at a time.", min=1)
    ] = 1,
    query: Query = None,
    columns: Columns = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave a column out of the comparison. Can be given again.",
            metavar="COLUMN",
            show_default=False,
        ),
    ] = None,
    cast: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that the copy cast to the dest's type. Can be given again.",
            metavar="COLUMN",
            show_default=False,
        ),
    ] = None,
    allow_lossy: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that the copy cast whatever that cut or rounded. Can be given again.",
            metavar="COLUMN",
            show_default=False,
        ),
    ] = None,
    key: Key = None,
    show_row_data: Annotated[
        bool, typer.Option("--show-row-data", help="Print the rows that differ, not only keys.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Enter slices that are the same into the ledger of the dest, as if copied.",
        ),
    ] = False,
    repair: Annotated[
        Repair,
        typer.Option(
            help="Copy again what differs: whole slices (which --repair alone means), or where few "
            "rows differ and the dest has a key, just these rows."
        ),
    ] = Repair.NONE,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty", help="Let a repair empty a slice that the source has no row of."
        ),
    ] = False,
    min_ratio: MinRatio = None,
    wait_lock: Annotated[
        str,
        typer.Option(
            help="How long to wait for runs on the same slice, to record or repair it.",
            metavar="TIME",
        ),
    ] = "10min",
    retries: Retries = requests.DEFAULT_RETRIES,
    settle: Settle = "1h",
    ascending: Ascending = False,
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Let a repair replace all rows of a table (--all).")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print verdicts (and errors) as JSON, one a line.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only what differs (and --json).")
    ] = False,
) -> None:
    """Compare slices of both sides: same, differs, missing, extra; or open, if still growing.

    Both servers compute digests of all rows; rows themselves are read only where these differ.
    Needs no ledger, and works for tables that something else has copied. Exits with 0 where all is
    the same, with 4 where something differs, and with 1 or 5 where nothing could be told.

    Example: copypipe verify public.users --month 2018-04 --jobs 4
    """
    writes = record or repair is not Repair.NONE
    left = (
        "what was told is done, and a slice under way may be" if writes else "nothing was changed"
    )
    with outcome(as_json=as_json, interrupted=left):
        request = requests.Request(
            source=endpoint("source", source, source_set),
            dest=endpoint("dest", dest, dest_set),
            table=table,
            into=into,
            wanted=wanted(
                day=day,
                month=month,
                start=start,
                stop=stop,
                everything=everything,
                where=where,
            ),
            where=where,
            query=query,
            columns=tuple(map(requests.computed, columns or ())),
            exclude=tuple(exclude or ()),
            cast=tuple(cast or ()),
            allow_lossy=tuple(allow_lossy or ()),
            by=by,
            timezone=timezone,
            allow_empty=allow_empty,
            min_ratio=min_ratio,
            yes=yes,
            wait_lock=requests.duration(wait_lock),
            retries=retries,
            settle=requests.duration(settle),
            ascending=ascending,
        )
        requests.check(request)
        from copypipe import verdicts  # psycopg, which --help need not pay for
        from copypipe.comparisons import Failed

        options = verdicts.Options(
            every=slices.parse_every(every),
            jobs=jobs,
            key=tuple(key or ()),
            show_rows=show_row_data,
            record=record,
            repair=repair.value,
        )
        lines = ignore if quiet else reporting.Lines(log, verbose=False, progress=False)
        tally = verdicts.Tally()
        for found in verdicts.verify(request, options, lines):
            tally.add(found)
            if isinstance(found, Failed):
                log_failed(found.slice, found.error, "could not be compared", as_json=as_json)
            elif as_json:
                say(reporting.verdict_json(found))
            elif found.is_different or not quiet:
                for line in reporting.verdict_lines(found):
                    say(line)
                if found.failure is not None:
                    log_failed(found.slice, found.failure, "could not be repaired", as_json=False)
        if not as_json and not quiet and tally.slices > 1:
            say(reporting.tally_line(tally))
        if tally.differing:
            raise typer.Exit(Differs.exit_code)
        if tally.failed:
            raise typer.Exit(tally.failed[0].error.exit_code)
