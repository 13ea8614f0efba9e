"""Tables that drifted apart: what arrives, what is refused, what the plan says of each column."""

import json
import re
from collections.abc import Sequence

import pytest

import copypipe
from copypipe.errors import PlanRefused, UsageError
from plugins.command import Words
from plugins.databases import Database
from plugins.rows import assert_refused, contents, unchanged

ALL = ("--all", "--yes")


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


# --- what arrives ---------------------------------------------------------------------------------
#
# The source's table and a row of it, the dest's table, the options, the row that the dest then has.

ARRIVES = {
    # columns
    "in another order": (
        "a int, b int, c text",
        "1, 2, 'x'",
        "c text, b int, a int",
        "",
        "x|2|1",
    ),
    "dropped at the source": (
        "gone text, a int, gone2 int, b int",
        "'g', 1, 0, 2",
        "a int, b int",
        "",
        "1|2",
    ),
    "dropped at the dest": (
        "a int, b int",
        "1, 2",
        "gone int, b int, gone2 text, a int",
        "",
        "2|1",
    ),
    "added at the dest": ("a int", "1", "a int, b int", "", "1|\\N"),
    "added at the dest, with a default": ("a int", "1", "a int, b int DEFAULT 7", "", "1|7"),
    "added at the dest, must not be NULL": (
        "a int",
        "1",
        "a int, b int NOT NULL DEFAULT 7",
        "",
        "1|7",
    ),
    "added at the dest, an identity": (
        "a int",
        "1",
        "a int, b int GENERATED ALWAYS AS IDENTITY (START 4)",
        "",
        "1|5",
    ),
    "added at the source, excluded": ("a int, b int", "1, 2", "a int", "--exclude b", "1"),
    "renamed": ("a int, b text", "1, 'x'", "a int, label text", "--column label=b", "1|x"),
    "renamed and widened": ("a int, b int2", "1, 5", "a int, n int8", "--column n=b", "1|5"),
    "two names swapped": (
        "a int, b int",
        "1, 2",
        "a int, b int",
        "--column a=b --column b=a",
        "2|1",
    ),
    # generated
    "generated at the dest": (
        "a int",
        "1",
        "a int, b int GENERATED ALWAYS AS (a * 2) STORED",
        "",
        "1|2",
    ),
    "generated at the dest, plain at the source": (
        "a int, b int",
        "1, 9",
        "a int, b int GENERATED ALWAYS AS (a * 2) STORED",
        "",
        "1|2",
    ),
    "generated at the source, plain at the dest": (
        "a int, b int GENERATED ALWAYS AS (a * 2) STORED",
        "1",
        "a int, b int",
        "",
        "1|2",
    ),
    "generated at both": (
        "a int, b int GENERATED ALWAYS AS (a * 2) STORED",
        "1",
        "b int GENERATED ALWAYS AS (a * 3) STORED, a int",
        "",
        "3|1",
    ),
    "an identity at the source": (
        "a int GENERATED ALWAYS AS IDENTITY (START 7), b int",
        "DEFAULT, 2",
        "a int, b int",
        "",
        "7|2",
    ),
    "an identity at both keeps its numbers": (
        "a int GENERATED ALWAYS AS IDENTITY (START 7), b int",
        "DEFAULT, 2",
        "a int GENERATED ALWAYS AS IDENTITY, b int",
        "",
        "7|2",
    ),
    # widened
    "a wider integer": ("a int4", "-5", "a int8", "", "-5"),
    "an integer into numeric": (
        "a int8",
        "9007199254740993",
        "a numeric(20,2)",
        "",
        "9007199254740993.00",
    ),
    "a wider float": ("a float4", "0.5", "a float8", "", "0.5"),
    "a longer varchar": ("a varchar(3)", "'abc'", "a varchar(9)", "", "abc"),
    "a varchar into text": ("a varchar(3)", "'abc'", "a text", "", "abc"),
    "more digits": ("a numeric(5,2)", "1.25", "a numeric(9,4)", "", "1.2500"),
    "finer times": (
        "a timestamp(0)",
        "'2018-04-29 10:00'",
        "a timestamp",
        "",
        "2018-04-29 10:00:00",
    ),
    "a day into a timestamp": ("a date", "'2018-04-29'", "a timestamp", "", "2018-04-29 00:00:00"),
    "an integer into text": ("a int", "42", "a text", "", "42"),
    "a boolean into text": ("a bool", "true", "a text", "", "true"),
    "a time into text, in UTC": (
        "a timestamptz",
        "'2018-04-29 10:00+02'",
        "a text",
        "",
        "2018-04-29 08:00:00+00",
    ),
    "jsonb into json": ("a jsonb", "'{\"b\": 1}'", "a json", "", '{"b": 1}'),
    "an array of wider ones": ("a int2[]", "'{1,NULL}'", "a int8[]", "", "{1,NULL}"),
    "a name of an object": ("a regclass", "'pg_class'", "a regclass", "", "pg_class"),
    # narrowed, where the value fits
    "a narrower integer": ("a int8", "42", "a int2", "", "42"),
    "a shorter varchar": ("a text", "'abc'", "a varchar(3)", "", "abc"),
    "a shorter char": ("a char(5)", "'ab'", "a char(2)", "", "ab"),
    "fewer digits before the point": ("a numeric(9,2)", "1.25", "a numeric(3,2)", "", "1.25"),
    # narrowed by request
    "fewer digits, cast": ("a numeric", "1.50", "a numeric(9,1)", "--cast a", "1.5"),
    "fewer digits, rounded": ("a numeric", "1.257", "a numeric(9,1)", "--allow-lossy a", "1.3"),
    "a float into an integer, cast": ("a float8", "2", "a int", "--cast a", "2"),
    "a float into an integer, rounded": ("a float8", "1.7", "a int", "--allow-lossy a", "2"),
    "a float into a smaller one": ("a float8", "0.1", "a float4", "--allow-lossy a", "0.1"),
    "a text into an integer, cast": ("a text", "'42'", "a int", "--cast a", "42"),
    "a text into a char, cut": ("a text", "'abcdef'", "a char(3)", "--allow-lossy a", "abc"),
    "texts into shorter ones, cut": (
        "a text[]",
        "'{abcdef,NULL}'",
        "a varchar(3)[]",
        "--allow-lossy a",
        "{abc,NULL}",
    ),
    "a time into a day, cast": (
        "a timestamptz",
        "'2018-04-29 00:00+00'",
        "a date",
        "--cast a",
        "2018-04-29",
    ),
    "a time into a day, cut": (
        "a timestamptz",
        "'2018-04-29 23:30+00'",
        "a date",
        "--allow-lossy a",
        "2018-04-29",
    ),
    "fractions of a second, cut": (
        "a time",
        "'10:00:00.7'",
        "a time(0)",
        "--allow-lossy a",
        "10:00:01",
    ),
    "json into jsonb, whatever was written twice": (
        "a json",
        '\'{"a": 1, "a": 2}\'',
        "a jsonb",
        "--allow-lossy a",
        '{"a": 2}',
    ),
    "cast where nothing needs it": ("a int", "42", "a int8", "--cast a", "42"),
    "a computed column, cast": (
        "a int, b text",
        "1, '3.5'",
        "a int, n numeric(9,1)",
        "--column n=b --cast n",
        "1|3.5",
    ),
    "a name in capitals": ("a float8", "1.7", "a int", "--allow-lossy A", "2"),
}


