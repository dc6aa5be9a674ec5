"""Simulate what nodes that an export leaves out would have served, in requests/s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hypsolve.planning.exporters.layout import Layout
from hypsolve.planning.forecast import Forecast, predict
from hypsolve.planning.goal import GOODPUT, Goal
from hypsolve.planning.plan import Plan
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.units import count, show_seconds
from hypsolve.solvers.clock import Deadline


class Rate(NamedTuple):
    """A sustained rate in requests/s, and whether larger ones may be sustained, too."""

    per_s: float
    is_lower_bound: bool = False

    def __str__(self) -> str:
        return f"{'at least ' * self.is_lower_bound}{self.per_s:.3g}"


UNKNOWN = Rate(math.nan)


def left_out(plan: Plan, layout: Layout, instead_of: Plan | None) -> list[str]:
    """Return comments on the nodes that no pipeline has, with their cost in requests/s.

    They are one line for each reason: what they would have served, that the runtime does not
    run on them, or that they have too few GPUs.

    Parameters
    ----------
    plan : Plan
        The exported plan.
    layout : Layout
        Its pipelines.
    instead_of : Plan or None
        The plan whose place it takes; its nodes are missed, too.
    """
    best = plan if instead_of is None or not instead_of.fits else instead_of
    kept = {card.node for replica in layout.replicas for card in replica.cards}
    missed = [node.node for node in best.nodes if node.is_used and node.node not in kept]
    empty = [node.node for node in plan.nodes if node.node not in kept]
    alone = (*plan.query.left_out, *plan.query.too_small)
    others = [n for n in dict.fromkeys([*missed, *empty, *plan.unused_nodes]) if n not in alone]
    lines = []
    if missed:
        before = UNKNOWN if best.forecast is None else _rate(best.forecast)
        lines.append(_line(others, f"; {describe(before, sustained(plan, layout))}"))
    elif others:
        lines.append(_line(others, "; they add nothing: no plan found with them serves more"))
    if plan.query.left_out:
        name = plan.query.runtime.name
        lines.append(_line(plan.query.left_out, f"; they add nothing: {name} runs on none"))
    small = [name for name in plan.query.too_small if name not in plan.query.left_out]
    if small:
        lines.append(_line(small, _of_degrees(plan)))
    return lines


def _line(nodes: Sequence[str], why: str) -> str:
    return f"# left out: {', '.join(nodes)}{why}"


def _of_degrees(plan: Plan) -> str:
    """Say what a degree that lets in nodes with few GPUs serves."""
    words = f" (fewer GPUs than compute as one, {plan.query.tensor_parallel})"
    goal = Goal(plan.query)
    lets_in = min(
        (each for each in plan.degrees[1:] if each.is_allowed),
        key=lambda each: each.degrees,
        default=None,
    )
    if lets_in is None or math.isnan(lets_in.value):
        return words
    served = f"has a mean latency of {show_seconds(lets_in.value)}"
    if goal.is_rate:
        within = " within the targets" * (goal.quantity == GOODPUT)
        served = f"serves {lets_in.value:.3g} requests/s{within}"
    return (
        f"{words}; they add nothing: degree {lets_in.describe_degrees()}, which lets them in,"
        f" {served}, simulated"
    )


def sustained(plan: Plan, layout: Layout, deadline: Deadline | None = None) -> Rate:
    """Return about the largest rate that the pipelines alone sustain.

    For users in a closed loop, it is the rate at which they are served. It is simulated as the
    forecast of a plan is, on the network of the nodes in pipelines. The search for it ends at
    the deadline, by default after the time limit of the plan.
    """
    if not layout.left_out and plan.forecast is not None:
        return _rate(plan.forecast)
    assert plan.result.partition is not None
    without = _without(plan.deployment, layout.left_out)
    return _rate(
        predict(
            without,
            plan.result.partition,
            plan.query.load,
            only="requests/s",
            deadline=deadline or Deadline(plan.query.time_limit_s),
        )
    )


def _rate(forecast: Forecast) -> Rate:
    if forecast.load.users is not None:
        return Rate(forecast.requests_per_s)
    return Rate(forecast.max_requests_per_s, forecast.max_rate_is_lower_bound)


def describe(before: Rate, after: Rate) -> str:
    """Describe a change of the largest sustained rate."""
    if math.isnan(before.per_s) or math.isnan(after.per_s):
        return "what they would serve takes too many requests to simulate"
    if before.is_lower_bound or after.is_lower_bound:  # the difference is not known
        return f"{after} requests/s instead of {before}, simulated (a search was cut short)"
    if str(before) == str(after):
        return f"they add nothing to {before} requests/s, simulated"
    more = after.per_s - before.per_s
    change = f"{abs(more):.3g} requests/s {'more' if more > 0 else 'less'}"
    return f"{change}: {after} instead of {before}, simulated"


def summary(nodes: Sequence[str]) -> str:
    """Name nodes, as in ``a, b and 3 more nodes``."""
    more = len(nodes) - 4
    first = ", ".join(nodes[:4])
    return first if more <= 0 else f"{first} and {count(more, 'more node')}"


def _without(deployment: Deployment, nodes: Sequence[str]) -> Deployment:
    """Return a deployment without some nodes; a tier keeps at least one."""
    tiers = []
    for tier in deployment.network.tiers:
        kept = tuple(node for node in tier.nodes if node.name not in nodes)
        tiers.append(replace(tier, nodes=kept or tier.nodes))
    network = replace(deployment.network, tiers=tuple(tiers))
    return replace(deployment, network=network)
