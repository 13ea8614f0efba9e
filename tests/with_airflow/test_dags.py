"""Each example, and what Airflow does with our failures, by `dag.test()` on two real servers."""

import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plugins.command import add_users, eventually, no_backends, pause, users, waits_in_pause
from plugins.databases import Database
from plugins.tries import raising

DAY, ROWS = "2018-04-28", 24
NEXT = datetime(2018, 4, 29, tzinfo=UTC)  # the run that copies that day

pytestmark = [pytest.mark.usefixtures("connections"), pytest.mark.timeout(300)]

DagOf = Callable[..., Any]


@pytest.fixture(autouse=True)
def tables(source: Database, dest: Database) -> None:
    users(source)
    users(dest, 0)


def days_of(database: Database) -> dict[str, int]:
    return dict(
        database.fetch(
            "SELECT (created_at AT TIME ZONE 'UTC')::date::text, count(*) FROM public.users"
            " GROUP BY 1"
        )
    )


def tries(run: Any) -> dict[str, tuple[int, str]]:
    """Return how often each task was tried, and how it ended."""
    return {ti.task_id: (ti.try_number, str(ti.state)) for ti in run.get_task_instances()}


def pulled(run: Any, task_id: str) -> list[Any]:
    found = [ti for ti in run.get_task_instances() if ti.task_id == task_id]
    found.sort(key=lambda ti: ti.map_index)
    return [ti.xcom_pull(task_ids=task_id, map_indexes=ti.map_index) for ti in found]


# ---------------------------------------------------------------------------------- the examples


def test_users_daily(dag_of: DagOf, dest: Database) -> None:
    run = dag_of("users_daily").test(logical_date=NEXT)

    assert run.state == "success"
    assert days_of(dest) == {DAY: ROWS}
    (found,) = pulled(run, "copy_users")
    assert (found["rows"], found["slice"]["first_day"]) == (ROWS, DAY)
    assert found["digest"], "verify=checksum"


def test_users_backfill(dag_of: DagOf, dest: Database) -> None:
    run = dag_of("users_backfill").test(run_conf={"first": "2018-04-27", "last": "2018-04-30"})

    assert run.state == "success"
    assert days_of(dest) == {DAY: ROWS, "2018-04-29": ROWS, "2018-04-30": ROWS}
    days = [found["slice"]["first_day"] for found in pulled(run, "copy_users")]
    assert days == ["2018-04-27", DAY, "2018-04-29", "2018-04-30"]
    names = [ti.rendered_map_index for ti in run.get_task_instances() if ti.task_id == "copy_users"]
    assert sorted(names) == days, "the grid shows days"


def test_users_heal(dag_of: DagOf, source: Database, dest: Database) -> None:
    window = {"start": "2018-04-20", "stop": "2018-05-05", "week": "2018-04-27"}

    run = dag_of("users_heal").test(run_conf=window)
    assert run.state == "success"
    assert days_of(dest) == days_of(source)
    assert len(pulled(run, "copy_users")) == 3

    # Nothing to copy; a changed row, which no count tells, is found and repaired.
    dest.execute("UPDATE public.users SET name = 'changed' WHERE id = 3")
    run = dag_of("users_heal").test(run_conf=window)
    assert run.state == "success"
    assert Counter(str(ti.state) for ti in run.get_task_instances()) == {"success": 2, "skipped": 1}
    (found,) = pulled(run, "verify_week")
    assert found["verdicts"] == {"same": 8}
    assert dest.digest("public.users", "id") == source.digest("public.users", "id")

    # A day that got rows at both sides is copied again.
    source.execute("DELETE FROM public.users WHERE id = 1000003")
    run = dag_of("users_heal").test(run_conf=window)
    assert [found["slice"]["first_day"] for found in pulled(run, "copy_users")] == ["2018-04-29"]
    assert dest.digest("public.users", "id") == source.digest("public.users", "id")


def test_countries_refresh(dag_of: DagOf, source: Database, dest: Database) -> None:
    for database, rows in ((source, 5), (dest, 3)):
        database.execute(
            "CREATE TABLE public.countries (code text PRIMARY KEY, name text);"
            f"INSERT INTO public.countries SELECT n, 'name ' || n FROM generate_series(1, {rows}) n"
        )

    run = dag_of("countries_refresh").test()

    assert run.state == "success"
    assert dest.digest("public.countries", "code") == source.digest("public.countries", "code")


