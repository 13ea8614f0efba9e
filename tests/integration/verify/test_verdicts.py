"""verify: what it says of slices of every kind, and that it changes nothing at either side."""

from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest

import copypipe
from copypipe import ConnectionLost, PlanRefused, UsageError, Verdict, verdicts
from copypipe.events import Retried
from plugins.command import no_backends
from plugins.databases import Database
from plugins.modes import DAY, NEXT_DAY, Pair

T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"
APRIL: dict[str, Any] = {"start": "2018-04-28", "stop": "2018-05-03"}
ROWS = """
INSERT INTO public.t SELECT n, 'n' || n, timestamptz '2018-04-28Z' + n * interval '1 hour'
  FROM generate_series(0, 119) AS n
"""


def same(pair: Pair, make: str = T) -> None:
    """Five days of 24 rows on both sides."""
    pair.make(f"{make}; {ROWS}; CREATE INDEX ON public.t (created_at)")


def state(database: Database) -> list[tuple[Any, ...]]:
    """Return where all rows of all tables of the database are, and who has written or locked them.

    What the catalog says of tables too: a TRUNCATE would leave other files.
    """
    tables = database.fetch(
        "SELECT c.oid::regclass::text, c.relfilenode FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    )
    return [*tables] + [
        (table, *row)
        for table, _ in tables
        for row in database.fetch(
            f"SELECT ctid::text, xmin::text, xmax::text, t::text FROM ONLY {table} t ORDER BY ctid"
        )
    ]


@pytest.fixture
def unchanged(pair: Pair) -> Callable[..., list[Any]]:
    """Return a verification that must leave both sides as they are."""

    def verify(table: str = "public.t", **options: Any) -> list[Any]:
        before = [state(database) for database in (pair.source, pair.dest)]
        try:
            return pair.verify(table, **options)
        finally:
            no_backends(pair.source, pair.dest)
            assert [state(database) for database in (pair.source, pair.dest)] == before

    return verify


Unchanged = Callable[..., list[Any]]


def judged(found: list[Any]) -> list[str]:
    return [each.verdict for each in found]


def of_rows(found: Verdict) -> list[tuple[Any, ...]]:
    """Return what is said of the rows, in the order in which they are told."""
    assert found.differing is not None
    assert found.differing.complete
    return [(row.is_, *row.key) for row in found.differing.rows]


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 4])
def test_each_verdict(pair: Pair, unchanged: Unchanged, jobs: int) -> None:
    same(pair)
    pair.dest.execute(
        "DELETE FROM public.t WHERE id BETWEEN 24 AND 47;"  # 04-29
        "UPDATE public.t SET note = 'other' WHERE id = 50;"  # 04-30
        "DELETE FROM public.t WHERE id = 51; INSERT INTO public.t VALUES (500, 'x', '2018-04-30Z')"
    )
    pair.source.execute("DELETE FROM public.t WHERE id BETWEEN 72 AND 95")  # 05-01

    found = sorted(unchanged(**APRIL, jobs=jobs), key=lambda each: each.slice.start)

    assert judged(found) == ["same", "missing", "differs", "extra", "same"]
    assert [each.slice.days[0].isoformat() for each in found] == [
        "2018-04-28", "2018-04-29", "2018-04-30", "2018-05-01", "2018-05-02",
    ]  # fmt: skip
    assert of_rows(found[2]) == [("differs", "50"), ("extra", "500"), ("missing", "51")]
    assert Counter(row[0] for row in of_rows(found[1])) == {"missing": 24}
    assert Counter(row[0] for row in of_rows(found[3])) == {"extra": 24}
    assert [(each.source.rows, each.dest.rows) for each in found] == [
        (24, 24), (24, 0), (24, 24), (0, 24), (24, 24),
    ]  # fmt: skip
    assert {each.key for each in found} == {("id",)}


