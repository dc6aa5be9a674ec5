"""The clock of the solvers: deadlines, and how much work fits between two looks at the clock.

Every solver reads the time through `now` of this module, so that a test can replace it.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

MIN_S = 1e-3  # least limit of a method that is called when no time is left
SLICE_S = 0.1  # aimed time of a kernel call, after which the deadline is looked at


class OutOfTime(Exception):
    """The deadline has passed before a model was built; its solver is not started.

    Attributes
    ----------
    min_s : float
        Lower bound on the objective that was known by then, in seconds.
    """

    def __init__(self, min_s: float = 0.0) -> None:
        super().__init__("the time limit has passed")
        self.min_s = min_s


def now() -> float:
    """Return the seconds of the clock that deadlines refer to; its zero is arbitrary."""
    return time.perf_counter()


class Deadline:
    """The end of a method's time, counted from its making.

    Parameters
    ----------
    limit_s : float
        Seconds from now; inf: never.

    Attributes
    ----------
    limit_s : float
    at_s : float
        The time of `now` at which the limit ends.
    min_s : float
        Lower bound on the objective that OutOfTime hands on, in seconds; 0 at first.

    Examples
    --------
    >>> deadline = Deadline(math.inf)
    >>> deadline.has_passed(), deadline.left_s()
    (False, inf)
    >>> list(deadline.each("abc"))
    ['a', 'b', 'c']
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.at_s = now() + limit_s
        self.min_s = 0.0

    def left_s(self) -> float:
        """Return the seconds that are left; 0 once the deadline has passed."""
        return max(0.0, self.at_s - now())

    def spent_s(self) -> float:
        """Return the seconds since the deadline was set."""
        return now() - (self.at_s - self.limit_s)

    def part(self, share: float) -> "Deadline":
        """Return a deadline that ends after a share of what is left, at least 1 ms from now.

        Methods need a positive limit, even where no time is left.
        """
        return Deadline(max(share * self.left_s(), MIN_S))

    def has_passed(self) -> bool:
        """Return True once the deadline has passed."""
        return now() >= self.at_s

    def require(self, needed_s: float = 0.0) -> None:
        """Raise OutOfTime unless more than `needed_s` seconds are left."""
        if now() + needed_s >= self.at_s:
            raise OutOfTime(self.min_s)

    def extended(self, more_s: float) -> "Deadline":
        """Return a deadline that is later, for what an answer needs in any case."""
        later = Deadline(self.limit_s + more_s)
        later.at_s = self.at_s + more_s
        return later

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; raise OutOfTime before the first one after the deadline."""
        for item in items:
            self.require()
            yield item


NEVER = Deadline(math.inf)


class Pace:
    """The measured speed of a kernel, and how many units of work take `SLICE_S`.

    A kernel that is called for `units` units at a time gives the same answer as one call for
    all of them, so the answer does not depend on the speed.

    Parameters
    ----------
    unit_s : float
        Guess of the seconds of a unit, before the first measurement.

    Examples
    --------
    >>> pace = Pace(0.01)
    >>> pace.units(100), pace.units(3)
    (10, 3)
    """

    def __init__(self, unit_s: float) -> None:
        self._unit_s = unit_s
        self._began_s = 0.0
        self._n_units = 1

    def units(self, left: int) -> int:
        """Return how many of the units left one call may do, at least 1; start its clock."""
        fitting = SLICE_S / self._unit_s if self._unit_s > 0 else math.inf
        self._n_units = max(1, int(min(left, fitting)))
        self._began_s = now()
        return self._n_units

    def done(self) -> None:
        """Measure the call that `units` allowed."""
        self._unit_s = (now() - self._began_s) / self._n_units
