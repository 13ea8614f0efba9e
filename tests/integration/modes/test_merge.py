"""Mode merge: what is new is inserted, what has changed is updated, what is equal is left alone."""

from typing import Any

import psycopg
import pytest

from copypipe import CopyFailed, NothingToCopy, PlanRefused, TooEarly, UsageError
from copypipe.events import Cleared, Event, Retried
from plugins.canary import CANARY
from plugins.command import eventually, waits_in_pause
from plugins.modes import DAY, NEXT_DAY, Pair, rows, waiting

T = "CREATE TABLE public.t (id int {}, note text, created_at timestamptz)"
MERGE: dict[str, Any] = {"mode": "merge", "day": DAY}


def three(pair: Pair) -> None:
    """The source has rows 1, 2 and 3 of the day; the dest an equal 1, an old 2, a 9, and more."""
    pair.source.execute(
        f"{T.format('PRIMARY KEY')};"
        f"INSERT INTO public.t VALUES (1, 'same', '{DAY}Z'), (2, 'new', '{DAY}Z'),"
        f" (3, 'new', '{DAY}Z'), (4, 'another day', '{NEXT_DAY}Z')"
    )
    pair.dest.execute(
        f"{T.format('PRIMARY KEY')};"
        f"INSERT INTO public.t VALUES (1, 'same', '{DAY}Z'), (2, 'old', '{DAY}Z'),"
        f" (9, 'old', '{DAY}Z'), (8, 'old', '{NEXT_DAY}Z')"
    )


def notes(pair: Pair) -> dict[int, str]:
    return dict(pair.dest.fetch("SELECT id, note FROM public.t ORDER BY id"))


def of_rows(pair: Pair) -> dict[int, tuple[str, ...]]:
    """Return where each row is, and who has written or locked it."""
    return {
        number: place
        for number, *place in pair.dest.fetch(
            "SELECT id, ctid::text, xmin::text, xmax::text FROM public.t"
        )
    }


# --- what is done ---------------------------------------------------------------------------------


def test_what_is_new_is_inserted_and_what_differs_updated(pair: Pair) -> None:
    three(pair)

    done = pair.copy(**MERGE)

    assert notes(pair) == {1: "same", 2: "new", 3: "new", 8: "old", 9: "old"}
    assert (done.mode, done.rows, done.inserted, done.updated, done.deleted, done.dropped) == (
        "merge", 3, 1, 1, 0, 0,
    )  # fmt: skip
    (told,) = pair.told()
    assert (told["mode"], told["rows_copied"], told["rows_deleted"]) == ("merge", 3, 0)


def test_what_the_source_lacks_is_deleted_where_that_is_asked_for(pair: Pair) -> None:
    three(pair)

    done = pair.copy(**MERGE, merge_deletes=True)

    assert notes(pair) == {1: "same", 2: "new", 3: "new", 8: "old"}
    assert (done.inserted, done.updated, done.deleted) == (1, 1, 1)
    assert pair.told()[0]["rows_deleted"] == 1


def test_a_merge_of_what_is_there_writes_nothing(pair: Pair) -> None:
    """Not even a lock, which would write each row too."""
    three(pair)
    pair.copy(**MERGE, merge_deletes=True)
    before = of_rows(pair)

    done = pair.copy(**MERGE, merge_deletes=True)

    assert (done.rows, done.inserted, done.updated, done.deleted) == (3, 0, 0, 0)
    assert of_rows(pair) == before
    assert before[1][2] == "0"


def test_a_row_that_has_moved_to_another_day_is_updated(pair: Pair) -> None:
    three(pair)
    pair.dest.execute("UPDATE public.t SET id = 3 WHERE id = 8")

    done = pair.copy(**MERGE, merge_deletes=True)

    assert (done.inserted, done.updated) == (0, 2)
    assert pair.dest.scalar("SELECT created_at::date::text FROM public.t WHERE id = 3") == DAY


@pytest.mark.parametrize("options", [{"all": True}, {"where": "id < 4"}], ids=["all", "condition"])
def test_other_slices_are_merged_too(pair: Pair, options: dict[str, Any]) -> None:
    three(pair)
    done = pair.copy(mode="merge", **options)
    assert notes(pair)[3] == "new"
    assert (done.inserted, done.updated) == ((2, 1) if "all" in options else (1, 1))


def test_a_condition_says_what_is_deleted(pair: Pair) -> None:
    three(pair)

    done = pair.copy(**MERGE, where="id < 9 AND id > 1", merge_deletes=True)

    assert (done.inserted, done.updated, done.deleted) == (1, 1, 0)
    assert sorted(notes(pair)) == [1, 2, 3, 8, 9]


def test_a_query_is_merged(pair: Pair) -> None:
    three(pair)
    query = "SELECT id, upper(note) AS note, created_at FROM public.t WHERE id < 3"
    assert pair.copy(**MERGE, query=query).updated == 2
    assert notes(pair)[1] == "SAME"


def test_computed_columns_are_merged(pair: Pair) -> None:
    three(pair)
    done = pair.copy(**MERGE, columns={"note": "note || id", "id": "id + 10"})
    assert done.inserted == 3
    assert notes(pair)[11] == "same1"


def test_excluded_columns_keep_what_they_hold(pair: Pair) -> None:
    three(pair)
    pair.dest.execute("ALTER TABLE public.t ALTER note SET DEFAULT 'default'")

    done = pair.copy(**MERGE, exclude=["note"])

    assert (done.inserted, done.updated) == (1, 0)
    assert notes(pair) == {1: "same", 2: "old", 3: "default", 8: "old", 9: "old"}


