"""Points of the serving frontier."""

import math

import pytest

import hypsolve as hs
from hypsolve.planning import serving_frontier as frontier
from hypsolve.planning.forecast import predict
from hypsolve.planning.query import PlanQuery, solve_query
from hypsolve.planning.saturation import MET
from hypsolve.planning.serving_frontier import ServingPoint
from tests.planning.test_spent_clock import Clock

LIMIT_S = 10.0


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


def far_cloud():
    """Return a solution on two tiers far apart, of which the second serves best alone."""
    slow, fast = (
        tuple(hs.Node(name=f"{gpu}-{i}", gpu=hs.gpu(gpu)) for i in range(2))
        for gpu in ("l4", "h100")
    )
    link = hs.Link(bytes_per_s=2.5e8, latency_s=0.04)
    tiers = (hs.Tier(name="edge", nodes=slow, link=link), hs.Tier(name="cloud", nodes=fast))
    network = hs.Network(name="far", tiers=tiers)
    file = hs.NetworkFile(network=network, min_blocks=(0, 0))
    query = PlanQuery.of(
        "phi-3-mini", file, prompt_tokens=64, output_tokens=8, concurrency=2, rate_per_s=5.0,
        objective="path", time_limit_s=LIMIT_S,
    )  # fmt: skip
    return solve_query(query)


def points_of(solution, *arguments):
    load = solution.query.load
    return frontier.serving_points(solution.deployment, solution.instance, load, *arguments)


def test_the_ends_of_the_frontier_and_the_best_split_come_first(monkeypatch):
    """Whatever came first was simulated, and the split that serves most was not."""
    solution = far_cloud()
    n_blocks = solution.instance.n_blocks
    even = hs.Partition((0, n_blocks // 2, n_blocks))
    ends = {hs.Partition((0, 0, n_blocks)), *_extremes(solution)}
    # each takes a quarter of the limit, so that no time is left in the fourth
    monkeypatch.setattr(frontier, "simulated_point", _quarters(Clock(monkeypatch)))
    points = points_of(solution, LIMIT_S, (even,))
    assert {p.partition for p in points if p.is_known} == {even, *ends}
    assert len(points) > 3


def _quarters(spent):
    simulate = frontier.simulated_point

    def simulated(*arguments):
        spent.now_s += LIMIT_S / 4
        return simulate(*arguments)

    return simulated


def _extremes(solution):
    """Return the split of the least bottleneck and that of the least path, of all of them."""
    n_blocks, instance = solution.instance.n_blocks, solution.instance
    splits = [hs.Partition((0, cut, n_blocks)) for cut in range(n_blocks + 1)]
    objectives = ("bottleneck", "path")
    return [
        min(splits, key=lambda split: hs.evaluate(instance, split, objective=objective))
        for objective in objectives
    ]


def test_splits_that_are_left_out_are_no_better():
    """Simulate what bounds left out: another split serves as much, and as fast."""
    solution = far_cloud()
    points = points_of(solution, 1e6)
    known, left = ([p for p in points if p.is_known is is_known] for is_known in (True, False))
    assert known and left and frontier.open_points(points) == ()
    for point in left:
        served = predict(solution.deployment, point.partition, solution.query.load)
        assert served.max_requests_per_s <= point.bound_requests_per_s
        assert served.latency_s.mean >= point.bound_latency_s > 0
        assert any(
            other.max_requests_per_s >= served.max_requests_per_s
            and other.latency_mean_s <= served.latency_s.mean
            for other in known
        )


def test_splits_that_may_be_better_are_told_from_those_that_cannot():
    """All that were not simulated were said to be better, perhaps."""
    of = {"bottleneck_s": 1.0, "path_s": 1.0}
    unknown = {"max_requests_per_s": math.nan, "latency_mean_s": math.nan, **of}
    split = [hs.Partition((0, cut, 9)) for cut in range(4)]
    known = ServingPoint(partition=split[0], max_requests_per_s=5.0, latency_mean_s=2.0, **of)
    bounds = [(5.0, 2.0), (5.1, 2.0), (5.0, 1.9)]
    others = [
        ServingPoint(
            partition=partition, bound_requests_per_s=rate, bound_latency_s=latency_s, **unknown
        )
        for partition, (rate, latency_s) in zip(split[1:], bounds, strict=True)
    ]
    assert frontier.open_points([known, *others]) == tuple(others[1:])
