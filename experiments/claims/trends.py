"""Trends along an axis, in the form of the comparisons: a value per series and seed."""

import numpy as np
import pandas as pd

from experiments.claims.statistics import Measure, cannot_keep_up, labelled, stretch

_SERIES = ["experiment", "series"]
KEEPS_UP = Measure("saturated_at", "gain")


def slopes(found: pd.DataFrame, *, doubling: bool) -> pd.DataFrame:
    """Slope of the paired values along the axis: least squares, for each series and seed.

    Parameters
    ----------
    found : DataFrame
        Of `experiments.claims.statistics.pairs`, one rival.
    doubling : bool
        Whether per doubling of the axis, or per unit of it.

    Returns
    -------
    DataFrame
        As given, with one row per series and seed: ``paired`` is the slope, ``value`` 0. A
        series with fewer than two values in a seed has none there.
    """
    known = found.dropna(subset="paired")
    x = np.log2(known["value"]) if doubling else known["value"].astype(float)
    known = known.assign(x=x)
    groups = known.groupby([*_SERIES, "label", "seed"], sort=False)
    x, y = (known[name] - groups[name].transform("mean") for name in ("x", "paired"))
    sums = known.assign(value=0, xy=x * y, xx=x * x).groupby(
        [*_SERIES, "value", "axis", "label", "seed"], sort=False
    )[["xy", "xx"]].sum()  # fmt: skip
    sums = sums[sums["xx"] > 0]
    return (sums["xy"] / sums["xx"]).rename("paired").reset_index()


def saturation_loads(frame: pd.DataFrame) -> pd.DataFrame:
    """Load from which on a method cannot keep up, in place of the runs along the load.

    Returns
    -------
    DataFrame
        As `experiments.report.load` gives it, one row per series, method and seed: ``value`` 0
        and ``saturated_at``, the smallest load with which, and with all larger ones, it cannot
        keep up. A method that keeps up with the largest has that: a ratio with it is
        nearer to 1 than the truth. nan if it never fits.
    """
    table = labelled(frame).sort_values("value", kind="stable", ignore_index=True)
    late = cannot_keep_up(table["growth"], stretch(table))
    groups = [*_SERIES, "label", "seed"]
    # late there and with all larger loads: arrivals in bursts make single smaller ones late
    backward = table.assign(late=late.astype(int))[::-1]
    onward = backward.groupby(groups, sort=False)["late"].cummin().astype(bool)
    most = table.groupby(_SERIES)["value"].transform("max")
    loads = table["value"].where(onward, most).where(np.isfinite(table["latency_s"]))
    one = table.assign(saturated_at=loads).groupby(groups, sort=False)
    status = one["status"].agg(lambda s: next((x for x in s if x != "infeasible"), s.iloc[0]))
    found = one.first().assign(
        saturated_at=one["saturated_at"].min(), status=status, value=0, digest=""
    )
    return found.reset_index()


def proved(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    """Runs of an exact method count only where it proved its answer; others are unfinished."""
    table = labelled(frame)
    guessed = (table["label"] == label) & ~table["status"].isin(["optimal", "infeasible"])
    return table.assign(latency_s=table["latency_s"].mask(guessed))
