"""The fluid model of nodes that hold all blocks, under ``pipeline`` and ``serial``.

Every node is a server of its own. A dispatcher shares the requests among them by speed, so that
a slow server takes few of them and does not hold up the others.

*Cycle.* In server r, y requests start per cycle, and one batch is under way. It holds ``b = y
(o - 1)`` decode tokens and ``k = y n_c`` chunks, and takes ``C_r(y) = iteration_s + tau_r(b,
k)`` seconds. The server carries ``y / C_r(y)`` requests per second, which does not fall in y
but where a collective operation jumps up, see `serving_pipelines`. As there, y is limited by
`max_num_seqs`, by the room for KV cache of this server, and by the tokens of a batch.

*Rate.* Let L be the longest cycle within the targets, and X_r(L) the largest rate of server r
with ``C_r(y) <= L``. The split carries X if and only if ``X <= sum X_r(L)``: all servers answer
within the targets, and one that cannot is not used. With `users`, L also falls in X: at each
server, a request and its pause take at most ``users / X`` seconds. So a better node, or one
more, never lowers the rate. For equal nodes, it is that of `serving_pipelines` with a pipeline
for each node.

*Latencies.* Of X requests per second, server r takes the share ``X_r(L) / sum X_r(L)``. The
time per output token is the mean of C_r over requests, and so is the time to first token.
"""

from __future__ import annotations

import functools
import math
from collections import Counter

from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_iteration import Replica, holders, least_batch, segment_ends
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_split import SLACK, Latencies


class Servers:
    """Nodes of a tier that hold all blocks, each a server of its own.

    Parameters
    ----------
    instance : ServingInstance
    tier, start, stop : int
        The tier, and all blocks: ``start`` is 0.
    """

    def __init__(self, instance: ServingInstance, tier: int, start: int, stop: int) -> None:
        self.instance = instance
        entry_s = instance.links.entry_s[:tier].tolist()
        self.entry_s = math.fsum([instance.rules.request_s, *entry_s])
        kinds = Counter(
            (int(instance.nodes.node_class[node]), room)
            for node, room in holders(instance, tier, start, stop)
        )
        replicas = {c: Replica(instance, c, start, stop) for c, _ in kinds}
        self.servers = [(replicas[c], room, count) for (c, room), count in kinds.items()]
        self.rates = functools.cache(self._rates)

    def rate(self, longest_s: float) -> float:
        """Return the largest rate of all servers with cycles of at most so many seconds."""
        rates = self.rates(longest_s)
        return math.fsum(n * x for (_, _, n), x in zip(self.servers, rates, strict=True))

    def at(self, x: float) -> tuple[str, Latencies | None]:
        """Return the rule that refuses x requests per second, or the latencies."""
        target, longest_s = min(self._longest(x).items(), key=lambda each: each[1])
        if x > self.rate(longest_s) * (1 + SLACK):
            if x > self.rate(math.inf) * (1 + SLACK):
                return "no batch is large enough: " + self._limit(), None
            return target, None
        rates, lengths = self.rates(longest_s), self.instance.lengths
        share = x / self.rate(longest_s)
        cycle_s = math.fsum(
            n * of_server * self._least_cycle_s(server, of_server * share, longest_s)
            for server, n, of_server in zip(
                self.servers, [n for _, _, n in self.servers], rates, strict=True
            )
            if of_server > 0
        ) / self.rate(longest_s)
        ttft = self.entry_s + cycle_s * lengths.chunks
        passes = lengths.decode_passes
        return "", Latencies(
            ttft_s=ttft,
            tpot_s=cycle_s if passes else 0.0,
            latency_s=ttft + passes * cycle_s,
        )

    def _longest(self, x: float) -> dict[str, float]:
        """Return the longest cycle by each target, under the name of the rule."""
        rules, lengths = self.instance.rules, self.instance.lengths
        found = {"": math.inf}
        passes = lengths.decode_passes
        if self.instance.objective is not ServingObjective.THROUGHPUT:
            if rules.ttft_slo_s is not None:
                found["the target for the time to first token"] = (
                    rules.ttft_slo_s - self.entry_s
                ) / lengths.chunks
            if rules.tpot_slo_s is not None and passes:
                found["the target for the time per output token"] = rules.tpot_slo_s
            if rules.latency_slo_s is not None:
                found["the target for the latency"] = (rules.latency_slo_s - self.entry_s) / (
                    lengths.chunks + passes
                )
        if rules.users is not None:
            found["the users send no more requests"] = (
                rules.users / x - rules.think_time_s - self.entry_s
            ) / (lengths.chunks + passes)
        return found

    def _rates(self, longest_s: float) -> tuple[float, ...]:
        return tuple(
            self._rate_of(replica, room, longest_s) for replica, room, _ in self.servers
        )

    def _rate_of(self, replica: Replica, room: float, longest_s: float) -> float:
        """Return the largest rate of a server with cycles of at most so many seconds."""
        most = self._largest(replica, room, longest_s)
        if most <= 0.0:
            return 0.0
        ends = segment_ends(replica.jumps(), most)
        return max(y / self._cycle_s(replica, y) for y in ends)

    def _largest(self, replica: Replica, room: float, longest_s: float) -> float:
        """Return the most requests that may start in cycles of at most so many seconds."""
        most = min(self._limits(room).values())
        if self._cycle_s(replica, most) <= longest_s * (1 + SLACK):
            return most
        low, high = 0.0, most
        while high - low > 1e-15 * high:
            middle = (low + high) / 2
            if not low < middle < high:
                break
            if self._cycle_s(replica, middle) <= longest_s * (1 + SLACK):
                low = middle
            else:
                high = middle
        return low if low > 1e-15 * most else 0.0

    def _least_cycle_s(
        self, server: tuple[Replica, float, int], x: float, longest_s: float
    ) -> float:
        """Return the shortest cycle in which a server carries x requests per second.

        Where a collective jumps to another algorithm, a larger batch may carry x again, in
        cycles that are too long.
        """
        replica, room, _ = server
        ends = segment_ends(replica.jumps(), self._largest(replica, room, longest_s))
        y = least_batch(lambda y: self._cycle_s(replica, y), ends, x)
        return (ends[-1] if y is None else y) / x  # None by rounding only

    def _cycle_s(self, replica: Replica, y: float) -> float:
        """Return the seconds of a cycle in which y requests start."""
        lengths = self.instance.lengths
        tau = replica.iteration_s(y * lengths.decode_passes, y * lengths.chunks)
        return self.instance.rules.iteration_s + tau

    def _limits(self, room: float) -> dict[str, float]:
        """Return the requests that start per cycle, at most, by each limit."""
        rules, lengths = self.instance.rules, self.instance.lengths
        limits = {
            "max_num_seqs": rules.max_num_seqs / (lengths.decode_passes + lengths.chunks),
            "KV cache": room / (lengths.hold_passes + lengths.hold_chunks),
        }
        if rules.prompt_limit is not None:
            limits["prompt tokens"] = rules.prompt_limit / lengths.prompt_tokens
        if rules.max_num_batched_tokens is not None:
            tokens = lengths.prompt_tokens + lengths.decode_passes
            limits["max_num_batched_tokens"] = rules.max_num_batched_tokens / tokens
        return limits

    def _limit(self) -> str:
        """Return the limit of the server that carries most."""
        rates = self.rates(math.inf)
        _, room, _ = self.servers[max(range(len(rates)), key=rates.__getitem__)]
        limits = self._limits(room)
        return min(limits, key=limits.__getitem__)
