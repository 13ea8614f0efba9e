"""Events become lines and a bar; results become text and JSON."""

import io
import json
import threading
import time
from datetime import UTC, date, datetime

import pytest

from copypipe import events, reporting
from copypipe.errors import ConnectionLost, PlanRefused
from copypipe.ledger import Attempt
from copypipe.relay.waits import Spent
from copypipe.requests import in_units
from copypipe.slices import DATE, TIMESTAMPTZ, Range, Whole
from copypipe.transfers import Transferred

DAY = Range(
    "created_at",
    TIMESTAMPTZ,
    datetime(2018, 4, 28, 22, tzinfo=UTC),
    datetime(2018, 4, 29, 22, tzinfo=UTC),
    "Europe/Vienna",
    (date(2018, 4, 29), date(2018, 4, 30)),
)


def done(**changes: object) -> Transferred:
    facts = {
        "table": "public.users",
        "into": "dwh.users",
        "slice": DAY,
        "mode": "replace",
        "rows": 50000,
        "dropped": 0,
        "inserted": None,
        "updated": None,
        "bytes": 13_736_346,
        "deleted": 49999,
        "seconds": 0.4321,
        "transport": "tls",
        "scan": "compiled",
        "spent": Spent(source=0.1, dest=0.2, limit=0.0, all=0.4),
        "open_because": None,
        "digest": None,
        "recorded": True,
        "attempt": Attempt("0123456789abcdef", "f54654c5-b888-4390-96a5-45e8a9d53cf9", 1),
    }
    return Transferred(**{**facts, **changes})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 kB"),
        (13_736_346, "13.1 MB"),
        (3 * 1024**4, "3.0 TB"),
    ],
)
def test_sizes_are_in_postgresqls_units(count: int, text: str) -> None:
    assert in_units(count) == text


def test_a_result_is_one_line() -> None:
    assert reporting.result_line(done()) == (
        "dwh.users [2018-04-29, 2018-04-30) Europe/Vienna  50000 rows  13.1 MB  0.4 s  "
        "deleted 49999, copied 50000"
    )


def test_rows_that_truncate_removed_are_not_given_a_number() -> None:
    assert reporting.result_line(done(slice=Whole(), deleted=None)).endswith(
        "truncated, copied 50000"
    )


MODES: dict[str, tuple[dict[str, object], str]] = {
    "append": ({"mode": "append", "deleted": 0}, "appended 50000"),
    "append, some dropped": (
        {"mode": "append", "deleted": 0, "dropped": 7},
        "appended 50000, 7 dropped by triggers",
    ),
    "merge": (
        {"mode": "merge", "deleted": 0, "inserted": 3, "updated": 4},
        "inserted 3, updated 4, left 49993 unchanged",
    ),
    "merge with deletes": (
        {"mode": "merge", "deleted": 5, "inserted": 50000, "updated": 0},
        "deleted 5, inserted 50000, updated 0, left 0 unchanged",
    ),
    "open": (
        {"mode": "merge", "deleted": 0, "inserted": 1, "updated": 0, "open_because": "x"},
        "inserted 1, updated 0, left 49999 unchanged, open",
    ),
    "replace, some dropped": (
        {"dropped": 7},
        "deleted 49999, copied 50000, 7 dropped by triggers",
    ),
}


@pytest.mark.parametrize(("changes", "said"), MODES.values(), ids=MODES.keys())
def test_each_mode_says_what_became_of_the_rows(changes: dict[str, object], said: str) -> None:
    assert reporting.result_line(done(**changes)).endswith(f"0.4 s  {said}")


def test_a_result_as_json_has_absolute_bounds_and_the_days() -> None:
    result = json.loads(reporting.result_json(done()))

    assert (result["schema_version"], result["type"]) == (1, "slice")
    assert result["slice"] == {
        "all": False,
        "by": "created_at",
        "start": "2018-04-28T22:00:00+00:00",
        "stop": "2018-04-29T22:00:00+00:00",
        "timezone": "Europe/Vienna",
        "first_day": "2018-04-29",
        "day_after": "2018-04-30",
        "holes": [],
    }
    assert (result["rows"], result["deleted"], result["seconds"]) == (50000, 49999, 0.432)


