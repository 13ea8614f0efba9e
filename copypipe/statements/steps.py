"""What is made of a table once its rows are there: facts about indexes and keys, statements."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal


def indexes(tables: Sequence[int]) -> Composed:
    """Read the indexes of tables, and the constraints that they are of, as this side spells them.

    Rows: OIDs of index, table and constraint, kinds of index and constraint, access method,
    definition, names of schema, table and index, whether the constraint may be deferred and is,
    whether the table is clustered by it, whether it is its replica identity, its
    bytes, whether the table inherits, the OID of the index of a partitioned table that it is a
    part of.
    """
    return SQL(
        """
        SELECT i.indexrelid::int8, i.indrelid::int8, con.oid::int8,
               c.relkind::text, con.contype::text, a.amname,
               pg_catalog.pg_get_indexdef(i.indexrelid), n.nspname, t.relname, c.relname,
               coalesce(con.condeferrable, false), coalesce(con.condeferred, false),
               i.indisclustered, i.indisreplident,
               CASE WHEN c.relkind = 'i'
                    THEN coalesce(pg_catalog.pg_relation_size(c.oid), 0) ELSE 0 END,
               NOT t.relispartition AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits h
                                                 WHERE h.inhrelid = t.oid),
               (SELECT h.inhparent::int8 FROM pg_catalog.pg_inherits h
                 WHERE h.inhrelid = i.indexrelid)
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am a ON a.oid = c.relam
          JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
          LEFT JOIN pg_catalog.pg_constraint con
            ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid
           AND con.contype IN ('p', 'u', 'x')
         WHERE i.indrelid = ANY ({}::oid[])
        """
    ).format(Literal(list(tables)))


def foreign_keys(tables: Sequence[int]) -> Composed:
    """Read the foreign keys of tables: OID, name, definition, whether all rows were checked."""
    return SQL(
        """
        SELECT con.oid::int8, con.conname, pg_catalog.pg_get_constraintdef(con.oid),
               con.convalidated
          FROM pg_catalog.pg_constraint con
         WHERE con.contype = 'f' AND con.conrelid = ANY ({}::oid[])
        """
    ).format(Literal(list(tables)))


def owners(entries: Sequence[tuple[int, int]]) -> Composed:
    """Find the tables of constraints, extended statistics and indexes.

    Each is the OID of its catalog and its own. Rows: its place, counted from 1, and the table's OID
    and kind.
    """
    return SQL(
        """
        SELECT w.place, t.oid::int8, t.relkind::text
          FROM unnest({catalogs}::oid[], {oids}::oid[]) WITH ORDINALITY AS w (catalog, oid, place)
          JOIN LATERAL (
               SELECT con.conrelid FROM pg_catalog.pg_constraint con
                WHERE w.catalog = 'pg_catalog.pg_constraint'::regclass AND con.oid = w.oid
                UNION ALL
               SELECT s.stxrelid FROM pg_catalog.pg_statistic_ext s
                WHERE w.catalog = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = w.oid
                UNION ALL
               SELECT i.indrelid FROM pg_catalog.pg_index i
                WHERE w.catalog = 'pg_catalog.pg_class'::regclass AND i.indexrelid = w.oid
               ) AS of (relid) ON true
          JOIN pg_catalog.pg_class t ON t.oid = of.relid
        """
    ).format(
        catalogs=Literal([catalog for catalog, _ in entries]),
        oids=Literal([oid for _, oid in entries]),
    )


def indexes_of(entries: Sequence[tuple[int, int]]) -> Composed:
    """Read what indexes, and those of constraints, are called: schema and name.

    Each is the OID of its catalog and its own.
    """
    return SQL(
        """
        SELECT n.nspname, c.relname
          FROM unnest({catalogs}::oid[], {oids}::oid[]) AS w (catalog, oid)
          LEFT JOIN pg_catalog.pg_constraint con
            ON w.catalog = 'pg_catalog.pg_constraint'::regclass AND con.oid = w.oid
          JOIN pg_catalog.pg_class c
            ON c.relkind IN ('i', 'I')
           AND c.oid = CASE WHEN w.catalog = 'pg_catalog.pg_class'::regclass THEN w.oid
                            ELSE con.conindid END
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         ORDER BY n.nspname, c.relname
        """
    ).format(
        catalogs=Literal([catalog for catalog, _ in entries]),
        oids=Literal([oid for _, oid in entries]),
    )


def at_least_memory(kilobytes: int) -> Composed:
    """Raise maintenance_work_mem to that, within this transaction, where it is less."""
    return SQL(
        """
        SELECT pg_catalog.set_config('maintenance_work_mem', {wanted}, true)
         WHERE pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem'))
               < pg_catalog.pg_size_bytes({wanted})
        """
    ).format(wanted=Literal(f"{kilobytes}kB"))


def script(statements: str) -> Composed:
    """Return statements that PostgreSQL itself has spelled."""
    return Composed([SQL(statements)])


def _spelled(statement: Composed) -> str:
    return statement.as_string(None)


def use_index(
    table: tuple[str, str], name: str, kind: str, *, deferrable: bool, deferred: bool
) -> str:
    """Make a constraint of a unique index that is there, of the same name."""
    return _spelled(
        SQL("ALTER TABLE ONLY {} ADD CONSTRAINT {} {} USING INDEX {}{}{}").format(
            Identifier(*table),
            Identifier(name),
            SQL("PRIMARY KEY" if kind == "p" else "UNIQUE"),
            Identifier(name),
            SQL(" DEFERRABLE" if deferrable else ""),
            SQL(" INITIALLY DEFERRED" if deferred else ""),
        )
    )


def cluster_on(table: tuple[str, str], index: str) -> str:
    """Have later runs of CLUSTER sort a table by an index."""
    return _spelled(
        SQL("ALTER TABLE {} CLUSTER ON {}").format(Identifier(*table), Identifier(index))
    )


def identify_by(table: tuple[str, str], index: str) -> str:
    """Have an index tell rows apart for logical replication."""
    return _spelled(
        SQL("ALTER TABLE ONLY {} REPLICA IDENTITY USING INDEX {}").format(
            Identifier(*table), Identifier(index)
        )
    )


def add_foreign_key(table: tuple[str, str], name: str, definition: str, *, only: bool) -> str:
    """Add a foreign key."""
    text = SQL("ALTER TABLE {}{} ADD CONSTRAINT {} ").format(
        SQL("ONLY ") if only else SQL(""), Identifier(*table), Identifier(name)
    )
    return _spelled(text) + definition


def validate(table: tuple[str, str], name: str) -> str:
    """Check all rows by a constraint, while others go on writing."""
    return _spelled(
        SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(Identifier(*table), Identifier(name))
    )


def analyze(table: tuple[str, str], *, only: bool = False) -> str:
    """Gather the planner's statistics of a table, with its partitions or without (18 on)."""
    return _spelled(SQL("ANALYZE {}{}").format(SQL("ONLY " if only else ""), Identifier(*table)))


