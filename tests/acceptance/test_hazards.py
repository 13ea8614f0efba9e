"""What a plan sees before anything changes: each refused, warned of or told, and what accepts it.

Given both sides with public.users, a command, and what is said; the dest is then what it was. What
modes refuse, and foreign keys and triggers with the flags that accept them, is in test_modes.py.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from plugins.command import Run, Words, eventually, users
from plugins.databases import Database, encoded
from plugins.rows import assert_refused, contents
from plugins.servers import Servers

DAY = "users --day 2018-04-29"

FOREIGN = (
    "DROP FOREIGN DATA WRAPPER IF EXISTS nowhere CASCADE;"
    "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;"
    "CREATE FOREIGN TABLE public.{} SERVER nowhere"
)
PARTITIONED = (
    "DROP TABLE public.users; CREATE TABLE public.users (id bigint, name text,"
    " created_at timestamptz NOT NULL) PARTITION BY {}"
)
DAYS = PARTITIONED.format("RANGE (created_at)")
ONE_DAY = (
    f"{DAYS}; CREATE TABLE public.one PARTITION OF public.users"
    " FOR VALUES FROM ('2018-04-28 00:00+00') TO ('2018-04-29 12:00+00')"
)
FEW = f"{DAY} --query 'SELECT id, name, created_at FROM public.users'"
NAME = "ALTER TABLE public.users ALTER name DROP NOT NULL, ALTER name TYPE {}"


@dataclass(frozen=True)
class Refused:
    """A case: what is done to the sides, what is said, the words."""

    message: str
    source: str = ""
    dest: str = ""
    command: str = DAY
    owned: bool = False
    """The role owns the dest's table."""


REFUSED = {
    "row security at the source": Refused(
        "source: row security of public.users applies to this role\n"
        "DETAIL:  It would hide rows without a word\\.\n"
        "HINT:  Connect as a role with BYPASSRLS, or as the owner\\.",
        source="ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
    ),
    "row security at the dest": Refused(
        "dest: row security of public.users applies to this role",
        dest="ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
    ),
    "row security of the owner": Refused(
        "dest: row security of public.users applies to this role",
        dest="ALTER TABLE public.users FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY",
        owned=True,
    ),
    "rules": Refused(
        "dest: public.users has rules\nDETAIL:  DELETE obeys rules and COPY ignores them\\.",
        dest="CREATE RULE r AS ON DELETE TO public.users DO INSTEAD NOTHING",
    ),
    "a rule for inserts": Refused(
        "dest: public.users has rules",
        dest="CREATE RULE r AS ON INSERT TO public.users DO INSTEAD NOTHING",
        command=f"{DAY} --mode append",
    ),
    "inheritance children": Refused(
        "dest: public.users has inheritance children",
        dest="CREATE TABLE public.child () INHERITS (public.users)",
    ),
    "a view": Refused(
        "dest: public.seen is a view\nDETAIL: .*\nHINT:  Name a table with --into\\.",
        dest="CREATE VIEW public.seen AS TABLE public.users",
        command=f"{DAY} --into seen",
    ),
    "a materialized view": Refused(
        "dest: public.seen is a materialized view",
        dest="CREATE MATERIALIZED VIEW public.seen AS TABLE public.users",
        command=f"{DAY} --into seen",
    ),
    "a foreign table": Refused(
        "dest: public.far is a foreign table\nDETAIL:  What is written there cannot be rolled back",
        dest=FOREIGN.format("far (id bigint)"),
        command=f"{DAY} --into far",
    ),
    "a foreign table as a partition": Refused(
        "dest: public.users has foreign tables as partitions\n"
        "DETAIL:  They commit on their own server\\.",
        dest=f"{DAYS}; " + FOREIGN.format("far PARTITION OF public.users DEFAULT"),
        command=FEW,
    ),
    "a sequence": Refused(
        "source: public.s is a sequence",
        source="CREATE SEQUENCE public.s",
        command="s --all --into users",
    ),
    "an OID of what has a name": Refused(
        "do not fit\nDETAIL:  name: .*\nHINT: .*",
        source=NAME.format("regclass USING 'public.users'::regclass"),
        dest=NAME.format("regrole USING NULL"),
    ),
    "no partition": Refused(
        "dest: public.users has no partition for rows of \\[2018-04-29, 2018-04-30\\) UTC\n"
        "DETAIL:  The source has rows whose created_at is from 2018-04-29 12:00:00\\+00:00 to"
        " 2018-04-30 00:00:00\\+00:00\\.\n"
        "HINT:  CREATE TABLE \\.\\. PARTITION OF public.users"
        " FOR VALUES FROM \\('2018-04-29 12:00:00\\+00:00'\\)"
        " TO \\('2018-04-30 00:00:00\\+00:00'\\)\\.",
        source="ALTER TABLE public.users DROP COLUMN email, DROP COLUMN active,"
        " DROP COLUMN balance, DROP COLUMN profile, DROP COLUMN tags",
        dest=ONE_DAY,
    ),
}


