"""GGUF files: shape and true sizes from headers, and every malformed header refused."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.formats import gguf_header
from hypsolve.formats.gguf import ARCHITECTURES
from hypsolve.formats.huggingface import model_type_of
from tests.helpers.gguf_files import (
    header,
    llama_tensors,
    metadata_of,
    n_bytes,
    packed,
    text,
    write,
)


def small(tmp_path, mix="Q4_K_M", name="small.gguf", **shape):
    return write(tmp_path / name, metadata_of(), llama_tensors(mix, **shape))


def bytes_of(tensors, prefix):
    return sum(n_bytes(shape, kind) for name, shape, kind in tensors if name.startswith(prefix))


# models


def test_each_block_has_the_bytes_of_its_tensors(tmp_path):
    """The plan must hold what llama.cpp loads; today this file is "truncated JSON"."""
    model = hs.read_model(small(tmp_path))
    tensors = llama_tensors()
    assert model.blocks[0].weight_bytes == bytes_of(tensors, "token_embd")
    assert model.blocks[0].gathered_bytes_per_token == n_bytes((256,), "Q4_K")
    for i, block in enumerate(model.blocks[1:-1]):
        assert block.weight_bytes == block.always_read_bytes == bytes_of(tensors, f"blk.{i}.")
        assert block.kv_bytes_per_token == 2 * 2 * 64 * 2
        assert block.flops_per_token == 2 * 256 * (2 * 256 + 2 * 128 + 3 * 512)
    assert model.blocks[-1].weight_bytes == bytes_of(tensors, "output")
    assert (model.name, model.context_tokens, model.tied_bytes) == ("small", 8192, 0)
    assert model.extrapolated
    assert [block.kind for block in model.blocks] == [
        "embedding", "layer", "layer", "layer#1", "layer#1", "head",
    ]  # fmt: skip


@pytest.mark.parametrize("weights", ["q4_k_m", "q5_k_m", "q8_0", "q4_0"])
def test_a_file_of_llama_3_is_the_catalogues_format(tmp_path, weights):
    """Two independent ways to the same bytes; only the norms are not in the catalogue."""
    tensors = llama_tensors(
        weights.upper(), n_layers=32, hidden=4096, ffn=14336, kv=1024, vocab=128256
    )
    shape = {
        "block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336,
        "attention__head_count": 32, "attention__head_count_kv": 8,
    }  # fmt: skip
    path = write(tmp_path / "big.gguf", metadata_of(**shape), tensors)
    model, named = hs.read_model(path), hs.model("llama-3-8b", weights)
    assert model.blocks[0] == named.blocks[0]
    norm_bytes = 4096 * 4
    for block, expected in zip(model.blocks[1:-1], named.blocks[1:-1], strict=True):
        more = {"weight_bytes": expected.weight_bytes + 2 * norm_bytes, "kind": block.kind}
        more["always_read_bytes"] = expected.always_read_bytes + 2 * norm_bytes
        assert block == replace(expected, **more)
    assert model.blocks[-1].weight_bytes == named.blocks[-1].weight_bytes + norm_bytes
    assert path.stat().st_size == pytest.approx(model.weight_bytes, abs=50_000)


def test_a_tied_table_is_held_once(tmp_path):
    """Without output.weight, llama.cpp uses the embedding table as head."""
    path = small(tmp_path, tied=True)
    model = hs.read_model(path)
    table = n_bytes((256, 300), "Q6_K")
    assert model.tied_bytes == model.blocks[0].weight_bytes == table
    assert model.blocks[-1].weight_bytes == table + 256 * 4
    assert model.stage_weight_bytes(model.blocks) == bytes_of(llama_tensors(tied=True), "")


@pytest.mark.parametrize("one_by_one", [False, True], ids=["merged", "one by one"])
def test_experts_are_read_in_part(tmp_path, one_by_one):
    """A mixture of experts, as tensors of all experts and in the older form of one each."""
    tensors = llama_tensors("Q8_0", n_experts=4)
    if one_by_one:
        split = []
        for name, shape, kind in tensors:
            names = [name.replace("_exps", f".{e}") for e in range(4)]
            split += (
                [(each, shape[:2], kind) for each in names]
                if "_exps" in name
                else [(name, shape, kind)]
            )
        tensors = split
    metadata = metadata_of(expert_count=4, expert_used_count=2)
    layer = hs.read_model(write(tmp_path / "moe.gguf", metadata, tensors)).blocks[1]
    assert (layer.n_experts, layer.experts_per_token) == (4, 2)
    assert layer.expert_bytes == 3 * n_bytes((256, 512), "Q8_0")
    assert layer.weight_bytes == bytes_of(tensors, "blk.0.")
    assert layer.always_read_bytes == layer.weight_bytes - 4 * layer.expert_bytes
    always, expert = 256 * (2 * 256 + 2 * 128 + 4), 3 * 256 * 512
    assert layer.flops_per_token == 2 * (always + 2 * expert)


def test_gpt_oss_has_mxfp4_experts_and_every_second_window(tmp_path):
    """Its routers and experts have biases, and its heads have sinks."""
    tensors = []
    for name, shape, kind in llama_tensors("Q8_0", n_experts=4):
        tensors.append((name, shape, "MXFP4" if "_exps" in name else kind))
        if "_exps" in name or "_inp" in name:
            bias = name.replace("weight", "bias")
            tensors.append((bias, (shape[1], 4) if "_exps" in name else (4,), "F32"))
        if "attn_output" in name:
            tensors.append((name.replace("output.weight", "sinks.weight"), (4,), "F32"))
    keys = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 512}
    metadata = metadata_of("gpt-oss", attention__sliding_window=128, **keys)
    model = hs.read_model(write(tmp_path / "oss.gguf", metadata, tensors))
    assert [block.window_tokens for block in model.blocks[1:-1]] == [128, None, 128, None]
    biases = (2 * 512 + 256) * 4
    experts = 3 * n_bytes((256, 512), "MXFP4") + biases
    assert [block.expert_bytes for block in model.blocks[1:-1]] == [experts] * 4


def test_shared_experts_are_always_read(tmp_path):
    """Qwen2-MoE has experts that every token visits."""
    tensors = llama_tensors("Q8_0", n_experts=4, n_layers=1)
    tensors.insert(2, ("blk.0.ffn_up_shexp.weight", (256, 512), "Q8_0"))
    keys = {"block_count": 1, "expert_count": 4, "expert_used_count": 1}
    metadata = metadata_of("qwen2moe", **keys, expert_feed_forward_length=512)
    layer = hs.read_model(write(tmp_path / "moe.gguf", metadata, tensors)).blocks[1]
    alone = hs.read_model(
        write(tmp_path / "b.gguf", metadata, [t for t in tensors if "shexp" not in t[0]])
    ).blocks[1]
    assert layer.always_read_bytes - alone.always_read_bytes == n_bytes((256, 512), "Q8_0")
    assert layer.flops_per_token - alone.flops_per_token == 2 * 256 * 512


def windows(path):
    return [block.window_tokens for block in hs.read_model(path).blocks[1:-1]]


@pytest.mark.parametrize(
    ("arch", "expected"),  # llama.cpp's set_swa_pattern: all but the last of a period
    [
        ("gemma2", [64, None, 64, None, 64, None, 64, None]),
        ("gemma3", [64, 64, 64, 64, 64, None, 64, 64]),
        ("phi3", [None] * 8),  # switched off in pull request 13676
        ("llama", [None] * 8),
    ],
)
def test_windows_follow_the_architecture(tmp_path, arch, expected):
    """The KV reads of a layer depend on its window."""
    metadata = metadata_of(arch, block_count=8, attention__sliding_window=64)
    assert windows(write(tmp_path / "w.gguf", metadata, llama_tensors(n_layers=8))) == expected


def test_a_pattern_of_windows_may_be_given(tmp_path):
    """Newer files list the windowed layers, or the period."""
    own = {"attention__sliding_window": 64}
    flags = metadata_of("gemma3", **own) | {
        "gemma3.attention.sliding_window_pattern": [True, False, False, True]
    }
    assert windows(write(tmp_path / "a.gguf", flags, llama_tensors())) == [64, None, None, 64]
    period = flags | {"gemma3.attention.sliding_window_pattern": 2}
    assert windows(write(tmp_path / "b.gguf", period, llama_tensors())) == [64, None, 64, None]


def test_layers_of_different_shapes(tmp_path):
    """Pruned models have an array of heads or widths; each shape is a kind of its own."""
    tensors = [
        (name, tuple(64 if n == 128 else n for n in shape), kind)
        if name.startswith(("blk.2.attn_k", "blk.2.attn_v"))
        else (name, shape, kind)
        for name, shape, kind in llama_tensors("Q8_0")
    ]
    metadata = metadata_of(attention__head_count_kv=[2, 2, 1, 2])
    layers = hs.read_model(write(tmp_path / "a.gguf", metadata, tensors)).blocks[1:-1]
    assert [block.kv_bytes_per_token for block in layers] == [512, 512, 256, 512]
    assert len({block.kind for block in layers}) == 2


def test_phi_3_has_fused_matrices(tmp_path):
    """The gate is half of ffn_up; query, key and value are one matrix with bits of its own."""
    tensors = llama_tensors("Q4_K_M", fused=True, n_layers=1)
    metadata = metadata_of("phi3", block_count=1)
    path = write(tmp_path / "phi.gguf", metadata, tensors)
    layer = hs.read_model(path).blocks[1]
    assert layer.flops_per_token == 2 * 256 * (2 * 256 + 2 * 128 + 3 * 512)
    assert layer.weight_bytes == bytes_of(tensors, "blk.0.")
    q8_0 = hs.read_model(path, weights="q8_0").blocks[1]
    assert q8_0.weight_bytes == 256 * (2 * 256 + 2 * 128 + 3 * 512) * 34 // 32


def test_key_length_is_the_size_of_a_head(tmp_path):
    """Qwen3 and Gemma have heads that do not add up to the hidden size."""
    metadata = metadata_of("qwen3", attention__key_length=128, attention__value_length=128)
    tensors = llama_tensors("Q8_0", kv=256, query=512)
    layer = hs.read_model(write(tmp_path / "q.gguf", metadata, tensors)).blocks[1]
    assert layer.kv_bytes_per_token == 2 * 2 * 128 * 2
    assert layer.attention_flops_per_pair == 4 * 4 * 128


def test_16_bit_files_are_measured_and_can_be_converted(tmp_path):
    """A BF16 file in q8_0 is what llama-quantize makes of it."""
    path = small(tmp_path, "BF16", "b.gguf")
    model, converted = hs.read_model(path), hs.read_model(path, weights="q8_0")
    assert not model.extrapolated and converted.extrapolated
    assert converted.name == "b-q8_0"
    for before, after in zip(model.blocks, converted.blocks, strict=True):
        assert after.weight_bytes == pytest.approx(before.weight_bytes * 34 / 64, rel=1e-4)
        assert after.flops_per_token == before.flops_per_token


def test_a_quantised_file_in_another_format_follows_from_its_shape(tmp_path):
    """What-if scenarios ask for other formats; the tensors say nothing about those."""
    path = small(tmp_path)
    assert hs.read_model(path, weights="fp16").blocks[1].weight_bytes == 2 * 256 * (
        2 * 256 + 2 * 128 + 3 * 512
    )
    assert not hs.read_model(path, weights="fp16").extrapolated
    with pytest.raises(ValueError, match="unknown weights 'q4'"):
        hs.read_model(path, weights="q4")


def test_versions_alignments_and_names(tmp_path):
    """Version 2 files are still about; alignment is a key; Ollama's blobs have no ending."""
    expected = hs.read_model(small(tmp_path)).blocks
    old = write(tmp_path / "old.gguf", metadata_of(), llama_tensors(), version=2)
    assert hs.read_model(old).blocks == expected
    wide = metadata_of() | {"general.alignment": 4096}
    path = write(tmp_path / "sha256-1a2b", wide, llama_tensors(), alignment=4096)
    assert hs.read_model(path).blocks == expected
    assert hs.read_model(path).name == "sha256-1a2b"
    assert hs.read_model(path, name="mine").name == "mine"


