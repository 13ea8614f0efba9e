"""The parts of a table are disjoint and complete, however wrong its size was told."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypipe.parts import Pages, cut

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
