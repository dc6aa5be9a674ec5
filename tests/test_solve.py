"""`solve`: claims that it refuses, options that it passes on, and views of a Result."""

import functools
import json
import math
import re

import matplotlib as mpl
import numpy as np
import pytest

import hypsolve
from hypsolve import (
    Certificate,
    Instance,
    Outcome,
    Partition,
    Schedule,
    Status,
    schedule,
    solve,
)
from hypsolve.problem import validation as valid
from hypsolve.verify import verify
from instances.scenarios import scenario

mpl.use("Agg")


@pytest.fixture
def instance():
    return Instance.from_tables(
        [[[1.0, 2, 3]], [[2.0, 4, 6]]],
        [1, 1, 1],
        [[(0, 9)], [(0, 9), (0, 9)]],
        arrival_s=[0, 1],
        objective="mean_latency",
        name="two requests",
    )


def claims(**fields):
    def method(instance, *, time_limit_s, seed):
        return Outcome(**fields)

    return method


CUTS = Partition((0, 1, 3))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"status": Status.OPTIMAL}, "claims optimal but returns no partition"),
        ({"status": Status.UNKNOWN, "partition": CUTS}, "claims unknown but returns a"),
        (
            {"status": Status.FEASIBLE, "partition": CUTS, "bound_s": 99.0},
            "below its own bound",
        ),
        ({"status": Status.OPTIMAL, "partition": CUTS, "bound_s": 1.0}, "optimal with a gap"),
        (
            {"status": Status.FEASIBLE, "partition": Partition((0, 3, 3))},
            "breaks a rule: blocks",
        ),
    ],
)
def test_a_method_that_lies_is_found_out(instance, fields, match):
    with pytest.raises(RuntimeError, match=match):
        solve(instance.replace(objective="bottleneck"), claims(**fields))


def test_a_bound_may_be_beaten_by_rounding_only(instance):
    easy = instance.replace(objective="bottleneck")
    value_s = solve(easy, claims(status="feasible", partition=CUTS)).objective_s
    near = claims(status="optimal", partition=CUTS, bound_s=value_s * (1 + 5e-7))
    assert solve(easy, near).gap == 0
    with pytest.raises(RuntimeError, match="below its own bound"):
        solve(easy, claims(status="optimal", partition=CUTS, bound_s=value_s * (1 + 2e-6)))


def test_a_schedule_that_overlaps_is_found_out(instance):
    good = schedule(instance, CUTS)
    bad = Schedule(good.node, good.start_s - 0.5, good.end_s - 0.5)
    with pytest.raises(RuntimeError, match=r"breaks a rule: order: request 0 on tier 'tier-0'"):
        solve(instance, claims(status=Status.FEASIBLE, partition=CUTS, schedule=bad))


def test_a_scheduled_objective_needs_a_schedule(instance):
    halves = claims(status=Status.FEASIBLE, partition=CUTS)
    with pytest.raises(
        ValueError, match=r"method: returned no schedule for objective mean_lat"
    ):
        solve(instance, halves)
    completed = solve(instance, hypsolve.Method(halves, "partition"), policy="random", seed=3)
    assert completed.partition == CUTS
    assert completed.schedule is not None


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"status": "great"}, ValueError, "outcome: status must be one of optimal, .* 'great'"),
        ({"status": "feasible", "bound_s": math.nan}, ValueError, "outcome: bound_s must be"),
        ({"status": "feasible", "bound_s": -1.0}, ValueError, "outcome: bound_s must be"),
        (
            {"status": "feasible", "bound_s": None},
            TypeError,
            "outcome: bound_s must be a number",
        ),
        ({"status": "feasible", "partition": (0, 1, 3)}, TypeError, "must be a Partition, got"),
        ({"status": "feasible", "schedule": CUTS}, TypeError, "must be a Schedule, got"),
    ],
)
def test_an_outcome_checks_itself(fields, error, match):
    with pytest.raises(error, match=match):
        Outcome(**fields)


