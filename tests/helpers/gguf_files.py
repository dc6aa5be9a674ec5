"""Writer of GGUF files whose tensors are holes, and the tensors that llama.cpp would write.

It shares no code with the reader: sizes of blocks and the choice of types are stated again.
"""

import struct
from pathlib import Path

BLOCKS = {  # number of the type, weights and bytes of a block
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18),
    "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17),
}  # fmt: skip


def packed(value, kind=None) -> bytes:
    """Return the type and the content of a value of metadata."""
    if kind is not None:
        form = {0: "B", 2: "H", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q"}[kind]
        return struct.pack(f"<I{form}", kind, value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    first = value[0] if value else 0
    kind, entries = packed(first)[:4], b"".join(packed(each)[4:] for each in value)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + entries


def text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def n_bytes(shape, kind: str) -> int:
    """Return the bytes of a tensor."""
    _, weights, size = BLOCKS[kind]
    total = size
    for length in shape:
        total *= length
    return total // weights


def header(metadata, tensors, version=3, alignment=32) -> tuple[bytes, int]:
    """Return the header of a file, and the size of the file."""
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        content += text(key) + packed(value)
    at = 0
    for name, shape, kind in tensors:
        content += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        content += struct.pack("<IQ", BLOCKS[kind][0], at)
        at += -(-n_bytes(shape, kind) // alignment) * alignment
    size = -(-len(content) // alignment) * alignment + at
    return content, size


def write(path: Path, metadata, tensors, **options) -> Path:
    """Write a file; the weights are a hole."""
    content, size = header(metadata, tensors, **options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def metadata_of(arch="llama", **changes):
    """Return the metadata of a small model; None leaves a key out."""
    own = {
        "block_count": 4, "embedding_length": 256, "feed_forward_length": 512,
        "context_length": 8192, "attention.head_count": 4, "attention.head_count_kv": 2,
    } | {key.replace("__", "."): value for key, value in changes.items()}  # fmt: skip
    values = {f"{arch}.{key}": value for key, value in own.items() if value is not None}
    words = [f"token-{i}" for i in range(300)]
    return {
        "general.architecture": arch, "general.name": "small", "general.file_type": 15,
        **values, "tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": [0.5] * 300,
    }  # fmt: skip


def llama_cpp_types(mix: str, name: str, layer: int, n_layers: int, tied: bool) -> str:
    """Return the type of a matrix, as llama-quantize chooses it."""
    base = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}.get(mix, mix)
    if base in ("F16", "BF16", "Q8_0"):
        return base
    if name == "output" or (name == "token_embd" and tied):
        return "Q6_K"
    more = layer < n_layers // 8 or layer >= 7 * n_layers // 8
    more = more or (layer - n_layers // 8) % 3 == 2
    if mix.endswith("_M") and name.startswith(("attn_v", "ffn_down")) and more:
        return "Q6_K"
    if mix.endswith("_M") and name == "attn_qkv":
        return {"Q4_K": "Q5_K", "Q5_K": "Q6_K"}[base]
    return base


def llama_tensors(
    mix="Q4_K_M", n_layers=4, hidden=256, ffn=512, kv=128, vocab=300, tied=False, n_experts=0,
    fused=False, query=None,
):  # fmt: skip
    """Return the tensors of a model, (name, shape, type), as llama.cpp writes them."""
    query = hidden if query is None else query
    tensors = []

    def add(name, shape, layer=0):
        kind = llama_cpp_types(mix, name, layer, n_layers, tied)
        prefix = "" if name in ("token_embd", "output") else f"blk.{layer}."
        tensors.append((f"{prefix}{name}.weight", shape, kind))

    add("token_embd", (hidden, vocab))
    for i in range(n_layers):
        tensors.append((f"blk.{i}.attn_norm.weight", (hidden,), "F32"))
        if fused:
            add("attn_qkv", (hidden, query + 2 * kv), i)
        else:
            for name, width in (("attn_q", query), ("attn_k", kv), ("attn_v", kv)):
                add(name, (hidden, width), i)
        add("attn_output", (query, hidden), i)
        tensors.append((f"blk.{i}.ffn_norm.weight", (hidden,), "F32"))
        if n_experts:
            tensors.append((f"blk.{i}.ffn_gate_inp.weight", (hidden, n_experts), "F32"))
            for name in ("ffn_gate_exps", "ffn_up_exps"):
                add(name, (hidden, ffn, n_experts), i)
            add("ffn_down_exps", (ffn, hidden, n_experts), i)
            continue
        if not fused:
            add("ffn_gate", (hidden, ffn), i)
        add("ffn_up", (hidden, 2 * ffn if fused else ffn), i)
        add("ffn_down", (ffn, hidden), i)
    tensors.append(("output_norm.weight", (hidden,), "F32"))
    if not tied:
        add("output", (hidden, vocab))
    return tensors
