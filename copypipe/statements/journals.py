"""What the ledger keeps of migrations: which tables, from where, and what is still to be done.

What was copied is told by `copypipe.slice`, as of any copy. These tables tell what a migration set
out to do, so that it can go on from any host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.statements.ledger import JOURNAL, SCHEMA

_TABLES = (
    """
    CREATE TABLE copypipe.migration (
        id uuid PRIMARY KEY,
        source_system int8,
        source_database_oid oid NOT NULL,
        source_address text NOT NULL,
        asked jsonb NOT NULL,
        run text NOT NULL,
        snapshot text NOT NULL,
        lsn text,
        taken_at timestamptz NOT NULL,
        began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        ended_at timestamptz,
        tool_version text NOT NULL)
    """,
    """
    CREATE TABLE copypipe.migration_table (
        migration uuid NOT NULL REFERENCES copypipe.migration ON DELETE CASCADE,
        source_oid oid NOT NULL,
        source_table text NOT NULL,
        dest_oid oid NOT NULL,
        dest_table text NOT NULL,
        dest_root oid NOT NULL,
        made bool NOT NULL,
        had_rows bool NOT NULL,
        run text NOT NULL,
        parts jsonb NOT NULL,
        copied_at timestamptz,
        rows int8,
        bytes int8,
        checksum text,
        seconds float8,
        PRIMARY KEY (migration, source_oid))
    """,
    """
    CREATE TABLE copypipe.migration_step (
        migration uuid NOT NULL REFERENCES copypipe.migration ON DELETE CASCADE,
        number int4 NOT NULL,
        kind text NOT NULL,
        source_oid oid NOT NULL,
        name text NOT NULL,
        statement text NOT NULL,
        done_at timestamptz,
        seconds float8,
        PRIMARY KEY (migration, number))
    """,
    "COMMENT ON TABLE copypipe.migration IS"
    " 'What copypipe migrate set out to do; run, snapshot, lsn and taken_at are of its last start'",
    "COMMENT ON COLUMN copypipe.migration_table.dest_root IS"
    " 'The topmost table that it is a partition of, or itself'",
    "COMMENT ON COLUMN copypipe.migration_table.had_rows IS"
    " 'It held rows when the migration first began, which were removed (--replace)'",
    "COMMENT ON COLUMN copypipe.migration_table.run IS 'In whose snapshot its parts are read'",
    "COMMENT ON COLUMN copypipe.migration_table.parts IS"
    " 'Ranges of pages of the source: [first, after the last, partitions]; null for no bound'",
    "COMMENT ON TABLE copypipe.migration_step IS"
    " 'What is made of the tables when their rows are there. Whoever may write here may have"
    " anything run by the role that goes on with the migration'",
)


def is_there() -> Composed:
    """Ask whether the tables are there."""
    return SQL("SELECT pg_catalog.to_regclass({}) IS NOT NULL").format(
        Literal(f"{SCHEMA}.{JOURNAL[0]}")
    )


def make() -> list[Composed]:
    """Make the tables."""
    return [Composed([SQL(text)]) for text in _TABLES]


def _rows(table: str, rows: Sequence[Mapping[str, Any]]) -> Composed:
    return SQL("INSERT INTO {} ({}) VALUES {}").format(
        Identifier(SCHEMA, table),
        SQL(", ").join(map(Identifier, rows[0])),
        SQL(", ").join(
            SQL("({})").format(SQL(", ").join(map(Literal, row.values()))) for row in rows
        ),
    )


def begin(migration: Mapping[str, Any]) -> Composed:
    """Tell of a migration that begins."""
    return _rows("migration", [migration])


def add_tables(rows: Sequence[Mapping[str, Any]]) -> Composed:
    """Tell of its tables."""
    return _rows("migration_table", rows)


def add_steps(rows: Sequence[Mapping[str, Any]]) -> Composed:
    """Tell of what is made of them."""
    return _rows("migration_step", rows)


def unfinished(of_source: Mapping[str, Any]) -> Composed:
    """Read the migrations from a source that have not ended, the last first."""
    return SQL(
        """
        SELECT m.id::text, m.asked, m.taken_at, m.began_at, m.run
          FROM copypipe.migration m
         WHERE m.ended_at IS NULL AND {}
         ORDER BY m.began_at DESC
        """
    ).format(_is_from(of_source))


def last_end(of_source: Mapping[str, Any]) -> Composed:
    """Read when a migration from a source last ended; NULL for never."""
    return SQL("SELECT max(m.ended_at) FROM copypipe.migration m WHERE {}").format(
        _is_from(of_source)
    )


def _is_from(of_source: Mapping[str, Any]) -> Composed:
    return SQL(
        "m.source_database_oid = {database}"
        " AND coalesce(m.source_system = {system}::int8, m.source_address = {address})"
    ).format(
        database=Literal(of_source["source_database_oid"]),
        system=Literal(of_source["source_system"]),
        address=Literal(of_source["source_address"]),
    )


def others(tables: Sequence[int]) -> Composed:
    """Find migrations with one of these tables that have something left to do.

    Rows: id, whether it has ended (a rehearsal makes no foreign keys), OIDs and names of its tables
    at the dest that are still there.
    """
    return SQL(
        """
        SELECT m.id::text, m.ended_at IS NOT NULL,
               ARRAY(SELECT t.dest_oid::int8 FROM copypipe.migration_table t
                       JOIN pg_catalog.pg_class c ON c.oid = t.dest_oid
                      WHERE t.migration = m.id ORDER BY t.source_oid),
               ARRAY(SELECT t.dest_table FROM copypipe.migration_table t
                       JOIN pg_catalog.pg_class c ON c.oid = t.dest_oid
                      WHERE t.migration = m.id ORDER BY t.source_oid)
          FROM copypipe.migration m
         WHERE (m.ended_at IS NULL
                OR EXISTS (SELECT 1 FROM copypipe.migration_step s
                            WHERE s.migration = m.id AND s.done_at IS NULL))
           AND EXISTS (SELECT 1 FROM copypipe.migration_table t
                        WHERE t.migration = m.id AND t.dest_oid = ANY ({}::oid[]))
         ORDER BY m.began_at DESC
        """
    ).format(Literal(list(tables)))


def left(migrations: Sequence[str]) -> Composed:
    """Read what migrations have left to do: kind, OID of the dest's table, name, statement."""
    return SQL(
        """
        SELECT s.kind, coalesce(t.dest_oid::int8, 0), s.name, s.statement
          FROM copypipe.migration_step s
          LEFT JOIN copypipe.migration_table t
            ON t.migration = s.migration AND t.source_oid = s.source_oid
         WHERE s.migration = ANY ({}::uuid[]) AND s.done_at IS NULL
         ORDER BY s.migration, s.number
        """
    ).format(Literal(list(migrations)))


