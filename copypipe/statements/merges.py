"""Rows that are copied into a table of their own first, and from there merged by a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.sql import SQL, Composable, Composed, Identifier

from copypipe.slices import Slice
from copypipe.statements.copies import Format
from copypipe.statements.slices import predicate
from copypipe.tables import Table, Unique

# Temporary tables come first in every search_path, the empty one too.
STAGED = Identifier("pg_temp", "copypipe_staged")


@dataclass(frozen=True, slots=True)
class Merge:
    """How staged rows become rows of the table."""

    table: Table
    key: Unique
    columns: tuple[str, ...]
    """Those that go over, the key's included."""
    updates: tuple[str, ...]
    """Those that an UPDATE sets, and by which rows are told to have changed."""
    fixed: tuple[str, ...]
    """Those outside the key that no UPDATE may set: GENERATED ALWAYS AS IDENTITY."""
    overriding: bool
    """A column is GENERATED ALWAYS AS IDENTITY, and gets the source's values all the same."""


def stage(table: Table, columns: Sequence[str]) -> Composed:
    """Make the table for the rows; it is gone with the transaction, however that ends."""
    return SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
        STAGED, _list(columns), _table(table)
    )


def copy_in(columns: Sequence[str], form: Format) -> Composed:
    """Receive rows."""
    return SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(STAGED, _list(columns), SQL(form))


def analyze() -> Composed:
    """Let the planner know what was staged."""
    return SQL("ANALYZE {}").format(STAGED)


def keyless(key: Unique) -> Composed:
    """Count staged rows with a NULL in the key, and keys without one that more than one row has."""
    nulls = SQL(" OR ").join(SQL("{} IS NULL").format(Identifier(name)) for name in key.columns)
    return SQL(
        """
        SELECT (SELECT count(*) FROM {staged} WHERE {nulls}),
               (SELECT count(*) FROM (SELECT 1 FROM {staged} WHERE NOT ({nulls})
                                       GROUP BY {key} HAVING count(*) > 1) AS twice)
        """
    ).format(staged=STAGED, nulls=nulls, key=_list(key.columns))


def count_fixed(merge: Merge) -> Composed:
    """Count the staged rows that are held with another value of what no UPDATE may set."""
    return SQL("SELECT count(*) FROM {} AS staged JOIN {} AS held ON {} AND {}").format(
        STAGED,
        _table(merge.table),
        _same_key(merge.key),
        _compared(merge.fixed, "OPERATOR(pg_catalog.*<>)"),
    )


def delete_others(merge: Merge, slice_: Slice) -> Composed:
    """Delete the rows of the slice whose key was not staged."""
    return SQL(
        "DELETE FROM {} WHERE {} AND NOT EXISTS (SELECT 1 FROM {} AS staged WHERE {})"
    ).format(
        # Under its own name, which a condition may use.
        _table(merge.table),
        predicate(slice_),
        STAGED,
        _same_key(merge.key, _table(merge.table)),
    )


