"""Forecasts of benchmark runs: a closed form of the steady state, and a simulation.

The closed form is what a fit can evaluate thousands of times. In it, N requests are always
under way. A request takes part in ``n_c`` iterations with a chunk of its prompt and in
``o - 1`` decode iterations. In each of them, the other requests have ``(N - 1) (o - 1) / I``
decode tokens and ``(N - 1) n_c / I`` chunks on average, where ``I`` is the number of iterations
in which a request is under way: at least ``n_c + o - 1``, and at least as many as the prompts
of all users need under the token budget.

The simulation is what hypsolve forecasts. The ratio of both hardly depends on the profile, and
corrects the closed form in a fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hypsolve.calibration.benchmarks_run import BenchmarkRun
from hypsolve.calibration.closed_loop import mean_times, start_times
from hypsolve.calibration.rules import MIN_QUEUE_S
from hypsolve.problem import costs
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Block, Deployment, GpuProfile, Model, Requests
from hypsolve.problem.interconnect import Interconnect
from hypsolve.problem.network import Network, Node, Tier
from hypsolve.problem.runtime import KvAdmission, Runtime

ROUNDS = 3  # requests of each user in a simulation; the first and the last are not counted
MIN_COUNTED = 16  # requests that count
MAX_VISITS = 4e6  # tokens in a simulation, at most


@dataclass(frozen=True, slots=True)
class Server:
    """Hold what is calibrated: a model under a runtime, on GPUs of one kind.

    Attributes
    ----------
    model : Model
    runtime : Runtime
    interconnect : Interconnect or None
        Among the GPUs, if they are several.
    """

    model: Model
    runtime: Runtime
    interconnect: Interconnect | None = None

    def deployment(
        self, gpu: GpuProfile, run: BenchmarkRun, arrival_s: np.ndarray | None = None
    ) -> Deployment:
        """Return the deployment of a run, with requests of its mean lengths."""
        degree = run.tensor_parallel
        node = Node(
            name="server",
            gpu=gpu,
            gpus=degree,
            interconnect=self.interconnect if degree > 1 else None,
            tensor_parallel=degree,
        )
        times = np.zeros(1) if arrival_s is None else arrival_s
        prompt = max(1, round(run.prompt_tokens))
        output = max(1, round(run.output_tokens))
        whole = np.ones(len(times), np.int64)
        return Deployment(
            model=self.model,
            network=Network(name="server", tiers=(Tier(name="server", nodes=(node,)),)),
            requests=Requests(times, prompt * whole, output * whole),
            runtime=self.runtime,
        )


class SteadyStates:
    """The steady states of some runs of a server, whose seconds any profile gives at once.

    What an iteration computes and moves does not depend on the rates of the GPU, so it is
    counted once.

    Parameters
    ----------
    server : Server
    gpu : GpuProfile
        Of which the memory counts.
    runs : sequence of BenchmarkRun
        With one degree of tensor parallelism.
    """

    def __init__(self, server: Server, gpu: GpuProfile, runs: Sequence[BenchmarkRun]) -> None:
        self.server, self.runs = server, tuple(runs)
        kinds = {block.kind: block for block in server.model.blocks}
        self.blocks = list(kinds.values())
        found = [block.kind for block in server.model.blocks]
        self.counts = np.array([found.count(kind) for kind in kinds], float)
        self.group = _profile(server, gpu, runs[0])
        self.requests = np.array([self._requests(gpu, run) for run in runs])
        states = [self._state(i, run) for i, run in enumerate(runs)]
        self.loads = np.array([(run.users, run.output_tokens) for run in runs])
        self.work = np.array([work for work, _ in states])  # (n_runs, 3, n_kinds, 2)
        self.constant_s = np.array([s for _, s in states])  # (n_runs, 3)

    def _state(self, i: int, run: BenchmarkRun) -> tuple[list[Array], list[float]]:
        """Return FLOPs and bytes of three iterations, and their seconds whatever the rates.

        The iterations are one of a decoding request with prompts of others in it, one without
        any, and one with a prompt of the request itself.
        """
        running, n_c, n_all = self.requests[i]
        chunk, cached, context = self._lengths(i, run)
        one = 1.0 if chunk else 0.0
        decode = 1 + (running - 1) * (run.output_tokens - 1) / n_all
        others = (running - 1) * (run.output_tokens - 1) / n_all
        pieces = (running - 1) * n_c / n_all
        made = [
            (decode, max(pieces, one)), (decode, 0.0), (others, max(pieces + n_c / n_all, one)),
        ]  # fmt: skip
        work = [self._work(*each, chunk, cached, context) for each in made]
        seconds = [
            self.server.runtime.iteration_s
            + sum(
                n
                * float(costs.collectives_s(block, self.group, _computed(block, *each, chunk)))
                for n, block in zip(self.counts, self.blocks, strict=True)
            )
            for each in made
        ]
        return work, seconds

    def _lengths(self, i: int, run: BenchmarkRun) -> tuple[float, float, float]:
        """Return the tokens of a chunk, those cached before it, and the context of decoding."""
        p, n_c = run.prompt_tokens, self.requests[i][1]
        chunk = p / n_c if n_c else 0.0
        cached = run.cached_tokens + (p - chunk) / 2
        return chunk, cached, run.cached_tokens + p + run.output_tokens / 2

    def _requests(self, gpu: GpuProfile, run: BenchmarkRun) -> tuple[float, float, float]:
        """Return the requests under way, the chunks of one, and the iterations of one."""
        runtime = self.server.runtime
        p, o = run.prompt_tokens, run.output_tokens
        budget = run.chunk_tokens or runtime.prompt_limit or max(p, 1.0)
        n_c = max(1.0, math.ceil(p / budget)) if p else 0.0
        fit = room(self.server.deployment(gpu, run), p, o)
        running = min(run.users, float(runtime.max_num_seqs), fit)
        return running, n_c, max(n_c + o - 1, running * p / budget)

    def _work(
        self, n_decode: float, n_chunks: float, chunk: float, cached: float, context: float
    ) -> Array:
        """Return the FLOPs and the bytes of a block of each kind, shape (n_kinds, 2)."""
        copies = self.group.kv_copies
        rows = []
        for block in self.blocks:
            flops, moved = costs.step_work(block, 1.0, context - 1, n_decode, kv_copies=copies)
            more, read = costs.step_work(block, chunk, cached, n_chunks, kv_copies=copies)
            prompt = n_chunks * (1.0 if block.last_token_only else chunk)
            # the weights are read once for both
            apart = costs.weight_read_bytes(block, n_decode)
            apart = apart + costs.weight_read_bytes(block, prompt)
            together = costs.weight_read_bytes(block, n_decode + prompt)
            rows.append((float(flops + more), float(moved + read - apart + together)))
        return np.array(rows)

    def seconds(self, gpu: GpuProfile, which: NDArray[np.int64] | None = None) -> Array:
        """Return the time to first token and the time per token of runs under a profile.

        Returns
        -------
        ndarray, shape (n_runs, 2)
            The time per token is nan for a single output token.
        """
        chosen = np.arange(len(self.runs)) if which is None else which
        group = _profile(self.server, gpu, self.runs[0])
        work = self.work[chosen]
        flops_s, bytes_s = work[..., 0] / group.flops_per_s, work[..., 1] / group.bytes_per_s
        of_kinds = group.t0_s + (np.maximum if group.overlaps else np.add)(flops_s, bytes_s)
        steps = of_kinds @ self.counts + self.constant_s[chosen]
        return self._times(chosen, steps)

    def _times(self, chosen: NDArray[np.int64], steps: Array) -> Array:
        """Return the times of runs whose three iterations take so long."""
        mixed_s, alone_s, prompt_s = steps.T
        running, n_c, n_all = self.requests[chosen].T
        users, output = self.loads[chosen].T
        passes = output - 1
        share = np.minimum((running - 1) * n_c / n_all, 1.0)
        mean_s = (1 - share) * alone_s + share * mixed_s
        ttft_s = (running > 1) * mean_s / 2 + n_c * prompt_s
        ttft_s += np.maximum(n_all - passes - n_c, 0.0) * np.where(passes, mean_s, prompt_s)
        # users beyond those wait for admission
        ttft_s += (ttft_s + passes * mean_s) * (users / running - 1)
        return np.stack([ttft_s, np.where(passes > 0, mean_s, math.nan)], axis=1)


def _profile(server: Server, gpu: GpuProfile, run: BenchmarkRun) -> GpuProfile:
    """Return the profile of the GPUs of a run, which compute as one."""
    deployment = server.deployment(gpu, run)
    return deployment.profile(deployment.network.tiers[0].nodes[0])


def _computed(block: Block, n_decode: float, n_chunks: float, chunk: float) -> float:
    return n_decode + n_chunks * (1.0 if block.last_token_only else chunk)


def room(deployment: Deployment, prompt: float, output: float) -> float:
    """Return the requests whose KV cache fits beside the weights; at least one."""
    whole = deployment.runtime.kv_admission is KvAdmission.RESERVE
    held = prompt + (output if whole else output / 2)
    return max(_room_tokens(deployment) / max(held, 1.0), 1.0)


def _room_tokens(deployment: Deployment) -> float:
    """Return the tokens of KV cache that fit beside the weights; inf without a cache."""
    node = deployment.network.tiers[0].nodes[0]
    blocks = deployment.model.blocks
    per_token = deployment.kv_bytes_per_token(blocks, node)
    if not per_token:
        return math.inf
    free = deployment.usable_bytes(node) - deployment.model.stage_weight_bytes(blocks)
    return free / per_token


def waits_for_memory(server: Server, gpu: GpuProfile, run: BenchmarkRun) -> bool:
    """Return whether users wait for KV cache, by the rule that claims leave runs out by.

    They wait more than `hypsolve.calibration.rules.MIN_QUEUE_S` for a first token, and their
    requests need more KV cache than there is: by the profile of the runtime, for the share of
    the memory that the server took is not known.
    """
    if run.is_kernel_time or run.ttft_s is None or run.ttft_s <= MIN_QUEUE_S:
        return False
    held = run.users * (run.cached_tokens + run.prompt_tokens + run.output_tokens)
    return held > _room_tokens(server.deployment(gpu, run))


def simulated(
    server: Server, gpu: GpuProfile, run: BenchmarkRun, request_s: float = 0.0
) -> tuple[float, float]:
    """Return the time to first token and the time per token of a run by simulation.

    Users start evenly over the latency of one request, and the first and the last request of
    each are not counted. A test of `llama-bench` needs no simulation: it is a single sequence,
    without a server. A server adds `request_s` to each time to first token; meanwhile, the
    request is not under way.

    Raises
    ------
    ValueError
        If the model does not fit on the GPUs.
    """
    ttft_s, tpot_s = SteadyStates(server, gpu, [run]).seconds(gpu)[0].tolist()
    if run.is_kernel_time:
        return ttft_s, tpot_s
    users = max(1, round(run.users))
    output = max(1, round(run.output_tokens))
    latency_s = ttft_s + (output - 1) * (0.0 if math.isnan(tpot_s) else tpot_s)
    rounds = max(ROUNDS, 2 + math.ceil(MIN_COUNTED / users))
    rounds = max(2, min(rounds, int(MAX_VISITS / (users * output)) or 2))
    deployment = server.deployment(gpu, run, start_times(users, rounds, latency_s))
    ttft_s, tpot_s = mean_times(deployment, users, rounds, request_s)
    return ttft_s + request_s, tpot_s if output > 1 else math.nan


def with_numbers(gpu: GpuProfile, numbers: np.ndarray) -> GpuProfile:
    """Return a GPU with other numbers: t0, FLOP/s, bytes/s."""
    t0_s, flops_per_s, bytes_per_s = (float(number) for number in numbers)
    return replace(gpu, t0_s=t0_s, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
