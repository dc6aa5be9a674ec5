"""Trends along an axis, in the form of the comparisons: a value per series and seed."""

import numpy as np
import pandas as pd

from experiments.claim_statistics import Measure, cannot_keep_up, labelled, stretch

_SERIES = ["experiment", "series"]
KEEPS_UP = Measure("saturated_at", "gain")


def slopes(found: pd.DataFrame, *, doubling: bool) -> pd.DataFrame:
    """Slope of the paired values along the axis: least squares, for each series and seed.

    Parameters
    ----------
    found : DataFrame
        Of `experiments.claim_statistics.pairs`, one rival.
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
    """Smallest load with which a method cannot keep up, in place of the runs along the load.

    Returns
    -------
    DataFrame
        As `experiments.report.load` gives it, one row per series, method and seed: ``value`` 0
        and ``saturated_at``. A method that keeps up with all loads has the largest: a ratio
        with it says too little, never too much. nan if it never fits.
    """
    table = labelled(frame)
    late = cannot_keep_up(table["growth"], stretch(table))
    most = table.groupby(_SERIES)["value"].transform("max")
    loads = table["value"].where(late, most).where(np.isfinite(table["latency_s"]))
    one = table.assign(saturated_at=loads).groupby([*_SERIES, "label", "seed"], sort=False)
    status = one["status"].agg(lambda s: next((x for x in s if x != "infeasible"), s.iloc[0]))
    found = one.first().assign(
        saturated_at=one["saturated_at"].min(), status=status, value=0, digest=""
    )
    return found.reset_index()
