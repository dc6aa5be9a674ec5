"""Parts of `simpy_model`: phases of an instant, progress of requests, links, costs."""

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import simpy

from hypsolve.problem.costs import service_s, weight_read_bytes
from hypsolve.problem.deployment import CostModel
from tests.helpers import operator_costs


class Phase(IntEnum):
    """Order within an instant. SimPy's own events, with priorities 0 and 1, come first."""

    ITERATION_ENDS = 1
    EVENT = 2
    TOKENS_RETURN = 3
    MESSAGE_ARRIVES = 4
    DISPATCH = 5
    BLOCKS = 6
    ITERATION_STARTS = 7


TIES = 10**6  # in one phase of an instant, the lower tie comes first


def later(env, phase, delay_s=0.0, tie=0):
    """Wait as `env.timeout` does, but in a phase of the instant."""
    event = env.event()
    event._ok, event._value = True, None  # as simpy.Timeout does
    env.schedule(event, phase * TIES + tie, delay_s)
    return event


DEFAULTS = {  # options of `simulate`, as its docstring says
    "batching": "stage",
    "max_num_seqs": 64,
    "max_num_batched_tokens": None,
    "chunk_tokens": 512,
    "micro_batch_tokens": None,
    "kv_admission": "reserve",
    "kv_block_tokens": 16,
    "iteration_s": 0.0,
    "users": None,
    "think_time_s": 0.0,
    "link_contention": False,
}


@dataclass
class Answer:
    """Record of a run; -1 and nan where nothing happened. After a restart: the last attempt."""

    arrival_s: np.ndarray  # (n_requests,), as the next five
    end_s: np.ndarray
    first_token_s: np.ndarray
    restarts: np.ndarray
    lost_tokens: np.ndarray
    preemptions: np.ndarray
    node: np.ndarray  # (n_requests, n_tiers), as the next three
    reached_s: np.ndarray
    admitted_s: np.ndarray
    left_s: np.ndarray
    busy_s: np.ndarray  # (n_nodes,), as the next three
    n_iterations: np.ndarray
    n_tokens: np.ndarray
    kv_capacity_bytes: np.ndarray
    end_of_run_s: float = 0.0
    n_visits: int = 0
    # (request, node, start_s, end_s, tokens, context_tokens)
    visits: list[tuple] = field(default_factory=list)
    # what lasted, by its name in `Series` -> (node, start_s, end_s, weight); stranded: tier
    intervals: dict[str, list[tuple]] = field(default_factory=dict)
    # how often a rule came into play
    seen: Counter = field(default_factory=Counter)


def empty_answer(arrival_s, n_tiers, n_nodes):
    n = len(arrival_s)
    return Answer(
        arrival_s,
        *(np.full(n, math.nan) for _ in range(2)),
        *(np.zeros(n, np.int64) for _ in range(3)),
        np.full((n, n_tiers), -1),
        *(np.full((n, n_tiers), math.nan) for _ in range(3)),
        np.zeros(n_nodes),
        *(np.zeros(n_nodes, np.int64) for _ in range(2)),
        np.zeros(n_nodes),
        intervals={
            name: [] for name in ("busy", "n_requests", "n_waiting", "kv_bytes", "n_stranded")
        },
    )


@dataclass(eq=False)
class Attempt:
    """Attempt of a request: from its arrival or a restart to its end or the next restart."""

    request: int
    prompt_tokens: int  # with the tokens delivered before
    n_passes: int  # tokens still to come
    whole_tokens: int  # prompt and output
    rank: int  # by arrival
    returned: simpy.Store  # tokens back at the request side
    n_returned: int = 0
    stays: dict = field(default_factory=dict)  # number of the stage -> Stay
    over: bool = False


@dataclass(eq=False)
class Stay:
    """Progress of an attempt at a stage."""

    attempt: Attempt
    node: object = None  # pinned to
    stranded_s: float = math.nan  # since when
    pinned_s: float = math.nan
    admitted_s: float = math.nan
    held_since_s: float = math.nan  # as much KV memory as now
    waiting_tokens: int = 0  # arrived, not started
    waiting_since_s: float = math.nan
    started_tokens: int = 0
    ended_tokens: int = 0
    last_message: simpy.Process | None = None  # of its prompt, to the next stage

    @property
    def total_tokens(self):
        return self.attempt.prompt_tokens + self.attempt.n_passes - 1

    def receive(self, tokens, now_s):
        if not self.waiting_tokens:
            self.waiting_since_s = now_s
        self.waiting_tokens += tokens

    def start(self, tokens):
        self.waiting_tokens -= tokens
        self.started_tokens += tokens


@dataclass
class Entry:
    """Share of one request in one iteration."""

    stay: Stay
    tokens: int
    cached_tokens: int

    @property
    def is_decode(self):
        return self.cached_tokens >= self.stay.attempt.prompt_tokens

    @property
    def ends_pass(self):
        return self.cached_tokens + self.tokens >= self.stay.attempt.prompt_tokens


