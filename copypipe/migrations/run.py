"""One start of a migration: leaders, preparation, work, the end of it."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path

from copypipe import attempts, catalog, inventory, journals, ledger, plans, snapshots, transfers
from copypipe.attempts import Pair, both, connected
from copypipe.catalog import Position
from copypipe.errors import CopypipeError, PlanRefused, Side, UsageError, listed
from copypipe.events import Connected, LedgerMade, Listener, Told, Warned, ignore
from copypipe.horizons import horizon
from copypipe.inventory import Item, chunks
from copypipe.migrations import moves, sequences
from copypipe.migrations import work as working
from copypipe.migrations.again import Again
from copypipe.migrations.archive import Archive
from copypipe.migrations.first import First
from copypipe.migrations.options import (
    Migrated,
    Moved,
    Options,
    Proposal,
    Proposed,
    State,
    request_of_any,
)
from copypipe.migrations.sides import (
    Keeper,
    Sides,
    begin,
    cut,
    does,
    explained,
    in_use,
    look,
    pointing,
)
from copypipe.migrations.work import Table, Work
from copypipe.requests import Endpoint
from copypipe.servers import Session
from copypipe.snapshots import Snapshot
from copypipe.statements import migrations as statements
from copypipe.statements import steps as step_statements
from copypipe.statements.migrations import Target
from copypipe.steps import Step
from copypipe.transfers import Holder

# How soon a start looks again whether it can have the keys of its tables.
_LOOK_AGAIN = 0.5


class Migration:
    """One start of a migration; call it once."""

    def __init__(self, options: Options, listen: Listener = ignore) -> None:
        """Check the words; raises UsageError."""
        options.check()
        self._options = options
        self._listen = listen
        self._run = secrets.token_hex(8)
        self._reached: set[Side] = set()
        self._began = time.monotonic()
        self._lost: list[CopypipeError] = []
        self._start: First | Again | None = None
        self._work: Work | None = None
        self._position: Position | None = None
        self._taken_at: datetime | None = None
        self._failed: list[tuple[str, CopypipeError]] = []
        self._is_ended = False
        self._request = request_of_any(options)
        attempts.begin(self._request, listen)

    @property
    def result(self) -> Migrated | None:
        """Return what is done by now, also behind an error; None where nothing was begun."""
        ready = self._start.ready if self._start is not None else None
        position, taken_at = self._position, self._taken_at
        if ready is None or position is None or taken_at is None:
            return None
        return Migrated(
            id=ready.migration,
            tables=tuple(_moved(table) for table in ready.tables),
            failed=tuple(self._failed),
            is_ended=self._is_ended,
            taken_at=taken_at,
            lsn=position.lsn,
            seconds=time.monotonic() - self._began,
        )

    def __call__(self) -> Migrated:
        """Move the tables; returns what became of each.

        Raises a CopypipeError where nothing could be begun, or all of it was ended; what was
        committed before stays, and `result` tells of it. What fails of a table does not stop the
        others.
        """
        with ExitStack() as stack:
            leader, keeper = (
                stack.enter_context(connected(side, endpoint, self._run, self._reached))
                for side, endpoint in self._endpoints()
            )
            self._listen(Connected(str(leader.address), str(keeper.address)))
            start = self._set_up(stack, leader, keeper)
            work = self._work
            if work is None:
                raise AssertionError("the work is there")
            if self._lost:
                raise self._lost[0]
            stack.enter_context(snapshots.kept(keeper, self._end))
            with closing(working.work(work)) as outcomes:
                for outcome in outcomes:
                    self._failed += outcome.failed
            if work.is_copied:
                ends = not self._failed and work.is_finished
                _finish(work, start, ends=ends)
                self._is_ended = ends
        result = self.result
        if result is None:
            raise AssertionError("the work is there")
        return result

    def _set_up(self, stack: ExitStack, leader: Session, keeper: Session) -> First | Again:
        """Look, refuse, take the snapshot and the keys, make the tables: then there is work."""
        with (
            both(self._request, self._listen, self._run, self._reached) as (source, dest),
            connected("dest", self._options.dest, self._run, self._reached) as gate,
        ):
            _make_ledger(dest, self._listen)
            keeping = Keeper(keeper, self._options)
            with explained():
                start = self._begun(source, dest, Keeper(gate, self._options), keeping)
                self._start = start
                snapshot, position = self._hold(stack, leader, start.sides)
                source.begin("REPEATABLE READ", read_only=True, snapshot=snapshot.identifier)
                ready = start.set_up(snapshot, position, keeping)
            source.rollback()
            holder = Holder(ready.migration, self._run)
            keeping.take_run(holder.lock)
        self._work = Work(
            request=request_of_any(start.options),
            migration=ready.migration,
            jobs=self._options.jobs,
            part_bytes=self._options.part_bytes,
            tables=ready.tables,
            steps=ready.steps,
            snapshot=snapshot,
            position=position,
            holder=holder,
            listen=self._listen,
        )
        return start

    def _begun(
        self, source: Session, dest: Session, gate: Keeper, keeping: Keeper
    ) -> First | Again:
        """Return the start, all of which was read while the keeper has the keys of its tables.

        Who has some of them is waited for; meanwhile others may be set up, and then all is looked
        at again. So it is where whoever had the keys at first has gone on until the end.
        Raises SliceBusy.
        """
        kind = Again if self._options.resume else First
        deadline = time.monotonic() + self._options.wait_lock
        waited = False
        while True:
            # Two that are set up at a time would both find the same tables missing, or empty.
            gate.begin()
            gate.take_setting_up()
            start = kind(self._options, self._listen, self._run, look(source, dest))
            if not waited:
                start.check()
            keeping.begin()
            keeping.take_ledger()
            busy = keeping.take(start.keys())
            if not busy and not start.is_old:
                if waited:
                    start.check()
                start.tell()
                return start
            keeping.end()
            gate.end()
            if not busy:
                time.sleep(_LOOK_AGAIN)
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise in_use(listed(busy))
            if not waited:
                told = f"waiting up to {left:.0f} s for another run on {listed(busy)}"
                self._listen(Told(told))
            waited = True
            time.sleep(min(_LOOK_AGAIN, left))

    def _endpoints(self) -> tuple[tuple[Side, Endpoint], tuple[Side, Endpoint]]:
        return ("source", self._options.source), ("dest", self._options.dest)

    def _end(self, error: CopypipeError) -> None:
        """Take note that a leader is lost; called by its thread."""
        self._lost.append(error)
        if self._work is not None:
            self._work.stop(error)

    def _hold(self, stack: ExitStack, leader: Session, sides: Sides) -> tuple[Snapshot, Position]:
        """Lock what is read, take the snapshot and keep it until the stack ends."""
        writers = transfers.read_writers(leader, sides.source_is)
        local = {
            "lock_timeout": plans.OTHER_LOCKS,
            **transfers.ends_with_client(sides.source_is),
        }
        leader.begin("REPEATABLE READ", read_only=True, local=local)
        # Before the snapshot: TRUNCATE and rewrites by ALTER TABLE do not respect it.
        for some in chunks([Target(each.schema, each.name) for each in sides.items]):
            leader.execute(statements.lock_for_reading(some))
        _check_same(sides, inventory.tables(leader))
        self._position = position = catalog.position(leader)
        seen = horizon(
            writers,
            timedelta(seconds=self._options.settle),
            catalog.instance(leader),
            indirect=True,
        )
        self._taken_at = seen.clock
        snapshot = stack.enter_context(snapshots.held(leader, seen, self._end))
        self._listen(
            Told(
                f"what is written at the source after {seen.clock:%Y-%m-%d %H:%M:%S}+00 is not "
                "copied"
            )
        )
        return snapshot, position


# ----------------------------------------------------------------------------------- the dry run


def propose(options: Options, listen: Listener = ignore) -> Proposal:
    """Return what a migration would do, and what stands in its way; changes nothing."""
    options.check()
    if options.resume:
        raise UsageError("--dry-run shows what a migration would do from the beginning")
    request = request_of_any(options)
    attempts.begin(request, listen)
    run = secrets.token_hex(8)
    with both(request, listen, run, set()) as (source, dest):
        sides = look(source, dest)
        first = First(options, listen, run, sides)
        refusals = first.gather()
        for warning in first.warnings:
            listen(Warned(warning))
        makes: tuple[str, ...] = ()
        todo: list[Step] = []
        left_out: list[str] = []
        not_tables: list[str] = []
        with tempfile.TemporaryDirectory(prefix="copypipe-") as folder:
            archive = Archive.of(options, sides, None, Path(folder))
            if archive is not None:
                makes = tuple(archive.makes)
                source.begin("READ COMMITTED", read_only=True)
                with refusals.gathering(), dest.reading(lock_timeout=plans.OTHER_LOCKS):
                    todo = [each for each in archive.steps(sides, listen) if does(options, each)]
                source.rollback()
                left_out, not_tables = archive.left_out, archive.not_tables
        with dest.reading(lock_timeout=plans.OTHER_LOCKS):
            deferred = first.deferrable()
            todo += [*deferred.values(), *first.analyses()]
            points = pointing(first.moves, dest)
        filled = {move.item.oid for move in first.filled}
        return Proposal(
            source=source.address,
            dest=dest.address,
            tables=tuple(
                Proposed(
                    move,
                    move.into is not None,
                    move.item.oid in filled,
                    len(cut(move, points, options, run)),
                )
                for move in first.moves
            ),
            makes=makes,
            steps=tuple(todo),
            drops=tuple(".".join(name) for name in deferred),
            left_out=tuple(left_out),
            not_tables=tuple(not_tables),
            refusals=refusals.all,
        )


def _check_same(sides: Sides, now: Sequence[Item]) -> None:
    """Raise PlanRefused where tables are gone, or partitions came or went, since they were chosen.

    A partition that was attached meanwhile would not be among those that are copied one by one.
    """
    chosen = [each.oid for each in sides.items]
    before, after = (
        {(each.oid, each.full_name, each.kind, each.parent, each.bound) for each in found}
        for found in (inventory.trees(sides.everything, chosen), inventory.trees(now, chosen))
    )
    if changed := sorted(name for _, name, *_ in before ^ after):
        raise PlanRefused(
            f"source: {changed[0]} was altered while the migration was prepared",
            hint="Run it again.",
            side="source",
        )


def _make_ledger(dest: Session, listen: Listener) -> None:
    """Make the ledger unless there is one; raises PlanRefused where it cannot be used."""
    with dest.reading(lock_timeout=plans.OTHER_LOCKS):
        found = ledger.look(dest)
    if found.state == "missing":
        made, found = ledger.make(dest, plans.OTHER_LOCKS)
        if made:
            listen(LedgerMade(str(dest.address)))
    if found.problem is not None:
        raise PlanRefused(
            "dest: nothing can tell what of the migration is done",
            detail=f"The ledger cannot be used: {found.problem}.",
            hint="Have its owner grant the rights.",
            side="dest",
        )


def _finish(work: Work, start: First | Again, *, ends: bool) -> None:
    """Set the sequences to where they are at the source, and tell that all is done, if it is.

    Raises CopyFailed where some could not be set; the others are.

    Over new connections: those of the beginning have been silent for as long as all of it took.
    """
    with closing(Pair(work.request, work.listen)) as pair:

        def finish() -> sequences.Wanted:
            with pair.sessions() as (source, dest):
                wanted = _sequences(source, dest, work, start)
                begin(dest, start.options)
                # What is set stays set, also where this ends behind it.
                transfers.check_held(dest, work.holder)
                for some in chunks(list(wanted.states.items())):
                    told = [(name, *state) for name, state in some]
                    dest.fetch(step_statements.set_sequences(told))
                if ends and not wanted.narrow:
                    journals.end(dest, work.migration)
                transfers.check_held(dest, work.holder)
                dest.commit_note()
                return wanted

        attempts.persist(work.request, work.listen, finish).check()


def _sequences(
    source: Session, dest: Session, work: Work, start: First | Again
) -> sequences.Wanted:
    """Return where sequences of the dest go on."""
    with (
        dest.reading(lock_timeout=plans.OTHER_LOCKS),
        source.reading(lock_timeout=plans.OTHER_LOCKS),
    ):
        names = moves.names(start.options.into)
        into = sequences.counterparts(start.sides.items, inventory.tables(dest), names)
        into |= {table.move.item.oid: table.move.there.oid for table in work.tables}
        return sequences.wanted(source, dest, into)


def _moved(table: Table) -> Moved:
    state: State
    if table.error is not None:
        state = "failed"
    elif table.is_copied and table.is_done:
        state = "kept" if table.was_copied else "copied"
    else:
        state = "begun" if table.rows or table.is_copied else "not begun"
    return Moved(
        table=table.move.item.full_name,
        into=table.move.full_name,
        state=state,
        rows=table.rows,
        bytes=table.bytes,
        parts=table.of,
        copy_seconds=table.copy_seconds,
        index_seconds=table.index_seconds,
        constraint_seconds=table.constraint_seconds,
        digest=str(table.digest) if table.digest is not None else None,
        error=table.error,
    )
