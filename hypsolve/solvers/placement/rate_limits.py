"""Upper bounds on the rates of patterns whose cuts are not known.

A stage of m layers on one unit limits the rate of every pipeline that contains it, even if all
other stages take no time and have all memory. So the largest number of layers that a unit can
host at a rate X is known by itself, and a pattern carries X only if these numbers add up to the
layers of the model. Three facts about the rest of the pipeline sharpen the bound: how many
stages there are, the least latency of its links, and the least seconds that its other layers
take, for each token passes all of them.

The stage of a unit is computed by `throughput_many` for a model of few blocks: one block has
the numbers of m layers, those before and behind it are free. Where the layers of a model
differ, each number is the least of all kinds of layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hypsolve.kernels.throughput import server
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.instance_records import Limits, Names, NodeTable
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import (
    KIND_TABLES,
    BlockTimes,
    ServingLinks,
    ServingObjective,
)
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.placement.pattern_values import PatternValues
from hypsolve.solvers.placement.patterns import Pattern
from hypsolve.solvers.throughput.server_arrays import block_rows
from hypsolve.solvers.throughput.throughput_many import throughput_many

FIRST, MIDDLE, LAST = 0, 1, 2
N_RATES = 240
"""Rates at which the largest numbers of layers are known."""
RANGE = 1e-3
"""The smallest of these rates, as a share of the largest one."""
MAX_LEVELS = 4
"""Latencies of links, and seconds of other layers, that are told apart."""
CLOSE_S = 1e-3
"""Difference of latencies of links that is not told apart."""
MAX_NETWORKS = 3_000
"""Aimed number of small models for each number of stages."""
CHUNK = 20_000
"""Patterns at a time; affects memory only."""
MARGIN = 1e-8
LAYER, EMBEDDING, HEAD, FREE = 0, 1, 2, 3
"""Kinds of blocks of the small model."""


class RateLimits:
    """The largest numbers of layers that units can host at some rates.

    Attributes
    ----------
    n_layers : int
        Blocks of the model without the first and the last one.
    rates : ndarray, shape (N_RATES,)
        In rising order.
    """

    def __init__(
        self, values: PatternValues, lengths: set[int], trips: Sequence[float]
    ) -> None:
        self.values = values
        self.n_layers = values.problem.model.n_blocks - 2
        self.is_known = self.n_layers >= 1
        if not self.is_known:
            return
        self.is_stage = values.instance.rules.batching is Batching.STAGE
        self.is_pipeline = values.instance.rules.batching is Batching.PIPELINE
        self._index = {unit: at for at, unit in enumerate(values.units)}
        self._tables = _small_tables(values.instance)
        self.layer_s: Array = (self._tables["fixed_s"] + self._tables["read_s"])[
            values.node_class, LAYER
        ]
        self.layer_levels = np.zeros(1) if self.is_pipeline else _levels(self.layer_s, 0.0)
        self.trip_levels = _levels(np.array([*trips] or [0.0]), CLOSE_S)
        n_levels = len(self.trip_levels) * len(self.layer_levels)
        self.numbers: IntArray = (
            _numbers(self.n_layers, len(values.units) * n_levels)
            if self.is_stage
            else np.arange(self.n_layers + 1)
        )
        self._hosted: dict[tuple[int, int, int, int], IntArray] = {}
        self._rate_tables: dict[tuple[int, int], Array] = {}
        positions = (FIRST, MIDDLE, LAST)
        for n in sorted({self._key(n) for n in lengths if n > 1}):
            for position in positions:
                if position != MIDDLE or n > 2:
                    self._rate_tables[n, position] = self._solve(n, position)
        largest = max((self._largest(*key) for key in self._rate_tables), default=0.0)
        self.rates: Array = np.geomspace(RANGE, 1.0, N_RATES) * (largest or 1.0)

    def _key(self, n_stages: int) -> int:
        """Return the number of stages that stands for a number of stages."""
        return n_stages if self.is_pipeline else min(n_stages, 3)

    def _largest(self, n_stages: int, position: int) -> float:
        """Return the largest rate of stages with their share of the layers.

        One stage of a pipeline has at least this share, so no pipeline carries more.
        """
        most = n_stages if self.is_pipeline else self.values.problem.max_stages
        share = np.searchsorted(self.numbers, -(-self.n_layers // most), "right") - 1
        return float(self._rate_tables[n_stages, position][..., share].max())

    def trip_level(self, trip_s: float) -> int:
        """Return the level of a latency of links."""
        return max(0, int(np.searchsorted(self.trip_levels, trip_s, "right")) - 1)

    def links(self, pattern: Pattern) -> tuple[float, float]:
        """Return the latencies of a pattern's links, and the rate of the slowest one."""
        hops, back_s = self.values.hops(pattern, True)
        lengths = self.values.instance.lengths
        tokens = lengths.prompt_tokens + lengths.decode_passes
        sent = [b.output_bytes_per_token for b in self.values.problem.model.blocks[:-1]]
        size = tokens * min(sent, default=0)
        rate = min((link.bytes_per_s for link in hops), default=math.inf)
        return math.fsum(link.latency_s for link in hops) + back_s, (
            rate / size if size else math.inf
        )

    def _solve(self, n_stages: int, position: int) -> Array:
        """Return the largest rates by latency, seconds of others, unit, and number of layers.

        The number of layers is that of `numbers`; 0 in the middle is no stage.
        """
        instance, kinds = self._small_instance(n_stages, position)
        at = {FIRST: 0, MIDDLE: 1, LAST: n_stages - 1}[position]
        n_units, n_numbers = len(self.values.units), len(self.numbers)
        free = n_units * n_numbers
        levels = len(self.trip_levels) * len(self.layer_levels)
        n_networks = levels * free
        node_class = np.full((n_networks, n_stages, 1), free)
        node_bytes = np.full((n_networks, n_stages, 1), 1e30)
        node_class[:, at, 0] = np.tile(np.arange(free), levels)
        of_unit = np.repeat(self.values.node_bytes, n_numbers)
        node_bytes[:, at, 0] = np.tile(of_unit, levels)
        others = self.n_layers - np.tile(self.numbers, n_units)
        seconds = self.trip_levels[:, None, None] + self.layer_levels[None, :, None] * others
        shape = len(self.trip_levels), len(self.layer_levels), n_units, n_numbers
        if not self.is_stage:
            n = n_stages if self.is_pipeline else 1
            rates = cycle_rates(
                instance, kinds, np.repeat(self.values.node_bytes, n_numbers), n, seconds
            )
            return rates.reshape(shape)
        trips = np.zeros((n_networks, n_stages - 1))
        trips[:, 0] = seconds.reshape(-1)
        plans = throughput_many(
            instance,
            node_class,
            node_bytes,
            np.zeros((1, n_stages - 1, 1)),
            trips,
            np.zeros((1, n_stages - 1)),
            n_threads=self.values.n_threads,
        )
        return plans.fluid_requests_per_s.reshape(shape)

    def _small_instance(
        self, n_stages: int, position: int
    ) -> tuple[ServingInstance, list[int]]:
        """Return an instance with a class of nodes for each unit and number of layers.

        The second value has the kinds of the blocks of the stage.
        """
        base = self.values.instance
        n_units, n_numbers = len(self.values.units), len(self.numbers)
        of = np.repeat(self.values.node_class, n_numbers)
        scale = np.tile(self.numbers, n_units).astype(np.float64)
        tables = {}
        for name, table in self._tables.items():
            rows = np.zeros((len(of) + 1, *table.shape[1:]))
            rows[:-1] = table[of]
            if name == "collective_s":
                rows[:-1, LAYER] *= scale[:, None]
                rows[:-1, LAYER, 2] = table[of][:, LAYER, 2]
            else:
                rows[:-1, LAYER] *= scale
            tables[name] = rows
        own = {FIRST: [EMBEDDING, LAYER], MIDDLE: [LAYER], LAST: [LAYER, HEAD]}[position]
        before = {FIRST: 0, MIDDLE: 1, LAST: n_stages - 1}[position]
        kinds = [FREE] * before + own + [FREE] * (n_stages - 1 - before)
        cuts = [*range(before + 1), *range(before + len(own), len(kinds) + 1)]
        blocks = base.blocks
        idle = [float(blocks.idle_share[k]) for k in self._layer_kinds()]
        ends = blocks.block_kind[[0, -1]]
        made = dataclasses.replace(
            base,
            blocks=BlockTimes(
                **tables,
                idle_share=np.array([max(idle), *blocks.idle_share[ends], 0.0]),
                last_token_only=np.array([0, *blocks.last_token_only[ends], 0]),
                tied_bytes=np.zeros(len(of) + 1),
                block_kind=np.array(kinds),
            ),
            links=ServingLinks(
                token_s=np.zeros((n_stages - 1, 1)),
                cut_kind=np.zeros(len(kinds) + 1, np.int64),
                round_trip_s=np.zeros(n_stages - 1),
                entry_s=np.zeros(n_stages - 1),
            ),
            nodes=NodeTable(
                node_tier=np.arange(n_stages),
                node_class=np.full(n_stages, len(of)),
                node_bytes=np.full(n_stages, 1e30),
            ),
            price_per_hour=np.zeros(n_stages),
            limits=Limits(
                cut_min=np.array(cuts),
                cut_max=np.array(cuts),
                min_blocks_given=np.ones(n_stages, np.int64),
                max_blocks=np.full(n_stages, len(kinds)),
            ),
            names=Names(name="limits"),
        )
        return made, own

    def _layer_kinds(self) -> list[int]:
        return sorted(set(self.values.instance.blocks.block_kind[1:-1].tolist()))

    def of(self, patterns: Sequence[Pattern], deadline: Deadline) -> Array:
        """Return an upper bound on the rate of each pattern; inf where none is known.

        Their numbers of stages are among those that the limits were made for, and the latencies
        of their links are not below the least one.
        """
        found = np.full(len(patterns), math.inf)
        if not self.is_known:
            return found
        groups: dict[tuple[int, int, int], list[int]] = {}
        by_link = np.full(len(patterns), math.inf)
        for p, pattern in enumerate(patterns):
            if len(pattern.units) > 1:
                trip_s, by_link[p] = self.links(pattern)
                least_s = min(self.layer_s[self._index[unit]] for unit in pattern.units)
                trip = self.trip_level(trip_s)
                other = int(np.searchsorted(self.layer_levels, least_s, "right")) - 1
                groups.setdefault((len(pattern.units), trip, other), []).append(p)
        for (n, trip, other), members in groups.items():
            tables = [
                self.hosted(n, position, trip, other) for position in (FIRST, MIDDLE, LAST)
            ]
            for start in range(0, len(members), CHUNK):
                if deadline.has_passed():
                    break
                part = members[start : start + CHUNK]
                found[part] = self._limits(part, patterns, tables)
        return np.minimum(found, by_link * (1 + MARGIN))

    def _limits(
        self, part: list[int], patterns: Sequence[Pattern], tables: list[IntArray]
    ) -> Array:
        units = np.array(
            [[self._index[unit] for unit in patterns[p].units] for p in part], np.int64
        )
        total = tables[FIRST][units[:, 0]] + tables[LAST][units[:, -1]]
        for s in range(1, units.shape[1] - 1):
            total = total + tables[MIDDLE][units[:, s]]
        above = np.concatenate([self.rates[1:], [self.rates[-1]]]) * (1 + MARGIN)
        n_carried = (total >= self.n_layers).sum(axis=1)  # `total` does not rise in the rate
        return np.where(
            n_carried > 0, above[np.maximum(n_carried, 1) - 1], self.rates[0] * (1 + MARGIN)
        )

    def hosted(self, n_stages: int, position: int, trip: int, other: int) -> IntArray:
        """Return the largest number of layers of each unit at each rate.

        The number is so small that no sum reaches the layers of the model if the unit can
        host no stage.

        Returns
        -------
        ndarray of int, shape (n_units, N_RATES)
        """
        key = self._key(n_stages), position, trip, other
        if key not in self._hosted:
            if key[:2] not in self._rate_tables:  # two stages have none in the middle
                return np.zeros((len(self.values.units), N_RATES), np.int64)
            table = self._rate_tables[key[:2]][trip, other]
            start = 1 if position == MIDDLE else 0
            carried = table[:, start:, None] >= self.rates * (1 - MARGIN)
            count = np.logical_and.accumulate(carried, axis=1).sum(axis=1)
            # a number that was not tried counts as possible up to the next one that fails
            self._hosted[key] = self._most(count, start)
        return self._hosted[key]

    def hosted_at_all(self, n_stages: int, position: int, trip: int, other: int) -> IntArray:
        """Return the largest number of layers of each unit at any positive rate."""
        key = self._key(n_stages), position
        if key not in self._rate_tables:
            return np.zeros(len(self.values.units), np.int64)
        start = 1 if position == MIDDLE else 0
        table = self._rate_tables[key][trip, other]
        carried = np.logical_and.accumulate(table[:, start:] > 0, axis=1)
        return self._most(carried.sum(axis=1), start)

    def _most(self, count: IntArray, start: int) -> IntArray:
        """Return the largest number of layers, for so many of the tried numbers that work."""
        most = np.append(self.numbers[start + 1 :] - 1, self.n_layers)
        few = -100 * (self.n_layers + 2)
        return np.where(count > 0, most[np.maximum(count, 1) - 1], few).astype(np.int64)


