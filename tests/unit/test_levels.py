"""The levels hold in the package, and the checker sees every way to break them."""

from pathlib import Path

import pytest

from levels import violations

ROOT = Path(__file__).resolve().parents[2]


def test_package_keeps_its_levels() -> None:
    files = (ROOT / "copypipe").rglob("*.py")
    sources = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}
    assert sources, "no module found"
    found = violations(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("copypipe/plans.py", "import copypipe.catalog"),
        ("copypipe/plans.py", "from copypipe.errors import PlanRefused"),
        ("copypipe/plans.py", "from copypipe import catalog, errors"),
        ("copypipe/plans.py", "from . import catalog"),
        ("copypipe/plans.py", "from .relay.frames import Frame"),
        ("copypipe/relay/wire.py", "from .frames import Frame"),
        ("copypipe/relay/wire.py", "from copypipe.relay import frames"),
        ("copypipe/relay/__init__.py", "from .wire import relay"),
        ("copypipe/relay/wire.py", "from ..errors import ConnectionLost"),
        ("copypipe/cli/__init__.py", "import typer"),
        ("copypipe/reporting.py", "from tqdm.auto import tqdm"),
        ("copypipe/airflow.py", "from airflow.sdk import BaseOperator"),
        ("copypipe/statements/copies.py", "from psycopg import sql"),
        ("copypipe/transfers.py", "from psycopg.sql import Composed"),
        ("copypipe/transfers.py", "import psycopg\npsycopg.connect()"),
        ("copypipe/__init__.py", "from importlib import import_module\nimport_module('.api')"),
        ("copypipe/__init__.py", "__import__(name)"),
        ("copypipe/__main__.py", "from copypipe.cli import main"),
        ("copypipe/cli/app.py", "from copypipe import __version__"),
        ("copypipe/launcher.py", "import importlib.util\nimportlib.util.find_spec(name)"),
    ],
)
def test_permitted(path: str, source: str) -> None:
    assert violations({path: source}) == []


PLANTED = {
    "higher level": ("copypipe/errors.py", "import copypipe.events", "imports 'events'"),
    "same level": ("copypipe/types.py", "from copypipe.slices import x", "imports 'slices'"),
    "from the package": ("copypipe/plans.py", "from copypipe import attempts", "'attempts'"),
    "second of two names": ("copypipe/plans.py", "from . import errors, cli", "'cli'"),
    "aliased": ("copypipe/plans.py", "import copypipe.api as errors", "'api'"),
    "relative": ("copypipe/plans.py", "from .attempts import x", "'attempts'"),
    "relative, one up": ("copypipe/relay/wire.py", "from ..plans import Plan", "'plans'"),
    "relative, in a face": ("copypipe/relay/__init__.py", "from .. import plans", "'plans'"),
    "star": ("copypipe/plans.py", "from copypipe.transfers import *", "'transfers'"),
    "inside a function": ("copypipe/plans.py", "def f():\n import copypipe.api", "plans.py:2:"),
    "for types only": (
        "copypipe/plans.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from copypipe.api import x",
        "plans.py:3:",
    ),
    "the package itself": ("copypipe/plans.py", "import copypipe", "'__init__'"),
    "a name of the package": ("copypipe/plans.py", "from copypipe import copy", "'__init__'"),
    "import_module": (
        "copypipe/plans.py",
        "import importlib\nimportlib.import_module('copypipe.api')",
        "'api'",
    ),
    "import_module renamed": (
        "copypipe/plans.py",
        "from importlib import import_module as load\nload('copypipe.api')",
        "'api'",
    ),
    "import_module relative": (
        "copypipe/plans.py",
        "from importlib import import_module\nimport_module('.api', 'copypipe')",
        "'api'",
    ),
    "import_module by keyword": (
        "copypipe/plans.py",
        "import importlib as lib\nlib.import_module(name='copypipe.api')",
        "'api'",
    ),
    "__import__": ("copypipe/plans.py", "__import__('copypipe.api')", "'api'"),
    "a door": ("copypipe/cli/app.py", "from copypipe import __main__", "'__main__'"),
    "not a literal": ("copypipe/plans.py", "__import__(name)", "not a literal"),
    "unknown file": ("copypipe/helpers.py", "", "unknown room 'helpers'"),
    "unknown package": ("copypipe/utils/text.py", "", "unknown room 'utils'"),
    "import from an unknown room": (
        "copypipe/plans.py",
        "from copypipe.helpers import x",
        "unknown room 'helpers'",
    ),
    "typer": ("copypipe/api.py", "import typer", "only 'cli'"),
    "tqdm": ("copypipe/cli/copy.py", "from tqdm.auto import tqdm", "only 'reporting'"),
    "tenacity": ("copypipe/backfills.py", "import tenacity.stop", "only 'attempts'"),
    "airflow": ("copypipe/api.py", "def f():\n from airflow import sdk", "only 'airflow'"),
    "jinja2": ("copypipe/reporting.py", "__import__('jinja2')", "only 'pages'"),
    "psycopg.sql": ("copypipe/ledger.py", "from psycopg.sql import SQL", "only 'statements'"),
    "psycopg's sql": ("copypipe/ledger.py", "from psycopg import sql", "only 'statements'"),
    "sql by attribute": (
        "copypipe/ledger.py",
        "import psycopg as pg\npg.sql.SQL('x')",
        "ledger.py:2: only 'statements'",
    ),
}


@pytest.mark.parametrize(("path", "source", "complaint"), PLANTED.values(), ids=PLANTED)
def test_planted_violation(path: str, source: str, complaint: str) -> None:
    (found,) = violations({path: source})
    assert complaint in found
