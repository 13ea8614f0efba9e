"""Which columns of two tables meet."""

from dataclasses import fields, replace
from typing import Any

import pytest

from copypipe.tables import KINDS, READABLE, WRITABLE, Column, Table, match, named
from copypipe.types import Type, Value


def typed(name: str, oid: int) -> Value:
    return Value(Type(oid, name, "base", sends=True, receives=True), -1, name)


def column(name: str, *, generated: bool = False) -> Column:
    return Column(
        name=name,
        number=1,
        value=typed("integer", 23),
        not_null=False,
        sorting=None,
        generated=generated,
        has_default=False,
    )


def columns(names: str) -> list[Column]:
    """Return the columns of a short notation: "a b=" is a and b, which the table generates."""
    return [column(name.rstrip("="), generated=name.endswith("=")) for name in names.split()]


def names(found: Any) -> list[str]:
    return [c.name for c in found]


@pytest.mark.parametrize(
    ("source", "dest", "paired", "left_out", "without_home", "without_source"),
    [
        ("a b c", "a b c", "a b c", "", "", ""),
        ("a b c", "c a b", "c a b", "", "", ""),
        ("a b c", "b", "b", "", "a c", ""),
        ("b", "a b c", "b", "", "", "a c"),
        ("a", "A", "", "", "a", "A"),
        ("a b", "a b= c=", "a", "b c", "", ""),
        ("a b=", "a b", "a b", "", "", ""),
        ("", "", "", "", "", ""),
    ],
)
def test_columns_meet_by_name_in_the_order_of_the_dest(
    source: str, dest: str, paired: str, left_out: str, without_home: str, without_source: str
) -> None:
    matching = match(columns(source), columns(dest))

    assert all(one.name == other.name for one, other in matching.columns)
    assert names(other for _, other in matching.columns) == paired.split()
    assert names(matching.left_out) == left_out.split()
    assert names(matching.without_home) == without_home.split()
    assert names(matching.without_source) == without_source.split()


def test_pairs_are_source_first() -> None:
    at_source, at_dest = replace(column("a"), value=typed("bigint", 20)), column("a")

    assert match([at_source], [at_dest]).columns == ((at_source, at_dest),)


def table(kind: str = "r") -> Table:
    """Return a table of which only the name, the kind and the columns matter."""
    facts = {field.name: None for field in fields(Table)}
    known = {"schema": "public", "name": "users", "kind": kind, "columns": (*columns("id Id"),)}
    return Table(**{**facts, **known})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("id", "id"),
        ("ID", "id"),
        ('"Id"', "Id"),
        ('"a""b"', 'a"b'),
        ("Two Words", "Two Words"),
        ('"ID"', None),
        ("x", None),
        ('"', None),
    ],
)
def test_a_column_is_named_as_in_sql_or_exactly(name: str, found: str | None) -> None:
    names = ["id", "Id", 'a"b', "Two Words"]

    assert named(name, map(column, names)) == (None if found is None else column(found))


def test_computed_excluded_and_renamed_columns() -> None:
    upper = replace(column("name"), expression="upper(name)")
    title = replace(column("title"), expression="label", renames="label")

    matching = match(
        columns("id name label secret"),
        columns("id title name loaded"),
        computed={"name": upper, "title": title},
        excluded=frozenset({"secret", "loaded"}),
    )

    assert matching.columns == (
        (column("id"), column("id")),
        (title, column("title")),
        (upper, column("name")),
    )
    assert names(matching.excluded) == ["loaded"]
    assert matching.without_home == matching.without_source == matching.left_out == ()


def test_a_column_names_its_type() -> None:
    of = replace(column("a"), value=replace(typed("numeric", 1700), name="numeric(10,2)"))

    assert (of.type_oid, of.type_name) == (1700, "numeric(10,2)")


def test_a_table_is_named_for_messages() -> None:
    assert table().full_name == "public.users"
    assert table(kind="v").kind_name == "view"
    assert table(kind="X").kind_name == "relation of kind 'X'"


def test_what_can_be_written_can_be_read_and_has_a_name() -> None:
    assert WRITABLE < READABLE < set(KINDS)
