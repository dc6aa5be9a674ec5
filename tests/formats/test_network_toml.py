"""Networks from TOML: optional keys, prices, pins, users' own GPUs, wrong files."""

import dataclasses
import re

import pytest

import hypsolve as hs
import instances
from hypsolve.cli.examples import NETWORK as EXAMPLE
from hypsolve.formats.network_toml import read_network_file
from hypsolve.formats.network_toml_types import RuntimeTable
from hypsolve.problem.costs import service_s
from instances import network, networks

SHORT = """
[[tiers]]
name = "desk"
pin = ["embedding", 3]
max_blocks = 12
nodes = [{gpu = "l4"}, {gpu = "mine", names = ["old box"], price_per_hour = 0.5}]
link = {gbps = 1.0, latency_ms = 2.0}
[[tiers]]
name = "rack"
pin = ["head"]
nodes = [{gpu = "a100-80gb", count = 2, price_per_hour = 2}]
[gpus.mine]
t0_us = 20
tflops = 60
gb_per_s = 500
memory_gib = 16
"""


def read(tmp_path, text):
    path = tmp_path / "net.toml"
    path.write_text(text)
    return read_network_file(path)


def test_a_short_file(tmp_path):
    site = read(tmp_path, SHORT)
    desk, rack = site.network.tiers
    assert [node.name for node in desk.nodes] == ["desk-l4-0", "old box"]
    mine = desk.nodes[1].gpu
    assert (mine.t0_s, mine.flops_per_s, mine.bytes_per_s) == pytest.approx((2e-5, 6e13, 5e11))
    assert mine.memory_bytes == 16 * 2**30
    assert site.price_per_hour == {
        "old box": 0.5, "rack-a100-80gb-0": 2.0, "rack-a100-80gb-1": 2.0
    }  # fmt: skip
    assert site.pins == {"embedding": "desk", 3: "desk", "head": "rack"}
    model = hs.model("llama-3-8b")
    rules = site.rules(model)
    assert rules == {"pinned": {0: 0, 4: 0, 33: 1}, "max_blocks": [12, 34]}
    assert len(rack.nodes) == 2
    assert site.rules(model) and not read(tmp_path, SHORT[: SHORT.index("pin")] + SHORT[
        SHORT.index("nodes") :].replace('pin = ["head"]', "")).rules(model)  # fmt: skip


def test_a_slow_node_takes_longer_by_its_slowdown(tmp_path):
    text = SHORT.replace('{gpu = "l4"}', '{gpu = "l4"}, {gpu = "l4", slowdown = 2.5}')
    desk, _ = read(tmp_path, text).network.tiers
    normal, slow, _ = desk.nodes
    assert (slow.name, slow.gpu.name) == ("desk-l4-1", "L4 2.5x slower")
    assert slow.usable_bytes == normal.usable_bytes
    block = hs.model("phi-3-mini").blocks[1]
    for prompt, output in ((1, 1), (700, 1), (50, 40)):
        seconds = [float(service_s(block, n.gpu, prompt, output)) for n in (normal, slow)]
        assert seconds[1] == pytest.approx(2.5 * seconds[0], rel=1e-12)


MACHINES = """
[[tiers]]
name = "rack"
[[tiers.nodes]]
gpu = "h100"
gpus = 8
interconnect = "nvlink4"
price_per_hour = 16.0
[[tiers.nodes]]
gpu = "l40s"
count = 2
gpus = 4
interconnect = "pcie4"
tensor_parallel = 2
price_per_hour = 3.0
memory_gib = 40
"""


def test_machines_of_several_gpus(tmp_path):
    """A degree in the file makes nodes of groups, which share the price; else it is open."""
    site = read(tmp_path, MACHINES)
    box, *pairs = site.network.tiers[0].nodes
    assert (box.name, box.gpus, box.tensor_parallel) == ("rack-h100-0", 8, None)
    assert (box.interconnect.name, box.interconnect.basis) == ("nvlink4", "measured")
    assert [(n.name, n.host, n.gpus, n.tensor_parallel) for n in pairs] == [
        (f"rack-l40s-{i}/{j}", f"rack-l40s-{i}", 2, 2) for i in range(2) for j in range(2)
    ]
    assert {node.memory_bytes for node in pairs} == {40 * 2**30}
    assert site.price_per_hour == {"rack-h100-0": 16.0} | {node.name: 1.5 for node in pairs}


