"""--where and --query: rows that SQL of the user selects. (test_columns.py has --column.)

What is refused is refused with nothing changed on either side: `unchanged` looks at all of it.
"""

import json
import re
from collections.abc import Sequence

import pytest

import copypipe
from copypipe import CopyFailed, NothingToCopy, PlanRefused, UsageError
from copypipe.events import Cleared, Event
from plugins.command import Command, Words
from plugins.databases import Database
from plugins.rows import TABLE, assert_refused, contents, rows_of, table_of, unchanged, written

DAY = ("--day", "2018-04-29")

# A run that waits for itself would wait ten minutes; one that does not takes a fraction of this.
NO_HANG = 5.0


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


def on_both(source: Database, dest: Database, sql: str) -> None:
    for database in (source, dest):
        database.execute(sql)


# --- --where: what it copies ----------------------------------------------------------------------
#
# At the source, at the dest, the options, what the dest holds after, rows deleted and copied.

WHERE = {
    "alone: rows that match are made equal, others stay": (
        "1 new 04-28, 2 new 04-29, 4 new null",
        "1 old 04-28, 2 old 04-29, 3 gone infinity",
        ("--where", "id > 1"),
        "1 old 04-28, 2 new 04-29, 4 new null",
        (2, 2),
    ),
    "within a day": (
        "1 new 04-28, 2 new 04-29, 3 new 04-29, 4 new 04-30",
        "1 old 04-28, 2 old 04-29, 3 old 04-29, 4 old 04-30, 5 gone 04-29T10:00",
        (*DAY, "--where", "id > 2"),
        "1 old 04-28, 2 old 04-29, 3 new 04-29, 4 old 04-30",
        (2, 1),
    ),
    "within a day, either of two": (
        "1 new 04-28, 2 new 04-29, 3 new 04-29, 4 new 04-29",
        "1 old 04-28, 2 old 04-29, 3 old 04-29, 4 old 04-29",
        (*DAY, "--where", "id = 2 OR id = 1 -- and binds more tightly"),
        "1 old 04-28, 2 new 04-29, 3 old 04-29, 4 old 04-29",
        (1, 1),
    ),
    "within a range": (
        "1 new 04-28, 2 new 04-29, 3 new 04-30, 4 new 05-01",
        "1 old 04-28, 2 old 04-29, 3 old 04-30, 4 old 05-01",
        ("--from", "2018-04-29", "--to", "2018-05-01", "--where", "id <> 2"),
        "1 old 04-28, 2 old 04-29, 3 new 04-30, 4 old 05-01",
        (1, 1),
    ),
    "within a month": (
        "1 new 04-28, 2 new 04-29, 3 new 05-01",
        "",
        ("--month", "2018-04", "--where", "id > 1"),
        "2 new 04-29",
        (0, 1),
    ),
    "rows for which it is unknown do not match": (
        "1 new 04-28, 2 new null",
        "1 old 04-28, 2 old null",
        ("--where", "created_at > '2018-01-01'"),
        "1 new 04-28, 2 old null",
        (1, 1),
    ),
    "no row matches on either side": (
        "1 new 04-28",
        "1 old 04-28",
        ("--where", "id > 7"),
        "1 old 04-28",
        (0, 0),
    ),
    # What the warning of --dry-run is about: row 1 was b at the source when it was copied.
    "a row that does not match any more is cleared": (
        "1 a 04-28, 2 b 04-28",
        "1 b 04-28, 2 b 04-28",
        ("--where", "note = 'b'"),
        "2 b 04-28",
        (2, 1),
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "options", "expected", "counts"), WHERE.values(), ids=WHERE.keys()
)
@pytest.mark.one_of(5)
def test_where(
    words: Words,
    source: Database,
    dest: Database,
    at_source: str,
    at_dest: str,
    options: Sequence[str],
    expected: str,
    counts: tuple[int, int],
) -> None:
    table_of(source, at_source)
    table_of(dest, at_dest)

    done = words("copy", "t", *options)

    assert done.code == 0, done.err
    assert rows_of(dest) == written(expected)
    assert rows_of(source) == written(at_source)
    assert done.out.endswith("  deleted {}, copied {}\n".format(*counts))


# The same six rows are on both sides, with other times: whose time a row has after the copy tells
# whether the condition held for it. A second copy deletes what the first one copied.
NOTES = ("plain", "it's", "100%", "{}", "Zoë", ";")

SPELLED = {
    "a newline": ("id > 1\nAND id < 4", {2, 3}),
    "a carriage return": ("id > 1\r\n\tAND id < 4", {2, 3}),
    "a comment at the end": ("id > 4 -- the late ones", {5, 6}),
    "a comment that would close": ("id = 2 --) OR (true", {2}),
    "a comment within": ("id /* ; ) ' \" $$ */ = 2", {2}),
    "a comment in a comment": ("id /* a /* b */ c */ = 2", {2}),
    "a quote": ("note = 'it''s'", {2}),
    "a quote that is escaped": ("note = E'it\\'s'", {2}),
    "a backslash that escapes nothing": ("note <> '\\' AND id = 2", {2}),
    "dollar quotes": ("note = $$it's$$", {2}),
    "tagged dollar quotes": ("note = $it$it's$it$", {2}),
    "a quoted column": ("\"note\" = 'plain'", {1}),
    "a column in capitals": ("NOTE = 'plain'", {1}),
    "a column with its table": ("t.id = 1", {1}),
    "a percent sign": ("note LIKE '1%'", {3}),
    "the operator of a percent sign": ("id % 2 = 0", {2, 4, 6}),
    "braces": ("note = '{}'", {4}),
    "an array in braces": ("id = ANY ('{1,2}')", {1, 2}),
    "a format": ("note <> '%s %(a)s {0} {x!r}' AND id = 1", {1}),
    "other letters": ("note = 'Zoë'", {5}),
    "other letters by their numbers": ("note = U&'Zo\\00eb'", {5}),
    "a semicolon in quotes": ("note = ';'", {6}),
    "parentheses of its own": ("(id = 1) OR (id = 2)", {1, 2}),
    "a list": ("id IN (1, 3)", {1, 3}),
    "a case": ("CASE WHEN id = 1 THEN true ELSE note = ';' END", {1, 6}),
    "a function that every server has": ("pg_catalog.upper(note) = 'PLAIN'", {1}),
    "words that only look like more": ("note <> 'select now() from table x' AND id = 1", {1}),
    "a subscript": ("(ARRAY[note, 'x'])[1] = 'plain'", {1}),
}


