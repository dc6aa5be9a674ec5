"""`fitted_profile`: the profile of a GPU under a runtime, with rates from `ServerCosts`.

This table says where each coefficient of `ServerCosts` goes in `OperatorRates`. Rates are
shares of the datasheet's peaks; bits are those of the format of the weights.

| `ServerCosts` | `OperatorRates` |
|---|---|
| ``gemm_16``, ``gemm_8``, ``gemm_4`` | `gemm_flops_per_s`, in the bits of the matrices; ``gemm_16``: `head_flops_per_s` |
| ``read_16``, ``read_8``, ``read_4`` | `weight_bytes_per_s`, in the bits of the weights; ``read_16``: `head_bytes_per_s` |
| ``attention``, ``kv_read`` | `attention_flops_per_s`, `kv_bytes_per_s` |
| ``state_passes`` | `state_bytes_per_s`: the bandwidth over the passes |
| ``layer_s``, ``mixed_layer_s``, ``iteration_s``, ``token_s``, ``request_s`` | the same |
| ``all_reduce_factor`` | the same |
| ``first_factor``, ``in_step`` | none: a simulation lets requests wait for each other |

An iteration of the closed form and one of the simulation agree, but for the head: it is charged
for every piece of a prompt there, and for the last one here. KV cache in 8 bits (`kv_share`) is
a matter of the model: `hypsolve.calibration.weight_bits`.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import replace

from hypsolve.calibration.peaks import peaks
from hypsolve.calibration.server_costs import ServerCosts
from hypsolve.calibration.weight_bits import GEMM_BITS, READ_BITS
from hypsolve.problem.deployment import GpuProfile
from hypsolve.problem.operator_rates import OperatorRates


def operator_rates(costs: ServerCosts, gpu: str, weights: str) -> OperatorRates:
    """Return the rates of operators of a server.

    Parameters
    ----------
    costs : ServerCosts
    gpu : str
        Name of the GPU in the catalogue, or in `peaks`.
    weights : str
        Format of the weights.

    Examples
    --------
    >>> from hypsolve.calibration.server_costs import TYPICAL
    >>> operator_rates(TYPICAL, "h100", "fp8").gemm_flops_per_s / 1e12  # 60 % of 1979
    1187.28
    """
    peak, gemm = peaks(gpu), GEMM_BITS.get(weights, 16)
    read = getattr(costs, f"read_{READ_BITS.get(weights, 4)}")
    return OperatorRates(
        gemm_flops_per_s=getattr(costs, f"gemm_{gemm}") * peak.flops_per_s[gemm],
        attention_flops_per_s=costs.attention * peak.flops_per_s[16],
        weight_bytes_per_s=read * peak.bytes_per_s,
        kv_bytes_per_s=costs.kv_read * peak.bytes_per_s,
        state_bytes_per_s=peak.bytes_per_s / costs.state_passes,
        head_flops_per_s=costs.gemm_16 * peak.flops_per_s[16],
        head_bytes_per_s=costs.read_16 * peak.bytes_per_s,
        layer_s=costs.layer_s,
        mixed_layer_s=costs.mixed_layer_s,
        iteration_s=costs.iteration_s,
        token_s=costs.token_s,
        request_s=costs.request_s,
        all_reduce_factor=costs.all_reduce_factor,
    )


def fitted_profile(
    profile: GpuProfile, costs: ServerCosts, gpu: str, weights: str
) -> GpuProfile:
    """Return a profile with the rates of operators of a server; see `operator_rates`."""
    return replace(profile, operators=operator_rates(costs, gpu, weights))
