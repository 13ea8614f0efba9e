"""Both servers before the rows move, and what a first start and a further one do alike there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from copypipe import catalog, inventory, ledger, plans, slices
from copypipe.catalog import Position, Server
from copypipe.errors import (
    CommitUnknown,
    CopyFailed,
    CopypipeError,
    PlanRefused,
    SliceBusy,
    listed,
)
from copypipe.hazards import Refusals
from copypipe.inventory import Item
from copypipe.journals import Noted
from copypipe.migrations import moves
from copypipe.migrations.moves import Move
from copypipe.migrations.options import Options
from copypipe.migrations.work import Table
from copypipe.servers import Session
from copypipe.slices import TABLE, Lock, Pages
from copypipe.snapshots import Snapshot
from copypipe.statements import locks
from copypipe.statements import migrations as statements
from copypipe.statements.migrations import Target
from copypipe.steps import Step

SETTING_UP = Lock("setting up a migration", exclusive=True, of_table=False)


@dataclass
class Sides:
    """Both servers, and what was found there."""

    source: Session
    dest: Session
    source_is: Server
    dest_is: Server
    items: tuple[Item, ...]
    """The tables of the source; then those of them that are moved."""
    everything: tuple[Item, ...]
    """All tables of the source."""
    there: tuple[Item, ...]
    """The tables of the dest."""

    def measure(self, options: Options) -> None:
        """Read the sizes of the tables that are moved."""
        with self.source.reading(lock_timeout=plans.milliseconds(options.wait_lock)):
            self.items = inventory.measured(self.source, self.items)

    def taken(self, names: Sequence[tuple[str, str]]) -> list[str]:
        """Return which names others than tables bear at the dest, in its open transaction."""
        found = self.dest.fetch(statements.other_relations(names))
        return [f"{'.'.join(names[place - 1])} ({what})" for place, what in found]

    def look_again(self) -> None:
        """Read the tables of the dest again, in its open transaction."""
        self.there = inventory.tables(self.dest)


@dataclass(frozen=True)
class Ready:
    """What is to be done, once it is written down."""

    migration: str
    tables: list[Table]
    steps: list[Noted]


class Start:
    """What a first start and a further one have in common."""

    ready: Ready | None = None
    """What there is to do, once it is committed or may be."""

    def commit(self, dest: Session, ready: Ready) -> Ready:
        """Commit what was set up; whoever is interrupted behind that still knows of it."""
        self.ready = ready
        try:
            dest.commit()
        except CommitUnknown as error:
            error.detail = "Either the tables are there, without rows, or nothing was changed."
            error.hint = "--resume goes on, or says that there is nothing to go on with."
            raise
        except CopypipeError:
            self.ready = None
            raise
        return ready


class Keeper:
    """A session that keeps others away from the dest's tables, in a transaction of its own."""

    def __init__(self, session: Session, options: Options) -> None:
        self._session = session
        self._patience = {"lock_timeout": plans.milliseconds(options.wait_lock)}

    def begin(self) -> None:
        """Begin the transaction."""
        self._session.begin("READ COMMITTED", read_only=False, local=self._patience)

    def end(self) -> None:
        """Let go of all of it."""
        self._session.rollback()

    def take_ledger(self) -> None:
        """Keep the ledger from being removed."""
        self._take(ledger.IN_USE, "the ledger")

    def take_run(self, lock: Lock) -> None:
        """Take what shows to others of this run that the session is there."""
        self._take(lock, "this run")

    def take_setting_up(self) -> None:
        """Keep other migrations from being set up."""
        self._take(SETTING_UP, "the set-up of a migration")

    def take(self, keys: Mapping[int, str]) -> list[str]:
        """Take the keys of tables, by the OIDs of their roots; returns the names of those in use.

        Nobody is waited for.
        """
        names = list(keys.values())
        asked = locks.busy([TABLE.key(root) for root in keys])
        return [names[place - 1] for (place,) in self._session.fetch(asked)]

    def _take(self, lock: Lock, name: str) -> None:
        ledger.lock_or(self._session, [lock], 0, in_use(name))


