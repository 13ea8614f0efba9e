"""copypipe verify as it is typed: verdicts, exit codes, JSON, signals, a side that goes away."""

import json
import re
import signal
import time
from typing import Any

import pytest

from plugins.command import (
    Command,
    Run,
    Words,
    eventually,
    no_backends,
    pause,
    users,
    waits_in_pause,
)
from plugins.databases import Database
from plugins.proxy import HOST, Cut, Frame, Proxy

DAYS = ("--from", "2018-04-28", "--to", "2018-05-01")
VERIFY = ("verify", "users", *DAYS)


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


@pytest.fixture
def two(source: Database, dest: Database) -> tuple[Database, Database]:
    """Return both sides with the same three days."""
    users(source)
    users(dest)
    return source, dest


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.out.splitlines()]


# --- what is printed ------------------------------------------------------------------------------


def test_all_the_same(words: Words, two: tuple[Database, Database]) -> None:
    run = words(*VERIFY)
    assert run.code == 0
    assert re.fullmatch(r"from \S+ into \S+\n", run.err)
    *found, tally = run.out.splitlines()
    assert [line.split("  ")[1:3] for line in found] == [["same", "24 rows"]] * 3
    assert found[0].startswith("public.users [2018-04-28, 2018-04-29) UTC  same  24 rows  ")
    assert tally == "3 slices: 3 same"
    quiet = words(*VERIFY, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_what_differs(words: Words, two: tuple[Database, Database]) -> None:
    _, dest = two
    dest.execute(
        "UPDATE users SET name = E'a\\nb', email = NULL WHERE id = 1000003;"
        "DELETE FROM users WHERE id IN (1000004, 2000001);"
        "INSERT INTO users SELECT 99, name, email, active, balance, created_at FROM users LIMIT 1"
    )
    run = words(*VERIFY)
    assert run.code == 4
    said = run.out.splitlines()
    assert "differs  24 rows at the source, 25 at the dest" in said[0]
    assert said[0].endswith("; 1 extra")
    assert said[1] == "  extra  id=99"
    assert said[2].endswith("; 1 missing, 1 differs")
    assert said[3:5] == ["  differs  id=1000003", "  missing  id=1000004"]
    assert said[-1] == "3 slices: 3 differs"
    assert len(words(*VERIFY, "-q").out.splitlines()) == len(said) - 1
    shown = words("verify", "users", "--day", "2018-04-29", "--show-row-data")
    assert "    source: id=1000003, name=Zoë 3, " in shown.out
    assert "email=NULL" in shown.out
    assert "a\nb" not in shown.out  # a value cannot forge a line


def test_json(words: Words, two: tuple[Database, Database]) -> None:
    _, dest = two
    dest.execute("DELETE FROM users WHERE id = 1000004; DELETE FROM users WHERE id >= 2000000")
    run = words(*VERIFY, "--json", "--show-row-data")

    assert run.code == 4
    same, differs, missing = lines(run)
    assert {each["type"] for each in (same, differs, missing)} == {"verdict"}
    assert [each["verdict"] for each in (same, differs, missing)] == ["same", "differs", "missing"]
    assert same["differing"] is None
    assert same["source"] == same["dest"]
    assert same["source"]["digest"].startswith("sha256/1/")
    assert same["dest_table"] == "public.users"
    assert (differs["source"]["rows"], differs["dest"]["rows"]) == (24, 23)
    told = differs["differing"]
    assert (told["complete"], told["missing"], told["extra"], told["differs"]) == (True, 1, 0, 0)
    (row,) = told["rows"]
    assert (row["is"], row["key"], row["source"]["id"]) == ("missing", {"id": "1000004"}, "1000004")
    assert "dest" not in row
    assert missing["differing"]["missing"] == 24


def test_where_many_rows_differ_a_person_sees_the_first(
    words: Words, two: tuple[Database, Database]
) -> None:
    two[1].execute("DELETE FROM users")
    run = words("verify", "users", "--all")
    assert run.code == 4
    assert "missing  72 rows at the source, 0 at the dest" in run.out
    assert run.out.splitlines()[-1] == "  ... 52 more (--json lists them)"
    assert len(lines(words("verify", "users", "--all", "--json"))[0]["differing"]["rows"]) == 72


@pytest.mark.parametrize("after", [("--jobs", "2"), ()], ids=["an option", "nothing"])
def test_repair_alone_copies_slices(
    words: Words, two: tuple[Database, Database], after: tuple[str, ...]
) -> None:
    two[1].execute("DELETE FROM users WHERE id = 1000004")
    run = words(*VERIFY, "--repair", *after)
    assert run.code == 0
    assert "repaired" in run.out


def test_a_repair_that_would_lose_most_rows(words: Words, two: tuple[Database, Database]) -> None:
    two[0].execute("DELETE FROM users WHERE id < 2000000 AND id % 10 > 1")
    run = words(*VERIFY, "--repair", "--min-ratio", "0.5")
    assert run.code == 4
    assert "not repaired" in run.out
    assert "--min-ratio" in run.err
    assert words(*VERIFY, "--repair").code == 0


def test_an_open_slice_is_no_failure(words: Words, two: tuple[Database, Database]) -> None:
    source, _ = two
    source.execute("UPDATE users SET created_at = now() WHERE id = 3")
    run = words("verify", "users", "--day", "today", "--json")
    assert run.code == 0
    assert lines(run)[0]["verdict"] == "open"
    assert lines(run)[0]["open_because"]


# --- exit codes -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no slice": ((), 2, "day"),
    "two slices": (("--day", "2018-04-29", "--month", "2018-04"), 2, "several slices"),
    "an empty range": (("--from", "2018-04-29", "--to", "2018-04-29"), 2, "the range is empty"),
    "no such way to cut": (("--day", "2018-04-29", "--every", "year"), 2, "--every"),
    "no job": (("--day", "2018-04-29", "--jobs", "0"), 2, "--jobs"),
    "no such repair": (("--day", "2018-04-29", "--repair=all"), 2, "--repair"),
    "no such zone": (("--day", "2018-04-29", "--timezone", "Mars"), 2, "Mars"),
    "no such column": (("--day", "2018-04-29", "--by", "born"), 6, 'has no column "born"'),
    "no such key": (("--day", "2018-04-29", "--key", "born"), 6, "--key born"),
    "a condition of the moment": (("--where", "created_at < now()"), 6, "the condition may mean"),
    "no condition": (("--where", "id ="), 6, "syntax error"),
    "too many hours": (
        ("--from", "1900-01-01", "--to", "2018-01-01", "--every", "hour"), 2, "more than 100000",
    ),
    "instants": (
        ("--from", "2018-04-29T00:00Z", "--to", "2018-05-01T00:00Z"), 2, "between instants",
    ),
    "a setting": (("--all", "--dest-set", "TimeZone=UTC"), 2, "cannot be set"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.one_of(8)
def test_what_is_refused(
    words: Words, two: tuple[Database, Database], given: tuple[str, ...], code: int, message: str
) -> None:
    run = words("verify", "users", *given)
    assert (run.code, run.out) == (code, ""), run.err
    assert message in run.err


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_table_or_a_server_that_is_not_there(
    words: Words, two: tuple[Database, Database], side: str
) -> None:
    run = words(*VERIFY, f"--{side}", "host=127.0.0.1 port=1", "--retries", "0")
    assert run.code == 5
    assert f"{side}: the server cannot be reached" in run.err
    dict(zip(("source", "dest"), two, strict=True))[side].execute("DROP TABLE users")
    run = words(*VERIFY)
    assert run.code == 6
    assert f"{side}: there is no table users" in run.err


def test_an_error_of_the_server(words: Words, two: tuple[Database, Database]) -> None:
    source, _ = two
    source.execute(
        "CREATE VIEW v AS SELECT id, name, email, active, balance / (id % 1000000 - 4) AS balance,"
        " created_at, profile, tags FROM users"
    )
    run = words("verify", "v", "--into", "users", *DAYS, "--allow-lossy", "balance", "--json")
    assert run.code == 1
    assert "division by zero" in run.err
    assert run.out == ""
    errors = [json.loads(line) for line in run.err.splitlines()[1:]]
    assert [error["exit_code"] for error in errors] == [1, 1, 1]
    assert [error["slice"]["first_day"] for error in errors] == [
        "2018-04-28",
        "2018-04-29",
        "2018-04-30",
    ]


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_side_that_goes_away_in_the_middle(
    words: Words, two: tuple[Database, Database], side: str
) -> None:
    """What was told before stays told; what could not be is an error, and no verdict."""
    database = dict(zip(("source", "dest"), two, strict=True))[side]
    database.execute("UPDATE users SET name = 'x' WHERE id = 3" if side == "dest" else "SELECT 1")
    seen: list[int] = []

    def rule(frame: Frame) -> None:
        if frame.sender == "client" and b"record_send" in frame.body:
            seen.append(1)
            if len(seen) > 2 + 2 * (side == "dest"):
                raise Cut

    proxy = Proxy(HOST, database.server.port, rule)
    try:
        run = words(*VERIFY, f"--{side}", proxy.dsn(database), "--retries", "0", "--json")
    finally:
        proxy.close()
    assert run.code == (4 if side == "dest" else 5), run.err
    assert len(lines(run)) == 2
    assert "connection" in run.err
    assert json.loads(run.err.splitlines()[-1])["exit_code"] == 5


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("held", "jobs"), [("a lock", "1"), ("a server that computes", "4")])
@pytest.mark.one_of(2)
def test_an_interrupt(run: Command, two: tuple[Database, Database], held: str, jobs: str) -> None:
    source, _ = two
    if held == "a lock":
        source.execute(
            "CREATE VIEW v AS SELECT * FROM users WHERE pg_advisory_lock_shared(42) IS NOT NULL"
        )
        source.connect().execute("SELECT pg_advisory_lock(42)")
    else:
        source.execute(
            "CREATE VIEW v AS SELECT u.* FROM users u, generate_series(1, 1000000000) AS n"
            " WHERE n % 7 = 0"
        )
    process = run.start("verify", "v", "--into", "users", *DAYS, "--jobs", jobs)
    eventually(
        lambda: source.scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
            " AND datname = current_database() AND query LIKE '%%record_send%%'"
            " AND application_name LIKE 'copypipe%%'"
        ),
        seconds=10,
    )
    sent = process.signal(signal.SIGINT)
    done = process.wait()
    took = time.monotonic() - sent
    no_backends(*two, seconds=2.0)

    assert done.code == 130, done.err
    assert took < 2.0
    assert done.out == ""
    assert "interrupted: nothing was changed" in done.err


