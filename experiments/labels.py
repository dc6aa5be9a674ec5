"""Names of methods and numbers as tables and figures show them."""

import json

import numpy as np
import pandas as pd

_OPTIONS = {("prove", "True"): "Lagrangian bound"}  # that are not named by their value
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
    "['prices']": "without prices",
    "['boxes']": "without boxes",
    "['dominance']": "without dominance",
    "['search']": "CP-SAT for single partitions",
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
}


def label(method: str, options: str) -> str:
    """How tables and legends call a method with its options (JSON)."""
    values = [
        _OPTIONS.get((key, str(value))) or _NAMES.get(str(value), str(value))
        for key, value in json.loads(options).items()
    ]
    return " + ".join([_NAMES.get(method, method), *values])


def at_limit(frame: pd.DataFrame) -> pd.Series:
    """Which runs ended at the time limit, or without an answer, before they proved anything.

    To finish they would have taken longer: their time is a lower bound.
    """
    unproved = ~frame["status"].isin(["optimal", "infeasible"])
    late = frame["solve_time_s"] >= 0.95 * frame["time_limit_s"]
    return unproved & (late | (frame["status"] == "unknown"))


def describe_median(ratios: pd.Series, at_limit: pd.Series) -> str:
    """Median, after ``>`` if runs at the limit, had they been let finish, could raise it."""
    return _describe_bound(
        ratios.median(), ratios.mask(at_limit & ratios.notna(), np.inf).median()
    )


def describe_largest(ratios: pd.Series, at_limit: pd.Series) -> str:
    """Largest, after ``>`` if any run was at the limit."""
    return _describe_bound(ratios.max(), ratios.mask(at_limit & ratios.notna(), np.inf).max())


def _describe_bound(least: float, most: float) -> str:
    if np.isnan(least):
        return "-"
    return ("> " if most > least else "") + (
        f"{least:,.0f}" if least >= 1000 else f"{least:.4g}"
    )


def extrapolation(frame: pd.DataFrame) -> str:
    """A note if the costs of any run go beyond what was measured, else nothing."""
    n = int(frame["extrapolated"].sum()) if "extrapolated" in frame else 0
    return f"{n} of {len(frame)} runs with extrapolated costs" if n else ""


def seconds(value: float) -> str:
    """Seconds for people, three digits."""
    if not np.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def percent(value: float) -> str:
    """A share for people; - without one."""
    return f"{100 * value:.2f} %" if np.isfinite(value) else "-"
