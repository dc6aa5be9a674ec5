"""Bounds on the rates of nodes that hold all blocks, each a server of its own.

The model is that of `hypsolve.problem.serving_servers`: a split in one stage carries X if and
only if the rates of its servers within the targets at X have a sum of X or more. These rates do
not rise in X, so a sum below X at X refutes all larger rates, too.

A server carries x alone if ``x C(y) <= y`` for some y that is allowed. Between two jumps of
collective operations, C(y) / y does not rise, so the upper end of each part decides, with the
seconds continued from below. Each bound is found by bisection, and is sound wherever that ends.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property

from hypsolve.verify.batches import Batches
from hypsolve.verify.directed import ONE, fixed, over, times
from hypsolve.verify.iterations import GRACE, Server
from hypsolve.verify.reading import Refuted
from hypsolve.verify.roots import has_root, least_root

LEAST = 2.0**-50  # requests per second, where the search for a bound begins
MOST = 2.0**60
CLOSE = 2.0**-46  # relative distance of the two bounds on a rate


def may_hold_all(server: Server, tier: int) -> bool:
    """Return whether the limits of the tiers allow that one of them holds all blocks."""
    ends = [0 if k <= tier else server.n_blocks for k in range(server.n_tiers + 1)]
    return all(
        i in server.starts(k) and j in server.ends(k, i)
        for k, (i, j) in enumerate(itertools.pairwise(ends))
    )


class WholeServers:
    """The nodes of a tier that hold all blocks."""

    def __init__(self, server: Server, tier: int) -> None:
        self.server, self.entry_s = server, server.entry_s[tier]
        self.batches = Batches(server, 1, 1)
        self.content = server.content(0, server.n_blocks)
        self.groups: list[tuple[_Server, int]] = []
        for (c, memory), count in Counter(server.nodes[tier]).items():
            room = server.room(c, memory, self.content)
            if room is None or room > 0:
                self.groups.append((_Server(self, c, room), count))

    def longest(self, x: Fraction) -> Fraction | None:
        """Return the longest cycle within the targets; None if there are none."""
        return self.batches.longest(x, self.entry_s)

    def upper(self, x: Fraction) -> Fraction:
        """Return a rate that the servers do not reach within the targets at x."""
        longest = self.longest(x)
        return sum((n * each.upper(longest) for each, n in self.groups), Fraction(0))

    def lower(self, x: Fraction) -> Fraction:
        """Return a rate that the servers carry within the targets at x."""
        longest = self.longest(x)
        return sum((n * each.lower(longest) for each, n in self.groups), Fraction(0))

    def carries(self, x: Fraction) -> bool:
        """Return whether the servers carry a rate."""
        return self.lower(x) >= x

    def latencies(self, x: Fraction, up: bool) -> tuple[int, int, int]:
        """Return bounds on the seconds to the first token, of a later one, and to the last."""
        longest, total = self.longest(x), Fraction(0)
        least, most = self.lower(x), self.upper(x)
        for each, n in self.groups:
            rate = each.upper(longest) if up else each.lower(longest)
            if rate > 0:
                share = rate / (least if up else most)
                total += n * share * each.cycle_s(x * share, longest, up)
        cycle_s = fixed(total, up)
        passes = fixed(self.batches.passes, up)
        prompt = times(fixed(self.batches.prompt_cycles, up), cycle_s, up)
        ttft = fixed(self.entry_s, up) + prompt
        return ttft, cycle_s if passes else 0, ttft + times(passes, cycle_s, up)


class _Server:
    """A node that holds all blocks."""

    def __init__(self, servers: WholeServers, c: int, room: Fraction | None) -> None:
        self.servers, self.c = servers, c
        self.most = servers.batches.limit
        if room is not None:
            self.most = min(self.most, room / servers.batches.held_cycles)
        self.known: dict[tuple[Fraction | None, bool], Fraction] = {}

    @cached_property
    def jumps(self) -> list[int]:
        """Requests per cycle above which collective operations jump up."""
        iterations = self.servers.server.iterations(self.c, self.servers.content)
        jumps = iterations.jumps(self.servers.server.lengths)
        return [fixed(y, False) for y in sorted(jumps)]

    def seconds(self, y: int, up: bool, low: int | None = None) -> int:
        """Return the seconds of a cycle; with `low`, as in `Batches.stage_s`."""
        host_s = fixed(self.servers.server.instance.rules.iteration_s, up)
        content, batches = self.servers.content, self.servers.batches
        return host_s + batches.stage_s(content, [self.c], y, up, low)

    def largest(self, x: Fraction, longest: Fraction | None) -> Fraction:
        """Return the most requests per cycle that limits and targets allow at a rate."""
        return self.most if longest is None else min(self.most, x * longest)

    def upper(self, longest: Fraction | None) -> Fraction:
        """Return a rate that the server does not carry."""
        key = longest, True
        if key not in self.known:
            self.known[key] = _bounds(lambda x: self._may_carry(x, longest))[1]
        return self.known[key]

    def lower(self, longest: Fraction | None) -> Fraction:
        """Return a rate that the server carries; 0 if none was found."""
        key = longest, False
        if key not in self.known:
            self.known[key] = _bounds(lambda x: self._carries(x, longest))[0]
        return self.known[key]

    def _may_carry(self, x: Fraction, longest: Fraction | None) -> bool:
        # the model forgives 1e-12 in the targets and in the seconds: a little more is covered
        top = self.largest(x, longest) * (1 + 4 * GRACE)
        if top <= 0:
            return False
        end, each = fixed(top, True), fixed(x / (1 + 4 * GRACE), False)
        # `jumps` are rounded down, and a part begins above its jump
        parts = [0, *(y + 1 for y in self.jumps if 0 < y < end - 1), end]
        return any(
            times(each, self.seconds(high, False, low), False) <= high
            for low, high in itertools.pairwise(parts)
        )

    def _carries(self, x: Fraction, longest: Fraction | None) -> bool:
        y = self.largest(x, longest)
        if y <= 0:
            return False
        return has_root(self._batch(x, True), (fixed(y, False), fixed(y, True)), self.jumps)

    def _batch(self, x: Fraction, up: bool) -> Callable[[int, bool], int]:
        """Return the requests that arrive in a cycle, by those that start in it."""
        each = fixed(x, up)
        return lambda z, up: times(each, self.seconds(z, up), up)

    def cycle_s(self, x: Fraction, longest: Fraction | None, up: bool) -> Fraction:
        """Return a bound on the seconds of the shortest cycle that carries a rate."""
        top = fixed(self.largest(x, longest), up)
        y = least_root(self._batch(x, up), top, self.jumps, up)
        return Fraction(over(y, fixed(x, not up), up), ONE)


def _bounds(carries: Callable[[Fraction], bool]) -> tuple[Fraction, Fraction]:
    """Return two close rates: the lower one is carried or 0, and the higher one is not."""
    low, high = 0.0, LEAST
    while carries(Fraction(high)):
        low, high = high, 16 * high
        if high > MOST:
            raise Refuted("served: a server with cycles of hardly any seconds")
    while low > 0 and high - low > CLOSE * high:
        middle = (low + high) / 2
        if carries(Fraction(middle)):
            low = middle
        else:
            high = middle
    return Fraction(low), Fraction(high)
