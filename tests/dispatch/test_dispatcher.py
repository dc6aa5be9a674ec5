"""`Dispatcher` against a plain version and the kernel; nodes slow down, leave and join."""

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.dispatch.dispatcher import Dispatcher, DispatcherParams
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.deployment import GpuProfile, Node, Tier
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition


class PlainDispatcher:
    """HypSched-RT by its definition, O(n_nodes); exact, for the tests use whole seconds."""

    def __init__(self) -> None:
        self.kind, self.outstanding, self.ratio = {}, {}, {}

    def add(self, node, kind) -> None:
        self.kind[node], self.outstanding[node], self.ratio[node] = kind, 0.0, 1.0

    def remove(self, node) -> float:
        del self.kind[node], self.ratio[node]
        return self.outstanding.pop(node)

    def slowdown(self, node) -> float:
        return 2.0 ** (round(16 * math.log2(self.ratio[node])) / 16)

    def dispatch(self, expected, among=None):
        nodes = [n for n in self.kind if among is None or n in among]  # in order of joining
        best = min(
            nodes,
            key=lambda n: (self.outstanding[n] + expected[self.kind[n]]) * self.slowdown(n),
        )
        self.outstanding[best] += expected[self.kind[best]]
        return best

    def complete(self, node, expected_s, busy_s) -> None:
        self.outstanding[node] -= expected_s
        self.ratio[node] = 0.8 * self.ratio[node] + 0.2 * busy_s / expected_s


EVENTS = ["dispatch"] * 3 + ["complete"] * 2 + ["add", "remove"]


@given(data=st.data(), n_start=st.integers(1, 8))
def test_makes_the_choices_of_the_plain_version(data, n_start):
    ours, plain = Dispatcher(), PlainDispatcher()
    jobs: list[tuple[str, float]] = []
    joined = 0

    def add() -> None:
        nonlocal joined
        kind = data.draw(st.sampled_from("AB"))
        for each in (ours, plain):
            each.add(f"n{joined}", kind)
        joined += 1

    for _ in range(n_start):
        add()
    for _ in range(40):
        event = data.draw(st.sampled_from(EVENTS))
        if event == "dispatch" and plain.kind:
            expected = {kind: float(data.draw(st.integers(1, 4))) for kind in "AB"}
            among = None
            if data.draw(st.booleans()):
                among = data.draw(st.lists(st.sampled_from(sorted(plain.kind)), min_size=1))
            node = ours.dispatch(expected, among)
            assert node == plain.dispatch(expected, among)
            jobs.append((node, expected[plain.kind[node]]))
        elif event == "complete" and jobs:
            node, expected_s = jobs.pop(data.draw(st.integers(0, len(jobs) - 1)))
            busy_s = expected_s * data.draw(st.sampled_from([0.3, 1.0, 1.1, 4.0]))
            for each in (ours, plain):
                each.complete(node, expected_s, busy_s)
            assert ours.slowdown(node) == plain.slowdown(node)
        elif event == "add":
            add()
        elif event == "remove" and plain.kind:
            node = data.draw(st.sampled_from(sorted(plain.kind)))
            assert ours.remove(node) == plain.remove(node)
            jobs = [job for job in jobs if job[0] != node]
        assert ours.nodes == tuple(plain.kind)
        for node in plain.kind:
            assert ours.outstanding_s(node) == plain.outstanding[node]
            assert ours.n_jobs(node) == sum(job[0] == node for job in jobs)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_nodes=st.integers(1, 6),
    n_requests=st.integers(1, 30),
)
def test_makes_the_choices_of_the_kernel_when_jobs_take_as_long_as_expected(
    seed, n_nodes, n_requests
):
    rng = np.random.default_rng(seed)
    service_s = rng.integers(1, 5, (n_requests, 2)).astype(float)
    classes = rng.integers(0, 2, n_nodes).tolist()
    instance = Instance.from_tables(
        service_s[:, :, None],
        [1.0],
        [[(c, 1.0) for c in classes]],
        arrival_s=np.sort(rng.integers(0, n_requests, n_requests)),
    )
    found = schedule(instance, Partition((0, 1)))
    router = Dispatcher(dict(enumerate(classes)))
    running: list[tuple[float, int, float]] = []  # end, node, seconds
    for r, now_s in enumerate(instance.release_s):
        for job in [job for job in running if job[0] <= now_s]:
            router.complete(job[1], expected_s=job[2], busy_s=job[2])
            running.remove(job)
        node = router.dispatch(dict(enumerate(service_s[r])))
        assert node == found.node[r, 0]
        running.append((found.end_s[r, 0], node, service_s[r, classes[node]]))


