"""Methods for flow through layers, against all layouts of tiny clusters."""

import itertools

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.layer_evaluation import check_layout, largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import HostedRange
from hypsolve.problem.layer_result import LayerFlowOutcome
from hypsolve.solve_layer_flow import LAYER_FLOW_METHODS, LayerFlowMethod
from hypsolve.verify.layer_flow import verify_layer_flow
from hypsolve.verify.reading import Refuted
from instances.helix_flow import helix_flow


def tiny(seed):
    """A cluster of 3 or 4 machines; every second one has slow links between two parts."""
    rng = np.random.default_rng(seed)
    n_machines, n_layers = int(rng.integers(3, 5)), int(rng.integers(3, 5))
    kinds = {f"m{m}": f"k{rng.integers(2)}" for m in range(n_machines)}
    rates = {
        f"k{k}": tuple(float(rng.integers(40, 200)) / j for j in range(1, rng.integers(2, 5)))
        for k in range(2)
    }
    slow = float(rng.integers(5, 90)) if seed % 2 else 1e6
    part = {m: int(rng.integers(2)) for m in kinds}
    links = {(a, b): 1e6 for a in [None, *kinds] for b in [None, *kinds] if a != b}
    links |= {(a, b): slow for a in kinds for b in kinds if part[a] != part[b]}
    return LayerFlowProblem(
        name=f"tiny {seed}", n_layers=n_layers, kinds=kinds, tokens_per_s=rates, links=links,
        activation_bytes=1.0, token_bytes=1.0,
    )  # fmt: skip


def best_flow(problem):
    """The largest flow of all layouts."""
    choices = [
        [None]
        + [
            HostedRange(m, start, start + k)
            for k in range(1, problem.max_layers(m) + 1)
            for start in range(problem.n_layers - k + 1)
        ]
        for m in problem.machines
    ]
    best = 0.0
    for held in itertools.product(*choices):
        ranges = [each for each in held if each]
        covered = {layer for r in ranges for layer in range(r.start, r.stop)}
        if len(covered) == problem.n_layers:
            best = max(best, largest_flow(problem, ranges).tokens_per_s)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_methods_agree_with_all_layouts(seed):
    problem = tiny(seed)
    best = best_flow(problem)
    for method in LAYER_FLOW_METHODS:
        found = hs.solve(problem, method, time_limit_s=20)
        assert found.tokens_per_s <= best * (1 + 1e-6) + 1e-9
        assert found.bound_tokens_per_s >= best * (1 - 1e-6)
        if LAYER_FLOW_METHODS[method].exact:
            assert found.tokens_per_s == pytest.approx(best, rel=1e-4, abs=1e-3)
        if found.layout is not None:
            assert check_layout(problem, found.layout) == []
        if found.certificate:
            assert found.certificate["tokens_per_s"] == found.bound_tokens_per_s
            assert verify_layer_flow(problem, found.certificate).startswith("no layout has")


@pytest.mark.parametrize(
    ("cluster", "model", "at_least", "gap"),
    [
        ("single-24", "llama-70b", 2045.6, 1e-4),
        ("regions-24", "llama-70b", 1754.3, 1e-4),
        ("single-42", "llama-70b", 5905.7, 0.03),
        ("single-24", "llama-30b", 1419.9, 0.07),
        ("regions-24", "llama-30b", 1353.0, 0.11),
    ],
)
def test_stages_pass_what_helix_publishes(cluster, model, at_least, gap):
    problem = helix_flow(cluster, model)
    found = hs.solve(problem, "stage_dp", time_limit_s=60)
    assert found.tokens_per_s >= at_least
    assert found.gap <= gap
    assert found.certificate["tokens_per_s"] == found.bound_tokens_per_s
    assert verify_layer_flow(problem, found.certificate).startswith("no layout has")


def test_a_certificate_that_proves_too_much_is_refuted():
    problem = helix_flow("regions-24")
    found = hs.solve(problem, "stage_dp", time_limit_s=60)
    certificate = dict(found.certificate) | {"units": 8000, "tokens_per_s": 1755.0}
    assert certificate["parts"]
    verify_layer_flow(problem, certificate)
    with pytest.raises(Refuted, match="the machines are worth"):
        verify_layer_flow(problem, certificate | {"tokens_per_s": 1754.0})
    with pytest.raises(Refuted, match="the machines are worth"):
        verify_layer_flow(problem, certificate | {"parts": []})
    fewer = certificate["parts"][:-1]
    with pytest.raises(Refuted, match="parts must hold every machine once"):
        verify_layer_flow(problem, certificate | {"parts": fewer})
    mixed = [dict(part) for part in certificate["parts"]]
    mixed[0]["machines"], mixed[1]["machines"] = (
        mixed[0]["machines"][1:],
        [mixed[0]["machines"][0], *mixed[1]["machines"]],
    )
    with pytest.raises(Refuted, match="carries the whole flow"):
        verify_layer_flow(problem, certificate | {"parts": mixed})


def test_solve_refuses_what_is_no_method_or_no_answer():
    problem = tiny(0)
    with pytest.raises(ValueError, match="unknown method for a LayerFlowProblem 'stage_pd'"):
        hs.solve(problem, "stage_pd")
    with pytest.raises(TypeError, match="unknown option 'worker'; did you mean workers"):
        hs.solve(problem, "layer_cpsat", worker=2)

    def odd(problem, *, time_limit_s, seed):
        layout = largest_flow(problem, [HostedRange("m0", 0, 1)])
        return LayerFlowOutcome("optimal", layout, bound_tokens_per_s=1.0)

    with pytest.raises(RuntimeError, match="claims optimal with a gap"):
        hs.solve(problem, LayerFlowMethod(odd))
    with pytest.raises(ValueError, match="status optimal does not go with no layout"):
        LayerFlowOutcome("optimal")
    with pytest.raises(TypeError, match="must return a LayerFlowOutcome, got None"):
        hs.solve(problem, lambda problem, *, time_limit_s, seed: None)


def test_a_cluster_without_room_has_no_layout():
    problem = LayerFlowProblem(
        name="none", n_layers=3, kinds={"a": "k"}, tokens_per_s={"k": (5.0,)},
        links={(None, "a"): 1.0, ("a", None): 1.0}, activation_bytes=1, token_bytes=1,
    )  # fmt: skip
    found = hs.solve(problem, "stage_dp", time_limit_s=5)
    assert found.layout is None
    assert found.bound_tokens_per_s < 1e-6