def test_an_open_slice(pair: Pair, unchanged: Unchanged) -> None:
    """Who still writes there may bring rows; what is there besides will stay."""
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, created_at date)")
    today = pair.source.scalar("SELECT current_date")
    pair.source.execute("INSERT INTO public.t VALUES (1, current_date), (2, current_date)")

    assert judged(unchanged(day=today)) == ["open"]
    pair.dest.execute("INSERT INTO public.t VALUES (1, current_date)")
    (found,) = unchanged(day=today)
    assert (found.verdict, of_rows(found), found.is_different) == (
        "open", [("missing", "2")], False,
    )  # fmt: skip
    pair.source.execute("DELETE FROM public.t")
    assert judged(unchanged(day=today)) == ["extra"]
    pair.dest.execute("DELETE FROM public.t")
    (found,) = unchanged(day=today)
    assert found.verdict == "same"
    assert found.open_because


def test_values_are_shown_where_that_is_asked_for(pair: Pair, unchanged: Unchanged) -> None:
    same(pair)
    pair.dest.execute("UPDATE public.t SET note = NULL WHERE id = 30")

    (found,) = unchanged(day=DAY)
    assert (found.differing.rows[0].source, found.differing.rows[0].dest) == (None, None)
    (found,) = unchanged(day=DAY, show_rows=True)
    assert found.columns == ("id", "note", "created_at")
    (row,) = found.differing.rows
    assert row.source == ("30", "n30", "2018-04-29 06:00:00+00")
    assert row.dest == ("30", None, "2018-04-29 06:00:00+00")


@pytest.mark.parametrize(
    ("every", "slices"),
    [
        ("hour", 120),
        ("day", 5),
        ("week", 2),  # a Saturday and a Sunday, and what comes then
        ("month", 2),
        (None, 1),
    ],
)
def test_how_a_range_is_cut(pair: Pair, unchanged: Unchanged, every: Any, slices: int) -> None:
    same(pair)
    pair.dest.execute("DELETE FROM public.t WHERE id = 77")

    found = unchanged(**APRIL, every=every, jobs=2)

    assert len(found) == slices
    verdict = "missing" if every == "hour" else "differs"
    assert Counter(judged(found)) == Counter({"same": slices - 1, verdict: 1})
    (wrong,) = [each for each in found if each.is_different]
    assert of_rows(wrong) == [("missing", "77")]
    assert sum(each.source.rows for each in found) == 120


@pytest.mark.parametrize(
    ("type_", "every"), [("date", "day"), ("timestamp", "day"), ("date", "week")]
)
def test_columns_of_days(pair: Pair, unchanged: Unchanged, type_: str, every: Any) -> None:
    same(pair, T.replace("timestamptz", type_))
    pair.dest.execute("UPDATE public.t SET note = '' WHERE id = 30")
    found = unchanged(**APRIL, every=every, timezone="Asia/Tokyo")
    (wrong,) = [each for each in found if each.verdict != "same"]
    assert of_rows(wrong) == [("differs", "30")]
    if type_ == "date":
        with pytest.raises(UsageError, match="has no hours"):
            unchanged(**APRIL, every="hour")


ZONES = {
    "an hour more": ("Europe/Berlin", "2018-10-28", "hour"),
    "midnight twice": ("America/Havana", "2018-11-04", "day"),
    "a hole": ("America/St_Johns", "2010-11-07", "day"),
    "hours with a hole": ("America/St_Johns", "2010-11-07", "hour"),
    "no such day": ("Pacific/Apia", "2011-12-30", "day"),
}