def test_a_method_must_return_an_outcome(instance):
    with pytest.raises(TypeError, match="must return an Outcome, got None"):
        solve(instance, lambda instance, *, time_limit_s, seed: None)


def test_claims_of_a_partition_method_are_checked(instance):
    said_too_much = claims(status=Status.OPTIMAL, partition=CUTS, bound_s=1e9)
    for asked in (instance, instance.replace(objective="bottleneck")):
        with pytest.raises(RuntimeError, match="below its own bound"):
            solve(asked, hypsolve.Method(said_too_much, "partition"))
        with pytest.raises(TypeError, match="must return an Outcome, got None"):
            solve(asked, hypsolve.Method(lambda i, *, time_limit_s, seed: None, "partition"))


def test_a_method_checks_itself():
    with pytest.raises(ValueError, match="Method: decides must be partition or both, got 'x'"):
        hypsolve.Method(claims(), "x")
    with pytest.raises(TypeError, match="Method: function must be callable, got 'halves'"):
        hypsolve.Method("halves", "partition")


def test_users_own_method_and_policy(instance):
    def last_node(state, request):
        return int(state.nodes[-1])

    result = solve(instance, "even_split", policy=last_node)
    assert result.schedule.node[:, 1].tolist() == [1, 1]
    own = solve(
        instance,
        claims(status=Status.FEASIBLE, partition=CUTS, schedule=schedule(instance, CUTS)),
    )
    assert own.method == "method"
    assert own.objective_s == solve(instance, "even_split").objective_s


def test_partition_objective_is_passed_on(instance):
    pathwise = solve(instance, "hypsplit_dp", partition_objective="path")
    direct = solve(instance.replace(objective="path"), "hypsplit_dp")
    assert pathwise.partition == direct.partition
    assert "path" in pathwise.message


def test_rule_slowest_may_be_infeasible_for_the_partition_alone():
    """The bottleneck needs every node to fit, a schedule one: infeasibility is not proved."""
    instance = Instance.from_tables(
        np.ones((1, 1, 2)), [5, 5], [[(0, 5), (0, 1)], [(0, 5)]],
        objective="makespan", stage_rule="slowest",
    )  # fmt: skip
    result = solve(instance, "hyperion")
    assert result.status is Status.UNKNOWN
    assert result.bound_s == 0
    assert result.certificate is None
    assert solve(instance, "joint_cpsat", time_limit_s=20).objective_s == pytest.approx(2)


@pytest.mark.parametrize("method", ["hypsplit_dp", "partition_scip", "joint_cpsat"])
def test_a_wrong_option_lists_the_right_ones(instance, method):
    if method != "joint_cpsat":
        instance = instance.replace(objective="bottleneck")
    takes = "on_bound, on_improve, warm_start, workers" if method == "joint_cpsat" else "none"
    with pytest.raises(
        TypeError, match=f"{method}: unknown option 'threads'; it takes {takes}"
    ):
        solve(instance, method, threads=2)


@pytest.mark.parametrize(
    ("option", "successor"), [("time_limit", "time_limit_s"), ("without", "disable")]
)
def test_an_old_option_suggests_its_successor(instance, option, successor):
    def mine(instance, *, time_limit_s, seed, disable=()):
        raise AssertionError("a wrong option must be refused before any work")

    with pytest.raises(
        TypeError, match=rf"mine: unknown option '{option}'; did you mean {successor}\?"
    ):
        solve(instance, mine, **{option: 3})


@pytest.mark.parametrize(
    ("call", "old", "successor"),
    [
        (hypsolve.model, "dtype", "weights"),
        (hypsolve.read_model, "dtype", "weights"),
        (verify, "tell", "progress"),
        (functools.partial(scenario, "campus"), "dtype", "weights"),
        (functools.partial(scenario, "campus"), "least_blocks", "min_blocks"),
    ],
)
def test_an_old_keyword_suggests_its_successor(call, old, successor):
    with pytest.raises(TypeError, match=rf"unknown \w+ '{old}'; did you mean {successor}\?"):
        call(**{old: "int4"})


