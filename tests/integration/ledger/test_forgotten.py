"""copypipe clean TABLE --forget: what was copied is unknown again, and is copied or added again."""

import json
from typing import Any

import pytest

from copypipe import PlanRefused
from copypipe.statements.ledger import FORGETTING
from plugins.command import Command, Words, eventually, no_backends
from plugins.ledgers import ALL, DAY, NEXT_DAY, Sides
from plugins.rows import assert_refused

FORGET = ("clean", "t", "--yes", "--forget")

ONCE, NEXT = {"day": DAY}, {"day": NEXT_DAY}
BOTH = {"start": DAY, "stop": "2018-05-01"}
BY_ANOTHER = {"day": DAY, "by": "paid_at", "allow_empty": True}


def ids(sides: Sides) -> list[int]:
    return [row["id"] for row in sides.told()]


# --- what is forgotten ----------------------------------------------------------------------------

# What is copied, the range and the options, and the ids that are kept.
KEPT: dict[str, tuple[list[dict[str, Any]], str, list[int]]] = {
    "a day": ([ONCE, NEXT], DAY, [2]),
    "a day, each time": ([ONCE, ONCE, NEXT], DAY, [3]),
    "a range": ([ONCE, NEXT], f"{DAY}..2018-05-01", []),
    "a range without its end": ([ONCE, NEXT], f"2018-04-01..{NEXT_DAY}", [2]),
    "times": ([ONCE, NEXT], f"{DAY}T10:00..{DAY}T11:00", [2]),
    "instants": ([ONCE, NEXT], f"{NEXT_DAY}T01:00+02:00..{NEXT_DAY}T02:00+02:00", [2]),
    "all": ([ONCE, NEXT, ALL, BY_ANOTHER], "all", []),
    "ALL": ([ONCE], "ALL", []),
    "a day of a range": ([BOTH, NEXT], DAY, [2]),
    "a day of all": ([ALL, NEXT], DAY, [2]),
    "a day of a condition": ([{**ONCE, "where": "id = 1"}, {"where": "id = 2"}, NEXT], DAY, [3]),
    "a day of a zone": ([NEXT], f"{DAY} --timezone America/New_York", []),
    "not the day of another zone": ([NEXT], f"{DAY} --timezone UTC", [1]),
    "a day by another column": ([ONCE, BY_ANOTHER], f"{DAY} --by paid_at", [1]),
    "a day of a date": ([{"day": DAY, "by": "of"}], f"{DAY} --by of", []),
    "yesterday": ([ONCE], "yesterday", [1]),
    "days ago": ([ONCE], "-3d..today", [1]),
    "from then to now": ([ONCE, NEXT], f"{NEXT_DAY}..today", [1]),
}


