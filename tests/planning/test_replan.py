"""`replan` against enumeration, and what it takes for a plan."""

import functools
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.planning.few_moves import falling, moves_table, search_moves
from hypsolve.planning.forecast import predict
from hypsolve.planning.planner import split
from hypsolve.planning.replan import Placement, replan
from hypsolve.solvers.clock import NEVER
from hypsolve.solvers.partition.stage_tables import cost_table
from tests.cli.test_cli import run
from tests.helpers.plans import plan_alone

plan = functools.partial(plan_alone, with_upgrades=False, output_tokens=16)
WIRE = hs.Link(bytes_per_s=1e9, latency_s=1e-4)


def tier(name, gpu, n_nodes=1, link=WIRE):
    nodes = tuple(hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu)) for n in range(n_nodes))
    return hs.Tier(name=name, nodes=nodes, link=link)


OLD = hs.Network(
    name="old",
    tiers=(tier("a", "l4", 2), tier("b", "rtx-4090"), tier("c", "a100-80gb", 1, None)),
)
NEW = hs.Network(
    name="new", tiers=(tier("a", "l4"), tier("b", "rtx-4090"), tier("c", "a100-80gb", 2, None))
)


@pytest.fixture(scope="module")
def before():
    return plan("llama-3-8b", OLD, concurrency=4)


def moved(before, tiers, cuts):
    stages = np.searchsorted(cuts, np.arange(cuts[-1]), side="right") - 1
    now = [tiers[k] for k in stages]
    return sum(a != b for a, b in zip(now, before, strict=True))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["bottleneck", "path"]), st.booleans())
def test_every_number_of_moves_is_enumeration(seed, objective, allow_empty):
    rng = np.random.default_rng(seed)
    n_tiers, n_blocks = int(rng.integers(1, 4)), int(rng.integers(3, 8))
    instance = hs.Instance.from_tables(
        rng.integers(1, 9, (1, 2, n_blocks)).astype(float),
        rng.integers(0, 4, n_blocks).astype(float),
        [[(int(rng.integers(2)), float(rng.integers(4, 20))) for _ in range(2)]
         for _ in range(n_tiers)],
        transfer_s=rng.integers(0, 5, (1, n_tiers - 1, n_blocks + 1)).astype(float),
        objective=objective, allow_empty=allow_empty, overlap=bool(rng.integers(2)),
    )  # fmt: skip
    names = [*instance.tier_names, "gone"]
    before = tuple(names[int(n)] for n in rng.integers(0, len(names), n_blocks))
    most = int(rng.integers(0, n_blocks + 1))
    old = Placement(tier_of_block=before, blocks_of_node={})
    best, cuts = search_moves(instance, moves_table(instance, old), most, NEVER)
    least = {}
    for inner in itertools.combinations_with_replacement(range(n_blocks + 1), n_tiers - 1):
        partition = hs.Partition((0, *inner, n_blocks))
        if hs.check(instance, partition):
            continue
        m = moved(before, instance.tier_names, partition.cuts)
        value = hs.evaluate(instance, partition)
        least[m] = min(least.get(m, math.inf), value)
    for m in range(most + 1):
        wanted = min((least[n] for n in least if n == m), default=math.inf)
        assert best[m] == pytest.approx(wanted, rel=1e-12)
        if math.isfinite(wanted):
            chosen = hs.Partition(tuple(cuts[m].tolist()))
            assert hs.evaluate(instance, chosen) == pytest.approx(wanted, rel=1e-12)
            assert moved(before, instance.tier_names, chosen.cuts) == m
    values = [value for _, value in falling(best)]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert (cost_table(instance) >= 0).all()


def test_more_moves_are_never_worse_and_enough_are_the_optimum(before):
    asked = {"concurrency": 4, "output_tokens": 16, "objective": "bottleneck"}
    best = split("llama-3-8b", NEW, **asked).result
    found = [
        replan("llama-3-8b", NEW, before, max_moves=m, concurrency=4) for m in (0, 2, 5, 34)
    ]
    values = [each.objective_s for each in found]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]
    assert values[-1] == pytest.approx(best.objective_s, rel=1e-9)
    assert found[0].partition == before.result.partition
    assert all(each.n_moved <= each.max_moves for each in found)
    assert found[-1].frontier[: len(found[1].frontier)] == found[1].frontier


