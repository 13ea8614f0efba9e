"""Whole schemas move: what pg_dump tells of both sides is the same, and so are all rows."""

import pytest

from copypipe.inventory import Asked
from copypipe.migrations import Migrated, Migration, Options
from copypipe.requests import Endpoint
from plugins.databases import Database
from plugins.schemas import contents, definitions, generated


def move(source: str | Database, dest: str | Database, *tables: str, **options: object) -> Migrated:
    ends = [each if isinstance(each, str) else each.dsn for each in (source, dest)]
    asked = options.pop("asked", None) or Asked(patterns=tables, everything=not tables)
    if options.get("resume"):
        asked = Asked()
    return Migration(
        Options(
            source=Endpoint(ends[0], "test"),
            dest=Endpoint(ends[1], "test"),
            asked=asked,
            **{"jobs": 2, **options},
        )
    )()


@pytest.mark.parametrize("seed", [1])
def test_two_hundred_tables_move_whole(source: Database, dest: Database, seed: int) -> None:
    for statement in generated(200, seed):
        source.execute(statement)

    found = move(source, dest, verify="checksum")

    assert [(what, str(error)) for what, error in found.failed] == []
    assert found.is_ended
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
