"""`WaitingRoom`: a bounded queue of requests for which no pipeline has room."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass

from hypsolve.router.core import Ending, Refusal, Router, Ticket, Why


class Busy(Exception):
    """The queue is full, or the request waited for too long."""


@dataclass(slots=True, eq=False)
class _Waiting:
    future: asyncio.Future[Ticket | Refusal]
    prompt_tokens: int
    output_tokens: int
    avoid: Collection[int]


class WaitingRoom:
    """Requests in the order of their arrival.

    A request waits only while a pipeline that is up has no room. The room is asked again
    whenever a request ends, a server is checked, or a pipeline may be probed.

    Parameters
    ----------
    router : Router
    max_waiting : int
    timeout_s : float
    """

    def __init__(self, router: Router, max_waiting: int, timeout_s: float) -> None:
        self._router = router
        self._max_waiting, self._timeout_s = max_waiting, timeout_s
        self._waiting: dict[_Waiting, None] = {}  # an ordered set
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def enter(
        self, prompt_tokens: int, output_tokens: int, avoid: Collection[int]
    ) -> Ticket | Refusal:
        """Return a ticket as soon as a pipeline has room, or why none will.

        Raises
        ------
        Busy
            If the queue is full, or the wait too long.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            found = self._router.choose(prompt_tokens, output_tokens, loop.time(), avoid=avoid)
            if isinstance(found, Ticket) or found.why is not Why.FULL:
                return found
        if len(self._waiting) >= self._max_waiting:
            raise Busy("the queue is full")
        mine = _Waiting(loop.create_future(), prompt_tokens, output_tokens, avoid)
        self._waiting[mine] = None
        self.wake()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await mine.future
        except BaseException as error:
            self._give_up(mine)
            if isinstance(error, TimeoutError):
                raise Busy("no pipeline had room in time") from None
            raise

    def _give_up(self, mine: _Waiting) -> None:
        """Leave the queue; release a ticket that came at the same moment."""
        self._waiting.pop(mine, None)
        if mine.future.done() and not mine.future.cancelled():
            found = mine.future.result()
            if isinstance(found, Ticket):
                now_s = asyncio.get_running_loop().time()
                self._router.end(found, Ending.CANCELLED, now_s)
                self.wake()

    def wake(self) -> None:
        """Give tickets to those who wait, in order, as far as there is room."""
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        retry_at_s = math.inf
        for each in list(self._waiting):
            if each.future.done():  # given up
                continue
            found = self._router.choose(
                each.prompt_tokens, each.output_tokens, loop.time(), avoid=each.avoid
            )
            if isinstance(found, Refusal) and found.why is Why.FULL:
                retry_at_s = min(retry_at_s, found.retry_at_s)
                if not each.avoid:
                    break  # nobody after it has more choice
                continue
            del self._waiting[each]
            each.future.set_result(found)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and retry_at_s < math.inf:
            self._timer = loop.call_at(retry_at_s, self.wake)
