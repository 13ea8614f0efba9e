"""Many slices of a table, a few at a time, those left out that the ledger covers.

Nobody coordinates: every run asks the ledger what is done, tries the locks of a slice without
waiting, and leaves it to whoever has it. So any number of runs share a range, on one machine or on
many, and a run that died leaves nothing behind but what it has committed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from copypipe import (
    attempts,
    catalog,
    comparisons,
    plans,
    slices,
    snapshots,
    transfers,
    workers,
)
from copypipe.advances import Advance
from copypipe.attempts import Ending, Pair
from copypipe.comparisons import Failed, Part
from copypipe.errors import CopypipeError, PlanRefused, Side, SliceBusy, UsageError
from copypipe.events import (
    Advanced,
    Connected,
    Event,
    Lagging,
    Listener,
    Progress,
    Retried,
    Silent,
    Waiting,
    Warned,
    ignore,
)
from copypipe.plans import Plan
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.slices import Between, Every, Slice
from copypipe.snapshots import Snapshot
from copypipe.statements import copies
from copypipe.tables import Column, Table
from copypipe.transfers import SnapshotLost, Transferred
from copypipe.workers import Stop, Stopped

Order = Literal["oldest", "newest"]

# Statements that took too long (57014, by statement_timeout), transactions that did (25P04), and
# those that a standby cancelled in favour of replay (40001): half of the slice may do.
_TOO_LONG = ("57014", "25P04", "40001")


@dataclass(frozen=True, slots=True)
class Options:
    """How a range is copied."""

    every: Every = "day"
    jobs: int = 1
    order: Order = "oldest"
    again: bool = False
    """Copy also what the ledger covers."""
    fail_fast: bool = False
    """Begin no further slice after one that failed."""
    min_slice: timedelta | int | None = None
    """Down to which length a slice that takes too long is halved, of numbers so many of them; None
    for never."""
    snapshot: bool = False
    """Read all slices in one snapshot of the source; else each in one of its own."""
    max_replica_lag: float | None = None
    """Begin no slice while a standby of either side is behind by more seconds; None for any."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a backfill has found before it begins."""

    table: str
    parts: int
    skipped: int
    """Those that the ledger covers."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A slice that another run copied meanwhile."""

    slice: Slice


@dataclass(frozen=True, slots=True)
class _Busy:
    """A slice that another run is copying."""

    part: Part


Outcome = Transferred | Skipped | Failed


