"""--verify checksum of every type: after a copy the digests agree, whatever the settings."""

import re
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from copypipe import CopypipeError, Differs, PlanRefused
from plugins.databases import Database, encoded
from plugins.edges import EDGES, Edge, array
from plugins.modes import Pair, pair_of

ALL: dict[str, Any] = {"all": True, "yes": True, "verify": "checksum", "ledger": False}

# Types that have no form which is the same on two servers.
REFUSED = {"money[]"}

# Whatever a role or a database may say about texts of values.
SETTINGS = {
    "source": {
        "TimeZone": "Asia/Kathmandu",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "iso_8601",
        "extra_float_digits": "-15",
        "bytea_output": "escape",
        "xmlbinary": "hex",
        "array_nulls": "off",
        "quote_all_identifiers": "on",
    },
    "dest": {
        "TimeZone": "America/St_Johns",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "extra_float_digits": "0",
        "bytea_output": "hex",
        "client_encoding": "LATIN1",
        "standard_conforming_strings": "off",
        "transform_null_equals": "on",
    },
}


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def known(*databases: Database) -> list[Edge]:
    """Return the types that both servers have."""
    major = min(database.server.major for database in databases)
    found = [edge for edge in EDGES if edge.since <= major]
    for database in databases:
        try:
            database.scalar("SELECT '<a/>'::xml IS NOT NULL")
        except psycopg.errors.FeatureNotSupported:
            found = [edge for edge in found if edge.name != "xml"]
    return found


def wide(pair: Pair, edges: list[Edge]) -> None:
    """Make a table with a column for each type, whose values are among its rows."""
    columns = ", ".join(f"c{n} {edge.name}" for n, edge in enumerate(edges))
    pair.make(f"CREATE TABLE public.t (id int, {columns})")
    for number in range(1 + max(len(edge.values) for edge in edges)):
        row = [
            quoted(edge.values[number]) if number < len(edge.values) else "NULL" for edge in edges
        ]
        pair.source.execute(f"INSERT INTO public.t VALUES ({number}, {', '.join(row)})")


def differing(pair: Pair) -> None:
    """Name the types of which the digests differ though the rows are the same."""
    (found,) = pair.verify(all=True, show_rows=True, key=["id"])
    assert found.verdict == "same", found.differing


@pytest.mark.parametrize("of", ["types", "arrays"])
@pytest.mark.one_of(2)
def test_every_type_under_any_settings(pair: Pair, of: str) -> None:
    edges = [array(edge) if of == "arrays" else edge for edge in known(pair.source, pair.dest)]
    wide(pair, [edge for edge in edges if edge.name not in REFUSED])
    for side, settings in SETTINGS.items():
        database = pair.source if side == "source" else pair.dest
        for name, value in settings.items():
            database.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'")

    done = pair.copy(**ALL)

    assert done.digest is not None
    assert done.digest.rows == done.rows
    differing(pair)
    # The very same without any of it, and of the rows in another order.
    for database in (pair.source, pair.dest):
        database.execute(f"ALTER DATABASE {database.name} RESET ALL")
    pair.source.execute(
        "CREATE TABLE public.u AS SELECT * FROM public.t ORDER BY id DESC;"
        "DROP TABLE public.t; ALTER TABLE public.u RENAME TO t"
    )
    assert pair.copy(**ALL).digest == done.digest


def test_settings_of_roles(pair: Pair) -> None:
    wide(pair, known(pair.source, pair.dest))
    grants = ("USAGE ON SCHEMA public", "ALL ON public.t")
    roles = {"source": pair.source.role("r", *grants), "dest": pair.dest.role("r", *grants)}
    for side, role in roles.items():
        for name, value in SETTINGS[side].items():
            getattr(pair, side).execute(f"ALTER ROLE {role.name} SET {name} = '{value}'")

    done = pair.copy(**ALL, source=roles["source"].dsn, dest=roles["dest"].dsn)

    assert done.digest == pair.copy(**ALL).digest


