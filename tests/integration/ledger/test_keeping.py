"""copypipe init and clean make and remove the ledger; nothing else removes it."""

import re
import threading

import pytest

from copypipe import SliceBusy, keepers
from copypipe.events import LedgerMade
from copypipe.requests import Endpoint
from copypipe.statements.ledger import RIGHTS
from plugins.command import Command, Words, eventually, no_backends
from plugins.databases import Database
from plugins.ledgers import DAY, NEXT_DAY, Sides, hearing
from plugins.rows import assert_refused

# --- init -----------------------------------------------------------------------------------------


def where(database: Database, user: str | None = None) -> str:
    server = database.server
    port = "" if server.port == 5432 else f":{server.port}"
    return f"{user or server.conninfo['user']}@{server.host}{port}/{database.name}"


def test_init_makes_it_and_says_so(sides: Sides, words: Words) -> None:
    at = f"the ledger, schema copypipe of {where(sides.dest)}\n"

    dry = words("init", "--dry-run")
    assert (dry.code, dry.out, dry.err) == (0, f"would make {at}", "")
    assert not sides.has_ledger()
    made = words("init")
    assert (made.code, made.out, made.err) == (0, f"made {at}", "")
    before = [sides.told(table) for table in RIGHTS]
    for options in ((), ("-n",)):
        again = words("init", *options)
        assert (again.code, again.out, again.err) == (0, f"there is {at}", "")
    assert [sides.told(table) for table in RIGHTS] == before
    assert [len(rows) for rows in before] == [1, 0, 0, 0]
    assert not Sides(sides.dest, sides.source, sides.pool).has_ledger()
    no_backends(sides.dest)


def test_init_without_rights_is_refused(sides: Sides, words: Words) -> None:
    env = {"COPYPIPE_DEST": sides.writer().dsn}

    for options in ((), ("--dry-run",)):
        refused = words("init", *options, env=env)
        assert_refused(refused, 6, "dest: the ledger cannot be used")
        assert "there is none, and the role lacks CREATE on the database" in refused.err
    assert not sides.has_ledger()
    assert words("init").code == 0
    refused = words("init", env=env)
    assert_refused(refused, 6, "dest: the ledger cannot be used")
    assert "the role lacks USAGE on schema copypipe" in refused.err


def test_init_for_a_role_that_then_has_its_rights_is_enough(sides: Sides, words: Words) -> None:
    """What an owner does for the role of a job: the ledger, and rights on it."""
    role = sides.writer()
    assert words("init").code == 0
    sides.grant(role)
    env = {"COPYPIPE_DEST": role.dsn}

    assert words("init", env=env).out.startswith("there is the ledger")
    done = words("copy", "t", "--day", DAY, env=env)
    assert (done.code, "warning" in done.err) == (0, False), done.err
    assert len(sides.told()) == 1


def test_eight_inits_at_once_make_it_once(sides: Sides) -> None:
    barrier = threading.Barrier(8)

    def init(number: int) -> str:
        barrier.wait(20)
        return keepers.make(Endpoint(sides.dest.dsn, "test"), 20, dry_run=False)

    said = sorted(line.partition(" the ledger")[0] for line in sides.pool.map(init, range(8)))
    assert said == ["made", *["there is"] * 7]
    assert len(sides.told("version")) == 1


BAD = {
    "no dest": (("init",), {"COPYPIPE_DEST": ""}, 2, "the dest is not named"),
    "an empty dest": (("clean", "--dest", ""), {}, 2, "the dest is not named: --dest is empty"),
    "a time that is none": (("init", "--wait-lock", "soon"), {}, 2, "not a duration"),
    "a time too long": (("clean", "--wait-lock", "30d"), {}, 2, "cannot wait"),
    "nobody there": (
        ("init", "--dest", "host=127.0.0.1 port=1"),
        {},
        5,
        "dest: the server cannot be reached",
    ),
}


@pytest.mark.parametrize(("command", "env", "code", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    sides: Sides,
    words: Words,
    command: tuple[str, ...],
    env: dict[str, str],
    code: int,
    message: str,
) -> None:
    assert_refused(words(*command, env=env), code, message)
    assert not sides.has_ledger()


# --- clean ----------------------------------------------------------------------------------------


def test_clean_asks_first(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    sides.copy(day=DAY)
    tells = f"the ledger of {where(sides.dest)} tells of 2 copies of 1 tables"

    refused = words("clean")
    assert_refused(refused, 2, re.escape(tells))
    assert "HINT:  Give --yes" in refused.err
    dry = words("clean", "--dry-run")
    assert (dry.code, dry.out, dry.err) == (0, f"would remove it: {tells}\n", "")
    assert len(sides.told()) == 2
    done = words("clean", "--yes")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"removed the ledger, schema copypipe of {where(sides.dest)}; it told of 2 copies\n"
    )
    assert not sides.has_ledger()
    assert sides.dest.scalar("SELECT note FROM public.t") == "a"
    no_backends(sides.dest)


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False)])
@pytest.mark.one_of(2)
def test_clean_asks_on_a_terminal(sides: Sides, run: Command, answer: str, removed: bool) -> None:
    sides.copy(day=DAY)

    asked = run("clean", tty=True, input=answer)

    assert "tells of 1 copies of 1 tables" in asked.err
    assert "Remove it? [y/N]: " in asked.err
    assert (asked.code, sides.has_ledger()) == ((0, False) if removed else (2, True))
    assert asked.out.startswith("removed the ledger") is removed


