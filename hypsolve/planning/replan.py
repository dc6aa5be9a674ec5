"""`replan`: the best split that moves at most so many blocks of an earlier plan."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.plan import Plan
from hypsolve.planning.planner import split
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment, Model, Network
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import finite_or_none
from hypsolve.solvers.partition.stage_tables import cost_table

OBJECTIVES = ("bottleneck", "path")
ASKED = ("prompt_tokens", "output_tokens", "concurrency")  # of a plan, asked again
MAX_BLOCKS = 10**6  # of a model in a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Where blocks are: tier of each by its name, and the blocks of each node.

    ``model`` is the name of the model, ``asked`` what the plan was made for, as options of
    `hypsolve.plan`; empty: not known.
    """

    tier_of_block: tuple[str, ...]
    blocks_of_node: Mapping[str, range]
    model: str = ""
    asked: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """What `replan` returns.

    Attributes
    ----------
    instance : Instance
    partition : Partition or None
        The best with at most `max_moves` blocks moved, and with the fewest of those as good;
        None: nothing fits with so few.
    objective_s : float
        Its objective; inf without one.
    n_moved, max_moves : int
    moved_bytes : dict
        Weights that each node must load, by name; those that load nothing are not in it.
    frontier : tuple of (int, float)
        Every number of moves that lets the objective fall, with the least that it can be.
    min_moves : int or None
        The fewest with which anything fits; None: nothing does, whatever moves.
    reason : str
        Why there is no partition; empty if there is one.
    deployment : Deployment
        What was split.
    concurrency : int
    """

    instance: Instance
    partition: Partition | None
    objective_s: float
    n_moved: int
    max_moves: int
    moved_bytes: Mapping[str, int]
    frontier: tuple[tuple[int, float], ...]
    min_moves: int | None
    reason: str
    deployment: Deployment
    concurrency: int

    def to_dict(self) -> dict[str, Any]:
        """Everything but the instance, as plain numbers and lists (JSON takes it).

        With stages and nodes as a plan has them: `replan` can go on from it.
        """
        stages, nodes = [], []
        if self.partition is not None:
            for k, tier in enumerate(self.deployment.network.tiers):
                blocks = self.partition.stage(k)
                at = [blocks.start, blocks.stop]
                stages.append({"tier": tier.name, "blocks": at})
                if blocks:
                    holds = evaluation.can_hold(self.instance, k, *at)
                    held = zip(tier.nodes, holds, strict=True)
                    nodes += [{"node": node.name, "blocks": at} for node, has in held if has]
        requests = self.deployment.requests
        return {
            "instance": self.instance.name,
            "model": self.deployment.model.name,
            "prompt_tokens": int(requests.prompt_tokens[0]),
            "output_tokens": int(requests.output_tokens[0]),
            "concurrency": self.concurrency,
            "objective": str(self.instance.objective),
            "cuts": None if self.partition is None else list(self.partition.cuts),
            "objective_s": finite_or_none(self.objective_s),
            "n_moved": self.n_moved,
            "max_moves": self.max_moves,
            "moved_bytes": dict(self.moved_bytes),
            "frontier": [list(point) for point in self.frontier],
            "min_moves": self.min_moves,
            "reason": self.reason,
            "stages": stages,
            "nodes": nodes,
        }


