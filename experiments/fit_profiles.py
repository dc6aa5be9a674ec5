"""Make ``hypsolve/catalog/gpus.toml`` from measured block times and datasheets.

``python -m experiments.fit_profiles [--data DIR] [--check]`` fits t0, FLOP/s and bytes/s of
every GPU with block times. The other GPUs get their datasheet figures times measured shares.
The raw data are not in the repository. The GPUs of ``gpu_datasheets.csv`` come last. To add
one, append a row with its source, and with shares if no GPU of its family was measured.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from hypsolve import catalog
from hypsolve.problem import costs, units
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import GpuProfile

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "hypsolve" / "catalog" / "gpus.toml"
DATASHEETS = Path(__file__).with_name("gpu_datasheets.csv")

# short name -> name in the data; edge to cloud
NAMES = {
    "jetson-orin-nano": "Jetson Orin Nano 8GB",
    "jetson-orin-nano-super": "Jetson Orin Nano 8GB Super",
    "jetson-orin-nx": "Jetson Orin NX 16GB",
    "jetson-agx-orin": "Jetson AGX Orin 64GB",
    "apple-m1": "Apple M1",
    "apple-m1-max": "Apple M1 Max",
    "apple-m3-max": "Apple M3 Max",
    "apple-m4": "Apple M4",
    "apple-m4-max": "Apple M4 Max",
    "rtx-3060": "RTX 3060 12GB",
    "rtx-3070": "RTX 3070",
    "rtx-3080": "RTX 3080 10GB",
    "rtx-3080-ti": "RTX 3080 Ti",
    "rtx-4070": "RTX 4070",
    "rtx-4070-ti": "RTX 4070 Ti",
    "rtx-4080": "RTX 4080",
    "rtx-a4000": "RTX A4000",
    "apple-m2-ultra": "Apple M2 Ultra",
    "apple-m3-ultra": "Apple M3 Ultra",
    "rtx-3090": "RTX 3090",
    "rtx-4090": "RTX 4090",
    "rtx-4000-ada": "RTX 4000 Ada",
    "rtx-5000-ada": "RTX 5000 Ada",
    "rtx-a6000": "RTX A6000",
    "t4": "T4",
    "l4": "L4",
    "a10": "A10",
    "a30": "A30",
    "a40": "A40",
    "v100-16gb": "V100-16GB",
    "rtx-6000-ada": "RTX 6000 Ada",
    "rtx-pro-6000": "RTX PRO 6000 Blackwell",
    "l40s": "L40S",
    "a100-40gb": "A100-40GB",
    "a100-80gb": "A100-80GB",
    "a100-80gb-pcie": "A100-80GB PCIe",
    "h100": "H100-SXM",
    "h100-pcie": "H100 PCIe",
    "h200": "H200",
    "b200": "B200",
}

# Source of the block times of each fitted GPU: prefill and decode of whole blocks, with
# attention where possible.
FITTED = {
    "A100-40GB": "Helix (ASPLOS'25)",
    "V100-16GB": "Helix (ASPLOS'25)",
    "T4": "Helix (ASPLOS'25)",
    "L4": "Helix (ASPLOS'25)",
    "A40": "Vidur (MLSys'24)",
    "RTX 3090": "LLMServingSim v0",
    "RTX A6000": "LLMServingSim v0",
    "RTX 4090": "LLMServingSim",
    "RTX PRO 6000 Blackwell": "LLMServingSim",
    "L40S": "NVIDIA aiconfigurator",
    "A100-80GB": "NVIDIA aiconfigurator",
    "H100-SXM": "NVIDIA aiconfigurator",
    "H200": "NVIDIA aiconfigurator",
    "B200": "NVIDIA aiconfigurator",
}

# These have rows of one model at one context, which cannot separate t0 from the bandwidth: the
# bandwidth is taken from whole-model decoding on the card.
ONE_MODEL = ("RTX 3090", "RTX A6000")

# GPUs without block times, and a GPU of the same chip that has them.
SAME_CHIP = {
    "A10": "A40",  # GA102
    "A30": "A100-80GB",  # GA100
    "A100-80GB PCIe": "A100-80GB",
    "H100 PCIe": "H100-SXM",
    "RTX 6000 Ada": "L40S",  # AD102
}

HELIX_DECODE_CONTEXT = 870  # not in its files: its average prompt 750 + half of 240 outputs
HELIX_PROMPT_TOKENS = 750  # a prefill of n tokens there is a batch of prompts of this length


def data_dir(given: Path | None = None) -> Path | None:
    """Return the folder of the measured data, or None without it.

    It is `given`, else ``$HYPSOLVE_SHARED/data``, else ``../shared/data``.
    """
    shared = os.environ.get("HYPSOLVE_SHARED")
    folder = given or (Path(shared) if shared else ROOT.parent / "shared") / "data"
    return folder if (folder / "gpu_profiles" / "layer_times.csv").is_file() else None


def load_times(data: Path) -> pd.DataFrame:
    """Read block times on one GPU, and add the columns seconds, flops, bytes, fitted."""
    times = pd.read_csv(data / "gpu_profiles" / "layer_times.csv")
    times = times[times.tensor_parallel == 1].reset_index(drop=True)
    times["seconds"] = units.ms_to_s(times.time_ms)
    times["flops"], times["bytes"] = block_work(times)
    # These rows would need more than twice the datasheet's bandwidth, so no fit uses them: the
    # decode rows of the A6000 (their context cannot be per sequence), and the mixture of
    # experts (its profile sends all tokens to a few experts).
    impossible = ((times.gpu == "RTX A6000") & (times.phase == "decode")) | (
        times.model == "qwen3-30b-a3b"
    )
    times["fitted"] = (times.source == times.gpu.map(FITTED)) & ~impossible
    return times


def block_work(times: pd.DataFrame) -> tuple[Array, Array]:
    """Return FLOPs and bytes of the rows by `costs.step_work`, each of shape (n_rows,)."""
    flops, moved = np.empty(len(times)), np.empty(len(times))
    for (name, parts, phase), rows in times.groupby(["model", "components", "phase"]):
        # the profiled attention kernels saw the whole context
        block = replace(catalog.model(name).blocks[1], window_tokens=None)
        if parts == "no_attention_core":
            block = replace(block, attention_flops_per_pair=0.0, kv_bytes_per_token=0)
        tokens = rows.tokens.to_numpy(float)
        if phase == "decode":
            sequences, per_sequence = tokens, np.ones(len(rows))
            cached = rows.context_len.fillna(HELIX_DECODE_CONTEXT).to_numpy() - 1
        else:
            helix = np.maximum(tokens / HELIX_PROMPT_TOKENS, 1)
            sequences = np.where(rows.batch_size.isna(), helix, rows.batch_size)
            per_sequence, cached = tokens / sequences, rows.context_len.fillna(0).to_numpy()
        flops[rows.index], moved[rows.index] = costs.step_work(
            block, per_sequence, cached, sequences
        )
    return flops, moved


def fit(
    flops: Array, moved: Array, seconds: Array, bytes_per_s: float | None = None
) -> tuple[float, float, float]:
    """Fit ``t0 + max(flops / F, bytes / B)`` with the smallest mean relative error.

    Parameters
    ----------
    flops, moved, seconds : ndarray, shape (n_rows,)
        Work and measured time of a block.
    bytes_per_s : float or None
        B, if it is known.

    Returns
    -------
    t0_s, flops_per_s, bytes_per_s : float
        Rounded to three digits and 0.1 us, so that every machine finds one result.
    """

    def error(log: Array) -> float:
        t0, per_flop = np.exp(log[:2])
        per_byte = np.exp(log[2]) if bytes_per_s is None else 1 / bytes_per_s
        predicted = t0 + np.maximum(flops * per_flop, moved * per_byte)
        return float(np.mean(np.abs(predicted - seconds) / seconds))

    best_error, best = np.inf, np.empty(0)
    for t0_s in (1e-6, 3e-5, 2e-4):
        for quantile in (0.02, 0.1):  # few rows beat the true rates
            starts = (t0_s, *(np.quantile(seconds / work, quantile) for work in (flops, moved)))
            log = np.log(starts)[: 3 if bytes_per_s is None else 2]
            for _ in range(3):  # a shrunken simplex may stop early: restart from its end
                found = minimize(
                    error, log, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
                )
                log = found.x
            if found.fun < best_error:
                best_error, best = found.fun, log
    rates = [1 / np.exp(rate) for rate in best[1:]]
    if bytes_per_s is not None:
        rates.append(bytes_per_s)
    return _rounded_t0(float(np.exp(best[0]))), _rounded(rates[0]), _rounded(rates[1])


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _rounded_t0(seconds: float) -> float:
    return _rounded(round(seconds, 7))


def _usable_flops_per_s(sheet: pd.DataFrame) -> pd.Series:
    """Return the FP16 peaks that engines reach: half of GeForce's and of Apple's."""
    geforce = sheet.note.str.startswith("FP16 accumulate", na=False)
    halved = geforce | sheet.index.str.startswith("Apple")
    return sheet.fp16_dense_tflops * np.where(halved, 0.5, 1.0) * 1e12


def _family(gpu: str) -> str:
    if "Orin" in gpu:
        return "Jetson Orin"
    if gpu.startswith("Apple"):
        return "Apple"
    if gpu.startswith("RTX A") or gpu.endswith(" Ada"):
        return "RTX workstation"
    geforce = gpu.startswith("RTX ") and gpu[4:6] in ("20", "30", "40", "50")
    # Pascal has no tensor cores; its FP32 rate is reached as other GeForce cards reach theirs
    return "GeForce" if geforce or gpu in ("GTX 1080 Ti", "Tesla P40") else ""


def load_shares(data: Path, sheet: pd.DataFrame) -> pd.DataFrame:
    """Read whole-model throughput at batch 1 as shares of usable FLOP/s and of bandwidth."""
    shares = pd.read_csv(data / "gpu_profiles" / "throughput_ratios.csv")
    peak = shares.gpu.map(_usable_flops_per_s(sheet))
    shares["flops_share"] = shares.eff_tflops * 1e12 / peak
    shares["bytes_share"] = shares.bw_ratio
    shares["family"] = shares.gpu.map(_family)
    shares["fp16"] = shares.quantisation.isin(["F16", "FP16/BF16"])
    # the data's README rejects these prompt rates; FP4 cores do not compare with FP16 peaks
    bad = shares.fp16 & shares.gpu.isin(["A100-80GB", "L40S"])
    shares.loc[bad | (shares.quantisation == "NVFP4"), "flops_share"] = np.nan
    return shares


def median_share(shares: pd.DataFrame, gpu: str, column: str) -> tuple[float, str]:
    """Return the share of a GPU, and a description of its source.

    FP16 rows, of the GPU or of its family, come before 4-bit rows: those include the time of
    dequantisation, and the models are FP16 by default.
    """
    known = shares.dropna(subset=column)
    own, family = known.gpu == gpu, known.family == _family(gpu)
    candidates = (
        (own & known.fp16, "FP16", gpu),
        (family & known.fp16, "FP16", _family(gpu)),
        (own, "4-bit", gpu),
        (family, "4-bit", _family(gpu)),
    )
    rows, bits, who = next(candidate for candidate in candidates if candidate[0].any())
    engines = ", ".join(sorted(set(known.engine[rows])))
    words = f"median of {rows.sum()} {bits} rows of {who} ({engines})"
    return float(known[column][rows].median()), words


def fitted_profile(
    slug: str, sheet: pd.DataFrame, times: pd.DataFrame, shares: pd.DataFrame
) -> GpuProfile:
    """Fit the profile of a GPU with block times."""
    gpu = NAMES[slug]
    rows = times[times.fitted & (times.gpu == gpu)]
    bytes_per_s, fixed = None, ""
    if gpu in ONE_MODEL:
        share, words = median_share(shares, gpu, "bytes_share")
        bytes_per_s = _rounded(share * sheet.mem_bw_gbs[gpu] * 1e9)
        fixed = f"; bandwidth not fitted but {share:.2f} of the datasheet's, {words}"
    t0_s, flops_per_s, bytes_per_s = fit(
        rows.flops.to_numpy(), rows.bytes.to_numpy(), rows.seconds.to_numpy(), bytes_per_s
    )
    predicted = t0_s + np.maximum(rows.flops / flops_per_s, rows.bytes / bytes_per_s)
    error = 100 * (predicted / rows.seconds - 1).abs()
    by_phase = error.groupby(rows.phase).mean()
    phases = ", ".join(f"{phase} {mean:.1f}" for phase, mean in by_phase.items())
    without = rows.components == "no_attention_core"
    attention = f" ({without.sum()} without attention)" if without.any() else ""
    source = (
        f"{FITTED[gpu]} ({rows.licence.iloc[0]}): {len(rows)} block times{attention}, mean"
        f" error {error.mean():.1f} % ({phases}){fixed}"
    )
    return _profile(gpu, sheet, t0_s, flops_per_s, bytes_per_s, "fitted", source)


def datasheet_profile(
    gpu: str, sheet: pd.DataFrame, shares: pd.DataFrame, fitted: dict[str, GpuProfile]
) -> GpuProfile:
    """Make the profile of a GPU without block times: datasheet peaks times measured shares.

    A share from whole-model throughput includes the t0 of the blocks, which then counts twice.
    No share exceeds the highest share that was fitted to block times.
    """
    peaks = {"flops_share": _usable_flops_per_s(sheet), "bytes_share": sheet.mem_bw_gbs * 1e9}
    t0_s = float(np.median([p.t0_s for p in fitted.values()]))
    from_t0 = f"t0: median of {len(fitted)} fitted GPUs"
    rates, words = [], []
    for column, rate in (("flops_share", "flops_per_s"), ("bytes_share", "bytes_per_s")):
        fitted_shares = {g: getattr(p, rate) / peaks[column][g] for g, p in fitted.items()}
        if gpu in SAME_CHIP:
            twin = SAME_CHIP[gpu]
            share, how = fitted_shares[twin], f"as fitted on {twin}, same chip"
            t0_s, from_t0 = fitted[twin].t0_s, f"t0: {twin}"
        elif column in sheet and not pd.isna(sheet[column][gpu]):
            share, how = float(sheet[column][gpu]), sheet.share_source[gpu]
        else:
            share, how = median_share(shares, gpu, column)
            highest = max(fitted_shares.values())
            if share > highest:
                how += f", which is {share:.2f}, cut to the highest fitted"
                share = highest
        rates.append(_rounded(share * peaks[column][gpu]))
        words.append(f"{share:.2f} of {_peak_words(column, peaks[column][gpu])}: {how}")
    source = "; ".join([*words, from_t0])
    return _profile(gpu, sheet, _rounded_t0(t0_s), *rates, "datasheet", source)


def _peak_words(column: str, peak: float) -> str:
    if column == "flops_share":
        return f"{peak * 1e-12:.4g} TFLOP/s"
    return f"{peak * 1e-9:.4g} GB/s"


def _profile(
    gpu: str,
    sheet: pd.DataFrame,
    t0_s: float,
    flops_per_s: float,
    bytes_per_s: float,
    basis: str,
    source: str,
) -> GpuProfile:
    note = "" if pd.isna(sheet.note[gpu]) else f" ({sheet.note[gpu]})"
    return GpuProfile(
        name=gpu,
        t0_s=t0_s,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        memory_bytes=int(units.gib_to_bytes(int(sheet.memory_gib[gpu]))),
        power_w=int(sheet.tdp_w[gpu]),
        tier=sheet.tier[gpu],
        basis=basis,
        source=f"{source}; datasheet: {sheet.source[gpu]}{note}",
    )


def load_sheet(data: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read the datasheet figures of all GPUs, and the names of those in `DATASHEETS`."""
    measured = pd.read_csv(data / "gpu_profiles" / "gpus.csv").set_index("gpu")
    more = pd.read_csv(DATASHEETS).set_index("gpu")
    names = {slug: gpu for gpu, slug in more.slug.items()}
    twice = (more.index.intersection(measured.index), names.keys() & NAMES.keys())
    if any(len(each) for each in twice):
        raise ValueError(f"{DATASHEETS.name}: a GPU must have one row, got {twice} again")
    return pd.concat([measured, more.drop(columns="slug")]), names


