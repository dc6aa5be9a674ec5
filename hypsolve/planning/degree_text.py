"""Degrees of tensor parallelism as text: what each serves, and what a restriction costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypsolve.planning.degree_choice import DegreeChoice
from hypsolve.planning.goal import RATE, Goal
from hypsolve.planning.tensor_parallel import restriction_cost
from hypsolve.problem.units import count, show_seconds

if TYPE_CHECKING:
    from hypsolve.planning.plan import Plan
    from hypsolve.planning.replan import Replan


def left_out_lines(plan: Plan) -> Iterator[str]:
    """Yield what degrees leave out: nodes, and the rule that every tier holds a block."""
    query = plan.query
    if too_small := [name for name in query.too_small if name not in query.left_out]:
        names = ", ".join(too_small)
        yield f"left out: {names} (fewer GPUs than compute as one, {query.tensor_parallel})"
    yield from idle_lines(plan)
    if empty := _left_empty(plan):
        yield (
            f"set aside: that every tier holds a block, for {', '.join(empty)}: a tier without"
            " a machine for some degree of tensor parallelism may be empty under all degrees,"
            " unless the network file states its min_blocks"
        )


def idle_lines(plan: Plan) -> Iterator[str]:
    """Name the GPUs of machines that are in no group, and what degrees without any serve."""
    idle = plan.query.idle_gpus
    if not idle:
        return
    names = ", ".join(f"{count(n, 'GPU')} of {name}" for name, n in idle.items())
    degree = plan.query.tensor_parallel
    groups = "groups" if degree is None else f"groups of {degree}"
    line = f"left out: {names} (the others compute in {groups})"
    goal = Goal(plan.query)
    others = [
        each
        for each in plan.degrees
        if each.is_allowed and not each.n_idle_gpus and not math.isnan(each.value)
    ]
    if others and plan.degrees[0].n_idle_gpus:
        other = min(others, key=lambda each: goal.rank(each.value))
        value, own = _value(goal, other), _value(goal, plan.degrees[0])
        short = ", in short simulations" * plan.query.is_rate
        degrees = other.describe_degrees()
        line += f"; degree {degrees} uses all GPUs: {goal.quantity} {value}, not {own}{short}"
    yield line


def _left_empty(plan: Plan) -> list[str]:
    """Return the optional tiers of a plan that hold no block."""
    if not plan.fits:
        return []
    used = {stage.tier for stage in plan.stages if stage.blocks}
    return [
        name
        for name in plan.query.optional
        if not any(each == name or each.startswith(f"{name}/") for each in used)
    ]


def degree_lines(plan: Plan) -> Iterator[str]:
    """Yield what each degree of tensor parallelism serves, and what a restriction costs."""
    if not plan.degrees:
        return
    goal = Goal(plan.query)
    how = "simulated"
    if plan.query.is_rate:
        how = "in short simulations, which compare degrees"
    of_each = (
        f"{each.describe_degrees()}: {_value(goal, each) if each.fits else each.reason}"
        for each in plan.degrees
        if each.is_allowed
    )
    full = [
        f"{each.describe_degrees()}: {each.full_value:.3g}"
        for each in plan.degrees
        if not math.isnan(each.full_value)
    ]
    at_length = f"; in long ones {'; '.join(full)}" if full else ""
    yield f"tensor parallelism, {goal.quantity} {how}: {'; '.join(of_each)}{at_length}"
    cost = None if plan.query.objective == "cost" else restriction_cost(goal, plan.degrees)
    if cost is not None:
        other, gain = cost
        yield (
            f"degrees of {other.describe_degrees()} by tier, which {plan.query.runtime.name}"
            f" cannot run, would give {_value(goal, other)} ({gain:.1%}"
            f" {'more' if goal.is_rate else 'less'}{', likewise' * plan.query.is_rate})"
        )


def _value(goal: Goal, choice: DegreeChoice) -> str:
    """Write what a choice of degrees serves."""
    if math.isnan(choice.value):
        return "not simulated"
    at_least = "at least " * (choice.max_rate_is_lower_bound and goal.quantity == RATE)
    written = f"{choice.value:.3g}" if goal.is_rate else show_seconds(choice.value)
    return f"{at_least}{written}"


def before_split(plan: Plan | Replan) -> str:
    """Return what a bound covers beside all splits: all degrees, where several were tried."""
    covers = plan.throughput is not None and plan.throughput.bound_is_of_all_degrees
    return "no degree of tensor parallelism, " if covers else ""


def of_degree(plan: Plan | Replan) -> str:
    """Name the degrees that a bound is limited to; empty if it is of all, or there is one."""
    nodes = [node for tier in plan.deployment.network.tiers for node in tier.nodes]
    if before_split(plan) or all(node.tensor_parallel is None for node in nodes):
        return ""
    if plan.query.tensor_parallel is None:
        return " with these degrees of tensor parallelism"
    return f" with tensor parallelism of degree {plan.query.tensor_parallel}"


def describe_lost_degree(plan: Replan) -> str:
    """Say that an earlier plan's degree was chosen anew; empty if it was not."""
    if plan.lost_degree is None:
        return ""
    degree = plan.query.tensor_parallel
    chosen = "the degrees were" if degree is None else f"degree {degree} was"
    return (
        f"the earlier plan had tensor parallelism of degree {plan.lost_degree}, which no"
        f" machine can have any more: {chosen} chosen anew"
    )