@pytest.mark.parametrize(("zone", "day", "every"), ZONES.values(), ids=ZONES.keys())
@pytest.mark.one_of(3)
def test_days_of_zones(pair: Pair, unchanged: Unchanged, zone: str, day: str, every: Any) -> None:
    """Each row around the change is of one slice, and a row that is damaged is of the right one."""
    first = date.fromisoformat(day) - timedelta(days=1)
    pair.make(
        f"{T}; INSERT INTO public.t SELECT n, '', '{first}Z'::timestamptz + n * interval '10 min'"
        "  FROM generate_series(-300, 800) AS n"
    )
    days = 3 if every == "day" else 2
    range_: dict[str, Any] = {"start": first, "stop": first + timedelta(days), "timezone": zone}
    mine = f"(created_at AT TIME ZONE '{zone}')::date"
    expected = dict(
        pair.source.fetch(
            f"SELECT {mine}, count(*) FROM public.t"
            f" WHERE {mine} BETWEEN '{first}' AND '{first + timedelta(days - 1)}' GROUP BY 1"
        )
    )

    found = unchanged(**range_, every=every)

    assert set(judged(found)) == {"same"}
    assert sum(each.source.rows for each in found) == sum(expected.values())
    if every == "day":
        counts = {each.slice.days[0]: each.source.rows for each in found}
        assert {one: rows for one, rows in counts.items() if rows} == expected
    id_, of = pair.source.fetch(
        f"SELECT id, {mine} FROM public.t WHERE {mine} = (SELECT max({mine}) FROM public.t"
        f" WHERE {mine} <= '{day}') ORDER BY created_at DESC LIMIT 1"
    )[0]
    pair.dest.execute("DELETE FROM public.t WHERE id = %s", [id_])
    wrong = [each for each in unchanged(**range_, every=every) if each.verdict != "same"]
    assert [of_rows(each) for each in wrong] == [[("missing", str(id_))]]
    if every == "day":
        assert [each.slice.days[0] for each in wrong] == [of]


# --- all rows, and what tells them apart ----------------------------------------------------------

TIMES = {
    "timestamptz": ["2018-04-29Z", "1999-12-31 23:59:59.999999Z", "4713-01-02 BC", "2000-01-01Z"],
    "timestamp": ["2018-04-29", "294276-12-31 23:59:59.999999", "4713-01-02 BC"],
    "date": ["2018-04-29", "5874897-12-31", "4713-01-01 BC"],
}


@pytest.mark.parametrize("type_", TIMES)
@pytest.mark.one_of(2)
def test_all_with_times_of_no_day(pair: Pair, unchanged: Unchanged, type_: str) -> None:
    """NULL and the infinite times are groups of their own; the last times have no next day."""
    times = ["NULL", *(f"'{time}'" for time in (*TIMES[type_], "infinity", "-infinity"))]
    pair.make(f"CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at {type_})")
    for number, time in enumerate(times):
        pair.make(
            f"INSERT INTO public.t SELECT {number} * 10 + n, '', {time}"
            "  FROM generate_series(0, 3) AS n"
        )
    assert judged(unchanged(all=True)) == ["same"]

    for number in (0, 2, len(times) - 2, len(times) - 1):
        pair.dest.execute(f"UPDATE public.t SET note = 'x' WHERE id = {number} * 10 + 2")
        (found,) = unchanged(all=True)
        assert of_rows(found) == [("differs", str(number * 10 + 2))], times[number]
        pair.dest.execute("UPDATE public.t SET note = ''")
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id % 10 = 1")
    (found,) = unchanged(all=True)
    assert len(of_rows(found)) == len(times)


@pytest.mark.parametrize(("type_", "spread"), [("int2", 40), ("int4", 3), ("int8", 1)])
@pytest.mark.one_of(2)
def test_all_with_whole_numbers(pair: Pair, unchanged: Unchanged, type_: str, spread: int) -> None:
    """Division cuts towards zero, so that the group 0 is twice as wide as others."""
    pair.make(
        f"CREATE TABLE public.t (id {type_} PRIMARY KEY, note text);"
        f"INSERT INTO public.t SELECT n * {spread}, '' FROM generate_series(-700, 700) AS n"
    )
    assert judged(unchanged(all=True)) == ["same"]
    wanted = [n * spread for n in (-700, -699, -27, -26, -25, -2, -1, 0, 1, 2, 699, 700)]
    for number in wanted[3:9:2]:
        pair.dest.execute(f"UPDATE public.t SET note = 'x' WHERE id = {number}")
        (found,) = unchanged(all=True)
        assert of_rows(found) == [("differs", str(number))]
        pair.dest.execute("UPDATE public.t SET note = ''")
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = ANY (%s)", [wanted])
    (found,) = unchanged(all=True)
    assert sorted(int(key) for _, key in of_rows(found)) == wanted