def cycle_rates(
    instance: ServingInstance, kinds: Sequence[int], node_bytes: Array, n: int, others_s: Array
) -> Array:
    """Return the largest rates of one stage with n batches under way, for each class of nodes.

    The formulas are those of `hypsolve.problem.serving_pipelines`, with all other stages free.

    Parameters
    ----------
    instance : ServingInstance
    kinds : sequence of int
        Kinds of the blocks of the stage.
    node_bytes : ndarray, shape (n_classes - 1,)
        Memory of the nodes of each class but the last one.
    n : int
    others_s : ndarray, shape (..., n_classes - 1)
        Seconds of a cycle beside the stage.
    """
    rules, lengths = instance.rules, instance.lengths
    rows = _without_jumps(block_rows(instance)[:-1, list(kinds)])
    weights = instance.blocks.weight_bytes[:-1, list(kinds)].sum(axis=1)
    kv = instance.blocks.kv_bytes_per_token[:-1, list(kinds)].sum(axis=1)
    free = node_bytes - weights
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = np.where(kv > 0, free / kv, math.inf)
    room = tokens / lengths.held_tokens
    if lengths.alike:
        room = np.floor(room * (1 + 1e-12))
    fits = (free >= -1e-12 * node_bytes) & (tokens >= lengths.resident_tokens * (1 - 1e-12))
    kept = lengths.hold_passes + 1 + (lengths.hold_chunks - 1) / n
    most = np.minimum(
        np.where(fits, room / kept, 0.0),
        rules.max_num_seqs / (lengths.decode_passes + 1 + (lengths.chunks - 1) / n),
    )
    if rules.prompt_limit is not None:
        most = np.minimum(most, n * rules.prompt_limit / lengths.prompt_tokens)
    if rules.max_num_batched_tokens is not None:
        size = lengths.prompt_tokens + lengths.decode_passes
        most = np.minimum(most, n * rules.max_num_batched_tokens / size)

    def cycle_s(y: Array) -> Array:
        b, k = y * lengths.decode_passes / n, y * lengths.chunks / n
        alone = np.zeros_like(y)
        for at in range(len(kinds)):
            alone = alone + _block_s(rows[:, at], b, k)
        total = alone + rules.iteration_s + others_s
        return np.asarray(np.maximum(total, n * np.maximum(alone, rules.iteration_s)))

    y = np.broadcast_to(most, others_s.shape)
    limit = _longest_cycle_s(instance, n)
    if limit < math.inf:
        low, high = np.zeros(others_s.shape), y.copy()
        high = np.where(cycle_s(low) > limit, 0.0, high)
        for _ in range(50):
            middle = (low + high) / 2
            is_short = cycle_s(middle) <= limit
            low, high = np.where(is_short, middle, low), np.where(is_short, high, middle)
        y = np.where(cycle_s(np.asarray(y)) <= limit, y, high)
    return np.asarray(y / np.maximum(cycle_s(np.asarray(y)), 1e-300))


