"""--column and --exclude: which columns go over, and what the source makes of them."""

import json
import re
from collections.abc import Sequence

import pytest

from plugins.command import Words
from plugins.databases import Database
from plugins.rows import assert_refused, table_of, unchanged

DAY = ("--day", "2018-04-29")
ALL = ("--all", "--yes")
READ_ONLY = "cannot execute {} in a read-only transaction"


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


# --- --column -------------------------------------------------------------------------------------
#
# The columns that are special at the dest, the options, and how the source itself would say what
# must arrive.

PEOPLE = """
    CREATE TABLE public.t (id int PRIMARY KEY, name text, email varchar(80), balance int,
                           profile jsonb, created_at timestamptz);
    INSERT INTO public.t VALUES
           (1, 'Ann', 'ann@example.org', 5, '{"n": 1, "ip": "::1"}', '2018-04-29 10:00Z'),
           (2, 'Bob', NULL, -3, NULL, '2018-04-29 11:00Z'),
           (3, 'Zoë', 'zoë@example.org', 0, '[]', '2018-04-30 11:00Z');
    CREATE TABLE public.cities (person int, city text);
    INSERT INTO public.cities VALUES (1, 'Graz'), (2, 'Linz');
    CREATE FUNCTION public.masked(text) RETURNS text STABLE LANGUAGE sql AS 'SELECT left($1, 1)';
"""


def people_at_dest(columns: str) -> str:
    """Return a table at the dest: "name" as at the source, "+ name type" is new, "- name" not."""
    kept = {
        "id": "int",
        "name": "text",
        "email": "varchar(80)",
        "balance": "int",
        "profile": "jsonb",
        "created_at": "timestamptz",
    }
    for change in filter(None, map(str.strip, columns.split(";"))):
        if change[0] == "-":
            del kept[change[1:].strip()]
        else:
            name, _, type_ = change[1:].strip().rpartition(" ")
            kept[name] = type_
    return f"CREATE TABLE public.t ({', '.join(f'{n} {t}' for n, t in kept.items())})"


COMPUTED = {
    "renamed, nothing to exclude": (
        "- name; + label text",
        ("--column", "label=name"),
        "SELECT id, email, balance, profile, created_at, name FROM public.t",
    ),
    "renamed and kept": (
        "+ label text",
        ("--column", "label=t.name"),
        "SELECT *, name FROM public.t",
    ),
    "two names swapped": (
        "+ name text; + label text",
        ("--column", "name=upper(name)", "--column", "label=name"),
        "SELECT id, upper(name), email, balance, profile, created_at, name FROM public.t",
    ),
    "masked": (
        "",
        ("--column", "email=md5(email)::varchar(80)"),
        "SELECT id, name, md5(email), balance, profile, created_at FROM public.t",
    ),
    "masked, of another type": (
        "+ email text",
        ("--column", "email=md5(email)"),
        "SELECT id, name, md5(email), balance, profile, created_at FROM public.t",
    ),
    "emptied": (
        "",
        ("--column", "email=NULL::varchar(80)"),
        "SELECT id, name, NULL, balance, profile, created_at FROM public.t",
    ),
    "derived from several that have no home": (
        "- name; - email; + who text",
        ("--column", "who=name || ' ' || email", "--exclude", "name", "--exclude", "email"),
        "SELECT id, balance, profile, created_at, name || ' ' || email FROM public.t",
    ),
    "looked up": (
        "+ city text",
        ("--column", "city=(SELECT c.city FROM public.cities c WHERE c.person = t.id)"),
        "SELECT t.*, c.city FROM public.t LEFT JOIN public.cities c ON c.person = t.id",
    ),
    "by a function that the source alone has": (
        "+ letter text",
        ("--column", "letter=public.masked(name)"),
        "SELECT *, left(name, 1) FROM public.t",
    ),
    "a constant": (
        "+ origin text; + batch smallint",
        ("--column", "origin='shop'", "--column", "batch=7::smallint"),
        "SELECT *, 'shop', 7 FROM public.t",
    ),
    "JSON": (
        "",
        ("--column", "profile=profile - 'ip' || jsonb_build_object('{}', 'it''s %s')"),
        "SELECT id, name, email, balance, profile - 'ip' || '{\"{}\": \"it''s %s\"}', created_at"
        " FROM public.t",
    ),
    "quoted names": (
        '+ "The ""Name"" = {}%s" text',
        ("--column", '"The ""Name"" = {}%s"="name"'),
        "SELECT *, name FROM public.t",
    ),
    "a name in capitals": (
        "",
        ("--column", "EMAIL=md5(Email)::varchar(80)"),
        "SELECT id, name, md5(email), balance, profile, created_at FROM public.t",
    ),
    "an expression with equals signs": (
        "+ rich bool",
        ("--column", "rich=balance = 5 OR name = 'a=b'"),
        "SELECT *, balance = 5 FROM public.t",
    ),
    "an expression of lines with a comment at its end": (
        "+ email text",
        ("--column", "email =\n md5(email) -- ) masked\n -- so there"),
        "SELECT id, name, md5(email), balance, profile, created_at FROM public.t",
    ),
    "a case": (
        "",
        ("--column", "balance=CASE WHEN balance < 0 THEN 0 ELSE balance END"),
        "SELECT id, name, email, greatest(balance, 0), profile, created_at FROM public.t",
    ),
}