@pytest.mark.parametrize("edge", sorted(REFUSED))
def test_a_type_without_a_form_is_refused(pair: Pair, edge: str) -> None:
    pair.make(f"CREATE TABLE public.t (id int, v {edge})")
    pair.source.execute("INSERT INTO public.t VALUES (1, '{1.23}')")

    error = pair.refuses(PlanRefused, 'the values of "v" cannot be compared by a digest', **ALL)

    assert error.exit_code == 6
    assert "--exclude the column" in str(error.hint)
    with pytest.raises(PlanRefused, match="cannot be compared by a digest"):
        pair.verify(all=True)
    assert pair.copy(**ALL, exclude=["v"]).digest is not None
    assert pair.copy(all=True, yes=True, ledger=False).digest is None


# --- columns that cross ---------------------------------------------------------------------------

# Made at both sides, or at one of them only: OIDs differ, as do the names of types.
BOTH = """
CREATE DOMAIN public.cents AS numeric(12,4) CHECK (VALUE < 1000000);
CREATE DOMAIN public.name5 AS char(5);
CREATE DOMAIN public.deep AS public.cents;
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'it''s, "fine"');
CREATE TYPE public.pair AS (n numeric(10,2), t text, m public.mood);
CREATE TYPE public.textrange AS RANGE (subtype = text, collation = "C");
CREATE TABLE public.padded (n numeric(10,2), c char(5))
"""
# Type at the source, type at the dest, values at the source.
CROSSINGS = {
    "int4 int8": ("int4", "int8", ["1", "-2147483648"]),
    "int8 int4": ("int8", "int4", ["1", "-2147483648"]),
    "int2 numeric": ("int2", "numeric(12,4)", ["1", "-1"]),
    "varchar text": ("varchar(20)", "text", ["", "a ", "é"]),
    "text varchar": ("text", "varchar(20)", ["", "a ", "é"]),
    "scales": ("numeric(10,2)", "numeric(12,4)", ["1.5", "NaN", "-0.01"]),
    "no scale": ("numeric(10,2)", "numeric", ["1.5", "NaN"]),
    "float4 float8": ("float4", "float8", ["0.1", "-0", "NaN", "Infinity"]),
    "date timestamp": ("date", "timestamp", ["2018-04-29", "infinity"]),
    "precisions": ("timestamp(0)", "timestamp(6)", ["2018-04-29 01:02:03"]),
    "char lengths": ("char(5)", "char(10)", ["a", "", "abcde"]),
    "char text": ("char(5)", "text", ["a", "", "abcde"]),
    "text enum": ("text", "public.mood", ["ok", 'it\'s, "fine"']),
    "enum text": ("public.mood", "text", ["ok", 'it\'s, "fine"']),
    "enum enum": ("public.mood", "public.mood", ["ok", "sad"]),
    "domain base": ("public.cents", "numeric(12,4)", ["1.5"]),
    "base domain": ("numeric(10,2)", "public.cents", ["1.5"]),
    "domain of domain": ("public.deep", "public.deep", ["1.5"]),
    "base domain of domain": ("int4", "public.deep", ["7"]),
    "domain of char": ("public.name5", "public.name5", ["a"]),
    "composite": ("public.pair", "public.pair", ['(1.5,"a, b",ok)', "(,,)", "(,,sad)"]),
    "array of composites": ("public.pair[]", "public.pair[]", ['{"(1.5,a,ok)",NULL}']),
    "array of enums": ("public.mood[]", "public.mood[]", ["{ok,NULL}", "[0:1]={sad,sad}"]),
    "array of domains": ("public.cents[]", "public.cents[]", ["{1.5,NULL}"]),
    "array of int4 int8": ("int4[]", "int8[]", ["{1,NULL}", "[-1:0]={1,2}", "{{1},{2}}", "{}"]),
    "array of scales": ("numeric(10,2)[]", "numeric(12,4)[]", ["{1.5,NULL,NaN}"]),
    "array of ints scales": ("int4[]", "numeric(12,4)[]", ["{1,NULL}"]),
    "array of chars": ("char(5)[]", "char(10)[]", ['{a,NULL,""}']),
    "array of varchars": ("varchar(5)[]", "text[]", ["{a,NULL,NULL}", '{"NULL"}']),
    "range of users": ("public.textrange", "public.textrange", ["[a,b)", "empty", '["",)']),
    "bit varbit": ("bit(3)", "varbit", ["101"]),
    "oid int8": ("oid", "int8", ["4294967295"]),
    "cidr inet": ("cidr", "inet", ["10.0.0.0/8"]),
    "json text": ("json", "text", ['{"b":1,  "a":2}']),
    "jsonb text": ("jsonb", "text", ['{"b":1,  "a":2}']),
    "interval text": ("interval", "text", ["1 day", "-1 mon 3 days 04:05:06.7"]),
    "timestamptz text": ("timestamptz", "text", ["2018-04-29 01:02:03+05:45"]),
    "bytea text": ("bytea", "text", ["\\xff00"]),
    "a row type": ("public.padded", "public.padded", ["(1.5,a)", "(,)"]),
}