def test_a_table_of_nothing_but_its_key_is_merged(pair: Pair) -> None:
    pair.make(
        "CREATE TABLE public.t (id int, created_at timestamptz, PRIMARY KEY (id, created_at))"
    )
    pair.source.execute(f"INSERT INTO public.t VALUES (1, '{DAY}Z'), (2, '{DAY}Z')")
    pair.dest.execute(f"INSERT INTO public.t VALUES (1, '{DAY}Z'), (3, '{DAY}Z')")

    done = pair.copy(**MERGE, merge_deletes=True)

    assert (done.inserted, done.updated, done.deleted) == (1, 0, 1)


@pytest.mark.parametrize(
    ("options", "code"),
    [({"allow_empty": True}, None), ({"fail_on_empty": True}, NothingToCopy), ({}, None)],
)
def test_an_empty_source_changes_nothing(pair: Pair, options: dict[str, Any], code: Any) -> None:
    three(pair)
    pair.source.execute("TRUNCATE public.t")
    before = of_rows(pair)
    if code is None:
        done = pair.copy(**MERGE, **options)
        assert (done.rows, done.inserted, done.updated, done.deleted) == (0, 0, 0, 0)
    else:
        pair.refuses(code, "the source has no row", **MERGE, **options)
    assert of_rows(pair) == before


def test_an_empty_source_deletes_nothing_without_a_word(pair: Pair) -> None:
    three(pair)
    pair.source.execute("TRUNCATE public.t")
    pair.refuses(TooEarly, "and the dest has some", **MERGE, merge_deletes=True)

    assert pair.copy(**MERGE, merge_deletes=True, allow_empty=True).deleted == 3
    assert list(notes(pair)) == [8]


def test_an_empty_source_deletes_nothing_that_came_meanwhile(pair: Pair) -> None:
    """Nobody was there when the copy began."""
    three(pair)
    pair.source.execute("TRUNCATE public.t")
    pair.dest.execute(f"DELETE FROM public.t WHERE created_at < '{NEXT_DAY}'")
    came: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, Cleared):
            came.append(pair.dest.execute(f"INSERT INTO public.t VALUES (70, 'new', '{DAY}')"))

    with pytest.raises(TooEarly, match="and the dest has some"):
        pair.copy(**MERGE, merge_deletes=True, listener=hear)

    assert came == [1]
    assert 70 in notes(pair)


def test_a_condition_may_name_the_table(pair: Pair) -> None:
    three(pair)
    options = {"mode": "merge", "where": "t.id < 5", "merge_deletes": True}
    assert pair.copy(**options).rows == pair.source.scalar(
        "SELECT count(*) FROM public.t WHERE id < 5"
    )


def test_all_rows_are_not_deleted_without_a_yes(pair: Pair) -> None:
    three(pair)
    options = {"mode": "merge", "all": True, "merge_deletes": True}
    pair.refuses(UsageError, "all rows of public.t would be replaced", **options)
    assert pair.copy(**options, yes=True).deleted == 2


# Types without an operator for equality, and those whose operator takes for equal what is not.
TYPES = {
    "json": ("json", '{"a": 1}', '{"a":1}'),
    "point": ("point", "(1,0)", "(1,-0)"),
    "numeric": ("numeric", "1.0", "1.00"),
    "float8": ("float8", "0", "-0"),
    "interval": ("interval", "1 day", "24 hours"),
    "char": ("varchar", "a", "a "),
    "bytea": ("bytea", "\\x00", "\\x0000"),
    "array": ("numeric[]", "{1.0,NULL}", "{1.00,NULL}"),
    "range": ("numrange", "[1.0,2)", "[1.00,2)"),
    "box": ("box", "(1,1),(0,0)", "(2,1),(1,0)"),
    "xml": ("xml", "<a/>", "<a />"),
}


@pytest.mark.parametrize(("type_", "old", "new"), TYPES.values(), ids=TYPES.keys())
@pytest.mark.one_of(5)
def test_a_value_has_changed_where_its_bytes_have(
    pair: Pair, type_: str, old: str, new: str
) -> None:
    pair.make(f"CREATE TABLE public.t (id int PRIMARY KEY, v {type_}, created_at timestamptz)")
    insert = f"INSERT INTO public.t VALUES (1, %s::{type_}, '{DAY}Z'), (2, %s::{type_}, '{DAY}Z')"
    try:
        pair.source.execute(insert, [new, old])
        pair.dest.execute(insert, [old, old])
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("one of the servers was built without it")
    before = pair.dest.fetch("SELECT ctid::text, xmin::text FROM public.t WHERE id = 2")

    done = pair.copy(**MERGE)

    assert (done.inserted, done.updated) == (0, 1)
    query = "SELECT id, v FROM public.t"
    assert rows(pair.dest, query) == rows(pair.source, query)
    assert pair.dest.fetch("SELECT ctid::text, xmin::text FROM public.t WHERE id = 2") == before
    assert pair.copy(**MERGE).updated == 0


def test_values_that_are_stored_apart_are_compared(pair: Pair) -> None:
    """Large ones stand in a table of their own, compressed or not."""
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, v text, created_at timestamptz)")
    pair.dest.execute("ALTER TABLE public.t ALTER v SET STORAGE EXTERNAL")
    for database in (pair.source, pair.dest):
        database.execute(
            f"INSERT INTO public.t SELECT n, repeat('x', 100000), '{DAY}Z' FROM"
            " generate_series(1, 3) n"
        )
    pair.source.execute("UPDATE public.t SET v = v || 'y' WHERE id = 2")

    assert pair.copy(**MERGE).updated == 1


