"""However large a row or a table is, the whole process stays below 64 MiB."""

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
@pytest.mark.one_of(2)
def test_what_is_copied_needs_no_memory(
    ways: list[Way], bare_run: Command, tmp_path: Path, query: str, size: int
) -> None:
    running = {}
    for way in ways:
        if way.name != "libpq":  # which holds a row as a whole
            used = Used(tmp_path / way.name)
            process = bare_run.start(*way.words(query), env=way.environment, prefix=used.prefix)
            running[way.name] = used, process

    for way in ways:
        if way.name in running:
            used, process = running[way.name]
            done = process.wait(120)
            assert done.code == 0, (way.name, done.err)
            assert used.memory <= MOST, way.name
            copied = f"SELECT sum(octet_length(body)) FROM {way.table}"
            assert way.dest.scalar(copied) == size, way.name
