"""Machines files in TOML: every number arrives, and every mistake has its entry and line."""

import re

import pytest

import hypsolve as hs
from hypsolve.cli import examples
from hypsolve.formats import machines_toml
from hypsolve.problem.fleet import Pin
from tests.helpers.machines_files import LAB


def read(tmp_path, text):
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return hs.read_machines(path)


def wire(link):
    return link.bytes_per_s, link.latency_s, link.round_trip_s


def test_every_number_of_a_file_arrives(tmp_path):
    file = read(tmp_path, LAB)
    assert (file.description, file.currency) == ("a lab and a cloud", "EUR")
    assert file.source == str(tmp_path / "lab.toml")
    assert (file.runtime.name, file.runtime.max_num_seqs) == ("vllm", 64)
    fleet = file.fleet
    assert fleet.name == "lab" and fleet.entry == {"lab": 0.75, "office": 0.25}
    machines = {machine.name: machine for machine in fleet.machines}
    assert list(machines) == [
        "desk", "cards-0", "cards-1", "north", "south", "t4-0", "t4-1", "big-0", "big-1",
    ]  # fmt: skip
    assert [machine.site for machine in fleet.machines] == [
        "office", *["lab"] * 4, "office", "office", "cloud", "cloud",
    ]  # fmt: skip
    desk = machines["desk"]
    assert desk.node.gpu.bytes_per_s == pytest.approx(5e11) and desk.price_per_hour == 0.1
    assert desk.node.usable_bytes == 14.5 * 2**30
    assert wire(desk.uplink) == pytest.approx((7.5e7, 4e-3, 1e-2))
    south = machines["south"].node
    assert (south.gpus, south.interconnect.name, south.tensor_parallel) == (4, "pcie4", None)
    assert south.memory_bytes == 40 * 2**30
    assert south.gpu.bytes_per_s == pytest.approx(hs.gpu("l40s").bytes_per_s / 2)
    big = machines["big-1"]
    assert (big.offer, big.price_per_hour, big.node.gpus) == ("big", 20.0, 8)
    assert {machine.offer for machine in fleet.machines} == {"", "big"}


def test_links_of_a_file_arrive(tmp_path):
    file = read(tmp_path, LAB)
    fleet = file.fleet
    assert wire(fleet.site_link("lab", "lab")) == pytest.approx((1.25e9, 1e-4, 2e-4))
    assert wire(fleet.site_link("lab", "cloud")) == pytest.approx((1e8, 0.012, 0.027))
    assert wire(fleet.site_link("cloud", "lab")) == pytest.approx((5e7, 0.015, 0.027))
    assert wire(fleet.site_link("office", "cloud")) == pytest.approx((1.25e7, 0.04, 0.09))
    # no file says how the machines of the office reach each other
    assert wire(fleet.site_link("office", "office")) == pytest.approx((1.25e8, 2e-4, 4e-4))
    assert file.notes == (
        "site 'office': machines are assumed to reach each other at 1 Gbit/s, 200 us one way",
    )


def test_a_link_of_the_file_is_that_of_sites_without_one(tmp_path):
    text = "link = {gbps = 2, latency_ms = 1}\n" + LAB
    file = read(tmp_path, text)
    assert wire(file.fleet.site_link("office", "office")) == pytest.approx((2.5e8, 1e-3, 2e-3))
    assert wire(file.fleet.site_link("lab", "lab"))[0] == pytest.approx(1.25e9)
    assert file.notes == ()


def test_a_file_without_sites_has_one(tmp_path):
    file = read(tmp_path, '[[machines]]\ngpu = "l4"\ncount = 3\n')
    assert [site.name for site in file.fleet.sites] == ["site"]
    assert file.fleet.entry == {"site": 1.0}
    assert [machine.name for machine in file.fleet.machines] == ["l4-0", "l4-1", "l4-2"]
    assert file.notes == (
        "no link is given: machines are assumed to reach each other at 1 Gbit/s, 200 us one"
        " way",
    )
    assert read(tmp_path, '[[machines]]\ngpu = "l4"').notes == ()  # nobody to reach


def test_sites_that_nothing_joins_are_noted(tmp_path):
    text = re.sub(r"(?m)^default_link.*\n", "", LAB)
    file = read(tmp_path, re.sub(r"(?s)\[entry\].*?(?=\[\[)", "", text, count=1))
    assert file.fleet.site_link("office", "cloud") is None
    assert file.fleet.entry == {"lab": 1.0}
    assert [note for note in file.notes if "assumed" not in note] == [
        "pairs of sites without a link between them: 'lab' and 'office', 'office' and 'cloud'",
        "all requests enter at site 'lab', the first one, for the file has no [entry]",
    ]