class Sides:
    """Both sides with three days of 24 users, five of the day at the dest, and a role of each."""

    def __init__(self, words: Words, source: Database, dest: Database) -> None:
        self._words = words
        self.source, self.dest = source, dest
        users(source, 3)
        users(dest, 1, rows=5, first="2018-04-29")
        self.roles = {"source": source.role("reader"), "dest": dest.role("loader")}

    def change(self, source: str = "", dest: str = "", *, owned: bool = False) -> None:
        """Run SQL on each side, and give the roles all that they may need."""
        for database, sql in ((self.source, source), (self.dest, dest)):
            role = self.roles[database.side].name
            database.execute(
                f"{sql.replace('{role}', role)};"
                f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};"
                f"GRANT ALL ON DATABASE {database.name} TO {role};"
                f"GRANT ALL ON SCHEMA public TO {role}"
            )
            if owned and database is self.dest:
                database.execute(f"ALTER TABLE public.users OWNER TO {role}")

    def __call__(self, command: str) -> Run:
        env = {f"COPYPIPE_{side.upper()}": role.dsn for side, role in self.roles.items()}
        return self._words("copy", *shlex.split(command), env=env)

    def plan(self, command: str = DAY) -> tuple[int, dict[str, Any]]:
        """Return the code of a dry run, and its plan."""
        run = self(f"{command} --dry-run --json")
        return run.code, json.loads(run.out.splitlines()[0])


@pytest.fixture
def sides(words: Words, kept_source: Database, kept_dest: Database) -> Sides:
    return Sides(words, kept_source, kept_dest)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.one_of(8)
def test_refused(sides: Sides, case: Refused) -> None:
    sides.change(case.source, case.dest, owned=case.owned)
    before = contents(sides.dest)

    run = sides(case.command)

    assert_refused(run, 6, case.message)
    assert contents(sides.dest) == before


def test_a_dry_run_refuses_as_the_run_does(sides: Sides) -> None:
    """The plan is printed all the same, with what stands in its way."""
    sides.change(dest="CREATE RULE r AS ON DELETE TO public.users DO INSTEAD NOTHING")

    run = sides(f"{DAY} --dry-run")

    assert run.code == 6
    assert "  refused  dest: public.users has rules\n" in run.out
    assert 'DELETE FROM "public"."users"' in run.out
    assert run.out.endswith("nothing was changed\n")
    assert run.err.startswith("ERROR:  dest: public.users has rules\nDETAIL:  DELETE obeys rules")


@pytest.mark.parametrize("options", ["--clear truncate", "--swap"])
def test_a_slice_without_partitions_has_no_plan(sides: Sides, options: str) -> None:
    """No statement could be printed; what else stands in the way is told all the same."""
    sides.change(owned=True, dest="CREATE RULE r AS ON INSERT TO public.users DO INSTEAD NOTHING")

    run = sides(f"{DAY} {options} --dry-run")

    assert (run.code, run.out) == (6, "")
    assert "ERROR:  dest: public.users has rules" in run.err
    assert "is not made of whole partitions of public.users" in run.err


