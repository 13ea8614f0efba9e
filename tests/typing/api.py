"""The public face in types: checked by mypy, never run. What changes here changes for users."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, assert_type

import psycopg

import copypipe
from copypipe import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    LoginRefused,
    NothingToCopy,
    PlanRefused,
    SliceBusy,
    TooEarly,
    Transferred,
    TransientError,
    UsageError,
)


def connect() -> psycopg.Connection[Any]:
    return psycopg.connect("service=shop")


def a_day() -> None:
    done = copypipe.copy("public.users", day="2018-04-29", source="service=a", dest="service=b")
    assert_type(done, Transferred)
    assert_type(done.table, str)
    assert_type(done.into, str)
    assert_type(done.mode, str)
    assert_type(done.rows, int)
    assert_type(done.dropped, int)
    assert_type(done.bytes, int)
    assert_type(done.inserted, int | None)
    assert_type(done.updated, int | None)
    assert_type(done.deleted, int | None)
    assert_type(done.seconds, float)
    assert_type(done.transport, str)
    assert_type(done.scan, str)
    assert_type(done.spent.source, float)
    assert_type(done.spent.dest, float)
    assert_type(done.spent.limit, float)
    assert_type(done.spent.relaying, float)
    assert_type(done.spent.all, float)
    assert_type(done.sealed, bool)
    assert_type(done.open_because, str | None)
    assert_type(done.recorded, bool)
    assert_type(done.attempt.run_id, str)
    assert_type(done.attempt.attempt_id, str)
    assert_type(done.attempt.number, int)
    assert_type(str(done.slice), str)


def every_option() -> None:
    copypipe.copy(
        "public.users",
        source=connect,
        dest=lambda: psycopg.connect("service=dwh"),
        into="dwh.users",
        day=date(2018, 4, 29),
        month=None,
        start=None,
        stop=None,
        all=False,
        where="id > 7",
        query=None,
        columns={"email": "md5(email)"},
        exclude=["secret"],
        cast=["price"],
        allow_lossy=("rate",),
        by="created_at",
        timezone="Europe/Vienna",
        mode="replace",
        clear="truncate",
        key=["id"],
        merge_deletes=False,
        again=False,
        accept=["references", "cascade", "triggers"],
        min_ratio=0.5,
        allow_empty=True,
        fail_on_empty=True,
        rate_limit=50_000_000,
        transport="libpq",
        stall_timeout=3600,
        wait_lock=0,
        retries=0,
        retry_delay=0.5,
        settle=60,
        ledger=False,
        allow_reverse=True,
        source_set={"work_mem": "64MB"},
        dest_set={"statement_timeout": "0"},
        yes=True,
        notices=True,
        listener=print,
    )
    copypipe.copy("t", source="", dest="", month="2018-04")
    copypipe.copy("t", source="", dest="", start="-3d", stop="today")
    copypipe.copy("t", source="", dest="", start=date(2018, 4, 1), stop=datetime.now(UTC))
    copypipe.copy("t", source="", dest="", all=True, yes=True)
    copypipe.copy("t", source="", dest="", day="today", mode="merge", key=("a", "b"))
    copypipe.copy("t", source="", dest="", day="today", mode="append", again=True)


def what_is_refused() -> None:
    copypipe.copy("t")  # type: ignore[call-arg]
    copypipe.copy("t", "a", "b")  # type: ignore[call-arg]
    copypipe.copy("t", source="", dest="", mode="upsert")  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", clear="drop")  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", accept=["rules"])  # type: ignore[list-item]
    copypipe.copy("t", source="", dest="", dest_set={"work_mem": 64})  # type: ignore[dict-item]
    copypipe.copy("t", source="", dest="", min_ratio="0.5")  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", columns=["a=b"])  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", rate_limit="50MB")  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", day=20180429)  # type: ignore[arg-type]
    copypipe.copy("t", source="", dest="", wait_lock="10min")  # type: ignore[arg-type]
    copypipe.copy("t", source=psycopg.connect, dest="")
    copypipe.copy("t", source=int, dest="")  # type: ignore[arg-type]


def what_is_frozen(done: Transferred) -> None:
    done.rows = 1  # type: ignore[misc]


def what_is_raised() -> None:
    try:
        a_day()
    except (SliceBusy, ConnectionLost) as error:
        assert_type(error.retryable, bool)
        assert_type(error.exit_code, int)
    except CopypipeError as error:
        assert_type(error.message, str)
        assert_type(error.detail, str | None)
        assert_type(error.hint, str | None)
        assert_type(error.sqlstate, str | None)
        if error.side is not None:
            # Of the two sides nothing else remains.
            assert_type(error.side == "source", bool)


def the_tree() -> None:
    roots: list[type[CopypipeError]] = [
        CommitUnknown,
        CopyFailed,
        NothingToCopy,
        PlanRefused,
        SliceBusy,
        TooEarly,
        TransientError,
        UsageError,
    ]
    transient: type[TransientError] = ConnectionLost
    usage: type[UsageError] = LoginRefused
    assert_type((roots[0], transient, usage)[1], type[TransientError])


def the_callable() -> Callable[..., Transferred]:
    assert_type(copypipe.__version__, str)
    return copypipe.copy
