"""How a column crosses: two types and what surrounds them in, a decision with its reason out."""

import re
from dataclasses import replace

import pytest

from copypipe.crossings import Asked, Crossing, Sides, Surroundings, decide, difference
from copypipe.types import Field, Kind, Type, Value, leaves

# ------------------------------------------------------------------------------ types as in SQL
#
# "numeric(10,2)[]" and the like, as pg_type.dat and the typmod functions have them.

OIDS = {
    **{"bool": 16, "bytea": 17, "char": 18, "name": 19, "int8": 20, "int2": 21, "int2vector": 22},
    **{"int4": 23, "regproc": 24, "text": 25, "oid": 26, "tid": 27, "xid": 28, "oidvector": 30},
    **{"json": 114, "xml": 142, "pg_node_tree": 194, "cidr": 650, "float4": 700, "float8": 701},
    **{"macaddr8": 774, "money": 790, "macaddr": 829, "inet": 869, "aclitem": 1033},
    **{"bpchar": 1042, "varchar": 1043, "date": 1082, "time": 1083, "timestamp": 1114},
    **{"timestamptz": 1184, "interval": 1186, "timetz": 1266, "bit": 1560, "varbit": 1562},
    **{"numeric": 1700, "refcursor": 1790, "regclass": 2205, "regtype": 2206, "record": 2249},
    **{"uuid": 2950, "pg_lsn": 3220, "tsvector": 3614, "jsonb": 3802, "regrole": 4096},
    **{"int4range": 3904, "int8range": 3926, "int4multirange": 4451},
}
RANGES = {"int4range": "int4", "int8range": "int8"}
WITHOUT_BINARY = {"aclitem"}

# INTERVAL_MASK of each field (timestamp.h), and what all precision and all fields are.
YEAR, MONTH, DAY, HOUR, MINUTE, SECOND = (1 << bit for bit in (2, 1, 3, 10, 11, 12))
FIELDS = {
    "": 0x7FFF,
    " year to month": YEAR | MONTH,
    " day": DAY,
    " day to second": DAY | HOUR | MINUTE | SECOND,
}
_PARSED = re.compile(r"(\w+)((?: year to month| day to second| day)?)(?:\(([-\d,]+)\))?((?:\[\])?)")


def of(sql: str) -> Value:
    """Return a built-in type as the catalog would describe it."""
    name, fields, numbers, array = _PARSED.fullmatch(sql).groups()
    if array:
        element = of(sql.removesuffix("[]"))
        bare = replace(element, typmod=-1, name=name)
        made_of = Type(OIDS[name] + 5000, f"{name}[]", "array", True, True, of=bare)
        return Value(made_of, element.typmod, sql)
    typmod = -1
    if name == "interval" and (fields or numbers):
        typmod = FIELDS[fields] << 16 | int(numbers or 0xFFFF)
    elif name == "numeric" and numbers:
        precision, _, scale = numbers.partition(",")
        typmod = (int(precision) << 16 | int(scale or 0) & 0x7FF) + 4
    elif numbers:
        typmod = int(numbers) + 4 * (name in ("varchar", "bpchar"))
    kind: Kind = "base"
    part, rules = None, ""
    if name in RANGES:
        kind, part, rules = "range", of(RANGES[name]), f"{name}_canonical {RANGES[name]}_ops"
    elif name.endswith("multirange"):
        kind, part = "multirange", of(name.replace("multi", ""))
    elif name == "record":
        kind = "pseudo"
    binary = name not in WITHOUT_BINARY
    return Value(Type(OIDS[name], name, kind, binary, binary, of=part, rules=rules), typmod, sql)


_oids = iter(range(16384, 20000))


def own(name: str, kind: Kind, **changes: object) -> Value:
    """Return a type of a user; each has an OID of its own, as on two servers."""
    return Value(Type(next(_oids), name, kind, True, True, **changes), -1, name)


def enum(*labels: str) -> Value:
    return own("public.mood", "enum", labels=labels)


