"""`nearest_plan`: replicas, rows, empty tiers and platforms, against enumeration."""

import itertools
import json
import re
from dataclasses import replace
from functools import partial

import pytest

import hypsolve as hs
from hypsolve.planning import planner, runtime_networks
from hypsolve.planning.exporters import BY_LAYER, RUNTIMES, export, not_expressible
from hypsolve.planning.runtime_restrictions import nearest_plan
from instances import network
from tests.cli.test_cli import run
from tests.helpers.export_flags import FLAGS
from tests.helpers.export_readers import READ
from tests.helpers.exports import SLOW_FIRST, WIRE, commands, plan, planned, tier
from tests.helpers.plans import alone

near_plan = partial(nearest_plan, with_upgrades=False)


@pytest.fixture
def slow_first(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST)
    return path


@pytest.mark.parametrize("pin", ["", 'pin = ["embedding"]'])
def test_tiers_that_may_be_empty_are_if_that_is_better(tmp_path, pin):
    """The embedding alone cannot be on the slow tier: it goes on, or a layer comes."""
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST.replace('"slow"', f'"slow"\nmin_blocks = 0\n{pin}'))
    found = plan("phi-3-mini", path, concurrency=1, objective="path")
    near = near_plan(found, "vllm")
    instance = found.result.instance
    values = {cut: hs.evaluate(instance, hs.Partition((0, cut, 34))) for cut in range(2, 33)}
    if not pin:
        values[0] = hs.evaluate(instance, hs.Partition((0, 0, 34)))
    assert near.result.objective_s == pytest.approx(min(values.values()), rel=1e-12)
    assert near.result.partition.cuts[1] == (2 if pin else 0)


def test_one_pipeline_is_planned_for_one_node_of_each_tier():
    """Pooled, the two would take more layers than the one that a runtime uses."""
    network = hs.Network(
        name="net", tiers=(tier("pair", "rtx-4090", 2, WIRE), tier("one", "a100-80gb"))
    )
    found = plan("llama-3-8b", network, concurrency=4)
    near = near_plan(found, "vllm")
    alone = near.result.instance
    values = [hs.evaluate(alone, hs.Partition((0, cut, 34))) for cut in range(2, 33)]
    assert near.result.objective_s == pytest.approx(min(values), rel=1e-12)
    assert near.result.objective_s < hs.evaluate(alone, found.result.partition)
    assert [n.node for n in near.nodes] == ["pair-0", "one-0"]


PAIR = """
[[tiers]]
name = "pair"
nodes = [{gpu = "rtx-4090"}, {gpu = "rtx-3090"}, {gpu = "t4", memory_gib = 2}]
link = {gbps = 1, latency_ms = 0.5}
inner = {gbps = 25, latency_ms = 0.05}
[[tiers]]
name = "one"
nodes = [{gpu = "a100-80gb"}]
"""


@pytest.mark.full_length
@pytest.mark.parametrize("memory_gib", [2, 12])
@pytest.mark.parametrize("objective", ["bottleneck", "path"])
def test_linked_nodes_of_a_tier_become_stages(memory_gib, objective, tmp_path):
    """The best of all nodes and rows of nodes, found here by planning a network for each."""
    path = tmp_path / "net.toml"
    path.write_text(PAIR.replace("memory_gib = 2", f"memory_gib = {memory_gib}"))
    asked = {"concurrency": 4, "objective": objective, "output_tokens": 16}
    found = plan("llama-3-8b", path, **asked)
    near = near_plan(found, "vllm")
    inner = hs.Link(bytes_per_s=25e9 / 8, latency_s=0.05e-3)
    outer = hs.Link(bytes_per_s=1e9 / 8, latency_s=0.5e-3)
    gpus = {"rtx-4090": {}, "rtx-3090": {}, "t4": {"memory_bytes": memory_gib * 2**30}}
    values = {}
    for n in (1, 2, 3):
        for row in itertools.permutations(gpus, n):
            tiers = [
                tier(gpu, gpu, 1, inner if gpu != row[-1] else outer, **gpus[gpu])
                for gpu in row
            ]
            network = hs.Network(name="n", tiers=(*tiers, tier("one", "a100-80gb")))
            site = hs.NetworkFile(network=network, pins={0: row[0], 31: "one"})
            values[row] = planner.split("llama-3-8b", site, **alone(asked)).result.objective_s
    assert len(values) == 15 and near.result.objective_s == pytest.approx(
        min(values.values()), rel=1e-12
    )
    best = [node.removeprefix("pair-").removesuffix("-0") for node in used_by(near)[:-1]]
    assert values[tuple(best)] == pytest.approx(min(values.values()), rel=1e-12)


