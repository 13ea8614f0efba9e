"""What passes is tried again, a COMMIT without an answer is settled, nothing else is."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
import pytest

import copypipe
from copypipe import (
    ConnectionLost,
    LoginRefused,
    PlanRefused,
    SliceBusy,
    Transferred,
    TransientError,
    UsageError,
    catalog,
    transfers,
)
from copypipe.events import (
    Cleared,
    Connected,
    Decided,
    Event,
    Planned,
    Progress,
    Retried,
    Settling,
    Waiting,
    ignore,
)
from plugins import proxy as proxies
from plugins.command import add_users, eventually, pause, waits_in_pause
from plugins.databases import Role
from plugins.proxy import Proxy
from plugins.tries import DAY, ROWS, Sides, in_turn, raising
from plugins.ways import Begun

# --- what is tried again --------------------------------------------------------------------------

PASSING = ("40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03", "08006", "25P03")
LASTING = ("22012", "23505", "23514", "28000", "42P01", "0A000", "53100", "54000", "57014", "XX000")


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.one_of(5)
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
@pytest.mark.one_of(5)
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


def test_what_an_earlier_try_left_behind_at_the_dest_is_waited_for(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """Its connection is dead, and the dest's process holds the slice until it notices. Not to wait
    (--wait-lock 0) is meant for other runs."""

    def rule(frame: proxies.Frame) -> None:
        if frame.link == 1 and frame.sender == "client" and frame.kind == b"c":
            raise proxies.Cut(ending="hole")

    def notice(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Waiting):
            between.drop(1)

    between = proxy(sides.dest.server, rule)
    options = {"stall_timeout": 0.3, "wait_lock": 0, "listener": notice}
    done = sides.copy(dest=between.dsn(sides.dest), **options)

    assert done.attempt.number == 2
    (waited,) = sides.all_of(Waiting)
    assert (len(waited.pids), waited.seconds) == (1, transfers.OWN_END_SECONDS)
    sides.assert_new()


def test_another_run_is_not_waited_for_at_a_later_try_either(sides: Sides) -> None:
    raising(sides.dest, "40P01", 1)
    holders: list[psycopg.Connection] = []
    others: list[Begun[Transferred]] = []

    def begin_another(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Retried):
            holders.append(pause(sides.dest))
            others.append(Begun(functools.partial(sides.copy, listener=ignore)))
            eventually(lambda: waits_in_pause(sides.dest), what="the other run is held up")

    with pytest.raises(SliceBusy) as caught:
        sides.copy(wait_lock=0, listener=begin_another)

    assert caught.value.exit_code == 11
    assert len(sides.all_of(Retried)) == 1
    assert sides.all_of(Waiting) == []
    holders[0].close()
    assert others[0].result().rows == ROWS


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


def test_a_source_in_whose_place_another_one_answers_is_planned_anew(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """What was planned is the other one's table; here the two are even called the same."""
    between = proxy(sides.source.server)
    source = in_turn(between.dsn(sides.source), sides.dest.dsn, sides.source.dsn)

    def cut(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Cleared):
            between.drop(1)

    done = sides.copy(source=source, listener=cut)

    assert done.attempt.number == 2
    (retried,) = sides.all_of(Retried)
    assert type(retried.error) is TransientError
    assert retried.error.message == "source: another server answers at its address"
    sides.assert_new()


