"""`solve_many`: optimal partitions of one model over many networks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import StageRule
from hypsolve.solvers.many_networks import (
    checked_nodes,
    checked_rows,
    checked_threads,
    run_in_threads,
)
from hypsolve.solvers.partition.stage_tables import compensated_prefix_sums

# Affects speed only: fewer networks are solved before another thread has started.
NETWORKS_PER_THREAD = 250


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """Optimal partitions of one model over many networks, as arrays with a row per network.

    `solve_many` returns it. It holds cuts and bottlenecks alone; `hypsolve.Plan` is the
    complete plan of one deployment.

    Attributes
    ----------
    cuts : ndarray of int, shape (n_networks, n_tiers + 1)
        Tier k hosts blocks ``cuts[:, k]:cuts[:, k + 1]``. A row of -1 means infeasible.
    bottleneck_s : ndarray, shape (n_networks,)
        The minimum bottleneck, optimal up to rounding; inf means infeasible.
    """

    cuts: IntArray
    bottleneck_s: Array

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.bottleneck_s)


def solve_many(
    block_s: ArrayLike,
    block_bytes: ArrayLike,
    node_class: ArrayLike,
    node_bytes: ArrayLike,
    transfer_s: ArrayLike | None = None,
    *,
    stage_rule: StageRule | str = StageRule.POOLED,
    allow_empty: bool = False,
    overlap: bool = False,
    n_threads: int | None = None,
) -> Plans:
    """Partition one model over each of many networks so that the bottleneck is minimal.

    The result is that of ``solve(instance, "hypsplit_dp")`` for the instance of each network,
    at more than 100,000 networks a second. Use `solve` for other objectives, pinned blocks,
    tied weights and certificates. The function is thread-safe.

    Parameters
    ----------
    block_s : array_like, shape (n_classes, n_blocks)
        Compute time of each block on each node class for the reference request, in seconds:
        measured values, or ``reference_s`` of an instance that `hypsolve.to_instance` returns.
    block_bytes : array_like, shape (n_blocks,)
        Memory that each block needs on a node.
    node_class : array_like of int, shape (n_networks, n_tiers, n_nodes)
        Class of each node of each tier, or -1 if there is no node, so that networks may differ
        in their numbers of tiers and nodes. Requests enter at the first tier. Tiers without
        nodes must come last; they host no blocks.
    node_bytes : array_like that broadcasts to the shape of `node_class`
        Memory of each node; ignored where there is no node.
    transfer_s : array_like, shape (n_networks or 1, n_tiers - 1, n_blocks + 1), optional
        Time for which the outgoing link of each tier is busy if its stage ends at each cut, in
        seconds. Default: 0.
    stage_rule, allow_empty, overlap
        As in `Instance.from_tables`.
    n_threads : int, optional
        Number of threads. Default: one per core, or fewer for a small number of networks.

    Returns
    -------
    Plans

    Raises
    ------
    ValueError, TypeError
        If an argument is of the wrong shape or type or out of range; the message names the
        argument, the rule and the value.

    Examples
    --------
    Four blocks over two networks: one has two tiers of a node each, of different classes; the
    other has a single tier of two nodes.

    >>> import hypsolve as hs
    >>> plans = hs.solve_many(
    ...     block_s=[[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]],
    ...     block_bytes=[1, 1, 1, 1],
    ...     node_class=[[[0, -1], [1, -1]], [[0, 0], [-1, -1]]],
    ...     node_bytes=8,
    ... )
    >>> plans.cuts.tolist()
    [[0, 3, 4], [0, 4, 4]]
    >>> plans.bottleneck_s.tolist()
    [3.0, 2.0]
    """
    from hypsolve.kernels import hypsplit

    costs_s = valid.reals("solve_many", "block_s", block_s, (None, None))
    if not costs_s.size:
        raise ValueError(
            "solve_many: block_s must hold at least one class and block, got shape"
            f" {costs_s.shape}"
        )
    n_classes, n_blocks = costs_s.shape
    sizes = valid.reals("solve_many", "block_bytes", block_bytes, (n_blocks,))
    classes, capacity = checked_nodes("solve_many", node_class, node_bytes, n_classes)
    n_networks, n_tiers, _ = classes.shape
    links = np.zeros((1, n_tiers - 1, n_blocks + 1)) if transfer_s is None else transfer_s
    links_s = checked_rows(
        "solve_many", "transfer_s", links, n_networks, (n_tiers - 1, n_blocks + 1)
    )
    rule = valid.one_of("solve_many", "stage_rule", stage_rule, StageRule)
    min_blocks = 0 if valid.flag("solve_many", "allow_empty", allow_empty) else 1
    overlap = valid.flag("solve_many", "overlap", overlap)
    n_threads = checked_threads("solve_many", n_threads, n_networks, NETWORKS_PER_THREAD)

    warm("hypsplit")
    cuts, bottleneck_s = np.empty((n_networks, n_tiers + 1), np.int64), np.empty(n_networks)
    model = (
        compensated_prefix_sums(costs_s),
        compensated_prefix_sums(sizes[None])[0],
        evaluation.bytes_slack(sizes),
    )
    rules = min_blocks, getattr(hypsplit, rule.name), overlap

    def solve_part(first: int, end: int) -> None:
        hypsplit.min_bottleneck_many(
            *model, classes, capacity, links_s, *rules, first, end, cuts, bottleneck_s
        )

    run_in_threads(solve_part, n_networks, n_threads)
    return Plans(cuts, bottleneck_s)
