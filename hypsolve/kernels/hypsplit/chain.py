"""The arrays that HypSplit-DP reads, and the cost of a stage."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_kernel, inlined

POOLED, FASTEST, SLOWEST = 0, 1, 2  # stage rules, as in `hypsolve.problem.instance.StageRule`


class Chain(NamedTuple):
    """A chain of blocks and the tiers that may host it.

    Cut c lies before block c, for c in 0..n_blocks, so n_cuts = n_blocks + 1. Cuts are grouped
    into kinds of equal transfers, and the nodes of a tier into groups of equal nodes.
    """

    prefix_s: np.ndarray  # seconds before a cut, compensated: (n_classes, n_cuts, 2)
    prefix_bytes: np.ndarray  # bytes before a cut, compensated: (n_cuts, 2)
    tied_bytes: float  # bytes saved if one stage hosts all blocks (tied embeddings)
    group_start: np.ndarray  # tier k has groups start[k]:start[k + 1], (n_tiers + 1,)
    group_class: np.ndarray  # class of the nodes of each group, (n_groups,)
    group_bytes: np.ndarray  # memory of one node of each group, (n_groups,)
    group_size: np.ndarray  # number of nodes in each group, (n_groups,)
    link_kind: np.ndarray  # link seconds in a bottleneck, last row 0: (n_tiers, n_cut_kinds)
    transfer_kind: np.ndarray  # link seconds in a sum, last row 0: (n_tiers, n_cut_kinds)
    cut_kind: np.ndarray  # (n_cuts,)
    cut_min: np.ndarray  # earliest cut before each tier and after the last: (n_tiers + 1,)
    cut_max: np.ndarray  # latest cut, likewise
    min_blocks: np.ndarray  # blocks of a stage, (n_tiers,)
    max_blocks: np.ndarray  # (n_tiers,)
    rule: int  # POOLED, FASTEST or SLOWEST
    overlap: bool  # whether a stage and its outgoing link work at the same time


@bare_kernel
def two_sum(a, b):
    """Return the rounded sum of two numbers and its exact rounding error [1]_.

    References
    ----------
    .. [1] D. E. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@bare_kernel
def fill_prefix_sums(values, kind, sums):
    """Fill `sums` with compensated prefix sums of ``values[:, kind]``.

    Entry ``[row, c]`` holds the sum of the values before cut c and its rounding error. Without
    the error, a stage of quick blocks behind slow ones would drown in the rounding of the sum.
    The errors of 16 blocks are added up apart from the sum, so that additions need not wait
    for each other.

    Parameters
    ----------
    values : ndarray, shape (n_rows, n_kinds)
    kind : ndarray of int, shape (n_blocks,)
    sums : ndarray, shape (n_rows, n_cuts, 2)
        Filled in.
    """
    n_blocks = len(kind)
    for c in range(values.shape[0]):
        total, error = 0.0, 0.0
        sums[c, 0, 0], sums[c, 0, 1] = total, error
        for first in range(0, n_blocks, 16):
            for b in range(first, min(first + 16, n_blocks)):
                total, left = two_sum(total, values[c, kind[b]])
                error += left
                sums[c, b + 1, 0], sums[c, b + 1, 1] = total, error
            total, error = two_sum(total, error)


@inlined
def stage_bytes(chain, i, j):
    """Return the memory that a node needs for blocks i:j."""
    need = (
        chain.prefix_bytes[j, 0]
        - chain.prefix_bytes[i, 0]
        + (chain.prefix_bytes[j, 1] - chain.prefix_bytes[i, 1])
    )
    return need - chain.tied_bytes if i == 0 and j == chain.prefix_bytes.shape[0] - 1 else need


@inlined
def stage_s(chain, k, i, j):
    """Return the time of stage i:j on tier k; inf if it does not fit.

    The time never increases with i and never decreases with j. All searches below rely on it.
    """
    if i == j:
        return 0.0
    need = stage_bytes(chain, i, j)
    speed, fastest, slowest = 0.0, np.inf, 0.0
    for g in range(chain.group_start[k], chain.group_start[k + 1]):
        if need > chain.group_bytes[g]:
            if chain.rule == SLOWEST:
                return np.inf
            continue
        c = chain.group_class[g]
        time = chain.prefix_s[c, j, 0] - chain.prefix_s[c, i, 0]
        time += chain.prefix_s[c, j, 1] - chain.prefix_s[c, i, 1]
        if chain.rule == POOLED:
            if time <= 0.0:
                return 0.0
            speed += chain.group_size[g] / time
        fastest = min(fastest, time)
        slowest = max(slowest, time)
    if chain.rule == POOLED:
        return 1.0 / speed if speed > 0.0 else np.inf
    return fastest if chain.rule == FASTEST else slowest


@inlined
def combine(chain, stage, link):
    """Combine the time of a stage and of its outgoing link: their maximum or their sum."""
    return max(stage, link) if chain.overlap else stage + link


@inlined
def cost_s(chain, k, j, stage):
    """Return the cost of a stage of tier k that ends at cut j: its time with its link."""
    return combine(chain, stage, chain.link_kind[k, chain.cut_kind[j]])


@bare_kernel
def bottleneck_s(chain, cuts):
    """Return the largest cost of a stage of the partition `cuts`."""
    worst = 0.0
    for k in range(chain.min_blocks.shape[0]):
        stage = stage_s(chain, k, cuts[k], cuts[k + 1])
        worst = max(worst, cost_s(chain, k, cuts[k + 1], stage))
    return worst