def test_columns_that_cross(pair: Pair) -> None:
    pair.dest.execute(
        "CREATE TYPE public.before AS ENUM ('a', 'b'); CREATE DOMAIN public.also AS int"
    )
    pair.make(BOTH)
    of = list(CROSSINGS.values())
    for database, place in ((pair.source, 0), (pair.dest, 1)):
        columns = ", ".join(f"c{n} {types[place]}" for n, types in enumerate(of))
        database.execute(f"CREATE TABLE public.t (id int PRIMARY KEY, {columns})")
    for number in range(1 + max(len(values) for _, _, values in of)):
        row = [quoted(v[number]) if number < len(v) else "NULL" for _, _, v in of]
        pair.source.execute(f"INSERT INTO public.t VALUES ({number}, {', '.join(row)})")

    done = pair.copy(**ALL)

    assert done.digest is not None
    differing(pair)
    # Each of them is looked at: of each a row lacks the value at the dest.
    names = [f"c{number}" for number in range(len(of))]
    pair.make(
        f"INSERT INTO public.t SELECT 100 + n, {', '.join(names)}"
        f"  FROM public.t, generate_series(0, {len(of) - 1}) AS n WHERE id = 0"
    )
    cases = [f"{name} = CASE WHEN id <> {100 + n} THEN {name} END" for n, name in enumerate(names)]
    pair.dest.execute(f"UPDATE public.t SET {', '.join(cases)} WHERE id >= 100")
    (found,) = pair.verify(all=True)
    assert [row.key for row in found.differing.rows] == [(str(100 + n),) for n in range(len(of))]


def test_only_what_all_agree_upon_is_left_to_casts_of_users(pair: Pair) -> None:
    """A cast to text that somebody has made would have any two values look the same."""
    pair.make(
        """
        CREATE TYPE public.mood AS ENUM ('sad', 'ok');
        CREATE TABLE public.t (id int PRIMARY KEY, v public.mood)
        """
    )
    pair.source.execute("INSERT INTO public.t VALUES (1, 'ok'), (2, NULL)")
    pair.dest.execute("INSERT INTO public.t VALUES (1, 'sad'), (2, NULL)")
    for database, text in ((pair.source, "all"), (pair.dest, "all")):
        database.execute(
            "CREATE FUNCTION public.said(public.mood) RETURNS text IMMUTABLE LANGUAGE sql"
            f" AS $$ SELECT '{text}' $$;"
            "CREATE CAST (public.mood AS text) WITH FUNCTION public.said(public.mood)"
        )

    (found,) = pair.verify(all=True)

    assert found.verdict == "differs"
    pair.source.execute("DROP CAST (public.mood AS text)")
    assert pair.copy(**ALL).rows == 2


def test_composites_of_which_the_modifiers_differ(pair: Pair) -> None:
    """What their text says depends on the modifiers, and the source cannot cast to that type."""
    pair.source.execute(
        "CREATE TYPE public.p AS (n numeric(10,2), c char(5)); CREATE TABLE public.t (v public.p);"
        "INSERT INTO public.t VALUES ('(1.5,a)')"
    )
    pair.dest.execute(
        "CREATE TYPE public.p AS (n numeric(12,4), c char(9)); CREATE TABLE public.t (v public.p)"
    )

    assert pair.copy(all=True, yes=True, ledger=False).rows == 1
    error = pair.refuses(PlanRefused, "cannot be compared by a digest", **ALL)
    assert "as long as the modifiers ask for" in str(error.detail)


