"""Which tables move, into which, and what is refused; what is there already at the dest."""

import re
import threading
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from copypipe import launcher, plans, schemas
from copypipe.errors import CopyFailed, CopypipeError, PlanRefused, SliceBusy, UsageError
from copypipe.inventory import Asked
from copypipe.migrations import Migration, propose, sequences, work
from copypipe.requests import Endpoint
from plugins.command import eventually
from plugins.databases import Database, encoded
from plugins.moving import MB, Heard, ended, move, options
from plugins.schemas import contents, definitions
from plugins.servers import Servers

PAIR = """
CREATE TABLE customer (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer, at date);
CREATE INDEX invoice_at ON invoice (at);
INSERT INTO customer (name) SELECT 'c' || i FROM generate_series(1, 50) AS i;
INSERT INTO invoice SELECT i, i % 50 + 1, '2018-01-01' FROM generate_series(1, 500) AS i
"""
PARTED = """
CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2018-01-01') TO ('2018-02-01');
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2018-02-01') TO ('2018-03-01');
INSERT INTO event SELECT i, '2018-01-01'::date + i % 50 FROM generate_series(1, 300) AS i
"""


def rows(database: Database, table: str) -> int:
    return database.scalar(f"SELECT count(*) FROM {table}")


def foreign_keys(database: Database) -> int:
    return database.scalar(
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
        " AND connamespace = 'public'::regnamespace"
    )


def tables(database: Database) -> set[str]:
    return {
        name
        for (name,) in database.fetch(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE relkind IN ('r', 'p')"
            " AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'copypipe')"
        )
    }


# ----------------------------------------------------------------------------- which tables move


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(("customer",)), {"customer"}),
        (Asked(("public.*voice",)), {"invoice"}),
        (Asked(("*",), exclude=("inv*",)), {"customer", "event", "event_1", "event_2"}),
        (Asked(("event",)), {"event", "event_1", "event_2"}),
        (Asked(("event",), exclude=("event_2",)), {"event", "event_1"}),
        (Asked(("event_1",)), {"event", "event_1"}),
        (Asked(schemas=("other",)), {"other.there", 'other."Big"'}),
        (Asked(('other."Big"',)), {'other."Big"'}),
        (Asked(("other.?here",)), {"other.there"}),
    ],
)
@pytest.mark.one_of(5)
def test_patterns(source: Database, dest: Database, asked: Asked, expected: set[str]) -> None:
    source.execute(PAIR)
    source.execute(PARTED)
    source.execute(
        'CREATE SCHEMA other; CREATE TABLE other.there (id int); CREATE TABLE other."Big" (id int);'
        'INSERT INTO other.there VALUES (1); INSERT INTO other."Big" VALUES (2)'
    )

    found = move(source, dest, asked=asked)

    assert found.is_ended
    assert tables(dest) == expected
    for name in expected:
        assert rows(dest, f"ONLY {name}") == rows(source, f"ONLY {name}")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (Asked(("nothing",)), "no table matches nothing"),
        (Asked(("custome",)), "no table matches custome"),
        (Asked(("a_view",)), "no table matches a_view"),
        (Asked(schemas=("nothing",)), "no table in schema nothing"),
        (Asked(("customer",), exclude=("*",)), "no table is left"),
    ],
)
def test_names_that_mean_nothing(
    source: Database, dest: Database, asked: Asked, problem: str
) -> None:
    source.execute(f"{PAIR}; CREATE VIEW a_view AS SELECT 1")
    with pytest.raises(PlanRefused, match=problem):
        move(source, dest, asked=asked)
    assert tables(dest) == set()


