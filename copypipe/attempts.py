"""Connect, plan, transfer. The one place that will retry; today every run is one attempt."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from copypipe import addresses, plans, servers, transfers
from copypipe.errors import (
    CopyFailed,
    CopypipeError,
    PlanRefused,
    Side,
    SliceBusy,
    TransientError,
    UsageError,
    printable,
)
from copypipe.events import Connected, Listener, Noticed, Planned, Warned
from copypipe.plans import Plan
from copypipe.readings import ABOUT_THE_TEXT
from copypipe.requests import Endpoint, Request, check
from copypipe.servers import Session
from copypipe.transfers import Transferred
from copypipe.watches import Watch

Approve = Callable[[Plan], bool]
"""Asked before the rows of a whole table are replaced; False ends the run."""


def copy(request: Request, listen: Listener, approve: Approve) -> Transferred:
    """Copy one slice; raises a CopypipeError, and then the dest is as it was.

    CommitUnknown is the exception to that, it says so.
    """
    with _both(request, listen) as (source, dest):
        plan = _planned(request, source, dest)
        for warning in plan.warnings:
            listen(Warned(warning))
        listen(
            Planned(
                table=plan.dest.table.full_name,
                slice=plan.slice,
                estimated_rows=plan.estimated_rows,
                estimated_bytes=plan.estimated_bytes,
            )
        )
        if plan.needs_yes and not approve(plan):
            raise _not_approved(plan)
        return transfers.transfer(plan, source, dest, listen)


def plan(request: Request, listen: Listener) -> Plan:
    """Return what `copy` would do; changes nothing."""
    with _both(request, listen) as (source, dest):
        return _planned(request, source, dest)


@contextmanager
def _both(request: Request, listen: Listener) -> Iterator[tuple[Session, Session]]:
    check(request)
    run_id = secrets.token_hex(4)
    for side, endpoint in _endpoints(request):
        if endpoint.origin.startswith("--") and addresses.has_password(endpoint, side):
            listen(
                Warned(
                    f"the password in {endpoint.origin} can be read in the process list; "
                    "use .pgpass, a service file or the environment"
                )
            )
    with (
        servers.connected("source", request.source, run_id) as source,
        servers.connected("dest", request.dest, run_id) as dest,
    ):
        for session in (source, dest):
            session.hear(lambda *said: listen(_noticed(*said)))
        listen(Connected(str(source.address), str(dest.address)))
        with closing(Watch(source, dest, listen, request.stall_timeout)) as watch:
            source.idle = dest.idle = watch
            yield source, dest


def _endpoints(request: Request) -> tuple[tuple[Side, Endpoint], tuple[Side, Endpoint]]:
    return ("source", request.source), ("dest", request.dest)


def _noticed(side: Side, severity: str, text: str) -> Noticed:
    return Noticed(side, severity, printable(text))


def _planned(request: Request, source: Session, dest: Session) -> Plan:
    try:
        return plans.make(request, source, dest)
    except (CopyFailed, TransientError) as error:
        if error.sqlstate == "55P03" and error.side == "dest":  # lock_not_available
            problem: type[CopypipeError] = SliceBusy
        elif error.sqlstate and error.sqlstate.startswith(ABOUT_THE_TEXT):
            # While a plan is made nothing but catalogs and EXPLAIN is asked.
            problem = PlanRefused
        else:
            raise
        raise problem(
            error.message,
            detail=error.detail,
            hint=error.hint,
            side=error.side,
            sqlstate=error.sqlstate,
        ) from None


def _not_approved(plan: Plan) -> CopypipeError:
    return UsageError(
        f"all rows of {plan.dest.table.full_name} would be replaced",
        detail=describe_counts(plan),
        hint="Give --yes (in Python yes=True) if that is meant.",
    )


def describe_counts(plan: Plan) -> str:
    """Return how many rows each side has, for whoever has to say yes."""

    return (
        f"The source {plan.source.table.full_name} has {plan.source.rows}, "
        f"the dest {plan.dest.table.full_name} has {plan.dest.rows}."
    )
