"""`AnswerMeter`: what an answer says of its tokens and seconds while it passes."""

from __future__ import annotations

import json
import math
from typing import Any

from hypsolve.router.estimates import Measured

MAX_LINE = 2**20  # bytes of a line of a stream that are kept until it ends
FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # of a stream of server-sent events


class Garbage(ValueError):
    """The answer is not what an OpenAI-compatible server would send."""


class AnswerMeter:
    """Tokens and seconds of one answer.

    Servers state tokens as ``usage``; llama.cpp also states ``timings``, the seconds of its
    computation, in which no queue counts. Without timings, seconds are those that passed here:
    from sending the request to the first event, and from there to the last. Events are counted
    as tokens where a server states no usage.

    Parameters
    ----------
    started_s : float
        When the request was sent.
    """

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.first_s: float | None = None
        self.last_s = started_s
        self.is_done = False  # the stream said so
        self._n_events = 0
        self._line = b""
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def feed(self, chunk: bytes, now_s: float) -> None:
        """Read bytes of a stream of events.

        Raises
        ------
        Garbage
            If they are no such stream; only the beginning is checked.
        """
        self.last_s = now_s
        *lines, rest = (self._line + chunk).split(b"\n")
        self._line = rest if len(rest) <= MAX_LINE else b""
        for line in lines:
            content = line.strip()
            if not content:
                continue
            if self.first_s is None and not content.startswith(FIELDS):
                raise Garbage("the stream holds no events")
            if content.startswith(b"data:"):
                self._event(content[5:].strip(), now_s)

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.is_done = True
            return
        is_first = self.first_s is None
        if is_first or b'"usage"' in data or b'"timings"' in data:
            table = _object(data)
            if table is None and is_first:
                raise Garbage("the first event is no JSON object")
            self.read(table or {})
        if is_first:
            self.first_s = now_s
        self._n_events += 1

    def whole(self, body: bytes, now_s: float) -> None:
        """Read an answer that is not streamed.

        Raises
        ------
        Garbage
            If it is no JSON object.
        """
        self.last_s = now_s
        table = _object(body)
        if table is None:
            raise Garbage("the answer is no JSON object")
        self.read(table)

    def read(self, table: dict[str, Any]) -> None:
        """Read ``usage`` and ``timings`` of an answer or an event, if they are there."""
        for name, kept in (("usage", self._usage), ("timings", self._timings)):
            if isinstance(table.get(name), dict):
                kept.update(table[name])

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt as the server counted them; 0 if it did not."""
        return _count(self._usage.get("prompt_tokens"))

    def measured(self, *, no_queue: bool) -> Measured:
        """Return tokens and seconds without queueing.

        Parameters
        ----------
        no_queue : bool
            Whether the request cannot have waited in the server's own queue. Otherwise seconds
            up to the first token say nothing, unless the server states them.
        """
        n_output = _count(self._usage.get("completion_tokens"))
        times = self._timings
        if (n := _count(times.get("predicted_n"))) and "predicted_ms" in times:
            return Measured(
                prompt_tokens=_count(times.get("prompt_n")),
                output_tokens=n_output or n,
                prompt_s=_seconds(times.get("prompt_ms")),
                output_s=_seconds(times["predicted_ms"]),
            )
        details = self._usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        n_prompt = max(self.prompt_tokens - cached, 0)
        if self.first_s is None:
            busy_s = self.last_s - self.started_s if no_queue else None
            return Measured(prompt_tokens=n_prompt, output_tokens=n_output, busy_s=busy_s)
        n_output = n_output or self._n_events
        more_s = self.last_s - self.first_s
        return Measured(
            prompt_tokens=n_prompt,
            output_tokens=n_output,
            prompt_s=self.first_s - self.started_s if no_queue else None,
            output_s=more_s * n_output / (n_output - 1) if n_output > 1 else None,
        )


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**40 else 0


def _seconds(milliseconds: Any) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1e3 if 0 < milliseconds < math.inf else None
