"""Connect, plan, transfer; try again what passes; settle a COMMIT whose answer was lost.

The one place that retries. A stream that was cut cannot be continued, but a slice can be done again
as a whole, from a new plan, over new connections.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from copypipe import addresses, ledger, plans, servers, slices, transfers
from copypipe.errors import (
    CommitUnknown,
    ConnectionLost,
    CopyFailed,
    CopypipeError,
    LoginRefused,
    PlanRefused,
    Side,
    SliceBusy,
    TransientError,
    UsageError,
    printable,
)
from copypipe.events import (
    Committing,
    Connected,
    Decided,
    Event,
    LedgerMade,
    Listener,
    Noticed,
    Planned,
    Retried,
    Settling,
    Warned,
)
from copypipe.ledger import Attempt
from copypipe.plans import Plan
from copypipe.readings import ABOUT_THE_TEXT
from copypipe.requests import Endpoint, Request, check, check_settings, left_open
from copypipe.servers import Session
from copypipe.snapshots import Snapshot
from copypipe.statements.sessions import FIXED
from copypipe.transfers import Covered, Holder, Transferred
from copypipe.watches import Watch
from copypipe.workers import LOOK_SECONDS, Stop

Approve = Callable[[Plan], bool]
"""Asked before the rows of a whole table are replaced; False ends the run."""

# The longest pause between two tries, whatever --retries is, unless --retry-delay is longer.
LONGEST_PAUSE_SECONDS = 300.0

# How long the dest is looked for after a COMMIT without an answer: longer than a server takes to
# recover from a crash (some seconds for the WAL since its last checkpoint), or a pooler to find the
# new primary. Then somebody has to look.
SETTLE_COMMIT_SECONDS = 60.0

# How long a run waits at least to tell the ledger that it begins, whatever --wait-lock says: others
# that tell the same are done within moments.
LEAST_NOTE_SECONDS = 5.0

# What is added to an interrupt that ends a run of which nobody can tell.
_UNKNOWN = "copypipe: nobody knows whether the slice was committed"

# How long to wait before the dest is looked for again, at first and at most.
_LOOK_AGAIN_SECONDS = (0.1, 5.0)


T = TypeVar("T")


Look = Callable[[], None]
"""Called a few times a second while something is waited for; ends that by raising."""


def no_look() -> None:
    """Let everything be waited for."""


class Ending:
    """Ends the copy of a slice that somebody else wants to be ended, but not from COMMIT on.

    Raises Stopped out of `look`, which the waits of the run call, and out of `hear`, which hears
    its events.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.is_committed = False
        """The dest holds the new slice."""
        self.is_committing = False
        """A COMMIT was sent, and nobody knows yet whether it happened."""
        self.is_undecided = False
        """The dest holds the old slice or the new one, and the slice is copied again."""

    def look(self) -> None:
        """Raise Stopped where the run is to end, and may."""
        if not self.is_committing and not self.is_committed:
            self._stop.check()

    def hear(self, event: Event, /) -> None:
        """Take note of COMMIT, and look."""
        if isinstance(event, Committing):
            self.look()
            self.is_committing = True
        elif isinstance(event, Decided):
            self.is_committing = self.is_undecided = False
            self.is_committed = event.committed
        elif isinstance(event, Retried) and event.undecided:
            self.is_committing, self.is_undecided = False, True
        self.look()


class Pair:
    """The connections to both sides, kept from one slice to the next."""

    def __init__(self, request: Request, listen: Listener, look: Look = no_look) -> None:
        self.run_id = secrets.token_hex(8)
        """What its sessions bear, as application_name copypipe/RUN_ID."""
        self.reached: set[Side] = set()
        """The sides that have let the role in."""
        self.look = look
        self._request = request
        self._listen = listen
        self._stack = ExitStack()
        self._sessions: tuple[Session, Session] | None = None

    @contextmanager
    def sessions(self) -> Iterator[tuple[Session, Session]]:
        """Connect, unless the last block has left both sides at rest."""
        if self._sessions is None or not all(session.at_rest for session in self._sessions):
            self.close()
            self._sessions = self._stack.enter_context(
                both(self._request, self._listen, self.run_id, self.reached)
            )
            for session in self._sessions:
                self._watch(session)
        try:
            yield self._sessions
        except BaseException as error:
            # What ends the block ends the sessions, as if they were its own.
            self._sessions = None
            if not self._stack.__exit__(type(error), error, error.__traceback__):
                raise

    def _watch(self, session: Session) -> None:
        idle, look = session.idle, self.look
        if look is no_look:
            return

        def looking(side: Side, moved: float, /) -> float:
            look()
            return min(idle(side, moved), time.monotonic() + LOOK_SECONDS)

        session.idle = looking

    def close(self) -> None:
        """Close both; what is open is rolled back."""
        self._sessions = None
        self._stack.close()