def make(source: Database, dest: Database, at_source: str, row: str, at_dest: str) -> None:
    """Make public.t on both sides, with one row each; "gone" columns are dropped again."""
    for database, columns in ((source, at_source), (dest, at_dest)):
        database.execute(f"CREATE TABLE public.t ({columns})")
    source.execute(f"INSERT INTO public.t VALUES ({row})")
    dest.execute(
        "ALTER TABLE public.t ADD stale bool; INSERT INTO public.t (stale) SELECT true"
        " WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.t'::regclass"
        " AND attnotnull AND NOT atthasdef AND attidentity = '' AND attnum > 0);"
        "ALTER TABLE public.t DROP stale"
    )
    for database in (source, dest):
        for name in ("gone", "gone2"):
            database.execute(f"ALTER TABLE public.t DROP COLUMN IF EXISTS {name}")


@pytest.mark.parametrize(
    ("at_source", "row", "at_dest", "options", "expected"), ARRIVES.values(), ids=ARRIVES.keys()
)
@pytest.mark.one_of(8)
def test_what_drifted_arrives(
    words: Words,
    source: Database,
    dest: Database,
    at_source: str,
    row: str,
    at_dest: str,
    options: str,
    expected: str,
) -> None:
    make(source, dest, at_source, row, at_dest)

    with unchanged(source):
        done = words("copy", "t", *ALL, *options.split())

    assert done.code == 0, done.err
    assert dest.text("SELECT * FROM public.t").decode() == expected.replace("|", "\t") + "\n"


