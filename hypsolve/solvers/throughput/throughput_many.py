"""`throughput_many`: the best splits of one served model over many networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hypsolve.kernels.warm_up import warm
from hypsolve.problem import instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.solvers.many_networks import (
    checked_nodes,
    checked_rows,
    checked_threads,
    run_in_threads,
)
from hypsolve.solvers.throughput.server_arrays import FAMILIES, server_of, stage_bytes

if TYPE_CHECKING:
    from hypsolve.kernels.throughput import Server

OWNER = "throughput_many"
NETWORKS_PER_THREAD = 10  # affects speed only: fewer are solved before a thread has started


@dataclass(frozen=True, slots=True, eq=False)
class FluidPlans:
    """Best splits of one served model over many networks, with a row per network.

    `throughput_many` returns it.

    Attributes
    ----------
    cuts : ndarray of int, shape (n_networks, n_tiers + 1)
        Tier k hosts blocks ``cuts[:, k]:cuts[:, k + 1]``. A row of -1 means infeasible: no
        split fits, or none meets the targets at any rate.
    fluid_requests_per_s : ndarray, shape (n_networks,)
        The largest request rate that a split carries in the fluid model, to 1e-10 of it; 0
        means infeasible.
    """

    cuts: IntArray
    fluid_requests_per_s: Array

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.fluid_requests_per_s)


def throughput_many(
    instance: ServingInstance,
    node_class: ArrayLike,
    node_bytes: ArrayLike,
    token_s: ArrayLike | None = None,
    round_trip_s: ArrayLike | None = None,
    entry_s: ArrayLike | None = None,
    *,
    n_threads: int | None = None,
) -> FluidPlans:
    """Maximise the fluid request rate of one model over the splits of each of many networks.

    The result is that of ``solve(instance, "throughput_exact")`` for the instance of each
    network, to the last bit, at thousands of networks a second. All networks have the model,
    the lengths of requests and the rules of `instance`: its batching mode, its limits, and its
    targets under the objective ``goodput``. Use `solve` for the objective ``cost``, for next
    best splits, and for a score of the answer by other code. The function is thread-safe.

    Parameters
    ----------
    instance : ServingInstance
        Its blocks, lengths, rules, limits of tiers and kinds of cuts hold for all networks. Its
        nodes are not read.
    node_class : array_like of int, shape (n_networks, n_tiers, n_nodes)
        Class of each node of each tier, or -1 if there is no node, so that networks may differ
        in their numbers of tiers and nodes. Tiers without nodes must come last. Under the
        batching modes ``pipeline`` and ``serial``, the order of the nodes of a tier counts.
    node_bytes : array_like that broadcasts to the shape of `node_class`
        Memory of each node; ignored where there is no node.
    token_s : array_like, shape (n_networks or 1, n_tiers - 1, n_cut_kinds), optional
        Seconds that a token keeps the link behind each tier busy, by the kinds of cuts of
        `instance`. Default: as in `instance`.
    round_trip_s : array_like, shape (n_networks or 1, n_tiers - 1), optional
        Latency of both ways of each link. Default: as in `instance`.
    entry_s : array_like, shape (n_networks or 1, n_tiers - 1), optional
        Seconds that a link before the first stage adds to the time to first token. Default: as
        in `instance`.
    n_threads : int, optional
        Number of threads. Default: one per core, or fewer for a small number of networks.

    Returns
    -------
    FluidPlans

    Raises
    ------
    ValueError, TypeError
        If an argument is of the wrong shape or type or out of range, if the objective is
        ``cost``, or if pinned blocks or limits of tiers do not go with the tiers of a network;
        the message names the argument, the rule and the value.

    Examples
    --------
    Six blocks over three networks of two tiers: a fast and a slow node, two fast nodes, and a
    network of a single tier.

    >>> import hypsolve as hs
    >>> instance = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3], [2e-3]], block_kind=[0] * 6, tiers=[[(0, 1e9)], [(1, 1e9)]],
    ...     prompt_tokens=100, output_tokens=10, max_num_seqs=20,
    ... )
    >>> plans = hs.throughput_many(instance, [[[0], [1]], [[0], [0]], [[1], [-1]]], 1e9)
    >>> plans.cuts.tolist()
    [[0, 4, 6], [0, 3, 6], [0, 6, 6]]
    >>> plans.fluid_requests_per_s.round(3).tolist()  # 2 requests start per iteration
    [500.0, 666.667, 166.667]
    """
    instance = valid.of_type(OWNER, "instance", instance, ServingInstance)
    if instance.objective is ServingObjective.COST:
        raise ValueError(
            f"{OWNER}: objective must be throughput or goodput, got cost:"
            " prices are not carried"
        )
    classes, capacity = checked_nodes(OWNER, node_class, node_bytes, instance.n_classes)
    n_networks, n_tiers, _ = classes.shape
    links = _links(instance, n_networks, n_tiers, token_s, round_trip_s, entry_s)
    n_threads = checked_threads(OWNER, n_threads, n_networks, NETWORKS_PER_THREAD)

    warm(FAMILIES[instance.rules.batching])
    from hypsolve.kernels.throughput import many

    model = _with_limits(instance, server_of(instance), classes)
    sizes = stage_bytes(instance, model.counts, int(model.content[0, -1]))
    lengths = instance.lengths
    held = lengths.held_tokens, lengths.resident_tokens, lengths.alike
    cuts, rates = np.empty((n_networks, n_tiers + 1), np.int64), np.empty(n_networks)

    is_stage = instance.rules.batching is Batching.STAGE
    search = many.max_rates_by_stage if is_stage else many.max_rates_by_pipeline

    def solve_part(first: int, end: int) -> None:
        search(model, sizes, held, (classes, capacity), links, first, end, cuts, rates)

    run_in_threads(solve_part, n_networks, n_threads)
    return FluidPlans(cuts, rates)


def _links(
    instance: ServingInstance,
    n_networks: int,
    n_tiers: int,
    token_s: ArrayLike | None,
    round_trip_s: ArrayLike | None,
    entry_s: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """Return seconds of a token by cut, round trips, and seconds to enter at each tier."""
    links, n_kinds = instance.links, instance.links.token_s.shape[1]
    rows = {}
    for field, given, own, width in (
        ("token_s", token_s, links.token_s, (n_kinds,)),
        ("round_trip_s", round_trip_s, links.round_trip_s, ()),
        ("entry_s", entry_s, links.entry_s, ()),
    ):
        if given is None and n_tiers != instance.n_tiers:
            raise ValueError(
                f"{OWNER}: {field} must be given where node_class has other than the"
                f" {instance.n_tiers} tiers of the instance, got {n_tiers} tiers"
            )
        values = own[None] if given is None else given
        rows[field] = checked_rows(OWNER, field, values, n_networks, (n_tiers - 1, *width))
    n_rows = 1 if all(len(values) == 1 for values in rows.values()) else n_networks
    by_cut = np.zeros((n_rows, n_tiers, instance.n_blocks + 1))
    by_cut[:, :-1] = rows["token_s"][:, :, links.cut_kind]
    round_trips, entries = np.zeros((n_rows, n_tiers)), np.zeros((n_rows, n_tiers))
    round_trips[:, :-1] = rows["round_trip_s"]
    entries[:, 1:] = np.cumsum(rows["entry_s"], axis=1)
    entries += instance.rules.request_s
    return by_cut, round_trips, entries


def _with_limits(instance: ServingInstance, server: Server, classes: IntArray) -> Server:
    """Return a server with the limits of a network that has nodes in all tiers.

    Raises
    ------
    ValueError
        If a network has not all the tiers that pinned blocks or limits of tiers speak of.
    """
    n_tiers, n_blocks = classes.shape[1], instance.n_blocks
    cut_min, cut_max = instance_tables.cut_limits(None, n_tiers, n_blocks)
    if not _is_limited(instance):
        least = 0 if instance.rules.allow_empty else 1
        return server._replace(
            cut_min=cut_min,
            cut_max=cut_max,
            min_blocks=np.full(n_tiers, least),
            max_blocks=np.full(n_tiers, n_blocks),
        )
    used = np.where((classes >= 0).any(axis=2), np.arange(1, n_tiers + 1), 0).max(axis=1)
    other = np.flatnonzero(used != instance.n_tiers)
    if n_tiers != instance.n_tiers or len(other):
        of = f" in network {other[0]}" if n_tiers == instance.n_tiers else " in node_class"
        n = int(used[other[0]]) if n_tiers == instance.n_tiers else n_tiers
        raise ValueError(
            f"{OWNER}: pinned blocks, min_blocks and max_blocks of the instance need networks"
            f" of {instance.n_tiers} tiers, got {n}{of}"
        )
    return server


def _is_limited(instance: ServingInstance) -> bool:
    """Return whether blocks are pinned, or numbers of blocks are limited by tier."""
    limits = instance.limits
    cut_min, cut_max = instance_tables.cut_limits(None, instance.n_tiers, instance.n_blocks)
    return bool(
        (limits.cut_min != cut_min).any()
        or (limits.cut_max != cut_max).any()
        or (limits.min_blocks_given > 0).any()
        or (limits.max_blocks < instance.n_blocks).any()
    )
