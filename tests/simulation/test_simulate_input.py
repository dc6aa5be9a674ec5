"""Wrong input to `simulate`: one line names the argument and the rule."""

import math

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.costs import to_instance
from tests.helpers import token_toys as toys

NAN = math.nan


def two_tiers(*, memory_bytes=None, **fields):
    """Return a deployment with two nodes on tier a and one on tier b."""
    return toys.deployment(
        [[toys.gpu(t0_s=1.0)] * 2, [toys.gpu(t0_s=1.0)]], toys.burst(3),
        toys.model(4, kv_bytes=1), memory_bytes=memory_bytes, **fields,
    )  # fmt: skip


HALVES = hs.Partition((0, 2, 4))
INSTANCE = to_instance(two_tiers())


def refuse(error, message, *, problem=None, partition=HALVES, **options):
    problem = two_tiers() if problem is None else problem
    with pytest.raises(error, match=message) as caught:
        hs.simulate(problem, partition, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_is_refused_here_is_served_otherwise():
    assert np.isfinite(hs.simulate(two_tiers(), HALVES).end_s).all()
    assert np.isfinite(hs.simulate(INSTANCE, HALVES).end_s).all()


@pytest.mark.parametrize("problem", [3, "llama-3-8b", None, HALVES, toys.model()])
def test_problem(problem):
    with pytest.raises(
        TypeError, match=r"^simulate: problem must be a Deployment or an Instance, got "
    ):
        hs.simulate(problem, HALVES)


@pytest.mark.parametrize("problem", [two_tiers(), INSTANCE])
@pytest.mark.parametrize("partition", [None, (0, 2, 4), [0, 2, 4], "0:2"])
def test_partition(problem, partition):
    refuse(
        TypeError, "partition must be a Partition, got ", problem=problem, partition=partition
    )


@pytest.mark.parametrize("problem", [two_tiers(), INSTANCE])
@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 3), (0, 2, 5), (0, 1, 2, 4)])
def test_partition_of_another_shape(problem, cuts):
    refuse(
        ValueError,
        r"partition: cuts must have 3 entries and end at 4, got \(0, ",
        problem=problem, partition=hs.Partition(cuts),
    )  # fmt: skip


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize("policy", [3, None, ("random",)])
def test_policy_of_a_wrong_type(policy, level):
    refuse(TypeError, r"^simulate: policy must be a name, .*, got ", policy=policy, level=level)


def test_a_result_is_no_policy():
    result = hs.solve(INSTANCE.replace(objective="mean_latency"), "hyperion")
    refuse(TypeError, r"Schedule \(of a Result: its schedule\), got .{1,60}$", policy=result)


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize("policy", ["fifo", "", "HYPSCHED_RT"])
def test_policy(policy, level):
    refuse(
        ValueError, r"^unknown policy .*choose one of hypsched_rt, random, ",
        policy=policy, level=level,
    )  # fmt: skip


def test_policy_that_is_almost_right():
    refuse(ValueError, "did you mean round_robin", policy="round robin")


