"""The chain of least KV time within latency targets: labels with Pareto dominance.

A label is a chain of the first tiers, up to a cut: seconds of a decode pass so far (D), of the
prompt (P), of the prompt in proportion to the KV cache (G), and the largest chunk (V). The time
for which KV cache is held is ``hold_passes D + G``. All four only grow along a chain, and every
limit and the objective grow in them. A label that is nowhere below another one at its cut is
therefore dropped, and so is a label that misses a limit even if its rest is the shortest in
each number by itself.
"""

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel, inner_kernel, kernel
from hypsolve.kernels.throughput.chain import is_open, latency_limit
from hypsolve.kernels.throughput.stage_tables import pass_s

DECODE, PROMPT, HELD, CHUNK = 0, 1, 2, 3


@bare_inner_kernel
def add_step(server, tables, k, i, j, label):
    """Add a stage i:j of tier k and the link behind it to a label."""
    n_cuts = server.content.shape[0]
    if i < j:
        content = server.content[i, j]
        chunk_s = tables.chunk_s[k, content]
        label[DECODE] += pass_s(server, tables, k, content, j)
        label[PROMPT] += chunk_s
        label[HELD] += chunk_s
        if i == 0:
            label[PROMPT] += server.entry_s[k]
        if server.lengths.chunks > 1.0:
            label[CHUNK] = max(label[CHUNK], chunk_s)
    if 0 < j < n_cuts - 1:
        label[DECODE] += tables.link_decode_s[k, j]
        label[PROMPT] += tables.link_prompt_s[k, j]
        label[HELD] += tables.link_held_s[k, j]


@bare_inner_kernel
def _is_step(server, tables, k, i, j, held_s, x):
    if not (tables.behind[k + 1, j] and tables.link_prompt_s[k, j] < np.inf):
        return False
    return is_open(server, tables, k, i, j, held_s, x)


@inner_kernel
def _rests(server, tables, held_s, x):
    """Return the least seconds that each number still grows by behind a cut."""
    n_tiers, n_cuts = len(server.min_blocks), server.content.shape[0]
    rest = np.full((n_tiers + 1, n_cuts, 4), np.inf)
    rest[n_tiers, n_cuts - 1] = 0.0
    step = np.zeros(4)
    for k in range(n_tiers - 1, -1, -1):
        for i in range(server.cut_min[k], server.cut_max[k] + 1):
            if not tables.behind[k, i]:
                continue
            first = max(i + server.min_blocks[k], server.cut_min[k + 1])
            last = min(n_cuts - 1, i + server.max_blocks[k], server.cut_max[k + 1])
            for j in range(first, last + 1):
                if rest[k + 1, j, DECODE] == np.inf:
                    continue
                if not _is_step(server, tables, k, i, j, held_s, x):
                    continue
                step[:] = 0.0
                add_step(server, tables, k, i, j, step)
                for f in range(3):
                    rest[k, i, f] = min(rest[k, i, f], rest[k + 1, j, f] + step[f])
                rest[k, i, CHUNK] = min(rest[k, i, CHUNK], max(rest[k + 1, j, CHUNK], step[3]))
    return rest


@bare_inner_kernel
def _is_hopeless(server, label, rest, limit):
    """Return whether a label misses a limit with the best rest."""
    slack, lengths, targets = 1.0 + 1e-12, server.lengths, server.targets
    decode = label[DECODE] + rest[DECODE]
    ttft = label[PROMPT] + rest[PROMPT]
    ttft += (lengths.chunks - 1.0) * max(label[CHUNK], rest[CHUNK])
    if lengths.passes > 0.0 and decode > targets.tpot_s * slack:
        return True
    if ttft > targets.ttft_s * slack:
        return True
    return ttft + lengths.passes * decode > limit + 1e-12 * abs(limit)


@kernel
def shortest_within_targets(server, tables, held_s, x, cuts):
    """Return the least KV time over chains of open stages that meet all targets.

    Parameters and result are those of `chain.shortest_chain`.
    """
    n_tiers = len(server.min_blocks)
    rest = _rests(server, tables, held_s, x)
    limit = latency_limit(server, x)
    values = np.zeros((1024, 4))
    at = np.zeros((1024, 2), np.int64)  # cut, label before
    starts = np.zeros(n_tiers + 2, np.int64)
    starts[1] = n_labels = np.int64(1)  # numba compiles callees for a literal 1, too
    label = np.zeros(4)
    for k in range(n_tiers):
        for j in range(server.cut_min[k + 1], server.cut_max[k + 1] + 1):
            if rest[k + 1, j, DECODE] == np.inf:
                continue
            first = n_labels  # labels of this cut begin here
            for before in range(starts[k], starts[k + 1]):
                i = at[before, 0]
                if not server.min_blocks[k] <= j - i <= server.max_blocks[k]:
                    continue
                if not _is_step(server, tables, k, i, j, held_s, x):
                    continue
                label[:] = values[before]
                add_step(server, tables, k, i, j, label)
                if _is_hopeless(server, label, rest[k + 1, j], limit):
                    continue
                n_labels = _insert(values, at, first, n_labels, label, j, before)
                if n_labels == len(values):
                    values = np.concatenate((values, np.zeros_like(values)))
                    at = np.concatenate((at, np.zeros_like(at)))
        starts[k + 2] = n_labels
    return _best(server, values, at, starts, cuts)


@bare_inner_kernel
def _copy(values, at, source, target):
    """Copy a label; assignments of whole rows would allocate."""
    for f in range(4):
        values[target, f] = values[source, f]
    at[target, 0], at[target, 1] = at[source, 0], at[source, 1]


@bare_inner_kernel
def _insert(values, at, first, n_labels, label, cut, before):
    """Add a label to those of a cut unless one dominates it; return their new end."""
    kept = first
    for other in range(first, n_labels):
        if (
            values[other, 0] <= label[0]
            and values[other, 1] <= label[1]
            and values[other, 2] <= label[2]
            and values[other, 3] <= label[3]
        ):
            return n_labels
    for other in range(first, n_labels):
        if not (
            label[0] <= values[other, 0]
            and label[1] <= values[other, 1]
            and label[2] <= values[other, 2]
            and label[3] <= values[other, 3]
        ):
            _copy(values, at, other, kept)
            kept += 1
    for f in range(4):
        values[kept, f] = label[f]
    at[kept, 0], at[kept, 1] = cut, before
    return kept + 1


@bare_inner_kernel
def _best(server, values, at, starts, cuts):
    """Return the least KV time of the complete labels, and fill in its cuts."""
    n_tiers = len(server.min_blocks)
    best, chosen = np.inf, -1
    for label in range(starts[n_tiers], starts[n_tiers + 1]):
        held = server.lengths.hold_passes * values[label, DECODE] + values[label, HELD]
        if held < best:
            best, chosen = held, label
    for k in range(n_tiers, -1, -1):
        if chosen < 0:
            break
        cuts[k] = at[chosen, 0]
        chosen = at[chosen, 1]
    return best
