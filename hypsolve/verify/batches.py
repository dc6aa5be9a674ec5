"""Batches that pass all stages, and the requests that may start per cycle, in exact numbers."""

from __future__ import annotations

from fractions import Fraction

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.verify.directed import ONE, fixed, over, times
from hypsolve.verify.iterations import Content, Server


class Batches:
    """Batches that pass all stages, K stages in R pipelines."""

    def __init__(self, server: Server, n_stages: int, n_pipelines: int) -> None:
        lengths, rules = server.lengths, server.instance.rules
        self.server, self.n_stages, self.n_pipelines = server, n_stages, n_pipelines
        self.n = n_stages if rules.batching is Batching.PIPELINE else 1
        chunks, passes = Fraction(lengths.chunks), Fraction(lengths.decode_passes)
        again = (chunks - 1) / self.n
        self.passes, self.prompt_cycles = passes, 1 + again
        self.held_cycles = (
            Fraction(lengths.hold_passes) + 1 + (Fraction(lengths.hold_chunks) - 1) / self.n
        )
        prompt = Fraction(lengths.prompt_tokens)
        limits = [Fraction(rules.max_num_seqs) / (passes + 1 + again)]
        if rules.prompt_limit is not None:
            limits.append(self.n * Fraction(rules.prompt_limit) / prompt)
        if rules.max_num_batched_tokens is not None:
            tokens = Fraction(rules.max_num_batched_tokens)
            limits.append(self.n * tokens / (prompt + passes))
        self.limit = min(limits)
        self.tokens = prompt + passes

    def largest(self, x: Fraction, entry_s: Fraction) -> Fraction:
        """Return the most requests per cycle that limits and targets allow at a rate."""
        longest = self.longest(x, entry_s)
        each = x / self.n_pipelines
        return self.limit if longest is None else min(self.limit, each * longest)

    def longest(self, x: Fraction, entry_s: Fraction) -> Fraction | None:
        """Return the longest cycle within the targets at a rate; None if there are none."""
        rules, longest = self.server.instance.rules, None
        if rules.objective is not ServingObjective.THROUGHPUT:
            targets = []
            if rules.ttft_slo_s is not None:
                targets.append((Fraction(rules.ttft_slo_s) - entry_s) / self.prompt_cycles)
            if rules.tpot_slo_s is not None and self.passes:
                targets.append(Fraction(rules.tpot_slo_s))
            if rules.latency_slo_s is not None:
                targets.append(self._cycle_of(Fraction(rules.latency_slo_s) - entry_s))
            longest = min(targets, default=None)
        if rules.users is not None:
            latency = Fraction(rules.users) / x - Fraction(rules.think_time_s)
            cycle = self._cycle_of(latency - entry_s)
            longest = cycle if longest is None else min(longest, cycle)
        return longest

    def _cycle_of(self, latency_s: Fraction) -> Fraction:
        return latency_s / (self.prompt_cycles + self.passes)

    def rooms(self, k: int, content: Content) -> tuple[Fraction | None, list[int]] | None:
        """Return the least room of the first R nodes with a stage, and their classes.

        None: fewer nodes hold the stage. A room of None is infinite.
        """
        least, classes = None, []
        for c, memory in self.server.nodes[k]:
            room = self.server.room(c, memory, content)
            if room is not None and room <= 0:
                continue
            if room is not None:
                least = room if least is None else min(least, room)
            classes.append(c)
            if len(classes) == self.n_pipelines:
                return least, sorted(set(classes))
        return None

    def stage_s(
        self, content: Content, classes: list[int], y: int, up: bool, low: int | None = None
    ) -> int:
        """Return the seconds of a batch on the slowest class, if y requests start per cycle.

        If `low` is given, the seconds are at most those for all y above it, in proportion to y.
        """
        lengths = self.server.lengths
        b = over(times(y, fixed(lengths.decode_passes, up), up), self.n * ONE, up)
        k = over(times(y, fixed(lengths.chunks, up), up), self.n * ONE, up)
        found = 0
        for c in classes:
            iterations = self.server.iterations(c, content)
            if low is not None:
                ends = Fraction(low, self.n * ONE), Fraction(y, self.n * ONE)
                iterations = iterations.without_jumps(*ends, lengths)
            found = max(found, iterations.seconds(b, k, up))
        return found

    def message_s(self, k: int, cut: int, y: int, up: bool) -> int:
        """Return the seconds of a message of a batch on the link behind a tier."""
        token_s = Fraction(self.server.link_token_s(k, cut))
        return fixed(Fraction(y, ONE) * self.tokens / self.n * token_s, up)