@pytest.mark.parametrize(("condition", "ids"), SPELLED.values(), ids=SPELLED.keys())
@pytest.mark.one_of(8)
def test_conditions_in_all_spellings(
    words: Words, source: Database, dest: Database, condition: str, ids: set[int]
) -> None:
    times = {source: "04-28", dest: "05-01"}
    for database, when in times.items():
        table_of(database, ", ".join(f"{n} {note} {when}" for n, note in enumerate(NOTES, 1)))

    first = words("copy", "t", "--where", condition)
    second = words("copy", "t", "--where", condition)

    assert (first.code, second.code) == (0, 0), first.err
    assert rows_of(dest) == [
        f"{n} {note} {times[source] if n in ids else times[dest]}"
        for n, note in enumerate(NOTES, 1)
    ]
    for done in (first, second):
        assert done.out.endswith(f"  deleted {len(ids)}, copied {len(ids)}\n")


@pytest.mark.parametrize(
    "condition",
    ["id = 2", "note <> 's.t'", "note <> 't.csv' AND note <> 'x s.y' AND id = 2"],
    ids=["plain", "a literal like a column", "literals like both tables"],
)
def test_where_into_a_table_of_another_name(
    words: Words, source: Database, dest: Database, condition: str
) -> None:
    table_of(source, "2 new 04-29")
    source.execute("ALTER TABLE public.t RENAME TO s")
    table_of(dest, "2 old 04-29")

    done = words("copy", "s", "--into", "t", "--where", condition)

    assert done.code == 0, done.err
    assert rows_of(dest) == ["2 new 04-29"]


def test_where_into_a_table_of_another_name_knows_neither_name(
    words: Words, source: Database, dest: Database
) -> None:
    table_of(source, "2 new 04-29")
    source.execute("ALTER TABLE public.t RENAME TO s")
    table_of(dest, "2 old 04-29")

    for name in ("s", "t", "public.t"):
        run = words("copy", "s", "--into", "t", "--where", f"{name}.id = 2")
        assert_refused(run, 6, "the condition cannot be used\n.*\nHINT:  Name columns alone")


def test_where_names_columns_that_need_quotes(
    words: Words, source: Database, dest: Database
) -> None:
    """Their names are words that would mean the moment or other rows without the quotes."""
    on_both(source, dest, 'CREATE TABLE public.t ("select" int, "user" text, "A ""b"" %s{}" int)')
    source.execute("INSERT INTO public.t VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 2)")

    done = words("copy", "t", "--where", '"user" = \'a\' AND "A ""b"" %s{}" = 2 AND "select" > 1')

    assert done.code == 0, done.err
    assert dest.fetch("SELECT * FROM public.t") == [(2, "a", 2)]


def test_a_condition_may_call_an_immutable_function(
    words: Words, source: Database, dest: Database
) -> None:
    for database in (source, dest):
        side = database.side
        table_of(database, f"1 x 04-28, 2 x 04-28, 3 {side} 04-28, 4 {side} 04-29")
        database.execute(
            "CREATE FUNCTION public.even(int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN $1 % 2 = 0"
        )

    done = words("copy", "t", "--where", "public.even(id)")

    assert done.code == 0, done.err
    assert rows_of(dest) == ["1 x 04-28", "2 x 04-28", "3 dest 04-28", "4 source 04-29"]


# Conditions that people write; each must pass, the two servers being of different majors.
EVERYDAY = (
    "tenant = 7 AND NOT deleted",
    "tenant IN (7, 8) AND status <> 'today'",
    "tenant = ANY ('{7,8}')",
    "status LIKE 'a%' OR status ILIKE 'B_' OR status ~ '^c' OR status IS NULL",
    "lower(status) = 'a' AND length(status) < 9 AND left(status, 1) <> '-'",
    "coalesce(status, '') = '' AND greatest(tenant, 1) = 1 AND nullif(tenant, 0) IS NOT NULL",
    "seen::date = '2018-04-29' AND seen < '2018-05-01' AND seen > DATE '2018-04-01'",
    "seen BETWEEN '2018-04-01' AND '2018-04-30' AND seen < 'infinity'",
    "date_trunc('month', seen) = '2018-04-01' AND extract(year FROM seen) = 2018",
    "seen AT TIME ZONE 'UTC' > '2018-04-29' AND seen + interval '1 day' > '2018-04-29'",
    "to_char(seen, 'YYYY-MM') = '2018-04' AND age(seen, '2018-01-01') > '1 day'",
    "price > 1.5 AND round(price) = 2 AND price::int % 2 = 0 AND -price < 0",
    "profile @> '{\"a\": 1}' AND profile ->> 'b' = 'c' AND (profile -> 'd')::int > 0",
    "profile ? 'a' AND jsonb_path_exists(profile, '$.a')",
    "tags @> '{a}' AND 'b' = ANY (tags) AND tags[1] = 'a' AND cardinality(tags) > 1",
    "hashtext(status) % 4 = 1 AND md5(status) <> ''",
    "CASE tenant WHEN 1 THEN deleted ELSE status = 'x' END",
    "(tenant, status) < (2, 'b')",
    'things.tenant = 1 AND "things"."Odd Name" = 1',
)


def test_everyday_conditions_are_accepted(words: Words, source: Database, dest: Database) -> None:
    on_both(
        source,
        dest,
        "CREATE TABLE public.things (tenant int, status text, deleted bool, seen timestamptz,"
        ' price numeric(10, 2), profile jsonb, tags text[], "Odd Name" int)',
    )

    runs = {c: words("copy", "things", "--where", c, "-n") for c in EVERYDAY}

    assert {condition: run.err for condition, run in runs.items() if run.code} == {}


def test_a_condition_over_partitions(words: Words, source: Database, dest: Database) -> None:
    table_of(source, "1 new 04-29, 2 new 04-29, 3 new 04-29")
    dest.execute(
        "CREATE TABLE public.t (id int, note text, created_at timestamptz) PARTITION BY HASH (id);"
        "CREATE TABLE public.t0 PARTITION OF public.t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "INSERT INTO public.t SELECT n, 'old', '2018-04-29Z' FROM generate_series(1, 4) n"
    )

    done = words("copy", "t", "--where", "id <> 2")

    assert done.code == 0, done.err
    assert done.out.endswith("  deleted 3, copied 2\n")
    assert rows_of(dest) == ["1 new 04-29", "2 old 04-29", "3 new 04-29"]


def test_a_row_that_somebody_else_writes_meanwhile_stays(source: Database, dest: Database) -> None:
    """It matches, and is none of the copied rows whose number must be right."""
    for database in (source, dest):
        table_of(database, f"1 {database.side} 04-29")

    def interfere(event: Event) -> None:
        if isinstance(event, Cleared):
            dest.execute("INSERT INTO public.t VALUES (2, 'other', '2018-04-29Z')")

    done = copypipe.copy("t", where="id > 0", source=source.dsn, dest=dest.dsn, listener=interfere)

    assert (done.deleted, done.rows) == (1, 1)
    assert rows_of(dest) == ["1 source 04-29", "2 other 04-29"]


