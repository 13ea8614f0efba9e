"""`copypipe doctor`: what it finds on real servers, and the exit code that follows."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from plugins.canary import CANARY
from plugins.command import Command, Run, Words, users
from plugins.databases import Database, Role, encoded
from plugins.proxy import Proxy
from plugins.rows import assert_refused
from plugins.servers import Servers

Env = dict[str, str]


@dataclass
class Told:
    """What one run found."""

    run: Run
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def code(self) -> int:
        return self.run.code

    def of(self, where: str, check: str) -> list[tuple[str, str]]:
        """Return mark and text of the findings of one kind."""
        return [
            (each["mark"], each["text"])
            for each in self.findings
            if (each["where"], each["check"]) == (where, check)
        ]

    def problems(self) -> list[tuple[str, str]]:
        return [(f["where"], f["text"]) for f in self.findings if f["mark"] == "problem"]


@dataclass
class Doctor:
    """Runs it on a pair of databases, as a role of each."""

    words: Words
    source: Database
    dest: Database
    env: Env = field(repr=False)

    def __call__(self, *words: str, **env: str) -> Told:
        run = self.words("doctor", *words, "--json", env={**self.env, **env})
        if not run.out:
            return Told(run)
        (line,) = run.out.splitlines()
        found = json.loads(line)
        assert (found["type"], found["schema_version"]) == ("checkup", 1)
        assert found["exit_code"] == run.code
        assert not run.err
        return Told(run, found["findings"])


@pytest.fixture
def reader(kept_source: Database) -> Role:
    users(kept_source)
    return kept_source.role("reader", "SELECT ON public.users", "pg_read_all_stats")


@pytest.fixture
def loader(kept_dest: Database) -> Role:
    users(kept_dest)
    return kept_dest.role(
        "loader",
        "SELECT, INSERT, DELETE ON public.users",
        f"CREATE ON DATABASE {kept_dest.name}",
    )


@pytest.fixture
def doctor(
    words: Words, kept_source: Database, kept_dest: Database, reader: Role, loader: Role
) -> Doctor:
    env = {"COPYPIPE_SOURCE": reader.dsn, "COPYPIPE_DEST": loader.dsn}
    return Doctor(words, kept_source, kept_dest, env)


# --- the whole ------------------------------------------------------------------------------------


def test_two_servers_in_order(doctor: Doctor, reader: Role, loader: Role) -> None:
    told = doctor("users")

    assert told.code == 0
    assert not [f for f in told.findings if f["mark"] in ("warning", "problem", "note")] or {
        f["check"] for f in told.findings if f["mark"] != "ok"
    } <= {"fsync"}  # which throw-away servers have switched off
    assert {(f["where"], f["check"]) for f in told.findings} >= {
        ("client", "versions"),
        *(
            (side, check)
            for side in ("source", "dest")
            for check in (
                *("reachable", "version", "encryption", "authentication", "role", "database"),
                *("between", "clock", "timeouts", "connections", "table", "index"),
            )
        ),
        *(("source", "timezone"), ("dest", "locks"), ("dest", "ledger")),
        *(("both", "encodings"), ("both", "clock"), ("both", "plan")),
    }
    for side, role, database in (
        ("source", reader, doctor.source),
        ("dest", loader, doctor.dest),
    ):
        assert told.of(side, "version") == [("ok", f"PostgreSQL {database.server.version}")]
        assert told.of(side, "role") == [("ok", f"role {role.name}")]
        assert told.of(side, "database") == [("ok", f"database {database.name}, encoding UTF8")]
        assert "logged in by" in told.of(side, "authentication")[0][1]
    assert doctor.dest.scalar("SELECT to_regnamespace('copypipe')") is None  # nothing was changed


def test_the_text_has_a_line_for_each_finding(
    run: Command, source: Database, dest: Database
) -> None:
    users(source)
    users(dest)

    said = run("doctor", "users")

    assert said.code == 0
    assert not said.err
    lines = said.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        *("client", "source", "dest", "both sides"),
        lines[-1],
    ]
    assert f"  ok       PostgreSQL {source.server.version}" in lines
    superuser = "  warning  role postgres is a superuser and may do more than a copy needs"
    assert sum(line == superuser for line in lines) == 2
    assert lines[-1].startswith("0 problems, ")


# --- who answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["source", "dest"])
def test_the_other_side_is_looked_at_where_one_is_away(
    doctor: Doctor, side: str, closed_port: int
) -> None:
    database = getattr(doctor, side)
    away = database.server.dsn(host="127.0.0.1", port=closed_port)

    told = doctor("users", **{f"COPYPIPE_{side.upper()}": away})

    other = "dest" if side == "source" else "source"
    assert told.code == 5
    ((mark, text),) = told.of(side, "reachable")
    assert mark == "problem"
    assert "the server cannot be reached" in text
    assert told.of(other, "reachable")[0][0] == "ok"
    assert told.of(other, "table")[0][0] == "ok"
    assert not told.of("both", "plan")


def test_both_are_away(doctor: Doctor, closed_port: int) -> None:
    away = f"host=127.0.0.1 port={closed_port} dbname=x user=x"

    told = doctor(COPYPIPE_SOURCE=away, COPYPIPE_DEST=away)

    assert told.code == 5
    assert [where for where, _ in told.problems()] == ["source", "dest"]


def test_a_wrong_password(doctor: Doctor, reader: Role) -> None:
    dsn = doctor.source.server.dsn(
        dbname=doctor.source.name, user=reader.name, password=f"{CANARY}x"
    )

    told = doctor(COPYPIPE_SOURCE=dsn)

    assert told.code == 2
    ((where, text),) = told.problems()
    assert where == "source"
    assert text.startswith("the server does not let this role in")
    assert told.of("dest", "role")


def test_a_role_that_may_not_connect(doctor: Doctor) -> None:
    doctor.dest.execute(f"REVOKE CONNECT ON DATABASE {doctor.dest.name} FROM PUBLIC")
    try:
        told = doctor()
        hint = next(f["hint"] for f in told.findings if f["mark"] == "problem")
    finally:
        doctor.dest.execute(f"GRANT CONNECT ON DATABASE {doctor.dest.name} TO PUBLIC")

    assert told.code == 6
    assert told.problems()[0][1].startswith("the role may not connect to the database")
    assert hint == "GRANT CONNECT ON DATABASE .. TO the role."


@pytest.mark.parametrize(
    ("named", "env", "message"),
    [
        ([], {"COPYPIPE_DEST": ""}, "the dest is not named"),
        ([], {"COPYPIPE_SOURCE": "host='"}, "the connection string of the source cannot be used"),
        (['"'], {}, "not the name of a table"),
    ],
)
def test_usage(doctor: Doctor, named: list[str], env: Env, message: str) -> None:
    told = doctor(*named, **env)

    assert told.code == 2
    assert message in told.run.err
    assert not told.run.out


def test_a_password_in_the_process_list(doctor: Doctor, reader: Role) -> None:
    told = doctor("--source", reader.uri)

    assert told.code == 0
    assert told.of("source", "password") == [
        ("warning", "the password in --source can be read in the process list")
    ]


def test_a_proxy_in_between(doctor: Doctor, loader: Role, proxy: Callable[..., Proxy]) -> None:
    between = proxy(doctor.dest.server)
    dsn = between.dsn(doctor.dest, user=loader.name, password=loader.password)

    told = doctor(COPYPIPE_DEST=dsn)

    assert told.code == 0
    ((mark, text),) = told.of("dest", "between")
    assert mark == "note"
    assert text.startswith("looks like a proxy, a tunnel or a container in between")
    assert told.of("source", "between")[0][0] == "ok"


def test_encryption(words: Words, tls_servers: Servers) -> None:
    env = {
        "COPYPIPE_SOURCE": tls_servers.source.dsn(sslmode="require"),
        "COPYPIPE_DEST": tls_servers.dest.dsn(sslmode="disable"),
    }
    told = Doctor(words, None, None, env)()

    ((mark, text),) = told.of("source", "encryption")
    assert mark == "note"
    assert text.startswith("encrypted by TLSv1")
    assert "(sslmode require): nobody checks" in text
    assert told.of("dest", "encryption") == [
        ("ok", "not encrypted (sslmode disable), on this machine")
    ]


# --- what the servers and roles are set to --------------------------------------------------------


def test_a_superuser(doctor: Doctor) -> None:
    told = doctor(COPYPIPE_SOURCE=doctor.source.dsn)

    assert told.code == 0
    assert told.of("source", "role")[0][0] == "warning"
    assert "is a superuser" in told.of("source", "role")[0][1]
    assert told.of("dest", "role")[0][0] == "ok"


# By side and parameter: what the role is given, the mark, and what is told.
SETTINGS = {
    ("source", "statement_timeout", "90s"): (
        "warning",
        "statement_timeout is 90000ms (ALTER ROLE): a copy is cut that takes longer",
    ),
    ("dest", "statement_timeout", "1h"): (
        "warning",
        "statement_timeout is 3600000ms (ALTER ROLE): a copy is cut that takes longer",
    ),
    ("dest", "transaction_timeout", "1h"): (
        "warning",
        "transaction_timeout is 3600000ms (ALTER ROLE): a slice whose transaction takes longer is "
        "cut",
    ),
    ("source", "idle_session_timeout", "1min"): (
        "note",
        "idle_session_timeout is 60000ms (ALTER ROLE): a session that has nothing to do for longer "
        "is ended, and connected to once more",
    ),
    ("dest", "synchronous_commit", "off"): (
        "note",
        "synchronous_commit is off (ALTER ROLE): raised to on for what is copied",
    ),
    ("dest", "session_replication_role", "replica"): (
        "warning",
        "session_replication_role is replica (ALTER ROLE): triggers and foreign keys are skipped",
    ),
}


@pytest.mark.parametrize(("side", "name", "value"), SETTINGS)
def test_what_a_role_is_set_to(doctor: Doctor, side: str, name: str, value: str) -> None:
    database = getattr(doctor, side)
    if name == "transaction_timeout" and database.server.major < 17:
        pytest.skip("since 17")
    role = database.roles[-1]
    database.execute(f"ALTER ROLE {role} SET {name} = '{value}'")

    told = doctor()

    assert told.code == 0
    assert told.of(side, name) == [SETTINGS[side, name, value]]


def test_settings_of_the_copies(doctor: Doctor, reader: Role, loader: Role) -> None:
    """What is told is what copies with the same options will meet."""
    doctor.source.execute(f"ALTER ROLE {reader.name} SET statement_timeout = '90s'")
    doctor.dest.execute(f"ALTER ROLE {loader.name} SET statement_timeout = '90s'")
    given = ("--source-set", "statement_timeout=0", "--dest-set", "Statement_Timeout=50s")

    told = doctor("users", *given)

    assert told.code == 0
    assert not told.of("source", "statement_timeout")
    assert told.of("source", "timeouts")[0][0] == "ok"
    assert told.of("dest", "statement_timeout") == [
        ("warning", "statement_timeout is 50000ms (--dest-set): a copy is cut that takes longer")
    ]


def test_a_role_that_copies_take_on(doctor: Doctor, loader: Role) -> None:
    owner = doctor.dest.role("owner", "SELECT, INSERT, DELETE ON public.users")
    doctor.dest.execute(
        f"GRANT {owner.name} TO {loader.name}; REVOKE ALL ON public.users FROM {loader.name}"
    )

    told = doctor("users", "--dest-set", f"role={owner.name}")

    assert told.code == 0
    assert told.of("dest", "role") == [("ok", f"role {owner.name}")]


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("search_path=public", 2, "search_path cannot be set"),
        ("work_mem", 2, "not a setting"),
        ("no_such=1", 6, 'unrecognized configuration parameter "no_such"'),
        ("role=copypipe_none", 6, 'role "copypipe_none" does not exist'),
    ],
)
def test_settings_that_cannot_be(doctor: Doctor, given: str, code: int, message: str) -> None:
    told = doctor("--source-set", given)

    assert told.code == code
    if code == 2:
        assert message in told.run.err
    else:
        ((where, text),) = told.problems()
        assert where == "source"
        assert message in text


def test_the_zone_of_the_source(doctor: Doctor, reader: Role) -> None:
    doctor.source.execute(f"ALTER ROLE {reader.name} SET TimeZone = 'Asia/Tokyo'")

    told = doctor()

    expected = "TimeZone is Asia/Tokyo, days are counted in UTC"
    assert told.of("source", "timezone") == [("note", expected)]


def test_where_a_limit_was_set(doctor: Doctor, reader: Role) -> None:
    told = doctor(COPYPIPE_SOURCE=f"{reader.dsn} options='-c statement_timeout=90s'")

    assert "(the connection's options)" in told.of("source", "statement_timeout")[0][1]


def test_limits_of_connections(doctor: Doctor, loader: Role) -> None:
    doctor.dest.execute(f"ALTER ROLE {loader.name} CONNECTION LIMIT 2")

    told = doctor()

    marks = [mark for mark, _ in told.of("dest", "connections")]
    assert marks == ["ok", "warning"]
    assert f"the role {loader.name} may have 2 at a time" in told.of("dest", "connections")[1][1]


def test_a_role_that_does_not_see_the_transactions_of_others(doctor: Doctor, reader: Role) -> None:
    doctor.source.execute(f"REVOKE pg_read_all_stats FROM {reader.name}")

    told = doctor()

    assert told.of("source", "pg_read_all_stats")[0][0] == "note"


@pytest.mark.parametrize(("encoding", "mark"), [("LATIN1", "warning"), ("SQL_ASCII", "warning")])
def test_encodings(doctor: Doctor, servers: Servers, encoding: str, mark: str) -> None:
    with encoded(servers.dest, encoding) as other:
        told = doctor(COPYPIPE_DEST=other.dsn)

    assert told.code == 0
    assert told.of("both", "encodings")[0][0] == mark
    assert encoding in told.of("both", "encodings")[0][1]


def test_utf8_holds_what_the_source_has(doctor: Doctor, servers: Servers) -> None:
    with encoded(servers.source, "LATIN1") as other:
        told = doctor(COPYPIPE_SOURCE=other.dsn)

    assert told.of("both", "encodings")[0][0] == "ok"


# --- the ledger -----------------------------------------------------------------------------------


def test_a_ledger_that_is_ready(doctor: Doctor, loader: Role) -> None:
    assert doctor.words("init", "--dest", loader.dsn).code == 0

    assert doctor().of("dest", "ledger") == [("ok", "the ledger (schema copypipe) can be used")]


def test_a_ledger_that_cannot_be_made(doctor: Doctor, loader: Role) -> None:
    doctor.dest.execute(f"REVOKE CREATE ON DATABASE {doctor.dest.name} FROM {loader.name}")

    told = doctor()

    assert told.code == 0
    ((mark, text),) = told.of("dest", "ledger")
    assert mark == "warning"
    assert "there is none, and the role lacks CREATE on the database" in text


def test_a_ledger_of_a_newer_copypipe(doctor: Doctor, loader: Role) -> None:
    assert doctor.words("init", "--dest", loader.dsn).code == 0
    doctor.dest.execute("UPDATE copypipe.version SET version = 99")

    told = doctor()

    assert told.code == 6
    ((where, text),) = told.problems()
    assert where == "dest"
    assert text.startswith("the ledger there is of a newer copypipe")


# --- a table --------------------------------------------------------------------------------------

OTHER = "CREATE TABLE public.other (user_id bigint REFERENCES public.users {})"

# What is done to a side, and the problem that follows.
PROBLEMS = {
    "no table at the source": ("source", "DROP TABLE public.users", "there is no table users"),
    "no table at the dest": ("dest", "DROP TABLE public.users", "there is no table users"),
    "a view as the dest": (
        "dest",
        "ALTER TABLE public.users RENAME TO u; CREATE VIEW public.users AS TABLE public.u;"
        "GRANT SELECT, INSERT, DELETE ON public.users TO PUBLIC",
        "public.users is a view",
    ),
    "rules": (
        "dest",
        "CREATE RULE r AS ON DELETE TO public.users DO INSTEAD NOTHING",
        "public.users has rules",
    ),
    "children": (
        "dest",
        "CREATE TABLE public.child () INHERITS (public.users)",
        "public.users has inheritance children",
    ),
    "row security at the source": (
        "source",
        "ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        "row security of public.users applies to this role",
    ),
    "row security at the dest": (
        "dest",
        "ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        "row security of public.users applies to this role",
    ),
    "what points at it": (
        "dest",
        OTHER.format(""),
        "rows of public.users cannot be removed while others point at them",
    ),
    "what goes with it": (
        "dest",
        OTHER.format("ON DELETE CASCADE"),
        "clearing public.users would change other tables",
    ),
    "no right to read": (
        "source",
        "REVOKE SELECT ON public.users FROM {role}",
        "the role may not read public.users",
    ),
    "no right to write": (
        "dest",
        "REVOKE DELETE ON public.users FROM {role}",
        "the role may not write public.users. It lacks DELETE.",
    ),
    "no USAGE": (
        "dest",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        "permission denied for schema public",
    ),
    "another column": (
        "dest",
        "ALTER TABLE public.users RENAME COLUMN tags TO labels",
        "the columns of public.users and public.users do not fit",
    ),
    "another type": (
        "dest",
        "ALTER TABLE public.users ALTER COLUMN created_at TYPE timestamp",
        "the columns of public.users and public.users do not fit. created_at: timestamp",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.one_of(8)
def test_what_stands_in_the_way(doctor: Doctor, case: str) -> None:
    side, sql, problem = PROBLEMS[case]
    database = getattr(doctor, side)
    database.execute(sql.format(role=database.roles[-1]))

    told = doctor("public.users" if case == "no USAGE" else "users")

    assert told.code == 6
    ((where, text),) = told.problems()
    assert where == side or where == "both"
    assert text.startswith(problem)
    copied = doctor.words("copy", "users", "--day", "yesterday", "--allow-empty", env=doctor.env)
    assert copied.code == 6


KINDS = {
    "merge": ("--mode merge", "slices by created_at by merge can be planned"),
    "merge by no key": ("--mode merge --key name", "no unique index of public.users is on name"),
    "all rows": ("--all", "all rows can be planned"),
    "all rows by TRUNCATE": ("--all --clear truncate", "cannot be truncated"),
    "all rows by --swap": (
        "--all --swap",
        "orders_user_id_fkey on table public.orders depends on it",
    ),
    "a condition": ("--where 'id > 3'", "the rows of a condition can be planned"),
}


@pytest.mark.parametrize(("options", "expected"), KINDS.values(), ids=KINDS.keys())
def test_copies_of_other_kinds(doctor: Doctor, options: str, expected: str) -> None:
    """What one kind refuses need not stand in the way of another."""
    doctor.dest.execute(
        "CREATE TABLE public.orders (user_id int REFERENCES public.users DEFERRABLE)"
    )

    told = doctor("users", *shlex.split(options), COPYPIPE_DEST=doctor.dest.dsn)

    planned = expected.endswith("planned")
    found = [text for _, text in told.of("both", "plan")] if planned else told.problems()
    assert told.code == (0 if planned else 6), told.problems()
    assert any(expected in str(each) for each in found), found


def test_partitions_of_no_slice(doctor: Doctor) -> None:
    told = doctor.words("doctor", "users", "--swap", env=doctor.env)

    assert_refused(told, 2, "which partitions would be looked at\\?")


def test_a_slice_column_that_is_not_there(doctor: Doctor) -> None:
    told = doctor("users", "--by", "updated_at")

    assert told.code == 6
    assert told.problems()[0][1].startswith('public.users has no column "updated_at"')


def test_a_table_of_another_name(doctor: Doctor) -> None:
    doctor.dest.execute("ALTER TABLE public.users RENAME TO people")

    assert doctor("users").code == 6
    told = doctor("users", "--into", "people")
    assert told.code == 0
    assert told.of("dest", "table")[0][1].startswith("public.people is a table, ")


def test_kinds_sizes_and_partitions(doctor: Doctor, reader: Role) -> None:
    doctor.source.execute(
        f"""
        ALTER TABLE public.users RENAME TO old;
        CREATE TABLE public.users (LIKE public.old INCLUDING ALL EXCLUDING INDEXES)
            PARTITION BY RANGE (created_at);
        CREATE TABLE public.april PARTITION OF public.users
            FOR VALUES FROM ('2018-04-01') TO ('2018-05-01');
        CREATE TABLE public.may PARTITION OF public.users
            FOR VALUES FROM ('2018-05-01') TO ('2018-06-01');
        GRANT SELECT ON public.users TO {reader.name};
        """
    )

    told = doctor("users")

    assert told.code == 0
    ((_, text),) = told.of("source", "table")
    assert text.startswith("public.users is a partitioned table of 2 partitions, 0.0 MB")
    assert told.of("source", "index") == [
        ("warning", "no index on created_at: each slice scans the whole table (0.0 MB)")
    ]


def test_risks_of_the_dest(doctor: Doctor) -> None:
    doctor.dest.execute(
        """
        ALTER TABLE public.users SET UNLOGGED;
        CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER keep BEFORE INSERT ON public.users
            FOR EACH ROW EXECUTE FUNCTION public.keep();
        """
    )

    told = doctor("users")

    assert told.code == 0
    assert told.of("dest", "unlogged")[0][0] == "warning"
    assert told.of("dest", "triggers")[0][0] == "warning"
    assert told.of("source", "unlogged") == []