def test_arrays_that_once_had_a_null(pair: Pair) -> None:
    """Whether it has a bitmap of NULLs is no part of an array's value."""
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, v int[], w text[])")
    pair.source.execute(
        "INSERT INTO public.t SELECT 1, (ARRAY[1, 2, NULL])[1:2], (ARRAY['a', NULL])[1:1]"
    )
    pair.dest.execute("INSERT INTO public.t VALUES (1, '{1,2}', '{a}')")

    (found,) = pair.verify(all=True)

    assert found.verdict == "same"
    assert pair.copy(**ALL).rows == 1


def test_types_of_extensions(pair: Pair) -> None:
    pair.dest.execute("CREATE TYPE public.before AS (a int)")
    for name in ("hstore", "citext", "ltree", "cube", "isn"):
        for database in (pair.source, pair.dest):
            with suppress(psycopg.errors.DuplicateObject):
                database.execute(f"CREATE EXTENSION {name} SCHEMA public")
    types = ("public.hstore", "public.citext", "public.ltree", "public.cube", "public.citext[]")
    values = ('"b"=>"1", "a"=>NULL', "Abc", "a.b", "(0.1,2),(3,4)", "{Abc,NULL}")
    columns = ", ".join(f"c{n} {name}" for n, name in enumerate(types))
    pair.make(f"CREATE TABLE public.t (id int PRIMARY KEY, {columns})")
    pair.source.execute(
        f"INSERT INTO public.t SELECT 1, {', '.join(map(quoted, values))};"
        "INSERT INTO public.t VALUES (2)"
    )

    assert pair.copy(**ALL).rows == 2
    differing(pair)
    pair.dest.execute("UPDATE public.t SET c1 = 'ABC' WHERE id = 1")  # which is equal to citext
    (found,) = pair.verify(all=True)
    assert [row.key for row in found.differing.rows] == [("1",)]


def test_documents_of_xml_that_tell_of_their_encoding(pair: Pair) -> None:
    if "xml" not in {edge.name for edge in known(pair.source, pair.dest)}:
        pytest.skip("the servers have no xml")
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, v xml, w xml[])")
    for number, text in enumerate(
        (
            '<?xml version="1.0"?><a/>',
            '<?xml version="1.0" encoding="UTF-8"?><a>é</a>',
            '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><a/>',
            '<?xml version="1.1" encoding="utf-8"?><a/>',
        )
    ):
        pair.source.execute(
            "INSERT INTO public.t VALUES (%s, %s, ARRAY[%s]::xml[])", [number, text, text]
        )

    assert pair.copy(**ALL).rows == 4
    differing(pair)


# --- encodings ------------------------------------------------------------------------------------


def test_another_encoding(kept_source: Database, kept_dest: Database) -> None:
    make = "CREATE TABLE public.t (id int PRIMARY KEY, v text, e public.e, j json, a text[])"
    with encoded(kept_source.server, "LATIN1") as latin:
        for pair in pair_of(latin, kept_dest):
            pair.make(f"CREATE TYPE public.e AS ENUM ('é'); {make}")
            latin.execute("INSERT INTO public.t VALUES (1, 'é', 'é', '{\"é\": 1}', '{é}')")

            assert pair.copy(**ALL).rows == 1
            differing(pair)


