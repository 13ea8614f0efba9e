"""Who may migrate, from where: ordinary roles, a standby, an older dest, owners and grants."""

import pytest

from copypipe import schemas
from copypipe.errors import PlanRefused
from plugins.databases import Database
from plugins.moving import MB, Heard, ended, move
from plugins.schemas import contents, definitions, generated

PAIR = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE customer (id serial PRIMARY KEY, feeling mood DEFAULT 'good');
CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer);
INSERT INTO customer DEFAULT VALUES;
INSERT INTO invoice VALUES (1, 1)
"""


def test_ordinary_roles_do(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    reader = source.role("reader", "SELECT ON ALL TABLES IN SCHEMA public")
    source.execute(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {reader.name}")
    writer = dest.role("writer", f"CREATE ON DATABASE {dest.name}", "CREATE ON SCHEMA public")

    assert ended(move(reader, writer, verify="checksum"))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
    owners = dest.fetch(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace"
    )
    assert owners == [(writer.name,)]


def test_tables_that_may_not_be_read_are_named_at_once(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    reader = source.role("reader", "SELECT ON customer")

    with pytest.raises(PlanRefused, match=r"may not read public\.invoice") as caught:
        move(reader, dest)

    assert "GRANT SELECT" in (caught.value.hint or "")


def test_sequences_that_may_not_be_read_are_named_at_once(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    reader = source.role("reader", "SELECT ON ALL TABLES IN SCHEMA public")

    with pytest.raises(PlanRefused, match=r"sequences public\.customer_id_seq") as caught:
        move(reader, dest)

    assert "GRANT SELECT ON SEQUENCE" in (caught.value.hint or "")
    assert dest.scalar("SELECT to_regclass('public.customer')") is None


def test_sequences_of_others_that_a_made_table_draws_from_are_named_at_once(
    source: Database, dest: Database
) -> None:
    source.execute("CREATE SEQUENCE shared; CREATE TABLE t (id int DEFAULT nextval('shared'))")
    dest.execute("CREATE SEQUENCE shared")
    writer = dest.role("writer", f"CREATE ON DATABASE {dest.name}", "CREATE ON SCHEMA public")

    with pytest.raises(PlanRefused, match=r"may not set the sequences public\.shared"):
        move(source, writer)

    assert dest.scalar("SELECT to_regclass('t')") is None


def test_sequences_that_no_column_draws_from_need_no_right(
    source: Database, dest: Database
) -> None:
    """Those of a domain behind an array, or under a default of its own."""
    source.execute(
        "CREATE SEQUENCE s; CREATE DOMAIN numbered AS int DEFAULT nextval('s');"
        "CREATE TABLE t (many numbered[], own numbered DEFAULT 7); INSERT INTO t VALUES ('{1}')"
    )
    reader = source.role("reader", "SELECT ON t")

    assert ended(move(reader, dest, "t"))

    assert contents(dest) == contents(source)


def test_sequences_that_the_dest_lacks_need_no_right(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    reader = source.role("reader", "SELECT ON ALL TABLES IN SCHEMA public")
    dest.execute("CREATE TYPE mood AS ENUM ('good', 'bad')")
    dest.execute("CREATE TABLE customer (id int, feeling mood)")

    assert ended(move(reader, dest, "customer", schema=False))

    assert contents(dest)["public.customer"] == contents(source)["public.customer"]


def test_sequences_that_may_not_be_set_are_named_at_once(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE customer, invoice")
    writer = dest.role(
        "writer", f"CREATE ON DATABASE {dest.name}", "ALL ON ALL TABLES IN SCHEMA public"
    )
    with pytest.raises(PlanRefused, match=r"may not set the sequences public\.customer_id_seq"):
        move(source, writer, schema=False)

    assert dest.scalar("SELECT count(*) FROM customer") == 0
    dest.execute(f"GRANT SELECT, USAGE, UPDATE ON SEQUENCE customer_id_seq TO {writer.name}")
    assert ended(move(source, writer, schema=False))
    assert contents(dest) == contents(source)


def test_statistics_that_are_not_gathered_are_told(source: Database, dest: Database) -> None:
    """The server skips them with a mere warning."""
    source.execute(PAIR)
    dest.execute(PAIR)
    dest.execute("TRUNCATE customer, invoice")
    writer = dest.role(
        "writer",
        f"CREATE ON DATABASE {dest.name}",
        "INSERT, SELECT, TRUNCATE ON customer",
        "INSERT, SELECT, TRUNCATE ON invoice",
        "SELECT, USAGE, UPDATE ON SEQUENCE customer_id_seq",
    )
    dest.execute(f"ALTER TABLE invoice OWNER TO {writer.name}")
    heard = Heard()

    assert ended(move(source, writer, schema=False, listen=heard))

    (told,) = [text for text in heard if "no statistics" in text]
    assert "public.customer" in told
    assert "invoice" not in told
    steps = "SELECT name FROM copypipe.migration_step WHERE kind = 'analyze'"
    assert dest.fetch(steps) == [("public.invoice",)]


def test_who_may_make_nothing_is_told_and_nothing_is_made(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    writer = dest.role("writer", f"CREATE ON DATABASE {dest.name}")

    with pytest.raises(PlanRefused, match="permission denied for schema public") as caught:
        move(source, writer)

    assert "--no-schema" in (caught.value.hint or "")
    assert dest.scalar("SELECT to_regclass('public.customer')") is None


def test_owners_and_grants_come_when_asked_for(source: Database, dest: Database) -> None:
    """Roles are of a whole server: they must be at the dest's too."""
    source.execute(PAIR)
    name = "copypipe_test_migrate_owner"
    for database in (source, dest):
        database.execute(f"DROP ROLE IF EXISTS {name}; CREATE ROLE {name}")
        database.roles.append(name)
    source.execute(f"ALTER TABLE customer OWNER TO {name}; GRANT INSERT ON invoice TO {name}")
    source.execute("CREATE STATISTICS told ON id, feeling FROM customer")
    source.execute(f"ALTER STATISTICS told OWNER TO {name}")

    assert ended(move(source, dest, owner=True, acl=True))

    owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'customer'::regclass"
    assert dest.scalar(owner) == name
    owner = "SELECT stxowner::regrole::text FROM pg_statistic_ext WHERE stxname = 'told'"
    assert dest.scalar(owner) == name
    assert dest.scalar(f"SELECT has_table_privilege('{name}', 'invoice', 'INSERT')") is True


