"""A small table as words, `contents` of a whole database, and what a refusal looks like.

A row of public.t is written "ID NOTE TIME"; the time is of 2018, in UTC: 04-29 or 04-29T10:30, or
null or infinity.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from plugins.command import Run, no_backends
from plugins.databases import Database

TABLE = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"


def table_of(database: Database, rows: str) -> None:
    """Make public.t with these rows, separated by commas."""
    database.execute(TABLE)
    for row in written(rows):
        number, note, time = row.split()
        special = {"null": None, "infinity": "infinity", "-infinity": "-infinity"}
        database.execute(
            "INSERT INTO public.t VALUES (%s, %s, %s)",
            [int(number), note, special.get(time, f"2018-{time}Z")],
        )


def rows_of(database: Database) -> list[str]:
    """Return the rows of public.t in the order of their ids."""
    text = database.text(
        "SELECT id, note, replace(to_char(created_at, 'MM-DD\"T\"HH24:MI'), 'T00:00', ''),"
        " created_at FROM public.t ORDER BY id"
    )
    rows = []
    for line in text.decode().splitlines():
        number, note, short, full = line.split("\t")
        time = {"\\N": "null", "infinity": full, "-infinity": full}.get(full, short)
        rows.append(f"{number} {note} {time}")
    return rows


def written(rows: str) -> list[str]:
    """Return the rows that `rows_of` would."""
    return [row.strip() for row in rows.split(",") if row.strip()]


def contents(database: Database) -> dict[str, bytes]:
    """Return every row of every table of a user, and where every sequence is."""
    tables = database.fetch(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'S')"
        " AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'copypipe')"
    )
    return {name: _sorted(database.text(f"SELECT * FROM ONLY {name}")) for (name,) in tables}


def _sorted(rows: bytes) -> bytes:
    return b"".join(sorted(rows.splitlines(keepends=True)))


@contextmanager
def unchanged(*databases: Database) -> Iterator[None]:
    """Fail unless these databases hold the same afterwards, and nothing of ours is left there."""
    before = [contents(database) for database in databases]
    yield
    no_backends(*databases)
    assert [contents(database) for database in databases] == before


def assert_refused(run: Run, code: int, message: str) -> None:
    """Check the exit code and the three parts, each on a line of its own at the end of stderr."""
    assert (run.code, run.out) == (code, ""), run.err
    lines = run.err.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("ERROR:  ")), None)
    assert start is not None, run.err
    assert re.search(message, "\n".join(lines[start:])), run.err
    labels = [line.split(":  ")[0] for line in lines[start:]]
    assert labels in (
        ["ERROR"],
        ["ERROR", "DETAIL"],
        ["ERROR", "HINT"],
        ["ERROR", "DETAIL", "HINT"],
    ), run.err
    assert "Traceback" not in run.err
    # The primary message is one sentence without a period, as in PostgreSQL's style guide.
    assert not lines[start].endswith("."), run.err
