"""What is read where the user's own SQL says so, and whether that may be: facts from both servers.

Everything here runs while the plan is made; the texts are parsed and never run. How a text is kept
within its parentheses is told in `statements.expressions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from copypipe import catalog, expressions
from copypipe.errors import CopypipeError, PlanRefused
from copypipe.servers import Session
from copypipe.statements import Statement, copies
from copypipe.statements import expressions as asking
from copypipe.tables import Column, Query, Relation, Table, named

# Parsed alone an expression knows no column, which is the one error that says nothing about it:
# undefined_column, and undefined_table for a column that names its table.
_ALONE = ("42703", "42P01")

# Classes of errors that are about what the user wrote: data exception, syntax and names,
# unsupported, schema name; and read_only_sql_transaction.
_ABOUT_THE_TEXT = ("22", "42", "0A", "3F", "25006")

# grouping_error (aggregates), windowing_error, feature_not_supported (functions returning sets).
_NOT_PER_ROW = ("42803", "42P20", "0A000")

_UNKNOWN_NAMES = ("42P01", "42883", "42704", "3F000")


def query(session: Session, text: str) -> Query:
    """Return what a query of the user reads; raises PlanRefused where it is not one query."""
    with _refusing("the query"):
        if not session.describe(asking.query_alone(text)):
            raise PlanRefused(
                "source: the query returns nothing", hint="Give a SELECT.", side="source"
            )
        found = catalog.query(session, text)
    names = [column.name for column in found.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanRefused(
            f"source: the query has several columns named {', '.join(twice)}",
            hint="Name each of them with AS.",
            side="source",
        )
    return found


def check_reading(session: Session, statement: Statement) -> None:
    """Refuse what a read-only transaction refuses before the first row (FOR UPDATE, say)."""
    with _refusing("the query"):
        session.execute(copies.nothing(statement))


def computed(
    session: Session, of: Relation, dest: Table, wanted: Sequence[tuple[str, str]]
) -> dict[str, Column]:
    """Return the columns of the dest that expressions fill, given as (name, expression).

    Raises PlanRefused for a name the dest lacks or generates, and for what is no expression with
    one value a row.
    """
    found: dict[str, Column] = {}
    seen = set()
    for name, expression in wanted:
        column = named(name, dest.columns)
        if column is None:
            raise PlanRefused(
                f"dest: {dest.full_name} has no column {name} to compute", side="dest"
            )
        if column.generated:
            raise PlanRefused(f'dest: "{column.name}" is generated there', side="dest")
        if column.name in seen:
            raise PlanRefused(f'"{column.name}" is computed twice')
        seen.add(column.name)
        what = f'the expression of "{column.name}"'
        with _refusing(what):
            _check_alone(session, expression)
            values = catalog.value(session, of, expression)
        if len(values) != 1:
            raise PlanRefused(
                f"source: {what} is {len(values)} columns",
                hint="Compute each column by itself.",
                side="source",
            )
        if values[0].renames != column.name:  # else it is read as it is
            found[column.name] = replace(values[0], name=column.name)
    return found


def excluded(names: Sequence[str], source: Relation, dest: Table) -> frozenset[str]:
    """Return the exact names of columns to leave out; raises PlanRefused for an unknown one."""
    found = set()
    for name in names:
        meant = {c.name for r in (source, dest) if (c := named(name, r.columns)) is not None}
        if not meant:
            raise PlanRefused(
                f"neither {source.full_name} nor {dest.full_name} has a column {name} to exclude"
            )
        found |= meant
    return frozenset(found)


def check_condition(
    text: str,
    sides: Sequence[tuple[Session, Table]],
    columns: Sequence[tuple[Column, Column]],
) -> None:
    """Refuse a condition that is not one expression, or may mean other rows on another server.

    It may use the columns that are copied as they are and nothing else: then the rows for which it
    holds at the dest are copies of those for which it holds at the source.
    """
    plain = [dest.name for source, dest in columns if source.expression is None]
    for session, table in sides:
        with _refusing("the condition", columns=plain):
            _check_alone(session, text)
            session.describe(asking.condition(table.schema, table.name, plain, text))
    mentions = expressions.mentions(text)
    unsteady = set(mentions.moments)
    if mentions.calls:
        for session, _ in sides:
            unsteady |= {f"{name}()" for name in catalog.unsteady(session, mentions.calls)}
    if unsteady:
        raise PlanRefused(
            "the condition may mean other rows at the dest than at the source",
            detail=f"{', '.join(sorted(unsteady))} can differ from server to server, or from one "
            "moment to the next.",
            hint="Write the value itself; for days use --day or --from with --to. Functions of "
            "users must be IMMUTABLE.",
        )
    if mentions.other_rows:
        raise PlanRefused(
            "the condition reads other rows than the one it is about",
            detail="They may differ between the two sides.",
            hint="Put it into --query, with a range or --all.",
        )
    whole = {table.name for _, table in sides} & mentions.names - set(plain)
    if whole:
        raise PlanRefused(
            f"the condition uses {whole.pop()}, the row as a whole",
            detail="The two sides may hold its columns in another order.",
            hint="Name the columns.",
        )


def _check_alone(session: Session, expression: str) -> None:
    """Raise the server's error where an expression is not complete by itself."""
    session.execute(copies.savepoint())
    try:
        session.describe(asking.alone(expression))
    except CopypipeError as error:
        if error.sqlstate not in _ALONE:
            raise
    session.execute(copies.back_to_savepoint())


@contextmanager
def _refusing(what: str, *, columns: Sequence[str] = ()) -> Iterator[None]:
    """Turn a server's error about the user's text into a refusal that names the text."""
    try:
        yield
    except CopypipeError as error:
        if not (error.sqlstate or "").startswith(_ABOUT_THE_TEXT):
            raise
        refused = PlanRefused(
            f"{what} cannot be used",
            detail=error.message,
            hint=_hint(error, columns),
            side=error.side,
            sqlstate=error.sqlstate,
        )
    else:
        return
    raise refused


def _hint(error: CopypipeError, columns: Sequence[str]) -> str | None:
    if error.sqlstate in _UNKNOWN_NAMES:
        return "Names are looked up with an empty search_path: qualify them, as in public.users."
    if error.sqlstate == "42703" and columns:
        return f"It may use the columns that are copied as they are: {', '.join(columns)}."
    if error.sqlstate in _NOT_PER_ROW:
        return "An expression has one value for each row that is read."
    if error.sqlstate == "42601":
        return "One expression, or one query, is wanted: no semicolon, nothing left open."
    return error.hint
