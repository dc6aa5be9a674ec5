"""`Health`: whether a pipeline gets requests: cooldown, growing back-off, one probe."""

import math
from enum import StrEnum

from hypsolve.router.params import RouterParams


class Condition(StrEnum):
    """Condition of a pipeline."""

    UP = "up"
    COOLING = "cooling down"
    PROBE = "to be probed"


class Health:
    """Failures of a pipeline and what follows from them; time comes in, there is no clock.

    A pipeline that fails `max_failures` times in a row gets no requests until its cooldown
    ends. Then one request probes it. A success brings it back up; a failure doubles the
    cooldown. While the probe is under way no other request is sent.

    A health check that succeeds brings a pipeline up after its cooldown, or at once if a
    health check began that cooldown. It says nothing of requests: their failures in a row stay
    counted while the pipeline is up, and cooldowns double until a request succeeds.
    """

    __slots__ = (
        "_by_check", "_failures", "_is_up", "_last_s", "_n_probes", "_params", "_probe",
        "_until_s",
    )  # fmt: skip

    def __init__(self, params: RouterParams) -> None:
        self._params = params
        self._failures = 0
        self._is_up = True
        self._by_check = False  # whether a health check began the cooldown
        self._last_s = 0.0  # length of the last cooldown; 0: a request succeeded since
        self._until_s = -math.inf
        self._probe = 0  # the one that is under way; 0: none
        self._n_probes = 0

    def condition(self, now_s: float) -> Condition:
        """Return the condition of the pipeline."""
        if self._is_up:
            return Condition.UP
        return Condition.COOLING if now_s < self._until_s else Condition.PROBE

    def is_open(self, now_s: float) -> bool:
        """Return whether a further request may be sent."""
        if self._is_up:
            return True
        return now_s >= self._until_s and not self._probe

    def opens_at_s(self) -> float:
        """Return when a probe may be sent; inf while one is under way."""
        return math.inf if self._probe else self._until_s

    def begin(self) -> int:
        """Count a request that is sent; return its number if it is a probe, else 0.

        A probe that is overtaken, by a health check that succeeds, counts as any request.
        """
        if self._is_up:
            return 0
        self._n_probes += 1
        self._probe = self._n_probes
        return self._probe

    def _is_probe(self, number: int) -> bool:
        return number > 0 and number == self._probe

    def succeed(self, probe: int) -> None:
        """Count a success.

        One that was sent before the cooldown began does not end it.
        """
        if self._is_probe(probe) or self._is_up:
            self._last_s = 0.0
            self._recover()

    def pass_check(self, now_s: float) -> bool:
        """Count a health check that succeeded; return whether it brings the pipeline up."""
        if self._is_up or (now_s < self._until_s and not self._by_check):
            return False
        self._recover()
        return True

    def _recover(self) -> None:
        self._is_up, self._failures, self._probe = True, 0, 0
        self._until_s = -math.inf

    def abandon(self, probe: int) -> None:
        """Count a request that ended without a judgement; another probe may follow."""
        if self._is_probe(probe):
            self._probe = 0

    def fail(
        self,
        now_s: float,
        *,
        probe: int,
        is_down: bool,
        retry_after_s: float | None,
        by_check: bool = False,
    ) -> bool:
        """Count a failure; return whether a cooldown begins.

        Failures of requests that were sent before a cooldown began do not lengthen it.

        Parameters
        ----------
        probe : int
            As `begin` returned it.
        is_down : bool
            Whether one such failure is enough, as if the server refuses connections.
        retry_after_s : float or None
            Seconds of cooldown that the server asked for; one such failure is enough.
        by_check : bool
            Whether a health check failed, and no request.
        """
        is_probe = self._is_probe(probe)
        if not self._is_up and not is_probe:
            return False
        self._failures += 1
        enough = is_down or retry_after_s is not None
        if not (is_probe or enough or self._failures >= self._params.max_failures):
            return False
        longest = self._params.max_cooldown_s
        wait_s = min(max(2 * self._last_s, self._params.first_cooldown_s), longest)
        self._is_up, self._by_check, self._last_s = False, by_check, wait_s
        asked_s = 0.0 if retry_after_s is None else min(retry_after_s, longest)
        self._until_s = now_s + max(wait_s, asked_s)
        self._probe = 0
        return True
