"""What the ledger and both sides tell becomes a state, and states become a calendar."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from copypipe import reporting
from copypipe.calendars import DIED, Calendar, Failure, Mark, Seen, Square, gathered, judged
from copypipe.ledger import Entry, Try
from copypipe.reporting import LOOKS, Repair, calendar_json, calendar_lines, shows_glyphs
from copypipe.slices import TIMESTAMPTZ, Covered, Period, Range

STATES = {look.plain: state for state, look in LOOKS.items()}
FIRST = date(2018, 4, 1)  # a Sunday
LENGTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}


def moment(day: float) -> datetime:
    """Return an instant so many days after the first."""
    return datetime(2018, 4, 1, tzinfo=UTC) + timedelta(days=day)


def between(start: float, stop: float) -> Range:
    return Range("created_at", TIMESTAMPTZ, moment(start), moment(stop), "UTC")


# --- what the ledger tells ------------------------------------------------------------------------


def entry(start: float, stop: float, rows: int = 5, **changes: bool) -> Entry:
    facts = {"is_this": True, "is_whole": False, "is_sealed": True, **changes}
    return Entry(**facts, rows=rows, instants=[[moment(start), moment(stop)]])


def attempt(state: Any, start: float = 0, stop: float = 1, *, alive: bool = False) -> Try:
    told = ("dest", "23514", "CopyFailed") if state == "failed" else (None, None, None)
    return Try(state, alive, *told, [[moment(start), moment(stop)]])


ALL = Entry(True, True, False, 99, [[None, None]])
FAILED = Failure("CopyFailed", "dest", "23514")

# Entries and attempts, the last first; what is told of the first day.
MARKS: dict[str, tuple[list[Entry], list[Try], Mark]] = {
    "nothing": ([], [], Mark()),
    "another day": ([entry(1, 2)], [attempt("failed", 1, 2)], Mark()),
    "itself": ([entry(0, 1)], [attempt("copied")], Mark("copied", 5, True)),
    "itself, without a row": ([entry(0, 1, 0)], [], Mark("copied", 0, False)),
    "halves": ([entry(0.5, 1, 3), entry(0, 0.5, 4)], [], Mark("copied", 7, True)),
    "a longer one": ([entry(-3, 3)], [], Mark("copied", None, True)),
    "halves of a longer one": ([entry(0, 0.5, 2), entry(-3, 3)], [], Mark("copied", None, True)),
    "a half": ([entry(0, 0.5)], [], Mark("open", 5, True)),
    "open": ([entry(0, 1, is_sealed=False)], [], Mark("open", 5, True)),
    "sealed, then open": (
        [entry(0, 1, 6, is_sealed=False), entry(0, 1)],
        [],
        Mark("open", 6, True),
    ),
    "open, then sealed": (
        [entry(0, 1, 6), entry(0, 1, is_sealed=False)],
        [],
        Mark("copied", 6, True),
    ),
    "open in part": ([entry(0.5, 1, is_sealed=False), entry(0, 1)], [], Mark("open", None, True)),
    "all rows, by no column": ([ALL], [], Mark("open")),
    "all rows of a table that is gone": ([ALL._replace(is_this=False)], [], Mark()),
    "a day, then all rows": ([ALL, entry(0, 1)], [], Mark("copied", 5, True)),
    "of a table that is gone": ([entry(0, 1, is_this=False)], [], Mark(was_filled=True)),
    "of a table that is gone, without a row": ([entry(0, 1, 0, is_this=False)], [], Mark()),
    "a failure": ([], [attempt("failed")], Mark("failed", failure=FAILED)),
    "a failure that was made good": (
        [entry(0, 1)],
        [attempt("copied"), attempt("failed")],
        Mark("copied", 5, True),
    ),
    "a failure, and it is covered": (
        [entry(0, 1)],
        [attempt("failed"), attempt("copied")],
        Mark("copied", 5, True),
    ),
    "a failure after an open one": (
        [entry(0, 1, is_sealed=False)],
        [attempt("failed"), attempt("copied")],
        Mark("failed", 5, True, FAILED),
    ),
    "an open one after a failure": (
        [entry(0, 1, is_sealed=False)],
        [attempt("copied"), attempt("failed")],
        Mark("open", 5, True),
    ),
    "a half that failed": (
        [entry(0, 0.5)],
        [attempt("failed", 0.5, 1), attempt("copied", 0, 0.5)],
        Mark("failed", 5, True, FAILED),
    ),
    "a failure of a longer one": ([], [attempt("failed", -9, 9)], Mark("failed", failure=FAILED)),
    "another run found it copied": ([], [attempt("skipped"), attempt("failed")], Mark()),
    "a run that died": (
        [],
        [attempt("running")],
        Mark("failed", failure=Failure(DIED, None, None)),
    ),
    "a run at work": ([], [attempt("running", alive=True)], Mark("running")),
    "a run at work, and one that failed since": (
        [],
        [attempt("failed"), attempt("running", alive=True)],
        Mark("running"),
    ),
    "it is copied once more": (
        [entry(0, 1)],
        [attempt("running", alive=True)],
        Mark("running", 5, True),
    ),
    "a run at work on all rows": (
        [],
        [Try("running", True, None, None, None, [[None, None]])],
        Mark("running"),
    ),
}


@pytest.mark.parametrize(("entries", "tries", "mark"), MARKS.values(), ids=MARKS.keys())
def test_what_the_ledger_tells_of_a_day(entries: list[Entry], tries: list[Try], mark: Mark) -> None:
    assert gathered(entries, tries).of(between(0, 1)) == mark


def test_a_day_with_a_hole_is_covered_by_what_has_the_hole_too() -> None:
    """The clock went back across midnight: the hull of the day holds an hour of the next one."""
    day = Range(
        "created_at",
        TIMESTAMPTZ,
        moment(0),
        moment(1),
        "America/St_Johns",
        holes=((moment(0.5), moment(0.6)),),
    )
    told = Entry(True, False, True, 8, [[moment(0), moment(0.5)], [moment(0.6), moment(1)]])

    assert gathered([told], []).of(day) == Mark("copied", 8, True)
    assert gathered([told], []).of(between(0, 1)).state == "open"


def test_a_day_without_an_instant_is_empty() -> None:
    mark = gathered([entry(-5, 5)], []).of(between(0, 0))

    assert (mark, judged(mark, Seen(False), Seen(False))) == (Mark(), "empty")


@pytest.mark.parametrize(
    ("start", "stop", "lacking"),
    [
        (0, 9, [(0, 1), (2, 3), (5, 9)]),
        (1, 2, []),
        (1.5, 4, [(2, 3)]),
        (2, 3, [(2, 3)]),
        (6, 7, [(6, 7)]),
    ],
)
def test_what_of_an_interval_is_not_covered(
    start: float, stop: float, lacking: list[tuple[float, float]]
) -> None:
    covered = Covered()
    covered.add(moment(1), moment(2))
    covered.add(moment(3), moment(5))

    assert covered.lacking(moment(start), moment(stop)) == [
        (moment(one), moment(other)) for one, other in lacking
    ]
    whole = [(moment(start), moment(stop))]
    assert covered.touches(moment(start), moment(stop)) is (
        covered.lacking(moment(start), moment(stop)) != whole
    )


# --- what both sides show -------------------------------------------------------------------------

NOT_SEEN, NONE, SOME = Seen(), Seen(False), Seen(True)
COPIED, TOGETHER = Mark("copied", 5, True), Mark("copied", None, True)

# Of the ledger, the source and the dest.
JUDGED: dict[str, tuple[Mark, Seen, Seen, str]] = {
    "copied": (COPIED, NOT_SEEN, SOME, "copied"),
    "copied, without an index at the dest": (COPIED, NOT_SEEN, NOT_SEEN, "copied"),
    "copied, there never was a row": (Mark("copied", 0, False), NOT_SEEN, NOT_SEEN, "copied"),
    "gone": (COPIED, NOT_SEEN, NONE, "lost"),
    "copied with others, none here": (TOGETHER, NONE, NONE, "copied"),
    "copied with others, gone": (TOGETHER, SOME, NONE, "lost"),
    "the table was dropped": (Mark(was_filled=True), SOME, NONE, "lost"),
    "dropped, and the source is not looked at": (Mark(was_filled=True), NOT_SEEN, NONE, "lost"),
    "dropped, and filled": (Mark(was_filled=True), SOME, SOME, "unrecorded"),
    "dropped, and the source has none": (Mark(was_filled=True), NONE, NONE, "empty"),
    "missing": (Mark(), SOME, NONE, "missing"),
    "missing, without an index at the dest": (Mark(), SOME, NOT_SEEN, "missing"),
    "copied by something else": (Mark(), SOME, SOME, "unrecorded"),
    "nothing there": (Mark(), NONE, NONE, "empty"),
    "without an index at the source": (Mark(), NOT_SEEN, NONE, "unknown"),
    "open": (Mark("open", 5, True), Seen(True, 6), Seen(True, 5), "open"),
    "running": (Mark("running"), Seen(True, 6), Seen(True, 5), "running"),
    "failed": (Mark("failed"), Seen(True, 6), Seen(True, 5), "failed"),
    "as many": (COPIED, Seen(True, 5), Seen(True, 5), "copied"),
    "fewer": (COPIED, Seen(True, 6), Seen(True, 5), "differs"),
    "all counted and gone": (COPIED, Seen(True, 5), Seen(False, 0), "lost"),
    "late rows where there were none": (
        Mark("copied", 0, False),
        Seen(True, 1),
        Seen(False, 0),
        "differs",
    ),
    "rows that the source lacks": (Mark(), Seen(False, 0), Seen(True, 1), "differs"),
    "as many, not recorded": (Mark(), Seen(True, 5), Seen(True, 5), "unrecorded"),
    "others, not recorded": (Mark(), Seen(True, 5), Seen(True, 4), "differs"),
    "counted and missing": (Mark(), Seen(True, 5), Seen(False, 0), "missing"),
}


@pytest.mark.parametrize(("mark", "here", "there", "state"), JUDGED.values(), ids=JUDGED.keys())
def test_the_state_of_a_slice(mark: Mark, here: Seen, there: Seen, state: str) -> None:
    assert judged(mark, here, there) == state


# --- what is shown --------------------------------------------------------------------------------


def calendar(states: str, *, every: Any = "day", first: date = FIRST, **changes: Any) -> Calendar:
    """Return a calendar of these states, written by their plain glyphs."""
    squares, start = [], datetime(first.year, first.month, first.day, tzinfo=UTC)
    for state in states:
        stop = start + LENGTHS.get(every, timedelta(0))
        if every == "month":
            stop = (start + timedelta(days=32)).replace(day=1)
        period = Period(start.date(), stop.date()) if every != "hour" else Period(start, stop)
        squares.append(
            Square(
                period=period,
                slice=Range("created_at", TIMESTAMPTZ, start, stop, "UTC"),
                day=start.date(),
                hour=start.hour,
                state=STATES[state],
                recorded=None,
                source_rows=None,
                dest_rows=None,
                failure=FAILED if state == "X" else None,
            )
        )
        start = stop
    days = (first, start.date())
    facts = {
        "source_table": "public.users",
        "table": "dwh.users",
        "around": Range("created_at", TIMESTAMPTZ, moment(0), start, "UTC", days),
        "every": every,
        "counted": False,
        "has_ledger": True,
        "squares": tuple(squares),
    }
    return Calendar(**{**facts, **changes})


def plain(found: Calendar, *repairs: Repair) -> list[str]:
    return list(calendar_lines(found, repairs, glyphs=False))


def test_weeks_are_rows_that_begin_on_monday_and_months_are_named() -> None:
    assert plain(calendar("####o##X" + "m" * 22 + "...>")) == [
        "dwh.users [2018-04-01, 2018-05-05) UTC  by created_at, a week a row",
        "",
        "            Mo Tu We Th Fr Sa Su",
        "2018-03-26                    #   April 2018",
        "2018-04-02  #  #  #  o  #  #  X",
        "2018-04-09  m  m  m  m  m  m  m",
        "2018-04-16  m  m  m  m  m  m  m",
        "2018-04-23  m  m  m  m  m  m  m",
        "2018-04-30  m  .  .  .  >         May 2018",
        "",
        "# copied 6  o open 1  X failed 1  > running 1  m missing 22  . empty 3",
        "failed: [2018-04-08, 2018-04-09), CopyFailed at the dest, SQLSTATE 23514",
    ]


def test_hours_are_shown_a_day_a_row() -> None:
    assert plain(calendar("#" * 25 + "!", every="hour"))[2:5] == [
        "            0     3     6     9     12    15    18    21",
        f"2018-04-01  {' '.join('#' * 24)}",
        "2018-04-02  # !",
    ]


def test_weeks_are_shown_a_year_a_row() -> None:
    lines = plain(calendar("#" * 40 + "m" * 60, every="week", first=date(2018, 1, 1)))

    assert lines[2:5] == [
        "      1         11        21        31        41        51",
        f"2018  {'#' * 40}{'m' * 12}",
        f"2019  {'m' * 48}",
    ]


def test_a_week_belongs_to_the_year_of_its_thursday() -> None:
    assert plain(calendar("#m", every="week", first=date(2018, 12, 31)))[3] == "2019  #m"


def test_months_are_shown_a_year_a_row() -> None:
    assert plain(calendar("##mm", every="month", first=date(2018, 11, 1)))[2:5] == [
        "      Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
        f"2018  {' ' * 40}#   #",
        "2019  m   m",
    ]


def test_colour_changes_nothing_else() -> None:
    found = calendar("".join(STATES))
    colourful = list(calendar_lines(found, [], colour=True, glyphs=False))

    assert "\x1b[32m#\x1b[0m" in colourful[3]
    assert len({look.colour for look in LOOKS.values()}) >= 8
    bare = colourful
    for look in LOOKS.values():
        bare = [line.replace(f"\x1b[{look.colour}m", "").replace("\x1b[0m", "") for line in bare]
    assert bare == plain(found)


def test_every_state_has_a_glyph_of_its_own() -> None:
    for glyphs in zip(*((look.glyph, look.plain) for look in LOOKS.values()), strict=True):
        assert len(set(glyphs)) == len(LOOKS)
        assert all(len(glyph) == 1 for glyph in glyphs)


@pytest.mark.parametrize(
    ("encoding", "shows"), [("utf-8", True), ("latin-1", False), ("ascii", False), (None, False)]
)
def test_glyphs_are_for_who_can_show_them(encoding: str | None, shows: bool) -> None:
    assert shows_glyphs(encoding) is shows


def test_failures_of_neighbours_are_told_once() -> None:
    lines = plain(calendar("XXX#X"))

    assert lines[-2:] == [
        "failed: [2018-04-01, 2018-04-04), CopyFailed at the dest, SQLSTATE 23514",
        "failed: [2018-04-05, 2018-04-06), CopyFailed at the dest, SQLSTATE 23514",
    ]


def test_of_many_failures_some_are_shown() -> None:
    lines = plain(calendar("X#" * 30))

    assert sum(line.startswith("failed: ") for line in lines) == reporting.SHOWN_FAILURES
    assert lines[-1] == "... 20 more that failed (--json lists them)"


def test_repairs_come_last_and_cannot_forge_a_line() -> None:
    lines = plain(calendar("m"), Repair("copy it", ["copypipe backfill 'a\x1b[31m\nb'"]))

    assert lines[-3:] == [
        "",
        "copy it:",
        "  copypipe backfill 'a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b'",
    ]


def test_runs_are_of_neighbours() -> None:
    found = calendar("mm#mLXo.m")

    assert [(p.start.day, p.stop.day) for p in found.runs({"missing", "lost", "failed"})] == [
        (1, 3),
        (4, 7),
        (9, 10),
    ]
    assert calendar("###").runs({"missing"}) == []


def test_a_calendar_as_json() -> None:
    told = json.loads(calendar_json(calendar("#X"), [Repair("why", ["copypipe backfill t"])]))

    assert (told["schema_version"], told["type"], told["every"]) == (1, "calendar", "day")
    assert (told["source_table"], told["dest_table"]) == ("public.users", "dwh.users")
    assert (told["ledger"], told["counted"]) == (True, False)
    assert {state for state, count in told["states"].items() if count} == {"copied", "failed"}
    assert told["slices"][1] == {
        "slice": {
            "all": False,
            "by": "created_at",
            "start": "2018-04-02T00:00:00+00:00",
            "stop": "2018-04-03T00:00:00+00:00",
            "timezone": "UTC",
            "first_day": None,
            "day_after": None,
            "holes": [],
        },
        "state": "failed",
        "rows_recorded": None,
        "rows_at_source": None,
        "rows_at_dest": None,
        "error": "CopyFailed",
        "side": "dest",
        "sqlstate": "23514",
    }
    assert told["repairs"] == ["copypipe backfill t"]
