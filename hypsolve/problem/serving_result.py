"""`ServingOutcome`, the claim of a throughput method, and `ServingResult`, its score."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.notebook_table import notebook_table
from hypsolve.problem.rate_certificate import RateCertificate
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import ServedRate
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.solution import Partition, Status, checked_status
from hypsolve.problem.units import finite_or_none, show_seconds

VERSION = 2  # of `ServingResult.to_dict`; version 1 has no certificate


@dataclass(frozen=True, slots=True)
class ServingOutcome:
    """The claim of a method on a `ServingInstance`, which `hypsolve.solve` scores and checks.

    Attributes
    ----------
    status : Status
        ``optimal`` and ``feasible`` need a partition; the others exclude it.
    partition : Partition or None
    fluid_bound : float
        A value of the objective that no split passes in the fluid model: requests per second at
        most, or under the objective ``cost`` price per request at least. None if the method
        proves none.
    alternatives : tuple of Partition
        Further splits, the best first.
    message : str
    statistics : mapping of str to any
    certificate : RateCertificate or None
        Proof that no split carries more, from a method that gives one.

    Raises
    ------
    ValueError, TypeError
        If a field has a wrong type or value; the message names the field.
    """

    status: Status
    partition: Partition | None = None
    fluid_bound: float | None = None
    alternatives: tuple[Partition, ...] = ()
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    certificate: RateCertificate | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        owner = "serving outcome"
        status = checked_status(owner, self.status, "partition", self.partition, Partition)
        object.__setattr__(self, "status", status)
        if self.fluid_bound is not None and self.fluid_bound != math.inf:
            valid.real(owner, "fluid_bound", self.fluid_bound)
        for each in self.alternatives:
            valid.of_type(owner, "alternatives", each, Partition)
        if self.certificate is not None:
            valid.of_type(owner, "certificate", self.certificate, RateCertificate)


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class ServingResult:
    """A split that `hypsolve.solve` has scored by the fluid model and checked.

    Attributes
    ----------
    method : str
    status : Status
        ``optimal``: no split is better in the fluid model. It is no claim about simulations or
        measurements.
    instance : ServingInstance
    partition : Partition or None
        None without a solution.
    served : ServedRate or None
        Rate, latencies, limit and price of the split, by `evaluate_serving`.
    fluid_bound : float or None
        A value of the objective that no split passes in the fluid model; None if none is
        proved.
    alternatives : tuple of (Partition, ServedRate)
        Further splits of the method, each scored, the best first.
    solve_time_s : float
        Wall time of the method alone, without the compilation of kernels.
    message : str
    statistics : mapping of str to any
    certificate : RateCertificate or None
        Proof that no split carries more, which `hypsolve.verify.verify` checks.
    """

    method: str
    status: Status
    instance: ServingInstance
    partition: Partition | None
    served: ServedRate | None
    fluid_bound: float | None
    alternatives: tuple[tuple[Partition, ServedRate], ...]
    solve_time_s: float
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    certificate: RateCertificate | None = None

    @property
    def fluid_requests_per_s(self) -> float:
        """Largest rate that the split carries in the fluid model; 0 without a solution."""
        return 0.0 if self.served is None else self.served.fluid_requests_per_s

    @property
    def objective(self) -> float:
        """Value of the objective: requests per second, or price per request."""
        is_cost = self.instance.objective is ServingObjective.COST
        if self.served is None:
            return math.inf if is_cost else 0.0
        return self.served.price_per_request if is_cost else self.fluid_requests_per_s

    @property
    def fluid_gap(self) -> float:
        """Share by which `fluid_bound` is better than the answer; 1 if nothing is proved."""
        if self.served is None:
            return math.nan
        if self.fluid_bound is None:
            return 1.0
        better, worse = self.fluid_bound, self.objective
        if self.instance.objective is ServingObjective.COST:
            better, worse = worse, better
        return max(0.0, 1 - worse / better) if better > 0 else 0.0

    def __repr__(self) -> str:
        name = f" on {self.instance.name!r}" if self.instance.name else ""
        facts = [str(self.status)]
        if self.served is not None:
            facts.append(f"fluid rate {self.fluid_requests_per_s:.4g} requests/s")
            if self.instance.objective is ServingObjective.COST:
                facts.append(f"{self.objective:.4g} per request")
            known = self.fluid_bound is not None
            facts.append(f"fluid gap {self.fluid_gap:.3%}" if known else "no bound proved")
        return f"<ServingResult of {self.method}{name}: {', '.join(facts)}>"

    def __str__(self) -> str:
        inst = self.instance
        mark = " (extrapolated: costs were not measured)" if inst.names.extrapolated else ""
        lines = [
            f"{self.method} on {inst.name or 'serving instance'}{mark}",
            f"  status     {self.status}" + (f": {self.message}" if self.message else ""),
        ]
        if self.served is not None:
            lines.append(f"  fluid rate {self.fluid_requests_per_s:.4g} requests/s")
            lines.append(f"  limit      {self.served.limit}")
            if (times := self.served.latencies) is not None:
                lines.append(
                    f"  latencies  TTFT {show_seconds(times.ttft_s)}, TPOT"
                    f" {show_seconds(times.tpot_s)}, all {show_seconds(times.latency_s)}"
                )
            if math.isfinite(self.served.price_per_request) and inst.price_per_hour.any():
                lines.append(f"  price      {self.served.price_per_request:.4g} per request")
        lines.append(f"  solved in  {show_seconds(self.solve_time_s)}")
        width = max(map(len, inst.tier_names))
        lines += [f"  {name:<{width}}  {stage}" for name, stage in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        if self.partition is None:
            return []
        pairs = itertools.pairwise(self.partition.cuts)
        return [
            (name, f"blocks {i}:{j}" if j > i else "no blocks: it relays")
            for name, (i, j) in zip(self.instance.tier_names, pairs, strict=True)
        ]

    def _repr_html_(self) -> str:
        """Return a table of the stages, which Jupyter shows."""
        return notebook_table(repr(self)[1:-1], ("tier", "stage"), self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Return all but the instance as plain numbers, strings, lists and dicts.

        JSON has no inf and nan: None stands for both.
        """
        return {
            "version": VERSION,
            "instance": self.instance.name,
            "digest": self.instance.digest(),
            "names_digest": self.instance.names_digest(),
            "extrapolated": self.instance.names.extrapolated,
            "objective": str(self.instance.objective),
            "method": self.method,
            "status": str(self.status),
            "cuts": None if self.partition is None else list(self.partition.cuts),
            "fluid_bound": None
            if self.fluid_bound is None
            else finite_or_none(self.fluid_bound),
            "fluid_gap": finite_or_none(self.fluid_gap),
            "served": None if self.served is None else _plain(self.served),
            "alternatives": [
                {"cuts": list(partition.cuts), "served": _plain(served)}
                for partition, served in self.alternatives
            ],
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "solve_time_s": self.solve_time_s,
            "message": self.message,
            "statistics": dict(self.statistics),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON to a path that ends in ``.json`` or ``.json.gz``.

        ``python -m hypsolve.verify`` checks it against its instance.

        Raises
        ------
        ValueError
            If `path` ends in something else.
        OSError
            If the folder does not exist or cannot be written to.
        """
        files.save_json(path, self.to_dict())


def _plain(served: ServedRate) -> dict[str, Any]:
    latencies = served.latencies
    return {
        "fluid_requests_per_s": finite_or_none(served.fluid_requests_per_s),
        "ttft_s": None if latencies is None else finite_or_none(latencies.ttft_s),
        "tpot_s": None if latencies is None else finite_or_none(latencies.tpot_s),
        "latency_s": None if latencies is None else finite_or_none(latencies.latency_s),
        "limit": served.limit,
        "price_per_request": finite_or_none(served.price_per_request),
    }
