"""Bounds on the numbers of the fluid model under the batching mode ``stage``.

The definitions are in `hypsolve.problem.serving_stage_mode`. `Stages` bounds every number of a
stage or a link at a rate from one side: from below to refute a rate, and from above to confirm
one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from hypsolve.verify.directed import ONE, fixed, half, over, times
from hypsolve.verify.iterations import Content, Iterations, Server
from hypsolve.verify.roots import least_root

BISECTIONS = 48
CLOSE_BITS = 40  # rates this close need no further bisection


def largest_batch(server: Server, room: Fraction | None) -> Fraction:
    """Return the most requests that may start per iteration of a node."""
    rules, lengths = server.instance.rules, server.lengths
    passes, chunks = Fraction(lengths.decode_passes), Fraction(lengths.chunks)
    prompt = Fraction(lengths.prompt_tokens)
    batch = Fraction(rules.max_num_seqs)
    if room is not None:
        batch = min(batch, room)
    limits = []
    if rules.max_num_batched_tokens is not None:
        tokens = Fraction(rules.max_num_batched_tokens)
        batch = min(batch, tokens)
        limits.append(tokens / (prompt + passes))
    if rules.prompt_limit is not None:
        limits.append(Fraction(rules.prompt_limit) / prompt)
    return min(batch / (passes + chunks), *limits) if limits else batch / (passes + chunks)


class Node:
    """A stage on a node, as a function of the requests z that start per iteration."""

    def __init__(
        self, server: Server, iterations: Iterations, room: Fraction | None, is_whole: bool
    ) -> None:
        lengths = server.lengths
        self.iterations, self.is_whole = iterations, is_whole
        self.passes = [fixed(lengths.decode_passes, up) for up in (False, True)]
        self.chunks = [fixed(lengths.chunks, up) for up in (False, True)]
        self.hold_passes = [fixed(lengths.hold_passes, up) for up in (False, True)]
        self.hold_chunks = [fixed(lengths.hold_chunks, up) for up in (False, True)]
        largest = largest_batch(server, room)
        self.largest = [fixed(largest, up) for up in (False, True)]
        self.room = None if room is None else [fixed(room, up) for up in (False, True)]
        jumps = iterations.jumps(lengths)
        self.jumps = [fixed(z, False) for z in jumps if z < largest]
        self.most = [
            over(self.largest[up], self.seconds(self.largest[not up], not up), up)
            for up in (False, True)
        ]
        """S, the rate of the largest batches."""

    def seconds(self, z: int, up: bool) -> int:
        """Return the seconds of an iteration."""
        b, k = times(z, self.passes[up], up), times(z, self.chunks[up], up)
        return self.iterations.seconds(b, k, up)

    def rate(self, z: int, up: bool) -> int:
        """Return the rate of a node in whose iterations z requests start."""
        return over(z, self.seconds(z, not up), up)

    def passes_s(self, z: int, up: bool) -> tuple[int, int, int]:
        """Return seconds of a decode pass and of a chunk, and the decode tokens."""
        b, k = times(z, self.passes[up], up), times(z, self.chunks[up], up)
        rest = half(times(min(ONE, b + k), self.iterations.seconds(b, k, up), up), up)
        decode = self.iterations.seconds(max(b, ONE), k, up) + (0 if self.is_whole else rest)
        return decode, self.iterations.seconds(b, max(k, ONE), up) + rest, b

    def kept_s(self, z: int, up: bool) -> int:
        """Return the seconds for which the stage itself keeps the KV cache of a request."""
        decode, chunk, _ = self.passes_s(z, up)
        return times(self.hold_passes[up], decode, up) + times(self.hold_chunks[up], chunk, up)

    def batch(self, x: int, up: bool) -> int:
        """Return a bound on the least z that serves x: ``x tau(z) <= z``.

        tau(z) / z does not rise between two jumps, which is what `least_root` needs.
        """

        def held(z: int, up: bool) -> int:
            return times(x, self.seconds(z, up), up)

        return least_root(held, self.largest[up], self.jumps, up)

    def memory_rate(self, elsewhere_s: int, up: bool) -> int:
        """Return a bound on y, the largest rate with KV memory."""
        if self.room is None:
            return self.most[up]
        if self._load(self.largest[up], elsewhere_s, not up) <= self.room[False]:
            return self.most[up]
        low, high = self._memory_rates(elsewhere_s, up)
        if high - low > high >> CLOSE_BITS:  # a rate may belong to many z
            low, high = self._between(low, high, elsewhere_s, up)
        return high if up else low

    def _memory_rates(self, elsewhere_s: int, up: bool) -> tuple[int, int]:
        """Return rates between which y lies, by the requests that start per iteration."""
        assert self.room is not None
        low, high = 0, self.largest[up]
        for _ in range(BISECTIONS):
            z = (low + high) // 2
            if self._load(z, elsewhere_s, not up) > self.room[up]:
                high = z
            else:
                low = z
        above = [self.rate(z, True) for z in (high, *self.jumps) if z <= high]
        return self.rate(low, False), min(max(above), self.most[up])

    def _between(self, low: int, high: int, elsewhere_s: int, up: bool) -> tuple[int, int]:
        """Return closer rates between which y lies, by the least z that serves a rate.

        A larger rate has a larger least z, and so KV cache is kept for longer. Where seconds
        are in proportion to z, all z serve one rate, and smaller rates need hardly any z.
        """
        assert self.room is not None
        for _ in range(BISECTIONS):
            x = (low + high) // 2
            held_s = elsewhere_s + self.kept_s(self.batch(x, not up), not up)
            if times(x, held_s, not up) > self.room[up]:
                high = x
            else:
                low = x
        return low, high

    def _load(self, z: int, elsewhere_s: int, up: bool) -> int:
        return times(self.rate(z, up), elsewhere_s + self.kept_s(z, up), up)


Holders = Callable[[int, Content], list[tuple[int, Node]]]


class Stage(NamedTuple):
    """Bounds on the numbers of a stage at a rate; see `Stages`."""

    decode_s: int
    chunk_s: int
    waiting: int  # tokens of a message before a token
    nodes: list[tuple[int, Node, int, int]]  # number of equal ones, node, its rate, and z


class Stages:
    """Stages and links at a rate x, every number bounded from below, or all from above."""

    def __init__(self, server: Server, x: int, up: bool, others: Stages | None = None) -> None:
        self.server, self.x, self.up = server, x, up
        # nodes do not depend on the rate: stages at other rates may share them
        self.holders: Holders = cache(self._holders) if others is None else others.holders
        lengths = server.lengths
        self.hold_passes = fixed(lengths.hold_passes, up)
        self.chunks = fixed(lengths.chunks, up)
        self.stage = cache(self._stage)
        self.link = cache(self._link)

    def _holders(self, k: int, content: Content) -> list[tuple[int, Node]]:
        """Return the nodes that can hold a stage; equal ones once, with their number."""
        server = self.server
        holders = []
        for (c, memory), n in Counter(server.nodes[k]).items():
            room = server.room(c, memory, content)
            if room is None or room > 0:
                node = Node(server, server.iterations(c, content), room, content.is_whole)
                holders.append((n, node))
        return holders

    def most(self, k: int, content: Content, up: bool) -> int:
        """Return the largest rate of a stage."""
        return sum(n * node.most[up] for n, node in self.holders(k, content))

    def _stage(self, k: int, content: Content) -> Stage:
        up, holders = self.up, self.holders(k, content)
        total = self.most(k, content, not up)
        decode = chunk = waiting = 0
        nodes = []
        for n, node in holders:
            if len(holders) == 1:
                share = fixed(Fraction(1, n), up)
            else:
                share = over(node.most[up], total, up)
            rate = min(times(self.x, share, up), node.most[up])
            z = node.batch(rate, up)
            decode_s, chunk_s, b = node.passes_s(z, up)
            decode += n * times(share, decode_s, up)
            chunk += n * times(share, chunk_s, up)
            waiting += n * times(share, max(b - ONE, 0), up)
            nodes.append((n, node, rate, z))
        return Stage(decode, chunk, waiting, nodes)

    def decode_s(self, k: int, i: int, j: int) -> int:
        """Return the seconds of a decode pass in a stage, with its message."""
        stage = self.stage(k, self.server.content(i, j))
        message_s = fixed(self.server.link_token_s(k, j), self.up)
        return stage.decode_s + times(stage.waiting, message_s, self.up)

    def own_s(self, k: int, i: int, j: int) -> int:
        """Return W, the seconds for which a request holds KV cache because of a stage."""
        chunk_s = self.stage(k, self.server.content(i, j)).chunk_s
        return times(self.hold_passes, self.decode_s(k, i, j), self.up) + chunk_s

    def _link(self, k: int, cut: int) -> tuple[int, int, int] | None:
        """Return seconds on a link of a decode pass, a prompt, and a prompt weighted by KV.

        None: the link is too slow for the rate.
        """
        server, up = self.server, self.up
        if not server.crosses(k, cut):
            return 0, 0, 0
        lengths = server.lengths
        x, s = Fraction(self.x, ONE), Fraction(server.link_token_s(k, cut))
        prompt, chunks = Fraction(lengths.prompt_tokens), Fraction(lengths.chunks)
        rho = x * (prompt + Fraction(lengths.decode_passes)) * s
        if rho >= 1:
            return None
        wait = x * chunks * (s * prompt / chunks) ** 2 / (2 * (1 - rho))
        trip = Fraction(server.round_trip_s[k])
        held = Fraction(lengths.hold_prompt_tokens) * s + Fraction(lengths.hold_chunks) * wait
        return (
            fixed(trip + s + wait, up),
            fixed(trip + prompt * s + chunks * wait, up),
            fixed(trip + held, up),
        )

    def link_s(self, k: int, cut: int) -> int:
        """Return L, the seconds for which a request holds KV cache because of a link."""
        found = self.link(k, cut)
        assert found is not None
        return times(self.hold_passes, found[0], self.up) + found[2]
