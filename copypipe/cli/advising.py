"""copypipe grants and doctor: what has to be granted, and what would stand in the way."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import Annotated

import typer

from copypipe import reporting, requests, slices
from copypipe.cli.again import given
from copypipe.cli.copying import endpoint
from copypipe.cli.options import (
    Clear,
    Columns,
    Dest,
    DestSet,
    Into,
    Key,
    Mode,
    Query,
    Source,
    SourceSet,
    Swap,
    Table,
    Verify,
)
from copypipe.cli.output import outcome, say
from copypipe.errors import Side, UsageError

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, errors as JSON as well.")
]

Everything = Annotated[
    bool, typer.Option("--all", help="For copies of all rows instead of slices.")
]
Condition = Annotated[
    str | None,
    typer.Option(help="For copies of the rows for which this SQL holds.", metavar="SQL"),
]
OfMode = Annotated[Mode, typer.Option(help="The mode of these copies.")]
Clearing = Annotated[Clear, typer.Option(help="How their slices are removed.")]
Deletes = Annotated[bool, typer.Option("--merge-deletes", help="Merge: with rows removed, too.")]

# Any range does: what a role needs does not depend on its bounds.
_ALL_DAYS = slices.Between(slices.FIRST_DAY, slices.LAST_DAY)
_YESTERDAY = slices.day(slices.parse_day("yesterday"))


class ForSide(StrEnum):
    """Choices of --side."""

    SOURCE = "source"
    DEST = "dest"
    BOTH = "both"


def grants(
    context: typer.Context,
    table: Table,
    source: Source = None,
    dest: Dest = None,
    into: Into = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Column to slice by: created_at, unless --all or --where is given.",
            metavar="COLUMN",
        ),
    ] = None,
    everything: Everything = False,
    where: Condition = None,
    query: Query = None,
    columns: Columns = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that is left out. Can be given again.",
            metavar="COLUMN",
            show_default=False,
        ),
    ] = None,
    mode: OfMode = Mode.REPLACE,
    clear: Clearing = Clear.DELETE,
    swap: Swap = False,
    key: Key = None,
    merge_deletes: Deletes = False,
    verify: Annotated[
        Verify, typer.Option(help="What must be equal on both sides before these copies commit.")
    ] = Verify.COUNT,
    no_ledger: Annotated[
        bool, typer.Option("--no-ledger", help="For copies that are not recorded at the dest.")
    ] = False,
    role_source: Annotated[
        str | None,
        typer.Option(help="Role of the source, as in SQL; else who connects.", metavar="ROLE"),
    ] = None,
    role_dest: Annotated[
        str | None,
        typer.Option(help="Role of the dest, as in SQL; else who connects.", metavar="ROLE"),
    ] = None,
    side: Annotated[
        ForSide, typer.Option(help="Print what is for one server, to be run there.")
    ] = ForSide.BOTH,
    as_json: AsJson = False,
) -> None:
    """Print the GRANTs with which such copies of a table work, and no more, as SQL for each side.

    Changes nothing. What the role has is marked as held; what copies can do without is a comment
    that says what it gives. Connect as anybody who may see the tables, their owner for example.

    Example: copypipe grants public.users --role-dest loader --side dest | psql service=dwh
    """
    with outcome(as_json=as_json):
        request = requests.Request(
            source=endpoint("source", source),
            dest=endpoint("dest", dest),
            table=table,
            into=into,
            wanted=requests.wanted(
                day=None if everything or (where is not None and by is None) else _ALL_DAYS,
                month=None,
                start=None,
                stop=None,
                everything=everything,
                where=where,
            ),
            by=by or "created_at",
            where=where,
            query=query,
            columns=tuple(map(requests.computed, columns or ())),
            exclude=tuple(exclude or ()),
            mode=mode.value,
            clear=clear.value,
            swap=swap,
            key=tuple(key or ()),
            merge_deletes=merge_deletes,
            verify=verify.value,
            ledger=not no_ledger,
            # What is asked of a person, or accepted, needs no right.
            accept=("references", "cascade", "triggers"),
            allow_reverse=True,
            yes=True,
        )
        from copypipe import needs  # psycopg, which --help need not pay for

        roles: dict[Side, str | None] = {"source": role_source, "dest": role_dest}
        found = [each for each in needs.both(request, roles) if side in (each.side, "both")]
        if as_json:
            say(reporting.needs_json(found, request))
        else:
            say(reporting.needs_text(found, _of(context)))


def _of(context: typer.Context) -> str:
    """Return the copies that were asked about, as they are typed."""
    sides = ("source", "dest", "role_source", "role_dest", "side", "as_json")
    return shlex.join(["copypipe", "copy", *given(context, leave_out=sides)])


def doctor(
    table: Annotated[
        str | None, typer.Argument(help="Table to look at as well, as in SQL: public.users.")
    ] = None,
    source: Source = None,
    dest: Dest = None,
    into: Into = None,
    by: Annotated[
        str, typer.Option(help="Column by which the table is sliced.", metavar="COLUMN")
    ] = "created_at",
    everything: Everything = False,
    where: Condition = None,
    mode: OfMode = Mode.REPLACE,
    clear: Clearing = Clear.DELETE,
    swap: Swap = False,
    key: Key = None,
    merge_deletes: Deletes = False,
    source_set: SourceSet = None,
    dest_set: DestSet = None,
    as_json: AsJson = False,
) -> None:
    """Look at both servers, and at a table if one is named, for what would stand in the way.

    Of a table, of a copy of its last day unless the options tell of other copies.

    Tells of each thing that was looked at: ok; a note that explains what a copy will do; a warning
    of what may fail or is a risk; a problem that makes copies fail. Changes nothing. Exits with 0
    where there is no problem, else as a copy would: 6, 5 for a side that cannot be reached, 2 for
    one that does not let the role in.
    """
    with outcome(as_json=as_json):
        if (swap or clear is Clear.TRUNCATE) and not everything:
            raise UsageError(
                "which partitions would be looked at?",
                hint="Give --all, or see copypipe copy --dry-run for a slice of partitions.",
            )
        request = requests.Request(
            source=endpoint("source", source, source_set),
            dest=endpoint("dest", dest, dest_set),
            # Without a table none is asked for.
            table=table if table is not None else "none",
            into=into,
            wanted=requests.wanted(
                day=None if everything or where is not None else _YESTERDAY,
                month=None,
                start=None,
                stop=None,
                everything=everything,
                where=where,
            ),
            by=by,
            where=where,
            mode=mode.value,
            clear=clear.value,
            swap=swap,
            key=tuple(key or ()),
            merge_deletes=merge_deletes,
            yes=True,
        )
        from copypipe import checkups  # psycopg, which --help need not pay for

        found = checkups.examine(request, with_table=table is not None)
        say(reporting.checkup_json(found) if as_json else reporting.checkup_text(found))
        if found.exit_code:
            raise typer.Exit(found.exit_code)
