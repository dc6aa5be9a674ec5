"""The fluid model of a split under the batching modes ``pipeline`` and ``serial``.

A scheduler forms batches that pass all K stages that host blocks. Under ``pipeline``, K batches
are under way, under ``serial`` one; n batches are under way in either mode.

*Cycle.* A batch is formed, passes all stages, and returns after C seconds, the cycle. Each
request that decodes is in one of the batches under way. Of y requests that start per cycle, a
batch holds ``b = y (o - 1) / n`` decode tokens and ``k = y n_c / n`` chunks. Its seconds are
tau_k(b, k) in stage k, `iteration_s` on the host, and ``(b + k c) s`` plus the round trip on a
link whose tokens take s seconds each. C is the sum of all these seconds, and at least n times
the largest single one (without round trips), for a stage, the host or a link holds one batch at
a time. X = y / C. This does not fall in y, for the reason that `serving_stage_mode` gives, but
where a collective operation jumps to a slower algorithm. A split carries X if some y does.

*Running requests.* The chunks of a prompt are in batches that follow each other, and every
token after the first takes a cycle. A request therefore runs for ``o + (n_c - 1) / n`` cycles,
which also holds for o = 1, and ``y (o + (n_c - 1) / n)`` requests run. They are at most
`max_num_seqs`, and at most the requests that have room in every node. If lengths differ, room
counts in proportion to the KV cache that requests hold, as in `serving_stage_mode`. A batch
holds at most Q prompt tokens, ``y p <= n Q``, and T tokens, ``y (p + o - 1) <= n T``.

*Servers of all blocks.* If one stage holds all blocks, every node that can hold it is a server
of its own, see `serving_servers`: the split carries the sum of the rates that they carry.

*Pipelines.* Of several stages, pipeline r consists of the r-th node of every stage that can
hold it. All take equal shares of X. If nodes differ, each pipeline is charged the slowest and
the smallest among the first R nodes of every stage, and R is the number of pipelines that gives
the largest rate. For equal nodes this is exact. For others it is at most the sum of the rates
that the pipelines carry each by itself, and a simulation may serve more or less: for 20 random
pairs of pipelines of unequal nodes, this rate is 0.68 to 1.39 of the simulated one under
``pipeline`` (median 1.10) and 0.56 to 1.43 under ``serial`` (median 1.06), while the sum is
1.05 to 1.52 of it. (Two tiers of two nodes, Llama-3-8B, 64 to 256 prompt tokens, 32 requests at
once, 1,400 requests with the time to fill and to empty the pipelines.) The planner therefore
also simulates networks without the slower nodes of a tier, and keeps the better one.

*Latencies.* The time per output token is C. The time to first token is the entry plus ``C (1 +
(n_c - 1) / n)``. Parts of batches that overlap (`micro_batch_tokens`) are not modelled.
"""

from __future__ import annotations

import math

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_iteration import Replica, holders, least_batch, segment_ends
from hypsolve.problem.serving_servers import Servers
from hypsolve.problem.serving_split import (
    Latencies,
    check_targets,
    crossed_links,
    entry_s,
    stages,
)
from hypsolve.problem.solution import Partition


