"""Fit the all-reduces of ``hypsolve/catalog/interconnects.toml``, and their held-out errors.

``python -m experiments.all_reduce [OUT]`` fits two lines with a switch between them to every
GPU, library and degree of ``serving_runs/all_reduce.csv``, writes the table, and writes
``all_reduce.csv`` into OUT (default: results): the errors on sizes that were left out of the
fit, one at a time, beside those of one line. The measured data are not in the repository.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from hypsolve.problem.arrays import Array
from hypsolve.problem.interconnect import AllReduce

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "hypsolve" / "catalog" / "interconnects.toml"
SWITCHES = (2.0**16, 2.0**21)  # bytes between which a library changes its algorithm
RANGES = ([0, 2**16, 2**21, 2**40], ["to 64 KiB", "64 KiB to 2 MiB", "above 2 MiB"])
LIBRARIES = {"trtllm": "tensorrt-llm"}
FORMS = {"switch_bytes": ".0f", "small_s": ".3e", "small_s_per_byte": ".3e", "large_s": ".3e",
         "large_s_per_byte": ".3e"}  # fmt: skip
SET = ["gpu", "library", "n_gpus"]
SOURCE = (
    "one all-reduce of 16-bit values inside one machine, in aiconfigurator_core 0.12.0"
    " (NVIDIA, Apache-2.0), fitted by experiments/all_reduce.py"
)
# name -> what it is, GPU of the catalogue -> GPU of the data, GPU whose figures others get
INTERCONNECTS: dict[str, tuple[str, dict[str, str], str]] = {
    "nvlink3": ("NVLink 3 with NVSwitch (A100)", {
        "a100-40gb": "a100_sxm", "a100-80gb": "a100_sxm"}, "a100_sxm"),
    "nvlink4": ("NVLink 4 with NVSwitch (H100, H200)", {
        "h100": "h100_sxm", "h200": "h200_sxm"}, "h100_sxm"),
    "nvlink5": ("NVLink 5 with NVSwitch (B200)", {"b200": "b200_sxm"}, "b200_sxm"),
    "pcie5": ("PCI Express 5.0 x16 without NVLink", {
        "rtx-pro-6000": "rtx_pro_6000_server"}, "rtx_pro_6000_server"),
    "pcie4": ("PCI Express 4.0 x16 without NVLink", {"l40s": "l40s"}, "l40s"),
    "pcie3": ("PCI Express 3.0 x16: half the rate of PCIe 4.0, so it is slower", {}, "l40s"),
    "nvlink-bridge": ("NVLink bridge of two cards: faster than PCIe 4.0, whose figures are"
        " used", {}, "l40s"),
}  # fmt: skip


def data_file() -> Path | None:
    """Return the measured table in ``$HYPSOLVE_SHARED`` or ``../shared``; None without it."""
    shared = Path(os.environ.get("HYPSOLVE_SHARED") or ROOT.parent / "shared")
    path = shared / "data" / "serving_runs" / "all_reduce.csv"
    return path if path.is_file() else None


def line(message_bytes: Array, seconds: Array) -> tuple[float, float]:
    """Fit ``alpha + bytes * beta`` by non-negative least squares of relative errors."""
    scale = float(message_bytes.max())
    terms = np.stack([1 / seconds, message_bytes / scale / seconds], axis=1)
    alpha, beta = nnls(terms, np.ones(len(seconds)))[0]
    return float(alpha), float(beta) / scale


def fit(message_bytes: Array, seconds: Array, library: str, degree: int) -> AllReduce:
    """Fit two lines and the switch between them: the size with the least squared error."""
    best, error = None, np.inf
    low, high = SWITCHES
    for switch in message_bytes[(message_bytes >= low) & (message_bytes <= high)]:
        is_small = message_bytes <= switch
        small = line(message_bytes[is_small], seconds[is_small])
        large = line(message_bytes[~is_small], seconds[~is_small])
        made = AllReduce(
            library=LIBRARIES.get(library, library), degree=degree, switch_bytes=float(switch),
            small_s=small[0], small_s_per_byte=small[1],
            large_s=large[0], large_s_per_byte=large[1],
        )  # fmt: skip
        predicted = np.array([made.seconds(size) for size in message_bytes])
        if (found := float(((predicted / seconds - 1) ** 2).sum())) < error:
            best, error = made, found
    assert best is not None  # every set has sizes between the two
    return best


def held_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per measured size: relative errors of fits that did not see this size."""
    out = []
    for key, group in rows.groupby(SET):
        gpu, library, degree = key
        sizes, seconds = _arrays(group)
        for i, (size, truth) in enumerate(zip(sizes, seconds, strict=True)):
            seen = np.arange(len(sizes)) != i
            two = fit(sizes[seen], seconds[seen], library, int(degree)).seconds(size)
            alpha, beta = line(sizes[seen], seconds[seen])
            errors = (abs(two / truth - 1), abs((alpha + beta * size) / truth - 1))
            out.append((gpu, library, degree, size, *errors))
    return pd.DataFrame(out, columns=[*SET, "message_bytes", "two_lines", "one_line"])


