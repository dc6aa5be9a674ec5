"""A time limit covers a whole command: every part here takes all of the time that it gets."""

import json
import sys

import pytest

import hypsolve as hs
from hypsolve.cli import commands
from hypsolve.planning import (
    cheapest_upgrade,
    planner,
    query,
    replan,
    served_best,
    serving_frontier,
    slo_answer,
    split_forecasts,
    split_simulator,
    tensor_parallel,
    what_if,
)
from hypsolve.planning import runtime_restrictions as restrictions
from hypsolve.planning.plan import FRONTIER_SHARE, Plan
from hypsolve.simulation.simulate import simulate
from hypsolve.solve import Method
from hypsolve.solvers import clock
from hypsolve.solvers.clock import NEVER, Deadline
from tests.cli.test_cli import run

LIMIT_S = 40.0
SIMULATION_S = 0.1 * LIMIT_S  # a simulation that has begun ends; it takes at most so long
QUICK_S = 2**-10  # of the exact dynamic program of plans without a method
SITES = """
[[tiers]]
name = "edge"
nodes = [{gpu = "l4"}, {gpu = "rtx-4090"}]
link = {gbps = 10, latency_ms = 1}
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb"}]
"""
ASKED = ("--model", "phi-3-mini", "--output", 4, "--time-limit", LIMIT_S)


