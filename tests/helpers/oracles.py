"""Oracles: the problem from its definitions in exact fractions, solved by enumeration.

They read an Instance's expanded arrays and share nothing else with the library. They are slow
on purpose.
"""

import heapq
import itertools
import math
from fractions import Fraction
from functools import lru_cache

INF = math.inf


class Exact:
    """An instance's arrays as fractions."""

    def __init__(self, instance):
        self.n_blocks, self.n_tiers = instance.n_blocks, instance.n_tiers
        self.n_requests = instance.n_requests
        self.rule = str(instance.stage_rule)
        self.overlap, self.allow_empty = instance.overlap, instance.allow_empty
        self.objective = str(instance.objective)
        self.reference_s = _fractions(instance.reference_s)
        self.block_bytes = _fractions(instance.block_bytes)
        self.tied_bytes = Fraction(instance.tied_bytes)
        self.link_s = _fractions(instance.reference_link_s)
        self.transfer_s = _fractions(instance.reference_transfer_s)
        self.request_block_s = _all_rows(instance.block_s, self.n_requests)
        self.request_transfer_s = _all_rows(instance.transfer_s, self.n_requests)
        arrivals = _fractions(instance.arrival_s)
        self.arrival_s = [each - min(arrivals) for each in arrivals]  # as schedules count
        self.min_blocks = instance.min_blocks.tolist()
        self.max_blocks = instance.max_blocks.tolist()
        self.cut_min, self.cut_max = instance.cut_min.tolist(), instance.cut_max.tolist()
        self.nodes = [[] for _ in range(self.n_tiers)]  # per tier: (class, bytes)
        for tier, kind, capacity in zip(
            instance.node_tier.tolist(),
            instance.node_class.tolist(),
            instance.node_bytes.tolist(),
            strict=True,
        ):
            self.nodes[tier].append((kind, Fraction(capacity)))
        self.stage_s = lru_cache(maxsize=None)(self._stage_s)

    def need(self, i, j):
        total = sum(self.block_bytes[i:j], Fraction(0))
        return total - self.tied_bytes if (i, j) == (0, self.n_blocks) else total

    def holders(self, k, i, j):
        """Indices within the tier of the nodes that can hold the stage."""
        need = self.need(i, j)
        return [n for n, (_, has) in enumerate(self.nodes[k]) if i == j or need <= has]

    def _stage_s(self, k, i, j, rule):
        if i == j:
            return Fraction(0)
        holders = self.holders(k, i, j)
        if not holders or (rule == "slowest" and len(holders) < len(self.nodes[k])):
            return INF
        times = [sum(self.reference_s[self.nodes[k][n][0]][i:j], Fraction(0)) for n in holders]
        if rule == "slowest":
            return max(times)
        if rule == "fastest" or min(times) == 0:
            return min(times)
        return 1 / sum(1 / t for t in times)

    def partitions(self):
        """Yield every cut vector with legal numbers of blocks; stage times cover memory."""
        for inner in itertools.combinations_with_replacement(
            range(self.n_blocks + 1), self.n_tiers - 1
        ):
            cuts = (0, *inner, self.n_blocks)
            sizes = [j - i for i, j in itertools.pairwise(cuts)]
            if not self.allow_empty and 0 in sizes:
                continue
            if any(
                not low <= size <= high
                for low, size, high in zip(self.min_blocks, sizes, self.max_blocks, strict=True)
            ):
                continue
            if all(
                low <= c <= high
                for low, c, high in zip(self.cut_min, cuts, self.cut_max, strict=True)
            ):
                yield cuts

    def period(self, k, i, j):
        """Return a stage's time and its outgoing link's, added or overlapped."""
        time = self.stage_s(k, i, j, self.rule)
        if k == self.n_tiers - 1:
            return time
        link = self.link_s[k][j]
        return max(time, link) if self.overlap else time + link

    def bottleneck(self, cuts):
        return max(self.period(k, i, j) for k, (i, j) in enumerate(itertools.pairwise(cuts)))

    def transfers(self, cuts):
        return sum((self.transfer_s[k][c] for k, c in enumerate(cuts[1:-1])), Fraction(0))

    def path(self, cuts):
        stages = [
            self.stage_s(k, i, j, "fastest")
            for k, (i, j) in enumerate(itertools.pairwise(cuts))
        ]
        return INF if INF in stages else sum(stages) + self.transfers(cuts)

    def p0(self, cuts):
        """Return the P0 score, minimised over every assignment of one node to each tier."""
        stages = list(itertools.pairwise(cuts))
        choices = [self.holders(k, i, j) for k, (i, j) in enumerate(stages)]
        best = INF
        for nodes in itertools.product(*choices):
            worst = max(
                sum(self.reference_s[self.nodes[k][n][0]][i:j], Fraction(0))
                for k, ((i, j), n) in enumerate(zip(stages, nodes, strict=True))
            )
            best = min(best, worst + self.transfers(cuts))
        return best

    def score(self, cuts, objective=None):
        objective = self.objective if objective is None else objective
        return {"bottleneck": self.bottleneck, "path": self.path, "p0": self.p0}[objective](
            cuts
        )


