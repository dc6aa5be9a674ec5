"""The conditions that a rate puts on each stage of a tier, by content; see `throughput`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hypsolve.bounds.node_groups import SLACK, NodeGroups
from hypsolve.bounds.request_work import RequestWork
from hypsolve.problem import costs
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.model import Block
from hypsolve.problem.network import GpuProfile, Tier

N_BATCHES = 48  # points of the grid of mean batches
N_MULTIPLIERS = 24


class StageConditions(NodeGroups):
    """Rates, passes and memory of the stages of one tier, arrays by content of the stage."""

    def __init__(
        self,
        deployment: Deployment,
        tier: Tier,
        kinds: Sequence[Block],
        gpus: Sequence[GpuProfile],
        work: RequestWork,
        counts: Array,
        whole: int,
    ) -> None:
        super().__init__(deployment, tier, kinds, gpus, counts, whole)
        runtime, self.work = self.runtime, work
        self.prompt = int(deployment.requests.prompt_tokens[0])
        self.output = int(deployment.requests.output_tokens[0])
        self.is_last = np.array([block.last_token_only for block in kinds])
        limit = runtime.prompt_limit
        self.n_chunks = 1 if limit is None else -(-self.prompt // limit)
        self.host_s = runtime.iteration_s if self.is_stage else 0.0
        self.reserved = runtime.held_tokens(self.prompt + self.output)
        self._set_rates()
        self._set_memory()
        self.uses_grid = self.is_stage and self.is_reserved and self.output > 1
        if self.uses_grid:
            self._set_grid()

    def _set_rates(self) -> None:
        """Set l_g, the least seconds of a node for a request, and the sum of the rates."""
        runtime, o = self.runtime, self.output
        tokens = self.reserved if self.is_reserved else self.prompt
        batch = np.minimum(runtime.batch_limit, np.floor(self.tokens / tokens))
        batch = np.maximum(batch, 1e-300)  # a node that holds nothing has no rate
        phi = np.maximum((o - 1) / batch, (o - 1 + self.n_chunks) / runtime.batch_limit)
        if self.is_reserved:
            phi = np.maximum(phi, (o - 1 + self.n_chunks) / batch)
        if runtime.prompt_limit is not None:
            phi = np.maximum(phi, self.prompt / runtime.prompt_limit)
        if runtime.max_num_batched_tokens is not None:
            phi = np.maximum(phi, (self.prompt + o - 1) / runtime.max_num_batched_tokens)
        work, c = self.work, self.classes
        compute = (work.decode_compute + work.prompt_compute)[c]
        memory = (work.decode_memory + work.prompt_memory)[c]
        busy = phi * self.host_s
        for kind in range(self.counts.shape[1]):
            times = o / batch if self.is_last[kind] else phi
            seconds = times * work.fixed[c, kind, None] + np.maximum(
                compute[:, kind, None],
                times * work.weights[c, kind, None] + memory[:, kind, None],
            )
            computed = o if self.is_last[kind] else self.prompt + o - 1
            seconds = seconds + times * self._all_reduces_s(kind, computed / times)
            linear = work.decode_linear + work.prompt_linear
            seconds = seconds + linear[c, kind, None]
            busy = busy + np.where(
                self.counts[:, kind] > 0, self.counts[:, kind] * seconds, 0.0
            )
        self.busy_s = np.where(self.holds, np.maximum(busy, 1e-300), math.inf)
        self.least_busy_s = self.busy_s.min(axis=0)
        self.most = self.size @ (1 / self.busy_s)
        self.most_of_best = self._of_best(1 / self.busy_s)

    def _all_reduces_s(self, kind: int, tokens: Array) -> Array:
        """Return the seconds of the all-reduces of a block, by group; `tokens` may be, too."""
        rows = np.broadcast_to(tokens, (len(self.gpus), *np.shape(tokens)[-1:]))
        if not self.roofline:
            return np.zeros(rows.shape)
        block = self.kinds[kind]
        pairs = zip(self.gpus, rows, strict=True)
        return np.array([costs.collectives_s(block, gpu, row) for gpu, row in pairs])

    def _of_best(self, values: Array) -> Array:
        """Return the sum of the r + 1 largest values of nodes, (n_nodes, n_contents)."""
        nodes = np.repeat(values, self.size.astype(np.int64), axis=0)
        return np.cumsum(-np.sort(-nodes, axis=0), axis=0)

    def _set_memory(self) -> None:
        """Set the requests that hold KV cache at once, their prefill, and passes alone."""
        runtime, work, c = self.runtime, self.work, self.classes
        if self.is_reserved:
            held = np.floor(self.tokens / self.reserved)
        else:
            held = self.tokens / (self.prompt + self.output / 2)
        if not self.is_stage:
            held = np.minimum(held, float(runtime.max_num_seqs))
        with np.errstate(invalid="ignore"):
            held = np.where(self.holds, held, 0.0)
            self.room = np.where(self.holds, self.size[:, None] * held, 0.0).sum(axis=0)
        self.room_of_best = self._of_best(held)
        times = np.where(self.is_last, 1.0, self.n_chunks)
        compute, memory = work.prompt_compute[c], work.prompt_memory[c]
        seconds = times * work.fixed[c] + np.maximum(compute, times * work.weights[c] + memory)
        seconds = seconds + work.prompt_linear[c]
        prefill = np.where(self.holds, seconds @ self.counts.T, math.inf).min(axis=0)
        self.prefill_s = prefill if self.is_reserved else np.zeros_like(prefill)
        alone = np.where(self.holds, work.alone[c] @ self.counts.T, math.inf)
        self.alone_s = alone.min(axis=0)

    def _set_grid(self) -> None:
        """Set pass seconds w_g at some mean batches b, and the rates from which they hold.

        Both are of shape (n_groups, n_contents, N_BATCHES). From ``x = b / ((o - 1) tau(b, b p
        / (o - 1)))`` requests per second on, the mean batch is at least b.
        """
        work, c = self.work, self.classes
        batches = np.geomspace(1.0, max(self.runtime.batch_limit, 1), N_BATCHES)
        per_pass = 1 / (self.output - 1)
        shape = (len(c), self.counts.shape[0], N_BATCHES)
        mean_s, pass_s = np.full(shape, self.host_s), np.full(shape, self.host_s)
        for kind in range(self.counts.shape[1]):
            n = self.counts[None, :, kind, None]
            fixed, weights = (a[c, kind, None] for a in (work.fixed, work.weights))
            once = work.pass_compute[c, kind, None], work.pass_memory[c, kind, None]
            alone = fixed + np.maximum(batches * once[0], weights + batches * once[1])
            alone = alone + self._all_reduces_s(kind, batches)
            alone = alone + batches * work.pass_linear[c, kind, None]
            pass_s = pass_s + n * alone[:, None, :]
            compute = work.decode_compute[c, kind, None]
            memory = work.decode_memory[c, kind, None]
            linear = work.decode_linear[c, kind, None]
            if self.is_last[kind]:
                fixed, weights = np.zeros_like(fixed), np.zeros_like(weights)
            else:
                compute = compute + work.prompt_compute[c, kind, None]
                memory = memory + work.prompt_memory[c, kind, None]
                linear = linear + work.prompt_linear[c, kind, None]
            share = batches * per_pass
            mean = fixed + np.maximum(share * compute, weights + share * memory)
            mean = mean + share * linear
            if not self.is_last[kind]:
                tokens = batches * (1 + self.prompt * per_pass)
                mean = mean + self._all_reduces_s(kind, tokens)
            mean_s = mean_s + n * mean[:, None, :]
        with np.errstate(divide="ignore"):
            rates = np.where(mean_s > 0, batches * per_pass / mean_s, math.inf)
        self.grid_rate, self.grid_pass_s = rates, pass_s

    def decode_s(self, rate: float) -> Array:
        """Return (o - 1) W_k, the seconds of all decode passes, at least; inf if none holds."""
        if not self.uses_grid:
            return self.alone_s
        if len(self.size) == 1:
            each = rate / self.size[0]
            at = (self.grid_rate[0] <= each).sum(axis=1) - 1
            rows = np.arange(len(at))
            found = self.grid_pass_s[0, rows, np.maximum(at, 0)]
        else:
            found = self._lagrangian(rate)
        seconds = np.maximum((self.output - 1) * found, self.alone_s)
        return np.where(self.n_holders > 0, seconds, math.inf)

    def _lagrangian(self, rate: float) -> Array:
        """Return a lower bound on the mean pass over unequal nodes, by content."""
        most = np.where(self.holds, 1 / self.busy_s, 0.0)[:, :, None]
        start = np.minimum(np.concatenate([np.zeros_like(most), self.grid_rate], 2), most)
        stop = np.concatenate([start[:, :, 1:], most], axis=2)
        passes = np.concatenate([self.grid_pass_s[:, :, :1], self.grid_pass_s], axis=2)
        low = np.where(self.holds, self.grid_pass_s[:, :, 0], math.inf).min(axis=0)
        best = low.copy()
        with np.errstate(invalid="ignore", over="ignore"):
            scales = np.geomspace(1.0, 8.0, N_MULTIPLIERS)
            for scale in scales:
                price = np.where(np.isfinite(low), low * scale, 0.0)[None, :, None]
                slope = passes - price
                cells = np.minimum(start * slope, stop * slope).min(axis=2)
                total = self.size @ np.where(self.holds, cells, 0.0)
                best = np.fmax(best, total / rate + price[0, :, 0])
        return best

    def is_open(self, rate: float, held_s: float, n_pipelines: int) -> Array:
        """Return whether each stage meets its conditions if KV cache is held for so long.

        Parameters
        ----------
        rate : float
        held_s : float
        n_pipelines : int
            Nodes of the stage that work; 0: all.
        """
        most, room = self.most, self.room
        if n_pipelines > self.n_nodes:
            return np.zeros(len(most), dtype=bool)
        if n_pipelines:
            most = self.most_of_best[n_pipelines - 1]
            room = self.room_of_best[n_pipelines - 1]
        keeps_up = most * (1 + SLACK) >= rate
        with np.errstate(invalid="ignore"):
            has_memory = rate * (held_s + self.prefill_s) <= room * (1 + SLACK)
        return keeps_up & has_memory & (self.n_holders >= max(n_pipelines, 1))
