"""What a condition mentions, read without a server: the functions it calls, clocks, other rows.

This protects nobody from SQL that is meant to harm (`statements.expressions` confines that). It
finds what makes one condition mean different rows on two servers. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words of SQL whose value is the moment, the role or the database ("Functions" in the
# documentation: date/time and session information), and those that read other rows.
_OF_THE_MOMENT = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
    | {"current_user", "session_user", "current_role", "user", "system_user"}
    | {"current_catalog", "current_schema"}
)
_OF_OTHER_ROWS = frozenset({"select", "table"})

# Functions that are STABLE, and depend on more than their arguments and the settings that are the
# same on both sides. (Those that are VOLATILE a server names.)
_STABLE_OF_THE_MOMENT = frozenset(
    {"now", "statement_timestamp", "transaction_timestamp", "age"}
    | {"current_setting", "current_database", "current_schemas", "current_query", "version"}
    | {"inet_client_addr", "inet_client_port", "inet_server_addr", "inet_server_port"}
)

# Literals that a date or time type reads as the moment ("Special Date/Time Inputs"), some of them
# with a time of day.
_MOMENT = re.compile(r"(?:now|today|tomorrow|yesterday)(?:\s+(?:\d|allballs).*)?", re.DOTALL)

# The lexical structure of SQL as far as it matters here: what is skipped, what is a name.
_TOKEN = re.compile(
    r"""
      --[^\n\r]* | /\*.*?\*/
    | (?P<escapes> [eE]'(?:[^'\\]|''|\\.)*' )
    | (?P<text> '(?:[^']|'')*' )
    | \$(?P<tag>\w*)\$(?P<dollars>.*?)\$(?P=tag)\$
    | (?P<quoted> "(?:[^"]|"")*" )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a condition mentions besides plain columns."""

    calls: frozenset[tuple[str, str]]
    """Functions as (schema, name). The search path is empty, so what has none is pg_catalog's."""
    moments: frozenset[str]
    """What depends on when, by whom or where it is asked."""
    other_rows: bool
    """It may read rows of other tables."""
    names: frozenset[str]
    """Names that stand alone: columns, or the row as a whole."""


def mentions(text: str) -> Mentions:
    """Return what `text` mentions."""
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup is not None]
    calls, moments, names = set(), set(), set()
    other_rows = False
    for place, token in enumerate(tokens):
        before = tokens[place - 1][0] if place else ""
        after = tokens[place + 1][0] if place + 1 < len(tokens) else ""
        name = _name(token)
        if name is None:
            if _MOMENT.fullmatch(_literal(token)):
                moments.add(f"'{_literal(token)}'")
        elif after == "(":
            schema = _name(tokens[place - 2]) if before == "." and place > 1 else None
            calls.add((schema or "pg_catalog", name))
        elif before not in (".", ":") and after != ".":
            names.add(name)
        if token["word"] and before != ".":
            other_rows |= name in _OF_OTHER_ROWS
            if name in _OF_THE_MOMENT:
                moments.add(str(name))
        if name is not None and after == "." and _is_star(tokens, place + 2):
            names.add(name)
    moments |= {f"{name}()" for _, name in calls if name in _STABLE_OF_THE_MOMENT}
    return Mentions(frozenset(calls), frozenset(moments), other_rows, frozenset(names))


def _name(token: re.Match[str]) -> str | None:
    if token["word"]:
        return token["word"].lower()
    if token["quoted"]:
        return token["quoted"][1:-1].replace('""', '"')
    return None


def _literal(token: re.Match[str]) -> str:
    """Return the text of a literal as a date type would look at it."""
    text = token["dollars"] or (token["escapes"] or " ")[2:-1] or (token["text"] or "")[1:-1]
    return text.strip().lower()


def _is_star(tokens: list[re.Match[str]], place: int) -> bool:
    return place < len(tokens) and tokens[place][0] == "*"
