"""Degrees of tensor parallelism are compared under one rule, by what the plan is asked for."""

import functools
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning import tensor_parallel
from hypsolve.planning.forecast import predict
from hypsolve.planning.query import solve_query
from hypsolve.planning.runtime_restrictions import network_for_server
from hypsolve.planning.tensor_parallel import CLEARLY, choose_degrees
from hypsolve.planning.throughput import ServedSplit
from hypsolve.solvers.clock import Deadline
from tests.planning.test_tensor_parallel import machine

WIRE = hs.Link(bytes_per_s=1.25e9, latency_s=5e-3)
SHORT = {"output_tokens": 16, "runtime": "vllm", "time_limit_s": 600}
LONG = {"output_tokens": 16, "time_limit_s": 600}
TARGETS = {"ttft_slo_s": 1.5, "tpot_slo_s": 0.06, "rate_per_s": 5.0}


def sites(*tiers, **rules):
    """Return a network file of the nodes of tiers in a row."""
    made = tuple(
        hs.Tier(name=f"t{k}", nodes=tuple(nodes), link=WIRE if k < len(tiers) - 1 else None)
        for k, nodes in enumerate(tiers)
    )
    return hs.NetworkFile(network=hs.Network(name="sites", tiers=made), **rules)


def alike(gpu, n, name=None):
    return [hs.Node(name=f"{name or gpu}-{i}", gpu=hs.gpu(gpu)) for i in range(n)]


def test_nodes_of_a_server_leave_optional_tiers_optional():
    """A tier with a node for each pipeline had to hold blocks when another one was closed."""
    network = sites(alike("t4", 1), alike("l4", 2), alike("h100", 2), min_blocks=(0, 0, 0))
    limits = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    query = hs.PlanQuery.of("llama-3-8b", network, **limits, **SHORT)
    best = solve_query(query)
    assert best.result.partition.cuts == (0, 0, 0, 34)  # the premise
    chosen = network_for_server(query, split=lambda of: replace(best, query=of))
    assert not chosen.why
    again = solve_query(chosen.query)
    assert again.result.partition.cuts == (0, 0, 0, 34)


def test_gpus_in_a_row_are_found_beside_other_tiers():
    """Where no node alone holds the model, no tier was left empty if there are many ways."""
    network = sites(alike("t4", 2), alike("l4", 4), [machine()], min_blocks=(0, 0, 0))
    query = hs.PlanQuery.of("llama-3-70b", network, tensor_parallel=1, **SHORT)
    chosen = network_for_server(query)
    best = solve_query(chosen.query)
    assert best.result.partition is not None
    assert all(name.startswith("box/") for name in chosen.used)


@functools.cache
def solved(degree, *targets):
    """Plan one degree on its own, on a machine of four GPUs; `targets` are names of targets."""
    asked = SHORT | {name: TARGETS[name] for name in targets}
    network = sites([machine(gpus=4)])
    return solve_query(hs.PlanQuery.of("llama-3-8b", network, tensor_parallel=degree, **asked))


@pytest.mark.parametrize("targets", [TARGETS, {}])
def test_the_degree_that_serves_most_is_taken(targets):
    """Goodput at the offered rate is that rate for every degree: 8 won by its low latency.

    The oracle plans each degree on its own.
    """
    network, asked = sites([machine(gpus=4)]), SHORT | targets
    serves = {
        degree: solved(degree, *targets).throughput.simulated_requests_per_s
        for degree in (1, 2, 4)
    }
    query = hs.PlanQuery.of("llama-3-8b", network, **asked)
    chosen, degrees = choose_degrees(query, restrict=network_for_server)
    best = max(serves, key=serves.__getitem__)
    assert serves[best] > CLEARLY * min(serves.values())  # the premise
    assert chosen.tensor_parallel == best
    assert degrees[0].value == max(each.value for each in degrees)


@pytest.fixture(scope="module")
def quick_plan():
    """A target that the largest degree alone meets, though others serve more without it."""
    asked = SHORT | {"tpot_slo_s": 0.003, "with_upgrades": False}
    return hs.plan("llama-3-8b", sites([machine(gpus=4)]), **asked)


def test_what_is_proved_holds_for_every_degree(quick_plan):
    """It was called the bound of all splits, and was that of the chosen degree alone."""
    found, bounds = quick_plan.throughput, {}
    for degree in (1, 2, 4):
        alone = solved(degree)
        bounds[degree] = hs.throughput_bound(alone.query.deployment())
        serves = alone.throughput.simulated_requests_per_s
        assert serves <= found.bound_requests_per_s
    assert quick_plan.query.tensor_parallel == 4  # the premise
    assert bounds[4] < max(bounds.values())
    assert found.bound_requests_per_s == pytest.approx(max(bounds.values()))
    assert found.gap == 1 - found.simulated_requests_per_s / found.bound_requests_per_s
    assert found.bound_is_of_all_degrees
    said = "proved: no degree of tensor parallelism, no split and no schedule serves more than"
    assert f"{said} {max(bounds.values()):.3g} " in str(quick_plan)
    listed = {each.degrees[0]: each.bound_requests_per_s for each in quick_plan.degrees}
    assert listed == pytest.approx(bounds)


