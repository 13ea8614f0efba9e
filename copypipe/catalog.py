"""Ask a server about itself, its tables, and what a day is in its time zones.

Every function runs in the session's open transaction and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from copypipe import slices
from copypipe.crossings import Surroundings
from copypipe.errors import CopypipeError, PlanRefused, UsageError
from copypipe.expressions import STEADY, Mentions
from copypipe.horizons import Highest, Instance, Writers
from copypipe.servers import Output, Session
from copypipe.statements import Statement, copies, expressions, privileges, sessions
from copypipe.statements import catalog as queries
from copypipe.statements import slices as slice_queries
from copypipe.tables import (
    Column,
    DrawnSequence,
    Gap,
    Index,
    OwnedSequence,
    Partition,
    Query,
    Reference,
    Relation,
    Rights,
    Table,
    Unique,
    Upkeep,
)
from copypipe.types import FIRST_GENBKI_OID, Field, Type, Value

# A table up to this size is counted before a person is asked; that takes a fraction of a second.
BYTES_WORTH_COUNTING = 80 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Server:
    """One server as far as a plan depends on it."""

    version: str
    """Without what its packager adds."""
    major: int
    database_oid: int
    system_identifier: int | None
    """None where the role may not ask."""
    in_recovery: bool
    sees_others: bool
    """The role may see the transactions of other roles (pg_read_all_stats)."""
    may_stage: bool
    """The role may make temporary tables."""
    encoding: str
    """server_encoding."""
    money: str
    """The bytes of one unit of money, in hexadecimal."""
    synchronous_commit: str
    ignores_triggers: bool
    """session_replication_role is replica: triggers and foreign keys are skipped."""
    can_restrict: bool
    """restrict_nonsystem_relation_kind exists (minor releases since August 2024)."""
    on_linux: bool
    """Where client_connection_check_interval is known to work."""
    timezone: str
    """The TimeZone that the role's own sessions have."""
    sorting: str
    """By which rules the database sorts and folds text, with their version where it knows one."""

    @property
    def surroundings(self) -> Surroundings:
        """Return what the meaning of values depends on."""
        return Surroundings(self.major, self.encoding, self.money)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How the planner would find the rows of a slice."""

    rows: int
    row_bytes: int
    indexes: tuple[str, ...]
    """Indexes it would use; empty where it would scan a table."""


def server(session: Session) -> Server:
    """Read what kind of server this is."""
    version, major, database_oid, may_be_identified, *others = session.fetch_one(
        sessions.surroundings()
    )
    identifier = None
    if may_be_identified:
        identifier = int(session.fetch_one(sessions.system_identifier())[0])
    return Server(version, major, database_oid, identifier, *others)


def resolve(session: Session, name: str) -> int:
    """Return the OID of the table by the role's own search_path, then empty that path.

    Raises PlanRefused where there is no such table.
    """
    try:
        row = session.fetch_one(queries.resolve(name))
    except CopypipeError as error:
        if error.sqlstate == "42501":  # insufficient_privilege, and the message names the schema
            error.hint = "GRANT USAGE ON SCHEMA .. TO the role."
        if error.sqlstate not in ("42602", "22023"):  # invalid_name, invalid_parameter_value
            raise
        raise UsageError(
            f"not the name of a table: {name!r}",
            hint='Names follow SQL: public.users, "Weird Name".',
        ) from None
    session.execute(sessions.empty_search_path())
    if row[0] is None:
        raise PlanRefused(
            f"{session.side}: there is no table {name}",
            detail=f"Looked for in {session.address}, in the search_path of the role "
            f"{session.address.user}; schemas on which it lacks USAGE are passed over.",
            hint="Name its schema, as in public.users; unquoted names are folded to lower case, "
            'so write "Users" with its quotes.',
            side=session.side,
        )
    return int(row[0])


def oid(session: Session, of: Table) -> int | None:
    """Return the OID of the table that bears this one's name now, None for none."""
    found: int | None = session.fetch_one(queries.oid(of.schema, of.name))[0]
    return found