@pytest.mark.parametrize("level", ["Token", "", 1, True, "tokens"])
def test_level(level):
    refuse(ValueError, r"^unknown level .*choose one of flow, token$", level=level)


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("seed", -1, ValueError, "seed must be at least 0, got -1"),
        ("seed", 0.5, TypeError, "seed must be a whole number, got 0.5"),
        ("seed", None, TypeError, "seed must be a whole number, got None"),
        ("seed", True, TypeError, "seed must be a whole number, got True"),
        ("max_num_seqs", 0, ValueError, "max_num_seqs must be at least 1, got 0"),
        ("max_num_seqs", -5, ValueError, "max_num_seqs must be at least 1, got -5"),
        ("max_num_seqs", 8.0, TypeError, "max_num_seqs must be a whole number, got 8.0"),
        ("max_num_seqs", None, TypeError, "max_num_seqs must be a whole number, got None"),
        ("expected_output_tokens", 0, ValueError, "expected_output_tokens must be at least 1"),
        (
            "expected_output_tokens",
            2**40 + 1,
            ValueError,
            r"expected_output_tokens must be at most 2\*\*40, got 1099511627777$",
        ),
        ("expected_output_tokens", 10**100, ValueError, "expected_output_tokens must be at"),
        ("max_num_seqs", "8", TypeError, "max_num_seqs must be a whole number, got '8'"),
        ("chunk_tokens", 0, ValueError, "chunk_tokens must be at least 1, got 0"),
        ("chunk_tokens", 51.2, TypeError, "chunk_tokens must be a whole number, got 51.2"),
        ("chunk_tokens", math.inf, TypeError, "chunk_tokens must be a whole number, got inf"),
        ("chunk_tokens", False, TypeError, "chunk_tokens must be a whole number, got False"),
        ("batching", "tiers", ValueError, "batching must be one of stage, pipeline, serial"),
        ("batching", None, ValueError, "batching must be one of stage, pipeline, serial"),
        ("kv_admission", "lazy", ValueError, "kv_admission must be one of reserve, paged, got"),
        ("max_num_batched_tokens", 0, ValueError, "max_num_batched_tokens must be at least 1"),
        ("max_num_batched_tokens", 2.5, TypeError, "max_num_batched_tokens must be a whole"),
        ("micro_batch_tokens", 0, ValueError, "micro_batch_tokens must be at least 1, got 0"),
        (
            "micro_batch_tokens",
            8,
            ValueError,
            "micro_batch_tokens needs batching 'serial', got batching 'stage'",
        ),
        ("kv_block_tokens", 0, ValueError, "kv_block_tokens must be at least 1, got 0"),
        ("kv_block_tokens", None, TypeError, "kv_block_tokens must be a whole number, got"),
        ("iteration_s", -1.0, ValueError, "iteration_s must be finite and not negative"),
        ("iteration_s", math.nan, ValueError, "iteration_s must be finite and not negative"),
        ("iteration_s", 1e300, ValueError, "iteration_s must be at most"),
        ("iteration_s", None, TypeError, "iteration_s must be a number, got None"),
        ("users", 0, ValueError, "users must be at least 1, got 0"),
        ("users", 1.0, TypeError, "users must be a whole number, got 1.0"),
        ("think_time_s", -1, ValueError, "think_time_s must be finite and not negative"),
        ("think_time_s", 2, ValueError, "think_time_s needs users, got think_time_s 2 and no"),
        ("link_contention", 1, TypeError, "link_contention must be True or False, got 1"),
        ("link_contention", None, TypeError, "link_contention must be True or False"),
        ("record_visits", "yes", TypeError, "record_visits must be True or False, got 'yes'"),
        ("events", None, TypeError, "events must be .*, got None"),
        ("events", hs.Event(1.0, "failure", "a0"), TypeError, "events must be .*, got Event"),
    ],
)
def test_options(option, value, error, message, level):
    refuse(error, message, level=level, **{option: value})


def test_the_old_name_of_an_option_suggests_the_new_one():
    with pytest.raises(
        TypeError, match=r"unknown argument 'max_batch'; did you mean max_num_s"
    ):
        hs.simulate(two_tiers(), HALVES, max_batch=8)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": 1},
        {"chunk_tokens": None},
        {"batching": "serial"},
        {"max_num_batched_tokens": 8},
        {"kv_admission": "paged"},
        {"kv_block_tokens": 8},
        {"iteration_s": 0.1},
        {"users": 2},
        {"link_contention": True},
        {"events": [hs.Event(1.0, "failure", "a0")]},
    ],
)
def test_options_that_flow_level_does_not_have(options):
    (name,) = options
    message = f"^simulate: {name} needs level 'token', got level 'flow'"
    refuse(ValueError, message, level="flow", **options)
    refuse(ValueError, message, problem=INSTANCE, **options)


