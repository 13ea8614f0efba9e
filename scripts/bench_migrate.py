"""Measure `copypipe migrate` beside what people move whole tables with, on two servers of its own.

python scripts/bench_migrate.py                        all data sets, 7 rounds: some 40 minutes
python scripts/bench_migrate.py --only users --rounds 3
python scripts/bench_migrate.py --pgcopydb PATH        with pgcopydb too (else the one on PATH)
python scripts/bench_migrate.py --doc                  the same, and write docs/migrate.md

Each data set is a database of its own. In a round each way moves it once into a database that was
made for that, in an order that changes from round to round; before, both servers have a checkpoint.
A ratio is taken of two runs of one round: copypipe's to the best of the others. CPU is that of the
clients, with all their children. Every way ends with all indexes, keys and statistics: behind those
that leave statistics to somebody else, vacuumdb gathers them, as many tables at a time (psql those
of a partitioned table, which vacuumdb and pgcopydb leave out), which counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from bench_servers import SETTINGS, USERS, Servers, keep, put, running
from bench_ways import make_packages

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "migrate.md"
KEPT = ROOT / "docs" / "performance" / "migrate.json"

TARGETS = {"wall": 0.85, "cpu": 1.0}

JOBS = 2

COPYPIPE = "copypipe migrate"
CHECKED = "copypipe migrate --verify checksum"


@dataclass(frozen=True, slots=True)
class Data:
    """One data set."""

    name: str
    title: str
    statements: str
    """That make it; {n} stands for a hundredth of its size."""
    root: str | None = None
    """A partitioned table, whose own statistics few gather."""


DATA = (
    Data(
        "users",
        "2 M users, a primary key, a unique index and an index",
        """
        CREATE TABLE public.users ({columns});
        INSERT INTO public.users SELECT {values} FROM generate_series(1, {n} * 20000) AS i;
        ALTER TABLE public.users ADD PRIMARY KEY (id);
        CREATE UNIQUE INDEX ON public.users (email);
        CREATE INDEX ON public.users (created_at)
        """,
    ),
    Data(
        "narrow",
        "5 M narrow rows, a primary key",
        """
        CREATE TABLE public.narrow (id bigint PRIMARY KEY, at timestamptz, amount int, kind int);
        INSERT INTO public.narrow
        SELECT i, '2018-01-01Z'::timestamptz + i * '1 second'::interval, i * 7919 % 1000000, i % 100
          FROM generate_series(1, {n} * 50000::bigint) AS i
        """,
    ),
    Data(
        "toast",
        "1 GB of documents, mostly TOAST",
        """
        CREATE TABLE public.documents (id bigint PRIMARY KEY, title text, body text);
        ALTER TABLE public.documents ALTER COLUMN body SET STORAGE EXTERNAL;
        INSERT INTO public.documents
        SELECT i, 'document ' || i, repeat(md5(i::text), 312)
          FROM generate_series(1, {n} * 1000) AS i
        """,
    ),
    Data(
        "monthly",
        "24 monthly partitions, 2 M rows",
        """
        CREATE TABLE public.event (id bigint, at timestamptz NOT NULL, kind int, payload text,
                                   PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        DO $$ BEGIN FOR m IN 0..23 LOOP EXECUTE format(
            'CREATE TABLE public.event_%s PARTITION OF public.event FOR VALUES FROM (%L) TO (%L)',
            m, '2018-01-01Z'::timestamptz + m * interval '1 month',
            '2018-01-01Z'::timestamptz + (m + 1) * interval '1 month'); END LOOP; END $$;
        INSERT INTO public.event
        SELECT i, '2018-01-01Z'::timestamptz + i * (interval '729 days' / ({n} * 20000)), i % 100,
               md5(i::text)
          FROM generate_series(1, {n} * 20000) AS i;
        CREATE INDEX ON public.event (at)
        """,
        root="public.event",
    ),
    Data(
        "orders",
        "two tables with a foreign key, 0.5 M and 2 M rows",
        """
        CREATE TABLE public.customer (id bigint PRIMARY KEY, name text NOT NULL);
        INSERT INTO public.customer
        SELECT i, 'customer ' || i FROM generate_series(1, {n} * 5000) AS i;
        CREATE TABLE public.purchase (
            id bigint PRIMARY KEY, customer bigint NOT NULL REFERENCES public.customer,
            amount numeric(10, 2), at timestamptz);
        INSERT INTO public.purchase
        SELECT i, 1 + i % ({n} * 5000), i % 10000 / 7.0,
               '2018-01-01Z'::timestamptz + i * '1 s'::interval
          FROM generate_series(1, {n} * 20000) AS i;
        CREATE INDEX ON public.purchase (customer)
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run cost."""

    wall: float
    cpu: float
    """Of the clients, in seconds."""


def main() -> int:
    """Measure, print, and keep what was found; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=[data.name for data in DATA])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=int, default=100, help="percent of the full size")
    parser.add_argument("--pgcopydb", default=shutil.which("pgcopydb"), metavar="PATH")
    parser.add_argument("--without", action="append", default=[], metavar="WAY")
    parser.add_argument("--doc", action="store_true", help="write docs/migrate.md")
    options = parser.parse_args()
    chosen = [data for data in DATA if not options.only or data.name in options.only]
    found: dict[str, dict[str, list[Cost]]] = {}
    with running() as servers, tempfile.TemporaryDirectory() as folder:
        # For all of them the programs themselves: Debian's wrapper would start each by way of Perl.
        bindir = servers.source.binaries.bindir
        if all((bindir / each).exists() for each in ("psql", "pg_dump", "pg_restore")):
            os.environ["PATH"] = f"{bindir}{os.pathsep}{os.environ['PATH']}"
        packages = Path(folder) / "packages"
        packages.mkdir()
        found_packages = make_packages(packages, None)
        scan = "compiled" if "compiled" in found_packages else "interpreted"
        ways = _ways(Path(folder), options.pgcopydb, found_packages[scan])
        ways = {way: text for way, text in ways.items() if way not in options.without}
        programs = {**_versions(servers, options.pgcopydb), "scan": scan}
        for data in chosen:
            _make(servers, data, options.scale)
            found[data.name] = {way: [] for way in ways}
            for number in range(options.rounds):
                order = list(ways)
                random.Random(number).shuffle(order)  # noqa: S311 - an order, not a secret
                for way in order:
                    found[data.name][way].append(_run(servers, data, ways[way], Path(folder)))
                    _check(servers, data, way, number)
                told = ", ".join(
                    f"{way} {costs[-1].wall:.1f}" for way, costs in found[data.name].items()
                )
                print(f"  {data.name} {number + 1} of {options.rounds}: {told}", file=sys.stderr)
            _drop(servers, data)
    told = _told(found, options, programs)
    text = table(told)
    print(text)
    if options.doc:
        keep(told, KEPT)
        put(text, PAGE, "measured", "scripts/bench_migrate.py")
    return 0 if all(told["met"].values()) else 1


