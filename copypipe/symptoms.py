"""What a person should know of two servers before copying: facts in, findings out.

Nothing is asked here. A `problem` would make a copy fail; a `warning` may, or is a risk; a `note`
explains what a copy will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from copypipe.errors import CopypipeError, Side
from copypipe.ledger import Ledger
from copypipe.tables import Index, Table

Mark = Literal["ok", "note", "warning", "problem"]
Where = Literal["client", "source", "dest", "both"]

# The newest major that copypipe was made for; `servers` knows the oldest.
NEWEST_MAJOR = 18

# What is looked at of a server's parameters.
SETTINGS = (
    "statement_timeout",
    "transaction_timeout",
    "idle_session_timeout",
    "old_snapshot_threshold",
    "max_standby_streaming_delay",
    "hot_standby_feedback",
    "synchronous_commit",
    "synchronous_standby_names",
    "fsync",
    "session_replication_role",
    "TimeZone",
)

# The first minor releases of libpq without CVE-2025-1094; majors from 18 on never had it.
MENDED_LIBPQ = {13: 19, 14: 16, 15: 11, 16: 7, 17: 3}

# A clock that differs by less says nothing: an answer took about as long.
CLOCK_SECONDS = 1.0
# By so much the wrong day may be copied around midnight, and `--settle` is no long time any more.
WRONG_CLOCK_SECONDS = 60.0

# A replica that is behind by so much is worth a look before a large copy adds to it.
LAG_SECONDS = 30.0

# A copy takes one connection on each side, and another one where a server falls silent.
CONNECTIONS = 2

# pg_settings.source, as a person would say where a value comes from.
_ORIGINS = {
    "user": "ALTER ROLE",
    "database": "ALTER DATABASE",
    "database user": "ALTER ROLE .. IN DATABASE",
    "configuration file": "postgresql.conf",
    "client": "the connection's options",
    "command line": "the server's command line",
    "global": "ALTER ROLE ALL",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    where: Where
    check: str
    """What was looked at, a word for scripts."""
    mark: Mark
    text: str
    hint: str | None = None


class Facts(NamedTuple):
    """What a server tells (`statements.checkups.facts`)."""

    version: str
    role: str
    is_superuser: bool
    database: str
    encoding: str
    in_recovery: bool
    server_address: str | None
    """None over a unix socket."""
    server_port: int | None
    pid: int
    tls: str | None
    gss_encrypted: bool
    method: str | None
    """How it was authenticated, and as whom; None for not at all (trust), or before 16."""
    sees_others: bool
    free_connections: int
    role_limit: int | None
    database_limit: int | None
    room_for_locks: int


class Setting(NamedTuple):
    """A parameter as the role's own sessions have it."""

    value: str
    unit: str
    source: str
    """pg_settings.source."""

    @property
    def milliseconds(self) -> int:
        """Return what it is, where it is a time in milliseconds or minutes."""
        return int(self.value) * {"min": 60_000, "s": 1000}.get(self.unit, 1)

    @property
    def shown(self) -> str:
        """Return its value and where it was set."""
        origin = _ORIGINS.get(self.source, self.source)
        value = f"{self.value}{self.unit}" if self.unit else self.value
        return f"{value} ({origin})"


@dataclass(frozen=True, slots=True)
class Link:
    """How the client is connected."""

    host: str
    address: str
    """The IP address; empty over a unix socket."""
    port: int
    sslmode: str
    used_password: bool
    used_gssapi: bool
    pid: int
    """The server's process, as whoever answered told at the beginning."""
    other_pid: int
    """The process of a second transaction."""
    clock: float
    """By how many seconds the server's clock is ahead of ours."""
    uncertain: float
    """How long the question took."""

    @property
    def is_socket(self) -> bool:
        """Return whether it is a unix socket."""
        return self.host.startswith(("/", "@"))

    @property
    def is_local(self) -> bool:
        """Return whether nothing leaves this machine."""
        return self.is_socket or self.address == "::1" or self.address.startswith("127.")


class Standby(NamedTuple):
    """How far a standby is."""

    seconds: float | None
    """Since the newest commit that it has replayed; None for none."""
    replayed_all: bool
    """It has replayed all that it has received."""
    is_paused: bool


