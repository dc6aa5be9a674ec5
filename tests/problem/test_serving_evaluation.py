"""`evaluate_serving`: closed forms of the fluid model, its limits, and monotony."""

import math

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import check_serving, evaluate_serving, refusal


def tables(**changes):
    given = {
        "fixed_s": [[1e-3]],
        "block_kind": [0, 0],
        "tiers": [[(0, 1e9)], [(0, 1e9)]],
        "prompt_tokens": 100,
        "output_tokens": 10,
        "max_num_seqs": 20,
    }
    return ServingInstance.from_tables(**(given | changes))


def rate(instance, *cuts):
    return evaluate_serving(instance, hs.Partition(cuts)).fluid_requests_per_s


def test_a_node_serves_the_largest_batch_that_its_limits_allow():
    """Roofline by hand: the prompt limit binds first, then the limit on all tokens."""
    instance = tables(
        tiers=[[(0, 1e9)]],
        read_s=[[5e-3]],
        memory_token_s=[[1e-4]],
        compute_token_s=[[2e-4]],
        compute_chunk_s=[[4e-3]],
        prompt_limit=50,
    )
    z = min(20 / (9 + 2), 50 / 100)
    without = 1e-3 + max(9 * z * 2e-4, 5e-3 + 9 * z * 1e-4)
    with_one = 1e-3 + max(9 * z * 2e-4 + 4e-3, 5e-3 + 9 * z * 1e-4)
    k = 2 * z
    assert k == 1
    assert rate(instance, 0, 2) == pytest.approx(z / (2 * with_one), rel=1e-9)
    shorter = tables(
        tiers=[[(0, 1e9)]],
        read_s=[[5e-3]],
        memory_token_s=[[1e-4]],
        compute_token_s=[[2e-4]],
        compute_chunk_s=[[4e-3]],
        prompt_limit=50,
        max_num_batched_tokens=54,
    )
    z = 54 / 109
    without = 1e-3 + max(9 * z * 2e-4, 5e-3 + 9 * z * 1e-4)
    with_one = 1e-3 + max(9 * z * 2e-4 + 4e-3, 5e-3 + 9 * z * 1e-4)
    tau = 2 * ((1 - 2 * z) * without + 2 * z * with_one)
    assert rate(shorter, 0, 2) == pytest.approx(z / tau, rel=1e-9)


def test_memory_admits_by_littles_law():
    """Nodes that take no time: room for 3 requests, each for 10 round trips."""
    instance = tables(
        fixed_s=[[0]],
        kv_bytes_per_token=[[1]],
        tiers=[[(0, 1e9)], [(0, 3 * 110 + 109)]],
        round_trip_s=[0.25],
    )
    assert rate(instance, 0, 1, 2) == pytest.approx(3 / (10 * 0.25), rel=1e-9)
    paged = tables(
        fixed_s=[[0]],
        kv_bytes_per_token=[[1]],
        tiers=[[(0, 1e9)], [(0, 3 * 112)]],
        round_trip_s=[0.25],
        kv_admission="paged",
    )  # 100 + 11 / 2 tokens, which is 7 blocks of 16, but at most 110
    assert rate(paged, 0, 1, 2) == pytest.approx(3 / (10 * 0.25), rel=1e-9)


def test_a_stage_waits_for_half_of_the_running_iteration_unless_it_holds_all():
    """An idle node is at once available; the latency of a single user shows the passes."""
    instance = tables(users=1, output_tokens=2, block_kind=[0, 0, 0], think_time_s=1e6)
    result = evaluate_serving(instance, hs.Partition((0, 2, 3)))
    assert result.latencies.tpot_s == pytest.approx(3e-3, rel=1e-6)
    assert result.latencies.ttft_s == pytest.approx(3e-3, rel=1e-6)
    assert result.limit == "the users send no more requests"
    busy = evaluate_serving(tables(tiers=[[(0, 1e9)]]), hs.Partition((0, 2)))
    assert busy.latencies.tpot_s == pytest.approx(2e-3, rel=1e-6)
    two = evaluate_serving(tables(), hs.Partition((0, 1, 2)))
    assert two.latencies.tpot_s == pytest.approx(2 * 1.5e-3, rel=1e-6)


def test_a_link_carries_less_than_one_second_per_second():
    """All tokens but the last cross, 109 of them at 10 ms, so the link limits the rate."""
    instance = tables(token_s=[[1e-2]])
    assert rate(instance, 0, 1, 2) == pytest.approx(1 / 1.09, rel=1e-6)
    why = refusal(instance, hs.Partition((0, 1, 2)), 1.0)
    assert why == "link tier-0 -> tier-1: it carries too few bytes per second"


