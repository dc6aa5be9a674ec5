"""`check_placement` with each rule broken once, and `evaluate_placement` by hand."""

import pytest

import hypsolve as hs
from hypsolve.problem.placement_evaluation import check_placement, evaluate_placement
from hypsolve.problem.serving_evaluation import evaluate_serving

FAST, SLOW = 1.25e9, 1e4
BLOCKS = 6


def toy(name, site="x", **more):
    gpu = hs.GpuProfile(
        name="toy", t0_s=1e-3, flops_per_s=1e12, bytes_per_s=1e11, memory_bytes=1e9
    )
    return hs.Machine(node=hs.Node(name=name, gpu=gpu), site=site, **more)


def problem(**changes):
    """Machines a and b at x, c at y; 10 + 5 tokens, of 1000 bytes each, on a slow link."""
    block = hs.Block(
        kind="layer", weight_bytes=10**8, flops_per_token=1e9, kv_bytes_per_token=10_000,
        output_bytes_per_token=1000,
    )  # fmt: skip
    sites = tuple(hs.Site(name=n, link=hs.Link(bytes_per_s=FAST, latency_s=1e-4)) for n in "xy")
    fleet = hs.Fleet(
        name="lab",
        sites=sites,
        machines=(
            toy("a", price_per_hour=1.0),
            toy("b", price_per_hour=2.0),
            toy("c", "y", price_per_hour=4.0),
        ),
        default_link=hs.Link(bytes_per_s=SLOW, latency_s=1e-3),
        **changes.pop("fleet", {}),
    )
    return hs.PlacementProblem(
        model=hs.Model(name="toy", blocks=(block,) * BLOCKS),
        requests=hs.Requests([0.0], [10], [5]),
        fleet=fleet,
        max_stages=2,
        **changes,
    )


def placement(*pipelines):
    """Pipelines of a load, then machine, first block and end of each stage."""
    return hs.Placement(
        tuple(
            hs.Pipeline(tuple(hs.PlacedStage(m, gpus, i, j) for m, gpus, i, j in stages), load)
            for load, stages in pipelines
        )
    )


WHOLE = {name: [(name, 1, 0, BLOCKS)] for name in "abc"}
CROSSING = [("a", 1, 0, 3), ("c", 1, 3, 6)]
PINNED = {"pins": (hs.Pin(start=5, stop=6, sites=("x",)),)}


@pytest.mark.parametrize(
    ("rule", "words", "changes", "pipelines"),
    [
        ("blocks", "must hold blocks 0:6 in order", {}, [(0, [("a", 1, 0, 5)])]),
        ("blocks", "must hold blocks 0:6 in order", {},
         [(0, [("a", 1, 0, 2), ("b", 1, 3, 6)])]),
        ("stages", "at most 2 stages are allowed, got 3", {},
         [(0, [("a", 1, 0, 2), ("b", 1, 2, 4), ("c", 1, 4, 6)])]),
        ("machine", "machine 'd' is not in the fleet", {}, [(0, [("d", 1, 0, 6)])]),
        ("degree", "machine a: gpus must be one of 1, got 2", {}, [(0, [("a", 2, 0, 6)])]),
        ("pinned", "blocks 5:6 must be at x, got machine c at y", {"fleet": PINNED},
         [(0, CROSSING)]),
        ("apart", "machines a, b must not serve together",
         {"fleet": {"apart": (frozenset("ab"),)}}, [(0, [("a", 1, 0, 3), ("b", 1, 3, 6)])]),
        ("gpus", "machine a: 1 GPUs are there, 2 are used", {},
         [(0, WHOLE["a"]), (0, WHOLE["a"])]),
        ("load", "pipeline 1: it carries", {}, [(0, WHOLE["a"]), (1e9, WHOLE["b"])]),
        ("link", "link sites x y: it carries 1e+04 bytes/s, 1.4e+04 are sent", {},
         [(1.0, CROSSING)]),
        ("rate", "the loads must add up to 3 requests/s, got 1",
         {"objective": "cost", "requests_per_s": 3.0}, [(1.0, WHOLE["a"])]),
    ],
)  # fmt: skip
def test_each_rule_broken_once(rule, words, changes, pipelines):
    given, broken = problem(**changes), placement(*pipelines)
    found = check_placement(given, broken)
    assert rule in [violation.rule for violation in found]
    assert words in " ".join(violation.message for violation in found)
    with pytest.raises(ValueError, match="evaluate_placement: "):
        evaluate_placement(given, broken)


def test_two_pipelines_by_hand():
    """Loads add up; a price counts once; the mean latency weights pipelines by their loads."""
    given = problem()
    found = evaluate_placement(given, placement((1.0, WHOLE["a"]), (0.5, [
        ("b", 1, 0, 3), ("c", 1, 3, 6)
    ])))  # fmt: skip
    assert found.requests_per_s == 1.5
    assert found.price_per_hour == 1.0 + 2.0 + 4.0
    one, two = found.latencies
    assert found.mean_latency_s == pytest.approx((one.latency_s + two.latency_s / 2) / 1.5)
    assert two.latency_s > one.latency_s  # by the slow link
    alone = given.serving_instance([("a", 1)])
    rate = evaluate_serving(alone, hs.Partition((0, BLOCKS))).fluid_requests_per_s
    assert found.pipelines[0].fluid_requests_per_s == rate
    # the slow link alone: 14 tokens of 1000 bytes at 10^4 bytes/s
    assert found.pipelines[1].fluid_requests_per_s <= SLOW / (14 * 1000) * (1 + 1e-9)


def test_a_pipeline_without_load_has_no_latency():
    found = evaluate_placement(problem(), placement((0.0, WHOLE["a"])))
    assert found.latencies == (None,) and found.mean_latency_s == float("inf")
