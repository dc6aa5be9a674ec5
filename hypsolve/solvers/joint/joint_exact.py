"""`joint_exact`: partition and schedule together, exactly, by branch and bound."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Certificate, Outcome
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.joint.branch_and_bound import BranchAndBound
from hypsolve.solvers.joint.decision import (
    no_partition,
    proven_s,
    table_times,
    to_joint_outcome,
    warm_decision,
)
from hypsolve.solvers.joint.joint_exact_params import JointExactParams
from hypsolve.solvers.joint.tables import joint_tables
from hypsolve.solvers.joint.time_windows import drop_dominated, idle_bound_s
from hypsolve.solvers.outcomes import OnBound, OnImprove, WarmStart, require_callable

METHOD = "joint_exact"
PARTS = ("lagrangian_bound", "partition_boxes", "dominance", "beam_search")


def joint_exact(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = True,
    upper_bound: float = math.inf,
    on_improve: OnImprove | None = None,
    on_bound: OnBound | None = None,
    memory_bytes: float = 1e9,
    disable: Sequence[str] = (),
    params: JointExactParams | None = None,
) -> Outcome:
    """Find an optimal partition and schedule jointly, by branch and bound.

    The search tree branches on boxes of partitions, the smallest lower bound first. A box is a
    set of partitions, given by a range for each cut. Its lower bound comes from a Lagrangian
    relaxation of the nodes' capacity and is raised by subgradient ascent (see
    `hypsolve.kernels.subgradient`). Boxes are split until they are pruned or hold a single
    partition. Beam search then enumerates the schedules of that partition, with pruning by the
    Lagrangian bound and by dominance. The beam is widened until the search is complete or the
    memory is full. The lower bound accounts for the schedules that were dropped, so it is valid
    whenever the search stops.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        For warm start and search together.
    seed : int
        Seed of the hash of partial schedules; no answer depends on it.
    warm_start : bool, Outcome, Result or (Partition, Schedule)
        Initial incumbent. True: the solution of the method ``hyperion``.
    upper_bound : float
        Only solutions with an objective below this value (in seconds) are searched for. If none
        exists, the warm start is returned, with `upper_bound` as the bound.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, schedule)`` for each new
        incumbent, the warm start included.
    on_bound : callable, optional
        Called as ``on_bound(bound_s)`` for each better bound.
    memory_bytes : float
        Memory for the levels of a beam search.
    disable : sequence of str
        Parts to switch off, for ablations: ``lagrangian_bound`` (all multipliers stay 0),
        ``partition_boxes`` (every partition is a box of its own), ``dominance``,
        ``beam_search`` (CP-SAT schedules each single partition instead).
    params : JointExactParams, optional
        Tunable constants.

    Returns
    -------
    Outcome
        Its ``bound_s`` is valid at the time limit, too. `hypsolve.verify` checks its
        certificate. There is no certificate if long gaps between arrivals were removed before
        the search, if ``beam_search`` is disabled, or if the certificate would take more than
        ``params.max_proof_share`` of `memory_bytes`. The message counts the partitions that
        each part pruned.

    Raises
    ------
    ValueError, TypeError
        If the objective does not depend on the schedule, or an option is invalid.
    """
    deadline = Deadline(time_limit_s)
    owner = f"method {METHOD!r}"
    require_callable(METHOD, on_improve)
    require_callable(METHOD, on_bound, "on_bound")
    if upper_bound != math.inf:
        upper_bound = valid.real(owner, "upper_bound", upper_bound)
    memory_bytes = valid.real(owner, "memory_bytes", memory_bytes, strict=True)
    if isinstance(disable, str) or not isinstance(disable, Sequence):
        raise TypeError(f"{owner}: disable must be a sequence of names, got {disable!r:.60}")
    for part in disable:
        valid.known("part", part, PARTS)
    if params is None:
        params = JointExactParams()
    valid.of_type(owner, "params", params, JointExactParams)
    tables = joint_tables(instance, METHOD)
    warm = warm_decision(instance, tables, METHOD, warm_start, time_limit_s, seed)
    min_s = idle_bound_s(instance, tables)
    if math.isinf(min_s):
        nothing = Certificate(kind="infeasible", value_s=math.inf, bound_s=math.inf)
        return replace(no_partition(instance), certificate=nothing)
    completion = None if warm is None else table_times(tables, warm)[1][:, -1]
    tables, last = drop_dominated(tables, instance.objective, completion)
    search = BranchAndBound(
        instance, tables, params, seed=seed, memory_bytes=memory_bytes,
        disable=frozenset(disable), deadline=deadline, min_s=min_s,
        on_improve=on_improve, on_bound=on_bound, horizon=float(last.max()),
    )  # fmt: skip
    search.find_incumbent(warm)
    search.upper = min(search.upper, search.value_of(upper_bound))
    bound = search.run()
    outcome = to_joint_outcome(
        instance, search.incumbent, warm, solver=METHOD,
        stopped=search.stop_reason(bound, upper_bound),
        bound_s=proven_s(instance, tables, bound, 0.0), min_s=min_s,
        statistics=dict(search.counts),
    )  # fmt: skip
    outcome = replace(outcome, message=f"{outcome.message}; {search.account()}")
    if np.ptp(tables.origin_s) > 1e-12 * search.horizon:  # pauses were cut out
        return outcome
    return replace(outcome, certificate=search.certificate())