def test_all_with_the_ends_of_whole_numbers(pair: Pair, unchanged: Unchanged) -> None:
    ends = (-(2**63), 2**63 - 1)
    pair.make("CREATE TABLE public.t (id int8 PRIMARY KEY, note text)")
    for number in (*ends, 0):
        pair.make(f"INSERT INTO public.t VALUES ({number}, '')")
    for number in ends:
        pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = %s", [number])
        assert of_rows(unchanged(all=True)[0]) == [("differs", str(number))]
        pair.dest.execute("UPDATE public.t SET note = ''")


KEYS = {
    "uuid": ("uuid", "md5(n::text)::uuid"),
    "text": ("text", "'kéy ''\\\"' || n"),
    "collated": ('text COLLATE "C"', "'K' || n"),
    "bpchar": ("char(12)", "'k' || n"),
    "numeric": ("numeric", "n / 8.0"),
    "timestamptz": ("timestamptz", "timestamptz '2018-04-29Z' + n * interval '1 s'"),
    "bytea": ("bytea", "decode(md5(n::text), 'hex')"),
    "enum": ("public.e", "('v' || n)::public.e"),
    "domain": ("public.d", "n"),
    "float8": ("float8", "n / 7.0"),
}


@pytest.mark.parametrize(("type_", "value"), KEYS.values(), ids=KEYS.keys())
@pytest.mark.one_of(5)
def test_keys_of_other_types(pair: Pair, unchanged: Unchanged, type_: str, value: str) -> None:
    labels = ", ".join(f"'v{n}'" for n in range(100))
    pair.make(
        f"CREATE TYPE public.e AS ENUM ({labels}); CREATE DOMAIN public.d AS int;"
        f"CREATE TABLE public.t (id {type_} PRIMARY KEY, note text);"
        f"INSERT INTO public.t SELECT {value}, 'n' || n FROM generate_series(0, 99) AS n"
    )
    assert judged(unchanged(all=True)) == ["same"]
    pair.dest.execute(
        "UPDATE public.t SET note = 'x' WHERE note = 'n50';DELETE FROM public.t WHERE note = 'n51'"
    )
    pair.source.execute("DELETE FROM public.t WHERE note = 'n52'")
    (found,) = unchanged(all=True)
    keys = dict(pair.source.fetch("SELECT note, id::text FROM public.t"))
    keys |= dict(pair.dest.fetch("SELECT note, id::text FROM public.t WHERE note = 'n52'"))
    assert sorted(of_rows(found)) == sorted(
        [("differs", keys["n50"]), ("missing", keys["n51"]), ("extra", keys["n52"])]
    )


def test_a_key_of_two_columns(pair: Pair, unchanged: Unchanged) -> None:
    pair.make(
        "CREATE TABLE public.t (a int, b text, note text, PRIMARY KEY (b, a));"
        "INSERT INTO public.t SELECT n % 10, 'b' || n / 10, '' FROM generate_series(0, 99) AS n"
    )
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE a = 3 AND b = 'b4'")
    (found,) = unchanged(all=True)
    assert found.key == ("b", "a")
    assert of_rows(found) == [("differs", "b4", "3")]
    (found,) = unchanged(all=True, key=["a"])
    assert of_rows(found) == [("differs", "3")]
    with pytest.raises(PlanRefused, match="--key c: no such column"):
        unchanged(all=True, key=["c"])


