"""Sweep all faults over all places of a copy, on two throw-away servers; resumable.

python scripts/faults.py                 every case that is not in the journal yet (an hour)
python scripts/faults.py --every 50      each 50th
python scripts/faults.py --only 'dest hole' --kind day
python scripts/faults.py --matrix        print what the journal holds
python scripts/faults.py --crowd 180     many runs at once for so many seconds
python scripts/faults.py --doc           write docs/failures.md from the journal
python scripts/faults.py --planted       plant defects; each must be found

Ends with 1 if anything happened that must not, with 2 where the sweep itself failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from copypipe import attempts, watches  # noqa: E402
from faults import crowds, makers, planted, sweep, told  # noqa: E402 - the tests' folder is found first
from faults.scenes import KINDS  # noqa: E402
from faults.sweep import Case, Journal, Stage  # noqa: E402
from plugins import databases, servers  # noqa: E402
from plugins.databases import Database  # noqa: E402


def main() -> int:
    """Sweep, print the matrix and what should not have happened."""
    options = _options()
    # A shell lets what it starts in the background ignore some of these, and copypipe would too.
    for name in makers.SIGNALS:
        if name != "SIGKILL":
            signal.signal(signal.Signals[name], signal.SIG_DFL)
    if options.planted:
        return _planted()
    if options.crowd:
        return _crowd(options)
    journal = Journal(options.journal)
    if not (options.matrix or options.doc):
        if options.jobs > 1:
            _share(options)
            journal = Journal(options.journal)
        else:
            _sweep(options, journal)
    print(sweep.matrix(journal.results.values()))
    found = sweep.complaints(journal.results.values())
    if options.every == 1 and not (options.only or options.kind or options.place or options.part):
        found += sweep.thin(journal.results.values())
    if options.doc and not found:
        told.write(ROOT / "docs", journal.results.values())
    print("\n".join(found) or "nothing happened that must not")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "faults.jsonl")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th case")
    parser.add_argument("--only", help="only this fault")
    parser.add_argument("--place", default="", help="only places that begin so")
    parser.add_argument("--crowd", type=float, help="seconds of many runs at once instead")
    parser.add_argument("--members", type=int, default=6, help="how many of them")
    parser.add_argument("--planted", action="store_true", help="plant defects and look for each")
    parser.add_argument("--kind", choices=KINDS, help="only this kind of copy")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its own servers")
    parser.add_argument("--part", help="for --jobs: which of them this is")
    parser.add_argument("--matrix", action="store_true", help="print the journal")
    parser.add_argument("--doc", action="store_true", help="write docs/failures.md")
    options = parser.parse_args()
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    return options


def _share(options: argparse.Namespace) -> None:
    """Let several processes sweep, each its part; ends with 2 where one of them failed itself."""
    words = ["--journal", str(options.journal), "--every", str(options.every)]
    words += ["--place", options.place]
    for name in ("only", "kind"):
        if getattr(options, name) is not None:
            words += [f"--{name}", getattr(options, name)]
    running = [
        subprocess.Popen([sys.executable, __file__, *words, "--part", f"{part}/{options.jobs}"])
        for part in range(options.jobs)
    ]
    if any(process.wait() not in (0, 1) for process in running):
        print("a part of the sweep itself failed", file=sys.stderr)
        sys.exit(2)


def _sweep(options: argparse.Namespace, journal: Journal) -> None:
    watches.SILENCE_SECONDS = 0.1  # a silent server is asked after a moment
    attempts.SETTLE_COMMIT_SECONDS = 20.0  # a server that was stopped is back by then
    with contextlib.ExitStack() as stack:
        stage = _stage(stack)
        messages = {kind: stage.messages(kind) for kind in KINDS}
        wanted = [case for case in _chosen(sweep.cases(messages), options) if journal.lacks(case)]
        began, seen = time.monotonic(), 0
        ended: set[tuple[str, str]] = set()
        for batch in sweep.batches(wanted):
            some = [case for case in batch if _point(case) not in ended]
            results = stage.play(some)
            journal.add(results)
            for case, result in zip(some, results, strict=True):
                if case.fault == "crash" and result.phase is None:
                    ended.add(_point(case))  # the copy came through: there is no later visit
                if result.complaint:
                    print(f"{result.key}, {result.phase}: {result.complaint}", flush=True)
            seen += len(batch)
            if seen % 200 < len(batch):
                speed = seen / (time.monotonic() - began)
                print(f"{seen} of {len(wanted)}, {speed:.1f} a second", flush=True)


def _point(case: Case) -> tuple[str, str]:
    return case.kind, case.place.partition(":")[0] if case.fault == "crash" else ""


def _chosen(every: sweep.Iterable[Case], options: argparse.Namespace) -> list[Case]:
    part, _, of = (options.part or "0/1").partition("/")
    chosen = [
        case
        for case in every
        if options.only in (None, case.fault)
        and options.kind in (None, case.kind)
        and case.place.startswith(options.place)
    ]
    return [
        case
        for case in chosen[:: options.every]
        if zlib.crc32(_together(case).encode()) % int(of) == int(part)
    ]


def _together(case: Case) -> str:
    """Return what cases have in common that one process must play.

    Crash points are tried in order, each until it is not reached any more.
    """
    return "/".join(_point(case)) if case.fault == "crash" else case.key


def _crowd(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        source, dest = _databases(stack)
        crowd = crowds.gather(source, dest, members=options.members, seconds=options.crowd)
    print(crowd)
    print("\n".join(crowd.findings) or "nothing happened that must not")
    return 1 if crowd.findings else 0


def _planted() -> int:
    """Return 1 where a planted defect is not found, or the sound copypipe is found fault with."""
    undone = []
    for name, defect in planted.DEFECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            planted.plant(name, ROOT / "copypipe", Path(folder))
            words = [*defect.sweep, "--journal", f"{folder}/journal"]
            found = _is_found(words, folder)
            words = [*defect.sweep, "--journal", f"{folder}/sound"]
            sound = not _is_found(words, str(ROOT))
        print(f"{name}: {'found' if found else 'NOT FOUND'}", flush=True)
        if not sound:
            print("  and something is found without it", flush=True)
        if not (found and sound):
            undone.append(name)
    return 1 if undone else 0


def _is_found(words: list[str], folder: str) -> bool:
    done = subprocess.run(
        [sys.executable, __file__, *words],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode not in (0, 1):
        sys.exit(f"the sweep itself failed:\n{done.stdout}")
    return done.returncode == 1


def _databases(stack: contextlib.ExitStack) -> tuple[Database, Database]:
    """Start two servers of two majors, with a database each."""
    binaries = servers.embedded_binaries()
    fresh = contextlib.contextmanager(databases.fresh)
    source, dest = (
        stack.enter_context(fresh(servers.launch_one(stack, side, binaries[side]), "template0"))
        for side in servers.SIDES
    )
    return source, dest


def _stage(stack: contextlib.ExitStack) -> Stage:
    home = stack.enter_context(tempfile.TemporaryDirectory())
    environment = {"PATH": os.defpath, "HOME": home, "LC_ALL": "C.UTF-8"}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return Stage(*_databases(stack), environment)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001 - pytest's own too; 1 is for what was found
        traceback.print_exc()
        sys.exit(2)