def test_clean_of_nothing(sides: Sides, words: Words) -> None:
    """No schema, one without a table, and as a role that could not make one."""
    nothing = f"there is no ledger in {where(sides.dest)}\n"
    assert [words("clean", *options).out for options in ((), ("--yes",), ("-n",))] == [nothing] * 3
    sides.dest.execute("CREATE SCHEMA copypipe")
    done = words("clean", "--yes")
    assert (done.code, done.out) == (0, nothing)
    assert sides.has_ledger()


def test_clean_of_nothing_by_a_role_that_could_not_make_one(sides: Sides, words: Words) -> None:
    role = sides.writer()

    done = words("clean", "--yes", env={"COPYPIPE_DEST": role.dsn})

    assert (done.code, done.out) == (0, f"there is no ledger in {where(sides.dest, role.name)}\n")


def test_a_copy_after_clean_makes_it_anew(sides: Sides, words: Words) -> None:
    """By any column: that the first one was another is forgotten."""
    sides.copy(day=DAY)
    assert words("clean", "--yes").code == 0
    heard: list[LedgerMade] = []

    assert sides.copy(day=NEXT_DAY, by="paid_at", listener=hearing(LedgerMade, heard)).recorded

    assert len(heard) == len(sides.told()) == 1
    assert [row["by_column"] for row in sides.told("sliced_by")] == ["paid_at"]


def test_clean_waits_for_transfers(sides: Sides, words: Words, run: Command) -> None:
    running, holder = sides.hold(day=DAY)

    busy = words("clean", "--yes", "--wait-lock", "0")
    assert_refused(busy, 11, "dest: the ledger is in use by other runs")
    assert sides.has_ledger()
    cleaning = run.start("clean", "--yes")
    both = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'copypipe/%'"
    eventually(lambda: sides.dest.scalar(both) == 2, what="clean waits beside the copy")
    assert sides.copy(day="2018-05-02", wait_lock=0, allow_empty=True).recorded
    assert sides.ends(running, holder).recorded

    ended = cleaning.wait()
    assert (ended.code, ended.out.endswith("it told of 2 copies\n")) == (0, True), ended.err
    assert not sides.has_ledger()
    assert sides.dest.scalar("SELECT note FROM public.t") == "a"


def test_clean_does_not_wait_for_runs_without_the_ledger(sides: Sides, words: Words) -> None:
    sides.make()
    running, holder = sides.hold(day=DAY, ledger=False)

    assert words("clean", "--yes", "--wait-lock", "0").code == 0

    assert sides.ends(running, holder).rows == 1
    assert not sides.has_ledger()


def test_clean_lets_nobody_wait_who_only_reads(sides: Sides, words: Words) -> None:
    """A table lock that waits for a reader would stop whoever comes behind."""
    sides.copy(day=DAY)
    reads = "SELECT count(*) FROM copypipe.slice"
    reader = sides.dest.connect(autocommit=False)
    reader.execute(reads)
    other = sides.dest.connect(options="-c lock_timeout=100ms")
    at = Endpoint(sides.dest.dsn, "test")

    cleaning = sides.pool.submit(keepers.remove, at, 0.5, lambda _: True, dry_run=False)
    while not cleaning.done():
        assert other.execute(reads).fetchone() == (1,)

    busy = cleaning.exception()
    assert isinstance(busy, SliceBusy)
    assert (busy.exit_code, busy.message) == (11, "dest: the ledger is in use by other runs")
    refused = words("clean", "--yes", "--wait-lock", "100ms")
    assert_refused(refused, 11, "dest: the ledger is in use by other runs")
    reader.rollback()
    assert words("clean", "--yes", "--wait-lock", "0").code == 0
    assert not sides.has_ledger()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE copypipe.mine (id int)",
        "CREATE FUNCTION copypipe.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW public.mine AS SELECT rows_copied FROM copypipe.slice",
    ],
    ids=["a table in the schema", "a function in the schema", "a view of the ledger"],
)
def test_clean_removes_nothing_where_others_would_lose_something(
    sides: Sides, words: Words, sql: str
) -> None:
    sides.copy(day=DAY)
    sides.dest.execute(sql)
    before = [sides.told(table) for table in RIGHTS]

    refused = words("clean", "--yes")

    assert_refused(refused, 6, "dest: other objects depend on the ledger or stand in its schema")
    assert "because other objects depend on" in refused.err
    assert [sides.told(table) for table in RIGHTS] == before
    assert sides.copy(day=DAY).recorded


def test_clean_by_a_role_that_may_only_use_it_is_refused(sides: Sides, words: Words) -> None:
    role = sides.writer()
    sides.make()
    sides.grant(role)

    refused = words("clean", "--yes", env={"COPYPIPE_DEST": role.dsn})

    assert_refused(refused, 6, "dest: ")
    assert len(sides.told("version")) == 1


def test_clean_by_a_role_that_may_not_even_use_it_is_refused(sides: Sides, words: Words) -> None:
    sides.make()

    refused = words("clean", "--yes", env={"COPYPIPE_DEST": sides.writer().dsn})

    assert_refused(refused, 6, "dest: the ledger cannot be removed")
    assert "the role lacks USAGE on schema copypipe" in refused.err
    assert len(sides.told("version")) == 1
