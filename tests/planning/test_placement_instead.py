"""The placement that a plan names: on machines without order, where it serves clearly more."""

import json
from dataclasses import replace

import jsonschema
import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.html_report import write_report
from hypsolve.planning.json_schema import schema
from hypsolve.planning.placement_instead import may_be_placed
from hypsolve.planning.text import placement_lines
from tests.cli.test_cli import run
from tests.helpers.short_simulations import short_simulations

__all__ = ["short_simulations"]
ASKED = {"prompt_tokens": 128, "output_tokens": 16, "runtime": "vllm", "time_limit_s": 30}
NETWORK = """
[[tiers]]
name = "desk"
nodes = [{gpu = "rtx-4090"}]
link = {gbps = 0.5, latency_ms = 20}
[[tiers]]
name = "rack"
nodes = [{gpu = "rtx-4090", count = 2}]
"""


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "network.toml"
    path.write_text(NETWORK)
    return path


def test_the_line_states_what_its_command_serves(capsys, network):
    """A tier with one node, behind a slow link: replicas on all machines serve far more."""
    plan = hs.plan("llama-3-8b", network, **ASKED)
    found = plan.placement_instead
    assert found is not None and found.requests_per_s > 1.02 * plan.value
    assert found.quantity == plan.throughput.quantity
    assert (found.pipelines, len(found.machines), found.unused) == (3, 3, ())
    (line,) = placement_lines(plan)
    assert line in str(plan)
    words = line.partition("hypsolve ")[2].partition(",")[0].split()
    code, out, _ = run(
        capsys, *words, "--model", "llama-3-8b", "--machines", network, "--prompt", 128,
        "--output", 16, "--time-limit", 30, "--json",
    )  # fmt: skip
    placed = json.loads(out)
    assert code == 0 and len(placed["pipelines"]) == 3
    rate = placed["throughput"]["simulated_requests_per_s"]
    assert rate == pytest.approx(found.requests_per_s, rel=0.05)


def test_it_is_in_json_and_in_the_report(network, tmp_path):
    plan = hs.plan("llama-3-8b", network, **ASKED)
    table = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    jsonschema.validate(table, schema("plan"))
    assert table["placement_instead"]["pipelines"] == 3
    write_report(plan, tmp_path / "plan.html")
    assert "without the order of the tiers" in (tmp_path / "plan.html").read_text().lower()


def test_a_plan_that_is_as_good_names_none(tmp_path):
    path = tmp_path / "rack.toml"
    path.write_text('[[tiers]]\nname = "rack"\nnodes = [{gpu = "rtx-4090", count = 2}]\n')
    plan = hs.plan("llama-3-8b", path, **ASKED)
    assert plan.fits and plan.placement_instead is None and placement_lines(plan) == []
    assert plan.to_dict()["placement_instead"] is None


def test_pins_hold_without_the_order(network):
    """The embedding may only be at the desk, so no pipeline can do without its one machine."""
    pinned = network.read_text().replace(
        'name = "desk"', 'name = "desk"\npin = ["embedding", "head"]'
    )
    network.write_text(pinned)
    found = hs.plan("llama-3-8b", network, **ASKED).placement_instead
    assert found is None or (found.machines[0] == "desk-rtx-4090-0" and found.pipelines == 1)


def test_nothing_fits_in_the_order_but_a_row_of_all_machines_does(tmp_path):
    """Each node of a tier holds its whole stage; in a row they are stages."""
    path = tmp_path / "small.toml"
    path.write_text(
        '[[tiers]]\nname = "rack"\nnodes = [{gpu = "rtx-3080", count = 4}]\n'
        "link = {gbps = 10, latency_ms = 0.1}\n"
        '[[tiers]]\nname = "old"\nnodes = [{gpu = "rtx-3060", count = 2}]\n'
    )
    plan = hs.plan("llama-2-13b", path, **ASKED | {"runtime": "ideal"})
    assert not plan.fits
    (line,) = placement_lines(plan)
    assert line in str(plan) and "times as many" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "bottleneck"},
        {"tensor_parallel": 1},
        {"users": 3},
    ],
)
def test_what_no_placement_answers_is_not_compared(network, changes):
    query = hs.PlanQuery.of("llama-3-8b", network, **ASKED | changes)
    assert not may_be_placed(query)


def test_limits_on_blocks_are_not_compared(network):
    query = hs.PlanQuery.of("llama-3-8b", network, **ASKED)
    assert may_be_placed(query)
    limited = replace(query.network, max_blocks=(3, None))
    assert isinstance(limited, NetworkFile) and not may_be_placed(
        replace(query, network=limited)
    )


def test_a_spent_clock_leaves_the_plan(network):
    plan = hs.plan("llama-3-8b", network, **ASKED | {"time_limit_s": 0.01})
    assert plan.placement_instead is None
