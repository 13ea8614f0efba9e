"""Which slice a DAG run means, and what templates leave of options. Needs no server."""

import inspect
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.sdk.exceptions import AirflowFailException

from copypipe import UsageError, api
from copypipe import airflow as face
from copypipe.airflow import CopyPipeOperator, VerifyOperator, of_interval, of_partition
from copypipe.airflow_provider import get_provider_info
from copypipe.requests import Endpoint, Request
from copypipe.slices import Between, DaysAgo, Everything

SIDES = {"task_id": "t", "source_conn_id": "shop", "dest_conn_id": "dwh", "table": "public.users"}


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "stop", "zone", "wanted"),
    [
        # Whole days: of any date or time column.
        ("2018-04-28", "2018-04-29", "UTC", (date(2018, 4, 28), date(2018, 4, 29))),
        ("2018-04-01", "2018-05-01", "Etc/UTC", (date(2018, 4, 1), date(2018, 5, 1))),
        (
            "2018-04-27T22:00",
            "2018-04-28T22:00",
            "Europe/Vienna",
            (date(2018, 4, 28), date(2018, 4, 29)),
        ),
        # A clock goes forward: 23 hours are a day.
        (
            "2018-03-24T23:00",
            "2018-03-25T22:00",
            "Europe/Vienna",
            (date(2018, 3, 25), date(2018, 3, 26)),
        ),
        # Hours: times in UTC, instants elsewhere.
        (
            "2018-04-28T03:00",
            "2018-04-28T04:00",
            "UTC",
            (local("2018-04-28T03:00"), local("2018-04-28T04:00")),
        ),
        (
            "2018-04-28T03:00",
            "2018-04-28T04:00",
            "Europe/Vienna",
            (at("2018-04-28T03:00"), at("2018-04-28T04:00")),
        ),
        # A day of the timetable that is none in the zone of the slice.
        ("2018-04-28", "2018-04-29", "Asia/Tokyo", (at("2018-04-28"), at("2018-04-29"))),
    ],
)
@pytest.mark.parametrize("make", [at, lambda text: pendulum.instance(at(text))])
def test_the_slice_is_the_data_interval(
    start: str, stop: str, zone: str, wanted: Any, make: Any
) -> None:
    found = of_interval(make(start), make(stop), zone)

    assert (found.start, found.stop) == wanted
    assert {type(found.start), type(found.stop)} == {type(wanted[0])}, (
        "pendulum's would be written otherwise"
    )


def test_an_interval_of_another_zone_is_the_same_instants() -> None:
    vienna = ZoneInfo("Europe/Vienna")

    found = of_interval(
        datetime(2018, 4, 28, tzinfo=vienna), datetime(2018, 4, 29, tzinfo=vienna), "UTC"
    )

    assert found == Between(local("2018-04-27T22:00"), local("2018-04-28T22:00"))


@pytest.mark.parametrize(
    ("start", "stop"), [("2018-04-29", "2018-04-29"), ("2018-04-30", "2018-04-29")]
)
def test_an_empty_interval_is_refused_and_timetables_are_named(start: str, stop: str) -> None:
    with pytest.raises(UsageError, match="data interval of the DAG run is empty") as caught:
        of_interval(at(start), at(stop), "UTC")

    hint = str(caught.value)
    for name in (
        "CronDataIntervalTimetable",
        "CronTriggerTimetable",
        "interval=timedelta(days=1)",
        "CronPartitionTimetable",
        "@daily",
    ):
        assert name in hint


def test_a_run_without_an_interval_is_refused() -> None:
    with pytest.raises(UsageError, match="has no data interval"):
        of_interval(None, None, "UTC")


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("2018-04-28", Between(date(2018, 4, 28), date(2018, 4, 29))),
        ("2018-04", Between(date(2018, 4, 1), date(2018, 5, 1))),
        ("2018-12", Between(date(2018, 12, 1), date(2019, 1, 1))),
        ("2018-04-28T23", Between(local("2018-04-28T23:00"), local("2018-04-29T00:00"))),
        ("2018-04-28 05", Between(local("2018-04-28T05:00"), local("2018-04-28T06:00"))),
    ],
)
def test_a_partition_key_names_a_slice(key: str, wanted: Between) -> None:
    assert of_partition(key) == wanted


@pytest.mark.parametrize("key", ["2018-04-28T00:00:00", "eu", "", "2018", "2018-04-28T05:00"])
def test_a_partition_key_of_unknown_length_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="does not tell how long") as caught:
        of_partition(key)
    assert "key_format" in str(caught.value)


