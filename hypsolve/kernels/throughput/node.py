"""A node under the batching mode ``stage``, by the requests z that start per iteration.

All functions of a node are functions of z: the iteration takes ``t = tau(z (o - 1), z n_c)``,
and the node serves ``x = z / t`` requests per second, which does not fall in z. A node that
serves a given x has the least z with ``z >= x t``.
"""

from hypsolve.kernels.jit import bare_inner_kernel
from hypsolve.kernels.throughput.server import tau


@bare_inner_kernel
def largest_batch(server, room):
    """Return the most requests that may start per iteration."""
    lengths = server.lengths
    batch = min(server.max_num_seqs, room, server.max_tokens)
    z = batch / (lengths.passes + lengths.chunks)
    z = min(z, server.max_tokens / (lengths.prompt_tokens + lengths.passes))
    return min(z, server.max_prompt_tokens / lengths.prompt_tokens)


@bare_inner_kernel
def seconds(server, node_class, content, z):
    """Return the seconds of an iteration in which z requests start."""
    lengths = server.lengths
    return tau(server, node_class, content, z * lengths.passes, z * lengths.chunks)


@bare_inner_kernel
def most(server, group, content):
    """Return the largest rate of a node; 0 if it cannot hold the stage."""
    room = server.room[group, content]
    if room <= 0.0:
        return 0.0
    z = largest_batch(server, room)
    return z / seconds(server, server.group_class[group], content, z)


@bare_inner_kernel
def passes(server, node_class, content, z, t):
    """Return seconds of a decode pass and of a chunk in iterations of t seconds."""
    lengths = server.lengths
    b, k = z * lengths.passes, z * lengths.chunks
    rest = min(1.0, b + k) * t / 2
    decode, chunk = t, t
    for part in range(2):  # one call of tau, which LLVM inlines
        if part == 0 and b < 1.0:
            decode = tau(server, node_class, content, 1.0, k)
        if part == 1 and k < 1.0:
            chunk = tau(server, node_class, content, b, 1.0)
    if content != server.content[0, -1]:
        decode += rest
    return decode, chunk + rest


@bare_inner_kernel
def batch_at(server, node_class, content, x, z_max):
    """Return the least z of a node that serves x requests per second, and its iteration.

    Regula falsi on ``x tau(z) - z`` (the Illinois variant), which is positive below the
    solution and not above it. The ends come first. There is one call of tau, for LLVM inlines
    each of them.
    """
    low, f_low, high, f_high, t_high = 0.0, 0.0, z_max, 0.0, 0.0
    z, side = z_max, 0
    for step in range(102):
        t = seconds(server, node_class, content, z)
        f = x * t - z
        if step == 0:
            f_high, t_high = f, t
            if f >= 0.0:
                break
            z = 0.0
            continue
        if step == 1:
            f_low = f
        elif abs(f) <= 1e-15 * z:
            return z, t
        elif f > 0.0:
            f_high = f_high / 2 if side == 1 else f_high
            low, f_low, side = z, f, 1
        else:
            f_low = f_low / 2 if side == -1 else f_low
            high, f_high, t_high, side = z, f, t, -1
        if high - low <= 1e-15 * high:
            break
        z = (low * f_high - high * f_low) / (f_high - f_low)
        if not low < z < high:
            z = (low + high) / 2
    return high, t_high


@bare_inner_kernel
def kept_load(server, node_class, content, z, elsewhere_s):
    """Return the requests in the KV cache of a node, and its rate, if z start per iteration."""
    lengths = server.lengths
    t = seconds(server, node_class, content, z)
    decode, chunk = passes(server, node_class, content, z, t)
    x = z / t
    return x * (elsewhere_s + lengths.hold_passes * decode + lengths.hold_chunks * chunk), x


@bare_inner_kernel
def memory_rate(server, group, content, elsewhere_s):
    """Return the largest rate of a node if passes spend so many seconds elsewhere."""
    room, c = server.room[group, content], server.group_class[group]
    low, f_low, x_low = 0.0, -room, 0.0
    high, f_high, side = 0.0, 0.0, 0
    z = largest_batch(server, room)
    for step in range(101):
        load, x = kept_load(server, c, content, z, elsewhere_s)
        f = load - room
        if step == 0:
            if f <= 0.0:
                return x
            high, f_high = z, f
        elif abs(f) <= 1e-14 * room:
            return x
        elif f > 0.0:
            f_low = f_low / 2 if side == 1 else f_low
            high, f_high, side = z, f, 1
        else:
            f_high = f_high / 2 if side == -1 else f_high
            low, f_low, x_low, side = z, f, x, -1
        if high - low <= 1e-14 * high:
            break
        z = (low * f_high - high * f_low) / (f_high - f_low)
        if not low < z < high:
            z = (low + high) / 2
    return x_low


@bare_inner_kernel
def memory_share(server, tier, content, elsewhere_s, x):
    """Return the rate for which the nodes of a tier have KV memory, as a share of x."""
    total = 0.0
    for g in range(server.group_start[tier], server.group_start[tier + 1]):
        if server.room[g, content] > 0.0:
            total += server.group_size[g] * memory_rate(server, g, content, elsewhere_s)
    return total / x
