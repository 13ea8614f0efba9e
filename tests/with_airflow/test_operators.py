"""What a task does on two real servers; without Airflow's database."""

import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.execution_time.timeout import timeout

from copypipe import (
    CommitUnknown,
    ConnectionLost,
    NothingToCopy,
    SliceBusy,
    TooEarly,
    TransientError,
)
from copypipe.airflow import CopyPipeOperator, VerifyOperator, missing_days
from copypipe.servers import Session
from plugins.command import add_users, eventually, no_backends, pause, users, waits_in_pause
from plugins.databases import Database
from plugins.tries import raising

DAY, ROWS = "2018-04-28", 24
SIDES = {"source_conn_id": "shop", "dest_conn_id": "dwh"}
DAILY = {
    "data_interval_start": datetime(2018, 4, 28, tzinfo=UTC),
    "data_interval_end": datetime(2018, 4, 29, tzinfo=UTC),
}

pytestmark = pytest.mark.usefixtures("connections")


@pytest.fixture(autouse=True)
def tables(source: Database, dest: Database) -> None:
    users(source)
    users(dest, 0)


def copying(**options: Any) -> CopyPipeOperator:
    return CopyPipeOperator(**{"task_id": "copy", "table": "public.users", **SIDES, **options})


def verifying(**options: Any) -> VerifyOperator:
    return VerifyOperator(**{"task_id": "verify", "table": "public.users", **SIDES, **options})


def days_of(database: Database) -> list[tuple[str, int]]:
    return database.fetch(
        "SELECT (created_at AT TIME ZONE 'UTC')::date::text, count(*) FROM public.users"
        " GROUP BY 1 ORDER BY 1"
    )


# ------------------------------------------------------------------------------------- it copies


def test_the_day_of_the_interval_is_copied(source: Database, dest: Database) -> None:
    found = copying(verify="checksum").execute(DAILY)

    assert days_of(dest) == [(DAY, ROWS)]
    assert (found["rows"], found["dest_table"], found["mode"]) == (ROWS, "public.users", "replace")
    assert found["slice"]["first_day"] == DAY
    assert found["slice"]["start"] == "2018-04-28T00:00:00+00:00"
    assert found["digest"]
    assert dest.scalar("SELECT count(*) FROM copypipe.slice") == 1
    no_backends(source, dest)


def test_a_second_run_leaves_the_same(dest: Database) -> None:
    copying().execute(DAILY)
    digest = dest.digest("public.users", "id")

    assert copying().execute(DAILY)["deleted"] == ROWS
    assert dest.digest("public.users", "id") == digest


