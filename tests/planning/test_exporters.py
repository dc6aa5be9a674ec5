"""Exports, read back as the runtimes read them: the rules of each, written anew."""

import ast
import functools
import itertools
import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import yaml

import hypsolve as hs
from hypsolve.planning import planner, runtime_restrictions
from hypsolve.planning.exporters import (
    BY_LAYER,
    MODULES,
    NAMES_MODULES,
    ONE_PIPELINE,
    RUNTIMES,
    cautions,
    export,
    not_expressible,
)
from hypsolve.planning.runtime_restrictions import nearest_plan
from tests.cli.test_cli import run

plan = functools.partial(hs.plan, with_upgrades=False, output_tokens=16)
near_plan = functools.partial(nearest_plan, with_upgrades=False)
WIRE = hs.Link(bytes_per_s=1e9, latency_s=1e-4)


def tier(name, gpu, n_nodes=1, link=None, **fields):
    nodes = tuple(
        hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu), **fields) for n in range(n_nodes)
    )
    return hs.Tier(name=name, nodes=nodes, link=link)


@cache
def planned(cuts, n_nodes=1):
    """A plan of these cuts for Llama-3-8B, whatever they cost."""
    tiers = [tier(f"t{k}", "h200", n_nodes, WIRE) for k in range(len(cuts) - 2)]
    network = hs.Network(name="net", tiers=(*tiers, tier("last", "h200")))
    wanted = {}
    for k in range(len(cuts) - 1):
        for b in range(cuts[k], cuts[k + 1]):
            name = {0: "embedding", 33: "head"}.get(b, b - 1)
            wanted[name] = network.tiers[k].name
    return plan("llama-3-8b", hs.NetworkFile(network=network, pins=wanted))


CUTS = [(0, 10, 20, 34), (0, 2, 34), (0, 32, 34), (0, 12, 13, 14, 34), (0, 34)]


def layers_of(cuts):
    """Stage of each layer."""
    stages = np.searchsorted(cuts, np.arange(34), side="right") - 1
    return stages[1:-1].tolist()


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("runtime", ["vllm", "sglang"])
def test_vllm_and_sglang_take_counts_of_layers(cuts, runtime):
    text = export(planned(cuts), runtime)
    (counts,) = re.findall(r"^export \w+_PP_LAYER_PARTITION=([\d,]+)$", text, re.M)
    sizes = re.findall(r"--(?:pp|pipeline-parallel)-size (\d+)", text)
    size, n_commands = sizes[0], len(sizes)
    assert set(sizes) == {size} and n_commands == (int(size) if runtime == "sglang" else 1)
    partitions = [int(layer) for layer in counts.split(",")]
    assert len(partitions) == int(size) and sum(partitions) == 32
    stages = [k for k, n in enumerate(partitions) for _ in range(n)]
    assert stages == layers_of(cuts)


@pytest.mark.parametrize("cuts", CUTS)
def test_llama_cpp_spreads_shares_over_one_slot_more_than_layers(cuts):
    text = export(planned(cuts), "llama.cpp")
    shares = np.array(re.search(r"-ts ([\d,]+)", text)[1].split(","), dtype=np.float32)
    splits = np.cumsum(shares, dtype=np.float32)
    splits /= splits[-1]
    slots = np.arange(33, dtype=np.float32) / np.float32(33)
    stages = np.searchsorted(splits, slots, side="right")
    assert stages[:-1].tolist() == layers_of(cuts)
    assert stages[-1] == len(cuts) - 2  # the head
    servers = re.search(r"--rpc (\S+)", text)[1].split(",")
    tiers = [*(f"t{k}" for k in range(len(cuts) - 2)), "last"]
    assert servers == [f"{name}-0:50052" for name in tiers]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("model_type", MODULES)
def test_accelerate_maps_every_module(cuts, model_type):
    names = MODULES[model_type]
    device_map = json.loads(export(planned(cuts), "accelerate", model_type=model_type))
    stages = [device_map.pop(f"{names.layers}.{layer}") for layer in range(32)]
    assert stages == layers_of(cuts)
    last = len(cuts) - 2
    ends = {**dict.fromkeys(names.embedding, 0), names.norm: last, names.head: last}
    assert device_map == ends


