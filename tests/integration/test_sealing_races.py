"""What is committed while a copy begins is copied, or its slice stays open."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from copypipe import catalog, horizons, servers, transfers
from copypipe.plans import OTHER_LOCKS
from copypipe.requests import Endpoint
from copypipe.statements import sessions
from plugins.command import no_backends
from plugins.databases import Database
from plugins.sealings import Sides, both


@pytest.fixture
def sides(
    kept_source: Database, kept_dest: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sides]:
    """Yield both with a row of long ago in public.t."""
    yield from both(kept_source, kept_dest, monkeypatch)


@pytest.fixture
def prepares(kept_source: Database) -> None:
    """Skip where the source cannot prepare transactions, as servers that were given may."""
    if kept_source.scalar("SHOW max_prepared_transactions") == "0":
        pytest.skip("the source has max_prepared_transactions = 0")


Hook = Callable[[pytest.MonkeyPatch, Callable[[], None]], None]


def before_looking(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = catalog.writers

    def writers(session: servers.Session) -> horizons.Writers:
        act()
        return real(session)

    monkeypatch.setattr(catalog, "writers", writers)


def after_looking(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = catalog.writers

    def writers(session: servers.Session) -> horizons.Writers:
        facts = real(session)
        act()
        return facts

    monkeypatch.setattr(catalog, "writers", writers)


def after_the_snapshot(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = transfers.begin_reading

    def begin_reading(plan: Any, source: servers.Session) -> None:
        real(plan, source)
        act()

    monkeypatch.setattr(transfers, "begin_reading", begin_reading)


def planted(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Look for transactions after the snapshot was taken, which is the wrong order."""
    facts: list[horizons.Writers] = []

    def late(plan: Any) -> None:
        act()
        with (
            servers.connected("source", Endpoint(plan.request.source.target, "test"), "x") as again,
            again.reading(lock_timeout=OTHER_LOCKS),
        ):
            facts.append(catalog.writers(again))

    real_begin, real_because = transfers.begin_reading, transfers.open_because

    def begin_reading(plan: Any, source: servers.Session) -> None:
        real_begin(plan, source)
        late(plan)

    def open_because(slice_: Any, seen: horizons.Horizon, highest: None) -> str | None:
        return real_because(slice_, horizons.horizon(facts[0], timedelta(), facts[0].instance))

    monkeypatch.setattr(transfers, "begin_reading", begin_reading)
    monkeypatch.setattr(transfers, "open_because", open_because)


def raced(sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook) -> tuple[int, bool]:
    """Copy while a transaction from before the slice's end commits a row; return (rows, sealed)."""
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    committed: list[bool] = []

    def commit() -> None:
        other.connection.commit()
        committed.append(True)

    when(monkeypatch, commit)
    done = sides.copy(**other.slice)
    assert committed == [True]
    no_backends(sides.source, sides.dest)
    return done.rows, done.sealed


def assert_nothing_is_missed(rows: int, sealed: bool) -> None:
    assert rows == 1 or not sealed, "a sealed slice lacks a row"


RACES = {
    before_looking: (1, True),
    after_looking: (1, False),
    after_the_snapshot: (0, False),
}


@pytest.mark.parametrize(("when", "expected"), RACES.items(), ids=[hook.__name__ for hook in RACES])
@pytest.mark.one_of(2)
def test_a_row_that_is_committed_meanwhile_is_copied_or_keeps_the_slice_open(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook, expected: tuple[int, bool]
) -> None:
    found = raced(sides, monkeypatch, when)

    assert_nothing_is_missed(*found)
    assert found == expected


def test_the_check_of_races_sees_a_planted_fault(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the transactions are read after the snapshot, the row is missed."""
    found = raced(sides, monkeypatch, planted)

    with pytest.raises(AssertionError, match="lacks a row"):
        assert_nothing_is_missed(*found)


def before_sessions(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    real = sessions.writers

    def writers() -> Any:
        act()
        return real()

    monkeypatch.setattr(sessions, "writers", writers)


def before_prepared(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act after the sessions were asked for, and before what is prepared is."""
    real = sessions.prepared

    def prepared() -> Any:
        act()
        return real()

    monkeypatch.setattr(sessions, "prepared", prepared)


PREPARED = {
    "prepared before": (before_sessions, "PREPARE TRANSACTION", (0, False)),
    "prepared in between": (before_prepared, "PREPARE TRANSACTION", (0, False)),
    "prepared afterwards": (after_looking, "PREPARE TRANSACTION", (0, False)),
    "committed before": (before_sessions, "COMMIT PREPARED", (1, True)),
    "committed in between": (before_prepared, "COMMIT PREPARED", (1, True)),
    "committed afterwards": (after_looking, "COMMIT PREPARED", (1, False)),
    "committed after the snapshot": (after_the_snapshot, "COMMIT PREPARED", (0, False)),
}


@pytest.mark.parametrize(("when", "command", "expected"), PREPARED.values(), ids=PREPARED.keys())
@pytest.mark.usefixtures("prepares")
@pytest.mark.one_of(5)
def test_a_transaction_that_is_prepared_meanwhile_is_seen(
    sides: Sides,
    monkeypatch: pytest.MonkeyPatch,
    when: Hook,
    command: str,
    expected: tuple[int, bool],
) -> None:
    """It is first a session, then prepared, and never neither of the two."""
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    session, name = other.connection, f"'of {sides.source.name}'"
    if command == "COMMIT PREPARED":
        session.execute(f"PREPARE TRANSACTION {name}")
        session.autocommit = True
    when(monkeypatch, lambda: session.execute(f"{command} {name}"))
    try:
        done = sides.copy(**other.slice)
    finally:
        if command == "PREPARE TRANSACTION":
            session.autocommit = True
            session.execute(f"ROLLBACK PREPARED {name}")

    assert_nothing_is_missed(done.rows, done.sealed)
    assert (done.rows, done.sealed) == expected


@pytest.mark.parametrize("when", [after_looking, after_the_snapshot])
def test_a_role_that_may_not_lock_the_table_takes_the_snapshot_last(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, when: Hook
) -> None:
    """With rights on columns only the source is READ COMMITTED: COPY has a snapshot of its own."""
    role = sides.source.role("columns", "SELECT (id, note, created_at) ON public.t")
    other = sides.began("INSERT INTO public.t VALUES (7, 'late', now())")
    when(monkeypatch, other.connection.commit)

    assert sides.copy(**other.slice, source=role.dsn, settle=0).rows == 1
