"""Simulator of batches that pass a pipeline as one unit; rules: `hypsolve.simulation.simulate`.

| file | holds |
|---|---|
| `layout` | the records and `PipelineState` |
| `queues` | the lists of running and waiting requests, with their invariants |
| `scheduler` | admission, preemption, and the formation of batches |
| `passage` | parts of batches at nodes, on links, and back at the scheduler |
| `failure`, `policy` | nodes that fail and recover; the state that policies see |
| `loop` | `run` and `settle` |

The batches of a pipeline are kept in slots, which are taken in turn.
"""

import numpy as np

from hypsolve.kernels.token_level.layout import (
    BUDGET,
    CHOICE,
    EVENT,
    LINK,
    N_BINS,
    N_COUNTS,
    N_ROWS,
    N_SENT,
    NIL,
    VISIT,
    records,
)
from hypsolve.kernels.token_level.pipeline.layout import (
    BATCH,
    LEG,
    NODE,
    PIPE,
    PLACE,
    REQUEST,
    SHARE,
    PipelineState,
)
from hypsolve.kernels.token_level.pipeline.loop import run, settle
from hypsolve.kernels.token_level.pipeline.policy import observe
from hypsolve.kernels.token_level.policy import factor
from hypsolve.kernels.token_level.router import slowdown
from hypsolve.kernels.token_level.tiny import tiny_setup

__all__ = [
    "BATCH",
    "LEG",
    "NODE",
    "PIPE",
    "PLACE",
    "REQUEST",
    "SHARE",
    "PipelineState",
    "factor",
    "observe",
    "run",
    "settle",
    "slowdown",
    "warm_up",
]


def warm_up() -> None:
    """Compile every kernel of the simulator for the types that `simulate` calls it with."""
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    nodes, pipes = records(1, NODE), records(1, PIPE)
    nodes["up"] = nodes["speed_end"] = nodes["slowdown"] = 1
    nodes["capacity"] = pipes["capacity"] = 2
    pipes["n_stages"] = pipes["n_slots"] = 1
    for field in ("running_head", "running_tail", "waiting_head", "waiting_tail"):
        pipes[field] = NIL
    requests, places = records(1, REQUEST), records(1, PLACE)
    requests["prompt"] = requests["output"] = requests["prefill"] = 1
    requests["pipe"] = NIL
    requests["reached_s"] = places["left_s"] = np.nan
    setup = tiny_setup()._replace(member=np.zeros((1, 1), np.int64), own_s=np.ones((1, 1)))
    counts = np.zeros(N_COUNTS, np.int64)
    counts[CHOICE], counts[BUDGET], counts[N_SENT] = NIL, 100, 1
    state = PipelineState(
        requests=requests, places=places, nodes=nodes, pipes=pipes, batches=records(1, BATCH),
        shares=records((1, 1), SHARE),
        legs=records(1, LEG), links=records(0, LINK),
        stranded=-one, n_stranded=zero.copy(), stranded_seen_s=np.zeros(1),
        dispatched=zero.copy(), touched=zero.copy(), sums=np.zeros((1, 3)),
        bins=np.zeros((N_ROWS, 2, N_BINS)), counts=counts, clock=np.array([0.0, 0.0, 1.0, 0.0]),
        arrival_s=np.zeros(1),
    )  # fmt: skip
    run(setup, state, records(64, EVENT), records(0, VISIT))
    settle(state)
    observe(setup, state)
    slowdown(setup, state, 0)
    factor(1.0)
