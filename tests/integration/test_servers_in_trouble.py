"""Servers with a trouble of their own, and what becomes of a copy: it fails whole or is whole.

Full disks, standbys, limits of roles, a COMMIT that waits for a standby, networks that lose all.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import copypipe
from copypipe import (
    CommitUnknown,
    CopyFailed,
    CopypipeError,
    Transferred,
    TransientError,
    attempts,
    launcher,
)
from copypipe.events import Committing, Decided, Event, Retried, Settling
from plugins import proxy as proxies
from plugins.command import Command, Process, eventually, no_backends, pause, waits_in_pause
from plugins.databases import Database, fresh
from plugins.proxy import Commits, Cut, Frame, Proxy
from plugins.servers import Server, launch_one
from plugins.ways import Begun

DAY = "2018-04-29"

TABLE = "CREATE TABLE public.t (id int, body text, created_at timestamptz)"

# Not compressed, and not written again by an UPDATE of something else.
EXTERNAL = "ALTER TABLE public.t ALTER body SET STORAGE EXTERNAL"

# Three rows of the day, one of another.
OLD = f"""
    INSERT INTO public.t
    SELECT -g, 'old ' || g, '{DAY} 09:00Z'::timestamptz + g * interval '5 hours'
      FROM generate_series(0, 3) AS g
"""


def rows_of(count: int, size: int = 20) -> str:
    """Return how to fill the table with rows of the day, of so many characters each."""
    return (
        f"INSERT INTO public.t SELECT g, repeat('x', {size}), '{DAY} 10:00Z'"
        f" FROM generate_series(1, {count}) AS g"
    )


SLEEPS = """
    CREATE FUNCTION public.sleep() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_catalog.pg_sleep(TG_ARGV[0]::float8); RETURN NULL; END $$
"""

# More than the sockets between two servers hold, and than a small disk.
MANY, MUCH = 300, rows_of(300, 100_000)


@dataclass
class Sides:
    """Both databases, with public.t to copy from one to the other."""

    source: Database
    dest: Database
    before: bytes = b""

    def __post_init__(self) -> None:
        self.before = self.held()

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.source.dsn, "dest": self.dest.dsn}
        chosen = {"retries": 0, "retry_delay": 0.01, **options}
        if not {"all", "start"} & chosen.keys():
            chosen["day"] = DAY
        return copypipe.copy("public.t", **{**sides, **chosen})

    def held(self) -> bytes:
        """What the dest holds."""
        return self.dest.text("SELECT id, md5(body), created_at FROM public.t ORDER BY id")

    @property
    def recorded(self) -> int:
        """How many slices the ledger holds."""
        if self.dest.scalar("SELECT to_regclass('copypipe.slice') IS NULL"):
            return 0
        return self.dest.scalar("SELECT count(*) FROM copypipe.slice")

    @property
    def tried(self) -> list[tuple[str, str | None, str | None]]:
        """How each attempt ended, in order: state, side, SQLSTATE."""
        return self.dest.fetch(
            "SELECT state, side, sqlstate FROM copypipe.attempt ORDER BY began_at, number"
        )

    def assert_old(self) -> None:
        """Fail unless nothing happened at the dest, and nobody of ours is left."""
        no_backends(self.source, self.dest)
        assert self.held() == self.before
        assert self.recorded == 0

    def assert_new(self, *, others: int = 1, recorded: int = 1) -> None:
        """Fail unless the day is what the source has, beside so many rows of other days."""
        no_backends(self.source, self.dest)
        day = f"created_at < '{DAY}'::date + 1"
        query = f"SELECT id, md5(body), created_at FROM public.t WHERE {day} ORDER BY id"
        assert self.dest.text(query) == self.source.text(query) != b""
        assert self.dest.scalar(f"SELECT count(*) FROM public.t WHERE NOT ({day})") == others
        assert self.recorded == recorded


def tables(source: Database, dest: Database, rows: str, where: str = "") -> Sides:
    """Make the table on both sides; `where` is what the dest's is made with more."""
    source.execute(f"{TABLE}; {EXTERNAL}; {rows}")
    dest.execute(f"{TABLE} {where}; {EXTERNAL}; {OLD}")
    return Sides(source, dest)


@pytest.fixture(scope="module")
def own(binaries: launcher.Binaries) -> Iterator[Server]:
    """Yield a server for this module alone, which may get into trouble."""
    with contextlib.ExitStack() as stack:
        yield launch_one(stack, "dest", binaries)


@pytest.fixture
def own_dest(own: Server) -> Iterator[Database]:
    """Yield a fresh database on it."""
    yield from fresh(own, "template0")


# --- full disks -----------------------------------------------------------------------------------


@dataclass
class Disk:
    """A small disk that is mounted."""

    folder: Path

    def resize(self, megabytes: int) -> None:
        options = f"remount,size={megabytes}m"
        subprocess.run(["mount", "-o", options, self.folder], check=True)


