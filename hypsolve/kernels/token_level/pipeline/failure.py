"""Pipelines whose nodes fail and recover."""

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.bins import add_to_bins, record_node, record_stranded
from hypsolve.kernels.token_level.event_heap import push
from hypsolve.kernels.token_level.layout import BUSY, NIL, NOW, REACH, SHIFT
from hypsolve.kernels.token_level.pipeline.queues import record_pipe
from hypsolve.kernels.token_level.pipeline.scheduler import forget


@kernel
def _restart_all(setup, state, heap, head):
    """Restart all requests of a list; their ids are at the first stage: they cross no link."""
    r = head
    while r != NIL:
        request = state.requests[r]
        forget(setup, state, r)
        request.restarts += 1
        request.in_flight = 0
        request.pipe = NIL
        request.reached_s = np.nan
        code = REACH * SHIFT + r
        push(
            heap, state.counts, state.clock[NOW], code, request.prefill, np.int64(0),
            request.attempt,
        )  # fmt: skip
        r = request.behind


@kernel
def _empty(setup, state, p):
    """Drop the batches of a pipeline, and leave it as it was at the start."""
    pipe, now_s = state.pipes[p], state.clock[NOW]
    for stage in range(pipe.n_stages):
        n = setup.member[p, stage]
        node = state.nodes[n]
        record_node(state.nodes, state.bins, state.clock, n)
        node.n_jobs = 0
        node.turn = 0
        node.sent_s = 0.0
        if node.running == 1:
            node.running = 0
            node.busy_s += now_s - node.start_s
            add_to_bins(state.bins, state.clock, BUSY, n, node.start_s, now_s, 1.0)
    for at in range(p * setup.n_slots, p * setup.n_slots + pipe.n_slots):
        for stage in range(pipe.n_stages):
            leg = state.legs[at * setup.n_stages + stage]
            leg.arrived = 0
            leg.done = 0
    pipe.epoch += 1
    pipe.preparing = 0
    pipe.n_in_flight = 0
    pipe.slot = 0
    pipe.held = 0
    pipe.queued = 0
    pipe.n_jobs = 0
    pipe.n_running = 0
    pipe.n_ready = 0
    pipe.n_waiting = 0
    pipe.running_head = NIL
    pipe.running_tail = NIL
    pipe.waiting_head = NIL
    pipe.waiting_tail = NIL
    pipe.outstanding_s = 0.0
    record_pipe(setup, state, p)


@kernel
def fail(setup, state, heap, n):
    """Take a node down; if its pipeline was up, restart all requests there."""
    node = state.nodes[n]
    node.up = 0
    if node.pipe == NIL:
        return
    pipe = state.pipes[node.pipe]
    pipe.n_down += 1
    if pipe.n_down > 1:
        return
    running, waiting = pipe.running_head, pipe.waiting_head
    _restart_all(setup, state, heap, running)
    _restart_all(setup, state, heap, waiting)
    _empty(setup, state, node.pipe)


@kernel
def recover(setup, state, heap, n):
    """Bring a node up; if its pipeline is up then, dispatch the requests that are stranded."""
    node = state.nodes[n]
    node.up = 1
    node.slowdown = 1.0
    if node.pipe == NIL:
        return
    pipe = state.pipes[node.pipe]
    pipe.n_down -= 1
    if pipe.n_down > 0:
        return
    r = state.stranded[0]
    state.stranded[0] = NIL
    record_stranded(state, 0, -state.n_stranded[0])
    while r != NIL:
        request = state.requests[r]
        request.pipe = NIL
        code = REACH * SHIFT + r
        push(
            heap, state.counts, state.clock[NOW], code, np.int64(0), np.int64(0),
            request.attempt,
        )  # fmt: skip
        r = request.behind
