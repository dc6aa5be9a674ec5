"""What the rows of the claims say: a table per experiment, and `results/claims.csv`."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import labels, report
from experiments.claims.definitions import QUESTIONS
from experiments.claims.series import LLAMA, LONG_TOKENS, PHI
from experiments.claims.statistics import (
    FEW,
    GROWTH_LIMIT,
    HYPERION,
    LATENCY,
    SETTING,
    UTILISATION,
    Measure,
    comparisons,
    labelled,
    mean_change,
    median_over_settings,
    pairs,
    saturated,
)
from experiments.claims.trends import KEEPS_UP, proved, saturation_loads, slopes

PAPER = {"GPipe": 0.521, "HEFT": 0.312}  # latency lower by "up to", with Phi-3-medium
PAPER_LONG = {"GPipe": 0.445}  # when long sequences are generated; the model is not named
SWEEPS = (
    "bandwidth", "output_length", "arrival_rate", "tiers", "heterogeneity", "utilisation"
)  # fmt: skip
JOINT, P0 = "joint CP-SAT", "Hyperion + P0 cuts"
BEST_CUTS = "best cuts in simulation + HypSched-RT"
BELIEVES_MEAN = "Hyperion + mean output believed"
ROUND_ROBIN, NO_ESTIMATE = "HypSplit-DP + round robin", "HypSplit-DP + without estimate"
TOKENS_PER_S = Measure("tokens_per_s", "gain")
Rows = Callable[[pd.DataFrame], pd.Series]
Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed, by how much, and the rows to judge it by.

    ``runs`` makes other rows of the chosen ones before they are paired, ``trend`` other pairs
    of the pairs of the settings that are judged: see `experiments.claims.trends`.
    """

    text: str
    rows: Rows
    against: str
    paper: float = math.nan  # share; nan: the paper's abstract has no figure
    measure: Measure = LATENCY
    reference: str = HYPERION
    runs: Change | None = None
    trend: Change | None = None
    unit: str = ""  # of the change, after the kind of measure


def _of(*experiments: str, costs: str = "roofline", model: str | None = None) -> Rows:
    def rows(frame: pd.DataFrame) -> pd.Series:
        chosen = frame["experiment"].isin(experiments) & (frame["costs"] == costs)
        return chosen if model is None else chosen & (frame["model"] == model)

    return rows


def _long(model: str, costs: str = "roofline") -> Rows:
    def rows(frame: pd.DataFrame) -> pd.Series:
        return _of("output_length", costs=costs, model=model)(frame) & (
            frame["value"] >= LONG_TOKENS
        )

    return rows


def _under(kind: str) -> Rows:
    def rows(frame: pd.DataFrame) -> pd.Series:
        of_kind = frame["axis"].str.startswith(kind)
        return (frame["experiment"] == "churn") & of_kind & (frame["value"] > 0)

    return rows


def _used(*, burst: bool) -> Rows:
    return lambda frame: _of("utilisation")(frame) & (np.isinf(frame["load"]) == burst)


def _latency_claims(
    words: str, model: str, costs: str = "roofline", reference: str = HYPERION
) -> tuple[Claim, ...]:
    """The three claims on latency, for a model, a cost model, and a version of Hyperion."""
    sweeps, long = _of(*SWEEPS, costs=costs, model=model), _long(model, costs)
    paper = PAPER if model == PHI else dict.fromkeys(PAPER, math.nan)
    return tuple(
        Claim(text=f"lower latency, {words}{of}", rows=rows, against=rival, paper=figure,
              reference=reference)
        for of, rows, rival, figure in (
            ("", sweeps, "GPipe", paper["GPipe"]),
            ("", sweeps, "HEFT", paper["HEFT"]),
            (", long outputs", long, "GPipe", PAPER_LONG["GPipe"]),
        )
    )  # fmt: skip


