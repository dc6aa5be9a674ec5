"""Simulator of layer layouts as a discrete-event loop.

`hypsolve.simulation.simulate_layout` states its rules.

| file | holds |
|---|---|
| `records` | the records, `Setup` and `State` |
| `paths` | the draw of the paths of requests |
| `iteration` | iterations of nodes, and where their tokens go |
| `loop` | arrivals, admission, and `run` |

The seconds of batches, the event heap and the queue of decode tokens are those of
`hypsolve.kernels.token_level`.
"""

import numpy as np

from hypsolve.kernels.layer_layout.loop import run
from hypsolve.kernels.layer_layout.paths import draw_paths
from hypsolve.kernels.layer_layout.records import (
    BUDGET,
    COST,
    DONE,
    EVENT,
    GPU,
    GROW,
    HOP,
    LINK,
    N_COUNTS,
    N_ENDED,
    N_EVENTS,
    N_LOGGED,
    N_VISITS,
    NIL,
    NODE,
    PART,
    PAUSE,
    PLACE,
    REQUEST,
    VISIT,
    Setup,
    State,
    records,
)

__all__ = [
    "BUDGET",
    "COST",
    "DONE",
    "EVENT",
    "GPU",
    "GROW",
    "HOP",
    "LINK",
    "NIL",
    "NODE",
    "N_COUNTS",
    "N_ENDED",
    "N_EVENTS",
    "N_LOGGED",
    "N_VISITS",
    "PART",
    "PAUSE",
    "PLACE",
    "REQUEST",
    "VISIT",
    "Setup",
    "State",
    "draw_paths",
    "records",
    "run",
    "warm_up",
]


def warm_up() -> None:
    """Compile every kernel for the types that `simulate_layout` calls it with."""
    draw_paths(np.array([0, 1, 2]), np.array([1, 0]), np.ones(2), 1, 1)
    hop, requests, nodes = records((1, 1), HOP), records(1, REQUEST), records(1, NODE)
    part, gpu = records(1, PART), records(1, GPU)
    hop["link"] = NIL
    part["count"] = gpu["flops_per_s"] = gpu["bytes_per_s"] = gpu["kv_copies"] = 1
    requests["prompt"] = requests["output"] = nodes["n_spans"] = 1
    for field in ("prefill_head", "decode_head", "batch_decode", "batch_prefill"):
        nodes[field] = NIL
    nodes["decode_mark"] = NIL
    setup = Setup(
        max_num_seqs=1, chunk_tokens=1, max_num_batched_tokens=1, iteration_s=0.0,
        slot_tokens=1, contention=False, bandwidth_bound=True, record_visits=False, users=0,
        think_time_s=0.0, max_hops=1, hop=hop, n_hops=np.ones(1, np.int64),
        return_s=np.zeros(1), delivery_s=np.zeros(1), order=np.zeros(1, np.int64), part=part,
        part_start=np.array([0, 1]), windows=np.ones(1), gpu=gpu, cost=records((1, 1), COST),
    )  # fmt: skip
    counts = np.zeros(N_COUNTS, np.int64)
    counts[BUDGET] = 100
    state = State(
        requests=requests, places=records(1, PLACE), nodes=nodes, links=records(0, LINK),
        waiting=np.full((1, 2), NIL), touched=np.zeros(1, np.int64),
        buckets=np.zeros((1, 2), np.int64), used=np.zeros(1, np.int64),
        sums=np.zeros((1, 1, 3)), tokens=np.zeros((1, 2)), counts=counts, clock=np.zeros(1),
    )  # fmt: skip
    run(setup, state, records(64, EVENT), records(0, VISIT))
