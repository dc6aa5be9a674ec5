"""Files of machines of every kind, for tests of their readers."""

import itertools

LAB = """\
description = "a lab and a cloud"
currency = "EUR"
runtime = {name = "vllm", max_num_seqs = 64}
apart = [["desk", "cards"]]
default_link = {gbps = 0.1, latency_ms = 40, return_latency_ms = 50}
[entry]
lab = 0.75
office = 0.25
[[sites]]
name = "lab"
link = {gbps = 10, latency_ms = 0.1}
[[sites]]
name = "office"
[[sites]]
name = "cloud"
link = {gbps = 25, latency_ms = 0.05}
[[links]]
from = "lab"
to = "cloud"
gbps = 0.8
latency_ms = 12
[[links]]
from = "cloud"
to = "lab"
gbps = 0.4
latency_ms = 15
[[machines]]
name = "desk"
gpu = "mine"
site = "office"
reserved_gib = 1.5
price_per_hour = 0.1
uplink = {gbps = 0.6, latency_ms = 4, return_latency_ms = 6}
[[machines]]
name = "cards"
gpu = "rtx-4090"
count = 2
site = "lab"
[[machines]]
names = ["north", "south"]
gpu = "l40s"
gpus = 4
interconnect = "pcie4"
memory_gib = 40
slowdown = 2
site = "lab"
[[machines]]
gpu = "t4"
count = 2
site = "office"
[[offers]]
name = "big"
gpu = "h100"
gpus = 8
interconnect = "nvlink4"
max_count = 2
price_per_hour = 20
site = "cloud"
[[pins]]
blocks = "embedding"
sites = ["lab", "office"]
[[pins]]
blocks = "30:"
sites = ["lab"]
[gpus.mine]
t0_us = 20
tflops = 60
gb_per_s = 500
memory_gib = 16
"""

TIERS = """\
currency = "USD"
runtime = "vllm"
[[tiers]]
name = "desk"
pin = ["embedding", 3]
nodes = [{gpu = "l4", count = 2, price_per_hour = 0.5, reserved_gib = 2}]
inner = {gbps = 2, latency_ms = 1}
link = {gbps = 1, latency_ms = 2}
[[tiers]]
name = "rack"
min_blocks = 0
link = {gbps = 4, latency_ms = 5, return_latency_ms = 6}
[[tiers.nodes]]
gpu = "l40s"
count = 2
gpus = 4
interconnect = "pcie4"
tensor_parallel = 2
price_per_hour = 3.0
[[tiers]]
name = "cloud"
pin = ["head"]
nodes = [{gpu = "a100-80gb"}]
"""

HEADER = "index, name, memory.total [MiB]\n"
RIG = (
    HEADER
    + """\
0, NVIDIA GeForce RTX 3090, 24576 MiB
1, NVIDIA GeForce RTX 3090, 24576 MiB
2, NVIDIA GeForce RTX 4090, 24564 MiB
"""
)
HOSTS = """\
host, index, name, memory.total [MiB], driver_version
ant, 0, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54
ant, 1, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54
bee, 0, NVIDIA GeForce RTX 3090, 24576 MiB, 535.1
bee, 1, NVIDIA GeForce RTX 4090, 24564 MiB, 535.1
bee, 2, NVIDIA GeForce RTX 3090, 24576 MiB, 535.1
"""


def cluster(types, link, to_source="2 * mbps", latency="0.01"):
    """Return a cluster file; `link` gives the rate and the latency of a pair of nodes."""
    n = len(types)
    lines = ["[NodeNames]", f"total_compute_nodes={n}", "[SourceNode]", "[SinkNode]"]
    for i, kind in enumerate(types):
        lines += [f"[ComputeNode-{i}]", f"type={kind}", "connected_nodes=[]"]
        lines += [f"[Link-source-{i}]", f"bandwidth={to_source}", f"latency={latency}"]
        lines += [f"[Link-{i}-sink]", "bandwidth=1 * mbps", "latency=0.03"]
    for i, j in itertools.combinations(range(n), 2):
        if (given := link(i, j)) is not None:
            lines += [f"[Link-{i}-{j}]", f"bandwidth={given[0]}", f"latency={given[1]}"]
    return "\n".join(lines)
