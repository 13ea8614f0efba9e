"""However large a row or a table is, the whole process stays below 64 MiB."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.command import Command, Used
from plugins.ways import Way

MEGABYTE = 1024 * 1024
MOST = 64 * MEGABYTE

SLOW = pytest.mark.slow


def row_of(size: int) -> str:
    return f"SELECT 1 AS id, repeat('x', {size}) AS body"


def rows_of(size: int) -> str:
    """Return a query of rows of 10 kB, so many bytes in all."""
    return f"SELECT g AS id, repeat('x', 10000) AS body FROM generate_series(1, {size // 10_000}) g"


@pytest.mark.parametrize(
    ("query", "size"),
    [
        pytest.param(row_of(60_000_000), 60_000_000, id="a row of 60 MB"),
        pytest.param(rows_of(60_000_000), 60_000_000, id="60 MB in rows"),
        pytest.param(row_of(300_000_000), 300_000_000, id="a row of 300 MB", marks=SLOW),
        pytest.param(row_of(900_000_000), 900_000_000, id="a row of 900 MB", marks=SLOW),
        pytest.param(rows_of(1_000_000_000), 1_000_000_000, id="1 GB in rows", marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", ["tcp", "unix", "tls"])
def test_what_is_copied_needs_no_memory(
    make_way: Callable[..., Way],
    bare_run: Command,
    tmp_path: Path,
    name: str,
    query: str,
    size: int,
) -> None:
    way = make_way(name)
    used = Used(tmp_path / "used")

    done = bare_run.start(*way.words(query), env=way.environment, prefix=used.prefix).wait(120)

    assert done.code == 0, done.err
    assert used.memory <= MOST
    assert way.dest.scalar(f"SELECT sum(octet_length(body)) FROM {way.table}") == size