@pytest.mark.parametrize("options", [(), ("--column", "b=a * 5")], ids=["by name", "computed"])
def test_a_virtual_column(
    words: Words, source: Database, dest: Database, options: Sequence[str]
) -> None:
    if dest.server.major < 18:
        pytest.skip("virtual columns came with PostgreSQL 18")
    make(source, dest, "a int, b int", "1, 9", "a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL")

    done = words("copy", "t", *ALL, *options)

    if options:
        assert_refused(done, 6, 'dest: "b" is generated there')
    else:
        assert done.code == 0, done.err
        assert dest.text("SELECT * FROM public.t") == b"1\t2\n"


def test_a_virtual_column_of_the_source_is_read(
    words: Words, source: Database, dest: Database
) -> None:
    if dest.server.major < 18:
        pytest.skip("virtual columns came with PostgreSQL 18")
    dest.execute(
        "CREATE TABLE public.t (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL);"
        "INSERT INTO public.t VALUES (1), (2)"
    )
    source.execute("CREATE TABLE public.t (b int, a int)")

    with unchanged(dest):
        back = {"COPYPIPE_SOURCE": dest.dsn, "COPYPIPE_DEST": source.dsn}
        done = words("copy", "t", *ALL, env=back)

    assert done.code == 0, done.err
    assert source.text("SELECT a, b FROM public.t ORDER BY a") == b"1\t2\n2\t4\n"


# --- what is refused ------------------------------------------------------------------------------
#
# The source's table and a row of it, the dest's table, the options, the exit code, the words.

FIT = "the columns of public.t and public.t do not fit\nDETAIL:  "
CHANGED = "source: the column a holds a value that {} would change\n"

FAILS = {
    # columns
    "a column of the source alone": (
        "a int, b int",
        "1, 2",
        "a int",
        "",
        6,
        f"{FIT}b is missing at",
    ),
    "renamed, and nobody said so": (
        "a int, b int",
        "1, 2",
        "a int, c int",
        "",
        6,
        f"{FIT}b is missing at the dest",
    ),
    "a column of the dest alone that must not be NULL": (
        "a int",
        "1",
        "a int, b int NOT NULL",
        "",
        6,
        f"{FIT}b is missing at the source, and the dest has no default for it, which must not be",
    ),
    # narrowed
    "an integer that is too large": ("a int8", "32768", "a int2", "", 1, "22003"),
    "a text that is too long": (
        "a text",
        "'abcd'",
        "a varchar(3)",
        "",
        1,
        "too long.*varying\\(3\\)",
    ),
    "a text that is longer by blanks": ("a text", "'ab  '", "a varchar(3)", "", 1, "too long"),
    "a varchar that is longer by blanks": (
        "a varchar(9)",
        "'ab  '",
        "a varchar(3)",
        "",
        1,
        "too long",
    ),
    "a char that is too long": ("a char(5)", "'abcde'", "a char(3)", "", 1, "too long"),
    "digits before the point": ("a numeric(9,2)", "123", "a numeric(4,2)", "", 1, "22003"),
    "an integer beyond a precision": ("a int4", "1000", "a numeric(5,2)", "", 1, "22003"),
    "a text that is no json": (
        "a text",
        "'{'",
        "a json",
        "",
        1,
        "22P02; row 1 of the copy; column a",
    ),
    "digits": ("a numeric(9,2)", "1.25", "a numeric(9,1)", "", 6, "a: numeric\\(9,2\\) as numeric"),
    "fractions": ("a timestamp", "'2018-04-29'", "a timestamp(0)", "", 6, "a: timestamp.*cut off"),
    "another zone": (
        "a timestamptz",
        "'2018-04-29Z'",
        "a timestamp",
        "",
        6,
        f"{FIT}a: timestamp with",
    ),
    "a float": (
        "a float8",
        "1.5",
        "a int",
        "",
        6,
        f"{FIT}a: double precision at the source, integer",
    ),
    # by request
    "digits that a cast would lose": (
        "a numeric",
        "1.57",
        "a numeric(9,1)",
        "--cast a",
        1,
        CHANGED.format("numeric\\(9,1\\)"),
    ),
    "a fraction that a cast would lose": (
        "a float8",
        "1.7",
        "a int",
        "--cast a",
        1,
        CHANGED.format("integer"),
    ),
    "an integer that a float cannot hold": (
        "a int4",
        "16777217",
        "a float4",
        "--cast a",
        1,
        CHANGED.format("real"),
    ),
    "a text that a cast would cut": (
        "a text",
        "'abcdef'",
        "a char(3)",
        "--cast a",
        1,
        CHANGED.format("character\\(3\\)"),
    ),
    "a time that is no day": (
        "a timestamptz",
        "'2018-04-29 10:00Z'",
        "a date",
        "--cast a",
        1,
        CHANGED.format("date"),
    ),
    "a text that is no number": ("a text", "'x'", "a int", "--cast a", 1, "source: .*22P02"),
    "a computed value that a cast would lose": (
        "a float8",
        "1.7",
        "a int",
        "--column a=a*3 --cast a",
        1,
        CHANGED.format("integer"),
    ),
    "a number that is too large, also for what may lose": (
        "a float8",
        "1e20",
        "a int",
        "--allow-lossy a",
        1,
        "22003",
    ),
    "both": (
        "a float8",
        "1",
        "a int",
        "--cast a --allow-lossy a",
        6,
        '"a" was given to both --cast and --allow-lossy',
    ),
    "a cast of no column": (
        "a int",
        "1",
        "a int",
        "--cast nope",
        6,
        "--cast nope: no such column is copied into public.t",
    ),
    "what may lose is no column": (
        "a int",
        "1",
        "a int",
        "--allow-lossy nope",
        6,
        "--allow-lossy nope: no such column",
    ),
    "a cast of an excluded column": (
        "a int, b text",
        "1, 'x'",
        "a int, b int",
        "--cast b --exclude b",
        6,
        "--cast b: no such column is copied",
    ),
    "a cast that no server has": (
        "a text",
        "'1'",
        "a public.twin",
        "--cast a",
        6,
        "the source cannot cast to public.twin",
    ),
}


