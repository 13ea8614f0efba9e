"""A pair of databases, and transactions of others at the source that a copy may meet."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import Transferred, horizons
from plugins.command import eventually
from plugins.databases import Database
from plugins.rows import table_of

MINUTE = timedelta(minutes=1)
MOMENT = timedelta(milliseconds=1)

# The margin for a process that the kernel did not run; here all of them have answered before.
MARGIN = timedelta(milliseconds=100)


@dataclass
class Sides:
    source: Database
    dest: Database
    opened: list[psycopg.Connection] = field(default_factory=list)

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        return copypipe.copy("public.t", **{**sides, "retries": 0, **options})

    def clock(self) -> datetime:
        return self.source.scalar("SELECT clock_timestamp()")

    def recorded(self, what: str = "state, open_because") -> Any:
        """Return these columns of the newest row of the ledger."""
        (row,) = self.dest.fetch(f"SELECT {what} FROM copypipe.slice ORDER BY id DESC LIMIT 1")
        return row

    def connect(self, **changes: Any) -> psycopg.Connection:
        """Return a session of somebody else at the source, maybe in another database."""
        name = {"dbname": self.source.name, "application_name": "other application"}
        connection = psycopg.connect(self.source.server.dsn(**{**name, **changes}))
        self.opened.append(connection)
        return connection

    def began(self, sql: str = "SELECT now()", **changes: Any) -> "Other":
        """Begin a transaction at the source; its slice ends right behind that, and is past."""
        connection = self.connect(**changes)
        connection.execute(sql)
        (at,) = connection.execute("SELECT now()").fetchone()
        other = Other(connection, at)
        self.passes(other.slice["stop"])
        return other

    def passes(self, stop: datetime) -> None:
        """Wait until the source takes that instant for past."""
        eventually(lambda: self.clock() > stop + horizons.MARGIN, what="the slice has ended")


@dataclass
class Other:
    """A transaction of somebody else."""

    connection: psycopg.Connection
    began: datetime

    @property
    def slice(self) -> dict[str, datetime]:
        """Return a slice that holds what the transaction stamps with now(), and little else."""
        return {"start": self.began - MINUTE, "stop": self.began + MOMENT}


def both(source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sides]:
    """Yield both with a row of long ago in public.t."""
    monkeypatch.setattr(horizons, "MARGIN", MARGIN)
    table_of(source, "1 a 04-29")
    table_of(dest, "")
    sides = Sides(source, dest)
    yield sides
    for connection in sides.opened:
        connection.close()
