"""One contract for every entry of METHODS and POLICIES."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hypsolve.dispatch.policies import POLICIES
from hypsolve.dispatch.schedule import schedule
from hypsolve.problem.evaluation import can_hold, check, evaluate
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Outcome, Partition, Schedule, Status
from hypsolve.solve import METHODS, solve
from tests.helpers import oracles, strategies

FEW = settings(max_examples=max(settings.default.max_examples // 8, 5))
PARTITION_OBJECTIVES = strategies.PARTITION_OBJECTIVES
SCHEDULED = ("mean_latency", "makespan")


def objectives_of(name):
    """Return the objectives that `solve` accepts for a method, completed ones included."""
    entry = METHODS[name]
    return {str(o) for o in entry.objectives} | (
        set(SCHEDULED) if entry.decides == "partition" else set()
    )


CASES = [(name, objective) for name in METHODS for objective in sorted(objectives_of(name))]


def chain(objective="bottleneck", **changes):
    """Return an instance whose classes, nodes, blocks, links and requests all differ."""
    given_ = {
        "block_s": np.array([[[1, 2, 3, 4], [2, 1, 1, 2]], [[2, 4, 6, 8], [3, 1, 2, 2]]]) / 8,
        "block_bytes": [2, 1, 1, 2],
        "tiers": [[(0, 4), (1, 5)], [(1, 6), (0, 2)]],
        "transfer_s": np.array([[[1, 2, 1, 2, 0]], [[2, 4, 2, 4, 0]]]) / 16,
        "arrival_s": [0, 0.25],
        "objective": objective,
    }
    return Instance.from_tables(**(given_ | changes))


@pytest.mark.parametrize(("method", "objective"), CASES)
@FEW
@given(data=st.data())
def test_a_method_keeps_the_contract(method, objective, data):
    instance = data.draw(
        strategies.scheduled(objectives=(objective,), limits=True, max_requests=2, max_tiers=3)
    )
    digest = instance.digest()
    result = solve(instance, method, time_limit_s=20, seed=3)
    assert instance.digest() == digest
    assert result.method == method
    assert 0 <= result.bound_s <= result.objective_s * (1 + 1e-6)
    assert result.solve_time_s >= 0
    if result.partition is None:
        assert result.status in (Status.INFEASIBLE, Status.UNKNOWN)
        assert result.objective_s == np.inf
        assert np.isnan(result.gap)
        assert result.message  # an answer with its reason
        return
    assert check(instance, result.partition, result.schedule) == []
    assert (
        evaluate(instance, result.partition, result.schedule, objective) == result.objective_s
    )
    if objective in SCHEDULED or METHODS[method].decides == "both":
        assert result.schedule is not None
    assert result.gap >= 0
    assert (result.status is Status.OPTIMAL) <= METHODS[method].exact | (result.bound_s > 0)


@pytest.mark.parametrize(("method", "objective"), CASES)
def test_a_seed_decides_everything(method, objective):
    first, again = (solve(chain(objective), method, seed=5) for _ in range(2))
    assert first.partition is not None
    assert first.partition == again.partition
    assert (first.objective_s, first.bound_s, first.status) == (
        again.objective_s,
        again.bound_s,
        again.status,
    )
    if first.schedule is not None:
        for field in ("node", "start_s", "end_s"):
            np.testing.assert_array_equal(
                getattr(first.schedule, field), getattr(again.schedule, field)
            )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_which_options_it_takes(method):
    objective = sorted(objectives_of(method))[0]
    with pytest.raises(TypeError, match=f"{method}.*'colour'"):
        solve(chain(objective), method, colour="red")


@pytest.mark.parametrize(
    ("method", "objective"),
    [(m, o) for m in METHODS for o in Objective if o not in objectives_of(m)],
)
def test_a_method_refuses_an_objective_it_does_not_have(method, objective):
    with pytest.raises(ValueError, match=f"objective must be .*{objective}"):
        solve(chain(objective), method)


@pytest.mark.parametrize(("method", "objective"), CASES)
def test_what_cannot_fit_is_an_answer_with_a_reason(method, objective):
    tight = chain(objective, tiers=[[(0, 1), (1, 1)], [(1, 1)]])
    result = solve(tight, method)
    assert result.status is Status.INFEASIBLE
    assert result.partition is None
    assert result.objective_s == np.inf
    assert result.message


def test_hypsplit_dp_names_need_and_capacity():
    result = solve(chain(tiers=[[(0, 1), (1, 1)], [(1, 7)]]), "hypsplit_dp")
    for word in ("tier-0", "bytes"):
        assert word in result.message
    assert result.certificate.kind == "infeasible"


@pytest.mark.parametrize("name", METHODS)
def test_one_block_one_tier_one_node(name):
    """The smallest instance has a single solution."""
    for objective in sorted(objectives_of(name)):
        instance = Instance.from_tables([[[2.5]]], [0], [[(0, 0)]], objective=objective)
        result = solve(instance, name)
        assert result.partition == Partition((0, 1))
        assert result.objective_s == 2.5


# --- one's own method -------------------------------------------------------------------------


def answering(**claims):
    def mine(instance, *, time_limit_s, seed):
        return Outcome(**claims)

    return mine


HALVES = Partition((0, 2, 4))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        (
            {"status": Status.FEASIBLE, "partition": Partition((0, 0, 4))},
            "breaks a rule: blocks",
        ),
        ({"status": Status.FEASIBLE, "partition": Partition((0, 3, 4))}, None),
        ({"status": Status.FEASIBLE, "partition": HALVES, "bound_s": 1e3}, "own bound"),
        ({"status": Status.OPTIMAL, "partition": HALVES}, "optimal with a gap"),
        ({"status": Status.INFEASIBLE, "partition": HALVES}, "claims infeasible"),
        ({"status": Status.OPTIMAL}, "no partition"),
        ({"status": Status.FEASIBLE, "partition": HALVES}, None),
    ],
)
def test_a_users_own_method_is_held_to_the_same_checks(claims, message):
    if message is None:
        result = solve(chain(), answering(**claims))
        assert result.method == "mine"
        assert result.objective_s == evaluate(chain(), result.partition)
    else:
        with pytest.raises(RuntimeError, match=f"mine.*{message}"):
            solve(chain(), answering(**claims))


def test_a_users_own_illegal_schedule_is_caught():
    instance = chain("makespan")
    good = schedule(instance, HALVES)
    early = Schedule(good.node, good.start_s - 1, good.end_s - 1)
    claims = {"status": Status.FEASIBLE, "partition": HALVES}
    assert solve(instance, answering(**claims, schedule=good)).objective_s > 0
    with pytest.raises(RuntimeError, match=r"mine.*order"):
        solve(instance, answering(**claims, schedule=early))


def test_a_method_must_return_an_outcome():
    with pytest.raises(TypeError, match="mine: must return an Outcome, got 3"):

        def mine(instance, *, time_limit_s, seed):
            return 3

        solve(chain(), mine)


# --- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@FEW
@given(
    plan=strategies.plans(strategies.scheduled(max_requests=9, max_nodes=4)),
    seed=st.integers(0, 9),
)
def test_a_policy_keeps_the_contract(policy, plan, seed):
    instance, cuts, _ = plan
    digest = instance.digest()
    partition = Partition(cuts)
    first, again = (schedule(instance, partition, policy, seed=seed) for _ in range(2))
    assert check(instance, partition, first) == []
    for field in ("node", "start_s", "end_s"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert instance.digest() == digest
    # first come, first served, without idling: no job could start earlier on its node
    for k in range(instance.n_tiers):
        for n in set(first.node[:, k].tolist()) - {-1}:
            mine = np.flatnonzero(first.node[:, k] == n)
            order = mine[np.lexsort((first.end_s[mine, k], first.start_s[mine, k]))]
            for before, after in itertools.pairwise(order):
                start = first.start_s[after, k]
                ready = _ready_s(instance, cuts, first, after, k)
                assert start == pytest.approx(
                    max(ready, first.end_s[before, k]), rel=1e-12, abs=0
                )


def _ready_s(instance, cuts, schedule_, r, tier):
    exact = oracles.Exact(instance)
    ready = float(exact.arrival_s[r])
    for k in range(tier):
        if cuts[k] < cuts[k + 1]:
            ready = schedule_.end_s[r, k]
        ready += float(exact.request_transfer_s[r][k][cuts[k + 1]])
    return ready


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_completes_a_partition_method(policy):
    result = solve(chain("makespan"), "even_split", policy=policy)
    assert result.status is Status.FEASIBLE
    assert check(result.instance, result.partition, result.schedule) == []


def test_a_users_own_policy():
    def last_node(state, request):
        return int(state.nodes[-1])

    instance = chain("mean_latency")
    done = schedule(instance, HALVES, last_node)
    for k in range(2):
        holds = np.flatnonzero(can_hold(instance, k, *HALVES.cuts[k : k + 2]))
        assert (done.node[:, k] == holds[-1]).all()
    assert solve(instance, "even_split", policy=last_node).objective_s == evaluate(
        instance, HALVES, done
    )


@given(strategies.plans(strategies.scheduled(max_requests=6, max_nodes=3)))
def test_policies_in_plain_python_choose_as_their_kernels_do(plan):
    instance, cuts, _ = plan
    assume(instance.n_requests > 1)
    for name, policy in POLICIES.items():
        kernel = schedule(instance, Partition(cuts), name, seed=1)
        plain = schedule(instance, Partition(cuts), policy.choose, seed=1)
        np.testing.assert_array_equal(kernel.node, plain.node, err_msg=name)
        np.testing.assert_array_equal(kernel.end_s, plain.end_s, err_msg=name)
