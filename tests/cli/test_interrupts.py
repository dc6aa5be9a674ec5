"""Ctrl-C: one line or the best so far, its first line says so, and the exit code is 130."""

import json
import subprocess
import sys

import pytest

from hypsolve.planning import planner, slo_answer
from hypsolve.planning.split_simulator import SplitSimulator
from tests.cli.test_cli import run

SITES = """
[[tiers]]
name = "edge"
nodes = [{gpu = "l4"}]
link = {gbps = 10, latency_ms = 1}
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb"}]
"""
ASKED = (
    "--model", "phi-3-mini", "--prompt", 64, "--output", 16, "--concurrency", 2,
    "--slo-ttft", 2, "--slo-tpot", 0.5, "--rate", 2,
)  # fmt: skip
LOADING = """
import sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "hypsolve.planning.plan":
            raise KeyboardInterrupt

sys.argv[0] = {program!r}
sys.meta_path.insert(0, Interrupts())
import hypsolve
"""


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SITES)
    return ("plan", *ASKED, "--network", path)


def interrupt(monkeypatch, owner, name, at):
    """Raise KeyboardInterrupt in call number `at` of a function."""
    real, n_calls = getattr(owner, name), 0

    def interrupted(*arguments, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (SplitSimulator, "ranked", 2),  # in the search for the split
        (slo_answer, "load_trace", 1),  # before the first simulation of the answer
        (slo_answer, "load_trace", 3),  # in the search for the largest loads
        (planner, "find_upgrades", 1),
    ],
)
def test_an_interrupted_answer_is_given_with_code_130(
    capsys, command, monkeypatch, owner, name, at
):
    """The yes or no was gone, nothing at the top said why, and the exit code was 0."""
    interrupt(monkeypatch, owner, name, at)
    code, out, _ = run(capsys, *command)
    first, second, *_ = out.splitlines()
    assert code == 130 and first.startswith("stopped: ")
    assert second.startswith("yes: 2 requests/s are served within TTFT <= 2 s")
    assert "\nstopped: " not in out


def test_the_json_of_an_interrupted_plan_says_so(capsys, command, monkeypatch):
    """A reader of JSON could not tell an interrupt from a time limit."""
    interrupt(monkeypatch, SplitSimulator, "ranked", 2)
    code, out, _ = run(capsys, *command, "--json")
    document = json.loads(out)
    assert code == 130 and document["interrupted"] and document["stopped"]
    assert (
        document["slo_answer"]["is_met"] and document["slo_answer"]["max_rate_is_lower_bound"]
    )


def test_little_is_simulated_after_an_interrupt(capsys, command, monkeypatch):
    """It went on for as long as before, with the largest loads and the upgrades."""
    interrupt(monkeypatch, SplitSimulator, "ranked", 2)
    for name in ("_slo_search", "find_upgrades", "cheapest_upgrade"):
        monkeypatch.setattr(planner, name, None)  # would be an error if called
    limits, real = [], planner.predict

    def predict(*arguments, deadline, **options):
        limits.append(deadline.left_s())
        return real(*arguments, deadline=deadline, **options)

    monkeypatch.setattr(planner, "predict", predict)
    assert run(capsys, *command)[0] == 130
    assert len(limits) == 1 and limits[0] <= planner.WRAP_UP_S


@pytest.mark.parametrize("program", ["/opt/venv/bin/hypsolve", "mine.py"])
def test_an_interrupt_while_the_command_loads(program):
    """It printed thirty lines of imports; other programs keep their own way to end."""
    code = LOADING.format(program=program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if program == "mine.py":
        assert "Traceback" in done.stderr
        return
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "hypsolve: stopped\n")