@pytest.mark.parametrize("key", ["2018-02-30", "2018-13", "2018-04-28T24"])
def test_a_partition_key_that_is_no_date_is_refused(key: str) -> None:
    with pytest.raises(UsageError):
        of_partition(key)


@pytest.mark.parametrize(
    ("key", "zone", "moment", "fits"),
    [
        ("2018-04-28", "UTC", "2018-04-28T00:00", True),
        ("2018-04-28", "UTC", "2018-04-28T03:00", True),
        ("2018-04-28", "Europe/Vienna", "2018-04-27T22:00", True),
        ("2018-04-28", "UTC", "2018-04-27T22:00", False),
        ("2018-04", "UTC", "2018-04-01T00:00", True),
        ("2018-04", "UTC", "2018-03-31T22:00", False),
        ("2018-04-28T05", "UTC", "2018-04-28T05:00", True),
        ("2018-04-28T07", "UTC", "2018-04-28T05:00", False),
        ("2018-04-28T07", "Europe/Vienna", "2018-04-28T05:00", True),
    ],
)
def test_a_partition_of_another_zone_is_refused(
    key: str, zone: str, moment: str, fits: bool
) -> None:
    if fits:
        assert of_partition(key, zone, at(moment)) == of_partition(key)
        return
    with pytest.raises(UsageError, match="begins at") as caught:
        of_partition(key, zone, at(moment))
    assert "timezone" in str(caught.value)


AIRFLOW_3_2 = SimpleNamespace(partition_key="2018-04-28", partition_date=at("2018-04-28"))
DAILY = {"data_interval_start": at("2018-04-28"), "data_interval_end": at("2018-04-29")}
THAT_DAY = Between(date(2018, 4, 28), date(2018, 4, 29))


@pytest.mark.parametrize(
    ("options", "context", "wanted"),
    [
        ({}, DAILY, THAT_DAY),
        ({"where": "tenant = 7"}, DAILY, THAT_DAY),
        ({}, {"partition_key": "2018-04-28", "partition_date": at("2018-04-28")}, THAT_DAY),
        ({}, {**DAILY, "partition_key": None}, THAT_DAY),
        ({"partition_key": "2018-04-28"}, {}, THAT_DAY),
        ({"day": "2018-04-28"}, {}, THAT_DAY),
        ({"day": pendulum.date(2018, 4, 28)}, {}, THAT_DAY),
        (
            {"start": pendulum.datetime(2018, 4, 28), "stop": pendulum.datetime(2018, 4, 29, 1)},
            {},
            Between(at("2018-04-28"), at("2018-04-29T01:00")),
        ),
        (
            {"start": pendulum.naive(2018, 4, 28), "stop": pendulum.naive(2018, 4, 29, 1)},
            {},
            Between(local("2018-04-28"), local("2018-04-29T01:00")),
        ),
        ({}, {"dag_run": AIRFLOW_3_2}, THAT_DAY),
        ({"day": date(2018, 4, 28)}, DAILY, THAT_DAY),
        ({"day": "yesterday"}, DAILY, Between(DaysAgo(1), DaysAgo(0))),
        ({"month": "2018-04"}, DAILY, Between(date(2018, 4, 1), date(2018, 5, 1))),
        ({"start": "2018-04-28", "stop": "2018-04-29"}, {}, THAT_DAY),
        ({"start": 0, "stop": 1000}, DAILY, Between(0, 1000)),
        ({"start": "0", "stop": "1000"}, DAILY, Between(0, 1000)),
        ({"all": True}, DAILY, Everything()),
        ({"all": "True", "where": "tenant = 7"}, DAILY, Everything()),
        ({"all": "false"}, DAILY, THAT_DAY),
    ],
)
def test_which_slice_a_run_copies(
    options: dict[str, Any], context: dict[str, Any], wanted: Any
) -> None:
    found = CopyPipeOperator(**SIDES, **options)._wanted(context)

    assert found == wanted
    if isinstance(found, Between):
        assert type(found.start) is type(wanted.start), "a class of pendulum's"


def test_a_partition_is_one_of_the_slices_zone() -> None:
    """The key of a day that begins on another one in the zone of the slice."""
    context = {"partition_key": "2018-04-28", "partition_date": at("2018-04-27T22:00")}

    assert CopyPipeOperator(**SIDES, timezone="Europe/Vienna")._wanted(context) == THAT_DAY
    with pytest.raises(UsageError, match="begins at"):
        CopyPipeOperator(**SIDES)._wanted(context)


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ("2018-11-04T04:00", "2018-11-04T05:00"),  # the first hour of that day, which comes twice
        ("2018-11-04T05:00", "2018-11-05T05:00"),  # from the second midnight on
    ],
)
def test_a_midnight_that_comes_twice_makes_no_day(start: str, stop: str) -> None:
    assert of_interval(at(start), at(stop), "America/Havana") == Between(at(start), at(stop))


