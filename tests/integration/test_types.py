"""Tables of every type, of users and of extensions too, arrive exactly as they were, both ways.

Values are written as text and read by the server. The oracle is the text COPY of both sides under
pinned settings: it knows nothing of binary COPY or of the copypipe package. How a type becomes
another one is the matter of test_matrix.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import copypipe
from copypipe import crossings, launcher
from copypipe.errors import CopyFailed, CopypipeError, PlanRefused
from copypipe.statements import copies
from plugins.databases import Database, encoded
from plugins.edges import EDGES, Edge, array
from plugins.servers import Broken, Server, launch_one


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


# ------------------------------------------------------------------------- values of a type

Text = st.SearchStrategy[str]


@dataclass(frozen=True)
class Kind:
    """A type as in SQL, and texts that its input function takes."""

    name: str
    values: Text = field(repr=False)
    delimiter: str = field(default=",", repr=False)
    """What stands between the elements of an array (pg_type.typdelim)."""
    since: int = field(default=14, repr=False)
    """The first major version that has it."""


def integers(bits: int, *, signed: bool = True) -> Text:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0])).map(str)


def floats(width: int) -> Text:
    return st.floats(width=width).map(repr)  # nan, inf, -inf and -0.0 are words of the server too


SCRIPTS = [
    *("Grüße", "你好世界", "مرحبا", "שלום", "Ελλάδα", "हिन्दी", "ไทย", "日本語", "한국어"),
    *("👩\u200d🚀🇦🇹", "\uffff", "e\u0301", "", " ", "  trailing  ", "tab\tnew\nline\r"),
    *("'\"\\", "\\N", "\\.", "NULL"),
]
_character = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def texts(longest: int = 30) -> Text:
    return st.one_of(
        st.text(_character, max_size=longest),
        st.sampled_from([text for text in SCRIPTS if len(text) <= longest]),
    )


_digits = st.text("0123456789", min_size=1, max_size=40)


def numerics(whole: int, fraction: int) -> Text:
    """Return numbers with at most so many digits before and after the point."""
    part = st.text("0123456789", max_size=whole).map(lambda digits: digits or "0")
    rest = st.text("0123456789", max_size=fraction)
    return st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), part, rest)


_any_numeric = st.one_of(
    numerics(60, 40),
    st.builds("{}e{}".format, _digits, st.integers(-200, 200)),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "0.000", "-0", "1e131000", "1e-16383"]),
)

_jsons = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        texts(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts(8), inner, max_size=3)
    ),
    max_leaves=6,
).flatmap(lambda value: st.booleans().map(lambda ascii: json.dumps(value, ensure_ascii=ascii)))

_paths = st.one_of(
    st.sampled_from(
        [
            "$",
            'strict $.a[*] ? (@.b > 1 && !(@.c like_regex "^a.*" flag "i"))',
            "$.**{2 to last}[0, 1 to last]",
            "lax $.x.datetime() ? (@ < $y)",
            "-$.a.double() + 1.5e10",
            'exists($.a ? (@ starts with "x"))',
        ]
    ),
    texts(8).map(lambda text: f"$.{json.dumps(text)}"),
)


def dates(last_year: int) -> Text:
    def written(year: int, month: int, day: int) -> str:
        return f"{abs(year) or 1:04}-{month:02}-{day:02}" + (" BC" if year < 0 else "")

    year = st.one_of(st.integers(-4700, last_year), st.integers(1900, 2100))
    return st.builds(written, year, st.integers(1, 12), st.integers(1, 28))


_times = st.one_of(
    st.times().map(str),
    st.sampled_from(["00:00", "24:00", "23:59:59.999999", "23:59:59.5"]),
)
_zones = st.integers(-57_599, 57_599).map(
    lambda s: f"{'-' if s < 0 else '+'}{abs(s) // 3600:02}:{abs(s) // 60 % 60:02}:{abs(s) % 60:02}"
)
_infinite = st.sampled_from(["infinity", "-infinity"])


def moments(*, zoned: bool) -> Text:
    def written(day: str, time: str, zone: str) -> str:
        day, _, era = day.partition(" ")
        return f"{day} {time}{zone if zoned else ''} {era}"

    return st.one_of(st.builds(written, dates(294_000), _times, _zones), _infinite)


_intervals = st.builds(
    "{} mons {} days {} microseconds".format,
    integers(32),
    integers(32),
    st.integers(-9 * 10**18, 9 * 10**18),
)

_coordinates = st.floats().map(repr)
_points = st.builds("({},{})".format, _coordinates, _coordinates)
_two_points = st.builds("{},{}".format, _points, _points)
_many_points = st.lists(_points, min_size=1, max_size=4).map(",".join)
_lines = st.builds(
    "{{{},{},{}}}".format,
    st.floats(1, 1e300).map(repr),
    st.floats(-1e300, 1e300).map(repr),
    st.floats(-1e300, 1e300).map(repr),
)
_radii = st.one_of(st.floats(0), st.just(float("nan"))).map(repr)

_words = st.text(_character, min_size=1, max_size=8).map(
    lambda word: "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
)
_positions = st.lists(
    st.builds("{}{}".format, st.integers(1, 16_383), st.sampled_from("ABCD")), max_size=4
).map(lambda positions: ":" + ",".join(positions) if positions else "")
_vectors = st.lists(st.builds("{}{}".format, _words, _positions), max_size=5).map(" ".join)
_terms = st.builds("{}{}".format, _words, st.sampled_from(["", ":*", ":AB", ":*CD"]))
_queries = st.recursive(
    _terms,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["&", "|", "<->", "<7>"]), inner),
        st.builds("!{}".format, inner),
    ),
    max_leaves=5,
)


def ranges(values: st.SearchStrategy[Any], written: Callable[[Any], str] = str) -> Text:
    def of(pair: tuple[Any, Any], shape: str) -> str:
        low, high = (written(value) for value in sorted(pair))
        return shape.format(f'"{low}"', f'"{high}"')

    shapes = ["[{},{}]", "[{},{})", "({},{}]", "({},{})", "[{},)", "(,{}]", "(,)", "empty"]
    return st.builds(of, st.tuples(values, values), st.sampled_from(shapes))


def of_ranges(values: Text) -> Text:
    return st.lists(values, max_size=3).map(lambda several: "{" + ",".join(several) + "}")


RANGES = {
    "int4": ranges(st.integers(-(10**9), 10**9)),
    "int8": ranges(st.integers(-(10**18), 10**18)),
    "num": ranges(st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    "date": ranges(st.dates(), lambda day: day.isoformat()),
    "ts": ranges(st.datetimes()),
    "tstz": ranges(st.datetimes(), lambda moment: f"{moment}+00"),
}


def bits(shortest: int, longest: int) -> Text:
    return st.text("01", min_size=shortest, max_size=longest)


def hexes(number: int) -> Text:
    return st.binary(min_size=number, max_size=number).map(bytes.hex)


_addresses = st.one_of(
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 128)),
)
_networks = st.one_of(
    st.builds(
        lambda n, w: f"{'.'.join([str(n)] * (w // 8)) or '0'}/{w}",
        st.integers(1, 255),
        st.sampled_from([0, 8, 16, 24, 32]),
    ),
    st.builds(lambda n: f"{n:x}::/16", st.integers(1, 0xFFFF)),
)
_halves = integers(32, signed=False).map(lambda half: f"{int(half):X}")

SCALARS = [
    Kind("bool", st.sampled_from(["true", "false"])),
    Kind("int2", integers(16)),
    Kind("int4", integers(32)),
    Kind("int8", integers(64)),
    Kind("oid", integers(32, signed=False)),
    Kind("float4", floats(32)),
    Kind("float8", floats(64)),
    Kind("numeric", _any_numeric),
    Kind("numeric(10,2)", st.one_of(numerics(8, 5), st.just("NaN"))),
    Kind("numeric(3,5)", st.builds("0.00{}".format, st.integers(0, 999))),
    Kind("numeric(4,-3)", numerics(6, 2), since=15),
    Kind("text", texts()),
    Kind("varchar", texts()),
    Kind("varchar(7)", texts(7)),
    Kind("char(5)", texts(5)),
    Kind("bpchar", texts()),
    Kind('"char"', st.characters(min_codepoint=1, max_codepoint=126)),
    Kind("name", texts(15)),
    Kind("bytea", st.binary(max_size=20).map(lambda value: "\\x" + value.hex())),
    Kind("json", _jsons | st.just('{"a": 1,  "a": "\\u0000"}')),
    Kind("jsonb", _jsons),
    Kind("jsonpath", _paths),
    Kind("uuid", hexes(16)),
    Kind("inet", _addresses),
    Kind("cidr", _networks),
    Kind("macaddr", hexes(6)),
    Kind("macaddr8", hexes(8)),
    Kind("bit(9)", bits(9, 9)),
    Kind("varbit", bits(0, 40)),
    Kind("varbit(11)", bits(0, 11)),
    Kind("date", st.one_of(dates(5_800_000), _infinite)),
    Kind("time", _times),
    Kind("time(2)", _times),
    Kind("timetz", st.builds("{}{}".format, _times, _zones)),
    Kind("timetz(0)", st.builds("{}{}".format, _times, _zones)),
    Kind("timestamp", moments(zoned=False)),
    Kind("timestamp(3)", moments(zoned=False)),
    Kind("timestamptz", moments(zoned=True)),
    Kind("timestamptz(0)", moments(zoned=True)),
    Kind("interval", _intervals),
    Kind("interval(3)", _intervals),
    Kind("interval day to second", _intervals),
    Kind("interval", _infinite, since=17),
    Kind("point", _points),
    Kind("lseg", _two_points.map("[{}]".format)),
    Kind("box", _two_points, delimiter=";"),
    Kind("path", _many_points.map("[{}]".format)),
    Kind("path", _many_points.map("({})".format)),
    Kind("polygon", _many_points.map("({})".format)),
    Kind("line", _lines),
    Kind("circle", st.builds("<{},{}>".format, _points, _radii)),
    Kind("tsvector", _vectors),
    Kind("tsquery", _queries),
    Kind("pg_lsn", st.builds("{}/{}".format, _halves, _halves)),
    Kind("xid", integers(32, signed=False)),
    Kind("xid8", integers(64, signed=False)),
    Kind("tid", st.builds("({},{})".format, integers(32, signed=False), st.integers(0, 65_535))),
    Kind("pg_snapshot", st.sampled_from(["1:1:", "10:20:10,14,15", "7:9:8"])),
    Kind("refcursor", texts()),
    *(Kind(f"{name}range", values) for name, values in RANGES.items()),
    *(Kind(f"{name}multirange", of_ranges(values)) for name, values in RANGES.items()),
]


def quoted(element: str | None) -> str:
    if element is None:
        return "NULL"
    return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def arrays(draw: st.DrawFn, kind: Kind) -> str:
    """Draw an array in text: one or two dimensions, odd bounds, NULLs; sometimes empty."""
    lengths = draw(st.lists(st.integers(1, 3), max_size=2))
    if not lengths:
        return "{}"
    *outer, inner = lengths
    rows = [
        "{" + kind.delimiter.join(quoted(draw(st.none() | kind.values)) for _ in range(inner)) + "}"
        for _ in range(*(outer or [1]))
    ]
    lows = [draw(st.integers(-3, 5)) for _ in lengths]
    bounds = "".join(f"[{low}:{low + n - 1}]" for low, n in zip(lows, lengths, strict=True))
    return f"{bounds}=" + ("{" + kind.delimiter.join(rows) + "}" if outer else rows[0])


ARRAYS = [Kind(f"{kind.name}[]", arrays(kind), since=kind.since) for kind in SCALARS]


def kinds(source: Database, dest: Database) -> list[Kind]:
    """Return the types that both servers have and that mean the same on both."""
    major = min(source.server.major, dest.server.major)
    found = [kind for kind in (*SCALARS, *ARRAYS) if kind.since <= major]
    lc_monetary = {database.scalar("SHOW lc_monetary") for database in (source, dest)}
    if len(lc_monetary) == 1:
        money = Kind("money", st.integers(-(10**14), 10**14).map(lambda n: f"{n / 100:.2f}"))
        found += [money, Kind("money[]", arrays(money))]
    return found


# ---------------------------------------------------------------------------- random tables

SCHEMA = 'The "odd" schema %s {} \\ ü'
ROW = 'row "№"'
ODD_NAMES = [
    *("select", "it's", "%s", "%(x)s", "{}", "{0}", "a.b", "\\", "Ä", "Upper", "upper", "/*"),
    *("$1", ":x", "?", "\u202e", "名前", "id", "a,b", "(c)", " ", 'a "b"', "new\nline", "; --"),
]
SYSTEM = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}

_names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text(_character, min_size=1, max_size=12).filter(lambda name: name not in SYSTEM),
)


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


@dataclass(frozen=True)
class Column:
    """A column of both tables."""

    name: str
    type: str
    values: tuple[str | None, ...]
    type_at_dest: str | None = None


@dataclass(frozen=True)
class Generated:
    """A column that the dest generates itself, and what the source has by that name."""

    name: str
    storage: str
    at_source: str


@dataclass(frozen=True)
class Shape:
    """Two tables: the source's with rows, the dest's for the same columns in another order."""

    columns: tuple[Column, ...]
    order: tuple[int, ...]
    """The columns' places at the dest."""
    rows: int = 1
    generated: tuple[Generated, ...] = ()
    dropped: frozenset[int] = frozenset()
    """Before which columns there was another one, at the dest and, in reverse, at the source."""
    table: str = "things"
    into: str = "things"
    stale: bool = False
    """The dest has rows already."""


