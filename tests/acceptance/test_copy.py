"""copypipe copy: what is at the source, what is at the dest, the command, what is there after."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from copypipe.relay import scans
from plugins.canary import CANARY
from plugins.command import EXECUTABLE, Command, Run, Words, add_users, no_backends, users
from plugins.databases import Database
from plugins.rows import rows_of, table_of, written

DAY = ("copy", "users", "--day", "2018-04-29")


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


# --- rows in, rows out ----------------------------------------------------------------------------

THREE_DAYS = "1 a 04-28, 2 b 04-29, 3 c 04-29T23:59, 4 d 04-30"

COPIES = {
    "a day is filled": (
        THREE_DAYS,
        "",
        "--day 2018-04-29",
        "2 b 04-29, 3 c 04-29T23:59",
    ),
    "other days stay": (
        THREE_DAYS,
        "1 old 04-28, 2 old 04-29, 4 old 04-30",
        "--day 2018-04-29",
        "1 old 04-28, 2 b 04-29, 3 c 04-29T23:59, 4 old 04-30",
    ),
    "what was updated and deleted at the source follows": (
        "2 new 04-29, 5 e 04-29T01:00",
        "2 old 04-29, 3 gone 04-29T12:00",
        "--day 2018-04-29",
        "2 new 04-29, 5 e 04-29T01:00",
    ),
    "a month": (
        "1 a 03-31T23:59, 2 b 04-01, 3 c 04-30T23:59, 4 d 05-01",
        "9 stale 04-15, 8 kept 05-02",
        "--month 2018-04",
        "2 b 04-01, 3 c 04-30T23:59, 8 kept 05-02",
    ),
    "a range of days, the end exclusive": (
        THREE_DAYS,
        "",
        "--from 2018-04-28 --to 2018-04-30",
        "1 a 04-28, 2 b 04-29, 3 c 04-29T23:59",
    ),
    "a range of times": (
        "1 a 04-29T09:59, 2 b 04-29T10:00, 3 c 04-29T11:59, 4 d 04-29T12:00",
        "",
        "--from 2018-04-29T10:00 --to 2018-04-29T12:00",
        "2 b 04-29T10:00, 3 c 04-29T11:59",
    ),
    "a range of times with offsets": (
        "1 a 04-29T07:59, 2 b 04-29T08:00, 3 c 04-29T09:59, 4 d 04-29T10:00",
        "9 stale 04-29T08:30",
        "--from 2018-04-29T10:00+02:00 --to 2018-04-29T05:00-05:00",
        "2 b 04-29T08:00, 3 c 04-29T09:59",
    ),
    "a day of another zone": (
        "1 a 04-28T21:59, 2 b 04-28T22:00, 3 c 04-29T21:59, 4 d 04-29T22:00",
        "",
        "--day 2018-04-29 --timezone Europe/Vienna",
        "2 b 04-28T22:00, 3 c 04-29T21:59",
    ),
    "a day without a row on both sides": (
        "1 a 04-28",
        "1 old 04-28",
        "--day 2018-04-29",
        "1 old 04-28",
    ),
    "all, into an empty table": (
        "1 a 04-28, 2 b null, 3 c infinity, 4 d -infinity",
        "",
        "--all",
        "1 a 04-28, 2 b null, 3 c infinity, 4 d -infinity",
    ),
    "all, over rows": (
        "1 a 04-28, 2 b null",
        "1 old 04-28, 9 gone null, 8 gone infinity",
        "--all --yes",
        "1 a 04-28, 2 b null",
    ),
    "all, with TRUNCATE": (
        "1 a 04-28, 2 b null",
        "1 old 04-28, 9 gone null",
        "--all --yes --clear truncate",
        "1 a 04-28, 2 b null",
    ),
    "an empty source, allowed": (
        "1 a 04-28",
        "1 old 04-28, 2 old 04-29",
        "--day 2018-04-29 --allow-empty",
        "1 old 04-28",
    ),
    "rows without a time stay where they are": (
        "1 a null, 2 b 04-29, 3 c infinity",
        "7 x null, 8 y infinity",
        "--day 2018-04-29",
        "2 b 04-29, 7 x null, 8 y infinity",
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "command", "expected"), COPIES.values(), ids=COPIES.keys()
)
@pytest.mark.one_of(8)
def test_rows(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    at_source: str,
    at_dest: str,
    command: str,
    expected: str,
) -> None:
    table_of(kept_source, at_source)
    table_of(kept_dest, at_dest)

    done = words("copy", "t", *command.split())

    assert done.code == 0, done.err
    assert rows_of(kept_dest) == written(expected)
    assert rows_of(kept_source) == written(at_source)


# --- a day, twice ---------------------------------------------------------------------------------


def test_a_day_copied_twice_is_there_once_and_other_days_are_untouched(
    run: Command, source: Database, dest: Database
) -> None:
    users(source, 3, rows=50)
    users(dest, 3, rows=7)
    dest.execute("UPDATE public.users SET id = -id, name = 'of the dest'")
    day = "created_at >= '2018-04-29 00:00Z' AND created_at < '2018-04-30 00:00Z'"
    of_day = f"SELECT * FROM public.users WHERE {day} ORDER BY id"
    of_others = f"SELECT * FROM public.users WHERE NOT ({day}) ORDER BY id"
    others = dest.text(of_others)
    at_source = source.digest("public.users", "id")

    first, second = run(*DAY), run(*DAY)

    assert (first.code, second.code) == (0, 0)
    assert "50 rows" in first.out
    assert first.out.endswith("deleted 7, copied 50\n")
    assert second.out.endswith("deleted 50, copied 50\n")
    assert dest.text(of_day) == source.text(of_day) != b""
    assert dest.text(of_others) == others
    assert source.digest("public.users", "id") == at_source
    no_backends(source, dest)


def test_relative_days_count_by_the_clock_of_the_source(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    for side in (kept_source, kept_dest):
        table_of(side, "")
    kept_source.execute(
        "INSERT INTO public.t SELECT d, 'x', date_trunc('day', now(), 'UTC')"
        " - d * interval '1 day' + interval '1 hour' FROM generate_series(0, 4) d"
    )

    assert words("copy", "t", "--day", "-3d").code == 0
    assert [row[0] for row in kept_dest.fetch("SELECT id FROM public.t ORDER BY 1")] == [3]
    assert words("copy", "t", "--from", "-3d", "--to", "today").code == 0
    assert [row[0] for row in kept_dest.fetch("SELECT id FROM public.t ORDER BY 1")] == [1, 2, 3]


# --- tables of all shapes -------------------------------------------------------------------------

PLAIN = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"
FILL = "INSERT INTO public.t VALUES (1, 'a', '2018-04-29 10:00Z'), (2, 'b', '2018-04-30 10:00Z')"
PARTITIONED = """
    CREATE TABLE public.t (id int, note text, created_at timestamptz)
        PARTITION BY RANGE (created_at);
    CREATE TABLE public.t_28 PARTITION OF public.t
        FOR VALUES FROM (MINVALUE) TO ('2018-04-29 12:00Z');
    CREATE TABLE public.t_29 PARTITION OF public.t
        FOR VALUES FROM ('2018-04-29 12:00Z') TO (MAXVALUE) PARTITION BY HASH (id);
    CREATE TABLE public.t_29_0 PARTITION OF public.t_29 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE public.t_29_1 PARTITION OF public.t_29 FOR VALUES WITH (MODULUS 2, REMAINDER 1)
