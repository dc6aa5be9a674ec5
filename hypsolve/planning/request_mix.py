"""`RequestMix`: requests of different lengths that a plan is made for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from hypsolve.formats.request_traces import read_requests
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import IntArray
from hypsolve.problem.deployment import Requests
from hypsolve.problem.units import count

N_STRATA = 12
N_REPRESENTATIVES = N_STRATA**2  # requests that splits are compared with, at most
GIVEN = "requests"  # source of those that came from Python
GOLDEN = (math.sqrt(5) - 1) / 2
PERCENTILES = (50, 95, 99)
LENGTHS = ("prompt_tokens", "output_tokens")


class LengthSummary(TypedDict):
    """Summary of the lengths of prompts, or of outputs, in tokens."""

    mean: Annotated[float, "Their mean."]
    std: Annotated[float, "Their standard deviation."]
    p50: Annotated[float, "Half of them are at most so long."]
    p95: Annotated[float, "95 % of them are at most so long."]
    p99: Annotated[float, "99 % of them are at most so long."]
    max: Annotated[float, "The largest."]


class LongestRequest(TypedDict):
    """The longest request: prompt and output together."""

    number: Annotated[int, "Its number in order of arrival, counted from 1."]
    prompt_tokens: Annotated[int, "Tokens of its prompt."]
    output_tokens: Annotated[int, "Tokens of its output."]


class LengthPairs(TypedDict):
    """Lengths of the requests that splits are compared with, in the order of simulations."""

    prompt_tokens: Annotated[list[int], "Tokens of each prompt."]
    output_tokens: Annotated[list[int], "Tokens of each output."]


class RequestMixTable(TypedDict):
    """The requests of a plan, as its JSON states them."""

    source: Annotated[str, "Name of their file; `requests` if they came from Python."]
    n_requests: Annotated[int, "Number of requests."]
    sha256: Annotated[str, "SHA-256 of their arrivals and lengths."]
    rate_per_s: Annotated[
        float | None, "Requests per second as they arrived; null: all at one time."
    ]
    prompt_tokens: LengthSummary
    output_tokens: LengthSummary
    longest: LongestRequest
    representatives: LengthPairs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestMix:
    """Requests of different lengths, and the few of them that splits are compared with.

    Attributes
    ----------
    source : str
        Name of their file, without its folder; ``requests`` if they came from Python.
    requests : Requests or None
        All of them, in order of arrival. None if the mix was read from a plan, which keeps the
        representatives alone.
    representatives : Requests
        At most `N_REPRESENTATIVES` requests that stand for all; see `representatives_of`. Their
        arrivals mean nothing.
    table : RequestMixTable
        Numbers that describe all requests; see `to_dict`.

    Examples
    --------
    >>> import hypsolve as hs
    >>> mix = RequestMix.of(hs.workload("azure_conversation", n_requests=5000, rate_per_s=2.0))
    >>> mix.n_requests, len(mix.representatives), round(mix.rate_per_s)
    (5000, 144, 2)
    """

    source: str
    requests: Requests | None
    representatives: Requests
    table: RequestMixTable

    @classmethod
    def of(cls, given: str | os.PathLike[str] | Requests | RequestMix) -> RequestMix:
        """Return the mix of requests in a file for `hypsolve.read_requests`, or as given.

        Raises
        ------
        ValueError, TypeError
            If the file or a row of it is invalid; the message names both.
        OSError
            If the file cannot be read.
        """
        if isinstance(given, RequestMix):
            return given
        source = GIVEN
        if isinstance(given, str | os.PathLike):
            source, given = Path(given).name, read_requests(given)
        if not isinstance(given, Requests):
            raise TypeError(
                f"plan: requests must be a file or Requests, got {given!r:.60}"
            ) from None
        order = np.argsort(given.arrival_s, kind="stable")
        requests = _take(given, order)
        representatives = representatives_of(requests)
        return cls(
            source=source,
            requests=requests,
            representatives=representatives,
            table=_table(source, requests, representatives),
        )

    @classmethod
    def from_dict(cls, owner: str, table: Any) -> RequestMix:
        """Read a mix from the JSON of a plan, which `to_dict` wrote.

        Parameters
        ----------
        owner : str
            What messages begin with.
        table : dict

        Raises
        ------
        ValueError, TypeError
            If a key is missing or invalid.
        """
        _check_table(owner, table)
        lengths = [table["representatives"][name] for name in LENGTHS]
        return cls(
            source=table["source"],
            requests=None,
            representatives=Requests(np.zeros(len(lengths[0])), *lengths),
            table=table,
        )

    @property
    def n_requests(self) -> int:
        """Number of all requests."""
        return self.table["n_requests"]

    @property
    def rate_per_s(self) -> float:
        """Requests per second as they arrived; nan if all arrived at one time."""
        rate = self.table["rate_per_s"]
        return math.nan if rate is None else rate

    @property
    def mean_tokens(self) -> tuple[int, int]:
        """Mean prompt and output tokens of all requests, rounded."""
        prompt, output = (
            self.table["prompt_tokens"]["mean"],
            self.table["output_tokens"]["mean"],
        )
        return max(round(prompt), 1), max(round(output), 1)

    @property
    def longest_tokens(self) -> int:
        """Prompt and output of the longest request."""
        longest = self.table["longest"]
        return longest["prompt_tokens"] + longest["output_tokens"]

    @property
    def of_source(self) -> str:
        """Words that name the file, with a blank before; empty if there is none."""
        return "" if self.source == GIVEN else f" of {self.source}"

    def describe(self) -> str:
        """Describe the requests and their lengths."""
        words = ", ".join(
            f"{name} {count_tokens(self.table[key]['mean'])}"  # type: ignore[literal-required]
            f" (p95 {count_tokens(self.table[key]['p95'])},"  # type: ignore[literal-required]
            f" max {count_tokens(self.table[key]['max'])})"  # type: ignore[literal-required]
            for name, key in (("prompt", "prompt_tokens"), ("output", "output_tokens"))
        )
        return f"{count(self.n_requests, 'request')}{self.of_source}, mean tokens: {words}"

    def describe_longest(self) -> str:
        """Name the longest request."""
        longest = self.table["longest"]
        return (
            f"request {longest['number']}{self.of_source}, the longest,"
            f" {longest['prompt_tokens']} + {longest['output_tokens']} tokens"
        )

    def describe_representatives(self) -> str:
        """Say which requests splits are compared with."""
        n, requests = len(self.representatives), self.representatives
        if n in (1, self.n_requests):
            return "bounds and largest rates are of these requests, over and over"
        means = requests.prompt_tokens.mean(), requests.output_tokens.mean()
        return (
            f"bounds and largest rates are of {n} of them that stand for all"
            f" ({means[0]:.4g} + {means[1]:.4g} tokens on average), over and over"
        )

    def clipped(self, tokens: int) -> RequestMix:
        """Return a copy in which requests are cut to at most `tokens`, at least 2.

        The output is cut to `tokens` - 1, then the prompt.
        """

        def cut(requests: Requests) -> Requests:
            output = np.minimum(requests.output_tokens, tokens - 1)
            prompt = np.minimum(requests.prompt_tokens, tokens - output)
            return Requests(requests.arrival_s, prompt, output)

        requests = cut(self.representatives if self.requests is None else self.requests)
        chosen = cut(self.representatives)
        return RequestMix(
            source=self.source,
            requests=None if self.requests is None else requests,
            representatives=chosen,
            table=_table(self.source, requests, chosen),
        )

    def to_dict(self) -> RequestMixTable:
        """Return what the JSON of a plan keeps: numbers, and the representatives' lengths."""
        return self.table


