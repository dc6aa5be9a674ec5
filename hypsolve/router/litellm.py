"""`HypSchedStrategy`: HypSched-RT as the routing strategy of a `litellm.Router`."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.optional import install
from hypsolve.router.answers import AnswerMeter
from hypsolve.router.core import Ending, Refusal, Router, Ticket
from hypsolve.router.estimates import Measured
from hypsolve.router.params import RouterParams
from hypsolve.router.pipeline import RoutedPipeline
from hypsolve.router.requests import facts_of

try:
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.types.router import CustomRoutingStrategyBase
except ImportError:  # the module can be read and documented; the class says what is missing
    litellm = None

    class CustomLogger:  # type: ignore[no-redef]
        """Stands for the class of LiteLLM."""

    class CustomRoutingStrategyBase:  # type: ignore[no-redef]
        """Stands for the class of LiteLLM."""


KEY = "hypsolve_ticket"  # in the metadata of a request
GRACE_S = 5.0  # in which LiteLLM calls back after the task of a request has ended


@dataclasses.dataclass(slots=True)
class _Sent:
    ticket: Ticket
    since_s: float
    n_chars: int
    was_alone: bool
    task: asyncio.Task[Any] | None
    callback: Callable[[asyncio.Task[Any]], None]


class HypSchedStrategy(CustomRoutingStrategyBase, CustomLogger):
    """Send each request to the deployment that is expected to complete it first.

    Deployments in cooldown, and others that LiteLLM leaves out, get no requests: health is
    LiteLLM's own. Work is released when LiteLLM reports success or failure, when the task of
    the request is cancelled, and in any case after `max_request_s`. Seconds are learnt from
    llama-server's ``timings`` where LiteLLM passes them on. Otherwise, the time to the first
    token counts only for requests that were alone on their deployment, which cannot have
    queued there.

    Only the asynchronous methods of the router can be used.

    Parameters
    ----------
    pipelines : mapping of str to RoutedPipeline
        By the ``id`` in the ``model_info`` of each deployment. `max_in_flight` is left to
        ``max_parallel_requests`` of LiteLLM.
    params : RouterParams, optional
    max_request_s : float
        Longest time that a request counts as outstanding.

    Examples
    --------
    ``HypSchedStrategy({"a": first, "b": second}).install(litellm_router)``
    """

    def __init__(
        self,
        pipelines: Mapping[str, RoutedPipeline],
        params: RouterParams | None = None,
        *,
        max_request_s: float = 1800.0,
    ) -> None:
        if litellm is None:
            raise ValueError(f"strategy: LiteLLM is not installed; {install('litellm')}")
        super().__init__()
        valid.of_type("strategy", "pipelines", pipelines, Mapping)  # type: ignore[type-abstract]
        seeds = [dataclasses.replace(each, max_in_flight=None) for each in pipelines.values()]
        self.router = Router(seeds, params)
        self._index = {name: p for p, name in enumerate(pipelines)}
        self._max_request_s = valid.real(
            "strategy", "max_request_s", max_request_s, strict=True
        )
        self._sent: dict[int, _Sent] = {}  # in the order of sending
        self._numbers = itertools.count(1)
        self._litellm: Any = None

    def install(self, router: Any) -> HypSchedStrategy:
        """Become the strategy of a `litellm.Router`, and hear of the ends of its requests.

        Raises
        ------
        ValueError
            If a deployment of the router has no pipeline here.
        """
        known = ", ".join(self._index)
        for deployment in router.model_list:
            name = deployment["model_info"]["id"]
            if name not in self._index:
                raise ValueError(
                    f"strategy: pipelines must name every deployment, got {known}; none is"
                    f" {name!r}"
                )
        self._litellm = router
        router.set_custom_routing_strategy(self)
        litellm.logging_callback_manager.add_litellm_callback(self)
        return self

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[Any] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Choose the deployment of a request, as LiteLLM asks for it."""
        loop = asyncio.get_running_loop()
        kwargs = {} if request_kwargs is None else request_kwargs
        healthy = await self._litellm.async_get_healthy_deployments(
            model=model,
            request_kwargs=kwargs,
            messages=messages,
            input=input,
            specific_deployment=specific_deployment,
        )
        if isinstance(healthy, dict):
            return healthy
        self._forget_old(loop.time())
        by_pipeline = {self._index[each["model_info"]["id"]]: each for each in healthy}
        facts = facts_of({**kwargs, "messages": messages, "prompt": input})
        n_prompt = facts.n_tokens or self.router.prompt_tokens(facts.n_chars)
        n_output = facts.max_tokens or self.router.expected_output_tokens()
        found = self.router.choose(n_prompt, n_output, loop.time(), among=by_pipeline)
        assert not isinstance(found, Refusal)  # without limits and failures none is refused
        number = next(self._numbers)
        was_alone = self.router.n_in_flight(found.pipeline) == 1
        task = asyncio.current_task()
        callback = functools.partial(self._task_ended, number)
        if task is not None:
            task.add_done_callback(callback)
        self._sent[number] = _Sent(found, loop.time(), facts.n_chars, was_alone, task, callback)
        # a dictionary of its own: a retry must not change what an earlier attempt reports
        kwargs["metadata"] = {**(kwargs.get("metadata") or {}), KEY: number}
        return by_pipeline[found.pipeline]

    def get_available_deployment(self, *_: Any, **__: Any) -> Any:
        """Refuse: nothing would tell when such a request ends."""
        raise ValueError("strategy: use the asynchronous methods of litellm.Router")

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: datetime, end_time: datetime
    ) -> None:
        """Release a request that has ended, and learn from it."""
        number = _number(kwargs)
        sent = self._sent.get(number)
        if sent is None:
            return
        measured = _measured(kwargs, response_obj, start_time, end_time, sent.was_alone)
        self.router.count_prompt(sent.n_chars, measured.prompt_tokens)
        self._release(number, Ending.COMPLETED, measured)

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: datetime, end_time: datetime
    ) -> None:
        """Release a request that failed."""
        self._release(_number(kwargs), Ending.CANCELLED)  # LiteLLM judges the deployment

    def _release(self, number: int, ending: Ending, measured: Measured | None = None) -> None:
        sent = self._sent.pop(number, None)
        if sent is not None:
            if sent.task is not None:  # it may live on and send many requests
                sent.task.remove_done_callback(sent.callback)
            self.router.end(sent.ticket, ending, sent.since_s, measured=measured)

    def _task_ended(self, number: int, task: asyncio.Task[Any]) -> None:
        """Release the request of a task that ended without a report."""
        if number not in self._sent:
            return
        if task.cancelled():
            self._release(number, Ending.CANCELLED)
        elif task.exception() is not None:
            loop = task.get_loop()
            loop.call_later(GRACE_S, self._release, number, Ending.CANCELLED)

    def _forget_old(self, now_s: float) -> None:
        """Release requests that are older than `max_request_s`, such as abandoned streams.

        A timeout within a task, as of `asyncio.timeout`, cancels a request without a report.
        """
        for number, sent in list(self._sent.items()):
            if now_s - sent.since_s <= self._max_request_s:
                return
            self._release(number, Ending.CANCELLED)


def _number(kwargs: Any) -> int:
    """Return the number of a request that LiteLLM reports; 0 if it is not of this strategy."""
    metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
    found = metadata.get(KEY, 0)
    return found if isinstance(found, int) else 0


def _measured(
    kwargs: Any, response: Any, start: datetime, end: datetime, was_alone: bool
) -> Measured:
    """Return what a finished request tells, by the rules of the proxy."""
    meter = AnswerMeter(0.0)
    total_s = (end - start).total_seconds()
    first = kwargs.get("completion_start_time")
    if kwargs.get("stream") and isinstance(first, datetime):
        meter.first_s = min(max((first - start).total_seconds(), 0.0), total_s)
    meter.last_s = total_s
    tables = {}
    for name in ("usage", "timings"):
        value: Any = getattr(response, name, None)
        if hasattr(value, "model_dump"):
            value = value.model_dump()
        if isinstance(value, dict):
            tables[name] = value
    meter.read(tables)
    return meter.measured(no_queue=was_alone)
