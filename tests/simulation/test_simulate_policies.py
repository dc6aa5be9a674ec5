"""Policies at token level: the kernel against a user's own; what they see; HypSched-RT."""

import itertools
import math
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from hypsolve.problem.costs import service_s, weight_read_bytes
from hypsolve.problem.deployment import CostModel
from hypsolve.simulation.events import EventKind
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import from_the_first_arrival, random_scenario
from tests.helpers.traces import kv_free_s

is_slow = os.environ.get("NUMBA_DISABLE_JIT") == "1"  # then a run takes 0.1 s
quick = settings(max_examples=max(settings.default.max_examples // (20 if is_slow else 2), 3))
SEEDS = st.integers(0, 10**6)


# a user's own policies


def own_hypsched_rt(state, request):
    values = (state.outstanding_s + state.own_s) * state.slowdown
    has_room = state.kv_free_tokens >= state.kv_own_tokens
    if has_room.any():
        values = np.where(has_room, values, math.inf)
    return state.nodes[values.argmin()]


def own_random(state, request):
    return state.nodes[math.floor(state.uniforms[0] * state.nodes.size)]


def own_round_robin(state, request):
    return state.nodes[state.n_dispatched % state.nodes.size]


def own_join_shortest_queue(state, request):
    return min(zip(state.n_jobs, state.nodes, strict=True))[1]


def own_power_of_two(state, request):
    nodes = list(range(state.nodes.size))
    first = second = nodes.pop(math.floor(state.uniforms[0] * len(nodes)))
    if nodes:
        second = nodes[math.floor(state.uniforms[1] * len(nodes))]
    return state.nodes[second if state.n_jobs[second] < state.n_jobs[first] else first]


def own_least_work_left(state, request):
    return min(zip(state.remaining_s, state.nodes, strict=True))[1]


def own_earliest_completion(state, request):
    return min(zip(state.remaining_s + state.own_s, state.nodes, strict=True))[1]


def test_there_is_one_for_every_policy():
    assert {f"own_{name}" for name in POLICIES} <= set(globals())


@pytest.mark.parametrize("name", sorted(POLICIES))
@quick
@given(seed=SEEDS)
def test_a_users_own_policy_chooses_as_the_kernel_does(name, seed):
    """With events, tight memory, slowdowns."""
    scenario = replace(random_scenario(seed, hs.simulate), policy=name)
    mine = replace(scenario, policy=globals()[f"own_{name}"])
    toys.assert_same(
        mine.run(hs.simulate, record_visits=True), scenario.run(hs.simulate, record_visits=True)
    )


@pytest.mark.parametrize("name", sorted(POLICIES))
@quick
@given(seed=SEEDS)
def test_the_functions_on_offer_choose_as_the_kernel_does(name, seed):
    """`POLICIES` has Python functions, which users may change: they agree with the kernel."""
    scenario = replace(random_scenario(seed, hs.simulate), policy=name)
    theirs = replace(scenario, policy=POLICIES[name].choose)
    toys.assert_same(theirs.run(hs.simulate), scenario.run(hs.simulate))


@quick
@given(seed=SEEDS)
def test_what_a_policy_does_to_its_state_has_no_effect(seed):
    def careless(state, request):
        answer = own_earliest_completion(state, request)
        for name in ("n_jobs", "outstanding_s", "remaining_s", "own_s", "slowdown"):
            getattr(state, name)[:] = 7
        state.kv_free_tokens[:] = -1
        state.uniforms[:] = 0.5
        state.rng.random(3)
        with pytest.raises(ValueError, match="read-only"):
            state.nodes[:] = 0
        return answer

    scenario = replace(random_scenario(seed, hs.simulate), policy=own_earliest_completion)
    careful = scenario.run(hs.simulate)
    toys.assert_same(replace(scenario, policy=careless).run(hs.simulate), careful)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_seeds_matter_to_those_that_draw(name):
    deployment = toys.deployment([[toys.gpu(t0_s=1.0)] * 3] * 2, toys.burst(30))
    traces = [
        hs.simulate(deployment, toys.even(2), name, seed=seed, max_num_seqs=1)
        for seed in (1, 1, 2)
    ]
    toys.assert_same(traces[0], traces[1])
    is_same = (traces[0].node == traces[2].node).all()
    assert is_same != POLICIES[name].draws
    if POLICIES[name].draws:  # every tier has draws of its own
        assert (traces[0].node[:, 0] != traces[0].node[:, 1]).any()


# what they see


def nominal_s(blocks, gpu, cost_model, entries, n_passes):
    """Return the seconds of an iteration from its (tokens, context) pairs, by definition."""
    total_s = 0.0
    for block in blocks:
        computed = n_passes if block.last_token_only else sum(q for q, _ in entries)
        if not computed:
            continue
        window = block.window_tokens or math.inf
        pairs = sum(min(x, window) for q, c in entries for x in range(c + 1, c + q + 1))
        read = sum(min(c, window - 1) + q for q, c in entries)
        flops = block.flops_per_token * computed + block.attention_flops_per_pair * pairs
        moved = float(weight_read_bytes(block, computed))
        moved += block.kv_bytes_per_token * read + block.activation_bytes_per_token * computed
        seconds = flops / gpu.flops_per_s
        if cost_model is CostModel.ROOFLINE:
            seconds = gpu.t0_s + max(seconds, moved / gpu.bytes_per_s)
        total_s += seconds
    return total_s


class Witness:
    """Reconstruction, from a trace, of the state that a policy must have seen."""

    def __init__(self, scenario, trace):
        self.expected_s = cache(self.expected_s)
        self.deployment, self.trace = scenario.deployment, trace
        self.partition, self.visits = scenario.partition, trace.visits
        self.believed = trace.output_tokens
        if "expected_output_tokens" in scenario.options:
            belief = scenario.options["expected_output_tokens"]
            self.believed = np.full_like(self.believed, belief)
        self.iterations = {}  # of a node: start, end, nominal seconds
        edges = [*self.visits.first_of_iterations(), len(self.visits.request)]
        for first, end in itertools.pairwise(edges):
            n = int(self.visits.node[first])
            times = self.visits.start_s[first], self.visits.end_s[first]
            mine = self.iterations.setdefault(n, [])
            mine.append((*times, self.nominal_s(n, range(first, end))))

    def of(self, n):
        """Return the blocks and the GPU of a node."""
        nodes = [
            (k, node) for k, t in enumerate(self.deployment.network.tiers) for node in t.nodes
        ]
        k, node = nodes[n]
        return [self.deployment.model.blocks[b] for b in self.partition.stage(k)], node

    def nominal_s(self, n, rows):
        blocks, node = self.of(n)
        visits, prompt = self.visits, self.trace.prompt_tokens
        entries = [(int(visits.tokens[i]), int(visits.context_tokens[i])) for i in rows]
        n_passes = sum(
            q + c >= prompt[visits.request[i]] for i, (q, c) in zip(rows, entries, strict=True)
        )
        return nominal_s(blocks, node.gpu, self.deployment.cost_model, entries, n_passes)

    def expected_s(self, n, r, output_tokens=None):
        blocks, node = self.of(n)
        p, o = self.trace.prompt_tokens[r], output_tokens or self.believed[r]
        cost_model = self.deployment.cost_model
        return math.fsum(float(service_s(b, node.gpu, p, o, cost_model)) for b in blocks)

    def slowdown(self, n, now_s):
        ratio = 1.0
        for start_s, end_s, alone_s in self.iterations.get(n, ()):
            if end_s <= now_s and alone_s > 0:
                ratio = 0.8 * ratio + 0.2 * (end_s - start_s) / alone_s
        return 2 ** (round(16 * math.log2(ratio)) / 16)

    def remaining_s(self, n, now_s, jobs):
        total_s = 0.0
        for start_s, end_s, alone_s in self.iterations.get(n, ()):
            if start_s < now_s < end_s:
                total_s += max(start_s + alone_s - now_s, 0.0)
        for r in jobs:
            p, o = int(self.trace.prompt_tokens[r]), int(self.believed[r])
            mine = (self.visits.request == r) & (self.visits.node == n)
            started = self.visits.tokens[mine & (self.visits.start_s < now_s)].sum()
            prefill_s = self.expected_s(n, r, 1)
            total_s += prefill_s * (1 - min(started, p) / p)
            if o > 1:
                left = max(p + o - 1 - max(started, p), 0) / (o - 1)
                total_s += (self.expected_s(n, r) - prefill_s) * left
        return total_s

    def kv_free_tokens(self, n, pinned):
        blocks, node = self.of(n)
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        if not kv_bytes:
            return math.inf
        free = node.usable_bytes - sum(block.weight_bytes for block in blocks)
        if len(blocks) == self.deployment.model.n_blocks:
            free += self.deployment.model.tied_bytes
        tokens = self.trace.prompt_tokens + self.trace.output_tokens
        return math.floor(free / kv_bytes * (1 + 1e-12)) - tokens[pinned].sum()


@quick
@given(seed=SEEDS.map(lambda seed: 2 * seed))  # even: no two things happen at one moment
def test_policies_see_what_is_so(seed):
    seen = []
    scenario = from_the_first_arrival(random_scenario(seed, hs.simulate))
    events = scenario.options["events"]
    events = [e for e in events if e.kind in (EventKind.SLOWDOWN, EventKind.BANDWIDTH)]
    scenario = replace(
        scenario,
        policy=toys.spy_on(own_earliest_completion, seen),
        options={**scenario.options, "events": events},
    )
    trace = scenario.run(hs.simulate, record_visits=True)
    assume((trace.visits.start_s < trace.visits.end_s).all())
    witness, first = Witness(scenario, trace), np.cumsum(np.bincount(trace.node_tier))
    first = np.append(0, first[:-1])
    free_s = kv_free_s(scenario.deployment, scenario.partition, trace)
    pinned = {n: [] for n in range(len(trace.node_names))}
    for turn, (r, node, state) in enumerate(seen):
        k, now_s = state.tier, state.time_s
        assert trace.reached_s[r, k] == now_s
        assert state.n_dispatched == sum(s.tier == k for _, _, s in seen[:turn])
        assert state.kv_own_tokens == trace.prompt_tokens[r] + witness.believed[r]
        for at, n in enumerate(first[k] + state.nodes):
            jobs = [q for q in pinned[n] if trace.left_s[q, k] > now_s]
            assert state.n_jobs[at] == len(jobs)
            expected_s = math.fsum(witness.expected_s(n, q) for q in jobs)
            remaining_s = witness.remaining_s(n, now_s, jobs)
            held = [q for q in pinned[n] if free_s[q] > now_s]
            free = witness.kv_free_tokens(n, held)
            close = {"rel": 1e-7, "abs": 1e-12}
            assert state.outstanding_s[at] == pytest.approx(expected_s, **close)
            assert state.own_s[at] == pytest.approx(witness.expected_s(n, r), **close)
            assert state.remaining_s[at] == pytest.approx(remaining_s, **close)
            assert state.slowdown[at] == witness.slowdown(n, now_s)
            assert state.kv_free_tokens[at] == free or free == math.inf
        pinned[first[k] + node].append(r)
    assert len(seen) == (trace.node >= 0).sum()


# HypSched-RT


def test_hypsched_rt_prefers_nodes_with_room():
    """The first is four times as fast, and takes two at a time; then the other is better."""
    gpus = [toys.gpu("fast", t0_s=1.0), toys.gpu("slow", t0_s=4.0)]
    deployment = toys.deployment(
        [gpus], toys.burst(6, prompt_tokens=6, output_tokens=2), toys.model(1, kv_bytes=1),
        memory_bytes=16.0,
    )  # fmt: skip
    trace = hs.simulate(deployment, toys.even(1))
    assert trace.node[:, 0].tolist() == [0, 0, 1, 1, 0, 0]  # none has room: the least of all
    roomy = replace(deployment, network=toys.network([gpus], memory_bytes=1e3))
    assert hs.simulate(roomy, toys.even(1)).node[:, 0].tolist() == [0, 0, 0, 0, 1, 0]


def by_hand(deployment, trace, capacity_tokens, events):
    """Nodes that `Dispatcher` gives, told when jobs end, nodes leave, and who has room."""
    (tier,) = deployment.network.tiers
    need = trace.prompt_tokens + trace.output_tokens
    busy_s = dict(
        zip(trace.visits.request, trace.visits.end_s - trace.visits.start_s, strict=True)
    )
    router = hs.Dispatcher(tier)
    gpus, chosen, n_rerouted = {node.name: node.gpu for node in tier.nodes}, {}, 0

    def expected_s(gpu, r):
        return float(trace.prompt_tokens[r] / gpu.flops_per_s)

    def route(r):
        own = {gpu.name: expected_s(gpu, r) for gpu in gpus.values()}
        held = {name: sum(need[q] for q, n in chosen.items() if n == name) for name in gpus}
        roomy = [n for n in router.nodes if capacity_tokens - held[n] >= need[r]]
        chosen[r] = router.dispatch(own, roomy or None)

    final = {}
    moments = [(t, 1, r, None) for r, t in enumerate(trace.left_s[:, 0])]
    moments += [(event.at_s, 2, 0, event) for event in events]
    moments += [(t, 5, r, None) for r, t in enumerate(trace.arrival_s)]
    for _, phase, r, event in sorted(moments, key=lambda m: m[:3]):
        if phase == 1:
            final[r] = chosen.pop(r)
            router.complete(final[r], expected_s(gpus[final[r]], r), busy_s[r])
        elif phase == 5:
            route(r)
        elif event.kind is EventKind.FAILURE:
            router.remove(event.target)
            lost = sorted(q for q, n in chosen.items() if n == event.target)
            for q in lost:
                del chosen[q]
            for q in lost:
                route(q)
            n_rerouted += len(lost)
        elif event.kind is EventKind.RECOVERY:
            router.add(event.target, gpus[event.target].name)
    return [final[r] for r in range(len(need))], n_rerouted


@pytest.mark.parametrize("capacity_tokens", [60, 200, 10**9])
@pytest.mark.parametrize("seed", range(5 if is_slow else 25))
def test_hypsched_rt_is_the_dispatcher_driven_by_hand(seed, capacity_tokens):
    """One request is one iteration: both measure the same. Round numbers, so that ties are."""
    rng = np.random.default_rng(seed)
    n = 150
    gpus = [toys.gpu(f"gpu{i}", seconds_per_flop=2.0 ** (i - 8)) for i in range(3)]
    requests = hs.Requests(
        np.round(rng.exponential(0.04, n).cumsum() * 2**10) / 2**10,
        rng.integers(1, 50, n), np.ones(n, np.int64),
    )  # fmt: skip
    deployment = toys.deployment(
        [[gpus[i] for i in (0, 1, 0, 2, 1)]], requests,
        toys.model(1, flops_per_token=1.0, kv_bytes=1),
        memory_bytes=float(capacity_tokens), cost_model=CostModel.FLOPS,
    )  # fmt: skip
    throttled = [hs.Event(1.0, "slowdown", "a0", 2.7), hs.Event(4.0, "slowdown", "a0", 1)]
    lost = [hs.Event(2.0, "failure", "a4"), hs.Event(3.0, "recovery", "a4")]
    events = throttled + lost  # the last node: it is the last to join, too
    trace = hs.simulate(
        deployment, toys.even(1), max_num_seqs=1, chunk_tokens=None, events=events,
        record_visits=True,
    )  # fmt: skip
    nodes, n_rerouted = by_hand(deployment, trace, capacity_tokens, lost)
    assert [trace.node_names[i] for i in trace.node[:, 0]] == nodes
    assert trace.restarts.sum() == n_rerouted
    assert (trace.latency_s > 2 * trace.prompt_tokens / 2**8).any()  # there are queues


def test_a_throttled_node_loses_load_without_being_told():
    """Two equal nodes; from 500 s to 1000 s one takes four times as long."""
    rng = np.random.default_rng(3)
    requests = hs.Requests(
        np.sort(rng.uniform(0, 1500, 1500)), rng.integers(100, 300, 1500), np.ones(1500)
    )
    deployment = toys.deployment(
        [[toys.gpu(seconds_per_flop=2**-8)] * 2], requests, toys.model(1, flops_per_token=1.0),
        cost_model=CostModel.FLOPS,
    )  # fmt: skip
    events = [hs.Event(500.0, "slowdown", "a1", 4.0), hs.Event(1000.0, "slowdown", "a1", 1)]
    share, late_s = {}, {}
    for policy in ("hypsched_rt", "round_robin"):
        trace = hs.simulate(deployment, toys.even(1), policy, max_num_seqs=1, events=events)
        spans = [(100, 500), (600, 1000), (1200, 1500)]
        among = [(trace.arrival_s >= begin) & (trace.arrival_s < end) for begin, end in spans]
        share[policy] = [trace.node[mask, 0].mean() for mask in among]
        late_s[policy] = trace.latency_s[among[1]].mean()
    before, during, after = share["hypsched_rt"]
    assert before > 0.3 and after > 0.3  # ties go to the other
    assert 0.02 < during < before / 2  # fewer, and never none: or it would not be seen to mend
    assert share["round_robin"] == pytest.approx([0.5] * 3, abs=0.01)
    assert late_s["hypsched_rt"] < late_s["round_robin"] / 5