def copy(
    request: Request,
    listen: Listener,
    approve: Approve,
    look: Look = no_look,
) -> Transferred:
    """Copy one slice; raises a CopypipeError, and then the dest is as it was.

    CommitUnknown is the exception to that, it says so. `look` is also called where a COMMIT may be
    under way (see `Ending`).
    """
    begin(request, listen)
    pair = Pair(request, listen, look)
    with closing(pair):
        done = _Run(request, listen, approve, pair)()
    if done is None:
        raise AssertionError("nothing is skipped unasked")
    return done


def copy_part(
    request: Request,
    listen: Listener,
    pair: Pair,
    plan: Plan | None = None,
    snapshot: Snapshot | None = None,
    holder: Holder | None = None,
) -> Transferred | None:
    """Copy one slice of many over connections that are kept, as `copy` does.

    `plan` is that of the slice, if there is one by now: else, and for further tries, it is made.
    `snapshot` is the one in which the source is read; else each try takes one of its own. `holder`
    holds the table's key at the dest; else the locks of the slice are taken. With both, what the
    plan relies on stays as it is, and further tries go by the same one.
    Returns None where the request skips what the ledger covers, and it covers the slice.
    """
    return _Run(request, listen, lambda plan: False, pair, plan, snapshot, holder)()


def plan(request: Request, listen: Listener) -> Plan:
    """Return what `copy` would do, and what stands in its way (`refusals`); changes nothing.

    Raises PlanRefused where too little fits to make a plan.
    """
    begin(request, listen)
    with both(request, listen, secrets.token_hex(8), set()) as (source, dest):
        return planned(request, source, dest, plans.draft)


def persist(request: Request, listen: Listener, call: Callable[[], T], look: Look = no_look) -> T:
    """Return what a call returns that only reads; after what passes it is called again.

    Raises what it raised last.
    """
    retrying = _retrying(request, lambda state: _tell_retry(state, request, listen), look)
    return retrying(call)