def replan(
    model: str | os.PathLike[str] | Model,
    network: str | os.PathLike[str] | Network | NetworkFile,
    before: str | os.PathLike[str] | Plan | Before,
    *,
    max_moves: int,
    objective: str = "bottleneck",
    **options: Any,
) -> Replan:
    """Split a model anew after the network has changed, moving few blocks; exact.

    A block moves if the tier of its name in the new network is not the one it was in. The
    minimum is exact: dynamic programming over tiers, cuts and moves, O(n_tiers * n_blocks**2 *
    max_moves).

    Parameters
    ----------
    model, network
        As in `hypsolve.plan`.
    before : path, Plan or Before
        The plan so far; a file is what ``hypsolve plan --json`` printed, or ``replan --json``.
    max_moves : int
    objective : {"bottleneck", "path"}
    **options
        As in `hypsolve.plan`, without rate and method. Default: prompt, output and concurrency
        as in the plan so far.

    Returns
    -------
    Replan

    Raises
    ------
    ValueError, TypeError
        Naming the argument, or the file and what is wrong in it; or if the plan is of another
        model, or of other formats of its weights.
    OSError
        If a file is not there, or cannot be read.
    """
    max_moves = valid.whole("replan", "max_moves", max_moves)
    valid.known("objective", objective, OBJECTIVES)
    old = _before(before)
    asked = {**old.asked, **options}
    deployment, result = split(model, network, objective=objective, **asked)
    instance = result.instance
    if old.model and old.model != deployment.model.name:
        raise ValueError(
            f"replan: the plan so far must be of {deployment.model.name!r}, got one of"
            f" {old.model!r}"
        )
    if len(old.tier_of_block) != instance.n_blocks:
        raise ValueError(
            f"replan: the plan must be of {instance.n_blocks} blocks as the model has, got"
            f" {len(old.tier_of_block)}"
        )
    moves = _moves(instance, old)
    best, cuts = _search(instance, moves, min(max_moves, instance.n_blocks))
    frontier = _falling(best)
    partition, objective_s, n_moved = None, math.inf, 0
    if frontier:
        n_moved = frontier[-1][0]
        partition = Partition(tuple(int(c) for c in cuts[n_moved]))
        objective_s = evaluation.evaluate(instance, partition)
    min_moves, reason = frontier[0][0] if frontier else None, ""
    if not frontier:
        enough = np.flatnonzero(np.isfinite(_search(instance, moves, instance.n_blocks)[0]))
        reason = result.message
        if enough.size:
            min_moves = int(enough[0])
            reason = f"at least {min_moves} blocks must move, not {max_moves}"
    return Replan(
        instance=instance,
        partition=partition,
        objective_s=objective_s,
        n_moved=n_moved,
        max_moves=max_moves,
        moved_bytes={} if partition is None else _loads(deployment, instance, partition, old),
        frontier=frontier,
        min_moves=min_moves,
        reason=reason,
        deployment=deployment,
        concurrency=asked.get("concurrency", 16),
    )


def partition_in(plan: str | os.PathLike[str], instance: Instance) -> Partition:
    """The split of a plan in a file, for an instance whose tiers have the same names.

    Raises
    ------
    ValueError
        If the file holds no plan, or the instance does not allow the split.
    """
    old, tiers = _before(plan), instance.tier_names
    of_block = [tiers.index(name) if name in tiers else -1 for name in old.tier_of_block]
    if -1 in of_block or len(of_block) != instance.n_blocks:
        raise ValueError(
            f"{plan}: must split {instance.n_blocks} blocks over {', '.join(tiers)}, got"
            f" {len(of_block)} over {', '.join(dict.fromkeys(old.tier_of_block))}"
        )
    if of_block != sorted(of_block):
        raise ValueError(f"{plan}: tiers must be in the order {', '.join(tiers)}")
    cuts = np.searchsorted(of_block, np.arange(len(tiers) + 1), side="left")
    partition = Partition(tuple(cuts.tolist()))
    broken = evaluation.check(instance, partition)
    if broken:
        raise ValueError(f"{plan}: the split does not fit: {broken[0]}")
    return partition


def _moves(instance: Instance, old: Before) -> IntArray:
    """How many of blocks i:j were not in tier k: shape (n_tiers, n_cuts, n_cuts), j >= i."""
    names = np.array(old.tier_of_block)
    away = np.array([names != tier for tier in instance.tier_names]).astype(np.int64)
    sums = np.concatenate([np.zeros((len(away), 1), np.int64), away.cumsum(axis=1)], axis=1)
    return sums[:, None, :] - sums[:, :, None]


