"""Exports, read back as the runtimes read them: the rules of each, written anew."""

import ast
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml

import hypsolve as hs
from hypsolve.planning.exporters import (
    BY_LAYER,
    MODULES,
    NAMES_MODULES,
    RUNTIMES,
    cautions,
    export,
    not_expressible,
)
from hypsolve.planning.runtime_restrictions import nearest_plan
from hypsolve.planning.text import WITHOUT_EXPORT
from tests.cli.test_cli import run
from tests.helpers.exports import SLOW_FIRST, WIRE, plan, planned, tier

near_plan = partial(nearest_plan, with_upgrades=False)
CUTS = [(0, 10, 20, 34), (0, 2, 34), (0, 32, 34), (0, 12, 13, 14, 34), (0, 34)]


def layers_of(cuts):
    """Stage of each layer."""
    stages = np.searchsorted(cuts, np.arange(34), side="right") - 1
    return stages[1:-1].tolist()


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


@pytest.mark.parametrize("runtime", BY_LAYER)
@pytest.mark.parametrize("cuts", [(0, 1, 34), (0, 33, 34)])
def test_what_a_runtime_cannot_express_is_refused(runtime, cuts):
    with pytest.raises(ValueError, match=f"{runtime} cannot express this plan: the stage of"):
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
    for runtime in ("vllm", "sglang", "llama.cpp"):
        first, *commands = export(found, runtime).splitlines()
        assert first.startswith("# left out: slow-0; ")
        assert "slow-0" not in "".join(commands)
    (stage,) = json.loads(export(found, "json"))["stages"]
    assert stage == {"tier": "fast", "nodes": ["fast-0"], "blocks": [0, 34]}


def test_names_are_quoted_and_stay_on_a_line():
    with pytest.raises(ValueError, match="name must be printable, got"):
        tier("a\nrm -rf x", "l4")
    names = ("old box; echo", "new $(box)")
    tiers = [
        hs.Tier(name=name, nodes=(hs.Node(name=name, gpu=hs.gpu("h200")),), link=link)
        for name, link in zip(names, (WIRE, None), strict=True)
    ]
    found = plan("phi-3-mini", hs.Network(name="net", tiers=tuple(tiers)))
    assert " --rpc 'new $(box):50052' " in export(found, "llama.cpp")
    assert " '--address=old box; echo:6379' " in export(found, "vllm")
    assert " --dist-init-addr 'old box; echo:50000' " in export(found, "sglang")
    assert " --base-url 'http://old box; echo:30000' " in export(found, "sglang")


@pytest.fixture
def slow_first(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST)
    return path


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
    short = ("--concurrency", 1, "--output", 16)
    command = ("plan", "--network", slow_first, *short, "--export", "accelerate")
    code, out, _ = run(capsys, *command, "--model", tmp_path)
    assert code == 0 and "transformer.h.11" in json.loads(out)
    code, out, _ = run(capsys, *command, "--model", "phi-3-mini")
    assert "model.layers.31" in json.loads(out)
    for name in ("phi-2", "microsoft/phi-2"):
        code, _, err = run(capsys, *command, "--model", name)
        assert code == 2 and "give --model-type" in err


@pytest.mark.parametrize("runtime", [None, *sorted(set(RUNTIMES) - set(NAMES_MODULES))])
def test_only_runtimes_that_name_modules_need_the_type_of_a_model(capsys, slow_first, runtime):
    short = ("--concurrency", 1, "--output", 16)
    command = ("plan", "--network", slow_first, *short, "--model", "phi-2")
    export_to = ("--export", runtime) if runtime else ()
    assert run(capsys, *command, *export_to)[0] == 0


def test_cautions_say_what_an_export_does_not(capsys, tmp_path):
    plain = planned((0, 12, 34))
    assert [cautions(plain, each) for each in ("json", "torch")] == [[], []]
    foreign, chunk, context = cautions(plain, "vllm")
    assert foreign.startswith("simulated by the rules of runtime 'ideal', not of vllm: its lim")
    assert chunk.startswith("chunk_tokens = 512 is no flag of vllm")
    assert context.startswith("the context has exactly 528 tokens")
    runtime = hs.runtime("vllm")
    as_vllm = replace(plain, deployment=replace(plain.deployment, runtime=runtime))
    assert cautions(as_vllm, "vllm") == [context]
    one_machine, benchmark = cautions(plain, "accelerate")
    assert one_machine == "a device_map is for one machine: device k must be the GPU of stage k"
    assert benchmark.startswith("benchmark of the simulated load, 1 requests/s of 512 + 16 tok")
    assert cautions(planned((0, 34)), "accelerate") == [benchmark]
    strange = "gptq-int4 is no format of llama.cpp, which is for GGUF files, such as q4_k_m"
    mac = hs.Network(name="n", tiers=(tier("mac", "apple-m2-ultra"),))
    small = plan("phi-3-mini", mac, weights="int4")
    assert cautions(small, "llama.cpp")[0] == (
        "planned as phi-3-mini-gptq-int4: load weights of this format"
    )
    assert cautions(small, "llama.cpp")[1] == strange
    gguf = plan("phi-3-mini", mac, weights="q4_k_m")
    assert "q4_k_m is no format of vllm, which is for safetensors" in cautions(gguf, "vllm")[1]
    assert not any("no format" in line for line in cautions(gguf, "llama.cpp"))
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
    command = (*command, "--output", 16)
    err = run(capsys, *command, "--export", "petals")[2].splitlines()
    assert [line for line in err if line.startswith("note: ")] == [
        "note: planned as phi-3-mini-int8: load weights of this format",
        "note: Petals serves Llama, Mixtral, Falcon and BLOOM models",
    ]