@pytest.mark.parametrize(("columns", "computed", "sent"), COMPUTED.values(), ids=COMPUTED.keys())
@pytest.mark.one_of(8)
def test_computed_columns(
    words: Words,
    source: Database,
    dest: Database,
    columns: str,
    computed: Sequence[str],
    sent: str,
) -> None:
    source.execute(PEOPLE)
    dest.execute(people_at_dest(columns))

    with unchanged(source):
        done = words("copy", "t", *DAY, *computed)

    assert done.code == 0, done.err
    of_day = f"{sent} WHERE created_at < '2018-04-30Z' ORDER BY id"
    assert dest.text("SELECT * FROM public.t ORDER BY id") == source.text(of_day)


def test_what_is_computed_is_computed_at_the_source(
    words: Words, source: Database, dest: Database
) -> None:
    source.execute(PEOPLE)
    dest.execute(people_at_dest("+ email text"))
    masked = ("copy", "t", *ALL, "--column", "email=md5(email)")

    plan = json.loads(words(*masked, "--json", "-n").out)
    text = words(*masked, "-n").out

    assert "(\nmd5(email)\n)" in plan["statements"]["copy_out"]
    assert '"email"' not in plan["statements"]["copy_out"]
    assert "md5" not in plan["statements"]["copy_in"] + plan["statements"]["clear"]
    (column,) = [column for column in plan["columns"] if column["name"] == "email"]
    assert column == {
        "name": "email",
        "source_type": "text",
        "dest_type": "text",
        "expression": "md5(email)",
        "decision": "same",
        "reason": "the same built-in type",
    }
    (line,) = [line for line in text.splitlines() if line.lstrip().startswith("email  ")]
    assert re.sub(" +", " ", line) == " email text -> text same the same built-in type"
    assert f"{line}\n{' ' * line.index('text  ')}= md5(email)\n" in text


def test_a_condition_and_a_computed_column_together(
    words: Words, source: Database, dest: Database
) -> None:
    source.execute(PEOPLE)
    dest.execute(people_at_dest("+ email text"))
    dest.execute("INSERT INTO public.t (id, balance) VALUES (7, 1), (8, -1)")

    done = words("copy", "t", "--where", "balance > 0", "--column", "email=md5(email)")

    assert done.code == 0, done.err
    assert dest.fetch("SELECT id, email = md5('ann@example.org') FROM public.t ORDER BY 1") == [
        (1, True),
        (8, None),
    ]


NO_EXPRESSION = '^ERROR:  the expression of "{}" cannot be used\nDETAIL:  source: {}'
SYNTAX_OF_NAME = NO_EXPRESSION.format("name", "syntax error.*\nHINT:  One expression")
THE_COLUMNS = "the columns of public.t and public.t do not fit\nDETAIL:  {}"

