"""`run`: the installed command as a process of its own, as a user starts it; `users`: a table.

The process gets a clean environment and an empty home. Whatever it prints is searched for the
canary password and for tracebacks.
"""

import contextlib
import fcntl
import functools
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from plugins.databases import Database, fresh
from plugins.servers import Servers

EXECUTABLE = Path(sys.executable).with_name("copypipe")

# No run of these tests comes near; a process that hangs is killed and fails its test.
PATIENCE = 40.0

TERMINAL = struct.pack("HHHH", 40, 160, 0, 0)  # lines and columns


@dataclass(frozen=True)
class Run:
    """What a finished process said."""

    code: int
    out: str
    err: str
    seconds: float


class Process:
    """A running copypipe. stdin and stderr are a terminal if `tty`; stdout is always a pipe."""

    def __init__(
        self,
        command: list[str],
        env: Mapping[str, str],
        check: Callable[[str], None],
        *,
        input: str | None = None,
        tty: bool = False,
        **options: Any,
    ) -> None:
        self._check = check
        self._input = input
        self._began = time.monotonic()
        self._output: dict[int, bytes] = {}
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._master = None
        if tty:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, TERMINAL)
            streams = {"stdin": slave, "stderr": slave}
        elif input is None:
            streams["stdin"] = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=dict(env), **{"stdout": subprocess.PIPE, **streams, **options}
        )
        if tty:
            os.close(slave)
        self.pid = self.process.pid

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to this process and return when, as time.monotonic tells it."""
        self.process.send_signal(number)
        return time.monotonic()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float = PATIENCE) -> Run:
        """Return what the process said when it ends; one that does not is killed, and a failure."""
        try:
            out, err = self._talk(time.monotonic() + seconds)
        except TimeoutError:
            self.process.kill()
            pytest.fail(f"copypipe still ran after {seconds} s")
        finally:
            self.close()
        run = Run(self.process.returncode, out, err, time.monotonic() - self._began)
        self._check(out)
        self._check(err)
        for text in (out, err):
            assert "Traceback" not in text, f"exit {run.code}:\n{text}"
        return run

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None

    def _talk(self, until: float) -> tuple[str, str]:
        """Feed stdin and read both outputs until the process has ended."""
        errors = self._master if self._master is not None else self._descriptor("stderr")
        output = self._descriptor("stdout")
        if self._input is not None:
            self._write(self._input.encode())
        heard: dict[int, bytes] = {fd: b"" for fd in (output, errors) if fd is not None}
        open_ones = set(heard)
        while open_ones:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready, _, _ = select.select(list(open_ones), [], [], left)
            for fd in ready:
                try:
                    data = os.read(fd, 65536)
                except OSError:  # a pseudo-terminal without its other end: EIO
                    data = b""
                heard[fd] += data
                if not data:
                    open_ones.discard(fd)
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        texts = [
            heard.get(fd, b"").decode(errors="replace") if fd is not None else ""
            for fd in (output, errors)
        ]
        return texts[0], texts[1]

    def _descriptor(self, name: str) -> int | None:
        stream = getattr(self.process, name)
        return stream.fileno() if stream is not None else None

    def _write(self, data: bytes) -> None:
        if self._master is not None:
            os.write(self._master, data)
        elif self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(data)
                self.process.stdin.close()


# Runs its arguments and writes what they used. A process that pytest itself starts is charged with
# pytest's own memory (ru_maxrss counts from before exec on).
_MEASURE = """
import json, os, sys
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, used = os.wait4(pid, 0)
unit = 1 if sys.platform == "darwin" else 1024
with open(sys.argv[1], "w") as file:
    json.dump({"memory": used.ru_maxrss * unit, "cpu": used.ru_utime + used.ru_stime}, file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Used:
    """What a process used; its `prefix` goes before the words of its command."""

    path: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        return (sys.executable, "-S", "-c", _MEASURE, str(self.path))

    @property
    def memory(self) -> int:
        """The most bytes that it had at a time."""
        return json.loads(self.path.read_text())["memory"]


@dataclass
class Command:
    """Starts copypipe; call it to run one to its end."""

    base: dict[str, str]
    check: Callable[[str], None]
    started: list[Process] = field(default_factory=list)

    def __call__(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,
        tty: bool = False,
        **options: Any,
    ) -> Run:
        """Run `copypipe ARGS`; a variable of `env` that is None is not set."""
        return self.start(*args, env=env, input=input, tty=tty, **options).wait()

    def start(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        prefix: tuple[str, ...] = (),
        **options: Any,
    ) -> Process:
        """Start `copypipe ARGS`, after the words of `prefix` (nohup, say)."""
        return self._start([*prefix, str(EXECUTABLE), *args], env, options)

    def shell(self, script: str, *, env: Mapping[str, str | None] | None = None) -> Run:
        """Run a shell script in which the function `copypipe` is our executable."""
        function = f'copypipe() {{ {shlex.quote(str(EXECUTABLE))} "$@"; }}\n'
        return self._start(["/bin/bash", "-c", function + script], env, {}).wait()

    def _start(
        self, command: list[str], env: Mapping[str, str | None] | None, options: dict[str, Any]
    ) -> Process:
        chosen = {k: v for k, v in {**self.base, **(env or {})}.items() if v is not None}
        process = Process(command, chosen, self.check, **options)
        self.started.append(process)
        return process


@pytest.fixture(scope="session", autouse=True)
def signals_as_from_a_terminal() -> Iterator[None]:
    """Let signals reach what the tests start, also where nohup or a script's & ignored them."""
    ignored = {
        number: signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGHUP, signal.SIGTERM)
        if signal.getsignal(number) is signal.SIG_IGN
    }
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        ignored[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in ignored.items():
        signal.signal(number, handler)


@pytest.fixture
def bare_run(tmp_path: Path, no_canary: Callable[[str | bytes], None]) -> Iterator[Command]:
    """Yield the command without a server: no side is named unless the test does."""
    home = tmp_path / "home"
    home.mkdir()
    base = {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C.UTF-8"}
    # Processes are measured as well, where the tests are.
    base |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    command = Command(base, no_canary)
    yield command
    for process in command.started:
        process.close()


@pytest.fixture
def run(bare_run: Command, source: Database, dest: Database) -> Command:
    """Return the command with both sides named by the environment."""
    bare_run.base |= {"COPYPIPE_SOURCE": source.dsn, "COPYPIPE_DEST": dest.dsn}
    return bare_run


@functools.cache
def _made_command() -> Any:
    """Return what typer makes of all commands, once: it takes as long as a short case does."""
    from copypipe.cli.app import app

    return get_command(app)


@dataclass(frozen=True)
class Words:
    """The same words without a process: ten times as quick, for tables of many cases."""

    env: dict[str, str]
    check: Callable[[str], None]

    def __call__(self, *args: str, env: Mapping[str, str] | None = None) -> Run:
        chosen: dict[str, str | None] = {name: None for name in os.environ if name[:2] == "PG"}
        chosen |= {**self.env, **(env or {})}
        began = time.monotonic()
        with CliRunner().isolation(env=chosen) as (out, err, _):
            try:
                _made_command().main(args=args, prog_name="copypipe")
                code: Any = 0
            except SystemExit as ended:
                code = ended.code
            sys.stdout.flush()
            sys.stderr.flush()
            said = [stream.getvalue().decode().replace("\r\n", "\n") for stream in (out, err)]
        run = Run(code or 0, *said, time.monotonic() - began)
        self.check(run.out)
        self.check(run.err)
        return run


# A database of its own costs more than a short test: tables of many cases share a pair, whose
# schemas are emptied before each case.

EMPTY = """
SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity
 WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
   AND application_name NOT IN ('test', 'oracle');
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT nspname FROM pg_catalog.pg_namespace
                 WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE pg_catalog.format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
    CREATE SCHEMA public;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    EXECUTE pg_catalog.format('ALTER DATABASE %I RESET ALL', pg_catalog.current_database());
END $$
"""


@pytest.fixture(scope="module")
def shared_source(servers: Servers, templates: dict[str, str]) -> Iterator[Database]:
    """Yield a database on the source's server for a module; see `kept_source`."""
    yield from fresh(servers.source, templates["source"])


@pytest.fixture(scope="module")
def shared_dest(servers: Servers, templates: dict[str, str]) -> Iterator[Database]:
    """Yield a database on the dest's server for a module; see `kept_dest`."""
    yield from fresh(servers.dest, templates["dest"])


@pytest.fixture
def kept_source(shared_source: Database) -> Database:
    """Return the module's source, emptied."""
    shared_source.execute(EMPTY)
    return shared_source


@pytest.fixture
def kept_dest(shared_dest: Database) -> Database:
    """Return the module's dest, emptied."""
    shared_dest.execute(EMPTY)
    return shared_dest


@pytest.fixture
def words(bare_run: Command, kept_source: Database, kept_dest: Database) -> Words:
    """Return `run` for words alone: no process, no terminal, no signals; on the module's pair."""
    sides = {"COPYPIPE_SOURCE": kept_source.dsn, "COPYPIPE_DEST": kept_dest.dsn}
    return Words(bare_run.base | sides, bare_run.check)


# --- a table as people have it -------------------------------------------------------------------

USERS = """
CREATE TABLE public.users (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    email varchar(80),
    active bool NOT NULL DEFAULT true,
    balance numeric(12, 2),
    created_at timestamptz NOT NULL,
    profile jsonb,
    tags text[])
"""
FIRST_DAY = "2018-04-28"


def users(database: Database, days: int = 3, *, rows: int = 24, first: str = FIRST_DAY) -> None:
    """Make public.users with `rows` rows on each of `days` days (of UTC) from `first` on."""
    database.execute(USERS)
    if days and rows:
        add_users(database, days, rows=rows, first=first)
    database.execute("CREATE INDEX ON public.users (created_at)")
    database.execute("ANALYZE public.users")


def add_users(
    database: Database, days: int = 1, *, rows: int = 24, first: str = FIRST_DAY, offset: int = 0
) -> None:
    """Add rows spread evenly over the days; `offset` keeps their ids apart from others."""
    database.execute(
        """
        INSERT INTO public.users
        SELECT %(offset)s + d * 1000000 + n,
               CASE n %% 3 WHEN 0 THEN 'Zoë ' ELSE E'tab\\there ' END || n,
               CASE n %% 5 WHEN 0 THEN NULL ELSE 'user' || n || '@example.org' END,
               n %% 2 = 0,
               n * 1.25,
               %(first)s::timestamp AT TIME ZONE 'UTC' + d * interval '1 day'
                   + n * interval '1 day' / %(rows)s,
               jsonb_build_object('n', n, 'day', d, 'quote', '"\\'),
               ARRAY['a' || n, NULL, 'ö,"x"']
          FROM generate_series(0, %(days)s - 1) AS d, generate_series(0, %(rows)s - 1) AS n
        """,
        {"offset": offset, "first": first, "days": days, "rows": rows},
    )


def eventually(condition: Callable[[], Any], *, seconds: float = 5.0, what: str = "") -> Any:
    """Return what `condition` returns as soon as it is true; fail the test after `seconds`."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return value


def no_backends(*databases: Database, seconds: float = 5.0) -> None:
    """Fail the test unless no session of copypipe is left in these databases in time."""
    for database in databases:
        eventually(
            lambda database=database: not database.backends(),
            seconds=seconds,
            what=f"no backend of ours left at the {database.side}",
        )


# --- holding a copy up ---------------------------------------------------------------------------

PAUSE_KEY = 4711


def pause(dest: Database, table: str = "public.users", *, when: str = "true") -> Any:
    """Let rows for which `when` is true wait for the advisory lock PAUSE_KEY, which is held.

    Returns the session that holds it: close it, or release the lock, to let the copy go on.
    """
    dest.execute(
        f"""
        CREATE FUNCTION public.pause() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {when} THEN
                PERFORM pg_catalog.pg_advisory_lock_shared({PAUSE_KEY});
                PERFORM pg_catalog.pg_advisory_unlock_shared({PAUSE_KEY});
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER pause BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.pause()
        """
    )
    holder = dest.connect(application_name="holder")
    holder.execute(f"SELECT pg_catalog.pg_advisory_lock({PAUSE_KEY})")
    return holder


def waits_in_pause(dest: Database) -> bool:
    """Return whether a copy is held up by `pause`."""
    return bool(
        dest.scalar(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            f" AND objid = {PAUSE_KEY} AND classid = 0"
        )
    )