def random_shape(draw: st.DrawFn, known: list[Kind], major_of_dest: int) -> Shape:
    rows = draw(st.integers(0, 4))
    few = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    names = draw(st.lists(_names, min_size=1, max_size=8, unique=True).map(tuple))
    names = tuple(name for name in names if name != ROW)
    own = draw(st.integers(0, min(2, len(names) - 1))) if names else 0
    storages = ["STORED", "VIRTUAL"] if major_of_dest >= 18 else ["STORED"]
    generated = tuple(
        Generated(
            name,
            draw(st.sampled_from(storages)),
            draw(st.sampled_from(["absent", "plain", "generated"])),
        )
        for name in names[:own]
    )
    columns = []
    for name in names[own:]:
        kind = draw(st.sampled_from(few))
        columns.append(
            Column(name, kind.name, tuple(draw(st.none() | kind.values) for _ in range(rows)))
        )
    return Shape(
        columns=tuple(columns),
        order=tuple(draw(st.permutations(range(len(columns))))),
        rows=rows,
        generated=generated,
        dropped=frozenset(draw(st.sets(st.integers(0, 8), max_size=3))),
        table=draw(_names),
        into=draw(_names),
        stale=draw(st.booleans()),
    )


def create(database: Database, table: str, columns: list[str], dropped: frozenset[int]) -> None:
    """Make the table in a fresh schema; before the columns at `dropped` there was another one."""
    lines: list[str] = []
    gone = []
    for place, column in enumerate(columns):
        if place in dropped:
            gone.append(identifier(f"gone {place} of the others"))
            lines.append(f"{gone[-1]} numeric DEFAULT 1")
        lines.append(column)
    drops = "".join(f"ALTER TABLE {table} DROP COLUMN {name};" for name in gone)
    database.execute(
        f"DROP SCHEMA IF EXISTS {identifier(SCHEMA)} CASCADE;"
        f"CREATE SCHEMA {identifier(SCHEMA)};"
        f"CREATE TABLE {table} ({', '.join(lines)});" + drops
    )


