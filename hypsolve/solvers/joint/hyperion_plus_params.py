"""Tunable constants of `hyperion_plus`."""

from dataclasses import dataclass, field, fields
from typing import Any

from hypsolve.problem import validation as valid


@dataclass(frozen=True, slots=True, kw_only=True)
class AscentParams:
    """Tunable constants of the subgradient ascent that raises the Lagrangian bound.

    Attributes
    ----------
    levels : tuple of int
        Successive time grids, each given as the number of ticks per mean latency of the
        incumbent. Each number is a multiple of the previous one.
    evaluations : int
        Bound evaluations on each level, including the trial evaluations of the starting point
        that is chosen.
    trial_evaluations : int
        Evaluations from each candidate starting point, before the ascent continues from the
        best one.
    stalled_evaluations : int
        Evaluations after an ascent has stalled, in place of `evaluations`.
    first_step, refined_step, min_step : float
        Polyak step length on the first level and after a restart from 0; step length when
        starting from known multipliers; and step length at which an ascent ends.
    subgradient_weight : float
        Weight of the latest subgradient in the direction, in (0, 1].
    patience : int
        Evaluations with little gain before steps get shorter.
    step_shrink : float
        Factor by which steps are shortened after `patience` evaluations with little gain, in
        (0, 1).
    restart_scales : tuple of float
        Factors by which the best multipliers are scaled to start the next ascent; from the
        unscaled best multipliers, steps gain hardly anything. The first factor is used until an
        ascent on the finest level stalls, then the second, and so on. After the last factor,
        the partition is abandoned.
    min_gain : float
        Fraction of the gap to the incumbent that an ascent on the finest level must close in
        order not to count as stalled.
    min_window_ticks : int
        Width of the narrowest window.
    window_margin : float
        Margin by which a window exceeds the delay of its request in the incumbent, in units of
        the mean latency.
    max_window_delays : float
        Width of the widest window, as a multiple of the longest delay.
    window_growth : float
        When windows are recomputed, the width of a window is this factor times the excess of
        the cost of its request's path over the latency without delay.
    evaluations_per_window : int
        Maximum number of evaluations between updates of the windows and checks of the time
        limit.
    max_multipliers : float
        Maximum number of multipliers (groups x ticks); levels with more are skipped.

    Examples
    --------
    A quick bound, from the coarsest time grid alone:

    >>> import hypsolve as hs
    >>> ascent = hs.AscentParams(levels=(60,), restart_scales=(0.0,))
    >>> hs.HyperionPlusParams(ascent=ascent).ascent.levels
    (60,)
    """

    levels: tuple[int, ...] = (60, 180, 540)
    evaluations: int = 100
    trial_evaluations: int = 30
    stalled_evaluations: int = 300
    first_step: float = 0.15
    refined_step: float = 0.1
    min_step: float = 0.002
    subgradient_weight: float = 0.5
    patience: int = 10
    step_shrink: float = 0.7
    restart_scales: tuple[float, ...] = (0.9, 0.7, 0.0)
    min_gain: float = 0.01
    min_window_ticks: int = 8
    window_margin: float = 0.5
    max_window_delays: float = 4.0
    window_growth: float = 1.5
    evaluations_per_window: int = 10
    max_multipliers: float = 5e6

    def __post_init__(self) -> None:
        _check(self, positive=("first_step", "refined_step", "min_step", "subgradient_weight"))
        _require(self, "subgradient_weight", self.subgradient_weight <= 1, "be at most 1")
        _require(self, "step_shrink", 0 < self.step_shrink < 1, "be between 0 and 1")
        _require(self, "levels", len(self.levels) > 0, "hold at least one level")
        steps = zip(self.levels, self.levels[1:], strict=False)
        divides = all(fine > coarse and fine % coarse == 0 for coarse, fine in steps)
        _require(self, "levels", divides, "be multiples of the level before")
        _require(
            self, "restart_scales", len(self.restart_scales) > 0, "hold at least one scale"
        )
        _require(self, "restart_scales", max(self.restart_scales) <= 1, "be at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperionPlusParams:
    """Tunable constants of `hyperion_plus`: its effort, and how it is spent.

    The defaults take about a second per 1,000 requests. Every field is checked: an error names
    the field, the rule and the value.

    Attributes
    ----------
    max_partitions : int
        Partitions that are scheduled in the order of their bounds.
    max_boxes : int
        Maximum number of partition boxes for which a lower bound is computed to find these
        partitions.
    first_leads, leads : tuple of float
        Leads tried for all stages of every partition, and stage by stage for the finalists. A
        request is placed by its SRPT completion time minus the lead times its work (see
        `ScheduleSearch`).
    passes : tuple of (int, int)
        First passes of the search. For each pass: the number of best candidates that are
        searched, and the maximum number of trials per window.
    n_finalists : int
        Candidates that share the trials that are left.
    max_finalist_ratio : float
        Maximum objective of a finalist relative to the best candidate, at least 1.
    window, lookahead, stride : int
        Number of operations in a window, number of operations after it that a trial also
        places anew, and step from one window to the next, in operations.
    max_window_trials : int
        Maximum number of trials per window of a finalist.
    min_trials, trials_per_request : int
        The search ends after `trials_per_request` trials for each request, or `min_trials` if
        that is more.
    windows_per_check : int
        Windows after which the trials are counted and the clock is read.
    min_gain : float
        Minimum relative gain of a pass. A smaller gain ends the search on a candidate.
    max_restarts : int
        Restarts from a perturbed order.
    perturbation : float
        Standard deviation of the perturbation of start times, in units of the mean service time
        on the fastest node of a stage.
    search_share : float
        Fraction of the time limit that the search gets if the rest is used to raise the bound,
        in (0, 1).
    ascent : AscentParams
        Constants of the Lagrangian bound.

    Examples
    --------
    >>> import hypsolve as hs
    >>> hs.HyperionPlusParams(max_partitions=8).max_partitions
    8
    >>> hs.HyperionPlusParams(max_partitions=0)
    Traceback (most recent call last):
        ...
    ValueError: HyperionPlusParams: max_partitions must be at least 1, got 0
    """

    max_partitions: int = 64
    max_boxes: int = 1000
    first_leads: tuple[float, ...] = (1.5, 2.0, 0.0)
    leads: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 2.5)
    passes: tuple[tuple[int, int], ...] = ((4, 3), (2, 10))
    n_finalists: int = 6
    max_finalist_ratio: float = 1.03
    window: int = 24
    lookahead: int = 72
    stride: int = 12
    max_window_trials: int = 100
    min_trials: int = 36_000
    trials_per_request: int = 36
    windows_per_check: int = 32
    min_gain: float = 1e-4
    max_restarts: int = 48
    perturbation: float = 0.1
    search_share: float = 0.5
    ascent: AscentParams = field(default_factory=AscentParams)

    def __post_init__(self) -> None:
        _check(
            self, may_be_zero=("lookahead", "min_trials", "trials_per_request", "max_restarts")
        )
        _require(self, "first_leads", len(self.first_leads) > 0, "hold at least one lead")
        _require(self, "max_finalist_ratio", self.max_finalist_ratio >= 1, "be at least 1")
        _require(self, "stride", self.stride <= self.window, f"be at most window {self.window}")
        _require(self, "search_share", 0 < self.search_share < 1, "be between 0 and 1")