def test_dates_stay_dates_in_json() -> None:
    day = (date(2018, 4, 29), date(2018, 4, 30))
    result = json.loads(reporting.result_json(done(slice=Range("d", DATE, *day, None, day))))

    assert (result["slice"]["start"], result["slice"]["timezone"]) == ("2018-04-29", None)


def test_an_error_as_json_names_its_exit_code() -> None:
    error = PlanRefused("no", detail="because", hint="do", side="dest", sqlstate="42501")

    assert json.loads(reporting.error_json(error)) == {
        "schema_version": 1,
        "type": "error",
        "exit_code": 6,
        "retryable": False,
        "message": "no",
        "detail": "because",
        "hint": "do",
        "side": "dest",
        "sqlstate": "42501",
        "others": [],
    }


LABEL = "dwh.users [2018-04-29, 2018-04-30) Europe/Vienna"


def test_a_run_tells_how_far_it_is_and_what_it_waits_for() -> None:
    clock, lines = Clock(), []
    listen = reporting.Lines(lines.append, clock=clock)
    listen(events.Planned("dwh.users", DAY, 1000, 4 * 1024**2))
    clock.now += 600
    listen.tell()
    listen(events.Cleared(0))
    clock.now += 30
    listen.tell()
    clock.now += 30
    listen(events.Progress(bytes=60 * 1024**2, rows=60))
    listen.tell()
    listen(events.Committing())
    listen.tell()
    listen(events.Decided(committed=True))

    assert lines == [
        f"{LABEL}: clearing, 600 s so far",
        f"{LABEL}: copying, 30 s so far",
        f"{LABEL}: copying, 60.0 MB of about 4.0 MB, 60 rows, 1.0 MB/s",
        f"{LABEL}: committing, 60.0 MB of about 4.0 MB, 60 rows, 1.0 MB/s",
    ]


def test_it_is_told_by_itself_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "LOG_SECONDS", 0.01)
    told, lines = threading.Event(), []
    listen = reporting.Lines(lambda line: (lines.append(line), told.set()))
    listen(events.Planned("dwh.users", DAY, 1000, 1))
    assert told.wait(5)
    listen(events.Decided(committed=True))
    time.sleep(0.1)
    written = len(lines)
    time.sleep(0.1)

    assert len(lines) == written
    assert lines[0].startswith(f"{LABEL}: clearing")


def test_a_failed_try_is_told_with_its_side_its_code_and_what_the_dest_holds() -> None:
    lines: list[str] = []
    listen = reporting.Lines(lines.append, progress=False)
    lost = ConnectionLost("source: the connection was lost", side="source", sqlstate="57P01")
    listen(events.Retried(1, 4, lost, undecided=False, seconds=1.26))
    listen(events.Settling(60))
    listen(events.Retried(2, 4, lost, undecided=True, seconds=2))

    assert lines == [
        "try 1 of 4 failed: source: the connection was lost (SQLSTATE 57P01); nothing was changed; "
        "again in 1.3 s",
        "the answer to COMMIT was lost; asking the dest for up to 60 s",
        "try 2 of 4 failed: source: the connection was lost (SQLSTATE 57P01); the dest has the old "
        "slice or the new one; again in 2.0 s",
    ]


def test_an_open_slice_says_so_and_what_has_no_end_does_not() -> None:
    assert reporting.result_line(done(open_because="x")).endswith("copied 50000, open")
    assert reporting.result_line(done(slice=Whole(), open_because="x")).endswith("copied 50000")


def test_progress_none_keeps_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "LOG_SECONDS", 0.01)
    lines: list[str] = []
    listen = reporting.Lines(lines.append, progress=False)
    listen(events.Planned("dwh.users", DAY, 1000, 1))
    time.sleep(0.1)
    listen(events.Warned("careful"))

    assert lines == ["warning: careful"]


