"""Machines from network files, clusters of Helix and inventories: facts, notes and refusals."""

import itertools

import pytest

import hypsolve as hs
import instances
from tests.helpers.machines_files import HEADER, HOSTS, RIG, TIERS, cluster

# --- network files ----------------------------------------------------------------------------


def read(tmp_path, text, name="lab.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return hs.read_machines(path)


def wire(link):
    return link.bytes_per_s, link.latency_s, link.round_trip_s


def test_tiers_become_sites(tmp_path):
    file = read(tmp_path, TIERS)
    fleet = file.fleet
    assert [(m.name, m.site, m.node.gpus, m.price_per_hour) for m in fleet.machines] == [
        ("desk-l4-0", "desk", 1, 0.5), ("desk-l4-1", "desk", 1, 0.5),
        ("rack-l40s-0", "rack", 4, 3.0), ("rack-l40s-1", "rack", 4, 3.0),
        ("cloud-a100-80gb-0", "cloud", 1, 0.0),
    ]  # fmt: skip
    assert all(m.node.tensor_parallel is None for m in fleet.machines)
    assert fleet.machines[0].node.usable_bytes == 22 * 2**30
    assert (file.currency, file.runtime.name) == ("USD", "vllm")
    assert wire(fleet.site_link("desk", "desk")) == pytest.approx((2.5e8, 1e-3, 2e-3))
    assert wire(fleet.site_link("desk", "rack")) == pytest.approx((1.25e8, 2e-3, 4e-3))
    # a message to the cloud crosses both links, one after the other: 8 + 2 ns a byte
    assert wire(fleet.site_link("desk", "cloud")) == pytest.approx((1e8, 7e-3, 0.015))
    assert wire(fleet.site_link("cloud", "desk")) == pytest.approx((1e8, 8e-3, 0.015))
    pins = file.fleet_for(hs.model("llama-3-8b")).pins
    assert {(pin.start, pin.stop, pin.sites) for pin in pins} == {
        (0, 1, ("desk",)), (4, 5, ("desk",)), (33, 34, ("cloud",))
    }  # fmt: skip
    assert file.notes == (
        "the tiers are sites, whose order does not count; requests enter at the first one",
        "tensor_parallel is chosen anew: tier 'rack' nodes 0",
        "tier 'rack' without inner links: machines are assumed to reach each other at 4 Gbit/s,"
        " 5 ms one way, the fastest link of the file",
        "min_blocks is left out: it counts the blocks of a tier",
    )


def test_one_tier_has_an_assumed_link(tmp_path):
    text = '[[tiers]]\nname = "a"\nnodes = [{gpu = "l4", count = 2}]'
    file = read(tmp_path, text)
    assert wire(file.fleet.sites[0].link) == (1.25e8, 2e-4, 4e-4)
    assert "tier 'a' without inner links: machines are assumed" in file.notes[1]


def test_errors_of_network_files_stay(tmp_path):
    """A wrong degree is refused, too, although placements choose degrees anew."""
    with pytest.raises(ValueError, match=r"lab\.toml: tier 1 'rack' nodes 0: .*at most gpus"):
        read(tmp_path, TIERS.replace("tensor_parallel = 2", "tensor_parallel = 8"))


@pytest.mark.parametrize("name", instances.networks())
def test_networks_of_the_repository(name):
    network = instances.network(name)
    file = hs.read_machines(instances._FOLDER / f"{name}.toml")
    nodes = {node.name: tier.name for tier in network.tiers for node in tier.nodes}
    assert {machine.name: machine.site for machine in file.fleet.machines} == nodes


# --- clusters of Helix ------------------------------------------------------------------------


def test_several_gpus_in_a_node_of_helix(tmp_path):
    """T4x4 is a machine of four T4, on PCI Express 3.0; both are refused by `read_helix`."""
    text = cluster(["T4x4", "L4x2", "V100", "A100"], lambda i, j: ("1 * gbps", "0.001"))
    file = read(tmp_path, text, "site.ini")
    found = [
        (m.name, m.node.gpu, m.node.gpus, m.node.interconnect and m.node.interconnect.name)
        for m in file.fleet.machines
    ]
    assert found == [
        ("ComputeNode-0", hs.gpu("t4"), 4, "pcie3"),
        ("ComputeNode-1", hs.gpu("l4"), 2, "pcie4"),
        ("ComputeNode-2", hs.gpu("v100-16gb"), 1, None),
        ("ComputeNode-3", hs.gpu("a100-40gb"), 1, None),
    ]  # fmt: skip
    fleet = file.fleet
    assert [site.name for site in fleet.sites] == ["cluster", "coordinator"]
    assert wire(fleet.site_link("cluster", "cluster")) == (1e9, 1e-3, 2e-3)
    # rates stand for bytes/s in Helix; the way back is that of the sink
    assert wire(fleet.site_link("coordinator", "cluster")) == pytest.approx((2e6, 0.01, 0.04))
    assert fleet.entry == {"coordinator": 1.0}
    assert "the interconnect among the GPUs of T4x4 is assumed to be pcie3" in file.notes


def test_regions_of_helix(tmp_path):
    """Latencies of 1 ms inside and 40 to 60 ms across tell three regions apart."""
    region = [0, 1, 0, 2, 1, 2, 0]

    def link(i, j):
        if region[i] == region[j]:
            return f"{1000 + i} * mbps", "1 * MilliSec"
        return f"{10 + i + j} * mbps", f"{40 + i * j} * MilliSec"

    file = read(tmp_path, cluster(["T4"] * 7, link), "site.ini")
    fleet = file.fleet
    assert [machine.site for machine in fleet.machines] == [f"region-{r}" for r in region]
    assert wire(fleet.site_link("region-0", "region-0")) == pytest.approx((1e9, 1e-3, 2e-3))
    pairs = [(i, j) for i, j in itertools.combinations(range(7), 2)
             if {region[i], region[j]} == {0, 2}]  # fmt: skip
    rate = min(10 + i + j for i, j in pairs) * 1e6
    latency_s = max(40 + i * j for i, j in pairs) * 1e-3
    assert wire(fleet.site_link("region-2", "region-0")) == pytest.approx(
        (rate, latency_s, 2 * latency_s)
    )
    assert any("region-1: nodes 1, 4" in note for note in file.notes)
    assert any("lowest rate and the highest latency" in note for note in file.notes)


def test_near_and_far_links_without_regions_are_one_site(tmp_path):
    """0 and 1 are near, 1 and 2 are near, 0 and 2 are not: no regions."""
    latency = {(0, 1): 0.001, (1, 2): 0.001, (0, 2): 0.05}
    file = read(tmp_path, cluster(["T4"] * 3, lambda i, j: ("1e6", latency[i, j])), "site.ini")
    assert [site.name for site in file.fleet.sites] == ["cluster", "coordinator"]
    assert wire(file.fleet.sites[0].link) == pytest.approx((1e6, 0.05, 0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cluster(["T4", "X9"], lambda i, j: ("1", "1")),
         "site.ini: ComputeNode-1: type: unknown gpu 'X9'; "),
        (cluster(["T4", "A100x0"], lambda i, j: ("1", "1")), "type: unknown gpu 'A100x0'"),
        (cluster(["T4"] * 3, lambda i, j: None if j == 2 else ("1", "1")),
         "each node must be linked to each other, got no link between nodes 0 and 2 .a pruned"),
        (cluster(["T4", "T4"], lambda i, j: ("fast", "1")), "Link-0-1: bandwidth must be a n"),
        ("[NodeNames]", r"site.ini: section 'SinkNode' is missing"),
        (b"\xff", "site.ini: not INI: "),
    ],
)  # fmt: skip
def test_bad_clusters(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, "site.ini")
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_cluster_of_one_node(tmp_path):
    file = read(tmp_path, cluster(["T4x2"], lambda i, j: None), "site.ini")
    assert file.fleet.n_gpus == 2