def test_a_column_in_text_format_is_merged(pair: Pair) -> None:
    pair.make(
        "CREATE TABLE public.t (id int PRIMARY KEY, v int2vector, note text,"
        " created_at timestamptz)"
    )
    pair.source.execute(
        f"INSERT INTO public.t VALUES (1, '1 2', E'tab\\t\\\\N', '{DAY}Z'),"
        f" (2, '3', NULL, '{DAY}Z')"
    )
    pair.dest.execute(f"INSERT INTO public.t VALUES (2, '3', NULL, '{DAY}Z')")

    done = pair.copy(**MERGE)

    assert (done.inserted, done.updated, pair.told()[0]["format"]) == (1, 0, "text")
    query = "SELECT * FROM public.t"
    assert rows(pair.dest, query) == rows(pair.source, query)


OURS = (
    "copypipe: is new", "copypipe: is held", "held", "staged", "excluded", "changed", "merged",
    "copypipe_staged", "it's \"new\" 100%", "copypipe: is new 2", "xmin2", "{0}",
)  # fmt: skip


def test_new_rows_lie_in_the_order_of_the_key(pair: Pair) -> None:
    pair.make("CREATE TABLE public.t (a int, b text, created_at timestamptz, PRIMARY KEY (b, a))")
    pair.source.execute(
        f"INSERT INTO public.t SELECT n % 10, chr(97 + n % 3), '{DAY}Z'"
        " FROM generate_series(1, 30) n ORDER BY md5(n::text)"
    )

    assert pair.copy(**MERGE).inserted == 30

    lie = pair.dest.fetch("SELECT b, a FROM public.t ORDER BY ctid")
    assert lie == sorted(lie)


def test_columns_may_be_called_as_ours_are(pair: Pair) -> None:
    named = ", ".join('"' + name.replace('"', '""') + '" int' for name in OURS)
    pair.make(
        f'CREATE TABLE public.t ({named}, created_at timestamptz, PRIMARY KEY ("held", "staged"))'
    )
    values = ", ".join(str(number) for number in range(len(OURS)))
    for database, first in ((pair.source, "0"), (pair.dest, "100")):
        database.execute(
            f"INSERT INTO public.t VALUES ({first}{values[1:]}, '{DAY}Z'),"
            f" ({values.replace('2', '20')}, '{DAY}Z')".replace("%", "%%")
        )
    pair.source.execute('UPDATE public.t SET "held" = 77 WHERE "held" = 20')

    done = pair.copy(**MERGE, merge_deletes=True)

    assert (done.inserted, done.updated, done.deleted) == (1, 1, 1)
    query = "SELECT * FROM public.t"
    assert rows(pair.dest, query) == rows(pair.source, query)


@pytest.mark.parametrize("name", ["held", "staged", "excluded", "changed", "copypipe_staged"])
def test_a_table_may_be_called_as_ours_are(pair: Pair, name: str) -> None:
    three(pair)
    pair.make(f"ALTER TABLE public.t RENAME TO {name}")
    done = pair.copy(f"public.{name}", **MERGE, merge_deletes=True)
    assert (done.inserted, done.updated, done.deleted) == (1, 1, 1)


# --- keys -----------------------------------------------------------------------------------------


def unique(pair: Pair, columns: str = "id", more: str = "") -> None:
    pair.make(T.format(""))
    pair.dest.execute(f"CREATE UNIQUE INDEX by_key ON public.t ({columns}) {more}")


def test_a_unique_index_is_a_key_where_it_is_named(pair: Pair) -> None:
    unique(pair, "id", "INCLUDE (note)")
    pair.source.execute(f"INSERT INTO public.t VALUES (1, 'new', '{DAY}Z')")
    pair.dest.execute(f"INSERT INTO public.t VALUES (1, 'old', '{DAY}Z')")
    error = pair.refuses(PlanRefused, "public.t has no primary key to merge by", **MERGE)
    assert (error.exit_code, error.hint) == (6, "Keys that would do: --key id")

    assert pair.copy(**MERGE, key=["ID"]).updated == 1


REFUSED_KEYS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "deferrable": (
        "ALTER TABLE public.t ADD PRIMARY KEY (id) DEFERRABLE",
        {},
        "cannot be merged by t_pkey",
        "It is deferrable.",
    ),
    "deferrable, named": (
        "ALTER TABLE public.t ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED",
        {"key": ["id"]},
        "cannot be merged by t_id_key",
        "It is deferrable.",
    ),
    "of some rows": (
        "CREATE UNIQUE INDEX by_key ON public.t (id) WHERE note IS NOT NULL",
        {"key": ["id"]},
        "cannot be merged by by_key",
        "It does not hold all rows.",
    ),
    "of an expression too": (
        "CREATE UNIQUE INDEX by_key ON public.t (id, lower(note))",
        {"key": ["id"]},
        "cannot be merged by by_key",
        "It is on an expression.",
    ),
    "of an expression": (
        "CREATE UNIQUE INDEX by_key ON public.t (lower(note))",
        {"key": ["note"]},
        "no unique index of public.t is on note",
        "Without one two rows could have one key.",
    ),
    "by another collation": (
        'CREATE UNIQUE INDEX by_key ON public.t (note COLLATE "POSIX")',
        {"key": ["note"]},
        "cannot be merged by by_key",
        "It sorts by another collation than its column.",
    ),
    "not unique": (
        "CREATE INDEX by_key ON public.t (id)",
        {"key": ["id"]},
        "no unique index of public.t is on id",
        "Without one two rows could have one key.",
    ),
    "of another column as well": (
        "ALTER TABLE public.t ADD PRIMARY KEY (id, note)",
        {"key": ["id"]},
        "no unique index of public.t is on id",
        "Without one two rows could have one key.",
    ),
    "no such column": ("", {"key": ["nothing"]}, 'public.t has no column "nothing"', "None"),
    "none": ("", {}, "has no primary key to merge by", "None"),
    "excluded": (
        "ALTER TABLE public.t ADD PRIMARY KEY (id), ALTER id SET DEFAULT 1",
        {"exclude": ["id"]},
        "the key of public.t is not copied: id",
        "Rows are merged by the source's values of the key.",
    ),
    "one that excludes what overlaps": (
        "ALTER TABLE public.t ADD r int4range, ADD at daterange,"
        " ADD PRIMARY KEY (r, at WITHOUT OVERLAPS)",
        {},
        "cannot be merged by t_pkey",
        "It excludes more than equal keys.",
    ),
}


