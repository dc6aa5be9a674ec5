"""Tables and answers of the experiment on Helix's problem; DataFrame -> DataFrame."""

import pandas as pd

from experiments.labels import percent, seconds

OURS, THEIRS = "stage_dp", "published_helix"
FLOW, BOUND = "flow_tokens_per_s", "bound_tokens_per_s"
RATE = "simulated_requests_per_s"
AIMS = {
    ("single-24", "llama-70b"): (2045, 0.005),
    ("single-42", "llama-70b"): (5905, 0.03),
    ("regions-24", "llama-70b"): (1754, 0.10),
}
"""Least flow, and largest gap to the bound."""


def helix_tables(_: str, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table per cluster and model, with a row per method."""
    tables = {}
    for series, rows in frame.groupby("series", sort=False):
        best_bound = rows[BOUND].min()
        table = pd.DataFrame(
            {
                "flow": rows[FLOW].map("{:.1f}".format),
                "own bound": rows[BOUND].map(
                    lambda bound: "" if pd.isna(bound) else f"{bound:.1f}"
                ),
                "gap to the best bound": (1 - rows[FLOW] / best_bound).map(percent),
                "simulated": rows[RATE].map("{:.2f} requests/s".format)
                + rows["is_short"].map({True: " (short)", False: ""}),
                "time": rows["solve_time_s"].map(lambda s: "" if pd.isna(s) else seconds(s)),
            }
        ).set_axis(pd.Index(rows["method"], name="method"))
        tables[f"{series}: flow (tokens per second, Helix's objective), and simulation"] = table
    return tables


def helix_answers(_: str, frame: pd.DataFrame) -> list[str]:
    """Return the flow over the published one and the gap, by cluster, with its aims."""
    lines = []
    for (cluster, model), rows in frame.groupby(["cluster", "model"], sort=False):
        flows = rows.set_index("method")[FLOW]
        if OURS not in flows:
            continue
        gap = 1 - flows[OURS] / rows[BOUND].min()
        line = f"{model}, {cluster}: {flows[OURS]:.1f} tokens/s flow, gap {percent(gap)}"
        if THEIRS in flows:
            simulated = rows.set_index("method").loc[[OURS, THEIRS]]
            rates = simulated[RATE]
            line += (
                f", {flows[OURS] / flows[THEIRS]:.2f} times Helix's published layout; it serves"
                f" {rates[OURS] / rates[THEIRS]:.2f} times its requests in simulation"
            )
            if simulated["is_short"].any():
                line += ", which was too short to compare them"
        if (cluster, model) in AIMS:
            least, largest = AIMS[cluster, model]
            is_met = flows[OURS] >= least and gap <= largest
            line += f" (aims: {least} and {largest:.1%}: {'met' if is_met else 'missed'})"
        lines.append(line)
    return lines
