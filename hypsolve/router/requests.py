"""Read the lengths of an OpenAI request from its body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_COUNT = 2**30  # of tokens or answers that are believed


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Facts about a request that the router chooses by.

    Attributes
    ----------
    n_chars : int
        Characters of the prompt.
    n_tokens : int or None
        Tokens of the prompt, if it was given as tokens.
    max_tokens : int or None
        Limit on the output tokens of all answers together.
    streams : bool
        Whether the answer is to be streamed.
    """

    n_chars: int
    n_tokens: int | None
    max_tokens: int | None
    streams: bool


def read_request(body: bytes) -> RequestFacts:
    """Read a request; values that a server would refuse are left for it to refuse.

    Raises
    ------
    ValueError
        If the body is no JSON object.

    Examples
    --------
    >>> read_request(b'{"prompt": "Tell me", "max_tokens": 20, "n": 2}')
    RequestFacts(n_chars=7, n_tokens=None, max_tokens=40, streams=False)
    """
    try:
        table = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    if not isinstance(table, dict):
        raise ValueError("the body must be a JSON object")
    return facts_of(table)


def facts_of(table: Mapping[str, Any]) -> RequestFacts:
    """Return the facts of a request from its fields."""
    prompt = table.get("prompt")
    n_tokens = _token_count(prompt)
    n_chars = _chars(prompt) + _chars_of_messages(table.get("messages"))
    limit = _count(table.get("max_completion_tokens")) or _count(table.get("max_tokens"))
    n_answers = _count(table.get("n")) or 1
    return RequestFacts(
        n_chars=n_chars,
        n_tokens=n_tokens,
        max_tokens=None if limit is None else min(limit * n_answers, MAX_COUNT),
        streams=table.get("stream") is True,
    )


def _count(value: Any) -> int | None:
    """Return a whole number from 1 that is no bool; else None."""
    return value if type(value) is int and 1 <= value <= MAX_COUNT else None


def _token_count(prompt: Any) -> int | None:
    """Return the number of tokens of a prompt of token numbers; else None."""
    if not isinstance(prompt, list) or not prompt:
        return None
    if all(type(each) is int for each in prompt):
        return len(prompt)
    if all(isinstance(each, list) for each in prompt):
        return sum(map(len, prompt)) or None
    return None


def _chars(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, list):
        return sum(len(each) for each in prompt if isinstance(each, str))
    return 0


def _chars_of_messages(messages: Any) -> int:
    if not isinstance(messages, list):
        return 0
    n_chars = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            n_chars += len(content)
        elif isinstance(content, list):
            texts = (part.get("text") for part in content if isinstance(part, dict))
            n_chars += sum(len(text) for text in texts if isinstance(text, str))
    return n_chars