def test_groups_of_a_file_share_the_price(tmp_path):
    """One degree for all: the price of what is used stays, and other degrees are left out."""
    site = read(tmp_path, MACHINES)
    pairs = site.in_groups(2)
    assert len(pairs.network.tiers[0].nodes) == 4 + 4
    assert sum(pairs.price_per_hour.values()) == 16.0 + 2 * 3.0
    assert site.in_groups(8).price_per_hour == {"rack-h100-0": 16.0}
    mixed = site.in_groups({"rack-h100-0": 4})
    assert [n.gpus for n in mixed.network.tiers[0].nodes] == [4, 4, 2, 2, 2, 2]
    assert read(tmp_path, SHORT).in_groups(1).price_per_hour["old box"] == 0.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus = 8", "gpus = 0", "nodes 0: gpus must be at least 1, got 0"),
        ('interconnect = "nvlink4"', "",
         "nodes 0: interconnect must be given with gpus = 8: one of nvlink3"),
        ("nvlink4", "nvlink", "unknown interconnect 'nvlink'; did you mean nvlink"),
        ("tensor_parallel = 2", "tensor_parallel = 8",
         "nodes 1: node 'rack-l40s-0': tensor_parallel must be at most gpus = 4, got 8"),
        ("tensor_parallel = 2", "tensor_parallel = 3",
         "tensor_parallel must be 1 or one of 2, 4, 8, got 3"),
    ],
)  # fmt: skip
def test_wrong_machines_are_named(tmp_path, old, new, message):
    """The file, the entry, the key, the rule and the value."""
    with pytest.raises(ValueError, match=r"net\.toml: tier 0 'rack' ") as error:
        read(tmp_path, MACHINES.replace(old, new))
    assert message in str(error.value)


def test_own_gpus_are_proposed_and_names_are_free(tmp_path):
    with pytest.raises(
        ValueError, match=r"net.toml: tier 0 'desk' nodes 1: unknown gpu 'min'; .* mine\?"
    ):
        read(tmp_path, SHORT.replace('"mine"', '"min"', 1))
    text = (
        SHORT.replace('names = ["old box"]', 'names = ["desk-l4-1"]')
        .replace('{gpu = "l4"}, ', "")
        .replace("price_per_hour = 0.5}", 'price_per_hour = 0.5}, {gpu = "l4", count = 2}')
    )
    desk, _ = read(tmp_path, text).network.tiers
    assert [node.name for node in desk.nodes] == ["desk-l4-1", "desk-l4-0", "desk-l4-2"]


def test_the_example_of_init_can_be_read_and_planned(tmp_path):
    site = read(tmp_path, EXAMPLE)
    assert [tier.name for tier in site.network.tiers] == ["desk", "box", "rented"]
    assert hs.plan("llama-3-8b", site, output_tokens=8, with_upgrades=False).fits
    read(tmp_path, re.sub(r"(?m)^# (\w+ = |\[)", r"\1", EXAMPLE))  # what is optional in it


