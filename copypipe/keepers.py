"""Make and remove the ledger of a dest, as calls of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from copypipe import ledger, plans, servers
from copypipe.errors import PlanRefused, UsageError
from copypipe.requests import Endpoint
from copypipe.servers import Session

SCHEMA = "schema copypipe"


def make(dest: Endpoint, wait: float, *, dry_run: bool) -> str:
    """Make the ledger and say what was done.

    Raises PlanRefused where the role may not, or there is one that it may not use; SliceBusy where
    it is being removed for longer than `wait` seconds. Nothing is made then.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        found = _look(session)
        if found.state == "missing" and dry_run:
            return f"would make the ledger, {SCHEMA} of {session.address}"
        made = False
        if found.state == "missing":
            made, found = ledger.make(session, plans.milliseconds(wait), asked=True)
        if found.problem is not None:
            raise PlanRefused(
                "dest: the ledger cannot be used",
                detail=f"In {session.address}: {found.problem}.",
                hint="Have its owner grant the rights, or make it as another role.",
                side="dest",
            )
        return f"{'made' if made else 'there is'} the ledger, {SCHEMA} of {session.address}"


def remove(dest: Endpoint, wait: float, agrees: Callable[[str], bool], *, dry_run: bool) -> str:
    """Remove the ledger and say what was done; `agrees` is told what would be lost.

    Raises UsageError where it does not agree, SliceBusy where transfers use the ledger for longer
    than `wait` seconds, PlanRefused where the role may not. Nothing is removed then.
    """
    with servers.connected("dest", dest, secrets.token_hex(8)) as session:
        found = _look(session)
        if not found.is_there:
            return f"there is no ledger in {session.address}"
        if found.problem is not None:
            raise PlanRefused(
                "dest: the ledger cannot be removed",
                detail=f"In {session.address}: {found.problem}.",
                side="dest",
            )
        with session.reading(lock_timeout=plans.OTHER_LOCKS):
            rows, tables = ledger.counts(session)
        what = f"the ledger of {session.address} tells of {rows} copies of {tables} tables"
        if dry_run:
            return f"would remove it: {what}"
        if not agrees(what):
            raise UsageError("the ledger was not removed", detail="Nobody agreed to that.")
        removed = ledger.remove(session, wait)
        if removed is None:
            return f"there is no ledger in {session.address} any more"
        return f"removed the ledger, {SCHEMA} of {session.address}; it told of {removed} copies"


def _look(session: Session) -> ledger.Ledger:
    with session.reading(lock_timeout=plans.OTHER_LOCKS):
        return ledger.look(session, asked=True)
