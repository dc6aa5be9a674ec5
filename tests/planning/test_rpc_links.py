"""The links of llama.cpp over RPC, against its own rules written out for every message."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.rpc_links import depends_on_empty_tiers, rpc_network

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
