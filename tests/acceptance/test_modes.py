"""The options of modes, hazards and settings, in words: refused in three parts, told in one line.

Both sides have public.users: three days of 24 rows at the source, five rows of the day at the dest.
"""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from plugins.command import Words, no_backends, users
from plugins.databases import Database
from plugins.proxy import HOST, Proxy, lose_commit
from plugins.rows import assert_refused, contents

DAY = "users --day 2018-04-29"
APPEND = f"{DAY} --mode append"
MERGE = f"{DAY} --mode merge"

# --- words alone ----------------------------------------------------------------------------------

MEANS = "means nothing in mode"
WORDS = {
    "a key to replace": (
        f"{DAY} --key id",
        f"--key {MEANS} replace\nHINT:  It goes with --mode merge\\.$",
    ),
    "a key to append": (f"{APPEND} --key id", f"--key {MEANS} append\nHINT: .*--mode merge"),
    "deletes to replace": (f"{DAY} --merge-deletes", f"--merge-deletes {MEANS} replace\nHINT"),
    "deletes to append": (f"{APPEND} --merge-deletes", f"--merge-deletes {MEANS} append\nHINT"),
    "again to replace": (f"{DAY} --again", f"--again {MEANS} replace\nHINT: .*--mode append"),
    "again to merge": (f"{MERGE} --again", f"--again {MEANS} merge\nHINT: .*--mode append"),
    "TRUNCATE to append": (
        "users --all --mode append --clear truncate",
        f"--clear truncate {MEANS} append\nHINT: .*--mode replace",
    ),
    "TRUNCATE to merge": (
        "users --all --mode merge --clear truncate",
        f"--clear truncate {MEANS} merge\nHINT: .*--mode replace",
    ),
    "a ratio to append": (f"{APPEND} --min-ratio 0.5", f"--min-ratio {MEANS} append\nHINT"),
    "a ratio to merge": (f"{MERGE} --min-ratio 0.5", f"--min-ratio {MEANS} merge\nHINT"),
    "a ratio of what is not counted": (
        "users --all --clear truncate --min-ratio 0.5",
        "--min-ratio needs the rows counted that are removed\nHINT:  Let them be deleted",
    ),
    "a ratio of nothing": (
        f"{DAY} --min-ratio 0",
        "not a part of the rows: 0.0\nHINT:  Above 0 and at most 1, as in 0.5",
    ),
    "a negative ratio": (f"{DAY} --min-ratio=-1", "not a part of the rows: -1.0"),
    "a ratio above all": (f"{DAY} --min-ratio 1.01", "not a part of the rows: 1.01"),
    "a ratio that is no number": (f"{DAY} --min-ratio nan", "not a part of the rows: nan"),
    "an endless ratio": (f"{DAY} --min-ratio inf", "not a part of the rows: inf"),
    "a setting without its value": (
        f"{DAY} --dest-set work_mem",
        "not a setting: 'work_mem'\nHINT:  Write name=value, as work_mem=64MB",
    ),
    "a setting without its name": (
        f"{DAY} --source-set =64MB",
        "not a parameter of a server: ''\nHINT:  Write it as in --source-set work_mem=64MB",
    ),
    "a setting whose name is SQL": (
        f"{DAY} --dest-set 'work_mem; DROP TABLE users=1'",
        "not a parameter of a server: 'work_mem; DROP TABLE users'",
    ),
    "a setting whose name is quoted": (
        f"{DAY} --dest-set '\"work_mem\"=1'",
        "not a parameter of a server: '\"work_mem\"'",
    ),
    "a setting with a dot too many": (f"{DAY} --dest-set a..b=1", "not a parameter of a server"),
    "a setting named by no letter": (f"{DAY} --dest-set 1a=1", "not a parameter of a server"),
    **{
        f"{side}: {name}": (
            f"{DAY} --{side}-set {name}=x",
            f"{name} cannot be set\nDETAIL:  What a copy reads, writes or counts depends on it.\n"
            f"HINT:  --{side}-set is for limits and resources",
        )
        for side, name in (
            ("source", "search_path"),
            ("dest", "SEARCH_PATH"),
            ("source", "client_encoding"),
            ("dest", "client_encoding"),
            ("source", "DateStyle"),
            ("dest", "datestyle"),
            ("source", "timezone"),
            ("source", "row_security"),
            ("dest", "row_security"),
            ("dest", "lock_timeout"),
            ("dest", "application_name"),
            ("source", "transaction_isolation"),
            ("source", "transaction_read_only"),
            ("source", "extra_float_digits"),
            ("dest", "standard_conforming_strings"),
            ("source", "bytea_output"),
            ("source", "lc_monetary"),
            ("source", "intervalstyle"),
        )
    },
}  # fmt: skip


