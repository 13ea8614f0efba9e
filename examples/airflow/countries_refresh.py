"""Replace a small table as a whole, beside the old one: its readers wait for a moment only."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from copypipe.airflow import CopyPipeOperator

with DAG(
    "countries_refresh",
    schedule=CronTriggerTimetable("0 4 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
) as dag:
    CopyPipeOperator(
        task_id="copy_countries",
        source_conn_id="shop",
        dest_conn_id="dwh",
        table="public.countries",
        all=True,
        yes=True,  # all rows of the dest are replaced
        swap=True,
        pool="shop",
    )
