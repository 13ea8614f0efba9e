"""A range slice by slice: what is done, what is left out, and who shares it."""

import threading
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

import copypipe
from copypipe import (
    Backfilled,
    ConnectionLost,
    CopyFailed,
    PlanRefused,
    UsageError,
    attempts,
    snapshots,
    transfers,
)
from copypipe.events import Advanced, Event, Warned
from copypipe.transfers import SnapshotLost
from plugins.command import Words, no_backends
from plugins.modes import Pair
from plugins.ways import Begun

T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"
RANGE: dict[str, Any] = {"start": "2018-04-01", "stop": "2018-04-11"}
DAYS = [date(2018, 4, day) for day in range(1, 11)]


@pytest.fixture(autouse=True)
def table(pair: Pair) -> None:
    """Ten days of 24 rows at the source, an index on either side, nothing at the dest."""
    pair.make(f"{T}; CREATE INDEX by_time ON public.t (created_at)")
    pair.source.execute(
        "INSERT INTO public.t SELECT n, 'row ' || n, '2018-04-01Z'::timestamptz + n * interval"
        " '1 hour' FROM generate_series(0, 239) AS n"
    )


def backfill(pair: Pair, **options: Any) -> Backfilled:
    sides = {"source": pair.source.dsn, "dest": pair.dest.dsn}
    chosen = {**sides, **RANGE, "retries": 0, "retry_delay": 0.01, "listener": pair.hear, **options}
    return copypipe.backfill("public.t", **chosen)


def days(done: Backfilled) -> list[date]:
    """Return the first days of what was copied, in the order in which that was done."""
    return [each.slice.start.date() for each in done.copied]


def is_equal(pair: Pair) -> bool:
    query = "SELECT * FROM public.t ORDER BY id"
    return pair.source.text(query) == pair.dest.text(query)


def test_every_day_is_copied_once(pair: Pair) -> None:
    done = backfill(pair)

    assert (done.table, done.slices, done.skipped, done.failed) == ("public.t", 10, 0, ())
    assert days(done) == DAYS
    assert is_equal(pair)
    assert [row["state"] for row in pair.told()] == ["sealed"] * 10


@pytest.mark.parametrize("jobs", [2, 4])
def test_several_at_a_time(pair: Pair, jobs: int) -> None:
    done = backfill(pair, jobs=jobs)

    assert sorted(days(done)) == DAYS
    assert is_equal(pair)
    no_backends(pair.source, pair.dest)


def test_the_newest_first(pair: Pair) -> None:
    assert days(backfill(pair, order="newest")) == DAYS[::-1]


SLICES = {
    "hours": ("hour", DAYS[1], 24),
    "weeks": ("week", RANGE["stop"], 3),  # from Sunday the 1st, from Monday the 2nd, from the 9th
    "months": ("month", RANGE["stop"], 1),
}


@pytest.mark.parametrize(("every", "stop", "parts"), SLICES.values(), ids=SLICES.keys())
def test_slices_of_other_lengths(pair: Pair, every: Any, stop: str, parts: int) -> None:
    done = backfill(pair, every=every, stop=stop, jobs=2)

    assert (done.slices, len(done.copied)) == (parts, parts)
    assert is_equal(pair) == (stop == RANGE["stop"])


def test_connections_are_kept_from_slice_to_slice(pair: Pair) -> None:
    seen: set[int] = set()

    def look(event: Event) -> None:
        pids = pair.dest.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'copypipe/%%'"
            " AND datname = current_database()"
        )
        seen.update(pid for (pid,) in pids)

    backfill(pair, listener=look)

    # The one that planned and the one that copied.
    assert len(seen) <= 2


# --- what is left out -----------------------------------------------------------------------------


def test_what_is_done_is_left_out(pair: Pair) -> None:
    backfill(pair, stop="2018-04-04")

    done = backfill(pair)

    assert (done.slices, done.skipped, days(done)) == (10, 3, DAYS[3:])
    again = backfill(pair)
    assert (again.skipped, again.copied) == (10, ())


def test_again_does_it_all(pair: Pair) -> None:
    backfill(pair)

    assert days(backfill(pair, again=True)) == DAYS