@pytest.mark.parametrize(("mode", "n"), [("pipeline", 2), ("serial", 1)])
@pytest.mark.parametrize("output", [1, 10])
def test_batches_that_pass_all_stages(mode, n, output):
    """Cycle and rate by hand; a prompt without decode passes still takes a cycle."""
    instance = tables(
        block_kind=[0, 0, 0],
        batching=mode,
        output_tokens=output,
        iteration_s=5e-4,
        token_s=[[1e-6]],
        round_trip_s=[1e-3],
    )
    y = 20 / output
    message = y / n * (output - 1 + 100) * 1e-6
    cycle = 3e-3 + 5e-4 + message + 1e-3
    if mode == "pipeline":
        cycle = max(cycle, 2 * max(2e-3, message))
    result = evaluate_serving(instance, hs.Partition((0, 2, 3)))
    assert result.fluid_requests_per_s == pytest.approx(y / cycle, rel=1e-9)
    assert result.latencies.ttft_s == pytest.approx(cycle, rel=1e-6)
    assert result.limit == "no batch is large enough: max_num_seqs"


def test_pipelines_pair_the_nodes_of_the_stages():
    """Two pipelines need two nodes in every stage, and one fast pipeline may beat two."""
    nodes = [(0, 1e9), (1, 1e9)]
    instance = tables(fixed_s=[[1e-3], [5e-3]], batching="pipeline", tiers=[nodes, nodes])
    alone = tables(fixed_s=[[1e-3], [5e-3]], batching="pipeline", tiers=[nodes[:1], nodes])
    assert rate(instance, 0, 1, 2) == rate(alone, 0, 1, 2)  # 1 pipeline of 1 ms, not 2 of 5 ms
    equal = tables(batching="pipeline", tiers=[[(0, 1e9)] * 2, [(0, 1e9)] * 3])
    assert rate(equal, 0, 1, 2) == pytest.approx(2 * rate(tables(batching="pipeline"), 0, 1, 2))


@pytest.mark.parametrize("mode", ["pipeline", "serial"])
def test_unequal_pipelines_count_as_the_slowest_of_them(mode):
    """Bound the fluid rate by the sum over pipelines; it counts each as the slowest."""
    rng = np.random.default_rng(15)
    less = 0
    for _ in range(20):
        classes = rng.integers(0, 3, (2, 2))
        fixed_s = rng.uniform(1e-3, 3e-3, (3, 1))
        tiers = [[(int(c), 1e9) for c in tier] for tier in classes]
        both = rate(tables(fixed_s=fixed_s, batching=mode, tiers=tiers), 0, 1, 2)
        alone = [
            rate(tables(fixed_s=fixed_s, batching=mode, tiers=[[a], [b]]), 0, 1, 2)
            for a, b in zip(*tiers, strict=True)
        ]
        # two pipelines of the slowest node of each stage, or the first pipeline alone
        slowest = [[max(tier, key=lambda node, s=fixed_s: s[node[0], 0])] for tier in tiers]
        each = rate(tables(fixed_s=fixed_s, batching=mode, tiers=slowest), 0, 1, 2)
        assert both == pytest.approx(max(2 * each, alone[0]))
        assert alone[0] * (1 - 1e-9) <= both <= sum(alone) * (1 + 1e-9)
        less += both < sum(alone) * 0.99
    assert less >= 5


@pytest.mark.parametrize("mode", ["pipeline", "serial"])
def test_unequal_nodes_that_hold_all_blocks_add_their_rates(mode):
    """They are servers of their own: the slow one counted for all, below the fast one alone."""
    rng = np.random.default_rng(16)
    for _ in range(20):
        fixed_s = rng.uniform(1e-3, 9e-3, (3, 1))
        nodes = [(int(c), 1e9) for c in rng.integers(0, 3, rng.integers(1, 5))]

        def servers(nodes, fixed_s=fixed_s, **changes):
            return tables(fixed_s=fixed_s, batching=mode, tiers=[nodes, [(0, 1e9)]], **changes)

        alone = [rate(servers([node], allow_empty=True), 0, 2, 2) for node in nodes]
        both = rate(servers(nodes, allow_empty=True), 0, 2, 2)
        assert both == pytest.approx(sum(alone))


@pytest.mark.parametrize("mode", ["pipeline", "serial"])
def test_a_server_that_misses_the_target_gets_no_requests(mode):
    """The target holds at each server, and latencies are means over requests."""
    fast, slow = (0, 1e9), (1, 1e9)

    def served(nodes, tpot_slo_s):
        instance = tables(
            fixed_s=[[1e-3], [3e-3]], batching=mode, tiers=[nodes, [fast]], allow_empty=True,
            objective="goodput", tpot_slo_s=tpot_slo_s,
        )  # fmt: skip
        return evaluate_serving(instance, hs.Partition((0, 2, 2)))

    alone = served([fast], 4e-3)
    assert served([fast, slow], 4e-3).fluid_requests_per_s == pytest.approx(
        alone.fluid_requests_per_s
    )
    both = served([fast, slow], 7e-3)
    assert both.fluid_requests_per_s == pytest.approx(alone.fluid_requests_per_s * 4 / 3)
    # 3 of 4 requests at 2 ms per token, and 1 of 4 at 6 ms
    assert both.latencies.tpot_s == pytest.approx(3e-3)


