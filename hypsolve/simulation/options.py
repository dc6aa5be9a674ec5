"""Options of `hypsolve.simulate`, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from hypsolve.dispatch.policies import POLICIES, Choose
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import MAX_TOKENS
from hypsolve.problem.solution import Schedule
from hypsolve.simulation.events import Event

MAX_NUM_SEQS, CHUNK_TOKENS = 64, 512  # default options


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `hypsolve.simulate` at token level, which describes them.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names the option.
    """

    max_num_seqs: int = MAX_NUM_SEQS
    chunk_tokens: int | None = CHUNK_TOKENS
    link_contention: bool = False
    events: tuple[Event, ...] = ()  # not yet checked against the network
    record_visits: bool = False
    expected_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "chunk_tokens", "expected_output_tokens"):
            value = getattr(self, name)
            if value is not None or name == "max_num_seqs":
                value = valid.whole("simulate", name, value, minimum=1)
                object.__setattr__(self, name, value)
        believed = self.expected_output_tokens
        if believed is not None and believed > MAX_TOKENS:
            raise ValueError(
                f"simulate: expected_output_tokens must be at most 2**40, got {believed!r:.60}"
            )
        for name in ("link_contention", "record_visits"):
            valid.flag("simulate", name, getattr(self, name))
            object.__setattr__(self, name, bool(getattr(self, name)))
        if not isinstance(self.events, Iterable):
            raise TypeError(
                f"simulate: events must be Events in a list, got {self.events!r:.60}"
            )
        object.__setattr__(self, "events", tuple(self.events))

    def token_level_only(self) -> list[str]:
        """Return the names of options that differ from their defaults and need token level."""
        return [
            field.name
            for field in fields(self)
            if field.name != "record_visits" and getattr(self, field.name) != field.default
        ]


def check_policy(policy: str | Choose | Schedule) -> None:
    """Check that a policy is a name in `POLICIES`, a function, or a schedule.

    Raises
    ------
    ValueError
        If there is no policy of this name.
    TypeError
        If it is something else.
    """
    if isinstance(policy, str):
        valid.known("policy", policy, POLICIES)
    elif not callable(policy) and not isinstance(policy, Schedule):
        raise TypeError(
            "simulate: policy must be a name, a function, or a Schedule (of a Result: its"
            f" schedule), got {policy!r:.60}"
        )


def policy_name(policy: str | Choose | Schedule) -> str:
    """Return the name of a policy for a trace."""
    if isinstance(policy, Schedule):
        return "replayed schedule"
    return policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
