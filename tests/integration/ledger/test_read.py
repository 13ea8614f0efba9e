"""What a ledger says of other runs: swapped sides, and slices by several columns."""

import json
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from copypipe import PlanRefused, SliceBusy, Transferred, TransientError, keepers
from copypipe.events import Event, Planned, Retried, Waiting
from copypipe.requests import Endpoint
from plugins.command import Words
from plugins.ledgers import ALL, DAY, NEXT_DAY, Sides, hearing
from plugins.rows import assert_refused, unchanged

# --- swapped sides --------------------------------------------------------------------------------


def swapped(sides: Sides, **options: Any) -> Transferred:
    both = {"source": sides.dest.dsn, "dest": sides.source.dsn}
    return sides.copy(**{"day": DAY, **both, **options})


def test_swapped_sides_are_refused(sides: Sides, words: Words) -> None:
    sides.copy(day=DAY)
    env = {"COPYPIPE_SOURCE": sides.dest.dsn, "COPYPIPE_DEST": sides.source.dsn}

    with unchanged(sides.source, sides.dest):
        for options in (("--day", DAY), ("--day", NEXT_DAY), ("--all", "--yes")):
            refused = words("copy", "t", *options, "--no-ledger", env=env)
            assert_refused(refused, 6, "the sides are swapped: public.t .*filled from public.t")
            assert "--allow-reverse" in refused.err
        planned = words("copy", "t", "--all", "-n", "--no-ledger", env=env)
        assert planned.code == 6
        assert "  refused  the sides are swapped: public.t" in planned.out

    assert not Sides(sides.dest, sides.source, sides.pool).has_ledger()
    done = words("copy", "t", "--day", DAY, "--allow-reverse", env=env)
    assert (done.code, done.err.count("warning")) == (0, 0), done.err
    # To have gone against the direction once, as a restore does, does not turn it round.
    assert words("copy", "t", "--day", DAY).code == 0
    assert words("copy", "t", "--day", DAY, env=env).code == 6


def test_only_the_very_table_that_fills_it_is_refused(sides: Sides) -> None:
    for database in (sides.source, sides.dest):
        database.execute("CREATE TABLE public.u (LIKE public.t)")
    sides.copy(day=DAY)

    assert swapped(sides, into="public.u").rows == 1
    # The other way round there are now two ledgers, which tell of different tables.
    assert sides.copy(day=DAY).rows == 1


def test_a_source_whose_ledger_cannot_be_read_is_no_obstacle(sides: Sides) -> None:
    sides.copy(day=DAY)
    reader = sides.dest.role("reader", "SELECT ON public.t")

    assert swapped(sides, source=reader.dsn).rows == 1
    sides.dest.execute(f"GRANT USAGE ON SCHEMA copypipe TO {reader.name}")
    assert swapped(sides, source=reader.dsn).rows == 1
    sides.dest.execute(f"GRANT SELECT ON copypipe.slice TO {reader.name}")
    assert swapped(sides, source=reader.dsn).rows == 1
    sides.dest.execute(f"GRANT SELECT ON copypipe.version TO {reader.name}")
    with pytest.raises(PlanRefused, match="the sides are swapped"):
        swapped(sides, source=reader.dsn)
    sides.dest.execute("UPDATE copypipe.version SET version = 99")
    assert swapped(sides, source=reader.dsn).rows == 1


def test_swapped_sides_are_known_by_their_address_where_nothing_else_is_told(
    sides: Sides,
) -> None:
    """Managed services forbid pg_control_system()."""
    function = "FUNCTION pg_catalog.pg_control_system()"
    sides.source.execute(f"REVOKE EXECUTE ON {function} FROM PUBLIC")
    try:
        role = sides.source.role("poor", "SELECT, INSERT, DELETE ON public.t")
        sides.copy(day=DAY, source=role.dsn)
        assert sides.told()[0]["source_system"] is None
        for dsn in (role.dsn, sides.source.dsn):
            with pytest.raises(PlanRefused, match="the sides are swapped"):
                swapped(sides, dest=dsn)
    finally:
        sides.source.execute(f"GRANT EXECUTE ON {function} TO PUBLIC")


# --- by another column ----------------------------------------------------------------------------

ELSEWHEN = {"start": "2001-01-01", "stop": "2001-01-02"}


def test_the_first_column_stays_the_one_that_slices_are_told_apart_by(sides: Sides) -> None:
    sides.copy(**ALL)
    assert sides.told("sliced_by") == []
    for by in ("created_at", "paid_at", "of"):
        sides.copy(day=DAY, by=by, allow_empty=True)

    (row,) = sides.told("sliced_by")
    assert (row["by_column"], row["dest_table"]) == ("created_at", "public.t")
    assert row["root_oid"] == str(sides.dest.scalar("SELECT 'public.t'::regclass::oid"))


