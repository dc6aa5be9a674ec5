"""Selection of the next event, which the loops of all batching modes share."""

import numpy as np

from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.layout import (
    CHURN,
    N_EVENTS,
    N_SENT,
    NEXT_ARRIVAL,
    NEXT_CHURN,
    NIL,
    REACH,
    SHIFT,
)


@inlined
def next_event(setup, state, heap):
    """Return the next event: the first of the heap, a churn event, or an arrival.

    Returns its time; its code, unless it is an arrival; whether it is a churn event; and the
    request that arrives, or NIL.
    """
    counts = state.counts
    next_s, code = np.inf, np.int64(1 << 62)
    if counts[N_EVENTS] > 0:
        next_s, code = heap[0].time_s, heap[0].code
    churn = False
    if counts[NEXT_CHURN] < len(setup.churn):
        time_s = setup.churn[counts[NEXT_CHURN]].time_s
        churn = time_s < next_s or (time_s == next_s and code > CHURN * SHIFT)
        if churn:
            next_s, code = time_s, np.int64(CHURN * SHIFT)
    arriving = np.int64(NIL)
    if counts[NEXT_ARRIVAL] < counts[N_SENT]:
        r = setup.order[counts[NEXT_ARRIVAL]]
        time_s = state.arrival_s[r]
        if time_s < next_s or (time_s == next_s and code > REACH * SHIFT + r):
            next_s = time_s
            arriving = r
    return next_s, code, churn, arriving
