"""Seeded damage: whatever changes in a row is found, in its day and by its key, and nothing else.

The rows are made on both servers by the same SQL. `make damage` does it with 200 days of up to
50,000 rows each; a sample runs with the suite.
"""

import os
import random
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pytest
from psycopg.sql import SQL

from copypipe.statements import digests
from plugins.databases import Database
from plugins.modes import Pair

FIRST = date(2018, 1, 1)

TABLE = """
CREATE TABLE public.t (
    id bigint {key}, at timestamptz NOT NULL, note text, x float8, n numeric, doc json, data bytea,
    flag bool)
"""
# Each day has ids of its own, in an order that is not that of the times.
DAY_OF_ROWS = """
INSERT INTO public.t
SELECT %(day)s * 100000 + n,
       %(first)s::timestamp AT TIME ZONE 'UTC' + %(day)s * interval '1 day'
           + (n * 7919 %% %(rows)s + 0.5) * interval '1 day' / %(rows)s,
       CASE WHEN n %% 3 > 0 THEN 'note ' || (n * 31 %% 1000003) END,
       1 + n / 7.0, n * 1.25, json_build_object('a', n, 'b', 'ü'),
       decode(md5(n::text) || md5((n + 1)::text), 'hex'), n %% 2 = 0
  FROM generate_series(0, %(rows)s - 1) AS n ORDER BY md5(n::text || %(side)s)
"""

# What is done to one row, {id}, and what that is called there; of {other} where it needs another.
CHANGES = {
    "a bit": "data = set_bit(data, {bit}, 1 - get_bit(data, {bit}))",
    "NULL": "note = ''",
    "a microsecond": "at = at + interval '1 microsecond'",
    "the last bit of a float": "x = x + x * 1.2e-16",
    "the order of keys": """doc = ('{{"b" : "ü", "a" : ' || (doc ->> 'a') || '}}')::json""",
    "a scale": "n = n * 1.0",
    "a flag": "flag = NOT flag",
}
KINDS = (*CHANGES, "a row less", "a row twice", "two values")


@dataclass(frozen=True)
class Damage:
    """What was done to a day."""

    kind: str
    side: str
    verdict: str
    differs: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    extra: frozenset[int] = frozenset()


