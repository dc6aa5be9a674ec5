"""Partitions that people use today: no proof, no repair, one line of reasoning each."""

from collections.abc import Callable

import numpy as np

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import (
    Instance,
)
from hypsolve.problem.solution import Outcome, Partition, Status


def even_split(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """GPipe's split: equal block counts, the remainder to the later tiers [1]_.

    References
    ----------
    .. [1] Y. Huang et al., "GPipe", NeurIPS 2019; the paper's first baseline.
    """
    return _as_is(instance, even_cuts(instance))


def even_cuts(instance: Instance) -> list[int]:
    """Cuts of `even_split`."""
    share, rest = divmod(instance.n_blocks, instance.n_tiers)
    counts = np.full(instance.n_tiers, share)
    counts[instance.n_tiers - rest :] += 1
    return [0, *np.cumsum(counts).tolist()]


def memory_proportional(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Bytes in proportion to each tier's largest node, as exo splits by memory."""
    return _as_is(instance, memory_proportional_cuts(instance))


def memory_proportional_cuts(instance: Instance) -> list[int]:
    """Cuts of `memory_proportional`."""
    capacity = _per_tier(instance, lambda nodes: instance.node_bytes[nodes].max())
    return _proportional(instance, instance.block_bytes, capacity)


def speed_proportional(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Seconds in proportion to each tier's pooled speed on the whole chain."""
    return _as_is(instance, speed_proportional_cuts(instance))


def speed_proportional_cuts(instance: Instance) -> list[int]:
    """Cuts of `speed_proportional`."""
    whole_s = instance.reference_s.sum(axis=1)
    with np.errstate(divide="ignore"):
        speed = _per_tier(
            instance, lambda nodes: (1 / whole_s[instance.node_class[nodes]]).sum()
        )
    if not np.isfinite(speed).all():  # a class that takes no time at all
        speed = np.isinf(speed).astype(np.float64)
    return _proportional(instance, _mean_block_s(instance), speed)


def torchgpipe(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Balance by time as torchgpipe does: sums that differ by at most one block [1]_.

    It knows one speed for all tiers, and need not reach even its own optimum.

    References
    ----------
    .. [1] I. Barany, V. Grinberg, "Block partitions of sequences", Israel J. Math. 206, 2015,
       the method of C. Kim et al., "torchgpipe", arXiv:2004.09910.
    """
    return _as_is(instance, torchgpipe_cuts(instance))


def torchgpipe_cuts(instance: Instance) -> list[int]:
    """Cuts of `torchgpipe`."""
    return block_partition(_mean_block_s(instance), instance.n_tiers)


def deepspeed_balanced(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Balance by time as DeepSpeed's pipelines do: largest and smallest part closest [1]_.

    It knows one speed for all tiers and no links, and need not reach even its own optimum;
    O(n_tiers * n_blocks**2).

    References
    ----------
    .. [1] J. Rasley et al., "DeepSpeed", KDD 2020; ``partition_method`` of its pipelines.
    """
    return _as_is(instance, deepspeed_balanced_cuts(instance))


def deepspeed_balanced_cuts(instance: Instance) -> list[int]:
    """Cuts of `deepspeed_balanced`."""
    return min_spread(_mean_block_s(instance), instance.n_tiers)


def pipedream(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Least bottleneck of PipeDream's model, by its dynamic program [1]_.

    One speed for all nodes, a stage shared evenly by the nodes of its tier, one bandwidth for
    all links, which work while nodes do: stages and links are apart in its maximum, and memory
    is not looked at. O(n_tiers * n_blocks**2).

    References
    ----------
    .. [1] D. Narayanan et al., "PipeDream", SOSP 2019, section 3.1, without the backward pass
       and the exchange of weights.
    """
    return _as_is(instance, pipedream_cuts(instance))


def pipedream_cuts(instance: Instance) -> list[int]:
    """Cuts of `pipedream`."""
    n_tiers, n_cuts = instance.n_tiers, instance.n_blocks + 1
    before = np.concatenate(([0.0], np.cumsum(_mean_block_s(instance))))
    link_s = instance.reference_link_s.sum(axis=0) / max(n_tiers - 1, 1)
    least = 0 if instance.allow_empty else 1
    best, start = np.full(n_cuts, np.inf), np.zeros((n_tiers, n_cuts), np.int64)
    best[0] = 0.0
    for k, n_nodes in enumerate(np.bincount(instance.node_tier).tolist()):
        following = np.full(n_cuts, np.inf)
        for end in range(least, n_cuts):
            stage_s = (before[end] - before[: end + 1 - least]) / n_nodes
            worst = np.maximum(best[: end + 1 - least], stage_s)
            start[k, end] = np.argmin(worst)
            following[end] = worst[start[k, end]]
        best = following if k == n_tiers - 1 else np.maximum(following, link_s)
    cuts = [instance.n_blocks]
    for k in range(n_tiers - 1, -1, -1):
        cuts.append(int(start[k, cuts[-1]]))
    return cuts[::-1]


def block_partition(weights: Array, n_parts: int) -> list[int]:
    """Cut a sequence as torchgpipe does: scaled to 0..1, part sums differ by at most 1.

    From equal counts (the remainder to the last part), the least part takes one element from
    its neighbour on the side of the largest part, until it is within 1 of it. Of equal parts
    the last is the largest and the first the least.

    Returns
    -------
    list of int
        Cuts, length n_parts + 1; with fewer weights than parts, the last parts are empty.
    """
    n = len(weights)
    if n < n_parts:
        return [min(part, n) for part in range(n_parts + 1)]
    spread = float(weights.max() - weights.min())
    scaled = (weights - weights.min()) / spread if spread > 0 else np.zeros(n)
    before = np.concatenate(([0.0], np.cumsum(scaled)))
    cuts = [*(part * (n // n_parts) for part in range(n_parts)), n]
    while True:
        sums = np.diff(before[cuts])
        largest = n_parts - 1 - int(np.argmax(sums[::-1]))
        top, giver = sums[largest], -1
        while giver != largest:
            sums = np.diff(before[cuts])
            least = int(np.argmin(sums))
            if top <= sums[least] + 1 + 1e-12:
                return cuts
            if largest < least:
                cuts[least] -= 1
                giver = least - 1
            else:
                cuts[least + 1] += 1
                giver = least + 1


def min_spread(weights: Array, n_parts: int) -> list[int]:
    """Cut a sequence as DeepSpeed does: least difference of the largest and smallest part sum.

    Of the splits of a prefix into so many parts, one of least difference is kept, that with the
    shortest last part, though another may go better with what follows.

    Returns
    -------
    list of int
        Cuts, length n_parts + 1; with fewer weights than parts, the last parts are empty.
    """
    n = len(weights)
    if n <= n_parts:
        return [min(part, n) for part in range(n_parts + 1)]
    before = np.concatenate(([0.0], np.cumsum(weights)))
    largest, smallest = np.full((2, n + 1), np.inf)  # of the parts of each prefix
    largest[0] = 0.0
    start = np.zeros((n_parts, n + 1), np.int64)
    for part in range(n_parts):
        top, bottom = np.full((2, n + 1), np.inf)
        for end in range(part + 1, n + 1):
            sums = before[end] - before[:end]
            tops, bottoms = np.maximum(largest[:end], sums), np.minimum(smallest[:end], sums)
            at = end - 1 - int(np.argmin((tops - bottoms)[::-1]))
            start[part, end], top[end], bottom[end] = at, tops[at], bottoms[at]
        largest, smallest = top, bottom
    cuts = [n]
    for part in range(n_parts - 1, -1, -1):
        cuts.append(int(start[part, cuts[-1]]))
    return cuts[::-1]


def _mean_block_s(instance: Instance) -> Array:
    """Reference seconds of each block, mean over the nodes."""
    per_class = np.bincount(instance.node_class, minlength=instance.n_classes)
    return per_class @ instance.reference_s / instance.n_nodes


def _per_tier(instance: Instance, value: Callable[[slice], float]) -> Array:
    return np.array([value(instance.nodes_of(k)) for k in range(instance.n_tiers)], np.float64)


def _proportional(instance: Instance, weights: Array, shares: Array) -> list[int]:
    """Put each cut where the weights before it are nearest to the tiers' share of all.

    Where stages may not be empty, each tier keeps at least one block.
    """
    n_tiers, n_blocks = instance.n_tiers, instance.n_blocks
    before = np.concatenate(([0.0], np.cumsum(weights)))
    total = shares.sum()
    shares = shares / total if total > 0 else np.full(n_tiers, 1 / n_tiers)
    targets = np.cumsum(shares)[:-1] * before[-1]
    least = 0 if instance.allow_empty else 1
    cuts = [0]
    for k, target in enumerate(targets, start=1):
        nearest = int(np.argmin(np.abs(before - target)))
        latest = n_blocks - least * (n_tiers - k)
        cuts.append(max(min(nearest, latest), min(cuts[-1] + least, n_blocks)))
    return [*cuts, n_blocks]


def _as_is(instance: Instance, cuts: list[int]) -> Outcome:
    """The split if it is legal, else INFEASIBLE: these methods repair nothing."""
    partition = Partition(tuple(cuts))
    violations = evaluation.check(instance, partition)
    if violations:
        return Outcome(
            Status.INFEASIBLE,
            message=f"this baseline's split {partition} is not legal: {violations[0]}",
        )
    return Outcome(Status.FEASIBLE, partition)