def used_by(found):
    return [node.node for node in found.nodes if node.is_used]


def test_what_fits_on_no_node_may_fit_on_a_row(tmp_path, capsys):
    path = tmp_path / "box.toml"
    path.write_text(
        """
[[tiers]]
name = "box"
nodes = [{gpu = "rtx-4090", count = 2}]
inner = {gbps = 50, latency_ms = 0.05}
"""
    )
    asked = ("plan", "--model", "llama-3-70b", "--weights", "int4", "--concurrency", 4)
    asked += ("--objective", "bottleneck", "--output", 16)
    code, out, _ = run(capsys, *asked, "--network", path)
    assert code == 1 and "nodes of 'box' as stages in a row: " in out
    code, out, err = run(capsys, *asked, "--network", path, "--export", "vllm")
    assert code == 0 and re.search(r"PARTITION=\d+,\d+ ", out)
    assert "vllm cannot express the best plan: nothing fits as it is\n" in err
    assert "planned for it instead, on box-rtx-4090-0, box-rtx-4090-1: proved optimal" in err
    code, out, err = run(capsys, *asked, "--network", path, "--export", "petals")
    assert (code, err) == (1, "") and out.startswith("llama-3-70b-gptq-int4 on box")
    path.write_text(path.read_text().replace("inner", "# inner"))
    code, out, err = run(capsys, *asked, "--network", path, "--export", "vllm")
    assert (
        code == 1 and "nor does a plan fit that it can express: the tiers together reach" in err
    )
    assert "with a link `inner` in the network file (box), they can be stages in a row" in out


def test_what_fits_may_not_fit_in_one_pipeline(tmp_path, capsys):
    """Nothing but the embedding fits on the first tier: no layer, as the runtime needs one."""
    path = tmp_path / "net.toml"
    path.write_text(SLOW_FIRST.replace('"board"}', '"t4", memory_gib = 0.25}'))
    asked = ("plan", "--model", "phi-3-mini", "--network", path, "--concurrency", 1)
    asked += ("--runtime", "ideal", "--objective", "bottleneck", "--output", 16)
    assert run(capsys, *asked)[0] == 0
    code, out, err = run(capsys, *asked, "--export", "vllm")
    assert (code, out) == (1, "")
    why, nor, *details = err.splitlines()
    assert why.startswith(
        "vllm cannot express the best plan: the stage of tier 'slow' has only"
    )
    assert nor.startswith("nor does a plan fit that it can express: ") and details


def networks_of(site, n_replicas=1, max_networks=256):
    found = runtime_networks._pipelines(site, frozenset(), n_replicas, max_networks)
    return [candidate.network for candidate in found]


