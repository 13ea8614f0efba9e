"""The dest's ledger: what a copy leaves there, and what is told of those that fail."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

import copypipe
from copypipe import (
    ConnectionLost,
    CopypipeError,
    NothingToCopy,
    SliceBusy,
    __version__,
    attempts,
)
from copypipe.events import Cleared, Event, Planned
from copypipe.statements.ledger import RIGHTS
from plugins import proxy as proxies
from plugins.command import Command, Words, eventually, no_backends, pause, waits_in_pause
from plugins.ledgers import ALL, COLUMNS, DAY, NEXT_DAY, Sides, add, warnings_of
from plugins.proxy import Proxy

OF_DAY = '{["2018-04-29 00:00:00+00","2018-04-30 00:00:00+00")}'


# --- what is recorded -----------------------------------------------------------------------------


def test_a_copy_is_recorded_with_every_fact(sides: Sides) -> None:
    """Compared with what the servers say of themselves."""
    source, dest = sides.source, sides.dest
    oid = "SELECT 'public.t'::regclass::oid"
    clocks = "SELECT clock_timestamp()"
    before = [source.scalar(clocks), dest.scalar(clocks)]

    done = sides.copy(day=DAY, timezone="Europe/Vienna")

    after = [source.scalar(clocks), dest.scalar(clocks)]
    (row,) = sides.told()
    at = {
        name: datetime.fromisoformat(row.pop(name))
        for name in ("source_clock", "began_at", "recorded_at", "complete_until")
    }
    signature, manifest = row.pop("signature"), row.pop("manifest")
    # The row is of the transaction that wrote the rows.
    assert int(row.pop("xid")) % 2**32 == int(dest.scalar("SELECT xmin::text FROM public.t"))
    assert row == {
        "id": 1,
        "attempt_id": done.attempt.attempt_id,
        "run_id": done.attempt.run_id,
        "root_oid": str(dest.scalar(oid)),
        "dest_oid": str(dest.scalar(oid)),
        "dest_table": "public.t",
        "source_system": source.scalar("SELECT system_identifier FROM pg_control_system()"),
        "source_database_oid": str(
            source.scalar("SELECT oid FROM pg_database WHERE datname = current_database()")
        ),
        "source_address": f"{source.server.host}:{source.server.port}/{source.name}",
        "source_root_oid": str(source.scalar(oid)),
        "source_table": "public.t",
        "by_column": "created_at",
        "zone": "Europe/Vienna",
        "instants": '{["2018-04-28 22:00:00+00","2018-04-29 22:00:00+00")}',
        "numbers": None,
        "highest": None,
        "highest_at": None,
        "condition": None,
        "mode": "replace",
        "reversed": False,
        "rows_deleted": 1,
        "rows_copied": 1,
        "bytes": done.bytes,
        "format": "binary",
        "checksum": None,
        "equal": True,
        "state": "sealed",
        "open_because": None,
        "tool_version": __version__,
    }
    assert re.fullmatch("[0-9a-f]{64}", signature)
    read = manifest.pop("source")
    assert re.fullmatch(r"\d+:\d+:.*", read.pop("snapshot"))
    assert re.fullmatch("[0-9A-F]+/[0-9A-F]+", read.pop("lsn"))
    assert read == {"version": source.scalar("SHOW server_version").split()[0]}
    assert [*manifest["statements"]] == ["clear", "copy_in", "copy_out"]
    assert "2018-04-28 22:00:00+00" in manifest.pop("statements")["clear"]
    assert manifest == {
        "dest": {"version": dest.scalar("SHOW server_version").split()[0]},
        "rows_inserted": None,
        "rows_updated": None,
        "rows_dropped": 0,
        "accepted": [],
        "transport": done.transport,
        "seconds": manifest["seconds"],
    }
    assert before[0] < at["source_clock"] < after[0]
    assert before[1] < at["recorded_at"] < after[1]
    assert at["complete_until"] < at["source_clock"]
    assert at["began_at"] < at["recorded_at"]
    assert (done.recorded, done.rows, done.deleted, done.attempt.number) == (True, 1, 1, 1)


PARTED = f"""
    DROP TABLE public.t;
    CREATE TABLE public.t {COLUMNS} PARTITION BY RANGE (created_at);
    CREATE TABLE public.t_2018 PARTITION OF public.t FOR VALUES FROM ('2018-01-01') TO (MAXVALUE)
