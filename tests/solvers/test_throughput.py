"""Throughput methods against the re-scorer over all splits, and the front door for them."""

import json

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import price_per_hour, refusal
from hypsolve.problem.serving_iteration import used_share
from hypsolve.solve_serving import THROUGHPUT_METHODS
from tests.helpers.serving_oracles import (
    feasible_splits,
    mixed_lengths,
    random_serving,
    with_targets,
)
from tests.helpers.sizes import n_cases

MODES = ("stage", "pipeline", "serial")


def two_speeds(**changes):
    given = {
        "fixed_s": [[1e-3], [2e-3]],
        "block_kind": [0] * 6,
        "tiers": [[(0, 1e9)], [(1, 1e9)]],
        "prompt_tokens": 100,
        "output_tokens": 10,
        "max_num_seqs": 20,
        "name": "two speeds",
    }
    return ServingInstance.from_tables(**(given | changes))


def is_best(instance, result):
    """Whether no split carries a rate that is larger by 1e-6, and the split its own."""
    splits = list(feasible_splits(instance))
    if result.partition is None:
        return all(refusal(instance, split, 1e-6) for split in splits)
    rate = result.fluid_requests_per_s
    return all(refusal(instance, split, rate * (1 + 1e-6)) for split in splits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_method_agrees_with_all_splits(mode, seed):
    """Brute force by code that shares nothing with the kernels, in 216 cases (nightly: 540).

    A third has targets or users, and a sixth mixed lengths. `solve` has already scored the
    answer by the re-scorer and compared it with the claim of the method.
    """
    rng = np.random.default_rng([seed, MODES.index(mode)])
    found = 0
    n = n_cases(24, 60)
    for case in range(n):
        instance = random_serving(rng, mode)
        if case % 6 == 5:
            instance = mixed_lengths(instance, rng)
        if case % 3 == 0:
            instance = with_targets(instance, rng)
        result = hs.solve(instance, "throughput_exact")
        assert is_best(instance, result), (seed, case)
        found += result.partition is not None
    assert found >= n / 3


def test_a_node_with_few_tokens_is_scored_as_by_the_kernels():
    """Keep the digits of ``1 - idle ** tokens`` for 1e-17 tokens.

    The re-scorer lost them, and scored this split above the bound of the method.
    """
    rng = np.random.default_rng([5, 5])
    for case in range(7):
        instance = random_serving(rng, "stage")
        if case % 6 == 5:
            instance = mixed_lengths(instance, rng)
        if case % 3 == 0:
            instance = with_targets(instance, rng)
    assert is_best(instance, hs.solve(instance, "throughput_exact"))
    share = used_share(0.4, 1e-17)
    assert share == pytest.approx(-1e-17 * np.log(0.4), rel=1e-12)
    assert used_share(0.4, 2.0) == pytest.approx(1 - 0.4**2, rel=1e-12)
    assert (used_share(0.0, 0.0), used_share(0.0, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_the_ranking_has_no_gap(mode):
    """The n best splits: no other split carries more than the last of them."""
    rng = np.random.default_rng([7, MODES.index(mode)])
    compared = 0
    n = n_cases(15, 30)
    for _ in range(n):
        instance = random_serving(rng, mode)
        result = hs.solve(instance, "throughput_exact", n_splits=4)
        if result.partition is None:
            continue
        found = [(result.partition, result.served), *result.alternatives]
        rates = [served.fluid_requests_per_s for _, served in found]
        assert rates == sorted(rates, reverse=True) or max(np.diff(rates)) < 1e-9 * rates[0]
        listed = {split for split, _ in found}
        assert len(listed) == len(found)
        least = rates[-1] * (1 + 1e-6) if len(found) == 4 else 1e-6
        others = [split for split in feasible_splits(instance) if split not in listed]
        assert all(refusal(instance, split, least) for split in others)
        compared += len(others) > 0 and len(found) == 4
    assert compared >= n / 6


@pytest.mark.parametrize("mode", MODES)
def test_the_least_price_agrees_with_all_splits(mode):
    """No split carries the rate that it needs to be cheaper; a slow cheap tier may win."""
    rng = np.random.default_rng([11, MODES.index(mode)])
    compared = 0
    for _ in range(40):
        instance = random_serving(rng, mode).replace(objective="cost")
        result = hs.solve(instance, "throughput_exact")
        splits = list(feasible_splits(instance))
        if result.partition is None:
            assert all(refusal(instance, split, 1e-6) for split in splits)
            continue
        for split in splits:
            needed = price_per_hour(instance, split) / 3600 / result.objective
            assert refusal(instance, split, needed * (1 + 1e-6))
        compared += len(splits) > 1
    assert compared >= 10


def test_the_answer_states_its_limit_and_saves(tmp_path):
    result = hs.solve(two_speeds(), "throughput_exact", n_splits=3)
    assert result.status == "optimal"
    assert str(result.partition) == "0:4 | 4:6"
    assert result.fluid_requests_per_s == pytest.approx(500)
    assert "fluid rate 500 requests/s" in str(result)
    assert "blocks 4:6" in str(result)
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["cuts"] == [0, 4, 6]
    assert saved["digest"] == two_speeds().digest()
    assert saved["served"]["limit"] == result.served.limit
    assert len(saved["alternatives"]) == 2
    assert "<table" in result._repr_html_()


@pytest.mark.parametrize(("mode", "most"), [("stage", 30), ("pipeline", 100), ("serial", 60)])
def test_few_rates_are_tried_on_a_network_of_usual_size(mode, most):
    """82 blocks on 4 tiers of 4 nodes: one trial for each level of KV memory makes 726."""
    gpus = ("rtx-3090", "a100-40gb", "l40s", "h100")
    link = hs.Link(bytes_per_s=1.25e9, latency_s=2e-4)
    tiers = tuple(
        hs.Tier(
            name=gpu,
            nodes=tuple(hs.Node(name=f"{gpu}-{i}", gpu=hs.gpu(gpu)) for i in range(4)),
            **({} if gpu == gpus[-1] else {"link": link}),
        )
        for gpu in gpus
    )
    deployment = hs.Deployment(
        model=hs.model("llama-3-70b"),
        network=hs.Network(name="lab", tiers=tiers),
        requests=hs.Requests([0.0], [512], [128]),
        runtime=hs.runtime("vllm"),
    )
    instance = hs.to_serving_instance(deployment).replace(batching=mode)
    result = hs.solve(instance, "throughput_exact")
    assert result.statistics["trials"] <= most
    for at, step in ((1, -1), (1, 1), (2, -1), (2, 1), (3, -1), (3, 1)):
        cuts = list(result.partition.cuts)
        cuts[at] += step
        least = result.fluid_requests_per_s * (1 + 1e-6)
        assert refusal(instance, hs.Partition(tuple(cuts)), least)


def test_a_method_compiles_the_kernels_of_one_batching_mode(monkeypatch):
    """Compilation of the other mode takes up to 20 s of a user's first run."""
    from hypsolve import solve_serving

    warmed = []
    monkeypatch.setattr(solve_serving, "warm", lambda *families: warmed.extend(families))
    for mode in MODES:
        hs.solve(two_speeds(batching=mode), "throughput_exact")
    stage, pipeline = "throughput.stage_mode", "throughput.pipeline_mode"
    assert warmed == [stage, pipeline, pipeline]


PROGRAMS = ("throughput_highs", "throughput_cpsat")
CASES = [(method, mode) for method in THROUGHPUT_METHODS for mode in MODES]


@pytest.mark.parametrize(("method", "mode"), CASES)
def test_every_method_keeps_the_contract(method, mode):
    """No method beats the exact one, exact methods agree, and every answer is named."""
    rng = np.random.default_rng(3)
    answered = 0
    for case in range(8):
        instance = random_serving(rng, mode)
        needs_one_size = not THROUGHPUT_METHODS[method].exact
        if needs_one_size and np.ptp(instance.blocks.weight_bytes, axis=0).any():
            instance = two_speeds(batching=mode, round_trip_s=[rng.uniform(0, 1e-2)])
        elif case % 2:
            instance = with_targets(instance, rng)
        digest = instance.digest()
        result = hs.solve(instance, method, time_limit_s=60, seed=3)
        assert instance.digest() == digest
        assert result.method == method
        assert result.instance is instance
        assert result.solve_time_s >= 0
        best = hs.solve(instance, "throughput_exact")
        assert result.fluid_requests_per_s <= best.fluid_requests_per_s * (1 + 1e-6)
        if THROUGHPUT_METHODS[method].exact:
            rates = result.fluid_requests_per_s, best.fluid_requests_per_s
            assert rates[0] == pytest.approx(rates[1], rel=1e-6)
            assert result.status == best.status
        answered += result.partition is not None
    assert answered >= 1


@pytest.mark.parametrize("method", PROGRAMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_integer_programs_agree_with_the_chains(method, mode, seed):
    """Other solvers on the questions of the DP: a split for a rate and a hold time or cycle."""
    rng = np.random.default_rng([seed, 23])
    for case in range(4):
        instance = random_serving(rng, mode)
        if case % 2:
            instance = with_targets(instance, rng)
        best = hs.solve(instance, "throughput_exact")
        result = hs.solve(instance, method, time_limit_s=60)
        assert result.status == best.status
        assert result.fluid_requests_per_s == pytest.approx(best.fluid_requests_per_s, rel=1e-6)


@pytest.mark.parametrize("method", PROGRAMS)
@pytest.mark.parametrize("mode", MODES)
def test_integer_programs_name_what_they_do_not_solve_and_keep_the_time_limit(method, mode):
    with pytest.raises(ValueError, match=f"{method}: objective must be throughput or goodput"):
        hs.solve(two_speeds(objective="cost", price_per_hour=[1, 1]), method)
    cut_off = hs.solve(two_speeds(batching=mode), method, time_limit_s=1e-9)
    assert cut_off.status == "unknown"
    assert cut_off.message == "the time limit has passed"


def test_each_kind_of_instance_refuses_the_methods_of_the_other():
    """The names of both tables are told apart, whatever the user mixed up."""
    plain = hs.Instance.from_tables([[[1.0, 2.0]]], [0, 0], [[(0, 0)]])
    with pytest.raises(ValueError, match="'throughput_exact' solves ServingInstance, got an"):
        hs.solve(plain, "throughput_exact")
    with pytest.raises(ValueError, match="'hypsplit_dp' solves Instance, got a ServingInst"):
        hs.solve(two_speeds(), "hypsplit_dp")
    with pytest.raises(ValueError, match="did you mean throughput_exact"):
        hs.solve(two_speeds(), "throughput_exakt")
    with pytest.raises(TypeError, match="unknown option 'n_split'; did you mean n_splits"):
        hs.solve(two_speeds(), "throughput_exact", n_split=2)
    with pytest.raises(ValueError, match="n_splits must be at least 1, got 0"):
        hs.solve(two_speeds(), "throughput_exact", n_splits=0)


def test_false_claims_of_a_method_are_found_out():
    """A method that breaks a rule, or claims too much, must not pass."""
    broken = hs.ServingOutcome("feasible", hs.Partition((0, 0, 6)))
    with pytest.raises(RuntimeError, match="breaks a rule: blocks: tier tier-0"):
        hs.solve(two_speeds(), lambda *_, **__: broken)
    claim = hs.ServingOutcome("optimal", hs.Partition((0, 3, 6)), fluid_bound=400.0)
    with pytest.raises(RuntimeError, match="claims optimal with a gap"):
        hs.solve(two_speeds(), lambda *_, **__: claim)
    below = hs.ServingOutcome("feasible", hs.Partition((0, 3, 6)), fluid_bound=1.0)
    with pytest.raises(RuntimeError, match="passes its own bound"):
        hs.solve(two_speeds(), lambda *_, **__: below)
    with pytest.raises(TypeError, match="must return a ServingOutcome"):
        hs.solve(two_speeds(), lambda *_, **__: None)
    with pytest.raises(ValueError, match="status optimal does not go with no partition"):
        hs.ServingOutcome("optimal")


def test_reasons_for_no_answer_are_told_apart():
    """Memory, or targets: an engineer changes different things."""
    heavy = two_speeds(weight_bytes=[[1e9], [1e9]])
    result = hs.solve(heavy, "throughput_exact")
    assert result.status == "infeasible"
    assert result.message.startswith("no split fits")
    hasty = two_speeds(objective="goodput", tpot_slo_s=1e-9)
    assert hs.solve(hasty, "throughput_exact").message.startswith("no split meets the targets")
    assert hs.solve(hasty, "even_split").status == "infeasible"


def test_one_request_alone_is_scored_as_in_an_instance():
    """The baselines solve the right instance: stage seconds by the simulator of one request."""
    from hypsolve.problem.instance import Objective
    from hypsolve.solvers.throughput.rules import one_request

    box = [hs.Node(name=f"n{i}", gpu=hs.gpu("rtx-4090")) for i in range(2)]
    link = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
    tiers = (hs.Tier(name="a", nodes=(box[0],), link=link), hs.Tier(name="b", nodes=(box[1],)))
    deployment = hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="lab", tiers=tiers),
        requests=hs.Requests([0.0], [512], [1]),
        runtime=hs.runtime("ideal", chunk_tokens=None),
    )
    alone = one_request(hs.to_serving_instance(deployment), Objective.PATH)
    split = hs.Partition((0, 17, 34))
    assert hs.evaluate(alone, split) == pytest.approx(
        hs.evaluate(hs.to_instance(deployment, objective="path"), split), rel=1e-9
    )
