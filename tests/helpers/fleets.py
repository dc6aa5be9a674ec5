"""Small fleets for tests of placements."""

import hypsolve as hs

LAN = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)


def machine(name, gpu="rtx-4090", **more):
    """A machine of one GPU, or of `gpus` with NVLink."""
    n = more.pop("gpus", 1)
    links = {"gpus": n, "interconnect": hs.interconnect("nvlink4", gpu)} if n > 1 else {}
    node = hs.Node(name=name, gpu=hs.gpu(gpu), **links)
    return hs.Machine(node=node, site="room", **more)


def fleet(*machines, **more):
    """A fleet of one site."""
    room = hs.Site(name="room", link=LAN)
    return hs.Fleet(name="lab", sites=(room,), machines=machines, **more)


def toy_gpu(name="toy", speed=1.0, memory=1e9):
    """A GPU whose times are easy to check."""
    return hs.GpuProfile(
        name=name, t0_s=1e-3, flops_per_s=1e12 * speed, bytes_per_s=1e11 * speed,
        memory_bytes=memory,
    )  # fmt: skip


def toy_model(n_blocks=6, weight_bytes=100_000_000, kv_bytes=10_000):
    """A model of equal blocks."""
    block = hs.Block(
        kind="layer", weight_bytes=weight_bytes, flops_per_token=1e9,
        kv_bytes_per_token=kv_bytes, output_bytes_per_token=1000,
    )  # fmt: skip
    return hs.Model(name="toy", blocks=(block,) * n_blocks)


def toy_machine(name, speed=1.0, memory=1e9, **more):
    """A machine with a toy GPU."""
    node = hs.Node(name=name, gpu=toy_gpu(f"toy {speed:g} {memory:g}", speed, memory))
    return hs.Machine(node=node, site="room", **more)
