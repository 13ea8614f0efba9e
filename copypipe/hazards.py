"""What stands in the way: facts of the two tables in, refusals out, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Literal

from copypipe.catalog import Server
from copypipe.crossings import Crossing
from copypipe.errors import PlanRefused
from copypipe.requests import Hazard
from copypipe.slices import Range
from copypipe.tables import (
    READABLE,
    WRITABLE,
    DrawnSequence,
    Matching,
    OwnedSequence,
    Partition,
    Reference,
    Relation,
    Table,
)


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


def check_references(table: Table, accepted: Container[Hazard], *, merging: bool) -> None:
    """Refuse to remove rows that others point at.

    A merge removes only rows that the source has lost; what points at them is the servers' matter,
    unless it would be changed.
    """
    acting = [r for r in table.references if r.on_delete not in ("no action", "restrict")]
    if acting and "cascade" not in accepted:
        raise PlanRefused(
            f"dest: clearing {table.full_name} would change other tables",
            detail=f"Foreign keys: {_listed(acting)}.",
            hint=f"{'' if merging else _MERGE}--accept cascade lets it.",
            side="dest",
        )
    firm = [r for r in table.references if r not in acting and not r.is_deferrable]
    if firm and not merging and "references" not in accepted:
        raise PlanRefused(
            f"dest: rows of {table.full_name} cannot be removed while others point at them",
            detail=f"Foreign keys: {_listed(firm)}. They are looked at before the rows are back.",
            hint=f"{_MERGE}Or make them DEFERRABLE. --accept references tries it.",
            side="dest",
        )


def check_updates(table: Table, updates: Container[str], accepted: Container[Hazard]) -> None:
    """Refuse a merge whose updates would be passed on to other tables."""
    acting = [
        r
        for r in table.references
        if r.on_update not in ("no action", "restrict") and any(c in updates for c in r.columns)
    ]
    if acting and "cascade" not in accepted:
        listed = ", ".join(f"{r.constraint} of {r.table} (ON UPDATE {r.on_update})" for r in acting)
        raise PlanRefused(
            f"dest: updating {table.full_name} would change other tables",
            detail=f"Foreign keys: {listed}.",
            hint="--accept cascade lets it.",
            side="dest",
        )


_MERGE = "Use --mode merge, which removes no row. "


def _listed(references: Iterable[Reference]) -> str:
    return ", ".join(f"{r.constraint} of {r.table} (ON DELETE {r.on_delete})" for r in references)


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


def check_reading(source: Relation, columns: Iterable[str]) -> None:
    """Refuse a role that may not read these columns of the source, naming the GRANT.

    What a query or an expression of the user reads is for the server to say.
    """
    if not isinstance(source, Table):
        return
    unreadable = sorted(set(columns) - source.rights.readable)
    if unreadable:
        raise PlanRefused(
            f"source: the role may not read {source.full_name}",
            detail=f"It lacks SELECT ({', '.join(unreadable)}).",
            hint=f"GRANT SELECT ({', '.join(unreadable)}) ON {source.full_name} TO the role.",
            side="source",
        )


def check_rights(
    dest: Table,
    columns: Sequence[str],
    compared: Iterable[str],
    *,
    removes: Literal["DELETE", "TRUNCATE"] | None,
    updates: Sequence[str] = (),
    whole: bool = False,
) -> None:
    """Refuse a role that lacks a right at the dest, naming the GRANT that gives it.

    `compared` are the columns by which the slice, or a row, is found; `whole` tells that SELECT on
    the table is needed, since rows are told by who wrote them (xmin).
    """
    lacking, locks = [], ""
    unreadable = sorted(set(compared) - dest.rights.readable)
    if unreadable:
        lacking.append(f"SELECT ({', '.join(unreadable)})")
    elif (removes is not None and not dest.rights.readable) or (whole and not dest.rights.select):
        lacking.append("SELECT")
    refused = [name for name in columns if name not in dest.rights.insert]
    if refused:
        of = "" if len(refused) == len(columns) else f" ({', '.join(refused)})"
        lacking.append(f"INSERT{of}")
    elif removes is None and not dest.rights.lock:
        lacking.append("INSERT")
        locks = " INSERT on columns alone does not let it lock the table."
    fixed = [name for name in updates if name not in dest.rights.update]
    if fixed:
        of = "" if len(fixed) == len(updates) else f" ({', '.join(fixed)})"
        lacking.append(f"UPDATE{of}")
    may = {"DELETE": dest.rights.delete, "TRUNCATE": dest.rights.truncate}
    if removes is not None and not may[removes]:
        lacking.append(removes)
    if lacking:
        raise PlanRefused(
            f"dest: the role may not write {dest.full_name}",
            detail=f"It lacks {', '.join(lacking)}.{locks}",
            hint=f"GRANT {', '.join(lacking)} ON {dest.full_name} TO the role.",
            side="dest",
        )


def check_sequences(sequences: Iterable[OwnedSequence]) -> None:
    """Refuse a role that may not advance the sequences that it was asked to."""
    lacking = [sequence.full_name for sequence in sequences if not sequence.may_advance]
    if lacking:
        raise PlanRefused(
            f"dest: the role may not advance {', '.join(lacking)}",
            hint=f"GRANT UPDATE ON SEQUENCE {', '.join(lacking)} TO the role.",
            side="dest",
        )


def check_drawn(sequences: Iterable[DrawnSequence]) -> None:
    """Refuse a role that may not draw the numbers that defaults of the dest ask for."""
    lacking = [sequence.full_name for sequence in sequences if not sequence.may_draw]
    if lacking:
        raise PlanRefused(
            f"dest: the role may not draw from {', '.join(lacking)}",
            detail="It lacks USAGE. Defaults of columns that are not copied draw from there.",
            hint=f"GRANT USAGE ON SEQUENCE {', '.join(lacking)} TO the role.",
            side="dest",
        )


def check_staging(server: Server) -> None:
    """Refuse a role that may not make the table from which rows are merged."""
    if not server.may_stage:
        raise PlanRefused(
            "dest: the role may not make temporary tables",
            detail="Rows are copied into one first, and merged from there.",
            hint="GRANT TEMPORARY ON DATABASE to the role.",
            side="dest",
        )


def check_partitions(
    dest: Table, slice_: Range, found: Sequence[Partition], *, truncate: bool
) -> None:
    """Refuse to truncate partitions that are not, all together, exactly the slice.

    What is swapped, not truncated, is a single one.
    """
    edges = [(partition.start, partition.stop) for partition in found]
    stops = [slice_.start, *(stop for _, stop in edges)]
    starts = [*(start for start, _ in edges), slice_.stop]
    if not found or stops != starts or slice_.holes:
        listed = ", ".join(f"{p.full_name} [{p.start}, {p.stop})" for p in found) or "none"
        raise PlanRefused(
            f"dest: {slice_} is not made of whole partitions of {dest.full_name}",
            detail=f"Its partitions by {slice_.column} within that range: {listed}.",
            hint="Use --clear delete." if truncate else "Leave --swap out.",
            side="dest",
        )
    if not truncate:
        if len(found) != 1:
            raise PlanRefused(
                f"dest: {slice_} is {len(found)} partitions of {dest.full_name}",
                hint="Swap one after the other, each by a slice of its own.",
                side="dest",
            )
        return
    lacking = [partition.full_name for partition in found if not partition.may_truncate]
    if lacking:
        raise PlanRefused(
            f"dest: the role may not truncate {', '.join(lacking)}",
            hint=f"GRANT TRUNCATE ON {', '.join(lacking)} TO the role.",
            side="dest",
        )


def check_truncate(dest: Table) -> None:
    """Refuse --clear truncate where a foreign key points at the table."""
    if dest.references:
        listed = ", ".join(f"{r.constraint} of {r.table}" for r in dest.references)
        raise PlanRefused(
            f"dest: {dest.full_name} cannot be truncated or swapped, foreign keys point at it",
            detail=f"Foreign keys: {listed}.",
            hint="Use --mode merge, which removes no row.",
            side="dest",
        )