@pytest.mark.parametrize(
    ("old", "successor"),
    [("dtype", "weights"), ("tell", "progress"), ("found", "plan"), ("prices", "multipliers")],
)
def test_every_renamed_name_is_suggested(old, successor):
    with pytest.raises(ValueError, match=f"unknown option '{old}'; did you mean {successor}"):
        valid.known("option", old, ["colour", successor])


def test_a_result_prints_as_something_a_person_can_read(instance):
    text = str(solve(instance, "hyperion"))
    assert text.startswith("hyperion on two requests\n")
    assert "mean_latency" in text
    assert "bound      none proved" in text
    assert "requests per node" in text
    proved = str(solve(instance.replace(objective="bottleneck"), "hypsplit_dp"))
    assert "gap 0.000%" in proved
    nothing = solve(Instance.from_tables([[[1.0]]], [2], [[(0, 1)]]), "hypsplit_dp")
    assert "infeasible" in str(nothing)


def test_a_result_says_how_many_nodes_can_hold_a_stage():
    tiers = [[(0, 1), (0, 9), (0, 0.5)], [(0, 2)]]
    text = str(solve(Instance.from_tables([[[1.0, 1, 1]]], [1, 1, 1], tiers), "even_split"))
    held = re.findall(r"blocks (\d:\d).*(\d of \d) nodes", text)
    assert held == [("0:1", "2 of 3"), ("1:3", "1 of 1")]


def test_extrapolated_costs_are_marked_in_every_output(instance):
    result = solve(instance.replace(extrapolated=True), "hyperion")
    assert "extrapolated" in str(result)
    assert result.to_dict()["extrapolated"] is True
    assert result.to_frame()["extrapolated"].all()
    assert "extrapolated" in result.plot_gantt().get_title()
    assert "extrapolated" not in str(solve(instance, "hyperion"))


def test_to_dict_is_json_and_complete(instance):
    for objective in ("mean_latency", "bottleneck"):
        result = solve(instance.replace(objective=objective), "hyperion")
        plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert plain["cuts"] == list(result.partition.cuts)
        assert plain["objective_s"] == result.objective_s
        assert np.array_equal(plain["schedule"]["node"], result.schedule.node)
        assert (plain["certificate"] is None) == (result.certificate is None)
    empty = solve(Instance.from_tables([[[1.0]]], [2], [[(0, 1)]]), "hypsplit_dp").to_dict()
    assert empty["objective_s"] is None
    assert empty["certificate"]["kind"] == "infeasible"


def test_to_frame_has_a_row_per_visit(instance):
    frame = solve(instance, "hyperion").to_frame()
    assert len(frame) == 4
    assert (frame.end_s > frame.start_s).all()
    assert (frame.start_s >= frame.arrival_s).all()
    assert set(frame.node) <= set(instance.node_names)
    result = solve(instance.replace(objective="path"), "hypsplit_dp")
    assert result.to_frame().end_block.tolist() == list(result.partition.cuts[1:])
    infeasible = solve(Instance.from_tables([[[1.0]]], [2], [[(0, 1)]]), "hypsplit_dp")
    with pytest.raises(ValueError, match=r"no solution to tabulate \(infeasible\)"):
        infeasible.to_frame()


def test_the_gantt_chart_has_a_bar_per_visit(instance):
    result = solve(instance, "hyperion")
    ax = result.plot_gantt()
    assert len(ax.patches) == 4
    assert sorted(p.get_width() for p in ax.patches) == pytest.approx([1, 2, 5, 10])
    mpl.pyplot.close("all")
    with pytest.raises(ValueError, match="no schedule to draw"):
        solve(instance.replace(objective="path"), "hypsplit_dp").plot_gantt()


