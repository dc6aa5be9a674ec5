"""Conversion of users' tables to the canonical arrays of an `Instance`."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray


def table_or_none(field: str, values: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Validate an optional table."""
    return None if values is None else valid.reals("instance", field, values, shape)


def mean_or_given(table: Array, given: Array | None) -> Array:
    """Return the table of the reference request: `given`, or the mean over the requests."""
    if given is not None:
        return given
    return table[0] if len(table) == 1 else table.mean(axis=0)


def one_length(**tables: Array) -> int:
    """Return the number of requests, given tables with a row per request or a single row.

    Raises
    ------
    ValueError
        If two tables have different numbers of rows above 1.
    """
    n_requests = max(map(len, tables.values()))
    for field, table in tables.items():
        if len(table) not in (1, n_requests):
            raise ValueError(
                f"instance: {field} must have 1 or n_requests = {n_requests} rows,"
                f" got {len(table)}"
            )
    return n_requests


def one_row_if_equal(table: Array) -> Array:
    """Return the first row alone if all rows are equal, else the table."""
    return table[:1] if len(table) > 1 and (table == table[:1]).all() else table


def check_occupancy(transfer: Array, occupancy: Array) -> None:
    """Raise ValueError where a link is busy for longer than its transfer takes."""
    more = occupancy > transfer  # 1 row broadcasts against n_requests
    if more.any():
        where = tuple(int(i) for i in np.argwhere(more)[0])
        got = float(np.broadcast_to(occupancy, more.shape)[where])
        most = float(np.broadcast_to(transfer, more.shape)[where])
        raise ValueError(
            f"instance: occupancy_s must be at most transfer_s = {most!r}, got {got!r} at index"
            f" {list(where)}"
        )


def merge_kinds(
    field: str, kind: ArrayLike, *tables: Array | None
) -> tuple[IntArray, IntArray]:
    """Merge kinds with equal columns, and number kinds in order of first use.

    Returns
    -------
    kind : ndarray of int
        The new kind of each block or cut.
    columns : ndarray of int
        For each new kind, a column of `tables` that holds its numbers.
    """
    present = [t for t in tables if t is not None]
    n_kinds = present[0].shape[-1]
    given = valid.reals("instance", field, kind, (None,))
    if not given.size or (given % 1).any() or given.max() >= n_kinds:
        raise ValueError(f"instance: {field} must hold whole numbers below {n_kinds}")
    index = given.astype(np.int64)
    rows = np.concatenate([t.reshape(-1, n_kinds) for t in present])
    rows = rows[
        (rows != rows[:, :1]).any(axis=1)
    ]  # rows of equal numbers cannot tell kinds apart
    if rows.size:
        keys = np.ascontiguousarray(rows.T)
        keys = keys.view(np.dtype((np.void, keys.shape[1] * keys.itemsize))).ravel()
        _, columns, same = np.unique(keys, return_index=True, return_inverse=True)
    else:
        columns, same = np.zeros(1, np.int64), np.zeros(n_kinds, np.int64)
    used, first, number = np.unique(same.ravel()[index], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[number.ravel()], columns[used[order]]


def count_tiers(tiers: Sequence[Sequence[tuple[int, float]]]) -> int:
    """Return the number of tiers in ``[[(class, memory_bytes), ...], ...]``."""
    if not isinstance(tiers, Sequence) or isinstance(tiers, str):
        raise TypeError(f"instance: tiers must be a list of tiers, got {tiers!r:.60}")
    if not tiers:
        raise ValueError("instance: tiers must hold at least one tier, got none")
    return len(tiers)


def nodes(
    tiers: Sequence[Sequence[tuple[int, float]]],
) -> tuple[IntArray, IntArray, Array]:
    """Return tier, class and memory of every node."""
    node_tier, node_class, node_bytes = [], [], []
    for k, tier in enumerate(tiers):
        if not isinstance(tier, Sequence) or isinstance(tier, str):
            raise TypeError(f"instance: tier {k} must be a list of nodes, got {tier!r:.60}")
        if not tier:
            raise ValueError(f"instance: tier {k} must hold at least one node, got none")
        for j, node in enumerate(tier):
            owner = f"instance: tier {k} node {j}"
            try:
                kind, memory_bytes = node
            except (TypeError, ValueError):
                raise ValueError(
                    f"{owner} must be (class, memory_bytes), got {node!r:.60}"
                ) from None
            node_tier.append(k)
            node_class.append(valid.whole(owner, "class", kind))
            node_bytes.append(valid.real(owner, "memory_bytes", memory_bytes))
    return np.array(node_tier), np.array(node_class), np.array(node_bytes)


def limits(
    field: str, values: Sequence[int] | None, n_tiers: int, n_blocks: int, default: int
) -> IntArray:
    """Return a whole number per tier; a number above n_blocks means n_blocks.

    A minimum above n_blocks becomes n_blocks + 1, which no stage can reach.
    """
    if values is None:
        return np.full(n_tiers, default)
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
        raise TypeError(
            f"instance: {field} must be a list of whole numbers, got {values!r:.60}"
        )
    if len(values) != n_tiers:
        raise ValueError(f"instance: {field} must have {n_tiers} entries, got {len(values)}")
    checked = [valid.whole("instance", f"{field}[{k}]", v) for k, v in enumerate(values)]
    return np.array([min(v, n_blocks + (field == "min_blocks")) for v in checked])


def cut_limits(
    pinned: Mapping[int, int] | None, n_tiers: int, n_blocks: int
) -> tuple[IntArray, IntArray]:
    """Return the limits of each cut that pinned blocks impose.

    A block on tier k has cut k at or before it and cut k + 1 behind it.
    """
    cut_min, cut_max = np.zeros(n_tiers + 1, np.int64), np.full(n_tiers + 1, n_blocks)
    cut_max[0], cut_min[-1] = 0, n_blocks
    if pinned is None:
        return cut_min, cut_max
    if not isinstance(pinned, Mapping):
        raise TypeError(f"instance: pinned must map blocks to tiers, got {pinned!r:.60}")
    for block, tier in pinned.items():
        if valid.whole("instance", "pinned block", block) >= n_blocks:
            raise ValueError(f"instance: pinned block must be below {n_blocks}, got {block}")
        if valid.whole("instance", f"pinned[{block}]", tier) >= n_tiers:
            raise ValueError(f"instance: pinned[{block}] must be below {n_tiers}, got {tier}")
        cut_max[tier] = min(cut_max[tier], block)
        cut_min[tier + 1] = max(cut_min[tier + 1], block + 1)
    return cut_min, cut_max
