"""Several processes share a range while they are killed and servers restart: every day once."""

import os
import pwd
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from copypipe.launcher import Binaries
from plugins import databases
from plugins.command import no_backends
from plugins.databases import Database
from plugins.servers import SIDES, launch_one

DAYS = 60
ROWS_A_DAY = 100
T = "CREATE TABLE public.t (id int PRIMARY KEY, note text, created_at timestamptz)"

# Where a run is killed, in what phase that is, and how often the place is passed before: early ones
# are in the first slice, later ones in the middle of the range.
PLACES = (
    ("connect", "dest-statement", (1, 3)),
    ("plan", "source-answer", (5, 25)),
    ("clear", "dest-answer", (40, 300)),
    ("stream", "chunk-sent", (1, 12)),
    ("stream", "source-ended", (1, 8)),
    ("commit", "commit-sent", (1, 8)),
    ("after", "committed", (1, 8)),
)

Place = tuple[str, str, tuple[int, int]]

# A test that hangs is one that failed: all of it takes some ten seconds.
LONGEST_SECONDS = 240.0


@dataclass
class Sharing:
    """Members of a run that is shared, and what happens to them."""

    source: Database
    dest: Database
    members: Sequence[str | None]
    """As what user of the system each runs; None for this one."""
    chance: random.Random
    killed: list[str] = field(default_factory=list)
    restarted: int = 0
    ended: list[int] = field(default_factory=list)

    def run(self, *, kills: int, restarts: int) -> None:
        """Keep the members at work until all is done, killed and hindered as often as that."""
        more = [self.chance.choice(PLACES) for _ in range(kills - len(PLACES))]
        # Taken from the end: first each of them as early as may be, while there is most to do.
        places = [*more, *((phase, name, (least, least)) for phase, name, (least, _) in PLACES)]
        running: dict[int, tuple[subprocess.Popen[bytes], Place | None]] = {}
        left = dict(enumerate(self.members))
        until = time.monotonic() + LONGEST_SECONDS
        again = time.monotonic() + 1
        while left or running:
            assert time.monotonic() < until, f"still at work: {self}"
            for number in [each for each in left if each not in running]:
                place = places.pop() if places else None
                if place is None and any(doomed for _, doomed in running.values()):
                    break  # who is not killed might have done all before the others come to die
                running[number] = (self._begun(self.members[number], place), place)
            if self.restarted < restarts and time.monotonic() >= again:
                self._restart()
                again = time.monotonic() + 1
            for number, (process, place) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[number]
                if code == -9:
                    self.killed.append(place[0] if place else "nowhere")
                elif code and place:
                    places.append(place)  # a restart was in its way before it came there
                elif not places:
                    self.ended.append(code)
                    del left[number]
            time.sleep(0.02)

    def _begun(self, user: str | None, place: Place | None) -> "subprocess.Popen[bytes]":
        crashpoint = {}
        if place:
            _, name, (least, most) = place
            crashpoint["COPYPIPE_CRASHPOINT"] = f"{name}:{self.chance.randint(least, most)}"
        environment = {
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "COPYPIPE_SOURCE": self.source.dsn,
            "COPYPIPE_DEST": self.dest.dsn,
            **crashpoint,
        }
        words = "backfill public.t --from 2018-03-01 --to 2018-04-30 --jobs 2 --progress none -q"
        patience = "--retries 8 --retry-delay 200ms"
        return subprocess.Popen(
            [sys.executable, "-m", "copypipe", *words.split(), *patience.split()],
            env=environment,
            user=user,
            stderr=subprocess.DEVNULL,
        )

    def _restart(self) -> None:
        """Restart one server at once, as after a crash."""
        database = self.chance.choice([self.source, self.dest])
        database.server.restart("immediate")
        self.restarted += 1

    def check(self) -> None:
        """Check that every day is there once, and that the ledger says so."""
        no_backends(self.source, self.dest)
        rows = "SELECT * FROM public.t ORDER BY id"
        assert self.source.text(rows) == self.dest.text(rows)
        told = self.dest.fetch("SELECT instants::text, state, rows_copied FROM copypipe.slice")
        assert len(told) == len({instants for instants, _, _ in told}) == DAYS
        assert {(state, copied) for _, state, copied in told} == {("sealed", ROWS_A_DAY)}
        running = (
            "SELECT count(*) FROM copypipe.attempt a JOIN copypipe.slice s USING (attempt_id)"
            " WHERE a.state <> 'copied'"
        )
        assert self.dest.scalar(running) == 0


@pytest.fixture(scope="module")
def own_pair(binaries: Binaries) -> Iterator[tuple[Database, Database]]:
    """Yield a database of each of two servers that may be restarted."""
    fresh = contextmanager(databases.fresh)
    with ExitStack() as stack:
        source, dest = (
            stack.enter_context(fresh(launch_one(stack, side, binaries), "template0"))
            for side in SIDES
        )
        yield source, dest


def may_run(user: str) -> bool:
    """Return whether this interpreter can be run as another user."""
    try:
        return not subprocess.run([sys.executable, "-c", "import copypipe"], user=user).returncode
    except PermissionError:
        return False


def shared(
    pair: tuple[Database, Database], members: Sequence[str | None], seed: int, **counts: int
) -> Sharing:
    source, dest = pair
    for database in pair:
        database.execute("DROP SCHEMA IF EXISTS copypipe CASCADE; DROP TABLE IF EXISTS public.t")
        database.execute(f"{T}; CREATE INDEX ON public.t (created_at)")
    source.execute(
        "INSERT INTO public.t SELECT n, repeat('x', n % 300), '2018-03-01Z'::timestamptz"
        f" + n * interval '{86400 // ROWS_A_DAY} s'"
        f" FROM generate_series(0, {DAYS * ROWS_A_DAY - 1}) AS n"
    )
    sharing = Sharing(source, dest, members, random.Random(seed))  # noqa: S311
    sharing.run(**counts)
    return sharing


def test_members_that_are_killed(own_pair: tuple[Database, Database]) -> None:
    sharing = shared(own_pair, (None, None, None), seed=9, kills=7, restarts=1)

    sharing.check()
    assert sharing.ended == [0, 0, 0]
    assert {phase for phase, _, _ in PLACES} == set(sharing.killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_members_of_several_users_that_are_killed_thirty_times(
    own_pair: tuple[Database, Database], seed: int
) -> None:
    others = [each.pw_name for each in pwd.getpwall() if each.pw_name in ("nobody", "daemon")]
    members = (None, *(other if may_run(other) else None for other in others))

    sharing = shared(own_pair, members, seed, kills=30, restarts=6)

    sharing.check()
    assert set(sharing.ended) == {0}
    assert {phase for phase, _, _ in PLACES} <= set(sharing.killed)