@pytest.mark.parametrize("cuts", CUTS)
def test_torch_begins_a_stage_at_each_module_named(cuts):
    text = export(planned(cuts), "torch")
    named = re.findall(r'"model\.layers\.(\d+)": SplitPoint.BEGINNING', text)
    begins = [int(layer) for layer in named]
    assert np.searchsorted(begins, np.arange(32), side="right").tolist() == layers_of(cuts)
    ast.parse(text)


@pytest.mark.parametrize("cuts", [*CUTS, (0, 1, 34)])
def test_deepspeed_takes_the_cuts(cuts):
    text = export(planned(cuts), "deepspeed")
    (parts,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
    )
    assert tuple(parts) == cuts


@pytest.mark.parametrize("cuts", CUTS)
def test_megatron_layout(cuts):
    text = export(planned(cuts), "megatron")
    layout = re.search(r'layout "(.+)"', text)[1]
    spelt = re.sub(r"t\*(\d+)", lambda m: "t" * int(m[1]), layout).split("|")
    assert spelt[0].startswith("E") and spelt[-1].endswith("L")
    assert f"-size {len(spelt)}\n" in text
    stages = [k for k, stage in enumerate(spelt) for each in stage if each == "t"]
    assert stages == layers_of(cuts)


def test_petals_has_a_server_for_each_node():
    text = export(planned((0, 12, 34), n_nodes=2), "petals")
    servers = re.findall(r"--block_indices (\d+):(\d+) (--\w+)(?: PEERS)?  # on (\S+)", text)
    assert servers == [
        ("0", "11", "--new_swarm", "t0-0"), ("0", "11", "--initial_peers", "t0-1"),
        ("11", "32", "--initial_peers", "last-0"),
    ]  # fmt: skip


def test_json_is_the_plan():
    document = json.loads(export(planned((0, 1, 34)), "json"))
    assert [stage["blocks"] for stage in document["stages"]] == [[0, 1], [1, 34]]
    assert document["stages"][0]["nodes"] == ["t0-0"]


@pytest.mark.parametrize("runtime", ONE_PIPELINE)
def test_runtimes_of_one_pipeline_refuse_several_nodes(runtime):
    with pytest.raises(ValueError, match="runs one pipeline, and tier 't0' has 2 nodes"):
        export(planned((0, 12, 34), n_nodes=2), runtime)


@pytest.mark.parametrize("runtime", BY_LAYER)
@pytest.mark.parametrize("cuts", [(0, 1, 34), (0, 33, 34)])
def test_what_a_runtime_cannot_express_is_refused(runtime, cuts):
    with pytest.raises(ValueError, match=f"{runtime} cannot express this plan: stage . has on"):
        export(planned(cuts), runtime)


def test_an_empty_tier_is_left_out():
    wire = hs.Link(bytes_per_s=2e6, latency_s=1e-3)
    site = hs.NetworkFile(
        network=hs.Network(
            name="net", tiers=(tier("slow", "jetson-orin-nano", 1, wire), tier("fast", "h200"))
        ),
        min_blocks=(0, None),
    )
    found = plan("phi-3-mini", site, concurrency=1)
    assert found.result.partition.cuts == (0, 0, 34)
    for runtime in RUNTIMES:
        assert not_expressible(found, runtime) == "" and near_plan(found, runtime) is found
    assert "PARTITION=32\n" in export(found, "vllm")
    assert "--rpc fast-0:50052 -ts 33 " in export(found, "llama.cpp")
    (stage,) = json.loads(export(found, "json"))["stages"]
    assert stage == {"tier": "fast", "nodes": ["fast-0"], "blocks": [0, 34]}


@pytest.mark.parametrize("pin", ["", 'pin = ["embedding"]'])
def test_tiers_that_may_be_empty_are_if_that_is_better(tmp_path, pin):
    """The embedding alone cannot be on the slow tier: it goes on, or a layer comes."""
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST.replace('"slow"', f'"slow"\nmin_blocks = 0\n{pin}'))
    found = plan("phi-3-mini", path, concurrency=1, objective="path")
    near = near_plan(found, "vllm")
    instance = found.result.instance
    values = {cut: hs.evaluate(instance, hs.Partition((0, cut, 34))) for cut in range(2, 33)}
    if not pin:
        values[0] = hs.evaluate(instance, hs.Partition((0, 0, 34)))
    assert near.result.objective_s == pytest.approx(min(values.values()), rel=1e-12)
    assert near.result.partition.cuts[1] == (2 if pin else 0)


