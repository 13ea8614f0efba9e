"""Results, plans and errors as text and JSON; events as a bar or as lines.

JSON objects carry `schema_version`; fields may be added under the same number, none changes its
meaning. Sizes are in bytes and durations in seconds there; text uses PostgreSQL's units.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from copypipe import events
from copypipe.errors import CopypipeError, PlanRefused, counted, one_line
from copypipe.requests import in_units
from copypipe.slices import EveryTime, Slice, Where, range_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from copypipe.backfills import Range
    from copypipe.backfills import Tally as BackfillTally
    from copypipe.calendars import Calendar, Failure, Square, State
    from copypipe.checkups import Checkup
    from copypipe.ledger import Receipt
    from copypipe.migrations import Migrated, Proposal
    from copypipe.needs import Needs
    from copypipe.plans import Copied, Plan, Side
    from copypipe.requests import Endpoint, Request
    from copypipe.statements import Statement
    from copypipe.tables import Column
    from copypipe.transfers import Transferred
    from copypipe.verdicts import Differing, Row, Tally, Verdict

SCHEMA_VERSION = 1

# Without a terminal, a sign of life this often: enough for a log that a person reads afterwards.
LOG_SECONDS = 30.0


# ------------------------------------------------------------------------------------ results


def result_line(done: Transferred) -> str:
    """Return the one line of a finished slice."""
    # What has no end is never sealed: nothing to be told each time.
    may_get_more = not done.sealed and range_of(done.slice) is not None
    return one_line(
        f"{done.into} {done.slice}  {done.rows} rows  {in_units(done.bytes)}  "
        f"{done.seconds:.1f} s  "
        f"{_became(done)}{', open' if may_get_more else ''}"
    )


def _became(done: Transferred) -> str:
    """Say what became of the rows at the dest."""
    dropped = f", {done.dropped} dropped by triggers" if done.dropped else ""
    return f"{_moved(done)}{dropped}"


def _moved(done: Transferred) -> str:
    if done.inserted is not None and done.updated is not None:
        unchanged = done.rows - done.inserted - done.updated
        deleted = f"deleted {done.deleted}, " if done.deleted else ""
        return (
            f"{deleted}inserted {done.inserted}, updated {done.updated}, left {unchanged} unchanged"
        )
    if done.mode == "append":
        return f"appended {done.rows}"
    deleted = "truncated" if done.deleted is None else f"deleted {done.deleted}"
    return f"{deleted}, copied {done.rows}"


def skipped_line(found: Range, slice_: Slice) -> str:
    """Return the one line of a slice that another run has copied meanwhile."""
    return one_line(f"{found.table} {slice_}  copied by another run meanwhile")


def skipped_json(slice_: Slice) -> str:
    """Return the one JSON object of a slice that another run has copied meanwhile."""
    return _json("skipped", {"slice": _slice(slice_)})


def backfill_line(found: Range, tally: BackfillTally) -> str:
    """Return the last line of many slices."""
    skipped = found.skipped + tally.skipped
    counts = [f"{len(tally.copied)} copied"]
    counts += [f"{skipped} were there"] if skipped else []
    counts += [f"{len(tally.failed)} failed"] if tally.failed else []
    rows = sum(each.rows for each in tally.copied)
    left = found.parts - len(tally.copied) - skipped - len(tally.failed)
    counts += [f"{left} not begun"] if left > 0 else []
    return one_line(
        f"{found.table}: {found.parts} slices, {', '.join(counts)}; {rows} rows, "
        f"{in_units(sum(each.bytes for each in tally.copied))}"
    )


def backfill_json(found: Range, tally: BackfillTally) -> str:
    """Return the last JSON object of many slices."""
    return _json(
        "backfill",
        {
            "dest_table": found.table,
            "slices": found.parts,
            "copied": len(tally.copied),
            "skipped": found.skipped + tally.skipped,
            "failed": [_slice(each.slice) for each in tally.failed],
            "rows": sum(each.rows for each in tally.copied),
            "bytes": sum(each.bytes for each in tally.copied),
        },
    )


def migration_lines(found: Migrated) -> Iterator[str]:
    """Yield what became of each table as a table, and the last line of a migration."""
    head = ("table", "", "rows", "size", "copy", "indexes", "constraints")
    rows = [
        (
            each.into,
            each.state,
            str(each.rows),
            in_units(each.bytes),
            *(
                f"{seconds:.1f} s"
                for seconds in (each.copy_seconds, each.index_seconds, each.constraint_seconds)
            ),
        )
        for each in found.tables
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield one_line("  ".join(cells).rstrip())
    tables = found.tables
    counts = Counter[str](each.state for each in tables)
    told = ", ".join(f"{counts[state]} {state}" for state in MOVED if counts[state])
    copy, indexes, constraints = (
        sum(getattr(each, f"{what}_seconds") for each in tables)
        for what in ("copy", "index", "constraint")
    )
    yield one_line(
        f"{counted(len(tables), 'table')}: {told}; "
        f"{counted(sum(each.rows for each in tables), 'row')}, "
        f"{in_units(sum(each.bytes for each in tables))} in {found.seconds:.1f} s (over all jobs: "
        f"copy {copy:.1f} s, indexes {indexes:.1f} s, constraints {constraints:.1f} s)"
    )
    if not found.is_ended:
        yield f"migration {found.id} has not ended"


MOVED = ("copied", "kept", "failed", "begun", "not begun")


def migration_json(found: Migrated) -> str:
    """Return the one JSON object of a migration."""
    return _json(
        "migration",
        {
            "id": found.id,
            "ended": found.is_ended,
            "taken_at": found.taken_at,
            "lsn": found.lsn,
            "seconds": round(found.seconds, 3),
            "tables": [
                {
                    "source_table": each.table,
                    "dest_table": each.into,
                    "state": each.state,
                    "rows": each.rows,
                    "bytes": each.bytes,
                    "parts": each.parts,
                    "copy_seconds": round(each.copy_seconds, 3),
                    "index_seconds": round(each.index_seconds, 3),
                    "constraint_seconds": round(each.constraint_seconds, 3),
                    "checksum": each.digest,
                    "error": _error(each.error) if each.error is not None else None,
                }
                for each in found.tables
            ],
            "failed": [{"what": what, "error": _error(error)} for what, error in found.failed],
        },
    )


def proposal_text(found: Proposal) -> str:
    """Return what a migration would do, for people."""
    lines = [f"from {found.source} into {found.dest}"]
    for each in found.tables:
        move = each.move
        into = "" if move.full_name == move.item.full_name else f" -> {move.full_name}"
        parts = f" in {each.parts} parts" if each.parts > 1 else ""
        how = "is there" if each.is_there else "is made"
        rows = ", holds rows" if each.holds_rows else ""
        rows_told = move.item.estimated_rows
        about = f"about {rows_told:.0f} rows, " if rows_told >= 0 and move.item.pages else ""
        lines.append(
            f"  {move.item.full_name}{into}  {about}{in_units(move.size_bytes)} and "
            f"{in_units(move.index_bytes)} of indexes{parts}; {how}{rows}"
        )
    size = sum(each.move.size_bytes for each in found.tables)
    indexes = sum(each.move.index_bytes for each in found.tables)
    lines.append(f"  needs    about {in_units(size + indexes)} of disk at the dest")
    lines += [f"  drops    INDEX {name}" for name in found.drops]
    lines += [f"  makes    {what}" for what in found.makes]
    lines += [f"  {step.kind:<10} {step.statement}" for step in found.steps]
    lines += [f"  leaves   {what}: it needs a table that does not come" for what in found.left_out]
    lines += [f"  leaves   {what}: no table needs it" for what in found.not_tables]
    lines += [f"  refused  {refused.message}" for refused in found.refusals]
    lines.append("nothing was changed")
    return "\n".join(one_line(" ".join(line.split("\n"))) for line in lines)


def proposal_json(found: Proposal) -> str:
    """Return what a migration would do as one JSON object."""
    return _json(
        "proposal",
        {
            "source": str(found.source),
            "dest": str(found.dest),
            "tables": [
                {
                    "source_table": each.move.item.full_name,
                    "dest_table": each.move.full_name,
                    "is_there": each.is_there,
                    "holds_rows": each.holds_rows,
                    "estimated_rows": round(each.move.item.estimated_rows),
                    "bytes": each.move.size_bytes,
                    "index_bytes": each.move.index_bytes,
                    "parts": each.parts,
                }
                for each in found.tables
            ],
            "makes": list(found.makes),
            "steps": [
                {"kind": step.kind, "name": step.name, "statement": step.statement}
                for step in found.steps
            ],
            "drops": list(found.drops),
            "left_out": list(found.left_out),
            "not_tables": list(found.not_tables),
            "refusals": [_error(refused) for refused in found.refusals],
        },
    )


def verdict_lines(found: Verdict) -> Iterator[str]:
    """Yield the line of a slice that was compared, and one for each row that differs."""
    counts = f"{found.source.rows} rows"
    if found.verdict != "same":
        counts = f"{found.source.rows} rows at the source, {found.dest.rows} at the dest"
    more = []
    if found.differing is not None:
        more.append(_differing(found.differing))
    if found.drift is not None:
        more.append(found.drift)
    more += ["repaired"] if found.repaired and not found.is_different else []
    more += ["recorded"] if found.recorded else []
    more += ["not repaired"] if found.failure is not None else []
    more += [found.open_because] if found.verdict == "open" and found.open_because else []
    told = "; ".join(["", *more])
    yield one_line(
        f"{found.table} {found.slice}  {found.verdict}  {counts}  {found.seconds:.1f} s{told}"
    )
    if found.differing is None:
        return
    shown = found.differing.rows[:SHOWN_ROWS]
    for row in shown:
        key = ", ".join(map(_named, found.key, row.key))
        yield one_line(f"  {row.is_}  {key or '(no key)'}")
        for side, values in (("source", row.source), ("dest", row.dest)):
            if values is not None:
                named = ", ".join(map(_named, found.columns, values))
                yield one_line(f"    {side}: {named}")
    if len(shown) < len(found.differing.rows):
        yield f"  ... {len(found.differing.rows) - len(shown)} more (--json lists them)"


# A person looks at the first rows and repairs the slice.
SHOWN_ROWS = 20


def _named(name: str, value: str | None) -> str:
    return f"{name}={'NULL' if value is None else value}"


def _differing(found: Differing) -> str:
    counts = [
        f"{found.count(is_)} {is_}" for is_ in ("missing", "extra", "differs") if found.count(is_)
    ]
    return f"{'' if found.complete else 'at least '}{', '.join(counts)}"


def verdict_json(found: Verdict) -> str:
    """Return the one JSON object of a slice that was compared."""
    differing = found.differing
    return _json(
        "verdict",
        {
            "dest_table": found.table,
            "slice": _slice(found.slice),
            "verdict": found.verdict,
            "source": {"rows": found.source.rows, "digest": str(found.source)},
            "dest": {"rows": found.dest.rows, "digest": str(found.dest)},
            "drift": found.drift,
            "open_because": found.open_because,
            "recorded": found.recorded,
            "repaired": found.repaired,
            "failure": None if found.failure is None else _error(found.failure),
            "seconds": round(found.seconds, 3),
            "differing": None
            if differing is None
            else {
                "complete": differing.complete,
                "missing": differing.count("missing"),
                "extra": differing.count("extra"),
                "differs": differing.count("differs"),
                "rows": [_row(found, row) for row in differing.rows],
            },
        },
    )


def _row(found: Verdict, row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {"is": row.is_, "key": dict(zip(found.key, row.key, strict=True))}
    for side, values in (("source", row.source), ("dest", row.dest)):
        if values is not None:
            told[side] = dict(zip(found.columns, values, strict=True))
    return told


def tally_line(tally: Tally) -> str:
    """Return the last line of a verification of several slices."""
    counts = [f"{count} {verdict}" for verdict, count in sorted(tally.verdicts.items())]
    if tally.failed:
        counts.append(f"{len(tally.failed)} could not be compared")
    return f"{tally.slices} slices: {', '.join(counts)}"


def diagnosis(done: Transferred) -> str:
    """Return in one line where the time of the relay went, and what would have to be faster."""
    spent = done.spent
    shares = {
        "the source": spent.source,
        "the dest": spent.dest,
        "the rate limit": spent.limit,
        "the relay": spent.relaying,
    }
    whole = max(spent.all, 1e-9)
    most = max(shares, key=lambda name: shares[name])
    others = ", ".join(
        f"{name} {seconds / whole:.0%}"
        for name, seconds in shares.items()
        if name != most and (seconds or name != "the rate limit")
    )
    scan = "" if done.scan == "libpq" else f", {done.scan} scan"
    return (
        f"{most} is the bottleneck: {shares[most] / whole:.0%} of {spent.all:.2f} s ({others}); "
        f"carried by {done.transport}{scan}"
    )


def result_json(done: Transferred) -> str:
    """Return the one JSON object of a finished slice."""
    return _json(
        "slice",
        {
            "source_table": done.table,
            "dest_table": done.into,
            "slice": _slice(done.slice),
            "mode": done.mode,
            "rows": done.rows,
            "dropped": done.dropped,
            "bytes": done.bytes,
            "inserted": done.inserted,
            "updated": done.updated,
            "deleted": done.deleted,
            "seconds": round(done.seconds, 3),
            "state": "sealed" if done.sealed else "open",
            "open_because": done.open_because,
            "digest": str(done.digest) if done.digest is not None else None,
            "recorded": done.recorded,
            "run_id": done.attempt.run_id,
            "attempt_id": done.attempt.attempt_id,
            "tries": done.attempt.number,
            "transport": done.transport,
            "scan": done.scan,
            "seconds_on_source": round(done.spent.source, 3),
            "seconds_on_dest": round(done.spent.dest, 3),
            "seconds_on_limit": round(done.spent.limit, 3),
            "seconds_relaying": round(done.spent.relaying, 3),
        },
    )


def error_json(error: CopypipeError, of: Slice | None = None) -> str:
    """Return an error as one JSON object, with the slice of many that it is of."""
    others = error.others if isinstance(error, PlanRefused) else ()
    return _json(
        "error",
        {
            **({} if of is None else {"slice": _slice(of)}),
            "exit_code": error.exit_code,
            "retryable": error.retryable,
            **_error(error),
            "others": [_error(other) for other in others],
        },
    )


def _error(error: CopypipeError) -> dict[str, Any]:
    return {
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
        "side": error.side,
        "sqlstate": error.sqlstate,
    }


def _json(kind: str, fields: dict[str, Any]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "type": kind, **fields}, default=_iso)


def _iso(value: date) -> str:
    return value.isoformat()  # of a datetime: with its time


def _slice(slice_: Slice) -> dict[str, Any]:
    where = {"where": slice_.condition} if isinstance(slice_, Where) else {}
    around = range_of(slice_)
    if around is None:
        return {"all": not where, **where}
    first, after = around.days or (None, None)
    return {
        "all": False,
        **where,
        "by": around.column,
        "start": around.start,
        "stop": around.stop,
        "timezone": around.zone,
        "first_day": first,
        "day_after": after,
        "holes": [list(hole) for hole in around.holes],
    }


# ----------------------------------------------------------------------------------- receipts


def receipt_json(found: Receipt) -> str:
    """Return what the ledger tells of a slice as one JSON object."""
    everything = found.column is None
    where = {"where": found.condition} if found.condition is not None else {}
    return _json(
        "receipt",
        {
            "id": found.number,
            "run_id": found.run_id,
            "attempt_id": found.attempt_id,
            "source": {
                "table": found.source_table,
                "address": found.source_address,
                "system_identifier": found.source_system,
                "database_oid": found.source_database_oid,
                "clock": found.source_clock,
            },
            "dest_table": found.table,
            "slice": {
                "all": everything and not where,
                **where,
                **(
                    {}
                    if everything
                    else {
                        "by": found.column,
                        **(
                            {"timezone": found.zone, "instants": found.instants}
                            if found.numbers is None
                            else {"numbers": found.numbers}
                        ),
                    }
                ),
            },
            "mode": found.mode,
            "rows": found.rows,
            "deleted": found.deleted,
            "bytes": found.bytes,
            "format": found.format,
            "digest": found.checksum,
            "signature": found.signature,
            "reversed": found.reversed,
            "state": found.state,
            "open_because": found.open_because,
            "complete_until": found.complete_until,
            "began_at": found.began_at,
            "recorded_at": found.recorded_at,
            "tool_version": found.tool_version,
            "manifest": found.manifest,
            "superseded": found.superseded,
            "superseded_by": found.superseded_by,
            "by_another_column": found.by_another_column,
        },
    )


# ---------------------------------------------------------------------------------- calendars


class _Look(NamedTuple):
    """How a state is shown."""

    glyph: str
    plain: str
    """Where the terminal's encoding does not have the glyph."""
    colour: str
    """What Select Graphic Rendition calls it (ECMA-48)."""


