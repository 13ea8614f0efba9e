"""Bugs that other tools had, each as a test that we have it not; the tickets are theirs.

How they are named: pgcopydb is github.com/dimitri/pgcopydb, Citus citusdata/citus, psycopg
psycopg/psycopg.
"""

from collections.abc import Callable
from typing import Any

import pytest

from plugins import proxy as proxies
from plugins.command import Command, Words, eventually, no_backends
from plugins.databases import Database
from plugins.proxy import Frame, Proxy, Rule
from plugins.rows import rows_of, table_of, unchanged, written

DAY = ("copy", "t", "--day", "2018-04-29")
ONCE = ("--retries", "0")

# What cuts what flows is well within these, and no socket holds them all.
ROWS = 2000
FILL = f"""
    INSERT INTO public.t
    SELECT g, 'row ' || g, '2018-04-29 00:00Z'::timestamptz + g * interval '10 s'
      FROM generate_series(1, {ROWS}) AS g
"""
OLD = "9001 old 04-29T12:00, 9002 old 04-30"


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


def recorded(dest: Database) -> int:
    """Return how many slices the ledger holds."""
    if dest.scalar("SELECT to_regclass('copypipe.slice') IS NULL"):
        return 0
    return dest.scalar("SELECT count(*) FROM copypipe.slice")


def attempts(dest: Database) -> list[tuple[Any, ...]]:
    """Return how each try ended, in order."""
    return dest.fetch("SELECT state, side, sqlstate FROM copypipe.attempt ORDER BY began_at")


def on_tries(rule: Rule, tries: int = 1) -> Rule:
    """Do what the rule does, on the first connections alone."""
    return lambda frame: rule(frame) if frame.link <= tries else None


# --- a copy that failed and was called a success --------------------------------------------------


def test_a_source_that_dies_is_no_success(run: Command, source: Database, dest: Database) -> None:
    """pgcopydb #201: "Migration continues even after failing", and completes successfully."""
    table_of(source, "")
    table_of(dest, OLD)
    source.execute(FILL)
    source.execute(
        "ALTER TABLE public.t RENAME TO stored; CREATE VIEW public.t AS"
        f" SELECT * FROM public.stored WHERE id <> {ROWS} OR pg_sleep(60) IS NULL"
    )

    with unchanged(dest):
        process = run.start(*DAY, *ONCE)
        asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        ((pid,),) = eventually(lambda: source.fetch(asleep), what="half of the rows were sent")
        source.execute("SELECT pg_terminate_backend(%s)", [pid])
        done = process.wait()

    assert (done.code, done.out) == (5, "")
    assert "ERROR:  source: terminating connection due to administrator command\n" in done.err
    assert recorded(dest) == 0
    assert attempts(dest) == [("failed", "source", "57P01")]


def test_a_source_that_dies_each_time_is_no_success(
    words: Words, source: Database, dest: Database, proxy: Callable[..., Proxy]
) -> None:
    """pgcopydb #201: its retry was to notice that the connection had gone."""
    table_of(source, "")
    table_of(dest, OLD)
    source.execute(FILL)
    between = proxy(source.server, proxies.cut_at_row(1000))

    with unchanged(dest):
        done = words(
            *(*DAY, "--retries", "2", "--retry-delay", "1ms"), "--source", between.dsn(source)
        )

    assert (done.code, done.out) == (5, "")
    assert "ERROR:  source: the connection was lost\n" in done.err
    assert "It was tried 3 times." in done.err
    assert between.fired == ["fin"] * 3
    assert recorded(dest) == 0
    assert attempts(dest) == [("failed", "source", None)] * 3


# --- TRUNCATE again -------------------------------------------------------------------------------

TRUNCATE = ("copy", "t", "--all", "--yes", "--clear", "truncate")

# The words, and what the dest holds before.
EMPTIED = {
    "over rows": (TRUNCATE, OLD),
    "over nothing": (TRUNCATE, ""),
    "implied": (("copy", "t", "--all", "--yes"), ""),
}


