"""The largest request rates of patterns in the fluid model, by `throughput_many`."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.instance_records import Limits
from hypsolve.problem.network import Link, Network, Tier
from hypsolve.problem.placement import PlacementObjective, PlacementProblem
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.solvers.placement.patterns import Pattern, PatternSpace
from hypsolve.solvers.placement.values import Box
from hypsolve.solvers.throughput.throughput_many import throughput_many

MARGIN = 1e-9
"""Share that is taken off the rates of the kernels, which are found to 1e-10, or added."""


class PatternValues:
    """The rates of patterns, with all units of the problem as classes of nodes.

    Parameters
    ----------
    space : PatternSpace
    n_threads : int, optional
    problem : PlacementProblem, optional
        That of `space` with other targets; default: that of `space`.

    Attributes
    ----------
    is_exact : bool
        Whether the safe rates of patterns are also the best ones; see `Links`.
    """

    def __init__(
        self,
        space: PatternSpace,
        n_threads: int | None = None,
        *,
        problem: PlacementProblem | None = None,
    ) -> None:
        self.space, self.n_threads = space, n_threads
        self.problem = space.problem if problem is None else problem
        self.units = space.units
        self.is_exact = not any(
            space.links.is_inside_worse(c) and len(each.machines) > 1
            for c, each in enumerate(space.classes)
        )
        self._index = {unit: at for at, unit in enumerate(self.units)}
        nodes = [
            dataclasses.replace(
                self.problem.group(space.classes[c].machines[0], degree), name=f"{c} {degree}"
            )
            for c, degree in self.units
        ]
        tier = Tier(name="all", nodes=tuple(nodes))
        self._deployment = Deployment(
            model=self.problem.model,
            network=Network(name="all", tiers=(tier,)),
            requests=self.problem.requests,
            cost_model=self.problem.cost_model,
            runtime=self.problem.runtime,
        )
        self._alone = [self._request_s(node) for node in nodes]
        self.instance = self._instance()
        table = self.instance.nodes
        self.node_class: IntArray = np.asarray(table.node_class, np.int64)
        self.node_bytes: Array = np.asarray(table.node_bytes, np.float64)
        model = self.problem.model
        sent = [model.input_bytes_per_token, *(b.output_bytes_per_token for b in model.blocks)]
        self._sent: Array = np.array(list(dict.fromkeys(sent)), np.float64)

    @property
    def counts_targets(self) -> bool:
        """Whether targets for latencies count."""
        is_throughput = self.problem.objective is PlacementObjective.THROUGHPUT
        return self.problem.has_targets and not is_throughput

    def _request_s(self, node: object) -> float:
        tier = Tier(name="one", nodes=(node,))  # type: ignore[arg-type]
        one = dataclasses.replace(self._deployment, network=Network(name="one", tiers=(tier,)))
        return one.request_s

    def _instance(self) -> ServingInstance:
        if not self.counts_targets:
            return to_serving_instance(self._deployment)
        return to_serving_instance(
            self._deployment,
            objective="goodput",
            ttft_slo_s=self.problem.ttft_slo_s,
            tpot_slo_s=self.problem.tpot_slo_s,
            latency_slo_s=self.problem.latency_slo_s,
        )

    def rates(
        self, patterns: Sequence[Pattern], *, is_best: bool = False
    ) -> tuple[Array, list[tuple[int, ...]]]:
        """Return the largest rate of each pattern, and its cuts; 0 if it carries nothing.

        Parameters
        ----------
        patterns : sequence of Pattern
        is_best : bool
            Use the best links instead of the safe ones, for a bound.
        """
        rates = np.zeros(len(patterns))
        cuts: list[tuple[int, ...]] = [()] * len(patterns)
        groups: dict[tuple[float, Box | None], list[int]] = defaultdict(list)
        for at, pattern in enumerate(patterns):
            entry_s = self._entry_s(pattern) if self.counts_targets else 0.0
            boxes = self.space.boxes(pattern) if self.problem.fleet.pins else (None,)
            for box in boxes:
                groups[entry_s, box].append(at)
        for (entry_s, box), members in groups.items():
            found, where = self._solve([patterns[at] for at in members], entry_s, box, is_best)
            for at, rate, row in zip(members, found.tolist(), where, strict=True):
                if rate > rates[at]:
                    n = len(patterns[at].units)
                    rates[at], cuts[at] = rate, tuple(row[: n + 1].tolist())
        return rates, cuts

    def _entry_s(self, pattern: Pattern) -> float:
        first = self.space.classes[pattern.units[0][0]].machines[0]
        alone = max(self._alone[self._index[unit]] for unit in pattern.units)
        return alone + self.problem.entry_s(first)

    def _solve(
        self, patterns: list[Pattern], entry_s: float, box: Box | None, is_best: bool
    ) -> tuple[Array, IntArray]:
        n = max(len(pattern.units) for pattern in patterns)
        units = np.full((len(patterns), n), -1)
        rates_per_s = np.ones((len(patterns), n))
        round_trip_s = np.zeros((len(patterns), n))
        for p, pattern in enumerate(patterns):
            units[p, : len(pattern.units)] = [self._index[unit] for unit in pattern.units]
            hops, back_s = self.hops(pattern, is_best)
            for s, link in enumerate(hops):
                rates_per_s[p, s], round_trip_s[p, s] = link.bytes_per_s, link.latency_s
            if hops:
                round_trip_s[p, len(hops) - 1] += back_s
        token_s = self._sent / rates_per_s[:, : n - 1, None]
        is_stage = units >= 0
        plans = throughput_many(
            self._limited(self.instance.replace(request_s=entry_s), box),
            np.where(is_stage, self.node_class[units], -1)[:, :, None],
            np.where(is_stage, self.node_bytes[units], 0.0)[:, :, None],
            token_s,
            round_trip_s[:, : n - 1],
            np.zeros((1, n - 1)),
            n_threads=self.n_threads,
        )
        return plans.fluid_requests_per_s, plans.cuts

    def hops(self, pattern: Pattern, is_best: bool = False) -> tuple[list[Link], float]:
        """Return the link behind each stage but the last, and the latency of the way back."""
        links, shares = self.space.links, pattern.shares
        found: list[Link] = []
        for s in range(len(shares) - 1):
            found.append(self._link(links, pattern, s, s + 1, is_best))
        if not found:
            return [], 0.0
        return found, self._link(links, pattern, -1, 0, is_best).latency_s

    def round_trip_s(self, pattern: Pattern) -> float:
        """Return the latency of all links of a pattern, the best ones, and of its way back."""
        hops, back_s = self.hops(pattern, True)
        return math.fsum(link.latency_s for link in hops) + back_s

    def _link(self, links: object, pattern: Pattern, a: int, b: int, is_best: bool) -> Link:
        first, second = pattern.units[a][0], pattern.units[b][0]
        if pattern.shares[a] == pattern.shares[b]:
            link = self.space.links.inside[first]
        else:
            link = self.space.links.between(first, second, is_best)
        assert link is not None  # `PatternSpace` makes no pattern without its links
        return link

    def _limited(self, instance: ServingInstance, box: Box | None) -> ServingInstance:
        """Return the instance with limits of the cuts, and as many tiers as these have."""
        if box is None:
            return instance
        n, n_blocks = len(box) - 1, instance.n_blocks
        node = dataclasses.replace(self._deployment.network.tiers[0].nodes[0], name="node")
        extra = [
            Tier(
                name=f"{k}",
                nodes=(dataclasses.replace(node, name=f"node {k}"),),
                link=Link(bytes_per_s=1.0, latency_s=0.0) if k < n - 1 else None,
            )
            for k in range(1, n)
        ]
        first = dataclasses.replace(
            self._deployment.network.tiers[0],
            link=Link(bytes_per_s=1.0, latency_s=0.0) if n > 1 else None,
        )
        deployment = dataclasses.replace(
            self._deployment, network=Network(name="all", tiers=(first, *extra))
        )
        made = to_serving_instance(deployment)
        limits = Limits(
            cut_min=np.array([low for low, _ in box]),
            cut_max=np.array([high for _, high in box]),
            min_blocks_given=np.ones(n, np.int64),
            max_blocks=np.full(n, n_blocks),
        )
        return dataclasses.replace(made, rules=instance.rules, limits=limits)
