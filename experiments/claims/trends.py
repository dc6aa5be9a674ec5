"""Trends along an axis, as pairs or runs with one value per series and seed."""

import numpy as np
import pandas as pd

from experiments.claims.statistics import Measure, cannot_keep_up, labelled, stretch

_SERIES = ["experiment", "series"]
KEEPS_UP = Measure("saturated_at", "gain")


def slopes(found: pd.DataFrame, *, doubling: bool) -> pd.DataFrame:
    """Fit the slope of the paired values along the axis, for each series and seed.

    Parameters
    ----------
    found : DataFrame
        `experiments.claims.statistics.pairs` with one rival.
    doubling : bool
        Slope per doubling of the axis instead of per unit.

    Returns
    -------
    DataFrame
        As `found`, with one row per series and seed: ``paired`` is the least-squares slope,
        ``value`` is 0. A series with fewer than two values for a seed has no row for it.
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
    """Replace the runs along the load by the load at which a method saturates.

    Returns
    -------
    DataFrame
        As `experiments.report.load`, with one row per series, method and seed: ``value`` is 0;
        ``saturated_at`` is the smallest load from which on the method never keeps up, and nan
        if its plan never fits. A method that keeps up with the largest load gets that load, so
        that its ratio is nearer to 1 than the truth.
    """
    table = labelled(frame).sort_values("value", kind="stable", ignore_index=True)
    late = cannot_keep_up(table["growth"], stretch(table))
    groups = [*_SERIES, "label", "seed"]
    # late at all larger loads, too: arrivals in bursts make single smaller loads late
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
    """Drop the latencies of an exact method where it did not prove its answer."""
    table = labelled(frame)
    guessed = (table["label"] == label) & ~table["status"].isin(["optimal", "infeasible"])
    return table.assign(latency_s=table["latency_s"].mask(guessed))
