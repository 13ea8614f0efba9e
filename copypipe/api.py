"""The Python face: one call copies one slice, another one compares many.

The engine never prints, never exits and leaves signals to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from copypipe import attempts, backfills, migrations, requests, slices, verdicts
from copypipe.backfills import Order
from copypipe.comparisons import Failed
from copypipe.errors import UsageError
from copypipe.events import Listener, ignore
from copypipe.inventory import Asked
from copypipe.migrations import Migrated
from copypipe.migrations.options import DEFAULT_JOBS, DEFAULT_PART_BYTES
from copypipe.requests import (
    DEFAULT_RETRIES,
    DEFAULT_RETRY_SECONDS,
    DEFAULT_SETTLE_SECONDS,
    DEFAULT_WAIT_SECONDS,
    Clear,
    Connect,
    Endpoint,
    Hazard,
    Mode,
    Request,
    Transport,
    Verify,
)
from copypipe.slices import Bound, DaysAgo
from copypipe.transfers import Transferred
from copypipe.verdicts import Options, Repair, Verdict


def copy(
    table: str,
    *,
    source: str | Connect,
    dest: str | Connect,
    into: str | None = None,
    day: str | date | None = None,
    month: str | None = None,
    start: str | Bound | None = None,
    stop: str | Bound | None = None,
    all: bool = False,
    where: str | None = None,
    query: str | None = None,
    columns: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    cast: Sequence[str] = (),
    allow_lossy: Sequence[str] = (),
    by: str = "created_at",
    timezone: str = "UTC",
    mode: Mode = "replace",
    clear: Clear = "delete",
    swap: bool = False,
    key: Sequence[str] = (),
    merge_deletes: bool = False,
    again: bool = False,
    sequences: bool = False,
    accept: Sequence[Hazard] = (),
    min_ratio: float | None = None,
    allow_empty: bool = False,
    fail_on_empty: bool = False,
    rate_limit: int | None = None,
    verify: Verify = "count",
    transport: Transport = "auto",
    stall_timeout: float | None = None,
    wait_lock: float = DEFAULT_WAIT_SECONDS,
    retries: int = DEFAULT_RETRIES,
    retry_delay: float = DEFAULT_RETRY_SECONDS,
    settle: float = DEFAULT_SETTLE_SECONDS,
    ledger: bool = True,
    ascending: bool = False,
    allow_reverse: bool = False,
    source_set: Mapping[str, str] | None = None,
    dest_set: Mapping[str, str] | None = None,
    yes: bool = False,
    notices: bool = False,
    listener: Listener = ignore,
) -> Transferred:
    """Copy one slice of `table` from source to dest, in one transaction of the dest.

    `source` and `dest` are connection strings as libpq takes them (a URI, keywords, service=NAME),
    or callables that return an open psycopg connection, which is closed in the end. The slice is
    `day`, `month`, `start` with `stop` (half-open), or `all`; days are ISO dates, "today",
    "yesterday", "-3d" or `datetime.date`, counted in `timezone`. With `all`, `yes` must say that
    rows of the dest may be replaced. `where` is one SQL expression that narrows a range, or is the
    slice by itself; it is evaluated on both sides.

    `query` is read at the source in the place of `table`, which then names the dest's alone.
    `columns` gives SQL expressions over what is read by the column of the dest that they fill;
    `exclude` names columns that do not go over. All three are evaluated by the source, in a
    read-only transaction and with an empty search_path. They are SQL: never make them of text
    that you do not trust.

    Columns of different types go over where that loses nothing or raises an error. `cast` names
    columns that the source shall cast to the dest's type, where each value must come back the same;
    `allow_lossy` those where it need not. `rate_limit` is in bytes a second, `wait_lock` and
    `stall_timeout` (how long a server may be silent; None for ever) in seconds.

    `mode` is "replace", "append" (adds the rows; refused for what the ledger tells of, unless
    `again`) or "merge" (inserts what is new and updates what has changed, by the primary key or the
    columns of `key`; with `merge_deletes` rows of the slice that the source lacks are removed).
    With `swap` a new table is filled beside the old one, or one beside each partition of the slice,
    and takes its place. `min_ratio` refuses to replace a slice by less than that part of its rows.
    `sequences` lets those of copied columns go on behind their maximum.
    `accept` names what would be refused and is meant: "references", "cascade", "triggers".

    What passes (a lost connection, a deadlock) is tried again, `retries` times, `retry_delay`
    seconds later at first. The dest's schema `copypipe`, made on first need, records what was
    committed, unless `ledger` is False. A slice is recorded as open, not sealed, while rows may
    still come into it; `settle` is how many seconds after its end that is taken to be over where
    the transactions of the source cannot be seen. `ascending` takes the numbers of the slice column
    to be given in ascending order, where no sequence shows that. `allow_reverse` copies from a
    table that is filled from this dest.

    `verify` "checksum" has both servers compute a digest of the rows, which must be equal before
    the dest commits, or `Differs` is raised.

    `source_set` and `dest_set` set parameters of the servers within our transactions there.

    Returns what was done: rows, bytes, seconds, deleted, slice. Raises a CopypipeError, and then
    the dest holds what it held before; after `CommitUnknown` it may hold the new slice instead.
    `listener` is called with each event in the calling thread; with `notices` also for what the
    servers say below WARNING.
    """
    request = Request(
        source=Endpoint(source, "argument source", tuple((source_set or {}).items())),
        dest=Endpoint(dest, "argument dest", tuple((dest_set or {}).items())),
        table=table,
        into=into,
        wanted=wanted(day=day, month=month, start=start, stop=stop, everything=all, where=where),
        where=where,
        query=query,
        columns=tuple((columns or {}).items()),
        exclude=names("exclude", exclude),
        cast=names("cast", cast),
        allow_lossy=names("allow_lossy", allow_lossy),
        rate_limit=rate_limit,
        verify=verify,
        transport=transport,
        stall_timeout=stall_timeout,
        by=by,
        timezone=timezone,
        mode=mode,
        clear=clear,
        swap=swap,
        key=names("key", key),
        merge_deletes=merge_deletes,
        again=again,
        sequences=sequences,
        accept=tuple(accept),
        min_ratio=min_ratio,
        allow_empty=allow_empty,
        fail_on_empty=fail_on_empty,
        wait_lock=wait_lock,
        retries=retries,
        retry_delay=retry_delay,
        settle=settle,
        ledger=ledger,
        ascending=ascending,
        allow_reverse=allow_reverse,
        yes=yes,
        notices=notices,
    )
    return attempts.copy(request, listener, lambda plan: False)


def backfill(
    table: str,
    *,
    source: str | Connect,
    dest: str | Connect,
    into: str | None = None,
    month: str | None = None,
    start: str | Bound | None = None,
    stop: str | Bound | None = None,
    every: slices.Every = "day",
    jobs: int = 1,
    order: Order = "oldest",
    again: bool = False,
    fail_fast: bool = False,
    min_slice: timedelta | int | None = None,
    snapshot: bool = False,
    max_replica_lag: float | None = None,
    query: str | None = None,
    columns: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    cast: Sequence[str] = (),
    allow_lossy: Sequence[str] = (),
    by: str = "created_at",
    timezone: str = "UTC",
    mode: Mode = "replace",
    clear: Clear = "delete",
    swap: bool = False,
    key: Sequence[str] = (),
    merge_deletes: bool = False,
    sequences: bool = False,
    accept: Sequence[Hazard] = (),
    min_ratio: float | None = None,
    allow_empty: bool = False,
    rate_limit: int | None = None,
    verify: Verify = "count",
    transport: Transport = "auto",
    stall_timeout: float | None = None,
    wait_lock: float = DEFAULT_WAIT_SECONDS,
    retries: int = DEFAULT_RETRIES,
    retry_delay: float = DEFAULT_RETRY_SECONDS,
    settle: float = DEFAULT_SETTLE_SECONDS,
    ascending: bool = False,
    allow_reverse: bool = False,
    yes: bool = False,
    source_set: Mapping[str, str] | None = None,
    dest_set: Mapping[str, str] | None = None,
    notices: bool = False,
    listener: Listener = ignore,
) -> Backfilled:
    """Copy a range of `table` slice by slice, `jobs` at a time; what the ledger covers is left out.

    Each `every` (day, hour, week, month) is a slice with a transaction of its own. Any number of
    calls may share a range, on one machine or on many: each slice is copied once. `again` copies
    also what the ledger covers; `fail_fast` begins no further slice after one that failed, which
    otherwise do not stop the others. A slice that a timeout or a standby's replay ends is halved,
    down to `min_slice`. With `snapshot` all slices are read in one snapshot of the source. No slice
    is begun while a standby of either side is more than `max_replica_lag` seconds behind. The other
    arguments are those of `copy`.

    Returns what became of the slices; raises a CopypipeError where nothing could be begun, and then
    nothing was changed. `listener` is called from several threads, one at a time.
    """
    request = Request(
        source=Endpoint(source, "argument source", tuple((source_set or {}).items())),
        dest=Endpoint(dest, "argument dest", tuple((dest_set or {}).items())),
        table=table,
        into=into,
        wanted=wanted(month=month, start=start, stop=stop),
        query=query,
        columns=tuple((columns or {}).items()),
        exclude=names("exclude", exclude),
        cast=names("cast", cast),
        allow_lossy=names("allow_lossy", allow_lossy),
        rate_limit=rate_limit,
        verify=verify,
        transport=transport,
        stall_timeout=stall_timeout,
        by=by,
        timezone=timezone,
        mode=mode,
        clear=clear,
        swap=swap,
        key=names("key", key),
        merge_deletes=merge_deletes,
        again=again and mode == "append",
        sequences=sequences,
        accept=tuple(accept),
        min_ratio=min_ratio,
        allow_empty=allow_empty,
        wait_lock=wait_lock,
        retries=retries,
        retry_delay=retry_delay,
        settle=settle,
        ascending=ascending,
        allow_reverse=allow_reverse,
        yes=yes,
        notices=notices,
    )
    options = backfills.Options(
        every=every,
        jobs=jobs,
        order=order,
        again=again,
        fail_fast=fail_fast,
        min_slice=min_slice,
        snapshot=snapshot,
        max_replica_lag=max_replica_lag,
    )
    found, outcomes = backfills.backfill(request, options, listener)
    tally = backfills.Tally()
    for outcome in outcomes:
        tally.add(outcome)
    return Backfilled(
        table=found.table,
        slices=found.parts,
        skipped=found.skipped + tally.skipped,
        copied=tuple(tally.copied),
        failed=tuple(tally.failed),
    )


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What became of the slices of a range."""

    table: str
    slices: int
    skipped: int
    """Those that the ledger covered, or another call copied meanwhile."""
    copied: tuple[Transferred, ...]
    failed: tuple[Failed, ...]
    """Each with its `slice` and `error`; the dest holds there what it held."""


