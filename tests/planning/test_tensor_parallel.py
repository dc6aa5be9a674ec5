"""The degree of tensor parallelism in plans: chosen by enumeration, printed, exported, kept."""

import json
import re
from dataclasses import replace

import pytest

import hypsolve as hs
from hypsolve.planning.exporters import TENSOR_PARALLEL, not_expressible
from hypsolve.planning.json_schema import schema
from hypsolve.planning.tensor_parallel import choose_degrees
from tests.helpers.plans import plan_alone

SHORT = {"prompt_tokens": 64, "output_tokens": 16}  # outputs are most of a simulation's time
FAST = {"with_upgrades": False, "rate_per_s": 4.0, "time_limit_s": 600, **SHORT}


def machine(name="box", gpu="h100", gpus=8, interconnect="nvlink4", **fields):
    links = hs.interconnect(interconnect, gpu)
    return hs.Node(name=name, gpu=hs.gpu(gpu), gpus=gpus, interconnect=links, **fields)


def lab(*tiers):
    link = hs.Link(bytes_per_s=3e9, latency_s=1e-4)
    made = [
        hs.Tier(name=f"t{k}", nodes=tuple(nodes), link=link if k < len(tiers) - 1 else None)
        for k, nodes in enumerate(tiers)
    ]
    return hs.Network(name="lab", tiers=tuple(made))


@pytest.fixture(scope="module")
def box_plan():
    """Llama-3-70B in 16 bits on one machine of 8 H100, for vLLM."""
    return plan_alone("llama-3-70b", lab([machine()]), runtime="vllm", **FAST)


def test_70b_on_eight_h100(box_plan):
    """One GPU cannot hold it: without tensor parallelism, it takes several in a row."""
    assert box_plan.fits
    assert box_plan.forecast.keeps_up
    alone = next(each for each in box_plan.degrees if each.degrees == (1,))
    assert (alone.is_allowed, alone.fits, alone.reason) == (True, True, "")
    single = plan_alone(
        "llama-3-70b", lab([machine()]), runtime="vllm", tensor_parallel=1, **FAST
    )
    assert single.fits and len([stage for stage in single.stages if stage.blocks]) > 1
    assert f"{box_plan.nodes[0].n_gpus} x H100-SXM" in str(box_plan)


def test_every_degree_is_planned_and_the_best_is_taken(box_plan):
    """Each row is what a plan with the degree as an argument forecasts; the best is first."""
    rates, at_least = {}, {}
    for degree in (1, 2, 4, 8):
        given = plan_alone(
            "llama-3-70b", lab([machine()]), runtime="vllm", tensor_parallel=degree, **FAST
        )
        rates[degree] = given.forecast.max_requests_per_s
        at_least[degree] = "at least " * given.forecast.max_rate_is_lower_bound
        assert len(given.nodes) == 8 // degree
        assert (degree == 1) == (len(given.stages) > 1)
    assert {
        each.degrees[0]: each.max_requests_per_s for each in box_plan.degrees if each.fits
    } == rates
    best = max(rates, key=rates.__getitem__)
    assert box_plan.query.tensor_parallel == best
    assert box_plan.degrees[0].degrees == (best,)
    line = next(row for row in str(box_plan).splitlines() if row.startswith("tensor parall"))
    assert f"requests/s simulated: {best}: {at_least[best]}{rates[best]:.3g}; " in line


def test_the_command_of_vllm_starts_the_groups(box_plan):
    """Every GPU is shown once, and the degree times the replicas is their number."""
    command = next(
        line for line in hs.export(box_plan, "vllm").splitlines() if "vllm serve" in line
    )
    degree = box_plan.query.tensor_parallel
    assert f"--tensor-parallel-size {degree}" in command
    replicas = re.search(r"--data-parallel-size (\d+)", command)
    assert degree * (int(replicas[1]) if replicas else 1) == 8
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 " in command


def test_sglang_starts_one_server_with_a_replica_on_each_group():
    """Equal replicas of one machine are ranks of one server, which sees all GPUs."""
    plan = plan_alone(
        "llama-3-70b", lab([machine()]), runtime="sglang", tensor_parallel=4, **FAST
    )
    text = hs.export(plan, "sglang")
    shown = re.findall(r"CUDA_VISIBLE_DEVICES=(\S+) .*--dp-size 2 --tp-size 4 ", text)
    assert shown == ["0,1,2,3,4,5,6,7"]


