"""Digests of rows, computed by the servers: alike on both of them, whatever the order of the rows.

A row becomes the bytes of `record_send`: for each column the OID of its type, the length of its
bytes or -1 for NULL, and the bytes. Every column is of a built-in type by then, whose OIDs and
bytes are the same on every server. sha256 of it, unlike md5, is there on servers that allow
approved algorithms alone (FIPS). What is compared are the sums of its first 64 bits and of the next
64: a sum, unlike XOR, tells two equal rows from none.

OFFSET 0 keeps the planner from computing a hash again for each byte that is taken from it: 2.2
instead of 4.1 us a row of eight columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.slices import DATE, Slice
from copypipe.statements.slices import predicate
from copypipe.tables import Table


@dataclass(frozen=True, slots=True)
class Form:
    """What of a column is hashed: its value, or its text form."""

    cast: str | None = None
    """The type that it is brought to first, as SQL spells it; None for its own."""
    written: bool = False
    """The text that the type's output function writes is hashed. Not a cast to text: users can
    make such casts, and that of xml keeps what a declaration says of the encoding."""

    def of(self, value: Composable) -> Composable:
        """Return what is hashed of a value."""
        brought = value if self.cast is None else SQL("{}::{}").format(value, SQL(self.cast))
        if not self.written:
            return brought
        # A row of NULLs is no NULL, so IS NULL is not asked.
        return SQL(
            "CASE WHEN pg_catalog.num_nulls({0}) = 1 THEN NULL ELSE pg_catalog.concat({0}) END"
        ).format(brought)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are hashed: a query, and the form of each of its columns in turn."""

    query: Composable
    forms: tuple[Form, ...]

    def value(self, number: int) -> Composable:
        """Return a column by its place, counted from 0."""
        return Identifier(f"c{number}")

    def form(self, number: int) -> Composable:
        """Return what is hashed of a column."""
        return self.forms[number].of(self.value(number))

    @property
    def from_item(self) -> Composed:
        """Return the query as FROM takes it."""
        names = SQL(", ").join(self.value(number) for number in range(len(self.forms)))
        return SQL("({}) AS rows ({})").format(self.query, names)

    def hash_of(self, numbers: Sequence[int]) -> Composed:
        """Return the hash of some columns of a row."""
        return SQL("pg_catalog.sha256(pg_catalog.record_send(ROW({})))").format(
            SQL(", ").join(self.form(number) for number in numbers)
        )

    @property
    def hash(self) -> Composed:
        """Return the hash of a row."""
        return self.hash_of(range(len(self.forms)))


@dataclass(frozen=True, slots=True)
class Groups:
    """How rows are told apart into groups that a server makes in passing."""

    column: int
    """The place of the column by which that is."""
    step: str
    """An interval for times; a number for numbers; empty for dates, each of which is a group."""
    type: str
    """The column's type, as SQL spells it."""

    def of(self, rows: Rows) -> Composed:
        """Return the group of a row."""
        value = rows.value(self.column)
        if not self.step:
            return Composed([value])
        if self.step.isdigit():
            return SQL("({} / {})").format(value, Literal(int(self.step)))
        return SQL("pg_catalog.date_bin({}, {}, {}::{})").format(
            SQL("{}::interval").format(Literal(self.step)),
            value,
            Literal("2000-01-01"),
            SQL(self.type),
        )


def step_for(type_oid: int, *, short: bool) -> str:
    """Return the step of groups of times: hours where that are not too many, else days."""
    if type_oid == DATE:
        return ""
    return "1 hour" if short else "1 day"


def _sums(hashed: str) -> Composed:
    """Sum up 128 bits of hashes, as two numbers that do not overflow: sum(int8) is numeric."""
    return SQL("count(*), coalesce(sum({}), 0)::text, coalesce(sum({}), 0)::text").format(
        _number(hashed, 0), _number(hashed, 8)
    )


def _number(hashed: str, first: int) -> Composed:
    """Return 8 bytes as an int8; quicker than by way of their hexadecimal form."""
    parts = [
        SQL("pg_catalog.get_byte({}, {})::int8 << {}").format(
            Identifier(hashed), Literal(first + at), Literal(8 * (7 - at))
        )
        for at in range(8)
    ]
    return SQL("({})").format(SQL(" | ").join(SQL("({})").format(part) for part in parts))


