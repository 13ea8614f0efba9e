"""The Airflow face: operators that copy and compare the slice of a DAG run.

A task opens its two connections through Airflow's PostgresHook, and then does what `copypipe copy`
does: the servers do the work, the worker passes bytes on. Needs Airflow 3.2 and its PostgreSQL
provider 7, or newer: `pip install "copypipe[airflow]"`. What to schedule how: docs/airflow.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from logging import Logger, getLogger
from typing import Any, Literal, cast, get_args
from urllib.parse import quote
from zoneinfo import ZoneInfo

import psycopg
from airflow.providers.postgres.assets.postgres import create_asset
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from copypipe import api, attempts, calendars, reporting, requests, slices, verdicts
from copypipe.attempts import Ending, Pair
from copypipe.calendars import State
from copypipe.comparisons import Failed
from copypipe.errors import (
    CommitUnknown,
    CopypipeError,
    Differs,
    NothingToCopy,
    Side,
    SliceBusy,
    TooEarly,
    TransientError,
    UsageError,
)
from copypipe.events import Event, Planned
from copypipe.requests import Clear, Endpoint, Hazard, Mode, Request, Transport, Verify
from copypipe.slices import Between, Bound
from copypipe.transfers import Transferred
from copypipe.verdicts import Repair, Verdict
from copypipe.workers import Stop, Stopped

__all__ = ["CopyPipeOperator", "VerifyOperator", "missing_days"]

Flag = bool | str
"""True or False, or what a template renders them as."""

Seconds = float | timedelta | str
"""A duration; as a text in PostgreSQL's units ("10min")."""

INTERVALS = (
    'CronDataIntervalTimetable("0 0 * * *", timezone="UTC") or '
    'CronTriggerTimetable("0 0 * * *", timezone="UTC", interval=timedelta(days=1))'
)
"""Schedules that give each run a day of its own."""

PARTITIONS = 'CronPartitionTimetable(.., run_offset=-1, key_format="%Y-%m-%d")'

# Which failures a later try may mend. That the source has no rows yet is one: the job that fills it
# may be late.
_PASSING = (TransientError, SliceBusy, CommitUnknown, NothingToCopy, TooEarly)

# Of a verification so many slices are named in its XCom: that is no place for a table of years.
_MOST_NAMED = 100


# ----------------------------------------------------------------------------------- operators


