"""copypipe receipt prints what the ledger tells of a slice; only the dest is asked."""

import json
from datetime import datetime
from typing import Any

import pytest

from copypipe.statements.ledger import READING
from plugins.command import Words, no_backends
from plugins.databases import Role
from plugins.ledgers import ALL, DAY, NEXT_DAY, Sides
from plugins.rows import assert_refused

APRIL = {"start": "2018-04-01", "stop": "2018-05-01"}
INSTANTS = [["2018-04-29T00:00:00+00:00", "2018-04-30T00:00:00+00:00"]]


def printed(words: Words, *options: str, env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the objects that the command prints for the table."""
    nowhere = {"COPYPIPE_SOURCE": "host=127.0.0.1 port=1", **(env or {})}
    run = words("receipt", "t", *options, env=nowhere)
    assert (run.code, run.err) == (0, ""), run.err
    return [json.loads(line) for line in run.out.splitlines()]


# --- what it tells --------------------------------------------------------------------------------


def test_a_receipt_tells_all_that_is_recorded(sides: Sides, words: Words) -> None:
    done = sides.copy(day=DAY, verify="checksum")
    (row,) = sides.told()

    (found,) = printed(words, "--day", DAY)

    assert {name: found.pop(name) for name in ("schema_version", "type")} == {
        "schema_version": 1,
        "type": "receipt",
    }
    at = {name: found.pop(name) for name in ("complete_until", "began_at", "recorded_at")}
    at["source_clock"] = found["source"].pop("clock")
    for name, moment in at.items():
        assert datetime.fromisoformat(moment) == datetime.fromisoformat(row[name])
    assert found == {
        "id": row["id"],
        "run_id": done.attempt.run_id,
        "attempt_id": done.attempt.attempt_id,
        "source": {
            "table": "public.t",
            "address": row["source_address"],
            "system_identifier": row["source_system"],
            "database_oid": int(row["source_database_oid"]),
        },
        "dest_table": "public.t",
        "slice": {"all": False, "by": "created_at", "timezone": "UTC", "instants": INSTANTS},
        "mode": "replace",
        "rows": 1,
        "deleted": 1,
        "bytes": done.bytes,
        "format": "binary",
        "digest": str(done.digest),
        "signature": row["signature"],
        "reversed": False,
        "state": "sealed",
        "open_because": None,
        "tool_version": row["tool_version"],
        "manifest": row["manifest"],
        "superseded": False,
        "superseded_by": [],
        "by_another_column": [],
    }
    assert {"copy_out", "copy_in"} <= found["manifest"]["statements"].keys()
    assert {"version", "snapshot", "lsn"} == found["manifest"]["source"].keys()
    no_backends(sides.dest)


# What is copied, the options of the receipt, and of each object: its id, what superseded it.
Copies = list[dict[str, Any]]
ONCE, NEXT = {"day": DAY}, {"day": NEXT_DAY}
SOME = {"day": DAY, "where": "id = 1"}
BY_ANOTHER = {"day": DAY, "by": "paid_at", "allow_empty": True}
TOLD: dict[str, tuple[Copies, str, list[tuple[int, list[int]]]]] = {
    "a day": ([ONCE], f"--day {DAY}", [(1, [])]),
    "the last of two": ([ONCE, ONCE], f"--day {DAY}", [(2, [])]),
    "a day within a later month": ([ONCE, APRIL], f"--day {DAY}", [(1, [2])]),
    "a day and a later one that took all": ([ONCE, ALL], f"--day {DAY}", [(1, [2])]),
    "a day and a neighbour": ([ONCE, NEXT], f"--day {DAY}", [(1, [])]),
    "the month of an earlier day": ([ONCE, APRIL], "--month 2018-04", [(2, [])]),
    "the month of a later day": ([APRIL, ONCE], "--month 2018-04", [(1, [2])]),
    "a range": ([APRIL], "--from 2018-04-01 --to 2018-05-01", [(1, [])]),
    "all": ([ALL], "--all", [(1, [])]),
    "all, and a later day": ([ALL, ONCE], "--all", [(1, [2])]),
    "nothing exactly: what has rows of it": ([ONCE, NEXT], "--month 2018-04", [(2, []), (1, [])]),
    "nothing exactly: not what is superseded": (
        [ONCE, ONCE, NEXT],
        "--month 2018-04",
        [(3, []), (2, [])],
    ),
    "nothing exactly: a day of a month": ([APRIL], f"--day {DAY}", [(1, [])]),
    "nothing exactly: a day of all": ([ALL], f"--day {DAY}", [(1, [])]),
    "nothing exactly: of all, each": ([ONCE, NEXT], "--all", [(2, []), (1, [])]),
    "a part of the rows is not the slice": ([ONCE, SOME], f"--day {DAY}", [(1, [2])]),
    "a part of the rows alone": ([SOME], f"--day {DAY}", [(1, [])]),
    "a zone": (
        [{"day": DAY, "timezone": "Europe/Vienna"}],
        f"--day {DAY} --timezone Europe/Vienna",
        [(1, [])],
    ),
    "the day of another zone": (
        [{"day": DAY, "timezone": "Europe/Vienna"}],
        f"--day {DAY}",
        [(1, [])],
    ),
    "a time without a zone": ([{"day": DAY, "by": "at"}], f"--day {DAY} --by at", [(1, [])]),
    "a date": ([{"day": DAY, "by": "of"}], f"--day {DAY} --by of", [(1, [])]),
    "by its own column": ([ONCE, BY_ANOTHER], f"--day {DAY} --by paid_at", [(2, [])]),
}


@pytest.mark.parametrize(("copies", "options", "told"), TOLD.values(), ids=TOLD.keys())
@pytest.mark.one_of(8)
def test_which_copies_are_told_of(
    sides: Sides, words: Words, copies: Copies, options: str, told: list[tuple[int, list[int]]]
) -> None:
    for options_of_copy in copies:
        sides.copy(**options_of_copy)

    found = printed(words, *options.split())

    assert [(each["id"], each["superseded_by"]) for each in found] == told
    assert not any(each["by_another_column"] for each in found)


def test_whether_all_of_it_is_superseded(sides: Sides, words: Words) -> None:
    sides.copy(**APRIL)
    for day in (DAY, NEXT_DAY):
        sides.copy(day=day)
        (found,) = printed(words, "--month", "2018-04")
        assert found["superseded"] is False
    sides.copy(start="2018-04-01", stop=DAY)

    (found,) = printed(words, "--month", "2018-04")

    assert (found["superseded"], found["superseded_by"]) == (True, [2, 3, 4])


def test_of_a_later_copy_by_another_column_nobody_can_tell(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(**BY_ANOTHER)

    (found,) = printed(words, "--day", DAY)

    assert (found["id"], found["superseded_by"], found["by_another_column"]) == (1, [], [2])


def test_slices_of_all_rows_and_of_a_condition(sides: Sides, words: Words) -> None:
    sides.copy(**ALL)
    sides.copy(where="id = 1")
    sides.copy(**SOME)

    found = printed(words, "--day", DAY)

    assert [each["slice"] for each in found] == [
        {
            "all": False,
            "where": "id = 1",
            "by": "created_at",
            "timezone": "UTC",
            "instants": INSTANTS,
        },
        {"all": False, "where": "id = 1"},
        {"all": True},
    ]


def test_the_table_is_that_of_the_dest(sides: Sides, words: Words) -> None:
    sides.dest.execute('CREATE TABLE public."T u" (LIKE public.t)')
    sides.copy(day=DAY, into='public."T u"')

    run = words("receipt", '"T u"', "--day", DAY)

    assert json.loads(run.out)["dest_table"] == "public.T u"
    assert_refused(words("receipt", "t", "--day", DAY), 6, "no copy of .* of public.t is recorded")


def test_one_that_verify_recorded(sides: Sides, words: Words) -> None:
    sides.dest.execute("DELETE FROM public.t")
    sides.copy(day=DAY, ledger=False)
    assert words("verify", "t", "--day", DAY, "--record").code == 0

    (found,) = printed(words, "--day", DAY)

    assert (found["mode"], found["rows"], found["bytes"]) == ("verify", 1, 0)
    assert found["digest"]


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "no slice": ("t", 2, "which rows.*\nHINT:  Give one of --day, --month, --from with --to, or"),
    "two slices": (f"t --day {DAY} --all", 2, "several slices were asked for"),
    "half a range": (f"t --from {DAY}", 2, "a range needs both its ends"),
    "a range of nothing": (f"t --from {DAY} --to {DAY}", 2, "the range is empty"),
    "no day": ("t --day tomorrow", 2, "not a day: 'tomorrow'"),
    "no zone": (f"t --day {DAY} --timezone +02", 2, "not the name of a time zone"),
    "a zone that is not known": (
        f"t --day {DAY} --timezone Europe/Atlantis",
        2,
        "the dest knows no time zone 'Europe/Atlantis'",
    ),
    "no table": (f"missing --day {DAY}", 6, "dest: there is no table missing"),
    "no column": (f"t --day {DAY} --by gone", 6, "dest: public.t has no column .gone. to slice by"),
    "a column of no time": (f"t --day {DAY} --by note", 6, "the slice column .note. is of type te"),
    "a time of a date": (
        f"t --from {DAY}T10:00 --to {NEXT_DAY} --by of",
        6,
        "the slice column .of. is a date and",
    ),
    "nothing recorded": (
        "t --day 2018-05-29",
        6,
        "no copy of .2018-05-29, 2018-05-30. UTC of public.t is recorded\nDETAIL: .*\n"
        "HINT:  Name the dest's table",
    ),
    "nothing recorded by that column": (f"t --day {DAY} --by paid_at", 6, "no copy of "),
}


@pytest.mark.parametrize(("command", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.one_of(8)
def test_what_is_refused(sides: Sides, words: Words, command: str, code: int, message: str) -> None:
    sides.copy(day=DAY)

    assert_refused(words("receipt", *command.split()), code, message)
    no_backends(sides.dest)


def test_without_a_ledger(sides: Sides, words: Words) -> None:
    for _ in ("no schema", "an empty one"):
        refused = words("receipt", "t", "--day", DAY)
        assert_refused(refused, 6, "there is no ledger in .*\nDETAIL: .*\nHINT:  A copy makes one")
        sides.dest.execute("CREATE SCHEMA IF NOT EXISTS copypipe")


def test_a_ledger_of_a_newer_copypipe(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.dest.execute("UPDATE copypipe.version SET version = 99")

    assert_refused(words("receipt", "t", "--day", DAY), 6, "the ledger there is of a newer copypi")


# --- rights ---------------------------------------------------------------------------------------


def reader(sides: Sides) -> Role:
    """Return a role of the dest that has no right on anything of ours."""
    return sides.dest.role("reader")


def test_reading_needs_the_schema_and_one_table_of_it(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    role = reader(sides)
    env = {"COPYPIPE_DEST": role.dsn}
    assert READING == {"slice": ("SELECT",)}

    refused = words("receipt", "t", "--day", DAY, env=env)
    assert_refused(refused, 6, "dest: the ledger cannot be used for that\nDETAIL: .*lacks USAGE")
    assert "HINT:  GRANT USAGE ON SCHEMA copypipe TO the role." in refused.err
    sides.dest.execute(f"GRANT USAGE ON SCHEMA copypipe TO {role.name}")
    refused = words("receipt", "t", "--day", DAY, env=env)
    assert_refused(refused, 6, "the role lacks SELECT ON copypipe.slice\\.")
    assert "HINT:  GRANT SELECT ON copypipe.slice TO the role." in refused.err
    sides.dest.execute(f"GRANT SELECT ON copypipe.slice TO {role.name}")

    (found,) = printed(words, "--day", DAY, env=env)
    assert found["id"] == 1


def test_a_ledger_of_a_stranger_is_not_read(sides: Sides, words: Words) -> None:
    """It may be a view, whose functions would run with the rights of whoever reads."""
    stranger, role = sides.dest.role("stranger"), reader(sides)
    sides.dest.execute(
        f"CREATE SCHEMA copypipe AUTHORIZATION {stranger.name};"
        "CREATE VIEW copypipe.slice AS SELECT 1; CREATE VIEW copypipe.version AS SELECT 1;"
        f"ALTER VIEW copypipe.slice OWNER TO {stranger.name};"
        f"GRANT USAGE ON SCHEMA copypipe TO {role.name};"
        f"GRANT SELECT ON copypipe.slice TO {role.name}"
    )

    refused = words("receipt", "t", "--day", DAY, env={"COPYPIPE_DEST": role.dsn})

    assert_refused(refused, 6, "dest: the ledger cannot be used for that")
    assert "could run anything as this role" in refused.err


def test_partitions_have_receipts_of_their_own(sides: Sides, words: Words) -> None:
    sides.dest.execute(
        "DROP TABLE public.t; CREATE TABLE public.t (id int, note text, created_at timestamptz,"
        " paid_at timestamptz, at timestamp, of date) PARTITION BY LIST (id);"
        "CREATE TABLE public.p PARTITION OF public.t FOR VALUES IN (1);"
        "CREATE TABLE public.q PARTITION OF public.t DEFAULT"
    )
    sides.copy(day=DAY)
    sides.copy(day=DAY, into="public.p")

    def told(name: str) -> list[tuple[int, list[int], bool]]:
        run = words("receipt", name, "--day", DAY)
        found = [json.loads(line) for line in run.out.splitlines()]
        return [(each["id"], each["superseded_by"], each["superseded"]) for each in found]

    assert told("t") == [(1, [2], False)], "the partition's copy tells nothing of the others"
    assert told("p") == [(2, [], False)]
    assert told("q") == [(1, [], False)], "what it is a part of was copied"

    sides.copy(day=DAY)
    assert told("p") == [(2, [3], True)]
