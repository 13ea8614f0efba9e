"""A table that is filled beside another one and then takes its place.

What cannot be said in general (grants, foreign keys, names of indexes) the server spells itself, by
its own functions for that: rows of DDL, which are run as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.statements.copies import Format

# pg_publication_namespace is younger than the oldest server.
_SCHEMA_PUBLICATIONS_SINCE = 15

# Who gives a table to a role must be able to become it, which membership alone meant before.
_SET_SINCE = 16

# Partitions have had an identity of their own until it became that of their parent.
_IDENTITY_OF_PARENT_SINCE = 17


def hindrances(oid: int, major: int) -> Composed:
    """Ask what a table has that another one in its place would lack, or that would still hold it.

    Dependencies of type n are those of others: views, functions, foreign keys of other tables.
    Those of type a go with the table: policies, rules, and what is made anew, which is left out.
    The rows come into a table of another name that is no partition yet, so whatever looks at rows
    that come through the parent (triggers, publications) would not see them.
    """
    in_schemas = SQL(
        """
                OR EXISTS (SELECT 1 FROM pg_catalog.pg_publication_namespace s
                            WHERE s.pnpubid = p.oid
                              AND s.pnnspid IN (SELECT above.relnamespace FROM above))"""
    )
    return SQL(
        """
        WITH c AS (SELECT * FROM pg_catalog.pg_class WHERE oid = {oid}),
             above AS (SELECT a.* FROM pg_catalog.pg_class a
                        WHERE a.oid = {oid}
                           OR a.oid IN (SELECT x.relid::oid
                                          FROM pg_catalog.pg_partition_ancestors({oid}) x)),
             parents AS (SELECT a.oid, a.relowner,
                                CASE WHEN a.oid = c.oid THEN 'its owner ' ELSE '' END
                                    || pg_catalog.pg_get_userbyid(a.relowner)
                                    || CASE WHEN a.oid = c.oid THEN ''
                                            ELSE ', the owner of '
                                                     || a.oid::pg_catalog.regclass::text
                                       END AS owner
                           FROM c, pg_catalog.pg_class a
                          WHERE a.oid = c.oid OR a.oid = (SELECT i.inhparent
                                                            FROM pg_catalog.pg_inherits i
                                                           WHERE i.inhrelid = c.oid
                                                             AND c.relispartition)),
             numbers AS (SELECT s.objid AS oid FROM pg_catalog.pg_depend s
                          WHERE s.classid = 'pg_catalog.pg_class'::regclass AND s.deptype = 'i'
                            AND s.refclassid = 'pg_catalog.pg_class'::regclass
                            AND s.refobjid = {oid} AND s.refobjsubid > 0)
        SELECT 'it is a ' || CASE c.relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN
                   'foreign table' ELSE 'relation of kind ' || c.relkind::text END
          FROM c WHERE c.relkind <> 'r'
         UNION ALL
        SELECT 'the role is not a member of ' || parents.owner
                   || CASE WHEN pg_catalog.pg_has_role(parents.relowner, 'MEMBER')
                           THEN ' that inherits its rights' ELSE '' END
          FROM parents
         WHERE NOT pg_catalog.pg_has_role(parents.relowner, 'USAGE')
         UNION ALL
        SELECT DISTINCT 'the role lacks CREATE on tablespace ' || s.spcname
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
         WHERE (c.oid = {oid} OR c.oid IN (SELECT i.indexrelid FROM pg_catalog.pg_index i
                                            WHERE i.indrelid = {oid}))
           AND NOT pg_catalog.has_tablespace_privilege(s.oid, 'CREATE')
         UNION ALL
        SELECT DISTINCT 'the role lacks REFERENCES on ' || k.confrelid::pg_catalog.regclass::text
          FROM pg_catalog.pg_constraint k, unnest(k.confkey) AS u (number)
         WHERE k.conrelid = {oid} AND k.contype = 'f'
           AND NOT pg_catalog.has_column_privilege(k.confrelid, u.number, 'REFERENCES')
         UNION ALL
        SELECT DISTINCT 'the role lacks USAGE on schema ' || n.nspname
          FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.confrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.conrelid = {oid} AND k.contype = 'f'
           AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
         UNION ALL
        SELECT 'the role may not make a table one of its owner '
                   || pg_catalog.pg_get_userbyid(c.relowner)
          FROM c
         WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE')
           AND NOT pg_catalog.pg_has_role(c.relowner, {may_give})
         UNION ALL
        SELECT CASE WHEN r.oid = c.relowner THEN 'its owner ' || r.rolname ELSE 'the role' END
                   || ' lacks CREATE on schema ' || n.nspname
          FROM c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_roles r ON r.rolname = current_user OR r.oid = c.relowner
         WHERE NOT pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE')
           AND (r.rolname = current_user
                OR NOT (SELECT own.rolsuper FROM pg_catalog.pg_roles own
                         WHERE own.rolname = current_user))
         UNION ALL
        SELECT 'it has row security' FROM c WHERE c.relrowsecurity OR c.relforcerowsecurity
         UNION ALL
        SELECT DISTINCT 'the trigger ' || t.tgname || ' would not run'
          FROM pg_catalog.pg_trigger t
          LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint
         WHERE t.tgrelid IN (SELECT above.oid FROM above)
           AND (NOT t.tgisinternal OR (t.tgparentid <> 0 AND coalesce(k.contype, 't') = 't'))
         UNION ALL
        SELECT DISTINCT 'it is in the publication ' || p.pubname
          FROM c, pg_catalog.pg_publication p
         WHERE c.relpersistence = 'p'
           AND (p.puballtables
                OR EXISTS (SELECT 1 FROM pg_catalog.pg_publication_rel r
                            WHERE r.prpubid = p.oid
                              AND r.prrelid IN (SELECT above.oid FROM above)){in_schemas})
         UNION ALL
        SELECT 'the subscription ' || s.subname || ' fills it'
          FROM pg_catalog.pg_subscription_rel r
          JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid WHERE r.srrelid = {oid}
         UNION ALL
        SELECT 'it belongs to the extension ' || e.extname
          FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = {oid}
           AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e'
         UNION ALL
        SELECT DISTINCT 'it has security labels of ' || l.provider
          FROM pg_catalog.pg_seclabel l
         WHERE l.classoid = 'pg_catalog.pg_class'::regclass AND l.objoid = {oid}
         UNION ALL
        SELECT 'its column ' || a.attname || ' is an identity of its own'
          FROM c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
         WHERE c.relispartition AND a.attidentity <> '' AND NOT {of_parent}
         UNION ALL
        SELECT 'it inherits from another table' FROM pg_catalog.pg_inherits i, c
         WHERE i.inhrelid = c.oid AND NOT c.relispartition
         UNION ALL
        SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, 0) || ' depends on it'
          FROM c
          JOIN pg_catalog.pg_type y ON y.oid = c.reltype
          JOIN pg_catalog.pg_depend d
            ON (d.refclassid = 'pg_catalog.pg_class'::regclass
                AND (d.refobjid = c.oid OR d.refobjid IN (SELECT numbers.oid FROM numbers)))
            OR (d.refclassid = 'pg_catalog.pg_type'::regclass
                AND d.refobjid IN (y.oid, y.typarray))
         WHERE d.deptype IN ('n', 'a')
           AND d.classid NOT IN ('pg_catalog.pg_publication_rel'::regclass,
                                 'pg_catalog.pg_trigger'::regclass)
           AND NOT (d.classid = 'pg_catalog.pg_attrdef'::regclass
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_attrdef f
                                 WHERE f.oid = d.objid AND f.adrelid = c.oid))
           AND NOT (d.classid = 'pg_catalog.pg_constraint'::regclass
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k
                                 WHERE k.oid = d.objid AND k.conrelid = c.oid))
           AND NOT (d.classid = 'pg_catalog.pg_statistic_ext'::regclass
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_statistic_ext s
                                 WHERE s.oid = d.objid AND s.stxrelid = c.oid))
           AND NOT (d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'a'
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_class o
                                 WHERE o.oid = d.objid
                                   AND (o.relkind IN ('i', 'S') OR o.oid = c.oid)))
        """
    ).format(
        oid=Literal(oid),
        may_give=Literal("SET" if major >= _SET_SINCE else "MEMBER"),
        in_schemas=in_schemas if major >= _SCHEMA_PUBLICATIONS_SINCE else SQL(""),
        of_parent=Literal(major >= _IDENTITY_OF_PARENT_SINCE),
    )


def default_partition(oid: int) -> Composed:
    """Find the partition of a table that takes all other rows: its name, or no row."""
    return SQL(
        """
        SELECT n.nspname || '.' || c.relname
          FROM pg_catalog.pg_partitioned_table p
          JOIN pg_catalog.pg_class c ON c.oid = p.partdefid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE p.partrelid = {oid}
        """
    ).format(oid=Literal(oid))


def make(oid: int, schema: str, name: str) -> Composed:
    """Spell how to make a table like another one, empty: columns, defaults, checks, indexes.

    A partition's identity is that of its parent, which a table of its own must not have.
    """
    return SQL(
        """
        SELECT pg_catalog.format(
                   'CREATE %s %I.%I (LIKE %I.%I INCLUDING ALL%s) USING %I%s%s',
                   CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED TABLE' ELSE 'TABLE' END,
                   {schema}, {name}, n.nspname, c.relname,
                   CASE WHEN c.relispartition THEN ' EXCLUDING IDENTITY' ELSE '' END,
                   m.amname,
                   (SELECT ' WITH (' || pg_catalog.string_agg(o.text, ', ') || ')'
                      FROM (SELECT pg_catalog.format('%I = %L', w.option_name, w.option_value)
                              FROM pg_catalog.pg_options_to_table(c.reloptions) w
                             UNION ALL
                            SELECT pg_catalog.format('toast.%I = %L', w.option_name, w.option_value)
                              FROM pg_catalog.pg_class t,
                                   pg_catalog.pg_options_to_table(t.reloptions) w
                             WHERE t.oid = c.reltoastrelid) AS o (text)),
                   ' TABLESPACE ' || pg_catalog.quote_ident(s.spcname))
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_am m ON m.oid = c.relam
          LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
         WHERE c.oid = {oid}
        """
    ).format(oid=Literal(oid), schema=Literal(schema), name=Literal(name))


def dress(oid: int, new: str) -> Composed:
    """Spell what else a table has: owner, bounds, comment, how it is analysed, in order.

    The bounds of a partition as a CHECK, so that to attach it needs no look at its rows. Indexes
    and statistics were made in the order of the old one's.
    """
    return SQL(
        """
        WITH made AS (SELECT c.* FROM pg_catalog.pg_class c
                       WHERE c.oid = pg_catalog.to_regclass({new})),
             held AS (SELECT c.* FROM pg_catalog.pg_class c WHERE c.oid = {oid}),
             indexes AS ({indexes}),
             statistics AS ({statistics})
        SELECT d.text FROM (
            SELECT 1 AS place, 0::int8 AS number, 0 AS attnum,
                   pg_catalog.format('ALTER TABLE %s OWNER TO %I', {new},
                                     pg_catalog.pg_get_userbyid(held.relowner)) AS text
              FROM held, made WHERE held.relowner <> made.relowner
             UNION ALL
            SELECT 2, 0, 0, pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT copypipe_bounds'
                                              ' CHECK (%s)', {new},
                                     pg_catalog.pg_get_partition_constraintdef(held.oid))
              FROM held WHERE held.relispartition
             UNION ALL
            SELECT 3, 0, 0, pg_catalog.format('ALTER TABLE %s OF %s', {new},
                                     pg_catalog.format_type(held.reloftype, NULL))
              FROM held WHERE held.reloftype <> 0
             UNION ALL
            SELECT 4, 0, 0, pg_catalog.format('COMMENT ON TABLE %s IS %L', {new},
                                     pg_catalog.obj_description(held.oid, 'pg_class'))
              FROM held WHERE pg_catalog.obj_description(held.oid, 'pg_class') IS NOT NULL
             UNION ALL
            SELECT 5, 0, 0, pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY %s', {new},
                                     CASE held.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
              FROM held WHERE held.relreplident IN ('f', 'n')
             UNION ALL
            SELECT 6, 0, 0, pg_catalog.format('ALTER TABLE %s ALTER %I SET STATISTICS %s', {new},
                                     a.attname, a.attstattarget)
              FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
               AND a.attstattarget >= 0
             UNION ALL
            SELECT 7, 0, 0, pg_catalog.format('ALTER TABLE %s ALTER %I SET (%I = %L)', {new},
                                     a.attname, o.option_name, o.option_value)
              FROM pg_catalog.pg_attribute a,
                   pg_catalog.pg_options_to_table(a.attoptions) AS o
             WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
             UNION ALL
            SELECT 8, 0, 0, pg_catalog.format('ALTER INDEX %s ALTER %s SET STATISTICS %s',
                                     i.made, a.attnum, a.attstattarget)
              FROM indexes i
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.held
             WHERE a.attstattarget >= 0
             UNION ALL
            SELECT 9, 0, 0, pg_catalog.format('ALTER STATISTICS %s SET STATISTICS %s', s.made,
                                     s.stxstattarget)
              FROM statistics s WHERE s.stxstattarget >= 0) AS d
         ORDER BY d.place, d.attnum, d.number
        """
    ).format(
        oid=Literal(oid),
        new=Literal(new),
        indexes=_indexes(oid, new),
        statistics=_statistics(oid, new),
    )


def rights(oid: int, new: str) -> Composed:
    """Spell how a table and its identities get the rights that another one's have now.

    By then it has its owner, or a right of the role that made it would become one of the owner's.
    GRANT waits for no lock of a table, so this is asked when the exchange begins.
    """
    return SQL(
        """
        WITH made AS (SELECT c.* FROM pg_catalog.pg_class c
                       WHERE c.oid = pg_catalog.to_regclass({new})),
             held AS (SELECT c.* FROM pg_catalog.pg_class c WHERE c.oid = {oid}),
             owned AS (SELECT 'TABLE' AS kind, {new} AS name, held.relowner AS owner,
                              held.relacl AS held, made.relacl AS made, made.relowner AS maker
                         FROM held, made
                        UNION ALL
                       SELECT 'SEQUENCE', n.name, q.relowner, q.relacl, m.relacl, m.relowner
                         FROM held
                         JOIN pg_catalog.pg_depend d
                           ON d.refclassid = 'pg_catalog.pg_class'::regclass
                          AND d.refobjid = held.oid AND d.deptype = 'i'
                          AND d.classid = 'pg_catalog.pg_class'::regclass
                         JOIN pg_catalog.pg_class q ON q.oid = d.objid AND q.relkind = 'S'
                         JOIN pg_catalog.pg_attribute a
                           ON a.attrelid = held.oid AND a.attnum = d.refobjsubid
                        CROSS JOIN LATERAL pg_catalog.pg_get_serial_sequence({new}, a.attname)
                                   AS n (name)
                         JOIN pg_catalog.pg_class m ON m.oid = n.name::pg_catalog.regclass),
             given AS (SELECT o.kind, o.name, NULL AS attname, x.*, 0 AS attnum
                         FROM owned o, pg_catalog.aclexplode(o.held)
                              WITH ORDINALITY AS x (grantor, grantee, privilege, grantable, number)
                        UNION ALL
                       SELECT 'TABLE', {new}, t.attname::text, x.*, t.attnum
                         FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl)
                              WITH ORDINALITY AS x (grantor, grantee, privilege, grantable, number)
                        WHERE t.attrelid = {oid} AND NOT t.attisdropped),
             taken AS (SELECT o.kind, o.name, x.grantee
                         FROM owned o, pg_catalog.aclexplode(o.made) AS x
                        WHERE x.grantee NOT IN (o.maker, o.owner)
                        UNION
                       SELECT o.kind, o.name, o.owner FROM owned o WHERE o.held IS NOT NULL)
        SELECT d.text FROM (
            SELECT 1 AS place, 0::int8 AS number, 0 AS attnum,
                   pg_catalog.format('REVOKE ALL ON %s %s FROM %s', t.kind, t.name,
                                     {grantee_taken}) AS text
              FROM taken t
             UNION ALL
            SELECT 2, g.number, g.attnum,
                   pg_catalog.format('GRANT %s%s ON %s %s TO %s%s', g.privilege,
                                     ' (' || pg_catalog.quote_ident(g.attname) || ')', g.kind,
                                     g.name, {grantee_given},
                                     CASE WHEN g.grantable THEN ' WITH GRANT OPTION' ELSE '' END)
              FROM given g) AS d
         ORDER BY d.place, d.attnum, d.number
        """
    ).format(
        oid=Literal(oid),
        new=Literal(new),
        grantee_taken=_grantee("t"),
        grantee_given=_grantee("g"),
    )


def _grantee(of: str) -> Composed:
    """Spell a role that has rights, or PUBLIC."""
    return SQL(
        "CASE {of}.grantee WHEN 0 THEN 'PUBLIC'"
        " ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid({of}.grantee)) END"
    ).format(of=SQL(of))


def _indexes(oid: int, new: str) -> Composed:
    """Pair the indexes of both tables: LIKE makes them in the order of their OIDs.

    It leaves out one that DROP INDEX CONCURRENTLY has not quite removed.
    """
    return SQL(
        """
        SELECT held.indexrelid AS held, made.indexrelid::pg_catalog.regclass::text AS made,
               x.relname, held.indisclustered, held.indisreplident
          FROM (SELECT i.*, row_number() OVER (ORDER BY i.indexrelid) AS number
                  FROM pg_catalog.pg_index i WHERE i.indrelid = {oid} AND i.indislive) AS held
          JOIN (SELECT i.*, row_number() OVER (ORDER BY i.indexrelid) AS number
                  FROM pg_catalog.pg_index i
                 WHERE i.indrelid = pg_catalog.to_regclass({new})) AS made USING (number)
          JOIN pg_catalog.pg_class x ON x.oid = held.indexrelid"""
    ).format(oid=Literal(oid), new=Literal(new))


def _statistics(oid: int, new: str) -> Composed:
    """Pair the extended statistics of both tables: LIKE makes them in the order of their OIDs."""
    return SQL(
        """
        SELECT held.*, n.nspname,
               pg_catalog.format('%I.%I', m.nspname, made.stxname) AS made,
               made.stxowner AS maker, m.nspname AS made_in, made.stxname AS made_as
          FROM (SELECT s.*, row_number() OVER (ORDER BY s.oid) AS number
                  FROM pg_catalog.pg_statistic_ext s WHERE s.stxrelid = {oid}) AS held
          JOIN (SELECT s.*, row_number() OVER (ORDER BY s.oid) AS number
                  FROM pg_catalog.pg_statistic_ext s
                 WHERE s.stxrelid = pg_catalog.to_regclass({new})) AS made USING (number)
          JOIN pg_catalog.pg_namespace n ON n.oid = held.stxnamespace
          JOIN pg_catalog.pg_namespace m ON m.oid = made.stxnamespace"""
    ).format(oid=Literal(oid), new=Literal(new))


def gather(oid: int, schema: str, name: str, parts: Sequence[tuple[int, str]]) -> Composed:
    """Spell how new tables become the partitions of a new table, which takes rows for all of them.

    `parts` names each one, with the OID of the partition whose bounds it gets. The table has the
    columns and the key of the one with this OID, and nothing else of it.
    """
    return SQL(
        """
        SELECT pg_catalog.format('CREATE TABLE %I.%I (LIKE %s INCLUDING DEFAULTS'
                                 ' INCLUDING GENERATED) PARTITION BY %s', {schema}, {name},
                                 {oid}::pg_catalog.oid::pg_catalog.regclass,
                                 pg_catalog.pg_get_partkeydef({oid}))
         UNION ALL
        SELECT pg_catalog.format('ALTER TABLE %I.%I ATTACH PARTITION %s %s', {schema}, {name},
                                 part.new, pg_catalog.pg_get_expr(c.relpartbound, c.oid))
          FROM (VALUES {parts}) AS part (oid, new)
          JOIN pg_catalog.pg_class c ON c.oid = part.oid
        """
    ).format(
        oid=Literal(oid),
        schema=Literal(schema),
        name=Literal(name),
        parts=SQL(", ").join(
            SQL("({}::pg_catalog.oid, {})").format(Literal(old), Literal(new)) for old, new in parts
        ),
    )


def detach(schema: str, name: str, part_schema: str, part_name: str) -> Composed:
    """Make a partition a table of its own."""
    return SQL("ALTER TABLE {} DETACH PARTITION {}").format(
        Identifier(schema, name), Identifier(part_schema, part_name)
    )


def drop(schema: str, name: str) -> Composed:
    """Drop a table."""
    return SQL("DROP TABLE {}").format(Identifier(schema, name))


def defaults(oid: int, new: str) -> Composed:
    """Spell how a table gets the defaults of another one, the numbers of an identity included.

    Those of a partitioned table hold for rows that come through it, not those of the partition;
    the identity of a partition is that of its parent.
    """
    return SQL(
        """
        SELECT pg_catalog.format('ALTER TABLE %s ALTER %I %s', {new}, a.attname,
                   coalesce('SET DEFAULT ' || wanted.text, 'DROP DEFAULT'))
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
          JOIN pg_catalog.pg_attribute b
            ON b.attrelid = pg_catalog.to_regclass({new}) AND b.attname = a.attname
          LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          LEFT JOIN pg_catalog.pg_attrdef e ON e.adrelid = b.attrelid AND e.adnum = b.attnum
         CROSS JOIN LATERAL (
               SELECT CASE WHEN a.attidentity = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid)
                           WHEN c.relkind = 'p' THEN pg_catalog.format('pg_catalog.nextval(%L)',
                                    (SELECT s.objid::pg_catalog.regclass
                                       FROM pg_catalog.pg_depend s
                                       JOIN pg_catalog.pg_attribute o
                                         ON o.attrelid = s.refobjid AND o.attnum = s.refobjsubid
                                      WHERE s.classid = 'pg_catalog.pg_class'::regclass
                                        AND s.refclassid = 'pg_catalog.pg_class'::regclass
                                        AND s.deptype = 'i' AND o.attname = a.attname
                                        AND (s.refobjid = {oid}
                                             OR s.refobjid = pg_catalog.pg_partition_root({oid}))
                                    )) END) AS wanted (text)
         WHERE c.oid = {oid} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           AND wanted.text IS DISTINCT FROM pg_catalog.pg_get_expr(e.adbin, e.adrelid)
        """
    ).format(oid=Literal(oid), new=Literal(new))


def foreign_keys(oid: int, new: str) -> Composed:
    """Spell how a table gets the foreign keys of another one, for which its rows are looked at."""
    return SQL(
        """
        SELECT pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', {new}, k.conname,
                                 pg_catalog.pg_get_constraintdef(k.oid))
          FROM pg_catalog.pg_constraint k WHERE k.conrelid = {oid} AND k.contype = 'f'
         ORDER BY k.confrelid, k.conname
        """
    ).format(oid=Literal(oid), new=Literal(new))


def replace(oid: int, new: str) -> Composed:
    """Spell how the new table comes into the place of the old one, which is locked by then.

    Indexes and statistics were made in the order of the old one's, and take over their names. All
    belong to the table's owner, statistics of others too. Before the new table is there, as for a
    plan, what needs to know names that the server gives is left out.
    """
    return SQL(
        """
        WITH held AS (SELECT c.oid, c.relname, c.relowner, c.relispartition, n.nspname,
                             pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bounds,
                             (SELECT i.inhparent::pg_catalog.regclass::text
                                FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) AS parent
                        FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                       WHERE c.oid = {oid}),
             identities AS (SELECT s.objid AS oid, q.relname, held.nspname,
                                   s.objid::pg_catalog.regclass::text AS held,
                                   CASE WHEN pg_catalog.to_regclass({new}) IS NOT NULL
                                        THEN pg_catalog.pg_get_serial_sequence({new}, a.attname)
                                    END AS made,
                                   pg_catalog.obj_description(q.oid, 'pg_class') AS comment
                              FROM held
                              JOIN pg_catalog.pg_depend s
                                ON s.refclassid = 'pg_catalog.pg_class'::regclass
                               AND s.refobjid = held.oid AND s.deptype = 'i'
                               AND s.classid = 'pg_catalog.pg_class'::regclass
                              JOIN pg_catalog.pg_class q ON q.oid = s.objid AND q.relkind = 'S'
                              JOIN pg_catalog.pg_attribute a
                                ON a.attrelid = s.refobjid AND a.attnum = s.refobjsubid
                             WHERE NOT held.relispartition),
             indexes AS ({indexes}),
             statistics AS ({statistics})
        SELECT d.text FROM (
            SELECT 1 AS place, pg_catalog.format('ALTER SEQUENCE %s OWNED BY %s.%I',
                       s.objid::pg_catalog.regclass, {new}, a.attname) AS text
              FROM pg_catalog.pg_depend s
              JOIN pg_catalog.pg_class q ON q.oid = s.objid AND q.relkind = 'S'
              JOIN pg_catalog.pg_attribute a
                ON a.attrelid = s.refobjid AND a.attnum = s.refobjsubid
             WHERE s.classid = 'pg_catalog.pg_class'::regclass AND s.refobjid = {oid}
               AND s.refclassid = 'pg_catalog.pg_class'::regclass AND s.deptype = 'a'
             UNION ALL
            SELECT 2, pg_catalog.format('SELECT pg_catalog.setval(%L, %s(n.last_value,'
                                        ' s.last_value), n.is_called OR s.is_called)'
                                        ' FROM %s AS n, %s AS s', i.made,
                                        CASE WHEN q.seqincrement > 0 THEN 'greatest'
                                             ELSE 'least' END, i.made, i.held)
              FROM identities i JOIN pg_catalog.pg_sequence q ON q.seqrelid = i.oid
             WHERE i.made IS NOT NULL
             UNION ALL
            SELECT 3, pg_catalog.format('ALTER TABLE %s DETACH PARTITION %I.%I',
                                        held.parent, held.nspname, held.relname)
              FROM held WHERE held.relispartition
             UNION ALL
            SELECT 4, pg_catalog.format('DROP TABLE %I.%I', held.nspname, held.relname) FROM held
             UNION ALL
            SELECT 5, pg_catalog.format('ALTER TABLE %s RENAME TO %I', {new}, held.relname)
              FROM held
             UNION ALL
            SELECT 6, pg_catalog.format('ALTER INDEX %s RENAME TO %I', i.made, i.relname)
              FROM indexes i
             UNION ALL
            SELECT 6, pg_catalog.format('ALTER SEQUENCE %s RENAME TO %I', i.made, i.relname)
              FROM identities i WHERE i.made IS NOT NULL
             UNION ALL
            SELECT 7, pg_catalog.format('COMMENT ON SEQUENCE %I.%I IS %L', i.nspname, i.relname,
                                        i.comment)
              FROM identities i WHERE i.comment IS NOT NULL
             UNION ALL
            SELECT 8, pg_catalog.format('ALTER STATISTICS %s RENAME TO %I', s.made, s.stxname)
              FROM statistics s WHERE s.made_as <> s.stxname
             UNION ALL
            SELECT 9, pg_catalog.format('ALTER STATISTICS %I.%I OWNER TO %I', s.made_in, s.stxname,
                                        pg_catalog.pg_get_userbyid(held.relowner))
              FROM held, statistics s WHERE s.maker <> held.relowner
             UNION ALL
            SELECT 10, pg_catalog.format('ALTER STATISTICS %I.%I SET SCHEMA %I', s.made_in,
                                         s.stxname, s.nspname)
              FROM statistics s WHERE s.made_in <> s.nspname
             UNION ALL
            SELECT 11, pg_catalog.format('ALTER TABLE %I.%I CLUSTER ON %I', held.nspname,
                                         held.relname, i.relname)
              FROM held, indexes i WHERE i.indisclustered
             UNION ALL
            SELECT 11, pg_catalog.format('ALTER TABLE %I.%I REPLICA IDENTITY USING INDEX %I',
                                         held.nspname, held.relname, i.relname)
              FROM held, indexes i WHERE i.indisreplident
             UNION ALL
            SELECT 11, pg_catalog.format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname,
                                         held.nspname, held.relname,
                                         pg_catalog.obj_description(k.oid, 'pg_constraint'))
              FROM held JOIN pg_catalog.pg_constraint k ON k.conrelid = held.oid
             WHERE pg_catalog.obj_description(k.oid, 'pg_constraint') IS NOT NULL
             UNION ALL
            SELECT 12, pg_catalog.format('ALTER TABLE %s ATTACH PARTITION %I.%I %s', held.parent,
                                         held.nspname, held.relname, held.bounds)
              FROM held WHERE held.relispartition
             UNION ALL
            SELECT 13, pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT copypipe_bounds',
                                         held.nspname, held.relname)
              FROM held WHERE held.relispartition) AS d
         ORDER BY d.place
        """
    ).format(
        oid=Literal(oid),
        new=Literal(new),
        indexes=_indexes(oid, new),
        statistics=_statistics(oid, new),
    )


def run(spelled: str) -> Composed:
    """Run what the server has spelled."""
    return Composed([SQL(spelled)])


def lock_writers(schema: str, name: str) -> Composed:
    """Keep writers out, whose rows would be lost with the old table; readers go on."""
    return SQL("LOCK TABLE ONLY {} IN EXCLUSIVE MODE").format(Identifier(schema, name))


def quoted(schema: str, name: str) -> str:
    """Return a name as SQL spells it."""
    return Identifier(schema, name).as_string(None)


def script(spelled: Sequence[str | Composed]) -> Composed:
    """Join statements that run one after the other."""
    return SQL(";\n").join(SQL(each) if isinstance(each, str) else each for each in spelled)


def copy_in(
    schema: str, name: str, columns: Sequence[str], form: Format, *, freeze: bool
) -> Composed:
    """Receive rows; frozen where it is no partitioned table, since nobody has ever seen it."""
    options = SQL("FORMAT {}, FREEZE true" if freeze else "FORMAT {}").format(SQL(form))
    return SQL("COPY {} ({}) FROM STDIN ({})").format(
        Identifier(schema, name), SQL(", ").join(map(Identifier, columns)), options
    )


def lock_out(schema: str, name: str) -> Composed:
    """Lock everybody out of a table."""
    return SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(Identifier(schema, name))


def lock_timeout() -> Composed:
    """Ask how long a lock is waited for."""
    return SQL("SELECT pg_catalog.current_setting('lock_timeout')").format()


def analyze(schema: str, name: str) -> Composed:
    """Let the planner know the new rows from the first moment on."""
    return SQL("ANALYZE {}").format(Identifier(schema, name))
