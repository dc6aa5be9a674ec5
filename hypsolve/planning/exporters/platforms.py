"""Tell the platform of a GPU by its name, and the platforms of a runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypsolve import catalog
from hypsolve.problem.runtime import Runtime

PASCAL = "cuda of Pascal"  # compute capability 6: too old for vLLM, which asks for 7
BY_NAME = (
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
"""Platform of a GPU: the first pattern that its name holds. ROCm supports few Radeon cards."""
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
