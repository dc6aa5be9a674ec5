"""A node under the batching mode ``stage``, by the requests z that start per iteration.

All functions of a node are functions of z: the iteration takes ``t = tau(z (o - 1), z n_c)``,
and the node serves ``x = z / t`` requests per second, which does not fall in z. A node that
serves a given x has the least z with ``z >= x t``.
"""

from hypsolve.kernels.jit import bare_inner_kernel
from hypsolve.kernels.throughput.server import tau

CLOSE = 1e-14  # roots are found to this share of their value


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
def secant(z, f, z_before, f_before, low, high, step):
    """Return the next trial of a root in low..high, by two trials and their number.

    A secant through the last two trials takes few steps where it starts near the root. The
    middle of the bracket replaces a step that leaves it, and each second of many steps.
    """
    z = z - f * (z - z_before) / (f - f_before) if f != f_before else low
    return z if low < z < high and (step < 8 or step % 2 == 0) else (low + high) / 2


@bare_inner_kernel
def batch_at(server, node_class, content, x, z_max, t_max, guess):
    """Return the least z of a node that serves x requests per second, and its iteration.

    A root of ``x tau(z) - z``, which is positive below the solution and not above it. There is
    one call of tau, for LLVM inlines each of them.

    Parameters
    ----------
    z_max, t_max : float
        Largest z, and its seconds. The node serves x with this batch at the latest.
    guess : float
        Solution of a similar rate; 0 if there is none.
    """
    low, high, t_high = 0.0, z_max, t_max
    z_before, f_before = z_max, x * t_max - z_max
    if f_before >= 0.0:
        return z_max, t_max
    z = guess if 0.0 < guess < z_max else 0.0
    for step in range(120):
        t = seconds(server, node_class, content, z)
        f = x * t - z
        if abs(f) <= CLOSE * z:
            return z, t
        if f > 0.0:
            low = z
        else:
            high, t_high = z, t
        if high - low <= 1e-15 * high:
            break
        after = secant(z, f, z_before, f_before, low, high, step)
        z_before, f_before, z = z, f, after
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
def memory_rate(server, group, content, elsewhere_s, most_rate, guess, n_steps):
    """Return bounds of the largest rate of a node if passes spend so many seconds elsewhere.

    The root of the requests in the KV cache, which rise with z, less those that have room. A
    larger batch than the root's serves at least its rate, and holds each request for at least
    as long, so the room over these seconds is at most the root's rate. With a smaller batch,
    both bounds change places.

    Parameters
    ----------
    most_rate : float
        Rate of the largest batch.
    guess : float
        The z of the first trial.
    n_steps : int
        Trials after which the bounds are returned; they meet after a few.
    """
    room, c = server.room[group, content], server.group_class[group]
    z_max = largest_batch(server, room)
    low, high, x_low, x_high = 0.0, z_max, 0.0, most_rate
    z_before, f_before, z = 0.0, -room, min(guess, z_max)
    for step in range(n_steps):
        load, x = kept_load(server, c, content, z, elsewhere_s)
        f = load - room
        by_room = room / load * x if load > 0.0 else most_rate
        if f > 0.0:
            high, x_high, x_low = z, min(x_high, x), max(x_low, by_room)
        else:
            low, x_low, x_high = z, max(x_low, x), min(x_high, by_room)
        if z == z_max and f <= 0.0:
            return x, x
        if abs(f) <= CLOSE * room or high - low <= 1e-15 * high:
            return x_low, x_low
        is_beyond = f_before < f < 0.0 and z - f * (z - z_before) / (f - f_before) >= z_max
        after = z_max
        if high < z_max or not is_beyond:
            after = secant(z, f, z_before, f_before, low, high, step)
        z_before, f_before, z = z, f, after
    return x_low, x_high
