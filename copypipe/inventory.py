"""The tables of a database: which there are, how large they are, and which of them are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from copypipe.errors import PlanRefused, UsageError
from copypipe.servers import Session
from copypipe.statements import inventory as statements
from copypipe.statements import sessions
from copypipe.tables import folded

# How many relations one statement names at most.
_AT_ONCE = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One table, and what it takes on disk."""

    oid: int
    schema: str
    name: str
    kind: str
    """pg_class.relkind: r, or p for a partitioned table, which takes nothing itself."""
    parent: int | None
    """The OID of the table that it is a partition of."""
    bound: str | None
    """Which rows it has as a partition, as SQL spells it."""
    key: str | None
    """By what it is partitioned, as SQL spells it."""
    pages: int
    size_bytes: int
    """With its TOAST."""
    index_bytes: int
    estimated_rows: float
    """The planner's number; -1 where the table was never analysed."""
    has_children: bool
    """Old-style inheritance children (partitions do not count)."""
    may_read: bool
    """The role has SELECT on it."""
    has_foreign: bool = False
    """Some of its partitions are foreign tables."""
    is_detaching: bool = False
    """A partition whose DETACH CONCURRENTLY was cut short: its parent does not show its rows."""
    hashes_apart: bool = False
    """Partitioned by hashes that are not the same on each server."""
    is_unlogged: bool = False
    is_filtered: bool = False
    """Row security hides rows from the role."""
    has_columns: bool = True
    """It has a column that can be copied."""
    is_visible: bool = True
    """Found in the role's search_path without its schema."""

    @property
    def full_name(self) -> str:
        """Return schema.name for messages."""
        return f"{self.schema}.{self.name}"


def tables(session: Session) -> tuple[Item, ...]:
    """Return the tables of users without their sizes, in the session's open transaction.

    Empties its search path; which tables are visible is asked by the one that it had before.
    """
    visible = {oid for (oid,) in session.fetch(statements.visible())}
    session.execute(sessions.empty_search_path())
    found = [Item(*row) for row in session.fetch(statements.tables())]
    return tuple(replace(each, is_visible=each.oid in visible) for each in found)


def measured(session: Session, items: Sequence[Item]) -> tuple[Item, ...]:
    """Return tables with their sizes, in the session's open transaction."""
    found = {oid: sizes for oid, *sizes in session.fetch(statements.sizes([e.oid for e in items]))}
    nothing = (0, 0, 0)
    return tuple(
        replace(each, pages=pages, size_bytes=size, index_bytes=indexes)
        for each in items
        for pages, size, indexes in [found.get(each.oid, nothing)]
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tables are meant."""

    patterns: tuple[str, ...] = ()
    """Names as in SQL, in which * stands for any characters and ? for one."""
    schemas: tuple[str, ...] = ()
    everything: bool = False
    exclude: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise UsageError where no tables are meant, or they are in two ways."""
        ways = [bool(self.patterns or self.schemas), self.everything]
        if sum(ways) != 1:
            raise UsageError(
                "all tables and some of them were asked for" if all(ways) else "which tables?",
                hint="Name tables (patterns too), or give --schema or --all-tables.",
            )
        for pattern in (*self.patterns, *self.schemas, *self.exclude):
            split_name(pattern)


_WORD = r'(?:"(?:[^"]|"")+"|[^."]+)'
_PATTERN = re.compile(rf"\s*(?:({_WORD})\.)?({_WORD})\s*")


def split_name(pattern: str) -> tuple[str | None, str]:
    """Return schema, if there is one, and name of a name or pattern; raises UsageError for none."""
    found = _PATTERN.fullmatch(pattern)
    if not found:
        raise UsageError(
            f"not the name of a table: {pattern!r}",
            hint='Names follow SQL: public.users, "Weird Name"; * and ? stand for any characters.',
        )
    return found[1], found[2]


def _matcher(word: str) -> Callable[[str], bool]:
    """Return what tells whether a name matches; quoted words stand for themselves."""
    if word.startswith('"'):
        name = folded(word)
        return lambda other: other == name
    text = folded(word.strip())
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in text)
    expression = re.compile("".join(parts), re.DOTALL)
    return lambda other: expression.fullmatch(other) is not None


def _matching(pattern: str, items: Iterable[Item]) -> list[Item]:
    """Return the tables that a pattern means: without a schema those that are visible."""
    schema, name = split_name(pattern)
    matches = _matcher(name)
    if schema is None:
        return [each for each in items if each.is_visible and matches(each.name)]
    within = _matcher(schema)
    return [each for each in items if within(each.schema) and matches(each.name)]


def pick(items: Sequence[Item], asked: Asked) -> tuple[Item, ...]:
    """Return the tables that are meant, with the partitions of those that have some.

    Raises PlanRefused for a name that nothing bears, and where nothing is left.
    """
    asked.check()
    chosen: set[int] = set()
    if asked.everything:
        chosen = {each.oid for each in items}
    for pattern in asked.patterns:
        found = _matching(pattern, items)
        if not found:
            raise PlanRefused(
                f"source: no table matches {pattern}",
                hint="Name its schema, as in public.users; unquoted names are folded to lower "
                "case. Views and foreign tables are not moved.",
                side="source",
            )
        chosen |= {each.oid for each in found}
    for schema in asked.schemas:
        matches = _matcher(schema)
        found = [each for each in items if matches(each.schema)]
        if not found:
            raise PlanRefused(f"source: there is no table in schema {schema}", side="source")
        chosen |= {each.oid for each in found}
    chosen = _with_partitions(chosen, items)
    excluded = {each.oid for pattern in asked.exclude for each in _matching(pattern, items)}
    chosen -= _with_partitions(excluded, items)
    if not chosen:
        raise PlanRefused("source: no table is left to be moved", side="source")
    return tuple(each for each in items if each.oid in chosen)


def _with_partitions(chosen: Collection[int], items: Iterable[Item]) -> set[int]:
    """Return these tables and all below them in their partition trees."""
    found, parents = set(chosen), {each.oid: each.parent for each in items}
    for oid in parents:
        above = parents[oid]
        while above is not None:
            if above in chosen:
                found.add(oid)
                break
            above = parents.get(above)
    return found


def trees(items: Sequence[Item], oids: Collection[int]) -> tuple[Item, ...]:
    """Return tables, what they are partitions of, and their partitions."""
    by_oid = {each.oid: each for each in items}
    chosen = _with_partitions(oids, items)
    for each in chosen & by_oid.keys():
        above = by_oid[each].parent
        while above is not None and above in by_oid:
            chosen.add(above)
            above = by_oid[above].parent
    return tuple(each for each in items if each.oid in chosen)


def roots(items: Iterable[Item]) -> Mapping[int, Item]:
    """Return, for each table, the topmost of these that it is a partition of, or itself."""
    by_oid = {each.oid: each for each in items}
    found = {}
    for each in by_oid.values():
        top = each
        while top.parent is not None and top.parent in by_oid:
            top = by_oid[top.parent]
        found[each.oid] = top
    return found


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield as many of the items at a time as one statement names."""
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