def test_notes_of_many_sites_stay_short(tmp_path):
    sites = "".join(f'[[sites]]\nname = "s{i}"\n' for i in range(9))
    file = read(tmp_path, sites + '[entry]\ns0 = 1\n[[machines]]\ngpu = "l4"\nsite = "s0"')
    (note,) = file.notes
    assert note.count(" and ") == 6 and note.endswith("'s0' and 's5', and 31 more")


def test_machines_of_two_names_stay_apart(tmp_path):
    """Machines of one entry may serve together, and each of them is apart from the other."""
    apart = set(read(tmp_path, LAB).fleet.apart)
    assert apart == {frozenset({"desk", "cards-0"}), frozenset({"desk", "cards-1"})}
    three = LAB.replace('["desk", "cards"]', '["desk", "north", "south"]')
    assert read(tmp_path, three).fleet.apart == (frozenset({"desk", "north", "south"}),)
    offers = LAB.replace('["desk", "cards"]', '["cards-1", "big"]')
    assert set(read(tmp_path, offers).fleet.apart) == {
        frozenset({"cards-1", "big-0"}), frozenset({"cards-1", "big-1"}),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "start", "stop"),
    [("embedding", 0, 1), ("head", 33, 34), ("0:4", 0, 4), (":4", 0, 4), ("30:", 30, 34),
     (":", 0, 34), ("33:34", 33, 34)],
)  # fmt: skip
def test_pins_by_the_blocks_of_a_model(tmp_path, blocks, start, stop):
    """Llama-3-8B has 32 layers, so 34 blocks. Pins that depend on that wait for the model."""
    file = read(tmp_path, LAB.replace('"30:"', f'"{blocks}"'))
    model = hs.model("llama-3-8b")
    of_lab, of_both = Pin(start=start, stop=stop, sites=("lab",)), ("lab", "office")
    assert file.fleet_for(model).pins == (Pin(start=0, stop=1, sites=of_both), of_lab)
    waits = blocks in ("head", "30:", ":")
    assert (of_lab in file.fleet.pins) == (not waits)
    assert file.fleet_for(model).machines == file.fleet.machines


@pytest.mark.parametrize("blocks", ["0:99", "34:", "99:"])
def test_pins_beyond_the_model_are_refused_with_their_line(tmp_path, blocks):
    file = read(tmp_path, LAB.replace('"30:"', f'"{blocks}"'))
    with pytest.raises(
        ValueError,
        match=r"lab\.toml: pin 1 \(line \d+\): blocks must lie within the 34 blocks of llama",
    ):
        file.fleet_for(hs.model("llama-3-8b"))


def test_a_gpu_may_be_a_profile_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "old card"\nt0_us = 40\ntflops = 5\ngb_per_s = 200\nmemory_gib = 12'
    )
    file = read(tmp_path, '[[machines]]\ngpu = "mine.toml"\ncount = 2\n')
    assert [machine.name for machine in file.fleet.machines] == ["old card-0", "old card-1"]
    with pytest.raises(FileNotFoundError, match=r"machine 0 \(line 1\): gpu no\.toml"):
        read(tmp_path, '[[machines]]\ngpu = "no.toml"')


def test_the_example_of_init(tmp_path):
    """The example is read with and without its optional lines."""
    file = read(tmp_path, examples.MACHINES)
    assert file.currency == "USD" and file.notes == ()
    assert {m.offer for m in file.fleet.machines} == {"", "l40s", "h100-pair"}
    optional = re.sub(r"(?m)^# (\w+ = |\[)", r"\1", examples.MACHINES)
    file = read(tmp_path, optional)
    assert file.runtime.name == "vllm" and len(file.fleet.apart) == 2
    assert file.fleet.pins == (Pin(start=0, stop=1, sites=("home",)),)