def _search(instance: Instance, moves: IntArray, most: int) -> tuple[Array, IntArray]:
    """Least objective, and its cuts, with exactly m moves counted, for m = 0..most."""
    n_tiers, n_cuts = instance.n_tiers, instance.n_blocks + 1
    cost_s = cost_table(instance)
    is_sum = instance.objective is Objective.PATH
    best = np.full((n_tiers + 1, n_cuts, most + 1), math.inf)
    last = np.zeros((n_tiers + 1, n_cuts, most + 1), np.int64)
    best[0, 0, 0] = 0.0
    for k in range(n_tiers):
        for i, j in np.argwhere(np.isfinite(cost_s[k])).tolist():
            moved = int(moves[k, i, j])
            if moved > most:
                continue
            before = best[k, i, : most + 1 - moved]
            value = before + cost_s[k, i, j] if is_sum else np.maximum(before, cost_s[k, i, j])
            better = value < best[k + 1, j, moved:]
            best[k + 1, j, moved:][better] = value[better]
            last[k + 1, j, moved:][better] = i
    cuts = np.zeros((most + 1, n_tiers + 1), np.int64)
    for m in range(most + 1):
        left, cuts[m, n_tiers] = m, instance.n_blocks
        if math.isinf(best[n_tiers, -1, m]):
            continue
        for k in range(n_tiers, 0, -1):
            j = cuts[m, k]
            cuts[m, k - 1] = last[k, j, left]
            left -= int(moves[k - 1, cuts[m, k - 1], j])
    return best[n_tiers, -1], cuts


def _falling(best: Array) -> tuple[tuple[int, float], ...]:
    """(moves, objective) wherever one more move lets it fall."""
    points: list[tuple[int, float]] = []
    for m, value in enumerate(best.tolist()):
        if math.isfinite(value) and (not points or value < points[-1][1] * (1 - 1e-12)):
            points.append((m, value))
    return tuple(points)


def _loads(
    deployment: Deployment, instance: Instance, partition: Partition, old: Before
) -> dict[str, int]:
    """Weights of the blocks that each node holds now and did not before."""
    loads = {}
    for k, tier in enumerate(deployment.network.tiers):
        stage = partition.stage(k)
        holds = evaluation.can_hold(instance, k, stage.start, stage.stop)
        for node, held in zip(tier.nodes, holds, strict=True):
            had = old.blocks_of_node.get(node.name, range(0))
            new = [b for b in stage if b not in had] if held else []
            n_bytes = sum(deployment.model.blocks[b].weight_bytes for b in new)
            if n_bytes:
                loads[node.name] = n_bytes
    return loads


def _before(given: str | os.PathLike[str] | Plan | Before) -> Before:
    if isinstance(given, Before):
        return given
    if isinstance(given, Plan):
        if not given.fits:
            raise ValueError("replan: the plan before must have a partition, got one without")
        return _of(given.to_dict(), "replan")
    path = checked_path("replan", given)
    document = parse_json(path, read_bytes(path, MAX_BYTES))
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must be what `hypsolve plan --json` prints")
    return _of(document, str(path))


def _of(document: Mapping[str, Any], owner: str) -> Before:
    stages, nodes = document.get("stages"), document.get("nodes")
    tiers: list[str] = []
    try:
        for stage in _list(stages):
            first, end = _range(stage)
            if first != len(tiers):
                raise ValueError
            if end > MAX_BLOCKS:
                raise ValueError
            tiers += [str(stage["tier"])] * (end - first)
        blocks_of_node = {str(node["node"]): range(*_range(node)) for node in _list(nodes)}
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{owner}: must have the stages and nodes of a plan, as `hypsolve plan --json`"
            " prints them"
        ) from None
    if not tiers:
        raise ValueError(f"{owner}: the plan before must have a partition, got one without")
    answer = document.get("result", document)
    cuts = answer.get("cuts") if isinstance(answer, dict) else None
    ends = [0, *(stage["blocks"][1] for stage in _list(stages))]
    if cuts not in (None, ends):
        raise ValueError(f"{owner}: cuts must be those of stages, {ends}, got {cuts!r:.60}")
    model = document.get("model", "")
    return Before(
        tier_of_block=tuple(tiers),
        blocks_of_node=blocks_of_node,
        model=valid.text(owner, "model", model) if model else "",
        asked={key: document[key] for key in ASKED if key in document},
    )


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _range(entry: Mapping[str, Any]) -> tuple[int, int]:
    first, end = entry["blocks"]
    if type(first) is not int or type(end) is not int or not 0 <= first <= end:
        raise ValueError
    return first, end
