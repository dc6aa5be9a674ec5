"""Frozen instances: no method beats a recorded bound, and recorded optima are reached."""

import math

import pytest

from hypsolve import METHODS, Objective, Status, solve
from instances import freeze

QUICK = [name for name, method in METHODS.items() if not name.startswith(("part", "joint"))]
CASES = [
    (method, name)
    for method in QUICK
    for name in freeze.frozen()
    if METHODS[method].decides == "partition"
    or freeze.index()[name]["objective"] in METHODS[method].objectives
]


@pytest.mark.parametrize(("method", "name"), CASES)
def test_no_method_beats_a_recorded_bound(method, name):
    instance, known = freeze.load_frozen(name), freeze.index()[name]
    result = solve(instance, method)
    assert result.objective_s >= known["bound_s"] * (1 - 1e-6)
    assert known["best_s"] >= result.bound_s * (1 - 1e-6)


@pytest.mark.parametrize("name", freeze.frozen())
def test_hypsplit_dp_reaches_what_is_recorded(name):
    instance, known = freeze.load_frozen(name), freeze.index()[name]
    if instance.objective.is_scheduled:
        assert 0 < known["bound_s"] <= known["best_s"] * (1 + 1e-6) < math.inf
        return
    result = solve(instance, "hypsplit_dp")
    assert result.objective_s == pytest.approx(known["best_s"], rel=1e-9)
    assert (result.status is Status.INFEASIBLE) == math.isinf(known["best_s"])
    assert instance.objective in (Objective.BOTTLENECK, Objective.PATH, Objective.P0)