def _rest(look: Look, seconds: float) -> None:
    """Sleep, and look meanwhile."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        look()
        time.sleep(min(left, LOOK_SECONDS))


def _retrying(request: Request, pause: Callable[[RetryCallState], None], look: Look) -> Retrying:
    delay = request.retry_delay
    return Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(request.retries + 1),
        wait=wait_exponential(delay, max=max(delay, LONGEST_PAUSE_SECONDS)) + wait_random(0, delay),
        before_sleep=pause,
        sleep=partial(_rest, look),
        reraise=True,
    )


def _tell_retry(
    state: RetryCallState, request: Request, listen: Listener, *, undecided: bool = False
) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0.0
    if isinstance(error, CopypipeError):
        of = request.retries + 1
        listen(Retried(state.attempt_number, of, error, undecided, seconds))


class _Run:
    """One call: its tries, and what they know of each other."""

    def __init__(
        self,
        request: Request,
        listen: Listener,
        approve: Approve,
        pair: Pair,
        planned: Plan | None = None,
        snapshot: Snapshot | None = None,
        holder: Holder | None = None,
    ) -> None:
        self._request = request
        self._listen = listen
        self._approve = approve
        self._pair = pair
        self._run_id = pair.run_id
        self._snapshot = snapshot
        self._holder = holder
        self._planned = planned
        """For the first try."""
        self._unknown: CommitUnknown | None = None
        """A COMMIT of which nobody can tell whether it happened: there is no ledger."""
        self._connected = self._told = False
        """Whether the listener knows of both sides, and of the plan."""
        self._untold: CopypipeError | None = None
        """How the try before ended, if the ledger could not be told."""

    def __call__(self) -> Transferred | None:
        """Try until it is done, fails for good, or has failed too often."""
        try:
            for attempt in _retrying(self._request, self._pause, self._pair.look):
                with attempt:
                    return self._try(attempt.retry_state.attempt_number)
        except CopypipeError as error:
            self._give_up(error)
        except KeyboardInterrupt as interrupt:
            if self._unknown is not None:
                interrupt.add_note(_UNKNOWN)
            raise
        raise AssertionError("tenacity raises the last failure")

    def _give_up(self, error: CopypipeError) -> NoReturn:
        untold = self._untold
        if untold is not None and not _is_away(untold):
            with (
                suppress(CopypipeError),
                servers.connected("dest", self._request.dest, self._run_id) as dest,
            ):
                self._tell_ledger(dest, untold)
        tried = ""
        if isinstance(error, TransientError) and self._request.retries:
            tried = f"It was tried {self._request.retries + 1} times. "
        if self._unknown is not None and error is not self._unknown:
            self._unknown.detail = f"{tried}The last try failed: {error.message}."
            raise self._unknown from None
        if tried:
            error.detail = tried + (error.detail or "")
        raise error

    def _pause(self, state: RetryCallState) -> None:
        _tell_retry(state, self._request, self._listen, undecided=self._unknown is not None)

    def _try(self, number: int) -> Transferred | None:
        request, listen = self._request, self._listen
        attempt = Attempt(self._run_id, str(uuid.uuid4()), number)
        with self._pair.sessions() as (source, dest):
            if not self._connected:
                self._connected = True
                listen(Connected(str(source.address), str(dest.address)))
            if number > 1:
                transfers.check_primary(dest)
            plan = self._planned or planned(request, source, dest)
            # To plan again would wait for locks, behind an ALTER TABLE that waits for the leader.
            self._planned = plan if self._holder is not None else None
            if not self._told:
                self._told = True
                _tell(plan, listen)
            self._keep_days(plan)
            self._ask_for_yes(plan)
            if (
                request.skip
                and plan.ledger.state == "ready"
                and transfers.is_done(plan, source, dest)
            ):
                return None
            plan, sliced_by = self._prepare(plan, dest, attempt)
            try:
                done = transfers.transfer(
                    plan, source, dest, listen, attempt, sliced_by, self._snapshot, self._holder
                )
                transfers.commit(dest, listen)
            except Covered:
                dest.rollback()
                ledger.skipped(dest, self._run_id)
                return None
            except CommitUnknown as error:
                unknown = error
                tells = plan.ledger.records and not request.again
                unknown.detail, unknown.hint = left_open(request.mode, tells=tells)
            except CopypipeError as error:
                if plan.ledger.records:
                    self._tell_ledger(dest, error)
                raise
            else:
                transfers.advance(plan, dest, listen)
                return done
        return self._settle(plan, done, unknown)

    def _tell_ledger(self, dest: Session, error: CopypipeError) -> None:
        """Tell the ledger how an attempt ended, now or over the next connection."""
        told = ledger.failed(dest, self._run_id, error)
        self._untold = None if told else error

    def _keep_days(self, plan: Plan) -> None:
        """Let a later try mean the same days, also behind midnight."""
        around = slices.range_of(plan.slice)
        if around is not None and slices.is_relative(self._request.wanted):
            start, stop = around.days or (around.start, around.stop)
            self._request = replace(self._request, wanted=slices.Between(start, stop))

    def _ask_for_yes(self, plan: Plan) -> None:
        if not plan.needs_yes:
            return
        if not self._approve(plan):
            raise _not_approved(plan)
        self._request = replace(self._request, yes=True)

    def _prepare(self, plan: Plan, dest: Session, attempt: Attempt) -> tuple[Plan, str | None]:
        """Make the ledger if need be, and tell it of the attempt.

        Returns the plan with what there is now, and by what the table is sliced.
        """
        plan = with_ledger(plan, dest, self._listen)
        if not plan.ledger.records or self._holder is not None:  # which has told what it is at
            return plan, plan.sliced_by
        if self._untold is not None:
            self._tell_ledger(dest, self._untold)
        wait = plans.milliseconds(max(self._request.wait_lock, LEAST_NOTE_SECONDS))
        return plan, ledger.begin(dest, attempt, plan.dest.table, plan.slice, wait)

    def _settle(self, plan: Plan, done: Transferred, unknown: CommitUnknown) -> Transferred:
        """Find out whether the COMMIT happened; raises `unknown` where nobody can tell."""
        if not plan.ledger.records:
            if unknown.interrupt is not None:
                unknown.interrupt.add_note(_UNKNOWN)
                raise unknown.interrupt
            if self._request.mode == "append":
                raise unknown
            if isinstance(plan.slice, slices.Whole) and not self._request.yes:
                # Rows that are there now may be ours, or of somebody who was never asked.
                raise unknown
            # To do it again makes the slice equal to the source's, whatever happened.
            self._unknown = unknown
            raise ConnectionLost(unknown.message, detail=unknown.detail, side="dest")
        try:
            committed = self._committed(plan, done.attempt, unknown)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(_UNKNOWN)
            raise
        self._listen(Decided(committed=committed))
        if unknown.interrupt is not None:
            held = "was" if committed else "was not"
            unknown.interrupt.add_note(f"copypipe: the slice {held} committed")
            raise unknown.interrupt
        if committed:
            return done
        raise _lost(unknown)

    def _committed(self, plan: Plan, attempt: Attempt, unknown: CommitUnknown) -> bool:
        """Ask the dest whether it committed; raises `unknown` where it cannot tell.

        Its transaction is waited for as for any that holds the slice, but at least as long as the
        dest is looked for.
        """
        patience = max(self._request.wait_lock, SETTLE_COMMIT_SECONDS)
        self._listen(Settling(patience))
        deadline = time.monotonic() + SETTLE_COMMIT_SECONDS
        pause, longest = _LOOK_AGAIN_SECONDS
        while True:
            try:
                committed = self._asked(plan, attempt, patience, _lost(unknown))
            except SliceBusy as error:
                unknown.detail = f"The dest was asked: {error.message}. {error.detail}"
                raise unknown from None
            except CopypipeError as error:
                passes = isinstance(error, TransientError) and time.monotonic() < deadline
                if not passes:
                    unknown.detail = (
                        f"The dest could not be asked what became of it: {error.message}."
                    )
                    raise unknown from None
            else:
                if committed is None:
                    unknown.detail = "The ledger that would tell was removed meanwhile."
                    _, unknown.hint = left_open(self._request.mode, tells=False)
                    raise unknown from None
                return committed
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _asked(
        self, plan: Plan, attempt: Attempt, patience: float, lost: CopypipeError
    ) -> bool | None:
        """Connect to the dest and ask; tell the ledger of a COMMIT that did not happen."""
        with (
            connected("dest", self._request.dest, self._run_id, self._pair.reached) as dest,
            closing(Watch(dest, dest, self._listen, self._request.stall_timeout)) as watch,
        ):
            dest.idle = watch
            committed = transfers.happened(plan, dest, attempt, patience)
            if committed is False:
                self._tell_ledger(dest, lost)
            elif committed:
                transfers.advance(plan, dest, self._listen)
            return committed


def with_ledger(plan: Plan, dest: Session, listen: Listener) -> Plan:
    """Make the ledger if it can be made; return the plan with what there is now."""
    if plan.ledger.state != "missing":
        return plan
    made, found = ledger.make(dest, plans.OTHER_LOCKS)
    if made:
        listen(LedgerMade(str(dest.address)))
    elif found.problem is not None:  # another role was quicker
        plans.check_ledger(plan.request, found)
        listen(Warned(f"the ledger of the dest cannot be used: {found.problem}"))
    return replace(plan, ledger=found)


def _lost(unknown: CommitUnknown) -> CopypipeError:
    """Return what a COMMIT ended with that did not happen."""
    return unknown.said or ConnectionLost(
        "dest: the connection was lost before it committed",
        detail="The dest was asked: nothing was changed.",
        side="dest",
    )


def _is_away(error: CopypipeError) -> bool:
    """Return whether the dest was lost or fell silent: it would be waited for, only to be told."""
    answered = error.sqlstate is not None and not isinstance(error, ConnectionLost)
    return error.side == "dest" and isinstance(error, TransientError) and not answered


def begin(request: Request, listen: Listener) -> None:
    """Check the words of a request, and warn of a password in them; raises UsageError."""
    check(request)
    for side, endpoint in _endpoints(request):
        check_settings(side, endpoint.settings, FIXED)
        if endpoint.origin.startswith("--") and addresses.has_password(endpoint, side):
            listen(
                Warned(
                    f"the password in {endpoint.origin} can be read in the process list; "
                    "use .pgpass, a service file or the environment"
                )
            )


def _tell(plan: Plan, listen: Listener) -> None:
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


@contextmanager
def both(
    request: Request, listen: Listener, run_id: str, reached: set[Side]
) -> Iterator[tuple[Session, Session]]:
    """Connect to both sides, each watched and heard.

    `reached` are the sides that have let this run in before, and gets those that do.
    """
    with (
        connected("source", request.source, run_id, reached) as source,
        connected("dest", request.dest, run_id, reached) as dest,
    ):
        for session in (source, dest):
            session.hear(lambda *said: listen(_noticed(*said)))
        with closing(Watch(source, dest, listen, request.stall_timeout)) as watch:
            source.idle = dest.idle = watch
            yield source, dest


@contextmanager
def connected(side: Side, endpoint: Endpoint, run_id: str, reached: set[Side]) -> Iterator[Session]:
    """Connect to a side. One that is among `reached` does not refuse the run for good."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(servers.connected(side, endpoint, run_id))
        except LoginRefused as error:
            if side not in reached:
                raise
            problem = servers.refused_meanwhile(side, error)
        else:
            reached.add(side)
            yield session
            return
    raise problem


def _endpoints(request: Request) -> tuple[tuple[Side, Endpoint], tuple[Side, Endpoint]]:
    return ("source", request.source), ("dest", request.dest)


def _noticed(side: Side, severity: str, text: str) -> Noticed:
    return Noticed(side, severity, printable(text))


def planned(
    request: Request,
    source: Session,
    dest: Session,
    make: Callable[[Request, Session, Session], Plan] = plans.make,
) -> Plan:
    """Make a plan; raises SliceBusy where the dest's table is locked, else what `make` raises."""
    try:
        return make(request, source, dest)
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
