"""--clear truncate of slices that are whole partitions, and of nothing else."""

import re
from typing import Any

import psycopg
import pytest

from copypipe import CopyFailed, CopypipeError, PlanRefused, UsageError
from copypipe.events import Event, Planned
from plugins.command import eventually
from plugins.modes import DAY, NEXT_DAY, Pair, waiting
from plugins.ways import Begun

COLUMNS = "(id int, note text, created_at {})"
TYPES = ("timestamptz", "timestamp", "date")


def source_of(pair: Pair, kind: str = "timestamptz") -> None:
    """Make public.t at the source, with rows 1 to 4 on the days from the 28th on."""
    pair.source.execute(
        f"CREATE TABLE public.t {COLUMNS.format(kind)};"
        "INSERT INTO public.t SELECT n, 'new', '2018-04-27 10:00'::timestamp + n * interval '1 day'"
        " FROM generate_series(1, 4) n"
    )


def dest_of(pair: Pair, kind: str = "timestamptz", *days: int) -> None:
    """Make public.t at the dest with a partition for each of these days of April, each with rows.

    The partition of day 29 is called t29.
    """
    pair.dest.execute(
        f"CREATE TABLE public.t {COLUMNS.format(kind)} PARTITION BY RANGE (created_at)"
    )
    for day in days or (28, 29, 30):
        add_partition(pair, day)


def add_partition(pair: Pair, day: int, name: str = "") -> None:
    name = name or f"t{day}"
    bounds = f"FROM ('2018-04-01'::date + {day - 1}) TO ('2018-04-01'::date + {day})"
    pair.dest.execute(
        f"CREATE TABLE public.{name} PARTITION OF public.t FOR VALUES {bounds};"
        f"INSERT INTO public.t SELECT {day} * 100 + n, 'old', '2018-04-{day} 12:00' FROM"
        " generate_series(1, 2) n"
    )


def ids(pair: Pair) -> list[int]:
    return [number for (number,) in pair.dest.fetch("SELECT id FROM public.t ORDER BY id")]


def filenode(pair: Pair, table: str) -> int:
    """Return the file of a table, which TRUNCATE changes and DELETE does not."""
    return pair.dest.scalar(f"SELECT pg_relation_filenode('{table}')")


TRUNCATED: dict[str, Any] = {"clear": "truncate"}


# --- what is truncated ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_a_partition_is_truncated_and_filled(pair: Pair, kind: str) -> None:
    source_of(pair, kind)
    dest_of(pair, kind)
    files = {name: filenode(pair, f"public.{name}") for name in ("t28", "t29", "t30")}

    done = pair.copy(day=DAY, clear="truncate")

    assert (done.rows, done.deleted, done.mode) == (1, None, "replace")
    assert ids(pair) == [2, 2801, 2802, 3001, 3002]
    changed = {name for name, file in files.items() if filenode(pair, f"public.{name}") != file}
    assert changed == {"t29"}
    (told,) = pair.told()
    assert (told["rows_deleted"], told["rows_copied"], told["mode"]) == (None, 1, "replace")


@pytest.mark.parametrize("kind", TYPES)
def test_several_partitions_are_truncated(pair: Pair, kind: str) -> None:
    source_of(pair, kind)
    dest_of(pair, kind)

    done = pair.copy(start="2018-04-28", stop="2018-04-30", clear="truncate")

    assert done.rows == 2
    assert ids(pair) == [1, 2, 3001, 3002]


def test_a_slice_that_no_instant_belongs_to_truncates_nothing(pair: Pair) -> None:
    """Samoa had no 30th of December in 2011. No partition is all of nothing."""
    source_of(pair)
    dest_of(pair)
    options = {"day": "2011-12-30", "timezone": "Pacific/Apia", **TRUNCATED}

    pair.refuses(PlanRefused, "is not made of whole partitions", **options)

    pair.dest.execute("DROP TABLE public.t; CREATE TABLE public.t " + COLUMNS.format("timestamptz"))
    pair.dest.execute("INSERT INTO public.t VALUES (1, 'old', '2018-04-29 12:00')")
    pair.refuses(PlanRefused, "is not made of whole partitions", **options)


