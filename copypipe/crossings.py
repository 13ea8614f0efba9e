"""How a column crosses from one server to the other: facts in, decision out.

Binary COPY carries no types. The server checks only the number of fields and that each receive
function consumes its field (PostgreSQL, src/backend/commands/copyfromparse.c), so an int8 42 sent
into a numeric column arrives as 0, and an int8range in an int4range column as an empty range,
without an error. So a value goes over only

- as it is, where both sides mean the same by its bytes, or
- cast by the source to what the dest reads, where that loses nothing or raises an error, or
- as text, where the dest reads the bytes of a text, or
- in a COPY in text format, where the type has no bytes that mean the same elsewhere,

and is refused otherwise. What PostgreSQL itself would cut or round in silence is refused too, until
somebody asks for the cast by name. What each decision promises is tried for every pair of built-in
types and the edges of their values (tests/integration/test_matrix.py); docs/types.md tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from copypipe.types import FIRST_GENBKI_OID, Type, Value, leaves

Decision = Literal["same", "cast", "text value", "text format", "refuse"]

Asked = Literal["cast", "lossy"] | None
"""What the request says of a column: --cast, --allow-lossy, nothing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the meaning of a value depends on besides its type."""

    major: int
    encoding: str
    """server_encoding."""
    money: str
    """The bytes of one unit of money, in hexadecimal: they count parts of lc_monetary."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The surroundings of both sides."""

    source: Surroundings
    dest: Surroundings

    @property
    def one_counts_bytes(self) -> bool:
        """Return whether one side alone takes the length of a text for its bytes."""
        return (self.source.encoding == "SQL_ASCII") != (self.dest.encoding == "SQL_ASCII")

    @property
    def dest_counts_bytes(self) -> bool:
        """Return whether a text may be longer to the dest than to the source."""
        return self.one_counts_bytes and self.dest.encoding == "SQL_ASCII"


