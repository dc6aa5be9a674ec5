"""Two instance families for comparing joint methods: `frontier` and `profiled`.

`frontier` has related machine speeds and abstract units. `profiled` has equal request sizes on
GPUs of the catalogue, whose roofline times are unrelated between nodes. Related speeds make
bounds look better than they are, so both families are reported, with seeds 1 to 5.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hypsolve import catalog
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import block_bytes, to_instance
from hypsolve.problem.deployment import Deployment, Link, Requests
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.units import gbps_to_bytes_per_s, ms_to_s
from instances.generate import assemble, draw_gpus, place, stretched
from instances.scenarios import best_period_s

TIER_SPEEDS = (10.0, 16.0, 25.0, 40.0, 60.0)


def frontier(
    n_requests: int,
    nodes_per_tier: Sequence[int] = (2, 2, 2),
    *,
    seed: int,
    load: float = 0.9,
    burst: bool = False,
    n_blocks: int = 32,
    objective: Objective | str = Objective.MEAN_LATENCY,
) -> Instance:
    """Draw an instance of the frontier family.

    - Block: work U{9..11}, the last + 6; memory 10, the first and last + 6; its input 2, 2, 2
      or 3, the raw input 1.
    - Node: speed = base of the tier (10, 16, 25, 40, 60) x U(0.8, 1.25); memory = model's
      memory x U(0.45, 0.70), one draw per tier, redrawn until a node of each tier together hold
      1.25 x the model's memory.
    - Link: rate U{3..6}, latency U{5..30}.
    - Request: size log-normal(3.4, 0.6), clipped to 8..120.
    - Service time = size x work / speed. Transfer = latency + size x input / rate, of which the
      last term occupies the link.

    Parameters
    ----------
    n_requests : int
    nodes_per_tier : sequence of int
        Number of nodes of each of 1 to 5 tiers.
    seed : int
    load : float
        Utilisation: interarrival times are exponential with mean (best period of a partition
        that fits, see `best_period_s`) / load.
    burst : bool
        Whether all requests arrive at 0.
    n_blocks : int
    objective : Objective or str

    Returns
    -------
    Instance
        Equal arguments give equal instances.
    """
    rng, nodes_per_tier = _checked("frontier", n_requests, nodes_per_tier, seed, n_blocks)
    n_tiers = len(nodes_per_tier)
    work = rng.integers(9, 12, n_blocks).astype(float)
    work[-1] += 6
    memory = np.full(n_blocks, 10.0)
    memory[[0, -1]] += 6
    entering = rng.choice([2.0, 2.0, 2.0, 3.0], n_blocks)
    entering[0] = 1.0
    speeds = [
        base * rng.uniform(0.8, 1.25, n)
        for base, n in zip(TIER_SPEEDS, nodes_per_tier, strict=False)
    ]
    tier_bytes = _tier_bytes(rng, n_tiers, memory.sum())
    rate = rng.integers(3, 7, n_tiers - 1)
    latency_s = rng.integers(5, 31, n_tiers - 1)
    size = request_sizes(rng, n_requests)
    gaps = rng.standard_exponential(n_requests)

    occupancy_s = np.zeros((n_requests, n_tiers - 1, n_blocks + 1))
    occupancy_s[:, :, :-1] = size[:, None, None] * entering / rate[:, None]
    transfer_s = occupancy_s.copy()
    transfer_s[:, :, :-1] += latency_s[:, None]
    first = np.cumsum([0, *nodes_per_tier])
    instance = Instance.from_tables(
        block_s=size[:, None, None] * work / np.concatenate(speeds)[:, None],
        block_bytes=memory,
        tiers=[
            [(int(first[k]) + j, tier_bytes[k]) for j in range(n)]
            for k, n in enumerate(nodes_per_tier)
        ],
        transfer_s=transfer_s,
        occupancy_s=occupancy_s,
        objective=objective,
        name=f"frontier-{n_requests}-{'.'.join(map(str, nodes_per_tier))}-{seed}",
    )
    return _with_arrivals("frontier", instance, gaps, load, burst)


def profiled(
    n_requests: int,
    nodes_per_tier: Sequence[int] = (2, 2, 2),
    *,
    seed: int,
    load: float = 0.9,
    burst: bool = False,
    n_blocks: int = 32,
    objective: Objective | str = Objective.MEAN_LATENCY,
) -> Instance:
    """Draw an instance of the profiled family; parameters are as in `frontier`.

    The model has the shape of Llama-3-8B with `n_blocks` blocks. Every node has a GPU of its
    own draw from edge, fog or cloud. Memory is drawn as in `frontier`. Links have U{3..6} x 0.1
    Gbit/s and U{5..30} ms. A request of `frontier`'s size s has 8 s prompt and s output tokens.
    """
    rng, nodes_per_tier = _checked("profiled", n_requests, nodes_per_tier, seed, n_blocks)
    n_tiers = len(nodes_per_tier)
    model = stretched(catalog.model("llama-3-8b"), n_blocks)
    gpus = [draw_gpus(rng, place(k, n_tiers), n, 1.0) for k, n in enumerate(nodes_per_tier)]
    max_resident_tokens = 9 * 120
    memory = _tier_bytes(rng, n_tiers, block_bytes(model, max_resident_tokens).sum())
    rate, latency_ms = rng.integers(3, 7, n_tiers - 1), rng.integers(5, 31, n_tiers - 1)
    links = [
        Link(bytes_per_s=gbps_to_bytes_per_s(0.1 * r), latency_s=ms_to_s(ms))
        for r, ms in zip(rate.tolist(), latency_ms.tolist(), strict=True)
    ]
    size = np.rint(request_sizes(rng, n_requests))
    gaps = rng.standard_exponential(n_requests)
    deployment = Deployment(
        model=model,
        network=assemble(f"profiled-{seed}", gpus, links, memory.tolist()),
        requests=Requests(np.zeros(n_requests), 8 * size, size),
        max_resident_tokens=max_resident_tokens,
    )
    instance = to_instance(
        deployment,
        objective=objective,
        name=f"profiled-{n_requests}-{'.'.join(map(str, nodes_per_tier))}-{seed}",
    )
    return _with_arrivals("profiled", instance, gaps, load, burst)


def request_sizes(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Draw n request sizes: log-normal(3.4, 0.6), clipped to 8..120."""
    return np.clip(rng.lognormal(3.4, 0.6, n), 8, 120)