def _fractions(array):
    return _deep(array.tolist())


def _deep(values):
    return [_deep(v) for v in values] if isinstance(values, list) else Fraction(values)


def _all_rows(array, n_requests):
    listed = _fractions(array)
    return listed if len(listed) == n_requests else listed * n_requests


def best(instance, objective=None):
    """Return the optimum of a partition objective; inf if no partition is legal."""
    exact = Exact(instance)
    return min((exact.score(cuts, objective) for cuts in exact.partitions()), default=INF)


def pareto(instance):
    """Return all non-dominated pairs (bottleneck, path) in ascending order."""
    exact = Exact(instance)
    points = {(exact.bottleneck(cuts), exact.path(cuts)) for cuts in exact.partitions()}
    points = {p for p in points if INF not in p}
    return sorted(
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    )


def best_by_recurrence(instance):
    """Return the optimal bottleneck by the quadratic recurrence over (tier, cut)."""
    exact = Exact(instance)
    n_cuts = exact.n_blocks + 1
    reached = {0: Fraction(0)}
    for k in range(exact.n_tiers):
        following = {}
        for j in range(n_cuts):
            if not exact.cut_min[k + 1] <= j <= exact.cut_max[k + 1]:
                continue
            values = [
                max(worst, exact.period(k, i, j))
                for i, worst in reached.items()
                if i <= j
                and exact.min_blocks[k] <= j - i <= exact.max_blocks[k]
                and (exact.allow_empty or i < j)
            ]
            if values and min(values) < INF:
                following[j] = min(values)
        reached = following
    return reached.get(exact.n_blocks, INF)


def service(exact, request, tier, node, cuts):
    kind = exact.nodes[tier][node][0]
    i, j = cuts[tier], cuts[tier + 1]
    return sum(exact.request_block_s[request][kind][i:j], Fraction(0))


def holdable(exact, cuts):
    return all(exact.holders(k, i, j) for k, (i, j) in enumerate(itertools.pairwise(cuts)))


def completions(exact, cuts):
    """Return the completion vectors of all semi-active schedules.

    They are enumerated tier by tier: all orders, all nodes, earliest starts. The next tier
    depends on the completion times alone, so duplicates are merged.
    """
    ready = {tuple(exact.arrival_s)}
    done = ready
    for k in range(exact.n_tiers):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            done = {
                ends
                for times in ready
                for order in itertools.permutations(range(exact.n_requests))
                for nodes in itertools.product(exact.holders(k, i, j), repeat=exact.n_requests)
                for ends in [_dealt(exact, cuts, k, times, order, nodes)]
            }
            ready = done
        if k < exact.n_tiers - 1:
            ready = {
                tuple(t + exact.request_transfer_s[r][k][j] for r, t in enumerate(times))
                for times in ready
            }
    return done


