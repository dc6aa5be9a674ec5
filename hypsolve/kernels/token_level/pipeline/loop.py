"""The event loop of the pipeline simulator: `run` serves the requests, `settle` ends it."""

import numpy as np

from hypsolve.kernels.dispatch import EARLIEST_COMPLETION, LEAST_WORK_LEFT
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.bins import (
    add_to_bins,
    advance,
    record_node,
    record_stranded,
)
from hypsolve.kernels.token_level.event_heap import pop, push
from hypsolve.kernels.token_level.layout import (
    BUDGET,
    BUSY,
    CHOICE,
    CHOICE_FOR,
    CHOOSE,
    DONE,
    FAILURE,
    GROW,
    ITERATION_END,
    LAST_END,
    N_ENDED,
    N_EVENTS,
    N_LOGGED,
    N_TOUCHED,
    NEXT_ARRIVAL,
    NEXT_CHURN,
    NIL,
    NOW,
    PAUSE,
    PYTHON,
    REACH,
    RETURN,
    SHIFT,
    STRANDED,
)
from hypsolve.kernels.token_level.links import send_over_links
from hypsolve.kernels.token_level.next_event import next_event
from hypsolve.kernels.token_level.pipeline.failure import fail, recover
from hypsolve.kernels.token_level.pipeline.layout import NOTHING
from hypsolve.kernels.token_level.pipeline.passage import (
    bring_back,
    compute,
    end_part,
    hand_over,
)
from hypsolve.kernels.token_level.pipeline.policy import observe
from hypsolve.kernels.token_level.pipeline.scheduler import form, may_form, pin
from hypsolve.kernels.token_level.router import choose_pipe


@inlined
def _is_void(state, event):
    """Return whether a failure has undone the batch or the attempt of an event."""
    if event.code // SHIFT == REACH:
        return state.requests[event.code % SHIFT].attempt != event.detail
    return state.pipes[state.nodes[event.code % SHIFT].pipe].epoch != event.detail


@inlined
def _start_touched(setup, state, heap):
    """Form batches, then compute on idle nodes where parts wait, at the end of an instant."""
    for at in range(state.counts[N_TOUCHED]):
        p = state.touched[at]
        state.pipes[p].touched = 0
        while may_form(setup, state.pipes[p]):
            if form(setup, state, heap, p) == NOTHING:
                break
        for stage in range(state.pipes[p].n_stages):
            compute(setup, state, heap, setup.member[p, stage])
    state.counts[N_TOUCHED] = 0


@inlined
def _n_dispatched_by_churn(state, event):
    """Return the number of requests that a failure or a recovery dispatches anew, at most."""
    p = state.nodes[event.node].pipe
    if p == NIL:
        return np.int64(0)
    if event.kind == FAILURE:
        return state.pipes[p].n_running + state.pipes[p].n_waiting
    return state.n_stranded[0]


@kernel
def _arrive(setup, state, heap, r):
    """Send the ids of a prompt over the empty tiers before the first stage."""
    request = state.requests[r]
    time_s = send_over_links(setup, state.links, 0, state.clock[NOW], request.prompt)
    code = REACH * SHIFT + r
    push(heap, state.counts, time_s, code, request.prompt, np.int64(0), request.attempt)


@kernel
def _reach(setup, state, r, p):
    """Pin a request that reaches the first stage to pipeline `p`; if `p` is NIL, strand it."""
    request = state.requests[r]
    if np.isnan(request.reached_s):  # else it was stranded
        request.reached_s = state.clock[NOW]
    if p == NIL:
        request.pipe = STRANDED
        request.behind = state.stranded[0]
        state.stranded[0] = r
        record_stranded(state, 0, np.int64(1))
    else:
        pin(setup, state, r, p)


@kernel
def run(setup, state, heap, log):
    """Process events until all requests have ended, or until the caller must act.

    Returns
    -------
    int
        As `hypsolve.kernels.token_level.loop.run`; the choice is a pipeline.
    """
    requests, nodes, counts, clock = state.requests, state.nodes, state.counts, state.clock
    n_requests = len(requests)
    max_pushed = len(nodes) + len(state.batches) + 4  # by one event
    budget = counts[BUDGET]
    while True:
        while counts[N_EVENTS] > 0 and _is_void(state, heap[0]):
            pop(heap, counts)  # a void event must not move the clock

        next_s, code, churn, arriving = next_event(setup, state, heap)
        if counts[N_ENDED] == n_requests and next_s >= clock[LAST_END]:
            advance(state, clock[LAST_END])
            return DONE
        if counts[N_EVENTS] + max_pushed > len(heap):
            return GROW
        if counts[N_TOUCHED] > 0 and next_s > clock[NOW]:
            _start_touched(setup, state, heap)
            continue
        if next_s == np.inf:  # some requests never end
            advance(state, max(clock[NOW], clock[LAST_END]))
            return DONE
        if budget <= 0:
            return PAUSE
        budget -= 1
        if next_s > clock[NOW]:
            advance(state, next_s)

        if arriving != NIL:
            counts[NEXT_ARRIVAL] += 1
            _arrive(setup, state, heap, arriving)
            continue
        if churn:
            event = setup.churn[counts[NEXT_CHURN]]
            n_dispatched = _n_dispatched_by_churn(state, event)
            if counts[N_EVENTS] + max_pushed + n_dispatched > len(heap):
                return GROW
            if event.kind == FAILURE:
                fail(setup, state, heap, event.node)
            else:
                recover(setup, state, heap, event.node)
            budget -= n_dispatched
            counts[NEXT_CHURN] += 1
            continue
        kind = code // SHIFT
        head, stage = heap[0].head, heap[0].stage
        if kind == ITERATION_END:
            if setup.record_visits and counts[N_LOGGED] + nodes[head].n_rows > len(log):
                return GROW
            pop(heap, counts)
            end_part(setup, state, heap, log, head)
        elif kind == RETURN:
            pop(heap, counts)
            bring_back(setup, state, head)
        elif kind == REACH:
            r = code % SHIFT
            if setup.policy != PYTHON:
                observe(setup, state)
            p = choose_pipe(setup, state, r)
            if setup.policy in (LEAST_WORK_LEFT, EARLIEST_COMPLETION):
                for other in range(len(state.pipes)):  # `choose` walks through their requests
                    budget -= state.pipes[other].n_jobs * setup.n_stages
            if setup.policy == PYTHON and p != NIL:
                if counts[CHOICE] == NIL:
                    counts[CHOICE_FOR] = r * setup.n_stages
                    return CHOOSE
                p = counts[CHOICE]
                counts[CHOICE] = NIL
            pop(heap, counts)
            _reach(setup, state, r, p)
        else:
            pop(heap, counts)
            hand_over(setup, state, head, stage)


@kernel
def settle(state):
    """Fill all bins up to the end of the run, with the parts that are still computed."""
    nodes, bins, clock = state.nodes, state.bins, state.clock
    for n in range(len(nodes)):
        record_node(nodes, bins, clock, n)
        if nodes[n].running == 1:
            nodes[n].busy_s += clock[NOW] - nodes[n].start_s
            add_to_bins(bins, clock, BUSY, n, nodes[n].start_s, clock[NOW], 1.0)
    for stage in range(len(state.stranded)):
        record_stranded(state, stage, np.int64(0))