# --- inventories ------------------------------------------------------------------------------


def test_equal_gpus_of_a_host_are_a_machine(tmp_path):
    file = read(tmp_path, RIG, "rig.csv")
    found = [
        (m.name, m.node.gpu, m.node.gpus, m.node.memory_bytes) for m in file.fleet.machines
    ]
    assert found == [
        ("host-rtx-3090", hs.gpu("rtx-3090"), 2, None),
        ("host-rtx-4090", hs.gpu("rtx-4090"), 1, None),
    ]
    assert file.fleet.name == "rig"
    assert file.notes == (
        "the interconnect among several rtx-3090 is assumed to be pcie4",
        "the inventory has no links: machines are assumed to reach each other at 1 Gbit/s, 200"
        " us one way",
    )


def test_an_inventory_of_several_hosts(tmp_path):
    """Joined tables repeat their header. A host with equal GPUs gives a machine its name."""
    header, *rows = HOSTS.splitlines(keepends=True)
    joined = [header, *rows[:2], header, *rows[2:]]
    for text in (HOSTS, "".join(joined)):
        file = read(tmp_path, text, "rig.csv")
        found = [(m.name, m.node.host, m.node.gpus, m.node.card) for m in file.fleet.machines]
        assert found == [
            ("ant", "ant", 2, 0), ("bee-rtx-3090", "bee", 2, None),
            ("bee-rtx-4090", "bee", 1, 1),
        ]  # fmt: skip
        assert file.fleet.machines[0].node.interconnect.name == "nvlink4"
        assert "columns left out: driver_version" in file.notes


