"""docs/failures.md: what a person should know after a failure, made from what the sweep found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from copypipe.errors import EXIT_CODES
from faults.cells import FAULTS
from faults.phases import PHASES
from faults.sweep import Result

Found = Mapping[str, Mapping[str, Mapping[str, int]]]
"""How often a fault in a phase ended with an exit code."""

KEPT = "failures.json"
PAGE = "failures.md"

# What the dest holds after a code, and what to run then.
_HOLDS = {
    0: ("the new slice", "nothing"),
    1: ("what it held", "mend what the message names, then the same"),
    2: ("what it held", "mend the command or the connection string, then the same"),
    5: ("what it held", "the same"),
    6: ("what it held", "what the hint says"),
    9: ("what it held", "the same, when the source has rows"),
    11: ("what it held", "the same later, or with a longer --wait-lock"),
    75: ("the old slice or the new one, whole", "the same: it makes the slice the source's"),
    129: ("what it held", "as you wish"),
    130: ("what it held", "as you wish"),
    143: ("what it held", "as you wish"),
    -9: (
        "the old slice or the new one, whole; the servers notice within some 10 s, behind a lost "
        "network the dest within a minute or so and a source that was sending when its kernel "
        "gives up",
        "the same",
    ),
}


def write(folder: Path, results: Iterable[Result]) -> None:
    """Write the numbers and the page; there must be no complaint."""
    counted: dict[str, dict[str, Counter[str]]] = {}
    for result in results:
        if result.phase is not None and result.complaint is None:
            phases = counted.setdefault(result.fault, {})
            phases.setdefault(result.phase, Counter())[str(result.code)] += 1
    found = {
        fault: {phase: counted[fault][phase] for phase in PHASES if phase in counted[fault]}
        for fault in FAULTS
        if fault in counted
    }
    (folder / KEPT).write_text(json.dumps(found, indent=1) + "\n")
    (folder / PAGE).write_text(page(found))


_PAGE = """\
# After a failure

Made by `scripts/faults.py --doc` from what `make faults` found: {total:,} faults on two PostgreSQL
servers, in eleven kinds of copy (a day, all rows into an empty table, a condition, with triggers,
without a ledger, through libpq, append, merge, two partitions by TRUNCATE and by `--swap`, with
retries), all but the last with `--retries 0`. After each one the dest was compared with what it
held before and with what the source has, and the ledger with the dest; then one more run had to
make the dest what it should be (`append` where the ledger told that the rows were not there yet).
It was never neither old nor new.

## What to do

| exit code | meaning | what the dest holds | what to run |
|---|---|---|---|
{codes}

With `--retries` (3 by default) what ends with 5 here is tried again first. Exit 75 comes only
where the dest cannot be reached any more or does not end the transaction (it may wait for a
standby), where nothing is recorded (`--no-ledger`) and a try after the lost COMMIT failed too, or
where a signal ended the wait. In the ledger one can see later which of the two it was. What
a copy that failed had written takes space at the dest until VACUUM.

## What was found

How often each failure, by the phase in which it fell, ended with which exit code. The phases:

{phases}

A failure of the source behind its last message harms nothing; one that falls while a message is
under way may count for the phase before it. What an administrator cancels is not tried again; a
server that waits for COPY data, or commits, is deaf to that.

| failure | {heads} |
{rule}
{rows}
"""


def page(found: Found) -> str:
    """Return the page."""
    meanings = {code: meaning.partition(";")[0] for code, meaning, _ in EXIT_CODES}
    meanings[-9] = "killed (SIGKILL, or by the kernel for want of memory)"
    return _PAGE.format(
        total=sum(sum(codes.values()) for phases in found.values() for codes in phases.values()),
        codes="\n".join(
            f"| {_shell(code)} | {meanings[code]} | {holds} | {run} |"
            for code, (holds, run) in _HOLDS.items()
        ),
        phases="\n".join(f"- *{phase}*: {what}" for phase, what in PHASES.items()),
        heads=" | ".join(PHASES),
        rule="|---" * (len(PHASES) + 1) + "|",
        rows="\n".join(_row(fault, phases) for fault, phases in found.items()),
    )


def _row(fault: str, phases: Mapping[str, Mapping[str, int]]) -> str:
    cells = [
        ", ".join(
            f"{_shell(int(code))} ({count}x)"
            for code, count in sorted(phases.get(phase, {}).items())
        )
        for phase in PHASES
    ]
    return f"| {FAULTS[fault]} | " + " | ".join(cells) + " |"


def _shell(code: int) -> int:
    """Return what a shell tells of a process that a signal killed."""
    return code if code >= 0 else 128 - code
