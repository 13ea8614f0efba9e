"""copypipe clean --older-than removes what does not count any more; what counts is kept."""

import json
from typing import Any

import pytest

from copypipe import PlanRefused, ledger
from copypipe.ledger import Attempt
from copypipe.requests import Endpoint
from copypipe.servers import connected
from copypipe.statements.ledger import PRUNING
from plugins.command import Command, Words, no_backends
from plugins.ledgers import ALL, DAY, NEXT_DAY, Sides, add
from plugins.rows import assert_refused

OLD = ("clean", "--older-than", "90d")

ONCE, NEXT = {"day": DAY}, {"day": NEXT_DAY}
BOTH = {"start": DAY, "stop": "2018-05-01"}
APPEND = {"mode": "append", "again": True}
EMPTY = {"day": "2018-05-05"}


def age(sides: Sides, days: int = 100, which: str = "true") -> None:
    """Let rows of both tables be that old."""
    sides.dest.execute(
        f"UPDATE copypipe.slice SET recorded_at = recorded_at - interval '{days} days'"
        f" WHERE {which};"
        f"UPDATE copypipe.attempt SET began_at = began_at - interval '{days} days',"
        f" ended_at = ended_at - interval '{days} days'"
    )


def ids(sides: Sides) -> list[int]:
    return [row["id"] for row in sides.told()]


# --- copies ---------------------------------------------------------------------------------------

# What is copied, all of it long ago, and the ids that are kept.
KEPT: dict[str, tuple[list[dict[str, Any]], list[int]]] = {
    "one": ([ONCE], [1]),
    "one of each day": ([ONCE, NEXT], [1, 2]),
    "the last of two": ([ONCE, ONCE], [2]),
    "the last of three, and of another day": ([ONCE, NEXT, ONCE, ONCE], [2, 4]),
    "a day of a later range": ([ONCE, BOTH], [2]),
    "a range of which one day came later": ([BOTH, ONCE], [1, 2]),
    "a range whose days all came later": ([BOTH, ONCE, NEXT], [2, 3]),
    "all of it, as one": ([ALL, ALL], [2]),
    "a day, and all later": ([ONCE, ALL], [1, 2]),
    "all, and a day later": ([ALL, ONCE], [1, 2]),
    "a day by another column later": ([ONCE, {"day": NEXT_DAY, "by": "paid_at"}], [1, 2]),
    "a part of the day later": ([ONCE, {**ONCE, "where": "id = 1"}], [1, 2]),
    "a part of the day earlier": ([{**ONCE, "where": "id = 1"}, ONCE], [2]),
    "an empty day, cleared later": ([EMPTY, EMPTY], [2]),
    "rows added later": ([ONCE, {**ONCE, **APPEND}], [2]),
    "none added later": ([{**EMPTY, **APPEND}, {**EMPTY, **APPEND}], [1, 2]),
    "the day of a zone that no other has": (
        [{**ONCE, "timezone": "Europe/Vienna"}, ONCE],
        [1, 2],
    ),
}


@pytest.mark.parametrize(("copies", "kept"), KEPT.values(), ids=KEPT.keys())
@pytest.mark.one_of(8)
def test_copies_that_count_are_kept_however_old(
    sides: Sides, words: Words, copies: list[dict[str, Any]], kept: list[int]
) -> None:
    for options in copies:
        sides.copy(**options)
    age(sides)
    rows = sides.dest.text("SELECT * FROM public.t")

    done = words(*OLD, "--yes")

    assert (done.code, done.err) == (0, "")
    assert ids(sides) == kept
    gone = len(copies) - len(kept)
    assert done.out.startswith(f"removed {gone} superseded copies and {len(copies)} attempts from")
    assert sides.told("attempt") == []
    assert sides.dest.text("SELECT * FROM public.t") == rows
    no_backends(sides.dest)