def domain(base: Value) -> Value:
    return own("public.positive", "domain", of=base)


def row(**fields: Value) -> Value:
    return own("public.pair", "composite", fields=tuple(map(Field, fields, fields.values())))


def array(element: Value) -> Value:
    return own(f"{element.name}[]", "array", of=element)


def ranged(base: Value, rules: str = "- float8_ops") -> Value:
    return own("public.span", "range", of=base, rules=rules)


def extended(extension: str, version: str = "1.0") -> Value:
    return own(f"public.{extension.split('.')[1]}", "base", extension=extension, version=version)


HERE = Surroundings(major=17, encoding="UTF8", money="0000000000000064")
OLDER = replace(HERE, major=16)
ASCII = replace(HERE, encoding="SQL_ASCII")
OTHER_MONEY = replace(HERE, money="0000000000000001")


def crossing(
    source: Value | str,
    dest: Value | str,
    *,
    source_has: Surroundings = HERE,
    dest_has: Surroundings = HERE,
    asked: Asked = None,
) -> Crossing:
    one, other = (of(v) if isinstance(v, str) else v for v in (source, dest))
    return decide(one, other, Sides(source_has, dest_has), asked)


# ----------------------------------------------------------------------- every built-in decision

IN_FULL = "a value that does not fit fails the copy"
DECISIONS = [
    # the same type, whatever its modifier says
    ("int4", "int4", "same", "the same built-in type"),
    ("numeric(10,2)", "numeric(10,2)", "same", ""),
    ("numeric(10,2)", "numeric", "same", ""),
    ("numeric(10,2)", "numeric(12,4)", "same", ""),
    ("numeric(10,2)", "numeric(5,2)", "same", ""),  # too many digits raise an error
    ("numeric(4,-2)", "numeric(10,2)", "same", ""),
    ("numeric(4,-2)", "numeric(9,-1)", "same", ""),
    ("numeric(3,5)", "numeric(9,5)", "same", ""),
    ("numeric", "numeric(10,2)", "refuse", "digits may be rounded off"),
    ("numeric(10,2)", "numeric(10,1)", "refuse", "digits may be rounded off"),
    ("numeric(10,2)", "numeric(4,-2)", "refuse", "digits may be rounded off"),
    ("numeric(4,-1)", "numeric(9,-2)", "refuse", "digits may be rounded off"),
    ("numeric(10,0)", "numeric(10,-1)", "refuse", "digits may be rounded off"),
    ("time(3)", "time", "same", ""),
    ("time(3)", "time(6)", "same", ""),
    ("time", "time(6)", "same", ""),
    ("time", "time(3)", "refuse", "time as time(3): fractions or fields of a time may be cut off"),
    ("timetz(3)", "timetz(2)", "refuse", "fractions"),
    ("timestamp(0)", "timestamp(3)", "same", ""),
    ("timestamp", "timestamp(5)", "refuse", "fractions"),
    ("timestamptz(3)", "timestamptz(0)", "refuse", "fractions"),
    ("interval(3)", "interval", "same", ""),
    ("interval(3)", "interval(6)", "same", ""),
    ("interval(3)", "interval(0)", "refuse", "fractions"),
    ("interval", "interval(3)", "refuse", "fractions"),
    ("interval day to second", "interval", "same", ""),
    ("interval day to second", "interval day to second", "same", ""),
    ("interval", "interval day to second", "refuse", "fields of a time may be cut off"),
    ("interval day", "interval day to second", "refuse", "fields"),
    ("interval year to month", "interval day", "refuse", "fields"),
    ("varchar(5)", "varchar(10)", "same", "the same built-in type"),
    ("varchar(5)", "varchar", "same", ""),
    ("varchar", "varchar(5)", "same", "a value of more than 5 characters fails the copy"),
    ("varchar(9)", "varchar(5)", "same", "a value of more than 5 characters fails the copy"),
    ("bpchar(5)", "bpchar(3)", "same", ""),  # what is cut without an error means nothing
    ("bpchar(3)", "bpchar(5)", "same", ""),
    ("bpchar", "bpchar(5)", "same", ""),
    ("bit(3)", "bit(5)", "same", ""),  # any other length raises an error
    ("varbit(8)", "varbit(4)", "same", ""),
    ("varbit", "varbit(4)", "same", ""),
    ("money", "money", "same", ""),
    ("oid", "oid", "same", "what oid names is of the source's cluster"),
    ("xid[]", "xid[]", "same", "what xid names is of the source's cluster"),
    # without bytes that mean the same elsewhere
    ("regclass", "regclass", "text format", "names an object by a number of each database"),
    ("regtype[]", "regtype[]", "text format", "regtype names an object"),
    ("regrole", "regrole", "text format", "names an object"),
    ("oidvector", "oidvector", "text format", "an empty one cannot be received in binary"),
    ("int2vector", "int2vector", "text format", "an empty one"),
    ("aclitem", "aclitem", "text format", "aclitem has no binary form at the source"),
    ("aclitem[]", "aclitem[]", "text format", "aclitem has no binary form at the source"),
    ("pg_node_tree", "pg_node_tree", "refuse", "is never read back by any server"),
    # numbers and times
    ("int2", "int4", "cast", "every value fits"),
    ("int2", "int8", "cast", "every value fits"),
    ("int4", "int8", "cast", "every value fits"),
    ("int8", "int4", "cast", IN_FULL),
    ("int8", "int2", "cast", IN_FULL),
    ("int4", "int2", "cast", IN_FULL),
    ("int8", "numeric", "cast", "every value fits"),
    ("int4", "numeric(5,0)", "cast", "fails the copy by its precision"),
    ("int4", "numeric(4,-2)", "refuse", "digits may be rounded off"),
    ("int2", "float4", "cast", "every value fits"),
    ("int4", "float8", "cast", "every value fits"),
    ("float4", "float8", "cast", "every value fits"),
    ("int4", "float4", "refuse", "int4 at the source, float4 at the dest"),
    ("int8", "float8", "refuse", "int8 at the source, float8 at the dest"),
    ("float8", "float4", "refuse", ""),
    ("float8", "int4", "refuse", ""),
    ("float8", "numeric", "refuse", ""),
    ("numeric", "float8", "refuse", ""),
    ("numeric", "int4", "refuse", ""),
    ("numeric(5,0)", "int8", "cast", f"without digits behind the point; {IN_FULL}"),
    ("numeric(4,-2)", "int2", "cast", f"without digits behind the point; {IN_FULL}"),
    ("numeric(5,1)", "int8", "refuse", ""),
    ("money", "numeric", "refuse", ""),
    ("bool", "int4", "refuse", ""),
    ("int4", "bool", "refuse", ""),
    ("oid", "int8", "cast", "every value fits"),
    ("int8", "oid", "cast", IN_FULL),
    ("int4", "oid", "refuse", ""),
    ("oid", "int4", "refuse", ""),
    ("oid", "regclass", "refuse", ""),
    ("date", "timestamp", "cast", "midnight of that day"),
    ("date", "timestamptz", "refuse", ""),
    ("timestamp", "timestamptz", "refuse", ""),
    ("timestamptz", "timestamp", "refuse", ""),
    ("timestamptz", "date", "refuse", ""),
    ("timestamp", "date", "refuse", ""),
    ("time", "timetz", "refuse", ""),
    ("timetz", "time", "refuse", ""),
    ("interval", "time", "refuse", ""),
    ("cidr", "inet", "cast", "every value fits"),
    ("inet", "cidr", "refuse", ""),
    ("macaddr", "macaddr8", "cast", "every value fits"),
    ("macaddr8", "macaddr", "cast", IN_FULL),
    ("bit(3)", "varbit", "same", "another length fails the copy"),
    ("varbit", "bit(3)", "same", "another length fails the copy"),
    ("int4range", "int8range", "refuse", "int4range at the source, int8range at the dest"),
    # texts
    ("text", "varchar", "text value", "the dest reads its text"),
    ("varchar(5)", "text", "text value", "the dest reads its text"),
    ("text", "varchar(5)", "text value", "a value of more than 5 characters fails the copy"),
    ("bpchar(5)", "text", "text value", ""),
    ("name", "text", "text value", ""),
    ("text", "bpchar(5)", "refuse", "text at the source"),
    ("text", "name", "refuse", ""),
    ("text", "json", "text value", "what is no json fails the copy"),
    ("text", "xml", "refuse", "text at the source, xml at the dest"),
    ("xml", "xml", "same", ""),
    ("text", "jsonb", "refuse", ""),
    ("text", "bytea", "refuse", ""),
    ("text", "int4", "refuse", ""),
    ("text", "refcursor", "text value", ""),
    ("refcursor", "text", "text value", ""),
    ("json", "text", "text value", ""),
    ("jsonb", "json", "text value", ""),
    ("json", "jsonb", "refuse", ""),
    ("xml", "varchar", "text value", ""),
    ("json", "xml", "refuse", ""),
    # whatever has a text form into text
    ("int4", "text", "cast", "the dest keeps its text"),
    ("int8", "varchar(3)", "cast", "a value of more than 3 characters fails the copy"),
    ("bool", "text", "cast", ""),
    ("timestamptz", "text", "cast", ""),
    ("bytea", "text", "cast", ""),
    ("tsvector", "text", "cast", ""),
    ("int4[]", "text", "cast", ""),
    ("int4range", "text", "cast", ""),
    ("int4", "bpchar(5)", "refuse", ""),
    ("int4", "json", "refuse", ""),
    ("money", "text", "refuse", ""),
    ("char", "text", "refuse", ""),
    ("regclass", "text", "refuse", ""),
    ("regclass[]", "text", "refuse", ""),
    ("pg_node_tree", "text", "refuse", ""),
    ("record", "text", "refuse", ""),
    # arrays
    ("int4[]", "int4[]", "same", "the same built-in type"),
    ("int4", "int4[]", "refuse", "int4 at the source, int4[] at the dest"),
    ("int4[]", "int4", "refuse", ""),
    ("int4[]", "int8[]", "cast", "element by element: every value fits"),
    ("int8[]", "int2[]", "cast", f"element by element: {IN_FULL}"),
    ("int8[]", "text[]", "cast", "element by element: the dest keeps its text"),
    ("text[]", "varchar[]", "text value", "element by element: the dest reads its text"),
    ("varbit[]", "bit(3)[]", "cast", "element by element: the same bytes"),
    ("numeric(10,2)[]", "numeric(12,4)[]", "same", ""),
    ("numeric[]", "numeric(10,2)[]", "refuse", "digits may be rounded off"),
    ("time[]", "time(3)[]", "refuse", "fractions"),
    ("varchar(5)[]", "varchar(9)[]", "same", ""),
    ("varchar[]", "varchar(5)[]", "refuse", "blanks at the end may be cut"),
    ("text[]", "varchar(5)[]", "refuse", "blanks at the end of elements may be cut"),
    ("float8[]", "int4[]", "refuse", "float8 at the source, int4 at the dest"),
    ("int4multirange", "int4multirange", "same", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "dest", "decision", "reason"),
    DECISIONS,
    ids=[f"{one} into {other}" for one, other, *_ in DECISIONS],
)
def test_every_pair_has_its_decision_and_its_reason(
    source: str, dest: str, decision: str, reason: str
) -> None:
    found = crossing(source, dest)

    assert (found.decision, reason in found.reason) == (decision, True), found
    assert found.reason
    assert found.back is None
    assert found.unwanted in (None, "nameless")
    assert not found.by_request


