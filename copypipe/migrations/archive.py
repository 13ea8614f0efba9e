"""The definitions of the source, and what of them the dest lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from copypipe import plans, schemas, steps
from copypipe.errors import CopyFailed, PlanRefused, counted, listed
from copypipe.events import Listener, Told, Warned
from copypipe.inventory import Item
from copypipe.migrations import moves
from copypipe.migrations.options import Options
from copypipe.migrations.sides import Sides
from copypipe.schemas import Tools
from copypipe.servers import Session
from copypipe.statements import steps as step_statements
from copypipe.steps import Step


class Archive:
    """The definitions of the source, and what of them the dest lacks."""

    def __init__(
        self, options: Options, sides: Sides, tools: Tools, path: Path, snapshot: str | None
    ) -> None:
        self._options = options
        self._tools = tools
        self._path = path
        apart = moves.apart(sides.items, sides.there)
        self._apart = [each.full_name for each in sides.items if each.oid in apart]
        self._items = [each for each in sides.items if each.oid not in apart]
        self._grown = _grown(self._items, sides)
        self._contents = schemas.read(path, tools, owner=options.owner)
        oids = {item.oid for item in self._items}
        self.selection = schemas.select(self._contents.entries, oids, apart)
        begun = snapshot is not None
        if not begun:
            sides.source.begin("READ COMMITTED", read_only=True)
        with sides.dest.reading(lock_timeout=plans.OTHER_LOCKS):
            self.wanted = schemas.missing(sides.source, sides.dest, self.selection)
            self._not_tables: Sequence[schemas.Entry] = ()
            if options.asked.everything:
                rest = schemas.rest(self._contents.entries, self.selection)
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
        return _told(self.selection.left_out)

    @property
    def not_tables(self) -> list[str]:
        """Return what the dest lacks and no table needs, where all tables are moved."""
        return _told(self._not_tables)

    @property
    def makes(self) -> list[str]:
        """Return what is made before the rows, and behind them."""
        acl = self._options.acl
        return _told([entry for entry in self.wanted if acl or entry.kind != "ACL"])

    def tell(self, listen: Listener) -> None:
        """Tell what comes besides, and what does not."""
        wanted = {entry.number for entry in self.wanted}
        others = [
            entry.called.replace(" ", ".", 1)
            for entry in self.selection.others
            if entry.number in wanted
        ]
        if others:
            listen(Told(f"made without rows, since others need them: {listed(others)}"))
        if self.left_out:
            listen(
                Warned(
                    f"left out, since they need tables that do not come: {listed(self.left_out)}"
                )
            )
        if self._apart:
            listen(
                Told(
                    f"{listed(self._apart)} are not made: the dest does not partition that table, "
                    "or by something else"
                )
            )
        if self._grown:
            listen(
                Told(
                    f"{counted(len(self._grown), 'new partition')} of tables that are there, with "
                    "the indexes of these"
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
            if error.sqlstate == "42501":  # insufficient_privilege
                told = "What this role cannot make somebody else may make first"
            else:
                told = (
                    "What the dest has there by itself stands in the way: make it as it should be"
                )
            error.hint = f"{error.hint or ''} {told}; or all of it, with --no-schema.".strip()
            raise

    def steps(self, sides: Sides, listen: Listener) -> list[Step]:
        """Return what follows the rows; tell what of it does not come.

        In open transactions of both sides. Raises PlanRefused where names of indexes are taken:
        nothing else would tell before the rows.
        """
        found = steps.of_archive(
            sides.source,
            self._contents,
            self.wanted,
            {item.oid: item for item in self._items},
            sides.dest_is.major,
            self._grown,
        )
        if told := sides.taken(found.indexes):
            raise PlanRefused(
                f"dest: indexes could not be made, for their names are taken: {listed(told)}",
                detail="Nothing was changed.",
                hint="Rename these, there or at the source.",
                side="dest",
            )
        if found.lost:
            listen(
                Warned(
                    "not told of new partitions, for their indexes are those of the tables that "
                    f"they come to: {listed(found.lost)}"
                )
            )
        return found.steps


def _grown(items: Iterable[Item], sides: Sides) -> frozenset[int]:
    """Return the partitions that the dest lacks of tables that it has, moved or not."""
    by_oid = {each.oid: each for each in sides.everything}
    there = {(each.schema, each.name) for each in sides.there}
    found = set()
    for each in items:
        above = by_oid.get(each.parent or 0)
        while above is not None and (each.schema, each.name) not in there:
            if (above.schema, above.name) in there:
                found.add(each.oid)
            above = by_oid.get(above.parent or 0)
    return frozenset(found)


def _told(entries: Sequence[schemas.Entry]) -> list[str]:
    """Return kinds, schemas and names."""
    return [f"{entry.kind} {entry.called}" for entry in entries]
