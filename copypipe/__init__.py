"""copypipe moves table data from one PostgreSQL server to another with COPY."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copypipe.api import copy, verify
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
        TransientError,
        UsageError,
    )
    from copypipe.transfers import Transferred
    from copypipe.verdicts import Failed, Verdict

__version__ = "0.1.0"

__all__ = [
    "CommitUnknown",
    "ConnectionLost",
    "CopyFailed",
    "CopypipeError",
    "Differs",
    "Failed",
    "LoginRefused",
    "NothingToCopy",
    "PlanRefused",
    "SliceBusy",
    "Transferred",
    "TransientError",
    "UsageError",
    "Verdict",
    "__version__",
    "copy",
    "verify",
]

_ROOMS = {
    "copy": "copypipe.api",
    "verify": "copypipe.api",
    "Transferred": "copypipe.transfers",
    "Failed": "copypipe.verdicts",
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