def test_a_source_that_refuses_us_when_it_is_connected_to_once_more_is_tried_again(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    role = sides.source.role("copier", "pg_read_all_data")
    between = proxy(sides.source.server)

    def refuse(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Cleared) and not sides.all_of(Retried):
            sides.source.execute(f"ALTER ROLE {role.name} NOLOGIN")
            between.drop(1)
        if isinstance(event, Retried):
            sides.source.execute(f"ALTER ROLE {role.name} LOGIN")

    dsn = between.dsn(sides.source, user=role.name, password=role.password)
    assert sides.copy(source=dsn, listener=refuse).attempt.number == 2
    sides.assert_new()


def test_a_table_of_locks_that_is_full_passes(sides: Sides) -> None:
    """A lock for each day of two years, of the hundred that are left."""
    with contextlib.closing(sides.dest.connect()) as other:
        with pytest.raises(psycopg.errors.OutOfMemory):
            other.execute("SELECT pg_advisory_lock(g) FROM generate_series(1, 1000000) AS g")
        other.execute("SELECT pg_advisory_unlock(g) FROM generate_series(1, 100) AS g")

        def free(event: Event) -> None:
            sides.hear(event)
            if isinstance(event, Retried):
                other.close()

        done = sides.copy(day=None, start="2018-04-01", stop="2020-04-01", listener=free)

    assert done.attempt.number == 2
    (retried,) = sides.all_of(Retried)
    assert (retried.error.sqlstate, retried.error.exit_code) == ("53200", 5)
    assert "max_locks_per_transaction" in str(retried.error.hint)


def test_both_sides_and_the_plan_are_told_once_as_soon_as_they_are_known(
    sides: Sides, closed_port: int
) -> None:
    away = f"host=127.0.0.1 port={closed_port} dbname=x user=y"
    raising(sides.dest, "40P01", 1)

    done = sides.copy(dest=in_turn(away, sides.dest.dsn))

    assert done.attempt.number == 3
    told = [type(event) for event in sides.heard]
    about = [kind for kind in told if kind in (Retried, Connected, Planned)]
    assert about == [Retried, Connected, Planned, Retried]


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


# --- a server or a pooler that ends the session ---------------------------------------------------

# What PgBouncer says when its server is gone. Its code is that of a value that cannot be read, and
# it has no field V, in which servers write the severity untranslated.
CRASHED = proxies.said(b"E", b"SFATAL\0C08P01\0Mserver conn crashed?\0\0")


def crashed_at_commit(*, arrives: bool) -> proxies.Rule:
    """Have a pooler say that in the place of the answer to the first COMMIT."""
    commits, asked = proxies.Commits(), False

    def rule(frame: proxies.Frame) -> bytes | None:
        nonlocal asked
        if frame.link > 1:
            return None
        if commits.asked(frame):
            asked = True
            return None if arrives else proxies.said(b"Q", b"ROLLBACK\0")
        if asked and frame.sender == "server":
            raise proxies.Cut(CRASHED)
        return None

    return rule


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_a_pooler_that_lost_its_server_at_commit_does_not_know_the_outcome(
    sides: Sides, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    between = proxy(sides.dest.server, crashed_at_commit(arrives=arrives))

    done = sides.copy(dest=between.dsn(sides.dest))

    decided = [event.committed for event in sides.all_of(Decided)]
    assert len(sides.all_of(Settling)) == 1
    assert (decided, done.attempt.number) == (([True], 1) if arrives else ([False, True], 2))
    assert (sides.recorded, done.deleted) == (1, 7)
    sides.assert_new()


# Who is gone, and in the place of which message that is said.
CRASHES: dict[str, tuple[str, bytes, bytes]] = {
    "the source's of the plan": ("source", b"T", b""),
    "the dest's of the plan": ("dest", b"T", b""),
    "the dest's while it clears": ("dest", b"C", b"DELETE"),
    "the source's in mid-stream": ("source", b"d", b""),
    "the dest's behind the last row": ("dest", b"C", b"COPY"),
}


@pytest.mark.parametrize("transport", ["socket", "libpq"])
@pytest.mark.parametrize(("side", "kind", "starts"), CRASHES.values(), ids=CRASHES.keys())
@pytest.mark.one_of(5)
def test_a_pooler_that_lost_its_server_is_tried_again(
    sides: Sides,
    proxy: Callable[..., Proxy],
    side: str,
    kind: bytes,
    starts: bytes,
    transport: str,
) -> None:
    def rule(frame: proxies.Frame) -> None:
        here = frame.link == 1 and frame.sender == "server" and frame.rows in (0, 5)
        if here and frame.kind == kind and frame.body.startswith(starts):
            raise proxies.Cut(CRASHED)

    between = proxy(getattr(sides, side).server, rule)

    options = {side: between.dsn(getattr(sides, side)), "transport": transport}
    assert sides.copy(**options).attempt.number == 2

    (retried,) = sides.all_of(Retried)
    assert (retried.error.side, retried.error.exit_code) == (side, 5)
    assert retried.error.sqlstate == "08P01"
    sides.assert_new()


# --- a login that is refused ----------------------------------------------------------------------


@dataclass
class Login:
    """A role that may be kept out."""

    sides: Sides
    side: str
    role: Role

    def may(self, what: str) -> None:
        getattr(self.sides, self.side).execute(f"ALTER ROLE {self.role.name} {what}")

    def copy(self, **options: Any) -> Transferred:
        return self.sides.copy(**{self.side: self.role.dsn, "ledger": False, **options})


@pytest.fixture(params=["source", "dest"])
def login(request: pytest.FixtureRequest, sides: Sides) -> Login:
    """Return a role for one of the sides, whose first try a deadlock ends."""
    raising(sides.dest, "40P01", 1)
    role = getattr(sides, request.param).role("copier", "pg_read_all_data", "pg_write_all_data")
    return Login(sides, request.param, role)


@pytest.mark.one_of(2)
def test_a_side_that_let_us_in_and_refuses_us_later_is_tried_again(login: Login) -> None:
    """Who starts, or fails over, may say that in words that nobody knows."""
    sides = login.sides

    def turn(event: Event) -> None:
        sides.hear(event)
        if isinstance(event, Retried):
            login.may("NOLOGIN" if event.number == 1 else "LOGIN")

    assert login.copy(listener=turn).attempt.number == 3

    error = sides.all_of(Retried)[1].error
    assert (type(error), error.side) == (TransientError, login.side)
    assert "does not let this role in any more" in error.message
    assert "is not permitted to log in" in str(error.detail)
    sides.assert_new()


def test_a_side_that_keeps_refusing_us_has_failed_for_a_reason_that_passes(login: Login) -> None:
    def shut_out(event: Event) -> None:
        if isinstance(event, Retried):
            login.may("NOLOGIN")

    with pytest.raises(TransientError, match="does not let this role in any more") as caught:
        login.copy(listener=shut_out, retries=2)

    assert caught.value.exit_code == 5
    assert str(caught.value.detail).startswith("It was tried 3 times. ")
    login.sides.assert_old()


def test_a_side_that_has_never_let_us_in_is_not_tried_again(login: Login) -> None:
    login.may("NOLOGIN")

    with pytest.raises(LoginRefused) as caught:
        login.copy()

    assert (caught.value.exit_code, caught.value.side) == (2, login.side)
    assert login.sides.all_of(Retried) == []
    login.sides.assert_old()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"retries": 1000}, {"retry_delay": -1}, {"settle": -1}]
)
def test_what_cannot_be_is_refused(sides: Sides, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        sides.copy(**options)
    sides.assert_old()
