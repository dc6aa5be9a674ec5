"""The nodes of a server's plan: none that lowers the rate, and the defaults of their GPUs."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.cli.commands import _tell_nodes
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.node_choice import networks
from hypsolve.planning.query import PlanQuery, bound_of
from hypsolve.planning.runtime_networks import limited
from hypsolve.planning.runtime_restrictions import network_for_server
from hypsolve.planning.server_plan import plan_for_server
from hypsolve.planning.slo_text import describe_answer
from hypsolve.solvers.clock import Deadline
from tests.helpers.sizes import n_cases

LINK = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
WAN = hs.Link(bytes_per_s=1.25e8, latency_s=25e-3)


def network(*tiers, link=LINK, **rules):
    """Return a network of tiers, each a list of GPUs; all may be empty."""
    made = [
        hs.Tier(
            name=f"tier-{k}",
            nodes=tuple(hs.Node(name=f"{k}{i}", gpu=hs.gpu(g)) for i, g in enumerate(gpus)),
            link=link if k + 1 < len(tiers) else None,
        )
        for k, gpus in enumerate(tiers)
    ]
    rules.setdefault("min_blocks", (0,) * len(tiers))
    return NetworkFile(network=hs.Network(name="net", tiers=tuple(made)), **rules)


def on_the_second_tier(query):
    return query.on(limited(query.network, (0,)))


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("vllm", {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}),
        ("sglang", {"chunk_tokens": 8192, "memory_fraction": 0.83}),
    ],
)
def test_the_defaults_of_a_server_are_those_of_the_gpus_in_use(server, expected):
    """An L4 that holds no blocks gave an H100 the limits of small GPUs."""
    query = PlanQuery.of("llama-3-8b", network(["l4"], ["h100"]), runtime=server)
    alone = PlanQuery.of("llama-3-8b", network(["h100"]), runtime=server)
    found = on_the_second_tier(query).runtime
    assert found == alone.runtime != query.runtime
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=0.01)


def test_limits_that_were_given_stay():
    """Given as an argument, also where it is a default, and given as a record."""
    tiers = network(["l4"], ["h100"])
    query = PlanQuery.of("llama-3-8b", tiers, runtime="vllm", max_num_seqs=256)
    found = on_the_second_tier(query).runtime
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (256, 8192)
    record = hs.runtime("vllm")
    query = PlanQuery.of("llama-3-8b", tiers, runtime=record)
    assert on_the_second_tier(query).runtime == record


def test_a_plan_has_the_limits_of_its_nodes_and_names_the_others():
    """The plan on the H100 alone was simulated and exported with 2,048 tokens in a batch."""
    plan = hs.plan(
        "llama-3-8b", network(["l4"], ["h100"]), runtime="vllm", prompt_tokens=256,
        output_tokens=32, with_upgrades=False,
    )  # fmt: skip
    assert plan.result.partition.cuts == (0, 0, 34)
    assert plan.query.runtime.max_num_batched_tokens == 8192
    assert plan.unused_nodes == ("00",)


def test_all_sets_of_kinds_and_tiers_are_tried():
    """Two kinds in the first tier, one in the second: all, one of two, or none; all or none."""
    found = list(networks(network(["a10", "l40s", "l40s"], ["a100-80gb"])))
    kept = {
        tuple(
            node.gpu.name
            for tier, most in zip(
                each.network.tiers, each.max_blocks or (None, None), strict=True
            )
            for node in tier.nodes
            if most != 0
        )
        for each, _ in found
    }
    first = [("A10", "L40S", "L40S"), ("L40S", "L40S"), ("A10",), ()]
    second = [("A100-80GB",), ()]
    expected = {a + b for a in first for b in second} - {()} - {(*first[0], *second[0])}
    assert kept == expected and len(found) == len(expected)


@pytest.mark.parametrize("seed", range(n_cases(2, 3)))
def test_a_node_more_does_not_lower_the_planned_rate(seed):
    """Pipelines are as slow as their slowest node, so a slow one may have to be left out."""
    rng = np.random.default_rng([seed, 61])
    gpus = ["t4", "l4", "a10", "l40s"]
    tiers = [list(rng.choice(gpus[1:], 2)), list(rng.choice(gpus[2:], 2))]
    more = [[*tiers[0], "t4"], [*tiers[1], str(rng.choice(gpus))]]
    rates = []
    for each in (tiers, more):
        plan = hs.plan(
            "llama-3.2-3b", network(*each), runtime="vllm", prompt_tokens=128,
            output_tokens=32, with_upgrades=False, time_limit_s=30,
        )  # fmt: skip
        rates.append(plan.forecast.max_requests_per_s)
    assert rates[1] >= 0.95 * rates[0]


@pytest.mark.full_length
def test_unequal_replicas_of_one_tier_are_planned():
    """Their fluid rate was that of three A10, so the A100 alone was planned, with 40 % less."""
    gpus = (["l4", "l4"], ["a10", "l40s", "l40s"], ["a100-80gb"])
    plan = hs.plan(
        "llama-3-8b", network(*gpus, link=WAN), runtime="vllm", prompt_tokens=1024,
        output_tokens=64, with_upgrades=False,
    )  # fmt: skip
    assert plan.result.partition.cuts == (0, 0, 34, 34)
    served = plan.throughput
    # of one split: what a run served with filling and draining, and the model of a steady state
    assert 0.85 * served.fluid_requests_per_s <= served.simulated_requests_per_s
    assert served.simulated_requests_per_s <= 1.02 * plan.forecast.max_requests_per_s
    assert plan.forecast.max_requests_per_s <= served.bound_requests_per_s


def test_a_choice_that_the_limit_ended_says_so(capsys):
    """A shorter limit may choose other nodes, which the user must know."""
    wire = hs.Link(bytes_per_s=1.25e8, latency_s=1e-4)
    nodes = [hs.Node(name=name, gpu=hs.gpu("l4")) for name in ("a", "b", "c")]
    tiers = (
        hs.Tier(name="one", nodes=(nodes[0],), link=wire),
        hs.Tier(name="two", nodes=tuple(nodes[1:])),
    )
    asked = {"runtime": "vllm", "output_tokens": 8, "objective": "bottleneck"}
    query = hs.PlanQuery.of("phi-3-mini", hs.Network(name="n", tiers=tiers), **asked)
    whole = network_for_server(query, deadline=Deadline(60.0))
    short = network_for_server(query, deadline=Deadline(1e-6))
    assert (whole.is_cut_short, short.is_cut_short) == (False, True)
    for nodes_of in (whole, short):
        _tell_nodes(nodes_of, as_json=True)
        told = "a longer --time-limit" in capsys.readouterr().err
        assert told == nodes_of.is_cut_short


@pytest.mark.parametrize("objective", [None, "path"])
@pytest.mark.parametrize("seed", range(n_cases(2, 6)))
def test_limits_are_those_of_the_nodes_that_hold_blocks(seed, objective):
    """Whatever the seed, and also for an objective in seconds, which compares no nodes."""
    query = PlanQuery.of(
        "llama-3.2-3b", network(["l4"], ["a10"], ["h100"], link=WAN), runtime="vllm",
        prompt_tokens=256, output_tokens=32, seed=seed, objective=objective, time_limit_s=20,
    )  # fmt: skip
    plan = plan_for_server(query, with_upgrades=False).plan
    gpu_of = {n.name: n.gpu for tier in query.network.network.tiers for n in tier.nodes}
    used = [gpu_of[node.node] for node in plan.nodes if node.is_used]
    assert plan.query.runtime == hs.runtime("vllm", gpus=used)
    chosen = network_for_server(query)
    held = [node.gpu for node in _used(chosen)]
    assert chosen.query.runtime == hs.runtime("vllm", gpus=held)


def _used(chosen):
    """Return the nodes of a choice that hold blocks in its split, or may if it has none."""
    tiers = chosen.query.network.network.tiers
    if chosen.solution is None:
        return [node for tier in tiers for node in tier.nodes if node.name in chosen.used]
    cuts = chosen.solution.result.partition.cuts
    return [n for k, tier in enumerate(tiers) if cuts[k] < cuts[k + 1] for n in tier.nodes]


def test_a_load_is_refused_for_all_nodes_and_their_limits():
    """The plan on the H100 alone, with its limits, was called all splits of the network.

    The bound of an independent query on each set of nodes tells which of them may serve the
    load; the H100 alone is simulated.
    """
    gpus, rate = (["l4"], ["a10"], ["h100"]), 45.0
    asked = {
        "runtime": "vllm", "prompt_tokens": 1024, "output_tokens": 256, "rate_per_s": rate,
        "ttft_slo_s": 2.0, "tpot_slo_s": 0.06, "time_limit_s": 60,
    }  # fmt: skip
    query = PlanQuery.of("llama-3-8b", network(*gpus, link=WAN), **asked)
    answer = plan_for_server(query, with_upgrades=False).plan.slo_answer
    assert answer.decided_by == "bound"
    asked["rate_per_s"] = 38.0
    query = PlanQuery.of("llama-3-8b", network(*gpus, link=WAN), **asked)
    plan = plan_for_server(query, with_upgrades=False).plan
    answer, bounds = plan.slo_answer, {}
    for n in range(1, 4):
        for row in itertools.combinations([0, 1, 2], n):
            alone = PlanQuery.of(
                "llama-3-8b", network(*(gpus[k] for k in row), link=WAN, min_blocks=()), **asked
            )
            bounds[row] = bound_of(alone, has_users=False)
    n_refuted = sum(bound < 38 for bound in bounds.values())
    assert plan.throughput.bound_requests_per_s >= max(bounds.values()) * (1 - 1e-6)
    assert plan.throughput.bound_is_of_all_nodes
    assert answer.decided_by == "all splits" and not answer.is_met
    assert n_refuted == answer.n_refuted == 6
    text = describe_answer(answer, query.load)
    assert "1024 requests at once in a pipeline, 8192 tokens in a batch" in text
    assert "on 6 other choices of the nodes" in text