class Link:
    """Link to the next tier; its lane is busy during a transmission, not during the latency."""

    def __init__(self, env, link, contention):
        self.env, self.full_bytes_per_s = env, link.bytes_per_s
        self.latency_s, back_s = link.latency_s, link.return_latency_s
        self.return_latency_s = link.latency_s if back_s is None else back_s
        self.bytes_per_s = self.full_bytes_per_s
        self.lane = simpy.Resource(env, capacity=1 if contention else math.inf)
        self.transmitting = []  # processes

    def cross(self, message_bytes):
        with self.lane.request() as turn:
            yield turn
            self.transmitting.append(self.env.active_process)
            yield from self._transmit(message_bytes)
            self.transmitting.remove(self.env.active_process)
        yield later(self.env, Phase.MESSAGE_ARRIVES, self.latency_s)

    def _transmit(self, left_bytes):
        while True:
            since_s, bytes_per_s = self.env.now, self.bytes_per_s
            try:
                yield self.env.timeout(left_bytes / bytes_per_s)
                return
            except simpy.Interrupt:  # the rate has changed
                left_bytes = max(0.0, left_bytes - (self.env.now - since_s) * bytes_per_s)

    def set_factor(self, factor):
        self.bytes_per_s = factor * self.full_bytes_per_s
        for process in self.transmitting:
            process.interrupt()


# costs; `blocks` are pairs (block, how many of it)


class Cards:
    """GPUs of a node, one by one: each has its part of the weights, the FLOPs and the heads."""

    def __init__(self, spec, deployment):
        self.gpu, self.number, self.usable_bytes = spec.gpu, spec.gpus, spec.usable_bytes
        heads = deployment.model.n_kv_heads if self.number > 1 else self.number
        self.share_of_heads = max(heads // self.number, 1) / heads  # of each GPU
        self.lines = {}
        if self.number > 1:
            rows = [r for r in spec.interconnect.all_reduces if r.degree == self.number]
            self.lines = {row.library: row for row in rows}
            self.lines = self.lines.get(deployment.runtime.name, self.lines.get("nccl"))

    def tokens(self, weight_bytes, kv_bytes):
        """Return the tokens whose KV cache fits on every GPU beside its weights."""
        free_bytes = self.usable_bytes - weight_bytes / self.number
        return math.floor(free_bytes / (kv_bytes * self.share_of_heads))

    def kv_bytes(self, kv_bytes):
        """Return the KV cache over all GPUs."""
        return self.number * self.share_of_heads * kv_bytes

    def all_reduces_s(self, block, computed):
        """Return the seconds in which the GPUs add up their parts of a block."""
        if self.number == 1:
            return 0.0
        size, row = computed * block.collective_bytes_per_token, self.lines
        start_s, slope = row.large_s, row.large_s_per_byte
        if size <= row.switch_bytes:
            start_s, slope = row.small_s, row.small_s_per_byte
        return block.collectives * (start_s + size * slope)


def iteration_s(blocks, batch, cards, cost_model):
    """Return the nominal seconds of one iteration."""
    seconds, gpu = 0.0, cards.gpu
    for block, count in blocks:
        if block.last_token_only:
            computed = sum(entry.ends_pass for entry in batch)
        else:
            computed = sum(entry.tokens for entry in batch)
        if computed:
            flops, moved_bytes = _work(block, computed, batch, cards)
            compute_s, memory_s = flops / gpu.flops_per_s, moved_bytes / gpu.bytes_per_s
            block_s = compute_s
            if cost_model is not CostModel.FLOPS:
                block_s = operator_costs.block_s(block, computed, batch, cards)
                if block_s is None:
                    block_s = gpu.t0_s + max(compute_s, memory_s)
                    block_s += cards.all_reduces_s(block, computed)
            seconds += count * block_s
    return seconds


def _work(block, computed, batch, cards):
    """Return the FLOPs and bytes of one block on each GPU."""
    window = math.inf if block.window_tokens is None else block.window_tokens
    pairs = reach = 0
    for entry in batch:
        q, c = entry.tokens, entry.cached_tokens
        pairs += _attended(c + q, window) - _attended(c, window)
        reach += min(c, window - 1) + q
    flops = block.flops_per_token * computed + block.attention_flops_per_pair * pairs
    moved_bytes = (
        float(weight_read_bytes(block, computed)) / cards.number
        + block.kv_bytes_per_token * reach * cards.share_of_heads
        + block.activation_bytes_per_token * computed / cards.number
    )
    return flops / cards.number, moved_bytes


def _attended(n_tokens, window):
    """Count the tokens that the first `n_tokens` of a sequence attend to, with themselves."""
    if n_tokens <= window:
        return n_tokens * (n_tokens + 1) // 2
    return window * (window + 1) // 2 + (n_tokens - window) * window


def alone_s(blocks, gpus, deployment, output):
    """Return, for each GPU, the seconds of requests with these outputs alone, (n_requests,)."""
    cost_model, prompt = deployment.cost_model, deployment.requests.prompt_tokens
    return {
        gpu: sum(
            count * service_s(block, gpu, prompt, output, cost_model) for block, count in blocks
        )
        for gpu in gpus
    }


def round_to_sum_exactly(seconds):
    """Round to multiples of a power of two, so coarse that all numbers add up exactly."""
    largest_s = max(float(of_gpu.max()) for of_gpu in seconds.values())
    n_requests = len(next(iter(seconds.values())))
    unit_s = 2.0 ** (math.frexp(largest_s)[1] - 52 + n_requests.bit_length())
    return {gpu: np.rint(of_gpu / unit_s) * unit_s for gpu, of_gpu in seconds.items()}
