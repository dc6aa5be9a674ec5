"""Tables and answers of the experiment on placements; DataFrame -> DataFrame."""

import pandas as pd

from experiments.labels import percent
from experiments.placing.runs import BEST
from experiments.report import labelled
from experiments.serving.tables import RATE, as_texts, summary
from hypsolve.problem.units import count

EXACT = ("placement_highs", "placement_cpsat")
MAX_FLUID_GAPS = {24: 0.03, 64: 0.10}
"""Aims for the gap of the fluid rate to its bound, by the largest number of machines."""
MIN_RATIO, LEAST_RATIO = 1.2, 0.98
"""Aims for the simulated rate over that of the best rule: the median, and each."""


def by_sites(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split the rows by model and number of sites, which is the name of a series."""
    return {str(series): rows for series, rows in frame.groupby("series", sort=False)}


def placement_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table per series with a row per method, and one of the proofs by size."""
    what = "share of the best simulated rate, gap to the bound on all schedules, solve time"
    tables = {
        f"{series}: {what}": as_texts(summary(rows)) for series, rows in by_sites(frame).items()
    }
    proofs = frame[frame["method"].isin(EXACT)]
    if len(proofs):
        title = "gap of the fluid rate to the bound over fluid rates, and solve time"
        tables[title] = as_texts(_proofs(proofs))
    return tables


def _proofs(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise the proofs of the exact methods, a row per series, size and method."""
    rows = [
        f"{series}, {value} machines: {label}"
        for series, value, label in labelled(frame)[["series", "value", "label"]].to_numpy()
    ]
    groups = frame.groupby(pd.Series(rows, frame.index, name="fleets: method"), sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "proved": groups["status"].agg(lambda s: int((s == "optimal").sum())),
            "median gap": groups["fluid_gap"].median(),
            "largest gap": groups["fluid_gap"].max(),
            "median time": groups["solve_time_s"].median(),
            "longest time": groups["solve_time_s"].max(),
        }
    )


def ratios(frame: pd.DataFrame) -> pd.Series:
    """Return the rate of `hypsolve.place` over that of the best rule, by fleet.

    Fleets on which no rule has a placement are left out.
    """
    rates = frame.pivot_table(index="digest", columns="method", values=RATE, aggfunc="max")
    if BEST not in rates:
        return pd.Series(dtype=float)
    rules = rates.drop(columns=[BEST, *EXACT], errors="ignore").max(axis=1)
    return (rates[BEST] / rules)[rules > 0]


def placement_answers(_: str, frame: pd.DataFrame) -> list[str]:
    """Return what placements serve over the best rule, and the largest gaps of the proofs."""
    lines = []
    found = ratios(frame)
    if len(found):
        lines.append(
            f"{count(len(found), 'fleet')}: the placement of hypsolve serves"
            f" {found.median():.2f} times the requests of the best rule"
            f" (aim {MIN_RATIO}: {'met' if found.median() >= MIN_RATIO else 'missed'}),"
            f" at least {found.min():.3f} times"
            f" (aim {LEAST_RATIO}: {'met' if found.min() >= LEAST_RATIO else 'missed'})"
        )
    proofs = frame[frame["method"] == EXACT[0]]
    least = 0
    for most, aim in MAX_FLUID_GAPS.items():
        rows = proofs[(proofs["value"] > least) & (proofs["value"] <= most)]
        least = most
        if len(rows):
            gap, n = rows["fluid_gap"].max(), count(len(rows), "fleet")
            proved = int((rows["status"] == "optimal").sum())
            lines.append(
                f"up to {most} machines: {proved} of {n} proved in the fluid model, largest gap"
                f" {percent(gap)} (aim {aim:.0%}: {'met' if gap <= aim else 'missed'})"
            )
    return lines
