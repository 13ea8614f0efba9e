"""What can go wrong, and what a script may conclude from it.

The tree (each class has an exit code and says whether the same call may succeed later)::

    CopypipeError              1    the copy failed: SQL or data error
    |-- UsageError             2    options, connection strings, days
    |   |-- LoginRefused       2    wrong password, unknown role or database
    |   `-- LauncherError      2    no throw-away server could be started
    |-- CopyFailed             1    a server refused the data or a statement
    |-- TransientError         5    retryable: deadlock, timeout, too many connections
    |   `-- ConnectionLost     5    retryable: unreachable, dropped
    |-- Differs                4    the two sides hold different rows
    |-- PlanRefused            6    the two sides do not fit
    |   `-- TooEarly           6    the source has no row yet, or too few
    |-- NothingToCopy          9    no row in the slice, and --fail-on-empty
    |-- SliceBusy             11    retryable: another run holds an overlapping slice
    `-- CommitUnknown         75    the answer to COMMIT was lost

    Interrupted (BaseException)     SIGHUP 129, SIGINT 130, SIGTERM 143

Whatever is raised, the dest holds what it held before; `CommitUnknown` alone cannot promise that.
The three parts of an error follow PostgreSQL's error style guide (message, detail, hint).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Literal

Side = Literal["source", "dest"]

# A message of a server is shown up to this many characters. PostgreSQL's own primary messages are
# one short line; a hostile server or a RAISE with a whole document must not flood a log.
MESSAGE_CHARACTERS = 500


class CopypipeError(Exception):
    """What failed, in three parts, on which side, and the server's SQLSTATE where it has one.

    Crosses processes with all its attributes (workers, Airflow tasks): nothing but the message has
    to be given.
    """

    exit_code = 1
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        side: Side | None = None,
        sqlstate: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = one_line(message)
        self.detail = one_line(detail) if detail else None
        self.hint = one_line(hint) if hint else None
        self.side = side
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        """Return the three parts on lines of their own, as psql prints them."""
        lines = [f"ERROR:  {self.message}"]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


class UsageError(CopypipeError):
    """The request itself is wrong; no server was changed, usually none was asked."""

    exit_code = 2


class LoginRefused(UsageError):
    """The server answered and did not let this role, password or database in."""


class LauncherError(UsageError):
    """No throw-away PostgreSQL could be started on this machine."""


class CopyFailed(CopypipeError):
    """A server refused a statement or a value; the same run would fail again."""


class TransientError(CopypipeError):
    """A server gave up for a reason that passes: deadlock, timeout, too many connections."""

    exit_code = 5
    retryable = True


class ConnectionLost(TransientError):
    """A server could not be reached, or the connection ended before its work did."""


class Differs(CopypipeError):
    """A verification found other rows at the dest than at the source; nothing was changed."""

    exit_code = 4


class PlanRefused(CopypipeError):
    """The two sides do not fit, or the plan would lose something; nothing was changed."""

    exit_code = 6

    others: tuple[PlanRefused, ...] = ()
    """What else stands in the way, found by the same plan."""

    def __str__(self) -> str:
        """Return what stands in the way, each in its three parts."""
        return "\n".join([super().__str__(), *map(str, self.others)])


class TooEarly(PlanRefused):
    """The source has no row of a slice that the dest has some of, or far fewer.

    It may have them later, so whoever schedules runs may try again; a run does not by itself.
    """


class NothingToCopy(CopypipeError):
    """The source has no row in the slice and the request calls that a failure."""

    exit_code = 9


class SliceBusy(CopypipeError):
    """Another run holds a slice that overlaps this one."""

    exit_code = 11
    retryable = True


class CommitUnknown(CopypipeError):
    """The dest could not be asked whether the COMMIT happened."""

    exit_code = 75
    interrupt: KeyboardInterrupt | None = None
    """What came while the answer was awaited, to be raised when the outcome is known."""
    said: CopypipeError | None = None
    """With what the server ended the session, where each further try would end so."""


class Interrupted(BaseException):
    """A signal asked the run to end. Not an Exception: no handler of errors may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as shells do."""
        return 128 + self.signum


# The exit code of a run of many slices, which no single error tells.
PARTLY_DONE = 3

# The contract with scripts: `--help`, the README and docs/design.md are tested against this table.
EXIT_CODES: tuple[tuple[int, str, str], ...] = (
    (0, "done, also with 0 rows", "no"),
    (1, "the copy failed: SQL or data error; nothing changed", "no"),
    (2, "usage: options, connection string, password, database, day", "no"),
    (PARTLY_DONE, "some slices were committed, others failed", "yes, it resumes"),
    (4, "a verification found a difference; nothing changed", "look first"),
    (5, "connection or transient error after all retries; nothing changed", "yes"),
    (6, "the plan refuses: the sides do not fit, an empty source; nothing changed", "no"),
    (9, "no row in the slice, with --fail-on-empty; nothing changed", "-"),
    (11, "another run holds an overlapping slice; nothing changed", "later"),
    (75, "the dest could not be asked whether a COMMIT happened", "yes"),
    (129, "SIGHUP; what was under way is rolled back", "as you wish"),
    (130, "SIGINT; what was under way is rolled back", "as you wish"),
    (143, "SIGTERM; what was under way is rolled back", "as you wish"),
)


def one_line(text: str) -> str:
    """Return `text` without anything that a terminal or a log could take for more than text.

    Servers are not trusted with escape sequences or line breaks: names and messages come from
    them, and a column may be named like a second error message.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first ten of many."""
    more = f" and {len(names) - 10} more" if names[10:] else ""
    return ", ".join(names[:10]) + more


def counted(number: int, noun: str) -> str:
    """Return how many of a thing whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return one line of `text`, white space folded, of at most MESSAGE_CHARACTERS characters."""
    line = one_line(" ".join(text.split()))
    return line if len(line) <= MESSAGE_CHARACTERS else line[: MESSAGE_CHARACTERS - 3] + "..."