def test_nodes_load_what_they_did_not_have(before):
    stay = replan("llama-3-8b", NEW, before, max_moves=0, concurrency=4)
    blocks = hs.model("llama-3-8b").blocks
    of_c = sum(blocks[b].weight_bytes for b in stay.partition.stage(2))
    assert stay.moved_bytes == {"c-1": of_c}  # the new node; nobody else loads anything
    moved_on = replan("llama-3-8b", NEW, before, max_moves=3, concurrency=4)
    old, new = before.result.partition, moved_on.partition
    came = set(new.stage(2)) - set(old.stage(2))
    assert moved_on.moved_bytes["c-0"] == sum(blocks[b].weight_bytes for b in came)


def test_blocks_of_a_tier_that_is_gone_must_move(before):
    gone = hs.Network(name="gone", tiers=(OLD.tiers[0], OLD.tiers[2]))
    n = len(before.result.partition.stage(1))
    none = replan("llama-3-8b", gone, before, max_moves=n - 1, concurrency=4)
    assert none.partition is None and math.isinf(none.objective_s) and not none.moved_bytes
    some = replan("llama-3-8b", gone, before, max_moves=n, concurrency=4)
    assert some.n_moved == n


def test_the_command(capsys, tmp_path):
    path, new, before = (tmp_path / name for name in ("net.toml", "new.toml", "plan.json"))
    assert run(capsys, "init", path)[0] == 0
    arguments = ("--model", "llama-3-8b", "--network")
    asked = ("--json", "--objective", "bottleneck", "--output", 16)
    before.write_text(run(capsys, "plan", *arguments, path, *asked)[1])
    new.write_text(path.read_text().replace("count = 2", "count = 1"))
    command = ("replan", *arguments, new, "--before", before, "--max-moves")
    code, out, err = run(capsys, *command, 4)
    assert (code, err) == (0, "")
    assert out.startswith("4 blocks moved\ntier ")
    assert "proved: with at most 4 moved, no split has a bottleneck below" in out
    assert "rented  layers 10-31, head              1 of 1      1.309 GB" in out
    document = json.loads(run(capsys, *command, 4, "--json")[1])
    assert document["n_moved"] <= 4 and document["frontier"][0][0] == 0
    gone = path.read_text()
    new.write_text(gone[: gone.index('[[tiers]]\nname = "box"')] + gone[gone.index(
        '[[tiers]]\nname = "rented"') :])  # fmt: skip
    code, out, _ = run(capsys, *command, 1)
    need = re.fullmatch(
        r"infeasible with at most 1 blocks moved: at least (\d+) blocks must move, not 1\n", out
    )
    assert code == 1 and run(capsys, *command, need[1])[0] == 0
    assert run(capsys, *command, int(need[1]) - 1)[0] == 1
    code, out, _ = run(capsys, *command, 40, "--concurrency", 100_000)
    assert code == 1 and "moved: the tiers together reach block" in out
    assert run(capsys, *command, -1)[0] == 2
    assert run(capsys, *command, 1, "--objective", "p0")[0] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "must be the output of `hypsolve plan --json`"),
        ("{}", "must have the stages and nodes of a plan"),
        ('{"stages": [{"tier": "a", "blocks": [1, 3]}], "nodes": []}', "must have the stages"),
        (
            '{"stages": [{"tier": "a", "blocks": [0, "3"]}], "nodes": []}',
            "must have the stages",
        ),
        ('{"stages": [], "nodes": []}', "the earlier plan must have a partition"),
        ('{"stages": [{"tier": "a", "blocks": [0, 3]}], "nodes": []}', "34 blocks .* got 3"),
        ("{", "truncated JSON"),
        (
            '{"stages": [{"tier": "a", "blocks": [0, 10000000000000]}], "nodes": []}',
            "must have the stages",
        ),
        (
            '{"stages": [{"tier": "a", "blocks": [0, 34]}], "nodes": [], "model": 3}',
            "model must be a string, got 3",
        ),
        (
            '{"stages": [{"tier": "a", "blocks": [0, 34]}], "nodes": [],'
            ' "result": {"cuts": [0, 20]}}',
            r"cuts must agree with the stages, \[0, 34\], got \[0, 20\]",
        ),
        (
            '{"stages": [{"tier": "a", "blocks": [0, 34]}], "nodes": [], "cuts": "all"}',
            r"cuts must agree with the stages, \[0, 34\], got 'all'",
        ),
    ],
)
def test_what_is_no_plan(content, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises((ValueError, TypeError), match=message):
        replan("llama-3-8b", OLD, path, max_moves=3)


def test_what_was_asked_is_asked_again(tmp_path):
    found = plan(
        "llama-3-8b", OLD, prompt_tokens=4000, output_tokens=20, concurrency=3, weights="int8"
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found.to_dict()))
    for before in (found, path):
        again = replan("llama-3-8b", NEW, before, max_moves=40, weights="int8")
        best = split(
            "llama-3-8b", NEW, prompt_tokens=4000, output_tokens=20, concurrency=3,
            weights="int8", objective="bottleneck",
        ).result  # fmt: skip
        assert again.objective_s == pytest.approx(best.objective_s, rel=1e-12)
        other = replan("llama-3-8b", NEW, before, max_moves=40, weights="int8", prompt_tokens=9)
        assert other.objective_s < again.objective_s
    path.write_text(json.dumps({**found.to_dict(), "prompt_tokens": "9"}))
    with pytest.raises(TypeError, match="prompt_tokens must be a whole number, got '9'"):
        replan("llama-3-8b", NEW, path, max_moves=4, weights="int8")


