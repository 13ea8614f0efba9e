"""The pair of databases that all tests of the comparison start from."""

from collections.abc import Iterator

import pytest

from plugins.databases import Database
from plugins.modes import Pair, pair_of


@pytest.fixture
def pair(kept_source: Database, kept_dest: Database) -> Iterator[Pair]:
    """Yield the module's pair, emptied."""
    yield from pair_of(kept_source, kept_dest)
