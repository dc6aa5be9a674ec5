"""Hyperion+: partitions by their bounds, schedules by list scheduling and local search."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.joint.decision import no_partition
from hypsolve.solvers.joint.heft import heft
from hypsolve.solvers.joint.hyperion_plus_params import HyperionPlusParams
from hypsolve.solvers.joint.latency_bounds import PartitionBounds
from hypsolve.solvers.joint.schedule_search import ScheduleSearch
from hypsolve.solvers.joint.two_stage import hyperion
from hypsolve.solvers.outcomes import OPTIMAL_GAP

METHOD = "hyperion_plus"
BOUND_ERROR = 1e-9  # relative; a bound above the objective by more is a bug


def hyperion_plus(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    prove: bool = False,
    params: HyperionPlusParams | None = None,
) -> Outcome:
    """Find a partition and a schedule for thousands of requests, never worse than Hyperion.

    1. Start from the solutions of HEFT and of Hyperion [1]_, the latter with the partition of
       minimal bottleneck and with that of minimal path latency.
    2. Take partitions in ascending order of a lower bound, and schedule each one by list
       scheduling in SRPT order, until no partition left can be better than the incumbent.
    3. Improve the schedules of the best partitions by local search in windows of time.
    4. If asked to, raise the lower bound by subgradient ascent.

    Like HEFT, and unlike a dispatch policy, the method knows all arrivals in advance. It is
    therefore meant for planning a known workload, or for measuring how much a dispatch policy
    could still gain.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        The search is limited by its number of trials, and takes about a second per 1,000
        requests. It stops earlier if the time limit is reached.
    seed : int
        Seed of the perturbations in restarts. The answer is reproducible unless the time limit
        ends the search.
    prove : bool
        Raise ``bound_s`` by subgradient ascent of the Lagrangian bound (mean latency only).
        This takes a second for tens of requests, and all of `time_limit_s` for 1,000 or more.
        Half of the time limit is kept for it. If the first ascent would not fit into this half,
        or if the arrivals are too far apart for its time grid, the ascent is skipped and
        ``message`` says so.
    params : HyperionPlusParams, optional
        Tunable constants.

    Returns
    -------
    Outcome
        FEASIBLE, or OPTIMAL if the bound is reached. ``bound_s`` is a lower bound over all
        partitions and schedules, even if the time limit ends the search.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[1.0, 1.0], [2.0, 2.0]]], [1, 1], [[(0, 2)], [(1, 2)]],
    ...     arrival_s=[0, 0, 1], objective="mean_latency",
    ... )
    >>> result = hs.solve(instance, "hyperion_plus", prove=True)
    >>> result.partition.cuts, result.objective_s, result.status.value
    ((0, 1, 2), 4.666666666666667, 'optimal')
    """
    prove = valid.flag(f"method {METHOD!r}", "prove", prove)
    params = HyperionPlusParams() if params is None else params
    valid.of_type(f"method {METHOD!r}", "params", params, HyperionPlusParams)
    deadline = Deadline(time_limit_s)
    bounds = PartitionBounds(instance, params.ascent)
    search = ScheduleSearch(bounds, params, deadline.at_s, np.random.default_rng(seed))

    for partition, schedule in _warm_starts(instance, deadline, seed):
        search.start_from(partition, schedule)
    if search.partition is None:  # then no path of a single request is feasible either
        return no_partition(instance)

    kept_s = (1 - params.search_share) * time_limit_s
    ascent_s = _first_ascent_s(bounds, search) if prove else math.inf
    if ascent_s <= kept_s:
        search.deadline = deadline.at_s - kept_s
    search.schedule_partitions()
    search.improve()
    notes = [f"{len(search.candidates)} partitions scheduled, {search.n_trials} trials"]
    if search.is_late():
        notes.append("search stopped at the time limit")

    if ascent_s <= kept_s:
        is_stopped = bounds.raise_bound(search.incumbent(), deadline.at_s)
        until = " until the time limit" if is_stopped else ""
        notes.append(f"bound raised by subgradient ascent{until}")
    elif prove:
        notes.append(_why_no_ascent(instance, ascent_s))
    return _to_outcome(bounds, search, ", ".join(notes))


def _warm_starts(
    instance: Instance, deadline: Deadline, seed: int
) -> Iterator[tuple[Partition, Schedule]]:
    """Yield the solutions of Hyperion, of Hyperion for the path latency, and of HEFT.

    After the deadline, only solutions are made that are needed to have one.
    """
    has_any = False
    for method in (hyperion, partial(hyperion, partition_objective="path"), heft):
        if has_any and deadline.has_passed():
            return
        outcome = method(instance, time_limit_s=deadline.left_s(), seed=seed)
        if outcome.partition is not None and outcome.schedule is not None:
            has_any = True
            yield outcome.partition, outcome.schedule


def _first_ascent_s(bounds: PartitionBounds, search: ScheduleSearch) -> float:
    """Estimate the seconds of the first ascent; inf if there is no Lagrangian bound."""
    if not search.candidates:
        return math.inf
    return bounds.first_ascent_s(search.candidates[0].relaxation, search.incumbent())


def _why_no_ascent(instance: Instance, ascent_s: float) -> str:
    if instance.objective is Objective.MAKESPAN:
        return "no Lagrangian bound for a makespan"
    reason = "no time" if ascent_s < math.inf else "too many ticks"
    return f"{reason} for the Lagrangian bound"


def _to_outcome(bounds: PartitionBounds, search: ScheduleSearch, message: str) -> Outcome:
    """Return the incumbent with its bound; a bound above it by rounding alone is cut off."""
    objective_s, bound_s = search.objective_s, bounds.bound_s
    if objective_s < bound_s <= objective_s * (1 + BOUND_ERROR):
        bound_s = objective_s
    is_proved = objective_s - bound_s <= OPTIMAL_GAP * objective_s
    return Outcome(
        Status.OPTIMAL if is_proved else Status.FEASIBLE,
        search.partition,
        search.schedule,
        bound_s=bound_s,
        message=message,
        statistics={
            "n_boxes": bounds.n_boxes,
            "n_scheduled": len(search.candidates),
            "n_trials": search.n_trials,
        },
    )