@pytest.fixture
def nowhere(bare_run: object, closed_port: int) -> Words:
    """Return the words with both sides at a port where nobody listens."""
    sides = {
        f"COPYPIPE_{side}": f"host={HOST} port={closed_port} user=u dbname=d"
        for side in ("SOURCE", "DEST")
    }
    return Words(bare_run.base | sides, bare_run.check)


@pytest.mark.parametrize(("command", "message"), WORDS.values(), ids=WORDS.keys())
def test_words(nowhere: Words, command: str, message: str) -> None:
    assert_refused(nowhere("copy", *shlex.split(command)), 2, message)


OPTIONS = {
    "a mode": "--mode upsert",
    "a hazard": "--accept everything",
    "no hazard": "--accept ''",
    "a ratio": "--min-ratio half",
}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
def test_what_no_option_takes(nowhere: Words, option: str) -> None:
    run = nowhere("copy", *shlex.split(f"{DAY} {option}"))
    assert (run.code, run.out) == (2, "")
    assert "Error: " in run.err


# --- what the servers know ------------------------------------------------------------------------

CHILD = "CREATE TABLE public.child (u bigint REFERENCES public.users"
FILLED = "INSERT INTO public.child SELECT id FROM public.users"
DROPPING = (
    "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RETURN CASE WHEN NEW.id % 2 = 0 THEN NEW END; END $$;"
    "CREATE TRIGGER t BEFORE INSERT ON public.users FOR EACH ROW EXECUTE FUNCTION public.f()"
)


@dataclass(frozen=True)
class Bad:
    """A case: what is done to the sides, the words, what is said."""

    code: int
    message: str
    command: str
    source: str = ""
    dest: str = ""


