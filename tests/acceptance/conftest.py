"""What acceptance tests share: the command, as a process and as words."""

from plugins.command import (
    bare_run,
    kept_dest,
    kept_source,
    run,
    shared_dest,
    shared_source,
    words,
)
from plugins.proxy import closed_port, impostor, proxy

__all__ = [
    "bare_run",
    "closed_port",
    "impostor",
    "kept_dest",
    "kept_source",
    "proxy",
    "run",
    "shared_dest",
    "shared_source",
    "words",
]
