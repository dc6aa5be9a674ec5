"""Names of the modules of a model, as `transformers` has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Names of the modules in a Hugging Face implementation."""

    embedding: tuple[str, ...]
    layers: str
    norm: str
    head: str


_USUAL = ModuleNames(
    ("model.embed_tokens", "model.rotary_emb"), "model.layers", "model.norm", "lm_head"
)
MODULES: dict[str, ModuleNames] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "mixtral"), _USUAL
    ),
    "gpt2": ModuleNames(
        ("transformer.wte", "transformer.wpe"), "transformer.h", "transformer.ln_f", "lm_head"
    ),
    "gpt_neox": ModuleNames(
        ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb"),
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head",
    ),
    "opt": ModuleNames(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        "model.decoder.layers", "model.decoder.final_layer_norm", "lm_head",
    ),
}  # fmt: skip
"""By ``model_type``, as in transformers 5.14 (earlier, the head of gpt_neox was embed_out)."""
