"""copypipe moves table data from one PostgreSQL server to another with COPY."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copypipe.api import Backfilled, backfill, copy, migrate, verify
    from copypipe.comparisons import Failed
    from copypipe.errors import (
        CommitUnknown,
        ConnectionLost,
        CopyFailed,
        CopypipeError,
        Differs,
        LoginRefused,
        NothingToCopy,
        PlanRefused,
        SliceBusy,
        TooEarly,
        TransientError,
        UsageError,
    )
    from copypipe.migrations import Migrated, Moved
    from copypipe.transfers import Transferred
    from copypipe.verdicts import Verdict

__version__ = "0.1.0"

__all__ = [
    "Backfilled",
    "CommitUnknown",
    "ConnectionLost",
    "CopyFailed",
    "CopypipeError",
    "Differs",
    "Failed",
    "LoginRefused",
    "Migrated",
    "Moved",
    "NothingToCopy",
    "PlanRefused",
    "SliceBusy",
    "TooEarly",
    "Transferred",
    "TransientError",
    "UsageError",
    "Verdict",
    "__version__",
    "backfill",
    "copy",
    "migrate",
    "verify",
]

_ROOMS = {
    "Backfilled": "copypipe.api",
    "backfill": "copypipe.api",
    "copy": "copypipe.api",
    "migrate": "copypipe.api",
    "Migrated": "copypipe.migrations",
    "Moved": "copypipe.migrations",
    "verify": "copypipe.api",
    "Transferred": "copypipe.transfers",
    "Failed": "copypipe.comparisons",
    "Verdict": "copypipe.verdicts",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `copypipe --help` does not pay for psycopg."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ROOMS.get(name, "copypipe.errors")), name)


def __dir__() -> list[str]:
    return __all__
