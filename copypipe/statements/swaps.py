"""A table that is filled beside another one and then takes its place.

What cannot be said in general (grants, foreign keys, names of indexes) the server spells itself, by
its own functions for that: rows of DDL, which are run as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Identifier, Literal

from copypipe.statements.copies import Format


def hindrances(oid: int) -> Composed:
    """Ask what a table has that another one in its place would lack, or that would still hold it.

    Dependencies of type n are those of others: views, functions, foreign keys of other tables.
    """
    return SQL(
        """
        SELECT 'it is a ' || CASE c.relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN
                   'foreign table' ELSE 'relation of kind ' || c.relkind::text END
          FROM pg_catalog.pg_class c WHERE c.oid = {oid} AND c.relkind <> 'r'
         UNION ALL
        SELECT 'the role is not a member of its owner ' || pg_catalog.pg_get_userbyid(c.relowner)
               || CASE WHEN pg_catalog.pg_has_role(c.relowner, 'MEMBER')
                       THEN ' that inherits its rights' ELSE '' END
          FROM pg_catalog.pg_class c
         WHERE c.oid = {oid} AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
         UNION ALL
        SELECT 'the role is not a member of ' || pg_catalog.pg_get_userbyid(c.relowner)
               || ', the owner of ' || c.oid::pg_catalog.regclass::text
          FROM pg_catalog.pg_inherits i
          JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
         WHERE i.inhrelid = {oid} AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
         UNION ALL
        SELECT 'its owner ' || pg_catalog.pg_get_userbyid(c.relowner)
               || ' lacks CREATE on schema ' || n.nspname
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_roles r ON r.rolname = current_user
         WHERE c.oid = {oid} AND NOT r.rolsuper
           AND NOT pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE')
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
        SELECT 'it has row security' FROM pg_catalog.pg_class c
         WHERE c.oid = {oid} AND (c.relrowsecurity OR c.relforcerowsecurity)
         UNION ALL
        SELECT 'its replica identity is an index' FROM pg_catalog.pg_class c
         WHERE c.oid = {oid} AND c.relreplident = 'i'
         UNION ALL
        SELECT 'the trigger ' || t.tgname || ' would not run' FROM pg_catalog.pg_trigger t
         WHERE t.tgrelid = {oid} AND NOT t.tgisinternal
         UNION ALL
        SELECT 'it is in the publication ' || p.pubname
          FROM pg_catalog.pg_publication_rel r
          JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = {oid}
         UNION ALL
        SELECT 'it inherits from another table' FROM pg_catalog.pg_inherits i
          JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         WHERE i.inhrelid = {oid} AND NOT c.relispartition
         UNION ALL
        SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, 0) || ' depends on it'
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_type y ON y.oid = c.reltype
          JOIN pg_catalog.pg_depend d
            ON d.deptype = 'n'
           AND ((d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid)
                OR (d.refclassid = 'pg_catalog.pg_type'::regclass
                    AND d.refobjid IN (y.oid, y.typarray)))
         WHERE c.oid = {oid} AND d.classid <> 'pg_catalog.pg_publication_rel'::regclass
           AND NOT (d.classid = 'pg_catalog.pg_attrdef'::regclass
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_attrdef f
                                 WHERE f.oid = d.objid AND f.adrelid = c.oid))
           AND NOT (d.classid = 'pg_catalog.pg_constraint'::regclass
                    AND EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k
                                 WHERE k.oid = d.objid AND k.conrelid = c.oid))
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
                   ' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')',
                   ' TABLESPACE ' || pg_catalog.quote_ident(s.spcname))
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_am m ON m.oid = c.relam
          LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
         WHERE c.oid = {oid}
        """
    ).format(oid=Literal(oid), schema=Literal(schema), name=Literal(name))


def dress(oid: int, new: str) -> Composed:
    """Spell what else a table has: bounds, foreign keys, grants, comment, owner, in that order.

    The bounds of a partition as a CHECK, so that to attach it needs no look at its rows.
    """
    return SQL(
        """
        WITH made AS (SELECT c.oid, c.relowner, c.relacl FROM pg_catalog.pg_class c
                       WHERE c.oid = {new}::pg_catalog.regclass),
             held AS (SELECT c.*, n.nspname FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                       WHERE c.oid = {oid})
        SELECT d.text FROM (
            SELECT 1 AS place, pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT copypipe_bounds'
                                                 ' CHECK (%s)', {new},
                                  pg_catalog.pg_get_partition_constraintdef(held.oid)) AS text
              FROM held WHERE held.relispartition
             UNION ALL
            SELECT 2, pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', {new}, k.conname,
                                        pg_catalog.pg_get_constraintdef(k.oid))
              FROM pg_catalog.pg_constraint k WHERE k.conrelid = {oid} AND k.contype = 'f'
             UNION ALL
            SELECT 3, pg_catalog.format('REVOKE ALL ON TABLE %s FROM %s', {new},
                                        CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                             ELSE pg_catalog.quote_ident(
                                                      pg_catalog.pg_get_userbyid(a.grantee)) END)
              FROM made, pg_catalog.aclexplode(made.relacl) AS a
             WHERE a.grantee <> made.relowner
             UNION ALL
            SELECT 4, pg_catalog.format('GRANT %s%s ON TABLE %s TO %s%s', a.privilege_type,
                                        ' (' || pg_catalog.quote_ident(a.attname) || ')', {new},
                                        CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                             ELSE pg_catalog.quote_ident(
                                                      pg_catalog.pg_get_userbyid(a.grantee)) END,
                                        CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION'
                                             ELSE '' END)
              FROM (SELECT NULL AS attname, x.* FROM held, pg_catalog.aclexplode(held.relacl) AS x
                     WHERE x.grantee <> held.relowner
                     UNION ALL
                    SELECT t.attname::text, x.*
                      FROM held
                      JOIN pg_catalog.pg_attribute t ON t.attrelid = held.oid,
                           pg_catalog.aclexplode(t.attacl) AS x
                     WHERE x.grantee <> held.relowner) AS a
             UNION ALL
            SELECT 5, pg_catalog.format('COMMENT ON TABLE %s IS %L', {new},
                                        pg_catalog.obj_description(held.oid, 'pg_class'))
              FROM held WHERE pg_catalog.obj_description(held.oid, 'pg_class') IS NOT NULL
             UNION ALL
            SELECT 6, pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY %s', {new},
                                        CASE held.relreplident WHEN 'f' THEN 'FULL'
                                             ELSE 'NOTHING' END)
              FROM held WHERE held.relreplident IN ('f', 'n')
             UNION ALL
            SELECT 7, pg_catalog.format('ALTER TABLE %s OWNER TO %I', {new},
                                        pg_catalog.pg_get_userbyid(held.relowner))
              FROM held, made WHERE held.relowner <> made.relowner) AS d
         ORDER BY d.place
        """
    ).format(oid=Literal(oid), new=Literal(new))


def replace(oid: int, new: str) -> Composed:
    """Spell how the new table comes into the place of the old one, which is locked by then.

    Indexes were made in the order of the old one's, and take over their names.
    """
    return SQL(
        """
        WITH held AS (SELECT c.oid, c.relname, c.relispartition, n.nspname,
                             pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bounds,
                             (SELECT i.inhparent::pg_catalog.regclass::text
                                FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) AS parent
                        FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                       WHERE c.oid = {oid}),
             identities AS (SELECT s.objid AS oid, q.relname,
                                   s.objid::pg_catalog.regclass::text AS held,
                                   pg_catalog.pg_get_serial_sequence({new}, a.attname) AS made
                              FROM held
                              JOIN pg_catalog.pg_depend s
                                ON s.refclassid = 'pg_catalog.pg_class'::regclass
                               AND s.refobjid = held.oid AND s.deptype = 'i'
                               AND s.classid = 'pg_catalog.pg_class'::regclass
                              JOIN pg_catalog.pg_class q ON q.oid = s.objid AND q.relkind = 'S'
                              JOIN pg_catalog.pg_attribute a
                                ON a.attrelid = s.refobjid AND a.attnum = s.refobjsubid
                             WHERE NOT held.relispartition),
             numbered AS (SELECT i.indrelid, x.relname,
                                 row_number() OVER (PARTITION BY i.indrelid ORDER BY i.indexrelid)
                                     AS number
                            FROM pg_catalog.pg_index i
                            JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                           WHERE i.indrelid IN ({oid}, {new}::pg_catalog.regclass))
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
            SELECT 6, pg_catalog.format('ALTER INDEX %I.%I RENAME TO %I', held.nspname,
                                        made.relname, old.relname)
              FROM held, numbered AS made
              JOIN numbered AS old ON old.number = made.number AND old.indrelid = {oid}
             WHERE made.indrelid = {new}::pg_catalog.regclass AND made.relname <> old.relname
             UNION ALL
            SELECT 6, pg_catalog.format('ALTER SEQUENCE %s RENAME TO %I', i.made, i.relname)
              FROM identities i
             UNION ALL
            SELECT 7, pg_catalog.format('ALTER TABLE %s ATTACH PARTITION %I.%I %s', held.parent,
                                        held.nspname, held.relname, held.bounds)
              FROM held WHERE held.relispartition
             UNION ALL
            SELECT 8, pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT copypipe_bounds',
                                        held.nspname, held.relname)
              FROM held WHERE held.relispartition) AS d
         ORDER BY d.place
        """
    ).format(oid=Literal(oid), new=Literal(new))


def run(spelled: str) -> Composed:
    """Run what the server has spelled."""
    return Composed([SQL(spelled)])


def lock_writers(schema: str, name: str) -> Composed:
    """Keep writers out, whose rows would be lost with the old table; readers go on."""
    return SQL("LOCK TABLE ONLY {} IN EXCLUSIVE MODE").format(Identifier(schema, name))


def quoted(schema: str, name: str) -> str:
    """Return a name as SQL spells it."""
    return Identifier(schema, name).as_string(None)


def oid(schema: str, name: str) -> Composed:
    """Find the OID of a table."""
    return SQL("SELECT pg_catalog.to_regclass({})::oid::int8").format(Literal(quoted(schema, name)))


def parent(oid: int) -> Composed:
    """Find the table that a partition is of: schema and name; no row for a table of its own."""
    return SQL(
        """
        SELECT n.nspname, c.relname
          FROM pg_catalog.pg_inherits i
          JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE i.inhrelid = {}
        """
    ).format(Literal(oid))


def copy_in(schema: str, name: str, columns: Sequence[str], form: Format) -> Composed:
    """Receive rows, frozen: nobody else has ever seen the table."""
    return SQL("COPY {} ({}) FROM STDIN (FORMAT {}, FREEZE true)").format(
        Identifier(schema, name), SQL(", ").join(map(Identifier, columns)), SQL(form)
    )


def lock_out(schema: str, name: str) -> Composed:
    """Lock everybody out of a table."""
    return SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(Identifier(schema, name))


def analyze(schema: str, name: str) -> Composed:
    """Let the planner know the new rows from the first moment on."""
    return SQL("ANALYZE {}").format(Identifier(schema, name))
