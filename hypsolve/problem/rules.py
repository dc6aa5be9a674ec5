"""Objectives and rules (`Objective`, `StageRule`, `LinkCost`), and their record `Rules`."""

from dataclasses import dataclass
from enum import StrEnum

from hypsolve.problem import validation as valid


class Objective(StrEnum):
    """Objective to minimise, in seconds.

    ``BOTTLENECK``: largest stage time, with its link. ``PATH``: latency of the reference
    request on an idle network. ``P0``: largest stage time plus all transfers, as in the paper.
    ``MEAN_LATENCY``: mean of completion minus arrival. ``MAKESPAN``: last completion, counted
    from the first arrival.
    `hypsolve.problem.evaluation` has the formulas.
    """

    BOTTLENECK = "bottleneck"
    PATH = "path"
    P0 = "p0"
    MEAN_LATENCY = "mean_latency"
    MAKESPAN = "makespan"

    @property
    def is_scheduled(self) -> bool:
        """Whether the objective depends on the schedule, not on the partition alone."""
        return self in (Objective.MEAN_LATENCY, Objective.MAKESPAN)


class StageRule(StrEnum):
    """Rule that combines the nodes of a tier into one stage time; see `evaluation.stage_s`."""

    POOLED = "pooled"
    FASTEST = "fastest"
    SLOWEST = "slowest"


class LinkCost(StrEnum):
    """Part of the outgoing transfer that counts in the bottleneck.

    ``OCCUPANCY``: the time that the link is busy. ``FULL``: the whole transfer.
    """

    OCCUPANCY = "occupancy"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Objective and rules of an instance; see `Instance.from_tables`."""

    objective: Objective = Objective.BOTTLENECK
    stage_rule: StageRule = StageRule.POOLED
    allow_empty: bool = False
    overlap: bool = False
    link_cost: LinkCost = LinkCost.OCCUPANCY

    def __post_init__(self) -> None:
        for field, kind in (
            ("objective", Objective),
            ("stage_rule", StageRule),
            ("link_cost", LinkCost),
        ):
            member = valid.one_of("instance", field, getattr(self, field), kind)
            object.__setattr__(self, field, member)
        for field in ("allow_empty", "overlap"):
            value = valid.flag("instance", field, getattr(self, field))
            object.__setattr__(self, field, value)
        if self.objective is Objective.P0 and self.allow_empty:
            raise ValueError("instance: allow_empty must be False for objective p0, got True")