def test_one_pipeline_is_planned_for_one_node_of_each_tier():
    """Pooled, the two would take more layers than the one that a runtime uses."""
    network = hs.Network(
        name="net", tiers=(tier("pair", "rtx-4090", 2, WIRE), tier("one", "a100-80gb"))
    )
    found = plan("llama-3-8b", network, concurrency=4)
    near = near_plan(found, "vllm")
    alone = near.result.instance
    values = [hs.evaluate(alone, hs.Partition((0, cut, 34))) for cut in range(2, 33)]
    assert near.result.objective_s == pytest.approx(min(values), rel=1e-12)
    assert near.result.objective_s < hs.evaluate(alone, found.result.partition)
    assert [n.node for n in near.nodes] == ["pair-0", "one-0"]


PAIR = """
[[tiers]]
name = "pair"
nodes = [{gpu = "rtx-4090"}, {gpu = "rtx-3090"}, {gpu = "t4", memory_gib = 2}]
link = {gbps = 1, latency_ms = 0.5}
inner = {gbps = 25, latency_ms = 0.05}
[[tiers]]
name = "one"
nodes = [{gpu = "a100-80gb"}]
"""


@pytest.mark.parametrize("memory_gib", [2, 12])
@pytest.mark.parametrize("objective", ["bottleneck", "path"])
def test_linked_nodes_of_a_tier_become_stages(memory_gib, objective, tmp_path):
    """The best of all nodes and rows of nodes, found here by planning a network for each."""
    path = tmp_path / "net.toml"
    path.write_text(PAIR.replace("memory_gib = 2", f"memory_gib = {memory_gib}"))
    asked = {"concurrency": 4, "objective": objective, "output_tokens": 16}
    found = plan("llama-3-8b", path, **asked)
    near = near_plan(found, "vllm")
    inner = hs.Link(bytes_per_s=25e9 / 8, latency_s=0.05e-3)
    outer = hs.Link(bytes_per_s=1e9 / 8, latency_s=0.5e-3)
    gpus = {"rtx-4090": {}, "rtx-3090": {}, "t4": {"memory_bytes": memory_gib * 2**30}}
    values = {}
    for n in (1, 2, 3):
        for row in itertools.permutations(gpus, n):
            tiers = [
                tier(gpu, gpu, 1, inner if gpu != row[-1] else outer, **gpus[gpu])
                for gpu in row
            ]
            network = hs.Network(name="n", tiers=(*tiers, tier("one", "a100-80gb")))
            site = hs.NetworkFile(network=network, pins={0: row[0], 31: "one"})
            values[row] = planner.split("llama-3-8b", site, **asked).result.objective_s
    assert len(values) == 15 and near.result.objective_s == pytest.approx(
        min(values.values()), rel=1e-12
    )
    best = [node.removeprefix("pair-").removesuffix("-0") for node in used_by(near)[:-1]]
    assert values[tuple(best)] == pytest.approx(min(values.values()), rel=1e-12)


def used_by(found):
    return [node.node for node in found.nodes if node.is_used]


def test_what_fits_on_no_node_may_fit_on_a_row(tmp_path, capsys):
    path = tmp_path / "box.toml"
    path.write_text(
        """
[[tiers]]
name = "box"
nodes = [{gpu = "rtx-4090", count = 2}]
inner = {gbps = 50, latency_ms = 0.05}
"""
    )
    asked = ("plan", "--model", "llama-3-70b", "--weights", "int4", "--concurrency", 4)
    code, out, _ = run(capsys, *asked, "--network", path)
    assert code == 1 and "nodes of 'box' as stages in a row: " in out
    code, out, err = run(capsys, *asked, "--network", path, "--export", "vllm")
    assert code == 0 and re.search(r"PARTITION=\d+,\d+\n", out)
    assert "vllm cannot express the best plan: nothing fits as it is\n" in err
    assert "planned for it instead, on box-rtx-4090-0, box-rtx-4090-1: proved optimal" in err
    code, out, err = run(capsys, *asked, "--network", path, "--export", "petals")
    assert (code, err) == (1, "") and out.startswith("llama-3-70b-gptq-int4 on box")
    path.write_text(path.read_text().replace("inner", "# inner"))
    code, out, err = run(capsys, *asked, "--network", path, "--export", "vllm")
    assert (
        code == 1 and "nor does a plan fit that it can express: the tiers together reach" in err
    )
    assert "with a link `inner` in the network file (box), they can be stages in a row" in out