def verify(
    table: str,
    *,
    source: str | Connect,
    dest: str | Connect,
    into: str | None = None,
    day: str | date | None = None,
    month: str | None = None,
    start: str | Bound | None = None,
    stop: str | Bound | None = None,
    all: bool = False,
    where: str | None = None,
    every: slices.Every | None = "day",
    query: str | None = None,
    columns: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    cast: Sequence[str] = (),
    allow_lossy: Sequence[str] = (),
    by: str = "created_at",
    timezone: str = "UTC",
    key: Sequence[str] = (),
    jobs: int = 1,
    show_rows: bool = False,
    record: bool = False,
    repair: Repair = "none",
    allow_empty: bool = False,
    min_ratio: float | None = None,
    yes: bool = False,
    wait_lock: float = DEFAULT_WAIT_SECONDS,
    retries: int = DEFAULT_RETRIES,
    retry_delay: float = DEFAULT_RETRY_SECONDS,
    settle: float = DEFAULT_SETTLE_SECONDS,
    ascending: bool = False,
    source_set: Mapping[str, str] | None = None,
    dest_set: Mapping[str, str] | None = None,
    listener: Listener = ignore,
) -> list[Verdict | Failed]:
    """Compare slices of `table` on both sides, by digests that both servers compute.

    Of a range each `every` (day, hour, week, month; None for one slice) gets a verdict of its own,
    `jobs` of them are compared at a time. The rows that differ are told by the primary key or the
    columns of `key`; with `show_rows` all their values. The other arguments are those of `copy`,
    and have to be those with which the rows were copied.

    `record` enters slices that are the same into the ledger of the dest; `repair` copies what
    differs again, as "slices", or as single "rows" where few of them differ and the dest has a key.

    Returns what was found of each slice: a Verdict, or Failed for one of which nothing could be
    told. Raises a CopypipeError where the tables cannot be compared at all. Without `record` and
    `repair` nothing is changed.
    """
    request = Request(
        source=Endpoint(source, "argument source", tuple((source_set or {}).items())),
        dest=Endpoint(dest, "argument dest", tuple((dest_set or {}).items())),
        table=table,
        into=into,
        wanted=wanted(day=day, month=month, start=start, stop=stop, everything=all, where=where),
        where=where,
        query=query,
        columns=tuple((columns or {}).items()),
        exclude=names("exclude", exclude),
        cast=names("cast", cast),
        allow_lossy=names("allow_lossy", allow_lossy),
        by=by,
        timezone=timezone,
        allow_empty=allow_empty,
        min_ratio=min_ratio,
        yes=yes,
        wait_lock=wait_lock,
        retries=retries,
        retry_delay=retry_delay,
        settle=settle,
        ascending=ascending,
    )
    options = Options(
        every=every,
        jobs=jobs,
        key=names("key", key),
        show_rows=show_rows,
        record=record,
        repair=repair,
    )
    return list(verdicts.verify(request, options, listener))


