"""What would help, or make it fit: changes of network and request, each solved again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.query import Ask, answer, model_of
from hypsolve.problem.deployment import Model, Node, Tier
from hypsolve.problem.result import Result
from hypsolve.problem.units import GIB
from hypsolve.solve import METHODS

MIN_GAIN = 1e-3  # of a change, to be told
LESS = {"fp16": ("int8", "int4"), "int8": ("int4",), "int4": ()}  # formats that take less
Kind = TypeVar("Kind")
MORE_GIB = (1, 4, 16)
MAX_GIB = 1024  # more on a node, to make it fit
SEARCH_S = 1.0  # for one change, where splits are simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of the network or the request, solved again.

    ``objective_s`` is what it comes to; ``gain`` is the share of the objective that it saves,
    nan where there was no plan before.
    """

    what: str
    objective_s: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to plan for.

    Of those with the same ``instead_of``, each is smaller or simpler than the next, which is
    told only where it helps more.
    """

    what: str
    instead_of: str = ""
    model: Model
    site: NetworkFile
    ask: Ask


def what_would_help(
    given: str | os.PathLike[str] | Model,
    weights: str | None,
    case: Case,
    before: Result,
) -> Iterator[tuple[Case, Change | None]]:
    """Try changes one by one; with each that helps, or makes it fit, what it comes to.

    Parameters
    ----------
    given, weights
        The model as `hypsolve.plan` got it.
    case : Case
        As it is.
    before : Result
        Its answer.
    """
    ask = case.ask
    if ask.method is not None and METHODS[ask.method].exact:  # the same optimum, at once
        ask = replace(ask, method=None if ask.is_simulated else "hypsplit_dp", options={})
    if ask.is_simulated:
        ask = replace(ask, time_limit_s=min(ask.time_limit_s, SEARCH_S))
    case = replace(case, ask=ask)
    before_s, min_s = before.objective_s, dict[str, float]()
    for other in _cases(given, weights, case, fits=before.partition is not None):
        _, again = answer(other.model, other.site, other.ask)
        if again.statistics.get("stopped"):
            raise KeyboardInterrupt
        value_s = again.objective_s
        to_beat_s = min(before_s, min_s.get(other.instead_of, math.inf))
        gain = 1 - value_s / before_s if math.isfinite(before_s) else math.nan
        change = Change(what=other.what, objective_s=value_s, gain=gain)
        helps = again.partition is not None and value_s < to_beat_s * (1 - MIN_GAIN)
        if helps and other.instead_of:
            min_s[other.instead_of] = value_s
        yield other, change if helps else None


def _cases(
    given: str | os.PathLike[str] | Model, weights: str | None, case: Case, *, fits: bool
) -> Iterator[Case]:
    if not isinstance(given, Model):
        for less in LESS[weights or "fp16"]:
            smaller = model_of(given, less)
            if smaller.weight_bytes < 0.99 * case.model.weight_bytes:  # else it is so already
                yield replace(case, what=f"weights in {less}", model=smaller)
    if not fits:
        yield from _smaller_requests(case)
    tiers = case.site.network.tiers
    limits = case.site.min_blocks or (None,) * len(tiers)
    taken = sum(1 if limit is None else limit for limit in limits)
    has_room = taken < case.model.n_blocks  # a tier has at least one block
    may_be_empty = len(tiers) > 1 and case.ask.objective != "p0"  # which has no empty stages
    for k, tier in enumerate(tiers):
        least = list(limits)
        if may_be_empty and least[k] != 0:
            least[k] = 0
            yield replace(
                case,
                what=f"no block on {tier.name!r} (min_blocks = 0), if that is better",
                site=replace(case.site, min_blocks=tuple(least)),
            )
        if fits:
            for gib in MORE_GIB:
                yield _with_memory(case, k, gib)
        else:
            yield from _min_memory(case, k)
        if len(tier.nodes) > 1 and case.site.may_be_stages(k):
            site = case.site.in_a_row(k, tier.nodes)
            yield replace(case, what=f"nodes of {tier.name!r} as stages in a row", site=site)
        if case.site.max_blocks and case.site.max_blocks[k] is not None:
            most = [*case.site.max_blocks[:k], None, *case.site.max_blocks[k + 1 :]]
            yield replace(
                case,
                what=f"no max_blocks on {tier.name!r}",
                site=replace(case.site, max_blocks=tuple(most)),
            )
        for what, node in _kinds(tier).items():
            more = replace(node, name=_new_name(case, "more"))
            yield replace(
                case,
                what=f"one more {what} in {tier.name!r}",
                instead_of=f"{what} {k}",
                site=_with_tier(case.site, k, replace(tier, nodes=(*tier.nodes, more))),
            )
            if has_room and (len(tiers) > 1 or case.site.inner_link(k) is not None):
                yield replace(_with_stage(case, k, more, what), instead_of=f"{what} {k}")
        if tier.link is not None:
            link = replace(tier.link, bytes_per_s=2 * tier.link.bytes_per_s)
            yield replace(
                case,
                what=f"twice the rate of the link from {tier.name!r}",
                site=_with_tier(case.site, k, replace(tier, link=link)),
            )


def _kinds(tier: Tier) -> dict[str, Node]:
    """A node of each kind in the tier, by what it is called."""
    kinds = {(node.gpu.name, node.usable_bytes): node for node in tier.nodes}
    names = [name for name, _ in kinds]
    return {
        name if names.count(name) == 1 else f"{name} with {n_bytes / GIB:.3g} GiB free": node
        for (name, n_bytes), node in kinds.items()
    }


def _smaller_requests(case: Case) -> Iterator[Case]:
    """As many sequences, and tokens of each, as fit."""
    ask = case.ask

    def fewer(n: int) -> Case:
        words = f"room for {n} sequences at once, not {ask.concurrency}"
        return replace(case, what=words, ask=replace(ask, concurrency=n))

    def shorter(tokens: int) -> Case:
        output = min(ask.output_tokens, tokens - 1)
        words = f"sequences of {tokens} tokens, not {ask.tokens}"
        smaller = replace(ask, prompt_tokens=tokens - output, output_tokens=output)
        return replace(case, what=words, ask=smaller)

    yield from _largest(fewer, 1, ask.concurrency)
    yield from _largest(shorter, 2, ask.tokens)


def _min_memory(case: Case, k: int) -> Iterator[Case]:
    """The fewest GiB more on each node of a tier that make it fit."""
    return _largest(lambda spared: _with_memory(case, k, MAX_GIB - spared), 0, MAX_GIB)


def _largest(at: Callable[[int], Case], low: int, end: int) -> Iterator[Case]:
    """The case of the largest number from `low` and below `end` that fits, if any does."""
    if end <= low or not _fits(at(low)):
        return
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (middle, end) if _fits(at(middle)) else (low, middle)
    yield at(low)


def _fits(case: Case) -> bool:
    quick = replace(case.ask, objective="bottleneck", method="hypsplit_dp", options={})
    return answer(case.model, case.site, quick)[1].partition is not None


def _with_memory(case: Case, k: int, gib: int) -> Case:
    tier = case.site.network.tiers[k]
    nodes = tuple(_grown(node, gib * GIB) for node in tier.nodes)
    return replace(
        case,
        what=f"{gib} GiB more on each node of {tier.name!r}",
        instead_of=f"memory {k}",
        site=_with_tier(case.site, k, replace(tier, nodes=nodes)),
    )


def _grown(node: Node, more_bytes: float) -> Node:
    has = node.gpu.memory_bytes if node.memory_bytes is None else node.memory_bytes
    return replace(node, memory_bytes=has + more_bytes)


def _with_stage(case: Case, k: int, node: Node, what: str) -> Case:
    """With the node as a tier of its own behind tier k; its link is as among nodes there."""
    site, tiers = case.site, list(case.site.network.tiers)
    link = site.inner_link(k) or tiers[k].link or tiers[k - 1].link
    behind = Tier(name=_new_name(case, "tier"), nodes=(node,), link=tiers[k].link)
    tiers[k : k + 1] = [replace(tiers[k], link=link), behind]
    return replace(
        case,
        what=f"one more {what} as a tier of its own behind {tiers[k].name!r}",
        site=replace(
            site,
            network=replace(site.network, tiers=tuple(tiers)),
            min_blocks=_with_gap(site.min_blocks, k + 1),
            max_blocks=_with_gap(site.max_blocks, k + 1),
            inner_links=_with_gap(site.inner_links, k + 1),
        ),
    )


def _with_gap(of_tiers: tuple[Kind | None, ...], at: int) -> tuple[Kind | None, ...]:
    return (*of_tiers[:at], None, *of_tiers[at:]) if of_tiers else ()


def _with_tier(site: NetworkFile, k: int, tier: Tier) -> NetworkFile:
    tiers = list(site.network.tiers)
    tiers[k] = tier
    return replace(site, network=replace(site.network, tiers=tuple(tiers)))


def _new_name(case: Case, word: str) -> str:
    tiers = case.site.network.tiers
    names = {name for tier in tiers for name in (tier.name, *(n.name for n in tier.nodes))}
    return next(name for i in range(len(names) + 1) if (name := f"{word}-{i}") not in names)
