"""Check that no split carries a rate under ``pipeline`` and ``serial``: ranges of requests.

The model is that of `hypsolve.problem.serving_pipelines`. A split with R pipelines carries X if
some y requests per cycle are enough, ``X / R C(y) <= y``, and are allowed: y is at most the
limits of the runtime, the room for KV cache over the cycles for which a request holds it, and X
/ R times the longest cycle within the targets. Let Y be the largest y that is allowed. C(y) / y
does not rise in y but where collective operations jump up, so the split carries X if and only
if ``X / R C(y) <= y`` for y = Y, or for a y just below a jump.

A range holds the splits with ``low < Y <= high``. Their stages have room for more than low
requests per cycle, and ``C(Y) / Y >= C(high) / high`` without jumps. So they do not carry X if,
among the chains of such stages, the least sum of seconds at y = high exceeds ``high R / X``.
Stages and messages whose seconds alone exceed that, times the batches under way, are in none of
the splits. The ranges of a number of stages, a number of pipelines and a first tier must cover
all Y > 0.

A range with a jump inside is checked with the seconds below the jump, continued without it,
which are at most the true ones. A y at or below `low` is in a range of its own: a split with a
larger Y has room for it, too, and the ranges must cover all y from 0 on.

A split in one stage is a set of servers, of which the ranges count equal shares only. The sum
of their rates is bounded in `whole_servers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

from hypsolve.verify.batches import Batches
from hypsolve.verify.directed import fixed, over, times
from hypsolve.verify.iterations import GRACE, Content, Server
from hypsolve.verify.reading import Refuted, need
from hypsolve.verify.roots import has_root, least_root
from hypsolve.verify.serving_claims import RangeClaim
from hypsolve.verify.whole_servers import WholeServers, may_hold_all


class Ranges:
    """The refutation of a rate."""

    def __init__(self, server: Server, rate: float) -> None:
        self.server, self.rate = server, Fraction(rate)
        self.widest = max(len(nodes) for nodes in server.nodes)

    def check(self, ranges: list[RangeClaim]) -> None:
        """Refute the certificate unless its ranges hold all splits, and none carries."""
        self._check_cover(ranges)
        for k in range(self.server.n_tiers):
            if may_hold_all(self.server, k):
                most = WholeServers(self.server, k).upper(self.rate)
                why = f"level_ranges: the servers of tier {k} may carry the rate"
                need(most <= self.rate, why)
        for at, each in enumerate(ranges):
            why = f"level_ranges: range {at}: some split may carry the rate"
            need(self._is_refuted(each), why)

    def _check_cover(self, ranges: list[RangeClaim]) -> None:
        n_tiers = self.server.n_tiers
        for n_stages, n_pipelines in itertools.product(
            range(1, n_tiers + 1), range(1, self.widest + 1)
        ):
            batches = Batches(self.server, n_stages, n_pipelines)
            of_these = [each for each in ranges if (each.n_stages, each.n_pipelines)
                        == (n_stages, n_pipelines)]  # fmt: skip
            for first in range(n_tiers):
                # the model forgives 1e-12 in the targets: a little more is covered
                top = batches.largest(self.rate, self.server.entry_s[first])
                top += abs(top) * 4 * GRACE
                parts = sorted(
                    (Fraction(each.low), Fraction(each.high))
                    for each in of_these
                    if each.first_tier in (None, first)
                )
                reached = Fraction(0)
                for low, high in parts:
                    reached = high if low <= reached < high else reached
                where = f"{n_stages} stages in {n_pipelines} pipelines from tier {first} on"
                need(top <= reached, f"level_ranges: some splits of {where} are left out")

    def _is_refuted(self, claim: RangeClaim) -> bool:
        """Return whether no split of a range carries the rate."""
        batches = Batches(self.server, claim.n_stages, claim.n_pipelines)
        y, low = fixed(claim.high, False), Fraction(claim.low)
        each = self.rate / claim.n_pipelines
        cycle_s = fixed(Fraction(claim.high) / each * (1 + 2 * GRACE), True)
        host_s = fixed(self.server.instance.rules.iteration_s, False)
        if host_s * batches.n > cycle_s:
            return True
        sums = _Chains(batches, y, fixed(low, False), cycle_s, claim.first_tier)
        least_s = sums.least_s(low * batches.held_cycles)
        return least_s is None or least_s + host_s > cycle_s


class _Chains:
    """Chains of stages that are short enough and have room."""

    def __init__(
        self, batches: Batches, y: int, low: int, cycle_s: int, first: int | None
    ) -> None:
        self.batches, self.y, self.low, self.cycle_s = batches, y, low, cycle_s
        self.first = first
        self.known: dict[tuple[int, Content], int | None] = {}

    def least_s(self, room: Fraction) -> int | None:
        """Return the least sum of seconds over chains with more than so much room."""
        server, n_stages = self.batches.server, self.batches.n_stages
        sums: dict[tuple[int, int], int] = {(0, 0): 0}
        for k in range(server.n_tiers):
            after: dict[tuple[int, int], int] = {}
            for i in server.starts(k):
                counts = [(n, sums[i, n]) for n in range(n_stages + 1) if (i, n) in sums]
                if not counts:
                    continue
                for j in server.ends(k, i):
                    step = self._step_s(k, i, j, room)
                    if step is None:
                        continue
                    for n, before in counts:
                        key, total = (j, n + (i < j)), before + step
                        if key[1] <= n_stages and total < after.get(key, total + 1):
                            after[key] = total
            sums = after
        return sums.get((server.n_blocks, n_stages))

    def _step_s(self, k: int, i: int, j: int, room: Fraction) -> int | None:
        """Return the seconds of a stage and of the link behind it; None if in no split."""
        server = self.batches.server
        if self.first is not None and i == 0 and (j > 0) != (k >= self.first):
            return None
        total = 0
        if server.crosses(k, j):
            message = self.batches.message_s(k, j, self.y, False)
            if message * self.batches.n > self.cycle_s:
                return None
            total = message + fixed(server.round_trip_s[k], False)
        if i == j:
            return total
        key = k, server.content(i, j)
        if key not in self.known:
            self.known[key] = self._stage_s(*key, room)
        stage = self.known[key]
        return None if stage is None else total + stage

    def _stage_s(self, k: int, content: Content, room: Fraction) -> int | None:
        found = self.batches.rooms(k, content)
        if found is None:
            return None
        least, classes = found
        if least is not None and least <= room:
            return None
        seconds = self.batches.stage_s(content, classes, self.y, False, self.low)
        return None if seconds * self.batches.n > self.cycle_s else seconds


class Cycle:
    """The cycle of one split, as a function of the requests that start in it."""

    def __init__(self, server: Server, cuts: list[int], n_pipelines: int) -> None:
        self.server = server
        self.used = [(k, i, j) for k, (i, j) in enumerate(itertools.pairwise(cuts)) if i < j]
        self.links = [(k, j) for k, j in enumerate(cuts[1:]) if server.crosses(k, j)]
        self.batches = Batches(server, len(self.used), n_pipelines)
        self.entry_s = server.entry_s[self.used[0][0]]
        self.stages: list[tuple[Content, list[int]]] = []
        self.room: Fraction | None = None
        for k, i, j in self.used:
            content = server.content(i, j)
            found = self.batches.rooms(k, content)
            if found is None:
                raise Refuted(f"cuts: tier {k} has fewer than {n_pipelines} nodes")
            least, classes = found
            self.stages.append((content, classes))
            if least is not None:
                self.room = least if self.room is None else min(self.room, least)

    def largest(self, x: Fraction) -> Fraction:
        """Return the most requests per cycle that are allowed at a rate."""
        most = self.batches.largest(x, self.entry_s)
        return most if self.room is None else min(most, self.room / self.batches.held_cycles)

    def seconds(self, y: int, up: bool) -> int:
        """Return the seconds of a cycle in which y requests start."""
        batches, server = self.batches, self.server
        alone = [fixed(server.instance.rules.iteration_s, up)]
        alone += [batches.stage_s(*stage, y, up) for stage in self.stages]
        alone += [batches.message_s(k, cut, y, up) for k, cut in self.links]
        trips = sum(fixed(server.round_trip_s[k], up) for k, _ in self.links)
        return max(batches.n * max(alone), sum(alone) + trips)

    def _jumps(self) -> list[int]:
        """Return the requests per cycle above which collective operations jump up."""
        server, n = self.batches.server, self.batches.n
        found = {
            z * n
            for content, classes in self.stages
            for c in classes
            for z in server.iterations(c, content).jumps(server.lengths)
        }
        return [fixed(y, False) for y in sorted(found)]

    def carries(self, x: Fraction) -> bool:
        """Return whether the split carries a rate."""
        most = self.largest(x)
        if most <= 0:
            return False
        top = fixed(most, False), fixed(most, True)
        return has_root(self._batch(x, True), top, self._jumps())

    def _batch(self, x: Fraction, up: bool) -> Callable[[int, bool], int]:
        """Return the requests that arrive in a cycle, by those that start in it."""
        each = fixed(x / self.batches.n_pipelines, up)
        return lambda z, up: times(each, self.seconds(z, up), up)

    def latencies(self, x: Fraction, up: bool) -> tuple[int, int, int]:
        """Return bounds on the seconds to the first token, of a later one, and to the last."""
        y = least_root(self._batch(x, up), fixed(self.largest(x), up), self._jumps(), up)
        cycle_s = over(y, fixed(x / self.batches.n_pipelines, not up), up)
        passes = fixed(self.batches.passes, up)
        ttft = fixed(self.entry_s, up) + times(
            fixed(self.batches.prompt_cycles, up), cycle_s, up
        )
        return ttft, cycle_s if passes else 0, ttft + times(passes, cycle_s, up)


def cycles_that_carry(
    server: Server, cuts: list[int], x: Fraction
) -> Sequence[Cycle | WholeServers]:
    """Return the cycles of a split that carry a rate, by the number of pipelines.

    A split in one stage has none or one: all of its servers.
    """
    used = [k for k, (i, j) in enumerate(itertools.pairwise(cuts)) if i < j]
    if len(used) == 1:
        servers = WholeServers(server, used[0])
        return [servers] if servers.carries(x) else []
    holders = [
        sum(server.room(c, memory, server.content(i, j)) != 0 for c, memory in server.nodes[k])
        for k, (i, j) in enumerate(itertools.pairwise(cuts))
        if i < j
    ]
    cycles = [Cycle(server, cuts, n) for n in range(1, min(holders) + 1)]
    return [cycle for cycle in cycles if cycle.carries(x)]
