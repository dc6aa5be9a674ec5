"""`hyperion_plus`: it is never worse than its warm starts, and its bounds hold.

No test depends on the clock: runs end by counted work (`NO_LIMIT`), or read a `CountingClock`.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hypsolve import Instance, Partition, Status, check
from hypsolve import solve as solve_with
from hypsolve.kernels import list_scheduling
from hypsolve.kernels import relaxations as kernels
from hypsolve.kernels.flow_shop import FlowShop
from hypsolve.problem import evaluation
from hypsolve.problem.instance import StageRule
from hypsolve.solvers import clock
from hypsolve.solvers.joint import latency_bounds
from hypsolve.solvers.joint.flow_shop import Relaxer, remaining_s
from hypsolve.solvers.joint.hyperion_plus_params import AscentParams, HyperionPlusParams
from hypsolve.solvers.joint.latency_bounds import (
    Incumbent,
    PartitionBounds,
    single_machine_work,
    time_grid,
)
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.partition import stage_tables
from instances.frontier import frontier, profiled
from tests.helpers import oracles, strategies

SOME = settings(max_examples=max(settings.default.max_examples // 2, 10))
CONTESTED = {"min_requests": 2, "seconds": strategies.POSITIVE, "max_tiers": 2}
SLACK = 1 + 1e-9  # tolerance of bounds that are sums of floats
NO_LIMIT = 1e6  # seconds
RULE = kernels.StepRule(weight=0.5, patience=10, shrink=0.7, min_length=0.01)
QUICK = HyperionPlusParams(min_trials=4000)
ONE_LEVEL = dataclasses.replace(QUICK, ascent=AscentParams(levels=(60,), restart_scales=(0,)))


def solve(instance, method="hyperion_plus", **options):
    return solve_with(instance, method, **{"time_limit_s": NO_LIMIT, **options})


class CountingClock:
    """A clock that advances by a second whenever it is read."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr(clock, "now", self.read)

    def read(self):
        self.now_s += 1
        return self.now_s


def best_of(instance, cuts):
    """Optimum of one partition; inf if it is not feasible."""
    pinned = instance.replace(cut_min=np.array(cuts), cut_max=np.array(cuts))
    is_allowed = check(instance, Partition(cuts)) == []
    return float(oracles.best_joint(pinned)) if is_allowed else math.inf


def all_cuts(instance):
    inner = itertools.combinations_with_replacement(
        range(instance.n_blocks + 1), instance.n_tiers - 1
    )
    return [(0, *cuts, instance.n_blocks) for cuts in inner]


def relaxed(instance, cuts):
    return Relaxer(instance).relax(PartitionBox(cuts, cuts))


def latency_sum(instance, relaxation, mean_s):
    """Sum of (completion - release in the flow shop), from a mean latency."""
    before_s = relaxation.release_s - instance.release_s
    return float(mean_s) * instance.n_requests - float(before_s.sum())


def evaluate(shop, grid, multipliers, upper, n=1, state=None):
    """Return the best of n bounds from the given multipliers on, and the ascent's state."""
    state = state or kernels.new_ascent(shop, multipliers, 0.3)
    bound, _ = kernels.ascend_in_windows(shop, grid, state, upper, n, RULE)
    return bound, state


# --- bounds -----------------------------------------------------------------------------------


@given(strategies.scheduled(limits=True))
def test_a_box_is_bounded_by_its_best_partition(instance):
    """In every box that branching can make; then partitions come in order of their bounds."""
    relaxer = Relaxer(instance)
    best_s = {cuts: best_of(instance, cuts) for cuts in all_cuts(instance)}
    bounds, boxes = PartitionBounds(instance), [relaxer.root()]
    for box in boxes:  # the list grows during the loop
        inside = (
            best
            for cuts, best in best_s.items()
            if all(a <= c <= b for a, c, b in zip(box.low, cuts, box.high, strict=True))
        )
        box_best_s = min(inside, default=math.inf)
        relaxation = relaxer.relax(box)
        if relaxation is None:
            assert box_best_s == math.inf
            continue
        assert bounds.single_machine_bound_s(relaxation) <= box_best_s * SLACK
        if not box.is_single:
            boxes += box.branch()
    yielded = {
        relaxation.box.low: bound_s for bound_s, relaxation in bounds.partitions(lambda: False)
    }
    assert set(yielded) == {cuts for cuts, best in best_s.items() if best < math.inf}
    assert list(yielded.values()) == sorted(yielded.values())


