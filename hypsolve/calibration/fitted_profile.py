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

from hypsolve import catalog
from hypsolve.calibration.peaks import peaks
from hypsolve.calibration.server_costs import ServerCosts
from hypsolve.calibration.servers import fitted_servers
from hypsolve.calibration.weight_bits import EIGHT_BIT_KV, GEMM_BITS, READ_BITS
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


def server_profile(profile: GpuProfile, runtime: str, weights: str) -> GpuProfile:
    """Return the profile of a GPU of the catalogue under a runtime, if that server was fitted.

    Parameters
    ----------
    profile : GpuProfile
        A profile of the catalogue, or one that is some times faster or slower: the rates are
        then so, too.
    runtime : str
        Name in the catalogue.
    weights : str
        Format of the weights; others than those of `GEMM_BITS` are computed in 16 bits.

    Returns
    -------
    GpuProfile
        The given one, if no such server was fitted, or it has rates of operators.

    Examples
    --------
    >>> import hypsolve as hs
    >>> server_profile(hs.gpu("h100"), "vllm", "bf16").operators is None
    False
    >>> server_profile(hs.gpu("l4"), "vllm", "bf16") == hs.gpu("l4")
    True
    """
    slug = fitted_gpu(profile, runtime)
    if slug is None or profile.operators is not None:
        return profile
    of_catalog, costs = catalog.gpu(slug), fitted_servers()[slug, runtime].costs
    rates = operator_rates(costs, slug, weights)
    if weights in EIGHT_BIT_KV and (weights == "nvfp4" or runtime == "tensorrt-llm"):
        rates = replace(rates, kv_bytes_per_s=2 * rates.kv_bytes_per_s)  # see `kv_share`
    scaled = rates.scaled(
        profile.t0_s / of_catalog.t0_s,
        profile.flops_per_s / of_catalog.flops_per_s,
        profile.bytes_per_s / of_catalog.bytes_per_s,
    )
    return replace(profile, operators=scaled)


def fitted_gpu(profile: GpuProfile, runtime: str) -> str | None:
    """Return the catalogue's name of a GPU whose server was fitted; None if none was."""
    for slug, each in catalog.gpus().items():
        is_named = profile.name == each.name or profile.name.startswith(f"{each.name} ")
        same = (profile.basis, profile.source) == (each.basis, each.source)
        if is_named and same and (slug, runtime) in fitted_servers():
            return slug
    return None
