"""The event loop: `run` serves the requests, `settle` closes the books."""

import numpy as np

from hypsolve.kernels.dispatch import (
    EARLIEST_COMPLETION,
    LEAST_WORK_LEFT,
)
from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.admission import arrive, reach
from hypsolve.kernels.token_level.bins import (
    add_to_bins,
    advance,
    record_node,
    record_stranded,
)
from hypsolve.kernels.token_level.event_heap import pop
from hypsolve.kernels.token_level.failure import fail, recover
from hypsolve.kernels.token_level.iteration import deliver, end_iteration, receive, start
from hypsolve.kernels.token_level.layout import (
    BUDGET,
    BUSY,
    CHOICE,
    CHOICE_FOR,
    CHOOSE,
    DECODE,
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
)
from hypsolve.kernels.token_level.links import send_prompt
from hypsolve.kernels.token_level.next_event import next_event
from hypsolve.kernels.token_level.policy import choose, n_unfinished
from hypsolve.kernels.token_level.preemption import give_blocks
from hypsolve.kernels.token_level.routes import choose_in_placement


@inlined
def _is_void(state, event):
    """Return whether a failure has undone the iteration, attempt or tokens of an event."""
    kind = event.code // SHIFT
    if kind == ITERATION_END:
        return state.nodes[event.head].run_id != event.detail
    if kind == REACH:
        return state.requests[event.code % SHIFT].attempt != event.detail
    return event.head == NIL


@inlined
def _start_touched(setup, state, heap):
    """Start iterations on the idle nodes where tokens wait, at the end of an instant."""
    for at in range(state.counts[N_TOUCHED]):
        n = state.touched[at]
        node = state.nodes[n]
        node.touched = 0
        waits = node.decode_head != NIL or node.prefill_head != NIL
        if waits and node.running == 0 and node.up == 1:
            start(setup, state, heap, n)
    state.counts[N_TOUCHED] = 0


@inlined
def _n_dispatched_by_churn(state, event):
    """Return the number of requests that a failure or a recovery dispatches anew, at most."""
    node = state.nodes[event.node]
    if event.kind == FAILURE:
        return node.n_jobs
    return state.n_stranded[node.stage] if node.stage != NIL else np.int64(0)


@kernel
def run(setup, state, heap, log):
    """Process events until all requests have ended, or until the caller must act.

    Returns
    -------
    int
        ``DONE``; ``GROW``: the heap or the log needs more room; ``CHOOSE``: the caller must
        put a node into ``counts[CHOICE]`` for the place ``counts[CHOICE_FOR]``; ``PAUSE``:
        ``counts[BUDGET]`` events were processed, so that the caller can look at Ctrl-C. Except
        after ``DONE``, another call goes on.
    """
    requests, nodes, counts, clock = state.requests, state.nodes, state.counts, state.clock
    n_requests = len(requests)
    max_pushed = min(setup.max_num_seqs, n_requests) + len(nodes) + 4  # by one event
    budget = counts[BUDGET]
    while True:
        while counts[N_EVENTS] > 0 and _is_void(state, heap[0]):
            pop(heap, counts)  # a void event must not move the clock

        next_s, code, churn, arriving = next_event(setup, state, heap)
        if counts[N_ENDED] == n_requests and next_s >= clock[LAST_END]:
            advance(state, clock[LAST_END])
            return DONE  # iterations may still run, without requests
        if counts[N_TOUCHED] > 0 and next_s > clock[NOW]:
            n_preempted = (
                counts[NEXT_ARRIVAL] - counts[N_ENDED] if setup.paged else 0
            )  # at most
            if counts[N_EVENTS] + max_pushed + n_preempted > len(heap):
                return GROW
            if setup.paged and give_blocks(setup, state, heap):
                continue  # those that were preempted reach the first stage in this instant
            _start_touched(setup, state, heap)
            continue
        if next_s == np.inf:  # some requests never end
            advance(state, max(clock[NOW], clock[LAST_END]))
            return DONE
        if counts[N_EVENTS] + max_pushed > len(heap):
            return GROW
        if budget <= 0:
            return PAUSE
        budget -= 1
        if next_s > clock[NOW]:
            advance(state, next_s)

        if arriving != NIL:
            counts[NEXT_ARRIVAL] += 1
            n_tokens = state.requests[arriving].prefill
            send_prompt(setup, state, heap, arriving, np.int64(0), np.int64(0), n_tokens)
            continue
        if churn:
            event = setup.churn[counts[NEXT_CHURN]]
            n_dispatched = _n_dispatched_by_churn(state, event)
            if counts[N_EVENTS] + max_pushed + n_dispatched > len(heap):
                return GROW
            if event.kind == FAILURE:
                fail(setup, state, heap, event.node)
                budget -= n_requests  # `fail` walks through all requests
            else:
                recover(setup, state, heap, event.node)
            counts[NEXT_CHURN] += 1
            continue
        kind = code // SHIFT
        head, stage = heap[0].head, heap[0].stage
        if kind == ITERATION_END:
            if setup.record_visits and counts[N_LOGGED] + nodes[head].batch_size > len(log):
                return GROW
            pop(heap, counts)
            end_iteration(setup, state, heap, log, head)
        elif kind == RETURN:
            pop(heap, counts)
            deliver(setup, state, head, code % SHIFT)
        elif kind == DECODE:
            pop(heap, counts)
            receive(setup, state, head, stage)
        else:
            r = code % SHIFT
            is_new = state.places[r * setup.n_stages + stage].node == NIL
            n = NIL
            if is_new:
                is_placed = len(state.pipes) > 0
                if is_placed:
                    n = choose_in_placement(setup, state, r, stage)
                else:
                    n = choose(setup, state, r, stage)
                if setup.policy in (LEAST_WORK_LEFT, EARLIEST_COMPLETION):
                    budget -= n_unfinished(setup, nodes, stage)  # `choose` walks through them
                is_routed = is_placed and state.requests[r].pipe != NIL
                if setup.policy == PYTHON and n != NIL and not is_routed:
                    if counts[CHOICE] == NIL:
                        counts[CHOICE_FOR] = r * setup.n_stages + stage
                        return CHOOSE
                    n = counts[CHOICE]
                    counts[CHOICE] = NIL
            pop(heap, counts)
            arrive(setup, state, r, stage, head)
            if is_new:
                reach(setup, state, r, stage, n)


@kernel
def settle(state):
    """Fill all bins up to the end of the run, with the iterations that are still running."""
    nodes, bins, clock = state.nodes, state.bins, state.clock
    for n in range(len(nodes)):
        record_node(nodes, bins, clock, n)
        if nodes[n].running == 1:
            nodes[n].busy_s += clock[NOW] - nodes[n].start_s
            add_to_bins(bins, clock, BUSY, n, nodes[n].start_s, clock[NOW], 1.0)
    for stage in range(len(state.stranded)):
        record_stranded(state, stage, np.int64(0))
