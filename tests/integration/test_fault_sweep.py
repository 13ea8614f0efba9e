"""A sample of the sweep of scripts/faults.py, and of the crowd, in every run of the suite."""

import zlib
from pathlib import Path

import pytest

from copypipe import attempts, watches
from faults import cells, crowds, planted, sweep
from faults.phases import ORDER
from faults.scenes import KINDS
from faults.sweep import Case, Stage
from plugins.databases import Database

ROOT = Path(__file__).resolve().parents[2]

# One case of so many; with those that must be among them some 60 faults in all, 25 seconds.
ONE_OF = 4000

# How a connection ends whose COMMIT is under way; all but one kind take turns.
ENDED = ("fin", "terminate")

# The kinds take turns, so that each has a part of each fault.
ALWAYS = [
    Case("day", "source curtailed", "rows 2"),
    Case("day", "source error", "sql"),
    Case("day", "dest error", "sql"),
    Case("day", "dest late error", "sql"),
    Case("day", "dest rolls back", "commit"),
    Case("bare", "dest rolls back", "commit"),
    Case("libpq", "source curtailed", "rows 1"),
    *(Case("day", "dest gone", f"phase {phase}") for phase in ORDER[:-1]),
    *(Case("day", f"dest {what}", "phase commit") for what in ENDED),
    *(
        Case(kind, f"dest {ENDED[number % 2]}", "phase commit")
        for number, kind in enumerate(KINDS)
        if kind != "day"
    ),
    *(
        Case("day", f"{side} {what}", f"phase {phase}")
        for phase in ORDER[:-1]
        for side, what in (("source", "rst"), ("dest", "terminate"))
    ),
    *(Case("day", "crash", f"point {point}:1", as_process=True) for point in sweep.POINTS),
    *(
        Case("day", name, f"phase {phase}", as_process=True)
        for name in ("SIGKILL", "SIGTERM")
        for phase in ("clear", "record", "commit")
    ),
]


@pytest.fixture
def stage(kept_source: Database, kept_dest: Database, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(watches, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(attempts, "SETTLE_COMMIT_SECONDS", 4.0)
    return Stage(kept_source, kept_dest)


def sampled(stage: Stage) -> list[Case]:
    """Return the same sample in each run; faults that need a server alone are not in it."""
    messages = {kind: stage.messages(kind) for kind in KINDS}
    return [
        case
        for case in sweep.cases(messages)
        if not case.alone and not zlib.crc32(case.key.encode()) % ONE_OF
    ]


def test_a_sample_of_all_faults(stage: Stage) -> None:
    wanted = {case.key: case for case in [*ALWAYS, *sampled(stage)]}
    results = [r for batch in sweep.batches(wanted.values()) for r in stage.play(batch)]

    found = sweep.complaints(results)
    assert not found, "\n".join(found)
    made = [result for result in results if result.phase is not None]
    assert len(made) > 50
    assert {result.phase for result in made} >= {*ORDER[:-1]}


@pytest.mark.timeout(60)
def test_a_crowd_leaves_every_row_once(kept_source: Database, kept_dest: Database) -> None:
    crowd = crowds.gather(kept_source, kept_dest, members=4, seconds=4)

    assert not crowd.findings, crowd.findings
    assert crowd.codes[0] > 3, "some came through, also on a machine that is busy"
    assert crowd.killed > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_larger_crowd_for_minutes(kept_source: Database, kept_dest: Database) -> None:
    crowd = crowds.gather(kept_source, kept_dest, members=6, seconds=180)

    assert not crowd.findings, crowd.findings
    assert crowd.killed > 60


@pytest.mark.parametrize("name", planted.DEFECTS)
def test_each_defect_can_still_be_planted(tmp_path: Path, name: str) -> None:
    """What it replaces stands there once; `make faults-planted` sees whether it is found."""
    planted.plant(name, ROOT / "copypipe", tmp_path)
    defect = planted.DEFECTS[name]
    compile((tmp_path / "copypipe" / defect.file).read_text(), defect.file, "exec")


def test_every_fault_has_its_codes() -> None:
    for fault in cells.FAULTS:
        for phase in ORDER:
            assert cells.allowed(fault, phase, "day")
