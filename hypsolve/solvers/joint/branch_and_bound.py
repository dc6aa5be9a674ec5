"""Partition and schedule together, exactly: boxes of partitions, prices, search in layers."""

import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.evaluation import evaluate
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.problem.solution import BoxProof, Certificate, Outcome, Partition
from hypsolve.solvers.joint.beam_search import Prices, max_entries, proof_of, search
from hypsolve.solvers.joint.decision import (
    Decision,
    decision,
    no_partition,
    offers,
    proven_s,
    tell,
    timed,
    times_in_units,
    to_joint_outcome,
    warm_decision,
)
from hypsolve.solvers.joint.partition_boxes import Box, Stages, stages_of, ticks_of, whole
from hypsolve.solvers.joint.tables import JointTables, joint_tables
from hypsolve.solvers.joint.time_windows import drop_dominated, idle_bound_s, shortest
from hypsolve.solvers.outcomes import (
    OPTIMAL_GAP,
    OnBound,
    OnImprove,
    WarmStart,
    require_callable,
)

if TYPE_CHECKING:
    from hypsolve.kernels.flow_shop import Shop, Ticks

METHOD = "joint_exact"
PARTS = ("lagrangian_bound", "partition_boxes", "dominance", "beam_search")

TICKS_PER_STAGE = 10  # of the mean service of a stage, while boxes are searched
FEWEST_TICKS, MAX_TICKS = 128, 1024
FINER = 4  # times as many for a single partition
BOX_STEPS, ROUGH_STEPS, FINE_STEPS = 12, 60, 200
FIRST_STEP, LAST_STEP = 0.3, 0.01  # of the way to the best known objective
FIRST_WIDTH, WIDER = 200, 16
CLOSE = 0.4 * OPTIMAL_GAP  # of the objective: better by less is not looked for
CALL_S = 0.2  # about the longest time between two looks at the clock
BEYOND = 1.1  # the end of the first decision: how far ticks are laid
AIM = 0.1  # of a deadline, for the steps of prices that are to rule it out
MAX_DEADLINES = 6  # tried in turn on one box
CERTAIN = 1 - 3e-10  # of a bound: what floats may have added to it
MAX_PROOFS = 4  # a certificate may take one part in so many of the memory
STEP_S = 4e-9  # of a step, per request, group and tick


