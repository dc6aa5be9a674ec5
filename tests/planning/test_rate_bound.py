"""The bound on the rate: no simulated schedule exceeds it, in any mode, under any limit."""

from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.problem import evaluation
from hypsolve.problem.runtime import Runtime
from tests.helpers import token_toys as toys
from tests.helpers.operator_costs import with_operators
from tests.helpers.scenarios_token import in_groups, random_scenario
from tests.helpers.sizes import n_cases

N_REQUESTS = 120


def random_runtime(rng):
    """Draw a runtime of any mode with small limits, so that every limit binds at times."""
    batching = str(rng.choice(["stage", "pipeline", "serial"]))

    def maybe(low, high):
        return None if rng.random() < 0.4 else int(rng.integers(low, high))

    return Runtime(
        name="random",
        batching=batching,
        kv_admission=str(rng.choice(["reserve", "paged"])),
        kv_block_tokens=int(rng.choice([1, 2, 5])),
        max_num_seqs=int(rng.choice([1, 2, 3, 8, 64])),
        max_num_batched_tokens=maybe(1, 60),
        chunk_tokens=maybe(1, 30),
        micro_batch_tokens=maybe(1, 20) if batching == "serial" else None,
        iteration_s=float(rng.choice([0.0, 0.0, 0.05])),
    )


def random_case(seed, *, groups=False, operators=False):
    """Draw a deployment, a partition that fits, and a runtime; None if it does not fit."""
    scenario = random_scenario(seed, hs.simulate)
    if groups:
        scenario = in_groups(seed, scenario)
    if operators:
        scenario = with_operators(seed, scenario)
    rng = np.random.default_rng(seed + 1_000_000)
    p, o = int(rng.integers(1, 40)), int(rng.integers(1, 20))
    deployment = replace(
        scenario.deployment,
        requests=toys.burst(N_REQUESTS, p, o),
        max_resident_tokens=p + o,
        runtime=random_runtime(rng),
    )
    instance = hs.to_instance(deployment, allow_empty=True)
    cuts = scenario.partition.cuts
    for k in range(scenario.partition.n_tiers):
        holds = evaluation.can_hold(instance, k, *cuts[k : k + 2])
        if scenario.partition.stage(k) and not holds.any():
            return None
    return deployment, instance, scenario.partition, rng


@pytest.mark.parametrize("seed", range(n_cases(100, 300)))
def test_no_schedule_of_any_runtime_beats_the_bound(seed):
    """Random models, networks, limits and batching modes, 120 requests at once."""
    case = random_case(seed)
    if case is None:
        pytest.skip("the split does not fit")
    deployment, instance, partition, rng = case
    bound = bound_on_rate(deployment, instance, partition)
    policy = str(rng.choice(["round_robin", "hypsched_rt"]))
    trace = hs.simulate(deployment, partition, policy, link_contention=True)
    assert N_REQUESTS / trace.end_s.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(400, 400 + n_cases(80, 200)))
def test_groups_of_gpus_do_not_beat_the_bound(seed):
    """All-reduces that get cheaper where they switch, and copies of KV heads."""
    assert_bound_holds(random_case(seed, groups=True))


@pytest.mark.parametrize("seed", range(600, 600 + n_cases(80, 200)))
def test_rates_of_operators_do_not_beat_the_bound(seed):
    """Linear terms, seconds that prompts add to iterations, and times that add up."""
    assert_bound_holds(random_case(seed, groups=seed % 2 == 0, operators=True))


def assert_bound_holds(case):
    """Assert that no simulated rate exceeds the bound of the split of a case."""
    if case is None:
        pytest.skip("the split does not fit")
    deployment, instance, partition, _ = case
    bound = bound_on_rate(deployment, instance, partition)
    trace = hs.simulate(deployment, partition, link_contention=True)
    assert N_REQUESTS / trace.end_s.max() <= bound * (1 + 1e-9)


def test_the_bound_charges_linear_terms():
    """Attention takes nearly all the time here: its closed form is the bound."""
    block = hs.Block(kind="b", weight_bytes=0, kv_bytes_per_token=1, flops_per_token=1.0,
                     attention_flops_per_pair=2.0)  # fmt: skip
    rates = hs.OperatorRates(
        gemm_flops_per_s=1e9, attention_flops_per_s=8.0, weight_bytes_per_s=1e9,
        kv_bytes_per_s=2.0, state_bytes_per_s=1e9,
    )  # fmt: skip
    gpu = hs.GpuProfile(name="g", t0_s=0.0, flops_per_s=1e9, bytes_per_s=1e9,
                        memory_bytes=1e9, operators=rates)  # fmt: skip
    tier = hs.Tier(name="t", nodes=(hs.Node(name="a", gpu=gpu),))
    deployment = hs.Deployment(
        model=hs.Model(name="m", blocks=(block,)),
        network=hs.Network(name="n", tiers=(tier,)),
        requests=toys.burst(64, 4, 3),
    )
    bound = bound_on_rate(deployment, hs.to_instance(deployment), hs.Partition((0, 1)))
    # 10 pairs of a prompt of 4 tokens, of 2 FLOPs each; decode tokens at contexts 5 and 6
    assert bound == pytest.approx(1 / (10 * 2 / 8 + (5 + 6) / 2), rel=1e-6)
    assert hs.throughput_bound(deployment) == pytest.approx(bound, rel=1e-6)


