"""What follows from facts that throw-away servers do not have: poolers, standbys, wrong clocks."""

from dataclasses import replace
from typing import Any

import pytest

from copypipe.ledger import Ledger
from copypipe.symptoms import (
    Examined,
    Facts,
    Finding,
    Link,
    Replica,
    Setting,
    Standby,
    of_both,
    of_ledger,
    of_libpq,
    of_side,
)

FACTS = Facts(
    version="17.2",
    role="reader",
    is_superuser=False,
    database="shop",
    encoding="UTF8",
    in_recovery=False,
    server_address="10.0.0.5",
    server_port=5432,
    pid=100,
    tls=None,
    gss_encrypted=False,
    method="scram-sha-256:reader",
    sees_others=True,
    free_connections=50,
    role_limit=None,
    database_limit=None,
    room_for_locks=6400,
)
LINK = Link(
    host="db1",
    address="10.0.0.5",
    port=5432,
    sslmode="prefer",
    used_password=True,
    used_gssapi=False,
    pid=100,
    other_pid=100,
    clock=0.0,
    uncertain=0.001,
)
CAUGHT_UP = Standby(3.0, True, False)


def examined(side: Any = "source", major: int = 17, **changes: Any) -> Examined:
    """Return a side; changes are of its facts, its link or of itself."""
    facts = {k: v for k, v in changes.items() if k in Facts._fields}
    link = {k: v for k, v in changes.items() if k in Link.__slots__ and k not in facts}
    own = {k: v for k, v in changes.items() if k in Examined.__slots__}
    base = Examined(side, major, FACTS._replace(**facts), replace(LINK, **link), {}, (), None)
    return replace(base, **own)


def told(check: str, of: Examined) -> list[tuple[str, str]]:
    return [(f.mark, f.text) for f in of_side(of) if f.check == check]


def setting(value: str, unit: str = "", source: str = "configuration file") -> Setting:
    return Setting(value, unit, source)


@pytest.mark.parametrize(
    ("changes", "mark", "text"),
    [
        ({}, "warning", "not encrypted (sslmode prefer): rows can be read, and changed, on the"),
        ({"tls": "TLSv1.3 X"}, "note", "encrypted by TLSv1.3 X (sslmode prefer): nobody checks"),
        ({"tls": "TLSv1.3 X", "sslmode": "verify-full"}, "ok", "encrypted by TLSv1.3 X (sslmode v"),
        ({"gss_encrypted": True}, "ok", "encrypted by GSSAPI"),
        ({"address": "127.0.0.1"}, "ok", "not encrypted (sslmode prefer), on this machine"),
        ({"address": "::1"}, "ok", "not encrypted (sslmode prefer), on this machine"),
        ({"host": "/run/postgresql"}, "ok", "over the unix socket in /run/postgresql"),
    ],
)
def test_encryption(changes: dict[str, Any], mark: str, text: str) -> None:
    ((found, said),) = told("encryption", examined(**changes))

    assert (found, said[: len(text)]) == (mark, text)


@pytest.mark.parametrize(
    ("changes", "mark", "text"),
    [
        ({}, "ok", "logged in by scram-sha-256"),
        ({"method": "md5:reader"}, "warning", "logged in by MD5, which is deprecated"),
        ({"method": "password:reader"}, "warning", "logged in by a password in clear"),
        ({"method": "password:x", "tls": "T"}, "note", "logged in by a password in clear"),
        ({"method": "cert:CN=reader"}, "ok", "logged in by cert"),
        (
            {"method": None, "used_password": False},
            "warning",
            "nobody was asked for a password (trust)",
        ),
        (
            {"method": None, "used_password": False, "address": "127.0.0.1"},
            "note",
            "nobody was asked for a password (trust)",
        ),
        ({"method": None, "major": 15}, "ok", "logged in by a password (by which method"),
        ({"method": None, "used_password": False, "major": 15}, "note", "logged in without a pass"),
        (
            {"method": None, "used_password": False, "used_gssapi": True, "major": 15},
            "ok",
            "logged in by GSSAPI",
        ),
    ],
)
def test_authentication(changes: dict[str, Any], mark: str, text: str) -> None:
    ((found, said),) = told("authentication", examined(**changes))

    assert (found, said[: len(text)]) == (mark, text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "no sign of a pooler or proxy in between"),
        ({"other_pid": 101}, "looks like a pooler in between: two transactions had two server"),
        ({"pid": 7, "other_pid": 100}, "looks like a pooler in between"),
        ({"server_port": 6000}, "looks like a proxy, a tunnel or a container in between: conn"),
        ({"server_address": "172.17.0.2"}, "looks like a proxy, a tunnel or a container in bet"),
        (
            {"server_port": None, "server_address": None},
            "looks like a proxy or pooler in between: the server was reached by a unix socket",
        ),
        (
            {"host": "/run", "server_port": None, "server_address": None},
            "no sign of a pooler in between",
        ),
        ({"host": "/run"}, "looks like a proxy or pooler in between: the server was not reached"),
    ],
)
def test_what_seems_to_stand_in_between(changes: dict[str, Any], text: str) -> None:
    ((mark, said),) = told("between", examined(**changes))

    assert said.startswith(text)
    assert mark == ("ok" if said.startswith("no sign") else "note")


def test_a_pooler_that_tells_a_process_of_its_own() -> None:
    of = examined()

    ((_, said),) = told("between", replace(of, link=replace(of.link, pid=7)))

    assert said == "looks like a pooler in between: process 7 was promised, 100 answers"