"""
VECTOR = "ALTER TABLE public.t ADD v int2vector DEFAULT '1 2'"

# What else is done to both sides, the request, what the row says.
RECORDED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "a day": (
        "",
        "",
        {"day": DAY},
        {"by_column": "created_at", "zone": "UTC", "instants": OF_DAY, "rows_deleted": 1},
    ),
    "times": (
        "",
        "",
        {"start": "2018-04-29T10:00", "stop": "2018-04-29T10:00:00.000001"},
        {
            "zone": "UTC",
            "instants": '{["2018-04-29 10:00:00+00","2018-04-29 10:00:00.000001+00")}',
            "rows_copied": 1,
        },
    ),
    "a clock that went back across midnight": (
        "",
        "",
        {"day": "2010-11-06", "timezone": "America/St_Johns"},
        {
            "zone": "America/St_Johns",
            "instants": '{["2010-11-06 02:30:00+00","2010-11-07 02:30:00+00"),'
            '["2010-11-07 02:31:00+00","2010-11-07 03:30:00+00")}',
            "rows_copied": 0,
        },
    ),
    "a day that the zone skipped": (
        "",
        "",
        {"day": "2011-12-30", "timezone": "Pacific/Apia"},
        {"zone": "Pacific/Apia", "instants": "{}", "rows_copied": 0, "rows_deleted": 0},
    ),
    "the calendar's first day": (
        "",
        "",
        {"day": "0002-01-01"},
        {"instants": '{["0002-01-01 00:00:00+00","0002-01-02 00:00:00+00")}'},
    ),
    "the calendar's last day": (
        "",
        "",
        {"day": "9998-12-31"},
        {
            "instants": '{["9998-12-31 00:00:00+00","9999-01-01 00:00:00+00")}',
            "state": "open",
            "open_because": "its end is not past at the source",
        },
    ),
    "dates": (
        "",
        "",
        {"day": DAY, "by": "of", "timezone": "Asia/Tokyo"},
        {"by_column": "of", "zone": None, "instants": OF_DAY, "rows_copied": 1},
    ),
    "local times": (
        "",
        "",
        {"day": DAY, "by": "at", "timezone": "Asia/Tokyo"},
        {"by_column": "at", "zone": None, "instants": OF_DAY, "rows_copied": 1},
    ),
    "a condition in a range": (
        "",
        "",
        {"day": DAY, "where": "id < 5"},
        {
            "by_column": "created_at",
            "instants": OF_DAY,
            "condition": "id < 5",
            "rows_deleted": 0,
            "state": "sealed",
        },
    ),
    "a condition": (
        "",
        "",
        {"where": "note = 'a' -- \\ \"x\""},
        {
            "by_column": None,
            "zone": None,
            "instants": "{(,)}",
            "condition": "note = 'a' -- \\ \"x\"",
            "rows_copied": 1,
        },
    ),
    "all": (
        "",
        "",
        ALL,
        {
            "by_column": None,
            "zone": None,
            "instants": "{(,)}",
            "condition": None,
            "rows_deleted": 1,
            "rows_copied": 2,
            "state": "open",
            "open_because": "it has no end",
        },
    ),
    "all, truncated": (
        "",
        "",
        {**ALL, "clear": "truncate"},
        {"rows_deleted": None, "rows_copied": 2, "mode": "replace"},
    ),
    "all, into an empty table": (
        "",
        "DELETE FROM public.t",
        {"all": True},
        {"rows_deleted": 0, "rows_copied": 2, "instants": "{(,)}"},
    ),
    "a query": (
        "",
        "",
        {"day": DAY, "query": "SELECT * FROM public.t"},
        {"source_root_oid": None, "source_table": "(query)", "by_column": "created_at"},
    ),
    "a table of another name": (
        'ALTER TABLE public.t RENAME TO "Other"";\'\\ t"',
        'ALTER TABLE public.t RENAME TO "Other"";\'\\ t"',
        {"day": DAY, "table": 'public."Other"";\'\\ t"'},
        {"source_table": "public.Other\";'\\ t", "dest_table": "public.Other\";'\\ t"},
    ),
    "in text format": (VECTOR, VECTOR, {"day": DAY}, {"format": "text", "rows_copied": 1}),
    "a source of partitions": (
        f"{PARTED}; INSERT INTO public.t (id, created_at) VALUES (1, '{DAY} 10:00Z')",
        "",
        {"day": DAY},
        {"source_table": "public.t", "rows_copied": 1},
    ),
    "a dest of partitions": ("", PARTED, {"day": DAY}, {"dest_table": "public.t"}),
    "a view": (
        "ALTER TABLE public.t RENAME TO stored;CREATE VIEW public.t AS SELECT * FROM public.stored",
        "",
        {"day": DAY},
        {"source_table": "public.t", "rows_copied": 1},
    ),
}


@pytest.mark.parametrize(
    ("at_source", "at_dest", "options", "expected"), RECORDED.values(), ids=RECORDED.keys()
)
@pytest.mark.one_of(8)
def test_what_is_recorded_of_a_slice(
    sides: Sides, at_source: str, at_dest: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    for database, sql in ((sides.source, at_source), (sides.dest, at_dest)):
        if sql:
            database.execute(sql)
    name = options.get("table", "public.t")
    chosen = {key: value for key, value in options.items() if key != "table"}

    done = copypipe.copy(name, source=sides.source.dsn, dest=sides.dest.dsn, retries=0, **chosen)

    (row,) = sides.told()
    assert {name: row[name] for name in expected} == expected
    assert (row["rows_copied"], row["rows_deleted"]) == (done.rows, done.deleted)
    assert row["bytes"] == done.bytes
    (attempt,) = sides.told("attempt")
    same = ("dest_table", "root_oid", "dest_oid", "by_column", "instants", "condition")
    assert {name: attempt[name] for name in same} == {name: row[name] for name in same}


def test_a_partition_is_recorded_under_its_root(sides: Sides) -> None:
    """The slices of a table are those of its partitions as well."""
    for database in (sides.source, sides.dest):
        database.execute(PARTED)
    add(sides.source, 1, "a")
    oids = {
        side: [
            str(database.scalar(f"SELECT 'public.{name}'::regclass::oid"))
            for name in ("t", "t_2018")
        ]
        for side, database in (("source", sides.source), ("dest", sides.dest))
    }
    both = {"source": sides.source.dsn, "dest": sides.dest.dsn}
    copypipe.copy("public.t_2018", **both, day=DAY)

    (row,) = sides.told()
    assert [row["root_oid"], row["dest_oid"]] == oids["dest"]
    assert row["source_root_oid"] == oids["source"][0]
    assert (row["source_table"], row["dest_table"]) == ("public.t_2018", "public.t_2018")
    assert [each["root_oid"] for each in sides.told("sliced_by")] == oids["dest"][:1]


ALIKE: dict[str, tuple[str, ...]] = {
    "once more": ("--day", DAY),
    "another day of another zone": ("--day", NEXT_DAY, "--timezone", "Asia/Tokyo"),
    "a condition": ("--day", DAY, "--where", "id > 0"),
    "by another column": ("--day", DAY, "--by", "paid_at"),
    "all": ("--all", "--yes"),
    "without the ledger": ("--day", DAY, "--no-ledger"),
}
UNLIKE: dict[str, tuple[str, tuple[str, ...]]] = {
    "a column left out": ("", ("--exclude", "note")),
    "a column computed": ("", ("--column", "note=upper(note)")),
    "a column computed in another way": ("", ("--column", "note=lower(note)")),
    "a column renamed": ("", ("--column", "paid_at=created_at")),
    "a query": ("", ("--query", "SELECT * FROM public.t")),
    "another query": ("", ("--query", "SELECT * FROM public.t WHERE id > 0")),
    "a column more": ("ALTER TABLE public.t ADD more int", ()),
    "another type": ("ALTER TABLE public.t ALTER id TYPE int8", ()),
    "another modifier": ("ALTER TABLE public.t ALTER note TYPE varchar(80)", ()),
}


def test_equal_slices_bear_one_signature_and_others_another(sides: Sides, words: Words) -> None:
    def signature(*options: str) -> str:
        planned = words("copy", "t", "--dry-run", "--json", *options)
        assert planned.code == 0, planned.err
        return json.loads(planned.out)["signature"]

    first = signature("--day", DAY)
    assert {name: signature(*words_) for name, words_ in ALIKE.items()} == dict.fromkeys(
        ALIKE, first
    )
    others = [first]
    for sql, more in UNLIKE.values():
        for database in (sides.source, sides.dest):
            if sql:
                database.execute(sql)
        others.append(signature("--day", DAY, *more))
    assert len(set(others)) == len(others)
    sides.copy(day=DAY)
    assert sides.told()[0]["signature"] == others[-1]


def test_each_committed_transfer_has_a_row_and_none_is_ever_changed(sides: Sides) -> None:
    """Whatever else happens: repeats, failures, all rows, and without the ledger."""
    sides.copy(day=DAY)
    seen: list[tuple[Any, ...]] = []

    def rows() -> list[tuple[Any, ...]]:
        return sides.dest.fetch(
            "SELECT s.*::text, s.ctid, s.xmin FROM copypipe.slice s ORDER BY id"
        )

    for number, options in enumerate(
        ({"day": DAY}, {"day": NEXT_DAY}, ALL, {"where": "id > 0"}, {"day": DAY, "by": "at"}), 2
    ):
        seen = rows()
        assert sides.copy(**options).recorded
        assert rows()[:-1] == seen
        assert len(rows()) == number
    seen = rows()
    with pytest.raises(NothingToCopy):
        sides.copy(day="2019-01-01", fail_on_empty=True)
    assert not sides.copy(day=DAY, ledger=False).recorded
    assert rows() == seen
    assert [row["id"] for row in sides.told()] == [1, 2, 3, 4, 5, 6]
    assert len({row["attempt_id"] for row in sides.told()}) == 6


def test_a_run_without_the_ledger_writes_nothing(sides: Sides) -> None:
    assert not sides.copy(day=DAY, ledger=False).recorded
    assert not sides.has_ledger()
    sides.make()
    before = [sides.told(table) for table in RIGHTS]

    heard, done = warnings_of(sides, ledger=False)

    assert (heard, done.rows, done.recorded) == ([], 1, False)
    assert [sides.told(table) for table in RIGHTS] == before
    assert [len(rows) for rows in before] == [1, 0, 0, 0]


# --- what is told of attempts ---------------------------------------------------------------------


def test_an_attempt_is_running_until_it_has_copied(sides: Sides) -> None:
    running, holder = sides.hold(day=DAY)
    (attempt,) = sides.told("attempt")
    assert sides.told() == []
    ((application,),) = {backend[1:2] for backend in sides.dest.backends()}
    assert application == f"copypipe/{attempt['run_id']}"
    assert (attempt["state"], attempt["ended_at"], attempt["number"]) == ("running", None, 1)
    assert attempt["worker"] == f"{socket.gethostname()}/{os.getpid()}"
    assert attempt["tool_version"] == __version__

    done = sides.ends(running, holder)

    (ended,) = sides.told("attempt")
    assert ended["state"] == "copied"
    assert ended["began_at"] < ended["ended_at"]
    assert {**ended, "state": "running", "ended_at": None} == attempt
    (row,) = sides.told()
    assert (row["attempt_id"], row["run_id"]) == (ended["attempt_id"], ended["run_id"])
    assert (row["attempt_id"], row["run_id"]) == (done.attempt.attempt_id, done.attempt.run_id)


SECRET = "hushhush"


def altered(sides: Sides) -> dict[str, Any]:
    def alter(event: Event) -> None:
        if isinstance(event, Planned):
            sides.dest.execute(f"ALTER TABLE public.t ADD {SECRET} int")

    return {"listener": alter}


def busy(sides: Sides) -> dict[str, Any]:
    sides.make()
    sides.hold(day=DAY, ledger=False)
    return {"wait_lock": 0}


def fails(side: str, sql: str) -> Callable[[Sides], dict[str, Any]]:
    def prepare(sides: Sides) -> dict[str, Any]:
        getattr(sides, side).execute(sql)
        return {}

    return prepare


RAISES = f"""
    CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no {SECRET}' USING ERRCODE = 'ZZ123'; END $$;
    CREATE {{}} TRIGGER no AFTER INSERT ON public.t {{}} FOR EACH ROW EXECUTE FUNCTION public.no()
