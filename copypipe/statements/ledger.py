"""The ledger: schema `copypipe` of the dest. What it holds and how it is read and written.

Rows of `slice` are written in the transaction that they tell of, and never changed: where two tell
of the same instants, the later one (by id) counts. They are the truth. Rows of `attempt` tell what
was tried, in transactions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.slices import Extent

# What the tables below mean; raised with each change of them. A ledger with a higher number is one
# of a newer copypipe and left alone.
VERSION = 1

SCHEMA = "copypipe"

Rights = Mapping[str, Sequence[str]]
"""Of tables of the ledger, by their names."""

# What a role needs of each table to record what it copies.
RIGHTS: Rights = {
    "version": ("SELECT",),
    "slice": ("SELECT", "INSERT"),
    "attempt": ("SELECT", "INSERT", "UPDATE"),
    "sliced_by": ("SELECT", "INSERT"),
}

# What a role needs to read what was recorded of a slice.
READING: Rights = {"slice": ("SELECT",)}

# What it needs to read what was tried.
READING_ATTEMPTS: Rights = {"attempt": ("SELECT",)}

# What a role needs to remove what does not count any more.
PRUNING: Rights = {
    "version": ("SELECT",),
    "slice": ("SELECT", "DELETE"),
    "attempt": ("SELECT", "DELETE"),
}

# What a role needs to have a slice forgotten.
FORGETTING: Rights = {
    "version": ("SELECT",),
    "slice": ("SELECT", "DELETE"),
    "sliced_by": ("SELECT",),
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
        numbers int8multirange,
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
        highest int8,
        highest_at timestamptz,
        source_clock timestamptz NOT NULL,
        began_at timestamptz NOT NULL,
        manifest jsonb NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
        tool_version text NOT NULL)
    """,
    "CREATE INDEX ON copypipe.slice (dest_oid)",
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
        numbers int8multirange,
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
    " 'Times without a zone are written as UTC; all rows, and ranges of numbers: {(,)}'",
    "COMMENT ON COLUMN copypipe.slice.numbers IS 'Of a column of whole numbers; else NULL'",
    "COMMENT ON COLUMN copypipe.slice.complete_until IS"
    " 'What was stamped before is there; NULL where nothing could be said'",
    "COMMENT ON COLUMN copypipe.slice.highest IS"
    " 'The highest number that the source had given at highest_at, of a slice of numbers'",
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


# What migrations keep beside that (`statements.journals`), once there was one.
JOURNAL = ("migration", "migration_table", "migration_step")


def look(role: str | None = None, needed: Rights = RIGHTS) -> Composed:
    """Ask whether there is a ledger, whose it is, and what a role lacks to use or make it.

    The role is the session's unless another one is named; `needed` is what it wants to do.

    Its owner, and the schema's, who may drop and make tables in it, could have it run anything with
    our rights (a trigger, a default). So that must be the role itself, one that it is a member of,
    the owner of the database or a superuser. A superuser counts as a member of every role, so for
    one that says nothing. A schema without tables may be filled by whoever may create in it.
    """
    return _look(
        role, tuple((table, right) for table, rights in needed.items() for right in rights)
    )


@lru_cache(maxsize=16)
def _look(role: str | None, wanted: Sequence[tuple[str, str]]) -> Composed:
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
        tables=Literal([*RIGHTS, *JOURNAL]),
        of=Literal([table for table, _ in wanted]),
        rights=Literal([right for _, right in wanted]),
    )


