"""The first copy makes the dest's ledger, once, and nothing is made where it is refused."""

import json
import threading
from concurrent.futures import Future

import psycopg
import pytest

from copypipe import PlanRefused, Transferred, __version__, keepers
from copypipe.events import Event, LedgerMade, Planned, Warned
from copypipe.requests import Endpoint
from copypipe.statements.ledger import RIGHTS
from plugins.command import Command, Words, no_backends
from plugins.ledgers import DAY, NEXT_DAY, Sides, add, hearing, warnings_of
from plugins.rows import assert_refused, unchanged

# --- when it is made ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "a day that is none": ("", ("--day", "2018-02-30")),
    "no slice": ("", ()),
    "no such table": ("", ("--day", DAY, "--into", "u")),
    "no such column": ("", ("--day", DAY, "--by", "x")),
    "no such zone": ("", ("--day", DAY, "--timezone", "Mars/Olympus")),
    "a column without a home": ("ALTER TABLE public.t DROP note", ("--day", DAY)),
    "types that do not fit": (
        "ALTER TABLE public.t ALTER id TYPE box USING NULL::box",
        ("--day", DAY),
    ),
    "a rule": (
        "CREATE RULE r AS ON INSERT TO public.t DO ALSO SELECT 1",
        ("--day", DAY),
    ),
    "rows that nobody agreed to replace": ("", ("--all",)),
    "a condition that is none": ("", ("--where", "id >")),
    "a transport that cannot": ("", ("--day", DAY, "--transport", "tls")),
}


