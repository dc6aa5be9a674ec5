"""Schedules of many requests made from an order of their stages, and a search for a better one.

An *operation* is one stage of one request, ``r * n_stages + k``. Operations are placed one
after the other, in the order given, each on the node where it finishes earliest, in a gap if
one is long enough. So one that stands before another, though it is ready later, goes first, and
the other still uses what time is left before it. Every schedule in which nothing can start
earlier is made by the order of its starts, if operations are barred from other nodes.

Of each node the latest `SPANS` busy spans are remembered; the gaps before them are given up. So
a schedule costs time in proportion to its length, and a state is small enough to be copied.
"""

from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import Line
from hypsolve.kernels.jit import kernel

SPANS = 24


class State(NamedTuple):
    """When nodes are busy, after some of an order's operations: row 0 after none, and so on."""

    begin: Any  # (n_rows, n_nodes, SPANS + 1)
    end: Any  # the same
    n_spans: Any  # (n_rows, n_nodes)


def new_state(line, n_rows):
    """All nodes of a line, idle in every row."""
    shape = (n_rows, line.slot[-1], SPANS + 1)
    return State(np.zeros(shape), np.zeros(shape), np.zeros(shape[:2], np.int64))


@kernel
def _gap(begin, end, n, ready, length):
    """Find the earliest start from `ready` on, and the number of spans before it."""
    at = n
    while at > 0 and end[at - 1] > ready:
        at -= 1
    start = ready
    while at < n and start + length > begin[at]:
        start = end[at]
        at += 1
    return start, at


@kernel
def _fill(begin, end, n, at, start, stop):
    """Mark ``start:stop`` busy, with `at` spans before it; returns the number of spans."""
    after_last = at > 0 and end[at - 1] == start
    before_next = at < n and begin[at] == stop
    if after_last and before_next:
        end[at - 1] = end[at]
        for i in range(at, n - 1):
            begin[i], end[i] = begin[i + 1], end[i + 1]
        return n - 1
    if after_last:
        end[at - 1] = stop
        return n
    if before_next:
        begin[at] = start
        return n
    for i in range(n, at, -1):
        begin[i], end[i] = begin[i - 1], end[i - 1]
    begin[at], end[at] = start, stop
    if n < SPANS:
        return n + 1
    begin[1] = begin[0]  # the first gap is given up
    for i in range(n):
        begin[i], end[i] = begin[i + 1], end[i + 1]
    return n


@kernel
def _place(line, state, row, r, k, ready):
    """Serve stage k of request r in a row of the state; returns node, start and end."""
    best, best_at, best_start, best_end = 0, 0, 0.0, np.inf
    for g in range(line.first[k], line.first[k + 1]):
        length = line.service[r, g]
        for x in range(line.slot[g], line.slot[g + 1]):
            n = state.n_spans[row, x]
            start, at = _gap(state.begin[row, x], state.end[row, x], n, ready, length)
            if start + length < best_end:
                best, best_at, best_start, best_end = x, at, start, start + length
    n = state.n_spans[row, best]
    state.n_spans[row, best] = _fill(
        state.begin[row, best], state.end[row, best], n, np.int64(best_at), best_start, best_end
    )
    return best, best_start, best_end


@kernel
def place_all(line, order, state, node, start, end):
    """Serve all operations in an order; fills `node`, `start`, `end` by request and stage."""
    n_stages = len(line.first) - 1
    state.n_spans[0] = 0
    for operation in order:
        r, k = operation // n_stages, operation % n_stages
        ready = line.release[r] if k == 0 else end[r, k - 1] + line.lag[r, k - 1]
        node[r, k], start[r, k], end[r, k] = _place(line, state, np.int64(0), r, k, ready)


@kernel
def place_stage(line, k, requests, ready, state, node, start, end):
    """Serve stage k of the requests in an order; fills column k of `node`, `start`, `end`.

    ``ready`` (n_requests,) is when they may start it, and is left as when they may start the
    next. Row 0 of the state must have the stage's nodes idle.
    """
    for r in requests:
        node[r, k], start[r, k], end[r, k] = _place(line, state, np.int64(0), r, k, ready[r])
        ready[r] = end[r, k] + line.lag[r, k]


@kernel
def _copy(source, a, target, b):
    """Make row b of `target` row a of `source`."""
    for x in range(source.n_spans.shape[1]):
        n = source.n_spans[a, x]
        target.n_spans[b, x] = n
        for i in range(n):
            target.begin[b, x, i] = source.begin[a, x, i]
            target.end[b, x, i] = source.end[a, x, i]


