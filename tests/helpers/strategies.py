"""Hypothesis strategies of small whole numbers and powers of two, which sum exactly."""

import math

from hypothesis import assume
from hypothesis import strategies as st

from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from tests.helpers import oracles

SECONDS = st.sampled_from([1, 2, 3, 4, 5, 8, 0.5, 0.25, 0])
POSITIVE = st.sampled_from([1, 2, 3, 4, 5, 8, 0.5, 0.25])
BYTES = st.sampled_from([1, 2, 3, 4, 0.5, 0])
RULES = ("pooled", "fastest", "slowest")
PARTITION_OBJECTIVES = ("bottleneck", "path", "p0")


def rows(values, n_rows, *shape):
    """Draw nested lists of a shape, with a row per request or a single row for all."""
    return st.sampled_from(sorted({1, n_rows})).flatmap(lambda n: table(values, n, *shape))


def table(values, *shape):
    if not shape:
        return values
    return st.lists(table(values, *shape[1:]), min_size=shape[0], max_size=shape[0])


@st.composite
def arguments(
    draw,
    *,
    objectives=("bottleneck",),
    rules=RULES,
    max_blocks=6,
    max_tiers=4,
    max_nodes=3,
    max_requests=3,
    min_tiers=1,
    min_requests=1,
    limits=True,
    links=True,
    memory=True,
    seconds=SECONDS,
    wide=False,
):
    """Draw keyword arguments of `Instance.from_tables`."""
    objective = draw(st.sampled_from(objectives))
    n_tiers = draw(st.integers(min_tiers, max_tiers))
    n_blocks = draw(st.integers(max(1, n_tiers - 1), max_blocks))
    n_classes = draw(st.integers(1, 3))
    n_requests = draw(st.integers(min_requests, max_requests))
    n_links = n_tiers - 1
    empty = objective != "p0" and draw(st.booleans())
    block_bytes = draw(table(BYTES, n_blocks)) if memory else [0.0] * n_blocks
    total = sum(block_bytes)
    capacity = st.sampled_from([total * eighths / 8 for eighths in (8, 6, 4, 3, 2)])
    node = st.tuples(st.integers(0, n_classes - 1), capacity)
    tier = st.lists(node, min_size=1, max_size=max_nodes)
    given = {
        "block_s": draw(rows(seconds, n_requests, n_classes, n_blocks)),
        "block_bytes": block_bytes,
        "tiers": draw(st.lists(tier, min_size=n_tiers, max_size=n_tiers)),
        "objective": objective,
        "stage_rule": draw(st.sampled_from(rules)),
        "allow_empty": empty,
        "overlap": draw(st.booleans()),
        "link_cost": draw(st.sampled_from(("occupancy", "full"))),
        "arrival_s": draw(table(SECONDS, n_requests)),
    }
    if n_links and (links == "always" or draw(st.booleans())):
        transfer = draw(rows(SECONDS, n_requests, n_links, n_blocks + 1))
        given["transfer_s"] = transfer
        if draw(st.booleans()):  # share of the transfer that keeps the link busy
            share = draw(st.sampled_from([0, 0.25, 0.5, 1]))
            given["occupancy_s"] = [
                [[share * t for t in link] for link in row] for row in transfer
            ]
    if draw(st.booleans()):
        given["reference_s"] = draw(table(seconds, n_classes, n_blocks))
    if n_links and draw(st.booleans()):
        given["reference_transfer_s"] = draw(table(SECONDS, n_links, n_blocks + 1))
    if memory and draw(st.integers(0, 3)) == 0:
        given["tied_bytes"] = min(block_bytes[0], block_bytes[-1]) * draw(
            st.sampled_from([0.5, 1])
        )
    if limits == "always" or (limits and draw(st.integers(0, 3)) == 0):
        given["pinned"] = draw(
            st.dictionaries(
                st.integers(0, n_blocks - 1), st.integers(0, n_tiers - 1), max_size=2
            )
        )
    if limits == "always" or (limits and draw(st.integers(0, 3)) == 0):
        spans = draw(
            st.lists(
                st.tuples(st.integers(0, n_blocks), st.integers(0, n_blocks)).map(sorted),
                min_size=n_tiers,
                max_size=n_tiers,
            )
        )
        given["min_blocks"] = [low // 4 for low, _ in spans]
        given["max_blocks"] = [max(high - high // 3, 1) for _, high in spans]
    if wide:  # seconds in another unit
        scale = 2.0 ** draw(st.integers(-40, 40))
        for field in (
            "block_s",
            "transfer_s",
            "occupancy_s",
            "reference_s",
            "reference_transfer_s",
        ):
            if field in given:
                given[field] = _scaled(given[field], scale)
        given["arrival_s"] = _scaled(given["arrival_s"], scale)
    return given


def _scaled(values, scale):
    return [_scaled(v, scale) for v in values] if isinstance(values, list) else values * scale


def instances(**options):
    return arguments(**options).map(lambda given: Instance.from_tables(**given))


def scheduled(**options):
    """Draw instances that are small enough for enumerating all schedules."""
    sizes = {
        "objectives": ("mean_latency", "makespan"),
        "max_blocks": 4,
        "max_tiers": 3,
        "max_nodes": 2,
        "max_requests": 3,
        "limits": False,
    }
    return instances(**(sizes | options))


@st.composite
def partitions(draw, instance):
    """Draw a partition of the right shape, legal or not."""
    inner = draw(table(st.integers(0, instance.n_blocks), instance.n_tiers - 1))
    return Partition((0, *sorted(inner), instance.n_blocks))


@st.composite
def decisions(draw, instances=None):
    """Draw an instance and a partition of the right shape, legal or not."""
    instance = draw(globals()["instances"]() if instances is None else instances)
    return instance, draw(partitions(instance))


@st.composite
def timetables(draw, instance, cuts):
    """Draw nodes and times of a legal schedule that may have idle times, as nested lists."""
    exact = oracles.Exact(instance)
    shape = (exact.n_requests, exact.n_tiers)
    node = [[-1] * shape[1] for _ in range(shape[0])]
    start, end = ([[math.nan] * shape[1] for _ in range(shape[0])] for _ in range(2))
    ready = [float(a) for a in exact.arrival_s]
    for k in range(exact.n_tiers):
        holders = exact.holders(k, cuts[k], cuts[k + 1])
        free = dict.fromkeys(holders, 0.0)
        for r in draw(st.permutations(range(exact.n_requests))):
            if cuts[k] < cuts[k + 1]:
                n = draw(st.sampled_from(holders))
                node[r][k] = n
                start[r][k] = max(ready[r], free[n]) + draw(st.sampled_from([0, 0, 0.5, 3]))
                end[r][k] = start[r][k] + float(oracles.service(exact, r, k, n, cuts))
                ready[r] = free[n] = end[r][k]
            if k < exact.n_tiers - 1:
                ready[r] += float(exact.request_transfer_s[r][k][cuts[k + 1]])
    return node, start, end


@st.composite
def plans(draw, instances):
    """Draw an instance, legal cuts, and a legal timetable."""
    instance = draw(instances)
    exact = oracles.Exact(instance)
    legal = [cuts for cuts in exact.partitions() if oracles.holdable(exact, cuts)]
    assume(legal)
    cuts = draw(st.sampled_from(legal))
    return instance, cuts, draw(timetables(instance, cuts))
