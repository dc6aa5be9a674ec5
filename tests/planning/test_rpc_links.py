"""The links of llama.cpp over RPC, against its own rules written out for every message."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.doubled_resources import doubled
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.rpc_links import (
    depends_on_empty_tiers,
    returns_logits,
    rpc_model,
    rpc_network,
)
from tests.helpers import simpy_pipeline
from tests.helpers.agreement import assert_agree

GIGABIT = 1.25e8
BRIDGE = hs.Link(bytes_per_s=4e10, latency_s=2e-5)


def link(gbps, latency_s, back_s=None):
    return hs.Link(bytes_per_s=gbps * GIGABIT, latency_s=latency_s, return_latency_s=back_s)


WIRES = [link(1, 1e-3, 4e-3), BRIDGE, link(10, 2e-3), link(2, 8e-3, 16e-3)]
HOSTS = ["mac", "box", "box", "pc", "orin"]


def home(hosts=HOSTS, wires=WIRES, **limits):
    """A chain of one GPU per tier, in the machines of these names."""
    tiers = [
        hs.Tier(
            name=f"tier{k}",
            nodes=(hs.Node(name=f"node{k}", gpu=hs.gpu("rtx-3090"), host=host),),
            link=wires[k] if k < len(hosts) - 1 else None,
        )
        for k, host in enumerate(hosts)
    ]
    return NetworkFile(network=hs.Network(name="home", tiers=tuple(tiers)), **limits)


def seconds_of_pass(hosts, wires, stages, n_bytes):
    """Seconds on the way of one pass, and of its token back: each call to a server, in order.

    An own account of ggml-rpc.cpp: the client calls servers, and no server calls another.
    """
    between = [
        (wire, hosts[k] == hosts[k + 1]) for k, wire in enumerate(wires[: len(hosts) - 1])
    ]

    def there(k):
        return sum(wire.latency_s for wire, same in between[stages[0] : k] if not same)

    def back(k):
        path = [wire for wire, same in between[stages[0] : k] if not same]
        return sum(wire.round_trip_s - wire.latency_s for wire in path)

    def sends(k):
        rates = [wire.bytes_per_s for wire, same in between[stages[0] : k] if not same]
        return n_bytes / min(rates) if rates else 0.0

    total = 0.0
    for a, b in itertools.pairwise(stages):
        if hosts[a] == hosts[b]:
            inner = [wire for wire, _ in between[a:b]]
            total += back(a) + there(b)  # COPY_TENSOR answers, then the next graph is sent
            total += sum(wire.latency_s for wire in inner)
            total += n_bytes / min(wire.bytes_per_s for wire in inner)
        else:
            total += back(a) + sends(a)  # GET_TENSOR
            total += there(b) + sends(b)  # SET_TENSOR
    return total + back(stages[-1])


def seconds_on_links(network, stages, n_bytes):
    """Seconds of a pass over the links between its first and its last stage, and back."""
    links = [tier.link for tier in network.tiers[stages[0] : stages[-1]]]
    return sum(each.round_trip_s + n_bytes / each.bytes_per_s for each in links)


CHOICES = [
    stages for n in range(2, 6) for stages in itertools.combinations(range(len(HOSTS)), n)
]


@pytest.mark.parametrize("stages", CHOICES)
def test_a_pass_takes_every_call_of_the_client(stages):
    """The links add up to the calls, whichever tiers are empty: two transfers per hop."""
    closed = tuple(None if k in stages else 0 for k in range(len(HOSTS)))
    found = rpc_network(home(max_blocks=closed), hs.runtime("llama.cpp"))
    for state_bytes in (0.0, 16_384.0, 4e7):  # of 16 bits; llama.cpp sends 32
        expected = seconds_of_pass(HOSTS, WIRES, stages, 2 * state_bytes)
        assert seconds_on_links(found, stages, state_bytes) == pytest.approx(expected)
    first = stages[0]
    assert [t.link for t in found.tiers[:first]] == WIRES[:first]  # requests still enter there


def test_other_runtimes_send_from_stage_to_stage():
    """Only llama.cpp has a client in the middle: all other networks stay as given."""
    for name in ("ideal", "vllm", "sglang"):
        network = home()
        assert rpc_network(network, hs.runtime(name)) is network.network
    alone = home(max_blocks=(0, 0, 0, None, 0))
    assert rpc_network(alone, hs.runtime("llama.cpp")) is alone.network


def test_splitting_simulating_and_bounding_count_the_same_links():
    """One deployment is behind all three; the simulated pass is slower by the relayed bytes."""
    asked = {"users": 1, "prompt_tokens": 512, "output_tokens": 64, "with_upgrades": False}
    pins = {"min_blocks": (11, 11, 12), "max_blocks": (11, 11, 12)}
    far = [link(1, 1e-3), link(1, 1e-3)]
    apart = hs.plan(
        "llama-3-8b", home(["a", "b", "c"], far, **pins), runtime="llama.cpp", **asked
    )
    beside = hs.plan(
        "llama-3-8b", home(["a", "b", "b"], far, **pins), runtime="llama.cpp", **asked
    )
    on_the_way = [each.deployment.network.tiers[1].link for each in (apart, beside)]
    assert on_the_way[0].bytes_per_s == pytest.approx(GIGABIT / 4)  # two transfers of 32 bits
    assert on_the_way[1].bytes_per_s == pytest.approx(GIGABIT / 2)
    hidden_bytes = apart.model.blocks[0].output_bytes_per_token
    tokens = 512 + 64 - 1
    extra_s = tokens * hidden_bytes * (1 / (GIGABIT / 4) - 1 / (GIGABIT / 2))
    seconds = [each.forecast.latency_s.mean for each in (apart, beside)]
    assert apart.result.partition == beside.result.partition
    # the last leg of `beside` copies in its machine, told so by a round trip, as in `apart`
    assert seconds[0] - seconds[1] == pytest.approx(extra_s + 64 * 1e-3, rel=0.05)
    for each in (apart, beside):
        assert each.throughput.simulated_requests_per_s <= each.throughput.bound_requests_per_s
    assert apart.throughput.bound_requests_per_s < beside.throughput.bound_requests_per_s
    text = str(apart)
    assert "messages between stages: 32-bit floats, all by way of tier0" in text
    assert "GPUs of one machine copy on its own links" in str(beside)


VOCABULARY = 128_256  # of Llama 3, config.json


def without_logits(deployment):
    """Return the same links without logits, as if the last machine sampled the tokens."""
    tiers = [
        replace(
            t, nodes=tuple(replace(n, gpu=replace(n.gpu, all_reduce=None)) for n in t.nodes)
        )
        for t in deployment.network.tiers
    ]
    network = replace(deployment.network, tiers=tuple(tiers))
    return replace(deployment, network=network, model=hs.model("llama-3.2-1b"))


def served(hosts, wires, requests, runtime="llama.cpp"):
    """A deployment of llama.cpp over RPC, or one of other rules on its links."""
    network = rpc_network(home(hosts, wires), hs.runtime("llama.cpp"))
    model = rpc_model(hs.model("llama-3.2-1b"), network)
    return hs.Deployment(
        model=model, network=network, requests=requests, runtime=hs.runtime(runtime)
    )


FAR = [link(1, 1e-3), link(0.1, 2e-3)]
LOGITS_CASES = {  # bytes/s of the stream back to the first stage's machine
    "last far": (["a", "b", "c"], 0.1 * GIGABIT),
    "last beside the middle": (["a", "b", "b"], GIGABIT),
    "last beside the client": (["a", "a", "a"], None),
}


@pytest.mark.parametrize("case", LOGITS_CASES)
def test_the_last_machine_returns_logits_of_every_token(case):
    """One request at a time: each output token brings 4 bytes a token of the vocabulary."""
    hosts, bytes_per_s = LOGITS_CASES[case]
    n_output = 9
    deployment = served(hosts, FAR, hs.Requests([0.0], [700], [n_output]))
    split = hs.Partition((0, 6, 12, 18))
    ours = hs.simulate(deployment, split).latency_s[0]
    without = hs.simulate(without_logits(deployment), split).latency_s[0]
    extra_s = 0.0 if bytes_per_s is None else 4 * VOCABULARY * n_output / bytes_per_s
    assert ours - without == pytest.approx(extra_s, rel=1e-9, abs=1e-12)
    assert any(returns_logits(t.nodes[0]) for t in deployment.network.tiers) == bool(extra_s)
    faster = hs.simulate(doubled(deployment, "link"), split).latency_s[0]
    alike = hs.simulate(doubled(without_logits(deployment), "link"), split).latency_s[0]
    assert faster - alike == pytest.approx(extra_s / 2, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_batches_return_logits_as_in_an_independent_model(seed, monkeypatch):
    """Parts of batches with any number of outputs: the SimPy model sends logits by itself."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 30))
    requests = hs.Requests(
        np.sort(rng.uniform(0, 4.0, n)), rng.integers(1, 900, n), rng.integers(1, 30, n)
    )
    limits = {"max_num_seqs": int(rng.integers(1, 9)), "max_num_batched_tokens": 512}
    limits["micro_batch_tokens"] = int(rng.choice([16, 128, 512]))
    hosts, bytes_per_s = LOGITS_CASES["last far" if seed % 2 else "last beside the middle"]
    deployment = served(hosts, FAR, requests, "ideal")
    split = hs.Partition((0, 6, 12, 18))
    of_batch = simpy_pipeline.iteration_s

    def with_logits(blocks, batch, cards, cost_model):
        seconds = of_batch(blocks, batch, cards, cost_model)
        if any(block.kind == "head" for block, _ in blocks):
            outputs = sum(entry.ends_pass for entry in batch)
            seconds += outputs * 4 * VOCABULARY / bytes_per_s
        return seconds

    monkeypatch.setattr(simpy_pipeline, "iteration_s", with_logits)
    options = {"batching": "serial", "kv_admission": "reserve", **limits}
    theirs = simpy_pipeline.simulate(without_logits(deployment), split, **options)
    assert_agree(hs.simulate(deployment, split, record_visits=True, **options), theirs)


