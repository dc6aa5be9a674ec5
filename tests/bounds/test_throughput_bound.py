"""The bound over all splits: no simulated schedule of any split exceeds it, and it is exact."""

from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.bounds.throughput import throughput_bound
from hypsolve.problem.runtime import Runtime
from tests.helpers import token_toys as toys
from tests.helpers.operator_costs import with_operators
from tests.helpers.scenarios_token import random_scenario
from tests.helpers.sizes import n_cases

N_REQUESTS = 120


def random_runtime(rng):
    """Draw a runtime of any mode with small limits, so that every limit binds at times."""
    batching = str(rng.choice(["stage", "stage", "pipeline", "serial"]))

    def maybe(low, high):
        return None if rng.random() < 0.4 else int(rng.integers(low, high))

    return Runtime(
        name="random",
        batching=batching,
        kv_admission=str(rng.choice(["reserve", "reserve", "paged"])),
        kv_block_tokens=int(rng.choice([1, 2, 5])),
        max_num_seqs=int(rng.choice([1, 2, 3, 8, 64])),
        max_num_batched_tokens=maybe(1, 60),
        chunk_tokens=maybe(1, 30),
        micro_batch_tokens=maybe(1, 20) if batching == "serial" else None,
        iteration_s=float(rng.choice([0.0, 0.0, 0.05])),
    )


def random_case(seed, *, operators=False):
    """Draw a deployment of equal requests, a split that fits, and a generator."""
    scenario = random_scenario(seed, hs.simulate)
    if operators:
        scenario = with_operators(seed, scenario)
    rng = np.random.default_rng(seed + 2_000_000)
    p, o = int(rng.integers(1, 40)), int(rng.integers(1, 20))
    deployment = replace(
        scenario.deployment,
        requests=toys.burst(N_REQUESTS, p, o),
        max_resident_tokens=p + o,
        runtime=random_runtime(rng),
    )
    instance = hs.to_instance(deployment, allow_empty=True)
    split = scenario.partition
    return None if hs.check(instance, split) else (deployment, split, rng)


def pins_of(split):
    return {block: k for k in range(split.n_tiers) for block in split.stage(k)}


@pytest.mark.parametrize("seed", range(n_cases(40, 1000)))
def test_no_schedule_of_any_split_exceeds_the_bound(seed):
    """Random models, networks, limits and modes, 120 requests at once, with and without links.

    The bound of all splits, and the bound of the simulated split alone, which is tighter.
    """
    case = random_case(seed)
    if case is None:
        pytest.skip("the split does not fit")
    deployment, split, rng = case
    options = {"link_contention": bool(rng.random() < 0.7)}
    policy = str(rng.choice(["round_robin", "hypsched_rt"]))
    load = {}
    if rng.random() < 0.3:
        load = {"users": int(rng.integers(1, 9)), "think_time_s": float(rng.choice([0, 0.3]))}
    trace = hs.simulate(deployment, split, policy, **options, **load)
    time_s = trace.end_s.max() + load.get("think_time_s", 0.0)
    of_split = throughput_bound(
        deployment, allow_empty=True, pinned=pins_of(split), **options, **load
    )
    of_all = throughput_bound(deployment, allow_empty=True, **options, **load)
    assert N_REQUESTS / time_s <= of_split * (1 + 1e-9)
    assert of_split <= of_all * (1 + 1e-7)


@pytest.mark.parametrize("are_mixed", [False, True])
@pytest.mark.parametrize("seed", range(5000, 5000 + n_cases(50, 1000)))
def test_rates_of_operators_do_not_exceed_the_bound(seed, are_mixed):
    """Linear terms, seconds that prompts add to iterations, and times that add up."""
    case = random_case(seed, operators=True)
    if case is None:
        pytest.skip("the split does not fit")
    deployment, split, rng = case
    if are_mixed:
        deployment = mixed(deployment, rng)
        if hs.check(hs.to_instance(deployment, allow_empty=True), split):
            pytest.skip("the split does not fit")
    trace = hs.simulate(deployment, split, link_contention=True)
    bound = throughput_bound(deployment, allow_empty=True, pinned=pins_of(split))
    assert N_REQUESTS / trace.end_s.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(n_cases(8, 40)))
