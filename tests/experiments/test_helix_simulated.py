"""Layouts of Helix's clusters in simulation."""

import pytest

from experiments.layouts.simulated import in_blocks, served_by, serving_problem
from hypsolve.problem.layer_evaluation import largest_flow
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from instances.helix_flow import CLUSTERS, helix_flow


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_machines_are_those_of_the_flow(cluster):
    """Names, kinds, regions and links of a cluster are those of Helix's problem."""
    fleet, flow = serving_problem(cluster).fleet, helix_flow(cluster)
    assert tuple(machine.name for machine in fleet.machines) == flow.machines
    for a, first in enumerate(fleet.machines):
        for second in fleet.machines[a + 1 :]:
            bytes_per_s = fleet.link(first, second).bytes_per_s
            known = flow.links[first.name, second.name]
            assert bytes_per_s <= known < 1.6 * bytes_per_s  # the lowest of the regions' links


def test_layers_become_blocks_without_a_gap():
    """The first machine holds the embedding, the last one the head."""
    layout = LayerLayout((HostedRange("a", 0, 3), HostedRange("b", 2, 5)))
    got = [(each.start, each.stop) for each in in_blocks(layout, 7).ranges]
    assert got == [(0, 4), (3, 7)]


def test_chain_of_a_cluster_is_served():
    """A chain over all machines of the small cluster carries a flow and serves requests."""
    flow = helix_flow("single-24")
    room, ranges, start = {"A100": 10, "L4": 5, "T4": 2}, [], 0
    for name, kind in flow.kinds.items():
        stop = min(start + room[kind], flow.n_layers)
        if start < stop:
            ranges.append(HostedRange(name, start, stop))
        start = stop
    assert start == flow.n_layers
    layout = largest_flow(flow, ranges)
    served = served_by("single-24", layout, max_visits=100_000)
    assert layout.tokens_per_s > 0
    assert 0 < served.requests_per_s < 20
    assert len(served.trace.paths) == 1