Unwanted = Literal["infinite", "extreme", "nameless"]
"""Values that must not go over: an infinite interval where the dest knows none, one that the dest
takes for infinite, the number of an object that has no name."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """How one column goes over, and why so."""

    decision: Decision
    reason: str
    into: Value | None = None
    """What the source casts the value to; None where it is sent as it is."""
    back: Value | None = None
    """A value that would not come back the same from `into` as this type fails the copy."""
    longest: int | None = None
    """Characters that the dest takes: a longer value is sent so that the dest refuses it."""
    unwanted: Unwanted | None = None
    """Values that fail the copy."""
    by_text: bool = False
    """There is no cast between the two types: their text forms are the way."""
    by_request: bool = False
    """--cast or --allow-lossy made it so."""
    warning: str | None = None
    """What may make the copy fail late, or mean something else at the dest."""

    @property
    def looks(self) -> bool:
        """Return whether each value is looked at before it is sent."""
        return (self.back, self.longest, self.unwanted) != (None, None, None)

    @property
    def as_it_is(self) -> bool:
        """Return whether the source sends the very value that it holds."""
        return self.into is None and not self.looks


# How the text begins by which the source is made to refuse a value (statements.crossings).
GUARD = "copypipe: the column "


def decide(source: Value, dest: Value, sides: Sides, asked: Asked = None) -> Crossing:
    """Decide how a value of the source's type becomes one of the dest's.

    Never loses anything in silence unless `asked` is "lossy".
    """
    here, there = source.bare, dest.bare
    found = _automatic(here, there, sides)
    if found.decision == "refuse" and asked is not None:
        return _cast_as_asked(here, there, sides, found, asked)
    if asked == "lossy" and (found.longest is not None or _cut(here, there)):
        reason = "as allowed, though it may lose: what is too long is cut"
        return Crossing("cast", reason, into=there, by_request=True)
    return found


def _automatic(here: Value, there: Value, sides: Sides) -> Crossing:
    why = difference(here, there)
    if why is None:
        return _alike(here, there, sides)
    return (
        _text_family(here, there, sides)
        or _numbers_and_times(here, there)
        or _arrays(here, there, sides)
        or _into_text(here, there, sides)
        or _refuse(why)
    )


def _refuse(reason: str) -> Crossing:
    return Crossing("refuse", reason)


# ------------------------------------------------------------------------------- the same type


def difference(here: Value, there: Value, *, ordered: bool = False) -> str | None:
    """Return why the bytes of one may mean something else as the other, None where they do not.

    Compares what the two are made of, whatever they are called; modifiers are not looked at.
    `ordered` tells that it matters how values sort: they are bounds of a range.
    """
    here, there = here.bare, there.bare
    one, other = here.type, there.type
    unlike = f"{here.name} at the source, {there.name} at the dest"
    if one.kind != other.kind:
        return unlike
    match one.kind:
        case "enum":
            # The bytes are the label, and one that the dest lacks raises an error.
            same = not ordered or one.labels == other.labels
            return None if same else f"{unlike}: the order of their labels differs"
        case "array" | "range" | "multirange":
            if one.rules != other.rules:
                return f"{unlike}: ranges that sort their bounds differently"
            ordered = ordered or one.kind != "array"
            return difference(_part(here), _part(there), ordered=ordered)
        case "composite":
            return _fields_differ(here, there, ordered=ordered)
    if one.built_in or other.built_in:
        return None if one.oid == other.oid else unlike
    if one.extension is None and other.extension is None:
        return f"{here.name} is a base type of no extension: nothing tells what its bytes mean"
    return None if one.extension == other.extension else unlike


def _part(value: Value) -> Value:
    return value.type.of or value


def _fields_differ(here: Value, there: Value, *, ordered: bool) -> str | None:
    """Compare row types field by field: bytes and text say no names, only an order."""
    ours = [field.name for field in here.type.fields]
    theirs = [field.name for field in there.type.fields]
    if ours != theirs:
        return (
            f"{here.name} has the fields {', '.join(ours)} at the source, {there.name} "
            f"{', '.join(theirs)} at the dest"
        )
    for one, other in zip(here.type.fields, there.type.fields, strict=True):
        why = difference(one.value, other.value, ordered=ordered)
        if why is not None:
            return f"field {one.name} of {here.name}: {why}"
    return None


def sorted_alike(here: Value, there: Value) -> bool:
    """Return whether two values that are the same also have enums that sort the same."""
    for one, other in zip(leaves(here), leaves(there), strict=False):
        theirs = iter(other.type.labels)
        if not all(label in theirs for label in one.type.labels):  # in that order
            return False
    return True


def modifiers_alike(here: Value, there: Value) -> bool:
    """Return whether a modifier that differs makes no difference to a value that fits."""
    here, there = here.bare, there.bare
    if here.typmod == there.typmod or here.type.oid == VARCHAR:
        return True
    times = here.type.oid in (TIME, TIMETZ, TIMESTAMP, TIMESTAMPTZ)
    return times and _fields_and_digits(here) == _fields_and_digits(there)


def has_letters(value: Value) -> bool:
    """Return whether a value holds text, in the encoding of its database."""
    return any(
        leaf.type.kind == "enum" or not leaf.type.built_in or leaf.type.oid in LETTERS
        for leaf in leaves(value)
    )


def _alike(here: Value, there: Value, sides: Sides) -> Crossing:
    """Decide about one type on both sides: its modifier, and whether its bytes are portable."""
    loss = _loss(here, there, sides, nested=False)
    if loss is not None:
        return _refuse(loss)
    found = _form(here, there, sides)
    if found.decision == "refuse":
        return found
    found = replace(found, warning=_missing_labels(here, there) or found.warning)
    if here.type.oid == VARCHAR and _shorter(here, there, sides):
        return _measured(found, there, sides)
    unwanted = _unwanted_interval(here, sides)
    if unwanted is not None and found.decision == "same":
        reason = f"PostgreSQL {sides.dest.major} reads intervals differently at their limits"
        return replace(found, reason=f"{reason}: such a one fails the copy", unwanted=unwanted)
    return found


def _form(here: Value, there: Value, sides: Sides) -> Crossing:
    """Return the form in which the values of one type go over, and why."""
    ours, theirs = list(leaves(here)), list(leaves(there))
    for leaf in ours:
        if leaf.type.oid in WITHOUT_INPUT or leaf.type.kind == "pseudo":
            return _refuse(f"{leaf.name} is never read back by any server")
        if leaf.type.oid == MONEY and sides.source.money != sides.dest.money:
            return _refuse("money counts parts of another lc_monetary at the dest")
    for leaf in ours:
        if leaf.type.oid in BY_NAME:
            if here.type.kind not in ("base", "array"):
                return _refuse(f"{leaf.name} within {here.name} is a number of each database")
            return Crossing(
                "text format",
                f"{leaf.name} names an object by a number of each database: its name goes, and "
                "one without fails the copy",
                unwanted="nameless",
            )
    why = _why_text(here, there, ours, theirs, sides)
    if why is not None:
        lossy = next((leaf for leaf in ours if leaf.type.extension in LOSSY_TEXT), None)
        if lossy is not None:
            return _refuse(f"{why}, and its text form rounds")
        return Crossing("text format", why)
    numbers = [leaf.name for leaf in ours if leaf.type.oid in OF_THE_CLUSTER]
    if numbers:
        told = f"what {numbers[0]} names is of the source's cluster"
        return Crossing(
            "same", f"the number itself; {told}", warning=f"{told}: the number itself goes over"
        )
    if here.type.built_in:
        return Crossing("same", "the same built-in type")
    for leaf, other in zip(ours, theirs, strict=False):
        if leaf.type.version != other.type.version:
            versions = f"{leaf.type.version} at the source, {other.type.version} at the dest"
            return Crossing("same", f"the same type of an extension: {versions}")
    return Crossing("same", "made of the same types on both sides")


def _why_text(
    here: Value, there: Value, ours: Sequence[Value], theirs: Sequence[Value], sides: Sides
) -> str | None:
    """Return why a type that is the same must go as text, None where its bytes can."""
    for leaf in (here, *ours):
        if leaf.type.oid in UNSAFE:
            return f"{leaf.name}: {UNSAFE[leaf.type.oid]}"
        if not leaf.type.sends:
            return f"{leaf.name} has no binary form at the source"
    for leaf in (there, *theirs):
        if not leaf.type.receives:
            return f"{leaf.name} has no binary form at the dest"
    if here.type.kind != "base" and _unwanted_interval(here, sides) is not None:
        return f"PostgreSQL {sides.dest.major} reads intervals differently at their limits"
    return None


def _unwanted_interval(here: Value, sides: Sides) -> Unwanted | None:
    """Return which intervals the dest would read as others: 17 brought infinite ones.

    interval_recv of older servers checks nothing; infinity is there some number of years, the same
    that 17 takes for infinity.
    """
    if all(leaf.type.oid != INTERVAL for leaf in leaves(here)):
        return None
    ours, theirs = (major >= INFINITE_INTERVALS for major in (sides.source.major, sides.dest.major))
    if ours == theirs:
        return None
    return "infinite" if ours else "extreme"


def _missing_labels(here: Value, there: Value) -> str | None:
    for one, other in zip(leaves(here), leaves(there), strict=False):
        missing = [label for label in one.type.labels if label not in other.type.labels]
        if missing:
            listed = ", ".join(f"'{label}'" for label in missing)
            return f"{other.name} of the dest lacks {listed}: a row that holds it fails the copy"
    return None


def unsafe_as_text(value: Value, sides: Sides) -> str | None:
    """Return why a column that would go in binary may not go in text format beside another one."""
    oids = {leaf.type.oid for leaf in leaves(value)}
    if NAME in oids and sides.source.encoding != sides.dest.encoding:
        return "a name that is too long in the dest's encoding would be cut in text format"
    if CHAR in oids and sides.dest.major < OCTAL_CHARS <= sides.source.major:
        return 'a "char" beyond ASCII is written in a way that the dest does not read'
    return None


# ----------------------------------------------------------------------------------- modifiers


def _loss(here: Value, there: Value, sides: Sides, *, nested: bool) -> str | None:
    """Return what the dest would change in silence because of its modifier, None for nothing.

    Both are of one type. Where the dest's receive function raises an error, nothing is lost.
    """
    if here.type.kind == "composite":
        for one, other in zip(here.type.fields, there.type.fields, strict=True):
            loss = _loss(one.value.bare, other.value.bare, sides, nested=True)
            if loss is not None:
                return f"field {one.name} of {here.name}: {loss}"
        return None
    ours, theirs = here.element, there.element
    if ours is not None and theirs is not None:
        return _loss(ours, theirs, sides, nested=True)
    if here.type.kind in ("range", "multirange"):
        return _loss(_part(here).bare, _part(there).bare, sides, nested=True)
    oid = here.type.oid
    if oid == VARCHAR:
        # varcharrecv cuts blanks in silence. Outside of arrays and rows the value is measured.
        fits, loss = not (nested and _shorter(here, there, sides)), "blanks at the end may be cut"
    elif there.typmod in (-1, here.typmod) or oid in (BIT, VARBIT, BPCHAR):
        # bit_recv and varbit_recv raise; bpchar_recv too, unless blanks alone are cut or added,
        # which mean nothing in that type.
        return None
    elif oid == NUMERIC:
        fits, loss = _scale_fits(here, there), "digits may be rounded off"
    elif oid in (TIME, TIMETZ, TIMESTAMP, TIMESTAMPTZ, INTERVAL):
        fits, loss = _time_fits(here, there), "fractions or fields of a time may be cut off"
    else:
        fits = here.type.extension in CHECKED_MODIFIERS
        loss = "nothing tells whether the dest checks it"
    return None if fits else f"{here.name} as {there.name}: {loss}"


def _shorter(here: Value, there: Value, sides: Sides) -> bool:
    """Return whether a varchar may be too long for the dest."""
    ours, theirs = _length(here), _length(there)
    return theirs is not None and (ours is None or ours > theirs or sides.dest_counts_bytes)


def _cut(here: Value, there: Value) -> bool:
    """Return whether the dest raises an error for a length that a cast would cut."""
    return (
        here.type.oid == there.type.oid
        and here.type.oid in (BIT, VARBIT, BPCHAR)
        and there.typmod not in (-1, here.typmod)
    )


def _length(value: Value) -> int | None:
    """Return the characters that a varchar takes."""
    return value.typmod - VARHDRSZ if value.typmod >= VARHDRSZ else None


def _scale_fits(here: Value, there: Value) -> bool:
    """Return whether no digit is lost; one too many before the point raises an error."""
    return here.typmod >= 0 and _scale(here) <= _scale(there)


def _scale(value: Value) -> int:
    """Return the scale of a numeric, which may be negative (numeric.c, make_numeric_typmod)."""
    return (((value.typmod - VARHDRSZ) & 0x7FF) ^ 1024) - 1024


def _time_fits(here: Value, there: Value) -> bool:
    """Return whether the dest keeps all fields and all digits of a second."""
    fields, digits = _fields_and_digits(there)
    return fields == ALL_FIELDS and _fields_and_digits(here)[1] <= digits


def _fields_and_digits(value: Value) -> tuple[int, int]:
    """Read a time's modifier; that of an interval says its fields too (INTERVAL_TYPMOD)."""
    if value.typmod < 0:
        return ALL_FIELDS, MICROSECONDS
    if value.type.oid != INTERVAL:
        return ALL_FIELDS, min(value.typmod, MICROSECONDS)
    return value.typmod >> 16 & ALL_FIELDS, min(value.typmod & 0xFFFF, MICROSECONDS)