class PipelineMode:
    """A split under the batching mode ``pipeline`` or ``serial``."""

    def __init__(self, instance: ServingInstance, partition: Partition) -> None:
        self.instance, self.partition = instance, partition
        self.stages = stages(partition)
        self.holders = [holders(instance, k, i, j) for k, i, j in self.stages]
        self.replicas = [
            _replicas(instance, [node for node, _ in nodes], i, j)
            for (_, i, j), nodes in zip(self.stages, self.holders, strict=True)
        ]
        is_pipeline = instance.rules.batching is Batching.PIPELINE
        self.n_batches = len(self.stages) if is_pipeline else 1
        lengths = instance.lengths
        self.cycles = lengths.decode_passes + 1 + (lengths.chunks - 1) / self.n_batches
        self.entry_s = entry_s(instance, partition)
        self.n_pipelines = range(1, min(map(len, self.holders)) + 1)
        self.servers = Servers(instance, *self.stages[0]) if len(self.stages) == 1 else None

    def most(self) -> float:
        """Return the largest rate without targets."""
        if self.servers is not None:
            return self.servers.rate(math.inf)
        rates = [0.0]
        for n in self.n_pipelines:
            rates += [n * y / self._cycle_s(n, y) for y in self._segment_ends(n)]
        return max(rates)

    def at(self, x: float) -> tuple[str, Latencies | None]:
        """Return the rule that refuses x requests per second, or the latencies."""
        if self.servers is not None:
            return self.servers.at(x)
        why, best = "", None
        for n in self.n_pipelines:
            refused, latencies = self._at(n, x / n)
            if latencies is None:
                why = why or refused
            elif best is None or latencies.latency_s < best.latency_s:
                best = latencies
        return ("", best) if best is not None else (why, None)

    def _at(self, n_pipelines: int, x: float) -> tuple[str, Latencies | None]:
        ends = self._segment_ends(n_pipelines)
        y = least_batch(lambda y: self._cycle_s(n_pipelines, y), ends, x)
        if y is None:
            return "no batch is large enough: " + self._limit(n_pipelines), None
        return self._latencies(x, n_pipelines, y / x)

    def _segment_ends(self, n_pipelines: int) -> list[float]:
        """Return requests per cycle between which a cycle over its requests does not rise."""
        jumps = {
            self.n_batches * z
            for replicas in self.replicas
            for each in set(replicas[:n_pipelines])
            for z in each.jumps()
        }
        return segment_ends(jumps, self._most_per_cycle(n_pipelines))

    def _latencies(
        self, x: float, n_pipelines: int, cycle_s: float
    ) -> tuple[str, Latencies | None]:
        ttft = self.entry_s
        ttft += cycle_s * (1 + (self.instance.lengths.chunks - 1) / self.n_batches)
        return check_targets(self.instance, x * n_pipelines, ttft, cycle_s)

    def _rooms(self, n_pipelines: int) -> float:
        return min(room for nodes in self.holders for _, room in nodes[:n_pipelines])

    def _limits(self, n_pipelines: int) -> dict[str, float]:
        """Return the requests that start per cycle, at most, by each limit."""
        rules, lengths = self.instance.rules, self.instance.lengths
        kept = lengths.hold_passes + 1 + (lengths.hold_chunks - 1) / self.n_batches
        limits = {
            "max_num_seqs": rules.max_num_seqs / self.cycles,
            "KV cache": self._rooms(n_pipelines) / kept,
        }
        if rules.prompt_limit is not None:
            limits["prompt tokens"] = (
                self.n_batches * rules.prompt_limit / lengths.prompt_tokens
            )
        if rules.max_num_batched_tokens is not None:
            tokens = lengths.prompt_tokens + lengths.decode_passes
            limits["max_num_batched_tokens"] = (
                self.n_batches * rules.max_num_batched_tokens / tokens
            )
        return limits

    def _most_per_cycle(self, n_pipelines: int) -> float:
        return min(self._limits(n_pipelines).values())

    def _limit(self, n_pipelines: int) -> str:
        limits = self._limits(n_pipelines)
        return min(limits, key=limits.__getitem__)

    def _cycle_s(self, n_pipelines: int, y: float) -> float:
        """Return the seconds of a cycle in which y requests start."""
        instance, lengths = self.instance, self.instance.lengths
        b, k = y * lengths.decode_passes / self.n_batches, y * lengths.chunks / self.n_batches
        alone = [instance.rules.iteration_s]
        for replicas in self.replicas:
            alone.append(max(each.iteration_s(b, k) for each in set(replicas[:n_pipelines])))
        round_trips = 0.0
        for _, token_s, round_trip in crossed_links(instance, self.partition):
            alone.append((b + k * lengths.chunk_tokens) * token_s)
            round_trips += round_trip
        return max(self.n_batches * max(alone), math.fsum(alone) + round_trips)


def _replicas(
    instance: ServingInstance, nodes: list[int], start: int, stop: int
) -> list[Replica]:
    """Return the stage on each of the nodes; equal nodes share an object."""
    classes = [int(instance.nodes.node_class[node]) for node in nodes]
    of_class = {c: Replica(instance, c, start, stop) for c in set(classes)}
    return [of_class[c] for c in classes]