class Replica(NamedTuple):
    """A replica that is attached."""

    name: str
    state: str | None
    """None where the role may not see it."""
    sync_state: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Examined:
    """All that one side told."""

    side: Side
    major: int
    facts: Facts
    link: Link
    settings: Mapping[str, Setting]
    replicas: tuple[Replica, ...]
    standby: Standby | None


def problem(where: Where, check: str, error: CopypipeError, mark: Mark = "problem") -> Finding:
    """Tell of an error that a copy would end with."""
    text = error.message.removeprefix(f"{error.side}: ")
    detail = f" {error.detail}" if error.detail else ""
    return Finding(where, check, mark, f"{text}.{detail}", error.hint)


def of_libpq(version: int) -> Finding:
    """Tell of the client's library, whose number is major * 10000 + minor."""
    major, minor = divmod(version, 10000)
    text = f"libpq {major}.{minor}"
    if minor < MENDED_LIBPQ.get(major, 0):
        text += ", which quotes wrongly what is no text in its encoding (CVE-2025-1094)"
        hint = f"Use {major}.{MENDED_LIBPQ[major]} or newer."
        return Finding("client", "libpq", "warning", text, hint)
    return Finding("client", "libpq", "ok", text)


def of_side(examined: Examined) -> Iterator[Finding]:
    """Tell what is to be known of one side."""
    side, facts, link = examined.side, examined.facts, examined.link
    yield _version(examined)
    yield _encryption(side, facts, link)
    yield _authentication(examined)
    yield _role(side, facts)
    yield Finding(side, "database", "ok", f"database {facts.database}, encoding {facts.encoding}")
    yield _between(side, facts, link)
    yield _clock(side, link)
    yield from _recovery(examined)
    yield from _replicas(examined)
    yield from _timeouts(examined)
    yield from _connections(side, facts)
    yield from _of_source(examined) if side == "source" else _of_dest(examined)


def _version(examined: Examined) -> Finding:
    text = f"PostgreSQL {examined.facts.version}"
    if examined.major > NEWEST_MAJOR:
        text += f", newer than what copypipe was made for (14 to {NEWEST_MAJOR})"
        return Finding(examined.side, "version", "warning", text)
    return Finding(examined.side, "version", "ok", text)


def _encryption(side: Side, facts: Facts, link: Link) -> Finding:
    if link.is_socket:
        return Finding(side, "encryption", "ok", f"over the unix socket in {link.host}")
    if facts.gss_encrypted:
        return Finding(side, "encryption", "ok", "encrypted by GSSAPI")
    if facts.tls is None:
        text = f"not encrypted (sslmode {link.sslmode})"
        if link.is_local:
            return Finding(side, "encryption", "ok", f"{text}, on this machine")
        return Finding(
            side,
            "encryption",
            "warning",
            f"{text}: rows can be read, and changed, on the way",
            "Use sslmode=verify-full with sslrootcert.",
        )
    text = f"encrypted by {facts.tls} (sslmode {link.sslmode})"
    if link.sslmode.startswith("verify-"):
        return Finding(side, "encryption", "ok", text)
    return Finding(
        side,
        "encryption",
        "note",
        f"{text}: nobody checks that it is this server who answers",
        "Use sslmode=verify-full with sslrootcert.",
    )


def _authentication(examined: Examined) -> Finding:
    side, facts, link = examined.side, examined.facts, examined.link
    method = facts.method.partition(":")[0] if facts.method else None
    if method in ("md5", "password"):
        what = "MD5, which is deprecated" if method == "md5" else "a password in clear"
        mark: Mark = "warning" if method == "md5" or not (link.is_local or facts.tls) else "note"
        return Finding(
            side, "authentication", mark, f"logged in by {what}", "Use scram-sha-256 (pg_hba.conf)."
        )
    if method is not None:
        return Finding(side, "authentication", "ok", f"logged in by {method}")
    if link.used_password:
        text = "logged in by a password (by which method, the server does not tell)"
        return Finding(side, "authentication", "ok", text)
    if link.used_gssapi:
        return Finding(side, "authentication", "ok", "logged in by GSSAPI")
    if examined.major >= 16:
        text = "nobody was asked for a password (trust)"
        return Finding(side, "authentication", "note" if link.is_local else "warning", text)
    text = "logged in without a password (trust, peer or a certificate: the server does not tell)"
    return Finding(side, "authentication", "note", text)


