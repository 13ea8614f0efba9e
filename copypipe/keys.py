"""By which key rows are merged, and what an UPDATE of a merge sets: facts in, decision out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from copypipe.errors import PlanRefused
from copypipe.statements.merges import Merge
from copypipe.tables import Column, Table, Unique, named

# Types whose equal values are equal to the byte, where the collation is deterministic. Of others
# (numeric 1.0 and 1.00, float 0 and -0, citext) a key may have changed and still be the same.
_ONE_IMAGE = frozenset(
    {
        "boolean",
        "smallint",
        "integer",
        "bigint",
        "oid",
        "uuid",
        "date",
        "bytea",
        "text",
        "character varying",
        "timestamp without time zone",
        "timestamp with time zone",
    }
)


def merge(
    table: Table, uniques: Sequence[Unique], asked: Sequence[str], columns: Sequence[Column]
) -> Merge:
    """Return how rows with these columns are merged into the table.

    `asked` names the columns of --key; without it the primary key is taken. Raises PlanRefused
    where there is no such key, or it cannot be merged by.
    """
    key = _key(table, uniques, asked)
    hindering = next((unique for unique in uniques if _hinders(unique, key)), None)
    if hindering is not None:
        raise PlanRefused(
            f"dest: rows cannot be merged by {hindering.name} of {table.full_name}",
            detail=f"{str(hindering.hindrance).capitalize()}.",
            hint=_others(uniques),
            side="dest",
        )
    names = {column.name for column in columns}
    missing = [name for name in key.columns if name not in names]
    if missing:
        raise PlanRefused(
            f"dest: the key of {table.full_name} is not copied: {', '.join(missing)}",
            detail="Rows are merged by the source's values of the key.",
            hint="Do not exclude it, or give another one by --key.",
            side="dest",
        )
    updates = [
        column.name
        for column in columns
        if not column.always_identity and _may_change(column, key.columns)
    ]
    fixed = [c.name for c in columns if c.always_identity and c.name not in key.columns]
    return Merge(
        table=table,
        key=key,
        columns=tuple(column.name for column in columns),
        updates=tuple(updates),
        fixed=tuple(fixed),
        overriding=any(column.always_identity for column in columns),
    )


def _hinders(unique: Unique, key: Unique) -> bool:
    """Return whether an index hinders a merge by the key: its own, or a deferrable one like it.

    ON CONFLICT means all that tell the same values apart in the same columns.
    """
    if unique.hindrance is None or unique is key:
        return unique.hindrance is not None
    alike = _told_apart(unique) == _told_apart(key)
    return key.hindrance is None and unique.is_deferrable and alike


def _told_apart(unique: Unique) -> dict[str, str]:
    return dict(zip(unique.columns, unique.inferred_by, strict=True))


def _may_change(column: Column, key: Collection[str]) -> bool:
    """Return whether a row that is held can have another value in the column."""
    if column.name not in key:
        return True
    loose = column.sorting is not None and column.sorting.endswith(" loose")
    return loose or column.value.type.name not in _ONE_IMAGE


def _key(table: Table, uniques: Sequence[Unique], asked: Sequence[str]) -> Unique:
    if not asked:
        primary = next((unique for unique in uniques if unique.is_primary), None)
        if primary is None:
            raise PlanRefused(
                f"dest: {table.full_name} has no primary key to merge by",
                hint=_others(uniques),
                side="dest",
            )
        return primary
    columns = set()
    for name in asked:
        column = named(name, table.columns)
        if column is None:
            raise PlanRefused(f'dest: {table.full_name} has no column "{name}"', side="dest")
        columns.add(column.name)
    fitting = [unique for unique in uniques if set(unique.columns) == columns]
    if not fitting:
        raise PlanRefused(
            f"dest: no unique index of {table.full_name} is on {', '.join(sorted(columns))}",
            detail="Without one two rows could have one key.",
            hint=_others(uniques),
            side="dest",
        )
    return min(fitting, key=lambda unique: unique.hindrance is not None)


def _others(uniques: Sequence[Unique]) -> str:
    usable = [unique for unique in uniques if unique.hindrance is None]
    if not usable:
        return "Make a unique index on what tells its rows apart."
    return "Keys that would do: " + "; ".join(
        " ".join(f"--key {name}" for name in unique.columns) for unique in usable
    )
