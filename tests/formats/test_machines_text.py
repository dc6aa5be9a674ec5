"""Fleets written as machines files are read back; files with any mistake give one error."""

import re

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import hypsolve as hs
import instances
from hypsolve.cli import examples
from hypsolve.cli.catalog import init
from hypsolve.formats.machines_file import BlockPin, MachinesFile
from hypsolve.formats.machines_text import machines_text
from tests.helpers.machines_files import HOSTS, LAB, RIG, TIERS, cluster

OPTIONAL = re.sub(r"(?m)^# (\w+ = |\[)", r"\1", examples.MACHINES)
REGIONS = cluster(
    ["T4x2", "L4", "A100"], lambda i, j: ("9 * mbps", "0.05") if i == 0 else ("1e9", "1e-3")
)
FILES = {
    "lab.toml": LAB, "init.toml": examples.MACHINES, "optional.toml": OPTIONAL,
    "tiers.toml": TIERS, "site.ini": REGIONS, "rig.csv": RIG, "hosts.csv": HOSTS,
}  # fmt: skip


def without_cards(fleet):
    """Return what a file states of a fleet: no cards, and links but for the last digit."""
    nodes = [
        (m.name, m.kind, m.offer, m.node.host, m.node.reserved_bytes) for m in fleet.machines
    ]
    names = [site.name for site in fleet.sites]
    links = {
        (one, other): link
        and tuple(f"{n:.12g}" for n in (link.bytes_per_s, link.latency_s, link.round_trip_s))
        for one in names
        for other in names
        for link in [fleet.site_link(one, other)]
    }
    return nodes, links, fleet.entry, fleet.pins, set(fleet.apart)


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read_back(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name])
    file = hs.read_machines(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(machines_text(file))
    again = hs.read_machines(copy)
    assert without_cards(again.fleet) == without_cards(file.fleet)
    assert (again.currency, again.description) == (file.currency, file.description)
    assert [(pin.blocks, pin.sites) for pin in again.pins] == [
        (pin.blocks, pin.sites) for pin in file.pins
    ]
    assert again.runtime == file.runtime
    assert not [note for note in again.notes if "assumed" in note]  # it is stated by now
    notes = "\n".join(file.notes)
    assert all(word in copy.read_text() for word in notes.split())


@pytest.mark.parametrize("name", instances.networks())
def test_networks_of_the_repository_are_read_back(tmp_path, name):
    file = hs.read_machines(instances._FOLDER / f"{name}.toml")
    copy = tmp_path / "copy.toml"
    copy.write_text(machines_text(file))
    assert without_cards(hs.read_machines(copy).fleet) == without_cards(file.fleet)


def fleet_of(node):
    link = hs.Link(bytes_per_s=1.0, latency_s=0.0)
    machine = hs.Machine(node=node, site="s")
    return hs.Fleet(name="f", sites=(hs.Site(name="s", link=link),), machines=(machine,))


@given(
    number=st.floats(1e-3, 1e15), latency_s=st.floats(0, 1e3), name=st.text(min_size=1),
    price=st.floats(0, 1e9),
)  # fmt: skip
@example(number=1.0, latency_s=0.1, name="\"\\'\u0394\U0001f600", price=0.1)
def test_any_number_and_name_is_read_back(tmp_path_factory, number, latency_s, name, price):
    if not name.isprintable():
        return
    gpu = hs.GpuProfile(
        name=name, t0_s=latency_s, flops_per_s=number, bytes_per_s=number, memory_bytes=number,
        overlaps=False, power_w=price,
    )  # fmt: skip
    fleet = fleet_of(hs.Node(name=name, gpu=gpu))
    link = hs.Link(bytes_per_s=number, latency_s=latency_s)
    machine = hs.Machine(
        node=fleet.machines[0].node, site=name, price_per_hour=price, uplink=link
    )
    fleet = hs.Fleet(name="f", sites=(hs.Site(name=name, link=link),), machines=(machine,))
    path = tmp_path_factory.mktemp("any") / "f.toml"
    path.write_text(machines_text(MachinesFile(fleet=fleet, notes=(name,))), encoding="utf-8")
    (found,) = hs.read_machines(path).fleet.machines
    assert (found.name, found.site, found.price_per_hour) == (name, name, price)
    assert found.uplink.bytes_per_s == pytest.approx(number, rel=1e-15)
    assert found.uplink.round_trip_s == pytest.approx(2 * latency_s, rel=1e-15)
    own = found.node.gpu
    figures = (own.t0_s, own.flops_per_s, own.bytes_per_s, own.memory_bytes, own.power_w)
    assert figures == pytest.approx((latency_s, number, number, number, price), rel=1e-15)
    assert not own.overlaps


def test_what_a_file_cannot_say_is_refused():
    links = hs.interconnect("nvlink4", "h100")
    other = hs.Interconnect(name="fast", all_reduces=links.all_reduces)
    node = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=2, interconnect=other)
    with pytest.raises(ValueError, match="machine 'box': interconnect must be one of the c"):
        machines_text(MachinesFile(fleet=fleet_of(node)))


