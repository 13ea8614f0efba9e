"""Measure what it costs to prove two tables equal, on two servers of its own.

python scripts/bench_verify.py              5 million rows, 5 rounds: half an hour, if quiet
python scripts/bench_verify.py --rows 200000 --rounds 2     to see that it works
python scripts/bench_verify.py --reladiff PYTHON            with reladiff, of that interpreter
python scripts/bench_verify.py --doc        the same, and write the table into docs/verify.md

The rounds are interleaved; ratios are those of medians. Servers work on one core each
(max_parallel_workers_per_gather = 0), and both at once where a tool asks both at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from bench_servers import USERS, Servers, keep, put, running
from psycopg import sql

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "verify.md"
KEPT = ROOT / "docs" / "performance" / "verify.json"

# The yardstick: what no comparison of whole rows by a hash can do without.
MD5 = "SELECT count(md5(record_send(t))) FROM public.users AS t"
# What people write by hand for a day.
STRING_AGG = """
SELECT created_at::date, count(*), md5(string_agg(md5(t::text), '' ORDER BY id))
  FROM public.users AS t GROUP BY 1 ORDER BY 1
"""
DAMAGED = 10

Cost = tuple[float, int]
"""Seconds, and the client's greatest memory in MB; 0 where the client does nothing."""


def main() -> int:
    """Measure, print, and keep what was found."""
    options = _options()
    with running() as servers:
        found = _measured(servers, options)
    told = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": options.rows,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "command": "python scripts/bench_verify.py",
        "medians": {
            name: {
                "seconds": round(statistics.median(seconds for seconds, _ in costs), 2),
                "mb": max(mb for _, mb in costs),
            }
            for name, costs in found.items()
        },
    }
    text = _table(told)
    print(text)
    if options.doc:
        keep(told, KEPT)
        put(text, PAGE, "costs", "scripts/bench_verify.py")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reladiff", metavar="PYTHON", help="an interpreter that has reladiff")
    parser.add_argument("--doc", action="store_true", help="write docs/verify.md")
    return parser.parse_args()


def _measured(servers: Servers, options: argparse.Namespace) -> dict[str, list[Cost]]:
    servers.make(USERS, options.rows)
    for side in ("source", "dest"):
        servers.execute(side, "ALTER TABLE public.users ADD PRIMARY KEY (id)")
        servers.execute(side, "CREATE INDEX ON public.users (created_at)")
    _copypipe(servers, "copy", "public.users", "--all", "--yes", "--no-ledger")
    for side in ("source", "dest"):
        servers.execute(side, "VACUUM (ANALYZE) public.users")
    days = _days(options.rows)
    ways: dict[str, Callable[[], Cost]] = {
        "count(md5(record_send(t))), the slower server": lambda: _slower(servers, MD5),
        "md5(string_agg(..)) of each day, both servers": lambda: _slower(servers, STRING_AGG),
        "copypipe verify --all, equal": lambda: _copypipe(
            servers, "verify", "public.users", "--all"
        ),
        "copypipe verify, day by day, equal": lambda: _copypipe(
            servers, "verify", "public.users", *days
        ),
    }
    if options.reladiff:
        ways["reladiff, equal"] = lambda: _reladiff(servers, options.reladiff)
    found = _rounds(ways, options.rounds)
    _damage(servers, options.rows)
    damaged: dict[str, Callable[[], Cost]] = {
        f"copypipe verify --all, {DAMAGED} rows differ": lambda: _copypipe(
            servers, "verify", "public.users", "--all", code=4
        ),
        f"copypipe verify, day by day, {DAMAGED} rows differ": lambda: _copypipe(
            servers, "verify", "public.users", *days, code=4
        ),
    }
    if options.reladiff:
        damaged[f"reladiff, {DAMAGED} rows differ"] = lambda: _reladiff(servers, options.reladiff)
    found |= _rounds(damaged, options.rounds)
    copies: dict[str, Callable[[], Cost]] = {
        f"copypipe copy --all, --verify {verify}": lambda verify=verify: _copied(servers, verify)
        for verify in ("count", "checksum")
    }
    return found | _rounds(copies, options.rounds)


def _days(rows: int) -> Sequence[str]:
    """Return the range of the table: a row a second from 2018 on."""
    after = datetime(2018, 1, 1, tzinfo=UTC) + timedelta(seconds=rows, days=1)
    return ("--from", "2018-01-01", "--to", str(after.date()), "--quiet")


def _rounds(ways: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            cost = way()
            found[name].append(cost)
            print(f"  {number + 1}  {name}: {cost[0]:.2f} s", file=sys.stderr, flush=True)
    return found


def _slower(servers: Servers, query: str) -> Cost:
    """Return how long the slower server takes, both at work."""
    seconds: list[float] = []

    def ask(side: str) -> None:
        with psycopg.connect(servers.conninfo(side, "unix")) as connection:
            began = time.monotonic()
            connection.execute(sql.SQL(query)).fetchall()  # type: ignore[arg-type]
            seconds.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(side,)) for side in ("source", "dest")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(seconds), 0


def _copied(servers: Servers, verify: str) -> Cost:
    servers.settle()
    words = ("--all", "--yes", "--clear", "truncate", "--no-ledger", "--verify", verify)
    return _copypipe(servers, "copy", "public.users", *words)


def _copypipe(servers: Servers, *words: str, code: int = 0) -> Cost:
    environment = {
        **os.environ,
        "COPYPIPE_SOURCE": servers.conninfo("source", "unix"),
        "COPYPIPE_DEST": servers.conninfo("dest", "unix"),
    }
    return _timed([sys.executable, "-m", "copypipe", *words], environment, code)


def _reladiff(servers: Servers, python: str) -> Cost:
    """Compare all columns by its own bisection, with its own threads."""
    uris = []
    for side in ("source", "dest"):
        known = servers.parameters(side, "tcp")
        password = f":{known['password']}" if "password" in known else ""
        where = f"{known['host']}:{known['port']}/{known['dbname']}"
        uris += [f"postgresql://{known['user']}{password}@{where}", "users"]
    columns = [word for name in USERS.names if name != "id" for word in ("-c", name)]
    words = [python, "-m", "reladiff", *uris, "-k", "id", *columns, "--stats"]
    return _timed(words, dict(os.environ), None)


def _timed(words: Sequence[str], environment: dict[str, str], code: int | None) -> Cost:
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # which tells of this child alone
        seconds = time.monotonic() - began
        errors.seek(0)
        ended = os.waitstatus_to_exitcode(status)
        if code is not None and ended != code:
            raise SystemExit(f"{' '.join(words)}: {ended}\n{errors.read().decode()}")
    return seconds, usage.ru_maxrss // 1024


def _damage(servers: Servers, rows: int) -> None:
    step = rows // DAMAGED
    servers.execute(
        "dest",
        "UPDATE public.users SET updated_at = created_at + interval '1 microsecond'"  # noqa: S608
        f" WHERE id % {step} = {step // 2}",
    )


def _table(told: dict[str, Any]) -> str:
    medians = told["medians"]
    yardstick = next(iter(medians.values()))["seconds"]
    lines = [
        f"{told['rows']:,} rows of eleven columns, medians of {told['rounds']} interleaved rounds, "
        f"{told['cores']} cores, {told['date']} (`{told['command']}`):",
        "",
        "| | seconds | of the first | client memory |",
        "|---|---|---|---|",
    ]
    for name, cost in medians.items():
        memory = f"{cost['mb']} MB" if cost["mb"] else ""
        lines.append(
            f"| {name} | {cost['seconds']} | {cost['seconds'] / yardstick:.2f} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
