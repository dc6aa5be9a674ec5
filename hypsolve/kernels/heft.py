"""HEFT's insertion policy: each task of a list goes where it finishes earliest.

The busy time of processor p is a list of intervals: the first ``n_busy[p]`` entries of row p of
`busy_start` and `busy_end`. `_occupy` alone inserts an interval, for every task placed, and
merges it with the intervals that it touches; none is removed. So intervals are always sorted
and disjoint, and the lists stay short if gaps are few. A task of zero length has an interval
too: no task runs across another one.
"""

import numpy as np

from hypsolve.kernels.jit import kernel


@kernel
def _earliest(busy_start, busy_end, n_busy, ready_s, length_s):
    """Return the earliest start from `ready_s` on, and the number of intervals before it."""
    low, high = 0, n_busy  # skip intervals that end by ready_s
    while low < high:
        middle = (low + high) // 2
        if busy_end[middle] <= ready_s:
            low = middle + 1
        else:
            high = middle
    start_s = ready_s
    for at in range(low, n_busy):
        if start_s + length_s <= busy_start[at]:
            return start_s, at
        start_s = busy_end[at]
    return start_s, n_busy


@kernel
def _occupy(busy_start, busy_end, n_busy, at, start_s, end_s):
    """Insert a busy interval before the one at `at`; return the new number of intervals."""
    joins_last = at > 0 and busy_end[at - 1] == start_s
    joins_next = at < n_busy and busy_start[at] == end_s
    if joins_last and joins_next:
        busy_end[at - 1] = busy_end[at]
        for i in range(at, n_busy - 1):
            busy_start[i], busy_end[i] = busy_start[i + 1], busy_end[i + 1]
        return n_busy - 1
    if joins_last:
        busy_end[at - 1] = end_s
        return n_busy
    if joins_next:
        busy_start[at] = start_s
        return n_busy
    for i in range(n_busy, at, -1):
        busy_start[i], busy_end[i] = busy_start[i - 1], busy_end[i - 1]
    busy_start[at], busy_end[at] = start_s, end_s
    return n_busy + 1


@kernel
def schedule_dag(cost, order, first_in, source, comm, processor, start_s, end_s):
    """Place the tasks of a graph in topological `order`.

    `cost` has shape (n_tasks, n_processors). The incoming edges of task t are entries
    ``first_in[t] : first_in[t + 1]`` of `source` and `comm`. `processor`, `start_s` and
    `end_s`, shape (n_tasks,), are filled.
    """
    n_tasks, n_processors = cost.shape
    busy_start, busy_end = np.empty((n_processors, n_tasks)), np.empty((n_processors, n_tasks))
    n_busy = np.zeros(n_processors, np.int64)
    for task in order:
        best, best_at, begin_s, finish_s = 0, 0, 0.0, np.inf
        for p in range(n_processors):
            ready_s = 0.0
            for edge in range(first_in[task], first_in[task + 1]):
                before = source[edge]
                here = processor[before] == p
                ready_s = max(ready_s, end_s[before] + (0.0 if here else comm[edge]))
            found_s, at = _earliest(
                busy_start[p], busy_end[p], n_busy[p], ready_s, cost[task, p]
            )
            if found_s + cost[task, p] < finish_s:
                best, best_at = p, at
                begin_s, finish_s = found_s, found_s + cost[task, p]
        processor[task], start_s[task], end_s[task] = best, begin_s, finish_s
        n_busy[best] = _occupy(
            busy_start[best], busy_end[best], n_busy[best], np.int64(best_at), begin_s, finish_s
        )


@kernel
def schedule_chains(
    service_s, delay_s, arrival_s, order, tier_start, node_class, node, start_s, end_s
):
    """Place the stages of every request; task ``r * n_stages + k`` is stage k of request r.

    Parameters
    ----------
    service_s : ndarray, shape (n_requests or 1, n_stages, n_classes)
    delay_s : ndarray, shape (n_requests or 1, n_stages)
        Travel time from the stage before, or from the arrival to the first stage.
    arrival_s : ndarray, shape (n_requests,)
    order : ndarray, shape (n_requests * n_stages,)
        Tasks, with the stages of a request in sequence.
    tier_start, node_class : ndarray
        Stage k may use the nodes ``tier_start[k] : tier_start[k + 1]`` of `node_class`.
    node, start_s, end_s : ndarray, shape (n_stages, n_requests)
        Filled; nodes are counted within their stage.
    """
    n_stages = len(node)
    n_nodes = len(node_class)
    capacity = 16  # intervals per node, doubled when a node has so many
    busy_start, busy_end = np.empty((n_nodes, capacity)), np.empty((n_nodes, capacity))
    n_busy = np.zeros(n_nodes, np.int64)
    for task in order:
        r, k = task // n_stages, task % n_stages
        row = r if len(service_s) > 1 else 0
        ready_s = arrival_s[r] if k == 0 else end_s[k - 1, r]
        ready_s += delay_s[r if len(delay_s) > 1 else 0, k]
        best, best_at, begin_s, finish_s = 0, 0, 0.0, np.inf
        for n in range(tier_start[k], tier_start[k + 1]):
            length_s = service_s[row, k, node_class[n]]
            found_s, at = _earliest(busy_start[n], busy_end[n], n_busy[n], ready_s, length_s)
            if found_s + length_s < finish_s:
                best, best_at = n, at
                begin_s, finish_s = found_s, found_s + length_s
        node[k, r] = best - tier_start[k]
        start_s[k, r], end_s[k, r] = begin_s, finish_s
        if n_busy[best] == capacity:
            wider_start = np.empty((n_nodes, 2 * capacity))
            wider_end = np.empty((n_nodes, 2 * capacity))
            wider_start[:, :capacity], wider_end[:, :capacity] = busy_start, busy_end
            busy_start, busy_end = wider_start, wider_end
            capacity *= 2
        n_busy[best] = _occupy(
            busy_start[best], busy_end[best], n_busy[best], np.int64(best_at), begin_s, finish_s
        )


def warm_up() -> None:
    """Compile every kernel of this file, for the types that `hypsolve` calls it with."""
    one, zero = np.ones(1), np.zeros(1, np.int64)
    schedule_dag(
        np.ones((1, 1)), zero, np.array([0, 0]), zero, one, zero.copy(), one.copy(), one.copy()
    )
    schedule_chains(
        np.ones((1, 1, 1)), np.zeros((1, 1)), one, zero, np.array([0, 1]), zero,
        np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.zeros((1, 1)),
    )  # fmt: skip