OF = r"lab\.toml: "
BAD = [
    ("[[machines]]\nname", "[[machine]]\nname", OF + r"unknown key 'machine'; did you mean m"),
    ('gpu = "mine"', 'gpus = 2', OF + r"machine 0 'desk' \(line <machines 0>\): key 'gpu' is"),
    ('gpu = "mine"', 'gpu = "min"', r"0 'desk' \(line <machines 0>\): unknown gpu 'min'; .*d"),
    ('gpu = "mine"', "gpu = {tflops = 60}", r"line <machines 0>\): gpu must be a name, got a"),
    ('gpu = "mine"', "gpu = 3", r"line <machines 0>\): gpu must be a string, got 3"),
    ('name = "desk"', "name = 3", r"machine 0 \(line <machines 0>\): name must be a string, "),
    ('name = "desk"', 'name = ""', r"machine 0 '' \(line <machines 0>\): name must not be em"),
    ('name = "desk"', 'name = "a\\nb"', r"line <machines 0>\): name must be printable"),
    ('name = "desk"', 'name = "cards-1"',
     r"machine 1 'cards' \(line <machines 1>\): names of machines must be distinct, got 'c"
     r"ards-1', which machine 0 'cards-1' \(line <machines 0>\) has"),
    ('name = "desk"', 'name = "x"\nnames = ["y"]', "name must not be given beside names"),
    ('"south"]', '"south"]\ncount = 3', "machine 2 .*: count must be the number of names, 2,"),
    ('"south"]', '"north"]', "names of machines must be distinct, got 'north'"),
    ('names = ["north", "south"]', "names = []", "names must be a list of at least one, got"),
    ("count = 2", "count = 0", r"machine 1 'cards' \(line <machines 1>\): count must be at l"),
    ("count = 2", "count = 1.5", "count must be a whole number, got 1.5"),
    ("count = 2", "count = 20000", "count must be at most 10000, got 20000"),
    ("count = 2", "count = 9999", "a file must have at most 10000 machines, got 10002 up to"),
    ("count = 2", "max_count = 2", r"'cards' .*key 'max_count' must not be given: it is a key"),
    ("count = 2", 'count = 2\nhost = "a"', "host must be given for a single machine, got 2"),
    ("count = 2", "number = 2", r"machine 1 'cards' \(line <machines 1>\): unknown key 'numb"),
    ("count = 2", "cuont = 2", "unknown key 'cuont'; did you mean count?"),
    ("count = 2", "tensor_parallel = 2",
     r"'tensor_parallel' must not be given: the placement chooses it"),
    ('interconnect = "pcie4"', "", "machine 2 .*interconnect must be given with gpus = 4: one"),
    ('"pcie4"', '"pcie9"', "machine 2 .*unknown interconnect 'pcie9'; did you mean pcie"),
    ("memory_gib = 40", "memory_gib = 0", "memory_gib must be positive and finite, got 0"),
    ("reserved_gib = 1.5", "reserved_gib = 16", "reserved_gib must be below the memory, 16 G"),
    ("slowdown = 2", "slowdown = 0.5", "slowdown must be finite and at least 1, got 0.5"),
    ("price_per_hour = 0.1", "price_per_hour = -1", "price_per_hour must be finite and not n"),
    ('site = "office"', 'site = "ofice"',
     r"machine 0 'desk' \(line <machines 0>\): unknown site 'ofice'; did you mean office\? c"),
    ('site = "office"', "", "machine 0 'desk' .*: key 'site' is missing: one of lab, office,"),
    ("{gbps = 0.6, latency_ms = 4, return", "{gbps = 0, latency_ms = 4, return",
     r"machine 0 'desk' \(line <machines 0>\) uplink: gbps must be positive and finite, got 0"),
    ("{gbps = 0.6, latency_ms = 4, return_latency_ms = 6}", "3",
     r"line <machines 0>\) uplink: must be a table, got 3"),
    ("max_count = 2", "", r"offer 0 'big' \(line <offers 0>\): key 'max_count' is missing"),
    ("max_count = 2", "count = 2\nmax_count = 2", "'big' .*unknown key 'count'; did you mean"),
    ("price_per_hour = 20", "", r"offer 0 'big' \(line <offers 0>\): key 'price_per_hour' is"),
    ('name = "big"', "", r"offer 0 \(line <offers 0>\): key 'name' is missing"),
    ('name = "cloud"', 'name = "lab"',
     r"site 2 'lab' \(line <sites 2>\): name must differ from those of the sites before it"),
    ('name = "cloud"', "", r"site 2 \(line <sites 2>\): key 'name' is missing"),
    ("{gbps = 25, latency_ms = 0.05}", "{gbps = 25}",
     r"site 2 'cloud' \(line <sites 2>\) link: key 'latency_ms' is missing"),
    ('from = "lab"', 'from = "labs"', r"link 0 \(line <links 0>\): unknown site of 'from' 'l"),
    ('from = "lab"', 'from = "cloud"', "link 0 .*from and to must be two sites, got 'cloud' "),
    ('from = "lab"', "", r"link 0 \(line <links 0>\): key 'from' is missing"),
    ("latency_ms = 15", 'latency_ms = 15\n[[links]]\nfrom = "lab"\nto = "cloud"\ngbps = 1'
     "\nlatency_ms = 1", r"link 2 \(line 27\): from and to must name a way once, got 'lab'"),
    ("latency_ms = 15", "latency_ms = 15\nreturn_latency_ms = 3",
     r"link 1 \(line <links 1>\): return_latency_ms must not be given, for the link from 'la"),
    ("gbps = 0.8", "gbps = '0.8'", r"link 0 \(line <links 0>\): gbps must be a number, got '"),
    ("{gbps = 0.1, latency_ms = 40,", "{gbps = 0.1, latency = 40,",
     OF + r"default_link \(line 5\): unknown key 'latency'; did you mean latency_ms?"),
    ("lab = 0.75", "labs = 0.75", OF + r"entry \(line 6\): unknown site 'labs'; did you mean"),
    ("lab = 0.75", "lab = 0.7", OF + r"entry \(line 6\): shares must add up to 1, got 0.95"),
    ("lab = 0.75", "lab = 1.75", OF + r"entry \(line 6\): lab must be at most 1, got 1.75"),
    ("lab = 0.75", "lab = '1'", OF + r"entry \(line 6\): lab must be a number, got '1'"),
    ("[entry]", "[[entry]]", OF + r"entry must be tables, got \[\{"),
    ('blocks = "30:"', 'blocks = "last"',
     r"pin 1 \(line <pins 1>\): blocks must be embedding, head, or numbers such as 0:4, got "),
    ('blocks = "30:"', 'blocks = "4:4"', "pin 1 .*: blocks must start before they stop, got "),
    ('blocks = "30:"', 'blocks = ":0"', "pin 1 .*: blocks must start before they stop, got '"),
    ('blocks = "30:"', "blocks = 3", r"pin 1 \(line <pins 1>\): blocks must be a string, got"),
    ('sites = ["lab"]', 'sites = ["home"]', r"pin 1 \(line <pins 1>\): unknown site 'home'; "),
    ('sites = ["lab"]', 'sites = ["lab", "lab"]', "pin 1 .*sites must be distinct, got 'lab'"),
    ('sites = ["lab"]', "sites = []", "sites must be a list of at least one, got"),
    ('["desk", "cards"]', '["desk", "card"]',
     OF + r"apart \(line 4\), list 0: unknown machine 'card'; did you"),
    ('["desk", "cards"]', '["desk"]', OF + "apart must be a list of at least 2, got"),
    ('["desk", "cards"]', '["desk", "desk"]', "list 0: names must be distinct, got 'desk' t"),
    ("[gpus.mine]", "[gpus.l4]", OF + "gpu 'l4': name must not be one of the catalogue's"),
    ("tflops = 60", "", OF + "gpu 'mine': key 'tflops' is missing"),
    ('"vllm"', '"vlm"', OF + "unknown runtime 'vlm'; did you mean vllm?"),
    ('currency = "EUR"', "currency = 3", OF + "currency must be a string, got 3"),
    ('currency = "EUR"', "currency = ", r"lab\.toml: not TOML: .*line 2"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_mistakes_are_named_with_their_place(tmp_path, old, new, message):
    """In a message, <links 1> stands for the line of the second header [[links]]."""
    assert old in LAB
    for key, k in re.findall(r"<(\w+) (\d+)>", message):
        headers = [n for n, line in enumerate(LAB.splitlines(), 1) if line == f"[[{key}]]"]
        message = message.replace(f"<{key} {k}>", str(headers[int(k)]))
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read(tmp_path, LAB.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "lab.toml"))
    assert "\n" not in str(caught.value)


def test_entries_in_a_row_have_numbers_but_no_lines(tmp_path):
    """TOML's parser tells no lines: those of headers are found, others are not guessed."""
    with pytest.raises(ValueError, match=r"lab\.toml: machine 1: unknown gpu 'x'"):
        read(tmp_path, 'machines = [{gpu = "l4"}, {gpu = "x"}]')
    text = 'description = """\n[[machines]]\n"""\n[[machines]]\ngpu = "x"\n'
    with pytest.raises(ValueError, match=r"lab\.toml: machine 0: unknown gpu 'x'"):
        read(tmp_path, text)


def test_a_file_without_machines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lab\.toml: must have \[\[machines\]\] or \[\[offer"):
        read(tmp_path, 'currency = "EUR"')
    both = '[[tiers]]\nname = "a"\nnodes = [{gpu = "l4"}]\n[[machines]]\ngpu = "l4"'
    with pytest.raises(ValueError, match=r"lab\.toml: unknown key 'tiers'"):
        read(tmp_path, both)


def test_too_many_pairs_apart_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machines_toml, "MAX_APART", 1)
    with pytest.raises(ValueError, match=r"apart \(line 4\), list 0: at most 1 pairs may be"):
        read(tmp_path, LAB)
