"""What a migration does before the rows move: look, refuse, make the tables, write down what to do.

All of it is one transaction of the dest, so that a migration is known there by the time that
anything has changed.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copypipe import (
    attempts,
    catalog,
    inventory,
    journals,
    ledger,
    plans,
    schemas,
    slices,
    steps,
)
from copypipe.attempts import Pair
from copypipe.catalog import Position, Server
from copypipe.errors import (
    CommitUnknown,
    CopyFailed,
    PlanRefused,
    SliceBusy,
    UsageError,
    listed,
)
from copypipe.events import Listener, Told, Warned
from copypipe.hazards import Refusals
from copypipe.inventory import Item, chunks
from copypipe.journals import Entry, Noted
from copypipe.migrations import moves, sequences, work
from copypipe.migrations.moves import Move
from copypipe.migrations.options import Options, request_of_any
from copypipe.migrations.work import Table
from copypipe.requests import in_units
from copypipe.schemas import Tools
from copypipe.servers import Session
from copypipe.slices import TABLE, Lock, Pages
from copypipe.snapshots import Snapshot
from copypipe.statements import migrations as statements
from copypipe.statements import steps as step_statements
from copypipe.statements.migrations import Target
from copypipe.steps import Step

_SETTING_UP = Lock("setting up a migration", exclusive=True, of_table=False)


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

    def look_again(self) -> None:
        """Read the tables of the dest again, in its open transaction."""
        self.there = inventory.tables(self.dest)


@dataclass(frozen=True)
class Ready:
    """What is to be done, once it is written down."""

    migration: str
    tables: list[Table]
    steps: list[Noted]


class Keeper:
    """A session that keeps others away from the dest's tables, in a transaction of its own."""

    def __init__(self, session: Session, options: Options) -> None:
        """Begin the transaction."""
        self._session = session
        patience = {"lock_timeout": plans.milliseconds(options.wait_lock)}
        session.begin("READ COMMITTED", read_only=False, local=patience)

    def take_ledger(self) -> None:
        """Keep the ledger from being removed."""
        self._take(ledger.IN_USE, 0, "the ledger")

    def take_run(self, lock: Lock) -> None:
        """Take what shows to others of this run that the session is there."""
        self._take(lock, 0, "this run")

    def take_setting_up(self) -> None:
        """Keep other migrations from being set up."""
        self._take(_SETTING_UP, 0, "the set-up of a migration")

    def take(self, keys: Mapping[int, str]) -> None:
        """Take the keys of tables, by the OIDs of their roots; always in the same order."""
        for root, name in sorted(keys.items()):
            self._take(TABLE, root, name)

    def _take(self, lock: Lock, root: int, name: str) -> None:
        busy = SliceBusy(
            f"another run is at work on {name}",
            detail="Nothing was changed.",
            hint="Run it again later, or wait longer with --wait-lock.",
            side="dest",
        )
        ledger.lock_or(self._session, [lock], root, busy)


# ------------------------------------------------------------------------------- the first start


