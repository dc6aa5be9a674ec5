"""The requests per second that layouts of Helix's clusters serve in simulation.

A layout of layers becomes one of blocks: the machines with the first layer hold the embedding,
and those with the last one hold the head. Machines and links are those of the files in
`instances/machines`. Requests have the mean lengths of the conversations that Helix serves.
"""

import dataclasses
from functools import cache
from pathlib import Path

import hypsolve as hs
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.simulation.layout_rate import LayoutRate, layout_rate
from instances.helix_flow import CLUSTERS

MACHINES = Path(__file__).parents[2] / "instances" / "machines"
FILES = {
    "single-24": "helix-single-24.toml",
    "regions-24": "helix-three-regions.toml",
    "single-42": "helix-42.toml",
}
MODELS = {"llama-70b": "llama-2-70b", "llama-30b": "llama-1-30b"}
CARDS = {
    "A100": ("a100-40gb", 1),
    "V100": ("v100-16gb", 1),
    "L4": ("l4", 1),
    "L4x2": ("l4", 2),
    "T4": ("t4", 1),
    "T4x2": ("t4", 2),
    "T4x4": ("t4", 4),
}
"""GPU and number of GPUs of each kind of machine."""
REGION_ENDS = (4, 14, 24)  # numbers of machines of `regions-24`
PROMPT_TOKENS, OUTPUT_TOKENS = 763, 232
"""Mean lengths of the trace of Helix (ASPLOS'25, section 6.1)."""
MAX_NUM_SEQS = 256
"""Requests in an iteration of a machine; other limits are those of the runtime `ideal`."""


@cache
def serving_problem(cluster: str, model: str = "llama-70b") -> hs.PlacementProblem:
    """Return the machines of a cluster under the names of `instances.helix_flow`.

    Examples
    --------
    >>> serving_problem("single-42").fleet
    <Fleet helix-42, machines of each site: cluster (42), coordinator (0)>
    """
    fleet = hs.read_machines(MACHINES / FILES[cluster]).fleet
    like = {(m.site, m.node.gpu, m.node.gpus): m for m in fleet.machines}
    machines = []
    for number, kind in enumerate(CLUSTERS[cluster][0].split()):
        site = "cluster"
        if cluster == "regions-24":
            site = f"region-{sum(number >= end for end in REGION_ENDS)}"
        gpu, n_gpus = CARDS[kind]
        machine = like[site, hs.gpu(gpu), n_gpus]
        node = dataclasses.replace(machine.node, name=f"{number}-{kind}")
        machines.append(dataclasses.replace(machine, node=node))
    return hs.PlacementProblem(
        model=hs.model(MODELS[model]),
        fleet=dataclasses.replace(fleet, machines=tuple(machines)),
        requests=hs.Requests([0.0], [PROMPT_TOKENS], [OUTPUT_TOKENS]),
    )


def in_blocks(layout: LayerLayout, n_blocks: int) -> LayerLayout:
    """Return a layout of layers as one of blocks, with the embedding and the head.

    Examples
    --------
    >>> layout = LayerLayout((HostedRange("a", 0, 3), HostedRange("b", 2, 5)))
    >>> print(in_blocks(layout, 7))
    a 0:4
    b 3:7
    """
    last = n_blocks - 2
    ranges = tuple(
        HostedRange(
            each.machine,
            each.start + 1 if each.start else 0,
            n_blocks if each.stop == last else each.stop + 1,
        )
        for each in layout.ranges
    )
    return LayerLayout(ranges, layout.flows)


def served_by(
    cluster: str, layout: LayerLayout, model: str = "llama-70b", *, max_visits: int = 30_000_000
) -> LayoutRate:
    """Return the largest rate that a layout of layers serves in simulation.

    Parameters
    ----------
    cluster, model : str
        As in `instances.helix_flow.helix_flow`.
    layout : LayerLayout
        Its flows are the shares of the requests.
    max_visits : int
        Largest number of visits of a simulation; see `layout_rate`.

    Raises
    ------
    ValueError
        If the layout does not fit on the machines.
    """
    problem = serving_problem(cluster, model)
    blocks = in_blocks(layout, problem.model.n_blocks)
    return layout_rate(problem, blocks, max_visits=max_visits, max_num_seqs=MAX_NUM_SEQS)
