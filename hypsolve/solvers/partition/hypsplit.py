"""HypSplit-DP: optimal partitions for every partition objective, and the Pareto frontier."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Certificate, Outcome, Partition, Status
from hypsolve.solvers.partition.infeasibility import explain_infeasible
from hypsolve.solvers.partition.stage_tables import to_chain

if TYPE_CHECKING:
    from hypsolve.kernels.hypsplit import Chain

# Relative distance from the optimum to the bound that is reported: the rounding of stage times
# must not lift the bound above the optimum. It is part of the proof, so it is not an option.
MARGIN = 1e-9


def hypsplit_dp(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
    """Partition the blocks to minimise the bottleneck, the path latency or the P0 cost.

    This is an exact version of HypSplit-DP [1]_. The bottleneck is found by bisection. A trial
    asks whether some partition has a bottleneck of at most tau. It costs at most
    O(n_tiers * n_blocks) and moves the upper or the lower limit to the time of an actual stage,
    so the bisection ends at the exact optimum. The path latency is minimised by an additive
    recurrence with a range-minimum query for each group of identical nodes, in
    O(n_tiers * n_blocks * log(n_blocks)). The P0 cost, the largest stage time plus the sum of
    the transfer times, is minimised by running that recurrence repeatedly, with decreasing
    limits on the largest stage time.

    Parameters
    ----------
    instance : Instance
        A chain of ``n_blocks`` blocks over ``n_tiers`` tiers.
    time_limit_s, seed : float, int
        Common to all methods. Not used: the method is deterministic and polynomial.

    Returns
    -------
    Outcome
        OPTIMAL, with ``bound_s`` equal to (1 - 1e-9) times the optimum to allow for rounding;
        or INFEASIBLE, with a message that states, tier by tier, how far memory and the rules of
        the instance allow to place blocks. INFEASIBLE always carries a certificate; OPTIMAL
        does if the objective is the bottleneck.

    Raises
    ------
    ValueError
        If the objective is a property of the schedule.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.
    """
    from hypsolve.kernels import hypsplit

    chain = to_chain(instance)
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
            message=str(explain_infeasible(instance)),
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
    """Fill `cuts` with a partition that minimises largest stage plus sum of transfers.

    Each step minimises the transfers subject to every stage being below theta, and then lowers
    theta to the largest stage of its partition. The transfers of a step are minimal for its
    theta, so one of the steps is optimal. The sweep ends when even the smallest possible
    largest stage, with the transfers of the step, is no better than the best step.

    Returns
    -------
    tuple of float and int
        The minimum (inf: infeasible) and the number of steps.
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
    """A partition whose bottleneck and path latency no other partition dominates.

    Attributes
    ----------
    bottleneck_s : float
        Bottleneck under the stage rule of the instance.
    path_s : float
        Latency of one request on the fastest node of every tier.
    partition : Partition
    """

    bottleneck_s: float
    path_s: float
    partition: Partition


def pareto_frontier(instance: Instance) -> list[ParetoPoint]:
    """Return all non-dominated pairs of bottleneck and path latency.

    Parameters
    ----------
    instance : Instance
        Its objective is ignored. The bottleneck follows its stage rule.

    Returns
    -------
    list of ParetoPoint
        By increasing bottleneck and decreasing path latency; empty if infeasible.

    Notes
    -----
    Each step minimises the path latency subject to a bottleneck below theta, by one additive
    recurrence, and then lowers theta to the bottleneck of its partition.

    Examples
    --------
    A tier of two slow nodes before a tier of one fast node: balancing the tiers minimises the
    bottleneck, and giving most blocks to the fast node minimises the latency.

    >>> import hypsolve as hs
    >>> block_s = [[[2.0] * 6, [1.0] * 6]]
    >>> instance = hs.Instance.from_tables(block_s, [1.0] * 6, [[(0, 9), (0, 9)], [(1, 9)]])
    >>> for point in hs.pareto_frontier(instance):
    ...     print(point.partition, point.bottleneck_s, point.path_s)
    0:3 | 3:6 3.0 9.0
    0:2 | 2:6 4.0 8.0
    0:1 | 1:6 5.0 7.0
    """
    from hypsolve.kernels import hypsplit

    valid.of_type("pareto_frontier", "instance", instance, Instance)
    warm("hypsplit")
    chain = to_chain(instance)
    cuts = np.zeros(instance.n_tiers + 1, np.int64)
    theta = math.inf
    points: list[ParetoPoint] = []
    while not math.isinf(hypsplit.min_sum(chain, theta, cuts, True)):
        theta = hypsplit.bottleneck_s(chain, cuts)
        partition = Partition(tuple(cuts.tolist()))
        path_s = evaluation.path_s(instance, partition)
        # with the path latency equal to rounding, the smaller bottleneck dominates
        while points and points[-1].path_s >= path_s * (1 - evaluation.RELATIVE_ERROR):
            points.pop()
        points.append(
            ParetoPoint(evaluation.bottleneck_s(instance, partition), path_s, partition)
        )
    return points[::-1]


def least_path_within(instance: Instance, bottleneck_s: float) -> Partition | None:
    """Return a partition of least path latency among those of a limited bottleneck.

    Parameters
    ----------
    instance : Instance
        Its objective is ignored. The bottleneck follows its stage rule.
    bottleneck_s : float
        Limit on the bottleneck, in seconds. It may be exceeded by rounding.

    Returns
    -------
    Partition or None
        None if no partition stays within the limit.
    """
    from hypsolve.kernels import hypsplit

    cuts = np.zeros(instance.n_tiers + 1, np.int64)
    limit_s = bottleneck_s * (1 + evaluation.RELATIVE_ERROR)
    if math.isinf(hypsplit.min_sum(to_chain(instance), limit_s, cuts, True)):
        return None
    return Partition(tuple(cuts.tolist()))