def test_a_key_that_is_cast(pair: Pair, unchanged: Unchanged) -> None:
    """The same number has the same text on both sides, whatever its type is at the source."""
    pair.source.execute(
        "CREATE TABLE public.t (id numeric(10,2) PRIMARY KEY, c char(4), note text)"
    )
    pair.dest.execute("CREATE TABLE public.t (id numeric(12,4) PRIMARY KEY, c char(9), note text)")
    pair.make("INSERT INTO public.t SELECT n, 'c' || n, '' FROM generate_series(1, 50) AS n")
    assert judged(unchanged(all=True)) == ["same"]
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = 7")
    assert of_rows(unchanged(all=True)[0]) == [("differs", "7.0000")]
    assert of_rows(unchanged(all=True, key=["c"])[0]) == [("differs", "c7")]


def test_rows_without_a_key(pair: Pair, unchanged: Unchanged) -> None:
    pair.make(
        "CREATE TABLE public.t (a int, b text);"
        "INSERT INTO public.t SELECT n % 20, NULL FROM generate_series(0, 199) AS n"
    )
    assert judged(unchanged(all=True)) == ["same"]
    pair.dest.execute(
        "UPDATE public.t SET b = '' WHERE ctid = (SELECT min(ctid) FROM public.t WHERE a = 7);"
        "INSERT INTO public.t SELECT 9 FROM generate_series(1, 3)"
    )
    (found,) = unchanged(all=True, show_rows=True)
    assert found.verdict == "differs"
    assert Counter((row.is_, row.source or row.dest) for row in found.differing.rows) == {
        ("missing", ("7", None)): 1,
        ("extra", ("7", "")): 1,
        ("extra", ("9", None)): 3,
    }
    assert {row.key for row in found.differing.rows} == {()}


def test_keys_that_are_there_several_times(pair: Pair, unchanged: Unchanged) -> None:
    pair.make(
        "CREATE TABLE public.t (id int, note text);"
        "INSERT INTO public.t SELECT n, 'n' FROM generate_series(0, 9) AS n"
    )
    pair.dest.execute("INSERT INTO public.t VALUES (3, 'n'), (4, 'other'), (NULL, 'n')")
    pair.source.execute("INSERT INTO public.t VALUES (5, 'n'), (5, 'n'), (NULL, 'm')")
    (found,) = unchanged(all=True, key=["id"])
    assert Counter(of_rows(found)) == {
        ("extra", "3"): 1, ("extra", "4"): 1, ("missing", "5"): 2, ("differs", None): 1,
    }  # fmt: skip


def test_more_rows_than_are_listed(
    pair: Pair, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_MOST_LISTED", 100)
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, note text)")
    pair.source.execute("INSERT INTO public.t SELECT n FROM generate_series(1, 5000) AS n")
    (found,) = unchanged(all=True)
    assert found.verdict == "missing"
    assert not found.differing.complete
    assert 0 < len(found.differing.rows) <= 200


def test_empty_tables(pair: Pair, unchanged: Unchanged) -> None:
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY)")
    (found,) = unchanged(all=True)
    assert (found.verdict, found.source.rows, found.differing) == ("same", 0, None)
    pair.dest.execute("INSERT INTO public.t VALUES (1)")
    assert judged(unchanged(all=True)) == ["extra"]


# --- what is compared -----------------------------------------------------------------------------


def test_conditions_and_columns(pair: Pair, unchanged: Unchanged) -> None:
    same(pair)
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = 100")
    assert judged(unchanged(where="id < 100")) == ["same"]
    assert judged(unchanged(where="id = 100")) == ["differs"]
    assert judged(unchanged(**APRIL, where="id < 100")) == ["same"] * 5
    assert judged(unchanged(all=True, exclude=["note"])) == ["same"]
    assert judged(unchanged(all=True, columns={"note": "'x'"})) == ["differs"]
    assert judged(unchanged(where="id = 100", columns={"note": "'x'"})) == ["same"]
    with pytest.raises(PlanRefused):
        unchanged(where="no_such_column = 1")
    with pytest.raises(PlanRefused):
        unchanged(where="id = ")