def test_networks_of_the_repository_give_their_sources():
    for name in networks():
        text = (instances._FOLDER / f"{name}.toml").read_text()
        assert text.count("source = ") == (
            text.count("reserved_gib") + 2 * text.count("[tiers.link]")
        )
        assert text.startswith("description = ")
        network(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '{gpu = "l4"}',
            '{gpu = "l4", slowdown = 0.5}',
            "slowdown must be finite and at least 1, got 0.5",
        ),
        (
            '"embedding", 3',
            '"tail"',
            r"unknown block to pin \(\S*net.toml: tier 0\) 'tail'; choose",
        ),
        ('"embedding", 3', "-1", "tier 0: pin must be at least 0, got -1"),
        ('["embedding", 3]', '"embedding"', "tier 0: pin must be a list, got 'embedding'"),
        (
            '["head"]',
            '["embedding"]',
            "tier 1: pin must name a block once, got 'embedding' of ",
        ),
        (
            "max_blocks = 12",
            "max_blocks = -1",
            "tier 0: max_blocks must be at least 0, got -1",
        ),
        (
            "max_blocks = 12",
            "max_blocks = 0",
            "tier 0 'desk': max_blocks must be at least min_blocks, 1, got 0",
        ),
        (
            "price_per_hour = 2",
            "price_per_hour = -2",
            "price_per_hour must be finite and not neg",
        ),
        ('names = ["old box"]', "names = []", "names must be a list of at least one, got"),
        ('names = ["old box"]', "names = [3]", "names must be a string, got 3"),
        (
            'names = ["old box"]',
            'names = ["x"], count = 2',
            "count must be the number of names, 1",
        ),
        ('names = ["old box"]', 'names = ["desk-l4-0"]', "node names must be distinct"),
        ("[gpus.mine]", "[gpus.l4]", "gpu 'l4': name must not be one of the catalogue's"),
        ("tflops = 60", "tflops = 0", "gpu 'mine': tflops must be positive and finite, got 0"),
        ("tflops = 60", "", "gpu 'mine': key 'tflops' is missing"),
        ("tflops = 60", "tflops = 60\nsize = 3", "gpu 'mine': unknown key 'size'; known: "),
        ("tflops = 60", "tflop = 60", "gpu 'mine': unknown key 'tflop'; did you mean tflops?"),
        (
            'gpu = "l4"',
            'gpux = "l4"',
            "tier 0 'desk' nodes 0: unknown key 'gpux'; did you mean gpu?",
        ),
        (
            'gpu = "l4"',
            'gpu = "l4", reserved_gib = 24.5',
            "reserved_gib must be below the memory, 24 GiB, got 24.5",
        ),
        (
            'gpu = "l4"',
            'gpu = "l4", memory_gib = 4, reserved_gib = 4',
            "reserved_gib must be below the memory, 4 GiB, got 4",
        ),
        (
            "max_blocks = 12",
            "most_blocks = 12",
            "tier 0: unknown key 'most_blocks'; did you mean max_blocks?",
        ),
        (
            "max_blocks = 12",
            "least_blocks = 1",
            "tier 0: unknown key 'least_blocks'; did you mean min_blocks?",
        ),
        ('"mine"', '"yours"', "unknown gpu 'yours'"),
        ('gpu = "l4"', 'gpu = "l4", host = 3', "tier 0 'desk' nodes 0: host must be a string"),
        ('gpu = "l4"', 'gpu = "l4", host = ""', "nodes 0: host must not be empty"),
        ('gpu = "l4"', 'gpu = "l4", host = "a\\nb"', "nodes 0: host must be printable, got"),
        ("max_blocks = 12", "host = 3", "tier 0: host must be a string, got 3"),
        ("max_blocks = 12", f"max_blocks = {'9' * 5000}", "net.toml: not TOML: Exceeds"),
        ("tflops = 60", "tflops = 1e101", r"gpu 'mine': tflops must be at most 1e\+100, got"),
    ],
)
def test_bad_files(old, new, message, tmp_path):
    assert old in SHORT
    with pytest.raises((ValueError, TypeError), match=message):
        read(tmp_path, SHORT.replace(old, new, 1))


def test_gpus_are_tables(tmp_path):
    with pytest.raises(TypeError, match="gpus must be tables, got 3"):
        read(tmp_path, "gpus = 3\n" + SHORT[: SHORT.index("[gpus")])


def test_nodes_say_which_machine_they_are_in(tmp_path):
    """A group's host goes before the tier's; without one, a node is a machine of its own."""
    text = """
[[tiers]]
name = "box"
host = "box.lan"
nodes = [{gpu = "rtx-3090", count = 2}, {gpu = "l4", host = "other.lan"}]
link = {gbps = 1, latency_ms = 1}
[[tiers]]
name = "rest"
nodes = [{gpu = "l4"}]
"""
    network = read(tmp_path, text).network
    hosts = [[node.host for node in tier.nodes] for tier in network.tiers]
    assert hosts == [["box.lan", "box.lan", "other.lan"], [""]]