def test_a_changed_row_beside_its_old_version_is_the_keys_matter(
    words: Words, source: Database, dest: Database
) -> None:
    """The other half of the warning: at the dest row 1 does not match yet, so it is not cleared."""
    table_of(source, "1 b 04-28")
    table_of(dest, "1 a 04-28, 2 b 04-28")

    with unchanged(source, dest):
        assert_refused(words("copy", "t", "--where", "note = 'b'"), 1, "dest: duplicate key")


def test_json_tells_the_condition(words: Words, source: Database, dest: Database) -> None:
    for database in (source, dest):
        table_of(database, "1 ä 04-29, 2 b 04-29")
    condition = "note = 'ä'\n-- or not"

    alone = json.loads(words("copy", "t", "--where", condition, "--json").out)
    within = json.loads(words("copy", "t", *DAY, "--where", condition, "--json").out)
    plan = json.loads(words("copy", "t", *DAY, "--where", condition, "--json", "-n").out)

    assert alone["slice"] == {"all": False, "where": condition}
    assert (alone["deleted"], alone["rows"]) == (1, 1)
    assert within["slice"] == plan["slice"]
    assert (within["slice"]["where"], within["slice"]["all"]) == (condition, False)
    assert within["slice"]["first_day"] == "2018-04-29"
    assert condition in plan["statements"]["clear"]
    assert condition in plan["statements"]["copy_out"]
    assert any("cleared without being copied" in warning for warning in plan["warnings"])


def test_the_line_shows_the_beginning_of_a_long_condition(
    words: Words, source: Database, dest: Database
) -> None:
    for database in (source, dest):
        table_of(database, "1 a 04-29")

    done = words("copy", "t", *DAY, "--where", f"id = 1\n  AND note <> '{'x' * 100}'")

    assert done.out.count("\n") == 1
    assert done.out.startswith("public.t [2018-04-29, 2018-04-30) UTC where id = 1 AND note <> 'x")
    assert "xxx...  1 rows" in done.out


def test_dry_run_of_a_condition_warns_and_names_its_index(
    words: Words, source: Database, dest: Database
) -> None:
    for database in (source, dest):
        database.execute(TABLE)
        database.execute(
            "INSERT INTO public.t SELECT n, 'n' || n, '2018-04-29Z' FROM generate_series(1, 3000) n"
        )
    unserved = words("copy", "t", "--where", "note = 'n7'", "-n")
    on_both(source, dest, "CREATE INDEX by_note ON public.t (note); ANALYZE public.t")

    with unchanged(source, dest):
        served = words("copy", "t", "--where", "note = 'n7'", "-n")

    assert (unserved.code, served.code) == (0, 0), served.err
    assert unserved.out.count("no index on the condition: scans the whole table") == 2
    assert served.out.count("by index by_note\n") == 2
    assert "  warning  a row that changed so that the condition holds " in served.out
    assert "no other run of copypipe works on the table meanwhile" in served.out
    assert re.search(r"""DELETE FROM "public"."t" WHERE \(\s+note = 'n7'\s+\)\n""", served.out)
    # And whoever does not ask for a plan is warned as well.
    assert "warning: a row that changed so that" in words("copy", "t", "--where", "id = 1").err


def test_a_bar_takes_any_condition_for_text(run: Command, source: Database, dest: Database) -> None:
    for database in (source, dest):
        table_of(database, "1 a 04-29")

    done = run("copy", "t", "--where", "note <> '{bar}{0!r}%s%' AND id = 1", tty=True)

    assert done.code == 0, done.err
    assert "where note <> '{bar}{0!r}%s%' AND id = 1:" in done.err


# --- --where: what it refuses ---------------------------------------------------------------------

LAID_OUT = """
    CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz,
                           twice int {generated}, hidden text);
    INSERT INTO public.t (id, note, created_at)
         VALUES (1, '{side}', '2018-04-28Z'), (2, '{side}', '2018-04-29Z');
    CREATE TABLE public.secret (value text);
    INSERT INTO public.secret VALUES ('secret of the {side}');
    CREATE FUNCTION public.keeps(int) RETURNS bool VOLATILE LANGUAGE plpgsql
        AS 'BEGIN RETURN true; END';
    CREATE FUNCTION public.looks(int) RETURNS bool STABLE LANGUAGE plpgsql
        AS 'BEGIN RETURN true; END';
"""


def lay_out(source: Database, dest: Database) -> None:
    source.execute(LAID_OUT.format(side="source", generated=""))
    dest.execute(LAID_OUT.format(side="dest", generated="GENERATED ALWAYS AS (id * 2) STORED"))


CANNOT = "^ERROR:  the condition cannot be used\nDETAIL:  source: "
SEVERAL = f"{CANNOT}cannot insert multiple commands.*\nHINT:  One expression"
SYNTAX = f"{CANNOT}syntax error.*\nHINT:  One expression"
OPEN = f"{CANNOT}unterminated .*\nHINT:  One expression"
OTHER_ROWS = "^ERROR:  the condition has a subquery\n"
MOMENT = (
    "^ERROR:  the condition may mean other rows at the dest than at the source\nDETAIL:  {} can"
)
WHOLE_ROW = "^ERROR:  the condition uses the row as a whole\n"
UNKNOWN = (
    "{}column {} does not exist\n"
    "HINT:  It may use the columns that are copied as they are: id, note, created_at"
)
NOT_PER_ROW = "{}{} are not allowed in WHERE\nHINT:  An expression has one value"

