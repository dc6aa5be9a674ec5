"""The largest request rate over all splits under ``pipeline`` and ``serial`` batching.

For K stages, n batches are under way (K or 1). If y requests start per cycle, a split with R
pipelines carries R y / C requests per second, where the cycle C is the sum of the seconds of
all stages, links and the host, and at least n times the largest of them. C / y does not rise in
y but where a collective operation jumps to a slower algorithm, so a split does best with the
largest y that its KV memory allows, or just below a jump. The memory of some stage decides the
largest y, so that only the *levels* count: the values of y that some room gives.

For given K and R, the search refutes ranges of levels at once. Suppose that levels from y' to y
are left, y' < y. A stage that has memory for one of them has memory for y', and since C / y
does not rise between jumps, no split has a smaller C / y at a level of the range than at y or
just below a jump. So if no split of stages with memory for y' carries a rate at any of these,
memory apart, then no level of the range carries it. Otherwise the range is divided. A range of
one level is decided exactly. The test of a range is a shortest chain over stages and links that
are short enough. Each chain that is found is a split, and its own rate is the next rate to
beat.

A split in one stage is a set of servers (`servers`), and carries at least what the search
counts for it. These few splits are tried first.
"""

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, kernel
from hypsolve.kernels.throughput.pipeline_tables import (
    held_cycles,
    jump_below,
    limit_per_cycle,
    longest_cycle,
    new_tables,
    set_batch,
    slowest_s,
    stage_s,
    under_way,
)
from hypsolve.kernels.throughput.server import PIPELINE, SLACK, crosses
from hypsolve.kernels.throughput.servers import set_whole, whole_rate

CLOSE = 1e-11  # a rate is not improved by less than this share of it
LEAST = 1e-9  # requests per second; smaller rates count as none
ANY = 0  # number of stages that stands for all numbers


@bare_inner_kernel
def has_one_class(server, k):
    """Return whether all nodes of a tier are of one class."""
    first = server.group_class[server.node_group[server.node_start[k]]]
    for node in range(server.node_start[k] + 1, server.node_start[k + 1]):
        if server.group_class[server.node_group[node]] != first:
            return False
    return True


@bare_inner_kernel
def shortest_sum(server, tables, n_stages, first, n_pipelines, room, cycle_s, n, cuts):
    """Return the least sum of seconds of stages, links and the host, inf above `cycle_s`.

    Parameters
    ----------
    n_stages, first : int
        Stages that host blocks, or `ANY`, and the first such tier; -1: any tier.
    n_pipelines, room : int, float
        Nodes that each stage needs, and requests that each of them must have room for.
    cycle_s : float
        Seconds of the sum at most. A stage or a message takes at most the n-th part.
    cuts : ndarray of int, shape (n_tiers + 1,)
        Filled in, if there is a split.
    """
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    cost, origin = tables.cost, tables.origin
    cost[:] = np.inf
    cost[0, 0, 0] = server.iteration_s
    alone_s = cycle_s / n
    counted = 0 if n_stages == ANY else 1
    for k in range(n_tiers):
        # numbers of stages so far that can still become n_stages
        fewest, most = max(0, n_stages - (n_tiers - k)), min(k, n_stages)
        are_alike = has_one_class(server, k)
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            least = np.inf
            for count in range(fewest, most + 1):
                least = min(least, cost[k, i, count])
            if least == np.inf:
                continue
            end = min(n_cuts - 1, i + server.max_blocks[k], server.cut_max[k + 1])
            for j in range(max(i + server.min_blocks[k], server.cut_min[k + 1]), end + 1):
                if first >= 0 and i == 0 and (j > 0) != (k >= first):
                    continue
                seconds, used = 0.0, 0
                if i < j:
                    content, used = server.content[i, j], counted
                    seconds = stage_s(server, tables, k, content, n_pipelines, room)
                    if seconds == np.inf:
                        continue
                    if seconds > alone_s or least + seconds > cycle_s:
                        if are_alike:
                            break  # so does every longer stage
                        continue  # a longer one may have no room on the slow nodes
                if crosses(server, k, j):
                    if tables.message_s[k, j] > alone_s:
                        continue
                    seconds += tables.message_s[k, j] + server.round_trip_s[k]
                if least + seconds > cycle_s:
                    continue
                for count in range(fewest, min(most, n_stages - used) + 1):
                    total = cost[k, i, count] + seconds
                    if total < cost[k + 1, j, count + used]:
                        cost[k + 1, j, count + used] = total
                        origin[k + 1, j, count + used] = i
    best = cost[n_tiers, n_cuts - 1, n_stages]
    if best > cycle_s:
        return np.inf
    cut, count = n_cuts - 1, n_stages
    for k in range(n_tiers, 0, -1):
        cuts[k] = cut
        before = origin[k, cut, count]
        if before < cut:
            count -= counted
        cut = before
    cuts[0] = 0
    return best


