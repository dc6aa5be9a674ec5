"""The command `measure`: files that it writes and keeps, and its one line without torch."""

import functools
import json
import tomllib

import pytest

from hypsolve import cli
from hypsolve.calibration import measure_blocks, measure_links
from hypsolve.cli.measure import address_of
from hypsolve.formats.gpu_profile import read_gpu_profile
from hypsolve.formats.network_toml import read_network_file
from hypsolve.formats.network_toml_types import LinkTable


def run(capsys, *arguments):
    """Exit code, output, errors."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_without_torch_one_line_names_the_extra(capsys, tmp_path, monkeypatch):
    """Most users have no torch; nothing is written for them."""

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(measure_blocks.importlib, "import_module", missing)
    out = tmp_path / "p.toml"
    code, printed, errors = run(capsys, "measure", "-o", out)
    assert (code, printed) == (2, "")
    assert errors == (
        "hypsolve: measure: needs torch, which cannot be imported (No module named 'torch');"
        ' in a clone of hypsolve, run pip install -e ".[measure]"\n'
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".toml", ".csv"])
def test_a_file_that_exists_is_kept(capsys, tmp_path, ending):
    """Either file of an earlier measurement stops the command before it measures."""
    old = tmp_path / f"p{ending}"
    old.write_text("mine")
    code, _, errors = run(capsys, "measure", "-o", tmp_path / "p.toml")
    assert code == 2
    assert errors == f"hypsolve: {old} exists already; give another name, or --force\n"
    assert old.read_text() == "mine"


def test_the_name_of_the_profile_must_end_in_toml(capsys, tmp_path):
    code, _, errors = run(capsys, "measure", "-o", tmp_path / "p.json")
    assert code == 2
    assert "the name must end in .toml" in errors


def test_a_measured_profile_serves_in_a_network_file(capsys, tmp_path):
    """Tiny blocks, measured; a network file names the profile, and `--force` replaces it."""
    pytest.importorskip("torch", reason="the extra `measure` is not installed")
    out = tmp_path / "p.toml"
    out.write_text("old")
    code, printed, errors = run(
        capsys, "measure", "--quick", "--device", "cpu", "--threads", 1, "--force", "-o", out,
        "--model", "256:4:2:32:512:small", "--model", "128:4:2:32:256:tiny", "--name", "desk",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "24 of 24 steps" in printed
    assert "small, held out" in printed and "tiny, held out" in printed
    profile = read_gpu_profile(out)
    assert profile.name == "desk-1-thread"
    assert "mean error in prefill and decode on a shape that was not fitted" in profile.source
    network = tmp_path / "net.toml"
    network.write_text('[[tiers]]\nname = "t"\nnodes = [{gpu = "p.toml"}]')
    assert read_network_file(network).network.tiers[0].nodes[0].gpu == profile
    assert (tmp_path / "p.csv").stat().st_size > 0


def test_a_link_within_this_host(capsys, monkeypatch):
    """Links need no torch; the last line is one of a network file."""
    short = functools.partial(measure_links.measure_link, seconds=0.02)
    monkeypatch.setattr(measure_links, "measure_link", short)
    code, printed, errors = run(capsys, "measure", "--link", "loopback")
    assert (code, errors) == (0, "")
    link = tomllib.loads(printed.splitlines()[-1])["link"]
    assert link["gbps"] > 0 and link["latency_ms"] > 0
    assert set(link) <= set(LinkTable.__annotations__)
    code, printed, _ = run(capsys, "measure", "--link", "loopback", "--json")
    assert code == 0 and json.loads(printed)["round_trip_s"] > 0


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("box.lan", 1, ("box.lan", 1)),
        ("box.lan:22", 1, ("box.lan", 22)),
        ("[fe80::1]:22", 1, ("fe80::1", 22)),
        ("fe80::1", 1, ("fe80::1", 1)),
        ("[fe80::1]", 1, ("fe80::1", 1)),
        ("47147", None, ("", 47147)),
        ("0.0.0.0:47147", None, ("0.0.0.0", 47147)),
    ],
)
def test_addresses(text, port, expected):
    assert address_of(text, port) == expected


@pytest.mark.parametrize("option", ["--link", "--serve-link"])
def test_a_wrong_port_is_one_line(capsys, option):
    code, _, errors = run(capsys, "measure", option, "box:http")
    assert (code, errors) == (2, "hypsolve: port must be a whole number, got 'http'\n")
