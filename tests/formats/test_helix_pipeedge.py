"""Clusters of PipeEdge and Helix: every number is read, every wrong file is refused."""

import itertools
import math
import re

import pytest

import hypsolve as hs
from hypsolve.formats import helix_pipeedge
from hypsolve.formats.helix_pipeedge import read_helix, read_pipeedge

MODELS = """\
idle: {layers: 0, mem_MB: [], parameters_in: 0, parameters_out: []}
lab/tiny-vit:
  layers: 4
  mem_MB: [30.5, 12, 20.25, 44]
  parameters_in: 150000
  parameters_out: [40000, 90000, 25000,
    10]
"""
TYPES = """\
idle:
  bw_Mbps: 0
  mem_MB: 0
  model_profiles:
board:
  bw_Mbps: 100
  mem_MB: 64
  model_profiles:
    lab/tiny-vit:
    - batch_size: 4
      dtype: torch.float32
      time_s: [9.0, 9.0, 9.0, 9.0]
    - batch_size: 8
      dtype: torch.float32
      time_s: [0.4, 0.1, 0.3, 0.35]
    - batch_size: 8
      dtype: torch.float16
      time_s: [0.2, 0.05, 0.15, 0.175]
server:
  bw_Mbps: 1000.0
  mem_MB: 8192
  model_profiles:
    other: [{batch_size: 8, dtype: torch.float32, time_s: [1.0]}]
    lab/tiny-vit:
    - {batch_size: 8, dtype: torch.float32, time_s: [0.1, 0.02, 0.08, 0.09]}
"""
DEVICES = """\
idle: []
server: [big]
board:
- left
- 10.0.0.7
"""
MEM = [30.5, 12, 20.25, 44]
OUT = [150000, 40000, 90000, 25000]  # of what crosses cuts 0 to 3
TIME = {"board": [0.4, 0.1, 0.3, 0.35], "server": [0.1, 0.02, 0.08, 0.09]}
TYPE = {"big": "server", "left": "board", "10.0.0.7": "board"}
MB = 1024 * 1024


def write(tmp_path, models=MODELS, types=TYPES, devices=DEVICES):
    texts = {"models.yml": models, "device_types.yml": types, "devices.yml": devices}
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [tmp_path / name for name in texts]


def pipeedge(tmp_path, **options):
    texts = {key: options.pop(key) for key in ("models", "types", "devices") if key in options}
    return read_pipeedge(*write(tmp_path, **texts), **({"model": "lab/tiny-vit"} | options))


def best_s(hosts, *, allow_empty=False, overlap=True, reserved=0.0):
    """Return the best bottleneck over all splits, from the numbers above alone."""
    best = math.inf
    for inner in itertools.product(range(5), repeat=len(hosts) - 1):
        cuts = [0, *inner, 4]
        worst = 0.0
        for k, host in enumerate(hosts):
            blocks = range(cuts[k], cuts[k + 1])
            memory = (64 if TYPE[host] == "board" else 8192) * MB - reserved
            empty = not blocks and not allow_empty
            if cuts[k] > cuts[k + 1] or empty or sum(MEM[b] for b in blocks) * MB > memory:
                worst = math.inf
            work = sum(TIME[TYPE[host]][b] for b in blocks)
            send = 0.0
            if k + 1 < len(hosts) and cuts[k + 1] < 4:
                slow = "board" in (TYPE[host], TYPE[hosts[k + 1]])
                bits_per_s = (100 if slow else 1000) * 1024**2
                send = OUT[cuts[k + 1]] * 4 * 8 * 8 / bits_per_s
            worst = max(worst, work, send) if overlap else max(worst, work + send)
        best = min(best, worst)
    return best


