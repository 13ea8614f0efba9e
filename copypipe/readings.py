"""What is read where the user's own SQL says so, and whether that may be: facts from both servers.

The texts are parsed and planned, and a query is begun for no row; the planner runs what is
IMMUTABLE and has constant arguments. How a text is kept within its parentheses is told in
`statements.expressions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from copypipe import catalog
from copypipe.catalog import Printed, Server
from copypipe.crossings import TEXT_VALUE, Crossing, has_letters
from copypipe.errors import CopypipeError, PlanRefused
from copypipe.expressions import Mentions, bare, folded_moments, mentions
from copypipe.servers import Session
from copypipe.slices import Whole
from copypipe.statements import Statement, copies
from copypipe.statements import expressions as asking
from copypipe.tables import Column, Query, Relation, Table, named
from copypipe.types import Value

# Parsed alone an expression knows no column, which is the one error that says nothing about it:
# undefined_column, and undefined_table for a column that names its table.
_ALONE = ("42703", "42P01")

# Classes of errors that are about what the user wrote: data exception, syntax and names,
# unsupported, schema name; and read_only_sql_transaction.
ABOUT_THE_TEXT = ("22", "42", "0A", "3F", "25006")


def query(session: Session, text: str) -> Query:
    """Return what a query of the user reads; raises PlanRefused where it is not one query."""
    with _refusing("the query", _QUERY):
        if not session.describe(asking.query_alone(text)):
            raise PlanRefused(
                "source: the query returns no columns", hint="Give a SELECT.", side="source"
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
    with _refusing("the query", _QUERY):
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
        with _refusing(what, _EXPRESSION):
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


def asked(
    names: Sequence[str], dest: Table, columns: Iterable[str], *, option: str
) -> frozenset[str]:
    """Return the exact names of columns to cast; raises PlanRefused for what is not copied."""
    copied = set(columns)
    found = set()
    for name in names:
        column = named(name, dest.columns)
        if column is None or column.name not in copied:
            raise PlanRefused(f"{option} {name}: no such column is copied into {dest.full_name}")
        found.add(column.name)
    return frozenset(found)


def castable(
    session: Session, of: Relation, columns: Sequence[tuple[Column, Crossing]]
) -> list[Crossing]:
    """Return crossings that the source can carry out; refused where there is no way.

    Most pairs of types have a cast. Where there is none, the way by the text form is as good: what
    comes back the same was not changed. A cast that a user has made could do anything.
    """
    cast = [(column, crossing) for column, crossing in columns if crossing.into is not None]
    if not cast or _describable(session, of, cast):
        return [_unhijacked(session, *each) for each in columns]
    return [
        _unhijacked(session, column, _way(session, of, column, crossing))
        for column, crossing in columns
    ]


def _describable(
    session: Session, of: Relation, columns: Sequence[tuple[Column, Crossing]]
) -> bool:
    """Return whether the source knows a cast for each of these columns."""
    reads = copies.select(of, columns, Whole())
    return catalog.works(session, lambda: session.describe(reads), _NO_CAST)


def _way(session: Session, of: Relation, column: Column, crossing: Crossing) -> Crossing:
    """Return the crossing with a cast that there is, directly or by the text form."""
    if crossing.into is None:
        return crossing
    for by_text in (False, True):
        way = replace(crossing, by_text=by_text)
        if _describable(session, of, [(column, way)]):
            return way
    return Crossing("refuse", f"{column.type_name} cannot be cast to {crossing.into.name}")


def _unhijacked(session: Session, column: Column, crossing: Crossing) -> Crossing:
    """Refuse where a cast that a user has made would be taken."""
    pairs = _casts(column.value.bare, crossing)
    if pairs and (casts := catalog.users_casts(session, pairs)):
        return Crossing("refuse", f"a user has made a cast at the source: {', '.join(casts)}")
    return crossing


def _casts(value: Value, crossing: Crossing) -> list[tuple[Value, Value]]:
    """Return from which types to which a crossing casts (`statements.crossings`)."""
    steps = [] if crossing.into is None else [value, crossing.into]
    if crossing.by_text:
        steps = [value, TEXT_VALUE, crossing.into or value]
    pairs = list(pairwise(steps))
    if crossing.back is not None:
        back = [steps[-1], crossing.back, TEXT_VALUE]
        if crossing.by_text:
            back = [steps[-1], TEXT_VALUE, crossing.back, TEXT_VALUE]
        pairs += [*pairwise(back), (value, crossing.back)]
    if crossing.unwanted is not None:
        pairs.append((value, TEXT_VALUE))
    return pairs


# cannot_coerce; undefined_object for a type that the source lacks; undefined_function for a
# comparison that it lacks.
_NO_CAST = ("42846", "42704", "42883")


def check_condition(
    text: str,
    sides: Sequence[tuple[Session, Table, Server]],
    columns: Sequence[tuple[Column, Column]],
) -> frozenset[str]:
    """Return the columns that a condition uses; refuse one that may mean other rows elsewhere.

    It must be one expression over `columns`, which are copied as they are, and nothing else: then
    the rows for which it holds at the dest are copies of those for which it holds at the source.
    """
    plain = {dest.name: (source, dest) for source, dest in columns}
    found: list[Mentions] = []
    read: list[str] = []
    for number, (session, table, _) in enumerate(sides):
        seen = [pair[number] for pair in plain.values()]
        with _refusing("the condition", _condition_hints(plain)):
            _check_alone(session, text)
            session.describe(asking.condition(table.name, seen, text))
            printed = catalog.printed(session, table.name, seen, text)
        found.append(_check_meaning(session, text, printed))
        read.append(bare(printed.text, table.name))
    if len(set(read)) > 1:
        raise PlanRefused(
            "the condition is not read alike by the two sides",
            detail=f"The source reads {read[0]}, the dest {read[1]}.",
            hint="Write the values themselves.",
        )
    used = frozenset().union(*(each.columns for each in found))
    _check_encodings(used, plain, sides)
    by_letters = frozenset().union(*(each.sorted for each in found))
    for name in sorted(by_letters):
        rules = [_rules(of, server) for of, (*_, server) in zip(plain[name], sides, strict=True)]
        if len(set(rules)) > 1:
            raise PlanRefused(
                f"the condition sorts or folds {name}, which the two sides do differently",
                detail=f"By {rules[0]} at the source, by {rules[1]} at the dest.",
                hint='Compare by the bytes: COLLATE "C".',
            )
    return used


def _check_encodings(
    used: Iterable[str],
    plain: Mapping[str, tuple[Column, Column]],
    sides: Sequence[tuple[Session, Table, Server]],
) -> None:
    """Refuse texts in a condition where the sides keep them in different bytes.

    Their length and what is computed of their bytes (md5, octet_length, a cast to bytea) differ.
    """
    encodings = [server.encoding for *_, server in sides]
    if len(set(encodings)) == 1:
        return
    for name in sorted(used):
        if any(has_letters(column.value) for column in plain[name]):
            raise PlanRefused(
                f"the condition uses {name}, which the two sides keep in different encodings",
                detail=f"{encodings[0]} at the source, {encodings[1]} at the dest.",
                hint="Use numbers and times, or --query with a range.",
            )


def _rules(column: Column, server: Server) -> str | None:
    return f"database {server.sorting}" if column.sorting == "database" else column.sorting


def _check_meaning(session: Session, text: str, printed: Printed) -> Mentions:
    """Refuse what depends on more than the row; return what the condition mentions."""
    if printed.text == "true":
        raise PlanRefused(
            "the condition holds for every row",
            hint="Leave it out; for the whole table give --all, which asks before it replaces.",
        )
    if printed.subqueries:
        raise PlanRefused(
            "the condition has a subquery",
            detail="What it reads may differ between the two sides.",
            hint="Put it into --query, with a range or --all.",
        )
    found = mentions(printed.text)
    if found.whole_row:
        raise PlanRefused(
            "the condition uses the row as a whole",
            detail="The two sides may hold other columns, or in another order.",
            hint="Name the columns.",
        )
    unsteady = {*folded_moments(text, printed.text), *catalog.unsteady(session, found)}
    if unsteady:
        raise PlanRefused(
            "the condition may mean other rows at the dest than at the source",
            detail=f"{', '.join(sorted(unsteady))} can differ from server to server, or from one "
            "moment to the next.",
            hint="Write the value itself; for days use --day or --from with --to. Functions and "
            "operators of users must be IMMUTABLE.",
        )
    return found


def _check_alone(session: Session, expression: str) -> None:
    """Raise the server's error where an expression is not complete by itself."""
    session.execute(copies.savepoint())
    try:
        session.describe(asking.alone(expression))
    except CopypipeError as error:
        if error.sqlstate not in _ALONE:
            raise
    session.execute(copies.back_to_savepoint())
    session.execute(copies.release_savepoint())


