"""The statements that move rows, and those that make room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal as Choice

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.crossings import Crossing
from copypipe.slices import Pages, Range, Slice
from copypipe.statements.crossings import crossed, held
from copypipe.statements.expressions import from_item
from copypipe.statements.slices import predicate
from copypipe.tables import Column, OwnedSequence, Partition, Relation, Table

Format = Choice["binary", "text"]


def _names(columns: Sequence[str]) -> Composed:
    return SQL(", ").join(map(Identifier, columns))


def _table(table: Table | Partition) -> Identifier:
    return Identifier(table.schema, table.name)


def select(
    relation: Relation, columns: Sequence[tuple[Column, Crossing]], slice_: Slice
) -> Composed:
    """Read the slice: the columns in the dest's order, some of them computed or cast.

    What is computed and looked at before it is sent is computed below, once for each row: it may
    be volatile. OFFSET keeps the planner from putting the two together.
    """
    if isinstance(slice_, Pages) and slice_.partitions:
        # Each by itself: the planner would not leave out those that a condition on tableoid does.
        read = [SQL("ONLY {}").format(Identifier(*name)) for name in slice_.partitions]
    elif _reads_alone(relation, slice_):
        # Pages are those of one table; what inherits from it has its own.
        read = [SQL("ONLY {}").format(from_item(relation))]
    else:
        read = [from_item(relation)]
    return SQL(" UNION ALL ").join(_select_from(each, columns, slice_) for each in read)


def _select_from(
    item: Composable, columns: Sequence[tuple[Column, Crossing]], slice_: Slice
) -> Composed:
    below = any(column.expression is not None and crossing.looks for column, crossing in columns)
    source = SQL("{} WHERE {}").format(item, predicate(slice_))
    if isinstance(slice_, Pages) and slice_.limit is not None:
        source += SQL(" LIMIT {}").format(Literal(slice_.limit))
    if not below:
        values = [crossed(held(column), column, crossing) for column, crossing in columns]
        return SQL("SELECT {} FROM {}").format(SQL(", ").join(values), source)
    names = [Identifier(f"value{number}") for number in range(1, len(columns) + 1)]
    inner = [
        SQL("{} AS {}").format(held(column), name)
        for (column, _), name in zip(columns, names, strict=True)
    ]
    outer = [
        crossed(name, column, crossing)
        for (column, crossing), name in zip(columns, names, strict=True)
    ]
    return SQL("SELECT {} FROM (SELECT {} FROM {} OFFSET 0) AS computed").format(
        SQL(", ").join(outer), SQL(", ").join(inner), source
    )


def _reads_alone(relation: Relation, slice_: Slice) -> bool:
    """Return whether a table is read without what inherits from it; partitions are its own rows."""
    return isinstance(slice_, Pages) and isinstance(relation, Table) and relation.kind == "r"


def copy_out(query: Composable, form: Format) -> Composed:
    """Send the rows of `query`. The SELECT form reads whole partition trees and views."""
    return SQL("COPY ({}) TO STDOUT (FORMAT {})").format(query, SQL(form))


def copy_in(table: Table, columns: Sequence[str], form: Format, *, freeze: bool) -> Composed:
    """Receive rows."""
    options = SQL("FORMAT {}, FREEZE true" if freeze else "FORMAT {}").format(SQL(form))
    return SQL("COPY {} ({}) FROM STDIN ({})").format(_table(table), _names(columns), options)


def delete(table: Table, slice_: Slice) -> Composed:
    """Delete the slice."""
    return SQL("DELETE FROM {} WHERE {}").format(_table(table), predicate(slice_))


def truncate(*tables: Table | Partition) -> Composed:
    """Empty tables; a foreign key that points at one makes this fail, CASCADE is never said."""
    return SQL("TRUNCATE TABLE {}").format(SQL(", ").join(map(_table, tables)))


def any_row(table: Table, slice_: Slice) -> Composed:
    """Ask whether the slice has a row."""
    return SQL("SELECT EXISTS (SELECT 1 FROM {} WHERE {})").format(_table(table), predicate(slice_))


def empty(table: Table, slices_: Sequence[Range]) -> Composed:
    """Find which of these slices have no row: their places, counted from 1.

    Each is one look into an index of the column; holes are passed over.
    """
    column = Identifier(slices_[0].column)
    return SQL(
        """
        SELECT wanted.place
          FROM unnest({starts}, {stops}) WITH ORDINALITY AS wanted (start, stop, place)
         WHERE NOT EXISTS (SELECT 1 FROM {table}
                            WHERE {column} >= wanted.start AND {column} < wanted.stop)
        """
    ).format(
        starts=Literal([each.start for each in slices_]),
        stops=Literal([each.stop for each in slices_]),
        table=_table(table),
        column=column,
    )


def defer_constraints() -> Composed:
    """Have constraints that may be deferred asked at COMMIT."""
    return SQL("SET CONSTRAINTS ALL DEFERRED").format()


def count(table: Table, slice_: Slice) -> Composed:
    """Count the rows of the slice."""
    return SQL("SELECT count(*) FROM {} WHERE {}").format(_table(table), predicate(slice_))


def count_own(table: Table, slice_: Slice) -> Composed:
    """Count the rows of the slice that this transaction wrote, whatever others commit meanwhile.

    Rows of a subtransaction bear its own number; COPY runs in none.
    """
    return SQL(
        "SELECT count(*) FROM {} WHERE xmin = pg_catalog.pg_current_xact_id()::xid AND {}"
    ).format(_table(table), predicate(slice_))


def advance(table: Table, sequence: OwnedSequence) -> Composed:
    """Let a sequence go on behind what its column holds, never back.

    Not undone by a rollback, so it has its place behind COMMIT. Whoever draws a number meanwhile
    gets one that is free or not; the next one is free.
    """
    extreme, behind = ("max", ">") if sequence.ascends else ("min", "<")
    return SQL(
        """
        SELECT pg_catalog.setval({literal}::pg_catalog.regclass, held.number)
          FROM (SELECT {extreme}({column}) AS number FROM {table}) AS held, {sequence} AS drawn
         WHERE held.number {behind} drawn.last_value
            OR held.number = drawn.last_value AND NOT drawn.is_called
        """
    ).format(
        literal=Literal(Identifier(sequence.schema, sequence.name).as_string(None)),
        extreme=SQL(extreme),
        column=Identifier(sequence.column),
        table=_table(table),
        sequence=Identifier(sequence.schema, sequence.name),
        behind=SQL(behind),
    )


def size(table: Table) -> Composed:
    """Ask for the size of the table on disk with its partitions, in bytes."""
    return SQL(
        """
        SELECT coalesce(sum(pg_catalog.pg_relation_size(t.oid)), 0)::int8
          FROM (SELECT {oid}::oid AS oid
                 UNION
                SELECT p.relid::oid FROM pg_catalog.pg_partition_tree({oid}) p) AS t
        """
    ).format(oid=Literal(table.oid))


def run_deferred_triggers() -> Composed:
    """Run now what was deferred to COMMIT, so that what it does to the slice can be counted."""
    return SQL("SET CONSTRAINTS ALL IMMEDIATE").format()


def lock_for_reading(table: Table, *, at_once: bool = False) -> Composed:
    """Keep the table's definition as it is while it is read; `at_once` or not at all.

    LOCK takes no snapshot, so one that had to wait for a TRUNCATE does not leave the transaction
    with a snapshot from before it (pg_dump locks first for the same reason).
    """
    return SQL("LOCK TABLE {} IN ACCESS SHARE MODE{}").format(
        _table(table), SQL(" NOWAIT" if at_once else "")
    )


def lock_for_writing(table: Table, *, alone: bool = False) -> Composed:
    """Keep the table's definition as it is while it is written; readers and writers go on.

    With its partitions, or `alone`: who truncates one must not hold locks on others, or two that
    do so would wait for each other.
    """
    only = SQL("ONLY ") if alone else SQL("")
    return SQL("LOCK TABLE {}{} IN ROW EXCLUSIVE MODE").format(only, _table(table))


def lock_alone_now(table: Table) -> Composed:
    """Lock everybody out of the table, or fail at once: waiting here could deadlock."""
    return SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(_table(table))


def lock_alone(*tables: Table | Partition) -> Composed:
    """Lock everybody out of tables and all below them, so that nothing comes before TRUNCATE."""
    return SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(SQL(", ").join(map(_table, tables)))


def savepoint() -> Composed:
    """Mark a point to come back to."""
    return SQL("SAVEPOINT copypipe").format()


def back_to_savepoint() -> Composed:
    """Undo what came after the savepoint."""
    return SQL("ROLLBACK TO SAVEPOINT copypipe").format()


def release_savepoint() -> Composed:
    """Forget the savepoint, and with it its subtransaction."""
    return SQL("RELEASE SAVEPOINT copypipe").format()


def nothing(query: Composable) -> Composed:
    """Read no row, for the ACCESS SHARE locks that reading takes."""
    return SQL("{} LIMIT 0").format(query)
