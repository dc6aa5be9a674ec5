"""Tables of the claims: for a folder, for people, and per experiment."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments import labels, report
from experiments.claims.definitions import EXPERIMENTS
from experiments.claims.judging import claims, judge, settings
from experiments.claims.statements import CLAIMS, JOINT, Claim
from experiments.claims.statistics import (
    FEW,
    GROWTH_LIMIT,
    HYPERION,
    LATENCY,
    comparisons,
    saturated,
)
from experiments.report import labelled


def sensitivity(
    frame: pd.DataFrame, limits: Sequence[float] = (1.2, GROWTH_LIMIT, 1.9, math.inf)
) -> pd.DataFrame:
    """Judge the claims on latency with other limits of saturation.

    Returns
    -------
    DataFrame
        A row per claim, a column per limit of the growth of queues (inf leaves out only
        bursts): the median, and the cases in which the claim holds of those judged.
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


def load_all(
    out: str | Path, rows: Mapping[str, Collection[int]] | None = None
) -> pd.DataFrame | None:
    """Read the rows of all experiments of the claims in a folder; None if there are none.

    Parameters
    ----------
    out : str or path
    rows : mapping, optional
        Numbers of the rows that count, for some experiments. For the others, the rows count
        that have the version and the time limit of the last row.
    """
    frames = []
    for name in EXPERIMENTS:
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
    """Judge the claims by the rows in a folder, and write the tables; None without rows.

    ``claims.csv`` has a row per claim, ``claims_settings.csv`` a row per setting of a claim
    (claims on slopes have none).

    Raises
    ------
    RuntimeError
        If the rows belong to sweeps with different requests.
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
            f"{out}: no claims.csv, because its rows belong to different sweeps ({error})"
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
best: the largest of all judged settings (or series, for slopes), so it is optimistic; it has no
interval. median: its interval covers the luck of the seeds on this grid of networks and values;
other grids can move it further (see series, the range of the medians of single series). holds,
fails: settings whose whole interval is above, or below, 0; some do so by chance. reaches:
settings with at least the paper's figure. judged: settings that were judged of those planned;
in the others a method cannot keep up with the arrivals, or too few seeds have two answers.
claims_settings.csv has a row for every setting."""
FEW_SEEDS = f"""\
FEWER THAN {FEW} SEEDS: there are no intervals, and holds and fails may be luck."""


def _share(value: object) -> str:
    number = float(str(value))
    return f"{round(100 * number, 1) + 0.0:.1f}" if math.isfinite(number) else "-"


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of claims as texts, in %; `NOTES` explains its columns."""
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
    """Return the table of an experiment: title -> table of texts, a row per method."""
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
