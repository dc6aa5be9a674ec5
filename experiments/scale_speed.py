"""Tasks of experiment `speed` at scale: ratios and figures of one run, taken in turn."""

import statistics
import tracemalloc
from typing import Any

import numpy as np

from experiments.speed_rows import row, timed_s


def _long_instance(n_blocks: int, n_tiers: int, n_classes: int = 8) -> Any:
    """Blocks all unlike, two nodes a tier, memory for 1.1 to 2 shares, 64 kinds of cut.

    Links take up to a fifth of a mean stage.
    """
    from hypsolve import Instance

    rng = np.random.default_rng([n_blocks, n_tiers])
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
    """Time HypSplit-DP, prefix sums and all, in turn with the sums of its costs by numpy."""
    from hypsolve import solve
    from hypsolve.solvers.hypsplit import hypsplit_dp

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
        row(f"the same with solve's own check: {what}", [t / base_s for t in solve_s], "times"),
        row(f"HypSplit-DP: peak memory / input, {what}", [peak_bytes / input_bytes],
            "times", 2.5),
    ]  # fmt: skip


def growth(size: str) -> list[dict[str, Any]]:
    """Fit the exponent of HypSplit-DP's time over the blocks, at fixed tiers."""
    from hypsolve.solvers.hypsplit import hypsplit_dp

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