def test_halves_cover_a_whole_and_a_whole_its_halves(pair: Pair) -> None:
    for start, stop in (("01", "01T12:00"), ("01T12:00", "02")):
        pair.copy(start=f"2018-04-{start}", stop=f"2018-04-{stop}")
    pair.copy(start="2018-04-05", stop="2018-04-08")

    done = backfill(pair)

    assert days(done) == [*DAYS[1:4], *DAYS[7:]]


def test_a_part_does_not_cover_a_whole(pair: Pair) -> None:
    pair.copy(start="2018-04-01", stop="2018-04-01T23:59")

    assert days(backfill(pair)) == DAYS


UNCOVERED: dict[str, dict[str, Any]] = {
    "rows of a condition": {"day": "2018-04-02", "where": "id > 0"},
    "rows that were appended": {"day": "2018-04-02", "mode": "append"},
    "rows that were merged": {"day": "2018-04-02", "mode": "merge"},
}


@pytest.mark.parametrize("options", UNCOVERED.values(), ids=UNCOVERED.keys())
@pytest.mark.one_of(2)
def test_what_does_not_make_a_slice_equal_covers_nothing(
    pair: Pair, options: dict[str, Any]
) -> None:
    pair.copy(**options)

    assert days(backfill(pair)) == DAYS


OTHERWISE: dict[str, dict[str, Any]] = {
    "of a query": {"query": "SELECT * FROM public.t WHERE id % 10 = 0"},
    "without a column": {"exclude": ["note"]},
    "with a computed one": {"columns": {"note": "'x'"}},
}


@pytest.mark.parametrize("options", OTHERWISE.values(), ids=OTHERWISE.keys())
@pytest.mark.one_of(2)
def test_copies_of_another_kind_cover_nothing(pair: Pair, options: dict[str, Any]) -> None:
    backfill(pair, **options)

    assert days(backfill(pair)) == DAYS
    assert is_equal(pair)


def test_copies_from_another_source_cover_nothing(pair: Pair) -> None:
    """From another table, whose rows are others."""
    pair.source.execute(
        "CREATE TABLE public.other (LIKE public.t INCLUDING ALL);"
        "INSERT INTO public.other SELECT id, 'other', created_at FROM public.t"
    )
    sides = {"source": pair.source.dsn, "dest": pair.dest.dsn}
    copypipe.backfill("public.other", into="public.t", **sides, **RANGE)

    assert days(backfill(pair)) == DAYS
    assert is_equal(pair)


def test_what_removes_rows_otherwise_uncovers(pair: Pair) -> None:
    backfill(pair)
    pair.copy(all=True, yes=True)
    assert backfill(pair).skipped == 10, "all that is there is the source's"

    pair.copy(all=True, yes=True, query="SELECT * FROM public.t WHERE id % 10 = 0")

    assert days(backfill(pair)) == DAYS
    assert is_equal(pair)


# By what a row is copied that belongs there at the dest, and at the source not any more.
MOVED: dict[str, dict[str, Any]] = {
    "by another column": {"by": "paid_at", "day": "2018-05-02"},
    "of a condition": {"where": "note LIKE 'r%'"},
    "of a condition within a day": {"where": "note LIKE 'r%'", "day": "2018-04-01"},
}


@pytest.mark.parametrize("options", MOVED.values(), ids=MOVED.keys())
@pytest.mark.one_of(2)
def test_a_row_that_left_another_slice_uncovers_its_own(
    pair: Pair, options: dict[str, Any]
) -> None:
    pair.make("ALTER TABLE public.t ADD paid_at timestamptz DEFAULT '2018-05-02 10:00Z'")
    backfill(pair)
    pair.source.execute("UPDATE public.t SET paid_at = '2018-05-09', note = 'x' WHERE id = 1")
    pair.copy(**options)
    assert not pair.dest.scalar("SELECT count(*) FROM public.t WHERE id = 1")

    done = backfill(pair)

    assert days(done) == (DAYS[:1] if "day" in options and "where" in options else DAYS)
    assert is_equal(pair)


def test_what_touched_no_row_uncovers_nothing(pair: Pair) -> None:
    backfill(pair)
    pair.copy(where="id < 0")

    assert backfill(pair).skipped == 10


