"""Formats of weights: real bits, and the sizes of published checkpoints."""

import re

import pytest

import hypsolve as hs
from hypsolve import catalog

# GB of files as published: mradermacher/Meta-Llama-3-8B-Instruct-GGUF,
# bartowski/Meta-Llama-3.1-70B-Instruct-GGUF, mradermacher/Phi-3-mini-4k-instruct-GGUF,
# QuantFactory/Llama-3.2-3B-Instruct-GGUF (tied), mradermacher/Mixtral-8x7B-v0.1-GGUF,
# mradermacher/Qwen2.5-72B-Instruct-GGUF (rows of ffn_down are no multiple of 256) and
# Qwen2.5-7B-Instruct-GGUF,
# solidrust/Meta-Llama-3-8B-Instruct-hf-AWQ, TheBloke/Llama-2-7B-AWQ and -GPTQ,
# neuralmagic/Meta-Llama-3-8B-Instruct-FP8
PUBLISHED_GB = {
    "llama-3-8b": {"q4_k_m": 4.92, "q5_k_m": 5.73, "q8_0": 8.54, "q4_0": 4.66, "fp16": 16.1},
    "llama-3.1-70b": {"q4_k_m": 42.52, "q5_k_m": 49.95, "q8_0": 74.98, "q4_0": 40.12},
    "phi-3-mini": {"q4_k_m": 2.39, "q5_k_m": 2.82, "q8_0": 4.06, "q4_0": 2.18, "fp16": 7.64},
    "llama-3.2-3b": {"q4_k_m": 2.02, "q5_k_m": 2.32, "q8_0": 3.42, "q4_0": 1.92},
    "qwen2.5-72b": {"q4_k_m": 47.4, "q5_k_m": 27.9 + 26.5, "q8_0": 38.7 + 38.6},
    "qwen2.5-7b": {"q4_k_m": 4.68, "q5_k_m": 5.44, "q8_0": 8.1, "q4_0": 4.43, "fp16": 15.2},
    "mixtral-8x7b": {"q4_k_m": 28.4, "q5_k_m": 33.2, "q8_0": 49.6, "q4_0": 26.4},
}
PUBLISHED_GB["llama-3-8b"] |= {"awq": 4.68 + 1.05, "fp8": 5.00 + 4.08}
PUBLISHED_GB["llama-2-7b"] = {"awq": 3.89, "gptq-int4": 3.90}
PUBLISHED_GB["phi-2"] = {"q4_k_m": 1.789}  # query, key and value are one matrix
FILES = [(name, weights) for name, sizes in PUBLISHED_GB.items() for weights in sizes]


@pytest.mark.parametrize(("name", "weights"), FILES)
def test_sizes_are_those_of_published_files(name, weights):
    """A plan that fits must load: before, int4 was 21 % below the smallest real 4-bit file."""
    model = hs.model(name, weights)
    held_gb = model.stage_weight_bytes(model.blocks) / 1e9
    assert held_gb == pytest.approx(PUBLISHED_GB[name][weights], rel=0.01)


def test_q4_k_m_has_its_known_average():
    """llama.cpp prints 4.89 bits for Llama-3-8B in Q4_K_M, head and embedding included."""
    full, small = hs.model("llama-3-8b"), hs.model("llama-3-8b", "q4_k_m")
    assert 16 * small.weight_bytes / full.weight_bytes == pytest.approx(4.89, abs=0.01)


def test_the_table_has_the_formats_that_users_have():
    """The names of the issue, each with a source."""
    names = ["fp16", "bf16", "fp8", "int8", "awq", "gptq-int4", "nf4", "nvfp4"]
    names += ["q8_0", "q5_k_m", "q4_k_m", "q4_0"]
    assert list(hs.weight_formats()) == names
    for each in hs.weight_formats().values():
        assert each.source and each.name == names.pop(0)
        assert 4 < each.layer_bits <= each.raised_bits <= each.head_bits <= 16
        assert each.file == ("gguf" if each.name.startswith("q") else "safetensors")
    hs.weight_formats().clear()
    assert hs.weight_formats()


@pytest.mark.parametrize("weights", ["fp8", "int8", "awq", "gptq-int4", "nf4", "nvfp4"])
def test_embedding_and_head_of_checkpoints_stay_in_16_bits(weights):
    """They were counted as quantised, so that plans did not load."""
    full, small = (hs.model("llama-3-8b", each) for each in ("fp16", weights))
    assert (small.blocks[0], small.blocks[-1]) == (full.blocks[0], full.blocks[-1])
    assert small.blocks[1].weight_bytes < 0.51 * full.blocks[1].weight_bytes


def test_only_measured_formats_are_not_extrapolated():
    """Block times were measured with 16-bit weights."""
    marked = {name: hs.model("phi-3-mini", name).extrapolated for name in hs.weight_formats()}
    assert [name for name, extrapolated in marked.items() if not extrapolated] == [
        "fp16",
        "bf16",
    ]