INTO = [
    ("int4", "int4", None, None),
    ("int4", "int8", "int8", None),
    ("int4", "numeric(10,2)", "numeric", None),  # the dest's own typmod check shall raise
    ("date", "timestamp(3)", "timestamp", None),
    ("text", "varchar", None, None),
    ("text", "varchar(5)", None, 5),
    ("varchar", "varchar(5)", None, 5),
    ("varchar(5)", "varchar(6)", None, None),
    ("varchar(5)", "varchar(5)", None, None),
    ("bpchar(9)", "varchar(5)", "text", 5),
    ("jsonb", "json", "text", None),
    ("int4", "varchar(5)", "text", 5),
    ("varbit", "bit(3)", None, None),
    ("int4[]", "int8[]", "int8[]", None),
    ("text[]", "varchar[]", "varchar[]", None),
    ("bpchar(3)[]", "text[]", "text[]", None),
    ("varbit[]", "bit(3)[]", "bit[]", None),
]  # fmt: skip


@pytest.mark.parametrize(("source", "dest", "into", "longest"), INTO)
def test_a_cast_is_to_the_type_without_its_modifier(
    source: str, dest: str, into: str | None, longest: int | None
) -> None:
    """A cast to varchar(3) or to numeric(10,2) would cut and round in silence."""
    found = crossing(source, dest)

    assert (found.into.name if found.into else None, found.longest) == (into, longest)
    assert found.into is None or found.into.typmod == -1
    assert found.looks == (longest is not None)
    assert found.as_it_is == (into is None and longest is None)