@pytest.mark.parametrize("of", ["jsonb", "jsonb[]", "tsvector", "public.d"])
@pytest.mark.one_of(3)
def test_what_is_sorted_by_the_bytes_of_an_encoding(
    kept_source: Database, kept_dest: Database, of: str
) -> None:
    """In LATIN1 an é is one byte, so it is sorted before zz."""
    with encoded(kept_source.server, "LATIN1") as latin:
        for pair in pair_of(latin, kept_dest):
            pair.make(f"CREATE DOMAIN public.d AS jsonb; CREATE TABLE public.t (id int, v {of})")
            value = "é zz" if of == "tsvector" else '{"é": 1, "zz": 2}'
            latin.execute(
                "INSERT INTO public.t SELECT 1, "
                + (f"ARRAY['{value}'::jsonb]" if of == "jsonb[]" else f"'{value}'")
            )

            assert pair.copy(all=True, yes=True, ledger=False).rows == 1
            error = pair.refuses(PlanRefused, "cannot be compared by a digest", **ALL)
            assert "sorts its parts by the bytes" in str(error.detail)


# --- what is the same and what is not -------------------------------------------------------------

UNLIKE = {
    "zeros": ("float8", "0", "-0"),
    "scales": ("numeric", "1.5", "1.50"),
    "an empty text": ("text", None, ""),
    "blanks": ("text", "a", "a "),
    "cases": ("text", "a", "A"),
    "forms of a letter": ("text", "\u00e9", "e\u0301"),
    "orders of keys": ("json", '{"a":1,"b":2}', '{"b":2,"a":1}'),
    "numbers in documents": ("jsonb", "1", "1.0"),
    "lower bounds": ("int[]", "{1}", "[2:2]={1}"),
    "a NULL and the word": ("text[]", "{NULL}", '{"NULL"}'),
    "one microsecond": ("timestamptz", "2018-04-29 00:00Z", "2018-04-29 00:00:00.000001Z"),
    "a day and 24 hours": ("interval", "1 day", "24:00"),
    "networks": ("inet", "10.0.0.1", "10.0.0.1/31"),
    "zones": ("timetz", "00:00+00", "01:00+01"),
    "a bit": ("bytea", "\\x00", "\\x01"),
    "empty and no array": ("int[]", None, "{}"),
}
ALIKE = {
    "blanks": ("char(5)", "a", "a  "),
    "documents": ("jsonb", '{"a":1,"b":2}', '{"b":2, "a":1}'),
    "ranges": ("int4range", "[1,3]", "[1,4)"),
    "instants": ("timestamptz", "2018-04-29 00:00Z", "2018-04-29 02:00+02"),
    "NaN": ("float8", "NaN", "nan"),
    "months and years": ("interval", "1 year", "12 mons"),
}


@pytest.mark.parametrize("alike", [True, False])
def test_what_is_the_same(pair: Pair, alike: bool) -> None:
    cases = list((ALIKE if alike else UNLIKE).values())
    columns = ", ".join(f"c{n} {case[0]}" for n, case in enumerate(cases))
    pair.make(f"CREATE TABLE public.t (id int PRIMARY KEY, {columns})")
    for number in range(len(cases)):
        for database, place in ((pair.source, 1), (pair.dest, 2)):
            database.execute(
                f"INSERT INTO public.t (id, c{number}) VALUES (%s, %s)",
                [number, cases[number][place]],
            )

    (found,) = pair.verify(all=True)

    if alike:
        assert found.verdict == "same"
    else:
        assert [row.key for row in found.differing.rows] == [
            (text,) for text in sorted(map(str, range(len(cases))))
        ]


def test_columns_of_other_kinds_have_other_digests(pair: Pair) -> None:
    pair.make("CREATE TABLE public.t (id int, a text, b text)")
    pair.source.execute("INSERT INTO public.t VALUES (1, 'x', NULL), (2, NULL, 'x')")
    whole = pair.copy(**ALL).digest
    part = pair.copy(**ALL, exclude=["b"]).digest

    assert whole is not None
    assert part is not None
    assert whole.seed != part.seed
    assert re.fullmatch(r"sha256/1/[0-9a-f]{16}:2:[0-9a-f]{32}", str(whole))


def test_nothing_is_proved_without_being_asked_for(pair: Pair) -> None:
    pair.make("CREATE TABLE public.t (id int)")
    assert pair.copy(all=True, yes=True).digest is None
    assert pair.told()[0]["checksum"] is None
    assert issubclass(Differs, CopypipeError)
