"""What a migration is asked for, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from copypipe.addresses import Address
from copypipe.errors import CopypipeError, PlanRefused, UsageError
from copypipe.hazards import Refusals
from copypipe.inventory import Asked
from copypipe.migrations import moves
from copypipe.migrations.moves import Move
from copypipe.requests import (
    DEFAULT_RETRIES,
    DEFAULT_RETRY_SECONDS,
    DEFAULT_SETTLE_SECONDS,
    DEFAULT_WAIT_SECONDS,
    Endpoint,
    Request,
    Transport,
    Verify,
)
from copypipe.slices import Everything
from copypipe.steps import Step

DEFAULT_JOBS = 4

# A table is cut where it is at least two such parts long. Each part costs some 10 ms, and cannot
# be written as frozen rows, which saves the dest a later vacuum: so only what takes several seconds
# is worth it (some 100 MB a second and job).
DEFAULT_PART_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is to be moved, and how."""

    source: Endpoint
    dest: Endpoint
    asked: Asked = field(default_factory=Asked)
    into: tuple[str, ...] = ()
    """Where at the dest, as `moves.names` reads it."""
    jobs: int = DEFAULT_JOBS
    part_bytes: int = DEFAULT_PART_BYTES
    schema: bool = True
    """Make what is missing."""
    owner: bool = False
    """Give what is made the owners that it has at the source."""
    acl: bool = False
    """Grant what is granted at the source."""
    defer_indexes: bool = False
    """Drop plain indexes of tables that are there, and make them again behind the copy."""
    replace: bool = False
    """Remove the rows of tables that hold some."""
    resume: bool = False
    """Go on with a migration that has not ended."""
    migration: str | None = None
    """Which one; None for the only one."""
    consistent: bool = True
    """A table that was copied in part begins anew, in the new snapshot; else it goes on."""
    limit: int | None = None
    """For a rehearsal: not more rows of any table."""
    verify: Verify = "count"
    transport: Transport = "auto"
    rate_limit: int | None = None
    """Bytes a second of each job; None for as fast as it goes."""
    wait_lock: float = DEFAULT_WAIT_SECONDS
    retries: int = DEFAULT_RETRIES
    retry_delay: float = DEFAULT_RETRY_SECONDS
    settle: float = DEFAULT_SETTLE_SECONDS
    notices: bool = False

    def check(self) -> None:
        """Raise UsageError for what the words alone show to be wrong."""
        if self.resume:
            if self.asked != Asked() or self.replace or self.limit is not None or self.into:
                raise UsageError(
                    "--resume goes on with what was asked for at first",
                    hint="Leave out tables, --exclude, --into, --limit and --replace.",
                )
        else:
            self.asked.check()
            if self.migration is not None or not self.consistent:
                raise UsageError("--id and --not-consistent go with --resume")
        moves.names(self.into)
        if self.into and self.schema:
            raise UsageError(
                "names are mapped by --into only where the tables are there",
                detail="pg_dump spells the names, also within defaults, functions and checks.",
                hint="Make them yourself, and give --no-schema.",
            )
        if self.defer_indexes and self.schema:
            raise UsageError(
                "--defer-indexes is for tables that are there", hint="Give --no-schema too."
            )
        if (self.owner or self.acl) and not self.schema:
            raise UsageError("--owner and --acl are about what is made, and --no-schema makes none")
        if self.jobs < 1:
            raise UsageError(f"cannot copy {self.jobs} at a time")
        if self.part_bytes < 1 << 20:
            raise UsageError("a part has at least 1MB")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"cannot copy {self.limit} rows at most")

    def told(self) -> dict[str, Any]:
        """Return what a later start has to know."""
        return {
            "tables": list(self.asked.patterns),
            "schemas": list(self.asked.schemas),
            "everything": self.asked.everything,
            "exclude": list(self.asked.exclude),
            "into": list(self.into),
            "schema": self.schema,
            "limit": self.limit,
        }


State = Literal["copied", "kept", "failed", "begun", "not begun"]


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one table."""

    table: str
    into: str
    state: State
    """kept: an earlier start had copied it; begun: some parts are there, or not its indexes."""
    rows: int
    bytes: int
    parts: int
    copy_seconds: float
    """Over all its parts, which may have been copied side by side; as the next ones."""
    index_seconds: float
    constraint_seconds: float
    digest: str | None
    error: CopypipeError | None


@dataclass(frozen=True, slots=True)
class Migrated:
    """What became of a migration."""

    id: str
    tables: tuple[Moved, ...]
    failed: tuple[tuple[str, CopypipeError], ...]
    """Steps that failed, and why."""
    is_ended: bool
    """All is done."""
    taken_at: datetime
    """When the snapshot was taken, by the source's clock."""
    lsn: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Proposed:
    """One table that would be moved."""

    move: Move
    is_there: bool
    holds_rows: bool
    parts: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a migration would do."""

    source: Address
    dest: Address
    tables: tuple[Proposed, ...]
    """In the order in which they are begun."""
    makes: tuple[str, ...]
    """What of definitions the dest lacks."""
    steps: tuple[Step, ...]
    """What follows the rows, as far as it is known."""
    drops: tuple[str, ...]
    """Indexes that are dropped first, and made again."""
    left_out: tuple[str, ...]
    not_tables: tuple[str, ...]
    """What the dest lacks and no table needs, where all tables are moved."""
    refusals: tuple[PlanRefused, ...]

    def check(self) -> None:
        """Raise PlanRefused with all that stands in the way."""
        Refusals(self.refusals).check()


def request_of_any(options: Options) -> Request:
    """Return the request of any table, but for its name."""
    return Request(
        source=options.source,
        dest=options.dest,
        table="-",
        wanted=Everything(),
        only_empty=True,
        verify=options.verify,
        transport=options.transport,
        rate_limit=options.rate_limit,
        wait_lock=options.wait_lock,
        retries=options.retries,
        retry_delay=options.retry_delay,
        settle=options.settle,
        notices=options.notices,
        yes=True,
    )
