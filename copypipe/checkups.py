"""Look at both servers, and at a table, before anything is copied; nothing is changed.

Whatever one side does not tell, the other one is looked at all the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import pq

from copypipe import (
    __version__,
    addresses,
    catalog,
    hazards,
    ledger,
    plans,
    servers,
    symptoms,
)
from copypipe.catalog import Server
from copypipe.errors import (
    CopypipeError,
    LoginRefused,
    PlanRefused,
    Side,
    TransientError,
    UsageError,
)
from copypipe.ledger import Ledger
from copypipe.relay import scans
from copypipe.requests import Endpoint, Request, check, check_settings
from copypipe.servers import Session
from copypipe.slices import Between
from copypipe.statements import checkups as statements
from copypipe.statements import sessions
from copypipe.statements.sessions import FIXED
from copypipe.symptoms import Examined, Facts, Finding, Link, Replica, Seen, Setting, Standby, Where
from copypipe.tables import Table, folded

# How long to wait for somebody's lock on a table before that is told.
PATIENCE = "5s"


@dataclass(frozen=True, slots=True)
class Checkup:
    """What was found."""

    findings: tuple[Finding, ...]
    addresses: Mapping[Side, str]
    """Where each side that answered is."""
    exit_code: int
    """What a copy would end with as things are, 0 if nothing that was looked at stops it."""


def examine(request: Request, *, with_table: bool) -> Checkup:
    """Look at both sides, and `with_table` at how the request's slice would be copied.

    Raises UsageError for what is wrong with the words, a connection string included; whatever a
    server says becomes a finding.
    """
    check(request)
    found = _Found()
    found.add(_client())
    run_id = secrets.token_hex(8)
    sides: tuple[tuple[Side, Endpoint], ...] = (("source", request.source), ("dest", request.dest))
    for side, endpoint in sides:
        check_settings(side, endpoint.settings, FIXED)
    with ExitStack() as stack:
        reached: dict[Side, _Reached] = {}
        for side, endpoint in sides:
            found.add(_of_endpoint(side, endpoint))
            with found.telling(side, "reachable"):
                session = stack.enter_context(servers.connected(side, endpoint, run_id))
                found.addresses[side] = str(session.address)
                found.add([Finding(side, "reachable", "ok", f"reached {session.address}")])
                with found.telling(side, "server"):
                    reached[side] = _Reached(session, _examined(session))
        for each in reached.values():
            found.add(symptoms.of_side(each.examined))
        if "dest" in reached:
            with found.telling("dest", "ledger"):
                found.add([symptoms.of_ledger(_ledger(reached["dest"].session))])
        if len(reached) == len(sides):
            found.add(symptoms.of_both(reached["source"].examined, reached["dest"].examined))
        if with_table:
            _look_at_table(request, reached, found)
    return found.checkup()


class _Reached(NamedTuple):
    """A side that has told what it is."""

    session: Session
    examined: Examined


class _Found:
    """Findings, and the code that follows from them."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._codes: set[int] = set()
        self.addresses: dict[Side, str] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        self._findings += findings

    @contextmanager
    def telling(self, where: Where, what: str) -> Iterator[None]:
        """Make a finding of what a server says in the block; raises UsageError."""
        try:
            yield
        except CopypipeError as error:
            if isinstance(error, UsageError) and not isinstance(error, LoginRefused):
                raise
            others = error.others if isinstance(error, PlanRefused) else ()
            for each in (error, *others):
                told = symptoms.problem(each.side or where, what, each)
                if (told.where, told.text) not in {(f.where, f.text) for f in self._findings}:
                    self.add([told])
            self._codes.add(error.exit_code)

    def checkup(self) -> Checkup:
        """Return what was found; a side that cannot be reached counts most."""
        code = PlanRefused.exit_code if any(f.mark == "problem" for f in self._findings) else 0
        for worse in (LoginRefused.exit_code, TransientError.exit_code):
            if worse in self._codes:
                code = worse
        return Checkup(tuple(self._findings), self.addresses, code)


def _client() -> Iterator[Finding]:
    text = f"copypipe {__version__}, psycopg {psycopg.__version__}, {scans.NAME} scan"
    yield Finding("client", "versions", "ok", text)
    yield symptoms.of_libpq(pq.version())