"""
VIEW = f"""
    ALTER TABLE public.t RENAME TO stored;
    CREATE VIEW public.t AS
        SELECT id, '{SECRET}' || 1 / (id - 1) AS note, created_at, paid_at, at, of
          FROM public.stored
"""

# What is wrong, and the attempt's (side, sqlstate, error).
FAILURES: dict[str, tuple[Callable[[Sides], dict[str, Any]], tuple[Any, ...]]] = {
    "a constraint of the dest": (
        fails("dest", f"ALTER TABLE public.t ADD CONSTRAINT {SECRET} CHECK (id > 1)"),
        ("dest", "23514", "CopyFailed"),
    ),
    "a trigger of the dest": (
        fails("dest", RAISES.format("", "")),
        ("dest", "ZZ123", "CopyFailed"),
    ),
    "a deferred trigger of the dest": (
        fails("dest", RAISES.format("CONSTRAINT", "DEFERRABLE INITIALLY DEFERRED")),
        ("dest", "ZZ123", "CopyFailed"),
    ),
    "a value of the source": (fails("source", VIEW), ("source", "22012", "CopyFailed")),
    "an empty source": (
        fails("source", "DELETE FROM public.t"),
        ("source", None, "TooEarly"),
    ),
    "nothing to copy": (
        lambda sides: {"day": "2017-01-01", "where": f"note <> '{SECRET}'", "fail_on_empty": True},
        ("source", None, "NothingToCopy"),
    ),
    "a table that was altered": (altered, ("dest", None, "PlanRefused")),
    "a slice that is busy": (busy, ("dest", None, "SliceBusy")),
}


@pytest.mark.parametrize(("prepare", "kind"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.one_of(5)
def test_a_failure_is_told_by_its_kind_alone(
    sides: Sides, prepare: Callable[[Sides], dict[str, Any]], kind: tuple[Any, ...]
) -> None:
    options = prepare(sides)
    with pytest.raises(CopypipeError) as caught:
        sides.copy(**{"day": DAY, **options})

    error = caught.value
    assert (error.side, error.sqlstate, type(error).__name__) == kind
    assert sides.attempts() == [(1, "failed", *kind)]
    (attempt,) = sides.told("attempt")
    assert attempt["began_at"] < attempt["ended_at"]
    attempt.pop("condition")  # which the user wrote
    assert SECRET not in json.dumps(attempt)
    assert sides.told() == []


LOCK = "LOCK TABLE copypipe.attempt IN ACCESS EXCLUSIVE MODE"


def test_a_failure_is_told_within_moments_or_not_at_all(sides: Sides) -> None:
    """Nobody waits for a note, however long other locks are waited for."""
    sides.make()
    other = sides.dest.connect(autocommit=False)

    def lock(event: Event) -> None:
        if isinstance(event, Cleared):
            other.execute(LOCK)

    began = time.monotonic()
    with pytest.raises(NothingToCopy):
        sides.copy(day="2017-01-01", fail_on_empty=True, listener=lock)
    took = time.monotonic() - began

    other.rollback()
    # Once over its own connection, once over another one.
    assert 2 <= took < 4
    assert sides.attempts("state") == [("running",)]


def test_a_copy_that_cannot_be_told_of_waits_as_for_another_run(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "LEAST_NOTE_SECONDS", 0.3)
    sides.make()
    other = sides.dest.connect(autocommit=False)
    other.execute(LOCK)

    began = time.monotonic()
    with pytest.raises(SliceBusy, match="the ledger is in use"):
        sides.copy(day=DAY, wait_lock=0)
    assert 0.3 < time.monotonic() - began < 5

    waiting = sides.start(day=DAY, wait_lock=20)
    time.sleep(1.2)  # longer than for a note
    assert not waiting.done()
    other.rollback()
    assert waiting.result(20).recorded
    assert sides.attempts("state") == [("copied",)]


def test_first_runs_that_begin_at_once_do_not_disturb_each_other(sides: Sides) -> None:
    """Both say by what the table is sliced, and the second one waits for the first one's word."""
    sides.make()
    oid = sides.dest.scalar("SELECT 'public.t'::regclass::oid")
    other = sides.dest.connect(autocommit=False)
    other.execute(
        "INSERT INTO copypipe.sliced_by (root_oid, dest_table, by_column)"
        " VALUES (%s, 'public.t', 'created_at')",
        [oid],
    )
    threading.Timer(0.3, other.commit).start()

    assert sides.copy(day=DAY, wait_lock=0).recorded


