"""What a server tells of itself to whoever is about to copy from it or into it."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Literal

# The first major that tells how the session was authenticated (SYSTEM_USER).
TELLS_METHOD = 16


def facts(major: int) -> Composed:
    """Ask about the server, the role, the way to it, and what room is left.

    numbackends is visible to all, while the sessions of others hide what kind they are.
    """
    return SQL(
        """
        SELECT pg_catalog.split_part(
                   pg_catalog.current_setting('server_version'), ' ', 1) AS version,
               current_user::text AS role,
               r.rolsuper AS is_superuser,
               d.datname::text AS database,
               pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding,
               pg_catalog.pg_is_in_recovery() AS in_recovery,
               pg_catalog.host(pg_catalog.inet_server_addr()) AS server_address,
               pg_catalog.inet_server_port() AS server_port,
               pg_catalog.pg_backend_pid() AS pid,
               (SELECT pg_catalog.concat_ws(' ', s.version, s.cipher)
                  FROM pg_catalog.pg_stat_ssl s
                 WHERE s.pid = pg_catalog.pg_backend_pid() AND s.ssl) AS tls,
               coalesce((SELECT g.encrypted FROM pg_catalog.pg_stat_gssapi g
                          WHERE g.pid = pg_catalog.pg_backend_pid()), false) AS gss_encrypted,
               {method} AS method,
               pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
               pg_catalog.current_setting('max_connections')::int4
                   - pg_catalog.current_setting('superuser_reserved_connections')::int4
                   - coalesce(pg_catalog.current_setting('reserved_connections', true)::int4, 0)
                   - (SELECT sum(b.numbackends)::int4 FROM pg_catalog.pg_stat_database b)
                   AS free_connections,
               nullif(r.rolconnlimit, -1) AS role_limit,
               nullif(d.datconnlimit, -1) AS database_limit,
               pg_catalog.current_setting('max_locks_per_transaction')::int8
                   * (pg_catalog.current_setting('max_connections')::int8
                      + pg_catalog.current_setting('max_prepared_transactions')::int8)
                   AS room_for_locks
          FROM pg_catalog.pg_database d
          JOIN pg_catalog.pg_roles r ON r.rolname = current_user
         WHERE d.datname = pg_catalog.current_database()
        """
    ).format(method=SQL("SYSTEM_USER::text" if major >= TELLS_METHOD else "NULL::text"))


def settings(names: Sequence[str], given: Sequence[str], option: str) -> Composed:
    """Read what the role's own sessions have of these parameters, as (name, value, unit, from).

    What we set in our transactions does not count, so it is not `setting`, unless it was `given`
    by the option.
    """
    return SQL(
        """
        SELECT s.name, coalesce(CASE WHEN g.given THEN s.setting ELSE s.reset_val END, ''),
               coalesce(s.unit, ''), CASE WHEN g.given THEN {option} ELSE s.source END
          FROM pg_catalog.pg_settings s
         CROSS JOIN LATERAL (SELECT lower(s.name) = ANY ({given}::text[]) AS given) AS g
         WHERE s.name = ANY ({names}::text[])
        """
    ).format(
        names=Literal(list(names)),
        given=Literal([name.lower() for name in given]),
        option=Literal(option),
    )


def clock() -> Composed:
    """Ask what time it is."""
    return SQL("SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8").format()


def standby() -> Composed:
    """Ask a standby how far it is: what it replayed last, whether it waits for more."""
    return SQL(
        """
        SELECT extract(epoch FROM pg_catalog.clock_timestamp()
                                  - pg_catalog.pg_last_xact_replay_timestamp())::float8 AS seconds,
               coalesce(pg_catalog.pg_last_wal_receive_lsn()
                        = pg_catalog.pg_last_wal_replay_lsn(), false) AS replayed_all,
               pg_catalog.pg_is_wal_replay_paused() AS is_paused
        """
    ).format()


def replicas() -> Composed:
    """Ask which replicas are attached; of those that the role may not see nothing is told."""
    return SQL(
        """
        SELECT coalesce(a.application_name, '')::text, a.state::text, a.sync_state::text,
               extract(epoch FROM a.replay_lag)::float8
          FROM pg_catalog.pg_stat_replication a ORDER BY 1
        """
    ).format()


def relation(oid: int) -> Composed:
    """Ask what else is to be known of a table: whether it is logged, its partitions, its size."""
    return SQL(
        """
        SELECT c.relpersistence = 'u' AS unlogged,
               (SELECT count(*) FROM pg_catalog.pg_partition_tree(c.oid) p
                 WHERE p.isleaf AND c.relkind = 'p') AS partitions,
               (SELECT coalesce(sum(pg_catalog.pg_relation_size(t.oid)), 0)::int8
                  FROM (SELECT c.oid
                         UNION
                        SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(c.oid) p) AS t)
                   AS bytes
          FROM pg_catalog.pg_class c WHERE c.oid = {}
        """
    ).format(Literal(oid))