@bare_inner_kernel
def try_levels(server, tables, n_stages, first, n_pipelines, low, high, x, cuts):
    """Return whether a split may carry x at a level in low..high, and fill in its cuts.

    If False, no split does. If True and the two levels are equal, this split does.
    """
    n, x_each = under_way(server, n_stages), x / n_pipelines
    entry_s = server.entry_s[first] if first >= 0 else 0.0
    within = x_each * longest_cycle(server, n, entry_s, x)  # requests per cycle
    y = min(high, within)
    room = min(low, within) * held_cycles(server, n)
    # without jumps, the largest batch is best; if it is too slow even so, all batches are
    times = int(jump_below(server, n, y) > 0.0)
    while y > 0.0:
        cycle_s, carries = y / x_each * (1.0 + SLACK), False
        if server.iteration_s * n <= cycle_s:
            set_batch(server, tables, n, y, times)
            found_s = shortest_sum(
                server, tables, n_stages, first, n_pipelines, room, cycle_s, n, cuts
            )
            carries = found_s <= cycle_s
        if times == 0 and carries:
            return True
        if times == 1 and not carries:
            return False
        if times == 0:
            y = jump_below(server, n, y)
        times = 0
    return False


@bare_inner_kernel
def one_cycle_s(server, tables, cuts, n, n_pipelines, y):
    """Return the cycle of one split in which y requests start."""
    set_batch(server, tables, n, y, 0)
    total = longest = server.iteration_s
    for k in range(len(server.min_blocks)):
        i, j = cuts[k], cuts[k + 1]
        if i < j:
            seconds = slowest_s(server, tables, k, server.content[i, j], n_pipelines)
            total += seconds
            longest = max(longest, seconds)
        if crosses(server, k, j):
            seconds = tables.message_s[k, j]
            total += seconds + server.round_trip_s[k]
            longest = max(longest, seconds)
    return max(total, n * longest)


@bare_inner_kernel
def _raise_split(server, tables, cuts, n, first, n_pipelines, most, low):
    """Return the largest rate of one split with so many requests per cycle, at least `low`.

    There is one call of `one_cycle_s`, for LLVM inlines each of them.
    """
    high, x, y, carries = 0.0, 0.0, most, False
    while True:
        if y > 0.0:
            cycle_s = one_cycle_s(server, tables, cuts, n, n_pipelines, y)
            if x == 0.0:
                high = max(high, n_pipelines * y / cycle_s)  # without targets
            else:
                carries = x / n_pipelines * cycle_s <= y * (1.0 + SLACK)
            smaller = 0.0 if carries else jump_below(server, n, y)
            if smaller > 0.0:
                y = smaller
                continue
        if x == 0.0:
            if high <= low:
                return low
            x = high
        else:
            if carries:
                low = x
            else:
                high = x
            if high - low <= CLOSE / 8 * high or high <= 1e-15:
                return low
            x = (low + high) / 2
        within_s = longest_cycle(server, n, server.entry_s[first], x)
        y, carries = min(most, x / n_pipelines * within_s), False


