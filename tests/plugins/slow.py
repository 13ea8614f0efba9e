"""What `make test` leaves to other targets: `slow` sweeps, and most of what is `one_of`."""

import os
import zlib
from collections import defaultdict

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the whole sweeps too (marker: slow)")
    parser.addoption("--variants", action="store_true", help="run all variants (marker: one_of)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: a whole sweep; runs with --slow only")
    config.addinivalue_line(
        "markers", "one_of(n): of its variants about one of n runs, all of them with --variants"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or os.environ.get("COPYPIPE_TEST_SLOW") == "1":
        return
    slow = {item for item in items if item.get_closest_marker("slow")}
    variants: defaultdict[str, list[tuple[int, pytest.Item]]] = defaultdict(list)
    for item in () if config.getoption("--variants") else items:
        if mark := item.get_closest_marker("one_of"):
            of, _, name = item.nodeid.partition("[")
            # The same ones in every run, on any machine.
            variants[of].append((zlib.crc32(name.encode()) % mark.args[0], item))
    for found in variants.values():
        least = min(rest for rest, _ in found)
        slow |= {item for rest, item in found if rest != least}
    if slow:
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
