"""Many runs at once on slices that overlap, some of them killed: every row exactly once.

The source stands still, so whatever runs in whatever order, the dest may only ever hold some of its
rows, none twice: those of every run that succeeded, and all of them after a last run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import copypipe
from plugins.command import eventually, no_backends
from plugins.databases import Database

TABLE = "public.crowd"
FIRST = datetime(2018, 4, 1, tzinfo=UTC)
DAYS = 6

_SETUP = f"""
CREATE TABLE {TABLE} (id int, created_at timestamptz, updated_at timestamptz, body text);
"""
_FILL = f"""
INSERT INTO {TABLE}
SELECT g, '{FIRST}'::timestamptz + g * interval '36 minutes',
       '{FIRST}'::timestamptz + (g * 7 % 240) * interval '36 minutes', repeat('x', g % 50)
  FROM generate_series(0, {DAYS * 40 - 1}) AS g;
"""

_WHOLE = f"SELECT id, created_at, updated_at, body FROM {TABLE}"
_ROWS = f"{_WHOLE} ORDER BY id"

# What a member of the crowd does, over and over, until the time is up; a line for each run.
_MEMBER = """
import json, random, sys, time
import copypipe
from faults.crowds import wanted
source, dest, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
chance, until = random.Random(seed), time.monotonic() + seconds
while time.monotonic() < until:
    options = wanted(chance)
    try:
        done = copypipe.copy("public.crowd", source=source, dest=dest, **options)
        told = [0, done.attempt.attempt_id, done.rows]
    except copypipe.CopypipeError as error:
        told = [error.exit_code, error.sqlstate, str(error)]
    print(json.dumps([*told, str(options)]), flush=True)
"""


def wanted(chance: random.Random) -> dict[str, Any]:
    """Return the options of some run."""
    # Slow enough to meet others: a day of 40 rows takes a tenth of a second.
    patience = {"wait_lock": chance.choice([0, 0.2, 60, 60]), "retries": 0, "rate_limit": 40_000}
    kind = chance.choices(["day", "range", "hours", "where", "all", "other"], [8, 3, 4, 2, 1, 1])[0]
    start = FIRST + timedelta(days=chance.randrange(DAYS))
    if kind == "day":
        zone = chance.choice(["UTC", "UTC", "Asia/Kolkata"])
        return {"day": start.date().isoformat(), "timezone": zone, **patience}
    if kind == "where":
        within = {"day": start.date().isoformat()} if chance.random() < 0.5 else {}
        where = f"id % {chance.choice([2, 3])} = 0"
        return {"where": where, **within, "allow_empty": True, **patience}
    if kind == "all":
        return {"all": True, "yes": True, **patience}
    if kind == "hours":
        start += timedelta(hours=chance.randrange(24), minutes=chance.choice([0, 10]))
        stop = start + timedelta(hours=chance.randrange(1, 12))
    else:
        stop = start + timedelta(days=chance.randrange(1, 5))
    by = "updated_at" if kind == "other" else "created_at"
    bounds = {"start": start.isoformat(), "stop": stop.isoformat()}
    return {**bounds, "by": by, "allow_empty": True, **patience}


@dataclass
class Crowd:
    """What a crowd did."""

    codes: Counter[int] = field(default_factory=Counter)
    killed: int = 0
    looks: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        codes = ", ".join(f"exit {code}: {count}" for code, count in sorted(self.codes.items()))
        return f"{codes}; {self.killed} killed; looked at {self.looks} times"


def gather(
    source: Database, dest: Database, *, members: int, seconds: float, seed: int = 1
) -> Crowd:
    """Let so many processes copy for a while, kill one now and then; return what happened."""
    for database in (source, dest):
        database.execute(_SETUP)
    source.execute(_FILL)
    chance = random.Random(seed)  # noqa: S311 - which run is killed is no secret
    crowd = Crowd()
    until = time.monotonic() + seconds
    seeds = iter(range(1000 * seed, 1000 * seed + 999))
    with contextlib.ExitStack() as stack:
        running = [_member(stack, source, dest, next(seeds), seconds) for _ in range(members)]
        every: list[subprocess.Popen[str]] = list(running)
        next_kill = time.monotonic() + 2.0
        while time.monotonic() < until:
            time.sleep(0.1)
            _look(dest, crowd)
            if time.monotonic() >= next_kill:
                next_kill = time.monotonic() + chance.uniform(0.5, 1.5)
                number = chance.randrange(members)
                running[number].kill()
                crowd.killed += 1
                left = max(0.1, until - time.monotonic())
                running[number] = _member(stack, source, dest, next(seeds), left)
                every.append(running[number])
        succeeded = dict(_told(every, crowd))
    no_backends(source, dest, seconds=30)
    _look(dest, crowd)
    _compare(source, dest, crowd, succeeded)
    copypipe.copy(TABLE, source=source.dsn, dest=dest.dsn, all=True, yes=True)
    if source.fetch(_ROWS) != dest.fetch(_ROWS):
        crowd.findings.append("after a last copy of all rows the two sides differ")
    return crowd


def _member(
    stack: contextlib.ExitStack, source: Database, dest: Database, seed: int, seconds: float
) -> subprocess.Popen[str]:
    here = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _MEMBER, source.dsn, dest.dsn, str(seed), str(seconds)],
        env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.kill)
    return process


def _told(every: list[subprocess.Popen[str]], crowd: Crowd) -> Iterator[tuple[str, int]]:
    """Yield the attempts that succeeded, with their rows, when all members have ended."""
    for process in every:
        said, errors = process.communicate(timeout=100)
        if process.returncode not in (0, -9):
            crowd.findings.append(f"a member failed: {errors}")
        for line in said.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # killed in mid-line
                code, what, more, options = json.loads(line)
                crowd.codes[code] += 1
                if code == 0:
                    yield what, more
                elif code != 11:
                    crowd.findings.append(f"exit {code} ({what}) for {options}: {more}")


def _look(dest: Database, crowd: Crowd) -> None:
    """Look for a row that is there twice."""
    crowd.looks += 1
    twice = dest.fetch(f"SELECT id FROM {TABLE} GROUP BY id HAVING count(*) > 1 LIMIT 5")
    if twice:
        crowd.findings.append(f"rows that are there twice: {twice}")


def _compare(source: Database, dest: Database, crowd: Crowd, succeeded: dict[str, int]) -> None:
    """Compare with the source what is there, what the ledger tells, and what the runs did."""
    held = {*dest.fetch(_ROWS)}
    if not held <= {*source.fetch(_ROWS)}:
        crowd.findings.append("the dest holds a row that the source has not")
    copied = "SELECT id, by_column, instants::text, condition FROM copypipe.slice ORDER BY id"
    for number, column, instants, condition in dest.fetch(copied):
        within = f"{column} <@ '{instants}'::tstzmultirange" if column else "true"
        of_slice = f"{_WHOLE} WHERE {within} AND ({condition or 'true'})"
        if not held.issuperset(source.fetch(of_slice)):
            crowd.findings.append(f"the dest lacks rows of the ledger's slice {number}")
    recorded = dict(dest.fetch("SELECT attempt_id::text, rows_copied::int FROM copypipe.slice"))
    lost = [attempt for attempt, count in succeeded.items() if recorded.get(attempt) != count]
    if lost:
        crowd.findings.append(f"{len(lost)} runs that succeeded are not in the ledger")
    if len(recorded) > len(succeeded) + crowd.killed:
        crowd.findings.append("the ledger tells of more copies than there were runs")
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    eventually(lambda: dest.scalar(locks) == 0, what="no lock is left")