def not_analyzable(tables: Sequence[int], *, maintain: bool) -> Composed:
    """Read of which tables ANALYZE by this role would be skipped with a warning (vacuum.c).

    `maintain` tells whether the server knows the privilege MAINTAIN.
    """
    may = SQL("pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')" if maintain else "false")
    return SQL(
        """
        SELECT c.oid::int8
          FROM pg_catalog.pg_class c, pg_catalog.pg_database d
         WHERE c.oid = ANY ({tables}::oid[]) AND d.datname = pg_catalog.current_database()
           AND NOT (pg_catalog.pg_has_role(c.relowner, 'USAGE')
                    OR pg_catalog.pg_has_role(d.datdba, 'USAGE') OR {may})
        """
    ).format(tables=Literal(list(tables)), may=may)


def plain_indexes(tables: Sequence[int]) -> Composed:
    """Read which indexes of tables can be dropped and made again, and nothing is lost.

    Not unique ones, those of a constraint, a replica identity, a partitioned index or CLUSTER, nor
    those with what their definition does not tell: a tablespace (also where another one is the
    default of this session), a comment, statistics targets, an extension that they belong to.
    Rows: OID of the table, names of schema and index, definition.
    """
    return SQL(
        """
        SELECT i.indrelid::int8, n.nspname, c.relname, pg_catalog.pg_get_indexdef(i.indexrelid)
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE i.indrelid = ANY ({tables}::oid[]) AND c.relkind = 'i'
           AND i.indisvalid AND i.indisready
           AND NOT (i.indisunique OR i.indisreplident OR i.indisclustered OR i.indisexclusion)
           AND c.reltablespace = 0 AND pg_catalog.current_setting('default_tablespace') = ''
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_inherits h WHERE h.inhrelid = c.oid)
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_description d
                            WHERE d.classoid = 'pg_catalog.pg_class'::regclass
                              AND d.objoid = c.oid)
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                            WHERE d.classid = 'pg_catalog.pg_class'::regclass
                              AND d.objid = c.oid AND d.deptype IN ('e', 'x'))
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                            WHERE d.refclassid = 'pg_catalog.pg_class'::regclass
                              AND d.refobjid = c.oid)
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                            WHERE a.attrelid = c.oid AND a.attstattarget >= 0)
         ORDER BY n.nspname, c.relname
        """
    ).format(tables=Literal(list(tables)))


