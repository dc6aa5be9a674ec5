"""Every phase of every solver asks the deadline; the clock is one that counts its readings."""

import math

import numpy as np
import pytest

from hypsolve.kernels import beam_search, list_scheduling, relaxations, subgradient
from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Status
from hypsolve.solve import solve
from hypsolve.solvers import clock
from hypsolve.solvers.backends import pulp as pulp_backend
from hypsolve.solvers.joint.partition_boxes import PartitionBox, PartitionCounter
from hypsolve.solvers.joint.tables import joint_tables
from hypsolve.verify import verify

KERNELS = (
    (list_scheduling, ("improve", "place_all", "place_stage")),
    (relaxations, ("ascend_in_windows", "single_machine_bound", "aggregate_work")),
    (subgradient, ("ascend_in_ticks",)),
    (beam_search, ("expand_level",)),
)
READINGS = (1e-9, 3, 10, 30, 100, 300, 1000)  # limits in seconds of a `StepClock`


class StepClock:
    """A clock that advances by a second whenever it is read, and counts what is done late."""

    def __init__(self, monkeypatch, limit_s):
        self.now_s, self.end_s = 0.0, limit_s + 1  # the first reading sets the deadline
        self.n_late_reads = self.n_late_calls = 0
        monkeypatch.setattr(clock, "now", self.read)
        for module, names in KERNELS:
            for name in names:
                monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def read(self):
        self.n_late_reads += self.now_s >= self.end_s
        self.now_s += 1
        return self.now_s

    def counted(self, kernel):
        def run(*args):
            self.n_late_calls += self.now_s >= self.end_s
            return kernel(*args)

        return run


def chain(n_requests, n_blocks, n_tiers, objective, n_nodes=2):
    rng = np.random.default_rng(n_requests)
    work = rng.uniform(0.01, 0.1, (1, 2, n_blocks)) * rng.uniform(0.3, 3, (n_requests, 1, 1))
    return Instance.from_tables(
        work, [1] * n_blocks, [[(k % 2, n_blocks)] * n_nodes for k in range(n_tiers)],
        transfer_s=rng.uniform(0, 0.05, (1, n_tiers - 1, n_blocks + 1)),
        arrival_s=np.sort(rng.uniform(0, 0.1 * n_requests, n_requests)), objective=objective,
    )  # fmt: skip


@pytest.mark.parametrize("limit_s", READINGS)
@pytest.mark.parametrize("prove", [False, True])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_hyperion_plus_does_little_after_its_deadline(monkeypatch, objective, prove, limit_s):
    """It tried 30 neighbours of a partition of six tiers without a look at the clock."""
    instance = chain(60, 14, 6, objective)
    read = StepClock(monkeypatch, limit_s)
    result = solve(instance, "hyperion_plus", time_limit_s=limit_s, prove=prove)
    assert result.status is Status.FEASIBLE
    assert 0 < result.bound_s <= result.objective_s
    # one partition is always scheduled: two bounds, and a place for each of its stages
    assert read.n_late_calls <= 4 * instance.n_tiers


@pytest.mark.parametrize("limit_s", READINGS)
@pytest.mark.parametrize("disable", [(), ("partition_boxes",), ("lagrangian_bound",)])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_joint_exact_does_little_after_its_deadline(monkeypatch, objective, disable, limit_s):
    """Without boxes, each of thousands of partitions was bounded, late or not."""
    instance = chain(8, 20, 3, objective)
    with monkeypatch.context() as patch:
        read = StepClock(patch, limit_s)
        result = solve(instance, "joint_exact", time_limit_s=limit_s, disable=disable)
    assert 0 < result.bound_s <= result.objective_s
    assert read.n_late_calls <= 6
    if limit_s <= 30:  # the certificate covers boxes for which there was no time
        verify(instance, result.to_dict())