def test_hosts_leave_the_digest_of_an_instance_alone(tmp_path):
    """Where a GPU sits changes the commands that start it, not its times."""

    def digest(text):
        network = read(tmp_path, text).network
        requests = hs.Requests.of([hs.Request(arrival_s=0, prompt_tokens=8, output_tokens=2)])
        deployment = hs.Deployment(
            model=hs.model("phi-3-mini"), network=network, requests=requests
        )
        return hs.to_instance(deployment).digest()

    text = '[[tiers]]\nname = "box"\nnodes = [{gpu = "l4", count = 2}]\n'
    assert digest(text) == digest(text.replace('"l4",', '"l4", host = "box.lan",'))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": 3}, "node 'a': host must be a string, got 3"),
        ({"host": "a\nb"}, "node 'a': host must be printable"),
        ({"card": -1}, "node 'a': card must be at least 0, got -1"),
        ({"card": 0.5}, "node 'a': card must be a whole number, got 0.5"),
    ],
)
def test_bad_hosts_of_a_node_are_refused(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        hs.Node(name="a", gpu=hs.gpu("l4"), **fields)


def test_two_nodes_are_not_one_card():
    nodes = [hs.Node(name=name, gpu=hs.gpu("l4"), host="box", card=0) for name in "ab"]
    with pytest.raises(
        ValueError, match="'n': cards must be distinct, got '0 of host box' twi"
    ):
        hs.Network(name="n", tiers=(hs.Tier(name="t", nodes=tuple(nodes)),))


@pytest.mark.parametrize(
    ("runtime", "arguments", "expected"),
    [
        ('"llama.cpp"', {}, ("llama.cpp", 4)),
        ('{name = "vllm", max_num_seqs = 64}', {}, ("vllm", 64)),
        ('{name = "vllm", max_num_seqs = 64}', {"runtime": "vllm"}, ("vllm", 64)),
        ('{name = "vllm", max_num_seqs = 64}', {"max_num_seqs": 8}, ("vllm", 8)),
        ('{name = "vllm", max_num_seqs = 64}', {"runtime": "ideal"}, ("ideal", 64)),
        (
            '{name = "vllm", max_num_seqs = 9}',
            {"runtime": "sglang"},
            ("sglang", 2048),
        ),
        (None, {}, ("ideal", 64)),
    ],
)
def test_a_file_names_its_runtime(runtime, arguments, expected, tmp_path):
    """Replace the runtime of a file by another one that is asked for, with its values."""
    line = f"runtime = {runtime}" if runtime else ""
    query = hs.PlanQuery.of("phi-3-mini", read(tmp_path, line + SHORT), **arguments)
    assert (query.runtime.name, query.runtime.max_num_seqs) == expected


def test_defaults_of_a_runtime_are_those_for_the_gpus_of_the_file(tmp_path):
    large = re.sub(r"(?s)\[\[tiers\]\].*?(?=\[\[tiers\]\])", "", SHORT).replace(
        "a100-80gb", "h100"
    )
    for text, tokens in ((SHORT, 2048), (large, 8192)):
        site = read(tmp_path, 'runtime = "vllm"\n' + text)
        assert site.runtime.max_num_batched_tokens == tokens


def test_every_value_of_a_runtime_can_be_in_a_file():
    """A new attribute of `Runtime` must be a key, or be what only the catalogue knows."""
    of_catalogue = {
        "activation_widths", "logits_copies", "platforms", "weight_file", "server", "version",
    }  # fmt: skip
    attributes = {field.name for field in dataclasses.fields(hs.Runtime)}
    assert set(RuntimeTable.__annotations__) == attributes - of_catalogue


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ('"vlm"', r"net.toml: unknown runtime 'vlm'; did you mean vllm\?"),
        ("3", "net.toml: runtime must be a name or a table, got 3"),
        ("{max_num_seqs = 3}", "net.toml: runtime: key 'name' is missing"),
        ('{name = "vllm", seqs = 3}', "net.toml: runtime: unknown key 'seqs'; "),
        (
            '{name = "vllm", max_num_seqs = 0}',
            "runtime: max_num_seqs must be at least 1, got 0",
        ),
        (
            '{name = "vllm", memory_fraction = 1.5}',
            "memory_fraction must be at most 1, got 1.5",
        ),
        (
            '{name = "vllm", batching = "none"}',
            "net.toml: runtime 'vllm': batching must be one",
        ),
    ],
)
def test_bad_runtimes_of_a_file(runtime, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        read(tmp_path, f"runtime = {runtime}\n" + SHORT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{gpu = "h100", gpus = 8}]',
            "tier 0 'a' nodes 0: interconnect must be given with gpus",
        ),
        (
            '{gpu = "l4"}]\ntensor_parallel = 3',
            "tier 0: key 'tensor_parallel' belongs to nodes",
        ),
        ('{gpu = "l4"}, {gpu = "no/p.toml"}]', "tier 'a' nodes 1: gpu no/p.toml"),
    ],
)
def test_errors_name_the_place_once(tmp_path, text, words):
    """One named it twice, one not at all, and one listed keys without saying where it goes."""
    path = tmp_path / "net.toml"
    path.write_text(f'[[tiers]]\nname = "a"\nnodes = [{text}\n')
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_network_file(path)
    assert words in str(caught.value) and str(caught.value).count("net.toml") == 1
