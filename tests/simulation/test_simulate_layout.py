"""`simulate_layout`: closed forms, conservation, and input that is refused."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.simulation.simulate_layout import simulate_layout
from tests.helpers.layouts import random_layout
from tests.helpers.placements import BLOCKS, small_model

LAN = hs.Link(bytes_per_s=1e9, latency_s=0.001, return_latency_s=0.003)


def problem_of(*names, prompt=(10,), output=(1,), arrival_s=None, **changes):
    """Return a problem of L4s in one room."""
    room = hs.Site(name="room", link=LAN)
    machines = tuple(
        hs.Machine(node=hs.Node(name=name, gpu=hs.gpu("l4")), site="room") for name in names
    )
    arrival_s = np.zeros(len(prompt)) if arrival_s is None else arrival_s
    problem = hs.PlacementProblem(
        model=small_model(),
        requests=hs.Requests(arrival_s, prompt, output),
        fleet=hs.Fleet(name="lab", sites=(room,), machines=machines),
    )
    return problem.replace(**changes)


def block_s(block, tokens):
    """Return the seconds of a prompt of one chunk in a block of the model on an L4."""
    computed = 1 if block.last_token_only else tokens
    pairs = tokens * (tokens + 1) / 2
    flops = block.flops_per_token * computed + block.attention_flops_per_pair * pairs
    moved = block.always_read_bytes + block.gathered_bytes_per_token * computed
    moved += block.kv_bytes_per_token * tokens + block.activation_bytes_per_token * computed
    gpu = hs.gpu("l4")
    return gpu.t0_s + max(flops / gpu.flops_per_s, moved / gpu.bytes_per_s)


def test_one_request_passes_each_block_once():
    """A request that enters a node late computes only the later blocks there."""
    problem = problem_of("a", "b")
    layout = LayerLayout(
        (HostedRange("a", 0, 5), HostedRange("b", 2, BLOCKS)),
        ((None, "a", 1.0), ("a", "b", 1.0), ("b", None, 1.0)),
    )
    trace = simulate_layout(problem, layout)
    blocks = problem.model.blocks
    link_s = 10 * blocks[4].output_bytes_per_token / LAN.bytes_per_s + LAN.latency_s
    expected_s = math.fsum(block_s(block, 10) for block in blocks)
    assert trace.end_s[0] == pytest.approx(expected_s + link_s + LAN.latency_s, rel=1e-12)
    kv = [sum(block.kv_bytes_per_token for block in part) for part in (blocks[:5], blocks[5:])]
    assert trace.kv_peak_bytes.tolist() == [11 * each for each in kv]


def test_requests_share_the_blocks_that_both_pass():
    """The weights of blocks that two requests pass are read once; others are read for one."""
    problem = problem_of("a", "b", prompt=(10, 10), output=(1, 1))
    layout = LayerLayout(
        (HostedRange("a", 0, 3), HostedRange("b", 0, BLOCKS)),
        ((None, "a", 1.0), (None, "b", 1.0), ("a", "b", 1.0), ("b", None, 1.0)),
    )
    blocks = problem.model.blocks
    at_a_s = math.fsum(block_s(block, 10) for block in blocks[:3])
    link_s = 10 * blocks[2].output_bytes_per_token / LAN.bytes_per_s + LAN.latency_s
    # the second one arrives so that both begin at b in the same instant
    both = hs.Requests([0.0, at_a_s + link_s], [10, 10], [1, 1])
    trace = simulate_layout(problem.replace(requests=both), layout, record_visits=True)
    assert trace.paths == ((0, 1), (1,))
    gpu = hs.gpu("l4")

    def together_s(block):
        computed = 2 if block.last_token_only else 20
        flops = block.flops_per_token * computed + block.attention_flops_per_pair * 110
        moved = block.always_read_bytes + block.gathered_bytes_per_token * computed
        moved += block.kv_bytes_per_token * 20 + block.activation_bytes_per_token * computed
        return gpu.t0_s + max(flops / gpu.flops_per_s, moved / gpu.bytes_per_s)

    expected_s = math.fsum(block_s(block, 10) for block in blocks[:3])
    expected_s += math.fsum(map(together_s, blocks[3:]))
    assert trace.n_iterations.tolist() == [1, 1]
    assert trace.busy_s[1] == pytest.approx(expected_s, rel=1e-12)


@given(st.integers(1000, 2**32))
def test_tokens_and_memory_are_conserved(seed):
    """Every request computes its tokens at each node of its path, within the KV cache."""
    case = random_layout(seed)
    trace = simulate_layout(case.problem, case.layout, record_visits=True, **case.options)
    assert np.isfinite(trace.end_s).all()
    assert (trace.arrival_s <= trace.admitted_s).all()
    assert (trace.admitted_s < trace.first_token_s).all()
    assert (trace.first_token_s <= trace.end_s).all()
    assert (trace.kv_peak_bytes <= trace.kv_capacity_bytes).all()
    tokens = trace.prompt_tokens + trace.output_tokens - 1
    expected = np.zeros(len(trace.node_names), np.int64)
    for r, p in enumerate(trace.path):
        expected[list(trace.paths[p])] += tokens[r]
    assert trace.n_tokens.tolist() == expected.tolist()
    computed = np.bincount(trace.visits.node, trace.visits.tokens, len(expected))
    assert computed.tolist() == expected.tolist()
    assert trace.n_visits == len(trace.visits.request)
    assert (trace.busy_s <= trace.took_s * (1 + 1e-12)).all()


@given(st.integers(1000, 2**32))
def test_paths_follow_the_flows(seed):
    """The requests that leave a node over a flow are its share of all, to within a few."""
    case = random_layout(seed)
    trace = simulate_layout(case.problem, case.layout, **case.options)
    left, number = {}, {name: n for n, name in enumerate(trace.node_names)}
    for p in trace.path:
        path = [None, *trace.paths[p], None]
        for pair in itertools.pairwise(path):
            left[pair] = left.get(pair, 0) + 1
    total, ways = {}, {}
    for (a, _), n in left.items():
        total[a] = total.get(a, 0) + n
    for a, _, flow in case.layout.flows:
        ways.setdefault(a, []).append(flow)
    for a, b, flow in case.layout.flows:
        pair = tuple(None if each is None else number[each] for each in (a, b))
        due = total.get(pair[0], 0) * flow / sum(ways[a])
        assert abs(left.get(pair, 0) - due) <= len(ways[a])


def test_faster_links_serve_one_request_no_later():
    """A layout over faster links is no slower for a request alone."""
    problem = problem_of("a", "b", prompt=(50,), output=(20,))
    layout = chain()
    fast = hs.Site(name="room", link=dataclasses.replace(LAN, bytes_per_s=1e10, latency_s=1e-5))
    fleet = dataclasses.replace(problem.fleet, sites=(fast,))
    before = simulate_layout(problem, layout)
    assert (simulate_layout(problem.replace(fleet=fleet), layout).end_s < before.end_s).all()


def test_entry_delays_every_delivery():
    """Requests that enter at another site wait for the way in and back once for each token."""
    problem = problem_of("a", "b", output=(5,))
    sites = (*problem.fleet.sites, hs.Site(name="users", link=LAN))
    way = hs.Link(bytes_per_s=1e9, latency_s=0.25, return_latency_s=0.5)
    fleet = dataclasses.replace(
        problem.fleet, sites=sites, links={("users", "room"): way}, entry={"users": 1.0}
    )
    before, after = (
        simulate_layout(each, chain()) for each in (problem, problem.replace(fleet=fleet))
    )
    np.testing.assert_allclose(after.first_token_s - before.first_token_s, 0.75)
    np.testing.assert_allclose(after.tpot_s, before.tpot_s)
    np.testing.assert_allclose(after.freed_s, before.freed_s)


def chain(a=(0, 4), b=(4, BLOCKS), flows=None):
    """Return a layout of two machines."""
    if flows is None:
        flows = ((None, "a", 2.0), ("a", "b", 2.0), ("b", None, 2.0))
    return LayerLayout((HostedRange("a", *a), HostedRange("b", *b)), flows)


REFUSED = {
    "range of machine 'b' must lie within the 8 blocks": chain(b=(4, 9)),
    r"flow 'a' -> 'b' goes on at block 4, which its end must hold, got 5:8": chain(b=(5, 8)),
    r"flow 'a' -> 'b' goes on at block 4, which its end must hold, got 0:3": chain(b=(0, 3)),
    r"flow the coordinator -> 'a' goes on at block 0": chain(a=(1, 4)),
    "flow 'b' -> the coordinator must leave a machine with the last block": chain(b=(4, 7)),
    "a flow of more than 0 must leave the coordinator, got none": chain(
        flows=(("a", "b", 2.0), ("b", None, 2.0))
    ),
    "a flow of more than 0 must leave 'a', got none": chain(
        flows=((None, "a", 2.0), ("a", "b", 0.0), ("b", None, 2.0))
    ),
    "unknown machine 'z'": LayerLayout((HostedRange("z", 0, 8),), ()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_broken_layout_is_refused(message):
    """The message names the machine or the flow, the rule and the value."""
    with pytest.raises(ValueError, match=message):
        simulate_layout(problem_of("a", "b"), REFUSED[message])


def test_node_without_room_is_refused():
    """A machine must hold its whole range beside the KV cache of the longest request."""
    problem = problem_of("a", "b", prompt=(5_000_000,))
    with pytest.raises(ValueError, match=r"machine 'a' must hold the weights of blocks 0:4"):
        simulate_layout(problem, chain())


def test_missing_links_are_refused():
    """Machines of sites without a link cannot follow each other."""
    problem = problem_of("a", "b")
    far = dataclasses.replace(problem.fleet.machines[1], site="far")
    fleet = dataclasses.replace(
        problem.fleet,
        sites=(*problem.fleet.sites, hs.Site(name="far", link=LAN)),
        machines=(problem.fleet.machines[0], far),
    )
    with pytest.raises(ValueError, match="flow 'a' -> 'b' needs a link"):
        simulate_layout(problem.replace(fleet=fleet), chain())


def test_pins_are_kept():
    """A range with blocks that are pinned to another site is refused."""
    problem = problem_of("a", "b")
    fleet = dataclasses.replace(
        problem.fleet,
        sites=(*problem.fleet.sites, hs.Site(name="vault", link=LAN)),
        pins=(hs.Pin(start=0, stop=1, sites=("vault",)),),
    )
    with pytest.raises(ValueError, match=r"machine 'a' must leave out blocks 0:1"):
        simulate_layout(problem.replace(fleet=fleet), chain())


def test_wrong_types_and_options_are_refused():
    """Arguments of other types, and options out of range, are named."""
    problem = problem_of("a", "b")
    with pytest.raises(TypeError, match="layout must be"):
        simulate_layout(problem, [1])
    with pytest.raises(ValueError, match="max_num_seqs"):
        simulate_layout(problem, chain(), max_num_seqs=0)
    with pytest.raises(ValueError, match="think_time_s needs users"):
        simulate_layout(problem, chain(), think_time_s=1.0)


def test_time_limit_ends_a_simulation():
    """A run that takes too long raises TimeoutError, and says how far it came."""
    problem = problem_of("a", "b")
    with pytest.raises(TimeoutError, match="0 of 1 requests had ended"):
        simulate_layout(problem, chain(), time_limit_s=1e-9)


def test_most_under_way_counts_admitted_requests():
    """The largest number at once is that of a sweep over the requests."""
    case = random_layout(5)
    trace = simulate_layout(case.problem, case.layout, **case.options)
    at_once = [
        int(((trace.admitted_s <= t) & (t < trace.freed_s)).sum()) for t in trace.admitted_s
    ]
    assert trace.most_under_way == max(at_once)
    assert "served" in str(trace)
