"""Exported commands can be started as printed: read back as the servers would read them."""

import json
import re
import shlex
import subprocess
from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.exporters import RUNTIMES, benchmark, cautions, export, not_expressible
from hypsolve.planning.exporters.layout import BenchmarkLoad
from hypsolve.planning.platforms import PASCAL, platform_of
from hypsolve.problem.deployment import Requests
from tests.helpers.export_flags import FLAGS
from tests.helpers.export_readers import READ, addresses, limits_of
from tests.helpers.exports import WIRE, commands, pinned, plan, planned, tier

SERVERS = ("vllm", "sglang", "llama.cpp")
FIRST_PROGRAM = {
    "vllm": "vllm serve",
    "sglang": "python -m sglang.launch_server",
    "llama.cpp": "llama-server",
}
RADEON = replace(hs.gpu("rtx-4090"), name="Radeon RX 7900 XTX")


def named(*nodes, link=None, name="t"):
    return hs.Tier(name=name, nodes=nodes, link=link)


def cards(host, gpu, n):
    return tuple(hs.Node(name=f"{host}-{k}", gpu=hs.gpu(gpu), host=host) for k in range(n))


TIERS = {
    "one GPU": ((0, 34), [tier("a", "h200")]),
    "two machines": ((0, 12, 34), [tier("a", "l4", 1, WIRE), tier("b", "a10")]),
    "four machines": (
        (0, 4, 12, 13, 34),
        [tier(n, "l40s", 1, WIRE if n != "d" else None) for n in "abcd"],
    ),
    "two replicas": ((0, 12, 34), [tier("a", "l4", 2, WIRE), tier("b", "a10", 2)]),
    "one left out": ((0, 12, 34), [tier("a", "l4", 2, WIRE), tier("b", "a10", 3)]),
    "alike in a box": ((0, 34), [named(*cards("box", "rtx-3090", 3))]),
    "unlike in a box": (
        (0, 34),
        [named(*cards("box", "l4", 1), hs.Node(name="n", gpu=hs.gpu("l40s"), host="box"))],
    ),
    "a row in a box": (
        (0, 20, 34),
        [tier("a", "rtx-3090", 1, WIRE, host="box"), tier("b", "rtx-4070", 1, host="box")],
    ),
    "two boxes": (
        (0, 20, 34),
        [
            named(*cards("box", "rtx-3090", 2), link=WIRE, name="s"),
            named(*cards("old", "rtx-4070", 2)),
        ],
    ),
    "rows over boxes": (
        (0, 5, 20, 30, 34),
        [
            tier("a", "l4", 1, WIRE, host="x"),
            tier("b", "l4", 1, WIRE, host="x"),
            tier("c", "l4", 1, WIRE, host="y"),
            tier("d", "l4", 1, host="y"),
        ],
    ),
    "a card is elsewhere": (
        (0, 5, 34),
        [
            named(*cards("x", "l4", 1), link=WIRE, name="s"),
            named(hs.Node(name="y", gpu=hs.gpu("h200"), host="y", card=3)),
        ],
    ),
    "Radeon": ((0, 12, 34), [named(hs.Node(name="r", gpu=RADEON), link=WIRE, name="s"),
                             named(hs.Node(name="q", gpu=RADEON))]),
}  # fmt: skip
SITES = pytest.mark.parametrize("site", TIERS)
RUN = pytest.mark.parametrize("server", SERVERS)


@cache
def plan_of(site):
    cuts, tiers = TIERS[site]
    network = hs.Network(name="net", tiers=tuple(tiers))
    return plan("llama-3-8b", pinned(network, cuts), concurrency=2)


@cache
def text_of(site, server):
    return export(plan_of(site), server)


def under(found, runtime):
    """Return the same plan, as if another runtime had been simulated."""
    return replace(found, deployment=replace(found.deployment, runtime=runtime))


