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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from copypipe import crossings
from copypipe.crossings import Crossing
from copypipe.errors import PlanRefused
from copypipe.servers import Session
from copypipe.statements import Statement
from copypipe.statements import digests as statements
from copypipe.statements.digests import Cast, Rows
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

    at_source: tuple[Cast, ...]
    at_dest: tuple[Cast, ...]
    seed: str

    def sent(self, query: Statement) -> Rows:
        """Return what is hashed at the source of what a query sends."""
        return Rows(query, self.at_source)

    def held(self, query: Statement) -> Rows:
        """Return what is hashed at the dest of what a query reads there."""
        return Rows(query, self.at_dest)


def forms(columns: Sequence[tuple[Column, Column, Crossing]]) -> Forms:
    """Decide in which form columns are hashed, given as (source, dest, how it crosses).

    Raises PlanRefused for a column whose values have no form that is the same on both sides.
    """
    pairs: list[tuple[Cast, Cast]] = []
    signature: list[tuple[str, str]] = []
    for source, dest, crossing in columns:
        sent = crossing.into or source.value
        form = _form(sent, dest.value)
        if form is None:
            raise PlanRefused(
                f'the values of "{dest.name}" cannot be compared by a digest',
                detail=f"{dest.type_name} has no form that is the same on two servers.",
                hint="Leave --verify checksum out, or --exclude the column.",
            )
        pairs.append(form[:2])
        signature.append((dest.name, form[2]))
    told = json.dumps([VERSION, signature])
    seed = f"sha256/{VERSION}/{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return Forms(tuple(one for one, _ in pairs), tuple(other for _, other in pairs), seed)


def _form(sent: Value, held: Value) -> tuple[Cast, Cast, str] | None:
    """Return the casts of both sides and the name of the form, None for none."""
    there = held.bare
    parts = [leaf.type for leaf in leaves(there)]
    if any(part.extension in crossings.LOSSY_TEXT for part in parts):
        return None
    if any(part.oid in crossings.WITHOUT_INPUT for part in parts):
        return None
    if not _by_bytes(there):
        if any(part.oid == crossings.MONEY for part in parts):
            return None  # its text depends on lc_monetary
        return "text", "text", "text"
    at_source = None if _same(sent, there) else there.name
    at_dest = None if held is there else there.type.name
    return at_source, at_dest, there.name


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


# What is hashed by its text though it is built in: texts, XML (which tells its encoding), the names
# of objects, vectors that are arrays, and ACLs.
_BY_TEXT = frozenset(
    {crossings.TEXT, crossings.VARCHAR, crossings.BPCHAR, crossings.NAME, crossings.XML}
    | {crossings.REFCURSOR, 22, 30, 1033}
    | crossings.BY_NAME
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