def test_a_pipeline_of_two_machines():
    """Ray is told all GPUs of each machine; a stage is a group."""
    network = lab([machine("a", gpus=4)], [machine("b", gpus=4)])
    plan = plan_alone("llama-3-70b", network, runtime="vllm", tensor_parallel=4, **FAST)
    text = hs.export(plan, "vllm")
    assert "--tensor-parallel-size 4" in text
    assert "--pipeline-parallel-size 2" in text
    assert text.count("CUDA_VISIBLE_DEVICES=0,1,2,3 ") == 2


def test_runtimes_that_compute_no_layer_on_several_gpus_refuse(box_plan):
    """They are named with the nodes; those in the table can express the plan."""
    for name in hs.RUNTIMES:
        why = not_expressible(box_plan, name)
        assert ("computes no layer on several GPUs" in why) == (name not in TENSOR_PARALLEL)


def mixed_network():
    return lab([hs.Node(name="l40s", gpu=hs.gpu("l40s"))], [machine(gpus=2)])


def test_vllm_takes_one_degree_and_the_plan_says_what_that_costs():
    """A single GPU before a machine: it runs under degree 1, or is left out."""
    plan = plan_alone("llama-2-13b", mixed_network(), runtime="vllm", **FAST)
    tried = {each.degrees: each for each in plan.degrees}
    allowed = {degrees: each for degrees, each in tried.items() if each.is_allowed}
    assert set(allowed) == {(1, 1), (2, 2)}
    best = max(allowed.values(), key=lambda each: each.max_requests_per_s)
    assert plan.degrees[0] == best
    free = tried[1, 2]
    assert free.fits and not free.is_allowed
    gain = free.max_requests_per_s / best.max_requests_per_s - 1
    said = [line for line in str(plan).splitlines() if "vllm cannot run" in line]
    assert len(said) == (gain > 0)
    assert all(f"would give {free.max_requests_per_s:.3g} ({gain:.1%} more)" in s for s in said)


def test_machines_with_fewer_gpus_are_left_out_and_named():
    """Their tier relays; the rest is planned as a network without them."""
    asked = {"runtime": "vllm", "tensor_parallel": 2, **FAST}
    plan = plan_alone("llama-2-13b", mixed_network(), **asked)
    assert [len(stage.blocks) for stage in plan.stages] == [0, plan.model.n_blocks]
    assert plan.query.too_small == ("l40s",)
    assert "left out: l40s (fewer GPUs than compute as one, 2)" in str(plan)
    alone = plan_alone("llama-2-13b", lab([machine(gpus=2)]), **asked)
    assert plan.forecast.max_requests_per_s == pytest.approx(
        alone.forecast.max_requests_per_s, rel=0.05
    )
    more = hs.Node(name="l4", gpu=hs.gpu("l4"))
    in_a_tier = plan_alone("llama-2-13b", lab([machine(gpus=2), more]), **asked)
    assert [node.node for node in in_a_tier.nodes] == ["box"]
    assert in_a_tier.query.too_small == ("l4",)


def test_the_nearest_plan_leaves_tiers_of_small_machines_empty():
    """The last layer goes to the last tier that can hold blocks, not to the last tier."""
    network = lab([machine("a", gpus=2)], [machine("b", gpus=4)], [machine("c", gpus=1)])
    plan = plan_alone("llama-2-13b", network, runtime="vllm", tensor_parallel=2, **FAST)
    assert plan.query.too_small == ("c",)
    near = hs.nearest_plan(plan, "vllm", with_upgrades=False)
    assert near.fits and not near.stages[-1].blocks
    assert "--tensor-parallel-size 2" in hs.export(near, "vllm", instead_of=plan)