def planned_layers(found):
    """Layers of each (host, card) that the plan uses."""
    wanted, n_on_host = {}, defaultdict(int)
    used = {node.node: node for node in found.nodes if node.is_used}
    for of_tier in found.network.network.tiers:
        for node in of_tier.nodes:
            host = node.host or node.name
            card = n_on_host[host] if node.card is None else node.card
            n_on_host[host] += 1
            if node.name in used:
                blocks = used[node.name].blocks
                wanted[host, card] = range(max(blocks.start - 1, 0), min(blocks.stop - 1, 32))
    return wanted


@RUN
@SITES
def test_every_card_holds_the_layers_that_were_planned_for_it(site, server):
    """Each server's own rule for ranks and devices gives the plan's stages, once per card."""
    read = READ[server](text_of(site, server))
    wanted = planned_layers(plan_of(site))
    left = {("b-2", 0)} if site == "one left out" else set()
    assert {place: [layers] for place, layers in wanted.items() if place not in left} == read


@pytest.mark.parametrize("runtime", RUNTIMES)
@SITES
def test_every_program_and_flag_is_a_documented_one(site, runtime):
    """A flag that does not exist ends the start; shells must be able to read the text, too."""
    found = plan_of(site)
    text = export(found, runtime)
    if runtime in SERVERS:
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")
        started = commands(text)
    else:
        lines = re.findall(r'(?:^# |: ")(genai-perf [^"\n]+)', text, re.M)
        started = [each for line in lines for each in commands(line)]
        assert len(started) == (runtime not in ("accelerate", "yaml"))
    for each in started:
        assert set(each.flags) <= FLAGS[each.program], each.program


@RUN
@SITES
def test_no_two_servers_of_a_machine_share_a_port(site, server):
    found = addresses(text_of(site, server))
    assert found and len(set(found)) == len(found)


@RUN
@SITES
def test_a_load_balancer_stands_before_several_servers(site, server):
    """It knows every server by its address, and the benchmark goes through it."""
    text = text_of(site, server)
    heads = [
        f"{each.where}:{each['--port']}"
        for each in commands(text, FIRST_PROGRAM[server])
        if "--port" in each.flags and each.flags.get("--node-rank", ["0"]) == ["0"]
    ]
    if server == "llama.cpp":
        known = re.findall(r"^    server (\S+);$", text, re.M)
        listens = re.findall(r"^    listen (\d+);$", text, re.M)
    else:
        routers = [each for each in commands(text) if "--worker-urls" in each.flags]
        known = [
            url.removeprefix("http://") for r in routers for url in r.flags["--worker-urls"]
        ]
        listens = [each["--port"] for each in routers]
    assert known == (heads if len(heads) > 1 else [])
    host = heads[0].split(":")[0]
    address = f"{host}:{listens[0]}" if listens else heads[0]
    (bench,) = [each for each in commands(text) if "--base-url" in each.flags]
    assert bench["--base-url"] == f"http://{address}"


def router_of(site, server):
    found = [each for each in commands(text_of(site, server)) if "router" in each.program]
    assert len(found) == 1
    return found[0]


def test_the_fewest_under_way_go_first_among_unlike_replicas():
    """Turns would overload the slower card."""
    for server in ("vllm", "sglang"):
        unlike = router_of("unlike in a box", server)
        assert unlike["--policy"] == "cache_aware" and unlike["--balance-abs-threshold"] == "1"
        assert router_of("two boxes", server)["--policy"] == "round_robin"


@SITES
def test_vllm_speaks_of_ray_only_where_a_pipeline_spans_machines(site):
    text = text_of(site, "vllm")
    several = site in ("two machines", "two replicas", "one left out",
                       "rows over boxes", "a card is elsewhere", "Radeon")  # fmt: skip
    assert ("ray start" in text) == several
    for serve in commands(text, "vllm serve"):
        if "--pipeline-parallel-size" in serve.flags:
            backend = serve["--distributed-executor-backend"]
            assert backend == ("ray" if several else "mp")


