"""Formats of weights (``weights.toml``), with their bits per weight and sources.

>>> weight_format("q4_k_m").head_bits
6.5625
"""

import functools
import math
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources

from hypsolve.problem import validation as valid

BLOCK_WEIGHTS = 256  # of llama.cpp's K-quants
OTHER_NAMES = {"int4": "gptq-int4"}
"""Names that are understood as a format of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A format of weights, as a checkpoint or a GGUF file has them.

    Bits include scales and zero points. Norms and biases, which no format quantises, are in no
    model of the catalogue.

    Attributes
    ----------
    name : str
        Name of the format. It is appended to the name of a model, except ``fp16``.
    layer_bits : float
        Bits per weight of the matrices of a layer.
    embedding_bits, head_bits : float
        Bits per weight of the embedding table and of the head.
    tied_bits : float
        Bits per weight of a table that is both embedding and head.
    raised_bits : float
        Bits per weight of attn_v and ffn_down in the layers where `raises` is true.
    qkv_bits : float
        Bits per weight of query, key and value where they are one matrix, as in Phi-3. This
        matrix is never raised.
    odd_bits : tuple of (float, float)
        Bits per weight, and those in their place in rows that are no multiple of 256.
    file : {"safetensors", "gguf"}
        Kind of file in which the format is distributed.
    extrapolated : bool
        Whether no block times were measured with these weights.
    source : str
        Origin of the numbers.
    """

    name: str
    layer_bits: float
    embedding_bits: float
    head_bits: float
    tied_bits: float
    raised_bits: float
    qkv_bits: float
    odd_bits: tuple[tuple[float, float], ...]
    file: str
    extrapolated: bool
    source: str

    def raises(self, layer: int, n_layers: int) -> bool:
        """Return whether attn_v and ffn_down of a layer have `raised_bits`.

        These are the first and the last eighth of the layers, and every third layer between
        (``use_more_bits`` of llama.cpp).
        """
        eighth = n_layers // 8
        at_the_ends = layer < eighth or layer >= 7 * n_layers // 8
        return self.raised_bits != self.layer_bits and (
            at_the_ends or (layer - eighth) % 3 == 2
        )

    def bits_in_rows(self, bits: float, row: int) -> float:
        """Return the bits per weight of a matrix, which are `bits` unless its rows are odd."""
        return dict(self.odd_bits).get(bits, bits) if row % BLOCK_WEIGHTS else bits


def held_bytes(*parts: tuple[int, float]) -> int:
    """Return the bytes of parts of a block, each a number of weights and their bits."""
    return math.ceil(sum(Fraction(bits) * n_weights for n_weights, bits in parts) / 8)


@functools.cache
def _formats() -> dict[str, WeightFormat]:
    path = resources.files("hypsolve.catalog").joinpath("weights.toml")
    found = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        measured = entry.pop("measured", False)
        odd_bits = tuple((bits, instead) for bits, instead in entry.pop("odd_bits", ()))
        defaults = {
            "tied_bits": entry["head_bits"],
            "raised_bits": entry["layer_bits"],
            "qkv_bits": entry["layer_bits"],
            "file": "safetensors",
        }
        found[name] = WeightFormat(
            name=name, extrapolated=not measured, odd_bits=odd_bits, **(defaults | entry)
        )
    return found


def weight_formats() -> dict[str, WeightFormat]:
    """Return all formats of weights by name.

    Examples
    --------
    >>> import hypsolve as hs
    >>> {name: each.layer_bits for name, each in hs.weight_formats().items()}["awq"]
    4.15625
    """
    return dict(_formats())


def weights_choices() -> tuple[str, ...]:
    """Return the names that `weights` takes: those of the table, and ``int4``."""
    return (*_formats(), *OTHER_NAMES)


def weight_format(name: str) -> WeightFormat:
    """Return a format of weights.

    Parameters
    ----------
    name : str
        A key of `weight_formats`, also in capitals (``Q4_K_M``); or ``int4``, which means
        ``gptq-int4``: the 4-bit weights of servers such as vLLM. The 4-bit weights of llama.cpp
        are ``q4_k_m`` and ``q4_0``.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the likeliest and lists the choices.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.weight_format("int4").name, hs.weight_format("int4").head_bits
    ('gptq-int4', 16.0)
    """
    key = name.lower() if isinstance(name, str) else name
    if key not in weights_choices():
        valid.known("weights", name, weights_choices())
    return _formats()[OTHER_NAMES.get(key, key)]
