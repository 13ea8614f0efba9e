"""copypipe moves table data from one PostgreSQL server to another with COPY."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copypipe.api import copy
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

__version__ = "0.1.0"

__all__ = [
    "CommitUnknown",
    "ConnectionLost",
    "CopyFailed",
    "CopypipeError",
    "Differs",
    "LoginRefused",
    "NothingToCopy",
    "PlanRefused",
    "SliceBusy",
    "Transferred",
    "TransientError",
    "UsageError",
    "__version__",
    "copy",
]

_ROOMS = {"copy": "copypipe.api", "Transferred": "copypipe.transfers"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `copypipe --help` does not pay for psycopg."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ROOMS.get(name, "copypipe.errors")), name)


def __dir__() -> list[str]:
    return __all__
