"""The contestants of scripts/bench.py: which programs each consists of, and what they cost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench_servers import Servers, Shape

ROOT = Path(__file__).resolve().parents[1]
LOOPS = Path(__file__).with_name("bench_loops.py")

# A run that takes longer hangs.
_PATIENCE_SECONDS = 900.0
# How often the memory of running programs is looked at. What is read is their own high-water mark,
# so only growth in their very last moments can be missed.
_LOOK_SECONDS = 0.02

Commands = list[list[str]]


class RunFailed(Exception):
    """A contestant ended with an error."""


@dataclass(frozen=True, slots=True)
class Job:
    """One table to be copied by one link: the same statements for everybody."""

    servers: Servers
    shape: Shape
    link: str

    @property
    def table(self) -> str:
        """Return the table's name on both sides."""
        return self.shape.table

    @property
    def columns(self) -> str:
        """Return the columns as in SQL."""
        return ", ".join(self.shape.names)

    @property
    def query(self) -> str:
        """Return what is read; the text that copypipe sends has a `WHERE true` more."""
        return f"SELECT {self.columns} FROM {self.table}"  # noqa: S608 - our own text

    @property
    def clear(self) -> str:
        """Return how the dest is cleared, in the transaction that fills it."""
        return f"TRUNCATE TABLE {self.table}"

    def copy_out(self, form: str = "binary", to: str = "STDOUT") -> str:
        """Return the source's COPY."""
        return f"COPY ({self.query}) TO {to} (FORMAT {form})"

    def copy_in(self, form: str = "binary", origin: str = "STDIN") -> str:
        """Return the dest's COPY; FREEZE because copypipe has it after a TRUNCATE."""
        return f"COPY {self.table} ({self.columns}) FROM {origin} (FORMAT {form}, FREEZE true)"

    def as_json(self, **more: object) -> str:
        """Return what `bench_loops.py` needs."""
        return json.dumps(
            {
                "source": self.servers.parameters("source", self.link),
                "dest": self.servers.parameters("dest", self.link),
                "name": self.shape.name,
                "columns": self.shape.names,
                "query": self.query,
                "begin_reading": READ,
                "clear": self.clear,
                "copy_out": self.copy_out(),
                "copy_in": self.copy_in(),
                "insert": f"INSERT INTO {self.table} ({self.columns})",
                **more,
            }
        )


READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to copy a table."""

    name: str
    title: str
    colour: str = "#888888"


PSQL = Way("psql", "psql | psql, binary", "#444444")
PSQL_TEXT = Way("psql-text", "psql | psql, text", "#999999")
PSYCOPG = Way("psycopg", "psycopg's loop", "#cc79a7")
ASYNCPG = Way("asyncpg", "asyncpg", "#e69f00")
COMPILED = Way("compiled", "copypipe, compiled scan", "#0072b2")
INTERPRETED = Way("interpreted", "copypipe, interpreted scan", "#56b4e9")
LIBPQ = Way("libpq", "copypipe --transport libpq", "#009e73")
VALUES = Way("values", "server-side cursor, execute_values of 2000")
INSERTS = Way("inserts", "plain cursor, INSERT for each row")
COPY_OUT = Way("copy-out", "COPY TO '/dev/null'", "#d0d0d0")
COPY_IN = Way("copy-in", "COPY FROM a file", "#d0d0d0")

WAYS = {
    way.name: way
    for way in (
        *(PSQL, PSQL_TEXT, PSYCOPG, ASYNCPG, COMPILED, INTERPRETED, LIBPQ),
        *(VALUES, INSERTS, COPY_OUT, COPY_IN),
    )
}


@dataclass(frozen=True, slots=True)
class Programs:
    """What the contestants are started with."""

    psql: Path
    packages: dict[str, Path]
    """For each scan there is the folder that holds copypipe with it."""

    def commands(self, way: Way, job: Job, **more: str) -> Commands:
        """Return the programs of a way, each of which reads what the one before it writes."""
        if way in (PSQL, PSQL_TEXT):
            form = "binary" if way is PSQL else "text"
            begin = f"BEGIN; {READ}"
            return [
                self._psql(job, "source", begin, job.copy_out(form), "COMMIT", **more),
                self._psql(job, "dest", "BEGIN", job.clear, job.copy_in(form), "COMMIT"),
            ]
        if way is COPY_OUT:
            return [self._psql(job, "source", job.copy_out(to=f"'{os.devnull}'"))]
        if way is COPY_IN:
            file = job.copy_in(origin=f"'{self.file(job)}'")
            return [self._psql(job, "dest", "BEGIN", job.clear, file, "COMMIT")]
        if way in (COMPILED, INTERPRETED, LIBPQ):
            arguments = ["copy", job.table, "--all", "--yes", "--clear", "truncate", "--json"]
            arguments += ["--progress", "none"]
            arguments += ["--transport", "libpq" if way is LIBPQ else "auto"]
            for side in ("source", "dest"):
                arguments += [f"--{side}", job.servers.conninfo(side, job.link)]
            return [[sys.executable, "-m", "copypipe", *arguments]]
        return [[sys.executable, str(LOOPS), way.name, job.as_json(**more)]]

    def file(self, job: Job) -> Path:
        """Return where the dest's own COPY finds the rows."""
        return job.servers.dest.socket_dir / "rows"

    def environment(self, way: Way) -> dict[str, str]:
        """Return a clean environment: nothing of the caller's changes what a driver does."""
        home = str(self.psql.parent)  # there is no .psqlrc, .pgpass nor .postgresql
        clean = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": home}
        if package := self.packages.get("interpreted" if way is LIBPQ else way.name):
            clean["PYTHONPATH"] = str(package)
        return clean

    def _psql(self, job: Job, side: str, *statements: str, **more: str) -> list[str]:
        command = [str(self.psql), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        command += ["-d", job.servers.conninfo(side, job.link, **more)]
        for statement in statements:
            command += ["-c", statement]
        return command


def find_psql(servers: Servers) -> Path:
    """Return psql of the servers' version; Debian's in PATH is a Perl script around it."""
    beside = servers.source.binaries.bindir / "psql"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("psql")
    if found is None:
        raise SystemExit("psql is missing (apt-get install postgresql-client)")
    return Path(found)


def make_packages(folder: Path, wheel: Path | None) -> dict[str, Path]:
    """Return for each scan that can be had a folder with copypipe as it is now.

    The compiled one comes from `wheel`, else it is compiled here; where there is no compiler there
    is none.
    """
    folders = {"interpreted": folder / "interpreted", "compiled": folder / "compiled"}
    for name, place in folders.items():
        place.mkdir()
        if name == "compiled" and wheel is not None:
            shutil.unpack_archive(wheel, place, "zip")
        else:
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
            shutil.copytree(ROOT / "copypipe", place / "copypipe", ignore=ignored)
            if name == "compiled":
                mypyc = [sys.executable, "-m", "mypyc", "copypipe/relay/tight.py"]
                subprocess.run(mypyc, cwd=place, check=False, capture_output=True)
        # What is installed is compiled to bytecode, too; no first run shall pay for it.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(place)], check=True)
    found = {name: place for name, place in folders.items() if f"{name} scan" in version(place)}
    if "interpreted" not in found or (wheel is not None and "compiled" not in found):
        raise SystemExit("copypipe or the wheel does not run, or has not the scan that is meant")
    return found


def version(package: Path) -> str:
    """Return what copypipe in that folder says of itself, "" if it does not run."""
    asked = subprocess.run(
        [sys.executable, "-m", "copypipe", "--version"],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost its programs together, start-up included."""

    wall: float
    """Seconds from the start of the first to the end of the last."""
    cpu: float
    """Seconds of user and system time, of whatever they started, too."""
    rss: int
    """Bytes of memory at the peak of each, added up."""
    output: str
    """What the last one printed."""


def run(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> Cost:
    """Start the programs, each reading what the one before writes, and wait for their ends.

    Raises RunFailed with what they said.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        processes: list[subprocess.Popen[bytes]] = []
        feed = subprocess.DEVNULL
        for number, command in enumerate(commands, 1):
            last = number == len(commands)
            reading, writing = (-1, out.fileno()) if last else os.pipe()
            processes.append(
                subprocess.Popen(
                    command, stdin=feed, stdout=writing, stderr=errors, env=environment, cwd="/"
                )
            )
            # Ours would keep a pipe open whose reader or writer is gone.
            for descriptor in (feed, writing):
                if descriptor >= 0 and descriptor != out.fileno():
                    os.close(descriptor)
            feed = reading
        memory = _Memory([process.pid for process in processes])
        usages = [_ended(process) for process in processes]
        wall = time.monotonic() - began
        peaks = memory.peaks()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
        out.seek(0)
        output = out.read().decode(errors="replace")
    codes = [process.returncode for process in processes]
    if any(codes):
        raise RunFailed(f"ended with {codes}: {said or output.strip()}")
    return Cost(
        wall=wall,
        cpu=sum(usage.ru_utime + usage.ru_stime for usage in usages),
        rss=sum(
            _peak(usage, peaks.get(process.pid, 0))
            for usage, process in zip(usages, processes, strict=True)
        ),
        output=output,
    )


def _ended(process: subprocess.Popen[bytes]) -> resource.struct_rusage:
    """Wait for a program; its usage contains that of its own children."""
    timer = threading.Timer(_PATIENCE_SECONDS, process.kill)
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _peak(usage: resource.struct_rusage, seen: int) -> int:
    """Return a program's peak in bytes.

    What the kernel tells at the end begins with the peak of who started it, on Linux, so that it
    says nothing of a program that stayed below ours; then what was seen counts.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage.ru_maxrss * unit if usage.ru_maxrss > own or not seen else seen


class _Memory:
    """Looks at the high-water marks of running programs until they end; Linux only."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._left = set(pids)
        self._peaks: dict[int, int] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def peaks(self) -> dict[int, int]:
        """Return what was seen, in bytes, once all programs have ended."""
        self._thread.join()
        return self._peaks

    def _look(self) -> None:
        while self._left:
            for pid in list(self._left):
                mark = _high_water(pid)
                if mark is None:
                    self._left.discard(pid)
                else:
                    self._peaks[pid] = mark
            time.sleep(_LOOK_SECONDS)


def _high_water(pid: int) -> int | None:
    """Return the peak of a running program in bytes, None where there is none (any more)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