@pytest.mark.parametrize(
    "options",
    [
        {"day": "2018-04-28", "month": "2018-04"},
        {"day": "2018-04-28", "partition_key": "2018-04-28"},
        {"start": "2018-04-28"},
        {"all": True, "day": "2018-04-28"},
        {"all": True, "day": "2018-04-28", "where": "true"},
        {"all": True, "partition_key": "2018-04-28", "where": "true"},
        {"all": True, "partition_key": "2018-04-28"},
        {"all": "perhaps"},
        {"day": "28.4.2018"},
    ],
)
def test_a_slice_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CopyPipeOperator(**SIDES, **options)._wanted(DAILY)


# ---------------------------------------------------------------------------------- the options

# What the face in Python calls otherwise, or cannot have.
RENAMED = {
    "source": "source_conn_id",
    "dest": "dest_conn_id",
    "retries": "copy_retries",
    "retry_delay": "copy_retry_delay",
}
LEFT_OUT = {"listener"}
OWN = {"partition_key", "skip_done", "show_keys", "fail_on_difference"}


@pytest.mark.parametrize(
    ("operator", "call"), [(CopyPipeOperator, api.copy), (VerifyOperator, api.verify)]
)
def test_an_operator_has_every_option_and_templates_each(operator: Any, call: Any) -> None:
    there = {RENAMED.get(name, name) for name in inspect.signature(call).parameters} - LEFT_OUT
    if operator is VerifyOperator:  # Airflow tries again
        there -= {"copy_retries", "copy_retry_delay"}

    assert there == set(operator.template_fields) - OWN
    assert len(operator.template_fields) == len(set(operator.template_fields))
    made = operator(**SIDES)
    assert all(hasattr(made, name) for name in operator.template_fields)


@pytest.mark.parametrize(
    ("operator", "call"), [(CopyPipeOperator, api.copy), (VerifyOperator, api.verify)]
)
def test_options_mean_by_default_what_they_mean_in_python(operator: Any, call: Any) -> None:
    made = operator(**SIDES)
    otherwise = {"copy_retries": 0, "every": None}
    for name, parameter in inspect.signature(call).parameters.items():
        field = RENAMED.get(name, name)
        if parameter.default is inspect.Parameter.empty or not hasattr(made, field):
            continue
        if operator is VerifyOperator and name in ("retries", "retry_delay"):
            continue  # BaseOperator's own
        assert getattr(made, field) == otherwise.get(field, parameter.default), name


class _NoServer:
    def endpoint(self, side: str, settings: Any) -> Endpoint:
        return Endpoint(f"host={side}", "test", tuple((settings or {}).items()))


def request_of(operator: Any, **options: Any) -> Request:
    made = operator(**SIDES, **options)
    if isinstance(made, CopyPipeOperator):
        return made._copy_request(_NoServer(), Everything())  # type: ignore[arg-type]
    return made._request(_NoServer(), Everything(), retries=0)


# The option, a value that it has not by default, and what the request holds then.
CHOSEN: list[tuple[str, Any, Any]] = [
    ("into", "public.people", "public.people"),
    ("where", "id > 1", "id > 1"),
    ("columns", {"email": "md5(email)"}, (("email", "md5(email)"),)),
    ("exclude", ["notes"], ("notes",)),
    ("cast", ["a"], ("a",)),
    ("allow_lossy", ["a"], ("a",)),
    ("by", "paid_at", "paid_at"),
    ("timezone", "Europe/Vienna", "Europe/Vienna"),
    ("allow_empty", "true", True),
    ("yes", " Yes ", True),
    ("wait_lock", "20min", 1200.0),
    ("wait_lock", timedelta(minutes=2), 120.0),
    ("wait_lock", 7, 7),
    ("settle", "90s", 90.0),
    ("ascending", "1", True),
    ("min_ratio", "0.5", 0.5),
]
CHOSEN_TO_COPY: list[tuple[str, Any, Any]] = [
    ("query", "SELECT 1", "SELECT 1"),
    ("clear", "truncate", "truncate"),
    ("swap", "True", True),
    ("fail_on_empty", True, True),
    ("sequences", True, True),
    ("accept", ["triggers"], ("triggers",)),
    ("rate_limit", "50MB", 50 << 20),
    ("rate_limit", "50000000", 50_000_000),
    ("rate_limit", 50_000_000, 50_000_000),
    ("verify", "checksum", "checksum"),
    ("transport", "libpq", "libpq"),
    ("stall_timeout", "90s", 90.0),
    ("copy_retries", "2", 2),
    ("copy_retry_delay", "3s", 3.0),
    ("ledger", "0", False),
    ("allow_reverse", True, True),
    ("notices", True, True),
    ("skip_done", "yes", True),
]
NAMES = {"copy_retries": "retries", "copy_retry_delay": "retry_delay", "skip_done": "skip"}