"""
MORE = "INSERT INTO public.t VALUES (3, 'c', '2018-04-29 11:00Z'), (4, 'd', '2018-04-29 13:00Z')"
ODD = '"My ""Schema"" %s".":Tàble {} \\ x"'
ODD_TABLE = f"""
    CREATE SCHEMA "My ""Schema"" %s";
    CREATE TABLE {ODD} ("select" int PRIMARY KEY, "Ünï ""c"" {{}}%s" text, "The Time" timestamptz)
"""

# source's DDL, dest's DDL, the command, the query on the source, the one on the dest.
OF_DAY = "created_at >= '2018-04-29 00:00Z' AND created_at < '2018-04-30 00:00Z'"
ROWS = f"SELECT id, note, created_at FROM public.t WHERE {OF_DAY} ORDER BY id"
SHAPES = {
    "another name in another schema": (
        f"{PLAIN}; {FILL}",
        "CREATE SCHEMA dwh; CREATE TABLE dwh.copied (id int, note text, created_at timestamptz)",
        "t --day 2018-04-29 --into dwh.copied",
        ROWS,
        "SELECT * FROM dwh.copied ORDER BY id",
    ),
    "names that need quotes": (
        f"{ODD_TABLE}; INSERT INTO {ODD} VALUES (1, 'a', '2018-04-29 10:00Z')",
        ODD_TABLE,
        shlex.join([ODD, "--day", "2018-04-29", "--by", '"The Time"']),
        f"SELECT * FROM {ODD}",
        f"SELECT * FROM {ODD}",
    ),
    "a slice column named as in the catalog": (
        'CREATE TABLE public.t (id int, "The Time" timestamptz);'
        " INSERT INTO public.t VALUES (1, '2018-04-29 10:00Z')",
        'CREATE TABLE public.t (id int, "The Time" timestamptz)',
        "t --day 2018-04-29 --by 'The Time'",
        "SELECT * FROM public.t",
        "SELECT * FROM public.t",
    ),
    "a name folded to lower case": (
        f"{PLAIN}; {FILL}",
        PLAIN,
        "PUBLIC.T --day 2018-04-29 --by CREATED_AT",
        ROWS,
        "SELECT * FROM public.t",
    ),
    "partitioned source": (
        f"{PARTITIONED}; {FILL}; {MORE}",
        PLAIN,
        "t --day 2018-04-29",
        ROWS,
        "SELECT * FROM public.t ORDER BY id",
    ),
    "partitioned dest": (
        f"{PLAIN}; {FILL}; {MORE}",
        f"{PARTITIONED}; INSERT INTO public.t VALUES (9, 'gone', '2018-04-29 10:30Z')",
        "t --day 2018-04-29",
        ROWS,
        "SELECT * FROM public.t ORDER BY id",
    ),
    "partitioned on both sides, all with TRUNCATE": (
        f"{PARTITIONED}; {FILL}; {MORE}",
        f"{PARTITIONED}; INSERT INTO public.t VALUES (9, 'gone', '2018-04-29 10:30Z')",
        "t --all --yes --clear truncate",
        "SELECT * FROM public.t ORDER BY id",
        "SELECT * FROM public.t ORDER BY id",
    ),
    "a view as the source": (
        f"{PLAIN}; {FILL}; {MORE}; CREATE VIEW public.v AS SELECT * FROM public.t WHERE id <> 3",
        PLAIN,
        "v --into t --day 2018-04-29",
        f"SELECT id, note, created_at FROM public.v WHERE {OF_DAY} ORDER BY id",
        "SELECT * FROM public.t ORDER BY id",
    ),
    "a materialized view as the source": (
        f"{PLAIN}; {FILL}; CREATE MATERIALIZED VIEW public.m AS SELECT * FROM public.t",
        PLAIN,
        "m --into t --day 2018-04-29",
        ROWS,
        "SELECT * FROM public.t ORDER BY id",
    ),
    "columns in another order": (
        f"{PLAIN}; {FILL}",
        "CREATE TABLE public.t (created_at timestamptz, note text, id int)",
        "t --day 2018-04-29",
        ROWS,
        "SELECT id, note, created_at FROM public.t",
    ),
    "a column that the dest generates": (
        f"{PLAIN}; {FILL}",
        "CREATE TABLE public.t (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, note text,"
        " created_at timestamptz)",
        "t --day 2018-04-29",
        "SELECT id, id * 2, note, created_at FROM public.t WHERE id = 1",
        "SELECT * FROM public.t",
    ),
    "a column that the source generates": (
        "CREATE TABLE public.t (id int, twice int GENERATED ALWAYS AS (id * 2) STORED,"
        " created_at timestamptz);"
        " INSERT INTO public.t (id, created_at) VALUES (1, '2018-04-29 10:00Z')",
        "CREATE TABLE public.t (id int, twice int, created_at timestamptz)",
        "t --day 2018-04-29",
        "SELECT * FROM public.t",
        "SELECT * FROM public.t",
    ),
    "identity columns": (
        f"{PLAIN}; {FILL}",
        "CREATE TABLE public.t (id int GENERATED ALWAYS AS IDENTITY (START 100), note text,"
        " created_at timestamptz)",
        "t --day 2018-04-29",
        ROWS,
        "SELECT * FROM public.t",
    ),
    "dropped columns": (
        f"{PLAIN}; {FILL}; ALTER TABLE public.t ADD x point, ADD y int DEFAULT 7;"
        " ALTER TABLE public.t DROP x",
        "CREATE TABLE public.t (a text, id int, b xid, note text, created_at timestamptz, y int);"
        " ALTER TABLE public.t DROP a, DROP b",
        "t --day 2018-04-29",
        f"SELECT id, note, created_at, y FROM public.t WHERE {OF_DAY}",
        "SELECT * FROM public.t",
    ),
    "by a date": (
        "CREATE TABLE public.t (id int, ordered date); INSERT INTO public.t"
        " VALUES (1, '2018-04-28'), (2, '2018-04-29'), (3, '2018-04-30'), (4, NULL)",
        "CREATE TABLE public.t (id int, ordered date);"
        " INSERT INTO public.t VALUES (9, '2018-04-29'), (8, '2018-05-01')",
        "t --by ordered --day 2018-04-29",
        "SELECT * FROM (VALUES (2, '2018-04-29'), (8, '2018-05-01')) AS v",
        "SELECT * FROM public.t ORDER BY id",
    ),
    "by a timestamp without a zone": (
        "CREATE TABLE public.t (id int, at timestamp(3)); INSERT INTO public.t VALUES"
        " (1, '2018-04-28 23:59:59.999'), (2, '2018-04-29'), (3, '2018-04-29 23:59:59.999'),"
        " (4, '2018-04-30')",
        "CREATE TABLE public.t (id int, at timestamp(3))",
        "t --by at --day 2018-04-29 --timezone Asia/Tokyo",
        "SELECT * FROM public.t WHERE id IN (2, 3) ORDER BY id",
        "SELECT * FROM public.t ORDER BY id",
    ),
    "a table without a row, of one column": (
        "CREATE TABLE public.t (created_at timestamptz)",
        "CREATE TABLE public.t (created_at timestamptz)",
        "t --all",
        "SELECT * FROM public.t",
        "SELECT * FROM public.t",
    ),
    "pointed at by a foreign key that acts on nothing": (
        f"{PLAIN}; {FILL}; INSERT INTO public.t VALUES (3, 'c', '2018-04-29 11:00Z')",
        f"{PLAIN}; INSERT INTO public.t VALUES (1, 'old', '2018-04-29 10:00Z');"
        " CREATE TABLE public.child (t int REFERENCES public.t DEFERRABLE INITIALLY DEFERRED);"
        " INSERT INTO public.child VALUES (1)",
        "t --day 2018-04-29",
        ROWS,
        "SELECT * FROM public.t ORDER BY id",
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "command", "sent", "arrived"), SHAPES.values(), ids=SHAPES.keys()
)
@pytest.mark.one_of(8)
def test_shapes(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    at_source: str,
    at_dest: str,
    command: str,
    sent: str,
    arrived: str,
) -> None:
    kept_source.execute(at_source)
    kept_dest.execute(at_dest)

    done = words("copy", *shlex.split(command))

    assert done.code == 0, done.err
    assert kept_dest.text(arrived) == kept_source.text(sent)


# --- all rows -------------------------------------------------------------------------------------


def _digests(*databases: Database) -> list[str]:
    return [database.digest("public.users", "id") for database in databases]


def test_all_over_rows_needs_a_yes(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source, 3)
    users(kept_dest, 1, rows=5)
    before = _digests(kept_source, kept_dest)

    without = words("copy", "users", "--all")

    assert (without.code, without.out) == (2, "")
    assert "ERROR:  all rows of public.users would be replaced\n" in without.err
    assert "DETAIL:  The source public.users has 72 rows, the dest public.users has 5 rows.\n" in (
        without.err
    )
    assert "HINT:  Give --yes" in without.err
    assert _digests(kept_source, kept_dest) == before

    plan = words("copy", "users", "--all", "--dry-run")
    assert plan.code == 0
    assert "needs --yes" in plan.out
    assert _digests(kept_source, kept_dest) == before

    with_yes = words("copy", "users", "--all", "--yes")
    assert with_yes.code == 0
    assert "public.users all rows  72 rows" in with_yes.out
    assert _digests(kept_source, kept_dest) == [before[0]] * 2


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("\n", 2), ("y\n", 0)])
@pytest.mark.one_of(2)
def test_all_over_rows_asks_on_a_terminal(
    run: Command, source: Database, dest: Database, answer: str, code: int
) -> None:
    users(source, 1)
    users(dest, 1, rows=5)
    before = _digests(source, dest)

    asked = run("copy", "users", "--all", tty=True, input=answer)

    assert asked.code == code, asked.err
    assert "Replace all rows of public.users? [y/N]" in asked.err
    assert "24 rows" in asked.err
    assert "5 rows" in asked.err
    assert _digests(source, dest) == ([before[0]] * 2 if code == 0 else before)


def test_the_question_leaves_stdout_alone(run: Command, source: Database, dest: Database) -> None:
    users(source, 1)
    users(dest, 1, rows=5)

    asked = run("copy", "users", "--all", tty=True, input="y\n")

    assert asked.code == 0
    assert asked.out.startswith("public.users all rows")


def _heap_fetches(database: Database) -> int:
    """Return how many rows an index-only scan had to look up: none where all pages are frozen."""
    with database.connect() as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        connection.execute("SET enable_indexscan = on")
        ((explained,),) = connection.execute(
            "EXPLAIN (ANALYZE, FORMAT JSON) SELECT id FROM public.users ORDER BY id"
        ).fetchall()
    (plan,) = explained
    assert plan["Plan"]["Node Type"] == "Index Only Scan"
    return plan["Plan"]["Heap Fetches"]


@pytest.mark.parametrize(
    ("before", "args", "frozen"),
    [
        (0, ["--all"], True),
        (5, ["--all", "--yes", "--clear", "truncate"], True),
        (5, ["--all", "--yes"], False),
        (0, ["--from", "2018-01-01", "--to", "2019-01-01"], False),
    ],
    ids=["empty", "truncate", "delete", "range"],
)
def test_an_emptied_table_gets_frozen_rows(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    before: int,
    args: list[str],
    *,
    frozen: bool,
) -> None:
    users(kept_source, 3)
    users(kept_dest, 1, rows=before)

    assert words("copy", "users", *args).code == 0

    assert (_heap_fetches(kept_dest) == 0) is frozen
    assert _digests(kept_dest) == _digests(kept_source)


@pytest.mark.parametrize(
    ("publication", "frozen"),
    [
        ("TABLE public.users", False),
        ("ALL TABLES", False),
        ("TABLE public.users WITH (publish = 'insert, delete')", True),
        ("TABLE public.other", True),
    ],
)
def test_an_empty_table_is_not_truncated_at_subscribers(
    words: Words, kept_source: Database, kept_dest: Database, publication: str, *, frozen: bool
) -> None:
    users(kept_source, 1)
    users(kept_dest, 0)
    kept_dest.execute(
        f"CREATE TABLE public.other (id int); CREATE PUBLICATION all_of_it FOR {publication}"
    )
    try:
        assert words("copy", "users", "--all").code == 0
    finally:
        kept_dest.execute("DROP PUBLICATION all_of_it")

    assert (_heap_fetches(kept_dest) == 0) is frozen


def test_truncate_says_so_and_needs_all_or_partitions(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source, 1)
    users(kept_dest, 1, rows=5)
    before = _digests(kept_dest)

    day = words(*DAY, "--clear", "truncate")
    assert day.code == 6
    assert "is not made of whole partitions of public.users" in day.err
    assert _digests(kept_dest) == before

    whole = words("copy", "users", "--all", "--yes", "--clear", "truncate")
    assert whole.out.endswith("  truncated, copied 24\n")
    assert _digests(kept_dest) == _digests(kept_source)


def test_an_empty_table_that_is_read_meanwhile_is_filled_all_the_same(
    run: Command, source: Database, dest: Database
) -> None:
    users(source, 1)
    users(dest, 0)
    reader = dest.connect(autocommit=False)
    reader.execute("SELECT * FROM public.users")

    done = run("copy", "users", "--all")

    assert done.code == 0
    assert done.seconds < 5
    assert _digests(dest) == _digests(source)


# --- an empty source ------------------------------------------------------------------------------


def test_an_empty_slice_over_rows_is_refused_unless_allowed(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source, 1)
    users(kept_dest, 3)
    before = _digests(kept_dest)

    refused = words("copy", "users", "--day", "2018-04-30")
    assert (refused.code, refused.out) == (6, "")
    assert "the source has no row in [2018-04-30, 2018-05-01) UTC and the dest has some" in (
        refused.err
    )
    assert "--allow-empty" in refused.err
    assert _digests(kept_dest) == before

    allowed = words("copy", "users", "--day", "2018-04-30", "--allow-empty")
    assert allowed.code == 0
    assert allowed.out.endswith("deleted 24, copied 0\n")

    nothing = words("copy", "users", "--day", "2018-04-30")
    assert nothing.code == 0
    assert nothing.out.endswith("deleted 0, copied 0\n")


def test_fail_on_empty(words: Words, kept_source: Database, kept_dest: Database) -> None:
    users(kept_source, 1)
    users(kept_dest, 3)
    before = _digests(kept_dest)

    over_nothing = words("copy", "users", "--day", "2018-05-30", "--fail-on-empty")
    assert over_nothing.code == 9
    assert "ERROR:  the source has no row in [2018-05-30, 2018-05-31) UTC" in over_nothing.err
    allowed = words("copy", "users", "--day", "2018-04-30", "--fail-on-empty", "--allow-empty")
    assert allowed.code == 9
    assert _digests(kept_dest) == before
    assert words(*DAY[:2], "--day", "2018-04-28", "--fail-on-empty").code == 0


# --- what it says ---------------------------------------------------------------------------------


def test_json(words: Words, kept_source: Database, kept_dest: Database) -> None:
    users(kept_source)
    users(kept_dest, 2, rows=3)

    done = words(*DAY, "--json")

    assert done.code == 0
    assert "{" not in done.err
    (line,) = done.out.splitlines()
    told = json.loads(line)
    assert told["seconds"] > 0
    assert told["bytes"] > 24 * 50
    spent = {name: told.pop(name) for name in [*told] if name.startswith("seconds_")}
    assert [*spent] == [
        *("seconds_on_source", "seconds_on_dest", "seconds_on_limit", "seconds_relaying")
    ]
    assert 0 < sum(spent.values()) < told["seconds"]
    assert re.fullmatch("[0-9a-f]{16}", told.pop("run_id"))
    recorded = kept_dest.scalar("SELECT attempt_id::text FROM copypipe.slice")
    assert told.pop("attempt_id") == recorded
    assert {k: v for k, v in told.items() if k not in ("seconds", "bytes", "slice")} == {
        "schema_version": 1,
        "type": "slice",
        "source_table": "public.users",
        "dest_table": "public.users",
        "mode": "replace",
        "rows": 24,
        "dropped": 0,
        "inserted": None,
        "updated": None,
        "deleted": 3,
        "state": "sealed",
        "open_because": None,
        "digest": None,
        "recorded": True,
        "tries": 1,
        "transport": "socket",
        "scan": scans.NAME,
    }
    assert told["slice"]["all"] is False
    assert told["slice"]["by"] == "created_at"
    assert told["slice"]["timezone"] == "UTC"
    assert (told["slice"]["first_day"], told["slice"]["day_after"]) == ("2018-04-29", "2018-04-30")

    whole = json.loads(words("copy", "users", "--all", "--yes", "--json").out)
    assert whole["slice"] == {"all": True}

    refused = words("copy", "users", "--all", "--json")
    assert (refused.code, refused.out) == (2, "")
    error = json.loads(refused.err.splitlines()[-1])
    assert (error["schema_version"], error["type"], error["exit_code"]) == (1, "error", 2)
    assert error["retryable"] is False
    assert error["hint"]

    plan = json.loads(words(*DAY, "--json", "--dry-run").out)
    assert plan["type"] == "plan"
    assert plan["statements"]["clear"].startswith("DELETE FROM")
    assert plan["columns"][0] == {
        "name": "id",
        "source_type": "bigint",
        "dest_type": "bigint",
        "expression": None,
        "decision": "same",
        "reason": "the same built-in type",
    }


def test_json_tells_the_bounds_as_instants(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source)
    users(kept_dest, 0)

    done = words(
        *("copy", "users", "--json", "--from", "2018-04-29T10:00+02:00"),
        *("--to", "2018-04-29T12:30+02:00"),
    )

    told = json.loads(done.out)["slice"]
    assert told["start"] == "2018-04-29T08:00:00+00:00"
    assert told["stop"] == "2018-04-29T10:30:00+00:00"


def test_quiet_verbose_and_between(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source)
    users(kept_dest, 0)
    kept_dest.execute(
        "CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE NOTICE 'heard %', NEW.id; RETURN NEW; END $$;"
        "CREATE TRIGGER note BEFORE INSERT ON public.users FOR EACH ROW EXECUTE FUNCTION note()"
    )

    plain, quiet, verbose = words(*DAY), words(*DAY, "-q"), words(*DAY, "-v")

    address = rf"postgres\S*@\S+/{kept_source.name} into \S+@\S+/{kept_dest.name}"
    assert re.fullmatch(rf"from {address}", plain.err.splitlines()[0])
    assert "NOTICE" not in plain.err
    assert re.fullmatch(
        r"public\.users \[2018-04-29, 2018-04-30\) UTC  24 rows  \d+\.\d kB  \d+\.\d s  "
        r"deleted 0, copied 24\n",
        plain.out,
    )
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert verbose.out.count("\n") == 1
    assert "about 24 rows" in verbose.err
    assert "cleared the slice: 24" in verbose.err
    assert verbose.err.count("dest: NOTICE: heard ") == 24
    assert words(*DAY, "-q", "--json").out.count("\n") == 1


def test_dry_run_prints_the_statements_and_changes_nothing(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_source)
    users(kept_dest, 1, rows=5)
    before = _digests(kept_source, kept_dest)

    plan = words(*DAY, "-n")

    assert plan.code == 0
    assert _digests(kept_source, kept_dest) == before
    where = (
        """WHERE "created_at" >= '2018-04-29 00:00:00+00:00'::timestamptz """
        """AND "created_at" < '2018-04-30 00:00:00+00:00'::timestamptz"""
    )
    columns = '"id", "name", "email", "active", "balance", "created_at", "profile", "tags"'
    assert f'DELETE FROM "public"."users" {where}\n' in plan.out
    assert f'COPY "public"."users" ({columns}) FROM STDIN (FORMAT binary)\n' in plan.out
    select = f'SELECT {columns} FROM "public"."users" {where}'
    assert f"COPY ({select}) TO STDOUT (FORMAT binary)\n" in plan.out
    assert "(1 day, last 2018-04-29)" in plan.out
    assert "about    24 rows" in plan.out
    assert f"dbname {kept_source.name} (COPYPIPE_SOURCE)" in plan.out
    assert plan.out.endswith("nothing was changed\n")

    server = kept_source.server
    named = words(
        *(*DAY, "-n", "--source", server.dsn(dbname=kept_source.name, password=None)),
        env={"PGPASSWORD": server.conninfo.get("password", "")},
    )
    assert f"dbname {kept_source.name} (--source)" in named.out


def test_rows_without_a_day_are_told(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    for side in (kept_source, kept_dest):
        table_of(side, "1 a 04-29, 2 b null, 3 c infinity")
    unchecked = words("copy", "t", "--day", "2018-04-29", "-n")
    assert "NULL or infinite: not checked (no index)" in unchecked.out
    assert "no index on created_at: scans the whole table" in unchecked.out

    kept_source.execute("CREATE INDEX ON public.t (created_at)")
    checked = words("copy", "t", "--day", "2018-04-29", "-n")
    assert "NULL or infinite exist at the source" in checked.out


def test_the_zone_of_the_source_is_warned_about(
    run: Command, source: Database, dest: Database
) -> None:
    users(source)
    users(dest, 0)
    source.execute(f"ALTER DATABASE \"{source.name}\" SET TimeZone = 'Asia/Tokyo'")

    done = run(*DAY)

    assert done.code == 0
    assert "warning: days are counted in UTC, the source's own TimeZone is Asia/Tokyo" in done.err
    assert "24 rows" in done.out


# --- stdout and stderr that nobody reads ----------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "{} | true; exit ${{PIPESTATUS[0]}}",
        "{} | head -c 0; exit ${{PIPESTATUS[0]}}",
        "{} >&-",
        "{} >/dev/full",
        "{} 2>/dev/full",
        "{} <&- >&- 2>&-",
    ],
)
@pytest.mark.one_of(5)
def test_output_that_nobody_takes_changes_nothing(
    run: Command, source: Database, dest: Database, script: str
) -> None:
    users(source)
    users(dest, 0)

    done = run.shell(script.format("copypipe " + shlex.join(DAY)))

    assert done.code == 0, done.err
    assert dest.scalar("SELECT count(*) FROM public.users") == 24
    no_backends(source, dest)


def test_logs_do_not_move_to_stdout_where_stderr_is_closed(
    run: Command, source: Database, dest: Database
) -> None:
    users(source)
    users(dest, 0)

    done = run.shell(f"copypipe {shlex.join(DAY)} --json 2>&-")

    assert done.code == 0
    assert [json.loads(line)["rows"] for line in done.out.splitlines()] == [24]


# --- progress -------------------------------------------------------------------------------------


def test_bar_on_a_terminal(run: Command, source: Database, dest: Database) -> None:
    users(source, 1, rows=2000)
    users(dest, 0)

    bar = run("copy", "users", "--day", "2018-04-28", tty=True)

    assert bar.code == 0
    assert re.fullmatch(r"public\.users \[.*  2000 rows  .*copied 2000\n", bar.out)
    assert "public.users [2018-04-28, 2018-04-29) UTC:" in bar.err
    assert "B/s" in bar.err

    for choice in ("log", "none"):
        without = run("copy", "users", "--day", "2018-04-28", "--progress", choice, tty=True)
        assert without.code == 0
        assert "B/s" not in without.err
    forced = run("copy", "users", "--day", "2018-04-28", "--progress", "bar")
    assert "B/s" in forced.err
    assert forced.out.count("\n") == 1


# --- where the servers are named ------------------------------------------------------------------

ODD_PASSWORD = CANARY + "@/:%#?&= ü\\'\""


def _named(way: str, database: Database, tmp_path: Path) -> tuple[str, dict[str, str], str, str]:
    """Return conninfo, environment, and from where host and password's neighbour, user, come."""
    role = database.role("reader", "SELECT ON public.users", password=ODD_PASSWORD)
    host, port, name = database.server.host, str(database.server.port), database.name
    if way == "keywords":
        return role.dsn, {}, "COPYPIPE_SOURCE", "COPYPIPE_SOURCE"
    if way == "uri":
        assert ODD_PASSWORD not in role.uri
        return role.uri, {}, "COPYPIPE_SOURCE", "COPYPIPE_SOURCE"
    if way == "service":
        # A service file knows no quotes: its values end with the line.
        plain = database.role("plain", "SELECT ON public.users")
        service = tmp_path / "services.conf"
        service.write_text(
            f"[shop]\nhost={host}\nport={port}\nuser={plain.name}\n"
            f"password={plain.password}\ndbname={name}\n"
        )
        return "service=shop", {"PGSERVICEFILE": str(service)}, "service shop", "service shop"
    if way == "pgpass":
        escaped = ODD_PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
        pgpass = tmp_path / "home" / ".pgpass"
        pgpass.write_text(f"{host}:{port}:*:{role.name}:{escaped}\n")
        pgpass.chmod(0o600)
        dsn = f"host={host} port={port} dbname={name} user={role.name}"
        return dsn, {}, "COPYPIPE_SOURCE", "COPYPIPE_SOURCE"
    if way == "environment":
        variables = {"PGHOST": host, "PGPORT": port, "PGUSER": role.name}
        return f"dbname={name}", {**variables, "PGPASSWORD": ODD_PASSWORD}, "PGHOST", "PGUSER"
    folder = database.server.socket_dir
    if folder is None:
        pytest.skip("no unix socket of this server is known")
    dsn = f"host={folder} port={port} dbname={name} user={role.name}"
    return dsn, {"PGPASSWORD": ODD_PASSWORD}, "COPYPIPE_SOURCE", "COPYPIPE_SOURCE"