BAD = {
    "a foreign key that points there": Bad(
        6,
        "dest: rows of public.users cannot be removed while others point at them\n"
        "DETAIL:  Foreign keys: child_u_fkey of public.child \\(ON DELETE no action\\)\\. .*\n"
        "HINT:  Use --mode merge, which removes no row\\. Or make them DEFERRABLE\\."
        " --accept references tries it\\.",
        DAY,
        dest=f"{CHILD}); {FILLED}",
    ),
    "a foreign key of the table's own": Bad(
        6,
        "dest: rows of public.users cannot be removed while others point at them",
        DAY,
        dest="ALTER TABLE public.users ADD boss bigint REFERENCES public.users",
    ),
    "a foreign key that restricts": Bad(
        6,
        "\\(ON DELETE restrict\\)",
        DAY,
        dest=f"{CHILD} ON DELETE RESTRICT DEFERRABLE); {FILLED}",
    ),
    "a foreign key that holds in spite of that": Bad(
        1,
        "dest: .*violates foreign key constraint.*\n"
        "DETAIL:  SQLSTATE 23503; table public.child; constraint child_u_fkey\\.\n"
        "HINT:  Rows of another table",
        f"{DAY} --accept references",
        dest=f"{CHILD}); {FILLED}",
    ),
    "a deferrable foreign key to rows that do not come back": Bad(
        1,
        "dest: .*violates foreign key constraint.*\nDETAIL:  SQLSTATE 23503",
        DAY,
        source="DELETE FROM public.users WHERE id % 2 = 1",
        dest=f"{CHILD} DEFERRABLE); {FILLED}",
    ),
    "a cascade that only references are accepted for": Bad(
        6,
        "dest: clearing public.users would change other tables\n"
        "DETAIL:  Foreign keys: child_u_fkey of public.child \\(ON DELETE cascade\\)\\.\n"
        "HINT:  Use --mode merge, which removes no row\\. --accept cascade lets it\\.",
        f"{DAY} --accept references",
        dest=f"{CHILD} ON DELETE CASCADE); {FILLED}",
    ),
    "triggers that drop rows": Bad(
        1,
        "the source sent 24 rows and the dest took 12\n"
        "DETAIL: .*\nHINT:  Give --accept triggers if that is meant\\.",
        DAY,
        dest=DROPPING,
    ),
    "too few rows": Bad(
        6,
        "the source has 2 rows in \\[2018-04-29, 2018-04-30\\) UTC, and the dest has 5\n"
        "DETAIL:  That is less than --min-ratio 0\\.5 of them\\. Nothing was changed\\.\n"
        "HINT:  Leave --min-ratio out, or lower it, if that is meant\\.",
        f"{DAY} --min-ratio 0.5",
        source="DELETE FROM public.users WHERE id > 1000001",
    ),
    "too few rows to delete the others": Bad(
        6,
        "the source has 2 rows in \\[2018-04-29, 2018-04-30\\) UTC, and the dest has 5\n"
        "DETAIL:  That is less than --min-ratio 0\\.5 of them\\.",
        f"{MERGE} --merge-deletes --min-ratio 0.5",
        source="DELETE FROM public.users WHERE id > 1000001;"
        "UPDATE public.users SET id = id + 5000000",
    ),
    "no row, and a ratio": Bad(
        6,
        "the source has no row in .* and the dest has some",
        f"{DAY} --min-ratio 0.001",
        source="TRUNCATE public.users",
    ),
    "no key": Bad(
        6,
        "dest: public.users has no primary key to merge by\n"
        "HINT:  Make a unique index on what tells its rows apart\\.",
        MERGE,
        dest="ALTER TABLE public.users DROP CONSTRAINT users_pkey",
    ),
    "no such key": Bad(6, 'dest: public.users has no column "nothing"', f"{MERGE} --key nothing"),
    "a column that is no key": Bad(
        6,
        "dest: no unique index of public.users is on email\n"
        "DETAIL:  Without one two rows could have one key\\.\n"
        "HINT:  Keys that would do: --key id",
        f"{MERGE} --key email",
    ),
    "a key that is there twice": Bad(
        1,
        "source: the rows cannot be merged by id\n"
        "DETAIL:  1 keys are there more than once\\. Nothing was changed\\.\n"
        "HINT:  Merge by another key \\(--key\\), or read what has one row a key \\(--query\\)\\.",
        MERGE,
        source="ALTER TABLE public.users DROP CONSTRAINT users_pkey;"
        "UPDATE public.users SET id = 1000000 WHERE id = 1000001",
    ),
    "partitions that there are none of": Bad(
        6,
        "dest: \\[2018-04-29, 2018-04-30\\) UTC is not made of whole partitions of public.users\n"
        "DETAIL:  Its partitions by created_at within that range: none\\.\n"
        "HINT:  Use --clear delete\\.",
        f"{DAY} --clear truncate",
    ),
    "a slice of nothing": Bad(
        6,
        "is not made of whole partitions of public.users",
        "users --day 2011-12-30 --timezone Pacific/Apia --clear truncate",
    ),
    "no such parameter": Bad(
        6,
        'dest: unrecognized configuration parameter "no_such_thing"\nDETAIL:  SQLSTATE 42704.*\n'
        "HINT:  Nothing but what was given by --dest-set can be wrong there",
        f"{DAY} --dest-set no_such_thing=1",
    ),
    "no such parameter at the source": Bad(
        6, "source: unrecognized configuration parameter", f"{DAY} --source-set nothing=1"
    ),
    "a value that the parameter does not take": Bad(
        6,
        'dest: invalid value for parameter "work_mem": "lots"\nDETAIL:  SQLSTATE 22023',
        f"{DAY} --dest-set work_mem=lots",
    ),
    "a value that is SQL": Bad(
        6,
        "dest: .*\nDETAIL:  SQLSTATE 22023",
        f'{DAY} --dest-set "work_mem=1\'; DROP TABLE public.users; --"',
    ),
    "a value with a backslash": Bad(
        6, "dest: .*\nDETAIL:  SQLSTATE 22023", f"{DAY} --dest-set 'work_mem=\\'"
    ),
    "a parameter of the server's start": Bad(
        6, "dest: .*cannot be changed.*\nDETAIL:  SQLSTATE 55P02", f"{DAY} --dest-set port=1"
    ),
    "no such role": Bad(6, 'dest: role "nobody" does not exist', f"{DAY} --dest-set role=nobody"),
}


