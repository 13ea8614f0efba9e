"""What is made of tables once their rows are there: indexes, constraints, all that follows.

Each step is one text of statements for one transaction, so that what is done can be told with it.
The texts are pg_dump's, but where something else is quicker: the index of a primary key is made as
any index is, beside others, and then becomes that of the key; a foreign key is added without a look
at the rows, which are checked while others work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from copypipe.inventory import Item
from copypipe.schemas import Contents, Entry
from copypipe.servers import Session
from copypipe.statements import steps as statements

Kind = Literal["index", "constraint", "analyze", "other", "reference", "validation", "last"]
"""In this order: the first three of each table by itself, the others when all tables are there."""

# From this version on a foreign key of a partitioned table may be added without a look at its rows
# (release notes of 18, "Allow NOT VALID foreign key constraints on partitioned tables").
_NOT_VALID_ON_PARTITIONED = 18


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to be done at the dest."""

    kind: Kind
    table: int
    """The OID of its table at the source; 0 for what is not of one."""
    name: str
    """What it makes, for people."""
    statement: str


class _Index(NamedTuple):
    oid: int
    table: int
    constraint: int | None
    kind: str
    of_kind: str | None
    """pg_constraint.contype of the constraint."""
    method: str
    definition: str
    schema: str
    table_name: str
    name: str
    deferrable: bool
    deferred: bool
    is_clustered: bool
    is_identity: bool
    bytes: int
    inherits: bool
    """Its table is an inheritance child."""
    part_of: int | None
    """The OID of the index of a partitioned table."""

    @property
    def made_first(self) -> bool:
        """Return whether the index can be made by itself, and its constraint of it.

        Not that of a partitioned table, nor one without overlaps (ALTER TABLE, "USING INDEX").
        """
        alone = self.kind == "i" and self.constraint is None
        plain = self.kind == "i" and self.of_kind in ("p", "u") and self.method == "btree"
        # USING INDEX would make NOT NULL, which a child has from its parent, its own.
        return alone or (plain and not self.inherits)

    @property
    def behind(self) -> list[str]:
        """Return what pg_dump says behind the index of a constraint."""
        table = (self.schema, self.table_name)
        found = [statements.cluster_on(table, self.name)] if self.is_clustered else []
        return found + ([statements.identify_by(table, self.name)] if self.is_identity else [])

    @property
    def said_of_it(self) -> list[str]:
        """Return what is said of the index and is lost without it, for people."""
        name = f"{self.schema}.{self.name}"
        found = [f"CLUSTER ON {name}"] if self.is_clustered else []
        return found + ([f"REPLICA IDENTITY USING INDEX {name}"] if self.is_identity else [])


class Rest(NamedTuple):
    """What follows the rows."""

    steps: list[Step]
    """The largest index first: else the last of several made side by side is waited for alone."""
    lost: list[str]
    """What is said of indexes that are not made, for people."""
    indexes: list[tuple[str, str]]
    """Schemas and names of those that are."""


