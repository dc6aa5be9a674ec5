"""Binary heap of events, ordered by time and then by code.

The records `heap[: counts[N_EVENTS]]` are always a heap. `push` inserts, and `pop` removes the
first. A failure only shortens the chains of tokens that events carry.
"""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined
from hypsolve.kernels.token_level.layout import N_EVENTS


@kernel
def _precedes(time_s, code, event):
    """Return whether an event comes before another: by time, then by code."""
    return time_s < event.time_s or (time_s == event.time_s and code < event.code)


@inlined
def push(heap, counts, time_s, code, head, stage, detail):
    """Insert an event into the heap, which must have room for it."""
    at = counts[N_EVENTS]
    counts[N_EVENTS] += 1
    while at > 0:
        above = (at - 1) >> 1
        if not _precedes(time_s, code, heap[above]):
            break
        heap[at] = heap[above]
        at = above
    event = heap[at]
    event.time_s = time_s
    event.code = code
    event.head = head
    event.stage = stage
    event.detail = detail


@inlined
def pop(heap, counts):
    """Remove the first event of the heap."""
    counts[N_EVENTS] -= 1
    n = counts[N_EVENTS]
    time_s, code = heap[n].time_s, heap[n].code
    at = 0
    while True:
        below = 2 * at + 1
        if below >= n:
            break
        if below + 1 < n:
            right = heap[below + 1]
            if _precedes(right.time_s, right.code, heap[below]):
                below += 1
        if _precedes(time_s, code, heap[below]):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = heap[n]