def test_a_pin_keeps_a_degree_out():
    """A tier that must hold the embedding has no machine for degree 2: the reason says so."""
    file = hs.NetworkFile(network=mixed_network(), pins={"embedding": "t0"})
    plan = plan_alone("llama-2-13b", file, runtime="vllm", **FAST)
    assert plan.query.tensor_parallel == 1
    refused = next(each for each in plan.degrees if each.degrees == (2, 2))
    why = "block 'embedding' must not be pinned to tier 't0': it has no machine for"
    assert why in refused.reason
    file = hs.NetworkFile(network=mixed_network(), min_blocks=(3, None))
    with pytest.raises(ValueError, match="min_blocks of tier 't0' must be 0, for it has no"):
        plan_alone("llama-2-13b", file, runtime="vllm", tensor_parallel=2, **FAST)


def test_ideal_lets_every_stage_have_its_degree():
    """The best of all combinations, each simulated, is taken."""
    plan = plan_alone("llama-2-13b", mixed_network(), **FAST)
    tried = {each.degrees: each for each in plan.degrees if each.fits}
    assert set(tried) == {(1, 1), (1, 2)}  # no machine need be left out
    best = max(tried.values(), key=lambda each: each.max_requests_per_s)
    assert plan.degrees[0] == best
    assert plan.query.tensor_parallel is None or best.degrees == (1, 1)
    why = not_expressible(plan, "vllm")
    assert ("one degree of tensor parallelism for all stages" in why) == (
        best.degrees == (1, 2)
    )


@pytest.mark.full_length
def test_the_goal_decides():
    """For the least latency of one request alone more GPUs compute as one than for the rate."""
    network = lab([machine()])
    arguments = {**FAST, "rate_per_s": 0.05}
    fast = plan_alone("llama-3-8b", network, runtime="vllm", objective="path", **arguments)
    latencies = {
        each.degrees[0]: each.latency_mean_s for each in fast.degrees if each.is_allowed
    }
    assert set(latencies) == {1, 2, 4, 8}
    assert fast.query.tensor_parallel == min(latencies, key=latencies.__getitem__) == 8
    wide = plan_alone("llama-3-8b", network, runtime="vllm", **arguments)
    assert wide.query.tensor_parallel == 1  # eight servers, which share nothing


def test_fixed_degrees_that_do_not_fit_are_listed():
    """The only choice, of two degrees, is named with its reason though nothing fits."""
    small = [machine("a", gpu="l4", gpus=2, interconnect="pcie4", tensor_parallel=2)]
    network = lab(small, [hs.Node(name="b", gpu=hs.gpu("l4"))])
    plan = plan_alone("llama-3-70b", network, **FAST)
    assert not plan.fits
    assert [(each.degrees, each.reason) for each in plan.degrees if each.is_allowed] == [
        ((2, 1), "the model does not fit")
    ]


def test_the_largest_degree_says_what_is_missing():
    """One GPU would lack most of the model; all of them together lack less."""
    network = lab([machine(gpu="l4", gpus=4, interconnect="pcie4")])
    plan = plan_alone("llama-3-70b", network, runtime="vllm", **FAST)
    assert not plan.fits
    assert plan.query.tensor_parallel == 4
    assert "4: the model does not fit; 2: the model" in str(plan)


def test_users_are_served_best():
    """In a closed loop the value is the rate of the users, not the largest one."""
    asked = {"users": 4, "with_upgrades": False, "time_limit_s": 600, "output_tokens": 32}
    plan = plan_alone("llama-3.2-1b", lab([machine(gpus=2)]), runtime="vllm", **asked)
    assert [each.value for each in plan.degrees] == sorted(
        (each.value for each in plan.degrees), reverse=True
    )
    assert plan.degrees[0].value == plan.forecast.requests_per_s


def test_degrees_must_divide_the_heads():
    """Qwen2.5-7B has 28 heads: 8 is left out with its reason, or refused if it is asked for."""
    model = hs.model("qwen2.5-7b")
    assert model.n_heads == 28
    query, tried = choose_degrees(hs.PlanQuery.of(model, lab([machine()]), rate_per_s=1.0))
    reasons = {each.degrees[0]: each.reason for each in tried}
    assert "tensor_parallel must divide its 28 attention heads, got 8" in reasons[8]
    assert query.tensor_parallel in (1, 2, 4)
    with pytest.raises(ValueError, match="must divide its 28 attention heads, got 8"):
        plan_alone(model, lab([machine()]), tensor_parallel=8, **FAST)


