"""The largest rate of nodes that hold all blocks, each a server of its own.

Under ``pipeline`` and ``serial`` a split in one stage is such a set of servers. A dispatcher
shares the requests by speed, so the split carries the sum of the rates of the servers. Users of
a closed loop limit the latency at every server by the total rate, which is found by bisection.
"""

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel
from hypsolve.kernels.throughput.pipeline_tables import (
    held_cycles,
    jump_below,
    limit_per_cycle,
    longest_cycle,
)
from hypsolve.kernels.throughput.server import SLACK, is_allowed, tau

CLOSE = 1e-12  # relative error of a rate
UNLIMITED = 1e-300  # requests per second; so few of them are not limited by any users


@bare_inner_kernel
def server_rate(server, node_class, content, most, within_s):
    """Return the largest rate of one server with at most `most` requests per cycle.

    For each rate, the largest batch that the longest cycle allows decides, or one just below a
    jump of a collective operation.
    """
    lengths = server.lengths
    low, high, x, y, carries = 0.0, 0.0, 0.0, most, False
    while y > 0.0:
        n_decode, n_chunks = y * lengths.passes, y * lengths.chunks
        cycle_s = server.iteration_s + tau(server, node_class, content, n_decode, n_chunks)
        if x == 0.0:
            high = max(high, y / cycle_s)  # without targets
        else:
            carries = x * cycle_s <= y * (1.0 + SLACK)
        smaller = 0.0 if carries else jump_below(server, 1, y)
        if smaller > 0.0:
            y = smaller
            continue
        if x == 0.0:
            x = high
        else:
            if carries:
                low = x
            else:
                high = x
            if high - low <= CLOSE * high or high <= 1e-15:
                break
            x = (low + high) / 2
        y, carries = min(most, x * within_s), False
    return low


@bare_inner_kernel
def servers_rate(server, k, within_s):
    """Return the sum of the rates of the servers of a tier with cycles of such seconds."""
    content = server.content[0, server.content.shape[0] - 1]
    limit, held, total = limit_per_cycle(server, 1), held_cycles(server, 1), 0.0
    for g in range(server.group_start[k], server.group_start[k + 1]):
        room = server.room[g, content]
        if room > 0.0:
            most = min(limit, room / held)
            rate = server_rate(server, server.group_class[g], content, most, within_s)
            total += server.group_size[g] * rate
    return total


@bare_inner_kernel
def whole_rate(server, k):
    """Return the largest rate of a tier whose nodes hold all blocks, 0 if none does."""
    low, high, x = 0.0, np.inf, UNLIMITED
    while True:
        found = servers_rate(server, k, longest_cycle(server, 1, server.entry_s[k], x))
        if high == np.inf:
            high = x = found
            if server.targets.users == np.inf:
                return found
        else:
            if found >= x * (1.0 - SLACK):
                low = x
            else:
                high = x
            x = (low + high) / 2
        if high - low <= CLOSE * high or high <= 1e-15:
            return low


@bare_inner_kernel
def set_whole(server, k, cuts):
    """Put all blocks into one tier; return whether the limits of the tiers allow that."""
    n_tiers, n_blocks = len(server.min_blocks), server.content.shape[0] - 1
    for tier in range(n_tiers + 1):
        cuts[tier] = n_blocks if tier > k else 0
    n_allowed = 0
    for tier in range(n_tiers):
        n_allowed += is_allowed(server, tier, cuts[tier], cuts[tier + 1])
    return n_allowed == n_tiers