class First:
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
        self._others: list[journals.Other] = []
        """Migrations with tables of this one that have something left to do."""
        self.filled: list[Move] = []
        """Those into tables that hold rows."""
        self.moves = moves.moves(sides.items, sides.there, self._names, creates=options.schema)

    @property
    def existing(self) -> list[Move]:
        """Return what goes into tables that are there."""
        return [move for move in self.moves if move.into is not None]

    def keys(self) -> dict[int, str]:
        """Return the roots of the tables that are there, with a name for each."""
        return keys_of(self.existing, self.sides.there)

    def gather(self) -> Refusals:
        """Look at what can be known before anything is made; changes nothing."""
        options, sides = self.options, self.sides
        _gather_unreadable(self._refusals, sides.items)
        self._check_sequences()
        with self._refusals.gathering():
            self._check_columns()
        with self._refusals.gathering():
            self._check_names()
        with self._refusals.gathering():
            self._check_twice()
        with self._refusals.gathering():
            self._check_routed()
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
                    self._refusals.add(refused)
                    continue
                for warning in plan.warnings:
                    self._listen(Warned(f"{move.full_name}: {warning}"))
                for refusal in plan.refusals:
                    self._refusals.add(refusal)

    def check(self) -> None:
        """Raise PlanRefused with all that stands in the way; tell what will happen."""
        self.gather().check()
        needed = sum(move.size_bytes for move in self.moves)
        indexes = sum(move.index_bytes for move in self.moves)
        self._listen(
            Told(
                f"{len(self.moves)} tables of {in_units(needed)}, with {in_units(indexes)} of "
                f"indexes: the dest needs about {in_units(needed + indexes)} of disk, and its log "
                "besides"
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
                    detail=f"The partitions of {move.full_name} differ, so rows are read from the "
                    "root.",
                    hint="Do not exclude it, or make the same partitions at the dest.",
                    side="source",
                )

    def _check_names(self) -> None:
        """Refuse names that are not of tables; and missing tables where none are made."""
        names = [(move.schema, move.name) for move in self.moves if move.into is None]
        with self.sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            found = self.sides.dest.fetch(statements.other_relations(names))
        if found:
            told = [
                f"{names[place - 1][0]}.{names[place - 1][1]} ({what})" for place, what in found
            ]
            raise PlanRefused(
                f"dest: no tables bear these names, but others: {listed(told)}",
                hint="Rename or drop them, or give the tables other names (--no-schema, --into).",
                side="dest",
            )
        if not self.options.schema:
            moves.check_there(self.moves)

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
            except BaseException:
                dest.end()
                raise
        _commit(dest)
        # Nobody else knows these yet.
        keeper.take(keys_of(self.moves, sides.there))
        return ready

    def _write_down(self, archive: Archive | None, snapshot: Snapshot, position: Position) -> Ready:
        sides, options, dest = self.sides, self.options, self.sides.dest
        self._check_existing()
        had = {move.item.oid for move in self.existing}
        for some in chunks([move.target for move in self.existing]):
            # Who is still writing, of a run that lost its leader, is waited for.
            dest.execute(statements.lock_for_filling(some))
        filled = self._holding_rows()
        self._check_rows(filled)
        _truncate(dest, filled, self.existing)
        if archive is not None:
            archive.make(dest)
        sides.look_again()
        self.moves = moves.moves(sides.items, sides.there, self._names, creates=False)
        moves.check_there(self.moves)
        todo = archive.steps(sides) if archive is not None else []
        sources = {move.there.oid: move.item.oid for move in self.moves}
        todo += journals.take_over(dest, [other.id for other in self._others], sources)
        todo += self._deferred()
        todo += self.analyses()
        tables = [
            _table(move, moves.cut(move, options.part_bytes, self._run, options.limit), self._run)
            for move in self.moves
        ]
        _order(tables, dest)
        identifier = str(uuid.uuid4())
        removed = {move.item.oid for move in filled}
        entries = [
            Entry(
                source_oid=table.move.item.oid,
                source_table=table.move.item.full_name,
                dest_oid=table.move.there.oid,
                dest_table=table.move.full_name,
                made=table.move.item.oid not in had,
                had_rows=table.move.item.oid in removed,
                run=self._run,
                parts=_pages(table.parts),
            )
            for table in tables
        ]
        start = {
            **ledger.of_server(sides.source_is, sides.source.address),
            **_start(self._run, snapshot, position),
        }
        journals.begin(dest, identifier, options.told(), start, entries, todo)
        noted = [
            Noted(number, step, is_done=False)
            for number, step in enumerate(todo)
            if does(options, step)
        ]
        return Ready(identifier, tables, noted)

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
        skipped = [step for step in steps if oids.get(step.name) in lacking]
        if skipped:
            self._listen(
                Warned(
                    "no statistics are gathered of "
                    f"{listed([step.name for step in skipped])}: for these the role would have to "
                    "own the tables, or have MAINTAIN on them (17)"
                )
            )
        return [step for step in steps if step not in skipped]


class Archive:
    """The definitions of the source, and what of them the dest lacks."""

    def __init__(
        self, options: Options, sides: Sides, tools: Tools, path: Path, snapshot: str | None
    ) -> None:
        self._options = options
        self._tools = tools
        self._path = path
        self._contents = schemas.read(path, tools, owner=options.owner)
        oids = {item.oid for item in sides.items}
        self.selection = schemas.select(self._contents.entries, oids)
        rest = schemas.rest(self._contents.entries, self.selection)
        begun = snapshot is not None
        if not begun:
            sides.source.begin("READ COMMITTED", read_only=True)
        with sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            self.wanted = schemas.missing(sides.source, sides.dest, self.selection)
            self._not_tables: Sequence[schemas.Entry] = ()
            if options.asked.everything:
                self._not_tables = schemas.missing(sides.source, sides.dest, rest)
        if not begun:
            sides.source.rollback()

    @classmethod
    def of(
        cls, options: Options, sides: Sides, snapshot: str | None, folder: Path
    ) -> Archive | None:
        """Read the definitions, where they are wanted."""
        if not options.schema:
            return None
        tools = schemas.find(sides.source_is.major)
        unreadable = [(e.schema, e.name) for e in sides.everything if not e.may_read]
        path = schemas.dump(sides.source, tools, snapshot, folder, unreadable)
        return cls(options, sides, tools, path, snapshot)

    @property
    def left_out(self) -> list[str]:
        """Return what belongs to the tables and needs others."""
        return [_called(entry) for entry in self.selection.left_out]

    @property
    def not_tables(self) -> list[str]:
        """Return what the dest lacks and no table needs, where all tables are moved."""
        return [_called(entry) for entry in self._not_tables]

    def tell(self, listen: Listener) -> None:
        """Tell what comes besides, and what does not."""
        others = [e.name.rsplit(" ", 1)[0].replace(" ", ".", 1) for e in self.selection.others]
        if others:
            listen(Told(f"made without rows, since others need them: {listed(others)}"))
        if self.left_out:
            listen(
                Warned(
                    f"left out, since they need tables that do not come: {listed(self.left_out)}"
                )
            )
        if self.not_tables:
            listen(Warned(f"not tables, so they do not come: {listed(self.not_tables)}"))

    def make(self, dest: Session) -> None:
        """Make the tables and all they depend on, in the dest's open transaction."""
        options = self._options
        told = schemas.script(
            self._path,
            self._tools,
            self.wanted,
            "pre-data",
            owner=options.owner,
            acl=options.acl,
        )
        if not told:
            return
        try:
            dest.execute(step_statements.script(told))
        except (CopyFailed, PlanRefused) as error:
            error.detail = f"Nothing was made. {error.detail or ''}".strip()
            error.hint = (
                f"{error.hint or ''} What this role cannot make somebody else may make first; or "
                "all of it, with --no-schema."
            ).strip()
            raise

    def steps(self, sides: Sides) -> list[Step]:
        """Return what follows the rows."""
        return steps.of_archive(
            sides.source,
            self._contents,
            self.wanted,
            {item.oid: item for item in sides.items},
            sides.dest_is.major,
        )


def _called(entry: schemas.Entry) -> str:
    """Return the kind, schema and name of an entry, without its owner."""
    return f"{entry.kind} {entry.name.rsplit(' ', 1)[0]}"


# ------------------------------------------------------------------------------- a further start


class Again:
    """What a migration does before the rows move, when it goes on."""

    def __init__(self, options: Options, listen: Listener, run: str, sides: Sides) -> None:
        self._listen = listen
        self._run = run
        self.sides = sides
        with sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            self._found = self._unfinished(options)
            self._entries = journals.tables(sides.dest, self._found.id)
            noted = journals.steps(sides.dest, self._found.id)
        asked = self._found.asked
        self.options = replace(
            options,
            into=tuple(asked["into"]),
            schema=asked["schema"],
            limit=asked["limit"],
        )
        self._noted = [each for each in noted if does(self.options, each.step)]
        self.moves: list[Move] = []

    def _unfinished(self, options: Options) -> journals.Unfinished:
        sides = self.sides
        of_source = ledger.of_server(sides.source_is, sides.source.address)
        found = journals.unfinished(sides.dest, of_source)
        if options.migration is not None:
            found = [each for each in found if each.id == options.migration]
        if not found:
            raise PlanRefused(
                "dest: no migration from this source waits to go on",
                detail=f"Looked for in the ledger of {sides.dest.address}.",
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
        """Raise PlanRefused where a table is not what it was; tell which migration goes on."""
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
        sides.items = inventory.trees(sides.items, [entry.source_oid for entry in self._entries])
        sides.measure(self.options)
        at_source = {item.oid: item for item in sides.items}
        self.moves = [
            moves.move(at_source[entry.source_oid], at_dest[entry.dest_oid], sides.items)
            for entry in self._entries
        ]
        _gather_unreadable(refusals, sides.items)
        refusals.check()
        copied = sum(entry.copied_at is not None for entry in self._entries)
        self._listen(
            Told(
                f"going on with migration {self._found.id}, begun "
                f"{self._found.began_at:%Y-%m-%d %H:%M:%S}+00: {copied} of {len(self._entries)} "
                f"tables are there, read as of {self._found.taken_at:%Y-%m-%d %H:%M:%S}+00 or "
                "before"
            )
        )

    def keys(self) -> dict[int, str]:
        """Return the roots of the tables, with a name for each."""
        return keys_of(self.moves, self.sides.there)

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
        _commit(dest)
        return ready

    def _taken_up(self, snapshot: Snapshot, position: Position) -> Ready:
        dest, options = self.sides.dest, self.options
        by_oid = {entry.source_oid: entry for entry in self._entries}
        tables: list[Table] = []
        anew: list[Entry] = []
        emptied: list[Move] = []
        refusals = Refusals()
        for move in sorted(self.moves, key=lambda each: -(each.size_bytes + each.index_bytes)):
            entry = by_oid[move.item.oid]
            if entry.copied_at is not None and self._still_there(move, entry):
                tables.append(self._kept(move, entry, dest))
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
            slices_ = moves.cut(move, options.part_bytes, self._run, options.limit)
            tables.append(_table(move, slices_, self._run))
            anew.append(replace(entry, run=self._run, parts=_pages(slices_)))
        refusals.check()
        _truncate(dest, emptied, [table.move for table in tables if not table.is_copied])
        _order(tables, dest)
        journals.begin_again(
            dest, self._found.id, _start(self._run, snapshot, position), anew, self._run
        )
        return Ready(self._found.id, tables, self._noted)

    def _still_there(self, move: Move, entry: Entry) -> bool:
        """Return whether a table that was copied still has rows, if it had any."""
        if not entry.rows:
            return True
        found = self.sides.dest.fetch(statements.holding_rows([move.target]))
        if not found:
            self._listen(Told(f"{move.full_name} begins anew: its rows are gone"))
        return bool(found)

    def _kept(self, move: Move, entry: Entry, dest: Session) -> Table:
        """Return a table whose rows are there."""
        table = _table(move, (), entry.run)
        table.add(entry.rows or 0, entry.bytes or 0, entry.digest, entry.seconds or 0.0)
        table.is_copied = table.was_copied = True
        table.of = max(1, len(entry.parts))
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
        return table

    def _continued(self, move: Move, entry: Entry, ours: Sequence[journals.Part]) -> Table:
        """Return a table whose other parts are read in the new snapshot."""
        wanted = entry.parts
        there = {part.what: part for part in ours}
        table = _table(move, [each for each in wanted if str(each) not in there], entry.run)
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


# -------------------------------------------------------------------------------------- the rest


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


def _gather_unreadable(refusals: Refusals, items: Sequence[Item]) -> None:
    lacking = [item.full_name for item in items if not item.may_read]
    if lacking:
        refusals.add(
            PlanRefused(
                f"source: the role may not read {listed(lacking)}",
                hint="GRANT SELECT ON the tables TO the role; a right on columns does not do.",
                side="source",
            )
        )


def begin(dest: Session, options: Options) -> None:
    """Begin a transaction of the dest in which a migration is set up, or ended."""
    local = {"lock_timeout": plans.milliseconds(max(options.wait_lock, 1.0))}
    dest.begin("READ COMMITTED", read_only=False, local=local)


def _commit(dest: Session) -> None:
    """Commit what was set up."""
    try:
        dest.commit()
    except CommitUnknown as error:
        error.detail = "Either the tables are there, without rows, or nothing was changed."
        error.hint = "--resume goes on, or says that there is nothing to go on with."
        raise


def _truncate(dest: Session, filled: Sequence[Move], may_be: Sequence[Move]) -> None:
    """Remove all rows of tables at once, so that they may point at each other.

    `may_be` are those that may be truncated besides: a table at which another one points can be
    truncated only with that, also where that has no row.
    """
    if not filled:
        return
    by_oid = {move.there.oid: move for move in may_be}
    chosen = {move.there.oid: move for move in filled}
    pointing = dest.fetch(statements.pointing(list(by_oid)))
    while more := {c for c, parent in pointing if parent in chosen and c not in chosen}:
        chosen |= {oid: by_oid[oid] for oid in more}
    try:
        dest.execute(statements.truncate([move.target for move in chosen.values()]))
    except CopyFailed as error:
        if error.sqlstate == "0A000":  # a foreign key of another table points at one
            error.hint = "Move that table too, or remove the rows yourself."
        raise


def _order(tables: Sequence[Table], dest: Session) -> None:
    """Have tables wait for those at which foreign keys of the dest point.

    Raises PlanRefused where they wait for each other.
    """
    by_oid = {table.move.there.oid: table for table in tables}
    for child, parent in dest.fetch(statements.pointing(list(by_oid))):
        one, other = by_oid[child], by_oid.get(parent)
        if one.is_copied:
            continue
        if one is other and len(one.parts) > 1:
            # Rows may point at rows of a part that is not there yet.
            one.parts = (slices.Whole(),)
            one.of = 1
        elif other is not None and one is not other and not other.is_copied:
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


def _table(move: Move, cut: Sequence[slices.Slice], run: str) -> Table:
    return Table(move, tuple(cut), run, of=len(cut))


def _pages(cut: Sequence[slices.Slice]) -> tuple[Pages, ...]:
    """Return those of the parts that are not the whole table."""
    return tuple(each for each in cut if isinstance(each, Pages))


def _start(run: str, snapshot: Snapshot, position: Position) -> dict[str, Any]:
    return {
        "run": run,
        "snapshot": position.snapshot,
        "lsn": position.lsn,
        "taken_at": snapshot.seen.clock,
    }


def keys_of(of: Sequence[Move], there: Sequence[Item]) -> dict[int, str]:
    """Return the roots of the tables of the dest that moves go into, with a name for each."""
    roots = inventory.roots(there)
    return {roots[move.into.oid].oid: move.full_name for move in of if move.into is not None}


def _analysis(item: Item, name: tuple[str, str], statement: str) -> Step:
    return Step("analyze", item.oid, ".".join(name), statement)


# ANALYZE ONLY (release notes of 18), and the privilege MAINTAIN (of 17).
_ANALYZE_ONLY = 18
_MAINTAIN = 17