def test_what_is_younger_is_kept(sides: Sides, words: Words) -> None:
    for _ in range(3):
        sides.copy(day=DAY)
    age(sides, 100, "id = 1")
    age(sides, 80, "id = 2")

    assert words(*OLD, "--yes").code == 0

    assert (ids(sides), len(sides.told("attempt"))) == ([2, 3], 0)


def test_a_later_copy_against_the_direction_leaves_the_direction_known(
    sides: Sides, words: Words
) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    sides.dest.execute("UPDATE copypipe.slice SET reversed = true WHERE id = 2")
    age(sides)

    assert words(*OLD, "--yes").code == 0

    assert ids(sides) == [1, 2]


def test_tables_are_told_apart(sides: Sides, words: Words) -> None:
    sides.dest.execute("CREATE TABLE public.u (LIKE public.t)")
    sides.copy(day=DAY)
    sides.copy(day=DAY, into="public.u")
    age(sides)

    assert words(*OLD, "--yes").code == 0

    assert ids(sides) == [1, 2]


def test_append_still_refuses_what_it_added_long_ago(sides: Sides, words: Words) -> None:
    sides.dest.execute("DELETE FROM public.t")
    sides.copy(day=DAY, mode="append")
    sides.copy(day=DAY, **{**APPEND, "where": "false"})
    age(sides)
    assert words(*OLD, "--yes").code == 0

    with pytest.raises(PlanRefused, match=r"were copied into public\.t before"):
        sides.copy(day=DAY, mode="append")


# --- attempts -------------------------------------------------------------------------------------


def test_attempts_that_failed_or_died_go_and_those_that_run_stay(
    sides: Sides, words: Words
) -> None:
    sides.make()
    running, holder = sides.hold(day=DAY)
    add(sides.dest, 8, "kept", "2018-05-05")
    with pytest.raises(PlanRefused):
        sides.copy(day="2018-05-05")
    row, failed = sides.told("attempt")
    assert (row["state"], failed["state"]) == ("running", "failed")
    other = {**row, "attempt_id": "00000000-0000-4000-8000-000000000001", "run_id": "died"}
    names = ", ".join(other)
    sides.dest.execute(
        f"INSERT INTO copypipe.attempt ({names}) SELECT {names}"
        " FROM jsonb_populate_record(NULL::copypipe.attempt, %s::text::jsonb)",
        [json.dumps(other)],
    )
    age(sides)

    dry = words(*OLD, "-n")
    assert dry.out.startswith("would remove 0 superseded copies and 2 attempts from the ledger of")
    assert words(*OLD, "--yes").code == 0
    assert [each["run_id"] for each in sides.told("attempt")] == [row["run_id"]]
    assert sides.ends(running, holder).recorded
    assert [each["state"] for each in sides.told("attempt")] == ["copied"]


def test_whether_it_was_committed_is_known_while_one_of_its_rows_is_there(sides: Sides) -> None:
    """A run that lost the answer to COMMIT asks for it, whatever somebody removes meanwhile."""
    done = sides.copy(day=DAY)
    never = Attempt(done.attempt.run_id, "00000000-0000-4000-8000-000000000001", 1)
    with connected("dest", Endpoint(sides.dest.dsn, "test"), "asks") as session:

        def known() -> list[bool | None]:
            with session.reading(lock_timeout="1s"):
                found = ledger.look(session)
                return [ledger.holds(session, found, each) for each in (done.attempt, never)]

        assert known() == [True, False]
        sides.dest.execute("DELETE FROM copypipe.slice")
        assert known() == [True, False]
        sides.dest.execute("UPDATE copypipe.attempt SET state = 'running'")
        assert known() == [False, False]


# --- asking, and what is refused ------------------------------------------------------------------


