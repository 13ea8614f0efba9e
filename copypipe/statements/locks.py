"""Advisory locks: those of slices, and one that tells whether two connections share a database."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composed, Literal

from copypipe.slices import Lock


def take(locks: Sequence[Lock], table_oid: int) -> Composed:
    """Take the locks of a slice one after the other, in the order given.

    They belong to the transaction: PostgreSQL frees them when it ends, however it ends.
    """
    keys = [lock.key(table_oid) for lock in locks]
    exclusive = [lock.exclusive for lock in locks]
    return SQL(
        """
        SELECT CASE WHEN l.exclusive THEN pg_catalog.pg_advisory_xact_lock(l.key)
                    ELSE pg_catalog.pg_advisory_xact_lock_shared(l.key) END
          FROM unnest({keys}::int8[], {exclusive}::bool[]) AS l (key, exclusive)
        """
    ).format(keys=Literal(keys), exclusive=Literal(exclusive))


def holders(locks: Sequence[Lock], table_oid: int) -> Composed:
    """Find the backends whose locks stand in the way of these, and which bear our own name.

    pg_locks shows a 64-bit key in two halves: classid the high one, objid the low one, objsubid 1.
    """
    keys = [lock.key(table_oid) for lock in locks]
    exclusive = [lock.exclusive for lock in locks]
    return SQL(
        """
        SELECT DISTINCT l.pid,
               EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity a
                        WHERE a.pid = l.pid AND a.application_name
                              = pg_catalog.current_setting('application_name')) AS own
          FROM pg_catalog.pg_locks l
          JOIN pg_catalog.pg_database d ON d.oid = l.database
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
           AND d.datname = pg_catalog.current_database()
           AND l.pid <> pg_catalog.pg_backend_pid()
           AND EXISTS (SELECT 1 FROM unnest({keys}::int8[], {exclusive}::bool[]) AS w (key, alone)
                        WHERE w.key = ((l.classid::int8 << 32) | l.objid::int8)
                          AND (w.alone OR l.mode = 'ExclusiveLock'))
         ORDER BY 1
        """
    ).format(keys=Literal(keys), exclusive=Literal(exclusive))


def busy(keys: Sequence[int]) -> Composed:
    """Take these keys alone, as far as nobody has them; places of the others, counted from 1."""
    return SQL(
        """
        SELECT l.place FROM unnest({}::int8[]) WITH ORDINALITY AS l (key, place)
         WHERE NOT pg_catalog.pg_try_advisory_xact_lock(l.key) ORDER BY l.place
        """
    ).format(Literal(list(keys)))


def is_free(key: int) -> Composed:
    """Ask whether no other session has that key alone; where none has, this one shares it then."""
    return SQL("SELECT pg_catalog.pg_try_advisory_xact_lock_shared({})").format(Literal(key))


def try_key(key: int) -> Composed:
    """Take a lock of that key unless another session has it."""
    return SQL("SELECT pg_catalog.pg_try_advisory_xact_lock({})").format(Literal(key))
