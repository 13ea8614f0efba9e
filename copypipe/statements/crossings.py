"""What the source sends for a column: the value, or what its crossing makes of it.

COPY has no way to refuse a value but an error of an expression. So what must not go over makes a
text that is read as an integer, which raises an error that quotes the text; `failures` finds it
there. The text is repeated as often as the value is not NULL, once, or the planner would read it
before the first row. Functions do it, not casts: those can be made by users.
"""

from __future__ import annotations

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.crossings import GUARD, Crossing, Unwanted
from copypipe.statements.expressions import within_parentheses
from copypipe.tables import Column
from copypipe.types import Value

# Numbers are compared as numbers: 1.5 comes back from numeric(10,2) as 1.50.
_NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric"})

# The two intervals that 17 takes for infinite ones (timestamp.h, INTERVAL_NOBEGIN and _NOEND).
_EXTREMES = (
    "178956970 years 7 mons 2147483647 days 2562047788:00:54.775807",
    "-178956970 years -8 mons -2147483648 days -2562047788:00:54.775808",
)

# What fails the copy: which values may go, and what is said of the others.
_UNWANTED: dict[Unwanted, tuple[str, str]] = {
    "infinite": ("pg_catalog.isfinite({})", "that is infinite"),
    "extreme": (
        "{}::pg_catalog.text <> ALL (ARRAY["
        + ", ".join(f"'{text}'" for text in _EXTREMES)
        + "]::pg_catalog.text[])",
        "that the dest would take for infinite",
    ),
    # Alone or in an array: what has no name is written as a bare number.
    "nameless": (
        "{}::pg_catalog.text !~ '(^|[{{,])[1-9][0-9]*([}},]|$)'",
        "that has no name in its database",
    ),
}


def held(column: Column) -> Composable:
    """Return the value of a column as it is at the source."""
    if column.expression is None:
        return Identifier(column.name)
    return within_parentheses(column.expression)


def crossed(value: Composable, column: Column, crossing: Crossing) -> Composable:
    """Return what is sent for a value of a column; `value` may stand there several times."""
    name, sent = column.name, value
    if crossing.into is not None:
        sent = _cast(value, crossing.into, by_text=crossing.by_text)
    if crossing.back is not None and crossing.into is not None:
        same = _same(sent, value, crossing.back, by_text=crossing.by_text)
        return _checked(same, value, sent, name, f"that {crossing.into.name} would change")
    if crossing.unwanted is not None:
        condition, what = _UNWANTED[crossing.unwanted]
        return _checked(SQL(condition).format(value), value, sent, name, what)
    if crossing.longest is not None:
        # The dest says it in its own words: what it would cut is no blank any more.
        return SQL(
            "CASE WHEN pg_catalog.char_length({sent}) > {longest} "
            "THEN pg_catalog.concat({sent}, '.') ELSE {sent} END"
        ).format(sent=sent, longest=Literal(crossing.longest))
    return sent


def _cast(value: Composable, into: Value, *, by_text: bool) -> Composed:
    """Cast by way of the text form where there is no cast between the two types."""
    way = "{}::pg_catalog.text::{}" if by_text else "{}::{}"
    return SQL(way).format(value, SQL(into.name))


def _same(sent: Composable, value: Composable, back: Value, *, by_text: bool) -> Composed:
    """Compare what would be sent with the value, both as the type `back`."""
    returned, before = _cast(sent, back, by_text=by_text), _cast(value, back, by_text=False)
    if (back.element or back).type.name in _NUMBERS:
        return SQL("{} = {}").format(returned, before)
    as_bytes = '{}::pg_catalog.text COLLATE pg_catalog."C"'
    return SQL(f"{as_bytes} = {as_bytes}").format(returned, before)


def _checked(
    condition: Composable, value: Composable, sent: Composable, name: str, what: str
) -> Composed:
    """Return `sent` where the condition holds, NULL for NULL, and raise an error otherwise.

    A row of NULLs is no NULL, so IS NULL is not asked.
    """
    return SQL(
        "CASE WHEN pg_catalog.num_nulls({value}) = 1 THEN NULL WHEN {condition} THEN {sent} "
        "WHEN pg_catalog.int4in(pg_catalog.textout(pg_catalog.repeat({said}, "
        "pg_catalog.num_nonnulls({value})))) = 0 THEN NULL END"
    ).format(
        value=value,
        condition=condition,
        sent=sent,
        said=Literal(f"{GUARD}{name} holds a value {what}"),
    )