# ------------------------------------------------------------------------- what surrounds a type


@pytest.mark.parametrize("name", ["money", "money[]"])
def test_money_needs_the_same_unit_on_both_sides(name: str) -> None:
    found = crossing(name, name, dest_has=OTHER_MONEY)

    assert (found.decision, found.reason) == (
        "refuse",
        "money counts parts of another lc_monetary at the dest",
    )
    inside = (row(a=of("money")), row(a=of("money")))
    assert crossing(*inside).decision == "same"
    assert crossing(*inside, dest_has=OTHER_MONEY).decision == "refuse"
    assert crossing("int4", "int4", dest_has=OTHER_MONEY).decision == "same"


def test_an_interval_may_be_infinite_since_17() -> None:
    for around, unwanted, major in (
        ({"dest_has": OLDER}, "infinite", 16),
        ({"source_has": OLDER}, "extreme", 17),
    ):
        alone = crossing("interval", "interval", **around)
        assert (alone.decision, alone.unwanted) == ("same", unwanted)
        assert alone.looks
        assert not alone.as_it_is
        assert f"PostgreSQL {major} reads intervals differently at their limits" in alone.reason

    for inside in (of("interval[]"), row(a=of("interval")), ranged(of("interval"))):
        assert crossing(inside, inside, dest_has=OLDER).decision == "text format"
        assert crossing(inside, inside).decision == "same"
    assert crossing("interval", "interval", source_has=OLDER, dest_has=OLDER).as_it_is
    assert crossing("interval", "text", dest_has=OLDER).decision == "cast"


