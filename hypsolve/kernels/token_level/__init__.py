"""Token-level simulator as a discrete-event loop; rules: `hypsolve.simulation.simulate`.

| file | holds |
|---|---|
| `layout` | the records, `Setup` and `State` |
| `event_heap`, `queues`, `bins` | data structures, with their invariants |
| `links`, `policy`, `admission`, `batch_cost`, `iteration` | the rules of service |
| `failure`, `preemption` | the rules of what is computed again |
| `loop` | `run` and `settle` |

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
    VISIT,
    WAITING,
    WIDTH,
    Setup,
    State,
    records,
)  # fmt: skip
from hypsolve.kernels.token_level.loop import run, settle
from hypsolve.kernels.token_level.policy import factor, remaining_s

__all__ = [
    "ASSIGNED",
    "BUDGET",
    "BUSY",
    "CHOICE",
    "CHOICE_FOR",
    "CHOOSE",
    "CHURNED",
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
    "VISIT",
    "WAITING",
    "WIDTH",
    "Setup",
    "State",
    "factor",
    "records",
    "remaining_s",
    "run",
    "settle",
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
    requests, places = records(1, REQUEST), records(1, PLACE)
    requests["prompt"] = requests["output"] = requests["prefill"] = 1
    places["node"] = NIL
    places["reached_s"] = places["admitted_s"] = places["left_s"] = np.nan
    part, gpu = records(1, PART), records(1, GPU)
    part["count"] = gpu["flops_per_s"] = gpu["bytes_per_s"] = 1
    setup = Setup(
        policy=LEAST_WORK_LEFT, max_num_seqs=1, chunk_tokens=1, contention=False,
        bandwidth_bound=True, record_visits=False, n_stages=1, return_s=0.0, delivery_s=0.0,
        max_num_batched_tokens=1, micro_batch_tokens=1, iteration_s=0.0, paged=False,
        kv_block_tokens=1, closed_loop=False, think_time_s=0.0, n_slots=1, order=zero,
        part=part, part_start=np.array([0, 1]), windows=np.ones(1),
        gpu=gpu, hop_first=zero, hop_end=zero.copy(), eligible=zero.copy(),
        eligible_start=np.array([0, 1]), speed_s=np.zeros(1), speed=np.ones(1),
        rate_s=np.zeros(0), rate=np.zeros(0), churn=records(0, CHURNED),
        expected_s=np.ones((1, 1, 1)), prefill_s=np.ones((1, 1, 1)),
        uniforms=np.zeros((1, 0, 2)), assigned=np.zeros((0, 1), np.int64),
        member=np.zeros((0, 1), np.int64), own_s=np.ones((1, 0)),
    )  # fmt: skip
    counts = np.zeros(N_COUNTS, np.int64)
    counts[CHOICE], counts[BUDGET], counts[N_SENT] = NIL, 100, 1
    state = State(
        requests=requests, places=places, nodes=nodes, links=records(0, LINK),
        stranded=-one, n_stranded=zero.copy(), stranded_seen_s=np.zeros(1),
        dispatched=zero.copy(), touched=zero.copy(),
        gone=np.zeros(1, np.bool_), sums=np.zeros((1, 2)),
        bins=np.zeros((N_ROWS, 2, N_BINS)), counts=counts, clock=np.array([0.0, 0.0, 1.0, 0.0]),
        arrival_s=np.zeros(1),
    )  # fmt: skip
    run(setup, state, records(64, EVENT), records(0, VISIT))
    settle(state)
    remaining_s(setup, requests, places, nodes, 0, 0.0)
    factor(1.0)
