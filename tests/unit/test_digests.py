"""Digests add up, are written and read again, and tell equal rows from none."""

import hashlib

import pytest

from copypipe import digests
from copypipe.crossings import TEXT_VALUE, Crossing, Sides, Surroundings
from copypipe.digests import Digest
from copypipe.errors import PlanRefused
from copypipe.tables import Column
from copypipe.types import Field, Type, Value

SEED = "sha256/1/0123456789abcdef"
MOST = (1 << 64) - 1


def hashed(*rows: str) -> Digest:
    return digests.of_hashes((hashlib.sha256(row.encode()).hexdigest() for row in rows), SEED)


def test_digests_add_up() -> None:
    assert hashed("a", "b") + hashed("c") == hashed("c", "a", "b")
    assert hashed("a", "b", "c") - hashed("b") == hashed("a", "c")
    assert hashed("a") - hashed("a") == hashed() == Digest(0, 0, 0, SEED)


def test_equal_rows_count() -> None:
    assert hashed("a", "a") != hashed()
    assert hashed("a", "a") != hashed("a")
    assert hashed("a", "a", "b") != hashed("a", "b", "b")


def test_sums_wrap_around() -> None:
    most = Digest(1, MOST, MOST, SEED)
    assert most + most == Digest(2, MOST - 1, MOST - 1, SEED)
    assert Digest(1, 0, 0, SEED) - most == Digest(0, 1, 1, SEED)


def test_a_hash_is_two_signed_numbers() -> None:
    """As the server sums up int8: the first bit is the sign."""
    assert digests.of_hashes(["ff" * 32], SEED) == Digest(1, MOST, MOST, SEED)
    assert digests.of_hashes(["80" + "00" * 31] * 2, SEED) == Digest(2, 0, 0, SEED)
    assert digests.digest((1, "-1", "-1"), SEED) == digests.of_hashes(["ff" * 32], SEED)
    assert digests.digest(("2", str(-(1 << 64)), "0"), SEED) == Digest(2, 0, 0, SEED)


@pytest.mark.parametrize(
    "one", [Digest(0, 0, 0, SEED), Digest(10**12, MOST, 1, SEED), Digest(3, 1, MOST, SEED)]
)
def test_what_is_written_is_read_again(one: Digest) -> None:
    assert digests.parse(str(one)) == one
    assert str(one).count(":") == 2


@pytest.mark.parametrize(
    "text",
    ["", SEED, f"{SEED}:1", f"{SEED}:-1:{'0' * 32}", f"{SEED}:1:{'0' * 31}", f"{SEED}:1:{'g' * 32}",
     f"{SEED}:1:{'0' * 33}", f"{SEED}:1:{'0' * 32}\n", "md5:abc"],
)  # fmt: skip
def test_other_texts_are_no_digest(text: str) -> None:
    assert digests.parse(text) is None


# --- forms ----------------------------------------------------------------------------------------

UTF8 = Surroundings(major=17, encoding="UTF8", money="64")
ALIKE = Sides(UTF8, UTF8)
SAME = Crossing("same", "")


def value(oid: int, name: str, *, of: Value | None = None, extension: str | None = None) -> Value:
    kind = "base" if of is None else "array"
    made = Type(oid, name, kind, sends=True, receives=True, of=of, extension=extension)  # type: ignore[arg-type]
    return Value(made, -1, name)


def row(*fields: Value) -> Value:
    of = tuple(Field(f"f{number}", field) for number, field in enumerate(fields))
    return Value(Type(20_000, "public.r", "composite", True, True, fields=of), -1, "public.r")


def numeric(scale: int) -> Value:
    made = Type(1700, "numeric", "base", sends=True, receives=True)
    return Value(made, (10 << 16 | scale) + 4, f"numeric(10,{scale})")


def column(of: Value, name: str = "c") -> Column:
    return Column(name, 1, of, None, not_null=False, generated=False, has_default=False)


def formed(sent: Value, held: Value, sides: Sides = ALIKE, name: str = "c") -> digests.Forms:
    return digests.forms([(column(sent, name), column(held, name), SAME)], sides)


JSONB, TSVECTOR = value(3802, "jsonb"), value(3614, "tsvector")
HSTORE = value(20_001, "public.hstore", extension="hstore.hstore")
CHAR = value(18, '"char"')
LATIN = Sides(Surroundings(17, "LATIN1", "64"), UTF8)
ASCII = Sides(Surroundings(17, "SQL_ASCII", "64"), UTF8)
OLD = Sides(Surroundings(14, "UTF8", "64"), UTF8)


@pytest.mark.parametrize("of", [JSONB, TSVECTOR, HSTORE, value(3807, "jsonb[]", of=JSONB)])
def test_what_an_encoding_sorts(of: Value) -> None:
    with pytest.raises(PlanRefused, match="cannot be compared") as caught:
        formed(of, of, LATIN)
    assert "sorts its parts" in str(caught.value.detail)
    assert formed(of, of, ASCII) == formed(of, of)


def test_high_bytes_are_written_in_octal_since_15() -> None:
    array = value(1002, '"char"[]', of=CHAR)
    assert formed(CHAR, CHAR, OLD) == formed(CHAR, CHAR)
    assert formed(array, array)
    with pytest.raises(PlanRefused):
        formed(array, array, OLD)


@pytest.mark.parametrize("oid", [194, 3361, 3642])
def test_what_cannot_be_read_has_no_form(oid: int) -> None:
    with pytest.raises(PlanRefused):
        formed(value(oid, "t"), value(oid, "t"))


@pytest.mark.parametrize("extension", ["seg.seg", "postgis.box2d"])
def test_what_rounds_has_no_form(extension: str) -> None:
    of = value(20_002, "public.t", extension=extension)
    with pytest.raises(PlanRefused):
        formed(row(of), row(of))


def test_modifiers_within_rows() -> None:
    assert formed(row(numeric(2)), row(numeric(2)))
    assert formed(row(numeric(2)), row(value(1700, "numeric")))
    with pytest.raises(PlanRefused):
        formed(row(numeric(2)), row(numeric(4)))


def test_what_a_digest_is_of() -> None:
    one = formed(TEXT_VALUE, TEXT_VALUE)
    assert one.seed.startswith("sha256/1/")
    # As what it is sent, and what it is read from, is no part of it.
    assert formed(value(25, "text"), TEXT_VALUE).seed == one.seed
    others = [
        formed(TEXT_VALUE, TEXT_VALUE, name="d"),
        formed(JSONB, JSONB),
        formed(numeric(2), numeric(2)),
        formed(numeric(2), numeric(4)),
    ]
    assert len({each.seed for each in (one, *others)}) == 5