def test_it_asks_first(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    age(sides)
    what = "1 superseded copies and 2 attempts from the ledger of "

    refused = words(*OLD)
    assert_refused(refused, 2, f"to be removed: {what}")
    assert "HINT:  Give --yes" in refused.err
    dry = words(*OLD, "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert dry.out.startswith(f"would remove {what}")
    assert ids(sides) == [1, 2]
    assert words(*OLD, "--yes").out.startswith(f"removed {what}")
    nothing = words(*OLD)
    assert (nothing.code, nothing.err) == (0, "")
    assert nothing.out.startswith("nothing to remove from the ledger of ")
    assert sides.has_ledger()


@pytest.mark.parametrize(("answer", "kept"), [("y\n", [2]), ("n\n", [1, 2])])
@pytest.mark.one_of(2)
def test_it_asks_on_a_terminal(sides: Sides, run: Command, answer: str, kept: list[int]) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    age(sides)

    asked = run(*OLD, tty=True, input=answer)

    assert "to be removed: 1 superseded copies and 2 attempts" in asked.err
    assert "Remove it? [y/N]: " in asked.err
    assert (asked.code, ids(sides)) == (0 if kept == [2] else 2, kept)


REFUSED = {
    "no age": ("--older-than soon", "not a duration: 'soon'"),
    "a month, which is a minute": ("--older-than 3m", "not a duration: '3m'"),
    "too young": ("--older-than 9min", "cannot remove what is older than 540 seconds\nHINT:  At l"),
    "too old": ("--older-than 40000d", "cannot remove what is older than .*at most 36525 days"),
    "a table": ("t --older-than 90d", "the table t was given without --forget"),
    "a range": (f"t --older-than 90d --forget {DAY}", "--forget and --older-than were both given"),
    "a zone": ("--older-than 90d --timezone UTC", "--timezone was given without --forget"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(sides: Sides, words: Words, options: str, message: str) -> None:
    sides.copy(day=DAY)

    assert_refused(words("clean", *options.split(), "--yes"), 2, f"(?s){message}")
    assert ids(sides) == [1]


def test_without_a_ledger_there_is_nothing_to_do(sides: Sides, words: Words) -> None:
    done = words(*OLD, "--yes")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("there is no ledger in ")
    assert not sides.has_ledger()


def test_it_needs_delete_and_no_more(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    age(sides)
    writer, role = sides.writer(), sides.dest.role("janitor")
    sides.grant(writer)

    for options in (("--yes",), ("-n",)):
        refused = words(*OLD, *options, env={"COPYPIPE_DEST": writer.dsn})
        assert_refused(refused, 6, "dest: the ledger cannot be used for that")
        granted = ("attempt", "slice")
        wanted = "; ".join(f"GRANT DELETE ON copypipe.{table} TO the role" for table in granted)
        assert f"HINT:  {wanted}.\n" in refused.err
    assert ids(sides) == [1, 2]
    sides.dest.execute(f"GRANT USAGE ON SCHEMA copypipe TO {role.name}")
    for table, rights in PRUNING.items():
        sides.dest.execute(f"GRANT {', '.join(rights)} ON copypipe.{table} TO {role.name}")

    assert words(*OLD, "--yes", env={"COPYPIPE_DEST": role.dsn}).code == 0
    assert ids(sides) == [2]


def test_transfers_do_not_wait_for_it_nor_it_for_them(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    age(sides)
    running, holder = sides.hold(day=DAY)

    assert words(*OLD, "--yes", "--wait-lock", "0").code == 0

    assert ids(sides) == [2]
    assert sides.ends(running, holder).recorded
    assert ids(sides) == [2, 3]


def test_whoever_removes_the_ledger_is_waited_for(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    age(sides)
    remover = sides.dest.connect(autocommit=False)
    remover.execute("SELECT pg_advisory_xact_lock(%s)", [ledger.IN_USE.key(0)])

    busy = words(*OLD, "--yes", "--wait-lock", "100ms")

    assert_refused(busy, 11, "dest: the ledger is in use by other runs")
    assert ids(sides) == [1, 2]