def joint_exact(
    instance: Instance,
    *,
    time_limit_s: float,
    seed: int,
    warm_start: WarmStart = True,
    upper_bound: float = math.inf,
    on_improve: OnImprove | None = None,
    on_bound: OnBound | None = None,
    memory_bytes: float = 1e9,
    disable: Sequence[str] = (),
) -> Outcome:
    """Decide partition and schedule together, exactly, by our own search.

    Boxes of partitions are bounded by prices on the nodes' time (a Lagrangian relaxation, see
    `hypsolve.kernels.subgradient`), the least bound first, and halved until they are ruled
    out or hold a single partition. The schedules of that one are searched in layers of one more
    operation each: the prices bound every partial schedule, and what another one dominates is
    left out. A layer wider than memory allows is cut, and the least bound dropped still counts:
    the bound is valid whenever the search stops.

    Parameters
    ----------
    instance : Instance
        Its objective must be ``mean_latency`` or ``makespan``.
    time_limit_s : float
        For warm start and search together.
    seed : int
        Of the hash by which partial schedules are compared; no answer depends on it.
    warm_start : bool, Outcome, Result or (Partition, Schedule)
        Decision to start from; True: Hyperion's.
    upper_bound : float
        Seconds: only decisions better than this are looked for. If there is none, the answer
        is the start, and `upper_bound` its bound.
    on_improve : callable, optional
        Called as ``on_improve(objective_s, bound_s, partition, schedule)`` for each better
        decision, the start included.
    on_bound : callable, optional
        Called as ``on_bound(bound_s)`` for each better bound.
    memory_bytes : float
        For the layers of the search.
    disable : sequence of str
        Parts to switch off, for ablations: ``lagrangian_bound`` (all multipliers stay 0),
        ``partition_boxes`` (every partition is a box of its own), ``dominance``,
        ``beam_search`` (CP-SAT decides single partitions).

    Returns
    -------
    Outcome
        With a valid ``bound_s`` also at the time limit, and a certificate that
        `hypsolve.verify` repeats (none where long silences between arrivals are left out, or
        where it would take a quarter of `memory_bytes`). The message says how many partitions
        were ruled out by which part.
    """
    started = time.perf_counter()
    owner = f"method {METHOD!r}"
    require_callable(METHOD, on_improve)
    require_callable(METHOD, on_bound, "on_bound")
    if upper_bound != math.inf:
        upper_bound = valid.real(owner, "upper_bound", upper_bound)
    memory_bytes = valid.real(owner, "memory_bytes", memory_bytes, strict=True)
    if isinstance(disable, str) or not isinstance(disable, Sequence):
        raise TypeError(f"{owner}: disable must be a sequence of names, got {disable!r:.60}")
    for part in disable:
        valid.known("part", part, PARTS)
    tables = joint_tables(instance, METHOD)
    warm = warm_decision(instance, tables, METHOD, warm_start, time_limit_s, seed)
    min_s = idle_bound_s(instance, tables)
    if math.isinf(min_s):
        nothing = Certificate(kind="infeasible", value_s=math.inf, bound_s=math.inf)
        return replace(no_partition(instance), certificate=nothing)
    completion = None if warm is None else times_in_units(tables, warm)[1][:, -1]
    tables, last = drop_dominated(tables, instance.objective, completion)
    run = _Run(
        instance, tables, seed=seed, memory_bytes=memory_bytes, disable=frozenset(disable),
        deadline=started + time_limit_s, min_s=min_s, on_improve=on_improve,
        on_bound=on_bound, horizon=float(last.max()),
    )  # fmt: skip
    run.start_from(warm)
    run.upper = min(run.upper, run.value_of(upper_bound))
    run.lay_ticks()
    bound = run.prove()
    stopped = ""
    if run.is_stopped():
        stopped = "at the time limit"
    elif any(not node.is_decided for node in run.given_up):
        stopped = "where the memory for its layers ends"
    elif bound < run.target:
        stopped = "where rounding hides what is better"
    elif run.best_s > upper_bound:
        stopped = "with nothing better than upper_bound"
    outcome = to_joint_outcome(
        instance, run.best, warm, solver=METHOD, stopped=stopped,
        bound_s=proven_s(instance, tables, bound, 0.0), min_s=min_s,
        statistics=dict(run.counts),
    )  # fmt: skip
    outcome = replace(outcome, message=f"{outcome.message}; {run.account()}")
    if np.ptp(tables.origin_s) > 1e-12 * run.horizon:  # silences are left out
        return outcome
    certificate = run.certificate()
    return replace(outcome, certificate=certificate)


@dataclass(slots=True)
class _Node:
    """A box in the queue: what bounds it, and what has been tried on it."""

    box: Box
    stages: Stages
    price: Array  # (n_groups of all tiers, n_ticks)
    bound: float
    proof: Prices | None = None  # that have this bound, unless a search raised it
    proof_groups: IntArray | None = None  # of the tables, whose prices those are
    fine: Prices | None = None
    effort: int = 0
    is_searched: bool = False
    given_up: bool = False
    is_decided: bool = False  # by a complete search: its bound is its optimum


