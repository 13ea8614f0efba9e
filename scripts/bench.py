"""Measure copypipe against `psql | psql` and others, on two servers of its own.

python scripts/bench.py            everything: three quarters of an hour, on a quiet machine
python scripts/bench.py --quick    two minutes, to see that it works; too little to judge by
python scripts/bench.py --render   write tables and charts anew from docs/performance/results.json

Everybody does equal work: the same SELECT, the same TRUNCATE and COPY .. (FREEZE) in one
transaction, into a table that holds the rows of the run before. Between two runs both servers have
a checkpoint. Who is compared runs in turns, in an order that changes from round to round; a ratio
is taken of two runs of the same round. CPU is that of the clients alone, from their start to their
end, with all their children.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import bench_report as report
import psycopg
from bench_report import MB, Fault, Results, Run
from bench_servers import (
    LINKS,
    NARROW,
    SETTINGS,
    SHAPES,
    WIDE,
    Servers,
    Shape,
    of_width,
    one_value,
    running,
)
from bench_ways import (
    ASYNCPG,
    COMPILED,
    COPY_IN,
    COPY_OUT,
    INSERTS,
    INTERPRETED,
    LIBPQ,
    PSQL,
    PSQL_TEXT,
    PSYCOPG,
    ROOT,
    VALUES,
    Cost,
    Job,
    Programs,
    RunFailed,
    Way,
    find_psql,
    make_packages,
    run,
    version,
)

OUT = ROOT / "docs" / "performance"
PARTIAL_OUT = ROOT / "build" / "performance"

# Who can take part only where a package is installed.
NEEDS = {ASYNCPG: "asyncpg", VALUES: "psycopg2", INSERTS: "psycopg2"}

# The load average, from before the beginning, up to which a machine passes for idle.
QUIET = 0.5

# What a chunk adds to what the relay has told of: it tells after it has handed one on.
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured, and how often."""

    main_bytes: Mapping[str, int]
    """Of each table, by its name."""
    pairs: int
    """Rounds of those that targets are about."""
    few: int
    """Rounds of the others."""
    start_rows: int
    rows: Sequence[int]
    bytes: Sequence[int]
    widths: Sequence[int]
    width_bytes: int
    memory: Sequence[tuple[str, Shape, int]]
    """Name, shape, rows."""


