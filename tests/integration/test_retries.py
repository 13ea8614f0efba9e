"""What passes is tried again, a COMMIT without an answer is settled, nothing else is."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    PlanRefused,
    SliceBusy,
    Transferred,
    TransientError,
    UsageError,
    attempts,
    catalog,
)
from copypipe.events import Cleared, Decided, Event, Progress, Retried, Settling
from plugins import proxy as proxies
from plugins.command import add_users, eventually, no_backends, pause, users, waits_in_pause
from plugins.databases import Database
from plugins.proxy import Proxy
from plugins.ways import Begun

DAY = "2018-04-29"
ROWS = 24


@dataclass
class Sides:
    """Both databases, with a day to copy over seven old rows."""

    source: Database
    dest: Database
    before: str = ""
    heard: list[Event] = field(default_factory=list)

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {**sides, "day": DAY, "retry_delay": 0.01, "listener": self.hear, **options}
        return copypipe.copy("public.users", **chosen)

    def hear(self, event: Event) -> None:
        self.heard.append(event)

    def all_of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if type(event) is kind]

    @property
    def tried(self) -> list[tuple[str, str | None, str | None]]:
        """How each attempt ended, in order: state, side, SQLSTATE."""
        return self.dest.fetch(
            "SELECT state, side, sqlstate FROM copypipe.attempt ORDER BY began_at, number"
        )

    @property
    def recorded(self) -> int:
        return self.dest.scalar("SELECT count(*) FROM copypipe.slice")

    def assert_old(self) -> None:
        no_backends(self.source, self.dest)
        assert self.dest.digest("public.users", "id") == self.before

    def assert_new(self) -> None:
        no_backends(self.source, self.dest)
        of_day = "SELECT * FROM public.users WHERE id / 1000000 = 1 ORDER BY id"
        assert self.dest.text(of_day) == self.source.text(of_day)
        assert self.dest.scalar("SELECT count(*) FROM public.users") == ROWS + 5


@pytest.fixture
def sides(kept_source: Database, kept_dest: Database) -> Sides:
    users(kept_source, 2, rows=ROWS)
    users(kept_dest, 1, rows=5)
    add_users(kept_dest, 1, rows=7, first=DAY, offset=-9_000_000)
    return Sides(kept_source, kept_dest, kept_dest.digest("public.users", "id"))


def raising(dest: Database, code: str, times: int) -> None:
    """Let the dest fail with a SQLSTATE, so many times; a sequence survives what is rolled back."""
    dest.execute(
        "CREATE SEQUENCE public.tries;"
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('public.tries') <= {times} THEN"
        f" RAISE EXCEPTION 'no luck' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON public.users FOR EACH STATEMENT"
        " EXECUTE FUNCTION public.fail()"
    )


# --- what is tried again --------------------------------------------------------------------------

PASSING = ("40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03", "08006", "25P03")
LASTING = ("22012", "23505", "23514", "28000", "42P01", "0A000", "53100", "54000", "57014", "XX000")


@pytest.mark.parametrize("code", PASSING)
def test_what_passes_is_tried_again(sides: Sides, code: str) -> None:
    raising(sides.dest, code, 2)

    done = sides.copy()

    assert done.attempt.number == 3
    assert [(event.number, event.of) for event in sides.all_of(Retried)] == [(1, 4), (2, 4)]
    assert {event.error.sqlstate for event in sides.all_of(Retried)} == {code}
    assert not any(event.undecided for event in sides.all_of(Retried))
    assert [state for state, *_ in sides.tried] == ["failed", "failed", "copied"]
    assert {(side, told) for _, side, told in sides.tried[:2]} == {("dest", code)}
    assert sides.recorded == 1
    sides.assert_new()


@pytest.mark.parametrize("code", LASTING)
def test_what_would_fail_again_is_not_tried_again(sides: Sides, code: str) -> None:
    raising(sides.dest, code, 2)

    with pytest.raises(copypipe.CopypipeError) as caught:
        sides.copy()

    assert (caught.value.exit_code, caught.value.sqlstate) == (1, code)
    assert sides.all_of(Retried) == []
    assert sides.tried == [("failed", "dest", code)]
    sides.assert_old()


def test_each_pause_is_longer_than_the_one_before(sides: Sides) -> None:
    raising(sides.dest, "40P01", 4)

    assert sides.copy(retries=5, retry_delay=0.02).rows == ROWS

    pauses = [event.seconds for event in sides.all_of(Retried)]
    for number, pause_ in enumerate(pauses):
        assert 0.02 * 2**number <= pause_ <= 0.02 * 2**number + 0.02


def test_when_all_tries_have_failed_the_last_failure_says_so(sides: Sides) -> None:
    raising(sides.dest, "40P01", 99)

    with pytest.raises(TransientError, match="no luck") as caught:
        sides.copy(retries=2)

    assert (caught.value.exit_code, caught.value.sqlstate) == (5, "40P01")
    assert str(caught.value.detail).startswith("It was tried 3 times. SQLSTATE 40P01")
    assert [state for state, *_ in sides.tried] == ["failed"] * 3
    sides.assert_old()


def test_a_server_that_cannot_be_reached_is_tried_again(sides: Sides, closed_port: int) -> None:
    with pytest.raises(ConnectionLost) as caught:
        sides.copy(source=f"host=127.0.0.1 port={closed_port} dbname=x user=y", retries=1)

    assert (caught.value.exit_code, len(sides.all_of(Retried))) == (5, 1)
    sides.assert_old()


def test_a_busy_slice_is_not_tried_again(sides: Sides) -> None:
    holder = pause(sides.dest)
    running = Begun(sides.copy)
    eventually(lambda: waits_in_pause(sides.dest), what="the first run is held up")
    sides.heard.clear()

    with pytest.raises(SliceBusy) as caught:
        sides.copy(wait_lock=0)

    assert caught.value.exit_code == 11
    assert sides.all_of(Retried) == []
    holder.close()
    assert running.result().rows == ROWS


def test_a_lock_that_somebody_else_holds_on_the_table_is_tried_again(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypipe.plans.OTHER_LOCKS", "100ms")
    with sides.dest.connect(autocommit=False) as other:
        other.execute("LOCK TABLE public.users IN SHARE ROW EXCLUSIVE MODE")

        def let_go(event: Event) -> None:
            sides.hear(event)
            if isinstance(event, Retried):
                other.rollback()

        assert sides.copy(listener=let_go).attempt.number == 2
    assert [event.error.sqlstate for event in sides.all_of(Retried)] == ["55P03"]
    sides.assert_new()


@pytest.mark.parametrize("when", [Cleared, Progress])
def test_a_dest_that_is_lost_is_connected_to_anew(
    sides: Sides, proxy: Callable[..., Proxy], when: type
) -> None:
    between = proxy(sides.dest.server)

    def cut(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, when) and not sides.all_of(Retried):
            between.drop(1)

    done = sides.copy(dest=between.dsn(sides.dest), listener=cut)

    assert done.attempt.number == 2
    assert [event.error.side for event in sides.all_of(Retried)] == ["dest"]
    assert sides.recorded == 1
    assert [state for state, *_ in sides.tried] == ["failed", "copied"]
    sides.assert_new()


def test_a_source_that_is_lost_in_mid_stream_is_connected_to_anew(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    def rule(frame: proxies.Frame) -> None:
        if frame.link == 1 and frame.is_data and frame.rows == 5:
            raise proxies.Cut

    between = proxy(sides.source.server, rule)

    done = sides.copy(source=between.dsn(sides.source))

    assert done.attempt.number == 2
    assert [event.error.side for event in sides.all_of(Retried)] == ["source"]
    assert [state for state, *_ in sides.tried] == ["failed", "copied"]
    sides.assert_new()


def test_a_source_that_is_lost_while_it_has_nothing_to_do_is_connected_to_once_more(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """A long DELETE at the dest, and idle_session_timeout at the source: no reason to fail."""
    between = proxy(sides.source.server)

    def cut(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Cleared):
            between.drop(1)

    done = sides.copy(source=between.dsn(sides.source), listener=cut, notices=True)

    assert (done.attempt.number, between.links) == (1, 2)
    assert sides.all_of(Retried) == []
    sides.assert_new()


def test_yesterday_stays_the_same_day_behind_midnight(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter([date(2018, 4, 30), date(2018, 5, 1)])
    monkeypatch.setattr(catalog, "today", lambda session, zone: next(days))
    raising(sides.dest, "40P01", 1)

    done = sides.copy(day="yesterday")

    assert (str(done.slice), done.attempt.number) == (f"[{DAY}, 2018-04-30) UTC", 2)
    sides.assert_new()


def test_a_later_try_sees_what_the_source_has_then(sides: Sides) -> None:
    raising(sides.dest, "40P01", 1)

    def add(event: Event) -> None:
        if isinstance(event, Retried):
            add_users(sides.source, 1, rows=2, first=DAY, offset=7_000_000)

    assert sides.copy(listener=add).rows == ROWS + 2


def test_a_later_try_is_planned_anew(sides: Sides) -> None:
    raising(sides.dest, "40P01", 1)

    def alter(event: Event) -> None:
        if isinstance(event, Retried):
            sides.dest.execute("ALTER TABLE public.users DROP COLUMN tags")

    with pytest.raises(PlanRefused, match="the columns of"):
        sides.copy(listener=alter)


# --- a COMMIT without an answer -------------------------------------------------------------------


def test_a_commit_whose_answer_is_lost_is_found_to_have_happened(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=True))

    done = sides.copy(dest=between.dsn(sides.dest))

    assert between.fired == ["fin"]
    assert (done.rows, done.deleted, done.attempt.number) == (ROWS, 7, 1)
    assert sides.all_of(Settling)
    assert sides.all_of(Decided) == [Decided(committed=True)]
    assert sides.recorded == 1
    assert [state for state, *_ in sides.tried] == ["copied"]
    sides.assert_new()


def test_a_commit_that_never_arrived_is_found_not_to_have_happened(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=False))

    done = sides.copy(dest=between.dsn(sides.dest))

    assert done.attempt.number == 2
    assert [event.committed for event in sides.all_of(Decided)] == [False, True]
    assert [event.undecided for event in sides.all_of(Retried)] == [False]
    assert sides.recorded == 1
    assert [state for state, *_ in sides.tried] == ["failed", "copied"]
    sides.assert_new()


def test_a_commit_that_never_arrived_is_a_lost_connection_without_retries(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=False))

    with pytest.raises(ConnectionLost, match="before it committed") as caught:
        sides.copy(dest=between.dsn(sides.dest), retries=0)

    assert (caught.value.exit_code, caught.value.side) == (5, "dest")
    assert "nothing was changed" in str(caught.value.detail)
    assert sides.recorded == 0
    sides.assert_old()


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_a_dest_that_stays_away_leaves_it_open_and_the_same_command_settles_it(
    sides: Sides,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    *,
    arrives: bool,
) -> None:
    monkeypatch.setattr(attempts, "SETTLE_COMMIT_SECONDS", 0.5)
    lose = proxies.lose_commit(arrives=arrives)

    def rule(frame: proxies.Frame) -> bytes | None:
        if frame.link > 1:
            raise proxies.Cut
        return lose(frame)

    between = proxy(sides.dest.server, rule)

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=between.dsn(sides.dest))

    assert (caught.value.exit_code, caught.value.side) == (75, "dest")
    assert "could not be asked what became of it" in str(caught.value.detail)
    assert sides.all_of(Decided) == []
    assert sides.all_of(Retried) == []
    no_backends(sides.dest)
    assert sides.recorded == arrives
    assert sides.copy().deleted == (ROWS if arrives else 7)
    sides.assert_new()


def test_the_dest_is_asked_until_it_is_back(
    sides: Sides, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose = proxies.lose_commit(arrives=True)

    def rule(frame: proxies.Frame) -> bytes | None:
        if 1 < frame.link < 4:
            raise proxies.Cut
        return lose(frame)

    between = proxy(sides.dest.server, rule)

    assert sides.copy(dest=between.dsn(sides.dest)).attempt.number == 1
    assert between.links == 4
    sides.assert_new()


def test_it_is_not_asked_before_the_transaction_has_ended(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """A COMMIT may take its time, here by a constraint that is checked last; to ask earlier would
    find nothing, and copy a second time."""
    sides.dest.execute(
        "CREATE FUNCTION public.doze() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_catalog.pg_sleep(1); RETURN NULL; END $$"
    )
    sides.copy(day="2018-04-28")  # makes the ledger
    sides.dest.execute(
        "CREATE CONSTRAINT TRIGGER doze AFTER INSERT ON copypipe.slice DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.doze()"
    )
    commits = proxies.Commits()
    between = proxy(sides.dest.server)

    def rule(frame: proxies.Frame) -> None:
        if commits.asked(frame):
            # The request arrives, and then the connection to us is lost.
            threading.Timer(0.3, between.drop, [1]).start()

    between.rule = rule
    done = sides.copy(dest=between.dsn(sides.dest))

    assert done.attempt.number == 1
    assert sides.all_of(Decided)[-1] == Decided(committed=True)
    assert sides.recorded == 2


def test_another_server_at_the_address_settles_nothing(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """A failover to a server that is no copy of the dest, a wrong entry of a name service."""
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=True))
    elsewhere = sides.source.dsn

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=first_then(between.dsn(sides.dest), elsewhere))

    assert "another server answers" in str(caught.value.detail)
    sides.assert_new()


def first_then(first: str, then: str) -> Callable[[], psycopg.Connection]:
    """Return a callable that connects to one server, and to another one afterwards."""
    targets = iter([first, *[then] * 9])
    return lambda: psycopg.connect(next(targets))


# --- without a ledger -----------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_without_a_ledger_the_slice_is_copied_again(
    sides: Sides, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=arrives))

    done = sides.copy(dest=between.dsn(sides.dest), ledger=False)

    assert (done.attempt.number, done.recorded) == (2, False)
    assert done.deleted == (ROWS if arrives else 7)
    assert [event.undecided for event in sides.all_of(Retried)] == [True]
    sides.assert_new()


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_without_a_ledger_another_failure_leaves_it_open(
    sides: Sides, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    """Exit 1 or 5 would say that nothing was changed."""
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=arrives))

    def spoil(event: Event) -> None:
        if isinstance(event, Retried):
            sides.source.execute("DROP TABLE public.users")

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=between.dsn(sides.dest), ledger=False, listener=spoil)

    assert caught.value.exit_code == 75
    assert "The last try failed: source: there is no table" in str(caught.value.detail)


def test_without_a_ledger_and_without_a_yes_all_rows_are_not_copied_again(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """The rows that are there by then may be somebody else's."""
    sides.dest.execute("TRUNCATE public.users")
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=True))

    with pytest.raises(CommitUnknown):
        sides.copy(dest=between.dsn(sides.dest), ledger=False, day=None, all=True)

    assert sides.all_of(Retried) == []
    assert sides.dest.digest("public.users", "id") == sides.source.digest("public.users", "id")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"retries": 1000}, {"retry_delay": -1}, {"settle": -1}]
)
def test_what_cannot_be_is_refused(sides: Sides, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        sides.copy(**options)
    sides.assert_old()


def test_the_server_rolls_back_instead(sides: Sides, proxy: Callable[..., Proxy]) -> None:
    between = proxy(sides.dest.server, proxies.roll_back_instead())

    with pytest.raises(CopyFailed, match="rolled back instead of committing"):
        sides.copy(dest=between.dsn(sides.dest))

    assert sides.all_of(Retried) == []
    assert sides.all_of(Decided) == [Decided(committed=False)]
    assert sides.recorded == 0
    sides.assert_old()