def _without_jumps(rows: Array) -> Array:
    """Return blocks whose collectives do not jump up: then the largest batch carries most."""
    alpha, beta, switch, gamma, delta = np.moveaxis(rows[..., server.ALPHA :], -1, 0)
    at_switch, slope = alpha + beta * switch, np.minimum(delta, beta)
    jumps = gamma + delta * switch > at_switch
    found = rows.copy()
    found[..., server.DELTA] = np.where(jumps, slope, delta)
    found[..., server.GAMMA] = np.where(jumps, at_switch - slope * switch, gamma)
    return found


def _longest_cycle_s(instance: ServingInstance, n: int) -> float:
    """Return the longest cycle within the targets, without the way to the first stage."""
    rules, lengths = instance.rules, instance.lengths
    if instance.objective is ServingObjective.THROUGHPUT:
        return math.inf
    first = 1 + (lengths.chunks - 1) / n
    limits = [math.inf]
    if rules.tpot_slo_s is not None and lengths.decode_passes > 0:
        limits.append(rules.tpot_slo_s)
    if rules.ttft_slo_s is not None:
        limits.append(rules.ttft_slo_s / first)
    if rules.latency_slo_s is not None:
        limits.append(rules.latency_slo_s / (first + lengths.decode_passes))
    return min(limits) * (1 + MARGIN)


