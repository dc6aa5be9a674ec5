"""HypSched-RT with measured slowdowns: many requests a call, O(n_groups + log n_nodes) each.

Nodes of one class and one rounded slowdown are a group: of those the least backlog is best,
whatever the request. A group is a pairing heap by (backlog, node), linked through the nodes'
own records, for nodes change groups whenever their slowdown does.

Backlogs are whole ticks, compared as floats times a factor: the plain rule chooses the same
while a node has less than 2**52 of them (48 days). No two threads may share a state.
"""

import math

import numpy as np

from hypsolve.kernels.jit import bare_kernel as kernel

NIL = -1
WEIGHT = 0.2  # as in `hypsolve.dispatch.dispatcher`, and
STEPS = 16  # so is this
MAX_STEPS = 32 * STEPS  # either way: measured ratios stay within 2**-32..2**32
NODE = np.dtype(
    [
        ("backlog", "i8"),  # ticks
        ("ratio", "f8"),  # moving average of busy / expected
        ("kind", "i4"),  # class
        ("step", "i4"),  # slowdown = 2 ** (step / STEPS)
        ("child", "i4"),  # first
        ("next", "i4"),  # sibling
        ("before", "i4"),  # sibling, or the parent of a first child
    ],
    align=True,
)
GROUP = np.dtype(
    [
        ("backlog", "i8"),  # of its best node
        ("factor", "f8"),  # slowdown
        ("root", "i4"),  # its best node
        ("kind", "i4"),
        ("step", "i4"),
    ],
    align=True,
)


@kernel
def _meld(nodes, a, b):
    """Make one heap of two; return its root."""
    if a == NIL:
        return b
    if b == NIL:
        return a
    if nodes[b].backlog < nodes[a].backlog or (nodes[b].backlog == nodes[a].backlog and b < a):
        a, b = b, a
    child = nodes[a].child
    nodes[b].next, nodes[b].before = child, a
    if child != NIL:
        nodes[child].before = b
    nodes[a].child = b
    return a


@kernel
def _release(nodes, n):
    """Make one heap of the children of n, in pairs and then in one; return its root."""
    first, pairs = np.int64(nodes[n].child), np.int64(NIL)
    nodes[n].child = NIL
    while first != NIL:
        a, b = first, np.int64(nodes[first].next)
        first = NIL if b == NIL else np.int64(nodes[b].next)
        merged = _meld(nodes, a, b)
        nodes[merged].next = pairs
        pairs = merged
    root = np.int64(NIL)
    while pairs != NIL:
        following = np.int64(nodes[pairs].next)
        root = _meld(nodes, root, pairs)
        pairs = following
    if root != NIL:
        nodes[root].next = nodes[root].before = NIL
    return root


@kernel
def _cut_off(nodes, n):
    """Take n, which is no root, and all below it out of its heap."""
    before, following = nodes[n].before, nodes[n].next
    if nodes[before].child == n:
        nodes[before].child = following
    else:
        nodes[before].next = following
    if following != NIL:
        nodes[following].before = before
    nodes[n].next = nodes[n].before = NIL


@kernel
def _set_root(nodes, groups, g, root):
    groups[g].root = root
    groups[g].backlog = nodes[root].backlog


@kernel
def _leave(nodes, groups, place, n_groups, n):
    """Take node n out of its group; an empty group gives its place to the last one."""
    g = np.int64(place[nodes[n].kind, nodes[n].step + MAX_STEPS])
    root = np.int64(groups[g].root)
    if root == n:
        root = _release(nodes, n)
    else:
        _cut_off(nodes, n)
        root = _meld(nodes, root, _release(nodes, n))
    if root != NIL:
        _set_root(nodes, groups, g, root)
        return
    place[nodes[n].kind, nodes[n].step + MAX_STEPS] = NIL
    n_groups[0] -= 1
    last = n_groups[0]
    if g != last:
        groups[g] = groups[last]
        place[groups[g].kind, groups[g].step + MAX_STEPS] = g