REFUSED = {
    # what would leave the parentheses
    "a second statement": ("true; DROP TABLE public.t", SEVERAL),
    "a semicolon": ("true;", SYNTAX),
    "a statement behind a parenthesis": ("true); DROP TABLE public.t; --", SYNTAX),
    "parentheses the wrong way round": ("id = 1) OR (true", SYNTAX),
    "a union": ("true) UNION SELECT (1", SYNTAX),
    "the end of a subselect": ("true)) AS x, (SELECT 1 WHERE (true", SYNTAX),
    "a parenthesis before a comment": ("true) --", SYNTAX),
    "RETURNING": ("true) RETURNING (id", SYNTAX),
    "an open comment": ("true /*", OPEN),
    "a comment that is closed too seldom": ("true /* /* */", OPEN),
    "a comment that was not opened": ("true */", SYNTAX),
    "an open quote": ("note = '", OPEN),
    "an open quoted name": ('note = "', OPEN),
    "an open dollar quote": ("note = $$", OPEN),
    "an escaped quote": ("note = E'\\'", OPEN),
    "a parameter": ("id = $1", f"{CANNOT}there is no value for the parameter \\$1\n"),
    "an order": ("true ORDER BY 1", SYNTAX),
    "a table of its own": ("true FROM public.secret", SYNTAX),
    "two expressions": ("true, true", f"{CANNOT}argument of WHERE must be type boolean"),
    "nothing but a comment": ("-- true", SYNTAX),
    "a statement": ("DROP TABLE public.t", SYNTAX),
    "a query": ("SELECT true", SYNTAX),
    # what the two sides may know differently
    "a subselect": ("id = (SELECT max(id) FROM public.t)", OTHER_ROWS),
    "a table": ("EXISTS (TABLE public.t)", OTHER_ROWS),
    "a table for each row": ("EXISTS (SELECT FROM public.secret WHERE value = note)", OTHER_ROWS),
    "a list of a table": ("id IN (SELECT id FROM public.t)", OTHER_ROWS),
    "a list of a table and more": ("id > 0 AND id IN (SELECT id FROM public.t)", OTHER_ROWS),
    "a list of values as a table": ("id IN (VALUES (1), (2))", OTHER_ROWS),
    "no row of a table": (
        "note <> '' AND NOT EXISTS (SELECT FROM public.secret WHERE value = note)",
        OTHER_ROWS,
    ),
    "a statement that changes rows in a subselect": (
        "id IN (WITH d AS (DELETE FROM public.t RETURNING id) SELECT id FROM d)",
        f"{CANNOT}WITH clause containing a data-modifying statement must be at the top level",
    ),
    "now()": ("created_at < now()", MOMENT.format("now\\(\\)")),
    "now() with its schema": ("created_at < pg_catalog.now()", MOMENT.format("now\\(\\)")),
    "a date of today": ("created_at < CURRENT_DATE", MOMENT.format("CURRENT_DATE")),
    "this moment, to the millisecond": (
        "created_at < CURRENT_TIMESTAMP(3)",
        MOMENT.format("CURRENT_TIMESTAMP"),
    ),
    "a literal of today": ("created_at < 'yesterday'", MOMENT.format("'yesterday'")),
    "a literal of today with blanks": ("created_at < ' Now '", MOMENT.format("'now'")),
    "a literal of today that is read later": (
        "created_at < 'today'::text::timestamptz",
        MOMENT.format("'today'"),
    ),
    "chance": ("random() < 0.5", MOMENT.format("random\\(\\)")),
    "a new UUID": ("note > gen_random_uuid()::text", MOMENT.format("gen_random_uuid\\(\\)")),
    "the clock": ("created_at < clock_timestamp()", MOMENT.format("clock_timestamp\\(\\)")),
    "the role": ("note = current_user", MOMENT.format("CURRENT_USER")),
    "the database": ("note = current_database()", MOMENT.format("current_database\\(\\)")),
    "a setting": (
        "note = current_setting('TimeZone')",
        MOMENT.format("current_setting\\(\\)"),
    ),
    "a volatile function": ("public.keeps(id)", MOMENT.format("keeps\\(\\)")),
    "a stable function": ('"public" . Looks (id)', MOMENT.format("looks\\(\\)")),
    "a function without its schema": (
        "keeps(id)",
        f"{CANNOT}function keeps\\(integer\\) does not exist\nHINT: .* need their schema",
    ),
    # columns
    "no such column": ("nope = 1", UNKNOWN.format(CANNOT, '"nope"')),
    "a column that is excluded": ("hidden = 'x'", UNKNOWN.format(CANNOT, '"hidden"')),
    "a column that the dest generates": ("twice = 2", UNKNOWN.format(CANNOT, '"twice"')),
    "a system column": ("ctid = '(0,1)'", UNKNOWN.format(CANNOT, '"ctid"')),
    "a system column with its table": ("t.xmin > '0'", UNKNOWN.format(CANNOT, "t.xmin")),
    "a whole row": ("t IS NOT NULL", WHOLE_ROW),
    "a whole row with a star": ("t.* IS NOT NULL", WHOLE_ROW),
    "a whole row as text": ("t::text LIKE '%x%'", WHOLE_ROW),
    "a whole row as an argument": ("row_to_json(\"t\")::text LIKE '%x%'", WHOLE_ROW),
    # no condition
    "a number": ("id", f"{CANNOT}argument of WHERE must be type boolean, not type integer"),
    "a value that is none": ("id = 'x'", f'{CANNOT}invalid input syntax for type integer: "x"'),
    "an aggregate": ("max(id) = 1", NOT_PER_ROW.format(CANNOT, "aggregate functions")),
    "every row": ("true", "^ERROR:  the condition holds for every row\nHINT: .*--all"),
    "every row, in other words": ("id = id IS NOT NULL OR true", "holds for every row"),
    "a window": ("row_number() OVER () = 1", NOT_PER_ROW.format(CANNOT, "window functions")),
    "a set": ("generate_series(1, 2) = 1", NOT_PER_ROW.format(CANNOT, "set-returning functions")),
}


