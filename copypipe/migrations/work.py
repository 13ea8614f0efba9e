"""The work of a migration once its tables are there: parts are copied, indexes made, keys checked.

Several workers take what is ready: of each table first its parts, then its indexes side by side,
its constraints, its statistics; when all tables are there, what ties them together. What is done
is told in the ledger with it, so whatever ends the work, it goes on from there.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from uuid import uuid4

from copypipe import attempts, digests, journals, ledger, plans, transfers, workers
from copypipe.advances import Advance
from copypipe.attempts import Ending, Pair
from copypipe.catalog import Position
from copypipe.crossings import Sides
from copypipe.digests import Digest
from copypipe.errors import (
    CopyFailed,
    CopypipeError,
    Differs,
    PlanRefused,
    TransientError,
    listed,
)
from copypipe.events import Advanced, Event, Listener, Progress, Retried, Silent, Waiting
from copypipe.journals import Noted
from copypipe.ledger import Attempt
from copypipe.migrations.moves import Move
from copypipe.plans import Plan
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.slices import Pages, Slice, Whole
from copypipe.snapshots import Snapshot
from copypipe.statements import digests as digest_statements
from copypipe.statements import migrations as migration_statements
from copypipe.statements import steps as statements
from copypipe.steps import Kind
from copypipe.tables import spelled
from copypipe.transfers import Holder, HolderLost, SnapshotLost, Transferred
from copypipe.workers import Stop, Stopped

# What each index build may sort in memory at least, unless --dest-set says otherwise: the server's
# default of 64 MB sorts 5 million keys in several runs.
INDEX_MEMORY_KB = 256 << 10


T = TypeVar("T")


# How long a plan waits for a lock of the source. Whoever waits for the leader's is waited for here
# (an ALTER TABLE), and nobody sees that as a deadlock; all others are gone sooner.
_PLAN_LOCKS = "5s"

_make_plan = partial(plans.make, patience=_PLAN_LOCKS)

# How many steps one transaction takes of those that are quick, and of which there may be thousands:
# each locks its table and index until the end.
_STEPS_AT_ONCE = 100


@dataclass(eq=False)
class Table:
    """One table on its way."""

    move: Move
    parts: tuple[Slice, ...]
    """Those that are still to be copied."""
    run: str
    """In whose snapshot they are read."""
    of: int
    """How many parts there are in all."""
    must_be_compared: bool = False
    """Its parts are of several snapshots, so in the end both sides are compared as a whole."""
    rows: int = 0
    bytes: int = 0
    digest: Digest | None = None
    copy_seconds: float = 0.0
    """Over all parts, which may have been copied side by side; as the next."""
    index_seconds: float = 0.0
    constraint_seconds: float = 0.0
    is_copied: bool = False
    was_copied: bool = False
    """By an earlier start of the migration."""
    is_done: bool = False
    """With its indexes and constraints."""
    error: CopypipeError | None = None
    waits_for: set[Table] = field(default_factory=set)
    """Tables at which foreign keys of the dest's point: their rows have to be there before."""

    def add(self, rows: int, size: int, digest: Digest | None, seconds: float) -> None:
        """Count a part that is there."""
        self.rows += rows
        self.bytes += size
        self.copy_seconds += seconds
        if digest is not None:
            self.digest = digest if self.digest is None else self.digest + digest


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a table to be copied."""

    table: Table
    slice: Slice


@dataclass(frozen=True, eq=False)
class Making:
    """Steps to be done one after the other, in one transaction."""

    kind: Kind
    steps: tuple[Noted, ...]
    table: Table | None = None
    """None for what is not of one table alone."""


@dataclass(frozen=True, eq=False)
class Sealing:
    """A table of which all parts are there, and nothing tells that yet."""

    table: Table


Task = Part | Making | Sealing


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    task: Task
    failed: tuple[tuple[str, CopypipeError], ...] = ()
    """What of it failed, and why."""


# A table is small where it is such a share of a part, with its indexes: 8 MB of 512. All its steps
# are done in one transaction: each costs some 3 ms, and indexes of so few rows less than 100 ms, so
# little is won by making these side by side (800 tables of 50 rows: 19 s instead of 22, 2 cores).
_SMALL = 64

_OF_TABLE: tuple[Kind, ...] = ("index", "constraint", "analyze")
_AT_THE_END: tuple[Kind, ...] = ("other", "analyze", "reference", "validation", "last")


@dataclass
class Work:
    """All that there is to do, and what all workers have in common."""

    request: Request
    """Of any of the tables, but for its name and slice."""
    migration: str
    jobs: int
    part_bytes: int
    tables: Sequence[Table]
    steps: Sequence[Noted]
    snapshot: Snapshot
    position: Position
    holder: Holder
    listen: Listener
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._plans: dict[Table, Plan] = {}
        self._planning = {table: threading.Lock() for table in self.tables}
        self._left: dict[Table, set[Slice]] = {t: set(t.parts) for t in self.tables}
        self._indexes: dict[Table, int] = {}
        """How many are still to be made."""
        self._undone: dict[tuple[Kind, int], list[Noted]] = {}
        for noted in self.steps:
            if not noted.is_done:
                self._undone.setdefault((noted.step.kind, noted.step.table), []).append(noted)
        self._by_source = {table.move.item.oid: table for table in self.tables}
        self._waiting: dict[Table, list[Table]] = {}
        """Which tables wait for one."""
        for table in self.tables:
            for other in table.waits_for:
                self._waiting.setdefault(other, []).append(table)
        # All of these are counted, and not looked for: there may be thousands of tables.
        self._undone_tables = sum(not table.is_done for table in self.tables)
        self._copied = sum(table.is_copied for table in self.tables)
        self._failed = 0
        self._rows = sum(table.rows for table in self.tables)
        self._bytes = sum(table.bytes for table in self.tables)
        self._estimated = sum(table.move.size_bytes for table in self.tables)
        self._parts = sum(table.of for table in self.tables)
        self._parts_left = sum(map(len, self._left.values()))
        self._phases = list(_AT_THE_END)
        self._open = 0
        """How many tasks of a phase are not done."""
        self.steps_done = sum(noted.is_done for noted in self.steps)
        self.advance: Advance[_Worker] = Advance(self.listen, self.progress)

    # ----------------------------------------------------------------------------- what is ready

    def first(self) -> list[Task]:
        """Return what can be begun with."""
        found: list[Task] = []
        for table in self.tables:
            if table.is_copied:
                found += self._behind(table)
            elif not table.waits_for:
                found += _begun(table)
        return found if self.tables else self._next_phase()

    def rank(self, task: Task) -> float:
        """Return what comes first: the most work, of what else waits for it."""
        if isinstance(task, Part | Sealing):
            return -float(task.table.move.total_bytes)
        if task.table is None or task.kind == "analyze":
            return 0.0
        return -float(task.table.move.index_bytes)

    def follow(self, task: Task, outcome: Outcome) -> list[Task]:
        """Return what is ready once a task is done."""
        with self.lock:
            if isinstance(task, Making) and not outcome.failed:
                self.steps_done += len(task.steps)
            if isinstance(task, Making) and task.table is None:
                # What fails of what ties tables together need not hinder the rest of it.
                self._open -= 1
                return [] if self._open else self._next_phase()
            if outcome.failed:
                return []
            if isinstance(task, Part | Sealing):
                if not task.table.is_copied:
                    return []
                freed: list[Task] = []
                for other in self._waiting.pop(task.table, []):
                    other.waits_for.discard(task.table)
                    if not other.waits_for:
                        freed += _begun(other)
                return [*freed, *self._behind(task.table)]
            return self._behind(task.table, task.kind) if task.table is not None else []

    def _behind(self, table: Table, done: Kind | None = None) -> list[Task]:
        """Return what of a table comes behind a kind of steps; behind its copy for None."""
        oid = table.move.item.oid
        if done is None and self._is_small(table):
            steps = [each for kind in _OF_TABLE for each in self._undone.get((kind, oid), [])]
            if steps:
                return [Making(_OF_TABLE[-1], tuple(steps), table)]
        if done == "index":
            self._indexes[table] -= 1
            if self._indexes[table]:
                return []
        for kind in _OF_TABLE[0 if done is None else _OF_TABLE.index(done) + 1 :]:
            steps = self._undone.get((kind, oid), [])
            if steps and kind == "index":
                self._indexes[table] = len(steps)
                return [Making(kind, (each,), table) for each in steps]
            if steps:
                return [Making(kind, tuple(steps), table)]
        table.is_done = True
        self._undone_tables -= 1
        return [] if self._undone_tables else self._next_phase()

    def _is_small(self, table: Table) -> bool:
        return table.move.total_bytes <= self.part_bytes // _SMALL

    def _next_phase(self) -> list[Task]:
        """Return what ties tables together, one kind of steps after the other."""
        while self._phases:
            kind = self._phases.pop(0)
            steps = [
                each
                for (of, oid), found in self._undone.items()
                # Those of a table by itself are done; that of a partitioned one is left.
                if of == kind and not (kind == "analyze" and oid in self._by_source)
                for each in found
            ]
            if not steps:
                continue
            tasks: list[tuple[Noted, ...]] = [(each,) for each in steps]
            if kind in ("other", "reference", "last"):  # quick, and in the order of the archive
                tasks = [tuple(steps)]
            elif kind == "validation":  # those of one table would wait for each other
                of_table: dict[int, list[Noted]] = {}
                for each in steps:
                    of_table.setdefault(each.step.table, []).append(each)
                tasks = [tuple(some) for some in of_table.values()]
            self._open = len(tasks)
            return [Making(kind, each) for each in tasks]
        return []

    # ------------------------------------------------------------------------------ what is known

    def plan(self, table: Table, make: Callable[[Request], Plan]) -> Plan:
        """Return the plan of a table, which one worker makes for all of its parts."""
        with self._planning[table]:
            if table not in self._plans:
                first = table.parts[0] if table.parts else Pages(of=table.run)
                self._plans[table] = make(request_of(self.request, table.move, first))
            return self._plans[table]

    def copied(self, part: Part, done: Transferred) -> bool:
        """Count a part that was copied; returns whether it was the last one of its table."""
        with self.lock:
            part.table.add(done.rows, done.bytes, done.digest, done.seconds)
            self._rows += done.rows
            self._bytes += done.bytes
            self._left[part.table].discard(part.slice)
            self._parts_left -= 1
            return not self._left[part.table]

    def whole(self, table: Table) -> None:
        """Take note that all rows of a table are there."""
        with self.lock:
            table.is_copied = True
            self._copied += 1

    def fail(self, table: Table, error: CopypipeError) -> None:
        """Take note that a table failed, or a step of it."""
        with self.lock:
            self._failed += table.error is None
            table.error = error

    @property
    def is_finished(self) -> bool:
        """Return whether all rows are there, and all steps are done."""
        rows = self.is_copied and not self._undone_tables
        return rows and self.steps_done == len(self.steps)

    @property
    def is_copied(self) -> bool:
        """Return whether all rows of all tables are there."""
        return self._copied == len(self.tables)

    def progress(self) -> Advanced:
        """Return what is done, without what is under way."""
        return Advanced(
            slices=len(self.tables),
            done=self._copied,
            failed=self._failed,
            jobs=self.jobs,
            bytes=self._bytes,
            rows=self._rows,
            estimated_bytes=self._estimated,
            unit="tables",
            besides=self._besides(),
        )

    def _besides(self) -> str:
        """Return how many parts and steps are done, where there are some."""
        told = []
        if self._parts > len(self.tables):
            told.append(f"{self._parts - self._parts_left}/{self._parts} parts")
        if self.steps:
            told.append(f"{self.steps_done}/{len(self.steps)} steps")
        return ", ".join(told)

    def made(self, noted: Noted, seconds: float) -> None:
        """Count a step that was done."""
        with self.lock:
            table = self._by_source.get(noted.step.table)
            if table is not None and noted.step.kind == "index":
                table.index_seconds += seconds
            elif table is not None and noted.step.kind != "analyze":
                table.constraint_seconds += seconds

    def opener(self) -> Callable[[], AbstractContextManager[Callable[[Task], Outcome]]]:
        """Return what begins a worker."""

        @contextmanager
        def opened() -> Iterator[Callable[[Task], Outcome]]:
            with closing(_Worker(self)) as worker:
                yield worker.do

        return opened


def _begun(table: Table) -> list[Task]:
    """Return what a table begins with."""
    return [Part(table, part) for part in table.parts] or [Sealing(table)]


def request_of(request: Request, move: Move, part: Slice) -> Request:
    """Return the request of a table: nothing is ever removed by it.

    What is copied as one fills a table that has no row; parts are added, and told of as parts.
    """
    named = replace(
        request,
        table=spelled(move.item.schema, move.item.name),
        into=spelled(move.schema, move.name),
    )
    if isinstance(part, Pages):
        return replace(named, wanted=part, mode="append", again=True, only_empty=False)
    return named


# Options that a hint may name and a migration has; of its --exclude no hint of a plan speaks.
_HAS = {
    *("--source", "--dest", "--source-set", "--dest-set", "--into", "--no-schema", "--replace"),
    *("--resume", "--jobs", "--rate-limit", "--transport", "--verify", "--wait-lock", "--retries"),
}
_BY_ITSELF = "copypipe copy moves a table by itself (--exclude leaves it out here), and there:"

_Error = TypeVar("_Error", bound=CopypipeError)


def hinted(error: _Error) -> _Error:
    """Return an error of a table with a hint that is true of a migration."""
    errors: list[CopypipeError] = [error]
    if isinstance(error, PlanRefused):
        errors += error.others
    for each in errors:
        hint = each.hint or ""
        if set(re.findall(r"--[a-z-]+", hint)) - _HAS and not hint.startswith(_BY_ITSELF):
            each.hint = f"{_BY_ITSELF} {hint}"
    return error


def work(todo: Work) -> Generator[Outcome]:
    """Do all of it; returns an iterator that yields what became of each task.

    What fails does not stop what does not need it. Raises what ended all of it (`Work.stop`).
    """
    return workers.each(
        todo.first(),
        todo.jobs,
        todo.opener(),
        todo.stop,
        follow=todo.follow,
        rank=todo.rank,
    )


class _Worker:
    """Does one task after the other over connections of its own."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ending = Ending(work.stop)
        self._pair = Pair(work.request, self._hear, self._look)

    def close(self) -> None:
        """Close the connections."""
        self._pair.close()

    def do(self, task: Task) -> Outcome:
        """Do a task."""
        self._ending = Ending(self._work.stop)
        failed: list[tuple[str, CopypipeError]] = []
        try:
            if isinstance(task, Part):
                self._copy(task)
            elif isinstance(task, Sealing):
                self._finish(task.table)
            else:
                failed = self._make(task)
        except (SnapshotLost, HolderLost) as error:
            self._work.stop(error)
            raise Stopped from None
        except CopypipeError as error:
            before = task.table.error if isinstance(task, Part) else None
            # What is in the way of one part is in that of those beside it.
            if str(before) != str(hinted(error)):
                failed = [(_named(task), error)]
        if failed and task.table is not None:
            self._work.fail(task.table, failed[0][1])
        self._work.advance.end(self)
        return Outcome(task, tuple(failed))

    # ----------------------------------------------------------------------------------- the rows

    def _copy(self, part: Part) -> None:
        work, table = self._work, part.table
        if table.error is not None:
            return  # a part of it has failed, and the others would have to be removed
        plan = work.plan(table, self._planned)
        if isinstance(part.slice, Pages):
            request = replace(plan.request, wanted=part.slice)
            plan = plans.part(plan, request, part.slice, of=table.of)
        done = attempts.copy_part(
            plan.request, self._hear, self._pair, plan, work.snapshot, work.holder
        )
        if done is None:
            raise AssertionError("nothing is skipped unasked")
        if work.copied(part, done):
            self._finish(table)

    def _finish(self, table: Table) -> None:
        """Look at a table whose parts are all there, and tell of it."""
        plan = self._work.plan(table, self._planned)
        self._persist(lambda: self._seal(table, plan))
        self._work.whole(table)

    def _planned(self, request: Request) -> Plan:
        def make() -> Plan:
            with self._pair.sessions() as (source, dest):
                return attempts.planned(request, source, dest, _make_plan)

        return self._persist(make)

    def _persist(self, call: Callable[[], T]) -> T:
        """Return what a call returns that may be made twice; tries again what passes."""
        return attempts.persist(self._work.request, self._hear, call, self._look)

    def _seal(self, table: Table, plan: Plan) -> None:
        """Tell that all rows of a table are there; may be called twice."""
        work = self._work
        if table.must_be_compared:
            self._compare(table, plan)
        with self._pair.sessions() as (_, dest):
            _begin(work, dest)
            transfers.check_held(dest, work.holder)
            if isinstance(plan.slice, Pages):
                _check_count(table, dest)
            is_new = journals.copied(
                dest,
                work.migration,
                table.move.item.oid,
                rows=table.rows,
                size=table.bytes,
                digest=table.digest,
                seconds=table.copy_seconds,
            )
            parts = isinstance(plan.slice, Pages) and plan.slice.limit is None
            if is_new and parts and not table.move.item.has_children:
                self._record(table, plan, dest)
            dest.commit_note()

    def _compare(self, table: Table, plan: Plan) -> None:
        """Compare all of a table whose parts are of several snapshots; raises Differs."""
        work = self._work
        with self._pair.sessions() as (source, dest):
            whole = replace(plan, slice=Pages())
            forms = plan.forms or digests.forms(
                [(c.source, c.dest, c.crossing) for c in plan.columns],
                Sides(plan.source.server.surroundings, plan.dest.server.surroundings),
            )
            transfers.begin_with(work.snapshot, plan, source)
            sent = digests.ask(source, forms.sent(whole.select), forms.seed)
            with dest.reading(lock_timeout=plans.OTHER_LOCKS):
                held = digest_statements.held(plan.dest.table, plan.names, Whole())
                there = digests.ask(dest, forms.held(held), forms.seed)()
            here = sent()
            source.rollback()
        if here != there:
            raise Differs(
                f"{table.move.full_name} is not what the source has",
                detail=f"source: {here.rows} rows, digest {here}; dest: {there.rows} rows, digest "
                f"{there}. Its parts were read in several snapshots, and the source has changed.",
                hint="--resume without --not-consistent copies the table as a whole.",
            )
        table.rows, table.digest = there.rows, there

    def _record(self, table: Table, plan: Plan, dest: Session) -> None:
        """Write the row of the ledger of all rows, which were copied in parts."""
        work = self._work
        seen = work.snapshot.seen
        ledger.record(
            dest,
            Attempt(self._pair.run_id, str(uuid4()), 1),
            plan.dest.table,
            Whole(),
            **ledger.of_source(plan.source.table, plan.source.server, plan.source.address),
            zone=None,
            mode="replace",
            rows_deleted=0,
            rows_copied=table.rows,
            bytes=table.bytes,
            format=plan.format,
            checksum=str(table.digest) if table.digest is not None else None,
            equal=True,
            signature=plan.signature,
            reversed=plan.reversed,
            state="open",
            open_because="it has no end",
            **ledger.of_highest(None),
            complete_until=seen.until,
            source_clock=seen.clock,
            began_at=datetime.now(UTC),
            manifest={
                "migration": work.migration,
                "run": work.holder.run,
                "parts": table.of,
                "source": {
                    "version": plan.source.server.version,
                    "snapshot": work.position.snapshot,
                    "lsn": work.position.lsn,
                },
                "dest": {"version": plan.dest.server.version},
                "seconds": round(table.copy_seconds, 3),
            },
        )

    # ---------------------------------------------------------------------------------- the steps

    def _make(self, task: Making) -> list[tuple[str, CopypipeError]]:
        """Do steps, as many as can be; returns what failed.

        Where some fail, each is tried by itself. Raises HolderLost.
        """
        failed: list[tuple[str, CopypipeError]] = []
        for start in range(0, len(task.steps), _STEPS_AT_ONCE):
            some = task.steps[start : start + _STEPS_AT_ONCE]
            try:
                self._make_at_once(some)
            except HolderLost:
                raise
            except TransientError as error:
                # It was tried again for as long as is wanted: the others would fare no better.
                rest = replace(task, steps=task.steps[start:])
                return [*failed, (_named(rest), error)]
            except CopypipeError:
                pass
            else:
                continue
            for noted in some:
                try:
                    self._make_at_once([noted])
                except HolderLost:
                    raise
                except CopypipeError as error:
                    failed.append((f"{noted.step.kind} {noted.step.name}", error))
        return failed

    def _make_at_once(self, some: Sequence[Noted]) -> None:
        for noted, seconds in self._persist(lambda: self._made(some)):
            self._work.made(noted, seconds)

    def _made(self, some: Sequence[Noted]) -> list[tuple[Noted, float]]:
        """Do steps in one transaction that tells of them; returns how many seconds each took.

        What was done before, by whomever, is left out.
        """
        work = self._work
        made: list[tuple[Noted, float]] = []
        with self._pair.sessions() as (_, dest):
            _begin(work, dest)
            transfers.check_held(dest, work.holder)
            if "maintenance_work_mem" not in dest.settings:
                dest.fetch(statements.at_least_memory(INDEX_MEMORY_KB))
            left = journals.undone(dest, work.migration, [noted.number for noted in some])
            for noted in some:
                if noted.number not in left:
                    continue
                began = time.monotonic()
                dest.execute(statements.script(noted.step.statement))
                made.append((noted, time.monotonic() - began))
            if made:
                told = [(noted.number, seconds) for noted, seconds in made]
                journals.done(dest, work.migration, told)
                transfers.check_held(dest, work.holder)
            dest.commit_note()
        return made

    def _look(self) -> None:
        self._ending.look()

    def _hear(self, event: Event, /) -> None:
        """Pass on what tells why something takes long; its outcome tells the rest."""
        self._ending.hear(event)
        if isinstance(event, Progress):
            self._work.advance.move(self, event)
        elif isinstance(event, Retried | Silent | Waiting):
            self._work.advance.hear(event)


def _named(task: Task) -> str:
    """Return what a task does, for people."""
    if isinstance(task, Making):
        return f"{task.kind} {listed([noted.step.name for noted in task.steps])}"
    name = task.table.move.full_name
    if isinstance(task, Sealing):
        return name
    part = task.slice
    if isinstance(part, Pages) and len(part.partitions) > 1:
        return f"{name}, {len(part.partitions)} partitions"
    return f"{name} {part}"


def _check_count(table: Table, dest: Session) -> None:
    """Raise CopyFailed where a table that was filled in parts holds other rows than these."""
    rows = dest.fetch_one(migration_statements.count(table.move.target))[0]
    if rows != table.rows:
        raise CopyFailed(
            f"dest: {table.move.full_name} holds {rows} rows, and {table.rows} were copied into it",
            detail="Somebody else has written into it since the migration began.",
            hint="Remove what is not of the source, and go on with --resume.",
            side="dest",
        )


def _begin(work: Work, dest: Session) -> None:
    """Begin a transaction of the dest in which something is made or told."""
    dest.begin("READ COMMITTED", read_only=False, local={"lock_timeout": plans.OTHER_LOCKS})