def _memory(large: int, value: int) -> list[tuple[str, Shape, int]]:
    return [
        ("10 MB", NARROW, 10 * MB // NARROW.row_bytes),
        (f"{large // MB} MB", WIDE, large // WIDE.row_bytes),
        (f"a row of {value // MB} MB", one_value(value), 1),
    ]


FULL = Scale(
    # Some four seconds for psql each, so that a start-up of a quarter second is a part of what is
    # measured and not most of it; what it is to less data, the growth tells.
    main_bytes={"narrow": 400 * MB, "varying": 400 * MB, "users": 500 * MB, "wide": 1_000 * MB},
    pairs=11,
    few=3,
    start_rows=100_000,
    rows=(1_000, 10_000, 100_000, 1_000_000, 5_000_000),
    bytes=(10 * MB, 100 * MB, 250 * MB, 1_000 * MB),
    widths=(32, 64, 128, 256, 512, 2048, 8000),
    width_bytes=100 * MB,
    memory=_memory(1_000 * MB, 300 * MB),
)
QUICK = Scale(
    main_bytes=dict.fromkeys((shape.name for shape in SHAPES), 20 * MB),
    pairs=3,
    few=1,
    start_rows=3_000,
    rows=(1_000, 100_000),
    bytes=(10 * MB, 50 * MB),
    widths=(32, 512, 8000),
    width_bytes=20 * MB,
    memory=_memory(100 * MB, 30 * MB),
)


@dataclass
class Bench:
    """One measurement."""

    servers: Servers
    programs: Programs
    scale: Scale
    results: Results
    save: Callable[[], None]
    missing: set[Way] = field(default_factory=set)

    def make(self, shape: Shape, rows: int) -> tuple[int, int]:
        """Make a table on both sides and copy it once, so that no first run makes files and WAL.

        Returns its rows and bytes.
        """
        data = self.servers.make(shape, rows)
        job = Job(self.servers, shape, "unix")
        run(self.programs.commands(PSQL, job), self.programs.environment(PSQL))
        return rows, data

    def rounds(
        self, part: str, job: Job, size: tuple[int, int], turns: dict[Way, int], label: str = ""
    ) -> None:
        """Run the ways in turns, each as often as `turns` says, and keep what they cost.

        `size` is rows and bytes of the table. The ways that run most often stay together, so that
        a pair is not torn apart by a slow one.
        """
        turns = {way: times for way, times in turns.items() if way not in self.missing}
        most = max(turns.values())
        often = [way for way, times in turns.items() if times == most]
        seldom = [way for way, times in turns.items() if times < most]
        failed: set[Way] = set()
        for number in range(most):
            now = [way for way in _turned(seldom, number) if number < turns[way]]
            for way in [*_turned(often, number), *now]:
                if way not in failed and not self.one(part, job, size, way, number, label):
                    failed.add(way)
        self.save()
        _say(f"{part:6} {LINKS[job.link]:11} {job.shape.title:9}", self._summary(part, job, turns))

    def one(
        self, part: str, job: Job, size: tuple[int, int], way: Way, number: int, label: str
    ) -> bool:
        """Run one way once and keep what it cost; returns whether it worked."""
        self.servers.settle()
        rows, data = size
        cost: Cost | None = None
        try:
            cost = run(self.programs.commands(way, job), self.programs.environment(way))
            self._check(job, way, rows, data, cost, thorough=number == 0)
        except RunFailed as error:
            cost = None
            self.note(f"{way.title}, {LINKS[job.link]}, {job.shape.title}: {_private(error)}")
        self.results.runs.append(
            Run(
                part=part,
                link=job.link,
                table=label or job.shape.name,
                way=way.name,
                round=number,
                rows=rows,
                bytes=data,
                wall=round(cost.wall, 4) if cost else None,
                cpu=round(cost.cpu, 4) if cost else None,
                rss=cost.rss if cost else None,
            )
        )
        return cost is not None

    def note(self, text: str) -> None:
        """Keep what a reader must know."""
        if text not in self.results.notes:
            self.results.notes.append(text)
            _say("note", text)

    def _check(
        self, job: Job, way: Way, rows: int, data: int, cost: Cost, *, thorough: bool
    ) -> None:
        """Raise RunFailed unless the rows are there, and went the way that was meant."""
        if way in (COMPILED, INTERPRETED, LIBPQ):
            done = json.loads(cost.output)
            carrier = {"tls": "tls"}.get(job.link, "socket")
            meant = ("libpq", "libpq") if way is LIBPQ else (carrier, way.name)
            told = {"rows": done["rows"], "bytes": done["bytes"]}
            went = (done["transport"], done["scan"])
            if (told, went) != ({"rows": rows, "bytes": data}, meant):
                raise RunFailed(f"not what was meant: {went}, {told} of {rows} rows, {data} bytes")
        if thorough and way is not COPY_OUT:
            ((found,),) = self.servers.execute("dest", f"SELECT count(*) FROM {job.table}")  # noqa: S608 - our own text
            if found != rows:
                raise RunFailed(f"{found} of {rows} rows have come")

    def _summary(self, part: str, job: Job, turns: dict[Way, int]) -> str:
        found = []
        for way in turns:
            runs = self.results.find(part=part, link=job.link, way=way.name)
            mine = [run for run in runs if run.table == runs[-1].table]
            cpu = statistics.median(run.cpu or 0 for run in mine) if mine else float("nan")
            wall = statistics.median(run.wall or 0 for run in mine) if mine else float("nan")
            found.append(f"{way.name} {cpu:.2f}/{wall:.2f}")
        return "  ".join(found)


def main() -> None:
    """Measure, print, and store what the options ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    parser.add_argument("--out", type=Path, help="folder for results, tables and charts")
    parser.add_argument(
        "--wheel", type=Path, help="wheel with the compiled scan; else mypyc is run"
    )
    parser.add_argument("--render", action="store_true", help="write anew what was measured before")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these"
    )
    parser.add_argument("--links", nargs="+", choices=list(LINKS), default=list(LINKS))
    chosen = parser.parse_args()
    whole = set(chosen.parts) == set(PARTS) and set(chosen.links) == set(LINKS)
    out: Path = chosen.out or (OUT if whole and not chosen.quick else PARTIAL_OUT)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results.load(out / "results.json") if chosen.render else _measured(chosen, out)
    report.write(results, out)
    print(report.markdown(results))


def _measured(chosen: argparse.Namespace, out: Path) -> Results:
    began = time.monotonic()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="copypipe-bench-") as folder, running() as servers:
        packages = make_packages(Path(folder), chosen.wheel)
        programs = Programs(find_psql(servers), packages)
        results = Results(_about(servers, programs, quick=chosen.quick))
        scale = QUICK if chosen.quick else FULL
        bench = Bench(servers, programs, scale, results, lambda: results.save(out / "results.json"))
        _leave_out(bench)
        if load > QUIET:
            bench.note(f"the machine was busy when this began: load average {load:.1f}")
        links = [link for link in servers.links if link in chosen.links]
        for part in chosen.parts:
            PARTS[part](bench, links)
    results.about["took"] = f"{(time.monotonic() - began) / 60:.0f} minutes"
    return results


def _leave_out(bench: Bench) -> None:
    """Say what cannot be measured here."""
    if not bench.servers.tls:
        bench.note("no TLS: the servers' build has none, or openssl is missing")
    if "compiled" not in bench.programs.packages:
        bench.missing.add(COMPILED)
        bench.note("no compiled scan: mypyc or a C compiler is missing")
    for way, package in NEEDS.items():
        if importlib.util.find_spec(package) is None:
            bench.missing.add(way)
            bench.note(f"{package} is missing (pip install 'copypipe[bench]')")


# --- the parts ---------------------------------------------------------------------------------


def _tables(bench: Bench, links: Sequence[str]) -> None:
    """Every way, every link, every table; and what the servers need by themselves."""
    pairs, few = bench.scale.pairs, bench.scale.few
    for shape in SHAPES:
        rows = -(-bench.scale.main_bytes[shape.name] // shape.row_bytes)
        size = bench.make(shape, rows)
        for link in links:
            # No target is about the interpreted scan over TLS.
            turns = {PSQL: pairs, COMPILED: pairs, INTERPRETED: few if link == "tls" else pairs}
            # No target is about these, and the slowest take a minute.
            others = few if link == "tcp" else 1
            turns |= dict.fromkeys((PSQL_TEXT, PSYCOPG, ASYNCPG, LIBPQ), others)
            bench.rounds("main", Job(bench.servers, shape, link), size, turns)
        _limits(bench, Job(bench.servers, shape, "unix"), size)
        bench.servers.drop(shape)


def _limits(bench: Bench, job: Job, size: tuple[int, int]) -> None:
    """The source's COPY into nothing, the dest's COPY from a file: no client, no connection."""
    file = bench.programs.file(job)
    bench.servers.execute("dest", job.copy_out(to=f"'{file}'"))
    few = bench.scale.few
    bench.rounds("limit", job, size, {COPY_OUT: few, COPY_IN: few})
    file.unlink()


def _starts(bench: Bench, links: Sequence[str]) -> None:
    """The ways people start from, once: they take long."""
    for shape in SHAPES:
        size = bench.make(shape, bench.scale.start_rows)
        ways = dict.fromkeys(report.STARTS, 1)
        bench.rounds("start", Job(bench.servers, shape, "tcp"), size, ways)
        bench.servers.drop(shape)


def _growth(bench: Bench, links: Sequence[str]) -> None:
    """More rows, more bytes, wider rows."""
    scale = bench.scale
    series = [("rows", NARROW, rows) for rows in scale.rows]
    series += [("bytes", WIDE, size // WIDE.row_bytes) for size in scale.bytes]
    series += [("width", of_width(width), scale.width_bytes // width) for width in scale.widths]
    for part, shape, rows in series:
        size = bench.make(shape, rows)
        ways = dict.fromkeys(report.GROWING, scale.few)
        bench.rounds(part, Job(bench.servers, shape, "tcp"), size, ways, f"{rows}")
        bench.servers.drop(shape)


def _memories(bench: Bench, links: Sequence[str]) -> None:
    """Peak memory, whatever a table and a row weigh."""
    for name, shape, rows in bench.scale.memory:
        size = bench.make(shape, rows)
        for link in links:
            ways = [COMPILED, INTERPRETED] + ([PSQL, LIBPQ] if link == "tcp" else [])
            job = Job(bench.servers, shape, link)
            bench.rounds("memory", job, size, dict.fromkeys(ways, 1), name)
        bench.servers.drop(shape)


def _faults(bench: Bench, links: Sequence[str]) -> None:
    """An error of the dest after a tenth of the rows: how soon and after how much the source ends.

    Moments are those of the servers' logs, bytes those of the Progress events.
    """
    rows = bench.scale.main_bytes[NARROW.name] // NARROW.row_bytes
    check = f", CHECK (id <> {rows // 10})"
    bench.servers.make(NARROW, rows, check=check)
    way = INTERPRETED if COMPILED in bench.missing else COMPILED
    for link, transport in report.FAULTS:
        if link in links:
            for _ in range(bench.scale.few):
                bench.servers.settle()
                _fault(bench, Job(bench.servers, NARROW, link), way, transport)
    if "tcp" in links:
        _fault(bench, Job(bench.servers, NARROW, "tcp"), PSQL, "-")
    bench.servers.drop(NARROW)


def _fault(bench: Bench, job: Job, way: Way, transport: str) -> None:
    logs = [server.log_path for server in (bench.servers.source, bench.servers.dest)]
    starts = [log.stat().st_size for log in logs]
    shows = {"options": "-c log_disconnections=on"}
    told: list[tuple[float, int]] = []
    environment = bench.programs.environment(way)
    try:
        if way is PSQL:
            run(bench.programs.commands(PSQL, job, **shows), environment)
        else:
            more = {
                "transport": transport,
                "source_conninfo": job.servers.conninfo("source", job.link, **shows),
                "dest_conninfo": job.servers.conninfo("dest", job.link),
            }
            commands = bench.programs.commands(Way("fault", ""), job, **more)
            told = json.loads(run(commands, environment).output)["told"]
    except RunFailed as error:
        if way is not PSQL:  # psql ends with the error, as it should
            bench.note(f"{way.title}, {LINKS[job.link]}, dest's error: {_private(error)}")
            return
    _wait_for_the_last(bench.servers)
    gone = max(_logged(logs[0], starts[0], "disconnection"))
    failed = min(_logged(logs[1], starts[1], "violates check constraint"))
    read = None
    if told:
        before = max((size for moment, size in told if moment <= failed), default=0)
        read = told[-1][1] - before + CHUNK_BYTES
    bench.results.faults.append(Fault(job.link, way.name, transport, round(gone - failed, 3), read))
    bench.save()
    _say(f"fault  {LINKS[job.link]:11} {way.name} {transport}", f"{gone - failed:.3f} s, {read}")


def _wait_for_the_last(servers: Servers, patience: float = 60.0) -> None:
    """Wait until the source serves nobody but us."""
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + patience
    while servers.execute("source", f"SELECT 1 FROM pg_stat_activity WHERE {others}"):  # noqa: S608 - our own text
        if time.monotonic() > deadline:
            raise SystemExit("a backend of the source does not end")
        time.sleep(0.05)
    time.sleep(0.2)  # it leaves pg_stat_activity first and logs then


def _logged(log: Path, start: int, text: str, patience: float = 60.0) -> list[float]:
    """Return the moments of the lines with that text after `start`; waits for the first."""
    deadline = time.monotonic() + patience
    while True:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
        if found := [float(line.split()[0]) for line in lines if text in line]:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"no {text!r} in a server's log")
        time.sleep(0.05)


PARTS: dict[str, Callable[[Bench, Sequence[str]], None]] = {
    "tables": _tables,
    "starts": _starts,
    "growth": _growth,
    "memory": _memories,
    "faults": _faults,
}


# --- about -------------------------------------------------------------------------------------


def _about(servers: Servers, programs: Programs, *, quick: bool) -> dict[str, object]:
    """Return what was measured on: no name and no path of this machine."""
    tell = {name: version(package) for name, package in programs.packages.items()}
    installed = []
    for package in ("asyncpg", "psycopg2-binary"):
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "quick": quick,
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB; servers and clients on it",
        "system": f"{platform.system()} {platform.release()}",
        "servers": f"both PostgreSQL {servers.source.binaries.version}, psql of the same; "
        f"fsync and full_page_writes off, {_settings()}",
        "TLS": servers.tls or "none",
        "Python": f"{platform.python_version()}, psycopg {psycopg.__version__}, "
        + ", ".join(installed),
        **{f"the {name} scan": said for name, said in tell.items()},
    }


def _settings() -> str:
    return ", ".join(
        f"{name} {value}" for name, value in SETTINGS.items() if name != "log_line_prefix"
    )


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _turned(ways: Sequence[Way], number: int) -> Sequence[Way]:
    """Return the ways in the order of that round: each order is followed by its reverse."""
    orders = [
        order
        for one in itertools.permutations(ways)
        if one and ways.index(one[0]) <= ways.index(one[-1])
        for order in dict.fromkeys((one, one[::-1]))
    ]
    return orders[number % len(orders)] if orders else ()


def _private(error: RunFailed) -> str:
    """Return the last line of what was said, without paths."""
    return re.sub(r"/[\w./-]+", "(path)", str(error).splitlines()[-1])[:300]


def _say(what: str, text: str) -> None:
    print(f"{what}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