def _role(side: Side, facts: Facts) -> Finding:
    if not facts.is_superuser:
        return Finding(side, "role", "ok", f"role {facts.role}")
    return Finding(
        side,
        "role",
        "warning",
        f"role {facts.role} is a superuser and may do more than a copy needs",
        "copypipe grants prints what another role needs.",
    )


def _between(side: Side, facts: Facts, link: Link) -> Finding:
    """Tell whether something seems to stand in between; nothing can tell for sure."""
    if facts.pid != link.other_pid:
        text = "looks like a pooler in between: two transactions had two server processes"
    elif link.pid != facts.pid:
        text = (
            f"looks like a pooler in between: process {link.pid} was promised, {facts.pid} answers"
        )
    elif link.is_socket and facts.server_port is None:
        return Finding(side, "between", "ok", "no sign of a pooler in between")
    elif link.is_socket:
        text = "looks like a proxy or pooler in between: the server was not reached by that socket"
    elif facts.server_port is None:
        text = "looks like a proxy or pooler in between: the server was reached by a unix socket"
    elif (facts.server_port, facts.server_address) != (link.port, link.address):
        text = (
            "looks like a proxy, a tunnel or a container in between: connected to "
            f"{link.address} port {link.port}, the server says {facts.server_address} port "
            f"{facts.server_port}"
        )
    else:
        return Finding(side, "between", "ok", "no sign of a pooler or proxy in between")
    return Finding(
        side, "between", "note", text, "Time limits of its own may cut a long copy; look there too."
    )


def _clock(side: Side, link: Link) -> Finding:
    text = f"its clock is {_ahead(link.clock)} this machine's"
    return Finding(side, "clock", _of_clock(link.clock, link.uncertain), text)


def _ahead(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds >= 0 else 'behind'}"


def _of_clock(seconds: float, uncertain: float) -> Mark:
    certain = abs(seconds) - uncertain
    if certain < CLOCK_SECONDS:
        return "ok"
    return "note" if certain < WRONG_CLOCK_SECONDS else "warning"


def _recovery(examined: Examined) -> Iterator[Finding]:
    standby, side = examined.standby, examined.side
    if standby is None:
        return
    if side == "dest":
        yield Finding(
            side,
            "recovery",
            "problem",
            "the server is a standby: it takes no writes",
            "Connect to its primary.",
        )
        return
    late = "has replayed no commit yet"
    if standby.seconds is not None:
        late = f"its newest commit is {standby.seconds:.0f} s old"
        late += ", all that came is replayed" if standby.replayed_all else ", and more has come"
    mark: Mark = "note" if standby.replayed_all and not standby.is_paused else "warning"
    yield Finding(
        side,
        "recovery",
        mark,
        f"a standby: {late}{'; replay is paused' if standby.is_paused else ''}",
        "A slice is sealed when a commit later than its end, by --settle, was replayed.",
    )
    delay, feedback = (
        examined.settings.get("max_standby_streaming_delay"),
        examined.settings.get("hot_standby_feedback"),
    )
    if delay and int(delay.value) >= 0 and feedback and feedback.value != "on":
        yield Finding(
            side,
            "max_standby_streaming_delay",
            "warning",
            f"max_standby_streaming_delay is {delay.shown}, hot_standby_feedback is off: a copy "
            "that stands in the way of replay for longer is cancelled, and tried again",
        )


def _replicas(examined: Examined) -> Iterator[Finding]:
    side, replicas = examined.side, examined.replicas
    if not replicas:
        return
    shown = [
        f"{each.name or 'unnamed'} ({each.state}, {each.sync_state}"
        + (f", {each.seconds:.0f} s behind)" if each.seconds is not None else ")")
        for each in replicas
        if each.state is not None
    ]
    hidden = len(replicas) - len(shown)
    if hidden:
        shown.append(f"{hidden} that the role may not see (pg_read_all_stats)")
    late = any((each.seconds or 0) > LAG_SECONDS for each in replicas)
    yield Finding(
        side, "replicas", "warning" if late else "ok", f"replicas attached: {', '.join(shown)}"
    )


