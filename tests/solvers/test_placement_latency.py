"""The objective `latency` of placements against enumeration of named machines."""

import math

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.placement_evaluation import check_placement
from hypsolve.solve_placement import PLACEMENT_METHODS
from hypsolve.solvers.placement.latency import GAP
from hypsolve.solvers.placement.pattern_values import PatternValues
from hypsolve.solvers.placement.patterns import PatternSpace
from tests.helpers.placement_oracles import least_latency, random_placement
from tests.helpers.sizes import n_cases

CLOSE = 0.02  # of what the short time limit finds
EXACT = [name for name, entry in PLACEMENT_METHODS.items() if entry.exact]
ONCE_WRONG = (
    17, 62, 87,  # no pattern carries anything, but their limits do not say so
    89,  # copies that carry nothing were taken for pipelines
)  # fmt: skip


@pytest.mark.parametrize("seed", sorted({*range(n_cases(6, 500)), *ONCE_WRONG}))
def test_no_placement_of_an_enumeration_has_less_latency(seed):
    """Loads of the enumeration are on a grid: it is never below the bound."""
    problem = random_placement(np.random.default_rng(50_000 + seed), "latency")
    best = least_latency(problem)
    proved = PatternValues(PatternSpace(problem)).is_exact
    result = hs.solve(problem, EXACT[seed % len(EXACT)], time_limit_s=6)
    if result.status == "infeasible":
        assert best == math.inf
        return
    if result.fluid_bound is not None:
        assert result.fluid_bound <= best * (1 + 1e-7)
    if proved:
        assert result.placement is not None
        assert not check_placement(problem, result.placement)
        assert result.objective <= best * (1 + max(CLOSE, GAP))


@pytest.mark.parametrize("method", EXACT)
def test_the_faster_one_of_two_machines_gets_the_larger_share(method):
    """Both GPUs are needed for the rate; the loads are no shares of capacity."""
    lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    machines = tuple(
        hs.Machine(node=hs.Node(name=name, gpu=hs.gpu(name)), site="room")
        for name in ("h100", "l40s")
    )
    problem = hs.PlacementProblem(
        model=hs.model("llama-3-8b"),
        requests=hs.Requests([0.0], [512], [128]),
        fleet=hs.Fleet(name="lab", sites=(hs.Site(name="room", link=lan),), machines=machines),
    )
    fast, slow = (
        hs.solve(problem, "replica_per_machine").served.pipelines[at].fluid_requests_per_s
        for at in (0, 1)
    )
    few = problem.replace(objective="latency", requests_per_s=0.1 * fast)
    assert hs.solve(few, method, time_limit_s=10).placement.machines == ("h100",)
    many = problem.replace(objective="latency", requests_per_s=0.9 * (fast + slow))
    result = hs.solve(many, method, time_limit_s=10)
    loads = {p.stages[0].machine: p.requests_per_s for p in result.placement.pipelines}
    assert sum(loads.values()) == pytest.approx(many.requests_per_s)
    assert loads["h100"] / fast > loads["l40s"] / slow
    none = problem.replace(objective="latency", requests_per_s=1.1 * (fast + slow))
    assert hs.solve(none, method).status == "infeasible"