def test_the_bound_charges_all_reduces():
    """All-reduces take nearly all the time here: their closed form is the bound."""
    lines = hs.AllReduce(
        library="nccl", degree=2, switch_bytes=0.0, small_s=0.5, small_s_per_byte=0.0,
        large_s=0.5, large_s_per_byte=0.125,
    )  # fmt: skip
    block = hs.Block(kind="b", weight_bytes=0, flops_per_token=1.0, collectives=1,
                     collective_bytes_per_token=1)  # fmt: skip
    gpu = hs.GpuProfile(name="g", t0_s=0.0, flops_per_s=1e9, bytes_per_s=1e9, memory_bytes=1e9)
    links = hs.Interconnect(name="slow", all_reduces=(lines,))
    node = hs.Node(name="a", gpu=gpu, gpus=2, interconnect=links, tensor_parallel=2)
    deployment = hs.Deployment(
        model=hs.Model(name="m", blocks=(block,), n_heads=2, n_kv_heads=2),
        network=hs.Network(name="n", tiers=(hs.Tier(name="t", nodes=(node,)),)),
        requests=toys.burst(64, 4, 9),
        runtime=hs.runtime(max_num_seqs=4, chunk_tokens=None),
    )
    bound = bound_on_rate(deployment, hs.to_instance(deployment), hs.Partition((0, 1)))
    # 9 iterations of 4 requests, of 0.5 s each; 12 tokens of a request, of 0.125 s each
    assert bound == pytest.approx(1 / (9 / 4 * 0.5 + 12 * 0.125), rel=1e-6)


@pytest.mark.parametrize("seed", range(300, 300 + n_cases(30, 60)))
def test_users_in_a_closed_loop_do_not_beat_the_bound(seed):
    """Each user has one request under way, and thinks; half of the times all start at once."""
    case = random_case(seed)
    if case is None:
        pytest.skip("the split does not fit")
    deployment, instance, partition, rng = case
    users, think_time_s = int(rng.integers(1, 9)), float(rng.choice([0.0, 0.3]))
    load = {"users": users, "think_time_s": think_time_s}
    if seed % 2:
        starts_s = rng.random(N_REQUESTS) * float(rng.choice([0.1, 1.0, 10.0]))
        spread = replace(deployment.requests, arrival_s=starts_s)
        deployment = replace(deployment, requests=spread)
    trace = hs.simulate(deployment, partition, link_contention=True, **load)
    bound = bound_on_rate(deployment, instance, partition, **load)
    # a last request of each user is followed by no thinking
    thought_s = trace.end_s.max() - trace.arrival_s.min() + think_time_s
    assert N_REQUESTS / thought_s <= bound * (1 + 1e-9)


def test_the_bound_knows_the_batch_limit():
    """The limits that a bound assumes are those that are asked for."""
    box = hs.Tier(name="box", nodes=(hs.Node(name="h100", gpu=hs.gpu("h100")),))
    deployment = hs.Deployment(
        model=hs.model("llama-3.1-8b"),
        network=hs.Network(name="box", tiers=(box,)),
        requests=toys.burst(2_000, 128, 512),
        runtime=hs.runtime(max_num_seqs=64),
    )
    partition = hs.Partition((0, 34))
    bounds = {}
    for limit in (64, 512):
        at = replace(deployment, runtime=hs.runtime(max_num_seqs=limit))
        instance = hs.to_instance(at)
        bounds[limit] = bound_on_rate(at, instance, partition)
        rate = 2_000 / hs.simulate(at, partition).end_s.max()
        assert 0.5 * bounds[limit] < rate <= bounds[limit]
    assert bounds[512] > 2 * bounds[64]


@pytest.mark.parametrize(
    ("batching", "bound"),
    [
        ("serial", 4 / 40),  # a batch of four takes 2 s, a request 20 batches
        ("pipeline", 4 / 38),  # 19 decode passes of 2 s hold one of four places
        ("stage", 4 / 20),  # a node computes four tokens a second
    ],
)
def test_the_bound_of_each_batching_mode_is_reached(batching, bound):
    """Two stages of a second each, at most four requests at once, 20 tokens each."""
    slow = toys.gpu("gpu", t0_s=1.0)
    wire = hs.Link(bytes_per_s=1e12, latency_s=0.0)
    problem = toys.deployment([[slow], [slow]], toys.burst(400, 1, 20), toys.model(2), [wire])
    at = replace(problem, runtime=Runtime(name="toy", batching=batching, max_num_seqs=4))
    found = bound_on_rate(at, hs.to_instance(at, allow_empty=True), toys.even(2))
    assert found == pytest.approx(bound)
    rate = 400 / hs.simulate(at, toys.even(2)).end_s.max()
    assert 0.9 * bound <= rate <= bound
