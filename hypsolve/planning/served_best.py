"""`served_best`: of several networks with their splits, the one that serves most, simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hypsolve.planning.forecast import predict
from hypsolve.planning.goal import RATE, Goal
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
    simulated. Of nearly equal ones, the first in the order is returned. A network whose
    simulation was cut short counts with its model, scaled by the least share of theirs that the
    others reach. If the goal is a latency, nothing is simulated.

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
    for choice in few:
        if deadline.has_passed():
            unknown.append(choice)
            continue
        if progress is not None:
            progress(f"simulating {len(few)} networks: {len(served)} done")
        value = _simulated(goal, choice, deadline)
        if math.isnan(value):
            unknown.append(choice)
        else:
            served.append((value, choice))
    if not served:
        return modelled[0]
    if goal.quantity == RATE:  # the bound on a rate, scaled by what the others reach of theirs
        reached = min(value / _model(goal, choice) for value, choice in served)
        served += [(reached * _model(goal, choice), choice) for choice in unknown]
    most = max(value for value, _ in served)
    close = [choice for value, choice in served if value >= most * (1 - CLOSE)]
    return min(close, key=lambda choice: choice.order)


def _model(goal: Goal, choice: Choice) -> float:
    partition = choice.solution.result.partition
    assert partition is not None
    return goal.model(choice.solution, partition.cuts, choice.solution.query)


def _simulated(goal: Goal, choice: Choice, deadline: Deadline) -> float:
    """Return the quantity in simulation; nan if its search was cut short."""
    solution = choice.solution
    assert solution.result.partition is not None
    forecast = predict(
        solution.deployment,
        solution.result.partition,
        solution.query.load,
        instance=solution.instance,
        deadline=deadline,
        only=goal.quantity,
    )
    is_cut_short = deadline.has_passed() and goal.is_lower_bound(forecast)
    return math.nan if is_cut_short else goal.of(forecast)
