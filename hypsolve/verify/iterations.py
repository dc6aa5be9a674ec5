"""Seconds of an iteration of a node, and requests that have room, in whole numbers.

This is the model of `hypsolve.problem.serving_iteration`, written again from the definitions in
`hypsolve.problem.serving_records` with directed rounding (`directed`).
"""

from __future__ import annotations

import copy
from collections import Counter
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import Lengths
from hypsolve.verify.directed import ONE, fixed, power, times

GRACE = Fraction(1, 10**12)  # relative rounding that the fluid model forgives
MIN_ITERATION_S = 1e-18


class Content(NamedTuple):
    """Kinds of the blocks of a stage, each with its number."""

    counts: tuple[tuple[int, int], ...]
    is_whole: bool  # all blocks of the model


class BlockSeconds:
    """A kind of block on a class of nodes."""

    def __init__(self, instance: ServingInstance, c: int, kind: int) -> None:
        blocks, lengths = instance.blocks, instance.lengths
        self.is_last = bool(blocks.last_token_only[kind])
        self.idle = float(blocks.idle_share[kind])
        chunks = Fraction(lengths.chunks)
        tokens = Fraction(1) if self.is_last else Fraction(lengths.prompt_tokens)
        self.tokens_of_chunk = tokens / chunks
        numbers = [float(getattr(blocks, name)[c, kind]) for name in _COLUMNS]
        lines = blocks.collective_s[c, kind].tolist()
        self.has_lines, self.switch = any(lines), float(lines[2])
        self.lines = [Fraction(x) for x in lines]
        rows = [*numbers, *lines, self.tokens_of_chunk]
        self.rounded = tuple([fixed(x, up) for x in rows] for up in (False, True))

    def seconds(self, n_decode: int, n_chunks: int, up: bool) -> int:
        """Return the seconds of the block in an iteration with these contents."""
        (fixed_s, read, experts, compute_token, compute_chunk, memory_token, memory_chunk,
         mixed, linear_token, linear_chunk, alpha, beta, switch, gamma, delta,
         of_chunk) = self.rounded[up]  # fmt: skip
        tokens = n_decode + times(n_chunks, of_chunk, up)
        share = min(ONE, tokens) if self.is_last else ONE
        compute = times(n_decode, compute_token, up) + times(n_chunks, compute_chunk, up)
        memory = times(n_decode, memory_token, up) + times(n_chunks, memory_chunk, up)
        memory += times(share, read, up)
        if experts:
            memory += times(experts, ONE - power(self.idle, tokens, not up), up)
        if self.has_lines:
            if self.is_last:
                tokens = max(tokens, ONE)
            if tokens > switch:
                flat = alpha + times(beta, switch, up)
                fixed_s += max(gamma + times(delta, tokens, up), flat)
            else:
                fixed_s += alpha + times(beta, tokens, up)
        linear = times(n_decode, linear_token, up) + times(n_chunks, linear_chunk, up)
        if n_chunks:
            linear += mixed
        return times(share, fixed_s, up) + max(compute, memory) + linear

    def jumps(self, lengths: Lengths) -> list[Fraction]:
        """Return the requests per iteration above which collective operations jump up.

        The tokens of an iteration are those of z (o - 1) decode tokens, without or with one
        chunk, or with z n_c chunks.
        """
        alpha, beta, switch, gamma, delta = self.lines
        if gamma + delta * switch <= alpha + beta * switch:
            return []
        passes, chunks = Fraction(lengths.decode_passes), Fraction(lengths.chunks)
        piece = self.tokens_of_chunk
        above = switch / (passes + chunks * piece)
        found = [above] if above * chunks > 1 else []
        if passes:
            below = switch / passes, (switch - piece) / passes
            found += [z for z in below if 0 < z * chunks <= 1]
        return found

    def flat(self) -> BlockSeconds:
        """Return the block with collective operations that stay as they are at the switch."""
        block = copy.copy(self)
        block.rounded = tuple(
            [0 if at in (_GAMMA, _DELTA) else x for at, x in enumerate(row)]
            for row in self.rounded
        )
        return block

    def bends_up(self) -> bool:
        """Return whether the second line is too steep for the proof of `roots`."""
        alpha, beta, switch, _, delta = self.lines
        return (delta - beta) * max(switch, Fraction(1)) > alpha


_COLUMNS = (
    "fixed_s", "read_s", "expert_s", "compute_token_s", "compute_chunk_s", "memory_token_s",
    "memory_chunk_s", "mixed_s", "linear_token_s", "linear_chunk_s",
)  # fmt: skip
_GAMMA, _DELTA = len(_COLUMNS) + 3, len(_COLUMNS) + 4


