"""Up to which instant a table is known to be complete: whether a slice is open or sealed.

A row is usually stamped with the moment at which its transaction began (`DEFAULT now()`) and seen
when that commits. So a slice that has ended may still get rows from transactions that began before
its end. Pure: facts about the source in, decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from copypipe import slices
from copypipe.slices import Slice

# A session bears the time at which its statement arrived and shows it a moment later, when it is
# already late for whoever looks in between (exec_simple_query in postgres.c). That takes
# microseconds; a process that the kernel did not run meanwhile, some milliseconds.
MARGIN = timedelta(seconds=1)


class Instance(NamedTuple):
    """One run of a server's postmaster."""

    started: datetime
    is_standby: bool


@dataclass(frozen=True, slots=True)
class Writers:
    """What a server tells of the transactions that may still write, all of one moment."""

    clock: datetime
    """The server's clock, read before the rest."""
    oldest: datetime | None
    """When the oldest transaction began that can be seen; None for no transaction."""
    unseen: int
    """Sessions in the database whose transactions cannot be seen."""
    prepared: int
    """Prepared transactions of the database. When they began, nobody knows any more."""
    replayed: datetime | None
    """The last commit that a standby has replayed."""
    instance: Instance


@dataclass(frozen=True, slots=True)
class Horizon:
    """All that was stamped before `until` is there; what came later may be incomplete."""

    clock: datetime
    """The source's clock, before anything else was looked at."""
    until: datetime | None
    """None where nothing can be said."""
    why: str | None
    """What keeps it from being the present; None for nothing."""


class Highest(NamedTuple):
    """The highest number of a column that was given out and is there."""

    number: int | None
    """None for no row, and where `why` says so."""
    at: datetime
    """The server's clock, read after that."""
    looked: float
    """Ours (`time.monotonic`), read after both."""
    why: str | None = None
    """What keeps it from being known."""


def horizon(
    writers: Writers, settle: timedelta, serves: Instance, *, indirect: bool = False
) -> Horizon:
    """Return how far a table is complete for a snapshot taken after these facts were told.

    `settle` is how long after its end a slice is taken to be complete where running transactions
    cannot be seen. `serves` is the server on which the snapshot was taken. `indirect` tells that
    what is read is a view, a query or a table with inheritance children: behind them may be what
    others than transactions of this database fill (a foreign table, a materialized view).
    """
    clock = writers.clock
    if serves != writers.instance:
        return Horizon(clock, None, "the source's transactions went to several servers")
    if writers.prepared:
        return Horizon(clock, None, f"the source has prepared transactions ({writers.prepared})")
    if writers.instance.is_standby:
        if writers.replayed is None:
            return Horizon(clock, None, "the source is a standby that has replayed no commit yet")
        bounds = [
            (
                # Those who read there write nothing.
                min(clock, writers.replayed) - settle,
                "the source is a standby, which does not show the transactions of its primary",
            )
        ]
    else:
        bounds = _primary(writers, settle)
    if indirect:
        bounds.append(
            (clock - settle, "what is read may show tables that are filled from elsewhere")
        )
    until, why = min(bounds, key=lambda bound: bound[0], default=(clock, None))
    present = clock - MARGIN
    return Horizon(clock, until, why) if until < present else Horizon(clock, present, None)


def _primary(writers: Writers, settle: timedelta) -> list[tuple[datetime, str]]:
    """Return what bounds the horizon of a server that is written to."""
    bounds = []
    if writers.oldest is not None:
        since = f"{writers.oldest:%Y-%m-%d %H:%M:%S}+00"
        bounds.append((writers.oldest, f"a transaction at the source is running since {since}"))
    if writers.unseen:
        why = (
            "transactions at the source cannot be seen: the role lacks pg_read_all_stats, or they "
            "do not show themselves (track_activities)"
        )
        bounds.append((writers.clock - settle, why))
    return bounds


def open_because(slice_: Slice, seen: Horizon, highest: Highest | None = None) -> str | None:
    """Return why the slice may still get rows, None for a sealed one.

    Numbers are given in ascending order: what a transaction draws that began after `highest` was
    seen is higher. So a range up to it is complete as soon as all transactions have ended that were
    running then.
    """
    around = slices.range_of(slice_)
    if around is not None and around.numbers:
        return _open_numbers(around.numbers[1], seen, highest)
    end = slices.end(slice_)
    if end is None:
        return "it has no end"
    if seen.until is not None and end <= seen.until:
        return None
    if seen.why is None or end > seen.clock - MARGIN:
        return "its end is not past at the source"
    return seen.why


def _open_numbers(stop: int, seen: Horizon, highest: Highest | None) -> str | None:
    if highest is None:
        return "nobody has looked for the highest number at the source"
    if highest.why is not None:
        return highest.why
    if highest.number is None or stop > highest.number + 1:
        return f"the highest number at the source was {highest.number}"
    if seen.until is not None and highest.at <= seen.until:
        return None
    return seen.why or "transactions may be running that had begun when the highest number was seen"


def is_past(slice_: Slice, seen: Horizon, highest: Highest | None) -> bool:
    """Return whether what comes next belongs behind the slice, but for what is late."""
    around = slices.range_of(slice_)
    if around is not None and around.numbers:
        known = highest.number if highest is not None else None
        return known is None or around.numbers[1] <= known + 1
    end = slices.end(slice_)
    return end is not None and end <= seen.clock
