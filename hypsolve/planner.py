"""`plan`: which node holds which layers, what binds, what it will serve, what would help."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve import catalog, evaluation
from hypsolve import validation as valid
from hypsolve.costs import to_instance
from hypsolve.deployment import Deployment, Model, Network, Node, Requests, Tier
from hypsolve.huggingface import read_model
from hypsolve.network_file import NetworkFile, read_network_file
from hypsolve.problem import Objective
from hypsolve.result import Result
from hypsolve.service import Service, predict
from hypsolve.solve import METHODS, solve
from hypsolve.units import GIB, finite_or_none, show_seconds

OBJECTIVES = ("bottleneck", "path", "p0")
LEAST_GAIN = 1e-3  # of a change, to be told
MOST_TOKENS = 2**31  # of one sequence, and of all that a node is to hold
LESS = {"fp16": ("int8", "int4"), "int8": ("int4",), "int4": ()}  # formats that take less


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What one node holds.

    Attributes
    ----------
    tier, node, gpu : str
    blocks : range
        Empty if the node is not used.
    weight_bytes, kv_bytes : float
        Of its blocks; KV cache for the sequences asked for.
    free_bytes : float
        What is left of its memory.
    time_s : float
        Seconds of the blocks for one request, alone on this node.
    is_used : bool
        Whether the blocks of its tier fit.
    """

    tier: str
    node: str
    gpu: str
    blocks: range
    weight_bytes: float
    kv_bytes: float
    free_bytes: float
    time_s: float
    is_used: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What a tier does: blocks, seconds, and how near it is to what binds.

    ``time_s`` and ``link_s`` are what the objective counts; ``share`` is their sum over the
    bottleneck's.
    """

    tier: str
    blocks: range
    time_s: float
    link_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the network or the request, solved again.

    ``objective_s`` is what it comes to, inf if nothing fits even so; ``gain`` is the share of
    the objective that it saves, nan where there was no plan before.
    """

    what: str
    objective_s: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `plan` returns.

    Attributes
    ----------
    model, network, prompt_tokens, output_tokens, rate_per_s, concurrency
        What was asked.
    result : Result
        The partition and the proof; see `hypsolve.solve`.
    nodes : tuple of NodePlan
        Every node of the network; empty if nothing fits.
    stages : tuple of StagePlan
        Every tier; empty if nothing fits.
    service : Service or None
        What it will serve; None if nothing fits.
    changes : tuple of Change
        What would help, or what would make it fit, each solved; the best first.
    """

    model: Model
    network: NetworkFile
    prompt_tokens: int
    output_tokens: int
    rate_per_s: float
    concurrency: int
    result: Result
    nodes: tuple[NodePlan, ...]
    stages: tuple[StagePlan, ...]
    service: Service | None
    changes: tuple[Change, ...]

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.result.partition is not None

    @property
    def binding(self) -> StagePlan:
        """The stage that binds, with its link."""
        return max(self.stages, key=lambda stage: stage.share)

    def blocks_in_words(self, blocks: range) -> str:
        """As in ``embedding, layers 0-12``; layers are counted from 0."""
        return blocks_in_words(blocks, self.model.n_blocks)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dictionaries (JSON takes it)."""
        return {
            "model": self.model.name,
            "network": self.network.network.name,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "rate_per_s": self.rate_per_s,
            "concurrency": self.concurrency,
            "result": self.result.to_dict(),
            "nodes": [
                {**_fields(node), "blocks": [node.blocks.start, node.blocks.stop]}
                for node in self.nodes
            ],
            "stages": [
                {**_fields(stage), "blocks": [stage.blocks.start, stage.blocks.stop]}
                for stage in self.stages
            ],
            "service": None if self.service is None else _fields(self.service),
            "changes": [_fields(change) for change in self.changes],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """What is wanted, whatever the model and the network."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    objective: str
    method: str
    time_limit_s: float
    seed: int
    options: dict[str, Any]

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


def plan(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    *,
    prompt_tokens: int = 512,
    output_tokens: int = 256,
    rate_per_s: float = 1.0,
    concurrency: int = 16,
    weights: str | None = None,
    objective: str = "bottleneck",
    method: str = "hypsplit_dp",
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Place a model on a network: the best split, its proof, what it serves, what would help.

    Parameters
    ----------
    model : str, path or Model
        A name of `hypsolve.models`; or a ``config.json``, or a folder, for
        `hypsolve.read_model`.
    network : path, Network or NetworkFile
        A TOML file for `hypsolve.read_network_file`.
    prompt_tokens, output_tokens : int
        Of every request.
    rate_per_s : float
        Requests per second, for what is predicted.
    concurrency : int
        Sequences that every node must have room for at once in its KV cache.
    weights : {"fp16", "int8", "int4"}, optional
        Format of the weights; default: as the model has them, fp16 for a name.
    objective : {"bottleneck", "path", "p0"}
        See `hypsolve.solve`.
    method : str
        One of `hypsolve.METHODS` that decides a partition.
    time_limit_s, seed, **options
        As in `hypsolve.solve`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        Naming the argument, or the file and what is wrong in it.
    OSError
        If a file is not there, or cannot be read.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> found = hs.plan("llama-3-8b", hs.Network(name="mine", tiers=(box,)), concurrency=8)
    >>> found.fits, found.stages[0].blocks
    (True, range(0, 34))
    """
    rate_per_s = valid.real("plan", "rate_per_s", rate_per_s, strict=True)
    tokens = (prompt_tokens, output_tokens)
    ask = _asked(tokens, concurrency, objective, method, time_limit_s, seed, options)
    chosen, site = _model(model, weights), _site(network)
    deployment, result = _solved(chosen, site, ask)
    service = None
    if (partition := result.partition) is not None:
        service = predict(deployment, partition, rate_per_s, site.price_per_hour, seed=seed)
    return Plan(
        model=chosen,
        network=site,
        prompt_tokens=ask.prompt_tokens,
        output_tokens=ask.output_tokens,
        rate_per_s=rate_per_s,
        concurrency=ask.concurrency,
        result=result,
        nodes=tuple(_nodes(deployment, result)) if service else (),
        stages=tuple(_stages(result)) if service else (),
        service=service,
        changes=_changes(model, weights, chosen, site, ask, result),
    )


def split(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    *,
    prompt_tokens: int = 512,
    output_tokens: int = 256,
    concurrency: int = 16,
    weights: str | None = None,
    objective: str = "bottleneck",
    method: str = "hypsplit_dp",
    time_limit_s: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> tuple[Deployment, Result]:
    """Split a model as `plan` does, and no more: what was solved, and the answer.

    Parameters, Raises
        As in `plan`.
    """
    tokens = (prompt_tokens, output_tokens)
    ask = _asked(tokens, concurrency, objective, method, time_limit_s, seed, options)
    return _solved(_model(model, weights), _site(network), ask)


def compare(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    methods: Sequence[str] | None = None,
    **options: Any,
) -> list[Result]:
    """Split a model by several methods.

    Parameters
    ----------
    model, network, **options
        As in `plan`, without the rate.
    methods : sequence of str, optional
        Names in `hypsolve.METHODS` that decide a partition; default: all.

    Returns
    -------
    list of Result
        In the order of the methods.
    """
    known = [name for name, method in METHODS.items() if method.decides == "partition"]
    for name in methods or ():
        valid.known("method that decides a partition", name, known)
    return [split(model, network, method=name, **options)[1] for name in methods or known]


def _asked(
    tokens: tuple[int, int],
    concurrency: int,
    objective: str,
    method: str,
    time_limit_s: float,
    seed: int,
    options: dict[str, Any],
) -> _Ask:
    ask = _Ask(
        prompt_tokens=_tokens("prompt_tokens", tokens[0]),
        output_tokens=_tokens("output_tokens", tokens[1]),
        concurrency=valid.whole("plan", "concurrency", concurrency, least=1),
        objective=valid.known("objective", objective, OBJECTIVES),
        method=method,
        time_limit_s=time_limit_s,
        seed=seed,
        options=options,
    )
    if ask.concurrency * ask.tokens > MOST_TOKENS:
        raise ValueError(
            "plan: concurrency * (prompt_tokens + output_tokens) must be at most"
            f" {MOST_TOKENS}, got {ask.concurrency * ask.tokens}"
        )
    return ask


def _tokens(field: str, value: int) -> int:
    if valid.whole("plan", field, value, least=1) > MOST_TOKENS:
        raise ValueError(f"plan: {field} must be at most {MOST_TOKENS}, got {value!r:.60}")
    return value


def _model(model: str | os.PathLike[str] | Model, weights: str | None) -> Model:
    if isinstance(model, Model):
        if weights is not None:
            raise ValueError(
                f"plan: weights must be None where the model is a Model, got {weights!r:.60}"
            )
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"plan: model must be a name, a path or a Model, got {model!r:.60}")
    if isinstance(model, str) and (model in catalog.models() or not Path(model).exists()):
        return catalog.model(model, weights or "fp16")
    return read_model(model, weights=weights)


def _site(network: str | os.PathLike[str] | Network | NetworkFile) -> NetworkFile:
    if isinstance(network, NetworkFile):
        return network
    if isinstance(network, Network):
        return NetworkFile(network=network)
    return read_network_file(network)


def _solved(model: Model, site: NetworkFile, ask: _Ask) -> tuple[Deployment, Result]:
    deployment = Deployment(
        model=model,
        network=site.network,
        requests=Requests(
            np.zeros(1), np.array([ask.prompt_tokens]), np.array([ask.output_tokens])
        ),
        max_resident_tokens=ask.concurrency * ask.tokens,
    )
    instance = to_instance(deployment, objective=ask.objective, **site.rules(model))
    result = solve(
        instance, ask.method, time_limit_s=ask.time_limit_s, seed=ask.seed, **ask.options
    )
    return deployment, result


def _nodes(deployment: Deployment, result: Result) -> Iterator[NodePlan]:
    instance, partition = result.instance, result.partition
    assert partition is not None and deployment.max_resident_tokens is not None
    model = deployment.model
    for k, tier in enumerate(deployment.network.tiers):
        blocks = partition.stage(k)
        of_tier = [model.blocks[b] for b in blocks]
        weights = model.stage_weight_bytes(of_tier)
        kv = sum(b.kv_bytes_per_token for b in of_tier) * deployment.max_resident_tokens
        holds = evaluation.can_hold(instance, k, blocks.start, blocks.stop)
        times_s = evaluation.node_stage_s(instance, k, blocks.start, blocks.stop)
        for node, is_used, time_s in zip(tier.nodes, holds, times_s, strict=True):
            used = bool(is_used and blocks)
            yield NodePlan(
                tier=tier.name,
                node=node.name,
                gpu=node.gpu.name,
                blocks=blocks if used else range(0),
                weight_bytes=float(weights) if used else 0.0,
                kv_bytes=float(kv) if used else 0.0,
                free_bytes=node.usable_bytes - (weights + kv if used else 0),
                time_s=float(time_s) if used else 0.0,
                is_used=used,
            )


def _stages(result: Result) -> Iterator[StagePlan]:
    instance, partition = result.instance, result.partition
    assert partition is not None
    rule = None if instance.objective is Objective.BOTTLENECK else "fastest"
    parts = []
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        time_s = evaluation.stage_s(instance, k, i, j, rule)
        is_last = k == instance.n_tiers - 1
        link_s = 0.0 if is_last else evaluation.link_s(instance, k, j)
        parts.append((time_s, link_s))
    worst = max(time_s + link_s for time_s, link_s in parts)
    for k, (time_s, link_s) in enumerate(parts):
        yield StagePlan(
            tier=instance.tier_names[k],
            blocks=partition.stage(k),
            time_s=time_s,
            link_s=link_s,
            share=(time_s + link_s) / worst if worst else 0.0,
        )


def _changes(
    given: str | os.PathLike[str] | Model,
    weights: str | None,
    model: Model,
    site: NetworkFile,
    ask: _Ask,
    result: Result,
) -> tuple[Change, ...]:
    """Try changes one by one; those that help, or make it fit, the best first."""
    before_s = result.objective_s
    if METHODS[result.method].exact:  # the same optimum, at once
        ask = replace(ask, method="hypsplit_dp", options={})
    found = []
    for what, other_model, other_site, other_ask in _candidates(
        given, weights, model, site, ask, fits=result.partition is not None
    ):
        _, again = _solved(other_model, other_site, other_ask)
        helps = again.partition is not None and again.objective_s < before_s * (1 - LEAST_GAIN)
        if helps:
            gain = 1 - again.objective_s / before_s if math.isfinite(before_s) else math.nan
            found.append(Change(what=what, objective_s=again.objective_s, gain=gain))
    return tuple(sorted(found, key=lambda change: change.objective_s))


Candidate = tuple[str, Model, NetworkFile, _Ask]


def _candidates(
    given: str | os.PathLike[str] | Model,
    weights: str | None,
    model: Model,
    site: NetworkFile,
    ask: _Ask,
    *,
    fits: bool,
) -> Iterator[Candidate]:
    if not isinstance(given, Model):
        for less in LESS[weights or "fp16"]:
            smaller = _model(given, less)
            if smaller.weight_bytes < 0.99 * model.weight_bytes:  # else it is so already
                yield f"weights in {less}", smaller, site, ask
    if not fits:
        most = _largest_concurrency(model, site, ask)
        if most:
            fewer = replace(ask, concurrency=most)
            yield (
                f"room for {most} sequences at once, not {ask.concurrency}",
                model,
                site,
                fewer,
            )
    tiers = site.network.tiers
    may_be_empty = len(tiers) > 1 and ask.objective != "p0"  # which has no empty stages
    for k, tier in enumerate(tiers if may_be_empty else ()):
        least = list(site.least_blocks or (None,) * len(tiers))
        if least[k] != 0:
            least[k] = 0
            yield (
                f"no block on {tier.name!r}, if that is better", model,
                replace(site, least_blocks=tuple(least)), ask,
            )  # fmt: skip
    for k, tier in enumerate(tiers):
        for gib in (1, 4, 16):
            more = [_with_memory(node, gib * GIB) for node in tier.nodes]
            yield (
                f"{gib} GiB more on each node of {tier.name!r}", model,
                _with_tier(site, k, replace(tier, nodes=tuple(more))), ask,
            )  # fmt: skip
        for node in {node.gpu.name: node for node in tier.nodes}.values():
            names = {n.name for each in tiers for n in each.nodes}
            name = next(f"more-{i}" for i in range(len(names) + 1) if f"more-{i}" not in names)
            nodes = (*tier.nodes, replace(node, name=name))
            yield (
                f"one more {node.gpu.name} in {tier.name!r}", model,
                _with_tier(site, k, replace(tier, nodes=nodes)), ask,
            )  # fmt: skip
        if tier.link is not None:
            link = replace(tier.link, bytes_per_s=2 * tier.link.bytes_per_s)
            yield (
                f"twice the rate of the link from {tier.name!r}", model,
                _with_tier(site, k, replace(tier, link=link)), ask,
            )  # fmt: skip


def _largest_concurrency(model: Model, site: NetworkFile, ask: _Ask) -> int:
    """The most sequences that fit at once, fewer than asked for; 0: not even one."""

    def fits(concurrency: int) -> bool:
        _, result = _solved(model, site, replace(ask, concurrency=concurrency))
        return result.partition is not None

    low, high = 0, ask.concurrency
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low == 0 or fits(low) else 0


def _with_memory(node: Node, more_bytes: float) -> Node:
    has = node.gpu.memory_bytes if node.memory_bytes is None else node.memory_bytes
    return replace(node, memory_bytes=has + more_bytes)


def _with_tier(site: NetworkFile, k: int, tier: Tier) -> NetworkFile:
    tiers = list(site.network.tiers)
    tiers[k] = tier
    return replace(site, network=replace(site.network, tiers=tuple(tiers)))


def blocks_in_words(blocks: range, n_blocks: int) -> str:
    """As in ``embedding, layers 0-12``; layers are counted from 0."""
    words = []
    if not blocks:
        return "none"
    if blocks.start == 0:
        words.append("embedding")
    first, last = max(blocks.start, 1) - 1, min(blocks.stop, n_blocks - 1) - 2
    if first == last:
        words.append(f"layer {first}")
    elif first < last:
        words.append(f"layers {first}-{last}")
    if blocks.stop == n_blocks:
        words.append("head")
    return ", ".join(words)


def proof_in_words(result: Result) -> str:
    """What is known of the split, in a sentence."""
    value = show_seconds(result.objective_s)
    if str(result.status) == "optimal":
        return f"proved optimal: no split has a {result.instance.objective} below {value}"
    if result.bound_s > 0:
        return (
            f"not proved optimal: no split has a {result.instance.objective} below"
            f" {show_seconds(result.bound_s)}, this one has {value} (gap {result.gap:.2%})"
        )
    return f"nothing proved: this split has a {result.instance.objective} of {value}"


def _fields(record: Any) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {
        name: finite_or_none(value) if isinstance(value, float) else value
        for name, value in values.items()
    }