@contextlib.contextmanager
def mounted(server: Server, megabytes: int) -> Iterator[Disk]:
    """Mount a small disk that is the server's; skips where nobody may do that."""
    assert server.launched, "a server of our own"
    owner = server.launched.data_dir.stat()
    folder = Path(tempfile.mkdtemp(prefix="cp-disk-"))
    options = f"size={megabytes}m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(folder.rmdir)
        command = ["mount", "-t", "tmpfs", "-o", options, "copypipe-test", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        # Lazily: a process may still hold a file that is gone.
        cleanup.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        yield Disk(folder)


@pytest.fixture
def small_disk(own: Server, own_dest: Database) -> Iterator[Disk]:
    """Yield a disk of 16 MB, which is the tablespace `small`."""
    with mounted(own, 16) as disk:
        own_dest.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
        yield disk
        own_dest.execute("DROP TABLE IF EXISTS public.t; DROP SCHEMA IF EXISTS copypipe CASCADE")
        own_dest.execute("DROP TABLESPACE small")


FULL: dict[str, dict[str, Any]] = {
    "a day": {},
    "through libpq": {"transport": "libpq"},
    "all, with TRUNCATE": {"all": True, "yes": True, "clear": "truncate"},
}


@pytest.mark.parametrize("options", FULL.values(), ids=FULL.keys())
@pytest.mark.one_of(2)
def test_a_full_disk_changes_nothing(
    kept_source: Database, own_dest: Database, small_disk: Disk, options: dict[str, Any]
) -> None:
    sides = tables(kept_source, own_dest, MUCH, "TABLESPACE small")
    heard: list[Event] = []

    with pytest.raises(CopyFailed) as caught:
        sides.copy(retries=3, listener=heard.append, **options)

    error = caught.value
    assert (error.exit_code, error.side, error.sqlstate) == (1, "dest", "53100")
    assert not error.retryable
    assert not any(isinstance(event, Retried) for event in heard)
    sides.assert_old()
    assert sides.tried == [("failed", "dest", "53100")]

    small_disk.resize(100)
    assert sides.copy(**options).rows == MANY
    sides.assert_new(others=0 if "all" in options else 1)


def test_a_disk_that_is_full_for_the_ledger_too_changes_nothing(
    kept_source: Database, own_dest: Database, small_disk: Disk
) -> None:
    """What became of the attempt may find no room; the truth of the slice does."""
    own_dest.execute(f'ALTER DATABASE "{own_dest.name}" SET default_tablespace = small')
    own_dest.server.starts += 1  # the helper's own sessions want it too
    sides = tables(kept_source, own_dest, MUCH)
    spaces = "SELECT DISTINCT spcname FROM pg_class c JOIN pg_tablespace s ON s.oid = reltablespace"

    with pytest.raises(CopyFailed) as caught:
        sides.copy()

    assert (caught.value.exit_code, caught.value.sqlstate) == (1, "53100")
    assert own_dest.fetch(f"{spaces} WHERE relnamespace = 'copypipe'::regnamespace") == [("small",)]
    sides.assert_old()
    small_disk.resize(100)
    assert sides.copy().rows == MANY
    sides.assert_new()
    assert [row[0] for row in sides.tried][1:] == ["copied"]


@pytest.mark.slow
def test_no_room_for_the_log_of_the_dest(
    kept_source: Database, binaries: launcher.Binaries
) -> None:
    """The server panics, and comes back only when there is room for its WAL."""
    with contextlib.ExitStack() as stack:
        server = launch_one(stack, "dest", binaries)
        disk = stack.enter_context(mounted(server, 64))
        stack.callback(server.stop, "immediate")  # before its disk goes
        server.stop()
        wal = server.launched.data_dir / "pg_wal"
        move = ["cp", "-a", f"{wal}/.", disk.folder]
        subprocess.run(move, check=True)
        shutil.rmtree(wal)
        wal.symlink_to(disk.folder)
        server.start()
        dest = stack.enter_context(contextlib.contextmanager(fresh)(server, "template0"))
        sides = tables(kept_source, dest, rows_of(1000, 100_000))

        with pytest.raises(CopypipeError) as caught:
            sides.copy()

        assert (caught.value.exit_code, caught.value.side) in [(1, "dest"), (5, "dest")]
        disk.resize(400)
        server.stop("immediate")
        server.start()
        sides.assert_old()
        assert sides.copy().rows == 1000
        sides.assert_new()


# --- a standby as the source ----------------------------------------------------------------------


@dataclass
class Replicated:
    """A database of a primary, and the same one on its standby."""

    primary: Database
    standby: Database

    def catch_up(self) -> None:
        """Wait until the standby has replayed all that the primary has."""
        at = self.primary.scalar("SELECT pg_current_wal_lsn()::text")
        behind = f"SELECT pg_last_wal_replay_lsn() < '{at}'"
        eventually(lambda: not self.standby.scalar(behind), seconds=20, what="it is replayed")

    def is_stuck(self) -> bool:
        """Return whether the standby has received what it does not replay."""
        query = "SELECT pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()"
        return self.standby.scalar(query)


# Whoever is in the way of the replay is ended at once, and the primary knows nothing of it.
CONFLICTS = {"max_standby_streaming_delay": "50ms", "hot_standby_feedback": "off"}


def standby_of(primary: Server, stack: contextlib.ExitStack, binaries: launcher.Binaries) -> Server:
    """Start a standby of a server of our own, which is stopped for a moment."""
    standby = launch_one(stack, "source", binaries)
    assert primary.launched
    assert standby.launched
    data = standby.launched.data_dir
    owner = data.stat()
    settings = {
        **CONFLICTS,
        "primary_conninfo": primary.launched.dsn(),
        "unix_socket_directories": str(standby.launched.socket_dir),
    }
    standby.stop()
    primary.stop()
    shutil.rmtree(data)
    shutil.copytree(primary.launched.data_dir, data)
    primary.start()
    (data / "standby.signal").touch()
    with (data / "postgresql.conf").open("a") as conf:
        for name, value in settings.items():
            conf.write(f"{name} = '{value}'\n")
    for path in (data, *data.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)
    standby.start()
    return standby


@pytest.fixture(scope="module")
def replicated(own: Server, binaries: launcher.Binaries) -> Iterator[Replicated]:
    """Yield a database that is on both."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(contextlib.contextmanager(fresh)(own, "template0"))
        standby = standby_of(own, stack, binaries)
        yield Replicated(primary, Database(standby, primary.name, stack))


@pytest.fixture
def read(replicated: Replicated, kept_dest: Database) -> Sides:
    """Return the standby and a dest."""
    if kept_dest.server.major < replicated.primary.server.major:
        pytest.skip("the dest is older than the standby")
    replicated.primary.execute("DROP TABLE IF EXISTS public.t")
    replicated.primary.execute(f"{TABLE}; {EXTERNAL}; {MUCH}")
    kept_dest.execute(f"{TABLE}; {EXTERNAL}; {OLD}")
    replicated.catch_up()
    return Sides(replicated.standby, kept_dest)


# What the primary does, which a reader of the standby cannot live with.
REPLAYED = {
    "old versions of rows are removed": (
        "UPDATE public.t SET created_at = created_at",
        "VACUUM public.t",
    ),
    "the table is locked": ("VACUUM FULL public.t",),
}


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("statements", REPLAYED.values(), ids=REPLAYED.keys())
@pytest.mark.one_of(3)
def test_a_conflict_with_the_replay_of_a_standby_passes(
    read: Sides, replicated: Replicated, statements: tuple[str, ...], retries: int
) -> None:
    holder = pause(read.dest, "public.t", when="NEW.id = 10")
    heard: list[Event] = []
    copying = Begun(functools.partial(read.copy, retries=retries, listener=heard.append))
    eventually(lambda: waits_in_pause(read.dest), what="the copy is held up")

    for statement in statements:
        replicated.primary.execute(statement)
    eventually(replicated.is_stuck, what="the copy is in the way")
    time.sleep(0.2)  # the delay
    holder.close()
    error = copying.error()

    assert_conflicted(read, heard, error, retries)
    replicated.catch_up()


@pytest.mark.parametrize("retries", [0, 2])
def test_a_conflict_while_a_standby_waits_for_us_passes(
    read: Sides, replicated: Replicated, proxy: Callable[..., Proxy], retries: int
) -> None:
    """Its session is idle in its transaction, so it is ended, not cancelled."""
    reached, may_go_on = threading.Event(), threading.Event()

    def hold(frame: Frame) -> None:
        if frame.sender == "client" and frame.body.startswith(b"COPY "):
            reached.set()
            may_go_on.wait(20)

    heard: list[Event] = []
    between = proxy(read.dest.server, hold)
    options = {"retries": retries, "listener": heard.append, "dest": between.dsn(read.dest)}
    copying = Begun(functools.partial(read.copy, **options))
    assert reached.wait(20)

    for statement in REPLAYED["old versions of rows are removed"]:
        replicated.primary.execute(statement)
    eventually(lambda: not read.source.backends(), what="the standby has ended it")
    may_go_on.set()
    error = copying.error()

    assert_conflicted(read, heard, error, retries)


def test_a_standby_that_has_sent_all_may_end_it(read: Sides, replicated: Replicated) -> None:
    """The dest still checks what it took; nothing of the source is needed any more."""
    read.dest.execute(
        f"{SLEEPS}; CREATE TRIGGER late AFTER INSERT ON public.t"
        " FOR EACH STATEMENT EXECUTE FUNCTION public.sleep(1)"
    )
    copying = Begun(read.copy)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    eventually(lambda: read.dest.scalar(asleep), what="all rows were sent")

    for statement in REPLAYED["old versions of rows are removed"]:
        replicated.primary.execute(statement)
    eventually(lambda: not read.source.backends(), what="the standby has ended it")

    assert copying.result().rows == MANY
    read.assert_new()


def assert_conflicted(
    sides: Sides, heard: list[Event], error: BaseException | None, retries: int
) -> None:
    """Fail unless it was one failure that passes, and no more than that."""
    if not retries:
        assert isinstance(error, TransientError), error
        assert (error.exit_code, error.side, error.sqlstate) == (5, "source", "40001")
        assert "conflict with recovery" in error.message
        sides.assert_old()
        assert sides.tried == [("failed", "source", "40001")]
        return
    assert error is None, error
    (retried,) = [event for event in heard if isinstance(event, Retried)]
    assert (retried.error.side, retried.error.sqlstate) == ("source", "40001")
    sides.assert_new()
    assert sides.tried == [("failed", "source", "40001"), ("copied", None, None)]


def test_a_slice_of_a_standby_is_sealed_as_far_as_it_has_replayed(
    read: Sides, replicated: Replicated
) -> None:
    replicated.primary.execute("INSERT INTO public.t VALUES (0, 'new', now() - interval '1 min')")
    replicated.catch_up()
    now = read.source.scalar("SELECT pg_last_xact_replay_timestamp()")
    around = {"start": now - timedelta(minutes=10), "stop": now - timedelta(seconds=5)}

    settling = read.copy(**around)
    settled = read.copy(**around, settle=0)
    later = read.copy(start=now - timedelta(minutes=10), stop=now + timedelta(seconds=1), settle=0)

    why = "the source is a standby, which does not show the transactions of its primary"
    assert [one.open_because for one in (settling, settled)] == [why, None]
    # Whether the clock or the replay is named depends on the time that all this took.
    assert later.open_because in (why, "its end is not past at the source")
    told = read.dest.fetch("SELECT state, open_because FROM copypipe.slice ORDER BY id")
    assert told == [("open", why), ("sealed", None), ("open", later.open_because)]
    # A day that was over long ago is sealed with the margin of an hour too.
    assert read.copy().open_because is None


def test_a_standby_that_has_replayed_nothing_seals_nothing(
    read: Sides, replicated: Replicated
) -> None:
    replicated.primary.execute("CHECKPOINT")
    replicated.catch_up()
    replicated.standby.execute("CHECKPOINT")  # from which it replays after a restart
    replicated.standby.server.restart()
    assert read.source.scalar("SELECT pg_last_xact_replay_timestamp()") is None

    assert read.copy(settle=0).open_because == (
        "the source is a standby that has replayed no commit yet"
    )
    assert read.dest.fetch("SELECT state, open_because FROM copypipe.slice") == [
        ("open", "the source is a standby that has replayed no commit yet")
    ]


# --- what roles are limited to --------------------------------------------------------------------

# What holds a copy up for longer than that, on either side, is below.
LIMIT = "200ms"
LIMITS = {
    "lock_timeout": LIMIT,
    "idle_in_transaction_session_timeout": LIMIT,
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "nowhere",
    "synchronous_commit": "off",
}
SINCE = {"transaction_timeout": 17}


@dataclass
class Limited:
    """A table with roles on both sides that may do no more than is needed."""

    source: Database
    dest: Database
    name: str
    settings: Mapping[str, str]

    def __post_init__(self) -> None:
        table = TABLE.replace("public.t", self.table)
        self.source.execute(f"{table}; {rows_of(50).replace('public.t', self.table)}")
        self.dest.execute(f"{table}; {OLD.replace('public.t', self.table)}")
        rights = "SELECT, INSERT, DELETE"
        self.reader = self.source.role("reader", f"SELECT ON {self.table}")
        self.writer = self.dest.role(
            "writer",
            f"{rights} ON {self.table}",
            "USAGE ON SCHEMA copypipe",
            "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA copypipe",
        )
        for database, role in ((self.source, self.reader), (self.dest, self.writer)):
            for name, value in self.settings.items():
                if database.server.major >= SINCE.get(name, 14):
                    database.execute(f"ALTER ROLE {role.name} SET {name} = '{value}'")

    @property
    def table(self) -> str:
        return f"public.{self.name}"

    def slow_source(self, seconds: float) -> None:
        """Have the source send a row that takes its time."""
        self.source.execute(
            f"ALTER TABLE {self.table} RENAME TO stored_{self.name};"
            f"CREATE VIEW {self.table} AS SELECT * FROM public.stored_{self.name}"
            f" WHERE id <> 25 OR pg_catalog.pg_sleep({seconds}) IS NOT NULL;"
            f"GRANT SELECT ON {self.table} TO {self.reader.name}"
        )

    def slow_dest(self, when: str, seconds: float) -> None:
        """Have the dest do something for each statement that takes its time."""
        self.dest.execute(
            f"CREATE TRIGGER slow_{secrets.token_hex(4)} {when} ON {self.table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION public.sleep({seconds})"
        )

    def copy(self, **options: Any) -> Transferred:
        sides = {"source": self.reader.dsn, "dest": self.writer.dsn}
        chosen = {**sides, "day": DAY, "retries": 0, **options}
        return copypipe.copy(self.table, **chosen)

    def assert_copied(self) -> None:
        no_backends(self.source, self.dest)
        day = f"SELECT * FROM {self.table} WHERE created_at < '{DAY}'::date + 1 ORDER BY id"
        assert self.dest.text(day) == self.source.text(day) != b""
        recorded = f"SELECT count(*) FROM copypipe.slice WHERE dest_table = '{self.table}'"
        assert self.dest.scalar(recorded) == 1


@pytest.fixture
def limited(kept_source: Database, kept_dest: Database) -> Callable[..., Limited]:
    """Return a maker of tables and roles with these settings; the ledger is there already."""
    tables(kept_source, kept_dest, rows_of(5)).copy()
    kept_dest.execute(SLEEPS)
    return functools.partial(Limited, kept_source, kept_dest)


def test_limits_of_roles_do_not_end_a_copy(limited: Callable[..., Limited]) -> None:
    """Everything takes longer than the role may: locks, the source, the dest, and what waits."""
    cases = [limited(name, {name: value}) for name, value in LIMITS.items()]
    cases.append(limited("all_of_them", LIMITS))
    for case in cases:
        case.slow_source(0.3)
        for when in ("AFTER DELETE", "BEFORE INSERT", "AFTER INSERT"):
            case.slow_dest(when, 0.3)
    # Their plans wait at the source, and then their DELETEs at the dest.
    at_source, at_dest = (getattr(cases[0], side) for side in ("source", "dest"))
    altering, writing = (side.connect(autocommit=False) for side in (at_source, at_dest))
    for case in cases:
        altering.execute(f"LOCK TABLE public.stored_{case.name}")
        writing.execute(f"UPDATE {case.table} SET body = body WHERE id = 0")
    begun = {case.name: Begun(case.copy) for case in cases}
    for database, holder, kind in (
        (at_source, altering, "relation"),
        (at_dest, writing, "transactionid"),
    ):
        waiting = f"SELECT count(*) FROM pg_locks WHERE locktype = '{kind}' AND NOT granted"
        with contextlib.suppress(pytest.fail.Exception):  # then one has failed, as is seen below
            eventually(lambda d=database, w=waiting: d.scalar(w) == len(cases), seconds=10)
        time.sleep(0.3)
        holder.rollback()

    failed = {name: error for name, one in begun.items() if (error := one.error())}

    assert not failed
    for case in cases:
        case.assert_copied()


@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("statement_timeout", CopyFailed, "57014"),
        ("transaction_timeout", CopyFailed, "25P04"),
    ],
)
@pytest.mark.one_of(3)
def test_how_long_a_role_may_take_is_respected_unless_that_is_overridden(
    limited: Callable[..., Limited], side: str, name: str, kind: type[CopypipeError], code: str
) -> None:
    case = limited("limited", {})
    if side == "source":
        case.slow_source(0.6)
    else:
        case.slow_dest("AFTER INSERT", 0.6)
    database, role = getattr(case, side), case.reader if side == "source" else case.writer
    if database.server.major < SINCE.get(name, 14):
        pytest.skip(f"there since PostgreSQL {SINCE[name]}")
    database.execute(f"ALTER ROLE {role.name} SET {name} = '400ms'")

    heard: list[Event] = []
    with pytest.raises(kind) as caught:
        case.copy(retries=3, listener=heard.append)

    assert not [event for event in heard if isinstance(event, Retried)]
    assert (caught.value.sqlstate, caught.value.side) == (code, side)
    assert f"--{side}-set {name}=0" in str(caught.value.hint)
    no_backends(case.source, case.dest)
    assert case.dest.scalar(f"SELECT count(*) FROM {case.table} WHERE body LIKE 'old%'") == 4
    case.copy(**{f"{side}_set": {name: "0"}})
    case.assert_copied()


def test_a_transaction_that_takes_too_long_in_commit_is_settled_and_not_tried_again(
    limited: Callable[..., Limited],
) -> None:
    case = limited("limited", {})
    if case.dest.server.major < SINCE["transaction_timeout"]:
        pytest.skip("there since PostgreSQL 17")
    case.dest.execute(
        f"CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {case.table} DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION public.sleep(5)"
    )
    case.dest.execute(f"ALTER ROLE {case.writer.name} SET transaction_timeout = '1500ms'")
    heard: list[Event] = []

    with pytest.raises(CopyFailed) as caught:
        case.copy(retries=3, accept=["triggers"], listener=heard.append)

    assert (caught.value.sqlstate, caught.value.exit_code) == ("25P04", 1)
    assert "--dest-set transaction_timeout=0" in str(caught.value.hint)
    kinds = [type(event) for event in heard]
    assert Retried not in kinds
    assert kinds[kinds.index(Committing) :] == [Committing, Settling, Decided]
    no_backends(case.source, case.dest)
    assert case.dest.scalar(f"SELECT count(*) FROM {case.table} WHERE body LIKE 'old%'") == 4


def test_a_source_that_is_idle_while_the_dest_is_cleared_is_not_lost(
    limited: Callable[..., Limited],
) -> None:
    """Between the plan and its own transaction the source has nothing to do."""
    case = limited("idle", {})
    case.source.execute(f"ALTER ROLE {case.reader.name} SET idle_session_timeout = '300ms'")
    case.slow_dest("AFTER DELETE", 1)

    assert case.copy().rows == 50

    case.assert_copied()


def test_a_source_that_is_idle_while_another_run_is_waited_for_is_not_lost(
    limited: Callable[..., Limited],
) -> None:
    case = limited("idle", {})
    case.source.execute(f"ALTER ROLE {case.reader.name} SET idle_session_timeout = '300ms'")
    holder = pause(case.dest, case.table, when="NEW.id = 25")
    first = Begun(functools.partial(copypipe.copy, case.table, day=DAY, **_as_owner(case)))
    eventually(lambda: waits_in_pause(case.dest), what="another run is under way")
    second = Begun(case.copy)
    blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    eventually(lambda: case.dest.scalar(blocked) == 2, what="ours waits for it")
    time.sleep(0.6)
    holder.close()

    assert first.result().rows == 50
    assert second.result().rows == 50


def _as_owner(case: Limited) -> dict[str, str]:
    return {"source": case.source.dsn, "dest": case.dest.dsn}


def test_a_dest_that_may_not_be_idle_is_not_lost(limited: Callable[..., Limited]) -> None:
    case = limited("idle", {})
    case.dest.execute(f"ALTER ROLE {case.writer.name} SET idle_session_timeout = '300ms'")
    case.slow_source(0.6)
    case.slow_dest("AFTER INSERT", 0.6)

    assert case.copy().rows == 50

    case.assert_copied()


def test_a_question_that_is_answered_late_is_no_failure(
    limited: Callable[..., Limited], bare_run: Command
) -> None:
    """Both sessions are idle while somebody thinks; who has said yes is not asked again."""
    case = limited("asked", {"idle_session_timeout": "300ms"})
    env = {"COPYPIPE_SOURCE": case.reader.dsn, "COPYPIPE_DEST": case.writer.dsn}
    words = ("copy", case.table, "--all", "--retry-delay", "10ms")
    process = bare_run.start(*words, env=env, tty=True, input="y\n")
    eventually(case.dest.backends, what="connected")
    eventually(lambda: not case.dest.backends(), what="the dest has ended it")

    done = process.wait()

    assert done.code == 0, done.err
    assert done.err.count("Replace all rows") == 1
    assert case.dest.scalar(f"SELECT count(*) FROM {case.table}") == 50


def test_a_source_that_is_not_read_for_a_while_is_not_lost(
    limited: Callable[..., Limited],
) -> None:
    """The kernel ends a connection on which nothing goes for longer than tcp_user_timeout."""
    case = limited("unread", {})
    case.source.execute(f"ALTER ROLE {case.reader.name} SET tcp_user_timeout = '500ms'")
    case.source.execute(MUCH.replace("public.t", case.table).replace("g,", "g + 100,", 1))
    holder = pause(case.dest, case.table, when="NEW.id = 110")
    copying = Begun(case.copy)
    eventually(lambda: waits_in_pause(case.dest), what="the dest takes no more")
    time.sleep(2)
    holder.close()

    assert copying.result().rows == 50 + MANY


# --- a COMMIT that waits for a standby ------------------------------------------------------------


def waits_for_standby(server: Server) -> bool:
    """Return whether a commit waits for a standby now; no timeout of the server ends that."""
    with server.connect() as connection:
        cancel = threading.Timer(0.2, connection.cancel_safe)
        cancel.start()
        began = time.monotonic()
        connection.execute("SELECT pg_logical_emit_message(true, 'test', '')")
        took = time.monotonic() - began
        cancel.cancel()
        cancel.join()
        return took > 0.15


@pytest.fixture
def waiting(kept_source: Database, own: Server, own_dest: Database) -> Iterator[Sides]:
    """Yield a dest whose commits wait for a standby that does not exist."""
    sides = tables(kept_source, own_dest, rows_of(50))
    # The ledger is made before, and tells of another day.
    copypipe.copy("public.t", day="2018-05-01", source=sides.source.dsn, dest=own_dest.dsn)
    own_dest.execute("DELETE FROM copypipe.slice")
    own_dest.execute("DELETE FROM copypipe.attempt")
    try:
        own_dest.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        own_dest.execute("SELECT pg_reload_conf()")
        eventually(lambda: waits_for_standby(own), what="commits wait")
        yield sides
    finally:
        let_commit(own)


def let_commit(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("SELECT pg_reload_conf()")
    eventually(lambda: not waits_for_standby(server), what="commits wait for nobody")


def committing(dest: Database) -> list[tuple[int]]:
    """Return which of our processes waits for a standby."""
    return dest.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'SyncRep' AND application_name LIKE 'copypipe%'"
    )


def test_a_signal_while_commit_waits_for_a_standby(
    waiting: Sides, own: Server, bare_run: Command
) -> None:
    env = {"COPYPIPE_SOURCE": waiting.source.dsn, "COPYPIPE_DEST": waiting.dest.dsn}
    process = bare_run.start("copy", "t", "--day", DAY, env=env)
    eventually(lambda: committing(waiting.dest), what="COMMIT waits")

    process.signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.process.poll() is None
    sent = process.signal(signal.SIGINT)
    done = process.wait()

    assert time.monotonic() - sent < 2
    assert (done.code, done.out) == (75, "")
    assert "waiting for the outcome of COMMIT" in done.err
    assert "HINT:  Run it again, which settles it: copypipe copy t --day" in done.err
    assert committing(waiting.dest)  # which the server does not give up
    assert waiting.held() == waiting.before
    let_commit(own)
    waiting.assert_new()
    assert bare_run("copy", "t", "--day", DAY, env=env).code == 0
    waiting.assert_new(recorded=2)


def test_a_signal_while_commit_waits_for_a_standby_that_comes(
    waiting: Sides, own: Server, bare_run: Command
) -> None:
    env = {"COPYPIPE_SOURCE": waiting.source.dsn, "COPYPIPE_DEST": waiting.dest.dsn}
    process = bare_run.start("copy", "t", "--day", DAY, env=env)
    eventually(lambda: committing(waiting.dest), what="COMMIT waits")

    process.signal(signal.SIGINT)
    time.sleep(0.3)
    let_commit(own)
    done = process.wait()

    assert done.code == 0, done.err
    waiting.assert_new()
    assert waiting.tried == [("copied", None, None)]


@pytest.mark.parametrize("ended", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_that_is_not_let_wait_for_a_standby_is_one(waiting: Sides, ended: str) -> None:
    """It is committed there, and the answer says so, or the ledger when it is asked."""
    heard: list[Event] = []
    copying = Begun(functools.partial(waiting.copy, listener=heard.append))
    ((pid,),) = eventually(lambda: committing(waiting.dest), what="COMMIT waits")

    waiting.dest.execute(f"SELECT {ended}({pid})")
    done = copying.result()

    assert (done.rows, done.attempt.number) == (50, 1)
    waiting.assert_new()
    assert waiting.tried == [("copied", None, None)]
    said = [event.text for event in heard if type(event).__name__ == "Noticed"]
    assert any("synchronous replication" in text for text in said), said


def cut_behind_commit() -> proxies.Rule:
    """Let COMMIT arrive, and cut the connection then: the server is still at it."""
    commits = Commits()

    def rule(frame: Frame) -> None:
        if commits.asked(frame) and frame.link == 1:
            raise Cut(frame.raw)

    return rule


@pytest.mark.parametrize("comes", [True, False], ids=["it comes", "it does not"])
@pytest.mark.one_of(2)
def test_a_connection_lost_while_commit_waits_for_a_standby(
    waiting: Sides,
    own: Server,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    *,
    comes: bool,
) -> None:
    """Nobody can see yet what will become of it, so it is waited for, whatever --wait-lock is."""
    monkeypatch.setattr(attempts, "SETTLE_COMMIT_SECONDS", 20.0 if comes else 1.0)
    between = proxy(waiting.dest.server, cut_behind_commit())
    options = {"dest": between.dsn(waiting.dest), "wait_lock": 0, "retries": 2}
    copying = Begun(functools.partial(waiting.copy, **options))
    eventually(lambda: committing(waiting.dest), what="COMMIT waits")

    if comes:
        blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        eventually(lambda: waiting.dest.scalar(blocked) == 1, what="its end is waited for")
        let_commit(own)
        assert copying.result().rows == 50
    else:
        error = copying.error()
        assert isinstance(error, CommitUnknown), error
        assert error.exit_code == 75
        ((pid,),) = committing(waiting.dest)
        assert f"has not ended there (backend {pid})" in (error.detail or "")
        assert waiting.held() == waiting.before
        let_commit(own)
    waiting.assert_new()
    assert waiting.tried == [("copied", None, None)]


# --- constraints that are looked at last ----------------------------------------------------------

DEFERRED = {
    "a foreign key": (
        "CREATE TABLE public.bodies (body text PRIMARY KEY);"
        "ALTER TABLE public.t ADD CONSTRAINT late FOREIGN KEY (body) REFERENCES public.bodies"
        " DEFERRABLE INITIALLY DEFERRED NOT VALID",
        "23503",
    ),
    "a unique one": (
        "UPDATE public.t SET id = 7 WHERE id = -3;"
        "ALTER TABLE public.t ADD CONSTRAINT late UNIQUE (id) DEFERRABLE INITIALLY DEFERRED",
        "23505",
    ),
    "an exclusion": (
        "ALTER TABLE public.t ADD CONSTRAINT late EXCLUDE USING btree (body WITH =)"
        " DEFERRABLE INITIALLY DEFERRED",
        "23P01",
    ),
}


@pytest.mark.parametrize(("constraint", "code"), DEFERRED.values(), ids=DEFERRED.keys())
def test_a_constraint_that_fails_at_commit_is_a_failure(
    kept_source: Database, kept_dest: Database, constraint: str, code: str
) -> None:
    sides = tables(kept_source, kept_dest, rows_of(50))
    kept_dest.execute(constraint)
    sides.before = sides.held()
    heard: list[str] = []

    with pytest.raises(CopyFailed, match="constraint") as caught:
        sides.copy(retries=3, listener=lambda event: heard.append(type(event).__name__))

    error = caught.value
    assert (error.exit_code, error.side, error.sqlstate) == (1, "dest", code)
    assert "constraint late" in (error.detail or "")
    assert Committing.__name__ in heard
    assert "Retried" not in heard
    sides.assert_old()
    assert sides.tried == [("failed", "dest", code)]
    kept_dest.execute("ALTER TABLE public.t DROP CONSTRAINT late")
    assert sides.copy().rows == 50
    sides.assert_new()


def test_a_failure_at_commit_is_told_without_a_warning_of_our_own_making(
    kept_source: Database, kept_dest: Database, bare_run: Command
) -> None:
    """What becomes of the attempt is told to the ledger in a transaction that is none of theirs."""
    sides = tables(kept_source, kept_dest, rows_of(50))
    constraint, code = DEFERRED["a foreign key"]
    kept_dest.execute(constraint)
    env = {"COPYPIPE_SOURCE": sides.source.dsn, "COPYPIPE_DEST": sides.dest.dsn}

    done = bare_run("copy", "t", "--day", DAY, env=env)

    assert (done.code, done.out) == (1, "")
    assert f"DETAIL:  SQLSTATE {code}" in done.err
    assert "WARNING" not in done.err


# --- networks that lose all -----------------------------------------------------------------------

# Of 198.18.0.0/15, which is for such networks ("Benchmarking", RFC 2544).
NETWORKS = [f"198.{18 + n // 256}.{n % 256}" for n in range(512)]


@dataclass
class Link:
    """A cable between this machine and a namespace."""

    namespace: str
    here: str
    there: str
    address: str

    def lose(self) -> None:
        """Lose every packet, in both directions, and tell nobody."""
        _ip("tc", "qdisc", "replace", "dev", self.here, "root", "blackhole")
        _ip("tc", "-n", self.namespace, *_qdisc("replace", self.there), "blackhole")

    def pull(self) -> None:
        """Pull the cable, which both ends can see."""
        _ip("ip", "link", "set", self.here, "down")

    def mend(self) -> None:
        for words in (_qdisc("del", self.here), ("-n", self.namespace, *_qdisc("del", self.there))):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("tc", *words)
        _ip("ip", "link", "set", self.here, "up")


def _qdisc(verb: str, device: str) -> tuple[str, ...]:
    return ("qdisc", verb, "dev", device, "root")


def _ip(program: str, *words: str) -> None:
    path = shutil.which(program, path=f"{os.defpath}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([path, *words], check=True, capture_output=True, text=True)


@dataclass
class Namespace:
    """A network of its own, with a link for each side."""

    name: str
    links: dict[str, Link]

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before the words of a command that shall run there."""
        path = shutil.which("ip", path=f"{os.defpath}:/usr/sbin:/sbin")
        return (str(path), "netns", "exec", self.name)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Yield a namespace with two links; skips where nobody may make one."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")
    token = secrets.token_hex(3)
    name = f"copypipe-{token}"
    with contextlib.ExitStack() as cleanup:
        try:
            _ip("ip", "netns", "add", name)
            cleanup.callback(_ip, "ip", "netns", "del", name)
            links = {}
            for side, network in zip(("source", "dest"), _free_networks(), strict=False):
                link = Link(name, f"cp{token}{side[0]}h", f"cp{token}{side[0]}n", f"{network}.1")
                peer = ("type", "veth", "peer", "name", link.there, "netns", name)
                _ip("ip", "link", "add", link.here, *peer)
                cleanup.callback(_ip, "ip", "link", "del", link.here)
                _ip("ip", "addr", "add", f"{link.address}/30", "dev", link.here)
                _ip("ip", "link", "set", link.here, "up")
                _ip("ip", "-n", name, "addr", "add", f"{network}.2/30", "dev", link.there)
                _ip("ip", "-n", name, "link", "set", link.there, "up")
                links[side] = link
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace here: {error.stderr.strip()}")
        yield Namespace(name, links)


