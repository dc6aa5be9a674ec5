"""`Result`: a certified solution, as text, JSON, a table and a Gantt chart."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve.problem import evaluation, files
from hypsolve.problem.instance import Instance
from hypsolve.problem.notebook_table import notebook_table
from hypsolve.problem.optional import optional
from hypsolve.problem.solution import Certificate, Partition, Schedule, Status
from hypsolve.problem.units import finite_or_none, show_bytes, show_seconds

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

VERSION = 3  # of `Result.to_dict`; files of version 1 do not state theirs


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """A solution that `hypsolve.solve` has scored and checked, with its bound and run time.

    Attributes
    ----------
    method : str
    status : Status
        ``optimal``, ``feasible``, ``infeasible`` or ``unknown``.
    objective_s : float
        Objective as `hypsolve.evaluate` scores it; inf without a solution.
    bound_s : float
        Proven lower bound on the objective: 0 if the method proves none, inf if infeasible.
    gap : float
        Relative optimality gap ``(objective_s - bound_s) / objective_s``. It is 1 without a
        bound (``bound_s == 0``), 0 if ``objective_s == 0``, and nan without a solution. A
        bound that exceeds the objective by rounding gives 0.
    solve_time_s : float
        Wall time of the method alone, without the compilation of kernels.
    instance : Instance
    partition : Partition or None
        None without a solution.
    schedule : Schedule or None
        None without a solution, or from a method that decides the partition alone.
    certificate : Certificate or None
        Proof of the bound, from a method that gives one.
    message : str
        The method's own words, for example the reason why no solution exists.
    statistics : mapping of str to any
        The method's own counts and times.
    """

    method: str
    status: Status
    objective_s: float
    bound_s: float
    gap: float
    solve_time_s: float
    instance: Instance = field(repr=False)
    partition: Partition | None = None
    schedule: Schedule | None = field(default=None, repr=False)
    certificate: Certificate | None = None
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        name = f" on {self.instance.name!r}" if self.instance.name else ""
        facts = [str(self.status)]
        if self.partition is not None:
            facts.append(f"{self.instance.objective} {show_seconds(self.objective_s)}")
            facts.append(f"gap {self.gap:.3%}" if self.bound_s > 0 else "no bound proved")
        return f"<Result of {self.method}{name}: {', '.join(facts)}>"

    def _repr_html_(self) -> str:
        """Return a table of the stages, which Jupyter shows."""
        rows = []
        if self.partition is not None:
            for k, name in enumerate(self.instance.tier_names):
                rows.append((name, self._stage(k, self.partition.stage(k))))
        return notebook_table(repr(self)[1:-1], ("tier", "stage"), rows)

    def __str__(self) -> str:
        inst = self.instance
        mark = (
            " (extrapolated: quantised weights were not measured)" if inst.extrapolated else ""
        )
        lines = [
            f"{self.method} on {inst.name or 'instance'}{mark}",
            f"  status     {self.status}" + (f": {self.message}" if self.message else ""),
        ]
        if self.partition is not None:
            lines.append(f"  {inst.objective:<10} {show_seconds(self.objective_s)}")
            proved = f"{show_seconds(self.bound_s)}, gap {self.gap:.3%}"
            lines.append(f"  bound      {proved if self.bound_s > 0 else 'none proved'}")
        elif math.isfinite(self.bound_s):
            proved = show_seconds(self.bound_s) if self.bound_s > 0 else "none proved"
            lines.append(f"  bound      {proved}")
        lines.append(f"  solved in  {show_seconds(self.solve_time_s)}")
        if self.partition is not None:
            width = max(map(len, inst.tier_names))
            for k, stage in enumerate(map(self.partition.stage, range(inst.n_tiers))):
                lines.append(f"  {inst.tier_names[k]:<{width}}  {self._stage(k, stage)}")
        return "\n".join(lines)

    def _stage(self, k: int, stage: range) -> str:
        if not len(stage):
            return "no blocks: it relays"
        inst = self.instance
        i, j = stage[0], stage[-1] + 1
        time_s = evaluation.stage_s(inst, k, i, j)
        holds = evaluation.can_hold(inst, k, i, j)
        text = (
            f"blocks {i}:{j}, stage {show_seconds(time_s)},"
            f" {show_bytes(evaluation.stage_bytes(inst, i, j))},"
            f" {holds.sum()} of {len(holds)} nodes"
        )
        if self.schedule is not None:
            served = np.bincount(self.schedule.node[:, k], minlength=len(holds))
            text += f", requests per node {served.tolist()}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return all but the instance as plain numbers, strings, lists and dicts.

        JSON has no inf and nan: None stands for both.
        """
        schedule = None
        if self.schedule is not None:
            schedule = {
                "node": self.schedule.node.tolist(),
                "start_s": _plain(self.schedule.start_s),
                "end_s": _plain(self.schedule.end_s),
            }
        certificate = None
        if self.certificate is not None:
            certificate = {
                "kind": self.certificate.kind,
                "value_s": finite_or_none(self.certificate.value_s),
                "bound_s": finite_or_none(self.certificate.bound_s),
                "cuts": None if self.certificate.cuts is None else list(self.certificate.cuts),
                "boxes": [_lists(asdict(box)) for box in self.certificate.boxes],
            }
        return {
            "version": VERSION,
            "instance": self.instance.name,
            "digest": self.instance.digest(),
            "names_digest": self.instance.names_digest(),
            "extrapolated": self.instance.extrapolated,
            "objective": str(self.instance.objective),
            "method": self.method,
            "status": str(self.status),
            "objective_s": finite_or_none(self.objective_s),
            "bound_s": finite_or_none(self.bound_s),
            "gap": finite_or_none(self.gap),
            "solve_time_s": self.solve_time_s,
            "cuts": None if self.partition is None else list(self.partition.cuts),
            "schedule": schedule,
            "certificate": certificate,
            "message": self.message,
            "statistics": dict(self.statistics),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, which ``python -m hypsolve.verify`` checks.

        Parameters
        ----------
        path : str or path
            Ends in ``.json`` or ``.json.gz``.

        Raises
        ------
        ValueError
            If `path` has another ending.
        OSError
            If the folder does not exist or cannot be written to.
        """
        files.save_json(path, self.to_dict())

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with a row per request and visited tier.

        Columns: request, tier, node, arrival_s, start_s, end_s, extrapolated. Without a
        schedule a row is a tier: tier, first_block, end_block, stage_s, stage_bytes,
        extrapolated. ``extrapolated`` is True if costs go beyond measurements. All times count
        from time 0, as arrivals do.

        Raises
        ------
        ValueError
            If there is no solution, or pandas is not installed.
        """
        pd = optional("pandas")
        inst = self.instance
        if self.partition is None:
            raise ValueError(
                f"result of {self.method}: no solution to tabulate ({self.status})"
            )
        if self.schedule is None:
            cuts = self.partition.cuts
            return pd.DataFrame(
                {
                    "tier": inst.tier_names,
                    "first_block": cuts[:-1],
                    "end_block": cuts[1:],
                    "stage_s": [
                        evaluation.stage_s(inst, k, cuts[k], cuts[k + 1])
                        for k in range(inst.n_tiers)
                    ],
                    "stage_bytes": [
                        evaluation.stage_bytes(inst, cuts[k], cuts[k + 1])
                        for k in range(inst.n_tiers)
                    ],
                    "extrapolated": inst.extrapolated,
                }
            )
        request, tier = np.nonzero(self.schedule.node >= 0)
        first = np.searchsorted(inst.node_tier, np.arange(inst.n_tiers))
        node = self.schedule.node[request, tier]
        names = np.array(inst.node_names, dtype=object)
        first_s = float(inst.arrival_s.min())
        return pd.DataFrame(
            {
                "request": request,
                "tier": np.array(inst.tier_names, dtype=object)[tier],
                "node": names[first[tier] + node],
                "arrival_s": inst.arrival_s[request],
                "start_s": self.schedule.start_s[request, tier] + first_s,
                "end_s": self.schedule.end_s[request, tier] + first_s,
                "extrapolated": inst.extrapolated,
            }
        )

    def plot_gantt(self, ax: Axes | None = None) -> Axes:
        """Draw the schedule as a Gantt chart: a row per node, a bar per visit.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Default: the axes of a new figure. Bars of a request have one colour.

        Raises
        ------
        ValueError
            If there is no schedule, or matplotlib is not installed.
        """
        if self.schedule is None:
            raise ValueError(f"result of {self.method}: no schedule to draw ({self.status})")
        plt = optional("matplotlib.pyplot")
        if ax is None:
            _, ax = plt.subplots(figsize=(8, 0.4 * self.instance.n_nodes + 1.2), layout="tight")
        inst, plan = self.instance, self.schedule
        first = np.searchsorted(inst.node_tier, np.arange(inst.n_tiers))
        colours = plt.get_cmap("tab20").colors
        for k in range(inst.n_tiers):
            rows = np.flatnonzero(plan.node[:, k] >= 0)
            ax.barh(
                first[k] + plan.node[rows, k],
                plan.end_s[rows, k] - plan.start_s[rows, k],
                left=plan.start_s[rows, k],
                color=[colours[r % len(colours)] for r in rows],
                edgecolor="white",
                linewidth=0.3,
            )
        ax.set_yticks(range(inst.n_nodes), labels=inst.node_names)
        ax.invert_yaxis()
        ax.set_xlabel("time (s)")
        mark = ", extrapolated" if inst.extrapolated else ""
        ax.set_title(f"{self.method}: {inst.objective} {show_seconds(self.objective_s)}{mark}")
        return ax


def _lists(value: Any) -> Any:
    """Return nested tuples as lists, as JSON reads them."""
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, tuple) else value


def _plain(times: np.ndarray) -> list[list[float | None]]:
    return [[finite_or_none(t) for t in row] for row in times.tolist()]
