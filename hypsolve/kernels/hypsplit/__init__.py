"""Kernels of HypSplit-DP: bisection on the bottleneck, and an additive recurrence.

| file | holds |
|---|---|
| `chain` | `Chain`, compensated prefix sums, the cost of a stage |
| `windows` | where the cuts of every partition within a limit must lie |
| `trials` | whether a partition within a limit exists |
| `bisection` | `min_bottleneck`, and `min_bottleneck_many` for many networks |
| `additive` | `min_sum`, the minimum of a sum of costs |

The cost of a stage is its time with its outgoing link. The bottleneck is the largest cost.
"""

import numpy as np

from hypsolve.kernels.hypsplit.additive import min_sum
from hypsolve.kernels.hypsplit.bisection import (
    LONG_CHAIN,
    bisect_bottleneck,
    min_bottleneck,
    min_bottleneck_many,
)
from hypsolve.kernels.hypsplit.chain import (
    FASTEST,
    POOLED,
    SLOWEST,
    Chain,
    bottleneck_s,
    fill_prefix_sums,
)
from hypsolve.kernels.hypsplit.trials import (
    FEASIBLE,
    INFEASIBLE,
    UNDECIDED,
    full_trial,
    greedy_trial,
)
from hypsolve.kernels.hypsplit.windows import cut_windows, min_links, window_offsets

__all__ = [
    "FASTEST",
    "FEASIBLE",
    "INFEASIBLE",
    "LONG_CHAIN",
    "POOLED",
    "SLOWEST",
    "UNDECIDED",
    "Chain",
    "bisect_bottleneck",
    "bottleneck_s",
    "cut_windows",
    "fill_prefix_sums",
    "full_trial",
    "greedy_trial",
    "min_bottleneck",
    "min_bottleneck_many",
    "min_links",
    "min_sum",
    "window_offsets",
]


def warm_up():
    """Compile the kernels on a chain of two blocks over two tiers.

    `min_bottleneck_many` is left out: only `solve_many` needs it, and its first call compiles
    it, in about two seconds.
    """
    ints, reals = np.int64, np.float64
    prefix = np.zeros((1, 3, 2))
    values, kind = np.ones((1, 2)), np.arange(2)
    values.setflags(write=False)  # as in an Instance
    kind.setflags(write=False)
    fill_prefix_sums(values, kind, prefix)
    chain = Chain(
        prefix,
        prefix[0],
        0.0,
        np.array([0, 1, 2], ints),
        np.zeros(2, ints),
        np.ones(2, reals),
        np.ones(2, reals),
        np.zeros((2, 3)),
        np.zeros((2, 3)),
        np.array([0, 1, 2], ints),
        np.array([0, 0, 2], ints),
        np.array([0, 2, 2], ints),
        np.array([1, 1], ints),
        np.array([2, 2], ints),
        FASTEST,
        False,
    )
    cuts = np.zeros(3, ints)
    min_bottleneck(chain, cuts)
    min_sum(chain, np.inf, cuts, True)
    bottleneck_s(chain, cuts)
