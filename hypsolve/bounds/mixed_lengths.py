"""The conditions that a rate puts on each stage of a tier if lengths of requests differ.

n requests are served in T seconds; E is the mean over them, and X = n / T. A bound on the work
of a node must add up over any subset of the requests, for a policy may send short prompts to
one node and long ones to another.

**Nodes.** Of the limits of an iteration, each alone bounds the iterations N of a node from
below by a sum over its requests: ``(o - 1 + n_c) / B``, ``p / Q``, ``(p + o - 1) / T``, and, by
KV memory of M tokens, ``h (o - 1 + n_c) / M`` where a request holds h tokens. One of them is
chosen for each stage. The seconds of a block are at least those of computation, and at least
those of memory traffic; one of them is chosen, too. Linear terms add up. All-reduces are at
least their value at 0 tokens plus the slope there. So request r keeps node g busy for at least
L_g(r) seconds, whatever the other requests are, and the sum of L_g(r) over its requests is at
most T. Let a_g = 1 / E[L_g]. Then ``T sum a_g >= sum over r of min over g of a_g L_g(r)``, and
``X <= sum a_g / E[min a_g L_g]``. With equal nodes this is their number over E[L].

**Memory.** A request holds h tokens in a tier during its prefill there, P(r) seconds at least,
and during its decode passes through all stages and links. Each pass takes at least as long as
for a request that is alone on the fastest node that holds the stage. So ``X E[h (hold + P)] <=
M`` with the M tokens of all nodes. Under ``paged``, h is p + o / 2, and P is left out: tokens
held and seconds of passes both rise along a request, so the mean of their product is at least
the product of their means. In the same way, ``X E[hold] <= max_num_seqs`` for each pipeline,
and ``X (E[hold] + think time) <= users``. The shortest chain is that of means weighted by h, or
not weighted; both conditions are necessary.

Where more than `MAX_PAIRS` pairs of lengths differ, lengths are rounded down to some quantiles.
Nothing here falls in a length, so the bound holds, and is a little larger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hypsolve.bounds.node_groups import SLACK, NodeGroups
from hypsolve.bounds.request_work import RequestWork, request_work
from hypsolve.problem import costs
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment, Requests
from hypsolve.problem.model import Block
from hypsolve.problem.network import GpuProfile, Tier
from hypsolve.problem.runtime import KvAdmission

MAX_PAIRS = 300
N_QUANTILES = 16
MAX_KNOWN = 8  # mixes that are kept
FEW_TOKENS = 1e-3  # at which the slope of all-reduces is taken


@dataclass(frozen=True, slots=True)
class LengthMix:
    """Distinct pairs of lengths with their shares, and the work of each.

    Attributes
    ----------
    prompt, output, share : ndarray, shape (n_pairs,)
    held : ndarray, shape (n_pairs,)
        Tokens of KV cache that a request holds during its decode passes, at least.
    in_batch : ndarray, shape (n_pairs,)
        Tokens that it holds in any iteration with it, at least.
    chunks : ndarray, shape (n_pairs,)
    work : RequestWork
        Arrays of shape (n_pairs, n_classes, n_kinds).
    """

    prompt: Array
    output: Array
    share: Array
    held: Array
    in_batch: Array
    chunks: Array
    work: RequestWork

    def mean(self, values: Array) -> Array:
        """Return the mean over requests; pairs are the last axis."""
        return np.asarray(values @ self.share)


_KNOWN: dict[tuple[Any, ...], LengthMix] = {}


def length_mix(
    deployment: Deployment, kinds: Sequence[Block], gpus: Sequence[GpuProfile]
) -> LengthMix:
    """Return the mix of lengths of a deployment's requests; the last ones are kept."""
    requests = deployment.requests
    pairs = np.stack([requests.prompt_tokens, requests.output_tokens], axis=1)
    if len(np.unique(pairs, axis=0)) > MAX_PAIRS:
        pairs = np.stack([_rounded_down(column) for column in pairs.T], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    key = (
        pairs.tobytes(), counts.tobytes(), deployment.runtime, deployment.cost_model,
        tuple(kinds), tuple(gpus),
    )  # fmt: skip
    if key not in _KNOWN:
        while len(_KNOWN) >= MAX_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = _mix_of(deployment, kinds, gpus, pairs, counts)
    return _KNOWN[key]


def _mix_of(
    deployment: Deployment,
    kinds: Sequence[Block],
    gpus: Sequence[GpuProfile],
    pairs: IntArray,
    counts: IntArray,
) -> LengthMix:
    """Return the mix of distinct pairs of lengths, with the requests of each."""
    runtime = deployment.runtime
    works = [request_work(_alike(deployment, p, o), kinds, gpus) for p, o in pairs.tolist()]
    p, o = pairs.T.astype(np.float64)
    is_paged = runtime.kv_admission is KvAdmission.PAGED
    reserved = np.array([float(runtime.held_tokens(p + o)) for p, o in pairs.tolist()])
    limit = runtime.prompt_limit
    return LengthMix(
        prompt=p,
        output=o,
        share=counts / counts.sum(),
        held=p + o / 2 if is_paged else reserved,
        in_batch=p if is_paged else reserved,
        chunks=np.ones(len(p)) if limit is None else np.ceil(p / limit),
        work=RequestWork(
            *(
                np.stack([getattr(work, field.name) for work in works])
                for field in dataclasses.fields(RequestWork)
            )
        ),
    )


def _rounded_down(lengths: Array) -> Array:
    levels = np.unique(np.quantile(lengths, np.linspace(0, 1, N_QUANTILES), method="lower"))
    return levels[np.searchsorted(levels, lengths, side="right") - 1]


def _alike(deployment: Deployment, prompt: int, output: int) -> Deployment:
    requests = Requests(np.zeros(1), np.array([prompt]), np.array([output]))
    return dataclasses.replace(deployment, requests=requests)


class MixedConditions(NodeGroups):
    """Rates, passes and memory of the stages of one tier, arrays by content of the stage.

    Parameters
    ----------
    by_tokens : bool
        Whether seconds are weighted by the KV cache that requests hold, and KV memory counts;
        else requests count alike, and so does `max_num_seqs`.
    """

    def __init__(
        self,
        deployment: Deployment,
        tier: Tier,
        kinds: Sequence[Block],
        gpus: Sequence[GpuProfile],
        mix: LengthMix,
        counts: Array,
        whole: int,
        *,
        by_tokens: bool,
    ) -> None:
        super().__init__(deployment, tier, kinds, gpus, counts, whole)
        self.mix = mix
        self._set_rates()
        self._set_holds(by_tokens)

    def _iterations(
        self, tokens: Array, passes: Array, held: Array, limits: list[Array]
    ) -> Array:
        """Return the iterations of each request by the best limit, (n_contents, n_pairs)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            by_memory = np.where(
                tokens[:, None] > 0, held * passes / np.maximum(tokens[:, None], 1e-300), 0.0
            )
        rows = [by_memory, *(np.broadcast_to(each, by_memory.shape) for each in limits)]
        means = np.array([self.mix.mean(row) for row in rows])
        return np.array(rows)[means.argmax(axis=0), np.arange(len(tokens))]

    def _busy_s(self, g: int) -> Array:
        """Return L, the seconds for which a request keeps a node busy, by content and pair."""
        mix, runtime, c = self.mix, self.runtime, self.classes[g]
        p, o, work = mix.prompt, mix.output, self.mix.work
        passes = o - 1 + mix.chunks
        limits = [passes / runtime.batch_limit]
        if runtime.prompt_limit is not None:
            limits.append(p / runtime.prompt_limit)
        if runtime.max_num_batched_tokens is not None:
            limits.append((p + o - 1) / runtime.max_num_batched_tokens)
        in_memory = passes if self.is_reserved else o - 1
        tokens = self.tokens[g]
        times = self._iterations(tokens, in_memory, mix.in_batch, limits)
        heads = self._iterations(tokens, o, mix.in_batch, [o / runtime.batch_limit])
        busy = times * (runtime.iteration_s if self.is_stage else 0.0)
        compute = work.decode_compute[:, c] + work.prompt_compute[:, c]
        memory = work.decode_memory[:, c] + work.prompt_memory[:, c]
        for kind, block in enumerate(self.kinds):
            n = heads if block.last_token_only else times
            moved = n * work.weights[:, c, kind] + memory[:, kind]
            computed = np.broadcast_to(compute[:, kind], moved.shape)
            is_computed = mix.mean(computed) >= mix.mean(moved)
            seconds = n * work.fixed[:, c, kind]
            seconds = seconds + np.where(is_computed[:, None], computed, moved)
            at_0, slope = self._all_reduces(g, block)
            tokens_of = o if block.last_token_only else p + o - 1
            seconds = seconds + n * at_0 + tokens_of * slope
            seconds = seconds + work.decode_linear[:, c, kind] + work.prompt_linear[:, c, kind]
            busy = busy + self.counts[:, kind, None] * seconds
        return np.maximum(busy, 1e-300)

    def _all_reduces(self, g: int, block: Block) -> tuple[float, float]:
        """Return the seconds of the all-reduces of a block at 0 tokens, and their slope."""
        if not self.roofline:
            return 0.0, 0.0
        at = np.array([0.0, FEW_TOKENS])
        none, few = costs.collectives_s(block, self.gpus[g], at).tolist()
        return none, max(few - none, 0.0) / FEW_TOKENS

    def _set_rates(self) -> None:
        """Set the sum of the rates of all nodes, and of the best ones, by content."""
        busy = np.array([self._busy_s(g) for g in range(len(self.size))])
        of_pair = np.where(self.holds[:, :, None], busy, math.inf)
        mean = self.mix.mean(busy)
        rates = np.where(self.holds, 1 / mean, 0.0)
        with np.errstate(invalid="ignore"):
            shares = np.where(self.holds[:, :, None], busy / mean[:, :, None], math.inf)
        least = self.mix.mean(np.where(self.n_holders[:, None] > 0, shares.min(axis=0), 1.0))
        self.most = (self.size @ rates) / least
        self.most_of_best = self._of_best(rates) / least
        self.least_busy_s = self.mix.mean(of_pair.min(axis=0))

    def _of_best(self, values: Array) -> Array:
        """Return the sum of the r + 1 largest values of nodes, (n_nodes, n_contents)."""
        nodes = np.repeat(values, self.size.astype(np.int64), axis=0)
        return np.cumsum(-np.sort(-nodes, axis=0), axis=0)

    def _set_holds(self, by_tokens: bool) -> None:
        """Set the mean seconds of decode passes and of the prefill, and the room for them."""
        mix, work = self.mix, self.mix.work
        weight = mix.share * mix.held if by_tokens else mix.share
        self.weight = weight / weight.sum()
        last = np.array([block.last_token_only for block in self.kinds])
        times = np.where(last, 1.0, mix.chunks[:, None, None])
        prompt = times * work.fixed + np.maximum(
            work.prompt_compute, times * work.weights + work.prompt_memory
        )
        self.alone_s = self._fastest(work.alone)
        prefill = self._fastest(prompt + work.prompt_linear)
        self.prefill_s = prefill if self.is_reserved else np.zeros_like(prefill)
        if by_tokens:
            room = self.tokens / mix.mean(mix.held)
        else:
            most = math.inf if self.is_stage else float(self.runtime.max_num_seqs)
            room = np.where(self.holds, most, 0.0)
        self.room = np.where(self.holds, self.size[:, None] * room, 0.0).sum(axis=0)
        self.room_of_best = self._of_best(room)

    def _fastest(self, seconds: Array) -> Array:
        """Return the weighted mean of the seconds on the fastest node, by content."""
        of_groups = [
            np.where(self.holds[g][:, None], self.counts @ seconds[:, c].T, math.inf)
            for g, c in enumerate(self.classes)
        ]
        return np.where(self.n_holders > 0, np.min(of_groups, axis=0) @ self.weight, math.inf)

    def decode_s(self, rate: float) -> Array:
        """Return the mean seconds of all decode passes, at least; inf if none holds."""
        return self.alone_s

    def is_open(self, rate: float, held_s: float, n_pipelines: int) -> Array:
        """Return whether each stage meets its conditions; see `StageConditions`."""
        most, room = self.most, self.room
        if n_pipelines > self.n_nodes:
            return np.zeros(len(most), dtype=bool)
        if n_pipelines:
            most = self.most_of_best[n_pipelines - 1]
            room = self.room_of_best[n_pipelines - 1]
        with np.errstate(invalid="ignore"):
            has_memory = rate * (held_s + self.prefill_s) <= room * (1 + SLACK)
        keeps_up = most * (1 + SLACK) >= rate
        return keeps_up & has_memory & (self.n_holders >= max(n_pipelines, 1))