def summary(errors: pd.DataFrame) -> pd.DataFrame:
    """Return mean and median held-out errors by GPU and range of sizes."""
    edges, labels = RANGES
    sizes = pd.cut(errors.message_bytes, edges, labels=labels)
    groups = errors.assign(sizes=sizes).groupby(["gpu", "sizes"], observed=True)
    return groups.agg(
        n=("two_lines", "size"),
        two_lines_mean=("two_lines", "mean"),
        two_lines_median=("two_lines", "median"),
        one_line_mean=("one_line", "mean"),
    ).reset_index()


def _arrays(group: pd.DataFrame) -> tuple[Array, Array]:
    ordered = group.sort_values("message_bytes")
    sizes = ordered.message_bytes.to_numpy(dtype=np.float64)
    return sizes, ordered.latency_us.to_numpy(dtype=np.float64) * 1e-6


def render(rows: pd.DataFrame) -> str:
    """Return the TOML text of the interconnects and the fitted all-reduces."""
    lines = [
        "# An all-reduce: small_s + bytes * small_s_per_byte up to switch_bytes, else large_*.",
        "# Made by `python -m experiments.all_reduce`; do not edit.",
    ]
    for name, (about, measured, stands_for) in INTERCONNECTS.items():
        of_gpus = ", ".join(f'{gpu} = "{data}"' for gpu, data in measured.items())
        lines += ["", f"[interconnects.{name}]", f'about = "{about}"']
        lines += [f"measured = {{{of_gpus}}}", f'stands_for = "{stands_for}"']
    used = {data for _, measured, stand in INTERCONNECTS.values()
            for data in (*measured.values(), stand)}  # fmt: skip
    for gpu in sorted(used):
        lines += ["", f"[measured.{gpu}]", f'source = "{SOURCE}"', "all_reduces = ["]
        for (library, degree), group in rows[rows.gpu == gpu].groupby(["library", "n_gpus"]):
            made = fit(*_arrays(group), library, int(degree))
            numbers = ", ".join(
                f"{field} = {getattr(made, field):{form}}" for field, form in FORMS.items()
            )
            lines += [f'  {{library = "{made.library}", degree = {degree}, {numbers}}},']
        lines += ["]"]
    return "\n".join(lines) + "\n"


def run(out: Path, table: Path = TABLE) -> int:
    """Write the table and the held-out errors; one line and nothing else without the data."""
    path = data_file()
    if path is None:
        print("all_reduce: no measured all-reduces here (HYPSOLVE_SHARED is not set); skipped")
        return 0
    rows = pd.read_csv(path)
    table.write_text(render(rows), encoding="utf-8", newline="\n")
    errors = summary(held_out(rows))
    out.mkdir(parents=True, exist_ok=True)
    errors.to_csv(out / "all_reduce.csv", index=False, float_format="%.4g", lineterminator="\n")
    print(f"all_reduce: {len(rows)} measured points; mean error of sizes that were left out")
    print(errors.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
