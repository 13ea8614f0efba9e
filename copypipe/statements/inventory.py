"""Which tables a database has, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from psycopg.sql import SQL, Composed, Literal

from copypipe.statements.ledger import SCHEMA


@cache
def visible() -> Composed:
    """List the OIDs of the tables that are found without their schemas."""
    return SQL(
        """
        SELECT c.oid::int8 FROM pg_catalog.pg_class c
         WHERE c.relkind IN ('r', 'p') AND pg_catalog.pg_table_is_visible(c.oid)
        """
    ).format()


@cache
def tables() -> Composed:
    """List the tables of users, partitioned ones and partitions too, in the order of their names.

    Not those of extensions, which make them and what they hold, nor our own ledger. No table is
    opened for that, so none that somebody has locked is waited for; pages and sizes are 0.
    """
    return SQL(
        """
        SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text,
               CASE WHEN c.relispartition THEN
                   (SELECT i.inhparent::int8 FROM pg_catalog.pg_inherits i
                     WHERE i.inhrelid = c.oid) END AS parent,
               pg_catalog.pg_get_expr(c.relpartbound, 0) AS bound,
               CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END AS key,
               0, 0, 0,
               c.reltuples::float8,
               c.relkind = 'r' AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i
                                            WHERE i.inhparent = c.oid) AS has_children,
               pg_catalog.has_table_privilege(c.oid, 'SELECT')
                   AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_read,
               c.relkind = 'p' AND EXISTS (
                   SELECT 1 FROM pg_catalog.pg_partition_tree(c.oid) t
                     JOIN pg_catalog.pg_class f ON f.oid = t.relid
                    WHERE f.relkind = 'f') AS has_foreign,
               EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i
                        WHERE i.inhrelid = c.oid AND i.inhdetachpending) AS is_detaching,
               -- hashenum() hashes OIDs; what holds others' values may hold an enum's.
               EXISTS (SELECT 1 FROM pg_catalog.pg_partitioned_table p
                         JOIN pg_catalog.pg_opclass o ON o.oid = ANY (p.partclass)
                        WHERE p.partrelid = c.oid AND p.partstrat = 'h'
                          AND o.opcname IN ('enum_ops', 'array_ops', 'record_ops', 'range_ops',
                                            'multirange_ops')) AS hashes_apart,
               c.relpersistence = 'u' AS is_unlogged,
               pg_catalog.row_security_active(c.oid) AS is_filtered,
               EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND a.attgenerated = '') AS has_columns
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
           AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', {ledger})
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                            WHERE d.classid = 'pg_catalog.pg_class'::regclass
                              AND d.objid = c.oid AND d.deptype = 'e')
         ORDER BY n.nspname, c.relname
        """
    ).format(ledger=Literal(SCHEMA))


def sizes(tables: Sequence[int]) -> Composed:
    """Read how large tables are: OID, pages, bytes with TOAST, bytes of their indexes.

    Waits for those that somebody has locked alone.
    """
    return SQL(
        """
        SELECT c.oid::int8,
               coalesce(pg_catalog.pg_relation_size(c.oid)
                        / pg_catalog.current_setting('block_size')::int8, 0)::int8,
               coalesce(pg_catalog.pg_table_size(c.oid), 0),
               coalesce(pg_catalog.pg_indexes_size(c.oid), 0)
          FROM pg_catalog.pg_class c
         WHERE c.oid = ANY ({}::oid[]) AND c.relkind = 'r'
        """
    ).format(Literal(list(tables)))
