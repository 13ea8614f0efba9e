"""Whole tables at once: keep them as they are, empty them, see which point at which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal

Name = tuple[str, str]
"""Schema and name."""


def _names(tables: Iterable[Name]) -> Composed:
    return SQL(", ").join(SQL("ONLY {}").format(Identifier(*each)) for each in tables)


def lock_for_reading(tables: Sequence[Name]) -> Composed:
    """Keep the definitions of tables as they are while they are read."""
    return SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_names(tables))


def lock_for_filling(tables: Sequence[Name]) -> Composed:
    """Wait for who writes into tables, and let nobody else begin."""
    return SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_names(tables))


def truncate(tables: Sequence[Name]) -> Composed:
    """Empty tables; fails where others point at them that are not among them."""
    return SQL("TRUNCATE TABLE {}").format(_names(tables))


def count(table: Name) -> Composed:
    """Count the rows of a table."""
    return SQL("SELECT count(*) FROM ONLY {}").format(Identifier(*table))


def holding_rows(tables: Sequence[Name]) -> Composed:
    """Find which of these tables have a row: their places, counted from 0."""
    return SQL(" UNION ALL ").join(
        SQL("SELECT {} WHERE EXISTS (SELECT FROM ONLY {})").format(
            Literal(place), Identifier(*each)
        )
        for place, each in enumerate(tables)
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
