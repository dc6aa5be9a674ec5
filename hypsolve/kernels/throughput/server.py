"""The arrays that the kernels of the fluid model read, and the seconds of an iteration."""

from typing import NamedTuple

import numpy as np

from hypsolve.kernels.jit import bare_inner_kernel

STAGE, PIPELINE, SERIAL = 0, 1, 2  # batching modes, as in `hypsolve.problem.runtime.Batching`
MIN_ITERATION_S = 1e-18
SLACK = 1e-12

# columns of `Server.times`
FIXED, READ, EXPERTS, IDLE, COMPUTE_TOKEN, MEMORY_TOKEN = 0, 1, 2, 3, 4, 5
COMPUTE_CHUNK, MEMORY_CHUNK, CHUNK_TOKENS, LAST_ONLY = 6, 7, 8, 9
MIXED, LINEAR_TOKEN, LINEAR_CHUNK = 10, 11, 12
ALPHA, BETA, SWITCH, GAMMA, DELTA = 13, 14, 15, 16, 17
N_COLUMNS = 18


class Lengths(NamedTuple):
    """Moments of the lengths of requests, as in `hypsolve.problem.serving_records.Lengths`."""

    prompt_tokens: float
    passes: float
    chunks: float
    hold_passes: float
    hold_chunks: float
    hold_prompt_tokens: float


class Targets(NamedTuple):
    """Limits on latencies in seconds, inf for none, and the users of a closed loop."""

    ttft_s: float
    tpot_s: float
    latency_s: float
    users: float
    think_time_s: float


class Server(NamedTuple):
    """A server that batches, on ordered tiers.

    Cut c lies before block c, for c in 0..n_blocks. Stages with equal numbers of blocks of
    every kind have one number, their *content*. Equal nodes of a tier are a group.
    """

    times: np.ndarray  # numbers of a kind of block on a class, (n_classes, n_kinds, N_COLUMNS)
    counts: np.ndarray  # blocks of each kind, (n_contents, n_kinds)
    content: np.ndarray  # of blocks i:j, (n_cuts, n_cuts); -1 unless i < j
    batching: int  # STAGE, PIPELINE or SERIAL
    iteration_s: float  # of the host, for each iteration or batch
    group_start: np.ndarray  # tier k has groups start[k]:start[k + 1], (n_tiers + 1,)
    group_class: np.ndarray  # (n_groups,)
    group_size: np.ndarray  # (n_groups,)
    room: np.ndarray  # requests that fit, 0 if the stage does not, (n_groups, n_contents)
    node_start: np.ndarray  # tier k has nodes start[k]:start[k + 1], (n_tiers + 1,)
    node_group: np.ndarray  # in the order of the nodes, (n_nodes,)
    link_s: np.ndarray  # seconds of a token on the link behind tier k, (n_tiers, n_cuts)
    round_trip_s: np.ndarray  # of the link behind tier k, last one 0, (n_tiers,)
    entry_s: np.ndarray  # seconds to enter at tier k, and of each request, (n_tiers,)
    max_num_seqs: float
    max_tokens: float  # of an iteration
    max_prompt_tokens: float  # of an iteration
    cut_min: np.ndarray  # earliest cut before each tier and after the last: (n_tiers + 1,)
    cut_max: np.ndarray
    min_blocks: np.ndarray  # (n_tiers,)
    max_blocks: np.ndarray  # (n_tiers,)
    lengths: Lengths
    targets: Targets


@bare_inner_kernel
def _one_s(row, n_decode, n_chunks):
    """Return the seconds of a block in an iteration with these contents."""
    tokens = n_decode + n_chunks * row[CHUNK_TOKENS]
    share = 1.0
    if row[LAST_ONLY] == 1.0:
        share = min(1.0, tokens)
    compute = n_decode * row[COMPUTE_TOKEN] + n_chunks * row[COMPUTE_CHUNK]
    memory = share * row[READ] + n_decode * row[MEMORY_TOKEN] + n_chunks * row[MEMORY_CHUNK]
    if row[EXPERTS] > 0.0:
        # expm1 is exact also for few tokens, where 1 - idle ** tokens would lose its digits
        memory -= row[EXPERTS] * np.expm1(tokens * np.log(max(row[IDLE], 1e-300)))
    fixed = row[FIXED]
    if row[ALPHA] + row[BETA] + row[GAMMA] + row[DELTA] > 0.0:
        if row[LAST_ONLY] == 1.0:
            tokens = max(tokens, 1.0)
        if tokens > row[SWITCH]:
            fixed += max(row[GAMMA] + row[DELTA] * tokens, row[ALPHA] + row[BETA] * row[SWITCH])
        else:
            fixed += row[ALPHA] + row[BETA] * tokens
    linear = n_decode * row[LINEAR_TOKEN] + n_chunks * row[LINEAR_CHUNK]
    if n_chunks > 0.0:
        linear += row[MIXED]
    return share * fixed + max(compute, memory) + linear


@bare_inner_kernel
def block_s(row, n_decode, n_chunks):
    """Return the mean seconds of a block; an iteration has a chunk or none up to one.

    One call in a loop, not two calls: LLVM inlines each into every caller of this function.
    """
    seconds, share, chunks = 0.0, 1.0, n_chunks
    if 0.0 < n_chunks < 1.0:
        share, chunks = n_chunks, 1.0
    while True:
        seconds += share * _one_s(row, n_decode, chunks)
        if share == 1.0 or chunks == 0.0:
            return seconds
        share, chunks = 1.0 - share, 0.0


@bare_inner_kernel
def tau(server, node_class, content, n_decode, n_chunks):
    """Return the mean seconds of an iteration of a stage."""
    times, counts = server.times[node_class], server.counts[content]
    seconds = server.iteration_s if server.batching == STAGE else 0.0
    for kind in range(counts.shape[0]):
        if counts[kind] > 0.0:
            seconds += counts[kind] * block_s(times[kind], n_decode, n_chunks)
    return max(seconds, MIN_ITERATION_S)


@bare_inner_kernel
def is_allowed(server, tier, first, end):
    """Return whether a tier may host blocks first:end, if they fit."""
    n = end - first
    return (
        server.cut_min[tier + 1] <= end <= server.cut_max[tier + 1]
        and server.cut_min[tier] <= first <= server.cut_max[tier]
        and server.min_blocks[tier] <= n <= server.max_blocks[tier]
    )


@bare_inner_kernel
def crosses(server, tier, cut):
    """Return whether tokens cross the link behind a tier at a cut."""
    return tier < server.min_blocks.shape[0] - 1 and 0 < cut < server.content.shape[0] - 1