def test_what_fits_may_not_fit_in_one_pipeline(tmp_path, capsys):
    """Nothing but the embedding fits on the first tier: no layer, as the runtime needs one."""
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST.replace('"jetson-orin-nano"', '"t4", memory_gib = 0.25'))
    asked = ("plan", "--model", "phi-3-mini", "--network", path, "--concurrency", 1)
    assert run(capsys, *asked)[0] == 0
    code, out, err = run(capsys, *asked, "--export", "vllm")
    assert (code, out) == (1, "")
    why, nor, *details = err.splitlines()
    assert why.startswith("vllm cannot express the best plan: stage 0 has only the embedding")
    assert nor.startswith("nor does a plan fit that it can express: ") and details


def test_of_too_many_pipelines_some_are_tried(monkeypatch):
    """A tier is then its quickest node, its largest, or all in a row."""
    nodes = (
        hs.Node(name="quick", gpu=hs.gpu("rtx-4090"), memory_bytes=9 * 2**30),
        hs.Node(name="large", gpu=hs.gpu("apple-m1-max")),
        hs.Node(name="neither", gpu=hs.gpu("t4")),
    )
    inner = hs.Link(bytes_per_s=3e9, latency_s=5e-5)
    tiers = (hs.Tier(name="pair", nodes=nodes, link=WIRE), tier("one", "a100-80gb"))
    site = hs.NetworkFile(
        network=hs.Network(name="n", tiers=tiers), inner_links=(inner, None),
        min_blocks=(None, 3),
    )  # fmt: skip
    rows = runtime_restrictions._pipelines(site, "vllm")
    assert len(rows) == 15
    monkeypatch.setattr(runtime_restrictions, "MAX_PIPELINES", 14)
    some = runtime_restrictions._pipelines(site, "vllm")
    names = [[n.name for t in each.network.tiers[:-1] for n in t.nodes] for each in some]
    assert names == [["large"], ["quick"], ["quick", "large", "neither"]]
    assert some[-1].min_blocks == (None, None, None, 3) and len(some[-1].inner_links) == 4
    monkeypatch.setattr(runtime_restrictions, "MAX_PIPELINES", 2)
    (all_of_them,) = runtime_restrictions._pipelines(site, "vllm")
    assert len(all_of_them.network.tiers) == 4
    assert runtime_restrictions._pipelines(site, "json") == [site]


@pytest.mark.parametrize(
    "change",
    [
        ('name = "pair"', 'name = "pair"\npin = ["embedding"]'),
        ('name = "pair"', 'name = "pair"\nmax_blocks = 30'),
        ("inner = {gbps = 25, latency_ms = 0.05}", ""),
    ],
)
def test_a_tier_that_must_stay_one_keeps_its_quickest_node(tmp_path, capsys, change):
    path = tmp_path / "net.toml"
    path.write_text(PAIR.replace(*change))
    near = near_plan(plan("llama-3-8b", path, concurrency=4), "vllm")
    assert [node.node for node in near.nodes] == ["pair-rtx-4090-0", "one-a100-80gb-0"]
    assert near.network.pins.get("embedding", "pair") == "pair"
    command = ("plan", "--model", "llama-3-8b", "--network", path, "--export", "vllm")
    err = run(capsys, *command, "--concurrency", 4)[2]
    hint = "; a link `inner` in the network file (pair) lets them in" * (change[1] == "")
    assert err.splitlines()[-1] == f"left out: pair-rtx-3090-0{hint}"


def test_what_can_be_expressed_is_its_own_near_plan():
    found = planned((0, 12, 34))
    assert near_plan(found, "vllm") is found
    tiny = plan("llama-3-70b", hs.Network(name="tiny", tiers=(tier("a", "t4"),)))
    with pytest.raises(ValueError, match="nearest_plan: no plan to start from, infeasible"):
        near_plan(tiny, "petals")
    assert not near_plan(tiny, "vllm").fits