def digest(rows: Rows) -> Composed:
    """Compute the digest of all rows: how many, and the two sums."""
    return SQL("SELECT {} FROM (SELECT {} AS h FROM {} OFFSET 0) AS hashed").format(
        _sums("h"), rows.hash, rows.from_item
    )


def grouped(rows: Rows, groups: Groups | None) -> Composed:
    """Compute the digest of each group: its name, how many rows, the two sums."""
    if groups is None:
        return SQL("SELECT '', {} FROM (SELECT {} AS h FROM {} OFFSET 0) AS hashed").format(
            _sums("h"), rows.hash, rows.from_item
        )
    return SQL(
        "SELECT coalesce(g::text, ''), {} FROM (SELECT {} AS g, {} AS h FROM {} OFFSET 0) AS hashed"
        " GROUP BY g"
    ).format(_sums("h"), groups.of(rows), rows.hash, rows.from_item)


@dataclass(frozen=True, slots=True)
class Within:
    """Groups to which a question is narrowed down."""

    groups: Groups
    names: tuple[str, ...]

    def condition(self, rows: Rows) -> Composed:
        """Return the condition; an index can serve the ends of it."""
        column = rows.value(self.groups.column)
        named = [name for name in self.names if name]
        group = self.groups.of(rows)
        found = SQL("{}::text = ANY ({}::text[])").format(group, Literal(named))
        if len(named) < len(self.names):
            return SQL("({} IS NULL OR {})").format(column, found)
        if self.groups.step.isdigit():
            step = int(self.groups.step)
            numbers = [int(name) for name in named]
            # Division cuts towards zero: the group 0 holds numbers of both signs.
            return SQL("{0} > {1} AND {0} < {2} AND {3}").format(
                column,
                Literal((min(numbers) - 1) * step),
                Literal((max(numbers) + 1) * step),
                found,
            )
        ends = [
            SQL("(SELECT {}(name::{}) FROM unnest({}::text[]) AS names (name))").format(
                SQL(end), SQL(self.groups.type), Literal(named)
            )
            for end in ("min", "max")
        ]
        if not self.groups.step:
            return SQL("{0} >= {1} AND {0} <= {2} AND {3}").format(column, *ends, found)
        # Infinite times are groups of their own, and what is added to the last ones is no time.
        after = SQL(
            "(SELECT CASE WHEN last < '290000-01-01' THEN last + {}::interval ELSE 'infinity' END"
            " FROM (SELECT {}) AS ends (last))"
        ).format(Literal(self.groups.step), ends[1])
        return SQL("{0} >= {1} AND {0} <= {2} AND {3}").format(column, ends[0], after, found)


def _condition(rows: Rows, within: Within | None) -> Composable:
    return SQL("true") if within is None else within.condition(rows)


def _bucket(of: str, buckets: int) -> Composed:
    """Tell the bucket by the first two bytes of a hash: of at most 65,536."""
    return SQL("(pg_catalog.get_byte({0}, 0) * 256 + pg_catalog.get_byte({0}, 1)) % {1}").format(
        Identifier(of), Literal(buckets)
    )


def bucketed(rows: Rows, key: Sequence[int], within: Within | None, buckets: int) -> Composed:
    """Compute the digest of each bucket of keys; without a key, of each bucket of rows."""
    key_hash = rows.hash_of(key) if key else SQL("NULL::bytea").format()
    return SQL(
        "SELECT {bucket}, {sums} FROM (SELECT {key} AS k, {row} AS h FROM {rows} WHERE {condition}"
        " OFFSET 0) AS hashed GROUP BY 1"
    ).format(
        bucket=_bucket("k" if key else "h", buckets),
        sums=_sums("h"),
        key=key_hash,
        row=rows.hash,
        rows=rows.from_item,
        condition=_condition(rows, within),
    )


def listed(
    rows: Rows,
    key: Sequence[int],
    within: Within | None,
    buckets: int,
    wanted: Sequence[int],
) -> Composed:
    """List the rows of some buckets: key and hash, as texts."""
    return SQL("SELECT {}, pg_catalog.encode(h, 'hex') {}").format(
        # As they are compared, so that a key has the same text on both sides.
        _texts(map(rows.form, key)),
        _hashed(rows, key, within, buckets, wanted),
    )