@pytest.mark.parametrize(("command", "held"), EMPTIED.values(), ids=EMPTIED.keys())
@pytest.mark.one_of(2)
def test_a_truncate_is_never_seen_without_its_rows(
    words: Words,
    source: Database,
    dest: Database,
    proxy: Callable[..., Proxy],
    command: tuple[str, ...],
    held: str,
) -> None:
    """planetscale/pgcopydb #33: --resume emptied tables that had been copied."""
    table_of(source, "")
    table_of(dest, held)
    source.execute(FILL)
    between = proxy(source.server, proxies.cut_at_row(1000))
    env = {"COPYPIPE_SOURCE": between.dsn(source)}
    in_haste = ("--retry-delay", "1ms")

    # Tried once and several times, the dest keeps what it had, whatever was truncated meanwhile.
    for retries, cuts in (("0", 1), ("2", 4)):
        with unchanged(dest):
            assert words(*command, *in_haste, "--retries", retries, env=env).code == 5
        assert len(between.fired) == cuts
    assert rows_of(dest) == written(held)

    # A retry within the run copies it all.
    between.rule = on_tries(proxies.cut_at_row(1000), between.links + 1)
    done = words(*command, *in_haste, "--retries", "1", env=env)
    assert done.code == 0, done.err
    assert len(between.fired) == 5
    assert rows_of(dest) == rows_of(source)

    # What was copied stays while the next run fails, and afterwards.
    between.rule = proxies.cut_at_row(1000)
    with unchanged(dest):
        assert words(*TRUNCATE, *ONCE, env=env).code == 5
    assert words(*TRUNCATE).code == 0
    assert rows_of(dest) == rows_of(source)
    assert recorded(dest) == 2


# --- rows that came twice -------------------------------------------------------------------------


def asked(starts: bytes) -> Rule:
    """Cut the dest at a statement that begins so, which does not arrive."""
    return proxies.at_kind("client", b"Q", "fin", starts=starts)


# Where the first run breaks: the side, what makes it, and its exit code.
PHASES: dict[str, tuple[str, Callable[[], Rule], int]] = {
    "the source's plan": ("source", lambda: asked(b"SELECT pg_catalog.to_regclass"), 5),
    "the dest's plan": ("dest", lambda: asked(b"SELECT pg_catalog.to_regclass"), 5),
    "the ledger": ("dest", lambda: asked(b"CREATE SCHEMA"), 5),
    "the attempt": ("dest", lambda: asked(b'INSERT INTO "copypipe"."attempt"'), 5),
    "the locks": ("dest", lambda: asked(b"\n        SELECT CASE WHEN l.exclusive"), 5),
    "the table's lock": ("dest", lambda: asked(b"LOCK TABLE"), 5),
    "the clearing": ("dest", lambda: asked(b"DELETE"), 5),
    "the source's lock": ("source", lambda: asked(b"LOCK TABLE"), 5),
    "COPY at the dest": ("dest", lambda: asked(b"COPY"), 5),
    "COPY at the source": ("source", lambda: asked(b"COPY"), 5),
    "the first row": ("source", lambda: proxies.cut_at_row(0), 5),
    "a row": ("source", lambda: proxies.cut_at_row(1000), 5),
    "within a row": ("source", lambda: proxies.cut_after(10_001), 5),
    "the trailer": ("source", proxies.cut_before_trailer, 5),
    "the end of the data": ("dest", lambda: proxies.at_kind("client", b"c", "fin"), 5),
    "the count of the rows": (
        "dest",
        lambda: proxies.at_kind("server", b"C", "fin", starts=b"COPY"),
        5,
    ),
    "the record": ("dest", lambda: asked(b"\n        WITH attempt AS"), 5),
    "COMMIT": ("dest", lambda: proxies.lose_commit(arrives=False), 5),
    "the answer to COMMIT": ("dest", lambda: proxies.lose_commit(arrives=True), 0),
}


