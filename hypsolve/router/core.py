"""HypSched-RT over pipelines: the choice, outstanding work, and health, without any I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hypsolve.problem import validation as valid
from hypsolve.router.estimates import Measured, RatioEstimate, ServiceEstimate
from hypsolve.router.health import Condition, Health
from hypsolve.router.params import RouterParams
from hypsolve.router.pipeline import RoutedPipeline

MAX_TOKENS = 2**40  # of one request: sums of many stay exact


class Ending(StrEnum):
    """End of a request on a pipeline."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The server answered that the request is wrong; it works."""
    FAILED = "failed"
    """By the pipeline's fault, timeouts included."""
    CANCELLED = "cancelled"
    """By the client, or by the router: it stops, or cannot send the request as it is."""


class Why(StrEnum):
    """Why no pipeline takes a request."""

    FULL = "every pipeline has as many requests as it takes"
    DOWN = "no pipeline is up"
    TRIED = "every pipeline that is up was tried"


@dataclass(frozen=True, slots=True)
class Refusal:
    """No pipeline takes the request now.

    Attributes
    ----------
    why : Why
    retry_at_s : float
        When a pipeline that is down may be probed; inf if a request has to end first.
    """

    why: Why
    retry_at_s: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request that was sent to a pipeline and has not ended.

    Attributes
    ----------
    pipeline : int
        Its number, from 0.
    prompt_tokens, output_tokens : int
        Expected.
    probe : int
        Number of the probe of a pipeline that was down; 0 if the request is none.
    """

    pipeline: int
    prompt_tokens: int
    output_tokens: int
    probe: int

    @property
    def is_probe(self) -> bool:
        """Whether the request probes a pipeline that was down."""
        return self.probe > 0


class _State:
    """Mutable state of a pipeline; the sums are those of the tickets that have not ended."""

    __slots__ = (
        "estimate", "health", "n_in_flight", "output_tokens", "prompt_tokens", "seed",
    )  # fmt: skip

    def __init__(self, seed: RoutedPipeline, params: RouterParams) -> None:
        self.seed = seed
        self.estimate = ServiceEstimate(
            seed.prompt_token_s, seed.output_token_s, params.estimate_weight
        )
        self.health = Health(params)
        self.n_in_flight = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    def has_room(self) -> bool:
        limit = self.seed.max_in_flight
        return limit is None or self.n_in_flight < limit

    def outstanding_s(self) -> float:
        work_s = self.estimate.expected_s(self.prompt_tokens, self.output_tokens)
        return work_s / self.seed.concurrency

    def completion_s(self, prompt_tokens: int, output_tokens: int) -> float:
        own_s = self.estimate.expected_s(prompt_tokens, output_tokens)
        return self.outstanding_s() + own_s


class Router:
    """Send each request to the pipeline that is expected to complete it first.

    HypSched-RT [1]_ chooses the pipeline with the smallest

        outstanding expected seconds / concurrency + own expected seconds,

    where outstanding requests were sent there and have not ended; they count in full. Expected
    seconds are computed from the tokens of a request by estimates that finished requests teach
    (`ServiceEstimate`). They hold for outstanding requests, too, so that a pipeline that slows
    down loses load at once. Ties go to the first pipeline. With concurrency 1 this is the rule
    of the paper.

    Outstanding work is kept in whole tokens: it is exactly 0 when all requests have ended.
    A router has no clock, no thread and no lock; seconds come in, and never decrease.

    Parameters
    ----------
    pipelines : sequence of RoutedPipeline
    params : RouterParams, optional

    Raises
    ------
    ValueError, TypeError
        If there is no pipeline, or a name occurs twice.

    References
    ----------
    .. [1] M. Ma et al., "Hyperion", arXiv:2511.14450.

    Examples
    --------
    A request takes 1 s on the fast pipeline, and 3.5 s on the slow one.

    >>> fast = RoutedPipeline(name="fast", prompt_token_s=0.002, output_token_s=0.008)
    >>> slow = RoutedPipeline(name="slow", prompt_token_s=0.007, output_token_s=0.028)
    >>> router = Router([fast, slow])
    >>> tickets = [router.choose(100, 100, now_s=0.0) for _ in range(4)]
    >>> [ticket.pipeline for ticket in tickets]
    [0, 0, 0, 1]
    >>> for ticket in tickets:
    ...     _ = router.end(ticket, Ending.CANCELLED, now_s=1.0)
    >>> router.outstanding_s(0)
    0.0
    """

    def __init__(
        self, pipelines: Sequence[RoutedPipeline], params: RouterParams | None = None
    ) -> None:
        self.params = RouterParams() if params is None else params
        valid.of_type("router", "params", self.params, RouterParams)
        self.pipelines = valid.some("router", "pipelines", pipelines, RoutedPipeline)
        names = [each.name for each in self.pipelines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"router: names of pipelines must differ, got {name!r} again")
        self._states = [_State(each, self.params) for each in self.pipelines]
        self._open: set[Ticket] = set()
        weight = self.params.estimate_weight
        self._output = RatioEstimate(self.params.output_tokens, typical=1.0, weight=weight)
        self._chars = RatioEstimate(self.params.chars_per_token, typical=256.0, weight=weight)

    # --- what is known -----------------------------------------------------------------------

    def n_in_flight(self, pipeline: int) -> int:
        """Return the number of requests of a pipeline that have not ended."""
        return self._states[pipeline].n_in_flight

    def outstanding_tokens(self, pipeline: int) -> tuple[int, int]:
        """Return expected prompt and output tokens of the requests that have not ended."""
        state = self._states[pipeline]
        return state.prompt_tokens, state.output_tokens

    def outstanding_s(self, pipeline: int) -> float:
        """Return the expected seconds of the outstanding requests of a pipeline."""
        return self._states[pipeline].outstanding_s()

    def estimate(self, pipeline: int) -> ServiceEstimate:
        """Return the present estimate of a pipeline."""
        return self._states[pipeline].estimate

    def condition(self, pipeline: int, now_s: float) -> Condition:
        """Return whether a pipeline is up."""
        return self._states[pipeline].health.condition(now_s)

    def expected_output_tokens(self) -> int:
        """Return the mean output of finished requests, for requests that state no limit."""
        return min(max(round(self._output.value), 1), MAX_TOKENS)

    def prompt_tokens(self, n_chars: int) -> int:
        """Return the expected tokens of a prompt of so many characters, at least 1."""
        return min(max(round(min(n_chars / self._chars.value, MAX_TOKENS)), 1), MAX_TOKENS)

    # --- events ------------------------------------------------------------------------------

    def choose(
        self,
        prompt_tokens: int,
        output_tokens: int,
        now_s: float,
        *,
        avoid: Collection[int] = (),
        among: Collection[int] | None = None,
    ) -> Ticket | Refusal:
        """Choose a pipeline for a request, and count the request as outstanding there.

        Parameters
        ----------
        prompt_tokens, output_tokens : int
            Expected.
        now_s : float
        avoid : collection of int
            Pipelines on which the request failed before.
        among : collection of int, optional
            Pipelines to choose from. Default: all.

        Returns
        -------
        Ticket or Refusal
            Pass the ticket to `end` exactly once, however the request ends.
        """
        n_prompt = valid.whole(
            "router", "prompt_tokens", prompt_tokens, minimum=1, maximum=MAX_TOKENS
        )
        n_output = valid.whole(
            "router", "output_tokens", output_tokens, minimum=1, maximum=MAX_TOKENS
        )
        best, least = -1, math.inf
        any_up = any_new = False
        retry_at_s = math.inf
        for p, state in enumerate(self._states):
            if among is not None and p not in among:
                continue
            if not state.health.is_open(now_s):
                retry_at_s = min(retry_at_s, state.health.opens_at_s())
                continue
            any_up = True
            if p in avoid:
                continue
            any_new = True
            if state.has_room():
                completion_s = state.completion_s(n_prompt, n_output)
                if best < 0 or completion_s < least:
                    best, least = p, completion_s
        if best < 0:
            why = Why.FULL if any_new else Why.TRIED if any_up else Why.DOWN
            return Refusal(why, retry_at_s)
        state = self._states[best]
        ticket = Ticket(best, n_prompt, n_output, state.health.begin())
        state.n_in_flight += 1
        state.prompt_tokens += n_prompt
        state.output_tokens += n_output
        self._open.add(ticket)
        return ticket

    def end(
        self,
        ticket: Ticket,
        ending: Ending,
        now_s: float,
        *,
        measured: Measured | None = None,
        is_down: bool = False,
        retry_after_s: float | None = None,
    ) -> bool:
        """Release the outstanding work of a request; learn from it, and judge the pipeline.

        Parameters
        ----------
        ticket : Ticket
        ending : Ending
        now_s : float
        measured : Measured, optional
            Of a completed request.
        is_down : bool
            Whether this one failure is enough for a cooldown.
        retry_after_s : float, optional
            Seconds of cooldown that the server asked for.

        Returns
        -------
        bool
            Whether a cooldown of the pipeline begins.

        Raises
        ------
        ValueError
            If the request has ended before.
        """
        if ticket not in self._open:
            raise ValueError(f"router: a request may end only once, got {ticket} again")
        self._open.remove(ticket)
        state = self._states[ticket.pipeline]
        state.n_in_flight -= 1
        state.prompt_tokens -= ticket.prompt_tokens
        state.output_tokens -= ticket.output_tokens
        if ending is Ending.FAILED:
            return state.health.fail(
                now_s, probe=ticket.probe, is_down=is_down, retry_after_s=retry_after_s
            )
        if ending is Ending.CANCELLED:
            state.health.abandon(ticket.probe)
            return False
        state.health.succeed(ticket.probe)
        if ending is Ending.COMPLETED and measured is not None:
            state.estimate.observe(measured)
            if measured.output_tokens > 0:
                self._output.observe(measured.output_tokens, 1.0)
        return False

    def count_prompt(self, n_chars: int, n_tokens: int) -> None:
        """Learn how many tokens a server counted in a prompt of so many characters."""
        if n_chars > 0 and n_tokens > 0:
            self._chars.observe(n_chars, n_tokens)

    def check(self, pipeline: int, is_well: bool, now_s: float) -> bool:
        """Report a health check of a server; return whether the condition changed."""
        health = self._states[pipeline].health
        was_up = health.condition(now_s) is Condition.UP
        if is_well:
            return health.pass_check(now_s)
        if was_up or health.is_open(now_s):
            health.fail(
                now_s, probe=health.begin(), is_down=True, retry_after_s=None, by_check=True
            )
        return was_up
