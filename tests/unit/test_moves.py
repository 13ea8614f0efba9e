"""Which table goes into which, and how it is cut. (tests/integration/migrate has the rest.)"""

from dataclasses import replace

import pytest

from copypipe.errors import PlanRefused, UsageError
from copypipe.inventory import Asked, Item, pick
from copypipe.migrations import moves
from copypipe.slices import Pages, Whole

MB = 1 << 20


def item(oid: int, name: str, **more: object) -> Item:
    schema, _, own = name.rpartition(".")
    plain = Item(
        oid=oid,
        schema=schema or "public",
        name=own,
        kind="r",
        parent=None,
        bound=None,
        key=None,
        pages=100,
        size_bytes=100 * 8192,
        index_bytes=0,
        estimated_rows=1.0,
        has_children=False,
        may_read=True,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


TREE = (
    item(1, "event", kind="p", key="RANGE (at)"),
    item(2, "event_1", parent=1, bound="FOR VALUES FROM (1) TO (2)"),
    item(3, "event_2", parent=1, kind="p", key="LIST (kind)", bound="FOR VALUES FROM (2) TO (3)"),
    item(4, "event_2_a", parent=3, bound="FOR VALUES IN (1)"),
)


def into(source: tuple[Item, ...], there: tuple[Item, ...], *, creates: bool) -> set[str]:
    found = moves.moves(source, there, moves.names(()), creates=creates)
    return {f"{each.item.name}->{each.full_name}" for each in found}


LEAVES = {"event_1->public.event_1", "event_2_a->public.event_2_a"}


def test_a_tree_that_is_alike_goes_leaf_by_leaf() -> None:
    assert into(TREE, TREE, creates=False) == LEAVES
    assert into(TREE, (), creates=True) == LEAVES
    assert into(TREE, TREE[:2], creates=True) == LEAVES, "what is missing is made"


@pytest.mark.parametrize(
    "there",
    [
        TREE[:2],
        (*TREE, item(5, "event_3", parent=1, bound="DEFAULT")),
        (replace(TREE[0], key="HASH (at)"), *TREE[1:]),
        (TREE[0], replace(TREE[1], bound="DEFAULT"), *TREE[2:]),
        (TREE[0], TREE[1], replace(TREE[2], kind="r", key=None)),
        (item(1, "event"),),
    ],
)
def test_a_tree_that_differs_is_routed(there: tuple[Item, ...]) -> None:
    assert into(TREE, there, creates=False) == {"event->public.event"}


def test_the_largest_comes_first() -> None:
    items = (item(1, "a"), item(2, "b", size_bytes=9 * MB), item(3, "c", index_bytes=10 * MB))
    found = moves.moves(items, (), moves.names(()), creates=True)
    assert [each.name for each in found] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("more", "limit", "expected"),
    [
        ({"size_bytes": 3 * MB}, None, (Whole(),)),
        ({"has_children": True, "size_bytes": 99 * MB}, None, (Pages(of="run"),)),
        ({"size_bytes": 99 * MB}, 7, (Pages(of="run", limit=7),)),
    ],
)
def test_what_is_copied_as_one(
    more: dict[str, object], limit: int | None, expected: tuple[object, ...]
) -> None:
    (move,) = moves.moves((item(1, "a", **more),), (), moves.names(()), creates=True)
    assert moves.cut(move, 2 * MB, "run", limit) == expected


def test_what_is_cut() -> None:
    (move,) = moves.moves((item(1, "a", size_bytes=4 * MB),), (), moves.names(()), creates=True)
    assert moves.cut(move, 2 * MB, "run", None) == (
        Pages(None, 50, "run"),
        Pages(50, None, "run"),
    )


def test_a_tree_that_is_routed_is_cut_by_its_partitions() -> None:
    tree = tuple(replace(each, size_bytes=3 * MB if each.kind == "r" else 0) for each in TREE)
    there = (item(1, "event"),)
    (move,) = moves.moves(tree, there, moves.names(()), creates=False)

    assert move == moves.move(tree[0], there[0], tree), "the same when it goes on"
    assert moves.cut(move, 3 * MB, "run", None) == (
        Pages(of="run", partitions=(("public", "event_1"),)),
        Pages(of="run", partitions=(("public", "event_2_a"),)),
    )
    assert moves.cut(move, 4 * MB, "run", None) == (Whole(),)
    # What is on another server is seen through the root alone.
    move = replace(move, item=replace(move.item, has_foreign=True))
    assert moves.cut(move, 3 * MB, "run", None) == (Whole(),)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "s.T"),
        (("x",), "x.T"),
        (("X",), "x.T"),
        (('"X"',), "X.T"),
        (("s=y",), "y.T"),
        (("other=y",), "s.T"),
        (("x", "s=y"), "y.T"),
        (('s."T"=z.u', "s=y"), "z.u"),
        (("s.t=z.u",), "s.T"),
    ],
)
def test_names(words: tuple[str, ...], expected: str) -> None:
    assert ".".join(moves.names(words)(item(1, "s.T"))) == expected


@pytest.mark.parametrize("words", [("a", "b"), ("a.b",), ("a=b.c",), ("a.b=c",), ("=",), ("a=",)])
def test_names_that_cannot_be(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        moves.names(words)


@pytest.mark.parametrize("words", [("a=b",), ("s.a=s.b",), ("s=t", "u=v")])
def test_names_of_what_is_not_moved(words: tuple[str, ...]) -> None:
    with pytest.raises(PlanRefused, match="--into names what is not there") as caught:
        moves.check_names(moves.names(words), [item(1, "s.T")])
    assert "meant" not in (caught.value.hint or "")


def test_a_table_that_was_taken_for_a_schema() -> None:
    with pytest.raises(PlanRefused, match="not there: a") as caught:
        moves.check_names(moves.names(("a=b",)), [item(1, "s.a")])
    assert "Was s.a meant?" in (caught.value.hint or "")


def test_a_quoted_star_is_a_star() -> None:
    items = (item(1, "a*"), item(2, "ab"))
    assert [each.name for each in pick(items, Asked(('"a*"',)))] == ["a*"]
    assert [each.name for each in pick(items, Asked(("a*",)))] == ["a*", "ab"]


def test_without_a_schema_what_is_visible_is_meant() -> None:
    items = (item(1, "one.t"), item(2, "two.t", is_visible=False))
    assert [each.schema for each in pick(items, Asked(("t",)))] == ["one"]
    assert [each.schema for each in pick(items, Asked(("*.t",)))] == ["one", "two"]
