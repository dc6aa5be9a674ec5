"""`RateCertificate`: data from which a verifier recomputes that no split carries a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hypsolve.problem import validation as valid

OWNER = "rate certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldStep:
    """A step of the chain of hold times, under the batching mode ``stage``.

    Every split that carries the refuted rate holds KV cache for at least `held_s` seconds, so
    its stages have KV memory for that long.

    Attributes
    ----------
    held_s : float
        0 in the first step. Later: at most the potential at the end of the step before.
    potentials_s : tuple of tuples of float
        Lower bounds on the seconds for which KV cache is held in the first k tiers, if cut c
        lies behind them; k from 0 to the number of tiers, c from 0 to the number of blocks. inf
        if no chain of stages with that KV memory leads there. Empty if there are targets for
        latencies or users: the check then finds the chains within the targets by itself.
    """

    held_s: float
    potentials_s: tuple[tuple[float, ...], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRange:
    """Splits that are refuted together, under the batching modes ``pipeline`` and ``serial``.

    They have `n_stages` stages that host blocks, in `n_pipelines` pipelines. KV memory and the
    limits of the runtime let at most y requests start per cycle, ``low < y <= high``.

    Attributes
    ----------
    n_stages, n_pipelines : int
    first_tier : int or None
        The first tier that hosts blocks. None: any tier.
    low, high : float
        Requests per cycle.
    """

    n_stages: int
    n_pipelines: int
    first_tier: int | None
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateCertificate:
    """A proof that no split carries a rate in the fluid model.

    `hypsolve.verify.verify` checks it, together with the result that holds it.

    Attributes
    ----------
    refuted_requests_per_s : float
    hold_steps : tuple of HoldStep
        Under ``stage``. The last step has no chain of stages.
    level_ranges : tuple of LevelRange
        Under ``pipeline`` and ``serial``. Together they hold all splits.

    Raises
    ------
    ValueError, TypeError
        If a field has a wrong type or value; the message names it.
    """

    refuted_requests_per_s: float
    hold_steps: tuple[HoldStep, ...] = field(default=(), repr=False)
    level_ranges: tuple[LevelRange, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        rate = valid.real(
            OWNER, "refuted_requests_per_s", self.refuted_requests_per_s, strict=True
        )
        object.__setattr__(self, "refuted_requests_per_s", rate)
        for step in self.hold_steps:
            valid.of_type(OWNER, "hold_steps", step, HoldStep)
        for part in self.level_ranges:
            valid.of_type(OWNER, "level_ranges", part, LevelRange)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON holds it; null stands for inf."""
        return {
            "refuted_requests_per_s": self.refuted_requests_per_s,
            "hold_steps": [
                {
                    "held_s": step.held_s,
                    "potentials_s": [
                        [value if math.isfinite(value) else None for value in row]
                        for row in step.potentials_s
                    ],
                }
                for step in self.hold_steps
            ],
            "level_ranges": [
                {
                    "n_stages": part.n_stages,
                    "n_pipelines": part.n_pipelines,
                    "first_tier": part.first_tier,
                    "low": part.low,
                    "high": part.high,
                }
                for part in self.level_ranges
            ],
        }