def test_what_cannot_be_run_is_refused():
    """The message names the runtime, the rule and the degree."""
    with pytest.raises(
        ValueError, match=r"tensor_parallel must be 1 under runtime 'llama\.cpp'"
    ):
        plan_alone(
            "llama-3-8b", lab([machine()]), runtime="llama.cpp", tensor_parallel=2, **FAST
        )
    with pytest.raises(ValueError, match="plan: tensor_parallel must be at least 1, got 0"):
        plan_alone("llama-3-8b", lab([machine()]), tensor_parallel=0, **FAST)
    with pytest.raises(ValueError, match="some machine can have, 1, 2, got 4"):
        plan_alone("llama-3-8b", lab([machine(gpus=2)]), tensor_parallel=4, **FAST)
    pair, single = machine(gpus=2, tensor_parallel=2), hs.Node(name="b", gpu=hs.gpu("l4"))
    fixed = hs.NetworkFile(
        network=lab([pair], [single]), pins={"embedding": "t0", "head": "t1"}
    )
    with pytest.raises(ValueError, match=r"runtime 'vllm' takes one for all stages; .*pinned"):
        plan_alone("llama-3-8b", fixed, runtime="vllm", **FAST)
    assert plan_alone("llama-3-8b", fixed, **FAST).degrees[0].degrees == (2, 1)


def test_llama_cpp_uses_the_gpus_one_by_one():
    """Over RPC it has no tensor parallelism: a machine of two GPUs is two nodes."""
    plan = plan_alone("llama-3-8b", lab([machine(gpus=2)]), runtime="llama.cpp", **FAST)
    assert [node.n_gpus for node in plan.nodes] == [1, 1]
    refused = [each for each in plan.degrees if each.reason]
    assert all("computes no layer on several GPUs" in each.reason for each in refused)


def test_the_report_has_the_degrees(box_plan, tmp_path):
    """The sentence of the text, and where the all-reduces come from."""
    path = tmp_path / "plan.html"
    hs.write_report(box_plan, path)
    report = path.read_text()
    assert "Tensor parallelism, requests/s simulated: " in report
    assert "interconnect nvlink4" in report
    assert "measured: one all-reduce of 16-bit values" in report


def test_gpus_of_a_machine_can_be_stages_in_a_row():
    """llama.cpp holds a model on eight GPUs that none of them could hold: one after another."""
    near = plan_alone("llama-3-70b", lab([machine()]), runtime="llama.cpp", **FAST)
    assert near.fits
    used = [node.node for node in near.nodes if node.is_used]
    assert set(used) <= {f"box/{i}" for i in range(8)}
    text = hs.export(near, "llama.cpp")
    servers = [line for line in text.splitlines() if "llama-server -m" in line]
    rows = [re.search(r"--device (\S+) ", line)[1].split(",") for line in servers]
    assert all(len(row) >= 2 for row in rows)  # local devices, each of one server
    devices = sorted(device for row in rows for device in row)
    assert devices == sorted(node.replace("box/", "CUDA") for node in used)
    assert "ggml-rpc-server" not in text


def test_replan_keeps_the_degree(box_plan, tmp_path):
    """The earlier plan's degree is used, though the network file leaves it open."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(box_plan.to_dict()))
    network = lab([replace(machine(), reserved_bytes=2e9)])
    again = hs.replan("llama-3-70b", network, path, max_moves=0)
    assert again.query.tensor_parallel == box_plan.query.tensor_parallel
    assert again.n_moved == 0


def test_the_schema_of_plans_knows_the_degrees(box_plan):
    """Files with machines have the keys that the schema requires."""
    document = box_plan.to_dict()
    properties = schema("plan")["properties"]
    assert set(document) == set(properties)
    row = document["degrees"][0]
    assert set(row) == set(properties["degrees"]["items"]["properties"])
    assert document["nodes"][0]["n_gpus"] == box_plan.query.tensor_parallel


def test_one_gpu_changes_nothing():
    """A network of single GPUs is planned as before: no degree, no line, no choice."""
    plan = plan_alone("llama-3-8b", lab([hs.Node(name="a", gpu=hs.gpu("h100"))]), **FAST)
    assert (plan.degrees, plan.query.tensor_parallel) == ((), None)
    assert "tensor parallelism" not in str(plan)
