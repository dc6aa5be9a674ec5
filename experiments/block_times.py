"""Compare forms of a GPU profile on measured block times, with whole models held out.

``python -m experiments.block_times [OUT]`` fits each form to the block times of every GPU that
`experiments.fit_profiles` fits, and again without each model, and writes the mean relative
errors to ``block_time_errors.csv``. A form gives the seconds of a block, by fitted numbers:

- ``max``: t0 + max(FLOPs / F, bytes / B), as in the catalogue;
- ``sum``: t0 + FLOPs / F + bytes / B;
- ``operators``: t0 + max(FLOPs of matrices / F, bytes without KV cache / B) + FLOPs of the
  attention of prompts / A + KV cache read in decode / K.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from experiments.fit_profiles import FITTED, ONE_MODEL, block_work, data_dir, load_times
from hypsolve.problem.arrays import Array

MISSING = "block_times: no measured block times here (HYPSOLVE_SHARED is not set); skipped"
UNKNOWN = 1e-18  # seconds per FLOP or byte, of work that no row has


@dataclass(frozen=True, slots=True)
class Work:
    """Work of rows: FLOPs and bytes, as arrays with a value per row.

    Attributes
    ----------
    flops, moved_bytes : ndarray
        All of it.
    prompt_pair_flops : ndarray
        Attention of prompts.
    decode_kv_bytes : ndarray
        KV cache that decode reads.
    pair_flops, kv_bytes : ndarray
        Attention and KV cache of both phases.
    """

    flops: Array
    moved_bytes: Array
    prompt_pair_flops: Array
    decode_kv_bytes: Array
    pair_flops: Array
    kv_bytes: Array

    def take(self, index: Array) -> "Work":
        """Return the work of some rows."""
        return Work(*(getattr(self, name)[index] for name in self.__slots__))


Form = Callable[[Work, Array], Array]


def _max(work: Work, x: Array) -> Array:
    return np.asarray(x[0] + np.maximum(work.flops * x[1], work.moved_bytes * x[2]))


def _sum(work: Work, x: Array) -> Array:
    return np.asarray(x[0] + work.flops * x[1] + work.moved_bytes * x[2])


def _operators(work: Work, x: Array) -> Array:
    matrices = np.maximum(
        (work.flops - work.pair_flops) * x[1], (work.moved_bytes - work.kv_bytes) * x[2]
    )
    attention = work.prompt_pair_flops * x[3] + work.decode_kv_bytes * x[4]
    return np.asarray(x[0] + matrices + attention)


FORMS: dict[str, tuple[Form, int]] = {
    "max": (_max, 3),
    "sum": (_sum, 3),
    "operators": (_operators, 5),
}
"""Each form with its count of numbers: seconds, then seconds per FLOP or byte."""


def work_of(times: pd.DataFrame) -> Work:
    """Return the work of block times, by the definitions of `hypsolve.problem.costs`."""
    without = times.assign(components="no_attention_core")
    linear_flops, read = block_work(without)
    flops, moved = times.flops.to_numpy(float), times.bytes.to_numpy(float)
    pair_flops, kv_bytes = flops - linear_flops, moved - read
    is_prompt = times.phase.to_numpy() == "prefill"
    return Work(
        flops=flops,
        moved_bytes=moved,
        prompt_pair_flops=np.where(is_prompt, pair_flops, 0.0),
        decode_kv_bytes=np.where(is_prompt, 0.0, kv_bytes),
        pair_flops=pair_flops,
        kv_bytes=kv_bytes,
    )


def fit_form(form: str, work: Work, seconds: Array) -> Array:
    """Fit the numbers of a form with the smallest mean relative error.

    Numbers of work that no row has are `UNKNOWN`.
    """
    made, n = FORMS[form]
    parts = [np.ones_like(seconds), work.flops, work.moved_bytes, work.prompt_pair_flops,
             work.decode_kv_bytes][:n]  # fmt: skip
    seen = np.array([bool((part > 0).any()) for part in parts])

    def numbers(logs: Array) -> Array:
        x = np.full(n, UNKNOWN)
        x[seen] = np.exp(np.clip(logs, -60, 2))  # a simplex may run far away
        return x

    def error(logs: Array) -> float:
        return float(np.mean(np.abs(made(work, numbers(logs)) / seconds - 1)))

    best_error, best = np.inf, np.empty(0)
    for t0_s in (1e-6, 3e-5, 2e-4):
        rates = [
            np.quantile(seconds[part > 0] / part[part > 0], 0.1 if i < 2 else 0.02)
            for i, part in enumerate(parts[1:])
            if seen[i + 1]
        ]
        logs = np.log([t0_s, *rates])
        for _ in range(4):  # a shrunken simplex may stop early: restart from its end
            found = minimize(
                error, logs, method="Nelder-Mead",
                options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000, "maxfev": 4000},
            )  # fmt: skip
            logs = found.x
        if found.fun < best_error:
            best_error, best = float(found.fun), logs
    return numbers(best)


def errors_of(gpu: str, times: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of all forms on the fitted rows of a GPU.

    Returns
    -------
    DataFrame
        gpu, form, phase, n, models, error (of the fit to all rows), error_unseen (of each model
        by a fit to the others; nan with one model). 0.05 is 5 %.
    """
    rows = times.reset_index(drop=True)
    work, seconds = work_of(rows), rows.seconds.to_numpy(float)
    models = rows.model.to_numpy()
    found = []
    for form, (made, _) in FORMS.items():
        error = np.abs(made(work, fit_form(form, work, seconds)) / seconds - 1)
        unseen = np.full(len(rows), np.nan)
        for model in pd.unique(models):
            own, others = np.flatnonzero(models == model), np.flatnonzero(models != model)
            if len(others) and gpu not in ONE_MODEL:
                x = fit_form(form, work.take(others), seconds[others])
                unseen[own] = np.abs(made(work.take(own), x) / seconds[own] - 1)
        for phase in ("prefill", "decode"):
            of_phase = (rows.phase == phase).to_numpy()
            if of_phase.any():
                found.append(
                    {
                        "gpu": gpu,
                        "form": form,
                        "phase": phase,
                        "n": int(of_phase.sum()),
                        "models": len(pd.unique(models)),
                        "error": error[of_phase].mean(),
                        "error_unseen": unseen[of_phase].mean(),
                    }
                )
    return pd.DataFrame(found)


def run(out: Path, data: Path | None = None) -> int:
    """Write ``block_time_errors.csv`` into `out`; always returns 0.

    Without the measured data it prints one line and writes nothing.
    """
    data = data_dir(data)
    if data is None:
        print(MISSING)
        return 0
    times = load_times(data)
    parts = []
    for gpu in FITTED:
        parts.append(errors_of(gpu, times[times.fitted & (times.gpu == gpu)]))
        print(f"block_times: {gpu}", flush=True)
    table = pd.concat(parts, ignore_index=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "block_time_errors.csv"
    table.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")
    means = table.pivot_table(index="form", columns="phase", values=["error", "error_unseen"])
    print((100 * means).round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
