"""What the words of a request alone can tell."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from copypipe import slices
from copypipe.errors import UsageError
from copypipe.requests import Endpoint, Request, check, computed, duration, size, wanted
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
            {"wanted": Everything(), "where": "id > 1", "clear": "truncate"},
            "--clear truncate removes every row, and the slice is what a condition selects",
        ),
        ({"where": " \n"}, "the condition is empty"),
        ({"query": ""}, "the query is empty"),
        ({"where": "a = '\0'"}, "the condition is not valid text"),
        ({"query": "SELECT '\udcff'"}, "the query is not valid text"),
        ({"columns": (("email", ""),)}, "the expression of 'email' is empty"),
        ({"exclude": ("\0",)}, "a name is not valid text"),
        ({"query": "SELECT 1", "where": "true"}, "--where and --query were both given"),
        ({"query": "SELECT 1", "into": "t"}, "--into and --query were both given"),
        ({"rate_limit": 0}, "cannot copy at 0 bytes a second"),
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


@pytest.mark.parametrize(
    ("text", "found"),
    [("1B", 1), ("500kB", 512_000), ("50MB", 52_428_800), (" 1.5 GB ", 1_610_612_736)],
)
def test_sizes_have_the_units_of_postgresql(text: str, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize("text", ["", "50", "50M", "50mb", "-1MB", "MB", "1e3kB", "50MB/s"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        size(text)

    assert caught.value.message == f"not a size: {text!r}"
    assert caught.value.hint == "Write it as PostgreSQL does: 500kB, 50MB, 1GB."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("email=md5(email)", ("email", "md5(email)")),
        (" email = md5(email)", ("email", " md5(email)")),
        ("a=b = c", ("a", "b = c")),
        ('"a=b"=c', ('"a=b"', "c")),
        ('"a""="=\n1', ('"a""="', "\n1")),
        ("Two Words=1", ("Two Words", "1")),
        ("a=", ("a", "")),
    ],
)
def test_a_computed_column_is_a_name_and_an_expression(text: str, found: tuple[str, str]) -> None:
    assert computed(text) == found


@pytest.mark.parametrize("text", ["", "email", "=md5(email)", " = 1", '""=1', '"a=1'])
def test_what_is_no_computed_column_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        computed(text)

    assert caught.value.message == f"not a computed column: {text!r}"


NOTHING: dict[str, Any] = {
    "day": None,
    "month": None,
    "start": None,
    "stop": None,
    "everything": False,
    "where": None,
}
START, STOP = datetime(2018, 4, 29, 10, tzinfo=UTC), DaysAgo(3)


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        ({"day": DAY}, DAY),
        ({"month": APRIL}, APRIL),
        ({"start": START, "stop": STOP}, Between(START, STOP)),
        ({"everything": True}, Everything()),
        ({"where": "id > 7"}, Everything()),
        ({"where": "id > 7", "day": DAY}, DAY),
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
        ({"where": "id > 7", "everything": True}, "--all and --where were both given"),
        ({"start": START}, "a range needs both its ends"),
        ({"stop": STOP, "everything": True}, "a range needs both its ends"),
    ],
)
def test_no_slice_several_and_half_a_range_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**{**NOTHING, **asked})

    assert caught.value.message == message
    assert caught.value.hint
