"""`rpc_network`: the links of a network as the messages of llama.cpp over RPC use them.

``llama-server`` runs on the machine of the first stage, and ``ggml-rpc-server`` on every other
machine. As of ``ggml/src/ggml-rpc/ggml-rpc.cpp`` (October 2025 and later, from which on one
server has several devices):

- The server copies a tensor itself only between two devices of its own
  (``ggml_backend_rpc_buffer_cpy_tensor``). The command to do so comes from ``llama-server``,
  which waits for the reply: one round trip.
- Between two other machines, ``llama-server`` fetches the tensor (``GET_TENSOR``) and sends it
  on (``SET_TENSOR``): two transfers, one after the other.
- States are 32-bit floats, twice the 16 bits that models are described with.
- ``llama-server`` samples the tokens itself. From the machine of the last stage it fetches the
  logits of each token that a batch puts out: 4 bytes for every token of the vocabulary.

Each connection is one TCP stream over the links between two machines. Its rate is that of the
slowest link, and its latency is the sum of theirs. The last stage returns to ``llama-server``.

The bytes of logits depend on the tokens that come out of a batch, and not on those that go in.
They are counted as seconds of the head, on every machine from which they cross the network: the
head carries them as it carries the all-reduces of GPUs that compute as one (`rpc_model`). The
simulator, the fluid model, the bounds and the exact methods thus count them alike: per batch,
or per part of a batch (`micro_batch_tokens`), for this is when ``llama-server`` fetches them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.problem.deployment import Link, Model, Network, Node, Tier
from hypsolve.problem.interconnect import AllReduce
from hypsolve.problem.runtime import BYTES_PER_LOGIT, Runtime, vocabulary

SERVER = "llama.cpp"
STATE_RATIO = 2.0  # bytes of a 32-bit float over those of the 16 bits in a model's description
LOGITS = "logits"  # the name of the lines that carry them
NO_WAY = Link(bytes_per_s=1e18, latency_s=0.0)  # between closed tiers, which nothing crosses


@dataclass(frozen=True, slots=True)
class Way:
    """A way between two machines: seconds per byte, and latencies there and back."""

    s_per_byte: float = 0.0
    latency_s: float = 0.0
    back_s: float = 0.0


def rpc_network(network: NetworkFile, runtime: Runtime) -> Network:
    """Return a network whose links take as long as messages of llama.cpp between stages do.

    The GPUs of later stages carry the seconds per byte of the logits that they would return,
    see `rpc_model`.

    Tiers that may hold no block (``max_blocks`` of 0) take no part; all others count as stages.
    Links before the first stage stay, for requests and answers cross them as before.

    Parameters
    ----------
    network : NetworkFile
        Links as the user gives them, or those of nodes in a row.
    runtime : Runtime
        Other runtimes than llama.cpp, whose stages talk to each other, keep the network.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1e8, latency_s=1e-3)
    >>> names = ("mac", "pc", "orin")
    >>> nodes = [hs.Node(name=name, gpu=hs.gpu("rtx-4070")) for name in names]
    >>> tiers = [hs.Tier(name=n.name, nodes=(n,), link=link) for n in nodes[:2]]
    >>> tiers.append(hs.Tier(name="orin", nodes=nodes[2:]))
    >>> home = NetworkFile(network=hs.Network(name="home", tiers=tuple(tiers)))
    >>> found = rpc_network(home, hs.runtime("llama.cpp"))
    >>> [tier.link.latency_s for tier in found.tiers[:2]]  # pc, mac, pc, orin
    [0.001, 0.003]
    """
    stages = _stages(network)
    if runtime.server != SERVER or len(stages) < 2:
        return network.network
    given = network.network.tiers
    tiers = list(given)
    for at, (k, after) in enumerate(itertools.pairwise(stages)):
        is_last = at == len(stages) - 2
        tiers[k] = replace(tiers[k], link=_hop(given, stages[0], k, after, is_last))
        for empty in range(k + 1, after):
            tiers[empty] = replace(tiers[empty], link=NO_WAY)
        tiers[after] = replace(tiers[after], nodes=_returning(given, stages[0], after))
    return replace(network.network, tiers=tuple(tiers))


def rpc_model(model: Model, network: Network) -> Model:
    """Return a model whose head returns logits where nodes of the network carry them.

    llama.cpp over RPC computes no layer on several GPUs: no other block has all-reduces.

    Parameters
    ----------
    model : Model
    network : Network
        As `rpc_network` returns it. A network without `returns_logits` keeps the model.

    Examples
    --------
    >>> import hypsolve as hs
    >>> names = ("mac", "pc")
    >>> mac, pc = (hs.Node(name=name, gpu=hs.gpu("rtx-4070")) for name in names)
    >>> link = hs.Link(bytes_per_s=1e8, latency_s=1e-3)
    >>> tiers = (hs.Tier(name="mac", nodes=(mac,), link=link), hs.Tier(name="pc", nodes=(pc,)))
    >>> home = NetworkFile(network=hs.Network(name="home", tiers=tiers))
    >>> found = rpc_network(home, hs.runtime("llama.cpp"))
    >>> rpc_model(hs.model("llama-3-8b"), found).blocks[-1].collective_bytes_per_token
    513024
    """
    if not any(returns_logits(node) for tier in network.tiers for node in tier.nodes):
        return model
    *others, head = (
        replace(b, collectives=0, collective_bytes_per_token=0) for b in model.blocks
    )
    logits_bytes = round(vocabulary(model)) * BYTES_PER_LOGIT
    if head.last_token_only and logits_bytes:
        head = replace(head, collectives=1, collective_bytes_per_token=logits_bytes)
    return replace(model, blocks=(*others, head))


def returns_logits(node: Node) -> bool:
    """Return whether a node would return logits over the network, see `rpc_network`."""
    lines = node.gpu.all_reduce
    return lines is not None and lines.library == LOGITS


def depends_on_empty_tiers(network: NetworkFile, runtime: Runtime) -> bool:
    """Return whether the links of llama.cpp depend on the tiers that a split leaves empty.

    `rpc_network` counts every tier that may hold blocks as a stage. Where such a tier may be
    empty, each choice of empty tiers needs a network of its own.
    """
    stages = _stages(network)
    may_be_empty = any(network.min_blocks[k] == 0 for k in stages if network.min_blocks)
    return runtime.server == SERVER and len(stages) > 1 and may_be_empty


def describe_rpc(network: NetworkFile, runtime: Runtime) -> str:
    """Describe the ways of messages in one line; empty for other runtimes, or for one stage."""
    stages = _stages(network)
    if runtime.server != SERVER or len(stages) < 2:
        return ""
    tiers = network.network.tiers
    remote = [k for k in stages if not _share_host(tiers[stages[0]], tiers[k])]
    if not remote:
        return "messages between stages: 32-bit floats, within one machine"
    line = f"messages between stages: 32-bit floats, all by way of {tiers[stages[0]].name}"
    line += (
        ", where llama-server runs; the logits return there, 4 bytes a token of the vocabulary"
    )
    if any(_share_host(tiers[a], tiers[b]) for a, b in itertools.pairwise(remote)):
        line += "; GPUs of one machine copy on its own links, told so by llama-server"
    return line


def _stages(network: NetworkFile) -> list[int]:
    """Return the tiers that may hold blocks."""
    n_tiers = len(network.network.tiers)
    most = network.max_blocks or (None,) * n_tiers
    return [k for k in range(n_tiers) if most[k] != 0]


def _hop(tiers: Sequence[Tier], first: int, k: int, after: int, is_last: bool) -> Link:
    """Return the link from stage `k` to stage `after`, where `first` has the client."""
    out, on = _way(tiers, first, k), _way(tiers, first, after)
    if _share_host(tiers[k], tiers[after]):
        copy = _way(tiers, k, after, within_hosts=True)
        s_per_byte = copy.s_per_byte
        latency_s = copy.latency_s + out.back_s + on.latency_s
    else:
        s_per_byte = out.s_per_byte + on.s_per_byte
        latency_s = out.back_s + on.latency_s
    return Link(
        bytes_per_s=1 / (STATE_RATIO * s_per_byte),
        latency_s=latency_s,
        return_latency_s=on.back_s if is_last else 0.0,
    )


def _returning(tiers: Sequence[Tier], first: int, k: int) -> tuple[Node, ...]:
    """Return the nodes of stage `k` with the seconds per byte of logits on their way back."""
    s_per_byte = _way(tiers, first, k).s_per_byte
    if not s_per_byte or _share_host(tiers[first], tiers[k]):
        return tiers[k].nodes
    lines = AllReduce(
        library=LOGITS,
        degree=2,
        switch_bytes=0.0,
        small_s=0.0,
        small_s_per_byte=s_per_byte,
        large_s=0.0,
        large_s_per_byte=s_per_byte,
    )
    return tuple(replace(n, gpu=replace(n.gpu, all_reduce=lines)) for n in tiers[k].nodes)


def _way(tiers: Sequence[Tier], a: int, b: int, *, within_hosts: bool = False) -> Way:
    """Return the way from tier `a` to a later tier `b`: one stream over all links between.

    Links within a machine count only if `within_hosts`.
    """
    links = [
        tier.link
        for tier, then in zip(tiers[a:b], tiers[a + 1 : b + 1], strict=True)
        if tier.link is not None and (within_hosts or not _share_host(tier, then))
    ]
    if not links:
        return Way()
    latency_s = math.fsum(link.latency_s for link in links)
    return Way(
        s_per_byte=1 / min(link.bytes_per_s for link in links),
        latency_s=latency_s,
        back_s=math.fsum(link.round_trip_s for link in links) - latency_s,
    )


def _share_host(tier: Tier, other: Tier) -> bool:
    """Return whether the nodes of two stages share their machines, pipeline by pipeline."""
    return all(
        (a.host or a.name) == (b.host or b.name)
        for a, b in zip(tier.nodes, other.nodes, strict=False)
    )