def test_a_plan_is_made_from_a_file(tmp_path, capsys):
    """The command takes the file as --model, as a user would."""
    path = small(tmp_path, name="Tiny-Q4_K_M.gguf")
    network = tmp_path / "network.toml"
    network.write_text('[[tiers]]\nname = "desk"\nnodes = [{gpu = "rtx-3060"}]\n')
    with pytest.raises(SystemExit) as stop:
        from hypsolve import cli

        cli.main(["plan", "--model", str(path), "--network", str(network), "--export", "torch"])
    assert stop.value.code == 0
    plan = hs.plan(str(path), network, with_upgrades=False)
    assert plan.model.name == "Tiny-Q4_K_M" and plan.fits
    assert model_type_of(path) == "llama"
    phi = write(tmp_path / "phi.gguf", metadata_of("phi3"), llama_tensors(fused=True))
    assert model_type_of(phi) == "phi3"


# shards and folders


def shards(tmp_path, n=3, **changes):
    """Write a model as llama-gguf-split does: metadata in the first file."""
    tensors = llama_tensors()
    size = -(-len(tensors) // n)
    for i in range(n):
        own = {"split.no": i, "split.count": n, "split.tensors.count": len(tensors)} | changes
        metadata = metadata_of() | own if i == 0 else own
        name = f"Big-Q4_K_M-{i + 1:05d}-of-{n:05d}.gguf"
        write(tmp_path / name, metadata, tensors[i * size : (i + 1) * size])
    return tmp_path / f"Big-Q4_K_M-00001-of-{n:05d}.gguf"


def test_any_shard_reads_all(tmp_path):
    """Large models come in shards; the first one alone says little about the weights."""
    whole = hs.read_model(small(tmp_path))
    first = shards(tmp_path)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    for path in (first, second):
        model = hs.read_model(path)
        assert (model.name, model.blocks) == ("Big-Q4_K_M", whole.blocks)


def test_a_folder_with_one_model(tmp_path):
    """Downloads of one model are folders."""
    first = shards(tmp_path)
    assert hs.read_model(tmp_path) == hs.read_model(first)
    small(tmp_path)
    with pytest.raises(ValueError, match=r"name one of the GGUF files in this folder, such as"):
        hs.read_model(tmp_path)


def test_broken_shards(tmp_path):
    """A missing or foreign shard would be a smaller model."""
    first = shards(tmp_path)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match=r"shard 'Big-Q4_K_M-00002-of-00003.gguf' must be"):
        hs.read_model(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"00002-of-.*: split.no must be 1, as its name"):
        hs.read_model(first)
    second.write_bytes(content.replace(b"blk.2.attn_q.weight", b"blk.0.attn_q.weight"))
    with pytest.raises(ValueError, match=r"must be in one shard, got a second"):
        hs.read_model(first)
    with pytest.raises(ValueError, match=r"split.tensors.count = 9 tensors, got 39"):
        hs.read_model(shards(tmp_path, **{"split.tensors.count": 9}))
    alone = metadata_of() | {"split.count": 2}
    with pytest.raises(ValueError, match=r"named .* NAME-00001-of-00002.gguf, got"):
        hs.read_model(write(tmp_path / "a.gguf", alone, llama_tensors()))