@pytest.mark.parametrize(
    ("version", "mark"), [(180000, "ok"), (170003, "ok"), (170002, "warning"), (130018, "warning")]
)
def test_libpq(version: int, mark: str) -> None:
    assert of_libpq(version).mark == mark


def test_a_newer_server() -> None:
    assert told("version", examined(major=19, version="19.0"))[0][0] == "warning"


@pytest.mark.parametrize(
    ("seconds", "mark"), [(0.4, "ok"), (-0.4, "ok"), (5.0, "note"), (-90.0, "warning")]
)
def test_clocks(seconds: float, mark: str) -> None:
    assert told("clock", examined(clock=seconds))[0][0] == mark
    (between,) = (
        each for each in of_both(examined(clock=seconds), examined("dest")) if each.check == "clock"
    )
    assert between.mark == mark
    assert between.text == (
        f"the source's clock is {abs(seconds):.1f} s "
        f"{'ahead of' if seconds > 0 else 'behind'} the dest's"
    )


def test_a_slow_answer_says_little_of_a_clock() -> None:
    assert told("clock", examined(clock=2.0, uncertain=3.0))[0][0] == "ok"


def test_a_standby_as_the_source() -> None:
    of = examined(in_recovery=True, standby=CAUGHT_UP)

    assert told("recovery", of) == [
        ("note", "a standby: its newest commit is 3 s old, all that came is replayed")
    ]
    assert told("recovery", replace(of, standby=Standby(99.0, False, True))) == [
        (
            "warning",
            "a standby: its newest commit is 99 s old, and more has come; replay is paused",
        )
    ]
    # What of others runs is not seen there anyway.
    assert told("pg_read_all_stats", replace(of, facts=of.facts._replace(sees_others=False))) == []


@pytest.mark.parametrize(
    ("delay", "feedback", "number"), [("30000", "off", 1), ("30000", "on", 0), ("-1", "off", 0)]
)
def test_replay_that_cancels_a_copy(delay: str, feedback: str, number: int) -> None:
    settings = {
        "max_standby_streaming_delay": setting(delay, "ms"),
        "hot_standby_feedback": setting(feedback),
    }
    of = examined(standby=CAUGHT_UP, settings=settings)

    found = told("max_standby_streaming_delay", of)

    assert [mark for mark, _ in found] == ["warning"] * number


def test_a_standby_as_the_dest() -> None:
    assert told("recovery", examined("dest", standby=CAUGHT_UP)) == [
        ("problem", "the server is a standby: it takes no writes")
    ]


def test_replicas() -> None:
    near, far = (
        Replica("r1", "streaming", "sync", None),
        Replica("r2", "streaming", "async", 120.0),
    )
    hidden = Replica("r3", None, None, None)

    assert told("replicas", examined()) == []
    assert told("replicas", examined(replicas=(near, hidden))) == [
        (
            "ok",
            "replicas attached: r1 (streaming, sync), 1 that the role may not see "
            "(pg_read_all_stats)",
        )
    ]
    assert told("replicas", examined(replicas=(far,)))[0][0] == "warning"


@pytest.mark.parametrize(
    ("replicas", "level", "mark"),
    [
        ((), "on", "warning"),
        ((Replica("r", "streaming", "async", None),), "on", "warning"),
        ((Replica("r", "streaming", "quorum", None),), "on", "note"),
        ((Replica("r", None, None, None),), "on", "note"),
        ((), "local", None),
    ],
)
def test_a_commit_that_waits(replicas: tuple[Replica, ...], level: str, mark: str | None) -> None:
    settings = {
        "synchronous_standby_names": setting("r"),
        "synchronous_commit": setting(level),
    }
    found = told(
        "synchronous_standby_names", examined("dest", replicas=replicas, settings=settings)
    )

    assert [each[0] for each in found] == ([] if mark is None else [mark])


def test_an_old_snapshot() -> None:
    settings = {"old_snapshot_threshold": setting("60", "min")}

    ((mark, text),) = told("old_snapshot_threshold", examined(major=16, settings=settings))
    assert (mark, text) == (
        "warning",
        "old_snapshot_threshold is 60min (postgresql.conf): a copy that takes longer may fail",
    )
    off = {"old_snapshot_threshold": setting("-1", "min")}
    assert told("old_snapshot_threshold", examined(major=16, settings=off)) == []


def test_connections() -> None:
    assert told("connections", examined(free_connections=1)) == [
        ("warning", "1 connections are free")
    ]
    assert [m for m, _ in told("connections", examined(database_limit=1))] == ["ok", "warning"]


@pytest.mark.parametrize(
    ("here", "there", "mark"),
    [
        ("UTF8", "UTF8", "ok"),
        ("LATIN1", "UTF8", "ok"),
        ("UTF8", "LATIN1", "warning"),
        ("SQL_ASCII", "UTF8", "warning"),
        ("UTF8", "SQL_ASCII", "warning"),
        ("SQL_ASCII", "SQL_ASCII", "warning"),
    ],
)
def test_encodings(here: str, there: str, mark: str) -> None:
    found = of_both(examined(encoding=here), examined("dest", encoding=there))

    assert [f.mark for f in found if f.check == "encodings"] == [mark]


def test_the_ledger() -> None:
    unusable = of_ledger(Ledger("unusable", "the role lacks USAGE on schema copypipe"))

    assert isinstance(unusable, Finding)
    assert unusable.mark == "warning"
    assert of_ledger(Ledger("missing")).mark == of_ledger(Ledger("ready")).mark == "ok"
