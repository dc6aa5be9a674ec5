"""`replan` solves what the earlier plan was asked for: requests per second of batches."""

import itertools
import json

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.few_moves import moved_blocks, moves_table
from hypsolve.planning.query import instance_of, saturated
from hypsolve.planning.replan import placement
from hypsolve.planning.split_simulator import SplitSimulator
from tests.cli.test_cli import run
from tests.planning.test_replan import NEW, OLD, moved

ASKED = {"output_tokens": 16, "prompt_tokens": 128, "concurrency": 4, "time_limit_s": 20}
NETWORK = """
[[tiers]]
name = "a"
nodes = [{gpu = "l4", count = COUNT}]
link = {gbps = 8, latency_ms = 0.1}
[[tiers]]
name = "b"
nodes = [{gpu = "a100-80gb"}]
"""


@pytest.fixture(scope="module")
def before():
    return hs.plan("llama-3-8b", OLD, with_upgrades=False, **ASKED)


def test_the_split_with_few_moves_serves_most(before):
    """It minimised the bottleneck of requests one at a time, and served less.

    All splits with so few moves are simulated here with full queues.
    """
    again = hs.replan("llama-3-8b", NEW, before, max_moves=3)
    assert again.objective == "throughput" and again.n_moved <= 3
    query, tiers = again.query, [tier.name for tier in NEW.tiers]
    instance, earlier = instance_of(query), placement(before).tier_of_block
    rates = {}
    for inner in itertools.combinations_with_replacement(range(35), 2):
        split = hs.Partition((0, *inner, 34))
        if not hs.check(instance, split) and moved(earlier, tiers, split.cuts) <= 3:
            rates[split.cuts] = saturated(query, split.cuts, 0.2).requests_per_s
    assert len(rates) > 10
    assert rates[again.partition.cuts] >= 0.97 * max(rates.values())
    alone = hs.replan("llama-3-8b", NEW, before, max_moves=3, objective="bottleneck")
    assert alone.throughput is None
    assert rates[alone.partition.cuts] < 0.98 * max(rates.values())


def test_what_a_replan_states_is_what_it_serves(before):
    """Rate, bound and gap are those of the split, and staying costs what the first row says."""
    again = hs.replan("llama-3-8b", NEW, before, max_moves=5)
    served = again.throughput
    assert served.splits[0].cuts == again.partition.cuts
    assert served.simulated_requests_per_s <= served.bound_requests_per_s
    moves, rates = zip(*again.frontier, strict=True)
    assert moves[0] == 0 and list(moves) == sorted(set(moves)) and moves[-1] == again.n_moved
    assert list(rates) == sorted(rates) and rates[-1] == served.simulated_requests_per_s
    stays = saturated(again.query, before.result.partition.cuts, 1.0).requests_per_s
    assert rates[0] == pytest.approx(stays, rel=0.05) and rates[0] < rates[-1]
    table = moves_table(again.instance, placement(before))
    assert moved_blocks(table, again.partition) == again.n_moved == moves[-1]


@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        ({}, {}, "throughput"),
        ({"ttft_slo_s": 2.0}, {}, "goodput"),
        ({}, {"runtime": "vllm"}, "throughput"),
        ({}, {"objective": "path"}, "path"),
        ({"objective": "path"}, {"objective": "throughput"}, "throughput"),
    ],
)
def test_replan_asks_for_what_the_plan_was_asked_for(tmp_path, asked, given, expected):
    """It turned requests per second into the bottleneck; another runtime changes nothing."""
    first = hs.plan("llama-3-8b", OLD, with_upgrades=False, **ASKED, **asked)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(first.to_dict()))
    again = hs.replan("llama-3-8b", NEW, path, max_moves=2, **given)
    assert again.objective == again.to_dict()["objective"] == expected
    is_rate = expected in ("throughput", "goodput")
    assert (again.throughput is not None) == is_rate and again.n_moved <= 2
    path.write_text(json.dumps(again.to_dict(), allow_nan=False))
    third = hs.replan("llama-3-8b", NEW, path, max_moves=0)
    assert third.objective == expected and third.partition == again.partition


def test_the_command_prints_rates_and_moves(capsys, tmp_path):
    """A row for each number of moves, and what no split exceeds."""
    path, plan = tmp_path / "net.toml", tmp_path / "plan.json"
    path.write_text(NETWORK.replace("COUNT", "4"))
    asked = ("--model", "phi-3-mini", "--network", path)
    short = ("--prompt", 64, "--output", 16, "--concurrency", 2)
    plan.write_text(run(capsys, "plan", *asked, *short, "--json")[1])
    path.write_text(NETWORK.replace("COUNT", "1"))
    command = ("replan", *asked, "--before", plan, "--max-moves", 6)
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "") and "requests/s, simulated" in out
    assert "proved: no split and no schedule serves more than" in out
    assert "simulated splits that move at most 6 blocks" in out
    code, out, _ = run(capsys, *command, "--json")
    document = json.loads(out)
    assert code == 0 and document["objective"] == "throughput"
    assert document["objective_s"] is None and document["throughput"]["gap"] >= 0


def test_what_needs_more_moves_says_how_many(before):
    """A tier is gone: its blocks must move."""
    gone = hs.Network(name="gone", tiers=(OLD.tiers[0], OLD.tiers[2]))
    n = len(before.result.partition.stage(1))
    none = hs.replan("llama-3-8b", gone, before, max_moves=n - 1)
    assert none.partition is None and none.min_moves == n and np.isinf(none.objective_s)
    assert none.reason == f"at least {n} blocks must move, not {n - 1}"
    some = hs.replan("llama-3-8b", gone, before, max_moves=n)
    assert some.n_moved == n and some.throughput is not None


def test_an_interrupt_leaves_the_best_split_so_far(before, monkeypatch, capsys, tmp_path):
    """Exit code 130, and what is known is printed."""
    path, plan = tmp_path / "net.toml", tmp_path / "plan.json"
    path.write_text(NETWORK.replace("COUNT", "1"))
    asked = ("--model", "phi-3-mini", "--network", path)
    plan.write_text(run(capsys, "plan", *asked, "--output", 8, "--json")[1])
    simulate, n_done = SplitSimulator.ranked, 0

    def interrupted(self, *arguments):
        nonlocal n_done
        n_done += 1
        if n_done == 3:
            raise KeyboardInterrupt
        return simulate(self, *arguments)

    monkeypatch.setattr(SplitSimulator, "ranked", interrupted)
    code, out, err = run(capsys, "replan", *asked, "--before", plan, "--max-moves", 9)
    assert code == 130 and "stopped: the search was stopped: this is the best split so" in err
    assert "blocks moved" in out and "gap" in out
