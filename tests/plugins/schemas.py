"""Schemas as people have them: many tables with every kind of column, key, partition and reference.

`generated` makes the same tables for the same seed. What a database looks like is told by the
newest pg_dump (`definitions`) and by a digest of each table (`contents`).
"""

import random
import re
from collections.abc import Iterator

from copypipe import schemas
from plugins.databases import Database

# Type, and an expression of the row number `i`.
COLUMNS = (
    ("bool", "i % 2 = 0"),
    ("int2", "(i % 1000)::int2"),
    ("int4", "i * 7"),
    ("int8", "i * 10000000019"),
    ("numeric(12,3)", "i / 7.0"),
    ("numeric", "i ^ 3 / 11.0"),
    ("float4", "i / 3.0"),
    ("float8", "sqrt(i)"),
    ("money", "(i * 1.25)::numeric::money"),
    ("text", "'text ' || i"),
    ("varchar(40)", "left(md5(i::text), i % 40)"),
    ("char(8)", "left(md5(i::text), i % 8)"),
    ('"char"', "'x'::\"char\""),
    ("name", "('name' || i)::name"),
    ("bytea", "decode(md5(i::text), 'hex')"),
    ("date", "'2018-01-01'::date + i"),
    ("time", "'00:00'::time + i * interval '1 minute'"),
    ("timetz", "'00:00+02'::timetz + i * interval '1 minute'"),
    ("timestamp(3)", "'2018-01-01'::timestamp + i * interval '1.5 s'"),
    ("timestamptz", "'2018-01-01Z'::timestamptz + i * interval '1.5 s'"),
    ("interval", "i * interval '1 hour 2 minutes'"),
    ("uuid", "md5(i::text)::uuid"),
    ("json", "json_build_object('i', i)"),
    ("jsonb", "jsonb_build_object('i', i, 'list', array[i, i + 1])"),
    ("inet", "'10.0.0.0'::inet + i"),
    ("cidr", "'10.1.0.0/16'::cidr"),
    ("macaddr", "'08:00:2b:01:02:03'::macaddr"),
    ("bit(8)", "i::bit(8)"),
    ("varbit", "i::bit(12)::varbit"),
    ("point", "point(i, -i)"),
    ("box", "box(point(0, 0), point(i, i))"),
    ("path", "'[(0,0),(1,1)]'::path"),
    ("polygon", "'((0,0),(1,1),(1,0))'::polygon"),
    ("circle", "circle(point(0, 0), i)"),
    ("int4range", "int4range(i, i + 5)"),
    ("tstzrange", "tstzrange('2018-01-01Z', '2018-01-01Z'::timestamptz + i * interval '1 day')"),
    ("datemultirange", "datemultirange(daterange('2018-01-01', '2018-01-01'::date + i))"),
    ("tsvector", "to_tsvector('simple', 'a fat cat ' || i)"),
    ("int4[]", "array[i, NULL, i + 1]"),
    ("text[]", "array['a', 'b ' || i]"),
    ("kinds.mood", "(array['good', 'bad', 'so so'])[1 + i % 3]::kinds.mood"),
    ("kinds.mood[]", "array['good', 'bad']::kinds.mood[]"),
    ("kinds.positive", "i + 1"),
    ("kinds.pair", "row(i, 'good')::kinds.pair"),
    ("kinds.span", "kinds.span(i, i + 1)"),
)

PRELUDE = """
CREATE SCHEMA kinds;
CREATE SCHEMA "Other Schema";
CREATE TYPE kinds.mood AS ENUM ('good', 'bad', 'so so');
CREATE DOMAIN kinds.positive AS int4 CHECK (VALUE > 0);
CREATE TYPE kinds.pair AS (one int4, two kinds.mood);
CREATE TYPE kinds.span AS RANGE (SUBTYPE = int8);
CREATE SEQUENCE kinds.shared START 5 INCREMENT 3;
CREATE FUNCTION kinds.today() RETURNS date STABLE LANGUAGE sql AS 'SELECT current_date';
CREATE FUNCTION kinds.half(int4) RETURNS int4 IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 2';
CREATE FUNCTION kinds.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
"""

