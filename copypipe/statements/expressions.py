"""SQL that a user wrote, and the questions that show it to be what it must be.

A text is put between parentheses, on lines of its own. It cannot leave them if it is complete by
itself: `alone` ends with the text, so that a parenthesis, a quote or a comment that the text does
not close, or closes without having opened it, is a syntax error there. These statements are sent
as a Parse message, which takes one statement only (protocol, "Extended Query"), and never run.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.tables import Query, Relation


def within_parentheses(text: str) -> Composed:
    """Return the text in parentheses; a comment at its end ends with its line."""
    return Composed([SQL("(\n"), SQL(text), SQL("\n)")])


def from_item(relation: Relation) -> Composed:
    """Return what stands behind FROM: a table's name, or a query in parentheses."""
    if isinstance(relation, Query):
        return query(relation.text)
    return SQL("{}").format(Identifier(relation.schema, relation.name))


def query(text: str) -> Composed:
    """Return a query of the user as what stands behind FROM."""
    return SQL("{} AS query").format(within_parentheses(text))


def alone(text: str) -> Composed:
    """Have an expression parsed where nothing follows it; its columns are unknown there."""
    return Composed([SQL("SELECT\n"), SQL(text), SQL("\n")])


def query_alone(text: str) -> Composed:
    """Have a query parsed with nothing around it."""
    return Composed([SQL("\n"), SQL(text), SQL("\n")])


def everything(text: str) -> Composed:
    """Have a query parsed where it will stand."""
    return SQL("SELECT * FROM {}").format(query(text))


def value(relation: Relation, expression: str) -> Composed:
    """Have an expression parsed where it will stand."""
    return SQL("SELECT {} FROM {}").format(within_parentheses(expression), from_item(relation))


def per_row(relation: Relation, expression: str) -> Composed:
    """Have an expression parsed where it must have one value a row.

    WHERE takes neither aggregates nor window functions nor functions that return sets.
    """
    return SQL("SELECT FROM {} WHERE {} IS NULL").format(
        from_item(relation), within_parentheses(expression)
    )


def condition(schema: str, table: str, columns: Sequence[str], text: str) -> Composed:
    """Have a condition parsed where it sees those columns of the table and nothing else."""
    return SQL("SELECT FROM (SELECT {} FROM {}) AS {} WHERE {}").format(
        SQL(", ").join(map(Identifier, columns)),
        Identifier(schema, table),
        Identifier(table),
        within_parentheses(text),
    )


def unsteady(calls: Sequence[tuple[str, str]]) -> Composed:
    """Find functions, given as (schema, name), whose result may differ for the same arguments.

    Built-in functions that are STABLE depend on settings, which are the same on both sides
    (`sessions.PINNED`); a user's may read tables. transam.h, FirstNormalObjectId: 16384.
    """
    return SQL(
        """
        SELECT DISTINCT p.proname
          FROM pg_catalog.pg_proc p
          JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
          JOIN unnest({schemas}::text[], {names}::text[]) AS w (schema, name)
            ON n.nspname = w.schema AND p.proname = w.name
         WHERE p.provolatile = 'v' OR (p.provolatile = 's' AND p.oid >= 16384)
         ORDER BY 1
        """
    ).format(
        schemas=Literal([schema for schema, _ in calls]), names=Literal([name for _, name in calls])
    )
