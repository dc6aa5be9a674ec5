"""The claims of the paper, as data: what is compared, by which measure, on which rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from experiments.claims.series import LLAMA, LONG_TOKENS, PHI
from experiments.claims.statistics import HYPERION, LATENCY, UTILISATION, Measure
from experiments.claims.trends import KEEPS_UP, proved, saturation_loads, slopes

PAPER = {"GPipe": 0.521, "HEFT": 0.312}  # latency lower by "up to", with Phi-3-medium
PAPER_LONG = {"GPipe": 0.445}  # when long sequences are generated; the model is not named
SWEEPS = ("bandwidth", "output_length", "arrival_rate", "tiers", "heterogeneity", "utilisation")
JOINT, P0 = "joint CP-SAT", "Hyperion + P0 cuts"
BEST_CUTS = "best cuts in simulation + HypSched-RT"
BELIEVES_MEAN = "Hyperion + mean output believed"
ROUND_ROBIN, NO_ESTIMATE = "HypSplit-DP + round robin", "HypSplit-DP + without estimate"
TOKENS_PER_S = Measure("tokens_per_s", "gain")
Rows = Callable[[pd.DataFrame], pd.Series]
Change = Callable[[pd.DataFrame], pd.DataFrame]


TOPICS = {  # of figures: what each asks
    "latency_phi": "Is the mean latency of Phi-3-medium lower?",
    "latency_llama": "Is the mean latency of Llama-3-8B lower?",
    "latency_flops": "Is the mean latency lower with the cost model of the paper (FLOPs)?",
    "latency_long": "Is the mean latency lower for outputs of 1,024 tokens and more?",
    "trend": "Does the lead grow with the length of the output, or with the tiers?",
    "rate": "Does Hyperion keep up with a higher rate of requests?",
    "utilisation": "Are the GPUs busier, and is more served in a burst?",
    "stage_1": "Do the cuts of stage 1 pay?",
    "stage_2": "Does the dispatch of stage 2 pay?",
    "cuts": "Are the balanced cuts of stage 1 better than other cuts?",
    "estimate": "Does the estimate of effective capacity pay?",
    "joint_optimum": "Is the joint optimum of the flow level good at token level?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim, the paper's figure for it, and the rows that decide.

    Attributes
    ----------
    text : str
    topic : str
        A key of `TOPICS`: claims of one topic share a figure.
    rows : callable
        ``DataFrame -> Series of bool``: the rows to compare.
    against, reference : str
        Labels of the two methods.
    paper : float
        The paper's figure as a share; nan if its abstract has none.
    measure : Measure
    runs : callable, optional
        Transforms the rows before they are paired; see `experiments.claims.trends`.
    trend : callable, optional
        Transforms the pairs of the judged settings.
    unit : str
        Unit of the change, after the kind of measure.
    """

    text: str
    topic: str
    rows: Rows
    against: str
    paper: float = math.nan
    measure: Measure = LATENCY
    reference: str = HYPERION
    runs: Change | None = None
    trend: Change | None = None
    unit: str = ""


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
    """List the claims on latency, for a model, a cost model, and a version of Hyperion."""
    sweeps, long = _of(*SWEEPS, costs=costs, model=model), _long(model, costs)
    topic = "latency_flops" if costs == "flops" else f"latency_{model.partition('-')[0]}"
    paper = PAPER if model == PHI else dict.fromkeys(PAPER, math.nan)
    return tuple(
        Claim(
            text=f"lower latency, {words}{of}",
            topic="latency_long" if of else topic,
            rows=rows,
            against=rival,
            paper=figure,
            reference=reference,
        )
        for of, rows, rival, figure in (
            ("", sweeps, "GPipe", paper["GPipe"]),
            ("", sweeps, "HEFT", paper["HEFT"]),
            (", long outputs", long, "GPipe", PAPER_LONG["GPipe"]),
        )
    )