@pytest.mark.parametrize(("condition", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.one_of(8)
def test_a_condition_that_is_refused_changes_nothing(
    words: Words,
    source: Database,
    dest: Database,
    condition: str,
    message: str,
) -> None:
    lay_out(source, dest)

    with unchanged(source, dest):
        run = words("copy", "t", "--exclude", "hidden", "--where", condition)

    assert_refused(run, 6, message)


def test_a_condition_sees_no_column_that_is_computed(
    words: Words, source: Database, dest: Database
) -> None:
    """Its value at the dest is not the one that the source would ask about."""
    lay_out(source, dest)
    options = ("--exclude", "hidden", "--column", "note=md5(note)")

    with unchanged(source, dest):
        run = words("copy", "t", *options, "--where", "note = 'source'")

    assert_refused(run, 6, f'{CANNOT}column "note" does not exist\nHINT: .* are: id, created_at\\.')


# What passes on the source alone: the dest is asked too, and named.
FUNCTION = """
    CREATE FUNCTION public.f(int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END'
"""
ONE_SIDED = {
    "a function": (
        f"{FUNCTION} IMMUTABLE",
        "",
        "public.f(id)",
        "^ERROR:  the condition cannot be used\n"
        "DETAIL:  dest: function public.f\\(integer\\) does not exist",
    ),
    "a function that is volatile at the dest": (
        f"{FUNCTION} IMMUTABLE",
        f"{FUNCTION} VOLATILE",
        "public.f(id)",
        MOMENT.format("f\\(\\)"),
    ),
    "a column": (
        "ALTER TABLE public.t ADD extra int",
        "",
        "extra = 1",
        "the columns of public.t and public.t do not fit\nDETAIL:  extra is missing at the dest",
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "condition", "message"), ONE_SIDED.values(), ids=ONE_SIDED.keys()
)
def test_a_condition_that_one_side_alone_understands(
    words: Words,
    source: Database,
    dest: Database,
    at_source: str,
    at_dest: str,
    condition: str,
    message: str,
) -> None:
    for database, sql in ((source, at_source), (dest, at_dest)):
        table_of(database, f"1 {database.side} 04-29")
        if sql:
            database.execute(sql)

    with unchanged(source, dest):
        assert_refused(words("copy", "t", "--where", condition), 6, message)


def test_a_role_that_may_not_read_what_the_condition_asks(
    words: Words, source: Database, dest: Database
) -> None:
    """Known before anything is changed, and by which side."""
    for database in (source, dest):
        table_of(database, f"1 {database.side} 04-29")
    writes = "INSERT, DELETE ON public.t"
    blind = dest.role("blind", "SELECT (id, created_at) ON public.t", writes)
    sees = dest.role("sees", "SELECT (id, note) ON public.t", writes)
    where = ("copy", "t", "--where", "note <> ''")

    with unchanged(source, dest):
        assert_refused(
            words(*where, env={"COPYPIPE_DEST": blind.dsn}),
            6,
            "DETAIL:  It lacks SELECT \\(note\\).\nHINT:  GRANT SELECT \\(note\\) ON public.t ",
        )
    assert words(*where, env={"COPYPIPE_DEST": sees.dsn}).code == 0
    assert rows_of(dest) == ["1 source 04-29"]


def test_rows_that_do_not_match_at_the_dest_are_noticed(
    words: Words, source: Database, dest: Database
) -> None:
    """One IMMUTABLE function, two bodies: row 2 was copied and does not match where it is now."""
    for database, matches in ((source, "1, 2"), (dest, "1")):
        table_of(database, f"1 {database.side} 04-29")
        database.execute(
            "CREATE FUNCTION public.f(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql"
            f" AS 'BEGIN RETURN $1 IN ({matches}); END'"
        )
    source.execute("INSERT INTO public.t VALUES (2, 'source', '2018-04-29Z')")

    with unchanged(source, dest):
        for within in ((), DAY):
            run = words("copy", "t", *within, "--where", "public.f(id)")
            assert_refused(
                run,
                1,
                "^ERROR:  dest: the condition holds for 1 of the 2 rows that were copied\n"
                "DETAIL:  The two sides do not understand it alike. Nothing was changed",
            )


def test_a_condition_that_the_sides_read_differently_is_refused(
    words: Words, source: Database, dest: Database
) -> None:
    """The planner shows the body of a function in SQL, and constants that it has worked out."""
    for database, matches in ((source, "1, 2"), (dest, "1, 3")):
        table_of(database, f"1 {database.side} 04-29")
        database.execute(
            "CREATE FUNCTION public.f(int) RETURNS bool IMMUTABLE LANGUAGE sql"
            f" RETURN $1 IN ({matches})"
        )
    dest.execute("ALTER TABLE public.t RENAME TO old")
    table_of(dest, "1 dest 04-29")  # with another OID than at the source

    with unchanged(source, dest):
        for condition in ("public.f(id)", "id <> 'public.t'::regclass::oid::int"):
            run = words("copy", "t", "--where", condition)
            assert_refused(run, 6, "^ERROR:  the condition is not read alike by the two sides\n")


# The rows of the dest match by what the dest alone knows, so they would be cleared without being
# copied, and the count after the copy would find nothing wrong: each must be refused.
MEANS_OTHER_ROWS = {
    "an operator of a user whose function is stable": "id OPERATOR(public.===) 1",
    "a volatile function in other letters": "public.Ä(id)",
    "today in a zone": "created_at < 'today UTC'",
    "a time of today": "created_at < '12:00 today'",
    "when the server was started": "created_at < pg_postmaster_start_time()",
    "the transaction": "txid_current() > id",
    "the backend": "pg_backend_pid() > id",
    "what the role may do": "has_table_privilege('public.t', 'SELECT')",
    "the dictionary of a server": "to_tsvector(note) @@ to_tsquery('run')",
}


@pytest.mark.parametrize("condition", MEANS_OTHER_ROWS.values(), ids=MEANS_OTHER_ROWS.keys())
def test_what_differs_from_server_to_server_is_refused(
    words: Words, source: Database, dest: Database, condition: str
) -> None:
    for database in (source, dest):
        table_of(database, f"1 {database.side} 04-29")
    on_both(
        source,
        dest,
        "CREATE FUNCTION public.seen(int, int) RETURNS bool STABLE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN true; END';"
        "CREATE OPERATOR public.=== (FUNCTION = public.seen, LEFTARG = int, RIGHTARG = int);"
        "CREATE FUNCTION public.Ä(int) RETURNS bool VOLATILE LANGUAGE plpgsql"
        " AS 'BEGIN RETURN true; END';",
    )

    with unchanged(source, dest):
        assert_refused(words("copy", "t", "--where", condition), 6, MOMENT.format(".*"))


# One setting of the two databases, and a condition that depends on it: by the dest's own setting it
# would hold for row 1 as well, which would be cleared and not copied.
SETTINGS = {
    "zone": ("TimeZone", "UTC", "Asia/Tokyo", "created_at::date = '2018-04-29'"),
    "backslashes": ("standard_conforming_strings", "on", "off", "id = 2 OR note = 'run\\s'"),
    "NULL": ("transform_null_equals", "off", "on", "id = 2 OR nullif(id, 1) = NULL"),
    "abbreviations": (
        *("timezone_abbreviations", "Default", "India"),
        "created_at >= '2018-04-29 01:00 IST'",
    ),
}


@pytest.mark.parametrize(
    ("setting", "at_source", "at_dest", "condition"), SETTINGS.values(), ids=SETTINGS.keys()
)
def test_a_condition_does_not_depend_on_the_settings_of_a_server(
    words: Words,
    source: Database,
    dest: Database,
    setting: str,
    at_source: str,
    at_dest: str,
    condition: str,
) -> None:
    for database, value in ((source, at_source), (dest, at_dest)):
        table_of(database, "1 runs 04-28T20:00, 2 run 04-29")
        database.execute(f"ALTER DATABASE \"{database.name}\" SET {setting} = '{value}'")
    before = contents(dest)
    try:
        done = words("copy", "t", "--where", condition)
    finally:
        for database in (source, dest):
            database.execute(f'ALTER DATABASE "{database.name}" RESET ALL')

    assert done.code == 0, done.err
    assert contents(dest) == before


def test_a_condition_does_not_depend_on_the_collation_of_a_side(
    words: Words, source: Database, dest: Database
) -> None:
    """By the dest's collation "Ä" is a capital letter: row 1 would be cleared and not copied."""
    lowers = [
        name
        for (name,) in dest.fetch(
            "SELECT collname FROM pg_collation WHERE collname IN ('pg_c_utf8', 'C.utf8',"
            " 'en_US.utf8', 'en-x-icu') AND collencoding IN (-1, 6)"
        )
        if dest.scalar(f"SELECT lower('Ä' COLLATE pg_catalog.\"{name}\")") == "ä"
    ]
    if not lowers:
        pytest.skip("the dest's server has no collation that knows such letters")
    for database, collation in ((source, "C"), (dest, lowers[0])):
        table_of(database, "1 Ä 04-29, 2 ä 04-29")
        database.execute(f'ALTER TABLE public.t ALTER note TYPE text COLLATE "{collation}"')

    words("copy", "t", "--where", "lower(note) = 'ä'")

    assert rows_of(dest) == rows_of(source)


# --- an empty source ------------------------------------------------------------------------------


def test_a_condition_that_finds_nothing_empties_nothing_unless_allowed(
    words: Words, source: Database, dest: Database
) -> None:
    table_of(source, "1 a 04-28")
    table_of(dest, "1 a 04-28, 2 b 04-29")
    where = ("copy", "t", "--where", "id = 2")

    with unchanged(source, dest):
        refused = words(*where)
        reported = words(*where, "--allow-empty", "--fail-on-empty")
    assert_refused(refused, 6, "the source has no row in where id = 2 and the dest has some\n")
    assert "--allow-empty" in refused.err
    assert_refused(reported, 9, "the source has no row in where id = 2\n")

    allowed = words(*where, "--allow-empty")
    assert allowed.code == 0
    assert allowed.out.endswith("  deleted 1, copied 0\n")
    assert rows_of(dest) == ["1 a 04-28"]
    assert_refused(words(*where, "--fail-on-empty"), 9, "the source has no row in where id = 2\n")


# --- --query --------------------------------------------------------------------------------------
#
# The source has no table t. The dest's rows: one of the day that is in the query, one that is not,
# and two of other days.

SHOP = """
    CREATE TABLE public.customers (id int PRIMARY KEY, name text);
    INSERT INTO public.customers VALUES (1, 'ann'), (2, 'bob');
    CREATE TABLE public.orders (id int PRIMARY KEY, customer int, at timestamptz);
    INSERT INTO public.orders VALUES (1, 1, '2018-04-28 10:00Z'), (2, 1, '2018-04-29 10:00Z'),
                                     (3, 2, '2018-04-29 12:00Z'), (4, 2, '2018-04-30 10:00Z');
    CREATE VIEW public.named AS
           SELECT o.id, c.name AS note, o.at AS created_at
             FROM public.orders o JOIN public.customers c ON c.id = o.customer;
"""
AT_DEST = "1 old 04-28, 3 old 04-29, 8 kept 05-01, 9 gone 04-29T01:00"
REPLACED = "1 old 04-28, 2 ann 04-29T10:00, 3 bob 04-29T12:00, 8 kept 05-01"
NAMED = "SELECT o.id, c.name AS note, o.at AS created_at FROM public.orders o"
JOIN = f"{NAMED} JOIN public.customers c ON c.id = o.customer"

QUERIES = {
    "a join": (JOIN, DAY, REPLACED, (2, 2)),
    "a join of newlines, a comment at its end": (
        f"{JOIN}\n -- of all days )",
        DAY,
        REPLACED,
        (2, 2),
    ),
    "a table": ("TABLE public.named", DAY, REPLACED, (2, 2)),
    "a semicolon at its end, as in a file": (f"{JOIN};\n", DAY, REPLACED, (2, 2)),
    "WITH": (f"WITH j AS ({JOIN}) SELECT * FROM j", DAY, REPLACED, (2, 2)),
    "a union": (
        f"{JOIN} WHERE o.id = 2 UNION ALL {JOIN} WHERE o.id <> 2",
        DAY,
        REPLACED,
        (2, 2),
    ),
    "columns in another order": (
        "SELECT created_at, note, id FROM public.named",
        DAY,
        REPLACED,
        (2, 2),
    ),
    "a limit, before the range": (
        f"{JOIN} ORDER BY o.id LIMIT 2",
        DAY,
        "1 old 04-28, 2 ann 04-29T10:00, 8 kept 05-01",
        (2, 1),
    ),
    "a range": (
        JOIN,
        ("--from", "2018-04-28", "--to", "2018-04-30"),
        "1 ann 04-28T10:00, 2 ann 04-29T10:00, 3 bob 04-29T12:00, 8 kept 05-01",
        (3, 3),
    ),
    "all": (
        f"{JOIN} WHERE o.id > 2",
        ("--all", "--yes"),
        "3 bob 04-29T12:00, 4 bob 04-30T10:00",
        (4, 2),
    ),
    "values": (
        "SELECT * FROM (VALUES (5, 'v', timestamptz '2018-04-29 05:00Z')) v (id, note, created_at)",
        DAY,
        "1 old 04-28, 5 v 04-29T05:00, 8 kept 05-01",
        (2, 1),
    ),
    "percent signs, braces and other letters": (
        "SELECT 5 AS id, '{}%s{0}ë' AS note, timestamptz '2018-04-29Z' AS created_at",
        DAY,
        "1 old 04-28, 5 {}%s{0}ë 04-29, 8 kept 05-01",
        (2, 1),
    ),
    "a type mended with a cast": (
        "SELECT id::int, note, created_at FROM"
        " (SELECT id::bigint, note, created_at FROM public.named) x",
        DAY,
        REPLACED,
        (2, 2),
    ),
    "a computed column over it": (
        JOIN,
        (*DAY, "--column", "note=upper(query.note)"),
        REPLACED.replace("ann", "ANN").replace("bob", "BOB"),
        (2, 2),
    ),
    "without the slice column, all": (
        "SELECT id, note FROM public.named WHERE id = 1",
        ("--all", "--yes", "--exclude", "created_at"),
        "1 ann null",
        (4, 1),
    ),
    "all, into the table that TRUNCATE emptied": (
        JOIN,
        ("--all", "--yes", "--clear", "truncate"),
        "1 ann 04-28T10:00, 2 ann 04-29T10:00, 3 bob 04-29T12:00, 4 bob 04-30T10:00",
        None,
    ),
}


@pytest.mark.parametrize(
    ("query", "options", "expected", "counts"), QUERIES.values(), ids=QUERIES.keys()
)
@pytest.mark.one_of(8)
def test_query(
    words: Words,
    source: Database,
    dest: Database,
    query: str,
    options: Sequence[str],
    expected: str,
    counts: tuple[int, int] | None,
) -> None:
    source.execute(SHOP)
    table_of(dest, AT_DEST)

    with unchanged(source):
        done = words("copy", "t", "--query", query, *options)

    assert done.code == 0, done.err
    assert rows_of(dest) == written(expected)
    if counts is not None:
        assert done.out.endswith("  deleted {}, copied {}\n".format(*counts))


def test_a_query_is_told_as_the_source(words: Words, source: Database, dest: Database) -> None:
    source.execute(SHOP)
    table_of(dest, "")

    plan = json.loads(words("copy", "t", *DAY, "--query", JOIN, "--json", "-n").out)
    text = words("copy", "t", *DAY, "--query", JOIN, "-n").out
    done = json.loads(words("copy", "t", *DAY, "--query", JOIN, "--json").out)

    assert (plan["query"], plan["source"]["kind"]) == (JOIN, "query")
    assert "copy (query) into public.t\n" in text
    assert (done["source_table"], done["dest_table"]) == ("(query)", "public.t")


def test_all_of_a_query_over_rows_needs_a_yes(
    words: Words, source: Database, dest: Database
) -> None:
    source.execute(SHOP)
    table_of(dest, AT_DEST)

    with unchanged(source, dest):
        run = words("copy", "t", "--query", JOIN, "--all")

    assert_refused(
        run,
        2,
        "all rows of public.t would be replaced\n"
        "DETAIL:  The source \\(query\\) has an unknown number of rows, the dest public.t has 4",
    )


NO_QUERY = "^ERROR:  the query cannot be used\nDETAIL:  source: "
NOTHING = "^ERROR:  source: the query returns no columns\nHINT:  Give a SELECT"
DO_NOT_FIT = "^ERROR:  the columns of \\(query\\) and public.t do not fit\nDETAIL:  {}"
READ_ONLY = "cannot execute {} in a read-only transaction"

REFUSED_QUERIES = {
    # what does not fit
    "a column too few": (
        "SELECT note, created_at FROM public.named",
        DO_NOT_FIT.format("id is missing at the source, and the dest has no default for it"),
    ),
    "a column too many": (
        "SELECT *, 1 AS extra FROM public.named",
        DO_NOT_FIT.format("extra is missing at the dest"),
    ),
    "a column of another type": (
        "SELECT id::float8, note, created_at FROM public.named",
        DO_NOT_FIT.format(
            "id: double precision at the source, integer at the dest\\.\nHINT: .*cast"
        ),
    ),
    "a slice column of another type": (
        "SELECT id, note, created_at::timestamp FROM public.named",
        DO_NOT_FIT.format("created_at: timestamp without time zone at the source, timestamp with"),
    ),
    "two columns of one name": (
        "SELECT *, 1 AS id, 2 AS note FROM public.named",
        "^ERROR:  source: the query has several columns named id, note\nHINT:  Name each of them",
    ),
    "no slice column": (
        "SELECT id, note FROM public.named",
        "",  # either is missing: what does not fit, or what to slice by
    ),
    "a table without its schema": (
        "SELECT * FROM named",
        f'{NO_QUERY}relation "named" does not exist\n'
        "HINT:  Names are looked up with an empty search_path",
    ),
    "no such column": ("SELECT nope FROM public.named", f'{NO_QUERY}column "nope" does not exist'),
    # what would leave the parentheses
    "a second statement": (
        f"{JOIN}; DROP TABLE public.orders",
        f"{NO_QUERY}cannot insert multiple commands.*\nHINT:  One SELECT",
    ),
    "two semicolons": (f"{JOIN};;", f"{NO_QUERY}syntax error"),
    "a semicolon before a comment": (f"{JOIN}; --", f"{NO_QUERY}syntax error"),
    "a statement behind a parenthesis": (
        f"{JOIN}) AS q; DROP TABLE public.orders; --",
        f"{NO_QUERY}syntax error",
    ),
    "a union around the parentheses": (
        f"{JOIN}) UNION (SELECT * FROM public.named",
        f"{NO_QUERY}syntax error",
    ),
    "an alias and more": (
        f"{JOIN}) AS a, (SELECT * FROM public.customers",
        f"{NO_QUERY}syntax error",
    ),
    "an open comment": (f"{JOIN} /*", f"{NO_QUERY}unterminated"),
    "an open quote": (f"{JOIN} WHERE c.name = '", f"{NO_QUERY}unterminated"),
    "a parameter": (
        f"{JOIN} WHERE o.id = $1",
        f"{NO_QUERY}there is no value for the parameter \\$1",
    ),
    "nothing but a comment": ("-- nothing", NOTHING),
    # what is no query
    "DELETE": (
        "DELETE FROM public.orders RETURNING id, 'x' AS note, at AS created_at",
        f"{NO_QUERY}syntax error",
    ),
    "DELETE without an answer": ("DELETE FROM public.orders", NOTHING),
    "DELETE in WITH": (
        "WITH d AS (DELETE FROM public.orders RETURNING *)"
        " SELECT id, 'x' AS note, at AS created_at FROM d",
        f"{NO_QUERY}WITH clause containing a data-modifying statement must be at the top level",
    ),
    "rows locked for an update": (
        "SELECT id, 'x' AS note, at AS created_at FROM public.orders FOR UPDATE",
        f"{NO_QUERY}{READ_ONLY.format('SELECT FOR UPDATE')}",
    ),
    "a setting": ("SHOW work_mem", f"{NO_QUERY}syntax error"),
    "a plan": ("EXPLAIN SELECT 1", f"{NO_QUERY}syntax error"),
    "a new table": ("CREATE TABLE public.new (a int)", NOTHING),
    "a new table of rows": (
        "SELECT * INTO public.new FROM public.named",
        "^ERROR:  source: the query returns no columns|" + f"{NO_QUERY}syntax error",
    ),
    "COPY": ("COPY public.orders TO STDOUT", NOTHING),
    "a call": ("DO 'BEGIN END'", NOTHING),
    # what writes while it is read
    "a function that writes": (
        "SELECT id, public.counted(note) AS note, created_at FROM public.named",
        f"^ERROR:  source: {READ_ONLY.format('INSERT')}\n.*\nHINT:  What is read at the source",
    ),
    "a sequence": (
        "SELECT id, nextval('public.numbers')::text AS note, created_at FROM public.named",
        READ_ONLY.format("nextval\\(\\)"),
    ),
}


@pytest.mark.parametrize(("query", "message"), REFUSED_QUERIES.values(), ids=REFUSED_QUERIES.keys())
@pytest.mark.one_of(8)
def test_a_query_that_is_refused_changes_nothing(
    words: Words, source: Database, dest: Database, query: str, message: str
) -> None:
    source.execute(
        f"""
        {SHOP}
        CREATE SEQUENCE public.numbers;
        CREATE TABLE public.log (note text);
        CREATE FUNCTION public.counted(text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.log VALUES ($1);
            RETURN $1;
        END $$;
        """
    )
    table_of(dest, AT_DEST)

    with unchanged(source, dest):
        assert_refused(words("copy", "t", *DAY, "--query", query), 6, message)


@pytest.mark.parametrize(
    "asks",
    [
        "PERFORM pg_catalog.set_config('transaction_read_only', 'off', false)",
        "SET TRANSACTION READ WRITE",
        "SET default_transaction_read_only = off",
        "COMMIT",
    ],
    ids=["set_config", "SET TRANSACTION", "default", "COMMIT"],
)
def test_a_query_cannot_leave_its_read_only_transaction(
    words: Words, source: Database, dest: Database, asks: str
) -> None:
    source.execute(
        f"""
        {SHOP}
        CREATE TABLE public.log (note text);
        CREATE FUNCTION public.sneaks(text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            {asks};
            INSERT INTO public.log VALUES ($1);
            RETURN $1;
        END $$;
        """
    )
    table_of(dest, AT_DEST)
    query = "SELECT id, public.sneaks(note) AS note, created_at FROM public.named"

    with unchanged(source, dest):
        run = words("copy", "t", *DAY, "--query", query)

    assert run.code in (1, 6)
    assert_refused(run, run.code, "^ERROR:  source: ")


# --- one database on both sides -------------------------------------------------------------------


def within_the_dest(dest: Database) -> dict[str, str]:
    return {"COPYPIPE_SOURCE": dest.dsn}


def test_a_query_may_read_the_table_that_is_replaced(
    words: Words, source: Database, dest: Database
) -> None:
    table_of(dest, "1 a 04-28, 2 b 04-29, 3 c 04-29")
    query = "SELECT id, note || '!' AS note, created_at FROM public.t WHERE id <> 3"

    done = words("copy", "t", *DAY, "--query", query, env=within_the_dest(dest))

    assert done.code == 0, done.err
    assert done.out.endswith("  deleted 2, copied 1\n")
    assert rows_of(dest) == ["1 a 04-28", "2 b! 04-29"]


def test_a_query_that_may_read_the_table_to_be_truncated_is_refused(
    run: Command, dest: Database
) -> None:
    """It would wait for the TRUNCATE that waits for it."""
    table_of(dest, "1 a 04-28")
    options = ("--all", "--yes", "--clear", "truncate", "--query", "SELECT * FROM public.t")

    with unchanged(dest):
        done = run.start("copy", "t", *options, env=within_the_dest(dest)).wait(NO_HANG)

    assert_refused(done, 6, "both sides are one database.*\nDETAIL: .*\nHINT:  Use --clear delete")


# Each reads the dest's empty table t in another way; without a row in it t might be truncated,
# and the reading would wait for that.
READS_THE_DEST = {
    "a query": ("t", "--query", "SELECT * FROM public.s WHERE id NOT IN (SELECT id FROM public.t)"),
    "a lookup": (
        *("s", "--into", "t", "--column"),
        "note=(SELECT coalesce(max(t.note), 'none') FROM public.t)",
    ),
    "a view": ("v", "--into", "t"),
    "a view, to be truncated": ("v", "--into", "t", "--clear", "truncate"),
}


@pytest.mark.parametrize("options", READS_THE_DEST.values(), ids=READS_THE_DEST.keys())
@pytest.mark.one_of(3)
def test_what_reads_the_table_it_fills_does_not_wait_for_itself(
    run: Command, dest: Database, options: Sequence[str]
) -> None:
    table_of(dest, "")
    dest.execute(
        f"{TABLE.replace('public.t', 'public.s')}; INSERT INTO public.s VALUES (1, 'a', NULL);"
        "CREATE VIEW public.v AS TABLE public.s UNION ALL TABLE public.t"
    )

    done = run.start("copy", *options, "--all", "--yes", env=within_the_dest(dest)).wait(NO_HANG)

    if "truncate" in options:
        assert_refused(done, 6, "both sides are one database")
    else:
        assert done.code == 0, done.err
        assert dest.fetch("SELECT id FROM public.t") == [(1,)]


# --- Python ---------------------------------------------------------------------------------------


def test_where_in_python(source: Database, dest: Database) -> None:
    table_of(source, "1 new 04-28, 2 new 04-29, 3 new 04-29")
    table_of(dest, "1 old 04-28, 2 old 04-29, 3 old 04-29")
    sides = {"source": source.dsn, "dest": dest.dsn}

    done = copypipe.copy("t", day="2018-04-29", where="id <> 3", **sides)
    assert (done.deleted, done.rows) == (1, 1)
    assert str(done.slice) == "[2018-04-29, 2018-04-30) UTC where id <> 3"
    assert rows_of(dest) == ["1 old 04-28", "2 new 04-29", "3 old 04-29"]

    with pytest.raises(PlanRefused, match="subquery"):
        copypipe.copy("t", where="id = (SELECT 1)", **sides)
    with pytest.raises(UsageError, match="the condition is empty"):
        copypipe.copy("t", where="", **sides)
    with pytest.raises(NothingToCopy):
        copypipe.copy("t", where="id = 9", fail_on_empty=True, **sides)
    with pytest.raises(CopyFailed, match="duplicate key"):
        copypipe.copy("t", where="note = 'new' AND id <> 2", **sides)


def test_query_columns_and_exclude_in_python(source: Database, dest: Database) -> None:
    source.execute(SHOP)
    table_of(dest, AT_DEST)
    dest.execute("ALTER TABLE public.t ADD loaded bool DEFAULT true")

    done = copypipe.copy(
        "public.t",
        query=JOIN,
        day="2018-04-29",
        columns={"note": "upper(note)"},
        exclude=["loaded"],
        source=source.dsn,
        dest=dest.dsn,
    )

    assert (done.table, done.into, done.deleted, done.rows) == ("(query)", "public.t", 2, 2)
    assert rows_of(dest) == written(REPLACED.replace("ann", "ANN").replace("bob", "BOB"))
    assert dest.scalar("SELECT count(*) FROM public.t WHERE loaded") == 4

    for wrong in ({"exclude": "loaded"}, {"columns": {"note": 1}}, {"rate_limit": 0}):
        with pytest.raises(UsageError):
            copypipe.copy("t", all=True, source=source.dsn, dest=dest.dsn, **wrong)