def test_queries(pair: Pair, unchanged: Unchanged) -> None:
    same(pair)
    query = "SELECT id, upper(note) AS note, created_at FROM public.t WHERE id <> 30"
    (found,) = unchanged(day=DAY, query=query)
    assert Counter(row[0] for row in of_rows(found)) == {"differs": 23, "extra": 1}
    pair.dest.execute("UPDATE public.t SET note = upper(note); DELETE FROM public.t WHERE id = 30")
    assert judged(unchanged(day=DAY, query=query)) == ["same"]
    assert judged(unchanged(all=True, query=query)) == ["same"]


def test_another_name_and_partitions_and_views(pair: Pair, unchanged: Unchanged) -> None:
    pair.source.execute(
        f"{T}; {ROWS}; ALTER TABLE public.t RENAME TO u; CREATE VIEW public.t AS TABLE public.u;"
        "CREATE MATERIALIZED VIEW public.m AS TABLE public.u"
    )
    pair.dest.execute(
        "CREATE TABLE public.p (id int, note text, created_at timestamptz)"
        " PARTITION BY RANGE (created_at);"
        "CREATE TABLE public.p1 PARTITION OF public.p"
        f" FOR VALUES FROM (MINVALUE) TO ('{NEXT_DAY}');"
        "CREATE TABLE public.p2 PARTITION OF public.p DEFAULT;"
        + ROWS.replace("public.t", "public.p")
    )
    for table in ("public.t", "public.m", "public.u"):
        assert judged(unchanged(table, into="public.p", **APRIL)) == ["same"] * 5
    assert judged(unchanged(into="public.p1", where=f"created_at < '{NEXT_DAY} 00:00Z'")) == [
        "same"
    ]
    pair.dest.execute("UPDATE public.p SET note = '' WHERE id = 100")
    (found,) = unchanged("public.u", into="public.p", all=True)
    assert of_rows(found) == [("differs", "100")]
    (found,) = unchanged(into="public.p", all=True)
    assert sorted(row[0] for row in of_rows(found)) == ["extra", "missing"]
    (found,) = unchanged(into="public.p", all=True, key=["id"])
    assert of_rows(found) == [("differs", "100")]


def test_columns_that_the_other_side_does_not_have(pair: Pair, unchanged: Unchanged) -> None:
    same(pair)
    pair.source.execute("ALTER TABLE public.t ADD more int")
    with pytest.raises(PlanRefused, match="more"):
        unchanged(**APRIL)
    assert judged(unchanged(**APRIL, exclude=["more"])) == ["same"] * 5
    pair.dest.execute(
        "ALTER TABLE public.t ADD made int GENERATED ALWAYS AS (id + 1) STORED, ADD at timestamptz"
        " DEFAULT now()"
    )
    assert judged(unchanged(**APRIL, exclude=["more"])) == ["same"] * 5


def test_what_only_hinders_a_copy(pair: Pair, unchanged: Unchanged) -> None:
    """Foreign keys, triggers, rules and a key that identifies are nothing to who only reads."""
    same(pair)
    pair.dest.execute(
        "CREATE TABLE public.of (id int REFERENCES public.t ON DELETE CASCADE);"
        "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER f BEFORE INSERT OR DELETE ON public.t FOR EACH ROW"
        " EXECUTE FUNCTION public.f();"
        "CREATE RULE r AS ON DELETE TO public.t DO INSTEAD NOTHING;"
        "ALTER TABLE public.t ADD must int NOT NULL DEFAULT 1;"
        "ALTER TABLE public.t ALTER must DROP DEFAULT"
    )
    assert judged(unchanged(**APRIL)) == ["same"] * 5


# --- roles ----------------------------------------------------------------------------------------