# ------------------------------------------------------------------------ schedules and templates


def test_the_interval_of_either_timetable_is_the_day_before(dag_of: DagOf, dest: Database) -> None:
    for name in ("trial", "trial_trigger"):
        dest.execute("TRUNCATE public.users")
        assert dag_of("trials", name).test(logical_date=NEXT).state == "success"
        assert days_of(dest) == {DAY: ROWS}, name


def test_daily_without_an_interval_fails_and_is_not_tried_again(
    dag_of: DagOf, dest: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dag_of("trials", "trial_daily").test(logical_date=NEXT)

    assert run.state == "failed"
    assert tries(run) == {"copy": (1, "failed")}
    assert "CronDataIntervalTimetable" in capsys.readouterr().out
    assert days_of(dest) == {}


def test_templates_may_be_rendered_as_objects(dag_of: DagOf, dest: Database) -> None:
    assert dag_of("trials", "trial_native").test(logical_date=NEXT).state == "success"
    assert days_of(dest) == {DAY: ROWS}


def test_options_are_templates(dag_of: DagOf, dest: Database) -> None:
    run = dag_of("trials", "trial_template").test(run_conf={"day": DAY})

    assert run.state == "success"
    assert days_of(dest) == {DAY: ROWS // 2}


# ------------------------------------------------------------------------------ failures and ends


def test_a_killed_backend_is_tried_again(dag_of: DagOf, dest: Database) -> None:
    holder = pause(dest)

    def kill() -> None:
        eventually(lambda: waits_in_pause(dest), seconds=60)
        dest.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'copypipe%'"
        )
        holder.close()

    other = threading.Thread(target=kill)
    other.start()
    run = dag_of("trials", "trial").test(logical_date=NEXT)
    other.join()

    assert tries(run) == {"copy": (2, "success")}
    assert days_of(dest) == {DAY: ROWS}
    assert dest.scalar("SELECT count(*) FROM copypipe.attempt") == 2


def test_what_passes_is_tried_until_the_retries_are_used(dag_of: DagOf, dest: Database) -> None:
    raising(dest, "40P01", 99)

    run = dag_of("trials", "trial").test(logical_date=NEXT)

    assert tries(run) == {"copy": (3, "failed")}
    assert days_of(dest) == {}


def test_what_no_retry_can_mend_is_tried_once(dag_of: DagOf, dest: Database) -> None:
    raising(dest, "23514", 99)

    run = dag_of("trials", "trial").test(logical_date=NEXT)

    assert run.state == "failed"
    assert tries(run) == {"copy": (1, "failed")}
    assert days_of(dest) == {}


def test_a_day_of_which_the_source_has_nothing_yet_is_tried_again(
    dag_of: DagOf, source: Database, dest: Database
) -> None:
    add_users(dest, first=DAY)
    source.execute("DELETE FROM public.users WHERE id < 1000000")

    run = dag_of("trials", "trial").test(logical_date=NEXT)

    assert tries(run) == {"copy": (3, "failed")}
    assert days_of(dest) == {DAY: ROWS}


def test_a_worker_that_is_told_to_end_rolls_back(
    airflow_db: None, home: Path, source: Database, dest: Database
) -> None:
    """SIGTERM, as of a pod that is evicted: Airflow calls on_kill, and tries again."""
    holder = pause(dest)
    process = subprocess.Popen(
        [sys.executable, str(home / "dags" / "trials.py"), "2018-04-29"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        eventually(lambda: waits_in_pause(dest), seconds=60)
        process.send_signal(signal.SIGTERM)
        # The first try is gone while its row still waits; the second one waits as well.
        eventually(
            lambda: dest.scalar("SELECT count(DISTINCT attempt_id) = 2 FROM copypipe.attempt"),
            seconds=20,
        )
        holder.close()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert "ended by on_kill, both servers were told to stop: what was under way is r" in output
    assert re.search(r"the run: success \[.*'success'.*\]", output)
    assert days_of(dest) == {DAY: ROWS}
    no_backends(source, dest)


# ----------------------------------------------------------------------------------- the provider


def test_airflow_lists_the_provider(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "providers", "list", "--output", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert re.search(r'"package_name": "copypipe"', done.stdout)