def test_the_content_tells_an_inventory_and_a_cluster(tmp_path):
    """Other endings than .csv and .ini are common for what a shell redirects."""
    assert len(read(tmp_path, RIG, "rig.txt").fleet.machines) == 2
    text = cluster(["T4"], lambda i, j: None)
    assert len(read(tmp_path, text, "cluster.cfg").fleet.machines) == 1


def test_forms_that_nvidia_smi_prints(tmp_path):
    """Without units, with the other name of the column, with what a card does not know."""
    text = "index, gpu_name, memory.total [MiB]\n0, Tesla T4, 15360\n1, Tesla T4, [N/A]\n"
    machines = read(tmp_path, text, "rig.csv").fleet.machines
    assert [m.node.gpus for m in machines] == [1, 1]
    assert [m.name for m in machines] == ["host-t4", "host-t4-1"]
    assert read(tmp_path, "name\nl40s\nL40S\nl40s\n", "rig.csv").fleet.n_gpus == 3
    crlf = RIG.replace("\n", "\r\n")
    assert read(tmp_path, b"\xef\xbb\xbf" + crlf.encode(), "rig.csv").fleet.n_gpus == 3


def test_the_bus_of_cards_may_be_a_column(tmp_path):
    text = "index, name, pcie.link.gen.max\n" + "".join(
        f"{i}, NVIDIA GeForce RTX 4090, {gen}\n" for i, gen in enumerate((4, 3))
    )
    file = read(tmp_path, text, "rig.csv")
    assert file.fleet.machines[0].node.interconnect.name == "pcie3"
    assert file.notes == ()


def test_a_card_with_other_memory(tmp_path):
    file = read(tmp_path, HEADER + "0, Tesla V100-SXM2-32GB, 32768 MiB\n", "rig.csv")
    node = file.fleet.machines[0].node
    assert (node.gpu, node.memory_bytes) == (hs.gpu("v100-16gb"), 32768 * 2**20)
    assert file.notes == (
        "Tesla V100-SXM2-32GB has 32 GiB and is taken for v100-16gb, which has 16 GiB",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "rig.csv: must list at least one GPU below its header, got none"),
        ("", "rig.csv: must begin with a line that names the columns, got none"),
        ("\n\n", "rig.csv: must begin with a line that names the columns"),
        ("0, NVIDIA L4, 23034 MiB\n", "rig.csv: line 1: a column name must be there, as nvid"),
        ("name, name\nl4, l4\n", "line 1: column name must be there once"),
        (RIG.replace("4090", "4090 Laptop GPU"), "rig.csv: line 4: unknown gpu 'NVIDIA GeForce "
         r"RTX 4090 Laptop GPU'; did you mean rtx-4090\? .*; write a name of the catalogue"),
        (RIG.replace("24576 MiB", "24 GiB", 1), "rig.csv: line 2: memory.total must be a number"
         " of MiB, such as 81559 MiB, got '24 GiB'"),
        (RIG.replace("24576 MiB", "0", 1), "line 2: memory.total must be a number of MiB"),
        (RIG.replace("\n1,", "\n0,"), "line 3: index must differ from those of the host before"
         " it, got 0; GPUs of several hosts need a column host"),
        (HOSTS.replace("ant, 1", "ant, 0"), r"line 3: index must differ .*, got 0$"),
        (HOSTS.replace("ant, 1", ", 1"), "line 3: host: name must not be empty"),
        (RIG.replace("\n1,", "\nx,"), "line 3: index must be a whole number, got 'x'"),
        (RIG.replace("\n1,", "\n1, 2,"), "line 3: must have 3 columns, as the header, got 4"),
        (RIG.replace("NVIDIA GeForce RTX 3090", "", 1), "line 2: name must not be empty"),
        (HEADER + '0, "NVIDIA L4, 23034\n', "rig.csv: not CSV: "),
        (b"name\n\xff\n", "rig.csv: not CSV: "),
        (HEADER + "".join(f"{i}, T4, 15360\n" for i in range(1025)),
         "line 2: a host must have at most 1024 GPUs of a kind, got 1025"),
        ("host, name\n" + "".join(f"h{i}, t4\n" for i in range(10_001)),
         "rig.csv: must have at most 10000 machines, got 10001"),
    ],
)  # fmt: skip
def test_bad_inventories(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, "rig.csv")
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hs.read_machines(tmp_path / "nowhere.csv")
    with pytest.raises(TypeError, match="read_machines: path must be a string or a path"):
        hs.read_machines(7)