def _dealt(exact, cuts, tier, ready, order, nodes):
    free = {}
    ends = [None] * len(ready)
    for r in order:
        start = max(ready[r], free.get(nodes[r], Fraction(0)))
        ends[r] = free[nodes[r]] = start + service(exact, r, tier, nodes[r], cuts)
    return tuple(ends)


def best_joint(instance):
    """Return the optimum of a scheduled objective over all partitions, nodes and orders."""
    exact = Exact(instance)
    optimum = INF
    for cuts in exact.partitions():
        if holdable(exact, cuts):
            for ends in completions(exact, cuts):
                optimum = min(optimum, scheduled_score(exact, ends))
    return optimum


def scheduled_score(exact, ends):
    if exact.objective == "makespan":
        return max(ends)
    return sum(e - a for e, a in zip(ends, exact.arrival_s, strict=True)) / exact.n_requests


def hypsched(instance, cuts):
    """Dispatch by HypSched-RT in a simulation of events, without slowdowns.

    Returns {(request, tier): (node, start, end)} for the stages that have blocks.
    """
    exact = Exact(instance)
    stages = [k for k in range(exact.n_tiers) if cuts[k] < cuts[k + 1]]
    queues = {
        (k, n): [] for k in stages for n in exact.holders(k, cuts[k], cuts[k + 1])
    }  # jobs in order, the first one running
    placed = {}
    events = []  # (time, tier, 0 completion | 1 arrival, request)

    def travel(request, time, tier):
        """Send a request on from `tier` (or from its source, -1) to its next stage."""
        while True:
            tier += 1
            if tier == exact.n_tiers:
                return
            if tier > 0:
                time += exact.request_transfer_s[request][tier - 1][cuts[tier]]
            if tier in stages:
                heapq.heappush(events, (time, tier, 1, request))
                return

    def begin(time, tier, node):
        request = queues[tier, node][0]
        end = time + service(exact, request, tier, node, cuts)
        placed[request, tier] = (node, time, end)
        heapq.heappush(events, (end, tier, 0, request))

    for r in range(exact.n_requests):
        travel(r, exact.arrival_s[r], -1)
    while events:
        time, tier, kind, request = heapq.heappop(events)
        if kind == 0:
            node = placed[request, tier][0]
            queues[tier, node].pop(0)
            if queues[tier, node]:
                begin(time, tier, node)
            travel(request, time, tier)
            continue
        node = min(
            exact.holders(tier, cuts[tier], cuts[tier + 1]),
            key=lambda n, k=tier, r=request: (
                sum(service(exact, q, k, n, cuts) for q in [*queues[k, n], r]),
                n,
            ),
        )
        queues[tier, node].append(request)
        if len(queues[tier, node]) == 1:
            begin(time, tier, node)
    return placed


def is_legal(instance, cuts, node, start_s, end_s):
    """Return whether a schedule is legal, checked request by request and pair by pair."""
    exact = Exact(instance)
    jobs = {}  # (tier, node): [(start, end)]
    for r in range(exact.n_requests):
        ready = exact.arrival_s[r]
        for k, (i, j) in enumerate(itertools.pairwise(cuts)):
            n, start, end = int(node[r][k]), float(start_s[r][k]), float(end_s[r][k])
            if i == j:
                if n != -1 or not (math.isnan(start) and math.isnan(end)):
                    return False
            else:
                if n not in exact.holders(k, i, j):
                    return False
                if not (math.isfinite(start) and math.isfinite(end)):
                    return False
                start, end = Fraction(start), Fraction(end)
                if start < ready or end - start != service(exact, r, k, n, cuts):
                    return False
                jobs.setdefault((k, n), []).append((start, end))
                ready = end
            if k < exact.n_tiers - 1:
                ready += exact.request_transfer_s[r][k][j]
    return not any(
        a[0] < b[1] and b[0] < a[1]
        for queue in jobs.values()
        for a, b in itertools.combinations(queue, 2)
    )