def test_of_too_many_pipelines_some_are_tried():
    """A tier is then its quickest node, its largest, or all in a row."""
    nodes = (
        hs.Node(name="quick", gpu=hs.gpu("rtx-4090"), memory_bytes=9 * 2**30),
        hs.Node(name="large", gpu=hs.gpu("apple-m1-max")),
        hs.Node(name="neither", gpu=hs.gpu("t4")),
    )
    inner = hs.Link(bytes_per_s=3e9, latency_s=5e-5)
    tiers = (hs.Tier(name="pair", nodes=nodes, link=WIRE), tier("one", "a100-80gb"))
    site = hs.NetworkFile(
        network=hs.Network(name="n", tiers=tiers), inner_links=(inner, None),
        min_blocks=(None, 3),
    )  # fmt: skip
    assert len(networks_of(site)) == 15
    some = networks_of(site, max_networks=14)
    names = [[n.name for t in each.network.tiers[:-1] for n in t.nodes] for each in some]
    assert names == [["large"], ["quick"], ["quick", "large", "neither"]]
    assert some[-1].min_blocks == (None, None, None, 3) and len(some[-1].inner_links) == 4
    (all_of_them,) = networks_of(site, max_networks=2)
    assert len(all_of_them.network.tiers) == 4


def test_rows_of_replicas_are_enumerated():
    """Four and two nodes, two replicas: a stage is any two nodes; a row takes two of a kind."""
    nodes = (*tier("a", "a10", 4).nodes, *tier("l", "l4", 2).nodes)
    inner = hs.Link(bytes_per_s=3e9, latency_s=5e-5)
    network = hs.Network(name="n", tiers=(hs.Tier(name="t", nodes=nodes),))
    site = hs.NetworkFile(network=network, inner_links=(inner,))
    found = set()
    for each in networks_of(site, n_replicas=2):
        stages = [[node.name for node in of_tier.nodes] for of_tier in each.network.tiers]
        assert all(len(stage) == 2 for stage in stages)
        names = [name for stage in stages for name in stage]
        assert len(set(names)) == len(names)
        found.add(tuple("".join(sorted(name[0] for name in stage)) for stage in stages))
    alone = {("aa",), ("al",), ("ll",)}
    rows = {row for n in (2, 3) for row in set(itertools.permutations(["aa", "aa", "ll"], n))}
    assert found == alone | rows


@pytest.mark.full_length
@pytest.mark.parametrize(
    "change",
    [
        ('name = "pair"', 'name = "pair"\npin = ["embedding"]'),
        ('name = "pair"', 'name = "pair"\nmax_blocks = 30'),
        ("inner = {gbps = 25, latency_ms = 0.05}", ""),
    ],
)
def test_a_tier_that_must_stay_one_keeps_its_quickest_node(tmp_path, capsys, change):
    path = tmp_path / "net.toml"
    path.write_text(PAIR.replace(*change))
    near = near_plan(plan("llama-3-8b", path, concurrency=4), "vllm")
    assert [node.node for node in near.nodes] == ["pair-rtx-4090-0", "one-a100-80gb-0"]
    assert near.network.pins.get("embedding", "pair") == "pair"
    command = ("plan", "--model", "llama-3-8b", "--network", path, "--export", "vllm")
    command += ("--objective", "bottleneck", "--output", 16)
    _, out, err = run(capsys, *command, "--concurrency", 4, "--runtime", "ideal")
    assert out.startswith("# left out: pair-rtx-3090-0, pair-t4-0; ") and "requests/s" in out
    hint = "a link `inner` in the network file (pair) would let in more nodes"
    assert (hint in err.splitlines()) is (change[1] == "")


def test_what_can_be_expressed_is_its_own_near_plan():
    found = planned((0, 12, 34))
    assert near_plan(found, "vllm") is found
    tiny = plan("llama-3-70b", hs.Network(name="tiny", tiers=(tier("a", "t4"),)))
    with pytest.raises(ValueError, match="nearest_plan: no plan to start from, infeasible"):
        near_plan(tiny, "petals")
    assert not near_plan(tiny, "vllm").fits


def test_the_nearest_plan_is_the_best_that_can_be_expressed(slow_first):
    site = hs.read_network_file(slow_first)
    best = plan("phi-3-mini", site, concurrency=1)
    assert best.result.partition.cuts == (0, 1, 34)
    near = near_plan(best, "vllm")
    values = [
        hs.evaluate(best.result.instance, hs.Partition((0, cut, 34))) for cut in range(2, 33)
    ]
    assert near.result.objective_s == pytest.approx(min(values), rel=1e-12)
    assert export(near, "vllm")