@pytest.mark.parametrize(("copies", "range_", "kept"), KEPT.values(), ids=KEPT.keys())
@pytest.mark.one_of(8)
def test_what_is_forgotten(
    sides: Sides, words: Words, copies: list[dict[str, Any]], range_: str, kept: list[int]
) -> None:
    for options in copies:
        sides.copy(**options)
    rows = sides.dest.text("SELECT * FROM public.t")

    dry = words(*FORGET, *range_.split(), "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    gone = len(copies) - len(kept)
    assert f": {gone} copies that have rows of " in dry.out
    assert len(ids(sides)) == len(copies)
    done = words(*FORGET, *range_.split())

    assert (done.code, done.err) == (0, "")
    assert f"removed {gone} copies from the ledger of " in done.out
    assert ids(sides) == kept
    assert sides.dest.text("SELECT * FROM public.t") == rows
    assert len(sides.told("attempt")) == len(copies)
    no_backends(sides.dest)


def test_append_adds_what_is_forgotten_and_only_that(sides: Sides, words: Words) -> None:
    sides.dest.execute("DELETE FROM public.t")
    for day in (DAY, NEXT_DAY):
        sides.copy(day=day, mode="append")
    sides.dest.execute("DELETE FROM public.t WHERE id = 1")
    with pytest.raises(PlanRefused, match=r"were copied into public\.t before"):
        sides.copy(day=DAY, mode="append")

    assert words(*FORGET, DAY).code == 0

    assert sides.copy(day=DAY, mode="append").rows == 1
    assert sides.dest.fetch("SELECT id FROM public.t ORDER BY id") == [(1,), (2,)]
    for day in (DAY, NEXT_DAY):
        with pytest.raises(PlanRefused, match=r"were copied into public\.t before"):
            sides.copy(day=day, mode="append")


def test_append_adds_again_to_a_table_that_was_put_in_the_place_of_another(
    sides: Sides, words: Words
) -> None:
    """What is of a table that is still there under another name is forgotten with that one."""
    sides.copy(day=DAY)
    sides.dest.execute("CREATE TABLE public.new (LIKE public.t)")
    sides.dest.execute("ALTER TABLE public.t RENAME TO old; ALTER TABLE public.new RENAME TO t")

    assert words(*FORGET, DAY).code == 0
    assert ids(sides) == [1]
    sides.dest.execute("DROP TABLE public.old")
    with pytest.raises(PlanRefused, match=r"were copied into public\.t before"):
        sides.copy(day=DAY, mode="append")
    assert words(*FORGET, DAY).code == 0

    assert ids(sides) == []
    assert sides.copy(day=DAY, mode="append").rows == 1


def test_other_tables_are_let_alone(sides: Sides, words: Words) -> None:
    sides.dest.execute('CREATE TABLE public."T u" (LIKE public.t)')
    sides.copy(day=DAY)
    sides.copy(day=DAY, into='public."T u"')

    assert words("clean", '"T u"', "--yes", "--forget", "all").code == 0

    assert [row["dest_table"] for row in sides.told()] == ["public.t"]


@pytest.mark.parametrize(
    ("name", "left"), [("p", ["public.q"]), ("q", ["public.p"]), ("t", [])], ids=str
)
@pytest.mark.one_of(2)
def test_a_partition_has_what_it_is_a_part_of_forgotten(
    sides: Sides, words: Words, name: str, left: list[str]
) -> None:
    """And the table what its partitions are told of; not those beside it."""
    sides.dest.execute(
        "DROP TABLE public.t; CREATE TABLE public.t (id int, note text, created_at timestamptz,"
        " paid_at timestamptz, at timestamp, of date) PARTITION BY LIST (id);"
        "CREATE TABLE public.p PARTITION OF public.t FOR VALUES IN (1);"
        "CREATE TABLE public.q PARTITION OF public.t DEFAULT"
    )
    sides.copy(day=DAY)
    sides.copy(day=DAY, into="public.p")
    sides.copy(day=DAY, into="public.q", where="id > 1", allow_empty=True)

    assert words("clean", name, "--yes", "--forget", DAY).code == 0

    assert [row["dest_table"] for row in sides.told()] == left


def test_a_receipt_is_of_what_is_left(sides: Sides, words: Words) -> None:
    """What was superseded counts again, where the later copy is forgotten as a whole."""
    sides.copy(day=NEXT_DAY)
    sides.copy(**BOTH)
    assert words(*FORGET, DAY).code == 0

    found = json.loads(words("receipt", "t", "--day", NEXT_DAY).out)

    assert (found["id"], found["superseded_by"]) == (1, [])
    assert words("receipt", "t", "--day", DAY).code == 6


# --- asking ---------------------------------------------------------------------------------------


def test_it_asks_first_and_tells_what_else_goes(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(**BOTH)
    sides.copy(**BY_ANOTHER)
    what = (
        "2 copies that have rows of [2018-04-29, 2018-04-30) UTC of public.t; 1 of them have more, "
        "of which nothing is told then either; 1 by another column stay"
    )

    refused = words("clean", "t", "--forget", DAY)
    assert refused.code == 2
    assert refused.err.startswith("ERROR:  to be removed from the ledger of ")
    assert refused.err.endswith(f": {what}\nHINT:  Give --yes if it shall be removed.\n")
    dry = words("clean", "t", "--forget", DAY, "-n")
    assert dry.out.startswith("would remove from the ledger of ")
    assert dry.out.endswith(f": {what}\n")
    assert ids(sides) == [1, 2, 3]


@pytest.mark.parametrize(("answer", "kept"), [("y\n", []), ("n\n", [1])])
@pytest.mark.one_of(2)
def test_it_asks_on_a_terminal(sides: Sides, run: Command, answer: str, kept: list[int]) -> None:
    sides.copy(day=DAY)

    asked = run("clean", "t", "--forget", DAY, tty=True, input=answer)

    assert "1 copies that have rows of [2018-04-29, 2018-04-30) UTC of public.t" in asked.err
    assert "Remove it? [y/N]: " in asked.err
    assert (asked.code, ids(sides)) == (2 if kept else 0, kept)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "no table": (f"--forget {DAY}", 2, "--forget of which table"),
    "no range": ("t", 2, "the table t was given without --forget\nHINT:  Give --forget"),
    "a column without a range": ("--by of", 2, "--by was given without --forget"),
    "an empty range": ("t --forget=", 2, "not a day: ''"),
    "no day": ("t --forget tomorrow", 2, "not a day: 'tomorrow'"),
    "a time for a day": (f"t --forget {DAY}T10:00", 2, "not a day"),
    "half a range": (f"t --forget {DAY}..", 2, "neither a day, a time nor a number: ''"),
    "a range of nothing": (f"t --forget {DAY}..{DAY}", 2, "the range is empty"),
    "three bounds": (f"t --forget {DAY}..{DAY}..{DAY}", 2, "neither a day, a time nor a number"),
    "no zone": (f"t --forget {DAY} --timezone +02", 2, "not the name of a time zone"),
    "no table of that name": (f"missing --forget {DAY}", 6, "dest: there is no table missing"),
    "no column of that name": (f"t --forget {DAY} --by gone", 6, "dest: public.t has no column"),
}


@pytest.mark.parametrize(("options", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.one_of(8)
def test_what_is_refused(sides: Sides, words: Words, options: str, code: int, message: str) -> None:
    sides.copy(day=DAY)

    assert_refused(words("clean", *options.split(), "--yes"), code, message)
    assert ids(sides) == [1]
    no_backends(sides.dest)


def test_without_a_ledger_there_is_nothing_to_do(sides: Sides, words: Words) -> None:
    done = words(*FORGET, DAY)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("there is no ledger in ")
    assert not sides.has_ledger()


def test_it_needs_delete_and_nothing_on_the_table(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    writer, role = sides.writer(), sides.dest.role("janitor")
    sides.grant(writer)

    for options in ((), ("-n",)):
        refused = words(*FORGET, DAY, *options, env={"COPYPIPE_DEST": writer.dsn})
        assert_refused(refused, 6, "dest: the ledger cannot be used for that")
        assert "HINT:  GRANT DELETE ON copypipe.slice TO the role." in refused.err
    assert ids(sides) == [1]
    sides.dest.execute(f"GRANT USAGE ON SCHEMA copypipe TO {role.name}")
    for table, rights in FORGETTING.items():
        sides.dest.execute(f"GRANT {', '.join(rights)} ON copypipe.{table} TO {role.name}")

    assert words(*FORGET, DAY, env={"COPYPIPE_DEST": role.dsn}).code == 0
    assert ids(sides) == []


# --- runs meanwhile -------------------------------------------------------------------------------


def test_a_transfer_of_the_range_is_waited_for(sides: Sides, words: Words, run: Command) -> None:
    sides.make()
    running, holder = sides.hold(day=DAY)

    for range_ in (DAY, "all", f"{DAY}T09:00..{DAY}T11:00"):
        busy = words(*FORGET, range_, "--wait-lock", "0")
        assert_refused(busy, 11, "another run holds a slice that overlaps")
    assert words(*FORGET, NEXT_DAY, "--wait-lock", "0").code == 0
    forgetting = run.start(*FORGET, DAY)
    both = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'copypipe/%'"
    eventually(lambda: sides.dest.scalar(both) == 2, what="it waits beside the copy")
    assert sides.ends(running, holder).recorded

    ended = forgetting.wait()
    assert (ended.code, ": removed 1 copies from" in ended.out) == (0, True), ended.err
    assert ids(sides) == []


def test_a_transfer_by_the_column_of_no_other_is_waited_for(sides: Sides, words: Words) -> None:
    """Of slices by two columns nobody can tell whether they overlap."""
    sides.copy(day=DAY)
    running, holder = sides.hold(day=DAY)

    busy = words(*FORGET, "2001-01-01", "--by", "paid_at", "--wait-lock", "0")

    assert_refused(busy, 11, "another run holds a slice that overlaps")
    assert sides.ends(running, holder).recorded