@pytest.mark.parametrize("ledger", [True, False], ids=["recorded", "without the ledger"])
def test_a_slice_by_another_column_excludes_all_others(sides: Sides, ledger: bool) -> None:
    sides.copy(day=DAY)
    running, holder = sides.hold(day=DAY, ledger=ledger)

    # The same column lets other days alone.
    assert sides.copy(**ELSEWHEN, wait_lock=0, ledger=ledger).rows == 0
    for options in ({"by": "paid_at", **ELSEWHEN}, {"by": "of", **ELSEWHEN}):
        with pytest.raises(SliceBusy):
            sides.copy(**options, wait_lock=0, ledger=ledger)

    assert sides.ends(running, holder).rows == 1
    assert sides.copy(by="paid_at", **ELSEWHEN, wait_lock=0, ledger=ledger).rows == 0


@pytest.mark.parametrize("ledger", [True, False], ids=["recorded", "without the ledger"])
def test_all_others_wait_for_a_slice_by_another_column(sides: Sides, ledger: bool) -> None:
    sides.copy(day=DAY)
    running, holder = sides.hold(by="paid_at", day=NEXT_DAY, ledger=ledger, allow_empty=True)

    for options in (ELSEWHEN, {"by": "of", **ELSEWHEN}, {"where": "id < 0"}):
        with pytest.raises(SliceBusy):
            sides.copy(**options, wait_lock=0, ledger=ledger)

    assert sides.ends(running, holder).rows == 1


def test_first_slices_by_two_columns_exclude_each_other(sides: Sides) -> None:
    """Neither saw a column while it planned; the ledger decides which is the first."""
    sides.make()
    held: list[tuple[Future[Transferred], psycopg.Connection]] = []

    def hear(event: Event) -> None:
        if isinstance(event, Planned):
            held.append(sides.hold(day=DAY))

    with pytest.raises(SliceBusy):
        sides.copy(by="paid_at", **ELSEWHEN, listener=hear, wait_lock=0)

    sides.ends(*held[0])
    assert [row["by_column"] for row in sides.told("sliced_by")] == ["created_at"]


def test_a_ledger_that_slices_by_another_column_meanwhile_ends_the_try(sides: Sides) -> None:
    """The locks were those of a ledger that is gone, and keep nobody apart any more."""
    sides.make()
    running, holder = sides.hold(day=DAY, ledger=False)
    heard: list[Retried] = []

    def hear(event: Event) -> None:
        hearing(Retried, heard)(event)
        if isinstance(event, Waiting):
            keepers.remove(Endpoint(sides.dest.dsn, "test"), 10, lambda _: True, dry_run=False)
            assert sides.copy(by="paid_at", **ELSEWHEN).recorded
            holder.close()

    done = sides.copy(day=DAY, listener=hear, retries=1, retry_delay=0)

    assert running.result(20).rows == done.rows == 1
    assert done.attempt.number == 2
    assert [type(event.error) for event in heard] == [TransientError]
    assert [row["by_column"] for row in sides.told("sliced_by")] == ["paid_at"]
    assert len(sides.told()) == 2


@pytest.mark.parametrize("options", [ALL, {"where": "id < 9"}], ids=["all", "a condition"])
def test_a_first_slice_by_a_column_means_nothing_to_what_locks_the_table(
    sides: Sides, options: dict[str, Any]
) -> None:
    sides.make()
    running, holder = sides.hold(day=DAY, ledger=False)

    def hear(event: Event) -> None:
        if isinstance(event, Waiting):
            assert sides.told("sliced_by") == []
            assert sides.copy(day=NEXT_DAY).recorded
            holder.close()

    done = sides.copy(**options, listener=hear)

    assert running.result(20).rows == 1
    assert (done.attempt.number, done.rows) == (1, 2)
    assert [row["by_column"] for row in sides.told("sliced_by")] == ["created_at"]


def test_a_plan_says_whom_a_slice_excludes(sides: Sides, words: Words) -> None:
    def notes(*options: str) -> list[str]:
        planned = words("copy", "t", "-n", "--json", *options)
        assert planned.code == 0, planned.err
        told = json.loads(planned.out)
        return [f"sliced by {told['sliced_by']}", *told["notes"]]

    alone = "no other run of copypipe works on the table meanwhile"
    others = "its slices are those by created_at; this one may overlap any of them"
    unknown = "slices of this table by another column than paid_at are not kept apart from it"
    by_another = ("--day", DAY, "--by", "paid_at")

    for options in ((), ("--no-ledger",)):
        found = notes(*by_another, *options)
        assert found[0] == "sliced by None"
        assert (unknown in found) == bool(options)
        assert alone not in found
        assert alone in notes("--where", "id > 0", *options)
    sides.copy(day=DAY)
    for options in ((), ("--no-ledger",)):
        found = notes(*by_another, *options)
        assert found[0] == "sliced by created_at"
        assert {alone, others} <= {*found}
        assert unknown not in found
        same = notes("--day", DAY, *options)
        assert same[0] == "sliced by created_at"
        assert not {alone, others, unknown} & {*same}
        assert alone in notes("--all", "--yes", *options)


def test_a_column_is_that_of_one_table(sides: Sides) -> None:
    for database in (sides.source, sides.dest):
        database.execute("CREATE TABLE public.u (LIKE public.t)")
    sides.copy(day=DAY)
    sides.copy(day=DAY, by="paid_at", into="public.u")

    assert {(row["dest_table"], row["by_column"]) for row in sides.told("sliced_by")} == {
        ("public.t", "created_at"),
        ("public.u", "paid_at"),
    }