@pytest.mark.parametrize(
    "way", ["keywords", "uri", "service", "pgpass", "environment", "unix socket"]
)
@pytest.mark.one_of(5)
def test_ways_to_name_a_server(
    run: Command, source: Database, dest: Database, tmp_path: Path, way: str
) -> None:
    users(source)
    users(dest, 0)
    conninfo, environment, host_from, user_from = _named(way, source, tmp_path)
    env = {"COPYPIPE_SOURCE": conninfo, **environment}

    plan = run(*DAY, "--dry-run", env=env)
    done = run(*DAY, env=env)

    assert (plan.code, done.code) == (0, 0), plan.err + done.err
    facts = next(line for line in plan.out.splitlines() if line.strip().startswith("user "))
    assert re.search(rf" host \S+ \({re.escape(host_from)}\)", facts)
    assert re.search(rf"user copypipe_\S+ \({re.escape(user_from)}\)", facts)
    assert ODD_PASSWORD not in plan.out + plan.err + done.out + done.err
    assert "warning" not in done.err
    assert dest.scalar("SELECT count(*) FROM public.users") == 24


def test_a_password_among_the_arguments_is_warned_about(
    run: Command, source: Database, dest: Database
) -> None:
    users(source)
    users(dest, 0)
    role = source.role("reader", "SELECT ON public.users")

    done = run(*DAY, "--source", role.uri)

    assert done.code == 0
    assert "warning: the password in --source can be read in the process list" in done.err
    assert "24 rows" in done.out


