"""Judge a claim by the rows of its settings."""

import math

import numpy as np
import pandas as pd

from experiments.claims.statements import CLAIMS, Claim
from experiments.claims.statistics import (
    GROWTH_LIMIT,
    SETTING,
    comparisons,
    mean_change,
    median_over_settings,
    pairs,
)
from experiments.report import labelled

_BY_STATE = {
    "settings": "judged", "rival_saturated": "rival saturated",
    "reference_saturated": "reference saturated", "both_saturated": "both saturated",
    "few_pairs": "few pairs", "no_pair": "no pair",
}  # fmt: skip
_WORDS = (
    "networks_hold", "networks_fail", "experiments_hold", "experiments_fail",
    "rival_saturated_at", "reference_saturated_at",
)  # fmt: skip
_RUNS = {
    "runs": "n", "paired_runs": "pairs", "infeasible_runs": "infeasible",
    "reference_infeasible_runs": "reference_infeasible",
    "both_infeasible_runs": "both_infeasible", "unfinished_runs": "unfinished",
}  # fmt: skip
COLUMNS = (
    "claim", "reference", "against", "measure", "paper", "best", "best_at", "best_pairs",
    "median", "median_low", "median_high", "series_median", "series_least", "series_most",
    "cases", "holds", "fails", "reaches_paper", "networks_hold",
    "networks_fail", "experiments_hold", "experiments_fail", "settings_planned", *_BY_STATE,
    "rival_saturated_at", "reference_saturated_at", *_RUNS,
)  # fmt: skip


def judge(
    claim: Claim, frame: pd.DataFrame, growth_limit: float = GROWTH_LIMIT
) -> dict[str, object]:
    """Judge a claim: one row of the table of claims, with `COLUMNS`.

    If two experiments share requests and network, the setting counts in the first one alone.
    Every planned setting is counted once: in ``settings`` if it is judged; in
    ``rival_saturated`` or ``reference_saturated`` if one method alone cannot keep up with the
    arrivals, and then named in ``rival_saturated_at`` or ``reference_saturated_at``; in
    ``both_saturated``; in ``few_pairs`` if fewer than `FEW` seeds have two answers; or in
    ``no_pair``. Utilisations and rates are judged where queues grow, too. ``runs`` are counted
    in this way as well: with two answers; without a plan that fits (of the rival, the
    reference, or both); or unfinished: without any plan, without the proof that the claim
    needs, or with requests that never end.

    ``cases`` are the judged settings, or, for slopes, their series. ``holds`` and ``fails``
    count the cases whose whole interval is above, or below, 0. ``networks_hold`` and the like
    name their networks and experiments; ``drawn`` and ``spread`` are families of networks.
    ``reaches_paper`` counts the cases whose mean is at least the paper's figure; it is nan
    without a figure.

    ``best`` is the largest of many means, so it is optimistic and has no interval;
    ``best_pairs`` is the number of seeds behind it. ``median`` is over cases; its interval
    resamples seeds, and another choice of networks and values can move it further. The median
    weighs a series by the number of its judged values; ``series_median`` weighs all series
    alike; ``series_least`` and ``series_most`` are the extreme medians of single series.
    """
    answer: dict[str, object] = dict.fromkeys(COLUMNS, math.nan) | {
        "claim": claim.text,
        "reference": claim.reference,
        "against": claim.against,
        "measure": claim.measure.kind + claim.unit,
        "paper": claim.paper,
        **dict.fromkeys(("cases", "holds", "fails", "settings_planned", *_BY_STATE, *_RUNS), 0),
        **dict.fromkeys(("best_at", *_WORDS), ""),
    }
    table = _rows_of(claim, frame)
    if not _has_both(table):
        return answer
    found = comparisons(table, claim.measure, claim.reference, growth_limit)
    answer["settings_planned"] = len(found)
    answer |= {name: int((found["state"] == state).sum()) for name, state in _BY_STATE.items()}
    answer |= {name: int(found[column].sum()) for name, column in _RUNS.items()}
    for who in ("rival", "reference"):
        answer[f"{who}_saturated_at"] = _named(found[found["state"] == f"{who} saturated"])
    paired = _judged_pairs(claim, table, found)
    return answer if paired.empty else answer | _verdict(claim, paired)


