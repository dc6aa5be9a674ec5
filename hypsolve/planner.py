"""`plan`: which node holds which layers, what binds, what it will serve, what would help."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from hypsolve import evaluation
from hypsolve import validation as valid
from hypsolve.ask import Ask, answer, model_of, site_of
from hypsolve.changes import Case, Change, what_would_help
from hypsolve.deployment import Deployment, Model, Network
from hypsolve.latency_search import METHOD as SIMULATED
from hypsolve.latency_search import Tell, with_bound
from hypsolve.network_file import NetworkFile
from hypsolve.problem import Objective
from hypsolve.result import Result
from hypsolve.service import Service, predict, serve, under_load
from hypsolve.solve import METHODS, options_of
from hypsolve.trace import Trace
from hypsolve.units import finite_or_none

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    Attributes
    ----------
    tier : str
    blocks : range
    time_s : float
        Of all its nodes together under ``bottleneck``, else of the quickest one.
    link_s : float
        To the next tier: the bytes under ``bottleneck``, else with all round trips.
    share : float
        Under ``bottleneck`` of the stage that binds, the sum of both over its sum. Else of the
        objective (under ``mean_latency``: of one request alone), so that shares sum to 1.
    """

    tier: str
    blocks: range
    time_s: float
    link_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The best split for another objective, simulated like this one.

    Attributes
    ----------
    objective : str
    cuts : tuple of int
    latency_mean_s, most_requests_per_s : float
        As in `Service`.
    """

    objective: str
    cuts: tuple[int, ...]
    latency_mean_s: float
    most_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `plan` returns.

    Attributes
    ----------
    model, network, prompt_tokens, output_tokens, rate_per_s, concurrency, objective, seed
        What was asked.
    result : Result
        The partition and the proof; see `hypsolve.solve`.
    nodes : tuple of NodePlan
        Every node of the network; empty if nothing fits.
    stages : tuple of StagePlan
        Every tier; empty if nothing fits.
    service : Service or None
        What it will serve; None if nothing fits.
    alternatives : tuple of Alternative
        Other splits: those for the bottleneck, the path and P0.
    changes : tuple of Change
        What would help, or what would make it fit, each solved; the best first.
    stopped : str
        What is missing or not finished because of a KeyboardInterrupt; empty if nothing is.
    deployment : Deployment
        What was split: model, network, one request, and the KV cache to leave room for.
    """

    model: Model
    network: NetworkFile
    prompt_tokens: int
    output_tokens: int
    rate_per_s: float
    concurrency: int
    objective: str
    seed: int
    result: Result
    nodes: tuple[NodePlan, ...]
    stages: tuple[StagePlan, ...]
    service: Service | None
    alternatives: tuple[Alternative, ...]
    changes: tuple[Change, ...]
    stopped: str
    deployment: Deployment

    def __str__(self) -> str:
        from hypsolve.plan_text import text

        return text(self)

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.result.partition is not None

    @property
    def binding(self) -> StagePlan:
        """The stage that binds, or has the largest share, with its link."""
        return max(self.stages, key=lambda stage: stage.share)

    def simulate(self, *, record_visits: bool = False) -> Trace:
        """Serve the requests again that `service` is about.

        Raises
        ------
        ValueError
            If nothing fits.
        """
        if self.result.partition is None:
            raise ValueError(f"plan: no split to simulate, {self.result.status}")
        rng = np.random.default_rng(self.seed)
        served = under_load(self.deployment, self.rate_per_s, rng)
        return serve(served, self.result.partition, record_visits=record_visits)

    def plot(self, kind: str, ax: Axes | None = None) -> Axes:
        """Draw the plan; needs matplotlib.

        Parameters
        ----------
        kind : {"network", "stages", "pareto", "latency", "gantt", "changes"}
            Layers and memory of each node; seconds of each stage; this split among those that
            no other beats in both throughput and latency; simulated latencies; simulated
            iterations of the nodes; what would help.
        ax : matplotlib Axes, optional
            Default: of a new figure.

        Returns
        -------
        matplotlib Axes
            ``plot(kind).figure.savefig("plan.png", dpi=200)`` writes it.

        Raises
        ------
        ValueError
            If matplotlib is missing, or there is nothing to draw.
        """
        from hypsolve.plan_figures import plot

        return plot(self, kind, ax)

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
            "objective": self.objective,
            "seed": self.seed,
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
            "alternatives": [
                {**_fields(other), "cuts": list(other.cuts)} for other in self.alternatives
            ],
            "changes": [_fields(change) for change in self.changes],
            "stopped": self.stopped,
        }


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
    method: str | None = None,
    time_limit_s: float = 60.0,
    seed: int = 0,
    with_changes: bool = True,
    tell: Tell | None = None,
    **options: Any,
) -> Plan:
    """Place a model on a network: the best split, its proof, what it serves, what would help.

    Parameters
    ----------
    model : str, path or Model
        A name of `hypsolve.models`; or a ``config.json``, or a folder, for
        `hypsolve.read_model`.
    network : path, Network or NetworkFile
        A TOML file for `hypsolve.read_network_file`, or an .ini for `hypsolve.read_helix`.
    prompt_tokens, output_tokens : int
        Of every request.
    rate_per_s : float
        Requests per second, for what is predicted, and for ``mean_latency``.
    concurrency : int
        Sequences that every node must have room for at once in its KV cache.
    weights : {"fp16", "int8", "int4"}, optional
        Format of the weights; default: as the model has them, fp16 for a name.
    objective : {"bottleneck", "path", "mean_latency", "p0"}
        See `hypsolve.solve`. ``mean_latency`` is that of requests at this rate, simulated token
        by token; the proof is then about these very requests.
    method : str, optional
        One of `hypsolve.METHODS` that decides a partition. Default: the exact ``hypsplit_dp``;
        for ``mean_latency`` a search by simulation. With a method there, its split for the
        bottleneck is simulated.
    time_limit_s, seed, **options
        As in `hypsolve.solve`.
    with_changes : bool
        Whether to try changes, and to simulate the splits for other objectives.
    tell : callable, optional
        Gets a line on what is being done, from time to time.

    Returns
    -------
    Plan
        KeyboardInterrupt ends what is under way: the plan then has what there is, and says so
        in ``stopped``.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, or the file and what is wrong in it.
    OSError
        If a file is not there, or cannot be read.
    KeyboardInterrupt
        If it comes before there is a split.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> found = hs.plan("llama-3-8b", hs.Network(name="mine", tiers=(box,)), concurrency=8)
    >>> found.fits, found.stages[0].blocks
    (True, range(0, 34))
    """
    takes = options_of(METHODS[method].function) if method in METHODS else set()
    mine = [name for name, p in signature(plan).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        meant = difflib.get_close_matches(option, mine, 1, 0.5)
        if meant and takes is not None and option not in takes:
            raise TypeError(f"plan: unknown option {option!r}; did you mean {meant[0]}?")
    ask = Ask(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        rate_per_s=rate_per_s,
        concurrency=concurrency,
        objective=objective,
        method=method,
        time_limit_s=time_limit_s,
        seed=seed,
        options=options,
    )
    tell = tell or (lambda line: None)
    case = Case(what="as it is", model=model_of(model, weights), site=site_of(network), ask=ask)
    stopped = ""
    try:
        deployment, result = answer(case.model, case.site, ask, tell)
        if result.statistics.get("stopped"):
            stopped = "the search was stopped: this is the best so far"
    except KeyboardInterrupt:
        if method is None or not METHODS[method].exact:
            raise
        stopped = f"{method} was stopped: this is hypsplit_dp's split"
        quick = replace(ask, method="hypsplit_dp", options={})
        deployment, result = answer(case.model, case.site, quick)
    service = None
    alternatives: list[Alternative] = []
    changes: list[Change] = []
    try:
        if result.partition is not None:
            tell("simulating requests")
            prices = case.site.price_per_hour
            service = predict(deployment, result.partition, rate_per_s, prices, seed=seed)
        if with_changes and not stopped:
            if result.partition is not None:
                for alternative in _alternatives(case, result):
                    tell(f"simulated: the split for {alternative.objective}")
                    alternatives.append(alternative)
            for other, change in what_would_help(model, weights, case, result):
                tell(f"tried: {other.what}")
                changes += [change] if change else []
    except KeyboardInterrupt:
        stopped = stopped or "not all changes were tried"
    if stopped and service is None and result.partition is not None:
        stopped += "; what it serves was not simulated"
    return Plan(
        model=case.model,
        network=case.site,
        prompt_tokens=ask.prompt_tokens,
        output_tokens=ask.output_tokens,
        rate_per_s=float(rate_per_s),
        concurrency=ask.concurrency,
        objective=objective,
        seed=seed,
        result=result,
        nodes=tuple(_nodes(deployment, result)) if result.partition else (),
        stages=tuple(_stages(result)) if result.partition else (),
        service=service,
        alternatives=tuple(alternatives),
        changes=tuple(sorted(changes, key=lambda change: change.objective_s)),
        stopped=stopped,
        deployment=deployment,
    )


def split(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    *,
    prompt_tokens: int = 512,
    output_tokens: int = 256,
    rate_per_s: float = 1.0,
    concurrency: int = 16,
    weights: str | None = None,
    objective: str = "bottleneck",
    method: str | None = None,
    time_limit_s: float = 60.0,
    seed: int = 0,
    tell: Tell | None = None,
    **options: Any,
) -> tuple[Deployment, Result]:
    """Split a model as `plan` does, and no more: what was solved, and the answer.

    Parameters, Raises
        As in `plan`.
    """
    ask = Ask(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        rate_per_s=rate_per_s,
        concurrency=concurrency,
        objective=objective,
        method=method,
        time_limit_s=time_limit_s,
        seed=seed,
        options=options,
    )
    return answer(model_of(model, weights), site_of(network), ask, tell)


def compare(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    methods: Sequence[str] | None = None,
    **options: Any,
) -> Iterator[Result]:
    """Split a model by several methods, one after the other.

    Parameters
    ----------
    model, network, **options
        As in `plan`.
    methods : sequence of str, optional
        Names in `hypsolve.METHODS` that decide a partition; default: all, for ``mean_latency``
        the search by simulation before them.

    Yields
    ------
    Result
        In the order of the methods; a search that KeyboardInterrupt ended is the last. A bound
        on the mean latency that one has proved holds for those after it.
    """
    known = comparable(options.get("objective", ""))
    for name in methods or ():
        valid.known("method that decides a partition", name, known)
    bound_s = 0.0
    for name in methods or known:
        method = None if name == SIMULATED else name
        _, result = split(model, network, method=method, **options)
        if SIMULATED in known and result.partition is not None:
            bound_s = max(bound_s, result.bound_s)
            result = with_bound(result, bound_s)
        yield result
        if result.statistics.get("stopped"):
            return


def comparable(objective: str) -> list[str]:
    """Names that `compare` takes, in its order."""
    first = [SIMULATED] if objective == Objective.MEAN_LATENCY else []
    return first + [n for n, method in METHODS.items() if method.decides == "partition"]


def _alternatives(case: Case, result: Result) -> Iterator[Alternative]:
    ask, seen = case.ask, [result.partition]
    for objective in ("bottleneck", "path", "p0"):
        knows_no_empty_tier = objective == "p0" and 0 in case.site.least_blocks
        if objective == ask.objective or knows_no_empty_tier:
            continue
        asked = replace(ask, objective=objective, method=None, options={})
        deployment, other = answer(case.model, case.site, asked)
        if other.partition in seen or other.partition is None:
            continue
        seen.append(other.partition)
        service = predict(deployment, other.partition, ask.rate_per_s, seed=ask.seed)
        yield Alternative(
            objective=objective,
            cuts=other.partition.cuts,
            latency_mean_s=service.latency_mean_s,
            most_requests_per_s=service.most_requests_per_s,
        )


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
    is_bottleneck = instance.objective is Objective.BOTTLENECK
    parts = []
    for k in range(instance.n_tiers):
        i, j = partition.cuts[k], partition.cuts[k + 1]
        time_s = evaluation.stage_s(instance, k, i, j, None if is_bottleneck else "fastest")
        link_s = 0.0
        if k < instance.n_tiers - 1 and is_bottleneck:
            link_s = evaluation.link_s(instance, k, j)
        elif k < instance.n_tiers - 1:
            link_s = float(instance.reference_transfer_kind_s[k, instance.cut_kind[j]])
        parts.append((time_s, link_s))
    counted = [time_s + link_s for time_s, link_s in parts]
    if instance.objective is Objective.P0:  # of the stages the largest alone
        largest = max(range(len(parts)), key=lambda k: parts[k][0])
        counted = [link_s + (k == largest) * time_s for k, (time_s, link_s) in enumerate(parts)]
    whole = max(counted) if is_bottleneck else sum(counted)
    for k, (time_s, link_s) in enumerate(parts):
        yield StagePlan(
            tier=instance.tier_names[k],
            blocks=partition.stage(k),
            time_s=time_s,
            link_s=link_s,
            share=counted[k] / whole if whole else 0.0,
        )


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


def _fields(record: Any) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {
        name: finite_or_none(value) if isinstance(value, float) else value
        for name, value in values.items()
    }