def _tier_bytes(rng: np.random.Generator, n_tiers: int, total: float) -> NDArray[np.float64]:
    if n_tiers == 1:  # no draw lets one tier hold the model
        return np.array([1.25 * total])
    while True:
        share = rng.uniform(0.45, 0.70, n_tiers)
        if share.sum() >= 1.25:
            return share * total


def _checked(
    owner: str, n_requests: int, nodes_per_tier: Sequence[int], seed: int, n_blocks: int
) -> tuple[np.random.Generator, list[int]]:
    valid.whole(owner, "n_requests", n_requests, minimum=1)
    valid.whole(owner, "n_blocks", n_blocks, minimum=3)
    if isinstance(nodes_per_tier, str) or not isinstance(nodes_per_tier, Sequence | np.ndarray):
        raise TypeError(f"{owner}: nodes_per_tier must be a sequence, got {nodes_per_tier!r}")
    if not 1 <= len(nodes_per_tier) <= len(TIER_SPEEDS):
        raise ValueError(
            f"{owner}: nodes_per_tier must have 1..5 entries, got {nodes_per_tier!r}"
        )
    counts = [
        valid.whole(owner, f"nodes_per_tier[{k}]", count, minimum=1)
        for k, count in enumerate(nodes_per_tier)
    ]
    return np.random.default_rng(valid.whole(owner, "seed", seed)), counts


def _with_arrivals(
    owner: str, instance: Instance, gaps: NDArray[np.float64], load: float, burst: bool
) -> Instance:
    valid.real(owner, "load", load, strict=True)
    if valid.flag(owner, "burst", burst):
        return instance
    with np.errstate(over="ignore"):  # the instance refuses an overflow
        return instance.replace(arrival_s=np.cumsum(gaps) * best_period_s(instance) / load)
