"""`move`: a migration between two databases, called as a library."""

from typing import Any

from copypipe.events import Event, Listener, Told, Warned, ignore
from copypipe.inventory import Asked
from copypipe.migrations import Migrated, Migration, Options
from copypipe.requests import Endpoint
from plugins.databases import Database, Role

MB = 1 << 20


def options(source: Database | Role, dest: Database | Role, *tables: str, **more: Any) -> Options:
    """Return what is asked for: all tables, unless some are named or others are `asked` for."""
    asked = more.pop("asked", None) or Asked(patterns=tables, everything=not tables)
    if more.get("resume"):
        asked = Asked()
    return Options(
        source=Endpoint(source.dsn, "test"),
        dest=Endpoint(dest.dsn, "test"),
        asked=asked,
        **{"jobs": 2, "retries": 0, **more},
    )


def move(
    source: Database | Role,
    dest: Database | Role,
    *tables: str,
    listen: Listener = ignore,
    **more: Any,
) -> Migrated:
    """Move tables; returns what became of them."""
    return Migration(options(source, dest, *tables, **more), listen)()


class Heard(list[str]):
    """What a person is told."""

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Told | Warned):
            self.append(event.text)


def ended(found: Migrated) -> bool:
    """Return whether all is done, and say what failed."""
    failed = [(what, str(error)) for what, error in found.failed]
    assert not failed, failed
    return found.is_ended
