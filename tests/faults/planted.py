"""Defects that are planted into a copy of copypipe, to see that the sweeps find each of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defect:
    """Texts that are replaced in a file of the package, and what of the sweep has to find it."""

    file: str
    changes: tuple[tuple[str, str], ...]
    sweep: Sequence[str]
    """Words for scripts/faults.py."""


DEFECTS = {
    "CopyDone without the trailer": Defect(
        "relay/wired.py",
        (("if self._trailer and not self._frames.ended:", "if False:"),),
        ("--kind", "day", "--only", "source curtailed"),
    ),
    "COMMIT's tag unread": Defect(
        "servers.py",
        (('if answer.result.command_status != b"COMMIT":', "if False:"),),
        ("--kind", "day", "--only", "dest rolls back"),
    ),
    "DELETE before the lock": Defect(
        "transfers.py",
        (
            (
                "    _lock(plan, dest, listen, _locks(plan, attempt, sliced_by, holder),"
                " attempt)\n",
                '    _begin_writing(plan, dest, {"lock_timeout": "60s"})\n',
            ),
            (
                "    _refuse_unasked(plan, had_rows=cleared.had_rows)\n",
                "    dest.fetch(lock_statements.take(_locks(plan, attempt, sliced_by, holder),"
                " plan.dest.table.root_oid))\n"
                "    _refuse_unasked(plan, had_rows=cleared.had_rows)\n",
            ),
        ),
        ("--crowd", "10"),
    ),
    "the ledger's row after COMMIT": Defect(
        "transfers.py",
        (
            (
                "    if position is not None:\n"
                "        _record(plan, dest, filled.table or plan.dest.table, done, seen,"
                " position, moment, holder)\n",
                "    _LATER.append((plan, done, seen, position, moment))\n",
            ),
            (
                "    listen(Decided(committed=True))\n",
                "    plan, done, seen, position, moment = _LATER.pop()\n"
                "    if position is not None:\n"
                '        dest.begin("READ COMMITTED", read_only=False)\n'
                "        _record(plan, dest, plan.dest.table, done, seen, position, moment, None)\n"
                "        dest.commit_note()\n"
                "    listen(Decided(committed=True))\n",
            ),
            ("def commit(dest", "_LATER: list[tuple[Any, ...]] = []\n\n\ndef commit(dest"),
            ("import time\n", "import time\nfrom typing import Any\n"),
        ),
        ("--kind", "day", "--only", "crash", "--place", "point commit"),
    ),
    "an error's text in CopyFail": Defect(
        "relay/wired.py",
        (
            (
                "if self._wire.send(COPY_FAIL, 0) == len(COPY_FAIL):",
                "import sys\n"
                "                said = str(sys.exc_info()[1]).encode() + bytes(1)\n"
                '                fail = b"f" + (len(said) + 4).to_bytes(4, "big") + said\n'
                "                if self._wire.send(fail, 0) == len(fail):",
            ),
        ),
        ("--kind", "day", "--only", "source error"),
    ),
    "REPEATABLE READ at the dest": Defect(
        "transfers.py",
        (
            (
                'dest.begin("READ COMMITTED", read_only=False, local=local)',
                'dest.begin("REPEATABLE READ", read_only=False, local=local)',
            ),
        ),
        ("--crowd", "10"),
    ),
    "a blind retry after a lost COMMIT": Defect(
        "attempts.py",
        (
            (
                "        return self._settle(plan, done, unknown)\n",
                '        raise ConnectionLost("dest: blind", side="dest")\n',
            ),
        ),
        ("--kind", "retried", "--only", "dest fin", "--place", "server"),
    ),
    "DELETE without its condition": Defect(
        "statements/copies.py",
        (
            (
                'return SQL("DELETE FROM {} WHERE {}").format(_table(table), predicate(slice_))',
                'return SQL("DELETE FROM {}").format(_table(table))',
            ),
        ),
        ("--crowd", "6"),
    ),
    "a lock on the slice's name only": Defect(
        "slices.py",
        (
            (
                "    around = range_of(slice_)\n    if around is None or sliced_by not in",
                "    return (Lock(str(slice_), exclusive=True),)\n"
                "    around = range_of(slice_)\n    if around is None or sliced_by not in",
            ),
        ),
        ("--crowd", "10"),
    ),
}


def plant(name: str, package: Path, folder: Path) -> None:
    """Put a copy of the package with the defect into the folder."""
    defect = DEFECTS[name]
    copy = folder / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / defect.file
    text = file.read_text()
    for sound, broken in defect.changes:
        if text.count(sound) != 1:
            raise ValueError(f"{name}: {sound!r} does not stand once in {defect.file}")
        text = text.replace(sound, broken)
    file.write_text(text)