class Iterations:
    """Iterations of a stage on a class of nodes."""

    def __init__(self, blocks: list[tuple[int, BlockSeconds]], host_s: tuple[int, int]) -> None:
        self.blocks, self.host_s = blocks, host_s
        self.least_s = fixed(MIN_ITERATION_S, False), fixed(MIN_ITERATION_S, True)

    def seconds(self, n_decode: int, n_chunks: int, up: bool) -> int:
        """Return the mean seconds of an iteration with mean numbers of tokens and chunks."""
        if n_chunks > ONE:
            total = self._whole_s(n_decode, n_chunks, up)
        else:
            total = times(ONE - n_chunks, self._whole_s(n_decode, 0, up), up)
            if n_chunks:
                total += times(n_chunks, self._whole_s(n_decode, ONE, up), up)
        return max(total + self.host_s[up], self.least_s[up])

    def _whole_s(self, n_decode: int, n_chunks: int, up: bool) -> int:
        return sum(n * block.seconds(n_decode, n_chunks, up) for n, block in self.blocks)

    def without_jumps(self, low: Fraction, high: Fraction, lengths: Lengths) -> Iterations:
        """Return iterations that take no longer, if z requests start in each, low < z <= high.

        Between these z, their seconds over z do not rise.
        """
        blocks = [
            (n, block.flat() if any(low < z < high for z in block.jumps(lengths)) else block)
            for n, block in self.blocks
        ]
        return Iterations(blocks, self.host_s)

    def jumps(self, lengths: Lengths) -> list[Fraction]:
        """Return the requests per iteration above which collective operations jump up."""
        return sorted({z for _, block in self.blocks for z in block.jumps(lengths)})


class Server:
    """A serving instance as lists of exact numbers."""

    def __init__(self, instance: ServingInstance) -> None:
        self.instance, self.lengths = instance, instance.lengths
        self.n_blocks, self.n_tiers = instance.n_blocks, instance.n_tiers
        self.kinds: list[int] = instance.blocks.block_kind.tolist()
        limits = instance.limits
        self.cut_min: list[int] = limits.cut_min.tolist()
        self.cut_max: list[int] = limits.cut_max.tolist()
        self.min_blocks: list[int] = instance.min_blocks.tolist()
        self.max_blocks: list[int] = limits.max_blocks.tolist()
        nodes = instance.nodes
        pairs = list(zip(nodes.node_class.tolist(), nodes.node_bytes.tolist(), strict=True))
        self.nodes: list[list[tuple[int, float]]] = [
            [(int(pairs[n][0]), float(pairs[n][1])) for n in instance.nodes_of(k)]
            for k in range(self.n_tiers)
        ]
        self.token_s: list[list[float]] = instance.links.token_s.tolist()
        self.cut_kind: list[int] = instance.links.cut_kind.tolist()
        self.round_trip_s: list[float] = instance.links.round_trip_s.tolist()
        entry = [Fraction(x) for x in instance.links.entry_s.tolist()]
        request_s = Fraction(instance.rules.request_s)
        self.entry_s = [sum(entry[:k], request_s) for k in range(self.n_tiers)]
        is_stage = instance.rules.batching is Batching.STAGE
        host = instance.rules.iteration_s if is_stage else 0.0
        host_s = fixed(host, False), fixed(host, True)
        block = cache(lambda c, kind: BlockSeconds(instance, c, kind))
        self.iterations = cache(
            lambda c, content: Iterations(
                [(n, block(c, kind)) for kind, n in content.counts], host_s
            )
        )
        self.content = cache(self._content)
        self.room = cache(self._room)

    def bends_up(self) -> bool:
        """Return whether collective operations of some block are outside of the proof."""
        kinds = sorted(set(self.kinds))
        return any(
            BlockSeconds(self.instance, c, kind).bends_up()
            for c in range(self.instance.n_classes)
            for kind in kinds
        )

    def _content(self, i: int, j: int) -> Content:
        counts = tuple(sorted(Counter(self.kinds[i:j]).items()))
        return Content(counts, j - i == self.n_blocks)

    def _room(self, c: int, memory: float, content: Content) -> Fraction | None:
        """Return the requests that have room; None without KV cache, 0 if nothing fits."""
        blocks = self.instance.blocks
        weights, kv = Fraction(0), Fraction(0)
        for kind, n in content.counts:
            weights += n * Fraction(float(blocks.weight_bytes[c, kind]))
            kv += n * Fraction(float(blocks.kv_bytes_per_token[c, kind]))
        if content.is_whole:
            weights -= Fraction(float(blocks.tied_bytes[c]))
        free = Fraction(memory) - weights
        if free < -GRACE * Fraction(memory):
            return Fraction(0)
        if kv == 0:
            return None
        tokens = free / kv
        if tokens < Fraction(self.lengths.resident_tokens) * (1 - GRACE):
            return Fraction(0)
        room = tokens / Fraction(self.lengths.held_tokens)
        return Fraction(room * (1 + GRACE) // 1) if self.lengths.alike else room

    def crosses(self, k: int, cut: int) -> bool:
        """Return whether tokens cross the link behind a tier at a cut."""
        return k < self.n_tiers - 1 and 0 < cut < self.n_blocks

    def link_token_s(self, k: int, cut: int) -> float:
        """Return the seconds of a token on the link behind a tier; 0 if none crosses."""
        return self.token_s[k][self.cut_kind[cut]] if self.crosses(k, cut) else 0.0

    def ends(self, k: int, i: int) -> range:
        """Return the cuts that may end a stage of tier k that begins at block i."""
        first = max(i + self.min_blocks[k], self.cut_min[k + 1])
        last = min(self.n_blocks, i + self.max_blocks[k], self.cut_max[k + 1])
        return range(first, last + 1)

    def starts(self, k: int) -> range:
        """Return the blocks at which a stage of tier k may begin."""
        return range(self.cut_min[k], self.cut_max[k] + 1)
