"""The day of users that all tests of tries copy."""

import pytest

from plugins.command import add_users, users
from plugins.databases import Database
from plugins.tries import DAY, ROWS, Sides


@pytest.fixture
def sides(kept_source: Database, kept_dest: Database) -> Sides:
    users(kept_source, 2, rows=ROWS)
    users(kept_dest, 1, rows=5)
    add_users(kept_dest, 1, rows=7, first=DAY, offset=-9_000_000)
    return Sides(kept_source, kept_dest, kept_dest.digest("public.users", "id"))