def test_what_is_done_is_skipped_where_that_is_asked_for(
    dest: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    copying(mode="append").execute(DAILY)

    found = copying(mode="append", skip_done="true").execute(DAILY)

    assert found["type"] == "skipped"
    assert "public.users [2018-04-28, 2018-04-29) UTC is done already" in capsys.readouterr().out
    assert found["slice"]["first_day"] == DAY
    assert days_of(dest) == [(DAY, ROWS)]


def test_every_kind_of_option_reaches_the_engine(source: Database, dest: Database) -> None:
    dest.execute("ALTER TABLE public.users RENAME TO people")

    found = copying(
        into="public.people",
        where="id % 2 = 0",
        columns={"email": "md5(email)"},
        exclude=["tags"],
        rate_limit="1MB",
        dest_set={"work_mem": "5MB"},
        wait_lock="1min",
    ).execute(DAILY)

    assert found["rows"] == ROWS // 2
    assert found["slice"]["where"] == "id % 2 = 0"
    assert dest.scalar("SELECT count(*) FROM public.people WHERE tags IS NULL") == ROWS // 2
    hashed = dest.fetch("SELECT id, email FROM public.people ORDER BY id")
    assert hashed == source.fetch(
        "SELECT id, md5(email) FROM public.users WHERE id % 2 = 0"
        " AND created_at >= '2018-04-28Z' AND created_at < '2018-04-29Z' ORDER BY id"
    )


def test_connections_are_those_of_the_hook(
    source: Database, dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, secrets backends and extras are the hook's matter; each connection asks it."""
    asked = []
    connect = PostgresHook.get_conn

    def get_conn(hook: PostgresHook) -> Any:
        asked.append(hook.get_conn_id())
        return connect(hook)

    monkeypatch.setattr(PostgresHook, "get_conn", get_conn)

    copying().execute(DAILY)

    assert asked == ["shop", "dwh"]


def test_a_cursor_class_among_the_extras_does_not_matter(
    source: Database, named: Callable[..., None]
) -> None:
    named("shop", source, cursor="dictcursor")

    assert copying().execute(DAILY)["rows"] == ROWS


def test_a_driver_of_another_age_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Psycopg2:
        def close(self) -> None:
            """Be closed."""

    monkeypatch.setattr(PostgresHook, "get_conn", lambda hook: Psycopg2())

    with pytest.raises(AirflowFailException, match=r"psycopg 3: Airflow 3\.2, its"):
        copying().execute(DAILY)


def test_an_unknown_connection_is_airflows_error() -> None:
    with pytest.raises(AirflowException, match="nowhere") as caught:
        copying(source_conn_id="nowhere").execute(DAILY)
    assert not isinstance(caught.value, AirflowFailException)


def test_the_log_tells_how_it_went(capsys: pytest.CaptureFixture[str], dest: Database) -> None:
    dest.execute("ALTER TABLE public.users SET UNLOGGED")
    copying().execute(DAILY)

    told = capsys.readouterr().out
    assert re.search(r"\[info +\] from \S+ into ", told)
    assert re.search(rf"\[info +\] public.users .*{ROWS} rows.*copied {ROWS}", told)
    assert re.search(r"\[warning +\] .*unlogged", told)


def test_the_log_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypipe.reporting.LOG_SECONDS", 0.1)
    holder = pause(dest)
    threading.Timer(1.0, holder.close).start()
    copying().execute(DAILY)

    assert re.search(r"2018-04-29\) UTC: copying, .*/s", capsys.readouterr().out)


# ------------------------------------------------------------- what Airflow is told of a failure


Prepare = Callable[[Database, Database], object]


def _nothing(source: Database, dest: Database) -> None:
    """Prepare nothing."""


def _none_yet(source: Database, dest: Database) -> None:
    source.execute("TRUNCATE public.users")
    add_users(dest, first=DAY)


def _few(source: Database, dest: Database) -> None:
    source.execute("DELETE FROM public.users WHERE id % 10 <> 0")
    add_users(dest, first=DAY)


PASSING: dict[str, tuple[type[Exception], Prepare, dict[str, Any]]] = {
    "deadlock": (TransientError, lambda source, dest: raising(dest, "40P01", 1), {}),
    "lost": (ConnectionLost, lambda source, dest: raising(dest, "57P01", 1), {}),
    "too early": (TooEarly, _none_yet, {}),
    "too few": (TooEarly, _few, {"min_ratio": "0.5"}),
    "empty": (NothingToCopy, _nothing, {"day": "2001-01-01", "fail_on_empty": True}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_airflows_to_try_again(source: Database, dest: Database, name: str) -> None:
    error, prepare, options = PASSING[name]
    prepare(source, dest)
    before = dest.fetch("SELECT id FROM public.users ORDER BY id")

    with pytest.raises(error) as caught:
        copying(**options).execute(DAILY)

    assert not isinstance(caught.value, AirflowException)
    assert dest.fetch("SELECT id FROM public.users ORDER BY id") == before
    no_backends(source, dest)


def test_a_slice_that_another_run_has_is_airflows_to_try_again(dest: Database) -> None:
    """A broker delivers a task twice, say."""
    holder = pause(dest)
    first = threading.Thread(target=lambda: copying().execute(DAILY))
    first.start()
    eventually(lambda: waits_in_pause(dest))

    with pytest.raises(SliceBusy):
        copying(wait_lock="100ms").execute(DAILY)

    holder.close()
    first.join()
    assert days_of(dest) == [(DAY, ROWS)]


LASTING: dict[str, tuple[str, Prepare, dict[str, Any]]] = {
    "no table": ("there is no table", _nothing, {"table": "public.nothing"}),
    "a value": ("22012", lambda source, dest: raising(dest, "22012", 9), {}),
    "types": ("notes", lambda s, d: s.execute("ALTER TABLE users ADD notes text"), {}),
    "recorded": ("ledger", lambda s, d: copying(mode="append").execute(DAILY), {"mode": "append"}),
    "all": ("all rows of public.users would be replaced", lambda s, d: add_users(d), {"all": True}),
    "an option": ("no such way to copy", _nothing, {"mode": "insert"}),
    "no interval": ("CronDataIntervalTimetable", _nothing, {"interval": "empty"}),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_no_retry_can_mend_fails_for_good(source: Database, dest: Database, name: str) -> None:
    text, prepare, options = LASTING[name]
    prepare(source, dest)
    before = dest.fetch("SELECT id FROM public.users ORDER BY id")
    context = dict(DAILY)
    if options.get("interval"):
        context["data_interval_start"], options = context["data_interval_end"], {}

    with pytest.raises(AirflowFailException) as caught:
        copying(**options).execute(context)

    assert text in str(caught.value)
    assert dest.fetch("SELECT id FROM public.users ORDER BY id") == before
    no_backends(source, dest)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({}, True),
        ({"mode": "merge"}, True),
        ({"mode": "append"}, True),
        ({"mode": "append", "ledger": False}, False),
        ({"mode": "append", "again": "true"}, False),
    ],
)
def test_an_unknown_commit_is_tried_again_where_that_is_safe(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    again: bool,
) -> None:
    def unknown(*args: Any) -> None:
        raise CommitUnknown("dest: the connection was lost while COMMIT was under way")

    monkeypatch.setattr("copypipe.attempts.copy_part", unknown)

    with pytest.raises(CommitUnknown if again else AirflowFailException):
        copying(**options).execute(DAILY)


def test_tries_within_the_task_are_an_option(dest: Database) -> None:
    raising(dest, "40P01", 2)

    found = copying(copy_retries=2, copy_retry_delay="10ms").execute(DAILY)

    assert found["tries"] == 3


def test_no_password_is_logged(
    capsys: pytest.CaptureFixture[str], no_canary: Callable[[str | bytes], None]
) -> None:
    with pytest.raises(AirflowFailException) as caught:
        copying(table="public.nothing").execute(DAILY)
    no_canary(capsys.readouterr().out + str(caught.value))


# --------------------------------------------------------------------------------------- it ends


def _execute_and(end: Callable[[CopyPipeOperator], None], when: Callable[[], bool]) -> Exception:
    """Execute a copy in this thread, and end it in another as soon as `when` is true."""
    task = copying()
    left: list[float] = []

    def other() -> None:
        eventually(when)
        left.append(time.monotonic())
        end(task)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with pytest.raises(AirflowException) as caught:
            task.execute(DAILY)
        assert time.monotonic() - left[0] < 2, "a signal brings back the prompt within two seconds"
    finally:
        thread.join()
    return caught.value


def test_on_kill_stops_both_sides_and_rolls_back(source: Database, dest: Database) -> None:
    add_users(dest, first=DAY, offset=9)
    before = dest.digest("public.users", "id")
    holder = pause(dest)

    error = _execute_and(lambda task: task.on_kill(), lambda: waits_in_pause(dest))

    assert "what was under way is rolled back" in str(error)
    assert not isinstance(error, AirflowFailException), "a worker that is evicted may try again"
    no_backends(source, dest, seconds=2)
    holder.close()
    assert dest.digest("public.users", "id") == before


def test_on_kill_ends_a_pause_between_tries(dest: Database) -> None:
    raising(dest, "40P01", 5)
    task = copying(copy_retries=5, copy_retry_delay=60)
    timer = threading.Timer(1.0, task.on_kill)
    timer.start()
    began = time.monotonic()

    with pytest.raises(AirflowException, match="ended by on_kill"):
        task.execute(DAILY)

    assert time.monotonic() - began < 10


def test_on_kill_while_committing_waits_for_the_outcome(
    dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = copying()
    commit = Session.commit

    def killed(session: Session) -> None:
        task.on_kill()
        commit(session)

    monkeypatch.setattr(Session, "commit", killed)

    assert task.execute(DAILY)["rows"] == ROWS
    assert days_of(dest) == [(DAY, ROWS)]


def test_on_kill_before_it_begins_is_remembered(dest: Database) -> None:
    task = copying()
    task.on_kill()

    with pytest.raises(AirflowException, match="ended by on_kill"):
        task.execute(DAILY)
    assert days_of(dest) == []


def test_on_kill_afterwards_means_nothing(dest: Database) -> None:
    """Airflow calls it behind a timeout, and may run the same object again."""
    task = copying()
    task.execute(DAILY)
    task.on_kill()
    task.execute(DAILY)

    assert days_of(dest) == [(DAY, ROWS)]


def test_a_task_that_takes_too_long_rolls_back(source: Database, dest: Database) -> None:
    holder = pause(dest)
    task = copying()

    with pytest.raises(AirflowTaskTimeout), timeout(1.0):
        task.execute(DAILY)
    task.on_kill()  # as Airflow does then

    no_backends(source, dest, seconds=2)
    holder.close()
    assert days_of(dest) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [({}, AirflowTaskTimeout), ({"mode": "append", "ledger": False}, AirflowFailException)],
)
def test_a_timeout_in_the_middle_of_commit_is_not_tried_again_where_that_adds_rows_twice(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[BaseException]
) -> None:
    def commit(session: Any) -> None:
        raise AirflowTaskTimeout

    monkeypatch.setattr("copypipe.servers.Session.commit", commit)

    with pytest.raises(error):
        copying(**options).execute(DAILY)


@pytest.mark.parametrize(
    ("options", "error"),
    [({}, AirflowTaskTimeout), ({"mode": "append", "again": True}, AirflowFailException)],
)
def test_a_timeout_behind_commit_is_not_tried_again_where_that_adds_rows_twice(
    dest: Database,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[BaseException],
) -> None:
    def late(done: Any) -> str:
        raise AirflowTaskTimeout

    monkeypatch.setattr("copypipe.reporting.result_line", late)

    with pytest.raises(error):
        copying(**options).execute(DAILY)
    assert days_of(dest) == [(DAY, ROWS)]


def test_on_kill_of_which_nobody_knows_says_so(
    dest: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ledger a COMMIT without an answer is made again."""
    task = copying(ledger=False, copy_retries=3, copy_retry_delay=60)

    def lost(session: Session) -> None:
        threading.Timer(0.5, task.on_kill).start()
        raise CommitUnknown("dest: the connection was lost while COMMIT was under way")

    monkeypatch.setattr(Session, "commit", lost)

    with pytest.raises(AirflowException, match="nobody knows whether the slice was committed"):
        task.execute(DAILY)


def test_on_kill_ends_a_verification(source: Database, dest: Database) -> None:
    copying(start=DAY, stop="2018-05-01").execute({})
    # What the digest calls waits for a lock on the table.
    holder = dest.connect(autocommit=False)
    task = verifying(start=DAY, stop="2018-05-01")
    holder.execute("LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE")
    timer = threading.Timer(0.5, task.on_kill)
    timer.start()

    with pytest.raises(AirflowException, match="ended by on_kill"):
        task.execute({})

    no_backends(source, dest, seconds=3)


# -------------------------------------------------------------------------------------- lineage


def test_an_asset_is_told_what_was_copied() -> None:
    asset = Asset("postgres://dwh.example:5432/dwh/public/users")
    events = OutletEventAccessors()

    copying(outlets=[asset]).execute({**DAILY, "outlet_events": events})

    extra = events[asset].extra
    assert (extra["rows"], extra["mode"]) == (ROWS, "replace")
    assert extra["slice"]["first_day"] == DAY


def test_an_alias_gets_the_table_of_the_dest(dest: Database) -> None:
    alias = AssetAlias("users")
    events = OutletEventAccessors()

    copying(outlets=[alias]).execute({**DAILY, "outlet_events": events})

    (event,) = events[alias].asset_alias_events
    server = dest.server
    uri = f"postgres://{server.host}:{server.port}/{dest.name}/public/users"
    assert event.dest_asset_key.uri == uri
    assert event.extra["rows"] == ROWS


def test_a_name_of_any_letters_is_part_of_an_asset(source: Database, dest: Database) -> None:
    for database in (source, dest):
        database.execute('ALTER TABLE public.users RENAME TO "of / all"')
    alias, events = AssetAlias("users"), OutletEventAccessors()

    copying(table='public."of / all"', outlets=[alias]).execute({**DAILY, "outlet_events": events})

    (event,) = events[alias].asset_alias_events
    assert event.dest_asset_key.uri.endswith("/public/of%20%2F%20all")


def test_an_asset_that_cannot_be_told_does_not_fail_what_is_committed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**parts: Any) -> Asset:
        raise ValueError("no such URI")

    monkeypatch.setattr("copypipe.airflow.create_asset", refuse)
    events = OutletEventAccessors()

    found = copying(outlets=[AssetAlias("users")]).execute({**DAILY, "outlet_events": events})

    assert found["rows"] == ROWS
    assert "no such URI" in capsys.readouterr().out


def test_openlineage_is_told_both_tables_and_what_went_over(
    source: Database, dest: Database
) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    task = copying()
    before = task.get_openlineage_facets_on_complete(None)
    found = task.execute(DAILY)

    told = task.get_openlineage_facets_on_complete(None)

    assert not before.outputs
    (read,), (written,) = told.inputs, told.outputs
    assert read.namespace == f"postgres://{source.server.host}:{source.server.port}"
    assert read.name == f"{source.name}.public.users"
    assert written.name == f"{dest.name}.public.users"
    statistics = written.outputFacets["outputStatistics"]
    assert (statistics.rowCount, statistics.size) == (ROWS, found["bytes"])


# ---------------------------------------------------------------------------------- verification


def test_a_verification_counts_what_it_found() -> None:
    copying(start=DAY, stop="2018-05-01").execute({})

    found = verifying(start=DAY, stop="2018-05-01").execute({})

    assert found == {"slices": 3, "verdicts": {"same": 3}, "different": []}
    assert verifying().execute(DAILY)["verdicts"] == {"same": 1}


def test_a_difference_fails_for_good(dest: Database, capsys: pytest.CaptureFixture[str]) -> None:
    copying(start=DAY, stop="2018-05-01").execute({})
    dest.execute("UPDATE public.users SET name = 'secretly' WHERE id = 1000003")

    with pytest.raises(AirflowFailException, match=r"1 of 3 slices differ(.|\n)*2018-04-29"):
        verifying(start=DAY, stop="2018-05-01").execute({})
    assert "1000003" not in capsys.readouterr().out, "keys are rows' data"

    found = verifying(start=DAY, stop="2018-05-01", fail_on_difference=False).execute({})
    assert found["verdicts"] == {"same": 2, "differs": 1}
    assert found["different"] == ["[2018-04-29, 2018-04-30) UTC"]


@pytest.mark.parametrize("options", [{"show_keys": True}, {"show_rows": True}])
def test_the_rows_that_differ_are_shown_on_request(
    dest: Database, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    copying().execute(DAILY)
    dest.execute("UPDATE public.users SET name = 'secretly' WHERE id = 3")

    with pytest.raises(AirflowFailException):
        verifying(**options).execute(DAILY)

    told = capsys.readouterr().out
    assert "id=3" in told
    assert ("secretly" in told) == ("show_rows" in options)


@pytest.mark.parametrize("repair", ["slices", "rows"])
def test_a_difference_is_repaired_on_request(source: Database, dest: Database, repair: str) -> None:
    copying().execute(DAILY)
    dest.execute("DELETE FROM public.users WHERE id = 3")

    assert verifying(repair=repair).execute(DAILY)["verdicts"] == {"same": 1}
    assert days_of(dest) == [(DAY, ROWS)]


def test_a_verification_that_cannot_tell_is_an_error(dest: Database) -> None:
    with pytest.raises(AirflowFailException, match="there is no table"):
        verifying(table="public.nothing").execute(DAILY)
    with pytest.raises(AirflowFailException, match="no such repair"):
        verifying(repair="all").execute(DAILY)


@pytest.mark.parametrize(
    ("code", "error"), [("40P01", TransientError), ("22012", AirflowFailException)]
)
def test_slices_of_which_nothing_can_be_told_are_an_error(
    source: Database, code: str, error: type[Exception]
) -> None:
    """Rows of one day cannot be read at the source."""
    copying(start=DAY, stop="2018-05-01").execute({})
    source.execute(
        "ALTER TABLE public.users RENAME TO kept;"
        "CREATE FUNCTION public.fail() RETURNS text LANGUAGE plpgsql AS $$"
        f" BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$;"
        "CREATE VIEW public.users AS SELECT id,"
        " CASE WHEN id < 1000000 THEN public.fail() ELSE name END AS name,"
        " email, active, balance, created_at, profile, tags FROM public.kept"
    )

    with pytest.raises(error, match=code):
        verifying(start=DAY, stop="2018-05-01").execute({})


@pytest.mark.parametrize(
    ("code", "error"), [("40P01", TransientError), ("22012", AirflowFailException)]
)
def test_a_repair_that_fails_is_told_by_its_own_error(
    dest: Database, capsys: pytest.CaptureFixture[str], code: str, error: type[Exception]
) -> None:
    copying().execute(DAILY)
    dest.execute("DELETE FROM public.users WHERE id = 3")
    raising(dest, code, 9)

    with pytest.raises(error, match=code):
        verifying(repair="slices").execute(DAILY)
    assert "could not be repaired" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- missing days


def missing(**options: Any) -> list[str]:
    return missing_days(
        "public.users", **{**SIDES, "start": "2018-04-25", "stop": "2018-05-05", **options}
    )


def test_days_that_the_ledger_lacks_are_missing(source: Database, dest: Database) -> None:
    assert missing() == ["2018-04-28", "2018-04-29", "2018-04-30"]

    copying(day="2018-04-29").execute({})

    assert missing() == missing(count=False) == ["2018-04-28", "2018-04-30"]
    assert missing(start="2018-04-29") == ["2018-04-30"]
    assert missing(limit=1) == missing(limit="1", count="false") == ["2018-04-28"]


def test_days_that_differ_or_were_lost_are_missing(source: Database, dest: Database) -> None:
    copying(start=DAY, stop="2018-05-01").execute({})
    assert missing() == []

    dest.execute("DELETE FROM public.users WHERE id = 1000003")
    source.execute("DELETE FROM public.users WHERE id = 2000003")
    assert missing() == ["2018-04-29", "2018-04-30"]
    assert missing(count=False) == [], "only counts tell"

    dest.execute("DELETE FROM public.users WHERE id < 1000000")
    assert missing(count=False) == ["2018-04-28"]


def test_a_day_that_was_open_is_missing(source: Database, dest: Database) -> None:
    today = source.scalar("SELECT (now() AT TIME ZONE 'UTC')::date")
    add_users(source, first=today.isoformat(), rows=1, offset=77)
    copying(day="today").execute({})

    assert missing(start="-1d", stop=f"{today.year + 1}-01-01") == [today.isoformat()]


def test_what_a_condition_copied_makes_no_day_whole() -> None:
    copying(day=DAY, where="id % 2 = 0").execute({})

    assert missing() == ["2018-04-28", "2018-04-29", "2018-04-30"]


def test_days_are_those_of_the_zone(source: Database) -> None:
    source.execute("DELETE FROM public.users WHERE id <> 3")  # at 03:00 of the 28th in UTC

    assert missing(timezone="America/New_York") == ["2018-04-27"]


@pytest.mark.parametrize("options", [{"limit": "some"}, {"limit": -1}, {"count": "perhaps"}])
def test_days_that_mean_nothing_fail_for_good(options: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException):
        missing(**options)


def test_days_without_rows_are_not_missing(source: Database, dest: Database) -> None:
    source.execute("DELETE FROM public.users WHERE id BETWEEN 1000000 AND 1999999")

    assert missing() == ["2018-04-28", "2018-04-30"]


def test_a_table_that_is_not_there_fails_for_good() -> None:
    with pytest.raises(AirflowFailException, match="there is no table"):
        missing_days("public.nothing", **SIDES, start="-3d")


def test_psycopg_is_what_the_provider_uses() -> None:
    with PostgresHook("shop").get_conn() as conn:
        assert isinstance(conn, psycopg.Connection)
