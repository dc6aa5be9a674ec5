"""Tables that the partition methods read: prefix sums, groups of identical nodes, stage times.

Cut c lies before block c, so a chain has n_cuts = n_blocks + 1 cuts and the stage i:j holds
blocks i..j - 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance, LinkCost, Objective, StageRule
from hypsolve.solvers.clock import NEVER, Deadline

if TYPE_CHECKING:  # importing numba takes longer than importing all of hypsolve
    from hypsolve.kernels.hypsplit import Chain


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of nodes that share tier, class and memory, in this order.

    Attributes
    ----------
    start : ndarray of int, shape (n_tiers + 1,)
        Tier k has the groups ``start[k]:start[k + 1]``.
    node_class : ndarray of int, shape (n_groups,)
    node_bytes : ndarray, shape (n_groups,)
        Memory of one node of the group.
    size : ndarray, shape (n_groups,)
        Number of nodes in the group.
    """

    start: IntArray
    node_class: IntArray
    node_bytes: Array
    size: Array


def node_groups(instance: Instance) -> Groups:
    """Group the nodes of an instance by tier, class and memory."""
    keys = sorted(
        zip(
            instance.node_tier.tolist(),
            instance.node_class.tolist(),
            instance.node_bytes.tolist(),
            strict=True,
        )
    )
    sizes: dict[tuple[int, int, float], int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    tiers, classes, capacities = zip(*sizes, strict=True)
    start = np.searchsorted(np.array(tiers), np.arange(instance.n_tiers + 1))
    return Groups(
        start.astype(np.int64),
        np.array(classes, np.int64),
        np.array(capacities, np.float64),
        np.array(list(sizes.values()), np.float64),
    )


def prefix_seconds(instance: Instance) -> Array:
    """Return compensated prefix sums of the reference seconds, shape (n_classes, n_cuts, 2)."""
    return compensated_prefix_sums(instance.reference_kind_s, instance.block_kind)


def prefix_bytes(instance: Instance) -> Array:
    """Return compensated prefix sums of the bytes of the blocks, shape (n_cuts, 2)."""
    return compensated_prefix_sums(instance.block_bytes[None, :])[0]


def compensated_prefix_sums(values: Array, kind: IntArray | None = None) -> Array:
    """Return compensated prefix sums of ``values[:, kind]``, shape (n_rows, n_cuts, 2).

    Entry ``[row, c]`` holds the sum of the values before cut c and its rounding error. Their
    sum has twice the precision of a float, so that the difference of two entries is exact even
    for quick blocks behind slow ones.

    Parameters
    ----------
    values : ndarray, shape (n_rows, n_kinds)
        Contiguous and read-only, as in an `Instance`.
    kind : ndarray of int, shape (n_blocks,), optional
        Contiguous and read-only. Default: one block of each kind, in order.
    """
    from hypsolve.kernels import hypsplit

    if kind is None:
        kind = np.arange(values.shape[1])
        kind.setflags(write=False)
    sums = np.empty(
        (values.shape[0], len(kind) + 1, 2)
    )  # NumPy uses huge pages for a large array; numba does not
    hypsplit.fill_prefix_sums(values, kind, sums)
    return sums


def feasible_stages(instance: Instance, deadline: Deadline = NEVER) -> NDArray[np.bool_]:
    """Return which stages i:j fit some node of tier k, shape (n_tiers, n_cuts, n_cuts).

    A stage must also keep the instance's rules on empty stages, numbers of blocks and pins.
    """
    need = _need_bytes(instance)
    slack = evaluation.memory_slack(instance)
    feasible = np.empty((instance.n_tiers, *need.shape), bool)
    for k in deadline.each(range(instance.n_tiers)):
        capacity = instance.node_bytes[instance.nodes_of(k)].max() * (1 + slack)
        feasible[k] = (need <= capacity) & _keeps_rules(instance, k)
    return feasible


def stage_table(instance: Instance, rule: StageRule | None = None) -> Array:
    """Return the seconds of stage i:j on tier k, without links.

    Parameters
    ----------
    rule : StageRule, optional
        Default: the stage rule of the instance.

    Returns
    -------
    ndarray, shape (n_tiers, n_cuts, n_cuts)
        inf if j < i, if the blocks do not fit, or if a rule of the instance (on empty stages,
        minimum and maximum numbers of blocks, pinned blocks) forbids the stage.
    """
    n_cuts = instance.n_blocks + 1
    table = np.empty((instance.n_tiers, n_cuts, n_cuts))
    for k, stage in enumerate(stage_tables(instance, rule)):
        table[k] = stage
    return table


def stage_tables(instance: Instance, rule: StageRule | None = None) -> Iterator[Array]:
    """Yield the rows of `stage_table`, tier by tier, each of shape (n_cuts, n_cuts)."""
    rule = instance.stage_rule if rule is None else rule
    prefix_s = prefix_seconds(instance)
    need = _need_bytes(instance)
    slack = evaluation.memory_slack(instance)
    for k in range(instance.n_tiers):
        nodes = instance.nodes_of(k)
        capacity = instance.node_bytes[nodes]
        sums = prefix_s[instance.node_class[nodes]]
        times = (sums[:, None, :] - sums[:, :, None]).sum(axis=-1)  # (n_nodes, i, j)
        holds = need <= (capacity * (1 + slack))[:, None, None]
        if rule is StageRule.SLOWEST:
            stage = np.where(holds.all(axis=0), times.max(axis=0), np.inf)
        elif rule is StageRule.FASTEST:
            stage = np.where(holds, times, np.inf).min(axis=0)
        else:
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                stage = 1 / np.where(holds, 1 / times, 0.0).sum(axis=0)
        np.fill_diagonal(stage, 0.0)
        yield np.where(_keeps_rules(instance, k), stage, np.inf)


def _need_bytes(instance: Instance) -> Array:
    """Return the bytes of blocks i:j, shape (n_cuts, n_cuts)."""
    prefix = prefix_bytes(instance)
    need = prefix[None, :, 0] - prefix[:, None, 0]
    need += prefix[None, :, 1] - prefix[:, None, 1]
    need[0, -1] -= instance.tied_bytes
    return need


def _keeps_rules(instance: Instance, tier: int) -> NDArray[np.bool_]:
    """Return which stages i:j of a tier keep the rules on cuts and numbers of blocks."""
    cuts = np.arange(instance.n_blocks + 1)
    length = cuts[None, :] - cuts[:, None]
    enough = length >= instance.min_blocks[tier]  # min_blocks >= 0 excludes j < i
    few_enough = length <= instance.max_blocks[tier]
    first = (cuts >= instance.cut_min[tier]) & (cuts <= instance.cut_max[tier])
    end = (cuts >= instance.cut_min[tier + 1]) & (cuts <= instance.cut_max[tier + 1])
    return np.asarray(enough & few_enough & first[:, None] & end[None, :])


def cost_table(instance: Instance) -> Array:
    """Return the cost of stage i:j on tier k with its outgoing link.

    The largest cost of a partition's stages is its bottleneck. If the objective is ``path``,
    their sum is its path latency instead.

    Returns
    -------
    ndarray, shape (n_tiers, n_cuts, n_cuts)
        inf for infeasible stages.
    """
    if instance.objective is Objective.PATH:
        stages = stage_table(instance, StageRule.FASTEST)
        links = instance.reference_transfer_kind_s[:, instance.cut_kind]
    else:
        stages, links = stage_table(instance), instance.reference_link_s
    cost_s = stages.copy()
    for k in range(instance.n_tiers - 1):
        both = instance.overlap and instance.objective is not Objective.PATH
        link = links[k][None, :]
        cost_s[k] = np.maximum(stages[k], link) if both else stages[k] + link
        cost_s[k][np.isinf(stages[k])] = math.inf
    return cost_s


def to_chain(instance: Instance) -> "Chain":
    """Convert an instance to the arrays that `hypsolve.kernels.hypsplit` reads."""
    from hypsolve.kernels import hypsplit

    groups = node_groups(instance)
    transfer = instance.reference_transfer_kind_s
    if instance.link_cost is LinkCost.FULL:
        link = transfer
    else:
        link = instance.reference_occupancy_kind_s
    return hypsplit.Chain(
        prefix_s=prefix_seconds(instance),
        prefix_bytes=prefix_bytes(instance),
        tied_bytes=float(instance.tied_bytes),
        group_start=groups.start,
        group_class=groups.node_class,
        group_bytes=groups.node_bytes * (1 + evaluation.memory_slack(instance)),
        group_size=groups.size,
        link_kind=_with_zero_row(link),
        transfer_kind=_with_zero_row(transfer),
        cut_kind=np.array(instance.cut_kind),
        cut_min=np.array(instance.cut_min),
        cut_max=np.array(instance.cut_max),
        min_blocks=np.array(instance.min_blocks),
        max_blocks=np.array(instance.max_blocks),
        rule=getattr(hypsplit, instance.stage_rule.name),
        overlap=instance.overlap,
    )


def _with_zero_row(links: Array) -> Array:
    """Append a row of zeros: the last tier has no outgoing link."""
    rows = np.zeros((len(links) + 1, links.shape[1]))
    rows[:-1] = links
    return rows
