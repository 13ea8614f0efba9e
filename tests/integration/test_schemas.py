"""Tables are made at the dest as they are at the source, with all that they depend on."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.sql import SQL

from copypipe import PlanRefused, schemas, servers
from copypipe.errors import CopyFailed
from copypipe.requests import Endpoint
from copypipe.schemas import Entry, Selection, Tools
from copypipe.servers import Session
from plugins.databases import Database

EVERYTHING = r"""
CREATE TYPE public.mood AS ENUM ('good', 'bad');
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE SCHEMA other;
CREATE TABLE other.pair (one int, two public.mood);
CREATE SEQUENCE public.shared;
CREATE FUNCTION public.next_day() RETURNS date LANGUAGE sql AS 'SELECT current_date + 1';
CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What looks like settings, and like a new entry of a dump.
    PERFORM 1;
--
-- Name: nothing; Type: TABLE; Schema: public; Owner: -
--
    UPDATE public.customer
SET name = 'x' WHERE false;
/*
\restrict abc
*/
    RETURN NEW;
END $$;
CREATE TABLE public.customer (
    id serial PRIMARY KEY, name text NOT NULL UNIQUE, feeling public.mood DEFAULT 'good',
    size public.positive, since date DEFAULT public.next_day(), pair other.pair,
    number int DEFAULT nextval('public.shared'), long int GENERATED ALWAYS AS (length(name)) STORED,
    CHECK (name <> ''));
