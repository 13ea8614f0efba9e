"""What the catalog knows about a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.slices import Range
from copypipe.statements.sessions import DATABASE_SORTING


def resolve(name: str) -> Composed:
    """Find the OID of a relation by the role's own search_path; NULL where there is none.

    parse_ident raises an error for what is no name, which to_regclass does not do since 16.
    """
    return SQL(
        "SELECT pg_catalog.to_regclass({name})::pg_catalog.oid::pg_catalog.int8, "
        "pg_catalog.parse_ident({name})"
    ).format(name=Literal(name))


@lru_cache(maxsize=64)
def oid(schema: str, name: str) -> Composed:
    """Find the OID of the table that bears a name now, NULL for none."""
    return SQL("SELECT pg_catalog.to_regclass({})::oid::int8").format(
        Literal(Identifier(schema, name).as_string(None))
    )


@lru_cache(maxsize=64)
def relation(oid: int) -> Composed:
    """Read one relation with its partitions: kind, size, what runs on it, rights of this role.

    pg_trigger.tgtype has a bit each for INSERT (4), DELETE (8), UPDATE (16) and TRUNCATE (32).
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
               c.relkind <> 'f' AND EXISTS (SELECT 1 FROM pg_catalog.pg_class l
                                             WHERE l.oid = ANY (tree.oids) AND l.relkind = 'f')
                   AS has_foreign_parts,
               EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite w
                        WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN') AS has_rules,
               EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                        WHERE t.tgrelid = ANY (tree.oids) AND NOT t.tgisinternal
                          AND t.tgenabled <> 'D' AND t.tgtype & 12 <> 0) AS has_triggers,
               EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                        WHERE t.tgrelid = ANY (tree.oids) AND NOT t.tgisinternal
                          AND t.tgenabled <> 'D' AND t.tgtype & 16 <> 0) AS has_update_triggers,
               EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                        WHERE t.tgrelid = ANY (tree.oids) AND NOT t.tgisinternal
                          AND t.tgenabled <> 'D' AND t.tgtype & 32 <> 0) AS has_truncate_triggers,
               pg_catalog.row_security_active(c.oid) AS row_security,
               pg_catalog.has_table_privilege(c.oid, 'SELECT') AS can_select,
               pg_catalog.has_table_privilege(c.oid, 'DELETE') AS can_delete,
               pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS can_truncate,
               pg_catalog.has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                   AS can_lock
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (
               SELECT ARRAY ({tree}) AS oids) AS tree
         WHERE c.oid = {oid}
        """
    ).format(oid=Literal(oid), tree=_tree(SQL("c.oid")))


def _tree(top: Composable) -> Composed:
    """Find a relation and all below it.

    Not by pg_partition_tree, which locks each partition until the transaction ends: it would wait
    for whoever truncates one, and then two of them for each other.
    """
    return SQL(
        """
        WITH RECURSIVE below (oid) AS (
              SELECT {}::oid
               UNION
              SELECT i.inhrelid
                FROM below
                JOIN pg_catalog.pg_inherits i ON i.inhparent = below.oid)
        SELECT below.oid FROM below
        """
    ).format(top)


@lru_cache(maxsize=64)
def columns(oid: int) -> Composed:
    """Read the columns of a relation in their order, dropped ones left out.

    pg_collation.dat, OID 100: the database's default collation.
    """
    return SQL(
        """
        SELECT a.attname, a.attnum, a.atttypid::int8, a.atttypmod,
               pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_name,
               {sorting} AS sorting,
               a.attnotnull, a.attgenerated <> '' AS generated,
               a.atthasdef OR a.attidentity <> '' OR y.typdefault IS NOT NULL AS has_default,
               a.attidentity = 'a' AS always_identity,
               pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS can_select,
               pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'INSERT') AS can_insert,
               pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS can_update
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attnum
        """
    ).format(oid=Literal(oid), sorting=_sorting("a.attcollation", SQL("'database'")))


def _sorting(collation: str, database: Composable) -> Composed:
    """Tell by which rules a collation sorts, in words that mean the same on every server.

    OID 100 is the database's own (pg_collation.dat), told by `database`. The columns that hold
    the locale have had several names.
    """
    return SQL(
        """CASE WHEN {oid}::oid = 100 THEN {database}
                    ELSE (SELECT pg_catalog.concat_ws(' ', j ->> 'collprovider',
                                 j ->> 'collcollate', j ->> 'collctype',
                                 coalesce(j ->> 'colllocale', j ->> 'colliculocale'),
                                 j ->> 'collicurules', j ->> 'collversion',
                                 CASE WHEN j ->> 'collisdeterministic' = 'false' THEN 'loose' END)
                            FROM pg_catalog.pg_collation co,
                                 pg_catalog.to_jsonb(co) AS j WHERE co.oid = {oid})
               END"""
    ).format(oid=SQL(collation), database=database)


def names(oids: Sequence[int], typmods: Sequence[int]) -> Composed:
    """Print types with their modifiers, in the order given."""
    return SQL(
        """
        SELECT pg_catalog.format_type(w.oid::oid, w.typmod)
          FROM unnest({}::int8[], {}::int4[]) WITH ORDINALITY AS w (oid, typmod, place)
         ORDER BY w.place
        """
    ).format(Literal(list(oids)), Literal(list(typmods)))


# What a type y is made of: what a domain is of, elements, bounds, fields. A true array is its
# element's typarray; int2vector, point and the like have elements too.
_PARTS = SQL(
    """SELECT 0 AS place, '' AS name, y.typbasetype AS oid, y.typtypmod AS typmod
                WHERE y.typtype = 'd'
                UNION ALL
               SELECT 0, '', e.oid, -1 FROM pg_catalog.pg_type e
                WHERE e.oid = y.typelem AND e.typarray = y.oid
                UNION ALL
               SELECT 0, '', r.rngsubtype, -1 FROM pg_catalog.pg_range r WHERE r.rngtypid = y.oid
                UNION ALL
               SELECT 0, '', r.rngtypid, -1 FROM pg_catalog.pg_range r
                WHERE r.rngmultitypid = y.oid
                UNION ALL
               SELECT a.attnum, a.attname, a.atttypid, a.atttypmod
                 FROM pg_catalog.pg_attribute a
                WHERE y.typtype = 'c' AND a.attrelid = y.typrelid
                  AND a.attnum > 0 AND NOT a.attisdropped"""
)


def types(oids: Iterable[int]) -> Composed:
    """Describe types and all that they are made of, parts as [name, oid, typmod, printed]."""
    return SQL(
        """
        WITH RECURSIVE wanted (oid) AS (
              SELECT w.oid::oid FROM unnest({oids}::int8[]) AS w (oid)
               UNION
              SELECT part.oid
                FROM wanted
                JOIN pg_catalog.pg_type y ON y.oid = wanted.oid
               CROSS JOIN LATERAL (
               {parts}) AS part)
        SELECT y.oid::int8, pg_catalog.format_type(y.oid, -1) AS name,
               CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_type e
                                  WHERE e.oid = y.typelem AND e.typarray = y.oid) THEN 'array'
                    ELSE pg_catalog.jsonb_build_object(
                            'b', 'base', 'c', 'composite', 'd', 'domain', 'e', 'enum',
                            'm', 'multirange', 'p', 'pseudo', 'r', 'range') ->> y.typtype::text
               END AS kind,
               y.typsend::oid <> 0 AS sends, y.typreceive::oid <> 0 AS receives,
               x.extname || '.' || y.typname AS extension, x.extversion AS version,
               (SELECT pg_catalog.array_agg(l.enumlabel::text ORDER BY l.enumsortorder)
                  FROM pg_catalog.pg_enum l WHERE l.enumtypid = y.oid) AS labels,
               (SELECT pg_catalog.concat_ws(' ', r.rngcanonical, o.opcnamespace::regnamespace,
                                            o.opcname, {sorting})
                  FROM pg_catalog.pg_range r
                  JOIN pg_catalog.pg_opclass o ON o.oid = r.rngsubopc
                 WHERE r.rngtypid = y.oid) AS rules,
               (SELECT pg_catalog.jsonb_agg(
                           pg_catalog.jsonb_build_array(part.name, part.oid::int8, part.typmod,
                                   pg_catalog.format_type(part.oid, part.typmod))
                           ORDER BY part.place)
                  FROM (
               {parts}) AS part) AS parts
          FROM wanted
          JOIN pg_catalog.pg_type y ON y.oid = wanted.oid
          LEFT JOIN pg_catalog.pg_depend d
            ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid
           AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
          LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
        """
    ).format(
        oids=Literal(sorted(set(oids))),
        parts=_PARTS,
        sorting=_sorting("r.rngcollation", DATABASE_SORTING),
    )


def users_casts(pairs: Sequence[tuple[int, int]]) -> Composed:
    """Find casts between these types that a user has made: 16384 is FirstNormalObjectId.

    A cast WITH INOUT does what is done where there is none.
    """
    return SQL(
        """
        SELECT pg_catalog.format_type(c.castsource, -1), pg_catalog.format_type(c.casttarget, -1)
          FROM pg_catalog.pg_cast c
          JOIN unnest({ones}::int8[], {others}::int8[]) AS w (one, other)
            ON c.castsource = w.one::oid AND c.casttarget = w.other::oid
         WHERE c.oid >= 16384 AND c.castmethod <> 'i'
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                            WHERE d.classid = 'pg_catalog.pg_cast'::regclass AND d.objid = c.oid
                              AND d.deptype = 'e')
        """
    ).format(ones=Literal([one for one, _ in pairs]), others=Literal([other for _, other in pairs]))


def null(type_name: str) -> Composed:
    """Make a NULL of a type, which a domain may refuse."""
    return SQL("SELECT NULL::{}").format(SQL(type_name))


def indexes(oid: int, column: str) -> Composed:
    """Find usable indexes whose first key is that column and that hold every row."""
    return SQL(
        """
        SELECT c.relname, m.amname = 'btree' AS is_sorted
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am m ON m.oid = c.relam
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE i.indrelid = {} AND a.attname = {} AND m.amname IN ('btree', 'brin')
           AND i.indisvalid AND i.indisready AND i.indpred IS NULL
         ORDER BY m.amname DESC, i.indnatts, c.relname
        """
    ).format(Literal(oid), Literal(column))


def uniques(oid: int) -> Composed:
    """Find the unique indexes of a table, the primary key first, and what hinders a merge by each.

    The operator is that of the index for equality (strategy 3 of a btree), since the one that a
    search_path finds may tell values apart in another way.
    """
    return SQL(
        """
        SELECT c.relname, i.indisprimary, k.names, k.operators, k.inferred_by,
               NOT i.indimmediate AS is_deferrable,
               CASE WHEN NOT i.indimmediate THEN 'it is deferrable'
                    WHEN i.indisexclusion THEN 'it excludes more than equal keys'
                    WHEN i.indpred IS NOT NULL THEN 'it does not hold all rows'
                    WHEN i.indexprs IS NOT NULL THEN 'it is on an expression'
                    WHEN k.collated THEN 'it sorts by another collation than its column'
               END AS hindrance
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
         CROSS JOIN LATERAL (
               SELECT pg_catalog.array_agg(a.attname::text ORDER BY u.place) AS names,
                      pg_catalog.array_agg(
                          pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
                          ORDER BY u.place) AS operators,
                      pg_catalog.array_agg(
                          pg_catalog.concat_ws(' ',
                              (SELECT pg_catalog.format('COLLATE %I.%I', ln.nspname, l.collname)
                                 FROM pg_catalog.pg_collation l
                                 JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
                                WHERE l.oid = u.sorts_by),
                              pg_catalog.format('%I.%I', sn.nspname, s.opcname))
                          ORDER BY u.place) AS inferred_by,
                      pg_catalog.bool_or(u.sorts_by <> a.attcollation) AS collated
                 FROM unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[])
                      WITH ORDINALITY AS u (number, class, sorts_by, place)
                 JOIN pg_catalog.pg_attribute a
                   ON a.attrelid = i.indrelid AND a.attnum = u.number
                 JOIN pg_catalog.pg_opclass s ON s.oid = u.class
                 JOIN pg_catalog.pg_namespace sn ON sn.oid = s.opcnamespace
                 JOIN pg_catalog.pg_amop m
                   ON m.amopfamily = s.opcfamily AND m.amopstrategy = 3
                  AND m.amoplefttype = s.opcintype AND m.amoprighttype = s.opcintype
                 JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
                 JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
                WHERE u.place <= i.indnkeyatts) AS k
         WHERE i.indrelid = {} AND i.indisunique AND i.indisvalid AND i.indisready
           AND k.names IS NOT NULL
         ORDER BY NOT i.indisprimary, c.relname
        """
    ).format(Literal(oid))


def sequences(oid: int) -> Composed:
    """Find the sequences that number columns of a table, or of the root of its partitions.

    Those of identities, those owned by a column, and those that a default does nothing but draw
    from. Expressions are printed for no table, since that would wait for whoever has locked it; the
    columns in that of a generated column cannot be printed so.
    """
    return SQL(
        """
        WITH tree AS (SELECT {oid}::oid AS oid
                       UNION
                      SELECT p.relid::oid FROM pg_catalog.pg_partition_ancestors({oid}) p)
        SELECT a.attname, n.nspname, c.relname, q.seqincrement > 0 AS ascends,
               pg_catalog.has_sequence_privilege(c.oid, 'UPDATE')
                   AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                   AND pg_catalog.has_column_privilege({oid}, a.attname, 'SELECT') AS may_advance,
               q.seqincrement > 0 AND q.seqcache = 1 AND NOT q.seqcycle AS keeps_order
          FROM (SELECT d.objid, d.refobjid, d.refobjsubid
                  FROM tree
                  JOIN pg_catalog.pg_depend d
                    ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = tree.oid
                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
                 UNION
                SELECT d.refobjid, f.adrelid, f.adnum
                  FROM tree
                  JOIN pg_catalog.pg_attrdef f ON f.adrelid = tree.oid
                  JOIN pg_catalog.pg_depend d
                    ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
                   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'n'
                  JOIN pg_catalog.pg_attribute g
                    ON g.attrelid = f.adrelid AND g.attnum = f.adnum
                 WHERE CASE WHEN g.attgenerated = ''
                            THEN pg_catalog.pg_get_expr(f.adbin, 0::oid)
                                 ~ '^nextval[(].*::regclass[)]$' END
               ) AS of (sequence, relation, number)
          JOIN pg_catalog.pg_class c ON c.oid = of.sequence AND c.relkind = 'S'
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid
          JOIN pg_catalog.pg_attribute a
            ON a.attrelid = of.relation AND a.attnum = of.number
         ORDER BY a.attnum
        """
    ).format(oid=Literal(oid))


def partitions(oid: int, within: Range, type_name: str) -> Composed:
    """Find the partitions of a table that lie within a range of their only key.

    Bounds are printed as literals (ruleutils.c, get_range_partbound_string); MINVALUE and MAXVALUE
    are none. They name no column, and to print them for their table would wait for whoever
    truncates it.
    """
    return SQL(
        """
        SELECT c.oid::int8, n.nspname, c.relname, b.start, b.stop,
               pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS may_truncate
          FROM pg_catalog.pg_partitioned_table p
          JOIN pg_catalog.pg_attribute a
            ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
          JOIN pg_catalog.pg_inherits i ON i.inhparent = p.partrelid
          JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL pg_catalog.regexp_match(
                   pg_catalog.pg_get_expr(c.relpartbound, 0::oid),
                   $re$^FOR VALUES FROM [(]('[^']*'|[0-9]+)[)] TO [(]('[^']*'|[0-9]+)[)]$$re$)
                   AS found
         CROSS JOIN LATERAL (
               SELECT CASE WHEN a.attname = {column}
                           THEN pg_catalog.btrim(found[1], {quote})::{type} END,
                      CASE WHEN a.attname = {column}
                           THEN pg_catalog.btrim(found[2], {quote})::{type} END) AS b (start, stop)
         WHERE p.partrelid = {oid} AND p.partstrat = 'r' AND p.partnatts = 1
           AND NOT i.inhdetachpending
           AND b.start >= {start} AND b.stop <= {stop}
         ORDER BY b.start
        """
    ).format(
        oid=Literal(oid),
        type=SQL(type_name),
        column=Literal(within.column),
        start=Literal(within.start),
        stop=Literal(within.stop),
        quote=Literal("'"),
    )


def partition_ranges(oid: int, within: Range, type_name: str) -> Composed:
    """Find which parts of a range the partitions take, where its column is their only key.

    The first row is an empty range; there is none at all where the table is partitioned in another
    way, or where a default partition takes the rest. Bounds are printed as `partitions` says;
    MINVALUE and MAXVALUE are the ends of the range. CASE keeps the planner from reading those of
    other tables, which may be of other types, before it joins.
    """
    return SQL(
        """
        WITH parent AS (
              SELECT p.partrelid AS oid
                FROM pg_catalog.pg_partitioned_table p
                JOIN pg_catalog.pg_attribute a
                  ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
               WHERE p.partrelid = {oid} AND a.attname = {column}
                 AND p.partstrat = 'r' AND p.partnatts = 1 AND p.partdefid = 0)
        SELECT ({start})::{type} AS start, ({start})::{type} AS stop FROM parent
         UNION ALL
        SELECT greatest(b.start, {start}), least(b.stop, {stop})
          FROM (SELECT CASE WHEN found[1] = 'MINVALUE' THEN ({start})::{type}
                            ELSE pg_catalog.btrim(found[1], {quote})::{type} END,
                       CASE WHEN found[2] = 'MAXVALUE' THEN ({stop})::{type}
                            ELSE pg_catalog.btrim(found[2], {quote})::{type} END
                  FROM parent
                  JOIN pg_catalog.pg_inherits i
                    ON i.inhparent = parent.oid AND NOT i.inhdetachpending
                  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
                 CROSS JOIN LATERAL pg_catalog.regexp_match(
                           CASE WHEN i.inhparent = parent.oid AND i.inhrelid = c.oid
                                THEN pg_catalog.pg_get_expr(c.relpartbound, 0::oid) END,
                           $re$^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$$re$) AS found
               ) AS b (start, stop)
         WHERE b.start < {stop} AND b.stop > {start}
         ORDER BY 1, 2
        """
    ).format(
        oid=Literal(oid),
        type=SQL(type_name),
        column=Literal(within.column),
        start=Literal(within.start),
        stop=Literal(within.stop),
        quote=Literal("'"),
    )


def sends_truncate(oid: int) -> Composed:
    """Ask whether a TRUNCATE of the table goes to subscribers."""
    return SQL(
        """
        SELECT EXISTS (SELECT 1
                         FROM pg_catalog.pg_publication p
                        CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname) AS t
                        WHERE p.pubtruncate AND t.relid = {})
        """
    ).format(Literal(oid))


def upkeep(oid: int) -> Composed:
    """Read whether a table or a partition of it is unlogged, and how many of its rows are dead."""
    return SQL(
        """
        SELECT coalesce(bool_or(c.relpersistence = 'u'), false),
               coalesce(sum(pg_catalog.pg_stat_get_live_tuples(c.oid)), 0)::int8,
               coalesce(sum(pg_catalog.pg_stat_get_dead_tuples(c.oid)), 0)::int8
          FROM pg_catalog.pg_class c WHERE c.oid IN ({tree})
        """
    ).format(tree=_tree(Literal(oid)))


@lru_cache(maxsize=64)
def references(oid: int) -> Composed:
    """Find the foreign keys that point at this table or at any of its partition tree.

    A key that points at a partitioned table has a row for each partition; the first one counts.
    """
    return SQL(
        """
        SELECT k.conname, n.nspname || '.' || c.relname,
               action.of ->> k.confdeltype::text, action.of ->> k.confupdtype::text,
               k.condeferrable AND k.confdeltype = 'a' AS is_deferrable,
               ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey)) AS columns,
               k.conrelid = k.confrelid AS is_own
          FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN (
               SELECT pg_catalog.jsonb_build_object(
                          'a', 'no action', 'c', 'cascade', 'd', 'set default',
                          'n', 'set null', 'r', 'restrict')) AS action (of)
         WHERE k.contype = 'f' AND k.conparentid = 0
           -- since 18
           AND coalesce((pg_catalog.to_jsonb(k) ->> 'conenforced')::bool, true)
           AND (k.confrelid IN (SELECT a.relid::oid
                                  FROM pg_catalog.pg_partition_ancestors({oid}) a)
                OR k.confrelid IN ({tree}))
         ORDER BY 2, 1
        """
    ).format(oid=Literal(oid), tree=_tree(Literal(oid)))
