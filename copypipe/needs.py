"""What the roles of both sides must be granted for a copy, and what they have of it already."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from copypipe import catalog, ledger, plans, privileges, servers, slices
from copypipe.addresses import Address
from copypipe.catalog import Server
from copypipe.errors import PlanRefused, Side
from copypipe.expressions import may_read_tables, mentions
from copypipe.hazards import Refusals
from copypipe.plans import Copied, Decided
from copypipe.requests import Request, check
from copypipe.servers import Session
from copypipe.statements import Statement
from copypipe.statements import privileges as statements
from copypipe.statements.privileges import Privilege
from copypipe.tables import Partition, Relation, Table, folded


@dataclass(frozen=True, slots=True)
class Need:
    """One privilege, and whether the role has it."""

    privilege: Privilege
    grant: Statement
    held: bool


@dataclass(frozen=True, slots=True)
class Needs:
    """What a role needs at one side."""

    side: Side
    address: Address
    role: str
    table: str
    needs: tuple[Need, ...]
    notes: tuple[str, ...]
    """What else to know, one sentence each."""


def both(request: Request, roles: Mapping[Side, str | None]) -> tuple[Needs, Needs]:
    """Return what the roles of the source and of the dest need for such copies; changes nothing.

    Of the slice only its kind matters: by a column, by a condition, or everything. `roles` are
    names as in SQL; without one it is the role that asks. Raises what planning a copy raises, but
    for rights; PlanRefused also for a role that is not there.
    """
    check(request)
    run_id = secrets.token_hex(8)
    with (
        servers.connected("source", request.source, run_id) as source,
        servers.connected("dest", request.dest, run_id) as dest,
        plans.reading(request, source, dest),
    ):
        refusals = Refusals()
        decided = plans.decide(request, source, dest, refusals)
        refusals.check()
        found = decided.found
        used, notes = _used(source, found.relation, decided.columns)
        read = {*plans.read(decided.columns), *decided.compared, *used}
        return (
            _needs(
                source,
                _role(source, roles["source"], found.relation),
                found.relation,
                found.source_is,
                privileges.at_source(found.relation, read),
                notes,
            ),
            _at_dest(request, roles["dest"], decided),
        )


_UNKNOWN = (
    "is not known here: SELECT on its tables, USAGE on their schemas, EXECUTE on functions; the "
    "server names the first of it that is missing"
)


def _used(
    source: Session, relation: Relation, columns: Sequence[Copied]
) -> tuple[set[str], list[str]]:
    """Return the columns that expressions of the user use, and notes on what cannot be known."""
    if not isinstance(relation, Table):
        return set(), [f"what the query reads {_UNKNOWN}"]
    used: set[str] = set()
    notes = []
    for column in columns:
        expression = column.source.expression
        if expression is None or column.source.renames is not None:
            continue
        if may_read_tables(expression):
            # To have it planned would ask for the very rights.
            notes.append(f"what the expression of {column.dest.name} reads {_UNKNOWN}")
            continue
        found = mentions(catalog.printed(source, relation.name, relation.columns, expression).text)
        used |= {c.name for c in relation.columns} if found.whole_row else found.columns
    return used, notes


def _at_dest(request: Request, asked: str | None, decided: Decided) -> Needs:
    dest, table = decided.found.dest, decided.found.table
    role = _role(dest, asked, table)
    partitions: tuple[Partition, ...] = ()
    notes = []
    if (request.clear == "truncate" or request.swap) and isinstance(decided.slice, slices.Range):
        partitions = catalog.partitions(dest, table, decided.slice)
    if partitions and not request.swap:
        notes.append("a partition that is made later needs TRUNCATE too")
    columns = [column.dest.name for column in decided.columns]
    drawn = catalog.drawn(dest, table, decided.matching.left_to_defaults)
    of_defaults = [Privilege("USAGE", "sequence", (each.schema, each.name)) for each in drawn]
    if request.swap:
        wanted, more = _to_swap(dest, role, table, partitions, of_defaults)
        notes += more
    else:
        wanted = privileges.at_dest(
            request, table, columns, decided.compared, decided.merge, partitions
        )
        if decided.merge is not None:
            wanted.append(Privilege("TEMPORARY", "database", _database(dest)))
        wanted += of_defaults
    if request.ledger:
        of_ledger, more = ledger.needed(dest, role.name)
        wanted += of_ledger
        notes += more
    return _needs(dest, role, table, decided.found.dest_is, wanted, notes)


def _to_swap(
    dest: Session,
    role: _Role,
    table: Table,
    partitions: Sequence[Partition],
    of_defaults: Sequence[Privilege],
) -> tuple[list[Privilege], list[str]]:
    """Return what a swap of the table, or of each partition, needs, and notes on it.

    Who has the rights of the owner has all rights on the table, and whatever else the owner has.
    """
    schemas, owners, superusers = {table.schema: None}, dict[str, None](), dict[str, None]()
    own: dict[Privilege, None] = {}
    others: dict[Privilege, None] = {}
    for old in partitions or (table,):
        for schema, owner, is_superuser, itself in dest.fetch(statements.swapped(old.oid)):
            owners[owner] = None
            if is_superuser:
                superusers[owner] = None
            elif itself:
                own[Privilege("CREATE", "schema", (schema,), to=owner)] = None
            schemas[schema] = None
        for (name,) in dest.fetch(statements.tablespaces(old.oid)):
            others[Privilege("CREATE", "tablespace", (name,))] = None
        for schema, name, columns in dest.fetch(statements.referenced(old.oid)):
            schemas[schema] = None
            others[Privilege("REFERENCES", "table", (schema, name), tuple(columns))] = None
    wanted = [*(Privilege("USAGE", "schema", (name,)) for name in schemas), *others, *of_defaults]
    for owner in owners:
        if owner != role.name and wanted:
            inherited = dest.fetch_one(statements.held(wanted, owner))
            wanted = [each for each, has in zip(wanted, inherited, strict=True) if not has]
    membership = [Privilege(owner, "role") for owner in owners if owner != role.name]
    notes = [
        f"the owner {name} is a superuser, and so may be who is a member of it: give the table "
        "another owner"
        for name in superusers
        if name != role.name
    ]
    return [*membership, *own, *wanted], notes


def _needs(
    session: Session,
    role: _Role,
    table: Relation,
    server: Server,
    wanted: Sequence[Privilege],
    notes: Sequence[str] = (),
) -> Needs:
    """Ask which of the privileges the role has, and what else is to be known of it."""
    more = []
    if role.is_superuser:
        more.append("the role is a superuser: it needs no GRANT, and may do more than a copy needs")
    if role.row_security:
        more.append(
            f"row security of {table.full_name} applies to the role, so that a copy is refused: "
            "it needs BYPASSRLS"
        )
    if server.in_recovery:
        more.append("the server is a standby: grant at its primary")
    connect = () if role.all_connect else (Privilege("CONNECT", "database", _database(session)),)
    every = (*connect, *wanted)
    held = session.fetch_one(statements.held(every, role.name))
    return Needs(
        side=session.side,
        address=session.address,
        role=role.name,
        table=table.full_name,
        needs=tuple(
            Need(each, statements.grant(each, role.name), bool(is_held))
            for each, is_held in zip(every, held, strict=True)
        ),
        notes=(*more, *notes),
    )


class _Role(NamedTuple):
    """A role, seen from a table (`statements.role`)."""

    name: str
    all_connect: bool
    """Every role may connect to the database."""
    is_superuser: bool
    row_security: bool


def _role(session: Session, asked: str | None, of: Relation) -> _Role:
    """Return the role that is named as in SQL, or else the session's own."""
    name = folded(asked) if asked is not None else session.fetch_one(statements.current_role())[0]
    rows = session.fetch(statements.role(name, of.oid if isinstance(of, Table) else None))
    if not rows:
        raise PlanRefused(
            f"{session.side}: there is no role {name}",
            hint="Make it first: CREATE ROLE .. LOGIN.",
            side=session.side,
        )
    return _Role(name, *rows[0])


def _database(session: Session) -> tuple[str]:
    return (str(session.fetch_one(statements.database())[0]),)
