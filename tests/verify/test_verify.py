"""`hypsolve.verify`: it confirms what is so, and no changed claim that is not."""

import contextlib
import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hypsolve import Instance, save, solve
from hypsolve.verify import Refuted, verify
from hypsolve.verify.__main__ import main
from hypsolve.verify.flow_shop import ExactFlowShop
from hypsolve.verify.reading import not_covered
from instances.frontier import frontier, profiled
from tests.helpers import oracles, strategies

FOUR = frontier(4, seed=2, n_blocks=8)
CASES = {
    "multipliers": frontier(4, (2, 1, 2), seed=1, n_blocks=8, burst=True),
    "searched": frontier(4, (2, 1), seed=3, n_blocks=6, burst=True),
    "makespan": frontier(3, (1, 2), seed=4, n_blocks=6, objective="makespan"),
    "bottleneck": FOUR.replace(objective="bottleneck"),
}
METHOD = {"bottleneck": "hypsplit_dp"}
RESULTS = {
    name: json.loads(json.dumps(solve(case, METHOD.get(name, "joint_exact")).to_dict()))
    for name, case in CASES.items()
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_verified(name):
    result = RESULTS[name]
    assert result["status"] == "optimal"
    assert repr(result["objective_s"]) in verify(CASES[name], result)


@pytest.mark.parametrize("family", [frontier, profiled])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
@pytest.mark.parametrize("burst", [False, True])
def test_five_requests(family, objective, burst):
    instance = family(5, seed=2, objective=objective, burst=burst, n_blocks=16)
    result = solve(instance, "joint_exact")
    verify(instance, result.to_dict())
    boxes = result.certificate.boxes
    assert any(box.how == "lagrangian_bound" and box.multipliers for box in boxes)
    assert sum(len(run) for box in boxes for _, _, run in box.multipliers) > 0


def test_a_bound_at_the_time_limit_is_verified():
    instance = frontier(7, seed=1, burst=True)
    for time_limit_s in (0.3, 3, 30):  # a busy machine may need more for a first bound
        result = solve(instance, "joint_exact", time_limit_s=time_limit_s)
        if result.certificate is not None and result.certificate.bound_s > 0:
            break
    assert 0 < result.certificate.bound_s <= result.bound_s
    verify(instance, result.to_dict())


@given(strategies.scheduled(limits=True))
def test_any_instance(instance):
    result = solve(instance, "joint_exact")
    assume(result.certificate is not None)
    best_s = oracles.best_joint(instance)
    words = verify(instance, result.to_dict())
    if math.isinf(best_s):
        assert "infeasible" in words
    else:
        assert result.certificate.bound_s <= best_s * (1 + 1e-12)
        assert result.certificate.bound_s == pytest.approx(result.bound_s, rel=1e-9, abs=1e-9)


def old_result():
    """Return a result that hypsolve wrote before result files had a version."""
    return json.loads((Path(__file__).parent / "result_version_1.json").read_text())


def test_a_file_of_version_1_is_verified():
    old = old_result()
    assert {box["how"] for box in old["certificate"]["boxes"]} == {"prices", "search"}
    new = verify(CASES["makespan"], RESULTS["makespan"])
    numbers, expected = (
        [float(x) for x in re.findall(r"[\d.]+(?= s)", words)]
        for words in (verify(CASES["makespan"], old), new)
    )
    assert numbers == pytest.approx(expected, rel=1e-6)  # old ones count from time 0
    old["certificate"]["boxes"][1]["price"][0][2][0] = -1
    assert refuted(CASES["makespan"], old)


@pytest.mark.parametrize("version", [2, 3])
def test_names_of_version_1_are_refuted_in_later_versions(version):
    assert refuted(CASES["makespan"], old_result() | {"version": version})


@pytest.mark.parametrize("version", [0, 4, True, "2", None])
def test_other_versions_are_not_read(version):
    with pytest.raises(ValueError, match="version must be 1, 2 or 3, got"):
        verify(CASES["makespan"], RESULTS["makespan"] | {"version": version})


def test_long_gaps_and_ablations_have_no_certificate():
    late = FOUR.replace(arrival_s=FOUR.arrival_s + np.array([0, 0, 1e6, 1e6]))
    assert solve(late, "joint_exact").certificate is None
    assert solve(FOUR, "joint_exact", disable=["beam_search"]).certificate is None
    assert solve(FOUR, "joint_exact", memory_bytes=3e5).certificate is None
    for part in ("lagrangian_bound", "partition_boxes", "dominance"):
        verify(FOUR, solve(FOUR, "joint_exact", disable=[part]).to_dict())


def refuted(instance, result):
    """Return whether a result is refuted; one whose claims still hold may be confirmed."""
    try:
        verify(instance, result)
    except Refuted:
        return True
    return False


def agree(result):
    """Make the fields of a changed result consistent, so that a deeper check must find it."""
    certificate = result["certificate"]
    certificate["value_s"], certificate["cuts"] = result["objective_s"], result["cuts"]
    result["gap"] = (result["objective_s"] - result["bound_s"]) / result["objective_s"]


def changed(name, change):
    result = copy.deepcopy(RESULTS[name])
    change(result)
    return refuted(CASES[name], result)


@pytest.mark.parametrize("name", CASES)
def test_a_higher_bound_is_refuted(name):
    def raise_both(result):
        result["bound_s"] = result["certificate"]["bound_s"] = result["objective_s"] * 1.0001
        result["objective_s"] *= 1.0002  # else that alone would be wrong
        result["status"] = "feasible"
        agree(result)

    def raise_one(result):
        result["bound_s"] = result["objective_s"]
        agree(result)

    assert changed(name, raise_both) and changed(name, raise_one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_another_objective_is_refuted(name, factor):
    def change(result):
        result["objective_s"] *= factor
        result["status"] = "feasible"
        if factor < 1:
            result["bound_s"] = result["certificate"]["bound_s"] = result["objective_s"]
        agree(result)

    assert changed(name, change)


@pytest.mark.parametrize("name", CASES)
def test_other_cuts_are_refuted(name):
    for k in range(1, CASES[name].n_tiers):
        for step in (-1, 1):

            def change(result, k=k, step=step):
                result["cuts"][k] += step
                agree(result)

            assert changed(name, change)


@pytest.mark.parametrize("name", ["multipliers", "searched", "makespan"])
def test_another_schedule_is_refuted(name):
    n_requests, n_tiers = CASES[name].n_requests, CASES[name].n_tiers
    for r in range(n_requests):
        for k in range(n_tiers):
            if RESULTS[name]["schedule"]["node"][r][k] < 0:
                continue
            for field, by in (("start_s", -0.01), ("end_s", -0.01), ("node", 7)):

                def change(result, r=r, k=k, field=field, by=by):
                    result["schedule"][field][r][k] += by

                assert changed(name, change), (r, k, field)


@pytest.mark.parametrize("name", ["multipliers", "searched", "makespan"])
def test_boxes_must_make_up_all_partitions(name):
    refusals = 0
    for at in range(len(RESULTS[name]["certificate"]["boxes"])):

        def drop(result, at=at):
            del result["certificate"]["boxes"][at]

        def twice(result, at=at):
            boxes = result["certificate"]["boxes"]
            boxes.append(boxes[at])

        refusals += changed(name, drop)
        assert changed(name, drop) == changed(name, twice)
    assert refusals > 2


@pytest.mark.parametrize("name", ["multipliers", "searched", "makespan"])
def test_multipliers_that_matter_must_be_as_they_are(name):
    boxes = RESULTS[name]["certificate"]["boxes"]
    needed = 0
    for at, box in enumerate(boxes):
        if box["how"] == "search" or not box["multipliers"]:
            continue

        def none(result, at=at):
            result["certificate"]["boxes"][at]["multipliers"] = []

        needed += changed(name, none)
        for wrong in (-1, 0.5, "1", None):

            def other(result, at=at, wrong=wrong):
                result["certificate"]["boxes"][at]["multipliers"][0][2][0] = wrong

            assert changed(name, other)

        def beyond(result, at=at):
            row = result["certificate"]["boxes"][at]["multipliers"][0]
            row[1] = boxes[at]["n_ticks"]

        assert changed(name, beyond)
    assert needed or name != "multipliers"


def test_a_box_without_partitions_proves_nothing():
    """Cuts between whole numbers, or below 0, are no cuts."""
    name = "multipliers"
    nothing = {"how": "lagrangian_bound", "tick_s": 1.0, "n_ticks": 1, "multipliers": []}
    low, high = [0, 0, 0, 8], [0, 8, 8, 8]
    for ranges in (
        {"low": [0, 0.5, 0, 8], "high": [0, 0.5, 8, 8]},
        {"low": [0, -3, 0, 8], "high": high},
        {"low": low, "high": [0, 9, 8, 8]},
        {"low": low, "high": [0, 8, 8]},
        {"low": [0, True, 0, 8], "high": high},
    ):

        def change(result, ranges=ranges):
            result["certificate"]["boxes"] = [nothing | ranges] * 9

        assert changed(name, change)


@pytest.mark.parametrize("name", ["multipliers", "makespan"])
def test_the_optimum_of_another_instance_is_refuted(name):
    """A schedule of Hyperion's, with whatever boxes there are, is not the best."""
    worse = solve(CASES[name], "hyperion").to_dict()
    assert worse["objective_s"] > RESULTS[name]["objective_s"] * (1 + 1e-6)

    def change(result):
        result |= {key: worse[key] for key in ("cuts", "schedule", "objective_s")}
        agree(result)

    assert changed(name, change)  # it calls itself optimal

    def claim(result):
        change(result)
        result["bound_s"] = result["certificate"]["bound_s"] = worse["objective_s"]
        agree(result)

    assert changed(name, claim)


def test_late_arrivals_leave_no_room():
    """Clocks since 1970: what rounds is the clock, not what is claimed."""
    table = [[[0.001, 0.002, 0.001, 0.003]]]
    late = Instance.from_tables(
        table, [0] * 4, [[(0, 0)], [(0, 0)]], objective="mean_latency", arrival_s=[1.7e9] * 2
    )
    result = solve(late, "joint_exact", time_limit_s=20).to_dict()
    assert result["solve_time_s"] < 10
    verify(late, result)
    slow = copy.deepcopy(result) | {"status": "feasible", "objective_s": 1.5}
    agree(slow)
    assert refuted(late, slow)
    result["schedule"]["end_s"] = result["schedule"]["start_s"]
    assert refuted(late, result)


@pytest.mark.parametrize("field", ["node", "start_s", "end_s"])
def test_tables_have_the_shape_of_the_instance(field):
    def longer(result):
        result["schedule"][field].append([1e30] * 3)

    def wider(result):
        result["schedule"][field][0].append(1)

    assert changed("multipliers", longer) and changed("multipliers", wider)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("status", ["infeasible", "unknown", "Optimal", 7, None])
def test_other_statuses_are_refuted(name, status):
    assert changed(name, lambda result: result.update(status=status))


def places(value, path=()):
    """Paths in a document by the kind of field: the names on the way, without numbers."""
    found = {}
    if path:
        found.setdefault(tuple(k for k in path if isinstance(k, str)), []).append(path)
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            for kind, paths in places(value[key], (*path, key)).items():
                found.setdefault(kind, []).extend(paths)
    return found


IDLE = {"solve_time_s", "message", "method", "instance", "extrapolated", "statistics"}
PLACES = {
    name: {kind: paths for kind, paths in places(result).items() if kind[0] not in IDLE}
    for name, result in RESULTS.items()
}
OTHERS = [
    None, 0, 1, -1, 0.5, 2**40, 1e30, "lagrangian_bound", "search", "optimal", "feasible",
    "infeasible", "joint", "bottleneck", "1", [], {}, True,
]  # fmt: skip


@given(st.data())
def test_whatever_is_changed_what_is_confirmed_is_true(data):
    """Claims are compared with those of the unchanged result, which is the optimum."""
    name = data.draw(st.sampled_from(sorted(CASES)))
    result = copy.deepcopy(RESULTS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(sorted(PLACES[name])))
        path = data.draw(st.sampled_from(PLACES[name][kind]))
        try:
            parent = result
            for key in path[:-1]:
                parent = parent[key]
            old = parent[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken it away
        if not isinstance(parent, dict | list):
            continue
        other = st.sampled_from(OTHERS)
        if isinstance(old, int | float):
            near = [old + 1, old - 1, old * 1.01, old * 0.99, -old, old + 0.5]
            other |= st.sampled_from(near)
        if isinstance(old, list) and old:
            other |= st.sampled_from([old[1:], old[:-1], [*old, old[0]], old[::-1]])
        parent[path[-1]] = data.draw(other)
    if data.draw(st.booleans()) and isinstance(result.get("certificate"), dict):
        with contextlib.suppress(KeyError, TypeError, ArithmeticError):
            agree(result)
    assume(result != RESULTS[name])
    try:
        verify(CASES[name], result)
    except (Refuted, ValueError):
        return
    true = RESULTS[name]
    assert result["objective_s"] == pytest.approx(true["objective_s"], rel=2e-9)
    assert result["certificate"]["value_s"] == result["objective_s"]
    assert result["certificate"]["cuts"] == result["cuts"]
    assert result["certificate"]["bound_s"] <= true["objective_s"] * (1 + 2e-9)
    assert result["bound_s"] <= true["objective_s"] * (1 + 2e-9)
    assert result["status"] in ("optimal", "feasible")


@pytest.mark.parametrize("key", ["objective_s", "bound_s", "gap"])
def test_numbers_beyond_any_float_are_refuted(key):
    """Whole numbers of JSON may have any length."""
    assert refuted(CASES["multipliers"], RESULTS["multipliers"] | {key: 10**400})
    late = copy.deepcopy(RESULTS["multipliers"])
    late["schedule"]["end_s"][0][0] = 10**400
    assert refuted(CASES["multipliers"], late)


@pytest.mark.parametrize("family", [frontier, profiled])
def test_every_bottleneck_is_verified(family):
    """Value and objective may be float sums in different orders; both must be accepted."""
    n_other = 0
    for seed in range(1, 60):
        instance = family(2, seed=seed, objective="bottleneck")
        result = solve(instance, "hypsplit_dp")
        n_other += result.objective_s != result.certificate.value_s
        assert verify(instance, json.loads(json.dumps(result.to_dict())))
    assert n_other > 0


def interrupted(shop):
    raise KeyboardInterrupt


def test_the_command(tmp_path, capsys, monkeypatch):
    result = solve(FOUR, "joint_exact")
    save(FOUR, tmp_path / "instance.json.gz")
    result.save(tmp_path / "result.json.gz")
    files = [str(tmp_path / "instance.json.gz"), str(tmp_path / "result.json.gz")]
    command = [sys.executable, "-m", "hypsolve.verify", *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("verified: ")
    assert run.stderr.startswith("verify: enumerating the schedules of cuts [0, ")
    assert run.stderr.count("\n") == sum(
        box.how == "search" for box in result.certificate.boxes
    )
    document = result.to_dict() | {"objective_s": 1.0, "status": "feasible"}
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    assert main([files[0], str(tmp_path / "wrong.json")]) == 1
    assert capsys.readouterr().out.startswith("refuted: certificate: value_s must be")
    for broken in (["only.json"], [files[0], "absent.json"], [files[0], files[0] + ".txt"]):
        assert main(broken) == 2
        assert capsys.readouterr().err.startswith("verify: ")
    without = solve(FOUR, "hyperion")
    without.save(tmp_path / "without.json")
    (tmp_path / "list.json").write_text("[1]")
    for name, words in (
        ("list.json", "not a result, as Result.save writes it"),
        ("without.json", "result of 'hyperion' for 'mean_latency' without a certificate: "),
    ):
        assert main([files[0], str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "INSTANCE.json RESULT.json" in capsys.readouterr().out
    assert main([files[0], str(tmp_path / "absent.json")]) == 2
    assert "absent.json: No such file or directory\n" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(ExactFlowShop, "none_better", interrupted)
        assert main(files) == 130
    assert "stopped; nothing is verified or refuted" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"must end in \.json"):
        result.save(tmp_path / "result.txt")


def test_infeasible_is_verified_and_not_claimed_in_vain():
    instance = Instance.from_tables(
        [[[1, 1]]], [4, 4], [[(0, 3)], [(0, 3)]], objective="makespan"
    )
    result = solve(instance, "joint_exact").to_dict()
    assert "infeasible" in verify(instance, result)
    vain = copy.deepcopy(RESULTS["multipliers"])
    vain["status"], vain["certificate"]["kind"] = "infeasible", "infeasible"
    assert refuted(CASES["multipliers"], vain)


@pytest.mark.parametrize("name", CASES)
def test_unknown_fields_are_listed_at_any_depth(name):
    """A reader must not take a field that nobody checks for a verified one."""
    result = RESULTS[name]
    known = not_covered(result)
    assert not any("." in field for field in known)
    more = copy.deepcopy(result) | {"signed": 1}
    more["certificate"]["signed"] = 1
    expected = {"signed", "certificate.signed"}
    if result["schedule"] is not None:
        more["schedule"]["signed"] = more["certificate"]["boxes"][-1]["signed"] = 1
        expected |= {"schedule.signed", "certificate.boxes.signed"}
    verify(CASES[name], more)
    assert set(not_covered(more)) - set(known) == expected


def test_empty_stages_have_no_nodes_and_no_times():
    """A file could claim any visits to a tier that hosts nothing."""
    instance = Instance.from_tables(
        [[[1.0, 2.0], [0.1, 0.2]]], [1, 1], [[(0, 9)], [(1, 9)]], arrival_s=[0, 0.125, 0.25],
        allow_empty=True, objective="mean_latency",
    )  # fmt: skip
    result = json.loads(json.dumps(solve(instance, "joint_exact").to_dict()))
    assert result["cuts"] == [0, 0, 2]
    verify(instance, result)
    for key, none, lies in (
        ("node", -1, (0, 1)),
        ("start_s", "null", (0.0, 1.5, False, "soon", [])),
        ("end_s", "null", (0.0, 1.5, False, {})),
    ):
        for lie in lies:
            changed = copy.deepcopy(result)
            changed["schedule"][key][1][0] = lie
            with pytest.raises(Refuted, match=f"{key} must be {none} where a stage is empty"):
                verify(instance, changed)


def test_boxes_of_a_bottleneck_are_refuted():
    """Its proof has none, so nothing would check them."""
    changed = copy.deepcopy(RESULTS["bottleneck"])
    changed["certificate"]["boxes"] = RESULTS["makespan"]["certificate"]["boxes"][:1]
    with pytest.raises(Refuted, match="boxes: there must be none"):
        verify(CASES["bottleneck"], changed)
