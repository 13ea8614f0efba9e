"""Compare slices of two tables: both servers hash their rows, and only what differs is looked into.

A comparison goes down in three steps, each asked of both servers at once, in one snapshot of each:
digests of groups (hours, days, ranges of a number), in those that differ digests of buckets of
keys, and of the buckets that differ the keys themselves. Nothing else is read row by row.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from copypipe import (
    attempts,
    catalog,
    comparisons,
    digests,
    hazards,
    horizons,
    ledger,
    plans,
    slices,
    transfers,
    workers,
)
from copypipe.attempts import Ending, Pair
from copypipe.comparisons import Comparison, Failed, Part
from copypipe.digests import Digest
from copypipe.errors import CopypipeError, Differs, PlanRefused, SliceBusy
from copypipe.events import (
    Connected,
    Event,
    Listener,
    Retried,
    Silent,
    Waiting,
    Warned,
    ignore,
)
from copypipe.horizons import Horizon
from copypipe.ledger import Attempt
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.slices import Every, Slice
from copypipe.statements import Statement
from copypipe.statements import digests as statements
from copypipe.statements.digests import Rows, Within
from copypipe.workers import Stop

T = TypeVar("T")

Judgement = Literal["same", "differs", "missing", "extra", "open"]
Drift = Literal[
    "late rows at the source",
    "changed at the source",
    "changed at the dest",
    "changed on both sides",
]
Repair = Literal["none", "slices", "rows"]
Difference = Literal["missing", "extra", "differs"]
"""Of one row: the dest lacks it, the source lacks it, both have it with other values."""

# A bucket of keys holds about as many rows, so that what is listed for one row that differs is
# little more than that row; 4096 sums are little to send.
_BUCKET_ROWS = 32
_MOST_BUCKETS = 4096

# How many rows of differing buckets are listed at most: some megabytes. Where whole slices differ
# nobody wants to see all of them.
_MOST_LISTED = 20_000

# The first bucket may be larger, or of a table of a hundred million rows nothing would be told; but
# not as large as one of equal rows without a key can be.
_LARGEST_BUCKET = 10 * _MOST_LISTED

# How many bytes of rows of one slice are shown at most, of each side; of the others only the keys.
_MOST_SHOWN = 8_000_000

# Up to so many rows, and so large a part of the slice, are repaired one by one; beyond that the
# slice is copied as quickly.
_MOST_REPAIRED = 1000
_LARGEST_PART = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """A row that is not the same on both sides."""

    is_: Difference
    key: tuple[str | None, ...]
    """Values of the key's columns as text; empty where the rows have no key."""
    source: tuple[str | None, ...] | None = None
    """All values at the source, where that was asked for, and is not too much to be shown."""
    dest: tuple[str | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Differing:
    """What is known of the rows that differ."""

    rows: tuple[Row, ...]
    complete: bool
    """These are all; else at least so many."""

    def count(self, is_: Difference) -> int:
        """Return how many rows differ so."""
        return sum(row.is_ == is_ for row in self.rows)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found of one slice."""

    table: str
    slice: Slice
    verdict: Judgement
    source: Digest
    dest: Digest
    key: tuple[str, ...]
    """The names of the key's columns."""
    columns: tuple[str, ...]
    differing: Differing | None
    drift: Drift | None
    """What has changed since the ledger recorded the slice; None where it cannot tell."""
    open_because: str | None
    """Why rows may still come into the slice at the source; None for a sealed slice."""
    seconds: float
    recorded: bool = False
    repaired: bool = False
    """It differed, and was copied again: what is told here was found afterwards."""
    failure: CopypipeError | None = None
    """Why it could not be repaired."""

    @property
    def is_different(self) -> bool:
        """Return whether the dest does not hold what it should."""
        return self.verdict in ("differs", "missing", "extra")


@dataclass
class Tally:
    """How a verification went."""

    verdicts: Counter[Judgement] = field(default_factory=Counter)
    failed: list[Failed] = field(default_factory=list)

    def add(self, found: Verdict | Failed) -> None:
        """Count one slice."""
        if isinstance(found, Failed):
            self.failed.append(found)
        else:
            self.verdicts[found.verdict] += 1

    @property
    def slices(self) -> int:
        """Return how many there were."""
        return self.verdicts.total() + len(self.failed)

    @property
    def differing(self) -> int:
        """Return in how many the dest does not hold what it should."""
        return sum(self.verdicts[each] for each in ("differs", "missing", "extra"))


@dataclass(frozen=True, slots=True)
class Options:
    """What a verification shall do besides comparing."""

    every: Every | None = "day"
    """How a range is cut into slices; None for one slice."""
    jobs: int = 1
    key: tuple[str, ...] = ()
    """Columns that tell the rows apart; none for the primary key."""
    show_rows: bool = False
    record: bool = False
    """Enter slices that are the same into the ledger."""
    repair: Repair = "none"


def verify(
    request: Request, options: Options, listen: Listener = ignore, stop: Stop | None = None
) -> Iterator[Verdict | Failed]:
    """Compare the slices of a request, and yield what was found of each as it is done.

    Where somebody calls `stop` it ends, and raises Stopped. Raises a CopypipeError where the tables
    cannot be compared at all. What could not be told of a slice is yielded as Failed; nothing was
    changed then, unless `repair` was asked for.
    """
    attempts.begin(request, listen)
    with attempts.both(request, listen, secrets.token_hex(8), set()) as (source, dest):
        listen(Connected(str(source.address), str(dest.address)))
        comparison = comparisons.make(request, options.every, options.key, source, dest)
        changes = options.record or options.repair != "none"
        if changes and comparison.is_reversed and not request.allow_reverse:
            raise hazards.reversed_sides(comparison.relation, comparison.table)
    stop = stop or Stop()
    hear = _one_at_a_time(listen, stop)

    @contextmanager
    def worker() -> Iterator[Callable[[Part], Verdict | Failed]]:
        with closing(Pair(request, hear, stop.check)) as pair:
            yield _Worker(comparison, options, hear, stop, pair).verify

    yield from workers.each(comparison.parts, options.jobs, worker, stop)


def _one_at_a_time(listen: Listener, stop: Stop) -> Listener:
    """Let workers be heard one at a time, and end where they tell of something."""
    lock = threading.Lock()

    def hear(event: Event, /) -> None:
        stop.check()
        with lock:
            listen(event)

    return hear


@dataclass
class _Worker:
    """Compares one slice after the other over connections of its own."""

    comparison: Comparison
    options: Options
    listen: Listener
    stop: Stop
    pair: Pair

    def verify(self, part: Part) -> Verdict | Failed:
        """Compare a slice, and repair and record it as far as that was asked for."""
        try:
            found = self._again(part)
            if found.is_different and self.options.repair != "none":
                found = self._repaired(part, found)
            if found.verdict == "same" and self.options.record:
                found = replace(found, recorded=self._again_recorded(part))
        except CopypipeError as error:
            return Failed(part.slice, error)
        return found

    def _repaired(self, part: Part, found: Verdict) -> Verdict:
        """Repair a slice, and compare it again; where it fails, what was found still holds."""
        try:
            self._repair(part, found)
        except CopypipeError as error:
            return replace(found, failure=error)
        return replace(self._again(part), repaired=True)

    def _again(self, part: Part) -> Verdict:
        """Compare a slice, and do that again after what passes."""
        return self._trying(lambda source, dest: self._compare(part, source, dest))

    def _again_recorded(self, part: Part) -> bool:
        return self._trying(lambda source, dest: self._record(part, source, dest))

    def _trying(self, call: Callable[[Session, Session], T]) -> T:
        def once() -> T:
            with self.pair.sessions() as (source, dest):
                return call(source, dest)

        return attempts.persist(self.comparison.request, self.listen, once, self.stop.check)

    # ------------------------------------------------------------------------------- compare

    def _compare(self, part: Part, source: Session, dest: Session) -> Verdict:
        began = time.monotonic()
        comparison, slice_ = self.comparison, part.slice
        seen = _begin_reading(comparison, source)
        local = {
            "lock_timeout": plans.OTHER_LOCKS,
            **transfers.ends_with_client(comparison.dest_is),
        }
        dest.begin("REPEATABLE READ", read_only=True, local=local)
        sides = _Sides(comparison, source, dest, comparison.sent(slice_), comparison.held(slice_))
        groups = sides.grouped()
        sent, held = (_sum(groups, side, comparison.forms.seed) for side in (0, 1))
        verdict, found, drift = _judged(sent, held), None, None
        if verdict != "same":
            found, lost = sides.differing(groups, show=self.options.show_rows)
            if comparison.ledger.state == "ready":
                told = ledger.told_last(dest, comparison.table, slice_)
                drift = _drift(told, sent, held, lost)
        source.rollback()
        dest.rollback()
        open_because = horizons.open_because(slice_, seen, comparison.highest)
        is_past = horizons.is_past(slice_, seen, comparison.highest)
        is_open = _may_be_late(slice_, seen, open_because, found, is_past=is_past)
        return Verdict(
            table=comparison.table.full_name,
            slice=slice_,
            verdict="open" if is_open else verdict,
            source=sent,
            dest=held,
            key=comparison.key_names,
            columns=comparison.names,
            differing=found,
            drift=drift,
            open_because=open_because,
            seconds=time.monotonic() - began,
        )

    # -------------------------------------------------------------------------------- repair

    def _repair(self, part: Part, found: Verdict) -> None:
        """Copy what differs again; raises a CopypipeError, and then it is as it was."""
        request = replace(self.comparison.request, wanted=part.wanted, verify="checksum")
        condition = self._condition(found) if self.options.repair == "rows" else None
        if condition is not None:
            try:
                self._copy(self._of_rows(request, part, found, condition))
            except PlanRefused as error:
                # They cannot be told by their keys, or not be merged.
                told = f"all of {part.slice} is copied, since its rows cannot be: {error.message}"
                self.listen(Warned(told))
            else:
                return
        self._copy(request)

    def _of_rows(self, request: Request, part: Part, found: Verdict, condition: str) -> Request:
        """Return the request for the rows that differ."""
        where = condition
        if isinstance(part.slice, slices.Where):
            where = f"({part.slice.condition}\n) AND {condition}"
        return replace(
            request,
            mode="merge",
            merge_deletes=True,
            # That none of these rows is left at the source is no sign of a job that runs too
            # early, unless none of the slice is.
            allow_empty=request.allow_empty or found.source.rows > 0,
            min_ratio=None,
            where=where,
            key=self.options.key,
        )

    def _copy(self, request: Request) -> None:
        ending = Ending(self.stop)

        def hear(event: Event, /) -> None:
            """Pass on why a repair takes long; what it does besides is told by the verdict."""
            ending.hear(event)
            if isinstance(event, Retried | Silent | Waiting):
                self.listen(event)

        attempts.copy(request, hear, lambda plan: False, ending.look)

    def _condition(self, found: Verdict) -> str | None:
        """Return the condition of the rows that differ, None where the slice is to be copied."""
        differing, key = found.differing, self.comparison.key
        if differing is None or not differing.complete or not self.comparison.can_merge or not key:
            return None
        rows = max(found.source.rows, found.dest.rows)
        few = len(differing.rows) <= min(_MOST_REPAIRED, max(1, rows * _LARGEST_PART))
        if not few or self.comparison.request.query is not None:
            return None
        keys = [tuple(part for part in row.key if part is not None) for row in differing.rows]
        if any(len(known) < len(key) for known in keys):
            return None  # NULL is equal to nothing
        return statements.among(self.comparison.key_names, keys).as_string(None)

    # -------------------------------------------------------------------------------- record

    def _record(self, part: Part, source: Session, dest: Session) -> bool:
        """Compare the slice once more while nobody copies it, and enter it into the ledger.

        Returns False where it is not the same any more.
        """
        comparison, slice_ = self.comparison, part.slice
        moment = datetime.now(UTC)
        attempt = Attempt(self.pair.run_id, str(uuid.uuid4()), 1)
        wait = plans.milliseconds(comparison.request.wait_lock)
        kept = comparison.ledger
        if kept.state == "missing":
            _, kept = ledger.make(dest, wait)
        if not kept.records:
            raise PlanRefused(
                "dest: nothing can be recorded",
                detail=f"The ledger cannot be used: {kept.problem or 'a newer copypipe has it'}.",
                side="dest",
            )
        sliced_by = ledger.begin(dest, attempt, comparison.table, slice_, wait)
        try:
            self._recorded(attempt, slice_, sliced_by, source, dest, moment)
        except Differs as error:
            source.rollback()
            dest.rollback()
            ledger.failed(dest, self.pair.run_id, error)
            return False
        except CopypipeError as error:
            ledger.failed(dest, self.pair.run_id, error)
            raise
        return True

    def _recorded(
        self,
        attempt: Attempt,
        slice_: Slice,
        sliced_by: str | None,
        source: Session,
        dest: Session,
        moment: datetime,
    ) -> None:
        comparison = self.comparison
        if (around := slices.range_of(slice_)) and around.numbers:
            transfers.let_pass(comparison.highest, around.numbers[1] - 1)
        dest.begin(
            "READ COMMITTED",
            read_only=False,
            local={
                "lock_timeout": plans.milliseconds(comparison.request.wait_lock),
                **transfers.ends_with_client(comparison.dest_is),
            },
        )
        wanted = [ledger.IN_USE, attempt.lock, *slices.locks(slice_, sliced_by)]
        try:
            ledger.take(dest, wanted, comparison.table, slice_)
        except SliceBusy:
            dest.rollback()
            raise
        seen = _begin_reading(comparison, source)
        position = catalog.position(source)
        seed = comparison.forms.seed
        there = digests.ask(dest, comparison.held(slice_), seed)
        here = digests.ask(source, comparison.sent(slice_), seed)
        held, sent = there(), here()
        if held != sent:
            raise Differs("it is not the same any more")
        source.rollback()
        self._tell(attempt, slice_, dest, sent, seen, position, moment)
        dest.commit_note()

    def _tell(
        self,
        attempt: Attempt,
        slice_: Slice,
        dest: Session,
        found: Digest,
        seen: Horizon,
        position: catalog.Position,
        moment: datetime,
    ) -> None:
        comparison, around = self.comparison, slices.range_of(slice_)
        of = ledger.of_source(comparison.relation, comparison.source_is, comparison.source_at)
        because = transfers.still_open(
            slice_,
            seen,
            comparison.highest,
            partial(ledger.highest_before, dest, comparison.table, of),
        )
        seed = comparison.forms.seed
        ledger.record(
            dest,
            attempt,
            comparison.table,
            slice_,
            **of,
            **ledger.of_highest(comparison.highest),
            zone=around.zone if around else None,
            mode="verify",
            rows_deleted=0,
            rows_copied=found.rows,
            bytes=0,
            format="none",
            checksum=str(found),
            equal=True,
            signature=comparison.signature,
            reversed=False,
            state="sealed" if because is None else "open",
            open_because=because,
            complete_until=seen.until,
            source_clock=seen.clock,
            began_at=moment,
            manifest={
                "statements": {
                    "source": statements.digest(comparison.sent(slice_)).as_string(None),
                    "dest": statements.digest(comparison.held(slice_)).as_string(None),
                },
                "source": {
                    "version": comparison.source_is.version,
                    "snapshot": position.snapshot,
                    "lsn": position.lsn,
                },
                "dest": {"version": comparison.dest_is.version},
                "seed": seed,
            },
        )


def _begin_reading(comparison: Comparison, source: Session) -> Horizon:
    """Begin to read the source, and return how far it is complete."""
    writers = transfers.read_writers(source, comparison.source_is)
    local = {
        "lock_timeout": plans.OTHER_LOCKS,
        **transfers.keeps_views_out(comparison.relation, comparison.source_is),
        **transfers.ends_with_client(comparison.source_is),
    }
    source.begin("REPEATABLE READ", read_only=True, local=local)
    request = comparison.request
    return transfers.complete_until(comparison.relation, request.settle, writers, source)


def _judged(sent: Digest, held: Digest) -> Judgement:
    if sent == held:
        return "same"
    if not held.rows:
        return "missing"
    return "differs" if sent.rows else "extra"


def _may_be_late(
    slice_: Slice,
    seen: Horizon,
    open_because: str | None,
    found: Differing | None,
    *,
    is_past: bool,
) -> bool:
    """Return whether the rows that differ may all have come since the slice was copied.

    Not where nothing can ever be said of the source (a materialized view, a pooler), nor of numbers
    that others have passed: damage would pass for that for ever.
    """
    around = slices.range_of(slice_)
    if open_because is None or found is None or around is None:
        return False
    if is_past and (seen.until is None or around.numbers):
        return False
    return all(row.is_ == "missing" for row in found.rows) and (found.complete or not is_past)


def _drift(
    told: ledger.Told | None, sent: Digest, held: Digest, lost: Sequence[str] | None
) -> Drift | None:
    """Return what has changed since the slice was recorded.

    `lost` are the hashes of the rows that differ, where all of them are known and the dest lacks
    them. Only a copy that made the slice equal to the source's tells that of the dest.
    """
    then = digests.parse(told.checksum) if told is not None and told.checksum else None
    if told is None or then is None or then.seed != sent.seed:
        return None
    if told.mode not in ("replace", "verify"):
        return None
    if held != then:
        return "changed at the dest" if sent == then else "changed on both sides"
    late = lost is not None and digests.of_hashes(lost, then.seed) == sent - then
    return "late rows at the source" if late else "changed at the source"


# ------------------------------------------------------------------------------ step by step

_Pair = tuple[Digest, Digest]


def _sum(groups: dict[str, _Pair], side: int, seed: str) -> Digest:
    total = Digest(0, 0, 0, seed)
    for pair in groups.values():
        total += pair[side]
    return total


@dataclass(frozen=True)
class _Sides:
    """Both sides in a snapshot each, and the rows of a slice there."""

    comparison: Comparison
    source: Session
    dest: Session
    sent: Rows
    held: Rows

    def grouped(self) -> dict[str, _Pair]:
        """Return the digests of each group of both sides."""
        groups = self.comparison.groups
        return self._paired(lambda rows: statements.grouped(rows, groups))

    def _paired(self, asks: Callable[[Rows], Statement]) -> dict[str, _Pair]:
        """Ask both servers for digests by name, at once."""
        seed = self.comparison.forms.seed
        none = Digest(0, 0, 0, seed)
        here = self.source.ask(asks(self.sent))
        there = self.dest.ask(asks(self.held))
        sent, held = (
            {str(name): digests.digest(sums, seed) for name, *sums in rows()}
            for rows in (here, there)
        )
        return {
            name: (sent.get(name, none), held.get(name, none)) for name in sorted({*sent, *held})
        }

    def differing(
        self, groups: dict[str, _Pair], *, show: bool
    ) -> tuple[Differing, Sequence[str] | None]:
        """Find the rows that differ; returns them, and what `_drift` is told."""
        unequal = {name: pair for name, pair in groups.items() if pair[0] != pair[1]}
        within = None
        if self.comparison.groups is not None and len(unequal) < len(groups):
            within = Within(self.comparison.groups, tuple(unequal))
        rows = max(sum(pair[side].rows for pair in unequal.values()) for side in (0, 1))
        count = 1
        while count * _BUCKET_ROWS < rows and count < _MOST_BUCKETS:
            count *= 2
        key = self.comparison.key
        buckets = self._paired(lambda rows: statements.bucketed(rows, key, within, count))
        wanted, listed, complete = [], 0, True
        for name, (sent, held) in buckets.items():
            if sent == held:
                continue
            size = sent.rows + held.rows
            most = _MOST_LISTED if listed else _LARGEST_BUCKET
            if listed + size > most:
                complete = False
                continue
            listed += size
            wanted.append(int(name))
        here, there = (
            side.ask(statements.listed(rows, key, within, count, wanted))
            for side, rows in ((self.source, self.sent), (self.dest, self.held))
        )
        found = _unequal(_by_key(here()), _by_key(there()))
        lost = [row.source for row in found if row.source is not None and row.dest is None]
        all_lost = complete and len(lost) == len(found)

        def data(side: Session, rows: Rows, hashes: Sequence[str]) -> dict[str | None, _Texts]:
            asked = statements.shown(rows, key, within, count, wanted, hashes, _MOST_SHOWN)
            return {hashed: tuple(texts) for hashed, texts in side.fetch(asked)}

        ours = theirs = {}
        if show:
            ours = data(self.source, self.sent, [row.source for row in found if row.source])
            theirs = data(self.dest, self.held, [row.dest for row in found if row.dest])
        told = (Row(row.is_, row.key, ours.get(row.source), theirs.get(row.dest)) for row in found)
        return Differing(tuple(told), complete), lost if all_lost else None


_Texts = tuple[str | None, ...]
_Listed = dict[_Texts, list[str]]


class _Unequal(NamedTuple):
    """A row that differs: its hash on each side, None where it is not there."""

    key: _Texts
    source: str | None
    dest: str | None

    @property
    def is_(self) -> Difference:
        if self.dest is None:
            return "missing"
        return "extra" if self.source is None else "differs"


def _by_key(rows: Sequence[Sequence[Any]]) -> _Listed:
    """Gather the hashes of the rows of each key."""
    found: _Listed = {}
    for key, hashed in rows:
        found.setdefault(tuple(key), []).append(hashed)
    return found


def _unequal(sent: _Listed, held: _Listed) -> list[_Unequal]:
    """Return the rows that differ.

    Rows of one key that are on both sides are the same; of what remains each two differ from one
    another. Where there is no key they are rows of no relation.
    """
    found: list[_Unequal] = []
    for key in sorted({*sent, *held}, key=lambda key: [(part is None, part or "") for part in key]):
        ours, theirs = Counter(sent.get(key, ())), Counter(held.get(key, ()))
        lost, extra = list((ours - theirs).elements()), list((theirs - ours).elements())
        pairs = min(len(lost), len(extra)) if key else 0
        found += [_Unequal(key, *both) for both in zip(lost[:pairs], extra[:pairs], strict=True)]
        found += [_Unequal(key, each, None) for each in lost[pairs:]]
        found += [_Unequal(key, None, each) for each in extra[pairs:]]
    return found
