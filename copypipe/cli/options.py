"""Arguments and options that several commands have, said once."""

from __future__ import annotations

from typing import Annotated

import typer

Table = Annotated[str, typer.Argument(help="Table at the source, as in SQL: public.users.")]
Source = Annotated[
    str | None,
    typer.Option(
        help="Server to read from: URI, keywords or service=NAME; else COPYPIPE_SOURCE.",
        metavar="CONNINFO",
        show_default=False,
    ),
]
Dest = Annotated[
    str | None,
    typer.Option(
        help="Server to write to: URI, keywords or service=NAME; else COPYPIPE_DEST.",
        metavar="CONNINFO",
        show_default=False,
    ),
]
DestTable = Annotated[str, typer.Argument(help="Table at the dest, as in SQL: public.users.")]
By = Annotated[
    str,
    typer.Option(help="Date, timestamp or timestamptz column to slice by.", metavar="COLUMN"),
]
Timezone = Annotated[
    str, typer.Option(help="Zone in which days of a timestamptz column are counted.")
]
Day = Annotated[
    str | None,
    typer.Option(help="One day: 2018-04-29, today, yesterday or -3d.", metavar="DAY"),
]
Month = Annotated[str | None, typer.Option(help="One month: 2018-04.", metavar="MONTH")]
Start = Annotated[
    str | None,
    typer.Option("--from", help="First day or time of a range.", metavar="DAY|TIME"),
]
Stop = Annotated[
    str | None,
    typer.Option("--to", help="End of the range, exclusive.", metavar="DAY|TIME"),
]
Into = Annotated[
    str | None, typer.Option(help="Table at the dest, if its name differs.", metavar="TABLE")
]
Key = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of the key by which rows are merged; else the primary key. Can be given "
        "again.",
        metavar="COLUMN",
        show_default=False,
    ),
]
Query = Annotated[
    str | None,
    typer.Option(
        help="Read this SQL query at the source; TABLE is then the dest's. With a range of its "
        "output, or --all.",
        metavar="SQL",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Compute a column of the dest at the source: rename, mask, derive. Can be given "
        "again.",
        metavar="NAME=SQL",
        show_default=False,
    ),
]
Swap = Annotated[
    bool,
    typer.Option(
        "--swap",
        help="Fill a new table beside the old one (--all), or one beside each partition of the "
        "slice, and exchange them: readers wait for the exchange alone, writers for the load.",
    ),
]
SourceSet = Annotated[
    list[str] | None,
    typer.Option(
        help="Set a parameter of the source in our transactions: role, work_mem, "
        "statement_timeout. Can be given again.",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]
DestSet = Annotated[
    list[str] | None,
    typer.Option(help="The same at the dest.", metavar="NAME=VALUE", show_default=False),
]
