"""What stands in the way: facts of the two tables in, refusals out, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence

from copypipe.catalog import Server
from copypipe.crossings import Crossing
from copypipe.errors import PlanRefused
from copypipe.tables import READABLE, WRITABLE, Matching, Relation, Table


def check_kinds(source: Relation, dest: Table) -> None:
    """Refuse relations that cannot be read or written as a table."""
    if isinstance(source, Table) and source.kind not in READABLE:
        raise PlanRefused(
            f"source: {source.full_name} is a {source.kind_name}",
            hint="A table, a view or a materialized view can be copied.",
            side="source",
        )
    if dest.kind not in WRITABLE:
        raise PlanRefused(
            f"dest: {dest.full_name} is a {dest.kind_name}",
            detail="What is written there cannot be rolled back or counted as rows of a table.",
            hint="Name a table with --into.",
            side="dest",
        )


def check_dest(server: Server, table: Table) -> None:
    """Refuse a dest that would take other rows than it is sent, or change other tables."""

    def refuse(message: str, detail: str, hint: str | None = None) -> PlanRefused:
        return PlanRefused(f"dest: {message}", detail=detail, hint=hint, side="dest")

    name = table.full_name
    if server.in_recovery:
        raise refuse("the server is a standby", "It takes no writes.", "Connect to its primary.")
    if table.has_children:
        raise refuse(
            f"{name} has inheritance children",
            "Clearing it would clear them too, and COPY would fill the parent alone.",
            "Copy into the children, or use declarative partitions.",
        )
    if table.has_foreign_parts:
        raise refuse(f"{name} has foreign tables as partitions", "They commit on their own server.")
    if table.has_rules:
        raise refuse(f"{name} has rules", "DELETE obeys rules and COPY ignores them.")
    acting = [r for r in table.references if r.on_delete not in ("no action", "restrict")]
    if acting:
        listed = ", ".join(f"{r.constraint} of {r.table} (ON DELETE {r.on_delete})" for r in acting)
        raise refuse(f"clearing {name} would change other tables", f"Foreign keys: {listed}.")


def check_row_security(source: Relation, dest: Table) -> None:
    """Refuse tables whose rows are filtered for this role.

    What a query reads is the source's matter: row_security is off, so it raises an error.
    """
    for side, table in (("source", source), ("dest", dest)):
        if isinstance(table, Table) and table.row_security:
            raise PlanRefused(
                f"{side}: row security of {table.full_name} applies to this role",
                detail="It would hide rows without a word.",
                hint="Connect as a role with BYPASSRLS, or as the owner.",
                side="source" if side == "source" else "dest",
            )


def reversed_sides(source: Relation, dest: Table) -> PlanRefused:
    """Say that the source is what the dest is copied into: somebody has swapped the two."""
    return PlanRefused(
        f"the sides are swapped: {source.full_name} of the source is filled from "
        f"{dest.full_name} of the dest",
        detail="The ledger of the source says so.",
        hint="Exchange --source and --dest, or give --allow-reverse if that is meant.",
        side="source",
    )


def check_columns(
    source: Relation,
    dest: Table,
    matching: Matching,
    crossings: Mapping[str, Crossing],
    *,
    never_null: Container[str],
    may_be_cast: Collection[str],
) -> None:
    """Refuse columns without a home, without a value and of types that do not fit, all at once.

    `crossings` holds a decision for each column of the dest that is copied; `never_null` names
    columns whose domain takes no NULL, `may_be_cast` those for which --cast was not given and
    would help.
    """
    problems = [f"{c.name} is missing at the dest" for c in matching.without_home]
    problems += [
        f"{c.name} {why}, and the dest has no default for it, which must not be NULL"
        for why, columns in (
            ("is missing at the source", matching.without_source),
            ("is excluded", matching.excluded),
        )
        for c in columns
        if (c.not_null or c.name in never_null) and not c.has_default and not dest.has_triggers
    ]
    problems += [
        f"{name}: {crossing.reason}"
        for name, crossing in crossings.items()
        if crossing.decision == "refuse"
    ]
    if problems:
        hints = ["--exclude leaves a column out; --column computes one at the source."]
        if may_be_cast:
            named = ", ".join(may_be_cast)
            hints = [
                f"--cast casts at the source and fails at a value that this would change, "
                f"--allow-lossy lets it change (here: {named}).",
                *hints,
            ]
        raise PlanRefused(
            f"the columns of {source.full_name} and {dest.full_name} do not fit",
            detail="; ".join(problems) + ".",
            hint=" ".join(hints),
        )
    if not matching.columns:
        raise PlanRefused(
            f"{dest.full_name} has no column to copy into",
            hint="Columns that the dest generates itself, and excluded ones, are left out.",
        )


def check_rights(
    dest: Table, columns: Sequence[str], compared: Iterable[str], *, truncate: bool
) -> None:
    """Refuse a role that lacks a right at the dest, naming the GRANT that gives it.

    `compared` are the columns by which the slice is found.
    """
    lacking = []
    unreadable = sorted(set(compared) - dest.rights.readable)
    if unreadable:
        lacking.append(f"SELECT ({', '.join(unreadable)})")
    elif not dest.rights.readable:
        lacking.append("SELECT")
    refused = [name for name in columns if name not in dest.rights.insert]
    if refused:
        of = "" if len(refused) == len(columns) else f" ({', '.join(refused)})"
        lacking.append(f"INSERT{of}")
    if truncate and not dest.rights.truncate:
        lacking.append("TRUNCATE")
    if not truncate and not dest.rights.delete:
        lacking.append("DELETE")
    if lacking:
        raise PlanRefused(
            f"dest: the role may not write {dest.full_name}",
            detail=f"It lacks {', '.join(lacking)}.",
            hint=f"GRANT {', '.join(lacking)} ON {dest.full_name} TO the role.",
            side="dest",
        )


def check_truncate(dest: Table) -> None:
    """Refuse --clear truncate where a foreign key points at the table."""
    if dest.references:
        listed = ", ".join(f"{r.constraint} of {r.table}" for r in dest.references)
        raise PlanRefused(
            f"dest: {dest.full_name} cannot be truncated, foreign keys point at it",
            detail=f"Foreign keys: {listed}.",
            hint="Use --clear delete.",
            side="dest",
        )
