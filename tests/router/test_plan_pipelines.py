"""Pipelines of a router from the files of plans, against numbers worked out by hand."""

import json

import pytest

from hypsolve.router.plan_pipelines import read_pipelines

TIMES = {"mean": 0.5, "p50": 0.5, "p95": 0.5, "p99": 0.5}


def stage(machine):
    return {"machine": machine, "gpus": 1, "blocks": [0, 1]}


def placement(**changes):
    one = {
        "stages": [stage("a"), stage("b")], "requests_per_s": 4.0, "fluid_requests_per_s": 5.0,
        "fluid_ttft_s": 1.0, "fluid_tpot_s": 0.1, "ttft_s": TIMES, "tpot_s": TIMES,
        "max_sequences": 9,
    }  # fmt: skip
    return {
        "format": "hypsolve-placement", "version": 1, "prompt_tokens": 100, "output_tokens": 11,
        "runtime": {"max_num_seqs": 6},
        "pipelines": [one, {**one, "stages": [stage("c"), stage("b")], **changes}],
    }  # fmt: skip


def plan(time_s=2.0):
    def node(tier, name, time_s, *, used=True, blocks=(0, 1)):
        return {
            "tier": tier, "node": name, "time_s": time_s, "is_used": used,
            "blocks": list(blocks),
        }  # fmt: skip

    return {
        "format": "hypsolve-plan", "version": 3, "prompt_tokens": 100, "output_tokens": 11,
        "runtime": {"max_num_seqs": None},
        "nodes": [
            node("edge", "a", 0.0, blocks=(0, 0)), node("fog", "b", 1.0),
            node("fog", "small", 9.0, used=False), node("fog", "c", time_s),
            node("cloud", "d", 1.0), node("cloud", "e", time_s), node("cloud", "f", 1.0),
        ],
        "forecast": {
            "max_requests_per_s": 6.0, "ttft_s": TIMES, "tpot_s": {**TIMES, "mean": 0.1},
            "max_sequences": 40, "bound_requests_per_s": 9.0,
        },
    }  # fmt: skip


def read(tmp_path, document, **options):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    return read_pipelines(path, **options)


def test_a_placement_has_a_forecast_of_each_pipeline(tmp_path):
    found = read(tmp_path, placement(fluid_ttft_s=None, fluid_tpot_s=None, max_sequences=3))
    first, second = found.pipelines
    assert first.name == "1: a -> b"
    assert first.prompt_token_s == pytest.approx(0.01)
    assert first.output_token_s == pytest.approx(0.1)
    assert first.max_in_flight == 6
    assert first.concurrency == 6.0  # 4 requests/s of 2 s each, but no more run at once
    assert (second.prompt_token_s, second.output_token_s) == (0.005, 0.5)  # simulated
    assert (second.max_in_flight, second.concurrency) == (3, 3.0)
    assert found.output_tokens == 11


def test_a_placement_without_times_has_its_rates(tmp_path):
    none = dict.fromkeys(("fluid_ttft_s", "fluid_tpot_s", "ttft_s", "tpot_s"))
    seed = read(tmp_path, placement(**none)).pipelines[1]
    assert seed.prompt_token_s * 100 == pytest.approx(0.125)
    assert seed.output_token_s * 11 == pytest.approx(0.125)
    assert seed.concurrency == 1.0


def test_a_plan_has_the_nodes_of_each_tier_in_turn(tmp_path):
    found = read(tmp_path, plan())
    assert found.machines == (("b", "d"), ("c", "e"))
    first, second = found.pipelines
    # 2 s and 4 s: harmonic mean 8/3 s
    assert first.prompt_token_s == pytest.approx(0.5 / 100 * 0.75)
    assert second.output_token_s == pytest.approx(0.1 * 1.5)
    assert first.concurrency == pytest.approx(4.0 * 1.5 * 0.75)
    assert first.max_in_flight == 20
    limited = read(tmp_path, plan(), max_in_flight=2)
    assert {each.max_in_flight for each in limited.pipelines} == {2}


def test_a_limit_may_be_any_whole_number(tmp_path):
    document = {**placement(max_sequences=10**400), "runtime": {"max_num_seqs": None}}
    second = read(tmp_path, document).pipelines[1]
    assert second.max_in_flight == 10**400
    assert second.concurrency == 8.0  # 4 requests/s of 2 s each


def test_servers_are_named_by_number_or_machine(tmp_path):
    found = read(tmp_path, placement())
    assert found.urls(["c=http://y", "1=http://x"]) == ["http://x", "http://y"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1=http://x"], r"none for 2 \(c -> b\): add --server 2=http://HOST:PORT"),
        ([], r"none for 1 \(a -> b\), 2 \(c -> b\)"),
        (["1=http://x", "a=http://y"], "pipeline 1 must have one address, got two"),
        (["b=http://x"], "'b' is in pipelines 1, 2: give a number"),
        (["z=http://x"], "no pipeline has 'z'; machines are a, b, c"),
        (["0=http://x"], "pipeline must be from 1 to 2, got 0"),
        (["http://x"], "must be NAME_OR_NUMBER=URL"),
        (["1="], "must be NAME_OR_NUMBER=URL"),
    ],
)
def test_servers_that_are_missing_or_wrong_are_named(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, placement()).urls(given)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "format must be hypsolve-placement or hypsolve-plan, got None"),
        ({"format": "x"}, "got 'x'"),
        ({"format": "hypsolve-plan", "version": 2}, "version must be 3, got 2"),
        ({"format": "hypsolve-plan", "version": 3}, "no plan of this version"),
        ({**placement(), "pipelines": []}, "must hold at least one, got none: nothing fits"),
        ({**plan(), "nodes": []}, "got none: nothing fits"),
        ({**placement(), "pipelines": [3]}, "no plan of this version"),
        ({**placement(), "prompt_tokens": "many"}, "plan.json: could not convert"),
        (placement(max_sequences="x"), "no plan of this version"),
        ({**placement(), "prompt_tokens": 0}, "prompt_tokens must be from 1 to .*, got 0"),
        ({**placement(), "output_tokens": 0}, "output_tokens must be from 1 to .*, got 0"),
        ({**plan(), "output_tokens": 1e15}, "output_tokens must be from 1 to .*, got 10000"),
        ({**plan(), "prompt_tokens": 0}, "prompt_tokens must be from 1 to .*, got 0"),
        ({**placement(), "prompt_tokens": 10**400}, "must be numbers below 1e300"),
        (plan(time_s=0.0), "plan.json: nodes c -> e: time_s must be positive"),
        (placement(requests_per_s=10**400), "must be numbers below 1e300"),
    ],
)
def test_other_files_are_refused(tmp_path, document, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, document)
