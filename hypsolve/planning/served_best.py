"""`served_best`: of several networks with their splits, the one that serves most, simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.goal import GOODPUT, RATE, Goal
from hypsolve.planning.query import Solution
from hypsolve.planning.simulation_search import Progress
from hypsolve.solvers.clock import Deadline

MAX_EACH = 3  # choices that are simulated: the best by objective, and the best by model
CLOSE = 1 / 32  # relative difference of rates that are not told apart; see `Forecast`


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A split of one of several networks.

    Attributes
    ----------
    order : tuple of float
        The smallest is preferred, before anything is simulated.
    solution : Solution
        Its partition is not None.
    """

    order: tuple[float, ...]
    solution: Solution


def served_best(
    choices: Sequence[Choice], deadline: Deadline, progress: Progress | None = None
) -> Choice:
    """Return the choice that serves most in simulation, where a rate is asked for.

    The objective is about requests one at a time, so its order of networks may be wrong for
    batches. The best few by that order, and by the model of the quantity (`Goal.model`), are
    simulated, with arrivals that do not depend on the seed of the query. Of nearly equal ones,
    the first in the order is returned. A network whose simulation was cut short counts with its
    model, scaled by the least share of theirs that the others reach. If no request is served
    within its targets on any, the one that is nearest to them is returned, and of equally near
    ones the one that serves most. If the goal is a latency, nothing is simulated.

    Parameters
    ----------
    choices : sequence of Choice
        At least one.
    deadline : Deadline
        When it has passed, no further choice is simulated.
    progress : callable, optional
        Called with a line for each simulated choice.
    """
    ordered = sorted(choices, key=lambda choice: choice.order)
    query = ordered[0].solution.query
    goal = Goal(query)
    if not goal.is_rate or query.is_simulated or len(ordered) == 1:
        return ordered[0]
    modelled = sorted(ordered, key=lambda choice: goal.rank(_model(goal, choice)))
    few = list(dict.fromkeys([*ordered[:MAX_EACH], *modelled[:MAX_EACH]]))
    served: list[tuple[float, Choice]] = []
    unknown: list[Choice] = []
    failing: list[tuple[float, float, Choice]] = []  # factor on the targets, rate
    for choice in few:
        if deadline.has_passed():
            unknown.append(choice)
            continue
        if progress is not None:
            progress(f"simulating {len(few)} networks: {len(served)} done")
        forecast = _forecast(goal, choice, deadline)
        if deadline.has_passed() and goal.is_lower_bound(forecast):
            unknown.append(choice)
            continue
        served.append((goal.of(forecast), choice))
        failing.append((stretch_at(forecast), forecast.requests_per_s, choice))
    served = [(value, choice) for value, choice in served if not math.isnan(value)]
    if not served:
        return modelled[0]
    if goal.quantity == RATE:  # the bound on a rate, scaled by what the others reach of theirs
        reached = min(value / _model(goal, choice) for value, choice in served)
        served += [(reached * _model(goal, choice), choice) for choice in unknown]
    most = max(value for value, _ in served)
    if most <= 0 and goal.quantity == GOODPUT:
        return _nearest(failing)
    close = [choice for value, choice in served if value >= most * (1 - CLOSE)]
    return min(close, key=lambda choice: choice.order)


def _nearest(failing: Sequence[tuple[float, float, Choice]]) -> Choice:
    """Return the choice with the least factor on the targets, then the largest rate."""
    least = min(stretch for stretch, _, _ in failing)
    near = [each for each in failing if each[0] <= least * (1 + CLOSE)]
    most = max(rate for _, rate, _ in near)
    best = [choice for _, rate, choice in near if rate >= most * (1 - CLOSE)]
    return min(best, key=lambda choice: choice.order)


def stretch_at(forecast: Forecast) -> float:
    """Return the factor on the targets within which 95 % of a forecast's requests are.

    Each target counts for itself. It is inf where latencies grow without end.
    """
    load = forecast.load
    pairs = ((forecast.ttft_s, load.ttft_slo_s), (forecast.tpot_s, load.tpot_slo_s))
    if forecast.keeps_up is False and load.users is None:
        return math.inf
    return max((each.p95 / slo for each, slo in pairs if slo is not None and each.n), default=0)


def _model(goal: Goal, choice: Choice) -> float:
    partition = choice.solution.result.partition
    assert partition is not None
    return goal.model(choice.solution, partition.cuts, choice.solution.query)


def _forecast(goal: Goal, choice: Choice, deadline: Deadline) -> Forecast:
    """Simulate the load of a choice, as far as its quantity needs."""
    solution = choice.solution
    assert solution.result.partition is not None
    return predict(
        solution.deployment,
        solution.result.partition,
        replace(solution.query.load, seed=0),
        instance=solution.instance,
        deadline=deadline,
        only=goal.quantity,
    )
