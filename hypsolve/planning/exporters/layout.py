"""Read from a plan what a server must be told: stages, replicas, machines, limits, load.

All that exporters know of a `Plan` is read here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypsolve.planning.exporters.modules import ModuleNames
from hypsolve.planning.load import with_requests
from hypsolve.planning.plan import Plan
from hypsolve.planning.platforms import CPU, platform_of, weights_of
from hypsolve.planning.request_mix import GIVEN, RequestMix
from hypsolve.problem.deployment import Deployment, Network, Node, Tier
from hypsolve.problem.runtime import KvAdmission, Runtime
from hypsolve.problem.units import count

MAX_SHARE = 0.95  # of a GPU's memory, where a server's own profile does not say
NO_BFLOAT16 = ("T4", "V100", "RTX 20")  # of the catalogue's GPUs


@dataclass(frozen=True, slots=True)
class Card:
    """A node of the plan: a GPU in its machine, or several that compute as one.

    Attributes
    ----------
    node, gpu : str
        Names.
    host : str
        Machine that the GPU is in; the node's name if the network says nothing.
    number : int
        Number of the first GPU in its host.
    is_shared : bool
        Whether the host has, or may have, further GPUs.
    memory_share : float
        Share of the memory of each GPU that the server may take.
    room_tokens : float
        Tokens of KV cache that fit beside the weights; inf if its blocks have no cache.
    n_gpus : int
        Number of GPUs: the degree of tensor parallelism.
    """

    node: str
    gpu: str
    host: str
    number: int
    is_shared: bool
    memory_share: float
    room_tokens: float
    n_gpus: int = 1

    @property
    def numbers(self) -> range:
        """Numbers of its GPUs in the host."""
        return range(self.number, self.number + self.n_gpus)


@dataclass(frozen=True, slots=True)
class Replica:
    """One pipeline: a GPU for each stage."""

    cards: tuple[Card, ...]

    @property
    def runs(self) -> tuple[tuple[str, tuple[Card, ...]], ...]:
        """Hosts in the order of the stages, each with its GPUs; a host may come again."""
        grouped = itertools.groupby(self.cards, key=lambda card: card.host)
        return tuple((host, tuple(cards)) for host, cards in grouped)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts, each once, the first stage's first."""
        return tuple(dict.fromkeys(card.host for card in self.cards))

    @property
    def memory_share(self) -> float:
        """Share of the memory that a server may take on every GPU."""
        return min(card.memory_share for card in self.cards)

    @property
    def needs_half(self) -> bool:
        """Whether a GPU lacks bfloat16."""
        return any(card.gpu.startswith(NO_BFLOAT16) for card in self.cards)


