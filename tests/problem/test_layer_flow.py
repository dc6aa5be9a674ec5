"""Flow through layers: rules, the largest flow by SciPy, and what Helix publishes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from hypsolve.problem.layer_evaluation import check_layout, largest_flow
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from instances.helix_flow import PUBLISHED, helix_flow

SHARED = Path(os.environ.get("HYPSOLVE_SHARED", Path(__file__).parents[3] / "shared"))
FACTS = SHARED / "data" / "helix" / "helix_facts.json"
FIELDS = dict(
    name="two boxes", n_layers=3, kinds={"a": "big", "b": "small"},
    tokens_per_s={"big": (90.0, 40.0), "small": (50.0,)},
    links={(None, "a"): 1e6, ("a", "b"): 1e6, ("b", None): 1e6},
    activation_bytes=8192, token_bytes=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layers", 0, "n_layers must be at least 1, got 0"),
        ("kinds", {}, "kinds must hold at least one machine, got none"),
        ("kinds", {"a": "bug"}, "unknown kind of machine 'a' 'bug'; did you mean big"),
        ("kinds", 3, "kinds must be a mapping, got 3"),
        ("tokens_per_s", {"big": (-1.0,), "small": ()}, "tokens_per_s of 'big' must be"),
        ("links", {("a", "c"): 1.0}, "unknown machine in links 'c'"),
        ("links", {("a", "a"): 1.0}, "links must join two places"),
        ("links", {("a", "b"): -1.0}, "link from 'a' to 'b' must be finite"),
        ("token_bytes", 0, "token_bytes must be positive and finite, got 0"),
    ],
)
def test_a_problem_names_the_field_that_is_wrong(field, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LayerFlowProblem(**FIELDS | {field: value})


def linear_program(problem, ranges):
    """The largest flow as a linear program over the pairs, by SciPy."""
    pairs = []
    for r in ranges:
        pairs += [(None, r.machine)] if r.start == 0 else []
        pairs += [(r.machine, None)] if r.stop == problem.n_layers else []
        pairs += [(r.machine, o.machine) for o in ranges if o.start <= r.stop < o.stop]
    if not pairs:
        return 0.0
    inside = np.array([[(b == r.machine) for _, b in pairs] for r in ranges], float)
    outside = np.array([[(a == r.machine) for a, _ in pairs] for r in ranges], float)
    limits = [problem.tokens_per_s[problem.kinds[r.machine]][r.n_layers - 1] for r in ranges]
    size = [problem.token_bytes if None in p else problem.activation_bytes for p in pairs]
    upper = [problem.links.get(p, 0.0) / s for p, s in zip(pairs, size, strict=True)]
    cost = [-1.0 * (a is None) for a, _ in pairs]
    found = linprog(
        cost, inside, limits, inside - outside, np.zeros(len(ranges)),
        [(0, u) for u in upper],
    )  # fmt: skip
    return -found.fun


def random_problem(rng, n_machines=6, n_layers=6):
    """A problem of some kinds with rates that fall, and links that bind at times."""
    kinds = {f"m{m}": f"k{rng.integers(3)}" for m in range(n_machines)}
    rates = {
        f"k{k}": tuple(rng.integers(20, 200) / np.arange(1, rng.integers(2, 5) + 1) ** 1.2)
        for k in range(3)
    }
    places = [None, *kinds]
    links = {
        (a, b): float(rng.integers(1, 120))
        for a in places
        for b in places
        if a != b and (a is None or b is None or rng.random() < 0.9)
    }
    return LayerFlowProblem(
        name="random", n_layers=n_layers, kinds=kinds, tokens_per_s=rates, links=links,
        activation_bytes=1.0, token_bytes=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_the_largest_flow_is_that_of_a_linear_program(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    ranges = []
    for machine in problem.machines:
        n = int(rng.integers(1, problem.max_layers(machine) + 1))
        start = int(rng.integers(0, problem.n_layers - n + 1))
        ranges.append(HostedRange(machine, start, start + n))
    layout = largest_flow(problem, ranges)
    assert check_layout(problem, layout) == []
    assert layout.tokens_per_s == pytest.approx(linear_program(problem, ranges), abs=1e-7)


def test_a_check_names_each_broken_rule():
    problem = LayerFlowProblem(**FIELDS)
    ranges = (HostedRange("a", 0, 2), HostedRange("b", 2, 3))
    flows = ((None, "a", 30.0), ("a", "b", 200.0), ("b", None, 200.0))
    broken = check_layout(problem, LayerLayout(ranges, flows))
    assert any("link from 'a' to 'b' must carry at most 122.07 tokens/s" in b for b in broken)
    assert any("machine 'a' must pass on what enters it" in b for b in broken)
    assert any("machine 'b' must carry at most 50 tokens/s with 1 layers" in b for b in broken)
    odd = LayerLayout(ranges, (("b", "a", 1.0),))
    assert any("no token can go from 'b' to 'a'" in b for b in check_layout(problem, odd))
    with pytest.raises(ValueError, match="machine 'b' must hold at most 1 layers, got 2"):
        largest_flow(problem, [HostedRange("b", 1, 3)])
    with pytest.raises(ValueError, match="machine 'a' must hold layers up to 3, got 4"):
        largest_flow(problem, [HostedRange("a", 2, 4)])


def as_problem(cluster):
    """A cluster of the facts; its links are tokens per second, the same both ways."""
    links = {}
    for a, b, rate, _ in cluster["links"]:
        a, b = (None if p in ("source", "sink") else str(p) for p in (a, b))
        if None in (a, b):
            links[a, b] = rate * cluster["tok_bytes"]
        else:
            links[a, b] = links[b, a] = rate * cluster["act_bytes"]
    return LayerFlowProblem(
        name="facts", n_layers=cluster["layers"],
        kinds={str(m): kind for m, kind in enumerate(cluster["types"])},
        tokens_per_s=cluster["T"], links=links,
        activation_bytes=cluster["act_bytes"], token_bytes=cluster["tok_bytes"],
    )  # fmt: skip


@pytest.mark.skipif(not FACTS.exists(), reason="needs the shared folder")
def test_published_layouts_of_helix_have_the_flow_that_it_claims():
    facts = json.loads(FACTS.read_text())
    problems = {name: as_problem(cluster) for name, cluster in facts["clusters"].items()}
    assert len(facts["sols"]) == 17
    for path, claimed in facts["sols"].items():
        layout = facts["layouts"][path.replace("ilp_solution.sol", "ilp_sol.ini")]
        n_layers = max(stop for _, stop in layout.values())
        values = [
            largest_flow(problem, [HostedRange(m, *held) for m, held in layout.items()])
            for problem in problems.values()
            if problem.n_layers == n_layers
            and set(layout) <= set(problem.machines)
            and all(b - a <= problem.max_layers(m) for m, (a, b) in layout.items())
        ]
        errors = [abs(value.tokens_per_s / claimed - 1) for value in values]
        assert min(errors) < 1e-8, (path, claimed)


@pytest.mark.skipif(not FACTS.exists(), reason="needs the shared folder")
@pytest.mark.parametrize(
    ("cluster", "model", "name"),
    [
        ("single-24", "llama-70b", "single24-70b"),
        ("single-24", "llama-30b", "single24-30b"),
        ("regions-24", "llama-70b", "dist24-70b"),
        ("regions-24", "llama-30b", "dist24-30b"),
        ("single-42", "llama-70b", "het42-70b"),
    ],
)
def test_clusters_are_those_of_the_facts(cluster, model, name):
    ours = helix_flow(cluster, model)
    theirs = as_problem(json.loads(FACTS.read_text())["clusters"][name])
    rename = dict(zip(ours.machines, theirs.machines, strict=True)) | {None: None}
    assert [ours.kinds[m] for m in ours.machines] == list(theirs.kinds.values())
    assert dict(ours.tokens_per_s) == dict(theirs.tokens_per_s)
    assert len(ours.links) == len(theirs.links)
    for (a, b), value in ours.links.items():
        assert value == pytest.approx(theirs.links[rename[a], rename[b]], rel=1e-9)


@pytest.mark.skipif(not FACTS.exists(), reason="needs the shared folder")
@pytest.mark.parametrize(
    ("rule", "method"),
    [("ilp", "published_helix"), ("swarm", "published_swarm"), ("petals", "published_petals")],
)
def test_published_flows_are_those_of_the_layouts(rule, method):
    layouts = json.loads(FACTS.read_text())["layouts"]
    folders = {
        "single-24": "model_placement/layout_single",
        "regions-24": "model_placement/layout_distributed",
        "single-42": "high_heterogeneity/layout_llama70b",
    }
    for (cluster, model), flow in PUBLISHED[method].items():
        problem = helix_flow(cluster, model)
        layout = layouts[f"artifact_evaluation/{folders[cluster]}/{rule}/{rule}_sol.ini"]
        ranges = [HostedRange(problem.machines[int(m)], *held) for m, held in layout.items()]
        assert largest_flow(problem, ranges).tokens_per_s == pytest.approx(flow, rel=1e-8)