def _block_s(row: Array, b: Array, k: Array) -> Array:
    """Return the mean seconds of a block; an iteration has a chunk or none up to one."""
    whole = _one_s(row, b, np.maximum(k, 1.0))
    none = _one_s(row, b, np.zeros_like(k))
    share = np.minimum(k, 1.0)
    return np.asarray(share * whole + (1 - share) * none)


def _one_s(row: Array, b: Array, k: Array) -> Array:
    """Return the seconds of a block in iterations of b decode tokens and k chunks."""
    tokens = b + k * row[:, server.CHUNK_TOKENS]
    is_last = row[:, server.LAST_ONLY] == 1.0
    share = np.where(is_last, np.minimum(1.0, tokens), 1.0)
    compute = b * row[:, server.COMPUTE_TOKEN] + k * row[:, server.COMPUTE_CHUNK]
    memory = share * row[:, server.READ]
    memory = memory + b * row[:, server.MEMORY_TOKEN] + k * row[:, server.MEMORY_CHUNK]
    idle = np.log(np.maximum(row[:, server.IDLE], 1e-300))
    memory = memory - row[:, server.EXPERTS] * np.expm1(tokens * idle)
    messages = np.where(is_last, np.maximum(tokens, 1.0), tokens)
    alpha, beta, switch = (row[:, c] for c in (server.ALPHA, server.BETA, server.SWITCH))
    small = alpha + beta * messages
    large = np.maximum(
        row[:, server.GAMMA] + row[:, server.DELTA] * messages, alpha + beta * switch
    )
    fixed = row[:, server.FIXED] + np.where(messages > switch, large, small)
    linear = b * row[:, server.LINEAR_TOKEN] + k * row[:, server.LINEAR_CHUNK]
    linear = linear + np.where(k > 0, row[:, server.MIXED], 0.0)
    return np.asarray(share * fixed + np.maximum(compute, memory) + linear)