@pytest.mark.parametrize(("side", "rule", "code"), PHASES.values(), ids=PHASES.keys())
@pytest.mark.one_of(8)
def test_no_row_comes_twice(
    words: Words,
    source: Database,
    dest: Database,
    proxy: Callable[..., Proxy],
    side: str,
    rule: Callable[[], Rule],
    code: int,
) -> None:
    """pgcopydb #990: what was copied again on resume was there twice.

    No key keeps the rows apart; some are there twice at the source too, and stay so.
    """
    for database in (source, dest):
        table_of(database, "")
        database.execute("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
    source.execute(f"{FILL}; INSERT INTO public.t SELECT * FROM public.t WHERE id % 10 = 0")
    dest.execute(FILL.replace("'row '", "'old '"))
    database = {"source": source, "dest": dest}[side]
    between = proxy(database.server, rule())
    every = "SELECT * FROM public.t ORDER BY id, note"
    old, new = dest.text(every), source.text(every)

    broken = words(*DAY, *ONCE, env={f"COPYPIPE_{side.upper()}": between.dsn(database)})

    assert broken.code == code, broken.err
    assert between.fired == ["fin"]
    no_backends(source, dest)
    assert dest.text(every) == (old if code else new)
    for _ in range(2):
        assert words(*DAY, *ONCE).code == 0
        assert dest.text(every) == new
    assert recorded(dest) == (2 if code else 3)


# --- partitions at the dest alone -----------------------------------------------------------------

PARTITIONED = """
    CREATE TABLE public.t (id int, note text, created_at timestamptz)
        PARTITION BY RANGE (created_at);
    CREATE TABLE public.t_29 PARTITION OF public.t
        FOR VALUES FROM ('2018-04-29 00:00Z') TO ('2018-04-30 00:00Z') PARTITION BY HASH (id);
    CREATE TABLE public.t_29_0 PARTITION OF public.t_29 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE public.t_29_1 PARTITION OF public.t_29 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE public.t_30 PARTITION OF public.t
        FOR VALUES FROM ('2018-04-30 00:00Z') TO ('2018-05-01 00:00Z')
"""
IN_PARTITIONS = "1 a 04-29, 2 b 04-29T10:00, 3 c 04-29T23:59, 4 d 04-30"

# The words, what the dest holds before, and after.
INTO_PARTITIONS = {
    "a day": (DAY, OLD, "1 a 04-29, 2 b 04-29T10:00, 3 c 04-29T23:59, 9002 old 04-30"),
    "all, into nothing": (("copy", "t", "--all"), "", IN_PARTITIONS),
    "all, over rows": (("copy", "t", "--all", "--yes"), OLD, IN_PARTITIONS),
    "all, with TRUNCATE": (TRUNCATE, OLD, IN_PARTITIONS),
    "all, with TRUNCATE, into nothing": (TRUNCATE, "", IN_PARTITIONS),
}


def partitioned(dest: Database, held: str) -> None:
    dest.execute(PARTITIONED)
    for row in written(held):
        number, note, time = row.split()
        dest.execute("INSERT INTO public.t VALUES (%s, %s, %s)", [number, note, f"2018-{time}Z"])


@pytest.mark.parametrize(
    ("command", "held", "expected"), INTO_PARTITIONS.values(), ids=INTO_PARTITIONS.keys()
)
def test_a_plain_table_goes_into_a_partitioned_one(
    words: Words,
    source: Database,
    dest: Database,
    proxy: Callable[..., Proxy],
    command: tuple[str, ...],
    held: str,
    expected: str,
) -> None:
    """pgcopydb #700, #856, #949: "cannot truncate only", "cannot perform COPY FREEZE on"."""
    table_of(source, IN_PARTITIONS)
    partitioned(dest, held)
    sent: list[bytes] = []

    def listen(frame: Frame) -> None:
        if frame.sender == "client" and frame.kind == b"Q":
            sent.append(frame.body)

    done = words(*command, "--dest", proxy(dest.server, listen).dsn(dest))

    assert done.code == 0, done.err
    assert rows_of(dest) == written(expected)
    assert dest.scalar("SELECT count(*) FROM ONLY public.t_29_0 WHERE id IN (1, 2, 3)") > 0
    said = b"".join(sent)
    assert b'COPY "public"."t" ' in said
    assert b"FREEZE" not in said
    assert b"ONLY" not in said.replace(b"READ ONLY", b"")


@pytest.mark.parametrize(
    ("command", "held"),
    [
        (("copy", "t", "--from", "2018-04-28", "--to", "2018-05-01"), OLD),
        (("copy", "t", "--all", "--yes"), OLD),
        (("copy", "t", "--all"), ""),
        (TRUNCATE, OLD),
    ],
    ids=["range", "all", "all into nothing", "truncate"],
)
def test_a_row_without_a_partition_changes_nothing(
    words: Words, source: Database, dest: Database, command: tuple[str, ...], held: str
) -> None:
    """pgcopydb #700: a dest that is partitioned may have no place for a row."""
    table_of(source, f"0 early 04-28, {IN_PARTITIONS}")
    partitioned(dest, held)

    with unchanged(dest):
        done = words(*command)

    assert (done.code, done.out) == (1, "")
    assert 'ERROR:  dest: no partition of relation "t" found for row\n' in done.err
    assert "SQLSTATE 23514" in done.err
    assert recorded(dest) == 0
    assert attempts(dest) == [("failed", "dest", "23514")]


# --- types ----------------------------------------------------------------------------------------


def test_tsvectors_arrive_byte_for_byte(words: Words, source: Database, dest: Database) -> None:
    """pgcopydb #894: in binary COPY they crashed the server that received them, being unaligned."""
    for database in (source, dest):
        database.execute("CREATE TABLE public.t (note text, v tsvector, created_at timestamptz)")
    source.execute(
        """
        INSERT INTO public.t
        SELECT repeat('x', g % 9),
               CASE g % 7 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN strip(long) ELSE long END,
               '2018-04-29 10:00Z'
          FROM generate_series(1, 500) AS g, LATERAL (
               SELECT setweight(to_tsvector('simple', string_agg(
                          repeat(chr(97 + (g + w) % 26), 1 + (g * w) % 50) || ' ö''\\' || w, ' ')),
                          substr('ABCD', 1 + g % 4, 1)::"char")
                   || ('w' || g || ':1A,2B,16383C')::tsvector AS long
                 FROM generate_series(1, 1 + g % 40) AS w) AS words
        """
    )

    plan = words(*DAY, "--dry-run")
    done = words(*DAY)

    assert done.code == 0, done.err
    assert "FROM STDIN (FORMAT binary)" in plan.out
    query = "SELECT note, v, md5(tsvectorsend(v)) FROM public.t ORDER BY 1, 3, 2::text"
    assert dest.text(query) == source.text(query)


MADE = """
    CREATE EXTENSION IF NOT EXISTS hstore SCHEMA public;
    CREATE TYPE public.mood AS ENUM ('sad', 'glad');
    CREATE TYPE public.pair AS (mood public.mood, many public.mood[]);
    CREATE DOMAIN public.few AS int CHECK (VALUE < 100);
    CREATE TYPE public.nested AS (pairs public.pair[], few public.few[], h public.hstore);
    CREATE TABLE public.t (
        id int, h public.hstore[], moods public.mood[], pair public.pair, pairs public.pair[],
        few public.few[], nested public.nested, nests public.nested[], created_at timestamptz)
"""


def test_types_with_other_numbers_go_over(words: Words, source: Database, dest: Database) -> None:
    """Citus #463, #3969: "wrong element type" of hstore[], "wrong data type" of enums.

    Binary COPY sends the OIDs of what arrays and rows hold, and those are each server's own.
    """
    if not source.scalar("SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'"):
        pytest.skip("these servers have no hstore")
    dest.execute("CREATE TYPE public.one AS ENUM ('a'); CREATE TYPE public.two AS (a int, b int)")
    for database in (source, dest):
        database.execute(MADE)
    source.execute(
        """
        INSERT INTO public.t
        SELECT g, ARRAY[public.hstore('k', g::text), NULL],
               ARRAY['sad', NULL, 'glad']::public.mood[], row('glad', '{sad}')::public.pair,
               ARRAY[row('sad', '{}')::public.pair, NULL, row(NULL, '{glad,NULL}')::public.pair],
               ARRAY[1, NULL, 99]::public.few[], n, ARRAY[n, NULL, n], '2018-04-29 10:00Z'
          FROM generate_series(1, 20) AS g, LATERAL (
               SELECT row(ARRAY[row('glad', '{sad,glad}')::public.pair], '{7}',
                          public.hstore('ä', NULL))::public.nested AS n) AS nested
        """
    )
    for name in ("hstore", "mood", "pair", "few", "nested", "_mood", "_pair"):
        oid = f"SELECT 'public.{name}'::regtype::oid"
        assert source.scalar(oid) != dest.scalar(oid), name

    plan = words(*DAY, "--dry-run")
    done = words(*DAY)

    assert done.code == 0, done.err
    assert "FROM STDIN (FORMAT binary)" in plan.out
    query = "SELECT * FROM public.t ORDER BY id"
    assert dest.text(query) == source.text(query) != b""


# --- whose error it was ---------------------------------------------------------------------------

TRANSPORTS = pytest.mark.parametrize("transport", ["auto", "libpq"])


@TRANSPORTS
def test_an_error_of_the_source_is_not_taken_for_that_of_the_dest(
    words: Words, source: Database, dest: Database, transport: str
) -> None:
    """psycopg #593: the cause was lost behind the dest's answer to CopyFail (57014)."""
    table_of(source, "")
    table_of(dest, OLD)
    source.execute(FILL)
    source.execute(
        "ALTER TABLE public.t RENAME TO stored; CREATE VIEW public.t AS"
        f" SELECT id, 1 / (id - {ROWS}) || note AS note, created_at FROM public.stored"
    )

    with unchanged(dest):
        done = words(*DAY, "--transport", transport)

    assert (done.code, done.out) == (1, "")
    assert "ERROR:  source: division by zero\n" in done.err
    assert "DETAIL:  SQLSTATE 22012" in done.err
    assert "57014" not in done.err
    assert "dest:" not in done.err
    assert attempts(dest) == [("failed", "source", "22012")]


@TRANSPORTS
def test_an_error_of_the_dest_is_not_taken_for_a_broken_pipe(
    words: Words, source: Database, dest: Database, transport: str
) -> None:
    """psycopg #593, the other way round: the dest refuses a row while more are on their way."""
    table_of(source, "")
    table_of(dest, OLD)
    source.execute(FILL)
    dest.execute("ALTER TABLE public.t ADD CONSTRAINT low CHECK (id <> 100)")

    with unchanged(dest):
        done = words(*DAY, "--transport", transport)

    assert (done.code, done.out) == (1, "")
    assert 'ERROR:  dest: new row for relation "t" violates check constraint "low"\n' in done.err
    assert "SQLSTATE 23514" in done.err
    assert "constraint low" in done.err
    assert "lost" not in done.err
    assert "broken pipe" not in done.err.lower()
    assert "source:" not in done.err
    assert attempts(dest) == [("failed", "dest", "23514")]


# --- one huge value -------------------------------------------------------------------------------

HUGE = 30_000_000


@pytest.mark.parametrize("form", ["binary", "text"])
@pytest.mark.one_of(2)
def test_one_huge_value_goes_through_libpq(
    words: Words, source: Database, dest: Database, form: str
) -> None:
    """psycopg #255: a value of many backslashes kept it busy for ever."""
    for database in (source, dest):
        # aclitem has no binary format, and has the whole COPY go as text.
        more = ", a aclitem" if form == "text" else ""
        database.execute(f"CREATE TABLE public.t (note text, created_at timestamptz{more})")
        database.execute("ALTER TABLE public.t ALTER note SET STORAGE EXTERNAL")
    source.execute(
        "INSERT INTO public.t VALUES ('before', '2018-04-29 10:00Z'),"
        f" (repeat('\\', {HUGE}), '2018-04-29 11:00Z'), ('after', '2018-04-29 12:00Z')"
    )

    plan = words(*DAY, "--dry-run")
    done = words(*DAY, "--transport", "libpq")

    assert done.code == 0, done.err
    assert f"FROM STDIN (FORMAT {form})" in plan.out
    assert done.seconds < 10
    query = "SELECT octet_length(note), md5(note), created_at FROM public.t ORDER BY created_at"
    assert dest.text(query) == source.text(query)
    assert dest.scalar("SELECT max(octet_length(note)) FROM public.t") == HUGE


# --- bad data in mid-stream -----------------------------------------------------------------------

# Of the message of a row in binary: how it is spoiled, and what the dest says.
#                fields    4 + an int   4 + the note
BAD_DATA: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "too many fields": (lambda row: b"\0\x63" + row[2:], "22P04"),
    "an int of three bytes": (lambda row: row[:5] + b"\3" + row[7:], "08P01"),
    "text that is no UTF-8": (lambda row: row[:14] + b"\xff" + row[15:], "22021"),
    "a NUL in a text": (lambda row: row[:14] + b"\0" + row[15:], "22021"),
    "a field of negative size": (lambda row: row[:10] + b"\xff\0\0\0" + row[14:], "22P04"),
}