def profiles(data: Path) -> dict[str, GpuProfile]:
    """Fit all GPU profiles; return them by short name."""
    sheet, more = load_sheet(data)
    times, shares = load_times(data), load_shares(data, sheet)
    fitted = {
        gpu: fitted_profile(slug, sheet, times, shares)
        for slug, gpu in NAMES.items()
        if gpu in FITTED
    }
    return {
        slug: fitted[gpu] if gpu in fitted else datasheet_profile(gpu, sheet, shares, fitted)
        for slug, gpu in (NAMES | more).items()
    }


OTHERS = ("visible_bytes", "kv_copies", "all_reduce", "overlaps", "operators", "errors")


def render(table: dict[str, GpuProfile]) -> str:
    """Return the TOML text of GPU profiles."""
    lines = [
        "# One block, one step: t0_s + max(flops / flops_per_s, bytes / bytes_per_s).",
        "# Made by `python -m experiments.fit_profiles`; do not edit.",
    ]
    for slug, profile in table.items():
        lines += ["", f"[{slug}]"]
        for field in fields(GpuProfile):
            # of catalog/cards.toml, of groups of GPUs, and of other forms of costs
            if field.name in OTHERS:
                continue
            value = getattr(profile, field.name)
            if isinstance(value, str):
                text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            else:
                text = repr(value) if isinstance(value, int) else f"{value:.2e}"
            lines.append(f"{field.name} = {text}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table; exit status 0, 1 (it differs) or 2 (no data)."""
    parser = argparse.ArgumentParser("python -m experiments.fit_profiles", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="default: ../shared/data")
    parser.add_argument("--check", action="store_true", help="exit 1 if the table differs")
    options = parser.parse_args(arguments)
    data = data_dir(options.data)
    if data is None:
        message = (
            "no gpu_profiles/layer_times.csv; name its folder by --data or HYPSOLVE_SHARED"
        )
        print(f"fit_profiles: {message}", file=sys.stderr)
        return 2
    text = render(profiles(data))
    if options.check:
        same = TABLE.is_file() and TABLE.read_text(encoding="utf-8") == text
        print(f"{TABLE.name} {'is up to date' if same else 'differs from the data'}")
        return 0 if same else 1
    TABLE.write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