def prepare(source: Database, dest: Database) -> None:
    users(source, 3)
    users(dest, 1, rows=5, first="2018-04-29")
    dest.execute("UPDATE public.users SET id = id + 1000000")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.one_of(8)
def test_refused(words: Words, kept_source: Database, kept_dest: Database, bad: Bad) -> None:
    prepare(kept_source, kept_dest)
    for database, sql in ((kept_source, bad.source), (kept_dest, bad.dest)):
        if sql:
            database.execute(sql)
    before = contents(kept_source), contents(kept_dest)

    run = words("copy", *shlex.split(bad.command))

    assert_refused(run, bad.code, bad.message)
    assert (contents(kept_source), contents(kept_dest)) == before
    no_backends(kept_source, kept_dest)


# --- what goes well -------------------------------------------------------------------------------


def copied(words: Words, command: str) -> str:
    run = words("copy", *shlex.split(command))
    assert run.code == 0, run.err
    return run.out


# What is done to the dest, the words, what the line says at its end.
GOOD: dict[str, tuple[str, str, str]] = {
    "replaced": ("", DAY, "deleted 5, copied 24"),
    "appended": ("DELETE FROM public.users", APPEND, "appended 24"),
    "merged": ("", MERGE, "inserted 19, updated 5, left 0 unchanged"),
    "merged by a key": (
        "ALTER TABLE public.users DROP CONSTRAINT users_pkey; CREATE UNIQUE INDEX ON users (id)",
        f"{MERGE} --key id",
        "inserted 19, updated 5, left 0 unchanged",
    ),
    "merged with deletes": (
        "UPDATE public.users SET id = -1 WHERE id = 1000004",
        f"{MERGE} --merge-deletes",
        "deleted 1, inserted 20, updated 4, left 0 unchanged",
    ),
    "truncated": ("", "users --all --yes --clear truncate", "truncated, copied 72"),
    "exactly the ratio": ("", f"{DAY} --min-ratio 1", "deleted 5, copied 24"),
    "a key that points there and holds": (
        f"{CHILD} DEFERRABLE); {FILLED}",
        DAY,
        "deleted 5, copied 24",
    ),
    "a key that nothing points there by": (
        f"{CHILD})",
        f"{DAY} --accept references",
        "deleted 5, copied 24",
    ),
    "a key that points at what is merged": (f"{CHILD}); {FILLED}", MERGE, "updated 5, left 0"),
    "a cascade that is accepted": (
        f"{CHILD} ON DELETE CASCADE); {FILLED}",
        f"{DAY} --accept cascade",
        "deleted 5, copied 24",
    ),
    "dropped by triggers": (
        DROPPING,
        f"{DAY} --accept triggers",
        "deleted 5, copied 24, 12 dropped by triggers",
    ),
    "a key that points at the table's own rows": (
        "ALTER TABLE public.users ADD boss bigint REFERENCES public.users;"
        "UPDATE public.users SET boss = 1000000",
        "users --all --yes",
        "deleted 5, copied 72",
    ),
    "such a key, truncated": (
        "ALTER TABLE public.users ADD boss bigint REFERENCES public.users ON DELETE CASCADE;"
        "UPDATE public.users SET boss = 1000000",
        "users --all --yes --clear truncate",
        "truncated, copied 72",
    ),
    "merged, and dropped by triggers": (
        DROPPING,
        f"{MERGE} --accept triggers",
        "inserted 19, updated 5, left 0 unchanged, 12 dropped by triggers",
    ),
    "all that can be accepted": (
        f"{CHILD} ON DELETE CASCADE); CREATE TABLE public.other (u bigint REFERENCES users)",
        f"{DAY} --accept triggers --accept cascade --accept references",
        "deleted 5, copied 24",
    ),
    "settings": (
        "",
        f"{DAY} --source-set work_mem=64MB --dest-set WORK_MEM=64MB --dest-set a.b='it''s\\ x'",
        "deleted 5, copied 24",
    ),
}


