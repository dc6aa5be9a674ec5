"""Options of `hypsolve.simulate`, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from hypsolve.dispatch.policies import POLICIES, Choose
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import MAX_TOKENS
from hypsolve.problem.runtime import Batching, KvAdmission
from hypsolve.problem.solution import Schedule
from hypsolve.simulation.events import Event, early

MAX_NUM_SEQS, CHUNK_TOKENS, KV_BLOCK_TOKENS = 64, 512, 16  # default options


class _FromRuntime:
    def __repr__(self) -> str:
        return "<from the runtime>"


FROM_RUNTIME: Any = _FromRuntime()
"""Default of an option of `hypsolve.simulate` that the runtime decides; None has a meaning."""
_WHOLE = ("max_num_seqs", "kv_block_tokens")  # and, where they are not None:
_WHOLE_OR_NONE = (
    "max_num_batched_tokens", "chunk_tokens", "micro_batch_tokens", "users",
    "expected_output_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `hypsolve.simulate` at token level, which describes them.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names the option.
    """

    batching: Batching = Batching.STAGE
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int | None = None
    chunk_tokens: int | None = CHUNK_TOKENS
    micro_batch_tokens: int | None = None
    kv_admission: KvAdmission = KvAdmission.RESERVE
    kv_block_tokens: int = KV_BLOCK_TOKENS
    iteration_s: float = 0.0
    users: int | None = None
    think_time_s: float = 0.0
    link_contention: bool = False
    events: tuple[Event, ...] = ()  # not yet checked against the network
    record_visits: bool = False
    expected_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("batching", Batching), ("kv_admission", KvAdmission)):
            self._set(name, valid.one_of("simulate", name, getattr(self, name), kind))
        for name in (*_WHOLE, *_WHOLE_OR_NONE):
            value = getattr(self, name)
            if value is not None or name in _WHOLE:
                self._set(name, valid.whole("simulate", name, value, minimum=1))
        for name in ("iteration_s", "think_time_s"):
            self._set(name, early("simulate", name, getattr(self, name)))
        if self.micro_batch_tokens is not None and self.batching is not Batching.SERIAL:
            raise ValueError(
                "simulate: micro_batch_tokens needs batching 'serial', got batching"
                f" {str(self.batching)!r}"
            )
        if self.think_time_s > 0 and self.users is None:
            raise ValueError(
                f"simulate: think_time_s needs users, got think_time_s {self.think_time_s:g}"
                " and no users"
            )
        believed = self.expected_output_tokens
        if believed is not None and believed > MAX_TOKENS:
            raise ValueError(
                f"simulate: expected_output_tokens must be at most 2**40, got {believed!r:.60}"
            )
        for name in ("link_contention", "record_visits"):
            self._set(name, valid.flag("simulate", name, getattr(self, name)))
        if not isinstance(self.events, Iterable):
            raise TypeError(
                f"simulate: events must be Events in a list, got {self.events!r:.60}"
            )
        self._set("events", tuple(self.events))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

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
