"""Repeat the fits of `hypsolve.simulation.workloads` to the request traces.

``python -m experiments.fit_traces DATA_DIR`` prints them. The raw data are not in the
repository; `hypsolve.simulation.workloads` describes the fits and their quality.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypsolve.formats.request_traces import read_requests
from hypsolve.problem.arrays import Array
from hypsolve.simulation.workloads import CONTEXT_TOKENS, Fit, sample

TRACES = {  # file, normals of the lengths, exponentials of the gaps
    "AZURE_CONVERSATION": ("azure_llm_2023_conv.csv", 5, 4),
    "AZURE_CODE": ("azure_llm_2023_code.csv", 4, 4),
}


def fit_traces(data_dir: str | Path) -> dict[str, Fit]:
    """Fit both traces; `data_dir` holds ``azure_llm_2023_conv.csv`` and ``..._code.csv``."""
    fits = {}
    for name, (file, n_parts, n_phases) in TRACES.items():
        trace = read_requests(Path(data_dir) / file)
        columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens)
        fits[name] = _fit(np.column_stack(columns), n_parts, n_phases)
    return fits


def _fit(trace: Array, n_parts: int, n_phases: int) -> Fit:
    tokens, gaps = trace[:, 1:], np.diff(trace[:, 0])
    weights, means, covariances = _fit_normals(np.log(tokens), n_parts)
    gap_weights, gap_means = _fit_exponentials(gaps / gaps.mean(), n_phases)
    fields = {
        "n": len(trace),
        "weights": tuple(np.round(weights, 4).tolist()),
        "means": tuple(map(tuple, np.round(means, 4).tolist())),
        "covariances": tuple(
            (round(float(c[0, 0]), 5), round(float(c[0, 1]), 5), round(float(c[1, 1]), 5))
            for c in covariances
        ),
        "max_prompt": int(tokens[:, 0].max()),
        "max_output": int(tokens[:, 1].max()),
        "gap_weights": tuple(np.round(gap_weights, 5).tolist()),
        "gap_means": tuple(np.round(gap_means, 5).tolist()),
    }
    drawn = sample(Fit(**fields, ks={}), 200_000, 1.0, np.random.default_rng(0), CONTEXT_TOKENS)
    prompt, output = drawn.prompt_tokens, drawn.output_tokens
    edges = np.quantile(tokens[:, 0], [0.25, 0.5, 0.75])
    quarter, drawn_quarter = (np.searchsorted(edges, x) for x in (tokens[:, 0], prompt))
    ks = {
        "prompt": _distance(tokens[:, 0], prompt),
        "output": _distance(tokens[:, 1], output),
        "output_given_prompt": max(
            _distance(tokens[quarter == q, 1], output[drawn_quarter == q]) for q in range(4)
        ),
        "gap": _distance(gaps / gaps.mean(), np.diff(drawn.arrival_s)),
    }
    return Fit(**fields, ks={key: round(value, 3) for key, value in ks.items()})


def _fit_normals(x: Array, k: int) -> tuple[Array, Array, Array]:
    """Fit k normals in the plane by EM, from slices by the sum of both coordinates."""
    n = len(x)
    share = np.zeros((k, n))
    share[np.arange(n) * k // n, np.argsort(x.sum(axis=1), kind="stable")] = 1
    previous = -np.inf
    for _ in range(500):
        weight = share.sum(axis=1)
        mean = share @ x / weight[:, None]
        off = x - mean[:, None, :]  # (k, n, 2)
        cov = off.transpose(0, 2, 1) @ (share[:, :, None] * off) / weight[:, None, None]
        cov += 1e-4 * np.eye(2)  # whole tokens pile up on single values
        squared = ((off @ np.linalg.inv(cov)) * off).sum(axis=2)
        log_p = np.log(weight / n)[:, None] - 0.5 * (
            squared + np.log(np.linalg.det(cov))[:, None]
        )
        share, likelihood = _shares(log_p)
        if likelihood - previous < 1e-7:
            break
        previous = likelihood
    return weight / n, mean, cov


def _fit_exponentials(gaps: Array, k: int) -> tuple[Array, Array]:
    """Fit k exponentials by EM, from means spread over four decades."""
    mean = np.geomspace(0.01, 10.0, k)
    weight = np.full(k, 1 / k)
    previous = -np.inf
    for _ in range(5000):
        share, likelihood = _shares(np.log(weight / mean)[:, None] - gaps / mean[:, None])
        total = share.sum(axis=1)
        weight = total / len(gaps)
        mean = np.maximum(share @ gaps / total, 1e-3)  # else zero gaps make a spike
        if likelihood - previous < 1e-9:
            break
        previous = likelihood
    mean /= weight @ mean
    return weight, mean


def _shares(log_p: Array) -> tuple[Array, float]:
    """Return the posterior of each part from log weights, both (k, n), and the mean log
    likelihood.
    """
    top = log_p.max(axis=0)
    total = np.log(np.exp(log_p - top).sum(axis=0)) + top
    return np.exp(log_p - total), float(total.mean())


def _distance(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    share_a = np.searchsorted(a, at, side="right") / len(a)
    share_b = np.searchsorted(b, at, side="right") / len(b)
    return float(np.abs(share_a - share_b).max())


def main(arguments: list[str] | None = None) -> int:
    """Repeat the fits and print them."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fit_traces", description=main.__doc__
    )
    parser.add_argument("data_dir", help="folder of azure_llm_2023_conv.csv and ..._code.csv")
    try:
        fits = fit_traces(parser.parse_args(arguments).data_dir)
    except (OSError, ValueError) as error:
        print(f"fit_traces: {error}", file=sys.stderr)
        return 2
    for name, fit in fits.items():
        print(f"{name} = {fit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
