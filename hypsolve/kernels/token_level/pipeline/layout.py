"""Arrays of the pipeline simulator: records, `PipelineState`, and the constants in them.

`Setup`, the nodes' links and the events are those of `hypsolve.kernels.token_level.layout`.
"""

from typing import NamedTuple

import numpy as np

HANDOVER = 3  # kind of event: a part of a batch arrives at a stage
NOTHING, FORMED, AGAIN = 0, 1, 2  # what an attempt to form a batch did

REQUEST = np.dtype(
    [
        ("before", "i8"),  # in the list of running or waiting requests of its pipeline
        ("behind", "i8"),
        ("rank", "i8"),  # position by arrival
        ("pipe", "i8"),
        ("running", "i8"),  # 1: it is in the list of running requests
        ("in_flight", "i8"),  # batches under way with tokens of it, even void ones
        ("attempt", "i8"),
        ("restarts", "i8"),
        ("preemptions", "i8"),
        ("prompt", "i8"),
        ("output", "i8"),
        ("believed", "i8"),  # output tokens that policies assume
        ("delivered", "i8"),
        ("prefill", "i8"),  # tokens of the first pass of this attempt
        ("computed", "i8"),  # tokens taken into batches
        ("held", "i8"),  # KV tokens
        ("lost", "i8"),  # tokens computed in vain
        ("reached_s", "f8"),
        ("admitted_s", "f8"),
        ("first_token_s", "f8"),
        ("end_s", "f8"),
    ],
    align=True,
)
PLACE = np.dtype(  # one request at one stage
    [
        ("computed", "i8"),  # tokens in the KV cache
        ("taken", "i8"),  # tokens that are being computed
        ("left_s", "f8"),
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("stage", "i8"),  # NIL: it belongs to no pipeline
        ("span", "i8"),  # its range of blocks, see `Setup`
        ("pipe", "i8"),
        ("kind", "i8"),  # GPU class
        ("up", "i8"),
        ("capacity", "i8"),  # KV tokens
        ("held", "i8"),
        ("n_jobs", "i8"),  # requests of the pipeline whose work here is not complete
        ("n_waiting", "i8"),
        ("running", "i8"),
        ("turn", "i8"),  # slot of the batch that it computes, or computes next
        ("n_rows", "i8"),  # requests in the part that it computes
        ("n_iterations", "i8"),
        ("n_tokens", "i8"),
        ("speed_at", "i8"),  # its current piece of `Setup.speed`
        ("speed_end", "i8"),
        ("slowdown", "f8"),  # measured, a moving average
        ("start_s", "f8"),
        ("nominal_s", "f8"),  # seconds of the part at speed 1
        ("sent_s", "f8"),  # when the last message sent to it arrives
        ("busy_s", "f8"),
        ("seen_s", "f8"),  # its bins are filled up to here
    ],
    align=True,
)
PIPE = np.dtype(  # with the fields of `ROUTE`
    [
        ("n_stages", "i8"),
        ("n_slots", "i8"),  # batches that are in flight at most
        ("n_down", "i8"),  # nodes that are down
        ("touched", "i8"),  # 1: to be looked at when this instant is over
        ("epoch", "i8"),  # a failure raises it, and so voids events
        ("preparing", "i8"),  # 1: the host prepares a batch
        ("n_in_flight", "i8"),  # batches under way
        ("slot", "i8"),  # of the next batch; slots are taken in turn
        ("capacity", "i8"),  # KV tokens: the least of its nodes
        ("held", "i8"),
        ("queued", "i8"),  # KV tokens that waiting requests need for admission
        ("n_jobs", "i8"),  # requests whose work is not complete
        ("n_running", "i8"),
        ("n_ready", "i8"),  # of those that run, the ones with a token to take
        ("n_waiting", "i8"),
        ("running_head", "i8"),
        ("running_tail", "i8"),
        ("waiting_head", "i8"),
        ("waiting_tail", "i8"),
        ("outstanding_s", "f8"),
        ("free", "i8"),  # KV tokens that are neither held nor queued for, at the last choice
        ("work_s", "f8"),  # expected seconds of work left, at the last choice
    ],
    align=True,
)
BATCH = np.dtype([("n_shares", "i8"), ("n_tokens", "i8"), ("n_parts", "i8")], align=True)
SHARE = np.dtype(  # one request in one batch
    [
        ("request", "i8"),
        ("attempt", "i8"),  # it is void if that of the request is another
        ("first", "i8"),  # tokens of the request before it
        ("taken", "i8"),  # its tokens
        ("yields", "i8"),  # 1: it yields an output token
    ],
    align=True,
)
LEG = np.dtype(  # one batch at one stage
    [
        ("arrived", "i8"),  # parts
        ("done", "i8"),
        ("share", "i8"),  # where the next part begins
        ("offset", "i8"),  # tokens of this share in earlier parts
    ],
    align=True,
)


class PipelineState(NamedTuple):
    """Variables of a simulation of pipelines."""

    requests: np.ndarray  # REQUEST
    places: np.ndarray  # PLACE, at request * n_stages + stage
    nodes: np.ndarray  # NODE
    pipes: np.ndarray  # PIPE
    batches: np.ndarray  # BATCH, at pipe * n_slots + slot
    shares: np.ndarray  # SHARE, (n_pipes * n_slots, most requests in a batch)
    legs: np.ndarray  # LEG, at (pipe * n_slots + slot) * n_stages + stage
    links: np.ndarray  # LINK
    stranded: np.ndarray  # (n_stages,) head of a list through `behind`, at the first stage
    n_stranded: np.ndarray  # (n_stages,)
    stranded_seen_s: np.ndarray  # (n_stages,)
    dispatched: np.ndarray  # (n_stages,) requests dispatched so far, at the first stage
    touched: np.ndarray  # (n_pipes,) pipelines to be looked at, the first N_TOUCHED
    sums: np.ndarray  # (n_windows, 3) scratch
    bins: np.ndarray  # (N_ROWS, n_nodes + n_stages, N_BINS)
    counts: np.ndarray  # (N_COUNTS,)
    clock: np.ndarray  # (4,) seconds
    arrival_s: np.ndarray  # (n_requests,)
