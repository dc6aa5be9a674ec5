"""`plan`: which node holds which layers, what binds, what it will serve, what would help."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.forecast import predict
from hypsolve.planning.query import Ask, answer, model_of, site_of
from hypsolve.planning.simulation_search import METHOD as SIMULATED
from hypsolve.planning.simulation_search import Tell, with_bound
from hypsolve.planning.what_if import Case, Change, what_would_help
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model, Network
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result
from hypsolve.solve import METHODS, options_of

if TYPE_CHECKING:
    pass

from hypsolve.planning.plan import Alternative, NodePlan, Plan, StagePlan


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
        knows_no_empty_tier = objective == "p0" and 0 in case.site.min_blocks
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
            max_requests_per_s=service.max_requests_per_s,
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
