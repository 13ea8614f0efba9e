"""What was asked: one frozen value, the same from the command line, Python and Airflow.

Nothing is decided here. What the words alone can tell is checked (`check`), so that a request
that can never work is refused before any server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from copypipe import slices
from copypipe.errors import Side, UsageError

if TYPE_CHECKING:
    import psycopg

Mode = Literal["replace", "append", "merge"]
Clear = Literal["delete", "truncate"]
Hazard = Literal["references", "cascade", "triggers"]
Verify = Literal["count", "checksum"]
Transport = Literal["auto", "socket", "tls", "libpq"]
Connect = Callable[[], "psycopg.Connection[Any]"]

# How long a run waits for another one that holds an overlapping slice: a large day takes minutes.
DEFAULT_WAIT_SECONDS = 600.0

# How often a run is tried again after a failure that passes, and what the first pause between two
# tries is; each further one is twice as long. Three pauses of 1, 2 and 4 s outlast a failover of a
# pooler or a restart of a small server; a deadlock is over at once.
DEFAULT_RETRIES = 3
DEFAULT_RETRY_SECONDS = 1.0
MOST_RETRIES = 100

# Where running transactions cannot be seen, a slice counts as complete so long after its end:
# longer than the transactions of an application, shorter than a night.
DEFAULT_SETTLE_SECONDS = 3600.0

# lock_timeout is an int4 of milliseconds: nearly 25 days.
LONGEST_WAIT_SECONDS = 24 * 86400

# What of the ledger may be removed for its age: a run asks for a minute, and somewhat longer, what
# became of its COMMIT. The most is some century, and a time that servers can subtract.
YOUNGEST_SECONDS = 600
OLDEST_SECONDS = 36525 * 86400

# The least that a rate may be limited to: a transaction that takes days holds back vacuum on both
# sides.
SLOWEST = 1024

# Names of parameters, custom ones too (guc.c, valid_custom_variable_name).
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")

# PostgreSQL's units of time (config.sgml, "Parameter Names and Values").
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*(us|ms|s|min|h|d)?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one side is: a connection string, or a callable that returns an open connection."""

    target: str | Connect = field(repr=False)
    """Never shown: a connection string may hold a password."""
    origin: str
    """Who named it: an option, an environment variable, an argument."""
    settings: tuple[tuple[str, str], ...] = ()
    """Parameters of the server that hold in each of our transactions there: (name, value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One slice of one table to be copied."""

    source: Endpoint
    dest: Endpoint
    table: str
    """A name as in SQL: quoting and folding are the server's."""
    into: str | None = None
    """The table at the dest; None for the same name."""
    wanted: slices.Wanted
    by: str = "created_at"
    timezone: str = "UTC"
    mode: Mode = "replace"
    clear: Clear = "delete"
    swap: bool = False
    """Fill a new table beside the old one, or beside a partition, and exchange the two."""
    key: tuple[str, ...] = ()
    """Columns by which rows are merged; none for the primary key."""
    merge_deletes: bool = False
    """A merge removes rows of the slice that the source does not have."""
    again: bool = False
    """Append also what the ledger says was copied before."""
    skip: bool = False
    """Leave alone what the ledger covers: of many slices, those that are done."""
    only_empty: bool = False
    """Refuse a table at the dest that has rows, instead of removing them: of many tables that are
    filled for the first time."""
    allow_empty: bool = False
    fail_on_empty: bool = False
    sequences: bool = False
    """Let the sequences of copied columns go on behind what was copied."""
    accept: tuple[Hazard, ...] = ()
    """What would be refused, and is meant."""
    min_ratio: float | None = None
    """Refuse to replace a slice by less than this part of its rows; None for any."""
    where: str | None = None
    """SQL that narrows the slice, on both sides: one expression over the table's columns."""
    query: str | None = None
    """SQL that is read at the source in the place of the table, which then is the dest's."""
    columns: tuple[tuple[str, str], ...] = ()
    """Columns of the dest that the source computes: (name as in SQL, expression)."""
    exclude: tuple[str, ...] = ()
    """Columns of either side that do not go over; the dest's get their defaults."""
    cast: tuple[str, ...] = ()
    """Columns that the source casts to the dest's type; a value that this changes is an error."""
    allow_lossy: tuple[str, ...] = ()
    """Columns that the source casts to the dest's type, whatever that cuts or rounds."""
    verify: Verify = "count"
    """What must be equal on both sides before it commits: counts, or digests of the rows too."""
    transport: Transport = "auto"
    """What carries the bytes; a transport that cannot carry them is refused."""
    rate_limit: int | None = None
    """Bytes a second at most; None for as fast as it goes."""
    stall_timeout: float | None = None
    """Seconds without a byte from a server after which the run gives up; None for never."""
    wait_lock: float = DEFAULT_WAIT_SECONDS
    """Seconds to wait for another run on an overlapping slice; 0 to give up at once."""
    retries: int = DEFAULT_RETRIES
    """How often to try again after a failure that passes."""
    retry_delay: float = DEFAULT_RETRY_SECONDS
    """Seconds to wait before the first of these; doubled before each further one."""
    settle: float = DEFAULT_SETTLE_SECONDS
    """Seconds after its end until a slice is sealed, where transactions cannot be seen."""
    ledger: bool = True
    """Record what is copied at the dest."""
    ascending: bool = False
    """Take the numbers of the slice column to be given in ascending order."""
    allow_reverse: bool = False
    """Copy from a table that the dest's own table is copied into."""
    yes: bool = False
    """Replace all rows of a table that has some, without asking."""
    notices: bool = False
    """Pass on what the servers say below WARNING; a user's RAISE NOTICE may quote rows."""

    @property
    def replaces_whole(self) -> bool:
        """Return whether all rows of the dest's table go."""
        if self.only_empty:
            return False
        everything = isinstance(self.wanted, slices.Everything) and self.where is None
        return everything and self.mode == "replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A slice of a table of the dest, of which the ledger there is asked."""

    table: str
    """A name as in SQL, as of a request."""
    wanted: slices.Wanted
    by: str = "created_at"
    timezone: str = "UTC"


