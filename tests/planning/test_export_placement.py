"""Exported placements, read as the servers do: each card once, all layers, ports, weights."""

import re

import pytest

import hypsolve as hs
from hypsolve.planning.exporters.placements import SERVERS, export_placement, whole_weights
from tests.helpers.export_flags import FLAGS
from tests.helpers.export_readers import addresses, llama_layers, sglang_layers, vllm_layers
from tests.helpers.exports import commands
from tests.helpers.fleets import fleet, machine

LAB = fleet(machine("a"), machine("b"), machine("box", "h100", gpus=2))
READERS = {"vllm": vllm_layers, "sglang": sglang_layers, "llama.cpp": llama_layers}
ASKED = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 20.0}


@pytest.fixture(scope="module", params=SERVERS)
def exported(request):
    """A server, a plan of Llama-2-13B for it, and the text. Two cards hold it together."""
    weights = "q8_0" if request.param == "llama.cpp" else None
    plan = hs.place("llama-2-13b", LAB, runtime=request.param, weights=weights, **ASKED)
    return request.param, plan, export_placement(plan, request.param)


def test_every_card_has_its_layers_once(exported):
    server, plan, text = exported
    found = READERS[server](text)
    taken, n_layers = {}, 40
    for pipeline in plan.pipelines:
        layers = []
        for stage in pipeline.stages:
            assert stage.gpus == 1
            card = taken[stage.machine] = taken.get(stage.machine, -1) + 1
            held = range(max(stage.start - 1, 0), min(stage.stop - 1, n_layers))
            assert len(found[stage.machine, card]) == 1
            got = found[stage.machine, card][0]
            if len(pipeline.stages) > 1:  # else no number of layers is told
                assert got == held
            layers += held
        assert layers == list(range(n_layers))
    assert len(found) == sum(len(each.stages) for each in plan.pipelines)


def test_every_server_listens_alone_and_nginx_knows_all(exported):
    _, plan, text = exported
    listening = addresses(text)
    assert len(set(listening)) == len(listening)
    rows = re.findall(r"server (\S+):(\d+) weight=(\d+);", text)
    assert len(rows) == len(plan.pipelines) > 1
    served = {(host, int(port)) for host, port, _ in rows}
    assert served <= {(host, int(port)) for host, port in listening}
    weights = [int(weight) for *_, weight in rows]
    for weight, pipeline in zip(weights, plan.pipelines, strict=True):
        assert weight / sum(weights) == pytest.approx(pipeline.share, abs=0.01)
    assert "least_conn" not in text


def test_flags_are_those_of_the_programs(exported):
    _, _, text = exported
    for each in commands(text):
        assert each.flags.keys() <= FLAGS[each.program], each.program


def test_every_simulated_limit_is_told():
    plan = hs.place("llama-3-8b", LAB, max_num_seqs=33, max_num_batched_tokens=777, **ASKED)
    text = export_placement(plan, "vllm")
    starts = list(commands(text, "vllm serve MODEL"))
    assert len(starts) == len(plan.pipelines)
    for each in starts:
        assert each["--max-num-seqs"] == "33" and each["--max-num-batched-tokens"] == "777"


def test_a_group_of_gpus_computes_as_one():
    lab = fleet(machine("box", "h100", gpus=4))
    plan = hs.place("llama-3-70b", lab, max_stages=1, **ASKED)
    starts = list(commands(export_placement(plan, "vllm"), "vllm serve MODEL"))
    shown: list[str] = []
    for start, pipeline in zip(starts, plan.pipelines, strict=True):
        n_gpus = pipeline.stages[0].gpus
        assert n_gpus > 1 and start["--tensor-parallel-size"] == str(n_gpus)
        assert "--pipeline-parallel-size" not in start.flags
        cards = start.variables["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(cards) == n_gpus
        shown += cards
    assert len(set(shown)) == len(shown)


def test_what_cannot_be_exported_is_refused():
    nothing = hs.place("llama-3-70b", fleet(machine("a")), **ASKED)
    with pytest.raises(ValueError, match="no placement to write"):
        export_placement(nothing, "vllm")
    with pytest.raises(ValueError, match="unknown server 'vlm'; did you mean vllm"):
        export_placement(nothing, "vlm")
    with pytest.raises(TypeError, match="plan must be a PlacementPlan"):
        export_placement(3, "vllm")


def test_weights_are_small_whole_numbers():
    assert whole_weights([1.0]) == [1]
    assert whole_weights([0.5, 0.5]) == [1, 1]
    for shares in ([0.013, 0.987], [0.2, 0.3, 0.5], [1 / 3, 2 / 3]):
        weights = whole_weights(shares)
        total = sum(weights)
        assert [w / total for w in weights] == pytest.approx(shares, abs=0.01)
