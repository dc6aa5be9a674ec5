"""`NetworkFile`: a network with what a plan needs besides: limits, prices, a runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hypsolve.problem.deployment import Link, Model, Network, Node, Tier
from hypsolve.problem.runtime import Runtime

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """The content of a network file: a network, limits on its blocks, prices, a runtime.

    Attributes
    ----------
    network : Network
    description : str
    pins : dict of str or int to str
        Tier of each pinned block. A block is ``embedding``, ``head``, or the number of a layer,
        counted from 0.
    min_blocks, max_blocks : tuple of int or None
        Limits for each tier, embedding and head counted. Without a minimum a tier hosts at
        least one block; with a minimum of 0 it may stay empty and only relay.
    price_per_hour : dict of str to float
        Price of each node that has one, by its name.
    currency : str
        Currency of the prices; empty if the file names none.
    inner_links : tuple of Link or None
        Link among the nodes of each tier; None if unknown.
    runtime : Runtime or None
        Runtime that the file names, with the values that it replaces; None if it names none.
    """

    network: Network
    description: str = ""
    pins: Mapping[str | int, str] = field(default_factory=dict)
    min_blocks: tuple[int | None, ...] = ()
    max_blocks: tuple[int | None, ...] = ()
    price_per_hour: Mapping[str, float] = field(default_factory=dict)
    currency: str = ""
    inner_links: tuple[Link | None, ...] = ()
    runtime: Runtime | None = None

    def in_groups(self, degree: int | Mapping[str, int] | None = None) -> "NetworkFile":
        """Return a copy in which every group of GPUs that compute as one is a node.

        `Network.in_groups` describes it. The groups of a machine share its price, and their
        link is that of the interconnect unless `inner_links` gives one.
        """
        machines = [node for tier in self.network.tiers for node in tier.nodes]
        if all(node.gpus == 1 for node in machines) and degree in (None, 1):
            return self
        network = self.network.in_groups(degree)
        groups = {node.name for tier in network.tiers for node in tier.nodes}
        prices: dict[str, float] = {}
        for node in machines:
            names = [name for name in groups if name == node.name]
            names += [name for i in range(node.gpus) if (name := f"{node.name}/{i}") in groups]
            if names and node.name in self.price_per_hour:
                price = self.price_per_hour[node.name] / len(names)
                prices |= dict.fromkeys(names, price)
        given = self.inner_links or (None,) * len(network.tiers)
        inner = tuple(
            tier.machine_link if link is None else link
            for tier, link in zip(network.tiers, given, strict=True)
        )
        return replace(self, network=network, price_per_hour=prices, inner_links=inner)

    def inner_link(self, k: int) -> Link | None:
        """Return the link among the nodes of tier k; None if unknown."""
        return self.inner_links[k] if self.inner_links else None

    def row_link(self, k: int, stages: Sequence[Sequence[Node]] | None = None) -> Link | None:
        """Return the link among nodes of tier k that are stages in a row; None if unknown.

        It is that of the tier. Without one, the groups of one machine have the link of its
        interconnect, also where the tier has other nodes; of several machines, the slowest.

        Parameters
        ----------
        k : int
        stages : sequence of sequence of Node, optional
            The nodes of each stage, one for each pipeline. Default: any nodes of the tier.
        """
        inner = self.inner_link(k)
        if inner is not None or stages is None or len(set(map(len, stages))) != 1:
            return inner
        tier, links = self.network.tiers[k], []
        for pipeline in zip(*stages, strict=True):
            link = replace(tier, nodes=pipeline).machine_link
            if link is None:
                return None
            links.append(link)
        return Link(
            bytes_per_s=min(link.bytes_per_s for link in links),
            latency_s=max(link.latency_s for link in links),
        )

    def may_be_stages(self, k: int, stages: Sequence[Sequence[Node]] | None = None) -> bool:
        """Return whether nodes of tier k can be stages of their own; see `row_link`.

        The nodes must be linked, and no pin or limit may name the tier. A minimum of 0 is no
        limit: every stage may then be empty.
        """
        return (
            self.row_link(k, stages) is not None
            and self.network.tiers[k].name not in self.pins.values()
            and all(limit in (None, 0) for limit in self.min_blocks[k : k + 1])
            and all(limit is None for limit in self.max_blocks[k : k + 1])
        )

    def in_a_row(self, k: int, stages: Sequence[Node | tuple[Node, ...]]) -> "NetworkFile":
        """Return a copy in which some nodes of tier k are tiers of their own, in a row.

        A stage is a node, or several nodes that hold equal blocks. A single stage keeps the
        tier's name and limits. Several stages need `may_be_stages`.
        """
        tier = self.network.tiers[k]
        groups = [stage if isinstance(stage, tuple) else (stage,) for stage in stages]
        made = [replace(tier, nodes=groups[0])]
        if len(groups) > 1:
            links = [*[self.row_link(k, groups)] * (len(groups) - 1), tier.link]
            made = [
                Tier(name=f"{tier.name}/{group[0].name}", nodes=group, link=link)
                for group, link in zip(groups, links, strict=True)
            ]

        def spread(of_tiers: tuple[Kind, ...]) -> tuple[Kind, ...]:
            return (*of_tiers[:k], *of_tiers[k : k + 1] * len(made), *of_tiers[k + 1 :])

        tiers = (*self.network.tiers[:k], *made, *self.network.tiers[k + 1 :])
        return replace(
            self,
            network=replace(self.network, tiers=tiers),
            min_blocks=spread(self.min_blocks),
            max_blocks=spread(self.max_blocks),
            inner_links=spread(self.inner_links),
        )

    def rules(self, model: Model) -> dict[str, Any]:
        """Return pins and limits as keyword arguments of `hypsolve.to_instance`.

        Raises
        ------
        ValueError
            If the model lacks a pinned block, or has fewer blocks than the tiers need.
        """
        tiers = [tier.name for tier in self.network.tiers]
        pinned = {_block(model, block): tiers.index(at) for block, at in self.pins.items()}
        rules: dict[str, Any] = {"pinned": pinned} if pinned else {}
        least = [1 if limit is None else limit for limit in self.min_blocks]
        if sum(least) > model.n_blocks:
            raise ValueError(
                f"min_blocks of all tiers must be at most the {model.n_blocks} blocks of"
                f" {model.name} ({model.n_layers} layers, embedding and head), got {sum(least)}"
            )
        if any(limit is not None for limit in self.min_blocks):
            rules["min_blocks"] = least
            rules["allow_empty"] = 0 in least
        if any(limit is not None for limit in self.max_blocks):
            rules["max_blocks"] = [
                model.n_blocks if limit is None else min(limit, model.n_blocks)
                for limit in self.max_blocks
            ]
        return rules


def _block(model: Model, name: str | int) -> int:
    """Return the number of a block by its name in pins."""
    ends = {"embedding": 0, "head": model.n_blocks - 1}
    number = ends[name] if isinstance(name, str) else name + 1
    if not isinstance(name, str) and name >= model.n_blocks - 2:
        raise ValueError(
            f"pin of layer {name}: {model.name} has layers 0 to {model.n_blocks - 3}"
        )
    return number