@pytest.mark.parametrize("side", ["source_has", "dest_has"])
def test_lengths_count_bytes_where_the_encoding_is_sql_ascii(side: str) -> None:
    """What fits into so many bytes fits into as many characters, and not the other way round."""
    around = {side: ASCII}
    fits = [("varchar(5)", "varchar(5)"), ("varchar(3)", "varchar(5)")]
    unfit = [("varchar(9)", "varchar(5)"), ("text", "varchar(5)"), ("int4", "varchar(3)")]

    for one, other in [*unfit, *(fits if side == "dest_has" else [])]:
        for asked in (None, "cast"):
            found = crossing(one, other, **around, asked=asked)
            assert found.decision == "refuse", (one, other, asked)
            assert "counts bytes where the encoding is SQL_ASCII" in found.reason
    if side == "source_has":
        assert all(crossing(*pair, **around).as_it_is for pair in fits)
    assert crossing("text", "varchar", **around).decision == "text value"
    assert crossing("varchar(5)", "varchar", **around).decision == "same"
    both = crossing("varchar(9)", "varchar(5)", source_has=ASCII, dest_has=ASCII)
    assert (both.decision, both.longest) == ("same", 5)


# --------------------------------------------------------------------------------- users' types


def test_an_enum_is_told_by_its_labels() -> None:
    assert crossing(enum("sad", "ok"), enum("sad", "ok")) == Crossing(
        "same", "made of the same types on both sides"
    )
    assert crossing(enum("sad", "ok"), enum("ok", "new", "sad")).warning is None

    short = crossing(enum("sad", "it's", "ok"), enum("ok"))
    assert short.decision == "same"
    assert short.warning == (
        "public.mood of the dest lacks 'sad', 'it's': a row that holds it fails the copy"
    )
    assert crossing(array(enum("sad")), array(enum("ok"))).warning is not None
    assert crossing(row(m=enum("sad")), row(m=enum("ok"))).warning is not None
    assert crossing(domain(enum("sad")), enum("ok")).warning is not None


