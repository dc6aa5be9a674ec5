"""`ServerCosts`: coefficients of a server; `closed_loop`: the closed loop that follows.

An iteration of b decode tokens, and of k pieces of prompts with c tokens each, takes the sum of

- multiplication by the weights: the larger of FLOPs over the rate in the bits of the matrices,
  and bytes of weights over the rate at which they are read; the head alike, in 16 bits;
- attention of prompts: FLOPs over a rate of its own; attention of decode tokens: KV cache
  over a rate of its own;
- element-wise kernels: `state_passes` times the hidden state of every token, over the
  datasheet's bandwidth, on each GPU of a group;
- all-reduces: seconds by the table of the interconnect, times `all_reduce_factor`;
- constants: `layer_s` per layer, `mixed_layer_s` more per layer in an iteration with prompts
  (for which servers have no captured graph), `iteration_s`, and `token_s` per decode token.

Rates are shares of the datasheet's peaks. The time per output token of N users is the mean
iteration while a request decodes. In this time the prompts of the N - 1 others are computed,
except those that are computed while the request itself waits for its first token: servers that
compute prompts first, and users who start together, stay in step, so that a share `in_step` of
them is. The time to first token is ``request_s``, `first_factor` iterations with a prompt, and
the time of the prompts in step. Users whom the limits of the runtime keep out wait in addition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np

from hypsolve.calibration.features import Features
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array

N_ROUNDS = 40  # of the fixed point; it contracts by more than half a round
MAX_IN_STEP = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCosts:
    """Coefficients of the seconds of iterations and requests on a server.

    Attributes
    ----------
    read_16, read_8, read_4 : float
        Share of the bandwidth at which weights of so many bits are read.
    gemm_16, gemm_8, gemm_4 : float
        Share of the peak FLOPs at which matrices of so many bits are multiplied.
    attention : float
        Share of the 16-bit peak in the attention of prompts.
    kv_read : float
        Share of the bandwidth at which KV cache is read.
    state_passes : float
        How often element-wise kernels of a layer move the hidden state of a token.
    layer_s, mixed_layer_s, iteration_s, token_s : float
        Seconds per layer; more per layer if prompts are in the iteration; per iteration; per
        decode token.
    all_reduce_factor : float
    request_s : float
        Seconds per request outside of iterations, before its first token.
    first_factor : float
        Iterations that a request waits for its first token, per piece of its prompt.
    in_step : float
        Share of the other prompts that are computed before one's own.

    Raises
    ------
    ValueError, TypeError
        If a value is not a positive number; the message names it.

    Examples
    --------
    >>> from dataclasses import replace
    >>> replace(TYPICAL, kv_read=0.5).kv_read
    0.5
    """

    read_16: float
    read_8: float
    read_4: float
    gemm_16: float
    gemm_8: float
    gemm_4: float
    attention: float
    kv_read: float
    state_passes: float
    layer_s: float
    mixed_layer_s: float
    iteration_s: float
    token_s: float
    all_reduce_factor: float
    request_s: float
    first_factor: float
    in_step: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = valid.real(
                "server costs", field.name, getattr(self, field.name), strict=True
            )
            object.__setattr__(self, field.name, value)

    def to_array(self) -> Array:
        """Return the coefficients in the order of `NAMES`."""
        return np.array(list(asdict(self).values()))


NAMES = tuple(field.name for field in fields(ServerCosts))
TYPICAL = ServerCosts(
    read_16=0.85, read_8=0.85, read_4=0.85, gemm_16=0.75, gemm_8=0.6, gemm_4=0.45,
    attention=0.33, kv_read=0.69, state_passes=18.0, layer_s=3e-5, mixed_layer_s=3e-5,
    iteration_s=3e-4, token_s=5e-6, all_reduce_factor=1.0, request_s=0.02, first_factor=1.5,
    in_step=0.1,
)  # fmt: skip
"""State what is assumed of a server that was not measured, and where fits start.