def drop_index(schema: str, name: str) -> Composed:
    """Drop an index; fails where something depends on it."""
    return SQL("DROP INDEX {}").format(Identifier(schema, name))


def sequences(tables: Sequence[int]) -> Composed:
    """Read which sequences number columns of tables: of an identity, owned by it, or drawn from.

    A column draws from what its default names, or its domain's, or a function that they call whose
    body the server knows (BEGIN ATOMIC). What rules, triggers and checks of the table draw from is
    of the column ''.
    Rows: the table's OID, the column, names of schema and sequence, whether the table draws from
    it (and does not own it alone), whether another table owns it, whether it ascends, its lowest
    and highest value and the first, whether the role may read it, and set it.
    """
    return SQL(
        """
        WITH RECURSIVE needs (relid, number, class, object) AS (
               (SELECT v.adrelid, v.adnum::int4, 'pg_catalog.pg_attrdef'::regclass::oid, v.oid
                  FROM pg_catalog.pg_attrdef v WHERE v.adrelid = ANY ({tables}::oid[])
                 UNION
                SELECT d.objid, d.objsubid, d.refclassid, d.refobjid
                  FROM pg_catalog.pg_depend d
                  JOIN pg_catalog.pg_attribute a
                    ON a.attrelid = d.objid AND a.attnum = d.objsubid AND NOT a.atthasdef
                  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid AND y.typtype = 'd'
                 WHERE d.classid = 'pg_catalog.pg_class'::regclass
                   AND d.objid = ANY ({tables}::oid[])
                   AND d.objsubid > 0 AND d.refclassid = 'pg_catalog.pg_type'::regclass
                 UNION
                SELECT r.ev_class, 0, 'pg_catalog.pg_rewrite'::regclass::oid, r.oid
                  FROM pg_catalog.pg_rewrite r WHERE r.ev_class = ANY ({tables}::oid[])
                 UNION
                SELECT g.tgrelid, 0, 'pg_catalog.pg_trigger'::regclass::oid, g.oid
                  FROM pg_catalog.pg_trigger g
                 WHERE g.tgrelid = ANY ({tables}::oid[]) AND NOT g.tgisinternal
                 UNION
                SELECT k.conrelid, 0, 'pg_catalog.pg_constraint'::regclass::oid, k.oid
                  FROM pg_catalog.pg_constraint k
                 WHERE k.conrelid = ANY ({tables}::oid[]) AND k.contype = 'c')
                UNION
               SELECT needs.relid, needs.number, d.refclassid, d.refobjid
                 FROM needs
                 JOIN pg_catalog.pg_depend d ON d.classid = needs.class AND d.objid = needs.object
                WHERE needs.class <> 'pg_catalog.pg_class'::regclass
                  AND (d.refclassid IN ('pg_catalog.pg_class'::regclass,
                                        'pg_catalog.pg_proc'::regclass)
                       -- A domain over a domain; who casts to one does not draw from its default.
                       OR d.refclassid = 'pg_catalog.pg_type'::regclass
                          AND needs.class = 'pg_catalog.pg_type'::regclass))
        SELECT found.relid::int8, coalesce(a.attname, ''), n.nspname, c.relname,
               bool_or(found.draws),
               EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                          AND d.refclassid = 'pg_catalog.pg_class'::regclass
                          AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
                          AND d.refobjid <> found.relid),
               q.seqincrement > 0, q.seqmin, q.seqmax, q.seqstart,
               pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                   AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT'),
               pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                   AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                   AND pg_catalog.has_sequence_privilege(c.oid, 'UPDATE')
          FROM (SELECT d.refobjid AS relid, d.refobjsubid AS number, d.objid AS sequence,
                       d.deptype = 'i' AS draws
                  FROM pg_catalog.pg_depend d
                 WHERE d.classid = 'pg_catalog.pg_class'::regclass
                   AND d.refclassid = 'pg_catalog.pg_class'::regclass
                   AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
                UNION
                SELECT needs.relid, needs.number, needs.object, true FROM needs
                 WHERE needs.class = 'pg_catalog.pg_class'::regclass) AS found
          JOIN pg_catalog.pg_class c ON c.oid = found.sequence AND c.relkind = 'S'
          JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_catalog.pg_attribute a
            ON a.attrelid = found.relid AND a.attnum = found.number AND found.number > 0
         WHERE found.relid = ANY ({tables}::oid[])
         GROUP BY found.relid, a.attname, n.oid, n.nspname, c.oid, c.relname, q.seqrelid,
                  q.seqincrement, q.seqmin, q.seqmax, q.seqstart
         ORDER BY 1, 2, 3, 4
        """
    ).format(tables=Literal(list(tables)))


