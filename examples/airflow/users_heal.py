"""Look at the last thirty days each morning, and copy those that need it; compare a week again.

The ledger of the warehouse tells which days were never copied, failed, or were copied while rows
could still come; counts tell which ones have changed since. Most mornings there is nothing to do.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from copypipe.airflow import CopyPipeOperator, VerifyOperator, missing_days

with DAG(
    "users_heal",
    schedule=CronTriggerTimetable("30 5 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    params={"start": "-30d", "stop": "today"},
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    sides = {"source_conn_id": "shop", "dest_conn_id": "dwh", "table": "public.users"}

    @task
    def look(params: dict[str, str]) -> list[str]:
        """Return the days that are to be copied."""
        return missing_days(**sides, start=params["start"], stop=params["stop"])

    copied = CopyPipeOperator.partial(
        task_id="copy_users", pool="shop", map_index_template="{{ task.day }}", **sides
    ).expand(day=look())

    # Counts do not tell rows that were changed; digests do.
    copied >> VerifyOperator(
        task_id="verify_week",
        start="{{ params.get('week', '-7d') }}",
        stop="{{ params.stop }}",
        repair="slices",
        pool="shop",
        trigger_rule="all_done",  # also where no day was to be copied, or one could not be
        **sides,
    )
