"""Copy many days, each as a task of its own, a few at a time.

    airflow dags trigger users_backfill --conf '{"first": "2018-04-01", "last": "2018-04-30"}'

A task takes one slot of one pool: the shop's, whose customers must not notice. Tables of another
source get the pool of that server. What the warehouse bears is the DAG's `max_active_tasks`.
"""

from datetime import UTC, date, datetime, timedelta

from airflow.sdk import DAG, Param, task

from copypipe.airflow import CopyPipeOperator

with DAG(
    "users_backfill",
    schedule=None,
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    max_active_tasks=8,
    params={
        "first": Param("2018-04-01", type="string", format="date"),
        "last": Param("2018-04-30", type="string", format="date"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
) as dag:

    @task
    def days(params: dict[str, str]) -> list[str]:
        """List the days; Airflow expands at most 1,024 ([core] max_map_length)."""
        first, last = (date.fromisoformat(params[name]) for name in ("first", "last"))
        return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]

    CopyPipeOperator.partial(
        task_id="copy_users",
        source_conn_id="shop",
        dest_conn_id="dwh",
        table="public.users",
        pool="shop",
        map_index_template="{{ task.day }}",  # the grid shows days instead of numbers
    ).expand(day=days())
