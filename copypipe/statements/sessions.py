"""Transactions and the settings in which they run.

All settings are SET LOCAL in each transaction: a session setting would leak to the next client of
a transaction pooler, and `SELECT set_config()` would take the transaction's snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

from psycopg.sql import SQL, Composed, Identifier
from psycopg.sql import Literal as Value

Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]

# What makes values read the same on every server, and statements see the same rows. Names and
# values are PostgreSQL's (runtime-config-client); pg_dump and postgres_fdw pin most of them for the
# same reason.
PINNED: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    # What ends a literal must not differ between checking a user's SQL and running it.
    "standard_conforming_strings": "on",
    # Nor may what it means differ between the two servers (`= NULL`, '{NULL}', 'IST').
    "transform_null_equals": "off",
    "array_nulls": "on",
    "timezone_abbreviations": "Default",
    "xmloption": "content",
    # The names of objects are values too (regclass), and told apart by how they are written.
    "quote_all_identifiers": "off",
    # A NOTICE for each row would cost more than the row, and may quote it.
    "client_min_messages": "warning",
    # Row security must raise an error instead of silently hiding rows, as in pg_dump.
    "row_security": "off",
    # Rows arrive in the order in which they lie, or the dest's physical order would be random.
    "synchronize_seqscans": "off",
    # One of two servers always waits for the other one, and that may take as long as a slice does.
    # How long a statement may take is the role's matter (statement_timeout, transaction_timeout).
    "idle_in_transaction_session_timeout": "0",
    # A peer that vanished is noticed by a server that waits for it after about a minute. Without
    # effect on unix sockets.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # A peer that reads nothing for a while is no lost one: the dest may wait for a lock, the relay
    # rest (--rate-limit). The kernel would end the connection all the same (tcp(7)).
    "tcp_user_timeout": "0",
}

# What nobody else may set: what the meaning of a copy depends on, and what is set for single
# transactions beside these.
FIXED = frozenset(name.lower() for name in PINNED) - {
    "client_min_messages",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
} | {
    "application_name",
    "default_transaction_isolation",
    "lc_monetary",
    "lock_timeout",
    "search_path",
    "transaction_isolation",
    "transaction_read_only",
}


def begin(
    isolation: Isolation,
    *,
    read_only: bool,
    local: Mapping[str, str],
    snapshot: str | None = None,
) -> Composed:
    """Begin a transaction and its settings, in one message to the server.

    `snapshot` is one that another transaction has exported; nothing may come before it.
    """
    access = SQL("READ ONLY") if read_only else SQL("READ WRITE")
    lines = [SQL("BEGIN ISOLATION LEVEL {} {}").format(SQL(isolation), access)]
    if snapshot is not None:
        lines.append(SQL("SET TRANSACTION SNAPSHOT {}").format(Value(snapshot)))
    lines += [set_local(name, value) for name, value in local.items()]
    return SQL("; ").join(lines)


def set_local(name: str, value: str) -> Composed:
    """Set one parameter until the end of the transaction."""
    return SQL("SET LOCAL {} = {}").format(Identifier(name), Value(value))


def reset_local(name: str) -> Composed:
    """Take a parameter back to what the session began with, until the end of the transaction."""
    return SQL("SET LOCAL {} TO DEFAULT").format(Identifier(name))


def empty_search_path() -> Composed:
    """Leave pg_catalog alone in the search path, as pg_dump does."""
    return SQL("SET LOCAL search_path = ''").format()


@cache
def commit() -> Composed:
    """Commit; the answer's tag must be read, an aborted transaction answers ROLLBACK."""
    return SQL("COMMIT").format()


@cache
def rollback() -> Composed:
    """Roll back."""
    return SQL("ROLLBACK").format()


@cache
def backend_pid() -> Composed:
    """Ask for the process that answers."""
    return SQL("SELECT pg_catalog.pg_backend_pid()").format()


def activity(pid: int, application_name: str) -> Composed:
    """Ask what another session of this role is doing, and which backends hold what it waits for.

    A pooler may tell a number that is somebody else's; the name is that of one run. Also tells how
    many bytes its COPY has read or written.
    """
    return SQL(
        """
        SELECT a.state, a.wait_event_type, a.wait_event, pg_catalog.pg_blocking_pids(a.pid),
               (SELECT p.bytes_processed FROM pg_catalog.pg_stat_progress_copy p
                 WHERE p.pid = a.pid)
          FROM pg_catalog.pg_stat_activity a
         WHERE a.pid = {} AND a.application_name = {}
        """
    ).format(Value(pid), Value(application_name))


@cache
def system_identifier() -> Composed:
    """Ask which cluster it is. Managed services may forbid that, so the right is asked for first;
    it is checked before the statement runs, also within a CASE that would not come to it.
    """
    return SQL("SELECT c.system_identifier FROM pg_catalog.pg_control_system() c").format()


@cache
def writers() -> Composed:
    """Ask for the clock, and for the transactions of others in this database, as far as visible.

    now() is the beginning of our transaction, so it comes before the rest. A client that is active
    and in no transaction yet is about to begin one that is stamped with its query_start. Of
    sessions that the role may not see, even the kind is hidden; with track_activities off a session
    tells nothing about itself, and where that was so when its transaction began, it does not tell
    of that later.
    """
    return SQL(
        """
        SELECT pg_catalog.now() AS clock,
               min(coalesce(a.xact_start,
                            CASE WHEN a.state = 'active' AND a.backend_type = 'client backend'
                                 THEN a.query_start END)) AS oldest,
               count(*) FILTER (WHERE a.backend_type IS NULL OR a.state = 'disabled'
                                   OR (a.xact_start IS NULL
                                       AND (a.state LIKE 'idle in transaction%'
                                            OR (a.backend_type = 'client backend'
                                                AND (a.backend_xid IS NOT NULL
                                                     OR a.backend_xmin IS NOT NULL))))) AS unseen,
               pg_catalog.pg_last_xact_replay_timestamp() AS replayed,
               pg_catalog.pg_postmaster_start_time() AS started,
               pg_catalog.pg_is_in_recovery() AS is_standby
          FROM pg_catalog.pg_stat_activity a
         WHERE a.datname = pg_catalog.current_database()
           AND a.pid <> pg_catalog.pg_backend_pid()
           AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
        """
    ).format()