# malformed headers

HUGE = 2**63


def broken_value(value: bytes):
    """Return a file whose only key has a value of these bytes."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a.b") + value + bytes(64)


def broken_tensor(*dims, kind=0, offset=0, n_dims=None, name="a.weight"):
    """Return a file with a tensor."""
    n_dims = len(dims) if n_dims is None else n_dims
    info = text(name) + struct.pack(f"<I{len(dims)}Q", n_dims, *dims)
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    return content + struct.pack("<IQ", kind, offset) + bytes(99)


COUNTS = "<IQQ"
MALFORMED = {
    "empty": (b"", "magic must end within the file of 0 bytes, got an end at 4"),
    "magic": (b"GGML" + bytes(99), "not a GGUF file: its first bytes must be 'GGUF'"),
    "version": (b"GGUF" + struct.pack(COUNTS, 1, 0, 0), "version must be 2 or 3, got 1"),
    "endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"got 50331648 \(big endian\)"),
    "cut": (b"GGUF" + struct.pack("<IQ", 3, 0), "metadata_kv_count must end within the file"),
    "tensors": (
        b"GGUF" + struct.pack(COUNTS, 3, HUGE, 0),
        f"tensor_count must be at most {gguf_header.MAX_TENSORS}, got {HUGE}",
    ),
    "room": (
        b"GGUF" + struct.pack(COUNTS, 3, 0, 999) + bytes(99),
        "metadata_kv_count must leave room for its content in the file of 123 bytes, got 999",
    ),
    "keys": (
        b"GGUF" + struct.pack(COUNTS, 3, 0, HUGE),
        f"metadata_kv_count must be at most {gguf_header.MAX_KEYS}, got {HUGE}",
    ),
    "key length": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + bytes(99),
        f"length of key 0 must be at most 65535, got {HUGE}",
    ),
    "key": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xff" + bytes(99),
        r"key 0 must be UTF-8, got b'\\xff\\xff'",
    ),
    "kind": (
        broken_value(struct.pack("<I", 13)),
        "type of value of 'a.b' must be from 0 to 12, got 13",
    ),
    "flag": (broken_value(packed(2, 7)), r"must be true \(1\) or false \(0\), got 2"),
    "string": (
        broken_value(struct.pack("<IQ", 8, HUGE)),
        f"length of value of 'a.b' must be at most {2**27}, got {HUGE}",
    ),
    "array": (
        broken_value(struct.pack("<IIQ", 9, 4, 2**22)),
        "length of value of 'a.b' must leave room for its content in the file of 115 bytes",
    ),
    "long array": (
        broken_value(struct.pack("<IIQ", 9, 8, HUGE)),
        f"length of value of 'a.b' must be at most {2**23}, got {HUGE}",
    ),
    "nested": (
        broken_value(struct.pack("<IIQ", 9, 9, 1)),
        r"entries in value of 'a.b' must be numbers or strings .*, got 9",
    ),
    "twice": (
        b"GGUF" + struct.pack(COUNTS, 3, 0, 2) + 2 * (text("a.b") + packed(1)),
        "key 'a.b' must occur once, got a second",
    ),
    "no dimension": (broken_tensor(), "'a.weight': n_dimensions must be from 1 to 4, got 0"),
    "dimensions": (broken_tensor(1, n_dims=2**31), "must be from 1 to 4, got 21474"),
    "no weights": (broken_tensor(4, 0), r"must have 1 to 2\*\*60 weights, got \(4, 0"),
    "weights": (broken_tensor(HUGE, HUGE), r"must have 1 to 2\*\*60 weights, got \(92"),
    "type": (broken_tensor(4, kind=4), "tensor 'a.weight': type must be one of ggml's, got 4"),
    "block": (
        broken_tensor(100, kind=12),
        "first dimension must be a multiple of 256, the block of Q4_K, got 100",
    ),
    "offset": (
        broken_tensor(4, offset=HUGE),
        f"offset must be 0, where the tensor before ends, got {HUGE}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_headers_name_file_field_rule_and_value(case, tmp_path):
    """Counts and lengths of a downloaded file are not trusted."""
    content, message = MALFORMED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        hs.read_model(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("alignment", [0, 3, 2**17, "wide"])
def test_alignment_is_a_power_of_2(tmp_path, alignment):
    """An alignment of 0 divides by zero."""
    metadata = metadata_of() | {"general.alignment": alignment}
    path = write(tmp_path / "bad.gguf", metadata, llama_tensors())
    with pytest.raises(ValueError, match=r"general.alignment must be a power of 2 up to 65536"):
        hs.read_model(path)


SHAPES = {
    "architecture": ({"general.architecture": "mamba"}, "one of llama, .*, got 'mamba'"),
    "no architecture": ({"general.architecture": None}, "general.architecture .* got None"),
    "layers": ({"llama.block_count": 2**32 - 1}, "block_count must be at most 10000, got"),
    "no layers": ({"llama.block_count": 0}, "metadata: llama.block_count must be at least 1"),
    "few layers": ({"llama.block_count": 3}, "must belong to a layer below block_count = 3"),
    "many layers": ({"llama.block_count": 5}, "layer 4 must have tensors, got none"),
    "missing": ({"llama.embedding_length": None}, "key 'llama.embedding_length' is missing"),
    "hidden": ({"llama.embedding_length": 512}, "embedding_length = 512 columns, got 256"),
    "text": ({"llama.block_count": "4"}, "llama.block_count must be a whole number, got '4'"),
    "float": ({"llama.block_count": 4.0}, "llama.block_count must be a whole number, got 4.0"),
    "heads": ({"llama.attention.head_count": 5}, "a multiple of attention.head_count = 5"),
    "kv heads": ({"llama.attention.head_count_kv": 3}, "must be a multiple of n_kv_heads = 3"),
    "array": ({"llama.feed_forward_length": [512]}, "an entry for each of the 4 layers, got 1"),
    "zero": ({"llama.attention.head_count": [4, 4, 0, 4]}, "must be at least 1, got 0"),
    "values": (
        {"llama.attention.value_length": 32},
        r"value_length must be key_length = 64 \(no other is known here\), got 32",
    ),
    "experts": ({"llama.expert_count": 4}, "key 'llama.expert_used_count' is missing"),
    "used": (
        {"llama.expert_count": 4, "llama.expert_used_count": 5},
        "experts_per_token must be at most n_experts = 4, got 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_wrong_shapes_are_refused(case, tmp_path):
    """A header that is well formed may still describe no model."""
    changes, message = SHAPES[case]
    metadata = metadata_of() | changes
    metadata = {key: value for key, value in metadata.items() if value is not None}
    path = write(tmp_path / "bad.gguf", metadata, llama_tensors())
    with pytest.raises((ValueError, TypeError), match=message) as error:
        hs.read_model(path)
    assert str(error.value).startswith(f"{path}: ")


TENSORS = {
    "other": (("v.blk.0.attn_q.weight", (256, 256), "F16"), "belongs to no block"),
    "twice": (("token_embd.weight", (256, 300), "F16"), "must occur once, got a second"),
    "experts": (("blk.0.ffn_up_exps.weight", (256, 8, 4), "F16"), "must have expert_count = 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_unknown_tensors_are_refused(case, tmp_path):
    """Bytes that belong to no block would be missing from the plan."""
    tensor, message = TENSORS[case]
    path = write(tmp_path / "bad.gguf", metadata_of(), [*llama_tensors(), tensor])
    with pytest.raises(ValueError, match=message):
        hs.read_model(path)


def test_models_without_a_table_are_refused(tmp_path):
    """A vocabulary file has no tensors; a projector has no table."""
    path = write(tmp_path / "vocab.gguf", metadata_of(), [])
    with pytest.raises(ValueError, match="layer 0 must have tensors, got none"):
        hs.read_model(path)
    path = write(tmp_path / "no-table.gguf", metadata_of(), llama_tensors()[1:])
    with pytest.raises(ValueError, match=r"tensor 'token_embd.weight' is missing"):
        hs.read_model(path)


def test_huge_sparse_files_are_refused_soon(tmp_path):
    """A header that claims two of the longest arrays must not fill the memory."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 3))
        for key in ("a", "b", "c"):
            file.write(text(key) + struct.pack("<IIQ", 9, 12, 2**23))
            file.seek(8 * 2**23, 1)
        file.truncate(2**33)
    message = f"header must have at most {2**27} bytes|must leave room for its content"
    with pytest.raises(ValueError, match=message):
        hs.read_model(path)


