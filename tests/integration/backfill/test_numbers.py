"""Ranges of a column of whole numbers, in every command that takes a range."""

import json
from datetime import timedelta
from typing import Any

import pytest

import copypipe
from copypipe import Backfilled, PlanRefused, UsageError, horizons, transfers
from plugins.command import Words, no_backends
from plugins.modes import Pair
from plugins.ways import Begun

T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"
RANGE: dict[str, Any] = {"by": "id", "start": -10, "stop": 90, "every": 25}
PARTS = [(-10, 15), (15, 40), (40, 65), (65, 90)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what just began: a second would be waited for in each of these tests."""
    for module in (horizons, transfers):
        monkeypatch.setattr(module, "MARGIN", timedelta(milliseconds=50))


@pytest.fixture(autouse=True)
def table(pair: Pair) -> None:
    """Numbers from -10 to 99 at the source, nothing at the dest."""
    pair.make(T)
    pair.source.execute(
        "INSERT INTO public.t SELECT n, 'row ' || n, '2018-04-01Z'::timestamptz + n * interval"
        " '1 hour' FROM generate_series(-10, 99) AS n"
    )


def backfill(pair: Pair, **options: Any) -> Backfilled:
    sides = {"source": pair.source.dsn, "dest": pair.dest.dsn}
    chosen = {**sides, **RANGE, "retries": 0, "retry_delay": 0.01, "listener": pair.hear, **options}
    return copypipe.backfill("public.t", **chosen)


def parts(done: Backfilled) -> list[tuple[int, int] | None]:
    return [each.slice.numbers for each in done.copied]


def is_equal(pair: Pair, below: int = 90) -> bool:
    query = f"SELECT * FROM public.t WHERE id < {below} ORDER BY id"
    return pair.source.text(query) == pair.dest.text(query)


def test_every_number_is_copied_once(pair: Pair) -> None:
    done = backfill(pair, jobs=2)

    assert sorted(parts(done)) == PARTS
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 100
    assert is_equal(pair)
    assert {(row["state"], row["by_column"]) for row in pair.told()} == {("sealed", "id")}
    assert {(row["instants"], row["numbers"]) for row in pair.told()} == {
        ("{(,)}", f"{{[{start},{stop})}}") for start, stop in PARTS
    }
    no_backends(pair.source, pair.dest)


def test_what_is_done_is_left_out(pair: Pair) -> None:
    backfill(pair)
    assert backfill(pair).skipped == 4
    assert backfill(pair, start=0, every=7).copied == (), "whatever pieces it was copied in"

    pair.dest.execute("DELETE FROM public.t WHERE id BETWEEN 40 AND 64")

    assert parts(backfill(pair)) == [(40, 65)]
    assert len(backfill(pair, again=True).copied) == 4


def test_a_part_does_not_cover_a_whole(pair: Pair) -> None:
    pair.copy(by="id", start=15, stop=39)

    assert parts(backfill(pair)) == PARTS


def test_the_last_numbers_are_open(pair: Pair) -> None:
    """They may get more; those below are done."""
    done = backfill(pair, stop=115)

    assert [each.open_because for each in done.copied] == [
        *[None] * 4,
        "the highest number at the source was 99",
    ]
    assert parts(backfill(pair, stop=115)) == [(90, 115)]


def test_who_may_have_drawn_a_number_before_keeps_it_open(pair: Pair) -> None:
    with pair.source.connect(autocommit=False) as other:
        other.execute("INSERT INTO public.t VALUES (100, 'not seen', now())")
        done = backfill(pair)
        assert all("is running since" in (each.open_because or "") for each in done.copied)

    assert parts(backfill(pair)) == PARTS
    assert backfill(pair).skipped == 4


def test_without_an_index_nothing_is_sealed(pair: Pair) -> None:
    pair.source.execute("ALTER TABLE public.t DROP CONSTRAINT t_pkey")

    done = backfill(pair)

    assert all("without an index" in (each.open_because or "") for each in done.copied)
    assert is_equal(pair)


@pytest.mark.parametrize(
    ("here", "there"), [("int", "bigint"), ("bigint", "int"), ("smallint", "bigint")]
)
def test_numbers_may_be_wider_on_one_side(pair: Pair, here: str, there: str) -> None:
    """That is what such a table is often copied for."""
    pair.source.execute(f"ALTER TABLE public.t ALTER id TYPE {here}")
    pair.dest.execute(f"ALTER TABLE public.t ALTER id TYPE {there}")

    assert parts(backfill(pair, cast=["id"])) == PARTS
    assert is_equal(pair)
    found = copypipe.verify(
        "public.t", source=pair.source.dsn, dest=pair.dest.dsn, **RANGE, cast=["id"]
    )
    assert [each.verdict for each in found] == ["same"] * 4


def test_the_ends_of_the_widest_numbers(pair: Pair) -> None:
    pair.make("ALTER TABLE public.t ALTER id TYPE bigint")
    pair.source.execute(
        "INSERT INTO public.t VALUES (9223372036854775806, 'last'), (-9223372036854775808, 'first')"
    )

    done = backfill(pair, start=-(2**63), stop=2**63 - 1, every=2**62)

    assert [each.rows for each in done.copied] == [1, 10, 100, 1]
    assert is_equal(pair, below=2**63 - 1)


def test_slices_that_overlap_wait_for_each_other(pair: Pair) -> None:
    first = pair.copy(by="id", start=0, stop=50)
    begun = [Begun(lambda: pair.copy(by="id", start=20, stop=70)) for _ in range(3)]
    for each in begun:
        assert each.result().rows == 50

    assert first.rows == 50
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 70


def test_a_slice_that_takes_too_long_is_halved(pair: Pair) -> None:
    pair.dest.execute(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_sleep(0.02); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.slow()"
    )
    setting = {"dest_set": {"statement_timeout": "700ms"}, "accept": ["triggers"]}

    done = backfill(pair, stop=40, every=50, min_slice=10, **setting)

    assert len(parts(done)) == 2
    assert is_equal(pair, below=40)


def test_merge_and_append(pair: Pair) -> None:
    assert len(backfill(pair, mode="append").copied) == 4
    assert backfill(pair, mode="append").copied == ()
    pair.refuses(PlanRefused, "were copied into", by="id", start=80, stop=95, mode="append")
    pair.copy(by="id", start=90, stop=95, mode="append")
    pair.copy(by="id", start=80, stop=100, mode="merge")
    assert is_equal(pair, below=100)


def test_verify_and_repair(pair: Pair) -> None:
    backfill(pair)
    pair.dest.execute(
        "UPDATE public.t SET note = 'x' WHERE id IN (20, 70); DELETE FROM t WHERE id = 3"
    )

    found = pair.verify(**RANGE, jobs=2)

    by_start = sorted(found, key=lambda each: each.slice.numbers)
    assert [each.verdict for each in by_start] == ["differs", "differs", "same", "differs"]
    assert [
        [(row.is_, *row.key) for row in each.differing.rows] for each in by_start if each.differing
    ] == [
        [("missing", "3")],
        [("differs", "20")],
        [("differs", "70")],
    ]
    assert {each.verdict for each in pair.verify(**RANGE, repair="rows")} == {"same"}
    assert is_equal(pair)


def test_what_is_recorded_goes_on_by_backfill(pair: Pair) -> None:
    pair.dest.execute(
        "INSERT INTO public.t SELECT n, 'row ' || n, '2018-04-01Z'::timestamptz"
        " + n * interval '1 hour' FROM generate_series(-10, 99) AS n"
    )

    assert all(each.recorded for each in pair.verify(**RANGE, record=True))

    assert backfill(pair).skipped == 4


def test_receipt_and_forget(pair: Pair, words: Words) -> None:
    backfill(pair)
    env = {"COPYPIPE_SOURCE": pair.source.dsn, "COPYPIPE_DEST": pair.dest.dsn}
    asked = ("--by", "id")

    run = words("receipt", "t", *asked, "--from", "15", "--to", "40", env=env)

    assert json.loads(run.out)["slice"] == {"all": False, "by": "id", "numbers": [[15, 40]]}
    gone = words("clean", "t", *asked, "--forget", "20..21", "--yes", env=env)
    assert (gone.code, "removed 1 copies" in gone.out) == (0, True), gone
    assert parts(backfill(pair)) == [(15, 40)]


def test_prune(pair: Pair, words: Words) -> None:
    backfill(pair)
    backfill(pair, again=True)
    env = {"COPYPIPE_SOURCE": pair.source.dsn, "COPYPIPE_DEST": pair.dest.dsn}

    pair.dest.execute("UPDATE copypipe.slice SET recorded_at = recorded_at - interval '1 day'")
    run = words("clean", "--older-than", "1h", "--yes", env=env)

    assert "removed 4 superseded copies" in run.out, run
    assert backfill(pair).skipped == 4


def test_a_partition_of_numbers_is_truncated(pair: Pair) -> None:
    pair.dest.execute(
        "DROP TABLE public.t; CREATE TABLE public.t (id int, note text, created_at timestamptz)"
        " PARTITION BY RANGE (id);"
        "CREATE TABLE public.a PARTITION OF public.t FOR VALUES FROM (-10) TO (15);"
        "CREATE TABLE public.b PARTITION OF public.t FOR VALUES FROM (15) TO (40)"
    )
    pair.dest.execute("INSERT INTO public.t VALUES (1, 'old')")

    done = backfill(pair, stop=40, clear="truncate")

    assert parts(done) == PARTS[:2]
    assert is_equal(pair, below=40)
    error = pair.refuses(PlanRefused, "has no partition for rows", by="id", start=15, stop=41)
    assert "40" in (error.detail or "")


def test_a_failed_slice_is_told_with_its_command(pair: Pair, words: Words) -> None:
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 20)")
    env = {"COPYPIPE_SOURCE": pair.source.dsn, "COPYPIPE_DEST": pair.dest.dsn}
    options = ("--by", "id", "--from", "-10", "--to", "90", "--every", "25")

    run = words("backfill", "public.t", *options, env=env)

    assert run.code == 3
    command = "copypipe copy public.t --by id --from=15 --to=40"
    assert f"failed: [15, 40); {command}" in run.err
    pair.dest.execute("ALTER TABLE public.t DROP CONSTRAINT t_id_check")
    assert words(*command.split()[1:], env=env).code == 0
    assert words("backfill", "public.t", *options, env=env).out.count("\n") == 1


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an empty range": ({"stop": -10}, UsageError, "the range is empty"),
    "days of numbers": (
        {"start": "2018-04-01", "stop": "2018-04-02", "every": "day"},
        PlanRefused,
        'the slice column "id" is of type integer, and the range is one of time',
    ),
    "numbers of a time": (
        {"by": "created_at"},
        PlanRefused,
        "the slice column is a date or time, and the range is one of numbers",
    ),
    "hours of numbers": (
        {"every": "hour"},
        UsageError,
        'slices of the column "id" cannot be an hour long',
    ),
    "numbers of days": (
        {"by": "created_at", "start": "2018-04-01", "stop": "2018-04-02"},
        UsageError,
        'slices of the column "created_at" cannot be 25 numbers long',
    ),
    "too many": ({"stop": 2**31 - 1}, UsageError, "more than 100000 slices"),
    "a column of text": ({"by": "note"}, PlanRefused, 'the slice column "note" is of type text'),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(pair: Pair, bad: str) -> None:
    options, kind, message = BAD[bad]
    before = pair.state()

    with pytest.raises(kind, match=message):
        backfill(pair, **options)

    assert pair.state() == before


def test_a_calendar_shows_no_numbers(pair: Pair, words: Words) -> None:
    env = {"COPYPIPE_SOURCE": pair.source.dsn, "COPYPIPE_DEST": pair.dest.dsn}
    run = words("status", "t", "--by", "id", "--from", "0", "--to", "9", env=env)
    assert run.code == 6
    assert "no calendar shows" in run.err


def test_a_key_that_was_altered_to_a_time(pair: Pair) -> None:
    """What was told of it by its numbers says nothing of its times."""
    pair.make("ALTER TABLE public.t ADD at int DEFAULT 5")
    backfill(pair, by="at", start=0, stop=10, every=10)
    pair.make("ALTER TABLE public.t DROP at; ALTER TABLE public.t ADD at date DEFAULT '2018-04-29'")

    done = backfill(pair, by="at", start="2018-04-29", stop="2018-04-30", every="day")

    assert len(done.copied) == 1
