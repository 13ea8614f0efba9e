"""However a stream is cut, every scan finds the messages that an obvious parser finds."""

import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypipe.relay import loose, tight
from copypipe.relay.frames import EMPTY_BYTES, TRAILER, BadFrame, Frames, Scan, is_trailer
from plugins.compiled import TIGHT, loaded

# "Binary Format" in the documentation of COPY: signature, flags, length of an extension.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

NULL = b"\xff\xff\xff\xff"  # a field's length of -1


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def row(*fields: bytes | None) -> bytes:
    """Return the data of a row as binary COPY has it."""
    written = (NULL if one is None else struct.pack("!i", len(one)) + one for one in fields)
    return struct.pack("!h", len(fields)) + b"".join(written)


# --- the scans ------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["loose", "tight"])
def scan(request: pytest.FixtureRequest) -> Scan:
    """Return each scan in turn; `tight` compiled, or as it is written where there is no compiler.

    Not `copypipe.relay.tight` itself: where a wheel brought it compiled, its source would go
    untested.
    """
    if request.param == "loose":
        return loose.scan
    return loaded(request.getfixturevalue("compiled_tight") or TIGHT).scan


def test_the_scan_in_use_is_the_compiled_one_where_there_is_one() -> None:
    from copypipe.relay import scans

    compiled = not tight.__file__.endswith(".py")
    assert (scans.scan, scans.NAME) == (
        (tight.scan, "compiled") if compiled else (loose.scan, "interpreted")
    )


# --- the reference --------------------------------------------------------------------------------


@dataclass
class Told:
    """What is known of a stream in the end."""

    handed_on: bytes = b""
    """All that belongs to messages of data."""
    others: list[bytes] = field(default_factory=list)
    """The kinds of the other messages."""
    rows: int = 0
    whole: bool = True
    ended: bool = False


# A message of data whose length cannot be: then nothing else is known.
BAD = None


def reference(stream: bytes) -> Told | None:
    """Read one message after the other; slow and obvious."""
    told, position, last = Told(), 0, b""
    while position < len(stream):
        kind, header = stream[position : position + 1], stream[position : position + 5]
        whole = len(header) == 5
        length = struct.unpack("!i", header[1:])[0] if whole else 0
        if kind != b"d":
            if not whole or position + 1 + length > len(stream):
                break
            told.others.append(kind)
        else:
            if whole and length < 4:
                return BAD
            part = stream[position : position + 1 + length] if whole else header
            told.handed_on += part
            told.rows += whole
            told.whole = whole and len(part) == 1 + length
            last = part[5:]
        if not whole:
            break
        position += 1 + length
    told.ended = told.whole and last in (TRAILER, HEADER + TRAILER)
    return told


def followed(stream: bytes, cuts: Sequence[int], scan: Scan) -> Told | None:
    """Have `Frames` follow the stream in pieces; other messages are taken when they are whole."""
    told, frames, waiting = Told(), Frames(scan), b""
    for start, stop in itertools.pairwise([0, *cuts, len(stream)]):
        waiting += stream[start:stop]
        while waiting:
            try:
                mine = frames.feed(waiting)
            except BadFrame:
                return BAD
            told.handed_on += waiting[:mine]
            waiting = waiting[mine:]
            if not mine:
                assert waiting[:1] != b"d", "data is left to others"
                assert frames.whole, "another message begins within one of data"
                size = 1 + struct.unpack("!i", waiting[1:5])[0] if len(waiting) >= 5 else 5
                if size > len(waiting):
                    break
                told.others.append(waiting[:1])
                waiting = waiting[size:]
    told.rows, told.whole, told.ended = frames.rows, frames.whole, frames.ended
    return told