@pytest.mark.parametrize(("sql", "command", "line"), GOOD.values(), ids=GOOD.keys())
@pytest.mark.one_of(8)
def test_the_line_says_what_became_of_the_rows(
    words: Words, kept_source: Database, kept_dest: Database, sql: str, command: str, line: str
) -> None:
    prepare(kept_source, kept_dest)
    if sql:
        kept_dest.execute(sql)

    out = copied(words, command)

    assert len(out.splitlines()) == 1
    assert re.search(rf"  {re.escape(line)}(, open)?$" if line[-6:] != "left 0" else line, out), out


def test_a_ratio_is_met_exactly(words: Words, kept_source: Database, kept_dest: Database) -> None:
    users(kept_source, 1, rows=3, first="2018-04-29")
    users(kept_dest, 1, rows=4, first="2018-04-29")
    before = contents(kept_dest)
    assert words("copy", *f"{DAY} --min-ratio 0.76".split()).code == 6
    assert contents(kept_dest) == before

    assert "deleted 4, copied 3" in copied(words, f"{DAY} --min-ratio 0.75")


NUMBERS = ("mode", "rows", "inserted", "updated", "deleted", "dropped")
JSON: dict[str, tuple[str, tuple[object, ...]]] = {
    "replace": (DAY, ("replace", 24, None, None, 5, 0)),
    "append": ("users --day 2018-04-30 --mode append", ("append", 24, None, None, 0, 0)),
    "merge": (f"{MERGE} --merge-deletes", ("merge", 24, 19, 5, 0, 0)),
    "truncate": ("users --all --yes --clear truncate", ("replace", 72, None, None, None, 0)),
}


@pytest.mark.parametrize(("command", "numbers"), JSON.values(), ids=JSON.keys())
def test_json_has_the_numbers_of_each_mode(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    command: str,
    numbers: tuple[object, ...],
) -> None:
    prepare(kept_source, kept_dest)
    (line,) = copied(words, f"{command} --json").splitlines()
    told = json.loads(line)
    assert tuple(told[name] for name in NUMBERS) == numbers


