"""Errors of file readers begin with the path that the user wrote."""

import os

import pytest

import hypsolve as hs
from hypsolve.formats.gpu_profile import read_gpu_profile

WRONG_KEY = "wrong = 3\n"
READERS = {
    "network, not TOML": (hs.read_network_file, "net.toml", "= 3"),
    "network, wrong key": (hs.read_network_file, "net.toml", WRONG_KEY),
    "network, wrong value": (
        hs.read_network_file,
        "net.toml",
        '[[tiers]]\nname = "t"\nnodes = [{gpu = "l4", count = 0}]',
    ),
    "network, wrong pin": (
        hs.read_network_file,
        "net.toml",
        '[[tiers]]\nname = "t"\nnodes = [{gpu = "l4"}]\npin = ["head", "head"]',
    ),
    "machines, not TOML": (hs.read_machines, "lab.toml", "= 3"),
    "machines, wrong key": (hs.read_machines, "lab.toml", WRONG_KEY),
    "machines, wrong value": (hs.read_machines, "lab.toml", 'machines = [{gpu = "l"}]'),
    "machines, wrong share": (
        hs.read_machines,
        "lab.toml",
        'machines = [{gpu = "l4"}]\nentry = {site = 0.5}',
    ),
    "machines of Helix": (hs.read_machines, "site.ini", "[Wrong]\na=1"),
    "machines of an inventory": (hs.read_machines, "rig.csv", "name\nx"),
    "profile, not TOML": (read_gpu_profile, "desk.toml", "= 3"),
    "profile, wrong key": (read_gpu_profile, "desk.toml", WRONG_KEY),
    "Helix, not INI": (hs.read_helix, "site.ini", "wrong"),
    "Helix, section": (hs.read_helix, "site.ini", "[Wrong]\na=1"),
    "PipeEdge, not YAML": (lambda p: hs.read_pipeedge(p, p, p, model="m"), "m.yml", "a: ["),
    "PipeEdge, keys": (lambda p: hs.read_pipeedge(p, p, p, model="m"), "m.yml", "b: 3"),
    "model": (hs.read_model, "config.json", "{}"),
    "instance": (hs.load, "instance.json", "{}"),
}


@pytest.mark.parametrize("written", ["lab/{}", "./lab/{}", "../here/lab/{}"])
@pytest.mark.parametrize("case", READERS)
def test_errors_begin_with_the_path_as_written(tmp_path, monkeypatch, case, written):
    """A folder of several files with one name is told apart by its path."""
    read, name, text = READERS[case]
    (tmp_path / "here" / "lab").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    path = written.format(name)
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises((ValueError, TypeError)) as error:
        read(path)
    shown = path.removeprefix(f".{os.sep}")  # as pathlib shows it
    assert str(error.value).startswith((shown, f"unknown model '{shown}")) or (
        f"({shown}" in str(error.value)
    )
    assert "\n" not in str(error.value)