@dataclass(frozen=True, slots=True)
class BenchmarkLoad:
    """The simulated load.

    Attributes
    ----------
    prompt_tokens, output_tokens, n_requests : int
    rate_per_s : float
        Rate of Poisson arrivals; not used if there are users.
    users : int or None
        Users who each wait for an answer before they ask again; None: requests arrive.
    think_time_s : float
        Seconds from an answer to a user's next request.
    mix : RequestMix or None
        The simulated requests, if their lengths differ: those above are means then.
    """

    prompt_tokens: int
    output_tokens: int
    n_requests: int
    rate_per_s: float
    users: int | None
    think_time_s: float = 0.0
    mix: RequestMix | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one sequence: of the longest one, if they differ."""
        if self.mix is not None:
            return self.mix.longest_tokens
        return self.prompt_tokens + self.output_tokens

    def __str__(self) -> str:
        load = f"{self.rate_per_s:.12g} requests/s"
        if self.users is not None:
            load = count(self.users, "user")
        if self.think_time_s:
            load += f" (who think for {self.think_time_s:g} s; the benchmark's do not)"
        lengths = f"{load} of {self.prompt_tokens} + {self.output_tokens} tokens"
        if self.mix is None:
            return lengths
        where = "" if self.mix.source == GIVEN else f" in {self.mix.source}"
        return f"{lengths} each, the means of lengths that differ{where}"

    @classmethod
    def of(cls, plan: Plan) -> BenchmarkLoad:
        """Read the load of a plan."""
        query, load = plan.query, plan.query.load
        n_requests = (
            len(with_requests(plan.deployment, load).requests)
            if plan.forecast is None
            else plan.forecast.n_requests
        )
        return cls(
            prompt_tokens=query.prompt_tokens,
            output_tokens=query.output_tokens,
            n_requests=n_requests,
            rate_per_s=load.rate_per_s,
            users=load.users,
            think_time_s=load.think_time_s,
            mix=query.requests,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Stages, replicas and machines of a plan; empty stages start nothing.

    Attributes
    ----------
    cuts : tuple of int
        First block of each stage, then the number of blocks.
    tiers : tuple of str
        Tier of each stage.
    nodes : tuple of tuple of str
        All nodes of each stage.
    degrees : tuple of tuple of int
        GPUs of each of these nodes.
    replicas : tuple of Replica
        Pipeline i has the i-th node of each stage. There are as many as the smallest stage has
        nodes.
    left_out : tuple of str
        Nodes that no pipeline has.
    runtime : Runtime
        The simulated runtime.
    has_experts : bool
        Whether the model is a mixture of experts.
    weights : str
        Format of the weights, a key of `hypsolve.weight_formats`; empty if the name of the
        model says nothing, as for 16 bits.
    ways : tuple of (float, float)
        Between each two stages: the least bytes per second, and the sum of the larger latencies
        of the two directions.
    """

    cuts: tuple[int, ...]
    tiers: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    replicas: tuple[Replica, ...]
    left_out: tuple[str, ...]
    runtime: Runtime
    has_experts: bool
    weights: str = ""
    degrees: tuple[tuple[int, ...], ...] = ()
    ways: tuple[tuple[float, float], ...] = ()

    @property
    def n_stages(self) -> int:
        """Number of stages."""
        return len(self.tiers)

    @property
    def n_layers(self) -> int:
        """Number of layers, without embedding and head."""
        return self.cuts[-1] - 2

    @property
    def first_layers(self) -> tuple[int, ...]:
        """First layer of each stage, then the number of all layers."""
        inner = (min(max(cut - 1, 0), self.n_layers) for cut in self.cuts[1:-1])
        return (0, *inner, self.n_layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """Number of layers of each stage."""
        return tuple(b - a for a, b in itertools.pairwise(self.first_layers))

    @property
    def degree(self) -> int:
        """Degree of tensor parallelism; of the first stage, if stages differ."""
        return next((card.n_gpus for replica in self.replicas for card in replica.cards), 1)

    @property
    def mixed_degrees(self) -> str:
        """Name the degrees of the stages, if they differ; empty if there is one degree."""
        degrees = [[card.n_gpus for card in replica.cards] for replica in self.replicas]
        if len({degree for of_replica in degrees for degree in of_replica}) < 2:
            return ""
        return ", ".join("/".join(map(str, each)) for each in degrees)

    @property
    def is_one_machine(self) -> bool:
        """Whether all replicas are in one machine."""
        return len({card.host for replica in self.replicas for card in replica.cards}) == 1

    def sequences(self, replica: Replica, load: BenchmarkLoad) -> int:
        """Return the most requests that run at once in a replica, at least 1.

        Under ``reserve`` the room for KV cache limits them, as in the simulation; a server of
        paged caches would admit more.
        """
        limit = self.runtime.max_num_seqs
        if self.runtime.kv_admission is KvAdmission.RESERVE:
            held = self.runtime.held_tokens(load.prompt_tokens + load.output_tokens)
            room = min(card.room_tokens for card in replica.cards) // held
            limit = int(min(limit, max(room, 1)))
        return limit

    def batched_tokens(self, replica: Replica, load: BenchmarkLoad) -> int | None:
        """Return the most tokens of an iteration, decode tokens included; None: no limit."""
        runtime = self.runtime
        limits = [runtime.max_num_batched_tokens]
        if runtime.chunk_tokens is not None:
            limits.append(runtime.chunk_tokens + self.sequences(replica, load))
        return min((limit for limit in limits if limit is not None), default=None)

    def memory_share(self, replica: Replica, server: str) -> float:
        """Return the share of its GPUs' memory that a server may take, rounded down.

        The rules of other runtimes may leave a server less than it needs to start; at most
        `MAX_SHARE` is then asked for.
        """
        share = replica.memory_share
        if self.runtime.server != server:
            share = min(share, MAX_SHARE)
        return math.floor(share * 1000 + 1e-6) / 1000

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """Read the stages, replicas and machines of a plan that fits."""
        assert plan.result.partition is not None
        used: dict[str, list[str]] = defaultdict(list)
        for node in plan.nodes:
            used[node.tier] += [node.node] if node.is_used else []
        return cls.of_split(plan.deployment, plan.result.partition.cuts, used)

    @classmethod
    def of_split(
        cls, deployment: Deployment, cuts: Sequence[int], used: Mapping[str, Sequence[str]]
    ) -> Layout:
        """Lay out a split; `used` names the nodes of each tier that hold its stage."""
        tiers = deployment.network.tiers
        stages = [k for k in range(len(tiers)) if cuts[k] < cuts[k + 1]]
        cards = _cards(deployment, cuts, used)
        n_replicas = min((len(cards[k]) for k in stages), default=0)
        taken = [cards[k][:n_replicas] for k in stages]
        return cls(
            cuts=(0, *(cuts[k + 1] for k in stages)),
            tiers=tuple(tiers[k].name for k in stages),
            nodes=tuple(tuple(card.node for card in cards[k]) for k in stages),
            replicas=tuple(Replica(tuple(of)) for of in zip(*taken, strict=True)),
            left_out=tuple(c.node for k in stages for c in cards[k][n_replicas:]),
            runtime=deployment.runtime,
            has_experts=any(block.n_experts for block in deployment.model.blocks),
            weights=weights_of(deployment.model),
            degrees=tuple(tuple(card.n_gpus for card in cards[k]) for k in stages),
            ways=tuple(_way(tiers[a:b]) for a, b in itertools.pairwise(stages)),
        )


@dataclass(frozen=True, slots=True)
class Export:
    """A layout, the load, and what only single exporters need.

    Attributes
    ----------
    layout : Layout
    load : BenchmarkLoad
    model : str
        Name of the model.
    modules : ModuleNames
    tied : bool
        Whether the head uses the table of the embedding.
    executor : str or None
        Executor of vLLM across machines; None: as the layout allows.
    """

    layout: Layout
    load: BenchmarkLoad
    model: str
    modules: ModuleNames
    tied: bool
    executor: str | None = None


def _way(tiers: Sequence[Tier]) -> tuple[float, float]:
    """Return the least bytes per second, and the latency, over the links of some tiers."""
    links = [tier.link for tier in tiers if tier.link is not None]
    one_way = (max(link.latency_s, link.round_trip_s - link.latency_s) for link in links)
    return min(link.bytes_per_s for link in links), math.fsum(one_way)


def numbered(network: Network) -> dict[str, int]:
    """Return the number of each node's first GPU in its host, by the node's name.

    Nodes without a number get the free ones, in the order of the network. GPUs of one node have
    numbers in a row. A CPU has no number among GPUs: 0.
    """
    of_hosts: dict[str, list[Node]] = defaultdict(list)
    for tier in network.tiers:
        for node in tier.nodes:
            of_hosts[node.host or node.name].append(node)
    numbers: dict[str, int] = {}
    for host, nodes in of_hosts.items():
        numbers |= {node.name: 0 for node in nodes if platform_of(node.gpu.name) == CPU}
        of_hosts[host] = [node for node in nodes if node.name not in numbers]
    for nodes in of_hosts.values():
        taken = {
            node.card + i for node in nodes if node.card is not None for i in range(node.gpus)
        }
        for node in nodes:
            first = node.card
            if first is None:
                starts = itertools.count()
                first = next(n for n in starts if taken.isdisjoint(range(n, n + node.gpus)))
                taken.update(range(first, first + node.gpus))
            numbers[node.name] = first
    return numbers


def _cards(
    deployment: Deployment, cuts: Sequence[int], used: Mapping[str, Sequence[str]]
) -> list[list[Card]]:
    """Return the used GPUs of each tier."""
    network, model, runtime = deployment.network, deployment.model, deployment.runtime
    numbers = numbered(network)
    of_host = Counter(node.host for tier in network.tiers for node in tier.nodes)
    found = []
    for k, tier in enumerate(network.tiers):
        blocks = model.blocks[cuts[k] : cuts[k + 1]]
        weights = model.stage_weight_bytes(blocks)
        cards = []
        for node in tier.nodes:
            if node.name not in used.get(tier.name, ()):
                continue
            has = runtime.card_bytes(node)
            free = deployment.usable_bytes(node) - weights
            kv_bytes = deployment.kv_bytes_per_token(blocks, node)
            in_company = bool(node.host) and (of_host[node.host] > 1 or bool(node.card))
            cards.append(
                Card(
                    node=node.name,
                    gpu=node.gpu.name,
                    host=node.host or node.name,
                    number=numbers[node.name],
                    is_shared=in_company or node.gpus > 1,
                    memory_share=min(runtime.memory_fraction, 1 - node.reserved_bytes / has),
                    room_tokens=free // kv_bytes if kv_bytes else math.inf,
                    n_gpus=node.gpus,
                )
            )
        found.append(cards)
    return found
