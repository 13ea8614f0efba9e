"""A COMMIT without an answer: what became of it is asked, never guessed."""

import signal
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from copypipe import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    attempts,
    keepers,
)
from copypipe.events import (
    Decided,
    Event,
    Retried,
    Settling,
)
from copypipe.requests import Endpoint
from plugins import proxy as proxies
from plugins.command import no_backends
from plugins.proxy import Proxy
from plugins.tries import ROWS, Sides, in_turn

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
@pytest.mark.one_of(2)
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


def test_a_dest_that_refuses_the_login_meanwhile_is_asked_until_it_does_not(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """It starts again, and says so in its language."""
    lose = proxies.lose_commit(arrives=True)
    starting = proxies.notice("das Datenbanksystem startet", "FATAL", kind=b"E", code="57P03")

    def rule(frame: proxies.Frame) -> bytes | None:
        if frame.link == 2 and frame.sender == "server":
            raise proxies.Cut(starting)
        return lose(frame)

    between = proxy(sides.dest.server, rule)

    assert sides.copy(dest=between.dsn(sides.dest)).attempt.number == 1
    assert between.links == 3
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
        sides.copy(dest=in_turn(between.dsn(sides.dest), elsewhere))

    assert "another server answers" in str(caught.value.detail)
    sides.assert_new()


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_an_interrupt_that_comes_with_it_is_raised_when_the_outcome_is_known(
    sides: Sides, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    lose, commits = proxies.lose_commit(arrives=arrives), proxies.Commits()

    def rule(frame: proxies.Frame) -> bytes | None:
        if commits.asked(frame):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)  # until Python has raised it
        return lose(frame)

    between = proxy(sides.dest.server, rule)

    with pytest.raises(KeyboardInterrupt) as caught:
        sides.copy(dest=between.dsn(sides.dest))

    held = "was" if arrives else "was not"
    assert caught.value.__notes__ == [f"copypipe: the slice {held} committed"]
    assert sides.all_of(Decided) == [Decided(committed=arrives)]
    assert sides.all_of(Retried) == []
    assert sides.recorded == arrives
    if arrives:
        sides.assert_new()
    else:
        sides.assert_old()


def test_an_interrupt_while_it_is_asked_says_that_nobody_knows(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    lose = proxies.lose_commit(arrives=True)

    def rule(frame: proxies.Frame) -> bytes | None:
        if frame.link == 2:
            interrupt()
        return lose(frame)

    between = proxy(sides.dest.server, rule)

    with pytest.raises(KeyboardInterrupt) as caught:
        sides.copy(dest=between.dsn(sides.dest))

    assert caught.value.__notes__ == [NOBODY]
    assert sides.recorded == 1


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.1)  # until Python has raised it


NOBODY = "copypipe: nobody knows whether the slice was committed"


def test_a_ledger_that_was_made_anew_settles_nothing(
    sides: Sides, proxy: Callable[..., Proxy]
) -> None:
    """What it does not tell of may have been told to the one before."""
    lose = proxies.lose_commit(arrives=True)
    dest = Endpoint(sides.dest.dsn, "test")

    def renew(event: Event) -> None:
        if isinstance(event, Settling):
            no_backends(sides.dest)
            keepers.remove(dest, 10, lambda what: True, dry_run=False)
            keepers.make(dest, 10, dry_run=False)

    between = proxy(sides.dest.server, lose)

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=between.dsn(sides.dest), listener=renew)

    assert caught.value.detail == "The ledger that would tell was removed meanwhile."
    sides.assert_new()


def test_a_callable_that_fails_is_a_dest_that_is_away(
    sides: Sides, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asks a service for a token, say."""
    monkeypatch.setattr(attempts, "SETTLE_COMMIT_SECONDS", 0.2)
    between = proxy(sides.dest.server, proxies.lose_commit(arrives=True))
    first = in_turn(between.dsn(sides.dest))

    def connect() -> psycopg.Connection:
        if between.links:
            raise OSError("no such service")
        return first()

    with pytest.raises(CommitUnknown) as caught:
        sides.copy(dest=connect)

    assert "dest: the callable that connects failed" in str(caught.value.detail)
    sides.assert_new()


def test_the_server_rolls_back_instead(sides: Sides, proxy: Callable[..., Proxy]) -> None:
    between = proxy(sides.dest.server, proxies.roll_back_instead())

    with pytest.raises(CopyFailed, match="rolled back instead of committing"):
        sides.copy(dest=between.dsn(sides.dest))

    assert sides.all_of(Retried) == []
    assert sides.all_of(Decided) == [Decided(committed=False)]
    assert sides.recorded == 0
    sides.assert_old()


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


@pytest.mark.parametrize("when", ["commit", "pause"])
def test_without_a_ledger_an_interrupt_says_that_nobody_knows(
    sides: Sides, proxy: Callable[..., Proxy], when: str
) -> None:
    lose, commits = proxies.lose_commit(arrives=True), proxies.Commits()

    def rule(frame: proxies.Frame) -> bytes | None:
        if commits.asked(frame) and when == "commit":
            interrupt()
        return lose(frame)

    def listen(event: Event) -> None:
        if isinstance(event, Retried):
            signal.raise_signal(signal.SIGINT)

    between = proxy(sides.dest.server, rule)

    with pytest.raises(KeyboardInterrupt) as caught:
        sides.copy(dest=between.dsn(sides.dest), ledger=False, listener=listen)

    assert caught.value.__notes__ == [NOBODY]
    sides.assert_new()
