"""Estimates that are learnt from finished requests: seconds per token, and lengths."""

from dataclasses import dataclass

MAX_RATIO = 2.0**32  # between an estimate and where it started, whatever is reported


class RatioEstimate:
    """A ratio of two decayed sums, such as seconds over tokens.

    Each observation adds to both sums, and earlier ones lose the share `weight` of their
    influence. A long prompt therefore counts more than a short one, whose seconds are mostly
    overhead. The ratio stays within a factor of 2**32 of where it started.

    Parameters
    ----------
    start : float
        The ratio before the first observation.
    typical : float
        Size of the denominator that the starting value stands for.
    weight : float
        In (0, 1].

    Examples
    --------
    Four seconds for 100 tokens where 0.02 s per token was expected, with equal weights.

    >>> per_token_s = RatioEstimate(0.02, typical=100, weight=0.5)
    >>> per_token_s.observe(4.0, 100)
    >>> round(per_token_s.value, 3)
    0.03
    """

    __slots__ = ("_above", "_below", "_start", "_weight", "value")

    def __init__(self, start: float, *, typical: float, weight: float) -> None:
        self._start, self._weight = start, weight
        self._above, self._below = start * typical, typical
        self.value = start

    def observe(self, above: float, below: float) -> None:
        """Add an observation of numerator and denominator; both must be positive."""
        keep = 1 - self._weight
        self._above = keep * self._above + self._weight * above
        self._below = keep * self._below + self._weight * below
        ratio = self._above / self._below
        self.value = min(max(ratio, self._start / MAX_RATIO), self._start * MAX_RATIO)
        self._above = self.value * self._below  # so that a clamped value recovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measurements of a finished request, without the time that it waited in a queue.

    Attributes
    ----------
    prompt_tokens, output_tokens : int
        As counted by the server; 0 if it did not count them. Tokens of a prompt that a cache
        provided are not computed, and belong to neither.
    prompt_s : float or None
        Seconds of the prompt, up to the first output token.
    output_s : float or None
        Seconds of the output tokens.
    busy_s : float or None
        Seconds of both, where they are not known apart.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_s: float | None = None
    output_s: float | None = None
    busy_s: float | None = None


class ServiceEstimate:
    """Seconds of a request on a pipeline, learnt from requests that did not queue.

    Seconds per prompt token and per output token are estimated apart. Where only their sum was
    measured, both change by the ratio of measured to expected seconds.

    Parameters
    ----------
    prompt_token_s, output_token_s : float
        Where the estimates start.
    weight : float
        Weight of the newest request, in (0, 1].
    """

    __slots__ = ("_output", "_prompt")

    def __init__(self, prompt_token_s: float, output_token_s: float, weight: float) -> None:
        self._prompt = RatioEstimate(prompt_token_s, typical=256.0, weight=weight)
        self._output = RatioEstimate(output_token_s, typical=128.0, weight=weight)

    @property
    def prompt_token_s(self) -> float:
        """Seconds per token of a prompt."""
        return self._prompt.value

    @property
    def output_token_s(self) -> float:
        """Seconds per output token."""
        return self._output.value

    def expected_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Return the expected seconds of tokens that do not queue."""
        return prompt_tokens * self._prompt.value + output_tokens * self._output.value

    def observe(self, measured: Measured) -> None:
        """Learn from a finished request; what was not measured teaches nothing."""
        n_prompt, n_output = measured.prompt_tokens, measured.output_tokens
        if measured.busy_s is not None and n_output > 0 and n_prompt > 0:
            ratio = measured.busy_s / self.expected_s(n_prompt, n_output)
            parts = (n_prompt * self._prompt.value, n_output * self._output.value)
            if measured.busy_s > 0:
                self._prompt.observe(ratio * parts[0], n_prompt)
                self._output.observe(ratio * parts[1], n_output)
            return
        if measured.prompt_s is not None and measured.prompt_s > 0 and n_prompt > 0:
            self._prompt.observe(measured.prompt_s, n_prompt)
        if measured.output_s is not None and measured.output_s > 0 and n_output > 0:
            self._output.observe(measured.output_s, n_output)