def check_recorded(asked: Recorded) -> None:
    """Raise UsageError for what the words alone show to be wrong."""
    slices.zone_name(asked.timezone)
    slices.check_order(asked.wanted)
    for text in (asked.table, asked.by, asked.timezone):
        _check_name(text)
    _check_named(asked.table, asked.by)


def check(request: Request) -> None:
    """Raise UsageError for what the words alone show to be wrong."""
    check_endpoint("source", request.source)
    check_endpoint("dest", request.dest)
    if request.mode not in get_args(Mode) or request.clear not in get_args(Clear):
        raise UsageError(
            f"no such way to copy: mode {request.mode!r}, clear {request.clear!r}",
            hint=f"Modes: {', '.join(get_args(Mode))}; clear: {', '.join(get_args(Clear))}.",
        )
    _check_mode(request)
    check_wait(request.wait_lock)
    _check_patience(request)
    slices.zone_name(request.timezone)
    slices.check_order(request.wanted)
    names = (request.table, request.into or "", request.by, request.timezone)
    named = (*request.exclude, *request.cast, *request.allow_lossy, *request.key)
    for text in (*names, *named, *(name for name, _ in request.columns)):
        _check_name(text)
    _check_sql(request)
    _check_named(request.table, request.by)
    if request.into is not None and not request.into.strip():
        raise UsageError("the table has no name")
    if request.rate_limit is not None and request.rate_limit < SLOWEST:
        raise UsageError(
            f"cannot copy at {request.rate_limit} bytes a second", hint="At least 1kB."
        )
    if request.verify not in get_args(Verify):
        raise UsageError(
            f"no such verification: {request.verify!r}",
            hint=f"Choose {' or '.join(get_args(Verify))}.",
        )
    if request.transport not in get_args(Transport):
        raise UsageError(
            f"no such transport: {request.transport!r}",
            hint=f"Transports: {', '.join(get_args(Transport))}.",
        )
    if request.stall_timeout is not None and request.stall_timeout <= 0:
        raise UsageError(f"cannot give up after {request.stall_timeout} seconds of silence")
    if request.clear == "truncate" and request.where is not None:
        raise UsageError(
            "--clear truncate removes every row, and the slice is what a condition selects",
            hint="Leave it out to delete the slice alone.",
        )


def _check_name(text: str) -> None:
    if not _is_text(text):
        raise UsageError("a name is not valid text", detail=f"It is {text!r}.")


def _check_named(table: str, by: str) -> None:
    if not table.strip():
        raise UsageError("the table has no name")
    if not by.strip():
        raise UsageError("the slice column has no name")


