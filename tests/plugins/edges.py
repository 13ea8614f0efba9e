"""The built-in types with the values at which casts and receive functions go wrong."""

from typing import NamedTuple


class Edge(NamedTuple):
    """A type as SQL spells it, texts that its input function takes, the first major that has it."""

    name: str
    values: tuple[str, ...]
    since: int = 14


_INT8 = ("9223372036854775807", "-9223372036854775808")
_FLOATS = ("0", "-0", "1.5", "-2.5", "0.1", "NaN", "Infinity", "-Infinity", "16777217", "1e-40")
_NUMBERS = ("0", "42", "-7", "0.1", "1.50", "99999999.99", "123456.789", "NaN", "1e-20")
_BLANKS = (
    "",
    " ",
    "abc",
    "abc  ",
    "abcd   ",
    "abcdef",
    "a b",
    "42",
    "é",
    "{1}",
    "true",
    "2018-04-29",
)
_DATES = ("2018-04-29", "4713-01-01 BC", "infinity", "-infinity", "2000-02-29")
_TIMES = ("00:00", "24:00", "23:59:59.7", "12:34:56.123456")
_MOMENTS = (
    *("2018-04-29 00:00", "2018-04-29 23:59:59.7", "2000-01-01 00:00:00.000001"),
    *("infinity", "-infinity", "4713-01-02 BC"),
)
_INTERVALS = ("0", "1 day", "-1 mon 3 days 04:05:06.7", "100 years", "25:00", "00:00:00.000001")
_NETS = ("10.0.0.0/8", "::/0", "192.168.1.1/32", "2001:db8::/32")