def migrate(
    *tables: str,
    source: str | Connect,
    dest: str | Connect,
    schemas: Sequence[str] = (),
    all: bool = False,
    exclude: Sequence[str] = (),
    into: Sequence[str] = (),
    jobs: int = DEFAULT_JOBS,
    part_size: int = DEFAULT_PART_BYTES,
    schema: bool = True,
    owner: bool = False,
    acl: bool = False,
    defer_indexes: bool = False,
    replace: bool = False,
    resume: bool = False,
    migration: str | None = None,
    consistent: bool = True,
    limit: int | None = None,
    verify: Verify = "count",
    transport: Transport = "auto",
    rate_limit: int | None = None,
    wait_lock: float = DEFAULT_WAIT_SECONDS,
    retries: int = DEFAULT_RETRIES,
    retry_delay: float = DEFAULT_RETRY_SECONDS,
    source_set: Mapping[str, str] | None = None,
    dest_set: Mapping[str, str] | None = None,
    notices: bool = False,
    listener: Listener = ignore,
) -> Migrated:
    """Move whole tables once: definitions, rows in one snapshot, then indexes, keys and sequences.

    `tables` are names or patterns (* and ? stand for any characters), or there are `schemas`, or
    `all` tables of the database; `exclude` are patterns of those that stay. What the dest lacks is
    made as pg_dump tells it, with all that the tables depend on, unless `schema` is False: then
    `into` may say other names (a schema for all, or pairs as "a=b" and "a.t=b.u"), and
    `defer_indexes` drops plain indexes of the dest and makes them again behind the rows. `owner`
    and `acl` bring owners and grants too. A table that holds rows is refused, unless they are to be
    removed (`replace`).

    `jobs` parts, indexes and checks are done at a time; a table of at least two parts of
    `part_size` bytes is cut. `limit` copies not more rows of each table, for a rehearsal. The other
    arguments are those of `copy`; `rate_limit` is for each job.

    What is done is told in the ledger of the dest. `resume` goes on with a migration that has not
    ended (`migration` is its id, where there are several): tables that are there stay, one that was
    copied in part begins anew, in a new snapshot; unless `consistent` is False, then its other
    parts are copied and both sides compared.

    Returns what became of each table; where some failed, `failed` tells why, and `is_ended` is
    False. Raises a CopypipeError where nothing could be begun, or the whole was ended; what was
    committed stays. `listener` is called from several threads, one at a time.
    """
    options = migrations.Options(
        source=Endpoint(source, "argument source", tuple((source_set or {}).items())),
        dest=Endpoint(dest, "argument dest", tuple((dest_set or {}).items())),
        asked=Asked(tables, tuple(schemas), all, tuple(exclude)),
        into=tuple(into),
        jobs=jobs,
        part_bytes=part_size,
        schema=schema,
        owner=owner,
        acl=acl,
        defer_indexes=defer_indexes,
        replace=replace,
        resume=resume,
        migration=migration,
        consistent=consistent,
        limit=limit,
        verify=verify,
        transport=transport,
        rate_limit=rate_limit,
        wait_lock=wait_lock,
        retries=retries,
        retry_delay=retry_delay,
        notices=notices,
    )
    return migrations.Migration(options, listener)()


def wanted(
    *,
    day: str | date | None = None,
    month: str | None,
    start: str | Bound | None,
    stop: str | Bound | None,
    everything: bool = False,
    where: str | None = None,
) -> slices.Wanted:
    """Return the one slice that arguments ask for; raises UsageError for none and for several."""
    return requests.wanted(
        day=slices.day(_day(day)) if day is not None else None,
        month=slices.month(month) if month is not None else None,
        start=_bound(start),
        stop=_bound(stop),
        everything=everything,
        where=where,
    )


def names(argument: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns; raises UsageError for one text, which is a sequence of letters."""
    if isinstance(values, str):  # a sequence too, of letters
        raise UsageError(f"{argument} is a list of names of columns, not one text")
    return tuple(values)


def _day(value: str | date) -> date | DaysAgo:
    return slices.parse_day(value) if isinstance(value, str) else slices.plain(value)


def _bound(value: str | Bound | None) -> Bound | DaysAgo | None:
    if isinstance(value, str):
        return slices.parse_bound(value)
    return slices.plain(value) if isinstance(value, date) else value