class _SliceOperator(BaseOperator):
    """What the operators have in common: the two sides, the slice, what is read."""

    template_fields: Sequence[str] = (
        "source_conn_id",
        "dest_conn_id",
        "table",
        "into",
        "day",
        "month",
        "start",
        "stop",
        "partition_key",
        "all",
        "where",
        "query",
        "columns",
        "exclude",
        "cast",
        "allow_lossy",
        "by",
        "timezone",
        "key",
        "allow_empty",
        "min_ratio",
        "yes",
        "wait_lock",
        "settle",
        "ascending",
        "source_set",
        "dest_set",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"where": "sql", "query": "sql", "columns": "json"}  # noqa: RUF012 - as in BaseOperator

    def __init__(
        self,
        *,
        source_conn_id: str,
        dest_conn_id: str,
        table: str,
        into: str | None = None,
        day: str | date | None = None,
        month: str | None = None,
        start: str | Bound | None = None,
        stop: str | Bound | None = None,
        partition_key: str | None = None,
        all: Flag = False,
        where: str | None = None,
        query: str | None = None,
        columns: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        cast: Sequence[str] = (),
        allow_lossy: Sequence[str] = (),
        by: str = "created_at",
        timezone: str = "UTC",
        key: Sequence[str] = (),
        allow_empty: Flag = False,
        min_ratio: float | str | None = None,
        yes: Flag = False,
        wait_lock: Seconds = requests.DEFAULT_WAIT_SECONDS,
        settle: Seconds = requests.DEFAULT_SETTLE_SECONDS,
        ascending: Flag = False,
        source_set: Mapping[str, str] | None = None,
        dest_set: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_conn_id = source_conn_id
        self.dest_conn_id = dest_conn_id
        self.table = table
        self.into = into
        self.day = day
        self.month = month
        self.start = start
        self.stop = stop
        self.partition_key = partition_key
        self.all = all
        self.where = where
        self.query = query
        self.columns = columns
        self.exclude = exclude
        self.cast = cast
        self.allow_lossy = allow_lossy
        self.by = by
        self.timezone = timezone
        self.key = key
        self.allow_empty = allow_empty
        self.min_ratio = min_ratio
        self.yes = yes
        self.wait_lock = wait_lock
        self.settle = settle
        self.ascending = ascending
        self.source_set = source_set
        self.dest_set = dest_set
        self._run: _Run | None = None
        """While `execute` is under way."""
        self._is_ended: bool | None = False
        """It was asked to end before it began; None once it has begun."""

    def on_kill(self) -> None:
        """End both sides' work, which rolls back; a COMMIT that is under way is waited for.

        Airflow calls it in a signal handler, in the middle of whatever `execute` does; so it only
        asks, and the run ends where it waits next, within LOOK_SECONDS.
        """
        if self._run is not None:
            self._run.stop()  # nothing else: a log that is being written cannot be written to
        elif self._is_ended is not None:
            self._is_ended = True

    @contextmanager
    def _running(self) -> Iterator[_Run]:
        """Run the block so that `on_kill` ends it; raises errors as Airflow takes them."""
        run = _Run(self.log, {"source": self.source_conn_id, "dest": self.dest_conn_id})
        if self._is_ended:
            run.stop()
        self._run, self._is_ended = run, None
        try:
            with closing(run), _translated(lambda: self._may_be_done_again):
                run.ending.look()
                yield run
        except Stopped:
            left = (
                "nobody knows whether the slice was committed"
                if run.ending.is_undecided
                else "what was under way is rolled back"
            )
            raise AirflowException(
                f"ended by on_kill, both servers were told to stop: {left}"
            ) from None
        except BaseException as error:
            # A timeout of the task, say, which comes anywhere. To copy the slice again makes it
            # what the source has, whatever became of it; to append it again may not.
            committed = run.ending.is_committed or run.ending.is_committing
            if committed and not self._may_be_done_again:
                raise AirflowFailException(
                    f"the dest may hold the slice. {requests.LOOK_FIRST}"
                ) from error
            raise
        finally:
            self._run = None

    @property
    def _may_be_done_again(self) -> bool:
        """Return whether a COMMIT of which nobody knows may be followed by another try."""
        return True

    def _wanted(self, context: Mapping[str, Any]) -> slices.Wanted:
        """Return the slice of this run; raises UsageError where nothing says which."""
        everything = _flag("all", self.all)
        given = (self.day, self.month, self.start, self.stop)
        if everything or any(each is not None for each in given):
            if self.partition_key is not None:
                raise UsageError("a partition_key and another slice were both given")
            if everything and self.where is not None and set(given) == {None}:
                return slices.Everything()
            return api.wanted(
                day=self.day,
                month=self.month,
                start=self.start,
                stop=self.stop,
                everything=everything,
            )
        if self.partition_key is not None:
            return of_partition(str(self.partition_key))
        # Airflow 3.2 has it in the run alone.
        run = context.get("dag_run")
        key = context.get("partition_key") or getattr(run, "partition_key", None)
        if key:
            moment = context.get("partition_date") or getattr(run, "partition_date", None)
            return of_partition(key, self.timezone, moment)
        return of_interval(
            context.get("data_interval_start"), context.get("data_interval_end"), self.timezone
        )

    def _request(self, run: _Run, wanted: slices.Wanted, **more: Any) -> Request:
        """Return the request; raises UsageError for values that mean nothing."""
        request = Request(
            source=run.endpoint("source", self.source_set),
            dest=run.endpoint("dest", self.dest_set),
            table=self.table,
            into=self.into,
            wanted=wanted,
            where=self.where,
            query=self.query,
            columns=tuple((self.columns or {}).items()),
            exclude=api.names("exclude", self.exclude),
            cast=api.names("cast", self.cast),
            allow_lossy=api.names("allow_lossy", self.allow_lossy),
            by=self.by,
            timezone=self.timezone,
            allow_empty=_flag("allow_empty", self.allow_empty),
            min_ratio=_ratio(self.min_ratio),
            yes=_flag("yes", self.yes),
            wait_lock=_seconds(self.wait_lock),
            settle=_seconds(self.settle),
            ascending=_flag("ascending", self.ascending),
            **more,
        )
        requests.check(request)
        return request


class CopyPipeOperator(_SliceOperator):
    """Copy one slice of a table from one PostgreSQL server to another, in one transaction.

    The slice is the data interval of the DAG run, `[data_interval_start, data_interval_end)`, or
    the day, month or hour that its partition key names; unless one of `day`, `month`, `start` with
    `stop`, `partition_key` or `all` says otherwise. An empty interval fails. `where` narrows the
    slice; with `all` it is the slice.

    `source_conn_id` and `dest_conn_id` name Airflow connections of the type postgres. The other
    arguments are those of `copypipe.copy`; all of them are templated. Sizes and durations may be
    written as PostgreSQL does ("50MB", "10min"). `copy_retries` and `copy_retry_delay` are its
    `retries` and `retry_delay`: within the task, and none by default, since Airflow's own retry the
    task. With `skip_done` a slice that the ledger covers is left alone. SQL (`where`, `query`,
    `columns`) must not be made of text that others write, such as the conf of a run.

    Pushes what `copypipe copy --json` prints by XCom: rows, bytes, seconds, the slice and so on. An
    Asset among the outlets gets rows, bytes and slice as the extra of its event; an AssetAlias gets
    the dest's table as an asset.

    Raises AirflowFailException for what no retry can mend, else the CopypipeError, and then the
    dest holds what it held before. After `CommitUnknown` it may hold the new slice; a retry copies
    it again, or fails for good where that could add rows twice. A task that is killed or runs into
    its execution_timeout rolls back on both sides.
    """

    template_fields: Sequence[str] = (
        *_SliceOperator.template_fields,
        "mode",
        "clear",
        "swap",
        "merge_deletes",
        "again",
        "skip_done",
        "fail_on_empty",
        "sequences",
        "accept",
        "rate_limit",
        "verify",
        "transport",
        "stall_timeout",
        "copy_retries",
        "copy_retry_delay",
        "ledger",
        "allow_reverse",
        "notices",
    )

    def __init__(
        self,
        *,
        mode: Mode = "replace",
        clear: Clear = "delete",
        swap: Flag = False,
        merge_deletes: Flag = False,
        again: Flag = False,
        skip_done: Flag = False,
        fail_on_empty: Flag = False,
        sequences: Flag = False,
        accept: Sequence[Hazard] = (),
        rate_limit: int | str | None = None,
        verify: Verify = "count",
        transport: Transport = "auto",
        stall_timeout: Seconds | None = None,
        copy_retries: int | str = 0,
        copy_retry_delay: Seconds = requests.DEFAULT_RETRY_SECONDS,
        ledger: Flag = True,
        allow_reverse: Flag = False,
        notices: Flag = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self.clear = clear
        self.swap = swap
        self.merge_deletes = merge_deletes
        self.again = again
        self.skip_done = skip_done
        self.fail_on_empty = fail_on_empty
        self.sequences = sequences
        self.accept = accept
        self.rate_limit = rate_limit
        self.verify = verify
        self.transport = transport
        self.stall_timeout = stall_timeout
        self.copy_retries = copy_retries
        self.copy_retry_delay = copy_retry_delay
        self.ledger = ledger
        self.allow_reverse = allow_reverse
        self.notices = notices
        self._done: Transferred | None = None
        self._hooks: Mapping[Side, PostgresHook] = {}

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the slice; returns what was done."""
        with self._running() as run:
            with _options():
                request = self._copy_request(run, self._wanted(context))
            attempts.begin(request, run)
            with closing(Pair(request, run, run.ending.look)) as pair:
                done = attempts.copy_part(request, run, pair)
            if done is None:
                return self._skipped(run)
            self.log.info("%s", reporting.result_line(done))
            self.log.info("%s", reporting.diagnosis(done))
            self._done, self._hooks = done, run.hooks
            found = _plain(reporting.result_json(done))
            try:
                self._tell_assets(context, found)
            except ValueError as error:
                # A name that Airflow takes for no asset; what is committed is not copied again.
                self.log.warning("the assets were not told: %s", error)
            return found

    def _skipped(self, run: _Run) -> dict[str, Any]:
        if run.planned is None:
            raise AssertionError("what is skipped was planned")
        self.log.info("%s %s is done already", run.planned.table, run.planned.slice)
        return _plain(reporting.skipped_json(run.planned.slice))

    def _copy_request(self, run: _Run, wanted: slices.Wanted) -> Request:
        return self._request(
            run,
            wanted,
            key=api.names("key", self.key),
            mode=self.mode,
            clear=self.clear,
            swap=_flag("swap", self.swap),
            merge_deletes=_flag("merge_deletes", self.merge_deletes),
            again=_flag("again", self.again),
            skip=_flag("skip_done", self.skip_done),
            fail_on_empty=_flag("fail_on_empty", self.fail_on_empty),
            sequences=_flag("sequences", self.sequences),
            accept=tuple(self.accept),
            rate_limit=_bytes(self.rate_limit),
            verify=self.verify,
            transport=self.transport,
            stall_timeout=None if self.stall_timeout is None else _seconds(self.stall_timeout),
            retries=_count("copy_retries", self.copy_retries),
            retry_delay=_seconds(self.copy_retry_delay),
            ledger=_flag("ledger", self.ledger),
            allow_reverse=_flag("allow_reverse", self.allow_reverse),
            notices=_flag("notices", self.notices),
        )

    @property
    def _may_be_done_again(self) -> bool:
        return self.mode != "append" or (
            _flag("ledger", self.ledger) and not _flag("again", self.again)
        )

    def _tell_assets(self, context: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Add what was copied to the events of the assets that the task fills."""
        extra = {name: found[name] for name in ("rows", "bytes", "slice", "mode", "state")}
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)
            elif isinstance(outlet, AssetAlias):
                context["outlet_events"][outlet].add(self._asset(), extra=extra)

    def _asset(self) -> Asset:
        """Return the dest's table as an asset, by the URI of Airflow's PostgreSQL provider."""
        hook, done = self._hooks["dest"], self._done
        if done is None:
            raise AssertionError("nothing was copied")
        schema, _, name = done.into.partition(".")
        connection = hook.connection
        return create_asset(
            host=connection.host or "localhost",
            port=connection.port or 5432,
            database=_database(hook),
            schema=quote(schema, safe=""),
            table=quote(name, safe=""),
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return both tables with rows and bytes; Airflow's OpenLineage provider asks for them."""
        from airflow.providers.common.compat.openlineage.facet import (
            Dataset,
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage

        done = self._done
        if done is None:
            return OperatorLineage()
        count = OutputStatisticsOutputDatasetFacet(rowCount=done.rows, size=done.bytes)
        names = {}
        for side, table in (("source", done.table), ("dest", done.into)):
            hook = self._hooks[cast("Side", side)]
            info = hook.get_openlineage_database_info(hook.connection)
            names[side] = {
                "namespace": f"{info.scheme}://{info.authority}",
                "name": f"{_database(hook)}.{table}",
            }
        return OperatorLineage(
            inputs=[Dataset(**names["source"])],
            outputs=[OutputDataset(**names["dest"], outputFacets={"outputStatistics": count})],
        )


class VerifyOperator(_SliceOperator):
    """Compare a slice of a table on both sides, by digests that both servers compute.

    The slice is that of `CopyPipeOperator`, `where` and `key` are those of `copypipe.verify`, and
    so are the other arguments, which have to be those with which the rows were copied. A range of
    days is cut into days, or what `every` says (hour, day, week, month), `jobs` are compared at a
    time. `record` enters slices that are the same into the ledger, `repair` ("slices", "rows")
    copies what differs again. The log tells how many rows differ; with `show_keys` which ones, and
    with `show_rows` what they hold.

    Pushes by XCom how many slices are the same, differ and so on, and the first hundred that
    differ. Raises AirflowFailException where some differ, unless `fail_on_difference` is False, and
    where nothing could be told and no retry can mend that.
    """

    template_fields: Sequence[str] = (
        *_SliceOperator.template_fields,
        "every",
        "jobs",
        "show_keys",
        "show_rows",
        "record",
        "repair",
        "fail_on_difference",
    )

    def __init__(
        self,
        *,
        every: str | int | None = None,
        jobs: int | str = 1,
        show_keys: Flag = False,
        show_rows: Flag = False,
        record: Flag = False,
        repair: Repair = "none",
        fail_on_difference: Flag = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.every = every
        self.jobs = jobs
        self.show_keys = show_keys
        self.show_rows = show_rows
        self.record = record
        self.repair = repair
        self.fail_on_difference = fail_on_difference

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Compare the slices; returns what was found."""
        with self._running() as run:
            with _options():
                wanted = self._wanted(context)
                request = self._request(run, wanted, retries=0)
                options = self._verify_options(wanted)
                fails = _flag("fail_on_difference", self.fail_on_difference)
            tally, different = verdicts.Tally(), []
            for found in verdicts.verify(request, options, run, run.stop):
                tally.add(found)
                self._tell(found)
                if isinstance(found, Verdict) and found.is_different:
                    different.append(found)
            self.log.info("%s", reporting.tally_line(tally))
            problem = _worst([each.error for each in tally.failed])
            # What could not be repaired for a reason that passes may be in the next try.
            problem = problem or _worst([each.failure for each in different])
            if problem is not None:
                raise problem
            named = [str(each.slice) for each in different[:_MOST_NAMED]]
            if different and fails:
                raise Differs(
                    f"{tally.differing} of {tally.slices} slices differ",
                    detail=", ".join(named),
                    hint=None if self.repair != "none" else 'repair="slices" copies them again.',
                )
            return {
                "slices": tally.slices,
                "verdicts": dict(tally.verdicts),
                "different": named,
            }

    def _verify_options(self, wanted: slices.Wanted) -> verdicts.Options:
        if self.repair not in get_args(Repair):
            raise UsageError(
                f"no such repair: {self.repair!r}",
                hint=f"Choose {' or '.join(get_args(Repair))}.",
            )
        return verdicts.Options(
            every=_every(self.every, wanted),
            jobs=_count("jobs", self.jobs),
            key=api.names("key", self.key),
            show_rows=_flag("show_rows", self.show_rows),
            record=_flag("record", self.record),
            repair=self.repair,
        )

    def _tell(self, found: Verdict | Failed) -> None:
        if isinstance(found, Failed):
            self.log.error("%s could not be compared: %s", found.slice, found.error)
            return
        write = self.log.warning if found.is_different else self.log.info
        first, *rows = reporting.verdict_lines(found)
        shows = _flag("show_keys", self.show_keys) or _flag("show_rows", self.show_rows)
        for line in [first, *(rows if shows else [])]:
            write("%s", line)
        if found.failure is not None:
            self.log.error("%s could not be repaired: %s", found.slice, found.failure)


def missing_days(
    table: str,
    *,
    source_conn_id: str,
    dest_conn_id: str,
    start: str | date,
    stop: str | date = "today",
    into: str | None = None,
    by: str = "created_at",
    timezone: str = "UTC",
    count: Flag = True,
    limit: int | str = 1000,
    source_set: Mapping[str, str] | None = None,
    dest_set: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the days of `[start, stop)` that are to be copied, as ISO dates, the oldest first.

    These are the days that the ledger of the dest does not tell of, though the source has rows
    then, those that failed, were lost, or were copied while rows could still come (open); and with
    `count`, which has both servers count the rows of each day, those of which the two do not have
    as many. Days that another run copies now are left out.

    For `CopyPipeOperator.partial(..).expand(day=..)`, in a task: it connects as the operator does.
    `start` and `stop` are ISO dates, "today", "yesterday" or "-30d". At most `limit` days are
    returned (Airflow expands 1,024, [core] max_map_length); the next run returns the others. What
    was copied with `where` or a `query` does not make a day whole, so that day is returned. Raises
    as the operator does, and changes nothing.
    """
    log = getLogger("airflow.task")
    run = _Run(log, {"source": source_conn_id, "dest": dest_conn_id})
    with _translated():
        with _options():
            request = Request(
                source=run.endpoint("source", source_set),
                dest=run.endpoint("dest", dest_set),
                table=table,
                into=into,
                wanted=api.wanted(month=None, start=start, stop=stop),
                by=by,
                timezone=timezone,
                retries=0,
            )
            requests.check(request)
            most, counts_rows = _count("limit", limit), _flag("count", count)
        calendar = calendars.read(request, "day", count=counts_rows, listen=run)
    counts = ", ".join(f"{number} {state}" for state, number in calendar.counts.most_common())
    log.info("%s %s: %s", calendar.table, calendar.around, counts or "no day")
    found = [each.day.isoformat() for each in calendar.squares if each.state in _TO_COPY]
    if len(found) > most:
        log.warning("%d days are to be copied, the first %d now", len(found), most)
    return found[:most]


_SETTLED: Collection[State] = ("copied", "running", "empty")
_TO_COPY = frozenset(get_args(State)) - frozenset(_SETTLED)


# ---------------------------------------------------------------------------------- the slice


def of_interval(start: datetime | None, stop: datetime | None, zone: str) -> Between:
    """Return the slice of a data interval; raises UsageError for none, and for an empty one.

    One that begins and ends at midnight of the zone is one of days, which any date or time column
    can be cut by. Other instants mean something for a timestamptz column; in UTC they are times for
    a timestamp column as well.
    """
    name = slices.zone_name(zone)
    if start is None or stop is None:
        raise UsageError(
            "the DAG run has no data interval",
            detail="Runs that somebody or an asset has triggered may have none.",
            hint=f"Schedule the DAG by {INTERVALS}, or give day, or start and stop.",
        )
    if start >= stop:
        raise UsageError(
            f"the data interval of the DAG run is empty: from {start} to {stop}",
            detail='A cron string such as "@daily" gives no interval in Airflow 3, and {{ ds }} is '
            "the day that has just begun.",
            hint=f"Schedule the DAG by {INTERVALS}; or by {PARTITIONS}; or give day, or start and "
            "stop.",
        )
    instants = [cast("datetime", slices.plain(bound.astimezone(UTC))) for bound in (start, stop)]
    local = [bound.astimezone(ZoneInfo(name)) for bound in instants]
    # A midnight that comes twice begins its day the first time only.
    at_midnight = all(bound.time() == datetime.min.time() and not bound.fold for bound in local)
    if at_midnight and local[0].date() < local[1].date():
        return Between(*(bound.date() for bound in local))
    if slices.same_zone(name, "UTC"):
        return Between(*(bound.replace(tzinfo=None) for bound in local))
    return Between(*instants)


_HOUR = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2})")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MONTH = re.compile(r"\d{4}-\d{2}")


def of_partition(key: str, zone: str = "UTC", moment: datetime | None = None) -> Between:
    """Return the day, month or hour that a partition key names, counted in the slice's zone.

    `moment` is when the partition begins, as Airflow knows it: the key must be of the same day in
    `zone`, or the two would not mean the same rows. Raises UsageError.
    """
    if moment is not None:
        local = moment.astimezone(ZoneInfo(slices.zone_name(zone))).strftime("%Y-%m-%dT%H")
        if not local.startswith(key[: len(local)].replace(" ", "T")):
            raise UsageError(
                f"the partition {key} begins at {local}:00 in the zone {zone}",
                detail="The timetable counts in another zone than the slice.",
                hint="Give the operator the timetable's timezone.",
            )
    if _MONTH.fullmatch(key):
        return slices.month(key)
    if _DAY.fullmatch(key):
        return slices.day(slices.parse_day(key))
    found = _HOUR.fullmatch(key)
    if found is None:
        raise UsageError(
            f"the partition key {key!r} does not tell how long its slice is",
            hint='Give the timetable key_format="%Y-%m-%d" (a day), "%Y-%m" or "%Y-%m-%dT%H".',
        )
    start = slices.parse_bound(f"{found[1]}T{found[2]}:00")
    if not isinstance(start, datetime):
        raise AssertionError("a time was put together")
    return Between(start, start + timedelta(hours=1))


def _every(every: str | int | None, wanted: slices.Wanted) -> slices.Every | None:
    if every is not None:
        return slices.parse_every(str(every))
    is_of_days = isinstance(wanted, Between) and not (
        isinstance(wanted.start, datetime | int) or isinstance(wanted.stop, datetime | int)
    )
    return "day" if is_of_days else None


# -------------------------------------------------------------------------------- one execution


@dataclass
class _Run:
    """What one execution needs besides its options; hears its events."""

    log: Logger
    conn_ids: Mapping[Side, str]
    stop: Stop = field(default_factory=Stop)
    planned: Planned | None = None

    def __post_init__(self) -> None:
        self.ending = Ending(self.stop)
        self.hooks: dict[Side, PostgresHook] = {}
        self._lines = reporting.Lines(self._write)

    def close(self) -> None:
        """Write no more about progress."""
        self._lines.close()

    def __call__(self, event: Event, /) -> None:
        """Write the event into the task's log; raises Stopped where the run is to end."""
        self.ending.hear(event)
        if isinstance(event, Planned):
            self.planned = event
        self._lines(event)

    def _write(self, line: str) -> None:
        kind, colon, text = line.partition(": ")
        if colon and kind == "warning":
            self.log.warning("%s", text)
        else:
            self.log.info("%s", line)

    def endpoint(self, side: Side, settings: Mapping[str, str] | None) -> Endpoint:
        """Return a side, reached as Airflow's hook does: secrets backends, tokens, extras."""
        conn_id = self.conn_ids[side]
        hook = self.hooks[side] = PostgresHook(postgres_conn_id=conn_id)
        # Asked for here and once: a connection that Airflow does not know is its error, not a lost
        # one, and threads of a verification need not ask its supervisor.
        _ = hook.connection
        return Endpoint(_connect(hook), f"connection {conn_id}", tuple((settings or {}).items()))


def _connect(hook: PostgresHook) -> Callable[[], psycopg.Connection[Any]]:
    def connect() -> psycopg.Connection[Any]:
        conn = hook.get_conn()
        if not isinstance(conn, psycopg.Connection):
            conn.close()
            raise UsageError(
                "Airflow's PostgresHook hands out connections of psycopg2",
                hint="copypipe needs psycopg 3: Airflow 3.2, its PostgreSQL provider 7 and "
                "SQLAlchemy 2, or newer.",
            )
        return conn

    return connect


@contextmanager
def _translated(may_be_done_again: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raise what no retry can mend as AirflowFailException.

    Asks whether a slice may be copied again of which nobody knows whether it was committed.
    """
    try:
        yield
    except CopypipeError as error:
        if isinstance(error, CommitUnknown):
            passes = may_be_done_again()
        else:
            passes = isinstance(error, _PASSING)
        if passes:
            raise
        raise AirflowFailException(str(error)) from None


def _worst(errors: Sequence[CopypipeError | None]) -> CopypipeError | None:
    """Return the error of several slices that no retry can mend, else the first; None for none."""
    found = [error for error in errors if error is not None]
    lasting = [error for error in found if not isinstance(error, _PASSING)]
    return next(iter(lasting or found), None)


@contextmanager
def _options() -> Iterator[None]:
    """Raise UsageError for an option whose value is of a kind that means nothing."""
    try:
        yield
    except (TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            "an option has a value of the wrong kind", detail=f"{type(error).__name__}: {error}."
        ) from error


def _database(hook: PostgresHook) -> str:
    """Return the name of the database, where libpq would look for it as well."""
    return str(hook.database or hook.connection.schema or hook.connection.login or "")


def _plain(line: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(line))


# -------------------------------------------------------------------------- rendered templates

_FLAGS: Mapping[str, Literal[True, False]] = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _flag(name: str, value: Flag) -> bool:
    """Return what an option means that a template may have rendered; raises UsageError."""
    if isinstance(value, bool):
        return value
    found = _FLAGS.get(str(value).strip().lower())
    if found is None:
        raise UsageError(f"{name} is neither true nor false: {value!r}")
    return found


def _count(name: str, value: int | str) -> int:
    text = str(value).strip()
    if not text.isdecimal():
        raise UsageError(f"{name} is not a whole number: {value!r}")
    return int(text)


def _seconds(value: Seconds) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return requests.duration(value) if isinstance(value, str) else value


def _bytes(value: int | str | None) -> int | None:
    if isinstance(value, str) and not value.strip().isdecimal():
        return requests.size(value)
    return None if value is None else int(value)


def _ratio(value: float | str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        raise UsageError(f"min_ratio is not a number: {value!r}") from None
