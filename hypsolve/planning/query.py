"""What is asked of the planner, and the split that answers it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve import catalog
from hypsolve.formats.helix_pipeedge import read_helix
from hypsolve.formats.huggingface import read_model
from hypsolve.formats.network_toml import NetworkFile, read_network_file
from hypsolve.planning.forecast import under_load
from hypsolve.planning.simulation_search import Tell, as_simulated, minimise_mean_latency
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import Deployment, Model, Network, Requests
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result
from hypsolve.solve import solve

OBJECTIVES = ("bottleneck", "path", "mean_latency", "p0")
MIN_RATE = 1e-6  # requests per second: one in 12 days
MAX_TOKENS = 2**31  # of one sequence, and of all that a node is to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is wanted, whatever the model and the network; see `hypsolve.plan`."""

    prompt_tokens: int
    output_tokens: int
    rate_per_s: float
    concurrency: int
    objective: str
    method: str | None
    time_limit_s: float
    seed: int
    options: dict[str, Any]

    def __post_init__(self) -> None:
        for field in ("prompt_tokens", "output_tokens"):
            value = getattr(self, field)
            if valid.whole("plan", field, value, minimum=1) > MAX_TOKENS:
                raise ValueError(
                    f"plan: {field} must be at most {MAX_TOKENS}, got {value!r:.60}"
                )
        valid.real("plan", "rate_per_s", self.rate_per_s, minimum=MIN_RATE)
        valid.whole("plan", "concurrency", self.concurrency, minimum=1)
        valid.known("objective", self.objective, OBJECTIVES)
        if self.concurrency * self.tokens > MAX_TOKENS:
            raise ValueError(
                "plan: concurrency * (prompt_tokens + output_tokens) must be at most"
                f" {MAX_TOKENS}, got {self.concurrency * self.tokens}"
            )

    @property
    def tokens(self) -> int:
        """Of one sequence."""
        return self.prompt_tokens + self.output_tokens

    @property
    def is_simulated(self) -> bool:
        """Whether splits are judged by simulation."""
        return self.objective == Objective.MEAN_LATENCY


def model_of(model: str | os.PathLike[str] | Model, weights: str | None) -> Model:
    """The model by name, from its files, or as it is."""
    if isinstance(model, Model):
        if weights is not None:
            raise ValueError(
                f"plan: weights must be None where the model is a Model, got {weights!r:.60}"
            )
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"plan: model must be a name, a path or a Model, got {model!r:.60}")
    if isinstance(model, str):
        model = catalog.name_of(model)
        is_path = not model or os.sep in model or model.endswith(".json")
        if model in catalog.models() or not (is_path or Path(model).exists()):
            return catalog.model(model, weights or "fp16")
    if model == "" or not Path(model).exists():
        raise FileNotFoundError(
            errno.ENOENT, "no such file or folder, nor a model of that name", str(model)
        )
    return read_model(model, weights=weights)


def site_of(network: str | os.PathLike[str] | Network | NetworkFile) -> NetworkFile:
    """The network from its file (TOML, or Helix's .ini), or as it is."""
    if isinstance(network, NetworkFile):
        return network
    if isinstance(network, Network):
        return NetworkFile(network=network)
    if isinstance(network, str | os.PathLike) and os.fspath(network).lower().endswith(".ini"):
        return NetworkFile(network=read_helix(network))
    return read_network_file(network)


def answer(
    model: Model, site: NetworkFile, ask: Ask, tell: Tell | None = None
) -> tuple[Deployment, Result]:
    """Split the model as asked: one request of it, and the answer.

    KeyboardInterrupt ends a search by simulation, which then returns the best so far.
    """
    deployment = Deployment(
        model=model,
        network=site.network,
        requests=Requests(
            np.zeros(1), np.array([ask.prompt_tokens]), np.array([ask.output_tokens])
        ),
        max_resident_tokens=ask.concurrency * ask.tokens,
    )
    rules = site.rules(model)
    if ask.objective == Objective.P0 and 0 in site.min_blocks:
        tier = site.network.tiers[site.min_blocks.index(0)].name
        raise ValueError(
            f"plan: min_blocks of tier {tier!r} must be at least 1 under objective p0, which"
            " knows no empty stage, got 0"
        )
    served = deployment
    if ask.is_simulated:
        rng = np.random.default_rng(valid.whole("plan", "seed", ask.seed))
        served = under_load(deployment, ask.rate_per_s, rng)
        limit_s = valid.real("plan", "time_limit_s", ask.time_limit_s, strict=True)
        if ask.method is None:
            for option in ask.options:
                raise TypeError(f"plan: unknown option {option!r} of the search by simulation")
            found = minimise_mean_latency(served, rules, time_limit_s=limit_s, tell=tell)
            return deployment, found
    objective = Objective.BOTTLENECK if ask.is_simulated else ask.objective
    result = solve(
        to_instance(deployment, objective=objective, **rules),
        ask.method or "hypsplit_dp",
        time_limit_s=ask.time_limit_s,
        seed=ask.seed,
        **ask.options,
    )
    return deployment, as_simulated(served, rules, result) if ask.is_simulated else result
