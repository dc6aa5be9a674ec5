"""Forecast the measured runs by NVIDIA's aiconfigurator.

``python -m experiments.aiconfigurator_forecasts [OUT]`` needs ``pip install -e
".[aiconfigurator]"`` and the measured runs; it writes ``aiconfigurator.csv`` into OUT
(default: results). All options are its defaults, except that KV cache is in 8 bits where our
predictors assume so, too: without it, 18 more runs do not fit. The experiment `validation`
puts the forecasts beside ours. The settings of the runs are read, not what was measured; of the
package, only its `cli_estimate` is used.
"""

import csv
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

TABLE = "dense_runs.csv"
KEY = ("gpu", "runtime", "model", "precision", "weights", "tensor_parallel", "prompt_tokens",
       "output_tokens", "concurrency")  # fmt: skip
COLUMNS = (*KEY, "ttft_s", "tpot_s", "reason")
MODELS = {  # configurations that the package holds
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
}
QUANT_MODES = {"fp8": "fp8", "nvfp4": "nvfp4"}


def settings(path: Path) -> list[dict[str, str]]:
    """Return the settings of the runs of a table, each once."""
    with path.open(encoding="utf-8") as file:
        rows = [tuple(row[name] for name in KEY) for row in csv.DictReader(file)]
    return [dict(zip(KEY, row, strict=True)) for row in dict.fromkeys(rows)]


def is_kv_small(setting: dict[str, str]) -> bool:
    """Return whether our predictors assume a KV cache in 8 bits for these settings, too."""
    weights = setting["weights"] or setting["precision"]
    optimizer = weights == "nvfp4" or setting["model"].startswith("nvidia/")
    return weights in QUANT_MODES and (optimizer or setting["runtime"] == "trtllm")


@functools.cache
def version(gpu: str, runtime: str) -> str | None:
    """Return the default version of the tables; `cli_estimate` looks it up again, slowly."""
    from aiconfigurator.sdk.perf_database import get_latest_database_version

    found = get_latest_database_version(system=gpu, backend=runtime)
    return None if found is None else str(found)


def forecast(setting: dict[str, str]) -> dict[str, Any]:
    """Return the time to first token and per output token, in seconds, or a reason."""
    from aiconfigurator.cli.api import cli_estimate

    try:
        made = cli_estimate(
            MODELS.get(setting["model"], setting["model"]),
            setting["gpu"],
            backend_name=setting["runtime"],
            backend_version=version(setting["gpu"], setting["runtime"]),
            isl=int(setting["prompt_tokens"]),
            osl=int(setting["output_tokens"]),
            batch_size=int(setting["concurrency"]),
            tp_size=int(setting["tensor_parallel"]),
            gemm_quant_mode=QUANT_MODES.get(setting["weights"] or setting["precision"]),
            kvcache_quant_mode="fp8" if is_kv_small(setting) else None,
        )
    except Exception as error:  # it raises many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split()).partition(" on system")[0]
        return {"ttft_s": "", "tpot_s": "", "reason": reason}
    return {
        "ttft_s": f"{made.ttft / 1e3:.6g}",
        "tpot_s": f"{made.tpot / 1e3:.6g}",
        "reason": "",
    }


def main(out: Path) -> int:
    """Write the forecasts; without the data, one line and nothing else."""
    shared = Path(os.environ.get("HYPSOLVE_SHARED") or "../shared")
    path = shared / "data" / "serving_runs" / TABLE
    if not path.is_file():
        print("aiconfigurator: no measured runs here (HYPSOLVE_SHARED is not set); skipped")
        return 0
    logging.disable(logging.WARNING)
    rows = settings(path)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "aiconfigurator.csv.partial"
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, setting in enumerate(rows, start=1):
            writer.writerow({**setting, **forecast(setting)})
            if number % 20 == 0:
                file.flush()
                print(f"aiconfigurator: {number} of {len(rows)} settings", flush=True)
    partial.replace(out / "aiconfigurator.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
