"""Who may make and use the dest's ledger, and whose ledger is trusted."""

import psycopg
import pytest

from copypipe import NothingToCopy
from copypipe.events import LedgerMade
from copypipe.statements.ledger import RIGHTS
from plugins.databases import Database, Role
from plugins.ledgers import DAY, NEEDED, Sides, hearing, warnings_of

# --- rights ---------------------------------------------------------------------------------------

CANNOT = "the ledger of the dest cannot be used: "


def test_a_role_that_may_not_make_it_copies_without(sides: Sides) -> None:
    heard, done = warnings_of(sides, dest=sides.writer().dsn)

    assert (done.rows, done.recorded) == (1, False)
    (warning,) = heard
    assert warning.startswith(f"{CANNOT}there is none, and the role lacks CREATE on the database. ")
    assert not sides.has_ledger()
    assert warnings_of(sides, dest=sides.writer().dsn, ledger=False)[0] == []


def test_a_role_that_may_create_makes_it(sides: Sides) -> None:
    role = sides.writer(f"CREATE ON DATABASE {sides.dest.name}")
    heard: list[LedgerMade] = []

    assert sides.copy(day=DAY, dest=role.dsn, listener=hearing(LedgerMade, heard)).recorded

    (made,) = heard
    assert made.where.startswith(f"{role.name}@")
    assert owners(sides.dest) == {role.name}


def owners(database: Database) -> set[str]:
    rows = database.fetch(
        "SELECT relowner::regrole::text FROM pg_class"
        " WHERE relnamespace = 'copypipe'::regnamespace AND relkind = 'r'"
    )
    return {name for (name,) in rows}


def test_an_empty_schema_of_the_role_is_filled(sides: Sides) -> None:
    role = sides.writer()
    sides.dest.execute(f"CREATE SCHEMA copypipe AUTHORIZATION {role.name}")
    heard: list[LedgerMade] = []

    assert sides.copy(day=DAY, dest=role.dsn, listener=hearing(LedgerMade, heard)).recorded

    assert len(heard) == 1
    assert owners(sides.dest) == {role.name}
    assert sides.attempts("state") == [("copied",)]


def test_an_empty_schema_of_another_role_is_left_alone(sides: Sides) -> None:
    sides.dest.execute("CREATE SCHEMA copypipe")

    (warning,), done = warnings_of(sides, dest=sides.writer().dsn)

    assert not done.recorded
    assert warning.startswith(f"{CANNOT}there is none, and the role lacks CREATE on schema")
    assert owners(sides.dest) == set()


def test_a_schema_that_may_be_filled_and_not_used_is_left_alone(sides: Sides) -> None:
    """CREATE without USAGE."""
    role = sides.writer()
    sides.dest.execute(f"CREATE SCHEMA copypipe; GRANT CREATE ON SCHEMA copypipe TO {role.name}")

    heard, done = warnings_of(sides, dest=role.dsn)

    assert (done.rows, done.recorded, len(heard)) == (1, False, 1)
    assert owners(sides.dest) == set()


def granted(sides: Sides) -> Role:
    """Make the ledger as its owner, and return a role with all rights that are needed."""
    sides.make()
    role = sides.writer()
    sides.grant(role)
    return role


def test_a_role_with_all_rights_uses_the_ledger_of_another(sides: Sides) -> None:
    role = granted(sides)

    heard, done = warnings_of(sides, dest=role.dsn)

    assert (heard, done.recorded) == ([], True)
    assert sides.attempts("state") == [("copied",)]
    # To tell of a failure takes no more.
    with pytest.raises(NothingToCopy):
        sides.copy(day="2019-01-01", dest=role.dsn, fail_on_empty=True)
    assert sides.attempts("state") == [("copied",), ("failed",)]
    assert len(sides.told()) == len(sides.told("sliced_by")) == 1


@pytest.mark.parametrize(("what", "right"), NEEDED, ids=[" ".join(each) for each in NEEDED])
@pytest.mark.one_of(5)
def test_a_right_that_is_missing_is_named(sides: Sides, what: str, right: str) -> None:
    role = granted(sides)
    sides.dest.execute(f"REVOKE {right} ON {what} FROM {role.name}")

    (warning,), done = warnings_of(sides, dest=role.dsn)

    missing = f"{right} on {what}" if "SCHEMA" in what else f"{right} ON {what}"
    assert warning.startswith(f"{CANNOT}the role lacks {missing.replace('SCHEMA', 'schema')}. ")
    assert (done.rows, done.recorded) == (1, False)
    assert sides.told() == sides.told("attempt") == sides.told("sliced_by") == []
    assert sides.dest.scalar("SELECT count(*) FROM public.t WHERE note = 'a'") == 1


# --- whose it is ----------------------------------------------------------------------------------


def made_by_stranger(sides: Sides) -> tuple[Role, Role]:
    """Have a role make the ledger and give another one all rights; return both."""
    stranger = sides.dest.role("stranger", f"CREATE ON DATABASE {sides.dest.name}")
    sides.make(stranger.dsn)
    role = sides.writer()
    sides.grant(role)
    return stranger, role