Hints = dict[str, str]
"""What to do about an error, by its SQLSTATE or the class of that."""


@contextmanager
def _refusing(what: str, hints: Hints) -> Iterator[None]:
    """Turn a server's error about the user's text into a refusal that names the text."""
    try:
        yield
    except CopypipeError as error:
        code = error.sqlstate or ""
        if not code.startswith(ABOUT_THE_TEXT):
            raise
        refused = PlanRefused(
            f"{what} cannot be used",
            detail=error.message,
            hint=hints.get(code) or error.hint,
            side=error.side,
            sqlstate=error.sqlstate,
        )
    else:
        return
    raise refused


_NAMES: Hints = {
    "42P01": "Names are looked up with an empty search_path: write the schema, as in public.users.",
    "3F000": "There is no such schema on this side.",
    "42883": "Functions and operators that are not built in need their schema, as in public.f(x) "
    "or x OPERATOR(public.%) y, and arguments of the right types.",
    "42704": "What is not built in needs its schema, as in public.mood.",
}
_QUERY: Hints = {
    **_NAMES,
    "42601": "One SELECT is wanted, with nothing left open.",
    "0A000": "One SELECT is wanted that changes nothing.",
}
_EXPRESSION: Hints = {
    **_NAMES,
    "42601": "One expression is wanted: no semicolon, nothing left open.",
    **dict.fromkeys(
        # grouping_error (aggregates), windowing_error, functions that return sets
        ("42803", "42P20", "0A000"),
        "An expression has one value for each row that is read.",
    ),
}


def _condition_hints(plain: Iterable[str]) -> Hints:
    columns = f"It may use the columns that are copied as they are: {', '.join(plain)}."
    return {**_EXPRESSION, "42703": columns, "42P01": f"Name columns alone. {columns}"}