def test_layers_that_are_pinned_elsewhere_stay_there(slow_first):
    slow_first.write_text(SLOW_FIRST.replace('"fast"', '"fast"\npin = [0]'))
    site = hs.read_network_file(slow_first)
    found = plan("phi-3-mini", site, concurrency=1)
    with pytest.raises(ValueError, match="vllm needs layer 0 in tier 'slow', but it is pinned"):
        near_plan(found, "vllm")


def test_the_command_solves_again_where_it_must(capsys, slow_first):
    short = ("--concurrency", 1, "--output", 16, "--runtime", "ideal")
    short += ("--objective", "bottleneck")
    command = ("plan", "--model", "phi-3-mini", "--network", slow_first, *short)
    code, out, err = run(capsys, *command, "--export", "vllm")
    assert code == 0 and "VLLM_PP_LAYER_PARTITION=1,31" in out
    why, best, note, *_ = err.splitlines()
    assert why.startswith(
        "vllm cannot express the best plan: the stage of tier 'slow' has only"
    )
    assert note.startswith("note: simulated by the rules of runtime 'ideal'")
    pattern = (
        r"planned for it instead, on slow-\S+, fast-\S+ \(bottleneck (.+)% above that plan"
    )
    value = float(re.match(pattern, best)[1])
    plain = plan("phi-3-mini", slow_first, concurrency=1)
    ratio = near_plan(plain, "vllm").result.objective_s / plain.result.objective_s
    assert value == pytest.approx(100 * (ratio - 1), abs=0.06)
    assert run(capsys, *command, "--export", "vllm", "--json")[0] == 2
    code, out, err = run(capsys, *command, "--export", "json")
    assert (code, err) == (0, "") and json.loads(out)["stages"][0]["blocks"] == [0, 1]
    assert set(RUNTIMES) > set(BY_LAYER)


LINKED = """
[[tiers]]
name = "edge"
nodes = [{gpu = "l4", count = 2}]
link = {gbps = 10, latency_ms = 1}
[[tiers]]
name = "region"
nodes = [{gpu = "a10", count = 6}, {gpu = "l40s", count = 2}]
inner = {gbps = 100, latency_ms = 0.01}
link = {gbps = 10, latency_ms = 20}
[[tiers]]
name = "cloud"
nodes = [{gpu = "a100-80gb", count = 2}]
"""


def test_alike_nodes_become_replicas_instead_of_one_long_pipeline(tmp_path):
    """Ten nodes in a row, a few layers each, were 538 % worse: pipelines of few stages win."""
    path = tmp_path / "net.toml"
    path.write_text(LINKED)
    found = plan("llama-3-8b", path, rate_per_s=5, output_tokens=16)
    assert "'region' has 8" in not_expressible(found, "vllm")
    near = near_plan(found, "vllm")
    text = export(near, "vllm", instead_of=found)
    assert not_expressible(near, "vllm") == ""
    serves = [c for c in commands(text, "vllm serve") if "--headless" not in c.flags]
    assert len(serves) == 2 and all(
        len(tier_.nodes) == 2 for tier_ in near.network.network.tiers
    )
    assert near.result.objective_s < 2 * found.result.objective_s
    assert "# left out" not in text and len(used_by(near)) == len(used_by(found))
    path.write_text(LINKED.replace("inner", "# inner"))
    found = plan("llama-3-8b", path, rate_per_s=5, output_tokens=16)
    near = near_plan(found, "vllm")
    text = export(near, "vllm", instead_of=found)
    serves = [c for c in commands(text, "vllm serve") if "--headless" not in c.flags]
    assert len(serves) == 2 and "PARTITION" in text
    left = set(used_by(found)) - set(used_by(near))
    line = text.splitlines()[0]
    assert len(left) == 6 and set(re.findall(r"region-\S+?(?=[,;])", line)) == left
    mine, best = (each.forecast.max_requests_per_s for each in (near, found))
    if near.forecast.max_rate_is_lower_bound or found.forecast.max_rate_is_lower_bound:
        assert re.search(rf"; .*{mine:.3g} requests/s instead of .*{best:.3g}", line)
    else:
        change = f"{abs(mine - best):.3g} requests/s {'more' if mine > best else 'less'}"
        assert f"; {change}: " in line


