"""An Airflow of its own for these tests: a home, a database, the example DAGs and a few more.

They run in an environment with Airflow (`make test-airflow`), and are passed over in any other.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.databases import Database

if importlib.util.find_spec("airflow") is None:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples" / "airflow"

# Airflow reads them when it is first imported, which is when the tests are collected.
HOME = tempfile.TemporaryDirectory(prefix="copypipe-airflow-")
DAGS = Path(HOME.name) / "dags"
os.environ.update(
    {
        "AIRFLOW_HOME": HOME.name,
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
)


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[Path]:
    with HOME:
        yield Path(HOME.name)


@pytest.fixture(scope="session")
def airflow_db(home: Path) -> None:
    """Make Airflow's own database, and the folder of DAGs that it reads."""
    from airflow.utils.db import initdb

    DAGS.mkdir()
    for path in [*EXAMPLES.glob("*.py"), *(HERE / "dags").glob("*.py")]:
        shutil.copy(path, DAGS)
    initdb()


@pytest.fixture
def dag_of(airflow_db: None) -> Callable[[str], Any]:
    """Return what imports a file of DAGs, and returns one of them by its name in there."""

    def imported(file: str, name: str = "dag") -> Any:
        if file not in sys.modules:
            spec = importlib.util.spec_from_file_location(file, DAGS / f"{file}.py")
            assert spec
            assert spec.loader
            sys.modules[file] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[file])
        return getattr(sys.modules[file], name)

    return imported


def connection(database: Database, **extra: Any) -> str:
    """Return the connection as AIRFLOW_CONN_* has it."""
    conninfo = database.server.conninfo
    return json.dumps(
        {
            "conn_type": "postgres",
            "host": conninfo["host"],
            "port": int(conninfo["port"]),
            "login": conninfo["user"],
            "password": conninfo.get("password"),
            "schema": database.name,
            "extra": extra,
        }
    )


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what gives Airflow a connection to a database, with extras."""

    def name(conn_id: str, database: Database, **extra: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", connection(database, **extra))

    return name


@pytest.fixture
def connections(source: Database, dest: Database, named: Callable[..., None]) -> None:
    """Name both databases as the examples do."""
    named("shop", source)
    named("dwh", dest)