def damaged(database: Database, day: int, rows: int, chance: random.Random) -> Damage:
    """Change a random row of a day in a random way; returns what must be found."""
    side = database.side
    kind = chance.choice([kind for kind in KINDS if kind != "a row twice" or side == "dest"])
    if rows < 4 and kind == "two values":
        kind = "a bit"
    row = chance.randrange(rows)
    if kind == "NULL":
        row -= row % 3
    if kind == "two values":
        row = 1 + 3 * chance.randrange(rows // 3)
    number = day * 100_000 + row
    one = frozenset({number})
    if kind == "a row less":
        assert database.execute(f"DELETE FROM public.t WHERE id = {number}") == 1
        if side == "source":
            return Damage(kind, side, "extra" if rows == 1 else "differs", extra=one)
        return Damage(kind, side, "missing" if rows == 1 else "differs", missing=one)
    if kind == "a row twice":
        database.execute(f"INSERT INTO public.t SELECT * FROM public.t WHERE id = {number}")
        return Damage(kind, side, "differs", extra=one)
    if kind == "two values":
        database.execute(
            f"UPDATE public.t SET note = (SELECT u.note FROM public.t u"
            f" WHERE u.id = {2 * number + 1} - t.id) WHERE id IN ({number}, {number + 1})"
        )
        return Damage(kind, side, "differs", differs=frozenset({number, number + 1}))
    change = CHANGES[kind].format(bit=chance.randrange(256))
    assert database.execute(f"UPDATE public.t SET {change} WHERE id = {number}") == 1
    return Damage(kind, side, "differs", differs=one)


def make_days(pair: Pair, sizes: list[int], *, ledger: bool) -> None:
    """Have the same days on both sides, copied or made there."""
    pair.source.execute(TABLE.format(key="PRIMARY KEY"))
    pair.dest.execute(TABLE.format(key=""))
    for day, rows in enumerate(sizes):
        for database in (pair.source,) if ledger else (pair.source, pair.dest):
            words = {"day": day, "rows": rows, "first": FIRST, "side": database.side}
            database.execute(DAY_OF_ROWS, words)
    pair.source.execute("CREATE INDEX ON public.t (at); ANALYZE public.t")
    if ledger:
        for day in range(len(sizes)):
            pair.copy(day=FIRST + timedelta(days=day), by="at", verify="checksum")
    # By the rows of the day, which a real table finds as well.
    pair.dest.execute("CREATE INDEX ON public.t (id); CREATE INDEX ON public.t (at)")


def check_days(pair: Pair, sizes: list[int], seed: int, *, ledger: bool, jobs: int = 1) -> None:
    """Damage four of five days, and compare what is found with what was done."""
    chance = random.Random(seed)  # noqa: S311
    make_days(pair, sizes, ledger=ledger)
    done: dict[date, Damage] = {}
    for day, rows in enumerate(sizes):
        if chance.random() < 0.8:
            database = chance.choice([pair.source, pair.dest])
            done[FIRST + timedelta(days=day)] = damaged(database, day, rows, chance)
    assert len({damage.kind for damage in done.values()}) >= min(7, len(sizes) // 3)

    found = pair.verify(
        start=FIRST, stop=FIRST + timedelta(days=len(sizes)), by="at", jobs=jobs, settle=0
    )

    assert len(found) == len(sizes)
    for verdict in found:
        damage = done.get(verdict.slice.days[0])
        told = f"seed {seed}, {verdict.slice}: {damage}"
        assert verdict.verdict == (damage.verdict if damage else "same"), told
        if damage is None:
            assert (verdict.differing, verdict.drift) == (None, None), told
            assert verdict.source == verdict.dest, told
            continue
        assert verdict.differing.complete, told
        for is_ in ("differs", "missing", "extra"):
            keys = [int(row.key[0]) for row in verdict.differing.rows if row.is_ == is_]
            assert sorted(keys) == sorted(getattr(damage, is_)), told
        drift = f"changed at the {damage.side}" if ledger else None
        assert verdict.drift == drift, told


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.one_of(2)
def test_a_sample_of_damage_is_found(pair: Pair, ledger: bool) -> None:
    chance = random.Random(1 + ledger)  # noqa: S311
    sizes = [1, 2, *(chance.randint(3, 1000) for _ in range(8 if ledger else 12))]
    check_days(pair, sizes, seed=11 + ledger, ledger=ledger)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ledger", [True, False])
def test_damage_of_200_days_is_found(pair: Pair, ledger: bool) -> None:
    seed = int(os.environ.get("COPYPIPE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    chance = random.Random(seed)  # noqa: S311
    sizes = [chance.randint(1000, 50_000) for _ in range(200)]
    check_days(pair, sizes, seed, ledger=ledger, jobs=2)


# --- planted defects ------------------------------------------------------------------------------


def constant(hashed: str) -> Any:
    """Stand in for the sums of hashes."""
    return SQL("count(*), '0', '0'").format()


def test_a_constant_digest_would_be_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_sums", constant)
    with pytest.raises(AssertionError, match="seed 3"):
        check_days(pair, [50] * 12, seed=3, ledger=False)


def test_a_hash_that_leaves_out_columns_would_be_found(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of = digests.Rows.hash_of
    monkeypatch.setattr(digests.Rows, "hash_of", lambda rows, places: hash_of(rows, [*places][:5]))
    with pytest.raises(AssertionError, match="seed 3"):
        check_days(pair, [50] * 12, seed=3, ledger=False)


def test_a_digest_that_cannot_count_would_be_found(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XOR takes two equal rows for none."""
    sums = "count(*) % 1, coalesce(bit_xor({0}), 0)::text, coalesce(bit_xor({1}), 0)::text"
    monkeypatch.setattr(
        digests,
        "_sums",
        lambda hashed: SQL(sums).format(digests._number(hashed, 0), digests._number(hashed, 8)),
    )
    pair.source.execute(TABLE.format(key=""))
    pair.dest.execute(TABLE.format(key=""))
    pair.dest.execute("INSERT INTO public.t SELECT 1, '2018-01-01Z' FROM generate_series(1, 2)")
    assert [found.verdict for found in pair.verify(all=True, by="at")] == ["same"]
    monkeypatch.undo()
    assert [found.verdict for found in pair.verify(all=True, by="at")] == ["extra"]
