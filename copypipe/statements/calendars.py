"""Which slices of a table have rows, and how many: one statement for any number of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.tables import Table


def filled(table: Table, column: str, pieces: Sequence[tuple[date, date]]) -> Composed:
    """Find which of these intervals have a row: their places, counted from 1.

    Each is one look into an index of the column. Where statistics are missing or the table is small
    the planner may prefer to read it once for each: ask it not to (enable_seqscan).
    """
    return SQL(
        """
        SELECT wanted.place
          FROM unnest({starts}, {stops}) WITH ORDINALITY AS wanted (start, stop, place)
         WHERE EXISTS (SELECT 1 FROM {table}
                        WHERE {column} >= wanted.start AND {column} < wanted.stop)
        """
    ).format(
        starts=Literal([start for start, _ in pieces]),
        stops=Literal([stop for _, stop in pieces]),
        table=Identifier(table.schema, table.name),
        column=Identifier(column),
    )


def counted(table: Table, column: str, edges: Sequence[date]) -> Composed:
    """Count the rows between each two of these edges, which ascend, by reading them once.

    Rows: the place of the interval, counted from 1, and its rows, if it has any.
    """
    return SQL(
        """
        SELECT pg_catalog.width_bucket({column}, {edges}) AS place, count(*)
          FROM {table}
         WHERE {column} >= {first} AND {column} < {last}
         GROUP BY 1
        """
    ).format(
        column=Identifier(column),
        edges=Literal(list(edges)),
        table=Identifier(table.schema, table.name),
        first=Literal(edges[0]),
        last=Literal(edges[-1]),
    )
