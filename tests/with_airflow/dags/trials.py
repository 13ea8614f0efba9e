"""DAGs for the tests: tried again, without an interval, with another one, with templates."""

import sys
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, CronTriggerTimetable

from copypipe.airflow import CopyPipeOperator

SIDES = {"source_conn_id": "shop", "dest_conn_id": "dwh", "table": "public.users"}
APRIL = datetime(2018, 4, 1, tzinfo=UTC)
DAILY = CronDataIntervalTimetable("0 0 * * *", timezone="UTC")
AGAIN = {"retries": 2, "retry_delay": timedelta(0)}

with DAG("trial", schedule=DAILY, start_date=APRIL, default_args=AGAIN) as trial:
    CopyPipeOperator(task_id="copy", **SIDES)

with DAG("trial_daily", schedule="@daily", start_date=APRIL, default_args=AGAIN) as trial_daily:
    CopyPipeOperator(task_id="copy", **SIDES)

with DAG(
    "trial_trigger",
    schedule=CronTriggerTimetable("0 0 * * *", timezone="UTC", interval=timedelta(days=1)),
    start_date=APRIL,
) as trial_trigger:
    CopyPipeOperator(task_id="copy", **SIDES)

with DAG("trial_template", schedule=None, start_date=APRIL) as trial_template:
    CopyPipeOperator(
        task_id="copy",
        day="{{ dag_run.conf.day }}",
        where="id % {{ params.modulus }} = 0",
        allow_empty="{{ params.allow_empty }}",
        rate_limit="{{ params.rate }}",
        params={"modulus": 2, "allow_empty": True, "rate": "10MB"},
        **SIDES,
    )

with DAG(
    "trial_native", schedule=DAILY, start_date=APRIL, render_template_as_native_obj=True
) as trial_native:
    CopyPipeOperator(
        task_id="copy",
        start="{{ data_interval_start }}",
        stop="{{ data_interval_end }}",
        allow_empty="{{ 1 == 1 }}",
        **SIDES,
    )

if __name__ == "__main__":
    date = datetime.fromisoformat(sys.argv[1])
    run = trial.test(logical_date=date.replace(tzinfo=UTC))
    print("the run:", run.state, [ti.state for ti in run.get_task_instances()])  # noqa: T201