def test_all_that_stands_in_the_way_is_told_at_once(sides: Sides) -> None:
    sides.change(
        source="ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        dest="CREATE RULE r AS ON DELETE TO public.users DO INSTEAD NOTHING;"
        "CREATE TABLE public.child (u bigint REFERENCES public.users);"
        "CREATE TABLE public.other (u bigint REFERENCES public.users ON DELETE CASCADE)",
    )
    sides.dest.execute(f"REVOKE DELETE ON public.users FROM {sides.roles['dest'].name}")
    before = contents(sides.dest)
    told = [
        "dest: public.users has rules",
        "source: row security of public.users applies to this role",
        "dest: clearing public.users would change other tables",
        "dest: rows of public.users cannot be removed while others point at them",
        "dest: the role may not write public.users",
    ]

    run = sides(DAY)

    assert run.code == 6
    assert [line[8:] for line in run.err.splitlines() if line.startswith("ERROR:  ")] == told
    assert contents(sides.dest) == before
    error = json.loads(sides(f"{DAY} --json").err.splitlines()[-1])
    assert [each["message"] for each in (error, *error["others"])] == told


def test_rights_and_hazards_are_in_the_plan(sides: Sides) -> None:
    sides.change(dest="CREATE TABLE public.child (u bigint REFERENCES public.users)")
    sides.dest.execute(f"REVOKE INSERT ON public.users FROM {sides.roles['dest'].name}")

    code, plan = sides.plan()

    assert code == 6
    assert [(r["side"], r["message"], r["detail"]) for r in plan["refusals"]] == [
        (
            "dest",
            "dest: rows of public.users cannot be removed while others point at them",
            "Foreign keys: child_u_fkey of public.child (ON DELETE no action). "
            "They are looked at before the rows are back.",
        ),
        ("dest", "dest: the role may not write public.users", "It lacks INSERT."),
    ]
    assert set(plan["statements"]) == {"clear", "copy_in", "copy_out"}
    assert plan["source"]["version"].split(".")[0] == str(plan["source"]["major"])


# --- warned of ------------------------------------------------------------------------------------

LARGE = (
    "DROP INDEX public.users_created_at_idx;"
    "UPDATE pg_class SET relpages = {} WHERE oid = 'public.users'::regclass"
)
HALF_A_GB, A_GB = 65_536, 131_072


@dataclass(frozen=True)
class Warned:
    """A case: what is done to the sides, what the plan warns of, the words."""

    message: str | None
    source: str = ""
    dest: str = ""
    command: str = DAY