def test_an_enum_and_a_text_become_one_another() -> None:
    out = crossing(enum("sad"), "text")
    assert (out.decision, out.into.name) == ("text value", "text")
    back = crossing("text", enum("sad"))
    assert (back.decision, back.into) == ("text value", None)
    assert "a label that it lacks fails the copy" in back.reason
    assert crossing(array(enum("sad")), "text[]").decision == "text value"
    assert crossing("text[]", array(enum("sad"))).decision == "text value"
    assert crossing(enum("sad"), "json").decision == "refuse"
    assert crossing("int4", enum("sad")).decision == "refuse"


def test_domains_are_unwrapped_at_every_level() -> None:
    deep = domain(domain(of("int4")))

    for one, other in [
        (deep, of("int4")),
        (of("int4"), deep),
        (deep, domain(of("int4"))),
        (array(deep), of("int4[]")),
        (of("int4[]"), array(deep)),
        (domain(of("int4[]")), of("int4[]")),
        (row(a=deep), row(a=of("int4"))),
        (ranged(deep), ranged(of("int4"))),
        (domain(row(a=of("int4"))), row(a=deep)),
    ]:
        assert difference(one, other) is None
        assert crossing(one, other).decision == "same", (one.name, other.name)
    assert crossing(deep, "int8").decision == "cast"
    assert crossing(array(deep), "int8[]").decision == "cast"
    assert crossing(domain(of("varchar(9)")), "varchar(5)").longest == 5
    assert crossing("numeric", domain(of("numeric(10,2)"))).decision == "refuse"
    assert crossing(array(domain(of("numeric(9,3)"))), "numeric(9,2)[]").decision == "refuse"
    assert crossing(domain(domain(of("regclass"))), "regclass").decision == "text format"


def test_rows_are_compared_field_by_field() -> None:
    one = row(a=of("int4"), b=of("text"))

    assert crossing(one, row(a=of("int4"), b=of("text"))).decision == "same"
    assert crossing(array(one), array(row(a=of("int4"), b=of("text")))).decision == "same"
    for other, words in [
        (row(b=of("text"), a=of("int4")), "has the fields a, b at the source, public.pair b, a at"),
        (row(a=of("int4")), "public.pair a at the dest"),
        (row(a=of("int8"), b=of("text")), "field a of public.pair: int4 at the source, int8 at"),
        (row(a=of("int4"), c=of("text")), "public.pair a, c at the dest"),
    ]:
        found = crossing(one, other)
        assert found.decision == "refuse"
        assert words in found.reason
    assert crossing(one, "text").decision == "cast"
    nested = row(x=row(y=of("numeric(9,3)")))
    assert crossing(nested, row(x=row(y=of("numeric(9,4)")))).decision == "same"
    lossy = crossing(nested, row(x=row(y=of("numeric(9,2)"))))
    assert (lossy.decision, "field x of public.pair: field y of" in lossy.reason) == (
        "refuse",
        True,
    )
    assert crossing(row(a=of("varchar(9)")), row(a=of("varchar(5)"))).decision == "refuse"
    assert crossing(row(a=of("regclass")), row(a=of("regclass"))).decision == "refuse"