@pytest.mark.parametrize(
    ("sql", "options", "message", "detail"), REFUSED_KEYS.values(), ids=REFUSED_KEYS.keys()
)
@pytest.mark.one_of(8)
def test_what_is_no_key_is_refused(
    pair: Pair, sql: str, options: dict[str, Any], message: str, detail: str
) -> None:
    pair.make(T.format(""))
    if "OVERLAPS" in sql:
        if pair.dest.server.major < 18:
            pytest.skip("since PostgreSQL 18")
        pair.source.execute(
            "ALTER TABLE public.t ADD r int4range NOT NULL, ADD at daterange NOT NULL"
        )
    if sql:
        pair.dest.execute(sql)

    error = pair.refuses(PlanRefused, message, **MERGE, **options)

    assert (error.exit_code, error.side, str(error.detail)) == (6, "dest", detail)
    assert pair.dest.scalar("SELECT to_regnamespace('copypipe') IS NULL")


def test_keys_that_would_do_are_named(pair: Pair) -> None:
    pair.make(T.format(""))
    pair.dest.execute(
        "ALTER TABLE public.t ADD PRIMARY KEY (id) DEFERRABLE, ADD UNIQUE (note, created_at);"
        "CREATE UNIQUE INDEX ON public.t (note) WHERE id > 0"
    )
    error = pair.refuses(PlanRefused, "It is deferrable", **MERGE)
    assert error.hint == "Keys that would do: --key note --key created_at"


def test_another_index_of_the_same_columns_tells_no_keys_apart(pair: Pair) -> None:
    """To the one 'A' and 'a' are two keys. To the other one they are not, which must not make 'A'
    an update of 'a'."""
    pair.make(
        "CREATE EXTENSION citext SCHEMA public;"
        "CREATE TABLE public.t (k public.citext, note text, created_at timestamptz)"
    )
    pair.dest.execute(
        "CREATE UNIQUE INDEX exact ON public.t (k pg_catalog.text_ops);"
        "CREATE UNIQUE INDEX loose ON public.t (k public.citext_ops);"
        f"INSERT INTO public.t VALUES ('a', 'old', '{DAY}Z')"
    )
    pair.source.execute(f"INSERT INTO public.t VALUES ('A', 'new', '{DAY}Z')")

    error = pair.refuses(CopyFailed, "duplicate key value", **MERGE, key=["k"])

    assert "constraint loose" in str(error.detail)
    pair.dest.execute("DROP INDEX public.loose")
    assert pair.copy(**MERGE, key=["k"]).inserted == 1
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 2


# --- batches that cannot be merged ----------------------------------------------------------------

BAD_BATCHES = {
    "a key twice": (
        f"('{CANARY}', 1), ('{CANARY}', 2), ('b', 3)",
        "1 keys are there more than once",
    ),
    "two keys, twice and thrice": (
        f"('{CANARY}', 1), ('{CANARY}', 1), ('b', 1), ('b', 1), ('b', 1)",
        "2 keys are there more than once",
    ),
    "no key": (f"(NULL, 1), (NULL, 1), ('{CANARY}', 1)", "2 rows have a NULL in it"),
    "both": (
        f"(NULL, 1), ('{CANARY}', 1), ('{CANARY}', 1)",
        "1 rows have a NULL in it, 1 keys are there more than once",
    ),
}


