"""Which slices of a ledger still count: compared with instants that are counted one by one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypipe.ledger import superseded
from copypipe.slices import Covered

# So few hours that intervals often touch, overlap and contain each other.
HOURS = 12
# Each with what it is a partition of.
TABLES, COLUMNS = ((1,), (2, 1), (3, 1)), ("created_at", "paid_at", None)


def at(hour: int) -> datetime:
    return datetime(2018, 4, 29, tzinfo=UTC) + timedelta(hours=hour)


def interval(bounds: tuple[int, int]) -> tuple[datetime | None, datetime | None]:
    """Return an interval of hours; what reaches to the ends has no bound."""
    start, stop = bounds
    return at(start) if start else None, at(stop) if stop < HOURS else None


bounds = st.tuples(st.integers(0, HOURS), st.integers(0, HOURS)).filter(lambda b: b[0] < b[1])


@given(st.lists(bounds), bounds)
def test_intervals_cover_what_their_instants_do(
    added: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    covered, hours = Covered(), set[int]()
    for each in added:
        covered.add(*interval(each))
        hours |= {*range(*each)}

    assert covered.holds(*interval(asked)) == (hours >= {*range(*asked)})


told = st.lists(
    st.tuples(
        st.sampled_from(TABLES),
        st.sampled_from(["one", "another"]),
        st.booleans(),
        st.sampled_from(COLUMNS),
        st.booleans(),
        st.lists(bounds, max_size=2),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)


@given(told)
def test_a_slice_counts_until_later_ones_tell_all_its_instants(slices: list[Any]) -> None:
    rows, expected = [], {}
    later: list[Any] = []
    for number, row in reversed([*enumerate(slices)]):
        table, *of, parts, whole, is_old = row
        rows.append((number, [*table], *of, [*map(interval, parts)], None, whole, is_old))

        def told(oid: int, part: tuple[int, int], row: Any = row) -> bool:
            _, kind, compared, by, turned, *_ = row
            known = {
                hour
                for other, of_kind, only_compared, of_column, reverse, instants, tells, _ in later
                if (other[0], of_kind, of_column) == (oid, kind, by) and tells
                if (compared or not only_compared) and (turned or not reverse)
                for each in instants
                for hour in range(*each)
            }
            return known >= {*range(*part)}

        if parts and all(any(told(oid, part) for oid in table) for part in parts):
            expected[number] = is_old
        later.append(row)

    assert superseded(rows) == expected


@pytest.mark.parametrize("stop", [None, at(3)], ids=["without a bound", "to a time"])
def test_nothing_covers_nothing(stop: datetime | None) -> None:
    assert not Covered().holds(None, stop)
