"""Where Hyperion loses: ``python -m experiments.losses [--all]`` prints Markdown tables.

The tables are read from the CSV files in ``results/``; `results/README.md` holds a copy, and a
test compares the two. No experiment is run.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import report
from experiments.claims.statistics import HYPERION, SETTING, saturated

_RESULTS = Path(__file__).parent.parent / "results"
_BASELINES = ("GPipe", "HEFT")
_NOTES = {
    "fails": "",
    "both saturated": "neither keeps up with the arrivals",
    "reference saturated": "Hyperion alone does not keep up",
}
_SAME = 1e-3  # relative difference of mean latency below which two methods are level
_WITH_P0 = (
    "ablation", "arrival_rate", "bandwidth", "heterogeneity", "output_length", "tiers",
    "transfer_of_optimality", "utilisation",
)  # fmt: skip
_VARIANTS = (  # Hyperion with one part changed: its cuts, then its dispatch
    "Hyperion + path cuts", "Hyperion + P0 cuts", "Hyperion + fastest rule",
    "Hyperion + slowest rule", "Hyperion + full link cost", "Hyperion + planned by FLOPs",
    "even split + HypSched-RT", "HEFT cuts + HypSched-RT", "HypSplit-DP + round robin",
    "HypSplit-DP + shortest queue", "HypSplit-DP + earliest completion",
    "HypSplit-DP + without estimate",
)  # fmt: skip


def baselines_token_level(results: Path = _RESULTS) -> pd.DataFrame:
    """Return the settings in which GPipe or HEFT beats Hyperion at token level.

    A setting counts if its whole 95 % interval favours the rival, whether both methods keep up
    with the arrivals or neither does, and if Hyperion alone does not keep up.
    """
    rows = pd.read_csv(results / "claims_settings.csv")
    rows = rows[(rows["reference"] == HYPERION) & rows["against"].isin(_BASELINES)]
    better = rows["claim"].str.startswith(("lower latency", "more tokens per second"))
    slower = (rows["high"] < 0) & rows["verdict"].isin(["fails", "both saturated"])
    rows = rows[better & (slower | (rows["verdict"] == "reference saturated"))]
    rows = rows.drop_duplicates([*SETTING, "measure", "against"])
    sign = np.where(rows["measure"] == "reduction", -1, 1)  # of latency, not its reduction
    quantity = rows["measure"].map({"reduction": "latency", "gain": "tokens/s"})
    ends = np.sort(rows[["low", "high"]].mul(sign, axis=0), axis=1)
    return pd.DataFrame(
        {
            "setting": rows["experiment"] + ": " + rows["series"],
            "at": [f"{a} {v:g}" for a, v in zip(rows["axis"], rows["value"], strict=True)],
            "rival": rows["against"],
            "Hyperion's": [
                f"{name} {change:+.1%}"
                for name, change in zip(quantity, sign * rows["change"], strict=True)
            ],
            "95 % interval": [f"{low:+.1%} to {high:+.1%}" for low, high in ends],
            "note": rows["verdict"].map(_NOTES),
        }
    ).reset_index(drop=True)


def flow_level(results: Path = _RESULTS) -> pd.DataFrame:
    """Return median mean latency relative to Hyperion's, by rival and setting of `latency`."""
    rows = report.relative_to(pd.read_csv(results / "latency.csv"), "objective_s", "hyperion")
    rows = rows[rows["label"] != HYPERION]
    medians = rows.groupby(["label", "series", "value"], sort=False)["ratio"].median()
    return medians.rename("ratio").reset_index()


def variants_token_level(results: Path = _RESULTS) -> pd.DataFrame:
    """Compare Hyperion with itself after one part has changed, at token level.

    Returns
    -------
    DataFrame
        A row per setting and variant in which both keep up with the arrivals: `SETTING`,
        ``label``, and ``change``, the mean relative latency of the variant minus 1 (geometric
        mean over seeds; negative: the variant is faster).
    """
    frames = []
    for name in (*_WITH_P0, "churn"):
        rows = pd.read_csv(results / f"{name}.csv")
        rows = rows[rows["costs"] == "roofline"]
        late = saturated(rows)
        table = report.labelled(rows).set_index([*SETTING, "seed"])
        ours = table.loc[table["label"] == HYPERION, "latency_s"].rename("reference_s")
        table = table[table["label"].isin(_VARIANTS)].join(ours, how="inner").reset_index()
        table["ratio"] = np.log(table["latency_s"] / table["reference_s"])
        keys = [*SETTING, "label"]
        means = table.dropna(subset="ratio").groupby(keys, sort=False)["ratio"].mean()
        steady = [
            not late.get(key, False) and not late.get((*key[:3], HYPERION), False)
            for key in means.index
        ]
        frames.append(np.expm1(means[steady]).rename("change").reset_index())
    return pd.concat(frames, ignore_index=True)


def count(changes: pd.DataFrame) -> pd.DataFrame:
    """Count, for each variant, the settings in which it is faster, level and slower."""
    rows = []
    for label in dict.fromkeys(changes["label"]):
        change = changes.loc[changes["label"] == label, "change"].dropna()  # nan: no fit
        rows.append(
            {
                "instead of Hyperion": label,
                "settings": len(change),
                "faster": int((change < -_SAME).sum()),
                "level": int((change.abs() <= _SAME).sum()),
                "slower": int((change > _SAME).sum()),
                "median": f"{change.median():+.1%}",
                "at its best": f"{change.min():+.1%}",
                "at its worst": f"{change.max():+.1%}",
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts and numbers as Markdown."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sections(results: Path = _RESULTS, *, every: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the titles and tables of the report; `every`: one row per setting."""
    yield "GPipe or HEFT is better, token level", markdown(baselines_token_level(results))
    flow = flow_level(results)
    lost = flow[flow["label"].isin(_BASELINES) & (flow["ratio"] < 1 - _SAME)]
    yield (
        "GPipe or HEFT is better, flow level",
        markdown(
            pd.DataFrame(
                {
                    "setting": "latency: " + lost["series"],
                    "at": [f"load {value:g}" for value in lost["value"]],
                    "rival": lost["label"],
                    "Hyperion's": [f"latency {1 / ratio - 1:+.1%}" for ratio in lost["ratio"]],
                }
            )
        ),
    )
    token = variants_token_level(results)
    order = {label: number for number, label in enumerate(_VARIANTS)}
    token = token.sort_values("label", key=lambda labels: labels.map(order), kind="stable")
    yield "One part of Hyperion replaced, token level", markdown(count(token))
    flow = flow[~flow["label"].isin(_BASELINES)].assign(change=flow["ratio"] - 1)
    yield "One part of Hyperion replaced, flow level", markdown(count(flow))
    p0 = token[token["label"] == "Hyperion + P0 cuts"]
    by_name = p0.assign(label=p0["experiment"])
    yield (
        "Cuts by P0 instead of the bottleneck, token level",
        markdown(count(by_name).rename(columns={"instead of Hyperion": "experiment"})),
    )
    if every:
        for title, changes in (("token level", token), ("flow level", flow)):
            lost = changes[changes["change"] < -_SAME]
            yield (
                f"Every setting in which a replaced part is faster, {title}",
                markdown(
                    lost.assign(change=[f"{x:+.1%}" for x in lost["change"]])[
                        [c for c in ("label", *SETTING, "change") if c in lost]
                    ]
                ),
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.losses", description=__doc__)
    parser.add_argument(
        "--all", action="store_true", dest="every", help="list every setting of every variant"
    )
    options = parser.parse_args(arguments)
    for title, table in sections(every=options.every):
        print(f"### {title}\n\n{table}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
