"""What a migration set out to do and what of it is done, kept in the ledger of the dest.

So it can go on from any host. Each entry is written in the transaction that it tells of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from copypipe import __version__, ledger
from copypipe.digests import Digest, parse
from copypipe.servers import Session
from copypipe.slices import Pages
from copypipe.statements import journals as statements
from copypipe.statements import locks
from copypipe.steps import Step


class Unfinished(NamedTuple):
    """A migration that has not ended."""

    id: str
    asked: Mapping[str, Any]
    taken_at: datetime
    began_at: datetime
    run: str
    """Of its last start."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One table of a migration."""

    source_oid: int
    source_table: str
    dest_oid: int
    dest_table: str
    dest_root: int
    """The OID of the topmost table that it is a partition of, or its own."""
    made: bool
    """The migration has made it."""
    had_rows: bool
    """It held rows when the migration first began."""
    run: str
    """In whose snapshot its parts are read."""
    parts: tuple[Pages, ...]
    """Empty for a table that is copied as one."""
    copied_at: datetime | None = None
    rows: int | None = None
    bytes: int | None = None
    digest: Digest | None = None
    seconds: float | None = None


class Part(NamedTuple):
    """A part of a table that is there."""

    what: str
    """As the slice was spelled."""
    rows: int
    bytes: int
    digest: Digest | None
    seconds: float
    xid: int
    """The transaction that wrote it."""


class Noted(NamedTuple):
    """A step, and whether it is done."""

    number: int
    step: Step
    is_done: bool


def begin(
    session: Session,
    migration: str,
    asked: Mapping[str, Any],
    start: Mapping[str, Any],
    tables: Sequence[Entry],
    steps: Sequence[Step],
) -> None:
    """Tell of a migration in the session's open transaction; makes the tables for it on need.

    `start` are the facts of `ledger.of_source` and of the snapshot.
    """
    session.fetch(locks.take([ledger.MAKING], 0))
    if not is_there(session):
        for statement in statements.make():
            session.execute(statement)
    session.execute(
        statements.begin(
            {"id": migration, "asked": json.dumps(asked), **start, "tool_version": __version__}
        )
    )
    if tables:
        session.execute(
            statements.add_tables(
                [
                    {
                        "migration": migration,
                        "source_oid": each.source_oid,
                        "source_table": each.source_table,
                        "dest_oid": each.dest_oid,
                        "dest_table": each.dest_table,
                        "dest_root": each.dest_root,
                        "made": each.made,
                        "had_rows": each.had_rows,
                        "run": each.run,
                        "parts": _kept(each.parts),
                    }
                    for each in tables
                ]
            )
        )
    if steps:
        session.execute(
            statements.add_steps(
                [
                    {
                        "migration": migration,
                        "number": number,
                        "kind": step.kind,
                        "source_oid": step.table,
                        "name": step.name,
                        "statement": step.statement,
                    }
                    for number, step in enumerate(steps)
                ]
            )
        )


def is_there(session: Session) -> bool:
    """Return whether any migration was ever told of."""
    return bool(session.fetch_one(statements.is_there())[0])


def unfinished(session: Session, of_source: Mapping[str, Any]) -> list[Unfinished]:
    """Return the migrations from a source that have not ended, the last first."""
    if not is_there(session):
        return []
    return [Unfinished(*row) for row in session.fetch(statements.unfinished(of_source))]


def last_end(session: Session, of_source: Mapping[str, Any]) -> datetime | None:
    """Return when a migration from a source last ended."""
    if not is_there(session):
        return None
    ended_at: datetime | None = session.fetch_one(statements.last_end(of_source))[0]
    return ended_at


class Other(NamedTuple):
    """A migration that has something left to do."""

    id: str
    has_ended: bool
    """As a rehearsal, which makes no foreign keys."""
    oids: list[int]
    """Its tables at the dest."""
    names: list[str]


def others(session: Session, tables: Sequence[int]) -> list[Other]:
    """Return the migrations with one of these tables that have something left to do."""
    if not is_there(session) or not tables:
        return []
    return [Other(*row) for row in session.fetch(statements.others(tables))]