def test_a_copy_that_is_killed_leaves_its_attempt_running(sides: Sides, run: Command) -> None:
    """Nobody is left to tell of it; no session bears its run_id."""
    holder = pause(sides.dest, "public.t")
    process = run.start("copy", "t", "--day", DAY)
    eventually(lambda: waits_in_pause(sides.dest), what="the copy is held up")
    process.kill()
    process.process.wait()
    holder.close()
    no_backends(sides.source, sides.dest, seconds=20)

    assert sides.attempts() == [(1, "running", None, None, None)]
    assert sides.told() == []
    assert sides.copy(day=DAY).rows == 1
    assert [state for (state,) in sides.attempts("state")] == ["running", "copied"]


# --- a connection that is lost --------------------------------------------------------------------

LOST: dict[str, tuple[str, proxies.Rule]] = {
    "the source": ("source", proxies.cut_after(30)),
    "the source, reset": ("source", proxies.cut_after(30, "rst")),
    "the dest": ("dest", proxies.at_kind("client", b"d", "fin")),
    "the dest, reset": ("dest", proxies.at_kind("client", b"d", "rst")),
}


def once(rule: proxies.Rule) -> proxies.Rule:
    return lambda frame: rule(frame) if frame.link == 1 else None


@pytest.mark.parametrize(("side", "rule"), LOST.values(), ids=LOST.keys())
def test_a_lost_connection_is_told_by_the_next_try(
    sides: Sides, proxy: Callable[..., Proxy], side: str, rule: proxies.Rule
) -> None:
    between = proxy(getattr(sides, side).server, once(rule))
    dsn = {side: between.dsn(getattr(sides, side))}

    done = sides.copy(day=DAY, **dsn, retries=1, retry_delay=0)

    assert len(between.fired) == 1
    first = (1, "failed", side, None, "ConnectionLost")
    assert sides.attempts() == [first, (2, "copied", None, None, None)]
    assert done.attempt.number == 2
    assert [row["attempt_id"] for row in sides.told()] == [done.attempt.attempt_id]
    assert sides.attempts("run_id") == [(done.attempt.run_id,)] * 2


def test_a_commit_that_never_arrived_is_told_when_it_is_settled(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=False))

    with pytest.raises(ConnectionLost):
        sides.copy(day=DAY, dest=between.dsn(sides.dest))

    assert sides.attempts() == [(1, "failed", "dest", None, "ConnectionLost")]
    assert sides.told() == []


@pytest.mark.parametrize(("side", "rule"), LOST.values(), ids=LOST.keys())
def test_a_lost_connection_without_another_try_is_told_if_that_is_possible(
    sides: Sides, proxy: Callable[..., Proxy], side: str, rule: proxies.Rule
) -> None:
    between = proxy(getattr(sides, side).server, rule)
    with pytest.raises(ConnectionLost):
        sides.copy(day=DAY, **{side: between.dsn(getattr(sides, side))})
    no_backends(sides.source, sides.dest)

    failed = (1, "failed", side, None, "ConnectionLost")
    expected = [failed] if side == "source" else [(1, "running", None, None, None)]
    assert sides.attempts() in (expected, [failed])
    assert sides.told() == []
    assert sides.copy(day=DAY).rows == 1
    assert len(sides.told()) == 1
