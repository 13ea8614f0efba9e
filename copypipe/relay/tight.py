"""The frame scan for mypyc: plain integers over bytes, 20 times as fast compiled as in CPython.

Compiled, it takes 9 ns a frame; as Python it is slower than `loose.scan`, which does the same.
`scans` chooses. No import of other modules of ours, so that a wheel's build needs mypyc alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a name for mypyc alone: Python evaluates no annotation of a local variable
    from mypy_extensions import i64

DATA = 100  # "d"


def scan(data: bytes, start: int) -> tuple[int, int, int]:
    """Walk the CopyData messages from `start` on, where a message begins.

    Returns where the walk ended, how many messages began, and where the last one did (-1 for
    none). The end is at or beyond that of the data if the last message is, else at a header
    that is not there as a whole, is of another kind, or bears a length that cannot be.
    """
    size: i64 = len(data)
    position: i64 = start
    last: i64 = -1
    rows: i64 = 0
    while position + 5 <= size:
        if data[position] != DATA:
            break
        length: i64 = (
            (data[position + 1] << 24)
            | (data[position + 2] << 16)
            | (data[position + 3] << 8)
            | data[position + 4]
        )
        if length < 4 or length > 0x7FFFFFFF:
            break
        last = position
        position += length + 1
        rows += 1
    return position, rows, last
