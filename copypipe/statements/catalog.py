"""What the catalog knows about a table."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Literal


def resolve(name: str) -> Composed:
    """Find the OID of a relation by the role's own search_path; NULL where there is none.

    parse_ident raises an error for what is no name, which to_regclass does not do since 16.
    """
    return SQL(
        "SELECT pg_catalog.to_regclass({name})::pg_catalog.oid::pg_catalog.int8, "
        "pg_catalog.parse_ident({name})"
    ).format(name=Literal(name))


def relation(oid: int) -> Composed:
    """Read one relation with its partitions: kind, size, what runs on it, rights of this role.

    pg_trigger.tgtype has a bit each for INSERT (4), DELETE (8) and TRUNCATE (32).
    """
    return SQL(
        """
        SELECT n.nspname, c.relname, c.relkind,
               coalesce(pg_catalog.pg_partition_root(c.oid)::oid, c.oid)::int8 AS root_oid,
               (SELECT coalesce(sum(l.relpages), 0)::int8
                  FROM pg_catalog.pg_class l WHERE l.oid = ANY (tree.oids)) AS pages,
               (SELECT coalesce(sum(l.reltuples) FILTER (WHERE l.reltuples >= 0), -1)::int8
                  FROM pg_catalog.pg_class l
                 WHERE l.oid = ANY (tree.oids) AND l.relkind <> 'p') AS estimated_rows,
               c.relkind <> 'p' AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i
                                             WHERE i.inhparent = c.oid) AS has_children,
               c.relkind = 'p' AND EXISTS (SELECT 1 FROM pg_catalog.pg_class l
                                            WHERE l.oid = ANY (tree.oids) AND l.relkind = 'f')
                   AS foreign_partitions,
               EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite w
                        WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN') AS has_rules,
               EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                        WHERE t.tgrelid = ANY (tree.oids) AND NOT t.tgisinternal
                          AND t.tgenabled <> 'D' AND t.tgtype & 12 <> 0) AS has_triggers,
               EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                        WHERE t.tgrelid = ANY (tree.oids) AND NOT t.tgisinternal
                          AND t.tgenabled <> 'D' AND t.tgtype & 32 <> 0) AS has_truncate_triggers,
               pg_catalog.row_security_active(c.oid) AS row_security,
               pg_catalog.has_table_privilege(c.oid, 'SELECT') AS can_select,
               pg_catalog.has_table_privilege(c.oid, 'DELETE') AS can_delete,
               pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS can_truncate
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (
               SELECT ARRAY (SELECT c.oid
                              UNION
                             SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(c.oid) p
                              WHERE c.relkind = 'p'
                              UNION
                             SELECT i.inhrelid FROM pg_catalog.pg_inherits i
                              WHERE i.inhparent = c.oid) AS oids) AS tree
         WHERE c.oid = {}
        """
    ).format(Literal(oid))


def columns(oid: int) -> Composed:
    """Read the columns of a relation in their order, dropped ones left out.

    pg_collation.dat, OID 100: the database's default collation.
    """
    return SQL(
        """
        SELECT a.attname, a.attnum, a.atttypid::int8, a.atttypmod,
               pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_name, {facts},
               CASE WHEN a.attcollation::oid = 100 THEN 'database'
                    ELSE (SELECT pg_catalog.concat_ws(' ', co.collname, co.collprovider,
                                                      co.collversion)
                            FROM pg_catalog.pg_collation co WHERE co.oid = a.attcollation)
               END AS sorting,
               a.attnotnull, a.attgenerated <> '' AS generated,
               a.atthasdef OR a.attidentity <> '' OR y.typdefault IS NOT NULL AS has_default,
               pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS can_select,
               pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'INSERT') AS can_insert
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
          {elements}
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attnum
        """
    ).format(facts=_TYPE_FACTS, elements=_ELEMENTS, oid=Literal(oid))


# What is told of a type y, and of its elements e where it is an array.
_TYPE_FACTS = SQL(
    """coalesce(e.typtype, y.typtype) AS type_kind,
               coalesce(e.oid, 0)::int8 AS element_oid,
               y.typsend::oid <> 0 AND y.typreceive::oid <> 0 AS "binary\""""
)
_ELEMENTS = SQL(
    """LEFT JOIN pg_catalog.pg_type e
            ON e.oid = y.typelem
           AND y.typsubscript::oid = 'pg_catalog.array_subscript_handler'::regproc"""
)


def types(oids: Sequence[int], typmods: Sequence[int]) -> Composed:
    """Describe types as `columns` does, in the order given."""
    return SQL(
        """
        SELECT pg_catalog.format_type(y.oid, w.typmod) AS type_name, {facts}
          FROM unnest({oids}::int8[], {typmods}::int4[]) WITH ORDINALITY AS w (oid, typmod, place)
          JOIN pg_catalog.pg_type y ON y.oid = w.oid
          {elements}
         ORDER BY w.place
        """
    ).format(
        facts=_TYPE_FACTS,
        elements=_ELEMENTS,
        oids=Literal(list(oids)),
        typmods=Literal(list(typmods)),
    )


def indexes(oid: int, column: str) -> Composed:
    """Find usable indexes whose first key is that column and that hold every row."""
    return SQL(
        """
        SELECT c.relname
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am m ON m.oid = c.relam
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE i.indrelid = {} AND a.attname = {} AND m.amname IN ('btree', 'brin')
           AND i.indisvalid AND i.indisready AND i.indpred IS NULL
         ORDER BY m.amname DESC, i.indnatts, c.relname
        """
    ).format(Literal(oid), Literal(column))


def references(oid: int) -> Composed:
    """Find the foreign keys that point at this table or at any of its partition tree.

    A key that points at a partitioned table has a row for each partition; the first one counts.
    """
    return SQL(
        """
        SELECT k.conname, n.nspname || '.' || c.relname,
               CASE k.confdeltype WHEN 'c' THEN 'cascade' WHEN 'n' THEN 'set null'
                    WHEN 'd' THEN 'set default' WHEN 'r' THEN 'restrict' ELSE 'no action' END
          FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.contype = 'f' AND k.conparentid = 0
           AND k.confrelid IN (SELECT {oid}::oid
                               UNION ALL
                               SELECT a.relid::oid FROM pg_catalog.pg_partition_ancestors({oid}) a
                               UNION ALL
                               SELECT p.relid::oid FROM pg_catalog.pg_partition_tree({oid}) p)
         ORDER BY 2, 1
        """
    ).format(oid=Literal(oid))
