"""Networks whose GPUs have the rates of their fitted servers, and where a plan uses these."""

from __future__ import annotations

from dataclasses import replace

from hypsolve.calibration.fitted_profile import fitted_gpu, server_profile
from hypsolve.calibration.servers import fitted_servers
from hypsolve.planning.platforms import weights_of
from hypsolve.problem.deployment import Model, Network
from hypsolve.problem.runtime import Runtime

ROOFLINE, FITTED, AUTO = "roofline", "fitted", "auto"
COSTS = (ROOFLINE, FITTED, AUTO)


def with_fitted_costs(network: Network, runtime: Runtime, model: Model) -> Network:
    """Return the network with `OperatorRates` for GPUs whose server was fitted.

    The others keep their three numbers. A server is a GPU of the catalogue under a runtime; the
    rates depend on the format of the model's weights.

    Examples
    --------
    >>> import hypsolve as hs
    >>> boxes = tuple(hs.Node(name=name, gpu=hs.gpu(name)) for name in ("h100", "l4"))
    >>> lab = hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=boxes),))
    >>> found = with_fitted_costs(lab, hs.runtime("vllm"), hs.model("llama-3-8b"))
    >>> [node.gpu.operators is not None for node in found.tiers[0].nodes]
    [True, False]
    """
    weights = weights_of(model)
    gpus = {node.gpu for tier in network.tiers for node in tier.nodes}
    fitted = {gpu: server_profile(gpu, runtime.name, weights or "fp16") for gpu in gpus}
    if all(gpu == found for gpu, found in fitted.items()):
        return network
    tiers = tuple(
        replace(tier, nodes=tuple(replace(node, gpu=fitted[node.gpu]) for node in tier.nodes))
        for tier in network.tiers
    )
    return replace(network, tiers=tiers)


def costs_for(network: Network, runtime: Runtime) -> str:
    """Return what ``auto`` stands for on a network.

    It is ``fitted`` if the server of every GPU was fitted, and simulations by each fit err
    less in the time per output token of other models than those by three numbers. Else it
    is ``roofline``, so that no GPU looks faster than another because it was not fitted.

    Examples
    --------
    >>> import hypsolve as hs
    >>> def lab(*gpus):
    ...     nodes = tuple(hs.Node(name=gpu, gpu=hs.gpu(gpu)) for gpu in gpus)
    ...     return hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=nodes),))
    >>> costs_for(lab("h100"), hs.runtime("vllm"))
    'fitted'
    >>> costs_for(lab("h100", "l4"), hs.runtime("vllm"))
    'roofline'
    """
    for gpu in {node.gpu for tier in network.tiers for node in tier.nodes}:
        slug = fitted_gpu(gpu, runtime.name)
        if slug is None:
            return ROOFLINE
        server = fitted_servers()[slug, runtime.name]
        if server.simulated_groups["tpot"] >= server.three_numbers["tpot"]:
            return ROOFLINE
    return FITTED