def qualified(name: str) -> str:
    return f"{identifier(SCHEMA)}.{identifier(name)}"


def make_source(source: Database, shape: Shape) -> None:
    table, twice = qualified(shape.table), f"(2 * {identifier(ROW)})"
    definitions = [f"{identifier(ROW)} int4"]
    definitions += [f"{identifier(c.name)} {c.type}" for c in shape.columns]
    for g in shape.generated:
        if g.at_source == "plain":
            definitions.append(f"{identifier(g.name)} int4 DEFAULT 7")
        elif g.at_source == "generated":
            definitions.append(f"{identifier(g.name)} int4 GENERATED ALWAYS AS {twice} STORED")
    create(source, table, definitions[::-1], shape.dropped)
    names = ", ".join(identifier(name) for name in [ROW, *(c.name for c in shape.columns)])
    for row in range(shape.rows):
        values = ", ".join([str(row), *(literal(c.values[row]) for c in shape.columns)])
        source.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")


def make_dest(dest: Database, shape: Shape) -> None:
    table, twice = qualified(shape.into), f"(2 * {identifier(ROW)})"
    columns = [shape.columns[place] for place in shape.order]
    definitions = [f"{identifier(c.name)} {c.type_at_dest or c.type}" for c in columns]
    definitions.insert(len(definitions) // 2, f"{identifier(ROW)} int4")
    definitions[1:1] = [
        f"{identifier(g.name)} int4 GENERATED ALWAYS AS {twice} {g.storage}"
        for g in shape.generated
    ]
    create(dest, table, definitions, shape.dropped)
    if shape.stale:
        dest.execute(f"INSERT INTO {table} ({identifier(ROW)}) VALUES (-1), (NULL)")


def text_of(database: Database, table: str, shape: Shape) -> bytes:
    names = ", ".join(identifier(name) for name in [ROW, *(c.name for c in shape.columns)])
    return database.text(f"SELECT {names} FROM {qualified(table)} ORDER BY {identifier(ROW)}")


def binary_of(database: Database, table: str, shape: Shape) -> bytes:
    """Return the rows as their send functions write them."""
    names = ", ".join(identifier(c.name) for c in shape.columns)
    query = f"SELECT {names} FROM {qualified(table)} ORDER BY {identifier(ROW)}"
    with (
        database.connect() as connection,
        connection.cursor() as cursor,
        cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode()) as copy,
    ):
        return b"".join(copy)