def shown(
    rows: Rows,
    key: Sequence[int],
    within: Within | None,
    buckets: int,
    wanted: Sequence[int],
    hashes: Sequence[str],
    most: int,
) -> Composed:
    """Read the rows of some buckets that have these hashes: hash, and all columns as texts.

    Only so many as have together no more than `most` bytes; one of several that are the same.
    """
    return SQL(
        """
        SELECT hash, data
          FROM (SELECT hash, data,
                       pg_catalog.sum(pg_catalog.octet_length(data::text)) OVER (ORDER BY hash)
                           AS length
                  FROM (SELECT DISTINCT ON (h) pg_catalog.encode(h, 'hex') AS hash, {data} AS data
                        {hashed} AND h = ANY ({hashes}::bytea[])
                         ORDER BY h) AS one) AS summed
         WHERE length <= {most}
        """
    ).format(
        data=_texts(map(rows.value, range(len(rows.forms)))),
        hashed=_hashed(rows, key, within, buckets, wanted),
        hashes=Literal([f"\\x{each}" for each in hashes]),
        most=Literal(most),
    )


def _hashed(
    rows: Rows,
    key: Sequence[int],
    within: Within | None,
    buckets: int,
    wanted: Sequence[int],
) -> Composed:
    """Read from the rows of some buckets, with their hash as `h`."""
    hashed = "k" if key else "h"
    return SQL(
        """
          FROM (SELECT *, {row} AS h
                  FROM (SELECT *, {key} AS k FROM {rows} WHERE {condition} OFFSET 0) AS keyed
                 WHERE {early} OFFSET 0) AS hashed
         WHERE {late}
        """
    ).format(
        row=rows.hash,
        key=rows.hash_of(key) if key else SQL("NULL::bytea").format(),
        rows=rows.from_item,
        condition=_condition(rows, within),
        early=_among(hashed, buckets, wanted) if key else SQL("true"),
        late=SQL("true") if key else _among(hashed, buckets, wanted),
    )


def _among(hashed: str, buckets: int, wanted: Sequence[int]) -> Composed:
    return SQL("{} = ANY ({}::int4[])").format(_bucket(hashed, buckets), Literal(list(wanted)))


def _texts(values: Iterable[Composable]) -> Composed:
    return SQL("ARRAY[{}]::text[]").format(
        SQL(", ").join(SQL("{}::text").format(value) for value in values)
    )


def held(table: Table, columns: Sequence[str], slice_: Slice) -> Composed:
    """Read the slice at the dest."""
    return SQL("SELECT {} FROM {} WHERE {}").format(
        SQL(", ").join(map(Identifier, columns)),
        Identifier(table.schema, table.name),
        predicate(slice_),
    )


def held_own(table: Table, columns: Sequence[str], slice_: Slice) -> Composed:
    """Read the rows of the slice that this transaction wrote (see `copies.count_own`)."""
    return SQL("{} AND xmin = pg_catalog.pg_current_xact_id()::xid").format(
        held(table, columns, slice_)
    )


def held_in(schema: str, name: str, columns: Sequence[str]) -> Composed:
    """Read all rows of a table."""
    return SQL("SELECT {} FROM {}").format(
        SQL(", ").join(map(Identifier, columns)), Identifier(schema, name)
    )


def among(columns: Sequence[str], keys: Sequence[Sequence[str]]) -> Composed:
    """Select the rows with these keys, as a user would write it."""
    one = len(columns) == 1
    form = SQL("{}") if one else SQL("({})")
    return SQL("{} IN ({})").format(
        form.format(SQL(", ").join(map(Identifier, columns))),
        SQL(", ").join(form.format(SQL(", ").join(map(_quoted, key))) for key in keys),
    )


def _quoted(text: str) -> SQL:
    """Return a literal as standard_conforming_strings has it, which is pinned where it is read."""
    return SQL("'" + text.replace("'", "''") + "'")


def bounds(table: Table, column: str) -> Composed:
    """Ask for the smallest and the greatest number of a column."""
    return SQL("SELECT min({0}), max({0}) FROM {1}").format(
        Identifier(column), Identifier(table.schema, table.name)
    )