def test_ranges_are_compared_by_their_bounds_and_by_how_they_read_them() -> None:
    assert crossing(ranged(of("float8")), ranged(of("float8"))).decision == "same"
    assert crossing(ranged(of("float8")), ranged(of("float4"))).decision == "refuse"
    ordered = ranged(of("text"), "- text_ops C"), ranged(of("text"), "- text_ops de_DE")
    assert "ranges that sort their bounds differently" in crossing(*ordered).reason
    # A range of the user over int4 does not know that [1,2] is [1,3).
    assert crossing("int4range", ranged(of("int4"), "- int4_ops")).decision == "refuse"
    several = [own("public.spans", "multirange", of=ranged(of("float8"))) for _ in "12"]
    assert crossing(*several).decision == "same"
    assert crossing(several[0], ranged(of("float8"))).decision == "refuse"
    moods = ranged(enum("sad", "ok")), ranged(enum("ok", "sad"))
    assert "the order of their labels differs" in crossing(*moods).reason
    assert crossing(ranged(enum("sad", "ok")), ranged(enum("sad", "ok"))).decision == "same"
    digits = ranged(of("numeric(9,3)")), ranged(of("numeric(9,2)"))
    assert crossing(*digits).decision == "refuse"


def test_types_of_extensions_are_known_by_extension_and_name() -> None:
    assert crossing(extended("hstore.hstore"), extended("hstore.hstore")).decision == "same"
    versions = crossing(extended("hstore.hstore", "1.4"), extended("hstore.hstore", "1.8"))
    assert versions.decision == "same"
    assert "1.4 at the source, 1.8 at the dest" in versions.reason
    assert crossing(extended("ltree.ltree"), extended("ltree.lquery")).decision == "refuse"
    assert crossing(extended("hstore.hstore"), "text").decision == "cast"
    assert crossing("text", extended("hstore.hstore")).decision == "refuse"
    assert crossing(extended("citext.citext"), "text").decision == "text value"
    assert crossing("text", extended("citext.citext")).decision == "text value"
    assert crossing(extended("citext.citext"), "varchar(5)").longest == 5


def test_a_base_type_of_nobody_is_refused() -> None:
    mine, yours = own("public.complex", "base"), own("public.complex", "base")

    found = crossing(mine, yours)

    assert found.decision == "refuse"
    assert found.reason.startswith("public.complex is a base type of no extension")
    assert crossing(array(mine), array(yours)).decision == "refuse"
    assert crossing(row(a=mine), row(a=yours)).decision == "refuse"
    assert crossing(mine, extended("cube.cube")).decision == "refuse"
    assert crossing(mine, "int4").decision == "refuse"
    assert crossing(mine, "text").decision == "cast"


def test_kinds_are_not_taken_for_one_another() -> None:
    values = [enum("a"), row(a=of("int4")), ranged(of("int4")), array(of("int4")), of("int4")]

    for one in values:
        for other in values:
            assert (difference(one, other) is None) == (one is other)


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_type_that_lacks_binary_functions_on_one_side_goes_as_text(side: str) -> None:
    whole = extended("some.thing")
    lacks = {"source": {"sends": False}, "dest": {"receives": False}}[side]
    without = replace(whole, type=replace(whole.type, **lacks))
    pair = (without, whole) if side == "source" else (whole, without)

    found = crossing(*pair)

    assert found.decision == "text format"
    assert f"has no binary form at the {side}" in found.reason
    assert crossing(*pair[::-1]).decision == "same"


# ----------------------------------------------------------------------------------- by request