def test_the_bound_is_the_largest_of_the_bounds_of_single_splits(seed):
    """The chain of hold times finds the best split: enumeration of all splits by pins."""
    rng = np.random.default_rng(seed)
    nodes = ["rtx-3090", "rtx-4090", "t4"]
    n_tiers = 2 if seed % 2 else 3
    tiers = []
    for k in range(n_tiers):
        link = hs.Link(
            bytes_per_s=10 ** rng.uniform(7, 10), latency_s=10 ** rng.uniform(-4, -1)
        )
        tier = [
            hs.Node(name=f"{k}-{i}", gpu=hs.gpu(str(rng.choice(nodes))))
            for i in range(int(rng.integers(1, 3)))
        ]
        tiers.append(
            hs.Tier(name=f"t{k}", nodes=tuple(tier), link=link if k < n_tiers - 1 else None)
        )
    model = hs.model("llama-3-8b")
    model = replace(model, blocks=(*model.blocks[:6], model.blocks[-1]))
    deployment = hs.Deployment(
        model=model,
        network=hs.Network(name="lab", tiers=tuple(tiers)),
        requests=hs.Requests([0.0], [int(rng.integers(1, 3000))], [int(rng.integers(1, 400))]),
        runtime=hs.runtime(
            "ideal", batching=["stage", "stage", "pipeline", "serial"][seed % 4]
        ),
    )
    n = model.n_blocks
    inner = [(a,) for a in range(n + 1)]
    if n_tiers == 3:
        inner = [(a, b) for a in range(n + 1) for b in range(a, n + 1)]
    splits = [hs.Partition((0, *cuts, n)) for cuts in inner]
    single = [
        throughput_bound(deployment, allow_empty=True, pinned=pins_of(split))
        for split in splits
    ]
    assert throughput_bound(deployment, allow_empty=True) == pytest.approx(
        max(single), rel=1e-7
    )


