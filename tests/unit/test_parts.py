"""The parts of a table are disjoint and complete, however wrong its size was told."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypipe.parts import Pages, Partition, cut, pack

LAST_PAGE = 2**32 - 2  # MaxBlockNumber

PAGES = st.one_of(st.integers(0, 50), st.integers(0, 10**7))
SIZES = st.integers(0, 2**44)


@given(PAGES, SIZES, st.integers(0, 2**40), st.integers(0, LAST_PAGE))
def test_each_page_is_in_exactly_one_part(pages: int, size: int, part: int, page: int) -> None:
    part = max(part, size // 1000)  # as many parts as a test can look at
    found = cut(pages, size, part)

    within = [each for each in found if (each.start or 0) <= page]
    within = [each for each in within if each.stop is None or page < each.stop]
    assert len(within) == 1
    assert found[0].start is None
    assert found[-1].stop is None
    assert all(one.stop == other.start for one, other in pairwise(found))


@given(PAGES, SIZES, st.integers(1, 2**40))
def test_parts_are_alike_and_not_larger_than_was_asked(pages: int, size: int, part: int) -> None:
    part = max(part, size // 1000, 1)
    found = cut(pages, size, part)

    edges = [0, *(each.stop for each in found if each.stop is not None), pages]
    lengths = [stop - start for start, stop in pairwise(edges)]
    assert max(lengths) - min(lengths) <= 1
    assert len(found) == max(1, min(-(-size // part), pages))
    assert min(lengths) > 0 or len(found) == 1, "no part without a page"


@pytest.mark.parametrize(
    ("pages", "size", "part", "found"),
    [
        (0, 0, 100, [Pages(None, None)]),
        (10, 80, 100, [Pages(None, None)]),
        (10, 200, 100, [Pages(None, 5), Pages(5, None)]),
        # Most of it is TOAST: its three pages make three parts, and no more.
        (3, 1000, 100, [Pages(None, 1), Pages(1, 2), Pages(2, None)]),
    ],
)
def test_parts_of_a_table(pages: int, size: int, part: int, found: list[Pages]) -> None:
    assert list(cut(pages, size, part)) == found


def test_a_part_is_told_by_its_pages() -> None:
    assert [str(part) for part in cut(10, 200, 100)] == ["pages [0, 5)", "pages [5, )"]


PARTITIONS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000)), max_size=30)


@given(PARTITIONS, st.integers(1, 400))
def test_each_page_of_each_partition_is_in_exactly_one_part(
    sizes: list[tuple[int, int]], part: int
) -> None:
    partitions = [Partition(("s", f"p{n}"), *each) for n, each in enumerate(sizes)]
    found = pack(partitions, part, "run")

    for each in partitions:
        mine = [pages for pages in found if each.name in pages.partitions]
        edges = [(pages.start, pages.stop) for pages in mine]
        assert edges[0][0] is None
        assert edges[-1][1] is None
        assert all(one[1] == other[0] is not None for one, other in pairwise(edges))
        assert len(mine) == 1 or each.size_bytes >= 2 * part
    assert {name for pages in found for name in pages.partitions} == {p.name for p in partitions}


@given(PARTITIONS, st.integers(1, 400))
def test_small_partitions_go_together(sizes: list[tuple[int, int]], part: int) -> None:
    partitions = [Partition(("s", f"p{n}"), *each) for n, each in enumerate(sizes)]
    by_name = {each.name: each.size_bytes for each in partitions}

    together = [
        [by_name[name] for name in pages.partitions]
        for pages in pack(partitions, part)
        if (pages.start, pages.stop) == (None, None)
    ]

    assert all(len(some) == 1 or sum(some) <= part for some in together)
    for one, other in pairwise(together):
        assert sum(one) + other[0] > part, "no part that would fit into the one before"


def test_parts_of_partitions_are_told_by_their_names() -> None:
    found = pack(
        [Partition(("s", "a"), 1, 10), Partition(("s", "b"), 1, 90), Partition(("s", "c"), 9, 250)],
        100,
    )
    assert [str(part) for part in found] == [
        "pages [0, 3) of s.c",
        "pages [3, 6) of s.c",
        "pages [6, ) of s.c",
        "all pages of s.b, s.a",
    ]
