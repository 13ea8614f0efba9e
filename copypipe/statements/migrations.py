"""Whole tables at once: keep them as they are, empty them, see which point at which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from psycopg.sql import SQL, Composed, Identifier, Literal


class Target(NamedTuple):
    """A table, without what inherits from it, unless it is partitioned and has no row itself."""

    schema: str
    name: str
    only: bool = True

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def _names(tables: Iterable[Target]) -> Composed:
    return SQL(", ").join(map(_named, tables))


def _named(table: Target) -> Composed:
    return SQL("{}{}").format(
        SQL("ONLY ") if table.only else SQL(""), Identifier(table.schema, table.name)
    )


def lock_for_reading(tables: Sequence[Target]) -> Composed:
    """Keep the definitions of tables as they are while they are read."""
    return SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_names(tables))


def lock_for_filling(tables: Sequence[Target]) -> Composed:
    """Wait for who writes into tables, and let nobody else begin."""
    return SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_names(tables))


def truncate(tables: Sequence[Target]) -> Composed:
    """Empty tables; fails where others point at them that are not among them."""
    return SQL("TRUNCATE TABLE {}").format(_names(tables))


def count(table: Target) -> Composed:
    """Count the rows of a table."""
    return SQL("SELECT count(*) FROM {}").format(_named(table))


def count_of(table: Target, xids: Sequence[int]) -> Composed:
    """Count the rows of a table, and those that one of these transactions wrote.

    A row bears the lower 32 bits of its transaction's number, also when it is frozen.
    """
    return SQL(
        """
        SELECT count(*),
               count(*) FILTER (WHERE xmin::text::int8 = ANY ({xids}::int8[]))
          FROM {table}
        """
    ).format(xids=Literal([xid % (1 << 32) for xid in xids]), table=_named(table))


def holding_rows(tables: Sequence[Target]) -> Composed:
    """Find which of these tables have a row: their places, counted from 0."""
    return SQL(" UNION ALL ").join(
        SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(Literal(place), _named(each))
        for place, each in enumerate(tables)
    )


def other_relations(names: Sequence[tuple[str, str]]) -> Composed:
    """Find which of these names (schema, name) are taken by relations, and by what.

    Rows: the place among `names`, counted from 1, and what it is, for people.
    """
    return SQL(
        """
        SELECT w.place,
               CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                              WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
                              WHEN 'c' THEN 'type' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index'
                              ELSE CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                                    WHERE d.classid = 'pg_catalog.pg_class'::regclass
                                      AND d.objid = c.oid AND d.deptype = 'e')
                                   THEN 'table of an extension' ELSE 'table' END END
          FROM unnest({schemas}::text[], {names}::text[]) WITH ORDINALITY AS w (schema, name, place)
          JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
         ORDER BY w.place
        """
    ).format(
        schemas=Literal([schema for schema, _ in names]), names=Literal([name for _, name in names])
    )


def pointing(tables: Sequence[int]) -> Composed:
    """Read which tables point at which others by foreign keys, as OIDs; at themselves too."""
    return SQL(
        """
        SELECT DISTINCT con.conrelid::int8, con.confrelid::int8
          FROM pg_catalog.pg_constraint con
         WHERE con.contype = 'f' AND con.conrelid = ANY ({}::oid[])
        """
    ).format(Literal(list(tables)))
