"""Names of methods, and texts of numbers, in tables and figures."""

import json

import numpy as np
import pandas as pd

_OPTIONS = {
    ("prove", "True"): "Lagrangian bound"
}  # options with a name of their own, not of their value
_NAMES = {
    "hyperion": "Hyperion",
    "hyperion_plus": "Hyperion+",
    "gpipe": "GPipe",
    "heft": "HEFT",
    "heft_split": "HEFT cuts",
    "hypsplit_dp": "HypSplit-DP",
    "even_split": "even split",
    "memory_proportional": "memory-proportional",
    "speed_proportional": "speed-proportional",
    "torchgpipe": "torchgpipe",
    "deepspeed_balanced": "DeepSpeed balanced",
    "pipedream": "PipeDream",
    "partition_cbc": "MILP CBC",
    "partition_highs": "MILP HiGHS",
    "partition_scip": "MILP SCIP",
    "partition_cpsat": "CP-SAT",
    "joint_cpsat": "joint CP-SAT",
    "joint_milp": "joint MILP",
    "joint_exact": "joint exact",
    "['lagrangian_bound']": "without Lagrangian bound",
    "['partition_boxes']": "without partition boxes",
    "['dominance']": "without dominance",
    "['beam_search']": "CP-SAT for single partitions",
    "hypsched_rt": "HypSched-RT",
    "best_cuts": "best cuts in simulation",
    "path": "path cuts",
    "round_robin": "round robin",
    "join_shortest_queue": "shortest queue",
    "least_work_left": "least work left",
    "earliest_completion": "earliest completion",
    "without_estimate": "without estimate",
    "p0": "P0 cuts",
    "fastest": "fastest rule",
    "slowest": "slowest rule",
    "full": "full link cost",
    "flops": "planned by FLOPs",
    "mean output": "mean output believed",
    "bottleneck_split": "HypSplit-DP",
    "path_split": "path cuts",
    "p0_split": "P0 cuts",
    "throughput_exact": "fluid model, exact",
    "throughput_highs": "fluid model, MILP HiGHS",
    "throughput_cpsat": "fluid model, CP-SAT",
    "best_simulated": "best simulated",
    "every_split": "every split",
    "placement_highs": "fluid model, HiGHS",
    "placement_cpsat": "fluid model, CP-SAT",
    "replica_per_machine": "a replica per machine",
    "pipelines_of_one_kind": "pipelines of one kind",
    "memory_ring": "memory ring (exo)",
    "kinds_as_tiers": "kinds as tiers",
    "equal_stages": "equal stages (SWARM)",
    "greedy_fill": "greedy fill (Petals)",
}


def label(method: str, options: str) -> str:
    """Return the name of a method with its options (JSON) in tables and legends."""
    values = [
        _OPTIONS.get((key, str(value))) or _NAMES.get(str(value), str(value))
        for key, value in json.loads(options).items()
    ]
    return " + ".join([_NAMES.get(method, method), *values])


def at_limit(frame: pd.DataFrame) -> pd.Series:
    """Mark the runs that ended at the time limit, or without an answer, and proved nothing.

    Their time is a lower bound: they would have taken longer to finish.
    """
    unproved = ~frame["status"].isin(["optimal", "infeasible"])
    late = frame["solve_time_s"] >= 0.95 * frame["time_limit_s"]
    return unproved & (late | (frame["status"] == "unknown"))


def describe_median(ratios: pd.Series, at_limit: pd.Series) -> str:
    """Write the median of ratios, after ``>`` if runs at the limit could raise it."""
    return _describe_bound(
        ratios.median(), ratios.mask(at_limit & ratios.notna(), np.inf).median()
    )


def describe_largest(ratios: pd.Series, at_limit: pd.Series) -> str:
    """Write the largest ratio, after ``>`` if a run was at the limit."""
    return _describe_bound(ratios.max(), ratios.mask(at_limit & ratios.notna(), np.inf).max())


def _describe_bound(low: float, high: float) -> str:
    if np.isnan(low):
        return "-"
    return ("> " if high > low else "") + (f"{low:,.0f}" if low >= 1000 else f"{low:.4g}")


def extrapolation(frame: pd.DataFrame) -> str:
    """Count the runs with costs beyond the measured range; return "" without any."""
    n = int(frame["extrapolated"].sum()) if "extrapolated" in frame else 0
    return f"{n} of {len(frame)} runs with extrapolated costs" if n else ""


def seconds(value: float) -> str:
    """Write seconds with three digits and a unit."""
    if not np.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def percent(value: float) -> str:
    """Write a share in percent; nan becomes -."""
    return f"{100 * value:.2f} %" if np.isfinite(value) else "-"