def serve(router: Dispatcher, speed: dict[str, float], n_requests: int) -> Counter:
    """Serve requests of 1 s, three of them in flight; return the requests of each node."""
    counts: Counter = Counter()
    queues = {node: deque() for node in speed}
    free_s = dict.fromkeys(speed, 0.0)
    for turn in range(n_requests):
        node = router.dispatch(1.0)
        counts[node] += 1
        queues[node].append(1.0 / speed[node])
        if turn >= 3:
            first = min(
                (n for n in queues if queues[n]), key=lambda n: free_s[n] + queues[n][0]
            )
            busy_s = queues[first].popleft()
            free_s[first] += busy_s
            router.complete(first, 1.0, busy_s)
    for name, queue in queues.items():
        for busy_s in queue:
            router.complete(name, 1.0, busy_s)
    return counts


def test_a_node_that_slows_down_loses_load_and_gains_it_back():
    router = Dispatcher(["a", "b"])
    healthy = serve(router, {"a": 1.0, "b": 1.0}, 400)
    assert abs(healthy["a"] - healthy["b"]) <= 40
    throttled = serve(router, {"a": 1.0, "b": 0.25}, 400)
    assert router.slowdown("b") == pytest.approx(4.0, rel=0.05)
    assert throttled["b"] < 0.3 * throttled["a"]
    # under load a slow node still gets some jobs, which show that it is healthy again
    for _ in range(8):
        for _ in range(40):
            router.dispatch(1.0)
        for name in ("a", "b"):
            for _ in range(router.n_jobs(name)):
                router.complete(name, 1.0, 1.0)
    assert router.slowdown("b") == 1.0
    assert abs(serve(router, {"a": 1.0, "b": 1.0}, 400)["b"] - 200) <= 20


def test_nodes_leave_and_join():
    router = Dispatcher(["a", "b"])
    for _ in range(6):
        router.dispatch(2.0)
    assert router.remove("b") == 6.0
    assert [router.dispatch(2.0) for _ in range(3)] == ["a"] * 3
    router.add("c")
    assert [router.dispatch(2.0) for _ in range(6)] == ["c"] * 6  # until the backlogs are equal
    assert router.outstanding_s("a") == router.outstanding_s("c") == 12.0
    router.add("b")  # the name is known, the node is new
    assert router.outstanding_s("b") == 0.0
    assert router.slowdown("b") == 1.0
    assert router.n_jobs("b") == 0
    with pytest.raises(ValueError, match="node 'b' must have a job of expected_s = 2"):
        router.complete("b", 2.0, 2.0)
    assert router.nodes == ("a", "c", "b")


def test_slowdown_is_a_moving_average_rounded_to_a_sixteenth_octave():
    router = Dispatcher(["a"])
    router.dispatch(1.0)
    router.complete("a", 1.0, 1.05)  # average 1.01, 0.23 of a step
    assert router.slowdown("a") == 1.0
    router.dispatch(1.0)
    router.complete("a", 1.0, 2.0)  # 0.8 * 1.01 + 0.4 = 1.208, 4.36 steps
    assert router.slowdown("a") == pytest.approx(2 ** (4 / 16))
    for _ in range(5000):  # no underflow, even if a clock reports no time at all
        router.dispatch(1.0)
        router.complete("a", 1.0, 5e-324)
    assert 0 < router.slowdown("a") < 1e-9


def test_the_class_of_a_node_of_a_tier_is_its_gpu():
    fast, slow = (
        GpuProfile(name=n, t0_s=0, flops_per_s=f, bytes_per_s=f, memory_bytes=1e9)
        for n, f in (("fast", 2e9), ("slow", 1e9))
    )
    tier = Tier(
        name="edge",
        nodes=(Node(name="x", gpu=slow), Node(name="y", gpu=fast), Node(name="z", gpu=slow)),
    )
    router = Dispatcher(tier)
    assert router.nodes == ("x", "y", "z")
    choices = [router.dispatch({"fast": 1.0, "slow": 2.0}) for _ in range(4)]
    assert choices == ["y", "x", "y", "z"]


def test_a_backlog_returns_to_exactly_zero():
    router = Dispatcher(["a"])
    rng = np.random.default_rng(0)
    jobs = [0.1]
    router.dispatch(0.1)
    for _ in range(2000):
        jobs.append(float(rng.random()))
        router.dispatch(jobs[-1])
        expected_s = jobs.pop(int(rng.integers(len(jobs))))
        router.complete("a", expected_s, expected_s)
    router.complete("a", jobs[0], jobs[0])
    assert router.outstanding_s("a") == 0.0


def test_stale_heap_entries_are_dropped():
    router = Dispatcher(["a", "b"])
    for _ in range(2000):
        router.complete(router.dispatch(1.0), 1.0, 1.0)
    assert sum(map(len, router._groups.values())) < 100