def in_use(name: str) -> SliceBusy:
    """Return the error of what another run has, before anything was changed."""
    return SliceBusy(
        f"another run is at work on {name}",
        detail="Nothing was changed.",
        hint="Run it again later, or wait longer with --wait-lock.",
        side="dest",
    )


def look(source: Session, dest: Session) -> Sides:
    """Read both servers and their tables."""
    with source.reading(own_search_path=True, lock_timeout=plans.OTHER_LOCKS):
        source_is, items = catalog.server(source), inventory.tables(source)
    with dest.reading(own_search_path=True, lock_timeout=plans.OTHER_LOCKS):
        dest_is, there = catalog.server(dest), inventory.tables(dest)
    if dest_is.in_recovery:
        raise PlanRefused("dest: a standby takes no rows", side="dest")
    return Sides(source, dest, source_is, dest_is, items, items, there)


def does(options: Options, step: Step) -> bool:
    """Return whether a migration does a step: a rehearsal makes no foreign keys.

    Of some of the rows they would not hold; whoever moves all of them takes them over.
    """
    return options.limit is None or step.kind not in ("reference", "validation", "last")


def gather_unreadable(refusals: Refusals, sides: Sides, of: Sequence[Move]) -> None:
    """Gather tables of the source of which the role would not see all rows."""

    def add(found: Iterable[Item], what: str, hint: str) -> None:
        if names := [item.full_name for item in found]:
            refusals.add(PlanRefused(f"source: {what} {listed(names)}", hint=hint, side="source"))

    read = [move.item for move in of]
    add(
        (item for item in sides.items if not item.may_read),
        "the role may not read",
        "GRANT SELECT ON the tables TO the role; a right on columns does not do.",
    )
    add(
        (item for item in read if item.is_filtered),
        "row security hides rows from the role of",
        "Connect as the owner of the tables, or as a role with BYPASSRLS.",
    )
    add(
        (item for item in sides.items if item.is_detaching),
        "this partition is being detached, and its parent does not show its rows:",
        "ALTER TABLE .. DETACH PARTITION .. FINALIZE ends that; or --exclude it.",
    )
    if sides.source_is.in_recovery:
        add(
            (item for item in sides.items if item.is_unlogged),
            "a standby has no rows of unlogged tables such as",
            "--exclude them, or read from the primary.",
        )


def begin(dest: Session, options: Options) -> None:
    """Begin a transaction of the dest in which a migration is set up, or ended."""
    local = {"lock_timeout": plans.milliseconds(max(options.wait_lock, 1.0))}
    dest.begin("READ COMMITTED", read_only=False, local=local)


@contextmanager
def explained() -> Iterator[None]:
    """Tell with an error of a lock what is to be done about it."""
    try:
        yield
    except CopypipeError as error:
        if error.sqlstate == "53200":  # out_of_memory, of the table of locks
            error.hint = (
                "Each table takes a lock, each partition and index that is made too: raise "
                "max_locks_per_transaction of that server, or move fewer tables at a time."
            )
        elif error.sqlstate == "55P03":  # lock_not_available
            error.detail = "Somebody else has locked one of the tables. Nothing was changed."
            error.hint = (
                "pg_locks tells who, or pg_prepared_xacts where that has no pid; run it again "
                "later, or wait longer with --wait-lock."
            )
        raise


