"""A pair of databases with a small table to copy, and what the dest's ledger tells of it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg

import copypipe
from copypipe import Transferred, keepers
from copypipe.events import Event, Warned
from copypipe.requests import Endpoint
from copypipe.statements.ledger import RIGHTS
from plugins.command import eventually, pause, waits_in_pause
from plugins.databases import Database, Role

DAY = "2018-04-29"
NEXT_DAY = "2018-04-30"
ALL = {"all": True, "yes": True}

COLUMNS = "(id int, note text, created_at timestamptz, paid_at timestamptz, at timestamp, of date)"
TABLE = f"CREATE TABLE public.t {COLUMNS}"

# What a role needs beside its rights on the table.
NEEDED = [
    ("SCHEMA copypipe", "USAGE"),
    *((f"copypipe.{table}", right) for table, rights in RIGHTS.items() for right in rights),
]


def add(database: Database, number: int, note: str, day: str = DAY) -> None:
    """Add a row of that day by each of its times; it was paid a day later."""
    database.execute(
        "INSERT INTO public.t SELECT %s, %s, t, t + interval '1 day', t AT TIME ZONE 'UTC',"
        " (t AT TIME ZONE 'UTC')::date FROM (VALUES (%s::timestamptz)) AS v (t)",
        [number, note, f"{day} 10:00Z"],
    )


@dataclass
class Sides:
    """Both databases; the source has two days of one row, the dest an old row of the first."""

    source: Database
    dest: Database
    pool: ThreadPoolExecutor
    holders: list[psycopg.Connection] = field(default_factory=list)

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        return copypipe.copy("public.t", **{**sides, "retries": 0, **options})

    def start(self, **options: Any) -> Future[Transferred]:
        return self.pool.submit(self.copy, **options)

    def hold(self, **options: Any) -> tuple[Future[Transferred], psycopg.Connection]:
        """Start a copy and hold it up at its first row, until the connection is closed."""
        holder = pause(self.dest, "public.t", when="NEW.id = 1")
        self.holders.append(holder)
        future = self.start(**options)
        eventually(lambda: waits_in_pause(self.dest), what="the copy is held up")
        return future, holder

    def ends(self, future: Future[Transferred], holder: psycopg.Connection) -> Transferred:
        """Let a copy that was held up go on to its end."""
        holder.close()
        return future.result(20)

    def make(self, dsn: str | None = None) -> None:
        """Make the ledger, as the superuser or as whom the string names."""
        keepers.make(Endpoint(dsn or self.dest.dsn, "test"), 10, dry_run=False)

    def writer(self, *grants: str) -> Role:
        """Return a role of the dest that may copy into the table."""
        return self.dest.role("writer", "SELECT, INSERT, DELETE ON public.t", *grants)

    def grant(self, role: Role) -> None:
        """Let a role use the ledger."""
        self.dest.execute(
            "; ".join(f"GRANT {right} ON {what} TO {role.name}" for what, right in NEEDED)
        )

    def has_ledger(self) -> bool:
        return self.dest.scalar("SELECT to_regnamespace('copypipe') IS NOT NULL")

    def told(self, table: str = "slice") -> list[dict[str, Any]]:
        """Return the rows of one of the ledger's tables, in order."""
        order = {"slice": "id", "attempt": "began_at, number", "version": "made_at"}
        text = self.dest.text(
            f"SELECT to_jsonb(l) FROM copypipe.{table} l ORDER BY {order.get(table, 1)}"
        )
        # COPY doubles what is a backslash in JSON.
        return [json.loads(line.replace("\\\\", "\\")) for line in text.decode().splitlines()]

    def attempts(self, what: str = "number state side sqlstate error") -> list[tuple[Any, ...]]:
        return [tuple(row[name] for name in what.split()) for row in self.told("attempt")]


def both(source: Database, dest: Database) -> Iterator[Sides]:
    """Yield the pair; what still runs in the end is ended."""
    for database in (source, dest):
        database.execute(TABLE)
    add(source, 1, "a")
    add(source, 2, "b", NEXT_DAY)
    add(dest, 9, "old")
    with ThreadPoolExecutor(8) as pool:
        sides = Sides(source, dest, pool)
        yield sides
        # After a failure runs may still wait for each other, and the pool for them.
        for holder in sides.holders:
            holder.close()
        for backend in dest.backends():
            dest.execute("SELECT pg_terminate_backend(%s)", [backend.pid])


def hearing(kind: type, into: list[Any]) -> Callable[[Event], None]:
    """Return a listener that keeps the events of one kind."""

    def hear(event: Event) -> None:
        if isinstance(event, kind):
            into.append(event)

    return hear


def warnings_of(sides: Sides, **options: Any) -> tuple[list[str], Transferred]:
    """Copy, and return what was warned of as well."""
    heard: list[Warned] = []
    done = sides.copy(**{"day": DAY, "listener": hearing(Warned, heard), **options})
    return [warning.text for warning in heard], done
