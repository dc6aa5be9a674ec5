"""Models from Hugging Face files: published configurations and artificial tensors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import hypsolve as hs
from hypsolve.formats.huggingface import FAMILIES, read_model
from hypsolve.formats.safetensors import INDEX

# as in the config.json of each; what is not read is left out
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
CONFIGS = {
    "llama-3-8b": LLAMA_3_8B,
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "sliding_window": 4096, "vocab_size": 32000,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "sliding_window": 131072, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 152064,
    },
    "qwen3-8b": {
        "model_type": "qwen3", "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288,
        "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "sliding_window": None, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "phi-3-medium": {
        "model_type": "phi3", "hidden_size": 5120, "intermediate_size": 17920,
        "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10,
        "sliding_window": 2047, "vocab_size": 32064,
    },
    "gemma-2-9b": {
        "model_type": "gemma2", "head_dim": 256, "hidden_size": 3584,
        "intermediate_size": 14336, "num_attention_heads": 16, "num_hidden_layers": 42,
        "num_key_value_heads": 8, "sliding_window": 4096, "vocab_size": 256000,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "sliding_window": None,
        "vocab_size": 32000,
    },
}  # fmt: skip
GPT_2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}
NEOX_20B = {
    "model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576,
    "num_attention_heads": 64, "num_hidden_layers": 44, "vocab_size": 50432,
}  # fmt: skip
OPT_6_7B = {
    "model_type": "opt", "ffn_dim": 16384, "hidden_size": 4096, "num_attention_heads": 32,
    "num_hidden_layers": 32, "vocab_size": 50272, "word_embed_proj_dim": 4096,
}  # fmt: skip


QWEN2_WINDOW = {
    **LLAMA_3_8B, "model_type": "qwen2", "sliding_window": 99, "use_sliding_window": True,
}  # fmt: skip


def written(folder: Path, config) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configurations_are_the_models_of_the_catalogue(name, tmp_path):
    model = read_model(written(tmp_path, CONFIGS[name]), name=name)
    ours = hs.model(name)
    assert (model.name, model.blocks, model.tied_bytes) == (name, ours.blocks, ours.tied_bytes)
    assert not model.extrapolated


@pytest.mark.parametrize(
    ("config", "millions"),
    [(GPT_2, 124.4), (NEOX_20B, 20_554.6), (OPT_6_7B, 6_658.5)],
)
def test_other_families_have_the_published_number_of_parameters(config, millions, tmp_path):
    model = read_model(written(tmp_path, config))
    n_parameters = (model.weight_bytes - model.tied_bytes) / 2
    assert n_parameters == pytest.approx(millions * 1e6, rel=0.01)  # biases, positions, norms


def test_every_family_is_read_here():
    seen = {config["model_type"] for config in (*CONFIGS.values(), GPT_2, NEOX_20B, OPT_6_7B)}
    assert seen == set(FAMILIES)


@pytest.mark.parametrize(
    ("config", "key"), [(LLAMA_3_8B, "max_position_embeddings"), (GPT_2, "n_positions")]
)
def test_the_longest_context_is_told(config, key, tmp_path):
    model = hs.read_model(written(tmp_path, config | {key: 500}))
    assert model.context_tokens == 500
    box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("h200")),))
    network = hs.Network(name="net", tiers=(box,))
    fits = hs.plan(model, network, prompt_tokens=490, output_tokens=10)
    assert fits.forecast.max_context_tokens == 500 and "made for" not in str(fits)
    longer = hs.plan(model, network, prompt_tokens=490, output_tokens=11)
    assert "longer than the 500 tokens the model was made for" in str(longer)
    unknown = replace(model, context_tokens=0)
    assert hs.plan(unknown, network).forecast.max_context_tokens > 500


def test_the_name_is_that_of_the_folder(tmp_path):
    folder = tmp_path / "Meta-Llama-3-8B"
    folder.mkdir()
    assert read_model(written(folder, LLAMA_3_8B)).name == "Meta-Llama-3-8B"
    assert read_model(folder).name == "Meta-Llama-3-8B"
    assert read_model(folder, weights="int4").name == "Meta-Llama-3-8B-gptq-int4"


@pytest.mark.parametrize(
    ("quantised", "weights"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq-int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-int4"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "w_bit": 4}, "awq"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            "gptq-int4",
        ),
    ],
)
def test_quantised_configurations(quantised, weights, tmp_path):
    path = written(tmp_path, {**LLAMA_3_8B, "quantization_config": quantised})
    model = read_model(path, name="llama-3-8b")
    assert model.blocks[1:-1] == hs.model("llama-3-8b", weights).blocks[1:-1]
    plain = hs.model("llama-3-8b").blocks
    assert (model.blocks[0], model.blocks[-1]) == (plain[0], plain[-1])  # not quantised
    assert model.extrapolated
    assert model.name == f"llama-3-8b-{weights}"
    assert read_model(path, weights="fp16").blocks == hs.model("llama-3-8b").blocks


# GB of the branches of Llama 2 70B, Code Llama 34B and Mistral 7B as the cards of
# TheBloke/Upstage-Llama-2-70B-instruct-v2-GPTQ, Ziya-Coding-34B-v1.0-GPTQ and
# Synthia-7B-v1.3-GPTQ list them: (layers, hidden, ffn), bits and size of the groups
SHAPES = {
    (80, 8192, 28672): {(4, 32): 40.66, (4, 64): 37.99, (4, 128): 36.65},
    (48, 8192, 22016): {(4, -1): 17.69, (4, 128): 18.33, (4, 32): 20.28},
    (32, 4096, 14336): {(4, 128): 4.16, (4, 32): 4.57, (8, -1): 7.52, (8, 128): 7.68},
}


@pytest.mark.parametrize(
    ("shape", "bits", "group", "gb"),
    [(shape, *key, gb) for shape, sizes in SHAPES.items() for key, gb in sizes.items()],
)
def test_sizes_follow_the_groups_of_published_checkpoints(shape, bits, group, gb, tmp_path):
    """A format of fixed 4.156 bits was 10 % below the files of groups of 32."""
    layers, hidden, ffn = shape
    quantised = {"quant_method": "gptq", "bits": bits, "group_size": group, "lm_head": False}
    config = LLAMA_3_8B | {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn,
        "num_attention_heads": hidden // 128, "vocab_size": 32000,
        "quantization_config": quantised,
    }  # fmt: skip
    assert read_model(written(tmp_path, config)).weight_bytes / 1e9 == pytest.approx(gb, 0.005)


def packed(bits=4, targets=("Linear",), ignore=("lm_head",), **weights):
    """Return a configuration of compressed-tensors."""
    group = {"weights": {"num_bits": bits, "type": "int"} | weights, "targets": list(targets)}
    return {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": group},
        "ignore": list(ignore),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "weights"),
    [("llama-AWQ-4bit", "awq"), ("llama-W4A16", "gptq-int4"), ("llama-GPTQ", "gptq-int4")],
)
def test_compressed_tensors_of_awq_are_called_awq(name, weights, tmp_path):
    """A checkpoint that its user knows as AWQ was reported as GPTQ, with the same sizes."""
    quantised = packed(group_size=128, symmetric=False)
    path = written(tmp_path, {**LLAMA_3_8B, "quantization_config": quantised})
    model = read_model(path, name=name)
    assert model.name == f"{name}-{weights}"
    assert model.blocks[1:-1] == hs.model("llama-3-8b", weights).blocks[1:-1]
    assert model.blocks == read_model(path, name="llama").blocks


@pytest.mark.parametrize(
    ("quantised", "layer_bits", "head_bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, 4 + 20 / 64, 16),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4 + 20 / 64, 16),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True}, 4.15625, 4.15625),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1, "lm_head": True}, 4, 4),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4.5, 16),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.126953125, 16),
        (packed(group_size=128, symmetric=True), 4.125, 16),
        (packed(group_size=128, symmetric=False), 4.15625, 16),
        (packed(group_size=None, strategy="channel"), 4, 16),
        (packed(8, group_size=None, strategy="channel"), 8, 16),
        (packed(type="float", group_size=16), 4.5, 16),  # NVFP4
        (packed(group_size=32, ignore=()), 4.5, 4.5),
        (packed(group_size=32, ignore=("re:.*lm_head",)), 4.5, 16),
        (packed(group_size=32, ignore=(), targets=("re:.*mlp.*",)), 4.5, 16),
    ],
)
def test_bits_of_groups_and_of_the_head(quantised, layer_bits, head_bits, tmp_path):
    model = read_model(written(tmp_path, {**LLAMA_3_8B, "quantization_config": quantised}))
    plain = hs.model("llama-3-8b")
    assert model.blocks[0] == plain.blocks[0]
    layers = {block.weight_bytes for block in model.blocks[1:-1]}
    assert layers == {plain.blocks[1].weight_bytes * layer_bits / 16}
    assert model.blocks[-1].weight_bytes == plain.blocks[-1].weight_bytes * head_bits / 16


def windows(config, tmp_path):
    layers = read_model(written(tmp_path, config)).blocks[1:-1]
    return [block.window_tokens for block in layers]


def test_windows_are_of_the_layers_that_have_them(tmp_path):
    base = {**CONFIGS["qwen2.5-7b"], "num_hidden_layers": 4}
    on = {**base, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 100}
    assert windows(base, tmp_path) == [None] * 4
    stray = {**LLAMA_3_8B, "num_hidden_layers": 2, "sliding_window": 100}
    assert windows(stray, tmp_path) == [None] * 2  # such models have none
    assert windows(on, tmp_path) == [None, None, None, 100]
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert windows({**on, "layer_types": kinds}, tmp_path) == [None, 100, None, 100]
    gemma = {**CONFIGS["gemma-2-9b"], "num_hidden_layers": 4}
    assert windows(gemma, tmp_path) == [4096, None, 4096, None]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "truncated JSON"),
        ("[1]", "must be a JSON object, got [1]"),
        (
            "{}",
            "model_type must be one of llama, .*, opt, got None; .*n_layers, hidden, n_head",
        ),
        (
            {"model_type": "mamba"},
            "model_type must be one of .* got 'mamba'; .*transformer its",
        ),
        ({"model_type": ["llama"]}, "model_type must be one of"),
        ({"model_type": "llama"}, "key 'num_hidden_layers' is missing; llama needs it"),
        ({**LLAMA_3_8B, "num_hidden_layers": 10**8}, "num_hidden_layers must be at most 10000"),
        (
            {**QWEN2_WINDOW, "max_window_layers": "x"},
            "max_window_layers must be a whole number",
        ),
        ({**QWEN2_WINDOW, "max_window_layers": None}, "max_window_layers must be a whole numb"),
        ({**QWEN2_WINDOW, "use_sliding_window": "false"}, "use_sliding_window must be True or"),
        ({**LLAMA_3_8B, "hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({**LLAMA_3_8B, "hidden_size": 2**31 + 1}, "hidden_size must be at most 2147483648"),
        ({**LLAMA_3_8B, "intermediate_size": 18 * 10**307}, "must be at most .* 309 digits"),
        ({**LLAMA_3_8B, "vocab_size": 10**4000}, "vocab_size must be at most .* 4001 digits"),
        ({**OPT_6_7B, "ffn_dim": 10**309}, "ffn_dim must be at most 2147483648, got a numb"),
        ({**LLAMA_3_8B, "hidden_size": "4096"}, "hidden_size must be a whole number"),
        ({**LLAMA_3_8B, "hidden_size": 4097}, "hidden_size must be a multiple of num_attent"),
        ({**LLAMA_3_8B, "num_key_value_heads": 5}, "n_heads must be a multiple of n_kv_heads"),
        ({**LLAMA_3_8B, "tie_word_embeddings": "no"}, "tie_word_embeddings must be"),
        ({**LLAMA_3_8B, "quantization_config": {"bits": 3}}, "must say 4 or 8 bits"),
        ({**LLAMA_3_8B, "quantization_config": 4}, "quantization_config must be an object"),
        (
            {**LLAMA_3_8B, "quantization_config": {"bits": 4, "group_size": 0}},
            "quantization_config: group_size must be at least 1, got 0",
        ),
        (
            {**LLAMA_3_8B, "quantization_config": {"bits": 4, "group_size": "g"}},
            "group_size must be a whole number, got 'g'",
        ),
        ({**CONFIGS["mistral-7b"], "layer_types": ["x"]}, "layer_types must list 32 layers"),
        ({**CONFIGS["mistral-7b"], "layer_types": ["x"] * 32}, "layer_types must be of slid"),
        ({**CONFIGS["mistral-7b"], "sliding_window": -1}, "sliding_window must be at least 1"),
        ({**OPT_6_7B, "word_embed_proj_dim": 512}, "word_embed_proj_dim must be hidden_size"),
    ],
)
def test_bad_configurations(config, message, tmp_path):
    path = written(tmp_path, config)
    with pytest.raises((ValueError, TypeError), match=message.replace("[", r"\[")) as caught:
        read_model(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_bad_arguments(tmp_path):
    written(tmp_path, LLAMA_3_8B)
    with pytest.raises(ValueError, match="unknown weights 'fp4'"):
        read_model(tmp_path, weights="fp4")
    with pytest.raises(TypeError, match="path must be a string or a path, got 3"):
        read_model(3)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "nothing")


# safetensors

TINY = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 3, "num_key_value_heads": 1, "vocab_size": 32,
}  # fmt: skip
BYTES = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I8": 1}


def safetensors(path: Path, tensors, cut=0, header=None) -> None:
    """Write a file of tensors, name -> (dtype, shape), whose content is a hole."""
    at, entries = 0, {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in tensors.items():
        n_bytes = BYTES[dtype]
        for n in shape:
            n_bytes *= n
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    content = json.dumps(entries).encode() if header is None else header
    whole = len(content).to_bytes(8, "little") + content + bytes(at)
    path.write_bytes(whole[: len(whole) - cut])


def llama_layer(number: int, dtype="F16"):
    layer = f"model.layers.{number}"
    return {
        f"{layer}.input_layernorm.weight": (dtype, [8]),
        f"{layer}.self_attn.q_proj.weight": (dtype, [8, 8]),
        f"{layer}.self_attn.k_proj.weight": (dtype, [4, 8]),
        f"{layer}.self_attn.v_proj.weight": (dtype, [4, 8]),
        f"{layer}.self_attn.o_proj.weight": (dtype, [8, 8]),
        f"{layer}.mlp.gate_proj.weight": (dtype, [16, 8]),
        f"{layer}.mlp.up_proj.weight": (dtype, [16, 8]),
        f"{layer}.mlp.down_proj.weight": (dtype, [8, 16]),
    }


ENDS = {
    "model.embed_tokens.weight": ("F16", [32, 8]),
    "model.norm.weight": ("F16", [8]),
    "lm_head.weight": ("F16", [32, 8]),
}
LAYER_BYTES = 2 * (8 + 64 + 32 + 32 + 64 + 3 * 128)


def tensors(**dtypes):
    layers = (llama_layer(n, dtypes.get(f"layer{n}", "F16")) for n in range(3))
    return {**ENDS, **{name: entry for layer in layers for name, entry in layer.items()}}


def sharded(folder: Path, all_tensors) -> None:
    """Write a model in two files with an index."""
    names = list(all_tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, of_file in files.items():
        safetensors(folder / file, {name: all_tensors[name] for name in of_file})
    weight_map = {name: file for file, of_file in files.items() for name in of_file}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def single(folder: Path, all_tensors) -> None:
    safetensors(folder / "model.safetensors", all_tensors)


@pytest.mark.parametrize("store", [single, sharded])
def test_bytes_are_those_of_the_tensors(store, tmp_path):
    written(tmp_path, TINY)
    store(tmp_path, tensors())
    model = read_model(tmp_path)
    shape = read_model(tmp_path / "config.json")
    assert [b.weight_bytes for b in model.blocks] == [512, *[LAYER_BYTES] * 3, 512 + 16]
    assert [b.kind for b in model.blocks] == ["embedding", *["layer"] * 3, "head"]
    assert model.blocks[0].gathered_bytes_per_token == 16
    assert model.blocks[1].always_read_bytes == LAYER_BYTES
    assert shape.blocks[1].weight_bytes == LAYER_BYTES - 16  # without the norm
    assert model.blocks[1].flops_per_token == shape.blocks[1].flops_per_token
    assert not model.extrapolated
    assert "bytes as in" in model.source


def test_layers_that_differ_are_kinds_of_their_own(tmp_path):
    written(tmp_path, TINY)
    single(tmp_path, tensors(layer1="F32"))
    blocks = read_model(tmp_path).blocks
    assert [b.kind for b in blocks[1:-1]] == ["layer", "layer#1", "layer"]
    assert blocks[2].weight_bytes == 2 * LAYER_BYTES == 2 * blocks[1].weight_bytes


@pytest.mark.parametrize("has_copy", [False, True])
def test_tied_embeddings_are_held_once_by_one_stage(has_copy, tmp_path):
    written(tmp_path, {**TINY, "tie_word_embeddings": True})
    stored = tensors()
    if not has_copy:
        del stored["lm_head.weight"]
    single(tmp_path, stored)
    model = read_model(tmp_path)
    assert model.tied_bytes == 512
    assert model.blocks[-1].weight_bytes == 512 + 16


def test_experts_are_told_from_the_rest(tmp_path):
    config = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    written(tmp_path, config)
    stored = {n: e for n, e in tensors().items() if ".mlp." not in n}
    for layer in range(3):
        moe = f"model.layers.{layer}.block_sparse_moe"
        stored[f"{moe}.gate.weight"] = ("F16", [4, 8])
        for expert in range(4):
            for name, shape in (("w1", [16, 8]), ("w2", [8, 16]), ("w3", [16, 8])):
                stored[f"{moe}.experts.{expert}.{name}.weight"] = ("F16", shape)
    single(tmp_path, stored)
    block = read_model(tmp_path).blocks[1]
    assert block.expert_bytes == 2 * 3 * 128
    assert block.always_read_bytes == LAYER_BYTES - 2 * 3 * 128 + 2 * 32
    assert block.weight_bytes == block.always_read_bytes + 4 * block.expert_bytes


def test_gpt2_has_other_names(tmp_path):
    written(tmp_path, {**GPT_2, "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 32})
    single(
        tmp_path,
        {
            "wte.weight": ("F32", [32, 8]), "wpe.weight": ("F32", [10, 8]),
            "h.0.attn.c_attn.weight": ("F32", [8, 24]), "ln_f.weight": ("F32", [8]),
            "h.0.attn.bias": ("F32", [1, 1, 10, 10]),  # a mask, no weights
        },
    )  # fmt: skip
    model = read_model(tmp_path)
    assert [b.weight_bytes for b in model.blocks] == [1024 + 320, 768, 1024 + 32]
    assert model.blocks[0].gathered_bytes_per_token == 32
    assert model.extrapolated  # 32 bits


def test_formats_asked_for_follow_from_stored_16_bits(tmp_path):
    """A stored layer that is larger than config.json says keeps its size."""
    written(tmp_path, TINY)
    wide = {
        name: (dtype, [2 * shape[0], *shape[1:]] if ".layers.0." in name else shape)
        for name, (dtype, shape) in tensors().items()
    }
    single(tmp_path, wide)
    stored = read_model(tmp_path)
    assert read_model(tmp_path, weights="fp16").blocks == stored.blocks
    assert read_model(tmp_path, weights="bf16").blocks == stored.blocks
    for weights, share, of_ends in (("int8", 1 / 2, 1), ("q8_0", 34 / 64, 34 / 64)):
        less = read_model(tmp_path, weights=weights)
        assert less.extrapolated and less.name.endswith(weights)
        for block, of_stored in zip(less.blocks, stored.blocks, strict=True):
            of_block = share if block.kind.startswith("layer") else of_ends
            assert block.weight_bytes == pytest.approx(of_block * of_stored.weight_bytes, abs=2)
            assert block.kv_bytes_per_token == of_stored.kv_bytes_per_token


def test_stored_16_bits_in_a_format_of_unequal_layers(tmp_path):
    """In q4_k_m, equal stored layers become two kinds, as llama.cpp would write them."""
    written(tmp_path, TINY)
    single(tmp_path, tensors())
    shape = read_model(tmp_path / "config.json", weights="q4_k_m")
    model = read_model(tmp_path, weights="q4_k_m")
    assert [b.kind for b in model.blocks] == [b.kind for b in shape.blocks]
    stored = read_model(tmp_path)
    for block, of_shape, before in zip(model.blocks, shape.blocks, stored.blocks, strict=True):
        assert of_shape.weight_bytes <= block.weight_bytes < 0.6 * before.weight_bytes


def test_another_format_asked_for_leaves_the_tensors_alone(tmp_path):
    written(tmp_path, TINY)
    single(tmp_path, tensors(layer0="F32"))
    shape = read_model(tmp_path / "config.json", weights="int8")
    assert read_model(tmp_path, weights="int8").blocks == shape.blocks


def broken(change):
    """Write a good folder, change it, and read it."""

    def run(folder: Path):
        written(folder, TINY)
        sharded(folder, tensors())
        change(folder)
        return read_model(folder)

    return run


def replaced(**changes):
    def change(folder: Path) -> None:
        stored = tensors()
        for name, entry in changes.items():
            name = name.replace("__", ".")
            stored.pop(name, None)
            if entry is not None:
                stored[name] = entry
        sharded(folder, stored)

    return change


def one(content):
    return lambda folder: (folder / "one.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "two.safetensors").unlink(), "file 'two.safetensors' must be there"),
        (one(b""), "one.safetensors: no safetensors file, or cut short: no whole header"),
        (one(b"\xff" * 100), "one.safetensors: no safetensors file, or cut short"),
        (one((5).to_bytes(8, "little") + b"hello"), "its header is not of that form"),
        (one((2).to_bytes(8, "little") + b"[]"), "its header is not of that form"),
        (one((10).to_bytes(8, "little") + b'{"a": "b"}'), "its header is not of that form"),
        (lambda f: safetensors(f / "one.safetensors", tensors(), cut=1), "file is cut short"),
        (
            lambda f: safetensors(
                f / "one.safetensors", {},
                header=b'{"x": {"dtype": "F16", "shape": [1], "data_offsets": [2, 0]}}',
            ),
            "tensor 'x': header is not of the right form",
        ),
        (replaced(model__projector__weight=("F16", [3])), "'model.projector.weight' belongs"),
        (
            replaced(vision_tower__encoder__layers__0__weight=("F16", [3])),
            "'vision_tower.encoder.layers.0.weight' belongs to no block",
        ),
        (
            replaced(model__embed_tokens__weight=("F16", [32, 9])),
            "the embedding's table must have 8 columns as config.json says, got 9",
        ),
        (lambda f: (f / INDEX).unlink(), "one.safetensors needs model.safetensors.index.json"),
        (replaced(lm_head__weight=None), "no tensor of the head, and embeddings are not tied"),
        (replaced(**dict.fromkeys(llama_layer(1))), "no tensor of layer 1"),
        (replaced(**dict.fromkeys(llama_layer(2))), "must hold 3 layers"),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'),
            "weight_map must map tensors to files",
        ),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../secret"}}'),
            "a file must be in the same folder, got 'secret'",
        ),
    ],
)  # fmt: skip
def test_bad_folders(change, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        broken(change)(tmp_path)
    assert "\n" not in str(caught.value)
