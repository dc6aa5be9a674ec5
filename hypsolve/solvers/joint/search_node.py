"""Nodes of the search tree of `joint_exact`."""

from dataclasses import dataclass
from enum import Enum, auto

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.solvers.joint.lagrangian_bound import Multipliers
from hypsolve.solvers.joint.partition_boxes import BoxRelaxation, PartitionBox


class LeafPhase(Enum):
    """The next step on a leaf, a box that holds a single partition."""

    ROUGH_ASCENT = auto()  # subgradient ascent with the ticks of boxes
    FINE_ASCENT = auto()  # with fine ticks
    SEARCH = auto()  # beam search (or CP-SAT) over the schedules, wider each time


@dataclass(slots=True)
class SearchNode:
    """A partition box in the search tree, with its lower bound and the proof of the bound.

    The multipliers `proof` prove `bound`, unless `is_bound_searched`: then it comes from a
    search of the schedules, and a certificate asks for their enumeration, with the multipliers
    `fine`.
    """

    box: PartitionBox
    relaxation: BoxRelaxation
    multipliers: Array  # (n_groups of all tiers, n_ticks), where the next ascent starts
    bound: float  # in the tables' unit
    proof: Multipliers | None = None  # may be a parent's
    proof_groups: IntArray | None = None  # of the tables, in the order of the proof's rows
    fine: Multipliers | None = None
    phase: LeafPhase = LeafPhase.ROUGH_ASCENT
    n_searches: int = 0
    is_bound_searched: bool = False
    is_solved: bool = False  # a complete search found the optimum of the partition
    is_closed: bool = False  # solved, or cannot be searched further: stays out of the queue
