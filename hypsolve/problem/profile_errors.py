"""`ProfileErrors`: how far times by a fitted GPU profile were off."""

from dataclasses import dataclass

from hypsolve.problem import validation as valid

NAMES = ("ttft", "tpot", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileErrors:
    """Mean relative errors of times by a profile that was fitted to a benchmark or to steps.

    Errors are of what the profile was not fitted to; 0.05 is 5 %, and None is unknown.

    Attributes
    ----------
    ttft, tpot : float or None
        Of times to first token, and of times per output token, of a benchmarked server.
    prefill, decode : float or None
        Of the steps of blocks, without a server.
    n_runs : int
        Runs of the benchmark; 0 for steps of blocks.
    model, runtime : str
        What was served, and by which runtime; empty for steps of blocks.
    file : str
        The benchmark.

    Examples
    --------
    >>> found = ProfileErrors(tpot=0.04, n_runs=8, model="llama-3-8b", runtime="vllm")
    >>> found.is_known, found.is_of_server
    (True, True)
    """

    ttft: float | None = None
    tpot: float | None = None
    prefill: float | None = None
    decode: float | None = None
    n_runs: int = 0
    model: str = ""
    runtime: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        for name in NAMES:
            if getattr(self, name) is not None:
                valid.real("profile errors", name, getattr(self, name))
        valid.whole("profile errors", "n_runs", self.n_runs)

    @property
    def is_of_server(self) -> bool:
        """Whether the profile was fitted to the benchmark of a server."""
        return bool(self.runtime)

    @property
    def is_known(self) -> bool:
        """Whether an error is known of what the profile was not fitted to."""
        return any(getattr(self, name) is not None for name in NAMES)
