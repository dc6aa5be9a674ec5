"""`BenchmarkRun`: what a benchmark measured under one load."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRun:
    """Mean times under a closed loop of users, or of a single sequence.

    Attributes
    ----------
    label : str
        Where the file has it.
    model : str
        As the file names it; empty if it does not.
    prompt_tokens, output_tokens : float
        Means over the requests.
    users : float
        Requests under way at once, on average.
    cached_tokens : float
        Tokens in the KV cache of each sequence before.
    ttft_s, tpot_s : float or None
        Mean time to first token, and mean time per later token, in seconds; None if unknown.
    chunk_tokens : float or None
        Tokens in which prompts were computed; None: as the runtime does.
    is_kernel_time : bool
        Whether the time to first token is that of the prompt alone, without a server.
    tensor_parallel : int
        GPUs that compute as one.
    weights : str or None
        Format of the weights, as the file names it; None if it does not.
    weight_bytes : float or None
        Size of all weights, as the file states it.
    """

    label: str
    model: str
    prompt_tokens: float
    output_tokens: float
    users: float
    cached_tokens: float = 0.0
    ttft_s: float | None
    tpot_s: float | None
    chunk_tokens: float | None = None
    is_kernel_time: bool = False
    tensor_parallel: int = 1
    weights: str | None = None
    weight_bytes: float | None = None

    def describe(self) -> str:
        """Describe the load in a few words."""
        lengths = f"{self.prompt_tokens:.4g} + {self.output_tokens:.4g} tokens"
        if self.cached_tokens:
            lengths += f" after {self.cached_tokens:.4g}"
        return f"{lengths}, {self.users:.3g} user{'s' * (self.users != 1)}"


@dataclass(slots=True)
class Left:
    """Reasons why runs, or parts of them, are left out."""

    reasons: list[str] = field(default_factory=list)

    def out(self, owner: str, reason: str) -> None:
        """Note that something is left out."""
        self.reasons.append(f"{owner.rpartition(': ')[2]}: {reason}")