def _measured(found: Crossing, there: Value, sides: Sides) -> Crossing:
    """Have longer values fail, also those that are longer by blanks, which the dest would cut."""
    length = _length(there)
    if length is None:
        return found
    if sides.one_counts_bytes:
        return _refuse(
            f"{there.name} counts bytes where the encoding is SQL_ASCII, and cuts blanks"
        )
    reason = f"{found.reason}; a value of more than {length} characters fails the copy"
    return replace(found, reason=reason, longest=length)


# --------------------------------------------------------------------------------------- texts


def _text_family(here: Value, there: Value, sides: Sides) -> Crossing | None:
    """Decide where the dest reads the bytes of a text and checks what it reads."""
    to = there.type
    if not _reads_text(to) or not to.receives:
        return None
    documents = (JSONB,) if to.oid == JSON else (JSON, JSONB, XML, REFCURSOR)
    is_label = here.type.kind == "enum" and to.oid != JSON
    if not (_is_text(here) or is_label or here.type.oid in documents):
        return None
    reason = "the dest reads its text"
    if to.kind == "enum":
        reason += ", and a label that it lacks fails the copy"
    elif to.oid == JSON:
        reason += ", and what is no json fails the copy"
    as_it_is = here.type.oid in (TEXT, VARCHAR)
    found = Crossing("text value", reason, into=None if as_it_is else TEXT_VALUE)
    return _measured(found, there, sides) if to.oid == VARCHAR else found


