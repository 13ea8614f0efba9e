"""Mode append: rows are added once, and the ledger is what knows that."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from copypipe import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    NothingToCopy,
    PlanRefused,
    attempts,
    keepers,
    ledger,
)
from copypipe.events import Decided, Event, Planned, Retried, Settling
from copypipe.ledger import Ledger
from copypipe.requests import LOOK_FIRST, Endpoint
from plugins import proxy as proxies
from plugins.command import no_backends
from plugins.modes import DAY, NEXT_DAY, Pair
from plugins.proxy import Proxy

T = "CREATE TABLE public.t (id int, note text, created_at timestamptz, paid_at timestamptz)"
APPEND: dict[str, Any] = {"mode": "append", "day": DAY}
AGAIN = "Use --mode replace or merge, or give --again to add the rows once more."


@pytest.fixture(autouse=True)
def days(pair: Pair) -> None:
    """The source has rows 1 and 2 of the day and row 3 of the next; the dest has row 9."""
    pair.make(T)
    pair.source.execute(
        f"INSERT INTO public.t VALUES (1, 'a', '{DAY}Z', '2018-06-01Z'),"
        f" (2, 'b', '{DAY} 12:00Z', '2018-06-01Z'), (3, 'c', '{NEXT_DAY}Z', '2018-06-02Z')"
    )
    pair.dest.execute(f"INSERT INTO public.t VALUES (9, 'theirs', '{DAY}Z', NULL)")


def ids(pair: Pair) -> list[int]:
    return [number for (number,) in pair.dest.fetch("SELECT id FROM public.t ORDER BY id")]


# --- what is done ---------------------------------------------------------------------------------


def test_rows_are_added_to_what_is_there(pair: Pair) -> None:
    done = pair.copy(**APPEND)

    assert ids(pair) == [1, 2, 9]
    assert (done.mode, done.rows, done.deleted, done.inserted, done.updated) == (
        "append", 2, 0, None, None,
    )  # fmt: skip
    (told,) = pair.told()
    assert (told["mode"], told["rows_copied"], told["rows_deleted"]) == ("append", 2, 0)


def test_other_days_are_added_later(pair: Pair) -> None:
    pair.copy(**APPEND)
    pair.copy(mode="append", day=NEXT_DAY)
    assert ids(pair) == [1, 2, 3, 9]


def test_all_rows_are_added_without_a_yes(pair: Pair) -> None:
    """None is lost."""
    assert pair.copy(mode="append", all=True).rows == 3
    assert ids(pair) == [1, 2, 3, 9]


def test_an_empty_slice_adds_nothing_and_may_be_added_later(pair: Pair) -> None:
    empty = {"mode": "append", "day": "2018-05-05"}
    pair.refuses(NothingToCopy, "the source has no row", **empty, fail_on_empty=True)
    assert pair.copy(**empty).rows == 0
    pair.source.execute("INSERT INTO public.t VALUES (5, 'late', '2018-05-05Z')")

    assert pair.copy(**empty).rows == 1
    assert [told["rows_copied"] for told in pair.told()] == [0, 1]


def test_a_query_and_computed_columns_are_added(pair: Pair) -> None:
    query = "SELECT id + 10 AS id, note, created_at, paid_at FROM public.t"
    assert pair.copy(**APPEND, query=query, columns={"note": "upper(note)"}).rows == 2
    assert pair.dest.scalar("SELECT note FROM public.t WHERE id = 11") == "A"


def test_a_condition_that_the_dest_understands_otherwise_fails(pair: Pair) -> None:
    """What was read by it must be found by it."""
    pair.make("ALTER TABLE public.t ADD c char(3)")
    pair.dest.execute("ALTER TABLE public.t ALTER c TYPE text")
    pair.source.execute("UPDATE public.t SET c = 'x'")
    with pytest.raises((PlanRefused, CopyFailed)):
        pair.copy(**APPEND, where="c = 'x'")
    assert ids(pair) == [9]


def test_no_right_but_to_insert_is_needed(pair: Pair) -> None:
    blind = pair.dest.role("blind", "INSERT ON public.t")
    assert pair.copy(**APPEND, dest=blind.dsn, ledger=False).rows == 2


def test_columns_alone_cannot_be_locked(pair: Pair) -> None:
    columns = "id, note, created_at, paid_at"
    role = pair.dest.role("writer", f"INSERT ({columns}), SELECT ({columns}) ON public.t")
    error = pair.refuses(
        PlanRefused, "may not write public.t", **APPEND, dest=role.dsn, ledger=False
    )
    assert str(error.detail).startswith("It lacks INSERT. INSERT on columns alone does not")


def test_a_foreign_key_that_points_there_does_not_hinder(pair: Pair) -> None:
    pair.dest.execute(
        "ALTER TABLE public.t ADD PRIMARY KEY (id);"
        "CREATE TABLE public.child (u int REFERENCES public.t ON DELETE CASCADE);"
        "INSERT INTO public.child VALUES (9)"
    )
    assert pair.copy(**APPEND).rows == 2
    assert pair.dest.scalar("SELECT count(*) FROM public.child") == 1


def test_a_row_that_is_there_fails_by_the_key(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD PRIMARY KEY (id); UPDATE public.t SET id = 2")
    error = pair.refuses(CopyFailed, "duplicate key", **APPEND)
    assert (error.sqlstate, error.exit_code) == ("23505", 1)


# --- what the ledger tells ------------------------------------------------------------------------

RANGE = {"start": "2018-04-29T06:00", "stop": "2018-04-29T18:00"}
BEFORE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the same day": ({"day": DAY}, {"day": DAY}, "created_at"),
    "the same day, replaced": ({"day": DAY, "mode": "replace"}, {"day": DAY}, "created_at"),
    "the same day, merged": (
        {"day": DAY, "mode": "merge", "key": ["id"]},
        {"day": DAY},
        "created_at",
    ),
    "a part of it": (RANGE, {"day": DAY}, "created_at"),
    "a month with it": ({"day": DAY}, {"month": "2018-04"}, "created_at"),
    "the same day of another zone": (
        {"day": DAY},
        {"day": DAY, "timezone": "Asia/Tokyo"},
        "created_at",
    ),
    "all": ({"all": True}, {"day": NEXT_DAY}, "no column"),
    "a day, then all": ({"day": NEXT_DAY}, {"all": True}, "created_at"),
    "by another column": ({"day": DAY}, {"day": "2018-06-02", "by": "paid_at"}, "created_at"),
    "some of the day": ({"day": DAY, "where": "id = 1"}, {"day": DAY}, "created_at"),
    "others of the day": (
        {"day": DAY, "where": "id = 1"},
        {"day": DAY, "where": "id = 2"},
        "created_at",
    ),
    "a condition": ({"where": "id = 1"}, {"day": NEXT_DAY}, "no column"),
    "a day, then a condition": ({"day": DAY}, {"where": "id = 3"}, "created_at"),
    "another table of the source": (
        {"day": DAY},
        {"day": DAY, "query": "SELECT * FROM public.t"},
        "created_at",
    ),
}


@pytest.mark.parametrize(("first", "second", "by"), BEFORE.values(), ids=BEFORE.keys())
@pytest.mark.one_of(8)
def test_what_was_copied_before_is_not_added_again(
    pair: Pair, first: dict[str, Any], second: dict[str, Any], by: str
) -> None:
    pair.dest.execute("TRUNCATE public.t; CREATE UNIQUE INDEX ON public.t (id)")
    pair.copy(**{"mode": "append", **first})
    told = pair.told()

    error = pair.refuses(PlanRefused, "were copied into public.t before", mode="append", **second)

    assert (error.exit_code, error.side, error.hint) == (6, "dest", AGAIN)
    assert str(error.detail).startswith(f"The ledger's slice {told[0]['id']}, of ")
    assert str(error.detail).endswith(f"holds {told[0]['instants']} by {by}.")
    assert pair.told() == told


APART: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another day": ({"day": DAY}, {"day": NEXT_DAY}),
    "the rest of the day": (
        {"start": DAY, "stop": "2018-04-29T12:00"},
        {"start": "2018-04-29T12:00", "stop": NEXT_DAY},
    ),
    "a slice that had no row": ({"day": "2018-05-05"}, {"month": "2018-05"}),
}


@pytest.mark.parametrize(("first", "second"), APART.values(), ids=APART.keys())
@pytest.mark.one_of(2)
def test_what_is_apart_is_added(pair: Pair, first: dict[str, Any], second: dict[str, Any]) -> None:
    pair.copy(mode="append", **first)
    assert pair.copy(mode="append", **second).attempt.number == 1
    assert len(pair.told()) == 2


def test_what_was_copied_before_is_added_again_where_that_is_asked_for(pair: Pair) -> None:
    pair.copy(**APPEND)
    assert pair.copy(**APPEND, again=True).rows == 2
    assert ids(pair) == [1, 1, 2, 2, 9]
    assert len(pair.told()) == 2


def test_a_failure_is_not_what_was_copied(pair: Pair) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 2)")
    pair.refuses(CopyFailed, "violates check constraint", **APPEND)
    pair.dest.execute("ALTER TABLE public.t DROP CONSTRAINT t_id_check")
    assert pair.copy(**APPEND).rows == 2


def test_another_table_has_a_history_of_its_own(pair: Pair) -> None:
    pair.dest.execute("CREATE TABLE public.other (LIKE public.t)")
    pair.copy(**APPEND)
    assert pair.copy(**APPEND, into="other").rows == 2


def test_a_table_in_the_place_of_another_has_its_history(pair: Pair) -> None:
    """Whoever put it there may have brought the rows."""
    pair.copy(day=DAY, mode="append")
    pair.dest.execute(
        "CREATE TABLE public.t2 (LIKE public.t INCLUDING ALL);"
        "INSERT INTO public.t2 TABLE public.t;"
        "ALTER TABLE public.t RENAME TO t1; ALTER TABLE public.t2 RENAME TO t"
    )
    pair.refuses(PlanRefused, "were copied into public.t before", day=DAY, mode="append")


def test_a_partition_has_its_tables_history(pair: Pair) -> None:
    pair.dest.execute(
        "ALTER TABLE public.t RENAME TO part;"
        "CREATE TABLE public.t (LIKE public.part) PARTITION BY RANGE (created_at);"
        "ALTER TABLE public.t ATTACH PARTITION public.part FOR VALUES FROM ('2018-04-29Z') TO"
        " ('2018-04-30Z')"
    )
    pair.copy(**APPEND)
    pair.refuses(PlanRefused, "were copied into public.part before", **APPEND, into="part")


# --- without a ledger -----------------------------------------------------------------------------


def test_it_is_refused_where_the_ledger_cannot_be_used(pair: Pair) -> None:
    role = pair.dest.role("writer", "INSERT, SELECT ON public.t")
    error = pair.refuses(PlanRefused, "nothing can tell whether", **APPEND, dest=role.dsn)

    assert (error.exit_code, error.side) == (6, "dest")
    assert "the role lacks CREATE on the database" in str(error.detail)
    assert "--no-ledger" in str(error.hint)
    error = pair.refuses(
        PlanRefused, "nothing can tell whether", **APPEND, dest=role.dsn, again=True
    )
    assert pair.copy(**APPEND, dest=role.dsn, ledger=False).recorded is False
    assert ids(pair) == [1, 2, 9]


def test_it_is_refused_where_another_role_was_quicker_to_make_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    unusable = Ledger("unusable", "the role lacks USAGE on schema copypipe", 1)
    monkeypatch.setattr(ledger, "make", lambda *args, **options: (False, unusable))

    error = pair.refuses(PlanRefused, "nothing can tell whether", **APPEND)

    assert "the role lacks USAGE" in str(error.detail)
    assert pair.copy(day=NEXT_DAY).recorded is False


def test_without_one_nothing_is_known(pair: Pair) -> None:
    pair.copy(**APPEND, ledger=False)
    pair.copy(**APPEND, ledger=False)
    assert ids(pair) == [1, 1, 2, 2, 9]


# --- a COMMIT without an answer -------------------------------------------------------------------


def test_a_commit_whose_answer_is_lost_is_settled(pair: Pair, proxy: Callable[..., Proxy]) -> None:
    between = proxy(pair.dest.server, proxies.lose_commit(arrives=True))

    done = pair.copy(**APPEND, dest=between.dsn(pair.dest), retries=3)

    assert (done.rows, done.attempt.number) == (2, 1)
    assert pair.all_of(Decided) == [Decided(committed=True)]
    assert ids(pair) == [1, 2, 9]


def test_a_commit_that_never_arrived_is_done_again(pair: Pair, proxy: Callable[..., Proxy]) -> None:
    between = proxy(pair.dest.server, proxies.lose_commit(arrives=False))

    done = pair.copy(**APPEND, dest=between.dsn(pair.dest), retries=3)

    assert done.attempt.number == 2
    assert ids(pair) == [1, 2, 9]
    assert len(pair.told()) == 1


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
@pytest.mark.one_of(3)
def test_a_dest_that_stays_away_leaves_it_open_and_the_same_call_settles_it(
    pair: Pair,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    *,
    arrives: bool,
    again: bool,
) -> None:
    monkeypatch.setattr(attempts, "SETTLE_COMMIT_SECONDS", 0.2)
    lose = proxies.lose_commit(arrives=arrives)

    def rule(frame: proxies.Frame) -> bytes | None:
        if frame.link > 1:
            raise proxies.Cut
        return lose(frame)

    between = proxy(pair.dest.server, rule)
    with pytest.raises(CommitUnknown) as caught:
        pair.copy(**APPEND, again=again, dest=between.dsn(pair.dest), retries=3)
    no_backends(pair.dest)

    hint = "Run the same command again: the ledger knows whether they are there."
    assert caught.value.hint == (LOOK_FIRST if again else hint)
    assert pair.all_of(Retried) == []
    if arrives:
        pair.refuses(PlanRefused, "were copied into public.t before", **APPEND)
    else:
        pair.copy(**APPEND)
    assert ids(pair) == [1, 2, 9]


def test_a_ledger_that_was_removed_meanwhile_settles_nothing(
    pair: Pair, proxy: Callable[..., Proxy]
) -> None:
    dest = Endpoint(pair.dest.dsn, "test")

    def remove(event: Event) -> None:
        if isinstance(event, Settling):
            no_backends(pair.dest)
            keepers.remove(dest, 10, lambda what: True, dry_run=False)

    between = proxy(pair.dest.server, proxies.lose_commit(arrives=True))

    with pytest.raises(CommitUnknown) as caught:
        pair.copy(**APPEND, dest=between.dsn(pair.dest), retries=3, listener=remove)

    assert caught.value.hint == LOOK_FIRST
    assert ids(pair) == [1, 2, 9]


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_without_a_ledger_it_is_never_done_a_second_time(
    pair: Pair, proxy: Callable[..., Proxy], *, arrives: bool
) -> None:
    between = proxy(pair.dest.server, proxies.lose_commit(arrives=arrives))

    with pytest.raises(CommitUnknown) as caught:
        pair.copy(**APPEND, dest=between.dsn(pair.dest), ledger=False, retries=3)

    assert caught.value.exit_code == 75
    assert caught.value.hint == LOOK_FIRST
    assert pair.all_of(Retried) == []
    assert between.links == 1
    no_backends(pair.dest)
    assert ids(pair) == ([1, 2, 9] if arrives else [9])


def test_without_a_ledger_what_was_lost_before_is_tried_again(
    pair: Pair, proxy: Callable[..., Proxy]
) -> None:
    """Nothing can have been committed."""

    def rule(frame: proxies.Frame) -> None:
        if frame.link == 1 and frame.sender == "client" and frame.kind == b"c":
            raise proxies.Cut

    between = proxy(pair.dest.server, rule)
    options = {"dest": between.dsn(pair.dest), "ledger": False}

    assert pair.copy(**APPEND, **options, retries=1).attempt.number == 2
    assert ids(pair) == [1, 2, 9]
    pair.dest.execute("DELETE FROM public.t WHERE id < 9")
    between = proxy(pair.dest.server, rule)
    with pytest.raises(ConnectionLost):
        pair.copy(**APPEND, ledger=False, dest=between.dsn(pair.dest))
    no_backends(pair.dest)
    assert ids(pair) == [9]


# --- two at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False], ids=["a ledger", "none yet"])
def test_of_two_at_once_one_adds_the_rows(pair: Pair, *, made: bool) -> None:
    if made:
        keepers.make(Endpoint(pair.dest.dsn, "test"), 10, dry_run=False)
    both = threading.Barrier(2, timeout=10)

    def together(event: Event) -> None:
        if isinstance(event, Planned):
            both.wait()

    begun = [pair.start(**APPEND, listener=together) for _ in range(2)]
    errors = [one.error() for one in begun]

    assert errors.count(None) == 1
    (refused,) = [error for error in errors if error is not None]
    assert isinstance(refused, PlanRefused)
    assert "were copied into public.t before" in refused.message
    assert ids(pair) == [1, 2, 9]
    assert len(pair.told()) == 1


# --- triggers -------------------------------------------------------------------------------------


def trigger(pair: Pair, when: str, body: str) -> None:
    pair.dest.execute(
        "CREATE FUNCTION public.change() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} END $$;"
        f"CREATE TRIGGER change {when} ON public.t FOR EACH ROW EXECUTE FUNCTION public.change()"
    )


TRIGGERS = {
    "rows that are dropped": (
        "BEFORE INSERT",
        "IF NEW.id = 1 THEN RETURN NULL; END IF; RETURN NEW;",
        "the source sent 2 rows and the dest took 1",
        [2, 9],
    ),
    "rows that are removed": (
        "AFTER INSERT",
        "DELETE FROM public.t WHERE id = 1; RETURN NULL;",
        "got 1 rows instead of 2",
        [2, 9],
    ),
    "rows that are moved": (
        "BEFORE INSERT",
        "NEW.created_at := '2017-01-01'; RETURN NEW;",
        "got 0 rows instead of 2",
        [1, 2, 9],
    ),
    "rows that are added": (
        "AFTER INSERT",
        "IF pg_catalog.pg_trigger_depth() = 1 THEN INSERT INTO public.t"
        " VALUES (NEW.id + 4, '', NEW.created_at); END IF; RETURN NULL;",
        "got 4 rows instead of 2",
        [1, 2, 5, 6, 9],
    ),
}


@pytest.mark.parametrize(
    ("when", "body", "message", "left"), TRIGGERS.values(), ids=TRIGGERS.keys()
)
def test_a_trigger_that_changes_what_is_added_fails_it(
    pair: Pair, when: str, body: str, message: str, left: list[int]
) -> None:
    trigger(pair, when, body)

    error = pair.refuses(CopyFailed, message, **APPEND)

    assert error.hint == "Give --accept triggers if that is meant."
    done = pair.copy(**APPEND, accept=["triggers"])
    assert ids(pair) == left
    assert (done.rows, done.dropped) == (2, 1 if "sent" in message else 0)


def test_a_trigger_that_changes_other_tables_is_no_hindrance(pair: Pair) -> None:
    pair.dest.execute("CREATE TABLE public.log (id int)")
    trigger(pair, "AFTER INSERT", "INSERT INTO public.log VALUES (NEW.id); RETURN NULL;")
    assert pair.copy(**APPEND).rows == 2
    assert pair.dest.scalar("SELECT count(*) FROM public.log") == 2


def test_rows_that_others_add_meanwhile_are_not_counted(pair: Pair) -> None:
    trigger(pair, "AFTER INSERT", "RETURN NULL;")

    def add(event: Event) -> None:
        if isinstance(event, Planned):
            pair.dest.execute(
                "SET session_replication_role = replica;"
                f"INSERT INTO public.t VALUES (7, 'theirs', '{DAY}Z');"
                "RESET session_replication_role"
            )

    assert pair.copy(**APPEND, listener=add).rows == 2
    assert ids(pair) == [1, 2, 7, 9]


def test_triggers_cannot_be_looked_after_by_a_role_that_may_not_read(pair: Pair) -> None:
    trigger(pair, "BEFORE INSERT", "NEW.created_at := '2017-01-01'; RETURN NEW;")
    role = pair.dest.role("writer", "INSERT ON public.t", "SELECT (id) ON public.t")
    options = {"dest": role.dsn, "ledger": False}

    error = pair.refuses(PlanRefused, "may not write public.t", **APPEND, **options)

    assert error.detail == "It lacks SELECT."
    assert pair.copy(**APPEND, **options, accept=["triggers"]).rows == 2
