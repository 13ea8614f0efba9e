"""Into which parts a table is cut, so that several may copy it at a time: ranges of its pages.

A row's place (ctid) stays what it is within one snapshot only, so all parts of a table are read in
the same one. TID range scans (PostgreSQL 14) read just the pages of a part.
"""

from __future__ import annotations

from copypipe.slices import Pages


def cut(pages: int, size_bytes: int, part_bytes: int, of: str = "") -> tuple[Pages, ...]:
    """Return parts of about `part_bytes` bytes each that together are the table, in its order.

    `pages` are those of the table itself, `size_bytes` those of all it holds: what lies outside of
    its pages (TOAST) is taken to be spread evenly, for no catalog tells where it is. So parts are
    best small, and handed out one after the other: who has a heavy one takes fewer of them. The
    first part has no lower bound and the last one no upper: each row is in exactly one of them,
    whatever the catalog said of the number of pages. `of` is the run in whose snapshot they are.
    """
    wanted = -(-size_bytes // max(1, part_bytes))
    count = max(1, min(wanted, pages))
    edges = [number * pages // count for number in range(1, count)]
    starts, stops = [None, *edges], [*edges, None]
    return tuple(Pages(start, stop, of) for start, stop in zip(starts, stops, strict=True))
