"""Paired comparisons with bootstrap intervals; DataFrame -> DataFrame.

A *setting* is a value of an axis of a series. In each, every method is given the same requests
seed by seed, so methods are compared seed by seed: the log ratio of their latencies, or the
difference of their utilisations. One setting: mean over seeds, 95 % interval by the
bias-corrected and accelerated bootstrap (`scipy.stats.bootstrap`). Many settings: the median of
their means, interval by the percentile bootstrap over seeds, drawn once for all settings: what
is drawn from one seed (arrivals above all) is alike in many of them, so settings do not count
as independent. Such an interval says how much the luck of the draw matters on this grid of
settings, not what another grid would give; with ten seeds it is somewhat too short, and with
two or three, as at the sizes quick and default, it is none.

Latencies of a network that cannot keep up grow as long as requests come, so a ratio of two says
how long the run was. Such settings are counted apart, and so are plans that do not fit
(`comparisons`, ``state``); none is dropped silently, whichever method it speaks against.
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
GROWTH_LIMIT, STRETCH_LIMIT = 1.5, 2.0  # of what cannot keep up; see `saturated`


FEW = 6  # pairs: an interval from fewer says nothing
STATES = (
    "judged", "rival saturated", "reference saturated", "both saturated", "few pairs", "no pair"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared: a column, and in which way.

    ``kind`` is ``reduction`` or ``gain``, by a ratio, or ``difference``; positive means that
    the reference's value is lower, higher, or higher. ``steady``: whether it means something
    only where both keep up with the arrivals.
    """

    column: str
    kind: str
    steady: bool = False

    def paired(self, ours: pd.Series, theirs: pd.Series) -> pd.Series:
        """Log ratio or difference, row by row."""
        return ours - theirs if self.kind == "difference" else np.log(ours / theirs)

    def change(self, mean: Array | float) -> Array:
        """From the mean of the paired values: relative reduction or gain, or difference."""
        return np.asarray(
            {"reduction": lambda x: -np.expm1(x), "gain": np.expm1, "difference": np.positive}[
                self.kind
            ](mean)
        )


LATENCY = Measure("latency_s", "reduction", steady=True)
UTILISATION = Measure("utilisation", "difference")


def interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """95 % interval of the mean by the BCa bootstrap; nan for fewer than two values."""
    return _interval(tuple(np.asarray(values, dtype=np.float64).tolist()))


@lru_cache(maxsize=1 << 16)  # a setting is part of several claims, tables and figures
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
    """Every run of a rival beside the reference's run on the same requests.

    Returns
    -------
    DataFrame
        A row per run of another method where the reference was run too: `SETTING`, seed, label,
        status, ``reference_status``, and ``paired``: log ratio or difference, reference to
        rival, nan unless both have an answer.

    Raises
    ------
    ValueError
        If a rival was given other requests than the reference.
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
    """How many times as long as alone on its nodes a request takes, on average; per run."""
    return table["latency_s"] / (table["compute_s"] + table["link_s"])


def cannot_keep_up(
    growth: pd.Series, stretched: pd.Series, growth_limit: float = GROWTH_LIMIT
) -> pd.Series:
    """Whether queues grow and requests wait, or all come at once; see `saturated`."""
    return np.isinf(growth) | (growth > growth_limit) & (stretched > STRETCH_LIMIT)


def saturated(frame: pd.DataFrame, growth_limit: float = GROWTH_LIMIT) -> pd.Series:
    """Which (setting, label) cannot keep up with the arrivals; index `SETTING` and label.

    In the median over seeds the requests under way grow by `growth_limit` between the second
    and the last quarter of the arrivals (`experiments.claims.runs.growth`), and a request takes
    `STRETCH_LIMIT` times as long as alone on its nodes: arrivals that come in bursts make the
    first alone. A burst (growth inf) is over any capacity.
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
    """A row per setting and rival: by how much the reference is better, with its interval.

    Returns
    -------
    DataFrame
        `SETTING`, axis, model, costs, label; ``n`` pairs planned, which are ``pairs`` with two
        answers, those in which the rival alone is ``infeasible``, ``reference_infeasible``,
        ``both_infeasible``, and ``unfinished``: no plan in time, or requests that never end;
        ``change`` with ``low`` and ``high``: reduction of the latency relative to the rival
        (0.2: 20 % lower), or another `Measure`; ``saturated`` and ``reference_saturated``;
        ``state``, one of `STATES`.
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
    """``pairs``, ``change``, ``low`` and ``high`` of the paired values of one setting."""
    values = paired.dropna().to_numpy()
    low, high = sorted(measure.change(np.array(interval(values))).tolist())
    change = float(measure.change(values.mean())) if len(values) else math.nan
    return {"pairs": len(values), "change": change, "low": low, "high": high}


def _states(table: pd.DataFrame, measure: Measure) -> pd.Series:
    """One of `STATES` for each setting."""
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
    """Median over settings of the mean change, and its 95 % interval by resampled seeds.

    Parameters
    ----------
    found : DataFrame
        Of `pairs`, one rival. A resample in which a setting has no pair leaves it out.
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