def test_plan_files_of_version_1_are_read_and_other_versions_refused(before, tmp_path):
    """Version 1 stated neither format nor version, and had other names for the forecast."""
    path, document = tmp_path / "plan.json", before.to_dict()
    assert (document["format"], document["version"]) == ("hypsolve-plan", 3)
    first = {name: document[name] for name in document if name not in ("format", "version")}
    first["service"], first["changes"] = first.pop("forecast"), first.pop("upgrades")
    path.write_text(json.dumps(first))
    stay = replan("llama-3-8b", NEW, path, max_moves=0)
    assert stay.partition == before.result.partition
    for wrong, message in (
        ({"version": 4}, "version must be from 1 to 3, got 4"),
        ({"format": "hypsolve-instance"}, "format must be 'hypsolve-plan', got 'hyps"),
    ):
        path.write_text(json.dumps(document | wrong))
        with pytest.raises(ValueError, match=message):
            replan("llama-3-8b", NEW, path, max_moves=0)


def test_a_plan_of_another_model_or_format_is_refused(before):
    for model, weights in (("mistral-7b", None), ("llama-3-8b", "int4")):
        with pytest.raises(ValueError, match=r"must be for '[\w-]+', got one for 'llama-3-8b'"):
            replan(model, NEW, before, max_moves=0, weights=weights)


def test_one_replan_goes_on_from_another(before, tmp_path):
    first = replan("llama-3-8b", NEW, before, max_moves=2)
    path = tmp_path / "replan.json"
    path.write_text(json.dumps(first.to_dict()))
    stay = replan("llama-3-8b", NEW, path, max_moves=0)
    assert stay.partition == first.partition and stay.moved_bytes == {}
    direct = replan("llama-3-8b", NEW, before, max_moves=40)
    assert replan("llama-3-8b", NEW, path, max_moves=40).objective_s == direct.objective_s


def test_nodes_that_cannot_hold_the_stage_load_nothing(before):
    small = hs.Node(name="a-small", gpu=hs.gpu("l4"), memory_bytes=2e6)
    wide = replace(OLD.tiers[0], nodes=(*OLD.tiers[0].nodes, small))
    network = hs.Network(name="more", tiers=(wide, *OLD.tiers[1:]))
    assert replan("llama-3-8b", network, before, max_moves=0).moved_bytes == {}