@dataclass
class Tally:
    """How a backfill went."""

    copied: list[Transferred] = field(default_factory=list)
    skipped: int = 0
    """Copied by another run meanwhile."""
    failed: list[Failed] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one slice."""
        if isinstance(outcome, Failed):
            self.failed.append(outcome)
        elif isinstance(outcome, Skipped):
            self.skipped += 1
        else:
            self.copied.append(outcome)


def backfill(
    request: Request,
    options: Options,
    listen: Listener = ignore,
    late: Callable[[Outcome], object] = lambda outcome: None,
) -> tuple[Range, Generator[Outcome]]:
    """Return what there is to do, and an iterator that does it, which yields what became of each.

    Raises a CopypipeError where nothing can be copied at all. What fails later is yielded as
    Failed, and the others go on; with `fail_fast` only those that are under way. Closing the
    iterator ends all work, and rolls back what is not committed: `late` is told of slices that were
    done all the same.
    """
    if not isinstance(request.wanted, Between) or request.where is not None:
        raise UsageError("a backfill copies a range", hint="Give --from and --to, or --month.")
    if not request.ledger:
        raise UsageError("without a ledger nothing tells what is done")
    attempts.begin(request, listen)
    standbys = _Standbys()
    request = replace(request, skip=not options.again)
    with attempts.both(request, listen, secrets.token_hex(8), set()) as (source, dest):
        listen(Connected(str(source.address), str(dest.address)))
        plan = attempts.planned(request, source, dest)
        _check_shortest(plan, options)
        with plans.reading(request, source, dest):
            column = _column(plan)
            most = None if request.yes else slices.MOST_SLICES
            parts = tuple(
                comparisons.parts(
                    request, options.every, source, plan.source.table, plan.slice, most
                )
            )
            done = set() if options.again else _done(plan, column, parts, source, dest)
        plan = attempts.with_ledger(plan, dest, listen)
        if options.max_replica_lag is not None:
            _check_standbys(standbys, source, dest, listen)
    if not plan.ledger.records:
        raise PlanRefused(
            "dest: nothing can tell which slices are done",
            detail=f"The ledger cannot be used: {plan.ledger.problem}.",
            hint="Have its owner grant the rights (copypipe grants), or copy each slice by itself.",
            side="dest",
        )
    for warning in plan.warnings:
        listen(Warned(warning))
    if plan.highest is not None and plan.highest.why is not None:
        # Else nobody would know why the next run does it all again.
        listen(Warned(f"slices stay open, and are copied again each time: {plan.highest.why}"))
    todo = [part for place, part in enumerate(parts) if place not in done]
    if options.order == "newest":
        todo.reverse()
    range_ = Range(table=plan.dest.table.full_name, parts=len(parts), skipped=len(done))
    return range_, _copied(request, options, listen, plan, standbys, todo, late, of=len(parts))


def _check_shortest(plan: Plan, options: Options) -> None:
    around = slices.range_of(plan.slice)
    if around is not None and around.numbers and isinstance(options.min_slice, timedelta):
        raise UsageError(
            f'slices of the column "{around.column}" cannot be {options.min_slice} long',
            hint="Say how many numbers the shortest one has: --min-slice 10000.",
        )


def _column(plan: Plan) -> Column:
    around = slices.range_of(plan.slice)
    if around is None:
        raise AssertionError("a backfill is of a range")
    return next(c for c in plan.dest.table.columns if c.name == around.column)


def _done(
    plan: Plan, column: Column, parts: Sequence[Part], source: Session, dest: Session
) -> set[int]:
    """Return the places of the slices that the ledger covers, and whose rows are there.

    Tables are dropped and made again, truncated and restored while the ledger stays. A day without
    rows may have been copied as a part of a month that had some: then the source has none either.
    """
    if plan.ledger.state != "ready":
        return set()
    wanted = [around for part in parts if (around := slices.range_of(part.slice)) is not None]
    found = transfers.covered(plan, wanted, dest)
    filled = [place for place, had_rows in found.items() if had_rows]
    ranges = [wanted[place] for place in filled]
    if not filled:
        return set(found)
    if not catalog.indexes(dest, plan.dest.table, column.name):
        # Each look would read the whole table.
        return set() if not catalog.has_rows(dest, plan.dest.table) else set(found)
    lost = _empty(dest, plan.dest.table, filled, ranges)
    relation = plan.source.table
    if lost and isinstance(relation, Table) and catalog.indexes(source, relation, column.name):
        lost -= _empty(source, relation, filled, ranges)
    return set(found) - lost


def _empty(
    session: Session, table: Table, places: Sequence[int], ranges: Sequence[slices.Range]
) -> set[int]:
    """Return those of the places whose range has no row."""
    return {places[place - 1] for (place,) in session.fetch(copies.empty(table, ranges))}


def _copied(
    request: Request,
    options: Options,
    listen: Listener,
    plan: Plan,
    standbys: _Standbys,
    todo: Sequence[Part],
    late: Callable[[Outcome], object],
    *,
    of: int,
) -> Generator[Outcome]:
    """Copy the slices; first those that nobody else has, then the others."""
    if not todo:
        return
    progress = _Progress(len(todo), options.jobs, plan.estimated_bytes * len(todo) // of)
    work = _Work(
        request,
        options,
        plan,
        of,
        progress,
        Advance(listen, lambda: progress.now),
        Stop(),
        standbys,
    )
    with ExitStack() as stack:
        if options.snapshot:
            work = replace(work, snapshot=stack.enter_context(_snapshot(work)))
        busy: list[Part] = []

        def tell_late(outcomes: Sequence[Outcome | _Busy]) -> None:
            for outcome in outcomes:
                if not isinstance(outcome, _Busy):
                    late(outcome)

        # Whoever had a slice is done in the second round, or died: then it is to be copied.
        for patience in (None, request.wait_lock):
            parts = todo if patience is None else busy
            opened = work.opener(patience)
            for outcomes in workers.each(parts, options.jobs, opened, work.stop, tell_late):
                for outcome in outcomes:
                    if not isinstance(outcome, _Busy):
                        yield outcome
                    elif patience is None:
                        busy.append(outcome.part)
                    else:
                        raise AssertionError("who waits for a slice has it, or an error")
            if work.stop.is_enough:
                return


@contextmanager
def _snapshot(work: _Work) -> Iterator[Snapshot]:
    """Hold one snapshot of the source, and end all where it is lost."""
    request, plan = work.request, work.plan
    with attempts.connected("source", request.source, secrets.token_hex(8), set()) as leader:
        seen = transfers.begin_shared(plan, leader)
        with snapshots.held(leader, seen, work.stop) as snapshot:
            yield snapshot


@dataclass(frozen=True)
class _Work:
    """What all workers have in common."""

    request: Request
    options: Options
    plan: Plan
    """Of the whole range."""
    of: int
    """Into how many slices that is cut."""
    progress: _Progress
    advance: Advance[_Worker]
    stop: Stop
    standbys: _Standbys
    snapshot: Snapshot | None = None

    def opener(
        self, patience: float | None
    ) -> Callable[[], AbstractContextManager[Callable[[Part], list[Outcome | _Busy]]]]:
        """Return what begins a worker, which waits so long for other runs; None for not at all."""

        @contextmanager
        def opened() -> Iterator[Callable[[Part], list[Outcome | _Busy]]]:
            with closing(_Worker(self, patience)) as worker:
                yield worker.copy

        return opened


# How often standbys are asked how far they are, and a person is told that they are waited for.
_LAG_SECONDS = 1.0
_TELL_LAG_SECONDS = 30.0


class _Standbys:
    """How far the standbys of both sides are behind, as all workers have seen it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: dict[Side, tuple[str, float]] = {}
        """Where the log ended, and when that was: not all have replayed that yet."""
        self._known: set[Side] = set()
        """The sides whose first mark has been replayed: until then they may be hours behind."""

    def behind(self, session: Session) -> float | None:
        """Return by how many seconds the slowest one is behind; None where none can be seen."""
        side = session.side
        with self._lock:
            mark, since = self._marks.get(side, (None, 0.0))
        with session.reading(lock_timeout=plans.OTHER_LOCKS):
            found = catalog.lag(session, mark)
        now = time.monotonic()
        waiting = 0.0
        with self._lock:
            if mark is not None and not found.has_mark:
                waiting = now - since
            else:
                if mark is not None or found.end is None:
                    self._known.add(side)
                if found.end is not None:
                    self._marks[side] = (found.end, now)
        return max(found.seconds or 0.0, waiting) if found.is_seen else None

    def is_known(self, side: Side) -> bool:
        """Return whether what `behind` has returned is all there is to it."""
        with self._lock:
            return side in self._known


