"""What was asked: one frozen value, the same from the command line, Python and Airflow.

Nothing is decided here. What the words alone can tell is checked (`check`), so that a request
that can never work is refused before any server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from copypipe import slices
from copypipe.errors import UsageError

if TYPE_CHECKING:
    import psycopg

Mode = Literal["replace"]
Clear = Literal["delete", "truncate"]
Connect = Callable[[], "psycopg.Connection[Any]"]

# How long a run waits for another one that holds an overlapping slice: a large day takes minutes.
DEFAULT_WAIT_SECONDS = 600.0

# lock_timeout is an int4 of milliseconds: nearly 25 days.
LONGEST_WAIT_SECONDS = 24 * 86400

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
    allow_empty: bool = False
    fail_on_empty: bool = False
    wait_lock: float = DEFAULT_WAIT_SECONDS
    """Seconds to wait for another run on an overlapping slice; 0 to give up at once."""
    yes: bool = False
    """Replace all rows of a table that has some, without asking."""
    notices: bool = False
    """Pass on what the servers say below WARNING; a user's RAISE NOTICE may quote rows."""


def check(request: Request) -> None:
    """Raise UsageError for what the words alone show to be wrong."""
    for side, endpoint in (("source", request.source), ("dest", request.dest)):
        if isinstance(endpoint.target, str) and not _is_text(endpoint.target):
            raise UsageError(f"the connection string of the {side} is not valid text")
        if isinstance(endpoint.target, str) and not endpoint.target.strip():
            # An unset variable in a script must not mean libpq's default, a local server.
            raise UsageError(
                f"the {side} is not named: {endpoint.origin} is empty",
                hint="Give a URI, keywords, or service=NAME.",
            )
    if request.mode not in get_args(Mode) or request.clear not in get_args(Clear):
        raise UsageError(
            f"no such way to copy: mode {request.mode!r}, clear {request.clear!r}",
            hint=f"Modes: {', '.join(get_args(Mode))}; clear: {', '.join(get_args(Clear))}.",
        )
    if not 0 <= request.wait_lock <= LONGEST_WAIT_SECONDS:
        raise UsageError(
            f"cannot wait {request.wait_lock} seconds for a lock",
            hint=f"At least 0 and at most {LONGEST_WAIT_SECONDS // 86400} days.",
        )
    slices.zone_name(request.timezone)
    slices.check_order(request.wanted)
    for text in (request.table, request.into or "", request.by, request.timezone):
        if not _is_text(text):
            raise UsageError("a name is not valid text", detail=f"It is {text!r}.")
    if not request.table.strip() or (request.into is not None and not request.into.strip()):
        raise UsageError("the table has no name")
    if not request.by.strip():
        raise UsageError("the slice column has no name")
    if request.clear == "truncate" and not isinstance(request.wanted, slices.Everything):
        raise UsageError(
            "--clear truncate removes every row, and the slice is a part of the table",
            hint="Leave it out to delete the slice alone, or copy --all.",
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


def wanted(
    *,
    day: slices.Between | None,
    month: slices.Between | None,
    start: slices.Bound | slices.DaysAgo | None,
    stop: slices.Bound | slices.DaysAgo | None,
    everything: bool,
) -> slices.Wanted:
    """Return the one slice that was asked for; raises UsageError for none and for several."""
    if (start is None) != (stop is None):
        raise UsageError(
            "a range needs both its ends", hint="Give --from and --to; --to is exclusive."
        )
    asked: list[slices.Wanted] = [choice for choice in (day, month) if choice is not None]
    if start is not None and stop is not None:
        asked.append(slices.Between(start, stop))
    if everything:
        asked.append(slices.Everything())
    if len(asked) != 1:
        raise UsageError(
            "several slices were asked for" if asked else "which rows? No slice was given",
            hint="Give one of --day, --month, --from with --to, or --all.",
        )
    return asked[0]
