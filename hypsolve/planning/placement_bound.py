"""`placement_bound`: requests per second that no placement and no schedule exceeds.

The rate is the number of requests over the seconds from the first arrival to the last delivery.
No steady state and no fluid model are used.

*Stages.* Let L be the number of layers of the kind that the model has most of. A pipeline puts
all of them on at most S groups of GPUs. Let a group g of kind u (a kind of machine and a degree
of tensor parallelism) hold k of them. What this group computes for n requests in T seconds is
at least what it would compute if its k layers were the whole model. So n / T is at most
``R_u(k)``, the bound of `hypsolve.throughput_bound` on a model of k layers on this group alone:
its busy seconds, its batches and its memory are those of fewer blocks, and hops are left out.
R_u(k) is 0 if k layers do not fit. It does not rise with k, so the value of a smaller k on a
grid is an upper bound, too.

*Pipelines.* A pipeline of rate x has ``R_u(k_g) >= x`` in each of its groups, so a group holds
at most ``k_u(x)`` layers, the largest k with R_u(k) >= x. If a GPU of a machine of kind m costs
c_m, its groups cost at least ``C(x)``, the least cost of at most S groups with the sum of
k_u(x) at least L: a knapsack cover, solved by a DP. For a range of rates from x to y, all
pipelines have at least ``C(x) / y`` cost per request per second. Let r be the largest y / C(x)
over all ranges.

*Placements.* The pipelines of a placement use at most G_m GPUs of each kind m. So the sum of
their rates is at most r times the cost of their GPUs, which is at most ``r * sum of c_m G_m``.
This holds for any costs; those that make it least are found by cutting planes: the DP yields
the pipeline with the largest rate per cost, and a linear program the next costs.

Rules that are left out (links, sites, pins, how groups are packed into machines) only make
placements worse. Targets are not used: within targets, less may be served.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hypsolve.bounds.throughput import throughput_bound
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment, Network, Tier
from hypsolve.problem.fleet import Machine
from hypsolve.problem.model import Block, Model
from hypsolve.problem.placement import DegreeRule, PlacementProblem
from hypsolve.solvers.backends.pulp import solve_pulp
from hypsolve.solvers.clock import NEVER, Deadline

N_COUNTS = 24  # numbers of layers for which rates of stages are computed, about
STEP = 1.01  # from a rate of the grid to the next one
RANGE = 1e4  # of rates on the grid
MAX_CUTS = 60
CLOSE = 1e-3  # relative improvement from which costs are made better
ROUNDING = 1e-9


class Unit(NamedTuple):
    """GPUs of a kind of machine that compute as one stage."""

    kind: int
    gpus: int
    counts: IntArray  # numbers of layers, rising
    rates: Array  # bound on requests per second of a stage with at least so many layers


def placement_bound(problem: PlacementProblem, deadline: Deadline = NEVER) -> float:
    """Return requests per second that no placement and no schedule exceeds.

    The proof is in the docstring of this module.

    Parameters
    ----------
    problem : PlacementProblem
        Its runtime gives batching mode and limits, and `max_stages` the longest pipeline. With
        a target, the bound holds, too, but it does not use it.
    deadline : Deadline, optional
        When it has passed, the bound is not improved further.

    Returns
    -------
    float
        0 if no pipeline fits; inf if the deadline passed before a bound was known.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
    ...     runtime=hs.runtime("vllm"),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> best = hs.solve(problem, "replica_per_machine").objective
    >>> best < placement_bound(problem) < 1.5 * best
    True
    """
    layer, n_layers = most_common(problem.model)
    kinds: dict[tuple[object, ...], list[Machine]] = {}
    for machine in problem.fleet.machines:
        kinds.setdefault(machine.kind, []).append(machine)
    units: list[Unit] = []
    for m, alike in enumerate(kinds.values()):
        for degree in problem.degrees_of(alike[0]):
            if deadline.has_passed():
                return math.inf
            units.append(_unit(problem, alike[0], m, degree, layer, n_layers))
    gpus = np.array([sum(each.node.gpus for each in alike) for alike in kinds.values()], float)
    together = [units]
    if problem.degrees is DegreeRule.COMMON:
        together = [
            [unit for unit in units if unit.gpus == degree]
            for degree in sorted({unit.gpus for unit in units})
        ]
    covers = [Cover(each, n_layers, problem.max_stages, len(gpus)) for each in together]
    return _least_bound(covers, gpus, deadline) * (1 + ROUNDING)


def most_common(model: Model) -> tuple[Block, int]:
    """Return the block that a model has most of, and how often; the head does not count."""
    blocks = model.blocks[:-1] if len(model.blocks) > 1 else model.blocks
    found: dict[Block, int] = {}
    for block in blocks:
        found[block] = found.get(block, 0) + 1
    most = max(found, key=lambda block: (found[block], block.weight_bytes))
    return most, found[most]


def _unit(
    problem: PlacementProblem,
    machine: Machine,
    kind: int,
    gpus: int,
    layer: Block,
    n_layers: int,
) -> Unit:
    """Return the bounds on the rate of a stage by its number of layers, until none fits."""
    node = dataclasses.replace(problem.group(machine, gpus), name="group")
    network = Network(name="stage", tiers=(Tier(name="stage", nodes=(node,)),))
    counts = np.unique(np.geomspace(1, n_layers, N_COUNTS).round().astype(np.int64))
    rates: list[float] = []
    for count in counts:
        part = dataclasses.replace(
            problem.model, name="stage", blocks=(layer,) * int(count), tied_bytes=0
        )
        stage = Deployment(
            model=part,
            network=network,
            requests=problem.requests,
            cost_model=problem.cost_model,
            runtime=problem.runtime,
        )
        rate = throughput_bound(stage) if rates[-1:] != [0.0] else 0.0
        rates.append(rate)
    return Unit(kind, gpus, counts, np.minimum.accumulate(np.array(rates)))


class Cover:
    """Pipelines of some units: the largest rate per cost of their GPUs.

    Parameters
    ----------
    units : sequence of Unit
    n_layers : int
        Layers that a pipeline holds.
    max_stages : int
    n_kinds : int
        Kinds of machines.
    """

    def __init__(
        self, units: Sequence[Unit], n_layers: int, max_stages: int, n_kinds: int
    ) -> None:
        self.units = [unit for unit in units if unit.rates[0] > 0]
        self.n_layers, self.max_stages, self.n_kinds = n_layers, max_stages, n_kinds
        self.least = self.most = np.zeros(0)
        if not self.units:
            return
        top = max(float(unit.rates[0]) for unit in self.units)
        if math.isinf(top):
            top = 1e15
        n = math.ceil(math.log(RANGE) / math.log(STEP))
        self.most = top * STEP ** -np.arange(n, -1, -1.0)  # the end of each range of rates
        self.least = np.concatenate(([0.0], self.most[:-1]))
        # with a rate above `least`, a group holds fewer layers than the first count that is
        # too slow for it, and at most as many as there are
        self.held = np.stack([self._held(unit) for unit in self.units])

    def _held(self, unit: Unit) -> IntArray:
        n_fast = (unit.rates[None, :] > self.least[:, None]).sum(axis=1)
        after = np.append(unit.counts[1:] - 1, self.n_layers)
        return np.where(n_fast > 0, after[np.maximum(n_fast - 1, 0)], 0)

    def best(self, costs: Array) -> tuple[float, float, Array]:
        """Return the largest rate per cost, and rate and GPUs by kind of that pipeline.

        `costs` are those of a GPU of each kind.
        """
        none = np.zeros(self.n_kinds)
        if not self.units:
            return 0.0, 0.0, none
        n_ranges, layers = len(self.most), np.arange(self.n_layers + 1)
        cost = np.full((n_ranges, self.n_layers + 1), math.inf)
        cost[:, 0] = 0.0
        choices = []
        of_unit = [float(costs[unit.kind]) * unit.gpus for unit in self.units]
        for _ in range(self.max_stages):
            after, chosen = cost.copy(), np.full(cost.shape, -1)
            for u, held in enumerate(self.held):
                before = np.maximum(layers[None, :] - held[:, None], 0)
                found = np.take_along_axis(cost, before, axis=1) + of_unit[u]
                is_less = (found < after) & (held[:, None] > 0)
                after, chosen = np.where(is_less, found, after), np.where(is_less, u, chosen)
            choices.append(chosen)
            cost = after
        with np.errstate(divide="ignore", invalid="ignore"):
            per_cost = np.where(np.isfinite(cost[:, -1]), self.most / cost[:, -1], 0.0)
        at = int(np.argmax(per_cost))
        if not per_cost[at] > 0:
            return 0.0, 0.0, none
        used, left = none.copy(), self.n_layers
        for chosen in reversed(choices):
            u = int(chosen[at, left])
            if u >= 0:
                used[self.units[u].kind] += self.units[u].gpus
                left = max(left - int(self.held[u, at]), 0)
        return float(per_cost[at]), float(self.most[at]), used


def _least_bound(covers: Sequence[Cover], gpus: Array, deadline: Deadline) -> float:
    """Return the least bound over costs of GPUs, as far as cutting planes find it."""
    costs = 1.0 / np.maximum(gpus, 1.0)
    bound, rows = math.inf, list[tuple[float, Array]]()
    for _ in range(MAX_CUTS):
        found = max((cover.best(costs) for cover in covers), key=lambda each: each[0])
        per_cost, rate, used = found
        if per_cost == 0.0:
            return 0.0
        bound = min(bound, per_cost * float(costs @ gpus))
        rows.append((rate, used))
        costs, value = _next_costs(rows, gpus)
        if value >= bound * (1 - CLOSE) or deadline.has_passed():
            break
    return bound


def _next_costs(rows: Sequence[tuple[float, Array]], gpus: Array) -> tuple[Array, float]:
    """Return the costs with the least sum at which no known pipeline earns more than it costs.

    The sum is the largest rate of the known pipelines, in any fractions.
    """
    import pulp

    program = pulp.LpProblem("costs", pulp.LpMinimize)
    of_kind = [program.add_variable(f"c{m}", lowBound=0) for m in range(len(gpus))]
    program += pulp.lpSum(float(n) * each for n, each in zip(gpus, of_kind, strict=True))
    for rate, used in rows:
        program += (
            pulp.lpSum(float(n) * each for n, each in zip(used, of_kind, strict=True)) >= rate
        )
    solve_pulp(program, "highs", "placement_bound", NEVER, 0)
    costs = np.array([max(each.value() or 0.0, 0.0) for each in of_kind])
    value = float(costs @ gpus)
    return np.maximum(costs, 1e-9 * max(float(costs.max()), 1e-300)), value