# In the order of the legend.
LOOKS: dict[State, _Look] = {
    "copied": _Look("■", "#", "32"),
    "open": _Look("◧", "o", "33"),
    "differs": _Look("≠", "!", "35"),
    "failed": _Look("✗", "X", "31"),
    "running": _Look("▶", ">", "36"),
    "missing": _Look("□", "m", "1"),
    "lost": _Look("⊘", "L", "1;31"),
    "unrecorded": _Look("▒", "u", "34"),
    "unknown": _Look("?", "?", "2"),
    "empty": _Look("·", ".", "2"),
}

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

# How many kinds of failures, one after the other, a person looks at.
SHOWN_FAILURES = 10


def shows_glyphs(encoding: str | None) -> bool:
    """Return whether all glyphs of a calendar can be written in an encoding."""
    try:
        "".join(look.glyph for look in LOOKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def calendar_lines(
    found: Calendar, repairs: Sequence[Repair], *, colour: bool = False, glyphs: bool = True
) -> Iterator[str]:
    """Yield the lines of a calendar, what its glyphs mean, and the commands that repair it."""

    def shown(state: State) -> str:
        look = LOOKS[state]
        text = look.glyph if glyphs else look.plain
        return f"\x1b[{look.colour}m{text}\x1b[0m" if colour else text

    yield one_line(f"{found.table} {found.around}  by {found.around.column}, {_EVERY[found.every]}")
    yield ""
    yield from _grid(found, shown)
    yield ""
    counts = found.counts
    yield "  ".join(f"{shown(state)} {state} {counts[state]}" for state in LOOKS if counts[state])
    failures = found.ranges(lambda square: square.failure)
    for period, failure in failures[:SHOWN_FAILURES]:
        yield one_line(f"failed: [{period.start}, {period.stop}), {_failed(failure)}")
    if len(failures) > SHOWN_FAILURES:
        yield f"... {len(failures) - SHOWN_FAILURES} more that failed (--json lists them)"
    for repair in repairs:
        yield ""
        yield f"{repair.why}:"
        yield from (f"  {one_line(command)}" for command in repair.commands)


class Repair(NamedTuple):
    """Commands that help, and against what."""

    why: str
    commands: Sequence[str]


_EVERY = {
    "hour": "a day a row, from its first hour",
    "day": "a week a row",
    "week": "a year a row, from its first week",
    "month": "a year a row",
}
_HEADS = {
    "hour": (2, "".join(f"{hour:<6}" for hour in range(0, 24, 3))),
    "day": (3, "Mo Tu We Th Fr Sa Su"),
    "week": (1, "".join(f"{week:<10}" for week in ("1", *range(11, 53, 10)))),
    "month": (4, " ".join(month[:3] for month in _MONTHS)),
}


def _grid(found: Calendar, shown: Callable[[State], str]) -> Iterator[str]:
    """Yield a row after the other, what it begins with at its left."""
    width, head = _HEADS[found.every]
    rows: dict[str, dict[int, Square]] = {}
    named: dict[str, str] = {}
    for square in found.squares:
        label, column = _place(found.every, square)
        row = rows.setdefault(label, {})
        row[column] = square
        month = f"{_MONTHS[square.day.month - 1]} {square.day.year}"
        if found.every == "day" and month not in named.values():
            named[label] = month
    indent = max(map(len, rows)) + 2
    yield f"{'':<{indent}}{head}".rstrip()
    last = max(_LAST.get(found.every, 0), *(max(row) for row in rows.values()))
    for label, row in rows.items():
        cells = [
            shown(row[column].state) + " " * (width - 1) if column in row else " " * width
            for column in range(last + 1)
        ]
        yield f"{label:<{indent}}{''.join(cells)} {named.get(label, '')}".rstrip()


# What stands behind a row is aligned.
_LAST = {"day": 6}


def _place(every: EveryTime, square: Square) -> tuple[str, int]:
    """Return the row and the column of a slice."""
    day = square.day
    if every == "hour":
        return day.isoformat(), square.hour
    if every == "day":
        return (day - timedelta(days=day.weekday())).isoformat(), day.weekday()
    if every == "week":
        year, week, _ = day.isocalendar()
        return f"{year:04}", week - 1
    return f"{day.year:04}", day.month - 1


def _failed(failure: Failure) -> str:
    side = f" at the {failure.side}" if failure.side else ""
    code = f", SQLSTATE {failure.sqlstate}" if failure.sqlstate else ""
    return f"{failure.error}{side}{code}"


def calendar_json(found: Calendar, repairs: Sequence[Repair]) -> str:
    """Return a calendar as one JSON object."""
    return _json(
        "calendar",
        {
            "source_table": found.source_table,
            "dest_table": found.table,
            "range": _slice(found.around),
            "every": found.every,
            "ledger": found.has_ledger,
            "counted": found.counted,
            "states": {state: found.counts[state] for state in LOOKS},
            "slices": [
                {
                    "slice": _slice(square.slice),
                    "state": square.state,
                    "rows_recorded": square.recorded,
                    "rows_at_source": square.source_rows,
                    "rows_at_dest": square.dest_rows,
                    "error": square.failure and square.failure.error,
                    "side": square.failure and square.failure.side,
                    "sqlstate": square.failure and square.failure.sqlstate,
                }
                for square in found.squares
            ],
            "repairs": [command for repair in repairs for command in repair.commands],
        },
    )


# -------------------------------------------------------------------------------------- needs


def needs_text(needs: Sequence[Needs], of: str) -> str:
    """Return the GRANTs as SQL; what is held is marked, what can be done without is a comment.

    A name with characters that no terminal should get is not shown as it is, and then cannot be
    run: the JSON has it.
    """
    lines = [f"-- the least for: {of}"]
    for each in needs:
        lines.append(f"-- {each.side} {each.address}")
        lines += [f"-- {note}" for note in each.notes]
        for need in each.needs:
            line = f"{need.grant.as_string(None)};"
            gives = need.privilege.gives
            held = " -- held" if need.held else ""
            lines.append(f"{line}{held}" if gives is None else f"-- {line}{held} -- {gives}")
    return "\n".join(map(one_line, lines))


def needs_json(needs: Sequence[Needs], request: Request) -> str:
    """Return the GRANTs as one JSON object."""
    return _json(
        "grants",
        {
            "mode": request.mode,
            "clear": request.clear,
            "ledger": request.ledger,
            **{each.side: _needs_json(each) for each in needs},
        },
    )


def _needs_json(needs: Needs) -> dict[str, Any]:
    return {
        "user": needs.address.user,
        "host": needs.address.host,
        "port": needs.address.port,
        "dbname": needs.address.dbname,
        "role": needs.role,
        "table": needs.table,
        "notes": list(needs.notes),
        "grants": [
            {
                "privilege": need.privilege.name,
                "on": need.privilege.on,
                "object": list(need.privilege.object),
                "columns": list(need.privilege.columns) or None,
                "to": need.privilege.to or needs.role,
                "sql": need.grant.as_string(None),
                "held": need.held,
                "optional": need.privilege.gives is not None,
                "gives": need.privilege.gives,
            }
            for need in needs.needs
        ],
    }


# ----------------------------------------------------------------------------------- checkups


def checkup_text(checkup: Checkup) -> str:
    """Return a line for each finding, a side after the other."""
    lines = []
    for where in ("client", "source", "dest", "both"):
        found = [each for each in checkup.findings if each.where == where]
        if found:
            lines.append("both sides" if where == "both" else where)
        for each in found:
            lines.append(f"  {each.mark:<8} {each.text}")
            if each.hint and each.mark != "ok":
                lines.append(f"           {each.hint}")
    counts = Counter[str](each.mark for each in checkup.findings)
    lines.append(", ".join(counted(counts[mark], mark) for mark in ("problem", "warning")))
    return "\n".join(map(one_line, lines))


def checkup_json(checkup: Checkup) -> str:
    """Return all findings as one JSON object."""
    return _json(
        "checkup",
        {
            "exit_code": checkup.exit_code,
            "source": checkup.addresses.get("source"),
            "dest": checkup.addresses.get("dest"),
            "findings": [
                {
                    "where": each.where,
                    "check": each.check,
                    "mark": each.mark,
                    "text": one_line(each.text),
                    "hint": each.hint and one_line(each.hint),
                }
                for each in checkup.findings
            ],
        },
    )


# -------------------------------------------------------------------------------------- plans


def plan_text(plan: Plan) -> str:
    """Return the plan for a person: what will be done, how, and what to know about it."""
    lines = [
        f"copy {plan.source.table.full_name} into {plan.dest.table.full_name}",
        f"  slice    {plan.slice}",
        *(f"           {note}" for note in plan.notes),
        f"  mode     {_mode(plan)}",
        *_side("source", plan.source),
        *_side("dest", plan.dest),
        f"  columns  {len(plan.columns)}, {_format(plan)}",
    ]
    lines += _columns(plan.columns)
    lines += [f"           {c.name}  left out: the dest generates it" for c in plan.left_out]
    lines += [f"           {c.name}  excluded: gets {_default(c)}" for c in plan.excluded]
    lines += [
        f"           {c.name}  missing at the source: gets {_default(c)}"
        for c in plan.without_source
    ]
    if plan.request.rate_limit is not None:
        lines.append(f"  rate     at most {in_units(plan.request.rate_limit)} a second")
    lines.append(f"  carried  by {plan.transport}")
    lines.append(f"  about    {plan.estimated_rows} rows, {in_units(plan.estimated_bytes)}")
    lines += [f"  warning  {warning}" for warning in plan.warnings]
    lines += [f"  refused  {refused.message}" for refused in plan.refusals]
    if plan.needs_yes:
        lines.append("  asks     all rows of the dest will be replaced: needs --yes")
    for side, statement in _statements(plan):
        # What the user wrote has lines of its own, where a comment ends with its line.
        first, *others = statement.as_string(None).strip().splitlines()
        lines.append(f"  {side:<8} {first}")
        lines += [f"           {line}" for line in others]
    lines.append("nothing was changed")
    return "\n".join(one_line(line) for line in lines)


def _mode(plan: Plan) -> str:
    """Say how the slice is filled, and what of that was chosen."""
    chosen: list[str] = [plan.request.mode]
    for name, value in _options(plan).items():
        if isinstance(value, dict):
            chosen += [f"{name} {key}={of}" for key, of in value.items()]
        elif isinstance(value, list):
            chosen += [f"{name} {', '.join(map(str, value))}"] if value else []
        elif value is True:
            chosen.append(name)
        elif value not in (None, False):
            chosen.append(f"{name} {value}")
    return "; ".join(word.replace("_", " ", 1) for word in chosen)


def _options(plan: Plan) -> dict[str, Any]:
    """Return what a plan does otherwise than the default of its mode, or by choice."""
    request = plan.request
    return {
        "clear": request.clear if request.mode == "replace" and not request.swap else None,
        "swap": request.swap,
        "partitions": [partition.full_name for partition in plan.partitions],
        "key": list(plan.merge.key.columns) if plan.merge is not None else None,
        "merge_deletes": request.merge_deletes,
        "again": request.again,
        "accept": list(request.accept),
        "min_ratio": request.min_ratio,
        "allow_empty": request.allow_empty,
        "sequences": request.sequences,
        "source_set": _settings(request.source),
        "dest_set": _settings(request.dest),
    }


def _settings(of: Endpoint) -> dict[str, str]:
    """Return what was set for a side; only the owner of a parameter knows what it may tell."""
    return {name: "..." if "." in name else value for name, value in of.settings}


def _statements(plan: Plan) -> Iterator[tuple[str, Statement]]:
    """Yield what will run, in order: both COPYs at once."""
    for name, statement in plan.at_dest.items():
        yield "dest", statement
        if name == "copy_in":
            yield "source", plan.copy_out


def _format(plan: Plan) -> str:
    if plan.format == "binary":
        return "in binary format"
    names = [c.dest.name for c in plan.columns if c.crossing.decision == "text format"]
    return f"in text format, because of {', '.join(names)}"


def _default(column: Column) -> str:
    return "its default of the dest" if column.has_default else "NULL"


def _columns(columns: Sequence[Copied]) -> list[str]:
    """Return a line for each column: name, types of both sides, decision, reason."""
    rows = [
        (
            column.dest.name,
            column.source.type_name,
            f"-> {column.dest.type_name}",
            column.crossing.decision,
        )
        for column in columns
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for column, cells in zip(columns, rows, strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"           {line}  {column.crossing.reason}")
        if column.source.expression is not None:
            lines.append(f"           {' ' * widths[0]}  = {column.source.expression}")
    return lines


def _side(name: str, side: Side[Any]) -> list[str]:
    parts = ", ".join(f"{part.name} {part.value} ({part.origin})" for part in side.address.parts)
    return [
        f"  {name:<8} {side.address}  PostgreSQL {side.server.version}, "
        f"{side.table.kind_name} {side.table.full_name}",
        f"           {parts}",
        f"           {side.access}",
    ]


def plan_json(plan: Plan) -> str:
    """Return the plan as one JSON object."""
    return _json(
        "plan",
        {
            "source": _side_json(plan.source),
            "dest": _side_json(plan.dest),
            "slice": _slice(plan.slice),
            "mode": plan.request.mode,
            "options": _options(plan),
            "format": plan.format,
            "columns": [
                {
                    "name": column.dest.name,
                    "source_type": column.source.type_name,
                    "dest_type": column.dest.type_name,
                    "expression": column.source.expression,
                    "decision": column.crossing.decision,
                    "reason": column.crossing.reason,
                }
                for column in plan.columns
            ],
            "left_out": [column.name for column in plan.left_out],
            "excluded": [column.name for column in plan.excluded],
            "without_source": [
                {"name": column.name, "gets": "default" if column.has_default else "null"}
                for column in plan.without_source
            ],
            "query": plan.request.query,
            "rate_limit": plan.request.rate_limit,
            "transport": plan.transport,
            "estimated_rows": plan.estimated_rows,
            "estimated_bytes": plan.estimated_bytes,
            "statements": {
                name: statement.as_string(None)
                for name, statement in {**plan.at_dest, "copy_out": plan.copy_out}.items()
            },
            "needs_yes": plan.needs_yes,
            "ledger": plan.ledger.state,
            "sliced_by": plan.sliced_by,
            "signature": plan.signature,
            "notes": list(plan.notes),
            "warnings": list(plan.warnings),
            "refusals": [_error(refused) for refused in plan.refusals],
        },
    )


def _side_json(side: Side[Any]) -> dict[str, Any]:
    return {
        "user": side.address.user,
        "host": side.address.host,
        "port": side.address.port,
        "dbname": side.address.dbname,
        "origin": {part.name: part.origin for part in side.address.parts},
        "major": side.server.major,
        "version": side.server.version,
        "table": side.table.full_name,
        "kind": side.table.kind_name,
        "access": side.access,
    }


# ------------------------------------------------------------------------------------- events


def retry_line(event: events.Retried) -> str:
    """Return what went wrong with a try, what the dest holds, and when the next one begins."""
    error = event.error
    code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    holds = (
        "the dest has the old slice or the new one" if event.undecided else "nothing was changed"
    )
    return (
        f"try {event.number} of {event.of} failed: {error.message}{code}; {holds}; "
        f"again in {event.seconds:.1f} s"
    )


class Lines:
    """Writes events as lines of a log, and how far the run is every LOG_SECONDS.

    A thread of its own does the latter, since the longest silences are those of a server at work
    (a DELETE, a sort before the first row, foreign keys checked after the last).
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        verbose: bool = False,
        progress: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = write
        self._verbose = verbose
        self._progress = progress
        self._clock = clock
        self._label = ""
        self._estimated: int | None = None
        self._doing = "planning"
        self._began = clock()
        self._moved = events.Progress(bytes=0, rows=0)
        self._closed = threading.Event()

    def __call__(self, event: events.Event, /) -> None:
        """Write what the event says, if it is worth a line."""
        match event:
            case events.Connected(source, dest):
                self._write(f"from {source} into {dest}")
            case events.Warned(text):
                self._write(f"warning: {text}")
            case events.Told(text):
                self._write(text)
            case events.Planned():
                self._planned(event)
            case events.Waiting(pids, seconds):
                self._doing = "waiting for another run"
                held = f" (backends {', '.join(map(str, pids))})" if pids else ""
                self._write(
                    f"waiting up to {seconds:g} s for another run on an overlapping slice{held}"
                )
            case events.Cleared(rows):
                self._doing, self._began = "copying", self._clock()
                if self._verbose:
                    self._write(f"cleared the slice: {'truncated' if rows is None else rows}")
            case events.Noticed(side, severity, text) if self._verbose or severity == "WARNING":
                self._write(f"{side}: {severity}: {text}")
            case events.Silent(side, seconds, doing):
                self._write(f"waiting for the {side} for {seconds:.0f} s: {doing}")
            case events.Lagging(side, seconds):
                self._write(f"waiting for a standby of the {side}, {seconds:.0f} s behind")
            case events.Progress():
                self._moved = event
            case events.Advanced():
                self._advanced(event)
            case events.Committing():
                self._doing = "committing"
                if self._verbose:
                    self._write("committing")
            case events.LedgerMade(where):
                self._write(f"made the ledger, schema copypipe of {where}")
            case events.Settling(seconds):
                self._doing = "settling"
                self._write(
                    f"the answer to COMMIT was lost; asking the dest for up to {seconds:g} s"
                )
            case events.Retried():
                self._doing = "trying again"
                self._write(retry_line(event))
            case events.Decided(committed=True):
                self.close()
            case _:
                pass

    def _write(self, line: str) -> None:
        self._output(one_line(line))

    def _planned(self, event: events.Planned) -> None:
        self._label = f"{event.table} {event.slice}"
        self._estimated = event.estimated_bytes
        self._doing, self._began = "clearing", self._clock()
        if self._verbose:
            self._write(
                f"{self._label}: about {event.estimated_rows} rows, "
                f"{in_units(event.estimated_bytes or 0)} by the source's statistics"
            )
        if self._progress:
            threading.Thread(target=self._tick, name="copypipe progress", daemon=True).start()

    def _advanced(self, event: events.Advanced) -> None:
        """Write how far many slices are, now and then."""
        now = self._clock()
        if not self._progress or now - self._began < LOG_SECONDS:
            return
        self._began = now
        self._write(f"{_slices(event)}, {in_units(event.bytes)}{_of(event.estimated_bytes)}")

    def _tick(self) -> None:
        while not self._closed.wait(LOG_SECONDS):
            self.tell()

    def tell(self) -> None:
        """Write how far the run is."""
        seconds = self._clock() - self._began
        if not self._moved.bytes:
            self._write(f"{self._label}: {self._doing}, {seconds:.0f} s so far")
            return
        rate = in_units(round(self._moved.bytes / seconds)) if seconds else "0 bytes"
        self._write(
            f"{self._label}: {self._doing}, {in_units(self._moved.bytes)}{_of(self._estimated)}, "
            f"{self._moved.rows} rows, {rate}/s"
        )

    def close(self) -> None:
        """Write no more about progress."""
        self._closed.set()


def _of(estimated: int | None) -> str:
    return f" of about {in_units(estimated)}" if estimated else ""


def _slices(event: events.Advanced) -> str:
    failed = f", {event.failed} failed" if event.failed else ""
    jobs = f", {event.jobs} jobs" if event.jobs > 1 else ""
    besides = f", {event.besides}" if event.besides else ""
    done = f"{event.done}/{event.slices} {event.unit}{failed}{jobs}"
    return f"{done}, {_short(event.rows)} rows{besides}"


def _short(count: int) -> str:
    """Return a number in three digits or so: 950, 31k, 3.1M."""
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 1000 or unit == "G":
            break
        value /= 1000
    return f"{value:.1f}{unit}" if unit and value < 10 else f"{value:.0f}{unit}"


class Spark:
    """The speed of the last minute as a line of blocks, five seconds each."""

    BLOCKS = "▁▂▃▄▅▆▇█"
    SECONDS = 5.0
    LENGTH = 12

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._before = 0
        self._moved: list[int] = [0]

    def __call__(self, count: int) -> str:
        """Take note of how many bytes there are by now, and return the line."""
        while self._clock() - self._began >= self.SECONDS:
            self._began += self.SECONDS
            self._moved = [*self._moved[-self.LENGTH + 1 :], 0]
        self._moved[-1] += max(0, count - self._before)
        self._before = count
        most = max(self._moved)
        if not most:
            return ""
        top = len(self.BLOCKS) - 1
        return "".join(self.BLOCKS[round(moved / most * top)] for moved in self._moved)


class _Forgiving(io.TextIOBase):
    """A terminal whose loss is no reason to fail: it hung up, or nobody reads the pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


class Bar:
    """Draws the progress in bytes on a terminal; the other events are lines above the bar.

    With `leave` the bar of what was copied stays on the screen, else it makes room in the end.
    """

    def __init__(self, stream: TextIO, *, verbose: bool = False, leave: bool = False) -> None:
        self._stream = _Forgiving(stream)
        self._bar: tqdm[Any] | None = None
        self._lines = Lines(self._above, verbose=verbose, progress=False)
        self._leave = leave
        self._label = ""
        self._estimated: int | None = None
        self._spark = Spark()

    def __call__(self, event: events.Event, /) -> None:
        """Draw what the event says."""
        match event:
            case events.Planned():
                self._label = f"{event.table} {event.slice}"
                self._estimated = event.estimated_bytes or None
                self._lines(event)
            case events.Cleared():
                self._open()
                self._lines(event)
            case events.Progress(count, rows):
                self._advance(count, f"{rows} rows")
            case events.Advanced():
                if self._bar is None:
                    self._estimated = event.estimated_bytes or None
                    self._open()
                self._advance(event.bytes, f"{_slices(event)} {self._spark(event.bytes)}")
            case events.Retried():
                self.close()
                self._lines(event)
            case events.Committing():
                if self._bar is not None:
                    self._bar.total = self._bar.n  # what was estimated is known now
                self.close()
            case events.Decided():
                self.close()
            case _:
                self._lines(event)

    def _open(self) -> None:
        from tqdm import tqdm  # here, because only a terminal pays for it

        self._bar = tqdm(
            total=self._estimated,
            desc=self._label,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=self._stream,
            dynamic_ncols=True,
            leave=self._leave,
        )

    def _advance(self, count: int, told: str) -> None:
        if self._bar is None:
            return
        if self._bar.total is not None and count > self._bar.total:
            self._bar.total = None  # the statistics were wrong: a bar beyond 100 % says nothing
        self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(count - self._bar.n)

    def _above(self, line: str) -> None:
        if self._bar is None:
            self._stream.write(line + "\n")
        else:
            self._bar.write(line, file=self._stream)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while somebody else writes to the terminal."""
        if self._bar is None:
            yield
            return
        with self._bar.external_write_mode(file=self._stream):
            yield

    def close(self) -> None:
        """Draw no more."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