REFUSED_COLUMNS = {
    "another type": (
        "balance=email",
        THE_COLUMNS.format("balance: character varying\\(80\\) at the source, integer at the dest"),
    ),
    "what a cast would round": (
        "balance=balance * 1.5",
        THE_COLUMNS.format("balance: numeric at the source, integer at the dest.\nHINT:  --cast"),
    ),
    "a row": ("name=(name, email)", THE_COLUMNS.format("name: record at the source")),
    "two expressions": ("name=name, email", THE_COLUMNS.format("name: record at the source")),
    "no such column at the dest": ("nope=name", "dest: public.t has no column nope to compute"),
    "no such column at the source": (
        "name=nope",
        NO_EXPRESSION.format("name", 'column "nope" does not exist'),
    ),
    "a column that the dest generates": ("twice=id", 'dest: "twice" is generated there'),
    "an aggregate": (
        "name=max(name)",
        NO_EXPRESSION.format("name", "aggregate functions are not allowed.*\nHINT:  An expression"),
    ),
    "an aggregate that only looks like a subselect": (
        "name=(SELECT max(t.name))",
        NO_EXPRESSION.format("name", "aggregate functions are not allowed"),
    ),
    "a window": (
        "balance=rank() OVER ()",
        NO_EXPRESSION.format("balance", "window functions are not allowed"),
    ),
    "a set": (
        "balance=generate_series(1, 2)",
        NO_EXPRESSION.format("balance", "set-returning functions are not allowed"),
    ),
    "all columns": (
        "name=t.*",
        'source: the expression of "name" is 6 columns\nHINT:  Compute each column by itself',
    ),
    "a function without its schema": (
        "name=masked(name)",
        NO_EXPRESSION.format("name", "function masked\\(text\\) does not exist\nHINT: .* schema"),
    ),
    "a table without its schema": (
        "name=(SELECT city FROM cities)",
        NO_EXPRESSION.format("name", 'relation "cities" does not exist\nHINT:  Names are'),
    ),
    "a parenthesis too many": ("name=name) , (email", SYNTAX_OF_NAME),
    "a table of its own": ("name=1) FROM public.cities --", SYNTAX_OF_NAME),
    "a table of its own without a parenthesis": ("name=city FROM public.cities", SYNTAX_OF_NAME),
    "a second statement": (
        "name=1; DROP TABLE public.cities",
        NO_EXPRESSION.format("name", "cannot insert multiple commands"),
    ),
    "an open quote": ("name='", NO_EXPRESSION.format("name", "unterminated")),
    "an open comment": ("name=name /*", NO_EXPRESSION.format("name", "unterminated")),
    "a name of its own": ("name=email AS name", SYNTAX_OF_NAME),
    "a table to be made": ("name=email INTO public.new", SYNTAX_OF_NAME),
    "DISTINCT": ("name=DISTINCT email", SYNTAX_OF_NAME),
    "a query": ("name=SELECT city FROM public.cities", SYNTAX_OF_NAME),
    "a parameter": ("name=$1", "there is no value for the parameter \\$1"),
    "a statement that changes rows": (
        "name=(WITH d AS (DELETE FROM public.cities RETURNING city) SELECT max(city) FROM d)",
        NO_EXPRESSION.format("name", "WITH clause containing a data-modifying statement"),
    ),
    "a function that writes": ("name=public.counted(name)", READ_ONLY.format("INSERT")),
}


@pytest.mark.parametrize(
    ("column", "message"), REFUSED_COLUMNS.values(), ids=REFUSED_COLUMNS.keys()
)
@pytest.mark.one_of(8)
def test_a_computed_column_that_is_refused_changes_nothing(
    words: Words, source: Database, dest: Database, column: str, message: str
) -> None:
    source.execute(
        f"""
        {PEOPLE}
        CREATE FUNCTION public.counted(text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.cities VALUES (9, $1);
            RETURN $1;
        END $$
        """
    )
    dest.execute(people_at_dest(""))
    dest.execute(
        "ALTER TABLE public.t ADD twice int GENERATED ALWAYS AS (id * 2) STORED;"
        "INSERT INTO public.t (id, created_at) VALUES (7, '2018-04-29Z')"
    )

    with unchanged(source, dest):
        assert_refused(words("copy", "t", *DAY, "--column", column), 6, message)


COMBINED = {
    "twice the same": (
        ("--column", "name=email", "--column", '"name"=name || 1'),
        '"name" is computed twice',
    ),
    "computed and excluded": (
        ("--column", "name=upper(name)", "--exclude", "name"),
        '"name" is both computed and excluded',
    ),
    "a computed slice column": (
        ("--column", "created_at=created_at + interval '1 day'"),
        'the slice column "created_at" is not copied as it is\nDETAIL:  It is computed',
    ),
    "an excluded slice column": (
        ("--exclude", "created_at"),
        'the slice column "created_at" is not copied as it is\nDETAIL: .*excluded',
    ),
    "an excluded column that nobody has": (
        ("--exclude", "nope"),
        "neither public.t nor public.t has a column nope to exclude",
    ),
    "an excluded column that must not be NULL": (
        ("--exclude", "id"),
        THE_COLUMNS.format("id is excluded, and the dest has no default for it, which must not be"),
    ),
}


@pytest.mark.parametrize(("options", "message"), COMBINED.values(), ids=COMBINED.keys())
def test_columns_that_do_not_go_together(
    words: Words, source: Database, dest: Database, options: Sequence[str], message: str
) -> None:
    for database in (source, dest):
        database.execute(PEOPLE)

    with unchanged(source, dest):
        assert_refused(words("copy", "t", *DAY, *options), 6, message)


