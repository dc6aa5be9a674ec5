"""Paired comparisons with bootstrap intervals; DataFrame -> DataFrame.

A *setting* is a value of the axis of a series. In a setting, all methods get identical requests
for each seed, so methods are compared seed by seed, by the log ratio of their latencies or the
difference of their utilisations.

One setting is summarised by the mean over seeds, with a 95 % interval by the bias-corrected and
accelerated bootstrap (`scipy.stats.bootstrap`). Many settings are summarised by the median of
their means, with an interval by the percentile bootstrap over seeds. The seeds are drawn once
for all settings, because draws of one seed (above all arrivals) are alike in many settings,
which are therefore not independent. The interval shows the luck of the draw on this grid of
settings; another grid can give another median. With ten seeds it is somewhat too short; with
two or three seeds (sizes quick and default) it is meaningless.

If a network cannot keep up, latencies grow as long as requests arrive, and their ratio depends
on the length of the run. `comparisons` counts such settings apart, and also plans that do not
fit (``state``). No setting is dropped silently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from experiments.report import labelled
from hypsolve.problem.arrays import Array

SETTING = ["experiment", "series", "value"]
HYPERION = "Hyperion"
CONFIDENCE = 0.95
RESAMPLES = 9999
GROWTH_LIMIT, STRETCH_LIMIT = 1.5, 2.0  # beyond both, a method cannot keep up: `saturated`


FEW = 6  # an interval from fewer pairs is meaningless
STATES = (
    "judged", "rival saturated", "reference saturated", "both saturated", "few pairs", "no pair"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """A column to compare, and how.

    Attributes
    ----------
    column : str
    kind : str
        ``reduction`` (positive: the reference is lower) or ``gain`` (positive: it is higher),
        both from a ratio, or ``difference`` (positive: it is higher).
    steady : bool
        The measure is meaningful only if both methods keep up with the arrivals.
    """

    column: str
    kind: str
    steady: bool = False

    def paired(self, ours: pd.Series, theirs: pd.Series) -> pd.Series:
        """Return the log ratio or the difference of each row."""
        return ours - theirs if self.kind == "difference" else np.log(ours / theirs)

    def change(self, mean: Array | float) -> Array:
        """Convert the mean of paired values to a reduction, a gain, or a difference."""
        return np.asarray(
            {"reduction": lambda x: -np.expm1(x), "gain": np.expm1, "difference": np.positive}[
                self.kind
            ](mean)
        )


LATENCY = Measure("latency_s", "reduction", steady=True)
UTILISATION = Measure("utilisation", "difference")


def interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """Return the 95 % interval of the mean by the BCa bootstrap; nan below two values."""
    return _interval(tuple(np.asarray(values, dtype=np.float64).tolist()))


@lru_cache(maxsize=1 << 16)  # several claims, tables and figures use a setting
def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    from scipy.stats import bootstrap

    data = np.array(values)
    if len(data) < 2:
        return math.nan, math.nan
    if np.ptp(data) <= 1e-12 * max(1.0, np.abs(data).max()):  # nothing to resample
        return float(data.mean()), float(data.mean())
    found = bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="BCa", random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def pairs(
    frame: pd.DataFrame, measure: Measure = LATENCY, reference: str = HYPERION
) -> pd.DataFrame:
    """Pair every run of a rival with the reference's run on its requests.

    Returns
    -------
    DataFrame
        A row per run of another method, if the reference was run too: `SETTING`, seed, label,
        status, ``reference_status``, and ``paired``, the log ratio or difference of reference
        and rival; nan unless both have an answer.

    Raises
    ------
    ValueError
        If a rival and the reference had different requests.
    """
    table = labelled(frame)
    keys = [*SETTING, "seed"]
    of_reference = table[table["label"] == reference].set_index(keys)
    beside = of_reference[["digest", "status", measure.column]].add_suffix("_reference")
    rivals = table[table["label"] != reference].join(beside, on=keys)
    rivals = rivals[rivals["status_reference"].notna()]  # where the reference was run
    other = rivals["digest"] != rivals["digest_reference"]
    if other.any():
        row = rivals[other].iloc[0]
        raise ValueError(
            f"{row['experiment']}/{row['series']} {row['axis']}={row['value']}"
            f" seed={row['seed']}: {row['label']} must be given the requests of {reference}"
        )
    ours, theirs = rivals[f"{measure.column}_reference"], rivals[measure.column]
    paired = measure.paired(ours, theirs)
    columns = rivals[[*keys, "axis", "model", "costs", "label", "status"]]
    return columns.assign(reference_status=rivals["status_reference"], paired=paired)


def stretch(table: pd.DataFrame) -> pd.Series:
    """Return mean latency over the time of a request alone on its nodes, per run."""
    return table["latency_s"] / (table["compute_s"] + table["link_s"])


def cannot_keep_up(
    growth: pd.Series, stretched: pd.Series, growth_limit: float = GROWTH_LIMIT
) -> pd.Series:
    """Return True where queues grow and requests wait, or all arrive at once."""
    return np.isinf(growth) | (growth > growth_limit) & (stretched > STRETCH_LIMIT)


def saturated(frame: pd.DataFrame, growth_limit: float = GROWTH_LIMIT) -> pd.Series:
    """Mark the (setting, label) that cannot keep up with the arrivals.

    In the median over seeds, the requests under way grow by `growth_limit` between the second
    and the last quarter of the arrivals (`hypsolve.simulation.metrics.growth`), and a request
    takes `STRETCH_LIMIT` times as long as alone on its nodes. The second condition excludes
    arrivals in bursts. If all requests arrive at once (growth inf), no method keeps up.
    """
    table = labelled(frame)
    groups = table.assign(stretch=stretch(table)).groupby([*SETTING, "label"], sort=False)
    medians = groups[["growth", "stretch"]].median()
    return cannot_keep_up(medians["growth"], medians["stretch"], growth_limit)


_COMPARED = (
    *SETTING, "axis", "model", "costs", "label", "n", "infeasible", "reference_infeasible",
    "both_infeasible", "unfinished", "pairs", "change", "low", "high", "saturated",
    "reference_saturated", "state",
)  # fmt: skip


def comparisons(
    frame: pd.DataFrame,
    measure: Measure = LATENCY,
    reference: str = HYPERION,
    growth_limit: float = GROWTH_LIMIT,
) -> pd.DataFrame:
    """Compare the reference with each rival in each setting.

    Returns
    -------
    DataFrame
        A row per setting and rival: `SETTING`, axis, model, costs, label. Of ``n`` planned
        pairs, ``pairs`` have two answers; in the others the rival alone is ``infeasible``, or
        ``reference_infeasible``, or ``both_infeasible``, or a run is ``unfinished`` (no plan in
        time, or requests that never end). ``change``, ``low`` and ``high``: the reduction of
        the latency relative to the rival (0.2: 20 % lower), or another `Measure`.
        ``saturated``, ``reference_saturated``. ``state``, one of `STATES`.
    """
    late = saturated(frame, growth_limit)
    rows = []
    found = pairs(frame, measure, reference)
    for (*setting, label), runs in found.groupby([*SETTING, "label"], sort=False):
        theirs, ours = runs["status"] == "infeasible", runs["reference_status"] == "infeasible"
        rows.append(
            {
                **dict(zip(SETTING, setting, strict=True)),
                **{column: runs[column].iloc[0] for column in ("axis", "model", "costs")},
                "label": label,
                "n": len(runs),
                "infeasible": int((theirs & ~ours).sum()),
                "reference_infeasible": int((ours & ~theirs).sum()),
                "both_infeasible": int((ours & theirs).sum()),
                "unfinished": int((runs["paired"].isna() & ~theirs & ~ours).sum()),
                **mean_change(runs["paired"], measure),
                "saturated": bool(late.get((*setting, label), False)),
                "reference_saturated": bool(late.get((*setting, reference), False)),
            }
        )
    if not rows:
        return pd.DataFrame(columns=_COMPARED)
    table = pd.DataFrame(rows)
    return table.assign(state=_states(table, measure))[list(_COMPARED)]


def mean_change(paired: pd.Series, measure: Measure) -> dict[str, float]:
    """Return ``pairs``, ``change``, ``low`` and ``high`` of the paired values of a setting."""
    values = paired.dropna().to_numpy()
    low, high = sorted(measure.change(np.array(interval(values))).tolist())
    change = float(measure.change(values.mean())) if len(values) else math.nan
    return {"pairs": len(values), "change": change, "low": low, "high": high}


def _states(table: pd.DataFrame, measure: Measure) -> pd.Series:
    """Return one of `STATES` for each setting."""
    state = pd.Series("judged", index=table.index)
    if measure.steady:
        theirs, ours = table["saturated"], table["reference_saturated"]
        state = state.mask(theirs, "rival saturated").mask(ours, "reference saturated")
        state = state.mask(theirs & ours, "both saturated")
    few = table["pairs"] < table["n"].clip(upper=FEW)
    return state.mask(few, "few pairs").mask(table["pairs"] == 0, "no pair")


def median_over_settings(
    found: pd.DataFrame, measure: Measure = LATENCY
) -> tuple[float, float, float]:
    """Return the median over settings of the mean change, and its 95 % interval.

    Parameters
    ----------
    found : DataFrame
        Pairs with one rival. A resample leaves out a setting that has no pair in it.
    """
    found = found.dropna(subset="paired")
    if found.duplicated([*SETTING, "seed"]).any():
        raise ValueError("median over settings: a setting and seed must come once")
    table = found.pivot(index=SETTING, columns="seed", values="paired")
    if table.empty:
        return math.nan, math.nan, math.nan
    values = table.to_numpy()
    n_seeds = values.shape[1]
    known = np.isfinite(values)
    median = float(np.median(measure.change(np.nanmean(values, axis=1))))
    if n_seeds < 2:
        return median, math.nan, math.nan
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=RESAMPLES)
    weight = counts @ known.T.astype(np.float64)  # (RESAMPLES, n_settings)
    total = counts @ np.where(known, values, 0.0).T
    means = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    medians = np.nanmedian(measure.change(means), axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(medians, [tail, 1 - tail])
    return median, float(low), float(high)
