"""Arrays of the simulator of layer layouts: records, `Setup`, `State`, and their constants."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.token_level.layout import (
    COST,
    EVENT,
    GPU,
    N_EVENTS,
    N_TOUCHED,
    NIL,
    PART,
    SHIFT,
    UNLIMITED,
    VISIT,
    records,
)

__all__ = [
    "COST",
    "EVENT",
    "GPU",
    "NIL",
    "N_EVENTS",
    "N_TOUCHED",
    "PART",
    "SHIFT",
    "UNLIMITED",
    "VISIT",
    "records",
]

DONE, GROW, PAUSE = 0, 1, 2  # why `run` returns
ITERATION_END, SEND, RETURN, DECODE, REACH = range(5)  # kinds of events

# places in `State.counts`, besides N_EVENTS and N_TOUCHED
N_SENT, N_ENDED, N_LOGGED, N_VISITS, BUDGET, MAY_ADMIT, N_BUCKETS = range(6, 13)
N_COUNTS = 13

REQUEST = np.dtype(
    [
        ("next", "i8"),  # next in the queue of its path, then in a chain of decode tokens
        ("path", "i8"),
        ("hop", "i8"),  # position on its path of its decode token
        ("prompt", "i8"),
        ("output", "i8"),
        ("rank", "i8"),  # position by arrival
        ("returned", "i8"),  # tokens that came back to its first node
        ("ready_s", "f8"),  # when its decode token began to wait
        ("arrival_s", "f8"),
        ("admitted_s", "f8"),
        ("first_token_s", "f8"),
        ("end_s", "f8"),
        ("freed_s", "f8"),  # when it freed its KV cache
    ],
    align=True,
)
PLACE = np.dtype(  # one request at one position of its path
    [
        ("behind", "i8"),  # next place in the prefill queue of the node
        ("batch_behind", "i8"),  # next place with prompt tokens in the running iteration
        ("arrived", "i8"),  # prompt tokens
        ("computed", "i8"),  # tokens in the KV cache
        ("taken", "i8"),  # tokens in the running iteration
        ("ready_s", "f8"),  # when its prompt tokens began to wait
        ("sent_s", "f8"),  # when the last chunk sent to it arrives
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("kind", "i8"),  # GPU class
        ("span", "i8"),  # its first group of blocks; see `Setup`
        ("n_spans", "i8"),
        ("capacity", "i8"),  # KV bytes
        ("held", "i8"),
        ("peak", "i8"),  # the most that were held at once
        ("prefill_head", "i8"),  # places
        ("prefill_tail", "i8"),
        ("decode_head", "i8"),  # requests
        ("decode_tail", "i8"),
        ("decode_mark", "i8"),  # last queued one that has waited for longer than the tail
        ("batch_decode", "i8"),
        ("batch_prefill", "i8"),
        ("batch_size", "i8"),
        ("running", "i8"),
        ("touched", "i8"),
        ("n_iterations", "i8"),
        ("n_tokens", "i8"),
        ("start_s", "f8"),
        ("busy_s", "f8"),
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("token_bytes", "f8"),
        ("bytes_per_s", "f8"),
        ("latency_s", "f8"),
        ("free_s", "f8"),
    ],
    align=True,
)
HOP = np.dtype(  # a position on a path
    [
        ("node", "i8"),
        ("group", "i8"),  # of the blocks of the node: those before are not computed
        ("link", "i8"),  # that leads there; NIL at the first position
        ("kv_bytes", "i8"),  # of a token in the blocks that are computed there
    ],
    align=True,
)


class Setup(NamedTuple):
    """Inputs of a simulation, which do not change.

    The blocks of a node are cut into groups, called spans, at every block where requests enter
    it. The spans of a node come one behind the other: a request that enters at a group passes
    this group and all later ones.
    """

    max_num_seqs: int
    chunk_tokens: int
    max_num_batched_tokens: int
    iteration_s: float
    slot_tokens: int
    contention: bool
    bandwidth_bound: bool
    record_visits: bool
    users: int  # 0: no closed loop
    think_time_s: float
    max_hops: int
    hop: np.ndarray  # HOP, (n_paths, max_hops)
    n_hops: np.ndarray  # (n_paths,)
    return_s: np.ndarray  # (n_paths,) from the last node of a path to the first one
    delivery_s: np.ndarray  # (n_paths,) from the first node to the user
    order: np.ndarray  # (n_requests,) requests by arrival
    part: np.ndarray  # PART of all spans
    part_start: np.ndarray  # (n_spans + 1,)
    windows: np.ndarray  # distinct attention windows
    gpu: np.ndarray  # GPU by class
    cost: np.ndarray  # COST, (n_classes, n_parts)


class State(NamedTuple):
    """Variables of a simulation."""

    requests: np.ndarray  # REQUEST
    places: np.ndarray  # PLACE, at request * max_hops + position
    nodes: np.ndarray  # NODE
    links: np.ndarray  # LINK
    waiting: np.ndarray  # (n_paths, 2) first and last request of each path's queue
    touched: np.ndarray  # (n_nodes,) nodes to be looked at, the first N_TOUCHED
    buckets: np.ndarray  # (n_links + n_paths, 2) head and length of chains, scratch
    used: np.ndarray  # (n_links + n_paths,) buckets in use, the first N_BUCKETS
    sums: np.ndarray  # (most spans of a node, n_windows, 3) scratch
    tokens: np.ndarray  # (most spans of a node, 2) tokens and ends of passes, scratch
    counts: np.ndarray  # (N_COUNTS,)
    clock: np.ndarray  # (1,) now