def test_the_network_that_serves_most_in_batches_is_taken():
    """The best network for one request at a time serves less in batches than another one.

    All networks that vLLM can run are planned one by one, as an oracle.
    """
    inner = hs.Link(bytes_per_s=1.25e10, latency_s=1e-5)
    nodes = tuple(hs.Node(name=name, gpu=hs.gpu(name)) for name in ("a10", "t4"))
    rack = hs.Network(name="rack", tiers=(hs.Tier(name="rack", nodes=nodes),))
    site = hs.NetworkFile(network=rack, inner_links=(inner,))
    asked = {"runtime": "vllm", "output_tokens": 64, "concurrency": 4, "rate_per_s": 3}
    asked["objective"] = "bottleneck"
    found = hs.plan("llama-3-8b", site, with_upgrades=False, **asked)
    near = near_plan(found, "vllm")
    each = [
        hs.plan("llama-3-8b", network, with_upgrades=False, **asked)
        for n_replicas in (1, 2)
        for network in networks_of(site, n_replicas)
    ]
    fitting = [plan for plan in each if plan.fits]
    rates = [plan.forecast.max_requests_per_s for plan in fitting]
    by_objective = min(fitting, key=lambda plan: plan.result.objective_s)
    assert by_objective.forecast.max_requests_per_s < 0.95 * max(rates)
    assert near.forecast.max_requests_per_s >= max(rates) * (1 - 1 / 32)


def test_of_equal_plans_the_one_of_fewest_stages_is_taken():
    """Start the shortest of equal plans: with free links a row of alike nodes ties with one."""
    free = hs.Link(bytes_per_s=1e18, latency_s=0.0)
    gpu = replace(hs.gpu("h200"), t0_s=0.0)
    nodes = tuple(hs.Node(name=f"n-{k}", gpu=gpu) for k in range(3))
    last = hs.Node(name="last", gpu=gpu)
    tiers = (hs.Tier(name="many", nodes=nodes, link=free), hs.Tier(name="one", nodes=(last,)))
    site = hs.NetworkFile(network=hs.Network(name="n", tiers=tiers), inner_links=(free, None))
    found = plan("llama-3-8b", site, objective="path", concurrency=1)
    near = near_plan(found, "vllm")
    values = []
    for each in networks_of(site):
        solved = planner.split(
            "llama-3-8b", each, objective="path", concurrency=1, output_tokens=16
        )
        values.append((solved.result.objective_s, len(each.network.tiers)))
    best = min(values)[0]
    assert near.result.objective_s == pytest.approx(best, rel=1e-9)
    equal = [n for value, n in values if value <= best * (1 + 1e-9)]
    assert len(equal) > 1 and len(near.network.network.tiers) == min(equal)


