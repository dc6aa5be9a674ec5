"""Seconds of a batch on a node, in all batching modes."""

from hypsolve.kernels.jit import bare_kernel as kernel
from hypsolve.kernels.jit import inlined


@kernel
def _capped_sum(n, window):
    """Return the sum of min(x, window) over x = 1..n."""
    if n <= window:
        return n * (n + 1) / 2
    return window * (window + 1) / 2 + (n - window) * window


@inlined
def clear(sums):
    """Set the sums of a batch to zero; `batch_s` describes them."""
    for w in range(len(sums)):
        sums[w, 0] = 0.0
        sums[w, 1] = 0.0
        sums[w, 2] = 0.0


@inlined
def add_decode(windows, sums, cached):
    """Add a decode token of a request with so many cached tokens to the sums of a batch."""
    context = cached + 1.0
    for w in range(len(windows)):
        reach = min(context, windows[w])
        sums[w, 0] += reach
        sums[w, 1] += reach
        sums[w, 2] += reach


@inlined
def add_chunk(windows, sums, cached, n_tokens):
    """Add a chunk of a prompt with so many cached tokens to the sums of a batch."""
    for w in range(len(windows)):
        window = windows[w]
        sums[w, 0] += _capped_sum(cached + n_tokens, window) - _capped_sum(cached, window)
        sums[w, 1] += min(cached, window - 1) + n_tokens
        if n_tokens == 1.0:
            sums[w, 2] += min(cached, window - 1) + n_tokens


@inlined
def _all_reduce_s(gpu, part, computed):
    """Return the seconds of one all-reduce of the computed tokens among the GPUs of a node."""
    size = computed * part.collective_bytes
    if size <= gpu.switch_bytes:
        return gpu.small_s + size * gpu.small_s_per_byte
    return gpu.large_s + size * gpu.large_s_per_byte


@inlined
def _linear_s(row, part, computed, pairs, reach, decode_reach):
    """Return the seconds of a block by its coefficients, see `hypsolve.problem.step_costs`."""
    memory_s = row.read_s + row.memory_token_s * computed
    if part.experts_bytes > 0.0:
        memory_s += row.experts_s * (1.0 - part.idle_share**computed)
    fixed_s = row.fixed_s
    if pairs > decode_reach:
        fixed_s += row.mixed_s
    attention_s = row.prompt_pair_s * (pairs - decode_reach)
    attention_s += row.prompt_kv_s * (reach - decode_reach) + row.decode_pair_s * decode_reach
    max_s = max(row.compute_token_s * computed, memory_s)
    return fixed_s + max_s + row.token_s * computed + attention_s


@inlined
def batch_s(setup, span, kind, sums, n_tokens, n_passes):
    """Return the seconds of a batch in a span of blocks at speed 1.

    `n_tokens` are computed, `n_passes` of them yield an output token. `sums` holds, for each
    attention window, the (token, context) pairs, the KV-cache tokens that are read, and those
    of them that sequences with one token read.
    """
    gpu = setup.gpu[kind]
    total_s = 0.0
    for at in range(setup.part_start[span], setup.part_start[span + 1]):
        part = setup.part[at]
        computed = n_passes if part.last_token_only == 1 else n_tokens
        if computed == 0.0:
            continue
        pairs, reach = sums[part.window, 0], sums[part.window, 1]
        flops = part.flops_per_token * computed + part.flops_per_pair * pairs
        seconds = flops / gpu.flops_per_s
        if setup.bandwidth_bound:
            moved = part.always_read_bytes + part.gathered_bytes * computed
            if part.experts_bytes > 0.0:
                moved += part.experts_bytes * (1.0 - part.idle_share**computed)
            kv_bytes = part.kv_bytes * reach * gpu.kv_copies
            moved += kv_bytes + part.activation_bytes * computed
            seconds = gpu.t0_s + max(seconds, moved / gpu.bytes_per_s)
            collectives = part.collectives
            if gpu.is_linear == 1:
                row = setup.cost[kind, at]
                decode_reach = sums[part.window, 2]
                seconds = _linear_s(row, part, computed, pairs, reach, decode_reach)
                collectives = row.collectives
            if gpu.is_group == 1:
                seconds += collectives * _all_reduce_s(gpu, part, computed)
        total_s += part.count * seconds
    return total_s
