"""Bounds on many requests through the stages of one partition: one machine, and prices.

**One machine.** For any speeds s > 0 a stage's nodes do no more than one machine of the sum of
their speeds that may interrupt, on which request r takes ``min over nodes (s * service)`` of
work: what a node does of r in some time, s times that time bounds from above. Of all schedules
of that machine, the one that does the shortest rest first has the least k-th end for every k.

**Prices.** A price is asked for each moment that a node of a group is in use. At any prices
>= 0, the sum over the requests of the least that each pays for its way (completion included)
minus all prices x nodes is at most the least sum of completions, for a schedule never uses more
nodes than there are. Prices are constant within ticks of one length; what a request pays is
exact for every start, and only the moment when a later stage becomes possible is rounded down.
A request's stages look at windows of ticks from their earliest starts on; later starts pay
nothing, so they too are not overrated. So a bound takes time and memory in proportion to the
requests, not to requests x duration. A window should be wider than all that its request pays,
delay and prices: what pays more goes behind it, for the width alone.
"""

import heapq
from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import Line
from hypsolve.kernels.jit import kernel

ROUND_DOWN = 1 - 1e-12  # before a time becomes a tick: not one too late
MIX = 0.5  # of what is asked for now, in the running mean along which prices move
SPEEDS_TRIED = 8
PATIENCE = 10  # steps without a better bound, before steps get shorter
SHORTER = 0.7


class Runs(NamedTuple):
    """What a machine that may interrupt does, as runs of one request each, in order."""

    begin: Any  # (2 * n_requests,)
    end: Any  # (2 * n_requests,)
    request: Any  # (2 * n_requests,)
    n: Any  # how many runs there are


@kernel
def shortest_rest_first(ready, work):
    """Let one machine that may interrupt do the shortest rest first: ends and runs."""
    n = len(ready)
    ends, begin, end = np.empty(n), np.empty(2 * n), np.empty(2 * n)
    request = np.empty(2 * n, np.int64)
    by_ready = np.argsort(ready)
    waiting = [(0.0, np.int64(0))]
    waiting.clear()
    now, came, n_runs = 0.0, 0, 0
    while came < n or len(waiting) > 0:
        if len(waiting) == 0:
            now = max(now, ready[by_ready[came]])
        while came < n and ready[by_ready[came]] <= now:
            heapq.heappush(waiting, (work[by_ready[came]], by_ready[came]))
            came += 1
        rest, r = heapq.heappop(waiting)
        until = ready[by_ready[came]] if came < n else np.inf
        begin[n_runs], request[n_runs] = now, r
        if now + rest <= until:
            now += rest
            ends[r] = now
        else:
            heapq.heappush(waiting, (rest - (until - now), r))
            now = until
        end[n_runs] = now
        n_runs += 1
    return ends, Runs(begin, end, request, n_runs)


@kernel
def delayed_by(runs, n_requests):
    """How many requests end later, of each one, if the machine loses a moment in its runs.

    The request itself, and those delayed by the one that the machine does next when it ends.
    """
    count = np.zeros(n_requests)
    for i in range(runs.n - 1, -1, -1):
        r = runs.request[i]
        if count[r] == 0:  # its last run
            count[r] = 1
            if i + 1 < runs.n and runs.begin[i + 1] == runs.end[i]:
                count[r] += count[runs.request[i + 1]]
    return count


@kernel
def machine_prices(line, ticks, work, share, k, price):
    """Fill `price` with what a moment of stage k's nodes is worth to one machine instead."""
    n_ticks = price.shape[1]
    ready = line.release - line.release.min()
    for j in range(k):
        for r in range(len(ready)):
            fastest = line.service[r, line.first[j] : line.first[j + 1]].min()
            ready[r] += fastest + line.lag[r, j]
    _, runs = shortest_rest_first(ready, work[:, k].copy())
    count = delayed_by(runs, len(ready))
    worth = np.zeros(n_ticks)
    for i in range(runs.n):
        begin, end = runs.begin[i] / ticks.step, runs.end[i] / ticks.step
        for t in range(int(begin), min(int(end) + 1, n_ticks)):
            both = min(end, t + 1.0) - max(begin, np.float64(t))
            worth[t] += max(both, 0.0) * count[runs.request[i]] * ticks.step
    price[:] = 0.0
    for g in range(line.first[k], line.first[k + 1]):
        price[g] = worth * share[g]