@pytest.mark.parametrize(("values", "detail"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_rows_without_a_key_of_their_own_fail_the_merge(
    pair: Pair, values: str, detail: str
) -> None:
    pair.make(f"CREATE TABLE public.t (k text, v int, created_at timestamptz DEFAULT '{DAY}Z')")
    pair.dest.execute("ALTER TABLE public.t ADD UNIQUE (k); INSERT INTO public.t VALUES ('b', 0)")
    pair.source.execute(f"INSERT INTO public.t VALUES {values}")

    error = pair.refuses(
        CopyFailed, "the rows cannot be merged by k", **MERGE, key=["k"], merge_deletes=True
    )

    assert (error.exit_code, error.side) == (1, "source")
    assert error.detail == f"{detail}. Nothing was changed."
    assert CANARY not in f"{error.message} {error.detail} {error.hint}"


def test_a_null_where_no_two_nulls_are_distinct_is_none_either(pair: Pair) -> None:
    pair.make(f"CREATE TABLE public.t (k int, created_at timestamptz DEFAULT '{DAY}Z')")
    pair.dest.execute("ALTER TABLE public.t ADD UNIQUE NULLS NOT DISTINCT (k)")
    pair.source.execute("INSERT INTO public.t VALUES (NULL)")
    pair.refuses(CopyFailed, "cannot be merged by k", **MERGE, key=["k"])


def test_keys_that_the_index_takes_for_one_are_there_twice(pair: Pair) -> None:
    pair.make(f"CREATE TABLE public.t (k numeric, created_at timestamptz DEFAULT '{DAY}Z')")
    pair.dest.execute("ALTER TABLE public.t ADD PRIMARY KEY (k)")
    pair.source.execute("INSERT INTO public.t VALUES (1.0), (1.00)")
    error = pair.refuses(CopyFailed, "cannot be merged by k", **MERGE)
    assert str(error.detail).startswith("1 keys are there more than once")


# --- constraints of the dest ----------------------------------------------------------------------

SPOILT = {
    "a check": ("ADD CHECK (note <> 'new')", "23514"),
    "a NOT NULL": ("ADD more int NOT NULL DEFAULT NULL", "23502"),
    "another unique index": ("ADD UNIQUE (note)", "23505"),
    "a foreign key": ("ADD FOREIGN KEY (note) REFERENCES public.known (note)", "23503"),
    "a generated column": (
        "ADD g int GENERATED ALWAYS AS (1 / (id - 3)) STORED",
        "22012",
    ),
}


@pytest.mark.parametrize(("sql", "code"), SPOILT.values(), ids=SPOILT.keys())
def test_what_the_dest_does_not_take_fails_and_changes_nothing(
    pair: Pair, sql: str, code: str
) -> None:
    three(pair)
    pair.dest.execute(
        "CREATE TABLE public.known (note text UNIQUE);"
        "INSERT INTO public.known VALUES ('same'), ('old');"
        "UPDATE public.t SET note = note || id WHERE id > 2"
        if "UNIQUE (n" in sql
        else "CREATE TABLE public.known (note text UNIQUE);"
        "INSERT INTO public.known VALUES ('same'), ('old')"
    )
    if "NOT NULL" in sql:
        pair.dest.execute("ALTER TABLE public.t ADD more int DEFAULT 1")
        pair.dest.execute("UPDATE public.t SET more = 1")
        sql = "ALTER more SET NOT NULL, ALTER more DROP DEFAULT"
        pair.source.execute("ALTER TABLE public.t ADD more int")
    pair.dest.execute(f"ALTER TABLE public.t {sql}")

    error = pair.refuses(CopyFailed, "dest: ", **MERGE, merge_deletes=True)

    assert (error.sqlstate, error.exit_code) == (code, 1)


UNIQUE = {
    "an index": ("CREATE UNIQUE INDEX ON public.t (note)", False),
    "a constraint": ("ALTER TABLE public.t ADD UNIQUE (note)", False),
    "looked at behind each statement": ("ALTER TABLE public.t ADD UNIQUE (note) DEFERRABLE", True),
    "looked at by COMMIT": (
        "ALTER TABLE public.t ADD UNIQUE (note) DEFERRABLE INITIALLY DEFERRED",
        True,
    ),
}


@pytest.mark.parametrize(("sql", "works"), UNIQUE.values(), ids=UNIQUE.keys())
def test_rows_that_exchange_a_unique_value(pair: Pair, sql: str, *, works: bool) -> None:
    """In the end each has one of its own; in between two have the same."""
    pair.make(T.format("PRIMARY KEY"))
    pair.source.execute(f"INSERT INTO public.t VALUES (1, 'b', '{DAY}Z'), (2, 'a', '{DAY}Z')")
    pair.dest.execute(f"INSERT INTO public.t VALUES (1, 'a', '{DAY}Z'), (2, 'b', '{DAY}Z'); {sql}")
    if works:
        assert pair.copy(**MERGE).updated == 2
    else:
        error = pair.refuses(CopyFailed, "duplicate key value", **MERGE)
        assert (error.sqlstate, error.exit_code) == ("23505", 1)
        hint = str(error.hint)
        assert "A DEFERRABLE unique constraint" in hint
        assert "--mode replace" in hint
        pair.copy(day=DAY)
    assert notes(pair) == {1: "b", 2: "a"}


@pytest.mark.parametrize("when", ["IMMEDIATE", "DEFERRED"])
def test_a_unique_value_that_two_rows_have_in_the_end_fails(pair: Pair, when: str) -> None:
    three(pair)
    pair.dest.execute(
        f"UPDATE public.t SET note = note || id;"
        f"ALTER TABLE public.t ADD UNIQUE (note) DEFERRABLE INITIALLY {when}"
    )
    error = pair.refuses(CopyFailed, "duplicate key value", **MERGE)
    assert error.sqlstate == "23505"


# Others' rows that point at the table, how, what a merge says; and one with deletes.
def test_a_foreign_key_that_points_there_does_not_hinder_a_merge(pair: Pair) -> None:
    three(pair)
    pair.dest.execute(
        "CREATE TABLE public.child (u int REFERENCES public.t);"
        "INSERT INTO public.child VALUES (2), (8)"
    )
    assert pair.copy(**MERGE).updated == 1
    assert pair.copy(**MERGE, merge_deletes=True).deleted == 1


def test_a_row_that_is_pointed_at_is_not_deleted(pair: Pair) -> None:
    three(pair)
    pair.dest.execute(
        "CREATE TABLE public.child (u int REFERENCES public.t); INSERT INTO public.child VALUES (9)"
    )
    error = pair.refuses(CopyFailed, "violates foreign key", **MERGE, merge_deletes=True)
    assert error.sqlstate == "23503"


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_what_a_delete_would_change_elsewhere_is_refused_or_accepted(
    pair: Pair, action: str
) -> None:
    three(pair)
    pair.dest.execute(
        f"CREATE TABLE public.child (u int REFERENCES public.t ON DELETE {action});"
        "INSERT INTO public.child VALUES (9)"
    )
    error = pair.refuses(PlanRefused, "would change other tables", **MERGE, merge_deletes=True)
    assert error.hint == "--accept cascade lets it."
    assert pair.copy(**MERGE).updated == 1

    assert pair.copy(**MERGE, merge_deletes=True, accept=["cascade"]).deleted == 1
    left = pair.dest.fetch("SELECT u FROM public.child")
    assert left == ([] if action == "CASCADE" else [(None,)])


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_what_an_update_would_change_elsewhere_is_refused_or_accepted(
    pair: Pair, action: str
) -> None:
    three(pair)
    pair.dest.execute(
        "ALTER TABLE public.t ADD UNIQUE (note, id);"
        "CREATE TABLE public.child (note text, u int, FOREIGN KEY (note, u) REFERENCES"
        f" public.t (note, id) ON UPDATE {action});"
        "INSERT INTO public.child VALUES ('old', 2)"
    )
    error = pair.refuses(PlanRefused, "updating public.t would change other tables", **MERGE)
    assert (error.hint, error.exit_code) == ("--accept cascade lets it.", 6)
    assert f"(ON UPDATE {action.lower()})" in str(error.detail)

    assert pair.copy(**MERGE, accept=["cascade"]).updated == 1
    changed = ("new", 2) if action == "CASCADE" else (None, None)
    assert pair.dest.fetch("SELECT note, u FROM public.child") == [changed]


def test_an_update_that_does_not_touch_what_is_pointed_at_is_no_matter(pair: Pair) -> None:
    three(pair)
    pair.dest.execute(
        "CREATE TABLE public.child (u int REFERENCES public.t ON UPDATE CASCADE);"
        "INSERT INTO public.child VALUES (2)"
    )
    assert pair.copy(**MERGE).updated == 1


# --- triggers -------------------------------------------------------------------------------------


def trigger(pair: Pair, when: str, body: str, name: str = "change", each: str = "ROW") -> None:
    pair.dest.execute(
        f"CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} END $$;"
        f"CREATE TRIGGER {name} {when} ON public.t FOR EACH {each} EXECUTE FUNCTION public.{name}()"
    )


TRIGGERS = {
    "an INSERT that is dropped": ("BEFORE INSERT", "RETURN NULL;"),
    "an INSERT that is changed": ("BEFORE INSERT", "NEW.note := NEW.note || '!'; RETURN NEW;"),
    "an UPDATE that is dropped": ("BEFORE UPDATE", "RETURN NULL;"),
    "an UPDATE that is changed": (
        "BEFORE UPDATE",
        "NEW.note := NEW.note || '!'; RETURN NEW;",
    ),
    "a row that is changed later": (
        "AFTER INSERT",
        "IF pg_catalog.pg_trigger_depth() = 1 THEN UPDATE public.t SET note = 'later'"
        " WHERE id = NEW.id; END IF; RETURN NULL;",
    ),
    "a row that is removed later": (
        "AFTER INSERT OR UPDATE",
        "DELETE FROM public.t WHERE id = 3; RETURN NULL;",
    ),
}


@pytest.mark.parametrize(("when", "body"), TRIGGERS.values(), ids=TRIGGERS.keys())
@pytest.mark.one_of(5)
def test_a_trigger_that_changes_what_is_merged_fails_it(pair: Pair, when: str, body: str) -> None:
    three(pair)
    trigger(pair, when, body)

    error = pair.refuses(CopyFailed, r"dest: public.t holds [12] of the 3 rows", **MERGE)

    assert error.hint == "Give --accept triggers if that is meant."
    done = pair.copy(**MERGE, accept=["triggers"])
    # BEFORE INSERT runs for a row that is updated in the end, too.
    dropped = {"BEFORE INSERT": 2, "BEFORE UPDATE": 1}[when] if body == "RETURN NULL;" else 0
    assert (done.rows, done.dropped) == (3, dropped)


def test_a_deferred_trigger_that_changes_what_is_merged_fails_it(pair: Pair) -> None:
    three(pair)
    pair.dest.execute(
        "CREATE FUNCTION public.later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " DELETE FROM public.t WHERE id = 3; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON public.t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION public.later()"
    )
    pair.refuses(CopyFailed, "holds 2 of the 3 rows that were merged", **MERGE)


@pytest.mark.parametrize("identity", ["", "ADD serial int GENERATED ALWAYS AS IDENTITY"])
def test_a_trigger_that_changes_nothing_is_no_hindrance(pair: Pair, identity: str) -> None:
    three(pair)
    trigger(pair, "BEFORE INSERT OR UPDATE OR DELETE", "RETURN coalesce(NEW, OLD);")
    if identity:
        pair.dest.execute(f"ALTER TABLE public.t {identity}")
        pair.source.execute("ALTER TABLE public.t ADD serial int; UPDATE public.t SET serial = id")

    done = pair.copy(**MERGE, merge_deletes=True)

    assert (done.inserted, done.updated, done.deleted) == (1, 1, 1)


def numbered(pair: Pair, numbers: str) -> None:
    """The dest's rows have numbers of their own in a column that no UPDATE may set."""
    three(pair)
    pair.dest.execute("ALTER TABLE public.t ADD serial int GENERATED ALWAYS AS IDENTITY")
    pair.source.execute(
        f"ALTER TABLE public.t ADD serial int; UPDATE public.t SET serial = {numbers}"
    )


def test_an_identity_that_would_have_to_change_fails_the_merge(pair: Pair) -> None:
    numbered(pair, "CASE id WHEN 1 THEN 1 ELSE id * 10 END")

    error = pair.refuses(CopyFailed, "dest: 1 rows of public.t have another serial", **MERGE)

    assert (error.exit_code, error.side) == (1, "dest")
    assert str(error.hint).startswith("--exclude serial leaves the dest its own numbers")
    numbers = dict(pair.dest.fetch("SELECT id, serial FROM public.t"))
    assert pair.copy(**MERGE, exclude=["serial"]).updated == 1
    now = dict(pair.dest.fetch("SELECT id, serial FROM public.t"))
    assert now == {**numbers, 3: now[3]}
    assert now[3] > max(numbers.values())


def test_an_identity_that_is_the_same_is_merged(pair: Pair) -> None:
    numbered(pair, "CASE WHEN id < 3 THEN id ELSE id * 10 END")
    numbers = dict(pair.dest.fetch("SELECT id, serial FROM public.t"))

    done = pair.copy(**MERGE)

    assert (done.inserted, done.updated) == (1, 1)
    assert dict(pair.dest.fetch("SELECT id, serial FROM public.t")) == {**numbers, 3: 30}


def test_an_identity_by_which_rows_are_merged_is_what_it_is(pair: Pair) -> None:
    three(pair)
    pair.dest.execute("ALTER TABLE public.t ALTER id ADD GENERATED ALWAYS AS IDENTITY")
    assert pair.copy(**MERGE).updated == 1


# --- rights ---------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_temporary_tables_is_refused(pair: Pair) -> None:
    three(pair)
    role = pair.dest.role("writer", "SELECT, INSERT, UPDATE ON public.t")
    pair.dest.execute(f'REVOKE TEMPORARY ON DATABASE "{pair.dest.name}" FROM PUBLIC')
    try:
        error = pair.refuses(
            PlanRefused, "may not make temporary tables", **MERGE, dest=role.dsn, ledger=False
        )
    finally:
        pair.dest.execute(f'GRANT TEMPORARY ON DATABASE "{pair.dest.name}" TO PUBLIC')
    assert (error.exit_code, error.hint) == (6, "GRANT TEMPORARY ON DATABASE to the role.")


RIGHTS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "all": ("SELECT, INSERT, UPDATE", {}, None),
    "no right that lets it lock the table": (
        "SELECT (id, note, created_at), INSERT (id, note, created_at), UPDATE (note, created_at)",
        {},
        "INSERT",
    ),
    "no UPDATE": ("SELECT, INSERT", {}, "UPDATE"),
    "no UPDATE of a column": (
        "SELECT, INSERT, UPDATE (note)",
        {},
        "UPDATE \\(created_at\\)",
    ),
    "no INSERT": ("SELECT, UPDATE", {}, "INSERT"),
    "no SELECT of a column": (
        "SELECT (id, created_at), INSERT, UPDATE",
        {},
        "SELECT \\(note\\)",
    ),
    "no DELETE": ("SELECT, INSERT, UPDATE", {"merge_deletes": True}, "DELETE"),
    "DELETE": ("SELECT, INSERT, UPDATE, DELETE", {"merge_deletes": True}, None),
    "no right on what is excluded": (
        "SELECT (id, created_at), INSERT, UPDATE (created_at)",
        {"exclude": ["note"]},
        None,
    ),
}


@pytest.mark.parametrize(("grants", "options", "lacks"), RIGHTS.values(), ids=RIGHTS.keys())
@pytest.mark.one_of(5)
def test_rights_that_a_merge_needs(
    pair: Pair, grants: str, options: dict[str, Any], lacks: str | None
) -> None:
    three(pair)
    role = pair.dest.role("writer", f"{grants} ON public.t")
    chosen = {**MERGE, "dest": role.dsn, "ledger": False, **options}
    if lacks is None:
        assert pair.copy(**chosen).inserted == 1
    else:
        error = pair.refuses(PlanRefused, "the role may not write public.t", **chosen)
        assert str(error.detail).startswith(f"It lacks {lacks}.".replace("\\", ""))


def test_operators_and_functions_that_somebody_made_are_not_used(pair: Pair) -> None:
    """Who may create in public must not have code run as whoever copies."""
    three(pair)
    pair.dest.execute(
        "CREATE FUNCTION public.trap(int, int) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        "CREATE FUNCTION public.trap(text, text) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        "CREATE FUNCTION public.trap(record, record) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;"
        "CREATE OPERATOR public.= (LEFTARG = int, RIGHTARG = int, FUNCTION = public.trap);"
        "CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trap);"
        "CREATE OPERATOR public.*<> (LEFTARG = record, RIGHTARG = record, FUNCTION = public.trap);"
        "CREATE OPERATOR public.*= (LEFTARG = record, RIGHTARG = record, FUNCTION = public.trap);"
        "CREATE FUNCTION public.count() RETURNS int8 LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'trapped'; END $$"
    )
    trigger(pair, "BEFORE INSERT OR UPDATE", "RETURN NEW;")
    path = {"options": "-c search_path=public,pg_catalog"}

    done = pair.copy(
        **MERGE, dest=pair.dest.server.dsn(dbname=pair.dest.name, **path), merge_deletes=True
    )

    assert (done.inserted, done.updated, done.deleted) == (1, 1, 1)


# --- others at the same time ----------------------------------------------------------------------


def test_two_merges_of_the_same_keys_lose_no_row(pair: Pair) -> None:
    """The source has moved them from one day to another. Who comes second waits for the rows of
    the first, and updates them."""
    pair.make(T.format("PRIMARY KEY"))
    for name, day in (("one", DAY), ("two", NEXT_DAY)):
        pair.source.execute(
            f"CREATE TABLE public.{name} AS SELECT n AS id, '{name}' AS note,"
            f" '{day}Z'::timestamptz AS created_at FROM generate_series(1, 20) n"
        )
    pair.dest.execute(
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_catalog.pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;"
        "CREATE TRIGGER wait AFTER INSERT ON public.t FOR EACH ROW WHEN (NEW.note = 'one')"
        " EXECUTE FUNCTION public.wait()"
    )
    holder = pair.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4711)")
    begun = [pair.start(table="public.one", into="public.t", mode="merge", day=DAY)]
    eventually(lambda: waits_in_pause(pair.dest), what="the first one has inserted its rows")
    begun.append(pair.start(table="public.two", into="public.t", mode="merge", day=NEXT_DAY))
    eventually(waiting(pair.dest, "transactionid"), what="the second one waits for the first")
    holder.close()

    for one in begun:
        one.result()

    assert notes(pair) == dict.fromkeys(range(1, 21), "two")
    assert [told["rows_copied"] for told in pair.told()] == [20, 20]


