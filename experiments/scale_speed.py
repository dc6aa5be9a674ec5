"""Tasks of experiment `speed` on large instances; compared times are taken in turn."""

import statistics
import tracemalloc
from functools import partial
from typing import Any

import numpy as np

from experiments.speed_rows import row, timed_s


def _long_instance(n_blocks: int, n_tiers: int, seed: int = 0) -> Any:
    """Draw a long chain of unlike blocks on tiers of two nodes, with 64 kinds of cut.

    A node has the memory of 1.1 to 2 fair shares. Links take up to a fifth of a mean stage.
    """
    from hypsolve import Instance

    n_classes = 8
    rng = np.random.default_rng([n_blocks, n_tiers, seed])
    block_s = rng.lognormal(0, 0.5, (1, n_classes, n_blocks)) * 1e-3
    block_s *= rng.uniform(0.5, 2, n_classes)[:, None]
    block_bytes = rng.integers(1, 5, n_blocks)
    fair_share = block_bytes.sum() / n_tiers
    stage_s = block_s.mean() * n_blocks / n_tiers / 2
    transfer_s = rng.uniform(0, 0.2 * stage_s, (1, n_tiers - 1, 64))
    return Instance.from_kinds(
        kind_s=block_s,
        block_kind=np.arange(n_blocks),
        block_bytes=block_bytes,
        transfer_kind_s=transfer_s,
        occupancy_kind_s=transfer_s,
        cut_kind=rng.integers(0, 64, n_blocks + 1),
        tiers=[
            [
                (int(rng.integers(n_classes)), float(fair_share * rng.uniform(1.1, 2)))
                for _ in range(2)
            ]
            for _ in range(n_tiers)
        ],
    )


