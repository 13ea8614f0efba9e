"""Wherever a connection is cut, the dest is what it was or what the source had; the outcome says.

Some places in each run of the suite, every message under the marker `slow`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from copypipe import ConnectionLost, CopypipeError, watches
from copypipe.events import Connected, Event, Listener, ignore
from plugins import proxy as proxies
from plugins.command import eventually, no_backends
from plugins.proxy import DIRECTIONS, Direction, Ending, Proxy, Rule
from plugins.ways import NAMES, OLD, Begun, Way

QUERY = "SELECT g AS id, repeat('x', g) AS body FROM generate_series(1, 100) AS g"

# How many copies are cut at once: in a hole there is nothing to do but wait.
AT_ONCE: dict[Ending, int] = {"fin": 4, "rst": 4, "hole": 12}

# How many places a sample has.
SAMPLE = 6

# Stalls are found within one second, and several connections may have to be given up.
LONGEST = 8.0

COPIED = 0
NOTHING_CHANGED = 5
UNKNOWN = 75


@dataclass(frozen=True)
class Cut:
    """One place where a connection is cut."""

    side: str
    sender: Direction
    unit: str
    position: int
    ending: Ending

    def __str__(self) -> str:
        return f"{self.side}, {self.ending} at {self.unit} {self.position} of the {self.sender}"

    @property
    def rule(self) -> Rule:
        at = proxies.at_message if self.unit == "message" else proxies.at_byte
        return at(self.sender, self.position, self.ending)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a silent server after a moment."""
    monkeypatch.setattr(watches, "SILENCE_SECONDS", 0.1)


def copy(way: Way, listener: Listener = ignore) -> None:
    way.copy(QUERY, stall_timeout=1.0, listener=listener)


@dataclass
class Measured:
    """How much of a unit comes from each direction until both sides answered, and in all."""

    connected: dict[Direction, int]
    end: dict[Direction, int]


def measured(way: Way, side: str) -> dict[str, Measured]:
    """Return for each unit what a copy needs."""
    between = way.between(side)
    marks: list[dict[str, dict[Direction, int]]] = []

    def mark(event: Event | None) -> None:
        if event is None or isinstance(event, Connected):
            marks.append({"message": dict(between.messages), "byte": dict(between.bytes)})

    copy(way, mark)
    no_backends(way.source, way.dest)
    mark(None)
    way.direct()
    return {unit: Measured(*(one[unit] for one in marks)) for unit in ("message", "byte")}


def places(every: range, wanted: int | None) -> Sequence[int]:
    """Return so many of these numbers, the first and the last among them; None for all."""
    if wanted is None or wanted >= len(every):
        return every
    return sorted({every[number * (len(every) - 1) // (wanted - 1)] for number in range(wanted)})


def cuts(way: Way, side: str, ending: Ending, wanted: int | None) -> Iterator[Cut]:
    """Return cuts between two messages and within them, in both directions."""
    for unit, needed in measured(way, side).items():
        if unit == "message" and way.name == "tls":
            continue
        for sender in DIRECTIONS:
            # Whoever does not answer at all is waited for longer than a test may take.
            start = needed.connected[sender] if ending == "hole" else 0
            stop = needed.end[sender]
            if way.name == "tls":
                stop -= stop // 20  # what encrypts differs a little from run to run
            # An odd number of bytes, so that it falls within messages.
            for position in places(range(start, stop, 1 if unit == "message" else 101), wanted):
                yield Cut(side, sender, unit, position, ending)


def complaints(ways: list[Way], some: Sequence[Cut]) -> Iterator[str]:
    """Cut a copy of each way; say what should not have happened."""
    begun: dict[str, Begun] = {}
    between: dict[str, Proxy] = {}
    for way, cut in zip(ways, some, strict=False):
        way.dest.execute(f"TRUNCATE {way.table}; INSERT INTO {way.table} {OLD}")
        between[way.table] = way.between(cut.side, cut.rule)
        begun[way.table] = Begun(functools.partial(copy, way))
    outcomes = {}
    for table, one in begun.items():
        try:
            outcomes[table] = one.error(LONGEST)
        except pytest.fail.Exception as late:
            outcomes[table] = late
        with contextlib.suppress(pytest.fail.Exception):  # the last message comes behind the end
            eventually(lambda table=table: between[table].fired, seconds=1)
        between[table].close()  # a server behind a hole notices now
    no_backends(ways[0].source, ways[0].dest)
    for way, cut in zip(ways, some, strict=False):
        way.direct()
        complaint = judged(way, outcomes[way.table])
        if complaint or between[way.table].fired != [cut.ending]:
            yield f"{cut}: {complaint or 'did not happen'}"


def judged(way: Way, error: BaseException | None) -> str | None:
    """Return what is wrong about the dest after such an outcome."""
    if error is not None and not isinstance(error, CopypipeError):
        return repr(error)
    code = COPIED if error is None else error.exit_code
    ordered = "SELECT id, body FROM {} AS rows ORDER BY id"
    held = way.dest.text(ordered.format(way.table))
    is_old = held == way.dest.text(ordered.format(f"({OLD})"))
    is_new = held == way.source.text(ordered.format(f"({QUERY})"))
    expected = {COPIED: is_new, NOTHING_CHANGED: is_old, UNKNOWN: is_old or is_new}
    if expected.get(code):
        return None
    state = "old" if is_old else "new" if is_new else "neither old nor new"
    return f"the dest is {state} after {code}: {error}"


@pytest.mark.parametrize("side", ["source", "dest"])
@pytest.mark.parametrize("ending", ["fin", "rst", "hole"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tcp", SAMPLE),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in NAMES),
    ],
)
@pytest.mark.one_of(5)
def test_wherever_a_connection_is_cut(
    make_way: Callable[..., Way], name: str, side: str, ending: Ending, wanted: int | None
) -> None:
    some = AT_ONCE[ending]
    ways = [make_way(name, f"t{number}") for number in range(some)]
    every = list(cuts(ways[0], side, ending, wanted))
    found: list[str] = []
    for start in range(0, len(every), some):
        found += complaints(ways, every[start : start + some])

    assert len(every) > SAMPLE
    assert not found, "\n".join(found)


# Within the first kilobytes of a connection, which are TLS's own.
HANDSHAKES = [
    *(("server", position) for position in (0, 1, 100, 700, 1400)),
    *(("client", position) for position in (0, 1, 200)),
]


@pytest.mark.parametrize("side", ["source", "dest"])
def test_a_handshake_that_is_cut_is_a_connection_that_is_lost(
    make_way: Callable[..., Way], side: str
) -> None:
    """And no login that was refused: the same command may succeed a moment later."""
    every = [
        Cut(side, sender, "byte", position, ending)
        for sender, position in HANDSHAKES
        for ending in ("fin", "rst")
    ]
    ways = [make_way("tls", f"t{number}") for number in range(len(every))]
    between = [way.between(side, cut.rule) for way, cut in zip(ways, every, strict=True)]
    begun = [Begun(functools.partial(copy, way)) for way in ways]

    for cut, proxy, one in zip(every, between, begun, strict=True):
        error = one.error(LONGEST)
        assert isinstance(error, ConnectionLost), (str(cut), error)
        assert (error.exit_code, error.side) == (5, side), str(cut)
        assert proxy.fired == [cut.ending], str(cut)
    for way in ways:
        way.direct()
        way.assert_unchanged()
