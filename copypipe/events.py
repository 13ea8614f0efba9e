"""What happened: frozen values that the engine emits and faces turn into bars, lines and JSON.

Units stand in the names of fields; every number is a total since the run began, not a difference.
A listener is one call with one event. It runs in the engine's thread, so it must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from copypipe.errors import CopypipeError, Side
from copypipe.slices import Slice


@dataclass(frozen=True, slots=True)
class Connected:
    """Both sides answered; each address is USER@HOST/DB."""

    source: str
    dest: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know that does not stop the run."""

    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """Something the user should know before the run goes on, and that is as it should be."""

    text: str


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be copied, before anything is changed."""

    table: str
    slice: Slice
    estimated_rows: int | None
    estimated_bytes: int | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another run holds an overlapping slice; this one waits up to `seconds`."""

    pids: tuple[int, ...]
    """Backends at the dest that hold the locks, as far as they can be seen."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Cleared:
    """The slice is empty at the dest, in its transaction; None where nobody counted (TRUNCATE)."""

    rows: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes and rows handed to the dest so far."""

    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing has come from a server for a while, and this is what it does."""

    side: Side
    seconds: float
    doing: str


@dataclass(frozen=True, slots=True)
class Noticed:
    """A WARNING of a server, or less than that where the request asks for notices."""

    side: Side
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Committing:
    """COMMIT is about to be sent: from here on the outcome is the dest's to say."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The outcome of COMMIT is known."""

    committed: bool


@dataclass(frozen=True, slots=True)
class LedgerMade:
    """The dest has a ledger from now on."""

    where: str


@dataclass(frozen=True, slots=True)
class Settling:
    """The answer to COMMIT was lost; the dest is asked what became of it, for `seconds` at most."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Retried:
    """A try has failed and the run will try again after `seconds`."""

    number: int
    """Of the try that failed, counted from 1."""
    of: int
    """How many tries there are at most."""
    error: CopypipeError
    undecided: bool
    """The dest holds the old slice or the new one; else nothing was changed."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Lagging:
    """A standby of a side is behind by so many seconds, and no further slice is begun for that."""

    side: Side
    seconds: float


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far a run of many slices is, over all workers; a few times a second."""

    slices: int
    """All that there are to do."""
    done: int
    failed: int
    jobs: int
    """How many are under way at a time."""
    bytes: int
    rows: int
    estimated_bytes: int
    """Of all that is to be done."""
    unit: str = "slices"
    """What is counted, in the plural."""
    besides: str = ""
    """What else is done, in words."""


Event = (
    Advanced
    | Lagging
    | Connected
    | Warned
    | Told
    | Planned
    | Waiting
    | Cleared
    | Progress
    | Silent
    | Noticed
    | Committing
    | Decided
    | LedgerMade
    | Settling
    | Retried
)


class Listener(Protocol):
    """Anything that can be called with an event."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`; must neither block nor raise."""


def ignore(event: Event, /) -> None:
    """Listen to nothing."""
