"""What a person should know of a plan: how rows are found, notes, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from copypipe import catalog, hazards, slices
from copypipe.errors import counted
from copypipe.ledger import Ledger
from copypipe.requests import Request
from copypipe.servers import Session
from copypipe.statements import copies
from copypipe.statements.merges import Merge
from copypipe.tables import Index, Matching, OwnedSequence, Query, Relation, Table, Upkeep

PAGE_BYTES = 8192

# autovacuum's own defaults (autovacuum_vacuum_scale_factor 0.2) take care of less than that; what
# is a fraction of a second's work to clear is not worth a word.
DEAD_PART = 0.2
MANY_DEAD_ROWS = 10_000

# Some seconds of a disk's reading: less than that is not worth an index.
LARGE_SCAN_BYTES = 1024 * 1024 * 1024

NO_INDEX = "no index"


def source_access(
    of: Relation, slice_: slices.Slice, estimate: catalog.Estimate, serving: Sequence[Index]
) -> str:
    """Say how the planner would find the rows: by index, or by a scan that is paid each time."""
    if isinstance(of, Query) or of.kind in "vf":
        return f"a {of.kind_name}: what reading it costs is its own matter"
    if not isinstance(slice_, slices.Whole) and estimate.indexes:
        # A partitioned table names an index of each partition; its own says the same.
        return f"by index {serving[0].name if serving else estimate.indexes[0]}"
    return _access(of, slice_, serving)


def dest_access(
    dest: Session, table: Table, slice_: slices.Slice, serving: Sequence[Index], *, clears: bool
) -> str:
    """Say the same of the dest, whose planner is asked only about a condition that clears rows.

    That also shows whether the role may read the columns of the condition.
    """
    if clears and isinstance(slice_, slices.Where):
        estimate = catalog.estimate(dest, copies.count(table, slice_))
        if estimate.indexes:
            return f"by index {estimate.indexes[0]}"
    return _access(table, slice_, serving)


def _access(table: Table, slice_: slices.Slice, serving: Sequence[Index]) -> str:
    """Say which index can serve the slice, or what a scan reads."""
    size = f"{table.pages * PAGE_BYTES / 1024 / 1024:.1f} MB"
    if table.estimated_rows >= 0:
        size += f", about {table.estimated_rows} rows"
    if isinstance(slice_, slices.Whole):
        return f"the whole table: {size}"
    if serving:
        return f"index {serving[0].name} can serve; a scan would read {size}"
    around = slices.range_of(slice_)
    on = around.column if around else "the condition"
    return f"{NO_INDEX} on {on}: scans the whole table ({size})"


def notes_and_warnings(
    request: Request,
    dest: Table,
    server: catalog.Server,
    dest_is: catalog.Server,
    slice_: slices.Slice,
    matching: Matching,
) -> tuple[list[str], list[str]]:
    """Return notes and warnings about a slice."""
    notes: list[str] = []
    warnings = [
        f"{column.name} is excluded: rows that are replaced lose what the dest holds in it"
        for column in matching.excluded
    ]
    warnings += [
        f"{column.name} is missing at the source: rows that are replaced lose what the dest holds "
        "in it"
        for column in matching.without_source
    ]
    if dest_is.ignores_triggers:
        warnings.append(
            "session_replication_role is replica at the dest: triggers and foreign keys are skipped"
        )
    elif dest.has_triggers:
        removed = ", except for those for DELETE" if request.clear == "truncate" else ""
        warnings.append(
            f"triggers of {dest.full_name} will run{removed}, and may change other tables or what "
            "is copied"
        )
    if dest_is.encoding not in ("UTF8", "SQL_ASCII", server.encoding):
        warnings.append(
            f"a character that {dest_is.encoding}, the dest's encoding, lacks fails the copy (the "
            f"source's is {server.encoding})"
        )
    if isinstance(slice_, slices.Where):
        warnings.append(
            "a row that changed so that the condition holds only for its old or its new version is "
            "cleared without being copied, or copied beside the old one (if no key forbids it)"
        )
    if server.in_recovery:
        notes.append(
            "the source is a standby: what it has not replayed yet is not copied, and replay may "
            "cancel a long copy (max_standby_streaming_delay, hot_standby_feedback)"
        )
    around = slices.range_of(slice_)
    if around is None:
        return notes, warnings
    notes += _bounds(around)
    if around.zone and around.days and not slices.same_zone(request.timezone, server.timezone):
        warnings.append(
            f"days are counted in {request.timezone}, the source's own TimeZone is "
            f"{server.timezone}"
        )
    return notes, warnings


def of_ledger(
    kept: Ledger, sliced_by: str | None, slice_: slices.Slice, source: catalog.Server
) -> tuple[list[str], list[str]]:
    """Return notes and warnings about what is recorded, and whom the slice excludes."""
    notes: list[str] = []
    warnings: list[str] = []
    around = slices.range_of(slice_)
    if around is None or sliced_by not in (None, around.column):
        notes.append("no other run of copypipe works on the table meanwhile")
    if around is not None and sliced_by not in (None, around.column):
        notes.append(f"its slices are those by {sliced_by}; this one may overlap any of them")
    if around is not None and sliced_by is None and not kept.records:
        notes.append(
            f"slices of this table by another column than {around.column} are not kept apart "
            "from it"
        )
    if kept.records and not (source.sees_others or source.in_recovery) and slices.end(slice_):
        notes.append(
            "the role may not see the transactions of other roles at the source "
            "(pg_read_all_stats): where there are any, a slice is open until --settle after its end"
        )
    if kept.state == "missing":
        notes.append("the ledger (schema copypipe) will be made at the dest")
    elif kept.state == "off":
        notes.append("nothing is recorded in the ledger of the dest")
    elif kept.state == "unusable":
        warnings.append(
            f"the ledger of the dest cannot be used: {kept.problem}. Without it nothing tells "
            "later what was copied, and where the answer to COMMIT is lost the slice is copied "
            "again (--no-ledger says that this is meant)"
        )
    return notes, warnings


def of_upkeep(dest: Table, upkeep: Upkeep) -> tuple[list[str], list[str]]:
    """Return notes and warnings about a table's dead rows, and about one that is not logged."""
    notes: list[str] = []
    warnings: list[str] = []
    if upkeep.is_unlogged:
        warnings.append(
            f"{dest.full_name} is unlogged, or a partition of it: a crash of the dest empties it, "
            "and its standbys have none of it, whatever the ledger tells"
        )
    if upkeep.dead_rows > max(MANY_DEAD_ROWS, upkeep.live_rows * DEAD_PART):
        notes.append(
            f"{dest.full_name} has about {upkeep.dead_rows} dead rows beside {upkeep.live_rows}, "
            "of deletes or failed loads: VACUUM frees their space"
        )
    return notes, warnings