No number was fitted to end-to-end runs. Reading, 16-bit GEMM and `layer_s` are those of H100,
H200 and B200 in the catalogue, which were fitted to block times; attention and KV cache are
shares of kernel times; `state_passes` counts what norms and activations of a layer read and
write; a first token takes one's own iteration and half of the running one; the others are
guesses made beforehand.
"""


def iteration_s(
    features: Features, costs: Array, n_decode: Array, n_pieces: Array, n_prompt: Array
) -> Array:
    """Return the seconds of iterations.

    Parameters
    ----------
    features : Features
    costs : ndarray, shape (len(NAMES), n_runs)
        Coefficients of each run, in the order of `NAMES`.
    n_decode, n_pieces, n_prompt : ndarray
        Decode tokens, pieces of prompts, and tokens of prompts.
    """
    f, c = features, dict(zip(NAMES, costs, strict=True))
    tokens = n_decode + n_prompt
    gemm = _by_bits(f.gemm_bits, c["gemm_16"], c["gemm_8"], c["gemm_4"]) * f.gemm_flops_per_s
    read = _by_bits(f.read_bits, c["read_16"], c["read_8"], c["read_4"]) * f.bytes_per_s
    weights = f.weight_bytes + f.expert_bytes * (1 - f.idle_share**tokens)
    seconds = np.maximum(tokens * f.flops_per_token / gemm, weights / read)
    seconds = seconds + n_prompt * f.pair_flops_per_token / (c["attention"] * f.flops_per_s)
    seconds += n_decode * f.kv_bytes_per_token / (c["kv_read"] * f.bytes_per_s)
    seconds += tokens * c["state_passes"] * f.state_bytes_per_token / f.bytes_per_s
    size = tokens * f.message_bytes_per_token
    all_reduce = np.where(
        size <= f.switch_bytes,
        f.small_s + size * f.small_s_per_byte,
        f.large_s + size * f.large_s_per_byte,
    )
    seconds += f.collectives * c["all_reduce_factor"] * all_reduce
    seconds += np.maximum(
        (n_decode + n_pieces) * f.head_flops / (c["gemm_16"] * f.flops_per_s),
        f.head_bytes / (c["read_16"] * f.bytes_per_s),
    )
    layer = c["layer_s"] + c["mixed_layer_s"] * (n_prompt > 0)
    return np.asarray(seconds + f.n_layers * layer + c["iteration_s"] + n_decode * c["token_s"])


def _by_bits(bits: Array, sixteen: Array, eight: Array, four: Array) -> Array:
    return np.where(bits == 16, sixteen, np.where(bits == 8, eight, four))


def closed_loop(
    features: Features, costs: Array, start_s: Array | None = None, n_rounds: int = N_ROUNDS
) -> tuple[Array, Array, Array]:
    """Return the steady state of closed loops.

    Parameters
    ----------
    features : Features
    costs : ndarray, shape (len(NAMES), n_runs)
    start_s : ndarray, optional
        Times per output token from which the fixed point is sought.
    n_rounds : int

    Returns
    -------
    ttft_s, tpot_s, tokens_per_s : ndarray
        Requests of one output token are taken to have one pass after it.
    """
    f, c = features, dict(zip(NAMES, costs, strict=True))
    n, passes = f.running, np.maximum(f.output_tokens - 1, 1)
    tpot_s = np.full_like(n, 0.02) if start_s is None else start_s
    chunk = f.prompt_tokens / f.chunks
    zero, one = np.zeros_like(n), np.ones_like(n)
    in_step = np.minimum(c["in_step"], MAX_IN_STEP)
    first_s = c["request_s"] + c["first_factor"] * f.chunks * iteration_s(
        f, costs, n, one, chunk
    )
    wave_s = in_step * (n - 1) * f.chunks * iteration_s(f, costs, zero, one, chunk)
    ttft_s = first_s + wave_s
    for _ in range(n_rounds):
        decode_s = passes * tpot_s
        share = decode_s / (first_s + decode_s)  # of the others who decode
        n_decode = 1 + (n - 1) * share
        pieces = f.chunks * (n - 1) * (1 - in_step) * share / passes
        mixed, each = np.minimum(pieces, 1), np.maximum(pieces, 1)
        alone_s = iteration_s(f, costs, n_decode, zero, zero)
        mixed_s = iteration_s(f, costs, n_decode, each, each * chunk)
        tpot_s = np.sqrt(tpot_s * ((1 - mixed) * alone_s + mixed * mixed_s))
    latency_s = (ttft_s + passes * tpot_s) * f.users / n
    return latency_s - passes * tpot_s, tpot_s, f.users * f.output_tokens / latency_s
