"""Tasks of experiment `speed` for objectives in requests per second of servers that batch."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed_rows import row, timed_s

FOUR_TIERS = (
    ("rtx-a6000", "rtx-a6000", "a40", "a40"),
    ("l40s",) * 4,
    ("a100-40gb", "a100-40gb", "a100-80gb", "a100-80gb"),
    ("h100", "h100", "a100-80gb", "a100-80gb"),
)
SIX_GPUS = ("rtx-3090", "rtx-4090", "rtx-a6000", "l40s", "a100-40gb", "a100-80gb")


def four_tiers_of_four(batching: str) -> Any:
    """Return the 82 blocks of Llama-3-70B on 4 tiers of 4 nodes, as a `ServingInstance`."""
    import hypsolve as hs
    from instances.serving import serving_deployment

    wire = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    tiers = tuple(
        hs.Tier(
            name=f"tier-{k}",
            nodes=tuple(
                hs.Node(name=f"{gpu}-{k}-{j}", gpu=hs.gpu(gpu)) for j, gpu in enumerate(gpus)
            ),
            link=wire if k < len(FOUR_TIERS) - 1 else None,
        )
        for k, gpus in enumerate(FOUR_TIERS)
    )
    network = hs.Network(name="four-tiers", tiers=tiers)
    deployment = serving_deployment(network, "llama-3-70b", 512, 256, batching)
    return hs.to_serving_instance(deployment)


def fluid_model(size: str) -> list[dict[str, Any]]:
    """Time the exact search of the fluid model over all splits, in each batching mode."""
    from hypsolve import solve

    repeats = {"quick": 5, "default": 21, "full": 101}[size]
    rows = []
    for batching in ("stage", "pipeline", "serial"):
        instance = four_tiers_of_four(batching)
        if solve(instance, "throughput_exact").partition is None:  # loads the kernels, too
            raise RuntimeError(f"speed: no split of four tiers fits, batching {batching}")
        times_ms = [
            1e3 * solve(instance, "throughput_exact").solve_time_s for _ in range(repeats)
        ]
        what = f"throughput_exact, 82 blocks, 4 tiers of 4 nodes, batching {batching}"
        rows.append(row(what, times_ms, "ms", 20))
    return rows


def whole_plan(size: str) -> list[dict[str, Any]]:
    """Time `plan` for most requests per second on the example network, in a warm process."""
    import hypsolve as hs
    from hypsolve.cli.examples import NETWORK as EXAMPLE

    repeats = {"quick": 1, "default": 1, "full": 5}[size]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.toml"
        path.write_text(EXAMPLE, encoding="utf-8")
        network = hs.read_network_file(path)
    rows = []
    for with_upgrades, words, target_s in ((False, "without", 3), (True, "with", 6)):

        def plan(with_upgrades: bool = with_upgrades) -> Any:
            return hs.plan(
                "llama-3-8b", network, rate_per_s=2, objective="throughput",
                with_upgrades=with_upgrades,
            )  # fmt: skip

        plan()  # loads the kernels
        times_s = [timed_s(plan) for _ in range(repeats)]
        what = f"plan, objective throughput, example network, {words} what-if scenarios"
        rows.append(row(what, times_s, "s", target_s))
    return rows


def many_networks(size: str) -> list[dict[str, Any]]:
    """Time `throughput_many` from its checks to its answers, in each batching mode.

    The 42 blocks of Phi-3-medium are split over networks of 3 tiers of one to four nodes, whose
    GPUs are drawn from six. The target is 2,000 networks a second.
    """
    import hypsolve as hs

    repeats = {"quick": 1, "default": 3, "full": 9}[size]
    n_networks = {"quick": 500, "default": 1000, "full": 4000}[size]
    rng = np.random.default_rng(n_networks)
    node_class = rng.integers(0, len(SIX_GPUS), (n_networks, 3, 4))
    node_class[np.arange(4) >= rng.integers(1, 5, (n_networks, 3))[..., None]] = -1
    rows = []
    for batching in ("stage", "pipeline", "serial"):
        instance = _three_tiers(batching)
        node_bytes = instance.nodes.node_bytes[node_class]  # node i is of class i

        def solve(instance: Any = instance, node_bytes: Any = node_bytes) -> Any:
            return hs.throughput_many(instance, node_class, node_bytes)

        if not (solve().fluid_requests_per_s > 0).any():
            raise RuntimeError(f"speed: no network holds the model, batching {batching}")
        times_ms = [1e3 * timed_s(solve) / n_networks for _ in range(repeats)]
        what = (
            f"throughput_many, 42 blocks on {n_networks:,} networks of 3 tiers, batching"
            f" {batching}: per network"
        )
        rows.append(row(what, times_ms, "ms", 0.5))
    return rows


def _three_tiers(batching: str) -> Any:
    """Return Phi-3-medium on three tiers of two GPUs of `SIX_GPUS` each."""
    import hypsolve as hs
    from instances.serving import serving_deployment

    wire = hs.Link(bytes_per_s=1.25e8, latency_s=2e-4)
    tiers = tuple(
        hs.Tier(
            name=f"tier-{k}",
            nodes=tuple(
                hs.Node(name=gpu, gpu=hs.gpu(gpu)) for gpu in SIX_GPUS[2 * k : 2 * k + 2]
            ),
            link=wire if k < 2 else None,
        )
        for k in range(3)
    )
    network = hs.Network(name="three-tiers", tiers=tiers)
    return hs.to_serving_instance(
        serving_deployment(network, "phi-3-medium", 512, 256, batching)
    )
