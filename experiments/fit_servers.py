"""Fit the servers of ``hypsolve/catalog/servers.toml`` to measured runs.

``python -m experiments.fit_servers`` fits the coefficients of all servers to the tables of
measured runs, repeats the fit on lengths drawn with replacement for the intervals, and adds the
held-out errors of the experiment `validation`. It takes ten minutes. The measured runs are not
in the repository.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.validation import MISSING, data_dir, load
from hypsolve.calibration import servers, splits
from hypsolve.calibration.fit import Fit, fit_servers
from hypsolve.calibration.predictors import PREDICTORS
from hypsolve.calibration.rules import fit_for, left_out
from hypsolve.calibration.runs import STAND_INS, ServingRun, of_groups
from hypsolve.calibration.server_costs import NAMES
from hypsolve.problem.arrays import Array

TABLE = Path(__file__).resolve().parents[1] / "hypsolve" / "catalog" / "servers.toml"
N_DRAWS = 40
INTERVAL = (5.0, 95.0)  # percent
SOURCE = (
    "end-to-end runs of real servers in aiconfigurator_core 0.12.0 (NVIDIA, Apache-2.0),"
    " systems/silicon_sample.csv, fitted by experiments/fit_servers.py"
)
SPLITS = {
    "new_groups": "calibrated_new_groups",
    "new_lengths": "calibrated_new_lengths",
    "simulated_groups": "simulated_new_groups",
    "simulated_lengths": "simulated_new_lengths",
    "three_numbers": "today",
}


def draws(runs: Sequence[ServingRun], n: int, tell: Callable[[str], None]) -> list[Fit]:
    """Repeat the fit on the runs of lengths that were drawn with replacement, by group."""
    random = np.random.default_rng(0)
    fits = []
    for number in range(n):
        drawn: list[ServingRun] = []
        for of_group in of_groups(runs).values():
            lengths = sorted({(run.prompt_tokens, run.output_tokens) for run in of_group})
            for i in random.integers(0, len(lengths), len(lengths)):
                drawn += [
                    run
                    for run in of_group
                    if (run.prompt_tokens, run.output_tokens) == lengths[i]
                ]
        fits.append(fit_servers(drawn))
        if (number + 1) % 10 == 0:
            tell(f"fit_servers: {number + 1} of {n} draws")
    return fits


def errors(runs: Sequence[ServingRun], made: Array) -> dict[str, float]:
    """Return the mean relative errors of forecasts (rows: TTFT, TPOT, tokens/s)."""
    measured = np.array([[run.ttft_s, run.tpot_s, run.tokens_per_s] for run in runs])
    mean = np.abs(made / measured - 1).mean(axis=0)
    return {"ttft": mean[0], "tpot": mean[1], "tokens_per_s": mean[2]}


def render(fit: Fit, runs: Sequence[ServingRun], rows: Sequence[str]) -> str:
    """Return the TOML text of a fit, of the groups it was fitted to, and of servers."""
    groups = ",\n".join(
        f'  ["{gpu}", "{runtime}", "{model}"]' for gpu, runtime, model in of_groups(runs)
    )
    lines = [
        "# Coefficients of servers, as factors on hypsolve.calibration.server_costs.TYPICAL:",
        "# of all servers, of a runtime, of a GPU, of both.",
        "# Made by `python -m experiments.fit_servers`; do not edit.",
        f'source = "{SOURCE}"',
        f"n_runs = {fit.n_runs}",
        f"groups = [\n{groups},\n]",
    ]
    for (gpu, runtime), logs in fit.parts.items():
        factors = dict(zip(NAMES, np.exp(logs), strict=True))
        lines += ["", "[[parts]]", f'gpu = "{gpu}"', f'runtime = "{runtime}"']
        lines += [f"factors = {_inline(factors, '.5g')}"]
    return "\n".join([*lines, *rows]) + "\n"


def _inline(numbers: dict[str, float], form: str) -> str:
    return "{" + ", ".join(f"{name} = {value:{form}}" for name, value in numbers.items()) + "}"


def server_rows(
    runs: Sequence[ServingRun], used: Sequence[ServingRun], fit: Fit, drawn: Sequence[Fit]
) -> list[str]:
    """Return the lines of every fitted server: intervals, models, held-out errors."""
    counted = [run for run in runs if not left_out(run)]
    forecasts = {
        split: np.array([[f.ttft_s, f.tpot_s, f.tokens_per_s] for f in PREDICTORS[name](runs)])
        for split, name in SPLITS.items()
    }
    index = {id(run): i for i, run in enumerate(runs)}
    lines = []
    for gpu, runtime in sorted(key for key in fit.parts if all(key)):
        own = [run for run in counted if _is_of(run, gpu, runtime)]
        fitted = [run for run in used if _is_of(run, gpu, runtime)]
        if not fitted:  # another GPU stood for it
            continue
        costs = np.array([each.costs(gpu, runtime).to_array() for each in drawn])
        low, high = np.percentile(costs, INTERVAL, axis=0)
        at = fit.costs(gpu, runtime)
        lines += ["", "[[servers]]", f'gpu = "{gpu}"', f'runtime = "{runtime}"']
        models = sorted({run.catalog_model for run in fitted})
        lines += [f"n_runs = {len(fitted)}"]
        lines += [f"max_users = {max(run.concurrency for run in fitted)}"]
        lines += [f"models = {models}".replace("'", '"')]
        lines += [f"costs = {_inline(asdict(at), '.3g')}"]
        for name, values in (("low", low), ("high", high)):
            lines += [f"{name} = {_inline(dict(zip(NAMES, values, strict=True)), '.3g')}"]
        of_model = {"": own}  # all first: a table ends the keys of the server
        for run in sorted(own, key=lambda run: run.catalog_model):
            of_model.setdefault(run.catalog_model, []).append(run)
        for model, some in of_model.items():
            lines += [f'[servers.by_model."{model}"]'] if model else []
            lines += [f"n_counted = {len(some)}"]
            lines += [f"max_counted_users = {max(run.concurrency for run in some)}"]
            rows = [index[id(run)] for run in some]
            for split, made in forecasts.items():
                lines += [f"{split} = {_inline(errors(some, made[rows]), '.4f')}"]
    return lines


def _is_of(run: ServingRun, gpu: str, runtime: str) -> bool:
    is_server = (run.catalog_gpu, run.catalog_runtime) == (gpu, runtime)
    return is_server and run.peak_gpu not in STAND_INS


def main(table: Path = TABLE, n_draws: int = N_DRAWS) -> int:
    """Write the table; without the data, one line and nothing else."""
    folder = data_dir()
    if folder is None:
        print(MISSING.replace("validation", "fit_servers"))
        return 0
    runs = load(folder)
    used = fit_for(runs)
    fit = fit_servers(used)
    table.write_text(render(fit, used, []), encoding="utf-8", newline="\n")
    for cached in (servers._table, servers.catalog_fit, servers.fitted_servers):
        cached.cache_clear()
    assert splits.fitted_groups() == {run.group for run in used}
    drawn = draws(used, n_draws, print)
    rows = server_rows(runs, used, fit, drawn)
    table.write_text(render(fit, used, rows), encoding="utf-8", newline="\n")
    print(f"fit_servers: {len(used)} of {len(runs)} runs, {len(rows)} lines; {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
