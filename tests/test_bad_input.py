"""Wrong input is a ValueError or TypeError that names the field, the rule and the value."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypsolve.dispatch.policies import POLICIES
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import (
    Block,
    Deployment,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Request,
    Requests,
    Tier,
)
from hypsolve.problem.evaluation import check, evaluate, stage_s
from hypsolve.problem.instance import Instance, LinkCost, Objective, StageRule
from hypsolve.problem.solution import Partition, Schedule, Status
from hypsolve.solve import METHODS, solve

BASE = {
    "block_s": [[[1, 2, 3], [3, 2, 1]]],
    "block_bytes": [1, 1, 1],
    "tiers": [[(0, 9)], [(1, 9), (0, 2)]],
    "transfer_s": [[[1, 2, 1, 0]]],
}
HUGE = 10**400


def tables(**changes):
    return Instance.from_tables(**(BASE | changes))


def case(error, *make_and_message, **changes):
    *make, message = make_and_message
    owner = [function.__name__ for function in make]
    return pytest.param(*make, changes, error, message, id=f"{owner}{str(changes)[:40]}")


value = functools.partial(case, ValueError)
kind = functools.partial(case, TypeError)
either = functools.partial(case, (ValueError, TypeError))  # numpy may refuse it first

BAD_TABLES = [
    # numbers
    value(r"block_s .*got nan at index \[0, 0, 1\]", block_s=[[[1, math.nan, 3], [3, 2, 1]]]),
    value(r"block_s .*got inf at index \[0, 1, 1\]", block_s=[[[1, 2, 3], [3, math.inf, 1]]]),
    value(r"block_s .*not negative, got -3.0", block_s=[[[1, 2, -3], [3, 2, 1]]]),
    value(r"block_bytes .*not negative, got -1.0 at index \[1\]", block_bytes=[1, -1, 1]),
    value(r"block_bytes .*got inf", block_bytes=[1, math.inf, 1]),
    value(r"transfer_s .*got nan", transfer_s=[[[1, math.nan, 1, 0]]]),
    value(r"occupancy_s .*got -2", occupancy_s=[[[1, -2, 1, 0]]]),
    value(r"arrival_s .*got nan", arrival_s=[math.nan]),
    value(r"arrival_s .*got -1", arrival_s=[-1]),
    value(r"reference_s .*got inf", reference_s=[[1, 2, 3], [1, 2, math.inf]]),
    value(r"reference_transfer_s .*nan", reference_transfer_s=[[1, 2, math.nan, 0]]),
    value(r"tied_bytes .*got -1", tied_bytes=-1),
    value(r"tied_bytes .*got nan", tied_bytes=math.nan),
    value(r"tied_bytes must be at most .* 1, got 2", tied_bytes=2),
    kind("tied_bytes must be a number, got '1'", tied_bytes="1"),
    kind("tied_bytes must be a number", tied_bytes=1j),
    kind("tied_bytes must be a number", tied_bytes=np.complex128(0.5)),
    either("block_s", block_s=[[[HUGE, 2, 3], [3, 2, 1]]]),
    either("block_bytes", block_bytes=[HUGE, 1, 1]),
    # types
    kind("block_s must hold numbers", block_s=[[["1", "2", "3"], ["3", "2", "1"]]]),
    kind("block_s must hold numbers", block_s="fast"),
    kind("block_s must hold numbers", block_s=None),
    kind("block_s must hold numbers", block_s={"a": 1}),
    kind("block_s must hold numbers, got dtype bool", block_s=np.ones((1, 2, 3), dtype=bool)),
    kind("block_s must hold numbers", block_s=np.ones((1, 2, 3), dtype=complex)),
    kind("block_bytes must hold numbers", block_bytes=b"abc"),
    kind("block_bytes must hold numbers", block_bytes=[True, False, True]),
    kind("arrival_s must hold numbers", arrival_s=["now"]),
    # shapes
    value(r"block_s must have shape \(any, any, any\), got \(1, 3\)", block_s=[[1, 2, 3]]),
    value(r"block_s must have shape .*got \(\)", block_s=5),
    value("block_s must be a rectangular array", block_s=[[[1, 2, 3], [3, 2]]]),
    value("block_s must have shape", block_s=[]),
    value("block_s must hold at least one request", block_s=np.ones((0, 2, 3))),
    value("block_s must hold at least one", block_s=np.ones((1, 0, 3))),
    value("block_s must hold at least one", block_s=np.ones((1, 2, 0))),
    value(r"block_bytes must have shape \(3\), got \(2,\)", block_bytes=[1, 1]),
    value("block_bytes must have shape", block_bytes=1),
    value("transfer_s must have shape", transfer_s=[[1, 2, 1, 0]]),
    value(r"transfer_s must have shape \(any, 1, 4\)", transfer_s=[[[1, 2, 1]]]),
    value(r"transfer_s must have shape \(any, 1, 4\)", transfer_s=np.zeros((1, 2, 4))),
    value("occupancy_s must have shape", occupancy_s=np.zeros((1, 1, 3))),
    value(r"reference_s must have shape \(2, 3\)", reference_s=[[1, 2, 3]]),
    value("reference_transfer_s must have shape", reference_transfer_s=[[1, 2]]),
    value(r"arrival_s must .*got 0", arrival_s=[]),
    value("arrival_s must have shape", arrival_s=3.0),
    value("arrival_s must have shape", arrival_s=[[0, 1]]),
    value(
        "arrival_s must have 1 or n_requests = 3 rows, got 2",
        block_s=np.ones((3, 2, 3)),
        arrival_s=[0, 1],
    ),
    value(
        "block_s must have 1 or n_requests = 3 rows, got 2",
        block_s=np.ones((2, 2, 3)),
        transfer_s=np.zeros((3, 1, 4)),
    ),
    value(
        r"(transfer|occupancy)_s must have",
        transfer_s=np.ones((2, 1, 4)),
        occupancy_s=np.ones((3, 1, 4)),
    ),
    # rules between fields
    value(
        r"occupancy_s must be at most transfer_s = 2.0, got 2.5 at index \[0, 0, 1\]",
        occupancy_s=[[[1, 2.5, 1, 0]]],
    ),
    value("occupancy_s must be at most transfer_s", occupancy_s=[[[1, 2, 1, 0.5]]]),
    # tiers
    value("tiers must hold at least one tier", tiers=[]),
    value("tier 1 must hold at least one node", tiers=[[(0, 9)], []]),
    value(r"tier 1 node 0 must be \(class, memory_bytes\)", tiers=[[(0, 9)], [(0,)]]),
    value(r"tier 1 node 0 must be \(class, memory_bytes\), got 7", tiers=[[(0, 9)], [7]]),
    value(r"node_class .*below 2, got 2", tiers=[[(2, 9)], [(0, 9)]]),
    value("tier 0 node 0: class must be at least 0, got -1", tiers=[[(-1, 9)], [(0, 9)]]),
    kind("tier 0 node 0: class must be a whole number", tiers=[[(0.0, 9)], [(0, 9)]]),
    kind("class must be a whole number, got '0'", tiers=[[("0", 9)], [(0, 9)]]),
    kind("class must be a whole number, got True", tiers=[[(True, 9)], [(0, 9)]]),
    either("class", tiers=[[(HUGE, 9)], [(0, 9)]]),
    value(r"tier 0 node 0: memory_bytes .*got -1", tiers=[[(0, -1)], [(0, 9)]]),
    value(r"memory_bytes .*got nan", tiers=[[(0, math.nan)], [(0, 9)]]),
    value(r"memory_bytes .*got inf", tiers=[[(0, math.inf)], [(0, 9)]]),
    value("memory_bytes must be finite", tiers=[[(0, HUGE)], [(0, 9)]]),
    kind("memory_bytes must be a number, got None", tiers=[[(0, None)], [(0, 9)]]),
    kind("tiers", tiers=None),
    kind("tiers", tiers=2),
    either("tier", tiers=[3, 4]),
    either("tier", tiers="ab"),
    # names
    value(
        "objective must be one of bottleneck, path, p0, mean_latency, makespan, got 'speed'",
        objective="speed",
    ),
    value("objective must be one of bottleneck", objective=None),
    value("objective must be one of bottleneck", objective=["path"]),
    value("stage_rule must be one of pooled, fastest, slowest, got 'mean'", stage_rule="mean"),
    value("link_cost must be one of occupancy, full, got 'half'", link_cost="half"),
    value("allow_empty must be False for objective p0", objective="p0", allow_empty=True),
    kind("allow_empty must be True or False, got 1", allow_empty=1),
    kind("overlap must be True or False, got 'yes'", overlap="yes"),
    kind("overlap must be True or False", overlap=None),
    kind("name must be a string, got 3", name=3),
    # pins and limits
    value("pinned block must be below 3, got 3", pinned={3: 0}),
    value("pinned block must be at least 0, got -1", pinned={-1: 0}),
    value(r"pinned\[0\] must be below 2, got 2", pinned={0: 2}),
    value(r"pinned\[0\] must be at least 0, got -1", pinned={0: -1}),
    kind("pinned block must be a whole number, got 'first'", pinned={"first": 0}),
    kind(r"pinned\[0\] must be a whole number, got 0.5", pinned={0: 0.5}),
    value("pinned block must be below 3", pinned={HUGE: 0}),
    kind("pinned", pinned=[0, 1]),
    kind("pinned", pinned=1),
    value("min_blocks must have 2 entries, got 1", min_blocks=[1]),
    value(r"min_blocks\[1\] must be at least 0, got -1", min_blocks=[1, -1]),
    kind(r"min_blocks\[1\] must be a whole number", min_blocks=[1, 1.5]),
    value("min_blocks", min_blocks=[9, 0]),
    either("min_blocks", min_blocks=[HUGE, 0]),
    kind("min_blocks", min_blocks=1),
    value("max_blocks must have 2 entries, got 3", max_blocks=[1, 1, 1]),
    value(r"max_blocks\[1\] must be at least 0, got -1", max_blocks=[1, -1]),
    kind(r"max_blocks\[1\] must be a whole number", max_blocks=[1, None]),
    value(
        r"min_blocks\[0\] must be at most max_blocks\[0\] = 1, got 2",
        min_blocks=[2, 0],
        max_blocks=[1, 3],
    ),
    kind("Instance.from_tables: unknown argument 'speed'; choose one of", speed=3),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_TABLES)
def test_bad_tables(changes, error, message):
    tables()  # so that it is the change that is refused
    with pytest.raises(error, match=message):
        tables(**changes)


@pytest.mark.parametrize("field", ["block_bytes", "tiers"])
def test_missing_tables(field):
    with pytest.raises(TypeError, match=field):
        Instance.from_tables(**{k: v for k, v in BASE.items() if k != field})


def test_huge_limits_are_no_limits():
    assert tables(max_blocks=[HUGE, 2**70]).max_blocks.tolist() == [3, 3]


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(-1, 3), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = [
    "block_s", "block_bytes", "tiers", "transfer_s", "occupancy_s", "arrival_s", "reference_s",
    "reference_transfer_s", "objective", "stage_rule", "allow_empty", "overlap", "link_cost",
    "pinned", "min_blocks", "max_blocks", "tied_bytes", "name",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@given(odd=ODD)
def test_anything_at_all_is_accepted_or_refused_properly(field, odd):
    try:
        instance = tables(**{field: odd})
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert len(instance.digest()) == 64
        solve(instance.replace(objective="bottleneck"), "hypsplit_dp")


@pytest.mark.parametrize("number", [1e300, 1.7e308, np.finfo(float).tiny, 5e-324])
@pytest.mark.parametrize("field", ["block_s", "block_bytes", "transfer_s", "arrival_s"])
def test_extreme_numbers_are_refused_or_solved(field, number):
    """There must be no overflow, no warning (an error here) and no endless search."""
    shape = {"block_s": (2, 2, 3), "block_bytes": 3, "transfer_s": (1, 1, 4), "arrival_s": 2}
    try:
        instance = tables(**{field: np.full(shape[field], number)})
    except ValueError as error:
        assert field in str(error)
        return
    for objective in ("bottleneck", "path", "p0", "makespan"):
        if field == "block_bytes" and number > 1:
            expected = Status.INFEASIBLE
        else:
            expected = Status.FEASIBLE if objective == "makespan" else Status.OPTIMAL
        result = solve(instance.replace(objective=objective), "hyperion")
        assert result.status is expected


# --- what users hand to solve, schedule, evaluate ------------------------------------------


def test_names_unknown_to_solve_list_the_choices():
    instance = tables()
    with pytest.raises(
        ValueError, match=f"unknown method 'dp'; choose one of {', '.join(METHODS)}"
    ):
        solve(instance, "dp")
    for name in (None, 3, ["hypsplit_dp"]):
        with pytest.raises((ValueError, TypeError), match="method"):
            solve(instance, name)
    listed = ", ".join(POLICIES)
    with pytest.raises(ValueError, match=f"unknown policy 'fifo'; choose one of {listed}"):
        schedule(instance, Partition((0, 1, 3)), "fifo")
    with pytest.raises(ValueError, match=f"unknown policy 'fifo'; choose one of {listed}"):
        solve(instance.replace(objective="makespan"), "even_split", policy="fifo")
    for bad in (None, 3, ["random"]):
        with pytest.raises((ValueError, TypeError), match="policy"):
            schedule(instance, Partition((0, 1, 3)), bad)
    with pytest.raises(ValueError, match=r"partition_objective must be .*path.*'speed'"):
        solve(instance.replace(objective="makespan"), "hyperion", partition_objective="speed")
    with pytest.raises(ValueError, match=r"partition_objective must be .*got 'makespan'"):
        solve(
            instance.replace(objective="makespan"), "hyperion", partition_objective="makespan"
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"time_limit_s": 0}, ValueError, "time_limit_s must be positive"),
        ({"time_limit_s": -1}, ValueError, "time_limit_s must be positive"),
        ({"time_limit_s": math.nan}, ValueError, r"time_limit_s must be .*got nan"),
        ({"time_limit_s": "60"}, TypeError, "time_limit_s must be a number, got '60'"),
        ({"time_limit_s": None}, TypeError, "time_limit_s must be a number"),
        ({"time_limit_s": HUGE}, ValueError, "time_limit_s must be positive and finite"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"threads": 3}, TypeError, "hypsplit_dp: unknown option 'threads'; it takes none"),
        ({"policy": "random"}, TypeError, "unknown option 'policy'"),
    ],
)  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        solve(tables(), "hypsplit_dp", **options)


@pytest.mark.parametrize("method", METHODS)
def test_huge_seeds_and_limits_are_fine(method):
    objective = "path" if "path" in METHODS[method].objectives else "makespan"
    result = solve(tables(objective=objective), method, seed=2**70, time_limit_s=1e9)
    assert result.partition is not None


@pytest.mark.parametrize("instance", [None, {}, "instance", 3, Instance])
def test_solve_wants_an_instance(instance):
    with pytest.raises(TypeError, match="instance must be an Instance"):
        solve(instance, "hypsplit_dp")


HALVES = Partition((0, 1, 3))


@pytest.mark.parametrize("call", [evaluate, check, schedule], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("partition", "error", "message"),
    [
        (Partition((0, 3)), ValueError, r"cuts must have 3 entries and end at 3, got \(0, 3\)"),
        (Partition((0, 1, 2)), ValueError, "end at 3"),
        (Partition((0, 1, 4)), ValueError, "end at 3"),
        ((0, 1, 3), TypeError, "Partition"),
        (None, TypeError, "Partition"),
    ],
)
def test_a_partition_of_another_problem(call, partition, error, message):
    with pytest.raises(error, match=message):
        call(tables(), partition)


@pytest.mark.parametrize("call", [evaluate, check], ids=lambda f: f.__name__)
def test_a_schedule_of_another_problem(call):
    instance = tables(objective="makespan")
    with pytest.raises(ValueError, match=r"node must have shape \(1, 2\), got \(2, 2\)"):
        call(
            instance, HALVES, Schedule(np.zeros((2, 2), int), np.zeros((2, 2)), np.ones((2, 2)))
        )
    with pytest.raises(TypeError, match="Schedule"):
        call(instance, HALVES, [[0, 0]])


def test_evaluate_lists_its_choices():
    with pytest.raises(ValueError, match=f"objective.*{', '.join(Objective)}"):
        evaluate(tables(), HALVES, objective="speed")
    with pytest.raises(ValueError, match=f"rule.*{', '.join(StageRule)}"):
        stage_s(tables(), 0, 0, 1, rule="mean")
    with pytest.raises(ValueError, match="makespan needs a schedule"):
        evaluate(tables(), HALVES, objective="makespan")
    assert list(LinkCost) == ["occupancy", "full"]


@pytest.mark.parametrize(
    ("cuts", "error", "message"),
    [
        ((), ValueError, "cuts must start at 0"),
        ((0,), ValueError, "two or more"),
        ((1, 3), ValueError, "start at 0"),
        ((0, 2, 1, 3), ValueError, "cuts must not fall, got 2 before 1"),
        ((0, -1, 3), ValueError, r"cuts\[1\] must be at least 0, got -1"),
        ((0, 1.0, 3), TypeError, r"cuts\[1\] must be a whole number, got 1.0"),
        ((0, True, 3), TypeError, "whole number"),
        ("013", TypeError, "whole number"),
        (3, TypeError, "cuts must be a sequence, got 3"),
        (None, TypeError, "cuts must be a sequence"),
    ],
)
def test_bad_partitions(cuts, error, message):
    with pytest.raises(error, match=message):
        Partition(cuts)


@pytest.mark.parametrize(
    ("node", "start_s", "end_s", "error", "message"),
    [
        ([[0.0]], [[0]], [[1]], TypeError, "node must hold whole numbers"),
        (
            [0],
            [0],
            [1],
            TypeError,
            r"node must hold whole numbers, of shape \(n_requests, n_tiers\), got int64",
        ),
        (None, None, None, TypeError, "node must hold whole numbers"),
        ([[0]], [[0, 1]], [[1]], ValueError, "start_s must have the shape of node"),
        ([[0]], [[0]], [1], ValueError, "end_s must have the shape of node"),
        ([[0]], [["now"]], [[1]], (TypeError, ValueError), "start_s"),
        ([[0]], [[0], [0, 1]], [[1]], (TypeError, ValueError), "start_s"),
        ([[0], [0, 1]], [[0]], [[1]], (TypeError, ValueError), "node"),
    ],
)
def test_bad_schedules(node, start_s, end_s, error, message):
    with pytest.raises(error, match=message):
        Schedule(node, start_s, end_s)


@pytest.mark.parametrize("answer", [1, -1, 99, None, "0", 0.0, True])
def test_a_users_policy_must_return_a_node_that_can_hold_the_stage(answer):
    instance = tables(tiers=[[(0, 9), (0, 0)], [(1, 9)]])
    with pytest.raises((ValueError, TypeError), match=r"mine.*tier-0"):

        def mine(state, request):
            return answer

        schedule(instance, HALVES, mine)


def test_a_stage_that_fits_nowhere_cannot_be_scheduled():
    with pytest.raises(ValueError, match="'tier-0' has no node that can hold blocks 0:1"):
        schedule(tables(tiers=[[(0, 0.5)], [(0, 9)]]), HALVES)


# --- deployments --------------------------------------------------------------------------

GPU = {"name": "g", "t0_s": 0, "flops_per_s": 1, "bytes_per_s": 1, "memory_bytes": 10}


def gpu(**changes):
    return GpuProfile(**(GPU | changes))


def node(name="n", **changes):
    return Node(name=name, **({"gpu": gpu()} | changes))


def link(**changes):
    return Link(**({"bytes_per_s": 1, "latency_s": 0} | changes))


def tier(name="t", **changes):
    return Tier(name=name, **({"nodes": (node(),)} | changes))


def block(**changes):
    return Block(**({"kind": "layer", "weight_bytes": 8} | changes))


def model(**changes):
    return Model(**({"name": "m", "blocks": (block(), block())} | changes))


def network(**changes):
    return Network(**({"name": "net", "tiers": (tier(),)} | changes))


def requests(arrival_s=(0.0,), prompt=(5,), output=(3,)):
    return Requests(arrival_s, prompt, output)


def deployment(**changes):
    parts = {"model": model(), "network": network(), "requests": requests()}
    return Deployment(**(parts | changes))


BAD_PARTS = [
    value(gpu, "gpu 'g': flops_per_s must be positive and finite, got 0", flops_per_s=0),
    value(gpu, "gpu 'g': bytes_per_s must be positive", bytes_per_s=-1),
    value(gpu, "bytes_per_s must be positive and finite, got nan", bytes_per_s=math.nan),
    value(gpu, "t0_s must be finite and not negative", t0_s=-1e-9),
    kind(gpu, "t0_s must be a number, got '1'", t0_s="1"),
    value(gpu, "memory_bytes must be positive", memory_bytes=0),
    value(gpu, "memory_bytes must be positive and finite", memory_bytes=math.inf),
    kind(gpu, "memory_bytes must be a number", memory_bytes=True),
    value(gpu, "name must not be empty", name=""),
    kind(gpu, "name must be a string", name=3),
    value(
        node,
        "node 'n': memory_bytes must be positive and finite, got nan",
        memory_bytes=math.nan,
    ),
    value(node, "node 'n': memory_bytes must be positive", memory_bytes=HUGE),
    value(node, "reserved_bytes must be below memory_bytes = 10, got 10", reserved_bytes=10),
    value(node, "reserved_bytes must be finite and not negative", reserved_bytes=-1),
    kind(node, "gpu must be a GpuProfile, got 'H100'", gpu="H100"),
    value(link, "link: bytes_per_s must be positive", bytes_per_s=0),
    value(link, "link: latency_s must be finite and not negative", latency_s=-1),
    value(link, "return_latency_s", return_latency_s=math.inf),
    value(tier, "tier 't': nodes must hold at least one node", nodes=()),
    kind(tier, "nodes must be a tuple of Node", nodes=node()),
    kind(tier, "nodes must be a tuple of Node", nodes=("a",)),
    kind(tier, "link must be a Link or None, got 5", link=5),
    value(network, "network 'net': tiers must hold at least one tier", tiers=()),
    kind(network, "tiers must be a tuple of Tier", tiers=tier()),
    value(network, "tier 'a' needs a link", tiers=(tier("a"), tier("b"))),
    value(network, "last tier 't' must have no link", tiers=(tier(link=link()),)),
    value(network, "'a' twice", tiers=(tier("a", link=link()), tier("a"))),
    value(
        network,
        "node names must be distinct, got 'n' twice",
        tiers=(tier("a", link=link()), tier("b")),
    ),
    value(block, "block 'layer': weight_bytes must be at least 0", weight_bytes=-1),
    kind(block, "weight_bytes must be a whole number", weight_bytes=1.5),
    value(block, "flops_per_token must be finite", flops_per_token=math.nan),
    value(block, "window_tokens must be at least 1, got 0", window_tokens=0),
    value(
        block,
        "experts_per_token must be at most n_experts = 1, got 2",
        experts_per_token=2,
        n_experts=1,
    ),
    value(block, r"always_read_bytes .* at most weight_bytes = 8, got 9", always_read_bytes=9),
    kind(block, "last_token_only must be True or False", last_token_only=1),
    value(model, "model 'm': blocks must hold at least one block", blocks=()),
    kind(model, "blocks must be a tuple of Block", blocks=block()),
    value(
        model, "blocks of kind 'layer' must be equal", blocks=(block(), block(weight_bytes=9))
    ),
    value(model, "tied_bytes must be at least 0", tied_bytes=-1),
    value(requests, "arrival_s must hold at least one request", arrival_s=()),
    value(requests, r"arrival_s must be finite .*got nan", arrival_s=(math.nan,)),
    value(requests, "prompt_tokens must have shape", arrival_s=(0, 1)),
    value(requests, "prompt_tokens must be whole numbers from 1 to .*, got 0", prompt=(0,)),
    value(requests, "output_tokens must be whole numbers from 1 to", output=(0,)),
    value(requests, "output_tokens must be whole numbers", output=(1.5,)),
    either(requests, "output_tokens", output=(HUGE,)),
    kind(requests, "prompt_tokens must hold numbers", prompt=("a",)),
    kind(deployment, "deployment: model must be a Model, got 'llama'", model="llama"),
    kind(deployment, "network must be a Network", network=None),
    kind(deployment, "requests must be a Requests", requests=[]),
    value(
        deployment, "cost_model must be one of roofline, flops, got 'magic'", cost_model="magic"
    ),
    value(
        deployment, r"max_resident_tokens must be at least 8, .*got 7", max_resident_tokens=7
    ),
    kind(deployment, "max_resident_tokens must be a whole number", max_resident_tokens=8.0),
]


@pytest.mark.parametrize(("make", "changes", "error", "message"), BAD_PARTS)
def test_bad_parts_of_a_deployment(make, changes, error, message):
    make()
    with pytest.raises(error, match=message):
        make(**changes)


def test_requests_may_be_gathered_one_by_one():
    gathered = Requests.of([Request(0.5, 3, 2), Request(1, 4, 1)])
    assert gathered.arrival_s.tolist() == [0.5, 1]
    with pytest.raises(ValueError, match="arrival_s must hold at least one request"):
        Requests.of([])
    with pytest.raises(TypeError, match="prompt_tokens"):
        Requests.of([Request(0, "long", 1)])
    with pytest.raises(TypeError, match=r"requests: request 1 must be a Request, got \(1, 4"):
        Requests.of([Request(0.5, 3, 2), (1, 4, 1)])


def test_to_instance_passes_on_what_is_wrong():
    for options, message in (
        ({"objective": "speed"}, "objective must be one of bottleneck"),
        ({"stage_rule": "mean"}, "stage_rule must be one of"),
        ({"pinned": {9: 0}}, "pinned block must be below 2"),
        ({"max_blocks": [1, 1]}, "max_blocks must have 1 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            to_instance(deployment(), **options)
