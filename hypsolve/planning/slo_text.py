"""The answer to targets as text: yes or no, the largest loads, what binds, what would help."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hypsolve.planning.saturation import MET
from hypsolve.planning.slo_answer import BOUND, SOME_SPLITS, THIS_SPLIT, TIME_LIMIT
from hypsolve.problem.units import count, show_seconds

NOT_DRAINED = "a queue that a burst leaves never drains"

if TYPE_CHECKING:
    from hypsolve.planning.load import Load
    from hypsolve.planning.plan import Plan
    from hypsolve.planning.slo_answer import SloAnswer, SufficientUpgrade


def slo_lines(plan: Plan) -> list[str]:
    """Return the answer to the targets of a plan in sentences; none without an answer."""
    if plan.slo_answer is None:
        return []
    return [
        describe_answer(plan.slo_answer, plan.query.load),
        *_details(plan, plan.slo_answer),
    ]


def describe_answer(answer: SloAnswer, load: Load) -> str:
    """Say whether a load is served within its targets."""
    who = f"{load.rate_per_s:g} requests/s" if load.users is None else load.describe()
    later = "the later half of " * answer.is_of_later_half
    share = f"{answer.slo_attainment:.1%} of {later}{answer.n_requests} simulated requests"
    if load.users is not None:
        share += " after the first one of each user"
    targets = describe_slos(load)
    limits = f" with {answer.limits}" if answer.limits else ""
    if answer.is_met:
        return f"yes: {who} are served within {targets} ({share})"
    if answer.keeps_up:
        why = f"only {share}; it takes {MET:.0%}"
    else:
        most = answer.sustained_requests_per_s
        about = f", which is about {most:.3g}" if most > 0 else ""
        reason = "latencies grow without limit" if answer.drains else NOT_DRAINED
        why = (
            f"more than this split keeps up with{about}: {reason}, though {share} are within"
            " the targets"
        )
    tried = f"{count(answer.n_simulated_splits, 'split')} simulated"
    if answer.n_splits is not None:
        tried = f"{answer.n_simulated_splits} of {count(answer.n_splits, 'split')} simulated"
    if answer.decided_by == TIME_LIMIT:
        return (
            f"not decided in time: no split was found that serves {who} within {targets};"
            f" {tried}, this one{limits}: {why}"
        )
    if answer.decided_by == SOME_SPLITS:
        return (
            f"no split found that serves {who} within {targets}: {tried}, this one{limits}:"
            f" {why}"
        )
    if answer.decided_by == THIS_SPLIT:
        return f"no: this split does not serve {who} within {targets}{limits} ({why})"
    least = {"TTFT": answer.least_ttft_s, "TPOT": answer.least_tpot_s}
    refuted = {name: s for name, s in least.items() if not math.isnan(s)}
    if refuted:
        why += f"; {describe_refuted(refuted, ' on these machines')}"
    elif answer.decided_by == BOUND:
        why += "; proved: no split and no schedule serves so many"
    elif answer.n_splits is not None and answer.n_splits > 1:
        why += f"; none of the {answer.n_splits} splits of these nodes does, all simulated"
    if answer.n_refuted and answer.decided_by != BOUND:
        why += (
            f"; on {count(answer.n_refuted, 'other choice')} of the nodes, with the limits"
            " there, no split serves so many by its bound"
        )
    return f"no: {who} are not served within {targets}{limits} ({why})"


def describe_refuted(least_s: Mapping[str, float], where: str) -> str:
    """Say that no split has smaller latencies than these, by ``TTFT`` or ``TPOT``."""
    times = " or ".join(f"a {name} below {show_seconds(s)}" for name, s in least_s.items())
    return f"proved: no split and no schedule{where} has {times}"


def describe_slos(load: Load) -> str:
    """Name the targets of a load."""
    targets = {"TTFT": load.ttft_slo_s, "TPOT": load.tpot_slo_s}
    return " and ".join(
        f"{name} <= {show_seconds(limit)}"
        for name, limit in targets.items()
        if limit is not None
    )


def is_unsearched(answer: SloAnswer) -> bool:
    """Return whether no load was seen to be within the targets before the search was cut."""
    found = answer.max_users or answer.max_requests_per_s
    return not found and answer.max_users_is_lower_bound and answer.max_rate_is_lower_bound


def is_hopeless(answer: SloAnswer) -> bool:
    """Return whether not even the smallest load is within the targets."""
    found = answer.max_users or answer.max_requests_per_s
    return not (found or answer.max_users_is_lower_bound or answer.max_rate_is_lower_bound)


def largest_users(answer: SloAnswer) -> str:
    """Write the largest number of users within the targets."""
    if not answer.max_users and answer.max_users_is_lower_bound:
        return "a number of users that was not found in time"
    at_least = "at least " * answer.max_users_is_lower_bound
    tolerance = answer.max_users_tolerance
    found_to = f" (found to {max(tolerance, 0.01):.0%})" if tolerance else ""
    return f"{at_least}{count(answer.max_users, 'user')}{found_to}"


def largest_rate(answer: SloAnswer) -> str:
    """Write the largest rate within the targets."""
    if not answer.max_requests_per_s and answer.max_rate_is_lower_bound:
        return "a rate that was not found in time"
    at_least = "at least " if answer.max_rate_is_lower_bound else "about "
    return f"{at_least}{answer.max_requests_per_s:.3g} requests/s"


def _details(plan: Plan, answer: SloAnswer) -> Iterator[str]:
    """Yield the largest loads, what binds, and the cheapest upgrade."""
    if is_unsearched(answer):
        yield "the largest load of this split within the targets was not found in time"
    elif is_hopeless(answer):
        yield "this split serves no load within the targets, not even a single user"
    else:
        yield (
            f"the largest load of this split within the targets: {largest_users(answer)}, or"
            f" {largest_rate(answer)} of {plan.query.load.arrivals}"
        )
    binds = []
    if answer.binding_target:
        binds.append(f"with a larger load, {answer.binding_target} misses its target first")
    if answer.limited_by:
        binds.append(f"without targets, {answer.limited_by} limits the rate")
    if binds:
        yield f"what binds: {'; '.join(binds)}"
    if answer.better_budget is not None:
        budget = answer.better_budget
        yield (
            f"simulated with {budget.what}, which costs nothing, this split serves about"
            f" {budget.max_requests_per_s:.3g} requests/s within the targets"
        )
    if answer.upgrade is not None:
        upgrade = describe_sufficient(answer.upgrade, plan.network.currency)
        yield f"the cheapest upgrade of one kind that reaches it: {upgrade}"
    elif answer.upgrades_were_tried:
        yield "no upgrade that was tried reaches it"


def describe_sufficient(upgrade: SufficientUpgrade, currency: str = "") -> str:
    """Say what an upgrade is, its price, and the share of the requests within the targets."""
    money = f" {currency}" if currency else ""
    if math.isnan(upgrade.price_per_hour):
        price = "price unknown" + (
            f", {count(upgrade.n_gpus, 'GPU')}" if upgrade.n_gpus else ""
        )
    elif upgrade.price_per_hour:
        price = f"{upgrade.price_per_hour:.4g}{money} per hour"
    else:
        price = "no hardware"
    mark = ", extrapolated" if upgrade.extrapolated else ""
    what = "at most " * upgrade.is_upper_bound + upgrade.what
    return f"{what} ({price}{mark}); {upgrade.slo_attainment:.1%} are then within them"
