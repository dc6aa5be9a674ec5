"""Tables and answers of the experiments on requests per second; DataFrame -> DataFrame."""

import numpy as np
import pandas as pd

from experiments.labels import at_limit, percent, seconds
from experiments.report import labelled
from hypsolve.problem.units import count

RATE, BOUND = "simulated_requests_per_s", "bound_requests_per_s"
BEST, EVERY = "best_simulated", "every_split"
ALL_SHARES, MEDIAN_SHARE = 0.97, 0.99
"""Targets for the share of the best rate of all splits: of each deployment, and the median."""
MAX_MEDIAN_GAP = 0.15  # aim for the median gap on the named networks


def with_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``label`` and ``share``, the simulated rate over the best of the deployment.

    A method without a split serves nothing: its share is 0, if another method has one.
    """
    best = frame.groupby("digest")[RATE].transform("max")
    return labelled(frame).assign(share=frame[RATE] / best.where(best > 0))


def kinds(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split the rows of `throughput`: named networks, and drawn ones by batching mode."""
    is_drawn = frame["series"].str.startswith("drawn")
    parts = {"named networks": frame[~is_drawn]}
    for series, rows in frame[is_drawn].groupby("series", sort=False):
        parts[str(series)] = rows
    return {kind: rows for kind, rows in parts.items() if len(rows)}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise each method: its splits, their rates, gaps and solve times."""
    table = with_shares(frame).assign(at_limit=at_limit(frame))
    groups = table.groupby(table["label"].rename("method"), sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "no split": groups[RATE].agg(lambda s: int((s == 0).sum())),
            "at the limit": groups["at_limit"].sum(),
            "median share": groups["share"].median(),
            "smallest share": groups["share"].min(),
            "median gap": groups["gap"].median(),
            "largest gap": groups["gap"].max(),
            "median time": groups["solve_time_s"].median(),
            "longest time": groups["solve_time_s"].max(),
        }
    )


def throughput_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table per kind of network with a row per method, and the rates by setting."""
    what = "share of the best simulated rate, gap to the bound on all splits, solve time"
    tables = {f"{kind}: {what}": as_texts(summary(rows)) for kind, rows in kinds(frame).items()}
    named = kinds(frame).get("named networks")
    if named is not None:
        title = "named networks: requests/s of the best simulated split, and gap to the bound"
        tables[title] = _settings(named)
    return tables


def exhaustive_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the shares of the best simulated rate of all splits, a row per deployment."""
    rows = {}
    for series, runs in with_shares(frame).groupby("series", sort=False):
        by_method = runs.set_index("method")
        every = by_method.loc[EVERY] if EVERY in by_method.index else None
        row = {"splits": "-", "best, requests/s": "-"}
        if every is not None:
            row = {
                "splits": f"{every['n_simulated']}",
                "best, requests/s": f"{every[RATE]:.3g}",
            }
        for method, run in by_method.iterrows():
            if method != EVERY:
                row[str(run["label"])] = percent(run["share"])
        rows[series] = row
    title = (
        "share of the best simulated rate of all splits; targets of the best simulated:"
        f" {ALL_SHARES:.0%} each, median {MEDIAN_SHARE:.0%}"
    )
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("deployment")
    return {title: table.fillna("-")}


def throughput_answers(_: str, frame: pd.DataFrame) -> list[str]:
    """Return the median gap of the best simulated split, and the median shares of others."""
    lines = []
    for kind, rows in kinds(frame).items():
        table = summary(rows)
        if "best simulated" not in table.index:
            continue
        gap = table.loc["best simulated", "median gap"]
        aim = f" (aim: under {MAX_MEDIAN_GAP:.0%})" if kind == "named networks" else ""
        others = ("fluid model, exact", "HypSplit-DP", "P0 cuts", "path cuts", "even split")
        shares = ", ".join(
            f"{name} {table.loc[name, 'median share']:.0%}"
            for name in others
            if name in table.index
        )
        lines.append(
            f"{kind}, median gap of the best simulated split to the bound: {percent(gap)}{aim};"
            f" median share of the best rate: {shares}"
        )
    return lines


def exhaustive_answers(_: str, frame: pd.DataFrame) -> list[str]:
    """Return the smallest and the median share of the methods, and whether targets are met."""
    table = with_shares(frame)
    done = table[(table["method"] == EVERY) & (table["status"] == "optimal")]
    complete = set(done["digest"])
    shares = table[table["digest"].isin(complete)].groupby("method")["share"]
    if not complete or BEST not in shares.groups:
        return []
    least, median = (f(shares.get_group(BEST)) for f in (np.min, np.median))
    is_met = least >= ALL_SHARES and median >= MEDIAN_SHARE
    labels = dict(zip(table["method"], table["label"], strict=True))
    others = ", ".join(
        f"{label} {of_method.min():.0%} and {of_method.median():.0%}"
        for method, label in labels.items()
        if method not in (BEST, EVERY) and len(of_method := shares.get_group(method))
    )
    n_splits = int(done["n_simulated"].sum())
    return [
        f"{count(len(complete), 'deployment')}, {n_splits} splits; share of the"
        f" best, smallest and median: best simulated {least:.1%} and {median:.1%} (targets"
        f" {ALL_SHARES:.0%} and {MEDIAN_SHARE:.0%}: {'met' if is_met else 'missed'}); {others}"
    ]


def _settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the best simulated split: a row per network and model, a column per length."""
    runs = frame[frame["method"] == BEST]
    texts = [
        f"{rate:.3g} ({percent(gap)})" if rate else "does not fit"
        for rate, gap in zip(runs[RATE], runs["gap"], strict=True)
    ]
    lengths = [
        f"{prompt} + {output} tokens"
        for prompt, output in zip(runs["prompt_tokens"], runs["output_tokens"], strict=True)
    ]
    cells = pd.Series(texts, index=pd.MultiIndex.from_arrays([runs["series"], lengths]))
    order = list(dict.fromkeys(lengths))
    table = cells.unstack().reindex(list(dict.fromkeys(runs["series"])))[order]
    return table.fillna("-").rename_axis("network, model").rename_axis(None, axis=1)


def as_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Write shares and gaps in per cent, and times in seconds, by the last word of a column."""
    words = {"share": percent, "gap": percent, "time": seconds}
    return table.apply(
        lambda column: column.map(words.get(str(column.name).split()[-1], str)), axis=0
    )
