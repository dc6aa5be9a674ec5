"""`evaluate_serving`: the request rate that one split carries in the fluid model.

The model is written down in `serving_stage_mode` and `serving_pipelines`, in plain Python and
from the definitions alone; the methods share no code with it. No request queues for admission,
and a rate is *carried* if every rule of the model holds. A fluid rate is no bound: a simulation
may serve more or less.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from hypsolve.problem import validation as valid
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_iteration import holders, largest
from hypsolve.problem.serving_pipelines import PipelineMode
from hypsolve.problem.serving_split import Latencies
from hypsolve.problem.serving_stage_mode import StageMode
from hypsolve.problem.solution import Partition, Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRate:
    """Fluid rate of a split.

    Attributes
    ----------
    fluid_requests_per_s : float
        The largest rate that the split carries in the fluid model; 0 if it carries none. Under
        the batching modes ``pipeline`` and ``serial``, nodes that hold all blocks are servers,
        whose rates are added; pipelines of unequal nodes in several stages all count as the
        slowest of them. `serving_pipelines` says how far this is from simulations.
    latencies : Latencies or None
        Latencies at this rate. None if it is 0.
    limit : str
        The rule that refuses a higher rate.
    price_per_request : float
        Price of the nodes of all tiers that host blocks, for the time of one request; inf if
        the rate is 0.
    """

    fluid_requests_per_s: float
    latencies: Latencies | None
    limit: str
    price_per_request: float


def evaluate_serving(instance: ServingInstance, partition: Partition) -> ServedRate:
    """Return the largest request rate that a split carries in the fluid model.

    Parameters
    ----------
    instance : ServingInstance
        Its objective decides whether targets count: ``throughput`` does not read them.
    partition : Partition

    Returns
    -------
    ServedRate

    Raises
    ------
    ValueError
        If the partition breaks a rule; see `check_serving`.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3]], block_kind=[0, 0], tiers=[[(0, 1e9)]], prompt_tokens=100,
    ...     output_tokens=10, max_num_seqs=20,
    ... )
    >>> rate = evaluate_serving(instance, hs.Partition((0, 2)))
    >>> rate.fluid_requests_per_s  # 20 requests in 10 iterations of 2 ms each
    1000.0
    >>> rate.limit
    'tier tier-0: an iteration takes too long'
    """
    for violation in check_serving(instance, partition):
        raise ValueError(f"evaluate_serving: {violation}")
    mode = _mode(instance, partition)
    rate = largest(lambda x: not mode.at(x)[0], mode.most())
    limit = mode.at(rate * (1 + 1e-9) if rate else 1e-9)[0]
    latencies = mode.at(rate)[1] if rate else None
    hourly = price_per_hour(instance, partition)
    price = hourly / 3600 / rate if rate else math.inf
    return ServedRate(
        fluid_requests_per_s=rate, latencies=latencies, limit=limit, price_per_request=price
    )


def refusal(instance: ServingInstance, partition: Partition, requests_per_s: float) -> str:
    """Return the rule by which a split does not carry a rate; empty if it does.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3]], block_kind=[0, 0], tiers=[[(0, 1e9)]], prompt_tokens=100,
    ...     output_tokens=10, max_num_seqs=20,
    ... )
    >>> refusal(instance, hs.Partition((0, 2)), 999)
    ''
    """
    for violation in check_serving(instance, partition):
        return str(violation)
    rate = valid.real("refusal", "requests_per_s", requests_per_s, strict=True)
    return _mode(instance, partition).at(rate)[0]


def latencies_at(
    instance: ServingInstance, partition: Partition, requests_per_s: float
) -> Latencies | None:
    """Return the mean latencies of a split at some rate; None if it does not carry the rate.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3]], block_kind=[0, 0], tiers=[[(0, 1e9)]], prompt_tokens=100,
    ...     output_tokens=10, max_num_seqs=20,
    ... )
    >>> latencies_at(instance, hs.Partition((0, 2)), 500).tpot_s
    0.002
    """
    for violation in check_serving(instance, partition):
        raise ValueError(f"latencies_at: {violation}")
    rate = valid.real("latencies_at", "requests_per_s", requests_per_s, strict=True)
    return _mode(instance, partition).at(rate)[1]


def price_per_hour(instance: ServingInstance, partition: Partition) -> float:
    """Return the price of all nodes of the tiers that host blocks, per hour."""
    return math.fsum(
        float(instance.price_per_hour[node])
        for k in range(instance.n_tiers)
        if len(partition.stage(k))
        for node in instance.nodes_of(k)
    )


def check_serving(instance: ServingInstance, partition: Partition) -> list[Violation]:
    """Return the rules that a partition breaks: blocks, pins, numbers of blocks, memory."""
    valid.of_type("check_serving", "instance", instance, ServingInstance)
    valid.of_type("check_serving", "partition", partition, Partition)
    cuts, limits = partition.cuts, instance.limits
    if len(cuts) != instance.n_tiers + 1 or cuts[-1] != instance.n_blocks:
        return [
            Violation(
                "blocks",
                f"{instance.n_tiers} tiers and {instance.n_blocks} blocks are needed, got the"
                f" cuts {cuts}",
            )
        ]
    found = [
        Violation("pinned", f"cut {k} must be from {low} to {high}, got {cut}")
        for k, (low, cut, high) in enumerate(
            zip(limits.cut_min.tolist(), cuts, limits.cut_max.tolist(), strict=True)
        )
        if not low <= cut <= high
    ]
    for k, (i, j) in enumerate(itertools.pairwise(cuts)):
        low, high = int(instance.min_blocks[k]), int(limits.max_blocks[k])
        name = instance.tier_names[k]
        if not low <= j - i <= high:
            found.append(
                Violation(
                    "blocks", f"tier {name}: {low} to {high} blocks are allowed, got {j - i}"
                )
            )
        if j > i and not holders(instance, k, i, j):
            found.append(
                Violation("memory", f"tier {name}: no node has room for blocks {i}:{j}")
            )
    return found


def _mode(instance: ServingInstance, partition: Partition) -> StageMode | PipelineMode:
    is_stage = instance.rules.batching is Batching.STAGE
    return StageMode(instance, partition) if is_stage else PipelineMode(instance, partition)