LAN = hs.Link(bytes_per_s=1.25e8, latency_s=2e-4)
WAN = hs.Link(bytes_per_s=1.25e8, latency_s=2e-2)
SLOW = hs.Link(bytes_per_s=1.25e7, latency_s=2e-4)


def boxes(cuts, gpus, links, hosts=None, cards=None):
    """A plan of one stage for each GPU, in a machine of its own if `hosts` says nothing."""
    names = "abcdef"[: len(gpus)]
    tiers = [
        named(
            hs.Node(
                name=name,
                gpu=hs.gpu(gpu),
                host=hosts[k] if hosts else name,
                card=None if cards is None else cards[k],
            ),
            link=links[k] if k + 1 < len(gpus) else None,
            name=name,
        )
        for k, (name, gpu) in enumerate(zip(names, gpus, strict=True))
    ]
    network = hs.Network(name="net", tiers=tuple(tiers))
    return plan("llama-3-8b", pinned(network, cuts), concurrency=2)


EXECUTORS = {  # cuts, GPUs, links, hosts: the executor, and a word of the comment
    "alike": ((0, 13, 23, 34), ["l40s", "l4", "l4"], [LAN, LAN], None, "ray", "alike"),
    "another GPU": ((0, 13, 23, 34), ["l4", "l4", "l40s"], [LAN, LAN], None, "mp", "differ"),
    "more layers": ((0, 12, 22, 34), ["l4", "l4", "l4"], [LAN, LAN], None, "mp", "differ"),
    "a slow link": ((0, 13, 23, 34), ["l4", "l4", "l4"], [LAN, SLOW], None, "mp", "differ"),
    "far": ((0, 13, 23, 34), ["l4", "l4", "l4"], [WAN, WAN], None, "mp", "differ"),
    "two": ((0, 12, 34), ["l4", "l40s"], [WAN], None, "ray", ""),
    "pairs": (
        (0, 7, 15, 19, 24, 28, 34),
        ["l40s"] * 2 + ["l4", "l40s"] * 2,
        [LAN] * 5,
        ["x", "x", "y", "y", "z", "z"],
        "ray",  # 4 and 5 layers on y, 4 and 5 on z
        "alike",
    ),
}


@pytest.mark.parametrize("case", EXECUTORS)
def test_ray_is_used_where_its_order_of_machines_is_known_or_does_not_matter(case):
    """Otherwise every machine gets its own command with its rank, and a comment says why."""
    cuts, gpus, links, hosts, executor, word = EXECUTORS[case]
    found = boxes(cuts, gpus, links, hosts)
    text = export(found, "vllm")
    serves = commands(text, "vllm serve")
    assert {each["--distributed-executor-backend"] for each in serves} == {executor}
    assert len(serves) == (1 if executor == "ray" else len(gpus))
    assert (word in text) if word else "executor mp" not in text
    assert bool(commands(text, "ray start")) == (executor == "ray")
    wanted = planned_layers(found)
    assert {place: [layers] for place, layers in wanted.items()} == READ["vllm"](text)


def test_the_executor_can_be_asked_for():
    """An executor that would start other stages is refused with its reason."""
    alike = boxes((0, 13, 23, 34), ["l40s", "l4", "l4"], [LAN, LAN])
    (first, *others) = commands(export(alike, "vllm", executor="mp"), "vllm serve")
    assert (first["--nnodes"], len(others)) == ("3", 2)
    assert export(alike, "vllm", executor="ray") == export(alike, "vllm")
    unlike = boxes((0, 13, 23, 34), ["l4", "l4", "l40s"], [LAN, LAN])
    with pytest.raises(ValueError, match=r"executor 'ray' of vllm cannot .* in no fixed order"):
        export(unlike, "vllm", executor="ray")
    uneven = boxes((0, 8, 20, 34), ["l4", "l4", "l40s"], [LAN, LAN], ["x", "x", "y"])
    assert "ray start" in export(uneven, "vllm")
    with pytest.raises(ValueError, match=r"executor 'mp' of vllm .* as many stages; they have"):
        export(uneven, "vllm", executor="mp")
    with pytest.raises(ValueError, match="executor must be None for sglang, got 'mp'"):
        export(alike, "sglang", executor="mp")
    with pytest.raises(ValueError, match="unknown executor 'rya'; did you mean ray"):
        export(alike, "vllm", executor="rya")
    alone = plan_of("a row in a box")
    assert export(alone, "vllm", executor="mp") == export(alone, "vllm")
    with pytest.raises(ValueError, match="every pipeline is in one machine"):
        export(alone, "vllm", executor="ray")