def test_what_a_slice_brings_is_what_the_source_had_when_it_began(
    run: Command, source: Database, dest: Database
) -> None:
    """Copy each day in a shell loop, as people do; then the tables are equal."""
    users(source, 4, rows=11)
    users(dest, 0)
    days = "2018-04-28 2018-04-29 2018-04-30 2018-05-01"

    done = run.shell(f"for day in {days}; do copypipe copy users --day $day || exit; done")

    assert done.code == 0
    assert done.out.count("copied 11\n") == 4
    assert _digests(dest) == _digests(source)
    add_users(source, 1, rows=1, first="2018-04-29", offset=500)
    assert run(*DAY).out.endswith("deleted 11, copied 12\n")
    assert _digests(dest) == _digests(source)


# --- in a script ----------------------------------------------------------------------------------

NIGHTLY = """\
#!/bin/sh
# Copies the days named, and says what became of each.
set -eu
for day in "$@"; do
    code=0
    line=$(copypipe copy t --day "$day" --fail-on-empty --progress none 2>errors) || code=$?
    if [ "$code" = 6 ] && grep -q 'the source has no row' errors; then
        echo "$day: emptied by hand"
        code=0
        line=$(copypipe copy t --day "$day" --allow-empty --progress none 2>errors) || code=$?
    fi
    case $code in
    0) ;;
    9) echo "$day: not there yet"; continue ;;
    *) cat errors >&2; exit "$code" ;;
    esac
    deleted=${line##*deleted }
    deleted=${deleted%%,*}
    copied=${line##*copied }
    echo "$day: $((copied - deleted)) rows more ($deleted, $copied)"
done
"""