def test_a_replayed_node_must_belong_to_a_pipeline():
    """The second tier has one node, so the second node of the first tier is in no pipeline."""
    node = np.array([[0, 0], [1, 0], [0, 0]])
    plan = hs.Schedule(node, np.zeros((3, 2)), np.zeros((3, 2)))
    refuse(
        ValueError,
        "the schedule's node of request 1 on tier 'a' must belong to a pipeline, got 1",
        policy=plan, batching="serial",
    )  # fmt: skip


def test_flow_level_replays_no_schedule():
    plan = hs.schedule(INSTANCE, HALVES)
    refuse(ValueError, "policy, a Schedule, needs level 'token'", level="flow", policy=plan)
    refuse(ValueError, "policy, a Schedule, needs", problem=INSTANCE, policy=plan)


def test_token_level_needs_a_deployment():
    refuse(
        ValueError, "^simulate: level 'token' needs a Deployment .*got an Instance",
        problem=INSTANCE, level="token",
    )  # fmt: skip


@pytest.mark.parametrize("level", ["flow", "token"])
def test_a_stage_that_fits_nowhere(level):
    tight = two_tiers(memory_bytes=4.0)  # 2 tokens per block, in 2 blocks at most
    hs.simulate(tight, HALVES, level=level)
    refuse(
        ValueError, r"tier 'a' has no node that can hold blocks 0:3, which need 6 bytes",
        problem=tight, partition=hs.Partition((0, 3, 4)), level=level,
    )  # fmt: skip
    refuse(
        ValueError, r"tier 'b' has no node that can hold blocks 0:4, which need 8 bytes",
        problem=tight, partition=hs.Partition((0, 0, 4)), level=level,
    )  # fmt: skip


# schedules to replay


def plan(node):
    times = np.zeros(np.shape(node))
    return hs.Schedule(np.array(node), times, times)


@pytest.mark.parametrize(
    ("node", "wrong"),
    [
        ([[0, 0], [2, 0], [0, 0]], 2),  # 2 over the whole network is on tier b
        ([[0, 0], [-1, 0], [0, 0]], -1),
        ([[0, 0], [9, 0], [0, 0]], 9),
    ],
)
def test_a_schedule_of_nodes_that_are_not_there(node, wrong):
    refuse(
        ValueError,
        rf"the schedule's node of request 1 on tier 'a' must be one that can hold the stage,"
        rf" got {wrong}$",
        policy=plan(node),
    )


def test_a_schedule_of_nodes_that_cannot_hold_the_stage():
    small = hs.Node(name="small", gpu=toys.gpu(), memory_bytes=1.0)
    base = two_tiers()
    a, b = base.network.tiers
    tiers = (hs.Tier(name="a", nodes=(small, *a.nodes), link=a.link), b)
    deployment = hs.Deployment(
        model=base.model, network=hs.Network(name="n", tiers=tiers), requests=base.requests
    )
    assert (hs.simulate(deployment, HALVES, plan([[1, 0], [2, 0], [1, 0]])).node > -1).all()
    refuse(
        ValueError, r"node of request 2 on tier 'a' must be one that can hold the stage, got 0",
        problem=deployment, policy=plan([[1, 0], [2, 0], [0, 0]]),
    )  # fmt: skip


@pytest.mark.parametrize("node", [[[0, 0]], [[0], [0], [0]], [[0, 0, 0]] * 3])
def test_a_schedule_of_another_shape(node):
    refuse(ValueError, r"schedule: node must have shape \(3, 2\), got ", policy=plan(node))


def test_a_schedule_says_nothing_of_empty_stages():
    relay = hs.Partition((0, 4, 4))
    trace = hs.simulate(two_tiers(), relay, plan([[0, -1], [1, -1], [1, -1]]))
    assert trace.node.tolist() == [[0, -1], [1, -1], [1, -1]]


# events