@pytest.mark.parametrize(
    ("at_source", "row", "at_dest", "options", "code", "message"), FAILS.values(), ids=FAILS.keys()
)
@pytest.mark.one_of(8)
def test_what_does_not_fit_changes_nothing(
    words: Words,
    source: Database,
    dest: Database,
    at_source: str,
    row: str,
    at_dest: str,
    options: str,
    code: int,
    message: str,
) -> None:
    dest.execute("CREATE TYPE public.twin AS (a int, b int)")
    make(source, dest, at_source, row, at_dest)

    with unchanged(source, dest):
        run = words("copy", "t", *ALL, *options.split())

    assert_refused(run, code, f"(?s){message}")


def test_a_domain_of_the_dest_alone_that_must_not_be_null(
    words: Words, source: Database, dest: Database
) -> None:
    dest.execute("CREATE DOMAIN public.needed AS int NOT NULL")
    source.execute("CREATE TABLE public.t (a int); INSERT INTO public.t VALUES (1)")
    dest.execute("CREATE TABLE public.t (a int, b public.needed)")
    dest.execute("INSERT INTO public.t VALUES (7, 7)")

    with unchanged(source, dest):
        run = words("copy", "t", *ALL)

    assert_refused(run, 6, f"{FIT}b is missing at the source, and the dest has no default for it")


@pytest.mark.parametrize("option", ["--cast", "--allow-lossy"])
@pytest.mark.one_of(2)
def test_the_slice_column_is_never_cast(
    words: Words, source: Database, dest: Database, option: str
) -> None:
    for of, to in [
        ("timestamp", "timestamptz"),
        ("timestamptz", "date"),
        ("timestamptz", "timestamptz(0)"),
        ("date", "timestamp"),
        ("timestamptz(0)", "timestamptz"),
    ]:
        for database, type_ in ((source, of), (dest, to)):
            database.execute(
                f"DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (id int, at {type_});"
                "INSERT INTO public.t VALUES (1, '2018-04-29 00:00')"
            )
        day = ("copy", "t", "--day", "2018-04-29", "--by", "at", option, "at")
        with unchanged(source, dest):
            run = words(*day)
            assert_refused(
                run, 6, 'the slice column "at" is (time|date).* at the dest\nDETAIL: .*never'
            )
            assert words("copy", "t", *ALL, option, "at", "-n").code == 0


