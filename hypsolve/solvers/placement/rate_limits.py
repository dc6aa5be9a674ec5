"""Upper bounds on the rates of patterns whose cuts are not known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement.pattern_values import PatternValues
from hypsolve.solvers.placement.patterns import Pattern


class RateLimits:
    """Upper bounds on the rates of patterns."""

    def __init__(self, values: PatternValues) -> None:
        self.values = values

    def of(self, patterns: Sequence[Pattern], deadline: Deadline) -> Array:
        """Return an upper bound on the rate of each pattern; inf where none is known."""
        return np.full(len(patterns), math.inf)
