"""HypSplit-DP: exact partitions for every partition objective, and the Pareto frontier."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective, StageRule
from hypsolve.problem.solution import Certificate, Outcome, Partition, Status
from hypsolve.problem.units import show_bytes
from hypsolve.solvers.partition.stage_tables import chain_of, prefix_bytes

if TYPE_CHECKING:
    from hypsolve.kernels.hypsplit import Chain

MARGIN = 1e-9  # below the optimum by so much, to be safe from rounding, lies the bound


def hypsplit_dp(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Partition the blocks at the least bottleneck, path latency or P0 cost, exactly.

    HypSplit-DP of [1]_, made exact: a bisection on the bottleneck whose every trial, at most
    O(n_tiers * n_blocks), moves a bound to a stage time that occurs. ``path`` is an additive
    recurrence with a range minimum per node group, O(n_tiers * n_blocks * log(n_blocks));
    ``p0`` sweeps it over the largest stage time.

    Parameters
    ----------
    instance : Instance
        A chain of ``n_blocks`` blocks over ``n_tiers`` tiers.
    time_limit_s, seed : float, int
        Common to all methods; unused, for this one is deterministic and polynomial.

    Returns
    -------
    Outcome
        OPTIMAL, with ``bound_s`` a billionth below the optimum (rounding), or INFEASIBLE with
        need and capacity of each tier as its message. Both carry a certificate where the
        objective is the bottleneck (infeasible: always).

    Raises
    ------
    ValueError
        If the objective is a property of the schedule.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.
    """
    from hypsolve.kernels import hypsplit

    chain = chain_of(instance)
    cuts = np.zeros(instance.n_tiers + 1, np.int64)
    if instance.objective is Objective.BOTTLENECK:
        value_s, trials = hypsplit.min_bottleneck(chain, cuts)
        message = f"exact bisection, {trials} trials"
    elif instance.objective is Objective.PATH:
        value_s = hypsplit.min_sum(chain._replace(rule=hypsplit.FASTEST), math.inf, cuts, True)
        message = "additive recurrence"
    elif instance.objective is Objective.P0:
        value_s, steps = _min_p0(chain, cuts)
        message = f"sweep over the largest stage, {steps} steps"
    else:
        raise ValueError(
            f"hypsplit_dp: objective must be bottleneck, path or p0, got {instance.objective}"
        )
    if math.isinf(value_s):
        return Outcome(
            Status.INFEASIBLE,
            bound_s=math.inf,
            certificate=Certificate(kind="infeasible", value_s=math.inf, bound_s=math.inf),
            message=explain_infeasible(instance),
        )
    partition = Partition(tuple(cuts.tolist()))
    bound_s = value_s * (1 - MARGIN)
    certificate = None
    if instance.objective is Objective.BOTTLENECK:
        certificate = Certificate(
            kind="bottleneck", value_s=value_s, bound_s=bound_s, cuts=partition.cuts
        )
    return Outcome(
        Status.OPTIMAL, partition, bound_s=bound_s, certificate=certificate, message=message
    )


