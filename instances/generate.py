"""Seeded random instances on GPUs of the catalogue."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from hypsolve import catalog
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import block_bytes
from hypsolve.problem.deployment import (
    Block,
    CostModel,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Tier,
)
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.units import gbps_to_bytes_per_s, ms_to_s
from instances.scenarios import (
    best_period_s,
    check_options,
    instance_on,
    model_of,
    resident_tokens,
)

LINK_CLASSES = {  # (min, max) Gbit/s, (min, max) one-way ms
    "rack": (
        (18.4, 62.4),
        (0.012, 0.024),
    ),  # Ethernet VMs to RoCE, microsoft/vidur send_recv.csv
    "lan": ((0.94, 10.0), (0.15, 0.15)),  # 1 GbE goodput to a 10G NIC (Helix); typical LAN
    "wifi": ((0.4, 0.8), (1.0, 5.0)),  # half a Wi-Fi 6 link rate to arXiv:2311.05499's bound
    "metro": ((1.08, 1.14), (5.5, 12.0)),  # nearest AWS region pairs (DT-FM, NeurIPS 2022)
    "wan": ((0.326, 1.16), (17.0, 132.5)),  # the other AWS region pairs of DT-FM
    "5g": ((0.01673, 0.20386), (33.0, 38.0)),  # driving median to static p90 (Raca, MMSys 2020)
}
PLACES = ("edge", "fog", "cloud")  # tiers of the catalogue
DRAWN_GPUS = (
    "a10", "a100-40gb", "a100-80gb", "a100-80gb-pcie", "a30", "a40", "apple-m1", "apple-m1-max",
    "apple-m2-ultra", "apple-m3-max", "apple-m3-ultra", "apple-m4", "apple-m4-max", "b200",
    "h100", "h100-pcie", "h200", "jetson-agx-orin", "jetson-orin-nano",
    "jetson-orin-nano-super", "jetson-orin-nx", "l4", "l40s", "rtx-3060", "rtx-3070",
    "rtx-3080", "rtx-3080-ti", "rtx-3090", "rtx-4000-ada", "rtx-4070", "rtx-4070-ti",
    "rtx-4080", "rtx-4090", "rtx-5000-ada", "rtx-6000-ada", "rtx-a4000", "rtx-a6000",
    "rtx-pro-6000", "t4", "v100-16gb",
)  # fmt: skip
"""GPUs that are drawn. They stay these, so that a seed gives one instance for good."""


def generate(
    *,
    seed: int,
    n_tiers: int = 3,
    nodes_per_tier: int | Sequence[int] = 2,
    model: str | Model = "phi-3-medium",
    n_blocks: int | None = None,
    heterogeneity: float = 0.5,
    link_class: str | Sequence[str] = "lan",
    memory_tightness: float | None = 0.6,
    n_requests: int = 100,
    load: float = 0.7,
    rate: float | None = None,
    lengths: str = "synthetic",
    objective: Objective | str = Objective.BOTTLENECK,
    weights: str = "fp16",
    cost_model: CostModel | str = CostModel.ROOFLINE,
    max_resident_tokens: int | None = None,
    **options: object,
) -> Instance:
    """Draw an instance that has a feasible partition.

    Parameters
    ----------
    seed : int
        Equal arguments give equal instances.
    n_tiers : int
        The first tiers get edge GPUs of the catalogue, the middle ones fog, the last cloud; see
        `place`.
    nodes_per_tier : int or sequence of int, length n_tiers
    model : str or Model
    n_blocks : int, optional
        Number of blocks, at least 3, if it should differ from the model's: layers are repeated
        or left out.
    heterogeneity : float in 0..1
        Probability that a node has a GPU of its own draw, instead of its tier's.
    link_class : str or sequence of str, length n_tiers - 1
        Name in `LINK_CLASSES`; rate and latency are uniform between its limits.
    memory_tightness : float in 0..1, or None
        Memory of the model divided by the memory of one node of each tier together. A node of a
        tier has model / tightness / n_tiers x U(0.8, 1.2), whatever its GPU has. None: 90 % of
        the GPU's memory.
    n_requests, load, rate, lengths, objective, weights, cost_model, max_resident_tokens
        As in `instances.scenarios.scenario`.
    **options
        Keyword arguments of `hypsolve.to_instance`.

    Returns
    -------
    Instance

    Raises
    ------
    ValueError
        If the memory is too tight: 100 draws have no feasible partition.
    """
    rng = np.random.default_rng(valid.whole("generate", "seed", seed))
    valid.whole("generate", "n_tiers", n_tiers, minimum=1)
    check_options("generate", options)
    counts = [
        valid.whole("generate", "nodes_per_tier", count, minimum=1)
        for count in per(
            "generate", "nodes_per_tier", nodes_per_tier, numbers.Integral, n_tiers
        )
    ]
    classes = per("generate", "link_class", link_class, str, n_tiers - 1)
    if valid.real("generate", "heterogeneity", heterogeneity) > 1:
        raise ValueError(f"generate: heterogeneity must be at most 1, got {heterogeneity!r}")
    if memory_tightness is not None:
        valid.real("generate", "memory_tightness", memory_tightness, strict=True)
    chain = model_of(model, weights)
    if n_blocks is not None:
        chain = stretched(chain, n_blocks)
    max_resident_tokens = resident_tokens(lengths, max_resident_tokens)
    gpus = [
        draw_gpus(rng, place(k, n_tiers), count, heterogeneity)
        for k, count in enumerate(counts)
    ]
    links = [draw_link(rng, name) for name in classes]
    total = block_bytes(chain, max_resident_tokens).sum()
    requests_seed = rng.integers(2**63)
    for _ in range(100):
        memory = None
        if memory_tightness is not None:
            share = total / memory_tightness / n_tiers
            memory = (share * rng.uniform(0.8, 1.2, n_tiers)).tolist()
        instance = instance_on(
            assemble(f"generated-{seed}", gpus, links, memory),
            chain,
            n_requests=n_requests,
            rng=np.random.default_rng(requests_seed),
            load=load,
            rate=rate,
            lengths=lengths,
            objective=objective,
            cost_model=cost_model,
            max_resident_tokens=max_resident_tokens,
            **options,
        )
        if memory is None or np.isfinite(best_period_s(instance)):
            return instance
    raise ValueError(
        f"generate: memory_tightness must leave a feasible partition, got {memory_tightness!r}"
    )


def place(tier: int, n_tiers: int) -> str:
    """Return the place of a tier: edge first, cloud last, fog in the middle."""
    if n_tiers == 1:
        return PLACES[-1]
    return PLACES[(4 * tier + n_tiers - 1) // (2 * (n_tiers - 1))]


def stretched(model: Model, n_blocks: int) -> Model:
    """Return the model with another number of blocks; its layers are repeated in order."""
    owner = f"model {model.name!r}"
    valid.whole(owner, "n_blocks", n_blocks, minimum=3)
    if model.n_blocks < 3:
        raise ValueError(f"{owner}: must have layers to repeat, got {model.n_blocks} blocks")
    first, *layers, last = model.blocks
    inner: list[Block] = [layers[i % len(layers)] for i in range(n_blocks - 2)]
    return Model(
        name=f"{model.name}x{n_blocks}",
        blocks=(first, *inner, last),
        input_bytes_per_token=model.input_bytes_per_token,
        tied_bytes=model.tied_bytes,
        extrapolated=model.extrapolated,
    )


def draw_gpus(
    rng: np.random.Generator, place: str, count: int, heterogeneity: float
) -> list[GpuProfile]:
    """Draw a GPU for a tier and, with probability `heterogeneity`, one for each node."""
    choices = [gpu for gpu in map(catalog.gpu, DRAWN_GPUS) if gpu.tier == place]
    common, *own = (choices[i] for i in rng.integers(len(choices), size=count + 1))
    differs = rng.random(count) < heterogeneity
    return [gpu if other else common for gpu, other in zip(own, differs, strict=True)]


def draw_link(rng: np.random.Generator, link_class: str) -> Link:
    """Draw a link of a link class."""
    gbps, latency_ms = LINK_CLASSES[valid.known("link class", link_class, LINK_CLASSES)]
    return Link(
        bytes_per_s=gbps_to_bytes_per_s(rng.uniform(*gbps)),
        latency_s=ms_to_s(rng.uniform(*latency_ms)),
    )


def assemble(
    name: str,
    gpus: Sequence[Sequence[GpuProfile]],
    links: Sequence[Link],
    memory_bytes: Sequence[float] | None = None,
) -> Network:
    """Return a network; `memory_bytes` is per node of each tier, default 90 % of the GPU's."""
    tiers = []
    for k, (tier_gpus, link) in enumerate(zip(gpus, [*links, None], strict=True)):
        nodes = tuple(
            Node(
                name=f"tier-{k}-node-{j}",
                gpu=gpu,
                memory_bytes=0.9 * gpu.memory_bytes
                if memory_bytes is None
                else memory_bytes[k],
            )
            for j, gpu in enumerate(tier_gpus)
        )
        tiers.append(Tier(name=f"tier-{k}", nodes=nodes, link=link))
    return Network(name=name, tiers=tuple(tiers))


def per(owner: str, field: str, value: Any, kind: type, length: int) -> list[Any]:
    """Return `value` as a list of `length`: a `kind` is repeated, a sequence is checked."""
    if isinstance(value, kind):
        return [value] * length
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(
            f"{owner}: {field} must be one for all or a sequence, got {value!r:.60}"
        )
    if len(value) != length:
        raise ValueError(f"{owner}: {field} must have {length} entries, got {value!r:.60}")
    return list(value)