def scripted(run: Command, folder: Path, *days: str) -> Run:
    script = folder / "nightly.sh"
    script.write_text(NIGHTLY)
    env = {**run.base, "PATH": f"{EXECUTABLE.parent}:{run.base['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", "-eu", str(script), *days],
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    run.check(done.stdout + done.stderr)
    return Run(done.returncode, done.stdout, done.stderr, 0)


def test_a_script_reads_counts_and_exit_codes(
    run: Command, source: Database, dest: Database, tmp_path: Path
) -> None:
    table_of(source, "1 a 04-28, 2 b 04-28, 3 c 04-28T10:00")
    table_of(dest, "1 old 04-28, 7 old 04-30, 8 old 04-30")

    done = scripted(run, tmp_path, "2018-04-28", "2018-04-29", "2018-04-30")

    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "2018-04-28: 2 rows more (1, 3)",
        "2018-04-29: not there yet",
        "2018-04-30: emptied by hand",
        "2018-04-30: -2 rows more (2, 0)",
    ]
    assert rows_of(dest) == rows_of(source)


def test_a_script_stops_at_any_other_failure(
    run: Command, source: Database, dest: Database, tmp_path: Path
) -> None:
    table_of(source, "1 a 04-28")
    dest.execute("CREATE TABLE public.t (id int, note bytea, created_at timestamptz)")

    done = scripted(run, tmp_path, "2018-04-28", "2018-04-29")

    assert (done.code, done.out) == (6, "")
    assert "note: text at the source, bytea at the dest" in done.err