def _trend_claims(rival: str) -> tuple[Claim, ...]:
    """Whether the lead grows along an axis, and who keeps up with the higher rate."""
    return (
        *(
            Claim(text=f"the lead grows with the length of the output, {model}", against=rival,
                  rows=_of("output_length", model=model), unit=" per doubling",
                  trend=partial(slopes, doubling=True))
            for model in (PHI, LLAMA)
        ),
        *(
            Claim(text=f"the lead grows with the number of tiers, {model}", against=rival,
                  rows=_of("tiers", model=model), unit=" per tier",
                  trend=partial(slopes, doubling=False))
            for model in (PHI, LLAMA)
        ),
        Claim(text="keeps up with a higher rate of requests", rows=_of("arrival_rate"),
              against=rival, measure=KEEPS_UP, runs=saturation_loads,
              unit=", by the grid of loads"),
    )  # fmt: skip


CLAIMS = (
    *_latency_claims("Phi-3-medium", PHI),
    *_latency_claims("Phi-3-medium", PHI, reference=P0),
    *_latency_claims("Llama-3-8B", LLAMA),
    *_latency_claims("Phi-3-medium, times by FLOPs", PHI, costs="flops"),
    *_latency_claims("Phi-3-medium, times by FLOPs", PHI, costs="flops", reference=P0),
    *_latency_claims("Llama-3-8B, times by FLOPs", LLAMA, costs="flops"),
    *_trend_claims("GPipe"),
    *_trend_claims("HEFT"),
    *(
        Claim(text=text, rows=_used(burst=burst), against=rival, measure=measure)
        for rival in ("GPipe", "HEFT")
        for text, burst, measure in (
            ("GPUs busier in a burst", True, UTILISATION),
            ("more tokens per second in a burst", True, TOKENS_PER_S),
            ("GPUs busier for the same work, load 0.7", False, UTILISATION),
        )
    ),
    Claim(text="stage 1 pays: its cuts rather than even ones",
          rows=_of("ablation"), against="even split + HypSched-RT"),
    Claim(text="stage 1 pays: its cuts rather than HEFT's",
          rows=_of("ablation"), against="HEFT cuts + HypSched-RT"),
    Claim(text="stage 2 pays: its dispatch rather than round robin",
          rows=_of("ablation"), against=ROUND_ROBIN),
    *(
        Claim(text=f"stage 2 pays: its dispatch rather than the {rule}",
              rows=_of("ablation"), against=f"HypSplit-DP + {rule}")
        for rule in ("shortest queue", "earliest completion")
    ),
    Claim(text="the same, where it must guess the length of an output",
          rows=_of("ablation"), against=ROUND_ROBIN, reference=BELIEVES_MEAN),
    Claim(text="stage 2 pays where speeds within a tier differ",
          rows=_of("heterogeneity"), against=ROUND_ROBIN),
    *(
        Claim(text=f"cuts by {words} are no better", rows=_of("ablation"),
              against=f"Hyperion + {variant}")
        for words, variant in (
            ("the fastest node's time", "fastest rule"),
            ("the slowest node's time", "slowest rule"),
            ("FLOPs, served at measured times", "planned by FLOPs"),
        )
    ),
    Claim(text="cuts by whole transfers, latencies too, are no better",
          rows=_of("ablation", "bandwidth"), against="Hyperion + full link cost"),
    Claim(text="balanced cuts are faster than those of least path latency",
          rows=_of(*SWEEPS), against="Hyperion + path cuts"),
    Claim(text="the estimate of effective capacity pays when nodes slow down",
          rows=_under("slowdowns"), against=NO_ESTIMATE),
    Claim(text="the estimate of effective capacity pays when nodes fail",
          rows=_under("failures"), against=NO_ESTIMATE),
    Claim(text="the estimate of effective capacity pays when the profiles are wrong",
          rows=_under("error"), against=NO_ESTIMATE),
    Claim(text="the joint optimum of the flow level is still the best at token level",
          rows=_of("transfer_of_optimality"), against=BEST_CUTS, reference=JOINT,
          runs=partial(proved, label=JOINT)),
    *(
        Claim(text="the joint optimum of the flow level is better at token level",
              rows=_of("transfer_of_optimality"), against=rival, reference=JOINT,
              runs=partial(proved, label=JOINT))
        for rival in (HYPERION, "Hyperion + path cuts", P0, "GPipe", "HEFT")
    ),
)  # fmt: skip
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
    """One row of the table of claims; `COLUMNS`.

    Requests and a network that two experiments share are the first one's setting alone. Every
    planned setting is in one of ``settings``, which are judged; ``rival_saturated`` and
    ``reference_saturated``, in which one alone cannot keep up with the arrivals, for or against
    the claim without a figure, and named in ``rival_saturated_at`` and
    ``reference_saturated_at``; ``both_saturated``; ``few_pairs``, in which fewer than `FEW`
    seeds have two answers; ``no_pair``. Utilisations and rates are judged where queues grow
    too. ``runs`` are counted the same way: with two answers, without a plan that fits (of the
    rival, the reference, both), or unfinished: without any plan, without the proof that the
    claim needs, or with requests that never end.

    ``cases`` are the settings that are judged, or, in rows of slopes, their series. Of them
    ``holds`` and ``fails`` count those whose whole interval is above, or below, 0, and
    ``networks_hold`` and the like say on which networks and in which experiments; ``drawn`` and
    ``spread`` are families of networks. ``reaches_paper`` counts those whose mean is at least
    the paper's figure, nan where it has none.

    ``best`` is the largest of so many means, so it is optimistic, as any "up to", and has no
    interval: ``best_pairs`` is the number of seeds it rests on. ``median`` is over cases, its
    interval by resampled seeds: another choice of networks and values can move it further. It
    weighs a series by the number of its values that are judged; ``series_median`` weighs all
    series alike; ``series_least`` and ``series_most`` are the least and largest of the medians
    of single series.
    """
    labels = (claim.reference, claim.against)
    table = labelled(frame[claim.rows(frame)])
    table = table[table["label"].isin(labels)]
    answer: dict[str, object] = dict.fromkeys(COLUMNS, math.nan) | {
        "claim": claim.text,
        "reference": claim.reference,
        "against": claim.against,
        "measure": claim.measure.kind + claim.unit,
        "paper": claim.paper,
        **dict.fromkeys(("cases", "holds", "fails", "settings_planned", *_BY_STATE, *_RUNS), 0),
        **dict.fromkeys(("best_at", *_WORDS), ""),
    }
    if table["label"].nunique() < 2:
        return answer
    table = _once(table)
    if claim.runs is not None:
        table = claim.runs(table)
    found = comparisons(table, claim.measure, claim.reference, growth_limit)
    answer["settings_planned"] = len(found)
    answer |= {name: int((found["state"] == state).sum()) for name, state in _BY_STATE.items()}
    answer |= {name: int(found[column].sum()) for name, column in _RUNS.items()}
    for who in ("rival", "reference"):
        answer[f"{who}_saturated_at"] = _named(found[found["state"] == f"{who} saturated"])
    judged = pd.MultiIndex.from_frame(found.loc[found["state"] == "judged", SETTING])
    paired = pairs(table, claim.measure, claim.reference)
    paired = paired[pd.MultiIndex.from_frame(paired[SETTING]).isin(judged)]
    if claim.trend is not None:
        paired = claim.trend(paired)
    return answer if paired.empty else answer | _verdict(claim, paired)