@kernel
def machine_work(line, work, share):
    """Fill `work` (n_requests, n_stages): seconds of each on one machine instead of the nodes.

    And `share` (n_groups,): the speed of a node of each group, the machine's being 1.

    Speeds that make the total large are looked for: a group that does more than its share of
    the work, when each request takes what costs least, is made dearer.
    """
    n_requests, n_groups = line.service.shape
    speed, load, each = np.empty(n_groups), np.empty(n_groups), np.empty(n_requests)
    for k in range(len(line.first) - 1):
        first, end = line.first[k], line.first[k + 1]
        work[:, k], share[first:end] = 0.0, 0.0
        most, power = 0.0, 1.0
        for g in range(first, end):
            mean = line.service[:, g].mean()
            speed[g] = 1.0 / mean if mean > 0 else np.inf
        if not np.isfinite(speed[first:end]).all():
            continue  # some node takes no time
        for _ in range(SPEEDS_TRIED):
            total_speed = 0.0
            for g in range(first, end):
                total_speed += speed[g] * (line.slot[g + 1] - line.slot[g])
                load[g] = 0.0
            total = 0.0
            for r in range(n_requests):
                best = first
                for g in range(first + 1, end):
                    if line.service[r, g] * speed[g] < line.service[r, best] * speed[best]:
                        best = g
                load[best] += line.service[r, best]
                each[r] = line.service[r, best] * speed[best] / total_speed
                total += each[r]
            if total > most:
                most = total
                work[:, k] = each
                share[first:end] = speed[first:end] / total_speed
            mean_load = 0.0
            for g in range(first, end):
                load[g] /= line.slot[g + 1] - line.slot[g]
                mean_load += load[g] / (end - first)
            for g in range(first, end):
                beyond = load[g] / mean_load if mean_load > 0 else 1.0
                speed[g] *= min(max(beyond, 0.25), 4.0) ** (0.5 * power)
            power *= 0.8


@kernel
def machine_bound(line, work):
    """Bounds on the sum of (completion - release) and on the last completion.

    Of every stage as one machine, and of every request alone, the larger, for each of the k-th
    completions; what is left after the stage counts as well.
    """
    n_requests, n_stages = work.shape
    fastest = np.empty((n_requests, n_stages))
    alone = line.release.copy()
    for k in range(n_stages):
        for r in range(n_requests):
            fastest[r, k] = line.service[r, line.first[k] : line.first[k + 1]].min()
            alone[r] += fastest[r, k] + line.lag[r, k]
    kth = np.sort(alone)
    idle = (alone - line.release).sum()
    late, last = 0.0, kth[-1]
    ready = line.release.copy()
    for k in range(n_stages):
        ends = np.sort(shortest_rest_first(ready, work[:, k].copy())[0])
        tail = np.sort(np.maximum(alone - ready - fastest[:, k], 0.0))
        late = max(late, (ends + tail - np.sort(alone)).sum())
        last = max(last, (ends + tail[::-1]).max())
        kth = np.maximum(kth, ends + tail[0])
        ready += fastest[:, k] + line.lag[:, k]
    late = max(late, (kth - np.sort(alone)).sum())
    return idle + late, last


class Ticks(NamedTuple):
    """A line's times in ticks of `step` seconds, from the first release on."""

    step: Any
    width: Any  # (n_requests,), of the windows of its stages
    begin: Any  # (n_requests, n_stages), where it begins
    whole: Any  # (n_requests, n_groups), whole ticks of the service
    part: Any  # the rest of it, in 0..1
    ahead: Any  # (n_requests, n_groups), ticks of service and lag, rounded down
    lag: Any  # (n_requests, n_stages), rounded down


