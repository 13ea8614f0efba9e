"""copypipe copy: one slice of one table."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from copypipe import reporting, requests
from copypipe.cli.again import again
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
    Day,
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
    Where,
)
from copypipe.cli.output import ask, error_text, log, on_terminal, outcome, say
from copypipe.cli.signals import guard
from copypipe.cli.words import wanted
from copypipe.errors import CommitUnknown, Side, UsageError, one_line
from copypipe.events import Event, Listener, Planned, ignore

if TYPE_CHECKING:
    from copypipe.plans import Plan


Close = Callable[[], None]


def _nothing() -> None:
    """Close nothing."""


def copy(
    context: typer.Context,
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
    everything: Annotated[
        bool, typer.Option("--all", help="All rows, those without a time included.")
    ] = False,
    where: Where = None,
    query: Query = None,
    columns: Columns = None,
    exclude: Exclude = None,
    cast: Cast = None,
    allow_lossy: AllowLossy = None,
    mode: ModeOption = Mode.REPLACE,
    swap: Swap = False,
    key: Key = None,
    merge_deletes: MergeDeletes = False,
    redo: Annotated[
        bool, typer.Option("--again", help="Append also what was copied before.")
    ] = False,
    clear: ClearOption = Clear.DELETE,
    allow_empty: AllowEmpty = False,
    fail_on_empty: Annotated[
        bool,
        typer.Option(
            "--fail-on-empty",
            help="Exit 9 where the source has no row (6 where the dest has some, without "
            "--allow-empty).",
        ),
    ] = False,
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
    no_ledger: Annotated[
        bool,
        typer.Option(
            "--no-ledger", help="Record nothing at the dest (schema copypipe, made on first need)."
        ),
    ] = False,
    ascending: Ascending = False,
    allow_reverse: AllowReverse = False,
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and change nothing.")
    ] = False,
    as_json: AsJson = False,
    progress: ProgressOption = Progress.AUTO,
    quiet: Quiet = False,
    verbose: Verbose = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Replace all rows of a table without asking.")
    ] = False,
) -> None:
    """Copy one slice of a table: a day, a month, a range, what a condition selects, or all of it.

    The slice at the dest becomes what the source has, in one transaction: after any failure it is
    exactly what it was. Running the same command again is safe: it copies the same rows, and
    --mode append refuses what it has added (unless --again or --no-ledger).

    Example: copypipe copy public.users --day yesterday --source service=shop --dest service=dwh
    """
    with outcome(as_json=as_json):
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
            rate_limit=requests.size(rate_limit) if rate_limit is not None else None,
            by=by,
            timezone=timezone,
            mode=mode.value,
            clear=clear.value,
            swap=swap,
            key=tuple(key or ()),
            merge_deletes=merge_deletes,
            again=redo,
            sequences=sequences,
            accept=tuple(hazard.value for hazard in accept or ()),
            min_ratio=min_ratio,
            allow_empty=allow_empty,
            fail_on_empty=fail_on_empty,
            verify=verify.value,
            transport=transport.value,
            stall_timeout=requests.duration(stall_timeout) if stall_timeout is not None else None,
            wait_lock=requests.duration(wait_lock),
            retries=retries,
            retry_delay=requests.duration(retry_delay),
            settle=requests.duration(settle),
            ledger=not no_ledger,
            ascending=ascending,
            allow_reverse=allow_reverse,
            yes=yes,
            notices=verbose,
        )
        requests.check(request)
        from copypipe import attempts  # psycopg, which --help need not pay for

        # What was imported stays to the end: it need not be looked at again, the least when Python
        # exits (0.27 s of CPU instead of 0.36 for a tiny copy, medians of 31).
        gc.freeze()
        gc.enable()
        if dry_run:
            plan = attempts.plan(request, ignore)
            say(reporting.plan_json(plan) if as_json else reporting.plan_text(plan))
            plan.check()
            return
        listener, close = listener_for(progress, quiet=quiet, verbose=verbose)
        planned: list[Planned] = []
        guard.unknown = lambda: error_text(_left(context, planned), as_json=as_json)
        try:
            done = attempts.copy(request, _both(listener, planned), _ask)
        except CommitUnknown as error:
            if planned and error.hint != requests.LOOK_FIRST:
                error.hint = _settles(context, planned[0])
            raise
        finally:
            close()
        if verbose and not quiet:
            if done.open_because is not None:
                log(f"open: {one_line(done.open_because)}")
            log(reporting.diagnosis(done))
        if as_json:
            say(reporting.result_json(done))
        elif not quiet:
            say(reporting.result_line(done))


def endpoint(
    side: Side, given: str | None, settings: Sequence[str] | None = None
) -> requests.Endpoint:
    """Return where a side is; raises UsageError where nothing names it.

    Never libpq's own default: a side that was forgotten would silently be a local server.
    """
    variable = f"COPYPIPE_{side.upper()}"
    chosen = tuple(map(requests.setting, settings or ()))
    if given is not None:
        return requests.Endpoint(given, f"--{side}", chosen)
    if os.environ.get(variable):
        return requests.Endpoint(os.environ[variable], variable, chosen)
    raise UsageError(
        f"the {side} is not named",
        hint=f"Give --{side} or set {variable}: a URI, keywords, or service=NAME.",
        side=side,
    )


def listener_for(progress: Progress, *, quiet: bool, verbose: bool) -> tuple[Listener, Close]:
    """Return who tells a person of events, and how to end that."""
    if quiet:
        return ignore, _nothing
    wants_bar = progress is Progress.BAR or (
        progress is Progress.AUTO and sys.stderr is not None and sys.stderr.isatty()
    )
    if wants_bar:
        bar = reporting.Bar(sys.stderr, verbose=verbose)
        return bar, bar.close
    lines = reporting.Lines(log, verbose=verbose, progress=progress is not Progress.NONE)
    return lines, lines.close


def _both(listener: Listener, planned: list[Planned]) -> Listener:
    def hear(event: Event, /) -> None:
        guard(event)
        listener(event)
        if isinstance(event, Planned):
            planned.append(event)

    return hear


def _settles(context: typer.Context, planned: Planned) -> str:
    mode, no_ledger = context.params["mode"].value, context.params["no_ledger"]
    _, hint = requests.left_open(mode, tells=not (no_ledger or context.params["redo"]))
    if hint == requests.LOOK_FIRST:
        return hint
    what = "makes the slice the source's" if no_ledger and mode == "replace" else "settles it"
    return f"Run it again, which {what}: {again(context, planned.slice)}"


def _left(context: typer.Context, planned: Sequence[Planned]) -> CommitUnknown:
    """Return what a signal leaves behind that comes while nobody knows of a COMMIT."""
    detail, _ = requests.left_open(context.params["mode"].value, tells=False)
    return CommitUnknown(
        "dest: left while nobody knew whether COMMIT had happened",
        detail=detail,
        hint=_settles(context, planned[0]) if planned else None,
        side="dest",
    )


def _ask(plan: Plan) -> bool:
    """Ask on a terminal whether all rows may be replaced; without one the answer is no."""
    from copypipe.attempts import describe_counts

    if not on_terminal():
        return False
    log(describe_counts(plan))
    return ask(one_line(f"Replace all rows of {plan.dest.table.full_name}?"))
