"""Time windows of requests, and what no best schedule of a joint problem needs."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance import (
    Instance,
    Objective,
)
from hypsolve.solvers.clock import NEVER, Deadline
from hypsolve.solvers.joint.decision import rounding_s
from hypsolve.solvers.joint.tables import JointTables

ROWS = 32  # requests for which arcs are compared at once
SLACK = 1e-6  # relative; relaxes limits from an incumbent, for rounding and tolerances


class Windows(NamedTuple):
    """Earliest starts and shortest remaining times of requests on an idle network."""

    head: Array  # (n_requests, n_tiers), earliest start
    tail: Array  # (n_requests, n_tiers), shortest time from the end of the stage to completion
    min_completion: Array  # (n_requests,)


def windows(tables: JointTables) -> Windows:
    """Compute the time windows of each request alone, over all partitions."""
    shape = (tables.n_requests, tables.n_tiers)
    head, tail = np.zeros(shape), np.zeros(shape)
    n_cuts = tables.n_blocks + 1
    stages = [tables.fastest(k) for k in range(tables.n_tiers)]
    reach = np.full((tables.n_requests, n_cuts), np.inf)
    reach[:, 0] = tables.release
    for k in range(tables.n_tiers):
        head[:, k] = reach.min(axis=1)
        reach = _shortest(reach, stages[k], tables.first[k], tables.end[k])
        if k < tables.n_tiers - 1:
            reach = reach + tables.transfer[:, k]
    rest = np.full((tables.n_requests, n_cuts), np.inf)
    rest[:, -1] = 0.0  # shortest time from each cut to completion
    for k in range(tables.n_tiers - 1, -1, -1):
        if k < tables.n_tiers - 1:
            rest = rest + tables.transfer[:, k]
        tail[:, k] = rest.min(axis=1)
        rest = _shortest(rest, stages[k], tables.end[k], tables.first[k])
    return Windows(head, tail, reach[:, -1])


def _shortest(at_source: Array, seconds: Array, source: IntArray, target: IntArray) -> Array:
    """Return the shortest time to each cut over the arcs that lead to it; inf without any.

    Parameters
    ----------
    at_source : ndarray, shape (n_requests, n_cuts)
        Shortest time to the cut from which an arc leads.
    seconds : ndarray, shape (n_requests or 1, n_arcs)
    source, target : ndarray of int, shape (n_arcs,)
        Cuts that an arc joins.
    """
    shortest = np.full(at_source.shape, np.inf)
    order = np.argsort(target, kind="stable")
    if not order.size:
        return shortest
    reached, starts = np.unique(target[order], return_index=True)
    for first in range(0, len(at_source), ROWS):  # few rows at once stay in the cache
        rows = slice(first, first + ROWS)
        took = seconds[rows] if len(seconds) > 1 else seconds
        sums = at_source[rows][:, source[order]] + took[:, order]
        shortest[rows, reached] = np.minimum.reduceat(sums, starts, axis=1)
    return shortest


def require_partition(window: Windows, method: str) -> None:
    """Raise ValueError if no partition is feasible: there is nothing to formulate."""
    if np.isinf(window.min_completion).any():
        raise ValueError(
            f"method {method!r}: no partition keeps the rules, nothing to formulate"
        )


def fastest_partition(tables: JointTables) -> list[int]:
    """Return the arcs of the partition with the shortest total service and transfer time.

    Each request is on the fastest node of each tier; the total is over all requests.
    """
    return _fastest_arcs(tables, _fastest_alone(tables))


def _fastest_arcs(tables: JointTables, alone: list[Array]) -> list[int]:
    """Return the arcs with the shortest total time; `alone` is that of `_fastest_alone`."""
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


def serial_latencies(tables: JointTables) -> Array:
    """Return latencies on `fastest_partition`, one request at a time; shape (n_requests,)."""
    alone = _fastest_alone(tables)
    took = np.zeros(tables.n_requests)
    for k, arc in enumerate(_fastest_arcs(tables, alone)):
        took += alone[k][:, arc]
    latency = np.zeros(tables.n_requests)
    free = 0.0
    for r in np.argsort(tables.release, kind="stable"):
        latency[r] = max(0.0, free - tables.release[r]) + took[r]
        free = tables.release[r] + latency[r]
    return latency


def _fastest_alone(tables: JointTables) -> list[Array]:
    """Return seconds of each arc on the fastest node, with the transfer behind it."""
    return _stage_and_link(tables, [tables.fastest(k) for k in range(tables.n_tiers)])


def _stage_and_link(tables: JointTables, service: list[Array]) -> list[Array]:
    """Add to the service of each arc the transfer behind it, each (n_requests, n_arcs)."""
    whole = []
    for k, took in enumerate(service):
        link = tables.transfer[:, k, tables.end[k]] if k < tables.n_tiers - 1 else 0.0
        whole.append(np.broadcast_to(took + link, (tables.n_requests, len(tables.end[k]))))
    return whole


def latency_limits(tables: JointTables, objective: Objective, known: list[Array]) -> Array:
    """Return latencies that no request exceeds in a schedule as good as the known ones.

    `known` has the latencies of known schedules, each of shape (n_requests,).
    """
    if objective is Objective.MAKESPAN:
        later = tables.release[None, :] - tables.release[:, None]  # few digits lost here
        return np.min([(each[None, :] + later).max(axis=1) for each in known], axis=0)
    idle = windows(replace(tables, release=np.zeros(tables.n_requests))).min_completion
    return idle + max(0.0, min(float((each - idle).sum()) for each in known))


def drop_slow_arcs(tables: JointTables, limit: Array) -> JointTables:
    """Drop arcs and nodes that alone take longer than the latency limit of a request."""
    service = [
        np.where(table <= (limit.max() if len(table) == 1 else limit[:, None]), table, np.inf)
        for table in tables.service
    ]
    tables = replace(tables, service=service)
    alone = _fastest_alone(tables)
    kept = [(took <= limit[:, None]).all(axis=0) for took in alone]
    return replace(
        tables,
        first=[first[keep] for first, keep in zip(tables.first, kept, strict=True)],
        end=[end[keep] for end, keep in zip(tables.end, kept, strict=True)],
        service=[
            table[:, kept[k]] for table, k in zip(service, tables.group_tier, strict=True)
        ],
    )


def drop_dominated(
    tables: JointTables,
    objective: Objective,
    incumbent: Array | None = None,
    deadline: Deadline = NEVER,
) -> tuple[JointTables, Array]:
    """Drop what no best schedule needs: slow arcs and nodes, and long pauses.

    Parameters
    ----------
    tables : JointTables
    objective : Objective
    incumbent : ndarray, shape (n_requests,), optional
        Completion times of a known solution.
    deadline : Deadline, optional

    Returns
    -------
    tables : JointTables
        A pause before an arrival, at which all earlier requests must be done, is cut short.
        Latencies do not change, and numbers stay in a range that solvers can handle.
    last : ndarray, shape (n_requests,)
        Completion times that no request exceeds in some optimal schedule.

    Raises
    ------
    OutOfTime
        If the deadline passes.
    """
    known = [serial_latencies(tables)]
    if incumbent is not None:
        known.append(incumbent - tables.release)
    deadline.require()
    max_latency = latency_limits(tables, objective, known) * (1 + SLACK)
    max_latency += (
        2.0**-50 * tables.release.max()
    )  # rounding may have lowered an incumbent's latency by this
    deadline.require()
    tables = drop_slow_arcs(tables, max_latency)
    deadline.require()
    longest = longest_alone(tables)
    release, last = np.zeros(tables.n_requests), np.zeros(tables.n_requests)
    order = np.argsort(tables.release, kind="stable").tolist()
    busy: list[int] = []  # requests that may still wait for each other
    now = before = done = limit = 0.0
    for r in order:
        now += float(tables.release[r]) - before
        before = float(tables.release[r])
        if busy and now >= done:
            last[busy] = np.minimum(release[busy] + max_latency[busy], done)
            busy, limit = [], 0.0
            pause = longest.max()  # short, but long enough to tell the requests apart
            now = min(now, done + pause) if pause > 0 else now
        release[r] = now
        busy.append(r)
        # after the last release, requests wait for work alone, at longest all of it in a row;
        # and no completion exceeds the limit
        limit = max(limit, now + float(max_latency[r]))
        done = min(now + float(longest[busy].sum()), limit)
    last[busy] = np.minimum(release[busy] + max_latency[busy], done)
    origin_s = tables.origin_s + (tables.release - release) * tables.unit_s
    return replace(tables, release=release, origin_s=origin_s), last


def longest_alone(tables: JointTables) -> Array:
    """Return the longest service and transfer time of each request, over all partitions."""
    slowest = []
    for k in range(tables.n_tiers):
        groups = np.flatnonzero(tables.group_tier == k)
        finite = [
            np.where(np.isfinite(t), t, 0.0) for t in map(tables.service.__getitem__, groups)
        ]
        slowest.append(np.max(finite, axis=0))
    return np.sum([took.max(axis=1) for took in _stage_and_link(tables, slowest)], axis=0)


def min_objective_s(tables: JointTables, objective: Objective) -> float:
    """Return a lower bound on the objective in seconds, which sets the scale of a model."""
    completion = windows(tables).min_completion
    if objective is Objective.MAKESPAN:
        return float(completion.max()) * tables.unit_s
    return float((completion - tables.release).mean()) * tables.unit_s


def idle_bound_s(instance: Instance, tables: JointTables) -> float:
    """Return the bound of an idle network, in seconds; inf if no partition is feasible."""
    completion = windows(tables).min_completion
    value = completion.max() if instance.objective is Objective.MAKESPAN else completion.sum()
    if math.isinf(value):
        return math.inf
    bound_s = tables.objective_s(float(value), instance.objective, instance.release_s)
    return max(0.0, bound_s - rounding_s(instance, bound_s))
