"""What the words of a request alone can tell."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from copypipe import slices
from copypipe.errors import UsageError
from copypipe.requests import (
    LOOK_FIRST,
    Endpoint,
    Recorded,
    Request,
    check,
    check_age,
    check_recorded,
    check_settings,
    computed,
    duration,
    left_open,
    setting,
    size,
    wanted,
)
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


def test_without_conditions_none_is_hinted_at() -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**NOTHING, takes_where=False)

    assert caught.value.hint == "Give one of --day, --month, --from with --to, or --all."


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": " "}, "the table has no name"),
        ({"table": "t\0"}, "a name is not valid text"),
        ({"by": ""}, "the slice column has no name"),
        ({"by": "\udcff"}, "a name is not valid text"),
        ({"timezone": "+02"}, "not the name of a time zone: '+02'"),
        ({"wanted": Between(DaysAgo(0), DaysAgo(1))}, "the range is empty: from today to yester"),
    ],
)
def test_what_the_ledger_cannot_be_asked(changes: dict[str, Any], message: str) -> None:
    check_recorded(Recorded(table="public.users", wanted=DAY))
    with pytest.raises(UsageError) as caught:
        check_recorded(Recorded(**{"table": "users", "wanted": DAY, **changes}))

    assert caught.value.message.startswith(message)


def test_an_age_has_a_least_and_a_most() -> None:
    for fine in ("10min", "1h", "90d", "36525d"):
        check_age(duration(fine))
    for bad in ("0", "599s", "36526d"):
        with pytest.raises(UsageError, match="cannot remove what is older than"):
            check_age(duration(bad))


# --- modes and settings ---------------------------------------------------------------------------

MISPLACED: dict[str, tuple[dict[str, Any], str]] = {
    "a key": ({"key": ("id",)}, "--key means nothing in mode replace"),
    "a key to append": ({"key": ("id",), "mode": "append"}, "--key means nothing in mode append"),
    "deletes": ({"merge_deletes": True}, "--merge-deletes means nothing in mode replace"),
    "again": ({"again": True}, "--again means nothing in mode replace"),
    "again to merge": ({"again": True, "mode": "merge"}, "--again means nothing in mode merge"),
    "a ratio": (
        {"min_ratio": 0.5, "mode": "append"},
        "--min-ratio means nothing in mode append",
    ),
    "TRUNCATE": (
        {"clear": "truncate", "mode": "merge"},
        "--clear truncate means nothing in mode merge",
    ),
    "no mode": ({"mode": "upsert"}, "no such way to copy: mode 'upsert', clear 'delete'"),
    "no hazard": ({"accept": ("rules",)}, "nothing to accept: 'rules'"),
    "a text of hazards": ({"accept": tuple("cascade")}, "nothing to accept: 'c'"),
    "a key that is no text": ({"key": ("a\0",), "mode": "merge"}, "a name is not valid text"),
    "too small a ratio": ({"min_ratio": 0.0}, "not a part of the rows: 0.0"),
    "too great a ratio": ({"min_ratio": 1.5}, "not a part of the rows: 1.5"),
    "a ratio of what is truncated": (
        {"min_ratio": 0.5, "clear": "truncate", "wanted": Everything()},
        "--min-ratio needs the rows counted that are removed",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISPLACED.values(), ids=MISPLACED.keys())
def test_options_go_with_their_mode(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(request(**changes))
    assert caught.value.message == message


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "merge", "key": ("id", "region"), "merge_deletes": True},
        {"mode": "append", "again": True},
        {"min_ratio": 1},
        {"min_ratio": 0.0001},
        {"clear": "truncate"},
        {"accept": ("references", "cascade", "triggers", "cascade")},
    ],
)
def test_what_goes_together_is_accepted(changes: dict[str, Any]) -> None:
    check(request(**changes))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("work_mem=64MB", ("work_mem", "64MB")),
        (" work_mem = 64MB ", ("work_mem", "64MB")),
        ("a.b==", ("a.b", "=")),
        ("role=", ("role", "")),
        ("options=-c a=b", ("options", "-c a=b")),
    ],
)
def test_a_setting_is_a_name_and_a_value(text: str, found: tuple[str, str]) -> None:
    assert setting(text) == found


def test_what_is_no_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="not a setting: 'work_mem'"):
        setting("work_mem")


@pytest.mark.parametrize("name", ["work_mem", "WORK_MEM", "a.b", "_a$.b1", "role"])
@pytest.mark.parametrize("value", ["", "1", 'it\'s \\ "x"', "; DROP TABLE users"])
def test_parameters_may_have_any_value(name: str, value: str) -> None:
    check_settings("dest", [(name, value)], {"search_path"})


@pytest.mark.parametrize(
    "given",
    [
        ("", "1"),
        ("1a", "1"),
        ("a.", "1"),
        ("a..b", "1"),
        ("a b", "1"),
        ('"a"', "1"),
        ("a;b", "1"),
        ("ä", "1"),
        ("a\n", "1"),
        ("work_mem", "\0"),
        ("work_mem", "\udcff"),
        ("work_mem", 64),
        ("statement_timeout", 0),
        ("work_mem", None),
        (1, "1"),
    ],
)
def test_what_is_no_parameter_is_refused(given: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="not a parameter of a server") as caught:
        check_settings("source", [given], ())
    assert caught.value.hint == "Write it as in --source-set work_mem=64MB."


@pytest.mark.parametrize("name", ["search_path", "SEARCH_PATH", "Search_Path"])
def test_what_a_copy_means_is_nobodys_to_set(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be set"):
        check_settings("dest", [(name, "x")], {"search_path"})


@pytest.mark.parametrize(
    ("mode", "tells", "words"),
    [
        ("replace", True, "it makes the slice equal to the source's"),
        ("replace", False, "it makes the slice equal to the source's"),
        ("merge", True, "rows that are there are left alone"),
        ("merge", False, "rows that are there are left alone"),
        ("append", True, "the ledger knows whether they are there"),
        ("append", False, "Look at the dest first"),
    ],
)
def test_an_open_commit_is_settled_as_its_mode_allows(mode: Any, tells: bool, words: str) -> None:
    _, hint = left_open(mode, tells=tells)
    assert words in hint
    assert (hint == LOOK_FIRST) == (mode == "append" and not tells)