@pytest.mark.parametrize("options", [{"backend": "highs"}, {"backend": "cbc"}, None])
@pytest.mark.parametrize("objective", ["mean_latency", "makespan"])
def test_a_joint_model_is_not_built_after_the_deadline(monkeypatch, objective, options):
    """Building took 8 s of a limit of 1 s, and the solver got its second on top."""
    instance = chain(12, 10, 3, objective)
    method = "joint_cpsat" if options is None else "joint_milp"
    read = StepClock(monkeypatch, 10)
    result = solve(instance, method, time_limit_s=10, **(options or {}))
    assert "before its model was built" in result.message
    assert 0 < result.bound_s < result.objective_s < math.inf  # of the warm start
    assert read.n_late_reads <= 3


@pytest.mark.parametrize("objective", ["bottleneck", "path", "p0"])
@pytest.mark.parametrize("solver", ["highs", "cbc", "cpsat", "scip"])
def test_a_partition_model_is_not_built_after_the_deadline(monkeypatch, solver, objective):
    instance = chain(1, 40, 4, objective)
    read = StepClock(monkeypatch, 30)
    result = solve(instance, f"partition_{solver}", time_limit_s=30)
    assert "before its model was built" in result.message
    assert result.status is Status.UNKNOWN and result.bound_s > 0  # from the arcs
    assert read.n_late_reads <= 3


@pytest.mark.parametrize("rule", ["deepspeed_balanced", "pipedream"])
def test_a_rule_with_a_dynamic_program_ends_at_its_deadline(monkeypatch, rule):
    """DeepSpeed's rule took 2.2 s of a limit of 1 s on thousands of blocks."""
    instance = chain(1, 40, 4, "bottleneck")
    read = StepClock(monkeypatch, 30)
    result = solve(instance, rule, time_limit_s=30)
    assert result.status is Status.UNKNOWN and "the time limit passed" in result.message
    assert read.n_late_reads <= 3


def test_a_model_that_cannot_be_written_in_time_is_not_written(monkeypatch):
    """PuLP wrote a file for 8 s, and CBC was started after the limit."""
    instance = chain(1, 5, 2, "path")
    StepClock(monkeypatch, 0)
    monkeypatch.setattr(pulp_backend, "_run_command", None)  # calling it would raise
    monkeypatch.setattr(pulp_backend, "WRITING_RATIO", 1e9)
    result = solve(instance, "partition_cbc", time_limit_s=1e6)
    assert result.status is Status.UNKNOWN and "CBC stopped at the time limit" in result.message


def test_a_program_that_ignores_its_limit_is_killed(tmp_path):
    """CBC's preprocessing took 58 s after its limit; this program would never end."""
    command = ["sh", "-c", "echo begun; while :; do sleep 1000; done"]
    log, failure = pulp_backend._run_command(command, tmp_path / "log", 1.0)
    assert failure == "at the time limit"
    assert log in ("begun\n", "")
    assert pulp_backend._run_command(["sh", "-c", "exit 3"], tmp_path / "log", 60)[1]


def test_a_pace_makes_calls_shorter_if_the_kernel_is_slow(monkeypatch):
    times = iter([0.0, 50.0, 50.0, 50.001])
    monkeypatch.setattr(clock, "now", lambda: next(times))
    pace = clock.Pace(clock.SLICE_S / 10)
    assert pace.units(1000) == 10
    pace.done()  # 5 s a unit
    assert pace.units(1000) == 1
    pace.done()  # 1 ms a unit
    monkeypatch.setattr(clock, "now", lambda: 0.0)
    assert pace.units(1000) == pytest.approx(clock.SLICE_S / 1e-3, abs=1)
    assert pace.units(7) == 7


def test_partitions_are_counted_beyond_64_bits():
    """The account of a search counts every open box, so counting must be quick and exact."""
    n_blocks, n_tiers = 150, 22
    instance = Instance.from_tables(
        [[[1.0] * n_blocks]], [0] * n_blocks, [[(0, 0)]] * n_tiers, objective="makespan"
    )
    tables = joint_tables(instance, "joint_exact")
    low = (*range(n_tiers), n_blocks)
    high = (0, *range(n_blocks - n_tiers + 1, n_blocks), n_blocks)
    every = PartitionCounter(tables).count(PartitionBox(low, high))
    assert every == math.comb(n_blocks - 1, n_tiers - 1) > 2**63