def test_rows_that_are_in_no_partition_of_a_day_stay(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.dest.execute(
        "CREATE TABLE public.rest PARTITION OF public.t DEFAULT;"
        "INSERT INTO public.t VALUES (7, 'old', '2018-05-01 10:00'), (8, 'old', NULL)"
    )

    pair.copy(day=DAY, clear="truncate")

    assert ids(pair) == [2, 7, 8, 2801, 2802, 3001, 3002]


def test_a_partition_that_has_partitions_is_truncated_with_them(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair, "timestamptz", 28, 30)
    pair.dest.execute(
        "CREATE TABLE public.t29 PARTITION OF public.t FOR VALUES FROM ('2018-04-29') TO"
        " ('2018-04-30') PARTITION BY LIST (id);"
        "CREATE TABLE public.t29_2 PARTITION OF public.t29 FOR VALUES IN (2);"
        "CREATE TABLE public.t29_other PARTITION OF public.t29 DEFAULT;"
        "INSERT INTO public.t VALUES (2, 'old', '2018-04-29'), (5, 'old', '2018-04-29 23:00')"
    )

    pair.copy(day=DAY, clear="truncate")

    assert ids(pair) == [2, 2801, 2802, 3001, 3002]
    assert pair.dest.scalar("SELECT note FROM public.t29_2") == "new"


def test_a_partition_of_a_partition_is_truncated_by_its_parent(pair: Pair) -> None:
    """The table that is named is a partition itself."""
    source_of(pair)
    pair.dest.execute(
        f"CREATE TABLE public.top {COLUMNS.format('timestamptz')} PARTITION BY LIST (note);"
        "CREATE TABLE public.t PARTITION OF public.top DEFAULT PARTITION BY RANGE (created_at)"
    )
    add_partition(pair, 29)
    add_partition(pair, 30)

    pair.copy(day=DAY, clear="truncate")

    assert ids(pair) == [2, 3001, 3002]


def test_days_of_a_zone_are_partitions_of_that_zone(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    options = {"day": DAY, "timezone": "Europe/Vienna", **TRUNCATED}
    pair.refuses(PlanRefused, "is not made of whole partitions", **options)
    pair.dest.execute(
        "DROP TABLE public.t28, public.t29, public.t30;"
        "CREATE TABLE public.vienna PARTITION OF public.t FOR VALUES"
        " FROM ('2018-04-29 00:00 Europe/Vienna') TO ('2018-04-30 00:00 Europe/Vienna')"
    )

    assert pair.copy(**options).rows == 1


def test_a_name_that_must_be_quoted_is_truncated(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.dest.execute('ALTER TABLE public.t29 RENAME TO "the 29th""; DROP TABLE t28"')

    assert pair.copy(day=DAY, clear="truncate").rows == 1
    assert ids(pair) == [2, 2801, 2802, 3001, 3002]


def test_an_empty_source_truncates_nothing_without_a_word(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.source.execute("DELETE FROM public.t WHERE id = 2")
    pair.refuses(PlanRefused, "the dest has some", day=DAY, clear="truncate")

    done = pair.copy(day=DAY, clear="truncate", allow_empty=True)

    assert (done.rows, done.deleted) == (0, None)
    assert ids(pair) == [2801, 2802, 3001, 3002]


def test_a_partition_without_a_row_is_told_as_such(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.dest.execute("TRUNCATE public.t29")
    assert pair.copy(day=DAY, clear="truncate").deleted == 0


def test_a_failure_brings_the_rows_back(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 2)")
    pair.refuses(CopyFailed, "violates check constraint", day=DAY, clear="truncate")


@pytest.mark.parametrize("options", [{"day": DAY}, {"all": True}], ids=["partition", "table"])
def test_rows_that_are_being_written_are_waited_for_and_not_lost(
    pair: Pair, options: dict[str, Any]
) -> None:
    """They are committed while TRUNCATE waits: then the slice is no longer empty."""
    source_of(pair)
    dest_of(pair)
    pair.source.execute("TRUNCATE public.t")
    pair.dest.execute("TRUNCATE public.t")
    writer = pair.connect()
    writer.execute(f"INSERT INTO public.t VALUES (99, 'new', '{DAY}')")
    copying = pair.start(**options, clear="truncate")
    eventually(waiting(pair.dest), what="the copy waits for the writer")

    writer.commit()

    with pytest.raises(CopypipeError, match=r"the dest has some|now it has"):
        copying.result()
    assert ids(pair) == [99]


# --- what is refused ------------------------------------------------------------------------------

# How the dest is made, the slice, what is listed.
PARTS = f"CREATE TABLE public.t {COLUMNS.format('timestamptz')} PARTITION BY"
OF_DAY = "CREATE TABLE public.t29 PARTITION OF public.t FOR VALUES"
BOUNDS = "FROM ('2018-04-29') TO ('2018-04-30')"
NO_PARTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a table without partitions": (
        f"CREATE TABLE public.t {COLUMNS.format('timestamptz')}",
        {"day": DAY},
        "none",
    ),
    "no partition there": (f"{PARTS} RANGE (created_at)", {"day": DAY}, "none"),
    "a part of a partition": (
        f"{PARTS} RANGE (created_at); {OF_DAY} {BOUNDS}",
        {"start": "2018-04-29", "stop": "2018-04-29T12:00"},
        "none",
    ),
    "more than a partition": (
        f"{PARTS} RANGE (created_at); {OF_DAY} {BOUNDS}",
        {"start": "2018-04-29", "stop": "2018-05-01"},
        "public.t29 \\[2018-04-29 00:00:00\\+00:00, 2018-04-30 00:00:00\\+00:00\\)",
    ),
    "a gap between two": (
        f"{PARTS} RANGE (created_at); {OF_DAY} {BOUNDS};"
        "CREATE TABLE public.may PARTITION OF public.t FOR VALUES FROM ('2018-05-01') TO"
        " ('2018-05-02')",
        {"start": "2018-04-29", "stop": "2018-05-02"},
        "public.t29 .*, public.may .*",
    ),
    "the partition for the rest": (
        f"{PARTS} RANGE (created_at);CREATE TABLE public.rest PARTITION OF public.t DEFAULT",
        {"day": DAY},
        "none",
    ),
    "a partition without an end": (
        f"{PARTS} RANGE (created_at); {OF_DAY} FROM ('2018-04-29') TO (MAXVALUE)",
        {"day": DAY},
        "none",
    ),
    "a partition that ends with the infinite": (
        f"{PARTS} RANGE (created_at); {OF_DAY} FROM ('2018-04-29') TO ('infinity');"
        "CREATE TABLE public.early PARTITION OF public.t FOR VALUES FROM ('-infinity') TO"
        " ('2018-01-01')",
        {"day": DAY},
        "none",
    ),
    "a list": (
        f"{PARTS} LIST (created_at); {OF_DAY} IN ('2018-04-29')",
        {"day": DAY},
        "none",
    ),
    "hashes": (
        f"{PARTS} HASH (created_at); {OF_DAY} WITH (MODULUS 1, REMAINDER 0)",
        {"day": DAY},
        "none",
    ),
    "two columns": (
        f"{PARTS} RANGE (created_at, id);"
        f"{OF_DAY} FROM ('2018-04-29', MINVALUE) TO ('2018-04-30', MINVALUE)",
        {"day": DAY},
        "none",
    ),
    "another column": (
        f"{PARTS} RANGE (id); {OF_DAY} FROM (1) TO (100)",
        {"day": DAY},
        "none",
    ),
    "another column whose bounds look like times": (
        f"{PARTS} RANGE (note); {OF_DAY} {BOUNDS}",
        {"day": DAY},
        "none",
    ),
    "another column whose bounds are quoted": (
        f"{PARTS} RANGE (note); {OF_DAY} FROM ('it''s') TO ('z')",
        {"day": DAY},
        "none",
    ),
    "an expression": (
        f"{PARTS} RANGE ((created_at AT TIME ZONE 'UTC')); {OF_DAY} {BOUNDS}",
        {"day": DAY},
        "none",
    ),
    "partitions that are no neighbours of the slice": (
        f"{PARTS} RANGE (created_at);{OF_DAY} FROM ('2018-04-29 06:00') TO ('2018-04-29 18:00')",
        {"day": DAY},
        "public.t29 .*",
    ),
}


@pytest.mark.parametrize(("made", "options", "listed"), NO_PARTS.values(), ids=NO_PARTS.keys())
@pytest.mark.one_of(8)
def test_what_is_not_made_of_partitions_is_refused(
    pair: Pair, made: str, options: dict[str, Any], listed: str
) -> None:
    source_of(pair)
    pair.dest.execute(made)

    error = pair.refuses(PlanRefused, "is not made of whole partitions of public.t", **options,
                         clear="truncate")  # fmt: skip

    assert (error.exit_code, error.side) == (6, "dest")
    assert re.fullmatch(
        f"Its partitions by created_at within that range: {listed}\\.", str(error.detail)
    )
    assert error.hint == "Use --clear delete."


@pytest.mark.parametrize("target", ["t29 (id)", "t (id, created_at)"], ids=["part", "whole"])
@pytest.mark.parametrize("deferrable", ["", "DEFERRABLE"])
def test_a_foreign_key_that_points_there_refuses(pair: Pair, target: str, deferrable: str) -> None:
    source_of(pair)
    dest_of(pair)
    pair.dest.execute(
        "ALTER TABLE public.t29 ADD UNIQUE (id); ALTER TABLE public.t ADD UNIQUE (id, created_at)"
    )
    columns = "u int" if target.startswith("t29") else "u int, at timestamptz"
    named = "u" if target.startswith("t29") else "u, at"
    pair.dest.execute(
        f"CREATE TABLE public.child ({columns},"
        f" CONSTRAINT to_t FOREIGN KEY ({named}) REFERENCES public.{target} {deferrable})"
    )

    error = pair.refuses(PlanRefused, "cannot be truncated", day=DAY, clear="truncate")

    assert error.detail == "Foreign keys: to_t of public.child."
    pair.refuses(
        PlanRefused, "cannot be truncated", day=DAY, clear="truncate", accept=["references"]
    )


def test_the_right_is_asked_of_each_partition(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    role = pair.dest.role("writer", "SELECT, INSERT ON public.t", "TRUNCATE ON public.t29")
    options = {"dest": role.dsn, "ledger": False, "clear": "truncate"}

    days = {"start": "2018-04-28", "stop": "2018-05-01"}
    error = pair.refuses(
        PlanRefused, "may not truncate public.t28, public.t30\n", **days, **options
    )

    assert error.hint == "GRANT TRUNCATE ON public.t28, public.t30 TO the role."
    assert pair.copy(day=DAY, **options).rows == 1


def test_the_right_on_the_table_alone_is_not_enough(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    role = pair.dest.role("writer", "SELECT, INSERT, TRUNCATE ON public.t")
    pair.refuses(
        PlanRefused,
        "may not truncate public.t29",
        day=DAY,
        dest=role.dsn,
        ledger=False,
        clear="truncate",
    )


def test_a_condition_is_never_a_partition(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    pair.refuses(UsageError, "what a condition selects", day=DAY, where="true", clear="truncate")


# --- others at the same time ----------------------------------------------------------------------

GATE = 4711
AT_GATE = f"""
    SELECT count(*) FROM pg_locks
     WHERE locktype = 'advisory' AND classid = 0 AND objid = {GATE} AND NOT granted
"""


def gate(pair: Pair) -> Any:
    """Hold every copy up that has taken all rows, until the lock is released."""
    holder = pair.dest.connect(application_name="holder")
    pair.opened.append(holder)
    holder.execute(f"SELECT pg_advisory_lock({GATE})")
    pair.dest.execute(
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_catalog.pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$;"
        "CREATE TRIGGER wait AFTER INSERT ON public.t FOR EACH STATEMENT"
        " EXECUTE FUNCTION public.wait()"
    )
    return holder


def test_two_that_truncate_two_partitions_do_not_wait_for_each_other(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    holder = gate(pair)

    begun = [pair.start(day=day, clear="truncate") for day in (DAY, NEXT_DAY)]
    eventually(lambda: pair.dest.scalar(AT_GATE) == 2, what="both have truncated and copied")
    holder.close()

    assert [one.result().rows for one in begun] == [1, 1]
    assert ids(pair) == [2, 3, 2801, 2802]


def test_others_work_on_other_partitions_meanwhile(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    holder = gate(pair)
    begun = pair.start(day=DAY, clear="truncate")
    eventually(lambda: pair.dest.scalar(AT_GATE) == 1, what="it has truncated and copied")

    other = pair.dest.connect(options="-c lock_timeout=300ms")
    of_day = "created_at >= '2018-04-30Z' AND created_at < '2018-05-01Z'"
    assert other.execute(f"SELECT count(*) FROM public.t WHERE {of_day}").fetchone() == (2,)
    assert other.execute(f"DELETE FROM public.t WHERE {of_day}").rowcount == 2
    with pytest.raises(psycopg.errors.LockNotAvailable):
        other.execute("SELECT count(*) FROM public.t29")
    other.close()
    assert begun.running
    holder.close()
    assert begun.result().rows == 1


def test_a_day_is_deleted_while_another_one_is_truncated(pair: Pair) -> None:
    source_of(pair)
    dest_of(pair)
    holder = gate(pair)
    begun = pair.start(day=DAY, clear="truncate")
    eventually(lambda: pair.dest.scalar(AT_GATE) == 1, what="it has truncated and copied")
    other = pair.start(day=NEXT_DAY)
    holder.close()

    assert (begun.result().rows, other.result().rows) == (1, 1)
    assert ids(pair) == [2, 3, 2801, 2802]


ALTERED = {
    "another partition in its place": (
        "ALTER TABLE public.t DETACH PARTITION public.t29;"
        f"CREATE TABLE public.other PARTITION OF public.t FOR VALUES {BOUNDS}"
    ),
    "two in its place": (
        "ALTER TABLE public.t DETACH PARTITION public.t29;"
        "CREATE TABLE public.o1 PARTITION OF public.t FOR VALUES FROM ('2018-04-29') TO"
        " ('2018-04-29 12:00');"
        "CREATE TABLE public.o2 PARTITION OF public.t FOR VALUES FROM ('2018-04-29 12:00') TO"
        " ('2018-04-30')"
    ),
    "none in its place": "ALTER TABLE public.t DETACH PARTITION public.t29",
    "another name": "ALTER TABLE public.t29 RENAME TO renamed",
}


@pytest.mark.parametrize("sql", ALTERED.values(), ids=ALTERED.keys())
def test_a_partition_that_was_altered_while_the_run_waited_is_not_truncated(
    pair: Pair, sql: str
) -> None:
    source_of(pair)
    dest_of(pair)

    def alter(event: Event) -> None:
        if isinstance(event, Planned):
            pair.dest.execute(sql)

    with pytest.raises(PlanRefused, match=r"altered|not made of whole partitions"):
        pair.copy(day=DAY, clear="truncate", listener=alter)

    of_both = "SELECT id FROM public.t UNION ALL SELECT id FROM public.t29 WHERE {} ORDER BY 1"
    if pair.dest.scalar("SELECT to_regclass('public.t29') IS NOT NULL"):
        found = pair.dest.fetch(of_both.format("note = 'old'"))
        assert [number for (number,) in found] == [2801, 2802, 2901, 2902, 3001, 3002]
    else:
        assert ids(pair) == [2801, 2802, 2901, 2902, 3001, 3002]


def test_a_partition_that_is_being_detached_is_none(pair: Pair) -> None:
    """DETACH CONCURRENTLY waits for whoever uses the table; the partition's rows are to stay."""
    source_of(pair)
    dest_of(pair)
    reader = pair.connect()
    reader.execute("SELECT count(*) FROM public.t").fetchone()
    detaching = pair.dest.connect(application_name="detaching")
    pair.opened.append(detaching)
    begun = Begun(
        lambda: detaching.execute("ALTER TABLE public.t DETACH PARTITION public.t29 CONCURRENTLY")
    )
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    eventually(lambda: pair.dest.scalar(pending) == 1, what="the partition is half detached")

    with pytest.raises(PlanRefused, match="is not made of whole partitions"):
        pair.copy(day=DAY, clear="truncate")

    reader.close()
    begun.result()
    assert pair.dest.scalar("SELECT count(*) FROM public.t29") == 2