@pytest.mark.parametrize(("sql", "options"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_leaves_no_ledger(
    sides: Sides, words: Words, sql: str, options: tuple[str, ...]
) -> None:
    if sql:
        sides.dest.execute(sql)

    done = words("copy", "t", *options)

    assert done.code in (2, 6), done.err
    assert not sides.has_ledger()


def test_a_dry_run_says_that_the_ledger_will_be_made_and_makes_none(
    sides: Sides, words: Words
) -> None:
    note = "the ledger (schema copypipe) will be made at the dest"
    options = ("copy", "t", "--day", DAY, "--dry-run")

    assert f"  {note}\n" in words(*options).out
    assert json.loads(words(*options, "--json").out)["ledger"] == "missing"
    assert not sides.has_ledger()
    assert "nothing is recorded in the ledger of the dest" in words(*options, "--no-ledger").out
    sides.make()
    before = [sides.told(table) for table in RIGHTS]
    assert "ledger" not in words(*options).out
    assert json.loads(words(*options, "--json").out)["ledger"] == "ready"
    assert [sides.told(table) for table in RIGHTS] == before


def test_the_first_copy_makes_it_and_says_so_once(sides: Sides, words: Words) -> None:
    first, second = (words("copy", "t", "--day", DAY) for _ in range(2))

    where = f"{sides.dest.server.conninfo['user']}@{sides.dest.server.host}"
    made = f"made the ledger, schema copypipe of {where}"
    assert (first.code, second.code) == (0, 0)
    assert [first.err.count(made), second.err.count(made)] == [1, 0]
    (version,) = sides.told("version")
    assert (version["version"], version["tool_version"]) == (1, __version__)


def test_eight_first_runs_in_threads_make_it_once(sides: Sides) -> None:
    """All of them have seen that there is none before the first one makes it."""
    barrier = threading.Barrier(8)
    made: list[LedgerMade] = []

    def hear(event: Event) -> None:
        if isinstance(event, Planned):
            barrier.wait(20)
        hearing(LedgerMade, made)(event)

    days = [f"2018-04-{day}" for day in range(20, 28)]
    for number, day in enumerate(days):
        add(sides.source, 100 + number, "x", day)

    done = [future.result(30) for future in [sides.start(day=d, listener=hear) for d in days]]

    assert [(each.rows, each.recorded) for each in done] == [(1, True)] * 8
    assert len(made) == len(sides.told("version")) == 1
    assert len(sides.told()) == 8
    assert sides.attempts("state") == [("copied",)] * 8
    no_backends(sides.source, sides.dest)


def test_eight_first_runs_as_processes_make_it_once(sides: Sides, run: Command) -> None:
    days = [f"2018-04-{day}" for day in range(20, 28)]
    for number, day in enumerate(days):
        add(sides.source, 100 + number, "x", day)

    ended = [process.wait() for process in [run.start("copy", "t", "--day", d) for d in days]]

    assert [each.code for each in ended] == [0] * 8, [each.err for each in ended]
    assert sum(each.err.count("made the ledger") for each in ended) == 1
    assert len(sides.told("version")) == 1
    assert len(sides.told()) == 8
    assert sides.attempts("state") == [("copied",)] * 8


def test_a_first_run_does_not_wait_for_another_day(sides: Sides) -> None:
    """It saw no ledger, and before it could make one, a run on another day had made it."""
    held: list[tuple[Future[Transferred], psycopg.Connection]] = []

    def hear(event: Event) -> None:
        if isinstance(event, Planned):
            held.append(sides.hold(day=DAY))

    done = sides.copy(day=NEXT_DAY, listener=hear, wait_lock=0)

    assert (done.rows, done.recorded) == (1, True)
    assert sides.ends(*held[0]).recorded
    assert len(sides.told()) == 2


def test_a_ledger_that_is_removed_behind_the_plan_is_no_obstacle(sides: Sides) -> None:
    sides.make()

    def clean(event: Event) -> None:
        if isinstance(event, Planned) and sides.has_ledger():
            keepers.remove(Endpoint(sides.dest.dsn, "test"), 10, lambda _: True, dry_run=False)

    assert sides.copy(day=DAY, listener=clean, retries=1, retry_delay=0).rows == 1


def test_a_run_goes_on_where_another_role_was_quicker(sides: Sides) -> None:
    """The ledger that it saw missing is then one that it may not use."""
    first, second = (sides.writer(f"CREATE ON DATABASE {sides.dest.name}") for _ in range(2))
    heard: list[Warned] = []

    def hear(event: Event) -> None:
        hearing(Warned, heard)(event)
        if isinstance(event, Planned):
            assert sides.copy(day=NEXT_DAY, dest=first.dsn).recorded

    done = sides.copy(day=DAY, dest=second.dsn, listener=hear)

    assert (done.rows, done.recorded) == (1, False)
    (warned,) = heard
    assert warned.text.startswith("the ledger of the dest cannot be used: its owner")
    assert len(sides.told()) == len(sides.told("attempt")) == 1


# --- what else a schema of that name may hold -----------------------------------------------------

OTHERS = {
    "a table": "CREATE TABLE copypipe.slice (id int)",
    "a view": "CREATE VIEW copypipe.attempt AS SELECT 1 AS id",
    "a foreign table": (
        "CREATE EXTENSION file_fdw SCHEMA public;"
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE copypipe.slice (id int) SERVER files OPTIONS (filename '/dev/null')"
    ),
    "a type": "CREATE TYPE copypipe.sliced_by AS ENUM ('x')",
}


@pytest.mark.parametrize("sql", OTHERS.values(), ids=OTHERS.keys())
def test_a_schema_of_other_tables_is_refused(sides: Sides, words: Words, sql: str) -> None:
    sides.dest.execute(f"CREATE SCHEMA copypipe; {sql}")
    held = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'copypipe'::regnamespace"
    before = sides.dest.fetch(held)

    with unchanged(sides.source, sides.dest):
        refused = words("copy", "t", "--day", DAY)

    assert_refused(refused, 6, "schema copypipe holds tables of another kind")
    assert "--no-ledger" in refused.err
    assert sides.dest.fetch(held) == before
    assert words("init").code == 6
    assert sides.copy(day=DAY, ledger=False).rows == 1


def test_a_ledger_of_a_newer_version_is_refused(sides: Sides, words: Words) -> None:
    sides.make()
    sides.dest.execute("INSERT INTO copypipe.version (version, tool_version) VALUES (2, '9.9')")

    with unchanged(sides.source, sides.dest):
        refused = words("copy", "t", "--day", DAY)

    assert_refused(refused, 6, "dest: the ledger there is of a newer copypipe")
    assert "--no-ledger" in refused.err
    assert [words(command).code for command in ("init", "clean")] == [6, 6]
    assert sides.told() == sides.told("attempt") == []
    done = words("copy", "t", "--day", DAY, "--no-ledger")
    assert (done.code, sides.told()) == (0, [])


def test_a_ledger_that_a_newer_version_takes_over_meanwhile_is_refused(sides: Sides) -> None:
    """What was seen while the plan was made is looked at again under the locks."""
    sides.make()

    def upgrade(event: Event) -> None:
        if isinstance(event, Planned):
            sides.dest.execute("UPDATE copypipe.version SET version = 2")

    with unchanged(sides.source, sides.dest), pytest.raises(PlanRefused, match="newer copypipe"):
        sides.copy(day=DAY, listener=upgrade)
    assert sides.told() == []


# --- subscribers ----------------------------------------------------------------------------------


def test_a_publication_of_all_tables_does_not_get_the_ledger_unasked(sides: Sides) -> None:
    """Its subscribers lack the tables, and would stop at the first row."""
    sides.dest.execute("CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert')")
    try:
        heard, done = warnings_of(sides)
        assert (done.rows, done.recorded) == (1, False)
        (warning,) = heard
        assert "the publication everything would send it to subscribers" in warning
        assert not sides.has_ledger()

        sides.make()
        assert sides.copy(day=DAY).recorded
    finally:
        sides.dest.execute("DROP PUBLICATION everything")
