"""The largest request rates of one model on many networks."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, inner_kernel, threaded_kernel
from hypsolve.kernels.throughput import pipeline_search, stage_search
from hypsolve.kernels.throughput.server import Server


@bare_inner_kernel
def _group_nodes(node_class, node_bytes, at, groups, node_group, first_node):
    """Append the groups of equal nodes of a tier, by class and memory, from index `at` on.

    Returns
    -------
    end : int
        Index behind the last group.
    end_node : int
        Index behind the last node; `node_group` is filled in from `first_node` on.
    """
    group_class, group_bytes, group_size = groups
    end, end_node = at, first_node
    for node in range(len(node_class)):
        c, size = node_class[node], node_bytes[node]
        if c < 0:
            continue
        place = at
        while place < end and (
            group_class[place] < c or (group_class[place] == c and group_bytes[place] < size)
        ):
            place += 1
        if place == end or group_class[place] != c or group_bytes[place] != size:
            for g in range(end, place, -1):
                group_class[g], group_bytes[g] = group_class[g - 1], group_bytes[g - 1]
                group_size[g] = group_size[g - 1]
            for before in range(first_node, end_node):
                if node_group[before] >= place:
                    node_group[before] += 1
            group_class[place], group_bytes[place], group_size[place] = c, size, 0.0
            end += 1
        group_size[place] += 1.0
        node_group[end_node] = place
        end_node += 1
    return end, end_node


@bare_inner_kernel
def _fill_rooms(stage_bytes, held, group_class, group_bytes, n_groups, room):
    """Set the requests that fit on a node of each group beside each stage."""
    weights, kv_bytes = stage_bytes
    held_tokens, resident_tokens, is_whole = held
    for g in range(n_groups):
        c, size = group_class[g], group_bytes[g]
        for content in range(room.shape[1]):
            free = size - weights[c, content]
            tokens = np.inf
            if kv_bytes[c, content] > 0.0:
                tokens = free / kv_bytes[c, content]
            room[g, content] = 0.0
            if free >= -1e-12 * size and tokens >= resident_tokens * (1.0 - 1e-12):
                room[g, content] = tokens / held_tokens
                if is_whole:
                    room[g, content] = np.floor(room[g, content] * (1.0 + 1e-12))


class Work(NamedTuple):
    """Arrays for the server of one network after the other."""

    group_start: np.ndarray
    group_class: np.ndarray
    group_bytes: np.ndarray
    group_size: np.ndarray
    node_start: np.ndarray
    node_group: np.ndarray
    room: np.ndarray
    link_s: np.ndarray
    round_trip_s: np.ndarray


@inner_kernel
def _new_work(model, n_tiers, n_nodes):
    """Return work space for networks of at most so many tiers, and nodes in each."""
    n_cuts, n_contents = model.content.shape[0], model.counts.shape[0]
    return Work(
        np.zeros(n_tiers + 1, np.int64),
        np.zeros(n_tiers * n_nodes, np.int64),
        np.zeros(n_tiers * n_nodes),
        np.zeros(n_tiers * n_nodes),
        np.zeros(n_tiers + 1, np.int64),
        np.zeros(n_tiers * n_nodes, np.int64),
        np.zeros((n_tiers * n_nodes, n_contents)),
        np.zeros((n_tiers, n_cuts)),
        np.zeros(n_tiers),
    )


@inner_kernel
def _server_of(model, stage_bytes, held, nodes, links, network, work):
    """Return the server of a network; its arrays are those of `work`."""
    node_class, node_bytes = nodes
    token_s, round_trip_s, entry_s = links
    n_tiers, n_cuts, used = node_class.shape[1], model.content.shape[0], 0
    group_start, node_start = work.group_start, work.node_start
    groups = work.group_class, work.group_bytes, work.group_size
    for k in range(n_tiers):
        group_start[k + 1], node_start[k + 1] = _group_nodes(
            node_class[network, k],
            node_bytes[network, k],
            group_start[k],
            groups,
            work.node_group,
            node_start[k],
        )
        if node_start[k + 1] > node_start[k]:
            used = k + 1
    n_groups, row = group_start[used], network if len(token_s) > 1 else 0
    _fill_rooms(stage_bytes, held, work.group_class, work.group_bytes, n_groups, work.room)
    for k in range(used):
        for cut in range(n_cuts):
            work.link_s[k, cut] = token_s[row, k, cut] if k < used - 1 else 0.0
        work.round_trip_s[k] = round_trip_s[row, k] if k < used - 1 else 0.0
    return Server(
        model.times,
        model.counts,
        model.content,
        model.batching,
        model.iteration_s,
        group_start[: used + 1],
        work.group_class[:n_groups],
        work.group_size[:n_groups],
        work.room[:n_groups],
        node_start[: used + 1],
        work.node_group[: node_start[used]],
        work.link_s[:used],
        work.round_trip_s[:used],
        entry_s[row, :used],
        model.max_num_seqs,
        model.max_tokens,
        model.max_prompt_tokens,
        model.cut_min[n_tiers - used :],
        model.cut_max[: used + 1],
        model.min_blocks[:used],
        model.max_blocks[:used],
        model.lengths,
        model.targets,
    )


@bare_inner_kernel
def _store(rate, cuts, rates, network, used, n_blocks):
    """Store the rate of a network, and the cuts of the tiers that it does not have."""
    rates[network] = rate
    for k in range(cuts.shape[1]):
        if rate <= 0.0:
            cuts[network, k] = -1
        elif k > used:
            cuts[network, k] = n_blocks


@threaded_kernel
def max_rates_by_stage(model, stage_bytes, held, nodes, links, first, end, cuts, rates):
    """Fill `cuts` and `rates` for networks first..end - 1, under the batching mode ``stage``.

    Parameters
    ----------
    model : Server
        Its arrays of groups, nodes, rooms and links are not read. The limits of tiers and cuts
        are those of a network with nodes in all tiers.
    stage_bytes : tuple of ndarray
        Weights of a stage, and its KV cache per token, both of shape (n_classes, n_contents).
    held : tuple of float, float, bool
        Tokens that a request holds, tokens that a node must have room for, and whether a node
        holds a whole number of requests.
    nodes : tuple of ndarray
        Class and memory of each node, both of shape (n_networks, n_tiers, n_nodes). Class -1
        means no node. The last tiers of a network may be without nodes.
    links : tuple of ndarray
        Seconds of a token on each link at each cut, round trip, and seconds to enter at each
        tier: shapes (n_rows, n_tiers, n_cuts), (n_rows, n_tiers) and (n_rows, n_tiers), with 1
        or n_networks rows. The last link of a network is not read.
    cuts : ndarray of int, shape (n_networks, n_tiers + 1)
        Filled in; -1 if no split carries any rate.
    rates : ndarray, shape (n_networks,)
        Filled in; 0 if no split carries any rate.
    """
    work = _new_work(model, nodes[0].shape[1], nodes[0].shape[2])
    for network in range(first, end):
        server = _server_of(model, stage_bytes, held, nodes, links, network, work)
        used = len(server.min_blocks)
        rate, _ = stage_search.max_rate(server, cuts[network, : used + 1])
        _store(rate, cuts, rates, network, used, model.content.shape[0] - 1)


@threaded_kernel
def max_rates_by_pipeline(model, stage_bytes, held, nodes, links, first, end, cuts, rates):
    """Fill `cuts` and `rates` under ``pipeline`` and ``serial``; see `max_rates_by_stage`."""
    work = _new_work(model, nodes[0].shape[1], nodes[0].shape[2])
    for network in range(first, end):
        server = _server_of(model, stage_bytes, held, nodes, links, network, work)
        used = len(server.min_blocks)
        rate, _ = pipeline_search.max_rate(server, cuts[network, : used + 1])
        _store(rate, cuts, rates, network, used, model.content.shape[0] - 1)