def test_the_slice_column_is_compared_below_domains(
    words: Words, source: Database, dest: Database
) -> None:
    dest.execute("CREATE DOMAIN public.moment AS timestamptz")
    for database, type_ in ((source, "timestamptz"), (dest, "public.moment")):
        database.execute(
            f"CREATE TABLE public.t (id int, at {type_});"
            "INSERT INTO public.t VALUES (1, '2018-04-29Z'), (2, '2018-04-30Z')"
        )
    dest.execute("UPDATE public.t SET id = id + 10")

    done = words("copy", "t", "--day", "2018-04-29", "--by", "at")

    assert done.code == 0, done.err
    assert dest.fetch("SELECT id FROM public.t ORDER BY 1") == [(1,), (12,)]


def test_many_values_are_each_looked_at(words: Words, source: Database, dest: Database) -> None:
    """The value that a cast would change comes last."""
    make(source, dest, "a numeric", "NULL", "a int")
    source.execute("INSERT INTO public.t SELECT n FROM generate_series(1, 5000) n")
    casts = ("copy", "t", *ALL, "--cast", "a")
    assert words(*casts).code == 0
    assert dest.fetch("SELECT count(*), count(a), sum(a) FROM public.t") == [(5001, 5000, 12502500)]

    source.execute("INSERT INTO public.t VALUES (1.5)")
    with unchanged(source, dest):
        run = words(*casts)

    assert_refused(run, 1, CHANGED.format("integer"))
    assert "1.5" not in run.err


@pytest.mark.parametrize(
    ("into", "expression", "options"),
    [
        ("varchar(36)", "gen_random_uuid()", ()),
        ("varchar(9)", "substr(random()::text, 1, 9)", ()),
        ("int", "round(random()::numeric * 1000000)", ("--cast", "b")),
        ("int", "round((random() * a * 1000000)::numeric)", ("--cast", "b")),
    ],
)
def test_a_value_that_is_looked_at_is_computed_once_for_each_row(
    words: Words,
    source: Database,
    dest: Database,
    into: str,
    expression: str,
    options: Sequence[str],
) -> None:
    """Computed once for all rows it would be one value; twice for a row, not the one looked at."""
    make(source, dest, "a int", "1", f"a int, b {into}")
    source.execute("INSERT INTO public.t SELECT n FROM generate_series(2, 100) n")

    done = words("copy", "t", *ALL, "--column", f"b={expression}", *options)

    assert done.code == 0, done.err
    assert dest.scalar("SELECT count(DISTINCT b) FROM public.t") > 90


# --- what the plan says ---------------------------------------------------------------------------

AT_SOURCE = """
    a int8, b text, c regclass, d jsonb, e numeric, f float8, g int4, h int4, i mood
"""
AT_DEST = """
    b varchar(5), a int2, c regclass, d json, e numeric(9,1), f int4, g int4,
    i mood, j int DEFAULT 7, k text, l int GENERATED ALWAYS AS (a * 2) STORED
"""
PLANNED = [
    ("b", "text", "character varying(5)", "text value", "a value of more than 5 characters fails"),
    ("a", "bigint", "smallint", "cast", "a value that does not fit fails the copy"),
    ("c", "regclass", "regclass", "text format", "regclass names an object by a number of each"),
    ("d", "jsonb", "json", "text value", "the dest reads its text"),
    ("e", "numeric", "numeric(9,1)", "cast", "as asked; a value that would not come back the same"),
    ("f", "double precision", "integer", "cast", "as allowed, though it may lose: double"),
    ("g", "integer", "integer", "same", "the same built-in type"),
    ("i", "public.mood", "public.mood", "same", "made of the same types on both sides"),
]
OPTIONS = ("--cast", "e", "--allow-lossy", "f", "--exclude", "h")


@pytest.fixture
def drifted(source: Database, dest: Database) -> None:
    source.execute("CREATE TYPE public.mood AS ENUM ('sad', 'ok')")
    dest.execute("CREATE TYPE public.mood AS ENUM ('ok')")
    for database, columns in ((source, AT_SOURCE), (dest, AT_DEST)):
        database.execute(f"CREATE TABLE public.t ({columns})")
    source.execute(
        "INSERT INTO public.t VALUES (1, 'x', 'pg_class', '{}', 1.5, 1.7, 1, 1, 'ok');"
        "CREATE VIEW public.v AS SELECT a, b::varchar AS b, c, d, e, f, g, i FROM public.t"
    )


