"""The recipes of docs/backfill.md, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.databases import Database

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backfill.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
BINARIES = Path(sys.executable).parent

Env = dict[str, str]


def recipe(language: str, holds: str) -> str:
    """Return the one block of that language that holds a text."""
    (found,) = [text for name, text in BLOCKS if name == language and holds in text]
    return found


@pytest.fixture
def env(kept_source: Database, kept_dest: Database, tmp_path: Path) -> Env:
    """Both sides have public.users: rows of April 2018 and of yesterday at the source."""
    table = (
        "CREATE TABLE public.users (id int PRIMARY KEY, created_at timestamptz);"
        "CREATE INDEX ON public.users (created_at)"
    )
    for database in (kept_source, kept_dest):
        database.execute(table)
    kept_source.execute(
        "INSERT INTO public.users SELECT n, '2018-04-01Z'::timestamptz + n * interval '1 hour'"
        " FROM generate_series(0, 719) AS n UNION ALL"
        " SELECT 1000 + n, date_trunc('day', now()) - n * interval '1 hour'"
        " FROM generate_series(1, 48) AS n"
    )
    services = tmp_path / "services"
    sides = {"shop": kept_source, "dwh": kept_dest}
    services.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{word}\n" for word in database.dsn.split())
            for name, database in sides.items()
        )
    )
    return {
        "PATH": f"{BINARIES}:{os.defpath}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "PGSERVICEFILE": str(services),
    }


def run(words: list[str], env: Env, folder: Path, given: str | None = None) -> str:
    done = subprocess.run(
        words, env=env, cwd=folder, input=given, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def named(env: Env) -> Env:
    return {**env, "COPYPIPE_SOURCE": "service=shop", "COPYPIPE_DEST": "service=dwh"}


def april(dest: Database) -> int:
    return dest.scalar("SELECT count(*) FROM public.users WHERE created_at < '2018-05-01Z'")


def recent(dest: Database) -> int:
    return dest.scalar("SELECT count(*) FROM public.users WHERE created_at > '2018-05-01Z'")


def test_cron(env: Env, kept_dest: Database, tmp_path: Path) -> None:
    """As cron runs it: by sh, with next to nothing in the environment."""
    line = re.sub(r"^([\d*]+ +){5}", "", recipe("cron", "backfill"))

    assert run(["/bin/sh", "-c", line], env, tmp_path) == ""

    assert recent(kept_dest) == 48


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
def test_systemd(env: Env, kept_dest: Database, tmp_path: Path) -> None:
    executable = BINARIES / "copypipe"
    text = recipe("ini", "[Service]").replace("/usr/local/bin/copypipe", str(executable))
    unit = tmp_path / "users.service"
    unit.write_text(text)

    told = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        env={**env, "SYSTEMD_LOG_LEVEL": "warning"},
        check=False,
    )
    assert "users.service" not in told.stderr, told.stderr
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    (given,) = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
    chosen = dict(word.split("=", 1) for word in given.split())
    run(command.split(), {**env, **chosen}, tmp_path)

    assert recent(kept_dest) == 48


@pytest.mark.slow  # thirty processes; the README's walk runs one of these too
def test_xargs(env: Env, kept_dest: Database, tmp_path: Path) -> None:
    run(["bash", "-c", recipe("sh", "xargs")], named(env), tmp_path)

    assert april(kept_dest) == 720


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("parallel"), reason="GNU parallel is missing")
def test_gnu_parallel_does_again_what_failed(env: Env, kept_dest: Database, tmp_path: Path) -> None:
    """Once more, with nothing to do: the log tells that all days are done."""
    kept_dest.execute("ALTER TABLE public.users ADD CONSTRAINT late CHECK (id <> 50)")
    line = recipe("sh", "parallel")
    first = subprocess.run(
        ["bash", "-c", line], env=named(env), cwd=tmp_path, capture_output=True, check=False
    )
    assert (first.returncode, april(kept_dest)) == (1, 720 - 24)
    kept_dest.execute("ALTER TABLE public.users DROP CONSTRAINT late")

    again = run(["bash", "-c", line], named(env), tmp_path)

    assert april(kept_dest) == 720
    assert again.count("\n") == 1
    assert run(["bash", "-c", line], named(env), tmp_path) == ""


@pytest.mark.slow
def test_make(env: Env, kept_dest: Database, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(recipe("make", "DAYS"))

    out = run(["make", "-j4"], named(env), tmp_path)

    assert (april(kept_dest), out.count("\n")) == (720, 30)
    assert "Nothing to be done" in run(["make", "-j4"], named(env), tmp_path)
