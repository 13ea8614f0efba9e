"""Measure what many slices cost before a row moves, and what bounds are worth at the source.

python scripts/bench_plans.py               10 years of days, a minute and a half

Ten years of days of one row: the plan, a range that is done, the calendar. Then one day of 100 in a
million rows that lie in the order of their time: by the bounds that copypipe sends, and by
`created_at::date = ..`, with and without an index, as the median of 5 in one session.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psycopg
from bench_servers import Servers, running

from copypipe import backfills, slices
from copypipe.requests import Endpoint, Request

FIRST, AFTER, DAYS = "2010-01-01", "2019-12-30", 3650

BY_BOUNDS = "created_at >= '2018-02-10Z' AND created_at < '2018-02-11Z'"
BY_CAST = "created_at::date = '2018-02-10'"


def main() -> int:
    """Measure and print."""
    with running() as servers:
        for side in ("source", "dest"):
            servers.execute(side, "CREATE TABLE public.t (id int, created_at timestamptz)")
            servers.execute(side, "CREATE INDEX ON public.t (created_at)")
        servers.execute(
            "source",
            f"INSERT INTO public.t SELECT i, '{FIRST} 12:00Z'::timestamptz + i * interval '1 day'"  # noqa: S608
            f" FROM generate_series(0, {DAYS - 1}) AS i",
        )
        servers.execute("source", "VACUUM (ANALYZE) public.t")
        _plans(servers)
        _days(servers)
    return 0


def _plans(servers: Servers) -> None:
    sides = {side: servers.conninfo(side, "unix") for side in ("source", "dest")}
    for zone in ("UTC", "Europe/Vienna"):
        request = Request(
            source=Endpoint(sides["source"], "here"),
            dest=Endpoint(sides["dest"], "here"),
            table="public.t",
            wanted=slices.Between(slices.parse_bound(FIRST), slices.parse_bound(AFTER)),
            timezone=zone,
        )
        began = time.monotonic()
        found, outcomes = backfills.backfill(request, backfills.Options())
        print(f"{found.parts} days of {zone} planned: {time.monotonic() - began:.2f} s")
        outcomes.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"with Python, psycopg and all of that: {peak} MB")
    words = ("public.t", "--from", FIRST, "--to", AFTER)
    _timed(sides, "all copied, 2 jobs", "backfill", *words, "--jobs", "2", "-q")
    for _ in range(3):
        _timed(sides, "the same again", "backfill", *words, "--jobs", "2", "-q")
    _timed(sides, "the calendar", "status", *words)


def _timed(sides: dict[str, str], name: str, *words: str) -> None:
    environment = {
        **os.environ,
        "COPYPIPE_SOURCE": sides["source"],
        "COPYPIPE_DEST": sides["dest"],
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "copypipe", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name}: {os.waitstatus_to_exitcode(status)}")
    print(f"{name}: {time.monotonic() - began:.2f} s, {usage.ru_maxrss // 1024} MB")


def _days(servers: Servers) -> None:
    servers.execute(
        "source", "CREATE TABLE public.e (id bigint, name text, created_at timestamptz)"
    )
    servers.execute(
        "source",
        "INSERT INTO public.e SELECT i, md5(i::text),"
        " '2018-01-01Z'::timestamptz + i * interval '8.64 s' FROM generate_series(0, 999999) AS i",
    )
    with psycopg.connect(servers.conninfo("source", "unix"), autocommit=True) as connection:
        for name in ("no index", "an index"):
            if name == "an index":
                connection.execute("CREATE INDEX ON public.e (created_at)")
            connection.execute("VACUUM (ANALYZE) public.e")
            bounds, cast = (
                _median(lambda where=where: connection.execute(_copy(where)))
                for where in (BY_BOUNDS, BY_CAST)
            )
            print(
                f"{name}: a day by its bounds {1000 * bounds:.1f} ms, by a cast "
                f"{1000 * cast:.1f} ms: {cast / bounds:.1f} times"
            )


def _copy(where: str) -> bytes:
    query = f"SELECT id, name, created_at FROM public.e WHERE {where}"  # noqa: S608
    return f"COPY ({query}) TO '/dev/null' (FORMAT binary)".encode()


def _median(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