@pytest.mark.usefixtures("drifted")
def test_the_plan_tells_every_column(words: Words, source: Database, dest: Database) -> None:
    with unchanged(source, dest):
        text = words("copy", "t", *ALL, *OPTIONS, "-n").out

    lines = [re.sub(" +", " ", line).strip() for line in text.splitlines()]
    assert "columns 8, in text format, because of c" in lines
    for name, one, other, decision, reason in PLANNED:
        expected = f"{name} {one} -> {other} {decision} "
        (line,) = [line for line in lines if line.startswith(expected)]
        assert reason in line
    assert "l left out: the dest generates it" in lines
    assert "j missing at the source: gets its default of the dest" in lines
    assert "k missing at the source: gets NULL" in lines
    for warning in (
        "j is missing at the source: rows that are replaced lose what the dest holds in it",
        "i: public.mood of the dest lacks 'sad': a row that holds it fails the copy",
    ):
        assert f"warning {warning}" in lines
    assert any("FORMAT text" in line for line in lines if line.startswith("source COPY"))
    assert lines[-1] == "nothing was changed"


@pytest.mark.usefixtures("drifted")
def test_the_plan_as_json_tells_the_same(words: Words, source: Database, dest: Database) -> None:
    with unchanged(source, dest):
        plan = json.loads(words("copy", "t", *ALL, *OPTIONS, "-n", "--json").out)

    told = [
        (c["name"], c["source_type"], c["dest_type"], c["decision"], c["reason"])
        for c in plan["columns"]
    ]
    assert [column[:4] for column in told] == [column[:4] for column in PLANNED]
    assert all(p[4] in t[4] for t, p in zip(told, PLANNED, strict=True))
    assert plan["format"] == "text"
    assert plan["left_out"] == ["l"]
    assert plan["without_source"] == [
        {"name": "j", "gets": "default"},
        {"name": "k", "gets": "null"},
    ]
    assert plan["excluded"] == []
    statements = plan["statements"]
    assert statements["copy_in"].endswith("FROM STDIN (FORMAT text)")
    assert statements["copy_out"].endswith("TO STDOUT (FORMAT text)")
    assert '"a"::smallint' in statements["copy_out"]
    assert '"f"::integer' in statements["copy_out"]
    assert '"e"::numeric(9,1)' in statements["copy_out"]
    assert any("lacks 'sad'" in warning for warning in plan["warnings"])


@pytest.mark.usefixtures("drifted")
@pytest.mark.parametrize("read", ["view", "query"])
def test_what_is_read_is_described_by_the_server(
    words: Words, source: Database, dest: Database, read: str
) -> None:
    """A view and a query say their own types, which no catalog of tables has."""
    options = ("v", "--into", "t") if read == "view" else ("t", "--query", "SELECT * FROM public.v")

    more = ("--cast", "e", "--allow-lossy", "f")
    plan = json.loads(words("copy", *options, *ALL, *more, "-n", "--json").out)
    done = words("copy", *options, *ALL, *more)

    types = {column["name"]: column["source_type"] for column in plan["columns"]}
    assert types["b"] == "character varying"
    assert (types["a"], types["e"], types["i"]) == ("bigint", "numeric", "public.mood")
    assert done.code == 0, done.err
    assert dest.text("SELECT * FROM public.t") == b"x\t1\tpg_class\t{}\t1.5\t2\t1\tok\t7\t\\N\t2\n"


@pytest.mark.usefixtures("drifted")
def test_all_that_does_not_fit_is_said_at_once(
    words: Words, source: Database, dest: Database
) -> None:
    dest.execute("ALTER TABLE public.t ADD m int NOT NULL")

    with unchanged(source, dest):
        run = words("copy", "t", *ALL)

    assert_refused(
        run,
        6,
        f"{FIT}h is missing at the dest; m is missing at the source, .*; "
        "e: numeric as numeric\\(9,1\\): digits may be rounded off; "
        "f: double precision at the source, integer at the dest\\.\nHINT:  --cast .*"
        "--allow-lossy .* \\(here: e, f\\)\\. --exclude .*--column",
    )