def test_nothing_is_left_to_copy(words: Words, source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute("CREATE TABLE public.t (note text)")

    run = words("copy", "t", *ALL, "--exclude", "note")

    assert_refused(run, 6, "public.t has no column to copy into\n")


# --- --exclude ------------------------------------------------------------------------------------
#
# Columns of the source, of the dest, those excluded, what the dest holds of row 1 of the source.

EXCLUDED = {
    "a column of the source alone": (
        "id int, secret text DEFAULT 'hidden'",
        "id int",
        ["secret"],
        b"1",
    ),
    "a column of the dest alone gets its default": (
        "id int",
        "id int, loaded text DEFAULT 'by default'",
        ["loaded"],
        b"1\tby default",
    ),
    "a column of the dest alone without a default": (
        "id int",
        "id int, loaded text",
        ["loaded"],
        b"1\t\\N",
    ),
    "a column of both, of different types": (
        "id int, note text DEFAULT 'source'",
        "id int, note numeric DEFAULT 1.5",
        ["note"],
        b"1\t1.5",
    ),
    "a column of both that must not be NULL": (
        "id int, note text DEFAULT 'source'",
        "id int, note text NOT NULL DEFAULT 'dest'",
        ["note"],
        b"1\tdest",
    ),
    "several, quoted and in capitals": (
        'id int, "Secret" text, secret text',
        'id int, "Loaded" int',
        ['"Secret"', "SECRET", '"Loaded"'],
        b"1\t\\N",
    ),
    "an identity column": (
        "id int",
        "id int, number int GENERATED ALWAYS AS IDENTITY (START 100)",
        ["number"],
        b"1\t100",
    ),
    "a serial column": ("id int, number int", "id int, number serial", ["number"], b"1\t1"),
    "a column that the dest generates anyway": (
        "id int",
        "id int, twice int GENERATED ALWAYS AS (id * 2) STORED",
        ["twice"],
        b"1\t2",
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "names", "expected"), EXCLUDED.values(), ids=EXCLUDED.keys()
)
@pytest.mark.one_of(5)
def test_excluded_columns(
    words: Words,
    source: Database,
    dest: Database,
    at_source: str,
    at_dest: str,
    names: list[str],
    expected: bytes,
) -> None:
    source.execute(f"CREATE TABLE public.t ({at_source}); INSERT INTO public.t (id) VALUES (1)")
    dest.execute(f"CREATE TABLE public.t ({at_dest})")

    done = words("copy", "t", "--all", *(word for name in names for word in ("--exclude", name)))

    assert done.code == 0, done.err
    assert dest.text("SELECT * FROM public.t") == expected + b"\n"


def test_rows_whose_identity_is_excluded_get_the_next_numbers_each_time(
    words: Words, source: Database, dest: Database
) -> None:
    table_of(source, "1 a 04-29, 2 b 04-29")
    table_of(dest, "")
    dest.execute("ALTER TABLE public.t ADD number int GENERATED BY DEFAULT AS IDENTITY")

    for expected in ([1, 2], [3, 4]):
        done = words("copy", "t", *DAY, "--exclude", "number")
        assert done.code == 0, done.err
        numbers = dest.fetch("SELECT number FROM public.t ORDER BY id")
        assert [number for (number,) in numbers] == expected


def test_an_excluded_column_may_be_filled_by_a_trigger(
    words: Words, source: Database, dest: Database
) -> None:
    table_of(source, "1 a 04-29")
    table_of(dest, "")
    dest.execute(
        "ALTER TABLE public.t ADD filled text NOT NULL;"
        "CREATE FUNCTION public.fill() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.filled := upper(NEW.note); RETURN NEW; END $$;"
        "CREATE TRIGGER fill BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.fill()"
    )

    done = words("copy", "t", *DAY, "--exclude", "filled")

    assert done.code == 0, done.err
    assert dest.fetch("SELECT id, filled FROM public.t") == [(1, "A")]


def test_what_is_excluded_is_told(words: Words, source: Database, dest: Database) -> None:
    table_of(source, "")
    table_of(dest, "")
    excludes = ("copy", "t", *ALL, "--exclude", "note", "-n")

    text = words(*excludes).out
    assert "note  excluded: gets NULL\n" in text
    assert "  warning  note is excluded: rows that are replaced lose what the dest holds" in text
    plan = json.loads(words(*excludes, "--json").out)
    assert plan["excluded"] == ["note"]
    assert '"note"' not in plan["statements"]["copy_out"] + plan["statements"]["copy_in"]
