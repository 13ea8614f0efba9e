"""What the words of a request alone can tell."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from copypipe import slices
from copypipe.errors import UsageError
from copypipe.requests import Endpoint, Request, check, duration, wanted
from copypipe.slices import Between, DaysAgo, Everything

APRIL = slices.month("2018-04")
DAY = slices.day(date(2018, 4, 29))


def request(**changes: Any) -> Request:
    values = {
        "source": Endpoint("host=shop password=hidden", "argument source"),
        "dest": Endpoint("host=dwh", "argument dest"),
        "table": "users",
        "wanted": DAY,
    }
    return Request(**{**values, **changes})


def test_a_plain_request_is_accepted() -> None:
    check(request())
    check(request(wanted=Everything(), clear="truncate", into='"Other"', timezone="Asia/Tokyo"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": " "}, "the table has no name"),
        ({"into": ""}, "the table has no name"),
        ({"by": ""}, "the slice column has no name"),
        ({"timezone": "+02"}, "not the name of a time zone: '+02'"),
        (
            {"wanted": Between(date(2018, 5, 1), date(2018, 4, 1))},
            "the range is empty: from 2018-05-01 to 2018-04-01",
        ),
        (
            {"clear": "truncate"},
            "--clear truncate removes every row, and the slice is a part of the table",
        ),
    ],
)
def test_a_request_that_can_never_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(request(**changes))

    assert caught.value.message == message


def test_a_request_never_shows_a_connection_string() -> None:
    assert "hidden" not in repr(request())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("30s", 30),
        ("1.5 h", 5400),
        ("10min", 600),
        ("500ms", 0.5),
        ("250us", 0.00025),
        (" 2d ", 172800),
    ],
)
def test_durations_have_the_units_of_postgresql(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1s", "10m", "1h30min", "s", "1e3s", "nan", "inf", "10 Min"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        duration(text)

    assert caught.value.message == f"not a duration: {text!r}"
    assert caught.value.hint == "Write it as PostgreSQL does: 500ms, 30s, 10min, 1h."


NOTHING: dict[str, Any] = {
    "day": None,
    "month": None,
    "start": None,
    "stop": None,
    "everything": False,
}
START, STOP = datetime(2018, 4, 29, 10, tzinfo=UTC), DaysAgo(3)


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        ({"day": DAY}, DAY),
        ({"month": APRIL}, APRIL),
        ({"start": START, "stop": STOP}, Between(START, STOP)),
        ({"everything": True}, Everything()),
    ],
)
def test_one_way_to_name_the_slice(asked: dict[str, Any], means: slices.Wanted) -> None:
    assert wanted(**{**NOTHING, **asked}) == means


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "which rows? No slice was given"),
        ({"day": DAY, "month": APRIL}, "several slices were asked for"),
        ({"day": DAY, "everything": True}, "several slices were asked for"),
        ({"month": APRIL, "start": START, "stop": STOP}, "several slices were asked for"),
        ({"start": START}, "a range needs both its ends"),
        ({"stop": STOP, "everything": True}, "a range needs both its ends"),
    ],
)
def test_no_slice_several_and_half_a_range_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**{**NOTHING, **asked})

    assert caught.value.message == message
    assert caught.value.hint