def _check_standbys(standbys: _Standbys, source: Session, dest: Session, listen: Listener) -> None:
    """Warn where no standby can be seen that could be waited for."""
    if standbys.behind(source) is None and standbys.behind(dest) is None:
        listen(
            Warned(
                "no standby of either side can be seen, so --max-replica-lag waits for none "
                "(a role sees them with pg_monitor)"
            )
        )


class _Progress:
    """What all workers are done with; read and changed by one of them at a time (`Advance`)."""

    def __init__(self, slices: int, jobs: int, estimated_bytes: int) -> None:
        self.now = Advanced(slices, 0, 0, jobs, 0, 0, estimated_bytes)

    def add(self, outcomes: Sequence[Outcome | _Busy]) -> None:
        """Take note of what became of a slice."""
        copied = [each for each in outcomes if isinstance(each, Transferred)]
        failed = any(isinstance(each, Failed) for each in outcomes)
        busy = any(isinstance(each, _Busy) for each in outcomes)
        self.now = replace(
            self.now,
            done=self.now.done + (not failed and not busy),
            failed=self.now.failed + failed,
            bytes=self.now.bytes + sum(each.bytes for each in copied),
            rows=self.now.rows + sum(each.rows for each in copied),
        )


class _Worker:
    """Copies one slice after the other over connections of its own."""

    def __init__(self, work: _Work, patience: float | None) -> None:
        self._work = work
        self._patience = patience
        """How many seconds another run that has a slice is waited for; None: it is passed over."""
        self._ending = Ending(work.stop)
        self._pair = Pair(work.request, self._hear, self._look)

    def close(self) -> None:
        """Close the connections."""
        self._pair.close()

    def copy(self, part: Part) -> list[Outcome | _Busy]:
        """Copy a slice, or its halves where it takes too long."""
        self._ending = Ending(self._work.stop)
        outcomes: list[Outcome | _Busy]
        try:
            attempts.persist(self._work.request, self._hear, self._await_standbys, self._look)
        except CopypipeError as error:
            outcomes = [Failed(part.slice, error)]
        else:
            outcomes = self._copy(part)
        if self._work.options.fail_fast and any(isinstance(each, Failed) for each in outcomes):
            self._work.stop.begin_nothing()
        self._work.advance.end(self, lambda: self._work.progress.add(outcomes))
        return outcomes

    def _copy(self, part: Part) -> list[Outcome | _Busy]:
        work = self._work
        self._ending = Ending(work.stop)
        request = replace(work.request, wanted=part.wanted, wait_lock=self._patience or 0.0)
        if work.snapshot is not None:
            # A second try plans anew and would wait for locks: behind an ALTER TABLE that waits for
            # the leader, which nobody sees as a deadlock.
            request = replace(request, retries=0)
        plan = None
        if not (request.swap or request.clear == "truncate"):  # their partitions are to be found
            plan = plans.part(work.plan, request, part.slice, of=work.of)
        try:
            done = attempts.copy_part(request, self._hear, self._pair, plan, work.snapshot)
        except SliceBusy as error:
            return [_Busy(part) if self._patience is None else Failed(part.slice, error)]
        except SnapshotLost as error:
            work.stop(error)
            raise Stopped from None
        except CopypipeError as error:
            halves = self._halves(part, error)
            if halves is None:
                return [Failed(part.slice, error)]
            return [outcome for half in halves for outcome in self._copy(half)]
        return [Skipped(part.slice) if done is None else done]

    def _await_standbys(self) -> None:
        """Wait until no standby is behind by more than was allowed."""
        limit, told = self._work.options.max_replica_lag, 0.0
        while limit is not None:
            with self._pair.sessions() as sessions:
                standbys = self._work.standbys
                behind = [(standbys.behind(each), each.side) for each in sessions]
            seen = [(seconds, side) for seconds, side in behind if seconds is not None]
            if all(seconds <= limit and standbys.is_known(side) for seconds, side in seen):
                return
            seconds, side = max(seen)
            if time.monotonic() - told >= _TELL_LAG_SECONDS:
                told = time.monotonic()
                self._work.advance.hear(Lagging(side, seconds))
            for _ in range(5):
                self._look()
                time.sleep(_LAG_SECONDS / 5)

    def _halves(self, part: Part, error: CopypipeError) -> Sequence[Part] | None:
        around, shortest = slices.range_of(part.slice), self._work.options.min_slice
        if shortest is None or around is None or error.sqlstate not in _TOO_LONG:
            return None
        found = slices.halves(around, shortest)
        return [Part(half, half) for half in found] if found else None

    def _look(self) -> None:
        self._ending.look()

    def _hear(self, event: Event, /) -> None:
        """Pass on what tells why a slice takes long; its result tells the rest."""
        self._ending.hear(event)
        if isinstance(event, Progress):
            self._work.advance.move(self, event)
        elif isinstance(event, Retried | Silent | Waiting):
            self._work.advance.hear(event)
