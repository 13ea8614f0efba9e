"""Databases of several encodings: a text arrives as the same characters, or nothing has changed.

The oracle is the text of both sides in UTF-8, asked for by the test; where that cannot be had, of a
SQL_ASCII database, the bytes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

import copypipe
from copypipe.errors import CopyFailed, CopypipeError, PlanRefused
from plugins.databases import Database, encoded
from plugins.servers import SIDES, Servers

ENCODINGS = ("SQL_ASCII", "LATIN1", "UTF8")
DIRECTIONS = [(one, other) for one in ENCODINGS for other in ENCODINGS]

TABLE = """
    DROP TABLE IF EXISTS public.t, public.limited;
    CREATE TABLE public.t (id int PRIMARY KEY, t text, v varchar, c bpchar, n name, j json,
                           b jsonb, a text[]);
    CREATE TABLE public.limited (id int PRIMARY KEY, v varchar(5), c char(5))
"""
TEXTS = {
    "ASCII": "it's \\ \t plain, \n",
    "Latin": "Grüße, ÿ",
    "beyond Latin": "Ελλάδα 你好 👩",
    "two forms": "e\u0301",
}
# What each encoding has; SQL_ASCII keeps the bytes that it is sent.
HAS = {"SQL_ASCII": {*TEXTS}, "LATIN1": {"ASCII", "Latin"}, "UTF8": {*TEXTS}}


@dataclass
class Pool:
    """A database of each encoding on each side."""

    databases: dict[tuple[str, str], Database]

    def pair(self, one: str, other: str) -> tuple[Database, Database]:
        found = self.databases["source", one], self.databases["dest", other]
        for database in found:
            database.execute(TABLE)
        return found


@pytest.fixture(scope="module")
def pool(servers: Servers) -> Iterator[Pool]:
    with ExitStack() as stack:
        yield Pool(
            {
                (side, encoding): stack.enter_context(encoded(getattr(servers, side), encoding))
                for side in SIDES
                for encoding in ENCODINGS
            }
        )


def insert(database: Database, *values: tuple[int, str]) -> None:
    with database.connect(client_encoding="UTF8") as connection:
        for number, value in values:
            connection.execute(
                "INSERT INTO public.t (id, t, v, c, n, j, b, a) SELECT %s, t, t, t, t, to_json(t),"
                " to_jsonb(t), ARRAY[t] FROM (SELECT %s::text) AS given (t)",
                [number, value],
            )


def insert_bytes(database: Database, value: bytes) -> None:
    """Give a SQL_ASCII database bytes that are no characters."""
    with database.connect(client_encoding="SQL_ASCII") as connection:
        connection.execute(
            "INSERT INTO public.t (id, t) VALUES (9, convert_from(%s, 'SQL_ASCII'))", [value]
        )


def bytes_of(database: Database, table: str = "public.t") -> list[tuple[bytes | None, ...]]:
    """Return what the database holds, byte for byte."""
    with database.connect(client_encoding="SQL_ASCII") as connection:
        found = connection.execute(f"SELECT * FROM {table} ORDER BY id").pgresult
    fields = range(found.nfields)
    return [tuple(found.get_value(row, of) for of in fields) for row in range(found.ntuples)]


def copied(
    source: Database, dest: Database, table: str = "public.t", where: str | None = None
) -> None:
    whole = where is None
    copypipe.copy(table, source=source.dsn, dest=dest.dsn, all=whole, where=where, yes=whole)


def failure(source: Database, dest: Database, table: str = "public.t") -> CopypipeError:
    """Copy where that fails, and see that nothing has changed."""
    before = bytes_of(dest, table)
    with pytest.raises(CopypipeError) as caught:
        copied(source, dest, table)
    assert bytes_of(dest, table) == before
    return caught.value


@pytest.mark.parametrize(("one", "other"), DIRECTIONS)
@pytest.mark.one_of(5)
def test_characters_that_both_have_arrive(pool: Pool, one: str, other: str) -> None:
    source, dest = pool.pair(one, other)
    both = HAS[one] & HAS[other]
    insert(source, *((n, text) for n, (name, text) in enumerate(TEXTS.items()) if name in both))
    insert(dest, (0, "stale"), (7, "stale"))

    copied(source, dest)

    everything = "SELECT * FROM public.t ORDER BY id"
    assert dest.text(everything) == source.text(everything)
    # By the characters that the source was given, also where it does not know them.
    with dest.connect(client_encoding="UTF8") as connection:
        came = connection.execute("SELECT t, a[1], n FROM public.t ORDER BY id").fetchall()
    assert came == [(text,) * 3 for name, text in TEXTS.items() if name in both]


@pytest.mark.parametrize("by_text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (one, other, name)
        for one, other in DIRECTIONS
        for name in TEXTS
        if name in HAS[one] - HAS[other]
    ],
)
@pytest.mark.one_of(5)
def test_a_character_that_the_dest_lacks_fails_the_copy(
    pool: Pool, one: str, other: str, name: str, by_text: bool
) -> None:
    source, dest = pool.pair(one, other)
    insert(source, (1, "plain"), (2, TEXTS[name]))
    if by_text:
        for database in (source, dest):
            database.execute("ALTER TABLE public.t ADD r regclass, DROP n")
    dest.execute("INSERT INTO public.t (id, t) VALUES (0, 'stale')")

    error = failure(source, dest)

    assert isinstance(error, CopyFailed)
    assert error.exit_code == 1
    assert (error.side, error.sqlstate) == ("dest", "22P05")  # untranslatable_character
    assert "untranslatable character" in error.message


@pytest.mark.parametrize("other", ENCODINGS)
@pytest.mark.parametrize("value", [b"gr\xfc\xdfe", b"\xff", b"\xc3", b"\xed\xa0\x80"])
@pytest.mark.one_of(8)
def test_bytes_that_are_no_characters_fail_the_copy(pool: Pool, other: str, value: bytes) -> None:
    source, dest = pool.pair("SQL_ASCII", other)
    insert_bytes(source, value)
    insert(dest, (0, "stale"))

    error = failure(source, dest)

    assert isinstance(error, CopyFailed)
    assert (error.side, error.sqlstate) == ("source", "22021")  # character_not_in_repertoire
    assert "character not in repertoire" in error.message


def has(encoding: str, value: str) -> bool:
    """Return whether a varchar(5) of that encoding holds it; SQL_ASCII cuts blanks alone."""
    if encoding == "LATIN1":
        return value != "日本 "
    return encoding == "UTF8" or len(value.rstrip().encode()) <= 5


LENGTHS = [
    (one, other, value)
    for one, other in DIRECTIONS
    for value in ("abcde", "é", "ééééé", "éé  ", "é    ", "日本 ", "ab   ")
    if has(one, value) and (other == "SQL_ASCII" or has(other, value))
]


@pytest.mark.parametrize(("one", "other", "value"), LENGTHS)
@pytest.mark.one_of(8)
def test_lengths_are_kept_or_the_copy_fails(pool: Pool, one: str, other: str, value: str) -> None:
    """The same varchar(5) takes fewer characters where it counts bytes; it must not cut blanks."""
    source, dest = pool.pair(one, other)
    with source.connect(client_encoding="UTF8") as connection:
        # What a SQL_ASCII database cuts itself is its own.
        connection.execute(
            "INSERT INTO public.limited SELECT 1, v::varchar(5), v::char(5)"
            " FROM (SELECT %s::text) AS given (v)",
            [value],
        )
        (value,) = connection.execute("SELECT v FROM public.limited").fetchone()
    dest.execute("INSERT INTO public.limited VALUES (0, 'stale')")
    before = bytes_of(dest, "public.limited")

    failed = None
    try:
        copied(source, dest, "public.limited")
    except CopypipeError as error:
        failed = error

    if failed is not None:
        assert isinstance(failed, CopyFailed | PlanRefused)
        assert "SQL_ASCII" in (one, other)
        assert bytes_of(dest, "public.limited") == before
    else:
        with dest.connect(client_encoding="UTF8") as connection:
            came = connection.execute("SELECT v, c::text FROM public.limited").fetchall()
        assert came == [(value, value.rstrip())]


@pytest.mark.parametrize("by_text", [False, True], ids=["binary", "text"])
def test_a_name_that_is_longer_in_utf_8_is_not_cut(pool: Pool, by_text: bool) -> None:
    """63 bytes of LATIN1 are up to 126 of UTF-8; namein cuts, namerecv raises an error."""
    source, dest = pool.pair("LATIN1", "UTF8")
    if by_text:
        for database in (source, dest):
            database.execute("ALTER TABLE public.t ADD r regclass")
    insert(source, (1, "é" * 63))
    insert(dest, (0, "stale"))

    error = failure(source, dest)

    assert error.exit_code in (1, 6)


@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for a, b in DIRECTIONS if "SQL_ASCII" not in (a, b)]
)
@pytest.mark.one_of(3)
def test_names_and_labels_are_found_in_every_encoding(pool: Pool, one: str, other: str) -> None:
    source, dest = pool.pair(one, other)
    for database, labels in ((source, "'müde', 'süß'"), (dest, "'süß', 'müde'")):
        with database.connect(client_encoding="UTF8") as connection:
            connection.execute(
                'DROP TABLE IF EXISTS public."größe"; DROP TYPE IF EXISTS public."gefühl";'
                f'CREATE TYPE public."gefühl" AS ENUM ({labels});'
                'CREATE TABLE public."größe" ("schlüssel" int, "fläche" public."gefühl")'
            )
    with source.connect(client_encoding="UTF8") as connection:
        connection.execute("INSERT INTO public.\"größe\" VALUES (1, 'müde'), (2, 'süß')")

    copied(source, dest, 'public."größe"')
    copied(source, dest, 'public."größe"', where='"schlüssel" = 2')

    with dest.connect(client_encoding="UTF8") as connection:
        came = connection.execute(
            'SELECT "schlüssel", "fläche"::text FROM public."größe" ORDER BY 1'
        )
        assert came.fetchall() == [(1, "müde"), (2, "süß")]