@bare_inner_kernel
def split_rate(server, tables, cuts, low):
    """Return the largest rate of one split, or `low` if that is larger."""
    # as typed numbers: numba compiles callees for literal ones, too
    n_stages, first, least = np.int64(0), np.int64(-1), 2**62
    for k in range(len(server.min_blocks)):
        if cuts[k] < cuts[k + 1]:
            n_stages += 1
            first = k if first < 0 else first
            least = min(least, tables.n_holders[k, server.content[cuts[k], cuts[k + 1]]])
    n = under_way(server, n_stages)
    best = low
    if n_stages == 1:
        least, best = 0, max(low, whole_rate(server, first))
    for n_pipelines in range(1, least + 1):
        room = np.inf
        for k in range(len(server.min_blocks)):
            if cuts[k] < cuts[k + 1]:
                content = server.content[cuts[k], cuts[k + 1]]
                room = min(room, tables.rooms[k, content, n_pipelines - 1])
        most = min(limit_per_cycle(server, n), room / held_cycles(server, n))
        best = _raise_split(server, tables, cuts, n, first, n_pipelines, most, best)
    return best


@kernel
def max_rate(server, cuts):
    """Return the largest rate that some split carries, its cuts filled in, and the trials.

    Each round tries all levels just above the best rate so far. The answer is final once no
    level has a split that carries such a rate.
    """
    tables = new_tables(server)
    n_tiers = len(server.min_blocks)
    found = np.zeros(n_tiers + 1, np.int64)
    ranges = np.zeros((64, 2), np.int64)  # each half of a range has at most half of its levels
    targets = server.targets
    times = min(targets.ttft_s, targets.latency_s)
    by_entry = (times < np.inf or targets.users < np.inf) and server.entry_s.max() > 0.0
    most_stages, fewest_stages, n_free = ANY, ANY, 0
    if server.batching == PIPELINE:
        most_stages, fewest_stages = n_tiers, 2
        for k in range(n_tiers):
            if server.min_blocks[k] > 0:
                fewest_stages = max(fewest_stages, k + 1 - n_free)
            else:
                n_free += 1
    best, n_trials, raised = 0.0, 0, True
    for k in range(n_tiers):
        if set_whole(server, k, found):
            rate = whole_rate(server, k)
            if rate > max(best, LEAST):
                best = rate
                for at in range(n_tiers + 1):
                    cuts[at] = found[at]
    while raised:
        raised = False
        for n_stages in range(most_stages, fewest_stages - 1, -1):
            for first in range(0 if by_entry else -1, n_tiers if by_entry else 0):
                for n_pipelines in range(1, tables.rooms.shape[2] + 1):
                    rate, trials = _raise(
                        server, tables, ranges, n_stages, first, n_pipelines, best, cuts, found
                    )
                    n_trials += trials
                    raised = raised or rate > best
                    best = rate
        if targets.users == np.inf:
            break  # levels do not depend on each other
    return best, n_trials


@bare_inner_kernel
def _raise(server, tables, ranges, n_stages, first, n_pipelines, best, cuts, found):
    """Return the best rate after trials at all levels, and their number.

    The step above the best rate grows after a success at one level and shrinks after a failure.
    """
    n = under_way(server, n_stages)
    most, held = limit_per_cycle(server, n), held_cycles(server, n)
    rooms, n_rooms = tables.level_rooms[n_pipelines - 1], tables.n_level_rooms[n_pipelines - 1]
    if n_rooms == 0:
        return best, 0
    start = 0
    while start + 1 < n_rooms and rooms[start + 1] / held >= most:
        start += 1  # memory does not limit these
    ranges[0, 0], ranges[0, 1] = start, n_rooms - 1
    n_ranges, trials, step = 1, 0, CLOSE
    while n_ranges > 0:
        at, end = ranges[n_ranges - 1, 0], ranges[n_ranges - 1, 1]
        high, low = min(most, rooms[at] / held), min(most, rooms[end] / held)
        x = best * (1.0 + step) if best > 0.0 else LEAST
        trials += 1
        if try_levels(server, tables, n_stages, first, n_pipelines, low, high, x, found):
            rate = split_rate(server, tables, found, best)
            if at == end:
                rate, step = max(rate, x), 1e-3
            else:  # this range last, its first half first
                middle = (at + end) // 2
                ranges[n_ranges - 1, 0], ranges[n_ranges, 0] = middle + 1, at
                ranges[n_ranges, 1] = middle
                n_ranges += 1
            if rate > best:
                best = rate
                for k in range(len(cuts)):
                    cuts[k] = found[k]
        elif step > CLOSE:
            step = CLOSE
        else:
            n_ranges -= 1
    return best, trials
