"""Into which parts a table is cut, so that several may copy it at a time: ranges of its pages.

A row's place (ctid) stays what it is within one snapshot only, so all parts of a table are read in
the same one. TID range scans (PostgreSQL 14) read just the pages of a part. Partitions that go into
one table are parts as they are, small ones several at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

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


class Partition(NamedTuple):
    """A partition of the source that has rows itself."""

    name: tuple[str, str]
    pages: int
    size_bytes: int


def pack(partitions: Iterable[Partition], part_bytes: int, of: str = "") -> tuple[Pages, ...]:
    """Return parts of about `part_bytes` bytes each that together are some partitions.

    What is at least two parts long is cut as a table is; of the others the largest come first, each
    with as many of the next ones as still fit.
    """
    found: list[Pages] = []
    together: list[tuple[str, str]] = []
    size = 0
    for each in sorted(partitions, key=lambda each: -each.size_bytes):
        if each.size_bytes >= 2 * part_bytes:
            pages = cut(each.pages, each.size_bytes, part_bytes, of)
            found += [replace(part, partitions=(each.name,)) for part in pages]
            continue
        if together and size + each.size_bytes > part_bytes:
            found.append(Pages(of=of, partitions=tuple(together)))
            together, size = [], 0
        together.append(each.name)
        size += each.size_bytes
    return (*found, Pages(of=of, partitions=tuple(together))) if together else tuple(found)