class Window(NamedTuple):
    """Some operations of an order, and what is known after each of them; see `improve`."""

    now: Any  # (n,) of int: the operations, in the best order so far
    new: Any  # (n,) of int: another order to try
    node: Any  # (n,) of int: where each of `now` is served
    ready: Any  # (n,), when it may start
    start: Any  # (n,), when it does
    late: Any  # (n + 1,), sum of the delays before each
    last: Any  # (n + 1,), latest completion before each


def new_window(n):
    """Room for n operations."""
    now, new, node = np.empty((3, n), np.int64)
    ready, start, late, last = np.zeros((4, n + 1))
    return Window(now, new, node, ready, start, late, last)


class Course(NamedTuple):
    """An order on its way to a better one; see `improve`."""

    line: Any  # its service is inf where a request is barred; changed in place
    asked: Any  # (n_requests, n_groups), service without bars
    least: Any  # (n_requests, n_stages), from the start of a stage to the completion, no delay
    order: Any  # (n_requests * n_stages,) of int, changed in place
    ready: Any  # (n_requests,), when the next stage of each may start, of those in the past


class Room(NamedTuple):
    """Where `improve` works."""

    state: Any  # after each operation of the window: one row more than it has room
    trial: Any  # one row
    window: Any


def new_course(line, asked, least, order):
    """Begin with an order, changed in place as the line's service is."""
    return Course(line, asked, least, order, line.release.copy())


def new_room(line, n):
    """Room for windows of n operations, look beyond included, at the begin of an order."""
    return Room(new_state(line, n + 1), new_state(line, 1), new_window(n))


@kernel
def improve(course, room, makespan, width, step, at, until, max_trials):
    """Better an order, and who may use what, a window of `width` operations at a time.

    What stands before the window is fixed. For each trial the window, and as much as there is
    room for behind it, is placed anew; what counts is the sum of the completions, or the last
    of them, where stages that are not placed yet have no delay. A trial moves an operation
    before another of the same stage, alone or with the later stages of its request, or bars it
    from a group, or lets it in again. Whatever helps is kept. When a round over the window's
    operations helps no more, or ends after `max_trials` or more, the window goes on by `step`.

    Parameters
    ----------
    course : Course
    room : Room
        As it was left for `at`; row 0 of its state is after ``order[:at]``.
    makespan : bool
    width, step : int
    at, until : int
        Where the first window begins; where none begins any more.
    max_trials : int

    Returns
    -------
    at, n_trials : int
        Where the next window begins.
    """
    line, asked, least, order, ready = course
    state, trial, window = room
    n_stages = len(line.first) - 1
    n_trials = 0
    while at < until:
        size = min(width, len(order) - at)
        n = min(len(window.now), len(order) - at)
        window.new[:n] = order[at : at + n]
        window.late[0] = 0.0
        _settle(line, least, ready, state, window, np.int64(0), n)
        n_here, is_better = 0, True
        while is_better and n_here < max_trials:
            is_better = False
            for a in range(size):
                operation = window.now[a]
                r, k = operation // n_stages, operation % n_stages
                b = a - 1 if window.start[a] > window.ready[a] else -1  # else it need not pass
                while b >= 0:
                    if window.now[b] % n_stages == k:
                        for whole in range(2 if k < n_stages - 1 else 1):
                            if window.now[a] != operation or not _move(
                                window, n_stages, a, b, n, whole == 1
                            ):
                                continue
                            n_here += 1
                            if _helps(line, least, ready, makespan, state, trial, window, b, n):
                                is_better = True
                                _rewind(window, n_stages, ready, b, n)
                                _settle(line, least, ready, state, window, b, n)
                    b = b - 1 if window.now[a] == operation else -1
                if window.now[a] != operation:
                    continue
                window.new[:n] = window.now[:n]
                for g in range(line.first[k], line.first[k + 1]):
                    was = line.service[r, g]
                    is_used = line.slot[g] <= window.node[a] < line.slot[g + 1]
                    if not is_used and (was < np.inf or asked[r, g] == np.inf):
                        continue  # to bar it would change nothing; to let it in, nor
                    if is_used and _is_only_one(line, r, k, g):
                        continue
                    n_here += 1
                    line.service[r, g] = np.inf if is_used else asked[r, g]
                    if _helps(line, least, ready, makespan, state, trial, window, a, n):
                        is_better = True
                        _rewind(window, n_stages, ready, a, n)
                        _settle(line, least, ready, state, window, a, n)
                    else:
                        line.service[r, g] = was
        n_trials += n_here
        order[at : at + n] = window.now[:n]
        window.new[:n] = window.now[:n]
        _rewind(window, n_stages, ready, np.int64(0), n)
        _settle(line, least, ready, state, window, np.int64(0), n)
        gone = min(step, len(order) - at)
        _rewind(window, n_stages, ready, gone, n)
        _copy(state, gone, state, np.int64(0))
        window.last[0] = window.last[gone]
        at += gone
    return at, n_trials


