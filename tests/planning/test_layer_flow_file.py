"""A saved result on a `LayerFlowProblem` is read back, and a changed one is refused."""

import json

import jsonschema
import pytest

import hypsolve as hs
from hypsolve.planning.json_schema import schema
from hypsolve.verify.layer_flow import verify_layer_flow

RATES = {"big": (90.0, 40.0, 25.0), "small": (50.0, 24.0)}


def problem(**changes):
    kinds = {"a": "big", "b": "small", "c": "small"}
    places = [None, *kinds]
    given = {
        "name": "three boxes", "n_layers": 3, "kinds": kinds, "tokens_per_s": RATES,
        "links": {(a, b): 1e6 for a in places for b in places if a != b},
        "activation_bytes": 1.0, "token_bytes": 1.0,
    }  # fmt: skip
    return hs.LayerFlowProblem(**{**given, **changes})


@pytest.fixture(params=list(hs.LAYER_FLOW_METHODS))
def result(request):
    return hs.solve(problem(), request.param, time_limit_s=20)


def test_a_result_is_read_back(result, tmp_path):
    path = tmp_path / "flow.json.gz"
    result.save(path)
    again = hs.load_layer_flow(path, problem(name="another name"))
    assert again.layout == result.layout and again.status is result.status
    table = result.to_dict()
    assert {**again.to_dict(), "problem": table["problem"]} == table
    jsonschema.validate(json.loads(json.dumps(table)), schema("layer-flow"))
    check = jsonschema.Draft202012Validator(schema("layer-flow"))
    for name in table:
        assert not check.is_valid({key: of for key, of in table.items() if key != name}), name
    if result.certificate is not None:
        assert again.bound_tokens_per_s < float("inf")
        assert "no layout has a flow" in verify_layer_flow(problem(), again.certificate)


def test_no_layout_is_a_result_too(tmp_path):
    none = problem(n_layers=30)
    result = hs.solve(none, "stage_dp")
    result.save(tmp_path / "flow.json")
    again = hs.load_layer_flow(tmp_path / "flow.json", none)
    assert again.layout is None and again.to_dict() == result.to_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "hypsolve-plan"}, "format must be 'hypsolve-layer-flow', got 'hypsolve-p"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"digest": "0" * 64}, "digest must be that of the problem"),
        ({"status": "best"}, "status"),
        ({"status": "infeasible"}, "layout"),
        ({"tokens_per_s": 1e3}, "tokens_per_s must be "),
        ({"gap": 0.7}, "gap must be "),
        ({"layout": None}, "layout"),
        ({"layout": {"ranges": [["a", 0]], "flows": []}}, "ranges must hold "),
        ({"layout": {"ranges": [["a", 0, 3]], "flows": [["a"]]}}, "flows must hold "),
        ({"layout": {"ranges": [["d", 0, 3]], "flows": []}}, "the layout breaks a rule: "),
        ({"layout": {"ranges": [["b", 0, 3]], "flows": []}}, "the layout breaks a rule: "),
        ({"bound_tokens_per_s": -1.0}, "bound_tokens_per_s must be"),
        ({"more": 1}, "more"),
    ],
)
def test_what_was_changed_is_refused(changes, words, tmp_path):
    path = tmp_path / "flow.json"
    table = hs.solve(problem(), "stage_dp").to_dict()
    path.write_text(json.dumps({**table, **changes}))
    with pytest.raises((ValueError, TypeError), match=words) as error:
        hs.load_layer_flow(path, problem())
    assert str(path) in str(error.value)


def test_other_problems_are_refused(tmp_path):
    path = tmp_path / "flow.json"
    hs.solve(problem(), "stage_dp").save(path)
    with pytest.raises(ValueError, match="digest must be that of the problem"):
        hs.load_layer_flow(path, problem(token_bytes=2.0))
    with pytest.raises(TypeError, match="problem must be a LayerFlowProblem, got 'three"):
        hs.load_layer_flow(path, "three boxes")
    with pytest.raises(ValueError, match=r"must end in .json or .json.gz"):
        hs.solve(problem(), "stage_dp").save(tmp_path / "flow.txt")