def count_tokens(tokens: float) -> str:
    """Write a number of tokens, which may be a mean, in at most four digits or exactly."""
    return f"{tokens:.4g}" if tokens < 1e4 else f"{tokens:.0f}"


def representatives_of(requests: Requests) -> Requests:
    """Return a few requests that stand for all, in an order of which every part does, too.

    Requests are sorted by output and cut into `N_STRATA` parts, each of which is sorted by
    prompt and cut again. Of every part, the request nearest to its means is taken; what it
    lacks of them, the next ones make up. In steps of the golden ratio, they are then put into
    an order in which requests that follow each other come from all parts evenly: a section of a
    simulation sees the same mix as the whole. All requests are taken if they are few, and one
    of requests with equal lengths.

    Parameters
    ----------
    requests : Requests

    Returns
    -------
    Requests
        At most `N_REPRESENTATIVES`; all arrive at time 0.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.arange(1, 10001)
    >>> chosen = representatives_of(Requests(np.zeros(10000), ramp, ramp))
    >>> len(chosen), round(chosen.prompt_tokens.mean()), round(ramp.mean())
    (144, 5000, 5000)
    """
    if same_lengths(requests):
        one = _take(requests, np.zeros(1, np.int64))
        return Requests(np.zeros(1), one.prompt_tokens, one.output_tokens)
    strata = [
        cell
        for part in _parts(np.arange(len(requests)), requests.output_tokens)
        for cell in _parts(part, requests.prompt_tokens)
    ]
    if len(requests) <= N_REPRESENTATIVES:
        chosen = np.concatenate(strata)
    else:
        chosen = _nearest_to_means(requests, strata)
    spread = np.argsort(np.arange(len(chosen)) * GOLDEN % 1, kind="stable")
    found = _take(requests, chosen[spread])
    return Requests(np.zeros(len(found)), found.prompt_tokens, found.output_tokens)


