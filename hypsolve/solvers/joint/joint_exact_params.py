"""`JointExactParams`: the tunable constants of `joint_exact`."""

from dataclasses import dataclass, fields

from hypsolve.problem import validation as valid
from hypsolve.solvers.outcomes import OPTIMAL_GAP

OWNER = "joint_exact params"


@dataclass(frozen=True, slots=True, kw_only=True)
class JointExactParams:
    """Tunable constants of `joint_exact`; bounds and optimum are valid for all values.

    Attributes
    ----------
    ticks_per_stage : float
        Resolution of the time grid of the multipliers: number of ticks per mean service time of
        a stage.
    min_ticks, max_ticks : int
        Limits of the number of ticks.
    fine_factor : int
        Number of fine ticks per tick, for the last ascent on a single partition.
    box_steps, rough_steps, fine_steps : int
        Maximum number of bound evaluations in an ascent: on a new box; on a single partition
        with the same ticks as for boxes; and on a single partition with fine ticks.
    first_step, last_step : float
        Length of the first steps of an ascent as a share of the distance to the incumbent, and
        the length at which the ascent stops.
    first_width, width_factor : int
        Width of the first beam search on a partition, and the factor by which each further beam
        search on it is wider.
    max_compared : int
        Number of partial schedules with which a new one is compared for dominance.
    min_improvement : float
        Smallest relative improvement of the objective that is searched for. It must be below
        1e-6, the largest gap at which a result counts as optimal.
    max_deadlines : int
        Makespan: maximum number of deadlines tried on a box in a bisection.
    deadline_aim : float
        Makespan: upper bound that the steps of an ascent aim at, as a share of the deadline.
    max_proof_share : float
        Share of `memory_bytes` that a certificate can use, at most 1.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong type.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables(
    ...     [[[2, 1, 1]]], [1, 1, 1], [[(0, 2)], [(0, 2)]],
    ...     arrival_s=[0, 0, 1], objective="mean_latency",
    ... )
    >>> params = hs.JointExactParams(first_width=1000, fine_steps=50)
    >>> round(hs.solve(instance, "joint_exact", params=params).objective_s, 3)
    5.667
    >>> hs.JointExactParams(first_width=0)
    Traceback (most recent call last):
    ValueError: joint_exact params: first_width must be at least 1, got 0
    """

    ticks_per_stage: float = 10
    min_ticks: int = 128
    max_ticks: int = 1024
    fine_factor: int = 4
    box_steps: int = 12
    rough_steps: int = 60
    fine_steps: int = 200
    first_step: float = 0.3
    last_step: float = 0.01
    first_width: int = 200
    width_factor: int = 16
    max_compared: int = 200
    min_improvement: float = 0.4 * OPTIMAL_GAP
    max_deadlines: int = 6
    deadline_aim: float = 0.1
    max_proof_share: float = 0.25

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is int:
                minimum = {"width_factor": 2, "max_compared": 0}.get(each.name, 1)
                valid.whole(OWNER, each.name, value, minimum=minimum)
            else:
                valid.real(OWNER, each.name, value, strict=each.name != "min_improvement")
        if self.max_ticks < self.min_ticks:
            raise ValueError(
                f"{OWNER}: max_ticks must be at least min_ticks, {self.min_ticks},"
                f" got {self.max_ticks}"
            )
        if self.max_ticks * self.fine_factor > MAX_TICKS:
            raise ValueError(
                f"{OWNER}: max_ticks * fine_factor must be at most {MAX_TICKS},"
                f" got {self.max_ticks * self.fine_factor}"
            )
        for name, limit in (
            ("min_improvement", OPTIMAL_GAP),
            ("first_step", 2.0),
            ("last_step", 2.0),
            ("deadline_aim", 1.0),
            ("max_proof_share", 1.0),
        ):
            value = getattr(self, name)
            if value > limit or (name == "min_improvement" and value == limit):
                relation = "below" if name == "min_improvement" else "at most"
                raise ValueError(f"{OWNER}: {name} must be {relation} {limit:g}, got {value!r}")


MAX_TICKS = 2**14  # that `hypsolve.verify` reads in a certificate
