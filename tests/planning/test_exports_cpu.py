"""Exports of plans with CPUs: no device of a GPU, layers where llama.cpp puts them."""

from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning.exporters import export, not_expressible
from hypsolve.planning.exporters.layout import numbered
from hypsolve.planning.platforms import platform_of, threads_of
from tests.helpers.exports import WIRE, commands, pinned, plan, tier

CPU = replace(hs.gpu("l4"), name="amd-epyc-2-threads-float32")
N_LAYERS = 32  # of Llama-3-8B


def cpu_tier(name, link=None, host=""):
    node = hs.Node(name=name, gpu=replace(CPU, memory_bytes=64 * 2**30), host=host)
    return hs.Tier(name=name, nodes=(node,), link=link)


def exported(tiers, cuts, server="llama.cpp"):
    network = hs.Network(name="n", tiers=tuple(tiers))
    return export(plan("llama-3-8b", pinned(network, cuts)), server)


def layers_on_devices(server):
    """Layers of each device by llama.cpp's rule; those before are the CPU's of llama-server.

    ``i_gpu_start = max(n_layer + 1 - n_gpu_layers, 0)``, and the output layer is the last one.
    """
    n_offloaded = min(int(server["-ngl"]), N_LAYERS + 1)
    start = N_LAYERS + 1 - n_offloaded
    shares = [int(each) for each in server["-ts"].split(",")] if "-ts" in server.flags else [1]
    ends = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    found = [[] for _ in shares]
    for layer in range(start, N_LAYERS + 1):
        part = (layer - start) / n_offloaded
        found[next(i for i, end in enumerate(ends) if end > part)].append(layer)
    return start, [len(each) for each in found]


@pytest.mark.parametrize(
    ("name", "threads"),
    [("amd-epyc-2-threads-float32", 2), ("apple-m1-8-threads-float32", 8),
     ("intel-xeon-1-thread-bfloat16", 1), ("AMD EPYC 7763", None), ("my CPU", None)],
)  # fmt: skip
def test_cpus_are_told_by_the_names_that_measure_gives(name, threads):
    assert platform_of(name) == "cpu"
    assert threads_of(name) == threads


def test_the_cpu_of_one_machine_is_no_device():
    """It would look for CUDA0, and end."""
    (server,) = commands(exported([cpu_tier("desk")], (0, 34)), "llama-server")
    assert server["--device"] == "none" and server["-t"] == "2"
    assert "-ngl" not in server.flags and "CUDA" not in exported([cpu_tier("desk")], (0, 34))


def test_two_machines_without_gpus():
    """The first computes what is not offloaded, the second all that is, with its threads."""
    text = exported([cpu_tier("desk", WIRE), cpu_tier("shelf")], (0, 13, 34))
    (remote,) = commands(text, "ggml-rpc-server")
    assert (remote.where, remote["--device"], remote["-t"]) == ("shelf", "CPU", "2")
    (server,) = commands(text, "llama-server")
    assert server["--device"] == "RPC0" and server["-t"] == "2"
    assert layers_on_devices(server) == (12, [20 + 1])
    assert "-ts" not in text


@pytest.mark.parametrize("cut", [2, 9, 20])
def test_layers_land_where_they_were_planned(cut):
    """A CPU first, then two GPUs of two machines."""
    tiers = [cpu_tier("desk", WIRE), tier("box", "h200", 1, WIRE), tier("rack", "h200")]
    (server,) = commands(exported(tiers, (0, cut, 30, 34)), "llama-server")
    assert server["--device"] == "RPC0,RPC1"
    assert layers_on_devices(server) == (cut - 1, [30 - cut, 3 + 1])


def test_a_cpu_behind_a_gpu_is_an_rpc_server():
    tiers = [tier("box", "h200", 1, WIRE), cpu_tier("desk")]
    text = exported(tiers, (0, 25, 34))
    (remote,) = commands(text, "ggml-rpc-server")
    assert (remote["--device"], remote["-t"]) == ("CPU", "2")
    (server,) = commands(text, "llama-server")
    assert server["--device"] == "CUDA0,RPC0" and "-t" not in server.flags
    assert layers_on_devices(server) == (0, [24, 8 + 1])


def test_a_cpu_takes_no_number_of_the_gpus_beside_it():
    """CUDA does not count it."""
    card = hs.Node(name="card", gpu=hs.gpu("h200"), host="box")
    tiers = (cpu_tier("cpu", WIRE, host="box"), hs.Tier(name="gpu", nodes=(card,)))
    assert numbered(hs.Network(name="n", tiers=tiers)) == {"cpu": 0, "card": 0}
    (server,) = commands(exported(tiers, (0, 5, 34)), "llama-server")
    assert (
        server["--device"] == "CUDA0" and server.variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    )
    assert layers_on_devices(server) == (4, [28 + 1])


def test_what_cannot_run_on_cpus_is_refused():
    network = hs.Network(name="n", tiers=(cpu_tier("desk"),))
    found = plan("llama-3-8b", pinned(network, (0, 34)))
    for server in ("vllm", "sglang"):
        why = not_expressible(found, server)
        assert "runs on cuda, rocm, and desk has amd-epyc-2-threads-float32 (cpu)" in why
    card = hs.Node(name="card", gpu=hs.gpu("h200"), host="box")
    behind = [hs.Tier(name="gpu", nodes=(card,), link=WIRE), cpu_tier("cpu", host="box")]
    with pytest.raises(ValueError, match="computes the first layers alone, and cpu has later"):
        exported(behind, (0, 20, 34))
    twice = [cpu_tier("a", WIRE, host="box"), cpu_tier("b", host="box")]
    with pytest.raises(ValueError, match="box has one CPU, and 2 stages on it"):
        exported(twice, (0, 20, 34))