def _check(
    params: Any, *, may_be_zero: tuple[str, ...] = (), positive: tuple[str, ...] = ()
) -> None:
    """Check every field by the type of its default; a list becomes a tuple."""
    owner = type(params).__name__
    for each in fields(params):
        name, value = each.name, getattr(params, each.name)
        if name == "ascent":
            valid.of_type(owner, name, value, AscentParams)
        elif name == "passes":
            value = tuple(_numbers(owner, name, pair) for pair in _sequence(owner, name, value))
            _require(params, name, all(len(pair) == 2 for pair in value), "hold pairs")
        elif isinstance(each.default, tuple):
            value = _numbers(owner, name, value, whole=name == "levels")
        elif isinstance(each.default, int):
            value = valid.whole(owner, name, value, minimum=int(name not in may_be_zero))
        else:
            value = valid.real(owner, name, value, strict=name in positive)
        object.__setattr__(params, name, value)


def _numbers(owner: str, name: str, values: Any, *, whole: bool = True) -> tuple[Any, ...]:
    """Return `values` as a tuple of positive whole numbers, or of numbers >= 0."""
    items = _sequence(owner, name, values)
    if whole:
        return tuple(valid.whole(owner, name, item, minimum=1) for item in items)
    return tuple(valid.real(owner, name, item) for item in items)


def _sequence(owner: str, name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        raise TypeError(f"{owner}: {name} must be a tuple, got {values!r:.60}")
    return tuple(values)


def _require(params: Any, name: str, holds: bool, rule: str) -> None:
    if not holds:
        value = getattr(params, name)
        raise ValueError(f"{type(params).__name__}: {name} must {rule}, got {value!r:.60}")