@pytest.mark.parametrize("gpu", ["apple-m1-max", "jetson-agx-orin"])
@pytest.mark.parametrize("runtime", ["vllm", "sglang"])
def test_a_tier_on_which_a_runtime_does_not_run_stays_empty(gpu, runtime):
    """No Mac and no Jetson in a pipeline of CUDA; the export says so, naming the node."""
    network = hs.Network(name="n", tiers=(tier("own", gpu, 1, WIRE), tier("box", "h200")))
    found = plan("phi-3-mini", network, concurrency=1)
    why = not_expressible(found, runtime)
    platform = {"a": "metal", "j": "jetson"}[gpu[0]]
    assert f"it runs on cuda, rocm, and own-0 has {hs.gpu(gpu).name} ({platform})" in why
    with pytest.raises(
        ValueError, match="cannot express this plan: it runs on cuda, rocm, and"
    ):
        export(found, runtime)
    near = near_plan(found, runtime)
    assert [n.node for n in near.nodes if n.is_used] == ["box-0"]
    assert "own-0" in export(near, runtime, instead_of=found).splitlines()[0]
    assert not_expressible(found, "llama.cpp") == ""
    pins = hs.NetworkFile(network=network, pins={"embedding": "own"})
    with pytest.raises(ValueError, match="block 'embedding' is pinned to 'own', which has no"):
        near_plan(plan("phi-3-mini", pins, concurrency=1), runtime)
    with pytest.raises(ValueError, match="tier 'own' would have to be empty, but objective p0"):
        near_plan(plan("phi-3-mini", network, concurrency=1, objective="p0"), runtime)
    alone = hs.Network(name="n", tiers=(tier("own", gpu),))
    with pytest.raises(ValueError, match="runs on cuda, rocm, and the network has only"):
        near_plan(plan("phi-3-mini", alone, concurrency=1), runtime)


def test_some_nodes_of_a_tier_may_not_run_a_runtime():
    """The card of the Mac's neighbour keeps its number in the machine."""
    nodes = (
        hs.Node(name="own", gpu=hs.gpu("apple-m1-max")),
        hs.Node(name="first", gpu=hs.gpu("l4"), host="box", memory_bytes=2**30),
        hs.Node(name="second", gpu=hs.gpu("l4"), host="box"),
    )
    network = hs.Network(name="n", tiers=(hs.Tier(name="all", nodes=nodes),))
    near = near_plan(plan("phi-3-mini", network, concurrency=1), "vllm")
    assert [n.node for n in near.nodes if n.is_used] == ["second"]
    (serve,) = commands(export(near, "vllm"), "vllm serve")
    assert serve.variables["CUDA_VISIBLE_DEVICES"] == "1" and serve.where == "box"


def test_no_plan_is_returned_that_ray_would_start_otherwise():
    """Ray leaves the order of three machines open, and vLLM's own processes need even ones."""
    tiers = [
        tier(name, "h200", 1, WIRE if name != "d" else None, host=host)
        for name, host in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"))
    ]
    network = hs.Network(name="n", tiers=tuple(tiers))
    found = plan("llama-3-8b", network)
    why = not_expressible(found, "vllm")
    assert "no fixed order" in why and "without Ray every machine must have as many" in why
    with pytest.raises(ValueError, match="nearest_plan: vllm can express no plan: Ray puts"):
        near_plan(found, "vllm")
    assert "every machine must have as many stages" in not_expressible(found, "sglang")
    optional = hs.NetworkFile(network=network, min_blocks=(None, 0, None, None))
    near = near_plan(plan("llama-3-8b", optional, objective="bottleneck"), "vllm")
    assert not_expressible(near, "vllm") == "" and near.result.partition.cuts[1:3] != (0, 34)


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("name", ["campus", "phone-edge-cloud-5g", "home-lab"])
def test_named_networks_are_started_as_planned_for_a_server(name, server):
    """From a plan that the server cannot run to commands that give every card its layers."""
    found = plan("llama-3-8b", network(name), concurrency=2)
    near = near_plan(found, server)
    text = export(near, server, instead_of=found)
    read = READ[server](text)
    wanted = {}
    for node in near.nodes:
        if node.is_used:
            blocks = node.blocks
            wanted[node.node, 0] = [range(max(blocks.start - 1, 0), min(blocks.stop - 1, 32))]
    assert read == wanted and all(each.program in FLAGS for each in commands(text))
    left = set(used_by(found)) - set(used_by(near))
    lines = [line for line in text.splitlines() if line.startswith("# left out: ")]
    assert len(lines) == bool(left) and all(name in lines[0] for name in left)


