"""Networks that a runtime of whole pipelines allows: replicas, rows of nodes, empty tiers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import BY_LAYER, ONE_PIPELINE
from hypsolve.planning.exporters.layout import numbered
from hypsolve.planning.platforms import platforms_of, supported
from hypsolve.planning.query import Solution
from hypsolve.problem.deployment import GpuProfile, Model, Node
from hypsolve.problem.instance import Objective

MAX_PIPELINES = 256  # networks of whole pipelines that are solved
MAX_REPLICAS = 4  # numbers of replicas up to this are all tried, then powers of 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A restricted network, and the tiers that must be empty in it."""

    network: NetworkFile
    empty: frozenset[str]


def candidates(solution: Solution, runtime: str) -> list[Candidate]:
    """Return the networks that a runtime of whole pipelines allows, or the network itself."""
    network, empty = _supported(solution, runtime)
    if runtime not in ONE_PIPELINE:
        return [Candidate(network, empty)]
    counts = _replica_counts(network, empty)
    found: list[Candidate] = []
    for n_replicas in counts:
        found += _pipelines(network, empty, n_replicas, max(MAX_PIPELINES // len(counts), 1))
    return found


def _supported(solution: Solution, runtime: str) -> tuple[NetworkFile, frozenset[str]]:
    """Return the network without nodes that the runtime does not run on, GPUs numbered.

    The tiers that have no other nodes keep them, and are named: they must be empty, as must
    those that may hold no block.
    """
    query, simulated = solution.query, solution.deployment.runtime
    network, empty = supported("nearest_plan", query.network, runtime, simulated)
    if empty and query.objective == Objective.P0:
        platforms = ", ".join(platforms_of(runtime, simulated))
        raise ValueError(
            f"nearest_plan: {runtime} runs on {platforms}, so tier {min(empty)!r} would have to"
            " be empty, but objective p0 has no empty stages"
        )
    numbers = numbered(query.network.network)
    tiers = tuple(
        replace(tier, nodes=tuple(replace(n, card=numbers[n.name]) for n in tier.nodes))
        for tier in network.network.tiers
    )
    most = network.max_blocks or (None,) * len(tiers)
    closed = {tier.name for tier, limit in zip(tiers, most, strict=True) if limit == 0}
    return replace(network, network=replace(network.network, tiers=tiers)), empty | closed


def _replica_counts(network: NetworkFile, empty: frozenset[str]) -> list[int]:
    """Return the numbers of replicas to try, the largest first.

    Every tier that must hold blocks has a node for each replica.
    """
    tiers = network.network.tiers
    sizes = [
        len(tier.nodes)
        for k, tier in enumerate(tiers)
        if tier.name not in empty and not may_be_empty(network, k)
    ]
    of_all = [len(tier.nodes) for tier in tiers if tier.name not in empty]
    largest = min(sizes) if sizes else max(of_all)
    counts = {n for n in range(1, largest + 1) if n <= MAX_REPLICAS or n & (n - 1) == 0}
    return sorted(counts | {largest}, reverse=True)


def may_be_empty(network: NetworkFile, k: int) -> bool:
    """Return whether the limits of a network allow that a tier holds no blocks."""
    return bool(network.min_blocks) and network.min_blocks[k] == 0


def _pipelines(
    network: NetworkFile, empty: frozenset[str], n_replicas: int, max_networks: int
) -> list[Candidate]:
    """Return the networks in which every stage has one node for each replica.

    If there are too many, a tier is only its fastest nodes, its largest nodes, or all nodes in
    a row. A tier with fewer nodes than replicas is empty.
    """
    tiers = network.network.tiers
    out = empty | {tier.name for tier in tiers if len(tier.nodes) < n_replicas}
    used = [k for k, tier in enumerate(tiers) if tier.name not in out]
    options = [list(_rows(network, k, n_replicas)) for k in used]
    if math.prod(map(len, options)) > max_networks:
        options = [_some(network, k, n_replicas) for k in used]
    if math.prod(map(len, options)) > max_networks:
        options = [rows[-1:] for rows in options]
    found = []
    for chosen in itertools.product(*options):
        each = network
        for k, row in reversed(list(zip(used, chosen, strict=True))):  # indices stay valid
            each = each.in_a_row(k, row)
        found.append(Candidate(each, frozenset(out)))
    return found


Row = tuple[tuple[Node, ...], ...]  # the nodes of each stage, one for each replica


def _rows(network: NetworkFile, k: int, n_replicas: int) -> Iterator[Row]:
    """Yield the stages that a tier can be in pipelines: one stage, or several in any order.

    Rows that differ only by nodes of one kind are yielded once. The nodes of a stage in a row
    are of one kind.
    """
    kinds = kinds_of(network.network.tiers[k].nodes)
    numbers = tuple(map(len, kinds))
    alone = (
        Counter(kind)
        for kind in itertools.combinations_with_replacement(range(len(kinds)), n_replicas)
    )
    single: Iterator[Row] = (
        (tuple(node for kind in counts for node in kinds[kind][: counts[kind]]),)
        for counts in alone
        if all(counts[kind] <= numbers[kind] for kind in counts)
    )
    several = rows_of_machines(network, k, n_replicas)
    if network.may_be_stages(k):
        groups = tuple(number // n_replicas for number in numbers)
        several = (
            _assigned(kinds, row, n_replicas)
            for length in range(2, sum(groups) + 1)
            for row in _sequences(groups, length)
        )
    return itertools.islice(itertools.chain(single, several), MAX_PIPELINES + 1)


def rows_of_machines(network: NetworkFile, k: int, n_replicas: int = 1) -> Iterator[Row]:
    """Yield the rows in which a pipeline has only groups of one machine, the shortest first.

    The links among other nodes of the tier may be unknown.
    """
    kinds = kinds_of(network.network.tiers[k].nodes)
    for kind, nodes in enumerate(kinds):
        for length in range(2, len(nodes) // n_replicas + 1):
            row = _assigned(kinds, (kind,) * length, n_replicas)
            if network.may_be_stages(k, row):
                yield row


def kinds_of(nodes: Sequence[Node]) -> list[list[Node]]:
    """Return the nodes by kind, the fastest kind first."""
    alike: dict[tuple[GpuProfile, int, float], list[Node]] = {}
    for node in nodes:
        alike.setdefault((node.gpu, node.gpus, node.usable_bytes), []).append(node)
    return sorted(alike.values(), key=lambda of_kind: -_bytes_per_s(of_kind[0]))


def _bytes_per_s(node: Node) -> float:
    return node.gpus * node.gpu.bytes_per_s


def _sequences(counts: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """Yield the sequences of kinds that take each kind at most as often as there are."""
    if length == 0:
        yield ()
        return
    for at, number in enumerate(counts):
        if number:
            left = (*counts[:at], number - 1, *counts[at + 1 :])
            yield from ((at, *rest) for rest in _sequences(left, length - 1))


def _assigned(kinds: list[list[Node]], row: tuple[int, ...], n_replicas: int) -> Row:
    """Return the nodes of a row of kinds: a pipeline takes neighbours of each kind."""
    n_uses = Counter(row)
    seen: Counter[int] = Counter()
    stages = []
    for kind in row:
        firsts = range(0, n_replicas * n_uses[kind], n_uses[kind])
        stages.append(tuple(kinds[kind][first + seen[kind]] for first in firsts))
        seen[kind] += 1
    return tuple(stages)


def _some(network: NetworkFile, k: int, n_replicas: int) -> list[Row]:
    nodes = network.network.tiers[k].nodes
    by_speed = sorted(nodes, key=lambda node: -_bytes_per_s(node))
    by_size = sorted(nodes, key=lambda node: -node.gpus * node.usable_bytes)
    rows: list[Row] = [(tuple(by_size[:n_replicas]),), (tuple(by_speed[:n_replicas]),)]
    if network.may_be_stages(k):
        kinds = kinds_of(nodes)
        places = {id(node): at for at, node in enumerate(nodes)}
        row = tuple(kind for kind, of in enumerate(kinds) for _ in range(len(of) // n_replicas))
        stages = _assigned(kinds, row, n_replicas)
        if len(stages) > 1:
            rows.append(tuple(sorted(stages, key=lambda stage: places[id(stage[0])])))
    else:
        rows += list(rows_of_machines(network, k, n_replicas))[-1:]
    return list(dict.fromkeys(rows))


def by_layer(
    solution: Solution, candidate: Candidate, runtime: str, max_choices: int
) -> list[NetworkFile]:
    """Return a network with a layer in every stage for each choice of empty tiers.

    If there are more than `max_choices`, only few are made: no tier is empty that need not be,
    the tiers that are empty in the plan, or all that may be but one tier of the query, if there
    is room for these choices. A runtime that needs no layer in a stage gets the network itself.
    """
    network, tiers = candidate.network, candidate.network.network.tiers
    must = tuple(k for k, tier in enumerate(tiers) if tier.name in candidate.empty)
    if runtime not in BY_LAYER:
        return [limited(network, must)] if must else [network]
    optional = [k for k in range(len(tiers)) if may_be_empty(network, k) and k not in must]
    unused = _empty_tiers(solution)
    as_planned = tuple(k for k in optional if tiers[k].name in unused)
    choices: list[tuple[int, ...]] = list(dict.fromkeys([(), as_planned]))
    alone = [
        tuple(k for k in optional if not _is_of(tier.name, tiers[k].name))
        for tier in solution.query.network.network.tiers
    ]
    if len(choices) + len(alone) <= max_choices:
        choices = list(dict.fromkeys([*choices, *alone]))
    if 2 ** len(optional) <= max_choices:
        sizes = range(len(optional) + 1)
        choices = [each for n in sizes for each in itertools.combinations(optional, n)]
    networks, errors = [], []
    for choice in choices:
        if len(must) + len(choice) < len(tiers):
            try:
                networks.append(
                    _with_layers(solution.query.model, network, runtime, (*must, *choice))
                )
            except ValueError as error:
                errors.append(error)
    if not networks:
        raise errors[0]
    return networks


def _is_of(tier: str, name: str) -> bool:
    """Return whether a tier by name is a tier of the query, or a stage of it in a row."""
    return name == tier or name.startswith(f"{tier}/")


def _empty_tiers(solution: Solution) -> set[str]:
    """Return the names of the tiers that hold no blocks in a split."""
    partition, tiers = solution.result.partition, solution.deployment.network.tiers
    if partition is None:
        return set()
    return {tier.name for k, tier in enumerate(tiers) if not partition.stage(k)}


def with_layers(network: NetworkFile, model: Model, server: str) -> NetworkFile:
    """Return a network in which every tier that may hold blocks gets a layer.

    A server that needs no layer in a stage gets the network itself.
    """
    if server not in BY_LAYER:
        return network
    most = network.max_blocks or (None,) * len(network.network.tiers)
    empty = tuple(k for k, limit in enumerate(most) if limit == 0)
    return _with_layers(model, network, server, empty)


def _with_layers(
    model: Model, network: NetworkFile, runtime: str, empty: tuple[int, ...]
) -> NetworkFile:
    """Return a copy of a network with some tiers empty, and a layer in each of the others."""
    names = [tier.name for tier in network.network.tiers]
    used = [name for k, name in enumerate(names) if k not in empty]
    pins = dict(network.pins)
    for layer, tier_name in ((0, used[0]), (model.n_blocks - 3, used[-1])):
        if pins.setdefault(layer, tier_name) != tier_name:
            raise ValueError(
                f"{runtime} needs layer {layer} in tier {tier_name!r}, but it is pinned to"
                f" {pins[layer]!r}"
            )
    return limited(replace(network, pins=pins), empty)


def limited(network: NetworkFile, empty: tuple[int, ...]) -> NetworkFile:
    """Return a copy of a network with some tiers empty, and a block in each of the others."""
    names = [tier.name for tier in network.network.tiers]
    left = {names[k] for k in empty}
    for block, tier_name in network.pins.items():
        if tier_name in left:
            raise ValueError(f"block {block!r} is pinned to {tier_name!r}, left empty")
    lowest = network.min_blocks or (None,) * len(names)
    highest = network.max_blocks or (None,) * len(names)
    return replace(
        network,
        min_blocks=tuple(0 if k in empty else lowest[k] or None for k in range(len(names))),
        max_blocks=tuple(0 if k in empty else highest[k] for k in range(len(names))),
    )