@pytest.mark.parametrize(
    "more",
    [
        {"asked": Asked(everything=True, patterns=("a",))},
        {"asked": Asked(patterns=("a.b.c",))},
        {"into": ("other",)},
        {"defer_indexes": True},
        {"schema": False, "acl": True},
        {"migration": "x"},
        {"consistent": False},
        {"resume": True, "replace": True},
        {"limit": 0},
        {"jobs": 0},
        {"schema": False, "into": ("a=b.c",)},
        {"part_bytes": 1000},
    ],
    ids=str,
)
@pytest.mark.one_of(8)
def test_options_that_do_not_go_together(
    source: Database, dest: Database, more: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        move(source, dest, **more)


def test_a_key_to_a_table_that_does_not_come_is_left_out_and_told(
    source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    heard = Heard()

    assert ended(move(source, dest, "invoice", listen=heard))

    assert any("left out" in text and "invoice_customer_fkey" in text for text in heard)
    assert foreign_keys(dest) == 0


def test_it_is_said_before_what_it_takes_and_what_does_not_come(
    source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    heard = Heard()

    move(source, dest, listen=heard)

    assert re.search(r"2 tables of .* the dest needs about .* of disk", heard[0])
    assert "what is written at the source after" in heard[1]


# --------------------------------------------------------------------- what is there at the dest


def test_a_table_with_rows_is_refused_by_name(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("CREATE TABLE customer (id int, name text); INSERT INTO customer VALUES (7, 'x')")

    with pytest.raises(PlanRefused, match=r"dest: public\.customer holds rows") as caught:
        move(source, dest)

    assert "--replace" in (caught.value.hint or "")
    assert dest.fetch("SELECT * FROM customer") == [(7, "x")]
    assert tables(dest) == {"customer"}, "nothing was made"


def test_replace_removes_the_rows_first(source: Database, dest: Database) -> None:
    """Also of tables that point at each other; the ledger keeps that there were some."""
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("UPDATE customer SET name = 'old' || id")

    assert ended(move(source, dest, replace=True))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
    had = "SELECT bool_and(had_rows) FROM copypipe.migration_table"
    assert dest.scalar(had) is True


def test_replace_leaves_a_table_at_which_others_point(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)

    with pytest.raises(CopyFailed) as caught:
        move(source, dest, "customer", replace=True)

    assert "Move that table too" in (caught.value.hint or "")
    assert rows(dest, "customer") == 50


def test_tables_that_are_there_are_filled_in_the_order_of_their_keys(
    source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer")

    assert ended(move(source, dest, schema=False, jobs=3))

    assert contents(dest) == contents(source)


def test_keys_that_point_at_each_other_are_refused(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute(PAIR)
        database.execute("ALTER TABLE customer ADD main int REFERENCES invoice")
    dest.execute("TRUNCATE invoice, customer")

    with pytest.raises(PlanRefused, match="foreign keys point at each other"):
        move(source, dest, schema=False)

    assert rows(dest, "customer") == 0


def test_a_table_that_points_at_itself_is_filled_as_one(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute(
            "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree, w text)"
        )
    source.execute(
        "INSERT INTO tree SELECT i, nullif(i - 1, 0), repeat('x', 100)"
        " FROM generate_series(1, 30000) AS i"
    )
    asked = options(source, dest, schema=False, part_bytes=MB)

    (proposed,) = propose(asked).tables
    found = Migration(asked)()

    assert ended(found)
    assert contents(dest) == contents(source)
    assert found.tables[0].parts == proposed.parts == 1


def test_a_pair_that_names_no_schema_is_refused(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(f"{PAIR}; TRUNCATE invoice, customer; CREATE TABLE other (LIKE customer)")

    with pytest.raises(PlanRefused, match="--into names what is not there: customer") as caught:
        move(source, dest, "customer", schema=False, into=("customer=other",))

    assert "Was public.customer meant?" in (caught.value.hint or "")
    assert rows(dest, "customer") == 0


def test_hints_name_options_that_there_are(source: Database, dest: Database) -> None:
    source.execute("CREATE TABLE t (id int, more int)")
    dest.execute("CREATE TABLE t (id int)")

    with pytest.raises(PlanRefused, match=r"the columns of public\.t") as caught:
        move(source, dest)

    assert (caught.value.hint or "").startswith("copypipe copy moves a table by itself")


def test_what_is_missing_is_refused_by_name(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    with pytest.raises(PlanRefused, match=r"there is no table public\.invoice, public\.customer"):
        move(source, dest, schema=False)


def test_all_that_stands_in_the_way_is_told_at_once(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("CREATE TABLE customer (id int, name int); CREATE TABLE invoice (id int);")

    with pytest.raises(PlanRefused) as caught:
        move(source, dest)

    told = str(caught.value)
    assert '"name"' in told or "name" in told
    assert "invoice" in told
    assert tables(dest) == {"customer", "invoice"}


def test_sequences_are_where_they_are_at_the_source(source: Database, dest: Database) -> None:
    source.execute(
        "CREATE TABLE t (a serial, b int GENERATED ALWAYS AS IDENTITY,"
        " c int GENERATED BY DEFAULT AS IDENTITY (INCREMENT -5 START -1), d int);"
        "CREATE SEQUENCE shared; ALTER TABLE t ALTER d SET DEFAULT nextval('shared');"
        "INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES; SELECT nextval('shared');"
        "CREATE TABLE untouched (a serial)"
    )

    assert ended(move(source, dest))

    assert contents(dest) == contents(source)
    dest.execute("INSERT INTO t DEFAULT VALUES")
    assert dest.fetch("SELECT * FROM t ORDER BY a DESC LIMIT 1") == [(3, 3, -11, 4)]


def test_sequences_that_columns_draw_from_by_other_ways(source: Database, dest: Database) -> None:
    """Several of one column; that of a domain, of a function, of a rule."""
    source.execute(
        "CREATE TABLE two (id serial); CREATE SEQUENCE other;"
        "ALTER TABLE two ALTER id SET DEFAULT nextval('other');"
        "SELECT setval('two_id_seq', 1000), setval('other', 40);"
        "CREATE SEQUENCE high; CREATE SEQUENCE low;"
        "CREATE TABLE both_of (id int8 DEFAULT nextval('high') * 1000 + nextval('low'));"
        "SELECT setval('high', 5), setval('low', 77);"
        "CREATE SEQUENCE of_domain; CREATE DOMAIN numbered AS int DEFAULT nextval('of_domain');"
        "CREATE TABLE by_domain (id numbered); SELECT setval('of_domain', 12);"
        "CREATE SEQUENCE of_function; CREATE FUNCTION next() RETURNS int8 BEGIN ATOMIC"
        " SELECT nextval('of_function'); END;"
        "CREATE TABLE by_function (id int8 DEFAULT next()); SELECT setval('of_function', 13);"
        "CREATE SEQUENCE of_rule; CREATE TABLE log (id int8); CREATE TABLE logged (id int);"
        "CREATE SEQUENCE of_check; CREATE FUNCTION drawn() RETURNS int8 BEGIN ATOMIC"
        " SELECT nextval('of_check'); END; CREATE TABLE checked (id int CHECK (drawn() > 0));"
        "SELECT setval('of_check', 15); CREATE TABLE own_default (id numbered DEFAULT 7);"
        "CREATE RULE told AS ON INSERT TO logged DO ALSO INSERT INTO log"
        " VALUES (nextval('of_rule')); SELECT setval('of_rule', 14)"
    )

    assert ended(move(source, dest))

    states = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'"
    assert dict(dest.fetch(states)) == dict(source.fetch(states))
    assert None not in dict(dest.fetch(states)).values()


@pytest.mark.parametrize(
    ("there", "state"),
    [
        ("CREATE TABLE t (id int DEFAULT nextval('mine'))", 40),
        ("CREATE TABLE t (id int DEFAULT nextval('s')); ALTER SEQUENCE mine OWNED BY t.id", 1),
        ("CREATE TABLE t (id int DEFAULT nextval('mine') + nextval('more'))", 40),
        ("CREATE TABLE t (id int DEFAULT nextval('mine')); SELECT setval('mine', 99)", 99),
        ("CREATE TABLE t (id int DEFAULT nextval('mine')); SELECT setval('mine', 99, false)", 99),
        ("CREATE TABLE t (id int DEFAULT nextval('mine')); ALTER SEQUENCE mine RESTART 99", 99),
    ],
)
@pytest.mark.one_of(3)
def test_sequences_that_are_called_otherwise(
    source: Database, dest: Database, there: str, state: int
) -> None:
    """Those that the column draws from are as far as those of the source, or further."""
    source.execute(
        "CREATE SEQUENCE s; CREATE TABLE t (id int DEFAULT nextval('s')); SELECT setval('s', 40)"
    )
    dest.execute("CREATE SEQUENCE s; CREATE SEQUENCE mine; CREATE SEQUENCE more")
    dest.execute(there)

    assert ended(move(source, dest, schema=False))

    assert dest.scalar("SELECT last_value FROM mine") == state


def test_deferred_indexes_are_dropped_and_made_again(source: Database, dest: Database) -> None:
    """Plain ones alone; and those of which a definition would not tell all stay."""
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute(
        "TRUNCATE invoice, customer; CREATE UNIQUE INDEX one ON invoice (id, at);"
        "CREATE INDEX told ON invoice (customer); COMMENT ON INDEX told IS 'x';"
        "CREATE INDEX partial ON invoice (at) WHERE at > '2018-01-01'"
    )
    before = definitions(dest)
    heard = Heard()

    assert ended(move(source, dest, schema=False, defer_indexes=True, listen=heard))

    assert definitions(dest) == before
    assert any(text.startswith("2 indexes are dropped") for text in heard)
    made = "SELECT name FROM copypipe.migration_step WHERE kind = 'index' AND done_at IS NOT NULL"
    assert {name for (name,) in dest.fetch(made)} == {"public.invoice_at", "public.partial"}


KEPT = {
    "told": "CREATE INDEX told ON invoice (customer); COMMENT ON INDEX told IS 'x'",
    "clustered": "CREATE INDEX clustered ON invoice (customer);"
    "ALTER TABLE invoice CLUSTER ON clustered",
    "targets": "CREATE INDEX targets ON invoice ((customer + 1));"
    "ALTER INDEX targets ALTER 1 SET STATISTICS 9",
    "excludes": "ALTER TABLE invoice ADD CONSTRAINT excludes EXCLUDE USING btree (id WITH =)",
    "alone": "CREATE UNIQUE INDEX alone ON invoice (customer, id)",
    "identity": "ALTER TABLE invoice ALTER customer SET NOT NULL;"
    "CREATE UNIQUE INDEX identity ON invoice (customer, id);"
    "ALTER TABLE invoice REPLICA IDENTITY USING INDEX identity",
    "extended": "CREATE EXTENSION pg_trgm; CREATE INDEX extended ON invoice (customer);"
    "ALTER INDEX extended DEPENDS ON EXTENSION pg_trgm",
}


def test_what_a_definition_does_not_tell_is_not_dropped(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(f"{PAIR}; TRUNCATE invoice, customer")
    dest.execute(";".join(KEPT.values()))
    oids = "SELECT relname, oid::int8 FROM pg_class WHERE relname = ANY (%s)"
    before = dict(dest.fetch(oids, [list(KEPT)]))

    assert ended(move(source, dest, schema=False, defer_indexes=True))

    assert dict(dest.fetch(oids, [list(KEPT)])) == before
    assert before.keys() == KEPT.keys()


def test_indexes_that_would_be_made_elsewhere_are_not_dropped(
    source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    dest.execute(f"{PAIR}; TRUNCATE invoice, customer")
    dest.execute(f"ALTER DATABASE {dest.name} SET default_tablespace = pg_default")
    heard = Heard()

    assert ended(move(source, dest, schema=False, defer_indexes=True, listen=heard))

    assert any(text.startswith("0 indexes are dropped") for text in heard)


def test_an_index_of_a_partitioned_one_is_not_dropped(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(f"{PARTED}; TRUNCATE event; CREATE INDEX kept ON event (at)")
    oids = "SELECT oid::int8 FROM pg_class WHERE relname LIKE 'event_%_at_idx' ORDER BY 1"
    before = dest.fetch(oids)

    assert ended(move(source, dest, schema=False, defer_indexes=True))

    assert dest.fetch(oids) == before
    assert len(before) == 2


def test_an_index_elsewhere_is_not_dropped(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(f"{PAIR}; TRUNCATE invoice, customer")
    with dest.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE copypipe_test_elsewhere LOCATION ''")
    try:
        dest.execute("ALTER INDEX invoice_at SET TABLESPACE copypipe_test_elsewhere")
        oid = dest.scalar("SELECT 'invoice_at'::regclass::oid")

        assert ended(move(source, dest, schema=False, defer_indexes=True))

        assert dest.scalar("SELECT 'invoice_at'::regclass::oid") == oid
    finally:
        dest.execute("ALTER INDEX invoice_at SET TABLESPACE pg_default")
        with dest.connect() as connection:
            connection.execute("DROP TABLESPACE copypipe_test_elsewhere")


# -------------------------------------------------------------------------------- into, routed


@pytest.mark.parametrize(
    ("into", "expected"),
    [
        (("dw",), ("dw.customer", "dw.invoice")),
        (("public=dw",), ("dw.customer", "dw.invoice")),
        (("public=dw", "public.customer=dw.client"), ("dw.client", "dw.invoice")),
    ],
)
@pytest.mark.one_of(2)
def test_other_names(
    source: Database, dest: Database, into: tuple[str, ...], expected: tuple[str, str]
) -> None:
    source.execute(PAIR)
    dest.execute("CREATE SCHEMA dw")
    for name, columns in zip(
        expected, ("id int, name text", "id int, customer int, at date"), strict=True
    ):
        dest.execute(f"CREATE TABLE {name} ({columns})")

    assert ended(move(source, dest, schema=False, into=into))

    assert rows(dest, expected[0]) == 50
    assert rows(dest, expected[1]) == 500


def test_two_tables_do_not_go_into_one(source: Database, dest: Database) -> None:
    source.execute("CREATE TABLE a (id int); CREATE TABLE b (id int)")
    dest.execute("CREATE TABLE c (id int)")
    with pytest.raises(PlanRefused, match=r"would both go into public\.c"):
        move(source, dest, schema=False, into=("public.a=public.c", "public.b=public.c"))


def test_partitions_that_differ_are_routed(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_all PARTITION OF event DEFAULT"
    )

    found = move(source, dest, schema=False)

    assert ended(found)
    assert [each.into for each in found.tables] == ["public.event"]
    assert rows(dest, "event_all") == 300


@pytest.mark.parametrize("verify", ["count", "checksum"])
@pytest.mark.one_of(2)
def test_partitions_that_are_routed_are_read_side_by_side(
    source: Database, dest: Database, verify: str
) -> None:
    """Whatever the order of their columns, small ones together, and large ones cut."""
    source.execute(
        "CREATE TABLE event (id int, word text, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_1 (gone int, at date NOT NULL, word text, id int);"
        "ALTER TABLE event_1 DROP COLUMN gone;"
        "ALTER TABLE event ATTACH PARTITION event_1 FOR VALUES FROM ('2018-01-01')"
        " TO ('2018-02-01');"
        "CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2018-02-01') TO ('2018-03-01')"
        " PARTITION BY RANGE (at);"
        "CREATE TABLE event_2_a PARTITION OF event_2 FOR VALUES FROM ('2018-02-01')"
        " TO ('2018-02-10');"
        "CREATE TABLE event_2_b PARTITION OF event_2 DEFAULT;"
        "CREATE TABLE event_rest PARTITION OF event DEFAULT;"
        "INSERT INTO event SELECT i, md5(i::text), '2018-01-01'::date + i % 31"
        " FROM generate_series(1, 40000) AS i;"
        "INSERT INTO event SELECT i, 'x', '2018-02-01'::date + i % 28"
        " FROM generate_series(1, 1000) AS i;"
        "INSERT INTO event VALUES (-1, 'rest', '2019-01-01')"
    )
    dest.execute(
        "CREATE TABLE event (id int, word text, at date NOT NULL) PARTITION BY HASH (id);"
        "CREATE TABLE event_even PARTITION OF event FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE event_odd PARTITION OF event FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    )

    found = move(source, dest, schema=False, part_bytes=MB, verify=verify)

    assert ended(found)
    (told,) = found.tables
    assert (told.rows, told.into) == (41001, "public.event")
    parts = dest.fetch("SELECT condition FROM copypipe.slice WHERE condition IS NOT NULL")
    read = [text.partition(" in the snapshot")[0] for (text,) in parts]
    assert len(read) == told.parts > 2
    assert sum("of public.event_1" in text for text in read) == told.parts - 1
    assert any("event_2_a" in text and "event_rest" in text for text in read)
    every = "SELECT count(*), md5(string_agg(e::text, ',' ORDER BY id, at)) FROM event AS e"
    assert dest.fetch(every) == source.fetch(every)


FOREIGN = """
CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER away FOREIGN DATA WRAPPER nowhere;
CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2018-01-01') TO ('2018-02-01');
INSERT INTO event SELECT i, '2018-01-01'::date + i % 30 FROM generate_series(1, 300) AS i;
CREATE FOREIGN TABLE event_2 PARTITION OF event FOR VALUES FROM ('2018-02-01') TO ('2018-03-01')
    SERVER away
"""


def test_foreign_tables_among_partitions(source: Database, dest: Database) -> None:
    """Their rows are seen through the root alone: they are never left behind without a word."""
    source.execute(FOREIGN)

    with pytest.raises(PlanRefused, match=r"public\.event has foreign tables among its partitions"):
        move(source, dest)

    # The root is read, whatever the dest has; this wrapper can read nothing, and says so.
    dest.execute(FOREIGN.partition("INSERT")[0].partition(";\n")[2])
    with pytest.raises(CopyFailed, match="no handler"):
        move(source, dest, schema=False)
    dest.execute("DROP TABLE event")
    assert ended(move(source, dest, "event_1"))
    assert rows(dest, "event_1") == 300


def test_hashes_of_enums_are_not_the_same_everywhere(source: Database, dest: Database) -> None:
    """hashenum() hashes OIDs: a row's partition is found by the dest itself."""
    tree = (
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h');"
        "CREATE TABLE t (id int, m mood) PARTITION BY HASH (m);"
        "CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "ALTER TABLE t0 ADD CHECK (id > 0); CREATE INDEX of_t0 ON t0 (id);"
        "CREATE INDEX of_t ON t (id, m)"
    )
    source.execute(
        f"{tree}; INSERT INTO t SELECT i, (enum_range(NULL::mood))[1 + i % 8]"
        " FROM generate_series(1, 40000) AS i"
    )
    dest.execute("CREATE TYPE other AS ENUM ('x'); CREATE TYPE third AS ENUM ('x', 'y')")

    found = move(source, dest, part_bytes=MB)

    assert ended(found)
    assert [each.into for each in found.tables] == ["public.t"]
    every = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t"
    assert dest.fetch(every) == source.fetch(every)
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    assert dest.fetch(indexes) == source.fetch(indexes)


def test_a_partition_that_is_being_detached_is_refused(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    with source.connect() as other, source.connect() as detaching:
        other.execute("BEGIN; SELECT count(*) FROM event")
        detaching.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            detaching.execute("ALTER TABLE event DETACH PARTITION event_2 CONCURRENTLY")
        other.execute("COMMIT")

    with pytest.raises(PlanRefused, match=r"being detached.*public\.event_2"):
        move(source, dest)

    assert ended(move(source, dest, asked=Asked(("event",), exclude=("event_2",))))
    assert rows(dest, "event") == rows(source, "event")


def test_partitions_that_are_alike_go_one_by_one(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(PARTED)
    dest.execute("TRUNCATE event")

    found = move(source, dest, schema=False)

    assert ended(found)
    assert {each.into for each in found.tables} == {"public.event_1", "public.event_2"}
    assert contents(dest) == contents(source)


BIG = "INSERT INTO {} SELECT i, '2018-01-01'::date + i % 50 FROM generate_series(1, 60000) AS i"


def test_rows_in_partitions_of_the_dest_are_seen(source: Database, dest: Database) -> None:
    """The root of a partitioned table holds none itself."""
    source.execute("CREATE TABLE event (id int, at date)")
    source.execute(BIG.format("event"))
    dest.execute(PARTED)

    with pytest.raises(PlanRefused, match=r"public\.event holds rows"):
        move(source, dest, schema=False, part_bytes=MB)

    assert ended(move(source, dest, schema=False, part_bytes=MB, replace=True))
    assert rows(dest, "event") == 60000


def test_partitions_that_differ_are_replaced(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_all PARTITION OF event DEFAULT;"
        "INSERT INTO event VALUES (7, '2018-01-01')"
    )

    with pytest.raises(PlanRefused, match=r"public\.event holds rows"):
        move(source, dest, schema=False)

    assert ended(move(source, dest, schema=False, replace=True))
    assert rows(dest, "event") == 300


def test_an_excluded_partition_is_not_routed(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_all PARTITION OF event DEFAULT"
    )

    with pytest.raises(PlanRefused, match=r"public\.event_2 would come"):
        move(source, dest, asked=Asked(("event",), exclude=("event_2",)), schema=False)

    assert rows(dest, "event") == 0


def test_a_plain_table_goes_into_partitions(source: Database, dest: Database) -> None:
    source.execute(
        "CREATE TABLE event (id int, at date); INSERT INTO event VALUES (1, '2018-01-05')"
    )
    dest.execute(PARTED)
    dest.execute("TRUNCATE event")

    assert ended(move(source, dest, schema=False))

    assert rows(dest, "event_1") == 1


def test_a_new_partition_of_a_table_that_is_there(source: Database, dest: Database) -> None:
    """It gets the indexes of that one when it is attached, and they are not made twice."""
    source.execute(PARTED)
    source.execute("ALTER TABLE event ADD PRIMARY KEY (id, at); CREATE INDEX by_day ON event (at)")
    assert ended(move(source, dest))
    source.execute(
        "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2018-03-01') TO ('2018-04-01');"
        "CREATE INDEX alone ON event_3 (id); INSERT INTO event VALUES (1, '2018-03-07')"
    )

    assert ended(move(source, dest, replace=True))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)


def test_a_new_partition_that_is_named_by_itself(source: Database, dest: Database) -> None:
    source.execute(f"{PARTED}; ALTER TABLE event ADD PRIMARY KEY (id, at)")
    dest.execute(f"{PARTED}; ALTER TABLE event ADD PRIMARY KEY (id, at); DROP TABLE event_2")

    assert ended(move(source, dest, "event_2"))

    assert contents(dest)["public.event_2"] == contents(source)["public.event_2"]
    found = "SELECT count(*) FROM pg_index WHERE indrelid = 'event_2'::regclass AND indisvalid"
    assert dest.scalar(found) == 1


def test_new_partitions_get_the_indexes_that_the_table_has(
    source: Database, dest: Database
) -> None:
    """Whatever these are called at the source, and whether it has more of them by now."""
    source.execute(PARTED)
    source.execute("CREATE INDEX by_day ON event (at)")
    assert ended(move(source, dest))
    source.execute(
        "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2018-03-01') TO ('2018-04-01')"
        " PARTITION BY LIST (id); DROP INDEX by_day;"
        "CREATE TABLE event_3_a PARTITION OF event_3 DEFAULT;"
        "CREATE INDEX of_event_3 ON event_3 (at); COMMENT ON INDEX of_event_3 IS 'x';"
        "CREATE INDEX of_event_3_a ON event_3_a (id); CREATE INDEX by_day ON event (at);"
        "CREATE INDEX by_id ON event (id); CREATE UNIQUE INDEX by_both ON event (id, at);"
        "INSERT INTO event VALUES (1, '2018-03-07');"
        "CREATE TABLE event_4 PARTITION OF event FOR VALUES FROM ('2018-04-01') TO ('2018-05-01');"
        "CREATE INDEX alone ON event_4 (id); ALTER TABLE event_4 CLUSTER ON event_4_at_idx;"
        "ALTER TABLE event_4 REPLICA IDENTITY USING INDEX event_4_id_at_idx"
    )
    heard = Heard()

    assert ended(move(source, dest, replace=True, listen=heard))

    (told,) = (text for text in heard if text.startswith("not told of new partitions"))
    assert [text for text in told.rpartition(": ")[2].split(", ")] == [
        "CLUSTER ON public.event_4_at_idx",
        "COMMENT public INDEX of_event_3",
        "REPLICA IDENTITY USING INDEX public.event_4_id_at_idx",
    ]

    assert contents(dest) == contents(source)
    indexed = "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'event_3_a%' ORDER BY 1"
    assert [text.rpartition(" ")[2] for (text,) in dest.fetch(indexed)] == ["(at)"]


def test_a_new_partition_with_partitions_and_indexes_of_its_own(
    source: Database, dest: Database
) -> None:
    """These are no parts of indexes that the table at the dest has, so they are made."""
    for database in (source, dest):
        database.execute("CREATE TABLE m (id int NOT NULL, k int, t text) PARTITION BY RANGE (id)")
        database.execute("CREATE INDEX by_text ON m (t)")
    source.execute(
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (100) PARTITION BY LIST (k);"
        "CREATE TABLE m_1_a PARTITION OF m_1 FOR VALUES IN (1, 2);"
        "CREATE TABLE m_1_b PARTITION OF m_1 DEFAULT; CREATE INDEX by_key ON m_1 (k, id);"
        "ALTER TABLE m_1 ADD CONSTRAINT both_of PRIMARY KEY (id, k);"
        "CREATE INDEX alone ON m_1_a (id); COMMENT ON INDEX by_key IS 'x';"
        "INSERT INTO m SELECT i, i % 4, 'x' FROM generate_series(1, 99) AS i"
    )

    assert ended(move(source, dest))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
    assert dest.scalar("SELECT bool_and(indisvalid) FROM pg_index")


@pytest.mark.parametrize(
    "there",
    [
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL)",
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY LIST (at);"
        "CREATE TABLE event_1 PARTITION OF event DEFAULT",
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY HASH (id);"
        "CREATE TABLE event_0 PARTITION OF event FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    ],
)
@pytest.mark.one_of(2)
def test_partitions_that_would_not_fit_are_not_made(
    source: Database, dest: Database, there: str
) -> None:
    """The dest's table is not partitioned, or by something else: the rows go there all the same."""
    source.execute(
        f"{PARTED}; CREATE INDEX by_day ON event (at);"
        "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2018-03-01') TO ('2018-04-01')"
        " PARTITION BY LIST (id); CREATE TABLE event_3_a PARTITION OF event_3 DEFAULT;"
        "INSERT INTO event VALUES (1, '2018-03-07')"
    )
    dest.execute(there)
    before = definitions(dest)
    heard = Heard()

    assert ended(move(source, dest, listen=heard))
    assert any("event_3_a are not made: the dest does not" in text for text in heard)

    assert rows(dest, "event") == rows(source, "event")
    assert definitions(dest) == before


def test_names_of_indexes_that_are_taken_are_told_before_the_rows(
    source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    dest.execute("CREATE TABLE invoice_at (id int); CREATE TABLE o (id int PRIMARY KEY)")
    dest.execute("ALTER INDEX o_pkey RENAME TO customer_pkey")

    with pytest.raises(PlanRefused, match="their names are taken") as caught:
        move(source, dest)

    assert "public.customer_pkey (index), public.invoice_at (table)" in str(caught.value)
    assert tables(dest) == {"invoice_at", "o"}


def test_tables_at_which_partitioned_ones_point_are_replaced(
    source: Database, dest: Database
) -> None:
    """A partitioned table goes with its partitions, each of which is moved by itself."""
    source.execute(
        "CREATE TABLE base (id int PRIMARY KEY);"
        "CREATE TABLE m (id int PRIMARY KEY REFERENCES base) PARTITION BY RANGE (id);"
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (50) PARTITION BY LIST (id);"
        "CREATE TABLE m_1_a PARTITION OF m_1 DEFAULT; CREATE TABLE m_2 PARTITION OF m DEFAULT;"
        "CREATE TABLE pointing (id int REFERENCES m);"
        "CREATE TABLE bare (id int REFERENCES base) PARTITION BY RANGE (id);"
        "INSERT INTO base SELECT generate_series(1, 99); INSERT INTO m SELECT id FROM base;"
        "INSERT INTO pointing SELECT id FROM m"
    )
    assert ended(move(source, dest))
    source.execute("DELETE FROM pointing WHERE id = 7; DELETE FROM m WHERE id = 7")

    assert ended(move(source, dest, replace=True))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)


def test_a_key_that_points_at_a_table_without_these_partitions_is_made(
    source: Database, dest: Database
) -> None:
    """Also where only a part of them would not fit; keys of these alone are told."""
    source.execute(
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (50) PARTITION BY LIST (id);"
        "CREATE TABLE m_1_a PARTITION OF m_1 DEFAULT;"
        "CREATE TABLE m_2 PARTITION OF m FOR VALUES FROM (50) TO (100);"
        "CREATE TABLE pointing (id int REFERENCES m, other int REFERENCES m_1_a, typed m_1_a);"
        "INSERT INTO m SELECT generate_series(1, 99); INSERT INTO pointing VALUES (1, 1)"
    )
    dest.execute(
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (50)"
    )
    heard = Heard()

    assert ended(move(source, dest, listen=heard))

    assert rows(dest, "m") == 99
    assert tables(dest) == {"m", "m_1", "m_2", "pointing", "m_1_a"}
    assert rows(dest, "m_1_a") == 0, "it is there for its row type"
    (told,) = (text for text in heard if text.startswith("left out"))
    assert told.endswith("that do not come: FK CONSTRAINT public pointing pointing_other_fkey")
    keys = (
        "SELECT conname FROM pg_constraint WHERE conrelid = 'pointing'::regclass"
        " AND contype = 'f' AND conparentid = 0"
    )
    assert dest.fetch(keys) == [("pointing_id_fkey",)]


@pytest.mark.parametrize(
    "root",
    [
        "",
        "CREATE TABLE event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2018-01-01') TO ('2018-02-01');",
    ],
)
@pytest.mark.one_of(2)
def test_partitions_without_their_table_are_refused(
    source: Database, dest: Database, root: str
) -> None:
    source.execute(PARTED)
    dest.execute(f"{root}CREATE TABLE event_2 (id int NOT NULL, at date NOT NULL)")
    before = tables(dest)

    with pytest.raises(PlanRefused, match=r"not of the tables .*event_2 \(of public\.event\)"):
        move(source, dest)

    assert tables(dest) == before


@pytest.mark.parametrize(
    "taken",
    [
        "CREATE TABLE alone (id int)",
        # The dest calls the part of the root's index by the name of the partition's own one.
        "CREATE INDEX by_id ON event (id)",
    ],
)
@pytest.mark.one_of(2)
def test_names_of_a_new_partitions_own_indexes_that_are_taken(
    source: Database, dest: Database, taken: str
) -> None:
    source.execute(
        f"{PARTED}; CREATE INDEX event_2_id_idx ON event_2 (id) WHERE id > 7;"
        "CREATE INDEX alone ON event_2 (at); CREATE INDEX by_id ON event (id)"
    )
    dest.execute(f"{PARTED}; DROP TABLE event_2; TRUNCATE event; {taken}")
    before = tables(dest)

    with pytest.raises(PlanRefused, match=r"names are taken: public\.(alone|event_2_id_idx)"):
        move(source, dest)

    assert tables(dest) == before
    assert dest.scalar("SELECT to_regclass('copypipe.migration')") is None


def test_missing_partitions_are_made(source: Database, dest: Database) -> None:
    source.execute(PARTED)
    dest.execute(PARTED)
    dest.execute("TRUNCATE event; DROP TABLE event_2")

    assert ended(move(source, dest))

    assert contents(dest) == contents(source)
    assert dest.scalar("SELECT count(*) FROM pg_inherits WHERE inhparent = 'event'::regclass") == 2


# ------------------------------------------------------------------------------- and the rest


def test_a_rehearsal(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    source.execute(PARTED)

    assert ended(move(source, dest, limit=10))

    assert rows(dest, "customer") == 10
    assert rows(dest, "invoice") == 10
    assert rows(dest, "event_1") == rows(dest, "event_2") == 10
    assert foreign_keys(dest) == 0
    whole = "SELECT count(*) FROM copypipe.slice WHERE condition IS NULL"
    assert dest.scalar(whole) == 0, "nothing tells that all rows are there"
    assert ended(move(source, dest, replace=True))
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source), "the foreign keys come with the rows"


@pytest.mark.parametrize(("part_bytes", "transactions"), [(64 * MB, 1), (MB, 4)])
def test_all_steps_of_a_small_table_are_one_transaction(
    source: Database, dest: Database, part_bytes: int, transactions: int
) -> None:
    """Two indexes, a key, statistics: those of a large one are made side by side."""
    source.execute(PAIR)

    assert ended(move(source, dest, "customer", part_bytes=part_bytes))

    done = "SELECT count(*), count(DISTINCT xmin::text) FROM copypipe.migration_step"
    assert dest.fetch(done) == [(5, transactions)]


def test_frozen_rows_where_a_table_is_copied_as_one(source: Database, dest: Database) -> None:
    source.execute("CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 1000)")
    dest.execute("CREATE EXTENSION pageinspect")

    assert ended(move(source, dest))

    frozen = (
        "SELECT bool_and(t_infomask & 768 = 768)"
        " FROM heap_page_items(get_raw_page('t', 0)) WHERE lp = 1"
    )
    assert dest.scalar(frozen) is True


def test_the_dry_run_tells_all_and_changes_nothing(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("CREATE TABLE customer (id int, name text); INSERT INTO customer VALUES (7, 'x')")

    found = propose(options(source, dest))

    assert {(each.move.full_name, each.is_there, each.holds_rows) for each in found.tables} == {
        ("public.customer", True, True),
        ("public.invoice", False, False),
    }
    assert "TABLE public invoice" in found.makes
    assert "TABLE public customer" not in found.makes
    # The key to customer is not made: that table is there, and it lacks a primary key.
    told = {(step.kind, step.statement.split(" ")[0], step.name) for step in found.steps}
    assert told == {
        ("index", "CREATE", "public.invoice_pkey"),
        ("index", "CREATE", "public.invoice_at"),
        ("constraint", "ALTER", "invoice_pkey of public.invoice"),
        ("reference", "ALTER", "invoice_customer_fkey of public.invoice"),
        ("validation", "ALTER", "invoice_customer_fkey of public.invoice"),
        ("analyze", "ANALYZE", "public.customer"),
        ("analyze", "ANALYZE", "public.invoice"),
    }
    assert "holds rows" in str(found.refusals[0])
    assert tables(dest) == {"customer"}
    assert dest.scalar("SELECT to_regnamespace('copypipe')") is None


def test_the_dry_run_tells_which_indexes_are_dropped(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer")
    before = definitions(dest)

    found = propose(options(source, dest, schema=False, defer_indexes=True))

    assert found.drops == ("public.invoice_at",)
    assert [step.name for step in found.steps if step.kind == "index"] == ["public.invoice_at"]
    assert definitions(dest) == before


def test_what_is_no_table_is_told_when_all_tables_move(source: Database, dest: Database) -> None:
    """Once: what the dest has is not missed, and what a table needs comes."""
    source.execute(PAIR)
    besides = "CREATE VIEW seen AS SELECT 1 AS one; CREATE SEQUENCE numbers"
    source.execute(besides)
    source.execute("CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42'")
    source.execute("CREATE TABLE asks (id int DEFAULT answer())")
    heard = Heard()

    found = propose(options(source, dest))
    move(source, dest, listen=heard)

    assert set(found.not_tables) == {"VIEW public seen", "SEQUENCE public numbers"}
    (told,) = [text for text in heard if "do not come" in text]
    assert "public seen" in told
    assert "answer" not in told
    dest.execute(besides)
    assert propose(options(source, dest)).not_tables == ()
    assert propose(options(source, dest, "customer", "invoice")).not_tables == ()


@pytest.mark.parametrize("schema", [True, False], ids=["", "--no-schema"])
@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("view", "CREATE VIEW customer AS SELECT 1 AS id"),
        ("sequence", "CREATE SEQUENCE customer"),
        ("type", "CREATE TYPE customer AS (id int)"),
    ],
)
@pytest.mark.one_of(5)
def test_a_name_that_is_not_of_a_table_is_refused(
    source: Database, dest: Database, kind: str, statement: str, schema: bool
) -> None:
    source.execute(PAIR)
    dest.execute(statement)

    with pytest.raises(PlanRefused, match=rf"public\.customer \({kind}\)"):
        move(source, dest, "customer", schema=schema)


def test_what_is_there_is_known_by_its_name(source: Database, dest: Database) -> None:
    """Also what has no reg* type."""
    besides = (
        "CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple);"
        "CREATE TYPE box2 AS (w int, h int);"
        "CREATE FUNCTION area(box2) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1.w * $1.h';"
        "CREATE CAST (box2 AS int) WITH FUNCTION area(box2);"
        "CREATE FUNCTION more(box2, box2) RETURNS bool LANGUAGE sql IMMUTABLE"
        " AS 'SELECT public.area($1) > public.area($2)';"
        "CREATE OPERATOR >> (LEFTARG = box2, RIGHTARG = box2, FUNCTION = more)"
    )
    source.execute(besides)
    dest.execute(besides)
    source.execute(
        "CREATE TABLE page (b box2 CHECK (b >> '(0,0)'), size int GENERATED ALWAYS AS (b::int)"
        " STORED, words text, found tsvector GENERATED ALWAYS AS"
        " (to_tsvector('plain'::regconfig, words)) STORED);"
        "INSERT INTO page VALUES ('(1,2)', DEFAULT, 'a word')"
    )

    assert ended(move(source, dest))

    assert contents(dest) == contents(source)


def test_a_whole_table_is_in_the_ledger(source: Database, dest: Database) -> None:
    """So that whoever copies days later knows what is there."""
    source.execute(PAIR)
    source.execute(
        "INSERT INTO customer (name)"
        " SELECT repeat('x', 500) || i FROM generate_series(1, 9000) AS i"
    )

    found = move(source, dest, part_bytes=MB, verify="checksum")

    assert ended(found)
    told = dict(
        (name, (count, checksum is not None))
        for name, count, checksum in dest.fetch(
            "SELECT dest_table, rows_copied, checksum FROM copypipe.slice WHERE condition IS NULL"
        )
    )
    assert told == {"public.customer": (9050, True), "public.invoice": (500, True)}
    (customer,) = [each for each in found.tables if each.into == "public.customer"]
    assert customer.parts > 1
    assert customer.digest == dest.scalar(
        "SELECT checksum FROM copypipe.slice"
        " WHERE dest_table = 'public.customer' AND condition IS NULL"
    )


def test_two_migrations_do_not_meet(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer")
    met: list[Exception] = []

    def listen(event: object) -> None:
        if dest.scalar("SELECT to_regclass('copypipe.migration')") is not None and not met:
            try:
                move(source, dest, schema=False, wait_lock=0, replace=True)
            except SliceBusy as error:
                met.append(error)

    assert ended(move(source, dest, schema=False, listen=listen))
    assert "another run is at work on" in str(met[0])


def test_a_failing_table_does_not_stop_the_others(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer; ALTER TABLE invoice ADD CHECK (id < 400)")
    source.execute("CREATE TABLE third (id int); INSERT INTO third VALUES (1)")
    dest.execute("CREATE TABLE third (id int)")

    found = move(source, dest, schema=False)

    assert {each.into: each.state for each in found.tables} == {
        "public.customer": "copied",
        "public.invoice": "failed",
        "public.third": "copied",
    }
    assert not found.is_ended
    dest.execute("ALTER TABLE invoice DROP CONSTRAINT invoice_id_check")
    again = move(source, dest, resume=True)
    assert ended(again)
    assert {each.into: each.state for each in again.tables}["public.third"] == "kept"
    assert contents(dest) == contents(source)


def test_rows_without_a_column_are_refused(source: Database, dest: Database) -> None:
    source.execute("CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES; CREATE TABLE nothing ()")
    with pytest.raises(PlanRefused, match=r"public\.bare has rows, but no column"):
        move(source, dest)
    assert ended(move(source, dest, asked=Asked(("*",), exclude=("bare",))))
    assert tables(dest) == {"nothing"}


def test_a_hostile_comment_is_a_comment(source: Database, dest: Database) -> None:
    """It looks like the header of an entry in what pg_restore prints, and brings a statement."""
    source.execute(PAIR)
    source.execute(
        "COMMENT ON INDEX invoice_at IS '\n--\n-- TOC entry 1 (class 0 OID 0)\n-- Name: x\n--\n\n"
        "CREATE TABLE stolen (); --'"
    )

    assert ended(move(source, dest))

    assert "stolen" not in tables(dest)
    assert definitions(dest) == definitions(source)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2018-03-01') TO ('2018-04-01');"
        "INSERT INTO event VALUES (1000, '2018-03-05')",
        "ALTER TABLE event DETACH PARTITION event_2",
        "ALTER TABLE event_2 RENAME TO event_3",
        "DROP TABLE event_2; CREATE TABLE event_2 (id int, at date)",
    ],
)
def test_partitions_that_come_and_go_meanwhile_are_noticed(
    source: Database, dest: Database, change: str
) -> None:
    """Between the look at the source and the locks: else rows would be missing."""
    source.execute(PARTED)

    class Changes(Heard):
        def append(self, text: str) -> None:
            if "the dest needs about" in text:
                source.execute(change)

    with pytest.raises((PlanRefused, CopyFailed)):
        move(source, dest, listen=Changes())

    assert tables(dest) == set()


def test_two_that_start_together_do_not_double_the_rows(source: Database, dest: Database) -> None:
    """Both find no table: one makes and fills it, the other one waits and is refused."""
    source.execute("CREATE TABLE t (id int, word text)")
    source.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20000) AS i")
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(move(source, dest, part_bytes=MB).is_ended)
        except PlanRefused as refused:
            outcomes.append(refused.message)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rows(dest, "t") == 20000
    assert outcomes.count(True) == 1


def test_a_comment_on_a_foreign_key_comes_behind_it(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    source.execute("COMMENT ON CONSTRAINT invoice_customer_fkey ON invoice IS 'who pays'")

    assert ended(move(source, dest))

    assert definitions(dest) == definitions(source)


def test_what_comes_besides_tables(source: Database, dest: Database) -> None:
    """Comments, and checks of domains that old values need not pass."""
    source.execute(
        "CREATE TYPE mood AS ENUM ('good'); COMMENT ON TYPE mood IS 'how one is';"
        "CREATE DOMAIN positive AS int; COMMENT ON DOMAIN positive IS 'above 0';"
        "CREATE TABLE t (feeling mood, size positive); INSERT INTO t VALUES ('good', -1);"
        "ALTER DOMAIN positive ADD CONSTRAINT above CHECK (VALUE > 0) NOT VALID"
    )

    assert ended(move(source, dest))

    assert definitions(dest) == definitions(source)
    assert contents(dest) == contents(source)


def test_a_parent_is_emptied_with_a_child_that_is_empty(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice")

    assert ended(move(source, dest, replace=True, schema=False))

    assert contents(dest) == contents(source)


def test_a_sequence_that_is_too_narrow_is_named(source: Database, dest: Database) -> None:
    """At once where it is there; else in the end, and the others are set."""
    source.execute("CREATE TABLE wide (id bigserial, other serial)")
    source.execute("INSERT INTO wide DEFAULT VALUES; SELECT setval('wide_id_seq', 3000000000)")
    dest.execute(
        "CREATE TABLE wide (id bigint, other serial); CREATE SEQUENCE wide_id_seq AS int;"
        "ALTER TABLE wide ALTER id SET DEFAULT nextval('wide_id_seq')"
    )

    with pytest.raises(PlanRefused, match=r"public\.wide_id_seq \(3000000000\)") as caught:
        move(source, dest, schema=False)

    assert "AS bigint" in (caught.value.hint or "")
    source.execute("SELECT setval('wide_id_seq', 7)")

    def grow(event: object) -> None:
        if dest.scalar("SELECT to_regclass('copypipe.migration')") is not None:
            source.execute("SELECT setval('wide_id_seq', 3000000000), setval('wide_other_seq', 9)")

    with pytest.raises(CopyFailed, match=r"public\.wide_id_seq \(3000000000\)"):
        move(source, dest, schema=False, listen=grow)
    assert dest.scalar("SELECT last_value FROM wide_other_seq") == 9
    dest.execute("ALTER SEQUENCE wide_id_seq AS bigint")
    assert ended(move(source, dest, resume=True))
    assert contents(dest) == contents(source)


def test_each_step_that_fails_is_told(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    source.execute("CREATE ROLE copypipe_test_a; CREATE ROLE copypipe_test_b")
    source.roles += ["copypipe_test_a", "copypipe_test_b"]
    source.execute(
        "CREATE POLICY one ON customer TO copypipe_test_a;"
        "CREATE POLICY two ON customer TO copypipe_test_b;"
        "CREATE POLICY three ON customer TO public"
    )

    found = move(source, dest)

    told = {what: str(error) for what, error in found.failed}
    assert [what.rsplit(" ", 1)[1] for what in told] == ["one", "two"]
    assert all(
        name in told[f"other POLICY public customer {what}"]
        for what, name in (("one", "copypipe_test_a"), ("two", "copypipe_test_b"))
    )
    assert dest.fetch("SELECT polname FROM pg_policy") == [("three",)]


def test_a_lock_of_somebody_else_is_explained(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("CREATE TABLE customer (id int, name text)")
    with dest.connect() as other:
        other.execute("BEGIN; LOCK TABLE customer IN SHARE MODE")

        with pytest.raises(CopypipeError) as caught:
            move(source, dest, wait_lock=1.0)

    assert "pg_locks tells who" in (caught.value.hint or "")


def test_an_older_dest_need_not_know_the_types_of_functions(source: Database) -> None:
    """to_regprocedure() raises there where a type of an argument is missing."""
    found = [each for each in launcher.find_all() if each.major < 16]
    if not found:
        pytest.skip("no server before 16 is installed")
    source.execute(
        "CREATE SCHEMA own; CREATE TYPE own.mood AS ENUM ('good');"
        "CREATE FUNCTION own.felt(own.mood) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';"
        "CREATE TABLE own.t (id int DEFAULT own.felt('good'), m own.mood);"
        "INSERT INTO own.t (m) VALUES ('good')"
    )
    with launcher.launch(found[0]) as server:
        dest = Endpoint(server.dsn(socket=True), "test")
        asked = replace(options(source, source), dest=dest)

        assert ended(Migration(asked)())

        with psycopg.connect(server.dsn(socket=True)) as there:
            assert there.execute("SELECT * FROM own.t").fetchall() == [(1, "good")]


def test_a_sequence_is_never_set_back(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer; SELECT setval('customer_id_seq', 1000)")

    assert ended(move(source, dest, schema=False))

    assert dest.scalar("SELECT last_value FROM customer_id_seq") == 1000


DRAWING = (
    "CREATE SEQUENCE audit; SELECT setval('audit', 9000000000); CREATE SEQUENCE s;"
    "SELECT setval('s', 10); CREATE FUNCTION f() RETURNS int BEGIN ATOMIC"
    " SELECT nextval('audit'); SELECT nextval('s')::int; END; CREATE TABLE t (id int DEFAULT f())"
)


@pytest.mark.parametrize(
    ("there", "sequence"),
    [
        ("CREATE TABLE t (id serial)", "t_id_seq"),
        ("CREATE SEQUENCE s; CREATE TABLE t (id int DEFAULT nextval('s'))", "s"),
        (
            "CREATE SEQUENCE s; CREATE TABLE o (id serial);"
            "CREATE TABLE t (id int DEFAULT nextval('s') + nextval('o_id_seq'))",
            "s",
        ),
    ],
)
@pytest.mark.one_of(2)
def test_what_else_a_column_draws_from_pushes_nothing(
    source: Database, dest: Database, there: str, sequence: str
) -> None:
    source.execute(DRAWING)
    dest.execute(there)

    assert ended(move(source, dest, "t", schema=False))

    assert dest.scalar(f"SELECT last_value FROM {sequence}") == 10
    if dest.scalar("SELECT to_regclass('o_id_seq')") is not None:
        assert dest.scalar("SELECT last_value FROM o_id_seq") < 1000


@pytest.mark.parametrize("step", [5, -5])
def test_a_sequence_that_others_draw_from_is_not_set_back(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Between the look at it and the moment at which it is set."""
    for database in (source, dest):
        database.execute(
            f"CREATE TABLE t (id int GENERATED BY DEFAULT AS IDENTITY (INCREMENT {step}))"
        )
    source.execute("SELECT nextval('t_id_seq') FROM generate_series(1, 2)")
    wanted = sequences.wanted
    drawn: list[int] = []

    def drawn_from(*args: Any) -> sequences.Wanted:
        found = wanted(*args)
        numbers = dest.fetch("SELECT nextval('t_id_seq') FROM generate_series(1, 5)")
        drawn.extend(number for (number,) in numbers)
        return found

    monkeypatch.setattr(sequences, "wanted", drawn_from)

    assert ended(move(source, dest, schema=False))

    assert dest.scalar("SELECT last_value FROM t_id_seq") == drawn[-1]


def test_one_step_that_fails_does_not_hold_back_the_others(
    source: Database, dest: Database
) -> None:
    """A foreign key that does not hold at the source, and a policy for a role of its own."""
    source.execute(PAIR)
    role = source.role("policy").name
    source.execute(
        "ALTER TABLE customer DISABLE TRIGGER ALL; SET session_replication_role = replica;"
        "INSERT INTO invoice VALUES (-1, 12345, '2018-01-01'); RESET session_replication_role;"
        f"CREATE POLICY own ON invoice TO {role} USING (true);"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER touched BEFORE UPDATE ON invoice FOR EACH ROW EXECUTE FUNCTION f()"
    )

    found = move(source, dest)

    assert len(found.failed) == 2
    assert not found.is_ended
    assert dest.scalar("SELECT last_value FROM customer_id_seq") == 50
    assert dest.scalar("SELECT count(*) FROM pg_trigger WHERE tgname = 'touched'") == 1
    assert foreign_keys(dest) == 1
    source.execute("DROP POLICY own ON invoice")


def test_backslashes_stay_what_they_are(source: Database, dest: Database) -> None:
    """Also where the source's database writes literals the old way."""
    source.execute(f"ALTER DATABASE {source.name} SET standard_conforming_strings = off")
    with source.connect() as other:
        other.execute(r"CREATE TABLE t (a text DEFAULT E'a\\b')")
        other.execute(r"COMMENT ON TABLE t IS E'C:\\new'")

    assert ended(move(source, dest))

    assert dest.scalar("SELECT obj_description('t'::regclass)") == r"C:\new"
    dest.execute("INSERT INTO t DEFAULT VALUES")
    assert dest.scalar("SELECT a FROM t") == r"a\b"


def test_another_encoding(servers: Servers, dest: Database) -> None:
    with encoded(servers.source, "LATIN1") as source:
        source.execute('CREATE TABLE "ü" (id int, "ö" text); INSERT INTO "ü" VALUES (1, \'ä\')')

        assert ended(move(source, dest))

    assert dest.scalar('SELECT "ö" FROM "ü"') == "ä"


def test_tables_that_do_not_move_are_not_waited_for(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    source.execute("CREATE TABLE locked (id int)")
    with source.connect() as other:
        other.execute("BEGIN; LOCK TABLE locked")

        dest.execute("CREATE TABLE customer (id int, name text)")
        assert ended(move(source, dest, "customer", wait_lock=1.0, schema=False))


def alter(source: Database) -> threading.Thread:
    """Begin an ALTER TABLE that has to wait; return who waits."""
    run = source.connect().execute
    thread = threading.Thread(target=run, args=("ALTER TABLE invoice ADD x int",))
    thread.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    eventually(lambda: source.scalar(waiting) == 1, what="it waits")
    return thread


def test_an_alter_table_behind_the_leader_does_not_hold_everything_up(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the leader, and whoever plans would wait for it."""
    source.execute(PAIR)
    waiting: list[threading.Thread] = []

    def make(*args: object) -> plans.Plan:
        if not waiting:
            waiting.append(alter(source))
        return plans.make(*args, patience="200ms")  # type: ignore[arg-type]

    monkeypatch.setattr(work, "_make_plan", make)

    found = move(source, dest, jobs=1)

    waiting[0].join()
    assert [error.sqlstate for _, error in found.failed] == ["55P03"]
    assert {each.into: each.state for each in found.tables}["public.customer"] == "copied"


def test_nor_does_pg_dump_wait_for_it(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute(PAIR)
    waiting: list[threading.Thread] = []

    class Alters(Heard):
        def append(self, text: str) -> None:
            if "what is written at the source after" in text:
                waiting.append(alter(source))

    monkeypatch.setattr(schemas, "LOCK_SECONDS", 1)

    with pytest.raises(CopyFailed, match="pg_dump failed") as caught:
        move(source, dest, listen=Alters())

    waiting[0].join()
    assert "timeout" in (caught.value.detail or "")
    assert "locked a table" in (caught.value.hint or "")


def test_all_tables_are_of_one_moment(source: Database, dest: Database) -> None:
    """What is written at the source behind the first rows that were copied is not copied."""
    source.execute(PAIR)
    source.execute(
        "CREATE TABLE big AS SELECT i AS id, repeat('x', 100) AS word"
        " FROM generate_series(1, 30000) AS i"
    )
    before = contents(source)
    written = False

    def listen(event: object) -> None:
        nonlocal written
        if written or dest.scalar("SELECT to_regclass('copypipe.migration')") is None:
            return
        if dest.scalar("SELECT count(*) FROM copypipe.slice") > 0:
            written = True
            source.execute(
                "INSERT INTO big VALUES (-1, 'late'); DELETE FROM big WHERE id > 29000;"
                "INSERT INTO invoice VALUES (-1, 1, '2018-01-02');"
                "DELETE FROM invoice WHERE id = 9;"
                "INSERT INTO customer VALUES (-1, 'late')"
            )

    assert ended(move(source, dest, listen=listen, jobs=1, part_bytes=MB))

    assert written
    assert contents(dest) == before