WARNED = {
    "an OID": Warned(
        "name: what oid names is of the source's cluster: the number itself goes over",
        source=NAME.format("oid USING 1"),
        dest=NAME.format("oid USING 1"),
    ),
    "an unlogged table": Warned(
        "public\\.users is unlogged, or a partition of it: a crash of the dest empties it",
        dest="ALTER TABLE public.users SET UNLOGGED",
    ),
    "an unlogged partition": Warned(
        "public\\.users is unlogged, or a partition of it",
        dest=f"{DAYS}; CREATE UNLOGGED TABLE public.one PARTITION OF public.users DEFAULT",
        command=FEW,
    ),
    "triggers": Warned(
        "triggers of public.users will run",
        dest="CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON public.users"
        " FOR EACH ROW EXECUTE FUNCTION public.f()",
    ),
    "triggers that are skipped": Warned(
        "session_replication_role is replica at the dest: triggers and foreign keys are skipped",
        dest="GRANT SET ON PARAMETER session_replication_role TO {role};"
        "ALTER ROLE {role} SET session_replication_role = replica",
    ),
    "no partition, and no index that finds its rows": Warned(
        "public\\.users has no partition for created_at from 2018-04-29 12:00:00\\+00:00 to"
        " 2018-04-30 00:00:00\\+00:00: a row there would fail the copy",
        dest=ONE_DAY,
        command=FEW,
    ),
    "triggers that TRUNCATE passes over": Warned(
        "triggers of public.users will run, except for those for DELETE",
        dest="CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT OR DELETE ON public.users"
        " FOR EACH ROW EXECUTE FUNCTION public.f()",
        command="users --all --yes --clear truncate",
    ),
    "a key that the slice's column is part of": Warned(
        "created_at is part of the key: a row whose created_at has changed is inserted beside the",
        dest="ALTER TABLE public.users DROP CONSTRAINT users_pkey,"
        " ADD PRIMARY KEY (id, created_at)",
        command=f"{DAY} --mode merge",
    ),
    "a cascade that is accepted": Warned(
        "clearing public\\.users changes other tables:"
        " child_u_fkey of public\\.child \\(ON DELETE cascade\\)",
        dest="CREATE TABLE public.child (u bigint REFERENCES public.users ON DELETE CASCADE)",
        command=f"{DAY} --accept cascade",
    ),
    "a key that is accepted": Warned(
        "the copy fails at the first row that others point at: child_u_fkey of public\\.child",
        dest="CREATE TABLE public.child (u bigint REFERENCES public.users)",
        command=f"{DAY} --accept references",
    ),
    "a large scan of the source": Warned(
        "source: no index on created_at: scans the whole table \\(1024\\.0 MB, about 72 rows\\),"
        " for each slice",
        source=LARGE.format(A_GB),
    ),
    "a large scan of the dest": Warned(
        "dest: no index on created_at: scans the whole table \\(1024\\.0 MB, about 5 rows\\)",
        dest=LARGE.format(A_GB),
    ),
    "a scan of what is not that large": Warned(None, dest=LARGE.format(HALF_A_GB)),
    "a scan that an append does not need": Warned(
        None, dest=LARGE.format(A_GB), command=f"{DAY} --mode append"
    ),
}


@pytest.mark.parametrize("case", WARNED.values(), ids=WARNED.keys())
@pytest.mark.one_of(8)
def test_warned_of(sides: Sides, case: Warned) -> None:
    """The plan says it, the run says it, and goes on."""
    sides.change(case.source, case.dest)
    if "PARAMETER" in case.dest and sides.dest.server.major < 15:
        pytest.skip("nobody but a superuser sets it there")

    code, plan = sides.plan(case.command)

    assert (code, plan["refusals"]) == (0, [])
    if case.message is None:
        assert plan["warnings"] == []
        return
    assert [re.match(case.message, w) is not None for w in plan["warnings"]].count(True) == 1
    run = sides(case.command)
    if "PARAMETER" in case.dest:
        sides.dest.execute(f"DROP OWNED BY {sides.roles['dest'].name}")  # the role goes afterwards
    assert len(re.findall(f"^warning: {case.message}", run.err, re.MULTILINE)) == 1
    assert run.code == (1 if "no partition" in case.message else 0), run.err


PLANNED = {
    "replace": (DAY, "replace; clear delete", {"clear": "delete"}),
    "truncate": (
        "users --all --yes --clear truncate --accept triggers --sequences",
        "replace; clear truncate; accept triggers; sequences",
        {"clear": "truncate", "accept": ["triggers"], "sequences": True},
    ),
    "swap": ("users --all --yes --swap", "replace; swap", {"clear": None, "swap": True}),
    "append": (f"{DAY} --mode append --again", "append; again", {"again": True}),
    "merge": (
        f"{DAY} --mode merge --merge-deletes --min-ratio 0.5 --allow-empty"
        " --source-set work_mem=64MB --dest-set my.word=secret",
        "merge; key id; merge deletes; min ratio 0.5; allow empty; source set work_mem=64MB;"
        " dest set my.word=...",
        {
            "key": ["id"],
            "merge_deletes": True,
            "min_ratio": 0.5,
            "allow_empty": True,
            "source_set": {"work_mem": "64MB"},
            "dest_set": {"my.word": "..."},
        },
    ),
}


