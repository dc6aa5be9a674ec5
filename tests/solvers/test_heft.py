"""HEFT: the published example, small cases by hand, and an independent implementation."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.kernels import heft as kernels
from hypsolve.problem.evaluation import check, service_s, stage_bytes, transfer_s
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition, Status
from hypsolve.solvers.joint.heft import heft, heft_cuts, heft_dag, heft_schedule

# H. Topcuoglu, S. Hariri, M.-Y. Wu, IEEE Trans. Parallel Distrib. Syst. 13(3), 2002: the graph
# of figure 2 and its table of costs, tasks there counted from 1
COSTS = [
    [14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10],
    [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16],
]  # fmt: skip
EDGES = [
    (1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14),
    (2, 8, 19), (2, 9, 16), (3, 7, 23), (4, 8, 27), (4, 9, 23),
    (5, 9, 13), (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13),
]  # fmt: skip


def test_published_example():
    """Makespan and ranks as published; no task starts early, or runs across another."""
    edges = [(i - 1, j - 1) for i, j, _ in EDGES]
    schedule = heft_dag(COSTS, [c for *_, c in EDGES], edges)
    assert schedule.makespan_s == 80
    published = [108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert schedule.rank_s == pytest.approx(published, abs=1e-3)
    for (i, j), (*_, c) in zip(edges, EDGES, strict=True):
        apart = schedule.processor[i] != schedule.processor[j]
        assert schedule.start_s[j] >= schedule.end_s[i] + c * apart
    for p in range(3):
        mine = np.flatnonzero(schedule.processor == p)
        mine = mine[np.argsort(schedule.start_s[mine])]
        assert (schedule.start_s[mine][1:] >= schedule.end_s[mine][:-1]).all()
        assert (schedule.end_s - schedule.start_s)[mine].tolist() == [COSTS[t][p] for t in mine]


def test_a_short_task_goes_into_a_gap():
    """Edge 0 -> 1 leaves processor 1 idle until 2 + 5; task 2, last by rank, fits there."""
    schedule = heft_dag([[2, 9], [30, 4], [9, 3]], [5], [(0, 1)])
    assert schedule.processor.tolist() == [0, 1, 1]
    assert schedule.start_s.tolist() == [0, 7, 0]
    assert schedule.makespan_s == 11


@pytest.mark.parametrize(
    ("costs", "comm", "edges", "message"),
    [
        ([[1.0], [1.0]], [0, 0], [(0, 1), (1, 0)], "edges must not form a cycle"),
        ([[1.0]], [0], [(0, 1)], "edges must hold whole numbers below 1"),
        ([[1.0], [math.nan]], [], [], r"costs must be finite.*got nan at index \[1, 0\]"),
        ([[1.0], [1.0]], [-1.0], [(0, 1)], "comm must be finite and not negative"),
        ([[1.0], [1.0]], [1.0, 1.0], [(0, 1)], r"edges must have shape \(2, 2\)"),
        ([[]], [], [], "costs must hold tasks and processors"),
    ],
)
def test_bad_graphs(costs, comm, edges, message):
    with pytest.raises(ValueError, match=message):
        heft_dag(costs, comm, edges)


@st.composite
def instances(draw) -> Instance:
    n_tiers, n_classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    allow_empty = draw(st.booleans())
    n_blocks = draw(st.integers(1 if allow_empty else n_tiers, 7))
    n_requests = draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = 3 if draw(st.booleans()) else 3 * n_blocks  # memory: tight or not
    memory = rng.integers(1, 4, n_blocks) + draw(st.sampled_from([0.0, 0.1]))
    tiers = [
        [
            (int(rng.integers(n_classes)), float(rng.integers(2, most + 2)))
            for _ in range(rng.integers(1, 4))
        ]
        for _ in range(n_tiers)
    ]
    pinned = None
    if draw(st.booleans()):
        pinned = {int(rng.integers(n_blocks)): int(rng.integers(n_tiers))}
    return Instance.from_tables(
        rng.integers(0, 5, (draw(st.sampled_from([1, n_requests])), n_classes, n_blocks)) / 3,
        memory,
        tiers,
        transfer_s=rng.integers(
            0, 4, (draw(st.sampled_from([1, n_requests])), n_tiers - 1, n_blocks + 1)
        ),
        arrival_s=rng.integers(0, 9, n_requests),
        allow_empty=allow_empty,
        pinned=pinned,
        min_blocks=rng.integers(0, min(n_blocks, 2) + 1, n_tiers).tolist()
        if draw(st.booleans())
        else None,
        max_blocks=rng.integers(2, 6, n_tiers).tolist() if draw(st.booleans()) else None,
        tied_bytes=draw(st.sampled_from([0.0, 1.0])),
        objective=draw(st.sampled_from(["bottleneck", "mean_latency", "makespan"])),
        stage_rule=draw(st.sampled_from(["pooled", "slowest"])),
    )


@given(instance=instances())
def test_an_answer_is_legal_or_a_dead_end(instance):
    outcome = heft(instance, time_limit_s=1.0, seed=0)
    assert outcome.bound_s == 0
    if outcome.status is Status.INFEASIBLE:
        assert outcome.message.startswith("this baseline does not fit: block ")
        assert outcome.partition is None and outcome.schedule is None
        assert heft_cuts(instance) is None
    else:
        assert check(instance, outcome.partition, outcome.schedule) == []
        assert outcome.partition == heft_cuts(instance)


def plain_schedule(instance: Instance, partition: Partition):
    """Completions by definition, in O(n**2): tries every end of a job as a start."""
    service, links = service_s(instance, partition), transfer_s(instance, partition)
    n, n_tiers = instance.n_requests, instance.n_tiers
    service = np.broadcast_to(service, (n, *service.shape[1:]))
    links = np.broadcast_to(links, (n, n_tiers - 1))
    stages = [k for k in range(n_tiers) if len(partition.stage(k))]
    holds, tasks = {}, []
    for k in stages:
        need = stage_bytes(instance, partition.cuts[k], partition.cuts[k + 1])
        here = instance.nodes_of(k)
        able = [j for j, b in enumerate(instance.node_bytes[here]) if need <= b]
        holds[k] = [(j, instance.node_class[here][j]) for j in able]
    for r in range(n):
        rank, after = 0.0, n_tiers - 1
        for k in reversed(stages):
            rank += links[r, k:after].sum() if k != stages[-1] else 0.0
            rank += np.mean([service[r, k, c] for _, c in holds[k]])
            tasks.append((-rank, r, k))
            after = k
    jobs: dict[tuple[int, int], list[tuple[float, float]]] = {}
    end, ends = {}, np.full((n, n_tiers), math.nan)
    for _, r, k in sorted(tasks):
        at = stages.index(k)
        ready = end[r, stages[at - 1]] if at else instance.release_s[r]
        ready += links[r, stages[at - 1] if at else 0 : k].sum()
        options = []
        for j, c in holds[k]:
            busy = jobs.setdefault((k, j), [])
            for start in [ready] + [e for _, e in busy if e > ready]:
                stop = start + service[r, k, c]
                if all(stop <= s or start >= e for s, e in busy):
                    options.append((stop, j, start))
        stop, j, start = min(options)
        jobs[k, j].append((start, stop))
        end[r, k] = ends[r, k] = stop
    return ends


@given(seed=st.integers(0, 2**32 - 1), n_requests=st.integers(1, 25))
def test_schedule_equals_an_independent_implementation(seed, n_requests):
    rng = np.random.default_rng(seed)  # whole seconds >= 1; dyadic means over 1, 2 or 4 nodes
    instance = Instance.from_tables(
        rng.integers(1, 6, (rng.choice([1, n_requests]), 2, 4)).astype(float),
        np.ones(4),
        [[tuple(node) for node in rng.integers((0, 2), (2, 5), (4, 2)).tolist()]
         for _ in range(3)],
        transfer_s=rng.integers(0, 4, (rng.choice([1, n_requests]), 2, 5)),
        arrival_s=rng.integers(0, 3 * n_requests, n_requests),
        allow_empty=True,
    )  # fmt: skip
    for cuts in [(0, 2, 3, 4), (0, 0, 2, 4), (0, 2, 2, 4)]:
        partition = Partition(cuts)
        if not check(instance, partition):
            schedule = heft_schedule(instance, partition)
            assert check(instance, partition, schedule) == []
            np.testing.assert_allclose(
                schedule.end_s, plain_schedule(instance, partition), 1e-12
            )


def test_nothing_runs_across_a_task_of_no_length():
    """Request 0 starts and ends at 2 and is placed first; request 1 may not run across it."""
    instance = Instance.from_tables(
        [[[0.0, 9.0]], [[4.0, 1.0]]], [1, 1], [[(0, 1.0)], [(0, 1.0)]], arrival_s=[2, 0]
    )
    schedule = heft_schedule(instance, Partition((0, 1, 2)))
    assert check(instance, Partition((0, 1, 2)), schedule) == []
    assert schedule.start_s[:, 0].tolist() == [2, 2]


def test_many_gaps_on_one_node():
    """Short jobs of low rank fill the gaps between long ones; spans that touch are merged."""
    arrival_s = np.concatenate([np.arange(40) * 10.0, np.arange(40) * 10.0 + 6.0])
    block_s = np.concatenate([np.full(40, 5.0), np.full(40, 2.0)])[:, None, None]
    instance = Instance.from_tables(block_s, [1.0], [[(0, 1.0)]], arrival_s=arrival_s)
    schedule = heft_schedule(instance, Partition((0, 1)))
    np.testing.assert_array_equal(schedule.start_s[:, 0], arrival_s)


def cuts_of(block_s, block_bytes, tiers, **fields) -> tuple[int, ...]:
    return heft_cuts(Instance.from_tables([block_s], block_bytes, tiers, **fields)).cuts


EDGE, CLOUD = (0, 3.0), (1, 9.0)  # class, memory
FAR = np.full((1, 1, 6), 1.5)  # seconds over the link behind each cut


@pytest.mark.parametrize(
    ("tiers", "fields", "cuts"),
    [
        # a tier must have a block, and behind it the cloud is faster for every block
        ([[EDGE], [CLOUD]], {}, (0, 1, 5)),
        ([[EDGE], [CLOUD]], {"allow_empty": True}, (0, 0, 5)),
        # a transfer never pays for one block, so the greedy choice fills the edge
        ([[EDGE], [CLOUD]], {"transfer_s": FAR}, (0, 3, 5)),
        # a slow last tier gets as few blocks as the limits allow
        ([[CLOUD], [EDGE]], {"transfer_s": FAR}, (0, 4, 5)),
        ([[CLOUD], [EDGE]], {"transfer_s": FAR, "allow_empty": True}, (0, 5, 5)),
        ([[CLOUD], [EDGE]], {"transfer_s": FAR, "pinned": {2: 1}}, (0, 2, 5)),
        ([[CLOUD], [EDGE]], {"transfer_s": FAR, "max_blocks": [3, 9]}, (0, 3, 5)),
        ([[CLOUD], [EDGE]], {"transfer_s": FAR, "min_blocks": [1, 3]}, (0, 2, 5)),
    ],
)
def test_cuts_by_hand(tiers, fields, cuts):
    """Five blocks, each twice as fast in the cloud as on the edge."""
    assert cuts_of([[2.0] * 5, [1.0] * 5], [1] * 5, tiers, **fields) == cuts


@pytest.mark.parametrize(("tied_bytes", "cut"), [(0, 2), (1, 3)])
def test_tied_weights_are_held_once_by_one_stage(tied_bytes, cut):
    """Three blocks of 2 bytes fit into 5 bytes only if the first and last share one byte."""
    fields = {"allow_empty": True, "transfer_s": FAR[..., :4], "tied_bytes": tied_bytes}
    tiers = [[(0, 5.0)], [(1, 9.0)]]
    assert cuts_of([[1.0] * 3, [9.0] * 3], [2] * 3, tiers, **fields)[1] == cut


def test_the_request_of_highest_rank_decides():
    short, long = [[1.0, 1.0], [2.0, 2.0]], [[9.0, 9.0], [4.0, 4.0]]
    fields = {"allow_empty": True, "transfer_s": np.full((1, 1, 3), 0.5)}
    both = Instance.from_tables([short, long], [1, 1], [[(0, 9)], [(1, 9)]], **fields)
    assert heft_cuts(both).cuts == (0, 0, 2)
    assert cuts_of(short, [1, 1], [[(0, 9)], [(1, 9)]], **fields) == (0, 2, 2)


def test_a_dead_end_is_named():
    """The edge is faster and takes two blocks; the third block fits nowhere."""
    instance = Instance.from_tables(
        [[[1.0] * 3, [3.0] * 3]], [1, 1, 3], [[(0, 2.0)], [(1, 2.0)]], name="x"
    )
    outcome = heft(instance, time_limit_s=1.0, seed=0)
    assert outcome.status is Status.INFEASIBLE and outcome.bound_s == 0
    assert "this baseline does not fit: block 2 of 3 bytes finds no node" in outcome.message
    with pytest.raises(TypeError, match="unexpected keyword argument 'fast'"):
        heft(instance, time_limit_s=1.0, seed=0, fast=True)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="the JIT is off")
def test_kernels_are_compiled_once():
    kernels.warm_up()
    test_a_short_task_goes_into_a_gap()
    test_many_gaps_on_one_node()
    assert len(kernels.schedule_dag.signatures) == 1
    assert len(kernels.schedule_chains.signatures) == 1