def truncate(
    dest: Session, filled: Sequence[Move], may_be: Sequence[Move], there: Sequence[Item]
) -> None:
    """Remove all rows of tables at once, so that they may point at each other.

    `may_be` are those that may be truncated besides: a table at which another one points can be
    truncated only with that, also where that has no row. So may a partitioned table all of whose
    partitions may be; `there` are all tables of the dest.
    """
    if not filled:
        return
    targets = {move.there.oid: move.target for move in may_be}
    leaves = _leaves(there)
    for each in there:
        whole = each.kind == "p" and not each.has_foreign
        if whole and each.oid not in targets and leaves.get(each.oid, set()) <= targets.keys():
            targets[each.oid] = Target(each.schema, each.name, only=False)
    chosen = {move.there.oid for move in filled}
    pointing = dest.fetch(statements.pointing(list(targets)))
    while more := {c for c, parent in pointing if parent in chosen and c not in chosen}:
        chosen |= more.union(*(leaves.get(oid, set()) for oid in more))
    try:
        dest.execute(statements.truncate([t for oid, t in targets.items() if oid in chosen]))
    except CopyFailed as error:
        if error.sqlstate == "0A000":  # a foreign key of another table points at one
            error.hint = "Move that table too, or remove the rows yourself."
        raise


def _leaves(items: Sequence[Item]) -> dict[int, set[int]]:
    """Return the partitions that have rows, of each partitioned table; as OIDs."""
    parents = {each.oid: each.parent for each in items}
    found: dict[int, set[int]] = {}
    for each in items:
        above = each.parent if each.kind == "r" else None
        while above is not None:
            found.setdefault(above, set()).add(each.oid)
            above = parents.get(above)
    return found


def pointing(wanted: Iterable[Move], dest: Session) -> list[tuple[int, int]]:
    """Return which tables of the dest, of those that are there, foreign keys have point at which.

    By their OIDs; at themselves too. In the dest's open transaction.
    """
    there = [move.into.oid for move in wanted if move.into is not None]
    return [(child, parent) for child, parent in dest.fetch(statements.pointing(there))]


def cut(
    move: Move, points: Collection[tuple[int, int]], options: Options, run: str
) -> tuple[slices.Slice, ...]:
    """Return the slices in which a table is copied, where these tables point at each other."""
    found = moves.cut(move, options.part_bytes, run, options.limit)
    is_tree = move.into is not None and (move.into.oid, move.into.oid) in points
    # Rows may point at rows of a part that is not there yet.
    return (slices.Whole(),) if is_tree and len(found) > 1 else found


def order(tables: Sequence[Table], points: Iterable[tuple[int, int]]) -> None:
    """Have tables wait for those at which they point.

    Raises PlanRefused where they wait for each other.
    """
    by_oid = {table.move.there.oid: table for table in tables}
    for child, parent in points:
        one, other = by_oid[child], by_oid.get(parent)
        if other is not None and one is not other and not one.is_copied and not other.is_copied:
            one.waits_for.add(other)
    free, left = {t for t in tables if not t.waits_for}, {t for t in tables if t.waits_for}
    while ready := {table for table in left if table.waits_for <= free}:
        free |= ready
        left -= ready
    if left:
        raise PlanRefused(
            "dest: foreign keys point at each other: "
            + listed([table.move.full_name for table in left]),
            detail="None of them can be filled first.",
            hint="Drop one of the keys and add it again behind the migration.",
            side="dest",
        )


def table_of(move: Move, cut: Sequence[slices.Slice], run: str) -> Table:
    return Table(move, tuple(cut), run, of=len(cut))


def pages_of(cut: Sequence[slices.Slice]) -> tuple[Pages, ...]:
    """Return those of the parts that are not the whole table."""
    return tuple(each for each in cut if isinstance(each, Pages))


def start_of(run: str, snapshot: Snapshot, position: Position) -> dict[str, Any]:
    return {
        "run": run,
        "snapshot": position.snapshot,
        "lsn": position.lsn,
        "taken_at": snapshot.seen.clock,
    }


def keys_of(names: Mapping[int, str], there: Sequence[Item]) -> dict[int, str]:
    """Return the roots of tables of the dest that are there, with a name for each.

    `names` are the tables' own, by their OIDs.
    """
    roots = inventory.roots(there)
    return {roots[oid].oid: name for oid, name in names.items() if oid in roots}