def _is_text(value: Value) -> bool:
    return value.type.oid in (TEXT, VARCHAR, BPCHAR, NAME) or value.type.extension == CITEXT


def _reads_text(of: Type) -> bool:
    """Return whether the receive function takes a text and keeps it, or raises an error.

    Not bpchar, to which blanks at the end mean nothing; not name, which text format cuts; not xml,
    which believes the encoding that a text says of itself.
    """
    return of.oid in (TEXT, VARCHAR, JSON, REFCURSOR) or of.kind == "enum" or of.extension == CITEXT


def _into_text(here: Value, there: Value, sides: Sides) -> Crossing | None:
    """Have the source write out what the dest keeps as text, as INSERT would do."""
    if there.type.oid not in (TEXT, VARCHAR) or here.type.kind == "pseudo":
        return None
    parts = [leaf.type for leaf in leaves(here)]
    if any(part.oid in WITHOUT_TEXT or part.extension in LOSSY_TEXT for part in parts):
        return None
    found = Crossing("cast", "the dest keeps its text", into=TEXT_VALUE)
    return _measured(found, there, sides) if there.type.oid == VARCHAR else found


# --------------------------------------------------------------------------- numbers and times


def _numbers_and_times(here: Value, there: Value) -> Crossing | None:
    """Decide where a cast of PostgreSQL loses nothing or raises an error."""
    reason = EXACT.get((here.type.oid, there.type.oid))
    if here.type.oid == NUMERIC and there.type.oid in INTEGERS:
        whole = here.typmod >= 0 and _scale(here) <= 0
        reason = "without digits behind the point; " + _CHECKED if whole else None
    if reason is None:
        return None
    if there.type.oid == NUMERIC and there.typmod >= 0 and _scale(there) < 0:
        return _refuse(f"{here.name} as {there.name}: digits may be rounded off")
    if {here.type.oid, there.type.oid} == {BIT, VARBIT}:
        return Crossing("same", reason)  # another length raises an error at the dest
    return Crossing("cast", reason, into=_unmodified(there))


