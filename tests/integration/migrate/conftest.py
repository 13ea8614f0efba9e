"""Databases for tests that need several dests, one after the other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from plugins.databases import Database, fresh
from plugins.servers import Servers


@pytest.fixture
def fresh_dest(servers: Servers, templates: dict[str, str]) -> Iterator[Iterator[Database]]:
    """Yield what makes as many databases at the dest's server as are asked for."""

    @contextmanager
    def one() -> Iterator[Database]:
        yield from fresh(servers.dest, templates["dest"])

    with ExitStack() as stack:

        def many() -> Iterator[Database]:
            while True:
                yield stack.enter_context(one())

        yield many()
