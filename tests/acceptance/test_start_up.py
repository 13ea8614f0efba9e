"""What a shell loop pays for each day: imports, and the work of a tiny copy besides them."""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import pytest

from plugins.command import EXECUTABLE, Command, users
from plugins.databases import Database

# How much CPU a copy of 24 rows may cost above the imports that it cannot do without.
ALLOWED_SECONDS = 0.2
# So many are measured, and no more where they are clearly below; else more, again and again.
FEW, RUNS = 3, 7
CLEARLY = 0.75
# Whatever else the machine does only adds to what is measured.
ROUNDS = 3

DEAR = ("psycopg", "tqdm", "rich", "asyncio", "urllib.request", "http.client", "jinja2")


@pytest.mark.parametrize("words", [["--help"], ["copy", "--help"]], ids=["help", "copy help"])
def test_help_does_not_import_the_driver(words: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['copypipe', *sys.argv[1:]]\n"
        "from copypipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        f"print([name for name in {DEAR} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )

    assert "Exit status" in done.stdout
    assert done.stderr == "[]\n"


def test_importing_the_package_does_not_import_the_driver() -> None:
    script = "import copypipe, sys; assert 'psycopg' not in sys.modules; copypipe.copy"
    script += "; assert 'psycopg' in sys.modules; assert 'tqdm' not in sys.modules"
    script += "; assert 'typer' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def _cpu(command: list[str], env: dict[str, str]) -> float:
    """Return the CPU seconds, user and system, of one process from start to end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_a_tiny_copy_costs_little_more_than_its_imports(
    run: Command,
    source: Database,
    dest: Database,
    record_property: Callable[[str, object], None],
) -> None:
    users(source)
    users(dest, 0)
    copy = [str(EXECUTABLE), "copy", "users", "--day", "2018-04-29"]
    imports = [sys.executable, "-c", "import psycopg, typer"]
    # Measuring coverage costs CPU of its own.
    env = {name: value for name, value in run.base.items() if not name.startswith("COVERAGE_")}
    for command in (copy, imports):
        _cpu(command, env)  # bytecode and file caches

    for _ in range(ROUNDS):
        costs: list[float] = []
        for runs, limit in ((FEW, CLEARLY * ALLOWED_SECONDS), (RUNS, ALLOWED_SECONDS)):
            while len(costs) < runs:
                costs.append(_cpu(copy, env) - _cpu(imports, env))
            difference = statistics.median(costs)
            if difference <= limit:
                break
        if difference <= ALLOWED_SECONDS:
            break
    record_property("cpu_seconds_besides_imports", round(difference, 3))
    assert difference <= ALLOWED_SECONDS
