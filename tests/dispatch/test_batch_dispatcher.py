"""`BatchDispatcher` against a plain O(n_nodes) version and `Dispatcher`, and its errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve import BatchDispatcher, Dispatcher, DispatcherParams
from hypsolve.dispatch.dispatcher import MAX_S, TICKS_PER_S


class PlainDispatcher:
    """HypSched-RT by its definition, in whole ticks."""

    def __init__(self, node_class):
        self.node_class = np.array(node_class)
        self.backlog = np.zeros(len(node_class), np.int64)
        self.ratio = [1.0] * len(node_class)
        self.factor = np.ones(len(node_class))

    def dispatch(self, expected_s):
        own = np.rint(np.array(expected_s) * TICKS_PER_S).astype(np.int64)[self.node_class]
        node = int(np.argmin((self.backlog + own) * self.factor))
        self.backlog[node] += own[node]
        return node

    def complete(self, node, expected_s, busy_s):
        ticks = round(expected_s * TICKS_PER_S)
        self.backlog[node] -= ticks
        ratio = 0.8 * self.ratio[node] + 0.2 * (busy_s * TICKS_PER_S / ticks)
        self.ratio[node] = min(max(ratio, 2.0**-32), 2.0**32)
        self.factor[node] = 2.0 ** (round(16 * math.log2(self.ratio[node])) / 16)


def assert_same_state(ours, plain):
    assert (ours.outstanding_s == plain.backlog / TICKS_PER_S).all()
    assert (ours.slowdown == plain.factor).all()


@given(
    data=st.data(),
    node_class=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    n_rounds=st.integers(1, 8),
)
def test_makes_the_choices_of_the_plain_version(data, node_class, n_rounds):
    ours, plain = BatchDispatcher(node_class), PlainDispatcher(node_class)
    seconds = st.sampled_from([1.0, 2.0, 3.0, 0.5])  # few values, so that ties occur
    jobs = []
    for _ in range(n_rounds):
        rows = st.lists(seconds, min_size=max(node_class) + 1, max_size=max(node_class) + 1)
        expected_s = data.draw(st.lists(rows, min_size=1, max_size=8))
        chosen = ours.dispatch(expected_s).tolist()
        assert chosen == [plain.dispatch(row) for row in expected_s]
        jobs += [(n, row[node_class[n]]) for n, row in zip(chosen, expected_s, strict=True)]
        n_done = data.draw(st.integers(0, len(jobs)))
        done = [jobs.pop(data.draw(st.integers(0, len(jobs) - 1))) for _ in range(n_done)]
        busy = st.sampled_from([1e-9, 0.3, 1.0, 1.1, 4.0, 1e12])
        busy_s = [job[1] * data.draw(busy) for job in done]
        ours.complete([n for n, _ in done], [s for _, s in done], busy_s)
        for (n, s), b in zip(done, busy_s, strict=True):
            plain.complete(n, s, b)
        assert_same_state(ours, plain)


@pytest.mark.parametrize("seed", range(3))
def test_makes_the_choices_of_the_plain_version_in_a_large_tier(seed):
    """Measured times are noisy, one node in twenty is throttled; two jobs a node in flight."""
    rng = np.random.default_rng(seed)
    n_nodes, n_requests = 300, 60
    node_class = rng.integers(0, 6, n_nodes)
    node_class[:6] = range(6)
    pace = np.where(rng.random(n_nodes) < 0.05, 3.0, 1.0)
    ours, plain = BatchDispatcher(node_class), PlainDispatcher(node_class)
    flights = []
    for turn in range(30):
        expected_s = rng.lognormal(0, 0.5, (n_requests, 1)) * [1, 1.5, 2, 3, 4, 6]
        node = ours.dispatch(expected_s)
        assert node.tolist() == [plain.dispatch(row) for row in expected_s]
        flights.append((node, expected_s[np.arange(n_requests), node_class[node]]))
        if turn >= 10:
            node, own_s = flights[turn - 10]
            busy_s = own_s * pace[node] * rng.normal(1, 0.1, n_requests).clip(0.5)
            ours.complete(node, own_s, busy_s)
            for job in zip(node, own_s, busy_s, strict=True):
                plain.complete(*job)
    assert_same_state(ours, plain)
    assert len(set(ours.slowdown)) > 8


@pytest.mark.parametrize("params", [DispatcherParams(), DispatcherParams(0.5, 3)])
def test_makes_the_choices_of_the_dispatcher(params):
    classes = [0, 1, 1, 0, 2]
    ours = BatchDispatcher(classes, params=params)
    router = Dispatcher(dict(enumerate(classes)), params=params)
    rng = np.random.default_rng(0)
    for _ in range(300):
        row = rng.lognormal(0, 1, 3)
        (node,) = ours.dispatch([row])
        assert node == router.dispatch(dict(enumerate(row)))
        if rng.random() < 0.9:
            own_s, busy_s = row[classes[node]], rng.lognormal(0, 0.5)
            ours.complete([node], [own_s], [busy_s])
            router.complete(node, own_s, busy_s)
            assert ours.slowdown[node] == router.slowdown(node)


def test_empty_calls_are_allowed():
    router = BatchDispatcher([0])
    assert router.dispatch(np.zeros((0, 1))).tolist() == []
    router.complete([], [], [])


def test_refuses_requests_that_would_overflow_the_backlogs():
    router = BatchDispatcher([0])
    for _ in range(8):
        router.dispatch(np.full((1000, 1), MAX_S))
        router.complete([0] * 999, [MAX_S] * 999, [1.0] * 999)
    with pytest.raises(ValueError, match=r"outstanding seconds must be at most 4\.29"):
        router.dispatch(np.full((4089, 1), MAX_S))
    assert router.outstanding_s.tolist() == [8 * MAX_S]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: BatchDispatcher([]), ValueError, "node_class must hold at least one"),
        (lambda d: BatchDispatcher([0.5]), TypeError, "node_class must hold whole numbers"),
        (lambda d: BatchDispatcher([[0]]), ValueError, r"node_class must have shape \(any\)"),
        (lambda d: BatchDispatcher([0, -1]), ValueError, "node_class .* 0 to 16383, got -1"),
        (lambda d: BatchDispatcher([2**14]), ValueError, "node_class must .* got 16384 at"),
        (lambda d: BatchDispatcher(np.array([2**63], np.uint64)), ValueError, "got 9223372036"),
        (lambda d: BatchDispatcher([[0], [0, 1]]), ValueError, "must be a rectangular array"),
        (lambda d: BatchDispatcher([True]), TypeError, "whole numbers, got dtype bool"),
        (lambda d: BatchDispatcher([0], params=0.2), TypeError, "params must be a Dispatch"),
        (lambda d: d.dispatch([[1.0]]), ValueError, r"expected_s must have shape \(any, 2\)"),
        (lambda d: d.dispatch([[1.0, 0.0]]), ValueError, "positive and at most 1048576, got 0"),
        (lambda d: d.dispatch([[1.0, 2e6]]), ValueError, "positive and at most .*, got 2e"),
        (lambda d: d.dispatch([[1.0, math.nan]]), ValueError, "expected_s must be .* got nan"),
        (lambda d: d.dispatch([["1", "1"]]), TypeError, "expected_s must hold numbers"),
        (lambda d: d.complete([2], [1], [1]), ValueError, "node must be from 0 to 1, got 2 at"),
        (lambda d: d.complete([-1], [1], [1]), ValueError, "node must be from 0 .* got -1"),
        (lambda d: d.complete([0], [1, 1], [1]), ValueError, "expected_s must have shape"),
        (lambda d: d.complete([0], [1], [0]), ValueError, "busy_s must be positive"),
        (lambda d: d.complete([0], [-1], [1]), ValueError, "expected_s must be finite and not"),
        (lambda d: d.complete([0, 0], [1, 3], [1, 1]), ValueError,
         r"expected_s\[1\] must be at most what node 0 has outstanding, 1 s less the .* got 3"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument_and_changes_nothing(call, error, message):
    router = BatchDispatcher([0, 1])
    router.dispatch([[1.0, 2.0]])
    with pytest.raises(error, match=f"^batch dispatcher: .*{message}"):
        call(router)
    assert router.outstanding_s.tolist() == [1.0, 0.0]
    assert router.slowdown.tolist() == [1.0, 1.0]