def test_the_ledger_of_a_stranger_is_not_used(sides: Sides) -> None:
    """Its owner could have it run anything with the rights of whoever writes into it."""
    stranger, role = made_by_stranger(sides)

    (warning,), done = warnings_of(sides, dest=role.dsn)

    assert warning.startswith(
        f"{CANNOT}its owner {stranger.name} could run anything as this role. "
    )
    assert (done.rows, done.recorded) == (1, False)
    assert sides.told() == sides.told("attempt") == []


@pytest.mark.parametrize("table", RIGHTS)
def test_a_single_table_of_a_stranger_is_enough(sides: Sides, table: str) -> None:
    role = granted(sides)
    stranger = sides.dest.role("stranger")
    sides.dest.execute(f"ALTER TABLE copypipe.{table} OWNER TO {stranger.name}")
    sides.dest.execute(f"GRANT ALL ON copypipe.{table} TO {role.name}")

    (warning,), done = warnings_of(sides, dest=role.dsn)

    assert f"its owner {stranger.name}" in warning
    assert not done.recorded


def test_a_schema_of_a_stranger_is_enough(sides: Sides) -> None:
    """Who owns it may drop our tables and put others in their place."""
    role = granted(sides)
    stranger = sides.dest.role("stranger")
    sides.dest.execute(f"ALTER SCHEMA copypipe OWNER TO {stranger.name}")

    for dsn in (role.dsn, sides.dest.dsn):
        (warning,), done = warnings_of(sides, dest=dsn)
        assert warning.startswith(f"{CANNOT}its owner {stranger.name} could run anything")
        assert not done.recorded
    assert sides.told() == sides.told("attempt") == []
    sides.dest.execute("ALTER SCHEMA copypipe OWNER TO CURRENT_USER")
    assert warnings_of(sides, dest=role.dsn)[1].recorded


def test_an_empty_schema_of_a_stranger_is_not_filled(sides: Sides) -> None:
    """Not even by a superuser, who could."""
    stranger = sides.dest.role("stranger")
    sides.dest.execute(f"CREATE SCHEMA copypipe AUTHORIZATION {stranger.name}")

    (warning,), done = warnings_of(sides)

    assert f"its owner {stranger.name}" in warning
    assert not done.recorded
    assert owners(sides.dest) == set()


TRUSTED = {
    "a role that it is a member of": "GRANT {stranger} TO {role}",
    "the database's owner": "ALTER DATABASE {database} OWNER TO {stranger}",
    "a superuser": "ALTER ROLE {stranger} SUPERUSER",
}


@pytest.mark.parametrize("sql", TRUSTED.values(), ids=TRUSTED.keys())
def test_a_ledger_of_whom_the_role_has_to_trust_is_used(sides: Sides, sql: str) -> None:
    stranger, role = made_by_stranger(sides)
    owner = sides.dest.server.conninfo["user"]
    names = {"stranger": stranger.name, "role": role.name, "database": sides.dest.name}
    sides.dest.execute(sql.format(**names))
    try:
        heard, done = warnings_of(sides, dest=role.dsn)
    finally:
        sides.dest.execute(f"ALTER DATABASE {sides.dest.name} OWNER TO {owner}")
        sides.dest.execute(f"ALTER ROLE {stranger.name} NOSUPERUSER")

    assert (heard, done.recorded) == ([], True)
    assert len(sides.told()) == 1


def test_what_a_stranger_put_at_the_source_is_not_run(sides: Sides) -> None:
    """To ask a source whether it is filled from the dest must not run somebody else's functions."""
    stranger = sides.source.role("stranger", f"CREATE ON DATABASE {sides.source.name}")
    reader = sides.source.role("reader", "SELECT ON public.t")
    with psycopg.connect(stranger.dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA copypipe")
        connection.execute(
            "CREATE FUNCTION copypipe.mine() RETURNS int LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'run by %', current_user; END $$"
        )
        connection.execute("CREATE VIEW copypipe.version AS SELECT copypipe.mine() AS version")
        connection.execute("CREATE TABLE copypipe.slice (id int)")
        connection.execute("GRANT USAGE ON SCHEMA copypipe TO PUBLIC")
        connection.execute("GRANT SELECT ON copypipe.version, copypipe.slice TO PUBLIC")

    assert sides.copy(day=DAY, source=reader.dsn).rows == 1


def test_a_superuser_does_not_run_what_a_stranger_put_there(sides: Sides) -> None:
    """It is a member of every role, and whoever may create a schema would have its rights."""
    stranger, _ = made_by_stranger(sides)
    with psycopg.connect(stranger.dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION copypipe.mine() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'run by %', current_user; END $$"
        )
        connection.execute(
            "CREATE TRIGGER mine BEFORE INSERT ON copypipe.attempt"
            " FOR EACH ROW EXECUTE FUNCTION copypipe.mine()"
        )

    assert sides.copy(day=DAY).rows == 1
