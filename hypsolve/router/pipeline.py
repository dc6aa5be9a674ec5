"""`RoutedPipeline`: what a router knows of a pipeline before it has served requests."""

from dataclasses import dataclass

from hypsolve.problem import validation as valid


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPipeline:
    """A pipeline as a router sees it.

    Attributes
    ----------
    name : str
        For messages, metrics and the command line.
    prompt_token_s, output_token_s : float
        Expected seconds per token of a prompt and per output token of a request that does not
        queue. They are where the estimates start.
    concurrency : float
        Requests at which the pipeline reaches its largest rate, at least 1: that rate times the
        seconds of one request, by Little's law. Outstanding work is done so many times as fast
        as one request alone. 1 if it serves one request at a time, as the paper assumes.
    max_in_flight : int or None
        Requests that the router sends at once; others wait in the router. None: no limit.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong type.
    """

    name: str
    prompt_token_s: float
    output_token_s: float
    concurrency: float = 1.0
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        owner = f"pipeline {valid.name('pipeline', self.name)!r}"
        for field in ("prompt_token_s", "output_token_s"):
            number = valid.real(owner, field, getattr(self, field), strict=True)
            object.__setattr__(self, field, number)
        at_once = valid.real(owner, "concurrency", self.concurrency, minimum=1.0)
        object.__setattr__(self, "concurrency", at_once)
        if self.max_in_flight is not None:
            valid.whole(owner, "max_in_flight", self.max_in_flight, minimum=1)
