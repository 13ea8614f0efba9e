"""Which table goes into which: names at the dest, partition trees, parts. Pure.

A partitioned table whose partitions are the same on both sides is moved partition by partition,
each as a table of its own; else all its rows go to the root of the dest's, which routes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from copypipe import inventory, parts
from copypipe.errors import PlanRefused, UsageError, listed
from copypipe.inventory import Item
from copypipe.slices import Pages, Slice, Whole
from copypipe.statements.migrations import Target
from copypipe.tables import folded


@dataclass(frozen=True, slots=True)
class Names:
    """What tables are called at the dest."""

    schemas: Mapping[str, str]
    tables: Mapping[tuple[str, str], tuple[str, str]]
    every_schema: str | None = None
    """Where all tables go of which nothing else is said."""

    def __call__(self, item: Item) -> tuple[str, str]:
        """Return schema and name of a table at the dest."""
        schema = self.every_schema or item.schema
        other = (self.schemas.get(item.schema, schema), item.name)
        return self.tables.get((item.schema, item.name), other)


def check_names(into: Names, items: Sequence[Item]) -> None:
    """Raise PlanRefused where something is said of a table or schema that the source lacks."""
    schemas = {each.schema for each in items}
    tables = {(each.schema, each.name) for each in items}
    unknown = [*(into.schemas.keys() - schemas), *map(".".join, into.tables.keys() - tables)]
    if not unknown:
        return
    hint = "SCHEMA=SCHEMA is for all tables of a schema, SCHEMA.TABLE=SCHEMA.TABLE for one."
    meant = {each.name: each.full_name for each in items}
    if found := [meant[name] for name in unknown if name in meant]:
        hint += f" Was {listed(found)} meant?"
    raise PlanRefused(
        f"source: --into names what is not there: {listed(sorted(unknown))}",
        hint=hint,
        side="source",
    )


def names(words: Iterable[str]) -> Names:
    """Return what --into says: SCHEMA for all, or SCHEMA=SCHEMA and TABLE=TABLE pairs.

    Raises UsageError for anything else.
    """
    schemas: dict[str, str] = {}
    of_tables: dict[tuple[str, str], tuple[str, str]] = {}
    every: str | None = None
    for word in words:
        one, equals, other = word.partition("=")
        found = [inventory.split_name(text) for text in ((one, other) if equals else (one,))]
        if not equals and found[0][0] is None and every is None:
            every = folded(found[0][1])
            continue
        if len(found) == 2:
            (schema, name), (into_schema, into) = found
            if schema is None and into_schema is None:
                schemas[folded(name)] = folded(into)
                continue
            if schema is not None and into_schema is not None:
                of_tables[folded(schema), folded(name)] = (folded(into_schema), folded(into))
                continue
        raise UsageError(
            f"cannot tell what goes where: {word!r}",
            hint="Write --into SCHEMA, --into SCHEMA=SCHEMA or --into SCHEMA.TABLE=SCHEMA.TABLE.",
        )
    return Names(schemas, of_tables, every)


@dataclass(frozen=True, slots=True)
class Move:
    """One table of the source, and the one at the dest that its rows go into."""

    item: Item
    schema: str
    name: str
    into: Item | None
    """None for one that is not there yet."""
    size_bytes: int
    """Of all that is read, with TOAST."""
    index_bytes: int
    partitions: tuple[Item, ...] = ()
    """Of a partitioned table: those that have its rows."""

    @property
    def total_bytes(self) -> int:
        """Return how large it is with its indexes."""
        return self.size_bytes + self.index_bytes

    @property
    def full_name(self) -> str:
        """Return schema.name at the dest, for messages."""
        return f"{self.schema}.{self.name}"

    @property
    def there(self) -> Item:
        """Return the table at the dest, by the time that it is there."""
        if self.into is None:
            raise AssertionError("the tables of the dest are made by now")
        return self.into

    @property
    def target(self) -> Target:
        """Return the table at the dest as statements name it."""
        return Target(self.schema, self.name, only=self.there.kind != "p")

    @property
    def is_routed(self) -> bool:
        """Return whether partitions of the source go into the dest's root."""
        return self.item.kind == "p"