def _timeouts(examined: Examined) -> Iterator[Finding]:
    side, settings = examined.side, examined.settings
    cut = 0
    for name, what in (
        ("statement_timeout", "a copy is cut that takes longer"),
        ("transaction_timeout", "a slice whose transaction takes longer is cut"),
    ):
        setting = settings.get(name)
        if setting is not None and setting.milliseconds > 0:
            cut += 1
            yield Finding(
                side,
                name,
                "warning",
                f"{name} is {setting.shown}: {what}",
                f"Give --{side}-set {name}=0, or ALTER ROLE .. SET {name} = 0.",
            )
    idle = settings.get("idle_session_timeout")
    if side == "source" and idle is not None and idle.milliseconds > 0:
        yield Finding(
            side,
            "idle_session_timeout",
            "note",
            f"idle_session_timeout is {idle.shown}: a session that has nothing to do for longer is "
            "ended, and connected to once more",
        )
    old = settings.get("old_snapshot_threshold")
    if side == "source" and old is not None and int(old.value) >= 0:
        cut += 1
        yield Finding(
            side,
            "old_snapshot_threshold",
            "warning",
            f"old_snapshot_threshold is {old.shown}: a copy that takes longer may fail",
        )
    if not cut:
        yield Finding(side, "timeouts", "ok", "no time limit of the server cuts a long copy")


def _connections(side: Side, facts: Facts) -> Iterator[Finding]:
    free = facts.free_connections
    mark: Mark = "ok" if free >= CONNECTIONS else "warning"
    yield Finding(side, "connections", mark, f"{free} connections are free")
    for limit, of in (
        (facts.role_limit, f"the role {facts.role}"),
        (facts.database_limit, f"the database {facts.database}"),
    ):
        if limit is not None:
            yield Finding(
                side,
                "connections",
                "note" if limit > CONNECTIONS else "warning",
                f"{of} may have {limit} at a time; a copy takes one, and another where the "
                "server falls silent",
            )


def _of_source(examined: Examined) -> Iterator[Finding]:
    facts, zone = examined.facts, examined.settings.get("TimeZone")
    if zone is not None:
        is_utc = zone.value.upper() in ("UTC", "ETC/UTC", "GMT")
        text = f"TimeZone is {zone.value}"
        if not is_utc:
            text += ", days are counted in UTC"
        yield Finding(
            "source",
            "timezone",
            "ok" if is_utc else "note",
            text,
            None if is_utc else f"Give --timezone {zone.value} if its days are meant.",
        )
    if examined.standby is None and not facts.sees_others:
        yield Finding(
            "source",
            "pg_read_all_stats",
            "note",
            "the role may not see the transactions of other roles: where there are any, a slice "
            "is open until --settle after its end",
            "GRANT pg_read_all_stats TO the role.",
        )


def _of_dest(examined: Examined) -> Iterator[Finding]:
    settings = examined.settings
    names, level = settings.get("synchronous_standby_names"), settings.get("synchronous_commit")
    if level is not None and level.value == "off":
        yield Finding(
            "dest",
            "synchronous_commit",
            "note",
            f"synchronous_commit is {level.shown}: raised to on for what is copied",
        )
    if names is not None and names.value and level is not None and level.value != "local":
        attached = any(each.sync_state in ("sync", "quorum") for each in examined.replicas)
        hidden = any(each.state is None for each in examined.replicas)
        text = f"COMMIT waits for a standby (synchronous_standby_names {names.shown})"
        lost = not attached and not hidden
        yield Finding(
            "dest",
            "synchronous_standby_names",
            "warning" if lost else "note",
            f"{text}, and none is attached: it would wait for ever" if lost else text,
        )
    if (fsync := settings.get("fsync")) is not None and fsync.value == "off":
        yield Finding(
            "dest", "fsync", "warning", "fsync is off: what was committed may not survive a crash"
        )
    role = settings.get("session_replication_role")
    if role is not None and role.value == "replica":
        yield Finding(
            "dest",
            "session_replication_role",
            "warning",
            f"session_replication_role is {role.shown}: triggers and foreign keys are skipped",
        )
    yield Finding(
        "dest",
        "locks",
        "ok",
        f"the table of locks has room for {examined.facts.room_for_locks}; a range takes one for "
        "each of its days",
    )


