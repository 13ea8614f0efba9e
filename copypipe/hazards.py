"""What stands in the way: facts of the two tables in, refusals out, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from copypipe.catalog import Server
from copypipe.crossings import Crossing
from copypipe.errors import PlanRefused, Side
from copypipe.requests import Hazard
from copypipe.slices import Range
from copypipe.tables import (
    READABLE,
    WRITABLE,
    DrawnSequence,
    Gap,
    Matching,
    OwnedSequence,
    Partition,
    Reference,
    Relation,
    Table,
)


class Refusals:
    """What stands in the way of a plan, gathered so that all of it can be told at once."""

    def __init__(self, found: Iterable[PlanRefused] = ()) -> None:
        self._found = list(found)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Go on behind a block that refuses; what a server refuses has ended its transaction."""
        try:
            yield
        except PlanRefused as refused:
            if refused.sqlstate is not None:
                raise
            self.add(refused)

    def add(self, refused: PlanRefused) -> None:
        """Gather a refusal, and what was gathered in it."""
        others, refused.others = refused.others, ()
        for each in (refused, *others):
            if str(each) not in map(str, self._found):
                self._found.append(each)

    @property
    def all(self) -> tuple[PlanRefused, ...]:
        """Return them in the order in which they were found."""
        return tuple(self._found)

    def check(self) -> None:
        """Raise the first, with the others in it, if there is one."""
        if self._found:
            first, *others = self._found
            first.others = tuple(others)
            raise first


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


def check_dest(server: Server, table: Table, *, alone: bool = False) -> None:
    """Refuse a dest that would take other rows than it is sent, or change other tables.

    `alone` tells that its inheritance children are neither cleared with it nor read at the source.
    """
    refusals = Refusals()

    def refuse(message: str, detail: str, hint: str | None = None) -> None:
        refusals.add(PlanRefused(f"dest: {message}", detail=detail, hint=hint, side="dest"))

    name = table.full_name
    if server.in_recovery:
        refuse("the server is a standby", "It takes no writes.", "Connect to its primary.")
    if table.has_children and not alone:
        refuse(
            f"{name} has inheritance children",
            "Clearing it would clear them too, and COPY would fill the parent alone.",
            "Copy into the children, or use declarative partitions.",
        )
    if table.has_foreign_parts:
        refuse(f"{name} has foreign tables as partitions", "They commit on their own server.")
    if table.has_rules:
        refuse(f"{name} has rules", "DELETE obeys rules and COPY ignores them.")
    refusals.check()


def check_references(
    table: Table, accepted: Container[Hazard], *, merging: bool, whole: bool
) -> None:
    """Refuse to remove rows that others point at.

    Where the `whole` table is replaced its own rows may point at each other: all of them go.
    A merge removes only rows that the source has lost; what points at them is the servers' matter,
    unless it would be changed.
    """
    refusals = Refusals()
    acting = acting_on_delete(table, whole=whole)
    if acting and "cascade" not in accepted:
        refusals.add(
            PlanRefused(
                f"dest: clearing {table.full_name} would change other tables",
                detail=f"Foreign keys: {foreign_keys(acting)}.",
                hint=f"{'' if merging else _MERGE}--accept cascade lets it.",
                side="dest",
            )
        )
    firm = firm_on_delete(table, whole=whole)
    if firm and not merging and "references" not in accepted:
        refusals.add(
            PlanRefused(
                f"dest: rows of {table.full_name} cannot be removed while others point at them",
                detail=f"Foreign keys: {foreign_keys(firm)}. "
                "They are looked at before the rows are back.",
                hint=f"{_MERGE}Or make them DEFERRABLE. --accept references tries it.",
                side="dest",
            )
        )
    refusals.check()


def acting_on_delete(table: Table, *, whole: bool) -> list[Reference]:
    """Return the foreign keys by which a DELETE changes other tables."""
    return [r for r in _pointing(table, whole=whole) if r.on_delete not in _FIRM]


def firm_on_delete(table: Table, *, whole: bool) -> list[Reference]:
    """Return the foreign keys that refuse a DELETE at once, whatever comes after it."""
    found = _pointing(table, whole=whole)
    return [r for r in found if r.on_delete in _FIRM and not r.is_deferrable]


def _pointing(table: Table, *, whole: bool) -> list[Reference]:
    """Return the foreign keys that count: where the `whole` table goes, its own do not."""
    return [r for r in table.references if not (whole and r.is_own)]


_FIRM = ("no action", "restrict")


def check_updates(table: Table, updates: Container[str], accepted: Container[Hazard]) -> None:
    """Refuse a merge whose updates would be passed on to other tables."""
    acting = [
        r
        for r in table.references
        if r.on_update not in _FIRM and any(c in updates for c in r.columns)
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


def foreign_keys(references: Iterable[Reference]) -> str:
    """Name foreign keys, each with what it does when a row goes at which it points."""
    return ", ".join(f"{r.constraint} of {r.table} (ON DELETE {r.on_delete})" for r in references)


def check_row_security(source: Relation, dest: Table) -> None:
    """Refuse tables whose rows are filtered for this role.

    What a query reads is the source's matter: row_security is off, so it raises an error.
    """
    refusals = Refusals()
    sides: tuple[tuple[Side, Relation], ...] = (("source", source), ("dest", dest))
    for side, table in sides:
        if isinstance(table, Table) and table.row_security:
            refusals.add(
                PlanRefused(
                    f"{side}: row security of {table.full_name} applies to this role",
                    detail="It would hide rows without a word.",
                    hint="Connect as a role with BYPASSRLS, or as the owner.",
                    side=side,
                )
            )
    refusals.check()


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
    if whole and not dest.rights.select:
        lacking.append("SELECT")
    elif unreadable:
        lacking.append(f"SELECT ({', '.join(unreadable)})")
    elif removes is not None and not dest.rights.readable:
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
            hint=f"GRANT SELECT, UPDATE ON SEQUENCE {', '.join(lacking)} TO the role.",
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
    """Refuse to truncate or swap partitions that are not, all together, exactly the slice."""
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
    lacking = [partition.full_name for partition in found if not partition.may_truncate]
    if truncate and lacking:
        raise PlanRefused(
            f"dest: the role may not truncate {', '.join(lacking)}",
            hint=f"GRANT TRUNCATE ON {', '.join(lacking)} TO the role.",
            side="dest",
        )


def check_gaps(dest: Table, slice_: Range, gaps: Sequence[Gap]) -> None:
    """Refuse to send rows that no partition of the dest takes."""
    if not gaps:
        return
    listed = ", ".join(map(str, gaps))
    raise PlanRefused(
        f"dest: {dest.full_name} has no partition for rows of {slice_}",
        detail=f"The source has rows whose {slice_.column} is {listed}.",
        hint=f"CREATE TABLE .. PARTITION OF {dest.full_name} FOR VALUES FROM ('{gaps[0].start}') "
        f"TO ('{gaps[0].stop}').",
        side="dest",
    )


def check_truncate(dest: Table, *, whole: bool) -> None:
    """Refuse to truncate or swap where a foreign key of another table points at this one.

    One of its own does not hinder TRUNCATE of the `whole` table.
    """
    found = _pointing(dest, whole=whole)
    if found:
        listed = ", ".join(f"{r.constraint} of {r.table}" for r in found)
        raise PlanRefused(
            f"dest: {dest.full_name} cannot be truncated or swapped, foreign keys point at it",
            detail=f"Foreign keys: {listed}.",
            hint="Use --mode merge, which removes no row.",
            side="dest",
        )
