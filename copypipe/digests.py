"""Whether two servers hold the same rows: in which form a column is hashed, and what comes out.

The form is one in which equal values have equal bytes on every server, whatever its major,
encoding, settings and OIDs: the binary form where a type is built in and its bytes tell the value,
else the text form under pinned settings. Columns are hashed as the dest's type, so that the
source's value is looked at as it would arrive.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from copypipe import crossings
from copypipe.crossings import Crossing, Sides
from copypipe.errors import PlanRefused
from copypipe.servers import Session
from copypipe.statements import Statement
from copypipe.statements import digests as statements
from copypipe.statements.digests import Form, Rows
from copypipe.tables import Column
from copypipe.types import Value, leaves

# Raised with each change of what is hashed: digests of two versions say nothing about each other.
VERSION = 1

_SUM = 1 << 64


@dataclass(frozen=True, slots=True)
class Digest:
    """What is known of some rows: how many, and two sums of 64 bits of their hashes.

    Digests add up: that of two sets of rows is the sum of theirs.
    """

    rows: int
    high: int
    low: int
    seed: str
    """Of what columns and types; digests of different ones say nothing about each other."""

    def __str__(self) -> str:
        return f"{self.seed}:{self.rows}:{self.high:016x}{self.low:016x}"

    def __add__(self, other: Digest) -> Digest:
        """Return the digest of the rows of both."""
        return Digest(
            self.rows + other.rows,
            (self.high + other.high) % _SUM,
            (self.low + other.low) % _SUM,
            self.seed,
        )

    def __sub__(self, other: Digest) -> Digest:
        """Return the digest of the rows that the other one lacks, of which it is a part."""
        return Digest(
            self.rows - other.rows,
            (self.high - other.high) % _SUM,
            (self.low - other.low) % _SUM,
            self.seed,
        )


def parse(text: str) -> Digest | None:
    """Return the digest that `str` wrote, None for another text."""
    found = re.fullmatch(r"([^:]+):(\d+):([0-9a-f]{16})([0-9a-f]{16})", text)
    if found is None:
        return None
    return Digest(int(found[2]), int(found[3], 16), int(found[4], 16), found[1])


def of_hashes(hashes: Iterable[str], seed: str) -> Digest:
    """Return the digest of rows with these hashes, in hexadecimal."""
    rows = high = low = 0
    for text in hashes:
        rows, high, low = rows + 1, high + _signed(text[:16]), low + _signed(text[16:32])
    return Digest(rows, high % _SUM, low % _SUM, seed)


def _signed(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "big", signed=True)


@dataclass(frozen=True, slots=True)
class Forms:
    """In which form each column is hashed, on either side, in their order."""

    at_source: tuple[Form, ...]
    at_dest: tuple[Form, ...]
    seed: str

    def sent(self, query: Statement) -> Rows:
        """Return what is hashed at the source of what a query sends."""
        return Rows(query, self.at_source)

    def held(self, query: Statement) -> Rows:
        """Return what is hashed at the dest of what a query reads there."""
        return Rows(query, self.at_dest)


def forms(columns: Sequence[tuple[Column, Column, Crossing]], sides: Sides) -> Forms:
    """Decide in which form columns are hashed, given as (source, dest, how it crosses).

    Raises PlanRefused for a column whose values have no form that is the same on both sides.
    """
    pairs: list[tuple[Form, Form]] = []
    signature: list[tuple[str, str]] = []
    for source, dest, crossing in columns:
        sent = crossing.into or source.value
        problem = _without_form(sent, dest.value, sides)
        if problem is not None:
            raise PlanRefused(
                f'the values of "{dest.name}" cannot be compared by a digest',
                detail=f"{dest.type_name} has no form that is the same on two servers: {problem}.",
                hint="Leave --verify checksum out, or --exclude the column.",
            )
        *both, name = _form(sent, dest.value)
        pairs.append((both[0], both[1]))
        signature.append((dest.name, name))
    told = json.dumps([VERSION, signature])
    seed = f"sha256/{VERSION}/{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return Forms(tuple(one for one, _ in pairs), tuple(other for _, other in pairs), seed)


def _without_form(sent: Value, held: Value, sides: Sides) -> str | None:
    """Return why equal values may have different forms on the two sides, None where they do not."""
    there = held.bare
    parts = [leaf.type for leaf in leaves(there)]
    if any(part.extension in crossings.LOSSY_TEXT for part in parts):
        return "its text rounds"
    if any(part.oid in crossings.WITHOUT_INPUT for part in parts):
        return "its text cannot be read"
    encodings = {side.encoding for side in (sides.source, sides.dest)} - {"SQL_ASCII"}
    if len(encodings) > 1:
        for part in parts:
            if part.oid in _SORTED or part.extension in _SORTED_TOO:
                return f"{part.name} sorts its parts by the bytes of the database's encoding"
    if _by_bytes(there) or there.type.oid in _TEXTS:
        return None
    if any(part.oid == crossings.MONEY for part in parts):
        return "the text of money depends on lc_monetary"
    if any(part.oid == crossings.CHAR for part in parts) and (
        (sides.source.major < crossings.OCTAL_CHARS) != (sides.dest.major < crossings.OCTAL_CHARS)
    ):
        return 'the two majors write a "char" differently'
    if not _castable(there) and any(
        theirs.typmod not in (-1, ours.typmod)
        for ours, theirs in zip(
            _with_blanks_or_zeros(sent), _with_blanks_or_zeros(there), strict=False
        )
    ):
        return "numbers and blanks in it are written as long as the modifiers ask for"
    return None


def _form(sent: Value, held: Value) -> tuple[Form, Form, str]:
    """Return the forms at both sides and the name of what is hashed."""
    there = held.bare
    if _by_bytes(there):
        at_source = None if _same(sent, there) else there.name
        return Form(at_source), Form(None if held is there else there.type.name), there.name
    if there.type.oid in _TEXTS:
        return Form("text"), Form("text"), "text"
    at_source = there.name if _castable(there) and not _same(sent, there) else None
    return Form(at_source, written=True), Form(written=True), "text"


def _castable(value: Value) -> bool:
    """Return whether it is an array that every server knows, so that the source can cast to it."""
    element = value.element
    return value.type.built_in and element is not None and element.type.built_in


def _with_blanks_or_zeros(value: Value) -> Iterator[Value]:
    """Yield the parts of a value whose text is filled up as their modifiers ask for."""
    bare = value.bare
    element = bare.element
    if element is not None:
        yield from _with_blanks_or_zeros(element)
    elif bare.type.fields:
        for field in bare.type.fields:
            yield from _with_blanks_or_zeros(field.value)
    elif bare.type.oid in (crossings.NUMERIC, crossings.BPCHAR):
        yield bare


def _same(sent: Value, there: Value) -> bool:
    """Return whether what is sent is of the very type that the dest holds, no domain over it."""
    return (sent.type.oid, sent.typmod) == (there.type.oid, there.typmod)


def _by_bytes(of: Value) -> bool:
    """Return whether equal values have equal bytes, which OIDs and settings have no part in.

    Not texts, of which bpchar counts blanks that mean nothing; not arrays, whose bytes tell whether
    a NULL was ever among the elements (array_send); not what is made by users, whose bytes hold
    OIDs.
    """
    kind = of.type.kind
    return (
        of.type.built_in
        and of.type.sends
        and kind in ("base", "range", "multirange")
        and of.type.oid not in _BY_TEXT
        and all(leaf.type.built_in and leaf.type.oid not in _BY_TEXT for leaf in leaves(of))
    )


# Texts, whose casts to text are PostgreSQL's own; that of bpchar leaves out blanks at the end.
_TEXTS = frozenset({crossings.TEXT, crossings.VARCHAR, crossings.BPCHAR, crossings.NAME})

# What keeps its parts in the order of their bytes, or of their lengths: jsonb, tsvector.
_SORTED = frozenset({crossings.JSONB, 3614})
_SORTED_TOO = frozenset({"hstore.hstore"})

# What is hashed by its text though it is built in: texts, XML (which tells its encoding), the names
# of objects, vectors that are arrays, and ACLs.
_BY_TEXT = frozenset(
    _TEXTS | {crossings.XML, crossings.REFCURSOR, 22, 30, 1033} | crossings.BY_NAME
)


def digest(row: Sequence[object], seed: str) -> Digest:
    """Return the digest from a row of counts and sums, as the server prints them."""
    rows, high, low = row
    return Digest(int(str(rows)), int(str(high)) % _SUM, int(str(low)) % _SUM, seed)


def ask(session: Session, rows: Rows, seed: str) -> Asked:
    """Have a server compute the digest of rows; returns what waits for it."""
    return Asked(session, statements.digest(rows), seed)


class Asked:
    """A digest that a server is computing meanwhile."""

    def __init__(self, session: Session, statement: Statement, seed: str) -> None:
        """Send the question; raises a CopypipeError."""
        self._answer = session.ask(statement)
        self._seed = seed

    def __call__(self) -> Digest:
        """Wait for the answer; raises the server's error."""
        ((*row,),) = self._answer()
        return digest(row, self._seed)
