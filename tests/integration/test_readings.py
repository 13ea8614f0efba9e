"""SQL of the user stays within its parentheses, whatever it is made of; it is parsed and never run.

The texts are made of what could open, close or end something. A server is asked about each the way
the product asks; what passes is then run where it will stand, by a role that may do anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL

from copypipe import catalog, readings, servers
from copypipe.errors import CopypipeError, PlanRefused
from copypipe.requests import Endpoint
from copypipe.servers import Session
from copypipe.statements import expressions
from copypipe.tables import Table
from plugins.databases import Database
from plugins.rows import contents, table_of


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


@contextmanager
def reading(database: Database) -> Iterator[tuple[Session, Table]]:
    """Yield a session of the product while it makes its plan, and public.t."""
    with servers.connected("source", Endpoint(database.dsn, "test"), "readings") as session:
        session.begin("READ COMMITTED", read_only=True, own_search_path=True)
        yield session, catalog.table(session, catalog.resolve(session, "public.t"))


# Behind "id = 1" these make conditions that are whole, that only look whole where they stand (a
# parenthesis closed before another is opened), and that are not.
PIECES = (
    *(" OR id = 2", " AND id = 1", " OR (id = 3)", " OR (id = 2", ") OR id = 2", ") OR (id = 2"),
    *("(", ")", "))", ") AND (", ") UNION SELECT (1", " AND note = ", " IS NULL"),
    *("\n", "--", "--\n", "/*", "*/", "/* */", "/", "*", "'", " OR note = '", "' OR id = 3"),
    *('"', '."', "$$", "$a$", "$1", ";", ",", ", 1", ".", "::text", "[", "]", "\\", "%s", "{}"),
    *(" UNION SELECT 1", ") UNION (SELECT id", " FROM public.t", " AS x", ") AS x, (SELECT 1"),
    *("; DROP TABLE public.t", "); DROP TABLE public.t; --", " LIMIT 1", " + 1", "E'"),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=7).map(
    lambda pieces: "".join(["id = 1", *pieces])
)

# About a second each; enough to find that a check was left out, also without the examples.
EXAMPLES = settings(
    max_examples=700,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_an_expression_that_is_accepted_stays_within_its_parentheses(source: Database) -> None:
    """It decides nothing beside it: not what else is selected, from where, or how often."""
    table_of(source, "1 a 04-29, 2 b null")
    before = contents(source)
    accepted = []

    @EXAMPLES
    @given(TEXTS)
    @example("id = 1) OR (id = 2")
    @example("id = 1) UNION SELECT (1")
    @example("id = 1; DROP TABLE public.t")
    @example("id = 1 --")
    @example("id = 1 /*")
    @example("'")
    def check(text: str) -> None:
        session.execute(SQL("SAVEPOINT test"))
        try:
            readings.check_condition(text, [(session, table, server)], pairs)
        except CopypipeError:
            return
        finally:
            with suppress(CopypipeError):
                session.execute(SQL("ROLLBACK TO SAVEPOINT test"))
        accepted.append(text)
        condition = expressions.within_parentheses(text)
        beside = SQL("SELECT 1, {0} AS it, 2 FROM public.t WHERE false AND {0}").format(condition)
        assert session.fetch(beside) == []
        session.execute(SQL("SELECT FROM public.t WHERE {} LIMIT 0").format(condition))

    with servers.connected("source", Endpoint(source.dsn, "test"), "readings") as session:
        session.begin("READ COMMITTED", read_only=False, own_search_path=True)
        table = catalog.table(session, catalog.resolve(session, "public.t"))
        server = catalog.server(session)
        pairs = [(column, column) for column in table.columns]
        check()

    assert len(set(accepted)) > 25
    assert contents(source) == before


def test_a_query_that_is_accepted_stays_within_its_parentheses(source: Database) -> None:
    table_of(source, "1 a 04-29, 2 b null")
    before = contents(source)
    accepted = []

    @EXAMPLES
    @given(TEXTS.map(lambda text: f"SELECT 1 AS a FROM public.t WHERE {text}"))
    @example("SELECT 1) AS q; DROP TABLE public.t; --")
    @example("SELECT 1 AS a) AS q, (SELECT 2 AS b")
    @example("SELECT 1 AS a --")
    @example("SELECT 1 AS a /*")
    @example("TABLE public.t; DROP TABLE public.t")
    def check(text: str) -> None:
        session.execute(SQL("SAVEPOINT test"))
        try:
            found = readings.query(session, text)
        except CopypipeError:
            return
        finally:
            with suppress(CopypipeError):
                session.execute(SQL("ROLLBACK TO SAVEPOINT test"))
        accepted.append(text)
        alone = session.fetch(expressions.query_alone(text))
        assert session.fetch(expressions.everything(text)) == alone
        beside = SQL("SELECT 1 FROM {} WHERE false").format(expressions.from_item(found))
        assert session.fetch(beside) == []

    with servers.connected("source", Endpoint(source.dsn, "test"), "readings") as session:
        session.begin("READ COMMITTED", read_only=False)
        check()

    assert len(set(accepted)) > 25
    assert contents(source) == before


def test_what_is_checked_is_not_run(source: Database) -> None:
    """A function that would tell on being called; IMMUTABLE ones with constants may be called."""
    table_of(source, "1 a 04-29")
    source.execute(
        "CREATE FUNCTION public.told(int) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'called'; END $$"
    )
    query = "SELECT id, public.told(id) AS note, now() AS created_at FROM public.t"

    with reading(source) as (session, table):
        found = readings.query(session, query)
        assert [column.type_name for column in found.columns] == [
            "integer",
            "text",
            "timestamp with time zone",
        ]
        computed = readings.computed(session, table, table, [("note", "public.told(id)")])
        assert computed["note"].expression == "public.told(id)"
        with pytest.raises(PlanRefused, match="may mean other rows"):
            readings.check_condition(
                "public.told(id) = 'a'",
                [(session, table, catalog.server(session))],
                [(column, column) for column in table.columns],
            )


@pytest.mark.parametrize(
    ("expression", "renames"),
    [
        ("note", "note"),
        ("t.note", "note"),
        ('"note"', "note"),
        ("NOTE", "note"),
        ("note -- the old name", "note"),
        ("note || ''", None),
        ("(SELECT note)", None),
        ("id::text", None),
        ("CASE WHEN true THEN note END", None),
    ],
)
def test_a_mere_name_is_a_rename(source: Database, expression: str, renames: str | None) -> None:
    table_of(source, "")
    source.execute("ALTER TABLE public.t ADD label text")

    with reading(source) as (session, table):
        computed = readings.computed(session, table, table, [("label", expression)])

    assert computed["label"].renames == renames
    assert computed["label"].expression == expression


def test_a_column_that_is_computed_as_itself_is_read_as_it_is(source: Database) -> None:
    table_of(source, "")

    with reading(source) as (session, table):
        assert readings.computed(session, table, table, [("note", "t.note")]) == {}


def test_an_excluded_name_means_the_column_of_either_side(source: Database, dest: Database) -> None:
    source.execute('CREATE TABLE public.t (a int, "B" int, "Ünï" int)')
    dest.execute('CREATE TABLE public.t (a int, b int, "c""d" int)')

    with reading(source) as (_, at_source), reading(dest) as (_, at_dest):
        for names, found in (
            ([], set()),
            (["A"], {"a"}),
            (["b"], {"b"}),
            (['"B"'], {"B"}),
            (["Ünï", '"c""d"'], {"Ünï", 'c"d'}),
        ):
            assert readings.excluded(names, at_source, at_dest) == found
        with pytest.raises(PlanRefused, match="has a column nope to exclude"):
            readings.excluded(["a", "nope"], at_source, at_dest)