def _check_mode(request: Request) -> None:
    """Raise UsageError for options that mean nothing in the mode."""
    mode = request.mode
    for given, option, of in (
        (request.clear == "truncate", "--clear truncate", ("replace",)),
        (request.swap, "--swap", ("replace",)),
        (
            request.min_ratio is not None and not request.merge_deletes,
            "--min-ratio",
            ("replace",),
        ),
        (bool(request.key), "--key", ("merge",)),
        (request.merge_deletes, "--merge-deletes", ("merge",)),
        (request.again, "--again", ("append",)),
    ):
        if given and mode not in of:
            raise UsageError(
                f"{option} means nothing in mode {mode}", hint=f"It goes with --mode {of[0]}."
            )
    for hazard in request.accept:
        if hazard not in get_args(Hazard):
            raise UsageError(
                f"nothing to accept: {hazard!r}", hint=f"Hazards: {', '.join(get_args(Hazard))}."
            )
    uncounted = request.clear == "truncate" or request.swap
    if request.min_ratio is not None and uncounted:
        raise UsageError(
            "--min-ratio needs the rows counted that are removed",
            hint="Let them be deleted: without --swap, with --clear delete.",
        )
    if request.swap and request.clear == "truncate":
        raise UsageError("--swap and --clear truncate were both given", hint="Choose one.")
    if request.swap and request.where is not None:
        raise UsageError(
            "--swap replaces all rows, and the slice is what a condition selects",
            hint="Leave it out to delete the slice alone.",
        )
    if request.min_ratio is not None and not 0 < request.min_ratio <= 1:
        raise UsageError(
            f"not a part of the rows: {request.min_ratio}", hint="Above 0 and at most 1, as in 0.5."
        )


LOOK_FIRST = "Look at the dest first: to run it again may add the rows twice."


def left_open(mode: Mode, *, tells: bool) -> tuple[str, str]:
    """Return what a COMMIT without an answer leaves behind, and what to do about it.

    `tells` says that the ledger will know, and that it will be asked.
    """
    if mode == "replace":
        return (
            "The slice is either exactly what it was or exactly what the source had.",
            "Run the same command again: it makes the slice equal to the source's.",
        )
    if mode == "merge":
        return (
            "Either all rows were merged or none.",
            "Run the same command again: rows that are there are left alone.",
        )
    return (
        "Either all rows were added or none.",
        "Run the same command again: the ledger knows whether they are there."
        if tells
        else LOOK_FIRST,
    )


def check_endpoint(side: Side, endpoint: Endpoint) -> None:
    """Raise UsageError for an endpoint that names no server."""
    if isinstance(endpoint.target, str) and not _is_text(endpoint.target):
        raise UsageError(f"the connection string of the {side} is not valid text")
    if isinstance(endpoint.target, str) and not endpoint.target.strip():
        # An unset variable in a script must not mean libpq's default, a local server.
        raise UsageError(
            f"the {side} is not named: {endpoint.origin} is empty",
            hint="Give a URI, keywords, or service=NAME.",
        )


def check_settings(side: Side, settings: Iterable[tuple[str, str]], fixed: Container[str]) -> None:
    """Raise UsageError for a parameter that is none, or that what a copy means depends on."""
    for name, value in settings:
        texts = isinstance(name, str) and isinstance(value, str)
        if not texts or not _PARAMETER.fullmatch(name) or not _is_text(value):
            raise UsageError(
                f"not a parameter of a server: {name!r}",
                hint=f"Write it as in --{side}-set work_mem=64MB.",
            )
        if name.lower() in fixed:
            raise UsageError(
                f"{name} cannot be set",
                detail="What a copy reads, writes or counts depends on it.",
                hint=f"--{side}-set is for limits and resources: statement_timeout, work_mem, "
                "role.",
            )


def check_wait(seconds: float) -> None:
    """Raise UsageError for a time that cannot be a lock_timeout."""
    if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        raise UsageError(
            f"cannot wait {seconds} seconds for a lock",
            hint=f"At least 0 and at most {LONGEST_WAIT_SECONDS // 86400} days.",
        )


def check_age(seconds: float) -> None:
    """Raise UsageError for an age from which on nothing of the ledger may be removed."""
    if not YOUNGEST_SECONDS <= seconds <= OLDEST_SECONDS:
        raise UsageError(
            f"cannot remove what is older than {seconds:g} seconds",
            hint=f"At least {YOUNGEST_SECONDS // 60} minutes, at most "
            f"{OLDEST_SECONDS // 86400} days.",
        )


def _check_patience(request: Request) -> None:
    if not 0 <= request.retries <= MOST_RETRIES:
        raise UsageError(
            f"cannot try again {request.retries} times", hint=f"At least 0, at most {MOST_RETRIES}."
        )
    if not 0 <= request.retry_delay <= LONGEST_WAIT_SECONDS:
        raise UsageError(
            f"cannot wait {request.retry_delay} seconds before the next try",
            hint=f"At least 0 and at most {LONGEST_WAIT_SECONDS // 86400} days.",
        )
    if not 0 <= request.settle <= LONGEST_WAIT_SECONDS:
        raise UsageError(
            f"a slice cannot settle for {request.settle} seconds",
            hint=f"At least 0 and at most {LONGEST_WAIT_SECONDS // 86400} days.",
        )


