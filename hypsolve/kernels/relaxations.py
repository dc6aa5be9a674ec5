"""Lower bounds on a flow shop: preemptive single-machine relaxation and Lagrangian bound.

**Single machine.** Give each node of a stage a speed s > 0, and let request r have
``min over nodes (s * service)`` units of work. A node that serves r for t seconds completes at
most s * t units of it. So a preemptive machine whose speed is the sum of the nodes' speeds does
at least as much as they do together. On this machine, shortest remaining processing time (SRPT)
minimises the k-th completion time for every k.

**Lagrangian bound.** A multiplier >= 0 relaxes, for each group and each tick of time, the rule
that no more nodes are busy than the group has. The Lagrangian bound is the sum over the
requests of their cheapest path (completion time plus the multipliers along the busy time) minus
the sum of multipliers x nodes. By weak duality it is at most the minimum sum of completion
times.

All ticks have the same length. The cost of a path is exact for every start time; only the
earliest start of the following stage is rounded down to a tick. A stage of a request is
evaluated in a window of ticks, from its earliest start on. A start after the end of the window
is charged no multipliers for that stage, so its cost is not overestimated. An evaluation thus
takes time and memory in proportion to the requests, not to requests x duration. A window should
be wider than the delay of its request plus the multipliers charged to it. Otherwise it is
cheaper for the request to start after its window, which costs at most the width of the window.
"""

import heapq
from typing import Any, NamedTuple

import numpy as np

from hypsolve.kernels.flow_shop import FlowShop
from hypsolve.kernels.jit import kernel

N_SPEED_ROUNDS = 8  # in `aggregate_work`


class Runs(NamedTuple):
    """Runs of a preemptive machine, one request each.

    `srpt` appends a run whenever the machine changes its request or a request is released; none
    is removed. Runs are in order of time and do not overlap, and a gap between two is idle
    time. There are at most two per request, for each run ends at a completion or a release.
    """

    begin: Any  # (2 * n_requests,)
    end: Any  # (2 * n_requests,)
    request: Any  # (2 * n_requests,)
    n: Any  # number of runs; entries behind are undefined


@kernel
def srpt(ready, work):
    """Preemptive single-machine SRPT schedule: completion times and the runs."""
    n = len(ready)
    completion, begin, end = np.empty(n), np.empty(2 * n), np.empty(2 * n)
    request = np.empty(2 * n, np.int64)
    by_ready = np.argsort(ready)
    # `heap` holds (remaining work, request) of the requests that are released and incomplete.
    # A request enters at its release; it is popped to run, and pushed again if it is preempted.
    heap = [(0.0, np.int64(0))]  # numba infers the type from this entry
    heap.clear()
    now, n_released, n_runs = 0.0, 0, 0
    while n_released < n or len(heap) > 0:
        if len(heap) == 0:
            now = max(now, ready[by_ready[n_released]])
        while n_released < n and ready[by_ready[n_released]] <= now:
            heapq.heappush(heap, (work[by_ready[n_released]], by_ready[n_released]))
            n_released += 1
        remaining, r = heapq.heappop(heap)
        next_release = ready[by_ready[n_released]] if n_released < n else np.inf
        begin[n_runs], request[n_runs] = now, r
        if now + remaining <= next_release:
            now += remaining
            completion[r] = now
        else:
            heapq.heappush(heap, (remaining - (next_release - now), r))
            now = next_release
        end[n_runs] = now
        n_runs += 1
    return completion, Runs(begin, end, request, n_runs)


@kernel
def count_delayed(runs, n_requests):
    """Count the completions that are delayed if a request's runs take a moment longer.

    These are its own completion, and those delayed by the request that runs directly behind it.
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
def single_machine_multipliers(shop, grid, work, share, k, multiplier):
    """Fill `multiplier` with the marginal value of stage k's time on one SRPT machine."""
    n_ticks = multiplier.shape[1]
    ready = shop.release - shop.release.min()
    for j in range(k):
        for r in range(len(ready)):
            fastest = shop.service[r, shop.first[j] : shop.first[j + 1]].min()
            ready[r] += fastest + shop.travel[r, j]
    _, runs = srpt(ready, work[:, k].copy())
    count = count_delayed(runs, len(ready))
    value = np.zeros(n_ticks)
    for i in range(runs.n):
        begin, end = runs.begin[i] / grid.tick, runs.end[i] / grid.tick
        for t in range(int(begin), min(int(end) + 1, n_ticks)):
            overlap = min(end, t + 1.0) - max(begin, np.float64(t))
            value[t] += max(overlap, 0.0) * count[runs.request[i]] * grid.tick
    multiplier[:] = 0.0
    for g in range(shop.first[k], shop.first[k + 1]):
        multiplier[g] = value * share[g]


