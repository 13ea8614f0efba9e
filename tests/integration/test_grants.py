"""With what `copypipe grants` prints a copy works; without any part of it the copy says so."""

import json
import re
import secrets
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
CHECKED = "--verify checksum"
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
        taken = re.sub(r'^GRANT (.*) TO ("[^"]+")$', r"REVOKE \1 FROM \2", grant)
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
    if each["on"] == "role":
        return f"the role is not a member of its owner {each['privilege']}" in text
    if (each["on"], each["privilege"]) == ("schema", "CREATE"):
        return f"its owner {each['to']} lacks CREATE on schema {each['object'][0]}" in text
    what = each["object"][-1]
    if each["on"] == "database":
        what = "the database" if each["privilege"] == "CREATE" else "DATABASE"
    right = each["privilege"]
    if each["columns"]:
        right = f"{right} ({', '.join(sorted(each['columns']))})"
        if right not in text:  # no column is named where it is all, or any, of them
            right = f"{each['privilege']} ON shop.users"
    return right in text and what in text


# Which of its rights the ledger needs is the same in each mode: one of them tries all in each run.
@pytest.mark.parametrize(
    ("case", "ledger"),
    [
        pytest.param(case, ledger, marks=[pytest.mark.slow] if number and ledger != "off" else [])
        for ledger in ("none yet", "there", "off")
        for number, case in enumerate(CASES)
    ],
)
@pytest.mark.one_of(8)
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