def _small_tables(instance: ServingInstance) -> dict[str, Array]:
    """Return the numbers of a layer, the first and the last block, and a free block."""
    blocks = instance.blocks
    first, last = int(blocks.block_kind[0]), int(blocks.block_kind[-1])
    kinds = sorted(set(blocks.block_kind[1:-1].tolist()))
    found = {}
    for name in (*KIND_TABLES, "collective_s"):
        table = np.asarray(getattr(blocks, name))
        layer = table[:, kinds].min(axis=1)
        if name == "collective_s" and len(kinds) > 1:
            layer = np.zeros_like(layer)
        free = np.zeros_like(layer)
        found[name] = np.stack([layer, table[:, first], table[:, last], free], axis=1)
    return found


def _levels(values: Array, close: float) -> Array:
    """Return a few values, such that each of the given ones is at least one of them.

    Values that differ by less than `close` are not told apart.
    """
    apart: list[float] = []
    for value in np.unique(values):
        if not apart or value > max(apart[-1] * 1.5, apart[-1] + close):
            apart.append(float(value))
    at = np.linspace(0, len(apart) - 1, min(MAX_LEVELS, len(apart))).round().astype(int)
    return np.array(apart)[np.unique(at)]


def _numbers(n_layers: int, n_networks: int) -> IntArray:
    """Return the numbers of layers that are tried: all small ones, then ever larger steps.

    There are fewer of them if each takes more networks.
    """
    found, number = [], 0
    finest = max(6, min(n_layers, MAX_NETWORKS // max(n_networks, 1) // 3))
    while number <= n_layers:
        found.append(number)
        number += max(1, number // finest)
    return np.array(found)
