"""Bits in which servers read weights, multiply matrices and keep KV cache, by format."""

from __future__ import annotations

from dataclasses import replace

from hypsolve.calibration.runs import ServingRun
from hypsolve.problem.deployment import Model

EIGHT_BIT_KV = frozenset({"fp8", "nvfp4"})
GEMM_BITS = {"fp8": 8, "int8": 8, "nvfp4": 4}  # other formats are computed in 16 bits
READ_BITS = {"fp8": 8, "int8": 8, "q8_0": 8, "fp16": 16, "bf16": 16}  # others: 4


def kv_share(run: ServingRun) -> float:
    """Return the size of a run's KV cache, as a share of one in 16 bits.

    TensorRT-LLM keeps the KV cache of 8-bit and 4-bit checkpoints in 8 bits, as its Model
    Optimizer writes into them; vLLM and SGLang do so for checkpoints of the Model Optimizer.
    """
    if run.catalog_weights not in EIGHT_BIT_KV:
        return 1.0
    optimizer = run.catalog_weights == "nvfp4" or run.model.startswith("nvidia/")
    return 0.5 if optimizer or run.catalog_runtime == "tensorrt-llm" else 1.0


def with_kv_share(model: Model, share: float) -> Model:
    """Return a model whose KV cache takes a share of the bytes.

    Examples
    --------
    >>> import hypsolve as hs
    >>> model = hs.model("llama-3-8b")
    >>> [each.blocks[1].kv_bytes_per_token for each in (model, with_kv_share(model, 0.5))]
    [4096, 2048]
    """
    if share == 1:
        return model
    smaller = {
        block: replace(block, kv_bytes_per_token=round(block.kv_bytes_per_token * share))
        for block in dict.fromkeys(model.blocks)
    }
    return replace(model, blocks=tuple(smaller[block] for block in model.blocks))
