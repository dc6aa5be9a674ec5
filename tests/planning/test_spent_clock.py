"""Where no time is left, no simulation begins, and the answer is valid all the same."""

import importlib
import math
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import served_best as best
from hypsolve.planning import serving_frontier as frontier
from hypsolve.planning import tensor_parallel
from hypsolve.planning.exporters.layout import Layout
from hypsolve.planning.query import PlanQuery, solve_query
from hypsolve.planning.served_best import Choice, served_best
from hypsolve.planning.tensor_parallel import choose_degrees
from hypsolve.solvers import clock
from hypsolve.solvers.clock import Deadline

left_out = importlib.import_module("hypsolve.planning.exporters.left_out")
LIMIT_S = 10.0
WIRE = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)


class Clock:
    """A clock on which a simulation takes all the time that its deadline leaves."""

    def __init__(self, monkeypatch, *modules):
        self.now_s, self.n_simulated = 0.0, 0
        monkeypatch.setattr(clock, "now", lambda: self.now_s)
        for module in modules:
            monkeypatch.setattr(module, "predict", self.slowly(module.predict))

    def slowly(self, predict):
        def simulated(*arguments, deadline, **options):
            self.n_simulated += 1
            self.now_s += deadline.left_s()
            return predict(*arguments, deadline=deadline, **options)

        return simulated


def lab(*gpus, **more):
    """Return a network of a tier for each GPU."""
    last = len(gpus) - 1
    tiers = tuple(
        hs.Tier(
            name=f"t{k}",
            nodes=(hs.Node(name=f"n{k}", gpu=hs.gpu(gpu), **more),),
            link=WIRE if k < last else None,
        )
        for k, gpu in enumerate(gpus)
    )
    return hs.Network(name="lab", tiers=tiers)


def query_on(network, **more):
    asked = {"output_tokens": 8, "concurrency": 2, "objective": "bottleneck"} | more
    return PlanQuery.of("phi-3-mini", network, time_limit_s=LIMIT_S, **asked)


@pytest.mark.parametrize("left_s", [0.0, LIMIT_S])
def test_of_several_networks_one_is_taken(monkeypatch, left_s):
    """Networks that cannot be simulated any more are ranked by the model."""
    queries = [query_on(lab(gpu)) for gpu in ("t4", "l4", "rtx-4090")]
    solutions = [solve_query(query) for query in queries]
    choices = [Choice((float(k),), each) for k, each in enumerate(solutions)]
    spent = Clock(monkeypatch, best)
    chosen = served_best(choices, Deadline(left_s))
    assert spent.n_simulated == (left_s > 0) and spent.now_s <= LIMIT_S
    if not left_s:
        assert chosen is choices[-1]  # the fastest by far
    assert chosen in choices


@pytest.mark.parametrize("left_s", [0.0, LIMIT_S])
def test_a_degree_is_chosen(monkeypatch, left_s):
    """Every degree of two GPUs gets a share of the time; without any, close ones get little."""
    link = hs.interconnect("nvlink3", "a100-80gb")
    network = lab("a100-80gb", gpus=2, interconnect=link)
    query = query_on(network, runtime="vllm")
    spent = Clock(monkeypatch, tensor_parallel)
    chosen, degrees = choose_degrees(query, deadline=Deadline(left_s))
    assert spent.n_simulated <= 2 and spent.now_s <= max(LIMIT_S * tensor_parallel.SHARE, 0.01)
    assert chosen.tensor_parallel in (1, 2) and degrees[0].fits
    assert solve_query(chosen).result.partition is not None


@pytest.mark.parametrize("left_s", [0.0, LIMIT_S])
def test_a_frontier_has_the_first_split(monkeypatch, left_s):
    """The first split is simulated in any case, and the others are told apart from it."""
    solution = solve_query(query_on(lab("t4", "l4", "rtx-4090"), objective="path"))
    spent = Clock(monkeypatch, frontier)
    load = solution.query.load
    points = frontier.serving_points(solution.deployment, solution.instance, load, left_s)
    assert spent.n_simulated == 1 and spent.now_s <= LIMIT_S
    assert len(points) > 2 and sum(point.is_known for point in points) <= 1
    assert all(math.isfinite(point.path_s) for point in points)
    assert not any(point.is_known for point in points[:-1])  # the last has the least path


def test_what_is_left_out_costs_at_most_the_time_of_the_plan(monkeypatch):
    """Its simulations had no limit at all."""
    tier = lab("l4", "l4").tiers[1]
    more = hs.Node(name="more", gpu=hs.gpu("l4"))
    first = lab("l4", "l4").tiers[0]
    network = hs.Network(name="lab", tiers=(first, replace(tier, nodes=(*tier.nodes, more))))
    query = query_on(network)
    found = hs.plan(
        query.model, network, with_upgrades=False, output_tokens=8, concurrency=2,
        objective="bottleneck", time_limit_s=LIMIT_S,
    )  # fmt: skip
    spent = Clock(monkeypatch, left_out)
    rate = left_out.sustained(found, Layout.of(found))
    assert spent.n_simulated == 1 and spent.now_s == LIMIT_S
    assert math.isnan(rate.per_s) or rate.is_lower_bound
    (line,) = left_out.left_out(found, Layout.of(found), None)
    assert line.startswith("# left out: more; ") and "requests" in line
