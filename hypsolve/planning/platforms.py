"""Tell the platform of a GPU by its name, and what a runtime runs on and loads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from hypsolve import catalog
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.problem.deployment import Model
from hypsolve.problem.runtime import Runtime

PASCAL = "cuda of Pascal"  # compute capability 6: too old for vLLM, which asks for 7
CPU = "cpu"
_THREADS = re.compile(r"(?i)\b(\d+)[- ]threads?\b")  # as `hypsolve measure` names a CPU
BY_NAME = (
    (_THREADS.pattern, CPU),
    (r"\b(CPU|EPYC|Xeon|Threadripper|Neoverse|Graviton)\b", CPU),
    (r"^Apple\b", "metal"),
    (r"\b(GTX 10|GTX TITAN X|TITAN X|P4|P40|P100)", PASCAL),
    (r"\b(Jetson|Orin|Xavier|Thor)\b", "jetson"),
    (r"\bMI\d{2,3}[AX]?\b|\b(RX 79|RX 90|W79|W78|V710)\d*", "rocm"),
    (r"\b(AMD|Radeon|Ryzen|Vega|RX \d)", "vulkan"),
    (r"\b(Intel|Arc|Gaudi)\b", "xpu"),
    (r"\b(NVIDIA|GeForce|RTX|GTX|Tesla|Quadro)\b", "cuda"),
    (r"^(T4|V100|L4|L40S?|A10G?|A16|A30|A40|A100|H\d{3}|GH\d{3}|B\d{3}|GB\d{3})\b",
     "cuda"),
)  # fmt: skip
"""Platform of a GPU, or a CPU: the first pattern that its name holds.

ROCm supports few Radeon cards.
"""
LIBRARIES: dict[str, tuple[str, ...]] = {
    "deepspeed": ("cuda", "rocm"),
    "megatron": ("cuda", "rocm"),
}
"""Platforms of runtimes that the catalogue has no profile of; others run on anything."""
BACKENDS = {
    "cuda": "CUDA",
    PASCAL: "CUDA",
    "jetson": "CUDA",
    "rocm": "ROCm",
    "metal": "MTL",
    "vulkan": "Vulkan",
    "xpu": "SYCL",
}
"""Names of ggml's devices, as ``llama-server --list-devices`` prints them, without number."""
ONE_PLATFORM = ("vllm", "sglang", "deepspeed", "megatron")
"""Runtimes whose stages exchange activations by the library of one vendor (NCCL, RCCL)."""


def platform_of(gpu: str) -> str:
    """Return the platform of a GPU by its name; empty if the name says nothing."""
    return next((platform for pattern, platform in BY_NAME if re.search(pattern, gpu)), "")


def threads_of(gpu: str) -> int | None:
    """Return the threads of a CPU that its name states; None if it states none.

    Examples
    --------
    >>> threads_of("amd-epyc-2-threads-float32"), threads_of("RTX 4090")
    (2, None)
    """
    found = _THREADS.search(gpu)
    return None if found is None else int(found[1])


def platforms_of(server: str, runtime: Runtime) -> tuple[str, ...]:
    """Return the platforms that a server runs on; empty: any.

    `runtime` is the simulated one, whose own record counts if it is that of the server.
    """
    if runtime.server == server and runtime.platforms:
        known = runtime.platforms
    elif server in catalog.runtimes():
        known = catalog.runtime(server).platforms
    else:
        return LIBRARIES.get(server, ())
    return (*known, PASCAL, "vulkan", "xpu") if server == "llama.cpp" else known


def runs_on(server: str, runtime: Runtime, gpu: str) -> bool:
    """Return whether a server runs on a GPU; GPUs of unknown platform are believed to."""
    platforms, platform = platforms_of(server, runtime), platform_of(gpu)
    return not platforms or not platform or platform in platforms


def is_mixed(gpus: Iterable[str]) -> bool:
    """Return whether GPUs are known to be of more than one platform."""
    return len({platform_of(gpu) for gpu in gpus} - {""}) > 1


def supported(
    owner: str, network: NetworkFile, server: str, runtime: Runtime
) -> tuple[NetworkFile, frozenset[str]]:
    """Return the network without nodes that a server does not run on.

    The tiers that have no other nodes keep them, and are named: they must be empty.

    Raises
    ------
    ValueError
        If no node is left, or a block is pinned to a tier that must be empty; the message
        begins with `owner`.
    """
    tiers, empty = [], set()
    for tier in network.network.tiers:
        nodes = [node for node in tier.nodes if runs_on(server, runtime, node.gpu.name)]
        if not nodes:
            empty.add(tier.name)
        tiers.append(replace(tier, nodes=tuple(nodes)) if nodes else tier)
    platforms = ", ".join(platforms_of(server, runtime))
    name = server or runtime.name
    if len(empty) == len(tiers):
        gpus = ", ".join(dict.fromkeys(n.gpu.name for tier in tiers for n in tier.nodes))
        raise ValueError(
            f"{owner}: {name} runs on {platforms}, and the network has only {gpus}"
        )
    for block, tier_name in network.pins.items():
        if tier_name in empty:
            raise ValueError(
                f"{owner}: {name} runs on {platforms}, and block {block!r} is pinned to"
                f" {tier_name!r}, which has no such node"
            )
    restricted = replace(network, network=replace(network.network, tiers=tuple(tiers)))
    return restricted, frozenset(empty)


def with_empty(
    network: NetworkFile,
    empty: frozenset[str],
    why: str = "the runtime runs on none of its nodes",
) -> NetworkFile:
    """Return a copy of a network in which some tiers hold no blocks; `why` says the reason.

    Raises
    ------
    ValueError
        If such a tier must hold blocks.
    """
    if not empty:
        return network
    names = [tier.name for tier in network.network.tiers]
    lowest = network.min_blocks or (None,) * len(names)
    highest = network.max_blocks or (None,) * len(names)
    for name, least in zip(names, lowest, strict=True):
        if name in empty and least:
            raise ValueError(
                f"plan: min_blocks of tier {name!r} must be 0, for {why}, got {least}"
            )
    return replace(
        network,
        min_blocks=tuple(0 if n in empty else x for n, x in zip(names, lowest, strict=True)),
        max_blocks=tuple(0 if n in empty else x for n, x in zip(names, highest, strict=True)),
    )


def weights_of(model: Model) -> str:
    """Return the format of a model's weights, which ends its name; empty if none does."""
    known = catalog.weight_formats()
    return next((name for name in known if model.name.lower().endswith(f"-{name}")), "")


def loads(runtime: Runtime, weights: str) -> bool:
    """Return whether a runtime loads a format of weights; unknown formats are believed to."""
    form = catalog.weight_formats().get(weights)
    return (
        form is None
        or not form.extrapolated
        or not runtime.weight_file
        or form.file == runtime.weight_file
    )


def check_weights(owner: str, runtime: Runtime, weights: str) -> None:
    """Raise ValueError if a runtime cannot load a format of weights."""
    if not loads(runtime, weights):
        known = ", ".join(name for name in catalog.weight_formats() if loads(runtime, name))
        raise ValueError(
            f"{owner}: weights must be a format that runtime {runtime.name!r} loads ({known}),"
            f" got {weights!r}"
        )
