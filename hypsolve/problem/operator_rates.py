"""`OperatorRates`: rates of a GPU under a runtime, one for each kind of operator."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from hypsolve.problem import validation as valid

RATES = (
    "gemm_flops_per_s", "head_flops_per_s", "attention_flops_per_s", "weight_bytes_per_s",
    "head_bytes_per_s", "kv_bytes_per_s",
)  # fmt: skip
"""Rates that add up over the GPUs of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRates:
    """Rates of operators, and constants, of a GPU that runs a model under a runtime.

    They replace the three numbers of a `GpuProfile` in the cost model ``roofline``. A step
    takes, in a **layer** (a block with attention),

    - ``layer_s``, and ``mixed_layer_s`` more if prompts are in the step;
    - the larger of FLOPs of the matrices over `gemm_flops_per_s`, and bytes of the weights over
      `weight_bytes_per_s` (their sum, if the profile says that they do not overlap);
    - FLOPs of the attention of prompts over `attention_flops_per_s`, and KV cache that decode
      tokens read over `kv_bytes_per_s`;
    - the hidden states that leave it over `state_bytes_per_s`: norms, activations, residuals;
    - `all_reduce_factor` times the all-reduces of a group.

    The **head** takes the larger of its FLOPs over `head_flops_per_s` and its weights over
    `head_bytes_per_s`, and `token_s` for each token that comes out. The **embedding** takes
    `iteration_s`, for it is computed once in every iteration. A piece of a prompt of a single
    token counts as a decode token.

    Attributes
    ----------
    gemm_flops_per_s, head_flops_per_s, attention_flops_per_s : float
    weight_bytes_per_s, head_bytes_per_s, kv_bytes_per_s : float
    state_bytes_per_s : float
        Not shared by the GPUs of a group, each of which computes all states.
    layer_s, mixed_layer_s, iteration_s, token_s : float
        Seconds.
    request_s : float
        Seconds per request outside of iterations, before its first token is delivered.
    all_reduce_factor : float

    Raises
    ------
    ValueError, TypeError
        If a value is no number, a rate is not positive, or seconds are negative.

    Examples
    --------
    >>> rates = OperatorRates(gemm_flops_per_s=7e14, attention_flops_per_s=3e14,
    ...     weight_bytes_per_s=3e12, kv_bytes_per_s=2.5e12, state_bytes_per_s=2e11,
    ...     layer_s=5e-5, iteration_s=2e-4)
    >>> rates.head_flops_per_s, rates.of_group(4).kv_bytes_per_s
    (700000000000000.0, 10000000000000.0)
    """

    gemm_flops_per_s: float
    attention_flops_per_s: float
    weight_bytes_per_s: float
    kv_bytes_per_s: float
    state_bytes_per_s: float
    head_flops_per_s: float | None = None
    head_bytes_per_s: float | None = None
    layer_s: float = 0.0
    mixed_layer_s: float = 0.0
    iteration_s: float = 0.0
    token_s: float = 0.0
    request_s: float = 0.0
    all_reduce_factor: float = 1.0

    def __post_init__(self) -> None:
        for head, other in (("flops", "gemm_flops"), ("bytes", "weight_bytes")):
            if getattr(self, f"head_{head}_per_s") is None:
                object.__setattr__(self, f"head_{head}_per_s", getattr(self, f"{other}_per_s"))
        for field in fields(self):
            is_rate = field.name.endswith("_per_s")
            value = getattr(self, field.name)
            number = valid.real("operator rates", field.name, value, strict=is_rate)
            object.__setattr__(self, field.name, number)

    def of_group(self, degree: int) -> OperatorRates:
        """Return the rates of so many GPUs that compute as one."""
        return replace(self, **{name: degree * getattr(self, name) for name in RATES})

    def scaled(self, seconds: float, flops: float, moved: float) -> OperatorRates:
        """Return rates with constants, FLOPs per second and bytes per second times factors.

        Examples
        --------
        >>> one = OperatorRates(gemm_flops_per_s=1, attention_flops_per_s=1,
        ...     weight_bytes_per_s=1, kv_bytes_per_s=1, state_bytes_per_s=1, layer_s=1)
        >>> twice = one.scaled(1, 2, 4)
        >>> twice.gemm_flops_per_s, twice.kv_bytes_per_s, twice.layer_s
        (2.0, 4.0, 1.0)
        """
        factor = {"flops_per_s": flops, "bytes_per_s": moved}
        changed = {}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            unit = name[-len("flops_per_s") :]
            if unit in factor:
                changed[name] = value * factor[unit]
            elif name not in ("all_reduce_factor", "request_s"):
                changed[name] = value * seconds
        return replace(self, **changed)