NAMES = ("plain", "Upper Case", 'with "quotes"', "ünïcode", "semi;colon", "dot.dot", "select")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def generated(tables: int, seed: int, rows: int = 30) -> Iterator[str]:
    """Yield the statements that make and fill so many tables."""
    rng = random.Random(seed)  # noqa: S311 - the same tables each time
    yield PRELUDE
    keyed: list[str] = []
    for number in range(tables):
        word = NAMES[number % len(NAMES)]
        schema = rng.choice(("public", "public", '"Other Schema"'))
        name = f"{schema}.{quoted(f'{word} {number}')}"
        if number % 10 == 3:
            yield from _partitioned(rng, name, schema, number, rows)
        elif number % 10 == 7 and keyed:
            yield from _pointing(rng, name, keyed, rows)
        else:
            yield from _plain(rng, name, number, rows)
            if number % 10 != 5 and number % 6 != 4:  # unlogged, or its key is deferrable
                keyed.append(name)
    yield from _special(rows)


def _columns(rng: random.Random) -> list[tuple[str, str, str]]:
    chosen = rng.sample(COLUMNS, rng.randint(2, 9))
    return [(f"c{place} of", kind, value) for place, (kind, value) in enumerate(chosen)]


def _fill(name: str, columns: list[tuple[str, str]], rows: int) -> str:
    listed = ", ".join(quoted(column) for column, _ in columns)
    values = ", ".join(value for _, value in columns)
    return f"INSERT INTO {name} ({listed}) SELECT {values} FROM generate_series(1, {rows}) AS i"


def _plain(rng: random.Random, name: str, number: int, rows: int) -> Iterator[str]:
    """Yield a table with a key of some kind, indexes, checks and comments."""
    columns = _columns(rng)
    key = (
        "id int8 PRIMARY KEY",
        "id serial PRIMARY KEY",
        "id int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "id int8 GENERATED BY DEFAULT AS IDENTITY (START 100 INCREMENT 10) UNIQUE",
        "id int8 UNIQUE DEFERRABLE INITIALLY DEFERRED",
        "id int4 DEFAULT nextval('kinds.shared') PRIMARY KEY",
    )[number % 6]
    parts = [key, *(f"{quoted(c)} {kind}" for c, kind, _ in columns), "amount int4 NOT NULL"]
    if rng.random() < 0.3:
        parts.append("twice int8 GENERATED ALWAYS AS (amount * 2) STORED")
    if rng.random() < 0.3:
        parts.append("day date DEFAULT kinds.today()")
    if rng.random() < 0.3:
        parts.append("CHECK (amount > 0)")
    if rng.random() < 0.2:
        parts.append("during tsrange, EXCLUDE USING gist (during WITH &&)")
    kind = "UNLOGGED " if number % 10 == 5 else ""
    options = rng.choice(("", "", " WITH (fillfactor = 70)"))
    yield f"CREATE {kind}TABLE {name} ({', '.join(parts)}){options}"
    filled = [(c, value) for c, _, value in columns]
    if "IDENTITY" not in key and "serial" not in key and "nextval" not in key:
        filled.append(("id", "i"))
    yield _fill(name, [*filled, ("amount", "i * 3")], rng.choice((0, 1, rows)))
    index = quoted(f"index of {number}")
    yield rng.choice(
        (
            f"CREATE INDEX ON {name} (amount)",
            f"CREATE INDEX {index} ON {name} (kinds.half(amount)) WHERE amount > 5",
            f"CREATE INDEX ON {name} USING hash (amount)",
            f"CREATE INDEX ON {name} USING brin (amount)",
            f"CREATE UNIQUE INDEX {index} ON {name} (amount) INCLUDE (id)",
            f"CREATE INDEX {index} ON {name} (amount DESC NULLS LAST, id)",
            "SELECT 1",
        )
    )
    yield rng.choice(
        (
            f"COMMENT ON TABLE {name} IS '\n--\n-- TOC entry 1 (class 0 OID 0)\n-- Name: x\n--\n'",
            f"COMMENT ON COLUMN {name}.amount IS 'it''s money'",
            f"CREATE TRIGGER touched BEFORE UPDATE ON {name} FOR EACH ROW"
            " EXECUTE FUNCTION kinds.touch()",
            f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
            f"CREATE STATISTICS {quoted(f'both of {number}')} ON id, amount FROM {name}",
            f"ALTER TABLE {name} ALTER COLUMN amount SET STATISTICS 500",
            f"ALTER TABLE {name} ADD CONSTRAINT later CHECK (amount < 100000) NOT VALID",
            f"ALTER TABLE {name} REPLICA IDENTITY FULL",
            "SELECT 1",
        )
    )


