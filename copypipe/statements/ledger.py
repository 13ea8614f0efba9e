"""The ledger: schema `copypipe` of the dest. What it holds and how it is read and written.

Rows of `slice` are written in the transaction that they tell of, and never changed: where two tell
of the same instants, the later one (by id) counts. They are the truth. Rows of `attempt` tell what
was tried, in transactions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

# What the tables below mean; raised with each change of them. A ledger with a higher number is one
# of a newer copypipe and left alone.
VERSION = 1

SCHEMA = "copypipe"

# What a role needs of each table.
RIGHTS = {
    "version": ("SELECT",),
    "slice": ("SELECT", "INSERT"),
    "attempt": ("SELECT", "INSERT", "UPDATE"),
    "sliced_by": ("SELECT", "INSERT"),
}

_TABLES = (
    """
    CREATE TABLE copypipe.version (
        version int4 NOT NULL,
        tool_version text NOT NULL,
        made_at timestamptz NOT NULL DEFAULT pg_catalog.now())
    """,
    """
    CREATE TABLE copypipe.slice (
        id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        attempt_id uuid NOT NULL UNIQUE,
        run_id text NOT NULL,
        root_oid oid NOT NULL,
        dest_oid oid NOT NULL,
        dest_table text NOT NULL,
        source_system int8,
        source_database_oid oid NOT NULL,
        source_address text NOT NULL,
        source_root_oid oid,
        source_table text NOT NULL,
        by_column text,
        zone text,
        instants tstzmultirange NOT NULL,
        condition text,
        mode text NOT NULL,
        rows_deleted int8,
        rows_copied int8 NOT NULL,
        bytes int8 NOT NULL,
        format text NOT NULL,
        signature text NOT NULL,
        reversed bool NOT NULL,
        checksum text,
        equal bool NOT NULL,
        state text NOT NULL CHECK (state IN ('sealed', 'open')),
        open_because text,
        complete_until timestamptz,
        source_clock timestamptz NOT NULL,
        began_at timestamptz NOT NULL,
        manifest jsonb NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
        tool_version text NOT NULL)
    """,
    "CREATE INDEX ON copypipe.slice (root_oid)",
    """
    CREATE TABLE copypipe.attempt (
        attempt_id uuid PRIMARY KEY,
        run_id text NOT NULL,
        number int4 NOT NULL,
        root_oid oid NOT NULL,
        dest_oid oid NOT NULL,
        dest_table text NOT NULL,
        by_column text,
        instants tstzmultirange NOT NULL,
        condition text,
        state text NOT NULL CHECK (state IN ('running', 'copied', 'failed', 'skipped')),
        side text,
        sqlstate text,
        error text,
        worker text NOT NULL,
        began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        ended_at timestamptz,
        tool_version text NOT NULL)
    """,
    "CREATE INDEX ON copypipe.attempt (root_oid, began_at)",
    """
    CREATE TABLE copypipe.sliced_by (
        root_oid oid PRIMARY KEY,
        dest_table text NOT NULL,
        by_column text NOT NULL,
        since timestamptz NOT NULL DEFAULT pg_catalog.now())
    """,
    "COMMENT ON SCHEMA copypipe IS 'What copypipe has copied into this database'",
    "COMMENT ON TABLE copypipe.slice IS"
    " 'One row for each committed transfer, written in its transaction; of two that tell of the"
    " same instants of a table the one with the higher id counts'",
    "COMMENT ON COLUMN copypipe.slice.instants IS"
    " 'Times without a zone are written as UTC; all rows: {(,)}'",
    "COMMENT ON COLUMN copypipe.slice.complete_until IS"
    " 'What was stamped before is there; NULL where nothing could be said'",
    "COMMENT ON COLUMN copypipe.slice.checksum IS"
    " 'Digest that both servers computed before COMMIT: of which columns, rows, two sums'",
    "COMMENT ON COLUMN copypipe.slice.equal IS"
    " 'The dest held just what the source had in the slice; append and merge keep what is there'",
    "COMMENT ON COLUMN copypipe.slice.manifest IS"
    " 'Statements, versions, snapshot and position of the source, what became of the rows'",
    "COMMENT ON TABLE copypipe.attempt IS"
    " 'What was tried; running, with no session of its run_id, means that it died'",
    "COMMENT ON TABLE copypipe.sliced_by IS"
    " 'The column by which the slices of a table are told apart: the first one that was seen'",
)


def look(role: str | None = None) -> Composed:
    """Ask whether there is a ledger, whose it is, and what a role lacks to use or make it.

    The role is the session's unless another one is named.

    Its owner, and the schema's, who may drop and make tables in it, could have it run anything with
    our rights (a trigger, a default). So that must be the role itself, one that it is a member of,
    the owner of the database or a superuser. A superuser counts as a member of every role, so for
    one that says nothing. A schema without tables may be filled by whoever may create in it.
    """
    wanted = [(table, right) for table, rights in RIGHTS.items() for right in rights]
    return SQL(
        """
        SELECT n.oid IS NOT NULL AS schema,
               v.oid::int8 AS made,
               pg_catalog.pg_get_userbyid(
                   (SELECT w.owner
                      FROM (SELECT n.nspowner UNION
                            SELECT c.relowner FROM pg_catalog.pg_class c
                             WHERE c.relnamespace = n.oid
                               AND c.relname = ANY ({tables}::text[])) AS w (owner)
                     WHERE NOT (w.owner = r.oid OR w.owner = d.datdba
                                OR (NOT r.rolsuper
                                    AND pg_catalog.pg_has_role(r.oid, w.owner, 'MEMBER'))
                                OR (SELECT o.rolsuper FROM pg_catalog.pg_roles o
                                     WHERE o.oid = w.owner))
                     LIMIT 1)) AS stranger,
               ARRAY(SELECT w.table_
                       FROM unnest({of}::text[], {rights}::text[]) AS w (table_, right_)
                      WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class c
                                         WHERE c.relnamespace = n.oid AND c.relname = w.table_)
                      GROUP BY w.table_) AS missing,
               ARRAY(SELECT w.right_ || ' ON {schema}.' || w.table_
                       FROM unnest({of}::text[], {rights}::text[]) AS w (table_, right_)
                       JOIN pg_catalog.pg_class c
                         ON c.relnamespace = n.oid AND c.relname = w.table_
                      WHERE NOT pg_catalog.has_table_privilege(r.oid, c.oid, w.right_)) AS denied,
               (SELECT count(*) = 2 FROM pg_catalog.pg_class c
                 WHERE c.relnamespace = n.oid AND c.relname IN ('version', 'slice')
                   AND pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT')) AS may_read,
               pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE') AS may_use,
               (SELECT p.pubname FROM pg_catalog.pg_publication p
                 WHERE p.puballtables AND p.pubinsert ORDER BY 1 LIMIT 1) AS published,
               CASE WHEN n.oid IS NULL
                    THEN pg_catalog.has_database_privilege(r.oid, d.oid, 'CREATE')
                    ELSE pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE')
                         AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
                    END AS may_make
          FROM pg_catalog.pg_database d
          JOIN pg_catalog.pg_roles r ON r.rolname = {role}
          LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = {name}
          LEFT JOIN pg_catalog.pg_class v ON v.relnamespace = n.oid AND v.relname = 'version'
         WHERE d.datname = pg_catalog.current_database()
        """
    ).format(
        schema=SQL(SCHEMA),
        role=SQL("current_user") if role is None else Literal(role),
        name=Literal(SCHEMA),
        tables=Literal(list(RIGHTS)),
        of=Literal([table for table, _ in wanted]),
        rights=Literal([right for _, right in wanted]),
    )


def version() -> Composed:
    """Read the version of the ledger."""
    return SQL("SELECT pg_catalog.max(v.version) FROM copypipe.version AS v").format()


def make_schema() -> Composed:
    """Make the schema."""
    return SQL("CREATE SCHEMA {}").format(Identifier(SCHEMA))


def make_tables(tool_version: str) -> list[Composed]:
    """Make the tables in the schema."""
    return [
        *(Composed([SQL(text)]) for text in _TABLES),
        SQL("INSERT INTO copypipe.version (version, tool_version) VALUES ({}, {})").format(
            Literal(VERSION), Literal(tool_version)
        ),
    ]


def lock() -> Composed:
    """Lock the tables against everybody, at once or not at all."""
    tables = SQL(", ").join(Identifier(SCHEMA, table) for table in RIGHTS)
    return SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(tables)


def remove() -> list[Composed]:
    """Remove the tables, and the schema if nothing else is in it."""
    tables = SQL(", ").join(Identifier(SCHEMA, table) for table in RIGHTS)
    return [
        SQL("DROP TABLE {}").format(tables),
        SQL("DROP SCHEMA {}").format(Identifier(SCHEMA)),
    ]


def counts() -> Composed:
    """Count what the ledger holds: slices, and tables that they are of."""
    return SQL("SELECT count(*), count(DISTINCT root_oid) FROM copypipe.slice").format()


def _row(table: str, values: dict[str, Any]) -> Composed:
    return SQL("INSERT INTO {} ({}) VALUES ({})").format(
        Identifier(SCHEMA, table),
        SQL(", ").join(map(Identifier, values)),
        SQL(", ").join(
            value if isinstance(value, Composable) else Literal(value) for value in values.values()
        ),
    )


def instants(intervals: Sequence[tuple[datetime, datetime]] | None) -> Composed:
    """Return a multirange of instants; None stands for all."""
    if intervals is None:
        return SQL("'{{(,)}}'::tstzmultirange").format()
    ranges = [
        SQL("pg_catalog.tstzrange({}, {})").format(Literal(start), Literal(stop))
        for start, stop in intervals
    ]
    return SQL("pg_catalog.tstzmultirange({})").format(SQL(", ").join(ranges))


def begin_attempt(values: dict[str, Any]) -> Composed:
    """Tell of an attempt that begins."""
    return _row("attempt", values)


def end_attempts(run_id: str, state: str, error: Mapping[str, str | None]) -> Composed:
    """Tell how the running attempts of a run ended; a run has one at a time."""
    return SQL(
        """
        UPDATE copypipe.attempt
           SET state = {state}, side = {side}, sqlstate = {sqlstate}, error = {error},
               ended_at = pg_catalog.clock_timestamp()
         WHERE run_id = {run_id} AND state = 'running'
        """
    ).format(
        run_id=Literal(run_id),
        state=Literal(state),
        **{name: Literal(value) for name, value in error.items()},
    )


def slice_by(root_oid: int, table: str, column: str) -> Composed:
    """Have the slices of a table told apart by a column, unless another one is known."""
    values = {"root_oid": root_oid, "dest_table": table, "by_column": column}
    return SQL("{} ON CONFLICT (root_oid) DO NOTHING").format(_row("sliced_by", values))


def sliced_by(root_oid: int) -> Composed:
    """Read by which column the slices of a table are told apart."""
    return SQL("SELECT by_column FROM copypipe.sliced_by WHERE root_oid = {}").format(
        Literal(root_oid)
    )


def recorded(
    root_oid: int,
    table: str,
    column: str | None,
    wanted: Sequence[tuple[datetime, datetime]] | None,
) -> Composed:
    """Find a slice with rows that may have rows in common with these instants.

    Whatever its condition was; by another column nobody can tell. Of a table that bore this name
    too: one that was put in its place has another OID, and often its rows.
    """
    return SQL(
        """
        SELECT s.id, s.by_column, s.instants::text, s.recorded_at
          FROM copypipe.slice s
         WHERE (s.root_oid = {root_oid} OR s.dest_table = {table}) AND s.rows_copied > 0
           AND (s.by_column IS DISTINCT FROM {column} OR s.instants && {instants})
         ORDER BY s.id DESC LIMIT 1
        """
    ).format(
        root_oid=Literal(root_oid),
        table=Literal(table),
        column=Literal(column),
        instants=instants(wanted),
    )


def told_last(
    root_oid: int,
    column: str | None,
    wanted: Sequence[tuple[datetime, datetime]] | None,
    condition: str | None,
) -> Composed:
    """Find what was recorded last of these instants, and whether it was of them exactly.

    Rows: whether it was, its mode, its checksum, its rows, its id.
    """
    return SQL(
        """
        SELECT s.by_column IS NOT DISTINCT FROM {column} AND s.instants = {instants}
                   AND s.condition IS NOT DISTINCT FROM {condition} AS exactly,
               s.mode, s.checksum, s.rows_copied, s.id
          FROM copypipe.slice s
         WHERE s.root_oid = {root_oid}
           AND (s.by_column IS DISTINCT FROM {column} OR s.instants && {instants})
         ORDER BY s.id DESC LIMIT 1
        """
    ).format(
        root_oid=Literal(root_oid),
        column=Literal(column),
        instants=instants(wanted),
        condition=Literal(condition),
    )


def record(values: dict[str, Any]) -> Composed:
    """Tell of a slice that was copied, and that its attempt did it."""
    return SQL(
        """
        WITH attempt AS (
            UPDATE copypipe.attempt
               SET state = 'copied', ended_at = pg_catalog.clock_timestamp()
             WHERE attempt_id = {})
        {}
        """
    ).format(Literal(values["attempt_id"]), _row("slice", values))


def covered(
    root_oid: int,
    column: str,
    wanted: Sequence[Sequence[tuple[datetime, datetime]]],
    *,
    equal: bool,
) -> Composed:
    """Find which of these slices were copied: their places, and whether they had rows.

    A slice is where the union of what is sealed covers it, whatever pieces it was copied in. What
    was copied again later and is open is not sealed any more. `equal` tells that nothing counts
    beside which other rows may be there.
    """
    return SQL(
        """
        WITH told AS MATERIALIZED (
                SELECT s.id, s.instants, s.rows_copied,
                       s.state = 'sealed' AND (s.equal OR NOT {equal}) AS counts
                  FROM copypipe.slice s
                 WHERE s.root_oid = {root_oid} AND s.by_column = {column}
                   AND s.condition IS NULL),
             undone AS MATERIALIZED (SELECT * FROM told WHERE NOT told.counts),
             sealed AS (
                SELECT pg_catalog.range_agg(piece) AS instants
                  FROM told,
                       unnest(told.instants - coalesce(
                           (SELECT pg_catalog.range_agg(later)
                              FROM undone, unnest(undone.instants) AS later
                             WHERE undone.id > told.id AND undone.instants && told.instants),
                           '{{}}')) AS piece
                 WHERE told.counts)
        SELECT wanted.place,
               EXISTS (SELECT 1 FROM told
                        WHERE told.rows_copied > 0 AND told.instants && wanted.instants)
          FROM unnest({wanted}::tstzmultirange[]) WITH ORDINALITY AS wanted (instants, place),
               sealed
         WHERE wanted.instants <@ sealed.instants
        """
    ).format(
        root_oid=Literal(root_oid),
        column=Literal(column),
        equal=Literal(equal),
        wanted=Literal([_written(intervals) for intervals in wanted]),
    )


def _written(intervals: Sequence[tuple[datetime, datetime]]) -> str:
    """Return a multirange as text."""
    ranges = (f'["{start.isoformat()}","{stop.isoformat()}")' for start, stop in intervals)
    return "{" + ",".join(ranges) + "}"


def holds(attempt_id: str) -> Composed:
    """Ask whether an attempt was committed."""
    return SQL("SELECT EXISTS (SELECT 1 FROM copypipe.slice WHERE attempt_id = {}::uuid)").format(
        Literal(attempt_id)
    )


def receives(
    root_oid: int, from_root_oid: int, system: int | None, database_oid: int, address: str
) -> Composed:
    """Ask whether a table of this database is filled from a table of another one.

    Copies that went against the usual direction, as a restore does, do not count.
    Where one of the two may not be asked for its identifier, the address is compared.
    """
    return SQL(
        """
        SELECT EXISTS (
            SELECT 1 FROM copypipe.slice s
             WHERE NOT s.reversed
               AND s.root_oid = {root_oid} AND s.source_root_oid = {from_root_oid}
               AND s.source_database_oid = {database_oid}
               AND coalesce(s.source_system = {system}::int8, s.source_address = {address}))
        """
    ).format(
        root_oid=Literal(root_oid),
        from_root_oid=Literal(from_root_oid),
        system=Literal(system),
        database_oid=Literal(database_oid),
        address=Literal(address),
    )