def not_settable(names: Sequence[tuple[str, str]]) -> Composed:
    """Find which of these names are of sequences that the role may not set; counted from 1."""
    return SQL(
        """
        SELECT w.place
          FROM unnest({schemas}::text[], {names}::text[]) WITH ORDINALITY AS w (schema, name, place)
          JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
          JOIN pg_catalog.pg_class c
            ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'S'
         WHERE NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                    AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                    AND pg_catalog.has_sequence_privilege(c.oid, 'UPDATE'))
         ORDER BY w.place
        """
    ).format(
        schemas=Literal([schema for schema, _ in names]), names=Literal([name for _, name in names])
    )


def read_sequences(names: Sequence[tuple[str, str]]) -> Composed:
    """Read how far sequences are, in the order given: last_value and is_called."""
    return SQL(" UNION ALL ").join(
        SQL("SELECT {}::int8 AS place, last_value, is_called FROM {}").format(
            Literal(place), Identifier(*name)
        )
        for place, name in enumerate(names)
    )


def set_sequences(wanted: Sequence[tuple[tuple[str, str], int, bool]]) -> Composed:
    """Set sequences to a last_value and is_called each, but those that have gone further.

    Whoever draws from them meanwhile is asked here: setval is not rolled back.
    """
    return SQL(" UNION ALL ").join(
        SQL(
            """
            SELECT pg_catalog.setval(q.seqrelid, {value}, {called})
              FROM {name} AS s, pg_catalog.pg_sequence q
             WHERE q.seqrelid = {text}::pg_catalog.regclass
               AND (s.last_value = q.seqstart AND NOT s.is_called
                    OR s.last_value = {value} AND {called} AND NOT s.is_called
                    OR CASE WHEN q.seqincrement > 0 THEN s.last_value < {value}
                            ELSE s.last_value > {value} END)
            """
        ).format(
            name=Identifier(*name),
            text=Literal(_spelled(SQL("{}").format(Identifier(*name)))),
            value=Literal(value),
            called=Literal(is_called),
        )
        for name, value, is_called in wanted
    )
