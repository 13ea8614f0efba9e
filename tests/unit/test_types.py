"""Which types may cross as bytes, and what is said of the others."""

from dataclasses import replace
from typing import Any

import pytest

from copypipe.tables import Column
from copypipe.types import Surroundings, obstacle

INT4 = Column(
    name="c",
    number=1,
    type_oid=23,
    typmod=-1,
    type_name="integer",
    type_kind="b",
    element_oid=0,
    binary=True,
    not_null=False,
    sorting=None,
    generated=False,
    has_default=False,
)
HERE = Surroundings(major=17, lc_monetary="C")


def of(name: str, oid: int, **changes: Any) -> Column:
    return replace(INT4, type_name=name, type_oid=oid, **changes)


MONEY = of("money", 790)
INTERVAL = of("interval", 1186)
MONEYS = of("money[]", 791, element_oid=790)
INTERVALS = of("interval[]", 1187, element_oid=1186)


@pytest.mark.parametrize(
    "column",
    [
        INT4,
        MONEY,
        INTERVAL,
        of("integer[]", 1007, element_oid=23),
        of("numeric(10,2)", 1700, typmod=655366),
        of("int4range", 3904, type_kind="r"),
        of("int4multirange", 4451, type_kind="m"),
    ],
    ids=lambda column: column.type_name,
)
def test_the_same_built_in_type_crosses(column: Column) -> None:
    assert obstacle(column, column, HERE, HERE) is None


def test_what_is_not_about_the_bytes_does_not_matter() -> None:
    other = replace(INT4, name="d", not_null=True, generated=True)

    assert obstacle(INT4, other, HERE, HERE) is None


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        (INT4, of("bigint", 20)),
        (of("bigint", 20), of("numeric", 1700)),
        (of("timestamp without time zone", 1114), of("timestamp with time zone", 1184)),
        (of("character varying(10)", 1043, typmod=14), of("character varying(20)", 1043)),
        (of("numeric(10,2)", 1700, typmod=655366), of("numeric(12,4)", 1700, typmod=786440)),
        (INT4, of("integer[]", 1007, element_oid=23)),
    ],
    ids=lambda column: column.type_name,
)
def test_another_type_or_modifier_is_refused_in_both_directions(
    source: Column, dest: Column
) -> None:
    for one, other in ((source, dest), (dest, source)):
        expected = f"{one.type_name} at the source, {other.type_name} at the dest"
        assert obstacle(one, other, HERE, HERE) == expected


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (of("mood", 16400, type_kind="e"), "mood is not a built-in type"),
        (of("mood[]", 16399, element_oid=16400), "mood[] is not a built-in type"),
        (of("cardinal_number", 12345, type_kind="d"), "cardinal_number is not a built-in type"),
        (of("pg_type", 71, type_kind="c"), "pg_type is a composite type"),
        (
            of("regclass", 2205),
            "regclass holds OIDs, which name other objects in another database",
        ),
        (
            of("regrole[]", 4097, element_oid=4096),
            "regrole[] holds OIDs, which name other objects in another database",
        ),
        (of("aclitem", 1033, binary=False), "aclitem has no binary form"),
        (of("aclitem[]", 1034, element_oid=1033), "aclitem[] has no binary form"),
        (of("pg_node_tree", 194), "pg_node_tree has no binary form"),
    ],
    ids=lambda value: getattr(value, "type_name", None),
)
def test_a_type_that_cannot_cross_is_refused_with_its_reason(column: Column, reason: str) -> None:
    assert obstacle(column, column, HERE, HERE) == reason


def test_a_type_without_binary_functions_on_one_side_is_refused() -> None:
    without = replace(INT4, binary=False)

    assert obstacle(INT4, without, HERE, HERE) == "integer has no binary form"
    assert obstacle(without, INT4, HERE, HERE) == "integer has no binary form"


@pytest.mark.parametrize("column", [MONEY, MONEYS], ids=lambda column: column.type_name)
def test_money_needs_the_same_unit_on_both_sides(column: Column) -> None:
    there = replace(HERE, lc_monetary="ja_JP")

    assert obstacle(column, column, HERE, there) == (
        "money counts units of lc_monetary: C at the source, ja_JP at the dest"
    )
    assert obstacle(INT4, INT4, HERE, there) is None


@pytest.mark.parametrize("column", [INTERVAL, INTERVALS], ids=lambda column: column.type_name)
def test_interval_does_not_cross_to_where_it_cannot_be_infinite(column: Column) -> None:
    older = replace(HERE, major=16)

    assert obstacle(column, column, HERE, older) == (
        "interval can be infinite on PostgreSQL 17; 16 would read that as another value"
    )
    assert obstacle(column, column, older, HERE) is None
    assert obstacle(column, column, older, older) is None
