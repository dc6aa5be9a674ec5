"""One model on many networks at once: `solve_many`."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import StageRule
from hypsolve.solvers.partition.stage_tables import compensated_prefix_sums

PARTS_PER_THREAD = 8  # so that the slowest thread is waited for less long
NETWORKS_PER_THREAD = 250  # fewer take less time than a thread takes to start


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """A model's optimal partitions, one row per network.

    Attributes
    ----------
    cuts : ndarray of int, shape (n_networks, n_tiers + 1)
        Tier k hosts blocks ``cuts[:, k]:cuts[:, k + 1]``; -1 throughout where nothing fits.
    bottleneck_s : ndarray, shape (n_networks,)
        The least bottleneck, proven so to rounding; inf where nothing fits.
    """

    cuts: IntArray
    bottleneck_s: Array

    def __len__(self) -> int:
        """Number of networks."""
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
    """Partition one model over each of many networks at the least bottleneck, exactly.

    The answers are those of ``solve(instance, "hypsplit_dp")`` for each network's instance; a
    hundred thousand and more a second. For other objectives, pins, tied weights and proofs take
    `solve`. Safe to call from several threads at once.

    Parameters
    ----------
    block_s : array_like, shape (n_classes, n_blocks)
        Seconds of each block on each node class, for the reference request: as
        ``instance.reference_s`` of `hypsolve.to_instance`, or your own.
    block_bytes : array_like, shape (n_blocks,)
        Memory of each block on a node.
    node_class : array_like of int, shape (n_networks, n_tiers, n_nodes)
        Class of each node of each tier, -1 where there is none: networks may differ in tiers
        and nodes. Request side first; tiers without a node come last, and host nothing.
    node_bytes : array_like, the same shape, or one that broadcasts to it
        Memory of each node; not looked at where there is none.
    transfer_s : array_like, shape (n_networks or 1, n_tiers - 1, n_blocks + 1)
        Seconds that tier k's outgoing link is busy when its stage ends at a cut. Default: 0.
    stage_rule, allow_empty, overlap
        As in `Instance.from_tables`.
    n_threads : int
        Default: one per core, and no more than there is work for.

    Returns
    -------
    Plans

    Raises
    ------
    ValueError, TypeError
        Naming the argument, the rule and the value.

    Examples
    --------
    Four blocks on two networks: two tiers of a node each, and one tier of two nodes.

    >>> plans = solve_many([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]], [1, 1, 1, 1],
    ...                    [[[0, -1], [1, -1]], [[0, 0], [-1, -1]]], 8)
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
    classes = _node_classes(node_class, n_classes)
    n_networks, n_tiers, _ = classes.shape
    room = valid.reals("solve_many", "node_bytes", _room(node_bytes, classes), classes.shape)
    links = np.zeros((1, n_tiers - 1, n_blocks + 1)) if transfer_s is None else transfer_s
    links_s = valid.reals("solve_many", "transfer_s", links, (None, n_tiers - 1, n_blocks + 1))
    if len(links_s) not in (1, n_networks):
        raise ValueError(
            f"solve_many: transfer_s must have 1 or n_networks = {n_networks} rows, got"
            f" {len(links_s)}"
        )
    rule = valid.one_of("solve_many", "stage_rule", stage_rule, StageRule)
    least = 0 if valid.flag("solve_many", "allow_empty", allow_empty) else 1
    overlap = valid.flag("solve_many", "overlap", overlap)
    if n_threads is None:
        n_threads = min(_n_cores(), n_networks // NETWORKS_PER_THREAD + 1)
    n_threads = valid.whole("solve_many", "n_threads", n_threads, minimum=1)

    warm("hypsplit")
    cuts, bottleneck_s = np.empty((n_networks, n_tiers + 1), np.int64), np.empty(n_networks)
    model = (
        compensated_prefix_sums(costs_s),
        compensated_prefix_sums(sizes[None])[0],
        evaluation.bytes_slack(sizes),
    )
    rules = least, getattr(hypsplit, rule.name), overlap

    def part(first: int, end: int) -> None:
        hypsplit.min_bottlenecks(
            *model, classes, room, links_s, *rules, first, end, cuts, bottleneck_s
        )

    if n_threads == 1:
        part(0, n_networks)
    else:
        n_parts = max(min(n_threads * PARTS_PER_THREAD, n_networks), 1)
        ends = [n_networks * p // n_parts for p in range(n_parts + 1)]
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(part, ends[:-1], ends[1:]))
    return Plans(cuts, bottleneck_s)


def _n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _node_classes(node_class: ArrayLike, n_classes: int) -> IntArray:
    """Check shape, classes, and that tiers without a node come last."""
    classes = valid.wholes(
        "solve_many",
        "node_class",
        node_class,
        (None, None, None),
        minimum=-1,
        maximum=n_classes - 1,
    )
    if not classes.shape[1]:
        raise ValueError(
            f"solve_many: node_class must hold at least one tier, got shape {classes.shape}"
        )
    has_node: NDArray[np.bool_] = np.any(classes >= 0, axis=2)
    bad: NDArray[np.bool_] = ~has_node[:, 0]
    bad |= np.any(has_node[:, 1:] & ~has_node[:, :-1], axis=1)
    if bad.any():
        network = int(np.argmax(bad))
        tier = int(np.argmin(has_node[network]))
        raise ValueError(
            "solve_many: node_class must leave no tier without a node before one with, got"
            f" none in tier {tier} of network {network}"
        )
    return classes


def _room(node_bytes: ArrayLike, classes: IntArray) -> ArrayLike:
    """Bytes of each node, 0 where there is none; another shape is left to the check."""
    try:
        given = np.asarray(node_bytes)
        return np.where(classes >= 0, given, np.zeros((), given.dtype))
    except ValueError:
        return node_bytes
