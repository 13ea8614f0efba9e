"""Every fault at every place: which there are, how one is played, what is kept of it.

SQLite's method: the fault is made at the first message, the second, the third, until the copy comes
through. What counts is only what was made, as the proxy and the course tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

import copypipe
from faults import cells, makers
from faults.makers import Trial
from faults.phases import ORDER, PHASES, Course
from faults.scenes import KINDS, PARTITIONED, Outcome, Scene, heard
from plugins.canary import CANARY
from plugins.command import eventually, no_backends
from plugins.proxy import DIRECTIONS, Proxy, Rule, unchanged
from plugins.servers import SIDES

# No copy of five rows takes longer, whatever is done to it: stalls end after a second, what a
# server behind a hole held is free after another half, and a server is back after some more.
LONGEST_SECONDS = 30.0

# Faults that are over only after a pause.
SLOW = ("hole", "freeze", "gone")

# Places of copypipe's code (`copypipe.crashpoints`), and how often each is tried at most.
POINTS = (
    *("source-statement", "source-answer", "dest-statement", "dest-answer"),
    *("chunk-sent", "source-ended", "commit-sent", "committed"),
)
MOST_VISITS = 60

# The stream of three rows is shorter than that.
STREAM_BYTES = 260


@dataclass(frozen=True)
class Case:
    """One fault at one place, of one kind of copy."""

    kind: str
    fault: str
    place: str
    """SENDER NUMBER for a message, `phase PHASE`, `byte N`, `rows N`, `point NAME:N`, or `sql`."""
    as_process: bool = False

    @property
    def key(self) -> str:
        how = "process" if self.as_process else "call"
        return f"{self.kind}/{self.fault}/{self.place}/{how}"

    @property
    def side(self) -> str:
        side = self.fault.partition(" ")[0]
        return side if side in SIDES else "dest"

    @property
    def what(self) -> str:
        side, _, what = self.fault.partition(" ")
        return what if side in SIDES else self.fault

    @property
    def alone(self) -> bool:
        return self.what in makers.ALONE

    @property
    def at_once(self) -> int:
        """How many of these are played at a time."""
        if self.alone:
            return 1
        return 12 if self.what in SLOW else 2 if self.as_process else 4


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    key: str
    kind: str
    fault: str
    phase: str | None
    """None where the fault was not made."""
    code: int | None
    seconds: float
    complaint: str | None


# --- which there are ------------------------------------------------------------------------------


def cases(messages: dict[str, dict[tuple[str, str], int]]) -> Iterator[Case]:
    """Yield every case; `messages` tells for each kind how many come from each side and end."""
    for kind in KINDS:
        yield from _at_messages(kind, messages[kind])
        for what in ("kill -9", "stop", "freeze"):
            for side in SIDES:
                yield from (Case(kind, f"{side} {what}", f"phase {phase}") for phase in ORDER[:-1])
        yield from (Case(kind, f"dest {what}", "phase after") for what in makers.ALONE)
        yield from (Case(kind, "dest gone", f"phase {phase}") for phase in ORDER[:-1])
        for number in range(0, STREAM_BYTES, 1 if kind in ("day", "libpq") else 7):
            yield Case(kind, "source cut", f"byte {number}")
        yield from (Case(kind, "source curtailed", f"rows {rows}") for rows in range(3))
        for fault in ("source error", "dest error", "dest late error"):
            # The constraint that fails late cannot be one of a partitioned table.
            if fault != "dest late error" or kind not in PARTITIONED:
                yield Case(kind, fault, "sql")
        yield Case(kind, "dest rolls back", "commit")
        yield from _as_processes(kind)


def _at_messages(kind: str, messages: dict[tuple[str, str], int]) -> Iterator[Case]:
    for side in SIDES:
        for sender in DIRECTIONS:
            for number in range(messages[side, sender]):
                place = f"{sender} {number}"
                for what in makers.ENDINGS:
                    yield Case(kind, f"{side} {what}", place)
                yield Case(kind, f"{side} terminate", place)
                if kind in ("day", "triggers"):
                    yield Case(kind, f"{side} cancel", place)


def _as_processes(kind: str) -> Iterator[Case]:
    for point in POINTS:
        for visit in range(1, MOST_VISITS + 1):
            yield Case(kind, "crash", f"point {point}:{visit}", as_process=True)
    for name in makers.SIGNALS:
        yield from (Case(kind, name, f"phase {phase}", as_process=True) for phase in ORDER)
    for side in SIDES:
        for what in ("fin", "terminate"):
            yield from (
                Case(kind, f"{side} {what}", f"phase {phase}", as_process=True)
                for phase in ORDER[:-1]
            )


# --- playing --------------------------------------------------------------------------------------


class Stage:
    """A pair of databases with scenes of every kind, and what is played there."""

    def __init__(self, source: Any, dest: Any, environment: dict[str, str] | None = None) -> None:
        self.source, self.dest = source, dest
        self._environment = environment or dict(os.environ)
        self._scenes: dict[tuple[str, int], Scene] = {}

    def scene(self, kind: str, number: int) -> Scene:
        """Return a scene, made when it is first asked for."""
        if (kind, number) not in self._scenes:
            made = Scene(kind, self.source, self.dest, number, self._environment)
            self._scenes[kind, number] = made
            made.reset()
            first = made.copy()  # makes the ledger too
            assert first.code == 0, first.said
        return self._scenes[kind, number]

    def messages(self, kind: str) -> dict[tuple[str, str], int]:
        """Return how many messages a copy takes, by side and sender."""
        scene = self.scene(kind, 0)
        scene.reset()
        with _between(scene, {}) as proxies:
            outcome = scene.copy(proxies)
            assert outcome.code == 0, outcome.said
            no_backends(self.source, self.dest)  # the last message has passed
            return {
                (side, sender): proxies[side].messages[sender]
                for side in SIDES
                for sender in DIRECTIONS
            }

    def play(self, some: Sequence[Case]) -> list[Result]:
        """Play cases at once, each in a scene of its own."""
        trials = [self._begin(case, number) for number, case in enumerate(some)]
        for trial in trials:
            trial.thread.join(LONGEST_SECONDS)
        for trial in trials:
            trial.end()
        for case in some:
            if case.alone:
                _back(getattr(self, case.side))
        left = None
        try:
            no_backends(self.source, self.dest)
        except BaseException as error:  # noqa: BLE001 - pytest's own failure, and worse
            left = str(error)
        return [trial.result(left) for trial in trials]

    def _begin(self, case: Case, number: int) -> _Playing:
        scene = self.scene(case.kind, number)
        scene.reset()
        return _Playing(case, scene)


def _back(database: Any) -> None:
    """Wait for a server that restarts itself, and let the tests' own sessions be made anew.

    It may still accept somebody before it has noticed that a process of its was killed.
    """
    accepted = 0

    def stays() -> bool:
        nonlocal accepted
        try:
            database.server.connect().close()
        except psycopg.OperationalError:
            accepted = 0
        else:
            accepted += 1
        return accepted >= 20

    eventually(stays, seconds=40, what="the server is back")
    database.server.starts += 1


@contextlib.contextmanager
def _between(scene: Scene, rules: dict[str, Rule]) -> Iterator[dict[str, Proxy]]:
    proxies = {}
    for side in SIDES:
        server = getattr(scene, side).server
        proxies[side] = Proxy(server.host, server.port, rules.get(side, unchanged))
    try:
        yield proxies
    finally:
        for proxy in proxies.values():
            proxy.close()


class _Playing:
    """A case that is being played, in a thread of its own."""

    def __init__(self, case: Case, scene: Scene) -> None:
        self.case, self.scene = case, scene
        self._outcome = Outcome(None, f"still at it after {LONGEST_SECONDS} s", None, 0.0)
        self._stack = contextlib.ExitStack()
        course = Course(records=scene.records)
        proxies = self._stack.enter_context(_between(scene, {}))
        self._trial = Trial(scene, course, case.side, proxies)
        for side in SIDES:
            proxies[side].rule = heard(course, side)
        proxies[case.side].rule = heard(course, case.side, self._rule())
        self._sql()
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.thread.start()

    def _rule(self) -> Rule:
        trial, (word, _, rest) = self._trial, self.case.place.partition(" ")
        if word in DIRECTIONS:
            return makers.at_message(trial, word, int(rest), self.case.what)
        if word == "phase":
            return makers.at_phase(trial, rest, self.case.what)
        if word == "byte":
            return makers.cut_at_byte(trial, int(rest))
        if word == "rows":
            return makers.curtailed(trial, int(rest))
        if word == "commit":
            return makers.rolls_back(trial)
        if word == "sql":
            return makers.failing(trial)
        return unchanged

    def _sql(self) -> None:
        """Prepare a failure that the servers make themselves."""
        if self.case.place == "sql":
            _FAILURES[self.case.fault](self.scene, self._stack)

    def _play(self) -> None:
        if self.case.as_process:
            self._outcome = self._as_process()
        else:
            self._outcome = self.scene.copy(self._trial.proxies)

    def _as_process(self) -> Outcome:
        command, environment = self.scene.command(self._trial.proxies)
        word, _, point = self.case.place.partition(" ")
        if word == "point":
            environment["COPYPIPE_CRASHPOINT"] = point
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._trial.pid = process.pid
        try:
            said, _ = process.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            return Outcome(None, f"still ran: {said}", None, time.monotonic() - began)
        if process.returncode == -9 and word == "point":
            self._trial.fall()
        if CANARY in said or "Traceback" in said:
            return Outcome(None, said, None, time.monotonic() - began)
        return Outcome(process.returncode, said, None, time.monotonic() - began)

    def end(self) -> None:
        """Take everything of the case down."""
        self._stack.close()

    def result(self, left: str | None) -> Result:
        """Look at what there is now, and run it once more."""
        case, outcome, phase = self.case, self._outcome, self._trial.fell
        code = outcome.code
        may = frozenset({0}) if phase is None else cells.allowed(case.fault, phase, case.kind)
        try:
            complaint = self.scene.complaint(outcome, may) or left or self._quoted()
        except psycopg.Error as error:
            complaint = f"nothing could be asked: {error!r}"
        return Result(case.key, case.kind, case.fault, phase, code, outcome.seconds, complaint)

    def _quoted(self) -> str | None:
        """Return where the dest was told what the source said, which its log would keep."""
        if self.case.fault != "source error":
            return None
        log = self.scene.dest.server.read_log
        quoted = log is not None and _QUOTED.encode() in log()
        return "the dest's log quotes the source's error" if quoted else None


_QUOTED = "said by the source alone"


def _source_error(scene: Scene, stack: contextlib.ExitStack) -> None:
    """Let a row of the source fail when it is read, with a text that is said nowhere else.

    Least of all in the dest's log. Of what servers say themselves some is not handed on.
    """
    scene.source.execute(
        "CREATE OR REPLACE FUNCTION public.fails() RETURNS text LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{_QUOTED}'; END $$;"
        f"ALTER TABLE {scene.table} RENAME TO hidden_{scene.number};"
        f"CREATE VIEW {scene.table} AS SELECT id, CASE WHEN id = 2 THEN public.fails()"
        f" ELSE body END AS body, created_at FROM public.hidden_{scene.number}"
    )
    stack.callback(
        scene.source.execute,
        f"DROP VIEW {scene.table};"
        f"ALTER TABLE public.hidden_{scene.number} RENAME TO {scene.table.partition('.')[2]}",
    )


def _dest_error(scene: Scene, stack: contextlib.ExitStack) -> None:
    """Let the dest refuse a row."""
    scene.dest.execute(f"ALTER TABLE {scene.table} ADD CONSTRAINT small CHECK (id < 2) NOT VALID")
    stack.callback(scene.dest.execute, f"ALTER TABLE {scene.table} DROP CONSTRAINT small")


def _dest_late_error(scene: Scene, stack: contextlib.ExitStack) -> None:
    """Let a constraint of the dest fail when it is asked at last."""
    scene.dest.execute(
        f"ALTER TABLE {scene.table} ADD CONSTRAINT late_rows EXCLUDE USING btree"
        " ((id / 100) WITH =) WHERE (id > 0) DEFERRABLE INITIALLY DEFERRED"
    )
    stack.callback(scene.dest.execute, f"ALTER TABLE {scene.table} DROP CONSTRAINT late_rows")


_FAILURES = {
    "source error": _source_error,
    "dest error": _dest_error,
    "dest late error": _dest_late_error,
}


# --- keeping --------------------------------------------------------------------------------------


def batches(wanted: Iterable[Case]) -> Iterator[list[Case]]:
    """Yield cases that can be played at once."""
    by_number: dict[tuple[int, str, bool], list[Case]] = {}
    for case in wanted:
        batch = by_number.setdefault((case.at_once, case.kind, case.as_process), [])
        batch.append(case)
        if len(batch) == case.at_once:
            yield batch
            batch.clear()
    yield from (batch for batch in by_number.values() if batch)


def code() -> str:
    """Return a hash of copypipe's code: what was found of other code says nothing of this one."""
    found = hashlib.sha256()
    package = Path(copypipe.__file__).parent
    for file in sorted(package.rglob("*.py")):
        found.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]


