"""`RouterParams`: constants of the choice, of the estimates, and of the cooldown."""

from dataclasses import dataclass

from hypsolve.problem import validation as valid


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterParams:
    """Constants of a `Router`.

    Attributes
    ----------
    estimate_weight : float
        Weight of the newest request in the estimates, in (0, 1]. With 0.2, about half of a
        lasting change shows after 3 requests.
    output_tokens : float
        Expected output of a request that states no limit, until requests have finished.
    chars_per_token : float
        Characters of a prompt per token, until servers have counted tokens.
    max_failures : int
        Failures in a row after which a pipeline gets no requests for a while. A refused
        connection or an unhealthy answer counts as so many at once.
    first_cooldown_s, max_cooldown_s : float
        Length of that while; it doubles with each failed probe up to the maximum.

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or of the wrong type.
    """

    estimate_weight: float = 0.2
    output_tokens: float = 256.0
    chars_per_token: float = 4.0
    max_failures: int = 3
    first_cooldown_s: float = 1.0
    max_cooldown_s: float = 60.0

    def __post_init__(self) -> None:
        owner = "RouterParams"
        for name in ("estimate_weight", "output_tokens", "chars_per_token", "first_cooldown_s"):
            number = valid.real(owner, name, getattr(self, name), strict=True)
            object.__setattr__(self, name, number)
        if self.estimate_weight > 1:
            raise ValueError(
                f"{owner}: estimate_weight must be at most 1, got {self.estimate_weight!r}"
            )
        valid.whole(owner, "max_failures", self.max_failures, minimum=1)
        longest = valid.real(
            owner, "max_cooldown_s", self.max_cooldown_s, minimum=self.first_cooldown_s
        )
        object.__setattr__(self, "max_cooldown_s", longest)
