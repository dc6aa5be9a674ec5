"""The methods that are compared: those of `THROUGHPUT_METHODS`, and two that simulate."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.serving.simulated import served_by
from hypsolve import (
    Deployment,
    Partition,
    Status,
    evaluate_serving,
    solve,
    to_instance,
    to_serving_instance,
)
from hypsolve.planning.load import Load
from hypsolve.planning.throughput import RateSearch
from hypsolve.problem import evaluation

MAX_VISITS = 1e12
"""Visits of a token at a stage in one simulation: so many that none is shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The split of a method.

    Attributes
    ----------
    status : Status
    partition : Partition or None
    solve_time_s : float
    n_simulated : int
        Splits that the method simulated to find it, and those which the bound on their rate
        shows to serve no more than another one that was simulated.
    message : str
    """

    status: Status
    partition: Partition | None
    solve_time_s: float
    n_simulated: int = 0
    message: str = ""


def best_simulated(deployment: Deployment, *, time_limit_s: float, seed: int) -> Answer:
    """Simulate the best splits of the fluid model, and take the best, as `hypsolve.plan` does.

    The splits of the objectives for requests served one at a time are simulated, too.
    """
    load = Load(seed=seed, max_visits=MAX_VISITS)
    search = RateSearch(deployment, {}, load, objective="throughput", prices_per_hour={})
    result, found = search.run(time_limit_s)
    return Answer(
        status=result.status,
        partition=result.partition,
        solve_time_s=result.solve_time_s,
        n_simulated=0 if found is None else len(found.splits),
        message=result.message if result.partition is None else "",
    )


def every_split(
    deployment: Deployment, *, time_limit_s: float, seed: int, n_requests: int | None = None
) -> Answer:
    """Simulate every split without an empty tier, and take the best.

    Splits that serve more in the fluid model are simulated first. A split is left out if its
    bound is no more than the best rate so far; see `experiments.serving.simulated.served_by`.
    The status is ``optimal`` if the time sufficed for all: no split serves more in these
    simulations.
    """
    began = time.perf_counter()
    digest = to_serving_instance(deployment).digest()
    best, best_rate, n_simulated, is_complete = None, -math.inf, 0, True
    for partition in by_fluid_rate(deployment):
        if time.perf_counter() - began > time_limit_s:
            is_complete = False
            break
        served = served_by(deployment, digest, partition, n_requests, to_beat=best_rate)
        rate = served.requests_per_s
        n_simulated += 1
        if rate > best_rate:
            best, best_rate = partition, rate
    status = Status.OPTIMAL if is_complete else Status.FEASIBLE
    if best is None:
        status = Status.INFEASIBLE if is_complete else Status.UNKNOWN
    return Answer(
        status=status,
        partition=best,
        solve_time_s=time.perf_counter() - began,
        n_simulated=n_simulated,
        message="" if is_complete else "time limit: not all splits were simulated",
    )


def splits(deployment: Deployment) -> list[Partition]:
    """Return all splits without an empty tier whose stages fit."""
    instance = to_instance(deployment)
    n_blocks, n_tiers = instance.n_blocks, instance.n_tiers
    inner = itertools.combinations(range(1, n_blocks), n_tiers - 1)
    found = (Partition((0, *cuts, n_blocks)) for cuts in inner)
    return [each for each in found if not evaluation.check(instance, each)]


def by_fluid_rate(deployment: Deployment) -> list[Partition]:
    """Return `splits`, the one with the largest rate in the fluid model first."""
    instance = to_serving_instance(deployment)
    found = splits(deployment)
    rates = [evaluate_serving(instance, each).fluid_requests_per_s for each in found]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: -rates[i])]


SIMULATING: Mapping[str, Callable[..., Answer]] = {
    "best_simulated": best_simulated,
    "every_split": every_split,
}
"""Methods of a deployment that simulate splits themselves."""


def solved(
    method: str, deployment: Deployment, options: Mapping[str, Any], *, time_limit_s: float,
    seed: int,
) -> Answer:  # fmt: skip
    """Call a method by its name."""
    if method in SIMULATING:
        function = SIMULATING[method]
        return function(deployment, time_limit_s=time_limit_s, seed=seed, **options)
    instance = to_serving_instance(deployment)
    result = solve(instance, method, time_limit_s=time_limit_s, seed=seed, **options)
    return Answer(
        status=result.status,
        partition=result.partition,
        solve_time_s=result.solve_time_s,
        message=result.message if result.partition is None else "",
    )
