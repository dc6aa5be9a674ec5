"""Profile files: written and read again, and named by a network file."""

import re
import tomllib
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.formats.gpu_profile import (
    MeasuredProfile,
    profile_text,
    read_gpu_profile,
    write_gpu_profile,
)
from hypsolve.formats.network_toml import read_network_file
from hypsolve.problem import costs
from hypsolve.problem.profile_errors import ProfileErrors

GPU = hs.GpuProfile(
    name='a "desk"', t0_s=123.4e-6, flops_per_s=7.5e10, bytes_per_s=3.1e10,
    memory_bytes=24 * 2**30, power_w=65.0, source="measured\non a desk",
)  # fmt: skip
FILE = MeasuredProfile(
    gpu=GPU,
    intervals={"t0_s": (1e-4, 2e-4), "bytes_per_s": (2e10, float("inf"))},
    errors={"of the fit": {"prefill": 0.05, "decode": float("nan")}},
    measured={"machine": "desk", "threads": 2},
)
MINIMAL = 'name = "d"\nt0_us = 40\ntflops = 0.2\ngb_per_s = 20\nmemory_gib = 16\n'


def test_a_profile_is_read_as_it_was_written(tmp_path):
    """Text with quotes and line breaks, and four digits of each number."""
    path = tmp_path / "desk.toml"
    write_gpu_profile(path, FILE)
    written = read_gpu_profile(path)
    assert replace(written, errors=None) == GPU and written.errors == ProfileErrors()
    table = tomllib.loads(path.read_text())
    assert table["intervals"] == {
        "t0_us": [100.0, 200.0], "gb_per_s": [20.0, float("inf")],
    }  # fmt: skip
    assert table["errors"] == {"of the fit": {"prefill": 0.05}}  # what is unknown is left out
    assert table["measured"] == {"machine": "desk", "threads": 2}


def test_times_that_add_up_are_written_and_read(tmp_path):
    """A block of a CPU core takes its FLOPs at 1e9 per second, and its bytes at 4e9."""
    layer = hs.model("llama-3-8b").blocks[1]
    flops, moved = costs.step_work(layer, 64, 0)
    expected = pytest.approx(float(flops / 1e9 + moved / 4e9))
    core = replace(GPU, name="core", t0_s=0.0, flops_per_s=1e9, bytes_per_s=4e9, overlaps=False)
    path = tmp_path / "core.toml"
    write_gpu_profile(path, MeasuredProfile(gpu=core))
    assert read_gpu_profile(path) == core
    assert "t0 + FLOPs / tflops + bytes / gb_per_s" in path.read_text()
    assert tomllib.loads(path.read_text())["overlaps"] is False
    assert "overlaps" not in profile_text(FILE)
    assert float(costs.service_s(layer, read_gpu_profile(path), 64, 1)) == expected
    net = tmp_path / "net.toml"
    net.write_text(
        "gpus.c = {t0_us = 0, tflops = 0.001, gb_per_s = 4, memory_gib = 1, overlaps = false}\n"
        '[[tiers]]\nname = "t"\nnodes = [{gpu = "c"}, {gpu = "core.toml"}]'
    )
    for node in read_network_file(net).network.tiers[0].nodes:
        assert float(costs.service_s(layer, node.gpu, 64, 1)) == expected
    path.write_text(MINIMAL + "overlaps = 0")
    with pytest.raises(TypeError, match=r"core.toml: overlaps must be True or False, got 0"):
        read_gpu_profile(path)


def test_a_network_file_takes_a_profile_by_its_path(tmp_path):
    """The plan is that of a network file with the numbers of the profile in it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "desk.toml").write_text(MINIMAL)
    by_path, by_numbers = tmp_path / "a.toml", tmp_path / "b.toml"
    by_path.write_text(
        '[[tiers]]\nname = "t"\nnodes = [{gpu = "sub/desk.toml", count = 2}, {gpu = "l4"}]'
    )
    by_numbers.write_text(
        "gpus.d = {t0_us = 40, tflops = 0.2, gb_per_s = 20, memory_gib = 16}\n"
        '[[tiers]]\nname = "t"\nnodes = [{gpu = "d", count = 2}, {gpu = "l4"}]'
    )
    networks = [read_network_file(path).network for path in (by_path, by_numbers)]
    assert networks[0].tiers == networks[1].tiers
    assert [node.name for node in networks[0].tiers[0].nodes] == ["t-d-0", "t-d-1", "t-l4-0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL.replace("tflops = 0.2\n", ""), r"desk.toml: key 'tflops' is missing"),
        (MINIMAL.replace('name = "d"\n', ""), r"desk.toml: key 'name' is missing"),
        (MINIMAL + "tflop = 3\n", r"desk.toml: unknown key 'tflop'; did you mean tflops\?"),
        (
            MINIMAL.replace("0.2", "-1"),
            r"desk.toml: tflops must be positive and finite, got -1",
        ),
        ("t0_us", r"desk.toml: not TOML"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path, text, words):
    path = tmp_path / "desk.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_gpu_profile(path)


def test_a_missing_profile_is_named(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text('[[tiers]]\nname = "t"\nnodes = [{gpu = "desk.toml"}]')
    with pytest.raises(FileNotFoundError, match=r"desk\.toml"):
        read_network_file(path)


def test_the_text_says_how_a_network_file_names_it():
    assert '#     nodes = [{gpu = "desk.toml"}]' in profile_text(FILE, "desk.toml")


@pytest.mark.parametrize(
    ("name", "started_from", "gb_per_s", "words"),
    [
        (
            "L4-vllm",
            "L4",
            442,
            "gb_per_s must be at most 300, the peak of L4 by its data sheet",
        ),
        ("mine", "L4-vllm", 301, "gb_per_s must be at most 300"),
        ("L4-vllm", "L4", 300, ""),
        ("L40S-vllm", "L40S", 442, ""),  # no L4
        ("mine", "mine", 442, ""),
    ],
)
def test_a_fit_above_the_data_sheet_is_refused(tmp_path, name, started_from, gb_per_s, words):
    """Plans promised what no card of the kind can do."""
    path = tmp_path / "fit.toml"
    path.write_text(
        f'name = "{name}"\nt0_us = 40\ntflops = 60\ngb_per_s = {gb_per_s}\nmemory_gib = 22\n'
        f'[measured]\nstarted_from = "{started_from}"\n'
    )
    if not words:
        assert read_gpu_profile(path).bytes_per_s == gb_per_s * 1e9
        return
    with pytest.raises(ValueError, match=re.escape(words)):
        read_gpu_profile(path)