# With a digest the dest reads what it has written.
MORE_TO_CHECK = {"append": {"SELECT table"}, "append a range": {"SELECT table"}}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in ("append", "merge") else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_what_is_printed_for_digests_is_enough(pair: Pair, case: str) -> None:
    pair.options, pair.copies = (f"{each} {CHECKED} --no-ledger" for each in CASES[case])

    before = pair.told()

    assert needed(before["source"]) == SOURCE_NEEDS
    assert needed(before["dest"]) == DEST_NEEDS[case] | ALWAYS | MORE_TO_CHECK.get(case, set())
    pair.grant()
    (select,) = [each for each in before["dest"] if each["privilege"] == "SELECT"]
    pair.forget(keep_ledger=False)
    with pair.without("dest", select["sql"]):
        said = pair.copy("--dry-run")
    assert said.code == 6
    assert names(said.err, select), (select["sql"], said.err)
    for column in select["columns"] or ():
        one = f'GRANT SELECT ("{column}") ON shop.users TO "{pair.loader.name}"'
        with pair.without("dest", one):
            said = pair.copy("--dry-run")
        assert said.code == 6
        assert f"SELECT ({column})" in said.err
    done = pair.copy("--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["digest"].startswith("sha256/")


# --- swaps ----------------------------------------------------------------------------------------


def of_another(pair: Pair) -> Role:
    """Have the dest's table owned by a role that may do nothing else."""
    owner = pair.dest.role("owner")
    pair.dest.execute(f"ALTER TABLE shop.users OWNER TO {owner.name}")
    return owner


def without_each(pair: Pair, grants: list[dict[str, Any]]) -> dict[str, str]:
    """Return what is said without each of the dest's grants."""
    said = {}
    for each in grants:
        with pair.without("dest", each["sql"]):
            run = pair.copy("--dry-run")
            assert run.code == 6, (each["sql"], run.err)
            said[each["sql"]] = run.err
    return said


@pytest.mark.parametrize("ledger", ["", "--no-ledger"])
@pytest.mark.one_of(2)
def test_a_swap(pair: Pair, ledger: str) -> None:
    owner = of_another(pair)
    pair.options, pair.copies = f"--all --swap {ledger}", f"--all --yes --swap {ledger}"

    needs = pair.told()["dest"]
    pair.grant()

    expected = {"CONNECT database", "USAGE schema", "CREATE schema", f"{owner.name} role"}
    assert needed(needs) == expected | (set() if ledger else {"CREATE database"})
    assert not any(each["held"] for each in needs)
    assert all(each["held"] for each in pair.told()["dest"])
    for each in needs:
        if (each["privilege"], each["on"]) == ("CREATE", "database"):  # of the ledger
            continue
        said = without_each(pair, [each])[each["sql"]]
        assert names(said, each), (each["sql"], said)
    assert pair.copy().code == 0
    assert pair.dest.scalar("SELECT count(*) FROM shop.users") == 7
    assert pair.copy().code == 0  # the new table is the owner's too


def test_a_swap_by_the_owner_itself(pair: Pair) -> None:
    pair.dest.execute(f"ALTER TABLE shop.users OWNER TO {pair.loader.name}")
    pair.options, pair.copies = "--all --swap --no-ledger", "--all --yes --swap --no-ledger"

    needs = pair.told()["dest"]
    assert needed(needs) == ALWAYS | {"CREATE schema"}
    pair.grant()

    # An owner may draw by UPDATE too.
    without_each(pair, [each for each in needs if each["on"] != "sequence"])
    assert pair.copy().code == 0


def test_what_the_owner_has_is_not_granted_twice(pair: Pair) -> None:
    owner = of_another(pair)
    pair.dest.execute(f"GRANT USAGE, CREATE ON SCHEMA shop TO {owner.name}")
    pair.options, pair.copies = "--all --swap --no-ledger", "--all --yes --swap --no-ledger"

    lines = [x for x in pair.grants("--side", "dest").out.splitlines() if x.startswith("GRANT")]
    pair.grant()

    assert lines == [
        f'GRANT CONNECT ON DATABASE "{pair.dest.name}" TO "{pair.loader.name}";',
        f'GRANT "{owner.name}" TO "{pair.loader.name}";',
        f'GRANT CREATE ON SCHEMA "shop" TO "{owner.name}"; -- held',
    ]
    assert pair.copy().code == 0


def test_a_superuser_as_the_owner_of_what_is_swapped(pair: Pair) -> None:
    pair.options = "--all --swap --no-ledger"
    said = notes(pair.grants("--side", "dest"))
    assert any(note.startswith("the owner postgres is a superuser") for note in said)


def test_a_member_that_does_not_inherit_may_not_swap(pair: Pair) -> None:
    of_another(pair)
    pair.options, pair.copies = "--all --swap --no-ledger", "--all --yes --swap --no-ledger"
    pair.dest.execute(f"ALTER ROLE {pair.loader.name} NOINHERIT")
    pair.grant()

    said = pair.copy("--dry-run")

    assert said.code == 6
    assert "dest: shop.users cannot be swapped" in said.err
    assert "that inherits its rights" in said.err


def test_a_swap_of_a_partition_whose_keys_point_elsewhere(pair: Pair) -> None:
    pair.dest.execute(
        """
        CREATE SCHEMA other;
        CREATE TABLE other.names (name text PRIMARY KEY);
        INSERT INTO other.names SELECT 'n' || n FROM generate_series(1, 9) AS n;
        DROP TABLE shop.users;
        CREATE TABLE shop.users (
            id bigint, name text REFERENCES other.names, "E-Mail" text, created_at timestamptz)
            PARTITION BY RANGE (created_at);
        CREATE TABLE shop.d29 PARTITION OF shop.users
            FOR VALUES FROM ('2018-04-29Z') TO ('2018-04-30Z')
        """
    )
    owner, above = of_another(pair), pair.dest.role("above")
    pair.dest.execute(
        f"ALTER TABLE shop.d29 OWNER TO {owner.name}; ALTER TABLE shop.users OWNER TO {above.name}"
    )
    pair.options, pair.copies = "--swap --no-ledger", f"{DAY} --swap --no-ledger"

    needs = pair.told()["dest"]
    pair.grant()

    assert needed(needs) == {
        *(f"{name} role" for name in (owner.name, above.name)),
        *("CONNECT database", "USAGE schema", "CREATE schema", "REFERENCES table"),
    }
    said = without_each(pair, needs)
    parts = {each["privilege"]: said[each["sql"]] for each in needs}
    assert f"not a member of its owner {owner.name}" in parts[owner.name]
    assert f"not a member of {above.name}, the owner of shop.users" in parts[above.name]
    assert "lacks REFERENCES on other.names" in parts["REFERENCES"]
    assert pair.copy().code == 0
    assert pair.dest.scalar("SELECT count(*) FROM shop.d29") == 5


# --- what SQL of the user reads -------------------------------------------------------------------


def test_columns_that_expressions_use(pair: Pair) -> None:
    columns = "--column name=upper(name)||id --column '\"E-Mail\"=md5(created_at::text)'"
    pair.options, pair.copies = f"{columns} --no-ledger", f"{columns} {DAY} --no-ledger"

    needs = pair.told()["source"]
    pair.grant()

    assert {each["privilege"]: each["columns"] for each in needs} == {
        "CONNECT": None,
        "USAGE": None,
        "SELECT": ["id", "name", "created_at"],
    }
    assert not [note for note in notes(pair.grants()) if "not known" in note]
    for column in ("id", "name", "created_at"):
        right = f'GRANT SELECT ("{column}") ON shop.users TO "{pair.reader.name}"'
        with pair.without("source", right):
            assert pair.copy().code == 6
    assert pair.copy().code == 0


def test_the_whole_row_in_an_expression(pair: Pair) -> None:
    columns = "--column name=users::text --exclude E-Mail"
    pair.options, pair.copies = f"{columns} --no-ledger", f"{columns} {DAY} --no-ledger"
    pair.grant()
    assert pair.copy().code == 0


def test_what_an_expression_looks_up(pair: Pair) -> None:
    pair.source.execute("CREATE TABLE shop.names (name text)")
    columns = "--column 'name=(SELECT max(n.name) FROM shop.names n)'"
    pair.options, pair.copies = f"{columns} --no-ledger", f"{columns} {DAY} --no-ledger"

    told = notes(pair.grants("--side", "source"))
    pair.grant()

    assert any(n.startswith("what the expression of name reads is not known here") for n in told)
    said = pair.copy()
    assert (said.code, "permission denied for table names" in said.err) == (6, True)
    pair.source.execute(f"GRANT SELECT ON shop.names TO {pair.reader.name}")
    assert pair.copy().code == 0


def test_what_a_query_reads(pair: Pair) -> None:
    query = "--query 'SELECT * FROM shop.users WHERE id < 9'"
    pair.options, pair.copies = f"{query} --no-ledger", f"{query} {DAY} --no-ledger"

    needs = pair.told()
    pair.grant()

    assert needed(needs["source"]) == {"CONNECT database"}
    assert needed(needs["dest"]) == DEST_NEEDS["replace"] | ALWAYS
    told = notes(pair.grants("--side", "source"))
    assert any(note.startswith("what the query reads is not known here") for note in told)
    said = pair.copy()
    assert (said.code, "permission denied for schema shop" in said.err) == (6, True)
    pair.source.execute(
        f"GRANT USAGE ON SCHEMA shop TO {pair.reader.name};"
        f"GRANT SELECT ON shop.users TO {pair.reader.name}"
    )
    assert pair.copy().code == 0


# --- what is told besides -------------------------------------------------------------------------


def notes(run: Run) -> list[str]:
    """Return the comments that stand alone."""
    return [
        line[3:]
        for line in run.out.splitlines()
        if line.startswith("-- ") and not line.startswith("-- GRANT")
    ]


def test_each_column_is_needed_by_itself(pair: Pair) -> None:
    pair.options, pair.copies = "--no-ledger", f"{DAY} --no-ledger"
    pair.grant()
    for side, right in (("source", "SELECT"), ("dest", "INSERT")):
        for column in ("id", "name", "E-Mail", "created_at"):
            with pair.without(
                side, f'GRANT {right} ("{column}") ON shop.users TO "{pair.role(side).name}"'
            ):
                said = pair.copy()
            assert said.code == 6
            assert f"It lacks {right} ({column})." in said.err


EXCLUDED = {
    "serial": ("ALTER TABLE shop.users ALTER name SET DEFAULT 'n' || nextval('shop.names')", 6),
    "an identity": ("ALTER TABLE shop.users ADD other int GENERATED ALWAYS AS IDENTITY", 0),
    "another default": ("ALTER TABLE shop.users ALTER name SET DEFAULT 'none'", 0),
}


@pytest.mark.parametrize(("sql", "code"), EXCLUDED.values(), ids=EXCLUDED.keys())
@pytest.mark.parametrize("mode", ["replace", "append", "merge"])
@pytest.mark.one_of(5)
def test_a_sequence_of_a_column_that_is_excluded(
    pair: Pair, sql: str, code: int, mode: str
) -> None:
    pair.dest.execute(f"CREATE SEQUENCE shop.names; {sql}; ALTER TABLE shop.users DROP number")
    pair.dest.execute("DELETE FROM shop.users")
    pair.options = f"--no-ledger --exclude name --mode {mode}"
    pair.copies = f"{DAY} {pair.options}"
    pair.grant()
    pair.dest.execute(f"REVOKE ALL ON SEQUENCE shop.names FROM {pair.loader.name}")

    said = pair.copy("--dry-run")

    assert said.code == code
    if code == 0:
        assert pair.copy().code == 0
        return
    assert "dest: the role may not draw from shop.names" in said.err
    assert "GRANT USAGE ON SEQUENCE shop.names TO the role." in said.err
    pair.dest.execute(f"GRANT SELECT, UPDATE ON SEQUENCE shop.names TO {pair.loader.name}")
    assert pair.copy().code == 0


def test_the_text(pair: Pair) -> None:
    pair.options = "--mode merge --no-ledger --exclude name"
    reader, loader = pair.reader.name, pair.loader.name

    lines = pair.grants().out.splitlines()

    kept = '"id", "E-Mail", "created_at"'
    assert [line for line in lines if not line.startswith("-- ")] == [
        f'GRANT CONNECT ON DATABASE "{pair.source.name}" TO "{reader}";',
        f'GRANT USAGE ON SCHEMA "shop" TO "{reader}";',
        f'GRANT SELECT ({kept}) ON TABLE "shop"."users" TO "{reader}";',
        f'GRANT CONNECT ON DATABASE "{pair.dest.name}" TO "{loader}";',
        f'GRANT USAGE ON SCHEMA "shop" TO "{loader}";',
        f'GRANT SELECT ({kept}) ON TABLE "shop"."users" TO "{loader}";',
        f'GRANT INSERT ON TABLE "shop"."users" TO "{loader}";',
        f'GRANT UPDATE ("E-Mail", "created_at") ON TABLE "shop"."users" TO "{loader}";',
        f'GRANT TEMPORARY ON DATABASE "{pair.dest.name}" TO "{loader}";',
        f'GRANT USAGE ON SEQUENCE "shop"."users_number_seq" TO "{loader}";',
    ]
    assert lines[0] == (
        "-- the least for: copypipe copy shop.users --exclude name --mode merge --no-ledger"
    )
    assert (
        f'-- GRANT "pg_read_all_stats" TO "{reader}"; -- shows the running transactions of others, '
        "so that a slice is sealed at once"
    ) in lines


def test_what_is_held_is_marked(pair: Pair) -> None:
    pair.source.execute(
        f"GRANT USAGE ON SCHEMA shop TO PUBLIC; GRANT SELECT ON shop.users TO {pair.reader.name};"
        f"GRANT CONNECT ON DATABASE {pair.source.name} TO PUBLIC"
    )

    lines = pair.grants("--side", "source").out.splitlines()

    assert [line for line in lines if line.startswith("GRANT")] == [
        f'GRANT USAGE ON SCHEMA "shop" TO "{pair.reader.name}"; -- held',
        'GRANT SELECT ("id", "name", "E-Mail", "created_at") ON TABLE "shop"."users" TO '
        f'"{pair.reader.name}"; -- held',
    ]
    assert not [line for line in lines if "-- dest" in line]


def test_a_role_of_a_strange_name(pair: Pair) -> None:
    """What is no plain text is not run by accident: a comment has no second line."""
    strange = f"copypipe odd\n{secrets.token_hex(4)}"
    pair.source.execute(f'CREATE ROLE "{strange}"')
    try:
        run = pair.words("grants", "shop.users", "--role-source", f'"{strange}"')
        told = pair.words("grants", "shop.users", "--role-source", f'"{strange}"', "--json")
    finally:
        pair.source.execute(f'DROP ROLE "{strange}"')

    assert run.code == 0
    assert all(line.startswith(("--", "GRANT")) for line in run.out.splitlines())
    assert strange in json.loads(told.out)["source"]["grants"][0]["sql"]


def test_a_role_that_is_not_there(pair: Pair) -> None:
    run = pair.words("grants", "shop.users", "--role-dest", "copypipe_none")

    assert run.code == 6
    assert run.err.startswith("ERROR:  dest: there is no role copypipe_none\n")


def test_a_superuser_needs_none(pair: Pair) -> None:
    run = pair.words("grants", "shop.users", "--side", "dest")

    assert "the role is a superuser: it needs no GRANT, and may do more than a copy needs" in notes(
        run
    )
    assert all("-- held" in line for line in run.out.splitlines() if line.startswith("GRANT"))


def test_row_security(pair: Pair) -> None:
    pair.source.execute("ALTER TABLE shop.users ENABLE ROW LEVEL SECURITY")

    assert (
        "row security of shop.users applies to the role, so that a copy is refused: it needs "
        "BYPASSRLS"
    ) in notes(pair.grants("--side", "source"))
    pair.source.execute(f"ALTER ROLE {pair.reader.name} BYPASSRLS")
    assert not [note for note in notes(pair.grants("--side", "source")) if "row security" in note]


def test_a_ledger_that_is_not_to_be_trusted(pair: Pair) -> None:
    other = pair.dest.role("other", f"CREATE, CONNECT ON DATABASE {pair.dest.name}")
    assert pair.words("init", "--dest", other.dsn).code == 0

    said = notes(pair.grants("--side", "dest"))

    assert (
        f"the ledger cannot be used: its owner {other.name} could run anything as this role" in said
    )


def test_partitions_that_are_truncated(pair: Pair) -> None:
    pair.dest.execute(
        """
        DROP TABLE shop.users;
        CREATE TABLE shop.users (id bigint, name text, "E-Mail" text, created_at timestamptz)
            PARTITION BY RANGE (created_at);
        CREATE TABLE shop.d29 PARTITION OF shop.users
            FOR VALUES FROM ('2018-04-29Z') TO ('2018-04-30Z');
        CREATE TABLE shop.d30 PARTITION OF shop.users
            FOR VALUES FROM ('2018-04-30Z') TO ('2018-05-01Z')
        """
    )
    pair.options, pair.copies = (
        "--clear truncate --no-ledger",
        f"{DAY} --clear truncate --no-ledger",
    )

    grants = pair.told()["dest"]
    pair.grant()

    assert [(g["privilege"], g["object"][1]) for g in grants if g["on"] == "table"] == [
        ("SELECT", "users"),
        ("INSERT", "users"),
        ("TRUNCATE", "d29"),
        ("TRUNCATE", "d30"),
    ]
    assert "a partition that is made later needs TRUNCATE too" in notes(pair.grants())
    assert pair.copy().code == 0
    for grant in grants:
        with pair.without("dest", grant["sql"]):
            said = pair.copy()
        expected = 0 if grant["object"][-1] == "d30" else 6  # which is not of the day
        assert said.code == expected, (grant["sql"], said.err)


def test_a_view_is_read(pair: Pair) -> None:
    pair.source.execute(
        "ALTER TABLE shop.users RENAME TO u; CREATE VIEW shop.users AS SELECT * FROM shop.u"
    )
    pair.options, pair.copies = "--no-ledger", f"{DAY} --no-ledger"
    pair.grant()

    assert pair.copy().code == 0


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("shop.users --merge-deletes", 2, "--merge-deletes means nothing in mode replace"),
        ("shop.users --all --where true", 2, "--all and --where were both given"),
        ("shop.none", 6, "source: there is no table shop.none"),
        ("shop.users --by born", 6, 'source: shop.users has no column "born" to slice by'),
        ("shop.users --where now()>created_at", 6, "the condition may mean other rows"),
        ("shop.users --source port=1 --dest port=1", 5, "source: the server cannot be reached"),
    ],
)
def test_what_is_refused(pair: Pair, given: str, code: int, message: str) -> None:
    run = pair.words("grants", *given.split())

    assert run.code == code
    assert message in run.err
    assert not run.out


@pytest.mark.parametrize("mode", ["append", "merge"])
@pytest.mark.one_of(2)
def test_inserting_into_columns_alone_does_not_let_it_lock_the_table(pair: Pair, mode: str) -> None:
    pair.options = f"--mode {mode} --no-ledger"
    pair.copies = f"--mode {mode} {DAY} --no-ledger"
    pair.grant()
    loader, whole = pair.loader.name, f"INSERT ON shop.users TO {pair.loader.name}"
    pair.dest.execute(
        f"REVOKE INSERT ON shop.users FROM {loader};"
        f'GRANT INSERT (id, name, "E-Mail", created_at) ON shop.users TO {loader}'
    )

    said = pair.copy("--dry-run")

    assert said.code == 6
    assert "It lacks INSERT. INSERT on columns alone does not let it lock the table." in said.err
    pair.dest.execute(f"GRANT {whole}")
    # Of the rows of the day at the source the dest has some by now, with their keys.
    pair.dest.execute("DELETE FROM shop.users")
    assert pair.copy().code == 0
