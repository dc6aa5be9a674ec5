"""Lagrangian bounds of partition boxes, raised by subgradient ascent."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.solvers.joint.joint_exact_params import JointExactParams
from hypsolve.solvers.joint.tables import JointTables

if TYPE_CHECKING:
    from hypsolve.kernels.flow_shop import DeadlineFlowShop, Ticks

CALL_S = 0.2  # about the longest time between two checks of the deadline
EVALUATION_S = 4e-9  # seconds of one evaluation of the bound, per request, group and tick


class Multipliers(NamedTuple):
    """Lagrange multipliers of the capacity of the nodes, and the ticks that they refer to."""

    ticks: "Ticks"
    values: Array  # (n_groups, n_ticks)


def to_ticks(shop: "DeadlineFlowShop", step: float) -> "Ticks":
    """Round the times of a flow shop down to whole ticks of `step`."""
    from hypsolve.kernels.flow_shop import ROUND_DOWN, Ticks

    def whole_ticks(times: Array) -> IntArray:
        return np.floor(np.where(np.isfinite(times), times, 0.0) / step * ROUND_DOWN).astype(
            np.int64
        )

    stage = np.repeat(np.arange(len(shop.first) - 1), np.diff(shop.first))
    return Ticks(
        busy=whole_ticks(shop.service),
        ahead=whole_ticks(shop.service + shop.travel[:, stage]),
        release=whole_ticks(shop.release),
        step=step,
    )


def choose_n_ticks(
    tables: JointTables, horizon: float, memory_bytes: float, params: JointExactParams
) -> int:
    """Choose the number of ticks in which the time until `horizon` is cut."""
    times = [table[np.isfinite(table) & (table > 0)] for table in tables.service]
    means = [float(each.mean()) for each in times if each.size]
    if not means or horizon <= 0:
        return params.min_ticks
    wanted = params.ticks_per_stage * horizon / (sum(means) / len(means))
    n_rows = tables.n_requests * len(tables.group_tier) * params.fine_factor
    in_memory = max(1.0, memory_bytes / (8 * n_rows))
    return int(min(max(wanted, params.min_ticks), params.max_ticks, in_memory))


def min_proof(shop: "DeadlineFlowShop") -> float:
    """Return the bound from which on no schedule keeps the deadline: 0, but for rounding."""
    return 1e-7 * float(shop.deadline)


@dataclass(frozen=True, slots=True)
class LagrangianBound:
    """Subgradient ascent on the flow shops of partition boxes.

    Attributes
    ----------
    params : JointExactParams
    is_makespan : bool
        Whether the objective is the last completion time; else it is the sum of them all.
    is_stopped : callable
        Returns True once the deadline of the search has passed.
    """

    params: JointExactParams
    is_makespan: bool
    is_stopped: Callable[[], bool]

    def ascend(
        self,
        shop: "DeadlineFlowShop",
        multipliers: Multipliers,
        n_steps: int,
        *,
        known: float,
        upper: float,
        cutoff: float,
    ) -> float:
        """Improve the multipliers in place; return the bound that they prove.

        Parameters
        ----------
        shop : DeadlineFlowShop
        multipliers : Multipliers
        n_steps : int
            Maximum number of bounds evaluated.
        known : float
            Bound that is already proven.
        upper : float
            Value of the incumbent, or inf.
        cutoff : float
            Bound that suffices to prune the box.
        """
        if not self.is_makespan:
            return self._ascend(shop, multipliers, upper, cutoff, n_steps)
        if math.isinf(upper):
            return 0.0
        return self._latest_refuted_deadline(shop, multipliers, n_steps, known, cutoff)

    def _latest_refuted_deadline(
        self,
        shop: "DeadlineFlowShop",
        multipliers: Multipliers,
        n_steps: int,
        known: float,
        cutoff: float,
    ) -> float:
        """Search the latest deadline proven too early, by bisection; 0: none after `known`."""
        deadline = late = cutoff
        latest = 0.0
        for _ in range(self.params.max_deadlines):
            tried = multipliers._replace(values=multipliers.values.copy())
            shop = shop._replace(deadline=deadline)
            proof = min_proof(shop)
            aim = self.params.deadline_aim * deadline
            if self._ascend(shop, tried, aim, proof, n_steps) >= proof:
                latest = known = deadline
                multipliers.values[:] = tried.values
            else:
                late = deadline
            deadline = (known + late) / 2
            if late - known <= self.params.min_improvement * late or self.is_stopped():
                break
        return latest

    def _ascend(
        self,
        shop: "DeadlineFlowShop",
        multipliers: Multipliers,
        aim: float,
        target: float,
        n_steps: int,
    ) -> float:
        """Run subgradient ascent in calls between which the clock is looked at."""
        from hypsolve.kernels import subgradient

        values = multipliers.values
        evaluation_s = EVALUATION_S * shop.service.size * values.shape[1]
        steps_per_call = max(2, int(CALL_S / evaluation_s))
        best = -math.inf
        if self.is_stopped():
            n_steps = min(n_steps, 1)  # a bound is needed, not a good one
        while n_steps > 0:
            steps = min(n_steps, steps_per_call)
            bound = subgradient.ascend_in_ticks(
                shop, multipliers.ticks, values, aim, target, steps,
                self.params.first_step, self.params.last_step,
            )  # fmt: skip
            best = max(best, bound)
            n_steps -= steps
            if best >= target or self.is_stopped():
                break
        return best