def test_no_transfer_behind_the_last_block():
    """All blocks are on the first tier, and its link is slow."""
    instance = Instance.from_tables(
        [[[1.0, 1.0], [9.0, 9.0]]],
        [0, 0],
        [[(0, 0)], [(1, 0)]],
        transfer_s=[[[5.0, 5.0, 5.0]]],
        allow_empty=True,
        objective="mean_latency",
    )
    result = solve(instance, prove=True)
    assert (result.objective_s, result.bound_s) == pytest.approx((2.0, 2.0))
    assert PartitionBounds(instance).bound_s <= 2.0


@given(
    strategies.scheduled(objectives=("mean_latency",), max_blocks=3),
    st.sampled_from([0.3, 1.0, 2.7, 50.0]),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_any_multipliers_bound_a_partition_for_any_windows(instance, tick_s, width, seed):
    rng = np.random.default_rng(seed)
    for cuts in all_cuts(instance):
        relaxation = relaxed(instance, cuts)
        if relaxation is None:
            continue
        shop = relaxation.shop
        best = latency_sum(instance, relaxation, best_of(instance, cuts))
        widths = rng.integers(1, width + 1, instance.n_requests)
        grid, n_ticks = time_grid(shop, tick_s, widths)
        start = rng.uniform(-1, 1, (len(relaxation.groups), n_ticks)).clip(0) * tick_s
        state = None
        for n in (1, 8):
            bound, state = evaluate(shop, grid, start, 1.1 * best + 1, n, state)
            assert bound <= best * SLACK + 1e-9
            assert (state.best >= 0).all()
            again, _ = evaluate(shop, grid, state.best, best)
            assert again == pytest.approx(bound, rel=1e-12, abs=1e-12)


def ascent_of_twelve():
    shop = relaxed(frontier(12, seed=1), (0, 3, 15, 32)).shop
    grid, n_ticks = time_grid(shop, 30.0, np.full(12, 60))
    return shop, grid, np.zeros((6, n_ticks)), 1.2 * float(remaining_s(shop)[:, 0].sum())


def test_an_ascent_goes_on_where_it_ended():
    """Eight evaluations in one call or in eight."""
    shop, grid, zeros, upper = ascent_of_twelve()
    first, _ = evaluate(shop, grid, zeros.copy(), upper)
    bound, at_once = evaluate(shop, grid, zeros.copy(), upper, 8)
    state = None
    for _ in range(8):
        again, state = evaluate(shop, grid, zeros, upper, 1, state)
    assert again == bound > first
    np.testing.assert_array_equal(at_once.trial, state.trial)


def test_a_window_that_covers_the_cost_of_a_path_is_wide_enough():
    shop, grid, zeros, upper = ascent_of_twelve()
    _, state = evaluate(shop, grid, zeros, upper, 8)
    wide, last = evaluate(shop, grid, state.best.copy(), upper)
    excess = (last.path_cost - remaining_s(shop)[:, 0]) / grid.tick
    narrow = grid._replace(width=np.minimum(np.ceil(excess).astype(np.int64) + 1, 60))
    bound, _ = evaluate(shop, narrow, state.best.copy(), upper)
    assert (narrow.width < 60).all() and bound == pytest.approx(wide, rel=1e-12)


@example(2550)  # in these examples the cheapest start is at the end of a tick
@example(3107)
@example(3376)
@given(st.integers(0, 10**6))
def test_the_cheapest_path_costs_at_most_as_much_as_any_start(seed):
    """Against starts on a fine grid: two stages of two nodes each, windows of any width."""
    rng = np.random.default_rng(seed)
    service, travel = rng.uniform(0, 4, (1, 4)), np.array([[rng.uniform(0, 2), 0.0]])
    shop = FlowShop(service, travel, np.zeros(1), np.array([0, 2, 4]), np.arange(5))
    grid, n_ticks = time_grid(shop, 1.0, np.array([12]))
    multipliers = rng.uniform(-1, 2, (4, n_ticks)).clip(0) * rng.choice([0.3, 1, 3])
    grid = grid._replace(width=rng.integers(1, 13, 1))
    _, state = evaluate(shop, grid, multipliers.copy(), math.inf)

    fine = np.linspace(0, n_ticks + 20, 50 * (n_ticks + 20) + 1)

    def paid(g, start_s):
        spent = np.concatenate([[0.0], multipliers[g].cumsum()])
        ticks_s = np.arange(n_ticks + 1)
        end = np.interp(start_s + service[0, g], ticks_s, spent)
        return end - np.interp(start_s, ticks_s, spent)

    last = np.min([paid(g, fine) + fine + service[0, g] for g in (2, 3)], axis=0)
    onward = np.minimum.accumulate(last[::-1])[::-1]  # at any start from there on
    cheapest = math.inf
    for g in (0, 1):
        at = np.searchsorted(fine, fine + service[0, g] + travel[0, 0])
        inside = at < len(fine)
        total = paid(g, fine) + onward[at.clip(max=len(fine) - 1)]
        cheapest = min(cheapest, float(total[inside].min()))
    assert state.path_cost[0] <= cheapest + 1e-9


@SOME
@given(strategies.instances())
def test_feasible_stages_are_those_with_a_time(instance):
    times_s = stage_tables.stage_table(instance, StageRule.FASTEST)
    np.testing.assert_array_equal(stage_tables.feasible_stages(instance), np.isfinite(times_s))


@given(strategies.scheduled(max_tiers=2, max_requests=3))
def test_a_single_machine_is_never_later_than_the_nodes(instance):
    """Against every schedule of a single stage: the k-th completion for every k."""
    for cuts in all_cuts(instance):
        relaxation = relaxed(instance, cuts)
        if relaxation is None or len(relaxation.tiers) != 1:
            continue
        work, share = single_machine_work(relaxation.shop)
        assert (share >= 0).all()
        ends, _ = kernels.srpt(relaxation.shop.release, work[:, 0].copy())
        exact = oracles.Exact(instance)
        for done in oracles.completions(exact, cuts):
            for bound, end in zip(sorted(ends), sorted(done), strict=True):
                assert bound <= float(end) * SLACK


def test_srpt_by_hand():
    """1 preempts 0; 2 is released later than 0, with as much work as remains of 0."""
    ends, runs = kernels.srpt(np.array([0.0, 1.0, 2.0]), np.array([4.0, 1.0, 5.0]))
    assert ends.tolist() == [5.0, 2.0, 10.0]
    assert runs.request[: runs.n].tolist() == [0, 1, 0, 2]
    # a moment lost by 1 delays 0 and 2 as well; a moment lost by 0 does not delay 1
    assert kernels.count_delayed(runs, 3).tolist() == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("max_window_delays", [0.01, 4.0])  # too narrow, and wide enough
@SOME
@given(instance=strategies.scheduled(wide=True, min_requests=2))
def test_a_raised_bound_holds_over_all_partitions(max_window_delays, instance):
    """Also from a poor incumbent, which leaves much to raise."""
    best_s = float(oracles.best_joint(instance))
    assume(best_s < math.inf)
    start = solve(instance)
    bounds = PartitionBounds(instance, AscentParams(max_window_delays=max_window_delays))
    before_s = bounds.bound_s
    latency_s = np.full(instance.n_requests, 1.5 * start.objective_s)
    is_stopped = bounds.raise_bound(Incumbent(1.5 * start.objective_s, latency_s), math.inf)
    assert not is_stopped
    assert before_s <= bounds.bound_s <= best_s * SLACK


# --- the method -------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [False, True])
@SOME
@given(instance=strategies.scheduled(limits=True, wide=True))
def test_the_answer_is_between_its_bound_and_its_warm_starts(prove, instance):
    best_s = float(oracles.best_joint(instance))
    result = solve(instance, prove=prove)
    assert (result.status is Status.INFEASIBLE) == math.isinf(best_s)
    assert result.bound_s <= best_s * (1 + 1e-12)
    assert result.objective_s >= best_s * (1 - 1e-12)
    starts = [("hyperion", {}), ("hyperion", {"partition_objective": "path"}), ("heft", {})]
    for method, options in starts:
        other = solve(instance, method, **options)
        assert result.objective_s <= other.objective_s * (1 + 1e-12)


@SOME
@given(strategies.scheduled(**CONTESTED))
def test_small_instances_are_solved_nearly_to_optimality(instance):
    """This is no promise of the method, but a loss of a twentieth here would be a bug."""
    best_s = float(oracles.best_joint(instance))
    assume(best_s < math.inf)
    assert solve(instance).objective_s <= best_s * 1.05


@SOME
@given(strategies.scheduled(max_tiers=2, min_requests=2))
def test_bounds_hold_for_late_arrivals(instance):
    """Long after time 0, a completion has few digits left for a latency."""
    late = instance.replace(arrival_s=instance.release_s + 2.0**20)
    best_s = float(oracles.best_joint(late))
    assert solve(late, prove=True).bound_s <= best_s * (1 + 1e-12)


@pytest.mark.parametrize("family", [frontier, profiled])
@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_it_beats_hyperion_at_scale(family, burst, objective):
    instance = family(200, seed=2, burst=burst, objective=objective)
    result, other = solve(instance, params=QUICK), solve(instance, "hyperion")
    assert check(instance, result.partition, result.schedule) == []
    max_ratio = 0.95 if objective == "mean_latency" else 1 - 1e-6
    assert result.objective_s <= other.objective_s * max_ratio
    assert 0 < result.gap < 0.35


def test_the_answer_is_reproducible():
    instance = frontier(100, seed=2)
    one, two = solve(instance, params=QUICK), solve(instance, params=QUICK)
    assert one.objective_s == two.objective_s
    np.testing.assert_array_equal(one.schedule.start_s, two.schedule.start_s)
    assert one.statistics == two.statistics


def test_an_ascent_halves_the_gap_of_sixty_requests():
    instance = frontier(60, seed=1, load=0.5)
    quick = solve(instance, params=ONE_LEVEL)
    proved = solve(instance, params=ONE_LEVEL, prove=True)
    assert proved.objective_s == quick.objective_s
    assert proved.gap < quick.gap / 2


def test_five_tiers_have_more_boxes_than_are_bounded():
    instance = frontier(60, (2, 2, 1, 1, 2), seed=4)
    params = dataclasses.replace(QUICK, max_boxes=200)
    result = solve(instance, params=params)
    assert 200 <= result.statistics["n_boxes"] < 250
    assert result.objective_s < solve(instance, "hyperion").objective_s
    assert result.bound_s > 0


@pytest.mark.parametrize("prove", [False, True])
@pytest.mark.parametrize("limit_s", [1e-9, 100])  # of a clock that counts its readings
def test_a_time_limit_ends_the_method(monkeypatch, prove, limit_s):
    instance = frontier(300, seed=1)
    hyperion_s = solve(instance, "hyperion").objective_s
    full = solve(instance, params=QUICK)
    CountingClock(monkeypatch)
    result = solve(instance, time_limit_s=limit_s, prove=prove, params=QUICK)
    assert "time limit" in result.message
    assert 0 < result.bound_s < result.objective_s <= hyperion_s
    assert result.statistics["n_trials"] < full.statistics["n_trials"]
    if limit_s < 1:  # the warm starts alone
        assert result.statistics["n_trials"] == 0 and result.statistics["n_scheduled"] <= 3


def test_an_ascent_stops_at_the_deadline(monkeypatch):
    """The search has ended by itself before; each kernel call of the ascent reads the clock."""
    instance = frontier(20, seed=1)
    params = dataclasses.replace(QUICK, min_trials=500, trials_per_request=0, search_share=0.9)
    free_s = solve(instance, params=params).bound_s
    CountingClock(monkeypatch)
    result = solve(instance, time_limit_s=4000, prove=True, params=params)
    assert "search stopped" not in result.message
    assert "bound raised by subgradient ascent until the time limit" in result.message
    assert free_s < result.bound_s < result.objective_s


def test_one_request_is_solved_to_optimality():
    instance = frontier(1, seed=1)
    result = solve(instance)
    assert result.status is Status.OPTIMAL
    assert result.objective_s == pytest.approx(solve(instance, "joint_exact").objective_s)


def test_an_infeasible_instance_is_found_without_branching(monkeypatch):
    """Memory is short by one block of a hundred, and eleven tiers have too many boxes."""
    n_blocks, tiers = 100, [[(0, 9.0)]] * 11
    instance = Instance.from_tables(
        [[[1.0] * n_blocks]] * 50, [1] * n_blocks, tiers, arrival_s=range(50),
        objective="mean_latency",
    )  # fmt: skip
    monkeypatch.delattr(PartitionBounds, "partitions")
    monkeypatch.delattr(PartitionBounds, "raise_bound")
    assert solve(instance).status is Status.INFEASIBLE


def test_a_time_grid_with_too_many_ticks_is_left_out():
    """A week of silence at the grain of a second; without multipliers the bound still holds."""
    instance = Instance.from_tables(
        [[[0.5, 0.5], [1e9, 1e9]]], [0, 0], [[(0, 0), (1, 0)], [(0, 0)]],
        arrival_s=[0, 0, 0, 6e8], objective="mean_latency",
    )  # fmt: skip
    result = solve(instance, prove=True)
    assert 0 < result.bound_s <= result.objective_s < 3


@pytest.mark.parametrize(("n_requests", "max_gap"), [(10, 0.03), (20, 0.06)])
def test_the_lagrangian_bound_is_tight_for_few_requests(n_requests, max_gap):
    """The single-machine relaxation leaves 17 and 21 %."""
    instance = frontier(n_requests, seed=1)
    params = dataclasses.replace(QUICK, ascent=AscentParams(restart_scales=(0,)))
    free = solve(instance, params=params)
    result = solve(instance, params=params, prove=True)
    assert result.gap < max_gap < 0.15 < free.gap
    assert "bound raised by subgradient ascent" in result.message


def raised(instance, start, **params):
    """Return the bound of an ascent from a known solution."""
    bounds = PartitionBounds(instance, AscentParams(**params))
    latency_s = evaluation.latency_s(instance, start.schedule)
    bounds.raise_bound(Incumbent(start.objective_s, latency_s), math.inf)
    return bounds.bound_s


def test_a_stalled_ascent_gains_from_restarts_at_scaled_multipliers():
    instance = frontier(8, seed=1)
    start = solve(instance, params=QUICK)
    stalled, restarted = (
        raised(instance, start, restart_scales=scales) for scales in ((1.0,), (0.9, 0.7, 0.0))
    )
    assert start.objective_s - restarted < 0.8 * (start.objective_s - stalled)


def test_a_finer_level_starts_as_good_as_the_level_before(monkeypatch):
    """The finer level gets a single evaluation, which makes no step."""
    instance = frontier(20, seed=1)
    start = solve(instance, params=QUICK)
    known = Incumbent(start.objective_s, evaluation.latency_s(instance, start.schedule))
    bounds = PartitionBounds(instance, AscentParams(restart_scales=(1.0,)))
    node = latency_bounds._BoxNode(
        PartitionBox(start.partition.cuts, start.partition.cuts), 0.0
    )
    assert bounds._ascend(node, known, math.inf)
    coarse_s, node.bound_s = node.bound_s, 0.0
    bounds.params = AscentParams(restart_scales=(1.0,), evaluations=1, trial_evaluations=1)
    assert bounds._ascend(node, known, math.inf) and node.level == 1
    assert node.bound_s > 0.99 * coarse_s


def test_a_makespan_has_no_lagrangian_bound_and_the_search_keeps_all_the_time():
    instance = frontier(20, seed=1, objective="makespan")
    result = solve(instance, params=QUICK, prove=True)
    assert "no Lagrangian bound for a makespan" in result.message
    assert result.objective_s == solve(instance, params=QUICK).objective_s


def test_no_time_is_kept_for_an_ascent_that_does_not_fit(monkeypatch):
    """The estimate of its time is in proportion to the ticks, and reads no clock."""
    monkeypatch.setattr(latency_bounds, "CELL_S", 1e9)
    result = solve(frontier(20, seed=1), params=QUICK, prove=True)
    assert "no time for the Lagrangian bound" in result.message
    assert "time limit" not in result.message


# --- options ----------------------------------------------------------------------------------


def test_prove_is_a_flag():
    with pytest.raises(TypeError, match=r"method 'hyperion_plus': prove must be .* got 1"):
        solve(frontier(2, seed=1), prove=1)


def test_params_are_a_dataclass_of_the_method():
    with pytest.raises(
        TypeError, match=r"'hyperion_plus': params must be a HyperionPlusParams"
    ):
        solve(frontier(2, seed=1), params={"window": 12})


def test_params_limit_the_work():
    params = HyperionPlusParams(
        max_partitions=1, min_trials=500, trials_per_request=0, windows_per_check=1
    )
    result = solve(frontier(50, seed=1), params=params)
    assert 500 <= result.statistics["n_trials"] < 1500
    assert result.statistics["n_scheduled"] < 64


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (HyperionPlusParams, "window", 0, "window must be at least 1, got 0"),
        (HyperionPlusParams, "window", 1.5, "window must be a whole number, got 1.5"),
        (HyperionPlusParams, "window", 6, "stride must be at most window 6, got 12"),
        (HyperionPlusParams, "leads", 1.0, "leads must be a tuple, got 1.0"),
        (HyperionPlusParams, "first_leads", (), "first_leads must hold at least one lead"),
        (HyperionPlusParams, "passes", [(1, 2, 3)], "passes must hold pairs"),
        (HyperionPlusParams, "perturbation", math.nan, "perturbation must be finite"),
        (
            HyperionPlusParams,
            "max_finalist_ratio",
            0.9,
            "max_finalist_ratio must be at least 1",
        ),
        (
            HyperionPlusParams,
            "search_share",
            1,
            "search_share must be between 0 and 1, got 1.0",
        ),
        (HyperionPlusParams, "ascent", None, "ascent must be an AscentParams, got None"),
        (AscentParams, "levels", (60, 100), "levels must be multiples of the level before"),
        (AscentParams, "levels", (), "levels must hold at least one level"),
        (AscentParams, "restart_scales", (), "restart_scales must hold at least one scale"),
        (AscentParams, "restart_scales", (2.0,), "restart_scales must be at most 1"),
        (AscentParams, "step_shrink", 1.0, "step_shrink must be between 0 and 1"),
        (AscentParams, "min_step", 0.0, "min_step must be positive and finite"),
        (AscentParams, "subgradient_weight", 2, "subgradient_weight must be at most 1"),
    ],
)
def test_a_wrong_parameter_is_named(kind, field, value, message):
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {message}"):
        kind(**{field: value})


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        HyperionPlusParams(windows=3)