@kernel
def _ways(line, ticks, r, spent, cost, best):
    """Fill what request r pays at least, from the start of a stage to its completion.

    ``cost[g, t]`` is for a start on group g in tick t of its stage's window, ``best[k, t]``
    for a start of stage k then or later; the last entry stands for all that is behind the
    window. ``spent[g, t]``: price of group g before tick t.
    """
    width = ticks.width[r]
    n_stages = len(line.first) - 1
    for k in range(n_stages - 1, -1, -1):
        origin = ticks.begin[r, k]
        least = best[k]
        least[:] = np.inf
        for g in range(line.first[k], line.first[k + 1]):
            service = line.service[r, g]
            part, whole = ticks.part[r, g], ticks.whole[r, g]
            left = spent[g, origin : origin + width + 1]
            right = spent[g, origin + whole : origin + whole + width + 2]
            row = cost[g]
            if k == n_stages - 1:
                for t in range(width):
                    # starts at the tick's begin, and where the end meets the end of a tick
                    first = right[t] + part * (right[t + 1] - right[t]) - left[t]
                    second = right[t + 1] - left[t] - (1 - part) * (left[t + 1] - left[t])
                    second += (1 - part) * ticks.step
                    row[t] = min(first, second) + (origin + t) * ticks.step + service
                row[width] = (origin + width) * ticks.step + service
            else:
                onward = best[k + 1]
                shift = origin - ticks.begin[r, k + 1]
                near = shift + ticks.ahead[r, g]
                far = shift + whole + 1 + ticks.lag[r, k]
                for t in range(width):
                    first = right[t] + part * (right[t + 1] - right[t]) - left[t]
                    second = right[t + 1] - left[t] - (1 - part) * (left[t + 1] - left[t])
                    third = right[t + 1] + part * (right[t + 2] - right[t + 1]) - left[t + 1]
                    sooner = onward[min(max(t + near, 0), width)]
                    later = onward[min(max(t + far, 0), width)]
                    row[t] = min(min(first, second) + sooner, third + later)
                row[width] = onward[min(max(width + near, 0), width)]
            for t in range(width + 1):
                least[t] = min(least[t], row[t])
        for t in range(width - 1, -1, -1):
            least[t] = min(least[t], least[t + 1])


@kernel
def _walk(line, ticks, r, spent, cost, best, use):
    """Add to `use` the nodes' time of the cheapest way of request r."""
    t, width = 0, ticks.width[r]
    for k in range(len(line.first) - 1):
        while t < width and best[k, t + 1] == best[k, t]:
            t += 1
        g = line.first[k]
        for other in range(line.first[k] + 1, line.first[k + 1]):
            if cost[other, t] < cost[g, t]:
                g = other
        at = ticks.begin[r, k] + t
        whole, part = ticks.whole[r, g], ticks.part[r, g]
        end = at + whole
        first = spent[g, end] + part * (spent[g, end + 1] - spent[g, end]) - spent[g, at]
        second = spent[g, end + 1] - spent[g, at]
        second += (1 - part) * (ticks.step - (spent[g, at + 1] - spent[g, at]))
        if second < first:  # starts within the tick, and ends with one
            use[g, at] += part
            for i in range(at + 1, end + 1):
                use[g, i] += 1.0
        else:
            for i in range(at, end):
                use[g, i] += 1.0
            use[g, end] += part
        if k + 1 < len(line.first) - 1:
            t = at + ticks.ahead[r, g] - ticks.begin[r, k + 1]
            t = min(max(t, 0), width)


@kernel
def _step(climb, use, size, gap, is_first):
    """Move the prices along a running mean of what is asked for beyond what there is."""
    now, direction = climb.now, climb.direction
    norm = 0.0
    for g in range(now.shape[0]):
        for t in range(now.shape[1]):
            beyond = use[g, t] - size[g]
            if not is_first:
                beyond = MIX * beyond + (1 - MIX) * direction[g, t]
            direction[g, t] = beyond
            if now[g, t] > 0 or beyond > 0:
                norm += beyond * beyond
    if norm <= 1e-6:  # what is asked for fits; and steps so long would drown in rounding
        return False
    for g in range(now.shape[0]):
        for t in range(now.shape[1]):
            now[g, t] = max(0.0, now[g, t] + gap / norm * direction[g, t])
    return True


