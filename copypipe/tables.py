"""What a table and a column are, as PostgreSQL means them, and which columns of two tables meet.

Pure values: nothing here knows a connection. All names are as in the catalog, never quoted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# pg_class.relkind, in the words of the documentation of pg_class.
KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "i": "index",
    "I": "partitioned index",
    "c": "composite type",
    "t": "TOAST table",
}

READABLE = frozenset("rpvmf")
WRITABLE = frozenset("rp")


@dataclass(frozen=True, slots=True)
class Column:
    """One column as pg_attribute and pg_type describe it."""

    name: str
    type_oid: int
    typmod: int
    type_name: str
    """As format_type() prints it, typmod included."""
    type_kind: str
    """pg_type.typtype, of an array that of its elements."""
    element_oid: int
    """Type of an array's elements, else 0."""
    binary: bool
    """The type has both a send and a receive function."""
    not_null: bool
    generated: bool
    """GENERATED ALWAYS AS (expression), stored or virtual. Identity columns are not."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index whose first key is the slice column, so that it can serve the slice."""

    name: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of another table that points at the dest table."""

    constraint: str
    table: str
    on_delete: Literal["no action", "restrict", "cascade", "set null", "set default"]


@dataclass(frozen=True, slots=True)
class Rights:
    """What the connected role may do with the table."""

    select: bool
    """SELECT on the table as a whole, which LOCK TABLE asks for; columns may be granted singly."""
    readable: frozenset[str]
    """The columns that it may read."""
    insert: frozenset[str]
    """The columns into which it may insert."""
    delete: bool
    truncate: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One relation, read from the catalog of one side."""

    oid: int
    schema: str
    name: str
    kind: str
    """pg_class.relkind."""
    root_oid: int
    """The topmost table of its partition tree, or its own oid: the slice locks are keyed by it."""
    columns: tuple[Column, ...]
    pages: int
    """Size of the heap in 8 kB pages, with its partitions."""
    estimated_rows: int
    """The planner's number, -1 where the table was never analysed."""
    has_children: bool
    """Old-style inheritance children (partitions do not count)."""
    foreign_partitions: bool
    has_rules: bool
    has_triggers: bool
    """Enabled ones of users, for INSERT or DELETE, on it or on a partition."""
    has_truncate_triggers: bool
    row_security: bool
    """Row security would filter what this role sees."""
    references: tuple[Reference, ...]
    rights: Rights

    @property
    def full_name(self) -> str:
        """Return schema.name for messages; SQL is composed from the parts instead."""
        return f"{self.schema}.{self.name}"

    @property
    def kind_name(self) -> str:
        """Return the kind of relation in PostgreSQL's words."""
        return KINDS.get(self.kind, f"relation of kind {self.kind!r}")

    def column(self, name: str) -> Column | None:
        """Return the column of that exact name."""
        return next((c for c in self.columns if c.name == name), None)


@dataclass(frozen=True, slots=True)
class Matching:
    """Which columns go over, and what does not fit."""

    columns: tuple[tuple[Column, Column], ...]
    """Pairs (source, dest) in the dest's order."""
    left_out: tuple[Column, ...]
    """Columns that the dest generates itself."""
    without_home: tuple[Column, ...]
    """Columns of the source that the dest lacks."""
    without_source: tuple[Column, ...]
    """Columns of the dest that the source lacks."""


def match(source: Iterable[Column], dest: Iterable[Column]) -> Matching:
    """Pair the columns by name, whatever their order; says nothing about their types."""
    at_source = {column.name: column for column in source}
    at_dest = {column.name: column for column in dest}
    left_out = tuple(c for c in at_dest.values() if c.generated)
    return Matching(
        columns=tuple(
            (at_source[name], column)
            for name, column in at_dest.items()
            if name in at_source and not column.generated
        ),
        left_out=left_out,
        without_home=tuple(c for name, c in at_source.items() if name not in at_dest),
        without_source=tuple(
            c for name, c in at_dest.items() if name not in at_source and not c.generated
        ),
    )
