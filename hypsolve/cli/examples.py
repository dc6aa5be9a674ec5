"""Examples of files that `hypsolve init` writes, to edit."""

NETWORK = """\
# A network for `hypsolve plan`: tiers in the order in which requests pass them.
# `hypsolve gpus` lists the GPUs. Lines that begin with # are optional settings.
# Editors with Taplo (such as Even Better TOML) check and explain the file if its first line is
#     #:schema ./network.schema.json
# Write that schema with `hypsolve schema network > network.schema.json`.

# runtime = {name = "vllm", max_num_seqs = 64}  # or only "vllm", "llama.cpp", ...

[[tiers]]
name = "desk"
# pin = ["embedding"]        # blocks that must be here: embedding, head, layers by number
# min_blocks = 0             # blocks, of which embedding and head are two; 0: may be empty
# max_blocks = 12

[[tiers.nodes]]
gpu = "jetson-agx-orin"
reserved_gib = 8.0           # what the system keeps; --runtime knows the server's own use
# memory_gib = 64.0          # if not all of the GPU's memory
# names = ["orin"]           # default: desk-jetson-agx-orin-0, ...
# slowdown = 2.0             # half as fast as the GPU, for example throttled

[tiers.link]                 # to the next tier
gbps = 0.94
latency_ms = 0.3             # one way
# return_latency_ms = 0.3    # if the way back differs

[[tiers]]
name = "box"

# inner = {gbps = 50.0, latency_ms = 0.05}  # between its nodes: lets them be stages in a row

[[tiers.nodes]]
gpu = "rtx-4090"
count = 2
# host = "box.lan"           # both are cards of this machine

[tiers.link]
gbps = 0.5
latency_ms = 10.0

[[tiers]]
name = "rented"

[[tiers.nodes]]
gpu = "a100-80gb"
price_per_hour = 1.8         # in `currency`, a key at the top of the file
# gpus = 8                   # in one machine, for tensor parallelism
# interconnect = "nvlink3"   # among them; see hypsolve interconnects
# tensor_parallel = 4        # that compute as one; default: the best is chosen

# Your own GPU, by the rates that it reaches (not those of its datasheet). In one step, a block
# takes t0 + max(FLOPs / tflops, bytes / gb_per_s).
# [gpus.my-gpu]
# t0_us = 20.0
# tflops = 60.0
# gb_per_s = 500.0
# memory_gib = 16.0
# overlaps = false           # optional: on a core of a CPU, the two times add up
# power_w = 200.0            # optional, for the energy forecast
"""

MACHINES = """\
# Machines for `hypsolve place`: what you have, and what you could rent. Their order does not
# count. `hypsolve gpus` lists the GPUs. Lines that begin with # are optional settings.
# Editors with Taplo (such as Even Better TOML) check and explain the file if its first line is
#     #:schema ./machines.schema.json
# Write that schema with `hypsolve schema machines > machines.schema.json`.

currency = "USD"             # of all prices, which are per machine and hour
# runtime = "vllm"           # or {name = "vllm", max_num_seqs = 64}, "sglang", "llama.cpp", ...
# default_link = {gbps = 0.1, latency_ms = 40.0}   # between sites that no [[links]] joins
# apart = [["old-box", "workstation"]]             # never in one pipeline

# --- where machines are, and how they reach each other ---

[[sites]]
name = "home"
link = {gbps = 1.0, latency_ms = 0.2}    # between two machines of the site, one way

[[sites]]
name = "cloud"
link = {gbps = 25.0, latency_ms = 0.05}

[[links]]
from = "home"
to = "cloud"
gbps = 0.5
latency_ms = 12.0
# return_latency_ms = 12.0   # if the way back differs; its rate, in an entry from cloud to home

# Where requests enter, as shares that add up to 1. Default: all at the first site.
[entry]
home = 1.0

# --- machines that are there ---

[[machines]]
name = "workstation"
gpu = "rtx-4090"
gpus = 2                     # in this machine: for tensor parallelism, or as two stages
interconnect = "pcie4"       # among them; see hypsolve interconnects
site = "home"
price_per_hour = 0.25        # electricity: a machine that is not used costs nothing
# host = "192.168.1.20"      # as others reach it; default: its name

[[machines]]
name = "old-box"
gpu = "rtx-3090"
# count = 2                  # old-box-0 and old-box-1
site = "home"
reserved_gib = 1.5           # what the desktop keeps; the server's own use is known
price_per_hour = 0.15
# uplink = {gbps = 0.6, latency_ms = 5.0}   # Wi-Fi: slower than the link of the site
# memory_gib = 24.0          # if not all of the GPU's memory
# slowdown = 1.5             # half again as slow as the GPU, for example throttled

# --- machines that you could rent, up to a number ---

[[offers]]
name = "l40s"
gpu = "l40s"
max_count = 4
site = "cloud"
price_per_hour = 0.9

[[offers]]
name = "h100-pair"
gpu = "h100"
gpus = 2
interconnect = "nvlink4"
max_count = 2
site = "cloud"
price_per_hour = 5.0

# --- what must stay where ---

# Blocks are numbered from 0, the embedding. "0:3" would keep two layers beside it, so that
# neither prompts nor what is close to them leave the site.
# [[pins]]
# blocks = "embedding"       # or "head", or numbers such as "0:3"
# sites = ["home"]

# Your own GPU, by the rates that it reaches (not those of its datasheet). In one step, a block
# takes t0 + max(FLOPs / tflops, bytes / gb_per_s).
# [gpus.my-gpu]
# t0_us = 20.0
# tflops = 60.0
# gb_per_s = 500.0
# memory_gib = 16.0
"""
