"""What the kernels of joint methods read: the stages of one partition as a flow shop."""

from typing import Any, NamedTuple

ROUND_DOWN = 1 - 1e-12  # before a time becomes a tick: not one too late


class FlowShop(NamedTuple):
    """A hybrid flow shop: stages in a row, each with groups of identical nodes; seconds.

    Stage k has groups ``first[k]:first[k + 1]``. Group g has nodes ``slot[g]:slot[g + 1]``.
    """

    service: Any  # (n_requests, n_groups); inf: the group cannot serve the request
    travel: Any  # (n_requests, n_stages), from the end of a stage to the next stage
    release: Any  # (n_requests,), when a request arrives at the first stage
    first: Any  # (n_stages + 1,)
    slot: Any  # (n_groups + 1,)


class Shop(NamedTuple):
    """See `hypsolve.kernels.subgradient`; times in one unit."""

    service: Any  # (n_requests, n_groups)
    lag: Any  # (n_requests, n_stages), 0 in the last column
    release: Any  # (n_requests,)
    first: Any  # (n_stages + 1,)
    slot: Any  # (n_groups + 1,)
    alike: Any  # (n_requests,): the first request with the same rows of service and lag
    deadline: Any  # inf: the sum of completions counts; else that each is less than this


class Ticks(NamedTuple):
    """The shop's times in whole ticks of `step`, rounded down."""

    busy: Any  # (n_requests, n_groups): service
    ahead: Any  # (n_requests, n_groups): service and lag
    release: Any  # (n_requests,)
    step: Any
