"""`tls_servers`: a pair of servers that encrypt, where a local installation can.

The embedded wheels are built without TLS, Debian's packages with it.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from copypipe import launcher
from plugins.command import eventually
from plugins.servers import Broken, Server, Servers, launch_one

CERTIFICATE = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")


@pytest.fixture(scope="session")
def tls_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Yield two running servers of one local installation that accept TLS."""
    found = launcher.find_local()
    if not found or not shutil.which("openssl"):
        pytest.skip("TLS needs a local installation of PostgreSQL, and openssl")
    made = _certificate(tmp_path_factory.mktemp("tls"))
    with contextlib.ExitStack() as stack:
        try:
            pair = {side: launch_one(stack, side, found[0]) for side in ("source", "dest")}
        except Broken as error:
            pytest.skip(f"no server with TLS: {error}")
        for server in pair.values():
            _encrypt(server, made)
        yield Servers(**pair, way="local, TLS")


def _certificate(folder: Path) -> tuple[Path, Path]:
    key, certificate = folder / "server.key", folder / "server.crt"
    subprocess.run(
        ["openssl", "req", *CERTIFICATE, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return key, certificate


def _encrypt(server: Server, files: tuple[Path, Path]) -> None:
    """Switch TLS on, and wait until it is: a server without it would be tested in plain."""
    assert server.launched, "only our own server has a folder to write to"
    folder = server.launched.data_dir
    owner = folder.stat()
    for file in files:
        copy = folder / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o600)  # the server refuses a key that others may read
        if os.geteuid() == 0:
            os.chown(copy, owner.st_uid, owner.st_gid)
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("SELECT pg_reload_conf()")
    eventually(lambda: _accepts(server), what=f"the {server.side} accepts TLS")


def _accepts(server: Server) -> bool:
    try:
        with server.connect(sslmode="require") as connection:
            return bool(connection.pgconn.ssl_in_use)
    except psycopg.OperationalError:
        return False