def test_params_set_the_weight_and_the_rounding():
    router = Dispatcher(["a"], params=DispatcherParams(slowdown_weight=1, steps_per_octave=1))
    router.dispatch(1.0)
    router.complete("a", 1.0, 3.0)  # log2(3) = 1.58 is rounded to 2
    assert router.slowdown("a") == 4.0


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"slowdown_weight": 0}, ValueError, "slowdown_weight must be positive and finite"),
        ({"slowdown_weight": 1.5}, ValueError, "slowdown_weight must be at most 1, got 1.5"),
        ({"slowdown_weight": "1"}, TypeError, "slowdown_weight must be a number, got '1'"),
        ({"steps_per_octave": 0}, ValueError, "steps_per_octave must be at least 1, got 0"),
        (
            {"steps_per_octave": 257},
            ValueError,
            "steps_per_octave must be at most 256, got 257",
        ),
        ({"steps_per_octave": 2.0}, TypeError, "steps_per_octave must be a whole number"),
    ],
)
def test_params_are_validated(values, error, message):
    with pytest.raises(error, match=f"^DispatcherParams: {message}"):
        DispatcherParams(**values)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: Dispatcher(["a"], params=1), TypeError, "params must be a DispatcherParams"),
        (lambda d: d.dispatch(0.0), ValueError, "expected seconds must be positive"),
        (lambda d: d.dispatch(math.nan), ValueError, "must be positive and finite, got nan"),
        (lambda d: d.dispatch(2e6), ValueError, "must be at most 1048576, got 2000000"),
        (lambda d: d.dispatch("1"), TypeError, "must be a number, got '1'"),
        (lambda d: d.dispatch({"A": 1.0}), ValueError, "expected must name class 'B'"),
        (lambda d: d.dispatch({"A": 1, "B": -1}), ValueError, r"expected\['B'\] must be pos"),
        (lambda d: d.dispatch(1.0, among=[]), ValueError, "must be a node to choose from"),
        (lambda d: d.dispatch(1.0, among=["z"]), ValueError, "unknown node 'z'; known are 'a'"),
        (lambda d: Dispatcher().dispatch(1.0), ValueError, "must be a node to choose from"),
        (lambda d: d.complete("a", 1.0, 1.0), ValueError, "node 'a' must have a job of"),
        (lambda d: d.complete("z", 1.0, 1.0), ValueError, "unknown node 'z'"),
        (lambda d: d.complete("a", -1.0, 1.0), ValueError, "expected seconds must be positive"),
        (lambda d: d.complete("a", 1.0, 0.0), ValueError, "busy_s must be positive"),
        (lambda d: d.remove("z"), ValueError, "unknown node 'z'"),
        (lambda d: d.remove([]), ValueError, r"unknown node \[\]"),
        (lambda d: d.add("a"), ValueError, "node must be new, got 'a' again"),
        (lambda d: d.add([1]), TypeError, "node must be hashable"),
        (lambda d: Dispatcher("ab"), TypeError, "nodes must be a Tier, a mapping or"),
        (lambda d: Dispatcher(3), TypeError, "nodes must be a Tier, a mapping or"),
        (lambda d: d.dispatch(1.0, among=5), TypeError, "among must be an iterable .*got 5"),
        (lambda d: d.dispatch(1.0, among="ab"), TypeError, "among must be an .*got 'ab'"),
        (lambda d: d.dispatch(1.0, among=[[]]), ValueError, r"unknown node \[\]"),
        (lambda d: d.add("q", ["k"]), TypeError, r"node_class must be hashable, got \['k'\]"),
        (lambda d: d.add(("q", [])), TypeError, "node must be hashable"),
        (lambda d: Dispatcher({"a": [1]}), TypeError, "node_class must be hashable"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument_and_changes_nothing(call, error, message):
    router = Dispatcher({"a": "A", "b": "B"})
    with pytest.raises(error, match=message):
        call(router)
    assert router.n_jobs("a") == router.n_jobs("b") == 0
    assert router.dispatch(1.0) == "a"


def test_groups_of_gpus_are_classes_of_their_own():
    """Two and four GPUs of one kind take different times, though the GPU has one name."""
    links = hs.interconnect("nvlink4", "h100")
    nodes = tuple(
        hs.Node(name=f"n{n}", gpu=hs.gpu("h100"), gpus=n, tensor_parallel=n, interconnect=links)
        for n in (2, 4)
    )
    router = hs.Dispatcher(hs.Tier(name="rack", nodes=nodes))
    assert router.dispatch({"2 x H100-SXM": 2.0, "4 x H100-SXM": 1.0}) == "n4"
