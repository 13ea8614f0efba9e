"""What of some definitions is there already: one side names objects, the other looks for them."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Literal


def identities(objects: Sequence[tuple[int, int]]) -> Composed:
    """Ask by which words objects are known: each is the OID of its catalog, and its own.

    Rows: the place among `objects`, counted from 1, the kind of object, and its name as in SQL,
    with its schema and quoted where it must be; none for what is gone.
    """
    return SQL(
        """
        SELECT w.place, i.type, i.identity
          FROM unnest({catalogs}::oid[], {oids}::oid[]) WITH ORDINALITY AS w (catalog, oid, place),
               LATERAL pg_catalog.pg_identify_object(w.catalog, w.oid, 0) AS i
         WHERE i.identity IS NOT NULL
         ORDER BY w.place
        """
    ).format(
        catalogs=Literal([catalog for catalog, _ in objects]),
        oids=Literal([oid for _, oid in objects]),
    )


def there(named: Sequence[tuple[str, str]]) -> Composed:
    """Ask which of these objects there are: each is its kind, and its name as in SQL.

    Rows: the place among `named`, counted from 1. What has no reg* type is compared by its name, of
    all that there are; those are named only where one of them is looked for. Functions too: before
    16 to_regprocedure() raises where the type of an argument is missing.
    """
    return SQL(
        """
        WITH others AS MATERIALIZED (
             SELECT i.type, i.identity
               FROM (SELECT tableoid, oid FROM pg_catalog.pg_am
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_cast
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_conversion
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_foreign_data_wrapper
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_foreign_server
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_language
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_proc
                                 WHERE pronamespace <> 'pg_catalog'::regnamespace
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_opclass
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_operator
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_opfamily
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_transform
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_ts_config
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_ts_dict
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_ts_parser
                      UNION ALL SELECT tableoid, oid FROM pg_catalog.pg_ts_template) AS o,
                    LATERAL pg_catalog.pg_identify_object(o.tableoid, o.oid, 0) AS i)
        SELECT w.place
          FROM unnest({kinds}::text[], {names}::text[]) WITH ORDINALITY AS w (kind, name, place)
         WHERE CASE
                 WHEN w.kind IN ('table', 'foreign table', 'view', 'materialized view', 'sequence')
                      THEN pg_catalog.to_regclass(w.name) IS NOT NULL
                 WHEN w.kind = 'type' THEN pg_catalog.to_regtype(w.name) IS NOT NULL
                 WHEN w.kind = 'collation' THEN pg_catalog.to_regcollation(w.name) IS NOT NULL
                 WHEN w.kind = 'schema' THEN pg_catalog.to_regnamespace(w.name) IS NOT NULL
                 WHEN w.kind = 'extension' THEN EXISTS (
                      SELECT 1 FROM pg_catalog.pg_extension e
                       WHERE pg_catalog.quote_ident(e.extname) = w.name)
                 ELSE EXISTS (SELECT 1 FROM others o
                               WHERE o.type = w.kind AND o.identity = w.name)
               END
         ORDER BY w.place
        """
    ).format(kinds=Literal([kind for kind, _ in named]), names=Literal([name for _, name in named]))
