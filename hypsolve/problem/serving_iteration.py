"""Seconds of one iteration of a node, and the memory of a stage, for the fluid model.

This file and `serving_evaluation` are plain Python, and share no code with the methods. They
are the oracle of the methods, so they are written for the reader and not for speed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_split import SLACK

MIN_ITERATION_S = 1e-18
"""Iterations that would take less take this long, so that every rate is finite."""


class Replica:
    """A stage on a node of some class: the seconds of its iterations.

    Up to one chunk, an iteration has a chunk or has none, and its seconds are the mean of both.
    Above one chunk, they are the roofline of the mean contents. Under the batching mode
    ``stage``, each node adds the host's `iteration_s`. In the other modes the host prepares a
    batch once for all stages, and `serving_pipelines` counts it.

    Parameters
    ----------
    instance : ServingInstance
    node_class : int
    start, stop : int
        Blocks ``start:stop``.
    """

    def __init__(
        self, instance: ServingInstance, node_class: int, start: int, stop: int
    ) -> None:
        kinds = Counter(instance.blocks.block_kind[start:stop].tolist())
        self._blocks = [
            (count, _BlockSeconds(instance, node_class, kind)) for kind, count in kinds.items()
        ]
        is_stage = instance.rules.batching is Batching.STAGE
        self._host_s = instance.rules.iteration_s if is_stage else 0.0

    def iteration_s(self, n_decode: float, n_chunks: float) -> float:
        """Return the mean seconds of an iteration with mean numbers of tokens and chunks."""
        if n_chunks > 1:
            seconds = self._whole_s(n_decode, n_chunks)
        else:
            seconds = (1 - n_chunks) * self._whole_s(n_decode, 0.0)
            seconds += n_chunks * self._whole_s(n_decode, 1.0)
        return max(seconds + self._host_s, MIN_ITERATION_S)

    def jumps(self) -> set[float]:
        """Return the requests per iteration above which a collective takes longer at once."""
        return {z for _, block in self._blocks for z in block.jumps()}

    def _whole_s(self, n_decode: float, n_chunks: float) -> float:
        return math.fsum(
            count * block.seconds(n_decode, n_chunks) for count, block in self._blocks
        )


class _BlockSeconds:
    """The numbers of a kind of block on a class of nodes; see `BlockTimes`."""

    def __init__(self, instance: ServingInstance, c: int, kind: int) -> None:
        blocks = instance.blocks
        self.fixed, self.read = float(blocks.fixed_s[c, kind]), float(blocks.read_s[c, kind])
        self.experts, self.idle = (
            float(blocks.expert_s[c, kind]),
            float(blocks.idle_share[kind]),
        )
        self.compute_token = float(blocks.compute_token_s[c, kind])
        self.compute_chunk = float(blocks.compute_chunk_s[c, kind])
        self.memory_token = float(blocks.memory_token_s[c, kind])
        self.memory_chunk = float(blocks.memory_chunk_s[c, kind])
        self.mixed = float(blocks.mixed_s[c, kind])
        self.linear_token = float(blocks.linear_token_s[c, kind])
        self.linear_chunk = float(blocks.linear_chunk_s[c, kind])
        self.lines = blocks.collective_s[c, kind].tolist()
        self.is_last_token_only = bool(blocks.last_token_only[kind])
        self.lengths = lengths = instance.lengths
        self.tokens_of_chunk = (
            1 / lengths.chunks if self.is_last_token_only else lengths.chunk_tokens
        )

    def seconds(self, n_decode: float, n_chunks: float) -> float:
        """Return the seconds of a block in an iteration with these contents."""
        tokens, share = n_decode + n_chunks * self.tokens_of_chunk, 1.0
        compute = n_decode * self.compute_token + n_chunks * self.compute_chunk
        if self.is_last_token_only:
            share = min(1.0, tokens)
        memory = share * self.read + self.experts * used_share(self.idle, tokens)
        memory += n_decode * self.memory_token + n_chunks * self.memory_chunk
        if self.is_last_token_only:
            tokens = max(tokens, 1.0)  # of an iteration in which a token comes out
        alpha, beta, switch, gamma, delta = self.lines
        collective = alpha + beta * tokens
        if tokens > switch:
            collective = max(gamma + delta * tokens, alpha + beta * switch)
        linear = n_decode * self.linear_token + n_chunks * self.linear_chunk
        if n_chunks > 0:
            linear += self.mixed
        return share * (self.fixed + collective) + max(compute, memory) + linear

    def jumps(self) -> list[float]:
        """Return the requests per iteration above which its collective takes longer at once.

        The tokens of an iteration are those of z (o - 1) decode tokens, without or with one
        chunk, or with z n_c chunks.
        """
        alpha, beta, switch, gamma, delta = self.lines
        if gamma + delta * switch <= alpha + beta * switch:
            return []
        passes, chunks = self.lengths.decode_passes, self.lengths.chunks
        several = switch / (passes + chunks * self.tokens_of_chunk)
        found = [several] if several * chunks > 1 else []
        if passes:
            few = switch / passes, (switch - self.tokens_of_chunk) / passes
            found += [z for z in few if z > 0 and z * chunks <= 1]
        return found


def stage_bytes(
    instance: ServingInstance, node_class: int, start: int, stop: int
) -> tuple[float, float]:
    """Return the bytes of a stage's weights, and of its KV cache per token, on a node."""
    blocks = instance.blocks
    kinds = blocks.block_kind[start:stop]
    weights = math.fsum(blocks.weight_bytes[node_class, kinds].tolist())
    kv = math.fsum(blocks.kv_bytes_per_token[node_class, kinds].tolist())
    if start == 0 and stop == instance.n_blocks:
        weights -= float(blocks.tied_bytes[node_class])
    return weights, kv