@pytest.mark.parametrize("mode", ["stage", "pipeline", "serial"])
def test_users_and_targets_limit_the_rate(mode):
    """Little's law for users; a target that the best rate just meets, and one below it."""
    instance = tables(batching=mode, round_trip_s=[1e-3], users=3, think_time_s=0.02)
    result = evaluate_serving(instance, hs.Partition((0, 1, 2)))
    busy = result.fluid_requests_per_s * (result.latencies.latency_s + 0.02)
    assert busy == pytest.approx(3, rel=1e-9)
    free = evaluate_serving(tables(batching=mode, max_num_seqs=4), hs.Partition((0, 1, 2)))
    for field, name in (("ttft_s", "time to first token"), ("tpot_s", "time per output token"),
                        ("latency_s", "latency")):  # fmt: skip
        seconds = getattr(free.latencies, field)
        for factor, is_met in ((1 + 1e-9, True), (0.999, mode == "stage")):
            target = {field.replace("_s", "_slo_s"): seconds * factor}
            held = tables(batching=mode, max_num_seqs=4, objective="goodput", **target)
            answer = evaluate_serving(held, hs.Partition((0, 1, 2)))
            reached = answer.fluid_requests_per_s >= free.fluid_requests_per_s * (1 - 1e-9)
            assert reached == (factor > 1)
            assert (answer.fluid_requests_per_s > 0) == is_met
        assert answer.limit == f"the target for the {name}"


def test_prices_count_the_nodes_of_tiers_that_host_blocks():
    instance = tables(price_per_hour=[3.6, 7.2], allow_empty=True)
    whole = evaluate_serving(instance, hs.Partition((0, 2, 2)))
    assert whole.price_per_request == pytest.approx(1e-3 / whole.fluid_requests_per_s)
    both = evaluate_serving(instance, hs.Partition((0, 1, 2)))
    assert both.price_per_request == pytest.approx(3e-3 / both.fluid_requests_per_s)


@pytest.mark.parametrize(
    ("cuts", "changes", "message"),
    [
        ((0, 2), {}, "2 tiers and 2 blocks are needed"),
        ((0, 2, 2), {}, "tier tier-1: 1 to 2 blocks are allowed, got 0"),
        ((0, 1, 2), {"weight_bytes": [[2e9]]}, "tier tier-0: no node has room for blocks 0:1"),
        ((0, 1, 2), {"kv_bytes_per_token": [[1e7]]}, "tier tier-0: no node has room"),
        (
            (0, 1, 2),
            {"pinned": {0: 1}, "allow_empty": True},
            "cut 1 must be from 0 to 0, got 1",
        ),
    ],
)
def test_broken_rules_are_named(cuts, changes, message):
    partition = hs.Partition(cuts)
    with pytest.raises(ValueError, match=f"evaluate_serving: .*{message}"):
        evaluate_serving(tables(**changes), partition)
    assert message in str(check_serving(tables(**changes), partition)[0])
    assert message in refusal(tables(**changes), partition, 1.0)


@pytest.mark.parametrize("mode", ["stage", "pipeline", "serial"])
def test_better_machines_are_never_worse(mode):
    """Faster blocks, more memory, faster links: the fluid rate must not fall."""
    rng = np.random.default_rng(7)
    for _ in range(30):
        size = (1, 2)
        base = {
            "block_kind": rng.integers(0, 2, 4),
            "batching": mode,
            "fixed_s": rng.uniform(1e-4, 1e-3, size),
            "read_s": rng.uniform(1e-4, 1e-2, size),
            "compute_token_s": rng.uniform(0, 1e-3, size),
            "memory_token_s": rng.uniform(0, 1e-3, size),
            "compute_chunk_s": rng.uniform(0, 1e-2, size),
            "kv_bytes_per_token": [[1.0, 0.0]],
            "tiers": [[(0, rng.uniform(500, 1500))], [(0, rng.uniform(500, 1500))]],
            "token_s": [[rng.uniform(0, 1e-4)]],
            "round_trip_s": [rng.uniform(0, 0.1)],
        }
        before = rate(tables(**base), 0, 2, 4)
        for change in (
            {"read_s": base["read_s"] * 0.7},
            {"tiers": [[(0, memory * 1.5)] for ((_, memory),) in base["tiers"]]},
            {"round_trip_s": [base["round_trip_s"][0] / 2]},
            {"token_s": [[base["token_s"][0][0] / 2]]},
        ):
            assert rate(tables(**(base | change)), 0, 2, 4) >= before * (1 - 1e-9)
    assert math.isfinite(before)
