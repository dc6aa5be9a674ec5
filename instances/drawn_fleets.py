"""Random fleets: machines without an order, and placement problems on them."""

import numpy as np

from hypsolve import catalog
from hypsolve.catalog.interconnects import interconnect
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Node, Requests
from hypsolve.problem.fleet import Fleet, Machine, Site
from hypsolve.problem.placement import PlacementProblem
from instances.generate import draw_link

DRAWN_KINDS = (
    "a10", "a100-40gb", "a100-80gb", "a30", "a40", "h100", "l4", "l40s", "rtx-3060",
    "rtx-3080", "rtx-3090", "rtx-4070", "rtx-4090", "rtx-5000-ada", "rtx-6000-ada",
    "rtx-a4000", "rtx-a6000", "t4", "v100-16gb",
)  # fmt: skip
"""GPUs of drawn machines. They stay these, so that a seed gives one fleet for good."""
DRAWN_CARDS = (1, 1, 1, 2, 4)
"""Numbers of GPUs in a machine, each as likely as the others."""
ROOM = 1.5
"""Memory of all GPUs of a fleet over the weights of the model, at least."""
DRAWS = 1000  # of fleets, until one has room


def drawn_placement(
    model: str,
    n_machines: int,
    *,
    n_kinds: int,
    n_sites: int = 1,
    seed: int,
    runtime: str = "vllm",
    prompt_tokens: int = 512,
    output_tokens: int = 128,
) -> PlacementProblem:
    """Draw a fleet, and ask for the most requests per second of a model on it.

    A kind of machine has one, two or four GPUs, in the last cases on PCIe 4. Every kind has as
    many machines as the others, or one more, and sites take them in turn. A site is a LAN; a
    metropolitan link joins any two sites.

    Parameters
    ----------
    model : str
        A name of the catalogue.
    n_machines, n_kinds, n_sites : int
    seed : int
        Equal arguments give equal problems.
    runtime : str
        A name of `hypsolve.runtimes`.
    prompt_tokens, output_tokens : int
        Lengths of every request.

    Raises
    ------
    ValueError
        If a number is too small or too large, or if none of `DRAWS` fleets has room for the
        model.

    Examples
    --------
    >>> drawn_placement("llama-3-8b", 6, n_kinds=3, seed=1).fleet
    <Fleet drawn-6-3-1-1, machines of each site: site-0 (6)>
    """
    owner = "drawn_placement"
    n_kinds = valid.whole(owner, "n_kinds", n_kinds, minimum=1, maximum=len(DRAWN_KINDS))
    n_machines = valid.whole(owner, "n_machines", n_machines, minimum=n_kinds)
    n_sites = valid.whole(owner, "n_sites", n_sites, minimum=1, maximum=n_machines)
    seed = valid.whole(owner, "seed", seed)
    wanted = catalog.model(model)
    weight_bytes = sum(block.weight_bytes for block in wanted.blocks)
    rng = np.random.default_rng(
        [n_machines, n_kinds, n_sites, valid.whole(owner, "seed", seed)]
    )
    for _ in range(DRAWS):
        kinds = [
            _node(DRAWN_KINDS[k], int(rng.choice(DRAWN_CARDS)))
            for k in rng.choice(len(DRAWN_KINDS), n_kinds, replace=False)
        ]
        nodes = [kinds[number % n_kinds] for number in range(n_machines)]
        memory_bytes = sum(node.gpus * node.gpu.memory_bytes for node in nodes)
        if memory_bytes >= ROOM * weight_bytes:
            break
    else:
        raise ValueError(
            f"{owner}: {n_machines} machines must have room for {model}, none of"
            f" {DRAWS} fleets has"
        )
    sites = tuple(Site(name=f"site-{k}", link=draw_link(rng, "lan")) for k in range(n_sites))
    links = {
        (f"site-{a}", f"site-{b}"): draw_link(rng, "metro")
        for a in range(n_sites)
        for b in range(a + 1, n_sites)
    }
    machines = tuple(
        Machine(
            node=Node(
                name=f"{node.name}-{number}", gpu=node.gpu, gpus=node.gpus,
                interconnect=node.interconnect,
            ),
            site=f"site-{number % n_sites}",
        )
        for number, node in enumerate(nodes)
    )  # fmt: skip
    return PlacementProblem(
        model=wanted,
        fleet=Fleet(
            name=f"drawn-{n_machines}-{n_kinds}-{n_sites}-{seed}",
            sites=sites,
            machines=machines,
            links=links,
        ),
        requests=Requests([0.0], [prompt_tokens], [output_tokens]),
        runtime=catalog.runtime(runtime),
    )


def _node(gpu: str, gpus: int) -> Node:
    return Node(
        name=gpu if gpus == 1 else f"{gpu}-x{gpus}",
        gpu=catalog.gpu(gpu),
        gpus=gpus,
        interconnect=None if gpus == 1 else interconnect("pcie4", gpu),
    )