def test_json_tells_what_triggers_dropped(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    prepare(kept_source, kept_dest)
    kept_dest.execute(DROPPING)
    told = json.loads(copied(words, f"{DAY} --accept triggers --json"))
    assert (told["rows"], told["dropped"], told["deleted"]) == (24, 12, 5)


def test_a_role_that_is_set_is_who_writes(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    """Who connects may do nothing but become the owner."""
    prepare(kept_source, kept_dest)
    owner = kept_dest.role("owner", "ALL ON SCHEMA public")
    kept_dest.execute(f"ALTER TABLE public.users OWNER TO {owner.name}")
    login = kept_dest.role("login", owner.name)
    kept_dest.execute(f"ALTER ROLE {login.name} NOINHERIT")
    kept_dest.execute(f"REVOKE {owner.name} FROM {login.name}")
    kept_dest.execute(f"GRANT {owner.name} TO {login.name} WITH INHERIT FALSE")
    env = {"COPYPIPE_DEST": login.dsn}
    refused = words("copy", *DAY.split(), env=env)
    assert_refused(refused, 6, "dest: the role may not write public.users")

    words_ = f"{DAY} --mode merge --dest-set role={owner.name}".split()
    run = words("copy", *words_, env=env)

    assert run.code == 0, run.err
    assert "inserted 19, updated 5" in run.out


# --- limits of the role ---------------------------------------------------------------------------

SLOW = (
    "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_catalog.pg_sleep(0.6); RETURN NULL; END $$;"
    "CREATE TRIGGER slow AFTER INSERT ON public.users FOR EACH STATEMENT"
    " EXECUTE FUNCTION public.slow()"
)


def test_a_statement_timeout_of_the_role_ends_the_copy_unless_it_is_overridden(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    prepare(kept_source, kept_dest)
    kept_dest.execute(SLOW)
    role = kept_dest.role("limited", "SELECT, INSERT, DELETE ON public.users")
    kept_dest.execute(f"ALTER ROLE {role.name} SET statement_timeout = '300ms'")
    env = {"COPYPIPE_DEST": role.dsn}
    before = contents(kept_dest)

    refused = words("copy", *f"{DAY} --no-ledger".split(), env=env)

    assert_refused(
        refused,
        1,
        "dest: canceling statement due to statement timeout\nDETAIL:  SQLSTATE 57014.*\n"
        "HINT:  If a timeout of the role ended it: --dest-set statement_timeout=0\\.",
    )
    assert contents(kept_dest) == before
    more = ["--no-ledger", "--dest-set", "statement_timeout=0"]
    run = words("copy", *DAY.split(), *more, env=env)
    assert run.code == 0, run.err


def test_a_statement_timeout_of_the_source_is_told_with_its_option(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    prepare(kept_source, kept_dest)
    query = shlex.quote("SELECT u.* FROM public.users u, pg_catalog.pg_sleep(0.6)")
    command = f"{DAY} --query {query} --source-set statement_timeout=300ms"

    refused = words("copy", *shlex.split(command))

    assert_refused(refused, 1, "HINT: .*--source-set statement_timeout=0")
    copied(words, command.replace("300ms", "0"))


def test_a_transaction_timeout_of_the_role_ends_the_copy_unless_it_is_overridden(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    if kept_dest.server.major < 17:
        pytest.skip("since PostgreSQL 17")
    prepare(kept_source, kept_dest)
    kept_dest.execute(SLOW)
    role = kept_dest.role("limited", "SELECT, INSERT, DELETE ON public.users")
    kept_dest.execute(f"ALTER ROLE {role.name} SET transaction_timeout = '400ms'")
    env = {"COPYPIPE_DEST": role.dsn}

    refused = words("copy", *f"{DAY} --no-ledger --retries 3".split(), env=env)

    assert_refused(
        refused, 1, "transaction timeout.*\nDETAIL: .*\nHINT: .*--dest-set transaction_timeout=0"
    )
    assert "again" not in refused.err
    more = ["--no-ledger", "--dest-set", "transaction_timeout=0"]
    run = words("copy", *DAY.split(), *more, env=env)
    assert run.code == 0, run.err


# --- plans ----------------------------------------------------------------------------------------

# The words, and how the statements begin, in order.
PLANS: dict[str, tuple[str, list[str]]] = {
    "replace": (DAY, ["dest DELETE FROM", "dest COPY", "source COPY"]),
    "append": (APPEND, ["dest COPY", "source COPY"]),
    "merge": (
        MERGE,
        [
            "dest CREATE TEMPORARY TABLE",
            "dest COPY",
            "source COPY",
            "dest ANALYZE",
            "dest SELECT (SELECT count(*)",
            "dest WITH changed",
        ],
    ),
    "merge with deletes": (
        f"{MERGE} --merge-deletes",
        [
            "dest CREATE TEMPORARY TABLE",
            "dest COPY",
            "source COPY",
            "dest ANALYZE",
            "dest SELECT (SELECT count(*)",
            "dest DELETE FROM",
            "dest WITH changed",
        ],
    ),
    "truncate": (
        "users --all --yes --clear truncate",
        ["dest LOCK TABLE", "dest TRUNCATE TABLE", "dest COPY", "source COPY"],
    ),
    "truncate partitions": (
        "parted --day 2018-04-29 --clear truncate",
        [
            'dest LOCK TABLE "public"."p29"',
            'dest TRUNCATE TABLE "public"."p29"',
            "dest COPY",
            "source COPY",
        ],
    ),
}
PARTED = (
    "CREATE TABLE public.parted (LIKE public.users) PARTITION BY RANGE (created_at);"
    "CREATE TABLE public.p29 PARTITION OF public.parted FOR VALUES FROM ('2018-04-29Z')"
    " TO ('2018-04-30Z')"
)


@pytest.mark.parametrize(("command", "statements"), PLANS.values(), ids=PLANS.keys())
def test_a_dry_run_prints_every_statement_and_changes_nothing(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    command: str,
    statements: list[str],
) -> None:
    prepare(kept_source, kept_dest)
    for database in (kept_source, kept_dest):
        database.execute(PARTED)
    before = contents(kept_dest)

    out = copied(words, f"{command} --dry-run")

    begins = re.compile(
        r"^  (source|dest) +"
        r"((?:LOCK|DELETE FROM|COPY|CREATE TEMPORARY|ANALYZE|TRUNCATE|WITH|SELECT|INSERT).*)$",
        re.MULTILINE,
    )
    found = [f"{side} {statement}" for side, statement in begins.findall(out)]
    assert len(found) == len(statements), out
    assert all(map(str.startswith, found, statements)), found
    assert out.endswith("nothing was changed\n")
    plan = json.loads(copied(words, f"{command} --dry-run --json"))
    assert len(plan["statements"]) == len(statements)
    assert plan["mode"] == (
        "replace" if "--mode" not in command else command.split("--mode ")[1].split()[0]
    )
    assert contents(kept_dest) == before
    assert kept_dest.scalar("SELECT to_regnamespace('copypipe') IS NULL")


def test_a_dry_run_runs_as_it_was_printed(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    """What a person reads is what runs: the statements are valid as they stand."""
    prepare(kept_source, kept_dest)
    plan = json.loads(copied(words, f"{MERGE} --merge-deletes --dry-run --json"))
    statements = plan["statements"]
    with kept_dest.connect(autocommit=False) as dest:
        dest.execute(statements["stage"])
        for name in ("delete", "merge"):
            dest.execute(statements[name])
        dest.rollback()


# --- a COMMIT without an answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (
            f"{APPEND} --no-ledger",
            "Look at the dest first: to run it again may add the rows twice.",
        ),
        (
            "users --day 2018-04-30 --mode append --again --no-ledger",
            "Look at the dest first: to run it again may add the rows twice.",
        ),
    ],
    ids=["append", "append again"],
)
def test_what_may_have_been_added_is_not_to_be_added_again_without_a_look(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    proxy: Callable[..., Proxy],
    command: str,
    hint: str,
) -> None:
    prepare(kept_source, kept_dest)
    kept_dest.execute("TRUNCATE public.users")
    between = proxy(kept_dest.server, lose_commit(arrives=True))

    run = words("copy", *shlex.split(command), env={"COPYPIPE_DEST": between.dsn(kept_dest)})

    assert_refused(
        run, 75, f"DETAIL:  Either all rows were added or none\\.\nHINT:  {re.escape(hint)}$"
    )
    assert kept_dest.scalar("SELECT count(*) FROM public.users") == 24
