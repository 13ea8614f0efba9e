"""A table on both sides and a way to copy it: where a fault is made, and what is looked at after.

Each scene has a table of its own, so that several can be played at once in one pair of databases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import copypipe
from copypipe import CopypipeError
from faults.phases import Course
from plugins.databases import Database
from plugins.proxy import Frame, Proxy, Rule, unchanged

EXECUTABLE = Path(sys.executable).with_name("copypipe")

DAY = "2018-04-29"

# Three rows of the day and two of another; the dest has two old ones of the day, one of another.
SOURCE_ROWS = f"""
SELECT g, repeat('x', g) || E'\\t"', '{DAY}'::timestamptz + g * interval '7 hours'
  FROM generate_series(0, 4) AS g
"""
OLD_ROWS = f"""
SELECT -g, 'old ' || g, '{DAY}'::timestamptz + (g - 3) * interval '14 hours'
  FROM generate_series(1, 4) AS g WHERE g <> 2
"""

# How a copy is asked for, and what else is different: options of copypipe.copy(), and words of
# the command line that say the same.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "day": ({"day": DAY}, ("--day", DAY)),
    "all": ({"all": True, "yes": True}, ("--all", "--yes")),
    "where": ({"where": "id > 0"}, ("--where", "id > 0")),
    "triggers": ({"day": DAY}, ("--day", DAY)),
    "bare": ({"day": DAY, "ledger": False}, ("--day", DAY, "--no-ledger")),
    "libpq": ({"day": DAY, "transport": "libpq"}, ("--day", DAY, "--transport", "libpq")),
    "append": ({"day": DAY, "mode": "append"}, ("--day", DAY, "--mode", "append")),
    "merge": ({"day": DAY, "mode": "merge"}, ("--day", DAY, "--mode", "merge")),
    "truncate": ({"day": DAY, "clear": "truncate"}, ("--day", DAY, "--clear", "truncate")),
    "swap": ({"day": DAY, "swap": True}, ("--day", DAY, "--swap")),
    # The pauses add up to some three seconds: a server is back by then.
    "retried": (
        {"day": DAY, "retries": 6, "retry_delay": 0.05},
        ("--day", DAY, "--retries", "6", "--retry-delay", "50ms"),
    ),
}

# Kinds whose dest has partitions for the day.
PARTITIONED = ("truncate", "swap")

# How long after a server has fallen silent it ends what it did for us, as its keepalive would; a
# minute in reality.
KEEPALIVE_SECONDS = 1.5

_TRIGGERS = """
CREATE OR REPLACE FUNCTION public.same() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER same BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.same();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.same()
"""


# Two partitions for the day, and one for all the rest.
_PARTITIONS = f"""
 PARTITION BY RANGE (created_at);
CREATE TABLE {{table}}_early PARTITION OF {{table}}
    FOR VALUES FROM ('{DAY} 00:00+00') TO ('{DAY} 12:00+00');
CREATE TABLE {{table}}_late PARTITION OF {{table}}
    FOR VALUES FROM ('{DAY} 12:00+00') TO ('{DAY} 24:00+00');
