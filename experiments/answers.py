"""The answers of an experiment in one line each, which a sweep prints at its end."""

import pandas as pd

from experiments.labels import percent, seconds
from experiments.report import gap_kinds, relative_to, summary

EXACT = ("MILP", "CP-SAT", "joint CP-SAT", "joint MILP", "joint exact")  # starts of labels


def gap(_: str, frame: pd.DataFrame) -> list[str]:
    """Return the median gaps of `gap`, by kind of problem."""
    lines = []
    kinds = gap_kinds(frame)
    for kind, title in (("joint", "partition and schedule"), ("scale", "the same at scale")):
        if kind in kinds:
            lines.append(f"{title}, median gap to the best bound: {_gaps(kinds[kind])}")
    if "partition" in kinds:
        table = summary(kinds["partition"])
        proved = ""
        if "HypSplit-DP" in table.index:
            own = table.loc["HypSplit-DP"]
            proved = f"HypSplit-DP is optimal in {own['optimal']:g} of {own['runs']:g} runs; "
        lines.append(f"partition, {proved}median gap: {_gaps(kinds['partition'])}")
    return lines


def _gaps(frame: pd.DataFrame) -> str:
    """List the methods that prove no optimum, the smallest median gap first."""
    medians = summary(frame)["median gap"].sort_values(kind="stable")
    shown = [
        f"{name} {percent(gap)}"
        for name, gap in medians.items()
        if not str(name).startswith((*EXACT, "HypSplit-DP")) and "Lagrangian" not in str(name)
    ]
    return ", ".join(shown[:4])


def solve_time(_: str, frame: pd.DataFrame) -> list[str]:
    """Return how many times longer each exact backend takes than HypSplit-DP."""
    runs = relative_to(frame, "solve_time_s", "hypsplit_dp")
    own_s = runs.loc[runs["method"] == "hypsplit_dp", "solve_time_s"].median()
    ratios = runs[runs["method"] != "hypsplit_dp"].groupby("label")["ratio"].median()
    slower = ", ".join(f"{name} {ratio:.0f}" for name, ratio in ratios.sort_values().items())
    return [f"HypSplit-DP takes {seconds(own_s)}; times as long (median): {slower}"]


def latency(_: str, frame: pd.DataFrame) -> list[str]:
    """Return the mean latencies of the paper's rivals relative to Hyperion's."""
    ratios = relative_to(frame, "objective_s", "hyperion").groupby("label")["ratio"]
    rivals = [
        (name, ratios.get_group(name)) for name in ("GPipe", "HEFT") if name in ratios.groups
    ]
    words = ", ".join(
        f"{name} {ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        for name, ratio in rivals
    )
    return [f"mean latency in times Hyperion's, median and range: {words}"] if rivals else []


def speed(_: str, frame: pd.DataFrame) -> list[str]:
    """Return how many speed targets are met, and the missed ones."""
    judged = frame[frame["met"].isin(["yes", "no"])]
    missed = judged.loc[judged["met"] == "no", "what"]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets are met on this machine"]
    if len(missed):
        more = f"; and {len(missed) - 3} more" if len(missed) > 3 else ""
        lines.append(f"missed: {'; '.join(missed[:3])}{more}")
    return lines
