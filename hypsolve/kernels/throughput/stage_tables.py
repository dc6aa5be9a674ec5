"""Tables of all stages and links at a request rate, under the batching mode ``stage``."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, kernel
from hypsolve.kernels.throughput.node import (
    batch_at,
    largest_batch,
    memory_rate,
    most,
    passes,
)
from hypsolve.kernels.throughput.server import SLACK, crosses, is_allowed


class Tables(NamedTuple):
    """Numbers of stages by tier and content, and of links by tier and cut.

    `most_node` and `most` do not depend on the rate. `fill` sets the others for a rate. Entries
    of stages that no split of this rate contains are not set: those have ``is_set == 0``, and
    their `batch` is that of an earlier rate, from which the next search starts.
    """

    most_node: np.ndarray  # largest rate of a node, (n_groups, n_contents)
    most: np.ndarray  # largest rate of a stage, (n_tiers, n_contents)
    batch: np.ndarray  # requests that start per iteration, (n_groups, n_contents)
    kept_s: np.ndarray  # for which a request holds KV cache because of the node itself
    is_set: np.ndarray  # (n_tiers, n_contents)
    decode_s: np.ndarray  # a decode pass, mean over nodes
    chunk_s: np.ndarray  # a chunk
    waiting: np.ndarray  # tokens of a message before a token
    fits_s: np.ndarray  # seconds elsewhere up to which KV memory is known to suffice
    full_s: np.ndarray  # seconds elsewhere from which it is known not to
    link_decode_s: np.ndarray  # a decode pass on the link behind a tier, (n_tiers, n_cuts)
    link_prompt_s: np.ndarray  # a prompt; inf if the link is too slow for the rate
    link_held_s: np.ndarray  # a prompt, in proportion to the KV cache held
    ahead: np.ndarray  # whether a split reaches a cut before a tier, (n_tiers + 1, n_cuts)
    behind: np.ndarray  # whether a cut before a tier can be completed


@kernel
def new_tables(server):
    """Return tables for a server, with the largest rates of nodes and stages."""
    n_tiers, n_contents = len(server.min_blocks), server.counts.shape[0]
    n_groups, n_cuts = len(server.group_class), server.content.shape[0]
    most_node = np.zeros((n_groups, n_contents))
    most_stage = np.zeros((n_tiers, n_contents))
    for k in range(n_tiers):
        for g in range(server.group_start[k], server.group_start[k + 1]):
            for content in range(n_contents):
                most_node[g, content] = most(server, g, content)
                most_stage[k, content] += server.group_size[g] * most_node[g, content]
    shape = (n_tiers, n_contents)
    links = (n_tiers, n_cuts)
    cuts = (n_tiers + 1, n_cuts)
    return Tables(
        most_node,
        most_stage,
        np.zeros((n_groups, n_contents)),
        np.zeros((n_groups, n_contents)),
        np.zeros(shape, np.int64),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(links),
        np.zeros(links),
        np.zeros(links),
        np.zeros(cuts, np.bool_),
        np.zeros(cuts, np.bool_),
    )


@bare_inner_kernel
def fill(server, tables, x):
    """Set the tables for x requests per second; return whether some split may carry it."""
    tables.is_set[:] = 0
    _fill_links(server, tables, x)
    if not _fill_reach(server, tables, x):
        return False
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    for k in range(n_tiers):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if not tables.ahead[k, i]:
                continue
            for j in range(i + 1, n_cuts):
                content = server.content[i, j]
                if not tables.behind[k + 1, j] or tables.is_set[k, content] == 1:
                    continue
                if is_usable(server, tables, k, i, j, x):
                    fill_stage(server, tables, k, content, x)
    return True


@bare_inner_kernel
def is_usable(server, tables, tier, i, j, x):
    """Return whether a tier may host i:j and its nodes and its link carry the rate."""
    if not is_allowed(server, tier, i, j):
        return False
    if i < j and tables.most[tier, server.content[i, j]] * (1.0 + SLACK) < x:
        return False
    return tables.link_prompt_s[tier, j] < np.inf


@bare_inner_kernel
def _fill_reach(server, tables, x):
    """Set `ahead` and `behind`; return whether there is a split."""
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    ahead, behind = tables.ahead, tables.behind
    ahead[:], behind[:] = False, False
    ahead[0, 0], behind[n_tiers, n_cuts - 1] = True, True
    for k in range(n_tiers):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if ahead[k, i]:
                for j in range(i, min(n_cuts - 1, i + server.max_blocks[k]) + 1):
                    if not ahead[k + 1, j] and is_usable(server, tables, k, i, j, x):
                        ahead[k + 1, j] = True
    for k in range(n_tiers - 1, -1, -1):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if ahead[k, i]:
                for j in range(i, min(n_cuts - 1, i + server.max_blocks[k]) + 1):
                    if behind[k + 1, j] and is_usable(server, tables, k, i, j, x):
                        behind[k, i] = True
                        break
    return behind[0, 0]


@bare_inner_kernel
def _fill_links(server, tables, x):
    for k in range(len(server.min_blocks)):
        for cut in range(server.cut_min[k + 1], server.cut_max[k + 1] + 1):
            fill_link(server, tables, k, cut, x)


@bare_inner_kernel
def fill_link(server, tables, k, cut, x):
    """Set the seconds on the link behind tier k at a cut; inf if it is too slow."""
    tables.link_decode_s[k, cut] = 0.0
    tables.link_prompt_s[k, cut] = 0.0
    tables.link_held_s[k, cut] = 0.0
    if not crosses(server, k, cut):
        return
    lengths = server.lengths
    token_s, round_trip_s = server.link_s[k, cut], server.round_trip_s[k]
    rho = x * (lengths.prompt_tokens + lengths.passes) * token_s
    if rho >= 1.0:
        tables.link_prompt_s[k, cut] = np.inf
        return
    message_s = token_s * lengths.prompt_tokens / lengths.chunks
    wait_s = x * lengths.chunks * message_s**2 / (2.0 * (1.0 - rho))
    tables.link_decode_s[k, cut] = round_trip_s + token_s + wait_s
    tables.link_prompt_s[k, cut] = (
        round_trip_s + lengths.prompt_tokens * token_s + lengths.chunks * wait_s
    )
    tables.link_held_s[k, cut] = (
        round_trip_s + lengths.hold_prompt_tokens * token_s + lengths.hold_chunks * wait_s
    )


@bare_inner_kernel
def fill_stage(server, tables, k, content, x):
    """Set the numbers of a stage; x is at most its largest rate."""
    lengths = server.lengths
    total = tables.most[k, content]
    decode, chunk, waiting, fits = 0.0, 0.0, 0.0, np.inf
    n_holders = 0
    for g in range(server.group_start[k], server.group_start[k + 1]):
        rate = tables.most_node[g, content]
        if rate == 0.0:
            continue
        n_holders += 1
        c, share = server.group_class[g], server.group_size[g] * rate / total
        x_g = min(x * rate / total, rate)
        z_max = largest_batch(server, server.room[g, content])
        z, t = batch_at(server, c, content, x_g, z_max, z_max / rate, tables.batch[g, content])
        tables.batch[g, content] = z
        w, v = passes(server, c, content, z, t)
        decode += share * w
        chunk += share * v
        waiting += share * max(z * lengths.passes - 1.0, 0.0)
        tables.kept_s[g, content] = lengths.hold_passes * w + lengths.hold_chunks * v
        if server.room[g, content] < np.inf:
            fits = min(fits, server.room[g, content] / x_g - tables.kept_s[g, content])
    tables.decode_s[k, content] = decode
    tables.chunk_s[k, content] = chunk
    tables.waiting[k, content] = waiting
    tables.fits_s[k, content] = fits
    # equal nodes have equal shares, so that this limit is exact
    tables.full_s[k, content] = fits if n_holders == 1 else np.inf
    tables.is_set[k, content] = 1


@bare_inner_kernel
def pass_s(server, tables, k, content, cut):
    """Return the seconds of a decode pass in a stage that ends at a cut, with its message."""
    seconds = tables.decode_s[k, content]
    if crosses(server, k, cut):
        seconds += tables.waiting[k, content] * server.link_s[k, cut]
    return seconds


@bare_inner_kernel
def is_roomy(server, tables, k, content, elsewhere_s, x):
    """Return whether a stage has KV memory if passes spend so many seconds elsewhere.

    What is found out narrows `fits_s` and `full_s`.
    """
    elsewhere_s = max(elsewhere_s, 0.0)
    if elsewhere_s <= tables.fits_s[k, content]:
        return True
    if elsewhere_s >= tables.full_s[k, content]:
        return False
    if memory_share(server, tables, k, content, elsewhere_s, x, 1) >= 1.0 - SLACK:
        tables.fits_s[k, content] = elsewhere_s
        return True
    tables.full_s[k, content] = elsewhere_s
    return False


@bare_inner_kernel
def memory_share(server, tables, k, content, elsewhere_s, x, n_steps):
    """Return the rate for which the nodes of a tier have KV memory, as a share of x.

    Parameters
    ----------
    n_steps : int
        Trials for each node, after which bounds of the rate are known. If they do not tell
        whether the share reaches 1, there are as many trials as the exact share needs.
    """
    while True:
        low, high = 0.0, 0.0
        for g in range(server.group_start[k], server.group_start[k + 1]):
            most_rate = tables.most_node[g, content]
            if most_rate == 0.0:
                continue
            x_g = min(x * most_rate / tables.most[k, content], most_rate)
            kept_s = elsewhere_s + tables.kept_s[g, content]
            guess = np.inf
            if kept_s > 0.0:
                guess = tables.batch[g, content] * server.room[g, content] / (x_g * kept_s)
            x_low, x_high = memory_rate(
                server, g, content, elsewhere_s, most_rate, guess, n_steps
            )
            low += server.group_size[g] * x_low
            high += server.group_size[g] * x_high
        if n_steps > 100 or low >= x * (1.0 - SLACK) or high < x * (1.0 - SLACK):
            return low / x
        n_steps = 120


@bare_inner_kernel
def memory_margin(server, tables, k, content, elsewhere_s, x):
    """Return by which share the KV memory of a stage exceeds what a rate needs.

    It is negative if and only if `is_roomy` is False.
    """
    fits_s = tables.fits_s[k, content]
    if fits_s == np.inf:
        return 1.0
    if elsewhere_s <= fits_s or tables.full_s[k, content] == fits_s:
        lengths = server.lengths
        own_s = lengths.hold_passes * tables.decode_s[k, content]
        own_s += lengths.hold_chunks * tables.chunk_s[k, content]
        return (fits_s - elsewhere_s) / (elsewhere_s + own_s)
    return memory_share(server, tables, k, content, elsewhere_s, x, 120) - (1.0 - SLACK)
