"""Points of the serving frontier."""

import pytest

import hypsolve as hs
from hypsolve.planning.saturation import MET
from hypsolve.planning.serving_frontier import ServingPoint


@pytest.mark.parametrize(
    ("share", "is_met"), [(0.93, False), (MET, True), (1.0, True), (float("nan"), False)]
)
def test_targets_are_met_from_the_share_that_a_plan_asks_for(share, is_met):
    """`pareto` marked splits from 90 % on that `plan` answers with no."""
    point = ServingPoint(
        partition=hs.Partition((0, 3)), max_requests_per_s=1.0, latency_mean_s=1.0,
        bottleneck_s=1.0, path_s=1.0, slo_attainment=share,
    )  # fmt: skip
    assert point.meets_targets is is_met
