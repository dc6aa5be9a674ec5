"""Deployments of one request, for objectives in requests per second of servers that batch."""

from dataclasses import replace

import numpy as np

from hypsolve import catalog
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, Link, Model, Network, Node, Requests, Tier
from hypsolve.problem.runtime import IDEAL, Batching
from hypsolve.problem.units import GIB
from instances.generate import assemble, draw_gpus, draw_link, place
from instances.scenarios import SCENARIOS, best_period_s, model_of, scenario_network

LENGTHS = {256: 64, 512: 256, 2048: 128}
"""Prompt tokens of three kinds of requests, and the output tokens that go with them."""
ENUMERATED: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    ("llama-3-8b", (("jetson-agx-orin", 2), ("rtx-4090", 2), ("a100-40gb", 1))),
    ("llama-3-8b", (("rtx-3060", 3), ("rtx-3090", 1))),
    ("llama-2-13b", (("t4", 4), ("l4", 2))),
    ("llama-2-13b", (("rtx-4070", 2), ("rtx-4080", 2), ("rtx-4090", 1))),
    ("llama-2-13b", (("t4", 2), ("a10", 2), ("a100-40gb", 1))),
    ("llama-3-8b", (("rtx-3080", 4), ("v100-16gb", 2))),
    ("codellama-34b", (("l4", 3), ("a30", 1), ("l40s", 1))),
    ("phi-3-medium", (("rtx-a4000", 2), ("rtx-3090", 2), ("rtx-4090", 2))),
)
"""Models, and GPUs with their numbers by tier, whose splits are few enough to simulate all."""
DRAWN_MODELS = ("llama-3-8b", "phi-3-medium", "llama-2-13b", "mistral-7b")
DRAWN_LINKS = ("rack", "lan", "metro")
PROMPT_TOKENS, OUTPUT_TOKENS = (64, 2048), (16, 512)  # limits of drawn lengths
DRAWS = 1000  # of networks, until one holds the model


def serving_deployment(
    network: Network,
    model: str | Model,
    prompt_tokens: int,
    output_tokens: int,
    batching: Batching | str = Batching.STAGE,
) -> Deployment:
    """Put one request on a network, under the runtime ``ideal`` in a batching mode.

    Every node must have room for the KV cache of that request.

    Examples
    --------
    >>> from instances.scenarios import scenario_network
    >>> deployment = serving_deployment(scenario_network("campus"), "llama-3-8b", 256, 64)
    >>> deployment.runtime.batching, len(deployment.requests)
    (<Batching.STAGE: 'stage'>, 1)
    """
    return Deployment(
        model=model_of(model, "fp16"),
        network=network,
        requests=Requests([0.0], [prompt_tokens], [output_tokens]),
        runtime=replace(IDEAL, batching=batching),  # type: ignore[arg-type]
    )


def named(network: str, model: str | Model, prompt_tokens: int) -> Deployment:
    """Put requests of one of the `LENGTHS` on a named network, as scenarios use it."""
    valid.known("network", network, SCENARIOS)
    if prompt_tokens not in LENGTHS:
        raise ValueError(
            f"named: prompt_tokens must be one of {', '.join(map(str, LENGTHS))}, got"
            f" {prompt_tokens!r:.60}"
        )
    return serving_deployment(
        scenario_network(network), model, prompt_tokens, LENGTHS[prompt_tokens]
    )


def drawn(n_tiers: int, *, seed: int, batching: Batching | str = Batching.STAGE) -> Deployment:
    """Draw a network, a model that fits on it, and the lengths of its requests.

    Tiers of one to four nodes go from edge to cloud. With probability 1/2 a node has a GPU of
    its own draw instead of its tier's. Links are those of a rack, a LAN or a metropolitan
    network, the same kind for all. Lengths are drawn evenly on a logarithmic scale.

    Parameters
    ----------
    n_tiers : int
    seed : int
        Equal arguments give equal deployments; the batching mode changes nothing else.
    batching : Batching or str

    Raises
    ------
    ValueError
        If none of `DRAWS` networks holds its model.
    """
    n_tiers = valid.whole("drawn", "n_tiers", n_tiers, minimum=1)
    rng = np.random.default_rng([n_tiers, valid.whole("drawn", "seed", seed)])
    for _ in range(DRAWS):
        model = DRAWN_MODELS[rng.integers(len(DRAWN_MODELS))]
        prompt, output = (_log_uniform(rng, *each) for each in (PROMPT_TOKENS, OUTPUT_TOKENS))
        gpus = [
            draw_gpus(rng, place(k, n_tiers), int(rng.integers(1, 5)), 0.5)
            for k in range(n_tiers)
        ]
        kind = DRAWN_LINKS[rng.integers(len(DRAWN_LINKS))]
        links = [draw_link(rng, kind) for _ in range(n_tiers - 1)]
        network = assemble(f"drawn-{n_tiers}-{seed}", gpus, links)
        deployment = serving_deployment(network, model, prompt, output, batching)
        if np.isfinite(best_period_s(to_instance(deployment))):
            return deployment
    raise ValueError(f"drawn: {n_tiers} tiers must hold a model, none of {DRAWS} does")


def enumerated(number: int) -> Deployment:
    """Return one of the small deployments of `ENUMERATED`, counted from 0.

    Requests have 256 prompt and 64 output tokens. Links are 1 GbE of 0.2 ms one way, and every
    node keeps 1 GiB free.
    """
    number = valid.whole("enumerated", "number", number, maximum=len(ENUMERATED) - 1)
    model, gpus = ENUMERATED[number]
    tiers = [_tier(k, gpu, count, k < len(gpus) - 1) for k, (gpu, count) in enumerate(gpus)]
    network = Network(name=f"enumerated-{number}", tiers=tuple(tiers))
    return serving_deployment(network, model, 256, 64)


def describe_enumerated(number: int) -> str:
    """Name the model and the GPUs of a deployment of `ENUMERATED`."""
    model, gpus = ENUMERATED[number]
    words = (gpu if count == 1 else f"{gpu} x{count}" for gpu, count in gpus)
    return f"{model}: {', '.join(words)}"


def _tier(k: int, gpu: str, count: int, has_link: bool) -> Tier:
    nodes = (
        Node(name=f"{gpu}-{k}-{j}", gpu=catalog.gpu(gpu), reserved_bytes=GIB)
        for j in range(count)
    )
    link = Link(bytes_per_s=1.25e8, latency_s=2e-4) if has_link else None
    return Tier(name=f"tier-{k}", nodes=tuple(nodes), link=link)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
