"""Whose error it was and what may be said of it: errors of servers become ours.

A server's DETAIL and CONTEXT quote values of rows, so only names are taken over from them, and
the place in the stream, which COPY in binary reports without the value. Primary messages are shown
as they are, also those that users' own functions raise; those of class 22 often quote a value.
"""

from __future__ import annotations

import re

import psycopg

from copypipe.crossings import GUARD
from copypipe.errors import (
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    PlanRefused,
    Side,
    TransientError,
    printable,
)

# SQLSTATEs that pass by themselves (PostgreSQL, appendix A).
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})
_PASSING = frozenset({"40001", "40P01", "53300", "55P03", "25P03"})

# transaction_timeout: the server closes the connection, and would do so in each try.
TOO_LONG = "25P04"

# insufficient_privilege, and read_only_sql_transaction: what is read at the source must not write.
_REFUSED = frozenset({"42501", "25006"})

# A receive function that dislikes its bytes says protocol_violation; the connection is fine.
_NOT_THE_CONNECTION = frozenset({"08P01"})

# Primary messages of class 22 (data exception) often quote a value of the row. These do not.
_WITHOUT_VALUES = frozenset({"22001", "22P03", "22P04"})

# In text format the value follows.
_PLACE = re.compile(r"^COPY \S+, line (\d+)(?:, column ([^:]+))?(?:: .*)?$", re.MULTILINE)
# The source was made to refuse a value; the quotes are those of the server's language. Nothing but
# our own words may stand there, since a value could begin like them.
_GUARDED = re.compile(
    GUARD + r"(.{1,64} holds a value (?:that [\w .,()\"\[\]]{1,200} would change|that is infinite"
    r"|that the dest would take for infinite|that has no name in its database))\W{0,2}$"
)

_IN_FUNCTION = re.compile(r"(PL/\w+|SQL) function ")


def failure(
    side: Side, diag: psycopg.errors.Diagnostic, *, own_text: bool = False
) -> CopypipeError:
    """Turn a server's error into ours; one without SQLSTATE is libpq's: the connection is gone.

    `own_text` tells that no row was read: a value that is quoted was written by the user.
    """
    code = diag.sqlstate
    if not code:
        return lost(side)
    shown = printable(diag.message_primary or "")
    if guarded := _GUARDED.search(shown):
        shown = f"the column {guarded[1]}"
    elif code.startswith("22") and code not in _WITHOUT_VALUES and not own_text:
        shown = _condition(code)
    facts = [f"SQLSTATE {code}"]
    if diag.table_name:
        facts.append(f"table {diag.schema_name}.{diag.table_name}")
    if diag.column_name:
        facts.append(f"column {diag.column_name}")
    if diag.constraint_name:
        facts.append(f"constraint {diag.constraint_name}")
    facts += _place(diag.context)
    return _class(code, diag.severity_nonlocalized or diag.severity)(
        f"{side}: {shown}",
        detail="; ".join(facts) + ".",
        hint=_hint(side, code, diag.context),
        side=side,
        sqlstate=code,
    )


def translate(side: Side, error: psycopg.Error) -> CopypipeError:
    """Turn an exception of psycopg into ours; an error without SQLSTATE is a lost connection."""
    if error.sqlstate:
        return failure(side, error.diag)
    if isinstance(error, psycopg.OperationalError):
        return lost(side)
    return CopyFailed(f"{side}: {printable(str(error))}", side=side)


def without_value(error: CopyFailed) -> CopyFailed:
    """Return a server's error with the name of its condition in the place of its message."""
    said = f"{error.side}: {_condition(error.sqlstate or '')}"
    return CopyFailed(said, detail=error.detail, side=error.side, sqlstate=error.sqlstate)


def lost(side: Side) -> ConnectionLost:
    """Say that a connection ended before its work did."""
    return ConnectionLost(f"{side}: the connection was lost", side=side)


def _class(code: str, severity: str | None) -> type[CopypipeError]:
    if code == TOO_LONG:
        return CopyFailed
    # Behind these the server closes the connection, or has lost what it does for us: a crash, a
    # pooler whose server is gone (PgBouncer says protocol_violation of that, and no V field).
    if severity in ("FATAL", "PANIC"):
        return ConnectionLost
    if code in _REFUSED:
        return PlanRefused
    if code in _LOST or (code.startswith("08") and code not in _NOT_THE_CONNECTION):
        return ConnectionLost
    if code in _PASSING:
        return TransientError
    return CopyFailed


def _hint(side: Side, code: str, context: str | None) -> str | None:
    if code == "42501":
        return "Grant the role what it lacks, or connect as another one."
    if code == "25006":
        return "What is read at the source must not write: its transaction is read-only."
    if code == "23503":
        return "Rows of another table point at this slice, or are missing for it."
    if code == "57014":
        return f"If a timeout of the role ended it: --{side}-set statement_timeout=0."
    if code == TOO_LONG:
        return f"The role may not take so long: --{side}-set transaction_timeout=0."
    if code.startswith("42") and _IN_FUNCTION.search(context or ""):
        return (
            "Functions run with an empty search_path here: qualify the names in them, or give "
            "them one by ALTER FUNCTION .. SET search_path."
        )
    return None


def _place(context: str | None) -> list[str]:
    found = _PLACE.search(context or "")
    if not found:
        return []
    column = [f"column {found[2]}"] if found[2] else []
    return [f"row {found[1]} of the copy", *column]


def _condition(code: str) -> str:
    """Return PostgreSQL's name of the condition, such as "character not in repertoire"."""
    try:
        name = psycopg.errors.lookup(code).__name__
    except KeyError:
        return "data exception"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