def moves(
    chosen: Sequence[Item], there: Sequence[Item], into: Names, *, creates: bool
) -> list[Move]:
    """Return what is moved where, the largest first.

    `there` are the tables of the dest; `creates` tells that missing ones will be made.
    """
    at_dest = {(each.schema, each.name): each for each in there}
    tops, tops_there = inventory.roots(chosen), inventory.roots(there)
    sizes = Counter(top.oid for top in tops_there.values())
    trees: dict[int, list[Item]] = {}
    for each in chosen:
        trees.setdefault(tops[each.oid].oid, []).append(each)
    found: list[Move] = []
    for top, tree in trees.items():
        root = next(each for each in tree if each.oid == top)
        # Without a column nothing of a row can be copied.
        leaves = [each for each in tree if each.kind == "r" and each.has_columns]
        if root.kind == "p" and not _alike(root, tree, at_dest, sizes, into, creates):
            schema, name = into(root)
            size = sum(each.size_bytes for each in leaves)
            indexes = sum(each.index_bytes for each in leaves)
            into_root = at_dest.get((schema, name))
            found.append(Move(root, schema, name, into_root, size, indexes, tuple(leaves)))
            continue
        for each in leaves:
            schema, name = into(each)
            item = at_dest.get((schema, name))
            found.append(Move(each, schema, name, item, each.size_bytes, each.index_bytes))
    return sorted(found, key=lambda each: -each.total_bytes)


def move(item: Item, into: Item, items: Iterable[Item]) -> Move:
    """Return the move of one table that was decided about before; `items` has its partitions."""
    leaves: tuple[Item, ...] = ()
    if item.kind == "p":
        roots = inventory.roots(items)
        within = (each for each in items if roots[each.oid] is roots[item.oid])
        leaves = tuple(each for each in within if each.kind == "r" and each.has_columns)
    tree = leaves or (item,)
    size, indexes = sum(e.size_bytes for e in tree), sum(e.index_bytes for e in tree)
    return Move(item, into.schema, into.name, into, size, indexes, leaves)


def _alike(
    root: Item,
    tree: Sequence[Item],
    at_dest: Mapping[tuple[str, str], Item],
    sizes: Mapping[int, int],
    into: Names,
    creates: bool,
) -> bool:
    """Return whether a partition tree is the same at the dest, or will be made there.

    `sizes` tells how many tables the tree of each root of the dest has. A tree is not alike either
    whose rows cannot be had, or told apart, by its partitions: those of foreign tables are seen
    through the root alone, and what hashes to one partition here may hash to another one there.
    """
    if root.has_foreign or any(each.hashes_apart for each in tree):
        return False
    top = at_dest.get(into(root))
    if top is None:
        return True  # made, or told to be missing
    pairs = [(each, at_dest.get(into(each))) for each in tree]
    if len({other.oid for _, other in pairs if other is not None}) != sizes[top.oid]:
        return False  # others are there besides
    return all(
        creates
        if other is None
        else (other.kind, other.key) == (each.kind, each.key)
        and (each.oid == root.oid or other.bound == each.bound)
        for each, other in pairs
    )


def apart(items: Sequence[Item], at_dest: Sequence[Item]) -> set[int]:
    """Return partitions of tables that the dest does not partition, or by something else.

    They would not fit there, and rows need not have them: so they are not made. As OIDs.
    """
    there = {(each.schema, each.name): each for each in at_dest}
    by_oid = {each.oid: each for each in items}
    found = set()
    for each in items:
        above = by_oid.get(each.parent or 0)
        while above is not None:
            other = there.get((above.schema, above.name))
            if other is not None and (other.kind, other.key) != (above.kind, above.key):
                found.add(each.oid)
            above = by_oid.get(above.parent or 0)
    return found


def check_there(wanted: Iterable[Move]) -> None:
    """Raise PlanRefused where tables are missing at the dest."""
    missing = [each.full_name for each in wanted if each.into is None]
    if missing:
        raise PlanRefused(
            f"dest: there is no table {listed(missing)}",
            hint="Leave --no-schema out, and what is missing is made.",
            side="dest",
        )


def cut(move: Move, part_bytes: int, run: str, limit: int | None) -> tuple[Slice, ...]:
    """Return the slices in which a table is copied.

    As one, unless it is at least two parts long: only that can be filled with frozen rows.
    """
    if limit is not None:
        return (Pages(of=run, limit=limit),)
    if move.item.has_children:
        return (Pages(of=run),)
    # Through the root, row security of partitions hides nothing.
    filtered = any(each.is_filtered for each in move.partitions)
    if move.size_bytes < 2 * part_bytes or move.item.has_foreign or filtered:
        return (Whole(),)
    if move.is_routed:
        leaves = (
            parts.Partition((each.schema, each.name), each.pages, each.size_bytes)
            for each in move.partitions
        )
        return parts.pack(leaves, part_bytes, run)
    return parts.cut(move.item.pages, move.size_bytes, part_bytes, run)
