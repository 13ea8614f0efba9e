"""The statements of the demonstration: a table of users, a month of them, a changed day."""

from __future__ import annotations

from psycopg.sql import SQL, Composed, Literal


def table() -> Composed:
    """Make the table."""
    return SQL(
        """
        CREATE TABLE users (
            id bigint PRIMARY KEY, name text NOT NULL, email text, active boolean,
            balance numeric(12, 2), tags text[], profile jsonb, created_at timestamptz NOT NULL);
        CREATE INDEX users_created_at ON users (created_at)
        """
    ).format()


def fill(rows: int, days: int) -> Composed:
    """Spread rows evenly over days from 2018-04-01 on."""
    return SQL(
        """
        INSERT INTO users
        SELECT i, 'user ' || i, i || '@example.com', i % 3 = 0, i % 1000 / 7.0,
               ARRAY['a', 'b'], jsonb_build_object('n', i),
               timestamptz '2018-04-01 00:00+00' + i * (interval '1 day' * {days} / {rows})
          FROM generate_series(0, {rows} - 1) AS i
        """
    ).format(rows=Literal(rows), days=Literal(days))


def analyze() -> Composed:
    """Let the planner know what is there."""
    return SQL("ANALYZE users").format()


def change(day: str) -> Composed:
    """Delete some users of a day and rename the others."""
    return SQL(
        """
        DELETE FROM users
         WHERE created_at >= {day}::date AND created_at < {day}::date + 1 AND id % 10 = 0;
        UPDATE users SET name = upper(name)
         WHERE created_at >= {day}::date AND created_at < {day}::date + 1
        """
    ).format(day=Literal(day))


def what_is_there(day: str) -> Composed:
    """Ask for the number of users of a day and a digest of them all, in order."""
    return SQL(
        """
        SELECT count(*), md5(string_agg(u::text, ',' ORDER BY id))
          FROM users AS u
         WHERE created_at >= {day}::date AND created_at < {day}::date + 1
        """
    ).format(day=Literal(day))