def _min_p0(chain: "Chain", cuts: np.ndarray) -> tuple[float, int]:
    """Sweep: least transfers with every stage below theta; theta is then the largest stage got.

    Each step's transfers are least for its theta, so the optimum is among the steps; none can
    be better once the least largest stage of all plus its transfers is not.
    """
    from hypsolve.kernels import hypsplit

    no_links = np.zeros_like(chain.link_kind)
    stages = chain._replace(rule=hypsplit.FASTEST, overlap=False, link_kind=no_links)
    trial_cuts = np.zeros_like(cuts)
    min_stage_s, _ = hypsplit.min_bottleneck(stages, trial_cuts)
    best_s, theta, steps = math.inf, math.inf, 0
    while True:
        transfers_s = hypsplit.min_sum(stages, theta, trial_cuts, False)
        if math.isinf(transfers_s) or min_stage_s + transfers_s >= best_s:
            return best_s, steps
        steps += 1
        theta = hypsplit.bottleneck_s(stages, trial_cuts)
        if theta + transfers_s < best_s:
            best_s = theta + transfers_s
            cuts[:] = trial_cuts


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A partition that no other beats in both the bottleneck and the path latency."""

    bottleneck_s: float
    path_s: float
    partition: Partition


def pareto_frontier(instance: Instance) -> list[ParetoPoint]:
    """All non-dominated pairs of bottleneck (under the instance's rule) and path latency.

    Parameters
    ----------
    instance : Instance
        Its objective is not looked at.

    Returns
    -------
    list of ParetoPoint
        Rising in the bottleneck, falling in the path latency; empty if infeasible.

    Notes
    -----
    A sweep: the least path latency among partitions of a bottleneck below theta, then theta is
    the bottleneck realised. One additive recurrence per step.
    """
    from hypsolve.kernels import hypsplit

    valid.of_type("pareto_frontier", "instance", instance, Instance)
    warm("hypsplit")
    chain = chain_of(instance)
    cuts = np.zeros(instance.n_tiers + 1, np.int64)
    theta = math.inf
    points: list[ParetoPoint] = []
    while not math.isinf(hypsplit.min_sum(chain, theta, cuts, True)):
        theta = hypsplit.bottleneck_s(chain, cuts)
        partition = Partition(tuple(cuts.tolist()))
        path_s = evaluation.path_s(instance, partition)
        # a smaller bottleneck at the same path, to rounding, dominates the points before
        while points and points[-1].path_s >= path_s * (1 - evaluation.RELATIVE_ERROR):
            points.pop()
        points.append(
            ParetoPoint(evaluation.bottleneck_s(instance, partition), path_s, partition)
        )
    return points[::-1]


def explain_infeasible(instance: Instance) -> str:
    """Join the `infeasible_reasons` of an instance to one message."""
    verdict, *tiers = infeasible_reasons(instance)
    return f"{verdict}. {'; '.join(tiers)}" if tiers else verdict


def infeasible_reasons(instance: Instance) -> tuple[str, ...]:
    """Compare need with capacity: a verdict, then one reason per tier.

    Every earlier tier is filled as far as its memory and the rules on blocks allow. A tier's
    reason names the furthest cut that it reaches, and the bytes that the next block lacks.
    """
    n_tiers, n_blocks = instance.n_tiers, instance.n_blocks
    held = prefix_bytes(instance)
    for k, (low, high) in enumerate(zip(instance.cut_min, instance.cut_max, strict=True)):
        if low > high:
            return (
                f"the pinned blocks contradict each other, cut {k} must be at least"
                f" {low} and at most {high}",
            )
    lines, reach = [], 0
    every = instance.stage_rule is StageRule.SLOWEST and (
        instance.objective is Objective.BOTTLENECK
    )
    for k in range(n_tiers):
        capacity = instance.node_bytes[instance.nodes_of(k)]
        usable = float(capacity.min() if every else capacity.max())
        limit = min(reach + int(instance.max_blocks[k]), int(instance.cut_max[k + 1]))
        need = (held[reach : limit + 1] - held[reach]).sum(axis=-1)
        if reach == 0 and limit == n_blocks:
            need[-1] -= instance.tied_bytes
        end = max(reach + int(np.searchsorted(need, usable, side="right")) - 1, reach)
        tier = f"tier {instance.tier_names[k]!r}"
        if end < min(limit, n_blocks):
            held_here, with_next = need[end - reach], need[end - reach + 1]
            lines.append(
                f"{tier}: blocks {reach}:{end} need {show_bytes(held_here)} of the"
                f" {show_bytes(usable)} of its {'smallest' if every else 'largest'} node; block"
                f" {end} would make it {show_bytes(with_next)},"
                f" {show_bytes(with_next - usable)} too many"
            )
        else:
            lines.append(f"{tier}: blocks {reach}:{end}, its rules allow no more")
        reach = end
    if int(instance.min_blocks.sum()) > n_blocks:
        verdict = f"{n_blocks} blocks are fewer than the tiers must host, {instance.min_blocks}"
    elif reach < n_blocks:
        verdict = f"the tiers together reach block {reach} of {n_blocks}"
    else:
        verdict = "memory would do, but not with the least and most blocks and the pins"
    return (verdict, *lines)