def _free_networks() -> list[str]:
    return [NETWORKS[secrets.randbelow(256)], NETWORKS[256 + secrets.randbelow(256)]]


@dataclass
class Remote:
    """A copy by a process in the namespace, from servers that it reaches through proxies alone."""

    sides: Sides
    namespace: Namespace
    proxies: dict[str, Proxy]
    command: Command

    @property
    def link(self) -> Link:
        return self.namespace.links["dest"]

    def start(self, *words: str) -> Process:
        databases = {"source": self.sides.source, "dest": self.sides.dest}
        env = {
            f"COPYPIPE_{side.upper()}": self.proxies[side].dsn(database, connect_timeout=3)
            for side, database in databases.items()
        }
        return self.command.start(
            *("copy", "t", "--day", DAY, "--progress", "none", *words),
            env=env,
            prefix=self.namespace.prefix,
        )

    def when(
        self, reached: Callable[[Frame], bool], do: Callable[[], None], *, arrives: bool = True
    ) -> None:
        """Do something to the network at a message of the copy's connection to the dest."""
        done = False

        def rule(frame: Frame) -> bytes | None:
            nonlocal done
            if done or frame.link != 1 or not reached(frame):
                return None
            done = True
            do()
            return None if arrives else b""

        self.proxies["dest"].rule = rule

    def mend(self) -> None:
        """Have packets arrive again; servers have noticed that nobody was there (keepalives)."""
        self.link.mend()
        for proxy in self.proxies.values():
            for number in range(1, proxy.links + 1):
                proxy.drop(number)

    def assert_a_rerun_succeeds(self) -> None:
        recorded = self.sides.recorded
        self.proxies["dest"].rule = proxies.unchanged
        done = self.start("--retries", "0").wait()
        assert done.code == 0, done.err
        self.sides.assert_new(recorded=recorded + 1)