@kernel
def _enter(nodes, groups, place, n_groups, factor, n):
    """Put node n, which is in no heap, into its group."""
    at = nodes[n].step + MAX_STEPS
    g = np.int64(place[nodes[n].kind, at])
    if g != NIL:
        _set_root(nodes, groups, g, _meld(nodes, np.int64(groups[g].root), n))
        return
    g = n_groups[0]
    n_groups[0] += 1
    place[nodes[n].kind, at] = g
    groups[g].kind, groups[g].step = nodes[n].kind, nodes[n].step
    groups[g].factor = factor[at]
    _set_root(nodes, groups, g, n)


@kernel
def join(node_class, order, nodes, groups, place, n_groups, factor):
    """Let all nodes join, idle and with slowdown 1; `order` has them by class, then number.

    Each class is a binary tree to begin with: in one level, the first choice would take long.
    """
    first = 0
    while first < len(order):
        kind, end = node_class[order[first]], first
        while end < len(order) and node_class[order[end]] == kind:
            end += 1
        for at in range(end - 1, first - 1, -1):
            n = order[at]
            nodes[n].backlog, nodes[n].ratio = 0, 1.0
            nodes[n].kind, nodes[n].step = kind, 0
            nodes[n].next = nodes[n].before = nodes[n].child = NIL
            below = first + 2 * (at - first) + 1
            for child in range(min(below + 1, end - 1), below - 1, -1):
                _meld(nodes, n, order[child])
        _enter(nodes, groups, place, n_groups, factor, order[first])
        first = end


@kernel
def dispatch(own_ticks, nodes, groups, place, n_groups, node):
    """Choose a node for each request in turn, counting it there; fill `node` (n_requests,).

    `own_ticks` (n_requests, n_classes): what an idle, healthy node of each class would take.
    """
    for r in range(len(own_ticks)):
        best, best_value = np.int64(0), np.inf
        for g in range(n_groups[0]):
            value = (groups[g].backlog + own_ticks[r, groups[g].kind]) * groups[g].factor
            if value < best_value or (
                value == best_value and groups[g].root < groups[best].root
            ):
                best, best_value = g, value
        n = np.int64(groups[best].root)
        nodes[n].backlog += own_ticks[r, nodes[n].kind]
        _set_root(nodes, groups, best, _meld(nodes, _release(nodes, n), n))
        node[r] = n


@kernel
def complete(node, ticks, busy_ticks, nodes, groups, place, n_groups, factor):
    """Report jobs as complete, all or none; return the first that its node cannot have had.

    Or -1; `ticks` are as expected, `busy_ticks` as it was; each (n_jobs,).
    """
    refused = NIL
    for job in range(len(node)):
        nodes[node[job]].backlog -= ticks[job]
        if nodes[node[job]].backlog < 0 and refused == NIL:
            refused = job
    for job in range(len(node)):
        nodes[node[job]].backlog += ticks[job]
    if refused != NIL:
        return refused
    for job in range(len(node)):
        n = node[job]
        ratio = (1 - WEIGHT) * nodes[n].ratio + WEIGHT * (busy_ticks[job] / ticks[job])
        nodes[n].ratio = ratio = min(max(ratio, 2.0**-32), 2.0**32)
        step = round(STEPS * math.log2(ratio))
        if step != nodes[n].step:
            _leave(nodes, groups, place, n_groups, n)
            nodes[n].backlog -= ticks[job]
            nodes[n].step = step
            _enter(nodes, groups, place, n_groups, factor, n)
            continue
        nodes[n].backlog -= ticks[job]
        g = np.int64(place[nodes[n].kind, step + MAX_STEPS])
        root = np.int64(groups[g].root)
        if root != n:
            _cut_off(nodes, n)
            root = _meld(nodes, root, n)
        _set_root(nodes, groups, g, root)
    return NIL


def warm_up() -> None:
    """Compile every kernel of this file, with the types the product calls it with."""
    nodes, groups = np.zeros(1, NODE).view(np.recarray), np.zeros(1, GROUP).view(np.recarray)
    place = np.full((1, 2 * MAX_STEPS + 1), NIL, np.int32)
    n_groups, factor = np.zeros(1, np.int64), np.ones(2 * MAX_STEPS + 1)
    ticks, node, checked = (
        np.ones((1, 1), np.int64),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
    )
    checked.setflags(write=False)
    join(checked, node, nodes, groups, place, n_groups, factor)
    dispatch(ticks, nodes, groups, place, n_groups, node)
    complete(checked, ticks[0], np.ones(1), nodes, groups, place, n_groups, factor)
