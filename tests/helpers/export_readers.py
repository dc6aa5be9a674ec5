"""Exported commands as the servers read them: which card gets which layers, who listens."""

import itertools
import re
from collections import defaultdict

import numpy as np

from tests.helpers.exports import commands


def devices_of(values, n_layers, n_gpu_layers=999):
    """Device of each layer and of the output layer, by llama.cpp: values (n_splits, n_devices).

    `load_tensors` of src/llama-model.cpp in ggml-org/llama.cpp, in its float32.
    """
    splits = np.asarray(values, dtype=np.float32)
    total = np.zeros(len(splits), np.float32)
    cumulative = np.empty_like(splits)
    for device in range(splits.shape[1]):
        total = (total + splits[:, device]).astype(np.float32)
        cumulative[:, device] = total
    cumulative /= total[:, None]
    start = max(n_layers + 1 - n_gpu_layers, 0)
    active = min(n_gpu_layers, n_layers + 1)
    at = (np.arange(n_layers + 1) - start).astype(np.float32) / np.float32(active)
    assert at.dtype == cumulative.dtype == np.float32
    return (cumulative[:, None, :] <= at[None, :, None]).sum(axis=2)  # upper_bound


def numbers(command):
    """Card numbers that a process sees, in its order; all from 0 if nothing hides any."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in command.variables:
            return [int(number) for number in command.variables[name].split(",")]
    return list(range(64))


def addresses(text):
    """(host, port) of everything that listens."""
    found = []
    for each in commands(text):
        for flag in ("--port", "--master-port"):
            if flag in each.flags and each.program != "ray start":
                first = flag == "--port" or each["--node-rank"] == "0"
                found += [(each.where, int(each[flag]))] if first else []
        if "--dist-init-addr" in each.flags and each["--node-rank"] == "0":
            host, _, port = each["--dist-init-addr"].rpartition(":")
            found.append((host, int(port)))
    return found


def counts_to_layers(counts):
    ends = itertools.accumulate(counts, initial=0)
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def vllm_layers(text):
    """Layers of each (host, card): ranks as Ray or --node-rank give them."""
    found, ray, meets = defaultdict(list), [], defaultdict(list)
    for each in commands(text):
        if each.program == "ray start":
            ray = ray if "--address" in each.flags else []
            ray.append((each.where, numbers(each)[: int(each["--num-gpus"])]))
        if not each.program.startswith("vllm serve"):
            continue
        n_stages = int(each.flags.get("--pipeline-parallel-size", ["1"])[0])
        partition = each.variables.get("VLLM_PP_LAYER_PARTITION", "32")
        layers = counts_to_layers([int(n) for n in partition.split(",")])
        assert len(layers) == n_stages
        copies = int(each.flags.get("--data-parallel-size", ["1"])[0])
        backend = each.flags.get("--distributed-executor-backend", ["mp"])[0]
        if backend == "ray":
            driver = [host for host in ray if host[0] == each.where]
            others = [host for host in ray if host[0] != each.where]
            # vLLM 0.33.0 sorts machines by random node ids: all orders must do alike
            at = len(driver[0][1])
            kinds = set()
            for _, on_host in others:
                of_host = [len(each) for each in layers[at : at + len(on_host)]]
                kinds.add(tuple(of_host))
                at += len(on_host)
            assert len(others) == 1 or len(kinds) == 1
            ranked = driver + others
            places = [(host, card) for host, on_host in ranked for card in on_host]
        elif "--nnodes" in each.flags:
            local = n_stages // int(each["--nnodes"])
            meeting = (each["--master-addr"], each["--master-port"])
            meets[meeting] += [(each.where, card) for card in numbers(each)[:local]]
            assert int(each["--node-rank"]) == len(meets[meeting]) // local - 1
            assert ("--headless" in each.flags) == (each["--node-rank"] != "0")
            places = meets[meeting]
            if len(places) < n_stages:
                continue
        else:
            places = [(each.where, card) for card in numbers(each)[: n_stages * copies]]
        assert len(places) == n_stages * copies
        for rank, place in enumerate(places):
            found[place].append(layers[rank % n_stages])
    return found


def sglang_layers(text):
    """Layers of each (host, card): the machines of a replica share its stages evenly."""
    found = defaultdict(list)
    for each in commands(text, "python -m sglang.launch_server"):
        n_stages = int(each.flags.get("--pp-size", ["1"])[0])
        partition = each.variables.get("SGLANG_PP_LAYER_PARTITION", "32")
        layers = counts_to_layers([int(n) for n in partition.split(",")])
        n_hosts = int(each.flags.get("--nnodes", ["1"])[0])
        rank = int(each.flags.get("--node-rank", ["0"])[0])
        local = n_stages // n_hosts
        assert local * n_hosts == n_stages == len(layers)
        copies = int(each.flags.get("--dp-size", ["1"])[0])
        assert copies == 1 or n_hosts == n_stages == 1
        for k, card in enumerate(numbers(each)[: local * copies]):
            found[each.where, card].append(layers[rank * local + k % local])
    return found


def llama_layers(text):
    """Layers of each (host, card): local devices by name, RPC devices by their server."""
    found, of_servers = defaultdict(list), {}
    for each in commands(text, "ggml-rpc-server"):
        devices = each.flags.get("--device", ["CUDA0"])[0].split(",")
        assert each["--host"] == "0.0.0.0"
        of_servers[f"{each.where}:{each['--port']}"] = [
            (each.where, int(re.sub(r"\D", "", device))) for device in devices
        ]
    for each in commands(text, "llama-server"):
        servers = each.flags["--rpc"][0].split(",") if "--rpc" in each.flags else []
        assert not any(server.startswith(f"{each.where}:") for server in servers)
        # as ggml_backend_rpc_add_server numbers them: over all servers, in their order
        rpc, places = [place for server in servers for place in of_servers[server]], []
        for device in each["--device"].split(","):
            name, number = re.fullmatch(r"(CUDA|ROCm|MTL|RPC)(\d+)", device).groups()
            remote = name == "RPC"
            places.append(rpc[int(number)] if remote else
                          (each.where, int(number)))  # fmt: skip
        values = [float(value) for value in each.flags.get("-ts", ["1"])[0].split(",")]
        devices = devices_of([values], 32, int(each["-ngl"]))[0]
        assert len(values) == len(places) and devices[-1] == len(places) - 1
        for device, place in enumerate(places):
            of_device = np.flatnonzero(devices[:-1] == device)
            found[place].append(range(of_device[0], of_device[-1] + 1))
    return found


READ = {"vllm": vllm_layers, "sglang": sglang_layers, "llama.cpp": llama_layers}


def limits_of(server, command):
    """Limits of a started server, by the documentation of its flags; absent: its default.

    Keys are options of `hypsolve.simulate`, besides `context`: tokens of the longest request.
    """

    def number(flag, default):
        return int(command.flags.get(flag, [default])[0])

    if server == "vllm":
        found = {
            "max_num_seqs": number("--max-num-seqs", 256),
            "max_num_batched_tokens": number("--max-num-batched-tokens", 2048),
            "kv_block_tokens": number("--block-size", 16),
        }
        context = number("--max-model-len", 0)
    elif server == "sglang":
        chunk, page = number("--chunked-prefill-size", 4096), number("--page-size", 1)
        assert chunk == -1 or chunk % page == 0  # its own assertion
        # an unchunked prompt, too, is computed with others up to --max-prefill-tokens
        assert chunk <= number("--max-prefill-tokens", 16_384)
        found = {
            "max_num_seqs": number("--max-running-requests", 0),
            "chunk_tokens": None if chunk == -1 else chunk,
            "kv_block_tokens": page,
        }
        context = number("--context-length", 0) - 6  # two are never used, five in some versions
    else:
        slots, batch = number("-np", 4), number("-b", 2048)
        assert slots <= 256  # LLAMA_MAX_SEQ
        context = number("-c", 4096) // slots
        assert context % 256 == 0  # else GGML_PAD gives more than was planned
        found = {
            "max_num_seqs": slots,
            "max_num_batched_tokens": batch,
            "micro_batch_tokens": min(number("-ub", 512), batch),
        }
    return found, context