def of_accepted(request: Request, dest: Table, *, clears: bool) -> list[str]:
    """Tell of what was accepted and is there."""
    warnings = []
    whole = request.replaces_whole
    acting = hazards.acting_on_delete(dest, whole=whole)
    if clears and acting and "cascade" in request.accept:
        warnings.append(
            f"clearing {dest.full_name} changes other tables: {hazards.foreign_keys(acting)}"
        )
    firm = hazards.firm_on_delete(dest, whole=whole)
    if request.mode == "replace" and firm and "references" in request.accept:
        warnings.append(
            f"the copy fails at the first row that others point at: {hazards.foreign_keys(firm)}"
        )
    return warnings


def of_key(merge: Merge | None, around: slices.Range | None) -> list[str]:
    """Warn of rows that get another key when they move to another slice."""
    if merge is None or around is None or around.column not in merge.key.columns:
        return []
    return [
        f"{around.column} is part of the key: a row whose {around.column} has changed is inserted "
        "beside the old one"
    ]


def of_scan(side: str, of: Relation, access: str) -> list[str]:
    """Warn of a large scan that each slice pays for."""
    if isinstance(of, Query) or not access.startswith(NO_INDEX):
        return []
    if of.pages * PAGE_BYTES < LARGE_SCAN_BYTES:
        return []
    return [f"{side}: {access}, for each slice"]


def of_sequences(sequences: Sequence[OwnedSequence]) -> list[str]:
    """Tell of numbers that will be drawn and are taken by what is copied."""
    return [
        f"{sequence.full_name}, which numbers {sequence.column}, stays where it is "
        "(--sequences advances it)"
        for sequence in sequences
    ]


def _bounds(slice_: slices.Range) -> list[str]:
    notes = [f"from {slice_.start} up to, not including, {slice_.stop}"]
    if slice_.days:
        first, after = slice_.days
        number = (after - first).days
        last = after - timedelta(days=1)
        notes[0] += f" ({counted(number, 'day')}, last {last})"
    if slice_.start == slice_.stop:
        notes.append(f"{slice_.zone} skipped that day: no instant belongs to it")
    notes += [
        f"without {start} to {stop}: the clock went back across midnight there"
        for start, stop in slice_.holes
    ]
    return notes


def without_day(
    source: Session, of: Relation, slice_: slices.Range, *, indexed: bool
) -> Sequence[str]:
    """Tell of rows that belong to no day, where an index makes asking cheap."""
    if isinstance(of, Query) or not indexed:
        return [f"rows whose {slice_.column} is NULL or infinite: not checked (no index)"]
    empty, infinite = catalog.without_day(source, of, slice_.column)
    found = [what for what, there in (("NULL", empty), ("infinite", infinite)) if there]
    if not found:
        return [f"no row's {slice_.column} is NULL or infinite"]
    return [
        f"rows whose {slice_.column} is {' or '.join(found)} exist at the source; they belong to "
        "no day, only --all copies them"
    ]
