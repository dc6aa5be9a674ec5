"""Token-level simulator as a discrete-event loop; rules: `hypsolve.simulation.simulate`.

| file | holds |
|---|---|
| `layout` | the records, `Setup` and `State` |
| `event_heap`, `queues`, `bins` | data structures, with their invariants |
| `links`, `policy`, `admission`, `batch_cost`, `iteration` | the rules of service |
| `failure`, `preemption` | the rules of what is computed again |
| `router`, `routes` | the choice of a pipeline, and pipelines of a placement |
| `next_event`, `loop` | `run` and `settle` |
| `tiny` | the inputs of `warm_up` |

Requests are linked through fields of their records, so that memory is linear in the requests,
whatever the number of events. The decode tokens of an iteration travel as one event.

The kernels are compiled without reference counts, which took four fifths of the time.
"""

import numpy as np

from hypsolve.kernels.dispatch import (
    EARLIEST_COMPLETION,
    HYPSCHED_RT,
    JOIN_SHORTEST_QUEUE,
    LEAST_WORK_LEFT,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
)
from hypsolve.kernels.token_level.layout import (
    ASSIGNED,
    BUDGET,
    BUSY,
    CHOICE,
    CHOICE_FOR,
    CHOOSE,
    CHURNED,
    COST,
    DONE,
    EVENT,
    FAILURE,
    GPU,
    GROW,
    HELD,
    JOBS,
    LINK,
    N_BINS,
    N_COUNTS,
    N_EVENTS,
    N_LOGGED,
    N_ROWS,
    N_SENT,
    N_VISITS,
    NIL,
    NODE,
    NOW,
    ORIGIN,
    PART,
    PAUSE,
    PLACE,
    PYTHON,
    RECOVERY,
    REQUEST,
    ROUTE,
    VISIT,
    WAITING,
    WIDTH,
    Setup,
    State,
    records,
)  # fmt: skip
from hypsolve.kernels.token_level.loop import run, settle
from hypsolve.kernels.token_level.policy import factor, remaining_s
from hypsolve.kernels.token_level.router import slowdown
from hypsolve.kernels.token_level.routes import observe_routes
from hypsolve.kernels.token_level.tiny import tiny_setup

__all__ = [
    "ASSIGNED",
    "BUDGET",
    "BUSY",
    "CHOICE",
    "CHOICE_FOR",
    "CHOOSE",
    "CHURNED",
    "COST",
    "DONE",
    "EARLIEST_COMPLETION",
    "EVENT",
    "FAILURE",
    "GPU",
    "GROW",
    "HELD",
    "HYPSCHED_RT",
    "JOBS",
    "JOIN_SHORTEST_QUEUE",
    "LEAST_WORK_LEFT",
    "LINK",
    "NIL",
    "NODE",
    "NOW",
    "N_BINS",
    "N_COUNTS",
    "N_EVENTS",
    "N_LOGGED",
    "N_ROWS",
    "N_SENT",
    "N_VISITS",
    "ORIGIN",
    "PART",
    "PAUSE",
    "PLACE",
    "POWER_OF_TWO",
    "PYTHON",
    "RANDOM",
    "RECOVERY",
    "REQUEST",
    "ROUND_ROBIN",
    "ROUTE",
    "VISIT",
    "WAITING",
    "WIDTH",
    "Setup",
    "State",
    "factor",
    "observe_routes",
    "records",
    "remaining_s",
    "run",
    "settle",
    "slowdown",
    "warm_up",
]  # fmt: skip


def warm_up() -> None:
    """Compile every kernel of the simulator for the types that `simulate` calls it with."""
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    nodes = records(1, NODE)
    for field in ("admission_head", "prefill_head", "decode_head", "batch_decode"):
        nodes[field] = NIL
    for field in ("decode_mark", "batch_prefill", "resident_head"):
        nodes[field] = NIL
    nodes["up"] = nodes["speed_end"] = nodes["slowdown"] = 1
    nodes["capacity"] = 2
    nodes["is_last"] = 1
    requests, places = records(1, REQUEST), records(1, PLACE)
    requests["prompt"] = requests["output"] = requests["prefill"] = 1
    places["node"] = requests["pipe"] = NIL
    places["reached_s"] = places["admitted_s"] = places["left_s"] = np.nan
    setup = tiny_setup()
    counts = np.zeros(N_COUNTS, np.int64)
    counts[CHOICE], counts[BUDGET], counts[N_SENT] = NIL, 100, 1
    state = State(
        requests=requests, places=places, nodes=nodes, pipes=records(0, ROUTE),
        links=records(0, LINK),
        stranded=-one, n_stranded=zero.copy(), stranded_seen_s=np.zeros(1),
        dispatched=zero.copy(), touched=zero.copy(),
        gone=np.zeros(1, np.bool_), sums=np.zeros((1, 3)),
        bins=np.zeros((N_ROWS, 2, N_BINS)), counts=counts, clock=np.array([0.0, 0.0, 1.0, 0.0]),
        arrival_s=np.zeros(1),
    )  # fmt: skip
    run(setup, state, records(64, EVENT), records(0, VISIT))
    settle(state)
    remaining_s(setup, requests, places, nodes, 0, 0.0)
    observe_routes(setup, state)
    factor(1.0)