@pytest.fixture
def remote(
    kept_source: Database,
    kept_dest: Database,
    namespace: Namespace,
    bare_run: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Remote]:
    """Yield a copy whose connections go over the links."""
    sides = tables(kept_source, kept_dest, MUCH)
    with contextlib.ExitStack() as cleanup:
        made = {}
        for side, link in namespace.links.items():
            server = getattr(sides, side).server
            monkeypatch.setattr(proxies, "HOST", link.address)
            made[side] = Proxy(server.host, server.port)
            cleanup.callback(made[side].close)
        yield Remote(sides, namespace, made, bare_run)


def planning(frame: Frame) -> bool:
    return frame.sender == "client" and frame.body.startswith(b"SELECT pg_catalog.to_regclass")


def streaming(frame: Frame) -> bool:
    return frame.sender == "client" and frame.kind == b"d" and frame.sent > 1_000_000


def committing_now() -> Callable[[Frame], bool]:
    return Commits().asked


def test_a_dest_that_fell_silent_is_not_waited_for_again(
    kept_source: Database, kept_dest: Database, proxy: Callable[..., Proxy]
) -> None:
    """--stall-timeout is what the run may take: the ledger is not worth a connection's timeout."""
    sides = tables(kept_source, kept_dest, MUCH)

    def rule(frame: Frame) -> None:
        if frame.link == 1 and streaming(frame):
            raise Cut(ending="dead")

    between = proxy(kept_dest.server, rule)
    began = time.monotonic()
    with pytest.raises(TransientError, match="dest: nothing came for 1 s") as caught:
        sides.copy(dest=between.dsn(kept_dest), stall_timeout=0.6)
    took = time.monotonic() - began
    between.close()

    assert caught.value.exit_code == 5
    assert took < 5
    sides.assert_old()
    assert sides.copy().rows == MANY
    sides.assert_new()