def test_every_tier_is_counted_if_nodes_are_left_out():
    wide = hs.Network(
        name="n", tiers=(tier("a", "l4", 2, WIRE), tier("b", "l4", 3, WIRE), tier("c", "l4"))
    )
    why = not_expressible(plan("phi-3-mini", wide, concurrency=1), "vllm")
    assert why == (
        "it runs whole pipelines, and tier 'a' has 2, tier 'b' has 3, tier 'c' has 1: a-1, b-1,"
        " b-2 would be left out"
    )


@pytest.mark.parametrize("runtime", ["torch", "deepspeed", "megatron"])
def test_libraries_are_told_their_replicas_and_a_benchmark(runtime):
    text = export(planned((0, 12, 34), n_nodes=2, n_last=2), runtime)
    assert "# 2 replicas, data parallel:\n#   t0-0 -> last-0\n#   t0-1 -> last-1\n" in text
    assert "\n# genai-perf profile -m MODEL " in text
    assert not_expressible(planned((0, 12, 34), n_nodes=2, n_last=2), runtime) == ""


def test_yaml_holds_what_json_does(slow_first):
    slow_first.write_text(SLOW_FIRST.replace('"slow"', '"slow: [1, ü"'))
    found = plan("phi-3-mini", slow_first, concurrency=1)
    assert yaml.safe_load(export(found, "yaml")) == json.loads(export(found, "json"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_names_of_modules_matter_to_the_runtimes_that_say_so(runtime):
    found = planned((0, 12, 34))
    texts = {export(found, runtime, model_type=each) for each in ("llama", "gpt2")}
    assert len(texts) == (2 if runtime in NAMES_MODULES else 1)


UNTOLD = [
    ("vllm", {"chunk_tokens": 128}, "vllm", "chunk_tokens = 128 is no flag of vllm"),
    ("vllm", {"kv_block_tokens": 24}, "vllm", "kv_block_tokens = 24 is no --block-size"),
    ("vllm", {"iteration_s": 0.01}, "vllm", "iteration_s = 0.01 was simulated"),
    ("vllm", {"batching": "stage"}, "vllm", "batching stage was simulated: vllm has pipeline"),
    (
        "sglang",
        {"max_num_batched_tokens": 300},
        "sglang",
        "max_num_batched_tokens = 300 limits",
    ),
    ("sglang", {}, "sglang", "mixed batches were simulated: --enable-mixed-chunk asks"),
    ("sglang", {"chunk_tokens": None}, "sglang", "sglang 0.5.23 mixes prompts"),
    ("llama.cpp", {"kv_admission": "paged"}, "llama.cpp", "a paged KV cache was simulated"),
    ("llama.cpp", {"memory_fraction": 0.3}, "llama.cpp", "memory_fraction = 0.3 is no flag"),
    ("llama.cpp", {"max_num_seqs": 300}, "llama.cpp", "300 requests at once were simulated"),
]


@pytest.mark.parametrize(("name", "limits", "server", "begins"), UNTOLD)
def test_every_limit_that_a_server_cannot_be_told_is_named(name, limits, server, begins):
    """A limit that is dropped without a word makes the forecast one of another server."""
    plain = planned((0, 34))
    runtime = hs.runtime(name, **limits)
    found = replace(plain, deployment=replace(plain.deployment, runtime=runtime))
    assert sum(line.startswith(begins) for line in cautions(found, server)) == 1


def test_servers_refuse_neither_slots_nor_chunks():
    """llama.cpp has 256 slots (LLAMA_MAX_SEQ); SGLang asserts that chunks are whole pages."""
    plain = planned((0, 34))

    def text(server, **limits):
        runtime = hs.runtime(server, **limits)
        deployment = replace(plain.deployment, runtime=runtime)
        return export(replace(plain, deployment=deployment), server)

    llama = text("llama.cpp", max_num_seqs=300)
    assert " -np 256 " in llama and f" -c {256 * 768} " in llama and "-np 300" not in llama
    assert "--chunked-prefill-size 992 " in text(
        "sglang", chunk_tokens=1000, kv_block_tokens=16
    )
    assert "--chunked-prefill-size 16 " in text("sglang", chunk_tokens=10, kv_block_tokens=16)


@pytest.mark.parametrize("chunk_tokens", [2048, None])
def test_sglang_mixes_batches_as_simulated(chunk_tokens):
    """Its scheduler mixes only with a positive --chunked-prefill-size and --enable-mixed-chunk.

    (sgl-project/sglang, scheduler: ``chunked_prefill_size > 0 and enable_mixed_chunk``.)
    """
    plain = planned((0, 34))
    runtime = hs.runtime("sglang", chunk_tokens=chunk_tokens)
    found = replace(plain, deployment=replace(plain.deployment, runtime=runtime))
    words = export(found, "sglang").split()
    chunk = int(words[words.index("--chunked-prefill-size") + 1])
    assert ("--enable-mixed-chunk" in words) == (chunk > 0) == (chunk_tokens is not None)


def test_what_a_server_does_beyond_its_context_is_said():
    """vLLM refuses prompt + max_tokens > max_model_len (HTTP 400); it shortens no answer."""
    found = planned((0, 34))
    says = {server: "; ".join(cautions(found, server)) for server in ("vllm", "sglang")}
    assert "refuses (HTTP 400)" in says["vllm"] and "shortens" not in says["vllm"]
    assert "shortens answers" in says["sglang"]


def test_a_runtime_without_a_format_names_the_plain_ones():
    """tensorrt-llm can be planned; the list of formats did not say which one to take."""
    with pytest.raises(ValueError, match="tensorrt-llm are written; take json or yaml"):
        export(planned((0, 34)), "tensorrt-llm")
    known = [name for name in hs.runtimes() if name != "ideal" and name not in RUNTIMES]
    assert known == list(WITHOUT_EXPORT)