def merge(merge: Merge) -> Composed:
    """Insert the rows that are new, update those that changed; return how many of each.

    And how many of them were not written: triggers dropped them, or others were quicker.

    Rows are compared by their bytes (record_image_ne), which tells apart whatever COPY brings, for
    types without an operator too. Rows that did not change are left out before INSERT .. ON
    CONFLICT, which would lock them, and so write each.

    The others come in the order of the key: new rows lie in it, and of two merges that meet in
    several rows the second one waits at the first of them, where each could wait for the other.
    """
    is_held, is_new = (_unlike(merge.table, name) for name in ("is held", "is new"))
    changed: Composable = SQL("held.{} IS NULL").format(is_held)
    action: Composable = SQL("NOTHING")
    if merge.updates:
        changed = SQL("held.{} IS NULL OR {}").format(
            is_held, _compared(merge.updates, "OPERATOR(pg_catalog.*<>)")
        )
        action = SQL("UPDATE SET {}").format(
            SQL(", ").join(
                SQL("{0} = excluded.{0}").format(Identifier(name)) for name in merge.updates
            )
        )
    held = dict.fromkeys((*merge.key.columns, *merge.updates))
    return SQL(
        """
        WITH changed AS MATERIALIZED (
            SELECT {staged_columns}, held.{is_held} IS NULL AS {is_new}
              FROM {staged} AS staged
              LEFT JOIN (SELECT true AS {is_held}, {held} FROM {table}) AS held ON {same_key}
             WHERE {changed}),
        merged AS (
            INSERT INTO {table} AS held ({columns}){overriding}
            SELECT {columns} FROM changed ORDER BY {key_columns}
                ON CONFLICT ({key}) DO {action}
            RETURNING 1)
        SELECT count(*) FILTER (WHERE {is_new}), count(*) FILTER (WHERE NOT {is_new}),
               count(*) - (SELECT count(*) FROM merged)
          FROM changed
        """
    ).format(
        is_held=is_held,
        is_new=is_new,
        staged_columns=_list(merge.columns, of="staged"),
        staged=STAGED,
        held=_list(tuple(held)),
        table=_table(merge.table),
        same_key=_same_key(merge.key),
        changed=changed,
        columns=_list(merge.columns),
        overriding=SQL(" OVERRIDING SYSTEM VALUE" if merge.overriding else ""),
        key_columns=_list(merge.key.columns),
        key=_inferred(merge.key),
        action=action,
    )


def _unlike(table: Table, name: str) -> Identifier:
    """Return a name for a column of our own, which none of the table's has."""
    names = {column.name for column in table.columns}
    while name in names:
        name += "'"
    return Identifier(name)


def _inferred(key: Unique) -> Composed:
    """Name the key so that its index alone is meant by ON CONFLICT.

    By the columns alone also an index that takes other values for equal would be.
    """
    return SQL(", ").join(
        SQL("{} {}").format(Identifier(name), SQL(by))
        for name, by in zip(key.columns, key.inferred_by, strict=True)
    )


def count_merged(merge: Merge) -> Composed:
    """Count the staged rows that the table holds as they are."""
    return SQL("SELECT count(*) FROM {} AS staged JOIN {} AS held ON {} AND {}").format(
        STAGED,
        _table(merge.table),
        _same_key(merge.key),
        _compared(
            tuple(dict.fromkeys((*merge.key.columns, *merge.updates, *merge.fixed))),
            "OPERATOR(pg_catalog.*=)",
        ),
    )


def merged(merge: Merge) -> Composed:
    """Read the rows of the table whose keys were staged."""
    return SQL("SELECT {} FROM {} AS staged JOIN {} AS held ON {}").format(
        _list(merge.columns, of="held"), STAGED, _table(merge.table), _same_key(merge.key)
    )


def _compared(columns: Sequence[str], operator: str) -> Composed:
    """Compare a staged row with one that is held. Without the casts the columns would be compared
    one by one, by an operator of that name for each type.
    """
    return SQL("CAST(ROW({}) AS pg_catalog.record) {} CAST(ROW({}) AS pg_catalog.record)").format(
        _list(columns, of="staged"), SQL(operator), _list(columns, of="held")
    )


_HELD = Identifier("held")


def _same_key(key: Unique, held: Composable = _HELD) -> Composed:
    return SQL(" AND ").join(
        SQL("{0}.{1} {2} staged.{1}").format(held, Identifier(name), SQL(equals))
        for name, equals in zip(key.columns, key.equals, strict=True)
    )


def _list(columns: Sequence[str], of: str | None = None) -> Composed:
    names: list[Composable] = [
        Identifier(name) if of is None else Identifier(of, name) for name in columns
    ]
    return SQL(", ").join(names)


def _table(table: Table) -> Identifier:
    return Identifier(table.schema, table.name)