def table(session: Session, oid: int) -> Table:
    """Read a table; raises PlanRefused where it is gone."""
    found = session.fetch(queries.relation(oid))
    if not found:
        raise PlanRefused(f"{session.side}: the table is gone", side=session.side)
    (row,) = found
    schema, name, kind, root_oid, pages, rows, *hazards, select, delete, truncate, lock = row
    children, foreign, rules, triggers, update_triggers, truncate_triggers, security = hazards
    columns = session.fetch(queries.columns(oid))
    values = _values(session, [(oid, typmod, name) for _, _, oid, typmod, name, *_ in columns])
    return Table(
        oid=oid,
        schema=schema,
        name=name,
        kind=kind,
        root_oid=root_oid,
        columns=tuple(
            Column(name, number, value, *more)
            for (name, number, _, _, _, *more, _, _, _), value in zip(columns, values, strict=True)
        ),
        pages=pages,
        estimated_rows=rows,
        has_children=children,
        has_foreign_parts=foreign,
        has_rules=rules,
        has_triggers=triggers,
        has_update_triggers=update_triggers,
        has_truncate_triggers=truncate_triggers,
        row_security=security,
        references=tuple(
            Reference(constraint, of, on_delete, on_update, deferrable, tuple(named), is_own)
            for constraint, of, on_delete, on_update, deferrable, named, is_own in session.fetch(
                queries.references(oid)
            )
        ),
        rights=Rights(
            select=select,
            readable=frozenset(column[0] for column in columns if column[-3]),
            insert=frozenset(column[0] for column in columns if column[-2]),
            update=frozenset(column[0] for column in columns if column[-1]),
            delete=delete,
            truncate=truncate,
            lock=lock,
        ),
    )


def sequences(session: Session, of: Table) -> tuple[OwnedSequence, ...]:
    """Return the sequences that number the table's columns."""
    return tuple(OwnedSequence(*row) for row in session.fetch(queries.sequences(of.oid)))


def drawn(session: Session, of: Table, columns: Iterable[Column]) -> tuple[DrawnSequence, ...]:
    """Return the sequences that the defaults of these columns draw from."""
    names = [column.name for column in columns]
    if not names:
        return ()
    rows = session.fetch(privileges.sequences(of.oid, names))
    return tuple(DrawnSequence(*row) for row in rows)


def partitions(session: Session, of: Table, within: slices.Range) -> tuple[Partition, ...]:
    """Return the partitions that lie within a range, in their order."""
    type_name = next(c.type_name for c in of.columns if c.name == within.column)
    found = session.fetch(queries.partitions(of.oid, within, type_name))
    return tuple(Partition(*row) for row in found)


