"""A bound on all splits holds for the split of a plan, too."""

import hypsolve as hs
from hypsolve.planning.rate_bound import bound_on_rate
from instances import network


def test_the_lesser_of_two_bounds_is_stated():
    """A plan proved 0.0774 requests/s for all splits, and less strictly 0.0777 for its own."""
    load = {"users": 3, "think_time_s": 3.0}
    plan = hs.plan(
        "phi-3-mini", network("campus"), prompt_tokens=64, output_tokens=16,
        with_upgrades=False, **load,
    )  # fmt: skip
    of_all = plan.throughput.bound_requests_per_s
    of_split = bound_on_rate(
        plan.deployment, plan.result.instance, plan.result.partition, **load
    )
    assert of_all < of_split
    assert plan.forecast.bound_requests_per_s == of_all >= plan.forecast.requests_per_s
