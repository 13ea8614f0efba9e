"""The documents tell what is true: flags, codes, the screen of the demo."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from copypipe.cli.app import app
from copypipe.errors import EXIT_CODES
from faults import told

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "cli.md").read_text()


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags() -> set[str]:
    group = typer.main.get_command(app)
    options = [p.opts for command in group.commands.values() for p in command.params]
    return {name for names in options for name in names if name.startswith("-")} | {
        "--help",
        "--version",
    }


def test_the_reference_is_up_to_date(docs: ModuleType) -> None:
    assert docs.reference() == REFERENCE, "run: python scripts/docs.py cli"


def test_every_flag_is_documented() -> None:
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", REFERENCE))

    assert not flags() - {"--help", "--version"} - named


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_every_flag_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    # A fenced example may call other programs (psql, xargs, seq); there only ours counts.
    ours = re.findall(r"copypipe (?:copy|demo)[^\n|#]*(?:\\\n[^\n]*)*", text)
    prose = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose + "\n".join(ours)))

    assert named
    assert not named - flags()


@pytest.mark.parametrize("page", [README, REFERENCE])
def test_the_exit_codes_are_those_of_the_code(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", page, re.MULTILINE)

    assert [(int(code), meaning, again) for code, meaning, again in rows] == list(EXIT_CODES)


def test_help_tells_the_exit_codes() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "copypipe", "copy", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    for code, meaning, _ in EXIT_CODES:
        assert f"{code}  {meaning}" in shown


def test_the_page_of_failures_is_what_was_found() -> None:
    found = json.loads((ROOT / "docs" / told.KEPT).read_text())
    assert (ROOT / "docs" / told.PAGE).read_text() == told.page(found)
