"""Traces made by hand and at random, for tests of metrics, tables and figures."""

import math

import numpy as np
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.problem.solution import Partition
from hypsolve.simulation.time_series import bin_intervals
from hypsolve.simulation.trace import Series, Trace, Visits

NAN = float("nan")


def small(**changes):
    """Four requests over edge (e0, e1) and cloud (c0); the last one never ended.

    Iterations, with the requests in them (P: prefill): e0 1..2 (0P), 2..4 (0, 1P), 4..6
    (2P); c0 2..3 (0P), 5..6 (0, 1P, 2P).
    """
    visits = Visits(
        request=np.array([0, 0, 0, 1, 2, 0, 1, 2]),
        node=np.array([0, 2, 0, 0, 0, 2, 2, 2]),
        start_s=np.array([1.0, 2, 2, 2, 4, 5, 5, 5]),
        end_s=np.array([2.0, 3, 4, 4, 6, 6, 6, 6]),
        tokens=np.array([4, 4, 1, 2, 1, 1, 2, 1]),
        context_tokens=np.array([0, 0, 4, 0, 0, 4, 0, 0]),
    )
    fields = {
        "level": "token",
        "name": "small",
        "policy": "round_robin",
        "seed": 7,
        "partition": Partition((0, 2, 4)),
        "tier_names": ("edge", "cloud"),
        "node_names": ("e0", "e1", "c0"),
        "node_tier": np.array([0, 0, 1]),
        "arrival_s": np.array([1.0, 2, 2, 3]),
        "end_s": np.array([5.0, 4, 11, NAN]),
        "first_token_s": np.array([3.0, 4, 6, 7]),
        "prompt_tokens": np.array([4, 2, 1, 8]),
        "output_tokens": np.array([3, 1, 5, 2]),
        "restarts": np.array([0, 0, 2, 1]),
        "lost_tokens": np.array([0, 0, 30, 4]),
        "preemptions": np.array([0, 0, 1, 0]),
        "node": np.array([[0, 0], [0, 0], [0, 0], [1, -1]]),
        "reached_s": np.array([[1.0, 2], [2, 4], [2, 5], [3, NAN]]),
        "admitted_s": np.array([[1.0, 2], [2, 4], [4, 5], [3.5, NAN]]),
        "left_s": np.array([[4.0, 5], [4, 6], [6, 10], [NAN, NAN]]),
        "busy_s": np.array([5.0, 0, 2]),
        "n_iterations": np.array([3, 0, 2]),
        "n_tokens": np.array([8, 0, 8]),
        "n_visits": 8,
        "kv_capacity_bytes": np.array([2e9, 6e9, np.inf]),
        "end_of_run_s": 11.0,
        "series": Series(
            start_s=1.0,
            bin_s=2.0,
            busy=np.array([[1.0, 1, 0.5, 0, 0], [0, 0, 0, 0, 0], [0.5, 0, 0.5, 0, 0]]),
            n_requests=np.array([[2.0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
            n_waiting=np.array([[0.5, 1, 0, 0, 0], [0.5, 0, 0, 0, 0], [0, 1, 0, 0, 0]]),
            kv_bytes=np.array([[1e9, 1e9, 0, 0, 0], [0, 3e9, 0, 0, 0], [0, 0, 0, 0, 2e9]]),
            n_stranded=np.array([[0.5, 0, 0, 0, 0], [0, 0, 1, 0, 0]]),
        ),
        "extrapolated": True,
        "visits": visits,
    }
    return Trace(**(fields | changes))


def flow(**changes):
    """Serve these arrivals at flow level: one request at a time, on e0 and then on c0."""
    start_s = np.array([[1.0, 3], [3, 5], [5, 6], [7, 9]])
    end_s = np.array([[3.0, 4], [5, 6], [6, 9], [8, 12]])
    fields = {
        "level": "flow",
        "end_s": end_s[:, 1],
        "first_token_s": np.full(4, NAN),
        "restarts": np.zeros(4, np.int64),
        "lost_tokens": np.zeros(4, np.int64),
        "preemptions": np.zeros(4, np.int64),
        "node": np.zeros((4, 2), np.int64),
        "reached_s": start_s,
        "admitted_s": start_s,
        "left_s": end_s,
        "busy_s": np.array([6.0, 0, 8]),
        "n_iterations": np.array([4, 0, 4]),
        "n_visits": 8,
        "kv_capacity_bytes": np.full(3, np.inf),
        "end_of_run_s": 12.0,
        "visits": None,
    }
    return small(**(fields | changes))


def simulated(*, fails_at_s=None, failing=("bench-0",), **options):
    """Twelve requests on two tiers of two nodes, with an idle one between; nodes may fail."""

    def tier(name, gpu, link=None):
        nodes = (hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu)) for n in range(2))
        return hs.Tier(name=name, nodes=tuple(nodes), link=link)

    wire = hs.Link(bytes_per_s=1.25e8, latency_s=0.5e-3)
    tiers = (tier("bench", "rtx-4090", wire), tier("box", "rtx-4090", wire),
             tier("rented", "a100-80gb"))  # fmt: skip
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="mine", tiers=tiers),
        requests=hs.Requests(
            np.arange(12) * 0.05, 100 + 70 * np.arange(12), 1 + 2 * np.arange(12)
        ),
    )
    if fails_at_s is not None:
        options["events"] = [hs.Event(fails_at_s, "failure", node) for node in failing]
    return hs.simulate(deployment, Partition((0, 10, 10, 34)), **options)


