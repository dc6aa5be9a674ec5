"""Many networks in arrays: their checks, and threads that share them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray

PARTS_PER_THREAD = 8  # affects speed only: several parts even out the load


def checked_nodes(
    owner: str, node_class: ArrayLike, node_bytes: ArrayLike, n_classes: int
) -> tuple[IntArray, Array]:
    """Return the class and the memory of each node, validated; memory is 0 without a node.

    Parameters
    ----------
    owner : str
        Function that a message names.
    node_class : array_like of int, shape (n_networks, n_tiers, n_nodes)
        Class of each node, or -1 if there is no node. Tiers without nodes must come last.
    node_bytes : array_like that broadcasts to the shape of `node_class`
    n_classes : int

    Raises
    ------
    ValueError, TypeError
        If an array is of the wrong shape or type or out of range.
    """
    classes = valid.wholes(
        owner, "node_class", node_class, (None, None, None), minimum=-1, maximum=n_classes - 1
    )
    if not classes.shape[1]:
        raise ValueError(
            f"{owner}: node_class must hold at least one tier, got shape {classes.shape}"
        )
    has_node: NDArray[np.bool_] = np.any(classes >= 0, axis=2)
    bad: NDArray[np.bool_] = ~has_node[:, 0]
    bad |= np.any(has_node[:, 1:] & ~has_node[:, :-1], axis=1)
    if bad.any():
        network = int(np.argmax(bad))
        tier = int(np.argmin(has_node[network]))
        raise ValueError(
            f"{owner}: node_class must leave no tier without a node before one with, got"
            f" none in tier {tier} of network {network}"
        )
    capacity = valid.reals(owner, "node_bytes", _capacity(node_bytes, classes), classes.shape)
    return classes, capacity


def _capacity(node_bytes: ArrayLike, classes: IntArray) -> ArrayLike:
    """Return the memory of each node, 0 where there is none.

    A value that does not broadcast is returned as it is; the check of its shape rejects it.
    """
    try:
        given = np.asarray(node_bytes)
        return np.where(classes >= 0, given, np.zeros((), given.dtype))
    except ValueError:
        return node_bytes


def checked_rows(
    owner: str, field: str, values: ArrayLike, n_networks: int, shape: tuple[int | None, ...]
) -> Array:
    """Return an array with one row for all networks or a row for each, validated."""
    rows = valid.reals(owner, field, values, (None, *shape))
    if len(rows) not in (1, n_networks):
        raise ValueError(
            f"{owner}: {field} must have 1 or n_networks = {n_networks} rows, got {len(rows)}"
        )
    return rows


def checked_threads(
    owner: str, n_threads: int | None, n_networks: int, networks_per_thread: int
) -> int:
    """Return the number of threads; default: one per core, or fewer for a small number."""
    if n_threads is None:
        n_threads = min(_n_cores(), n_networks // networks_per_thread + 1)
    return valid.whole(owner, "n_threads", n_threads, minimum=1)


def _n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_threads(
    solve_part: Callable[[int, int], None], n_networks: int, n_threads: int
) -> None:
    """Call ``solve_part(first, end)`` for ranges that make up all networks."""
    if n_threads == 1:
        solve_part(0, n_networks)
        return
    n_parts = max(min(n_threads * PARTS_PER_THREAD, n_networks), 1)
    ends = [n_networks * p // n_parts for p in range(n_parts + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(solve_part, ends[:-1], ends[1:]))