def test_init_writes_what_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpus.csv").write_text(HOSTS)
    done = CliRunner().invoke(init, ["--machines"])
    assert done.exit_code == 0 and "hypsolve place --model" in done.stdout
    assert (tmp_path / "machines.toml").read_text() == examples.MACHINES
    done = CliRunner().invoke(init, ["--machines", "--from", "gpus.csv", "lab.toml"])
    assert done.exit_code == 0
    names = [machine.name for machine in hs.read_machines("lab.toml").fleet.machines]
    assert names == ["ant", "bee-rtx-3090", "bee-rtx-4090"]
    done = CliRunner().invoke(init, ["--from", "gpus.csv", "other.toml"])
    assert done.exit_code == 2 and "--from needs --machines" in done.stderr


# --- no file ends in a traceback --------------------------------------------------------------

PIECES = st.sampled_from([
    "[[machines]]", "[[offers]]", "[[sites]]", "[[links]]", "[[pins]]", "[entry]", "[link]",
    "[gpus.a]", "[[tiers]]", "[NodeNames]", "[ComputeNode-0]", "[Link-0-1]", "[Link-source-0]",
    "\n", " ", ",", "=", '"', "'", "{", "}", "[", "]", "-1", "0", "1e999", "nan", "2026-01-01",
    "true", "name", "gpu", "l4", "h100", "site", "MiB", "\x00", "\x0b", "\u2028", "\ufeff",
    "host", "index", "memory.total [MiB]", "4:2", "embedding", "type=T4", "T4x2", "A100",
])  # fmt: skip


@given(
    st.sampled_from(sorted(FILES)), st.sampled_from([".toml", ".csv", ".ini", ".txt", ""]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 30), PIECES), max_size=4),
)  # fmt: skip
def test_damaged_files_give_one_line(tmp_path_factory, name, ending, damages):
    """A piece of a file is replaced by another; the file is read, or refused in one line."""
    text = FILES[name]
    for start, length, piece in damages:
        text = text[: start % len(text)] + piece + text[start % len(text) + length :]
    path = tmp_path_factory.mktemp("damaged") / f"file{ending}"
    path.write_text(text, encoding="utf-8", newline="")
    refused(path)


@given(st.binary(max_size=300), st.sampled_from([".toml", ".csv", ".ini", ".csv.gz", ""]))
def test_any_bytes_give_one_line(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"file{ending}"
    path.write_bytes(content)
    refused(path)


def refused(path):
    """Read a file; what refuses it must be one line of a ValueError or TypeError."""
    try:
        file = hs.read_machines(path)
        file.fleet_for(hs.model("llama-3-8b"))
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error) and str(error).startswith(str(path)), str(error)
    except FileNotFoundError as error:  # a profile file beside it
        assert ".toml" in str(error)


@given(st.text(max_size=12))
def test_any_pin_is_a_range_or_refused(blocks):
    """A range that is taken lies within the model."""
    model = hs.model("llama-3-8b")
    try:
        pin = BlockPin(blocks, ("s",), "here").of(model)
    except ValueError as error:
        assert str(error).startswith("here: blocks must ")
    else:
        assert 0 <= pin.start < pin.stop <= model.n_blocks
