"""The pair of databases that all tests of the ledger start from."""

from collections.abc import Iterator

import pytest

from plugins.databases import Database
from plugins.ledgers import Sides, both


@pytest.fixture
def source(kept_source: Database) -> Database:
    """Return the module's source: to empty a database is quicker than to make one."""
    return kept_source


@pytest.fixture
def dest(kept_dest: Database) -> Database:
    """Return the module's dest."""
    return kept_dest


@pytest.fixture
def sides(source: Database, dest: Database) -> Iterator[Sides]:
    """Yield both, with a table of two days."""
    yield from both(source, dest)