def gaps(session: Session, of: Table, within: slices.Range) -> tuple[Gap, ...]:
    """Return the parts of a range that no partition takes; none where that cannot be told."""
    if of.kind != "p":
        return ()
    type_name = next(c.type_name for c in of.columns if c.name == within.column)
    taken = session.fetch(queries.partition_ranges(of.oid, within, type_name))
    if not taken:
        return ()
    starts = [*(start for start, _ in taken[1:]), within.stop]
    stops = [stop for _, stop in taken]
    return tuple(
        Gap(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start
    )


def sends_truncate(session: Session, of: Table) -> bool:
    """Return whether a TRUNCATE of the table goes to subscribers."""
    return bool(session.fetch_one(queries.sends_truncate(of.oid))[0])


def upkeep(session: Session, of: Table) -> Upkeep:
    """Return what becomes of the table's rows besides being read and written."""
    return Upkeep(*session.fetch_one(queries.upkeep(of.oid)))


def uniques(session: Session, of: Table) -> tuple[Unique, ...]:
    """Return the unique indexes of a table, the primary key first."""
    return tuple(
        Unique(name, primary, tuple(columns), tuple(equals), tuple(told_by), deferrable, hindrance)
        for name, primary, columns, equals, told_by, deferrable, hindrance in session.fetch(
            queries.uniques(of.oid)
        )
    )


def query(session: Session, text: str) -> Query:
    """Read which columns a query of the user returns."""
    return Query(text, tuple(_columns(session, session.describe(expressions.everything(text)))))


def value(session: Session, of: Relation, expression: str) -> list[Column]:
    """Read what an expression of the user over a relation returns: one column, if it is right.

    Raises the server's error where it is no expression with one value a row.
    """
    session.describe(expressions.per_row(of, expression))
    outputs = session.describe(expressions.value(of, expression))
    return [
        replace(column, expression=expression, renames=_renamed(of, output))
        for column, output in zip(_columns(session, outputs), outputs, strict=True)
    ]


def _renamed(of: Relation, output: Output) -> str | None:
    """Return the column of the relation that the output merely is."""
    if isinstance(of, Query) or output.table_oid != of.oid:
        return None
    return next((c.name for c in of.columns if c.number == output.number), None)


def _columns(session: Session, outputs: Sequence[Output]) -> list[Column]:
    return [
        Column(
            name=output.name,
            number=0,
            value=value,
            sorting=None,
            not_null=False,
            generated=False,
            has_default=False,
        )
        for output, value in zip(outputs, described(session, outputs), strict=True)
    ]


def described(session: Session, outputs: Sequence[Output]) -> list[Value]:
    """Return the types of what a query returns."""
    pairs = [(output.type_oid, output.typmod) for output in outputs]
    oids, typmods = [oid for oid, _ in pairs], [typmod for _, typmod in pairs]
    names = session.fetch(queries.names(oids, typmods))
    return _values(session, [(*pair, name) for pair, (name,) in zip(pairs, names, strict=True)])


def users_casts(session: Session, pairs: Sequence[tuple[Value, Value]]) -> list[str]:
    """Return the casts from one type to another, of elements too, that a user has made."""
    oids = [(one.type.oid, other.type.oid) for one, other in pairs]
    elements = [(one.element, other.element) for one, other in pairs]
    oids += [(one.type.oid, other.type.oid) for one, other in elements if one and other]
    return [f"{one} to {other}" for one, other in session.fetch(queries.users_casts(oids))]


def works(session: Session, ask: Callable[[], object], errors: Container[str]) -> bool:
    """Return whether `ask` raises none of these SQLSTATEs; the transaction goes on either way."""
    session.execute(copies.savepoint())
    try:
        ask()
    except CopypipeError as error:
        if error.sqlstate is None or error.sqlstate not in errors:
            raise
        session.execute(copies.back_to_savepoint())
        session.execute(copies.release_savepoint())
        return False
    session.execute(copies.release_savepoint())
    return True


def takes_null(session: Session, value: Value) -> bool:
    """Return whether a column of that type may be NULL, which a domain can forbid."""
    # not_null_violation, check_violation
    return value.type.kind != "domain" or works(
        session, lambda: session.fetch(queries.null(value.name)), ("23502", "23514")
    )


def _values(session: Session, wanted: Sequence[tuple[int, int, str]]) -> list[Value]:
    """Return types given as (OID, modifier, name), with all that they are made of."""
    rows = dict(session.built_in_types)
    unknown = {oid for oid, _, _ in wanted} - rows.keys()
    if unknown:
        rows |= {row[0]: row for row in session.fetch(queries.types(unknown))}
        session.built_in_types.update((oid, row) for oid, row in rows.items() if _is_fixed(row))
    types: dict[int, Type] = {}

    def type_of(oid: int) -> Type:
        # No type contains itself (heap.c, CheckAttributeType).
        if oid not in types:
            if oid not in rows:
                raise PlanRefused(
                    f"{session.side}: a type was dropped meanwhile",
                    hint="Run it again.",
                    side=session.side,
                )
            _, name, kind, sends, receives, extension, version, labels, rules, parts = rows[oid]
            made_of = [Field(part, valued(*of)) for part, *of in parts or ()]
            types[oid] = Type(
                oid=oid,
                name=name,
                kind=kind,
                sends=sends,
                receives=receives,
                extension=extension,
                version=version,
                of=made_of[0].value if made_of and kind != "composite" else None,
                labels=tuple(labels or ()),
                fields=tuple(made_of) if kind == "composite" else (),
                rules=rules or "",
            )
        return types[oid]

    def valued(oid: int, typmod: int, name: str) -> Value:
        return Value(type_of(oid), typmod, name)

    return [valued(*each) for each in wanted]


def _is_fixed(row: Sequence[Any]) -> bool:
    """Return whether a type is built in, and so is all that it is made of."""
    oid, *_, parts = row
    return all(each < FIRST_GENBKI_OID for each in (oid, *(part[1] for part in parts or ())))


@dataclass(frozen=True, slots=True)
class Printed:
    """A condition as the planner prints it."""

    text: str
    subqueries: bool


def printed(session: Session, table: str, columns: Sequence[Column], text: str) -> Printed:
    """Return a condition over those columns as the planner prints it; no table is looked at."""
    row = session.fetch_one(expressions.printed(table, columns, text))
    top = row[0][0]["Plan"]
    inner = {child.get("Parent Relationship") for child in top.get("Plans", ())}
    return Printed(str(top["Output"][0]), subqueries=bool({"SubPlan", "InitPlan"} & inner))


def unsteady(session: Session, found: Mentions) -> set[str]:
    """Return what of these may differ from server to server, or from one moment to the next."""
    unsteady = set(found.moments)
    if found.calls:
        rows = session.fetch(expressions.unsteady(found.calls, STEADY))
        unsteady |= {row[0] for row in rows}
    if found.operators:
        unsteady |= {r[0] for r in session.fetch(expressions.unsteady_operators(found.operators))}
    if found.types:
        unsteady |= {row[0] for row in session.fetch(expressions.domains(found.types))}
    return unsteady


def indexes(session: Session, of: Relation, column: str) -> tuple[Index, ...]:
    """Return the indexes that can serve a range of `column`, the best first.

    An index of an inheritance parent holds none of its children's rows.
    """
    if isinstance(of, Query) or of.has_children:
        return ()
    return tuple(Index(*row) for row in session.fetch(queries.indexes(of.oid, column)))


def estimate(session: Session, statement: Statement) -> Estimate:
    """Return the planner's view of `statement`; raises the server's error for missing rights."""
    row = session.fetch_one(slice_queries.cost(statement))
    top = row[0][0]["Plan"]
    nodes = list(_nodes(top))
    names = {node["Index Name"] for node in nodes if "Index Name" in node}
    if any(node["Node Type"] == "Seq Scan" for node in nodes):
        names = set()  # a partition without the index
    return Estimate(int(top["Plan Rows"]), int(top["Plan Width"]), tuple(sorted(names)))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def rows(session: Session, of: Relation) -> str:
    """Say how many rows a table has: counted where that is quick, else the planner's estimate."""
    if isinstance(of, Query):
        return "an unknown number of rows"
    if is_small(session, of):
        return f"{session.fetch_one(copies.count(of, slices.Whole()))[0]} rows"
    if of.estimated_rows >= 0 and of.kind in "rpm":
        return f"about {of.estimated_rows} rows"
    return "an unknown number of rows"


def is_small(session: Session, of: Table) -> bool:
    """Return whether it takes a fraction of a second to read all of the table."""
    return of.kind in "rpm" and int(session.fetch_one(copies.size(of))[0]) <= BYTES_WORTH_COUNTING


def has_rows(session: Session, of: Table, within: slices.Slice | None = None) -> bool:
    """Return whether the table, or a slice of it, has a row."""
    return bool(session.fetch_one(copies.any_row(of, within or slices.Whole()))[0])


def highest(session: Session, of: Relation, column: str, *, ascending: bool) -> Highest:
    """Return the highest number of a column that was given out.

    `ascending` tells that they are given in ascending order; else a sequence has to show that.
    """
    given_by, why = None, None
    if not isinstance(of, Table) or not any(i.is_sorted for i in indexes(session, of, column)):
        why = f"no index finds the highest {column} of a table at the source"
    elif not ascending:
        given_by, why = _given_by(session, of, column)
    if why is not None or not isinstance(of, Table):
        return Highest(None, datetime.min.replace(tzinfo=UTC), time.monotonic(), why)
    is_seen, number, at = session.fetch_one(slice_queries.highest(of, column, given_by))
    if given_by is not None and not is_seen and has_rows(session, of):
        why = f"the role may not see how far {given_by.full_name} is (SELECT on it)"
    return Highest(number if why is None else None, at, time.monotonic(), why)


def _given_by(session: Session, of: Table, column: str) -> tuple[OwnedSequence | None, str | None]:
    """Return what gives a column its numbers in ascending order, or why nothing is known to."""
    found = [each for each in sequences(session, of) if each.column == column]
    if len(found) != 1:
        return None, f"no sequence gives {column} its numbers (--ascending takes them to ascend)"
    if not found[0].keeps_order:
        return None, (
            f"{found[0].full_name} need not give its numbers in ascending order: it has a CACHE, "
            "descends or cycles (--ascending takes them to ascend)"
        )
    return found[0], None


def without_day(session: Session, of: Table, column: str) -> tuple[bool, bool]:
    """Return whether there are rows whose column is NULL, and whose column is infinite.

    Leaves enable_seqscan off for the rest of the transaction.
    """
    session.execute(sessions.set_local("enable_seqscan", "off"))
    null, infinite = session.fetch_one(slice_queries.any_without_day(of, column))
    return bool(null), bool(infinite)


def writers(session: Session) -> Writers:
    """Read which transactions may still write into this database.

    In that order: a transaction that is prepared between the two is seen by one of them at least,
    since it is listed as prepared before its session is shown without it (PrepareTransaction in
    xact.c).
    """
    clock, oldest, unseen, replayed, *instance = session.fetch_one(sessions.writers())
    prepared = session.fetch_one(sessions.prepared())[0]
    return Writers(
        clock=clock,
        oldest=oldest,
        unseen=unseen,
        prepared=prepared,
        replayed=replayed,
        instance=Instance(*instance),
    )


def instance(session: Session) -> Instance:
    """Read which server answers, which behind a pooler may be another one each time."""
    return Instance(*session.fetch_one(sessions.instance()))


class Lag(NamedTuple):
    """How far the standbys are behind of a server, or the server itself that is one."""

    is_seen: bool
    """There are standbys that the role may see."""
    seconds: float | None
    """As the server tells it; None for not at all."""
    end: str | None
    """Where the log of a server that is no standby ends now."""
    has_mark: bool
    """The standbys have replayed up to the mark."""


def lag(session: Session, mark: str | None = None) -> Lag:
    """Return how far standbys are behind; `mark` is the end of the log at another time."""
    return Lag(*session.fetch_one(sessions.lag(mark)))


class Position(NamedTuple):
    """Where in the history of a server a transaction reads."""

    snapshot: str
    """As pg_current_snapshot() prints it."""
    lsn: str
    """Of the write-ahead log, at about that moment."""


def position(session: Session) -> Position:
    """Return what the session's open transaction reads."""
    return Position(*session.fetch_one(sessions.position()))


def check_zone(session: Session, zone: str) -> None:
    """Raise UsageError where the server knows no time zone of that name."""
    if slices.needs_listing(zone) and not session.fetch_one(slice_queries.zone_is_listed(zone))[0]:
        raise _no_zone(session, zone)


@contextmanager
def _known_zone(session: Session, zone: str) -> Iterator[None]:
    try:
        yield
    except CopypipeError as error:
        if error.sqlstate != "22023":  # invalid_parameter_value
            raise
        raise _no_zone(session, zone) from None


def _no_zone(session: Session, zone: str) -> UsageError:
    return UsageError(
        f"the {session.side} knows no time zone {zone!r}",
        hint="SELECT name FROM pg_timezone_names lists the zones it knows.",
    )


def today(session: Session, zone: str) -> date:
    """Return today's date in the zone by the server's clock; raises UsageError for no such zone."""
    with _known_zone(session, zone):
        row = session.fetch_one(slice_queries.today(zone))
    day: date = row[0]
    return day


def offsets(session: Session, zone: str, bound: date) -> slices.Offsets:
    """Return the zone's offsets around `bound` as this server knows them.

    Raises UsageError where it does not know the zone.
    """
    start, stop = slices.window(bound)
    with _known_zone(session, zone):
        found = session.fetch(slice_queries.offsets(zone, start, stop))
    return slices.Offsets(
        tuple((instant.astimezone(UTC), timedelta(seconds=seconds)) for instant, seconds in found),
        stop,
    )


def all_offsets(session: Session, zone: str, bounds: Iterable[date]) -> list[slices.Offsets]:
    """Return the zone's offsets around many bounds, in stretches that do not touch.

    Raises UsageError as `offsets` does.
    """
    windows = slices.windows(bounds)
    with _known_zone(session, zone):
        found = session.fetch(slice_queries.offsets_within(zone, windows))
    changes: list[list[tuple[datetime, timedelta]]] = [[] for _ in windows]
    for place, instant, seconds in found:
        changes[place - 1].append((instant.astimezone(UTC), timedelta(seconds=seconds)))
    return [
        slices.Offsets(tuple(each), stop) for each, (_, stop) in zip(changes, windows, strict=True)
    ]