class SpentClock:
    """A clock that moves when work is done: by all that its limit allows."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        self.n_solved = self.n_simulated = 0
        self.digests = []
        monkeypatch.setattr(clock, "now", lambda: self.now_s)
        self.solve, self.predict = query.solve, planner.predict
        self.search = query.minimise_mean_latency
        monkeypatch.setattr(query, "solve", self.solved)
        monkeypatch.setattr(query, "minimise_mean_latency", self.searched)
        for module in (
            planner, what_if, split_forecasts, replan, served_best, serving_frontier,
            tensor_parallel,
        ):  # fmt: skip
            monkeypatch.setattr(module, "predict", self.predicted)
        for module, name in (
            (split_simulator, "saturated_rate"), (split_simulator, "rate_of_users"),
            (split_simulator, "rate_within_targets"), (split_simulator, "confirmed_rate"),
            (slo_answer, "load_trace"), (cheapest_upgrade, "judged"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self.simulated(getattr(module, name)))

    def solved(self, instance, method, *, time_limit_s, **options):
        result = self.solve(instance, method, time_limit_s=60.0, **options)
        self.digests.append(instance.digest())
        self.now_s += QUICK_S if isinstance(method, Method) else time_limit_s
        self.n_solved += 1
        return result

    def searched(self, *arguments, time_limit_s, **options):
        result = self.search(*arguments, time_limit_s=60.0, **options)
        self.now_s += time_limit_s
        self.n_solved += 1
        return result

    def simulated(self, function):
        """Let a function spend the time of a simulation; two may follow each other."""

        def simulate(*arguments, **options):
            found = function(*arguments, **options)
            self.now_s += SIMULATION_S / 2
            self.n_solved += 1
            return found

        return simulate

    def predicted(self, *arguments, deadline=NEVER, **options):
        forecast = self.predict(*arguments, **options)
        self.now_s += min(deadline.left_s(), SIMULATION_S)
        self.n_simulated += 1
        return forecast


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SITES)
    return path


@pytest.fixture
def spent(monkeypatch):
    return SpentClock(monkeypatch)


def assert_in_time(spent):
    assert spent.n_solved > 0
    assert spent.now_s <= 1.1 * LIMIT_S


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--objective", "bottleneck"),
        ("--slo-ttft", 5, "--users", 3),
        ("--method", "partition_cpsat"),
        ("--objective", "mean_latency"),
        ("--runtime", "vllm"),
        ("--runtime", "vllm", "--method", "partition_cpsat"),
        ("--runtime", "vllm", "--objective", "mean_latency"),
        ("--runtime", "llama.cpp"),
        ("--export", "vllm", "--objective", "mean_latency"),
        ("--export", "deepspeed"),
    ],
)
def test_plan(capsys, spent, network, more):
    """The best plan, the one for a server, and that with upgrades had a whole limit each."""
    code, _, _ = run(capsys, "plan", *ASKED, "--network", network, *more)
    assert code == 0
    assert_in_time(spent)


@pytest.mark.parametrize("more", [(), ("--export", "vllm")])
def test_plan_with_a_report(capsys, spent, network, tmp_path, monkeypatch, more):
    """The figures of a report came on top of the limit."""
    drawn = []

    def write(plan, path, command):
        frontier_s = FRONTIER_SHARE * plan.query.time_limit_s
        drawn.append(spent.now_s + frontier_s)

    monkeypatch.setattr(sys.modules["hypsolve.cli.plan"], "write_report", write)
    report = ("--report", tmp_path / "plan.html")
    run(capsys, "plan", *ASKED, "--network", network, *more, *report)
    assert len(drawn) == 1 and drawn[0] <= LIMIT_S


def test_a_plan_that_a_server_can_express_is_solved_once(capsys, spent, tmp_path):
    """Its split and its forecast are known when upgrades are looked for."""
    path = tmp_path / "one.toml"
    path.write_text('[[tiers]]\nname = "box"\nnodes = [{gpu = "l4"}]\n')
    command = ("plan", *ASKED, "--network", path, "--runtime", "vllm", "--json")
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "") and json.loads(out)["upgrades"]
    assert spent.digests.count(spent.digests[0]) == 1
    assert_in_time(spent)


def test_compare(capsys, spent, network):
    """Each method had the whole limit, and simulations came on top."""
    code, out, _ = run(capsys, "compare", *ASKED, "--network", network, "--json")
    assert code == 0 and len(json.loads(out)) > 5
    assert spent.n_solved == len(json.loads(out)) and spent.n_simulated > 0
    assert_in_time(spent)


def test_simulate(capsys, spent, network, monkeypatch):
    """The simulation had no limit at all."""
    left = []

    def simulated(*arguments, time_limit_s, **options):
        left.append(time_limit_s)
        return simulate(*arguments, **options)

    monkeypatch.setattr(commands, "simulate_requests", simulated)
    run(capsys, "simulate", *ASKED, "--network", network, "--requests", 5)
    assert left == [LIMIT_S - spent.now_s] and 0 < spent.now_s < LIMIT_S


@pytest.mark.parametrize("command", ["compare", "pareto", "simulate"])
def test_the_choice_of_nodes_is_in_the_limit(capsys, spent, network, command):
    """Networks of a server are split and simulated before the work of the command begins."""
    arguments = (command, *ASKED, "--network", network, "--runtime", "vllm")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "pipelines of vllm on" in out
    assert spent.n_simulated > 0
    assert_in_time(spent)


def test_a_simulation_ends_at_its_limit(capsys, network):
    """It is given up with one line, and the exit code of what ran out of time."""
    command = ("simulate", "--model", "phi-3-mini", "--network", network)
    code, out, err = run(capsys, *command, "--time-limit", 1e-9)
    assert (code, out) == (1, "")
    assert "the time limit of 0.001 s passed when " in err and " of 300 requests" in err
    for batching in ("stage", "pipeline", "serial"):
        with pytest.raises(TimeoutError, match="simulate: the time limit of 1e-09 s passed"):
            hs.simulate(*problem_of(network), batching=batching, time_limit_s=1e-9)
    with pytest.raises(ValueError, match="time_limit_s must be positive"):
        hs.simulate(*problem_of(network), time_limit_s=0)


def problem_of(network):
    requests = hs.workload(n_requests=20, rate_per_s=2.0)
    model = hs.model("phi-3-mini")
    read = hs.read_network_file(network).network
    deployment = hs.Deployment(model=model, network=read, requests=requests)
    return deployment, hs.Partition((0, 10, model.n_blocks))


def test_replan(capsys, spent, network, tmp_path, monkeypatch):
    """Its clock started after the split, and its search looked at no clock."""
    plan = hs.plan("phi-3-mini", network, with_upgrades=False, output_tokens=4)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    command = ("replan", "--model", "phi-3-mini", "--network", network, "--before", path)
    command += ("--max-moves", 2, "--time-limit", LIMIT_S)
    for more in ((), ("--runtime", "vllm")):
        spent.now_s = 0.0
        assert run(capsys, *command, *more)[0] == 0
        assert_in_time(spent)
    monkeypatch.setattr(replan, "solve_query", slowly(spent, replan.solve_query))
    spent.now_s = 0.0
    code, out, err = run(capsys, *command, "--objective", "bottleneck")
    assert (code, out) == (1, "") and "replan: the time limit of 40 s passed" in err


def slowly(spent, solve_query):
    def solve(*arguments, **options):
        spent.now_s += LIMIT_S
        return solve_query(*arguments, **options)

    return solve


def test_the_choice_among_networks_and_the_plan_share_a_limit(spent, network):
    """The choice took all of it, and the plan then as much again."""
    best = hs.plan("phi-3-mini", network, with_upgrades=False, output_tokens=4)
    assert isinstance(best, Plan)
    spent.now_s = 0.0
    restrictions.nearest_plan(best, "llama.cpp", time_limit_s=LIMIT_S)
    assert_in_time(spent)


def test_parts_of_a_deadline(spent):
    """A part ends no later than the whole, but for the millisecond that methods need."""
    whole = Deadline(8.0)
    assert whole.part(0.25).at_s == 2.0
    spent.now_s = 7.0
    assert whole.part(0.5).at_s == 7.5
    spent.now_s = 9.0
    assert whole.part(0.5).limit_s == clock.MIN_S
