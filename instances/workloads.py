"""Request streams: a synthetic one, and two fitted to the Azure LLM inference traces of 2023.

Every sampler is ``(n, rate, rng, *, max_tokens) -> Requests``: `n` requests, `rate` per second
on average. A rate only stretches time, so arrivals of rate 1 divided by r have rate r.

The fits (`AZURE_CONVERSATION`, `AZURE_CODE`) are made by `fit_traces`; ``python -m
instances.workloads DATA_DIR`` repeats them from the traces (P. Patel et al., "Splitwise", ISCA
2024; Azure/AzurePublicDataset, CC-BY 4.0; the first two thirds of each by time).

- *Lengths*: a mixture of bivariate normals of (ln prompt, ln output) by EM, rounded to whole
  tokens; draws beyond the longest prompt or output of the trace, or of more than `max_tokens`
  together, are drawn again. The ranks of prompt and output hardly correlate (Spearman 0.03 and
  -0.01), yet in the conversations they depend strongly: prompts of 1,000 to 1,200 tokens have
  outputs near 400, others near 100. A mixture of both together keeps that.
- *Arrivals*: independent gaps, hyperexponential (a mixture of exponentials by EM; zero gaps
  fall to its fastest phase). Their coefficient of variation is 1.08 in conversations, near
  Poisson, and 12.7 in code, bursts between minutes of silence (fits: 1.09, 11.8).
  The drift of the rate over the hour is not modelled.

Goodness (`ks` of each fit): Kolmogorov-Smirnov distance between the trace and 200,000 draws of
at most `MAX_TOKENS`: prompts, outputs, gaps scaled to a mean of 1, and the worst distance of
the outputs within the four quarters of the prompts, which tests the dependence. Conversations:
0.04, 0.03, 0.01, 0.12; code: 0.06, 0.03, 0.10 (a spike of gaps at 0.1 s is smoothed), 0.04.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypsolve import validation as valid
from hypsolve.deployment import Requests

Array = NDArray[np.float64]
MAX_TOKENS = 8192  # prompt + output: the context window of Llama-3-8B
SYNTHETIC_MAX_TOKENS = 2560


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted distribution of lengths and gaps of one trace.

    Parameters
    ----------
    n : int
        Requests in the trace.
    weights : tuple, length k
    means : tuple of (ln prompt, ln output), length k
    covariances : tuple of (var ln prompt, covariance, var ln output), length k
    max_prompt, max_output : int
        Longest of the trace.
    gap_weights, gap_means : tuple
        Phases of the gaps between arrivals, scaled to a mean of 1.
    ks : dict
        Kolmogorov-Smirnov distances.
    """

    n: int
    weights: tuple[float, ...]
    means: tuple[tuple[float, float], ...]
    covariances: tuple[tuple[float, float, float], ...]
    max_prompt: int
    max_output: int
    gap_weights: tuple[float, ...]
    gap_means: tuple[float, ...]
    ks: dict[str, float]


AZURE_CONVERSATION = Fit(
    n=13828,
    weights=(0.2757, 0.2735, 0.1041, 0.0846, 0.2621),
    means=(
        (6.2797, 4.505),
        (5.9847, 4.5217),
        (8.316, 4.0131),
        (7.0954, 5.707),
        (6.9713, 6.0056),
    ),
    covariances=(
        (1.74113, -0.16432, 0.50621),
        (0.00164, 0.00459, 0.06126),
        (0.00012, 0.00015, 0.21063),
        (0.01497, -0.07204, 0.45186),
        (0.00432, -4e-05, 0.00258),
    ),
    max_prompt=14050,
    max_output=1000,
    gap_weights=(0.01739, 0.27228, 0.71, 0.00033),
    gap_means=(0.00596, 0.70752, 1.13142, 12.10627),
    ks={"prompt": 0.043, "output": 0.032, "output_given_prompt": 0.115, "gap": 0.006},
)
AZURE_CODE = Fit(
    n=7148,
    weights=(0.2459, 0.3952, 0.1024, 0.2565),
    means=((5.7125, 2.4988), (7.6739, 2.2532), (5.8525, 4.1298), (7.6173, 3.3182)),
    covariances=(
        (1.6945, 0.10363, 0.1832),
        (0.50332, 0.02461, 0.10152),
        (2.55449, 0.80559, 1.04527),
        (0.54306, 0.03216, 0.47779),
    ),
    max_prompt=7437,
    max_output=1899,
    gap_weights=(0.33188, 0.64318, 0.0185, 0.00645),
    gap_means=(0.00485, 0.41213, 3.98688, 102.31643),
    ks={"prompt": 0.057, "output": 0.029, "output_given_prompt": 0.043, "gap": 0.096},
)


def synthetic(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = SYNTHETIC_MAX_TOKENS
) -> Requests:
    """Poisson arrivals; log-normal prompts (median 256) and outputs (median 64), independent.

    ln prompt has a standard deviation of 0.8, clipped to 16..2048 tokens; ln output of 0.7,
    clipped to 4..512; then the prompt is cut to `max_tokens` less the output.
    """
    _check("synthetic", n, rate, rng, max_tokens, 516)
    gaps = rng.standard_exponential(n)
    prompt = np.clip(np.rint(rng.lognormal(np.log(256), 0.8, n)), 16, 2048)
    output = np.clip(np.rint(rng.lognormal(np.log(64), 0.7, n)), 4, 512)
    return Requests(_arrivals(gaps, rate), np.minimum(prompt, max_tokens - output), output)


