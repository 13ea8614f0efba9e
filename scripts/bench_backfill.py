"""Measure a year of days, on two servers of its own: `copypipe backfill` and what people write.

python scripts/bench_backfill.py                 4 million rows, 365 days, 3 rounds
python scripts/bench_backfill.py --rows 400000 --rounds 1     to see that it works
python scripts/bench_backfill.py --doc           the same, and write the table into docs/backfill.md

The others are a shell loop, `xargs -P`, of `psql | psql` for each day as a careful person writes it
(DELETE and COPY in one transaction, binary), and of `copypipe copy`. All clear and fill the same
days of a table that has an index on the day. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench_servers import Servers, keep, put, running
from bench_ways import find_psql

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "backfill.md"
KEPT = ROOT / "docs" / "performance" / "backfill.json"

FIRST = date(2018, 1, 1)
COLUMNS = "id bigint, name text, email text, created_at timestamptz, amount numeric(12,2)"
VALUES = """
i, 'User ' || i, md5(i::text) || '@example.org',
'2018-01-01Z'::timestamptz + i * interval '1 s' * {seconds}, (i % 10000) / 100.0
"""

# Of one day: $1 its first, $2 the next one. ON_ERROR_STOP and pipefail, or half a day would be
# committed; one transaction, or it would be gone for a while.
SHELL_DAY = """
set -o pipefail
{psql} "$SOURCE" -qAtX -v ON_ERROR_STOP=1 -c "COPY (SELECT * FROM public.t
  WHERE created_at >= '$1Z' AND created_at < '$2Z') TO STDOUT (FORMAT binary)" |
{psql} "$DEST" -qX -v ON_ERROR_STOP=1 --single-transaction -c "DELETE FROM public.t
  WHERE created_at >= '$1Z' AND created_at < '$2Z'" -c "COPY public.t FROM STDIN (FORMAT binary)"
"""


def main() -> int:
    """Measure, print, and keep what was found."""
    options = _options()
    with running() as servers:
        _make(servers, options)
        found = _measured(servers, options)
    told = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": options.rows,
        "days": options.days,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "command": "python scripts/bench_backfill.py",
        "medians": {name: round(statistics.median(each), 2) for name, each in found.items()},
    }
    text = _table(told)
    print(text)
    if options.doc:
        keep(told, KEPT)
        put(text, PAGE, "costs", "scripts/bench_backfill.py")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doc", action="store_true", help="write docs/backfill.md")
    return parser.parse_args()


def _make(servers: Servers, options: argparse.Namespace) -> None:
    values = VALUES.format(seconds=options.days * 86400 / options.rows)
    for side in ("source", "dest"):
        servers.execute(side, f"CREATE TABLE public.t ({COLUMNS})")
    numbers = f"generate_series(0, {options.rows - 1}::bigint) AS i"
    servers.execute("source", f"INSERT INTO public.t SELECT {values} FROM {numbers}")  # noqa: S608
    for side in ("source", "dest"):
        servers.execute(side, "CREATE INDEX ON public.t (created_at)")
    servers.execute("source", "VACUUM (ANALYZE) public.t")


def _measured(servers: Servers, options: argparse.Namespace) -> dict[str, list[float]]:
    days = [FIRST + timedelta(days=number) for number in range(options.days + 1)]
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        ways: dict[str, Callable[[], float]] = {}
        for jobs in (1, 2, 4, 8):
            ways[f"copypipe backfill, {jobs} jobs"] = lambda jobs=jobs: _backfill(
                servers, days, jobs
            )
        for jobs in (1, 2, 4):
            ways[f"xargs -P{jobs} psql \\| psql"] = lambda jobs=jobs: _shell(servers, days, jobs)
        ways["xargs -P4 copypipe copy"] = lambda: _copies(servers, days, 4)
        for name, way in ways.items():
            _empty(servers)
            found.setdefault(name, []).append(way())
            print(f"  {number + 1}  {name}: {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
            _check(servers, options.rows, name)
        again = "copypipe backfill of a year that is done"
        _empty(servers)
        _backfill(servers, days, 4)
        found.setdefault(again, []).append(_backfill(servers, days, 4))
    return found


def _empty(servers: Servers) -> None:
    servers.execute("dest", "DROP SCHEMA IF EXISTS copypipe CASCADE")
    servers.execute("dest", "TRUNCATE public.t")
    servers.settle()


def _check(servers: Servers, rows: int, name: str) -> None:
    ((count,),) = servers.execute("dest", "SELECT count(*) FROM public.t")
    if count != rows:
        raise SystemExit(f"{name}: {count} rows instead of {rows}")


def _environment(servers: Servers) -> dict[str, str]:
    source, dest = (servers.conninfo(side, "unix") for side in ("source", "dest"))
    return {
        **os.environ,
        "COPYPIPE_SOURCE": source,
        "COPYPIPE_DEST": dest,
        "SOURCE": source,
        "DEST": dest,
    }


def _timed(words: list[str], servers: Servers, given: str = "") -> float:
    began = time.monotonic()
    subprocess.run(
        words,
        env=_environment(servers),
        input=given,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def _backfill(servers: Servers, days: list[date], jobs: int) -> float:
    words = [sys.executable, "-m", "copypipe", "backfill", "public.t", "--jobs", str(jobs), "-q"]
    return _timed([*words, "--from", str(days[0]), "--to", str(days[-1])], servers)


def _shell(servers: Servers, days: list[date], jobs: int) -> float:
    pairs = "".join(f"{day} {after}\n" for day, after in pairwise(days))
    day = SHELL_DAY.format(psql=find_psql(servers))
    return _timed(["xargs", f"-P{jobs}", "-n2", "bash", "-c", day, "day"], servers, pairs)


def _copies(servers: Servers, days: list[date], jobs: int) -> float:
    given = "".join(f"{day}\n" for day in days[:-1])
    words = [sys.executable, "-m", "copypipe", "copy", "public.t", "-q", "--day"]
    return _timed(["xargs", f"-P{jobs}", "-n1", *words], servers, given)


def _table(told: dict[str, Any]) -> str:
    lines = [
        f"{told['rows']:,} rows in {told['days']} days, an index on the day, medians of "
        f"{told['rounds']} interleaved rounds, {told['cores']} cores for servers and clients "
        f"together, {told['date']} (`{told['command']}`):",
        "",
        "| | seconds |",
        "|---|---|",
    ]
    lines += [f"| {name} | {seconds} |" for name, seconds in told["medians"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
