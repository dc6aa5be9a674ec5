"""`doubled`, `helps_most`: the resource of which twice as much lets most requests be served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypsolve.planning.rpc_links import returns_logits
from hypsolve.problem.deployment import Deployment, Link, Node, Tier
from hypsolve.problem.units import GIB

GAINS = tuple(
    0.1 * 1.5**k for k in range(11)
)  # relative, at which doubled resources are told apart
COMPUTE, BANDWIDTH, KV, BATCH = "compute", "memory bandwidth", "KV memory", "batch limit"
LINK, LATENCY = "link", "latency"
NONE = "no single resource"
DOUBLED = (COMPUTE, BANDWIDTH, KV, BATCH, LINK, LATENCY)
"""Resources, as the names of `hypsolve.planning.limiting_resource` begin."""


def doubled(deployment: Deployment, resource: str) -> Deployment:
    """Return a deployment with twice of a resource everywhere.

    Parameters
    ----------
    deployment : Deployment
    resource : str
        One of `DOUBLED`: FLOP/s, byte/s of the memory, and the memory of all nodes; requests
        and tokens in a batch, which take no more memory than before; byte/s of all links, and
        of logits on their way back (`hypsolve.planning.rpc_links`). Of latencies there is half.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("l4")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3.2-1b"),
    ...     network=hs.Network(name="home", tiers=(box,)),
    ...     requests=hs.Requests([0.0], [128], [32]),
    ... )
    >>> doubled(deployment, "batch limit").runtime.max_num_seqs
    128
    """
    if resource == BATCH:
        runtime, tokens = deployment.runtime, deployment.runtime.max_num_batched_tokens
        larger = replace(
            runtime,
            fixed_gib=runtime.overhead_bytes(deployment.model) / GIB,
            activation_widths=0.0,
            logits_copies=0.0,
            max_num_seqs=2 * runtime.max_num_seqs,
            max_num_batched_tokens=None if tokens is None else 2 * tokens,
        )
        return replace(deployment, runtime=larger)
    tiers = tuple(_tier(tier, resource) for tier in deployment.network.tiers)
    return replace(deployment, network=replace(deployment.network, tiers=tiers))


def _tier(tier: Tier, resource: str) -> Tier:
    if resource in (LINK, LATENCY):
        tier = replace(tier, link=None if tier.link is None else _link(tier.link, resource))
    if resource == LATENCY:
        return tier
    return replace(tier, nodes=tuple(_node(node, resource) for node in tier.nodes))


def _link(link: Link, resource: str) -> Link:
    if resource == LINK:
        return replace(link, bytes_per_s=2 * link.bytes_per_s)
    back_s = link.return_latency_s
    return replace(
        link,
        latency_s=link.latency_s / 2,
        return_latency_s=None if back_s is None else back_s / 2,
    )


def _node(node: Node, resource: str) -> Node:
    gpu = node.gpu
    if resource == LINK:
        lines = gpu.all_reduce
        if lines is None or not returns_logits(node):
            return node
        half = lines.large_s_per_byte / 2
        faster = replace(lines, small_s_per_byte=half, large_s_per_byte=half)
        return replace(node, gpu=replace(gpu, all_reduce=faster))
    if resource == COMPUTE:
        return replace(node, gpu=gpu.scaled(flops=2.0))
    if resource == BANDWIDTH:
        return replace(node, gpu=gpu.scaled(moved=2.0))
    seen = gpu.visible_bytes
    larger = replace(
        gpu,
        memory_bytes=2 * gpu.memory_bytes,
        visible_bytes=None if seen is None else 2 * seen,
    )
    own = node.memory_bytes
    return replace(node, gpu=larger, memory_bytes=None if own is None else 2 * own)


def helps_most(names: Sequence[str], keeps_up: Callable[[str, float], bool | None]) -> str:
    """Return the resource whose doubling lets the largest rate be sustained.

    Of resources that reach one of `GAINS` and none beyond it, the first is returned. A resource
    is only tried at rates that no earlier one has reached. If none reaches the least of them,
    no single resource limits the rate.

    Parameters
    ----------
    names : sequence of str
        At least one, the one that is expected to help most first.
    keeps_up : callable
        Whether a rate is sustained with twice of a resource, by its name and the gain of the
        rate; None: the time is over, which ends the search.

    Returns
    -------
    str
        A name, `NONE`, or empty if the search ended before one helped.

    Examples
    --------
    >>> gains = {"compute": 0.15, "link": 0.9, "latency": 0.5}
    >>> helps_most(tuple(gains), lambda name, gain: gain <= gains[name])
    'link'
    >>> helps_most(("compute", "link"), lambda name, gain: False)
    'no single resource'
    """
    best, n_reached = "", 0
    for name in names:
        while n_reached < len(GAINS):
            does_keep_up = keeps_up(name, GAINS[n_reached])
            if does_keep_up is None:
                return best
            if not does_keep_up:
                break
            best, n_reached = name, n_reached + 1
    return best or NONE
