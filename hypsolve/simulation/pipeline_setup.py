"""Set-up of the batching modes ``pipeline`` and ``serial``: the variables of their kernel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hypsolve.simulation.token_setup import Records, System


def pipeline_state(system: System) -> Any:
    """Return the variables of the pipeline kernel at the start."""
    from hypsolve.kernels import token_level as shared
    from hypsolve.kernels.token_level import pipeline as kernel

    clock, counts, arrival_s = system.start(shared)
    n_requests, n_stages = system.instance.n_requests, len(system.tiers)
    n_pipes, n_slots = len(system.pipelines), system.setup.n_slots
    nodes = _nodes(system, shared, kernel, float(clock[shared.ORIGIN]))
    pipes = shared.records(n_pipes, kernel.PIPE)
    for name in ("running_head", "running_tail", "waiting_head", "waiting_tail"):
        pipes[name] = shared.NIL
    pipes["n_stages"] = system.layout.n_stages
    pipes["n_slots"] = np.minimum(n_slots, system.layout.n_stages)
    for pipe, members in zip(pipes, system.pipelines, strict=True):
        own = nodes[members[members >= 0]]
        pipe["capacity"], pipe["n_down"] = own["capacity"].min(), (own["up"] == 0).sum()
    places = shared.records(n_requests * n_stages, kernel.PLACE)
    places["left_s"] = math.nan
    return kernel.PipelineState(
        requests=_requests(system, shared, kernel),
        places=places,
        nodes=nodes,
        pipes=pipes,
        batches=shared.records(n_pipes * n_slots, kernel.BATCH),
        shares=shared.records((n_pipes * n_slots, _n_shares(system, pipes)), kernel.SHARE),
        legs=shared.records(n_pipes * n_slots * n_stages, kernel.LEG),
        links=system.links(shared),
        stranded=np.full(n_stages, shared.NIL),
        n_stranded=np.zeros(n_stages, np.int64),
        stranded_seen_s=np.full(n_stages, clock[shared.ORIGIN]),
        dispatched=np.zeros(n_stages, np.int64),
        touched=np.zeros(n_pipes, np.int64),
        sums=np.zeros((len(system.setup.windows), 3)),
        bins=np.zeros((shared.N_ROWS, len(nodes) + n_stages, shared.N_BINS)),
        counts=counts,
        clock=clock,
        arrival_s=arrival_s,
    )


def _n_shares(system: System, pipes: Records) -> int:
    """Return the largest number of requests that one batch can hold."""
    given, setup = system.deployment.requests, system.setup
    tokens = given.prompt_tokens if setup.paged else given.prompt_tokens + given.output_tokens
    n_fit = int(pipes["capacity"].max()) // int(tokens.min())  # a running one holds so many
    limits = (setup.max_num_seqs, setup.max_num_batched_tokens, n_fit, len(tokens))
    return min(limits)


def _requests(system: System, shared: Any, kernel: Any) -> Records:
    """Return the records of the requests at the start."""
    given, n_requests = system.deployment.requests, system.instance.n_requests
    requests = shared.records(n_requests, kernel.REQUEST)
    requests["prompt"] = requests["prefill"] = given.prompt_tokens
    requests["output"] = requests["believed"] = given.output_tokens
    if system.options.expected_output_tokens is not None:
        requests["believed"] = system.options.expected_output_tokens
    requests["rank"][system.setup.order] = np.arange(n_requests)
    for name in ("before", "behind", "pipe"):
        requests[name] = shared.NIL
    for name in ("reached_s", "admitted_s", "first_token_s", "end_s"):
        requests[name] = math.nan
    return requests


def _nodes(system: System, shared: Any, kernel: Any, origin_s: float) -> Records:
    """Return the records of the nodes at the start; some belong to no pipeline."""
    nodes = shared.records(system.instance.n_nodes, kernel.NODE)
    nodes["stage"] = nodes["pipe"] = shared.NIL
    nodes["kind"] = system.instance.node_class
    nodes["up"] = system.is_up()
    nodes["slowdown"] = 1.0
    nodes["seen_s"] = origin_s
    nodes["speed_at"], nodes["speed_end"] = system.speed_start[:-1], system.speed_start[1:]
    blocks = system.blocks
    for p, members in enumerate(system.pipelines):
        for stage, n in enumerate(members[members >= 0]):
            span = int(system.layout.node_span[n])
            nodes[n]["pipe"], nodes[n]["stage"], nodes[n]["span"] = p, stage, span
            nodes[n]["capacity"] = system.capacity_tokens(blocks[span], int(n))
    return nodes
