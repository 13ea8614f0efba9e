"""`copypipe status`: what it prints, how it ends, and that it changes nothing.

The scene is that of docs/status.md, whose screen is what is printed here.
"""

import json
import os
import pty
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from copypipe.cli import looking
from plugins.command import Command, Run, Words
from plugins.databases import Database
from plugins.proxy import HOST
from plugins.rows import assert_refused, unchanged

PAGE = Path(__file__).resolve().parents[2] / "docs" / "status.md"
MARK = "<!-- tests/acceptance/test_status.py -->"
SCREEN = re.compile(rf"{MARK}\n```\n\$ (.*?)\n(.*?)\n```\n", re.DOTALL)

T = (
    "CREATE TABLE public.users (id int PRIMARY KEY, created_at timestamptz);"
    "CREATE INDEX ON public.users (created_at)"
)
APRIL = ("status", "public.users", "--month", "2018-04")


@pytest.fixture
def tables(kept_source: Database, kept_dest: Database) -> tuple[Database, Database]:
    """Make the table on both sides: from the 3rd of April on two rows a day at the source."""
    for database in (kept_source, kept_dest):
        database.execute(T)
    kept_source.execute(
        "INSERT INTO public.users SELECT n, '2018-04-03Z'::timestamptz + n * interval '12 hours'"
        " FROM generate_series(0, 67) AS n"
    )
    return kept_source, kept_dest


@pytest.fixture
def scene(words: Words, tables: tuple[Database, Database]) -> Words:
    """Copy most of April, and let it come to harm."""
    source, dest = tables
    dest.execute("ALTER TABLE public.users ADD CONSTRAINT odd CHECK (id NOT IN (18, 20))")
    edges = [f"2018-04-{day:02}" for day in (3, 8, 9, 12, 14, 24, 28, 29)]
    codes = [
        words("copy", "public.users", "--from", start, "--to", stop).code
        for start, stop in pairwise(edges)
    ]
    assert codes == [0, 0, 0, 1, 0, 0, 0]
    dest.execute(
        "DELETE FROM public.users WHERE created_at >= '2018-04-24Z';"
        "UPDATE copypipe.slice SET state = 'open' WHERE upper(instants) = '2018-04-29Z'"
    )
    source.execute("INSERT INTO public.users VALUES (1000, '2018-04-08 10:00Z')")
    return words


def test_the_page_shows_what_is_printed(scene: Words) -> None:
    found = SCREEN.search(PAGE.read_text())
    assert found
    run = scene(*shlex.split(found[1])[1:])

    assert (run.code, found[2]) == (4, run.out.rstrip("\n"))


def test_without_counting_it_ends_with_0_and_changes_nothing(
    scene: Words, tables: tuple[Database, Database]
) -> None:
    ledger = "SELECT * FROM copypipe.slice ORDER BY id"
    told = tables[1].text(ledger)
    with unchanged(*tables):
        run = scene(*APRIL)

    assert run.code == 0, run.err
    assert "differs" not in run.out
    assert "\x1b" not in run.out
    assert tables[1].text(ledger) == told


def test_json_is_one_object_with_everything(scene: Words) -> None:
    run = scene(*APRIL, "--json", "--count")

    assert run.code == 4
    (line,) = run.out.splitlines()
    told = json.loads(line)
    assert (told["schema_version"], told["type"], told["every"]) == (1, "calendar", "day")
    assert (told["ledger"], told["counted"], len(told["slices"])) == (True, True, 30)
    states = {each["slice"]["first_day"]: each["state"] for each in told["slices"]}
    assert [states[f"2018-04-{day}"] for day in ("01", "03", "08", "12", "24", "28", "29")] == [
        "empty",
        "copied",
        "differs",
        "failed",
        "lost",
        "open",
        "missing",
    ]
    (eighth,) = (each for each in told["slices"] if each["slice"]["first_day"] == "2018-04-08")
    names = ("rows_recorded", "rows_at_source", "rows_at_dest")
    assert [eighth[name] for name in names] == [2, 3, 2]
    assert {each["sqlstate"] for each in told["slices"] if each["state"] == "failed"} == {"23514"}


