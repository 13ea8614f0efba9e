"""copy --verify checksum in every mode: what the dest holds is what the source sent, or nothing."""

from typing import Any

import pytest

from copypipe import CopyFailed, Differs, PlanRefused
from copypipe.events import Cleared
from plugins.command import Words, eventually, pause, users, waits_in_pause
from plugins.databases import Database
from plugins.modes import DAY, NEXT_DAY, Pair

PROVED: dict[str, Any] = {"verify": "checksum"}
ON_DAY: dict[str, Any] = {"day": DAY, **PROVED}
WHOLE: dict[str, Any] = {"all": True, "yes": True, **PROVED}

T = "CREATE TABLE public.t (id int {key}, note text, x float8, created_at timestamptz) {more}"
ROWS = f"""
INSERT INTO public.t SELECT n, 'n' || n, n / 7.0, timestamptz '{DAY}Z' + n * interval '1 hour'
  FROM generate_series(0, 35) AS n
"""
OLD = f"INSERT INTO public.t VALUES (900, 'old', 0, '{DAY} 05:00Z'), (901, 'old', 0, '{NEXT_DAY}Z')"
BY_DAY = f"""
CREATE TABLE public.d29 PARTITION OF public.t FOR VALUES FROM ('{DAY}Z') TO ('{NEXT_DAY}Z');
CREATE TABLE public.d30 PARTITION OF public.t FOR VALUES FROM ('{NEXT_DAY}Z') TO ('2018-05-01Z')
"""
PARTED = "PARTITION BY RANGE (created_at)"


def tables(pair: Pair, *, key: str = "PRIMARY KEY", more: str = "", parts: str = "SELECT") -> None:
    """The source has 36 rows, 24 of the day; the dest two others, one of the day."""
    pair.source.execute(T.format(key="PRIMARY KEY", more="") + ";" + ROWS)
    pair.dest.execute(T.format(key=key, more=more) + ";" + parts + ";" + OLD)


# What is copied, and the rows that the digest is of.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "replace": (ON_DAY, 24),
    "replace all": (WHOLE, 36),
    "truncate": ({**WHOLE, "clear": "truncate"}, 36),
    "swap": ({**WHOLE, "swap": True}, 36),
    "append": ({**ON_DAY, "mode": "append"}, 24),
    "merge": ({**ON_DAY, "mode": "merge"}, 24),
    "merge and delete": ({**ON_DAY, "mode": "merge", "merge_deletes": True}, 24),
    "where": ({"where": "id < 10", **PROVED}, 10),
    "where in a day": ({**ON_DAY, "where": "id < 10"}, 10),
    "query": ({**ON_DAY, "query": "SELECT id, note, x * 2 AS x, created_at FROM public.t"}, 24),
    "column": ({**ON_DAY, "columns": {"note": "upper(note)", "x": "NULL::float8"}}, 24),
    "exclude": ({**ON_DAY, "exclude": ["note"]}, 24),
    "libpq": ({**ON_DAY, "transport": "libpq"}, 24),
    "nothing": ({"day": "2001-01-01", **PROVED}, 0),
}


@pytest.mark.parametrize(("options", "rows"), MODES.values(), ids=MODES.keys())
@pytest.mark.one_of(8)
def test_the_digest_is_told(pair: Pair, options: dict[str, Any], rows: int) -> None:
    tables(pair)

    done = pair.copy(**options)

    assert done.digest is not None
    assert done.digest.rows == done.rows == rows
    assert pair.told()[-1]["checksum"] == str(done.digest)


@pytest.mark.parametrize("ledger", [True, False])
def test_it_is_what_a_verification_finds(pair: Pair, ledger: bool) -> None:
    tables(pair)
    done = pair.copy(**ON_DAY, ledger=ledger)
    (found,) = pair.verify(day=DAY)
    assert (found.verdict, found.source, found.dest) == ("same", done.digest, done.digest)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clear": "truncate"},
        {"swap": True},
        {"mode": "append"},
        {"swap": True, "start": DAY, "stop": "2018-05-01", "day": None},
    ],
    ids=str,
)
def test_partitions(pair: Pair, options: dict[str, Any]) -> None:
    tables(pair, key="", more=PARTED, parts=BY_DAY)
    rows = 36 if "start" in options else 24
    done = pair.copy(**{**ON_DAY, **options})
    assert done.digest is not None
    assert done.digest.rows == rows


def test_text_format(pair: Pair) -> None:
    pair.make("CREATE TABLE public.t (id int, v int2vector, created_at timestamptz)")
    pair.source.execute(f"INSERT INTO public.t VALUES (1, '', '{DAY}Z'), (2, '1 2', '{DAY}Z')")
    done = pair.copy(**ON_DAY)
    assert done.digest is not None
    assert done.digest.rows == 2


