"""verify with a ledger, and where it writes: drift, --record, --repair."""

from typing import Any

import pytest

from copypipe import Failed, PlanRefused, SliceBusy, Verdict, verdicts
from copypipe.events import Warned
from copypipe.statements.ledger import RIGHTS
from plugins.command import Words, eventually, no_backends, pause, waits_in_pause
from plugins.modes import DAY, NEXT_DAY, Pair
from plugins.ways import Begun

T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"
APRIL: dict[str, Any] = {"start": DAY, "stop": "2018-05-01"}
ROWS = f"""
INSERT INTO public.t SELECT n, 'n' || n, timestamptz '{DAY}Z' + n * interval '1 hour'
  FROM generate_series(0, 47) AS n
"""


def two_days(pair: Pair, make: str = T) -> None:
    """Two days of 24 rows on both sides."""
    pair.make(f"{make}; {ROWS}")


def one(found: list[Any]) -> Any:
    (verdict,) = found
    return verdict


# --- drift ----------------------------------------------------------------------------------------

LATE = f"INSERT INTO public.t VALUES (500, 'late', '{DAY} 07:07Z')"
CHANGED = "UPDATE public.t SET note = 'x' WHERE id = 7"
LOST = "DELETE FROM public.t WHERE id = 8"
# What was done at the source and at the dest since the copy.
DRIFTS = {
    "late rows at the source": (LATE, "SELECT"),
    "changed at the source": (CHANGED, "SELECT"),
    "changed at the source: a row less": (LOST, "SELECT"),
    "changed at the source: late rows and others": (f"{LATE}; {CHANGED}", "SELECT"),
    "changed at the dest": ("SELECT", CHANGED),
    "changed at the dest: a row less": ("SELECT", LOST),
    "changed at the dest: a row more": ("SELECT", LATE),
    "changed on both sides": (LATE, LOST),
    "changed on both sides: the same row": (CHANGED, "UPDATE public.t SET note = '' WHERE id = 7"),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.one_of(5)
def test_drift(pair: Pair, drift: str) -> None:
    two_days(pair)
    pair.copy(day=DAY, verify="checksum")
    at_source, at_dest = DRIFTS[drift]
    pair.source.execute(at_source)
    pair.dest.execute(at_dest)

    assert one(pair.verify(day=DAY)).drift == drift.partition(":")[0]


def test_drift_without_a_key(pair: Pair) -> None:
    two_days(pair, T.replace("PRIMARY KEY", ""))
    pair.copy(day=DAY, verify="checksum")
    pair.source.execute(f"INSERT INTO public.t SELECT * FROM public.t WHERE id = 3; {LATE}")
    assert one(pair.verify(day=DAY)).drift == "late rows at the source"
    pair.source.execute(LOST)
    assert one(pair.verify(day=DAY)).drift == "changed at the source"


@pytest.mark.parametrize(
    ("last", "asked"),
    [
        ({"day": DAY}, {"day": DAY}),  # without a digest
        ({"day": DAY, "verify": "checksum", "exclude": ["note"]}, {"day": DAY}),
        ({"day": DAY, "verify": "checksum", "mode": "merge"}, {"day": DAY}),
        ({"day": DAY, "verify": "checksum", "ledger": False}, {"day": DAY}),
        ({**APRIL, "verify": "checksum"}, {"day": DAY}),
        ({"day": DAY, "verify": "checksum", "where": "id < 9"}, {"day": DAY}),
        ({"day": NEXT_DAY, "verify": "checksum"}, {"day": DAY}),
        ({"day": DAY, "verify": "checksum", "columns": {"note": "note"}}, {"day": DAY}),
    ],
    ids=str,
)
@pytest.mark.one_of(5)
def test_what_tells_nothing_of_drift(
    pair: Pair, last: dict[str, Any], asked: dict[str, Any]
) -> None:
    two_days(pair)
    pair.copy(**last)
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id < 9")
    found = one(pair.verify(**asked))
    if "columns" in last:  # which is the very column
        assert found.drift == "changed at the dest"
    else:
        assert (found.verdict, found.drift) == ("differs", None)


def test_what_was_copied_last_counts(pair: Pair) -> None:
    two_days(pair)
    pair.copy(day=DAY, verify="checksum")
    pair.source.execute(CHANGED)
    pair.copy(day=DAY, verify="checksum")
    pair.source.execute(LATE)
    assert one(pair.verify(day=DAY)).drift == "late rows at the source"
    pair.copy(**APRIL)
    pair.dest.execute(LOST)
    assert one(pair.verify(day=DAY)).drift is None


@pytest.mark.parametrize(
    "options", [{"all": True}, {"where": "id < 9"}, {"day": DAY, "where": "id < 9"}], ids=str
)
def test_drift_of_other_slices(pair: Pair, options: dict[str, Any]) -> None:
    two_days(pair)
    pair.copy(**options, verify="checksum", yes=True)
    pair.source.execute(CHANGED)
    assert one(pair.verify(**options)).drift == "changed at the source"


# --- recording ------------------------------------------------------------------------------------


def test_what_is_the_same_is_recorded(pair: Pair) -> None:
    two_days(pair)
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = 30")
    before = pair.state()

    found = pair.verify(**APRIL, record=True)

    assert [(each.verdict, each.recorded) for each in found] == [("same", True), ("differs", False)]
    assert pair.state() == before
    (told,) = pair.told()
    assert (told["mode"], told["checksum"], told["rows_copied"], told["rows_deleted"]) == (
        "verify", str(found[0].source), 24, 0,
    )  # fmt: skip
    assert (told["state"], told["by_column"], told["zone"]) == ("sealed", "created_at", "UTC")
    assert pair.dest.fetch("SELECT state FROM copypipe.attempt") == [("copied",)]
    pair.refuses(PlanRefused, "were copied into public.t before", day=DAY, mode="append")
    pair.source.execute(LATE)
    assert one(pair.verify(day=DAY)).drift == "late rows at the source"
    no_backends(pair.source, pair.dest)


def test_what_is_recorded_is_proved_like_a_copy(pair: Pair) -> None:
    two_days(pair)
    pair.verify(day=DAY, record=True)
    pair.copy(day=NEXT_DAY, verify="checksum")
    recorded, copied = pair.told()
    assert recorded.keys() == copied.keys()
    assert recorded["signature"] == copied["signature"]
    pair.copy(day=DAY, verify="checksum")
    assert pair.told()[2]["checksum"] == recorded["checksum"]


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.one_of(2)
def test_many_are_recorded(pair: Pair, jobs: int) -> None:
    two_days(pair)
    found = pair.verify(start="2018-04-26", stop="2018-05-03", record=True, jobs=jobs)
    assert all(each.recorded for each in found)
    assert len(pair.told()) == 7
    assert one(pair.verify(all=True, record=True)).recorded


def test_a_copy_of_the_slice_is_waited_for(pair: Pair) -> None:
    two_days(pair)
    pair.source.execute(CHANGED)
    pair.dest.execute(CHANGED)
    pair.copy(day="2001-01-01")  # makes the ledger
    holder = pause(pair.dest, "public.t", when="NEW.id = 7")
    copying = pair.start(day=DAY, accept=("triggers",))
    eventually(lambda: waits_in_pause(pair.dest))

    busy = one(pair.verify(day=DAY, record=True, wait_lock=0))
    assert isinstance(busy, Failed)
    assert isinstance(busy.error, SliceBusy)
    assert busy.error.exit_code == 11
    assert one(pair.verify(day=NEXT_DAY, record=True, wait_lock=0)).recorded
    waiting = Begun(lambda: pair.verify(day=DAY, record=True, wait_lock=20))
    eventually(lambda: len(pair.dest.backends()) >= 2)
    holder.close()

    copying.result()
    assert one(waiting.result()).recorded
    assert [told["mode"] for told in pair.told()] == ["replace", "verify", "replace", "verify"]


def test_what_changes_before_it_is_recorded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared once more under the lock: what is recorded was so then."""
    from copypipe import ledger

    two_days(pair)
    begin = ledger.begin

    def changing(*args: Any) -> Any:
        pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = 7")
        return begin(*args)

    monkeypatch.setattr(ledger, "begin", changing)
    found = one(pair.verify(day=DAY, record=True))
    assert not found.recorded
    assert pair.told() == []
    assert pair.dest.fetch("SELECT state FROM copypipe.attempt") == [("failed",)]


def test_a_role_without_rights_on_the_ledger(pair: Pair) -> None:
    two_days(pair)
    reader = pair.dest.role("reader", "USAGE ON SCHEMA public", "SELECT ON public.t")
    for state in ("none", "there"):
        if state == "there":
            pair.copy(day="2001-01-01")
        failed = one(pair.verify(day=DAY, record=True, dest=reader.dsn))
        assert isinstance(failed, Failed)
        assert (failed.error.exit_code, failed.error.side) == (6, "dest")
        assert "nothing can be recorded" in failed.error.message
        assert "lacks" in str(failed.error.detail)
        assert one(pair.verify(day=DAY, dest=reader.dsn)).verdict == "same"


# --- repairing ------------------------------------------------------------------------------------


def written(pair: Pair) -> set[int]:
    """Return the rows that were not there before in this form."""
    return {number for (number,) in pair.dest.fetch(
        "SELECT id FROM public.t WHERE xmin::text <> ALL (SELECT x FROM public.before)"
    )}  # fmt: skip


def remember(pair: Pair) -> None:
    pair.dest.execute("CREATE TABLE public.before AS SELECT DISTINCT xmin::text AS x FROM public.t")


DAMAGE = f"""
UPDATE public.t SET note = 'x' WHERE id = 7;
DELETE FROM public.t WHERE id = 9;
INSERT INTO public.t VALUES (700, 'more', '{DAY} 03:00Z')
"""


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.one_of(2)
def test_slices_are_repaired(pair: Pair, ledger: bool) -> None:
    two_days(pair)
    if ledger:
        pair.copy(**APRIL)
    pair.dest.execute(DAMAGE)
    remember(pair)

    found = pair.verify(**APRIL, repair="slices")

    assert [(each.verdict, each.repaired) for each in found] == [("same", True), ("same", False)]
    assert written(pair) == set(range(24))
    assert pair.told()[-1]["checksum"] == str(found[0].source)
    assert [each.repaired for each in pair.verify(**APRIL, repair="slices")] == [False, False]


def many(pair: Pair, make: str = T, rows: int = 480) -> None:
    """A day of many rows, of which few may be repaired one by one."""
    pair.make(
        f"{make}; INSERT INTO public.t SELECT n, 'n' || n, timestamptz '{DAY}Z'"
        f" + n * interval '1 minute' FROM generate_series(0, {rows - 1}) AS n"
    )


@pytest.mark.parametrize("options", [{"day": DAY}, {"all": True}, {"day": DAY, "every": "hour"}])
@pytest.mark.one_of(2)
def test_rows_are_repaired(pair: Pair, options: dict[str, Any]) -> None:
    many(pair)
    pair.dest.execute(DAMAGE)
    remember(pair)

    found = pair.verify(**options, repair="rows")

    assert {each.verdict for each in found} == {"same"}
    assert any(each.repaired for each in found)
    # An hour has 60 rows, so that three are few.
    assert written(pair) == {7, 9}
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 480


def test_rows_beyond_a_tenth_are_repaired_as_a_slice(pair: Pair) -> None:
    many(pair)
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id <= 48")
    remember(pair)
    assert one(pair.verify(day=DAY, repair="rows")).verdict == "same"
    assert len(written(pair)) == 480


KEYED = {
    "text": ("text", "'k' || n"),
    "quotes": ("text", "'k''\\\"%%{{}} é ' || n"),
    "uuid": ("uuid", "md5(n::text)::uuid"),
    "timestamptz": ("timestamptz", "timestamptz '2018-04-29Z' + n * interval '1 us'"),
    "bytea": ("bytea", "decode(md5(n::text), 'hex')"),
    "negative": ("int8", "-n - 9223372036854770000"),
    "enum": ("public.e", "('v' || n)::public.e"),
    "domain": ("public.d", "n"),
}


@pytest.mark.parametrize(("type_", "value"), KEYED.values(), ids=KEYED.keys())
@pytest.mark.one_of(5)
def test_rows_by_other_keys(pair: Pair, type_: str, value: str) -> None:
    """Where a condition of the keys cannot be trusted the slice is copied instead."""
    labels = ", ".join(f"'v{n}'" for n in range(60))
    pair.make(
        f"CREATE TYPE public.e AS ENUM ({labels}); CREATE DOMAIN public.d AS int;"
        f"CREATE TABLE public.t (k {type_} PRIMARY KEY, id int, created_at timestamptz);"
        f"INSERT INTO public.t SELECT {value.replace('%%', '%').replace('{{}}', '{}')}, n,"
        f" '{DAY}Z' FROM generate_series(0, 59) AS n"
    )
    pair.dest.execute(
        "DELETE FROM public.t WHERE id = 5; UPDATE public.t SET id = 900 WHERE id = 6"
    )
    pair.source.execute("DELETE FROM public.t WHERE id = 7")
    remember(pair)

    found = one(pair.verify(day=DAY, repair="rows"))

    assert (found.verdict, found.repaired) == ("same", True)
    if type_ not in ("public.d", "public.e"):
        assert written(pair) == {5, 6}


def test_rows_by_a_key_of_two_columns(pair: Pair) -> None:
    pair.make(
        "CREATE TABLE public.t (a int, b text, id int, created_at timestamptz, PRIMARY KEY (b, a));"
        f"INSERT INTO public.t SELECT n % 10, 'b''' || n / 10, n, '{DAY}Z'"
        "  FROM generate_series(0, 99) AS n"
    )
    pair.dest.execute("DELETE FROM public.t WHERE id = 5; UPDATE public.t SET id = 9 WHERE id = 6")
    remember(pair)
    assert one(pair.verify(day=DAY, repair="rows")).verdict == "same"
    assert written(pair) == {5, 6}


def test_rows_by_a_key_that_is_asked_for(pair: Pair) -> None:
    many(pair, T.replace("PRIMARY KEY", "UNIQUE"))
    pair.dest.execute(CHANGED)
    remember(pair)
    assert one(pair.verify(day=DAY, repair="rows", key=["id"])).verdict == "same"
    assert written(pair) == {7}
    pair.dest.execute(CHANGED)
    assert one(pair.verify(day=DAY, repair="rows")).verdict == "same"  # without a key, the slice
    assert len(written(pair)) == 480


def test_rows_without_a_key_at_the_dest(pair: Pair) -> None:
    many(pair)
    pair.dest.execute("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
    pair.dest.execute("INSERT INTO public.t SELECT * FROM public.t WHERE id = 3")
    assert one(pair.verify(day=DAY, repair="rows")).verdict == "same"
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 480


def test_rows_of_a_condition_and_a_query(pair: Pair) -> None:
    many(pair)
    pair.dest.execute(f"{CHANGED}; UPDATE public.t SET note = 'x' WHERE id = 400")
    remember(pair)
    where = "id < 300 -- and a comment"
    assert one(pair.verify(day=DAY, where=where, repair="rows")).verdict == "same"
    assert written(pair) == {7}
    query = "SELECT * FROM public.t WHERE id <> 9"
    found = one(pair.verify(day=DAY, query=query, repair="rows"))
    assert (found.verdict, found.dest.rows) == ("same", 479)


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("repair", ["slices", "rows"])
@pytest.mark.one_of(3)
def test_an_empty_source_needs_a_word(pair: Pair, repair: Any, rows: int) -> None:
    many(pair, rows=rows)
    pair.source.execute("DELETE FROM public.t")
    before = pair.state()

    failed = one(pair.verify(day=DAY, repair=repair))

    assert isinstance(failed, Verdict)
    assert failed.is_different
    assert failed.failure is not None
    assert failed.failure.exit_code == 6
    assert "--allow-empty" in str(failed.failure.hint)
    assert pair.state() == before
    found = one(pair.verify(day=DAY, repair=repair, allow_empty=True))
    assert (found.verdict, found.repaired) == ("same", True)
    assert pair.dest.scalar("SELECT count(*) FROM public.t") == 0


def test_what_cannot_be_repaired_is_told(pair: Pair) -> None:
    two_days(pair)
    pair.dest.execute("DELETE FROM public.t WHERE id IN (7, 30)")
    pair.dest.execute("ALTER TABLE public.t ADD CHECK (id <> 7)")
    first, second = pair.verify(**APRIL, repair="slices")
    assert (first.verdict, first.repaired) == ("differs", False)
    assert "violates check constraint" in first.failure.message
    assert (second.verdict, second.repaired) == ("same", True)


def test_parallel_repairs(pair: Pair) -> None:
    two_days(pair)
    pair.dest.execute("DELETE FROM public.t")
    found = pair.verify(start="2018-04-25", stop="2018-05-05", repair="slices", jobs=4, record=True)
    assert {each.verdict for each in found} == {"same"}
    assert sum(each.repaired for each in found) == 2
    assert all(each.recorded for each in found)
    no_backends(pair.source, pair.dest)


# --- the words ------------------------------------------------------------------------------------


def test_repairs_in_words(words: Words, pair: Pair) -> None:
    two_days(pair)
    pair.dest.execute(DAMAGE)
    run = words("verify", "t", "--month", "2018-04", "--from", DAY)
    assert run.code == 2
    asked = ("verify", "t", "--from", DAY, "--to", "2018-05-01")
    run = words(*asked)
    assert run.code == 4
    assert "2 slices: 1 differs, 1 same" in run.out
    run = words(*asked, "--repair", "rows", "--record")
    assert run.code == 0, run.err
    assert "same  24 rows" in run.out
    assert "; repaired; recorded" in run.out


def test_all_rows_are_replaced_only_where_that_is_allowed(pair: Pair) -> None:
    """A source that was half loaded would otherwise empty the dest."""
    two_days(pair)
    pair.source.execute("DELETE FROM public.t WHERE id > 1")
    before = pair.state()

    found = one(pair.verify(all=True, repair="slices"))

    assert (found.verdict, found.failure.exit_code) == ("differs", 2)
    assert pair.state() == before
    assert one(pair.verify(all=True, repair="slices", yes=True)).verdict == "same"


@pytest.mark.parametrize("options", [{"record": True}, {"repair": "slices"}])
def test_swapped_sides_change_nothing(pair: Pair, options: dict[str, Any]) -> None:
    two_days(pair)
    pair.copy(**APRIL)
    swapped = {"source": pair.dest.dsn, "dest": pair.source.dsn}

    with pytest.raises(PlanRefused, match="swapped"):
        pair.verify(day=DAY, **swapped, **options)

    assert one(pair.verify(day=DAY, **swapped)).verdict == "same"
    assert pair.copy(**APRIL).rows > 0


def test_rows_that_cannot_be_moved_are_repaired_with_their_slice(pair: Pair) -> None:
    """A role that may not update cannot merge."""
    two_days(pair)
    pair.copy(day=DAY)
    rights = ("USAGE ON SCHEMA copypipe", "SELECT, INSERT, DELETE ON public.t")
    rights += tuple(f"{', '.join(each)} ON copypipe.{name}" for name, each in RIGHTS.items())
    role = pair.dest.role("writer", *rights)
    pair.dest.execute(CHANGED)

    found = one(pair.verify(day=DAY, repair="rows", dest=role.dsn))

    assert (found.verdict, found.repaired, found.failure) == ("same", True, None)
    assert pair.told()[-1]["mode"] == "replace"
    (told,) = pair.all_of(Warned)
    assert "is copied, since its rows cannot be: " in told.text


def test_an_hour_with_a_hole(pair: Pair) -> None:
    """A minute of the next day, before the clock went back over midnight: it is no repair's."""
    day = {"timezone": "America/St_Johns", "day": "2010-11-06"}
    pair.make(T)
    pair.make(
        "INSERT INTO public.t SELECT n, 'n' || n,"
        " timestamptz '2010-11-07 02:00Z' + n * interval '20 seconds'"
        " FROM generate_series(0, 300) AS n"
    )
    pair.dest.execute("UPDATE public.t SET note = 'x'")

    found = pair.verify(**day, every="hour", repair="slices")

    assert [each.verdict for each in found if each.source.rows] == ["same"] * 2
    changed = "SELECT min(created_at), max(created_at), count(*) FROM public.t WHERE note = 'x'"
    first, last, _ = pair.dest.fetch(changed)[0]
    assert (
        pair.dest.scalar(
            "SELECT count(*) FROM public.t WHERE note = 'x' AND created_at < '2010-11-07 02:31Z'"
        )
        == 3
    ), (first, last)


def test_rows_that_are_too_long_are_told_by_their_keys(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_MOST_SHOWN", 3000)
    two_days(pair)
    pair.source.execute(
        f"UPDATE public.t SET note = repeat(id::text, 400) WHERE created_at < '{NEXT_DAY}Z'"
    )

    found = one(pair.verify(day=DAY, show_rows=True))

    rows = found.differing.rows
    assert len(rows) == 24
    assert all(row.dest is not None for row in rows), "those are short"
    shown = [row for row in rows if row.source is not None]
    assert 0 < len(shown) < 24
    for row in shown:
        assert row.source[:2] == (row.key[0], row.key[0] * 400)


def test_a_copy_of_a_partition_tells_nothing_of_drift(pair: Pair) -> None:
    pair.make(
        f"{T.replace('id int PRIMARY KEY', 'id int')} PARTITION BY RANGE (id);"
        f"CREATE TABLE public.p PARTITION OF public.t DEFAULT; {ROWS}"
    )
    pair.copy(day=DAY, verify="checksum")
    pair.source.execute(CHANGED)
    pair.copy(table="public.p", day=DAY, verify="checksum")
    pair.dest.execute(LOST)

    assert one(pair.verify(day=DAY)).drift is None
    assert one(pair.verify(table="public.p", day=DAY)).drift == "changed at the dest"