@pytest.mark.parametrize(
    ("operator", "option", "value", "found"),
    [
        *((operator, *each) for operator in (CopyPipeOperator, VerifyOperator) for each in CHOSEN),
        *((CopyPipeOperator, *each) for each in CHOSEN_TO_COPY),
    ],
)
def test_every_option_reaches_the_request(
    operator: Any, option: str, value: Any, found: Any
) -> None:
    request = request_of(operator, **{option: value})

    assert getattr(request, NAMES.get(option, option)) == found
    assert getattr(request_of(operator), NAMES.get(option, option)) != found


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"mode": "merge", "key": ["a"], "merge_deletes": True}, ("merge", ("a",), True, False)),
        ({"mode": "append", "again": "true"}, ("append", (), False, True)),
    ],
)
def test_modes_reach_the_request(options: dict[str, Any], found: Any) -> None:
    request = request_of(CopyPipeOperator, **options)

    assert (request.mode, request.key, request.merge_deletes, request.again) == found


@pytest.mark.parametrize("operator", [CopyPipeOperator, VerifyOperator])
def test_settings_reach_the_sides(operator: Any) -> None:
    request = request_of(operator, source_set={"role": "a"}, dest_set={"role": "b"})

    assert (request.source.settings, request.dest.settings) == ((("role", "a"),), (("role", "b"),))


def test_options_of_a_verification_reach_it() -> None:
    options = {"every": "week", "jobs": "3", "key": ["a"], "show_rows": 1, "record": "true"}

    found = VerifyOperator(**SIDES, **options, repair="rows")._verify_options(THAT_DAY)

    assert (found.every, found.jobs, found.key) == ("week", 3, ("a",))
    assert (found.show_rows, found.record, found.repair) == (True, True, "rows")


def test_airflow_alone_tries_again() -> None:
    assert [request_of(each).retries for each in (CopyPipeOperator, VerifyOperator)] == [0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"swap": "maybe"},
        {"min_ratio": "half"},
        {"rate_limit": "50 apples"},
        {"wait_lock": "soon"},
        {"copy_retries": "some"},
        {"copy_retries": 2.7},
        {"exclude": "email"},
        {"columns": "{'a': 'b'}"},
        {"columns": ["a"]},
        {"exclude": None},
        {"by": None},
        {"timezone": None},
        {"table": None},
        {"wait_lock": None},
        {"copy_retries": None},
        {"dest_set": "x"},
        {"month": date(2018, 4, 1)},
    ],
)
def test_options_that_mean_nothing_fail_for_good(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face._Run, "endpoint", _NoServer.endpoint)

    with pytest.raises(AirflowFailException):
        CopyPipeOperator(**{**SIDES, **options}).execute(DAILY)


@pytest.mark.parametrize(
    ("every", "wanted", "found"),
    [
        (None, THAT_DAY, "day"),
        (None, Between(DaysAgo(7), DaysAgo(0)), "day"),
        (None, Between(local("2018-04-28T03:00"), local("2018-04-28T04:00")), None),
        (None, Between(0, 1000), None),
        (None, Everything(), None),
        ("week", THAT_DAY, "week"),
        (100, Between(0, 1000), 100),
        ("100", Between(0, 1000), 100),
    ],
)
def test_how_a_verification_cuts_its_range(every: Any, wanted: Any, found: Any) -> None:
    assert face._every(every, wanted) == found


def test_the_provider_says_what_airflow_asks_for() -> None:
    found = get_provider_info()

    assert found["package-name"] == "copypipe"
    assert {"name", "description"} <= found.keys()


def test_operators_survive_the_serialisation_of_a_dag() -> None:
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("d", schedule=None, start_date=at("2018-04-01")) as dag:
        CopyPipeOperator(
            **SIDES, columns={"email": "md5(email)"}, exclude=["notes"], day=date(2018, 4, 28)
        )
        VerifyOperator(**{**SIDES, "task_id": "v"}, start="-7d", stop="today")
        CopyPipeOperator.partial(**{**SIDES, "task_id": "m"}).expand(day=["2018-04-28"])

    again = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))

    assert set(again.task_dict) == {"t", "v", "m"}
    assert again.task_dict["t"].columns == {"email": "md5(email)"}
    assert timedelta(0) <= dag.tasks[0].retry_delay
