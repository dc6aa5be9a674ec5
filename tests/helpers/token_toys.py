"""Made-up deployments with times that can be worked out by hand, and spies on policies."""

import numpy as np

import hypsolve as hs


def gpu(name="gpu", *, seconds_per_flop=1.0, t0_s=0.0, bytes_per_s=1e30, memory_bytes=1e15):
    return hs.GpuProfile(
        name=name,
        t0_s=t0_s,
        flops_per_s=1 / seconds_per_flop,
        bytes_per_s=bytes_per_s,
        memory_bytes=memory_bytes,
    )


def model(n_blocks=1, *, flops_per_token=0.0, kv_bytes=0, output_bytes=0, input_bytes=0):
    """Blocks that take `flops_per_token` flops per token, whatever the context; no weights."""
    block = hs.Block(
        kind="block",
        weight_bytes=0,
        flops_per_token=flops_per_token,
        kv_bytes_per_token=kv_bytes,
        output_bytes_per_token=output_bytes,
    )
    return hs.Model(name="toy", blocks=(block,) * n_blocks, input_bytes_per_token=input_bytes)


def network(tiers, links=None, memory_bytes=None):
    """Tiers of the GPUs given, named a0, a1, ..., b0, ...; instant links by default."""
    instant = hs.Link(bytes_per_s=1e30, latency_s=0.0)
    links = [instant] * (len(tiers) - 1) if links is None else links
    return hs.Network(
        name="toy",
        tiers=tuple(
            hs.Tier(
                name="abcdefgh"[k],
                nodes=tuple(
                    hs.Node(name=f"{'abcdefgh'[k]}{n}", gpu=each, memory_bytes=memory_bytes)
                    for n, each in enumerate(tier)
                ),
                link=links[k] if k < len(tiers) - 1 else None,
            )
            for k, tier in enumerate(tiers)
        ),
    )


def deployment(tiers, requests, blocks=None, links=None, *, memory_bytes=None, **fields):
    """`tiers`: GPUs of each; one block per tier that takes `t0_s` unless another is given."""
    return hs.Deployment(
        model=model(len(tiers)) if blocks is None else blocks,
        network=network(tiers, links, memory_bytes),
        requests=requests,
        **fields,
    )


def even(n_tiers, n_blocks=None):
    """One block per tier, the rest on the last."""
    return hs.Partition((*range(n_tiers), n_tiers if n_blocks is None else n_blocks))


def burst(n, prompt_tokens=1, output_tokens=1, at_s=0.0):
    ones = np.ones(n, np.int64)
    return hs.Requests(np.full(n, at_s), prompt_tokens * ones, output_tokens * ones)


ARRAYS = (
    "arrival_s", "end_s", "first_token_s", "prompt_tokens", "output_tokens", "restarts",
    "lost_tokens", "preemptions", "node", "reached_s", "admitted_s", "left_s", "busy_s",
    "n_iterations", "n_tokens", "kv_capacity_bytes",
)  # fmt: skip


def assert_same(one, other):
    """Assert that two traces are equal bit for bit, with visits if both have them."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert (one.n_visits, one.end_of_run_s) == (other.n_visits, other.end_of_run_s)
    assert (one.series.start_s, one.series.bin_s) == (other.series.start_s, other.series.bin_s)
    for name in ("busy", "n_requests", "n_waiting", "kv_bytes", "n_stranded"):
        np.testing.assert_array_equal(getattr(one.series, name), getattr(other.series, name))
    if one.visits is not None and other.visits is not None:
        for name in one.visits.__slots__:
            np.testing.assert_array_equal(
                getattr(one.visits, name), getattr(other.visits, name), name
            )


def spy_on(policy, seen):
    """Return the policy, which also notes in `seen` what it sees and chooses."""

    def choose(state, request):
        node = policy(state, request)
        seen.append((request, node, state))
        return node

    return choose