def test_other_rows_beside_those_that_were_copied(pair: Pair) -> None:
    """Rows of the slice that are not of this copy are no difference to append and to merge."""
    tables(pair, key="")
    pair.dest.execute(f"INSERT INTO public.t SELECT 77, 'other', 1, '{DAY} 06:00Z'")

    assert pair.copy(**ON_DAY, mode="append").rows == 24
    pair.dest.execute(
        "DELETE FROM public.t; ALTER TABLE public.t ADD PRIMARY KEY (id);"
        f"INSERT INTO public.t VALUES (77, 'other', 1, '{DAY} 06:00Z'), (3, 'old', 1, '{DAY}Z')"
    )
    assert pair.copy(**ON_DAY, mode="merge").updated == 1
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 25


# --- what is found --------------------------------------------------------------------------------

CHANGING = """
CREATE FUNCTION public.change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = 7 AND NEW.note <> 'changed' THEN
        {}
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER change {} INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.change()
"""
TRIGGERS = {
    "before": CHANGING.format("NEW.note := 'changed';", "BEFORE"),
    "after": CHANGING.format(
        "UPDATE public.t SET note = 'changed' WHERE t.id = NEW.id;", "AFTER"
    ),
    "deferred": CHANGING.format(
        "UPDATE public.t SET note = 'changed' WHERE t.id = NEW.id;", "AFTER"
    ).replace("CREATE TRIGGER", "CREATE CONSTRAINT TRIGGER").replace(
        "ON public.t FOR", "ON public.t DEFERRABLE INITIALLY DEFERRED FOR"
    ),
}  # fmt: skip
FILLING: dict[str, dict[str, Any]] = {
    "replace": ON_DAY,
    "append": {**ON_DAY, "mode": "append"},
    "merge": {**ON_DAY, "mode": "merge"},
    "all": WHOLE,
}


@pytest.mark.parametrize(
    ("trigger", "mode", "accept"),
    [
        # Each trigger and each mode in every run of the suite, all of them in the sweeps.
        pytest.param(
            trigger,
            mode,
            accept,
            id=f"{trigger}-{mode}-{'accepted' if accept else 'counted'}",
            marks=[]
            if accept and (mode == "replace" or trigger == "deferred")
            else [pytest.mark.slow],
        )
        for trigger in TRIGGERS
        for mode in FILLING
        for accept in ((), ("triggers",))
    ],
)
def test_a_trigger_that_changes_a_value(
    pair: Pair, trigger: str, mode: str, accept: tuple[str, ...]
) -> None:
    tables(pair)
    pair.dest.execute(TRIGGERS[trigger])

    if mode == "merge" and not accept:
        # It counts the rows that are as they were staged.
        pair.refuses(CopyFailed, "holds 23 of the 24 rows", **FILLING[mode])
        return
    error = pair.refuses(Differs, "are not those of the source", **FILLING[mode], accept=accept)

    assert error.exit_code == 4
    assert "Nothing was changed" in str(error.detail)
    told = pair.dest.fetch("SELECT state, error FROM copypipe.attempt")
    assert told[0][0] == "failed"
    assert not pair.dest.scalar("SELECT count(*) FROM copypipe.slice")


def test_a_trigger_of_a_partition(pair: Pair) -> None:
    tables(pair, key="", more=PARTED, parts=BY_DAY)
    pair.dest.execute(TRIGGERS["before"].replace("ON public.t", "ON public.d29"))
    pair.refuses(Differs, "are not those of the source", **ON_DAY, accept=("triggers",))


@pytest.mark.parametrize("mode", ["replace", "append", "merge"])
def test_somebody_who_writes_into_the_slice_meanwhile(pair: Pair, mode: str) -> None:
    """READ COMMITTED sees it; beside the rows of append and merge it is no difference."""
    tables(pair)
    holder = pause(pair.dest, "public.t", when="NEW.id = 7")
    # Else the rows would be counted because of the trigger, and that counts them all.
    copying = pair.start(**{**ON_DAY, "mode": mode, "accept": ("triggers",)})
    eventually(lambda: waits_in_pause(pair.dest))
    pair.dest.execute(f"INSERT INTO public.t VALUES (500, 'theirs', 0, '{DAY} 08:00Z')")
    holder.close()

    if mode == "replace":
        error = copying.error()
        assert isinstance(error, Differs)
        assert "source: 24 rows" in str(error.detail)
        assert "dest: 25 rows" in str(error.detail)
        assert pair.dest.fetch("SELECT id FROM public.t ORDER BY id") == [(500,), (900,), (901,)]
    else:
        done = copying.result()
        assert done.digest is not None
        assert done.digest.rows == 24


@pytest.mark.parametrize(
    "expression", ["random()", "extract(epoch FROM clock_timestamp())::float8"]
)
def test_what_is_not_the_same_twice(pair: Pair, expression: str) -> None:
    tables(pair)
    error = pair.refuses(
        Differs, "are not those of the source", **ON_DAY, columns={"x": expression}
    )
    assert "computed at the source is not the same twice" in str(error.hint)


