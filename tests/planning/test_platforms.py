"""What a runtime runs on and loads: Python, network files and commands agree."""

import json
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.query import PlanQuery
from tests.cli.test_cli import run

HOME = """
[[tiers]]
name = "mac"
nodes = [{gpu = "apple-m2-ultra"}]
link = {gbps = 1, latency_ms = 0.2}

[[tiers]]
name = "desk"
nodes = [{gpu = "rtx-4090"}, {gpu = "jetson-agx-orin"}]
"""
LEFT_OUT = ["mac-apple-m2-ultra-0", "desk-jetson-agx-orin-0"]
LOADED = {
    "ideal": "fp16 bf16 fp8 int8 awq gptq-int4 nf4 nvfp4 q8_0 q5_k_m q4_k_m q4_0",
    "vllm": "fp16 bf16 fp8 int8 awq gptq-int4 nf4 nvfp4",
    "sglang": "fp16 bf16 fp8 int8 awq gptq-int4 nf4 nvfp4",
    "tensorrt-llm": "fp16 bf16 fp8 int8 awq gptq-int4 nf4 nvfp4",
    "llama.cpp": "fp16 bf16 q8_0 q5_k_m q4_k_m q4_0",
}


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home.toml"
    path.write_text(HOME)
    return path


def used(nodes):
    return [node["node"] for node in nodes if node["blocks"][0] < node["blocks"][1]]


def test_python_files_and_commands_leave_out_the_same_nodes(home, tmp_path, capsys):
    """A plan of the library for a server on a Mac is one that no server can follow."""
    of_file = tmp_path / "file.toml"
    of_file.write_text('runtime = "vllm"\n' + HOME)
    asked = dict(with_upgrades=False, output_tokens=16)
    plans = [
        hs.plan("phi-3-mini", home, runtime="vllm", **asked).to_dict(),
        hs.plan("phi-3-mini", of_file, **asked).to_dict(),
    ]
    command = ["plan", "--model", "phi-3-mini", "--network", home, "--output", 16]
    code, out, _ = run(capsys, *command, "--runtime", "vllm", "--json")
    assert code == 0
    for plan in [*plans, json.loads(out)]:
        assert plan["left_out"] == LEFT_OUT
        assert used(plan["nodes"]) == ["desk-rtx-4090-0"]
    text = str(hs.plan("phi-3-mini", home, runtime="vllm", **asked))
    assert f"left out: {', '.join(LEFT_OUT)} (runtime vllm runs on cuda, rocm)" in text
    assert hs.plan("phi-3-mini", home, runtime="llama.cpp", **asked).query.left_out == ()


@pytest.mark.parametrize("runtime", LOADED)
def test_formats_that_a_runtime_cannot_load_are_refused(runtime, home):
    """Of every format of the catalogue, by the documentation of each server."""
    for weights in hs.weight_formats():
        arguments = dict(runtime=runtime, weights=weights)
        if weights in LOADED[runtime].split():
            assert PlanQuery.of("phi-3-mini", home, **arguments).weights == weights
            continue
        with pytest.raises(ValueError, match=f"got '{weights}'") as caught:
            PlanQuery.of("phi-3-mini", home, **arguments)
        words = LOADED[runtime].replace(" ", ", ")
        assert f"a format that runtime {runtime!r} loads ({words})" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pins": {"embedding": "mac"}}, "block 'embedding' is pinned to 'mac', which has no"),
        ({"min_blocks": (2, None)}, "min_blocks of tier 'mac' must be 0"),
        ({"objective": "p0"}, "runs on no node of tier 'mac'"),
        ({"only": 0}, "plan: vllm runs on cuda, rocm, and the network has only Apple M2 Ultra"),
    ],
)
def test_rules_that_need_a_node_that_is_left_out_are_refused(change, message, home):
    file = hs.read_network_file(home)
    objective = change.pop("objective", None)
    if "only" in change:
        mac = replace(file.network.tiers[0], link=None)
        file = NetworkFile(network=replace(file.network, tiers=(mac,)))
    else:
        file = replace(file, **change)
    with pytest.raises(ValueError, match=message):
        PlanQuery.of("phi-3-mini", file, runtime="vllm", objective=objective)


def test_a_query_that_is_changed_names_the_nodes_once(home):
    """`replan` and upgrades make queries of queries."""
    query = PlanQuery.of("phi-3-mini", home, runtime="vllm")
    again = replace(query, rate_per_s=2)
    assert again.left_out == query.left_out == tuple(LEFT_OUT)
    assert again.network == query.network
    assert [len(tier.nodes) for tier in query.network.network.tiers] == [1, 1]
    assert query.network.max_blocks == (0, None)