@kernel
def aggregate_work(shop, work, share):
    """Replace the nodes of every stage by one machine; fill the work of each request on it.

    Speeds are adapted so that the total work becomes large. Each round assigns every request to
    its cheapest group, and raises the speed of groups with more than the mean load.

    Parameters
    ----------
    shop : FlowShop
    work : ndarray, shape (n_requests, n_stages)
        Filled with seconds on the stage's machine; 0 if some group of the stage takes no time.
    share : ndarray, shape (n_groups,)
        Filled with the speed of a node of the group; the machine of its stage has speed 1.
    """
    n_requests, n_groups = shop.service.shape
    speed, load, each = np.empty(n_groups), np.empty(n_groups), np.empty(n_requests)
    for k in range(len(shop.first) - 1):
        first, end = shop.first[k], shop.first[k + 1]
        work[:, k], share[first:end] = 0.0, 0.0
        max_total, power = 0.0, 1.0
        for g in range(first, end):
            mean = shop.service[:, g].mean()
            speed[g] = 1.0 / mean if mean > 0 else np.inf
        if not np.isfinite(speed[first:end]).all():
            continue
        for _ in range(N_SPEED_ROUNDS):
            total_speed = 0.0
            for g in range(first, end):
                total_speed += speed[g] * (shop.slot[g + 1] - shop.slot[g])
                load[g] = 0.0
            total = 0.0
            for r in range(n_requests):
                best = first
                for g in range(first + 1, end):
                    if shop.service[r, g] * speed[g] < shop.service[r, best] * speed[best]:
                        best = g
                load[best] += shop.service[r, best]
                each[r] = shop.service[r, best] * speed[best] / total_speed
                total += each[r]
            if total > max_total:
                max_total = total
                work[:, k] = each
                share[first:end] = speed[first:end] / total_speed
            mean_load = 0.0
            for g in range(first, end):
                load[g] /= shop.slot[g + 1] - shop.slot[g]
                mean_load += load[g] / (end - first)
            for g in range(first, end):
                ratio = load[g] / mean_load if mean_load > 0 else 1.0
                speed[g] *= min(max(ratio, 0.25), 4.0) ** (0.5 * power)
            power *= 0.8


@kernel
def single_machine_bound(shop, work):
    """Bound the sum of (completion - release) and the last completion from below.

    Every k-th completion time is at least the k-th completion time without delay, and at
    least the k-th SRPT completion time of each stage's machine plus the remaining time after
    it.

    Parameters
    ----------
    shop : FlowShop
    work : ndarray, shape (n_requests, n_stages)
        See `aggregate_work`.

    Returns
    -------
    latency_sum, makespan : float
    """
    n_requests, n_stages = work.shape
    fastest = np.empty((n_requests, n_stages))
    no_delay = shop.release.copy()
    for k in range(n_stages):
        for r in range(n_requests):
            fastest[r, k] = shop.service[r, shop.first[k] : shop.first[k + 1]].min()
            no_delay[r] += fastest[r, k] + shop.travel[r, k]
    kth = np.sort(no_delay)
    latency_sum = (no_delay - shop.release).sum()
    delay_sum, last = 0.0, kth[-1]
    ready = shop.release.copy()
    for k in range(n_stages):
        ends = np.sort(srpt(ready, work[:, k].copy())[0])
        tail = np.sort(np.maximum(no_delay - ready - fastest[:, k], 0.0))
        delay_sum = max(delay_sum, (ends + tail - np.sort(no_delay)).sum())
        last = max(last, (ends + tail[::-1]).max())
        kth = np.maximum(kth, ends + tail[0])
        ready += fastest[:, k] + shop.travel[:, k]
    delay_sum = max(delay_sum, (kth - np.sort(no_delay)).sum())
    return latency_sum + delay_sum, last


class TimeGrid(NamedTuple):
    """A flow shop's times in ticks, counted from the first release on.

    Only `width` changes: the caller recomputes the windows between two calls of
    `ascend_in_windows`. No window ends behind the last tick of the multipliers.
    """

    tick: Any  # seconds
    width: Any  # (n_requests,), ticks of the windows of a request's stages
    begin: Any  # (n_requests, n_stages), first tick of the window: the earliest start
    whole: Any  # (n_requests, n_groups), whole ticks of the service
    part: Any  # (n_requests, n_groups), the rest of the service, in 0..1
    ahead: Any  # (n_requests, n_groups), service and travel together, rounded down
    travel: Any  # (n_requests, n_stages), rounded down