def test_the_commands_that_it_ends_with_repair_it(scene: Words) -> None:
    told = json.loads(scene(*APRIL, "--json", "--count").out)
    assert len(told["repairs"]) == 3
    for command in told["repairs"]:
        scene(*shlex.split(command)[1:])  # the failed days fail again
    again = json.loads(scene(*APRIL, "--json", "--count").out)

    assert {state: count for state, count in again["states"].items() if count} == {
        "copied": 26,
        "failed": 2,
        "empty": 2,
    }


def test_options_go_into_the_commands_and_secrets_do_not(
    words: Words, tables: tuple[Database, Database]
) -> None:
    run = words(
        *APRIL,
        *("--dest", tables[1].dsn, "--timezone", "Europe/Vienna", "--into", "public.users"),
        *("--every", "week", "--source-set", "work_mem=8MB"),
    )

    assert run.code == 0, run.err
    assert run.out.splitlines()[-1] == (
        "  copypipe backfill public.users --dest ... --into public.users --timezone Europe/Vienna "
        "--every week --source-set work_mem=8MB --from 2018-04-02 --to 2018-05-01"
    )


def test_many_ranges_are_repaired_by_one_command(
    words: Words, tables: tuple[Database, Database]
) -> None:
    run = words(*APRIL, "--every", "hour")

    assert run.out.splitlines()[-2:] == [
        "copy what is missing, failed, lost or open:",
        "  copypipe backfill public.users --every hour --from 2018-04-03T00:00:00+00:00 "
        "--to 2018-04-30T13:00:00+00:00",
    ]


def test_without_a_ledger_it_says_so(words: Words, tables: tuple[Database, Database]) -> None:
    run = words(*APRIL)

    assert run.code == 0
    assert "missing 28  . empty 2" in run.out.replace("·", ".")
    assert re.search(r"^warning: there is no ledger in .*: nothing tells", run.err, re.MULTILINE)


REFUSED = {
    "no table": ("status nowhere --month 2018-04", 6, "there is no table nowhere"),
    "no table at the dest": (
        "status public.users --month 2018-04 --into nowhere",
        6,
        "dest: there is no table nowhere",
    ),
    "no column": ("status public.users --month 2018-04 --by at", 6, 'no column "at" to slice by'),
    "no range": ("status public.users", 2, "which rows\\? No slice was given"),
    "half a range": ("status public.users --from today", 2, "a range needs both its ends"),
    "an empty range": (
        "status public.users --from 2018-04-01 --to 2018-04-01",
        2,
        "the range is empty",
    ),
    "not a month": ("status public.users --month april", 2, "not a month"),
}


@pytest.mark.parametrize(("command", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(
    words: Words, tables: tuple[Database, Database], command: str, code: int, message: str
) -> None:
    assert_refused(words(*command.split()), code, message)


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_side_that_cannot_be_reached(
    words: Words, tables: tuple[Database, Database], side: str, closed_port: int
) -> None:
    nowhere = f"host={HOST} port={closed_port} user=u dbname=d"

    assert_refused(words(*APRIL, f"--{side}", nowhere), 5, f"{side}: ")


def test_an_error_is_json_too(words: Words, tables: tuple[Database, Database]) -> None:
    run = words("status", "nowhere", "--month", "2018-04", "--json")

    assert json.loads(run.err.splitlines()[-1])["exit_code"] == 6


# --- colour ---------------------------------------------------------------------------------------


def on_a_terminal(run: Command, **env: str) -> tuple[Run, str]:
    """Run it with a terminal for stdout, and return what that shows."""
    master, slave = pty.openpty()
    process = run.start(*APRIL, stdout=slave, env=env)
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed: EIO
            break
        if not data:
            break
        shown += data
    os.close(master)
    return process.wait(), shown.decode()


def test_colours_are_for_a_terminal(run: Command, source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute(T)

    done, shown = on_a_terminal(run)

    assert done.code == 0, done.err
    assert "\x1b[2m·\x1b[0m empty 30" in shown


class Terminal:
    """A stream that says whether it is one."""

    def __init__(self, *, is_one: bool) -> None:
        self.isatty = lambda: is_one


@pytest.mark.parametrize(
    ("terminal", "env", "colour"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": "0"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_who_wants_no_colour_gets_none(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, env: dict[str, str], colour: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal(is_one=terminal))

    assert looking.has_colour() is colour
