"""copypipe backfill: many slices of a table, those left out that the ledger covers."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import typer

from copypipe import reporting, requests, slices
from copypipe.cli.again import copied_alone
from copypipe.cli.copying import endpoint, listener_for
from copypipe.cli.options import (
    Accept,
    AllowEmpty,
    AllowLossy,
    AllowReverse,
    Ascending,
    AsJson,
    By,
    Cast,
    Clear,
    ClearOption,
    Columns,
    Dest,
    DestSet,
    Exclude,
    From,
    Into,
    Key,
    MergeDeletes,
    MinRatio,
    Mode,
    ModeOption,
    Month,
    Progress,
    ProgressOption,
    Query,
    Quiet,
    RateLimit,
    Retries,
    RetryDelay,
    Sequences,
    Settle,
    Source,
    SourceSet,
    StallTimeout,
    Swap,
    Table,
    Timezone,
    To,
    Transport,
    TransportOption,
    Verbose,
    Verify,
    VerifyOption,
    WaitLock,
)
from copypipe.cli.output import ask, error_text, log, log_failed, on_terminal, outcome, say
from copypipe.cli.words import wanted
from copypipe.errors import PARTLY_DONE, CopypipeError

# What a signal leaves behind.
_LEFT = "slices that were told are done, others may be; the same command goes on"


class Order(StrEnum):
    """Choices of --order."""

    OLDEST = "oldest"
    NEWEST = "newest"


def backfill(
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
        str,
        typer.Option(
            help="Into what slices the range is cut, each its own transaction; whole numbers into "
            "so many at a time.",
            metavar="hour|day|week|month|NUMBER",
        ),
    ] = "day",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Slices that are copied at a time.", min=1)
    ] = 1,
    order: Annotated[Order, typer.Option(help="Which slices come first.")] = Order.OLDEST,
    redo: Annotated[
        bool, typer.Option("--again", help="Copy also what the ledger covers.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Begin no further slice after one that failed.")
    ] = False,
    min_slice: Annotated[
        str | None,
        typer.Option(
            help="Halve a slice that a timeout or a standby's replay ends, down to this length.",
            metavar="TIME|NUMBER",
        ),
    ] = None,
    snapshot: Annotated[
        bool,
        typer.Option(
            "--snapshot",
            help="Read all slices in one snapshot of the source, so that a row that moves between "
            "them is in one; vacuum there waits for the end.",
        ),
    ] = False,
    max_replica_lag: Annotated[
        str | None,
        typer.Option(
            help="Begin no slice while a standby of either side is behind by more than this.",
            metavar="TIME",
        ),
    ] = None,
    query: Query = None,
    columns: Columns = None,
    exclude: Exclude = None,
    cast: Cast = None,
    allow_lossy: AllowLossy = None,
    mode: ModeOption = Mode.REPLACE,
    swap: Swap = False,
    key: Key = None,
    merge_deletes: MergeDeletes = False,
    clear: ClearOption = Clear.DELETE,
    allow_empty: AllowEmpty = False,
    sequences: Sequences = False,
    accept: Accept = None,
    min_ratio: MinRatio = None,
    rate_limit: RateLimit = None,
    verify: VerifyOption = Verify.COUNT,
    transport: TransportOption = Transport.AUTO,
    stall_timeout: StallTimeout = None,
    wait_lock: WaitLock = "10min",
    retries: Retries = requests.DEFAULT_RETRIES,
    retry_delay: RetryDelay = "1s",
    settle: Settle = "1h",
    ascending: Ascending = False,
    allow_reverse: AllowReverse = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask about more than 100,000 slices.")
    ] = False,
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    as_json: AsJson = False,
    progress: ProgressOption = Progress.AUTO,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy a range slice by slice, several at a time; what the ledger covers is left out.

    Any number of these may share a range, on one machine or on many: a slice is copied once, and
    that of a run that died is taken over. A slice that fails does not stop the others. Run again,
    it goes on where it stopped.

    Exits with 0 where every slice is done, and with 3 where some are and others failed.

    Example: copypipe backfill public.users --from -3d --to today --jobs 4
    """
    with outcome(as_json=as_json, interrupted=_LEFT):
        request = requests.Request(
            source=endpoint("source", source, source_set),
            dest=endpoint("dest", dest, dest_set),
            table=table,
            into=into,
            wanted=wanted(month=month, start=start, stop=stop),
            query=query,
            columns=tuple(map(requests.computed, columns or ())),
            exclude=tuple(exclude or ()),
            cast=tuple(cast or ()),
            allow_lossy=tuple(allow_lossy or ()),
            rate_limit=requests.size(rate_limit) if rate_limit is not None else None,
            by=by,
            timezone=timezone,
            mode=mode.value,
            clear=clear.value,
            swap=swap,
            key=tuple(key or ()),
            merge_deletes=merge_deletes,
            again=redo and mode is Mode.APPEND,
            sequences=sequences,
            accept=tuple(hazard.value for hazard in accept or ()),
            min_ratio=min_ratio,
            allow_empty=allow_empty,
            verify=verify.value,
            transport=transport.value,
            stall_timeout=requests.duration(stall_timeout) if stall_timeout is not None else None,
            wait_lock=requests.duration(wait_lock),
            retries=retries,
            retry_delay=requests.duration(retry_delay),
            settle=requests.duration(settle),
            ascending=ascending,
            allow_reverse=allow_reverse,
            yes=yes,
            notices=verbose,
        )
        requests.check(request)
        from copypipe import backfills  # psycopg, which --help need not pay for
        from copypipe.comparisons import Failed

        options = backfills.Options(
            every=slices.parse_every(every),
            jobs=jobs,
            order=order.value,
            again=redo,
            fail_fast=fail_fast,
            min_slice=requests.length(min_slice) if min_slice is not None else None,
            snapshot=snapshot,
            max_replica_lag=requests.duration(max_replica_lag)
            if max_replica_lag is not None
            else None,
        )
        listener, close = listener_for(progress, quiet=quiet, verbose=verbose)
        tally = backfills.Tally()
        ended: CopypipeError | None = None

        def tell(each: backfills.Outcome) -> None:
            if isinstance(each, Failed):
                log_failed(each.slice, each.error, "failed", as_json=as_json)
            elif isinstance(each, backfills.Skipped):
                if as_json:
                    say(reporting.skipped_json(each.slice))
                elif verbose:
                    say(reporting.skipped_line(found, each.slice))
            elif as_json:
                say(reporting.result_json(each))
            elif not quiet:
                say(reporting.result_line(each))

        def hear(each: backfills.Outcome) -> None:
            tally.add(each)
            with listener.aside() if isinstance(listener, reporting.Bar) else nullcontext():
                tell(each)

        try:
            try:
                found, outcomes = backfills.backfill(request, options, listener, hear)
            except slices.TooMany as error:
                if not (on_terminal() and ask(f"{error.message}. Go on?")):
                    error.hint = f"{error.hint} Or give --yes, if that is meant."
                    raise
                request = replace(request, yes=True)
                found, outcomes = backfills.backfill(request, options, listener, hear)
            with closing(outcomes):
                for each in outcomes:
                    hear(each)
        except CopypipeError as error:
            if not tally.copied:
                raise
            # What ends all of it, such as a snapshot that is gone, does not undo what is done.
            ended = error
        finally:
            close()
        if ended is not None:
            for line in error_text(ended, as_json=as_json).splitlines():
                log(line)
        if as_json:
            say(reporting.backfill_json(found, tally))
        elif not quiet:
            say(reporting.backfill_line(found, tally))
        if ended is not None:
            raise typer.Exit(PARTLY_DONE)
        if not tally.failed:
            return
        for each in tally.failed:
            log(f"failed: {each.slice}; {copied_alone(context, each.slice)}")
        nothing = not tally.copied and not found.skipped
        raise typer.Exit(tally.failed[0].error.exit_code if nothing else PARTLY_DONE)
