"""Named scenarios: a network of ``networks/*.toml``, a model, and seeded requests."""

import inspect
import numbers
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hypsolve import catalog
from hypsolve.problem import validation as valid
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import CostModel, Deployment, Model, Network, Requests
from hypsolve.problem.instance import Instance, Objective
from hypsolve.simulation.workloads import WORKLOAD_MAX_TOKENS, WORKLOADS
from instances import network, networks

SCENARIOS = networks()
FREE_SHARE = 0.1
"""Memory that nodes leave to a server's activations and graphs, as a share (vLLM's default)."""


def scenario_network(name: str) -> Network:
    """Return a named network as scenarios use it: nodes keep `FREE_SHARE` of memory free."""
    return network(name, free_share=FREE_SHARE)


def scenario(
    name: str,
    model: str | Model = "llama-3-8b",
    *,
    n_requests: int = 100,
    seed: int = 0,
    load: float = 0.7,
    rate: float | None = None,
    lengths: str = "synthetic",
    weights: str = "fp16",
    objective: Objective | str = Objective.BOTTLENECK,
    cost_model: CostModel | str = CostModel.ROOFLINE,
    max_resident_tokens: int | None = None,
    **options: object,
) -> Instance:
    """Put a model and random requests on a named network.

    Parameters
    ----------
    name : str
        Name in `SCENARIOS`.
    model : str or Model
        A name of the catalogue, or a model of your own.
    n_requests, seed : int
    load : float
        Arrival rate divided by `capacity_per_s`. Below 1, queues form and drain; inf lets all
        requests arrive at 0.
    rate : float, optional
        Requests per second, in place of `load`.
    lengths : str
        Distribution of token numbers: ``synthetic``, ``azure_conversation`` or ``azure_code``;
        see `hypsolve.simulation.workloads`.
    weights : str
        Format of a catalogue model: a key of `hypsolve.weight_formats`, or ``int4``.
    objective : Objective or str
    cost_model : CostModel or str
    max_resident_tokens : int, optional
        Tokens for which every block reserves KV cache, and length of the longest request. The
        default belongs to the workload, so that feasibility does not depend on the seed.
    **options
        Keyword arguments of `hypsolve.to_instance`: stage_rule, allow_empty, overlap,
        link_cost, pinned, min_blocks, max_blocks, name.

    Returns
    -------
    Instance
        Equal arguments give equal instances.

    Examples
    --------
    >>> scenario("campus", "phi-3-medium", n_requests=20)
    <Instance 'phi-3-medium @ campus': 20 requests, 42 blocks, 3 tiers, 8 nodes, bottleneck>
    """
    valid.known("scenario", name, SCENARIOS)
    return instance_on(
        scenario_network(name),
        model_of(model, weights),
        n_requests=n_requests,
        rng=np.random.default_rng(valid.whole("scenario", "seed", seed)),
        load=load,
        rate=rate,
        lengths=lengths,
        objective=objective,
        cost_model=cost_model,
        max_resident_tokens=max_resident_tokens,
        **options,
    )


def deployment(
    name: str,
    model: str | Model = "llama-3-8b",
    *,
    n_requests: int = 100,
    seed: int = 0,
    load: float = 0.7,
    rate: float | None = None,
    lengths: str = "synthetic",
    weights: str = "fp16",
    cost_model: CostModel | str = CostModel.ROOFLINE,
    max_resident_tokens: int | None = None,
) -> Deployment:
    """Return the deployment of a `scenario`, for `hypsolve.simulate`.

    Its requests are those of the scenario with equal arguments. Nodes that batch serve more
    than `capacity_per_s`: at load 1 queues need not grow.
    """
    valid.known("scenario", name, SCENARIOS)
    drawn = _at_rate_one(
        scenario_network(name),
        model_of(model, weights),
        n_requests,
        np.random.default_rng(valid.whole("scenario", "seed", seed)),
        lengths,
        cost_model,
        max_resident_tokens,
    )
    requests = drawn.requests
    with np.errstate(over="ignore"):
        arrival_s = requests.arrival_s / _rate_per_s(to_instance(drawn), load, rate)
    return replace(
        drawn, requests=Requests(arrival_s, requests.prompt_tokens, requests.output_tokens)
    )


def instance_on(
    network: Network,
    model: Model,
    *,
    n_requests: int,
    rng: np.random.Generator,
    load: float = 0.7,
    rate: float | None = None,
    lengths: str = "synthetic",
    max_resident_tokens: int | None = None,
    cost_model: CostModel | str = CostModel.ROOFLINE,
    **options: object,
) -> Instance:
    """Draw an instance of a model on a network; parameters are as in `scenario`."""
    check_options("scenario", options)
    drawn = _at_rate_one(
        network, model, n_requests, rng, lengths, cost_model, max_resident_tokens
    )
    instance = to_instance(drawn, **options)
    with np.errstate(over="ignore"):  # the instance refuses an overflow
        return instance.replace(
            arrival_s=instance.arrival_s / _rate_per_s(instance, load, rate)
        )