@pytest.mark.parametrize(("command", "line", "options"), PLANNED.values(), ids=PLANNED.keys())
@pytest.mark.one_of(3)
def test_a_dry_run_tells_what_was_chosen(
    sides: Sides, command: str, line: str, options: dict[str, Any]
) -> None:
    """What a plan with none of that says is left out of the JSON here."""
    sides.change(owned=True)
    nothing = (None, False, [], {})

    code, plan = sides.plan(command)

    assert code == 0, plan["refusals"]
    assert {k: v for k, v in plan["options"].items() if v not in nothing} == {
        k: v for k, v in options.items() if v not in nothing
    }
    assert f"  mode     {line}\n" in sides(f"{command} --dry-run").out


# --- told -----------------------------------------------------------------------------------------


def test_dead_rows_are_told(sides: Sides) -> None:
    """Those of a load that failed too."""
    sides.change()
    sides.dest.execute("ALTER TABLE public.users SET (autovacuum_enabled = false)")
    note = (
        r"public\.users has about 1\d{4} dead rows beside \d+, of deletes or failed loads: VACUUM"
    )
    assert not any(re.match(note, each) for each in sides.plan()[1]["notes"])
    with sides.dest.connect() as failed:
        failed.execute("BEGIN")
        failed.execute(
            "INSERT INTO public.users (id, name, created_at)"
            " SELECT -n, '', '2018-04-29' FROM generate_series(1, 10005) n"
        )
        failed.execute("ROLLBACK")

    eventually(lambda: any(re.match(note, each) for each in sides.plan()[1]["notes"]), seconds=15)


def test_what_each_side_would_scan_is_told(sides: Sides) -> None:
    sides.change("DROP INDEX public.users_created_at_idx", "")

    plan = sides.plan()[1]

    assert re.fullmatch(
        r"no index on created_at: scans the whole table \(0\.\d MB, about 72 rows\)",
        plan["source"]["access"],
    )
    assert plan["dest"]["access"].startswith("index users_created_at_idx can serve; a scan would")


def test_sequences_that_stay_behind_are_told_and_advanced_where_that_is_asked_for(
    sides: Sides,
) -> None:
    sides.change(dest="ALTER TABLE public.users ALTER id ADD GENERATED BY DEFAULT AS IDENTITY")
    sides.dest.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {sides.roles['dest'].name}")
    note = "public.users_id_seq, which numbers id, stays where it is (--sequences advances it)"
    assert note in sides.plan()[1]["notes"]
    assert note not in sides.plan(f"{DAY} --sequences")[1]["notes"]

    assert sides(DAY).code == 0
    assert sides.dest.scalar("SELECT is_called FROM public.users_id_seq") is False
    assert sides(f"{DAY} --sequences").code == 0
    assert sides.dest.scalar("SELECT nextval('public.users_id_seq')") == 1000024


def test_a_cascade_that_is_accepted_happens(sides: Sides) -> None:
    sides.change(
        dest="CREATE TABLE public.child (u bigint REFERENCES public.users ON DELETE CASCADE);"
        "INSERT INTO public.child SELECT id FROM public.users"
    )
    assert sides(f"{DAY} --accept cascade").code == 0
    assert sides.dest.scalar("SELECT count(*) FROM public.child") == 0


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "code"), [("LATIN1", 1), ("LATIN9", 1), ("UTF8", 0)])
@pytest.mark.one_of(2)
def test_a_character_that_the_dest_cannot_hold_fails_the_copy(
    sides: Sides, servers: Servers, encoding: str, code: int
) -> None:
    """Nothing but the rows themselves can tell."""
    sides.source.execute("UPDATE public.users SET name = '\N{SNOWMAN}' WHERE id = 1000003")
    with encoded(servers.dest, encoding) as dest:
        users(dest, 1, rows=5, first="2018-04-29")
        before = contents(dest)
        run = sides._words(
            *("copy", *DAY.split()),
            env={"COPYPIPE_SOURCE": sides.source.dsn, "COPYPIPE_DEST": dest.dsn},
        )

        assert run.code == code, run.err
        assert ("warning: a character that " in run.err) is (code == 1)
        if code:
            assert "ERROR:  dest: untranslatable character\nDETAIL:  SQLSTATE 22P05" in run.err
            assert contents(dest) == before