def test_every_number_of_pipeedge_arrives(tmp_path):
    instance = pipeedge(tmp_path)
    assert instance.tier_names == instance.node_names == ("big", "left", "10.0.0.7")
    assert instance.class_names == ("server", "board")
    assert instance.node_tier.tolist() == [0, 1, 2]
    assert instance.node_class.tolist() == [0, 1, 1]
    assert instance.block_s.tolist() == [[TIME["server"], TIME["board"]]]
    assert instance.block_bytes.tolist() == [31981568.0, 12582912.0, 21233664.0, 46137344.0]
    assert instance.node_bytes.tolist() == [8589934592.0, 67108864.0, 67108864.0]
    # 32 bytes per element of 8 requests; both links end at a board of 13,107,200 bytes/s
    sent = [4_800_000, 1_280_000, 2_880_000, 800_000, 0]
    row = [n_bytes / 13_107_200 for n_bytes in sent]
    assert instance.transfer_s.tolist() == [[pytest.approx(row), pytest.approx(row)]]
    assert instance.reference_link_s.tolist() == [pytest.approx(row), pytest.approx(row)]
    assert (instance.n_requests, instance.n_blocks, instance.name) == (1, 4, "lab/tiny-vit")
    assert instance.overlap and not instance.allow_empty
    assert instance.objective == "bottleneck" and instance.tied_bytes == 0


def test_a_link_between_two_fast_hosts_is_fast(tmp_path):
    devices = "server: [a, b]\nboard: [c]"
    first, second = pipeedge(tmp_path, devices=devices).transfer_s[0]
    assert first == pytest.approx(second / 10)
    assert second[1] == pytest.approx(1_280_000 / 13_107_200)


def test_profile_and_element_size_follow_batch_size_and_dtype(tmp_path):
    half = pipeedge(tmp_path, order=["left"], dtype="torch.float16")
    assert half.block_s.tolist() == [[[0.2, 0.05, 0.15, 0.175]]]
    two = ["left", "10.0.0.7"]
    four = pipeedge(tmp_path, order=two, batch_size=4)
    assert four.block_s.tolist() == [[[9.0] * 4]]
    full = pipeedge(tmp_path, order=two).transfer_s
    assert four.transfer_s == pytest.approx(full / 2)
    half = pipeedge(tmp_path, order=two, dtype="torch.float16")
    assert half.transfer_s == pytest.approx(full / 2)


def test_the_order_is_the_callers_and_may_leave_out(tmp_path):
    instance = pipeedge(tmp_path, order=["10.0.0.7", "big"])
    assert instance.tier_names == ("10.0.0.7", "big")
    assert instance.class_names == ("board", "server")
    assert instance.block_s.tolist() == [[TIME["board"], TIME["server"]]]
    assert instance.node_bytes.tolist() == [64 * MB, 8192 * MB]
    # a type that no host in the order has needs no profile
    types = TYPES.replace("lab/tiny-vit:\n    - {", "elsewhere:\n    - {")
    assert pipeedge(tmp_path, types=types, order=["left"]).n_tiers == 1
    with pytest.raises(ValueError, match="device type 'server': model_profiles"):
        pipeedge(tmp_path, types=types)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("allow_empty", [True, False])
@pytest.mark.parametrize(
    "order",
    [list(some) for n in (1, 2, 3) for some in itertools.permutations(TYPE, n)],
    ids="-".join,
)
def test_solving_it_matches_enumeration(tmp_path, order, allow_empty, overlap):
    options = {"allow_empty": allow_empty, "overlap": overlap}
    instance = pipeedge(tmp_path, order=order, **options)
    best = best_s(order, **options)
    result = hs.solve(instance, "hypsplit_dp")
    assert result.objective_s == pytest.approx(best, rel=1e-12)
    assert result.status == ("optimal" if best < math.inf else "infeasible")


def test_memory_binds_and_reserved_bytes_are_kept_free(tmp_path):
    order = ["left", "10.0.0.7"]  # 64 MB each: 62.75 and 44 fit, or 42.5 and 64.25 do not
    fits = hs.solve(pipeedge(tmp_path, order=order), "hypsplit_dp")
    assert fits.partition.cuts == (0, 3, 4)
    less = pipeedge(tmp_path, order=order, reserved_bytes=1.25 * MB)
    assert hs.solve(less, "hypsplit_dp").status == "optimal"  # 62.75 MB fit exactly
    assert less.node_bytes.tolist() == [62.75 * MB] * 2
    none = pipeedge(tmp_path, order=order, reserved_bytes=1.25 * MB + 1)
    assert hs.solve(none, "hypsplit_dp").status == "infeasible"
    assert best_s(order, reserved=1.25 * MB + 1) == math.inf


