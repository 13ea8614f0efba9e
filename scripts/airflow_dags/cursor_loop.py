"""Two tasks that copy the same day: the cursor loop that people write, and CopyPipeOperator.

scripts/bench_airflow.py runs it. What each `execute` costs is written into the file that MEASURED
names, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, CronDataIntervalTimetable

from copypipe.airflow import CopyPipeOperator

COLUMNS = "id, name, email, active, balance, created_at, profile"


def loop(data_interval_start: datetime, data_interval_end: datetime) -> int:
    """Copy a day row by row: a server-side cursor, 2,000 rows at a time, execute_values."""
    import psycopg2
    from psycopg2.extras import execute_values

    rows = 0
    day = (data_interval_start, data_interval_end)
    with (
        closing(psycopg2.connect(_dsn("shop"))) as source,
        closing(psycopg2.connect(_dsn("dwh"))) as dest,
    ):
        with source.cursor("users") as reading, dest.cursor() as writing:
            where = "created_at >= %s AND created_at < %s"
            writing.execute(f"DELETE FROM public.users_loop WHERE {where}", day)  # noqa: S608
            # As text: psycopg2 would make a dict of it, and refuse to write that.
            read = COLUMNS.replace("profile", "profile::text")
            reading.execute(f"SELECT {read} FROM public.users WHERE {where}", day)  # noqa: S608
            while batch := reading.fetchmany(2000):
                insert = f"INSERT INTO public.users_loop ({COLUMNS}) VALUES %s"  # noqa: S608
                execute_values(writing, insert, batch, page_size=2000)
                rows += len(batch)
        dest.commit()
    return rows


def _dsn(conn_id: str) -> str:
    connection = PostgresHook(postgres_conn_id=conn_id).connection
    return (
        f"host={connection.host} port={connection.port} user={connection.login}"
        f" dbname={connection.schema} password='{connection.password or ''}'"
    )


def measured(name: str, execute: Callable[..., Any]) -> Callable[..., Any]:
    """Return `execute`, which also notes wall, CPU of all threads, and how far memory rose."""

    def wrapped(context: Any) -> Any:
        before = _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        found = execute(context)
        cost = {
            "name": name,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak_kib": _status("VmHWM") - before,
            "threads": threading.active_count(),
        }
        with Path(os.environ["MEASURED"]).open("a") as file:
            file.write(json.dumps(cost) + "\n")
        return found

    return wrapped


def _reset_peak() -> int:
    """Let the peak of the memory begin now; returns what is taken, in KiB (proc_pid_clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(name)


class MeasuredLoop(PythonOperator):
    """The loop, measured."""

    def execute(self, context: Any) -> Any:
        """Copy the day."""
        return measured("loop", super().execute)(context)


class MeasuredCopy(CopyPipeOperator):
    """The operator, measured."""

    def execute(self, context: Any) -> Any:
        """Copy the day."""
        return measured("copypipe", super().execute)(context)


with DAG(
    "cursor_loop",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    tasks = [
        MeasuredLoop(task_id="loop", python_callable=loop),
        MeasuredCopy(
            task_id="copypipe",
            source_conn_id="shop",
            dest_conn_id="dwh",
            table="public.users",
            into="public.users_copypipe",
        ),
    ]
    if os.environ.get("MEASURED_ORDER") == "copypipe":
        tasks.reverse()
    tasks[0] >> tasks[1]

if __name__ == "__main__":
    run = dag.test(logical_date=datetime(2018, 4, 29, tzinfo=UTC))
    if run.state != "success":
        raise SystemExit(f"the run ended as {run.state}")
