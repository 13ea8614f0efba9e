"""SQL that a user wrote, and the questions that show it to be what it must be.

A text is put between parentheses, on lines of its own. It cannot leave them if it is complete by
itself: `alone` ends with the text, so that a parenthesis, a quote or a comment that the text does
not close, or closes without having opened it, is a syntax error there. These statements are sent
as a Parse message, which takes one statement only (protocol, "Extended Query").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.expressions import Name
from copypipe.tables import Column, Query, Relation


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


def condition(table: str, columns: Sequence[Column], text: str) -> Composed:
    """Have a condition parsed where it sees those columns of the table and nothing else."""
    return SQL("SELECT FROM {} WHERE {}").format(_only(table, columns), within_parentheses(text))


def printed(table: str, columns: Sequence[Column], text: str) -> Composed:
    """Have the planner print the same condition: as a value, since of WHERE it would make joins."""
    return SQL("EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT {} FROM {}").format(
        within_parentheses(text), _only(table, columns)
    )


def _only(table: str, columns: Sequence[Column]) -> Composed:
    """Return a row of the columns' types in the table's place, which needs no rights and no lock.

    OFFSET 0 keeps the planner from putting the NULLs into the condition. The types are as
    format_type() prints them.
    """
    nulls = [
        SQL("NULL::{} AS {}").format(SQL(column.type_name), Identifier(column.name))
        for column in columns
    ]
    return SQL("(SELECT {} OFFSET 0) AS {}").format(SQL(", ").join(nulls), Identifier(table))


def unsteady(calls: Iterable[tuple[Name, int]], steady: Iterable[str]) -> Composed:
    """Find functions, given with the number of their arguments, whose result may differ by itself.

    Those are all that are not IMMUTABLE, except for `steady` ones of pg_catalog.
    """
    wanted = sorted(calls)
    return SQL(
        """
        SELECT DISTINCT p.proname || '()'
          FROM pg_catalog.pg_proc p
          JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
          JOIN unnest({schemas}::text[], {names}::text[], {numbers}::int[])
               AS w (schema, name, number)
            ON n.nspname = w.schema AND p.proname = w.name
           AND w.number <= p.pronargs + CASE WHEN p.provariadic <> 0 THEN 100 ELSE 0 END
           AND w.number >= p.pronargs - p.pronargdefaults
                           - CASE WHEN p.provariadic <> 0 THEN 1 ELSE 0 END
         WHERE p.provolatile = 'v'
            OR (p.provolatile = 's'
                AND NOT (n.nspname = 'pg_catalog' AND p.proname = ANY ({steady}::text[])))
         ORDER BY 1
        """
    ).format(
        schemas=Literal([schema for (schema, _), _ in wanted]),
        names=Literal([name for (_, name), _ in wanted]),
        numbers=Literal([number for _, number in wanted]),
        steady=Literal(sorted(steady)),
    )


def unsteady_operators(operators: Iterable[Name]) -> Composed:
    """Find operators whose function is not IMMUTABLE."""
    wanted = sorted(operators)
    return SQL(
        """
        SELECT DISTINCT n.nspname || '.' || o.oprname
          FROM pg_catalog.pg_operator o
          JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
          JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
          JOIN unnest({schemas}::text[], {names}::text[]) AS w (schema, name)
            ON n.nspname = w.schema AND o.oprname = w.name
         WHERE p.provolatile <> 'i'
         ORDER BY 1
        """
    ).format(
        schemas=Literal([schema for schema, _ in wanted]),
        names=Literal([name for _, name in wanted]),
    )


def domains(types: Iterable[Name]) -> Composed:
    """Find those of the types that are domains, whose constraints may be anything."""
    wanted = sorted(types)
    return SQL(
        """
        SELECT DISTINCT n.nspname || '.' || t.typname
          FROM pg_catalog.pg_type t
          JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
          JOIN unnest({schemas}::text[], {names}::text[]) AS w (schema, name)
            ON n.nspname = w.schema AND t.typname = w.name
         WHERE t.typtype = 'd'
         ORDER BY 1
        """
    ).format(
        schemas=Literal([schema for schema, _ in wanted]),
        names=Literal([name for _, name in wanted]),
    )