def long_chain(size: str) -> list[dict[str, Any]]:
    """Time HypSplit-DP with its prefix sums, in turn with `numpy.cumsum` of its costs.

    The prefix sums, of twice the precision, take two thirds of the time, the search a seventh.
    """
    from hypsolve import solve
    from hypsolve.solvers.partition.hypsplit import hypsplit_dp

    n_blocks, n_tiers = 1_000_000, 100
    repeats = {"quick": 3, "default": 9, "full": 31}[size]
    solve(_long_instance(1000, 4), "hypsplit_dp")  # compiles
    tracemalloc.start()  # numpy's arrays; the kernel's own take a few bytes a tier
    instance = _long_instance(n_blocks, n_tiers)
    input_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    hypsplit_dp(instance, time_limit_s=60, seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    cost_s = np.ascontiguousarray(instance.reference_s)
    sums_s, own_s, solve_s = [], [], []
    for _ in range(repeats):
        sums_s.append(timed_s(lambda: np.cumsum(cost_s, axis=1)))
        own_s.append(timed_s(lambda: hypsplit_dp(instance, time_limit_s=60, seed=0)))
        solve_s.append(timed_s(lambda: solve(instance, "hypsplit_dp")))
    base_s = statistics.median(sums_s)
    what = f"{n_blocks:,} blocks, {n_tiers} tiers, 8 classes"
    return [
        row(f"HypSplit-DP / numpy.cumsum of the costs, {what}", [t / base_s for t in own_s],
            "times", 3),
        row(f"solve with hypsplit_dp / numpy.cumsum, {what}", [t / base_s for t in solve_s],
            "times"),
        row(f"HypSplit-DP: peak memory / input, {what}", [peak_bytes / input_bytes],
            "times", 2.5),
    ]  # fmt: skip


def growth(size: str) -> list[dict[str, Any]]:
    """Fit the exponent of HypSplit-DP's time in the number of blocks, at fixed tiers.

    The call dominates on short chains; the prefix sums, which are linear, on long ones.
    """
    from hypsolve.solvers.partition.hypsplit import hypsplit_dp

    sizes = (1000, 10_000, 100_000, 1_000_000)
    repeats = {"quick": 3, "default": 9, "full": 31}[size]
    rows = []
    for n_tiers in (8, 100):
        instances = [_long_instance(n_blocks, n_tiers) for n_blocks in sizes]
        hypsplit_dp(instances[0], time_limit_s=60, seed=0)
        exponents, steepest = [], []
        for _ in range(repeats):
            times_s = [
                statistics.median(
                    timed_s(lambda one=one: hypsplit_dp(one, time_limit_s=60, seed=0))
                    for _ in range(1 if one.n_blocks == sizes[-1] else 5)
                )
                for one in instances
            ]
            exponents.append(float(np.polyfit(np.log(sizes), np.log(times_s), 1)[0]))
            steepest.append(float((np.diff(np.log(times_s)) / np.diff(np.log(sizes))).max()))
        what = f"HypSplit-DP: time grows as blocks to the power, 1,000 to 1,000,000, {n_tiers}"
        rows.append(row(f"{what} tiers", exponents, "", 1.1))
        rows.append(row(f"{what} tiers: the steepest decade", steepest, ""))
    return rows


def decisions(size: str) -> list[dict[str, Any]]:
    """Time the kernel of HypSched-RT in tiers of six classes, with live estimates.

    Two jobs a node are in flight. Service times vary by a tenth, and one node in twenty is
    throttled to a third, so the estimates change all the time. The first half of the requests
    warms up and is not counted. The pass over the groups (about 50 in a tier of 1,000 nodes,
    100 in one of 100,000) dominates in small tiers, memory access in large ones.
    """
    repeats = {"quick": 1, "default": 3, "full": 9}[size]
    targets_us = {8: 0.2, 1000: 0.5, 100_000: 1.0}
    times_us: dict[int, list[tuple[float, float]]] = {n_nodes: [] for n_nodes in targets_us}
    for seed in range(repeats):
        for n_nodes, times in times_us.items():
            times.append(_decision_us(n_nodes, seed))
    rows = []
    for n_nodes, times in times_us.items():
        what = f"HypSched-RT, {n_nodes:,} nodes of 6 classes, live estimates"
        rows.append(
            row(f"{what}: a decision", [t[0] for t in times], "us", targets_us[n_nodes])
        )
        rows.append(row(f"{what}: and its completion", [sum(t) for t in times], "us"))
    growth = [large[0] / small[0] for small, large in
              zip(times_us[1000], times_us[100_000], strict=True)]  # fmt: skip
    what = "HypSched-RT, a decision: 100,000 / 1,000 nodes"
    return [*rows, row(what, growth, "times")]


def _decision_us(n_nodes: int, seed: int) -> tuple[float, float]:
    """Microseconds of a decision and of a completion, in calls of 256 each."""
    from hypsolve import BatchDispatcher
    from hypsolve.dispatch.dispatcher import TICKS_PER_S
    from hypsolve.kernels import batch_dispatch

    rng = np.random.default_rng([n_nodes, seed])
    n_calls, n_each = max(2000, 3 * n_nodes // 128), 256
    node_class = rng.integers(0, 6, n_nodes)
    node_class[:6] = range(6)
    pace = np.where(rng.random(n_nodes) < 0.05, 3.0, 1.0)
    tier = BatchDispatcher(node_class)
    in_flight: list[tuple[Any, Any]] = []
    dispatch_s, complete_s = [], []
    for _ in range(n_calls):
        expected_s = rng.lognormal(0, 0.5, (n_each, 1)) * [1, 1.5, 2, 3, 4, 6]
        ticks = np.rint(expected_s * TICKS_PER_S).astype(np.int64)
        node = np.empty(n_each, np.int64)
        dispatch_s.append(timed_s(partial(batch_dispatch.dispatch, ticks, *tier._state, node)))
        node.setflags(write=False)
        in_flight.append((node, ticks[np.arange(n_each), node_class[node]]))
        if len(in_flight) > 2 * n_nodes // n_each:
            node, own = in_flight.pop(0)
            busy = own * pace[node] * rng.normal(1, 0.1, n_each).clip(0.5)
            report = partial(
                batch_dispatch.complete, node, own, busy, *tier._state, tier._factor, 0.2
            )
            complete_s.append(timed_s(report))
    half = n_calls // 2
    per_job = 1e6 / n_each
    return (
        statistics.mean(dispatch_s[half:]) * per_job,
        statistics.mean(complete_s[-half:]) * per_job,
    )


def _random_networks(n_networks: int) -> dict[str, Any]:
    """Draw networks of 3 to 5 tiers of 1 to 4 nodes, in six classes, for 42 blocks."""
    rng = np.random.default_rng(n_networks)
    layers = np.ones(40)
    node_class = rng.integers(0, 6, (n_networks, 5, 4))
    node_class[np.arange(4) >= rng.integers(1, 5, (n_networks, 5))[..., None]] = -1
    node_class[np.arange(5) >= rng.integers(3, 6, n_networks)[:, None]] = -1
    transfer_s = np.repeat(rng.uniform(0, 5e-3, (n_networks, 4, 1)), 43, axis=2)
    transfer_s[:, :, -1] = 0
    paces = np.array([1, 1.5, 2, 4, 6, 8])
    return {
        "block_s": np.concatenate(([0.3], layers, [1.5])) * 1e-3 * paces[:, None],
        "block_bytes": np.concatenate(([1.0], 2 * layers, [1.0])),
        "node_class": node_class,
        "node_bytes": rng.integers(20, 90, (n_networks, 5, 4)),
        "transfer_s": transfer_s,
    }


def batch(size: str) -> list[dict[str, Any]]:
    """Time `solve_many` from its checks to its answers; the target is 200,000 plans a second.

    Stage times take most of it, about 120 a plan in 5 to 6 trials; the checks take a tenth.
    """
    from hypsolve import solve_many

    repeats = {"quick": 5, "default": 21, "full": 101}[size]
    n_networks = 10_000
    networks = _random_networks(n_networks)
    solve_many(**networks)
    rows = []
    for threads, target_us in (("one thread", None), ("a thread per core", 5.0)):
        n_threads = 1 if target_us is None else None
        times_us = [
            1e6 * timed_s(lambda n=n_threads: solve_many(**networks, n_threads=n)) / n_networks
            for _ in range(repeats)
        ]
        what = f"solve_many, 42 blocks on {n_networks:,} networks of 3 to 5 tiers, {threads}"
        rows.append(row(f"{what}: per plan", times_us, "us", target_us))
    return rows


_QUADRATIC = ("deepspeed_balanced", "pipedream")


def peers(size: str) -> list[dict[str, Any]]:
    """Time the rules in use, in turn with HypSplit-DP, and compare bottlenecks.

    Only the rules are timed, without the checks that methods have. Every node has 1,000 times
    its memory, so that each rule has an answer. Quadratic rules skip 100,000 blocks.
    """
    from experiments.definitions import three_tiers_of_four
    from hypsolve import Partition, evaluate
    from hypsolve.solvers.partition import heuristics
    from hypsolve.solvers.partition.hypsplit import hypsplit_dp

    rules = {
        "even_split": heuristics.even_cuts,
        "memory_proportional": heuristics.memory_proportional_cuts,
        "speed_proportional": heuristics.speed_proportional_cuts,
        "torchgpipe": heuristics.torchgpipe_cuts,
        "deepspeed_balanced": heuristics.deepspeed_balanced_cuts,
        "pipedream": heuristics.pipedream_cuts,
    }
    chains = {
        "Phi-3-medium, 3 tiers of 4 nodes": [three_tiers_of_four()],
        "1,000 blocks, 8 tiers": [_long_instance(1000, 8, seed) for seed in range(5)],
        "100,000 blocks, 8 tiers": [_long_instance(100_000, 8, seed) for seed in range(5)],
    }
    repeats = {"quick": 2, "default": 5, "full": 21}[size]
    rows = []
    for what, given in chains.items():
        instances = [one.replace(node_bytes=one.node_bytes * 1e3) for one in given]
        for name, rule in rules.items():
            if name in _QUADRATIC and instances[0].n_blocks > 1000:
                continue
            times, bottlenecks = [], []
            for instance in instances:
                own = partial(hypsplit_dp, instance, time_limit_s=60, seed=0)
                best_s = evaluate(instance, own().partition)
                bottlenecks.append(
                    best_s / evaluate(instance, Partition(tuple(rule(instance))))
                )
                for _ in range(repeats):
                    times.append(timed_s(own) / timed_s(partial(rule, instance)))
            ratio = f"hypsplit_dp / {name}, {what}"
            rows.append(row(f"{ratio}: time", times, "times", 1))
            rows.append(
                row(f"{ratio}: bottleneck, at worst", [max(bottlenecks)], "times", 1 + 1e-12)
            )  # never above 1
    return rows
