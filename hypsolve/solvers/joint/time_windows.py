"""When each request can start and must be done, in the joint formulations."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.solvers.joint.decision import rounding_s
from hypsolve.solvers.joint.tables import JointTables

SLACK = 1e-6  # by which limits from an incumbent are relaxed, for rounding and tolerances


class Windows(NamedTuple):
    """When a stage may start and end; `min_completion` on an idle network, per request."""

    head: Array  # (n_requests, n_tiers), earliest start
    tail: Array  # (n_requests, n_tiers), least time from the stage's end to completion
    min_completion: Array  # (n_requests,)


def windows(tables: JointTables) -> Windows:
    """Earliest starts and least remaining times over all partitions, for each request alone."""
    shape = (tables.n_requests, tables.n_tiers)
    head, tail = np.zeros(shape), np.zeros(shape)
    n_cuts = tables.n_blocks + 1
    stages = []
    reach = np.full((tables.n_requests, n_cuts), np.inf)
    reach[:, 0] = tables.release
    for k in range(tables.n_tiers):
        fastest = tables.fastest(k)
        stage = np.full((len(fastest), n_cuts, n_cuts), np.inf)
        stage[:, tables.first[k], tables.end[k]] = fastest
        stages.append(stage)
        head[:, k] = reach.min(axis=1)
        reach = (reach[:, :, None] + stage).min(axis=1)
        if k < tables.n_tiers - 1:
            reach = reach + tables.transfer[:, k]
    rest = np.full((1, n_cuts), np.inf)
    rest[:, -1] = 0.0  # from each cut after the stage to the completion
    for k in range(tables.n_tiers - 1, -1, -1):
        if k < tables.n_tiers - 1:
            rest = rest + tables.transfer[:, k]
        tail[:, k] = rest.min(axis=1)
        rest = (stages[k] + rest[:, None, :]).min(axis=2)
    return Windows(head, tail, reach[:, -1])


def require_partition(window: Windows, method: str) -> None:
    """Raise ValueError if no partition keeps the rules: there is nothing to formulate."""
    if np.isinf(window.min_completion).any():
        raise ValueError(
            f"method {method!r}: no partition keeps the rules, nothing to formulate"
        )


def shortest(tables: JointTables) -> list[int]:
    """Arc of each tier on the partition with the least total time of service and travel."""
    alone = travelled(tables, [tables.fastest(k) for k in range(tables.n_tiers)])
    reach = np.full(tables.n_blocks + 1, np.inf)
    reach[0] = 0.0
    came_by: list[dict[int, int]] = []
    for k in range(tables.n_tiers):
        sums = reach[tables.first[k]] + alone[k].sum(axis=0)
        ends = tables.end[k].tolist()
        came_by.append({ends[a]: int(a) for a in np.argsort(-sums, kind="stable")})
        reach = np.full(tables.n_blocks + 1, np.inf)
        np.minimum.at(reach, tables.end[k], sums)
    arcs: list[int] = []
    cut = tables.n_blocks
    for k in range(tables.n_tiers - 1, -1, -1):
        arcs.insert(0, came_by[k][cut])
        cut = int(tables.first[k][arcs[0]])
    return arcs


def one_by_one(tables: JointTables) -> Array:
    """Latency when one request is served at a time on `shortest`, shape (n_requests,)."""
    alone = travelled(tables, [tables.fastest(k) for k in range(tables.n_tiers)])
    took = np.zeros(tables.n_requests)
    for k, arc in enumerate(shortest(tables)):
        took += alone[k][:, arc]
    latency = np.zeros(tables.n_requests)
    free = 0.0
    for r in np.argsort(tables.release, kind="stable"):
        latency[r] = max(0.0, free - tables.release[r]) + took[r]
        free = tables.release[r] + latency[r]
    return latency


def travelled(tables: JointTables, service: list[Array]) -> list[Array]:
    """Service of each tier's arcs and the transfer behind, each (n_requests, n_arcs)."""
    whole = []
    for k, took in enumerate(service):
        link = tables.transfer[:, k, tables.end[k]] if k < tables.n_tiers - 1 else 0.0
        whole.append(np.broadcast_to(took + link, (tables.n_requests, len(tables.end[k]))))
    return whole


