"""Up to which instant a table is known to be complete: whether a slice is open or sealed.

A row is usually stamped with the moment at which its transaction began (`DEFAULT now()`) and seen
when that commits. So a slice that has ended may still get rows from transactions that began before
its end. Pure: facts about the source in, decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from copypipe import slices
from copypipe.slices import Slice

# A session bears the time at which its statement arrived and shows it a moment later, when it is
# already late for whoever looks in between (exec_simple_query in postgres.c). That takes
# microseconds; a process that the kernel did not run meanwhile, some milliseconds.
MARGIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Writers:
    """What a server tells of the transactions that may still write, all of one moment."""

    clock: datetime
    """The server's clock, read before the rest."""
    oldest: datetime | None
    """When the oldest transaction began that can be seen; None for no transaction."""
    unseen: int
    """Sessions in the database whose transactions the role may not see."""
    prepared: int
    """Prepared transactions of the database. When they began, nobody knows any more."""
    is_standby: bool
    replayed: datetime | None
    """The last commit that a standby has replayed."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """All that was stamped before `until` is there; what came later may be incomplete."""

    clock: datetime
    """The source's clock, before anything else was looked at."""
    until: datetime | None
    """None where nothing can be said."""
    why: str | None
    """What keeps it from being the present; None for nothing."""


def horizon(writers: Writers, settle: timedelta) -> Horizon:
    """Return how far the table is complete for a snapshot taken after these facts were told.

    `settle` is how long after its end a slice is taken to be complete where running transactions
    cannot be seen.
    """
    clock = writers.clock
    if writers.prepared:
        return Horizon(clock, None, f"the source has prepared transactions ({writers.prepared})")
    until, why = clock - MARGIN, None
    if writers.oldest is not None and writers.oldest < until:
        until = writers.oldest
        why = f"a transaction at the source is running since {until:%Y-%m-%d %H:%M:%S}+00"
    if writers.is_standby:
        if writers.replayed is None:
            return Horizon(clock, None, "the source is a standby that has replayed no commit yet")
        settled = min(clock, writers.replayed) - settle
        if settled < until:
            until = settled
            why = "the source is a standby, which does not show the transactions of its primary"
    elif writers.unseen and clock - settle < until:
        until = clock - settle
        why = "the role may not see the transactions of others at the source (pg_read_all_stats)"
    return Horizon(clock, until, why)


def open_because(slice_: Slice, seen: Horizon) -> str | None:
    """Return why the slice may still get rows, None for a sealed one."""
    end = slices.end(slice_)
    if end is None:
        return "it has no end"
    if seen.until is not None and end <= seen.until:
        return None
    if seen.why is None or end > seen.clock - MARGIN:
        return "its end is not past at the source"
    return seen.why
