"""What a type is, told by its parts, so that two servers' types can be compared.

Names and OIDs of users' types say nothing: the same enum has another OID on each server, and the
same name may mean another thing. So a type is described down to the built-in ones it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

# transam.h, FirstGenbkiObjectId: OIDs below it are assigned by hand in pg_type.dat and mean the
# same type on every server of every supported major.
FIRST_GENBKI_OID = 10000

# pg_type.typtype, arrays told from other base types.
Kind = Literal["base", "array", "domain", "enum", "composite", "range", "multirange", "pseudo"]


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute of a composite type."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Type:
    """One type of one server."""

    oid: int
    name: str
    """As format_type(oid, -1) prints it: qualified unless it is built in, and of any length."""
    kind: Kind
    sends: bool
    """It has a send function."""
    receives: bool
    """It has a receive function."""
    extension: str | None = None
    """The extension that it belongs to, with the name that it has there: "hstore.hstore"."""
    version: str | None = None
    """The version of that extension."""
    of: Value | None = None
    """What an array, a domain, a range or a multirange is made of."""
    labels: tuple[str, ...] = ()
    """Of an enum, in their order."""
    fields: tuple[Field, ...] = ()
    """Of a composite type, in their order, dropped ones left out."""
    rules: str = ""
    """Of a range: canonical function, operator class and collation by which its bounds are read."""

    @property
    def built_in(self) -> bool:
        """Return whether the OID means this type everywhere."""
        return self.oid < FIRST_GENBKI_OID


@dataclass(frozen=True, slots=True)
class Value:
    """A type with its modifier: what a column, an element or a field holds."""

    type: Type
    typmod: int
    """-1 for none."""
    name: str
    """As format_type() prints it, modifier included."""

    @property
    def bare(self) -> Value:
        """Return what is below domains; they bring constraints, and no bytes."""
        value = self
        while value.type.kind == "domain" and value.type.of is not None:
            value = value.type.of
        return value

    @property
    def element(self) -> Value | None:
        """Return what an array holds below domains, with the array's modifier; None for others."""
        bare = self.bare
        if bare.type.kind != "array" or bare.type.of is None:
            return None
        name = bare.name.removesuffix("[]") if bare.typmod != -1 else bare.type.of.name
        return replace(bare.type.of, typmod=bare.typmod, name=name).bare


def leaves(value: Value) -> Iterator[Value]:
    """Yield what a value is made of: everything that is not made of something else."""
    bare = value.bare
    if bare.type.kind in ("array", "range", "multirange") and bare.type.of is not None:
        yield from leaves(bare.type.of)
    elif bare.type.fields:
        for field in bare.type.fields:
            yield from leaves(field.value)
    else:
        yield bare