ASKED = [
    ("int4", "int8", "cast", None),
    ("numeric", "numeric(10,2)", "cast", "numeric(10,2)"),
    ("float8", "int4", "cast", "int4"),
    ("int4", "float4", "cast", "float4"),
    ("bytea", "bit(3)", "cast", "bit(3)"),
    ("timestamptz", "date", "cast", "date"),
    ("text", "name", "cast", "name"),
    ("json", "jsonb", "cast", "jsonb"),
    ("text[]", "varchar(3)[]", "cast", "varchar(3)[]"),
    ("regclass", "text", "cast", "text"),
    ("oid", "regclass", "refuse", None),
    ("text", "aclitem", "refuse", None),
    ("text", "pg_node_tree", "refuse", None),
]  # fmt: skip


@pytest.mark.parametrize(("source", "dest", "decision", "into"), ASKED)
@pytest.mark.parametrize("asked", ["cast", "lossy"])
def test_a_cast_by_request(
    source: str, dest: str, decision: str, into: str | None, asked: str
) -> None:
    found = crossing(source, dest, asked=asked)

    assert found.decision == decision, found
    if into is None:
        assert found.reason.startswith(crossing(source, dest).reason)
        assert found.back is None
    else:
        assert found.into == of(into)
        assert found.back == (of(source) if asked == "cast" else None)
        expected = "would not come back" if asked == "cast" else "though it may lose"
        assert expected in found.reason
    if decision == "refuse":
        assert "the source cannot cast to" in found.reason


@pytest.mark.parametrize(
    ("source", "dest"),
    [("text", "varchar(3)"), ("varchar(9)", "varchar(3)"), ("bpchar(9)", "bpchar(3)"),
     ("bit(9)", "bit(3)"), ("varbit", "varbit(3)"), ("int4", "varchar(3)")],
)  # fmt: skip
def test_what_is_too_long_is_cut_only_where_that_is_allowed(source: str, dest: str) -> None:
    assert crossing(source, dest, asked="cast") == crossing(source, dest)
    cut = crossing(source, dest, asked="lossy")
    assert (cut.decision, cut.into, cut.back, cut.longest) == ("cast", of(dest), None, None)
    assert "what is too long is cut" in cut.reason


@pytest.mark.parametrize("asked", ["cast", "lossy"])
def test_what_is_asked_for_changes_nothing_that_goes_over_anyway(asked: str) -> None:
    for one, other in [("int4", "int4"), ("int8", "int2"), ("regclass", "regclass")]:
        assert crossing(one, other, asked=asked) == crossing(one, other)


@pytest.mark.parametrize("asked", ["cast", "lossy"])
def test_what_no_cast_can_help_stays_refused(asked: str) -> None:
    assert crossing("money", "money", dest_has=OTHER_MONEY, asked=asked).decision == "refuse"
    assert crossing("text", "money", dest_has=OTHER_MONEY, asked=asked).decision == "refuse"
    assert crossing("text", "money", asked=asked).decision == "cast"
    for dest in (row(a=of("int4")), enum("a"), extended("hstore.hstore"), own("public.x", "base")):
        assert crossing("int4", dest, asked=asked).decision == "refuse"
    assert crossing("text", "interval", dest_has=OLDER, asked=asked).decision == "refuse"
    assert crossing("text", domain(of("int4")), asked=asked).into == of("int4")


# --------------------------------------------------------------------------------------- types


def test_what_a_type_is_made_of() -> None:
    deep = array(domain(row(a=domain(of("int4")), b=of("int4range"), c=array(of("text")))))

    assert [leaf.name for leaf in leaves(deep)] == ["int4", "int4", "text"]
    assert [leaf.name for leaf in leaves(of("numeric(10,2)"))] == ["numeric(10,2)"]


def test_an_element_has_the_modifier_of_its_array() -> None:
    assert of("numeric(10,2)[]").element.typmod == of("numeric(10,2)").typmod
    assert array(domain(of("varchar(5)"))).element == of("varchar(5)")
    assert domain(of("int4[]")).element == of("int4")
    assert of("int4").element is None
