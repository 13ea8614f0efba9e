"""With what `copypipe grants` prints a copy works; without any part of it the copy says so."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from plugins.command import Run, Words
from plugins.databases import Database, Role

TABLE = """
CREATE SCHEMA shop;
CREATE TABLE shop.users (
    id bigint PRIMARY KEY, name text, "E-Mail" text, created_at timestamptz NOT NULL);
CREATE INDEX ON shop.users (created_at);
INSERT INTO shop.users
SELECT n, 'n' || n, 'm', timestamptz '2018-04-29 10:00Z' + (n / 6) * interval '1 day'
  FROM generate_series(1, 7) AS n;
"""
# The dest has a column of its own, whose default draws from a sequence.
HERE = "ALTER TABLE shop.users ADD number serial; DELETE FROM shop.users WHERE id > 3;"

DAY = "--day 2018-04-29"
# What is granted for, and what is copied then.
CASES = {
    "replace": ("", DAY),
    "replace where": ("--where 'id < 9'", "--where 'id < 9'"),
    "replace where in a range": ("--by created_at --where 'id < 9'", f"{DAY} --where 'id < 9'"),
    "replace all": ("--all", "--all --yes"),
    "truncate all": ("--all --clear truncate", "--all --yes --clear truncate"),
    "append": ("--mode append --where 'id > 3'", "--mode append --again --where 'id > 3'"),
    "append a range": ("--mode append --by created_at", "--mode append --again --day 2018-04-30"),
    "merge": ("--mode merge", f"--mode merge {DAY}"),
    "merge where": ("--mode merge --where 'id < 9'", "--mode merge --where 'id < 9'"),
    "merge and delete": ("--mode merge --merge-deletes", f"--mode merge --merge-deletes {DAY}"),
}
SOURCE_NEEDS = {"USAGE schema", "SELECT table", "CONNECT database"}
DEST_NEEDS = {
    "replace": {"SELECT table", "INSERT table", "DELETE table"},
    "replace where": {"SELECT table", "INSERT table", "DELETE table"},
    "replace where in a range": {"SELECT table", "INSERT table", "DELETE table"},
    "replace all": {"SELECT table", "INSERT table", "DELETE table"},
    "truncate all": {"SELECT table", "INSERT table", "TRUNCATE table"},
    "append": {"INSERT table"},
    "append a range": {"INSERT table"},
    "merge": {"SELECT table", "INSERT table", "UPDATE table", "TEMPORARY database"},
    "merge where": {"SELECT table", "INSERT table", "UPDATE table", "TEMPORARY database"},
    "merge and delete": {
        "SELECT table",
        "INSERT table",
        "UPDATE table",
        "DELETE table",
        "TEMPORARY database",
    },
}
ALWAYS = {"USAGE schema", "CONNECT database", "USAGE sequence"}


@dataclass
class Pair:
    """Both databases, a role without any right at each, and who asks for the GRANTs."""

    words: Words
    source: Database
    dest: Database
    reader: Role
    loader: Role
    options: str = ""
    copies: str = ""

    def __getitem__(self, side: str) -> Database:
        return self.source if side == "source" else self.dest

    def role(self, side: str) -> Role:
        return self.reader if side == "source" else self.loader

    def grants(self, *more: str) -> Run:
        roles = ("--role-source", f'"{self.reader.name}"', "--role-dest", self.loader.name)
        return self.words("grants", "shop.users", *shlex.split(self.options), *roles, *more)

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """Return what is needed at each side, the optional left out."""
        run = self.grants("--json")
        assert run.code == 0, run.err
        found = json.loads(run.out)
        assert (found["type"], found["schema_version"]) == ("grants", 1)
        return {
            side: [each for each in found[side]["grants"] if not each["optional"]]
            for side in ("source", "dest")
        }

    def grant(self) -> None:
        """Execute what is printed, as it is printed."""
        for side in ("source", "dest"):
            run = self.grants("--side", side)
            assert run.code == 0, run.err
            self[side].execute(run.out)

    def copy(self, *more: str) -> Run:
        env = {"COPYPIPE_SOURCE": self.reader.dsn, "COPYPIPE_DEST": self.loader.dsn}
        words = ("shop.users", *shlex.split(self.copies), "--retries", "0", "--progress", "none")
        return self.words("copy", *words, *more, env=env)

    def forget(self, *, keep_ledger: bool) -> None:
        """Have the dest as it was."""
        if not keep_ledger:
            self.dest.execute("DROP SCHEMA IF EXISTS copypipe CASCADE")
        self.dest.execute("DELETE FROM shop.users WHERE id > 3")

    @contextmanager
    def without(self, side: str, grant: str) -> Iterator[None]:
        """Take one grant back for the block."""
        name = f'"{self.role(side).name}"'
        taken = grant.replace("GRANT ", "REVOKE ", 1).replace(f" TO {name}", f" FROM {name}")
        self[side].execute(taken)
        yield
        self[side].execute(grant)


@pytest.fixture
def pair(words: Words, kept_source: Database, kept_dest: Database) -> Pair:
    kept_source.execute(TABLE)
    kept_dest.execute(TABLE + HERE)
    for database in (kept_source, kept_dest):
        database.execute(f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC")
    return Pair(words, kept_source, kept_dest, kept_source.role("reader"), kept_dest.role("loader"))


def needed(told: list[dict[str, Any]]) -> set[str]:
    return {
        f"{each['privilege']} {each['on']}" for each in told if "copypipe" not in each["object"]
    }


def names(text: str, each: dict[str, Any]) -> bool:
    """Return whether a message says which right is missing, and on what."""
    what = each["object"][-1]
    if each["on"] == "sequence":  # the server says it, when a row needs a number
        return f"permission denied for sequence {what}" in text
    if each["on"] == "database":
        what = "the database" if each["privilege"] == "CREATE" else "DATABASE"
    right = each["privilege"]
    if each["columns"]:
        right = f"{right} ({', '.join(sorted(each['columns']))})"
        if right not in text:  # no column is named where it is all, or any, of them
            right = f"{each['privilege']} ON shop.users"
    return right in text and what in text


@pytest.mark.parametrize("ledger", ["none yet", "there", "off"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_is_enough_and_none_of_it_too_much(
    pair: Pair, case: str, ledger: str
) -> None:
    pair.options, pair.copies = CASES[case]
    keep = ledger == "there"
    if ledger == "off":
        pair.options += " --no-ledger"
        pair.copies += " --no-ledger"
    elif keep:
        assert pair.words("init").code == 0

    before = pair.told()

    assert not any(each["held"] for side in before.values() for each in side)
    assert needed(before["source"]) == SOURCE_NEEDS
    of_ledger = {"CREATE database"} if ledger == "none yet" else set()
    assert needed(before["dest"]) == DEST_NEEDS[case] | ALWAYS | of_ledger
    pair.grant()
    granted = pair.told()
    assert all(each["held"] for side in granted.values() for each in side)
    for side, grants in granted.items():
        for each in grants:
            pair.forget(keep_ledger=keep)
            with pair.without(side, each["sql"]):
                said = pair.copy("--dry-run")
                if said.code == 0 and "cannot be used" not in said.out:
                    said = pair.copy()
            text = said.out + said.err
            if said.code == 0:  # a copy is made without the ledger, with a warning
                assert "copypipe" in each["object"] or each["privilege"] == "CREATE"
                assert "the ledger of the dest cannot be used" in text
            else:
                assert (said.code, side) == (6, side), text
            assert names(text, each), (each["sql"], text)
    pair.forget(keep_ledger=keep)
    done = pair.copy("--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["recorded"] == (ledger != "off")
    assert "warning: the ledger" not in done.err
    assert pair.dest.scalar("SELECT count(*) FROM shop.users") == (5 if "day" in pair.copies else 7)