EDGES = (
    Edge("bool", ("true", "false")),
    Edge("int2", ("0", "1", "-1", "32767", "-32768")),
    Edge("int4", ("0", "1", "-1", "42", "16777217", "2147483647", "-2147483648", "19723")),
    Edge("int8", ("0", "1", "-1", "42", "16383", "4294967295", "9007199254740993", *_INT8)),
    Edge("oid", ("0", "1", "2147483648", "4294967295")),
    Edge("float4", tuple(value for value in _FLOATS if value != "1e-40")),
    Edge("float8", (*_FLOATS, "1e308", "5e-324")),
    Edge("numeric", (*_NUMBERS, "Infinity", "1e30")),
    Edge("numeric(10,2)", ("0", "1.50", "-99999999.99", "NaN", "42.00")),
    Edge("numeric(5,0)", ("0", "-1", "99999")),
    Edge("numeric(4,-2)", ("0", "100", "-999900"), since=15),
    Edge("money", ("0", "1.23", "-92233720368547758.08")),
    Edge("text", (*_BLANKS, "x" * 70)),
    Edge("varchar", (*_BLANKS, "é" * 63)),
    Edge("varchar(5)", ("", " ", "abc", "abc  ", "42", "é")),
    Edge("char(5)", ("", "abc", "42", "é")),
    Edge("bpchar", ("", "abc", "abc  ", "abcdef")),
    Edge("name", ("", "abc", "42", "x" * 63)),
    Edge('"char"', ("", "a", "4", "~")),
    Edge("bytea", ("\\x", "\\x00", "\\xff", "\\x616263", "\\x0000002a", "\\x000000000000002a")),
    Edge("bit(3)", ("000", "101")),
    Edge("bit(1)", ("0", "1")),
    Edge("varbit", ("", "1", "101", "10101010")),
    Edge("varbit(4)", ("", "1", "1010")),
    Edge("date", (*_DATES, "5874897-12-31")),
    Edge("time", _TIMES),
    Edge("time(0)", ("00:00", "24:00", "12:34:56")),
    Edge("timetz", ("00:00+00", "24:00-15:59", "23:59:59.7+14")),
    Edge("timestamp", (*_MOMENTS, "294276-12-31 23:59:59.999999")),
    Edge("timestamp(0)", ("2018-04-29 00:00", "infinity")),
    Edge("timestamptz", (*_MOMENTS, "2018-04-29 23:59:59.7+14", "294276-12-31 23:59:59.999999")),
    Edge("timestamptz(3)", ("2018-04-29 23:59:59.7+00", "-infinity")),
    Edge("interval", _INTERVALS),
    Edge("interval", ("infinity", "-infinity", "1 day"), since=17),
    Edge("interval(0)", ("1 day", "00:00:01")),
    Edge("interval year to month", ("1 year 2 mons", "0")),
    Edge("json", ("null", "1", '"a"', '{"a": 1,  "a": 2}', "[1, 2.50]", '{"b":1,"a":2}')),
    Edge("jsonb", ("null", "1", '"a"', '{"a": 1}', "[1, 2.50]", "true")),
    Edge("xml", ("", "a", "<a/>", "<a>é</a>")),
    Edge("jsonpath", ("$", "strict $.a[*]")),
    Edge("uuid", ("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    Edge("inet", (*_NETS, "192.168.1.1/24", "::1")),
    Edge("cidr", _NETS),
    Edge("macaddr", ("08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff")),
    Edge("macaddr8", ("08:00:2b:ff:fe:01:02:03", "08:00:2b:01:02:03:04:05")),
    Edge("point", ("(0,-0)", "(1.5,NaN)", "(Infinity,1)")),
    Edge("lseg", ("[(1,2),(3,4)]",)),
    Edge("box", ("(3,4),(1,2)",)),
    Edge("path", ("[(1,2),(3,4)]", "((1,2),(3,4))")),
    Edge("polygon", ("((1,2),(3,4),(5,0))",)),
    Edge("line", ("{1,2,3}",)),
    Edge("circle", ("<(1,2),3>",)),
    Edge("tsvector", ("", "a:1,3A b", "'a b'")),
    Edge("tsquery", ("a & !b", "a <-> b")),
    Edge("pg_lsn", ("0/0", "FFFFFFFF/FFFFFFFF")),
    Edge("xid", ("0", "42", "4294967295")),
    Edge("cid", ("0", "4294967295")),
    Edge("xid8", ("0", "18446744073709551615")),
    Edge("tid", ("(0,1)", "(4294967295,65535)")),
    Edge("pg_snapshot", ("10:20:10,14",)),
    Edge("txid_snapshot", ("10:20:10,14",)),
    Edge("refcursor", ("", "abc")),
    Edge("int2vector", ("", "1 2 3")),
    Edge("oidvector", ("", "1 2 3")),
    Edge("regclass", ("pg_class", "-")),
    Edge("regtype", ("integer", "numeric")),
    Edge("regproc", ("pg_backend_pid",)),
    Edge("regrole", ("-",)),
    Edge("regnamespace", ("pg_catalog",)),
    Edge("regconfig", ("simple",)),
    Edge("regdictionary", ("simple",)),
    Edge("regprocedure", ("abs(integer)",)),
    Edge("regoper", ("||/",)),
    Edge("regoperator", ("+(integer,integer)",)),
    Edge("regcollation", ('"C"',)),
    Edge("aclitem", ("=r/pg_monitor",)),
    Edge("int4range", ("empty", "[1,100)", "(,5)", "(,)")),
    Edge("int8range", ("empty", "[1,100)", "[9007199254740993,)")),
    Edge("numrange", ("empty", "[1.5,2.50]", "(,NaN]")),
    Edge("daterange", ("empty", "[2018-04-29,2018-05-01)", "[2018-01-01,infinity]")),
    Edge("tsrange", ("empty", '["2018-04-29 00:00:00.5",)')),
    Edge("tstzrange", ("empty", '["2018-04-29 00:00:00+00",)')),
    Edge("int4multirange", ("{}", "{[1,3),[5,9)}")),
    Edge("int8multirange", ("{}", "{[1,3),[5,9)}")),
    Edge("nummultirange", ("{}", "{[1.5,2.50]}")),
    Edge("datemultirange", ("{}", "{[2018-04-29,2018-05-01)}")),
    Edge("tsmultirange", ("{}", '{["2018-04-29 00:00:00","2018-05-01 00:00:00")}')),
    Edge("tstzmultirange", ("{}", '{["2018-04-29 00:00:00+00",)}')),
)


def array(edge: Edge) -> Edge:
    """Return the arrays of a type: empty, with a NULL, with odd bounds, and each value alone."""
    delimiter = ";" if edge.name == "box" else ","
    elements = ['"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in edge.values]
    shaped = ("{}", f"{{NULL{delimiter}{elements[0]}}}", f"[-1:-1]={{{elements[-1]}}}")
    return Edge(
        f"{edge.name}[]", (*shaped, *(f"{{{element}}}" for element in elements)), edge.since
    )
