"""What a migration does before the rows move, when it first begins: look, refuse, make, write down.

All of it is one transaction of the dest, so that a migration is known there by the time that
anything has changed.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from copypipe import attempts, inventory, journals, ledger, plans
from copypipe.attempts import Pair
from copypipe.catalog import Position
from copypipe.errors import PlanRefused, counted, listed
from copypipe.events import Listener, Told, Warned
from copypipe.hazards import Refusals
from copypipe.inventory import Item, chunks
from copypipe.journals import Entry, Noted
from copypipe.migrations import moves, sequences, work
from copypipe.migrations.archive import Archive
from copypipe.migrations.moves import Move
from copypipe.migrations.options import Options, request_of_any
from copypipe.migrations.sides import (
    Keeper,
    Ready,
    Sides,
    Start,
    begin,
    cut,
    does,
    gather_unreadable,
    in_use,
    keys_of,
    order,
    pages_of,
    pointing,
    start_of,
    table_of,
    truncate,
)
from copypipe.requests import in_units
from copypipe.snapshots import Snapshot
from copypipe.statements import migrations as statements
from copypipe.statements import steps as step_statements
from copypipe.statements.migrations import Target
from copypipe.steps import Step


class First(Start):
    """What a migration does before the rows move, when it first begins."""

    def __init__(self, options: Options, listen: Listener, run: str, sides: Sides) -> None:
        self.options = options
        self._listen = listen
        self._run = run
        self.sides = sides
        self._names = moves.names(options.into)
        sides.items = inventory.pick(sides.items, options.asked)
        sides.measure(options)
        self._refusals = Refusals()
        self.warnings: list[str] = []
        """What is to be told, and does not hinder."""
        self._others: list[journals.Other] = []
        """Migrations with tables of this one that have something left to do."""
        self.filled: list[Move] = []
        """Those into tables that hold rows."""
        self.moves = moves.moves(sides.items, sides.there, self._names, creates=options.schema)

    @property
    def existing(self) -> list[Move]:
        """Return what goes into tables that are there."""
        return [move for move in self.moves if move.into is not None]

    @property
    def is_old(self) -> bool:
        """Return False: what was read is looked at again in the transaction of the set-up."""
        return False

    def keys(self) -> dict[int, str]:
        """Return the roots of the tables that are there, with a name for each."""
        names = {move.there.oid: move.full_name for move in self.existing}
        return keys_of(names, self.sides.there)

    def gather(self) -> Refusals:
        """Look at what can be known before anything is made; changes nothing."""
        options, sides = self.options, self.sides
        gather_unreadable(self._refusals, sides, self.moves)
        self._check_sequences()
        for check in (
            self._check_into,
            self._check_columns,
            self._check_foreign,
            self._check_names,
            self._check_loose,
            self._check_twice,
            self._check_routed,
        ):
            with self._refusals.gathering():
                check()
        with sides.dest.reading(lock_timeout=plans.milliseconds(options.wait_lock)):
            self._others = journals.others(sides.dest, [m.there.oid for m in self.existing])
            self.filled = self._holding_rows()
            with self._refusals.gathering():
                self._check_others()
            with self._refusals.gathering():
                self._check_rows(self.filled)
        self._plan_existing()
        return self._refusals

    def _plan_existing(self) -> None:
        """Plan what goes into tables that are there, and gather what stands in its way."""
        options = self.options
        # What refuses a plan ends its sessions.
        with closing(Pair(request_of_any(options), self._listen)) as pair:
            for move in self.existing:
                part = moves.cut(move, options.part_bytes, self._run, options.limit)[0]
                request = work.request_of(request_of_any(options), move, part)
                try:
                    with pair.sessions() as (source, dest):
                        plan = attempts.planned(request, source, dest, plans.draft)
                except PlanRefused as refused:
                    self._refusals.add(work.hinted(refused))
                    continue
                self.warnings += [f"{move.full_name}: {warning}" for warning in plan.warnings]
                for refusal in plan.refusals:
                    self._refusals.add(work.hinted(refusal))

    def check(self) -> None:
        """Raise PlanRefused with all that stands in the way."""
        self.gather().check()

    def tell(self) -> None:
        """Tell what will happen."""
        for warning in self.warnings:
            self._listen(Warned(warning))
        needed = sum(move.size_bytes for move in self.moves)
        indexes = sum(move.index_bytes for move in self.moves)
        self._listen(
            Told(
                f"{counted(len(self.moves), 'table')} of {in_units(needed)}, with "
                f"{in_units(indexes)} of indexes: the dest needs about "
                f"{in_units(needed + indexes)} of disk, and its log besides"
            )
        )
        if self.options.limit is not None:
            self._listen(
                Told(
                    f"a rehearsal: at most {self.options.limit} rows of each table, and no foreign "
                    "key"
                )
            )

    def _check_sequences(self) -> None:
        """Gather sequences that could not be brought to where they are at the source."""
        sides = self.sides
        into = sequences.counterparts(sides.items, sides.there, self._names)
        with (
            sides.source.reading(lock_timeout=plans.OTHER_LOCKS),
            sides.dest.reading(lock_timeout=plans.OTHER_LOCKS),
        ):
            found = sequences.problems(sides.source, sides.dest, sides.items, into)
        for each in found:
            self._refusals.add(each)

    def _check_into(self) -> None:
        """Refuse names for what is not there."""
        moves.check_names(self._names, self.sides.everything)

    def _check_columns(self) -> None:
        """Refuse rows without a column."""
        bare = [item for item in self.sides.items if item.kind == "r" and not item.has_columns]
        readable = [Target(item.schema, item.name) for item in bare if item.may_read]
        with self.sides.source.reading(lock_timeout=plans.OTHER_LOCKS):
            filled = self.sides.source.fetch(statements.holding_rows(readable)) if readable else []
        if filled:
            names = [str(readable[place]) for (place,) in filled]
            raise PlanRefused(
                f"source: {listed(names)} has rows, but no column that could be copied",
                hint="--exclude the table.",
                side="source",
            )

    def _check_routed(self) -> None:
        """Refuse to route a tree of which a partition was excluded: its root is read as a whole."""
        chosen = {item.oid for item in self.sides.items}
        for move in self.moves:
            if not move.is_routed:
                continue
            tree = inventory.trees(self.sides.everything, [move.item.oid])
            if rest := [each.full_name for each in tree if each.oid not in chosen]:
                raise PlanRefused(
                    f"source: {listed(rest)} would come with {move.item.full_name}",
                    detail="Its rows are read from the root: its partitions at the dest differ, or "
                    "cannot be filled one by one.",
                    hint="Do not exclude it, or make the same partitions at the dest.",
                    side="source",
                )

    def _check_foreign(self) -> None:
        """Refuse to make a tree of which some partitions would be missing."""
        found = [m.item.full_name for m in self.moves if m.item.has_foreign and m.into is None]
        if found:
            raise PlanRefused(
                f"source: {listed(found)} has foreign tables among its partitions",
                detail="They are not made at the dest, and their rows would have no partition.",
                hint="Make a table at the dest that takes all rows, and give --no-schema; or name "
                "the partitions that are to be moved.",
                side="source",
            )

    def _check_names(self) -> None:
        """Refuse names that are not of tables; and missing tables where none are made."""
        names = [(move.schema, move.name) for move in self.moves if move.into is None]
        with self.sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            told = self.sides.taken(names)
        if told:
            raise PlanRefused(
                f"dest: no tables bear these names, but others: {listed(told)}",
                hint="Rename or drop them, or give the tables other names (--no-schema, --into).",
                side="dest",
            )
        if not self.options.schema:
            moves.check_there(self.moves)

    def _check_loose(self) -> None:
        """Refuse partitions that are there, but not as those of the table that they would be of."""
        sides = self.sides
        if not self.options.schema:
            return
        by_oid = {each.oid: each for each in sides.everything}
        at_dest = {each.oid: each for each in sides.there}
        there = {(each.schema, each.name): each for each in sides.there}
        apart = moves.apart(sides.items, sides.there)
        loose = []
        for each in sides.items:
            parent, other = by_oid.get(each.parent or 0), there.get((each.schema, each.name))
            if parent is None or other is None or each.oid in apart:
                continue
            above = at_dest.get(other.parent or 0)
            if above is None or (above.schema, above.name) != (parent.schema, parent.name):
                loose.append(f"{each.full_name} (of {parent.full_name})")
        if loose:
            raise PlanRefused(
                f"dest: partitions are there, but not of the tables that they are of: "
                f"{listed(loose)}",
                hint="Attach them; or drop them, or rename them together with their indexes; or "
                "give --no-schema, and what is there is filled.",
                side="dest",
            )

    def _check_twice(self) -> None:
        """Refuse two tables that go into one."""
        seen: dict[str, str] = {}
        for move in self.moves:
            other = seen.setdefault(move.full_name, move.item.full_name)
            if other != move.item.full_name:
                raise PlanRefused(
                    f"{other} and {move.item.full_name} would both go into {move.full_name}",
                    hint="Give each a name of its own with --into.",
                )

    def _holding_rows(self) -> list[Move]:
        """Return the moves into tables that hold rows, in the dest's open transaction."""
        found: list[Move] = []
        for some in chunks(self.existing):
            targets = [move.target for move in some]
            places = self.sides.dest.fetch(statements.holding_rows(targets))
            found += [some[place] for (place,) in places]
        return found

    def _check_rows(self, filled: Sequence[Move]) -> None:
        """Refuse tables that hold rows, unless they are to be replaced."""
        if not filled or self.options.replace:
            return
        names = listed([move.full_name for move in filled])
        raise PlanRefused(
            f"dest: {names} {'hold' if len(filled) > 1 else 'holds'} rows",
            hint="--replace removes the rows first.",
            side="dest",
        )

    def _check_others(self) -> None:
        """Refuse tables that another migration has not done with, unless it is to be replaced.

        What it has left to do is taken over then: what it has made is there without it.
        """
        ours = {move.there.oid for move in self.existing}
        refusals = Refusals()
        for other in self._others:
            shared = [n for oid, n in zip(other.oids, other.names, strict=True) if oid in ours]
            rest = [n for oid, n in zip(other.oids, other.names, strict=True) if oid not in ours]
            goes_on = "" if other.has_ended else f"--resume --id {other.id} goes on with it. "
            if not other.has_ended and not self.options.replace:
                refusals.add(
                    PlanRefused(
                        f"dest: a migration that has not ended has {listed(shared)}",
                        hint=f"{goes_on}--replace begins anew.",
                        side="dest",
                    )
                )
            elif rest:
                refusals.add(
                    PlanRefused(
                        f"dest: what a migration of {listed(shared)} has left to do is also about "
                        f"{listed(rest)}",
                        hint=f"{goes_on}Name these tables too, or drop those that it has made.",
                        side="dest",
                    )
                )
        refusals.check()

    def set_up(self, snapshot: Snapshot, position: Position, keeper: Keeper) -> Ready:
        """Make what is missing and write down what is to be done, in one transaction of the dest.

        Raises a CopypipeError, and then nothing was changed; CommitUnknown cannot promise that.
        """
        sides, dest = self.sides, self.sides.dest
        with tempfile.TemporaryDirectory(prefix="copypipe-") as folder:
            archive = Archive.of(self.options, sides, snapshot.identifier, Path(folder))
            if archive is not None:
                archive.tell(self._listen)
            begin(dest, self.options)
            try:
                ready = self._write_down(archive, snapshot, position)
                # Also of the tables that nobody can see yet: a run that is held up behind the
                # COMMIT would find these taken, or worse, done and free again.
                if busy := keeper.take(self.keys()):
                    raise in_use(listed(busy))
            except BaseException:
                dest.end()
                raise
        return self.commit(dest, ready)

    def _write_down(self, archive: Archive | None, snapshot: Snapshot, position: Position) -> Ready:
        sides, options, dest = self.sides, self.options, self.sides.dest
        self._check_existing()
        had = {move.item.oid for move in self.existing}
        for some in chunks([move.target for move in self.existing]):
            # Who is still writing, of a run that lost its leader, is waited for.
            dest.execute(statements.lock_for_filling(some))
        # One that was killed while its COMMIT was under way is known only behind these locks.
        self._others = journals.others(dest, [move.there.oid for move in self.existing])
        self._check_others()
        filled = self._holding_rows()
        self._check_rows(filled)
        truncate(dest, filled, self.existing, sides.there)
        if archive is not None:
            archive.make(dest)
        sides.look_again()
        self.moves = moves.moves(sides.items, sides.there, self._names, creates=False)
        moves.check_there(self.moves)
        sources = {move.there.oid: move.item.oid for move in self.moves}
        # First, for an index of a new partition may become a part of one of theirs.
        todo = journals.take_over(dest, [other.id for other in self._others], sources)
        todo += self._owned(archive.steps(sides, self._listen)) if archive is not None else []
        todo += self._deferred()
        todo += self.analyses()
        points = pointing(self.moves, dest)
        tables = [
            table_of(move, cut(move, points, options, self._run), self._run) for move in self.moves
        ]
        order(tables, points)
        identifier = str(uuid.uuid4())
        removed = {move.item.oid for move in filled}
        roots = inventory.roots(sides.there)
        entries = [
            Entry(
                source_oid=table.move.item.oid,
                source_table=table.move.item.full_name,
                dest_oid=table.move.there.oid,
                dest_table=table.move.full_name,
                dest_root=roots[table.move.there.oid].oid,
                made=table.move.item.oid not in had,
                had_rows=table.move.item.oid in removed,
                run=self._run,
                parts=pages_of(table.parts),
            )
            for table in tables
        ]
        start = {
            **ledger.of_server(sides.source_is, sides.source.address),
            **start_of(self._run, snapshot, position),
        }
        journals.begin(dest, identifier, options.told(), start, entries, todo)
        noted = [
            Noted(number, step, is_done=False)
            for number, step in enumerate(todo)
            if does(options, step)
        ]
        return Ready(identifier, tables, noted)

    def _owned(self, todo: Sequence[Step]) -> list[Step]:
        """Return steps with the tables that they follow.

        Those of partitions whose rows go through the root follow that; what is of a table without
        rows follows all.
        """
        moved = {move.item.oid for move in self.moves}
        roots = inventory.roots(self.sides.items)
        found = []
        for step in todo:
            if step.kind in ("index", "constraint") and step.table not in moved:
                top = roots.get(step.table)
                if top is not None and top.oid in moved:
                    step = replace(step, table=top.oid)
                else:
                    step = replace(step, kind="other", table=0)
            found.append(step)
        return found

    def _check_existing(self) -> None:
        """Raise PlanRefused where tables came or went since they were looked at."""
        before = {move.full_name: move.there.oid for move in self.existing}
        self.sides.look_again()
        found = moves.moves(
            self.sides.items, self.sides.there, self._names, creates=self.options.schema
        )
        now = {move.full_name: move.there.oid for move in found if move.into is not None}
        if changed := sorted(name for name, _ in before.items() ^ now.items()):
            raise PlanRefused(
                f"dest: {changed[0]} was made or dropped while the migration was prepared",
                hint="Run it again.",
                side="dest",
            )

    def _deferred(self) -> list[Step]:
        """Drop the plain indexes of tables that are there, and return how they are made again."""
        found = self.deferrable()
        for name in found:
            self.sides.dest.execute(step_statements.drop_index(*name))
        if self.options.defer_indexes:
            self._listen(Told(f"{len(found)} indexes are dropped, and made again behind the rows"))
        return list(found.values())

    def deferrable(self) -> dict[tuple[str, str], Step]:
        """Return how indexes that are to be dropped are made again, by their schemas and names.

        In the dest's open transaction.
        """
        if not self.options.defer_indexes:
            return {}
        of = {move.there.oid: move.item.oid for move in self.existing}
        return {
            (schema, name): Step("index", of[oid], f"{schema}.{name}", definition)
            for oid, schema, name, definition in self.sides.dest.fetch(
                step_statements.plain_indexes(list(of))
            )
        }

    def analyses(self) -> list[Step]:
        """Return the steps that gather statistics, in the dest's open transaction.

        Those of a partitioned table, which nothing else gathers, need a look at its partitions;
        before 18 that gathers those of each partition again, so there it is done once, for the
        whole tree.
        """
        sides, names = self.sides, self._names
        at_dest = {(each.schema, each.name): each for each in sides.there}
        roots = inventory.roots(sides.items)
        by_itself = sides.dest_is.major >= _ANALYZE_ONLY
        found: dict[int, Step] = {}
        for move in self.moves:
            top = roots[move.item.oid]
            root = at_dest.get(names(top))
            is_tree = self.options.schema if root is None else root.kind == "p"
            is_part = top.oid != move.item.oid and is_tree
            if is_part:
                text = step_statements.analyze(names(top), only=by_itself)
                found[top.oid] = _analysis(top, names(top), text)
            if not is_part or by_itself:
                name = (move.schema, move.name)
                found[move.item.oid] = _analysis(move.item, name, step_statements.analyze(name))
        return self._permitted(found.values())

    def _permitted(self, analyses: Iterable[Step]) -> list[Step]:
        """Return those that the server would not skip with a mere warning; tell of the others."""
        sides = self.sides
        oids = {f"{each.schema}.{each.name}": each.oid for each in sides.there}
        steps = list(analyses)
        known = [oids[step.name] for step in steps if step.name in oids]
        asked = step_statements.not_analyzable(known, maintain=sides.dest_is.major >= _MAINTAIN)
        lacking = {oid for (oid,) in sides.dest.fetch(asked)}
        if skipped := [step.name for step in steps if oids.get(step.name) in lacking]:
            self._listen(
                Warned(
                    f"no statistics are gathered of {listed(skipped)}: for these the role would "
                    "have to own the tables, or have MAINTAIN on them (17)"
                )
            )
        return [step for step in steps if oids.get(step.name) not in lacking]


def _analysis(item: Item, name: tuple[str, str], statement: str) -> Step:
    return Step("analyze", item.oid, ".".join(name), statement)


# ANALYZE ONLY (release notes of 18), and the privilege MAINTAIN (of 17).
_ANALYZE_ONLY = 18
_MAINTAIN = 17