def test_two_merges_wait_for_each_other_in_one_order_only(pair: Pair) -> None:
    """Their sources have the rows the other way round: each would hold what the other one wants."""
    pair.make(T.format("PRIMARY KEY"))
    pair.dest.execute(
        f"INSERT INTO public.t SELECT n, 'old', '{DAY}Z' FROM generate_series(1, 20) n;"
        "ANALYZE public.t"
    )
    for name, day, order in (("one", DAY, "ASC"), ("two", NEXT_DAY, "DESC")):
        pair.source.execute(
            f"CREATE TABLE public.{name} AS SELECT n AS id, '{name}' AS note,"
            f" '{day}Z'::timestamptz AS created_at FROM generate_series(1, 20) n ORDER BY n {order}"
        )
    trigger(
        pair, "BEFORE UPDATE", "PERFORM pg_catalog.pg_advisory_xact_lock_shared(4711); RETURN NEW;"
    )
    pair.dest.execute(
        "DROP TRIGGER change ON public.t; CREATE TRIGGER change BEFORE UPDATE ON public.t"
        " FOR EACH ROW WHEN (NEW.id = 10 AND NEW.note = 'one') EXECUTE FUNCTION public.change()"
    )
    holder = pair.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4711)")
    begun = [pair.start(table="public.one", into="public.t", mode="merge", day=DAY)]
    eventually(lambda: waits_in_pause(pair.dest), what="the first one is half way")
    begun.append(pair.start(table="public.two", into="public.t", mode="merge", day=NEXT_DAY))
    eventually(waiting(pair.dest, "transactionid"), what="the second one waits for the first")
    holder.close()

    assert [one.result().updated for one in begun] == [20, 20]
    assert notes(pair) == dict.fromkeys(range(1, 21), "two")


