"""A pair of databases in which a test makes its own tables, and copies between them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import CopypipeError, Transferred
from copypipe.events import Event
from plugins.command import no_backends
from plugins.databases import Database
from plugins.ways import Begun

DAY = "2018-04-29"
NEXT_DAY = "2018-04-30"


@dataclass
class Pair:
    """Both sides; what is copied is public.t unless a test says otherwise."""

    source: Database
    dest: Database
    heard: list[Event] = field(default_factory=list)
    opened: list[psycopg.Connection] = field(default_factory=list)

    def make(self, sql: str) -> None:
        """Do the same on both sides."""
        for database in (self.source, self.dest):
            database.execute(sql)

    def copy(self, table: str = "public.t", **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {**sides, "retries": 0, "retry_delay": 0.01, "listener": self.hear, **options}
        return copypipe.copy(table, **chosen)

    def verify(self, table: str = "public.t", **options: Any) -> list[Any]:
        """Return what was found of each slice; nothing is changed unless that is asked for."""
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {**sides, "retries": 0, "retry_delay": 0.01, "listener": self.hear, **options}
        return list(copypipe.verify(table, **chosen))

    def start(self, **options: Any) -> Begun[Transferred]:
        return Begun(lambda: self.copy(**options))

    def hear(self, event: Event) -> None:
        self.heard.append(event)

    def all_of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if type(event) is kind]

    def refuses(self, kind: type[CopypipeError], match: str, **options: Any) -> CopypipeError:
        """Check that a copy fails so, and that the dest holds what it held."""
        before = self.state()
        with pytest.raises(kind, match=match) as caught:
            self.copy(**options)
        no_backends(self.source, self.dest)
        assert self.state() == before
        return caught.value

    def state(self) -> list[tuple[Any, ...]]:
        """Return every row of the user's tables at the dest, with where and by whom it was put."""
        tables = self.dest.fetch(
            "SELECT c.oid::regclass::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname NOT IN ('copypipe', 'pg_catalog', 'pg_toast',"
            " 'information_schema') ORDER BY 1"
        )
        return [
            (table, *row)
            for (table,) in tables
            for row in self.dest.fetch(
                f"SELECT t.ctid::text, t.xmin::text, t::text FROM ONLY {table} t ORDER BY t.ctid"
            )
        ]

    def told(self) -> list[dict[str, Any]]:
        """Return what the ledger tells of slices, in order."""
        text = self.dest.text("SELECT to_jsonb(l) FROM copypipe.slice l ORDER BY id")
        # COPY doubles what is a backslash in JSON.
        return [json.loads(line.replace("\\\\", "\\")) for line in text.decode().splitlines()]

    def connect(self, **changes: Any) -> psycopg.Connection:
        """Return a session of somebody else at the dest, in a transaction as soon as it is used."""
        connection = self.dest.connect(**{"autocommit": False, **changes})
        self.opened.append(connection)
        return connection


def pair_of(source: Database, dest: Database) -> Iterator[Pair]:
    """Yield the pair; who still holds something up in the end does so no more."""
    pair = Pair(source, dest)
    yield pair
    for connection in pair.opened:
        connection.close()


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query as text, in the order of their texts."""
    cells = [tuple(line.split("\t")) for line in database.text(query).decode().splitlines()]
    return sorted(cells)


def waiting(dest: Database, what: str = "relation") -> Callable[[], bool]:
    """Return a question: whether a copy waits for a lock of that kind at the dest."""
    return lambda: bool(
        dest.scalar(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE NOT l.granted AND l.locktype = %s AND a.application_name LIKE 'copypipe%%'"
            " AND a.datname = current_database()",
            [what],
        )
    )