def _unmodified(value: Value) -> Value:
    """Return the type alone: a cast to a length or a precision would cut and round in silence."""
    return Value(value.type, -1, value.type.name)


def _arrays(here: Value, there: Value, sides: Sides) -> Crossing | None:
    """Decide about arrays by their elements, which are cast alike."""
    ours, theirs = here.element, there.element
    if ours is None or theirs is None:
        return None
    found = _automatic(ours, theirs, sides)
    if found.decision == "refuse":
        return found
    if found.decision == "text format" or found.unwanted is not None:
        return None
    into = found.into or ours
    if found.longest is not None:
        return _refuse(f"{here.name} as {there.name}: blanks at the end of elements may be cut")
    if theirs.type.built_in and theirs.type.oid != into.type.oid:
        into = _unmodified(theirs)  # array_recv compares the OIDs of built-in elements
    reason = f"element by element: {found.reason}"
    decision: Decision = "cast" if found.decision == "same" else found.decision
    return Crossing(decision, reason, into=_array_of(into), warning=found.warning)


def _array_of(value: Value) -> Value:
    """Return the type of arrays of this; its OID is any of those that say nothing."""
    name = f"{value.type.name}[]"
    made = Type(FIRST_GENBKI_OID, name, "array", sends=True, receives=True, of=value)
    return Value(made, -1, name)