def _parts(which: IntArray, tokens: IntArray) -> list[IntArray]:
    """Cut some requests into parts of equal sizes, sorted by their tokens; none is empty."""
    ordered = which[np.argsort(tokens[which], kind="stable")]
    ends = np.linspace(0, len(ordered), min(N_STRATA, len(ordered)) + 1).round()
    return np.split(ordered, ends[1:-1].astype(np.int64))


def _nearest_to_means(requests: Requests, cells: Sequence[IntArray]) -> IntArray:
    """Return the request of each part that is nearest to the means of the part.

    What the requests chosen so far lack of their parts' tokens, or have too much, is made up by
    the next ones, so that the means over all are nearly those of all requests.
    """
    tokens = np.stack([requests.prompt_tokens, requests.output_tokens]).astype(np.float64)
    scale = tokens.mean(axis=1, keepdims=True)
    lacking = np.zeros((2, 1))
    chosen = []
    for cell in cells:
        share = len(cells) * len(cell) / len(requests)
        wanted = lacking + share * tokens[:, cell].mean(axis=1, keepdims=True)
        at = int((abs(tokens[:, cell] - wanted) / scale).sum(axis=0).argmin())
        lacking = wanted - tokens[:, cell[at], None]
        chosen.append(cell[at])
    return np.array(chosen)


def _take(requests: Requests, which: IntArray) -> Requests:
    return Requests(
        requests.arrival_s[which],
        requests.prompt_tokens[which],
        requests.output_tokens[which],
    )


def _table(source: str, requests: Requests, representatives: Requests) -> RequestMixTable:
    prompt, output = requests.prompt_tokens, requests.output_tokens
    longest = int((prompt + output).argmax())
    span_s = float(np.ptp(requests.arrival_s))
    digest = hashlib.sha256()
    for array in (requests.arrival_s, prompt, output):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "source": source,
        "n_requests": len(requests),
        "sha256": digest.hexdigest(),
        "rate_per_s": (len(requests) - 1) / span_s if span_s else None,
        "prompt_tokens": _summary(prompt),
        "output_tokens": _summary(output),
        "longest": {
            "number": longest + 1,
            "prompt_tokens": int(prompt[longest]),
            "output_tokens": int(output[longest]),
        },
        "representatives": {
            "prompt_tokens": representatives.prompt_tokens.tolist(),
            "output_tokens": representatives.output_tokens.tolist(),
        },
    }


def _summary(tokens: IntArray) -> LengthSummary:
    p50, p95, p99 = np.percentile(tokens, PERCENTILES).tolist()
    mean, std, longest = float(tokens.mean()), float(tokens.std()), float(tokens.max())
    return {"mean": mean, "std": std, "p50": p50, "p95": p95, "p99": p99, "max": longest}


def _check_table(owner: str, table: Any) -> None:
    """Check the JSON of a mix, but for the numbers of its representatives."""
    if not isinstance(table, dict):
        raise TypeError(f"{owner}: requests must be a table, got {table!r:.60}")
    for key in RequestMixTable.__annotations__:
        if key not in table:
            raise ValueError(f"{owner}: requests must have the key {key!r}, lacks it")
    for key in (*LENGTHS, "longest", "representatives"):
        if not isinstance(table[key], dict):
            raise TypeError(f"{owner}: requests.{key} must be a table")
    owner = f"{owner}: requests"
    for name in ("source", "sha256"):
        valid.text(owner, name, table[name])
    valid.whole(owner, "n_requests", table["n_requests"], minimum=1)
    if table["rate_per_s"] is not None:
        valid.real(owner, "rate_per_s", table["rate_per_s"], strict=True)
    for name in LongestRequest.__annotations__:
        valid.whole(f"{owner}.longest", name, table["longest"].get(name), minimum=1)
    for key in LENGTHS:
        for name in LengthSummary.__annotations__:
            least = 0.0 if name == "std" else 1.0
            valid.real(f"{owner}.{key}", name, table[key].get(name), minimum=least)
    found = [table["representatives"].get(name) for name in LENGTHS]
    if not all(isinstance(each, list) and each for each in found):
        raise ValueError(f"{owner}.representatives must hold {' and '.join(LENGTHS)}")


def same_lengths(requests: Requests) -> bool:
    """Return whether all requests have equal lengths."""
    return all(
        bool((tokens == tokens[0]).all())
        for tokens in (requests.prompt_tokens, requests.output_tokens)
    )


def mix_from(owner: str, document: Mapping[str, Any]) -> RequestMix | None:
    """Return the mix of requests that a document states; None if it states none."""
    table = document.get("requests")
    return None if table is None else RequestMix.from_dict(owner, table)