def test_a_deadlock_is_tried_again(pair: Pair) -> None:
    """Somebody has inserted row 3 and wants row 9, which the merge has deleted."""
    three(pair)
    other = pair.connect()
    other.execute("SET deadlock_timeout = '1min'")
    other.execute(f"INSERT INTO public.t VALUES (3, 'theirs', '{DAY}Z')")
    options = {"merge_deletes": True, "retries": 1, "dest_set": {"deadlock_timeout": "300ms"}}
    begun = pair.start(**MERGE, **options)
    eventually(waiting(pair.dest, "transactionid"), what="it waits for the row")
    other.execute("UPDATE public.t SET note = 'theirs' WHERE id = 9")
    other.commit()

    assert begun.result().attempt.number == 2
    assert [event.error.sqlstate for event in pair.all_of(Retried)] == ["40P01"]
    assert notes(pair) == {1: "same", 2: "new", 3: "new", 8: "old"}


def test_a_row_that_comes_meanwhile_is_updated(pair: Pair) -> None:
    """Somebody else's INSERT of the same key: an INSERT alone would fail."""
    three(pair)
    other = pair.connect()
    other.execute(f"INSERT INTO public.t VALUES (3, 'theirs', '{DAY}Z')")
    begun = pair.start(**MERGE)
    eventually(waiting(pair.dest, "transactionid"), what="it waits for the row")
    other.commit()

    done = begun.result()
    # As they were found: row 3 was not there yet.
    assert (done.rows, done.inserted, done.updated, done.deleted) == (3, 1, 1, 0)
    assert notes(pair)[3] == "new"


