"""Messages about unknown GPUs: the nearest by name and by figures, and a line to write."""

import math
import re

import pytest

import hypsolve as hs
from hypsolve import catalog
from hypsolve.catalog.nearest import near_figures, near_names

NETWORK = """
[[tiers]]
name = "desk"
nodes = [{gpu = "NAME"}]
"""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("M2 Max", "apple-m2-max"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Radeon RX 7900XTX", "rx-7900-xtx"),
        ("4070ti", "rtx-4070-ti"),
        ("Tesla T4", "t4"),
        ("a100", "a100-40gb"),
        ("rtx-4091", "rtx-4090"),
        ("Intel Arc A770", "arc-a770"),
        ("H100 SXM", "h100"),
    ],
)
def test_names_as_users_write_them(name, nearest):
    """Tools print the maker's name, spaces and capitals; difflib alone finds none of these."""
    assert near_names(name, catalog.gpus())[0] == nearest
    with pytest.raises(ValueError, match=re.escape(f"{name!r}; did you mean {nearest}?")):
        hs.gpu(name)


def test_nothing_is_near_a_name_of_another_kind():
    """A suggestion for nonsense would mislead."""
    assert near_names("xyzzy!", catalog.gpus()) == []
    assert near_names("gpu", []) == []


def test_nearest_by_figures_by_enumeration():
    """Figures are compared as ratios: 10 and 20 differ as 100 and 200 do."""
    figures = {"tflops": 70.0, "gb_per_s": 640.0, "memory_gib": 16.0}

    def distance(gpu):
        own = (gpu.flops_per_s / 1e12, gpu.bytes_per_s / 1e9, gpu.memory_bytes / 2**30)
        return sum(abs(math.log(a / b)) for a, b in zip(figures.values(), own, strict=True))

    gpus = catalog.gpus()
    best = min(gpus, key=lambda name: distance(gpus[name]))
    assert near_figures(figures, gpus)[0] == best
    assert len(near_figures(figures, gpus)) == 3


@pytest.mark.parametrize("name", ["my-gpu", "RTX 4095", 'a "quoted" one'])
def test_the_line_of_the_message_can_be_pasted(name, tmp_path):
    """The user must be able to define a GPU from the message alone."""
    path = tmp_path / "net.toml"
    network = NETWORK.replace('"NAME"', repr(name) if '"' in name else f'"{name}"')
    path.write_text(network)
    with pytest.raises(ValueError, match="unknown gpu") as error:
        hs.read_network(path)
    message = str(error.value)
    assert "\n" not in message and f"hypsolve gpus lists all {len(catalog.gpus())}" in message
    line = re.search(r"a line such as (gpus\..*?\}), with", message)[1]
    path.write_text(f"{line}\n{network}")
    node = hs.read_network(path).tiers[0].nodes[0]
    assert node.gpu.name == name and node.gpu.memory_bytes > 2**30


def test_figures_beside_an_unknown_name(tmp_path):
    """The memory of the node is a figure; a file's own GPUs are near names, too."""
    path = tmp_path / "net.toml"
    path.write_text(NETWORK.replace('"NAME"', '"zzz", memory_gib = 24'))
    with pytest.raises(ValueError, match=r"'zzz'; nearest by memory_gib: rtx-3090, ") as error:
        hs.read_network(path)
    assert "did you mean" not in str(error.value)
    own = "gpus.workbench = {t0_us = 1, tflops = 1, gb_per_s = 1, memory_gib = 1}\n"
    path.write_text(own + NETWORK.replace("NAME", "workbemch"))
    with pytest.raises(ValueError, match=r"did you mean workbench\?"):
        hs.read_network(path)


def test_a_table_of_figures_in_place_of_a_name(tmp_path):
    """Figures without t0 are what a datasheet gives; the nearest GPU has one to take."""
    path = tmp_path / "net.toml"
    figures = "{tflops = 150, gb_per_s = 900, memory_gib = 24}"
    path.write_text(NETWORK.replace('"NAME"', figures))
    message = (
        r"gpu must be a name, got a table; define it as \[gpus.NAME\]; nearest by tflops,"
        r" gb_per_s, memory_gib: rtx-4090 \(t0_us = \d+, tflops = 156, .*\), \S+, \S+$"
    )
    with pytest.raises(TypeError, match=message):
        hs.read_network(path)
    path.write_text(f"gpus.mine = {figures}\n" + NETWORK.replace("NAME", "mine"))
    with pytest.raises(ValueError, match=r"key 't0_us' is missing; nearest by .*: rtx-4090 \("):
        hs.read_network(path)
    path.write_text(f"[[gpus]]\nname = 'mine'\n{NETWORK}")
    with pytest.raises(TypeError, match=r"must be tables, .*; write \[gpus.NAME\], not"):
        hs.read_network(path)


@pytest.mark.parametrize("figure", ["true", "-1", "nan", "inf", "'a'", "0", "1e200"])
def test_figures_that_are_none_are_left_out(figure, tmp_path):
    """A hint must not fail where the error itself does not."""
    path = tmp_path / "net.toml"
    table = f"{{tflops = {figure}}}"
    path.write_text(NETWORK.replace('"NAME"', table))
    with pytest.raises(TypeError, match=r"define it as \[gpus.NAME\]$"):
        hs.read_network(path)
