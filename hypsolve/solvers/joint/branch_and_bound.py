"""Branch and bound over partition boxes, the search of `joint_exact`."""

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from hypsolve.problem.evaluation import evaluate
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Certificate
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.joint.beam_search import beam_search, max_width, replay_operations
from hypsolve.solvers.joint.certificate import joint_certificate
from hypsolve.solvers.joint.decision import (
    Decision,
    is_tabulated,
    proven_s,
    report_decision,
    table_times,
    to_decision,
    to_schedule,
)
from hypsolve.solvers.joint.joint_exact_params import JointExactParams
from hypsolve.solvers.joint.lagrangian_bound import (
    LagrangianBound,
    Multipliers,
    choose_n_ticks,
    to_ticks,
)
from hypsolve.solvers.joint.partition_boxes import (
    PartitionBox,
    PartitionCounter,
    all_partitions,
    relax,
)
from hypsolve.solvers.joint.search_node import LeafPhase, SearchNode
from hypsolve.solvers.joint.tables import JointTables
from hypsolve.solvers.joint.time_windows import fastest_partition
from hypsolve.solvers.outcomes import OnBound, OnImprove, WarmStart

HORIZON_MARGIN = 1.1  # end of the ticks, as a multiple of the first decision's last completion


@dataclass(slots=True)
class BranchAndBound:
    """Best-first branch and bound over partition boxes.

    Bounds, `upper` and `cutoff` are in the tables' unit: the sum of completion times or, for
    a makespan, the last one.
    """

    instance: Instance
    tables: JointTables
    params: JointExactParams
    seed: int
    memory_bytes: float
    disable: frozenset[str]
    deadline: Deadline
    min_s: float  # a lower bound on the objective in seconds, known beforehand
    on_improve: OnImprove | None
    on_bound: OnBound | None
    horizon: float  # end of the ticks; the multipliers of later time are 0
    n_ticks: int = 0
    upper: float = math.inf  # only decisions with a smaller value are looked for
    incumbent: Decision | None = None
    incumbent_s: float = math.inf
    reported_s: float = 0.0  # best bound reported so far, in seconds
    # heap of open nodes
    queue: list[tuple[float, int, SearchNode]] = field(default_factory=list)
    number: "itertools.count[int]" = field(default_factory=itertools.count)  # breaks ties
    # the partition of the warm start, worked on before all others
    start: SearchNode | None = None
    # leaves with a bound below the cutoff
    closed: list[SearchNode] = field(default_factory=list)
    # for the certificate, while they fit
    pruned: list[SearchNode] = field(default_factory=list)
    infeasible: list[PartitionBox] = field(default_factory=list)
    # boxes for which there was no time; their bound is 0
    unbounded: list[PartitionBox] = field(default_factory=list)
    proof_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    counter: PartitionCounter = field(init=False)

    def __post_init__(self) -> None:
        self.n_ticks = self.params.min_ticks
        self.counter = PartitionCounter(self.tables)

    def run(self) -> float:
        """Run the search until no node is open or the time is up; return a lower bound.

        Best-first branch and bound (Land and Doig, 1960): select the open node with the
        smallest bound; prune it, search it if it is a leaf, or branch.
        """
        self._choose_ticks()
        self._work_on_start()
        for box in self._roots():
            if self.is_stopped():
                self.unbounded.append(box)
            else:
                self._add(box, parent=None)
        while self.queue and not self.is_stopped():
            self._report_bound()
            node = self._select()
            if node.bound >= self.cutoff:
                self._prune(node)
            elif node.box.is_single:
                self._work_on_leaf(node)
                self._enqueue(node)
            else:
                for box in node.box.branch():
                    self._add(box, node)
        self._report_bound()
        return self._bound()

    # --- the incumbent and the bounds ---------------------------------------------------------

    @property
    def is_makespan(self) -> bool:
        """Whether the objective is the last completion time."""
        return self.instance.objective is Objective.MAKESPAN

    @property
    def cutoff(self) -> float:
        """Bound from which on a node is pruned."""
        if math.isinf(self.upper):
            return math.inf
        objective_s = self.tables.objective_s(
            self.upper, self.instance.objective, self.instance.release_s
        )
        return self.value_of(objective_s * (1 - self.params.min_improvement))

    def value_of(self, objective_s: float) -> float:
        """Convert an objective from seconds to the tables' unit."""
        return self.tables.value(objective_s, self.instance.objective, self.instance.release_s)

    def is_stopped(self) -> bool:
        """Return True once the deadline has passed."""
        return self.deadline.has_passed()

    def find_incumbent(self, warm: Decision | None) -> None:
        """Accept the warm start; without one, search the fastest partition narrowly."""
        if warm is not None:
            self._accept(warm)
            return
        arcs = fastest_partition(self.tables)
        cuts = (
            *(int(self.tables.first[k][a]) for k, a in enumerate(arcs)),
            self.tables.n_blocks,
        )
        node = self._node(PartitionBox(cuts, cuts), None)
        assert node is not None and node.relaxation.shop is not None, "the partition is legal"
        width = max_width(node.relaxation.shop, self.memory_bytes)
        width = min(self.params.first_width, width)
        if width > 0:
            self._search_schedules(node, width)

    def _accept(self, decision: Decision) -> None:
        """Make a decision the incumbent if `evaluate` scores it better."""
        schedule = to_schedule(self.instance, decision)
        objective_s = evaluate(self.instance, decision.partition, schedule)
        if objective_s >= self.incumbent_s:
            return
        self.incumbent, self.incumbent_s = decision, objective_s
        self.upper = min(self.upper, self.value_of(objective_s))
        if self.on_improve is not None:
            report_decision(
                self.on_improve, self.instance, decision, min(self.reported_s, objective_s)
            )

    def _bound(self) -> float:
        """Return the lower bound that the open and the closed nodes leave."""
        bounds = [self.cutoff, *(node.bound for node in self.closed)]
        if self.queue:
            bounds.append(self.queue[0][0])
        if self.unbounded:
            bounds.append(0.0)
        return min(bounds)

    def _bound_s(self) -> float:
        """Return the lower bound on the objective, in seconds."""
        return max(self.min_s, proven_s(self.instance, self.tables, self._bound(), 0.0))

    def _report_bound(self) -> None:
        """Call `on_bound` if the bound is better than the last one reported."""
        bound_s = self._bound_s()
        if bound_s > self.reported_s:
            self.reported_s = bound_s
            if self.on_bound is not None:
                self.on_bound(min(bound_s, self.incumbent_s))

    # --- the search tree ----------------------------------------------------------------------

    def _choose_ticks(self) -> None:
        """Cut the time into ticks, as long as the incumbent shows that a schedule takes."""
        if self.incumbent is not None and is_tabulated(self.tables, self.incumbent):
            last = float(table_times(self.tables, self.incumbent)[1].max())
            self.horizon = last * HORIZON_MARGIN
        self.n_ticks = choose_n_ticks(self.tables, self.horizon, self.memory_bytes, self.params)

    def _work_on_start(self) -> None:
        """Work on the incumbent's partition first, up to a first search of its schedules."""
        if self.incumbent is None or not is_tabulated(self.tables, self.incumbent):
            return
        cuts = self.incumbent.partition.cuts
        node = self._node(PartitionBox(cuts, cuts), None)
        while node is not None and node.n_searches == 0 and not self.is_stopped():
            self._work_on_leaf(node)
        self.start = node

    def _roots(self) -> list[PartitionBox]:
        """Return the boxes to begin with: all partitions in one box, or each in its own."""
        boxes = [all_partitions(self.tables)]
        while "partition_boxes" in self.disable and not all(box.is_single for box in boxes):
            parts: list[PartitionBox] = []
            for box in boxes:
                if self.is_stopped():
                    parts.append(box)  # `run` will not bound it
                    continue
                for part in (box,) if box.is_single else box.branch():
                    is_feasible = relax(self.tables, part) is not None
                    (parts if is_feasible else self.infeasible).append(part)
            boxes = parts
            if self.is_stopped():
                break
        return boxes

    def _add(self, box: PartitionBox, parent: SearchNode | None) -> None:
        """Bound a box, and queue it unless it is infeasible or pruned."""
        node = self._node(box, parent)
        if node is None:
            self.infeasible.append(box)
        else:
            self._enqueue(node)

    def _enqueue(self, node: SearchNode) -> None:
        """Queue a node unless it is closed or pruned."""
        if node.is_closed:
            return
        if node.bound >= self.cutoff:
            self._prune(node)
        else:
            heapq.heappush(self.queue, (node.bound, next(self.number), node))

    def _select(self) -> SearchNode:
        """Take the open node with the smallest bound."""
        return heapq.heappop(self.queue)[2]

    def _prune(self, node: SearchNode) -> None:
        """Count the partitions of a pruned box; keep its proof while memory allows."""
        if node.n_searches > 0:
            part = "n_searched"
        else:
            part = "n_pruned_single" if node.box.is_single else "n_pruned_in_boxes"
        self.counts[part] += self.counter.count(node.box)
        node.multipliers = node.multipliers[:, :0]  # no longer needed
        kept = node.fine if node.is_bound_searched else node.proof
        self.proof_bytes += 0 if kept is None else kept.values.nbytes
        if self._is_proof_kept():
            self.pruned.append(node)
        else:
            self.pruned.clear()

    def _is_proof_kept(self) -> bool:
        """Return True if the proofs fit into their share of the memory."""
        return self.proof_bytes <= self.memory_bytes * self.params.max_proof_share

    def _node(self, box: PartitionBox, parent: SearchNode | None) -> SearchNode | None:
        """Bound a box, from its parent's multipliers on; None if no partition is feasible."""
        if self.start is not None and box == self.start.box:
            return self.start
        relaxation = relax(self.tables, box)
        if relaxation is None:
            return None
        if parent is not None:
            node = SearchNode(
                box, relaxation, parent.multipliers.copy(), parent.bound,
                parent.proof, parent.proof_groups,
            )  # fmt: skip
        else:
            zero = np.zeros((len(self.tables.group_tier), self.n_ticks))
            node = SearchNode(box, relaxation, zero, 0.0)
        if relaxation.shop is None:
            release = relaxation.release
            release_bound = release.max() if self.is_makespan else release.sum()
            node.bound = max(node.bound, float(release_bound))
        else:
            self._raise_bound(node, self.params.box_steps)
        self.counts["n_boxes"] += 1
        return node

    def _raise_bound(self, node: SearchNode, n_steps: int, fine: bool = False) -> None:
        """Raise the Lagrangian bound of a node by subgradient ascent."""
        shop, groups = node.relaxation.shop, node.relaxation.groups
        assert shop is not None
        n_ticks, values = self.n_ticks, node.multipliers[groups]
        if fine:
            factor = self.params.fine_factor
            n_ticks, values = n_ticks * factor, np.repeat(values, factor, axis=1) / factor
        ticks = to_ticks(shop, max(self.horizon, 1e-300) / n_ticks)
        multipliers = Multipliers(ticks, values)
        if "lagrangian_bound" in self.disable or math.isinf(self.upper):
            n_steps = 1  # the bound of the multipliers as they are
        lagrangian = LagrangianBound(self.params, self.is_makespan, self.is_stopped)
        bound = lagrangian.ascend(
            shop, multipliers, n_steps, known=node.bound, upper=self.upper, cutoff=self.cutoff
        )
        if bound > node.bound:
            node.bound, node.proof, node.proof_groups = bound, multipliers, groups
        self.counts["n_ascents"] += 1
        if fine:
            node.fine = multipliers
        else:
            node.multipliers[groups] = values

    # --- leaves -------------------------------------------------------------------------------

    def _work_on_leaf(self, node: SearchNode) -> None:
        """Try the next phase on a single partition."""
        match node.phase:
            case LeafPhase.ROUGH_ASCENT:
                self._raise_bound(node, self.params.rough_steps)
                node.phase = LeafPhase.FINE_ASCENT
            case LeafPhase.FINE_ASCENT:
                self._raise_bound(node, self.params.fine_steps, fine=True)
                node.phase = LeafPhase.SEARCH
            case LeafPhase.SEARCH:
                node.n_searches += 1
                if "beam_search" in self.disable:
                    self._solve_by_cpsat(node)
                else:
                    self._widen_search(node)

    def _widen_search(self, node: SearchNode) -> None:
        """Search the schedules of a leaf; close it when solved or when the memory is full."""
        shop, params = node.relaxation.shop, self.params
        assert shop is not None
        limit = max_width(shop, self.memory_bytes)
        width = params.first_width * params.width_factor ** (node.n_searches - 1)
        width = min(limit, width)
        node.is_solved = width > 0 and self._search_schedules(node, width)
        is_widest = width == limit and not self.is_stopped()
        if node.bound < self.cutoff and (node.is_solved or is_widest):
            node.is_closed = True
            self.closed.append(node)

    def _search_schedules(self, node: SearchNode, width: int) -> bool:
        """Run beam search on a single partition; return True if it was complete."""
        if node.fine is None:
            self._raise_bound(node, 1, fine=True)
        shop = node.relaxation.shop
        assert shop is not None and node.fine is not None
        if self.is_makespan:  # without an incumbent, the deadline is inf: the smallest sum
            shop = shop._replace(deadline=self.cutoff)
        max_compared = 0 if "dominance" in self.disable else self.params.max_compared
        found = beam_search(
            shop, node.fine, self.cutoff, width, self.is_stopped, self.seed, max_compared
        )
        self.counts["n_expanded"] += found.n_expanded
        if found.bound > node.bound and not (self.is_makespan and math.isinf(self.cutoff)):
            node.bound, node.is_bound_searched = found.bound, True
        if math.isfinite(found.value):
            self._accept(
                replay_operations(self.tables, node.box.low, node.relaxation, found.operations)
            )
        return found.is_complete

    def _solve_by_cpsat(self, node: SearchNode) -> None:
        """Schedule one partition by CP-SAT, from the incumbent if it has that partition."""
        from hypsolve.solvers.joint.cpsat import joint_cpsat

        cuts = np.array(node.box.low)
        pinned = self.instance.replace(cut_min=cuts, cut_max=cuts)
        start: WarmStart = True
        if self.incumbent is not None and self.incumbent.partition.cuts == node.box.low:
            start = (self.incumbent.partition, to_schedule(self.instance, self.incumbent))
        left_s = max(1e-3, self.deadline.left_s())
        answer = joint_cpsat(pinned, time_limit_s=left_s, seed=self.seed, warm_start=start)
        if answer.partition is not None and answer.schedule is not None:
            self._accept(
                to_decision(self.instance, self.tables, answer.partition, answer.schedule)
            )
        node.bound = max(node.bound, self.value_of(answer.bound_s))

    # --- what is reported ---------------------------------------------------------------------

    def stop_reason(self, bound: float, upper_bound: float) -> str:
        """Say where the search stopped; empty if it proved the incumbent optimal."""
        if self.is_stopped():
            return "at the time limit"
        if any(not node.is_solved for node in self.closed):
            return "where the memory for beam search ends"
        if bound < self.cutoff:
            return "where rounding hides what is better"
        if self.incumbent_s > upper_bound:
            return "with nothing better than upper_bound"
        return ""

    def account(self) -> str:
        """Say how many partitions each part pruned."""
        search = "CP-SAT" if "beam_search" in self.disable else "beam search"
        parts = [
            f"{self.counts['n_pruned_in_boxes']} partitions pruned by Lagrangian bounds of"
            " boxes",
            f"{self.counts['n_pruned_single']} by their own Lagrangian bounds",
            f"{self.counts['n_searched']} by {search}",
        ]
        open_boxes = [*(node.box for _, _, node in self.queue), *self.unbounded]
        n_open = sum(self.counter.count(box) for box in open_boxes)
        n_open += len(self.closed)
        return ", ".join([*parts, f"{n_open} open"] if n_open else parts)

    def certificate(self) -> Certificate | None:
        """Certify the bound; None if it cannot be, or would take too much memory."""
        if (
            self.incumbent is None
            or not self._is_proof_kept()
            or "beam_search" in self.disable  # CP-SAT gives no proof
        ):
            return None
        leaves = [*self.pruned, *self.closed, *(node for _, _, node in self.queue)]
        return joint_certificate(
            self.tables,
            self.incumbent.partition,
            self.incumbent_s,
            self._bound_s(),
            leaves,
            [*self.infeasible, *self.unbounded],
        )