def test_replicas_count_where_a_bottleneck_is_that_of_one_pipeline():
    """By the slowest node of a stage, one fast pipeline beats two; by requests/s, two win."""
    fast, slow = tier("f", "l40s").nodes, tier("s", "l4", 2).nodes
    tiers = (hs.Tier(name="a", nodes=(*fast, *slow), link=WIRE), tier("b", "l40s", 2))
    network = hs.Network(name="n", tiers=tiers)
    found = plan("llama-3-8b", network, runtime="vllm", concurrency=2)
    near = near_plan(found, "vllm")
    scores = {}
    for n_replicas in (1, 2):
        for each in networks_of(hs.NetworkFile(network=network), n_replicas):
            pins = {0: "a", 31: "b"}
            split = planner.split(
                "llama-3-8b", replace(each, pins=pins), runtime="vllm", concurrency=2,
                output_tokens=16, objective="bottleneck",
            )  # fmt: skip
            nodes = tuple(n.name for t in each.network.tiers for n in t.nodes)
            scores[nodes] = split.result.objective_s / n_replicas
    assert tuple(used_by(near)) == min(scores, key=scores.get)
    assert len(near.network.network.tiers[0].nodes) == 2
    assert len(commands(export(near, "vllm"), "vllm serve")) == 2


def test_upgrades_of_a_plan_on_numbered_cards(tmp_path):
    """`--export` with `--report` failed: one more GPU of a host had the number of the first."""
    path = tmp_path / "lab.toml"
    path.write_text("""
        [[tiers]]
        name = "box"
        host = "box.lan"
        nodes = [{gpu = "rtx-3090", count = 2}]
        link = {gbps = 1.0, latency_ms = 0.3}
        [[tiers]]
        name = "desk"
        nodes = [{gpu = "rtx-4070", host = "desk.lan"}]
    """)
    asked = {"runtime": "llama.cpp", "output_tokens": 16}
    best = hs.plan("phi-3-mini", path, with_upgrades=False, **asked)
    near = hs.nearest_plan(best, "llama.cpp", with_upgrades=True)
    of_tiers = [node for tier in near.network.network.tiers for node in tier.nodes]
    assert near.fits and any(node.card is not None for node in of_tiers)


COMPANY = """
currency = "EUR"
[[tiers]]
name = "edge"
nodes = [{gpu = "l4", count = 2, price_per_hour = 0.5}]
link = {gbps = 10, latency_ms = 2}
min_blocks = 0
[[tiers]]
name = "region"
nodes = [{gpu = "a10", count = 6, price_per_hour = 1}, {gpu = "l40s", count = 2, price_per_hour = 2}]
link = {gbps = 1, latency_ms = 40}
min_blocks = 0
[[tiers]]
name = "cloud"
nodes = [{gpu = "h100", count = 2, price_per_hour = 4}]
min_blocks = 0
"""  # noqa: E501


def test_of_many_networks_the_one_that_serves_most_is_taken(tmp_path):
    """Dozens of networks shared the time, and with it the size of their simulations.

    None was long enough to tell a rate, so a pipeline over a WAN was taken for the one that
    serves most.
    """
    file = tmp_path / "company.toml"
    file.write_text(COMPANY)
    plan = hs.plan(
        "llama-3-8b", file, runtime="vllm", rate_per_s=5, prompt_tokens=1024, output_tokens=256,
        with_upgrades=False, time_limit_s=30,
    )  # fmt: skip
    near = hs.nearest_plan(plan, "vllm", with_upgrades=False, time_limit_s=30)
    assert {node.tier for node in near.nodes if node.is_used} == {"cloud"}
    assert near.forecast.unused_price_per_hour == pytest.approx(2 * 0.5 + 6 * 1 + 2 * 2)
    assert near.alternatives == ()
