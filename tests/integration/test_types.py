"""Random tables of built-in types arrive exactly as they were; every other type is refused by name.

Values are written as text and read by the server. The oracle is the text COPY of both sides under
pinned settings: it knows nothing of binary COPY or of the copypipe package.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import copypipe
from copypipe import hazards
from copypipe.errors import CopypipeError, PlanRefused
from copypipe.statements import copies
from plugins.databases import Database

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


def check_exact(source: Database, dest: Database, shape: Shape) -> None:
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
    check_random_tables(source, dest, max_examples=100)


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
    check_every_type(source, dest, max_examples=20)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_rows_of_every_type_are_copied_exactly(source: Database, dest: Database) -> None:
    check_every_type(source, dest, max_examples=500)


def test_every_type_of_the_catalog_with_binary_functions_is_in_these_tests_or_excused(
    source: Database, dest: Database
) -> None:
    """A type that a new version brings must be thought of."""
    tested = {source.scalar("SELECT %s::regtype::oid", [kind.name]) for kind in kinds(source, dest)}
    names = source.fetch(
        "SELECT typname FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND oid < 10000"
        " AND typelem = 0 AND typsend <> 0 AND typreceive <> 0 AND NOT oid = ANY (%s)",
        [list(tested)],
    )

    assert {name for (name,) in names} <= REFUSED | EXCUSED


REFUSED = {
    *("regproc", "regprocedure", "regoper", "regoperator", "regclass", "regcollation", "regtype"),
    *("regconfig", "regdictionary", "regnamespace", "regrole"),
    *("pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
}
EXCUSED = {
    "cid",  # as xid
    "money",  # where lc_monetary differs
    "txid_snapshot",  # as pg_snapshot
    "xml",  # a test of its own
}


def reads_xml(database: Database) -> bool:
    try:
        database.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def test_xml_is_copied_exactly(source: Database, dest: Database) -> None:
    if not (reads_xml(source) and reads_xml(dest)):
        pytest.skip("a server was built without libxml")
    values = ("<a>ü</a>", "text <b/> and more", None, '<!DOCTYPE a><a b="&lt;"/>')

    check_exact(source, dest, Shape((Column("x", "xml", values),), order=(0,), rows=4))


@pytest.mark.parametrize("type_", ["int2vector", "oidvector"])
def test_vectors_of_the_catalog_are_copied_exactly(
    source: Database, dest: Database, type_: str
) -> None:
    check_exact(source, dest, Shape((Column("v", type_, ("1 2 3", None)),), order=(0,), rows=2))


# ------------------------------------------------------------------------- planted faults

_select = copies.select


def in_its_own_order(table: Any, columns: Any, slice_: Any) -> Any:
    """Select the columns by their place in the source, as SELECT * would."""
    return _select(table, [c for c in table.columns if c in columns], slice_)


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


def test_the_check_sees_a_value_that_another_type_reads_as_another_value(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = Column("a", "int8", ("42",), type_at_dest="numeric")
    monkeypatch.setattr(hazards, "obstacle", lambda *_: None)

    with pytest.raises(AssertionError, match=r"== b'0\\t42\\n'"):
        check_exact(source, dest, Shape((column,), order=(0,)))


# --------------------------------------------------------------- what must not cross as bytes

OWN_TYPES = """
    CREATE TYPE public.mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN public.positive AS int4 CHECK (VALUE > 0);
    CREATE TYPE public.pair AS (a int4, b text);
    CREATE TYPE public.span AS RANGE (subtype = float8);
"""


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


def test_types_that_cannot_cross_as_bytes_are_refused_by_name(
    source: Database, dest: Database
) -> None:
    oids = "holds OIDs, which name other objects in another database"

    for type_, reason in [
        ("regclass", oids),
        ("regtype[]", oids),
        ("regrole", oids),
        ("aclitem", "has no binary form"),
        ("aclitem[]", "has no binary form"),
        ("gtsvector", "has no binary form"),
        ("pg_node_tree", "has no binary form"),
    ]:
        check_refused(source, dest, [(type_, type_)], f"c0: {type_} {reason}")


USERS_TYPES = ["mood", "mood[]", "positive", "positive[]", "pair", "pair[]", "span"]


@pytest.fixture
def users_types(source: Database, dest: Database) -> None:
    """Make types of the same names on both sides; their OIDs differ."""
    source.execute("CREATE TYPE public.first AS (a int4)")
    for database in (source, dest):
        database.execute(OWN_TYPES)


@pytest.mark.usefixtures("users_types")
def test_types_of_users_are_refused_by_name(source: Database, dest: Database) -> None:
    for type_ in USERS_TYPES:
        check_refused(source, dest, [(f"public.{type_}",) * 2], f"c0: public.{type_}")
    check_refused(source, dest, [("information_schema.cardinal_number",) * 2], "cardinal_number")


@pytest.mark.usefixtures("users_types")
def test_types_of_users_are_refused_for_what_they_are(source: Database, dest: Database) -> None:
    check_refused(source, dest, [("mood", "mood")], "c0: public.mood is not a built-in type")


MISMATCHES = [
    ("integer", "bigint"),
    ("bigint", "numeric"),
    ("character varying(10)", "character varying(20)"),
    ("text", "character varying"),
    ("numeric(10,2)", "numeric(12,4)"),
    ("timestamp without time zone", "timestamp with time zone"),
    ("timestamp(3) with time zone", "timestamp(0) with time zone"),
    ("integer", "integer[]"),
    ("json", "jsonb"),
    ("int4range", "int8range"),
    ("bit(3)", "bit(4)"),
]


def test_another_type_or_modifier_is_refused_in_both_directions(
    source: Database, dest: Database
) -> None:
    for one, other in MISMATCHES:
        for pair in ((one, other), (other, one)):
            check_refused(
                source, dest, [pair], "c0: {} at the source, {} at the dest".format(*pair)
            )


def test_all_that_does_not_fit_is_named_in_one_message(source: Database, dest: Database) -> None:
    problem = check_refused(
        source,
        dest,
        [("regclass", "regclass"), ("int4", "int8"), ("text", "text"), ("aclitem", "aclitem")],
    )

    assert problem.detail == (
        "c0: regclass holds OIDs, which name other objects in another database; "
        "c1: integer at the source, bigint at the dest; "
        "c3: aclitem has no binary form."
    )


def test_any_two_types_that_differ_are_refused(source: Database, dest: Database) -> None:
    known = kinds(source, dest)
    names = {kind.name: source.scalar("SELECT to_regtype(%s)::oid", [kind.name]) for kind in known}
    pairs = st.tuples(st.sampled_from(sorted(names)), st.sampled_from(sorted(names)))

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.lists(pairs.filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=5))
    def check(drawn: list[tuple[str, str]]) -> None:
        problem = check_refused(source, dest, drawn)
        named = [part.split(":")[0] for part in problem.detail.split("; ")]
        assert named == [f"c{number}" for number in range(len(drawn))]

    check()


def test_the_check_of_refusals_sees_a_planted_fault(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("bigint", "numeric")]
    check_refused(source, dest, pairs)
    monkeypatch.setattr(hazards, "obstacle", lambda *_: None)

    with pytest.raises(AssertionError, match="not refused"):
        check_refused(source, dest, pairs)