def _once(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what an earlier setting has, in pairs: same requests, same network."""
    place = [*SETTING, "seed"]
    n_methods = table.groupby(place)["label"].transform("nunique").to_numpy()
    whole_first = table.iloc[np.argsort(-n_methods, kind="stable")]
    first = whole_first.drop_duplicates(["digest", "seed"])[place].drop_duplicates()
    return table.merge(first, on=place)


def _verdict(claim: Claim, paired: pd.DataFrame) -> dict[str, object]:
    """What the paired values of the cases say."""
    cases = pd.DataFrame(
        [
            {**dict(zip(SETTING, case, strict=True)), "axis": runs["axis"].iloc[0],
             **mean_change(runs["paired"], claim.measure)}
            for case, runs in paired.groupby(SETTING, sort=False)
        ]
    )  # fmt: skip
    median, low, high = median_over_settings(paired, claim.measure)
    cases = cases.assign(network=_network(cases["series"]))
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
    """The network, or the family of them, of each series: the first word of its name."""
    return series.str.partition(",")[0]


def _where(so: pd.Series, place: pd.Series) -> str:
    """In how many of how many cases of each place, where there are any."""
    groups = so.groupby(place, sort=False)
    return ", ".join(f"{name} {of.sum()}/{len(of)}" for name, of in groups if of.any())


def _named(settings: pd.DataFrame) -> str:
    """Settings by series."""
    groups = settings.groupby(["experiment", "series", "axis"], sort=False)["value"]
    return "; ".join(
        f"{experiment}: {series}, {axis} {', '.join(f'{value:g}' for value in values)}"
        for (experiment, series, axis), values in groups
    )


def sensitivity(
    frame: pd.DataFrame, limits: Sequence[float] = (1.2, GROWTH_LIMIT, 1.9, math.inf)
) -> pd.DataFrame:
    """What the claims on latency would say if settings counted as saturated at other limits.

    Returns
    -------
    DataFrame
        A row per claim, a column per limit of the growth of queues (inf: bursts alone are left
        out): median, and in how many of the cases that are judged the claim holds.
    """
    judged = [claim for claim in CLAIMS if claim.measure.steady and claim.rows(frame).any()]

    def cell(claim: Claim, limit: float) -> str:
        answer = judge(claim, frame, limit)
        return f"{_share(answer['median'])} ({answer['holds']}/{answer['cases']})"

    names = [f"{c.text}: {c.reference} against {c.against}" for c in judged]
    return pd.DataFrame(
        {f"limit {limit:g}": [cell(claim, limit) for claim in judged] for limit in limits},
        index=pd.Index(names, name="claim: median % (holds/judged)"),
    )


def settings(claim: Claim, frame: pd.DataFrame) -> pd.DataFrame:
    """A row for every setting of a claim: the change with its interval, and what came of it.

    ``verdict``: holds, fails, open (the interval has 0 in it), or why it is not judged.
    """
    table = labelled(frame[claim.rows(frame)])
    table = _once(table[table["label"].isin((claim.reference, claim.against))])
    if claim.runs is not None:
        table = claim.runs(table)
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
    """Judge every claim by the rows there are."""
    return pd.DataFrame([judge(claim, frame) for claim in CLAIMS], columns=COLUMNS)


def load_all(
    out: str | Path, rows: Mapping[str, Collection[int]] | None = None
) -> pd.DataFrame | None:
    """Rows of all experiments of the claims in a folder; None if there are none.

    Parameters
    ----------
    out : str or path
    rows : mapping, optional
        Numbers of the rows that count, of some experiments. Of others: those of the version and
        the time limit of the last row.
    """
    frames = []
    for name in QUESTIONS:
        path = Path(out) / f"{name}.csv"
        if not path.exists():
            continue
        numbers = (rows or {}).get(name)
        frame = report.load(path, numbers)
        if numbers is None:
            same = ["version", "time_limit_s"]
            frame = frame[(frame[same] == frame[same].iloc[-1]).all(axis=1)]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else None


def write(
    out: str | Path, rows: Mapping[str, Collection[int]] | None = None
) -> pd.DataFrame | None:
    """Judge the claims by the rows in a folder; None without rows.

    Into its ``claims.csv``, a row per claim, and ``claims_settings.csv``, one per setting of a
    claim; those of slopes have none.

    Raises
    ------
    RuntimeError
        If the rows are of sweeps that do not go together.
    """
    frame = load_all(out, rows)
    if frame is None:
        return None
    try:
        table = claims(frame)
        plain = [claim for claim in CLAIMS if claim.trend is None]
        each = pd.concat([settings(claim, frame) for claim in plain], ignore_index=True)
    except ValueError as error:
        raise RuntimeError(
            f"{out}: no claims.csv, for its rows are of sweeps that do not go together"
            f" ({error})"
        ) from None
    table.to_csv(
        Path(out) / "claims.csv", index=False, float_format="%.4f", lineterminator="\n"
    )
    each.to_csv(
        Path(out) / "claims_settings.csv", index=False, float_format="%.4f",
        lineterminator="\n",
    )  # fmt: skip
    return table


NOTES = """\
best: the largest of as many settings as are judged (of series, in rows of slopes), hence
optimistic; no interval. median: its interval is the luck of the seeds on this grid of networks
and values; other grids can move it further, see the range of the medians of single series.
holds, fails: whole interval above, or below, 0; of many cases in which there is nothing, some
hold and some fail by chance. reaches: at least the paper's figure. judged: of the settings
that were planned; in the others one of the two, or both, cannot keep up with the arrivals, or
too few seeds have two answers. claims_settings.csv has a row for every setting."""
FEW_SEEDS = f"""\
FEWER THAN {FEW} SEEDS: intervals are none, and what holds or fails may be luck."""


def _share(value: object) -> str:
    number = float(str(value))
    return f"{round(100 * number, 1) + 0.0:.1f}" if math.isfinite(number) else "-"


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """The table of claims for people, in %: a row per claim; to be read with `NOTES`."""
    rows = [_words(claim) for claim in table.to_dict("records")]
    claim = table["claim"] + ": " + table["reference"] + " against " + table["against"]
    claim = claim.where(table["measure"] == "reduction", claim + ", " + table["measure"])
    return pd.DataFrame(rows).set_index(claim.rename("claim"))


def _words(row: Mapping[str, object]) -> dict[str, str]:
    median, low, high, least, most, best = (
        _share(row[name])
        for name in (
            "median", "median_low", "median_high", "series_least", "series_most", "best"
        )
    )  # fmt: skip
    reached = row["reaches_paper"]
    return {
        "paper": _share(row["paper"]),
        "best": best,
        "median": f"{median} [{low}, {high}]",
        "series": f"{least} to {most}",
        "holds": f"{row['holds']}/{row['cases']}",
        "fails": f"{row['fails']}",
        "reaches": f"{reached:.0f}" if math.isfinite(float(str(reached))) else "-",
        "judged": f"{row['settings']}/{row['settings_planned']}",
    }


def tables(experiment: str, frame: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """What a sweep prints of an experiment: title -> table of texts, a row per method."""
    reference = JOINT if experiment == "transfer_of_optimality" else HYPERION
    table = labelled(frame)
    late = saturated(frame).groupby("label").sum()
    found = comparisons(frame, LATENCY, reference)
    comparable = found[found["state"] == "judged"]
    groups = table.groupby(table["label"].rename("method"), sort=False)
    changes = comparable.groupby("label")["change"]
    return {
        f"{experiment}: by how much {reference}'s latency is below each method's": pd.DataFrame(
            {
                "runs": groups.size().astype(str),
                "infeasible": groups["status"].agg(lambda s: str((s == "infeasible").sum())),
                "settings saturated": late.reindex(groups.groups).astype(str),
                "median latency": groups["latency_s"].median().map(labels.seconds),
                "median GPU use": groups["utilisation"].median().map(labels.percent),
                **{
                    f"{name} reduction": value.reindex(groups.groups).map(labels.percent)
                    for name, value in (
                        ("least", changes.min()),
                        ("median", changes.median()),
                        ("largest", changes.max()),
                    )
                },
            }
        )
    }