def azure_conversation(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = MAX_TOKENS
) -> Requests:
    """Sample requests as in the Azure conversation trace; see the module for the fit."""
    _check("azure_conversation", n, rate, rng, max_tokens, 64)
    return _sample(AZURE_CONVERSATION, n, rate, rng, max_tokens)


def azure_code(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = MAX_TOKENS
) -> Requests:
    """Sample requests as in the Azure code trace (short outputs, bursts); see the module."""
    _check("azure_code", n, rate, rng, max_tokens, 64)
    return _sample(AZURE_CODE, n, rate, rng, max_tokens)


WORKLOADS: dict[str, Callable[..., Requests]] = {
    "synthetic": synthetic,
    "azure_conversation": azure_conversation,
    "azure_code": azure_code,
}
WORKLOAD_MAX_TOKENS = {
    "synthetic": SYNTHETIC_MAX_TOKENS,
    "azure_conversation": MAX_TOKENS,
    "azure_code": MAX_TOKENS,
}
"""What a node reserves KV cache for by default: the longest request that can be drawn."""


def _check(
    owner: str, n: int, rate: float, rng: np.random.Generator, max_tokens: int, least: int
) -> None:
    valid.whole(owner, "n", n, least=1)
    valid.real(owner, "rate", rate, strict=True)
    valid.of_type(owner, "rng", rng, np.random.Generator)
    valid.whole(owner, "max_tokens", max_tokens, least=least)


def _arrivals(gaps: Array, rate: float) -> Array:
    with np.errstate(over="ignore"):  # beyond what `Requests` takes, which says so
        return np.asarray(np.cumsum(gaps) / rate)


def _sample(
    fit: Fit, n: int, rate: float, rng: np.random.Generator, max_tokens: int
) -> Requests:
    phase = rng.choice(len(fit.gap_weights), n, p=_normalised(fit.gap_weights))
    gaps = rng.standard_exponential(n) * np.array(fit.gap_means)[phase]
    tokens = np.empty((0, 2))
    while len(tokens) < n:
        drawn = _draw_lengths(fit, 2 * (n - len(tokens)) + 16, rng)
        limits = drawn <= (fit.max_prompt, fit.max_output)
        keep = limits.all(axis=1) & (drawn.sum(axis=1) <= max_tokens)
        tokens = np.concatenate([tokens, drawn[keep]])
    return Requests(_arrivals(gaps, rate), tokens[:n, 0], tokens[:n, 1])


def _draw_lengths(fit: Fit, n: int, rng: np.random.Generator) -> Array:
    """Whole tokens (prompt, output), shape (n, 2), limits not yet applied."""
    part = rng.choice(len(fit.weights), n, p=_normalised(fit.weights))
    a, b, c = np.array(fit.covariances).T
    u, v = rng.standard_normal((2, n))
    prompt_sd = np.sqrt(a)
    slope = b / prompt_sd  # Cholesky factor of [[a, b], [b, c]]
    rest = np.sqrt(c - slope**2)
    mean = np.array(fit.means)[part]
    logs = mean + np.stack([prompt_sd[part] * u, slope[part] * u + rest[part] * v], axis=1)
    return np.maximum(np.rint(np.exp(np.minimum(logs, 40.0))), 1.0)


def _normalised(weights: tuple[float, ...]) -> Array:
    """Stored weights are rounded: make them sum to 1 again."""
    return np.array(weights) / sum(weights)


def fit_traces(data_dir: str | Path) -> dict[str, Fit]:
    """Fit both traces; `data_dir` holds ``azure_llm_2023_conv.csv`` and ``..._code.csv``.

    Columns ``arrival_s, prompt_tokens, output_tokens``, sorted by arrival, one header line.
    """
    traces = {
        name: np.loadtxt(
            Path(data_dir) / f"azure_llm_2023_{file}.csv", delimiter=",", skiprows=1
        )
        for name, file in (("AZURE_CONVERSATION", "conv"), ("AZURE_CODE", "code"))
    }
    n_parts, n_phases = {"AZURE_CONVERSATION": 5, "AZURE_CODE": 4}, 4
    return {name: _fit(trace, n_parts[name], n_phases) for name, trace in traces.items()}


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
    drawn = _sample(Fit(**fields, ks={}), 200_000, 1.0, np.random.default_rng(0), MAX_TOKENS)
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
    """EM for k normals in the plane; starts from slices by the sum of both coordinates."""
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
    """EM for k exponentials; starts from means spread over the gaps' own scales."""
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
    """Posterior of each part, both (k, n), from log weights; and the mean log likelihood."""
    top = log_p.max(axis=0)
    total = np.log(np.exp(log_p - top).sum(axis=0)) + top
    return np.exp(log_p - total), float(total.mean())


def _distance(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    share_a = np.searchsorted(a, at, side="right") / len(a)
    share_b = np.searchsorted(b, at, side="right") / len(b)
    return float(np.abs(share_a - share_b).max())


def main(arguments: list[str] | None = None) -> int:
    """Repeat the fits and print them."""
    parser = argparse.ArgumentParser(
        prog="python -m instances.workloads", description=main.__doc__
    )
    parser.add_argument("data_dir", help="folder of azure_llm_2023_conv.csv and ..._code.csv")
    try:
        fits = fit_traces(parser.parse_args(arguments).data_dir)
    except (OSError, ValueError) as error:
        print(f"workloads: {error}", file=sys.stderr)
        return 2
    for name, fit in fits.items():
        print(f"{name} = {fit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
