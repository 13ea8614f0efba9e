"""What a condition mentions, in the form in which the planner prints it."""

import pytest

from copypipe.expressions import bare, folded_moments, may_read_tables, mentions


@pytest.mark.parametrize(
    ("printed", "columns"),
    [
        ("(users.id > 7)", {"id"}),
        ("((users.note)::text ~~ 'a%'::text)", {"note"}),
        ('("Users"."My Note" = \'users.id\'::text)', {"My Note"}),
        ("((users.d)::timestamp with time zone > users.created_at)", {"d", "created_at"}),
        ("(users.t > '(users.x)'::text)", {"t"}),
        ("(users.t > E'it\\'s users.x \\\\'::text)", {"t"}),
        ("false", set()),
    ],
)
def test_columns(printed: str, columns: set[str]) -> None:
    assert mentions(printed).columns == columns


@pytest.mark.parametrize(
    ("printed", "calls"),
    [
        ("(users.created_at > now())", {(("pg_catalog", "now"), 0)}),
        ("(lower(users.note) = 'a'::text)", {(("pg_catalog", "lower"), 1)}),
        ("public.isvip(users.id, (1 + 2), 'a,b'::text)", {(("public", "isvip"), 3)}),
        ('"My"."Fn"(users.id)', {(("My", "Fn"), 1)}),
        ('"NOW"()', {(("pg_catalog", "NOW"), 0)}),
        ("age(f(users.a, users.b), users.c) > g()", {
            (("pg_catalog", "age"), 2), (("pg_catalog", "f"), 2), (("pg_catalog", "g"), 0),
        }),
        ("(COALESCE(users.note, 'x'::text) = ANY ('{now()}'::text[]))", set()),
        ("(EXTRACT(year FROM users.created_at) = '1'::numeric)", set()),
        ("(users.n = (users.m)::numeric(10,2))", set()),
        ("(users.n)::character varying(10)", {(("pg_catalog", "varying"), 1)}),
    ],
)  # fmt: skip
def test_functions_with_their_schemas_and_arguments(printed: str, calls: object) -> None:
    assert mentions(printed).calls == calls


def test_operators_and_types_that_are_not_built_in() -> None:
    found = mentions("((users.a OPERATOR(public.===) 1) AND (users.b = 'x'::\"My\".mood))")

    assert found.operators == {("public", "===")}
    assert found.types == {("My", "mood")}
    assert found.calls == frozenset()


@pytest.mark.parametrize(
    ("printed", "moments"),
    [
        ("(CURRENT_DATE = users.d)", {"CURRENT_DATE"}),
        ("((users.owner)::text = (CURRENT_USER)::text)", {"CURRENT_USER"}),
        ('(users."CURRENT_DATE" = users.d)', set()),
        ("(users.note = 'CURRENT_DATE'::text)", set()),
    ],
)
def test_words_of_the_moment(printed: str, moments: set[str]) -> None:
    assert mentions(printed).moments == moments


@pytest.mark.parametrize(
    ("printed", "whole"),
    [
        ("(users.* IS NOT NULL)", True),
        ("((to_jsonb(users.*) ->> 'note'::text) = 'x'::text)", True),
        ("((users.a * users.b) > 1)", False),
        ("(users.a = 'users.*'::text)", False),
    ],
)
def test_the_row_as_a_whole(printed: str, whole: bool) -> None:
    assert mentions(printed).whole_row is whole


@pytest.mark.parametrize(
    ("printed", "columns"),
    [
        ("(users.note < 'm'::text)", {"note"}),
        ("('m'::text >= users.note)", {"note"}),
        ("((users.note)::text > 'm'::text)", {"note"}),
        ("(lower(users.note) = 'x'::text)", {"note"}),
        ("(upper((users.note)::text) = 'X'::text)", {"note"}),
        ("(users.note ~~* 'x%'::text)", {"note"}),
        ("(users.note ~ '[[:alpha:]]'::text)", {"note"}),
        ("(users.note < 'm'::text COLLATE \"C\")", set()),
        ("(users.note = 'x'::text)", set()),
        ("(users.note ~~ 'x%'::text)", set()),
        ("(users.note = ANY ('{a,b}'::text[]))", set()),
        ("(users.note IS NULL)", set()),
        ("((users.note = 'x'::text) AND (users.id < 10))", {"id"}),
    ],
)
def test_columns_that_are_sorted_or_folded(printed: str, columns: set[str]) -> None:
    assert mentions(printed).sorted == columns


@pytest.mark.parametrize(
    ("written", "printed", "found"),
    [
        ("d > 'today'", "(t.d > '2026-11-22'::date)", ["'today'"]),
        ("d < '04:00 Today'", "(t.d < '2026-11-22 04:00:00'::timestamp)", ["'today'"]),
        ("d = ANY('{today,yesterday}')", "(t.d = ANY ('{}'::date[]))", ["'today'", "'yesterday'"]),
        ("note = 'now'", "(t.note = 'now'::text)", []),
        ("note = 'now' and d = 'now'", "((t.note = 'now'::text) AND (t.d = '2026'))", ["'now'"]),
        ("d < 'now'::text::date", "(t.d < ('now'::cstring)::date)", ["'now'"]),
        ("know = 'nowhere'", "(t.know = 'nowhere'::text)", []),
    ],
)
def test_words_that_were_read_as_dates(written: str, printed: str, found: list[str]) -> None:
    assert folded_moments(written, printed) == found


@pytest.mark.parametrize(
    ("written", "may"),
    [("(SELECT 1)", True), ("exists (table t)", True), ("upper(name)", False), ("selected", False)],
)
def test_lookups(written: str, may: bool) -> None:
    assert may_read_tables(written) is may


@pytest.mark.parametrize(
    ("printed", "table", "left"),
    [
        (
            "((t.id = 1) AND (t.note <> 't.csv'::text))",
            "t",
            "((id = 1) AND (note <> 't.csv'::text))",
        ),
        ('("My t"."id" = 1)', "My t", '("id" = 1)'),
        ("true", "t", "true"),
    ],
)
def test_a_condition_is_compared_without_the_name_of_its_table(
    printed: str, table: str, left: str
) -> None:
    assert bare(printed, table) == left