BAD_YAML = [
    # file, old, new, message
    ("models", MODELS, "", r"models\.yml: must be a mapping, got None"),
    ("models", MODELS, "- 1", r"models\.yml: must be a mapping, got \[1\]"),
    ("models", "layers: 4", "layers: [4", r"models\.yml: line \d+: "),
    ("models", MODELS, b"a: \xff", r"models\.yml: not YAML: .*utf-8"),
    ("models", MODELS, "a: \x00", r"models\.yml: not YAML: .*special characters"),
    ("models", MODELS, "[" * 5000, r"models\.yml: not YAML: .*recursion"),
    ("models", MODELS, "a: 2001-99-99", r"models\.yml: not YAML: .*month"),
    ("models", MODELS, "a: 1\n---\na: 2", r"models\.yml: line 2: "),
    ("models", "layers: 4", "layers: !!python/name:os.system x", r"line 3: .*python/name"),
    ("models", "  layers: 4", "  layers: 4\n  layers: 5", r"line 4: key 'layers' occurs twice"),
    ("models", "idle:", "lab/tiny-vit:", r"line 2: key 'lab/tiny-vit' occurs twice"),
    ("models", "  layers: 4", "  layers: 4\n  'layers': 5", r"key 'layers' occurs twice"),
    ("models", "  layers: 4", "  layers: 4\n  7: 5", r"line 4: keys must be strings, got 7"),
    ("models", "  layers: 4", "  layers: 4\n  <<: {a: 1}", r"keys must be strings, got <<"),
    ("models", "44]", "&x 44]\nb: *x", r"line 5: aliases are not read: write the value out"),
    ("models", "lab/tiny-vit", "lab/vit", r"unknown model \(\S*models\.yml\) 'lab/tiny-vit'"),
    ("models", "  layers: 4\n", "", r"model 'lab/tiny-vit': key 'layers' is missing"),
    ("models", "layers: 4", "layers: 4\n  flops: 1", r"tiny-vit': unknown key 'flops'; known"),
    ("models", "layers: 4", "layers: 4.0", r"layers must be a whole number, got 4\.0"),
    ("models", "layers: 4", "layers: 0", r"layers must be at least 1, got 0"),
    ("models", "layers: 4", "layers: 5", r"mem_MB must be a list of 5 numbers, one per layer"),
    ("models", "12, ", "-12, ", r"mem_MB\[1\] must be finite and not negative, got -12"),
    ("models", "12, ", ".nan, ", r"mem_MB\[1\] must be finite and not negative, got nan"),
    ("models", "12, ", "'12', ", r"mem_MB\[1\] must be a number, got '12'"),
    ("models", "12, ", "true, ", r"mem_MB\[1\] must be a number, got True"),
    ("models", "in: 150000", "in: -1", r"parameters_in must be at least 0, got -1"),
    ("models", "90000", "9.5", r"parameters_out\[1\] must be a whole number, got 9\.5"),
    ("models", "90000", "1" + "0" * 200, r"parameters_out\[1\] must be at most 1e\+150"),
    ("models", "25000,\n    10", "25000", r"parameters_out must be a list of 4 numbers"),
    ("types", "server:", "machine:", r"unknown device type \(\S*device_types\.yml\) 'server'"),
    ("types", "server:", "board:", r"device_types\.yml: line \d+: key 'board' occurs twice"),
    ("types", "  mem_MB: 64\n", "", r"device type 'board': key 'mem_MB' is missing"),
    ("types", "mem_MB: 64", "mem_MB: -1", r"type 'board': mem_MB must be finite and not neg"),
    ("types", "Mbps: 100\n", "Mbps: 0\n", r"'board': bw_Mbps must be positive and finite, got"),
    ("types", "Mbps: 100\n", "Mbps: fast\n", r"bw_Mbps must be a number, got 'fast'"),
    ("types", "    - batch_size: 8\n      dtype: torch.float16", "    - batch_size: 8\n"
     "      dtype: torch.float32", r"'board': model_profiles must hold one profile of 'lab/tiny"
     r"-vit' with batch_size 8 and dtype torch\.float32, got \[\(4, .*\), \(8, .*\), \(8, "),
    ("types", "{batch_size: 8, dtype: torch.float32, time_s: [0.1, 0.02, 0.08, 0.09]}", "7",
     r"'server': profile of 'lab/tiny-vit': must be a mapping, got 7"),
    ("types", "0.1, 0.3, 0.35", "0.1, 0.3", r"'board': time_s must be a list of 4 numbers"),
    ("types", "0.1, 0.3, 0.35", "0.1, -0.3, 1", r"time_s\[2\] must be finite and not negative"),
    ("types", "0.1, 0.3, 0.35", "0.1, 1e-3, 1", r"time_s\[2\] must be a number, got '1e-3'"),
    ("types", "    lab/tiny-vit:\n    - batch_size: 4", "    - batch_size: 4",
     r"'board': model_profiles must map models to lists, got \[\{'batch_size': 4"),
    ("types", "  lab/tiny-vit:\n    - {", "  lab/tiny-vit:\n      x: {",
     "'server': model_profiles must map models to lists, got {'other': "),
    ("types", "  model_profiles:\nboard:", "  model_profiles: {}\nbord:",
     "unknown device type .*'board'; did you mean bord"),
    ("devices", DEVICES, "board: []", r"devices\.yml: must hold at least one host, got none"),
    ("devices", "server: [big]", "server: big", r"type 'server': hosts must be a list, got 'b"),
    ("devices", "server: [big]", "server: [left]", r"hosts must be distinct, got 'left' twice"),
    ("devices", "server: [big]", "server: [3]", "'server': host: name must be a string, got 3"),
    ("devices", "server: [big]", "laser: [big]", r"unknown device type .* 'laser'; choose one"),
    ("devices", "idle: []", "idle: [zero]", "type 'idle': bw_Mbps must be positive"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "message"), BAD_YAML)
