"""Read what an earlier plan says: where the blocks are, its query, the nodes that it uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hypsolve import catalog
from hypsolve.planning.plan import FORMAT, VERSION, Plan
from hypsolve.planning.query import RATES, ModelSource, PlanQuery, Solution, instance_of
from hypsolve.planning.request_mix import LENGTHS, mix_from
from hypsolve.planning.runtime_networks import limited, may_be_empty
from hypsolve.planning.runtime_restrictions import restricting_server
from hypsolve.problem import evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Node, Tier
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Runtime, runtime_from_dict
from hypsolve.problem.solution import Outcome, Partition, Status
from hypsolve.solve import Method, solve

OBJECTIVES = ("bottleneck", "path", *RATES)
OF_LATENCY = ("mean_latency", "p0")  # of earlier plans; `path` is the nearest objective here
KEPT = (
    "prompt_tokens", "output_tokens", "concurrency", "rate_per_s", "users", "think_time_s",
    "ttft_slo_s", "tpot_slo_s", "runtime", "weights", "tensor_parallel",
    "costs",
)  # fmt: skip
"""Attributes of the query of an earlier plan that are kept."""
MAX_BLOCKS = 10**6  # of a model in a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the blocks are before a new plan is made.

    Attributes
    ----------
    tier_of_block : tuple of str
        Name of the tier of each block.
    blocks_of_node : mapping
        Blocks of each node, by name of the node.
    gpus_of_node : mapping
        GPUs of each node, which compute as one, by name of the node; some may not be known.
    nodes_of_tier : mapping
        Nodes of each tier, in the order of the pipelines; empty if they are not known.
    known_nodes : frozenset of str
        These nodes, and those that were left out; empty if they are not known.
    model : str
        Name of the model; empty if it is not known.
    query : mapping
        Arguments of `hypsolve.plan` that made the plan; empty if they are not known.
    """

    tier_of_block: tuple[str, ...]
    blocks_of_node: Mapping[str, range]
    nodes_of_tier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known_nodes: frozenset[str] = frozenset()
    model: str = ""
    query: Mapping[str, Any] = field(default_factory=dict)
    gpus_of_node: Mapping[str, int] = field(default_factory=dict)

    def former(self, node: str) -> str:
        """Return the name that a node had before: its own, unless its machine changed.

        The first group of GPUs of a machine, ``NAME/0``, is the machine itself where all its
        GPUs are one group, or where it has a single one.
        """
        group = "/0"
        alias = node.removesuffix(group) if node.endswith(group) else node + group
        return (
            alias if node not in self.blocks_of_node and alias in self.blocks_of_node else node
        )

    def held_by(self, node: str) -> range:
        """Return the blocks that a node held before; none if it is new."""
        return self.blocks_of_node.get(self.former(node), range(0))

    def was_in(self, instance: Instance) -> NDArray[np.bool_]:
        """Return whether each block was in each tier of an instance: shape (n_tiers, n_blocks).

        It was if the tier has the name of its tier before, or a node that held it: stages of
        nodes in a row, and GPUs of a machine, change the names of tiers.
        """
        names = np.array(self.tier_of_block)
        found = np.array([names == tier for tier in instance.tier_names])
        for k, node in zip(instance.node_tier, instance.node_names, strict=True):
            held = self.held_by(node)
            found[k, held.start : held.stop] = True
        return found