def test_names_are_quoted_and_stay_on_a_line():
    with pytest.raises(ValueError, match="name must be printable, got"):
        tier("a\nrm -rf x", "l4")
    odd = hs.Network(
        name="net",
        tiers=(hs.Tier(name="t", nodes=(hs.Node(name="old box; echo", gpu=hs.gpu("h200")),)),),
    )
    text = export(plan("phi-3-mini", odd), "llama.cpp")
    assert "--rpc 'old box; echo:50052'" in text


SLOW_FIRST = """
[[tiers]]
name = "slow"
nodes = [{gpu = "jetson-orin-nano"}]
link = {gbps = 8, latency_ms = 0.1}
[[tiers]]
name = "fast"
nodes = [{gpu = "h200"}]
"""


@pytest.fixture
def slow_first(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST)
    return path


def test_the_nearest_plan_is_the_best_that_can_be_expressed(slow_first):
    site = hs.read_network_file(slow_first)
    best = plan("phi-3-mini", site, concurrency=1)
    assert best.result.partition.cuts == (0, 1, 34)
    near = near_plan(best, "vllm")
    values = [
        hs.evaluate(best.result.instance, hs.Partition((0, cut, 34))) for cut in range(2, 33)
    ]
    assert near.result.objective_s == pytest.approx(min(values), rel=1e-12)
    assert export(near, "vllm")


def test_layers_that_are_pinned_elsewhere_stay_there(slow_first):
    slow_first.write_text(SLOW_FIRST.replace('"fast"', '"fast"\npin = [0]'))
    site = hs.read_network_file(slow_first)
    found = plan("phi-3-mini", site, concurrency=1)
    with pytest.raises(ValueError, match="vllm needs layer 0 in tier 'slow', but it is pinned"):
        near_plan(found, "vllm")


def test_the_command_solves_again_where_it_must(capsys, slow_first):
    short = ("--concurrency", 1, "--output", 16)
    command = ("plan", "--model", "phi-3-mini", "--network", slow_first, *short)
    code, out, err = run(capsys, *command, "--export", "vllm")
    assert code == 0 and "VLLM_PP_LAYER_PARTITION=1,31" in out
    why, best = err.splitlines()
    assert why.startswith("vllm cannot express the best plan: stage 0 has only")
    pattern = r"planned for it instead, on slow-\S+, fast-\S+ \(bottleneck (.+)% above the best"
    value = float(re.match(pattern, best)[1])
    plain = plan("phi-3-mini", slow_first, concurrency=1)
    ratio = near_plan(plain, "vllm").result.objective_s / plain.result.objective_s
    assert value == pytest.approx(100 * (ratio - 1), abs=0.06)
    assert run(capsys, *command, "--export", "vllm", "--json")[0] == 2
    code, out, err = run(capsys, *command, "--export", "json")
    assert (code, err) == (0, "") and json.loads(out)["stages"][0]["blocks"] == [0, 1]
    assert set(RUNTIMES) > set(BY_LAYER)


def test_no_plan_cannot_be_written():
    tiny = hs.Network(name="tiny", tiers=(tier("a", "t4"),))
    with pytest.raises(ValueError, match="export: no plan to write, infeasible"):
        export(plan("llama-3-70b", tiny), "vllm")


def test_unknown_runtimes_list_the_known():
    with pytest.raises(ValueError, match=r"unknown runtime 'vlm'; did you mean vllm\? choose"):
        export(planned((0, 34)), "vlm")
    with pytest.raises(ValueError, match="unknown model_type 'bert'"):
        export(planned((0, 34)), "vllm", model_type="bert")


def test_modules_are_named_as_in_the_models_configuration(capsys, tmp_path, slow_first):
    config = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "vocab_size": 50257,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ("plan", "--network", slow_first, "--concurrency", 1, "--export", "accelerate")
    code, out, _ = run(capsys, *command, "--model", tmp_path)
    assert code == 0 and "transformer.h.11" in json.loads(out)
    code, out, _ = run(capsys, *command, "--model", "phi-3-mini")
    assert "model.layers.31" in json.loads(out)
    for name in ("phi-2", "microsoft/phi-2"):
        code, _, err = run(capsys, *command, "--model", name)
        assert code == 2 and "give --model-type" in err


