"""What the roles of both sides need for a copy, the least of it: facts in, privileges out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from copypipe.requests import Request
from copypipe.slices import Everything
from copypipe.statements.merges import Merge
from copypipe.statements.privileges import Privilege
from copypipe.tables import Partition, Relation, Table

SEES_OTHERS = Privilege(
    "pg_read_all_stats",
    "role",
    gives="shows the running transactions of others, so that a slice is sealed at once",
)


def removes(request: Request) -> Literal["DELETE", "TRUNCATE"] | None:
    """Return by which right on the table its rows are removed; None for none on it."""
    if (
        request.swap
        or request.only_empty
        or request.mode == "append"
        or (request.mode == "merge" and not request.merge_deletes)
    ):
        return None
    if request.clear == "truncate":  # of partitions the right on each is asked
        return "TRUNCATE" if isinstance(request.wanted, Everything) else None
    return "DELETE"


def looked_at(request: Request, columns: Collection[str], compared: Iterable[str]) -> set[str]:
    """Return the dest's columns that the mode reads; none may still mean one, whichever.

    `compared` are those by which the slice is found.
    """
    if request.verify == "checksum" and not request.swap:
        return {*columns, *compared}
    if request.mode == "append":
        return set()
    if request.mode == "replace":
        return set(compared)
    return {*columns, *(compared if request.merge_deletes else ())}


def reads_own_rows(request: Request, table: Table) -> bool:
    """Return whether the rows that were appended are looked for, by what tells who wrote them.

    To count what triggers let through, or for their digest; rights on columns do not do for that.
    """
    counts = table.has_triggers and "triggers" not in request.accept
    return request.mode == "append" and (counts or request.verify == "checksum")


def at_source(of: Relation, columns: Collection[str]) -> list[Privilege]:
    """Return what reading these columns needs; what a query reads is for the server to say."""
    if not isinstance(of, Table):
        return [SEES_OTHERS]
    return [
        Privilege("USAGE", "schema", (of.schema,)),
        _on(of, "SELECT", columns),
        SEES_OTHERS,
    ]


def at_dest(
    request: Request,
    table: Table,
    columns: Sequence[str],
    compared: Collection[str],
    merge: Merge | None,
    partitions: Sequence[Partition],
) -> list[Privilege]:
    """Return what the mode needs to write these columns of the table.

    LOCK TABLE asks for a right to write on the table as a whole: where there is no DELETE or
    TRUNCATE on it, INSERT cannot be limited to columns.
    """
    by = removes(request)
    found = [Privilege("USAGE", "schema", (table.schema,))]
    if request.mode == "append" and (table.has_triggers or request.verify == "checksum"):
        found.append(_on(table, "SELECT"))  # as `reads_own_rows`, whatever is accepted
    elif looked := looked_at(request, columns, compared):
        found.append(_on(table, "SELECT", looked))
    elif by is not None:
        found.append(_on(table, "SELECT", columns[:1]))  # whether it has a row
    found.append(_on(table, "INSERT", columns if by is not None else ()))
    if merge is not None and merge.updates:
        found.append(_on(table, "UPDATE", merge.updates))
    if by is not None:
        found.append(_on(table, by))
    found += [Privilege("TRUNCATE", "table", (part.schema, part.name)) for part in partitions]
    if request.where is not None and request.mode == "replace":
        found.append(
            _on(
                table,
                "SELECT",
                gives="lets the rows be counted for which the condition holds at the dest too",
            )
        )
    if (
        by == "DELETE"
        and request.mode == "replace"
        and request.where is None
        and isinstance(request.wanted, Everything)
    ):
        found.append(_on(table, "TRUNCATE", gives="lets an empty table be filled with frozen rows"))
    return found


def _on(
    table: Table, name: str, columns: Collection[str] = (), *, gives: str | None = None
) -> Privilege:
    ordered = tuple(column.name for column in table.columns if column.name in columns)
    return Privilege(name, "table", (table.schema, table.name), ordered, gives)