def test_roles_that_may_only_read(pair: Pair, unchanged: Unchanged) -> None:
    same(pair)
    reads = ("USAGE ON SCHEMA public", "SELECT ON public.t")
    roles = {
        "source": pair.source.role("reader", *reads).dsn,
        "dest": pair.dest.role("reader", *reads).dsn,
    }
    assert judged(unchanged(**APRIL, **roles)) == ["same"] * 5
    pair.dest.execute("UPDATE public.t SET note = 'x' WHERE id = 100")
    assert judged(unchanged(all=True, **roles)) == ["differs"]
    assert not pair.dest.scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'copypipe'")


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_role_that_may_not_read_a_column(pair: Pair, unchanged: Unchanged, side: str) -> None:
    same(pair)
    role = getattr(pair, side).role("reader", "USAGE ON SCHEMA public")
    getattr(pair, side).execute(f"GRANT SELECT (id, created_at) ON public.t TO {role.name}")
    with pytest.raises(PlanRefused, match=r"may not read public\.t") as caught:
        unchanged(**APRIL, **{side: role.dsn})
    assert caught.value.side == side
    assert "SELECT (note)" in str(caught.value.detail)
    assert judged(unchanged(**APRIL, **{side: role.dsn}, exclude=["note"])) == ["same"] * 5


@pytest.mark.parametrize("side", ["source", "dest"])
def test_row_security(pair: Pair, unchanged: Unchanged, side: str) -> None:
    same(pair)
    database = getattr(pair, side)
    database.execute(
        "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON public.t USING (id < 100)"
    )
    role = database.role("reader", "USAGE ON SCHEMA public", "SELECT ON public.t")
    with pytest.raises(PlanRefused, match="row security"):
        unchanged(**APRIL, **{side: role.dsn})
    assert judged(unchanged(**APRIL)) == ["same"] * 5  # the owner is not subject to it


# --- trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_side_that_goes_away(pair: Pair, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be told is Failed; with retries it is told all the same."""
    same(pair)
    database = getattr(pair, side)
    grouped = verdicts._Sides.grouped
    tries: list[int] = []

    def ending(sides: Any) -> Any:
        tries.append(1)
        if len(tries) == 2:
            database.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name LIKE 'copypipe%' AND datname = current_database()"
            )
        return grouped(sides)

    monkeypatch.setattr(verdicts._Sides, "grouped", ending)
    assert judged(pair.verify(**APRIL, retries=2)) == ["same"] * 5
    assert len(pair.all_of(Retried)) == 1
    tries.clear()
    found = pair.verify(**APRIL)
    assert [type(each).__name__ for each in found].count("Failed") == 1
    (failed,) = [each for each in found if isinstance(each, copypipe.Failed)]
    assert isinstance(failed.error, ConnectionLost)
    assert failed.error.exit_code == 5
    no_backends(pair.source, pair.dest)


def test_a_table_that_is_gone_meanwhile(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    same(pair)
    grouped = verdicts._Sides.grouped

    def gone(sides: Any) -> Any:
        pair.dest.execute("DROP TABLE IF EXISTS public.t")
        return grouped(sides)

    monkeypatch.setattr(verdicts._Sides, "grouped", gone)
    found = pair.verify(**APRIL)
    assert all(isinstance(each, copypipe.Failed) for each in found)
    assert len(found) == 5


def test_days_that_are_relative(pair: Pair, unchanged: Unchanged) -> None:
    pair.make("CREATE TABLE public.t (id int PRIMARY KEY, created_at timestamptz)")
    yesterday = pair.source.scalar("SELECT (now() AT TIME ZONE 'UTC')::date - 1")
    pair.source.execute(f"INSERT INTO public.t VALUES (1, '{yesterday} 12:00Z')")
    found = unchanged(start="-3d", stop="today")
    assert [each.source.rows for each in found] == [0, 0, 1]
    assert found[2].slice.days[0] == yesterday