@kernel
def _move(window, n_stages, a, b, n, whole):
    """Fill ``window.new`` from b on, with the operation at a before the one at b.

    With `whole` those of the later stages of its request follow right behind it. False if it
    would pass an earlier stage of its request.
    """
    operation = window.now[a]
    r = operation // n_stages
    for j in range(b, a):
        if window.now[j] // n_stages == r:
            return False
    window.new[b] = operation
    i = b + 1
    if whole:
        for j in range(a + 1, n):
            if window.now[j] // n_stages == r:
                window.new[i] = window.now[j]
                i += 1
    for j in range(b, n):
        if j != a and not (whole and window.now[j] // n_stages == r):
            window.new[i] = window.now[j]
            i += 1
    return True


@kernel
def _is_only_one(line, r, k, g):
    """Whether g is the only group that r may use on stage k."""
    for other in range(line.first[k], line.first[k + 1]):
        if other != g and line.service[r, other] < np.inf:
            return False
    return True


@kernel
def _rewind(window, n_stages, ready, low, n):
    """Make `ready` again what it is before the operation at `low`."""
    for i in range(n - 1, low - 1, -1):
        ready[window.now[i] // n_stages] = window.ready[i]


@kernel
def _settle(line, least, ready, state, window, low, n):
    """Make ``new[low:n]`` the best order so far, and note what is known after each."""
    n_stages = len(line.first) - 1
    for i in range(low, n):
        window.now[i] = window.new[i]
        r, k = window.now[i] // n_stages, window.now[i] % n_stages
        window.ready[i] = ready[r]
        _copy(state, i, state, i + 1)
        node, start, end = _place(line, state, i + 1, r, k, ready[r])
        window.node[i], window.start[i] = node, start
        rest = end + line.lag[r, k] + least[r, k + 1] if k + 1 < n_stages else end
        window.late[i + 1] = window.late[i] + rest - (ready[r] + least[r, k])
        window.last[i + 1] = max(window.last[i], rest)
        ready[r] = end + line.lag[r, k]


@kernel
def _helps(line, least, ready, makespan, state, trial, window, low, n):
    """Whether ``new[low:n]`` is better than what is known of ``now[low:n]``."""
    n_stages = len(line.first) - 1
    _rewind(window, n_stages, ready, low, n)
    _copy(state, low, trial, np.int64(0))
    late, last = window.late[low], window.last[low]
    for i in range(low, n):
        r, k = window.new[i] // n_stages, window.new[i] % n_stages
        _, _, end = _place(line, trial, np.int64(0), r, k, ready[r])
        rest = end + line.lag[r, k] + least[r, k + 1] if k + 1 < n_stages else end
        late += rest - (ready[r] + least[r, k])
        last = max(last, rest)
        ready[r] = end + line.lag[r, k]
        if last > window.last[n] if makespan else late >= window.late[n]:
            return False
    return last < window.last[n] or late < window.late[n] if makespan else True


def warm_up() -> None:
    """Compile every kernel a method calls, on two requests and one stage."""
    ends = np.array([0, 1])
    line = Line(np.ones((2, 1)), np.zeros((2, 1)), np.zeros(2), ends, ends)
    order, ready, least = np.array([1, 0]), np.zeros(2), np.ones((2, 1))
    node, start, end = np.zeros((2, 1), np.int64), np.zeros((2, 1)), np.zeros((2, 1))
    one = new_state(line, 1)
    place_stage(line, 0, order, ready, one, node, start, end)
    place_all(line, order, one, node, start, end)
    course = new_course(line, line.service.copy(), least, order)
    improve(course, new_room(line, 2), False, 1, 1, 0, 2, 4)
