"""What a table and a column are, as PostgreSQL means them, and which columns of two tables meet.

Pure values: nothing here knows a connection. All names are as in the catalog, never quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from copypipe.types import Value

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
    """One column as pg_attribute and pg_type describe it, or one that an expression computes."""

    name: str
    number: int
    """pg_attribute.attnum; 0 for a column that is computed."""
    value: Value
    """Its type, with the modifier."""
    sorting: str | None
    """The collation that sorts and folds its text, "database" for the database's; None for none."""
    not_null: bool
    generated: bool
    """GENERATED ALWAYS AS (expression), stored or virtual. Identity columns are not."""
    has_default: bool
    """A row that does not say a value gets one: DEFAULT, identity, a domain's default."""
    always_identity: bool = False
    """GENERATED ALWAYS AS IDENTITY: an UPDATE may not give it a value."""
    expression: str | None = None
    """SQL of the user that computes it at the source; None where it is read as it is."""
    renames: str | None = None
    """The column that the expression merely gives another name."""

    @property
    def type_oid(self) -> int:
        """Return the OID of its type."""
        return self.value.type.oid

    @property
    def type_name(self) -> str:
        """Return its type as SQL spells it, modifier included."""
        return self.value.name


@dataclass(frozen=True, slots=True)
class Index:
    """An index whose first key is the slice column, so that it can serve the slice."""

    name: str
    is_sorted: bool
    """It finds the highest value at once."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index, by which rows of the dest can be found."""

    name: str
    is_primary: bool
    columns: tuple[str, ...]
    equals: tuple[str, ...]
    """The operator of each column by which the index tells values apart, as SQL spells it."""
    inferred_by: tuple[str, ...]
    """Collation and operator class of each column, as ON CONFLICT spells them."""
    is_deferrable: bool
    hindrance: str | None
    """Why rows cannot be merged by it, None for no reason."""


@dataclass(frozen=True, slots=True)
class OwnedSequence:
    """What numbers a column: of an identity, or owned by the column."""

    column: str
    schema: str
    name: str
    ascends: bool
    may_advance: bool
    """The role has SELECT and UPDATE on it, and SELECT on the column."""
    keeps_order: bool
    """It gives its numbers in ascending order: it has no CACHE and does not CYCLE."""

    @property
    def full_name(self) -> str:
        """Return schema.name for messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class DrawnSequence:
    """From what the default of a column draws that is not copied."""

    schema: str
    name: str
    may_draw: bool
    """The role has USAGE, or UPDATE, on it."""

    @property
    def full_name(self) -> str:
        """Return schema.name for messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition for a range of the slice column."""

    oid: int
    schema: str
    name: str
    start: date
    stop: date
    may_truncate: bool
    """The role has that right on it."""

    @property
    def full_name(self) -> str:
        """Return schema.name for messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of the slice column for which a partitioned table has no partition."""

    start: date
    stop: date

    def __str__(self) -> str:
        return f"from {self.start} to {self.stop}"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What becomes of a table's rows besides being read and written."""

    is_unlogged: bool
    """A crash of the server empties it, or a partition of it."""
    live_rows: int
    """By the server's statistics, which lag behind and may be lost; as the next."""
    dead_rows: int
    """Rows that were deleted, updated or rolled back, and take space until VACUUM."""


Action = Literal["no action", "restrict", "cascade", "set null", "set default"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of another table that points at the dest table."""

    constraint: str
    table: str
    on_delete: Action
    on_update: Action
    is_deferrable: bool
    """Rows that point at nothing may be there until COMMIT, if the transaction says so."""
    columns: tuple[str, ...]
    """Those of the dest table at which it points."""
    is_own: bool
    """The table points at itself."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the connected role may do with the table."""

    select: bool
    """SELECT on the table as a whole, which LOCK TABLE asks for; columns may be granted singly."""
    readable: frozenset[str]
    """The columns that it may read."""
    insert: frozenset[str]
    """The columns into which it may insert."""
    update: frozenset[str]
    """The columns that it may update."""
    delete: bool
    truncate: bool
    lock: bool
    """A right to write the table as a whole, which LOCK TABLE asks for; columns do not count."""


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
    has_foreign_parts: bool
    """A partition, or an inheritance child, is a foreign table."""
    has_rules: bool
    has_triggers: bool
    """Enabled ones of users, for INSERT or DELETE, on it or on a partition."""
    has_update_triggers: bool
    """Enabled ones of users, for UPDATE."""
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


@dataclass(frozen=True, slots=True)
class Query:
    """A query of the user that is read in a table's place; it stays within its parentheses."""

    text: str = field(repr=False)
    columns: tuple[Column, ...]

    @property
    def full_name(self) -> str:
        """Return what messages call it."""
        return "(query)"

    @property
    def kind_name(self) -> str:
        """Return the kind of relation."""
        return "query"


Relation = Table | Query
"""What is read at the source."""


def named(name: str, columns: Iterable[Column]) -> Column | None:
    """Find a column by its name as in SQL, or else exactly as in the catalog."""
    by_name = {column.name: column for column in columns}
    return by_name.get(folded(name)) or by_name.get(name)


def folded(name: str) -> str:
    """Return the name that an identifier in SQL means: lower case unless it is quoted.

    Letters beyond ASCII stay as they are (downcase_identifier in scansup.c, of a UTF-8 database).
    """
    if len(name) > 1 and name.startswith('"') and name.endswith('"'):
        return name[1:-1].replace('""', '"')
    return "".join(c.lower() if c.isascii() else c for c in name)


def spelled(schema: str, name: str) -> str:
    """Return the name of a table as in SQL, whatever letters are in it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))


@dataclass(frozen=True, slots=True)
class Matching:
    """Which columns go over, and what does not fit."""

    columns: tuple[tuple[Column, Column], ...]
    """Pairs (source, dest) in the dest's order."""
    left_out: tuple[Column, ...]
    """Columns that the dest generates itself."""
    excluded: tuple[Column, ...]
    """Columns of the dest that the request leaves to their defaults."""
    without_home: tuple[Column, ...]
    """Columns of the source that the dest lacks."""
    without_source: tuple[Column, ...]
    """Columns of the dest that the source lacks."""

    @property
    def left_to_defaults(self) -> tuple[Column, ...]:
        """Return the columns of the dest that get their defaults."""
        return (*self.excluded, *self.without_source)


def match(
    source: Iterable[Column],
    dest: Iterable[Column],
    *,
    computed: Mapping[str, Column] | None = None,
    excluded: frozenset[str] = frozenset(),
) -> Matching:
    """Pair the columns by name, whatever their order; says nothing about their types.

    `computed` gives the columns of the dest that an expression fills; `excluded` names columns of
    either side that do not go over.
    """
    computed = computed or {}
    at_source = {c.name: c for c in source if c.name not in excluded}
    at_dest = {c.name: c for c in dest}
    given = {**at_source, **computed}
    wanted = [c for c in at_dest.values() if not c.generated and c.name not in excluded]
    renamed = {c.renames for c in computed.values()}
    return Matching(
        columns=tuple((given[c.name], c) for c in wanted if c.name in given),
        left_out=tuple(c for c in at_dest.values() if c.generated),
        excluded=tuple(c for c in at_dest.values() if not c.generated and c.name in excluded),
        without_home=tuple(
            c for name, c in at_source.items() if name not in at_dest and name not in renamed
        ),
        without_source=tuple(c for c in wanted if c.name not in given),
    )