class Climb(NamedTuple):
    """Where `raise_bound` is on its way; it may be called again and goes on."""

    price: Any  # (n_groups, n_ticks), the best; in seconds per tick
    now: Any  # the same, to be tried next
    direction: Any  # the same, in which prices move
    paid: Any  # (n_requests,), from a request's release on, when last evaluated
    way: Any  # (4,): best bound, length of a step, steps in vain, steps in all


def new_climb(line, price, length):
    """Set out from `price` with steps of `length`, a share of the way to the upper bound."""
    way, paid = np.array([-np.inf, length, 0.0, 0.0]), np.zeros(len(line.release))
    return Climb(price, price.copy(), np.zeros(price.shape), paid, way)


@kernel
def raise_bound(line, ticks, climb, upper, n_steps, shortest):
    """Raise the bound on the sum of (completion - release) by better prices, in place.

    Parameters
    ----------
    climb : Climb
        Of at least so many ticks that no window ends behind them.
    upper : float
        Sum that is possible: the aim of the steps. A bound that reaches it ends them.
    n_steps : int
        Most evaluations now.
    shortest : float
        Length of a step, as a share of the way to `upper`, at which it ends.

    Returns
    -------
    bound : float
        The best so far, which is that of ``climb.price``.
    is_done : bool
        Whether no more steps are to be had.
    """
    n_requests, n_groups = line.service.shape
    n_ticks = climb.now.shape[1]
    spent = np.empty((n_groups, n_ticks + 1))
    widest = ticks.width.max()
    cost = np.empty((n_groups, widest + 1))
    best = np.empty((len(line.first) - 1, widest + 1))
    use = np.empty((n_groups, n_ticks))
    size = np.empty(n_groups)
    for g in range(n_groups):
        size[g] = line.slot[g + 1] - line.slot[g]
    origin = line.release.min()
    highest, length, waited, n_taken = climb.way
    is_done = length < shortest
    while n_steps > 0 and not is_done:
        n_steps -= 1
        bound = 0.0
        for g in range(n_groups):
            spent[g, 0] = 0.0
            for t in range(n_ticks):
                spent[g, t + 1] = spent[g, t] + climb.now[g, t]
            bound -= spent[g, n_ticks] * size[g]
        use[:] = 0.0
        for r in range(n_requests):
            _ways(line, ticks, r, spent, cost, best)
            climb.paid[r] = best[0, 0] - (line.release[r] - origin)
            bound += climb.paid[r]
            _walk(line, ticks, r, spent, cost, best, use)
        is_first = n_taken == 0
        n_taken += 1
        is_much = is_first or bound > highest + 1e-3 * abs(upper - highest)
        waited = 0.0 if is_much else waited + 1
        if bound > highest:
            highest = bound
            climb.price[:] = climb.now
        if waited >= PATIENCE:
            length *= SHORTER
            waited = 0.0
            climb.now[:] = climb.price  # with what was asked for along the way
        gap = length * max(upper - bound, 1e-6 * abs(upper))
        is_done = highest >= upper or length < shortest
        is_done = is_done or not _step(climb, use, size, gap, is_first)
    climb.way[0], climb.way[1], climb.way[2], climb.way[3] = highest, length, waited, n_taken
    return highest, is_done


def warm_up() -> None:
    """Compile every kernel a method calls, on two requests and one stage."""
    ends = np.array([0, 1])
    one, zero = np.ones((2, 1)), np.zeros((2, 1), np.int64)
    line = Line(one, np.zeros((2, 1)), np.zeros(2), ends, ends)
    work, share, price = np.empty((2, 1)), np.empty(1), np.zeros((1, 8))
    shortest_rest_first(np.zeros(2), np.ones(2))
    machine_work(line, work, share)
    machine_bound(line, work)
    ticks = Ticks(0.5, zero[:, 0] + 2, zero, zero + 2, np.zeros((2, 1)), zero + 2, zero)
    machine_prices(line, ticks, work, share, 0, price)
    raise_bound(line, ticks, new_climb(line, price, 0.3), 3.0, 2, 0.01)
