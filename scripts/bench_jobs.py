"""Measure what several jobs gain: threads of one process, and processes of one job each.

python scripts/bench_jobs.py                2 million narrow rows in 16 slices, 3 rounds
python scripts/bench_jobs.py --doc          the same, and write the table into docs/performance.md

The rows are the narrowest of scripts/bench.py, of which the client has the most to do for a byte:
if threads hindered each other (the scan of the messages holds Python's lock), it would show here.
Processes share the range through the ledger. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_servers import NARROW, Servers, keep, put, running

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
KEPT = ROOT / "docs" / "performance" / "jobs.json"

SLICES = 16
JOBS = (1, 2, 4, 8)


def main() -> int:
    """Measure, print, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--doc", action="store_true", help="write docs/performance.md")
    options = parser.parse_args()
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with running() as servers:
        _make(servers, options.rows)
        for number in range(options.rounds):
            for jobs in JOBS:
                for name, way in (("threads", _threads), ("processes", _processes)):
                    _empty(servers)
                    cost = way(servers, options.rows, jobs)
                    _check(servers, options.rows, name)
                    found.setdefault(name, {}).setdefault(jobs, []).append(cost)
                    print(f"  {number + 1}  {jobs} {name}: {cost[0]:.1f} s", file=sys.stderr)
    told = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": options.rows,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "command": "python scripts/bench_jobs.py",
        "medians": {
            name: {jobs: [_median(costs, of) for of in (0, 1)] for jobs, costs in each.items()}
            for name, each in found.items()
        },
    }
    text = _table(told)
    print(text)
    if options.doc:
        keep(told, KEPT)
        put(text, PAGE, "jobs", "scripts/bench_jobs.py")
    return 0


def _median(costs: list[tuple[float, float]], of: int) -> float:
    return round(statistics.median(cost[of] for cost in costs), 2)


def _make(servers: Servers, rows: int) -> None:
    for side in ("source", "dest"):
        servers.execute(side, f"CREATE TABLE public.narrow ({NARROW.columns})")
        servers.execute(side, "CREATE INDEX ON public.narrow (id)")
    servers.execute(
        "source",
        f"INSERT INTO public.narrow SELECT {NARROW.values}"  # noqa: S608
        f" FROM generate_series(0, {rows - 1}::bigint) AS i",
    )
    servers.execute("source", "VACUUM (ANALYZE) public.narrow")


def _empty(servers: Servers) -> None:
    servers.execute("dest", "DROP SCHEMA IF EXISTS copypipe CASCADE")
    servers.execute("dest", "TRUNCATE public.narrow")
    servers.settle()


def _check(servers: Servers, rows: int, name: str) -> None:
    ((count,),) = servers.execute("dest", "SELECT count(*) FROM public.narrow")
    if count != rows:
        raise SystemExit(f"{name}: {count} rows instead of {rows}")


def _threads(servers: Servers, rows: int, jobs: int) -> tuple[float, float]:
    return _timed(servers, rows, [jobs])


def _processes(servers: Servers, rows: int, jobs: int) -> tuple[float, float]:
    return _timed(servers, rows, [1] * jobs)


def _timed(servers: Servers, rows: int, jobs: list[int]) -> tuple[float, float]:
    """Return the seconds until the last has ended, and those of CPU that the clients took."""
    words = [sys.executable, "-m", "copypipe", "backfill", "public.narrow", "-q", "--by", "id"]
    words += ["--from", "0", "--to", str(rows), "--every", str(-(-rows // SLICES))]
    environment = {
        **os.environ,
        "COPYPIPE_SOURCE": servers.conninfo("source", "unix"),
        "COPYPIPE_DEST": servers.conninfo("dest", "unix"),
    }
    began = time.monotonic()
    pids = [subprocess.Popen([*words, "--jobs", str(each)], env=environment).pid for each in jobs]
    cpu = 0.0
    for pid in pids:
        _, status, usage = os.wait4(pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"a member ended with {os.waitstatus_to_exitcode(status)}")
        cpu += usage.ru_utime + usage.ru_stime
    return time.monotonic() - began, cpu


def _table(told: dict[str, Any]) -> str:
    threads, processes = (told["medians"][name] for name in ("threads", "processes"))
    lines = [
        f"{told['rows']:,} rows of 48 bytes in {SLICES} slices, medians of {told['rounds']} "
        f"interleaved rounds, {told['cores']} cores for servers and clients together, "
        f"{told['date']} (`{told['command']}`):",
        "",
        "| jobs | threads of one process: seconds | client CPU | processes: seconds | client CPU |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {jobs} | {threads[jobs][0]} | {threads[jobs][1]} | {processes[jobs][0]} "
        f"| {processes[jobs][1]} |"
        for jobs in JOBS
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
