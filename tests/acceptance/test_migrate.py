"""`copypipe migrate`: what it prints, how it ends, and how it goes on."""

import json
import re
import shlex
import signal
import time

import pytest

from plugins.command import Command, Words, eventually
from plugins.databases import Database
from plugins.schemas import contents, definitions

PAIR = """
CREATE TABLE customer (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer, at date);
INSERT INTO customer (name) SELECT 'c' || i FROM generate_series(1, 50) AS i;
INSERT INTO invoice SELECT i, i % 50 + 1, '2018-01-01' FROM generate_series(1, 500) AS i
"""


@pytest.fixture
def pair(kept_source: Database, kept_dest: Database) -> tuple[Database, Database]:
    kept_source.execute(PAIR)
    return kept_source, kept_dest


def test_whole_tables(words: Words, pair: tuple[Database, Database]) -> None:
    source, dest = pair
    run = words("migrate", "--all-tables", "--jobs", "2")

    assert run.code == 0
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
    head, *rows, last = run.out.splitlines()
    assert head.split() == ["table", "rows", "size", "copy", "indexes", "constraints"]
    assert [row.split()[:3] for row in sorted(rows)] == [
        ["public.customer", "copied", "50"],
        ["public.invoice", "copied", "500"],
    ]
    assert re.match(r"2 tables: 2 copied; 550 rows, .* in \d+\.\d s \(over all jobs: copy ", last)
    assert re.search(r"2 tables of .*: the dest needs about .* of disk", run.err)
    assert re.search(r"what is written at the source after 20\d\d-.* is not copied", run.err)


def test_as_json(words: Words, pair: tuple[Database, Database]) -> None:
    run = words("migrate", "customer", "--json", "--verify", "checksum")

    told = json.loads(run.out)
    assert run.code == 0
    assert (told["type"], told["ended"], told["failed"]) == ("migration", True, [])
    (table,) = told["tables"]
    assert (table["dest_table"], table["state"], table["rows"]) == ("public.customer", "copied", 50)
    assert table["checksum"].startswith("sha256/")
    assert {"id", "taken_at", "lsn", "seconds"} < told.keys()


def test_the_dry_run(words: Words, pair: tuple[Database, Database]) -> None:
    _, dest = pair
    run = words("migrate", "--all-tables", "--dry-run")

    assert run.code == 0
    assert re.search(r"public\.invoice  .* of indexes; is made", run.out)
    assert "makes    TABLE public invoice" in run.out
    assert "needs    about" in run.out
    assert 'validation ALTER TABLE "public"."invoice" VALIDATE CONSTRAINT' in run.out
    assert run.out.endswith("nothing was changed\n")
    assert contents(dest) == {}
    told = json.loads(words("migrate", "--all-tables", "--dry-run", "--json").out)
    assert {each["source_table"] for each in told["tables"]} == {
        "public.customer",
        "public.invoice",
    }


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "which tables?"),
        (("customer", "--all-tables"), 2, "all tables and some of them were asked for"),
        (("nothing",), 6, "no table matches nothing"),
        (("customer", "--into", "x"), 2, "names are mapped by --into only where"),
        (("customer", "--no-schema"), 6, "there is no table public.customer"),
        (("--resume",), 6, "no migration from this source waits to go on"),
        (("--resume", "customer"), 2, "--resume goes on with what was asked for at first"),
        (("customer", "--part-size", "1"), 2, "not a size"),
        (("--resume", "--dry-run"), 2, "shows what a migration would do from the beginning"),
    ],
)
def test_what_is_refused(
    words: Words, pair: tuple[Database, Database], args: tuple[str, ...], code: int, message: str
) -> None:
    _, dest = pair
    run = words("migrate", *args)

    assert run.code == code
    assert message in run.err
    assert contents(dest) == {}