@st.composite
def random_traces(draw, *, all_end=False, with_visits=True):
    """Nodes that compute batches one after the other, with gaps or none, at random.

    The requests' own times are drawn apart from that, but for one that is the last to end if
    all do: only `busy_s`, counts, series and visits belong together.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_requests, n_nodes = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    split = int(rng.integers(1, n_nodes))  # nodes of the first tier
    scale_s = 10.0 ** draw(st.integers(-8, 3))
    arrival_s = np.sort(rng.random(n_requests)) * scale_s
    output_tokens = rng.integers(1, 6, n_requests)
    prompt_tokens = rng.integers(1, 50, n_requests)
    first_token_s = arrival_s + rng.random(n_requests) * scale_s
    tail_s = rng.random(n_requests) * scale_s * (output_tokens > 1)
    end_s = first_token_s + tail_s
    if not all_end:
        end_s[rng.random(n_requests) < 0.3] = NAN
    first_s = float(arrival_s[0])
    rows, iterations = [], []
    for node in range(n_nodes):
        now_s = first_s
        for _ in range(int(rng.integers(0, 8))):
            now_s += float(rng.choice([0.0, rng.random()])) * scale_s
            done_s = now_s + float(rng.random() + 0.01) * scale_s
            members = rng.permutation(n_requests)[: int(rng.integers(1, n_requests + 1))]
            for r in members.tolist():
                decode = rng.random() < 0.5
                tokens, context = (1, int(prompt_tokens[r])) if decode else (3, 0)
                rows.append((r, node, now_s, done_s, tokens, context))
            iterations.append((node, now_s, done_s))
            now_s = done_s
    rows.sort(key=lambda row: (row[3], row[1]))
    request, node, start_s, stop_s, tokens, context = (
        np.array(column) for column in (zip(*rows, strict=True) if rows else [()] * 6)
    )
    visits = Visits(
        request=request.astype(np.int64), node=node.astype(np.int64),
        start_s=start_s.astype(float), end_s=stop_s.astype(float),
        tokens=tokens.astype(np.int64), context_tokens=context.astype(np.int64),
    )  # fmt: skip
    at = np.array([n for n, _, _ in iterations], dtype=np.int64)
    begin_s = np.array([s for _, s, _ in iterations], dtype=float)
    finish_s = np.array([e for _, _, e in iterations], dtype=float)
    last_s = max([*finish_s, *end_s[~np.isnan(end_s)], first_token_s.max()])
    if not np.isnan(end_s).any():
        end_s[-1], output_tokens[-1] = last_s, 5
    grid = {"n_rows": n_nodes, "first_s": first_s, "bin_s": (last_s - first_s) / 4, "n_bins": 4}
    busy = bin_intervals(begin_s, finish_s, 1.0, at, **grid)
    pinned = np.stack(
        [rng.integers(0, split, n_requests), rng.integers(0, n_nodes - split, n_requests)],
        axis=1,
    )
    reached_s = np.stack([arrival_s, first_token_s], axis=1)
    return Trace(
        level="token",
        name="random",
        policy="random",
        seed=0,
        partition=Partition((0, 1, 2)),
        tier_names=("near", "far"),
        node_names=tuple(f"node {n}" for n in range(n_nodes)),
        node_tier=(np.arange(n_nodes) >= split).astype(np.int64),
        arrival_s=arrival_s,
        end_s=end_s,
        first_token_s=first_token_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        restarts=rng.integers(0, 2, n_requests),
        lost_tokens=rng.integers(0, 9, n_requests),
        preemptions=np.zeros(n_requests, np.int64),
        node=pinned,
        reached_s=reached_s,
        admitted_s=reached_s,
        left_s=np.stack([first_token_s, end_s], axis=1),
        busy_s=np.bincount(at, finish_s - begin_s, n_nodes) if len(at) else np.zeros(n_nodes),
        n_iterations=np.bincount(at, minlength=n_nodes),
        n_tokens=np.bincount(visits.node, visits.tokens, n_nodes).astype(np.int64),
        n_visits=len(rows),
        series=Series(
            start_s=first_s, bin_s=grid["bin_s"], busy=busy, n_requests=2 * busy,
            n_waiting=0.5 * busy, kv_bytes=1e9 * busy, n_stranded=0 * busy[:2],
        ),
        kv_capacity_bytes=rng.choice([0.0, 1e9, np.inf], n_nodes),
        end_of_run_s=last_s,
        visits=visits if with_visits else None,
    )  # fmt: skip


def kv_free_s(deployment, partition, trace):
    """Return when each request frees its KV cache; inf: it never ended.

    Its last token is then back at the first stage. Delivery takes longer behind empty tiers.
    """
    tiers = [k for k in range(partition.n_tiers) if partition.stage(k)]
    links = [tier.link for tier in deployment.network.tiers[tiers[0] : tiers[-1]]]
    back_s = math.fsum(link.round_trip_s - link.latency_s for link in links)
    visits, last_s = trace.visits, np.full(len(trace.end_s), -math.inf)
    at_last = trace.node_tier[visits.node] == tiers[-1]
    np.maximum.at(last_s, visits.request[at_last], visits.end_s[at_last])
    return np.where(np.isnan(trace.end_s), math.inf, last_s + back_s)