def _trend_claims(rival: str) -> tuple[Claim, ...]:
    """List the claims that the lead grows along an axis, and that Hyperion saturates last."""
    return (
        *(
            Claim(
                text=f"the lead grows with the length of the output, {model}",
                topic="trend",
                against=rival,
                rows=_of("output_length", model=model),
                unit=" per doubling",
                trend=partial(slopes, doubling=True),
            )
            for model in (PHI, LLAMA)
        ),
        *(
            Claim(
                text=f"the lead grows with the number of tiers, {model}",
                topic="trend",
                against=rival,
                rows=_of("tiers", model=model),
                unit=" per tier",
                trend=partial(slopes, doubling=False),
            )
            for model in (PHI, LLAMA)
        ),
        Claim(
            text="keeps up with a higher rate of requests",
            topic="rate",
            rows=_of("arrival_rate"),
            against=rival,
            measure=KEEPS_UP,
            runs=saturation_loads,
            unit=", by the grid of loads",
        ),
    )


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
        Claim(
            text=text,
            topic="utilisation",
            rows=_used(burst=burst),
            against=rival,
            measure=measure,
        )
        for rival in ("GPipe", "HEFT")
        for text, burst, measure in (
            ("GPUs busier in a burst", True, UTILISATION),
            ("more tokens per second in a burst", True, TOKENS_PER_S),
            ("GPUs busier for the same work, load 0.7", False, UTILISATION),
        )
    ),
    Claim(
        text="stage 1 pays: its cuts rather than even ones",
        topic="stage_1",
        rows=_of("ablation"),
        against="even split + HypSched-RT",
    ),
    Claim(
        text="stage 1 pays: its cuts rather than HEFT's",
        topic="stage_1",
        rows=_of("ablation"),
        against="HEFT cuts + HypSched-RT",
    ),
    Claim(
        text="stage 2 pays: its dispatch rather than round robin",
        topic="stage_2",
        rows=_of("ablation"),
        against=ROUND_ROBIN,
    ),
    *(
        Claim(
            text=f"stage 2 pays: its dispatch rather than the {rule}",
            topic="stage_2",
            rows=_of("ablation"),
            against=f"HypSplit-DP + {rule}",
        )
        for rule in ("shortest queue", "earliest completion")
    ),
    Claim(
        text="stage 2 pays: its dispatch rather than round robin, output lengths guessed",
        topic="stage_2",
        rows=_of("ablation"),
        against=ROUND_ROBIN,
        reference=BELIEVES_MEAN,
    ),
    Claim(
        text="stage 2 pays where speeds within a tier differ",
        topic="stage_2",
        rows=_of("heterogeneity"),
        against=ROUND_ROBIN,
    ),
    *(
        Claim(
            text=f"cuts by {words} are no better",
            topic="cuts",
            rows=_of("ablation"),
            against=f"Hyperion + {variant}",
        )
        for words, variant in (
            ("the fastest node's time", "fastest rule"),
            ("the slowest node's time", "slowest rule"),
            ("FLOPs, served at measured times", "planned by FLOPs"),
        )
    ),
    Claim(
        text="cuts by whole transfers, latencies too, are no better",
        topic="cuts",
        rows=_of("ablation", "bandwidth"),
        against="Hyperion + full link cost",
    ),
    Claim(
        text="balanced cuts are faster than those of least path latency",
        topic="cuts",
        rows=_of(*SWEEPS),
        against="Hyperion + path cuts",
    ),
    Claim(
        text="the estimate of effective capacity pays when nodes slow down",
        topic="estimate",
        rows=_under("slowdowns"),
        against=NO_ESTIMATE,
    ),
    Claim(
        text="the estimate of effective capacity pays when nodes fail",
        topic="estimate",
        rows=_under("failures"),
        against=NO_ESTIMATE,
    ),
    Claim(
        text="the estimate of effective capacity pays when the profiles are wrong",
        topic="estimate",
        rows=_under("error"),
        against=NO_ESTIMATE,
    ),
    Claim(
        text="the joint optimum of the flow level is still the best at token level",
        topic="joint_optimum",
        rows=_of("transfer_of_optimality"),
        against=BEST_CUTS,
        reference=JOINT,
        runs=partial(proved, label=JOINT),
    ),
    *(
        Claim(
            text="the joint optimum of the flow level is better at token level",
            topic="joint_optimum",
            rows=_of("transfer_of_optimality"),
            against=rival,
            reference=JOINT,
            runs=partial(proved, label=JOINT),
        )
        for rival in (HYPERION, "Hyperion + path cuts", P0, "GPipe", "HEFT")
    ),
)