def test_what_undid_a_slice_is_kept_while_that_is(pair: Pair, words: Words) -> None:
    """Pruning must not bring it back: what was only compared since takes nobody's place."""
    other = "CREATE TABLE public.u (LIKE public.t INCLUDING ALL); INSERT INTO public.u"
    pair.source.execute(f"{other} SELECT id, 'other', created_at FROM public.t")
    backfill(pair)
    pair.copy(table="public.u", into="public.t", day="2018-04-03")
    pair.verify(table="public.u", into="public.t", day="2018-04-03", record=True)
    pair.dest.execute("UPDATE copypipe.slice SET recorded_at = recorded_at - interval '1 day'")

    assert words("clean", "--older-than", "1h", "--yes").code == 0

    assert days(backfill(pair)) == [DAYS[2]]
    assert is_equal(pair)


def test_a_mistake_in_the_year_is_told_at_once(pair: Pair) -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match="more than 100000 slices"):
        backfill(pair, start="0218-04-01")
    assert time.monotonic() - began < 3


def test_a_snapshot_that_is_lost_leaves_what_is_done(
    pair: Pair, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = transfers.begin_with, 0

    def lost(*args: Any, **more: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > 3:
            raise SnapshotLost("source: the snapshot of the run is gone", side="source")
        real(*args, **more)

    monkeypatch.setattr(transfers, "begin_with", lost)

    run = words(
        *("backfill", "public.t", "--from", RANGE["start"], "--to", RANGE["stop"], "--snapshot")
    )

    assert run.code == 3
    assert "the snapshot of the run is gone" in run.err
    assert run.out.splitlines()[-1].startswith("public.t: 10 slices, 3 copied, 7 not begun")


def test_a_partition_does_not_cover_the_table(pair: Pair) -> None:
    """And the table covers its partitions."""
    pair.make(
        "DROP TABLE public.t; CREATE TABLE public.t (id int, country text, created_at timestamptz)"
        " PARTITION BY LIST (country);"
        "CREATE TABLE public.t_de PARTITION OF public.t FOR VALUES IN ('de');"
        "CREATE TABLE public.t_fr PARTITION OF public.t FOR VALUES IN ('fr')"
    )
    pair.source.execute(
        "INSERT INTO public.t SELECT n, CASE WHEN n % 2 = 0 THEN 'de' ELSE 'fr' END,"
        " '2018-04-01Z'::timestamptz + n * interval '1 hour' FROM generate_series(0, 239) AS n"
    )
    sides = {"source": pair.source.dsn, "dest": pair.dest.dsn}
    copypipe.backfill("public.t_de", **sides, **RANGE)

    assert days(backfill(pair)) == DAYS
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 240


def test_a_merge_that_deletes_makes_it_equal(pair: Pair) -> None:
    pair.copy(day="2018-04-02", mode="merge", merge_deletes=True)

    assert days(backfill(pair)) == [DAYS[0], *DAYS[2:]]


def test_what_was_appended_is_not_appended_again(pair: Pair) -> None:
    pair.copy(day="2018-04-02", mode="append")

    done = backfill(pair, mode="append")

    assert days(done) == [DAYS[0], *DAYS[2:]]
    assert is_equal(pair)


def test_an_open_slice_is_done_again(pair: Pair) -> None:
    """Also one that was sealed before: whoever copied it again found it open."""
    backfill(pair)
    pair.dest.execute(
        "INSERT INTO copypipe.slice SELECT (jsonb_populate_record(s, jsonb_build_object('id',"
        " s.id + 1000, 'attempt_id', gen_random_uuid(), 'state', 'open'))).* FROM copypipe.slice s"
        " ORDER BY id LIMIT 2".replace(
            "INSERT INTO copypipe.slice", "INSERT INTO copypipe.slice OVERRIDING SYSTEM VALUE"
        )
    )

    assert days(backfill(pair)) == DAYS[:2]


LOST = {
    "truncated": "TRUNCATE public.t",
    "a day is gone": "DELETE FROM public.t WHERE created_at < '2018-04-02Z'",
}


@pytest.mark.parametrize("lost", LOST)
def test_rows_that_are_gone_are_brought_back(pair: Pair, lost: str) -> None:
    backfill(pair)
    pair.dest.execute(LOST[lost])

    done = backfill(pair)

    assert days(done) == (DAYS if lost == "truncated" else DAYS[:1])
    assert is_equal(pair)


def test_without_an_index_an_empty_table_is_filled_again(pair: Pair) -> None:
    pair.dest.execute("DROP INDEX public.by_time")
    backfill(pair)
    pair.dest.execute("TRUNCATE public.t")

    assert days(backfill(pair)) == DAYS


def test_a_day_without_rows_is_done(pair: Pair) -> None:
    pair.source.execute("DELETE FROM public.t WHERE created_at < '2018-04-02Z'")

    assert len(backfill(pair).copied) == 10
    assert backfill(pair).skipped == 10


def test_a_day_without_rows_in_a_month_that_had_some_is_done(pair: Pair) -> None:
    pair.source.execute("DELETE FROM public.t WHERE created_at < '2018-04-02Z'")
    pair.copy(**RANGE)

    assert backfill(pair).skipped == 10
    pair.source.execute(
        "INSERT INTO public.t VALUES (999, 'late', '2018-04-01 10:00Z')"
    )  # which nobody can tell from one that was lost
    assert days(backfill(pair)) == DAYS[:1]


# --- what fails -----------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 50)")

    done = backfill(pair, jobs=2)

    ((failed),) = done.failed
    assert failed.slice.days == (date(2018, 4, 3), date(2018, 4, 4))
    assert isinstance(failed.error, CopyFailed)
    assert failed.error.sqlstate == "23514"
    assert sorted(days(done)) == [*DAYS[:2], *DAYS[3:]]
    pair.dest.execute("ALTER TABLE public.t DROP CONSTRAINT t_id_check")
    assert days(backfill(pair)) == [DAYS[2]]
    assert is_equal(pair)


def test_fail_fast_begins_no_further_one(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 50)")

    done = backfill(pair, fail_fast=True)

    assert (days(done), len(done.failed)) == (DAYS[:2], 1)


def test_fail_fast_lets_those_under_way_end(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 50)")
    failed = threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, Advanced) and event.failed:
            failed.set()

    done = backfill(pair, fail_fast=True, jobs=3, listener=hold)

    assert failed.is_set()
    assert len(done.failed) == 1
    assert len(done.copied) < 9
    running = "SELECT count(*) FROM copypipe.attempt WHERE state = 'running'"
    assert pair.dest.scalar(running) == 0


def test_a_slice_that_takes_too_long_is_halved(pair: Pair) -> None:
    """A row takes 10 ms, a statement may take a fifth of a second: 24 rows do not fit, 12 do."""
    pair.source.execute(
        "CREATE FUNCTION public.slow(note text) RETURNS text LANGUAGE sql VOLATILE"
        " AS 'SELECT $1 FROM pg_sleep(0.01)'"
    )
    options: dict[str, Any] = {
        "columns": {"note": "public.slow(note)"},
        "source_set": {"statement_timeout": "200ms"},
        "stop": "2018-04-03",
    }

    assert len(backfill(pair, **options).failed) == 2
    done = backfill(pair, **options, min_slice=timedelta(hours=3))

    assert done.failed == ()
    lengths = {each.slice.stop - each.slice.start for each in done.copied}
    assert lengths <= {timedelta(hours=12), timedelta(hours=6)}
    assert backfill(pair, **{**options, "source_set": {}}).skipped == 2


def test_halves_are_not_shorter_than_allowed(pair: Pair) -> None:
    done = backfill(
        pair,
        stop="2018-04-02",
        columns={"note": "note || pg_sleep(0.05)::text"},
        source_set={"statement_timeout": "40ms"},
        min_slice=timedelta(hours=12),
    )

    assert [each.slice.stop - each.slice.start for each in done.failed] == [timedelta(hours=12)] * 2


# --- who shares it --------------------------------------------------------------------------------


def test_several_runs_share_a_range(pair: Pair) -> None:
    runs = [Begun(lambda: backfill(pair, every="hour", stop="2018-04-04")) for _ in range(3)]
    done = [run.result() for run in runs]

    assert sum(len(each.copied) for each in done) == 72
    assert all(len(each.copied) + each.skipped == 72 and not each.failed for each in done)
    assert len(pair.told()) == 72
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 72


def test_nobody_waits_while_others_are_to_do(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run holds the first day to the end of the other run's own slices."""
    held, others_done = threading.Event(), threading.Event()
    transfer = attempts.transfers.commit

    def commit(*words: Any) -> None:
        if threading.current_thread() is holder:
            held.set()
            assert others_done.wait(20)
        transfer(*words)

    monkeypatch.setattr(attempts.transfers, "commit", commit)
    found: list[Backfilled] = []
    holder = threading.Thread(target=lambda: pair.copy(day="2018-04-01"))
    holder.start()
    assert held.wait(20)

    def hear(event: Event) -> None:
        if pair.dest.scalar("SELECT count(*) FROM public.t") == 216:
            others_done.set()

    def look() -> None:
        while not others_done.wait(0.05):
            hear(Event)  # type: ignore[arg-type]

    looking = threading.Thread(target=look)
    looking.start()
    found.append(backfill(pair))
    holder.join()
    looking.join()

    assert (days(found[0]), found[0].skipped) == (DAYS[1:], 1)
    assert is_equal(pair)


# --- bad input ------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an empty range": ({"stop": "2018-04-01"}, UsageError, "the range is empty"),
    "a reversed range": ({"stop": "2018-03-01"}, UsageError, "the range is empty"),
    "too many slices": (
        {"stop": "2050-01-01", "every": "hour"},
        UsageError,
        "more than 100000 slices",
    ),
    "no such column": ({"by": "updated_at"}, PlanRefused, 'no column "updated_at" to slice by'),
    "no such table": ({"into": "public.nowhere"}, PlanRefused, "no table public.nowhere"),
    "hours between instants": (
        {
            "start": datetime(2018, 4, 1, tzinfo=UTC),
            "stop": datetime(2018, 4, 2, tzinfo=UTC),
        },
        UsageError,
        "a range between instants has no days of its own",
    ),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_changes_nothing(
    pair: Pair, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        backfill(pair, **options)

    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 0
    assert pair.dest.scalar("SELECT to_regclass('copypipe.slice') IS NULL")


def test_a_role_that_may_not_use_the_ledger(pair: Pair, request: pytest.FixtureRequest) -> None:
    loader = pair.dest.role(
        "loader", "USAGE ON SCHEMA public", "SELECT, INSERT, DELETE ON public.t"
    )

    with pytest.raises(PlanRefused, match="nothing can tell which slices are done"):
        backfill(pair, dest=loader.dsn)


# --- one snapshot ---------------------------------------------------------------------------------

MOVES = "UPDATE public.t SET created_at = '2018-04-01 12:30Z' WHERE id = 230"


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_row_that_moves_between_slices_during_the_run(pair: Pair, snapshot: bool) -> None:
    """From the last day to the first, when that one is done: without one snapshot it is in none."""

    def move(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 1:
            pair.source.execute(MOVES)

    done = backfill(pair, snapshot=snapshot, listener=move)

    assert done.failed == ()
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == (240 if snapshot else 239)
    assert [row["state"] for row in pair.told()] == ["sealed"] * 10


def test_who_comes_too_late_takes_no_other_snapshot(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's transaction ends in the middle, as that of a server that was restarted."""
    monkeypatch.setattr(snapshots, "HEARTBEAT_SECONDS", 600.0)

    def end(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 3:
            pair.source.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                " current_database() AND state = 'idle in transaction'"
            )

    with pytest.raises(CopyFailed, match="source: the snapshot of the run is gone"):
        backfill(pair, snapshot=True, listener=end)

    assert [row["state"] for row in pair.told()] == ["sealed"] * 3
    assert days(backfill(pair, snapshot=True)) == DAYS[3:]
    assert is_equal(pair)


def test_a_leader_that_died_ends_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "HEARTBEAT_SECONDS", 0.1)

    def end(event: Event) -> None:
        if isinstance(event, Advanced) and event.done == 1:
            pair.source.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                " current_database() AND state = 'idle in transaction'"
            )
            time.sleep(0.5)

    with pytest.raises(ConnectionLost):
        backfill(pair, snapshot=True, listener=end)

    assert len(pair.told()) < 10
    backfill(pair)
    assert is_equal(pair)


def test_without_a_standby_nothing_is_waited_for_and_that_is_told(pair: Pair) -> None:
    done = backfill(pair, max_replica_lag=0.001)

    assert days(done) == DAYS
    assert "no standby of either side can be seen" in " ".join(
        each.text for each in pair.all_of(Warned)
    )
