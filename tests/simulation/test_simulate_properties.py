"""Properties of every simulation at token level, whatever the options and events."""

import itertools
import math
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.dispatch.policies import POLICIES
from hypsolve.simulation.events import EventKind
from tests.helpers import token_toys as toys
from tests.helpers.scenarios_token import Scenario, random_scenario
from tests.helpers.sizes import n_cases
from tests.helpers.traces import kv_free_s

SPEEDS = (EventKind.SLOWDOWN, EventKind.BANDWIDTH)
slower = 20 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 1  # then a run takes 0.1 s
thorough = settings(
    max_examples=max(n_cases(1, 2) * settings.default.max_examples // slower, 5)
)


@dataclass
class Run:
    """Scenario and its trace, with facts that follow from the scenario alone."""

    scenario: Scenario
    trace: hs.Trace

    @property
    def requests(self):
        return self.scenario.deployment.requests

    @property
    def events(self):
        return self.scenario.options.get("events", ())

    @cached_property
    def tiers(self):
        """Return the tiers that have a stage."""
        partition = self.scenario.partition
        return [k for k in range(partition.n_tiers) if partition.stage(k)]

    @cached_property
    def nodes(self):
        """Return (tier, node) pairs over the whole network."""
        tiers = self.scenario.deployment.network.tiers
        return [(k, node) for k, tier in enumerate(tiers) for node in tier.nodes]

    @cached_property
    def kv_free_s(self):
        return kv_free_s(self.scenario.deployment, self.scenario.partition, self.trace)

    def blocks(self, k):
        return [
            self.scenario.deployment.model.blocks[b] for b in self.scenario.partition.stage(k)
        ]

    def kv_bytes(self, k):
        return sum(block.kv_bytes_per_token for block in self.blocks(k))

    def capacity_tokens(self, n):
        k, node = self.nodes[n]
        blocks, model = self.blocks(k), self.scenario.deployment.model
        free = node.usable_bytes - sum(block.weight_bytes for block in blocks)
        free += model.tied_bytes if len(blocks) == model.n_blocks else 0
        return free / self.kv_bytes(k) if self.kv_bytes(k) else math.inf

    def down_s(self, n):
        """Return the periods in which a node is absent or down."""
        periods, since = [], None
        mine = [e for e in self.events if e.target == self.nodes[n][1].name]
        if any(e.kind is EventKind.JOIN for e in mine):
            since = 0.0
        for event in sorted(mine, key=lambda e: e.at_s):
            if event.kind is EventKind.FAILURE:
                since = event.at_s
            elif event.kind not in SPEEDS:
                periods.append((since, event.at_s))
                since = None
        return [*periods, (since, math.inf)] if since is not None else periods

    def iterations(self):
        """Return the iterations of every node in order: (start, end, rows of its visits)."""
        visits, found = self.trace.visits, defaultdict(list)
        edges = [*visits.first_of_iterations(), len(visits.request)]
        for first, end in itertools.pairwise(edges):
            times = float(visits.start_s[first]), float(visits.end_s[first])
            found[int(visits.node[first])].append((*times, range(first, end)))
        return found


@lru_cache(maxsize=256)
def run_of(seed, is_calm=False):
    """Calm: nothing fails or joins, links are as they are, and nobody waits for one."""
    scenario = random_scenario(seed, hs.simulate)
    if is_calm:
        events = [e for e in scenario.options.get("events", ()) if e.kind is EventKind.SLOWDOWN]
        options = {**scenario.options, "events": events, "link_contention": False}
        scenario = replace(scenario, options=options)
    return Run(scenario, scenario.run(hs.simulate, record_visits=True))


RUNS = st.integers(0, 10**6).map(run_of)
CALM_RUNS = st.integers(0, 10**6).map(lambda seed: run_of(seed, is_calm=True))


@thorough
@given(RUNS)
def test_every_request_ends_or_has_nobody_to_serve_it(run):
    trace = run.trace
    ended = np.isfinite(trace.end_s)
    holders = {
        k: [n for n, (at, _) in enumerate(run.nodes) if at == k and run.capacity_tokens(n) >= 0]
        for k in run.tiers
    }
    abandoned = [
        k
        for k, nodes in holders.items()
        if all(run.down_s(n) and run.down_s(n)[-1][1] == math.inf for n in nodes)
    ]
    assert ended.all() or abandoned
    assert np.isfinite(trace.first_token_s[ended]).all()
    left = np.isfinite(trace.left_s[:, run.tiers])
    assert (left.all(axis=1) == left[:, -1]).all() and left[ended].all()
    assert (trace.node[np.ix_(ended, run.tiers)] >= 0).all()
    for r, k in np.argwhere(trace.node >= 0):
        assert run.nodes[trace.network_node()[r, k]][0] == k
        assert trace.network_node()[r, k] in holders[k]
    metrics = trace.metrics()
    assert (metrics.n_finished, metrics.n_unfinished) == (ended.sum(), (~ended).sum())


@thorough
@given(RUNS)
def test_every_token_is_computed_once_but_for_those_lost(run):
    trace, visits, requests = run.trace, run.trace.visits, run.requests
    passes = requests.prompt_tokens + requests.output_tokens - 1
    ended = np.isfinite(trace.end_s)
    computed = np.bincount(visits.request, visits.tokens, len(passes))
    np.testing.assert_array_equal(
        computed[ended], (trace.lost_tokens + passes * len(run.tiers))[ended]
    )
    assert (computed >= trace.lost_tokens).all()
    assert (trace.restarts[trace.lost_tokens > 0] > 0).all()
    n_nodes = len(run.nodes)
    np.testing.assert_array_equal(
        np.bincount(visits.node, visits.tokens, n_nodes), trace.n_tokens
    )
    assert trace.n_visits == len(visits.request)
    if not trace.restarts.any():
        assert trace.n_tokens.sum() == computed.sum()
    # a stage computes the positions of a request one after the other; or all anew
    position, anew = defaultdict(int), defaultdict(int)
    columns = (
        visits.request,
        trace.node_tier[visits.node],
        visits.tokens,
        visits.context_tokens,
    )
    for r, k, tokens, context in zip(*(c.tolist() for c in columns), strict=True):
        if context != position[r, k]:
            assert context == 0
            anew[r, k] += 1
        position[r, k] = context + tokens
        assert position[r, k] <= passes[r]
    assert all(n <= trace.restarts[r] for (r, _), n in anew.items())


@thorough
@given(RUNS)
def test_no_batch_and_no_chunk_is_too_large(run):
    visits, options = run.trace.visits, run.scenario.options
    prompt_tokens = run.requests.prompt_tokens
    for iterations in run.iterations().values():
        for start_s, end_s, rows in iterations:
            if start_s == end_s:
                continue  # several that take no time look like one
            members = visits.request[rows]
            assert len(set(members.tolist())) == len(members) <= options["max_num_seqs"]
            # decodes are of one token, beyond the prompt; a restart's prompt can be too
            chunk = (visits.tokens[rows] > 1) | (
                visits.context_tokens[rows] < prompt_tokens[members]
            )
            limit = options["chunk_tokens"] or math.inf
            assert visits.tokens[rows][chunk].sum() <= limit


@thorough
@given(RUNS)
def test_no_node_holds_more_than_its_memory(run):
    trace, need = run.trace, run.requests.prompt_tokens + run.requests.output_tokens
    place = trace.network_node()
    held_byte_s = np.zeros(len(run.nodes))
    for n, (k, _) in enumerate(run.nodes):
        here = np.flatnonzero((place[:, k] == n) & np.isfinite(trace.admitted_s[:, k]))
        came_s = trace.admitted_s[here, k]
        # it keeps the cache until its last token is back, or is through and the node fails
        went_s = run.kv_free_s[here]
        for since, _ in run.down_s(n):
            went_s = np.where((came_s < since) & (since < went_s), since, went_s)
        for now_s in came_s:
            held = need[here][(came_s <= now_s) & (now_s < went_s)].sum()
            assert held <= run.capacity_tokens(n) * (1 + 1e-12)
        if run.kv_bytes(k):  # else 0, even of a request that never ends
            held_byte_s[n] = (need[here] * (went_s - came_s)).sum() * run.kv_bytes(k)
    series = trace.series
    room = [
        run.capacity_tokens(n) * run.kv_bytes(k) if run.kv_bytes(k) else 0
        for n, (k, _) in enumerate(run.nodes)
    ]
    assert (series.kv_bytes.max(axis=1) <= np.maximum(room, 0) * (1 + 1e-9)).all()
    if np.isfinite(held_byte_s).all() and not trace.restarts.any():
        got = series.kv_bytes.sum(axis=1) * series.bin_s
        np.testing.assert_allclose(got, held_byte_s, rtol=1e-9, atol=1e-9 * held_byte_s.max())


@thorough
@given(CALM_RUNS)
def test_memory_is_given_in_order_and_at_once(run):
    """First come, first served: one waits for those before it and for room, for no more."""
    trace, need = run.trace, run.requests.prompt_tokens + run.requests.output_tokens
    place = trace.network_node()
    for n, (k, _) in enumerate(run.nodes):
        here = np.flatnonzero(place[:, k] == n)
        queue = here[np.lexsort((here, trace.reached_s[here, k]))]
        holders, now_s = [], 0.0
        for r in queue:
            now_s = max(now_s, trace.reached_s[r, k])
            holders = [h for h in holders if run.kv_free_s[h] > now_s]
            for free_s in sorted({run.kv_free_s[h] for h in holders}):
                if need[holders].sum() + need[r] <= run.capacity_tokens(n) * (1 + 1e-12):
                    break
                now_s = free_s
                holders = [h for h in holders if run.kv_free_s[h] > now_s]
            assert trace.admitted_s[r, k] == now_s
            holders.append(r)


def availability(run):
    """Return when the tokens of each visit of a calm run began to wait."""
    trace, visits, deployment = run.trace, run.trace.visits, run.scenario.deployment
    model, links = deployment.model, [tier.link for tier in deployment.network.tiers]
    sent = [model.input_bytes_per_token, *(b.output_bytes_per_token for b in model.blocks)]
    cuts = run.scenario.partition.cuts
    hops = dict(zip(run.tiers, np.split(np.arange(run.tiers[-1]), run.tiers[:-1]), strict=True))
    first = run.tiers[0]
    back_s = sum(
        links[k].round_trip_s - links[k].latency_s for k in range(first, run.tiers[-1])
    )

    def cross(tier, now_s, n_tokens):
        for k in hops[tier]:
            now_s += n_tokens * sent[cuts[k + 1]] / links[k].bytes_per_s + links[k].latency_s
        return now_s

    ends = defaultdict(list)  # (end of each visit, tokens, position behind it)
    available_s = np.full(len(visits.request), math.nan)
    order = np.lexsort((trace.node_tier[visits.node], visits.context_tokens))
    for row in order:  # a position on all tiers, then the next
        r, k = visits.request[row], trace.node_tier[visits.node[row]]
        p, context = run.requests.prompt_tokens[r], visits.context_tokens[row]
        at = run.tiers.index(k)
        if context < p and at == 0:
            reached_s = cross(k, trace.arrival_s[r], p)
            if context == 0:
                np.testing.assert_allclose(trace.reached_s[r, k], reached_s, rtol=1e-12)
            available_s[row] = trace.admitted_s[r, k]
        elif context < p:
            arrived_s = 0.0  # chunks keep their order
            for end_s, tokens, behind in ends[r, at - 1]:
                arrived_s = max(arrived_s, cross(k, end_s, tokens))
                if behind > context:
                    break
            if context == 0:
                np.testing.assert_allclose(trace.reached_s[r, k], arrived_s, rtol=1e-12)
            available_s[row] = max(arrived_s, trace.admitted_s[r, k])
        else:
            if at:
                available_s[row] = cross(k, ends[r, at - 1][-1][0], 1)
            else:
                available_s[row] = ends[r, len(run.tiers) - 1][-1][0] + back_s
        ends[r, at].append(
            (visits.end_s[row], visits.tokens[row], context + visits.tokens[row])
        )
    return available_s


@thorough
@given(CALM_RUNS)
def test_no_node_idles_while_admitted_work_waits(run):
    visits, options = run.trace.visits, run.scenario.options
    available_s = availability(run)
    assert (available_s <= visits.start_s * (1 + 1e-12)).all()
    prompt_tokens = run.requests.prompt_tokens
    for iterations in run.iterations().values():
        all_rows = np.concatenate([rows for _, _, rows in iterations])
        before_s = 0.0
        for start_s, end_s, rows in iterations:
            slack_s = 1e-12 * start_s
            waiting = all_rows[
                (available_s[all_rows] < start_s - slack_s)
                & (visits.start_s[all_rows] >= start_s)
            ]
            # busy since the first of them came
            assert start_s <= before_s + slack_s or not len(waiting)
            before_s = end_s
            left = waiting[visits.start_s[waiting] > start_s]
            is_chunk = visits.context_tokens < prompt_tokens[visits.request]
            is_full = len(rows) >= options["max_num_seqs"]
            is_spent = visits.tokens[rows][is_chunk[rows]].sum() == options["chunk_tokens"]
            assert is_full or not len(left) or (is_spent and is_chunk[left].all())


@thorough
@given(RUNS)
def test_time_never_runs_backwards(run):
    trace = run.trace.from_first()  # as simulated; adding the first arrival rounds
    visits = trace.visits
    chain = [trace.arrival_s]
    for k in run.tiers:
        chain.append(trace.reached_s[:, k])
        assert not (trace.admitted_s[:, k] < trace.reached_s[:, k]).any()
        assert not (trace.left_s[:, k] < trace.admitted_s[:, k]).any()
    for earlier, later in itertools.pairwise(chain):
        assert not (later < earlier).any()
    lefts = trace.left_s[:, run.tiers]
    assert not (np.diff(lefts, axis=1) < 0).any()
    assert not (trace.end_s < lefts[:, -1]).any()
    assert not (trace.end_s < trace.first_token_s).any()
    assert not (trace.first_token_s < trace.arrival_s).any()
    assert (np.diff(visits.end_s) >= 0).all()
    assert (visits.end_s >= visits.start_s).all()
    assert (visits.start_s >= trace.arrival_s[visits.request]).all()
    for iterations in run.iterations().values():
        for (_, end_s, _), (start_s, _, _) in itertools.pairwise(iterations):
            assert start_s >= end_s
    last_s = np.nanmax([*trace.arrival_s, *trace.end_s, *visits.end_s])
    assert last_s <= trace.end_of_run_s
    if not np.isnan(trace.end_s).any():
        assert last_s == trace.end_of_run_s
    end_of_bins_s = trace.series.start_s + trace.series.bin_s * trace.series.busy.shape[1]
    assert trace.end_of_run_s <= end_of_bins_s * (1 + 1e-9)


@thorough
@given(RUNS)
def test_no_node_is_busy_for_longer_than_the_run(run):
    found = run.trace.metrics()
    if found.observed_s > 0:
        assert max(found.node_utilisation) <= 1 + 1e-9


@thorough
@given(RUNS)
def test_a_node_that_is_down_does_nothing(run):
    visits = run.trace.visits
    busy_s = np.zeros(len(run.nodes))
    for n, iterations in run.iterations().items():
        busy_s[n] = sum(end_s - start_s for start_s, end_s, _ in iterations)
        for since, until in run.down_s(n):
            mine = visits.node == n
            overlaps = (visits.start_s < until) & (visits.end_s > since)
            assert not (mine & overlaps & (visits.start_s < visits.end_s)).any()
    assert (busy_s <= run.trace.busy_s * (1 + 1e-9)).all()
    if not any(e.kind is EventKind.FAILURE for e in run.events):  # no iteration was lost
        np.testing.assert_allclose(busy_s, run.trace.busy_s, rtol=1e-9)


@thorough
@given(RUNS)
def test_the_same_input_gives_the_same_trace(run):
    scenario = run.scenario
    toys.assert_same(scenario.run(hs.simulate, record_visits=True), run.trace)
    bare = scenario.run(hs.simulate)
    assert bare.visits is None
    toys.assert_same(bare, run.trace)
    policy = scenario.policy
    if not isinstance(policy, str) or not POLICIES[policy].draws:
        options = {**scenario.options, "seed": scenario.options["seed"] + 1}
        toys.assert_same(replace(scenario, options=options).run(hs.simulate), run.trace)
