"""What a condition mentions, found without a server."""

import pytest

from copypipe.expressions import Mentions, mentions


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("created_at > now() - interval '1 day'", {"now()"}),
        ("created_at >= CURRENT_DATE", {"current_date"}),
        ("owner = current_user or owner = user", {"current_user", "user"}),
        ("created_at >= 'Yesterday'", {"'yesterday'"}),
        ("created_at >= $$today$$", {"'today'"}),
        ("created_at >= $x$ now $x$", {"'now'"}),
        ("created_at >= E'tomorrow'", {"'tomorrow'"}),
        ("created_at < 'today 12:00'", {"'today 12:00'"}),
        ('"now"() > created_at', {"now()"}),
        ("pg_catalog . now ( ) > created_at", {"now()"}),
        ("now /* a comment */ () > x", {"now()"}),
        ("E'it\\'s' = a or now() > b", {"now()"}),
        ("'it''s' = a or now() > b", {"now()"}),
    ],
)
def test_what_depends_on_the_moment_is_found(text: str, found: set[str]) -> None:
    assert mentions(text).moments == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now = 1",
        "title = 'now and then'",
        "a = 1 -- now()\n and b = 2",
        "a = 1 /* now() */",
        "title = $$select now()$$",
        "title = 'it''s now()'",
        "title = E'it\\'s now()'",
        '"current_date" = 1 and "user" = 2 and "select" = 3',
        "t.current_date = 1 and t.user = 2 and t.select = 3",
        "'' = a",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    found = mentions(text)

    assert not found.moments
    assert not found.calls
    assert not found.other_rows


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("lower(name) = 'a'", {("pg_catalog", "lower")}),
        ("Public . IsVip (id)", {("public", "isvip")}),
        ('"My"."Fn"(id)', {("My", "Fn")}),
    ],
)
def test_functions_are_found_with_their_schemas(text: str, calls: set[tuple[str, str]]) -> None:
    assert mentions(text).calls == calls


@pytest.mark.parametrize(
    "text", ["id IN (SELECT 1)", "exists (table vip)", "a = (\nselect max(b) from c)"]
)
def test_other_rows_are_found(text: str) -> None:
    assert mentions(text).other_rows


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("users IS NOT NULL", True),
        ("users.* IS NOT NULL", True),
        ("(users).name = 'a'", True),
        ("users.name = 'a'", False),
        ("a.users = 1", False),
        ("name::users = 1", False),
        ("'users' = name", False),
    ],
)
def test_the_row_as_a_whole_is_found(text: str, whole: bool) -> None:
    assert ("users" in mentions(text).names) is whole


def test_nothing_is_mentioned_by_nothing() -> None:
    assert mentions("") == Mentions(frozenset(), frozenset(), False, frozenset())
