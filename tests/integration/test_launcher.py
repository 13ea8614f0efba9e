"""Real servers start, restart and stop, and nothing of them is left, however their starter ends."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from copypipe import launcher
from copypipe.errors import LauncherError
from plugins.canary import CANARY

SECONDS_TO_END = 30

# Starts a server, says where it is, and waits for its end.
STARTER = """
import sys, time
from pathlib import Path
from copypipe import launcher
binaries = launcher.Binaries(Path(sys.argv[1]), None, "", 0)
with launcher.launch(binaries, name="orphan") as server:
    print(server.pid, server.socket_dir, flush=True)
    time.sleep(600)
"""


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS_TO_END
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Somebody's dead child, if nobody waits for it, still has a pid.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def processes_naming(folder: Path) -> list[str]:
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if str(folder) in line]


def major(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.info.server_version // 10000


def assert_nothing_left(pid: int, folder: Path) -> None:
    assert wait_until(lambda: not lives(pid)), "the postmaster lives on"
    assert wait_until(lambda: not folder.exists()), f"{folder} is left"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Yield a folder for TMPDIR that every user may enter; pytest's own is too deep for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cp-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(binaries: launcher.Binaries) -> Iterator[launcher.Server]:
    with launcher.launch(binaries, password=CANARY, settings={"work_mem": "7MB"}) as launched:
        yield launched


def test_answers_on_tcp_and_on_the_socket(server: launcher.Server) -> None:
    assert server.host == "127.0.0.1"
    assert major(server.dsn()) == server.binaries.major
    assert major(server.dsn(socket=True)) == server.binaries.major


def test_settings_reach_the_server(server: launcher.Server) -> None:
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)


@pytest.mark.parametrize("socket", [False, True])
def test_password_is_needed(server: launcher.Server, socket: bool) -> None:
    without = server.dsn(socket=socket, password=False)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(without, passfile="/dev/null", password="wrong")
    assert CANARY not in repr(server)
    assert CANARY not in without


def test_password_is_in_no_file(server: launcher.Server) -> None:
    files = [path for path in server.socket_dir.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_without_a_password_everybody_is_trusted(binaries: launcher.Binaries) -> None:
    with launcher.launch(binaries) as server:
        assert "password" not in server.dsn()
        assert major(server.dsn()) == binaries.major


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restarts_on_the_same_port_with_its_data(
    server: launcher.Server, mode: launcher.StopMode
) -> None:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT %s AS a", [mode])
    old = server.pid
    server.stop(mode)
    assert not server.running
    with pytest.raises(LauncherError, match="not running"):
        _ = server.pid
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn())
    server.start()
    assert server.pid != old
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT a FROM kept").fetchone() == (mode,)
        connection.execute("DROP TABLE kept")


def test_starting_a_running_server_is_refused(server: launcher.Server) -> None:
    with pytest.raises(LauncherError, match="running already"):
        server.start()


def test_stopping_twice_is_fine(server: launcher.Server) -> None:
    server.stop()
    server.stop()
    server.start()


def test_runs_unprivileged(server: launcher.Server) -> None:
    # PostgreSQL itself refuses to run as root; here: as whom it runs instead.
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT pg_backend_pid() > 0").fetchone() == (True,)
    if os.geteuid() != 0:
        assert Path(f"/proc/{server.pid}").stat().st_uid == os.geteuid()
        return
    uid_map = Path(f"/proc/{server.pid}/uid_map").read_text().split()
    uid = Path(f"/proc/{server.pid}").stat().st_uid
    assert uid != 0 or uid_map[0] != "0", "neither another user nor a user namespace"


def test_works_from_another_thread(binaries: launcher.Binaries) -> None:
    majors = []

    def start() -> None:
        with launcher.launch(binaries) as server:
            majors.append(major(server.dsn()))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert majors == [binaries.major]


def test_nothing_is_left_after_an_exception(binaries: launcher.Binaries) -> None:
    def fail() -> None:
        with launcher.launch(binaries) as server:
            started.append((server.pid, server.socket_dir))
            raise ZeroDivisionError

    started: list[tuple[int, Path]] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    ((pid, folder),) = started
    assert not lives(pid)
    assert not folder.exists()


def test_nothing_is_left_when_it_does_not_start(
    binaries: launcher.Binaries, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    with (
        pytest.raises(LauncherError, match="did not start") as raised,
        launcher.launch(binaries, settings={"no_such_setting": "1"}),
    ):
        pass
    assert "no_such_setting" in raised.value.detail
    assert not list(short_folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.one_of(2)
def test_nothing_is_left_after_a_signal(
    binaries: launcher.Binaries, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(binaries.bindir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starter:
        pid, folder = starter.stdout.readline().split()
        starter.send_signal(number)
        starter.wait(SECONDS_TO_END)
    assert_nothing_left(int(pid), Path(folder))


@pytest.mark.parametrize(
    "seconds", [0.2, 0.6, 1.0, *(pytest.param(n, marks=pytest.mark.slow) for n in (0.4, 0.8))]
)
@pytest.mark.one_of(2)
def test_nothing_is_left_when_killed_early(
    binaries: launcher.Binaries, short_folder: Path, seconds: float
) -> None:
    """A starter killed before its server is up, in initdb or start, leaves nothing either."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(binaries.bindir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(short_folder)},
    ) as starter:
        time.sleep(seconds)
        starter.kill()
    assert wait_until(lambda: not list(short_folder.iterdir())), list(short_folder.iterdir())
    assert wait_until(lambda: not processes_naming(short_folder)), processes_naming(short_folder)
