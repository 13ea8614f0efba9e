"""What is wrong is said in three parts, with the documented exit code, and nothing is changed."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from plugins.canary import CANARY
from plugins.command import Command, Words, no_backends, users
from plugins.databases import Database
from plugins.proxy import HOST, Impostor, greeting_of
from plugins.rows import assert_refused, contents
from plugins.ways import Way

DAY = "users --day 2018-04-29"
ONCE = f"{DAY} --retries 0"

# What a server needs not be asked for is told before one that does not answer would be asked again.
QUICK = 0.9
# With the interpreter, typer and a busy machine.
QUICK_PROCESS = 3.0


# --- words alone ----------------------------------------------------------------------------------

WORDS = {
    "no slice": ("users", "which rows\\? No slice was given"),
    "two slices": (f"{DAY} --month 2018-04", "several slices were asked for"),
    "a day and all": (f"{DAY} --all", "several slices were asked for"),
    "a day and a range": (f"{DAY} --from -3d --to today", "several slices were asked for"),
    "from alone": ("users --from 2018-04-29", "a range needs both its ends"),
    "to alone": ("users --to 2018-04-29", "a range needs both its ends"),
    "from after to": (
        "users --from 2018-05-01 --to 2018-04-01",
        "the range is empty: from 2018-05-01 to 2018-04-01",
    ),
    "from is to": ("users --from 2018-04-01 --to 2018-04-01", "the range is empty"),
    "from after to, counted back": (
        "users --from -3d --to -5d",
        "the range is empty: from -3d to -5d",
    ),
    "from after to, with offsets": (
        "users --from 2018-04-29T10:00+02:00 --to 2018-04-29T09:00+01:00",
        "the range is empty",
    ),
    "no such day": ("users --day 2018-02-30", "not a day: '2018-02-30'"),
    "a day written otherwise": ("users --day 29.04.2018", "HINT:  Days are written 2018-04-29"),
    "no day": ("users --day ''", "not a day: ''"),
    "a day out of range": ("users --day 9999-12-31", "day out of range"),
    "no such month": ("users --month 2018-13", "not a month: '2018-13'"),
    "no such time": (
        "users --from 2018-04-29T25:00 --to 2018-04-30",
        "neither a day, a time nor a number: '2018-04-29T25:00'",
    ),
    "a POSIX zone": (f"{DAY} --timezone=+02", "not the name of a time zone: '\\+02'"),
    "a zone with a quote": (f'{DAY} --timezone "UTC\'"', "not the name of a time zone"),
    "no duration": (f"{DAY} --wait-lock soon", "not a duration: 'soon'"),
    "a negative duration": (f"{DAY} --wait-lock=-1s", "not a duration: '-1s'"),
    "no name": ("'' --day 2018-04-29", "the table has no name"),
    "a blank name": ("' ' --day 2018-04-29", "the table has no name"),
    "no name at the dest": (f"{DAY} --into ''", "the table has no name"),
    "no slice column": (f"{DAY} --by ''", "the slice column has no name"),
    "TRUNCATE for a condition": (
        "users --where true --clear truncate",
        "--clear truncate removes every row, and the slice is what a condition selects",
    ),
    "no condition": ("users --where ''", "the condition is empty"),
    "a blank condition": (f"{DAY} --where ' '", "the condition is empty"),
    "all and a condition": (
        "users --all --where true",
        "--all and --where were both given\nHINT:  Leave --all out",
    ),
    "a query without a range": ("users --query 'SELECT 1'", "which rows\\? No slice was given"),
    "no query": ("users --all --query ''", "the query is empty"),
    "a query and a condition": (
        f"{DAY} --query 'SELECT 1' --where true",
        "--where and --query were both given\nHINT:  Put the condition into the query",
    ),
    "a query and a condition alone": (
        "users --query 'SELECT 1' --where true",
        "--where and --query were both given",
    ),
    "a query and another table": (
        f"{DAY} --query 'SELECT 1' --into copied",
        "--into and --query were both given\nHINT:  With --query, TABLE is the dest's",
    ),
    "a column that nothing computes": (
        f"{DAY} --column email",
        "not a computed column: 'email'\nHINT:  Write name=expression",
    ),
    "a column without a name": (f"{DAY} --column =md5(email)", "not a computed column: '=md5"),
    "a column of nothing": (f"{DAY} --column email=", "the expression of 'email' is empty"),
    "no size": (
        f"{DAY} --rate-limit fast",
        "not a size: 'fast'\nHINT:  Write it as PostgreSQL does: 500kB, 50MB, 1GB",
    ),
    "a size without its unit": (f"{DAY} --rate-limit 50", "not a size: '50'"),
    "a size of another unit": (f"{DAY} --rate-limit 50mb/s", "not a size: '50mb/s'"),
    "a negative size": (f"{DAY} --rate-limit=-1MB", "not a size: '-1MB'"),
    "no rate": (f"{DAY} --rate-limit 0MB", "cannot copy at 0 bytes a second"),
    "a rate of weeks": (f"{DAY} --rate-limit 1B", "cannot copy at 1 bytes a second\nHINT: .*1kB"),
}


@pytest.fixture
def nowhere(bare_run: Command, closed_port: int) -> Words:
    """Return the words with both sides at a port where nobody listens."""
    sides = {
        f"COPYPIPE_{side}": f"host={HOST} port={closed_port} user=u dbname=d"
        for side in ("SOURCE", "DEST")
    }
    words = Words(bare_run.base | sides, bare_run.check)
    words("--version")  # the first one imports all that there is, which is not to be timed
    return words


@pytest.mark.parametrize(("command", "message"), WORDS.values(), ids=WORDS.keys())
def test_words(nowhere: Words, command: str, message: str) -> None:
    run = nowhere("copy", *shlex.split(command))

    assert_refused(run, 2, message)
    assert run.seconds < QUICK


OPTIONS = {
    "no table": "copy",
    "two tables": "copy a b --day 2018-04-29",
    "no such option": f"copy {DAY} --nope",
    "no such mode": f"copy {DAY} --mode upsert",
    "no such way to clear": f"copy {DAY} --clear drop",
    "no such progress": f"copy {DAY} --progress fancy",
    "an option without its value": "copy users --day",
    "no such command": "cpoy users",
}


@pytest.mark.parametrize("command", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(nowhere: Words, command: str) -> None:
    run = nowhere(*shlex.split(command))

    assert (run.code, run.out) == (2, "")
    assert "Error: " in run.err
    assert run.seconds < QUICK


def test_without_words_the_help_is_shown(nowhere: Words) -> None:
    run = nowhere()
    assert run.code == 2
    assert "copy" in run.out + run.err


@pytest.mark.parametrize("command", ["users", DAY, "'' --all", f"{DAY} --by ''"])
@pytest.mark.one_of(3)
def test_a_process_is_as_quick(bare_run: Command, command: str) -> None:
    run = bare_run("copy", *shlex.split(command), env={"COPYPIPE_DEST": "host=127.0.0.1"})

    assert_refused(run, 2, "")
    assert run.seconds < QUICK_PROCESS


# --- where the sides are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "args", "message"),
    [
        ({"COPYPIPE_SOURCE": None}, [], "the source is not named\nHINT:  Give --source or set"),
        ({"COPYPIPE_DEST": None}, [], "the dest is not named\nHINT:  Give --dest or set COPYPIPE_"),
        ({"COPYPIPE_DEST": ""}, [], "the dest is not named"),
        ({}, ["--source", ""], "the source is not named"),
        ({}, ["--dest", " "], "the dest is not named"),
    ],
    ids=["source", "dest", "dest, empty variable", "source, empty option", "dest, blank option"],
)
def test_a_side_that_is_not_named(
    nowhere: Words, env: dict[str, str | None], args: list[str], message: str
) -> None:
    words = Words({k: v for k, v in {**nowhere.env, **env}.items() if v}, nowhere.check)

    run = words("copy", *DAY.split(), *args)

    assert_refused(run, 2, message)


UNPARSABLE = {
    "percent sign": f"postgresql://user:{CANARY}%zz@127.0.0.1/db",
    "bracket": f"postgresql://user:{CANARY}@[::1/db",
    "unknown parameter": f"postgresql://user:x@127.0.0.1/db?pasword={CANARY}",
    "parameter without value": f"postgresql://user:x@127.0.0.1/db?{CANARY}",
    "unknown keyword": f"host=127.0.0.1 passwrd={CANARY}",
    "blank in the password": f"host=127.0.0.1 password=x {CANARY} dbname=db",
    "quote": f"host=127.0.0.1 password='{CANARY}",
    "bare word": CANARY,
    "another scheme": f"mysql://user:{CANARY}@127.0.0.1/db",
    "JDBC": f"jdbc:postgresql://127.0.0.1/db?user=u&password={CANARY}",
    "control character": f"postgresql://user:{CANARY}%00@127.0.0.1/db",
}


@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.parametrize("conninfo", UNPARSABLE.values(), ids=UNPARSABLE.keys())
def test_an_unparsable_connection_string_is_not_repeated(
    nowhere: Words, conninfo: str, side: str
) -> None:
    run = nowhere("copy", *DAY.split(), f"--{side}", conninfo)

    assert_refused(run, 2, f"the connection string of the {side} cannot be used")
    assert run.seconds < QUICK


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_password_with_an_at_sign_is_not_repeated(
    nowhere: Words, closed_port: int, side: str, impostor: Callable[..., Impostor]
) -> None:
    """Nobody knows by heart that it is to be written %40."""
    old = impostor(greeting_of("17.0"))
    env = {"COPYPIPE_SOURCE": f"host={HOST} port={old.port} user=u dbname=d"}

    run = nowhere(
        *(
            "copy",
            *ONCE.split(),
            f"--{side}",
            f"postgresql://user:x@{CANARY}@{HOST}:{closed_port}/d",
        ),
        env=env,
    )

    assert run.code in (2, 5)


# --- servers that do not let us in ------------------------------------------------------------


def test_no_server_there(nowhere: Words) -> None:
    run = nowhere("copy", *ONCE.split())
    assert_refused(
        run, 5, "source: the server cannot be reached\nDETAIL: .*refused.*\nHINT:  Check"
    )


def test_no_such_host(nowhere: Words) -> None:
    env = {"COPYPIPE_SOURCE": "host=copypipe.invalid dbname=d user=u"}
    run = nowhere("copy", *ONCE.split(), env=env)
    assert_refused(run, 5, "source: the server cannot be reached\nDETAIL: .*copypipe.invalid")


def test_no_such_service(nowhere: Words) -> None:
    run = nowhere("copy", *DAY.split(), env={"COPYPIPE_DEST": "service=copypipe_none"} | {
        "COPYPIPE_SOURCE": "service=copypipe_none"})  # fmt: skip
    assert_refused(run, 2, 'source: definition of service "copypipe_none" not found')


def test_a_server_that_is_too_old(nowhere: Words, impostor: Callable[..., Impostor]) -> None:
    old = impostor(greeting_of("13.9"))
    dsn = f"host={HOST} port={old.port} user=u dbname=d"

    run = nowhere("copy", *DAY.split(), env={"COPYPIPE_SOURCE": dsn})

    assert_refused(
        run, 6, "source: the server is PostgreSQL 13\nHINT:  copypipe needs PostgreSQL 14"
    )


def test_a_server_that_hangs_up(nowhere: Words, impostor: Callable[..., Impostor]) -> None:
    other = impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    dsn = f"host={HOST} port={other.port} user=u dbname=d connect_timeout=2"

    run = nowhere("copy", *ONCE.split(), env={"COPYPIPE_SOURCE": dsn})

    assert_refused(run, 5, "source: the server cannot be reached")


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("tls", "socket", "It is encrypted by TLS."),
        ("tcp", "tls", "It is not encrypted."),
        ("unix", "tls", "It is not encrypted."),
    ],
)
@pytest.mark.one_of(2)
def test_a_transport_that_cannot_carry_a_connection(
    make_way: Callable[..., Way], bare_run: Command, name: str, asked: str, why: str
) -> None:
    way = make_way(name)
    words = ("copy", way.table, "--query", "SELECT 1 AS id, 'x' AS body", "--all", "--yes")

    done = bare_run(*words, "--transport", asked, env=way.environment)

    assert_refused(
        done,
        2,
        f"the connection to the source cannot be carried by --transport {asked}\n"
        f"DETAIL:  {why}\nHINT:  Use --transport auto.$",
    )
    way.assert_unchanged()


# --- what the servers know ------------------------------------------------------------------------

Env = Callable[[Database, Database], Mapping[str, str]]


def _same(source: Database, dest: Database) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Bad:
    """A case. Both sides have public.users: three days at the source, a day at the dest."""

    code: int
    message: str
    command: str = DAY
    source: str = ""
    dest: str = ""
    env: Env = field(default=_same)


def as_role(side: str, *grants: str) -> Env:
    """Connect to that side as a role with these grants alone."""

    def env(source: Database, dest: Database) -> Mapping[str, str]:
        database = source if side == "source" else dest
        return {f"COPYPIPE_{side.upper()}": database.role("poor", *grants).dsn}

    return env


def at_source(**changes: str) -> Env:
    return lambda source, dest: {
        "COPYPIPE_SOURCE": source.server.dsn(**{"dbname": source.name, **changes})
    }


USERS_ROWS = "CREATE TABLE public.child (u bigint REFERENCES public.users"
COLUMNS = "id, name, email, active, balance, created_at, profile, tags"
READS = "SELECT ON public.users"

BAD = {
    # names
    "no such table": Bad(
        6, "source: there is no table nothing\nDETAIL: .*\nHINT: .*", "nothing --all"
    ),
    "no such schema": Bad(6, "source: there is no table no.users", "no.users --all"),
    "no such table at the dest": Bad(6, "dest: there is no table copied", f"{DAY} --into copied"),
    "a capital letter": Bad(6, 'source: there is no table "Users"', "'\"Users\"' --day 2018-04-29"),
    "a name that is SQL": Bad(
        2,
        "not the name of a table: 'users; DROP TABLE users'",
        "'users; DROP TABLE users' --all",
    ),
    "an open quote": Bad(2, "not the name of a table", "'\"users' --all"),
    "a name that ends with a dot": Bad(2, "not the name of a table", "public. --all"),
    "another database": Bad(6, "cross-database references", "other.public.users --all"),
    "too many dots": Bad(6, "too many dotted names", "a.b.c.d --all"),
    # columns
    "no such slice column": Bad(
        6,
        'source: public.users has no column "born" to slice by\n'
        "DETAIL:  Its columns of dates, times and whole numbers: id, created_at, seen.\n"
        "HINT:  Name one with --by",
        f"{DAY} --by born",
        source="ALTER TABLE public.users ADD seen date",
        dest="ALTER TABLE public.users ADD seen date",
    ),
    "a slice column of another type": Bad(
        6, 'the slice column "name" is of type text', f"{DAY} --by name"
    ),
    "a time for a date column": Bad(
        6,
        'the slice column "seen" is a date',
        "users --by seen --from 2018-04-29T10:00 --to 2018-04-30",
        source="ALTER TABLE public.users ADD seen date",
        dest="ALTER TABLE public.users ADD seen date",
    ),
    "an offset for a timestamp": Bad(
        6,
        "is a timestamp without time zone",
        "users --by seen --from 2018-04-29T10:00Z --to 2018-04-30T10:00Z",
        source="ALTER TABLE public.users ADD seen timestamp",
        dest="ALTER TABLE public.users ADD seen timestamp",
    ),
    "columns that do not fit": Bad(
        6,
        "the columns of public.users and public.users do not fit\n"
        "DETAIL:  (?=.*tags is missing at the dest)"
        "(?=.*extra is missing at the source, and the dest has no default for it, which must not)"
        "(?=.*balance: numeric\\(12,2\\) as numeric\\(12,1\\): digits may be rounded off)"
        "(?=.*active: boolean at the source, integer at the dest)(?!.*email).*\n"
        "HINT:  --cast casts at the source",
        source="DELETE FROM public.users WHERE balance * 10 % 1 <> 0",
        dest="DELETE FROM public.users; ALTER TABLE public.users DROP tags, ADD extra int NOT NULL,"
        " DROP active, ADD active int, ALTER balance TYPE numeric(12, 1), ALTER email TYPE text",
    ),
    "a type of the user": Bad(
        6,
        "mood: public.mood has the fields a, b at the source, public.mood b, a at the dest",
        source="CREATE TYPE public.mood AS (a int, b int); ALTER TABLE users ADD mood public.mood",
        dest="CREATE TYPE public.mood AS (b int, a int); ALTER TABLE users ADD mood public.mood",
    ),
    # zones, ranges
    "no such zone": Bad(
        2, "the source knows no time zone 'Mars/Phobos'", f"{DAY} --timezone Mars/Phobos"
    ),
    "no such zone, a day counted back": Bad(
        2, "knows no time zone 'Mars/Phobos'", "users --day -1d --timezone Mars/Phobos"
    ),
    "a local time that never was": Bad(
        2,
        "the local time 2018-03-25 02:30:00 happened never in Europe/Vienna",
        "users --from 2018-03-25T02:30 --to 2018-03-26 --timezone Europe/Vienna",
    ),
    "a local time that was twice": Bad(
        2,
        "happened twice in Europe/Vienna\nDETAIL: .*\nHINT:  Give it with its offset",
        "users --from 2018-10-28T02:30 --to 2018-10-29 --timezone Europe/Vienna",
    ),
    # relations
    "a view as the dest": Bad(
        6,
        "dest: public.v is a view\nDETAIL: .*\nHINT:  Name a table with --into",
        f"{DAY} --into v",
        dest="CREATE VIEW public.v AS SELECT * FROM public.users",
    ),
    "a materialized view as the dest": Bad(
        6,
        "dest: public.v is a materialized view",
        f"{DAY} --into v",
        dest="CREATE MATERIALIZED VIEW public.v AS SELECT * FROM public.users",
    ),
    "a foreign table as the dest": Bad(
        6,
        "dest: public.f is a foreign table",
        f"{DAY} --into f",
        dest="CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        " CREATE FOREIGN TABLE public.f (id bigint) SERVER s",
    ),
    "a sequence as the dest": Bad(
        6,
        "dest: public.s is a sequence",
        f"{DAY} --into s",
        dest="CREATE SEQUENCE public.s",
    ),
    "an index as the dest": Bad(
        6, "dest: public.users_pkey is a index", f"{DAY} --into users_pkey"
    ),
    "a sequence as the source": Bad(
        6,
        "source: public.s is a sequence",
        "s --all --into users",
        source="CREATE SEQUENCE public.s",
    ),
    # rights
    "no SELECT at the source": Bad(
        6,
        "source: the role may not read public.users\n"
        "DETAIL:  It lacks SELECT \\(active, balance, created_at, email, id, name, profile, tags",
        env=as_role("source"),
    ),
    "SELECT of some columns": Bad(
        6,
        "DETAIL:  It lacks SELECT \\(active, balance, created_at, email, profile, tags\\)",
        env=as_role("source", "SELECT (id, name) ON public.users"),
    ),
    "no USAGE at the source": Bad(
        6,
        "source: permission denied for schema hidden\n.*\nHINT:  GRANT USAGE ON SCHEMA",
        "hidden.users --day 2018-04-29 --into users",
        source="CREATE SCHEMA hidden; CREATE TABLE hidden.users (LIKE public.users)",
        env=as_role("source", READS),
    ),
    "no USAGE at the dest": Bad(
        6,
        "dest: permission denied for schema hidden",
        f"{DAY} --into hidden.users",
        dest="CREATE SCHEMA hidden; CREATE TABLE hidden.users (LIKE public.users)",
        env=as_role("dest", READS),
    ),
    "no right at the dest": Bad(
        6,
        "dest: the role may not write public.users\n"
        "DETAIL:  It lacks SELECT \\(created_at\\), INSERT, DELETE.\n"
        "HINT:  GRANT SELECT \\(created_at\\), INSERT, DELETE ON public.users TO the role.",
        env=as_role("dest"),
    ),
    "no INSERT": Bad(
        6, "DETAIL:  It lacks INSERT", env=as_role("dest", "SELECT, DELETE ON public.users")
    ),
    "INSERT of some columns": Bad(
        6,
        "DETAIL:  It lacks INSERT \\(balance, tags\\)",
        env=as_role(
            "dest",
            "SELECT, DELETE ON public.users",
            "INSERT (id, name, email, active, created_at, profile) ON public.users",
        ),
    ),
    "no DELETE": Bad(
        6, "DETAIL:  It lacks DELETE", env=as_role("dest", "SELECT, INSERT ON public.users")
    ),
    "no SELECT at the dest": Bad(
        6,
        "DETAIL:  It lacks SELECT \\(created_at\\).",
        env=as_role("dest", "DELETE, INSERT ON public.users"),
    ),
    "no TRUNCATE": Bad(
        6,
        "DETAIL:  It lacks TRUNCATE",
        "users --all --yes --clear truncate",
        env=as_role("dest", "SELECT, DELETE, INSERT ON public.users"),
    ),
    # who may not come in
    "no such database": Bad(
        2, "source: the server does not let this role in", env=at_source(dbname="copypipe_none")
    ),
    "no such role": Bad(
        2, "source: the server does not let this role in", env=at_source(user="copypipe_none")
    ),
    "another password": Bad(
        2,
        "source: the server does not let this role in\nDETAIL: .*\nHINT:  Check role, database and",
        env=lambda source, dest: {
            "COPYPIPE_SOURCE": source.server.dsn(
                dbname=source.name, user=source.role("reader", READS).name, password=f"{CANARY}x"
            )
        },
    ),
    "no password": Bad(
        2,
        "source: the server does not let this role in",
        env=lambda source, dest: {
            "COPYPIPE_SOURCE": source.server.dsn(
                dbname=source.name, user=source.role("reader", READS).name, password=None
            )
        },
    ),
    # hazards
    "the same table": Bad(
        6,
        "source and dest are the same table, public.users",
        env=lambda source, dest: {"COPYPIPE_SOURCE": dest.dsn},
    ),
    "the same table under another name of the server": Bad(
        6,
        "source and dest are the same table, public.users",
        env=lambda source, dest: {
            "COPYPIPE_SOURCE": dest.server.dsn(dbname=dest.name, host="localhost")
        },
    ),
    "row security at the source": Bad(
        6,
        "source: row security of public.users applies to this role\nDETAIL: .*\nHINT: .*",
        source="ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        env=as_role("source", READS),
    ),
    "row security at the dest": Bad(
        6,
        "dest: row security of public.users applies to this role",
        dest="ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        env=as_role("dest", "SELECT, INSERT, DELETE ON public.users"),
    ),
    "rules": Bad(
        6,
        "dest: public.users has rules",
        dest="CREATE RULE r AS ON DELETE TO public.users DO INSTEAD NOTHING",
    ),
    "inheritance children": Bad(
        6,
        "dest: public.users has inheritance children",
        dest="CREATE TABLE public.child () INHERITS (public.users)",
    ),
    "ON DELETE CASCADE": Bad(
        6,
        "dest: clearing public.users would change other tables\n"
        "DETAIL:  Foreign keys: child_u_fkey of public.child \\(ON DELETE cascade\\).",
        dest=f"{USERS_ROWS} ON DELETE CASCADE); INSERT INTO public.child SELECT id FROM users",
    ),
    "ON DELETE SET NULL": Bad(
        6,
        "ON DELETE set null",
        dest=f"{USERS_ROWS} ON DELETE SET NULL); INSERT INTO public.child SELECT id FROM users",
    ),
    "TRUNCATE under a foreign key": Bad(
        6,
        "dest: public.users cannot be truncated or swapped, foreign keys point at it",
        "users --all --yes --clear truncate",
        dest=f"{USERS_ROWS}); INSERT INTO public.child SELECT id FROM users",
    ),
    "all rows without a yes": Bad(2, "all rows of public.users would be replaced", "users --all"),
    "an empty slice over rows": Bad(
        6,
        "the source has no row in .* and the dest has some\nDETAIL: .*\nHINT:  Give --allow-empty",
        source="DELETE FROM public.users WHERE id / 1000000 = 1",
    ),
    # data
    "rows that others point at": Bad(
        1,
        "dest: .*violates foreign key constraint.*\nDETAIL:  SQLSTATE 23503; table public.child; "
        "constraint child_u_fkey.\nHINT:  Rows of another table",
        f"{DAY} --accept references",
        dest=f"{USERS_ROWS}); INSERT INTO public.child SELECT id FROM users",
    ),
    "a row that is there already, on another day": Bad(
        1,
        "dest: duplicate key value.*\nDETAIL:  SQLSTATE 23505; table public.users; "
        "constraint users_pkey; row \\d+ of the copy.",
        dest="UPDATE public.users SET id = 1000003, created_at = '2018-05-29'"
        " WHERE id = (SELECT min(id) FROM public.users)",
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.one_of(8)
def test_refused(
    words: Words,
    kept_source: Database,
    kept_dest: Database,
    bad: Bad,
) -> None:
    users(kept_source, 3)
    users(kept_dest, 1, rows=5, first="2018-04-29")
    for database, sql in ((kept_source, bad.source), (kept_dest, bad.dest)):
        if sql:
            database.execute(sql)
    env = bad.env(kept_source, kept_dest)
    before = contents(kept_source), contents(kept_dest)

    run = words("copy", *shlex.split(bad.command), env=env)

    assert_refused(run, bad.code, bad.message)
    assert (contents(kept_source), contents(kept_dest)) == before
    no_backends(kept_source, kept_dest)


def test_rights_that_suffice(words: Words, kept_source: Database, kept_dest: Database) -> None:
    users(kept_source, 3)
    users(kept_dest, 1, rows=5, first="2018-04-29")
    env = {
        **as_role("source", f"SELECT ({COLUMNS}) ON public.users")(kept_source, kept_dest),
        **as_role(
            "dest",
            "SELECT (created_at), DELETE ON public.users",
            f"INSERT ({COLUMNS}) ON public.users",
        )(kept_source, kept_dest),
    }

    run = words("copy", *DAY.split(), env=env)

    assert run.code == 0, run.err
    assert kept_dest.scalar("SELECT count(*) FROM public.users") == 24


def test_another_table_of_the_same_database_is_no_trouble(
    words: Words, kept_source: Database, kept_dest: Database
) -> None:
    users(kept_dest, 3)
    kept_dest.execute("CREATE TABLE public.copied (LIKE public.users)")

    run = words("copy", *DAY.split(), "--into", "copied", env={"COPYPIPE_SOURCE": kept_dest.dsn})

    assert run.code == 0, run.err
    assert kept_dest.scalar("SELECT count(*) FROM public.copied") == 24


@pytest.mark.parametrize("name", [b"\xff\xfe", b"tab\xc3\xa9\xff"], ids=["bytes", "mixed"])
@pytest.mark.one_of(2)
def test_a_name_that_is_not_text(
    run: Command, source: Database, dest: Database, name: bytes
) -> None:
    users(source)
    users(dest, 1)

    refused = run("copy", name, "--day", "2018-04-29")

    assert refused.code in (2, 6)