@pytest.mark.parametrize(
    ("repair", "number"), [("rows", signal.SIGINT), ("slices", signal.SIGTERM)]
)
@pytest.mark.one_of(2)
def test_a_signal_during_a_repair(
    run: Command, two: tuple[Database, Database], repair: str, number: signal.Signals
) -> None:
    _, dest = two
    dest.execute("DELETE FROM users WHERE id = 1000004")
    pause(dest, when="NEW.id = 1000004")
    before = dest.digest("public.users", "id")
    process = run.start(*VERIFY, "--repair", repair, "--jobs", "2")
    eventually(lambda: waits_in_pause(dest), seconds=10)

    sent = process.signal(number)
    done = process.wait()
    took = time.monotonic() - sent
    no_backends(*two, seconds=2.0)

    assert (done.code, took < 2.0) == (128 + number, True), done.err
    assert "a slice under way may be" in done.err
    assert dest.digest("public.users", "id") == before


def test_a_whole_run(run: Command, two: tuple[Database, Database]) -> None:
    """As a process: what is printed comes as it is found, and nothing is said besides."""
    two[1].execute("DELETE FROM users WHERE id = 1000004")
    done = run(*VERIFY, "--jobs", "4", "--repair", "rows", "--record")
    assert done.code == 0, done.err
    assert len(done.err.splitlines()) == 1
    assert done.out.splitlines()[-1] == "3 slices: 3 same"
    assert done.out.count("recorded") == 3
    assert run(*VERIFY, "--json", "--quiet").code == 0