def _ways(folder: Path, pgcopydb: str | None, package: Path) -> dict[str, str]:
    """Return the command of each way, with $SOURCE and $DEST in it.

    copypipe is the one in that folder.
    """
    archive = shlex.quote(str(folder / "archive"))
    state = shlex.quote(str(folder / "pgcopydb"))
    analyze = (
        'if [ "$ROOT" ]; then psql -X -q -d "$DEST" -c "ANALYZE $ROOT"; '
        f'else vacuumdb --quiet --analyze-only --jobs {JOBS} -d "$DEST"; fi'
    )
    copypipe = f"PYTHONPATH={shlex.quote(str(package))} {shlex.quote(sys.executable)} -m copypipe"
    copypipe += f" migrate --all-tables --jobs {JOBS} --quiet"
    copypipe += ' --source "$SOURCE" --dest "$DEST"'
    ways = {
        "pg_dump -Fd -j2, pg_restore -j2": f'pg_dump -Fd -j{JOBS} -Z0 -f {archive} -d "$SOURCE" && '
        f'pg_restore -j{JOBS} --no-owner -d "$DEST" {archive} && {{ {analyze}; }}',
        "pg_dump | psql": 'pg_dump --no-owner -d "$SOURCE" | '
        f'psql -X -q -v ON_ERROR_STOP=1 -o /dev/null -d "$DEST" && {{ {analyze}; }}',
    }
    if pgcopydb is not None:
        ways["pgcopydb"] = (
            f'{shlex.quote(pgcopydb)} clone --source "$SOURCE" --target "$DEST" --dir {state} '
            f"--table-jobs {JOBS} --index-jobs {JOBS} --no-owner --no-acl --use-copy-binary "
            "--split-tables-larger-than 512MB "
            '&& if [ "$ROOT" ]; then psql -X -q -d "$DEST" -c "ANALYZE $ROOT"; fi'
        )
    ways[COPYPIPE] = copypipe
    ways[CHECKED] = f"{copypipe} --verify checksum"
    return ways


def _versions(servers: Servers, pgcopydb: str | None) -> dict[str, str]:
    found = {"server": str(servers.source.binaries.version)}
    for program in ("pg_dump", "psql", *([pgcopydb] if pgcopydb else [])):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        version = re.search(r"\d+\.[\w.]+", said.stdout + said.stderr)
        found[Path(program).name] = version[0] if version else "?"
    return found


