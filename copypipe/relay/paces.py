"""How fast bytes may flow."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Spreads what flows evenly over time, at most at a given rate.

    Time in which nothing could flow (the dest was busy) is not made up for: the limit is there to
    leave room to others.
    """

    def __init__(
        self, bytes_per_second: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._free = clock()

    @property
    def portion(self) -> int | None:
        """Return how many bytes to take at once, None for any number: a tenth of a second's."""
        return None if self._rate is None else max(1, self._rate // 10)

    def end(self) -> None:
        """Limit nothing any more."""
        self._rate = None
        self._free = self._clock()

    @property
    def free(self) -> float:
        """Return from when on more may flow, as a moment of the clock."""
        return self._free

    def took(self, size: int) -> None:
        """Take note that `size` bytes flow now."""
        if self._rate is not None:
            self._free = max(self._free, self._clock()) + size / self._rate
