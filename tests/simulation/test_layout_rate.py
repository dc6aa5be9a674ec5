"""`layout_rate`: against a proved bound, and against `simulate` under overload."""

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.simulation.layout_rate import layout_rate
from tests.helpers.layouts import replicas_layout
from tests.helpers.placements import BLOCKS, small_model

LAN = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)


def two_boxes():
    """Return a problem of two equal machines, and its deployment as one tier."""
    room = hs.Site(name="room", link=LAN)
    nodes = tuple(hs.Node(name=name, gpu=hs.gpu("l4")) for name in "ab")
    problem = hs.PlacementProblem(
        model=small_model(),
        requests=hs.Requests([0.0], [200], [20]),
        fleet=hs.Fleet(
            name="lab",
            sites=(room,),
            machines=tuple(hs.Machine(node=node, site="room") for node in nodes),
        ),
    )
    network = hs.Network(name="lab", tiers=(hs.Tier(name="room", nodes=nodes),))
    deployment = hs.Deployment(model=problem.model, network=network, requests=problem.requests)
    return problem, deployment


def test_rate_is_between_that_of_overload_and_the_bound():
    """Two replicas serve no less than under overload in `simulate`, and no more than proved."""
    problem, deployment = two_boxes()
    layout = replicas_layout([("ab", (0, BLOCKS))])
    n = 2000
    rate = layout_rate(problem, layout, n_requests=n)
    assert rate.n_requests == n
    assert len(rate.trace.end_s) == n
    at_once = hs.Requests(np.zeros(n), np.full(n, 200), np.full(n, 20))
    crowded = hs.Deployment(
        model=deployment.model, network=deployment.network, requests=at_once
    )
    trace = hs.simulate(crowded, hs.Partition((0, BLOCKS)), "round_robin")
    assert rate.requests_per_s >= n / trace.end_s.max() * (1 - 1e-9)
    assert rate.requests_per_s <= hs.throughput_bound(deployment)
    assert rate.output_tokens_per_s == pytest.approx(20 * rate.requests_per_s)


def test_short_simulations_say_so():
    """Where visits are limited, fewer requests are simulated, and the rate says it."""
    problem, _ = two_boxes()
    layout = LayerLayout(
        (HostedRange("a", 0, 5), HostedRange("b", 3, BLOCKS)),
        ((None, "a", 1.0), ("a", "b", 1.0), ("b", None, 1.0)),
    )
    few = layout_rate(problem, layout, max_visits=20_000)
    assert few.is_short
    assert few.trace.n_visits <= 1.1 * 20_000
    slots = layout_rate(problem, layout, n_requests=20, max_num_seqs=1)
    assert slots.requests_per_s < few.requests_per_s
    with pytest.raises(ValueError, match="layout_rate: max_visits must be at least 1, got 0"):
        layout_rate(problem, layout, max_visits=0)
