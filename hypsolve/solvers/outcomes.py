"""Turn what a solver found into an `Outcome`; read warm starts and callbacks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hypsolve.problem.evaluation import check, evaluate
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status

OPTIMAL_GAP = 1e-6  # re-evaluated relative gap up to which an answer is OPTIMAL

OnImprove = Callable[[float, float, Partition, Schedule | None], None]  # objective_s, bound_s
OnBound = Callable[[float], None]  # bound_s
WarmStart = Any  # bool, Outcome, Result, Partition or (Partition, Schedule): see `given_start`


def require_callable(method: str, callback: Any, name: str = "on_improve") -> None:
    """Raise TypeError unless the callback can be called, or is not there."""
    if callback is not None and not callable(callback):
        raise TypeError(
            f"method {method!r}: {name} must be callable or None, got {callback!r:.60}"
        )


def given_start(
    instance: Instance, method: str, warm_start: WarmStart, own: Callable[[], Outcome]
) -> tuple[Partition | None, Schedule | None]:
    """Decision to start from: none (False), Hyperion's `own` (True), or the caller's.

    Raises
    ------
    TypeError, ValueError
        If the caller's is no decision, lacks what the objective needs, or breaks a rule.
    """
    owner = f"method {method!r}"
    scheduled = instance.objective.is_scheduled
    schedule: Any = None
    if warm_start is False:
        return None, None
    if warm_start is True:
        made = own()
        return made.partition, made.schedule
    if isinstance(warm_start, Partition):
        partition: Any = warm_start
    elif isinstance(warm_start, tuple) and len(warm_start) == 2:
        partition, schedule = warm_start
    elif hasattr(warm_start, "partition") and hasattr(warm_start, "schedule"):
        partition, schedule = warm_start.partition, warm_start.schedule  # Outcome or Result
    else:
        raise TypeError(
            f"{owner}: warm_start must be True, False, an Outcome, a Result, a Partition or"
            f" (Partition, Schedule), got {warm_start!r:.60}"
        )
    if not isinstance(partition, Partition):
        raise TypeError(
            f"{owner}: warm_start must hold a partition, got {type(partition).__name__}"
        )
    if not isinstance(schedule, Schedule) and (scheduled or schedule is not None):
        raise TypeError(
            f"{owner}: warm_start must hold a partition and a schedule, got {partition!r} and"
            f" {type(schedule).__name__}"
        )
    schedule = schedule if scheduled else None
    broken = check(instance, partition, schedule)
    if broken:
        raise ValueError(f"{owner}: warm_start breaks a rule: {broken[0]}")
    return partition, schedule


def to_outcome(
    instance: Instance,
    partition: Partition | None,
    schedule: Schedule | None = None,
    *,
    solver: str,
    stopped: str = "",
    infeasible: bool = False,
    bound_s: float,
    min_s: float = 0.0,
    claimed_s: float | None = None,
    upper_s: float = math.inf,
    statistics: Mapping[str, Any],
) -> Outcome:
    """Make the Outcome: OPTIMAL iff the decision, scored by definition, meets the bound.

    Parameters
    ----------
    stopped : str
        Why the solver stopped; empty if it ended its search.
    min_s, upper_s : float
        What is known without the solver: bounds on the optimum.
    claimed_s : float, optional
        The decision's objective in the solver's eyes. A floating-point solver that sees less
        than there is, or bounds the optimum by more than is known, is not believed.
    """
    if infeasible and math.isinf(upper_s):
        return Outcome(
            Status.INFEASIBLE,
            bound_s=math.inf,
            message=f"proved by {solver}: no partition keeps the rules",
            statistics=statistics,
        )
    message = f"{solver} stopped {stopped}" if stopped else f"proved by {solver}"
    objective_s = math.inf if partition is None else evaluate(instance, partition, schedule)
    max_s = min(upper_s, objective_s) * (1 + OPTIMAL_GAP)
    less = claimed_s is not None and objective_s > claimed_s + OPTIMAL_GAP * objective_s
    if infeasible or bound_s > max_s or (partition is not None and less):
        bound_s = 0.0
        message = f"{solver} lost its way in rounding: the bound is not its own"
    bound_s = min(max(0.0, bound_s, min_s), objective_s)
    status = Status.UNKNOWN
    if partition is not None:
        proven = objective_s - bound_s <= OPTIMAL_GAP * objective_s
        status = Status.OPTIMAL if proven else Status.FEASIBLE
    if status is not Status.OPTIMAL and message.startswith("proved"):
        message = f"{solver} ended its search with a gap that rounding left"
    return Outcome(
        status, partition, schedule, bound_s=bound_s, message=message, statistics=statistics
    )


def better(
    instance: Instance, found: Partition | None, warm: Partition | None
) -> Partition | None:
    """The cheaper of a solver's partition and the one it started from."""
    given = [partition for partition in (found, warm) if partition is not None]
    return min(given, key=lambda partition: evaluate(instance, partition), default=None)
