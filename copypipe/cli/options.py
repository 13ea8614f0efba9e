"""Arguments and options that several commands have, said once."""

from __future__ import annotations

from enum import StrEnum
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
    typer.Option(
        help="Column to slice by: a date, timestamp or timestamptz, or whole numbers.",
        metavar="COLUMN",
    ),
]
Timezone = Annotated[
    str, typer.Option(help="Zone in which days of a timestamptz column are counted.")
]
Day = Annotated[
    str | None,
    typer.Option(help="One day: 2018-04-29, today, yesterday or -3d.", metavar="DAY"),
]
Month = Annotated[str | None, typer.Option(help="One month: 2018-04.", metavar="MONTH")]
From = Annotated[
    str | None,
    typer.Option("--from", help="First day, time or number of a range.", metavar="BOUND"),
]
To = Annotated[
    str | None,
    typer.Option("--to", help="End of the range, exclusive.", metavar="BOUND"),
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


class Every(StrEnum):
    """Choices of --every."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Mode(StrEnum):
    """Choices of --mode."""

    REPLACE = "replace"
    APPEND = "append"
    MERGE = "merge"


class Clear(StrEnum):
    """Choices of --clear."""

    DELETE = "delete"
    TRUNCATE = "truncate"


class Hazard(StrEnum):
    """Choices of --accept."""

    REFERENCES = "references"
    CASCADE = "cascade"
    TRIGGERS = "triggers"


class Transport(StrEnum):
    """Choices of --transport."""

    AUTO = "auto"
    SOCKET = "socket"
    TLS = "tls"
    LIBPQ = "libpq"


class Verify(StrEnum):
    """Choices of --verify."""

    COUNT = "count"
    CHECKSUM = "checksum"


class Progress(StrEnum):
    """Choices of --progress."""

    AUTO = "auto"
    BAR = "bar"
    LOG = "log"
    NONE = "none"


Where = Annotated[
    str | None,
    typer.Option(
        help="Rows for which this SQL expression holds, on both sides; narrows a range, or is "
        "the slice by itself.",
        metavar="SQL",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave a column out; at the dest it gets its default. Can be given again.",
        metavar="COLUMN",
        show_default=False,
    ),
]
Cast = Annotated[
    list[str] | None,
    typer.Option(
        help="Cast a column to the dest's type; a value that this would change fails the copy. "
        "Can be given again.",
        metavar="COLUMN",
        show_default=False,
    ),
]
AllowLossy = Annotated[
    list[str] | None,
    typer.Option(
        help="Cast a column to the dest's type, whatever that cuts or rounds. Can be given again.",
        metavar="COLUMN",
        show_default=False,
    ),
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        help="replace: make the slice equal to the source's. append: add the rows, unless the "
        "ledger tells of them. merge: insert and update by key."
    ),
]
MergeDeletes = Annotated[
    bool,
    typer.Option(
        "--merge-deletes", help="Merge: remove rows of the slice that the source does not have."
    ),
]
ClearOption = Annotated[
    Clear,
    typer.Option(
        help="How the slice is removed first. truncate (for --all, and for slices that are "
        "whole partitions) is quick and lets readers wait for the whole load."
    ),
]
AllowEmpty = Annotated[
    bool,
    typer.Option("--allow-empty", help="Let an empty source slice remove rows of the dest."),
]
Sequences = Annotated[
    bool,
    typer.Option(
        "--sequences",
        help="Advance the sequences of copied columns behind their maximum, never back.",
    ),
]
Accept = Annotated[
    list[Hazard] | None,
    typer.Option(
        help="Go on in spite of foreign keys that point at the slice (references) or change "
        "other tables (cascade), or of triggers that drop or change rows. Can be given again.",
        show_default=False,
    ),
]
MinRatio = Annotated[
    float | None,
    typer.Option(
        help="Refuse to replace a slice by less than this part of its rows, as in 0.5.",
        metavar="RATIO",
        show_default=False,
    ),
]
RateLimit = Annotated[
    str | None,
    typer.Option(help="Bytes a second at most: 500kB, 50MB, 1GB.", metavar="SIZE"),
]
VerifyOption = Annotated[
    Verify,
    typer.Option(
        help="What must be equal on both sides before it commits. checksum: digests of all "
        "rows too, which both servers compute."
    ),
]
TransportOption = Annotated[
    Transport,
    typer.Option(
        help="What carries the bytes: the connections' sockets, their TLS, or libpq, which is "
        "slower and always works. auto chooses."
    ),
]
StallTimeout = Annotated[
    str | None,
    typer.Option(
        help="Give up when nothing has come from a server for so long; never, if not given. A "
        "long DELETE, a sort, waiting for a lock are silence too.",
        metavar="TIME",
    ),
]
WaitLock = Annotated[
    str,
    typer.Option(
        help="How long to wait for another run on an overlapping slice; 0 gives up at once.",
        metavar="TIME",
    ),
]
Retries = Annotated[
    int,
    typer.Option(help="How often to try again what passes: a lost connection, a deadlock."),
]
RetryDelay = Annotated[
    str,
    typer.Option(
        help="Pause before the first of these, doubled before each further one.",
        metavar="TIME",
    ),
]
Settle = Annotated[
    str,
    typer.Option(
        help="How long after its end a slice counts as complete, where the running "
        "transactions of the source cannot be seen.",
        metavar="TIME",
    ),
]
Ascending = Annotated[
    bool,
    typer.Option(
        "--ascending",
        help="Take the numbers of --by to be given in ascending order, where no sequence shows it: "
        "what lies below the highest one is complete then.",
    ),
]
AllowReverse = Annotated[
    bool,
    typer.Option("--allow-reverse", help="Copy from a table that is filled from this dest."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print results (and errors) as JSON, one object a line.")
]
ProgressOption = Annotated[
    Progress, typer.Option(help="auto: a bar on a terminal, else a line every 30 s.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more, notices of the servers included.")
]
