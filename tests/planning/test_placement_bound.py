"""No simulation of any placement serves more than `placement_bound`."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.placement_bound import Cover, Unit, most_common, placement_bound
from tests.helpers.fleets import fleet, machine, toy_machine, toy_model
from tests.helpers.sizes import n_cases


def random_problem(rng, batching):
    """Machines of two speeds and two sizes of memory, and a model of equal blocks."""
    machines = [
        toy_machine(
            f"m{i}", speed=float(rng.choice([1, 2.5])), memory=float(rng.choice([4e8, 9e8]))
        )
        for i in range(int(rng.integers(1, 5)))
    ]
    model = toy_model(
        int(rng.integers(2, 7)),
        weight_bytes=int(rng.choice([5e7, 1e8])),
        kv_bytes=int(rng.choice([2e3, 2e5])),
    )
    most = int(rng.integers(1, 9))
    return hs.PlacementProblem(
        model=model,
        fleet=fleet(*machines),
        requests=hs.Requests([0.0], [int(rng.integers(8, 80))], [int(rng.integers(1, 12))]),
        runtime=replace(hs.runtime("ideal"), batching=batching, max_num_seqs=most),
        max_stages=int(rng.integers(1, 4)),
    )


@pytest.mark.parametrize("batching", ["stage", "pipeline", "serial"])
def test_no_simulated_placement_serves_more(batching):
    """n requests at once, over the time to the last token."""
    rng = np.random.default_rng(7)
    shares = []
    for _ in range(n_cases(12, 300)):
        problem = random_problem(rng, batching)
        bound = placement_bound(problem)
        result = hs.solve(problem, "placement_highs")
        if result.placement is None:
            continue
        n = 300
        prompt, output = problem.requests.prompt_tokens[0], problem.requests.output_tokens[0]
        requests = hs.Requests(np.zeros(n), np.full(n, prompt), np.full(n, output))
        for policy in ("weighted", "hypsched_rt"):
            trace = hs.simulate_placement(problem, result.placement, requests, policy)
            shares.append(n / float(trace.end_s.max()) / bound)
    assert len(shares) >= 8
    assert max(shares) <= 1
    assert max(shares) > 0.5  # it says something


def test_the_bound_is_at_least_that_of_a_single_pipeline_and_near_it():
    problem = hs.PlacementProblem(
        model=hs.model("llama-3-8b"),
        fleet=fleet(machine("a")),
        requests=hs.Requests([0.0], [512], [64]),
        runtime=hs.runtime("vllm"),
        max_stages=1,
    )
    own = hs.throughput_bound(problem.deployment((("a", 1),)))
    assert own <= placement_bound(problem) <= 1.35 * own


def test_more_machines_and_longer_pipelines_never_lower_it():
    few, more = ([machine("a"), machine("b")], [machine("c"), machine("big", "a100-80gb")])
    base = hs.PlacementProblem(
        model=hs.model("llama-2-13b"),
        fleet=fleet(*few),
        requests=hs.Requests([0.0], [256], [64]),
        runtime=hs.runtime("vllm"),
        max_stages=2,
    )
    bound = placement_bound(base)
    assert 0 < bound <= placement_bound(base.replace(fleet=fleet(*few, *more))) * (1 + 2e-3)
    assert bound <= placement_bound(base.replace(max_stages=4)) * (1 + 2e-3)
    assert placement_bound(base.replace(max_stages=1)) == 0  # no card has room for all layers


def test_the_dp_finds_the_pipeline_with_the_largest_rate_per_cost():
    """Against all sequences of groups and all numbers of layers of each."""
    rng = np.random.default_rng(3)
    n_layers, max_stages = 6, 3
    for _ in range(20):
        counts = np.arange(1, n_layers + 1)
        units = [
            Unit(
                kind,
                gpus,
                counts,
                np.sort(rng.uniform(0.1, 10, n_layers))[::-1] * (counts <= rng.integers(2, 7)),
            )
            for kind, gpus in ((0, 1), (0, 2), (1, 1))
        ]
        costs = rng.uniform(0.1, 2, 2)
        best = 0.0
        for n in range(1, max_stages + 1):
            for chosen in itertools.combinations_with_replacement(units, n):
                cost = sum(costs[unit.kind] * unit.gpus for unit in chosen)
                for held in itertools.product(range(1, n_layers + 1), repeat=n):
                    if sum(held) == n_layers:
                        rate = min(u.rates[k - 1] for u, k in zip(chosen, held, strict=True))
                        best = max(best, rate / cost)
        found, _, used = Cover(units, n_layers, max_stages, 2).best(costs)
        assert best * (1 - 1e-9) <= found <= 1.011 * best
        assert (used.sum() > 0) == (best > 0)


def test_the_layer_that_a_model_has_most_of():
    layer, n = most_common(hs.model("llama-3-8b"))
    assert n == 32 and layer.kv_bytes_per_token > 0
    one = hs.Model(name="one", blocks=toy_model(1).blocks)
    assert most_common(one)[1] == 1
