"""`LayerFlowOutcome`, the claim of a method on a `LayerFlowProblem`, and its checked result."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypsolve.problem import files
from hypsolve.problem import validation as valid
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import LayerLayout
from hypsolve.problem.solution import Status, checked_status
from hypsolve.problem.units import finite_or_none, show_seconds

FORMAT, VERSION = "hypsolve-layer-flow", 1  # of `LayerFlowResult.to_dict`


@dataclass(frozen=True, slots=True)
class LayerFlowOutcome:
    """The claim of a method on a `LayerFlowProblem`, which `hypsolve.solve` scores and checks.

    Attributes
    ----------
    status : Status
        ``optimal`` and ``feasible`` need a layout; the others exclude it.
    layout : LayerLayout or None
        Its flows are computed again.
    bound_tokens_per_s : float
        Tokens per second that no layout exceeds; inf if none is proved.
    certificate : mapping or None
        Proof of the bound, for `hypsolve.verify`.
    message : str
    statistics : mapping of str to any

    Raises
    ------
    ValueError, TypeError
        If a field has a wrong type or value; the message names the field.
    """

    status: Status
    layout: LayerLayout | None = None
    bound_tokens_per_s: float = math.inf
    certificate: Mapping[str, Any] | None = None
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = "layer flow outcome"
        status = checked_status(owner, self.status, "layout", self.layout, LayerLayout)
        object.__setattr__(self, "status", status)
        if self.bound_tokens_per_s != math.inf:
            valid.real(owner, "bound_tokens_per_s", self.bound_tokens_per_s)


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class LayerFlowResult:
    """A layout of layers whose flow `hypsolve.solve` has computed and checked.

    Attributes
    ----------
    method : str
    status : Status
        ``optimal``: no layout has a larger flow, by more than 10^-6 of it.
    problem : LayerFlowProblem
    layout : LayerLayout or None
        With a largest flow through its ranges. None without a solution.
    bound_tokens_per_s : float
        Tokens per second that no layout exceeds; inf if none is proved.
    certificate : mapping or None
        Proof of the bound; `hypsolve.verify.layer_flow.verify_layer_flow` reads it.
    solve_time_s : float
        Wall time of the method alone, without the compilation of kernels.
    message : str
    statistics : mapping of str to any
    """

    method: str
    status: Status
    problem: LayerFlowProblem
    layout: LayerLayout | None
    bound_tokens_per_s: float
    certificate: Mapping[str, Any] | None
    solve_time_s: float
    message: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Flow of the layout; 0 without one."""
        return 0.0 if self.layout is None else self.layout.tokens_per_s

    @property
    def gap(self) -> float:
        """Share of the bound that the flow lacks; 1 if nothing is proved."""
        if self.bound_tokens_per_s in (0.0, math.inf):
            return float(self.bound_tokens_per_s != 0)
        return max(0.0, 1 - self.tokens_per_s / self.bound_tokens_per_s)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the problem as plain numbers, strings, lists and dicts, for JSON.

        None stands for inf, which JSON lacks.
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "problem": self.problem.name,
            "digest": self.problem.digest(),
            "method": self.method,
            "status": str(self.status),
            "tokens_per_s": self.tokens_per_s,
            "bound_tokens_per_s": finite_or_none(self.bound_tokens_per_s),
            "gap": self.gap,
            "layout": None if self.layout is None else self.layout.to_dict(),
            "certificate": None if self.certificate is None else dict(self.certificate),
            "solve_time_s": self.solve_time_s,
            "message": self.message,
            "statistics": dict(self.statistics),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON to a path that ends in ``.json`` or ``.json.gz``.

        `hypsolve.load_layer_flow` reads it, with the problem.

        Raises
        ------
        ValueError
            If `path` ends in something else.
        OSError
            If the folder does not exist or cannot be written to.
        """
        files.save_json(path, self.to_dict())

    def __repr__(self) -> str:
        return (
            f"<LayerFlowResult of {self.method} on {self.problem.name!r}: {self.status},"
            f" {self.tokens_per_s:.5g} tokens/s, gap {self.gap:.3%}>"
        )

    def __str__(self) -> str:
        lines = [f"{self.method} on {self.problem.name}"]
        lines.append(f"  status     {self.status}" + (f": {self.message}" * bool(self.message)))
        lines.append(f"  flow       {self.tokens_per_s:.5g} tokens/s")
        if self.bound_tokens_per_s < math.inf:
            lines.append(f"  bound      {self.bound_tokens_per_s:.5g} tokens/s")
        lines.append(f"  solved in  {show_seconds(self.solve_time_s)}")
        held = sorted(self.layout.ranges, key=lambda r: r.start) if self.layout else []
        return "\n".join([*lines, *(f"  {each}" for each in held)])