# --- list scheduling --------------------------------------------------------------------------


def placed(shop, order):
    """Return start and end of the list schedule of an order."""
    shape = shop.travel.shape
    node, start, end = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    table = list_scheduling.new_timetable(shop, 1)
    list_scheduling.place_all(shop, order, table, node, start, end)
    return start, end


def test_a_window_knows_the_value_of_the_whole_order():
    """If the window holds all operations, its sums are those of the schedule it has found."""
    instance = frontier(6, seed=3)
    shop = relaxed(instance, (0, 3, 12, 32)).shop
    remaining = remaining_s(shop)
    order = np.random.default_rng(0).permutation(6).repeat(3) * 3 + np.tile(np.arange(3), 6)
    before = float(placed(shop, order)[1][:, -1].sum())
    search = list_scheduling.new_search_state(shop, shop.service.copy(), remaining, order)
    workspace = list_scheduling.new_workspace(shop, 18)
    at, n_trials = list_scheduling.improve(search, workspace, False, 18, 18, 0, 18, 500)
    assert at == 18 and n_trials > 0
    end = placed(shop, order)[1]
    after = float(end[:, -1].sum())
    assert after < before
    no_delay = float((shop.release + remaining[:, 0]).sum())
    assert workspace.window.delay_sum[18] == pytest.approx(after - no_delay)
    assert workspace.window.last[18] == pytest.approx(end[:, -1].max())
    np.testing.assert_allclose(search.ready, end[:, -1])


def test_gaps_are_used_and_the_earliest_is_given_up():
    """One node is busy in every other second, then two requests come that fit a gap."""
    n = 2 * list_scheduling.MAX_SPANS
    release = np.concatenate([2.0 * np.arange(n), [1.0, 2 * n - 3.0]])
    instance = Instance.from_tables(
        [[[1.0]]], [0], [[(0, 0)]], arrival_s=release, objective="mean_latency"
    )
    start, end = placed(relaxed(instance, (0, 1)).shop, np.arange(n + 2))
    assert start[:n, 0].tolist() == release[:n].tolist()
    assert start[n + 1, 0] == 2 * n - 3
    assert start[n, 0] > 2 * (n - list_scheduling.MAX_SPANS)  # the gap at 1 is forgotten
    by_start = np.argsort(start[:, 0])
    assert (end[by_start, 0][:-1] <= start[by_start, 0][1:]).all()
