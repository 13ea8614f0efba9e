"""Where a side is: connection strings, who said which part of an address, why nobody answers.

Connection strings are libpq's business; here they are only parsed to tell where each part came
from. libpq and psycopg repeat what they cannot use, and a password with an unquoted @ or / lands
in a host or a port, so their text is shown only once a server was named without doubt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from copypipe.errors import (
    ConnectionLost,
    CopypipeError,
    LoginRefused,
    PlanRefused,
    Side,
    TransientError,
    UsageError,
    printable,
)
from copypipe.requests import Endpoint

# A server that does not answer for this long is reported as unreachable, unless the connection
# string or PGCONNECT_TIMEOUT says otherwise. libpq alone would wait for ever.
CONNECT_SECONDS = 30

# The client notices within about a minute that a peer it waits for has vanished; the operating
# system's default is two hours. (30 s idle, then 3 probes, 10 s apart.)
KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}

_LOGIN = re.compile(
    r"password authentication failed|no password supplied|authentication failed"
    r"|role \"[^\"]*\" does not exist|role \"[^\"]*\" is not permitted to log in"
    r"|database \"[^\"]*\" does not exist|no pg_hba\.conf entry|pg_hba\.conf rejects"
)
_NO_CONNECT = re.compile(r"permission denied for database")
_ASKED = re.compile(r"connection to server (at|on socket) |connection timeout expired")
_PASSING = re.compile(
    r"too many clients|too many connections|remaining connection slots|starting up|shutting down"
    r"|recovery|not yet accepting connections|not in hot standby mode|is not read-only"
    r"|read-write|read-only|standby"
    # PgBouncer's words, of its server and of itself.
    r"|server login has been failing|server_login_retry|no more connections allowed"
    r"|query_wait_timeout|pgbouncer cannot connect to server"
)
_BROKEN = re.compile(r"unexpected eof|SSL SYSCALL error|[Cc]onnection reset|closed the connection")
_SERVICE = re.compile(r'definition of service "[^"]*" not found|service file "[^"]*" not found')

_PORTS = re.compile(r"\d*(,\d*)*")

_HINT = (
    "Write postgresql://USER@HOST:PORT/DB, host=HOST dbname=DB or service=NAME; "
    "special characters of a URI are written %XX."
)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an address and who said it."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a session is connected; printable, without a secret."""

    user: str
    host: str
    port: str
    dbname: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        """Return USER@HOST/DB, with the port where it is not 5432."""
        port = "" if self.port == "5432" else f":{self.port}"
        return printable(f"{self.user}@{self.host}{port}/{self.dbname}")


def parse(text: str, side: Side) -> dict[str, str]:
    """Return the parts of a connection string; raises UsageError without repeating any of it."""
    try:
        parts = {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except psycopg.Error:
        parts = {"port": "?"}
    # An unquoted / in a URI's password makes a port of what stands before it. (Several hosts have
    # several ports, and those that are not given are empty: "a,b:5433" has the ports ",5433".)
    if not _PORTS.fullmatch(parts.get("port", "5432")):
        raise _unusable(side)
    return parts


def has_password(endpoint: Endpoint, side: Side) -> bool:
    """Return whether the endpoint's own text holds a password."""
    return isinstance(endpoint.target, str) and "password" in parse(endpoint.target, side)


def parameters(given: Mapping[str, str], application_name: str) -> dict[str, str]:
    """Return what to connect with: what was given, and our keepalives, timeout and name."""
    chosen = {**KEEPALIVES, **given, "application_name": application_name}
    # A service file may set the timeout, and what stands here would win over that.
    set_elsewhere = {"service", "connect_timeout"} & given.keys()
    if not set_elsewhere and not {"PGCONNECT_TIMEOUT", "PGSERVICE"} & os.environ.keys():
        chosen["connect_timeout"] = str(CONNECT_SECONDS)
    return chosen


def of_connection(
    conn: psycopg.Connection[Any], endpoint: Endpoint, given: Mapping[str, str]
) -> Address:
    """Say where a connection goes and who said so, in libpq's order of precedence."""
    defaults = {option.keyword.decode(): option for option in pq.Conninfo.get_defaults()}
    info = conn.info
    actual = {
        "user": info.user,
        "host": info.host or info.hostaddr or "localhost",
        "port": str(info.port),
        "dbname": info.dbname,
    }
    parts = []
    for name, value in actual.items():
        option = defaults[name]
        default = option.val.decode() if option.val else ""
        environment = option.envvar.decode() if option.envvar else ""
        named = name in given or (name == "host" and "hostaddr" in given)
        if named or not isinstance(endpoint.target, str):
            origin = endpoint.origin
        elif "service" in given and value != default:
            origin = f"service {given['service']}"
        elif environment in os.environ:
            origin = environment
        else:
            origin = "libpq's default"
        parts.append(Part(name, value, origin))
    return Address(actual["user"], actual["host"], actual["port"], actual["dbname"], tuple(parts))


def unreachable(side: Side, error: psycopg.Error, given: Mapping[str, str]) -> CopypipeError:
    """Tell a server that says no from one that does not answer and from a string without sense.

    libpq keeps no SQLSTATE of a failed login, so the server's English text has to do. A server
    that speaks another language is reported as unreachable, with its words as the detail.
    """
    text = str(error)
    if service := _SERVICE.search(text):
        return UsageError(f"{side}: {printable(service[0])}", side=side)
    timed_out = isinstance(error, psycopg.errors.ConnectionTimeout)
    asked = timed_out or _ASKED.search(text) is not None
    if not asked and "failed to resolve host" not in text:
        return _unusable(side)
    detail = None if _may_hold_password(text, given) else printable(_shown(text, given))
    if asked and _NO_CONNECT.search(text):
        return PlanRefused(
            f"{side}: the role may not connect to the database",
            detail=detail,
            hint="GRANT CONNECT ON DATABASE .. TO the role.",
            side=side,
        )
    needs_password = error.pgconn is not None and error.pgconn.needs_password
    if asked and (needs_password or _LOGIN.search(text)):
        return LoginRefused(
            f"{side}: the server does not let this role in",
            detail=detail,
            hint="Check role, database and password (.pgpass, PGPASSWORD, a service file).",
            side=side,
        )
    broken = _BROKEN.search(text)  # in the middle of a TLS handshake, say
    if asked and ("FATAL" in text or " SSL" in text) and not (broken or _PASSING.search(text)):
        return LoginRefused(
            f"{side}: the server does not accept the connection", detail=detail, side=side
        )
    if asked and _PASSING.search(text):
        return TransientError(
            f"{side}: the server does not accept connections now", detail=detail, side=side
        )
    return ConnectionLost(
        f"{side}: the server cannot be reached",
        detail=detail,
        hint="Check host and port, and that the server is running.",
        side=side,
    )


def _unusable(side: Side) -> UsageError:
    return UsageError(
        f"the connection string of the {side} cannot be used",
        detail="It is not shown here, because it may hold a password.",
        hint=_HINT,
        side=side,
    )


def _may_hold_password(text: str, given: Mapping[str, str]) -> bool:
    """Return whether a part that libpq quotes may be a piece of a password or of a whole URI."""
    environment = (os.environ.get(name, "") for name in ("PGHOST", "PGPORT", "PGDATABASE"))
    quoted = [given.get(name, "") for name in ("host", "hostaddr", "port", "dbname")]
    return "://" in text or any("@" in part for part in (*quoted, *environment))


def _shown(text: str, given: Mapping[str, str]) -> str:
    password = given.get("password")
    return text.replace(password, "***") if password else text
