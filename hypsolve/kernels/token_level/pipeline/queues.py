"""Lists of the running and of the waiting requests of a pipeline.

Both are doubly linked and always sorted by arrival (`rank`). A request that is pinned to a
pipeline is in exactly one of them: `enlist` inserts it, and `delist` removes it.
"""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.bins import record_node
from hypsolve.kernels.token_level.layout import N_TOUCHED, NIL


@inlined
def mark_touched(state, p):
    """Mark a pipeline to be looked at when all events of this instant are over."""
    if state.pipes[p].touched == 0:
        state.pipes[p].touched = 1
        state.touched[state.counts[N_TOUCHED]] = p
        state.counts[N_TOUCHED] += 1


@kernel
def enlist(requests, pipe, r, running):
    """Insert a request into the list of running (1) or waiting (0) requests."""
    request = requests[r]
    request.running = running
    before = pipe.running_tail if running == 1 else pipe.waiting_tail
    behind = NIL
    while before != NIL and requests[before].rank > request.rank:
        behind = before
        before = requests[before].before
    request.before = before
    request.behind = behind
    if before != NIL:
        requests[before].behind = r
    elif running == 1:
        pipe.running_head = r
    else:
        pipe.waiting_head = r
    if behind != NIL:
        requests[behind].before = r
    elif running == 1:
        pipe.running_tail = r
    else:
        pipe.waiting_tail = r
    if running == 1:
        pipe.n_running += 1
    else:
        pipe.n_waiting += 1


@kernel
def delist(requests, pipe, r):
    """Remove a request from the list that it is in."""
    request = requests[r]
    running = request.running
    if request.before != NIL:
        requests[request.before].behind = request.behind
    elif running == 1:
        pipe.running_head = request.behind
    else:
        pipe.waiting_head = request.behind
    if request.behind != NIL:
        requests[request.behind].before = request.before
    elif running == 1:
        pipe.running_tail = request.before
    else:
        pipe.waiting_tail = request.before
    if running == 1:
        pipe.n_running -= 1
    else:
        pipe.n_waiting -= 1


@kernel
def record_pipe(setup, state, p):
    """Copy the KV tokens and waiting requests of a pipeline to its nodes, for their bins.

    It must be called within the instant in which they change.
    """
    pipe = state.pipes[p]
    for stage in range(pipe.n_stages):
        n = setup.member[p, stage]
        node = state.nodes[n]
        if node.held != pipe.held or node.n_waiting != pipe.n_waiting:
            record_node(state.nodes, state.bins, state.clock, n)
            node.held = pipe.held
            node.n_waiting = pipe.n_waiting