def test_optimum_and_bound_count_logits():
    """A slow way back makes the far machine costly, and no schedule beats the bound."""
    wires = [link(0.1, 1e-4)]
    asked = {
        "runtime": "llama.cpp",
        "users": 4,
        "prompt_tokens": 64,
        "output_tokens": 128,
        "objective": "throughput",
        "with_upgrades": False,
        "time_limit_s": 20,
    }
    plan = hs.plan("llama-3.2-1b", home(["a", "b"], wires), **asked)
    logits_s = 4 * VOCABULARY * 128 / (0.1 * GIGABIT)  # of one request
    best = plan.throughput
    assert best.simulated_requests_per_s <= best.bound_requests_per_s < 1 / logits_s
    assert best.fluid_requests_per_s < 1 / logits_s
    near = hs.plan("llama-3.2-1b", home(["a", "a"], wires), **asked).throughput
    assert near.simulated_requests_per_s > 2 / logits_s
    assert "the logits return there" in str(plan)
    assert "link from 'tier0'" in plan.forecast.limited_by


def test_each_choice_of_empty_tiers_has_links_of_its_own():
    """A tier that may be empty lies on no way, so its choice is planned and not guessed."""
    free = home(min_blocks=(0,) * 5)
    assert depends_on_empty_tiers(free, hs.runtime("llama.cpp"))
    assert not depends_on_empty_tiers(free, hs.runtime("vllm"))
    plan = hs.plan("llama-3-8b", free, runtime="llama.cpp", users=1, with_upgrades=False)
    assert not depends_on_empty_tiers(plan.query.network, plan.query.runtime)
    again = hs.nearest_plan(plan, "llama.cpp", with_upgrades=False)
    assert again is plan
    used = [k for k, stage in enumerate(plan.stages) if stage.blocks]
    query = PlanQuery.of("llama-3-8b", free, runtime="llama.cpp", users=1)
    assert np.isfinite(query.deployment().network.tiers[0].link.latency_s)
    assert used  # it holds the model somewhere