class Journal:
    """The results so far, a line each: a sweep that was ended goes on from there.

    Of other code nothing is read, and what should not have happened is played again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self._code = code()
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut when the sweep was ended
                    told = json.loads(line)
                    if told.pop("of", None) == self._code:
                        result = Result(**told)
                        self.results[result.key] = result

    def add(self, results: Iterable[Result]) -> None:
        """Keep results."""
        with self.path.open("a") as file:
            for result in results:
                self.results[result.key] = result
                file.write(json.dumps({**asdict(result), "of": self._code}) + "\n")

    def lacks(self, case: Case) -> bool:
        """Return whether a case is still to be played."""
        result = self.results.get(case.key)
        return result is None or result.complaint is not None


def complaints(results: Iterable[Result]) -> list[str]:
    """Return what should not have happened."""
    return [
        f"{result.key}, {result.phase}: {result.complaint}"
        for result in results
        if result.complaint is not None
    ]


def matrix(results: Iterable[Result]) -> str:
    """Return how many faults were made, by fault and phase, with the exit codes that came of it."""
    found: dict[tuple[str, str], Counter[int | None]] = {}
    for result in results:
        if result.phase is not None:
            found.setdefault((result.fault, result.phase), Counter())[result.code] += 1
    lines = [f"{'':<18}" + "".join(f"{phase:>20}" for phase in PHASES)]
    for fault in cells.FAULTS:
        row = []
        for phase in PHASES:
            codes = found.get((fault, phase), Counter())
            told = " ".join(f"{code}:{count}" for code, count in sorted(codes.items(), key=str))
            row.append(f"{told:>20}")
        lines.append(f"{fault:<18}" + "".join(row))
    total = sum(sum(codes.values()) for codes in found.values())
    lines.append(f"{total} faults were made")
    return "\n".join(lines)


def thin(results: Iterable[Result]) -> list[str]:
    """Return the cells of the matrix in which fewer faults were made than there should be."""
    made = Counter((result.fault, result.phase) for result in results)
    return [
        f"{fault} in {phase}: {made[fault, phase]} of {least}"
        for fault in cells.FAULTS
        for phase in ORDER
        if made[fault, phase] < (least := cells.least(fault, phase))
    ]