@TRANSPORTS
@pytest.mark.parametrize(("spoil", "code"), BAD_DATA.values(), ids=BAD_DATA.keys())
@pytest.mark.one_of(5)
def test_bad_data_in_mid_stream_leaves_nothing_behind(
    words: Words,
    source: Database,
    dest: Database,
    proxy: Callable[..., Proxy],
    transport: str,
    spoil: Callable[[bytes], bytes],
    code: str,
) -> None:
    """psycopg #1147: after bad data in a binary COPY came errors of what was fine."""
    table_of(source, "")
    table_of(dest, OLD)
    source.execute(FILL)

    def rule(frame: Frame) -> bytes | None:
        return (
            proxies.said(b"d", spoil(frame.body)) if frame.is_data and frame.rows == 1000 else None
        )

    between = proxy(source.server, rule)
    with unchanged(dest):
        done = words(*DAY, "--transport", transport, "--source", between.dsn(source))

    assert between.fired == ["changed"]
    assert (done.code, done.out) == (1, ""), done.err
    assert "ERROR:  dest: " in done.err
    assert f"DETAIL:  SQLSTATE {code}; row 1001 of the copy" in done.err
    assert attempts(dest) == [("failed", "dest", code)]
    again = words(*DAY, "--transport", transport)
    assert again.out.endswith(f"deleted 1, copied {ROWS}\n"), again.err