LOST = {
    "plan": planning,
    "stream": streaming,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lose", "pull"])
@pytest.mark.parametrize("reached", LOST.values(), ids=LOST.keys())
def test_a_network_that_loses_the_dest_ends_the_run(
    remote: Remote, reached: Callable[[Frame], bool], how: str
) -> None:
    remote.when(reached, getattr(remote.link, how))

    done = remote.start("--stall-timeout", "2s", "--retries", "0").wait()

    assert (done.code, done.out) == (5, ""), done.err
    assert "ERROR:  dest: nothing came for 2 s\n" in done.err
    assert done.seconds < 8
    remote.mend()
    remote.sides.assert_old()
    remote.assert_a_rerun_succeeds()


@pytest.mark.slow
def test_a_network_that_comes_back_is_tried_again(remote: Remote) -> None:
    remote.when(streaming, remote.link.lose)
    process = remote.start("--stall-timeout", "2s", "--retries", "5", "--retry-delay", "500ms")
    eventually(lambda: remote.proxies["source"].links > 1, seconds=20, what="it is tried again")
    remote.mend()

    done = process.wait()

    assert done.code == 0, done.err
    remote.sides.assert_new()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrives", "code"), [(True, 0), (False, 5)], ids=["committed", "not committed"]
)
def test_a_commit_in_a_network_that_comes_back_is_settled(
    remote: Remote, *, arrives: bool, code: int
) -> None:
    lost = threading.Event()

    def lose() -> None:
        remote.link.lose()
        lost.set()

    remote.when(committing_now(), lose, arrives=arrives)
    process = remote.start("--stall-timeout", "2s", "--retries", "0")
    assert lost.wait(20)
    time.sleep(5)  # until it settles
    remote.mend()
    done = process.wait()

    assert done.code == code, done.err
    if arrives:
        remote.sides.assert_new()
    else:
        remote.sides.assert_old()
    remote.assert_a_rerun_succeeds()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_a_commit_in_a_network_that_stays_away_is_unknown(remote: Remote, *, arrives: bool) -> None:
    """It is looked for during a minute."""
    remote.when(committing_now(), remote.link.lose, arrives=arrives)

    done = remote.start("--stall-timeout", "2s").wait(150)

    assert (done.code, done.out) == (75, ""), done.err
    assert 55 < done.seconds < 80
    assert "Run it again, which settles it: copypipe copy t" in done.err
    remote.mend()
    if arrives:
        remote.sides.assert_new()
    else:
        remote.sides.assert_old()
    remote.assert_a_rerun_succeeds()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_network_that_loses_the_dest_ends_the_run_without_a_limit_too(remote: Remote) -> None:
    """After 30 s the dest is asked what it does, and five times in a row nobody answers."""
    remote.when(streaming, remote.link.lose)

    done = remote.start("--retries", "0").wait(300)

    assert (done.code, done.out) == (5, ""), done.err
    assert "ERROR:  dest: " in done.err
    assert done.seconds < 200
    remote.mend()
    remote.sides.assert_old()
    remote.assert_a_rerun_succeeds()