SECRET = "4711 & & 'secret"


@pytest.mark.parametrize(
    ("of", "to", "option"),
    [
        ("text", "tsquery", "--cast"),
        ("text", "int", "--cast"),
        ("text", "int", "--allow-lossy"),
        ("text", "varchar(5)", "--cast"),
        ("text", "char(5)", "--cast"),
        ("text", "uuid", "--allow-lossy"),
        ("text", "json", "--cast"),
    ],
)
def test_no_value_is_told(
    words: Words, source: Database, dest: Database, of: str, to: str, option: str
) -> None:
    for database, type_ in ((source, of), (dest, to)):
        database.execute(f"CREATE TABLE public.t (id int, c {type_})")
    source.execute("INSERT INTO public.t VALUES (1, %s)", [SECRET])

    run = words("copy", "t", *ALL, option, "c", "-v")

    assert run.code == 1
    assert "4711" not in run.err
    assert "secret" not in run.err


def test_in_python(source: Database, dest: Database) -> None:
    make(source, dest, "a numeric, b float8", "1.50, 1.7", "a numeric(9,1), b int")
    sides = {"source": source.dsn, "dest": dest.dsn, "all": True, "yes": True}

    with pytest.raises(PlanRefused, match="do not fit"):
        copypipe.copy("t", **sides)
    for argument in ("cast", "allow_lossy"):
        with pytest.raises(UsageError, match=f"{argument} is a list of names of columns"):
            copypipe.copy("t", **sides, **{argument: "ab"})
    before = contents(dest)
    with pytest.raises(copypipe.CopyFailed, match="the column b holds a value that integer would"):
        copypipe.copy("t", **sides, cast=["a", "b"])
    assert contents(dest) == before
    done = copypipe.copy("t", **sides, cast=["a"], allow_lossy=["b"])

    assert done.rows == 1
    assert dest.text("SELECT * FROM public.t") == b"1.5\t2\n"


# --- found by reviews -----------------------------------------------------------------------------


def test_a_slice_column_may_say_its_precision_on_one_side(
    words: Words, source: Database, dest: Database
) -> None:
    make(source, dest, "at timestamp(6)", "'2018-04-29 10:00'", "at timestamp")

    done = words("copy", "t", "--by", "at", "--day", "2018-04-29")

    assert done.code == 0, done.err
    assert dest.scalar("SELECT count(at) FROM public.t") == 1


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        ("CREATE CAST (int4 AS text) WITH INOUT AS IMPLICIT", False),
        ("CREATE CAST (text AS public.mood) WITH FUNCTION public.mood_of(text)", False),
        ("CREATE CAST (public.mood AS text) WITH FUNCTION public.text_of(public.mood)", True),
    ],
)
def test_a_cast_that_a_user_has_made_is_not_taken(
    words: Words, source: Database, dest: Database, made: str, refused: bool
) -> None:
    source.execute(
        """
        CREATE TYPE public.mood AS ENUM ('sad');
        CREATE FUNCTION public.mood_of(text) RETURNS public.mood LANGUAGE sql
            AS $$ SELECT NULL::public.mood $$;
        CREATE FUNCTION public.text_of(public.mood) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$
        """
    )
    make(source, dest, "a int, b public.mood", "1, 'sad'", "a bigint, b text")
    source.execute(made)

    done = words("copy", "t", *ALL)

    if refused:
        assert_refused(
            done, 6, FIT + "b: a user has made a cast at the source: public.mood to text"
        )
    else:
        assert done.code == 0, done.err
        assert dest.fetch("SELECT * FROM public.t") == [(1, "sad")]


def test_a_value_is_not_told_by_the_source_in_text_format_either(
    words: Words, source: Database, dest: Database
) -> None:
    make(
        source, dest, "a text, r regclass", "'4711 & & secret', 'pg_class'", "a tsquery, r regclass"
    )

    run = words("copy", "t", *ALL, "--cast", "a")

    assert run.code == 1
    assert "4711" not in run.err


def test_money_in_text_format_is_not_cast(words: Words, source: Database, dest: Database) -> None:
    make(
        *(source, dest, "a money, b numeric, r regclass", "1, 2, 'pg_class'"),
        "a money, b money, r regclass",
    )

    run = words("copy", "t", *ALL, "--cast", "b")

    assert_refused(run, 6, FIT + "a: in text format lc_monetary is pinned")
