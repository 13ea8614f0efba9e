"""What words of the command line mean, the same in every command that takes them."""

from __future__ import annotations

from copypipe import requests, slices


def wanted(
    *,
    day: str | None = None,
    month: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    everything: bool = False,
    where: str | None = None,
    takes_where: bool = True,
) -> slices.Wanted:
    """Return the slice, or the range, that the words of these options name; raises UsageError."""
    return requests.wanted(
        day=slices.day(slices.parse_day(day)) if day is not None else None,
        month=slices.month(month) if month is not None else None,
        start=slices.parse_bound(start) if start is not None else None,
        stop=slices.parse_bound(stop) if stop is not None else None,
        everything=everything,
        where=where,
        takes_where=takes_where,
    )
