"""Copy each day's users from the shop into the warehouse, the night after.

Needs the connections `shop` and `dwh` (type postgres) and a pool `shop`: a slot for each copy that
the shop's server may serve at a time. A run that fails leaves the day as it was; a run that is
repeated makes it again what the shop has.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Asset, CronDataIntervalTimetable

from copypipe.airflow import CopyPipeOperator

with DAG(
    "users_daily",
    # Not "@daily": in Airflow 3 its runs have no interval.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,  # of `airflow backfill create`
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
    },
) as dag:
    CopyPipeOperator(
        task_id="copy_users",
        source_conn_id="shop",
        dest_conn_id="dwh",
        table="public.users",
        verify="checksum",
        fail_on_empty=True,  # a day without users is one that is not there yet: tried again
        pool="shop",
        execution_timeout=timedelta(hours=1),
        outlets=[Asset("postgres://dwh.example:5432/dwh/public/users")],
    )