def _at_rate_one(
    network: Network,
    model: Model,
    n_requests: int,
    rng: np.random.Generator,
    lengths: str,
    cost_model: CostModel | str,
    max_resident_tokens: int | None,
) -> Deployment:
    """Draw a deployment whose requests arrive once a second on average."""
    valid.whole("scenario", "n_requests", n_requests, minimum=1)
    max_resident_tokens = resident_tokens(lengths, max_resident_tokens)
    return Deployment(
        model=model,
        network=network,
        requests=WORKLOADS[lengths](n_requests, 1.0, rng, max_tokens=max_resident_tokens),
        cost_model=cost_model,
        max_resident_tokens=max_resident_tokens,
    )


def _rate_per_s(instance: Instance, load: float, rate: float | None) -> float:
    if rate is None:
        rate = _positive("load", load) * capacity_per_s(instance)
    return _positive("rate", rate)


def _positive(field: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"scenario: {field} must be a number, got {value!r}")
    if not value > 0:  # inf is a burst
        raise ValueError(f"scenario: {field} must be positive, got {value!r}")
    return float(value)


def model_of(model: str | Model, weights: str) -> Model:
    """Return a model of the catalogue by its name; a `Model` is returned unchanged."""
    if isinstance(model, str):
        return catalog.model(model, weights)
    if not isinstance(model, Model):
        raise TypeError(f"scenario: model must be a name or a Model, got {model!r:.60}")
    return model


def resident_tokens(lengths: str, given: int | None) -> int:
    """Return the tokens of the KV reserve: `given`, or the workload's longest request."""
    valid.known("lengths", lengths, WORKLOADS)
    if given is None:
        return WORKLOAD_MAX_TOKENS[lengths]
    return valid.whole("scenario", "max_resident_tokens", given, minimum=1)


def check_options(owner: str, options: Iterable[str]) -> None:
    """Raise TypeError for an option that `hypsolve.to_instance` does not take."""
    known = list(inspect.signature(to_instance).parameters)[1:]
    for option in options:
        if option not in known:
            hint = valid.did_you_mean(option, [*inspect.signature(scenario).parameters, *known])
            raise TypeError(
                f"{owner}: unknown option {option!r}; {hint}it also takes {', '.join(known)}"
            )


def capacity_per_s(instance: Instance) -> float:
    """Return the request rate that the slowest tier of the best partition serves.

    A tier serves 1 / (pooled stage time of the mean request): all nodes that can hold the stage
    take part in proportion to their speed. Links, pinned blocks and limits per tier are
    ignored. If no partition fits, memory is ignored, too, so that infeasible instances have
    arrivals.
    """
    period_s = best_period_s(instance)
    if np.isinf(period_s):
        period_s = best_period_s(
            instance.replace(block_bytes=np.zeros(instance.n_blocks), tied_bytes=0.0)
        )
    return 1 / period_s if period_s > 0 else np.inf


def best_period_s(instance: Instance) -> float:
    """Return the smallest bottleneck over all partitions, without links; inf if none fits.

    The stage rule is ``pooled``. The recurrence over (tier, cut) is quadratic in the blocks.
    """
    least = 0 if instance.allow_empty else 1
    prefix_bytes = np.concatenate([[0.0], np.cumsum(instance.block_bytes)])
    prefix_seconds = np.concatenate(
        [np.zeros((instance.n_classes, 1)), np.cumsum(instance.reference_s, axis=1)], axis=1
    )
    best = np.full(instance.n_blocks + 1, np.inf)
    best[0] = 0.0
    for tier in range(instance.n_tiers):
        nodes = instance.nodes_of(tier)
        capacity, kind = instance.node_bytes[nodes], instance.node_class[nodes]
        worst = np.full_like(best, np.inf)
        for end in range(least, instance.n_blocks + 1):
            first = end + 1 - least
            need = prefix_bytes[end] - prefix_bytes[:first]
            if end == instance.n_blocks:
                need[0] -= instance.tied_bytes
            time_s = prefix_seconds[kind, end, None] - prefix_seconds[kind, :first]
            stage_s = _pooled(time_s, need <= capacity[:, None])
            stage_s[end:] = 0.0  # an empty stage
            worst[end] = np.maximum(best[:first], stage_s).min()
        best = worst
    return float(best[-1])


def _pooled(time_s: NDArray[np.float64], holds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return 1 / sum(1 / t) over the nodes (axis 0) that hold a stage; inf where none does."""
    with np.errstate(divide="ignore"):
        return 1 / np.where(holds, 1 / time_s, 0.0).sum(axis=0)