def test_bad_pipeedge_files_give_one_clear_error(tmp_path, file, old, new, message):
    text = {"models": MODELS, "types": TYPES, "devices": DEVICES}[file]
    assert old in text
    if old != text:
        new = text.replace(old, new, 1)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        pipeedge(tmp_path, **{file: new})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert"}, "unknown model .*'bert'; choose one of idle, lab/tiny-vit"),
        ({"model": "idle"}, "model 'idle': layers must be at least 1, got 0"),
        ({"batch_size": 16}, r"with batch_size 16 and dtype torch.float32, got \[\(8,"),
        ({"batch_size": 0}, "read_pipeedge: batch_size must be at least 1, got 0"),
        ({"batch_size": 8.0}, "read_pipeedge: batch_size must be a whole number, got 8.0"),
        ({"dtype": "torch.int64"}, "unknown dtype 'torch.int64'; .*torch.float32"),
        ({"order": "left"}, "read_pipeedge: order must be a sequence of names, got 'left'"),
        ({"order": []}, "read_pipeedge: order must name at least one"),
        ({"order": ["left", "left"]}, "order must name at least one, once, got"),
        (
            {"order": ["right"]},
            r"unknown host \(\S*devices.yml\) 'right'; choose one of big, left",
        ),
        ({"reserved_bytes": -1}, "read_pipeedge: reserved_bytes must be finite and not negat"),
        ({"reserved_bytes": 65 * MB}, "'board': mem_MB must be at least reserved_bytes, 6.8"),
        ({"objective": "speed"}, "objective must be one of bottleneck"),
    ],
)
def test_bad_pipeedge_options(tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pipeedge(tmp_path, **options)


def test_files_too_large_or_absent(tmp_path, monkeypatch):
    paths = write(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        read_pipeedge(tmp_path / "nowhere.yml", *paths[1:], model="lab/tiny-vit")
    with pytest.raises(
        TypeError, match="read_pipeedge: path must be a string or a path, got 7"
    ):
        read_pipeedge(7, *paths[1:], model="lab/tiny-vit")
    with pytest.raises(OSError, match="nowhere"):
        read_helix(tmp_path / "nowhere.ini")
    with pytest.raises(
        TypeError, match="read_helix: path must be a string or a path, got None"
    ):
        read_helix(None)
    monkeypatch.setattr(helix_pipeedge, "MAX_CELLS", 14)
    with pytest.raises(ValueError, match=r"tiny-vit': layers \+ 1 times hosts must be at most"):
        pipeedge(tmp_path)
    monkeypatch.setattr(helix_pipeedge, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match=r"models\.yml: file must have at most 20") as caught:
        pipeedge(tmp_path)
    assert "YAML" not in str(caught.value)
    with pytest.raises(ValueError, match=r"site\.ini: file must have at most 20 bytes"):
        helix(tmp_path, HELIX)


# Helix

ENDS = {  # pair of nodes: MB/s, ms
    (0, 1): ("1250 * mbps", "1 * MilliSec"),
    (0, 2): ("12.5 * mbps", "55 * MilliSec"),
    (0, 3): ("13.5 * mbps", "40 * MilliSec"),
    (0, 4): ("700 * kbps", "0.08"),
    (1, 2): ("11 * mbps", "51.00000000000001 * MilliSec"),
    (1, 3): ("14.5 * mbps", "59 * MilliSec"),
    (1, 4): ("0.8 * mbps", "70 * MilliSec"),
    (2, 3): ("1.25 * gbps", "0.001 * Sec"),
    (2, 4): ("900000", "60 * MilliSec"),
    (3, 4): ("1e6", "61 * MilliSec"),
}
TYPES_OF_NODES = ["L4", "L4", "T4", "A100", "T4"]


def cluster(types=TYPES_OF_NODES, ends=ENDS):
    """Return a file as Helix's generators write it, with comments."""
    n = len(types)
    lines = ["# **** made by hand **** #", "# seed: 0", "", "[NodeNames]"]
    lines += [f"total_compute_nodes={n}", ""]
    for end in ("SourceNode", "SinkNode"):
        lines += [f"[{end}]", f"connected_nodes={list(range(n))}", ""]
    for i, kind in enumerate(types):
        others = ["source", *(j for j in range(n) if j != i), "sink"]
        lines += [f"[ComputeNode-{i}]", f"type={kind}", f"connected_nodes={others}", ""]
    links = {("source", i): ("3 * mbps", "90 * MilliSec") for i in range(n)}
    links |= {(i, "sink"): ("2 * mbps", "95 * MilliSec") for i in range(n)}
    for (i, j), (rate, latency) in (links | ends).items():
        lines += [f"[Link-{i}-{j}]", f"bandwidth={rate}", f"latency={latency}", ""]
    return "\n".join(lines)


HELIX = cluster()


def helix(tmp_path, text, **options):
    path = tmp_path / "site.ini"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_helix(path, **options)


def shape(network):
    return {tier.name: [node.name[-1] for node in tier.nodes] for tier in network.tiers}


def wires(network):
    return [
        (tier.link.bytes_per_s, tier.link.latency_s, tier.link.round_trip_s)
        for tier in network.tiers[:-1]
    ]


def test_every_number_of_helix_arrives(tmp_path):
    network = helix(tmp_path, HELIX)
    assert network.name == "site"
    assert shape(network) == {"L4": ["0", "1"], "T4": ["2", "4"], "A100": ["3"]}
    assert [node.name for node in network.tiers[0].nodes] == ["ComputeNode-0", "ComputeNode-1"]
    for tier, gpu in zip(network.tiers, ("l4", "t4", "a100-40gb"), strict=True):
        for node in tier.nodes:
            assert node.gpu == hs.gpu(gpu)
            assert node.usable_bytes == hs.gpu(gpu).memory_bytes
    # of 0-2, 0-4, 1-2, 1-4 the least rate is of 0-4 and the largest latency its 0.08 s; of 2-3
    # and 4-3 both are of 4-3, which stands in the file as 3-4
    expected = [(7e5, 0.08, 0.16), (1e6, 0.061, 0.122)]
    assert wires(network) == [pytest.approx(wire, rel=1e-12) for wire in expected]
    assert network.tiers[-1].link is None


def test_rate_and_latency_may_come_from_two_links(tmp_path):
    near = helix(tmp_path, HELIX, tiers={"left": [0, 1], "right": [2, 3]})
    assert wires(near) == [pytest.approx((11e6, 0.059, 0.118), rel=1e-12)]


def test_the_order_of_types_is_the_callers_and_may_leave_out(tmp_path):
    network = helix(tmp_path, HELIX, tiers=["A100", "L4"])
    assert shape(network) == {"A100": ["3"], "L4": ["0", "1"]}
    assert wires(network) == [pytest.approx((13.5e6, 0.059, 0.118), rel=1e-12)]


def test_nodes_may_be_grouped_by_number_as_in_regions(tmp_path):
    tiers = {"east": [4], "west": [2, 3], "north": [1, 0]}
    network = helix(tmp_path, HELIX, tiers=tiers)
    assert shape(network) == {"east": ["4"], "west": ["2", "3"], "north": ["1", "0"]}
    assert [node.gpu.name for node in network.tiers[1].nodes] == ["T4", "A100-40GB"]
    expected = [(9e5, 0.061, 0.122), (11e6, 0.059, 0.118)]
    assert wires(network) == [pytest.approx(wire, rel=1e-12) for wire in expected]
    one = helix(tmp_path, HELIX, tiers={"all": [0, 1, 2, 3, 4]})
    assert len(one.tiers) == 1 and one.tiers[0].link is None


def test_gpus_stand_for_what_the_caller_says(tmp_path):
    mine = hs.GpuProfile(
        name="2 L4", t0_s=0, flops_per_s=1e14, bytes_per_s=4e11, memory_bytes=5e10
    )
    text = cluster(["V100", "L4x2", "T4", "A100", "H100"])
    network = helix(tmp_path, text, gpus={"L4x2": mine, "H100": "h100", "A100": "a100-80gb"})
    found = {tier.name: tier.nodes[0].gpu for tier in network.tiers}
    assert found == {
        "V100": hs.gpu("v100-16gb"), "L4x2": mine, "T4": hs.gpu("t4"),
        "A100": hs.gpu("a100-80gb"), "H100": hs.gpu("h100"),
    }  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"site\.ini: ComputeNode-1: type must be one of A100, L4, T4, V100, or one of"
        r" gpus \(hypsolve.read_machines reads several GPUs in a node\), got 'L4x2'",
    ):
        helix(tmp_path, text)
    assert len(helix(tmp_path, text, tiers=["V100", "T4"]).tiers) == 2  # L4x2 is left out


def test_numbers_not_names_order_the_nodes(tmp_path):
    """Node 10 comes after node 9, whatever the order of the sections."""
    n = 11
    ends = {pair: ("9 * mbps", "1") for pair in itertools.combinations(range(n), 2)}
    sections = cluster(["T4"] + ["L4"] * 9 + ["T4"], ends).split("\n\n")
    text = "\n\n".join([sections[0], *reversed(sections[1:])])
    network = helix(tmp_path, text)
    assert [node.name for node in network.tiers[0].nodes] == ["ComputeNode-0", "ComputeNode-10"]
    assert [node.name[12:] for node in network.tiers[1].nodes] == list("123456789")


def test_the_network_can_be_planned_on(tmp_path):
    site = helix(tmp_path, HELIX, tiers=["L4", "A100"])
    plan = hs.plan("llama-3-8b", site, output_tokens=8, with_upgrades=False)
    assert plan.fits


def test_links_that_are_not_used_may_be_absent(tmp_path):
    ends = {pair: wire for pair, wire in ENDS.items() if pair != (0, 1)}
    assert wires(helix(tmp_path, cluster(ends=ends))) == wires(helix(tmp_path, HELIX))


LINK = "[Link-0-4]\nbandwidth=700 * kbps\nlatency=0.08\n"
BAD_INI = [
    ("total_compute_nodes=5", "total_compute_nodes=6", r"total_compute_nodes must be the number"
     r" of sections ComputeNode-0, ComputeNode-1, \.\.\., which are \[0, 1, 2, 3, 4\]"),
    ("total_compute_nodes=5", "total_compute_nodes=05", "total_compute_nodes must be .* '05'"),
    ("[ComputeNode-4]", "[ComputeNode-5]", r"which are \[0, 1, 2, 3, 5\], got '5'"),
    ("[ComputeNode-4]", "[ComputeNode-04]", r"site\.ini: unknown section 'ComputeNode-04'; kn"),
    ("[NodeNames]\ntotal_compute_nodes=5\n", "", r"site\.ini: section 'NodeNames' is missing"),
    ("[SinkNode]\nconnected_nodes=[0, 1, 2, 3, 4]\n", "", "section 'SinkNode' is missing"),
    ("[NodeNames]", "[Coordinator]\ninbound_nic_speed=10.0 * mbps\n[NodeNames]",
     r"site\.ini: unknown section 'Coordinator'; known: \['NodeNames', 'SinkNode', 'SourceN"),
    ("[NodeNames]", "[DEFAULT]\ntype=T4\n[NodeNames]", "unknown section 'DEFAULT'"),
    ("[NodeNames]", "[NodeNames]\nseed=0", "NodeNames: unknown key 'seed'"),
    ("type=A100\n", "", "ComputeNode-3: key 'type' is missing"),
    ("type=A100\n", "type=A100\nvram=40\n", "ComputeNode-3: unknown key 'vram'; known"),
    ("type=A100\n", "type=A100\ntype=T4\n", r"not INI: .*site\.ini.*'type' .*already exists"),
    ("type=A100\n", "type=A100x2\n", r"ComputeNode-3: type must be one of .* got 'A100x2'"),
    ("type=A100\n", "type=\n", r"ComputeNode-3: type must be one of .* got ''"),
    ("[ComputeNode-3]", "[ComputeNode-2]", r"not INI: .*'ComputeNode-2' already exists"),
    ("[NodeNames]\n", "x=1\n[NodeNames]\n", r"not INI: File contains no section headers"),
    ("[NodeNames]\n", "[NodeNames]\nnonsense\n", r"not INI: Source contains parsing errors"),
    (LINK, "", r"site\.ini: tier 'L4': each node must be linked to each of the next tier, got"
     " no link between nodes 0 and 4"),
    (LINK, LINK + LINK.replace("0-4", "4-0"), "Link-4-0: ends must be two, and have no other"),
    (LINK, LINK.replace("0-4", "4-4"), "Link-4-4: ends must be two, and have no other link"),
    (LINK, LINK + LINK.replace("0-4", "0-7"), "ends of links must be nodes below 5, got 7"),
    (LINK, LINK + LINK.replace("0-4", "0-4-1"), "unknown section 'Link-0-4-1'"),
    (LINK, LINK + LINK.replace("0-4", "sink-4"), "unknown section 'Link-sink-4'"),
    ("bandwidth=700 * kbps", "latency_ms=3", "Link-0-4: unknown key 'latency_ms'"),
    ("bandwidth=700 * kbps\n", "", "Link-0-4: key 'bandwidth' is missing"),
    ("700 * kbps", "700 * kb", r"Link-0-4: bandwidth must be a number, or one times kbps or"
     r" mbps or gbps, got '700 \* kb'"),
    ("700 * kbps", "700 * MilliSec", "Link-0-4: bandwidth must be a number, or one times kbps"),
    ("700 * kbps", "__import__('os').getpid()", "Link-0-4: bandwidth must be a number, or one"),
    ("700 * kbps", "2 * 3", "Link-0-4: bandwidth must be a number, or one times"),
    ("700 * kbps", "nan", "Link-0-4: bandwidth must be a number, or one times"),
    ("700 * kbps", "0 * kbps", "Link-0-4: bandwidth must be positive and finite, got 0.0"),
    ("700 * kbps", "1e999", "Link-0-4: bandwidth must be positive and finite, got inf"),
    ("latency=0.08", "latency=-0.08", "Link-0-4: latency must be finite and not negative"),
    ("latency=0.08", "latency=1 * gbps", "latency must be a number, or one times Sec or Milli"),
    ("latency=0.08", "latency=%(x)s", "latency must be a number, or one times Sec or Milli"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD_INI)
def test_bad_helix_files_give_one_clear_error(tmp_path, old, new, message):
    assert old in HELIX
    with pytest.raises(ValueError, match=message) as caught:
        helix(tmp_path, HELIX.replace(old, new, 1))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert "site.ini" in str(caught.value)


def test_a_file_that_is_not_text_and_one_without_nodes(tmp_path):
    with pytest.raises(ValueError, match=r"site\.ini: not INI: .*utf-8"):
        helix(tmp_path, b"[NodeNames]\nx=\xff")
    with pytest.raises(ValueError, match=r"site\.ini: section 'NodeNames' is missing"):
        helix(tmp_path, "")
    with pytest.raises(ValueError, match=r"total_compute_nodes must be .* are \[\], got '0'"):
        helix(tmp_path, cluster([], {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiers": "L4"}, "read_helix: tiers must be a sequence of names, got 'L4'"),
        ({"tiers": []}, "read_helix: tiers must name at least one"),
        ({"tiers": {}}, "read_helix: tiers must name at least one"),
        ({"tiers": ["L4", "L4"]}, "read_helix: tiers must name at least one, once"),
        (
            {"tiers": ["L4", "H100"]},
            r"unknown type \(\S*site\.ini\) 'H100'; .*one of L4, T4, A100",
        ),
        ({"tiers": {"a": [0], "b": [0]}}, "tiers must name at least one, once, got"),
        ({"tiers": {"a": [0, 5]}}, r"unknown node \(\S*site\.ini\) '5'; choose one of 0, 1, 2"),
        ({"tiers": {"a": [-1]}}, r"read_helix: tiers\['a'\] must be at least 0, got -1"),
        ({"tiers": {"a": ["0"]}}, r"tiers\['a'\] must be a whole number, got '0'"),
        ({"tiers": {"a": [True]}}, r"tiers\['a'\] must be a whole number, got True"),
        ({"tiers": {"a": "01"}}, r"tiers\['a'\] must be a list, got '01'"),
        ({"tiers": {"a": [0], "b": []}}, "tier 'b': nodes must hold at least one node"),
        ({"gpus": ["L4"]}, r"read_helix: gpus must be a dict, got \['L4'\]"),
        ({"gpus": {"L4": "l5"}}, "unknown gpu 'l5'; did you mean l4"),
        ({"gpus": {"L4": 7}}, "gpu must be a GpuProfile, got 7"),
    ],
)
def test_bad_helix_options(tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        helix(tmp_path, HELIX, **options)


def test_errors_name_their_line(tmp_path):
    """Messages count lines from 1."""
    line = 1 + TYPES.split("\n").index("server:")
    with pytest.raises(ValueError, match=re.escape(f"line {line}: key 'board'")):
        pipeedge(tmp_path, types=TYPES.replace("server:", "board:"))


def test_a_plan_takes_the_file_itself(tmp_path):
    network = helix(tmp_path, HELIX)
    found = hs.plan(
        "phi-3-mini", tmp_path / "site.ini", concurrency=1, output_tokens=2, with_upgrades=False
    )
    assert found.fits and found.network.network == network
