"""README's Python, run in order as one would in the clone's folder."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from hypsolve import cli

matplotlib.use("Agg")

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


def test_there_are_blocks_and_commands():
    assert len(BLOCKS) >= 4
    assert len(re.findall(r"^```bash", README, re.M)) >= 3


def hypsolve_commands():
    return [
        shlex.split(line.partition("#")[0])[1:]
        for block in re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S)
        for line in block.splitlines()
        if line.startswith(".venv/bin/hypsolve")
    ]


def test_every_block_and_command_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = hypsolve_commands()
    assert len(commands) >= 3
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert stop.value.code == 0, command
    assert (tmp_path / "plan.html").stat().st_size > 1000
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        try:
            exec(compile(block, f"README block {number}", "exec"), names)
        except Exception as error:
            pytest.fail(f"block {number}: {type(error).__name__}: {error}\n{block}")
    assert (tmp_path / "trace.json").stat().st_size > 1000
    assert (tmp_path / "network.png").stat().st_size > 1000
    assert "certificate confirmed" in capsys.readouterr().out


def test_bash_blocks_name_what_is_there():
    for command in re.findall(r"python -m (experiments\.\w+|instances\.\w+)", README):
        assert (Path(__file__).parent.parent / f"{command.replace('.', '/')}.py").exists()