def test_one_node_serves_full_batches_of_nothing_but_time():
    """Closed form: iterations of t0 in every block, 8 requests in each, head in o of them."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=(box,)),
        requests=hs.Requests([0.0], [1], [1000]),
        runtime=hs.runtime("ideal", max_num_seqs=1),
    )
    alone = hs.simulate(deployment, hs.Partition((0, 34))).end_s.max()
    bound = throughput_bound(deployment)
    assert bound == pytest.approx(1 / alone, rel=1e-3)
    assert bound >= 1 / alone


def mixed(deployment, rng, n_requests=N_REQUESTS):
    """Return the deployment with requests of a few or of many different lengths."""
    if rng.random() < 0.5:  # short prompts with long outputs, and the other way round
        kinds = np.array([[rng.integers(1, 5), 19], [39, rng.integers(1, 4)], [7, 7]])
        prompt, output = kinds[rng.integers(0, 3, n_requests)].T
    else:
        prompt, output = rng.integers(1, 40, n_requests), rng.integers(1, 20, n_requests)
    return replace(
        deployment,
        requests=hs.Requests(np.zeros(n_requests), prompt, output),
        max_resident_tokens=None,
    )


@pytest.mark.parametrize("seed", range(n_cases(60, 1000)))
def test_no_schedule_of_mixed_lengths_exceeds_the_bound(seed):
    """Adversarial mixes in all modes: no assumption on which node serves which request."""
    case = random_case(seed)
    if case is None:
        pytest.skip("the split does not fit")
    deployment, split, rng = case
    deployment = mixed(deployment, rng)
    if hs.check(hs.to_instance(deployment, allow_empty=True), split):
        pytest.skip("the split does not fit")
    options = {"link_contention": bool(rng.random() < 0.7)}
    policy = str(rng.choice(["round_robin", "hypsched_rt", "random"]))
    load = {}
    if rng.random() < 0.3:
        load = {"users": int(rng.integers(1, 9)), "think_time_s": float(rng.choice([0, 0.3]))}
    trace = hs.simulate(deployment, split, policy, **options, **load)
    time_s = trace.end_s.max() + load.get("think_time_s", 0.0)
    of_split = throughput_bound(
        deployment, allow_empty=True, pinned=pins_of(split), **options, **load
    )
    assert N_REQUESTS / time_s <= of_split * (1 + 1e-9)
    if seed % 5 == 0:
        of_all = throughput_bound(deployment, allow_empty=True, **options, **load)
        assert of_split <= of_all * (1 + 1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_lengths_that_hardly_differ_have_about_the_bound_of_equal_ones(seed):
    """The conditions of mixed lengths are no empty ones: near the other bound, not above it.

    Equal requests have the tighter conditions: whole numbers of requests fit, and passes of
    mean batches count.
    """
    rng = np.random.default_rng(seed)
    box = hs.Tier(
        name="box",
        nodes=tuple(hs.Node(name=f"n{i}", gpu=hs.gpu("rtx-4090")) for i in range(2)),
    )
    p, o = int(rng.integers(100, 2000)), int(rng.integers(10, 300))
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=(box,)),
        requests=hs.Requests(np.zeros(400), np.full(400, p), np.full(400, o)),
        runtime=hs.runtime("ideal", max_num_seqs=int(rng.choice([4, 8]))),
    )
    prompt = np.full(400, p)
    prompt[0] += 1
    other = replace(
        deployment, requests=hs.Requests(np.zeros(400), prompt, np.full(400, o)),
        max_resident_tokens=None,
    )  # fmt: skip
    equal, differing = throughput_bound(deployment), throughput_bound(other)
    assert equal * (1 - 1e-2) <= differing <= equal * 1.1


def test_many_lengths_are_rounded_down_and_bound_a_little_less():
    """A trace of 400 different requests: lengths rounded down give a larger bound."""
    from hypsolve.bounds import mixed_lengths

    rng = np.random.default_rng(1)
    box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    prompt, output = rng.integers(100, 1000, 400), rng.integers(10, 200, 400)
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=(box,)),
        requests=hs.Requests(np.zeros(400), prompt, output),
    )
    rounded = throughput_bound(deployment)
    most, mixed_lengths.MAX_PAIRS = mixed_lengths.MAX_PAIRS, 10**6
    try:
        exact = throughput_bound(deployment)
    finally:
        mixed_lengths.MAX_PAIRS = most
    assert exact <= rounded * (1 + 1e-9)
    assert rounded <= exact * 1.15


def test_nothing_may_be_misspelt_and_what_does_not_fit_has_no_rate():
    box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    tiny = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=(box,)),
        requests=hs.Requests([0.0], [10], [5]),
    )
    with pytest.raises(TypeError, match="did you mean users"):
        throughput_bound(tiny, user=3)
    assert throughput_bound(tiny) > 0
    heavy = replace(tiny, model=hs.model("llama-3-70b"))
    assert throughput_bound(heavy) == 0
    mix = hs.Requests([0.0, 0.0], [10, 20], [5, 5])
    assert throughput_bound(replace(heavy, requests=mix, max_resident_tokens=None)) == 0


@pytest.mark.parametrize("seed", range(n_cases(12, 100)))
def test_no_schedule_on_tensor_parallel_groups_exceeds_the_bound(seed):
    """All-reduces with a step at the switch are not convex; copies of KV cache take room."""
    rng = np.random.default_rng(seed)
    lines = hs.AllReduce(
        library="nccl",
        degree=2,
        switch_bytes=10 ** rng.uniform(3, 6),
        small_s=10 ** rng.uniform(-6, -4),
        small_s_per_byte=10 ** rng.uniform(-12, -9),
        large_s=10 ** rng.uniform(-6, -4),
        large_s_per_byte=10 ** rng.uniform(-12, -9),
    )
    pair = hs.Node(
        name="pair",
        gpu=hs.gpu("a100-80gb"),
        gpus=2,
        tensor_parallel=2,
        interconnect=hs.Interconnect(name="lines", all_reduces=(lines,)),
    )
    single = hs.Node(name="single", gpu=hs.gpu("rtx-4090"))
    link = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
    tiers = (hs.Tier(name="a", nodes=(pair,), link=link), hs.Tier(name="b", nodes=(single,)))
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=tiers),
        requests=toys.burst(60, int(rng.integers(1, 800)), int(rng.integers(1, 60))),
        runtime=hs.runtime(
            "ideal",
            batching=str(rng.choice(["stage", "stage", "pipeline", "serial"])),
            max_num_seqs=int(rng.choice([2, 16, 64])),
            slot_tokens=int(rng.choice([1, 256])),
        ),
    )
    split = hs.Partition((0, int(rng.integers(10, 30)), 34))
    trace = hs.simulate(deployment, split, link_contention=True)
    bound = throughput_bound(deployment, pinned=pins_of(split))
    assert 60 / trace.end_s.max() <= bound * (1 + 1e-9)
    assert bound <= throughput_bound(deployment) * (1 + 1e-7)