def test_rows_of_the_source_that_change_meanwhile_are_not_looked_at(pair: Pair) -> None:
    """The digest is of the snapshot of the copy, also where COPY took it later than the lock."""
    tables(pair)
    reader = pair.source.role("reader", "USAGE ON SCHEMA public", "SELECT (id) ON public.t")
    for column in ("note", "x", "created_at"):
        pair.source.execute(f"GRANT SELECT ({column}) ON public.t TO {reader.name}")

    def change(event: Any) -> None:
        if isinstance(event, Cleared):
            pair.source.execute("UPDATE public.t SET note = 'before' WHERE id = 1")

    holder = pause(pair.dest, "public.t", when="NEW.id = 7")
    copying = pair.start(**ON_DAY, source=reader.dsn, listener=change)
    eventually(lambda: waits_in_pause(pair.dest))
    pair.source.execute("UPDATE public.t SET note = 'after' WHERE id IN (1, 20)")
    holder.close()

    assert copying.result().digest is not None
    assert pair.dest.fetch("SELECT id FROM public.t WHERE note = 'after'") == []


def test_a_query_of_other_tables(pair: Pair) -> None:
    tables(pair)
    pair.source.execute("CREATE TABLE public.names AS SELECT id, 'x' || id AS name FROM public.t")
    look_up = "(SELECT n.name FROM public.names n WHERE n.id = t.id)"
    done = pair.copy(**ON_DAY, columns={"note": look_up})
    assert done.digest is not None
    joined = "public.t JOIN public.names n USING (id)"
    query = f"SELECT t.id, n.name AS note, t.x, t.created_at FROM {joined}"
    again = pair.copy(**ON_DAY, query=query)
    assert again.digest == done.digest


def test_duplicates_count(pair: Pair) -> None:
    pair.make("CREATE TABLE public.t (id int, created_at timestamptz)")
    pair.source.execute(f"INSERT INTO public.t SELECT 1, '{DAY}Z' FROM generate_series(1, 4)")
    done = pair.copy(**ON_DAY)
    assert done.digest is not None
    assert done.digest.rows == 4
    pair.dest.execute("DELETE FROM public.t WHERE ctid IN (SELECT ctid FROM public.t LIMIT 2)")
    (found,) = pair.verify(day=DAY)
    assert (found.verdict, found.differing.count("missing")) == ("differs", 2)


def test_a_source_that_has_nothing(pair: Pair) -> None:
    tables(pair)
    pair.source.execute("TRUNCATE public.t")
    pair.refuses(PlanRefused, "the source has no row", **ON_DAY)
    assert pair.copy(**ON_DAY, allow_empty=True).deleted == 1


def test_a_role_without_select_at_the_dest(pair: Pair) -> None:
    tables(pair)
    loader = pair.dest.role("loader", "USAGE ON SCHEMA public", "INSERT, DELETE ON public.t")
    pair.dest.execute(f"GRANT SELECT (id, note, created_at) ON public.t TO {loader.name}")

    error = pair.refuses(PlanRefused, "may not", **ON_DAY, dest=loader.dsn, ledger=False)

    assert (error.exit_code, error.side) == (6, "dest")
    assert "SELECT (x)" in str(error.detail)
    pair.dest.execute(f"GRANT SELECT (x) ON public.t TO {loader.name}")
    assert pair.copy(**ON_DAY, dest=loader.dsn, ledger=False).digest is not None


def test_an_error_of_the_digest_is_the_error_of_the_copy(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that cannot be computed a second time fails the copy, and nothing is changed."""
    tables(pair)
    pair.source.execute(
        "CREATE SEQUENCE public.s;"
        "CREATE FUNCTION public.once(int) RETURNS text VOLATILE LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('copypipe.done', true) = $1::text THEN RAISE 'twice'; END IF;"
        " IF $1 = 23 THEN PERFORM set_config('copypipe.done', '0', true); END IF;"
        " RETURN 'once'; END $$"
    )
    pair.refuses(CopyFailed, "twice", **ON_DAY, columns={"note": "public.once(id)"})


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def two(kept_source: Database, kept_dest: Database) -> tuple[Database, Database]:
    users(kept_source)
    users(kept_dest, rows=0)
    return kept_source, kept_dest


def test_the_words(words: Words, two: tuple[Database, Database]) -> None:
    run = words("copy", "users", "--day", DAY, "--verify", "checksum", "--json")

    assert run.code == 0, run.err
    _, dest = two
    checksum = dest.scalar("SELECT checksum FROM copypipe.slice")
    assert f'"{checksum}"' in run.out
    assert words("copy", "users", "--day", DAY, "--verify", "sums").code == 2


def test_the_words_for_what_differs(words: Words, two: tuple[Database, Database]) -> None:
    run = words(
        "copy", "users", "--day", DAY, "--verify", "checksum", "--column", "balance=random()",
        "--cast", "balance", "--allow-lossy", "balance",
    )  # fmt: skip
    assert run.code == 6  # both were given
    run = words(
        "copy", "users", "--day", DAY, "--verify", "checksum",
        "--column", "balance=round(random()::numeric, 2)", "--allow-lossy", "balance",
    )  # fmt: skip
    assert run.code == 4
    assert "are not those of the source" in run.err
    assert two[1].scalar("SELECT count(*) FROM users") == 0
