"""May this type cross as the bytes of binary COPY: facts in, decision out.

Binary COPY carries no types. The server checks only the number of fields and that each receive
function consumes its field (PostgreSQL, src/backend/commands/copyfromparse.c), so an int8 42 sent
into a numeric column arrives as 0 without an error. Therefore a column crosses only where both
sides have the same built-in type with the same modifier; everything else is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from copypipe.tables import Column

# transam.h, FirstGenbkiObjectId: OIDs below it are assigned by hand in pg_type.dat and mean the
# same type on every server of every supported major.
FIRST_GENBKI_OID = 10000

INTERVAL = 1186
MONEY = 790

_OBJECT_IDENTIFIERS = frozenset(
    {24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191}
)  # regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, ...

# The send function of these exists and their receive function always raises ("cannot accept a
# value of type"): pg_node_tree, pg_ndistinct, pg_dependencies, pg_mcv_list, BRIN summaries.
_WITHOUT_INPUT = frozenset({194, 3361, 3402, 5017, 4600, 4601})

# Arrays of types without binary functions have array_send all the same: aclitem and gtsvector.
_WITHOUT_BINARY = frozenset({1033, 3642})

# The first major whose interval knows infinity; interval_recv of older ones reads it as a value.
_INFINITE_INTERVALS = 17


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the meaning of a value depends on besides its type."""

    major: int
    lc_monetary: str


def obstacle(
    source: Column, dest: Column, source_has: Surroundings, dest_has: Surroundings
) -> str | None:
    """Return why this column may not cross as bytes, None where it may."""
    base = source.element_oid or source.type_oid
    users = source.type_oid >= FIRST_GENBKI_OID or base >= FIRST_GENBKI_OID
    if users and source.type_name == dest.type_name:
        return f"{source.type_name} is not a built-in type"
    if (source.type_oid, source.typmod) != (dest.type_oid, dest.typmod):
        return f"{source.type_name} at the source, {dest.type_name} at the dest"
    if users:
        return f"{source.type_name} and {dest.type_name} are not built-in types"
    if source.type_kind == "c":
        return f"{source.type_name} is a composite type"
    if base in _OBJECT_IDENTIFIERS:
        return f"{source.type_name} holds OIDs, which name other objects in another database"
    if base in _WITHOUT_INPUT | _WITHOUT_BINARY or not (source.binary and dest.binary):
        return f"{source.type_name} has no binary form"
    if base == MONEY and source_has.lc_monetary != dest_has.lc_monetary:
        return (
            f"money counts units of lc_monetary: {source_has.lc_monetary} at the source, "
            f"{dest_has.lc_monetary} at the dest"
        )
    if base == INTERVAL and source_has.major >= _INFINITE_INTERVALS > dest_has.major:
        return (
            f"interval can be infinite on PostgreSQL {source_has.major}; "
            f"{dest_has.major} would read that as another value"
        )
    return None
