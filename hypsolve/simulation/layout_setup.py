"""Set-up of `simulate_layout`: a layout and its requests as arrays of the kernel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from hypsolve.problem import costs
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Block, CostModel, Deployment, Requests
from hypsolve.problem.layer_layout import LayerLayout
from hypsolve.problem.network import Network, Tier
from hypsolve.problem.placement import PlacementProblem
from hypsolve.simulation.layout_paths import OWNER, Edges
from hypsolve.simulation.options import Options
from hypsolve.simulation.token_setup import (
    gpu_record,
    limit_of,
    part_costs,
    parts_of,
    to_records,
)


class LayoutSystem:
    """A layout, requests and options as arrays, ready for one simulation.

    Attributes
    ----------
    deployment : Deployment
        All machines of the layout, as one tier.
    paths : list of list of int
        Distinct paths, as nodes.
    path : ndarray of int, shape (n_requests,)
        Path of each request.
    arrival_s : ndarray
        Arrivals, counted from the first one; nan: not yet known.
    capacity_bytes : list of int
        KV cache that fits on each node beside its weights.
    setup, state
        See `hypsolve.kernels.layer_layout.records`.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        layout: LayerLayout,
        edges: Edges,
        requests: Requests,
        options: Options,
    ) -> None:
        from hypsolve.kernels import layer_layout as kernel

        self.problem, self.layout, self.options = problem, layout, options
        self.machines = [problem.fleet.machine(hosted.machine) for hosted in layout.ranges]
        nodes = tuple(problem.group(each, each.node.gpus) for each in self.machines)
        self.deployment = Deployment(
            model=problem.model,
            network=Network(name=problem.fleet.name, tiers=(Tier(name="layout", nodes=nodes),)),
            requests=requests,
            cost_model=problem.cost_model,
            runtime=problem.runtime,
        )
        n = len(requests)
        self.order = np.argsort(requests.arrival_s, kind="stable")
        self.arrival_s = requests.arrival_s - requests.arrival_s.min()
        if options.users is not None:
            self.order = np.arange(n)
            self.arrival_s = np.sort(self.arrival_s)
            self.arrival_s[options.users :] = np.nan
        drawn = edges.draw(n, layout.ranges)
        _, firsts, inverse = np.unique(drawn, axis=0, return_index=True, return_inverse=True)
        by_first = np.argsort(firsts)
        self.paths = [[n for n in drawn[i].tolist() if n >= 0] for i in firsts[by_first]]
        self.path = np.empty(n, np.int64)
        self.path[self.order] = np.argsort(by_first)[inverse.ravel()]
        self.entries = self._entries()
        self.capacity_bytes = [self._capacity_bytes(n) for n in range(len(self.machines))]
        self.setup = self._setup(kernel)
        self.state = self._state(kernel)

    def blocks(self, start: int, stop: int) -> tuple[Block, ...]:
        """Return some blocks of the model."""
        return self.problem.model.blocks[start:stop]

    def _entries(self) -> list[list[int]]:
        """Return the blocks at which requests enter each node, in increasing order."""
        entries: list[set[int]] = [set() for _ in self.machines]
        for path in self.paths:
            entries[path[0]].add(0)
            for before, n in itertools.pairwise(path):
                entries[n].add(self.layout.ranges[before].stop)
        return [sorted(each) for each in entries]

    def _kv_bytes(self, n: int, entry: int) -> int:
        """Return the KV cache of a token that enters a node at a block."""
        node = self.deployment.network.tiers[0].nodes[n]
        blocks = self.blocks(entry, self.layout.ranges[n].stop)
        return self.deployment.kv_bytes_per_token(blocks, node)

    def _capacity_bytes(self, n: int) -> int:
        """Return the KV cache that fits on a node beside the weights of its whole range."""
        hosted, node = self.layout.ranges[n], self.deployment.network.tiers[0].nodes[n]
        longest = self.deployment.max_resident_tokens
        assert longest is not None  # Deployment sets it
        weights = self.problem.model.stage_weight_bytes(self.blocks(hosted.start, hosted.stop))
        entry = self.entries[n][0] if self.entries[n] else hosted.start
        needed, has = longest * self._kv_bytes(n, entry), self.deployment.usable_bytes(node)
        if weights + needed > has * (1 + 1e-12):
            raise ValueError(
                f"{OWNER}: machine {hosted.machine!r} must hold the weights of blocks"
                f" {hosted.start}:{hosted.stop} and the KV cache of {longest} tokens,"
                f" {weights + needed:g} bytes, got {has:g}"
            )
        # rounding must not keep the longest request from a node that can hold it
        return int(max((has - weights) // 1, needed))

    def _spans(self) -> tuple[list[list[Block]], list[int]]:
        """Return the groups of blocks of all nodes, and the first group of each node."""
        spans: list[list[Block]] = []
        first: list[int] = []
        for entries, hosted in zip(self.entries, self.layout.ranges, strict=True):
            first.append(len(spans))
            cuts = [*entries, hosted.stop] if entries else []
            spans += [list(self.blocks(i, j)) for i, j in itertools.pairwise(cuts)]
        return spans, first

    def _return_s(self) -> Array:
        """Return the seconds from the last node of each path directly to its first one."""
        return_s = []
        for path in self.paths:
            first, last = self.machines[path[0]], self.machines[path[-1]]
            link = self.problem.fleet.link(last, first)
            if link is None and first is not last:
                raise ValueError(
                    f"{OWNER}: machines {last.name!r} and {first.name!r}, the last and the"
                    " first of a path, must have a link, got none"
                )
            return_s.append(0.0 if first is last or link is None else link.latency_s)
        return np.array(return_s)

    def _setup(self, kernel: Any) -> Any:
        """Return the inputs of the kernel, which do not change."""
        options, layout, gpus = self.options, self.layout, costs.node_classes(self.deployment)
        spans, _ = self._spans()
        parts, part_start, windows = parts_of(kernel, spans)
        self.pairs: dict[tuple[int, int], int] = {}
        longest = max(map(len, self.paths))
        hop = kernel.records((len(self.paths), longest), kernel.HOP)
        for p, path in enumerate(self.paths):
            for i, n in enumerate(path):
                entry = layout.ranges[path[i - 1]].stop if i else 0
                link = kernel.NIL
                if i:
                    link = self.pairs.setdefault((path[i - 1], n), len(self.pairs))
                group = self.entries[n].index(entry)
                hop[p, i] = (n, group, link, self._kv_bytes(n, entry))
        fleet, request_s = self.problem, self.deployment.request_s
        return kernel.Setup(
            max_num_seqs=limit_of(options.max_num_seqs),
            chunk_tokens=limit_of(options.chunk_tokens),
            max_num_batched_tokens=limit_of(options.max_num_batched_tokens),
            iteration_s=options.iteration_s,
            slot_tokens=self.deployment.runtime.held_tokens(1),
            contention=options.link_contention,
            bandwidth_bound=self.deployment.cost_model is CostModel.ROOFLINE,
            record_visits=options.record_visits,
            users=0 if options.users is None else min(options.users, len(self.order)),
            think_time_s=options.think_time_s,
            max_hops=longest,
            hop=hop,
            n_hops=np.array([len(path) for path in self.paths]),
            return_s=self._return_s(),
            delivery_s=np.array(
                [request_s + fleet.entry_s(self.machines[path[0]]) for path in self.paths]
            ),
            order=self.order,
            part=parts,
            part_start=part_start,
            windows=windows,
            gpu=to_records(list(map(gpu_record, gpus)), kernel.GPU),
            cost=part_costs(kernel, spans, gpus),
        )

    def _state(self, kernel: Any) -> Any:
        """Return the variables of the kernel at the start."""
        n_requests, given = len(self.path), self.deployment.requests
        requests = kernel.records(n_requests, kernel.REQUEST)
        requests["prompt"], requests["output"] = given.prompt_tokens, given.output_tokens
        requests["path"], requests["arrival_s"] = self.path, self.arrival_s
        requests["rank"][self.order] = np.arange(n_requests)
        requests["next"] = kernel.NIL
        links = kernel.records(len(self.pairs), kernel.LINK)
        for (a, b), k in self.pairs.items():
            link = self.problem.fleet.link(self.machines[a], self.machines[b])
            assert link is not None  # `edges_of` checks it
            last = self.problem.model.blocks[self.layout.ranges[a].stop - 1]
            links[k]["token_bytes"] = last.output_bytes_per_token
            links[k]["bytes_per_s"], links[k]["latency_s"] = link.bytes_per_s, link.latency_s
        n_buckets = len(links) + len(self.paths)
        most = max(map(len, self.entries))
        return kernel.State(
            requests=requests,
            places=kernel.records(n_requests * self.setup.max_hops, kernel.PLACE),
            nodes=self._nodes(kernel),
            links=links,
            waiting=np.full((len(self.paths), 2), kernel.NIL),
            touched=np.zeros(len(self.machines), np.int64),
            buckets=np.zeros((n_buckets, 2), np.int64),
            used=np.zeros(n_buckets, np.int64),
            sums=np.zeros((most, len(self.setup.windows), 3)),
            tokens=np.zeros((most, 2)),
            counts=np.zeros(kernel.N_COUNTS, np.int64),
            clock=np.zeros(1),
        )

    def _nodes(self, kernel: Any) -> Any:
        """Return the records of the nodes at the start."""
        nodes = kernel.records(len(self.machines), kernel.NODE)
        for field in nodes.dtype.names:
            if field.endswith(("_head", "_tail")):
                nodes[field] = kernel.NIL
        for field in ("decode_mark", "batch_decode", "batch_prefill"):
            nodes[field] = kernel.NIL
        nodes["kind"] = _classes(self.deployment)
        nodes["span"] = self._spans()[1]
        nodes["n_spans"] = [len(each) for each in self.entries]
        nodes["capacity"] = self.capacity_bytes
        return nodes


def _classes(deployment: Deployment) -> IntArray:
    """Return the GPU class of each node."""
    gpus = list(costs.node_classes(deployment))
    nodes = deployment.network.tiers[0].nodes
    return np.array([gpus.index(deployment.profile(node)) for node in nodes])
