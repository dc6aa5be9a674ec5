"""`hyperion_plus`: never worse than what it starts from, and its bounds hold."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hypsolve import Instance, Partition, Status, check, solve
from hypsolve.kernels import list_scheduling
from hypsolve.kernels import relaxations as kernels
from hypsolve.kernels.flow_shop import Line
from hypsolve.kernels.warm_up import warm
from hypsolve.problem import evaluation
from hypsolve.problem.instance import StageRule
from hypsolve.solvers.joint import hyperion_plus as plus
from hypsolve.solvers.joint import latency_bounds
from hypsolve.solvers.joint.flow_shop import Lines
from hypsolve.solvers.joint.latency_bounds import (
    Bounds,
    Known,
    machine_of,
    min_left_s,
    ticks_of,
)
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.partition import stage_tables
from instances.frontier import frontier, profiled
from tests.helpers import oracles, strategies

SOME = settings(max_examples=max(settings.default.max_examples // 2, 10))
CONTESTED = {"min_requests": 2, "seconds": strategies.POSITIVE, "max_tiers": 2}
SLACK = 1 + 1e-9  # what the project grants bounds in sums of floats


def best_of(instance, cuts):
    """The optimum of one partition; inf if it is not allowed."""
    pinned = instance.replace(cut_min=np.array(cuts), cut_max=np.array(cuts))
    is_allowed = check(instance, Partition(cuts)) == []
    return float(oracles.best_joint(pinned)) if is_allowed else math.inf


def all_cuts(instance):
    inner = itertools.combinations_with_replacement(
        range(instance.n_blocks + 1), instance.n_tiers - 1
    )
    return [(0, *cuts, instance.n_blocks) for cuts in inner]


def late_s(instance, stages, objective_s):
    """Sum of (completion - the line's release), from a mean latency."""
    extra_s = stages.release_s - instance.arrival_s
    return float(objective_s) * instance.n_requests - float(extra_s.sum())


# --- bounds -----------------------------------------------------------------------------------


@given(strategies.scheduled(limits=True))
def test_every_box_is_bounded(instance):
    """Each partition by itself, and all of them in every box on the way there."""
    lines = Lines(instance)
    best_s = {cuts: best_of(instance, cuts) for cuts in all_cuts(instance)}
    bounds, boxes = Bounds(instance), [lines.whole()]
    for box in boxes:  # grows while it is read
        inside = (
            best
            for cuts, best in best_s.items()
            if all(a <= c <= b for a, c, b in zip(box.low, cuts, box.high, strict=True))
        )
        least = min(inside, default=math.inf)
        stages = lines.of(box)
        if stages is None:
            assert least == math.inf
            continue
        assert bounds.machine_bound_s(stages) <= least * SLACK
        if not box.is_single:
            boxes += box.branch()
    found = dict(
        (stages.box.low, bound_s) for bound_s, stages in bounds.partitions(lambda: False)
    )
    assert set(found) == {cuts for cuts, best in best_s.items() if best < math.inf}
    assert list(found.values()) == sorted(found.values())


def test_nobody_waits_for_a_link_behind_the_last_block():
    """All blocks on the first tier; its link would take long."""
    instance = Instance.from_tables(
        [[[1.0, 1.0], [9.0, 9.0]]],
        [0, 0],
        [[(0, 0)], [(1, 0)]],
        transfer_s=[[[5.0, 5.0, 5.0]]],
        allow_empty=True,
        objective="mean_latency",
    )
    result = solve(instance, "hyperion_plus", prove=True)
    assert (result.objective_s, result.bound_s) == pytest.approx((2.0, 2.0))
    assert Bounds(instance).min_s <= 2.0


@given(
    strategies.scheduled(objectives=("mean_latency",), max_blocks=3),
    st.sampled_from([0.3, 1.0, 2.7, 50.0]),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_any_prices_bound_a_partition_however_short_its_windows(instance, step_s, width, seed):
    rng = np.random.default_rng(seed)
    for cuts in all_cuts(instance):
        stages = Lines(instance).of(PartitionBox(cuts, cuts))
        if stages is None:
            continue
        best = late_s(instance, stages, best_of(instance, cuts))
        widths = rng.integers(1, width + 1, instance.n_requests)
        ticks, n_ticks = ticks_of(stages.line, step_s, widths)
        price = rng.uniform(-1, 1, (len(stages.groups), n_ticks)).clip(0) * step_s
        climb = kernels.new_climb(stages.line, price, 0.3)
        for n_steps in (1, 8):
            bound, _ = kernels.raise_bound(
                stages.line, ticks, climb, 1.1 * best + 1, n_steps, 0.01
            )
            assert bound <= best * SLACK + 1e-9
            assert (climb.price >= 0).all()
            left = kernels.new_climb(stages.line, climb.price, 0.3)
            again, _ = kernels.raise_bound(stages.line, ticks, left, best, 1, 0.01)
            assert again == pytest.approx(bound, rel=1e-12, abs=1e-12)  # what is left has it


def test_steps_go_on_where_they_were():
    """Eight steps in one call or in eight; and a window that is too narrow costs nothing."""
    line = Lines(frontier(12, seed=1)).of(PartitionBox((0, 3, 15, 32), (0, 3, 15, 32))).line
    ticks, n_ticks = ticks_of(line, 30.0, np.full(12, 60))
    upper = 1.2 * float(min_left_s(line)[:, 0].sum())
    at_once, one_by_one = (
        kernels.new_climb(line, np.zeros((6, n_ticks)), 0.3) for _ in range(2)
    )
    bound, _ = kernels.raise_bound(line, ticks, at_once, upper, 8, 0.01)
    for _ in range(8):
        again, _ = kernels.raise_bound(line, ticks, one_by_one, upper, 1, 0.01)
    assert (
        again
        == bound
        > kernels.raise_bound(
            line, ticks, kernels.new_climb(line, np.zeros((6, n_ticks)), 0.3), upper, 1, 0.01
        )[0]
    )
    np.testing.assert_array_equal(at_once.now, one_by_one.now)
    # the window may end where all that a request pays by itself would be less
    alone_s = min_left_s(line)[:, 0]
    last = kernels.new_climb(line, at_once.price, 0.3)
    whole, _ = kernels.raise_bound(line, ticks, last, upper, 1, 0.01)
    enough = np.ceil((last.paid - alone_s) / 30.0).astype(np.int64) + 1
    narrow = ticks._replace(width=np.minimum(enough, 60))
    part, _ = kernels.raise_bound(
        line, narrow, kernels.new_climb(line, at_once.price, 0.3), upper, 1, 0.01
    )
    assert (narrow.width < 60).all() and part == pytest.approx(whole, rel=1e-12)


@example(2550)  # here and in the others what starts at the end of a tick pays least
@example(3107)
@example(3376)
@given(st.integers(0, 10**6))
def test_what_a_request_pays_is_at_most_that_of_any_start(seed):
    """Against starts on a fine grid, two stages, each of two nodes; windows of any width."""
    rng = np.random.default_rng(seed)
    service, lag = rng.uniform(0, 4, (1, 4)), np.array([[rng.uniform(0, 2), 0.0]])
    line = Line(service, lag, np.zeros(1), np.array([0, 2, 4]), np.arange(5))
    ticks, n_ticks = ticks_of(line, 1.0, np.array([12]))
    price = rng.uniform(-1, 2, (4, n_ticks)).clip(0) * rng.choice([0.3, 1, 3])
    ticks = ticks._replace(width=rng.integers(1, 13, 1))
    climb = kernels.new_climb(line, price, 0.3)
    kernels.raise_bound(line, ticks, climb, math.inf, 1, 0.01)

    fine = np.linspace(0, n_ticks + 20, 50 * (n_ticks + 20) + 1)

    def pays(g, start_s):
        spent = np.concatenate([[0.0], price[g].cumsum()])
        ticks_s = np.arange(n_ticks + 1)
        end = np.interp(start_s + service[0, g], ticks_s, spent)
        return end - np.interp(start_s, ticks_s, spent)

    last = np.min([pays(g, fine) + fine + service[0, g] for g in (2, 3)], axis=0)
    onward = np.minimum.accumulate(last[::-1])[::-1]  # from then or later
    least = math.inf
    for g in (0, 1):
        at = np.searchsorted(fine, fine + service[0, g] + lag[0, 0])
        inside = at < len(fine)
        least = min(
            least, float((pays(g, fine) + onward[at.clip(max=len(fine) - 1)])[inside].min())
        )
    assert climb.paid[0] <= least + 1e-9


@SOME
@given(strategies.instances())
def test_legal_stages_are_those_with_a_time(instance):
    times_s = stage_tables.stage_table(instance, StageRule.FASTEST)
    np.testing.assert_array_equal(stage_tables.feasible_stages(instance), np.isfinite(times_s))


@given(strategies.scheduled(max_tiers=2, max_requests=3))
def test_one_machine_takes_no_longer_than_the_nodes(instance):
    """Against every schedule of a single stage: k-th ends, one by one."""
    for cuts in all_cuts(instance):
        stages = Lines(instance).of(PartitionBox(cuts, cuts))
        if stages is None or len(stages.tiers) != 1:
            continue
        work, share = machine_of(stages.line)
        assert (share >= 0).all()
        ends, _ = kernels.shortest_rest_first(stages.line.release, work[:, 0].copy())
        exact = oracles.Exact(instance)
        for done in oracles.completions(exact, cuts):
            for bound, end in zip(sorted(ends), sorted(done), strict=True):
                assert bound <= float(end) * SLACK


def test_the_shortest_rest_goes_first():
    """By hand: 1 interrupts 0, 2 is as long as what is left of 0 and comes later."""
    ends, runs = kernels.shortest_rest_first(
        np.array([0.0, 1.0, 2.0]), np.array([4.0, 1.0, 5.0])
    )
    assert ends.tolist() == [5.0, 2.0, 10.0]
    assert runs.request[: runs.n].tolist() == [0, 1, 0, 2]
    # a moment lost by 1 delays 0 and 2 as well; one lost by 0 does not delay 1
    assert kernels.delayed_by(runs, 3).tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("beyond", [0.01, 4.0])  # of windows that are too narrow, and not
@SOME
@given(instance=strategies.scheduled(wide=True, min_requests=2))
def test_a_raised_bound_holds_over_all_partitions(beyond, instance):
    best_s = float(oracles.best_joint(instance))
    assume(best_s < math.inf)
    start = solve(instance, "hyperion_plus")
    bounds = Bounds(instance)
    min_s = bounds.min_s
    latency_s = np.full(instance.n_requests, start.objective_s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_bounds, "BEYOND", beyond)
        worse = Known(1.5 * start.objective_s, 1.5 * latency_s)  # so that much may go wrong
        stopped = bounds.raise_by_prices(worse, math.inf)
    assert not stopped
    assert min_s <= bounds.min_s <= best_s * SLACK


# --- the method -------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [False, True])
@SOME
@given(instance=strategies.scheduled(limits=True, wide=True))
def test_it_is_between_its_bound_and_what_it_starts_from(prove, instance):
    best_s = float(oracles.best_joint(instance))
    result = solve(instance, "hyperion_plus", prove=prove)
    assert (result.status is Status.INFEASIBLE) == math.isinf(best_s)
    assert result.bound_s <= best_s * (1 + 1e-12)
    assert result.objective_s >= best_s * (1 - 1e-12)
    starts = [("hyperion", {}), ("hyperion", {"partition_objective": "path"}), ("heft", {})]
    for method, options in starts:
        other = solve(instance, method, **options)
        assert result.objective_s <= other.objective_s * (1 + 1e-12)


@SOME
@given(strategies.scheduled(**CONTESTED))
def test_small_ones_are_nearly_always_solved(instance):
    """Not a promise, but what it takes to lose a twentieth here would be a bug."""
    best_s = float(oracles.best_joint(instance))
    assume(best_s < math.inf)
    assert solve(instance, "hyperion_plus").objective_s <= best_s * 1.05


@SOME
@given(strategies.scheduled(max_tiers=2, min_requests=2))
def test_long_after_time_zero(instance):
    late = instance.replace(arrival_s=instance.arrival_s + 2.0**20)
    best_s = float(oracles.best_joint(late))
    result = solve(late, "hyperion_plus", prove=True)
    assert result.bound_s <= best_s * (1 + 1e-12)


@pytest.mark.parametrize("family", [frontier, profiled])
@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_at_scale_it_is_better_than_hyperion(family, burst, objective):
    instance = family(300, seed=2, burst=burst, objective=objective)
    result, other = (solve(instance, method) for method in ("hyperion_plus", "hyperion"))
    assert check(instance, result.partition, result.schedule) == []
    less = 0.95 if objective == "mean_latency" else 1 - 1e-6
    assert result.objective_s <= other.objective_s * less
    assert 0 < result.gap < 0.35
    again = solve(instance, "hyperion_plus")
    assert again.objective_s == result.objective_s  # the work, not the clock, ends it


def test_prices_halve_the_gap_of_a_hundred_requests():
    instance = frontier(100, seed=1, load=0.5)
    quick = solve(instance, "hyperion_plus")
    proved = solve(instance, "hyperion_plus", prove=True)
    assert proved.objective_s == quick.objective_s
    assert proved.gap < quick.gap / 2


def test_five_tiers_have_more_partitions_than_are_looked_at():
    instance = frontier(60, (2, 2, 1, 1, 2), seed=4)
    result = solve(instance, "hyperion_plus")
    assert result.statistics["n_boxes"] >= plus.MAX_BOXES
    assert result.objective_s < solve(instance, "hyperion").objective_s
    assert result.bound_s > 0


@pytest.mark.parametrize("prove", [False, True])
def test_a_time_limit_ends_it(prove):
    warm("hypsplit", "dispatch", "heft", "relaxations", "list_scheduling")
    instance = frontier(2000, seed=1)
    hyperion_s = solve(instance, "hyperion").objective_s
    for limit_s in (1e-9, 0.2):
        started = time.perf_counter()
        result = solve(instance, "hyperion_plus", time_limit_s=limit_s, prove=prove)
        assert time.perf_counter() - started < limit_s + 5  # not a timing: it does stop
        assert "time limit" in result.message
        assert 0 < result.bound_s < result.objective_s <= hyperion_s


def test_one_request_is_solved():
    instance = frontier(1, seed=1)
    result = solve(instance, "hyperion_plus")
    assert result.status is Status.OPTIMAL
    assert result.objective_s == pytest.approx(solve(instance, "joint_exact").objective_s)


def test_where_nothing_fits_the_answer_is_at_once():
    """Memory is short by one block of a hundred, over ten tiers."""
    n_blocks, tiers = 100, [[(0, 9.0)]] * 10 + [[(0, 9.0)]]
    instance = Instance.from_tables(
        [[[1.0] * n_blocks]] * 50, [1] * n_blocks, tiers, arrival_s=range(50),
        objective="mean_latency",
    )  # fmt: skip
    result = solve(instance, "hyperion_plus", time_limit_s=600)
    assert result.status is Status.INFEASIBLE and result.solve_time_s < 60


def test_long_silences_and_endless_nodes_take_no_more_memory():
    """Prices for each tick of a week at the grain of a second: left out instead."""
    instance = Instance.from_tables(
        [[[0.5, 0.5], [1e9, 1e9]]], [0, 0], [[(0, 0), (1, 0)], [(0, 0)]],
        arrival_s=[0, 0, 0, 6e8], objective="mean_latency",
    )  # fmt: skip
    result = solve(instance, "hyperion_plus", prove=True)
    assert 0 < result.bound_s <= result.objective_s < 3


@pytest.mark.parametrize(("n_requests", "most"), [(10, 0.03), (20, 0.06)])
def test_prices_come_close_where_there_are_few_requests(n_requests, most):
    """Nothing but steps can do that: stages as one machine leave 17 and 21 %."""
    instance = frontier(n_requests, seed=1)
    free = solve(instance, "hyperion_plus")
    result = solve(instance, "hyperion_plus", prove=True)
    assert result.gap < most < 0.15 < free.gap
    assert "bound raised by prices" in result.message


def test_stuck_prices_go_on_from_lower_ones(monkeypatch):
    instance = frontier(20, seed=1)
    gap = solve(instance, "hyperion_plus", prove=True).gap
    monkeypatch.setattr(latency_bounds, "LOWER", (1.0,))
    assert gap < 0.8 * solve(instance, "hyperion_plus", prove=True).gap


def test_finer_prices_go_on_from_coarser_ones(monkeypatch):
    """Without a single step, what a finer level begins with is as good as the level before."""
    instance = frontier(20, seed=1)
    start = solve(instance, "hyperion_plus")
    known = Known(start.objective_s, evaluation.latency_s(instance, start.schedule))
    stages = Lines(instance).of(PartitionBox(start.partition.cuts, start.partition.cuts))
    bounds = Bounds(instance)
    node = latency_bounds._Node(stages.box, 0.0)
    monkeypatch.setattr(latency_bounds, "LOWER", (1.0,))
    assert bounds._raise(node, known, math.inf)
    coarse_s, node.bound_s = node.bound_s, 0.0
    for name in ("STEPS", "TRIAL_STEPS"):
        monkeypatch.setattr(latency_bounds, name, 1)
    assert bounds._raise(node, known, math.inf) and node.level == 1
    assert node.bound_s > 0.99 * coarse_s


def test_a_makespan_has_no_prices_and_the_search_all_the_time():
    instance = frontier(20, seed=1, objective="makespan")
    result = solve(instance, "hyperion_plus", prove=True)
    assert "no prices for a makespan" in result.message
    assert result.objective_s == solve(instance, "hyperion_plus").objective_s


def test_no_time_is_kept_for_prices_that_need_more():
    result = solve(frontier(3000, seed=1), "hyperion_plus", prove=True, time_limit_s=0.3)
    assert "no time for prices" in result.message


def test_prove_is_a_flag():
    with pytest.raises(TypeError, match=r"method 'hyperion_plus': prove must be .* got 1"):
        solve(frontier(2, seed=1), "hyperion_plus", prove=1)


# --- orders -----------------------------------------------------------------------------------


def test_a_window_knows_what_the_whole_order_is_worth():
    """Where the window holds everything, what `improve` thinks it saved is saved."""
    instance = frontier(6, seed=3)
    stages = Lines(instance).of(PartitionBox((0, 3, 12, 32), (0, 3, 12, 32)))
    line, least = stages.line, min_left_s(stages.line)
    order = np.random.default_rng(0).permutation(6).repeat(3) * 3 + np.tile(np.arange(3), 6)
    node, start, end = np.zeros((6, 3), np.int64), np.zeros((6, 3)), np.zeros((6, 3))
    list_scheduling.place_all(line, order, list_scheduling.new_state(line, 1), node, start, end)
    before = float(end[:, -1].sum())
    course = list_scheduling.new_course(line, line.service.copy(), least, order)
    room = list_scheduling.new_room(line, 18)
    at, n_trials = list_scheduling.improve(course, room, False, 18, 18, 0, 18, 500)
    assert at == 18 and n_trials > 0
    list_scheduling.place_all(line, order, list_scheduling.new_state(line, 1), node, start, end)
    after = float(end[:, -1].sum())
    assert after < before
    alone = float((line.release + least[:, 0]).sum())
    assert room.window.late[18] == pytest.approx(after - alone)
    assert room.window.last[18] == pytest.approx(end[:, -1].max())
    np.testing.assert_allclose(course.ready, end[:, -1])  # as if all had been placed


def test_gaps_are_used_and_the_oldest_given_up():
    """A node that is busy in every other second, then requests that fit a gap."""
    n = 2 * list_scheduling.SPANS
    release = np.concatenate([2.0 * np.arange(n), [1.0, 2 * n - 3.0]])
    line = (
        Lines(
            Instance.from_tables(
                [[[1.0]]], [0], [[(0, 0)]], arrival_s=release, objective="mean_latency"
            )
        )
        .of(PartitionBox((0, 1), (0, 1)))
        .line
    )
    node, start, end = (np.zeros((n + 2, 1), kind) for kind in (np.int64, float, float))
    order = np.arange(n + 2)
    list_scheduling.place_all(line, order, list_scheduling.new_state(line, 1), node, start, end)
    assert start[:n, 0].tolist() == release[:n].tolist()
    assert start[n + 1, 0] == 2 * n - 3  # its own gap
    assert start[n, 0] > 2 * (
        n - list_scheduling.SPANS
    )  # the gap at 1 is forgotten, a later one is not
    assert check_no_overlap(start[:, 0], end[:, 0])


def check_no_overlap(start, end):
    order = np.argsort(start)
    return bool((end[order][:-1] <= start[order][1:]).all())