def _of_endpoint(side: Side, endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.origin.startswith("--") and addresses.has_password(endpoint, side):
        yield Finding(
            side,
            "password",
            "warning",
            f"the password in {endpoint.origin} can be read in the process list",
            "Use .pgpass, a service file or the environment.",
        )


def _examined(session: Session) -> Examined:
    """Ask one side for all that is to be known of it."""
    with session.reading(lock_timeout=PATIENCE):
        began = time.time()
        clock = session.fetch_one(statements.clock())[0]
        ended = time.time()
        facts = Facts(*session.fetch_one(statements.facts(session.major)))
        asked = statements.settings(
            symptoms.SETTINGS, tuple(session.settings), f"--{session.side}-set"
        )
        settings = {name: Setting(*more) for name, *more in session.fetch(asked)}
        replicas = tuple(Replica(*row) for row in session.fetch(statements.replicas()))
        standby = Standby(*session.fetch_one(statements.standby())) if facts.in_recovery else None
    with session.reading(lock_timeout=PATIENCE):
        other_pid = session.fetch_one(sessions.backend_pid())[0]
    conn = session.conn
    options = {option.keyword: option.val or b"" for option in conn.pgconn.info}
    link = Link(
        host=conn.info.host,
        address=conn.info.hostaddr,
        port=conn.info.port,
        sslmode=options.get(b"sslmode", b"").decode(),
        used_password=conn.pgconn.used_password,
        used_gssapi=conn.pgconn.used_gssapi,
        pid=conn.pgconn.backend_pid,
        other_pid=other_pid,
        clock=clock - (began + ended) / 2,
        uncertain=ended - began,
    )
    return Examined(session.side, session.major, facts, link, settings, replicas, standby)


def _ledger(session: Session) -> Ledger:
    with session.reading(lock_timeout=PATIENCE):
        return ledger.look(session)


def _look_at_table(request: Request, reached: Mapping[Side, _Reached], found: _Found) -> None:
    """Tell of the table at both sides, and what a plan for it says."""
    tables: dict[Side, Table] = {}
    for side, (session, examined) in reached.items():
        name = request.table if side == "source" else request.into or request.table
        with found.telling(side, "table"):
            by = request.by if isinstance(request.wanted, Between) else None
            seen, server = _seen(session, name, by)
            tables[side] = seen.table
            in_recovery = examined.facts.in_recovery
            found.add(symptoms.of_table(side, seen, in_recovery=in_recovery))
            if side == "dest" and not in_recovery:  # which is told already
                with found.telling(side, "table"):
                    hazards.check_dest(server, seen.table)
            if side == "dest" and _deletes(request):
                with found.telling(side, "references"):
                    hazards.check_references(
                        seen.table, (), merging=False, whole=request.replaces_whole
                    )
    if len(tables) < 2:
        return
    with found.telling("both", "plan"):
        plan = plans.make(request, reached["source"].session, reached["dest"].session)
        text = (
            f"{_copies(request)} can be planned: {len(plan.columns)} columns in {plan.format} "
            f"format, carried by {plan.transport}"
        )
        found.add([Finding("both", "plan", "ok", text, "copypipe copy --dry-run shows it.")])


def _deletes(request: Request) -> bool:
    return request.mode == "replace" and request.clear == "delete" and not request.swap


def _copies(request: Request) -> str:
    """Return what kind of copies the request is about, in words."""
    how = "" if request.mode == "replace" else f" by {request.mode}"
    how += " by --swap" if request.swap else ""
    how += " by TRUNCATE" if request.clear == "truncate" else ""
    if isinstance(request.wanted, Between):
        return f"slices by {request.by}{how}"
    return f"{'all rows' if request.where is None else 'the rows of a condition'}{how}"


def _seen(session: Session, name: str, by: str | None) -> tuple[Seen, Server]:
    with session.reading(own_search_path=True, lock_timeout=PATIENCE):
        table = catalog.table(session, catalog.resolve(session, name))
        column = folded(by) if by is not None else None
        unlogged, partitions, size = session.fetch_one(statements.relation(table.oid))
        seen = Seen(
            table=table,
            by=column,
            indexes=catalog.indexes(session, table, column) if column is not None else (),
            unlogged=unlogged,
            partitions=partitions,
            bytes=size,
        )
        return seen, catalog.server(session)
