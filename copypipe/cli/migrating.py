"""copypipe migrate: whole tables, once, with all that they depend on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from copypipe import reporting, requests
from copypipe.cli.again import given
from copypipe.cli.copying import endpoint, listener_for
from copypipe.cli.options import (
    AsJson,
    Dest,
    DestSet,
    Progress,
    ProgressOption,
    Quiet,
    RateLimit,
    Retries,
    RetryDelay,
    Source,
    SourceSet,
    Transport,
    TransportOption,
    Verbose,
    Verify,
    VerifyOption,
    WaitLock,
)
from copypipe.cli.output import error_text, log, outcome, say
from copypipe.errors import PARTLY_DONE, CopypipeError, Differs, Interrupted, one_line

if TYPE_CHECKING:
    from copypipe.migrations import Migrated


def migrate(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]",
            help="Tables of the source, as in SQL; * and ? stand for any characters.",
            show_default=False,
        ),
    ] = None,
    source: Source = None,
    dest: Dest = None,
    schemas: Annotated[
        list[str] | None,
        typer.Option(
            "--schema",
            help="All tables of a schema. Can be given again.",
            metavar="SCHEMA",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all-tables", help="All tables of the database.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Tables that stay, patterns too. Can be given again.",
            metavar="TABLE",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        list[str] | None,
        typer.Option(
            help="Other names at the dest, with --no-schema: a schema for all, or pairs of schemas "
            "or tables (a=b, a.t=b.u). Can be given again.",
            metavar="NAME|NAME=NAME",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", help="Parts, indexes and checks done at a time.", min=1),
    ] = 4,
    part_size: Annotated[
        str,
        typer.Option(
            help="Cut a table that is at least twice as large into parts of about this size.",
            metavar="SIZE",
        ),
    ] = "512MB",
    no_schema: Annotated[
        bool,
        typer.Option("--no-schema", help="Make nothing: the tables are there."),
    ] = False,
    owner: Annotated[
        bool, typer.Option("--owner", help="Give what is made the owners of the source.")
    ] = False,
    acl: Annotated[
        bool, typer.Option("--acl", help="Grant what is granted at the source.")
    ] = False,
    defer_indexes: Annotated[
        bool,
        typer.Option(
            "--defer-indexes",
            help="With --no-schema: drop plain indexes and make them again behind the rows.",
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the rows of tables that hold some.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="A rehearsal: at most so many rows of each table, and no foreign key.",
            metavar="ROWS",
            min=1,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a migration that has not ended.")
    ] = False,
    migration: Annotated[
        str | None,
        typer.Option("--id", help="Which one, where several have not ended.", metavar="ID"),
    ] = None,
    not_consistent: Annotated[
        bool,
        typer.Option(
            "--not-consistent",
            help="With --resume: keep the parts of a table that are there, though the others will "
            "be of another moment; both sides are compared in the end.",
        ),
    ] = False,
    verify: VerifyOption = Verify.COUNT,
    rate_limit: RateLimit = None,
    transport: TransportOption = Transport.AUTO,
    wait_lock: WaitLock = "10min",
    retries: Retries = requests.DEFAULT_RETRIES,
    retry_delay: RetryDelay = "1s",
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print what would be done; change nothing.")
    ] = False,
    as_json: AsJson = False,
    progress: ProgressOption = Progress.AUTO,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Move whole tables once: definitions, rows in one snapshot, then indexes and keys.

    What the dest lacks is made as pg_dump tells it, with all that the tables depend on. Rows are
    copied several tables, and parts of tables, at a time. What is written at the source after the
    snapshot is not copied. A migration that was ended goes on with --resume, from any host.

    Exits with 0 where all is done, and with 3 where some tables are there and others are not.

    Example: copypipe migrate --all-tables --source service=old --dest service=new --jobs 4
    """
    with outcome(as_json=as_json, interrupted=_LEFT):
        from copypipe import migrations  # psycopg, which --help need not pay for
        from copypipe.events import ignore
        from copypipe.inventory import Asked

        options = migrations.Options(
            source=endpoint("source", source, source_set),
            dest=endpoint("dest", dest, dest_set),
            asked=Asked(
                tuple(tables or ()), tuple(schemas or ()), everything, tuple(exclude or ())
            ),
            into=tuple(into or ()),
            jobs=jobs,
            part_bytes=requests.size(part_size),
            schema=not no_schema,
            owner=owner,
            acl=acl,
            defer_indexes=defer_indexes,
            replace=replace,
            resume=resume,
            migration=migration,
            consistent=not not_consistent,
            limit=limit,
            verify=verify.value,
            transport=transport.value,
            rate_limit=requests.size(rate_limit) if rate_limit is not None else None,
            wait_lock=requests.duration(wait_lock),
            retries=retries,
            retry_delay=requests.duration(retry_delay),
            notices=verbose,
        )
        if dry_run:
            proposal = migrations.propose(options, ignore)
            told = reporting.proposal_json if as_json else reporting.proposal_text
            say(told(proposal))
            proposal.check()
            return
        listener, close = listener_for(progress, quiet=quiet, verbose=verbose)
        run = migrations.Migration(options, listener)
        try:
            found = run()
        except (CopypipeError, Interrupted, KeyboardInterrupt) as error:
            close()
            left = run.result
            if left is None or left.is_ended:
                raise
            _tell(left, as_json=as_json, quiet=quiet)
            log(_goes_on(context, left))
            if not isinstance(error, CopypipeError) or not _has_some(left):
                raise
            for line in error_text(error, as_json=as_json).splitlines():
                log(line)
            raise typer.Exit(PARTLY_DONE) from None
        close()
        for what, failure in found.failed:
            log(one_line(f"{what} failed:"))
            for line in error_text(failure, as_json=as_json).splitlines():
                log(line)
        _tell(found, as_json=as_json, quiet=quiet)
        if not found.failed:
            return
        log(_goes_on(context, found))
        raise typer.Exit(PARTLY_DONE if _has_some(found) else found.failed[0][1].exit_code)


def _tell(found: Migrated, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        say(reporting.migration_json(found))
    elif not quiet:
        for line in reporting.migration_lines(found):
            say(line)


def _has_some(found: Migrated) -> bool:
    """Return whether some tables are there."""
    return any(each.state in ("copied", "kept") for each in found.tables)


# What a signal leaves behind.
_LEFT = "what was committed stays, what was under way is rolled back"

# What a later start knows by itself.
_KNOWN = (
    "tables",
    "schemas",
    "everything",
    "exclude",
    "into",
    "no_schema",
    "owner",
    "acl",
    "defer_indexes",
    "replace",
    "limit",
    "resume",
    "migration",
)
# What failed by that is done without it.
_NOT_AGAIN = (*_KNOWN, "not_consistent")


def _goes_on(context: typer.Context, found: Migrated) -> str:
    """Return the command that goes on; connection strings are left out, as in `again`."""
    words = ["copypipe", "migrate", "--resume", "--id", found.id]
    differs = any(isinstance(error, Differs) for _, error in found.failed)
    left_out = _NOT_AGAIN if differs else _KNOWN
    return f"to go on: {shlex.join([*words, *given(context, leave_out=left_out)])}"