@pytest.mark.parametrize("runtime", sorted(set(RUNTIMES) - set(NAMES_MODULES)))
def test_only_runtimes_that_name_modules_need_the_type_of_a_model(capsys, slow_first, runtime):
    short = ("--concurrency", 1, "--output", 16)
    command = ("plan", "--network", slow_first, *short, "--model", "phi-2")
    assert run(capsys, *command)[0] == 0
    assert run(capsys, *command, "--export", runtime)[0] == 0


def test_commands_serve_what_was_planned():
    """As many sequences as have room, up to the batches simulated, and as long."""
    found = plan(
        "phi-3-mini", hs.Network(name="n", tiers=(tier("a", "t4", 1, WIRE), tier("b", "l4"))),
        concurrency=2, prompt_tokens=100, output_tokens=20,
    )  # fmt: skip
    assert found.forecast.max_sequences > 64
    assert "--max-num-seqs 64 --max-model-len 120 --dtype half\n" in export(found, "vllm")
    few = replace(found, forecast=replace(found.forecast, max_sequences=7))
    assert "--max-num-seqs 7 " in export(few, "vllm")
    assert "--max-num-seqs 2 " in export(replace(found, forecast=None), "vllm")
    lines = export(found, "sglang").splitlines()[2:]
    for rank, (line, node) in enumerate(zip(lines, ("a-0", "b-0"), strict=True)):
        assert f"--nnodes 2 --node-rank {rank} --dist-init-addr a-0:50000 " in line
        assert "--context-length 120 --max-running-requests 64 " in line
        assert line.endswith(f"  # on {node}")
    text = export(found, "llama.cpp")
    assert "-np 2 -c 240\n" in text
    assert "# on a-0, since llama-server keeps the embedding table" in text
    assert "--dtype" not in export(planned((0, 12, 34)), "vllm")


def test_cautions_say_what_an_export_does_not(capsys, tmp_path):
    plain = planned((0, 12, 34))
    assert [cautions(plain, each) for each in ("vllm", "json", "torch")] == [[], [], []]
    assert cautions(plain, "accelerate") == [
        "a device_map is for one machine: device k must be the GPU of stage k"
    ]
    assert cautions(planned((0, 34)), "accelerate") == []
    mac = hs.Network(name="n", tiers=(tier("mac", "apple-m2-ultra"),))
    small = plan("phi-3-mini", mac, weights="int4")
    assert cautions(small, "vllm") == [
        "planned as phi-3-mini-gptq-int4: load weights of this format",
        "vllm needs CUDA or ROCm, but has Apple GPUs on mac-0",
    ]
    assert cautions(small, "json") == []
    model = replace(plain.model, tied_bytes=10)
    tied = replace(plain, query=replace(plain.query, model=model))
    assert "the head shares the embedding's table" in cautions(tied, "accelerate")[1]
    assert cautions(plain, "petals") == [
        "Petals serves Llama, Mixtral, Falcon and BLOOM models"
    ]
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST)
    command = ("plan", "--model", "phi-3-mini", "--network", path, "--weights", "int8")
    err = run(capsys, *command, "--export", "petals")[2].splitlines()
    assert [line for line in err if line.startswith("note: ")] == [
        "note: planned as phi-3-mini-int8: load weights of this format",
        "note: Petals serves Llama, Mixtral, Falcon and BLOOM models",
    ]


def test_every_tier_that_offends_is_named():
    wide = hs.Network(
        name="n", tiers=(tier("a", "l4", 2, WIRE), tier("b", "l4", 3, WIRE), tier("c", "l4"))
    )
    why = not_expressible(plan("phi-3-mini", wide, concurrency=1), "vllm")
    assert why == "it runs one pipeline, and tier 'a' has 2 nodes, tier 'b' has 3 nodes"


def test_yaml_holds_what_json_does(slow_first):
    slow_first.write_text(SLOW_FIRST.replace('"slow"', '"slow: [1, ü"'))
    found = plan("phi-3-mini", slow_first, concurrency=1)
    assert yaml.safe_load(export(found, "yaml")) == json.loads(export(found, "json"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_names_of_modules_matter_to_the_runtimes_that_say_so(runtime):
    found = planned((0, 12, 34))
    texts = {export(found, runtime, model_type=each) for each in ("llama", "gpt2")}
    assert len(texts) == (2 if runtime in NAMES_MODULES else 1)