def test_a_terminal_that_hung_up_is_no_reason_to_fail() -> None:
    class HungUp(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    bar = reporting.Bar(HungUp())
    bar(events.Connected("a@b/c", "d@e/f"))
    bar(events.Planned("dwh.users", DAY, 10, 1024))
    bar(events.Cleared(0))
    bar(events.Progress(bytes=512, rows=5))
    bar(events.Decided(committed=True))


def test_notices_of_servers_are_for_those_who_ask() -> None:
    lines: list[str] = []
    reporting.Lines(lines.append)(events.Noticed("dest", "NOTICE", "hello"))
    assert lines == []

    reporting.Lines(lines.append, verbose=True)(events.Noticed("dest", "NOTICE", "hello"))
    assert lines == ["dest: NOTICE: hello"]


def test_a_warning_of_a_server_is_for_everybody() -> None:
    lines: list[str] = []
    reporting.Lines(lines.append)(events.Noticed("dest", "WARNING", "not replicated"))

    assert lines == ["dest: WARNING: not replicated"]


def test_names_cannot_forge_a_line_or_colour_a_terminal() -> None:
    lines: list[str] = []
    reporting.Lines(lines.append)(events.Warned("a\x1b[31m\nERROR:  forged"))

    assert lines == [
        "warning: a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}ERROR:  forged"
    ]


def test_a_run_that_waits_says_for_whom() -> None:
    lines: list[str] = []
    reporting.Lines(lines.append)(events.Waiting((17, 4), 600.0))

    assert lines == ["waiting up to 600 s for another run on an overlapping slice (backends 17, 4)"]


SILENT = {
    events.Silent("source", 30.4, "computing"): "waiting for the source for 30 s: computing",
    events.Silent("dest", 7200.0, "waiting for a lock held by backend 17"): (
        "waiting for the dest for 7200 s: waiting for a lock held by backend 17"
    ),
    # What a server said is not believed to be harmless.
    events.Silent("dest", 60.0, "waiting (Ext\x1b[2J: a\nERROR:  b)"): (
        "waiting for the dest for 60 s: waiting (Ext\N{REPLACEMENT CHARACTER}[2J: a"
        "\N{REPLACEMENT CHARACTER}ERROR:  b)"
    ),
}


@pytest.mark.parametrize(("event", "line"), SILENT.items(), ids=["source", "dest", "forged"])
def test_a_server_that_is_silent_is_told_of_in_the_log_and_above_the_bar(
    event: events.Silent, line: str
) -> None:
    lines: list[str] = []
    reporting.Lines(lines.append, progress=False)(event)
    screen = io.StringIO()
    bar = reporting.Bar(screen)
    bar(event)  # while it is planned, and while rows flow
    bar(events.Planned("dwh.users", DAY, 10, 1024))
    bar(events.Cleared(0))
    bar(event)
    bar(events.Decided(committed=True))

    assert lines == [line]
    assert screen.getvalue().startswith(f"{line}\n")
    assert screen.getvalue().count(f"{line}\n") == 2


def test_the_bar_counts_bytes_and_gives_up_a_total_that_was_wrong() -> None:
    screen = io.StringIO()
    bar = reporting.Bar(screen)
    bar(events.Connected("a@b/c", "d@e/f"))
    bar(events.Planned("dwh.users", DAY, 10, 1024))
    bar(events.Cleared(0))
    bar(events.Progress(bytes=512, rows=5))
    bar(events.Progress(bytes=4096, rows=50))
    bar(events.Warned("above"))
    bar(events.Decided(committed=True))

    text = screen.getvalue()
    assert text.startswith("from a@b/c into d@e/f\n")
    assert "dwh.users [2018-04-29, 2018-04-30) Europe/Vienna" in text
    assert "warning: above" in text


def test_a_bar_that_stays_ends_at_what_was_copied_and_not_at_what_was_expected() -> None:
    screen = io.StringIO()
    bar = reporting.Bar(screen, leave=True)
    bar(events.Planned("dwh.users", DAY, 10, 4096))
    bar(events.Cleared(0))
    bar(events.Progress(bytes=1024, rows=5))
    bar(events.Committing())
    bar(events.Decided(committed=True))

    last = screen.getvalue().split("\r")[-1]
    assert "100%" in last
    assert "1.00k/1.00k" in last


def test_the_diagnosis_names_the_bottleneck() -> None:
    assert reporting.diagnosis(done()) == (
        "the dest is the bottleneck: 50% of 0.40 s (the source 25%, the relay 25%); "
        "carried by tls, compiled scan"
    )
    resting = Spent(source=0.0, dest=0.0, limit=3.0, all=4.0)
    assert reporting.diagnosis(done(spent=resting)).startswith(
        "the rate limit is the bottleneck: 75% of 4.00 s (the source 0%, "
    )
