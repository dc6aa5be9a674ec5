"""Times per output token that no split beats, and targets that they refute."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.plan_query import PlanQuery
from hypsolve.planning.query import rank_fluid
from hypsolve.planning.runtime_restrictions import network_for_server, nodes_in
from hypsolve.planning.slo_answer import SufficientUpgrade
from hypsolve.planning.slo_text import describe_answer
from hypsolve.planning.target_bound import least_tpot_s, least_ttft_s
from hypsolve.planning.text import upgrade_title
from hypsolve.solvers.clock import Deadline
from tests.cli.test_cli import run
from tests.helpers import token_toys as toys
from tests.planning.test_load_search import drawn

WIRE = hs.Link(bytes_per_s=1e9, latency_s=0.25, return_latency_s=0.5)
BOX = """
[[tiers]]
name = "edge"
min_blocks = 0
nodes = [{gpu = "l4"}]
link = {gbps = 1, latency_ms = 10}
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb", gpus = 2, interconnect = "nvlink3"}]
"""


def two_tiers(*seconds, **limits):
    """One node a tier, whose blocks take so long: 4 blocks."""
    tiers = tuple(
        hs.Tier(
            name=f"t{k}", nodes=(hs.Node(name=f"n{k}", gpu=toys.gpu(f"g{k}", t0_s=t0_s)),),
            link=WIRE if k < len(seconds) - 1 else None,
        )
        for k, t0_s in enumerate(seconds)
    )  # fmt: skip
    network = hs.NetworkFile(network=hs.Network(name="lab", tiers=tiers), **limits)
    return PlanQuery.of(toys.model(4), network, prompt_tokens=2, output_tokens=5)


def test_the_bound_of_one_request_alone_is_its_time():
    """Three blocks of 1 s, one of 2 s that must be there, and a link of 0.75 s both ways."""
    assert least_tpot_s(two_tiers(1.0, 2.0)) == pytest.approx(3 * 1.0 + 2.0 + 0.75)
    assert least_tpot_s(two_tiers(2.0, 1.0)) == pytest.approx(3 * 1.0 + 2.0 + 0.75)
    assert least_tpot_s(two_tiers(2.0, 1.0, min_blocks=(0, None))) == pytest.approx(4.0)
    assert least_tpot_s(two_tiers(1.0, 2.0, min_blocks=(0, 2))) == pytest.approx(6.75)
    closed = two_tiers(1.0, 2.0, min_blocks=(0, 0), max_blocks=(0, None))
    assert least_tpot_s(closed) == pytest.approx(8.0)


def test_requests_of_other_lengths_are_bounded_by_the_shortest():
    query = two_tiers(1.0, 2.0)
    assert least_tpot_s(replace(query, output_tokens=1)) == 0.0  # there is no second token
    outputs = {(9, 3, 1): 5.75, (1, 1, 1): 0.0}
    for output, least_s in outputs.items():
        requests = hs.Requests(np.arange(3.0), [4, 6, 1], output)
        mixed = replace(query, requests=requests)
        assert least_tpot_s(mixed) == pytest.approx(least_s)
    few = hs.Requests(np.arange(20.0), [4] * 20, [2] + [1] * 19)  # 5 % have a second token
    assert least_tpot_s(replace(query, requests=few)) == 0.0


@pytest.mark.parametrize("costs", ["roofline", "fitted"])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_and_no_load_beats_the_bound(seed, costs):
    """The oracle simulates every split under four loads, and one request alone."""
    _, deployment, _, splits, _ = drawn(seed)
    requests = deployment.requests
    p, o = int(requests.prompt_tokens[0]), int(requests.output_tokens[0])
    query = PlanQuery.of(
        deployment.model, deployment.network, prompt_tokens=p, output_tokens=o, costs=costs
    )
    least_s, found = least_tpot_s(query), []
    rng = np.random.default_rng(seed)
    for rate, split in itertools.product((1e-3, 2.0, 30.0), splits):
        arrival_s = rng.exponential(1 / rate, 12).cumsum()
        ones = np.ones(12, np.int64)
        served = replace(
            query.deployment(), requests=hs.Requests(arrival_s, p * ones, o * ones)
        )
        found.append(hs.simulate(served, split, link_contention=True).tpot_s.min())
    assert least_s <= min(found) <= 1.1 * least_s


@pytest.mark.parametrize("runtime", ["vllm", "ideal", "llama.cpp"])
def test_no_degree_beats_the_bound(runtime):
    nvlink = hs.interconnect("nvlink3", "a100-80gb")
    box = hs.Node(name="box", gpu=hs.gpu("a100-80gb"), gpus=4, interconnect=nvlink)
    rack = hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(box,)),))
    query = PlanQuery.of("llama-3-8b", rack, runtime=runtime)
    least_s = least_tpot_s(query)
    alone = []
    for degree in (1, 2, 4) if runtime != "llama.cpp" else (1,):
        of_degree = replace(query, tensor_parallel=degree).deployment()
        split = hs.Partition((0, of_degree.model.n_blocks))
        alone.append(hs.simulate(of_degree, split).tpot_s[0])
    assert 0.97 * min(alone) < least_s <= min(alone)


def test_a_target_that_no_machine_meets_is_refuted(capsys, tmp_path):
    """It was not decided in time, after the search over splits had taken all of the limit."""
    path = tmp_path / "box.toml"
    path.write_text(BOX)
    command = ("plan", "--model", "llama-3-8b", "--network", path, "--time-limit", 0.01)
    load = ("--runtime", "vllm", "--users", 2, "--output", 16, "--slo-tpot")
    code, out, _ = run(capsys, *command, *load, 0.001)
    assert code == 1 and out.startswith("no: 2 users are not served within TPOT <= 1 ms")
    assert "proved: no split and no schedule on these machines has a TPOT below" in out
    _, out, _ = run(capsys, *command, *load, 0.001, "--json")
    answer = json.loads(out)["slo_answer"]
    assert answer["decided_by"] == "bound" and 0.003 < answer["least_tpot_s"] < 0.02
    _, out, _ = run(capsys, *command, *load, 1.01 * answer["least_tpot_s"], "--json")
    answer = json.loads(out)["slo_answer"]
    assert answer["decided_by"] != "bound" and answer["least_tpot_s"] is None


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_plain_no_is_one_of_all_degrees(gpus):
    """One degree was judged, and "no" was said: with others, the load may be served."""
    nvlink = hs.interconnect("nvlink3", "a100-80gb")
    box = hs.Node(
        name="box",
        gpu=hs.gpu("a100-80gb"),
        gpus=gpus,
        interconnect=nvlink if gpus > 1 else None,
    )
    rack = hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(box,)),))
    asked = {"runtime": "vllm", "prompt_tokens": 64, "output_tokens": 8, "users": 2}
    least_s = least_ttft_s(PlanQuery.of("phi-3-mini", rack, **asked))
    found = hs.plan(  # with host seconds of iterations, which the bound leaves out, none does
        "phi-3-mini", rack, **asked, ttft_slo_s=1.0001 * least_s, with_upgrades=False
    )
    answer = found.slo_answer
    assert not answer.is_met and math.isnan(answer.least_tpot_s)
    assert answer.decided_by == ("all splits" if gpus == 1 else "some splits")
    assert describe_answer(answer, found.query.load).startswith(
        "no: 2 users are" if gpus == 1 else "no split found that serves 2 users"
    )


def test_an_upgrade_of_the_answer_is_not_denied_below():
    """One plan said that a free change reached the targets, and that nothing did."""
    box = hs.Network(
        name="lab",
        tiers=(hs.Tier(name="rack", nodes=(hs.Node(name="box", gpu=hs.gpu("l4")),)),),
    )
    found = hs.plan(
        "phi-3-mini", box, prompt_tokens=64, output_tokens=8, users=2, ttft_slo_s=1e-4,
        with_upgrades=False,
    )  # fmt: skip
    assert upgrade_title(found).endswith(": nothing that was tried brings more requests within"
                                         " the targets")  # fmt: skip
    upgrade = SufficientUpgrade(
        what="another", price_per_hour=0.0, n_gpus=0, cuts=(0, 1), slo_attainment=1.0,
        extrapolated=False,
    )  # fmt: skip
    with_one = replace(found, slo_answer=replace(found.slo_answer, upgrade=upgrade))
    assert ": nothing else that was tried" in upgrade_title(with_one)


def test_without_time_the_network_with_the_shortest_pass_is_split():
    """All networks of llama.cpp were split, however late it was, in an order of no meaning."""
    names = ("t4", "rtx-4090", "l4")
    tiers = tuple(
        hs.Tier(name=gpu, nodes=(hs.Node(name=gpu, gpu=hs.gpu(gpu)),), link=link)
        for gpu, link in zip(names, (WIRE, WIRE, None), strict=True)
    )
    network = hs.NetworkFile(network=hs.Network(name="lab", tiers=tiers), min_blocks=(0, 0, 0))
    query = PlanQuery.of("phi-3-mini", network, runtime="llama.cpp", output_tokens=4, users=1)
    split = []

    def fluid(of):
        split.append(nodes_in(of.network))
        solution, splits, rate = rank_fluid(of)
        return solution, dict.fromkeys(splits[:1], rate)

    found = network_for_server(query, fluid=fluid, deadline=Deadline(1e-9))
    assert split == [("rtx-4090",)] and nodes_in(found.query.network) == ("rtx-4090",)
    split.clear()
    network_for_server(query, fluid=fluid)
    assert len(split) > 3 and split[0] == ("rtx-4090",)


def test_the_first_token_of_one_request_alone_takes_its_time():
    """Blocks that take a time of their own per pass: three of 1 s, one of 2 s, a link."""
    assert least_ttft_s(two_tiers(1.0, 2.0)) == pytest.approx(3 * 1.0 + 2.0 + 0.75)
    assert least_ttft_s(two_tiers(2.0, 1.0, min_blocks=(0, None))) == pytest.approx(4.0)
    closed = two_tiers(1.0, 2.0, min_blocks=(0, 0), max_blocks=(0, None))
    assert least_ttft_s(closed) == pytest.approx(8.0)


@pytest.mark.parametrize("costs", ["roofline", "fitted"])
@pytest.mark.parametrize("seed", range(4))
def test_no_first_token_comes_before_the_bound(seed, costs):
    """The oracle simulates every split, chunks of several sizes, and three loads."""
    _, deployment, _, splits, _ = drawn(seed)
    requests = deployment.requests
    o = int(requests.output_tokens[0])
    rng = np.random.default_rng(seed)
    for prompt, chunk in ((1, 512), (700, 64), (700, 512), (700, 4096)):
        runtime = replace(deployment.runtime, chunk_tokens=chunk)
        query = PlanQuery.of(
            deployment.model, deployment.network, prompt_tokens=prompt, output_tokens=o,
            costs=costs, runtime=runtime,
        )  # fmt: skip
        least_s, found = least_ttft_s(query), []
        for rate, split in itertools.product((1e-3, 2.0, 30.0), splits):
            arrival_s, ones = rng.exponential(1 / rate, 12).cumsum(), np.ones(12, np.int64)
            served = replace(
                query.deployment(), requests=hs.Requests(arrival_s, prompt * ones, o * ones)
            )
            found.append(hs.simulate(served, split, link_contention=True).ttft_s.min())
        assert 0 < least_s <= min(found)


@pytest.mark.parametrize("runtime", ["vllm", "ideal", "llama.cpp"])
@pytest.mark.parametrize("prompt", [100, 3000])
def test_the_first_token_is_bounded_for_all_degrees(runtime, prompt):
    nvlink = hs.interconnect("nvlink3", "a100-80gb")
    box = hs.Node(name="box", gpu=hs.gpu("a100-80gb"), gpus=4, interconnect=nvlink)
    rack = hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(box,)),))
    query = PlanQuery.of("llama-3-8b", rack, runtime=runtime, prompt_tokens=prompt)
    least_s, alone = least_ttft_s(query), []
    for degree in (1, 2, 4) if runtime != "llama.cpp" else (1,):
        of_degree = replace(query, tensor_parallel=degree).deployment()
        split = hs.Partition((0, of_degree.model.n_blocks))
        alone.append(hs.simulate(of_degree, split).ttft_s[0])
    assert 0 < least_s <= min(alone)


def test_the_first_token_of_one_server_is_bounded_closely():
    """One GPU, one chunk: nothing overlaps, so the bound is nearly reached."""
    box = hs.Network(
        name="lab", tiers=(hs.Tier(name="box", nodes=(hs.Node(name="a", gpu=hs.gpu("l4")),)),)
    )
    query = PlanQuery.of("llama-3-8b", box, runtime="vllm", prompt_tokens=1500)
    alone_s = hs.simulate(query.deployment(), hs.Partition((0, query.model.n_blocks))).ttft_s[0]
    assert 0.9 * alone_s < least_ttft_s(query) <= alone_s


def test_a_first_token_that_no_machine_reaches_is_refuted(capsys, tmp_path):
    """The answer was "no split found", though every split misses such a target."""
    path = tmp_path / "box.toml"
    path.write_text(BOX)
    command = ("plan", "--model", "llama-3-8b", "--network", path, "--time-limit", 0.01)
    load = ("--runtime", "vllm", "--users", 2, "--output", 16, "--slo-ttft")
    code, out, _ = run(capsys, *command, *load, 0.001)
    assert code == 1 and out.startswith("no: 2 users are not served within TTFT <= 1 ms")
    assert "proved: no split and no schedule on these machines has a TTFT below" in out
    _, out, _ = run(capsys, *command, *load, 0.001, "--slo-tpot", 0.001)
    assert " has a TTFT below" in out and " or a TPOT below" in out
    _, out, _ = run(capsys, *command, *load, 0.001, "--json")
    answer = json.loads(out)["slo_answer"]
    assert answer["decided_by"] == "bound" and 0.003 < answer["least_ttft_s"] < 1.0
    assert answer["least_tpot_s"] is None
    _, out, _ = run(capsys, *command, *load, 1.01 * answer["least_ttft_s"], "--json")
    answer = json.loads(out)["slo_answer"]
    assert answer["decided_by"] != "bound" and answer["least_ttft_s"] is None


def test_replan_refutes_targets_that_no_split_reaches(capsys, tmp_path):
    """It ended with exit code 0, as if a split had been found that serves the load."""
    path, before = tmp_path / "box.toml", tmp_path / "plan.json"
    path.write_text(BOX)
    load = ("--runtime", "vllm", "--users", 2, "--output", 16)
    asked = ("--model", "llama-3-8b", "--network", path)
    before.write_text(run(capsys, "plan", *asked, *load, "--time-limit", 1, "--json")[1])
    command = ("replan", *asked, "--before", before, "--max-moves", 0, "--time-limit", 1)
    code, out, _ = run(capsys, *command, "--slo-ttft", 0.001)
    assert code == 1 and "a target is missed; proved: no split and no schedule of these" in out
    assert " has a TTFT below" in out
    code, out, err = run(capsys, *command, "--slo-ttft", 0.001, "--json")
    assert code == 1 and " has a TTFT below" in err and json.loads(out)["n_moved"] == 0
    code, out, _ = run(capsys, *command, "--slo-ttft", 100.0)
    assert code == 0 and "a target is missed" not in out
