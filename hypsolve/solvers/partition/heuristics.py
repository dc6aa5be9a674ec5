"""Baselines: the rules by which tools in use partition a model.

They prove nothing and repair nothing. A partition that breaks a rule of the instance is
reported as INFEASIBLE. They know nothing of tiers whose limits are 0 to 0 blocks.
"""

from collections.abc import Callable

import numpy as np

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solvers.clock import NEVER, Deadline, OutOfTime
from hypsolve.solvers.partition.open_tiers import cuts_of_all_tiers, without_closed_tiers


def even_split(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Give every tier an equal number of blocks, as GPipe does [1]_.

    The later tiers host one block more if the number of blocks is not divisible. This is the
    first baseline of the Hyperion paper.

    References
    ----------
    .. [1] Y. Huang et al., "GPipe: efficient training of giant neural networks using pipeline
       parallelism", NeurIPS 2019.
    """
    return _outcome(instance, even_cuts)


def even_cuts(instance: Instance) -> list[int]:
    """Return the cuts of `even_split`."""
    share, rest = divmod(instance.n_blocks, instance.n_tiers)
    counts = np.full(instance.n_tiers, share)
    counts[instance.n_tiers - rest :] += 1
    return [0, *np.cumsum(counts).tolist()]


def memory_proportional(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Give every tier bytes in proportion to the memory of its largest node, as exo does [1]_.

    References
    ----------
    .. [1] exo, ``RingMemoryWeightedPartitioningStrategy``, https://github.com/exo-explore/exo.
    """
    return _outcome(instance, memory_proportional_cuts)


def memory_proportional_cuts(instance: Instance) -> list[int]:
    """Return the cuts of `memory_proportional`."""
    capacity = _per_tier(instance, lambda nodes: instance.node_bytes[nodes].max())
    return _proportional(instance, instance.block_bytes, capacity)


def speed_proportional(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Give every tier work in proportion to its pooled speed on the whole chain.

    The rule of thumb for unequal devices; it imitates no particular tool. The work of a block
    is its mean time over the nodes.
    """
    return _outcome(instance, speed_proportional_cuts)


def speed_proportional_cuts(instance: Instance) -> list[int]:
    """Return the cuts of `speed_proportional`."""
    whole_s = instance.reference_s.sum(axis=1)
    with np.errstate(divide="ignore"):
        speed = _per_tier(
            instance, lambda nodes: (1 / whole_s[instance.node_class[nodes]]).sum()
        )
    if not np.isfinite(speed).all():  # the blocks take no time on some class
        speed = np.isinf(speed).astype(np.float64)
    return _proportional(instance, _mean_block_s(instance), speed)


def torchgpipe(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Balance the times of the stages as torchgpipe does [1]_, by block partitions [2]_.

    Counting only the time of each block above that of the quickest block, any two stages differ
    by at most the largest such time. The rule knows one speed for all tiers and no links, and
    need not minimise its own largest stage.

    References
    ----------
    .. [1] C. Kim et al., "torchgpipe: on-the-fly pipeline parallelism for training giant
       models", arXiv:2004.09910; ``torchgpipe.balance.blockpartition``.
    .. [2] I. Barany, V. Grinberg, "Block partitions of sequences", Israel Journal of
       Mathematics 206, 2015.
    """
    return _outcome(instance, torchgpipe_cuts)


def torchgpipe_cuts(instance: Instance) -> list[int]:
    """Return the cuts of `torchgpipe`."""
    return block_partition(_mean_block_s(instance), instance.n_tiers)


def deepspeed_balanced(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Minimise the spread of the stage times as DeepSpeed does [1]_.

    The spread is the largest less the smallest stage time. The rule knows one speed for all
    tiers and no links, and need not reach the minimum of its own spread; see `min_spread`. It
    takes O(n_tiers * n_blocks**2).

    References
    ----------
    .. [1] J. Rasley et al., "DeepSpeed: system optimizations enable training deep learning
       models with over 100 billion parameters", KDD 2020; ``partition_balanced``, used by the
       ``partition_method`` of its pipeline modules.
    """
    return _in_time(instance, deepspeed_balanced_cuts, time_limit_s)


def deepspeed_balanced_cuts(instance: Instance, deadline: Deadline = NEVER) -> list[int]:
    """Return the cuts of `deepspeed_balanced`; OutOfTime once the deadline has passed."""
    return min_spread(_mean_block_s(instance), instance.n_tiers, deadline)


def pipedream(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Minimise the bottleneck of PipeDream's cost model, by its dynamic program [1]_.

    The model knows one speed for all nodes, one bandwidth for all links and no memory limit.
    The nodes of a tier share its stage evenly. Links work while nodes do, so the bottleneck is
    the maximum over stages and links. The program takes O(n_tiers * n_blocks**2).

    References
    ----------
    .. [1] D. Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training",
       SOSP 2019, section 3.1; without the backward pass and the exchange of weights.
    """
    return _in_time(instance, pipedream_cuts, time_limit_s)


def pipedream_cuts(instance: Instance, deadline: Deadline = NEVER) -> list[int]:
    """Return the cuts of `pipedream`; OutOfTime once the deadline has passed."""
    n_tiers, n_cuts = instance.n_tiers, instance.n_blocks + 1
    prefix_s = np.concatenate(([0.0], np.cumsum(_mean_block_s(instance))))
    link_s = instance.reference_link_s.sum(axis=0) / max(n_tiers - 1, 1)
    shortest = 0 if instance.allow_empty else 1
    best, start = np.full(n_cuts, np.inf), np.zeros((n_tiers, n_cuts), np.int64)
    best[0] = 0.0
    for k, n_nodes in enumerate(np.bincount(instance.node_tier).tolist()):
        following = np.full(n_cuts, np.inf)
        for end in deadline.each(range(shortest, n_cuts)):
            stage_s = (prefix_s[end] - prefix_s[: end + 1 - shortest]) / n_nodes
            worst = np.maximum(best[: end + 1 - shortest], stage_s)
            start[k, end] = np.argmin(worst)
            following[end] = worst[start[k, end]]
        best = following if k == n_tiers - 1 else np.maximum(following, link_s)
    cuts = [instance.n_blocks]
    for k in range(n_tiers - 1, -1, -1):
        cuts.append(int(start[k, cuts[-1]]))
    return cuts[::-1]


def block_partition(weights: Array, n_parts: int) -> list[int]:
    """Cut a sequence as torchgpipe does: with weights scaled to 0..1, sums differ by at most 1.

    The parts start with equal counts; the last takes the remainder. While the smallest part is
    more than 1 below the largest, it takes one element from its neighbour on the side of the
    largest part. Among equal parts, the last counts as largest and the first as smallest.

    Returns
    -------
    list of int
        Cuts, length n_parts + 1. With fewer weights than parts, the last parts are empty.
    """
    n = len(weights)
    if n < n_parts:
        return [min(part, n) for part in range(n_parts + 1)]
    spread = float(weights.max() - weights.min())
    scaled = (weights - weights.min()) / spread if spread > 0 else np.zeros(n)
    prefix = np.concatenate(([0.0], np.cumsum(scaled)))
    cuts = [*(part * (n // n_parts) for part in range(n_parts)), n]
    while True:
        sums = np.diff(prefix[cuts])
        largest = n_parts - 1 - int(np.argmax(sums[::-1]))
        top, giver = sums[largest], -1
        while giver != largest:
            sums = np.diff(prefix[cuts])
            smallest = int(np.argmin(sums))
            if top <= sums[smallest] + 1 + 1e-12:
                return cuts
            if largest < smallest:
                cuts[smallest] -= 1
                giver = smallest - 1
            else:
                cuts[smallest + 1] += 1
                giver = smallest + 1


def _in_time(
    instance: Instance, rule: Callable[[Instance, Deadline], list[int]], time_limit_s: float
) -> Outcome:
    """Return the outcome of a rule, or an unknown one if the rule exceeds the time limit."""
    try:
        return _outcome(instance, lambda of_open: rule(of_open, Deadline(time_limit_s)))
    except OutOfTime:
        return Outcome(Status.UNKNOWN, message="the time limit passed before the last cut")


def min_spread(weights: Array, n_parts: int, deadline: Deadline = NEVER) -> list[int]:
    """Cut a sequence as DeepSpeed does: reduce the spread of the part sums.

    A dynamic program keeps, for each prefix and number of parts, one split of minimum spread,
    with the shortest last part among ties. It may miss the minimum spread of the whole
    sequence, because another split of the prefix may go better with the parts that follow.
    OutOfTime is raised once the deadline has passed.

    Returns
    -------
    list of int
        Cuts, length n_parts + 1. With fewer weights than parts, the last parts are empty.
    """
    n = len(weights)
    if n <= n_parts:
        return [min(part, n) for part in range(n_parts + 1)]
    prefix = np.concatenate(([0.0], np.cumsum(weights)))
    largest, smallest = np.full((2, n + 1), np.inf)  # of the parts of each prefix
    largest[0] = 0.0
    start = np.zeros((n_parts, n + 1), np.int64)
    for part in range(n_parts):
        top, bottom = np.full((2, n + 1), np.inf)
        for end in deadline.each(range(part + 1, n + 1)):
            sums = prefix[end] - prefix[:end]
            tops, bottoms = np.maximum(largest[:end], sums), np.minimum(smallest[:end], sums)
            at = end - 1 - int(np.argmin((tops - bottoms)[::-1]))
            start[part, end], top[end], bottom[end] = at, tops[at], bottoms[at]
        largest, smallest = top, bottom
    cuts = [n]
    for part in range(n_parts - 1, -1, -1):
        cuts.append(int(start[part, cuts[-1]]))
    return cuts[::-1]


def _mean_block_s(instance: Instance) -> Array:
    """Return the reference seconds of each block, averaged over the nodes."""
    per_class = np.bincount(instance.node_class, minlength=instance.n_classes)
    return per_class @ instance.reference_s / instance.n_nodes


def _per_tier(instance: Instance, value: Callable[[slice], float]) -> Array:
    """Evaluate a function of the nodes of each tier."""
    return np.array([value(instance.nodes_of(k)) for k in range(instance.n_tiers)], np.float64)


def _proportional(instance: Instance, weights: Array, shares: Array) -> list[int]:
    """Cut where the prefix sums of the weights are nearest to the tiers' cumulative shares.

    Every tier keeps at least one block, unless stages may be empty.
    """
    n_tiers, n_blocks = instance.n_tiers, instance.n_blocks
    prefix = np.concatenate(([0.0], np.cumsum(weights)))
    total = shares.sum()
    shares = shares / total if total > 0 else np.full(n_tiers, 1 / n_tiers)
    targets = np.cumsum(shares)[:-1] * prefix[-1]
    min_blocks = 0 if instance.allow_empty else 1
    cuts = [0]
    for k, target in enumerate(targets, start=1):
        nearest = int(np.argmin(np.abs(prefix - target)))
        latest = n_blocks - min_blocks * (n_tiers - k)
        cuts.append(max(min(nearest, latest), min(cuts[-1] + min_blocks, n_blocks)))
    return [*cuts, n_blocks]


def _outcome(instance: Instance, rule: Callable[[Instance], list[int]]) -> Outcome:
    """Return the outcome of a rule, which knows the tiers that may hold blocks alone."""
    cuts = rule(without_closed_tiers(instance))
    return unrepaired_outcome(instance, cuts_of_all_tiers(instance, cuts))


def unrepaired_outcome(instance: Instance, cuts: list[int]) -> Outcome:
    """Return the partition, or INFEASIBLE if it breaks a rule of the instance."""
    partition = Partition(tuple(cuts))
    violations = evaluation.check(instance, partition)
    if violations:
        return Outcome(
            Status.INFEASIBLE,
            message=f"this baseline's partition {partition} breaks a rule: {violations[0]}",
        )
    return Outcome(Status.FEASIBLE, partition)
