"""Make the `Outcome` of a solver; validate warm starts and callbacks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hypsolve.problem.evaluation import check, evaluate
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status

# Relative gap, by the exact costs, up to which an answer is OPTIMAL. It is part of the meaning
# of OPTIMAL and equal for all methods, so it is not an option.
OPTIMAL_GAP = 1e-6

OnImprove = Callable[[float, float, Partition, Schedule | None], None]  # objective_s, bound_s
OnBound = Callable[[float], None]  # bound_s
WarmStart = Any  # bool, Outcome, Result, Partition or (Partition, Schedule): see `given_start`


def require_callable(method: str, callback: Any, name: str = "on_improve") -> None:
    """Raise TypeError unless `callback` is callable or None."""
    if callback is not None and not callable(callback):
        raise TypeError(
            f"method {method!r}: {name} must be callable or None, got {callback!r:.60}"
        )


def given_start(
    instance: Instance, method: str, warm_start: WarmStart, own: Callable[[], Outcome]
) -> tuple[Partition | None, Schedule | None]:
    """Return the partition and the schedule from which a solver starts.

    Parameters
    ----------
    warm_start : bool, Outcome, Result, Partition or (Partition, Schedule)
        False: none. True: the outcome of `own`. Otherwise the solution of the caller.
    own : callable
        Makes the default warm start.

    Raises
    ------
    TypeError
        If the caller's `warm_start` is not a solution, or lacks the schedule that the objective
        needs.
    ValueError
        If it breaks a rule of the instance.
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
    """Make an Outcome from the answer of a solver.

    The solution is scored by the exact costs. It is OPTIMAL if the score meets the bound within
    `OPTIMAL_GAP`. The bound is dropped if the solver contradicts facts that are known without
    it, as floating-point solvers may.

    Parameters
    ----------
    solver : str
        Name of the solver in messages.
    stopped : str
        Why the solver stopped, as in "at the time limit"; empty if it completed its search.
    infeasible : bool
        Whether the solver reports that there is no solution.
    bound_s : float
        Lower bound that the solver proved.
    min_s, upper_s : float
        Bounds on the optimum that are known without the solver.
    claimed_s : float, optional
        Objective of the solution according to the solver. If it is too low, the solver worked
        with wrong costs and its bound is dropped.
    statistics : mapping
        Passed on to the Outcome.
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
    too_low = claimed_s is not None and objective_s > claimed_s + OPTIMAL_GAP * objective_s
    if infeasible or bound_s > max_s or (partition is not None and too_low):
        bound_s = 0.0
        message = f"{solver} contradicts the exact costs (rounding): its bound is not used"
    bound_s = min(max(0.0, bound_s, min_s), objective_s)
    status = Status.UNKNOWN
    if partition is not None:
        proven = objective_s - bound_s <= OPTIMAL_GAP * objective_s
        status = Status.OPTIMAL if proven else Status.FEASIBLE
    if status is not Status.OPTIMAL and message.startswith("proved"):
        message = f"{solver} completed its search, but rounding left a gap"
    return Outcome(
        status, partition, schedule, bound_s=bound_s, message=message, statistics=statistics
    )


def without_model(
    instance: Instance, warm: Partition | None, solver: str, min_s: float, build_s: float
) -> Outcome:
    """Return the outcome of a partition method whose deadline passed before its model stood."""
    return to_outcome(
        instance, warm, solver=solver,
        stopped="at the time limit, before its model was built",
        bound_s=0.0, min_s=min_s, statistics={"build_s": build_s},
    )  # fmt: skip


def cheaper_partition(
    instance: Instance, found: Partition | None, warm: Partition | None
) -> Partition | None:
    """Return the cheaper of the partition that a solver found and its warm start."""
    known = [partition for partition in (found, warm) if partition is not None]
    return min(known, key=lambda partition: evaluate(instance, partition), default=None)