@dataclass(slots=True)
class _Run:
    """What is known of the problem; values in the tables' unit: sum of completions, or last."""

    instance: Instance
    tables: JointTables
    seed: int
    memory_bytes: float
    disable: frozenset[str]
    deadline: float
    min_s: float
    on_improve: OnImprove | None
    on_bound: OnBound | None
    horizon: float  # end of the ticks: later time has no price
    upper: float = math.inf  # only what is better is looked for
    best: Decision | None = None
    best_s: float = math.inf
    told_s: float = 0.0
    n_ticks: int = FEWEST_TICKS
    queue: list[tuple[float, int, _Node]] = field(default_factory=list)
    number: "itertools.count[int]" = field(default_factory=itertools.count)
    first: _Node | None = None  # the partition of the start, worked on before all others
    given_up: list[_Node] = field(default_factory=list)
    ruled_out: list[_Node] = field(default_factory=list)
    impossible: list[Box] = field(default_factory=list)
    proof_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def makespan(self) -> bool:
        return self.instance.objective is Objective.MAKESPAN

    @property
    def target(self) -> float:
        """Value from which on a schedule is not worth looking for."""
        if math.isinf(self.upper):
            return math.inf
        objective_s = self.tables.objective_s(
            self.upper, self.instance.objective, self.instance.arrival_s
        )
        return self.value_of(objective_s * (1 - CLOSE))

    def value_of(self, objective_s: float) -> float:
        """Value of an objective in seconds."""
        return self.tables.value(objective_s, self.instance.objective, self.instance.arrival_s)

    def is_stopped(self) -> bool:
        return time.perf_counter() >= self.deadline

    def start_from(self, warm: Decision | None) -> None:
        """Take over the start; without one, serve the quickest partition as it comes."""
        if warm is not None:
            self._accept(warm)
            return
        arcs = shortest(self.tables)
        cuts = (
            *(int(self.tables.first[k][a]) for k, a in enumerate(arcs)),
            self.tables.n_blocks,
        )
        node = self._node(Box(cuts, cuts), None)
        assert node is not None, "the quickest partition keeps the rules"
        assert node.stages.shop is not None
        width = min(FIRST_WIDTH, max_entries(node.stages.shop, self.memory_bytes))
        if width > 0:
            self._search(node, width)

    def lay_ticks(self) -> None:
        """Choose the ticks, now that it is known how long a good schedule lasts."""
        if self.best is not None and offers(self.tables, self.best):
            self.horizon = float(times_in_units(self.tables, self.best)[1].max()) * BEYOND
        times = [table[np.isfinite(table) & (table > 0)] for table in self.tables.service]
        means = [float(each.mean()) for each in times if each.size]
        if means and self.horizon > 0:
            wanted = TICKS_PER_STAGE * self.horizon / (sum(means) / len(means))
            n_rows = self.tables.n_requests * len(self.tables.group_tier) * FINER
            room = max(1.0, self.memory_bytes / (8 * n_rows))
            self.n_ticks = int(min(max(wanted, FEWEST_TICKS), MAX_TICKS, room))

    def prove(self) -> float:
        """Search until everything is ruled out or the time is up; a bound on the optimum."""
        if self.best is not None and offers(self.tables, self.best):
            cuts = self.best.partition.cuts
            node = self._node(Box(cuts, cuts), None)
            while node is not None and node.effort < 3 and not self.is_stopped():
                self._work(node)
            self.first = node
        for box in self._boxes():
            self._add(box, None)
        while self.queue and not self.is_stopped():
            self._tell_bound()
            bound, _, node = heapq.heappop(self.queue)
            if bound >= self.target:
                self._count(node)
            elif not node.box.is_one:
                for half in node.box.halves():
                    self._add(half, node)
            else:
                self._work(node)
                self._push(node)
        self._tell_bound()
        return self._bound()

    def _boxes(self) -> list[Box]:
        """Where to begin: everything, or without boxes every partition."""
        boxes = [whole(self.tables)]
        while "partition_boxes" in self.disable and not all(box.is_one for box in boxes):
            if self.is_stopped():
                break
            halves = [half for b in boxes for half in ((b,) if b.is_one else b.halves())]
            some = [stages_of(self.tables, half) is not None for half in halves]
            boxes = list(itertools.compress(halves, some))
            self.impossible += itertools.compress(halves, (not each for each in some))
        return boxes

    def _bound(self) -> float:
        bounds = [self.target, *(node.bound for node in self.given_up)]
        if self.queue:
            bounds.append(self.queue[0][0])
        return min(bounds)

    def _bound_s(self) -> float:
        return max(self.min_s, proven_s(self.instance, self.tables, self._bound(), 0.0))

    def _tell_bound(self) -> None:
        bound_s = self._bound_s()
        if bound_s > self.told_s:
            self.told_s = bound_s
            if self.on_bound is not None:
                self.on_bound(min(bound_s, self.best_s))

    def certificate(self) -> Certificate | None:
        """What of the bound can be certified, box by box; None: it would take too much room."""
        too_large = self.proof_bytes > self.memory_bytes / MAX_PROOFS
        if self.best is None or too_large or "beam_search" in self.disable:
            return None
        leaves = [*self.ruled_out, *self.given_up, *(node for _, _, node in self.queue)]
        first_node = np.unique(self.tables.group, return_index=True)[1].tolist()
        nothing = (
            BoxProof(
                low=b.low,
                high=b.high,
                how="lagrangian_bound",
                tick_s=1.0,
                n_ticks=1,
                multipliers=(),
            )
            for b in self.impossible
        )
        return Certificate(
            kind="joint",
            value_s=self.best_s,
            bound_s=CERTAIN * self._bound_s(),
            cuts=self.best.partition.cuts,
            boxes=(*(_box_proof(node, first_node) for node in leaves), *nothing),
        )

    def _add(self, box: Box, parent: _Node | None) -> None:
        node = self._node(box, parent)
        if node is None:
            self.impossible.append(box)
        else:
            self._push(node)

    def _push(self, node: _Node) -> None:
        if node.given_up:
            return
        if node.bound >= self.target:
            self._count(node)
        else:
            heapq.heappush(self.queue, (node.bound, next(self.number), node))

    def _count(self, node: _Node) -> None:
        """Book the partitions of a box that is ruled out."""
        if node.effort > 2:
            part = "n_searched"
        else:
            part = "n_priced_one_by_one" if node.box.is_one else "n_priced_in_boxes"
        self.counts[part] += n_partitions(self.tables, node.box)
        node.price = node.price[:, :0]  # not needed any more
        kept = node.fine if node.is_searched else node.proof
        self.proof_bytes += 0 if kept is None else kept.price.nbytes
        if self.proof_bytes <= self.memory_bytes / MAX_PROOFS:
            self.ruled_out.append(node)
        else:
            self.ruled_out.clear()

    def account(self) -> str:
        """Which part ruled out how many partitions."""
        counts = self.counts
        open_ones = sum(n_partitions(self.tables, node.box) for _, _, node in self.queue)
        open_ones += len(self.given_up)
        search = "CP-SAT" if "beam_search" in self.disable else "beam search"
        parts = [
            f"{counts['n_priced_in_boxes']} partitions pruned by Lagrangian bounds of boxes",
            f"{counts['n_priced_one_by_one']} by their own Lagrangian bounds",
            f"{counts['n_searched']} by {search}",
        ]
        return ", ".join([*parts, f"{open_ones} open"] if open_ones else parts)

    def _node(self, box: Box, parent: _Node | None) -> _Node | None:
        """Bound a box, from its parent's prices on; None if none of it keeps the rules."""
        if self.first is not None and box == self.first.box:
            return self.first
        stages = stages_of(self.tables, box)
        if stages is None:
            return None
        if parent is not None:
            node = _Node(
                box, stages, parent.price.copy(), parent.bound,
                parent.proof, parent.proof_groups,
            )  # fmt: skip
        else:
            price = np.zeros((len(self.tables.group_tier), self.n_ticks))
            node = _Node(box, stages, price, 0.0)
        if stages.shop is None:
            least = stages.release.max() if self.makespan else stages.release.sum()
            node.bound = max(node.bound, float(least))
        else:
            self._raise(node, BOX_STEPS)
        self.counts["n_boxes"] += 1
        return node

    def _raise(self, node: _Node, n_steps: int, finer: bool = False) -> None:
        """Raise the bound of a box by better prices."""
        shop = node.stages.shop
        assert shop is not None
        groups = node.stages.groups
        if finer:
            n_ticks = self.n_ticks * FINER
            price = np.repeat(node.price[groups], FINER, axis=1) / FINER
        else:
            n_ticks, price = self.n_ticks, node.price[groups]
        ticks = ticks_of(shop, max(self.horizon, 1e-300) / n_ticks)
        if "lagrangian_bound" in self.disable or math.isinf(self.upper):
            n_steps = 1  # the bound at the prices it has
        if not self.makespan:
            bound = self._climb(shop, ticks, price, self.upper, self.target, n_steps)
        elif math.isfinite(self.upper):
            bound = self._latest_ruled_out(node.bound, shop, ticks, price, n_steps)
        else:
            bound = 0.0
        if bound > node.bound:
            node.bound, node.proof, node.proof_groups = bound, Prices(ticks, price), groups
        self.counts["n_raised"] += 1
        if finer:
            node.fine = Prices(ticks, price)
        else:
            node.price[groups] = price

    def _latest_ruled_out(
        self, known: float, shop: "Shop", ticks: "Ticks", price: Array, n_steps: int
    ) -> float:
        """Latest deadline that prices are found to rule out; 0: none that is not known."""
        deadline = late = self.target
        latest = 0.0
        for _ in range(MAX_DEADLINES):
            tried = price.copy()
            asked = shop._replace(deadline=deadline)
            proof = proof_of(asked)
            bound = self._climb(asked, ticks, tried, AIM * deadline, proof, n_steps)
            if bound >= proof:
                latest = known = deadline
                price[:] = tried
            else:
                late = deadline
            deadline = (known + late) / 2
            if late - known <= CLOSE * late or self.is_stopped():
                break
        return latest

    def _climb(
        self,
        shop: "Shop",
        ticks: "Ticks",
        price: Array,
        aim: float,
        target: float,
        n_steps: int,
    ) -> float:
        """Better the prices, in steps between which the clock is looked at; the best bound."""
        from hypsolve.kernels import subgradient

        each_s = STEP_S * shop.service.size * price.shape[1]
        at_once = max(2, int(CALL_S / each_s))
        best = -math.inf
        while n_steps > 0:
            steps = min(n_steps, at_once)
            best = max(
                best,
                subgradient.raise_bound(
                    shop, ticks, price, aim, target, steps, FIRST_STEP, LAST_STEP
                ),
            )
            n_steps -= steps
            if best >= target or self.is_stopped():
                break
        return best

    def _work(self, node: _Node) -> None:
        """Try harder on a single partition, or give it up where memory allows no more."""
        node.effort += 1
        if node.effort == 1:
            self._raise(node, ROUGH_STEPS)
        elif node.effort == 2:
            self._raise(node, FINE_STEPS, finer=True)
        elif "beam_search" in self.disable:
            self._ask_cpsat(node)
        else:
            shop = node.stages.shop
            assert shop is not None
            most = max_entries(shop, self.memory_bytes)
            width = min(most, FIRST_WIDTH * WIDER ** (node.effort - 3))
            node.is_decided = width > 0 and self._search(node, width)
            undecided_for_good = width == most and not self.is_stopped()
            if node.bound < self.target and (node.is_decided or undecided_for_good):
                node.given_up = True
                self.given_up.append(node)

    def _search(self, node: _Node, width: int) -> bool:
        """Search the schedules of a single partition; whether that was all of them."""
        if node.fine is None:
            self._raise(node, 1, finer=True)
        shop = node.stages.shop
        assert shop is not None and node.fine is not None
        compare = "dominance" not in self.disable
        if self.makespan:  # without an answer yet, any will do: that with the least sum
            shop = shop._replace(deadline=self.target)
        found = search(
            shop, node.fine, self.target, width, self.is_stopped, self.seed, compare=compare
        )
        self.counts["n_expanded"] += found.n_expanded
        if found.bound > node.bound and not (self.makespan and math.isinf(self.target)):
            node.bound, node.is_searched = found.bound, True
        if math.isfinite(found.value):
            self._accept(self._decide(node, found.operations))
        return found.complete

    def _decide(self, node: _Node, operations: list[tuple[int, int]]) -> Decision:
        """Name the nodes: of a group, the first to be free."""
        shop, tables = node.stages.shop, self.tables
        assert shop is not None
        n, tier_of = tables.n_requests, tables.node_tier
        serving = np.full((n, tables.n_tiers), -1)
        order: list[list[int]] = [[] for _ in range(tables.n_tiers)]
        stage, ready = np.zeros(n, np.int64), node.stages.release.copy()
        free = {
            g: [(0.0, int(m)) for m in np.flatnonzero(tables.group == node.stages.groups[g])]
            for _, g in operations
        }
        for r, g in operations:
            free_at, m = min(free[g])
            end = max(free_at, ready[r]) + shop.service[r, g]
            free[g][free[g].index((free_at, m))] = (end, m)
            ready[r] = end + shop.lag[r, stage[r]]
            stage[r] += 1
            serving[r, tier_of[m]] = m
            order[int(tier_of[m])].append(r)
        filled = [each or list(range(n)) for each in order]
        return Decision(Partition(node.box.low), serving, np.array(filled, np.int64))

    def _accept(self, made: Decision) -> None:
        """Take over a decision if it is better, timed and scored by definition."""
        schedule = timed(self.instance, made)
        objective_s = evaluate(self.instance, made.partition, schedule)
        if objective_s >= self.best_s:
            return
        self.best, self.best_s = made, objective_s
        self.upper = min(self.upper, self.value_of(objective_s))
        if self.on_improve is not None:
            tell(self.on_improve, self.instance, made, min(self.told_s, objective_s))

    def _ask_cpsat(self, node: _Node) -> None:
        """Let CP-SAT decide a single partition, from the best decision if it is of that."""
        from hypsolve.solvers.joint.cpsat import joint_cpsat

        cuts = np.array(node.box.low)
        pinned = self.instance.replace(cut_min=cuts, cut_max=cuts)
        start: WarmStart = True
        if self.best is not None and self.best.partition.cuts == node.box.low:
            start = (self.best.partition, timed(self.instance, self.best))
        left_s = max(1e-3, self.deadline - time.perf_counter())
        answer = joint_cpsat(pinned, time_limit_s=left_s, seed=self.seed, warm_start=start)
        if answer.partition is not None and answer.schedule is not None:
            self._accept(
                decision(self.instance, self.tables, answer.partition, answer.schedule)
            )
        node.bound = max(node.bound, self.value_of(answer.bound_s))