@cache
def instance() -> Composed:
    """Ask which server answers: a standby has the identifier of its primary, but not its start."""
    return SQL(
        "SELECT pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_is_in_recovery()"
    ).format()


def lag(mark: str | None) -> Composed:
    """Ask how far the slowest standby is behind: of this server, or this server itself.

    Columns: whether one can be seen (what a role may not see is NULL, the state included), seconds,
    where the log ends now, and whether all standbys have replayed up to the mark, a former end of
    it. The seconds of a server's standbys stay what they were while one replays nothing
    (LagTrackerRead in walsender.c), so that alone does not tell. A standby that has replayed all it
    has received is not behind, unless it receives nothing: then its last commit tells. Subscribers
    are no standbys; what they have confirmed may stand still for hours.
    """
    return SQL(
        """
        SELECT r.is_standby
               OR EXISTS (SELECT 1 FROM pg_catalog.pg_stat_replication a
                           WHERE a.state IS NOT NULL AND a.pid <> ALL (r.subscribers)),
               extract(epoch FROM CASE
                   WHEN NOT r.is_standby THEN
                       (SELECT max(a.replay_lag) FROM pg_catalog.pg_stat_replication a
                         WHERE a.pid <> ALL (r.subscribers))
                   WHEN pg_catalog.pg_last_wal_receive_lsn()
                        IS DISTINCT FROM pg_catalog.pg_last_wal_replay_lsn()
                        OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_wal_receiver) THEN
                       pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()
               END)::float8,
               CASE WHEN NOT r.is_standby THEN pg_catalog.pg_current_wal_lsn() END::text,
               NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_replication a
                            WHERE NOT r.is_standby AND a.replay_lsn < {mark}::pg_lsn
                              AND a.pid <> ALL (r.subscribers))
          FROM (SELECT pg_catalog.pg_is_in_recovery(),
                       ARRAY(SELECT s.active_pid FROM pg_catalog.pg_replication_slots s
                              WHERE s.slot_type = 'logical' AND s.active_pid IS NOT NULL)
               ) AS r (is_standby, subscribers)
        """
    ).format(mark=Value(mark))


def export_snapshot() -> Composed:
    """Let other transactions read what this one does, as long as it lives."""
    return SQL("SELECT pg_catalog.pg_export_snapshot()").format()


@cache
def heartbeat() -> Composed:
    """Say something."""
    return SQL("SELECT 1").format()


@cache
def position() -> Composed:
    """Ask for the snapshot of the transaction, and how far the log is, replayed on a standby."""
    return SQL(
        """
        SELECT pg_catalog.pg_current_snapshot()::text,
               CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                    ELSE pg_catalog.pg_current_wal_lsn() END::text
        """
    ).format()


@cache
def prepared() -> Composed:
    """Count the prepared transactions of this database."""
    return SQL(
        """
        SELECT count(*) FROM pg_catalog.pg_prepared_xacts p
         WHERE p.database = pg_catalog.current_database()
        """
    ).format()


# By which rules the database sorts text; the columns that hold the locale have had several names.
DATABASE_SORTING = SQL(
    """(SELECT pg_catalog.concat_ws(' ', j ->> 'datlocprovider', j ->> 'datcollate',
                       j ->> 'datctype', coalesce(j ->> 'datlocale', j ->> 'daticulocale'),
                       j ->> 'datcollversion')
                  FROM (SELECT pg_catalog.to_jsonb(d) AS j FROM pg_catalog.pg_database d
                         WHERE d.datname = pg_catalog.current_database()) AS database)"""
)


@cache
def surroundings() -> Composed:
    """Ask what a server is: version, database, settings that change meanings, now."""
    return SQL(
        """
        SELECT pg_catalog.split_part(
                   pg_catalog.current_setting('server_version'), ' ', 1) AS version,
               pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
               (SELECT d.oid::int8 FROM pg_catalog.pg_database d
                 WHERE d.datname = pg_catalog.current_database()) AS database_oid,
               pg_catalog.has_function_privilege(
                   'pg_catalog.pg_control_system()', 'EXECUTE') AS may_be_identified,
               pg_catalog.pg_is_in_recovery() AS in_recovery,
               pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
               pg_catalog.has_database_privilege(
                   pg_catalog.current_database(), 'TEMPORARY') AS may_stage,
               pg_catalog.current_setting('server_encoding') AS encoding,
               pg_catalog.encode(pg_catalog.cash_send(1::int4::money), 'hex') AS money,
               pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
               pg_catalog.current_setting('session_replication_role') = 'replica'
                   AS ignores_triggers,
               pg_catalog.current_setting('restrict_nonsystem_relation_kind', true) IS NOT NULL
                   AS can_restrict,
               pg_catalog.version() LIKE '%linux%' AS on_linux,
               (SELECT s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = 'TimeZone')
                   AS timezone,
               {} AS sorting
        """
    ).format(DATABASE_SORTING)