def test_ray_ranks_the_gpus_of_a_machine_by_their_numbers():
    """So unequal GPUs in another order are left to the other executor, or refused."""
    hosts, cards = ["x", "x", "y", "y"], [1, 0, 0, 1]
    found = boxes((0, 9, 17, 26, 34), ["l4", "l40s", "l4", "l40s"], [LAN] * 3, hosts, cards)
    text = export(found, "vllm")
    assert "Ray ranks the GPUs of a machine by number, and x has 1, 0" in text
    serves = commands(text, "vllm serve")
    assert [each.variables["CUDA_VISIBLE_DEVICES"] for each in serves] == ["1,0", "0,1"]
    alike = boxes((0, 9, 17, 26, 34), ["l4"] * 4, [LAN] * 3, hosts, cards)
    assert len(commands(export(alike, "vllm"), "ray start")) == 2


PAIRS = [("a10", "t4", "l40s", "a10"), ("l4", "rtx-4090", "t4", "l4", "l40s")]


@pytest.mark.parametrize("seed", range(6))
def test_simulation_and_export_pair_the_same_nodes(seed):
    """Unequal nodes of a tier go on with the nodes that were simulated behind them.

    Some cannot hold the stage, and then pairs are counted without them.
    """
    rng = np.random.default_rng(seed)
    tiers = [
        named(
            *(
                hs.Node(name=f"{name}{i}", gpu=hs.gpu(gpu), reserved_bytes=reserved)
                for i, gpu in enumerate(rng.permutation(kinds))
                for reserved in [int(rng.choice([0, 0, 12]) * 2**30)]
            ),
            link=WIRE if name == "a" else None,
            name=name,
        )
        for name, kinds in zip("ab", PAIRS, strict=True)
    ]
    network = hs.Network(name="net", tiers=tuple(tiers))
    found = plan("llama-3-8b", pinned(network, (0, 17, 34)), concurrency=1, runtime="vllm")
    trace = found.simulate()
    first, second = (each.nodes for each in found.network.network.tiers)
    simulated = {(first[i].name, second[j].name) for i, j in trace.node.tolist()}
    exported = [
        tuple(re.sub(r"^#\s+", "", line).split(" -> "))
        for line in export(found, "vllm").splitlines()
        if " -> " in line and line.startswith("#   ")
    ]
    assert len(exported) > 1 and simulated <= set(exported)