def test_a_row_that_goes_meanwhile_is_inserted(pair: Pair) -> None:
    three(pair)
    other = pair.connect()
    other.execute("DELETE FROM public.t WHERE id = 2")
    begun = pair.start(**MERGE)
    eventually(waiting(pair.dest, "transactionid"), what="it waits for the row")
    other.commit()

    done = begun.result()
    # As they were found: row 2 was still there.
    assert (done.rows, done.inserted, done.updated, done.deleted) == (3, 1, 1, 0)
    assert notes(pair)[2] == "new"


def test_what_others_delete_meanwhile_is_not_counted_as_deleted(pair: Pair) -> None:
    three(pair)
    other = pair.connect()
    other.execute("DELETE FROM public.t WHERE id = 9")
    begun = pair.start(**MERGE, merge_deletes=True)
    eventually(waiting(pair.dest, "transactionid"), what="it waits for the row")
    other.commit()

    assert begun.result().deleted == 0
    assert sorted(notes(pair)) == [1, 2, 3, 8]


def test_a_row_that_others_change_meanwhile_is_the_sources_in_the_end(pair: Pair) -> None:
    three(pair)
    other = pair.connect()
    other.execute("UPDATE public.t SET note = 'theirs' WHERE id = 2")
    begun = pair.start(**MERGE)
    eventually(waiting(pair.dest, "transactionid"), what="it waits for the row")
    other.commit()

    done = begun.result()
    assert (done.inserted, done.updated) == (1, 1)
    assert notes(pair)[2] == "new"


def test_nothing_of_ours_is_left_behind(pair: Pair) -> None:
    three(pair)
    pair.copy(**MERGE)
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'copypipe_staged%'"
    assert pair.dest.scalar(left) == 0


def test_a_deferrable_index_of_the_same_columns_hinders_the_other_one(pair: Pair) -> None:
    """ON CONFLICT means both of them, and takes no deferrable one."""
    three(pair)
    pair.dest.execute("ALTER TABLE public.t ADD CONSTRAINT later UNIQUE (id) DEFERRABLE")
    error = pair.refuses(PlanRefused, "cannot be merged by later of public.t", **MERGE)
    assert error.detail == "It is deferrable."
