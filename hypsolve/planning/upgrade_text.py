"""Upgrades as text, and the split that is better without any upgrade."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypsolve.planning.goal import Goal
from hypsolve.planning.what_if import Upgrade
from hypsolve.problem.units import show_seconds

if TYPE_CHECKING:
    from hypsolve.planning.plan import Plan

MANYFOLD = 10.0  # ratio of simulated values from which it is written as such
CLEARLY = 1.02  # ratio of simulated values from which a split is called better


def split_first(plan: Plan) -> tuple[Upgrade, ...]:
    """Return the split that is better without any upgrade, to be listed before upgrades."""
    other = other_split(plan)
    return () if other is None else (other,)


def other_split(plan: Plan) -> Upgrade | None:
    """Return the best known split of the same machines, if it is better than this plan's."""
    if plan.forecast is None or not plan.alternatives:
        return None
    goal = Goal(plan.query)
    best = min(plan.alternatives, key=lambda other: goal.rank(goal.of_split(other)))
    value, own = goal.of_split(best), goal.of(plan.forecast)
    gain = goal.gain(own, value)
    if not gain > CLEARLY - 1 or goal.is_lower_bound(plan.forecast):
        return None
    is_settled = goal.is_settled(plan.forecast)
    return Upgrade(
        what=f"another split of the same machines (--objective {best.objective}), no upgrade",
        quantity=goal.quantity,
        before=own,
        after=value,
        gain=gain if is_settled else math.nan,
        price_per_hour=math.nan,
        cuts=best.cuts,
        is_lower_bound=best.max_rate_is_lower_bound and goal.quantity == "requests/s",
        before_is_settled=is_settled,
        extrapolated=False,
    )


def describe_upgrade(upgrade: Upgrade, currency: str = "") -> str:
    """Say what an upgrade improves, by how much, and for what price."""
    value, more = f"{show_quantity(upgrade)}{_unsettled(upgrade)}", ""
    if math.isfinite(upgrade.gain):
        least = "at least " * upgrade.is_lower_bound
        more = f", {least}{upgrade.gain:.0%} {'more' if upgrade.is_rate else 'less'}"
        if upgrade.gain >= MANYFOLD - 1:
            more = f", {least}{upgrade.gain + 1:.3g} times as much"
    price = ""
    if upgrade.price_per_hour > 0:
        money = f" {currency}" if currency else ""
        price = f", for {upgrade.price_per_hour:.4g}{money} per hour"
        if math.isfinite(upgrade.gain_per_price):
            price += f" ({upgrade.gain_per_price:.0%} per{money or ' unit'} and hour)"
    mark = " (extrapolated)" if upgrade.extrapolated else ""
    return f"{value}{more}{price}{mark}"


def _unsettled(upgrade: Upgrade) -> str:
    """Say which of two simulations is not settled; empty if both are."""
    if not upgrade.is_settled:
        return " (not settled: the queue may still grow)"
    if not upgrade.before_is_settled:
        return ", where the simulation without it is not settled"
    return ""


def show_quantity(upgrade: Upgrade) -> str:
    """Write the value that an upgrade reaches with its unit."""
    if math.isnan(upgrade.after):
        return "it fits; what it serves takes too long to simulate"
    if upgrade.quantity == "goodput":
        share = upgrade.slo_attainment
        of_all = "" if math.isnan(share) else f" ({share:.1%} of them)"
        return f"{upgrade.after:.3g} requests/s within the targets{of_all}"
    if upgrade.quantity == "requests/s":
        now = ""
        if upgrade.before_is_lower_bound:
            now = f", where now it is at least {upgrade.before:.3g} (that search was cut short)"
        return f"{describe_bound(upgrade.is_lower_bound)} {upgrade.after:.3g} requests/s{now}"
    return f"{upgrade.quantity} {show_seconds(upgrade.after)}"


def describe_bound(is_lower_bound: bool) -> str:
    """Return the word for a rate that was searched for by simulation."""
    return "at least" if is_lower_bound else "about"