def forget(migrations: Sequence[str]) -> Composed:
    """Remove what is told of migrations."""
    return SQL("DELETE FROM copypipe.migration WHERE id = ANY ({}::uuid[])").format(
        Literal(list(migrations))
    )


def dropped() -> Composed:
    """Read the definitions of indexes that were dropped and are not made again yet."""
    return SQL(
        """
        SELECT s.statement
          FROM copypipe.migration_step s
          JOIN copypipe.migration_table t
            ON t.migration = s.migration AND t.source_oid = s.source_oid
         WHERE s.kind = 'index' AND s.done_at IS NULL AND NOT t.made
         ORDER BY s.migration, s.number
        """
    ).format()


def tables(migration: str) -> Composed:
    """Read the tables of a migration, and whether a copy of all their rows is recorded of it."""
    return SQL(
        """
        SELECT t.source_oid::int8, t.source_table, t.dest_oid::int8, t.dest_table,
               t.dest_root::int8, t.made, t.had_rows, t.run, t.parts,
               coalesce(t.copied_at, s.recorded_at),
               coalesce(t.rows, s.rows_copied), coalesce(t.bytes, s.bytes),
               coalesce(t.checksum, s.checksum),
               coalesce(t.seconds, (s.manifest->>'seconds')::float8)
          FROM copypipe.migration_table t
          LEFT JOIN LATERAL (
               SELECT s.* FROM copypipe.slice s
                WHERE s.dest_oid = t.dest_oid AND s.manifest->>'migration' = {migration}
                  AND s.manifest->>'run' = t.run AND s.condition IS NULL
                ORDER BY s.id DESC LIMIT 1) AS s ON true
         WHERE t.migration = {migration}::uuid
         ORDER BY t.source_oid
        """
    ).format(migration=Literal(migration))


