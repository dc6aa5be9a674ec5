"""How `hypsolve.kernels.token_level` keeps what it works on: records, `Plan` and `State`."""

from typing import NamedTuple

import numpy as np

REQUEST = np.dtype(
    [
        ("next", "i8"),  # behind its decode token
        ("attempt", "i8"),
        ("restarts", "i8"),
        ("prompt", "i8"),
        ("output", "i8"),
        ("believed", "i8"),  # what policies take the output to be
        ("delivered", "i8"),
        ("prefill", "i8"),  # tokens of this attempt's first pass
        ("lost", "i8"),
        ("ready_s", "f8"),  # since when its decode token waits
        ("first_token_s", "f8"),
        ("end_s", "f8"),
    ],
    align=True,
)
PLACE = np.dtype(  # a request at an active stage
    [
        ("node", "i8"),
        ("resident", "i8"),  # whether it is in its node's list of residents
        ("behind", "i8"),  # in the admission queue, then in the prefill queue
        ("batch_behind", "i8"),  # prompts of the running iteration
        ("resident_next", "i8"),
        ("resident_before", "i8"),
        ("arrived", "i8"),  # tokens of the prompt
        ("computed", "i8"),  # tokens in the KV cache
        ("taken", "i8"),  # tokens in the running iteration
        ("ready_s", "f8"),  # since when prompt tokens wait
        ("sent_s", "f8"),  # latest arrival of its chunks
        ("reached_s", "f8"),
        ("admitted_s", "f8"),
        ("left_s", "f8"),
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("stage", "i8"),  # active stage, NIL if it cannot hold it
        ("kind", "i8"),  # GPU class
        ("up", "i8"),
        ("capacity", "i8"),  # KV tokens
        ("held", "i8"),
        ("queued", "i8"),  # needed by the admission queue
        ("n_jobs", "i8"),
        ("n_waiting", "i8"),  # for KV cache
        ("admission_head", "i8"),
        ("admission_tail", "i8"),
        ("prefill_head", "i8"),
        ("prefill_tail", "i8"),
        ("decode_head", "i8"),
        ("decode_tail", "i8"),
        ("decode_mark", "i8"),  # last one that waits for longer than the tail, if queued
        ("batch_decode", "i8"),  # the running iteration
        ("batch_prefill", "i8"),
        ("batch_size", "i8"),
        ("running", "i8"),
        ("run_id", "i8"),
        ("touched", "i8"),
        ("resident_head", "i8"),
        ("n_iterations", "i8"),
        ("n_tokens", "i8"),
        ("speed_at", "i8"),  # its current piece of `Plan.speed`
        ("speed_end", "i8"),
        ("outstanding_s", "f8"),
        ("slowdown", "f8"),  # moving average
        ("start_s", "f8"),
        ("nominal_s", "f8"),
        ("busy_s", "f8"),
        ("seen_s", "f8"),  # bins are filled up to here
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("token_bytes", "f8"),
        ("latency_s", "f8"),
        ("free_s", "f8"),
        ("rate_at", "i8"),
        ("rate_end", "i8"),
    ],
    align=True,
)
EVENT = np.dtype(
    [("time_s", "f8"), ("code", "i8"), ("head", "i8"), ("stage", "i8"), ("detail", "i8")],
    align=True,
)
PART = np.dtype(  # blocks of one kind in a stage
    [
        ("count", "f8"),
        ("flops_per_token", "f8"),
        ("flops_per_pair", "f8"),
        ("always_read_bytes", "f8"),
        ("gathered_bytes", "f8"),
        ("experts_bytes", "f8"),
        ("idle_share", "f8"),  # of the experts, for one token
        ("kv_bytes", "f8"),
        ("activation_bytes", "f8"),
        ("window", "i8"),  # its place in `Plan.windows`
        ("last_token_only", "i8"),
    ],
    align=True,
)
GPU = np.dtype([("t0_s", "f8"), ("flops_per_s", "f8"), ("bytes_per_s", "f8")], align=True)
CHURNED = np.dtype([("time_s", "f8"), ("kind", "i8"), ("node", "i8")], align=True)
VISIT = np.dtype(
    [
        ("request", "i8"),
        ("node", "i8"),
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("tokens", "i8"),
        ("context", "i8"),
    ],
    align=True,
)


class Plan(NamedTuple):
    """What does not change."""

    policy: int
    max_batch: int
    chunk_tokens: int
    contention: bool
    bandwidth_bound: bool  # roofline; False: cost model ``flops``
    record_visits: bool
    n_stages: int
    return_s: float
    order: np.ndarray  # (n_requests,) requests by arrival
    arrival_s: np.ndarray  # (n_requests,)
    part: np.ndarray  # PART of all active stages
    part_start: np.ndarray  # (n_stages + 1,)
    windows: np.ndarray  # distinct attention windows, inf: none
    gpu: np.ndarray  # GPU by class
    hop_first: np.ndarray  # (n_stages,) links before each active stage
    hop_end: np.ndarray
    eligible: np.ndarray  # nodes of all active stages
    eligible_start: np.ndarray  # (n_stages + 1,)
    speed_s: np.ndarray  # pieces of all nodes: from when, and how fast
    speed: np.ndarray
    rate_s: np.ndarray  # pieces of all links: from when, and bytes/s
    rate: np.ndarray
    churn: np.ndarray  # CHURNED by time
    expected_s: np.ndarray  # (n_requests or 1, n_stages, n_classes), exact in sums
    prefill_s: np.ndarray  # the same, of the prefill alone
    uniforms: np.ndarray  # (n_stages, n_requests or 0, 2)
    assigned: np.ndarray  # (n_requests or 0, n_stages)


class State(NamedTuple):
    """What changes."""

    requests: np.ndarray  # REQUEST
    places: np.ndarray  # PLACE, request by request
    nodes: np.ndarray  # NODE
    links: np.ndarray  # LINK
    stranded: np.ndarray  # (n_stages,) heads of lists through `Place.behind`
    n_stranded: np.ndarray  # (n_stages,) how many are in them
    stranded_seen_s: np.ndarray  # (n_stages,) bins are filled up to here
    dispatched: np.ndarray  # (n_stages,)
    touched: np.ndarray  # (n_nodes,)
    gone: np.ndarray  # (n_requests,) bool, scratch
    sums: np.ndarray  # (n_windows, 2) scratch
    bins: np.ndarray  # (n_rows, n_nodes + n_stages, n_bins); of stages: those stranded, WAITING
    counts: np.ndarray
    clock: np.ndarray


def records(n, dtype):
    """Zeros, whose fields are attributes, compiled or not."""
    return np.zeros(n, dtype).view(np.recarray)