def _partitioned(
    rng: random.Random, name: str, schema: str, number: int, rows: int
) -> Iterator[str]:
    """Yield a table partitioned in one of the ways, with keys and indexes of the whole."""
    way = ("range", "list", "hash", "twice")[number // 10 % 4]
    columns = _columns(rng)
    listed = ", ".join(f"{quoted(c)} {kind}" for c, kind, _ in columns)
    by = {"range": "RANGE (at)", "list": "LIST (kind)", "hash": "HASH (id)", "twice": "RANGE (at)"}
    yield (
        f"CREATE TABLE {name} (id int8 NOT NULL, at date NOT NULL, kind int4 NOT NULL, {listed})"
        f" PARTITION BY {by[way]}"
    )
    part = lambda label: f"{schema}.{quoted(f'part {number} {label}')}"  # noqa: E731
    if way == "list":
        for kind in range(3):
            yield f"CREATE TABLE {part(kind)} PARTITION OF {name} FOR VALUES IN ({kind})"
    elif way == "hash":
        for kind in range(3):
            yield (
                f"CREATE TABLE {part(kind)} PARTITION OF {name}"
                f" FOR VALUES WITH (MODULUS 3, REMAINDER {kind})"
            )
    else:
        yield f"CREATE TABLE {part('default')} PARTITION OF {name} DEFAULT"
        for month in (1, 2):
            below = " PARTITION BY LIST (kind)" if way == "twice" else ""
            yield (
                f"CREATE TABLE {part(month)} PARTITION OF {name}"
                f" FOR VALUES FROM ('2018-0{month}-01') TO ('2018-0{month + 1}-01'){below}"
            )
            if way == "twice":
                yield f"CREATE TABLE {part(f'{month} rest')} PARTITION OF {part(month)} DEFAULT"
                zero = part(f"{month} 0")
                yield f"CREATE TABLE {zero} PARTITION OF {part(month)} FOR VALUES IN (0)"
    filled = [("id", "i"), ("at", "'2018-01-15'::date + i"), ("kind", "i % 3")]
    yield _fill(name, [*filled, *((c, value) for c, _, value in columns)], rows)
    yield f"ALTER TABLE {name} ADD PRIMARY KEY (id, at, kind)"
    yield f"CREATE INDEX ON {name} (at)"
    if rng.random() < 0.5:
        yield (
            f"CREATE TRIGGER touched BEFORE UPDATE ON {name} FOR EACH ROW"
            " EXECUTE FUNCTION kinds.touch()"
        )
    if rng.random() < 0.5:
        yield f"CREATE TABLE {part('pointing')} (id int8, at date, kind int4)"
        yield f"INSERT INTO {part('pointing')} SELECT id, at, kind FROM {name}"
        yield (
            f"ALTER TABLE {part('pointing')} ADD FOREIGN KEY (id, at, kind)"
            f" REFERENCES {name} ON DELETE CASCADE"
        )


def _pointing(rng: random.Random, name: str, keyed: list[str], rows: int) -> Iterator[str]:
    """Yield a table with foreign keys, to others and to itself."""
    other = rng.choice(keyed)
    how = rng.choice(("", "ON DELETE SET NULL", "DEFERRABLE INITIALLY DEFERRED", "MATCH FULL"))
    yield (
        f"CREATE TABLE {name} (id int8 PRIMARY KEY, parent int8 REFERENCES {name} DEFERRABLE,"
        f" other int8 REFERENCES {other} (id) {how})"
    )
    yield (
        f"INSERT INTO {name} SELECT i, nullif(i - 1, 0),"
        f" (SELECT id FROM {other} ORDER BY id LIMIT 1 OFFSET i % 3)"
        f" FROM generate_series(1, {rows}) AS i"
    )
    if rng.random() < 0.3:
        yield (
            f"ALTER TABLE {name} ADD CONSTRAINT old FOREIGN KEY (id)"
            f" REFERENCES {other} (id) NOT VALID"
        )


def _special(rows: int) -> Iterator[str]:
    """Yield what there is one of."""
    yield "CREATE TABLE public.parent (id int4 PRIMARY KEY, word text)"
    yield "CREATE TABLE public.child (more int4, CHECK (more > 0)) INHERITS (public.parent)"
    yield f"INSERT INTO public.parent SELECT i, 'p' FROM generate_series(1, {rows}) AS i"
    yield f"INSERT INTO public.child SELECT i, 'c', i FROM generate_series(1, {rows}) AS i"
    yield "CREATE TABLE public.typed OF kinds.pair (one WITH OPTIONS NOT NULL)"
    yield "INSERT INTO public.typed VALUES (1, 'good')"
    yield "CREATE TABLE public.empty ()"
    yield (
        "CREATE TABLE public.identified (id int4 NOT NULL, word text);"
        "CREATE UNIQUE INDEX by_id ON public.identified (id);"
        "ALTER TABLE public.identified REPLICA IDENTITY USING INDEX by_id;"
        "CREATE UNIQUE INDEX by_word ON public.identified (word);"
        "ALTER TABLE public.identified CLUSTER ON by_word;"
        "CREATE POLICY own ON public.identified FOR SELECT USING (id > 5)"
    )
    yield (
        "CREATE TABLE public.stored (id int4 PRIMARY KEY, body text, other text);"
        "ALTER TABLE public.stored ALTER body SET STORAGE EXTERNAL;"
        "INSERT INTO public.stored SELECT i, repeat(md5(i::text), 300), repeat('x', 9000)"
        f" FROM generate_series(1, {rows}) AS i"
    )
    yield (
        "CREATE TABLE public.dropped (gone int4, id int4 PRIMARY KEY, word text);"
        "INSERT INTO public.dropped SELECT i, i, 'w' FROM generate_series(1, 9) AS i;"
        "ALTER TABLE public.dropped DROP gone, ADD added int4 DEFAULT 7"
    )


def definitions(database: Database) -> list[str]:
    """Return what the newest pg_dump tells of all but our ledger, without what is random."""
    tools = max(schemas._candidates(), key=lambda each: each.major)
    text = tools.run(
        "pg_dump",
        [
            "--schema-only",
            "--no-owner",
            "--no-acl",
            "--exclude-schema=copypipe",
            f"--dbname={database.dsn}",
        ],
    )
    lines = [line for line in text.splitlines() if not re.match(r"-- Dump|\\(un)?restrict", line)]
    return [line for line in lines if line.strip()]


def contents(database: Database) -> dict[str, tuple[int, str]]:
    """Return rows and a digest of each table, of what lies in itself alone; sequences too."""
    tables = database.fetch(
        "SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'S')"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'copypipe') ORDER BY 1"
    )
    found = {}
    for name, kind in tables:
        if kind == "S":
            value, is_called = database.fetch(f"SELECT last_value, is_called FROM {name}")[0]
            found[name] = (int(value), str(is_called))
            continue
        rows, digest = database.fetch(
            "SELECT count(*), coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '')"
            f" FROM ONLY {name} AS t"
        )[0]
        found[name] = (rows, digest)
    return found
