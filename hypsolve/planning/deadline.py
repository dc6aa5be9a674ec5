"""`Deadline`: the end of the time that a command may take."""

from __future__ import annotations

import math
from time import perf_counter


class Deadline:
    """The end of a span of time; without a limit it never comes.

    Parameters
    ----------
    limit_s : float
        Seconds from now on.

    Examples
    --------
    >>> Deadline().has_passed(), Deadline(0.0).has_passed()
    (False, True)
    """

    def __init__(self, limit_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self._end_s = perf_counter() + limit_s

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(self._end_s - perf_counter(), 0.0)

    def has_passed(self) -> bool:
        """Return whether the time is over."""
        return self.left_s() == 0.0