def room_requests(instance: ServingInstance, node: int, start: int, stop: int) -> float:
    """Return how many requests a node has room for in its KV cache.

    Parameters
    ----------
    instance : ServingInstance
    node : int
        Index of the node over all tiers.
    start, stop : int
        Blocks ``start:stop``.

    Returns
    -------
    float
        0 if the weights and the longest request do not fit. inf for a stage without KV cache.
        A whole number if all requests are alike.
    """
    lengths = instance.lengths
    weights, kv = stage_bytes(instance, int(instance.nodes.node_class[node]), start, stop)
    memory = float(instance.nodes.node_bytes[node])
    free = memory - weights
    if free < -1e-12 * memory:
        return 0.0
    if kv == 0:
        return math.inf
    tokens = free / kv
    if tokens < lengths.resident_tokens * (1 - 1e-12):
        return 0.0
    room = tokens / lengths.held_tokens
    return float(math.floor(room * (1 + 1e-12))) if lengths.alike else room


def holders(
    instance: ServingInstance, tier: int, start: int, stop: int
) -> list[tuple[int, float]]:
    """Return the nodes of a tier that can hold a stage, each with its room in requests."""
    rooms = [
        (node, room_requests(instance, node, start, stop)) for node in instance.nodes_of(tier)
    ]
    return [(node, room) for node, room in rooms if room > 0]


def segment_ends(jumps: Iterable[float], most: float) -> list[float]:
    """Return the requests per cycle just below each jump, and the most requests, in order.

    The seconds of a cycle over its requests do not rise between two of these numbers.
    """
    below = {y * (1 - 1e-12) for y in jumps}
    return [*sorted(y for y in below if 0 < y < most * (1 - 1e-12)), most]


def least_batch(
    cycle_s: Callable[[float], float], ends: Sequence[float], x: float
) -> float | None:
    """Return the fewest requests per cycle that carry a rate: ``x cycle_s(y) <= y``.

    Parameters
    ----------
    cycle_s : callable
        Seconds of a cycle in which so many requests start.
    ends : sequence of float
        As `segment_ends` returns them.
    x : float
        Requests per second.

    Returns
    -------
    float or None
        None if none of them does.
    """
    low = 0.0
    for high in ends:
        if x * cycle_s(high) <= high * (1 + SLACK):
            break
        low = high
    else:
        return None
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if x * cycle_s(middle) <= middle:
            high = middle
        else:
            low = middle
    return high


def largest(carries: Callable[[float], bool], high: float, tolerance: float = 1e-11) -> float:
    """Return the largest number up to `high` that a monotone test accepts; 0 if there is none.

    Parameters
    ----------
    carries : callable
        True up to some number, and False above it.
    high : float
    tolerance : float
        Relative error of the result, which is accepted itself.
    """
    if carries(high):
        return high
    low, accepted = 0.0, False
    while high - low > tolerance * high and high > 1e-15:
        middle = (low + high) / 2
        if carries(middle):
            low, accepted = middle, True
        else:
            high = middle
    return low if accepted else 0.0


def used_share(idle_share: float, tokens: float) -> float:
    """Return the share of the experts that some token uses, exact also for few tokens.

    Parameters
    ----------
    idle_share : float
        Share of the experts that one token does not use.
    tokens : float
    """
    if idle_share == 0:
        return float(tokens > 0)
    return -math.expm1(tokens * math.log(idle_share))
