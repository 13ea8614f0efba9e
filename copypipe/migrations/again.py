"""What a migration does before the rows move, when it goes on: in one transaction of the dest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from copypipe import inventory, journals, ledger, plans
from copypipe.catalog import Position
from copypipe.errors import PlanRefused, SliceBusy, UsageError, listed
from copypipe.events import Listener, Told, Warned
from copypipe.hazards import Refusals
from copypipe.inventory import Asked, chunks
from copypipe.journals import Entry
from copypipe.migrations import moves
from copypipe.migrations.moves import Move
from copypipe.migrations.options import Options
from copypipe.migrations.sides import (
    Keeper,
    Ready,
    Sides,
    Start,
    begin,
    cut,
    does,
    gather_unreadable,
    keys_of,
    order,
    pages_of,
    pointing,
    start_of,
    table_of,
    truncate,
)
from copypipe.migrations.work import Table
from copypipe.snapshots import Snapshot
from copypipe.statements import migrations as statements


class _Ledger(NamedTuple):
    """What the ledger tells of a migration."""

    found: journals.Unfinished
    tables: list[Entry]
    steps: list[journals.Noted]


class Again(Start):
    """What a migration does before the rows move, when it goes on."""

    def __init__(self, options: Options, listen: Listener, run: str, sides: Sides) -> None:
        self._listen = listen
        self._run = run
        self.sides = sides
        self._options = options
        self._told = self._read()
        self._found, self._entries, noted = self._told
        asked = self._found.asked
        self.options = replace(
            options,
            into=tuple(asked["into"]),
            schema=asked["schema"],
            limit=asked["limit"],
        )
        self._noted = [each for each in noted if does(self.options, each.step)]
        self.moves: list[Move] = []
        self._came: list[str] = []
        """Tables that came to the source since."""

    def _read(self) -> _Ledger:
        with self.sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            return self._ledger()

    def _ledger(self) -> _Ledger:
        """Read the ledger in the dest's open transaction."""
        found = self._unfinished()
        dest = self.sides.dest
        return _Ledger(found, journals.tables(dest, found.id), journals.steps(dest, found.id))

    @property
    def is_old(self) -> bool:
        """Return whether the ledger tells something else than what was read at first.

        Raises PlanRefused where no migration is left.
        """
        return self._read() != self._told

    def _unfinished(self) -> journals.Unfinished:
        options, sides = self._options, self.sides
        of_source = ledger.of_server(sides.source_is, sides.source.address)
        found = journals.unfinished(sides.dest, of_source)
        if options.migration is not None:
            found = [each for each in found if each.id == options.migration]
        if not found:
            ended_at = journals.last_end(sides.dest, of_source)
            last = f" The last one ended {ended_at:%Y-%m-%d %H:%M:%S}+00." if ended_at else ""
            raise PlanRefused(
                "dest: no migration from this source waits to go on",
                detail=f"Looked for in the ledger of {sides.dest.address}.{last}",
                side="dest",
            )
        if len(found) > 1:
            each = "; ".join(f"{e.id} of {e.began_at:%Y-%m-%d %H:%M}+00" for e in found)
            raise UsageError(
                "several migrations from this source have not ended",
                detail=f"{each}.",
                hint="Name one with --id.",
            )
        return found[0]

    def check(self) -> None:
        """Raise PlanRefused where a table is not what it was."""
        sides, refusals = self.sides, Refusals()
        at_source = {item.oid: item for item in sides.items}
        at_dest = {item.oid: item for item in sides.there}
        for entry in self._entries:
            item, into = at_source.get(entry.source_oid), at_dest.get(entry.dest_oid)
            for side, name, found in (
                ("source", entry.source_table, item),
                ("dest", entry.dest_table, into),
            ):
                if found is None or found.full_name != name:
                    refusals.add(
                        PlanRefused(
                            f"{side}: {name} is not there any more as it was",
                            hint="Begin anew: the same command as at first, with --replace.",
                            side="source" if side == "source" else "dest",
                        )
                    )
        refusals.check()
        roots = inventory.roots(sides.there)
        moved = [e.dest_table for e in self._entries if roots[e.dest_oid].oid != e.dest_root]
        if moved:
            refusals.add(
                PlanRefused(
                    f"dest: {listed(moved)} was attached to another table since, or detached",
                    hint="Undo that; or begin anew: the same command as at first, with --replace.",
                    side="dest",
                )
            )
        self._check_new(refusals)
        sides.items = inventory.trees(sides.items, [entry.source_oid for entry in self._entries])
        sides.measure(self.options)
        at_source = {item.oid: item for item in sides.items}
        self.moves = [
            moves.move(at_source[entry.source_oid], at_dest[entry.dest_oid], sides.items)
            for entry in self._entries
        ]
        gather_unreadable(refusals, sides, self.moves)
        refusals.check()

    def tell(self) -> None:
        """Tell which migration goes on."""
        if self._came:
            self._listen(
                Warned(f"came since the migration began, and do not come: {listed(self._came)}")
            )
        copied = sum(entry.copied_at is not None for entry in self._entries)
        self._listen(
            Told(
                f"going on with migration {self._found.id}, begun "
                f"{self._found.began_at:%Y-%m-%d %H:%M:%S}+00: {copied} of {len(self._entries)} "
                f"tables are there, read as of {self._found.taken_at:%Y-%m-%d %H:%M:%S}+00 or "
                "before"
            )
        )

    def _check_new(self, refusals: Refusals) -> None:
        """Refuse partitions that came since the migration began; note tables that did."""
        items = self.sides.items
        asked = self._found.asked
        names = Asked(
            tuple(asked["tables"]),
            tuple(asked["schemas"]),
            asked["everything"],
            tuple(asked["exclude"]),
        )
        try:
            chosen = inventory.pick(items, names)
        except PlanRefused:
            return
        known = {entry.source_oid for entry in self._entries}
        routed = [each.oid for each in items if each.oid in known and each.kind == "p"]
        known |= {each.oid for each in inventory.trees(items, routed)} if routed else set()
        roots = inventory.roots(items)
        of = {roots[oid].oid for oid in known}
        came = [each for each in chosen if each.kind == "r" and each.oid not in known]
        came = [each for each in came if each.has_columns]
        if parts := [each.full_name for each in came if roots[each.oid].oid in of]:
            refusals.add(
                PlanRefused(
                    f"source: the partition {listed(parts)} came since the migration began",
                    detail="Its rows would be missing.",
                    hint="Begin anew: the same command as at first, with --replace.",
                    side="source",
                )
            )
        self._came = [each.full_name for each in came if roots[each.oid].oid not in of]

    def keys(self) -> dict[int, str]:
        """Return the roots of the tables that are there, with a name for each; also unchecked."""
        return keys_of({e.dest_oid: e.dest_table for e in self._entries}, self.sides.there)

    def set_up(self, snapshot: Snapshot, position: Position, keeper: Keeper) -> Ready:
        """Remove what is there of tables that begin anew, in one transaction of the dest.

        Raises a CopypipeError, and then nothing was changed.
        """
        dest = self.sides.dest
        begin(dest, self.options)
        try:
            ready = self._taken_up(snapshot, position)
        except BaseException:
            dest.end()
            raise
        return self.commit(dest, ready)

    def _taken_up(self, snapshot: Snapshot, position: Position) -> Ready:
        dest, options = self.sides.dest, self.options
        by_oid = {entry.source_oid: entry for entry in self._entries}
        left = [move for move in self.moves if by_oid[move.item.oid].copied_at is None]
        for some in chunks(left):
            dest.execute(statements.lock_for_filling([move.target for move in some]))
        # What a killed run was committing is there behind these locks.
        if self._ledger() != self._told:
            raise self._gone_on()
        tables: list[Table] = []
        anew: list[Entry] = []
        emptied: list[Move] = []
        refusals = Refusals()
        points = pointing(self.moves, dest)
        for move in sorted(self.moves, key=lambda each: -each.total_bytes):
            entry = by_oid[move.item.oid]
            if entry.copied_at is not None:
                if (table := self._kept(move, entry)) is not None:
                    tables.append(table)
                    continue
                dest.execute(statements.lock_for_filling([move.target]))
            parts = journals.parts(dest, self._found.id, entry.dest_oid)
            ours = [part for part in parts if entry.run in part.what]
            xids = [part.xid for part in ours]
            rows, own = dest.fetch_one(statements.count_of(move.target, xids))
            if rows != own or (rows and rows != sum(part.rows for part in ours)):
                refusals.add(self._with_others(move, rows, own))
                continue
            if rows and not options.consistent and entry.parts:
                tables.append(self._continued(move, entry, ours))
                continue
            if ours and rows:
                self._listen(
                    Told(
                        f"{move.full_name} begins anew: {len(ours)} of its {len(entry.parts)} "
                        "parts were there, read in a snapshot that is gone"
                    )
                )
            if rows:
                emptied.append(move)
            slices_ = cut(move, points, options, self._run)
            tables.append(table_of(move, slices_, self._run))
            anew.append(replace(entry, run=self._run, parts=pages_of(slices_)))
        refusals.check()
        may_be = [table.move for table in tables if not table.is_copied]
        truncate(dest, emptied, may_be, self.sides.there)
        order(tables, points)
        start = start_of(self._run, snapshot, position)
        if not journals.begin_again(dest, self._found, start, anew):
            raise self._gone_on()
        return Ready(self._found.id, tables, self._noted)

    def _gone_on(self) -> SliceBusy:
        return SliceBusy(
            f"dest: another run has gone on with migration {self._found.id}",
            detail="Nothing was changed.",
            hint="Run it again: it goes on where that one ended.",
            side="dest",
        )

    def _kept(self, move: Move, entry: Entry) -> Table | None:
        """Return a table whose rows are there; None for one that has none any more."""
        dest = self.sides.dest
        (rows,) = dest.fetch_one(statements.count(move.target))
        if entry.rows and not rows:
            self._listen(Told(f"{move.full_name} begins anew: its rows are gone"))
            return None
        table = table_of(move, (), entry.run)
        table.add(entry.rows or 0, entry.bytes or 0, entry.digest, entry.seconds or 0.0)
        # Where the run died between the copy and this.
        journals.copied(
            dest,
            self._found.id,
            entry.source_oid,
            rows=table.rows,
            size=table.bytes,
            digest=table.digest,
            seconds=table.copy_seconds,
        )
        if rows != table.rows:
            self._listen(
                Warned(
                    f"{move.full_name} was whole with {table.rows} rows, and holds {rows}: "
                    "somebody has written into it since, and it stays as it is"
                )
            )
            table.rows, table.digest = rows, None
        table.is_copied = table.was_copied = True
        table.of = max(1, len(entry.parts))
        return table

    def _continued(self, move: Move, entry: Entry, ours: Sequence[journals.Part]) -> Table:
        """Return a table whose other parts are read in the new snapshot."""
        wanted = entry.parts
        there = {part.what: part for part in ours}
        table = table_of(move, [each for each in wanted if str(each) not in there], entry.run)
        table.of = len(wanted)
        table.must_be_compared = bool(there)
        for part in ours:
            table.add(part.rows, part.bytes, part.digest, part.seconds)
        self._listen(
            Told(
                f"{move.full_name} goes on in another snapshot: {len(there)} of {len(wanted)} "
                "parts are there; in the end both sides are compared"
            )
        )
        return table

    def _with_others(self, move: Move, rows: int, ours: int) -> PlanRefused:
        return PlanRefused(
            f"dest: {move.full_name} holds {rows} rows, of which this migration wrote {ours}",
            detail="Rows of others are never removed.",
            hint="Remove them, or begin anew: the same command as at first, with --replace.",
            side="dest",
        )
