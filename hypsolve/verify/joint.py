"""Verification of joint certificates in exact integers: the schedule, and every box."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from typing import Any

from hypsolve.problem.instance import Instance
from hypsolve.verify.bottleneck import ROUNDING
from hypsolve.verify.flow_shop import FORBIDDEN, ExactFlowShop
from hypsolve.verify.reading import LARGEST, BoxClaim, Claims, need


class Joint:
    """A joint problem with times in whole multiples of 1 / `per_s` s, from the first arrival.

    `per_s` is a power of two for which every time of the instance and the certificate is whole.
    """

    def __init__(self, instance: Instance, bound_s: Fraction, tick_s: list[float]) -> None:
        self.instance, n = instance, instance.n_requests
        self.n_tiers, self.n_blocks = instance.n_tiers, instance.n_blocks
        tables = (instance.kind_s, instance.transfer_kind_s, instance.arrival_s)
        floats: list[Any] = [
            bound_s,
            *tick_s,
            *(x for table in tables for x in table.ravel().tolist()),
        ]
        self.per_s = max(Fraction(x).denominator for x in floats)  # powers of two
        arrival = [self.whole(x) for x in instance.arrival_s.tolist()]
        self.release = [a - min(arrival) for a in arrival]
        self.makespan = str(instance.objective) == "makespan"
        if self.makespan:  # bound on each completion, else on their sum
            self.bound = int(bound_s * self.per_s)
        else:
            self.bound = int(bound_s * self.per_s) * n + sum(self.release)
        self.work = [
            [
                list(accumulate((self.whole(row[b]) for b in instance.block_kind), initial=0))
                for row in rows
            ]
            for rows in _all(instance.kind_s.tolist(), n)
        ]
        self.travel = [
            [[self.whole(row[c]) for c in instance.cut_kind] for row in rows]
            for rows in _all(instance.transfer_kind_s.tolist(), n)
        ]
        for rows in self.travel:
            for row in rows:
                row[-1] = 0  # nothing crosses a link after the last block
        sizes = instance.block_bytes.tolist()
        self.prefix_bytes = list(accumulate(map(Fraction, sizes), initial=Fraction(0)))
        exact = all(s.is_integer() for s in sizes) and sum(sizes) <= 2**53
        self.slack = 1 if exact else 1 + ROUNDING
        self.kinds: list[dict[tuple[int, float], list[int]]] = [{} for _ in range(self.n_tiers)]
        nodes = zip(instance.node_tier, instance.node_class, instance.node_bytes, strict=True)
        for node, (k, c, size) in enumerate(nodes):  # groups of identical nodes of a tier
            self.kinds[k].setdefault((int(c), float(size)), []).append(node)
        # of each request: latency that no schedule below the bound exceeds
        self.max_latency: list[int | None] = [None] * n
        self.arcs = [self._arcs(k) for k in range(self.n_tiers)]

    def is_proved_by_idle_nodes(self) -> bool:
        """Return whether the bound holds even if no request ever waits."""
        alone = map(self._min_latency, range(len(self.release)))
        done = [a + b for a, b in zip(self.release, alone, strict=True)]
        return self.bound <= (max(done) if self.makespan else sum(done))

    def drop_slow_stages(self) -> None:
        """Drop stages that are too slow for any schedule below the bound."""
        min_latency = [self._min_latency(r) for r in range(len(self.release))]
        spare = self.bound - sum(min_latency) - sum(self.release)
        self.max_latency = [
            self.bound - at if self.makespan else alone + spare
            for at, alone in zip(self.release, min_latency, strict=True)
        ]
        self.arcs = [self._arcs(k) for k in range(self.n_tiers)]

    def link(self, r: int, k: int, cut: int) -> int:
        """Return the travel time of request r from tier k to the next."""
        return self.travel[r][k][cut] if k < self.n_tiers - 1 else 0

    def whole(self, seconds: float) -> int:
        """Return seconds in the unit of time; exact for the numbers that define `per_s`."""
        return int(Fraction(seconds) * self.per_s)

    def service(self, r: int, k: int, kind: tuple[int, float], i: int, j: int) -> int | None:
        """Return the time of blocks i:j for request r on a kind of node; None if impossible."""
        size = self.prefix_bytes[j] - self.prefix_bytes[i]
        if (i, j) == (0, self.n_blocks):
            size -= Fraction(self.instance.tied_bytes)
        took = self.work[r][kind[0]][j] - self.work[r][kind[0]][i]
        limit = self.max_latency[r]
        fits = i == j or size <= Fraction(kind[1]) * self.slack
        return took if fits and (limit is None or took <= limit) else None

    def _arcs(self, k: int) -> list[tuple[int, int]]:
        """Return the feasible stages of a tier, as (first block, end)."""
        inst, arcs = self.instance, []
        for i in range(int(inst.cut_min[k]), int(inst.cut_max[k]) + 1):
            for j in range(max(i, int(inst.cut_min[k + 1])), int(inst.cut_max[k + 1]) + 1):
                allowed = inst.min_blocks[k] <= j - i <= inst.max_blocks[k]
                if allowed and all(self._fits(r, k, i, j) for r in range(len(self.release))):
                    arcs.append((i, j))
        return arcs

    def _fits(self, r: int, k: int, i: int, j: int) -> bool:
        times = [self.service(r, k, kind, i, j) for kind in self.kinds[k]]
        took = min((t for t in times if t is not None), default=None)
        if took is None:
            return False
        limit = self.max_latency[r]
        return limit is None or took + self.link(r, k, j) <= limit

    def _min_latency(self, r: int) -> int:
        """Return the latency of request r alone on its best partition."""
        reach: dict[int, int] = {0: 0}
        for k in range(self.n_tiers):
            onward: dict[int, int] = {}
            for i, j in self.arcs[k]:
                times = [self.service(r, k, kind, i, j) for kind in self.kinds[k]]
                took = min(t for t in times if t is not None)
                if i in reach:
                    done = reach[i] + took + self.link(r, k, j)
                    onward[j] = min(onward.get(j, FORBIDDEN), done)
            reach = onward
        return reach.get(self.n_blocks, FORBIDDEN)

    def check_schedule(self, claims: Claims) -> None:
        """Refute a schedule whose nodes cannot hold their stages, or whose times are wrong.

        Every stage must start as early as the order on its node allows. Claimed times are
        floats and may differ by rounding: they give the order alone. The objective must be
        that of the exact times, to 1e-9 of it, whatever the version of the file.
        """
        cuts = claims.cuts
        need(cuts[0] == 0 and cuts[-1] == self.n_blocks, "cuts: must span the blocks")
        for k in range(self.n_tiers):
            stage = (cuts[k], cuts[k + 1])
            need(stage in self.arcs[k], "cuts: tier", k, "cannot have blocks", *stage)
        ready = list(self.release)
        timed: list[tuple[str, int, Any]] = []
        for k in range(self.n_tiers):
            if cuts[k] < cuts[k + 1]:
                self._serve(k, claims, ready, timed)
            ready = [t + self.link(r, k, cuts[k + 1]) for r, t in enumerate(ready)]
        seconds = [(word, Fraction(t, self.per_s), x) for word, t, x in timed]
        n_sums = self.n_tiers * (len(ready) + 2)
        latest = max(t for _, t, _ in seconds) + Fraction(claims.origin_s)
        slack = n_sums * latest / 2**52
        for word, t, claimed in seconds:
            sound = type(claimed) in (int, float) and abs(claimed) <= LARGEST
            need(sound and abs(claimed - t) <= slack, word, "must be", float(t))
        value = Fraction(max(ready) if self.makespan else sum(ready), self.per_s)
        if not self.makespan:
            value = value / len(ready) - Fraction(sum(self.release), self.per_s * len(ready))
        near = abs(value - Fraction(claims.objective_s)) <= value / 10**9
        need(near, "objective_s: it is", float(value))

    def _serve(self, k: int, claims: Claims, ready: list[int], timed: list[Any]) -> None:
        """Serve all requests on a tier in the claimed order; `ready` becomes their end."""
        mine = [m for m, tier in enumerate(self.instance.node_tier) if tier == k]
        words = [f"schedule: request {r} on tier {k}:" for r in range(len(ready))]
        for table in (claims.start_s, claims.end_s):
            for word, row in zip(words, table, strict=True):
                need(type(row[k]) in (int, float), word, "start_s and end_s must be numbers")
        free: dict[int, int] = {}
        times = zip(claims.start_s, claims.end_s, strict=True)
        in_order = sorted((start[k], end[k], r) for r, (start, end) in enumerate(times))
        for _, _, r in in_order:
            n = claims.node[r][k]
            need(0 <= n < len(mine), words[r], "no such node")
            kind = next(key for key, nodes in self.kinds[k].items() if mine[n] in nodes)
            took = self.service(r, k, kind, claims.cuts[k], claims.cuts[k + 1])
            need(took is not None, words[r], "the node cannot hold the stage")
            start = max(ready[r], free.get(n, 0))
            free[n] = ready[r] = start + (took or 0)
            timed.append((f"{words[r]} start_s", start, claims.start_s[r][k]))
            timed.append((f"{words[r]} end_s", ready[r], claims.end_s[r][k]))

    def check_cover(self, boxes: list[BoxClaim]) -> None:
        """Refute boxes that overlap or miss a partition of feasible stages."""
        ends = [[i for i, _ in arcs] for arcs in self.arcs]
        if not all(ends):
            return  # no partition can be below the bound
        low, high = ([*map(f, ends), self.n_blocks] for f in (min, max))
        volume, inside = math.prod(b - a + 1 for a, b in zip(low, high, strict=True)), []
        for box in boxes:
            ranges = zip(low, high, box.low, box.high, strict=True)
            part = [(max(a, c), min(b, d)) for a, b, c, d in ranges]
            if all(a <= b for a, b in part):
                inside.append(part)
                volume -= math.prod(b - a + 1 for a, b in part)
        need(volume == 0, "boxes: they do not hold every partition")
        inside.sort(key=lambda part: part[1])
        for at, one in enumerate(inside):
            for other in inside[at + 1 :]:
                if other[1][0] > one[1][1]:
                    break  # all that follow are apart, too
                apart = any(a[1] < b[0] or b[1] < a[0] for a, b in zip(one, other, strict=True))
                need(apart, "boxes: two overlap at", one)

    def check_box(self, box: BoxClaim, progress: Callable[[str], None]) -> None:
        """Refute a box that has a schedule below the bound; report before an enumeration."""
        where = f"box {box.low} to {box.high}:"
        shop = self._relaxed(box)
        if shop is None:
            return
        stages, release = shop
        if not stages:
            completed = max(release) if self.makespan else sum(release)
            need(completed >= self.bound, where, "no tier surely has a stage")
            return
        shop_of_box = ExactFlowShop(stages, release, self.bound, self.per_s, self.makespan, box)
        if shop_of_box.value(shop_of_box.root()) >= shop_of_box.goal:
            return
        need(box.how == "search", where, "its multipliers do not prove the bound")
        need(box.low == box.high, where, "only a single partition can be searched")
        progress(f"enumerating the schedules of cuts {box.low}")
        need(shop_of_box.none_better(), where, "it has a schedule below the bound")

    def _relaxed(self, box: BoxClaim) -> Any:
        """Return a flow shop that is nowhere slower than any partition in the box.

        Returns
        -------
        stages, release
            For each tier that is empty in no partition of the box: minimum service times by
            group of nodes, and minimum travel times to the next. None if the box is empty.
        """
        n, low, high = range(len(self.release)), box.low, box.high
        release, stages = list(self.release), []
        for k in range(self.n_tiers):
            arcs = [
                (i, j)
                for i, j in self.arcs[k]
                if low[k] <= i <= high[k] and low[k + 1] <= j <= high[k + 1]
            ]
            if not arcs:
                return None
            if all(i < j for i, j in arcs):
                groups = []
                for kind, nodes in self.kinds[k].items():
                    times = [[self.service(r, k, kind, i, j) for i, j in arcs] for r in n]
                    min_service = [
                        min((t for t in row if t is not None), default=None) for row in times
                    ]
                    groups.append((nodes, min_service))
                if any(all(service[r] is None for _, service in groups) for r in n):
                    return None
                stages.append((groups, [0 for _ in n]))
            if k < self.n_tiers - 1:
                for r in n:
                    link = min(self.travel[r][k][low[k + 1] : high[k + 1] + 1])
                    (stages[-1][1] if stages else release)[r] += link
        if stages:
            stages[-1][1][:] = [0 for _ in n]  # a request ends with its last service
        return stages, release


def _all(rows: list[Any], n: int) -> list[Any]:
    """Return a row per request, from such rows or from a single one for all requests."""
    return rows if len(rows) == n else rows * n