@cache
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
    tables, journal = (
        SQL(", ").join(Identifier(SCHEMA, table) for table in of) for of in (RIGHTS, JOURNAL)
    )
    return [
        SQL("DROP TABLE {}").format(tables),
        SQL("DROP TABLE IF EXISTS {}").format(journal),
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


# The multiranges that tell where the rows of a slice lie.
_TYPES = {"instants": SQL("tstzmultirange"), "numbers": SQL("int8multirange")}


def where_it_lies(extent: Extent) -> dict[str, Composable]:
    """Return the values of the columns that tell where a slice lies."""
    everywhere = _everywhere("instants")
    if extent.kind == "instants":
        return {"instants": _multirange(extent), "numbers": SQL("NULL")}
    return {"instants": everywhere, "numbers": _multirange(extent)}


def _everywhere(kind: str) -> Composed:
    return SQL("'{{(,)}}'::{}").format(_TYPES[kind])


def _multirange(extent: Extent) -> Composed:
    if extent.intervals is None:
        return _everywhere(extent.kind)
    return SQL("{}::{}").format(Literal(_written(extent.intervals)), _TYPES[extent.kind])


def _lies(row: str, kind: str) -> Composed:
    """Return where the slice of a row lies: in which instants, or among which numbers.

    Of one by a column that was of the other kind then, nobody can tell: everywhere.
    """
    column = Identifier(row, kind)
    if kind == "instants":
        return SQL("{}").format(column)
    return SQL("coalesce({}, {})").format(column, _everywhere(kind))


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


@lru_cache(maxsize=64)
def sliced_by(root_oid: int) -> Composed:
    """Read by which column the slices of a table are told apart."""
    return SQL("SELECT by_column FROM copypipe.sliced_by WHERE root_oid = {}").format(
        Literal(root_oid)
    )


# A table and what it is a partition of, or consists of: what one of these was told of concerns the
# others. Partitions beside it have other rows.
_ANCESTORS = SQL(
    "ARRAY(SELECT a.relid::oid FROM pg_catalog.pg_partition_ancestors({oid}) AS a (relid))"
    " || {oid}::oid"
)
_KIN = SQL(
    "({ancestors} || ARRAY(SELECT d.relid::oid FROM pg_catalog.pg_partition_tree({oid}) AS d))"
)


def _kin(oid: int) -> Composed:
    return _KIN.format(ancestors=_ancestors(oid), oid=Literal(oid))


def _ancestors(oid: int) -> Composed:
    return _ANCESTORS.format(oid=Literal(oid))


def recorded(
    oid: int,
    table: str,
    column: str | None,
    wanted: Extent,
) -> Composed:
    """Find a slice with rows that may have rows in common with that one.

    Whatever its condition was; by another column nobody can tell. Of a table that bore this name
    too: one that was put in its place has another OID, and often its rows.
    """
    return SQL(
        """
        SELECT s.id, s.by_column, coalesce(s.numbers::text, s.instants::text), s.recorded_at
          FROM copypipe.slice s
         WHERE (s.dest_oid = ANY ({kin}) OR s.dest_table = {table}) AND s.rows_copied > 0
           AND (s.by_column IS DISTINCT FROM {column} OR {lies} && {wanted})
         ORDER BY s.id DESC LIMIT 1
        """
    ).format(
        kin=_kin(oid),
        table=Literal(table),
        column=Literal(column),
        lies=_lies("s", wanted.kind),
        wanted=_multirange(wanted),
    )


def told_last(
    oid: int,
    column: str | None,
    wanted: Extent,
    condition: str | None,
) -> Composed:
    """Find what was recorded last of that slice, and whether it was of that exactly.

    What went into a partition, or into what the table is a partition of, is not.

    Rows: whether it was, its mode, its checksum, its rows, its id.
    """
    return SQL(
        """
        SELECT s.dest_oid = {oid}
                   AND s.by_column IS NOT DISTINCT FROM {column} AND {lies} = {wanted}
                   AND s.condition IS NOT DISTINCT FROM {condition} AS exactly,
               s.mode, s.checksum, s.rows_copied, s.id
          FROM copypipe.slice s
         WHERE s.dest_oid = ANY ({kin})
           AND (s.by_column IS DISTINCT FROM {column} OR {lies} && {wanted})
         ORDER BY s.id DESC LIMIT 1
        """
    ).format(
        oid=Literal(oid),
        kin=_kin(oid),
        column=Literal(column),
        lies=_lies("s", wanted.kind),
        wanted=_multirange(wanted),
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


_TOLD = SQL(
    """
    kin AS MATERIALIZED (
        SELECT s.id, s.by_column, s.condition, s.rows_deleted, s.rows_copied, s.state, s.mode,
               s.equal, (s.numbers IS NOT NULL) = {of_numbers} AS of_type,
               CASE WHEN s.by_column = {column} THEN {lies} ELSE {everywhere} END AS lies,
               s.dest_oid = ANY ({ancestors}) AND NOT s.reversed
                   AND coalesce(s.signature = {signature}, true) AND {from_source} AS of_kind
          FROM copypipe.slice s
         WHERE s.dest_oid = ANY ({kin})
           AND (s.by_column IS DISTINCT FROM {column} OR {lies} && {hull})),
    judged AS MATERIALIZED (
        SELECT kin.*,
               kin.of_kind AND kin.of_type AND kin.by_column = {column}
                   AND kin.condition IS NULL AND kin.state = 'sealed'
                   AND (kin.equal OR NOT {equal}) AS counts
          FROM kin),
    told AS MATERIALIZED (
        SELECT judged.*,
               NOT judged.counts AND judged.mode <> 'verify'
                   AND NOT (judged.of_kind AND judged.equal
                            AND ((judged.by_column IS NULL AND judged.condition IS NULL)
                                 OR (judged.rows_deleted = 0 AND judged.rows_copied = 0
                                     AND (judged.by_column IS DISTINCT FROM {column}
                                          OR judged.condition IS NOT NULL)))) AS undoes
          FROM judged)
    """
)


def _told(
    oid: int,
    column: str,
    wanted: Sequence[Extent],
    kind: Mapping[str, Any],
    *,
    equal: bool,
) -> Composed:
    """Return the WITH clause that judges all that was told of a table where these lie.

    Only copies of the same `kind` count: of the same columns by the same casts (signature, None for
    any) from the same source, into the table itself or what it is a partition of. `equal` tells
    that nothing counts beside which other rows may be there.

    What came later undoes that: copies of another kind, and those that found the slice open. So do
    those by another column or of a condition, since nobody knows of which slices they removed rows:
    a row may be in one of theirs by what the dest holds, and not any more by what the source has.
    A copy of all rows of the same kind undoes nothing, nor does one that touched no row, or only
    compared.
    """
    hull = [each for extent in wanted for each in extent.intervals or ()]
    of = wanted[0].kind
    return _TOLD.format(
        column=Literal(column),
        lies=_lies("s", of),
        of_numbers=Literal(of == "numbers"),
        everywhere=_everywhere(of),
        ancestors=_ancestors(oid),
        kin=_kin(oid),
        hull=_multirange(
            Extent(of, ((min(start for start, _ in hull), max(stop for _, stop in hull)),))
        ),
        equal=Literal(equal),
        signature=Literal(kind["signature"]),
        from_source=_from_source(kind),
    )


def _from_source(facts: Mapping[str, Any]) -> Composed:
    """Return the condition under which the row `s` is of a copy from a source.

    By the cluster's identifier, or where the role may not ask for it by the address.
    """
    return SQL(
        """
        (s.source_database_oid = {database}
         AND s.source_root_oid IS NOT DISTINCT FROM {root}
         AND coalesce(s.source_system = {system}::int8, s.source_address = {address}))
        """
    ).format(
        database=Literal(facts["source_database_oid"]),
        root=Literal(facts["source_root_oid"]),
        system=Literal(facts["source_system"]),
        address=Literal(facts["source_address"]),
    )


def covered(
    oid: int,
    column: str,
    wanted: Sequence[Extent],
    kind: Mapping[str, Any],
    *,
    equal: bool,
) -> Composed:
    """Find which of these slices were copied: their places, and whether they had rows.

    A slice is where the union of what is sealed covers it, whatever pieces it was copied in; what
    counts as that is said at `_told`.
    """
    return SQL(
        """
        WITH {told},
             undone AS MATERIALIZED (SELECT told.id, told.lies FROM told WHERE told.undoes),
             sealed AS (
                SELECT pg_catalog.range_agg(piece) AS lies
                  FROM told,
                       unnest(told.lies - coalesce(
                           (SELECT pg_catalog.range_agg(later)
                              FROM undone, unnest(undone.lies) AS later
                             WHERE undone.id > told.id AND undone.lies && told.lies),
                           '{{}}')) AS piece
                 WHERE told.counts),
             filled AS (
                SELECT coalesce(pg_catalog.range_agg(piece), '{{}}') AS lies
                  FROM told, unnest(told.lies) AS piece
                 WHERE told.counts AND told.rows_copied > 0)
        SELECT wanted.place, wanted.lies && filled.lies
          FROM unnest({wanted}::{type}[]) WITH ORDINALITY AS wanted (lies, place), sealed, filled
         WHERE wanted.lies <@ sealed.lies
        """
    ).format(
        told=_told(oid, column, wanted, kind, equal=equal),
        type=_TYPES[wanted[0].kind],
        wanted=Literal([_written(extent.intervals or ()) for extent in wanted]),
    )


def highest_before(
    oid: int, column: str, of_source: Mapping[str, Any], until: datetime
) -> Composed:
    """Read the highest number of a column that was seen last before an instant, and when."""
    return SQL(
        """
        SELECT s.highest, s.highest_at
          FROM copypipe.slice s
         WHERE s.dest_oid = ANY ({kin}) AND s.by_column = {column} AND s.highest_at <= {until}
           AND {from_source}
         ORDER BY s.highest_at DESC LIMIT 1
        """
    ).format(
        kin=_kin(oid),
        column=Literal(column),
        until=Literal(until),
        from_source=_from_source(of_source),
    )


def _written(intervals: Sequence[tuple[Any, Any]]) -> str:
    """Return a multirange as text."""
    return "{" + ",".join(f'["{start}","{stop}")' for start, stop in intervals) + "}"


def holds(attempt_id: str) -> Composed:
    """Ask whether an attempt was committed.

    The slice may have been forgotten since then; its attempt was told of in the same transaction.
    """
    return SQL(
        """
        SELECT EXISTS (SELECT 1 FROM copypipe.slice WHERE attempt_id = {attempt}::uuid)
               OR EXISTS (SELECT 1 FROM copypipe.attempt
                           WHERE attempt_id = {attempt}::uuid AND state = 'copied')
        """
    ).format(attempt=Literal(attempt_id))


# ------------------------------------------------------------------------- read, prune, forget

# The intervals of the row `s`, NULL for no bound.
_INSTANTS = SQL(
    """
           ARRAY(SELECT ARRAY[pg_catalog.lower(i.within), pg_catalog.upper(i.within)]
                   FROM pg_catalog.unnest(s.instants) AS i (within)) AS instants
    """
)
_NUMBERS = SQL(
    """
           CASE WHEN s.numbers IS NOT NULL THEN
               ARRAY(SELECT ARRAY[pg_catalog.lower(i.within), pg_catalog.upper(i.within)]
                       FROM pg_catalog.unnest(s.numbers) AS i (within)) END AS numbers
    """
)


def entries(
    root_oid: int,
    oid: int,
    table: str,
    column: str,
    wanted: Extent,
    kind: Mapping[str, Any],
) -> Composed:
    """Read what was recorded of these instants, the last first: what counts, and what undoes that.

    As `covered` has it, but appended and merged slices count too. Also of a table that bore this
    name and is gone: what it held may be missed.
    """
    return SQL(
        """
        WITH {told}
        SELECT is_this, is_whole, is_sealed, rows_copied, {intervals}, is_slice
          FROM (SELECT t.id, true AS is_this,
                       t.of_kind AND t.by_column IS NULL AND t.condition IS NULL AS is_whole,
                       t.counts AS is_sealed, t.rows_copied, t.lies AS instants,
                       t.by_column = {column} AND t.condition IS NULL AS is_slice
                  FROM told t
                 WHERE t.counts OR t.undoes
                       OR (t.of_kind AND t.by_column IS NULL AND t.condition IS NULL)
                UNION ALL
                SELECT g.id, false, g.by_column IS NULL, g.state = 'sealed', g.rows_copied,
                       g.instants, true
                  FROM copypipe.slice g
                 WHERE {gone} AND coalesce(g.by_column = {column}, true) AND g.condition IS NULL
                   AND g.instants && {wanted}) AS s
         ORDER BY s.id DESC
        """
    ).format(
        told=_told(oid, column, [wanted], kind, equal=False),
        intervals=_INSTANTS,
        gone=_gone("g", root_oid, table),
        column=Literal(column),
        wanted=_multirange(wanted),
    )


def tries(oid: int, column: str, wanted: Extent) -> Composed:
    """Read what was tried of these instants by that column, or of all rows, the last first.

    Rows: the state, whether a session of its run is there, side, SQLSTATE and kind of the error,
    the instants. A session that is not ours shows its name all the same.
    """
    return SQL(
        """
        SELECT s.state,
               s.state = 'running'
                   AND EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity r
                                WHERE r.application_name = 'copypipe/' || s.run_id) AS is_alive,
               s.side, s.sqlstate, s.error, {intervals}
          FROM copypipe.attempt s
         WHERE s.dest_oid = ANY ({ancestors}) AND coalesce(s.by_column = {column}, true)
           AND s.condition IS NULL AND s.instants && {wanted}
         ORDER BY s.began_at DESC
        """
    ).format(
        intervals=_INSTANTS,
        ancestors=_ancestors(oid),
        column=Literal(column),
        wanted=_multirange(wanted),
    )


_RECEIPT = SQL(
    """
    SELECT s.id, s.attempt_id::text, s.run_id, s.dest_table, s.source_table, s.source_address,
           s.source_system, s.source_database_oid::int8, s.by_column, s.zone,
           {intervals}, {numbers},
           s.condition, s.mode, s.rows_deleted, s.rows_copied, s.bytes, s.format, s.signature,
           s.checksum, s.reversed, s.state, s.open_because, s.complete_until, s.source_clock,
           s.began_at, s.recorded_at, s.tool_version, s.manifest,
           ARRAY(SELECT l.id FROM copypipe.slice l
                  WHERE l.dest_oid = ANY ({kin}) AND l.id > s.id AND l.instants && s.instants
                    AND coalesce(l.numbers && s.numbers, true)
                    AND coalesce(l.by_column = s.by_column, true)
                  ORDER BY l.id) AS superseded_by,
           ARRAY(SELECT l.id FROM copypipe.slice l
                  WHERE l.dest_oid = ANY ({kin}) AND l.id > s.id AND l.by_column <> s.by_column
                  ORDER BY l.id) AS by_another_column
      FROM copypipe.slice s
     WHERE s.dest_oid = ANY ({kin})
    """
)


def _receipt(oid: int) -> Composed:
    return _RECEIPT.format(intervals=_INSTANTS, numbers=_NUMBERS, kin=_kin(oid))


def told_exactly(oid: int, column: str | None, wanted: Extent) -> Composed:
    """Read what was recorded last of just that slice, of all rows of the table in it."""
    return SQL(
        """
        {receipt} AND s.dest_oid = {oid} AND s.by_column IS NOT DISTINCT FROM {column}
           AND {lies} = {wanted} AND s.condition IS NULL
         ORDER BY s.id DESC LIMIT 1
        """
    ).format(
        receipt=_receipt(oid),
        oid=Literal(oid),
        column=Literal(column),
        lies=_lies("s", wanted.kind),
        wanted=_multirange(wanted),
    )


def told_of(
    oid: int,
    column: str | None,
    wanted: Extent,
    without: Sequence[int],
) -> Composed:
    """Read all that was recorded of parts of that slice, the last first; not what is named."""
    return SQL("{} AND {} AND s.id <> ALL ({}::int8[]) ORDER BY s.id DESC").format(
        _receipt(oid), _touches(column, wanted), Literal(list(without))
    )


def all_told(oid: int | None, seconds: float) -> Composed:
    """Read what decides which slices still count, the last first; None for those of all tables.

    Rows: id, the table and what it is a partition of, of which kind it was (the source, and what
    went over and how), whether it only compared, column, whether it went against the usual
    direction, its instants, its numbers, whether it tells all of them, whether it is older than so
    many seconds. One by which nothing was cleared, and which brought nothing, tells nothing of the
    rows that were there before.
    """
    return SQL(
        """
        SELECT s.id,
               s.dest_oid::int8 || ARRAY(
                   SELECT a.relid::oid::int8
                     FROM pg_catalog.pg_partition_ancestors(s.dest_oid) AS a (relid)),
               pg_catalog.concat_ws(' ', coalesce(s.source_system::text, s.source_address),
                                    s.source_database_oid, coalesce(s.source_root_oid, 0),
                                    s.signature),
               s.mode = 'verify', s.by_column, s.reversed, {intervals}, {numbers},
               s.condition IS NULL AND (s.rows_copied > 0 OR s.mode IN ('replace', 'verify')),
               s.recorded_at < {before}
          FROM copypipe.slice s
         WHERE {of_table}
         ORDER BY s.id DESC
        """
    ).format(
        intervals=_INSTANTS,
        numbers=_NUMBERS,
        before=_before(seconds),
        of_table=SQL("true") if oid is None else SQL("s.dest_oid = ANY ({})").format(_kin(oid)),
    )


def _touches(column: str | None, wanted: Extent) -> Composed:
    """Return the condition under which the row `s` tells of parts of that slice.

    Of one by another column nobody can tell.
    """
    if wanted.intervals is None:
        return SQL("true").format()
    return SQL("(coalesce(s.by_column = {}, true) AND {} && {})").format(
        Literal(column), _lies("s", wanted.kind), _multirange(wanted)
    )


def remove_slices(ids: Sequence[int]) -> Composed:
    """Remove slices."""
    return SQL("DELETE FROM copypipe.slice WHERE id = ANY ({}::int8[])").format(Literal(list(ids)))


def old_attempts(seconds: float) -> Composed:
    """Count what `remove_attempts` would remove."""
    return SQL("SELECT count(*) FROM copypipe.attempt a WHERE {}").format(_old_attempts(seconds))


def remove_attempts(seconds: float) -> Composed:
    """Remove attempts that ended longer ago, and those that began then and died."""
    return SQL("DELETE FROM copypipe.attempt a WHERE {}").format(_old_attempts(seconds))


def _old_attempts(seconds: float) -> Composed:
    # A session that is not ours shows its name all the same.
    return SQL(
        """
        coalesce(a.ended_at, a.began_at) < {}
        AND (a.state <> 'running'
             OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity r
                             WHERE r.application_name = 'copypipe/' || a.run_id))
        """
    ).format(_before(seconds))


def _before(seconds: float) -> Composed:
    return SQL(
        "pg_catalog.statement_timestamp() - pg_catalog.make_interval(secs => {}::float8)"
    ).format(Literal(seconds))


def forgettable(
    root_oid: int,
    oid: int,
    table: str,
    column: str | None,
    wanted: Extent,
) -> Composed:
    """Count what `forget` would remove, what of that tells of more, and what it cannot tell.

    Rows: those to be removed, those of them that tell of more of the table or of other partitions,
    those by another column.
    """
    return SQL(
        """
        SELECT count(*) FILTER (WHERE {touches}),
               count(*) FILTER (WHERE {touches} AND (NOT {lies} <@ {wanted}
                   OR (s.dest_oid <> {oid} AND s.dest_oid = ANY ({ancestors})))),
               count(*) FILTER (WHERE s.by_column <> {column})
          FROM copypipe.slice s
         WHERE {of_table}
        """
    ).format(
        touches=_touches(column, wanted),
        lies=_lies("s", wanted.kind),
        wanted=_multirange(wanted),
        oid=Literal(oid),
        ancestors=_ancestors(oid),
        column=Literal(column),
        of_table=_of_table(root_oid, oid, table),
    )


def forget(
    root_oid: int,
    oid: int,
    table: str,
    column: str | None,
    wanted: Extent,
) -> Composed:
    """Remove all that was recorded of parts of that slice."""
    return SQL("DELETE FROM copypipe.slice s WHERE {} AND {}").format(
        _of_table(root_oid, oid, table), _touches(column, wanted)
    )


def _of_table(root_oid: int, oid: int, table: str) -> Composed:
    """Return the condition under which the row `s` is of a table.

    Also of one that bore its name, or was a partition of it, and is gone: what was put in its place
    often has its rows.
    """
    return SQL("(s.dest_oid = ANY ({}) OR {})").format(_kin(oid), _gone("s", root_oid, table))


def _gone(row: str, root_oid: int, table: str) -> Composed:
    """Return the condition under which a row is of a table that was in this one's place."""
    return SQL(
        """
        (({row}.root_oid = {root_oid} OR {row}.dest_table = {table})
         AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = {row}.dest_oid))
        """
    ).format(row=SQL(row), root_oid=Literal(root_oid), table=Literal(table))


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
             WHERE NOT s.reversed AND s.root_oid = {root_oid} AND {from_source})
        """
    ).format(
        root_oid=Literal(root_oid),
        from_source=_from_source(
            {
                "source_database_oid": database_oid,
                "source_root_oid": from_root_oid,
                "source_system": system,
                "source_address": address,
            }
        ),
    )
