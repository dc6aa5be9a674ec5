"""State of pipelines as policies see it: sums over the nodes of a pipeline, see `simulate`."""

import numpy as np

from hypsolve.kernels.dispatch import EARLIEST_COMPLETION, HYPSCHED_RT, LEAST_WORK_LEFT
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.token_level.layout import NIL, NOW, PYTHON
from hypsolve.kernels.token_level.policy import left_s


@kernel
def _remaining_s(setup, state, p):
    """Return the expected seconds of work that the nodes of a pipeline have left, summed.

    It walks through the requests of the pipeline.
    """
    pipe, now_s, total_s = state.pipes[p], state.clock[NOW], 0.0
    for stage in range(pipe.n_stages):
        node = state.nodes[setup.member[p, stage]]
        if node.running == 1:
            total_s += max(node.start_s + node.nominal_s - now_s, 0.0)
        for head in (pipe.running_head, pipe.waiting_head):
            r = head
            while r != NIL:
                place, request = state.places[r * setup.n_stages + stage], state.requests[r]
                if np.isnan(place.left_s):  # its work here is not complete
                    row = r if len(setup.expected_s) > 1 else 0
                    total_s += left_s(setup, request, place, row, node.span, node.kind)
                r = request.behind
    return total_s


@kernel
def observe(setup, state):
    """Fill in what the policy reads of the pipelines: free KV tokens, and work that is left."""
    for p in range(len(state.pipes)):
        pipe = state.pipes[p]
        if setup.policy in (HYPSCHED_RT, PYTHON):
            pipe.free = pipe.capacity - pipe.held - pipe.queued
        if setup.policy in (LEAST_WORK_LEFT, EARLIEST_COMPLETION, PYTHON):
            pipe.work_s = _remaining_s(setup, state, p)
