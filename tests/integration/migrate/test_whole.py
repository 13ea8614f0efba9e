"""Whole schemas move: what pg_dump tells of both sides is the same, and so are all rows."""

import pytest

from plugins.databases import Database
from plugins.moving import MB, ended, move
from plugins.schemas import contents, definitions, generated

PGBENCH = """
CREATE TABLE pgbench_branches (bid int NOT NULL, bbalance int, filler char(88))
    WITH (fillfactor=100);
CREATE TABLE pgbench_tellers (tid int NOT NULL, bid int, tbalance int, filler char(84))
    WITH (fillfactor=100);
CREATE TABLE pgbench_accounts (aid int NOT NULL, bid int, abalance int, filler char(84))
    WITH (fillfactor=100);
CREATE TABLE pgbench_history (
    tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
INSERT INTO pgbench_branches SELECT i, 0 FROM generate_series(1, {scale}) AS i;
INSERT INTO pgbench_tellers
    SELECT i, (i - 1) / 10 + 1, 0 FROM generate_series(1, 10 * {scale}) AS i;
INSERT INTO pgbench_accounts
    SELECT i, (i - 1) / 100000 + 1, 0, '' FROM generate_series(1, 100000 * {scale}) AS i;
ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid);
ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid);
ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid);
ALTER TABLE pgbench_tellers ADD CONSTRAINT pgbench_tellers_bid_fkey
    FOREIGN KEY (bid) REFERENCES pgbench_branches;
ALTER TABLE pgbench_accounts ADD CONSTRAINT pgbench_accounts_bid_fkey
    FOREIGN KEY (bid) REFERENCES pgbench_branches;
ALTER TABLE pgbench_history ADD CONSTRAINT pgbench_history_bid_fkey
    FOREIGN KEY (bid) REFERENCES pgbench_branches;
ALTER TABLE pgbench_history ADD CONSTRAINT pgbench_history_tid_fkey
    FOREIGN KEY (tid) REFERENCES pgbench_tellers;
ALTER TABLE pgbench_history ADD CONSTRAINT pgbench_history_aid_fkey
    FOREIGN KEY (aid) REFERENCES pgbench_accounts
"""


@pytest.mark.parametrize("tables", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_generated_tables_move_whole(source: Database, dest: Database, tables: int) -> None:
    for statement in generated(tables, seed=tables):
        source.execute(statement)

    assert ended(move(source, dest, verify="checksum"))

    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)


@pytest.mark.parametrize("scale", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_tables_of_pgbench_move_whole(source: Database, dest: Database, scale: int) -> None:
    """As `pgbench -i --foreign-keys` makes them; the largest in parts."""
    source.execute(PGBENCH.replace("{scale}", str(scale)))

    found = move(source, dest, part_bytes=2 * MB, verify="checksum")

    assert ended(found)
    assert max(each.parts for each in found.tables) > 3
    assert contents(dest) == contents(source)
    assert definitions(dest) == definitions(source)