def test_an_older_dest_takes_what_it_knows(source: Database, dest: Database) -> None:
    """The other way round: from the newer server into the older one."""
    for statement in generated(20, seed=3):
        dest.execute(statement)

    assert ended(move(dest, source))

    assert contents(source) == contents(dest)
    assert source.server.major < dest.server.major


def test_without_a_client_that_reads_the_source(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute(PAIR)
    monkeypatch.setattr(schemas, "_candidates", lambda: [])

    with pytest.raises(
        PlanRefused, match=f"no pg_dump that reads PostgreSQL {source.server.major}"
    ):
        move(source, dest)

    dest.execute(PAIR)
    dest.execute("TRUNCATE invoice, customer")
    assert ended(move(source, dest, schema=False))
    assert contents(dest) == contents(source)


def test_a_dest_that_records_nothing_is_refused(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    dest.execute("CREATE PUBLICATION everything FOR ALL TABLES")

    with pytest.raises(PlanRefused, match="nothing can tell what of the migration is done"):
        move(source, dest)


def test_row_security_does_not_hide_rows(source: Database, dest: Database) -> None:
    source.execute(PAIR)
    source.execute("ALTER TABLE invoice ENABLE ROW LEVEL SECURITY")
    reader = source.role("reader", "SELECT ON ALL TABLES IN SCHEMA public")
    source.execute(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {reader.name}")

    with pytest.raises(PlanRefused, match=r"row security hides rows .* of public\.invoice"):
        move(reader, dest)

    assert dest.scalar("SELECT to_regclass('invoice')") is None


@pytest.mark.parametrize("part_bytes", [MB, 64 * MB])
def test_row_security_of_partitions_that_are_routed(
    source: Database, dest: Database, part_bytes: int
) -> None:
    """Through the root it hides nothing, however large the table is."""
    source.execute(
        "CREATE TABLE event (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (50000);"
        "CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (50000) TO (100000);"
        "INSERT INTO event SELECT generate_series(0, 99999);"
        "ALTER TABLE event_1 ENABLE ROW LEVEL SECURITY"
    )
    dest.execute("CREATE TABLE event (id int)")
    reader = source.role("reader", "SELECT ON ALL TABLES IN SCHEMA public")

    assert ended(move(reader, dest, schema=False, part_bytes=part_bytes))

    assert dest.scalar("SELECT count(*) FROM event") == 100000
