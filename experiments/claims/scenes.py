"""Scenes of the claims: networks, requests and churn, all drawn from a seed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve import (
    CostModel,
    Deployment,
    Model,
    Network,
    Node,
    Requests,
    read_requests,
    to_instance,
)
from hypsolve.problem.units import gbps_to_bytes_per_s
from hypsolve.simulation.events import Event, draw_events
from hypsolve.simulation.workloads import CONTEXT_TOKENS, WORKLOAD_MAX_TOKENS, WORKLOADS
from instances.generate import assemble, draw_gpus, draw_link, place
from instances.scenarios import best_period_s, capacity_per_s, model_of, scenario_network

DRAWS = 1000  # of networks, until one holds the model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Deployment and events of a comparison, identical for every method.

    Attributes
    ----------
    deployment : Deployment
    workload : str
        Source of the token lengths and the gaps between arrivals.
    load : float
        Requests per second over `instances.scenarios.capacity_per_s`; inf: all at time 0. The
        capacity ignores batches, so queues need not grow at load 1. It also ignores the room of
        KV caches, so a plan may not keep up even at 0.1.
    events : tuple of Event
    options : dict
        Options of `hypsolve.simulate`.
    """

    deployment: Deployment
    workload: str
    load: float
    events: tuple[Event, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the digest of costs, arrivals, tokens, events and options: 16 hex digits."""
        requests = self.deployment.requests
        sha = sha256(to_instance(self.deployment).digest().encode())
        for tokens in (requests.prompt_tokens, requests.output_tokens):
            sha.update(np.ascontiguousarray(tokens.astype("<i8")).data)
        sha.update(repr((self.events, sorted(self.options.items()))).encode())
        return sha.hexdigest()[:16]


def serve(
    tiers: Network,
    model: str | Model,
    *,
    seed: int,
    n_requests: int,
    load: float = 0.7,
    workload: str = "synthetic",
    output_tokens: int | None = None,
    cost_model: str = CostModel.ROOFLINE,
) -> Scene:
    """Put requests on a network.

    Lengths, and gaps up to a factor, depend on `workload`, `seed` and `n_requests` alone. The
    factor makes the rate `load` times the capacity of the network for these requests. So all
    methods get identical requests, which arrive slower along an axis that makes their work
    longer. `output_tokens` sets all output lengths to one value.
    """
    rng = np.random.default_rng(seed)
    max_tokens = WORKLOAD_MAX_TOKENS.get(workload, CONTEXT_TOKENS)
    if workload in REPLAYED:
        drawn = replayed(workload, n_requests, rng)
    else:
        drawn = WORKLOADS[workload](n_requests, 1.0, rng, max_tokens=max_tokens)
    if output_tokens is not None:
        outputs = np.full(n_requests, output_tokens)
        drawn = Requests(drawn.arrival_s, drawn.prompt_tokens, outputs)
        max_tokens += output_tokens
    deployment = Deployment(
        model=model_of(model, "fp16"),
        network=tiers,
        requests=drawn,
        cost_model=CostModel(cost_model),
        max_resident_tokens=max_tokens,
    )
    rate_per_s = load * capacity_per_s(to_instance(deployment))
    requests = Requests(drawn.arrival_s / rate_per_s, drawn.prompt_tokens, drawn.output_tokens)
    return Scene(
        deployment=replace(deployment, requests=requests), workload=workload, load=load
    )


CONVERSATIONS = "azure_conversation_replayed"
REPLAYED = {  # files of the workloads that are read, not drawn
    CONVERSATIONS: "azure_llm_2023_conv.csv",
    "azure_code_replayed": "azure_llm_2023_code.csv",
    "mooncake_replayed": "mooncake_conversation.csv",
}


def trace_file(workload: str) -> Path:
    """Return the path of the file of a workload of `REPLAYED`; it need not exist."""
    shared = os.environ.get("HYPSOLVE_SHARED")
    beside = Path(__file__).resolve().parents[3] / "shared"
    return (Path(shared) if shared else beside) / "data/traces" / REPLAYED[workload]


def can_draw(workload: str) -> bool:
    """Return True unless the workload comes from a file that is missing."""
    return workload not in REPLAYED or trace_file(workload).is_file()


def replayed(workload: str, n_requests: int, rng: np.random.Generator) -> Requests:
    """Read requests of a file from a random time on, and scale them to one a second.

    Prompts are cut where a request has more than `CONTEXT_TOKENS`, as in drawn workloads.

    Raises
    ------
    OSError
        If the file cannot be read, or holds too few requests.
    """
    path = trace_file(workload)
    try:
        arrival_s = _arrivals(path)
        if n_requests > len(arrival_s):
            raise ValueError(
                f"{path}: must hold {n_requests} requests or more, got {len(arrival_s)}"
            )
        return read_requests(
            path,
            start_s=float(rng.uniform(0.0, arrival_s[-n_requests])),
            max_tokens=CONTEXT_TOKENS,
            longer="clip",
            n_requests=n_requests,
            rate_per_s=1.0,
        )
    except ValueError as error:
        raise OSError(str(error)) from None


@lru_cache(maxsize=len(REPLAYED))
def _arrivals(path: Path) -> np.ndarray:
    return read_requests(path).arrival_s


def with_bandwidth(name: str, gbps: float) -> Network:
    """Return a named network with all links at one rate and unchanged latencies."""
    rate = gbps_to_bytes_per_s(gbps)
    tiers = tuple(
        replace(tier, link=tier.link and replace(tier.link, bytes_per_s=rate))
        for tier in scenario_network(name).tiers
    )
    return Network(name=name, tiers=tiers)


def drawn_network(model: str, n_tiers: int, seed: int) -> Network:
    """Draw tiers of two nodes from edge to cloud, with LAN links, that can hold the model.

    `instances.generate` draws the GPUs, with their own memory, again until a partition fits.
    """
    rng = np.random.default_rng([n_tiers, seed])
    for _ in range(DRAWS):
        gpus = [draw_gpus(rng, place(k, n_tiers), 2, 0.5) for k in range(n_tiers)]
        links = [draw_link(rng, "lan") for _ in range(n_tiers - 1)]
        drawn = assemble(f"drawn-{n_tiers}-{seed}", gpus, links)
        scene = serve(drawn, model, seed=0, n_requests=1)
        if np.isfinite(best_period_s(to_instance(scene.deployment))):
            return drawn
    raise ValueError(f"drawn network: {n_tiers} tiers must hold {model}, none of {DRAWS} does")


def spread_network(spread: float, seed: int) -> Network:
    """Draw three tiers of four nodes whose speeds differ by up to `spread` squared.

    GPUs, links and memory are those of ``campus``. The speed of a node (FLOP/s, bytes/s and
    1 / t0) is `spread` to a power drawn from U(-1, 1), scaled so that the speeds of a tier add
    up to one capacity for every `spread`.
    """
    rng = np.random.default_rng([4, seed])
    tiers = []
    for tier in scenario_network("campus").tiers:
        speed = spread ** rng.uniform(-1, 1, 4)
        speed /= speed.mean()
        tiers.append(
            replace(
                tier,
                nodes=tuple(
                    _at_speed(tier.nodes[0], f"{tier.name}-{j}", float(factor))
                    for j, factor in enumerate(speed)
                ),
            )
        )
    return Network(name=f"spread-{spread:g}", tiers=tuple(tiers))


def _at_speed(node: Node, name: str, factor: float) -> Node:
    gpu = replace(
        node.gpu,
        name=f"{node.gpu.name} x {factor:.4g}",
        t0_s=node.gpu.t0_s / factor,
        flops_per_s=node.gpu.flops_per_s * factor,
        bytes_per_s=node.gpu.bytes_per_s * factor,
    )
    return replace(node, name=name, gpu=gpu)


SLOW_FACTOR = 4.0
BAD_SHARE = 0.1  # mean length of a slowdown or an outage, as a share of the arrivals' time


def with_churn(scene: Scene, kind: str, per_node: float, seed: int) -> Scene:
    """Let nodes slow down or fail, `per_node` times on average while requests arrive.

    ``slowdowns``: iterations take `SLOW_FACTOR` times as long. ``failures``: the node is lost
    and returns empty. Both last `BAD_SHARE` of the time of the arrivals on average.

    ``error``: the times of a node differ from its profile by a constant log-normal factor;
    `per_node` is the standard deviation of its logarithm.
    """
    if per_node == 0:
        return scene
    if kind == "error":
        rng = np.random.default_rng([5, seed])
        nodes = [n.name for tier in scene.deployment.network.tiers for n in tier.nodes]
        factors = np.exp(per_node * rng.standard_normal(len(nodes)))
        wrong = zip(nodes, factors.tolist(), strict=True)
        return replace(scene, events=tuple(Event(0.0, "slowdown", n, f) for n, f in wrong))
    horizon_s = float(scene.deployment.requests.arrival_s[-1])
    good_s, bad_s = horizon_s / per_node, BAD_SHARE * horizon_s
    means = {
        "slowdowns": {
            "mean_normal_s": good_s, "mean_slow_s": bad_s, "slow_factor": SLOW_FACTOR
        },
        "failures": {"mean_up_s": good_s, "mean_down_s": bad_s},
    }[kind]  # fmt: skip
    events = draw_events(scene.deployment.network, horizon_s=horizon_s, seed=seed, **means)
    return replace(scene, events=events)
