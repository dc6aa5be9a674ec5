"""Arguments of a query: models, networks and runtimes by name or file; checks of a query."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypsolve import catalog
from hypsolve.formats.helix_pipeedge import read_helix
from hypsolve.formats.huggingface import read_model
from hypsolve.formats.network_toml import NetworkFile, read_network_file
from hypsolve.formats.network_toml_types import runtime_keys
from hypsolve.planning.request_mix import LENGTHS, RequestMix
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Model, Network, Requests
from hypsolve.problem.instance import Objective
from hypsolve.problem.runtime import Batching, Runtime
from hypsolve.solve import METHODS

if TYPE_CHECKING:
    from hypsolve.planning.plan_query import PlanQuery

RATES = ("throughput", "goodput", "cost")
"""Objectives in requests per second; see `hypsolve.planning.throughput`."""
ALONE = ("bottleneck", "path", "mean_latency", "p0")
"""Objectives in seconds."""
OBJECTIVES = (*RATES, *ALONE)
MIN_RATE = 1e-6  # requests per second: one in 12 days
MAX_USERS = 100_000
OVERRIDES = tuple(runtime_keys())
"""Attributes of `Runtime` that are arguments of `hypsolve.plan`, too."""
MAX_PLAN_TOKENS = 2**31  # of one sequence, and of all sequences that a node must hold
ModelSource = str | os.PathLike[str] | Model
NetworkSource = str | os.PathLike[str] | Network | NetworkFile
RequestsSource = str | os.PathLike[str] | Requests | RequestMix


def check_load(query: PlanQuery) -> None:
    """Check lengths, rate, users and targets of a query, and its concurrency.

    Raises
    ------
    ValueError, TypeError
        The message names the field, the rule and the value.
    """
    if query.requests is not None:
        _check_requests(query.requests)
    for name in LENGTHS:
        value = getattr(query, name)
        if valid.whole("plan", name, value, minimum=1) > MAX_PLAN_TOKENS:
            raise ValueError(
                f"plan: {name} must be at most {MAX_PLAN_TOKENS}, got {value!r:.60}"
            )
    valid.real("plan", "rate_per_s", query.rate_per_s, minimum=MIN_RATE)
    if query.users is not None:
        valid.whole("plan", "users", query.users, minimum=1, maximum=MAX_USERS)
    think_time_s = valid.real("plan", "think_time_s", query.think_time_s)
    if think_time_s and query.users is None:
        raise ValueError(f"plan: think_time_s needs users, got {think_time_s:g} without")
    for name in ("ttft_slo_s", "tpot_slo_s"):
        if (value := getattr(query, name)) is not None:
            valid.real("plan", name, value, strict=True)
    valid.whole("plan", "concurrency", query.concurrency, minimum=1)


def _check_requests(mix: RequestMix) -> None:
    """Check that the requests of a query are not too long."""
    if mix.longest_tokens > MAX_PLAN_TOKENS:
        raise ValueError(
            f"plan: requests must have at most {MAX_PLAN_TOKENS} tokens each,"
            f" got {mix.describe_longest()}"
        )


def check_objective(query: PlanQuery) -> None:
    """Check that the objective of a query goes with its runtime, load and network."""
    valid.known("objective", query.objective, OBJECTIVES)
    is_serial = query.runtime.batching is Batching.SERIAL
    if is_serial and query.objective in (Objective.BOTTLENECK, Objective.P0):
        raise ValueError(
            f"plan: objective must be {', '.join((*RATES, 'path'))} or mean_latency under"
            f" runtime {query.runtime.name!r}, which computes one batch at a time (its"
            f" throughput is 1 / path), got {query.objective!r}"
        )
    if query.users is not None and query.objective == Objective.MEAN_LATENCY:
        raise ValueError(
            "plan: objective mean_latency needs a rate, got users (a closed loop has no"
            " arrivals of its own)"
        )
    if query.method is not None:
        valid.known("method", query.method, METHODS)
    if query.is_rate:
        _check_rate(query)


def _check_rate(query: PlanQuery) -> None:
    """Check what the objectives in requests per second need."""
    if query.method is not None:
        raise ValueError(
            f"plan: method must be None under objective {query.objective}, which has a"
            f" search of its own, got {query.method!r}"
        )
    for option in query.options:
        raise TypeError(
            f"plan: unknown option {option!r}; under objective {query.objective}, no method"
            " takes options"
        )
    if query.objective == "goodput" and not query.has_targets:
        raise ValueError("plan: objective goodput needs ttft_slo_s or tpot_slo_s, got neither")
    if query.objective == "cost" and not any(query.network.price_per_hour.values()):
        raise ValueError(
            "plan: objective cost needs price_per_hour of a node in the network file, got none"
        )


def runtime_asked(asked: str | Runtime | None, network: NetworkFile) -> str | Runtime:
    """Return the runtime that was asked for, or else the one that the network file names.

    The file's values also hold where its runtime is asked for by name.
    """
    of_file = network.runtime
    if of_file is not None and asked in (None, of_file.name):
        return of_file
    return "ideal" if asked is None else asked


def server_defaults(
    runtime: Runtime, gpus: list[GpuProfile], overrides: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the attributes that have the defaults of the server for these GPUs.

    A value in a network file that is equal to the default counts as one.
    """
    if runtime.name not in catalog.runtimes():
        return ()
    own = catalog.runtime(runtime.name, gpus=gpus)
    return tuple(
        each.name
        for each in fields(Runtime)
        if each.name not in overrides and getattr(own, each.name) == getattr(runtime, each.name)
    )


def meant_option(option: str, names: Collection[str]) -> str:
    """Suggest a name; a part of it is enough, as ``rate`` for ``rate_per_s``."""
    if option not in names:
        part = [name for name in names if name.startswith(f"{option}_")]
        return (
            f"did you mean {part[0]}?" if part else valid.did_you_mean(option, names).rstrip()
        )
    return ""


def to_model(model: ModelSource, weights: str | None) -> Model:
    """Return a model by name, from its files, or as it is."""
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
        is_path = not model or os.sep in model or model.endswith((".json", ".gguf"))
        if model in catalog.models() or not (is_path or Path(model).exists()):
            return catalog.model(model, weights or "fp16")
    if model == "" or not Path(model).exists():
        raise FileNotFoundError(
            errno.ENOENT, "no such file or folder, nor a model of that name", str(model)
        )
    return read_model(model, weights=weights)


def to_network_file(network: NetworkSource) -> NetworkFile:
    """Return a network from its file (TOML, or Helix's .ini), or as it is."""
    if isinstance(network, NetworkFile):
        return network
    if isinstance(network, Network):
        return NetworkFile(network=network)
    if isinstance(network, str | os.PathLike) and os.fspath(network).lower().endswith(".ini"):
        return NetworkFile(network=read_helix(network))
    return read_network_file(network)


def with_tier(network: NetworkFile, k: int, **changes: Any) -> NetworkFile:
    """Return a copy of a network in which tier `k` has other nodes or another link."""
    tiers = list(network.network.tiers)
    tiers[k] = replace(tiers[k], **changes)
    return replace(network, network=replace(network.network, tiers=tuple(tiers)))