def test_what_failed_is_told_with_the_command_that_goes_on(
    words: Words, pair: tuple[Database, Database]
) -> None:
    _, dest = pair
    dest.execute("CREATE TABLE invoice (id int CHECK (id < 400), customer int, at date)")

    run = words("migrate", "--all-tables", "--jobs", "2")

    assert run.code == 3
    assert "public.invoice all rows failed:" in run.err
    (command,) = re.findall(r"to go on: copypipe (migrate --resume --id \S+ .*)", run.err)
    dest.execute("ALTER TABLE invoice DROP CONSTRAINT invoice_id_check")
    again = words(*shlex.split(command))
    assert again.code == 0
    assert re.search(r"going on with migration \S+, begun .*: 1 of 2 tables are there", again.err)
    assert re.search(r"public.customer +kept", again.out)
    assert dest.scalar("SELECT count(*) FROM invoice") == 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.one_of(2)
def test_a_signal_tells_what_is_there_and_how_to_go_on(
    run: Command, source: Database, dest: Database, number: signal.Signals
) -> None:
    source.execute(PAIR)
    source.execute(
        "CREATE TABLE slow (id int PRIMARY KEY, word text);"
        "INSERT INTO slow SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) AS i"
    )
    process = run.start("migrate", "--all-tables", "--rate-limit", "1MB", "--jobs", "2")
    # Statistics are the last thing that is done of a table by itself.
    done_with = "SELECT count(*) FROM copypipe.migration_step WHERE kind = 'analyze'"
    copied = f"{done_with} AND done_at IS NOT NULL"
    eventually(
        lambda: (
            dest.scalar("SELECT to_regclass('copypipe.migration_table')") is not None
            and dest.scalar(copied) == 2
        ),
        what="the two small tables are there",
    )

    began = process.signal(number)
    done = process.wait()

    assert done.code == 128 + number
    assert time.monotonic() - began < 3
    assert re.search(r"public.slow +not begun", done.out)
    assert re.search(r"public.customer +copied", done.out)
    assert "rolled back, the dest is as it was" not in done.err
    (command,) = re.findall(r"to go on: copypipe (migrate --resume --id \S+.*)", done.err)
    again = run(*shlex.split(command.replace("1MB", "1GB")))
    assert again.code == 0
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)


def test_clean_removes_what_migrations_kept(words: Words, pair: tuple[Database, Database]) -> None:
    _, dest = pair
    assert words("migrate", "customer").code == 0

    assert words("clean", "--yes").code == 0

    assert dest.scalar("SELECT to_regnamespace('copypipe')") is None


def test_the_bar_counts_tables_and_parts_and_estimates_the_rest(
    run: Command, source: Database, dest: Database
) -> None:
    source.execute(PAIR)
    source.execute(
        "INSERT INTO customer (name)"
        " SELECT repeat(i::text, 20) FROM generate_series(10000, 40000) AS i"
    )
    source.execute("ANALYZE")

    found = run(
        *("migrate", "--all-tables", "--jobs", "2"),
        *("--part-size", "1MB", "--rate-limit", "2MB", "--progress", "bar"),
        tty=True,
    )

    assert found.code == 0
    drawn = re.findall(
        r"(\d+)%\|[^|]*\| [\d.]+M/([\d.]+M) \[\d\d:\d\d<\d\d:\d\d, +[\d.]+MB/s, "
        r"(\d)/2 tables, 2 jobs, (\d+)k rows, (\d)/(\d) parts, \d+/\d+ steps",
        found.err,
    )
    assert drawn, found.err
    percents, sizes, tables, rows, parts, of = zip(*drawn, strict=True)
    for each in (percents, tables, rows, parts):
        assert [*map(int, each)] == sorted(map(int, each))
    assert int(parts[-1]) > 0
    assert len({*sizes}) == len({*of}) == 1, "what there is to do is known from the start"


def test_one_table_is_told_of_as_one(words: Words, pair: tuple[Database, Database]) -> None:
    source, _ = pair
    source.execute("CREATE TABLE single (id int); INSERT INTO single VALUES (1)")

    run = words("migrate", "single")

    assert re.search("^1 table of ", run.err, re.MULTILINE)
    assert run.out.splitlines()[-1].startswith("1 table: 1 copied; 1 row, ")
