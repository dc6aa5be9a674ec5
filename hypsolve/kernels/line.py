"""What the kernels that bound and schedule many requests read: the stages of one partition."""

from typing import Any, NamedTuple


class Line(NamedTuple):
    """Stages in a row, each with groups of identical nodes; times in seconds.

    Stage k has groups ``first[k]:first[k + 1]``, group g has nodes ``slot[g]:slot[g + 1]``.
    """

    service: Any  # (n_requests, n_groups); inf: cannot
    lag: Any  # (n_requests, n_stages), from a stage's end to the next; of a partition's last: 0
    release: Any  # (n_requests,), when the first stage may start
    first: Any  # (n_stages + 1,)
    slot: Any  # (n_groups + 1,)