COMMENT ON TABLE public.customer IS 'who buys';
COMMENT ON COLUMN public.customer.name IS 'of the customer';
CREATE INDEX customer_lower ON public.customer (lower(name)) WHERE size > 1;
COMMENT ON INDEX public.customer_lower IS 'found by name';
CREATE STATISTICS public.both ON size, since FROM public.customer;
CREATE TABLE public.invoice (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer int REFERENCES public.customer DEFERRABLE, at date NOT NULL);
CREATE TRIGGER touched BEFORE UPDATE ON public.invoice FOR EACH ROW EXECUTE FUNCTION public.touch();
CREATE TABLE public.event (id int NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE public.event_2018 PARTITION OF public.event
    FOR VALUES FROM ('2018-01-01') TO ('2019-01-01');
CREATE INDEX event_at ON public.event (at);
ALTER TABLE public.event ADD PRIMARY KEY (id, at);
CREATE VIEW public.unwanted AS SELECT * FROM public.customer;
CREATE TABLE public.unwanted_table (id int PRIMARY KEY);
CREATE TYPE public.unwanted_type AS ENUM ('no');
"""
TABLES = ("customer", "invoice", "event", "event_2018")


@pytest.fixture
def ends(source: Database, dest: Database) -> Iterator[tuple[Session, Session]]:
    with (
        servers.connected("source", Endpoint(source.dsn, "test"), "schemas") as from_,
        servers.connected("dest", Endpoint(dest.dsn, "test"), "schemas") as to,
    ):
        yield from_, to


@pytest.fixture
def tools(source: Database) -> Tools:
    try:
        return schemas.find(source.server.major)
    except PlanRefused as refused:
        pytest.skip(refused.message)


class Archive:
    """The source's definitions, and what of them is to be made."""

    def __init__(self, session: Session, tools: Tools, folder: Path) -> None:
        self.tools = tools
        session.begin("REPEATABLE READ", read_only=True)
        snapshot = session.fetch_one(SQL("SELECT pg_catalog.pg_export_snapshot()").format())[0]
        self.path = schemas.dump(session, tools, snapshot, folder)
        session.rollback()
        self.entries = schemas.read(self.path, tools).entries

    def select(self, database: Database, *names: str) -> Selection:
        oids = {database.scalar("SELECT %s::regclass::oid", [f"public.{n}"]) for n in names}
        return schemas.select(self.entries, oids)

    def make(self, session: Session, wanted: Selection) -> None:
        for section in ("pre-data", "post-data"):
            text = schemas.script(self.path, self.tools, wanted.entries, section)
            session.begin("READ COMMITTED", read_only=False)
            if text:
                session.execute(SQL("{}").format(SQL(text)))
            session.commit()


def definitions(database: Database, *tables: str) -> list[str]:
    """Return what the newest pg_dump tells of the tables."""
    options = [f"--table=public.{name}" for name in tables]
    text = max(schemas._candidates(), key=lambda tools: tools.major).run(
        "pg_dump",
        ["--schema-only", "--no-owner", "--no-acl", *options, f"--dbname={database.dsn}"],
    )
    shown = [line for line in text.splitlines() if not re.match(r"--|SET |\\(un)?restrict", line)]
    return [line for line in shown if line.strip()]


def names(found: tuple[Entry, ...]) -> set[tuple[str, str]]:
    return {(entry.kind, entry.name.rsplit(" ", 1)[0]) for entry in found}


def test_tables_come_with_all_they_depend_on(
    source: Database, dest: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    source.execute(EVERYTHING)
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, *TABLES)

    archive.make(ends[1], wanted)

    assert definitions(dest, *TABLES) == definitions(source, *TABLES)
    assert names(wanted.others) == {("TABLE", "other pair")}
    assert wanted.left_out == ()
    made = {
        name for (name,) in dest.fetch("SELECT typname FROM pg_type WHERE typname ~ 'mood|unw'")
    }
    assert made == {"mood", "_mood"}
    assert dest.scalar("SELECT to_regclass('public.unwanted')") is None
    assert dest.scalar("SELECT to_regclass('public.unwanted_table')") is None
    body = "SELECT prosrc FROM pg_proc WHERE proname = 'touch'"
    assert dest.scalar(body) == source.scalar(body)


def test_what_needs_a_table_that_does_not_come_is_left_out(
    source: Database, dest: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    source.execute(EVERYTHING)
    source.execute(
        "CREATE TABLE public.payment (id int PRIMARY KEY, invoice bigint REFERENCES public.invoice,"
        " pair other.pair, what int REFERENCES public.unwanted_table)"
    )
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, "payment", "invoice")

    archive.make(ends[1], wanted)

    assert names(wanted.left_out) == {
        ("FK CONSTRAINT", "public invoice invoice_customer_fkey"),
        ("FK CONSTRAINT", "public payment payment_what_fkey"),
    }
    keys = "SELECT conname FROM pg_constraint WHERE contype = 'f'"
    assert dest.fetch(keys) == [("payment_invoice_fkey",)]


def lacking(ends: tuple[Session, Session], wanted: Selection) -> Selection:
    """Return the part of a selection that the dest lacks."""
    for session in ends:
        session.begin("READ COMMITTED", read_only=True)
    found = schemas.missing(*ends, wanted)
    for session in ends:
        session.rollback()
    return Selection(found, (), ())


def test_what_is_there_is_not_made_again(
    source: Database, dest: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    source.execute(EVERYTHING)
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, *TABLES)
    assert lacking(ends, wanted).entries == wanted.entries

    archive.make(ends[1], wanted)

    left = lacking(ends, wanted).entries
    assert names(left) == set(), "everything is there"


def test_a_table_that_is_there_is_left_as_it_is(
    source: Database, dest: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    """One of other columns and without an index, a type of other values, a function, a schema."""
    source.execute(EVERYTHING)
    dest.execute(
        "CREATE SCHEMA other; CREATE TYPE public.mood AS ENUM ('fine');"
        "CREATE TABLE public.customer (id int PRIMARY KEY, name text);"
        "CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'"
    )
    archive = Archive(ends[0], tools, tmp_path)
    wanted = lacking(ends, archive.select(source, *TABLES))

    archive.make(ends[1], wanted)

    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'public.customer'::regclass"
    assert dest.fetch(f"{columns} AND attnum > 0 ORDER BY attnum") == [("id",), ("name",)]
    assert dest.scalar("SELECT count(*) FROM pg_index WHERE indrelid = 'public.customer'::regclass")
    made = {"invoice", "event", "event_2018"}
    assert {name for kind, name in names(wanted.entries) if kind == "TABLE"} == {
        "other pair",
        *(f"public {name}" for name in made),
    }
    keys = "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
    assert dest.fetch(f"{keys} WHERE contype = 'f'") == [("invoice", "customer")]
    assert definitions(dest, "event", "event_2018") == definitions(source, "event", "event_2018")


@pytest.mark.parametrize("name", ['"Of Mine"', '"a.b"', '"x;y"', '"ö"', '"sequence SEQUENCE x"'])
@pytest.mark.one_of(3)
def test_names_of_any_letters_are_found(
    source: Database,
    dest: Database,
    ends: tuple[Session, Session],
    tools: Tools,
    tmp_path: Path,
    name: str,
) -> None:
    source.execute(
        f"CREATE TYPE {name} AS ENUM ('a'); CREATE TABLE public.{name[:-1]}t\" (a {name})"
    )
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, f'{name[:-1]}t"')

    archive.make(ends[1], lacking(ends, wanted))

    assert lacking(ends, wanted).entries == ()
    assert dest.scalar("SELECT count(*) FROM pg_type WHERE typtype = 'e'") == 1


def test_a_script_leaves_no_setting_behind(
    source: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    source.execute(EVERYTHING)
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, *TABLES)

    for section in ("pre-data", "post-data"):
        text = schemas.script(archive.path, tools, wanted.entries, section)
        settings = re.findall(r"^(?:SET|SELECT pg_catalog.set_config).*", text, re.MULTILINE)
        assert [line for line in settings if "name = 'x'" not in line] == [
            "SET LOCAL check_function_bodies = off;"
        ]
        assert not re.search(r"^\\(un)?restrict (?!abc)", text, re.MULTILINE)


def test_nothing_of_a_table_makes_an_empty_script(
    source: Database, ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    source.execute("CREATE TABLE public.plain (id int)")
    archive = Archive(ends[0], tools, tmp_path)
    wanted = archive.select(source, "plain")

    assert schemas.script(archive.path, tools, wanted.entries, "post-data") == ""


def test_a_password_stays_out_of_the_arguments(
    ends: tuple[Session, Session], tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = subprocess.run

    def noted(command: list[str], **options: object) -> object:
        seen.append(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", noted)

    Archive(ends[0], tools, tmp_path)

    password = ends[0].conn.info.password
    assert password
    assert password not in str(seen)


def test_what_pg_dump_says_is_told(
    ends: tuple[Session, Session], tools: Tools, tmp_path: Path
) -> None:
    with pytest.raises(CopyFailed, match="pg_dump failed") as caught:
        schemas.dump(ends[0], tools, "no-such-snapshot", tmp_path)
    assert "snapshot" in str(caught.value)


def test_a_client_that_is_too_old_is_refused() -> None:
    with pytest.raises(PlanRefused, match="no pg_dump that reads PostgreSQL 99") as caught:
        schemas.find(99)
    assert "--no-schema" in str(caught.value)


def test_the_oldest_client_that_will_do_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [Tools(Path("a"), None, 18), Tools(Path("b"), None, 15), Tools(Path("c"), None, 17)]
    monkeypatch.setattr(schemas, "_candidates", lambda: there)

    assert [schemas.find(major).major for major in (14, 15, 16, 18)] == [15, 15, 17, 18]