def of_archive(
    source: Session,
    contents: Contents,
    wanted: Sequence[Entry],
    tables: Mapping[int, Item],
    dest_major: int,
    grown: Collection[int] = (),
) -> Rest:
    """Return the steps that make the rest of some entries of an archive.

    `tables` are those that are moved, by their OIDs; the source's session is in a transaction. A
    partition that came to a table of the dest, as those of `grown` did, has got that one's indexes
    with it: its own ones that are parts of those are not made, nor what is said of them.
    """
    texts = contents.behind(wanted)
    wanted = [entry for entry in wanted if texts.get(entry.number)]
    indexes = [_Index(*row) for row in source.fetch(statements.indexes(list(tables)))]
    by_index = {each.oid: each for each in indexes}
    there = {each for each in indexes if each.table in grown and _comes(each, by_index, grown)}
    by_constraint = {each.constraint: each for each in indexes if each.constraint}

    def index_of(entry: Entry) -> _Index | None:
        if entry.kind == "CONSTRAINT":
            return by_constraint.get(entry.oid)
        return by_index.get(entry.oid) if entry.kind == "INDEX" else None

    made_there = {entry.number for entry in contents.entries if index_of(entry) in there}
    sizes: dict[Step, int] = {}
    keys = {
        oid: (key, definition, is_valid)
        for oid, key, definition, is_valid in source.fetch(statements.foreign_keys(list(tables)))
    }
    named = [(entry.catalog, entry.oid) for entry in wanted]
    owners = {
        wanted[place - 1].number: (oid, kind)
        for place, oid, kind in source.fetch(statements.owners(named))
    }
    about = {entry.number for entry in wanted if entry.kind == "FK CONSTRAINT"}
    found: list[Step] = []
    lost = [text for each in there for text in each.said_of_it]
    for entry in wanted:
        text, name = texts[entry.number], entry.called
        of, of_kind = owners.get(entry.number, (0, ""))
        index = index_of(entry)
        is_about = entry.kind in ("COMMENT", "INDEX ATTACH")
        if entry.number in made_there:
            continue
        if is_about and entry.needs & made_there:
            if entry.kind == "COMMENT":
                lost.append(f"{entry.kind} {name}")
            continue
        if index is not None and index.made_first:
            made, *behind = _of_index(index, text)
            sizes[made] = index.bytes
            found += [made, *behind]
        elif entry.kind == "FK CONSTRAINT" and entry.oid in keys and of in tables:
            found += _of_key(tables[of], *keys[entry.oid], dest_major)
        elif entry.kind == "FK CONSTRAINT":
            found.append(Step("reference", of, name, text))
        elif of_kind == "r" and entry.kind in ("CONSTRAINT", "CHECK CONSTRAINT", "STATISTICS"):
            found.append(Step("constraint", of, name, text))
        else:
            kind: Kind = "last" if entry.needs & about else "other"
            found.append(Step(kind, 0, f"{entry.kind} {name}", text))
    kinds = ("INDEX", "CONSTRAINT")
    own = [(e.catalog, e.oid) for e in wanted if e.kind in kinds and e.number not in made_there]
    names = source.fetch(statements.indexes_of(own))
    return Rest(
        sorted(found, key=lambda step: -sizes.get(step, 0)),
        sorted(lost),
        [(schema, name) for schema, name in names],
    )


def _comes(index: _Index, by_index: Mapping[int, _Index], grown: Collection[int]) -> bool:
    """Return whether the index of a partition is a part of one of a table that the dest has."""
    top = index
    while top.part_of is not None:
        above = by_index.get(top.part_of)
        if above is None:
            return True
        top = above
    return top.table not in grown


def _of_index(index: _Index, text: str) -> list[Step]:
    """Return the steps of an index, and of the constraint that it is of."""
    table = (index.schema, index.table_name)
    made = Step("index", index.table, f"{index.schema}.{index.name}", index.definition)
    if index.of_kind is None:
        rest = text.removeprefix(index.definition).lstrip(";").strip()
        if text.startswith(index.definition):
            behind = [Step("constraint", index.table, _of(index.name, table), rest)] if rest else []
            return [made, *behind]
        return [Step("index", index.table, made.name, text)]
    constraint = statements.use_index(
        table,
        index.name,
        index.of_kind,
        deferrable=index.deferrable,
        deferred=index.deferred,
    )
    told = ";\n".join([constraint, *index.behind])
    return [made, Step("constraint", index.table, _of(index.name, table), told)]


def _of_key(table: Item, name: str, definition: str, is_valid: bool, dest_major: int) -> list[Step]:
    """Return the steps of a foreign key: first it is there, then all rows are checked."""
    of = (table.schema, table.name)
    only = table.kind == "r"
    later = is_valid and (only or dest_major >= _NOT_VALID_ON_PARTITIONED)
    told = f"{definition} NOT VALID" if later else definition
    added = statements.add_foreign_key(of, name, told, only=only)
    found = [Step("reference", table.oid, _of(name, of), added)]
    if later:
        found.append(Step("validation", table.oid, _of(name, of), statements.validate(of, name)))
    return found


def _of(name: str, table: tuple[str, str]) -> str:
    """Return the name of what is told apart within its table only."""
    return f"{name} of {'.'.join(table)}"