def query_in(plan: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the arguments of `hypsolve.plan` that made the plan in a file."""
    return dict(placement(plan).query)


def with_arguments(kept: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an earlier plan with others in their place.

    Requests of different lengths replace lengths of all requests, and a rate replaces users;
    and the other way round.
    """
    found = {**kept, **arguments}
    if "requests" in arguments:
        found = {key: found[key] for key in found if key not in LENGTHS or key in arguments}
    elif any(name in arguments for name in LENGTHS):
        found.pop("requests", None)
    return one_load(
        found, {key: value for key, value in arguments.items() if value is not None}
    )


def one_load(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments in which the load of an earlier plan gives way to one that is given.

    Parameters
    ----------
    kept : mapping
        Arguments of the earlier plan, with those that are given in their place.
    given : mapping
        A rate, or users, replace users and rate of the earlier plan.

    Examples
    --------
    >>> one_load({"users": 400, "rate_per_s": 2.0, "seed": 1}, {"rate_per_s": 2.0})
    {'rate_per_s': 2.0, 'seed': 1}
    """
    gone = {"rate_per_s"} if kept.get("users") is not None else set()
    if "users" in given or "rate_per_s" in given:
        gone = {"users", "think_time_s", "rate_per_s"}
    return {name: kept[name] for name in kept if name not in gone or name in given}


def query_of_plan(
    plan: str | os.PathLike[str] | Placement, query: PlanQuery, owner: str = ""
) -> PlanQuery:
    """Restrict a query to the nodes and pipelines of an earlier plan.

    Parameters
    ----------
    plan : path or Placement
    query : PlanQuery
        Its network has the nodes of the plan. The query itself is returned if the plan states
        no nodes, or if the runtime has no pipelines.
    owner : str
        What messages begin with; the path by default.

    Raises
    ------
    ValueError
        If the network lacks a node that holds blocks in the plan.
    """
    old, owner = placement(plan), owner or str(plan)
    if not old.nodes_of_tier or not restricting_server(query.runtime):
        return query
    network, held = query.network, set(old.tier_of_block)
    closed = set()
    for k, tier in reversed(list(enumerate(query.network.network.tiers))):
        stages = [
            _nodes_named(owner, tier, nodes)
            for name, nodes in old.nodes_of_tier.items()
            if name in held and name in (tier.name, f"{tier.name}/{nodes[0]}")
        ]
        if len(stages) > 1 and not network.may_be_stages(k, stages):
            raise ValueError(
                f"{owner}: tier {tier.name!r} of the network must have a link `inner` and no"
                f" limits, for the plan has {len(stages)} stages in it"
            )
        if stages:
            network = network.in_a_row(k, stages)
        elif may_be_empty(network, k):
            closed.add(tier.name)
    names = [tier.name for tier in network.network.tiers]
    empty = tuple(k for k, name in enumerate(names) if name in closed)
    return query.on(limited(network, empty) if empty else network)


def continues(old: Placement, query: PlanQuery) -> bool:
    """Return whether a query is for the server of an earlier plan, and for the same nodes."""
    runtime = old.query.get("runtime")
    server = restricting_server(query.runtime)
    nodes = {node.name for tier in query.network.network.tiers for node in tier.nodes}
    return (
        bool(server)
        and isinstance(runtime, Runtime)
        and runtime.server == server
        and bool(old.nodes_of_tier)
        and nodes.union(query.left_out, query.too_small) == old.known_nodes
    )


def _nodes_named(owner: str, tier: Tier, names: Sequence[str]) -> tuple[Node, ...]:
    """Return nodes of a tier in the order of their names."""
    known = {node.name: node for node in tier.nodes}
    lacking = [name for name in names if name not in known]
    if lacking:
        raise ValueError(
            f"{owner}: tier {tier.name!r} of the network must have the nodes of the plan, lacks"
            f" {', '.join(lacking)}"
        )
    return tuple(known[name] for name in names)


def weights_in(planned: str, model: ModelSource) -> str | None:
    """Return the format of weights in the name of a planned model of the catalogue.

    Plans before version 3 state no format, but ``llama-3-8b-q4_k_m`` names one.
    """
    name = catalog.name_of(model) if isinstance(model, str) else ""
    suffix = planned.removeprefix(f"{name}-") if planned.startswith(f"{name}-") else ""
    return suffix if name and suffix in catalog.weights_choices() else None


def partition_in(plan: str | os.PathLike[str], instance: Instance) -> Partition:
    """Read the partition of a plan file, for an instance whose tiers have the same names.

    Raises
    ------
    ValueError
        If the file holds no plan, or the split breaks a rule of the instance.
    """
    old, tiers = placement(plan), instance.tier_names
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


def solution_of_plan(plan: str | os.PathLike[str], query: PlanQuery) -> Solution:
    """Return the split of the plan in a file as a solution of a query.

    Raises
    ------
    ValueError
        As `partition_in` does.
    """
    instance = instance_of(query)
    partition = partition_in(plan, instance)

    def earlier_plan(instance: Instance, *, time_limit_s: float, seed: int) -> Outcome:
        return Outcome(Status.FEASIBLE, partition)

    return Solution(
        query=query,
        deployment=query.deployment(),
        instance=instance,
        result=solve(instance, Method(earlier_plan, "partition")),
    )


def placement(given: str | os.PathLike[str] | Plan | Placement) -> Placement:
    """Return where the blocks are in an earlier plan, or in the file of one."""
    if isinstance(given, Placement):
        return given
    if isinstance(given, Plan):
        if not given.fits:
            raise ValueError("replan: the earlier plan must have a partition, got one without")
        return _of(given.to_dict(), "replan")
    path = checked_path("replan", given)
    document = parse_json(path, read_bytes(path, MAX_BYTES))
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must be the output of `hypsolve plan --json`")
    _check_version(path, document)
    return _of(document, str(path))


def _check_version(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse other formats; a document of version 1 states neither format nor version."""
    kind, version = document.get("format", FORMAT), document.get("version", 1)
    if kind != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {kind!r:.60}")
    if version not in range(1, VERSION + 1) or isinstance(version, bool):
        raise ValueError(f"{path}: version must be from 1 to {VERSION}, got {version!r:.60}")


def _of(document: Mapping[str, Any], owner: str) -> Placement:
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
            f"{owner}: must have the stages and nodes of a plan, as in the output of"
            " `hypsolve plan --json`"
        ) from None
    if not tiers:
        raise ValueError(f"{owner}: the earlier plan must have a partition, got one without")
    result = document.get("result", document)
    cuts = result.get("cuts") if isinstance(result, dict) else None
    ends = [0, *(stage["blocks"][1] for stage in _list(stages))]
    if cuts not in (None, ends):
        raise ValueError(f"{owner}: cuts must agree with the stages, {ends}, got {cuts!r:.60}")
    model = document.get("model", "")
    return Placement(
        tier_of_block=tuple(tiers),
        blocks_of_node=blocks_of_node,
        nodes_of_tier=_nodes_of_tier(stages, nodes),
        known_nodes=frozenset(blocks_of_node).union(
            *(_list(document.get(key, [])) for key in ("left_out", "too_small", "unused_nodes"))
        ),
        model=valid.text(owner, "model", model) if model else "",
        query=_kept(owner, document),
        gpus_of_node={
            str(node["node"]): node["n_gpus"]
            for node in _list(nodes)
            if type(node.get("n_gpus")) is int
        },
    )


def _nodes_of_tier(stages: Any, nodes: Any) -> dict[str, tuple[str, ...]]:
    """Return the nodes of each stage; empty if a node states no tier."""
    if not all("tier" in node for node in nodes):
        return {}
    names: dict[str, tuple[str, ...]] = {str(stage["tier"]): () for stage in stages}
    for node in nodes:
        names[str(node["tier"])] = (*names.get(str(node["tier"]), ()), str(node["node"]))
    return names


def _kept(owner: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the earlier query that the document states."""
    kept = {key: document[key] for key in KEPT if document.get(key) is not None}
    if (objective := document.get("objective")) is not None:
        valid.known(f"objective of {owner}", objective, (*OBJECTIVES, *OF_LATENCY))
        kept["objective"] = "path" if objective in OF_LATENCY else objective
    if (mix := mix_from(owner, document)) is not None:
        kept["requests"] = mix
        for name in LENGTHS:  # the means of the requests
            kept.pop(name, None)
    runtime = kept.get("runtime")
    if isinstance(runtime, dict):
        kept["runtime"] = runtime_from_dict(owner, runtime)
    elif runtime is not None:
        raise TypeError(f"{owner}: runtime must be a table, got {runtime!r:.60}")
    return kept


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _range(entry: Mapping[str, Any]) -> tuple[int, int]:
    first, end = entry["blocks"]
    if type(first) is not int or type(end) is not int or not 0 <= first <= end:
        raise ValueError
    return first, end