FILE, SIZE = header(metadata_of(), llama_tensors())


@pytest.mark.parametrize("n_bytes", [0, 1, 1000])
def test_the_first_bytes_of_a_file_are_enough(n_bytes, tmp_path):
    """Nobody must fetch 40 GB to plan for them; a table that is cut is no whole header."""
    whole, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    whole.write_bytes(FILE)
    with whole.open("r+b") as file:
        file.truncate(SIZE)
    cut.write_bytes(FILE + bytes(n_bytes))
    model = hs.read_model(cut, name="whole")
    assert model.blocks == hs.read_model(whole).blocks
    assert cut.stat().st_size < SIZE
    cut.write_bytes(FILE.rstrip(b"\0")[:-9])
    with pytest.raises(ValueError, match=r"must end within the file .* is cut short"):
        hs.read_model(cut)


@given(data=st.data())
def test_mutated_files_give_a_model_or_one_error(tmp_path_factory, data):
    """Whatever the bytes: a model, or a ValueError or TypeError that names the file."""
    content = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        deed = data.draw(st.sampled_from(["set", "word", "insert", "delete", "cut"]))
        if deed == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif deed == "word":  # counts and lengths are words of 8 bytes
            content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
        elif deed == "insert":
            content[at:at] = data.draw(st.binary(max_size=9))
        elif deed == "delete":
            del content[at : at + data.draw(st.integers(0, 9))]
        else:
            del content[at:]
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(max(SIZE, len(content)))
    try:
        model = hs.read_model(path)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 700 + len(str(path))
    else:
        assert model.n_blocks == len(model.blocks) >= 3