# ------------------------------------------------------------------------------- by request


def _cast_as_asked(
    here: Value, there: Value, sides: Sides, refused: Crossing, asked: Asked
) -> Crossing:
    """Have the source cast what somebody named: exactly, or whatever comes out."""
    of = {leaf.type.oid for leaf in leaves(there)}
    known = there.type.built_in and there.type.receives and not of & (BY_NAME | WITHOUT_INPUT)
    if not known:
        return _refuse(f"{refused.reason}; the source cannot cast to {there.name}")
    if _unwanted_interval(there, sides) is not None:
        return _refuse(f"{refused.reason}; the two majors read intervals differently")
    if MONEY in of and sides.source.money != sides.dest.money:
        return refused
    if sides.one_counts_bytes and of & {VARCHAR, BPCHAR} and there.typmod != -1:
        return refused  # what fits at the source may be cut by the dest
    if asked == "lossy":
        reason = f"as allowed, though it may lose: {refused.reason}"
        return Crossing("cast", reason, into=there, by_request=True)
    reason = (
        f"as asked; a value that would not come back the same fails the copy ({refused.reason})"
    )
    return Crossing("cast", reason, into=there, back=_comparable(here, there), by_request=True)


def _comparable(here: Value, there: Value) -> Value:
    """Return as what a value is compared with what it became.

    As its own type; oid and int4 are one another's bytes, so that -1 would come back the same.
    """
    ours, theirs = (here.element or here).type.oid, (there.element or there).type.oid
    if OID not in (ours, theirs) or not {ours, theirs} <= {OID, *INTEGERS}:
        return here
    whole = Value(Type(INT8, "bigint", "base", sends=True, receives=True), -1, "bigint")
    return whole if here.element is None else _array_of(whole)


# --------------------------------------------------------------------------------------- facts
# OIDs are those of src/include/catalog/pg_type.dat.

CHAR, NAME, INT8, INT2, INT4, TEXT, OID = 18, 19, 20, 21, 23, 25, 26
JSON, XML, CIDR, FLOAT4, FLOAT8, MACADDR8, MONEY, MACADDR = 114, 142, 650, 700, 701, 774, 790, 829
INET, BPCHAR, VARCHAR, DATE, TIME, TIMESTAMP, TIMESTAMPTZ = 869, 1042, 1043, 1082, 1083, 1114, 1184
INTERVAL, TIMETZ, BIT, VARBIT, NUMERIC, REFCURSOR, JSONB = 1186, 1266, 1560, 1562, 1700, 1790, 3802

CITEXT = "citext.citext"

# Types whose values are kept in the database's encoding: with those above jsonpath, tsvector,
# tsquery, refcursor.
LETTERS = frozenset(
    {CHAR, NAME, TEXT, JSON, XML, BPCHAR, VARCHAR, REFCURSOR, JSONB, 4072, 3614, 3615}
)

TEXT_VALUE = Value(Type(TEXT, "text", "base", sends=True, receives=True), -1, "text")