def _box_proof(node: _Node, first_node: list[int]) -> BoxProof:
    """State why a box has nothing better; prices from the first to the last that is not 0."""
    from hypsolve.kernels.subgradient import UNITS

    prices, groups = (
        (node.fine, node.stages.groups) if node.is_searched else (node.proof, node.proof_groups)
    )
    rows: list[tuple[int, int, tuple[int, ...]]] = []
    if prices is not None and groups is not None:
        whole_units = np.rint(prices.price / (prices.ticks.step / UNITS)).astype(np.int64)
        for g, row in zip(groups.tolist(), whole_units, strict=True):
            at = np.flatnonzero(row)
            if len(at):
                run = row[at[0] : at[-1] + 1].tolist()
                rows.append((first_node[g], int(at[0]), tuple(run)))
    return BoxProof(
        low=node.box.low,
        high=node.box.high,
        how="search" if node.is_searched else "lagrangian_bound",
        tick_s=prices.ticks.step if prices else 1.0,
        n_ticks=prices.price.shape[1] if prices else 1,
        multipliers=tuple(rows),
    )


def n_partitions(tables: JointTables, box: Box) -> int:
    """How many partitions of the box keep the rules."""
    ways = {box.low[0]: 1}
    for k in range(tables.n_tiers):
        onward: Counter[int] = Counter()
        for first, end in zip(tables.first[k].tolist(), tables.end[k].tolist(), strict=True):
            if first in ways and box.low[k + 1] <= end <= box.high[k + 1]:
                onward[end] += ways[first]
        ways = dict(onward)
    return sum(ways.values())
