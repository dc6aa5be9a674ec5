"""Placement rules without search, for comparison.

They are the rules of systems in use, as far as these form pipelines without replicas inside a
stage. Each rule gives a pipeline the best split that its machines allow, unless its own rule
for the blocks is stated.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from hypsolve.problem.fleet import Machine
from hypsolve.problem.placement import PlacementProblem
from hypsolve.problem.placement_result import PlacementOutcome
from hypsolve.problem.solution import Status
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement.pattern_values import PatternValues
from hypsolve.solvers.placement.patterns import PatternSpace, Unit
from hypsolve.solvers.placement.values import Groups, Split, best_split, loaded, rate_of

MAX_ORDERS = 5_000
"""Orders of kinds of machines that `kinds_as_tiers` tries."""


def replica_per_machine(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Let every machine that has room for the whole model serve it alone.

    Each machine takes the degree of tensor parallelism with the largest rate, and is as many
    servers as it has groups of so many GPUs. Machines without room stay unused.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> result = hs.solve(problem, "replica_per_machine")
    >>> [str(pipeline) for pipeline in result.placement.pipelines]
    ['a 0:34', 'b 0:34']
    """
    splits: list[Split] = []
    for machine in problem.fleet.machines:
        best: list[Split] = []
        for degree in problem.degrees_of(machine):
            split = best_split(problem, ((machine.name, degree),))
            if split is not None:
                copies = [split] * (machine.node.gpus // degree)
                best = max(best, copies, key=_total)
        splits += best
    return _outcome(problem, splits, "no machine has room for the model")


def pipelines_of_one_kind(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Let GPUs of one kind and site form pipelines of equal length.

    Of all degrees and numbers of stages, those of the largest total rate are taken for each
    kind. GPUs that are left over stay unused. This is the baseline of separate pipelines of
    Helix [1]_, with the best number of stages instead of a given one.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    References
    ----------
    .. [1] Y. Mei et al., "Helix: Serving large language models over heterogeneous GPUs and
       network via max-flow", ASPLOS 2025.
    """
    kinds: dict[tuple[object, str], list[Machine]] = defaultdict(list)
    for machine in problem.fleet.machines:
        kinds[machine.node.gpu, machine.site].append(machine)
    splits: list[Split] = []
    for machines in kinds.values():
        best: list[Split] = []
        for degree in _degrees(problem, machines):
            groups = _groups(problem, machines, degree)
            for n in range(1, min(problem.max_stages, len(groups)) + 1):
                found = _split_all(problem, _in_turn(groups, n))
                best = max(best, found, key=_total)
        splits += best
    return _outcome(problem, splits, "no kind of GPUs has room for the model")


def memory_ring(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Let all machines form one pipeline, with blocks in proportion to their memory.

    The machine of the largest memory is first. If there are more machines than stages are
    allowed, those of the least memory stay unused. All GPUs of a machine that may compute as
    one are a stage. This is the default rule of exo [1]_.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    References
    ----------
    .. [1] exo labs, "exo", https://github.com/exo-explore/exo, its ring memory-weighted
       partitioning.
    """
    best: list[Split] = []
    for degree in [0, *_degrees(problem, problem.fleet.machines)]:
        stages = []
        for machine in problem.fleet.machines:
            degrees = problem.degrees_of(machine)
            if not degree or degree in degrees:
                stages.append((machine.name, degree or max(degrees)))
        memory = {name: _memory(problem, name, gpus) for name, gpus in stages}
        stages.sort(key=lambda stage: -memory[stage[0]])
        most = min(problem.max_stages, problem.model.n_blocks)
        stages = stages[:most]
        cuts = _proportional(problem.model.n_blocks, [memory[name] for name, _ in stages])
        split = rate_of(problem, stages, cuts)
        best = max(best, [] if split is None else [split], key=_total)
    return _outcome(problem, best, "blocks in proportion to memory do not fit")


def kinds_as_tiers(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Let each pipeline take one machine of each kind, in one order of kinds.

    Of all sets of kinds and orders, the one of the largest total rate is taken; of many kinds,
    short orders are tried first. Machines that are left over stay unused. This is what a
    deployment of ordered tiers can be on servers that know no replicas inside a stage.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s : float
    seed : int
        Not used: the rule is deterministic.
    """
    deadline = Deadline(time_limit_s)
    space = PatternSpace(problem)
    values = PatternValues(space)
    best: list[Split] = []
    for orders in _batches(_orders(space, problem.max_stages)):
        patterns = [p for order in orders for p in space.of_units(order)]
        if patterns:
            rates, _ = values.rates(patterns)
            copies = [space.copies(pattern.units) for pattern in patterns]
            at = int(np.argmax(rates * copies))
            groups = _named(space, patterns[at].units, copies[at])
            best = max(best, _split_all(problem, groups), key=_total)
        if deadline.has_passed():
            break
    return _outcome(problem, best, "no order of kinds has room for the model")


def equal_stages(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Cut the model into equal stages, and let GPUs of similar speed form pipelines.

    The number of stages is the smallest one for which the GPU of the least memory has room for
    a stage, and a larger one if that carries more. GPUs are sorted by their memory bandwidth.
    This is the rule of SWARM [1]_ for equal stages, without replicas inside a stage.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    References
    ----------
    .. [1] M. Ryabinin et al., "SWARM parallelism: Training large models can be surprisingly
       communication-efficient", ICML 2023.
    """
    best: list[Split] = []
    for degree in _degrees(problem, problem.fleet.machines):
        groups = _by_speed(problem, degree)
        for n in range(1, min(problem.max_stages, len(groups), problem.model.n_blocks) + 1):
            cuts = [round(k * problem.model.n_blocks / n) for k in range(n + 1)]
            found = [rate_of(problem, each, cuts) for each in _in_turn(groups, n)]
            if all(split is not None for split in found):
                best = max(best, [split for split in found if split], key=_total)
    return _outcome(problem, best, "equal stages do not fit on every GPU")


def greedy_fill(
    problem: PlacementProblem, *, time_limit_s: float, seed: int
) -> PlacementOutcome:
    """Fill pipelines with the fastest GPUs that are left, until each has room for the model.

    GPUs are sorted by their memory bandwidth; a pipeline is complete once some split of it
    carries requests. It takes machines as volunteers of Petals [1]_ join: one after the other,
    where blocks are missing.

    Parameters
    ----------
    problem : PlacementProblem
    time_limit_s, seed
        Not used: the rule takes no search.

    References
    ----------
    .. [1] A. Borzunov et al., "Petals: Collaborative inference and fine-tuning of large
       models", ACL 2023.
    """
    best: list[Split] = []
    for degree in _degrees(problem, problem.fleet.machines):
        splits: list[Split] = []
        pipeline: list[tuple[str, int]] = []
        for group in _by_speed(problem, degree):
            pipeline.append(group)
            split = best_split(problem, pipeline)
            if split is not None:
                splits.append(split)
            if split is not None or len(pipeline) == problem.max_stages:
                pipeline = []
        best = max(best, splits, key=_total)
    return _outcome(problem, best, "no GPUs in order of speed have room for the model")


def _outcome(
    problem: PlacementProblem, splits: Sequence[Split], why_none: str
) -> PlacementOutcome:
    if not splits:
        return PlacementOutcome(Status.UNKNOWN, message=why_none)
    return PlacementOutcome(Status.FEASIBLE, loaded(problem, splits))


def _total(splits: Sequence[Split]) -> float:
    return sum(split.requests_per_s for split in splits)


def _degrees(problem: PlacementProblem, machines: Sequence[Machine]) -> list[int]:
    return sorted({degree for machine in machines for degree in problem.degrees_of(machine)})


def _groups(
    problem: PlacementProblem, machines: Sequence[Machine], degree: int
) -> list[tuple[str, int]]:
    """Return the groups of so many GPUs of some machines, those of a machine together."""
    return [
        (machine.name, degree)
        for machine in machines
        if degree in problem.degrees_of(machine)
        for _ in range(machine.node.gpus // degree)
    ]


def _by_speed(problem: PlacementProblem, degree: int) -> list[tuple[str, int]]:
    machines = sorted(
        problem.fleet.machines, key=lambda m: (m.site, -m.node.gpu.bytes_per_s, m.name)
    )
    return _groups(problem, machines, degree)


def _in_turn(groups: Sequence[tuple[str, int]], n: int) -> list[Groups]:
    """Return pipelines of n groups each, in order; the rest is left over."""
    return [tuple(groups[at : at + n]) for at in range(0, len(groups) - n + 1, n)]


def _split_all(problem: PlacementProblem, pipelines: Sequence[Groups]) -> list[Split]:
    """Return the best splits of pipelines, equal ones solved once."""
    known: dict[tuple[object, ...], Split | None] = {}
    found = []
    for groups in pipelines:
        machines = [problem.fleet.machine(name) for name, _ in groups]
        same = tuple(groups[s - 1][0] == groups[s][0] for s in range(len(groups)))
        kinds = tuple((m.kind, gpus) for m, (_, gpus) in zip(machines, groups, strict=True))
        is_special = bool(problem.fleet.apart) or any(m.uplink is not None for m in machines)
        key = kinds, same, groups if is_special else ()
        if key not in known:
            known[key] = best_split(problem, groups)
        split = known[key]
        if split is not None:
            stages = zip(split.stages, groups, strict=True)
            moved = tuple(
                type(stage)(name, gpus, stage.start, stage.stop)
                for stage, (name, gpus) in stages
            )
            found.append(Split(moved, split.requests_per_s))
    return found


def _memory(problem: PlacementProblem, name: str, gpus: int) -> float:
    machine = problem.fleet.machine(name)
    return float(gpus * problem.runtime.usable_bytes(machine.node, problem.model))


def _proportional(n_blocks: int, weights: Sequence[float]) -> list[int]:
    """Return cuts in proportion to weights, with at least one block for each stage."""
    n, total = len(weights), sum(weights)
    cuts = [0]
    for k, part in enumerate(itertools.accumulate(weights), 1):
        cut = round(n_blocks * part / total)
        cuts.append(min(max(cut, cuts[-1] + 1), n_blocks - (n - k)))
    return cuts


def _orders(space: PatternSpace, max_stages: int) -> Iterator[tuple[Unit, ...]]:
    """Yield the orders of different units, short ones first."""
    orders = (
        order
        for n in range(1, max_stages + 1)
        for order in itertools.permutations(space.units, n)
    )
    return itertools.islice(orders, MAX_ORDERS)


def _batches(orders: Iterator[tuple[Unit, ...]]) -> Iterator[list[tuple[Unit, ...]]]:
    while batch := list(itertools.islice(orders, 500)):
        yield batch


def _named(space: PatternSpace, units: Sequence[Unit], copies: int) -> list[Groups]:
    """Return copies of a sequence of different units over machines with names."""
    left = {
        unit: [
            machine.name
            for machine in space.classes[unit[0]].machines
            for _ in range(machine.node.gpus // unit[1])
        ]
        for unit in units
    }
    return [tuple((left[unit][copy], unit[1]) for unit in units) for copy in range(copies)]


QUICK_RULES = (greedy_fill, pipelines_of_one_kind, replica_per_machine)
"""Rules whose answers exact methods look at beside their own."""
