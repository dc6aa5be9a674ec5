"""Choice of a pipeline for a request, in all batching modes.

The pipelines are records with the fields of `ROUTE`. Before a policy chooses, the caller fills
the fields `free` and `work_s` that the policy reads.
"""

import numpy as np

from hypsolve.kernels.dispatch import (
    EARLIEST_COMPLETION,
    HYPSCHED_RT,
    JOIN_SHORTEST_QUEUE,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
)
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.layout import ASSIGNED, NIL, PYTHON
from hypsolve.kernels.token_level.policy import factor
from hypsolve.kernels.token_level.queues import kv_tokens


@kernel
def slowdown(setup, state, p):
    """Return the largest measured slowdown of the nodes of a pipeline."""
    largest = 0.0
    for stage in range(state.pipes[p].n_stages):
        largest = max(largest, state.nodes[setup.member[p, stage]].slowdown)
    return largest


@kernel
def _nth_up(pipes, nth):
    """Return the nth pipeline that is up."""
    for p in range(len(pipes)):
        if pipes[p].n_down == 0:
            if nth == 0:
                return np.int64(p)
            nth -= 1
    return np.int64(NIL)


@kernel
def _best_pipe(setup, state, r):
    """Return the pipeline with the smallest value under the policy; ties go to the first.

    HypSched-RT prefers pipelines that have room for the request's KV cache.
    """
    request, row = state.requests[r], (r if len(setup.own_s) > 1 else 0)
    needed = request.prompt + request.believed
    if setup.paged:
        needed = kv_tokens(setup, request, request.prefill)
    best, best_value, best_has_room = NIL, np.inf, False
    for p in range(len(state.pipes)):
        pipe = state.pipes[p]
        if pipe.n_down > 0:
            continue
        has_room = False
        if setup.policy == HYPSCHED_RT:
            has_room = pipe.free >= needed
            value = pipe.outstanding_s + setup.own_s[row, p]
            value *= factor(slowdown(setup, state, p))
        elif setup.policy == JOIN_SHORTEST_QUEUE:
            value = float(pipe.n_jobs)
        else:
            value = pipe.work_s
            if setup.policy == EARLIEST_COMPLETION:
                value += setup.own_s[row, p]
        better = has_room if has_room != best_has_room else value < best_value
        if best == NIL or better:
            best, best_value, best_has_room = p, value, has_room
    return np.int64(best)


@kernel
def choose_pipe(setup, state, r):
    """Return the pipeline that the policy picks for a request; NIL if none is up."""
    pipes = state.pipes
    n_up = 0
    for p in range(len(pipes)):
        n_up += pipes[p].n_down == 0
    if n_up == 0:
        return np.int64(NIL)
    if setup.policy == PYTHON:
        return np.int64(0)  # any pipeline: the caller chooses
    if setup.policy == RANDOM:
        return _nth_up(pipes, int(setup.uniforms[0, r, 0] * n_up))
    if setup.policy == ROUND_ROBIN:
        return _nth_up(pipes, state.dispatched[0] % n_up)
    if setup.policy == POWER_OF_TWO:
        a = int(setup.uniforms[0, r, 0] * n_up)
        first = _nth_up(pipes, a)
        if n_up == 1:
            return first
        b = int(setup.uniforms[0, r, 1] * (n_up - 1))
        if b >= a:
            b += 1
        second = _nth_up(pipes, b)
        return second if pipes[second].n_jobs < pipes[first].n_jobs else first
    if setup.policy == ASSIGNED:
        p = setup.assigned[r, 0]
        while pipes[p].n_down > 0:
            p = p + 1 if p + 1 < len(pipes) else 0
        return np.int64(p)
    return _best_pipe(setup, state, r)