def test_alike_cards_of_a_box_are_one_data_parallel_server():
    (serve,) = commands(text_of("alike in a box", "vllm"), "vllm serve")
    assert serve["--data-parallel-size"] == "3"
    assert serve.variables["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert "vllm-router" not in text_of("alike in a box", "vllm")
    # ServerArgs.dp_size of SGLang: its limits are those of each rank, without dp attention
    text = text_of("alike in a box", "sglang")
    (serve,) = commands(text, "python -m sglang.launch_server")
    assert serve["--dp-size"] == "3"
    assert serve.variables["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert "sglang_router" not in text
    assert "--mem-fraction-static: for weights and KV cache" in text
    assert len(commands(text_of("unlike in a box", "vllm"), "vllm serve")) == 2
    box = hs.Network(name="n", tiers=(named(*cards("box", "h200", 2)),))
    experts = export(plan("mixtral-8x7b", box, weights="int8", concurrency=1), "vllm")
    assert len(commands(experts, "vllm serve")) == 2, "ranks of experts would share them"


def test_rpc_servers_of_a_machine_have_ports_and_devices_of_their_own():
    servers = commands(text_of("two boxes", "llama.cpp"), "ggml-rpc-server")
    assert [(each.where, each["--port"], each["--device"]) for each in servers] == [
        ("old", "50052", "CUDA0"), ("old", "50053", "CUDA1"),
    ]  # fmt: skip
    # one pipeline through two cards of a machine: one server, which copies between them itself
    text = text_of("rows over boxes", "llama.cpp")
    (server,) = commands(text, "ggml-rpc-server")
    assert (server.where, server["--device"]) == ("y", "CUDA0,CUDA1")
    (client,) = commands(text, "llama-server")
    assert client["--rpc"] == "y:50052" and client["--device"] == "CUDA0,CUDA1,RPC0,RPC1"
    assert "--rpc" not in text_of("a row in a box", "llama.cpp")
    assert "ggml-rpc-server" not in text_of("a row in a box", "llama.cpp")
    assert "the output layer counts" in text_of("two boxes", "llama.cpp")


RUNTIME_VARIANTS = [
    hs.runtime("ideal"),
    *(hs.runtime(name) for name in hs.runtimes() if name != "ideal"),
    hs.runtime("vllm", max_num_seqs=48, max_num_batched_tokens=1536, kv_block_tokens=32,
               memory_fraction=0.85),
    hs.runtime("vllm", max_num_seqs=5, chunk_tokens=256, kv_admission="reserve"),
    hs.runtime("sglang", max_num_seqs=7, chunk_tokens=20_000, memory_fraction=0.8),
    hs.runtime("sglang", chunk_tokens=None, kv_block_tokens=16),
    hs.runtime("llama.cpp", max_num_seqs=3, max_num_batched_tokens=1024,
               micro_batch_tokens=128),
    hs.runtime("ideal", max_num_seqs=1000, chunk_tokens=100),
]  # fmt: skip


def room_of(found, runtime):
    """Tokens whose KV cache fits on every card, worked out from the model's shape."""
    model, rooms = found.model, []
    for node in found.nodes:
        if node.is_used:
            blocks = [model.blocks[b] for b in node.blocks]
            (record,) = [
                n for t in found.network.network.tiers for n in t.nodes if n.name == node.node
            ]
            free = runtime.usable_bytes(record, model) - model.stage_weight_bytes(blocks)
            kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
            rooms.append(free / kv_bytes)
    return min(rooms)


def ends_of(found, batching, **limits):
    """Ends of a burst that fills every limit, under the plan's rules and these limits."""
    lengths = np.tile([found.query.prompt_tokens, found.query.output_tokens], (320, 1))
    if batching != "serial":
        limits.pop("micro_batch_tokens", None)
    deployment = replace(
        found.deployment, requests=Requests(np.zeros(320), lengths[:, 0], lengths[:, 1])
    )
    return hs.simulate(deployment, found.result.partition, **limits).end_s


@RUN
@pytest.mark.parametrize("runtime", RUNTIME_VARIANTS, ids=lambda each: each.name)
def test_a_server_that_is_started_has_the_limits_that_were_simulated(runtime, server):
    """Read back by a reader of the server's flags, the limits leave the simulation as it was.

    Where they do not, a caution beside the export must name the limit.
    """
    found = under(plan_of("two machines"), runtime)
    (serve, *_) = commands(export(found, server), FIRST_PROGRAM[server])
    told, context = limits_of(server, serve)
    assert context >= found.query.tokens
    simulated = ends_of(found, runtime.batching)
    notes = " ".join(cautions(found, server))
    words = {"max_num_seqs": "requests at once", "micro_batch_tokens": "batching"}
    for limit, value in told.items():
        same = np.array_equal(ends_of(found, runtime.batching, **{limit: value}), simulated)
        assert same or words.get(limit, limit) in notes, (limit, value, notes)
    if runtime.server == server and runtime.chunk_tokens is None:
        together = ends_of(found, runtime.batching, **told)
        assert np.array_equal(together, simulated)


@RUN
@pytest.mark.parametrize("runtime", RUNTIME_VARIANTS, ids=lambda each: each.name)
def test_a_server_that_is_started_takes_the_memory_that_was_simulated(runtime, server):
    found = under(plan_of("two machines"), runtime)
    (serve, *_) = commands(export(found, server), FIRST_PROGRAM[server])
    flag = {"vllm": "--gpu-memory-utilization", "sglang": "--mem-fraction-static"}.get(server)
    if flag is None:  # llama.cpp takes weights and slots, and these fit
        assert int(serve["-c"]) <= room_of(found, runtime)
        return
    share = (
        runtime.memory_fraction
        if runtime.server == server
        else min(runtime.memory_fraction, 0.95)
    )
    assert float(serve[flag]) == pytest.approx(share, abs=1e-3)


def test_room_limits_slots_where_caches_are_reserved():
    """A server of paged caches would admit more than were simulated, and preempt them."""
    network = hs.Network(name="n", tiers=(tier("a", "rtx-4090"),))
    found = plan("llama-3-8b", network, concurrency=4, prompt_tokens=3000, output_tokens=1000)
    tokens = room_of(found, found.deployment.runtime)
    assert 4 <= tokens // 4096 < 64
    for server, flag, held in (("vllm", "--max-num-seqs", 4000), ("llama.cpp", "-np", 4096)):
        (serve,) = commands(export(found, server), FIRST_PROGRAM[server])
        assert int(serve[flag]) == tokens // held, server  # slots are whole multiples of 256


def test_old_cards_get_half_precision():
    old = plan("phi-3-mini", hs.Network(name="n", tiers=(tier("a", "t4"),)), concurrency=1)
    for server in ("vllm", "sglang"):
        assert " --dtype half " in export(old, server)
        assert "--dtype" not in text_of("one GPU", server)


@pytest.mark.parametrize(
    ("weights", "server", "dtype"),
    [("fp8", "vllm", "bfloat16"), ("fp8", "sglang", "bf16"), ("awq", "vllm", None)],
)
def test_caches_keep_16_bits_where_a_checkpoint_may_ask_for_8(weights, server, dtype):
    network = hs.Network(name="n", tiers=(tier("a", "h200"),))
    found = plan("phi-3-mini", network, weights=weights, concurrency=1)
    (serve,) = commands(export(found, server), FIRST_PROGRAM[server])
    assert serve.flags.get("--kv-cache-dtype") == (dtype and [dtype])


def test_platforms_of_all_cards_of_the_catalogue_are_known():
    """A card of unknown platform would be believed to run everything."""
    for gpu in hs.gpus().values():
        wanted = {"A": "metal", "J": "jetson"}.get(gpu.name[0] * (gpu.name[1] in "pe"), "")
        for start, platform in (("GTX 10", PASCAL), ("Tesla P", PASCAL), ("RX 7", "rocm"),
                                ("Arc", "xpu")):  # fmt: skip
            wanted = platform if gpu.name.startswith(start) else wanted
        assert platform_of(gpu.name) == (wanted or "cuda"), gpu.name
    slower = replace(hs.gpu("rtx-4090"), name="RTX 4090 2x slower")
    assert platform_of(slower.name) == "cuda" and platform_of("mine") == ""


@RUN
def test_the_benchmark_is_the_simulated_load(server):
    network = hs.Network(name="n", tiers=(tier("a", "h200"),))
    found = plan("llama-3-8b", network, rate_per_s=2.5, prompt_tokens=300, output_tokens=40)
    text = export(found, server)
    (bench,) = [each for each in commands(text) if "--base-url" in each.flags]
    assert float(bench["--request-rate"]) == 2.5 and "--max-concurrency" not in bench.flags
    assert int(bench["--random-input-len"]) == 300
    assert int(bench["--random-output-len"]) == 40
    simulated = len(found.simulate().latency_s)
    assert int(bench["--num-prompts"]) == simulated
    if server == "sglang":
        assert bench["--random-range-ratio"] == "1", "else lengths would be drawn from 0 on"
    if server == "llama.cpp":
        (full,) = commands(text, "llama-batched-bench")
        (serve,) = commands(text, "llama-server")
        assert (full["-npp"], full["-ntg"], full["-npl"]) == ("300", "40", serve["-np"])
        assert {flag: serve.flags[flag] for flag in ("-c", "-b", "-ub", "--device")} == {
            flag: full.flags[flag] for flag in ("-c", "-b", "-ub", "--device")
        }


def test_users_are_a_limit_on_concurrency_and_no_rate():
    load = BenchmarkLoad(
        prompt_tokens=300, output_tokens=40, n_requests=90, rate_per_s=2.5, users=3
    )
    printed = [
        *benchmark.vllm(load, "http://a:8000"),
        *benchmark.sglang(load, "http://a:8000"),
        benchmark.genai_perf(load),
        *benchmark.llama_cpp(load, "http://a:8000", "-m M", 8),
    ]
    assert "3 users of 300 + 40 tokens" in printed[0]
    for each in commands("\n".join(printed)):
        assert set(each.flags) <= FLAGS[each.program] and "--request-rate" not in each.flags
        flag = {"genai-perf profile": "--concurrency", "llama-batched-bench": "-npl"}
        assert each[flag.get(each.program, "--max-concurrency")] == "3"


def test_plain_files_hold_limits_and_benchmark():
    document = json.loads(export(planned((0, 12, 34)), "json"))
    assert document["runtime"] == planned((0, 12, 34)).deployment.runtime.to_dict()
    (bench,) = commands(document["benchmark"])
    assert float(bench["--request-rate"]) == 1 and bench["--request-count"] == "400"


def test_what_is_left_out_has_its_cost_in_requests_per_second():
    """The rate without it is that of a plan on the network without it."""
    cuts, (first, second) = TIERS["one left out"]
    found = plan_of("one left out")
    fewer = replace(second, nodes=second.nodes[:2])
    without = plan(
        "llama-3-8b",
        pinned(hs.Network(name="net", tiers=(first, fewer)), cuts),
        concurrency=2,
    )
    before, after = (each.forecast.max_requests_per_s for each in (found, without))
    line = text_of("one left out", "vllm").splitlines()[0]
    assert line == (
        f"# left out: b-2; {before - after:.3g} requests/s less: {after:.3g} instead of"
        f" {before:.3g}, simulated"
    )
    assert "left out" not in text_of("two replicas", "vllm")


def test_a_cost_of_rates_that_were_cut_short_is_no_number():
    """The difference to a lower bound is not known, so only the two rates are stated."""
    found = plan_of("one left out")
    short = replace(found, forecast=replace(found.forecast, max_rate_is_lower_bound=True))
    line = export(short, "vllm", instead_of=short).splitlines()[0]
    rate = found.forecast.max_requests_per_s
    assert f"requests/s instead of at least {rate:.3g}, simulated" in line
    assert " less: " not in line and " more: " not in line


def test_layouts_that_cannot_be_started_are_refused():
    """Each would start something else than was planned, or nothing."""
    returns = [
        tier(name, "h200", 1, WIRE if name != "c" else None, host=host)
        for name, host in (("a", "x"), ("b", "y"), ("c", "x"))
    ]
    back = plan("llama-3-8b", hs.Network(name="n", tiers=tuple(returns)))
    for server in ("vllm", "sglang"):
        with pytest.raises(ValueError, match=r"its stages return to a machine \(x, y\)"):
            export(back, server)
    assert not_expressible(back, "llama.cpp") == ""
    mixed = [named(hs.Node(name="r", gpu=RADEON), link=WIRE, name="s"), tier("n", "rtx-4090")]
    both = plan("llama-3-8b", hs.Network(name="n", tiers=tuple(mixed)))
    with pytest.raises(
        ValueError, match=r"one kind of platform, and has r \(rocm\), n-0 \(cuda"
    ):
        export(both, "vllm")
    assert not_expressible(both, "llama.cpp") == ""
    old = replace(RADEON, name="Radeon RX 580")
    alone = hs.Network(name="n", tiers=(named(hs.Node(name="r", gpu=old)),))
    assert "runs on cuda, rocm, and r has Radeon RX 580 (vulkan)" in not_expressible(
        plan("phi-3-mini", alone, concurrency=1), "vllm"
    )
    few = hs.runtime("vllm", max_num_batched_tokens=100)
    with pytest.raises(
        ValueError, match="max_num_batched_tokens must be at least max_num_seqs"
    ):
        export(under(plan_of("one GPU"), few), "vllm")
    many = [tier(f"t{k}", "h200", 1, WIRE if k < 16 else None) for k in range(17)]
    long = plan("llama-3-8b", hs.Network(name="n", tiers=tuple(many)))
    with pytest.raises(ValueError, match="it takes 16 devices, and there are 17 stages"):
        export(long, "llama.cpp")


def test_shell_words_survive_the_names_of_machines():
    """Names may hold what a shell, or nginx, would read as its own."""
    names = ("old box; echo", 'new $(box)"')
    nodes = tuple(hs.Node(name=name, gpu=hs.gpu("h200")) for name in names)
    found = plan("phi-3-mini", hs.Network(name="n", tiers=(named(*nodes),)), concurrency=1)
    for server in SERVERS:
        text = export(found, server)
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        for each in commands(text):
            assert each.program in FLAGS
    urls = shlex.split(export(found, "vllm").split("--worker-urls ")[1].split(" --policy")[0])
    assert urls == [f"http://{name}:8000" for name in names]
    assert '    server "new $(box)\\":8080";' in export(found, "llama.cpp")


@RUN
def test_overrides_of_a_query_reach_the_command(server):
    """From the query to the flag: the runtime that was asked for is the one that is started."""
    network = hs.Network(name="n", tiers=(tier("a", "h200"),))
    found = plan("llama-3-8b", network, runtime=server, max_num_seqs=7, memory_fraction=0.8,
                 users=3, think_time_s=1.0, concurrency=7)  # fmt: skip
    assert found.query.runtime.max_num_seqs == 7
    text = export(found, server)
    (serve,) = commands(text, FIRST_PROGRAM[server])
    flag = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests", "llama.cpp": "-np"}
    share = {"vllm": "--gpu-memory-utilization", "sglang": "--mem-fraction-static"}
    assert serve[flag[server]] == "7"
    assert server not in share or serve[share[server]] == "0.8"
    (bench,) = [each for each in commands(text) if "--base-url" in each.flags]
    assert bench["--max-concurrency"] == "3" and "--request-rate" not in bench.flags
    assert int(bench["--num-prompts"]) == len(found.simulate().latency_s)
    assert "3 users (who think for 1 s; the benchmark's do not) of 512 + 16 tokens" in text


def test_users_lose_what_they_would_be_served():
    """A closed loop has no rate to sustain: the rate at which users are served falls."""
    cuts, tiers = TIERS["one left out"]
    site = pinned(hs.Network(name="net", tiers=tuple(tiers)), cuts)
    found = plan("llama-3-8b", site, concurrency=2, users=40)
    line = export(found, "vllm").splitlines()[0]
    assert re.match(r"# left out: b-2; .+ requests/s", line) and "too many" not in line
