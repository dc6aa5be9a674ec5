"""The flow shops that the kernels of joint methods schedule and bound."""

from typing import Any, NamedTuple

ROUND_DOWN = 1 - 1e-12  # factor before a time is rounded down to ticks: never a tick too late


class FlowShop(NamedTuple):
    """A hybrid flow shop: stages in series, each with groups of identical nodes; seconds.

    Stage k has groups ``first[k]:first[k + 1]``. Group g has nodes ``slot[g]:slot[g + 1]``.
    """

    service: Any  # (n_requests, n_groups); inf: the group cannot serve the request
    travel: Any  # (n_requests, n_stages), from the end of a stage to the next stage
    release: Any  # (n_requests,), when a request arrives at the first stage
    first: Any  # (n_stages + 1,)
    slot: Any  # (n_groups + 1,)


class DeadlineFlowShop(NamedTuple):
    """A hybrid flow shop in one unit of time, for the exact search; it may have a deadline.

    Stage k has groups ``first[k]:first[k + 1]``. Group g has nodes ``slot[g]:slot[g + 1]``,
    which are identical.
    """

    service: Any  # (n_requests, n_groups); inf: the group cannot serve the request
    travel: Any  # (n_requests, n_stages), from a stage's end to the next; 0 after the last
    release: Any  # (n_requests,), when a request arrives at the first stage
    first: Any  # (n_stages + 1,)
    slot: Any  # (n_groups + 1,)
    alike: Any  # (n_requests,): first request with equal rows of service and travel; -1: none
    deadline: Any  # inf: minimise the sum of completions; else each must be earlier than this


class Ticks(NamedTuple):
    """The times of a `DeadlineFlowShop` in whole ticks of `step`, rounded down."""

    busy: Any  # (n_requests, n_groups): service
    ahead: Any  # (n_requests, n_groups): service and travel
    release: Any  # (n_requests,)
    step: Any