@kernel
def _fill_path_costs(shop, grid, r, spent, cost, best):
    """Fill the cheapest costs of request r, from the start of a stage to its completion.

    Parameters
    ----------
    spent : ndarray, shape (n_groups, n_ticks + 1)
        Sum of a group's multipliers before each tick.
    cost : ndarray, shape (n_groups, >= width + 1)
        ``cost[g, t]`` is filled for a start on group g in tick t of the stage's window.
    best : ndarray, shape (n_stages, >= width + 1)
        ``best[k, t]`` is filled for a start of stage k in tick t of its window or later. The
        last entry stands for every start behind the window.
    """
    width = grid.width[r]
    n_stages = len(shop.first) - 1
    for k in range(n_stages - 1, -1, -1):
        origin = grid.begin[r, k]
        cheapest = best[k]
        cheapest[:] = np.inf
        for g in range(shop.first[k], shop.first[k + 1]):
            service = shop.service[r, g]
            part, whole = grid.part[r, g], grid.whole[r, g]
            left = spent[g, origin : origin + width + 1]
            right = spent[g, origin + whole : origin + whole + width + 2]
            row = cost[g]
            # Within a tick the cost is linear in the start, except where the end of the service
            # meets a tick's end. So its minimum lies at one of at most three starts.
            if k == n_stages - 1:
                for t in range(width):
                    first = right[t] + part * (right[t + 1] - right[t]) - left[t]
                    second = right[t + 1] - left[t] - (1 - part) * (left[t + 1] - left[t])
                    second += (1 - part) * grid.tick
                    row[t] = min(first, second) + (origin + t) * grid.tick + service
                row[width] = (origin + width) * grid.tick + service
            else:
                onward = best[k + 1]
                shift = origin - grid.begin[r, k + 1]
                near = shift + grid.ahead[r, g]
                far = shift + whole + 1 + grid.travel[r, k]
                for t in range(width):
                    first = right[t] + part * (right[t + 1] - right[t]) - left[t]
                    second = right[t + 1] - left[t] - (1 - part) * (left[t + 1] - left[t])
                    third = right[t + 1] + part * (right[t + 2] - right[t + 1]) - left[t + 1]
                    sooner = onward[min(max(t + near, 0), width)]
                    later = onward[min(max(t + far, 0), width)]
                    row[t] = min(min(first, second) + sooner, third + later)
                row[width] = onward[min(max(width + near, 0), width)]
            for t in range(width + 1):
                cheapest[t] = min(cheapest[t], row[t])
        for t in range(width - 1, -1, -1):
            cheapest[t] = min(cheapest[t], cheapest[t + 1])


@kernel
def _add_cheapest_path(shop, grid, r, spent, cost, best, use):
    """Add the busy time of request r's cheapest path, in ticks, to `use` (as multipliers)."""
    t, width = 0, grid.width[r]
    for k in range(len(shop.first) - 1):
        while t < width and best[k, t + 1] == best[k, t]:
            t += 1
        g = shop.first[k]
        for other in range(shop.first[k] + 1, shop.first[k + 1]):
            if cost[other, t] < cost[g, t]:
                g = other
        at = grid.begin[r, k] + t
        whole, part = grid.whole[r, g], grid.part[r, g]
        end = at + whole
        first = spent[g, end] + part * (spent[g, end + 1] - spent[g, end]) - spent[g, at]
        second = spent[g, end + 1] - spent[g, at]
        second += (1 - part) * (grid.tick - (spent[g, at + 1] - spent[g, at]))
        if second < first:  # the service starts within a tick and ends with one
            use[g, at] += part
            for i in range(at + 1, end + 1):
                use[g, i] += 1.0
        else:
            for i in range(at, end):
                use[g, i] += 1.0
            use[g, end] += part
        if k + 1 < len(shop.first) - 1:
            t = at + grid.ahead[r, g] - grid.begin[r, k + 1]
            t = min(max(t, 0), width)


class AscentState(NamedTuple):
    """Multipliers on their way up; `ascend_in_windows` goes on where the last call ended.

    All entries are written by `ascend_in_windows` alone. `best` holds the multipliers of the
    best bound so far, and `trial` those that are evaluated next; neither is ever negative.
    """

    best: Any  # (n_groups, n_ticks), seconds per tick
    trial: Any  # (n_groups, n_ticks), seconds per tick
    direction: Any  # (n_groups, n_ticks), running mean of the subgradients
    path_cost: Any  # (n_requests,), cheapest path from the release on, at the last evaluation
    progress: Any  # (4,): best bound, step length, evaluations in vain, all evaluations


class StepRule(NamedTuple):
    """Lengths and directions of subgradient steps.

    A step has Polyak's length ``length * (upper - bound) / |direction|**2``.
    """

    weight: Any  # of the latest subgradient in the direction, in 0..1
    patience: Any  # evaluations in vain before steps get shorter
    shrink: Any  # factor of the length then
    min_length: Any  # the ascent ends at shorter steps