@given(content=st.binary(max_size=400))
def test_random_bytes_behind_the_counts(tmp_path_factory, content):
    """Few random files get past the counts, so these begin behind them."""
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + content)
    with pytest.raises(ValueError, match=r"random.gguf: "):
        hs.read_model(path)


def test_the_package_gguf_reads_the_same(tmp_path):
    """The official reader is an oracle for names, types, sizes and metadata."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "whole.gguf"
    content, size = header(metadata_of(), llama_tensors())
    path.write_bytes(content + bytes(size - len(content)))
    official = gguf.GGUFReader(path)
    own = gguf_header.read_header(path)
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in own.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes)
        for t in official.tensors
    ]
    for key in ("general.architecture", "llama.block_count", "tokenizer.ggml.scores"):
        value = official.get_field(key).contents()
        assert own.metadata[key] == (tuple(value) if isinstance(value, list) else value)
    sizes = gguf.constants.GGML_QUANT_SIZES
    for number, (name, weights, block_bytes) in gguf_header.TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, sizes[kind]) == (name, (weights, block_bytes))
    known = set(gguf.constants.MODEL_ARCH_NAMES.values())
    assert set(ARCHITECTURES) <= known


@pytest.mark.parametrize("max_tensors", [0, 5], ids=["one file", "shards"])
def test_files_that_the_package_gguf_writes(tmp_path, max_tensors):
    """The official writer is an oracle of what files look like, sharded ones included."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(None, "llama", split_max_tensors=max_tensors)
    writer.add_block_count(4)
    writer.add_context_length(8192)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token-{i}" for i in range(300)])
    for name, shape, kind in llama_tensors("Q8_0"):
        floats = np.zeros(tuple(reversed(shape)), np.float32)
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(floats, quantised), raw_dtype=quantised)
    writer.write_header_to_file(tmp_path / "official.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) == (8 if max_tensors else 1)
    own = write(tmp_path / "own" / "own.gguf", metadata_of(), llama_tensors("Q8_0"))
    model = hs.read_model(files[-1])
    assert model.name == "official" and model.context_tokens == 8192
    assert model.blocks == hs.read_model(own).blocks