def test_public_names_are_there_and_documented():
    for name in hypsolve.__all__:
        thing = getattr(hypsolve, name)
        assert getattr(thing, "__doc__", None) or isinstance(thing, dict), name


def test_a_certificate_of_another_instance_is_refuted(instance):
    easy = instance.replace(objective="bottleneck")
    certificate = solve(easy, "hypsplit_dp").certificate
    assert hypsolve.verify_certificate(easy, certificate) == []
    slower = easy.replace(reference_kind_s=easy.reference_kind_s * 2)
    assert hypsolve.verify_certificate(slower, certificate)
    assert hypsolve.verify_certificate(
        easy, Certificate(kind="infeasible", value_s=math.inf, bound_s=math.inf)
    )


def test_a_result_and_its_parts_show_themselves_in_one_line(instance):
    result = solve(instance, "hyperion")
    assert re.fullmatch(
        r"<Result of hyperion on 'two requests': feasible, mean_latency [\d.]+ m?s,"
        r" (gap [\d.]+%|no bound proved)>",
        repr(result),
    )
    assert repr(result.schedule) == "<Schedule: 2 requests on 2 tiers, from 0 s to 13 s>"
    assert repr(result.partition) == "Partition(cuts=(0, 1, 3))"
    nothing = solve(Instance.from_tables([[[1.0]]], [2], [[(0, 1)]]), "hypsplit_dp")
    assert repr(nothing) == "<Result of hypsplit_dp: infeasible>"


def test_a_notebook_shows_tables(instance):
    result = solve(instance.replace(tier_names=("<a>", "b")), "hyperion")
    for thing, texts in (
        (result, ("&lt;a&gt;", "blocks 0:1", "hyperion")),
        (result.partition, ("0:1", "1:3")),
        (result.schedule, ("request", "start", "13 s")),
    ):
        html = thing._repr_html_()
        assert html.count("<table>") == html.count("</table>") == 1
        assert "<a>" not in html
        for text in texts:
            assert text in html


def test_a_long_schedule_shows_its_first_visits():
    times = np.arange(30.0)[:, None]
    html = Schedule(np.zeros((30, 1), int), times, times + 1)._repr_html_()
    assert html.count("<tr>") == 21
    assert "the first 20 of 30 visits" in html


def test_the_gap_without_a_bound_is_one(instance):
    easy = instance.replace(objective="bottleneck")
    assert solve(easy, claims(status="feasible", partition=CUTS)).gap == 1
    free = Instance.from_tables([[[0.0]]], [0], [[(0, 0)]])
    assert solve(free, claims(status="feasible", partition=Partition((0, 1)))).gap == 0


def test_an_unknown_attribute_of_the_package_suggests_a_name():
    with pytest.raises(AttributeError, match="no attribute 'solv'; did you mean solve"):
        _ = hypsolve.solv


def test_a_bound_known_beforehand_is_kept_and_proves_what_reaches_it():
    instance = Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 2)], [(0, 2)]])

    def half(instance, *, time_limit_s, seed):
        return Outcome(Status.FEASIBLE, Partition((0, 1, 2)), bound_s=0.5)

    for known_s, status in ((0.0, "feasible"), (1.0, "feasible"), (2.0, "optimal")):
        result = solve(instance, hypsolve.Method(half, "partition", bound_s=known_s))
        assert (str(result.status), result.bound_s) == (status, max(known_s, 0.5))
        assert result.gap == (2.0 - max(known_s, 0.5)) / 2.0
    with pytest.raises(RuntimeError, match="is below its own bound"):
        solve(instance, hypsolve.Method(half, "partition", bound_s=2.1))
    with pytest.raises(ValueError, match="Method: bound_s must be finite and not negative"):
        hypsolve.Method(half, "partition", bound_s=-1.0)
