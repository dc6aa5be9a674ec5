"""GPUs that compute as one: their profile, and the degrees that a model allows."""

from dataclasses import replace

from hypsolve.problem.model import Model
from hypsolve.problem.network import GpuProfile, Node


def group_profile(node: Node, model: Model, library: str) -> GpuProfile:
    """Return the profile of GPUs that compute as one.

    Weights, KV cache and FLOPs divide among the GPUs, so that the rates and the memory add up.
    The fixed time of a block does not divide. Every block adds its all-reduces. KV heads are
    replicated if there are more GPUs. The copies of their projections and of the routers of
    experts, a few percent of the weights at most, are not counted.

    Parameters
    ----------
    node : Node
    model : Model
    library : str
        Library of the all-reduces, as the runtime is named; NCCL if it was not measured.
    """
    gpu, degree = node.gpu, node.gpus
    if degree == 1 or node.interconnect is None:
        return gpu
    rates, all_reduce = gpu.operators, node.interconnect.all_reduce(degree, library)
    if rates is not None:
        all_reduce = all_reduce.scaled(rates.all_reduce_factor)
    return replace(
        gpu,
        name=node.class_name,
        flops_per_s=degree * gpu.flops_per_s,
        bytes_per_s=degree * gpu.bytes_per_s,
        memory_bytes=degree * gpu.memory_bytes,
        visible_bytes=None if gpu.visible_bytes is None else degree * gpu.visible_bytes,
        power_w=degree * gpu.power_w,
        kv_copies=kv_copies(model, degree),
        all_reduce=all_reduce,
        operators=None if rates is None else rates.of_group(degree),
    )


def kv_copies(model: Model, degree: int) -> int:
    """Return how often a group of GPUs holds the KV cache: once, unless KV heads are fewer."""
    return max(degree // model.n_kv_heads, 1) if model.n_kv_heads else 1


def check_degree(model: Model, degree: int) -> None:
    """Check that a model's heads can be divided among so many GPUs.

    Raises
    ------
    ValueError
        If the attention heads are no multiple of the degree; or if neither the KV heads are a
        multiple of the degree, nor the degree a multiple of them; or if they are unknown.
    """
    if degree == 1:
        return
    owner = f"model {model.name!r}"
    if not (model.n_heads and model.n_kv_heads):
        raise ValueError(
            f"{owner}: n_heads and n_kv_heads must be known for tensor_parallel {degree},"
            f" got {model.n_heads} and {model.n_kv_heads}"
        )
    if model.n_heads % degree:
        raise ValueError(
            f"{owner}: tensor_parallel must divide its {model.n_heads} attention heads,"
            f" got {degree}"
        )
    if model.n_kv_heads % degree and degree % model.n_kv_heads:
        raise ValueError(
            f"{owner}: tensor_parallel must divide its {model.n_kv_heads} KV heads, or be a"
            f" multiple of them, got {degree}"
        )


def check_group(node: Node, model: Model) -> None:
    """Check that all GPUs of a node compute as one, and that the model divides among them."""
    if not node.is_group:
        degree = node.tensor_parallel
        chosen = (
            "None" if degree is None else f"{degree}, which makes {node.gpus // degree} nodes"
        )
        raise ValueError(
            f"deployment: node {node.name!r}: tensor_parallel must be gpus = {node.gpus}, got"
            f" {chosen} (Network.in_groups makes a node of every group)"
        )
    try:
        check_degree(model, node.gpus)
    except ValueError as error:
        raise ValueError(f"deployment: node {node.name!r}: {error}") from None