def test_a_given_degree_is_named_beside_its_bound(quick_plan, tmp_path):
    """Other degrees may serve more than what is proved of one."""
    asked = SHORT | {"tensor_parallel": 4, "with_upgrades": False}
    plan = hs.plan("llama-3-8b", sites([machine(gpus=4)]), **asked)
    assert not plan.throughput.bound_is_of_all_degrees
    assert "proved: no split with tensor parallelism of degree 4 and no schedule" in str(plan)
    for each, covers in (
        (plan, "no split with tensor parallelism of degree 4"),
        (quick_plan, "no degree of tensor parallelism, no split"),
    ):
        path = tmp_path / "plan.html"
        hs.write_report(each, path)
        assert f"<dt>{covers} serves more than</dt>" in path.read_text()


def company(**rules):
    """Two cards at the edge, and a machine of two better ones; no tier says min_blocks."""
    return sites(alike("l4", 2), [machine(gpus=2)], **rules)


def test_all_degrees_are_compared_under_one_rule():
    """Degree 2 left the edge empty against the rule, and degree 1 had to use it.

    The oracle is a network whose tiers may be empty, by its file.
    """
    open_tiers = company(min_blocks=(0, None))
    _, expected = choose_degrees(
        hs.PlanQuery.of("llama-3-8b", open_tiers, **SHORT), restrict=network_for_server
    )
    query = hs.PlanQuery.of("llama-3-8b", company(), **SHORT)
    chosen, degrees = choose_degrees(query, restrict=network_for_server)
    assert [(each.degrees, each.value) for each in degrees] == [
        (each.degrees, each.value) for each in expected
    ]
    for degree in (1, 2):  # whether it is chosen or given
        given = hs.PlanQuery.of("llama-3-8b", company(), tensor_parallel=degree, **SHORT)
        assert given.optional == chosen.optional == ("t0",)
        assert given.network.min_blocks[0] == 0 and not given.network.min_blocks[1]
    plan = hs.plan("llama-3-8b", company(), with_upgrades=False, **SHORT)
    assert not plan.stages[0].blocks and plan.to_dict()["optional"] == ["t0"]
    assert "set aside: that every tier holds a block, for t0: " in str(plan)


def test_a_stated_rule_is_kept_under_every_degree():
    """min_blocks and pins are the user's own: degrees that need the tier empty are refused."""
    for rules in ({"min_blocks": (1, None)}, {"pins": {"embedding": "t0"}}):
        query = hs.PlanQuery.of("llama-3-8b", company(**rules), **SHORT)
        chosen, degrees = choose_degrees(query, restrict=network_for_server)
        assert (query.optional, chosen.tensor_parallel) == ((), 1)
        (refused,) = [each for each in degrees if each.degrees == (2, 2)]
        assert not refused.is_allowed and "it has no machine for" in refused.reason
    query = hs.PlanQuery.of("llama-3-8b", company(), **SHORT | {"runtime": "ideal"})
    assert query.optional == ()  # every tier has its own degree


@pytest.mark.full_length
@pytest.mark.full_length
def test_the_search_for_a_rate_may_begin_anywhere():
    """A rate that was served under overload says where to look, and proves nothing."""
    query = hs.PlanQuery.of("llama-3-8b", sites(alike("h100", 2)), **SHORT)
    found = solve_query(query)
    served, partition = found.throughput.simulated_requests_per_s, found.result.partition
    asked = (found.deployment, partition, query.load)
    first = predict(*asked, only="requests/s")
    for near in (0.5 * served, served, 2 * first.bound_requests_per_s):
        forecast = predict(*asked, near_per_s=near, only="requests/s")
        assert forecast.max_requests_per_s == pytest.approx(first.max_requests_per_s, rel=0.1)
        assert forecast.max_requests_per_s <= forecast.bound_requests_per_s
        assert forecast.keeps_up


def test_gpus_that_no_group_takes_are_named():
    """The third GPU of a machine was idle under degree 2, and no line named it."""
    network = sites([machine(gpus=3)])
    asked = SHORT | {"tpot_slo_s": 0.035, "with_upgrades": False}
    plan = hs.plan("llama-2-70b", network, **asked)
    assert plan.query.tensor_parallel == 2  # the premise
    assert dict(plan.query.idle_gpus) == plan.to_dict()["idle_gpus"] == {"box": 1}
    assert [each.n_idle_gpus for each in plan.degrees] == [1, 0]
    alone = plan.degrees[1]
    values = f"goodput {alone.value:.3g}, not {plan.degrees[0].value:.3g}"
    said = f"degree 1 uses all GPUs: {values}, in short simulations"
    line = f"left out: 1 GPU of box (the others compute in groups of 2); {said}"
    assert line in str(plan)
    assert f"# {line}" in hs.export(plan, "vllm")
    free = hs.PlanQuery.of("llama-2-70b", sites([machine(gpus=3)], alike("h100", 1)), **LONG)
    for each in choose_degrees(free)[1]:
        assert each.n_idle_gpus == (each.degrees[0] == 2)