def check_exact(source: Database, dest: Database, shape: Shape, *, binary: bool = False) -> None:
    """Copy all rows and compare both sides; a copy that fails is a fault as well."""
    make_source(source, shape)
    make_dest(dest, shape)
    before = text_of(source, shape.table, shape)

    try:
        done = copypipe.copy(
            qualified(shape.table),
            into=qualified(shape.into),
            source=source.dsn,
            dest=dest.dsn,
            all=True,
            yes=True,
            allow_empty=True,
        )
    except CopypipeError as error:
        raise AssertionError(f"not copied: {error}") from error

    assert text_of(dest, shape.into, shape) == before
    assert text_of(source, shape.table, shape) == before
    if binary:
        assert binary_of(dest, shape.into, shape) == binary_of(source, shape.table, shape)
    assert done.rows == shape.rows
    for g in shape.generated:
        wrong = f"{identifier(g.name)} IS DISTINCT FROM 2 * {identifier(ROW)}"
        assert dest.scalar(f"SELECT count(*) FROM {qualified(shape.into)} WHERE {wrong}") == 0


def check_random_tables(
    source: Database, dest: Database, max_examples: int, phases: tuple[Phase, ...] = tuple(Phase)
) -> None:
    known = kinds(source, dest)

    @st.composite
    def shapes(draw: st.DrawFn) -> Shape:
        return random_shape(draw, known, dest.server.major)

    @settings(
        max_examples=max_examples,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(shapes())
    def check(shape: Shape) -> None:
        check_exact(source, dest, shape)

    check()


def test_random_tables_are_copied_exactly(source: Database, dest: Database) -> None:
    check_random_tables(source, dest, max_examples=25)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_tables_are_copied_exactly(source: Database, dest: Database) -> None:
    check_random_tables(source, dest, max_examples=3000)


def wide(known: list[Kind], rows: list[list[str | None]]) -> Shape:
    columns = tuple(
        Column(f"{number} {kind.name}", kind.name, tuple(row[number] for row in rows))
        for number, kind in enumerate(known)
    )
    return Shape(columns, order=tuple(reversed(range(len(columns)))), rows=len(rows))


def check_every_type(source: Database, dest: Database, max_examples: int) -> None:
    known = kinds(source, dest)
    seen = set()

    @st.composite
    def rows_of_all(draw: st.DrawFn) -> list[list[str | None]]:
        return [
            [draw(st.none() | kind.values) for kind in known]
            for _ in range(draw(st.integers(0, 3)))
        ]

    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(rows_of_all())
    def check(rows: list[list[str | None]]) -> None:
        check_exact(source, dest, wide(known, rows))
        seen.update(number for row in rows for number, value in enumerate(row) if value is not None)

    check()
    assert len(seen) > 0.9 * len(known) > 100


def test_a_table_with_a_column_of_every_type_is_copied_exactly(
    source: Database, dest: Database
) -> None:
    check_every_type(source, dest, max_examples=8)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_rows_of_every_type_are_copied_exactly(source: Database, dest: Database) -> None:
    check_every_type(source, dest, max_examples=500)


# ------------------------------------------------------------------- every type with its edges

BY_TEXT = {
    *("regproc", "regprocedure", "regoper", "regoperator", "regclass", "regcollation", "regtype"),
    *("regconfig", "regdictionary", "regnamespace", "regrole", "int2vector", "oidvector"),
    "aclitem",
}
TEXTS = Edge("text", tuple(SCRIPTS))


def reads_xml(database: Database) -> bool:
    try:
        database.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def edges_of(*databases: Database) -> list[Edge]:
    """Return the types that these servers know, with their edges."""
    major = min(database.server.major for database in databases)
    found = [edge for edge in (*EDGES, TEXTS) if edge.since <= major]
    if not all(map(reads_xml, databases)):
        found = [edge for edge in found if edge.name != "xml"]
    # One that a server before 17 reads as another value.
    return [edge for edge in found if edge.since < 17 or major >= 17]


def with_edges(edges: list[Edge]) -> Shape:
    """Return a table of these types and of their arrays; each column repeats its values."""
    both = [*edges, *map(array, edges)]
    rows = max(len(edge.values) for edge in both) + 1

    def values(edge: Edge) -> tuple[str | None, ...]:
        cycle = (None, *edge.values)
        return tuple(cycle[row % len(cycle)] for row in range(rows))

    columns = tuple(
        Column(f"{number} {edge.name}", edge.name, values(edge)) for number, edge in enumerate(both)
    )
    return Shape(columns, order=tuple(reversed(range(len(columns)))), rows=rows, stale=True)


def check_edges(source: Database, dest: Database) -> None:
    edges = edges_of(source, dest)
    check_exact(source, dest, with_edges([e for e in edges if e.name not in BY_TEXT]), binary=True)
    check_exact(source, dest, with_edges([e for e in edges if e.name in BY_TEXT]))
    check_exact(source, dest, with_edges(edges))


def check_by_text(source: Database, dest: Database) -> None:
    """Copy each of the types that need text format by itself, and its arrays by themselves."""
    for edge in edges_of(source, dest):
        if edge.name in BY_TEXT:
            for each in (edge, array(edge)):
                column = Column("c", each.name, each.values)
                check_exact(source, dest, Shape((column,), order=(0,), rows=len(each.values)))


def test_a_table_of_every_type_with_its_edges_is_copied_exactly(
    source: Database, dest: Database
) -> None:
    """In text format too: one column is enough to make the whole table go over in it."""
    check_edges(source, dest)
    check_by_text(source, dest)


@pytest.mark.slow
def test_the_other_way_round_as_well(source: Database, dest: Database) -> None:
    check_edges(dest, source)
    check_by_text(dest, source)


def test_every_type_of_the_catalog_is_in_this_table(source: Database, dest: Database) -> None:
    """A type that a new version brings must be thought of."""
    for database in (source, dest):
        tested = [
            database.scalar("SELECT %s::regtype::oid", [edge.name]) for edge in edges_of(database)
        ]
        names = database.fetch(
            "SELECT typname FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND oid < 10000"
            " AND typcategory <> 'A' AND NOT oid = ANY (%s)",
            [tested],
        )
        unsupported = set() if reads_xml(database) else {"xml"}
        assert {name for (name,) in names} <= NEVER_READ | unsupported


# Their input and receive functions always raise an error.
NEVER_READ = {
    *("pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "gtsvector"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
}


@pytest.mark.parametrize("beside", ["int4", "regclass"], ids=["binary", "text"])
@pytest.mark.one_of(2)
def test_large_values_are_copied_exactly(source: Database, dest: Database, beside: str) -> None:
    """Larger than any buffer on their way, and without a byte."""
    large = "\\x" + "00ff5c0a0d09c3bc".rjust(20, "0") * 1024 * 1024
    values = ("\\x", large, None, "\\x00", large)
    columns = (
        Column("b", "bytea", values),
        Column("n", beside, ("0",) * 5),
        Column("t", "text", ("", "ü\n" * 5_000_000, None, "\\", "")),
    )

    check_exact(source, dest, Shape(columns, order=(2, 0, 1), rows=5), binary=beside == "int4")


# ----------------------------------------------------------------------------- types of users

OWN_TYPES = """
    CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'it''s, "so" \\', 'ü');
    CREATE DOMAIN public.feeling AS public.mood CHECK (VALUE <> 'sad');
    CREATE DOMAIN public.positive AS int4 CHECK (VALUE > 0);
    CREATE DOMAIN public.small AS public.positive CHECK (VALUE < 10);
    CREATE DOMAIN public.code AS varchar(5);
    CREATE DOMAIN public.numbers AS int4[] CHECK (cardinality(VALUE) < 9);
    CREATE TYPE public.pair AS (a int4, b text);
    CREATE TYPE public.deep AS (p public.pair, m public.mood[], d public.small, r int4range);
    CREATE TYPE public.span AS RANGE (subtype = float8, subtype_diff = float8mi);
    CREATE TYPE public.words AS RANGE (subtype = text, collation = "C");
    CREATE TYPE public.scale AS ENUM ('low', 'high');
    CREATE TYPE public.between AS RANGE (subtype = public.scale);
    CREATE DOMAIN public.part AS public.pair;
"""
OTHER_ORDER = """
    CREATE TYPE public.first AS (a int4);
    CREATE TYPE public.mood AS ENUM ('ü', 'sad', 'ok');
    ALTER TYPE public.mood ADD VALUE 'it''s, "so" \\' AFTER 'sad';
    CREATE TYPE public.words AS RANGE (subtype = text, collation = "C");
    CREATE TYPE public.pair AS (gone text, a int4, b text);
    ALTER TYPE public.pair DROP ATTRIBUTE gone;
    CREATE DOMAIN public.part AS public.pair;
    CREATE DOMAIN public.positive AS int4 CHECK (VALUE > 0);
    CREATE DOMAIN public.numbers AS int4[] CHECK (cardinality(VALUE) < 9);
    CREATE DOMAIN public.small AS public.positive CHECK (VALUE < 10);
    CREATE DOMAIN public.code AS varchar(5);
    CREATE TYPE public.span AS RANGE (subtype = float8, subtype_diff = float8mi);
    CREATE TYPE public.deep AS (p public.pair, m public.mood[], d public.small, r int4range);
    CREATE DOMAIN public.feeling AS public.mood CHECK (VALUE <> 'sad');
    CREATE TYPE public.scale AS ENUM ('low', 'high');
    CREATE TYPE public.between AS RANGE (subtype = public.scale);
"""

OWN = [
    Edge("public.mood", ("sad", "ok", 'it\'s, "so" \\', "ü")),
    Edge("public.feeling", ("ok", "ü")),
    Edge("public.positive", ("1", "2147483647")),
    Edge("public.small", ("1", "9")),
    Edge("public.code", ("", "ab ", "abcde")),
    Edge("public.numbers", ("{}", "{1,NULL,3}", "[-1:0]={1,2}")),
    Edge("public.pair", ("(1,a)", "(,)", '(-1,"a ""b"", (c)\\\\ ")')),
    Edge("public.part", ("(1,a)", "(,)")),
    Edge(
        "public.deep",
        ('("(1,a)","{sad,ü,NULL}",5,"[1,5)")', "(,,,)", '("(,)",{},9,empty)'),
    ),
    Edge("public.span", ("empty", "[1.5,2)", "(,Infinity]", "(,)")),
    Edge("public.words", ("empty", "[a,ü]", '["",)')),
    Edge("public.between", ("empty", "[low,high]", "[low,)")),
]  # fmt: skip


@pytest.fixture
def users_types(source: Database, dest: Database) -> None:
    """Make types of the same names on both sides; their OIDs differ."""
    source.execute(OTHER_ORDER)
    dest.execute(OWN_TYPES)
    oids = [
        database.fetch(
            "SELECT oid FROM pg_type WHERE typname = ANY (%s) ORDER BY typname",
            [[edge.name.removeprefix("public.") for edge in OWN]],
        )
        for database in (source, dest)
    ]
    assert len(oids[0]) == len(OWN)
    assert all(one != other for one, other in zip(*oids, strict=True))


@pytest.mark.usefixtures("users_types")
def test_types_of_users_are_copied_exactly(source: Database, dest: Database) -> None:
    shape = with_edges(OWN)
    check_exact(source, dest, shape)
    check_exact(dest, source, shape)


@pytest.mark.usefixtures("users_types")
def test_types_of_users_go_over_in_text_format_as_well(source: Database, dest: Database) -> None:
    names = [Edge("regtype", ("public.mood", "public.pair[]")), Edge("regclass", ("public.pair",))]
    shape = with_edges([*OWN, *names])
    check_exact(source, dest, shape)
    check_exact(dest, source, shape)


def check_either(source: Database, dest: Database, shape: Shape, words: str | None) -> None:
    """Copy; where words are given it fails by them, and nothing has changed."""
    if words is None:
        check_exact(source, dest, shape)
        return
    make_source(source, shape)
    make_dest(dest, replace(shape, stale=True))
    before = text_of(dest, shape.into, shape)
    sides = {"source": source.dsn, "dest": dest.dsn}

    with pytest.raises(CopyFailed, match=words):
        copypipe.copy(
            qualified(shape.table), into=qualified(shape.into), **sides, all=True, yes=True
        )

    assert text_of(dest, shape.into, shape) == before


NO_LABEL = "invalid text representation\\n.*22P02; row 1 of the copy; column c"
TRUTHS = {
    "a label that both have": ("mood", "mood", "ok", None),
    "a label that the dest lacks": ("mood", "mood", "gone", NO_LABEL),
    "a label inside an array": ("mood[]", "mood[]", "{ok,gone}", NO_LABEL),
    "a label inside a row": ("kept", "kept", "(1,gone)", NO_LABEL),
    "a text that is a label": ("text", "mood", "ok", None),
    "a text that is none": ("text", "mood", "Ok", NO_LABEL),
    "a label that becomes a text": ("mood", "text", "gone", None),
    "texts that are labels": ("text[]", "mood[]", "{ok,NULL}", None),
    "a domain's base that the domain takes": ("int4", "even", "2", None),
    "a domain's base that the domain forbids": ("int4", "even", "3", "domain public.even"),
    "a domain of the source's base": ("even", "int4", "4", None),
    "elements that the domain takes": ("int4[]", "even[]", "{2,NULL}", None),
    "an element that the domain forbids": ("int4[]", "even[]", "{2,3}", "domain public.even"),
    "elements of the source's domain": ("even[]", "int8[]", "{2,NULL}", None),
    "a domain that is wider": ("int8", "even", "2", None),
    "a number that the domain's base cannot hold": ("int8", "even", "8589934592", "out of range"),
    "a row that becomes a text": ("kept", "text", '(1,gone)', None),
    "a base type of the user that becomes a text": ("mine", "text", "a b", None),
}  # fmt: skip

MINE = """
    CREATE TYPE public.mine;
    CREATE FUNCTION public.mine_in(cstring) RETURNS public.mine
        LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION public.mine_out(public.mine) RETURNS cstring
        LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE FUNCTION public.mine_recv(internal) RETURNS public.mine
        LANGUAGE internal IMMUTABLE STRICT AS 'textrecv';
    CREATE FUNCTION public.mine_send(public.mine) RETURNS bytea
        LANGUAGE internal IMMUTABLE STRICT AS 'textsend';
    CREATE TYPE public.mine (INPUT = public.mine_in, OUTPUT = public.mine_out,
                             RECEIVE = public.mine_recv, SEND = public.mine_send, LIKE = text);
"""


def make_truths(source: Database, dest: Database) -> None:
    """Make types of the same names that differ a little; in the dest's there is less room."""
    for database, labels in ((source, "'gone', 'ok'"), (dest, "'ok'")):
        database.execute(
            f"CREATE TYPE public.mood AS ENUM ({labels});"
            "CREATE DOMAIN public.even AS int4 CHECK (VALUE % 2 = 0);"
            "CREATE TYPE public.kept AS (a int4, m public.mood);" + MINE
        )


def own(name: str) -> str:
    built_in = ("text", "int4", "int8")
    return name if name.removesuffix("[]") in built_in else f"public.{name}"


@pytest.mark.parametrize(("here", "there", "value", "words"), TRUTHS.values(), ids=TRUTHS.keys())
@pytest.mark.one_of(8)
def test_what_the_types_of_users_are_made_of_decides(
    kept_source: Database,
    kept_dest: Database,
    here: str,
    there: str,
    value: str,
    words: str | None,
) -> None:
    make_truths(kept_source, kept_dest)
    column = Column("c", own(here), (value, None), type_at_dest=own(there))

    check_either(kept_source, kept_dest, Shape((column,), order=(0,), rows=2), words)


def test_a_value_that_text_format_cannot_bring_is_told_by_its_place(
    kept_source: Database, kept_dest: Database
) -> None:
    kept_source.execute("CREATE TABLE public.here (a int)")
    shape = Shape((Column("c", "regclass", ("pg_class", "public.here")),), order=(0,), rows=2)

    check_either(kept_source, kept_dest, shape, "42P01; row 2 of the copy; column c")


# -------------------------------------------------------------- extensions, and an older server

CONTRIB = ("hstore", "citext", "ltree")
EXTENDED = [
    Edge("public.hstore", ("", '"a"=>"1", "b"=>NULL', '"ü"=>"\\"quoted\\" \\\\"')),
    Edge("public.citext", ("", "Abc", "abc", "ÜBER", "a  ")),
    Edge("public.ltree", ("", "Top", "Top.Science.Astronomy")),
    Edge("public.lquery", ("*", "Top.*{1,2}.a|b@*")),
    Edge("public.ltxtquery", ("a & !b", "a* | b@")),
]


@pytest.fixture(scope="module")
def local() -> Iterator[Server]:
    """Yield a server of the oldest local installation."""
    found = launcher.find_local()
    if not found:
        pytest.skip("no local PostgreSQL installation")
    with ExitStack() as stack:
        try:
            server = launch_one(stack, "local", found[-1])
        except Broken as error:
            pytest.skip(f"the local PostgreSQL does not start: {error}")
        yield server


@pytest.fixture
def elsewhere(local: Server) -> Iterator[Database]:
    """Yield a database of that server."""
    with encoded(local, "UTF8") as database:
        yield database


@pytest.fixture
def extended(
    source: Database, dest: Database, request: pytest.FixtureRequest
) -> tuple[Database, Database]:
    """Return two databases with the extensions; the numbers of their types differ."""
    pair = (source, dest)
    if not all(map(has_contrib, pair)):
        other = request.getfixturevalue("elsewhere")
        pair = (other, request.getfixturevalue("another"))
        if not has_contrib(other):
            pytest.skip(f"no server here has {', '.join(CONTRIB)}")
    for database, names in zip(pair, (CONTRIB, CONTRIB[::-1]), strict=True):
        for name in names:
            database.execute(f"CREATE EXTENSION {name} SCHEMA public")
    return pair


@pytest.fixture
def another(local: Server) -> Iterator[Database]:
    """Yield a second database of the local server."""
    with encoded(local, "UTF8") as database:
        yield database


def has_contrib(database: Database) -> bool:
    names = database.fetch("SELECT name FROM pg_available_extensions")
    return {*CONTRIB} <= {name for (name,) in names}


def test_types_of_extensions_are_copied_exactly(extended: tuple[Database, Database]) -> None:
    source, dest = extended
    oids = [database.scalar("SELECT 'public.citext'::regtype::oid") for database in extended]
    assert oids[0] != oids[1]

    for pair in (extended, extended[::-1]):
        check_exact(*pair, with_edges(EXTENDED))
        check_exact(*pair, with_edges([*EXTENDED, Edge("regclass", ("pg_class",))]))
    citext = Column("c", "public.citext", ("Abc", ""), type_at_dest="text")
    check_exact(source, dest, Shape((citext,), order=(0,), rows=2))
    text = Column("c", "text", ("Abc", ""), type_at_dest="public.citext")
    check_exact(source, dest, Shape((text,), order=(0,), rows=2))
    check_refused(source, dest, [("public.ltree", "public.lquery")], "c0: public.ltree at the")
    check_refused(source, dest, [("text", "public.hstore")], "c0: text at the source")


@pytest.mark.slow
def test_an_older_server_takes_part(dest: Database, elsewhere: Database) -> None:
    """As a dest, with the edges of every type of the newer one."""
    check_edges(dest, elsewhere)


@pytest.mark.slow
def test_an_older_server_is_a_source(source: Database, elsewhere: Database) -> None:
    check_edges(elsewhere, source)


@pytest.mark.parametrize(
    "type_",
    [
        "interval",
        "public.lapse",
        "interval[]",
        "public.term",
    ],
)
@pytest.mark.one_of(3)
def test_an_infinite_interval_does_not_become_a_finite_one(
    source: Database, elsewhere: Database, type_: str
) -> None:
    """interval_recv looks at nothing before 17: infinity would be 178956970 years."""
    if not elsewhere.server.major < 17 <= source.server.major:
        pytest.skip("no two servers of which one alone knows infinite intervals")
    for database in (source, elsewhere):
        database.execute(
            "CREATE TYPE public.term AS (i interval); CREATE DOMAIN public.lapse AS interval"
        )
    shape = {"interval[]": "{{{},NULL}}", "public.term": "({})"}.get(type_, "{}")

    def column(value: str) -> Shape:
        values = (shape.format('"1 day 00:00:01"' if shape != "{}" else "1 day"), None)
        return Shape((Column("c", type_, (*values, shape.format(value))),), order=(0,), rows=3)

    check_exact(source, elsewhere, column("-178000000 years"))
    for infinite in ("infinity", "-infinity"):
        check_either(source, elsewhere, column(infinite), "infinit|invalid datetime format")
    check_exact(elsewhere, source, column("-178000000 years"))


# ------------------------------------------------------------------------- planted faults

_select = copies.select


def in_its_own_order(table: Any, columns: Any, slice_: Any) -> Any:
    """Select the columns by their place in the source, as SELECT * would."""
    places = [column.name for column in table.columns]
    return _select(table, sorted(columns, key=lambda pair: places.index(pair[0].name)), slice_)


def test_the_property_sees_columns_that_are_paired_by_position(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "select", in_its_own_order)

    with pytest.raises(AssertionError):
        check_random_tables(source, dest, max_examples=60, phases=(Phase.generate,))


def test_the_check_sees_two_columns_of_one_type_that_are_swapped(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(
        columns=(Column("a", "int4", ("1",)), Column("b", "int4", ("2",))), order=(0, 1), rows=1
    )
    check_exact(source, dest, shape)
    monkeypatch.setattr(copies, "select", in_its_own_order)

    with pytest.raises(AssertionError, match=r"== b'0\\t1\\t2\\n'"):
        check_exact(source, dest, shape)


def test_what_would_be_sent_as_another_type_is_refused(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = (Column("a", "int4", ("1",)), Column("b", "text", ("2",)))
    monkeypatch.setattr(copies, "select", in_its_own_order)

    with pytest.raises(AssertionError, match=r'source: "[ab]" would be sent as'):
        check_exact(source, dest, Shape(columns, order=(0, 1)))


def send_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = crossings.Crossing("same", "planted")
    monkeypatch.setattr(crossings, "decide", lambda *_: planted)


def test_the_check_sees_a_value_that_another_type_reads_as_another_value(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = Column("a", "int8", ("42",), type_at_dest="numeric")
    send_as_it_is(monkeypatch)

    with pytest.raises(AssertionError, match=r"== b'0\\t42\\n'"):
        check_exact(source, dest, Shape((column,), order=(0,)))


# ------------------------------------------------------------------------------- what is refused


def check_refused(
    source: Database, dest: Database, pairs: list[tuple[str, str]], *reasons: str
) -> PlanRefused:
    """Copy between columns c0, c1, ... of these types: refused for the reasons, nothing changed."""
    for database, types in ((source, [s for s, _ in pairs]), (dest, [d for _, d in pairs])):
        columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(types))
        database.execute(
            "DROP TABLE IF EXISTS public.things;"
            f"CREATE TABLE public.things (n int4, {columns});"
            "INSERT INTO public.things (n) VALUES (1), (2)"
        )
    dest.execute("UPDATE public.things SET n = n + 10")
    before = dest.digest("public.things", "n")

    try:
        copypipe.copy("public.things", source=source.dsn, dest=dest.dsn, all=True, yes=True)
    except CopypipeError as error:
        problem = error
    else:
        raise AssertionError(f"not refused: {pairs}")

    assert isinstance(problem, PlanRefused)
    assert problem.exit_code == 6
    assert problem.message == "the columns of public.things and public.things do not fit"
    for reason in reasons:
        assert reason in problem.detail
    assert dest.digest("public.things", "n") == before
    return problem


APART = """
    CREATE TYPE public.mood AS ENUM ({labels});
    CREATE TYPE public.moods AS RANGE (subtype = public.mood);
    CREATE TYPE public.pair AS ({});
    CREATE TYPE public.span AS RANGE (subtype = {});
    CREATE TYPE public.words AS RANGE (subtype = text, collation = {});
"""

REFUSED = [
    *(("integer", "integer[]"), ("integer[]", "integer"), ("bigint", "double precision")),
    *(("timestamp without time zone", "timestamp with time zone"), ("json", "jsonb")),
    *(("timestamp with time zone", "timestamp without time zone"), ("text", "integer")),
    *(("int4range", "int8range"), ("double precision", "numeric"), ("text", "bytea")),
    *(("public.pair", "public.words"), ("public.span", "public.span")),
]


def test_what_may_mean_something_else_is_refused_by_name(source: Database, dest: Database) -> None:
    source.execute(APART.format("a int4, b text", "float8", '"C"', labels="'a', 'b'"))
    dest.execute(APART.format("b text, a int4", "numeric", '"POSIX"', labels="'b', 'a'"))
    for one, other in REFUSED:
        reason = f"c0: {one} at the source, {other} at the dest"
        check_refused(source, dest, [(one, other)], *([reason] if one != other else []))
    check_refused(
        source,
        dest,
        [("public.pair", "public.pair")],
        "c0: public.pair has the fields a, b at the source, public.pair b, a at the dest",
    )
    check_refused(
        source, dest, [("public.moods", "public.moods")], "the order of their labels differs"
    )
    check_refused(
        source, dest, [("public.words", "public.words")], "ranges that sort their bounds differ"
    )


LOSSY = [
    ("numeric(10,2)", "numeric(10,1)", "digits may be rounded off"),
    ("numeric", "numeric(12,4)", "digits may be rounded off"),
    ("timestamp(3) with time zone", "timestamp(0) with time zone", "may be cut off"),
    ("interval", "interval day to second", "may be cut off"),
    ("character varying[]", "character varying(5)[]", "blanks at the end may be cut"),
]


def test_what_would_be_rounded_or_cut_is_refused_by_name(source: Database, dest: Database) -> None:
    for one, other, reason in LOSSY:
        check_refused(source, dest, [(one, other)], "c0: ", reason)


def test_what_no_server_reads_back_is_refused_by_name(source: Database, dest: Database) -> None:
    for type_ in ("gtsvector", "pg_node_tree"):
        check_refused(source, dest, [(type_,) * 2], f"c0: {type_} is never read back by any server")


def test_a_base_type_of_a_user_is_refused_by_name(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute(MINE)
    for type_ in ("public.mine", "public.mine[]"):
        check_refused(
            source, dest, [(type_,) * 2], "c0: public.mine is a base type of no extension"
        )


def test_all_that_does_not_fit_is_named_in_one_message(source: Database, dest: Database) -> None:
    problem = check_refused(
        source,
        dest,
        [("gtsvector", "gtsvector"), ("int8", "float8"), ("text", "text"), ("time", "time(0)")],
    )

    assert problem.detail == (
        "c0: gtsvector is never read back by any server; "
        "c1: bigint at the source, double precision at the dest; "
        "c3: time without time zone as time(0) without time zone: fractions or fields of a time "
        "may be cut off."
    )


def test_the_check_of_refusals_sees_a_planted_fault(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("bigint", "double precision")]
    check_refused(source, dest, pairs)
    send_as_it_is(monkeypatch)

    with pytest.raises(AssertionError, match="not refused"):
        check_refused(source, dest, pairs)