def of_ledger(kept: Ledger) -> Finding:
    """Tell whether what is copied will be recorded."""
    if kept.state == "ready":
        return Finding("dest", "ledger", "ok", "the ledger (schema copypipe) can be used")
    if kept.state == "missing":
        return Finding("dest", "ledger", "ok", "there is no ledger yet; the first copy makes it")
    return Finding(
        "dest",
        "ledger",
        "warning",
        f"the ledger cannot be used: {kept.problem}. Copies are not recorded, --mode append is "
        "refused",
        "copypipe grants prints what the role needs.",
    )


def of_both(source: Examined, dest: Examined) -> Iterator[Finding]:
    """Tell how the two sides fit each other."""
    here, there = source.facts.encoding, dest.facts.encoding
    if here == there != "SQL_ASCII":
        text, mark = f"both keep text in {here}", "ok"
    elif there == "UTF8" and here != "SQL_ASCII":
        text, mark = f"{here} at the source, UTF8 at the dest, which holds every letter", "ok"
    elif "SQL_ASCII" in (here, there):
        text, mark = (
            f"{here} at the source, {there} at the dest: SQL_ASCII is read as UTF-8, and bytes "
            "that are none fail a copy",
            "warning",
        )
    else:
        text, mark = (
            f"{here} at the source, {there} at the dest: a letter that {there} lacks fails a copy",
            "warning",
        )
    yield Finding("both", "encodings", "ok" if mark == "ok" else "warning", text)
    apart = source.link.clock - dest.link.clock
    uncertain = source.link.uncertain + dest.link.uncertain
    text = f"the source's clock is {_ahead(apart)} the dest's"
    yield Finding("both", "clock", _of_clock(apart, uncertain), text)


# ------------------------------------------------------------------------------------ a table


@dataclass(frozen=True, slots=True)
class Seen:
    """A table as one side tells of it."""

    table: Table
    by: str | None
    indexes: tuple[Index, ...]
    unlogged: bool
    partitions: int
    bytes: int


def of_table(side: Side, seen: Seen, *, in_recovery: bool) -> Iterator[Finding]:
    """Tell what kind of table it is, and how its slices are found."""
    table = seen.table
    parts = f" of {seen.partitions} partitions" if table.kind == "p" else ""
    rows = f", about {table.estimated_rows} rows" if table.estimated_rows >= 0 else ""
    yield Finding(
        side, "table", "ok", f"{table.full_name} is a {table.kind_name}{parts}, {_size(seen)}{rows}"
    )
    if seen.unlogged and side == "source":
        mark: Mark = "problem" if in_recovery else "note"
        text = "is unlogged, which a standby does not have" if in_recovery else "is unlogged"
        yield Finding(side, "unlogged", mark, f"{table.full_name} {text}")
    elif seen.unlogged:
        yield Finding(
            side,
            "unlogged",
            "warning",
            f"{table.full_name} is unlogged: a crash of the dest empties it, and the ledger would "
            "still tell of its slices",
        )
    if table.has_triggers and side == "dest":
        yield Finding(
            side,
            "triggers",
            "warning",
            f"triggers of {table.full_name} will run; a copy fails where they drop, keep or move "
            "rows",
        )
    column = next((each for each in table.columns if each.name == seen.by), None)
    if column is None or table.kind not in "rpm":
        return
    if seen.indexes:
        text = f"index {seen.indexes[0].name} can serve slices by {seen.by}"
        yield Finding(side, "index", "ok", text)
    else:
        yield Finding(
            side,
            "index",
            "warning",
            f"no index on {seen.by}: each slice scans the whole table ({_size(seen)})",
            f"CREATE INDEX ON {table.full_name} ({seen.by}).",
        )


def _size(seen: Seen) -> str:
    return f"{seen.bytes / 1024 / 1024:.1f} MB"
