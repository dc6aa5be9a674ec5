"""Plans with weights in any format, and of models from GGUF files."""

import pytest

import hypsolve as hs
from hypsolve import catalog
from hypsolve.planning.what_if import lighter_models
from tests.helpers.gguf_files import llama_tensors, metadata_of, write

BOX = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-3090")),))
SMALL = hs.Network(name="small", tiers=(BOX,))
ASKED = {"concurrency": 1, "prompt_tokens": 100, "output_tokens": 10}


@pytest.mark.parametrize("weights", catalog.weights_choices())
def test_a_plan_in_every_format_with_its_upgrades(weights):
    """The what-if scenarios looked formats up in a table that had three of them."""
    plan = hs.plan("llama-3.2-1b", SMALL, weights=weights, **ASKED)
    assert plan.fits and plan.model == hs.model("llama-3.2-1b", weights)


def test_lighter_formats_are_of_the_same_kind_of_file():
    """Users of llama.cpp do not load GPTQ, and no upgrade is heavier than what there is."""
    assert list(lighter_models("llama-3-8b", None)) == ["int8", "gptq-int4"]
    assert list(lighter_models("llama-3-8b", "bf16")) == ["int8", "gptq-int4"]
    assert list(lighter_models("llama-3-8b", "q8_0")) == ["q5_k_m", "q4_k_m"]
    assert list(lighter_models("llama-3-8b", "int4")) == []
    for name in hs.weight_formats():
        own = hs.model("llama-3-8b", name).weight_bytes
        for model in lighter_models("llama-3-8b", name).values():
            assert model.weight_bytes < own


@pytest.mark.parametrize("server", ["llama.cpp", "vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("weights", [None, *catalog.weight_formats()])
def test_lighter_formats_are_those_that_the_server_loads(weights, server):
    """A plan for llama.cpp proposed GPTQ, and one for vLLM q4_k_m."""
    lighter = lighter_models("llama-3-8b", weights, server)
    kinds = {catalog.weight_format(name).file for name in lighter}
    assert kinds <= {"gguf" if server == "llama.cpp" else "safetensors"}
    own = hs.model("llama-3-8b", weights or "fp16").weight_bytes
    assert all(model.weight_bytes < own for model in lighter.values())
    if weights in (None, "bf16", "q8_0"):
        assert lighter


def test_upgrades_of_a_plan_are_weights_that_its_server_loads(monkeypatch):
    """The server is that of the plan's runtime, also if a file names it."""
    tried = []
    monkeypatch.setattr(
        "hypsolve.planning.planner.find_upgrades",
        lambda query, solution, lighter, **_: tried.append(list(lighter)) or [],
    )
    for runtime in ("llama.cpp", "vllm", "ideal"):
        hs.plan("llama-3.2-1b", SMALL, runtime=runtime, **ASKED)
    gguf, tensors, ideal = tried
    assert gguf == ["q8_0", "q5_k_m", "q4_k_m"]
    assert tensors == ideal == ["int8", "gptq-int4"]


def test_lighter_formats_of_a_gguf_file(tmp_path):
    """A file's scenarios come from the formats of GGUF files that are smaller than it."""
    path = write(tmp_path / "m.gguf", metadata_of(), llama_tensors("Q8_0", vocab=512))
    assert list(lighter_models(path, None)) == ["q5_k_m", "q4_k_m"]
    assert hs.plan(path, SMALL, **ASKED).fits


def test_a_missing_gguf_file_is_no_name():
    """It was looked up among the models' names."""
    with pytest.raises(FileNotFoundError):
        hs.plan("missing.gguf", SMALL)