# --- streams --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of one width, each filled from the same seed."""

    width: int
    count: int
    seed: int

    def messages(self) -> list[bytes]:
        if self.seed == 0:  # full of what looks like the beginning of a message
            body = (message(b"d", b"four") * (self.width // 9 + 1))[: self.width]
        else:
            body = random.Random(self.seed).randbytes(self.width)  # noqa: S311 - no secret
        return [message(b"d", body)] * self.count


@dataclass(frozen=True)
class One:
    """One message as it is."""

    raw: bytes

    def messages(self) -> list[bytes]:
        return [self.raw]


# 64 rows of a width are read one by one before as many are compared at once: few, enough for
# that, and enough for the longest strides.
ROWS = st.one_of(
    st.builds(Rows, st.integers(0, 300), st.integers(1, 70), st.integers(0, 2)),
    st.builds(Rows, st.integers(0, 60), st.integers(64, 700), st.integers(0, 2)),
    st.builds(Rows, st.integers(0, 30), st.integers(4000, 9000), st.integers(0, 2)),
    st.builds(Rows, st.integers(0, 300_000), st.integers(1, 2), st.integers(0, 2)),
)
ENDS_IN_NULL = One(message(b"d", row(b"x", None)))
END = One(message(b"d", TRAILER))
EMPTY = One(message(b"d", HEADER + TRAILER))
FIRST = One(message(b"d", HEADER + row(b"x")))
NOT_DATA = st.builds(
    lambda kind, size: One(message(kind, bytes(size))),
    st.sampled_from([b"c", b"N", b"S", b"A", b"E"]),
    st.integers(0, 300),
)
CANNOT_BE = [One(b"d" + struct.pack("!i", length) + b"d" * 9) for length in (-(2**31), -1, 0, 3)]
STREAMS = st.lists(
    st.one_of(ROWS, ROWS, st.sampled_from([ENDS_IN_NULL, END, EMPTY, FIRST]), NOT_DATA),
    min_size=1,
    max_size=6,
).flatmap(lambda some: st.sampled_from([some, some, some, *([*some, bad] for bad in CANNOT_BE)]))

# Where a stream is cut: so far from the beginning of a message, or anywhere.
CUTS = st.lists(st.tuples(st.integers(0, 20_000), st.integers(-2, 6)), max_size=8)
ANYWHERE = st.lists(st.integers(0, 4_000_000), max_size=4)


@settings(max_examples=100, deadline=None)
@given(parts=STREAMS, near=CUTS, anywhere=ANYWHERE, end=st.one_of(st.none(), st.integers(0, 1000)))
def test_every_scan_finds_what_the_reference_finds(
    scan: Scan,
    parts: list[Rows | One],
    near: list[tuple[int, int]],
    anywhere: list[int],
    end: int | None,
) -> None:
    messages = [one for part in parts for one in part.messages()]
    begins = [0, *itertools.accumulate(map(len, messages))]
    stream = b"".join(messages)
    if end is not None:
        stream = stream[: max(0, len(stream) - end)]
    wanted = [begins[index % len(begins)] + offset for index, offset in near]
    wanted += [position % (len(stream) + 1) for position in anywhere]
    cuts = sorted(min(max(0, position), len(stream)) for position in wanted)

    assert followed(stream, cuts, scan) == reference(stream)


SMALL = b"".join(
    [
        message(b"d", HEADER + row(b"ab")),
        message(b"N", b"hi"),
        message(b"d", row(None)),
        message(b"d"),
        message(b"d", row(b"ab", None)),
        message(b"d", TRAILER),
        message(b"c"),
    ]
)


def test_a_small_stream_may_be_cut_anywhere(scan: Scan) -> None:
    for end in range(len(SMALL) + 1):
        stream = SMALL[:end]
        expected = reference(stream)
        for first in range(end + 1):
            assert followed(stream, [first], scan) == expected, (end, first)
        assert followed(stream, range(1, end), scan) == expected, f"{end}, byte by byte"
    for first, second in itertools.combinations(range(len(SMALL) + 1), 2):
        assert followed(SMALL, [first, second], scan) == reference(SMALL), (first, second)


def test_rows_of_one_width_are_followed_up_to_any_end(scan: Scan) -> None:
    """What is compared many at a time ends in the data, in a header, or in front of another row."""
    same = message(b"d", b"seven b") * 300
    for end in range(len(same) - 30, len(same) + 1):
        for rest in (b"", message(b"d", b"other"), message(b"c"), message(b"d", TRAILER)):
            stream = same[:end] + rest if end == len(same) else same[:end]
            assert followed(stream, [], scan) == reference(stream), (end, rest)
    for changed in range(12 * 120, 12 * 135):  # in one row among many, any byte
        stream = same[:changed] + bytes([same[changed] ^ 1]) + same[changed + 1 :]
        if stream[changed - changed % 12 : changed - changed % 12 + 1] == b"d":
            assert followed(stream, [], scan) == reference(stream), changed


# --- the end --------------------------------------------------------------------------------------

ENDS = {
    "the trailer": ([HEADER + row(b"x"), row(b"y"), TRAILER], True),
    "the trailer of no row": ([HEADER + TRAILER], True),
    # A field count of -1 is no row's, so these two bytes mean the end wherever they stand.
    "the trailer without a header": ([TRAILER], True),
    "nothing": ([], False),
    "the header alone": ([HEADER], False),
    "a row": ([HEADER + row(b"x")], False),
    "a last row that ends in NULL": ([HEADER + row(b"x"), row(b"y", None)], False),
    "an only row that ends in NULL": ([HEADER + row(None)], False),
    "a row as long as an empty result": ([HEADER, bytes(EMPTY_BYTES - 2) + TRAILER], False),
    "a row that ends like an empty result": ([HEADER, row(HEADER[:11] + b"123456", None)], False),
    "the trailer and a byte": ([HEADER + row(b"x"), TRAILER + b"\0"], False),
    "a message without data": ([HEADER + row(b"x"), b""], False),
    "the trailer, and a message without data": ([HEADER + row(b"x"), TRAILER, b""], False),
    "a row behind the trailer": ([HEADER + row(b"x"), TRAILER, row(b"y")], False),
}


@pytest.mark.parametrize(("bodies", "ended"), ENDS.values(), ids=ENDS.keys())
def test_the_end_is_the_trailer_and_nothing_else(
    scan: Scan, bodies: list[bytes], *, ended: bool
) -> None:
    stream = b"".join(message(b"d", body) for body in bodies)

    if bodies:
        assert is_trailer(bodies[-1]) is ended
    for cut in range(len(stream) + 1):
        told = followed(stream, [cut], scan)
        assert told is not BAD
        assert told.ended is ended, cut
        assert told.rows == len(bodies)