# varlena header, which typmods of lengths count in (c.h).
VARHDRSZ = 4

# The most digits of a second that times hold (timestamp.h, MAX_TIMESTAMP_PRECISION), and the mask
# of an interval that has all of its fields (INTERVAL_FULL_RANGE).
MICROSECONDS = 6
ALL_FIELDS = 0x7FFF

# The first major whose interval knows infinity; interval_recv of older ones reads it as a value.
INFINITE_INTERVALS = 17

# What a database gives its objects anew; the text form says the name: regproc, regprocedure,
# regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole,
# regcollation.
BY_NAME = frozenset({24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191})

# Numbers that mean an object, a row or a moment of the source's cluster and are copied as numbers:
# oid, tid, xid, cid, txid_snapshot, pg_lsn, xid8, pg_snapshot.
OF_THE_CLUSTER = frozenset({OID, 27, 28, 29, 2970, 3220, 5069, 5038})

# The receive function of these always raises an error ("cannot accept a value of type"):
# pg_node_tree, pg_ndistinct, pg_dependencies, pg_mcv_list, BRIN summaries, gtsvector.
WITHOUT_INPUT = frozenset({194, 3361, 3402, 5017, 4600, 4601, 3642})

# Types whose binary form fails though both functions exist. oidvector and int2vector: an empty one
# is sent as an array of no dimension, which the receive function refuses (int.c, oid.c).
UNSAFE: Mapping[int, str] = {
    22: "an empty one cannot be received in binary",
    30: "an empty one cannot be received in binary",
}

# Types of extensions whose text form rounds, so that it does not stand in for a binary one.
LOSSY_TEXT = frozenset({"seg.seg", "postgis.box2d", "postgis.box3d"})

# Types of extensions whose receive function checks its modifier and changes nothing (pgvector's
# vector.c and others; PostGIS may give a geometry another SRID).
CHECKED_MODIFIERS = frozenset({"vector.vector", "vector.halfvec", "vector.sparsevec"})

# The first major that writes a high byte of "char" in octal (char.c, charout).
OCTAL_CHARS = 15

# What its text means depends on the session or the cluster: not cast to text by itself. money;
# what is BY_NAME; "char", whose text for a high byte has changed.
WITHOUT_TEXT = frozenset({MONEY, CHAR}) | BY_NAME | WITHOUT_INPUT

_WIDER = "every value fits"
_SINGLES = "every value fits, as the number that it is: 0.1 is then 0.10000000149011612"
_CHECKED = "a value that does not fit fails the copy"
INTEGERS = (INT2, INT4, INT8)  # the narrowest first

# Casts between built-in types that lose nothing or raise an error, though the types differ. All of
# them are what an assignment may do (pg_cast.castcontext i or a). Left out are those that round
# (numeric or float into integers, float8 or numeric into float4), wrap around (int4 into oid), or
# depend on the session's TimeZone (date and timestamp into timestamptz and back).
EXACT: Mapping[tuple[int, int], str] = {
    **dict.fromkeys(combinations(INTEGERS, 2), _WIDER),
    **dict.fromkeys(combinations(reversed(INTEGERS), 2), _CHECKED),
    **{(one, NUMERIC): f"{_WIDER}, or fails the copy by its precision" for one in INTEGERS},
    (INT2, FLOAT4): _WIDER,
    (INT2, FLOAT8): _WIDER,
    (INT4, FLOAT8): _WIDER,
    (FLOAT4, FLOAT8): _SINGLES,
    (OID, INT8): _WIDER,
    (INT8, OID): _CHECKED,
    (DATE, TIMESTAMP): "midnight of that day; one beyond the range fails the copy",
    (CIDR, INET): _WIDER,
    (MACADDR, MACADDR8): _WIDER,
    (MACADDR8, MACADDR): _CHECKED,
    (BIT, VARBIT): "the same bytes; another length fails the copy",
    (VARBIT, BIT): "the same bytes; another length fails the copy",
}