def parts(migration: str, dest_oid: int) -> Composed:
    """Read the parts of a table that are there: what, rows, bytes, digest, seconds, transaction."""
    return SQL(
        """
        SELECT s.condition, s.rows_copied, s.bytes, s.checksum,
               (s.manifest->>'seconds')::float8, s.xid::text::int8
          FROM copypipe.slice s
         WHERE s.dest_oid = {dest_oid} AND s.manifest->>'migration' = {migration}
           AND s.condition IS NOT NULL
         ORDER BY s.id
        """
    ).format(dest_oid=Literal(dest_oid), migration=Literal(migration))


def steps(migration: str) -> Composed:
    """Read what is to be made, and what has been, in order."""
    return SQL(
        """
        SELECT s.number, s.kind, s.source_oid::int8, s.name, s.statement, s.done_at IS NOT NULL
          FROM copypipe.migration_step s
         WHERE s.migration = {}::uuid
         ORDER BY s.number
        """
    ).format(Literal(migration))


def begin_again(migration: str, run: str, values: Mapping[str, Any]) -> Composed:
    """Tell of another start of a migration behind that of a run, unless it has ended."""
    return SQL(
        "UPDATE copypipe.migration SET {} WHERE id = {}::uuid AND run = {} AND ended_at IS NULL"
    ).format(
        SQL(", ").join(
            SQL("{} = {}").format(Identifier(name), Literal(value))
            for name, value in values.items()
        ),
        Literal(migration),
        Literal(run),
    )


def read_again(migration: str, source_oids: Sequence[int], run: str) -> Composed:
    """Tell that tables begin anew, in the snapshot of another run."""
    return SQL(
        """
        UPDATE copypipe.migration_table
           SET run = {run}, copied_at = NULL, rows = NULL, bytes = NULL, checksum = NULL,
               seconds = NULL
         WHERE migration = {migration}::uuid AND source_oid = ANY ({tables}::oid[])
        """
    ).format(run=Literal(run), migration=Literal(migration), tables=Literal(list(source_oids)))


def cut_again(migration: str, source_oid: int, parts: str) -> Composed:
    """Tell into which parts a table is cut."""
    return SQL(
        """
        UPDATE copypipe.migration_table SET parts = {parts}::jsonb
         WHERE migration = {migration}::uuid AND source_oid = {source_oid}
        """
    ).format(parts=Literal(parts), migration=Literal(migration), source_oid=Literal(source_oid))


def copied(migration: str, source_oid: int, values: Mapping[str, Any]) -> Composed:
    """Tell that all rows of a table are there."""
    return SQL(
        """
        UPDATE copypipe.migration_table SET copied_at = pg_catalog.clock_timestamp(), {}
         WHERE migration = {}::uuid AND source_oid = {} AND copied_at IS NULL
        """
    ).format(
        SQL(", ").join(
            SQL("{} = {}").format(Identifier(name), Literal(value))
            for name, value in values.items()
        ),
        Literal(migration),
        Literal(source_oid),
    )


def undone(migration: str, numbers: Sequence[int]) -> Composed:
    """Find which of these steps are not done, and keep others from doing them."""
    return SQL(
        """
        SELECT s.number FROM copypipe.migration_step s
         WHERE s.migration = {}::uuid AND s.number = ANY ({}::int4[]) AND s.done_at IS NULL
         ORDER BY s.number FOR UPDATE
        """
    ).format(Literal(migration), Literal(list(numbers)))


def done(migration: str, steps: Sequence[tuple[int, float]]) -> Composed:
    """Tell that steps were done, each with the seconds that it took."""
    return SQL(
        """
        UPDATE copypipe.migration_step s
           SET done_at = pg_catalog.clock_timestamp(), seconds = w.seconds
          FROM unnest({}::int4[], {}::float8[]) AS w (number, seconds)
         WHERE s.migration = {}::uuid AND s.number = w.number
        """
    ).format(
        Literal([number for number, _ in steps]),
        Literal([seconds for _, seconds in steps]),
        Literal(migration),
    )


def end(migration: str) -> Composed:
    """Tell that a migration has ended."""
    return SQL(
        "UPDATE copypipe.migration SET ended_at = pg_catalog.clock_timestamp() WHERE id = {}::uuid"
    ).format(Literal(migration))