def max_latency(tables: JointTables, objective: Objective, known: list[Array]) -> Array:
    """Latency that no request exceeds in a schedule as good as the `known` latencies."""
    if objective is Objective.MAKESPAN:
        later = tables.release[None, :] - tables.release[:, None]  # few digits lost here
        return np.min([(each[None, :] + later).max(axis=1) for each in known], axis=0)
    least = windows(replace(tables, release=np.zeros(tables.n_requests))).min_completion
    return least + max(0.0, min(float((each - least).sum()) for each in known))


def within(tables: JointTables, most: Array) -> JointTables:
    """Leave out stages and nodes that alone take longer than the most latency of a request."""
    service = [
        np.where(table <= (most.max() if len(table) == 1 else most[:, None]), table, np.inf)
        for table in tables.service
    ]
    tables = replace(tables, service=service)
    alone = travelled(tables, [tables.fastest(k) for k in range(tables.n_tiers)])
    kept = [(took <= most[:, None]).all(axis=0) for took in alone]
    return replace(
        tables,
        first=[first[keep] for first, keep in zip(tables.first, kept, strict=True)],
        end=[end[keep] for end, keep in zip(tables.end, kept, strict=True)],
        service=[
            table[:, kept[k]] for table, k in zip(service, tables.group_tier, strict=True)
        ],
    )


def drop_dominated(
    tables: JointTables, objective: Objective, incumbent: Array | None = None
) -> tuple[JointTables, Array]:
    """The joint problem without what no best schedule needs: long stages, long silences.

    Parameters
    ----------
    incumbent : array of shape (n_requests,), optional
        Completions of a known decision.

    Returns
    -------
    tables : JointTables
        Where all earlier requests must be done before the next arrives, the time until then is
        cut short: latencies stay, and numbers stay in a range that solvers can handle.
    last : array of shape (n_requests,)
        Completion that no request exceeds in some best schedule.
    """
    known = [one_by_one(tables)]
    if incumbent is not None:
        known.append(incumbent - tables.release)
    most = max_latency(tables, objective, known) * (1 + SLACK)
    most += 2.0**-50 * tables.release.max()  # what rounding may take from an incumbent's
    tables = within(tables, most)
    longest = longest_alone(tables)
    release, last = np.zeros(tables.n_requests), np.zeros(tables.n_requests)
    order = np.argsort(tables.release, kind="stable").tolist()
    busy: list[int] = []  # requests that may still compete with the next
    now = before = done = limit = 0.0
    for r in order:
        now += float(tables.release[r]) - before
        before = float(tables.release[r])
        if busy and now >= done:
            last[busy] = np.minimum(release[busy] + most[busy], done)
            busy, limit = [], 0.0
            pause = longest.max()  # short, but long enough to tell one from the other
            now = min(now, done + pause) if pause > 0 else now
        release[r] = now
        busy.append(r)
        # from the last release on nobody waits but for work: in a row it takes as long; and
        # nobody exceeds the limit
        limit = max(limit, now + float(most[r]))
        done = min(now + float(longest[busy].sum()), limit)
    last[busy] = np.minimum(release[busy] + most[busy], done)
    origin_s = tables.origin_s + (tables.release - release) * tables.unit_s
    return replace(tables, release=release, origin_s=origin_s), last


def longest_alone(tables: JointTables) -> Array:
    """Most service and travel of each request, over all partitions and nodes."""
    slowest = []
    for k in range(tables.n_tiers):
        groups = np.flatnonzero(tables.group_tier == k)
        finite = [
            np.where(np.isfinite(t), t, 0.0) for t in map(tables.service.__getitem__, groups)
        ]
        slowest.append(np.max(finite, axis=0))
    return np.sum([took.max(axis=1) for took in travelled(tables, slowest)], axis=0)


def size_s(tables: JointTables, objective: Objective) -> float:
    """Least value of the objective, after `drop_dominated`: the order of what matters."""
    least = windows(tables).min_completion
    if objective is Objective.MAKESPAN:
        return float(least.max()) * tables.unit_s
    return float((least - tables.release).mean()) * tables.unit_s


def idle_bound_s(instance: Instance, tables: JointTables) -> float:
    """Bound of every request served alone; inf if no partition keeps the rules."""
    least = windows(tables).min_completion
    value = least.max() if instance.objective is Objective.MAKESPAN else least.sum()
    if math.isinf(value):
        return math.inf
    bound_s = tables.objective_s(float(value), instance.objective, instance.arrival_s)
    return max(0.0, bound_s - rounding_s(instance, bound_s))