def take_over(
    session: Session, migrations: Sequence[str], sources: Mapping[int, int]
) -> list[Step]:
    """Return what migrations have left to do, and remove what is told of them.

    `sources` are the OIDs at the source by those at the dest. Not ANALYZE, which each does itself,
    nor what is of tables that are gone.
    """
    if not migrations:
        return []
    found = session.fetch(statements.left(migrations))
    session.execute(statements.forget(migrations))
    return [
        Step(kind, sources.get(oid, 0), name, statement)
        for kind, oid, name, statement in found
        if kind != "analyze" and (oid == 0 or oid in sources)
    ]


def dropped(session: Session) -> list[str]:
    """Return the definitions of indexes that were dropped and are not made again yet."""
    return [text for (text,) in session.fetch(statements.dropped())] if is_there(session) else []


def tables(session: Session, migration: str) -> list[Entry]:
    """Return the tables of a migration."""
    found = []
    for *told, cut, copied_at, rows, size, checksum, seconds in session.fetch(
        statements.tables(migration)
    ):
        source_oid, source_table, dest_oid, dest_table, dest_root, made, had_rows, run = told
        found.append(
            Entry(
                source_oid=source_oid,
                source_table=source_table,
                dest_oid=dest_oid,
                dest_table=dest_table,
                dest_root=dest_root,
                made=made,
                had_rows=had_rows,
                run=run,
                parts=_parts(cut, run),
                copied_at=copied_at,
                rows=rows,
                bytes=size,
                digest=parse(checksum) if checksum else None,
                seconds=seconds,
            )
        )
    return found


def parts(session: Session, migration: str, dest_oid: int) -> list[Part]:
    """Return the parts of a table that are there, in whichever snapshot they were read."""
    found = session.fetch(statements.parts(migration, dest_oid))
    return [
        Part(what, rows, size, parse(checksum) if checksum else None, seconds, xid)
        for what, rows, size, checksum, seconds, xid in found
    ]


def steps(session: Session, migration: str) -> list[Noted]:
    """Return what is to be made, and what has been."""
    return [
        Noted(number, Step(kind, table, name, statement), is_done)
        for number, kind, table, name, statement, is_done in session.fetch(
            statements.steps(migration)
        )
    ]


def begin_again(
    session: Session, found: Unfinished, start: Mapping[str, Any], anew: Sequence[Entry]
) -> bool:
    """Tell of another start, and of the tables that begin anew with it.

    Returns False where there was another one since, or an end.
    """
    if not session.count(statements.begin_again(found.id, found.run, start)):
        return False
    oids = [each.source_oid for each in anew]
    session.execute(statements.read_again(found.id, oids, start["run"]))
    for each in anew:
        session.execute(statements.cut_again(found.id, each.source_oid, _kept(each.parts)))
    return True


def copied(
    session: Session,
    migration: str,
    source_oid: int,
    *,
    rows: int,
    size: int,
    digest: Digest | None,
    seconds: float,
) -> bool:
    """Tell that all rows of a table are there; returns False where that was told before."""
    values = {
        "rows": rows,
        "bytes": size,
        "checksum": str(digest) if digest is not None else None,
        "seconds": seconds,
    }
    return session.count(statements.copied(migration, source_oid, values)) == 1


def undone(session: Session, migration: str, numbers: Sequence[int]) -> set[int]:
    """Return which of these steps are not done, and keep others from doing them."""
    return {number for (number,) in session.fetch(statements.undone(migration, numbers))}


def done(session: Session, migration: str, steps: Sequence[tuple[int, float]]) -> None:
    """Tell that steps were done, each with the seconds that it took."""
    session.execute(statements.done(migration, steps))


def end(session: Session, migration: str) -> None:
    """Tell that a migration has ended."""
    session.execute(statements.end(migration))


def _kept(parts: Sequence[Pages]) -> str:
    """Return parts as they are kept: [first page, that behind the last, partitions]."""
    return json.dumps([(each.start, each.stop, each.partitions) for each in parts])


def _parts(kept: Sequence[Any], run: str) -> tuple[Pages, ...]:
    return tuple(
        Pages(start, stop, run, partitions=tuple((schema, name) for schema, name in partitions))
        for start, stop, partitions in kept
    )