def test_bad_arguments(before):
    with pytest.raises(ValueError, match="replan: max_moves must be at least 0, got -1"):
        replan("llama-3-8b", OLD, before, max_moves=-1)
    with pytest.raises(
        ValueError, match="unknown objective 'p0'; choose one of bottleneck, path"
    ):
        replan("llama-3-8b", OLD, before, max_moves=1, objective="p0")
    tiny = hs.Network(name="tiny", tiers=(tier("a", "t4", 1, None),))
    with pytest.raises(ValueError, match="the earlier plan must have a partition"):
        replan("llama-3-8b", OLD, plan("llama-3-70b", tiny), max_moves=1)


def test_replan_keeps_weights_load_and_runtime_of_a_plan_file(tmp_path):
    """And simulates its answer with them, unless others are given."""
    asked = {"rate_per_s": 3.0, "ttft_slo_s": 2.0, "runtime": "vllm", "max_num_seqs": 32}
    first = plan("llama-3-8b", OLD, concurrency=4, weights="awq", **asked)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(first.to_dict()))
    again = replan("llama-3-8b", NEW, path, max_moves=4)
    assert again.query.weights == "awq" and again.deployment.model.name == "llama-3-8b-awq"
    assert again.query.runtime == first.query.runtime and again.query.load == first.query.load
    expected = predict(again.deployment, again.partition, first.query.load)
    assert again.forecast.latency_s == expected.latency_s
    assert again.forecast.slo_attainment == expected.slo_attainment
    users = replan("llama-3-8b", NEW, path, max_moves=4, users=3)
    assert users.query.users == 3 and users.query.ttft_slo_s == 2.0
    (tmp_path / "again.json").write_text(json.dumps(users.to_dict()))
    third = replan("llama-3-8b", NEW, tmp_path / "again.json", max_moves=0)
    assert third.query.users == 3 and third.query.weights == "awq"


@pytest.mark.parametrize(
    ("earlier", "arguments", "expected"),
    [
        ("path", {}, "path"),
        ("bottleneck", {}, "bottleneck"),
        ("p0", {}, "path"),
        ("path", {"objective": "bottleneck"}, "bottleneck"),
        ("bottleneck", {"runtime": "llama.cpp"}, "path"),
    ],
)
def test_replan_keeps_the_objective_of_a_plan(earlier, arguments, expected, tmp_path):
    """A plan for the least latency was replanned for the bottleneck: 3.4 s became 62 s."""
    first = plan("llama-3-8b", OLD, concurrency=4, objective=earlier)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(first.to_dict()))
    assert replan("llama-3-8b", NEW, path, max_moves=2, **arguments).query.objective == expected


def test_weights_are_read_from_the_model_name_of_an_older_plan(tmp_path):
    """Versions 1 and 2 did not state them, so replan refused its own model."""
    first = plan("llama-3-8b", OLD, concurrency=4, weights="q4_k_m")
    document = first.to_dict() | {"version": 2}
    for key in ("weights", "runtime", "users", "think_time_s", "ttft_slo_s", "tpot_slo_s"):
        del document[key]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    again = replan("llama-3-8b", NEW, path, max_moves=0)
    assert again.deployment.model.name == "llama-3-8b-q4_k_m"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "vllm"}, "runtime must be a table, got 'vllm'"),
        ({"runtime": {"name": "x", "seqs": 1}}, "unknown key of the runtime in .*plan.json"),
        ({"runtime": {"name": "x", "max_num_seqs": 0}}, "max_num_seqs must be at least 1"),
        ({"objective": "speed"}, "unknown objective of .*plan.json 'speed'"),
        ({"users": -1}, "plan: users must be at least 1, got -1"),
        ({"rate_per_s": "fast"}, "plan: rate_per_s must be a number, got 'fast'"),
        ({"weights": 3}, "unknown weights 3"),
    ],
)
def test_bad_values_of_a_plan_file_are_refused(change, message, before, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(before.to_dict() | change))
    with pytest.raises((ValueError, TypeError), match=message):
        replan("llama-3-8b", NEW, path, max_moves=0)
