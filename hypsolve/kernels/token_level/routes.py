"""Pipelines of a placement whose nodes form their own batches (batching mode ``stage``).

A request that is routed to a pipeline counts there, and in `queued` of all of its nodes, as if
it had reached all stages: `join_route` counts it. `complete_route` takes it off the jobs of the
pipeline, and `quit_route` undoes all of this for a request that starts again.
"""

import numpy as np

from hypsolve.kernels.dispatch import EARLIEST_COMPLETION, HYPSCHED_RT, LEAST_WORK_LEFT
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.layout import NIL, NOW, PYTHON
from hypsolve.kernels.token_level.policy import left_s
from hypsolve.kernels.token_level.queues import kv_tokens
from hypsolve.kernels.token_level.router import choose_pipe


@kernel
def join_route(setup, state, r, p):
    """Count a request at a pipeline, where it stays; its first node counts KV tokens itself."""
    pipe, request = state.pipes[p], state.requests[r]
    if request.pipe == NIL:
        request.pipe = p
        state.dispatched[0] += 1
    row = r if len(setup.own_s) > 1 else 0
    pipe.n_jobs += 1
    pipe.outstanding_s += setup.own_s[row, p]
    for stage in range(1, pipe.n_stages):
        node = state.nodes[setup.member[p, stage]]
        node.queued += kv_tokens(setup, request, request.prefill)


@kernel
def complete_route(setup, state, r, p):
    """Record that a request's work at the last stage is complete."""
    if len(state.pipes) == 0:
        return
    pipe = state.pipes[p]
    row = r if len(setup.own_s) > 1 else 0
    pipe.n_jobs -= 1
    pipe.outstanding_s -= setup.own_s[row, p]  # exact, see `exact_sums`


@kernel
def quit_route(setup, state, r):
    """Stop counting a request that starts again, before its places are reset."""
    first, p = r * setup.n_stages, state.requests[r].pipe
    if state.places[first].node < 0:
        return
    pipe, request = state.pipes[p], state.requests[r]
    if np.isnan(state.places[first + pipe.n_stages - 1].left_s):
        complete_route(setup, state, r, p)
    for stage in range(1, pipe.n_stages):
        if state.places[first + stage].node == NIL:
            node = state.nodes[setup.member[p, stage]]
            node.queued -= kv_tokens(setup, request, request.prefill)


@kernel
def _remaining_s(setup, state, p):
    """Return the expected seconds of work that the nodes of a pipeline have left, summed.

    It walks through the residents of the first node: a request is one of them until it ends.
    """
    pipe, now_s, total_s = state.pipes[p], state.clock[NOW], 0.0
    for stage in range(pipe.n_stages):
        node = state.nodes[setup.member[p, stage]]
        if node.running == 1:
            total_s += max(node.start_s + node.nominal_s - now_s, 0.0)
        r = state.nodes[setup.member[p, 0]].resident_head
        while r != NIL:
            place, request = state.places[r * setup.n_stages + stage], state.requests[r]
            if np.isnan(place.left_s):
                row = r if len(setup.expected_s) > 1 else 0
                total_s += left_s(setup, request, place, row, node.span, node.kind)
            r = state.places[r * setup.n_stages].resident_next
    return total_s


@kernel
def _free_tokens(setup, state, p):
    """Return the least KV cache of its nodes that is neither held nor queued for."""
    node = state.nodes[setup.member[p, 0]]
    least = node.capacity - node.held - node.queued
    for stage in range(1, state.pipes[p].n_stages):
        node = state.nodes[setup.member[p, stage]]
        least = min(least, node.capacity - node.held - node.queued)
    return least


@kernel
def observe_routes(setup, state):
    """Fill in what the policy reads of the pipelines: free KV tokens, and work that is left."""
    for p in range(len(state.pipes)):
        pipe = state.pipes[p]
        if setup.policy in (HYPSCHED_RT, PYTHON):
            pipe.free = _free_tokens(setup, state, p)
        if setup.policy in (LEAST_WORK_LEFT, EARLIEST_COMPLETION, PYTHON):
            pipe.work_s = _remaining_s(setup, state, p)


@kernel
def choose_in_placement(setup, state, r, stage):
    """Return the node of a request at a stage: of the pipeline that the policy picks once."""
    if state.requests[r].pipe != NIL:
        return setup.member[state.requests[r].pipe, stage]
    if setup.policy == PYTHON:
        return np.int64(0)  # any node: the caller chooses
    observe_routes(setup, state)
    return setup.member[choose_pipe(setup, state, r), 0]