@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        (["failure"], TypeError, r"events\[0\]: must be an Event, got 'failure'"),
        ("ab", TypeError, r"events\[0\]: must be an Event, got 'a'"),
        ([hs.Event(1, "failure", "a0"), None], TypeError, r"events\[1\]: must be an Event"),
        ([hs.Event(1, "failure", "a7")], ValueError, r"unknown node 'a7'.*a0, a1, b0"),
        ([hs.Event(1, "slowdown", "a", 2.0)], ValueError, r"events\[0\].*unknown node 'a'"),
        ([hs.Event(1, "bandwidth", "a0", 2.0)], ValueError, r"unknown tier 'a0'.*a, b"),
        ([hs.Event(1, "bandwidth", "b", 2.0)], ValueError, "got the last tier"),
        ([hs.Event(1, "recovery", "a0")], ValueError, "the node must be down after a failure"),
        (
            [hs.Event(2, "failure", "a0"), hs.Event(1, "failure", "a0")],
            ValueError,
            r"events\[0\] \(failure of 'a0' at 2 s\): the node must be up.*down since 1 s",
        ),
        (
            [hs.Event(0, "failure", "b0"), hs.Event(1, "join", "b0")],
            ValueError,
            r"events\[1\].*a join must be the node's first",
        ),
    ],
)
def test_events(events, error, message):
    refuse(error, message, events=events)


def test_events_may_be_any_iterable():
    events = [hs.Event(0.5, "failure", "a0")]
    once = hs.simulate(two_tiers(), HALVES, events=events)
    assert once.restarts.any()
    toys.assert_same(hs.simulate(two_tiers(), HALVES, events=iter(events)), once)
    refuse(ValueError, "events needs level 'token'", level="flow", events=iter(events))


# policies that do not keep their word


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (2, ValueError, r"^policy 'mine': node for tier 'a' must be .*0, 1, got 2$"),
        (-1, ValueError, r"^policy 'mine': node for tier 'a' must be at least 0, got -1$"),
        (None, TypeError, r"^policy 'mine': node for tier 'a' must be a whole number"),
        (1.0, TypeError, r"must be a whole number, got 1.0"),
        (True, TypeError, r"must be a whole number, got True"),
        ("a0", TypeError, r"must be a whole number, got 'a0'"),
        (np.array([1]), TypeError, r"must be a whole number, got array"),
        (2**80, ValueError, r"must be .*0, 1, got 1208925819614629174706176$"),
    ],
)  # fmt: skip
def test_answers_of_a_policy(answer, error, message, level):
    def mine(state, request):
        return answer

    refuse(error, message, policy=mine, level=level)


def test_a_policy_that_names_a_node_that_is_down():
    refuse(
        ValueError, r"^policy '.*': node for tier 'a' must be one .*up.*, 1, got 0$",
        policy=lambda state, request: 0, events=[hs.Event(0.0, "failure", "a0")],
    )  # fmt: skip


def test_a_policy_that_is_no_policy():
    refuse(TypeError, "takes 0 positional arguments", policy=lambda: 0)
    with pytest.raises(ZeroDivisionError):  # a user's own error comes through as it is
        hs.simulate(two_tiers(), HALVES, lambda state, request: 1 // 0)


@pytest.mark.parametrize("level", ["flow", "token"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_policy_stops_the_simulation(error, level):
    n_asked = 0

    def mine(state, request):
        nonlocal n_asked
        n_asked += 1
        if n_asked == 3:
            raise error
        return state.nodes[0]

    with pytest.raises(error):
        hs.simulate(two_tiers(), HALVES, mine, level=level)
    assert n_asked == 3


def test_whole_numbers_of_numpy_are_whole_numbers():
    """They give equal traces, and nothing is compiled for them."""
    from hypsolve.kernels import token_level

    plain = hs.simulate(two_tiers(), HALVES, "random", seed=3, max_num_seqs=2, chunk_tokens=1)
    n_compiled = len(getattr(token_level.run, "signatures", ()))
    for kind in (np.int64, np.int32, np.uint8):
        options = {name: kind(n) for name, n in {"seed": 3, "max_num_seqs": 2}.items()}
        trace = hs.simulate(two_tiers(), HALVES, "random", chunk_tokens=kind(1), **options)
        toys.assert_same(trace, plain)
        assert type(trace.seed) is int
    assert len(getattr(token_level.run, "signatures", ())) == n_compiled
