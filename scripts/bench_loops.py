"""Ways to copy a table that are written in Python, as their documentation shows them.

python scripts/bench_loops.py WAY JOB, where JOB is JSON; `bench_ways.py` starts it. Each way
imports its driver alone, so that its start-up is its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

# How many chunks asyncpg's two connections may be apart; it reads up to 256 kB at once.
_QUEUED = 16
# Rows that are fetched and inserted at once.
_PAGE = 2000


def psycopg_loop(job: dict[str, Any]) -> None:
    """https://www.psycopg.org/psycopg3/docs/basic/copy.html, "Copying data across servers"."""
    import psycopg

    with psycopg.connect(**job["source"]) as source, psycopg.connect(**job["dest"]) as dest:
        source.execute(job["begin_reading"])
        dest.execute(job["clear"])
        with (
            source.cursor().copy(job["copy_out"]) as data_out,
            dest.cursor().copy(job["copy_in"]) as data_in,
        ):
            for data in data_out:
                data_in.write(data)


def asyncpg_queue(job: dict[str, Any]) -> None:
    """Run copy_from_query into a queue, out of which copy_to_table takes its data."""
    import asyncio

    import asyncpg

    def connect(side: str) -> Any:
        given = job[side]
        return asyncpg.connect(
            host=given["host"],
            port=int(given["port"]),
            user=given["user"],
            database=given["dbname"],
            ssl="require" if given["sslmode"] == "require" else False,
        )

    async def copy() -> None:
        source, dest = await connect("source"), await connect("dest")
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED)

        async def produce() -> None:
            async with source.transaction(isolation="repeatable_read", readonly=True):
                await source.copy_from_query(job["query"], output=queue.put, format="binary")
            await queue.put(None)

        async def chunks() -> Any:
            while (data := await queue.get()) is not None:
                yield data

        async def consume() -> None:
            async with dest.transaction():
                await dest.execute(job["clear"])
                await dest.copy_to_table(
                    job["name"],
                    schema_name="public",
                    source=chunks(),
                    columns=job["columns"],
                    format="binary",
                    freeze=True,
                )

        await asyncio.gather(produce(), consume())
        await source.close()
        await dest.close()

    asyncio.run(copy())


def values(job: dict[str, Any]) -> None:
    """Fetch pages from a cursor of the server, insert them with psycopg2's execute_values."""
    source, dest = _psycopg2(job)
    from psycopg2.extras import execute_values

    reading, writing = source.cursor("pages"), dest.cursor()
    reading.itersize = _PAGE
    reading.execute(job["query"])
    writing.execute(job["clear"])
    while rows := reading.fetchmany(_PAGE):
        execute_values(writing, f"{job['insert']} VALUES %s", rows, page_size=_PAGE)
    dest.commit()


def inserts(job: dict[str, Any]) -> None:
    """Fetch everything, insert it row by row."""
    source, dest = _psycopg2(job)
    reading, writing = source.cursor(), dest.cursor()
    reading.execute(job["query"])
    writing.execute(job["clear"])
    places = ", ".join(["%s"] * len(job["columns"]))
    for row in reading:
        writing.execute(f"{job['insert']} VALUES ({places})", row)
    dest.commit()


def _psycopg2(job: dict[str, Any]) -> tuple[Any, Any]:
    import psycopg2
    from psycopg2.extensions import register_adapter
    from psycopg2.extras import Json

    register_adapter(dict, Json)  # jsonb comes as a dict
    return psycopg2.connect(**job["source"]), psycopg2.connect(**job["dest"])


def fault(job: dict[str, Any]) -> None:
    """Run copypipe into an error of the dest; print when how many bytes had been handed on."""
    import time

    import copypipe
    from copypipe.events import Event, Progress

    told: list[tuple[float, int]] = []

    def listen(event: Event, /) -> None:
        if isinstance(event, Progress):
            told.append((time.time(), event.bytes))

    try:
        copypipe.copy(
            f"public.{job['name']}",
            source=job["source_conninfo"],
            dest=job["dest_conninfo"],
            all=True,
            yes=True,
            clear="truncate",
            transport=job["transport"],
            listener=listen,
        )
    except copypipe.CopypipeError as error:
        print(json.dumps({"side": error.side, "sqlstate": error.sqlstate, "told": told}))
    else:
        sys.exit("the copy did not fail")


WAYS = {
    "psycopg": psycopg_loop,
    "asyncpg": asyncpg_queue,
    "values": values,
    "inserts": inserts,
    "fault": fault,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](json.loads(sys.argv[2]))