def _execute(server: Any, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
    with psycopg.connect(server.dsn(socket=True, dbname=database), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def _statements(data: Data, scale: int) -> str:
    text = data.statements.replace("{n}", str(scale))
    return text.replace("{columns}", USERS.columns).replace("{values}", USERS.values)


def _make(servers: Servers, data: Data, scale: int) -> None:
    _execute(servers.source, f"CREATE DATABASE {data.name}")
    _execute(servers.source, _statements(data, scale), data.name)
    _execute(servers.source, "VACUUM (FREEZE, ANALYZE)", data.name)


def _drop(servers: Servers, data: Data) -> None:
    for server in (servers.source, servers.dest):
        _execute(server, f"DROP DATABASE IF EXISTS {data.name}")


def _run(servers: Servers, data: Data, command: str, folder: Path) -> Cost:
    """Move a data set once, into a new database."""
    _execute(servers.dest, f"DROP DATABASE IF EXISTS {data.name}")
    _execute(servers.dest, f"CREATE DATABASE {data.name}")
    for left in ("archive", "pgcopydb"):
        shutil.rmtree(folder / left, ignore_errors=True)
    servers.settle()
    environment = {
        **os.environ,
        "SOURCE": servers.source.dsn(socket=True, dbname=data.name),
        "DEST": servers.dest.dsn(socket=True, dbname=data.name),
        "ROOT": data.root or "",
    }
    log = folder / "log"
    with log.open("w") as output:
        began = time.monotonic()
        child = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],  # noqa: S607 - found in PATH
            env=environment,
            cwd=folder,  # where there is no other copypipe
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
    if child.returncode:
        raise SystemExit(f"{command}\n{log.read_text()[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime)


_FACTS = """
SELECT (SELECT sum((xpath('/row/c/text()', query_to_xml(
            format('SELECT count(*) AS c FROM %I.%I', n.nspname, c.relname), false, true, ''))
        )[1]::text::bigint) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND n.nspname = 'public'),
       (SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND i.indisvalid),
       (SELECT count(*) FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
         WHERE n.nspname = 'public' AND c.convalidated),
       (SELECT count(DISTINCT (starelid, stainherit))
          FROM pg_statistic s JOIN pg_class c ON c.oid = starelid
          JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public'
           AND c.relkind IN ('r', 'p'))
"""


def _check(servers: Servers, data: Data, way: str, number: int) -> None:
    """See to it that rows, indexes, keys and statistics are there."""
    if number:
        return
    source, dest = (
        _execute(server, _FACTS, data.name) for server in (servers.source, servers.dest)
    )
    if source != dest:
        raise SystemExit(f"{way}, {data.name}: {source} became {dest}")


def _ratios(ways: Mapping[str, Sequence[Cost]], way: str, what: str) -> list[float]:
    """Return the ratio of a way to the best of the others, round by round."""
    others = [costs for name, costs in ways.items() if not name.startswith("copypipe")]
    return [
        getattr(own, what) / min(getattr(each, what) for each in theirs)
        for own, *theirs in zip(ways[way], *others, strict=True)
    ]


def _told(
    found: Mapping[str, Mapping[str, Sequence[Cost]]],
    options: argparse.Namespace,
    programs: Mapping[str, str],
) -> dict[str, Any]:
    sets: dict[str, Any] = {}
    met: dict[str, bool] = {}
    for name, ways in found.items():
        sets[name] = {
            "ways": {
                way: {
                    "wall": [round(cost.wall, 3) for cost in costs],
                    "cpu": [round(cost.cpu, 3) for cost in costs],
                }
                for way, costs in ways.items()
            }
        }
        for way in (COPYPIPE, CHECKED):
            if way not in ways:
                continue
            for what, target in TARGETS.items():
                ratios = _ratios(ways, way, what)
                sets[name][f"{way} {what}"] = ratios
                if way == COPYPIPE:
                    met[f"{name} {what}"] = statistics.median(ratios) <= target
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "programs": dict(programs),
        "settings": SETTINGS,
        "rounds": options.rounds,
        "scale": options.scale,
        "sets": sets,
        "met": met,
    }


def table(told: Mapping[str, Any]) -> str:
    """Return what was measured as a table, and what became of the targets."""
    titles = {data.name: data.title for data in DATA}
    lines = [
        "| data | way | wall, s | client CPU, s | wall to the best of the others | CPU to it |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in told["sets"].items():
        for way, costs in each["ways"].items():
            wall, cpu = (statistics.median(costs[what]) for what in ("wall", "cpu"))
            ratios = ["", ""]
            if f"{way} wall" in each:
                ratios = [_spread(each[f"{way} {what}"]) for what in ("wall", "cpu")]
            told_way = way.replace("|", "\\|")
            lines.append(
                f"| {titles[name]} | `{told_way}` | {wall:.1f} | {cpu:.2f} | {' | '.join(ratios)} |"
            )
    versions = {**told["programs"]}
    scan = versions.pop("scan")
    settings = [f"{name} = {value}" for name, value in SETTINGS.items() if name[:4] != "log_"]
    programs = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines += [
        "",
        f"Medians of {told['rounds']} interleaved rounds on {told['machine']}, {told['when']}, "
        f"with {programs}, {scan} scan; ratios round by round, with their range. Targets: wall at "
        f"most {TARGETS['wall']:g}, CPU at most {TARGETS['cpu']:g}. {_verdict(told['met'])} "
        f"Settings of both servers: {', '.join(settings)}; fsync and full_page_writes are off.",
    ]
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def _verdict(met: Mapping[str, bool]) -> str:
    missed = [name for name, is_met in met.items() if not is_met]
    return f"Missed: {', '.join(missed)}." if missed else "All were met."


if __name__ == "__main__":
    sys.exit(main())
