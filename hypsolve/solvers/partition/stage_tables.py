"""What the partition methods read: prefix sums, the nodes of a tier in groups, stage tables."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import evaluation
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import Instance, LinkCost, Objective, StageRule

if TYPE_CHECKING:  # numba takes longer to import than all of hypsolve: not before it is needed
    from hypsolve.kernels.hypsplit import Chain


@dataclass(frozen=True, slots=True)
class Groups:
    """Nodes of a tier that share class and memory; tier k has groups start[k]:start[k + 1]."""

    start: IntArray  # (n_tiers + 1,)
    node_class: IntArray  # (n_groups,)
    node_bytes: Array  # (n_groups,)
    size: Array  # (n_groups,) nodes in the group


def node_groups(instance: Instance) -> Groups:
    """Group the nodes, in order of (tier, class, memory)."""
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
    """Reference seconds before each cut, as sum and rest: shape (n_classes, n_cuts, 2)."""
    return compensated_prefix_sums(instance.reference_kind_s, instance.block_kind)


def prefix_bytes(instance: Instance) -> Array:
    """Bytes before each cut, as sum and rest: shape (n_cuts, 2)."""
    return compensated_prefix_sums(instance.block_bytes[None, :])[0]


def compensated_prefix_sums(values: Array, kind: IntArray | None = None) -> Array:
    """Sums before each cut of ``values[:, kind]``, as sum and rest: (n_rows, n_cuts, 2).

    Both are as an instance holds them, contiguous and read-only; kind: all, in order.
    """
    from hypsolve.kernels import hypsplit

    if kind is None:
        kind = np.arange(values.shape[1])
        kind.setflags(write=False)
    sums = np.empty((values.shape[0], len(kind) + 1, 2))  # numpy asks for huge pages
    hypsplit.add_up(values, kind, sums)
    return sums


def feasible_stages(instance: Instance) -> NDArray[np.bool_]:
    """Which blocks i:j may be tier k's stage on some node, shape (n_tiers, n_cuts, n_cuts)."""
    need = _need_bytes(instance)
    slack = evaluation.memory_slack(instance)
    legal = np.empty((instance.n_tiers, *need.shape), bool)
    for k in range(instance.n_tiers):
        most = instance.node_bytes[instance.nodes_of(k)].max() * (1 + slack)
        legal[k] = (need <= most) & _keeps_rules(instance, k)
    return legal


def stage_table(instance: Instance, rule: StageRule | None = None) -> Array:
    """Stage seconds of blocks i:j on tier k, without links: shape (n_tiers, n_cuts, n_cuts).

    inf where j < i, where the blocks do not fit, or where a rule of the instance (empty stages,
    least and most blocks, pinned blocks) forbids the stage.
    """
    rule = instance.stage_rule if rule is None else rule
    n_cuts = instance.n_blocks + 1
    spent = prefix_seconds(instance)
    need = _need_bytes(instance)
    slack = evaluation.memory_slack(instance)
    table = np.full((instance.n_tiers, n_cuts, n_cuts), np.inf)
    for k in range(instance.n_tiers):
        nodes = instance.nodes_of(k)
        capacity = instance.node_bytes[nodes]
        sums = spent[instance.node_class[nodes]]
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
        table[k] = np.where(_keeps_rules(instance, k), stage, np.inf)
    return table


def _need_bytes(instance: Instance) -> Array:
    """Bytes of blocks i:j, shape (n_cuts, n_cuts)."""
    held = prefix_bytes(instance)
    need = held[None, :, 0] - held[:, None, 0]
    need += held[None, :, 1] - held[:, None, 1]
    need[0, -1] -= instance.tied_bytes
    return need


def _keeps_rules(instance: Instance, tier: int) -> NDArray[np.bool_]:
    """Which stages i:j on a tier keep the rules on cuts and numbers of blocks."""
    cuts = np.arange(instance.n_blocks + 1)
    length = cuts[None, :] - cuts[:, None]
    least, most = instance.min_blocks[tier], instance.max_blocks[tier]  # least: 0 or more
    first = (cuts >= instance.cut_min[tier]) & (cuts <= instance.cut_max[tier])
    end = (cuts >= instance.cut_min[tier + 1]) & (cuts <= instance.cut_max[tier + 1])
    return np.asarray((length >= least) & (length <= most) & first[:, None] & end[None, :])


def cost_table(instance: Instance) -> Array:
    """What blocks i:j cost on tier k with the link behind: shape (n_tiers, n_cuts, n_cuts).

    Its largest entry is the bottleneck, its sum the path latency, as the objective is.
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


def chain_of(instance: Instance) -> "Chain":
    """What the kernels of `hypsolve.kernels.hypsplit` read, each of one dtype and layout."""
    from hypsolve.kernels import hypsplit

    groups = node_groups(instance)
    transfer = instance.reference_transfer_kind_s
    full = instance.link_cost is LinkCost.FULL
    return hypsplit.Chain(
        spent=prefix_seconds(instance),
        held=prefix_bytes(instance),
        tied=float(instance.tied_bytes),
        group_start=groups.start,
        group_class=groups.node_class,
        group_bytes=groups.node_bytes * (1 + evaluation.memory_slack(instance)),
        group_size=groups.size,
        link_kind=_and_none(transfer if full else instance.reference_occupancy_kind_s),
        transfer_kind=_and_none(transfer),
        cut_kind=np.array(instance.cut_kind),
        cut_min=np.array(instance.cut_min),
        cut_max=np.array(instance.cut_max),
        min_blocks=np.array(instance.min_blocks),
        max_blocks=np.array(instance.max_blocks),
        rule=getattr(hypsplit, instance.stage_rule.name),
        overlap=instance.overlap,
    )


def _and_none(links: Array) -> Array:
    """A row of zeros behind the links' rows: the last tier has no outgoing link."""
    rows = np.zeros((len(links) + 1, links.shape[1]))
    rows[:-1] = links
    return rows