def _check_sql(request: Request) -> None:
    for what, text in (
        ("the condition", request.where),
        ("the query", request.query),
        *((f"the expression of {name!r}", expression) for name, expression in request.columns),
    ):
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{what} is not text")
        if text is not None and not text.strip():
            # An unset variable in a script must not mean all rows.
            raise UsageError(f"{what} is empty")
        if text is not None and not _is_text(text):
            raise UsageError(f"{what} is not valid text")
    if request.query is None:
        return
    if request.where is not None:
        raise UsageError(
            "--where and --query were both given",
            hint="Put the condition into the query; what the dest loses is said by a range or "
            "--all.",
        )
    if request.into is not None:
        raise UsageError(
            "--into and --query were both given", hint="With --query, TABLE is the dest's."
        )


def _is_text(text: str) -> bool:
    """Return whether the text can be sent: arguments may hold bytes that are none, or a NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def duration(text: str) -> float:
    """Return the seconds that `text` means, in PostgreSQL's units: 500ms, 30s, 10min, 1h.

    A bare number counts seconds. Raises UsageError for anything else.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise UsageError(
            f"not a duration: {text!r}", hint="Write it as PostgreSQL does: 500ms, 30s, 10min, 1h."
        )
    return float(found[1]) * _UNITS[found[2] or "s"]


def length(text: str) -> timedelta | int:
    """Return the length of a slice: a duration, or of a column of whole numbers so many of them.

    Raises UsageError for anything else.
    """
    word = text.strip()
    return int(word) if _COUNT.fullmatch(word) else timedelta(seconds=duration(word))


_COUNT = re.compile(r"\d{1,18}(_\d{1,18})*")


# PostgreSQL's units of size, in bytes ("Parameter Names and Values").
_SIZES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*(B|kB|MB|GB|TB)")


def size(text: str) -> int:
    """Return the bytes that `text` means, in PostgreSQL's units: 500kB, 50MB, 1GB.

    Raises UsageError for anything else; a bare number is no size, since it could mean either.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(
            f"not a size: {text!r}", hint="Write it as PostgreSQL does: 500kB, 50MB, 1GB."
        )
    return round(float(found[1]) * _SIZES[found[2]])


def in_units(count: int) -> str:
    """Return a number of bytes in PostgreSQL's units, whose kB is 1024 bytes."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def setting(text: str) -> tuple[str, str]:
    """Return name and value of `name=value`; raises UsageError for anything else."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"not a setting: {text!r}", hint="Write name=value, as work_mem=64MB.")
    return name.strip(), value.strip()


def computed(text: str) -> tuple[str, str]:
    """Return name and expression of `name=expression`; the name may be quoted as in SQL.

    Raises UsageError for anything else.
    """
    found = _COMPUTED.fullmatch(text)
    if not found:
        raise UsageError(
            f"not a computed column: {text!r}",
            hint='Write name=expression, such as "email=md5(email)".',
        )
    return found[1], found[2]


_COMPUTED = re.compile(r'\s*("(?:[^"]|"")+"|[^"=\s][^"=]*?)\s*=(.*)', re.DOTALL)


def wanted(
    *,
    day: slices.Between | None,
    month: slices.Between | None,
    start: slices.Bound | slices.DaysAgo | None,
    stop: slices.Bound | slices.DaysAgo | None,
    everything: bool,
    where: str | None = None,
    takes_where: bool = True,
) -> slices.Wanted:
    """Return the one slice that was asked for; raises UsageError for none and for several.

    A condition is asked of all rows where it stands alone, else of those in the range;
    `takes_where` tells whether one could be given.
    """
    if (start is None) != (stop is None):
        raise UsageError(
            "a range needs both its ends", hint="Give --from and --to; --to is exclusive."
        )
    asked: list[slices.Wanted] = [choice for choice in (day, month) if choice is not None]
    if start is not None and stop is not None:
        asked.append(slices.Between(start, stop))
    if everything:
        asked.append(slices.Everything())
    if where is not None and everything:
        raise UsageError("--all and --where were both given", hint="Leave --all out.")
    if where is not None and not asked:
        return slices.Everything()
    if len(asked) != 1:
        raise UsageError(
            "several slices were asked for" if asked else "which rows? No slice was given",
            hint="Give one of --day, --month, --from with --to, "
            f"{'--where, ' if takes_where else ''}or --all.",
        )
    return asked[0]
