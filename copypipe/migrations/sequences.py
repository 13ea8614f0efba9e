"""The sequences that number tables: they go on where those of the source are, but never back.

Those that number the same column of the same table belong together, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from copypipe.errors import CopyFailed, PlanRefused, listed
from copypipe.inventory import Item, chunks
from copypipe.migrations.moves import Names
from copypipe.servers import Session
from copypipe.statements import steps as statements


class Numbering(NamedTuple):
    """A sequence, and the column that it numbers; '' for none, where the table needs it."""

    table: int
    """The table's OID."""
    column: str
    schema: str
    name: str
    draws: bool
    """The column draws from it; else it owns it alone."""
    is_of_another: bool
    """Another table owns it."""
    ascends: bool
    lowest: int
    highest: int
    first: int
    may_read: bool
    may_set: bool

    @property
    def full_name(self) -> tuple[str, str]:
        """Return schema and name."""
        return self.schema, self.name


State = tuple[int, bool]
"""last_value and is_called of a sequence."""


def counterparts(items: Sequence[Item], there: Sequence[Item], names: Names) -> dict[int, int]:
    """Return the OIDs of tables at the dest by those at the source, for tables that are there."""
    at_dest = {(each.schema, each.name): each.oid for each in there}
    found = {item.oid: at_dest.get(names(item)) for item in items}
    return {source: dest for source, dest in found.items() if dest is not None}


def problems(
    source: Session, dest: Session, items: Sequence[Item], into: Mapping[int, int]
) -> list[PlanRefused]:
    """Return which of them the role could not read or set in the end, with all rows there.

    `items` are the tables of the source, `into` has those at the dest that are there. Both sessions
    are in a transaction.
    """
    found: list[PlanRefused] = []
    theirs = _of(source, [item.oid for item in items])
    pairs = _paired(theirs, _of(dest, list(into.values())), into)
    # Those of tables that are there may have nothing to be told to.
    needed = {of for _, of in pairs} | {of for of in theirs if of.table not in into}
    if lacking := [of.full_name for of in theirs if of in needed and not of.may_read]:
        found.append(
            PlanRefused(
                f"source: the role may not read the sequences {_told(lacking)}",
                hint="GRANT SELECT ON SEQUENCE .. TO the role.",
                side="source",
            )
        )
    if lacking := [own.full_name for own, _ in pairs if not own.may_set]:
        found.append(_not_settable(lacking))
    # Those of tables that are made, which others at the dest use by now.
    made = [of.full_name for of in theirs if of.table not in into]
    if lacking := [made[place - 1] for (place,) in dest.fetch(statements.not_settable(made))]:
        found.append(_not_settable(lacking))
    if not found and (narrow := wanted(source, dest, into).narrow):
        found.append(PlanRefused(_too_narrow(narrow), hint=_WIDEN, side="dest"))
    return found


def _not_settable(names: Sequence[tuple[str, str]]) -> PlanRefused:
    return PlanRefused(
        f"dest: the role may not set the sequences {_told(names)}",
        hint="GRANT SELECT, UPDATE ON SEQUENCE .. TO the role.",
        side="dest",
    )


class Wanted(NamedTuple):
    """Where sequences of the dest, by schema and name, are to go on."""

    states: dict[tuple[str, str], State]
    narrow: dict[tuple[str, str], int]
    """Those whose bounds do not let them, with what they would have to hold."""

    def check(self) -> None:
        """Raise CopyFailed for those that could not be set."""
        if self.narrow:
            raise CopyFailed(_too_narrow(self.narrow), hint=_WIDEN, side="dest")


_WIDEN = "ALTER SEQUENCE .. AS bigint, or MAXVALUE or MINVALUE, of the dest's."


def _too_narrow(narrow: Mapping[tuple[str, str], int]) -> str:
    told = [f"{schema}.{name} ({value})" for (schema, name), value in narrow.items()]
    return f"dest: sequences do not take the values of the source: {listed(told)}"


def wanted(source: Session, dest: Session, into: Mapping[int, int]) -> Wanted:
    """Return where sequences of the dest go on; both sessions are in a transaction."""
    pairs = _paired(_of(source, list(into)), _of(dest, list(into.values())), into)
    now = _states(dest, [own.full_name for own, _ in pairs])
    theirs = _states(source, [of.full_name for _, of in pairs])
    found: dict[tuple[str, str], State] = {}
    narrow: dict[tuple[str, str], int] = {}
    of_own: dict[Numbering, list[State]] = {}
    for own, of in pairs:
        of_own.setdefault(own, []).append(theirs[of.full_name])
    for own, several in of_own.items():
        # Of several that may number the column, one that goes beyond it does not.
        states = [each for each in several if own.lowest <= each[0] <= own.highest] or several
        if own.full_name in found:
            states.append(found[own.full_name])
        if now[own.full_name] != (own.first, False):  # else it is as it was made
            states.append(now[own.full_name])
        state = (max if own.ascends else _least)(states)
        if own.lowest <= state[0] <= own.highest:
            found[own.full_name] = state
        else:
            narrow[own.full_name] = state[0]
    return Wanted(found, narrow)


def _of(session: Session, tables: Sequence[int]) -> list[Numbering]:
    return [Numbering(*row) for row in session.fetch(statements.sequences(tables))]


def _paired(
    theirs: Sequence[Numbering], own: Sequence[Numbering], into: Mapping[int, int]
) -> list[tuple[Numbering, Numbering]]:
    """Return each sequence of the dest that one of the source belongs to, with that.

    Of several of one column those of the same name belong together. Where both draw from others
    besides, each of these goes on behind all of those: too far is better than drawn twice.
    """
    there = _by_column(own)
    found: list[tuple[Numbering, Numbering]] = []
    for (table, column), several in _by_column(theirs).items():
        others = there.get((into.get(table, 0), column), [])
        alike = [(one, of) for of in several for one in others if one.full_name == of.full_name]
        named = {each for pair in alike for each in pair}
        alike += [
            (one, of)
            for of in several
            for one in others
            if one.name == of.name and one not in named and of not in named
        ]
        found += alike
        # What one side draws from and the other merely owns is not what they have in common.
        settled = {each for one, of in alike if one.draws and of.draws for each in (one, of)}
        alone = [of for of in several if of.draws and of not in settled]
        lonely = [
            one
            for one in others
            if one.draws and one not in settled and not (settled and one.is_of_another)
        ]
        found += [(one, of) for of in alone for one in lonely if column]
    return found


def _by_column(found: Iterable[Numbering]) -> dict[tuple[int, str], list[Numbering]]:
    by_column: dict[tuple[int, str], list[Numbering]] = {}
    for each in found:
        by_column.setdefault((each.table, each.column), []).append(each)
    return by_column


def _least(states: Sequence[State]) -> State:
    """Return the state of a descending sequence that has gone furthest."""
    return min(states, key=lambda state: (state[0], not state[1]))


def _states(session: Session, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], State]:
    """Return how far sequences are."""
    found: dict[tuple[str, str], State] = {}
    for some in chunks(list(dict.fromkeys(names))):
        for place, value, is_called in session.fetch(statements.read_sequences(some)):
            found[some[place]] = (value, is_called)
    return found


def _told(names: Sequence[tuple[str, str]]) -> str:
    return listed([f"{schema}.{name}" for schema, name in dict.fromkeys(names)])
