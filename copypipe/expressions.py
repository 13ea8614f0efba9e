"""What a condition mentions, read from the form in which the planner prints it.

PostgreSQL parses, resolves and prints the condition (`statements.expressions.condition`): names are
qualified where the empty search_path does not find them, columns bear the table's name, words of
SQL are in capitals. What is looked for is whatever could make one condition mean different rows on
two servers. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Words of SQL whose value is the moment, the role or the database ("Functions" in the
# documentation: date/time and session information).
_OF_THE_MOMENT = frozenset(
    {"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"}
    | {"CURRENT_USER", "SESSION_USER", "CURRENT_ROLE", "USER", "SYSTEM_USER"}
    | {"CURRENT_CATALOG", "CURRENT_SCHEMA"}
)

# Built-in functions that are STABLE because they depend on settings, which are the same on both
# sides (`statements.sessions.PINNED`), and on nothing else. Any other one may depend on the moment,
# the role, a catalog or a text search configuration.
STEADY = frozenset(
    {"date", "date_add", "date_part", "date_subtract", "date_trunc", "extract", "make_timestamptz"}
    | {"overlaps", "time", "timestamp", "timestamptz", "timetz", "timezone"}
    | {"to_char", "to_date", "to_number", "to_timestamp"}
    | {"array_to_string", "concat", "concat_ws", "format", "quote_literal", "quote_nullable"}
    | {"array_to_json", "json_build_array", "json_build_object", "row_to_json", "to_json"}
    | {"jsonb_build_array", "jsonb_build_object", "to_jsonb"}
    | {"jsonb_path_exists_tz", "jsonb_path_match_tz"}
)

# Words that a date or time type reads as the moment ("Special Date/Time Inputs").
_MOMENT = re.compile(r"\b(?:now|today|tomorrow|yesterday)\b", re.IGNORECASE)

_LATER = re.compile(r"'(?:[^']|'')*'::(?:text|cstring|character varying)\)::(?:date|time)")

# Tokens of a printed expression; names that need no quotes are in lower case.
_TOKEN = re.compile(
    r"""
      (?P<text> E?'(?:[^'\\]|''|\\.)*' )
    | (?P<quoted> "(?:[^"]|"")*" )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<symbol> :: | [(),.] )
    | (?P<operator> [-+*/<>=~!@\#%^&|`?]+ )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.DOTALL,
)

# What depends on how a database sorts and folds letters.
_SORTING = frozenset({"<", "<=", ">", ">=", "~", "~*", "!~", "!~*", "~~*", "!~~*"})
_FOLDING = frozenset({"lower", "upper", "initcap"})

Name = tuple[str, str]
"""Schema and name. The search path is empty, so what has no schema is pg_catalog's."""


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a printed condition mentions."""

    columns: frozenset[str]
    calls: frozenset[tuple[Name, int]]
    """Functions, with the number of their arguments."""
    operators: frozenset[Name]
    """Operators that are not pg_catalog's."""
    types: frozenset[Name]
    """Types that are not pg_catalog's."""
    moments: frozenset[str]
    """Words whose value is the moment, the role or the database."""
    whole_row: bool
    sorted: frozenset[str]
    """Columns that are sorted, folded, or matched by their letters, without a COLLATE."""


def mentions(printed: str) -> Mentions:
    """Return what a condition of one table mentions, as the planner prints it."""
    tokens = [match for match in _TOKEN.finditer(printed) if match.lastgroup is not None]
    texts = [token[0] for token in tokens]
    columns, calls, operators, types = set(), set(), set(), set()
    moments, sorted_ = set(), set()
    whole_row = False
    for place, token in enumerate(tokens):
        name = _name(token)
        before, after = _around(texts, place)
        if name is None or before == ".":
            continue
        qualified = after == "."
        last = place + 2 if qualified else place
        own = _name(tokens[last]) if last < len(tokens) else None
        full = (name, own) if qualified and own is not None else ("pg_catalog", name)
        if before == "::":
            if qualified:
                types.add(full)
        elif token["word"] and name in _OF_THE_MOMENT and not qualified:
            moments.add(name)
        elif texts[last + 1 : last + 2] == ["("]:
            if name == "OPERATOR":
                operators.add((_name(tokens[place + 2]) or "", texts[place + 4]))
            elif token["quoted"] or not name.isupper():
                calls.add((full, _arguments(texts, last + 1)))
        elif qualified and own is not None:
            columns.add(own)
            if "COLLATE" not in texts and _is_sorted(texts, place, last):
                sorted_.add(own)
        elif qualified:
            whole_row |= texts[last : last + 1] == ["*"]
    return Mentions(
        frozenset(columns),
        frozenset(calls),
        frozenset(operators),
        frozenset(types),
        frozenset(moments),
        whole_row,
        frozenset(sorted_),
    )


def bare(printed: str, table: str) -> str:
    """Return a printed condition without the table's name, to be compared with another side's."""
    tokens = list(_TOKEN.finditer(printed))
    kept, start = [], 0
    for token, following in pairwise(tokens):
        if _name(token) == table and following[0] == ".":
            kept.append(printed[start : token.start()])
            start = following.end()
    return "".join(kept) + printed[start:]


def folded_moments(written: str, printed: str) -> list[str]:
    """Return the words such as 'today' that were read as a date when the condition was parsed.

    They stand in what the user wrote, and no more in what the planner printed, or there in a text
    that is turned into a date later.
    """
    printed = _LATER.sub("", printed)
    words = [word.lower() for word in _MOMENT.findall(written)]
    left = [word.lower() for word in _MOMENT.findall(printed)]
    return sorted({f"'{word}'" for word in words if words.count(word) > left.count(word)})


def may_read_tables(written: str) -> bool:
    """Return whether an expression as the user wrote it may read tables; a function always may."""
    return _READING.search(written) is not None


_READING = re.compile(r"\b(?:select|table)\b", re.IGNORECASE)


def _name(token: re.Match[str]) -> str | None:
    if token["quoted"]:
        return token["quoted"][1:-1].replace('""', '"')
    return token["word"]


def _around(texts: Sequence[str], place: int) -> tuple[str, str]:
    before = texts[place - 1] if place else ""
    return before, texts[place + 1] if place + 1 < len(texts) else ""


def _arguments(texts: Sequence[str], opening: int) -> int:
    """Return how many arguments stand in the parentheses that open there."""
    if texts[opening + 1] == ")":
        return 0
    depth, number = 0, 1
    for text in texts[opening:]:
        depth += (text == "(") - (text == ")")
        if depth == 0:
            break
        number += text == "," and depth == 1
    return number


def _is_sorted(texts: Sequence[str], first: int, last: int) -> bool:
    """Return whether the column between those places is compared or folded by its letters."""
    while first and texts[first - 1] == "(":
        first -= 1
        if first and texts[first - 1] in _FOLDING:
            return True
    after = [text for text in texts[last + 1 : last + 5] if text not in (")", "::", "text")]
    return bool(_SORTING & {*after[:1], *texts[max(0, first - 1) : first]})