@pytest.mark.parametrize("gpus", [2, 3])
def test_a_lost_degree_is_chosen_anew(gpus):
    """A machine lost GPUs, and an option that nobody gave was refused; then 0 bytes moved."""
    asked = SHORT | {"objective": "throughput"}
    before = hs.plan(
        "llama-3-8b",
        sites([machine(gpus=4)]),
        tensor_parallel=4,
        with_upgrades=False,
        **asked,
    )
    network = sites([machine(gpus=gpus)])
    again = hs.replan("llama-3-8b", network, before, max_moves=0)
    assert (again.lost_degree, again.n_moved) == (4, 0)
    whole = sum(block.weight_bytes for block in before.model.blocks)
    nodes = [node for tier in again.deployment.network.tiers for node in tier.nodes]
    assert again.moved_bytes == {node.name: whole for node in nodes}
    given = hs.replan("llama-3-8b", network, before, max_moves=0, tensor_parallel=2)
    assert given.lost_degree is None and given.moved_bytes == {"box": whole}
    assert again.to_dict()["nodes"][0]["n_gpus"] == nodes[0].gpus
    kept = hs.replan("llama-3-8b", sites([machine(gpus=4)]), before, max_moves=0)
    assert kept.lost_degree is None and kept.moved_bytes == {}


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        ({1: 9.0, 2: 10.0}, {1: 20.0, 2: 15.0}, 1),
        ({1: 9.0, 2: 10.0}, {1: 14.0, 2: 15.0}, 2),
        ({1: 7.0, 2: 10.0}, {}, 2),  # clearly less
        ({1: 10.0, 2: 9.0}, {}, 1),  # as the fluid model has it
    ],
)
def test_long_simulations_decide_where_short_ones_and_the_model_differ(
    monkeypatch, short, long, expected
):
    """Short simulations hold few requests, so that they rank close degrees by chance."""
    asked = []

    def served(query, cuts, share, deadline):
        degree = query.tensor_parallel
        asked.append((degree, share))
        rate = (long if share == 1 else short)[degree]
        split = ServedSplit(
            origin="", cuts=cuts, fluid_requests_per_s=rate, simulated_requests_per_s=rate,
            n_requests=100,
        )  # fmt: skip
        return split, (0.0, -rate)

    monkeypatch.setattr(tensor_parallel, "served_by", served)
    query = hs.PlanQuery.of("llama-3-8b", sites([machine(gpus=2)]), **SHORT)
    chosen, degrees = choose_degrees(query, restrict=network_for_server)
    assert chosen.tensor_parallel == expected == degrees[0].degrees[0]
    assert sorted(degree for degree, share in asked if share == 1) == sorted(long)
    assert {each.degrees[0]: each.value for each in degrees} == short
    known = {each.degrees[0]: each.full_value for each in degrees if each.full_value > 0}
    assert known == long


def test_close_degrees_are_simulated_however_short_the_time_is():
    """A time limit left only the first degree simulated, which was then refined."""
    network = sites([machine(gpus=4)])
    query = hs.PlanQuery.of("llama-3-8b", network, **SHORT)
    found, _ = tensor_parallel._candidates(query)
    found = [each for each in found if each.is_common and each.choice.is_allowed]
    goal = tensor_parallel.Goal(query)
    for each in found:
        tensor_parallel._split(each, goal, network_for_server, Deadline(60.0))
    most = max(-each.modelled[-1] for each in found)
    close = [each for each in found if -each.modelled[-1] >= 0.8 * most]
    tensor_parallel._simulate_all(found, goal, lambda line: None, Deadline(0.0))
    assert {each.choice.degrees for each in found if each.value > 0} == {
        each.choice.degrees for each in close
    }


def test_groups_that_hold_the_model_may_be_stages_in_a_row():
    """Two GPUs hold Llama-3-70B with little room for KV cache: stages of them serve more."""
    network = sites([machine()])
    query = hs.PlanQuery.of("llama-3-70b", network, tensor_parallel=2, runtime="vllm")
    copies = solve_query(query)
    assert copies.result.partition is not None and len(query.network.network.tiers) == 1
    chosen = network_for_server(query).query
    assert len(chosen.network.network.tiers) > 1
    rows = solve_query(chosen).throughput
    assert rows.simulated_requests_per_s > 1.3 * copies.throughput.simulated_requests_per_s