def new_ascent(shop, multiplier, length):
    """Start an ascent from `multiplier`, which is changed in place, with steps of `length`."""
    progress = np.array([-np.inf, length, 0.0, 0.0])
    path_cost = np.zeros(len(shop.release))
    return AscentState(
        multiplier, multiplier.copy(), np.zeros(multiplier.shape), path_cost, progress
    )


@kernel
def _take_step(state, use, size, gap, weight, is_first):
    """Move the trial multipliers along the direction; return False if no step is left."""
    trial, direction = state.trial, state.direction
    norm = 0.0
    for g in range(trial.shape[0]):
        for t in range(trial.shape[1]):
            subgradient = use[g, t] - size[g]
            if not is_first:
                subgradient = weight * subgradient + (1 - weight) * direction[g, t]
            direction[g, t] = subgradient
            if trial[g, t] > 0 or subgradient > 0:
                norm += subgradient * subgradient
    if norm <= 1e-6:  # the paths fit the nodes, and a step would be so long that it rounds
        return False
    for g in range(trial.shape[0]):
        for t in range(trial.shape[1]):
            trial[g, t] = max(0.0, trial[g, t] + gap / norm * direction[g, t])
    return True


@kernel
def ascend_in_windows(shop, grid, state, upper, n_evaluations, rule):
    """Raise the Lagrangian bound on the sum of (completion - release), in place.

    Parameters
    ----------
    shop : FlowShop
    grid : TimeGrid
    state : AscentState
        Its multipliers have enough ticks for every window.
    upper : float
        A sum that is possible. Steps aim at it, and a bound that reaches it ends the ascent.
    n_evaluations : int
        Maximum number of evaluations in this call.
    rule : StepRule

    Returns
    -------
    bound : float
        The best so far, at ``state.best``.
    is_done : bool
        True if the ascent has ended, False if another call may raise the bound further.
    """
    n_requests, n_groups = shop.service.shape
    n_ticks = state.trial.shape[1]
    spent = np.empty((n_groups, n_ticks + 1))
    max_width = grid.width.max()
    cost = np.empty((n_groups, max_width + 1))
    best = np.empty((len(shop.first) - 1, max_width + 1))
    use = np.empty((n_groups, n_ticks))
    size = np.empty(n_groups)
    for g in range(n_groups):
        size[g] = shop.slot[g + 1] - shop.slot[g]
    origin = shop.release.min()
    best_bound, length, n_in_vain, n_evaluated = state.progress
    is_done = length < rule.min_length
    while n_evaluations > 0 and not is_done:
        n_evaluations -= 1
        bound = 0.0
        for g in range(n_groups):
            spent[g, 0] = 0.0
            for t in range(n_ticks):
                spent[g, t + 1] = spent[g, t] + state.trial[g, t]
            bound -= spent[g, n_ticks] * size[g]
        use[:] = 0.0
        for r in range(n_requests):
            _fill_path_costs(shop, grid, r, spent, cost, best)
            state.path_cost[r] = best[0, 0] - (shop.release[r] - origin)
            bound += state.path_cost[r]
            _add_cheapest_path(shop, grid, r, spent, cost, best, use)
        is_first = n_evaluated == 0
        n_evaluated += 1
        is_progress = is_first or bound > best_bound + 1e-3 * abs(upper - best_bound)
        n_in_vain = 0.0 if is_progress else n_in_vain + 1
        if bound > best_bound:
            best_bound = bound
            state.best[:] = state.trial
        if n_in_vain >= rule.patience:
            length *= rule.shrink
            n_in_vain = 0.0
            state.trial[:] = state.best  # the direction keeps what was learned since
        gap = length * max(upper - bound, 1e-6 * abs(upper))
        is_done = best_bound >= upper or length < rule.min_length
        is_done = is_done or not _take_step(state, use, size, gap, rule.weight, is_first)
    state.progress[0], state.progress[1] = best_bound, length
    state.progress[2], state.progress[3] = n_in_vain, n_evaluated
    return best_bound, is_done


def warm_up() -> None:
    """Compile every kernel that a method calls, on two requests and one stage."""
    ends = np.array([0, 1])
    one, zero = np.ones((2, 1)), np.zeros((2, 1), np.int64)
    shop = FlowShop(one, np.zeros((2, 1)), np.zeros(2), ends, ends)
    work, share, multiplier = np.empty((2, 1)), np.empty(1), np.zeros((1, 8))
    srpt(np.zeros(2), np.ones(2))
    aggregate_work(shop, work, share)
    single_machine_bound(shop, work)
    grid = TimeGrid(0.5, zero[:, 0] + 2, zero, zero + 2, np.zeros((2, 1)), zero + 2, zero)
    single_machine_multipliers(shop, grid, work, share, 0, multiplier)
    rule = StepRule(0.5, 10, 0.7, 0.01)
    ascend_in_windows(shop, grid, new_ascent(shop, multiplier, 0.3), 3.0, 2, rule)