CREATE TABLE {{table}}_rest PARTITION OF {{table}} DEFAULT
"""


@dataclass
class Outcome:
    """How a copy ended, and where the fault fell."""

    code: int | None
    """Exit code; negative for the signal that killed it; None where it did not end."""
    said: str
    phase: str | None
    """The phase in which the fault was made; None if it was not."""
    seconds: float


@dataclass
class Scene:
    """A table to copy, under faults."""

    kind: str
    source: Database
    dest: Database
    number: int
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = "(id int, body text, created_at timestamptz)"
        self.source.execute(
            f"CREATE TABLE {self.table} {columns};INSERT INTO {self.table} {SOURCE_ROWS}"
        )
        parts = _PARTITIONS.format(table=self.table) if self.kind in PARTITIONED else ""
        self.dest.execute(f"CREATE TABLE {self.table} {columns}{parts}")
        if self.kind == "merge":
            self.dest.execute(f"ALTER TABLE {self.table} ADD PRIMARY KEY (id)")
        if self.kind == "triggers":
            self.dest.execute(_TRIGGERS.format(table=self.table))
        self.options, self.words = KINDS[self.kind]

    @property
    def table(self) -> str:
        return f"public.{self.kind}_{self.number}"

    @property
    def records(self) -> bool:
        return self.kind != "bare"

    @property
    def covered(self) -> str:
        """The condition of the slice, as SQL."""
        where = f"created_at >= '{DAY}' AND created_at < '{DAY}'::timestamptz + interval '1 day'"
        return {"all": "true", "where": "id > 0"}.get(self.kind, where)

    @property
    def removed(self) -> str:
        """The condition of the rows that the dest loses, as SQL."""
        return "false" if self.kind in ("append", "merge") else self.covered

    def reset(self) -> None:
        """Make the dest old again."""
        rows = "SELECT * FROM (SELECT 1) AS none(id) WHERE false" if self.kind == "all" else None
        self.dest.execute(f"TRUNCATE {self.table}")
        if rows is None:
            self.dest.execute(f"INSERT INTO {self.table} {OLD_ROWS}")
        if self.records:
            self.dest.execute(
                "DO $$ BEGIN IF to_regclass('copypipe.slice') IS NOT NULL THEN"
                f" DELETE FROM copypipe.slice WHERE dest_table = '{self.table}'; END IF; END $$"
            )

    # --- what is there ----------------------------------------------------------------------------

    def _state(self) -> str:
        rows = self.dest.text(f"SELECT * FROM {self.table} ORDER BY id")
        old = "SELECT 0 AS id, '' AS body, now() AS created_at WHERE false"
        if self.kind != "all":
            old = f"SELECT * FROM ({OLD_ROWS}) AS o(id, body, created_at)"
        if rows == self.dest.text(f"{old} ORDER BY id"):
            return "old"
        kept = self.dest.text(f"SELECT * FROM ({old}) AS o WHERE NOT ({self.removed}) ORDER BY id")
        new = self.source.text(f"SELECT * FROM {self.table} WHERE {self.covered} ORDER BY id")
        return "new" if rows == kept + new else "neither"

    def _recorded(self) -> int:
        if not self.records or not self.dest.scalar(
            "SELECT to_regclass('copypipe.slice') IS NOT NULL"
        ):
            return 0
        return self.dest.scalar(
            f"SELECT count(*) FROM copypipe.slice WHERE dest_table = '{self.table}'"
        )

    def complaint(self, outcome: Outcome, allowed: frozenset[int]) -> str | None:
        """Return what is wrong after such an outcome, None for nothing."""
        state, recorded = self._state(), self._recorded()
        told = f"exit {outcome.code}, the dest is {state}, {recorded} rows in the ledger"
        if outcome.code is None or outcome.code not in allowed:
            return f"{told}; exit {sorted(allowed)} was expected: {outcome.said}"
        undecided = outcome.code == 75 or outcome.code < 0
        if state == "neither" or (
            state != ("new" if outcome.code == 0 else "old") and not undecided
        ):
            return told
        if self.records and recorded != (state == "new"):
            return told
        again = self.copy()
        if self.kind == "append" and state == "new":
            told_before = again.code == 6 and self._state() == "new"
            return None if told_before else f"{told}; run again, it ended with {again.code}"
        if again.code != 0:
            return f"{told}; run again, it ended with {again.code}: {again.said}"
        if self._state() != "new":
            return f"{told}; run again, the dest is {self._state()}"
        if self.records and self._recorded() != recorded + 1:
            return f"{told}; run again, {self._recorded()} rows in the ledger"
        return None

    # --- copying ----------------------------------------------------------------------------------

    def copy(self, proxies: Mapping[str, Proxy] | None = None, **options: Any) -> Outcome:
        """Copy in this process; `proxies` stand between."""
        chosen = {
            "retries": 0,
            "retry_delay": 0.01,
            "stall_timeout": 1.0,
            "wait_lock": 20.0,
            **self.options,
            **options,
        }
        began = time.monotonic()
        try:
            copypipe.copy(self.table, **self._sides(proxies), **chosen)
        except CopypipeError as error:
            return Outcome(error.exit_code, str(error), None, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - whatever comes is a finding
            return Outcome(None, repr(error), None, time.monotonic() - began)
        return Outcome(0, "", None, time.monotonic() - began)

    def command(
        self, proxies: Mapping[str, Proxy] | None, *words: str
    ) -> tuple[list[str], dict[str, str]]:
        """Return the command line that copies, and its environment."""
        sides = self._sides(proxies)
        environment = {
            **self.environment,
            "COPYPIPE_SOURCE": sides["source"],
            "COPYPIPE_DEST": sides["dest"],
        }
        retries = () if self.kind == "retried" else ("--retries", "0")
        common = ("--progress", "none", "--stall-timeout", "5s")
        return [
            str(EXECUTABLE),
            "copy",
            self.table,
            *self.words,
            *retries,
            *common,
            *words,
        ], environment

    def _sides(self, proxies: Mapping[str, Proxy] | None) -> dict[str, str]:
        databases = {"source": self.source, "dest": self.dest}
        if proxies is None:
            return {side: database.dsn for side, database in databases.items()}
        return {
            side: proxies[side].dsn(database, connect_timeout=2)
            for side, database in databases.items()
        }


def heard(course: Course, side: str, rule: Rule = unchanged) -> Rule:
    """Return a rule that tells the course of each message first."""

    def hear(frame: Frame) -> bytes | None:
        course.hear(side, frame)
        return rule(frame)

    return hear