def test_bf16_counts_like_fp16():
    """Both have two bytes per weight; the name tells them apart."""
    half, brain = hs.model("llama-3-8b"), hs.model("llama-3-8b", "bf16")
    assert brain.blocks == half.blocks
    assert brain.name == "llama-3-8b-bf16"


def test_int4_is_a_name_of_gptq_int4():
    """Scripts and networks that say int4 keep working, and the model says what it is."""
    assert hs.model("llama-3-8b", "int4") == hs.model("llama-3-8b", "gptq-int4")
    assert hs.model("llama-3-8b", "int4").name == "llama-3-8b-gptq-int4"
    assert "int4" in catalog.weights_choices()


def test_formats_are_written_as_llama_cpp_writes_them():
    """Files are named Q4_K_M; the model's name has the key of the table."""
    assert hs.model("llama-3-8b", "Q4_K_M").name == "llama-3-8b-q4_k_m"
    assert hs.weight_format("BF16") is hs.weight_format("bf16")


@pytest.mark.parametrize(
    (
        "n_layers",
        "raised",
    ),  # from use_more_bits by hand: n / 8 at both ends, every third between
    [
        (32, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]),
        (8, [0, 3, 6, 7]),
        (4, [2, 3]),
        (1, [0]),
    ],
)
def test_the_layers_with_more_bits_are_those_of_llama_cpp(n_layers, raised):
    """The first and the last layers of a q4_k_m model are the heavy ones."""
    shape = {"hidden": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "ffn": 512}
    layers = catalog.transformer(
        "toy", n_layers=n_layers, **shape, vocab=100, weights="q4_k_m"
    ).blocks[1:-1]
    assert [i for i, block in enumerate(layers) if block.kind == "layer-raised"] == raised
    others = 256 * (2 * 256 + 128 + 2 * 512) * 144 // 256  # q, o, k, gate, up in Q4_K
    mixed = 256 * (128 + 512)  # v, down
    for i, block in enumerate(layers):
        bytes_of_256 = 210 if i in raised else 144  # Q6_K or Q4_K
        assert block.weight_bytes == others + mixed * bytes_of_256 // 256


@pytest.mark.parametrize("ffn", [480, 512])
def test_odd_rows_have_the_types_in_their_place(ffn):
    """Rows of 480 weights are no whole blocks of 256: Q4_K and Q6_K become Q5_0 and Q8_0."""
    shape = {"hidden": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "vocab": 100}
    layers = catalog.transformer("odd", n_layers=4, **shape, ffn=ffn, weights="q4_k_m").blocks
    attention, gate_and_up = 256 * (2 * 256 + 2 * 128), 2 * 256 * ffn
    plain = (attention + gate_and_up) * 144 // 256  # in Q4_K
    down = 256 * ffn * 22 // 32 if ffn == 480 else 256 * ffn * 144 // 256  # Q5_0 or Q4_K
    assert layers[1].weight_bytes == plain + down
    raised = 256 * ffn * 34 // 32 if ffn == 480 else 256 * ffn * 210 // 256  # Q8_0 or Q6_K
    more = 256 * 128 * (210 - 144) // 256  # v in Q6_K
    assert layers[3].weight_bytes == plain + more + raised


def test_windows_and_more_bits_are_kinds_of_their_own():
    """Blocks of one kind must be equal, so Gemma 2 in q4_k_m has four kinds of layers."""
    layers = hs.model("gemma-2-9b", "q4_k_m").blocks[1:-1]
    assert {(block.kind, block.window_tokens) for block in layers} == {
        ("layer", None),
        ("layer-raised", None),
        ("layer-window", 4096),
        ("layer-window-raised", 4096),
    }
    assert [b.window_tokens for b in layers] == [4096, None] * 21


def test_a_tied_table_has_the_bits_of_the_head():
    """llama.cpp stores the only table in Q6_K; embedding and head are then the same bytes."""
    model = hs.model("llama-3.2-3b", "q4_k_m")
    table = 128256 * 3072 * 210 // 256
    assert model.tied_bytes == model.blocks[0].weight_bytes == model.blocks[-1].weight_bytes
    assert model.tied_bytes == table
    assert model.blocks[0].gathered_bytes_per_token == 3072 * 210 // 256


def test_sizes_stay_exact_where_floats_are_not():
    """A table of 2**62 weights has whole bytes."""
    shape = {"hidden": 2**31, "n_heads": 1, "n_kv_heads": 1, "head_dim": 1, "ffn": 1}
    model = catalog.transformer("big", n_layers=1, **shape, vocab=2**31 - 1, weights="q4_0")
    assert model.blocks[0].weight_bytes == 2**31 * (2**31 - 1) * 18 // 32


@pytest.mark.parametrize("wrong", ["int3", "Q4-K-M", None, 4])
def test_unknown_formats_name_the_choices(wrong):
    """A misspelt format must not be read as fp16."""
    with pytest.raises(ValueError, match=re.escape(f"unknown weights {wrong!r}")) as error:
        hs.model("llama-3-8b", wrong)
    assert all(name in str(error.value) for name in (*hs.weight_formats(), "int4"))
    assert wrong != "Q4-K-M" or "did you mean q4_k_m?" in str(error.value)