def _rows_of(claim: Claim, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both methods of a claim, each setting once."""
    table = labelled(frame[claim.rows(frame)])
    table = _once(table[table["label"].isin((claim.reference, claim.against))])
    return table if claim.runs is None else claim.runs(table)


def _has_both(table: pd.DataFrame) -> bool:
    return table["label"].nunique() == 2


def _judged_pairs(claim: Claim, table: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of the settings that are judged, or their trends."""
    judged = pd.MultiIndex.from_frame(found.loc[found["state"] == "judged", SETTING])
    paired = pairs(table, claim.measure, claim.reference)
    paired = paired[pd.MultiIndex.from_frame(paired[SETTING]).isin(judged)]
    return paired if claim.trend is None else claim.trend(paired)


def _once(table: pd.DataFrame) -> pd.DataFrame:
    """Drop settings whose requests and network an earlier setting has, too."""
    place = [*SETTING, "seed"]
    n_methods = table.groupby(place)["label"].transform("nunique").to_numpy()
    whole_first = table.iloc[np.argsort(-n_methods, kind="stable")]
    first = whole_first.drop_duplicates(["digest", "seed"])[place].drop_duplicates()
    return table.merge(first, on=place)


def cases(claim: Claim, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the cases that decide a claim: change, low, high, network; empty without any."""
    table = _rows_of(claim, frame)
    if not _has_both(table):
        return pd.DataFrame()
    found = comparisons(table, claim.measure, claim.reference)
    return _cases(claim, _judged_pairs(claim, table, found))


def _cases(claim: Claim, paired: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {**dict(zip(SETTING, case, strict=True)), "axis": runs["axis"].iloc[0],
         **mean_change(runs["paired"], claim.measure)}
        for case, runs in paired.groupby(SETTING, sort=False)
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    return table.assign(network=_network(table["series"]))


def _verdict(claim: Claim, paired: pd.DataFrame) -> dict[str, object]:
    """Return the columns that the paired values of the cases decide."""
    cases = _cases(claim, paired)
    median, low, high = median_over_settings(paired, claim.measure)
    series = cases.groupby(["experiment", "series"])["change"].median()
    best = cases.loc[cases["change"].idxmax()]
    at = f"{best['experiment']}: {best['series']}"
    if best["value"]:  # 0: of a whole series
        at += f", {best['axis']} {best['value']:g}"
    holds, fails = cases["low"] > 0, cases["high"] < 0
    known = math.isfinite(claim.paper)
    return {
        "best": best["change"],
        "best_at": at,
        "best_pairs": best["pairs"],
        "median": median,
        "median_low": low,
        "median_high": high,
        "series_median": series.median(),
        "series_least": series.min(),
        "series_most": series.max(),
        "cases": len(cases),
        "holds": int(holds.sum()),
        "fails": int(fails.sum()),
        "reaches_paper": int((cases["change"] >= claim.paper).sum()) if known else math.nan,
        **{
            f"{what}_{verb}": _where(so, cases[by])
            for what, by in (("networks", "network"), ("experiments", "experiment"))
            for verb, so in (("hold", holds), ("fail", fails))
        },
    }


def _network(series: pd.Series) -> pd.Series:
    """Return the network, or the family of networks, that the name of a series begins with."""
    return series.str.partition(",")[0]


def _where(so: pd.Series, place: pd.Series) -> str:
    """List the places with cases that are true: how many, and of how many."""
    groups = so.groupby(place, sort=False)
    return ", ".join(f"{name} {of.sum()}/{len(of)}" for name, of in groups if of.any())


def _named(settings: pd.DataFrame) -> str:
    """List settings by series."""
    groups = settings.groupby(["experiment", "series", "axis"], sort=False)["value"]
    return "; ".join(
        f"{experiment}: {series}, {axis} {', '.join(f'{value:g}' for value in values)}"
        for (experiment, series, axis), values in groups
    )


def settings(claim: Claim, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for every setting of a claim: its change, interval and verdict.

    ``verdict`` is holds, fails, open (the interval includes 0), or the reason why the setting
    is not judged.
    """
    table = _rows_of(claim, frame)
    found = comparisons(table, claim.measure, claim.reference)
    verdict = pd.Series("open", index=found.index)
    verdict = verdict.mask(found["low"] > 0, "holds").mask(found["high"] < 0, "fails")
    verdict = verdict.where(found["state"] == "judged", found["state"])
    about = {
        "claim": claim.text,
        "reference": claim.reference,
        "against": claim.against,
        "measure": claim.measure.kind,
        "paper": claim.paper,
    }
    columns = [*SETTING, "axis", "model", "costs", "change", "low", "high", "pairs", "n"]
    return found[columns].assign(verdict=verdict, **about)[[*about, *columns, "verdict"]]


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim by the rows of a frame."""
    return pd.DataFrame([judge(claim, frame) for claim in CLAIMS], columns=COLUMNS)
