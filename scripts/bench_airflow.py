"""Measure CopyPipeOperator beside the cursor loop that people write, as tasks of one DAG.

python scripts/bench_airflow.py              a day of 500,000 users, 5 rounds
python scripts/bench_airflow.py --doc        the same, and write the table into docs/airflow.md

Run it in the environment of `make test-airflow`, or by `make airflow-bench`. Each round is a
process that runs scripts/airflow_dags/cursor_loop.py with `dag.test()`, the two tasks by turns in
either order. What is measured is `execute` alone: imports, parsing and Airflow's own work are the
same for both. Memory is how far the process's resident memory rises above what it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_servers import Servers, keep, put, running

ROOT = Path(__file__).resolve().parents[1]
DAGS = Path(__file__).resolve().parent / "airflow_dags"
PAGE = ROOT / "docs" / "airflow.md"
KEPT = ROOT / "docs" / "performance" / "airflow.json"

TARGETS = {"wall": 5.0, "cpu": 10.0}

# The day that is copied, beside one before and one after it.
TABLE = """
CREATE TABLE public.{name} (
    id bigint PRIMARY KEY, name text NOT NULL, email text, active boolean NOT NULL,
    balance numeric(12, 2), created_at timestamptz NOT NULL, profile jsonb);
CREATE INDEX ON public.{name} (created_at)
"""
FILL = """
INSERT INTO public.users
SELECT n, 'name of user ' || n, 'user' || n || '@example.org', n % 2 = 0, n * 1.25,
       '2018-04-27Z'::timestamptz + n * interval '1 day' / {rows},
       jsonb_build_object('n', n, 'visits', n % 1000, 'from', md5(n::text))
  FROM generate_series(0, 3 * {rows} - 1) AS n
"""
DIGEST = """
SELECT count(*), md5(string_agg(md5(u::text), '' ORDER BY id)) FROM public.{name} AS u
 WHERE created_at >= '2018-04-28Z' AND created_at < '2018-04-29Z'
"""


def main() -> int:
    """Measure, print, and keep what was found; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--doc", action="store_true", help="write docs/airflow.md")
    options = parser.parse_args()
    with running() as servers, tempfile.TemporaryDirectory() as folder:
        _make(servers, options.rows)
        environment = _airflow(servers, Path(folder))
        measured = Path(folder) / "measured.jsonl"
        for number in range(options.rounds):
            _empty(servers)
            first = ("loop", "copypipe")[number % 2]
            _round({**environment, "MEASURED": str(measured), "MEASURED_ORDER": first})
            _check(servers)
            print(f"  round {number + 1} of {options.rounds}", file=sys.stderr)
        costs = [json.loads(line) for line in measured.read_text().splitlines()]
        version = str(servers.source.binaries.version)
    told = _told(costs, options, version)
    text = table(told)
    print(text)
    if options.doc:
        keep(told, KEPT)
        put(text, PAGE, "measured", "scripts/bench_airflow.py")
    missed = [of for of, target in TARGETS.items() if told["ratios"][of] < target]
    for of in missed:
        print(
            f"missed: {of} {told['ratios'][of]} times less, {TARGETS[of]:g} asked", file=sys.stderr
        )
    return 1 if missed else 0


def _make(servers: Servers, rows: int) -> None:
    servers.execute("source", TABLE.format(name="users") + ";" + FILL.format(rows=rows))
    servers.execute("source", "VACUUM (ANALYZE) public.users")
    for name in ("users_loop", "users_copypipe"):
        servers.execute("dest", TABLE.format(name=name))


def _empty(servers: Servers) -> None:
    servers.execute("dest", "DROP SCHEMA IF EXISTS copypipe CASCADE")
    for side in ("source", "dest"):
        servers.execute(side, "CHECKPOINT")
    for name in ("users_loop", "users_copypipe"):
        servers.execute("dest", f"TRUNCATE public.{name}")


def _check(servers: Servers) -> None:
    """End where the three tables do not hold the same day."""
    of_source = servers.execute("source", DIGEST.format(name="users"))
    for name in ("users_loop", "users_copypipe"):
        if servers.execute("dest", DIGEST.format(name=name)) != of_source:
            raise SystemExit(f"{name} does not hold what the source has")


def _airflow(servers: Servers, folder: Path) -> dict[str, str]:
    """Make an Airflow of its own; returns the environment it runs in."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    for conn_id, side in (("SHOP", "source"), ("DWH", "dest")):
        parts = servers.parameters(side, "tcp")
        environment[f"AIRFLOW_CONN_{conn_id}"] = json.dumps(
            {
                "conn_type": "postgres",
                "host": parts["host"],
                "port": int(parts["port"]),
                "login": parts["user"],
                "password": parts.get("password"),
                "schema": parts["dbname"],
            }
        )
    _run([sys.executable, "-m", "airflow", "db", "migrate"], environment)
    return environment


def _round(environment: Mapping[str, str]) -> None:
    _run([sys.executable, str(DAGS / "cursor_loop.py")], environment)


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )


def _told(costs: list[dict[str, Any]], options: argparse.Namespace, version: str) -> dict[str, Any]:
    medians = {
        name: {
            of: round(statistics.median(cost[of] for cost in costs if cost["name"] == name), 3)
            for of in ("wall", "cpu", "peak_kib")
        }
        for name in ("loop", "copypipe")
    }
    pairs = list(
        zip(
            *([c for c in costs if c["name"] == name] for name in ("loop", "copypipe")), strict=True
        )
    )
    ratios = {
        of: round(statistics.median(loop[of] / ours[of] for loop, ours in pairs), 1)
        for of in ("wall", "cpu")
    }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": "python scripts/bench_airflow.py",
        "rows": options.rows,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "postgresql": version,
        "medians": medians,
        "ratios": ratios,
    }


def table(told: Mapping[str, Any]) -> str:
    """Return what was measured as the page shows it."""
    lines = [
        "| `execute` of | wall | CPU of the worker | memory it adds |",
        "|---|---|---|---|",
    ]
    names = {"loop": "the cursor loop", "copypipe": "`CopyPipeOperator`"}
    for name, cost in told["medians"].items():
        lines.append(
            f"| {names[name]} | {cost['wall']:.1f} s | {cost['cpu']:.2f} s"
            f" | {cost['peak_kib'] / 1024:.0f} MiB |"
        )
    ratios = told["ratios"]
    lines.append(f"| times less | {ratios['wall']} | {ratios['cpu']} | |")
    lines += [
        "",
        f"A day of {told['rows']:,} users (seven columns, a primary key and an index), medians of"
        f" {told['rounds']} interleaved rounds, {told['cores']} cores for servers and worker,"
        f" PostgreSQL {told['postgresql']}, {told['date']}: `{told['command']}`",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
