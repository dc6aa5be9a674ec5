"""Random requests: a synthetic workload, and two fitted to traces of 2023.

`workload` is the main entry point. Every sampler of `WORKLOADS` is ``(n, rate, rng, *,
max_tokens) -> Requests`` and draws `n` requests that arrive at `rate` per second on average. A
rate only stretches time: arrivals of rate 1, divided by r, have rate r.

`experiments.fit_traces` in the repository makes the fits `AZURE_CONVERSATION` and `AZURE_CODE`
from the Azure LLM inference traces (P. Patel et al., "Splitwise", ISCA 2024;
Azure/AzurePublicDataset, CC-BY 4.0), using the first two thirds of each by time.

- *Lengths*: (ln prompt, ln output) follows a mixture of bivariate normals fitted by EM; lengths
  are rounded to whole tokens. Draws beyond the longest prompt or output of the trace, or of
  more than `max_tokens` together, are drawn again. Prompt and output lengths show almost no
  rank correlation (Spearman 0.03 and -0.01). Yet in conversations they are strongly dependent:
  prompts of 1,000 to 1,200 tokens have outputs near 400, and others near 100. A joint mixture
  keeps this dependence.
- *Arrivals*: independent interarrival times from a hyperexponential distribution (a mixture of
  exponentials) fitted by EM. Gaps of zero are assigned to its fastest phase. The coefficient of
  variation is 1.08 in conversations, near Poisson, and 12.7 in code, with bursts between
  minutes of silence (fits: 1.09 and 11.8). The fit does not model how the rate drifts over the
  hour.

Goodness of fit (`ks`): Kolmogorov-Smirnov distances between the trace and 200,000 draws of at
most `CONTEXT_TOKENS`, for prompts, outputs, gaps scaled to a mean of 1, and outputs within each
quarter of the prompts (the worst one, which tests the dependence). Conversations: 0.04, 0.03,
0.01, 0.12. Code: 0.06, 0.03, 0.10 (a spike of gaps at 0.1 s is smoothed), 0.04.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import Requests

CONTEXT_TOKENS = 8192  # prompt + output: the context window of Llama-3-8B
SYNTHETIC_MAX_TOKENS = 2560
MAX_REQUESTS = 10**7  # takes some seconds and up to 2 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Distribution of lengths and gaps fitted to one trace.

    Parameters
    ----------
    n : int
        Number of requests in the trace.
    weights : tuple, length k
        Weights of the k normals.
    means : tuple of (ln prompt, ln output), length k
    covariances : tuple of (var ln prompt, covariance, var ln output), length k
    max_prompt, max_output : int
        Longest prompt and output of the trace, in tokens.
    gap_weights, gap_means : tuple
        Phases of the gaps between arrivals, scaled to a mean of 1.
    ks : dict
        Kolmogorov-Smirnov distances; see the docstring of the module.
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


def workload(
    name: str = "synthetic",
    *,
    n_requests: int,
    rate_per_s: float,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Requests:
    """Draw requests from a distribution that comes with hypsolve.

    Parameters
    ----------
    name : str
        One of `WORKLOADS`: ``synthetic`` (Poisson arrivals, log-normal lengths), or
        ``azure_conversation`` and ``azure_code``, fitted to the Azure traces of 2023.
    n_requests : int
        At most `MAX_REQUESTS`.
    rate_per_s : float
        Mean arrival rate. It only stretches time: with one seed, the requests are equal at
        every rate.
    seed : int
    max_tokens : int, optional
        Maximum length of a request, prompt and output together. Default: 2,560 for
        ``synthetic``, 8,192 for the others.

    Returns
    -------
    Requests

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names the argument.

    See Also
    --------
    hypsolve.read_requests : Read requests from a file.

    Examples
    --------
    >>> from hypsolve import workload
    >>> requests = workload("azure_code", n_requests=100, rate_per_s=2.0, seed=1)
    >>> len(requests)
    100
    >>> int(requests.output_tokens.max()) < 8192
    True
    """
    sampler = WORKLOADS[valid.known("workload", name, WORKLOADS)]
    _number("workload", "n_requests", n_requests)
    valid.real("workload", "rate_per_s", rate_per_s, strict=True)
    rng = np.random.default_rng(valid.whole("workload", "seed", seed))
    if max_tokens is None:
        max_tokens = WORKLOAD_MAX_TOKENS[name]
    return sampler(n_requests, rate_per_s, rng, max_tokens=max_tokens)


def synthetic(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = SYNTHETIC_MAX_TOKENS
) -> Requests:
    """Draw Poisson arrivals, and independent log-normal prompts and outputs.

    Prompts have median 256 and a standard deviation of 0.8 in the logarithm, and are clipped to
    16..2048 tokens; outputs have median 64 and 0.7, and are clipped to 4..512. Then the prompt
    is cut to `max_tokens` less the output.
    """
    _check("synthetic", n, rate, rng, max_tokens, 516)
    gaps = rng.standard_exponential(n)
    prompt = np.clip(np.rint(rng.lognormal(np.log(256), 0.8, n)), 16, 2048)
    output = np.clip(np.rint(rng.lognormal(np.log(64), 0.7, n)), 4, 512)
    return Requests(_arrivals(gaps, rate), np.minimum(prompt, max_tokens - output), output)


def azure_conversation(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = CONTEXT_TOKENS
) -> Requests:
    """Draw requests as in the Azure conversation trace; the module describes the fit."""
    _check("azure_conversation", n, rate, rng, max_tokens, 64)
    return sample(AZURE_CONVERSATION, n, rate, rng, max_tokens)


def azure_code(
    n: int, rate: float, rng: np.random.Generator, *, max_tokens: int = CONTEXT_TOKENS
) -> Requests:
    """Draw requests as in the Azure code trace: short outputs, in bursts."""
    _check("azure_code", n, rate, rng, max_tokens, 64)
    return sample(AZURE_CODE, n, rate, rng, max_tokens)


WORKLOADS: dict[str, Callable[..., Requests]] = {
    "synthetic": synthetic,
    "azure_conversation": azure_conversation,
    "azure_code": azure_code,
}
WORKLOAD_MAX_TOKENS = {
    "synthetic": SYNTHETIC_MAX_TOKENS,
    "azure_conversation": CONTEXT_TOKENS,
    "azure_code": CONTEXT_TOKENS,
}
"""Longest request that each workload draws; nodes reserve KV cache for it by default."""


def _check(
    owner: str, n: int, rate: float, rng: np.random.Generator, max_tokens: int, minimum: int
) -> None:
    _number(owner, "n", n)
    valid.real(owner, "rate", rate, strict=True)
    valid.of_type(owner, "rng", rng, np.random.Generator)
    valid.whole(owner, "max_tokens", max_tokens, minimum=minimum)


def _number(owner: str, field: str, n: int) -> None:
    if valid.whole(owner, field, n, minimum=1) > MAX_REQUESTS:
        raise ValueError(f"{owner}: {field} must be at most {MAX_REQUESTS}, got {n!r}")


def _arrivals(gaps: Array, rate: float) -> Array:
    with np.errstate(over="ignore"):  # `Requests` refuses inf
        return np.asarray(np.cumsum(gaps) / rate)


def sample(
    fit: Fit, n: int, rate: float, rng: np.random.Generator, max_tokens: int
) -> Requests:
    """Draw requests from a fit; draws beyond its limits or `max_tokens` are drawn again."""
    phase = rng.choice(len(fit.gap_weights), n, p=_normalised(fit.gap_weights))
    gaps = rng.standard_exponential(n) * np.array(fit.gap_means)[phase]
    tokens = np.empty((0, 2))
    while len(tokens) < n:
        drawn = _draw_lengths(fit, 2 * (n - len(tokens)) + 16, rng)
        limits = drawn <= (fit.max_prompt, fit.max_output)
        keep = limits.all(axis=1) & (drawn.sum(axis=1) <= max_tokens)
        tokens = np.concatenate([tokens, drawn[keep]])
    prompt, output = tokens[:n].T.astype(np.int64)
    return Requests(_arrivals(gaps, rate), prompt, output)


def _draw_lengths(fit: Fit, n: int, rng: np.random.Generator) -> Array:
    """Draw whole tokens (prompt, output), shape (n, 2), without limits."""
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
    """Scale weights to a sum of 1; stored ones are rounded."""
    return np.array(weights) / sum(weights)
