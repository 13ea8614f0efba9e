"""The slice in SQL: its predicate, its zone's offsets, its cost, the rows that belong to no day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from copypipe.slices import Pages, Slice, Where, Whole
from copypipe.statements.expressions import within_parentheses
from copypipe.tables import OwnedSequence, Table

# Offsets are sampled this many seconds apart and each change between two samples is then found to
# the second. No zone has ever changed twice within a quarter of an hour.
_SAMPLE_SECONDS = 900


def predicate(slice_: Slice) -> Composable:
    """Return the condition for WHERE: plain comparisons that an index on the column serves.

    What the user wrote stands in parentheses and on lines of its own, as it was checked
    (`statements.expressions`).
    """
    if isinstance(slice_, Whole):
        return SQL("true")
    if isinstance(slice_, Pages):
        return _within_pages(slice_)
    if isinstance(slice_, Where):
        condition = within_parentheses(slice_.condition)
        if isinstance(slice_.within, Whole):
            return condition
        return SQL("{} AND {}").format(predicate(slice_.within), condition)
    column = Identifier(slice_.column)
    condition = SQL("{0} >= {1} AND {0} < {2}").format(
        column, Literal(slice_.start), Literal(slice_.stop)
    )
    for start, stop in slice_.holes:
        condition += SQL(" AND NOT ({0} >= {1} AND {0} < {2})").format(
            column, Literal(start), Literal(stop)
        )
    return condition


def _within_pages(pages: Pages) -> Composable:
    """Return the condition for a TID range scan, which reads just these pages (PostgreSQL 14)."""
    bounds = [
        SQL("ctid {} {}::tid").format(SQL(sign), Literal(f"({page},0)"))
        for sign, page in ((">=", pages.start), ("<", pages.stop))
        if page is not None
    ]
    return SQL(" AND ").join(bounds) if bounds else SQL("true")


def zone_is_listed(zone: str) -> Composed:
    """Ask whether the server lists a zone of that name; letter case does not matter to it."""
    return SQL(
        """
        SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_timezone_names z
                        WHERE pg_catalog.lower(z.name) = pg_catalog.lower({}))
        """
    ).format(Literal(zone))


def today(zone: str) -> Composed:
    """Ask for today's date in the zone, by the server's clock."""
    return SQL("SELECT (pg_catalog.clock_timestamp() AT TIME ZONE {})::date").format(Literal(zone))


def offsets(zone: str, start: datetime, stop: datetime) -> Composed:
    """Ask for the zone's offsets in ``[start, stop)``.

    Rows: the instant from which an offset holds, and the offset in seconds; the first is `start`.
    """
    return SQL(
        """
        WITH sample AS (
            SELECT t,
                   extract(epoch FROM (t AT TIME ZONE {zone}) - (t AT TIME ZONE 'UTC'))::int4 AS o
              FROM pg_catalog.generate_series({start}, {stop}, {step} * interval '1 second') AS t),
        step AS (
            SELECT t, o, pg_catalog.lag(o) OVER (ORDER BY t) AS before FROM sample)
        SELECT CASE WHEN before IS NULL THEN t ELSE
                 (SELECT pg_catalog.min(s)
                    FROM pg_catalog.generate_series(t - {step} * interval '1 second', t,
                                                    interval '1 second') AS s
                   WHERE extract(epoch FROM (s AT TIME ZONE {zone}) - (s AT TIME ZONE 'UTC'))::int4
                         = o)
               END AS instant, o AS seconds
          FROM step
         WHERE before IS NULL OR o <> before
         ORDER BY t
        """
    ).format(
        zone=Literal(zone), start=Literal(start), stop=Literal(stop), step=Literal(_SAMPLE_SECONDS)
    )


def offsets_within(zone: str, windows: Sequence[tuple[datetime, datetime]]) -> Composed:
    """Ask for the zone's offsets in several stretches of time at once.

    Rows: the place of the stretch, counted from 1, and what `offsets` tells of it.
    """
    return SQL(
        """
        SELECT w.place, c.instant,
               extract(epoch FROM (c.instant AT TIME ZONE {zone})
                                  - (c.instant AT TIME ZONE 'UTC'))::int4 AS seconds
          FROM unnest({starts}, {stops}) WITH ORDINALITY AS w (start, stop, place),
               LATERAL (
                SELECT w.start AS instant
                 UNION ALL
                SELECT (SELECT pg_catalog.min(s)
                          FROM pg_catalog.generate_series(t - {step} * interval '1 second', t,
                                                          interval '1 second') AS s
                         WHERE (s AT TIME ZONE {zone}) - (s AT TIME ZONE 'UTC')
                               = (t AT TIME ZONE {zone}) - (t AT TIME ZONE 'UTC'))
                  FROM pg_catalog.generate_series(w.start + {step} * interval '1 second', w.stop,
                                                  {step} * interval '1 second') AS t
                 WHERE (t AT TIME ZONE {zone}) - (t AT TIME ZONE 'UTC')
                       <> ((t - {step} * interval '1 second') AT TIME ZONE {zone})
                          - ((t - {step} * interval '1 second') AT TIME ZONE 'UTC')) AS c
         ORDER BY w.place, c.instant
        """
    ).format(
        zone=Literal(zone),
        starts=Literal([start for start, _ in windows]),
        stops=Literal([stop for _, stop in windows]),
        step=Literal(_SAMPLE_SECONDS),
    )


def cost(statement: Composable) -> Composed:
    """Ask the planner how it would run `statement`; nothing is run."""
    return SQL("EXPLAIN (FORMAT JSON) {}").format(statement)


def any_without_day(table: Table, column: str) -> Composed:
    """Ask whether rows have no day: a column that is NULL, or infinite.

    An index serves both, but without statistics the planner prefers to read the whole table: ask
    it not to (enable_seqscan).
    """
    return SQL(
        """
        SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} IS NULL),
               EXISTS (SELECT 1 FROM {table} WHERE {column} IN ('infinity', '-infinity'))
        """
    ).format(table=Identifier(table.schema, table.name), column=Identifier(column))


def highest(table: Table, column: str, given_by: OwnedSequence | None) -> Composed:
    """Ask for the highest number of a column, and for the clock after that was found.

    What a sequence has not given yet does not count: somebody wrote it. NULL in the first column
    where the role may not see how far the sequence is; the view asks for that right.
    """
    last: Composable = SQL("NULL::int8")
    if given_by is not None:
        last = SQL(
            """
            (SELECT s.last_value FROM pg_catalog.pg_sequences s
              WHERE s.schemaname = {} AND s.sequencename = {})
            """
        ).format(Literal(given_by.schema), Literal(given_by.name))
    return SQL(
        """
        SELECT {is_seen}, least(found.number, found.last)::int8, pg_catalog.clock_timestamp()
          FROM (SELECT max({column}) AS number, {last} AS last FROM {table} OFFSET 0) AS found
        """
    ).format(
        is_seen=SQL("true") if given_by is None else SQL("found.last IS NOT NULL"),
        column=Identifier(column),
        last=last,
        table=Identifier(table.schema, table.name),
    )
